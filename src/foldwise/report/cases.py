"""Rows worth looking at, from out-of-fold predictions: the worst errors, the most confident right, each confusion.

Binary rows count as two classes; a multilabel row as one such case per label; a regression row by its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from foldwise.data import index, oof
from foldwise.data.competition import Competition

SHEETS = ("worst", "right", "pairs")
PAIRS = 6  # confusion pairs that get a sheet


@dataclass(frozen=True)
class View:
    """One thing to explain of a case: the evidence for `name`, which is `sign` times output `output`."""

    name: str
    output: int
    sign: int


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
    views: tuple[View, ...]

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
    """

    task: str
    names: list[str]
    table: pd.DataFrame
    prob: np.ndarray
    truth: np.ndarray
    decided: np.ndarray
    label: np.ndarray

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

    def name(self, k: int, cls: int) -> str:
        """What class `cls` is called in case k."""
        if self.task == "multiclass":
            return self.names[cls]
        return f"{self.names[self.label[k]]} = {cls}"

    def view(self, k: int, cls: int) -> View:
        """What to explain of case k as evidence for class `cls`."""
        if self.task == "multiclass":
            return View(self.names[cls], cls, 1)
        return View(self.name(k, cls), int(self.label[k]), 1 if cls == 1 else -1)

    def case(self, k: int) -> Case:
        """Entry k, explained for its answer and, where that is wrong, for the truth too."""
        row_id, fold = str(self.table["id"].iloc[k]), int(self.table["fold"].iloc[k])
        if self.task == "regression":
            value, truth = map(float, self.prob[k])
            return Case(row_id, fold, f"{truth:.4g}", f"{value:.4g}", value, truth, (View(self.names[0], 0, 1),))
        said, true = int(self.decided[k]), int(self.truth[k])
        views = tuple(self.view(k, cls) for cls in dict.fromkeys((said, true)))
        return Case(
            row_id, fold, self.name(k, true), self.name(k, said), float(self.sure[k]), float(self.of_truth[k]), views
        )


def answers(competition: Competition, table: pd.DataFrame) -> Answers:
    """The cases of an OOF table. Binary answers are 1 above the threshold that calls as many rows 1 as there are:
    at 8 % positives, 0.5 would call none."""
    pred = table[oof.pred_columns(table)].to_numpy(dtype=float)
    names = [column.removeprefix("pred_") for column in oof.pred_columns(table)]
    rows = table[["id", "fold"]].reset_index(drop=True)
    nothing = np.zeros(len(rows), np.int64)
    if competition.task == "multiclass":
        truth = pd.Categorical(table["target"].astype(str), categories=names).codes.astype(np.int64)
        return Answers("multiclass", names, rows, pred, truth, pred.argmax(axis=1), nothing)
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
    )


def _threshold(pred: np.ndarray, truth: np.ndarray) -> float:
    """Halfway between the last row called 1 and the first called 0, where as many are called 1 as are 1."""
    order = np.sort(pred)[::-1]
    positive = int(truth.sum())
    if positive in {0, len(order)}:
        return 0.5
    return float(order[positive - 1] + order[positive]) / 2


def sheets(found: Answers, wanted: Sequence[str], count: int) -> list[Sheet]:
    """The sheets asked for, of at most `count` cases each; one without cases is left out."""
    makers = {"worst": _worst, "right": _right, "pairs": _pairs}
    made = [sheet for name in SHEETS if name in wanted for sheet in makers[name](found, count)]
    return [sheet for sheet in made if sheet.cases]


def _worst(found: Answers, count: int) -> list[Sheet]:
    order = np.argsort(found.of_truth, kind="stable")[:count]
    lead = "The truth was given the least probability here, the worst first. Look for wrong labels, too."
    if found.task == "regression":
        lead = "The largest absolute errors, the worst first."
    return [Sheet("worst", "Worst errors", lead, [found.case(k) for k in order])]


def _right(found: Answers, count: int) -> list[Sheet]:
    if found.task == "regression":
        order = np.argsort(-found.of_truth, kind="stable")[:count]
        return [Sheet("right", "Closest answers", "The smallest errors.", [found.case(k) for k in order])]
    kept = _by_turns(found, np.flatnonzero(found.decided == found.truth), found.of_truth, count)
    lead = "The truth was given the most probability here, class by class in turn."
    return [Sheet("right", "Most confident right answers", lead, [found.case(k) for k in kept])]


def _by_turns(found: Answers, rows: np.ndarray, by: np.ndarray, count: int) -> list[int]:
    """At most `count` of `rows`, the largest `by` of each class (and label), then the second of each, ..."""
    ranked = pd.DataFrame({"row": rows, "by": by[rows], "cls": found.truth[rows], "label": found.label[rows]})
    ranked = ranked.sort_values("by", ascending=False, kind="stable")
    ranked["turn"] = ranked.groupby(["label", "cls"]).cumcount()
    return ranked.sort_values("turn", kind="stable")["row"].head(count).tolist()


def _pairs(found: Answers, count: int) -> list[Sheet]:
    """A sheet for each kind of confusion (of a label), the most frequent first."""
    if found.task == "regression":
        return []
    wrong = np.flatnonzero(found.decided != found.truth)
    kinds = pd.DataFrame({"label": found.label[wrong], "truth": found.truth[wrong], "answer": found.decided[wrong]})
    frequent = kinds.value_counts().head(PAIRS)
    made = []
    for number, ((label, truth, answer), rows) in enumerate(frequent.items(), 1):
        kind = (kinds["label"] == label) & (kinds["truth"] == truth) & (kinds["answer"] == answer)
        members = wrong[kind.to_numpy()]
        order = members[np.argsort(-found.sure[members], kind="stable")][:count]
        title = f"{found.name(order[0], truth)}, taken for {found.name(order[0], answer)}"
        lead = f"{rows} of {np.sum((found.truth == truth) & (found.label == label))}; the surest first."
        made.append(Sheet(f"pair{number}", title, lead, [found.case(k) for k in order]))
    return made


def chosen(found: Answers, ids: Sequence[str]) -> list[Case]:
    """The cases of rows by id, in that order; of a multilabel row, one per label that is true or answered (or all)."""
    made = []
    for row_id in ids:
        entries = np.flatnonzero((found.table["id"] == row_id).to_numpy()).tolist()
        some = [k for k in entries if found.task != "multilabel" or found.truth[k] or found.decided[k]]
        made += [found.case(k) for k in (some or entries)]
    return made


def sample(found: Answers, count: int, seed: int = 0) -> list[Case]:
    """Cases to try the maps on: drawn at random among those that answer a class that is there, not its absence.

    Evidence for 'absent' is everywhere and nowhere; what shows a class can be deleted.
    """
    present = np.ones(len(found.table), bool) if found.task in {"multiclass", "regression"} else found.decided == 1
    rows = np.flatnonzero(present)
    picked = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False) if len(rows) else rows
    return [found.case(k) for k in np.sort(picked).tolist()]


def table(made: Sequence[Sheet]) -> pd.DataFrame:
    """A row per case: sheet, id, fold, truth, answer, probability."""
    rows = [(s.key, c.id, c.fold, c.truth, c.answer, c.probability) for s in made for c in s.cases]
    return pd.DataFrame(rows, columns=["sheet", "id", "fold", "truth", "answer", "probability"])
