"""Second-level models on out-of-fold predictions: logistic, ridge and LightGBM stacking.

Every function takes z (M, N) or (M, N, C) and a `Problem`, and returns a combiner: new z -> prediction, with
`weights` that say what each run is worth in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from foldwise import UserError, stats
from foldwise.blend.search import Problem, sample_rows
from foldwise.blend.spaces import from_space, truth_columns
from foldwise.metrics import known_rows

Array = NDArray[Any]
STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # of the pull, relative to the data's own curvature


class Combiner(Protocol):
    """z (M, N) or (M, N, C) -> (N,) or (N, C). weights: (M,), or (M, C) where columns have their own."""

    @property
    def weights(self) -> Array: ...

    def __call__(self, z: Array) -> Array: ...


@dataclass(frozen=True)
class Linear:
    """A weighted sum plus a bias (a number, or one a column), taken back from its space."""

    weights: Array
    space: str
    task: str
    bias: Array | float = 0.0

    def __call__(self, z: Array) -> Array:
        if self.weights.ndim == 1:
            mix = (self.weights.astype(z.dtype) @ z.reshape(z.shape[0], -1)).reshape(z.shape[1:])
        else:
            mix = np.einsum("mc,mnc->nc", self.weights, z)
        return from_space(self.space, mix + self.bias, self.task)


@dataclass(frozen=True)
class Clipped:
    """A weighted sum, cut off at `least` and 1 - `least`."""

    line: Linear
    least: float = 0.0

    @property
    def weights(self) -> Array:
        return self.line.weights

    def __call__(self, z: Array) -> Array:
        return np.clip(self.line(z), self.least, 1 - self.least)


@dataclass(frozen=True)
class Trees:
    """Boosters in LightGBM's text form: one a column, or one for all classes. weights: shares of their gain."""

    weights: Array
    boosters: list[str]
    multiclass: bool = False

    def __call__(self, z: Array) -> Array:
        import lightgbm

        models = [lightgbm.Booster(model_str=text) for text in self.boosters]
        if self.multiclass:
            flat = z.transpose(1, 0, 2).reshape(z.shape[1], -1)
            return np.asarray(models[0].predict(flat, num_threads=1))
        cells = z.reshape(*z.shape[:2], -1)
        out = np.stack([fit.predict(cells[:, :, c].T, num_threads=1) for c, fit in enumerate(models)], axis=1)
        return out.reshape(z.shape[1:])


# --- logistic -----------------------------------------------------------------------------------------------


def logistic(z: Array, problem: Problem) -> Combiner:
    """Logistic regression on logits, pulled towards equal weights; how strongly, inner cross-validation says.

    No weight is negative: models without a fold saw the labels of the fold that is predicted, and so, where nothing
    can be learnt, err against them; a weight of either sign would learn that and turn noise into a score.

    Binary: one weight a run. Multilabel: one a run and label. Multiclass: softmax of weighted logarithms with
    one weight a run and one bias a class, pulled to 0. Regression: `ridge`.
    """
    if problem.task == "regression":
        return ridge(z, problem)
    if problem.task == "multiclass":
        return _softmax(z, problem)
    columns = z.reshape(*z.shape[:2], -1)
    truths = truth_columns(problem.target, columns.shape[2])
    fits = [_logistic(columns[:, rows, c], y, problem.take(rows)) for c, (rows, y) in enumerate(truths)]
    weights, bias = np.stack([w for w, _ in fits], axis=1), np.array([b for _, b in fits])
    if z.ndim == 2:
        return Linear(weights[:, 0], "logit", problem.task, float(bias[0]))
    return Linear(weights, "logit", problem.task, bias)


def _logistic(x: Array, truth: Array, problem: Problem) -> tuple[Array, float]:
    center = _rising(x.mean(axis=0)[None], truth, np.zeros(2), 1e-4)  # the mean run, rescaled: what all are pulled to
    prior = np.append(np.full(x.shape[0], center[0] / x.shape[0]), center[1])
    solved = _rising(x, truth, prior, _choose_strength(x, truth, prior, problem))
    return solved[:-1], float(solved[-1])


def _choose_strength(x: Array, truth: Array, prior: Array, problem: Problem) -> float:
    rows = sample_rows(problem, 10_000, problem.seed)  # beyond that, the strength hardly matters
    x, truth, folds = x[:, rows], truth[rows], problem.folds[rows]
    losses = np.zeros(len(STRENGTHS))
    for k in np.unique(folds):
        train, held = folds != k, folds == k
        start = None
        for s in reversed(range(len(STRENGTHS))):  # from stiff to free, each from the last one's answer
            start = _rising(x[:, train], truth[train], prior, STRENGTHS[s], start)
            margin = np.where(truth[held], 1, -1) * (start[:-1] @ x[:, held] + start[-1])
            losses[s] += np.logaddexp(0, -margin).sum()
    return STRENGTHS[int(np.argmin(losses))]


