"""Metadata columns -> features for a model, as one fold's training rows define them; test rows change nothing.

Numbers are for networks and linear models, Codes for trees; Encoder adds target encoding and principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError

CATEGORIES = 64  # one-hot columns of a text column, its most frequent values: more would be of a few rows each
SMOOTHING = 20.0  # rows of the mean of all that a value's mean target is mixed with
SEPARATOR = "\x1f"  # between a column's name and the number of what was made of it: in nobody's column names
FARTHEST = 10.0  # standard deviations beyond which a number is cut off: an outlier at test must not blow up a network


def is_number(values: pd.Series) -> bool:
    """Whether a column counts as numbers: numeric, bool and datetime do; text and categories do not."""
    return pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)


def numbers(values: pd.Series) -> np.ndarray:
    """float64 (N,): bool as 0 and 1, dates as days since 1970-01-01, missing and infinite values as NaN."""
    if pd.api.types.is_datetime64_any_dtype(values):
        zone = getattr(values.dt, "tz", None)
        values = (values - pd.Timestamp("1970-01-01", tz=zone)) / pd.Timedelta(days=1)
    elif not pd.api.types.is_numeric_dtype(values):
        values = pd.to_numeric(values, errors="coerce")
    parsed = values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    parsed[~np.isfinite(parsed)] = np.nan
    return parsed


def texts(values: pd.Series) -> np.ndarray:
    """object (N,): str, or None where missing."""
    there = values.notna().to_numpy()
    parsed = np.full(len(values), None, dtype=object)
    parsed[there] = values[there].astype(str)
    return parsed


def column_of(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column; UserError where it is not there."""
    if name not in rows:
        raise UserError(f"metadata column '{name}' is not there; there are {', '.join(map(str, rows.columns[:20]))}")
    return rows[name]


