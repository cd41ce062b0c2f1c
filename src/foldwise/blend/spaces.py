"""Where predictions are averaged: as probabilities, logarithms, logits, ranks or calibrated probabilities.

Arrays are (models, rows) or (models, rows, classes). A space is label-free, and so may see all rows at once,
except `calibrated`, which is fitted (`Calibration`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foldwise import stats
from foldwise.metrics import known_rows

Array = NDArray[Any]
SPACES = ("prob", "logit", "log", "rank", "fold_rank", "calibrated")
RANKED = {"rank", "fold_rank"}
PLACES = "places"  # columns are each row's own likeliest classes of many
EXCLUSIVE = {"multiclass", "soft", PLACES}  # tasks whose rows sum to one
EPS = 1e-6  # a probability of 0 or 1 in a file is a rounded one; farther out, one run would outvote all others
KNOTS = 2000  # of the ranks that a blend remembers, a run: interpolated, a rank is right to 1/4000
SLOPES = (float(np.exp(-2)), float(np.exp(2)))  # of logits: never 0, so that the order of a run's rows stays


@dataclass(frozen=True)
class Scaling:
    """Runs whose scores leave 0..1 are squeezed into it by their own OOF range; the others stay as they are."""

    low: Array
    width: Array

    @classmethod
    def of(cls, preds: Array, task: str) -> Scaling:
        """low and width, (M,) or (M, C)."""
        low, high = preds.min(axis=1), preds.max(axis=1)
        inside = (low >= 0) & (high <= 1) if task != "regression" else np.ones_like(low, bool)
        return cls(np.where(inside, 0, low), np.where(inside | (high == low), 1, high - low))

    def __call__(self, preds: Array) -> Array:
        if not self.low.any() and (self.width == 1).all():
            return preds
        return np.clip((preds - self.low[:, None]) / self.width[:, None], 0, 1)


def ranks(values: Array, folds: Array | None = None) -> Array:
    """Average ranks along axis 1, scaled to (0, 1): (rank - 1/2) / rows; within each fold where folds are given."""
    out = np.empty(values.shape)
    parts = [slice(None)] if folds is None else [np.flatnonzero(folds == k) for k in np.unique(folds)]
    for part in parts:
        block = values[:, part]
        flat = block.reshape(*block.shape[:2], -1)
        ranked = np.empty(flat.shape)
        for m in range(flat.shape[0]):
            for c in range(flat.shape[2]):
                ranked[m, :, c] = _rank(flat[m, :, c])
        out[:, part] = ranked.reshape(block.shape)
    return out


def _rank(column: Array) -> Array:
    order = np.argsort(column)
    ordered = column[order]
    starts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    sizes = np.diff(np.append(starts, column.size))
    out = np.empty(column.size)
    out[order] = np.repeat((starts + sizes / 2) / column.size, sizes)
    return out


def to_space(space: str, preds: Array, task: str, folds: Array | None = None) -> Array:
    """Predictions in `space`; `prob` and `calibrated` come back as they are."""
    if space == "rank" or (space == "fold_rank" and folds is None):
        return ranks(preds)
    if space == "fold_rank":
        return ranks(preds, folds)
    if space == "log" or (space == "logit" and task in EXCLUSIVE):
        return np.log(np.clip(preds, EPS, None))
    if space == "logit":
        return logit(np.clip(preds, EPS, 1 - EPS))
    return preds


def from_space(space: str, mix: Array, task: str) -> Array:
    """A blend, (N,) or (N, C), back to what the metric takes. Logarithms of classes are scaled to sum to one."""
    if task in EXCLUSIVE and space in {"log", "logit"}:
        power = np.exp(mix - mix.max(axis=1, keepdims=True))
        return power / power.sum(axis=1, keepdims=True)
    if space == "logit":
        return expit(mix)
    return np.exp(mix) if space == "log" else mix


@dataclass(frozen=True)
class Sigmoid:
    """Temperature and bias of a probability's logit (Platt 1999)."""

    slope: float
    bias: float

    def __call__(self, values: Array) -> Array:
        return expit(self.slope * logit(np.clip(values, EPS, 1 - EPS)) + self.bias)


@dataclass(frozen=True)
class Steps:
    """Isotonic regression, interpolated between knots; 1 % of the score itself keeps the order."""

    x: Array
    y: Array

    def __call__(self, values: Array) -> Array:
        return 0.99 * np.interp(values, self.x, self.y) + 0.01 * values