def _rising(x: Array, truth: Array, prior: Array, strength: float, start: Array | None = None) -> Array:
    """`_newton` without negative weights: runs that would have one leave, until none would."""
    out = np.zeros(x.shape[0] + 1)
    stay = np.arange(x.shape[0])
    while True:
        at = np.append(stay, x.shape[0])
        solved = _newton(x[stay], truth, prior[at], strength, None if start is None else start[at])
        if (solved[:-1] >= 0).all():
            out[at] = solved
            return out
        stay = stay[solved[:-1] >= 0]


def _newton(x: Array, truth: Array, prior: Array, strength: float, start: Array | None = None) -> Array:
    """Weights and a bias, least in log loss + strength / 8 * variance * |w - prior|^2, by damped Newton."""
    m, n = x.shape
    if not m:
        share = np.clip(truth.mean(), 1e-6, 1 - 1e-6)
        return np.array([np.log(share / (1 - share))])
    full = np.concatenate([x, np.ones((1, n))])
    # 0.25: the curvature of log loss at p = 1/2, its largest; the bias is free but for rounding
    pull = np.append(np.full(m, strength * 0.25 * max(float(x.var(axis=1).mean()), 1e-6) / m), 1e-9)
    sign = np.where(truth, 1.0, -1.0)

    def loss(w: Array) -> tuple[float, Array, Array]:
        score = w @ full
        p = expit(score)
        value = float(np.logaddexp(0, -sign * score).mean() + 0.5 * pull @ np.square(w - prior))
        curve = (full * (p * (1 - p))) @ full.T / n + np.diag(pull + 1e-9)  # 1e-9: identical runs leave it singular
        return value, full @ (p - truth) / n + pull * (w - prior), curve

    return stats.newton(loss, prior if start is None else start)


