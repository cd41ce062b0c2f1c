"""Rows worth looking at, from out-of-fold predictions: the worst errors, the most confident right, each confusion.

Binary rows count as two classes; a multilabel row as one such case per label; a regression row by its error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from foldwise.data import index, oof
from foldwise.data.competition import Competition
from foldwise.model.targets import OutputTarget

SHEETS = ("worst", "right", "pairs")
PAIRS = 6  # confusion pairs that get a sheet


@dataclass(frozen=True)
class Case:
    """A row, what the model that never saw it answered, and what was true. probability: of the answer (of a
    regression, its value); of_truth: the truth's (a regression's true value)."""

    id: str
    fold: int
    truth: str
    answer: str
    probability: float
    of_truth: float
    targets: tuple[OutputTarget, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is the truth (never so for a regression)."""
        return self.truth == self.answer


@dataclass(frozen=True)
class Sheet:
    """Cases that belong together; `key` names its files."""

    key: str
    title: str
    lead: str
    cases: list[Case] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """Every case of an OOF table: `table` has id and fold; arrays are aligned with it, one entry a case.

    prob: float (M, K) of the K names of each case. truth, decided: int (M,), columns of prob. label: int (M,), the
    multilabel output that a case is about, else 0. A regression has no names: prob is its value and the truth.
    cuts: by label, above which an answer is 1 (binary and multilabel).
    """

    task: str
    names: list[str]
    table: pd.DataFrame
    prob: np.ndarray
    truth: np.ndarray
    decided: np.ndarray
    label: np.ndarray
    cuts: tuple[float, ...] = ()

    @cached_property
    def of_truth(self) -> np.ndarray:
        """float (M,): the probability given to the truth; a regression's minus absolute error."""
        if self.task == "regression":
            return -np.abs(self.prob[:, 0] - self.prob[:, 1])
        return self.prob[np.arange(len(self.prob)), self.truth]

    @cached_property
    def sure(self) -> np.ndarray:
        """float (M,): the probability of the answer (a regression's value)."""
        if self.task == "regression":
            return self.prob[:, 0]
        return self.prob[np.arange(len(self.prob)), self.decided]

    def by(self, label: int) -> str:
        """By which threshold a label is answered, in words; '' where the likeliest class is the answer."""
        return f", answered 1 above {self.cuts[label]:.3g} (as many rows as are 1)" if self.cuts else ""

    def name(self, k: int, cls: int) -> str:
        """What class `cls` is called in case k."""
        if self.task == "multiclass":
            return self.names[cls]
        return f"{self.names[self.label[k]]} = {cls}"

    def target(self, k: int, cls: int) -> OutputTarget:
        """What to explain of case k as evidence for class `cls`."""
        if self.task == "multiclass":
            return OutputTarget(cls, 1, self.names[cls])
        return OutputTarget(int(self.label[k]), 1 if cls == 1 else -1, self.name(k, cls))

    def case(self, k: int) -> Case:
        """Entry k, explained for its answer and, where that is wrong, for the truth too."""
        row_id, fold = str(self.table["id"].iloc[k]), int(self.table["fold"].iloc[k])
        if self.task == "regression":
            value, truth = map(float, self.prob[k])
            return Case(
                row_id, fold, f"{truth:.4g}", f"{value:.4g}", value, truth, (OutputTarget(0, 1, self.names[0]),)
            )
        said, true = int(self.decided[k]), int(self.truth[k])
        targets = tuple(self.target(k, cls) for cls in dict.fromkeys((said, true)))
        return Case(
            row_id, fold, self.name(k, true), self.name(k, said), float(self.sure[k]), float(self.of_truth[k]), targets
        )


