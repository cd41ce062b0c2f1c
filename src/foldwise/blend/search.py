"""Searches for blend weights on arrays: smooth losses by gradient, exact metrics by climbing and selection.

An `Objective` reduces a problem to a matrix z (models, cells) whose weighted sums a cheap loss can judge. Log
loss needs only each model's probability of the true class, AUC only scores laid out negatives first: so a
thousand classes cost no more than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from foldwise import UserError
from foldwise.blend.spaces import PLACES, from_space, truth_columns
from foldwise.metrics import Metric, auc_many, auc_of, known_rows

Array = NDArray[Any]
Smooth = Callable[[Array], tuple[float, Array]]
CELLS = 20_000_000  # a search over M weights looks at no more than this many numbers: more rows change nothing
PAIRS = 120_000  # of a positive and a negative, for the smooth loss alone: the exact AUC sees every row


@dataclass(frozen=True)
class Problem:
    """What a fit may know. folds: (N,) for inner cross-validation; families: (model, size) of each run;
    given: weights set by hand."""

    target: Array
    metric: Metric
    task: str
    folds: Array
    seed: int = 0
    families: tuple[tuple[str, str], ...] = ()
    given: tuple[float, ...] = ()

    def take(self, rows: Array | slice) -> Problem:
        return replace(self, target=self.target[rows], folds=self.folds[rows])

    def loss(self, pred: Array) -> float:
        """The metric, turned so that smaller is better; infinite where it does not exist."""
        value = self.metric.function(self.target, pred, None)
        return float(np.inf) if np.isnan(value) else -value if self.metric.greater_is_better else value


@dataclass(frozen=True)
class Objective:
    """z: (M, K); loss(mix (K,)) is exact; smooth(weights) gives a surrogate and its gradient.

    free_scale: the surrogate wants weights of any sum (AUC: their scale is its temperature).
    """

    z: Array
    loss: Callable[[Array], float]
    smooth: Smooth
    free_scale: bool = False
    many: Callable[[Array], Array] | None = None

    def losses(self, mixes: Array) -> Array:
        """`loss` of each row, at once where the metric can."""
        return self.many(mixes) if self.many else np.array([self.loss(mix) for mix in mixes])


def sample_rows(problem: Problem, rows: int, seed: int) -> Array:
    """At most `rows` row numbers, stratified for a binary target. AUC does not see the classes' ratio, and its
    noise comes from the rarer one: there that class gets up to half of the rows."""
    n = problem.target.shape[0]
    if n <= rows:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    if problem.task != "binary":
        return np.sort(rng.choice(n, rows, replace=False))
    ones, zeros = np.flatnonzero(problem.target > 0.5), np.flatnonzero(problem.target <= 0.5)
    few, many = (ones, zeros) if ones.size < zeros.size else (zeros, ones)
    share = rows // 2 if problem.metric.needs == "01" else max(1, round(rows * few.size / n))
    few = rng.permutation(few)[:share]
    return np.sort(np.concatenate([few, rng.choice(many, rows - few.size, replace=False)]))


def objective(z: Array, problem: Problem, space: str) -> Objective:
    """The cheapest exact form of the metric on weighted sums of z, (M, N) or (M, N, C)."""
    cap = max(2_000, CELLS // (z.shape[0] * (z.shape[2] if z.ndim == 3 else 1)))
    if z.shape[1] > cap and not _reducible(problem, space):
        rows = sample_rows(problem, cap, problem.seed)
        z, problem = z[:, rows], problem.take(rows)
    if problem.metric.presorted:
        return _ranking(z, problem)
    if problem.task == "regression":
        return _values(z, problem)
    if problem.task == "soft":
        return _shares(z, problem, space)
    smooth_z = _true_class(z, problem, space)
    smooth = _margin_loss(smooth_z) if space == "logit" else _mixture_loss(smooth_z)
    if problem.metric.name == "log_loss" and _reducible(problem, space):
        return Objective(smooth_z, _cells_loss(space), smooth)
    flat = z.reshape(z.shape[0], -1)
    shape = z.shape[1:]
    return Objective(flat, lambda mix: problem.loss(from_space(space, mix.reshape(shape), problem.task)), smooth)


def _shares(z: Array, problem: Problem, space: str) -> Objective:
    """Cross-entropy, whose slope is that of the KL divergence, on the cells that have a share."""
    held = problem.target.reshape(-1) > 0
    cells = z.reshape(z.shape[0], -1)[:, held].astype(np.float64)
    smooth = _mixture_loss(np.exp(cells) if space in {"log", "logit"} else cells, problem.target.reshape(-1)[held])
    flat, shape = z.reshape(z.shape[0], -1), z.shape[1:]
    return Objective(flat, lambda mix: problem.loss(from_space(space, mix.reshape(shape), problem.task)), smooth)


def _reducible(problem: Problem, space: str) -> bool:
    linear = space in {"prob", "calibrated", "rank", "fold_rank"}
    return problem.metric.name == "log_loss" and (linear or (space == "logit" and problem.task != "multiclass"))


def _true_class(z: Array, problem: Problem, space: str) -> Array:
    """(M, K): the probability given to what came true, or in logit space the signed margin."""
    if problem.task in {"multiclass", PLACES}:
        rows = np.arange(z.shape[1])
        chosen = z[:, rows, problem.target.astype(np.int64)].astype(np.float64)
        return np.exp(chosen) if space in {"log", "logit"} else chosen / np.maximum(z.sum(axis=2), 1e-12)
    known = known_rows(problem.target.reshape(-1))
    truth = problem.target.reshape(-1)[known] > 0.5
    flat = z.reshape(z.shape[0], -1)[:, known].astype(np.float64)
    if space == "logit":
        return np.where(truth, flat, -flat)
    flat = np.exp(flat) if space == "log" else flat
    return np.where(truth, flat, 1 - flat)


def _cells_loss(space: str) -> Callable[[Array], float]:
    if space == "logit":
        return lambda mix: float(np.logaddexp(0, -mix).mean())
    return lambda mix: float(-np.log(np.clip(mix, 1e-15, 1)).mean())


def _mixture_loss(z: Array, shares: Array | None = None) -> Smooth:
    each = np.full(z.shape[1], 1 / z.shape[1]) if shares is None else shares / shares.sum()

    def value(weights: Array) -> tuple[float, Array]:
        mix = np.maximum(weights @ z, 1e-9)  # the logarithm's slope stays finite where every run gave 0
        return float(-np.log(mix) @ each), -(z @ (each / mix))

    return value


def _margin_loss(z: Array) -> Smooth:
    def value(weights: Array) -> tuple[float, Array]:
        mix = weights @ z
        return float(np.logaddexp(0, -mix).mean()), -(z @ expit(-mix)) / z.shape[1]

    return value


def _values(z: Array, problem: Problem) -> Objective:
    """Weights that sum to one commute with subtracting the truth, so only residuals are mixed."""
    flat = z.reshape(z.shape[0], -1)
    error = flat - problem.target.reshape(-1)
    exact = {
        "rmse": lambda mix: float(np.sqrt(np.square(mix).mean())),
        "mae": lambda mix: float(np.abs(mix).mean()),
    }.get(problem.metric.name)
    if problem.target.ndim == 2 and problem.metric.name == "rmse":
        exact = None
    shape, truth = z.shape[1:], problem.target

    def squares(weights: Array) -> tuple[float, Array]:
        mix = weights @ error
        return float(mix @ mix) / mix.size, 2 * (error @ mix) / mix.size

    return Objective(error, exact or (lambda mix: problem.loss(mix.reshape(shape) + truth)), squares)


def _ranking(z: Array, problem: Problem) -> Objective:
    """Every column laid out negatives first, so that a candidate's AUC needs no selection of rows."""
    columns = z.reshape(*z.shape[:2], -1)
    rng = np.random.default_rng(problem.seed)
    blocks, cuts, pairs, at = [], [], [], 0
    numbers = np.arange(problem.target.shape[0])
    for c, (rows, truth) in enumerate(truth_columns(problem.target, columns.shape[2])):
        negative, positive = numbers[rows][~truth], numbers[rows][truth]
        if not negative.size or not positive.size:
            continue
        blocks.append(columns[:, np.concatenate([negative, positive]), c])
        cuts.append((at, at + negative.size, at + truth.size))
        pairs.append((negative, positive, c))
        at += truth.size
    if not blocks:
        raise UserError(f"{problem.metric.name}: rows to fit weights on hold one class only; use fewer folds")
    flat = np.concatenate(blocks, axis=1).astype(np.float32)
    each = max(2_000, PAIRS // len(pairs))
    difference = np.concatenate(
        [columns[:, _cover(p, each, rng), c] - columns[:, _cover(n, each, rng), c] for n, p, c in pairs], axis=1
    ).astype(np.float32)

    def exact(mix: Array) -> float:
        return -float(np.mean([auc_of(mix[a:b], mix[b:c]) for a, b, c in cuts]))

    def many(mixes: Array) -> Array:
        return -np.mean([auc_many(mixes[:, a:b], mixes[:, b:c]) for a, b, c in cuts], axis=0)

    if problem.metric.name == "roc_auc":
        return Objective(flat, exact, _pairwise_loss(difference), free_scale=True, many=many)
    whole, shape = z.reshape(z.shape[0], -1), z.shape[1:]
    return Objective(whole, lambda mix: problem.loss(mix.reshape(shape)), _pairwise_loss(difference), free_scale=True)


def _cover(rows: Array, count: int, rng: np.random.Generator) -> Array:
    """`count` draws in which every row appears as evenly as it can."""
    rounds = [rng.permutation(rows) for _ in range(-(-count // rows.size))]
    return np.concatenate(rounds)[:count]


def _pairwise_loss(difference: Array) -> Smooth:
    """mean log(1 + exp(-w.d)) over pairs of a positive and a negative: RankNet's loss (Burges 2005)."""
    difference = difference / (difference.mean(axis=0).std() + 1e-12)  # of spread 1: runs' scales set no temperature

    def value(weights: Array) -> tuple[float, Array]:
        w = weights.astype(np.float32)
        mix = w @ difference
        small = np.exp(-np.abs(mix))  # log(1 + exp(-x)) without overflow on either side
        loss = float((np.log1p(small) + np.maximum(-mix, 0)).mean(dtype=np.float64))
        slope = np.where(mix >= 0, small, 1) / (1 + small)
        gradient = -(difference @ slope) / mix.size
        # where all pairs are in order, nothing but this small pull keeps the weights finite
        return loss + 1e-4 * float(weights @ weights), gradient.astype(np.float64) + 2e-4 * weights

    return value


# --- searches -----------------------------------------------------------------------------------------------


def descend(goal: Objective) -> Array:
    """Non-negative weights that sum to one, least in the smooth loss (L-BFGS-B, or SLSQP on the simplex)."""
    m = goal.z.shape[0]
    uniform = np.full(m, 1 / m)
    if m == 1:
        return uniform
    if goal.free_scale:
        start = uniform * 2  # near the temperature where it ends, as a rule
        result = minimize(
            goal.smooth, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * m, options={"maxiter": 60}
        )
        weights = np.maximum(result.x, 0)
    else:
        sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
        result = minimize(
            goal.smooth,
            uniform,
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * m,
            constraints=[sums_to_one],
            options={"maxiter": 60, "ftol": 1e-7},
        )
        weights = np.clip(result.x, 0, 1)
    weights[weights < 1e-4 * weights.max(initial=0)] = 0  # what the solver left on a bound
    return weights / weights.sum() if weights.sum() > 0 else uniform


def climb(goal: Objective, weights: Array, steps: tuple[float, ...], negative: bool = False) -> Array:
    """Coordinate pattern search on the exact loss, coarse to fine: w becomes (1 - a) w + a e_m while that helps.

    Weights keep their sum of one, and stay positive unless `negative`; then their sizes sum to 3 at most, as
    large weights that cancel each other are noise.
    """

    def allowed(m: int, a: float) -> bool:
        moved = (1 - a) * weights[m] + a
        if not negative:
            return moved >= 0
        return (1 - a) * (np.abs(weights).sum() - abs(weights[m])) + abs(moved) <= 3

    z, weights = goal.z, weights.copy()
    mix = weights.astype(z.dtype) @ z
    best = goal.loss(mix)
    for step in steps:
        for _ in range(4):  # passes over the runs; a finer step does the rest
            before = best
            for m in range(z.shape[0]):
                for a in (step, -step):
                    if not allowed(m, a):
                        continue
                    trial = mix + z.dtype.type(a) * (z[m] - mix)
                    loss = goal.loss(trial)
                    if loss < best - 1e-9:  # more than rounding
                        best, mix = loss, trial
                        weights *= 1 - a
                        weights[m] += a
                        break
            if best > before - 1e-7:
                break
    return weights / weights.sum()


def best_single(goal: Objective) -> Array:
    """One on the best model."""
    weights = np.zeros(goal.z.shape[0])
    weights[int(np.argmin([goal.loss(row) for row in goal.z]))] = 1
    return weights


def hill(z: Array, problem: Problem, space: str, negative: bool) -> Array:
    """Hill climbing from the best single model: coarse steps on a sample of the rows, fine ones on all of them."""
    rows = sample_rows(problem, 20_000, problem.seed)  # an AUC's noise there is below what a coarse step changes
    coarse = objective(z[:, rows], problem.take(rows), space)
    weights = climb(coarse, best_single(coarse), (0.5, 0.2, 0.1, 0.05, 0.02), negative)
    return climb(objective(z, problem, space), weights, (0.02, 0.01, 0.005), negative)


def select(z: Array, problem: Problem, space: str, bags: int = 8, steps: int = 24, rows: int = 4_000) -> Array:
    """Selection with replacement, bagged over rows, and over models where there are many.

    Caruana et al. 2004. Below 20 models a bag of half of them would miss what the other half corrects.
    """
    rng = np.random.default_rng(problem.seed)
    m = z.shape[0]
    total = np.zeros(m)
    for _ in range(bags):
        rows_in = sample_rows(problem, rows, int(rng.integers(2**31)))
        models = np.sort(rng.choice(m, min(m, max(20, m // 2)), replace=False))  # half of them, as the paper's bags
        goal = objective(z[np.ix_(models, rows_in)], problem.take(rows_in), space)
        total[models] += _select_once(goal, steps)
    return total / total.sum()


def _select_once(goal: Objective, steps: int) -> Array:
    counts = np.zeros(goal.z.shape[0])
    running = np.zeros(goal.z.shape[1], goal.z.dtype)
    path, losses = [], []
    for step in range(1, steps + 1):
        trials = goal.losses((running + goal.z) / goal.z.dtype.type(step))
        chosen = int(np.argmin(trials))
        running = running + goal.z[chosen]
        path.append(chosen)
        losses.append(trials[chosen])
    np.add.at(counts, path[: int(np.argmin(losses)) + 1], 1)
    return counts / counts.sum()
