"""Kernel matrices of fixed features, each computed once for all folds and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


Setting = dict[str, float]


Scale = Literal["fold", "unit", "none"]


CHUNK = 512  # rows whose distances to all others are held at once


@dataclass(frozen=True)
class Scaler:
    """float32 (N, D) features as a fold sees them: standardised, or with `unit` each row divided by its length."""

    mean: Array
    deviation: Array
    unit: bool = False

    def __call__(self, values: Array) -> Array:
        values = values.astype(np.float32)
        if self.unit:
            return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return (values - self.mean) / self.deviation


@dataclass(frozen=True)
class Features:
    """float32 (N, D) rows, in memory or memory-mapped, read as a fold sees them.

    scale fold: standardised by the training rows `fit` was given; unit: each row divided by its length; none: as is.
    """

    source: Array
    scaler: Scaler

    @classmethod
    def fit(cls, source: Array, rows: Array, scale: Scale = "fold") -> Features:
        """Learn mean and standard deviation from training rows (row numbers); a constant feature is left as it is."""
        width = source.shape[1]
        if scale != "fold":
            return cls(source, Scaler(np.zeros(width, np.float32), np.ones(width, np.float32), scale == "unit"))
        total, squares, first = np.zeros(width), np.zeros(width), source[rows[0]].astype(np.float64)
        for part in _chunks(rows):
            values = source[part] - first  # shifted, so that squares keep their digits
            total += values.sum(axis=0)
            squares += np.square(values).sum(axis=0)
        mean = total / len(rows)
        deviation = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        deviation[deviation < 1e-7 * np.maximum(np.abs(first), 1e-30)] = 1.0
        return cls(source, Scaler((mean + first).astype(np.float32), deviation.astype(np.float32)))

    def take(self, rows: Array) -> Array:
        """float32 (len(rows), D), scaled."""
        return self.scaler(self.source[rows])

    def variance(self, rows: Array) -> float:
        """The features' total variance over rows."""
        total, squares, count = np.zeros(self.source.shape[1]), 0.0, len(rows)
        for part in _chunks(rows):
            values = self.take(part).astype(np.float64)
            total += values.sum(axis=0)
            squares += float(np.square(values).sum())
        return max(squares / count - float(np.square(total / count).sum()), 1e-12)


def _chunks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]


@dataclass
class Pairs:
    """Squared distances, or inner products, of rows: a float32 matrix of `rows` among themselves, others on demand."""

    features: Features
    squared: bool
    rows: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self._place = np.full(len(self.features.source), -1)
        self._place[self.rows] = np.arange(len(self.rows))
        x = self.features.take(self.rows)
        self._matrix = np.empty((len(x), len(x)), np.float32)
        for start in range(0, len(x), CHUNK):
            self._matrix[start : start + CHUNK] = pairwise(x[start : start + CHUNK], x, self.squared)

    def blocks(self, ask: Array, fit: Array) -> Iterator[Array]:
        """float32 (up to CHUNK of `ask`, len(fit)), one after the other, the caller's own; both are row numbers."""
        columns = self._place[fit]
        whole = np.array_equal(columns, np.arange(len(self.rows)))
        others = None
        for part in _chunks(ask):
            places = self._place[part]
            if len(places) and min(places.min(), columns.min()) >= 0:
                block = self._matrix[places]
                yield block if whole else np.take(block, columns, axis=1)
                continue
            others = self.features.take(fit) if others is None else others
            yield pairwise(self.features.take(part), others, self.squared)


def pairwise(a: Array, b: Array, squared: bool) -> Array:
    """float32 (len(a), len(b)): squared distances of rows (n, D), or their inner products."""
    products = a @ b.T
    if squared:
        products *= -2
        products += np.einsum("nd,nd->n", a, a)[:, None]
        products += np.einsum("nd,nd->n", b, b)
        np.maximum(products, 0, out=products)
    return products


class Fitted(Protocol):
    """What was fitted: features float32 (n, D) as a fold sees them -> scores (n, outputs)."""

    def __call__(self, x: Array) -> Array: ...


class Method:
    """Fits on some rows and scores others, for several settings at once where they share work."""

    calibrated: bool  # scores are probabilities (or numbers) already

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        """The settings, put together where one pass serves several."""
        return [list(settings)]

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[Any]:
        """A Fitted for each setting; y: of the rows `fit`."""
        raise NotImplementedError

    def answers(self, models: Sequence[Any], fit: Array, ask: Array) -> list[Array]:
        """(len(ask), outputs) of each model. One output for two classes or a number."""
        raise NotImplementedError

    def scores(self, fit: Array, y: Array, ask: Array, settings: Sequence[Setting]) -> list[Array]:
        """Both at once."""
        return self.answers(self.fitted(fit, y, settings), fit, ask)


def _gathered(blocks: Iterable[Array], scores: Callable[[Array], list[Array]]) -> list[Array]:
    """For each setting the scores of all blocks; `scores` gives those of a block, an array a setting."""
    return [np.concatenate(parts) for parts in zip(*map(scores, blocks), strict=True)]


def _by_gamma(settings: Sequence[Setting]) -> list[list[Setting]]:
    kernels = dict.fromkeys(setting.get("gamma") for setting in settings)
    return [[setting for setting in settings if setting.get("gamma") == gamma] for gamma in kernels]


