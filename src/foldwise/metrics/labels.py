"""Metrics of labels: what the scores decide, counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foldwise.metrics.columns import columns
from foldwise.metrics.metric import Array, Function
from foldwise.metrics.rows import known_cells, row_mean


def decide(target: Array, pred: Array) -> Array:
    """Labels from scores: argmax of classes, else rounded half up (0.5 is a 1) into the truth's range."""
    if target.ndim == 1 and pred.ndim == 2:
        return pred.argmax(axis=1)
    low, high = (0, 1) if target.ndim == 2 else (int(target.min()), int(target.max()))
    if low >= 0 and high <= 1:
        low, high = 0, 1
    return np.clip(np.floor(pred + 0.5), low, high).astype(np.int64)


def _confusion(target: Array, pred: Array, weight: Array | None) -> Array:
    """(K, K) weighted counts, rows the truth, of a one-dimensional target."""
    label, truth = decide(target, pred), target.astype(np.int64)
    low = min(0, int(truth.min()), int(label.min()))
    k = max(int(truth.max()), int(label.max())) - low + 1
    return np.bincount((truth - low) * k + label - low, weight, k * k).reshape(k, k).astype(np.float64)


def of_labels(of_confusion: Callable[[Array], float]) -> Function:
    """A metric of the confusion matrix; several binary columns give the mean over columns."""

    def function(target: Array, pred: Array, weight: Array | None) -> float:
        if target.ndim == 1:
            return of_confusion(_confusion(target, pred, weight))
        counts = [
            _confusion(truth, values, None if weight is None else weight[rows])
            for rows, truth, values in columns(target, pred)
            if truth.size
        ]
        return float(np.mean([of_confusion(each) for each in counts]))

    return function


def accuracy(counts: Array) -> float:
    """The share on the diagonal."""
    return float(np.trace(counts) / counts.sum())


def balanced_accuracy(counts: Array) -> float:
    """Mean recall of the classes that the truth holds."""
    support = counts.sum(axis=1)
    return float(np.mean(np.diag(counts)[support > 0] / support[support > 0]))


def _f1_each(counts: Array) -> Array:
    """F1 of every class that truth or prediction holds; 0 where it is never hit."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return 2 * np.diag(counts)[both > 0] / both[both > 0]


def f1_macro(counts: Array) -> float:
    """Mean F1 of the classes."""
    return float(_f1_each(counts).mean())


def f1(counts: Array) -> float:
    """F1 of class 1."""
    hits, both = counts[1:2, 1:2].sum(), counts[:, 1:2].sum() + counts[1:2].sum()
    return float(2 * hits / both) if both > 0 else 0.0


def f1_micro(target: Array, pred: Array, weight: Array | None) -> float:
    """F1 of all cells counted together; of classes, their accuracy."""
    if target.ndim == 1:
        return accuracy(_confusion(target, pred, weight))
    rows = None if weight is None else np.repeat(weight, target.shape[1])
    return f1(_confusion(*known_cells(target.ravel(), pred.ravel(), rows)))


def f1_columns(target: Array, pred: Array, weight: Array | None) -> float:
    """Mean F1 of the classes, or of the labels."""
    if target.ndim == 1:
        return f1_macro(_confusion(target, pred, weight))
    return of_labels(f1)(target, pred, weight)


def f1_samples(target: Array, pred: Array, weight: Array | None) -> float:
    """Mean over rows of the F1 of a row's labels; 0 where neither truth nor prediction has one, as scikit-learn's."""
    said, truth = (decide(target, pred) > 0) & ~np.isnan(target), target > 0.5
    hits, both = (said & truth).sum(axis=1), said.sum(axis=1) + truth.sum(axis=1)
    return row_mean(2 * hits / np.maximum(both, 1), weight)


def mcc(counts: Array) -> float:
    """Matthews' correlation coefficient, of any number of classes (Gorodkin 2004); 0 where either side has one only."""
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    n = counts.sum()
    spread = (n * n - rows @ rows) * (n * n - columns @ columns)
    return float((np.trace(counts) * n - rows @ columns) / np.sqrt(spread)) if spread > 0 else 0.0


def kappa(counts: Array, quadratic: bool) -> float:
    """Cohen's kappa, plain (1960) or with squared distances (1968); NaN where both hold one and the same class."""
    k = np.arange(counts.shape[0])
    distance = np.abs(k[:, None] - k[None, :])
    distance = np.square(distance) if quadratic else distance > 0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    worst = (distance * expected).sum()
    return float(1.0 - (distance * counts).sum() / worst) if worst > 0 else float("nan")