@dataclass(frozen=True)
class Numeric:
    """How a column of numbers is encoded: (value, or the median where missing) - mean, over scale."""

    name: str
    median: float
    mean: float
    scale: float
    missing: bool  # whether training rows lacked it, so that 'is missing' is a feature of its own

    @classmethod
    def fit(cls, rows: pd.DataFrame, name: str) -> Numeric:
        """Learn from training rows; a constant or empty column becomes zeros."""
        parsed = numbers(column_of(rows, name))
        gaps = np.isnan(parsed)
        median = 0.0 if gaps.all() else float(np.median(parsed[~gaps]))
        parsed[gaps] = median
        mean, scale = (float(parsed.mean()), float(parsed.std())) if len(parsed) else (0.0, 0.0)
        # below that share of its mean, a column's spread is rounding: constant
        return cls(name, median, mean, scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0, bool(gaps.any()))

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [self.name, f"{self.name} missing"] if self.missing else [self.name]

    def transform(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The features, (N,) each."""
        parsed = numbers(column_of(rows, self.name))
        gaps = np.isnan(parsed)
        scaled = np.clip((np.where(gaps, self.median, parsed) - self.mean) / self.scale, -FARTHEST, FARTHEST)
        return [scaled, gaps.astype(np.float64)] if self.missing else [scaled]


@dataclass(frozen=True)
class Category:
    """How a column of text is encoded: one-hot over the known values; all zeros for any other."""

    name: str
    known: list[str]
    missing: bool

    @classmethod
    def fit(cls, rows: pd.DataFrame, name: str) -> Category:
        """Learn from training rows; of many values the most frequent CATEGORIES."""
        parsed = pd.Series(texts(column_of(rows, name)), dtype=object)
        counts = parsed.value_counts()
        order = sorted(counts.index, key=lambda value: (-counts[value], value))
        return cls(name, sorted(order[:CATEGORIES]), bool(parsed.isna().any()))

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [f"{self.name}={value}" for value in self.known] + ([f"{self.name} missing"] if self.missing else [])

    def transform(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The features, (N,) each, 0 or 1."""
        parsed = texts(column_of(rows, self.name))
        encoded = [(parsed == value).astype(np.float64) for value in self.known]
        gaps = np.array([value is None for value in parsed], dtype=np.float64)
        return [*encoded, gaps] if self.missing else encoded


@dataclass(frozen=True)
class Numbers:
    """Metadata columns -> float32 features for networks and linear models.

    Numbers: missing values become the training median, with an indicator where training rows lacked some; then
    standardised, and cut off at 10 standard deviations. Text: one-hot, a missing value as a value of its own where
    training rows lacked some; values that the training rows did not hold are all zeros.
    """

    columns: list[Numeric | Category]

    @classmethod
    def fit(cls, rows: pd.DataFrame, columns: Sequence[str]) -> Numbers:
        """Learn from training rows (DataFrame with these columns); UserError where a column is not there."""
        return cls([(Numeric if is_number(column_of(rows, name)) else Category).fit(rows, name) for name in columns])

    def transform(self, rows: pd.DataFrame) -> np.ndarray:
        """float32 (N, F), finite."""
        encoded = [feature for column in self.columns for feature in column.transform(rows)]
        return np.column_stack(encoded).astype(np.float32) if encoded else np.zeros((len(rows), 0), np.float32)

    @property
    def names(self) -> list[str]:
        """The F feature names: 'age', 'age missing', 'sex=female', ..."""
        return [name for column in self.columns for name in column.names]

    def state(self) -> dict[str, Any]:
        """Plain data for JSON; `from_state` gives an equal encoder."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_state(cls, data: dict[str, Any]) -> Numbers:
        """The encoder that `state` described; UserError where the data is something else."""
        try:
            return cls([(Category if "known" in each else Numeric)(**each) for each in data["columns"]])
        except (KeyError, TypeError) as error:
            raise UserError(f"not the state of a metadata encoder ({error}); train the fold anew") from None


@dataclass(frozen=True)
class Codes:
    """Columns -> float64 features for trees: numbers as they are, text as the number of its category.

    Missing values, and categories that the training rows did not hold, are NaN, which trees take as missing.
    """

    columns: list[str]
    categories: dict[str, dict[str, int]]

    @classmethod
    def fit(cls, rows: pd.DataFrame, columns: Sequence[str]) -> Codes:
        """Learn the categories from training rows."""
        known = {}
        for name in columns:
            if not is_number(column_of(rows, name)):
                values = sorted({value for value in texts(rows[name]) if value is not None})
                known[name] = {value: code for code, value in enumerate(values)}
        return cls(list(columns), known)

    def transform(self, rows: pd.DataFrame) -> np.ndarray:
        """float64 (N, columns)."""
        encoded = np.full((len(rows), len(self.columns)), np.nan)
        for k, name in enumerate(self.columns):
            values = column_of(rows, name)
            known = self.categories.get(name)
            encoded[:, k] = numbers(values) if known is None else [known.get(text, np.nan) for text in texts(values)]
        return encoded

    @property
    def names(self) -> list[str]:
        """Feature names: the columns."""
        return self.columns

    @property
    def categorical(self) -> list[int]:
        """Positions of the category columns."""
        return [k for k, name in enumerate(self.columns) if name in self.categories]


@dataclass(frozen=True)
class MeanTarget:
    """Target encoding: each value of a column -> the mean target of the training rows that hold it.

    The mean is drawn to that of all rows by SMOOTHING rows (Micci-Barreca 2001), and is that for values never seen.
    A missing value is a value. For training rows themselves use `out_of_fold`: their own target must not be in it.
    """

    name: str
    prior: np.ndarray  # (C,)
    means: dict[str | None, np.ndarray]

    @classmethod
    def fit(cls, rows: pd.DataFrame, name: str, y: np.ndarray) -> MeanTarget:
        """Learn from training rows; y: (N, C)."""
        codes, values = pd.factorize(texts(column_of(rows, name)), use_na_sentinel=False)
        prior = y.mean(axis=0)
        count = np.bincount(codes, minlength=len(values))
        total = np.column_stack([np.bincount(codes, weights=each, minlength=len(values)) for each in y.T])
        means = (total + SMOOTHING * prior) / (count + SMOOTHING)[:, None]
        keys = [None if value is None or value != value else value for value in values]
        return cls(name, prior, dict(zip(keys, means, strict=True)))

    def transform(self, rows: pd.DataFrame) -> np.ndarray:
        """float64 (N, C)."""
        parsed = [self.means.get(value, self.prior) for value in texts(column_of(rows, self.name))]
        return np.array(parsed, dtype=np.float64).reshape(len(rows), len(self.prior))

    @staticmethod
    def out_of_fold(rows: pd.DataFrame, name: str, y: np.ndarray, inner: np.ndarray) -> np.ndarray:
        """float64 (N, C): training rows encoded by the rows of the other inner folds."""
        means = np.empty(y.shape, dtype=np.float64)
        for held in np.unique(inner):
            out = inner == held
            learned = MeanTarget.fit(rows[~out], name, y[~out]) if (~out).any() else None
            means[out] = learned.transform(rows[out]) if learned else y.mean(axis=0)
        return means


@dataclass(frozen=True)
class Components:
    """Principal components of embeddings, as training rows define them; signs fixed, so that a refit is the same."""

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, components)

    @classmethod
    def fit(cls, values: np.ndarray, components: int) -> Components:
        """Learn from training rows, float (N, D); rows that are not finite do not count."""
        from sklearn.decomposition import PCA

        known = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        most = min(components, max(len(known) - 1, 0), values.shape[1])
        if most < 1:
            return cls(np.zeros(values.shape[1]), np.zeros((values.shape[1], 0)))
        parsed = PCA(most, random_state=0).fit(known)
        return cls(parsed.mean_, parsed.components_.T)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """float64 (N, components); NaN for rows that are not finite."""
        with np.errstate(invalid="ignore"):
            encoded = (values - self.mean) @ self.axes
        encoded[~np.isfinite(values).all(axis=1)] = np.nan
        return encoded


@dataclass(frozen=True)
class Rows:
    """Rows with their columns and, by name, their embeddings (N, D)."""

    frame: pd.DataFrame
    embeddings: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, which: np.ndarray) -> Rows:
        """Some of the rows: a boolean mask, or row numbers."""
        taken = np.flatnonzero(which) if which.dtype == bool else which
        return Rows(self.frame.iloc[taken], {name: values[taken] for name, values in self.embeddings.items()})


@dataclass(frozen=True)
class Encoder:
    """Everything a model on columns sees, as one fold's training rows define it.

    Columns first become wide: those in `means` are replaced by the mean target of their value, embeddings by their
    principal components. Then Codes (for trees) or Numbers (for linear models) make them features.
    """

    columns: list[str]
    means: list[MeanTarget]
    components: dict[str, Components]
    last: Codes | Numbers

    @classmethod
    def fit(
        cls, rows: Rows, y: np.ndarray, inner: np.ndarray, target_encode: Sequence[str], components: int, linear: bool
    ) -> tuple[Encoder, np.ndarray]:
        """The encoder, and the training rows' own features (N, F): their mean targets come from other inner folds.

        y: (N, C) what mean targets are taken of; inner: (N,) a number for every training row, groups whole.
        """
        columns = [name for name in rows.frame if name not in target_encode]
        means = [MeanTarget.fit(rows.frame, name, y) for name in target_encode]
        parts = {name: Components.fit(values, components) for name, values in rows.embeddings.items()}
        bare = cls(columns, means, parts, Codes([], {}))
        own = [MeanTarget.out_of_fold(rows.frame, name, y, inner) for name in target_encode]
        wide = bare._wide(rows, own)
        last = (Numbers if linear else Codes).fit(wide, list(wide))
        return cls(columns, means, parts, last), last.transform(wide).astype(np.float64)

    def transform(self, rows: Rows) -> np.ndarray:
        """float64 (N, F) of rows that were not trained on."""
        wide = self._wide(rows, [mean.transform(rows.frame) for mean in self.means])
        return self.last.transform(wide).astype(np.float64)

    def _wide(self, rows: Rows, means: Sequence[np.ndarray]) -> pd.DataFrame:
        columns = {name: rows.frame[name] for name in self.columns}
        for mean, values in zip(self.means, means, strict=True):
            columns |= {f"{mean.name}{SEPARATOR}{k}": values[:, k] for k in range(values.shape[1])}
        for name, part in self.components.items():
            reduced = part.transform(rows.embeddings[name])
            columns |= {f"{name}{SEPARATOR}{k}": reduced[:, k] for k in range(reduced.shape[1])}
        return pd.DataFrame(columns, index=rows.frame.index)

    @property
    def sources(self) -> list[str]:
        """For each of the F features, the column or embedding that it comes from."""
        if isinstance(self.last, Codes):
            wide = self.last.columns
        else:
            wide = [column.name for column in self.last.columns for _ in column.names]
        return [name.split(SEPARATOR)[0] for name in wide]

    @property
    def categorical(self) -> list[int]:
        """Positions of the features that are category numbers."""
        return self.last.categorical if isinstance(self.last, Codes) else []
