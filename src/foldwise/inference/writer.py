"""A submission file that is valid at every moment: first the training prior, then whatever is better. No torch here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.blend.mixture import Mixture
from foldwise.blend.run_set import join_tests
from foldwise.core.cli import note
from foldwise.core.files import read_sealed
from foldwise.core.schema import nearest
from foldwise.data import folds, index, submission, test_rows
from foldwise.data.competition import Competition

HOLDS = 0.8  # share of the rows there are that a sample must ask for, or it is an old one that lies there still


@dataclass(frozen=True)
class Saved:
    """What submissions/<competition>/<name>.json says: the mixture, what each run is worth, the sample's shape."""

    name: str
    mixture: Mixture
    worth: dict[str, float]
    sample: dict[str, Any] | None

    @classmethod
    def load(cls, competition: Competition, name: str) -> Saved:
        """UserError where there is no such submission, or it was made before it held what predicts."""
        path = competition.submissions() / f"{name}.json"
        if not path.exists():
            there = sorted(file.stem for file in competition.submissions().glob("*.json"))
            raise UserError(f"{path}: not there{nearest(name, there)}; make it with 06_blend.py --name {name}")
        try:
            return cls._of(path, name, read_sealed(path))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:100]
            raise UserError(f"{path}: damaged ({why}); run the same 06_blend.py again") from None

    @classmethod
    def _of(cls, path: Path, name: str, meta: dict[str, Any]) -> Saved:
        if "mixture" not in meta and "method" in meta:
            raise UserError(
                f"{path}: made before it held what predicts new rows; run the same 06_blend.py again (a blend of ranks "
                "may change a little: they are taken among the out-of-fold predictions now, not among the test rows)"
            )
        worth = {row["run"]: row["adds"] for row in meta["leave_one_out"]}
        return cls(name, Mixture.of_saved(meta["mixture"]), worth, meta.get("sample"))


@dataclass
class Submission:
    """One submission being predicted. rows: index rows of the test split now; table: the saved index with them."""

    competition: Competition
    saved: Saved
    out: Path
    table: pd.DataFrame
    rows: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> list[str]:
        """The classes behind the predictions."""
        return index.classes(self.competition, self.table)

    @cached_property
    def columns(self) -> list[str]:
        """Of a prediction table."""
        return [f"pred_{name}" for name in self.names] or ["pred"]

    @cached_property
    def folds(self) -> pd.DataFrame:
        """folds.csv."""
        return folds.load_folds(self.competition)

    def prior(self, fold: int | None = None) -> np.ndarray:
        """float32 (C,): the mean target of the training rows, without those of a fold."""
        fold_table = self.folds if fold is None else self.folds[self.folds["fold"] != fold]
        return index.prior(self.competition, folds.rows(self.table, fold_table), self.names)

    # --- the blend --------------------------------------------------------------------------------------------

    def blend(self, tests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """id, pred... of every submission row (or image): rows that no run predicted get the training prior."""
        mixture, ids = self.saved.mixture, self.rows["id"].to_numpy()
        shape = (len(mixture.names), len(ids), len(self.columns))
        preds = np.full(shape, np.nan)
        for m, name in enumerate(mixture.names):
            if name in tests:
                preds[m] = tests[name].set_index("id")[self.columns].reindex(ids).to_numpy(dtype=np.float64)
        nobody = np.isnan(preds).all(axis=(0, 2))
        preds[:, nobody] = self.prior()
        if self.competition.aggregates:
            preds, ids = join_tests(self.competition, preds, ids, self.table)
        pred = mixture.predict(preds[:, :, 0] if self.columns == ["pred"] else preds).reshape(len(ids), -1)
        return pd.DataFrame({"id": ids, **dict(zip(self.columns, pred.T, strict=True))})

    def write(self, tests: Mapping[str, pd.DataFrame]) -> int:
        """The submission of what is there, validated, in place of the one before; its rows."""
        pred = self.blend(tests)
        sample = self.sample(pred)
        rows = submission.to_rows(self.competition, pred, self.table)
        asked = submission.rows_asked(self.competition, rows.index, sample.iloc[:, 0])
        rows = rows.reindex(asked.drop_duplicates())
        rows[rows.isna().any(axis=1)] = self.blend({}).iloc[0][self.columns].to_numpy(dtype=float)
        frame = submission.shape(self.competition, rows, sample, self.table)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        submission.write_frame(self.competition, frame, sample, self.out)
        return len(frame)

    def sample(self, pred: pd.DataFrame) -> pd.DataFrame:
        """The host's sample if it asks for the rows that are there; else one of these rows in the sample's columns."""
        about, wanted = self.competition, self.rows["row_id"].drop_duplicates().astype(str)
        path = about.raw() / str(about.sample_submission)
        if about.sample_submission is not None and path.exists():
            given = self._given_sample(path, pred)
            asked, there = set(submission.rows_asked(about, wanted, given.iloc[:, 0])), set(wanted)
            if len(given) and len(asked & there) >= HOLDS * len(there):
                for count, what in (
                    (len(asked - there), "asks for {} rows that are not there: they get the training prior"),
                    (len(there - asked), "does not ask for {} rows that are there: they are left out"),
                ):
                    if count:
                        self.say(f"{path}: {what.format(count)}")
                return given
            if len(given):
                self.say(f"{path}: does not ask for the rows that are there: its columns are used, not its ids")
            shown = given.head(1) if len(given) else self._made_with(pred)
        else:
            shown = self._made_with(pred)
        return submission.sample_of(about, shown.columns[0], wanted, shown.iloc[0, 1:].to_dict())

    def _given_sample(self, path: Path, pred: pd.DataFrame) -> pd.DataFrame:
        """The host's sample; without rows where it can't be used, which is said."""
        try:
            given = submission.read_sample(self.competition, self.table, pred)
        except UserError as error:
            self.say(f"{error}: made up for")
            return pd.DataFrame({"id": []})
        columns = list(self._made_with(pred).columns)
        if list(given.columns) != columns or not len(given):
            what = f"its columns are {', '.join(given)}, not {', '.join(columns)}" if len(given) else "it has no rows"
            self.say(f"{path}: {what}: made up for")
            return given.head(0)
        return given

    def _made_with(self, pred: pd.DataFrame) -> pd.DataFrame:
        """A row of the sample that the blend was made with."""
        if self.saved.sample is not None:
            return pd.DataFrame(**self.saved.sample).head(1)
        without = self.competition.model_copy(update={"sample_submission": None})
        return submission.read_sample(without, self.table, pred).head(1)

    def say(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)
            note(line)


def begin(competition: Competition, name: str, out: Path, write: bool = True) -> Submission:
    """Look at the test rows that lie there now, and write the training prior for each, unless told not to.

    UserError where the submission is not there, or where there are no test rows at all.
    """
    saved, known = Saved.load(competition, name), index.load_index(competition)
    rows, notes = test_rows.list_test_rows(competition)
    first = Submission(competition, saved, out, test_rows.with_known(known, rows), rows)
    if not write:
        return first
    for line in notes:
        first.say(line)
    written = first.write({})
    note(f"{out}: {written:,} rows, the training prior for each: valid, to be replaced")
    return first


def process_start() -> float:
    """When this process began, in seconds since 1970."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
