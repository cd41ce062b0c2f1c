"""The blending methods by name: how each is fitted, in which space, and how complex it is.

A method takes z (M, N) or (M, N, C), the runs in some space, and gives a combiner (see stacking).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldwise.blend.search import Problem, climb, descend, hill, objective, select
from foldwise.blend.spaces import from_space, truth_columns
from foldwise.blend.stacking import Combiner, Linear, logistic, ridge, trees, within

Array = NDArray[Any]
Fit = Callable[[Array, Problem, str], Combiner]


def mean(z: Array, problem: Problem, space: str) -> Combiner:
    """Equal weights in any space."""
    return Linear(np.full(z.shape[0], 1 / z.shape[0]), space, problem.task)


def _given(z: Array, problem: Problem, space: str) -> Combiner:
    """Weights set by hand."""
    return Linear(np.array(problem.given), space, problem.task)


def _best(z: Array, problem: Problem, space: str) -> Combiner:
    losses = [problem.loss(from_space(space, run, problem.task)) for run in z]
    return Linear(np.eye(z.shape[0])[int(np.argmin(losses))], space, problem.task)


@dataclass(frozen=True)
class Power:
    """(mean p^k)^(1/k): below 1 a low score weighs more, above 1 a high one."""

    weights: Array
    power: float

    def __call__(self, z: Array) -> Array:
        return np.mean(np.clip(z, 0, None) ** self.power, axis=0) ** (1 / self.power)


def _power(z: Array, problem: Problem, space: str) -> Combiner:
    """A power mean, k by the metric."""
    # 1 is the plain mean; 8 is near the maximum already
    tried = [Power(np.full(z.shape[0], 1 / z.shape[0]), power) for power in (0.25, 0.5, 2.0, 4.0, 8.0)]
    return min(tried, key=lambda one: problem.loss(one(z)))


@dataclass(frozen=True)
class Vote:
    """The share of runs that say yes (0.5 or more) or name the class; the mean, at 1/1000, settles ties."""

    weights: Array
    task: str

    def __call__(self, z: Array) -> Array:
        if self.task == "multiclass":
            said = z.argmax(axis=2)
            votes = np.stack([(said == c).mean(axis=0) for c in range(z.shape[2])], axis=1)
        else:
            votes = (z >= 0.5).mean(axis=0)
        return 0.999 * votes + 0.001 * z.mean(axis=0)


def _vote(z: Array, problem: Problem, space: str) -> Combiner:
    return Vote(np.full(z.shape[0], 1 / z.shape[0]), problem.task)


def _gradient(z: Array, problem: Problem, space: str) -> Combiner:
    return Linear(descend(objective(z, problem, space)), space, problem.task)


def _weights(z: Array, problem: Problem, space: str) -> Combiner:
    goal = objective(z, problem, space)
    return Linear(climb(goal, descend(goal), (0.05, 0.02, 0.01)), space, problem.task)


def _hill(z: Array, problem: Problem, space: str) -> Combiner:
    return Linear(hill(z, problem, space, negative=False), space, problem.task)


def _hill_negative(z: Array, problem: Problem, space: str) -> Combiner:
    return within(Linear(hill(z, problem, space, negative=True), space, problem.task), problem)


def _caruana(z: Array, problem: Problem, space: str) -> Combiner:
    return Linear(select(z, problem, space), space, problem.task)


def _per_class(z: Array, problem: Problem, space: str) -> Combiner:
    """Weights for every class or label, each pulled towards the shared ones as its positives are few."""
    shared = descend(objective(z, problem, space))
    if z.ndim == 2:
        return Linear(shared, space, problem.task)
    weights = np.empty((z.shape[0], z.shape[2]))
    column = replace(problem, task="regression" if problem.task == "regression" else "binary")
    for c, (rows, truth) in enumerate(_column_targets(problem, z.shape[2])):
        positives = float(min(truth.sum(), (1 - truth).sum())) if column.task == "binary" else float(truth.size)
        own = shared
        if positives >= 2:
            own = descend(objective(z[:, rows, c], replace(column.take(rows), target=truth), space))
        trust = positives / (positives + 10 * z.shape[0])  # ten events a weight (Peduzzi 1996) get half of it
        weights[:, c] = trust * own + (1 - trust) * shared
    return Linear(weights, space, problem.task)


def _column_targets(problem: Problem, columns: int) -> list[tuple[slice | Array, Array]]:
    if problem.task == "regression":
        return [(slice(None), truth) for truth in problem.target.T]
    return [(rows, truth.astype(np.float64)) for rows, truth in truth_columns(problem.target, columns)]


SHRINK = (0.0, 0.25, 0.5, 0.75, 1.0)  # quarters: cross-validation can't tell finer ones apart


def _hierarchical(z: Array, problem: Problem, space: str) -> Combiner:
    """Free weights, pulled towards what model and image size explain, then towards equal ones.

    How strongly each, inner cross-validation says: fitted without a fold, the pair that scores best on it.
    """
    families = problem.families or tuple((f"run {m}", "") for m in range(z.shape[0]))
    total = np.zeros((len(SHRINK), len(SHRINK)))
    for k in np.unique(problem.folds):
        train, held = np.flatnonzero(problem.folds != k), np.flatnonzero(problem.folds == k)
        free = descend(objective(z[:, train], problem.take(train), space))
        judge = problem.take(held)
        for i, to_family in enumerate(SHRINK):
            for j, to_uniform in enumerate(SHRINK):
                weights = shrunk(free, families, to_family, to_uniform)
                total[i, j] += judge.loss(Linear(weights, space, problem.task)(z[:, held])) * held.size
    total[~np.isfinite(total)] = np.inf
    i, j = (int(n) for n in np.argwhere(total <= total.min() + 1e-12)[-1])  # of equals, the most pulled
    free = descend(objective(z, problem, space))
    return Linear(shrunk(free, families, SHRINK[i], SHRINK[j]), space, problem.task)


def shrunk(free: Array, families: Sequence[tuple[str, str]], to_family: float, to_uniform: float) -> Array:
    """(M,) weights moved by shares 0..1 towards their main effects (model mean + size mean - mean), then to 1/M."""
    effects = np.full(free.size, -free.mean())
    for factor in (0, 1):
        labels = np.array([family[factor] for family in families])
        effects += np.array([free[labels == label].mean() for label in labels])
    effects = np.maximum(effects, 0)
    family = effects / effects.sum()
    moved = (1 - to_family) * free + to_family * family
    return (1 - to_uniform) * moved + to_uniform / free.size


@dataclass(frozen=True)
class Method:
    """How to fit, in which space by default ('order' means rank for metrics of order, else prob), and how complex.

    complexity orders `auto`'s preference among methods that score the same. evidence: the paired standard errors by
    which auto wants it ahead of all others: weights of both signs and trees can follow what folds owe each other. cuts:
    of one that a cut follows, whether one a label or grade.
    """

    fit: Fit
    space: str
    complexity: float
    says: str
    uniform: bool = False
    evidence: float = 0.0
    cuts: bool | None = None


METHODS: dict[str, Method] = {
    "mean": Method(mean, "prob", 0, "plain mean", True),
    "rank": Method(mean, "rank", 1, "mean of ranks", True),
    "fold_rank": Method(mean, "fold_rank", 2, "mean of ranks within folds", True),
    "logit": Method(mean, "logit", 2, "mean of logits", True),
    "geometric": Method(mean, "log", 2, "geometric mean", True),
    "best": Method(_best, "prob", 3, "best single run, chosen on the training folds"),
    "vote": Method(_vote, "prob", 3, "hard vote", True),
    "power": Method(_power, "prob", 4, "power mean, its exponent by the metric", True),
    "calibrated": Method(mean, "calibrated", 5, "mean of probabilities calibrated a fold", True),
    "hierarchical": Method(_hierarchical, "order", 6, "weights pulled to model and size, then to equal"),
    "ridge": Method(
        lambda z, problem, space: ridge(z, problem), "order", 7, "ridge, pulled to equal weights", evidence=2.0
    ),
    "gradient": Method(_gradient, "order", 8, "simplex weights by a smooth surrogate"),
    "weights": Method(_weights, "order", 9, "simplex weights by the metric"),
    "caruana": Method(_caruana, "order", 10, "selection with replacement, bagged"),
    "stack": Method(lambda z, problem, space: logistic(z, problem), "logit", 11, "logistic stacking on logits"),
    "hill": Method(_hill, "order", 12, "hill climbing"),
    "hill_negative": Method(_hill_negative, "order", 13, "hill climbing, negative weights allowed", evidence=2.0),
    "per_class": Method(_per_class, "order", 14, "weights for each class"),
    "lightgbm": Method(lambda z, problem, space: trees(z, problem), "order", 15, "LightGBM stacking", evidence=2.0),
}


def _then_cut(method: Method, each: bool) -> Method:
    """A method and then a cut (see cuts): a quarter more complex, or half."""
    says = f"{method.says}, then {'a cut a label or grade' if each else 'a cut'} tuned on the metric"
    return replace(method, complexity=method.complexity + (0.5 if each else 0.25), says=says, cuts=each)


_UNCUT = {**METHODS, "given": Method(_given, "prob", 0, "weights set by hand")}
CUT = {"+cut": False, "+cuts": True}
ALL = {
    **_UNCUT,
    **{name + kind: _then_cut(method, each) for name, method in _UNCUT.items() for kind, each in CUT.items()},
}
FIXED_SPACE = {"mean", "rank", "fold_rank", "logit", "geometric", "vote", "power", "calibrated", "stack"}
