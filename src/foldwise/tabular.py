"""Metadata columns -> features for a model, as one fold's training rows define them; test rows change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError

CATEGORIES = 64  # one-hot columns that a column of text may make, the most frequent of its values
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
    found = values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    found[~np.isfinite(found)] = np.nan
    return found


def texts(values: pd.Series) -> np.ndarray:
    """object (N,): str, or None where missing."""
    there = values.notna().to_numpy()
    found = np.full(len(values), None, dtype=object)
    found[there] = values[there].astype(str)
    return found


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
        found = numbers(column_of(rows, name))
        gaps = np.isnan(found)
        median = 0.0 if gaps.all() else float(np.median(found[~gaps]))
        found[gaps] = median
        mean, scale = (float(found.mean()), float(found.std())) if len(found) else (0.0, 0.0)
        return cls(name, median, mean, scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0, bool(gaps.any()))

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [self.name, f"{self.name} missing"] if self.missing else [self.name]

    def transform(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The features, (N,) each."""
        found = numbers(column_of(rows, self.name))
        gaps = np.isnan(found)
        scaled = np.clip((np.where(gaps, self.median, found) - self.mean) / self.scale, -FARTHEST, FARTHEST)
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
        found = pd.Series(texts(column_of(rows, name)), dtype=object)
        counts = found.value_counts()
        order = sorted(counts.index, key=lambda value: (-counts[value], value))
        return cls(name, sorted(order[:CATEGORIES]), bool(found.isna().any()))

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [f"{self.name}={value}" for value in self.known] + ([f"{self.name} missing"] if self.missing else [])

    def transform(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The features, (N,) each, 0 or 1."""
        found = texts(column_of(rows, self.name))
        made = [(found == value).astype(np.float64) for value in self.known]
        gaps = np.array([value is None for value in found], dtype=np.float64)
        return [*made, gaps] if self.missing else made


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
        made = [feature for column in self.columns for feature in column.transform(rows)]
        return np.column_stack(made).astype(np.float32) if made else np.zeros((len(rows), 0), np.float32)

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
