"""Where scores become labels, tuned on the metric: one cut, one a label, cut points of grades, the classes' shares.

A cut follows any method ("mean+cut", "weights+cuts") and is fitted with it inside the folds. It leaves predictions on
the side of 0.5 (or with the largest class) that it decides for, so that whoever decides later needs not know of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldwise.blend.search import Problem, sample_rows
from foldwise.blend.spaces import PLACES
from foldwise.blend.stacking import Combiner
from foldwise.metrics import known_rows

Array = NDArray[Any]
CELLS = 400_000  # of predictions that a cut of all labels is tuned on: its optimum is flat
PULL = 20.0  # positives of a label at which its own cut counts as much as that of all labels
POOLED = {"f1_micro", "f1_samples"}  # metrics that count labels together: what one is worth alone says little
QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Cut:
    """`base`, bent at its cuts (C,) to lie on either side of 0.5; hard: 0 or 1."""

    base: Combiner
    cuts: Array
    hard: bool

    @property
    def weights(self) -> Array:
        return self.base.weights

    def __call__(self, z: Array) -> Array:
        out = self.base(z)
        return bend(out.reshape(out.shape[0], -1), self.cuts, self.hard).reshape(out.shape)


@dataclass(frozen=True)
class Graded:
    """`base`, rounded to grades from `low` on by cut points; classes: of the mean grade, given back as (N, classes)."""

    base: Combiner
    cuts: Array
    low: int
    classes: int = 0

    @property
    def weights(self) -> Array:
        return self.base.weights

    def __call__(self, z: Array) -> Array:
        out = self.base(z)
        if not self.classes:
            return np.digitize(out, self.cuts).astype(np.float64) + self.low
        grade = np.eye(self.classes)[np.digitize(_mean_grade(out), self.cuts)]
        return 0.499 * out / np.maximum(out.sum(axis=1, keepdims=True), 1e-12) + 0.501 * grade  # the grade is largest


@dataclass(frozen=True)
class Tilted:
    """`base`'s classes (N, C) times `cuts` (C,), scaled to sum to one."""

    base: Combiner
    cuts: Array

    @property
    def weights(self) -> Array:
        return self.base.weights

    def __call__(self, z: Array) -> Array:
        return _scaled(self.base(z) * self.cuts)


def kinds(problem: Problem) -> list[str]:
    """What may follow a method: '+cut', one number; '+cuts', one a label or grade. None for metrics of scores."""
    metric, task = problem.metric, problem.task
    if task == PLACES:
        return []
    if not metric.decides:
        return ["+cut"] if metric.name == "pf1" else []
    several = task in {"multilabel", "regression"} or (task == "multiclass" and metric.ordered)
    return ["+cut"] * (task != "regression") + ["+cuts"] * several


def cut(base: Combiner, z: Array, problem: Problem, each: bool) -> Combiner:
    """`base` and then a cut tuned on the metric, or with `each` one a label or grade, as far as rows speak for it."""
    pred, target = base(z), problem.target
    if problem.task == "regression":
        return Graded(base, _grade_cuts(pred, problem), int(target.min()))
    if problem.task == "multiclass":
        if each:
            return Graded(base, _grade_cuts(_mean_grade(pred), problem, pred.shape[1]), 0, pred.shape[1])
        return Tilted(base, _tilt(pred, problem))
    columns, truths = pred.reshape(len(pred), -1), target.reshape(len(pred), -1)
    hard = problem.metric.name == "pf1"
    if target.ndim == 1:
        return Cut(base, np.array([_own_cut(pred, target > 0.5, problem, 0.0)]), hard)
    shared, value = _shared_cut(columns, truths, problem)
    cuts = np.full(columns.shape[1], shared)
    for c in range(cuts.size if each else 0):
        rows = known_rows(truths[:, c])
        truth = truths[rows, c] > 0.5
        if truth.sum() >= 2:
            trust = truth.sum() / (truth.sum() + PULL)
            cuts[c] += trust * (_own_cut(columns[rows, c], truth, problem, value) - shared)
    return Cut(base, cuts, hard)


def bend(pred: Array, cuts: Array, hard: bool = False) -> Array:
    """Piecewise linear, [0, cut] to [0, 1/2] and [cut, 1] to [1/2, 1]; or 0 and 1."""
    if hard:
        return (pred >= cuts).astype(np.float64)
    below = 0.5 * pred / np.maximum(cuts, 1e-12)
    above = 0.5 + 0.5 * (pred - cuts) / np.maximum(1 - cuts, 1e-12)
    return np.clip(np.where(pred < cuts, np.minimum(below, 0.5 - 1e-9), above), 0, 1)


