"""Metrics of one column of scores, which several columns (one-vs-rest for classes) give the mean of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from foldwise.metrics.metric import Array, Function, Presorted

Bands = Sequence[tuple[float, float]]
Of = Callable[[Array, Array, Array | None], float]  # bool (N,) truth, scores (N,), weights (N,)


def auc_of(negatives: Array, positives: Array) -> float:
    """Area under the ROC curve, ties counted one half (Mann-Whitney); NaN where a class is empty.

    Sorting the larger class and searching the smaller one in it is several times faster than an argsort of
    both. Near balance float32 does better still in one integer sort (`auc_many`).
    """
    n0, n1 = negatives.size, positives.size
    if not n0 or not n1:
        return float("nan")
    if min(n0, n1) * 6 > n0 + n1 and negatives.dtype == positives.dtype == np.float32:
        return float(auc_many(negatives[None], positives[None])[0])
    few, many = (negatives, positives) if n0 < n1 else (positives, negatives)
    few, many = np.sort(few), np.sort(many)
    below = int(np.searchsorted(many, few, "left").sum()) + int(np.searchsorted(many, few, "right").sum())
    share = below / (2.0 * n0 * n1)
    return 1.0 - share if n0 < n1 else share


def auc_many(negatives: Array, positives: Array) -> NDArray[np.float64]:
    """`auc_of` of each row of float32 (K, n0) against (K, n1): one sort for all, (K,).

    IEEE bits are made to sort as integers do, with the label as one more, lowest bit.
    """
    n0, n1 = negatives.shape[1], positives.shape[1]
    bits = (np.concatenate([negatives, positives], axis=1) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64) << np.uint64(1)
    keys[:, n0:] |= np.uint64(1)
    keys.sort(axis=1)
    label = (keys & np.uint64(1)).astype(np.int64)
    wins = (np.cumsum(1 - label, axis=1) * label).sum(axis=1).astype(np.float64)  # a tie counted as a win
    value = keys >> np.uint64(1)
    same = value[:, 1:] == value[:, :-1]
    for row in np.flatnonzero(same.any(axis=1)):
        wins[row] -= 0.5 * _tied_pairs(value[row], label[row], same[row])
    return wins / (n0 * n1)


def _tied_pairs(value: Array, label: Array, same: Array) -> float:
    """Pairs of a positive and a negative with one value. float32 repeats now and then: look at those rows only."""
    tied = np.append(same, False) | np.append(False, same)
    value, label = value[tied], label[tied]
    starts = np.append(0, np.flatnonzero(value[1:] != value[:-1]) + 1)
    positive = np.add.reduceat(label, starts)
    return float((np.diff(np.append(starts, value.size)) - positive) @ positive)


def presorted_auc(truth: Array, pred: Array) -> Callable[[Array], float]:
    """The area under the ROC curve as a function of row weights, ties counted one half."""
    order, starts = _tie_groups(pred)
    positive = truth[order].astype(np.float64)

    def value(weight: Array) -> float:
        rows = weight[order]
        pos = rows * positive
        neg = rows - pos
        if starts is not None:
            pos, neg = np.add.reduceat(pos, starts), np.add.reduceat(neg, starts)
        below = np.cumsum(neg)
        pairs = below[-1] * pos.sum()
        return float(pos @ (below - 0.5 * neg) / pairs) if pairs > 0 else float("nan")

    return value


def presorted_bands(bands: Bands, scale: float, truth: Array, pred: Array) -> Callable[[Array], float]:
    """The area to the right of the ROC curve, weighted by bands of the true positive rate: exact, ties as slopes.

    bands: (upper end, weight) from 0 to 1, ascending. scale: what the whole is divided by.
    """
    order, starts = _tie_groups(-pred)
    positive = truth[order].astype(np.float64)
    ends = np.array([end for end, _ in bands])
    each = np.array([weight for _, weight in bands]) / scale

    def value(weight: Array) -> float:
        rows = weight[order]
        pos = rows * positive
        neg = rows - pos
        if starts is not None:
            pos, neg = np.add.reduceat(pos, starts), np.add.reduceat(neg, starts)
        ones, zeros = pos.sum(), neg.sum()
        if ones <= 0 or zeros <= 0:
            return float("nan")
        up, right = pos / ones, neg / zeros  # a step of the curve
        tpr, fpr = np.cumsum(up), np.cumsum(right) - right  # where it ends, and where it starts
        area = np.cumsum(up * (1 - fpr - 0.5 * right))
        at = np.minimum(np.searchsorted(tpr, ends - 1e-12), tpr.size - 1)
        part = np.clip((ends - tpr[at] + up[at]) / np.maximum(up[at], 1e-300), 0, 1)  # of the step that meets an end
        reached = area[at] - up[at] * (1 - fpr[at] - 0.5 * right[at])
        reached = reached + part * up[at] * (1 - fpr[at] - 0.5 * part * right[at])
        return float(each @ np.diff(reached, prepend=0.0))

    return value


def presorted_ap(truth: Array, pred: Array) -> Callable[[Array], float]:
    """Average precision as a function of row weights."""
    order, starts = _tie_groups(-pred)
    positive = truth[order].astype(np.float64)

    def value(weight: Array) -> float:
        rows = weight[order]
        pos = rows * positive
        if starts is not None:
            pos, rows = np.add.reduceat(pos, starts), np.add.reduceat(rows, starts)
        hits = np.cumsum(pos)
        if hits[-1] <= 0:
            return float("nan")
        return float(pos @ (hits / np.maximum(np.cumsum(rows), 1e-300)) / hits[-1])

    return value


def _tie_groups(pred: Array) -> tuple[Array, Array | None]:
    """Ascending order, and where each group of equal values starts (None where all differ)."""
    order = np.argsort(pred)
    ordered = pred[order]
    new = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, None if new.size == pred.size - 1 else np.concatenate([[0], new])


def auc(truth: Array, pred: Array, weight: Array | None) -> float:
    """Area under the ROC curve of bool (N,) truth."""
    if weight is None:
        return auc_of(pred[~truth], pred[truth])
    return presorted_auc(truth, pred)(weight)


def unsorted(presorted: Presorted) -> Of:
    """The metric of one column that sorts whenever it is called."""
    return lambda truth, pred, weight: presorted(truth, pred)(np.ones(truth.size) if weight is None else weight)


def pf1(truth: Array, pred: Array, weight: Array | None) -> float:
    """Probabilistic F1 as RSNA's host computes it: predictions are clipped to 0..1 and summed as counts."""
    rows = np.ones(truth.size) if weight is None else weight
    clipped = np.clip(pred, 0, 1).astype(np.float64)
    total, positives = clipped @ rows, rows @ truth
    hits = (clipped * truth) @ rows
    return float(2 * hits / (total + positives)) if positives > 0 else float("nan")


def columns(target: Array, pred: Array) -> Iterator[tuple[slice | Array, Array, Array]]:
    """(rows whose truth is known, their truth, their predictions) of each column."""
    if pred.ndim == 1:
        yield slice(None), target > 0.5, pred
        return
    for c in range(pred.shape[1]):
        rows = known_rows(target[:, c]) if target.ndim == 2 else slice(None)
        yield rows, (target[rows, c] > 0.5 if target.ndim == 2 else target == c), pred[rows, c]


def known_rows(truth: Array) -> slice | Array:
    """Which rows of a label's truth (N,) are no NaN: bool (N,), or a slice of all."""
    known = ~np.isnan(truth)
    return slice(None) if known.all() else known


def mean(values: list[float]) -> float:
    """Of those that are defined; NaN where none is."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def column_mean(of_column: Of) -> Function:
    """The plain mean over columns of a metric of one."""
    return lambda target, pred, weight: mean(
        [of_column(t, p, None if weight is None else weight[rows]) for rows, t, p in columns(target, pred)]
    )
