"""Kernel matrices of fixed features, each computed once for all folds and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


Setting = dict[str, float]


Scale = Literal["fold", "unit", "none"]


CHUNK = 512  # rows whose distances to all others are held at once


@dataclass(frozen=True)
class Features:
    """float32 (N, D) rows, in memory or memory-mapped, read as a fold sees them.

    scale fold: standardised by the training rows `fit` was given; unit: each row divided by its length; none: as is.
    """

    source: Array
    mean: Array
    deviation: Array
    unit: bool = False

    @classmethod
    def fit(cls, source: Array, rows: Array, scale: Scale = "fold") -> Features:
        """Learn mean and standard deviation from training rows (row numbers); a constant feature is left as it is."""
        width = source.shape[1]
        if scale != "fold":
            return cls(source, np.zeros(width, np.float32), np.ones(width, np.float32), scale == "unit")
        total, squares, first = np.zeros(width), np.zeros(width), source[rows[0]].astype(np.float64)
        for part in _chunks(rows):
            values = source[part] - first  # shifted, so that squares keep their digits
            total += values.sum(axis=0)
            squares += np.square(values).sum(axis=0)
        mean = total / len(rows)
        deviation = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        deviation[deviation < 1e-7 * np.maximum(np.abs(first), 1e-30)] = 1.0
        return cls(source, (mean + first).astype(np.float32), deviation.astype(np.float32))

    def take(self, rows: Array) -> Array:
        """float32 (len(rows), D), scaled."""
        values = self.source[rows].astype(np.float32)
        if self.unit:
            return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return (values - self.mean) / self.deviation

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
            self._matrix[start : start + CHUNK] = self._of(x[start : start + CHUNK], x)

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
            yield self._of(self.features.take(part), others)

    def _of(self, a: Array, b: Array) -> Array:
        products = a @ b.T
        if self.squared:
            products *= -2
            products += np.einsum("nd,nd->n", a, a)[:, None]
            products += np.einsum("nd,nd->n", b, b)
            np.maximum(products, 0, out=products)
        return products


class Method(Protocol):
    """Fits on some rows and scores others, for several settings at once where they share work."""

    calibrated: bool  # scores are probabilities (or numbers) already

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        """The settings, put together where one pass serves several."""

    def scores(self, fit: Array, y: Array, ask: Array, settings: Sequence[Setting]) -> list[Array]:
        """(len(ask), outputs) for each setting; y: of the rows `fit`. One output for two classes or a number."""


def _gathered(blocks: Iterable[Array], scores: Callable[[Array], list[Array]]) -> list[Array]:
    """For each setting the scores of all blocks; `scores` gives those of a block, an array a setting."""
    return [np.concatenate(parts) for parts in zip(*map(scores, blocks), strict=True)]


def _by_gamma(settings: Sequence[Setting]) -> list[list[Setting]]:
    kernels = dict.fromkeys(setting.get("gamma") for setting in settings)
    return [[setting for setting in settings if setting.get("gamma") == gamma] for gamma in kernels]


@dataclass
class KernelMethod:
    """SVM, SVR or ridge on a kernel: exp(-gamma d^2), or the inner product, each relative to the total variance."""

    pairs: Pairs
    solve: Callable[[Array, Array, Setting, int], Callable[[Array], Array]]
    classes: int
    variance: float
    calibrated: bool = False

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        return _by_gamma(settings)

    def scores(self, fit: Array, y: Array, ask: Array, settings: Sequence[Setting]) -> list[Array]:
        gamma = settings[0].get("gamma")
        kernel = np.empty((len(fit), len(fit)))
        for start, block in enumerate(self.pairs.blocks(fit, fit)):
            kernel[start * CHUNK : (start + 1) * CHUNK] = self._kernel(block, gamma)
        models = [self.solve(kernel, y, setting, self.classes) for setting in settings]
        del kernel

        def of_block(block: Array) -> list[Array]:
            values = self._kernel(block, gamma)
            return [model(values) for model in models]

        return _gathered(self.pairs.blocks(ask, fit), of_block)

    def _kernel(self, block: Array, gamma: float | None) -> Array:
        """float64, from `block`, which is overwritten; its digits are float32's, as libsvm's own kernel values are."""
        block *= np.float32((1 if gamma is None else -gamma) / self.variance)
        return (block if gamma is None else np.exp(block, out=block)).astype(np.float64)


def _svc(kernel: Array, y: Array, setting: Setting, classes: int) -> Callable[[Array], Array]:
    from sklearn.svm import SVC

    model = SVC(C=setting["C"], kernel="precomputed", class_weight="balanced", cache_size=1000).fit(kernel, y)

    def scores(values: Array) -> Array:
        decided = model.decision_function(values)
        if classes == 2:
            return decided[:, None]
        if decided.ndim == 1:
            decided = np.column_stack([-decided, decided])
        whole = np.repeat(decided.min(axis=1, keepdims=True), classes, axis=1)  # classes that `y` lacks
        whole[:, model.classes_] = decided
        return whole

    return scores


def _svr(kernel: Array, y: Array, setting: Setting, _: int) -> Callable[[Array], Array]:
    from sklearn.svm import SVR

    centre, spread = y.mean(), y.std() or 1.0
    model = SVR(C=setting["C"], kernel="precomputed", cache_size=1000).fit(kernel, (y - centre) / spread)
    return lambda values: (centre + spread * model.predict(values))[:, None]


def _ridge(kernel: Array, y: Array, setting: Setting, classes: int) -> Callable[[Array], Array]:
    from scipy.linalg import cho_factor, cho_solve

    target = _signs(y, classes)
    damped = kernel.copy()
    damped.flat[:: len(damped) + 1] += setting["penalty"]
    factor = cho_factor(damped.T, overwrite_a=True, check_finite=False)  # .T: LAPACK's order, so no copy
    solved = cho_solve(factor, np.column_stack([target, np.ones(len(target))]), check_finite=False)
    intercept = solved[:, :-1].sum(axis=0) / solved[:, -1].sum()  # free of the penalty, as scikit-learn's Ridge has it
    weights = solved[:, :-1] - solved[:, -1:] * intercept
    return lambda values: values @ weights + intercept


def _signs(y: Array, classes: int) -> Array:
    """float64 (N, outputs): numbers as they are, classes as -1 and 1 (one column for two classes)."""
    if classes == 0:
        return y.astype(np.float64)[:, None]
    if classes == 2:
        return 2.0 * y[:, None] - 1
    return 2.0 * (y[:, None] == np.arange(classes)) - 1