def _softmax(z: Array, problem: Problem) -> Combiner:
    m, _, c = z.shape
    rows = sample_rows(problem, max(2_000, 20_000_000 // (m * c)), problem.seed)
    x, index = z[:, rows].astype(np.float32), problem.target[rows].astype(np.int64)
    solved = _softmax_fit(x, index, _choose_softmax_strength(z, problem))
    return Linear(solved[:m], "log", "multiclass", solved[m:])


def _choose_softmax_strength(z: Array, problem: Problem) -> float:
    m, _, c = z.shape
    rows = sample_rows(problem, max(200, 300_000 // (m * c)), problem.seed)  # beyond that, it hardly matters
    x, index, folds = z[:, rows].astype(np.float32), problem.target[rows].astype(np.int64), problem.folds[rows]
    losses = np.zeros(len(STRENGTHS))
    for k in np.unique(folds):
        train, held = folds != k, folds == k
        start = None
        for s in reversed(range(len(STRENGTHS))):
            start = _softmax_fit(x[:, train], index[train], STRENGTHS[s], start, 30)
            mix = np.tensordot(start[:m], x[:, held], 1) + start[m:]
            losses[s] += (logsumexp(mix, axis=1) - mix[np.arange(held.sum()), index[held]]).sum()
    return STRENGTHS[int(np.argmin(losses))]


def _softmax_fit(x: Array, index: Array, strength: float, start: Array | None = None, steps: int = 80) -> Array:
    """(M + C,) weights and biases, least in log loss + strength / 8 * variance * |w - mean w|^2 + 1e-3 |bias|^2."""
    m, n, c = x.shape
    chosen = x[:, np.arange(n), index].mean(axis=1).astype(np.float64)
    counts = np.bincount(index, minlength=c) / n
    pull = strength * 0.25 * max(float(x.var(axis=(1, 2)).mean()), 1e-6) / m

    def loss(parameters: Array) -> tuple[float, Array]:
        w, bias = parameters[:m], parameters[m:]
        mix = np.tensordot(w.astype(np.float32), x, 1) + bias.astype(np.float32)
        mix -= mix.max(axis=1, keepdims=True)  # exp overflows beyond 88 in float32
        own = float(mix[np.arange(n), index].mean(dtype=np.float64))
        np.exp(mix, out=mix)
        total = mix.sum(axis=1, keepdims=True)
        mix /= total
        value = float(np.log(total).mean(dtype=np.float64)) - own
        gw = np.array([np.vdot(x[i], mix) for i in range(m)]) / n - chosen
        gb = mix.mean(axis=0, dtype=np.float64) - counts
        apart = w - w.mean()
        value += 0.5 * pull * float(apart @ apart) + 1e-3 * float(bias @ bias)
        return value, np.concatenate([gw + pull * apart, gb + 2e-3 * bias])

    begin = np.append(np.full(m, 1 / m), np.zeros(c)) if start is None else start
    bounds = [(0, None)] * m + [(None, None)] * c
    return minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps}).x


# --- ridge --------------------------------------------------------------------------------------------------


def ridge(z: Array, problem: Problem) -> Combiner:
    """Least squares towards the truth, pulled towards equal weights; the pull is chosen by inner cross-validation.

    Only the models' Gram matrix is needed, and folds' Gram matrices add up: the choice costs nothing.
    """
    parts = [
        _moments(z[:, problem.folds == k], problem.take(np.flatnonzero(problem.folds == k)))
        for k in np.unique(problem.folds)
    ]
    whole = [np.sum([part[i] for part in parts], axis=0) for i in range(5)]
    losses = []
    for strength in STRENGTHS:
        held = 0.0
        for part in parts:
            w, b = _ridge_solve([a - p for a, p in zip(whole, part, strict=True)], strength)
            gram, cross, total, count, truth = part
            held += float(w @ gram @ w - 2 * w @ cross + 2 * b * (w @ total) - 2 * b * truth + b * b * count)
        losses.append(held)
    w, b = _ridge_solve(whole, STRENGTHS[int(np.argmin(losses))])
    return within(Linear(w, "prob", problem.task, 0.0 if problem.task == "multiclass" else b), problem)


def within(line: Linear, problem: Problem) -> Combiner:
    """What weights of any sign put outside 0..1 comes back: as near to the ends as so many rows can tell from them."""
    if problem.task == "regression" or line.space == "logit":
        return line
    return Clipped(line, 0.5 / problem.target.shape[0])


def _moments(z: Array, problem: Problem) -> list[Any]:
    """Sums over cells: z z', z y, z, 1, y (the truth as one column a class)."""
    flat = z.reshape(z.shape[0], -1)
    if problem.task != "multiclass":
        rows = known_rows(problem.target.reshape(-1))
        flat, truth = flat[:, rows], problem.target.reshape(-1)[rows].astype(np.float64)
    gram = (flat @ flat.T).astype(np.float64)
    total = flat.sum(axis=1, dtype=np.float64)
    if problem.task == "multiclass":
        chosen = z[:, np.arange(z.shape[1]), problem.target.astype(np.int64)]
        return [gram, chosen.sum(axis=1, dtype=np.float64), total, float(flat.shape[1]), float(z.shape[1])]
    return [gram, flat @ truth, total, float(truth.size), float(truth.sum())]


def _ridge_solve(sums: list[Any], strength: float) -> tuple[Array, float]:
    gram, cross, total, count, truth = sums
    m = total.size
    covariance = gram - np.outer(total, total) / count
    pull = strength * np.trace(covariance) / m
    toward = cross - total * truth / count - covariance @ np.full(m, 1 / m)
    # 1e-12: identical runs leave the matrix singular where the pull is slight
    w = np.full(m, 1 / m) + np.linalg.solve(covariance + pull * np.eye(m) + 1e-12 * np.eye(m), toward)
    return w, float((truth - w @ total) / count)


# --- trees --------------------------------------------------------------------------------------------------


def trees(z: Array, problem: Problem) -> Combiner:
    """LightGBM on the runs' predictions: a small forest of shallow trees; weights are shares of its gain."""
    if z.ndim == 3 and z.shape[2] > 30:
        raise UserError("--method lightgbm: for up to 30 classes; take stack")
    if problem.task == "multiclass":
        return _trees_multiclass(z, problem)
    columns = z.reshape(*z.shape[:2], -1)
    truths = problem.target.reshape(problem.target.shape[0], -1)
    objective = "regression" if problem.task == "regression" else "binary"
    known = [known_rows(truth) for truth in truths.T]
    fits = [
        _boost(columns[:, rows, c].T, truths[rows, c], objective, problem.take(rows)) for c, rows in enumerate(known)
    ]
    gains = np.stack([fit.feature_importance("gain") for fit in fits], axis=1)
    gains = gains / np.maximum(gains.sum(axis=0), 1e-12)

    weights = gains.reshape(z.shape[:1] + z.shape[2:])
    return Trees(weights, [fit.model_to_string() for fit in fits])


def _trees_multiclass(z: Array, problem: Problem) -> Combiner:
    m, _, c = z.shape
    fit = _boost(z.transpose(1, 0, 2).reshape(-1, m * c), problem.target, "multiclass", problem, num_class=c)
    gain = fit.feature_importance("gain").reshape(m, c).sum(axis=1)
    return Trees(gain / max(gain.sum(), 1e-12), [fit.model_to_string()], multiclass=True)


def _boost(x: Array, y: Array, kind: str, problem: Problem, **more: int) -> Any:
    import lightgbm

    settings = {
        "objective": kind,
        "learning_rate": 0.15,  # few, shallow, strongly penalised trees: runs agree, and the rest is mostly noise
        "num_leaves": 6,
        "min_data_in_leaf": max(20, len(y) // 100),
        "lambda_l2": 10.0,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "max_bin": 63,
        "num_threads": 1,
        "seed": problem.seed,
        "deterministic": True,
        "verbose": -1,
        **more,
    }
    if kind != "multiclass":  # a run may only raise what it says, as in `logistic`
        settings["monotone_constraints"] = [1] * x.shape[1]
    return lightgbm.train(settings, lightgbm.Dataset(x, y, free_raw_data=True), num_boost_round=40)
