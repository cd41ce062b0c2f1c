"""Everything that is worth knowing of a competition before training, computed once, on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from foldwise.audit import drift, traits
from foldwise.audit.duplicates import Audit
from foldwise.data import index
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.report import figures

_THIRDS = {"lowest third": 0, "middle third": 1, "highest third": 2}
SAMPLE = 3000  # images whose light and colour are measured where no audit has


@dataclass(frozen=True)
class Survey:
    """All that the report and the notebook draw from; each part is made when first asked for."""

    competition: Competition
    table: pd.DataFrame
    fold_table: pd.DataFrame
    images: Cache
    sizes: Sequence[int]
    audit: Audit | None

    @cached_property
    def train(self) -> pd.DataFrame:
        """Readable training rows."""
        return self.table[(self.table["split"] == "train") & self.table["error"].isna()]

    @cached_property
    def truth(self) -> pd.DataFrame:
        """Per readable training row what is asked, a column a class or label (0/1), or the number itself."""
        if self.competition.task == "multilabel":
            names = self.competition.targets
            return index.known(self.train[self.competition.truth]).set_axis(names, axis=1)
        if self.competition.task == "multiclass":
            largest = self.train["target"].value_counts().index[: len(figures.PALETTE)]
            return pd.DataFrame({name: (self.train["target"] == name).astype(float) for name in largest})
        return self.train[["target"]].astype(float)

    @cached_property
    def counts(self) -> pd.Series:
        """Readable training images by class or label, largest first; of a regression target, by third in order."""
        if self.competition.task == "multilabel":
            return self.truth.sum().astype(int).sort_values(ascending=False)
        counts = self._kind.value_counts()
        if self.competition.task == "regression":
            counts = counts.sort_index(key=lambda names: names.map(_THIRDS))
        return counts

    def members(self, name: str) -> pd.Series:
        """bool over readable training rows: those of one of the `counts`."""
        return self.truth[name] > 0.5 if self.competition.task == "multilabel" else self._kind == name

    @cached_property
    def _kind(self) -> pd.Series:
        target = self.train["target"]
        if self.competition.task == "multiclass":
            return target.astype(str).map(self.competition.shown)
        if self.competition.task == "binary":
            positive = self.competition.shown("1")
            return target.map({0.0: "target 0", 1.0: "target 1" if positive == "1" else f"target 1 ({positive})"})
        third = (target.rank(method="first") - 1) * 3 // len(target)
        return third.map(dict(enumerate(_THIRDS)))

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Light and colour by index row (traits.STATISTICS): of all images from the audit, else of a sample."""
        if self.audit is not None:
            return self.audit.statistics
        rows = np.flatnonzero(self.images.ids["ok"].to_numpy(bool))
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
        seen = traits.look(self.images, rows, hashed=False)
        return seen.statistics.set_axis(self.table.index[rows]).reindex(self.table.index)

    @cached_property
    def fold_of(self) -> pd.Series:
        """Fold by index label, NaN for rows without."""
        by_id = self.fold_table.set_index("id")["fold"]
        return self.table["id"].map(by_id).where(self.table["split"] == "train").astype("float64")

    @cached_property
    def compared(self) -> pd.DataFrame:
        """drift.compare of metadata, files and pixels, over readable rows."""
        frame, sources = drift.columns(self.competition, self.table, self.statistics)
        return drift.compare(self.competition, self.table, self.fold_of, frame[self._both], sources)

    @property
    def _both(self) -> pd.Series:
        """Readable rows of train and test; extra images differ from both, as anyone knows who lists them."""
        return self.table["error"].isna() & (self.table["split"] != "extra")

    @cached_property
    def headers(self) -> pd.DataFrame:
        """drift.compare of the header fields that are not metadata already; no rows without DICOM files."""
        frame = drift.headers(self.competition, self.table)
        frame = frame.drop(columns=index.metadata_columns(self.competition), errors="ignore")
        return drift.compare(self.competition, self.table, self.fold_of, frame, {})

    @cached_property
    def adversaries(self) -> list[drift.Adversary]:
        """Adversarial validation on metadata, and on files and pixels."""
        frame, sources = drift.columns(self.competition, self.table, self.statistics)
        frame = frame[self._both]
        asked = {"metadata": ("table", "header"), "files and pixels": ("file", "pixels")}
        told = [
            drift.adversarial(name, self.table, frame[[c for c in frame if sources[c] in kinds]])
            for name, kinds in asked.items()
        ]
        return [one for one in told if one is not None]

    def row(self, split: str, name: str) -> int:
        """The row number in index and cache of an image, -1 where it could not be read."""
        return int(self.images.rows(split, [name])[0])