def answers(competition: Competition, table: pd.DataFrame) -> Answers:
    """The cases of an OOF table. Binary answers are 1 above the threshold that calls as many rows 1 as there are:
    at 8 % positives, 0.5 would call none."""
    competition = competition.as_classes()
    table = oof.with_class(competition, table)
    pred = table[oof.pred_columns(table)].to_numpy(dtype=float)
    names = [column.removeprefix("pred_") for column in oof.pred_columns(table)]
    rows = table[["id", "fold"]].reset_index(drop=True)
    nothing = np.zeros(len(rows), np.int64)
    if competition.task == "multiclass":
        truth = pd.Categorical(table["target"].astype(str), categories=names).codes.astype(np.int64)
        shown = list(map(competition.shown, names))
        return Answers("multiclass", shown, rows, pred, truth, pred.argmax(axis=1), nothing)
    names = competition.targets
    if competition.task == "regression":
        both = np.column_stack([pred[:, 0], table["target"].to_numpy(dtype=float)])
        return Answers("regression", names, rows, both, nothing, nothing, nothing)
    truth = index.known(table[competition.truth]).to_numpy(dtype=float)
    known = ~np.isnan(truth)
    cuts = [_threshold(pred[known[:, j], j], truth[known[:, j], j]) for j in range(len(names))]
    label = np.broadcast_to(np.arange(len(names)), truth.shape)[known]
    p = pred[known]
    return Answers(
        competition.task,
        names,
        rows.loc[np.flatnonzero(known) // len(names)].reset_index(drop=True),
        np.column_stack([1 - p, p]),
        truth[known].astype(np.int64),
        (p > np.array(cuts)[label]).astype(np.int64),
        label,
        tuple(cuts),
    )


def _threshold(pred: np.ndarray, truth: np.ndarray) -> float:
    """Halfway between the last row called 1 and the first called 0, where as many are called 1 as are 1."""
    order = np.sort(pred)[::-1]
    positive = int(truth.sum())
    if positive in {0, len(order)}:
        return 0.5
    return float(order[positive - 1] + order[positive]) / 2


def sheets(answers: Answers, wanted: Sequence[str], count: int, copies: Mapping[str, str] | None = None) -> list[Sheet]:
    """The sheets asked for, of at most `count` cases each; one without cases is left out.

    copies: {id: the name of the group of copies that it belongs to}; of each group a sheet shows one row.
    """
    makers = {"worst": _worst, "right": _right, "pairs": _pairs}
    more = 3 * count  # copies, and the worst errors among the pairs, make room
    every = [sheet for name in SHEETS if name in wanted for sheet in makers[name](answers, more)]
    chosen = [replace(sheet, cases=_one_of_each(sheet.cases, copies or {})) for sheet in every if sheet.cases]
    worst = {case for sheet in chosen if sheet.key == "worst" for case in sheet.cases[:count]}
    return [_without(sheet, worst, count) for sheet in chosen]


def _one_of_each(cases: Sequence[Case], copies: Mapping[str, str]) -> list[Case]:
    first = dict[tuple[str, int], Case]()
    for case in cases:
        first.setdefault((copies.get(case.id, case.id), case.targets[0].output), case)
    return list(first.values())


def _without(sheet: Sheet, worst: set[Case], count: int) -> Sheet:
    """A pair's sheet without the worst errors, which stand above: of some pair each of them is, too."""
    fresh = [case for case in sheet.cases if case not in worst or sheet.key in {"worst", "right"}]
    again = "" if len(fresh) == len(sheet.cases) or not fresh else " Without the worst errors above."
    return replace(sheet, lead=sheet.lead + again, cases=(fresh or sheet.cases)[:count])


def _worst(answers: Answers, count: int) -> list[Sheet]:
    order = np.argsort(answers.of_truth, kind="stable")[:count]
    lead = "The truth was given the least probability here, the worst first. Look for wrong labels, too."
    if answers.task == "regression":
        lead = "The largest absolute errors, the worst first."
    return [Sheet("worst", "Worst errors", lead, [answers.case(k) for k in order])]


def _right(answers: Answers, count: int) -> list[Sheet]:
    if answers.task == "regression":
        order = np.argsort(-answers.of_truth, kind="stable")[:count]
        return [Sheet("right", "Closest answers", "The smallest errors.", [answers.case(k) for k in order])]
    kept = _by_turns(answers, np.flatnonzero(answers.decided == answers.truth), answers.of_truth, count)
    lead = "The truth was given the most probability here, class by class in turn."
    return [Sheet("right", "Most confident right answers", lead, [answers.case(k) for k in kept])]


def _by_turns(answers: Answers, rows: np.ndarray, by: np.ndarray, count: int) -> list[int]:
    """At most `count` of `rows`, the largest `by` of each class (and label), then the second of each, ..."""
    ranked = pd.DataFrame({"row": rows, "by": by[rows], "cls": answers.truth[rows], "label": answers.label[rows]})
    ranked = ranked.sort_values("by", ascending=False, kind="stable")
    ranked["turn"] = ranked.groupby(["label", "cls"]).cumcount()
    return ranked.sort_values("turn", kind="stable")["row"].head(count).tolist()


def _pairs(answers: Answers, count: int) -> list[Sheet]:
    """A sheet for each kind of confusion (of a label), the most frequent first."""
    if answers.task == "regression":
        return []
    wrong = np.flatnonzero(answers.decided != answers.truth)
    columns = {"label": answers.label, "truth": answers.truth, "answer": answers.decided}
    kinds = pd.DataFrame({name: values[wrong] for name, values in columns.items()})
    frequent = kinds.value_counts().head(PAIRS)
    sheets = []
    for number, ((label, truth, answer), rows) in enumerate(frequent.items(), 1):
        kind = (kinds["label"] == label) & (kinds["truth"] == truth) & (kinds["answer"] == answer)
        members = wrong[kind.to_numpy()]
        order = members[np.argsort(-answers.sure[members], kind="stable")][:count]
        title = f"{answers.name(order[0], truth)}, taken for {answers.name(order[0], answer)}"
        lead = (
            f"{rows} of {np.sum((answers.truth == truth) & (answers.label == label))}{answers.by(label)}; the surest "
        )
        lead += "first."
        sheets.append(Sheet(f"pair{number}", title, lead, [answers.case(k) for k in order]))
    return sheets


def chosen(answers: Answers, ids: Sequence[str]) -> list[Case]:
    """The cases of rows by id, in that order; of a multilabel row, one per label that is true or answered (or all)."""
    cases = []
    for row_id in ids:
        entries = np.flatnonzero((answers.table["id"] == row_id).to_numpy()).tolist()
        some = [k for k in entries if answers.task != "multilabel" or answers.truth[k] or answers.decided[k]]
        cases += [answers.case(k) for k in (some or entries)]
    return cases


def sample(answers: Answers, count: int, seed: int = 0) -> list[Case]:
    """Cases to try the maps on: drawn at random among those that answer a class that is there, not its absence.

    Evidence for 'absent' is everywhere and nowhere; what shows a class can be deleted.
    """
    every = answers.task in {"multiclass", "regression"}
    present = np.ones(len(answers.table), bool) if every else answers.decided == 1
    rows = np.flatnonzero(present)
    picked = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False) if len(rows) else rows
    return [answers.case(k) for k in np.sort(picked).tolist()]


def table(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """A row per case: sheet, id, fold, truth, answer, probability."""
    rows = [(s.key, c.id, c.fold, c.truth, c.answer, c.probability) for s in sheets for c in s.cases]
    return pd.DataFrame(rows, columns=["sheet", "id", "fold", "truth", "answer", "probability"])