def _tried(pred: Array, truth: Array) -> Array:
    """Quantiles of all rows, and of the positives, where the best cut of a rare class lies."""
    return np.unique(np.concatenate([np.quantile(part, QUANTILES) for part in (pred, pred[truth]) if part.size]))


def _best(tried: Array, values: Array) -> int:
    """Which of `tried` has the largest value: the middle of a plateau is the safest."""
    top = np.flatnonzero(values >= np.nanmax(values) - 1e-12)
    return int(top[top.size // 2])


def _own_cut(pred: Array, truth: Array, problem: Problem, value: float) -> float:
    """The cut of one column, (N,) and bool (N,). value: what a pooled metric reaches, by which a label's hits and
    false alarms weigh there (Dinkelbach 1967: F1 rises while hits exceed F / 2 of what is said)."""
    tried = _tried(pred, truth)
    hits, alarms = (part.size - np.searchsorted(np.sort(part), tried) for part in (pred[truth], pred[~truth]))
    if problem.metric.name in POOLED and problem.target.ndim == 2:
        return float(tried[_best(tried, hits - value / 2 * (hits + alarms))])
    step = 1 if problem.target.size <= 50 * len(problem.target) else 5  # many labels: each cut a little coarser
    tried, hits, alarms = tried[::step], hits[::step], alarms[::step]
    four = np.stack([hits, truth.sum() - hits, alarms, (~truth).sum() - alarms], axis=1).astype(np.float64)
    shape = (4,) if problem.target.ndim == 1 else (4, 1)
    true, said = np.array([1.0, 1, 0, 0]).reshape(shape), np.array([1.0, 0, 1, 0]).reshape(shape)
    values = np.array([-_loss(problem, true, said, counts) for counts in four])
    return float(tried[_best(tried, values)])


def _loss(problem: Problem, target: Array, pred: Array, weight: Array | None = None) -> float:
    value = problem.metric.function(target, pred, weight)
    return -value if problem.metric.greater_is_better else value


def _shared_cut(columns: Array, truths: Array, problem: Problem) -> tuple[float, float]:
    """The cut of all labels, and what the metric is there."""
    rows = sample_rows(problem, max(500, CELLS // columns.shape[1]), problem.seed)
    pred, target = columns[rows], truths[rows]
    known = ~np.isnan(target)
    tried = _tried(pred[known], target[known] > 0.5)
    values = np.full(tried.size, -np.inf)
    for at in (np.arange(0, tried.size, 8), np.arange(-8, 9, 2)):  # every eighth, then around the best of them
        for k in np.unique(np.clip(at if at[0] == 0 else at + int(values.argmax()), 0, tried.size - 1)):
            loss = _loss(problem, target, (pred >= tried[k]).astype(np.float64))
            values[k] = -np.inf if np.isnan(loss) else -loss
    best = _best(tried, values)
    return float(tried[best]), abs(float(values[best]))


def _mean_grade(pred: Array) -> Array:
    return _scaled(pred) @ np.arange(pred.shape[1])


def _scaled(pred: Array) -> Array:
    return pred / np.maximum(pred.sum(axis=1, keepdims=True), 1e-12)


def _tilt(pred: Array, problem: Problem) -> Array:
    """(C,) powers of the classes' shares: rare ones gain where the metric counts classes alike; 1 for all: nothing."""
    shares = (np.bincount(problem.target.astype(np.int64), minlength=pred.shape[1]) + 0.5) / (len(pred) + 1)
    rows = sample_rows(problem, max(2_000, CELLS // pred.shape[1]), problem.seed)
    tried = sorted(np.arange(-4, 13) / 8, key=abs)  # of powers as good, the smallest
    losses = [_loss(problem, problem.target[rows], pred[rows] * shares**-power) for power in tried]
    return shares ** -tried[int(np.nanargmin(losses))]


def _grade_cuts(pred: Array, problem: Problem, classes: int = 0) -> Array:
    low, high = (0, classes - 1) if classes else (int(problem.target.min()), int(problem.target.max()))
    rows = sample_rows(problem, 20_000, problem.seed)
    pred, problem = pred[rows], problem.take(rows)
    cuts = np.arange(low, high) + 0.5
    grid = np.unique(np.quantile(pred, np.linspace(0, 1, 81)))
    best = problem.loss(np.digitize(pred, cuts) + float(low))
    for _ in range(3):  # coordinate descent: cuts move each other little
        for i in range(cuts.size):
            for trial_cut in grid:
                trial = cuts.copy()
                trial[i] = trial_cut
                if (np.diff(trial) < 0).any():
                    continue
                loss = problem.loss(np.digitize(pred, trial) + float(low))
                if loss < best - 1e-9:
                    best, cuts = loss, trial
    return cuts