@dataclass(frozen=True)
class Solved:
    """A kernel machine: kernel values float64 (n, rows) -> scores (n, outputs).

    classes: of an SVM that tells more than two apart, one against one; `present` are those that its rows held.
    """

    weights: Array  # float64 (rows, outputs)
    offset: Array  # (outputs,)
    present: Array | None = None
    classes: int = 0

    def __call__(self, values: Array) -> Array:
        decided = values @ self.weights + self.offset
        if self.present is None:
            return decided
        decided = np.column_stack([-decided, decided]) if len(self.present) == 2 else _votes(decided, len(self.present))
        whole = np.repeat(decided.min(axis=1, keepdims=True), self.classes, axis=1)
        whole[:, self.present] = decided
        return whole


def _votes(decided: Array, classes: int) -> Array:
    """(n, classes) of one-against-one decisions (n, pairs): votes, and within (-1/3, 1/3) the sum of confidences.

    As scikit-learn's decision_function_shape="ovr" has it.
    """
    votes, confidence = np.zeros((2, len(decided), classes))
    for column, (i, j) in zip(decided.T, combinations(range(classes), 2), strict=True):
        confidence[:, i] += column
        confidence[:, j] -= column
        votes[:, i] += column >= 0
        votes[:, j] += column < 0
    return votes + confidence / (3 * (np.abs(confidence) + 1))


@dataclass(frozen=True)
class KernelModel:
    """exp(-gamma d^2), or the inner product, with `rows` float32 (S, D), each relative to the total variance."""

    solved: Solved
    gamma: float | None
    variance: float
    rows: Array

    def kernel(self, block: Array) -> Array:
        """float64, from `block`, which is overwritten; its digits are float32's, as libsvm's own kernel values are."""
        block *= np.float32((1 if self.gamma is None else -self.gamma) / self.variance)
        return (block if self.gamma is None else np.exp(block, out=block)).astype(np.float64)

    def __call__(self, x: Array) -> Array:
        parts = [pairwise(x[part], self.rows, self.gamma is not None) for part in _chunks(np.arange(len(x)))]
        return np.concatenate([self.solved(self.kernel(part)) for part in parts])


@dataclass
class KernelMethod(Method):
    """SVM, SVR or ridge on a kernel."""

    pairs: Pairs
    solve: Callable[[Array, Array, Setting, int], Solved]
    classes: int
    variance: float
    calibrated: bool = False

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        return _by_gamma(settings)

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[KernelModel]:
        gamma = settings[0].get("gamma")
        bare = KernelModel(Solved(np.zeros(0), np.zeros(0)), gamma, self.variance, np.zeros(0))
        kernel = np.empty((len(fit), len(fit)))
        for start, block in enumerate(self.pairs.blocks(fit, fit)):
            kernel[start * CHUNK : (start + 1) * CHUNK] = bare.kernel(block)
        return [replace(bare, solved=self.solve(kernel, y, setting, self.classes)) for setting in settings]

    def answers(self, models: Sequence[KernelModel], fit: Array, ask: Array) -> list[Array]:
        def of_block(block: Array) -> list[Array]:
            values = models[0].kernel(block)
            return [model.solved(values) for model in models]

        return _gathered(self.pairs.blocks(ask, fit), of_block)

    def alone(self, model: KernelModel, fit: Array) -> KernelModel:
        """The model with the rows that it leans on, so that it needs no others."""
        leans = np.flatnonzero(model.solved.weights.any(axis=1))
        solved = replace(model.solved, weights=model.solved.weights[leans])
        return replace(model, solved=solved, rows=self.pairs.features.take(fit[leans]))


def _svc(kernel: Array, y: Array, setting: Setting, classes: int) -> Solved:
    from sklearn.svm import SVC

    model = SVC(C=setting["C"], kernel="precomputed", class_weight="balanced", cache_size=1000).fit(kernel, y)
    present, dual = model.classes_, model.dual_coef_
    pairs = list(combinations(range(len(present)), 2))
    weights = np.zeros((len(kernel), len(pairs)))
    of_class = np.repeat(np.arange(len(present)), model.n_support_)
    for k, (i, j) in enumerate(pairs):  # a vector of class i stands in row j - 1 of the duals, one of class j in row i
        weights[model.support_, k] = np.where(of_class == i, dual[j - 1], np.where(of_class == j, dual[i], 0))
    return Solved(weights, model.intercept_) if classes == 2 else Solved(weights, model.intercept_, present, classes)


def _svr(kernel: Array, y: Array, setting: Setting, _: int) -> Solved:
    from sklearn.svm import SVR

    centre, spread = y.mean(), y.std() or 1.0
    model = SVR(C=setting["C"], kernel="precomputed", cache_size=1000).fit(kernel, (y - centre) / spread)
    weights = np.zeros((len(kernel), 1))
    weights[model.support_] = spread * model.dual_coef_.T
    return Solved(weights, centre + spread * model.intercept_)


def _ridge(kernel: Array, y: Array, setting: Setting, classes: int) -> Solved:
    from scipy.linalg import cho_factor, cho_solve

    target = _signs(y, classes)
    damped = kernel.copy()
    damped.flat[:: len(damped) + 1] += setting["penalty"]
    factor = cho_factor(damped.T, overwrite_a=True, check_finite=False)  # .T: LAPACK's order, so no copy
    solved = cho_solve(factor, np.column_stack([target, np.ones(len(target))]), check_finite=False)
    intercept = solved[:, :-1].sum(axis=0) / solved[:, -1].sum()  # free of the penalty, as scikit-learn's Ridge has it
    return Solved(solved[:, :-1] - solved[:, -1:] * intercept, intercept)


def _signs(y: Array, classes: int) -> Array:
    """float64 (N, outputs): numbers as they are, classes as -1 and 1 (one column for two classes)."""
    if classes == 0:
        return y.astype(np.float64)[:, None]
    if classes == 2:
        return 2.0 * y[:, None] - 1
    return 2.0 * (y[:, None] == np.arange(classes)) - 1