@dataclass(frozen=True)
class Quantiles:
    """The rank, in (0, 1), that a value has among known ones; beyond them it still rises, towards 0 or 1."""

    x: Array  # distinct values, ascending
    y: Array  # their ranks

    @classmethod
    def of(cls, column: Array, knots: int) -> Quantiles:
        """Exact at every value where there are no more than `knots` of them."""
        x, counts = np.unique(column.astype(np.float64), return_counts=True)
        y = (np.cumsum(counts) - counts / 2) / column.size
        kept = np.unique(np.linspace(0, x.size - 1, min(knots, x.size)).round().astype(int))
        return cls(x[kept], y[kept])

    def __call__(self, values: Array) -> Array:
        low, high = self.x[0], self.x[-1]
        spread = (high - low) or 1.0
        below, above = np.clip(low - values, 0, None) / spread, np.clip(values - high, 0, None) / spread
        inside = np.interp(values, self.x, self.y)
        return inside / (1 + below) + (1 - self.y[-1]) * above / (1 + above)


@dataclass(frozen=True)
class Maps:
    """A monotone map for each run and column: maps[m][c]."""

    maps: list[list[Any]]

    @classmethod
    def ranks(cls, preds: Array) -> Maps:
        """Each value's rank among out-of-fold ones, preds (M, N) or (M, N, C): whatever rows stand beside it."""
        columns = preds.reshape(*preds.shape[:2], -1)
        knots = max(100, min(KNOTS, 400_000 // (columns.shape[0] * columns.shape[2])))
        return cls([[Quantiles.of(column, knots) for column in run.T] for run in columns])

    def __call__(self, preds: Array) -> Array:
        columns = preds.reshape(*preds.shape[:2], -1)
        out = np.empty(columns.shape)
        for m, maps in enumerate(self.maps):
            for c, mapped in enumerate(maps):
                out[m, :, c] = mapped(columns[m, :, c])
        return out.reshape(preds.shape)


class Calibration:
    """A monotone map per run and column: isotonic with 1,000 rows or more, else temperature and bias (Platt 1999).

    The rows it is fitted on are mapped within their own fold, each half by the other half's map: the models of
    the folds are on different scales, and no row meets its own label. New rows take the map of all rows.
    """

    def __init__(self, preds: Array, target: Array, folds: Array, seed: int) -> None:
        columns = preds.reshape(*preds.shape[:2], -1)
        self.truth = truth_columns(target, columns.shape[2])
        numbers = np.arange(target.shape[0])
        half = np.random.default_rng(seed).permutation(target.shape[0]) % 2
        self.fitted = np.empty(columns.shape)
        self.maps = Maps([])
        for m in range(columns.shape[0]):
            self.maps.maps.append([_monotone(columns[m, rows, c], y) for c, (rows, y) in enumerate(self.truth)])
            for c, (rows, y) in enumerate(self.truth):
                self.fitted[m, :, c] = _cross_fitted(columns[m, :, c], numbers[rows], y, folds, half)
        self.fitted = self.fitted.reshape(preds.shape)

    def __call__(self, preds: Array) -> Array:
        return self.maps(preds)


def truth_columns(target: Array, columns: int) -> list[tuple[slice | Array, Array]]:
    """For each prediction column the rows whose truth is known, and their 0/1 truth: of the target itself, of one
    class against the rest, or of a label's column."""
    if target.ndim == 2:
        known = [known_rows(target[:, c]) for c in range(columns)]
        return [(rows, target[rows, c] > 0.5) for c, rows in enumerate(known)]
    truths = [target > 0.5] if columns == 1 else [target == c for c in range(columns)]
    return [(slice(None), truth) for truth in truths]


def _cross_fitted(pred: Array, rows: Array, truth: Array, folds: Array, half: Array) -> Array:
    """All of `pred` (N,) mapped; rows: the numbers of those with a truth."""
    out = np.empty(pred.size)
    for k in np.unique(folds):
        for side in (0, 1):
            apply = (folds == k) & (half == side)
            # its own fold's other half; all folds', all rows, where that is too small to hold both classes
            fits = [(folds[rows] == k) & (half[rows] != side), half[rows] != side, np.ones(truth.size, bool)]
            fit = next((some for some in fits if truth[some].any() and not truth[some].all()), fits[-1])
            out[apply] = _monotone(pred[rows][fit], truth[fit])(pred[apply])
    return out


def _monotone(pred: Array, truth: Array) -> Callable[[Array], Array]:
    if truth.size >= 1000 and 50 <= truth.sum() <= truth.size - 50:  # below that isotonic steps follow the noise
        return _isotonic(pred, truth)
    return Sigmoid(*stats.platt(logit(np.clip(pred, EPS, 1 - EPS)), truth, SLOPES))


def _isotonic(pred: Array, truth: Array) -> Steps:
    """Isotonic regression of 200 equally filled bins."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(pred)
    starts = np.linspace(0, pred.size, 201).astype(np.int64)[:-1]
    sizes = np.diff(np.append(starts, pred.size))
    x = np.add.reduceat(pred[order], starts) / sizes
    y = isotonic_regression(np.add.reduceat(truth[order].astype(np.float64), starts) / sizes, sample_weight=sizes)
    return Steps(x, y)
