"""Competition metrics: (truth, prediction) -> float, exact with ties, and which direction is better.

Shapes, the same for every metric:

    binary      target (N,) of 0/1            pred (N,) scores
    multiclass  target (N,) of class indices  pred (N, C) scores, or (N,) values that are rounded to a class
    multilabel  target (N, C) of 0/1          pred (N, C) scores
    regression  target (N,) or (N, C)         pred of the same shape

A multilabel target may hold NaN: cells that nobody knows, which have no part in the value (a metric of one's own
gets them as they are).

Where a metric is defined for one column, several columns (one-vs-rest for classes) give the plain mean; so accuracy of
multilabel targets is the share of right cells, where scikit-learn's asks for whole rows.
`score` checks its input. `resampler` and `auc_of` are the unchecked parts that the bootstrap and the blender
call thousands of times.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foldwise import UserError
from foldwise.core.schema import nearest

Array = NDArray[Any]
Function = Callable[[Array, Array, Array | None], float]


class Undefined(UserError):
    """The metric has no value on these rows: a class is missing."""


@dataclass(frozen=True)
class Metric:
    """A metric as the blender sees it. `function(target, pred, weight)` trusts its input.

    `needs` are the labels that every column must hold for the value to exist: "01" both, "1" a positive.
    `order_only` metrics see the order of the rows and nothing else; `decides` metrics see labels only;
    `probability` metrics refuse predictions outside 0..1; `ordered` metrics measure how far apart classes are. own: the
    bare function(target, pred) of a `module:function`, where `function` gives NaN for rows on which that raises.
    """

    name: str
    function: Function
    greater_is_better: bool = True
    needs: str = ""
    order_only: bool = False
    decides: bool = False
    probability: bool = False
    ordered: bool = False
    tasks: frozenset[str] = field(default=frozenset({"binary", "multiclass", "multilabel"}))
    own: Callable[[Array, Array], Any] | None = None


# --- the public calls --------------------------------------------------------------------------------------


def score(metric: str | Metric, target: ArrayLike, pred: ArrayLike, weight: ArrayLike | None = None) -> float:
    """`metric`, or the one of that name, of `pred` against `target` (shapes above), in the metric's own direction.

    weight: (N,) non-negative row weights or counts, not all 0, optional.
    Raises UserError for unknown names, NaN or infinite values, shapes that differ, labels out of range; Undefined for
    truth on which the metric has no value (one class only).
    """
    metric = resolve(metric)
    truth, values = check(metric.name, target, pred)
    _check_task(metric, truth, values)
    rows = None if weight is None else _numbers(metric.name, "weight", weight)
    if rows is not None and (rows.shape != truth.shape[:1] or rows.min() < 0 or not rows.any()):
        raise UserError(f"{metric.name}: weight must be {truth.shape[0]} non-negative numbers, not 0 for all")
    value = float(metric.function(truth, values, rows))
    if metric.own is not None and np.isnan(value):
        raise Undefined(f"metric '{metric.name}' has no value on these rows{_reason(metric.own, truth, values)}")
    return value


def greater_is_better(metric: str | Metric) -> bool:
    """Whether a larger value of the metric is better."""
    return resolve(metric).greater_is_better


def resolve(metric: str | Metric) -> Metric:
    """The metric of that name or alias, `map@K`, or `module:function` of one's own (see `own`); a Metric as it is."""
    if isinstance(metric, Metric):
        return metric
    if ":" in metric:
        return own(metric)
    key = metric.strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    top = re.fullmatch(r"map@?(\d+)", key)
    if top and int(top[1]) > 0:
        tasks = frozenset({"multiclass", "multilabel"})
        return Metric(f"map@{top[1]}", partial(_map_at, int(top[1])), tasks=tasks)
    if key not in METRICS:
        hint = nearest(key, [*METRICS, *ALIASES, "map@3"])
        raise UserError(f"metric '{metric}' is not known{hint} (or 'module:function' for your own)")
    return METRICS[key]


def resampler(metric: Metric, target: Array, pred: Array) -> Callable[[Array], float]:
    """A function of row weights (N,) to the metric; AUC and average precision sort only once."""
    inner = {"roc_auc": _presorted_auc, "average_precision": _presorted_ap}.get(metric.name)
    if inner is None:
        return lambda weight: float(metric.function(target, pred, weight))
    columns = [(rows, inner(truth, values)) for rows, truth, values in _columns(target, pred)]
    return lambda weight: _mean([column(weight[rows]) for rows, column in columns])


def task_of(target: Array, pred: Array) -> str:
    """binary, multiclass, multilabel or regression, told from shapes and values."""
    if target.ndim == 2:
        return "multilabel" if (np.isin(target, (0, 1)) | np.isnan(target)).all() else "regression"
    if pred.ndim == 2:
        return "multiclass"
    return "binary" if np.isin(target, (0, 1)).all() else "regression"


# --- checks ------------------------------------------------------------------------------------------------


def check(name: str, target: ArrayLike, pred: ArrayLike) -> tuple[Array, Array]:
    """Both as finite numeric arrays of matching shapes, or a UserError that says what does not fit."""
    truth, values = _numbers(name, "target", target, np.ndim(target) == 2), _numbers(name, "pred", pred)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if truth.ndim == 2 and truth.shape[1] == 1:
        truth = truth[:, 0]
    fits = truth.shape == values.shape or (truth.ndim == 1 and values.ndim == 2)
    if not fits or truth.ndim not in (1, 2) or truth.shape[0] != values.shape[0]:
        raise UserError(f"{name}: target {truth.shape} and pred {values.shape} do not fit together")
    if truth.shape[0] == 0:
        raise UserError(f"{name}: no rows to score")
    return truth, values


def _numbers(name: str, what: str, values: ArrayLike, gaps: bool = False) -> Array:
    array = np.asarray(values)
    if array.dtype == bool or array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{name}: {what} holds something that is not a number") from None
    if array.dtype.kind not in "fiu":
        raise UserError(f"{name}: {what} holds {array.dtype.name} values; numbers are needed")
    bad = ~np.isfinite(array) & ~(np.isnan(array) & gaps) if array.dtype.kind == "f" else np.zeros(1, bool)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise UserError(f"{name}: {what} holds NaN or infinite values (the first at row {row})")
    return array


def _check_task(metric: Metric, target: Array, pred: Array) -> None:
    if metric.tasks == frozenset({"any"}):
        return
    if metric.probability and (pred.min() < 0 or pred.max() > 1):
        low, high = float(pred.min()), float(pred.max())
        raise UserError(f"{metric.name}: predictions must be probabilities, found {low:.6g} to {high:.6g}")
    if "regression" not in metric.tasks:
        _check_labels(metric, target, pred)
    elif target.shape != pred.shape or np.isnan(target).any():
        raise UserError(f"{metric.name}: target {target.shape} and pred {pred.shape} do not fit together")
    if metric.needs:
        _check_defined(metric, target, pred)


def _check_labels(metric: Metric, target: Array, pred: Array) -> None:
    labels = target[~np.isnan(target)]
    if not labels.size:
        raise Undefined(f"{metric.name} is undefined: no label is known")
    if (labels != np.floor(labels)).any():
        raise UserError(f"{metric.name}: target must hold class indices, found {_odd(labels)}")
    low, high = int(labels.min()), int(labels.max())
    if target.ndim == 2 or (pred.ndim == 1 and "ordinal" not in metric.tasks):
        allowed = 2
    else:
        allowed = pred.shape[1] if pred.ndim == 2 else high + 1
    if high >= allowed or (low < 0 and "ordinal" not in metric.tasks):
        hint = " (several classes need pred of shape (N, C))" if pred.ndim == 1 else ""
        raise UserError(f"{metric.name}: target holds {low} to {high}, expected 0 to {allowed - 1}{hint}")
    task = "multilabel" if target.ndim == 2 else "multiclass" if pred.ndim == 2 else "binary"
    if task not in metric.tasks and not (task == "multiclass" and pred.shape[1] == 2 and metric.decides):
        known = " or ".join(sorted(metric.tasks - {"ordinal"}))
        raise UserError(f"{metric.name} is for {known} targets; this one is {task}")


def _check_defined(metric: Metric, target: Array, pred: Array) -> None:
    if metric.needs == "2":
        if np.nanmin(target) == np.nanmax(target):
            raise Undefined(f"{metric.name} is undefined: target holds one class only ({np.nanmin(target):g})")
        return
    for number, (_, truth, _) in enumerate(_columns(target, pred)):
        labels = {"1"} if truth.all() else {"0", "1"} if truth.any() else {"0"}
        if not set(metric.needs) <= labels:
            where = "target" if pred.ndim == 1 else f"column {number} of target"
            raise Undefined(f"{metric.name} is undefined: {where} holds one class only ({min(labels)})")


def _odd(target: Array) -> str:
    fractional = target[target != np.floor(target)]
    return f"{float(fractional[0] if fractional.size else target.flat[0]):g}"


# --- metrics of one column ----------------------------------------------------------------------------------


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


def _presorted_auc(truth: Array, pred: Array) -> Callable[[Array], float]:
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


def _presorted_ap(truth: Array, pred: Array) -> Callable[[Array], float]:
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


def _auc(truth: Array, pred: Array, weight: Array | None) -> float:
    if weight is None:
        return auc_of(pred[~truth], pred[truth])
    return _presorted_auc(truth, pred)(weight)


def _ap(truth: Array, pred: Array, weight: Array | None) -> float:
    return _presorted_ap(truth, pred)(np.ones(truth.size) if weight is None else weight)


def _pf1(truth: Array, pred: Array, weight: Array | None) -> float:
    """Probabilistic F1 as RSNA's host computes it: predictions are clipped to 0..1 and summed as counts."""
    rows = np.ones(truth.size) if weight is None else weight
    clipped = np.clip(pred, 0, 1).astype(np.float64)
    total, positives = clipped @ rows, rows @ truth
    hits = (clipped * truth) @ rows
    return float(2 * hits / (total + positives)) if positives > 0 else float("nan")


def _columns(target: Array, pred: Array) -> Iterator[tuple[slice | Array, Array, Array]]:
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


def _mean(values: list[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def _column_mean(of_column: Callable[[Array, Array, Array | None], float]) -> Function:
    return lambda target, pred, weight: _mean(
        [of_column(t, p, None if weight is None else weight[rows]) for rows, t, p in _columns(target, pred)]
    )


# --- metrics of rows ----------------------------------------------------------------------------------------


def _log_loss(target: Array, pred: Array, weight: Array | None) -> float:
    """Natural log; probabilities clipped by the machine epsilon; class rows scaled to sum to one first."""
    eps = np.finfo(np.float64).eps
    if target.ndim == 1 and pred.ndim == 2:
        chosen = np.take_along_axis(pred, target.astype(np.int64)[:, None], axis=1)[:, 0].astype(np.float64)
        right = chosen / np.maximum(pred.sum(axis=1, dtype=np.float64), eps)
    else:
        right = np.where(target > 0.5, pred, 1.0 - pred.astype(np.float64))
        if target.ndim == 2:
            right, weight = _known_cells(target, right, weight)[1:]
    return _row_mean(-np.log(np.clip(right, eps, 1.0)), weight)


def _known_cells(target: Array, pred: Array, weight: Array | None) -> tuple[Array, Array, Array | None]:
    """Target, predictions and weights of single cells where some are not known; as they come where all are."""
    known = ~np.isnan(target)
    if known.all():
        return target, pred, weight
    cells = None if weight is None else np.broadcast_to(weight if target.ndim == 1 else weight[:, None], known.shape)
    return target[known], pred[known], None if cells is None else cells[known]


def _row_mean(values: Array, weight: Array | None) -> float:
    rows = values.mean(axis=1, dtype=np.float64) if values.ndim == 2 else values
    return float(rows.mean(dtype=np.float64) if weight is None else rows @ weight / weight.sum())


def _rmse(target: Array, pred: Array, weight: Array | None) -> float:
    squares = np.square(pred.astype(np.float64) - target)
    if squares.ndim == 1:
        return float(np.sqrt(_row_mean(squares, weight)))
    return float(np.mean(np.sqrt(np.average(squares, axis=0, weights=weight))))


def _mae(target: Array, pred: Array, weight: Array | None) -> float:
    return _row_mean(np.abs(pred.astype(np.float64) - target), weight)


def _map_at(k: int, target: Array, pred: Array, weight: Array | None) -> float:
    """Mean average precision at k; equal scores are taken in column order, as a submission lists them."""
    if target.ndim == 1:
        index = target.astype(np.int64)[:, None]
        own = np.take_along_axis(pred, index, axis=1)
        earlier = np.arange(pred.shape[1]) < index
        rank = 1 + ((pred > own) | ((pred == own) & earlier)).sum(axis=1)
        return _row_mean(np.where(rank <= k, 1.0 / rank, 0.0), weight)
    order = np.argsort(-np.where(np.isnan(target), -np.inf, pred), axis=1, kind="stable")[:, :k]
    hit = np.take_along_axis(target, order, axis=1) > 0.5
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    possible = np.minimum((target > 0.5).sum(axis=1), k)
    return _row_mean((precision * hit).sum(axis=1) / np.maximum(possible, 1), weight)


# --- metrics of labels --------------------------------------------------------------------------------------


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


def _of_labels(of_confusion: Callable[[Array], float]) -> Function:
    """A metric of the confusion matrix; several binary columns give the mean over columns."""

    def function(target: Array, pred: Array, weight: Array | None) -> float:
        if target.ndim == 1:
            return of_confusion(_confusion(target, pred, weight))
        counts = [
            _confusion(truth, values, None if weight is None else weight[rows])
            for rows, truth, values in _columns(target, pred)
            if truth.size
        ]
        return float(np.mean([of_confusion(each) for each in counts]))

    return function


def _accuracy(counts: Array) -> float:
    return float(np.trace(counts) / counts.sum())


def _balanced_accuracy(counts: Array) -> float:
    support = counts.sum(axis=1)
    return float(np.mean(np.diag(counts)[support > 0] / support[support > 0]))


def _f1_each(counts: Array) -> Array:
    """F1 of every class that truth or prediction holds; 0 where it is never hit."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return 2 * np.diag(counts)[both > 0] / both[both > 0]


def _f1_macro(counts: Array) -> float:
    return float(_f1_each(counts).mean())


def _f1(counts: Array) -> float:
    hits, both = counts[1:2, 1:2].sum(), counts[:, 1:2].sum() + counts[1:2].sum()
    return float(2 * hits / both) if both > 0 else 0.0


def _f1_micro(target: Array, pred: Array, weight: Array | None) -> float:
    if target.ndim == 1:
        return _accuracy(_confusion(target, pred, weight))
    rows = None if weight is None else np.repeat(weight, target.shape[1])
    return _f1(_confusion(*_known_cells(target.ravel(), pred.ravel(), rows)))


def _f1_columns(target: Array, pred: Array, weight: Array | None) -> float:
    if target.ndim == 1:
        return _f1_macro(_confusion(target, pred, weight))
    return _of_labels(_f1)(target, pred, weight)


def _kappa(counts: Array, quadratic: bool) -> float:
    """Cohen's kappa, plain (1960) or with squared distances (1968); NaN where both hold one and the same class."""
    k = np.arange(counts.shape[0])
    distance = np.abs(k[:, None] - k[None, :])
    distance = np.square(distance) if quadratic else distance > 0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    worst = (distance * expected).sum()
    return float(1.0 - (distance * counts).sum() / worst) if worst > 0 else float("nan")


# --- the registry -------------------------------------------------------------------------------------------

_LABELS = frozenset({"binary", "multiclass", "multilabel", "ordinal"})
_NUMBERS = frozenset({"regression"})
_ONE = frozenset({"binary", "multilabel"})

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("roc_auc", _column_mean(_auc), needs="01", order_only=True),
        Metric("average_precision", _column_mean(_ap), needs="1", order_only=True),
        Metric("log_loss", _log_loss, greater_is_better=False, probability=True),
        Metric("accuracy", _of_labels(_accuracy), decides=True, tasks=_LABELS),
        Metric("balanced_accuracy", _of_labels(_balanced_accuracy), decides=True, tasks=_LABELS),
        Metric("f1", _of_labels(_f1), decides=True, tasks=_ONE),
        Metric("f1_macro", _f1_columns, decides=True, tasks=_LABELS),
        Metric("f1_micro", _f1_micro, decides=True, tasks=_LABELS),
        Metric("pf1", _column_mean(_pf1), needs="1", tasks=_ONE),
        Metric("cohen_kappa", _of_labels(partial(_kappa, quadratic=False)), decides=True, needs="2", tasks=_LABELS),
        Metric(
            "quadratic_weighted_kappa",
            _of_labels(partial(_kappa, quadratic=True)),
            decides=True,
            needs="2",
            ordered=True,
            tasks=_LABELS,
        ),
        Metric("rmse", _rmse, greater_is_better=False, tasks=_NUMBERS),
        Metric("mae", _mae, greater_is_better=False, tasks=_NUMBERS),
    )
}

ALIASES = {
    "auc": "roc_auc",
    "rocauc": "roc_auc",
    "auroc": "roc_auc",
    "roc_auc_score": "roc_auc",
    "logloss": "log_loss",
    "cross_entropy": "log_loss",
    "bce": "log_loss",
    "nll": "log_loss",
    "acc": "accuracy",
    "bacc": "balanced_accuracy",
    "ap": "average_precision",
    "pr_auc": "average_precision",
    "auprc": "average_precision",
    "f1_score": "f1",
    "f1_binary": "f1",
    "macro_f1": "f1_macro",
    "micro_f1": "f1_micro",
    "probabilistic_f1": "pf1",
    "probabilistic_f1_score": "pf1",
    "pfbeta": "pf1",
    "qwk": "quadratic_weighted_kappa",
    "quadratic_kappa": "quadratic_weighted_kappa",
    "kappa": "cohen_kappa",
    "cohen_kappa_score": "cohen_kappa",
    "root_mean_squared_error": "rmse",
    "mean_absolute_error": "mae",
}


# --- one's own ----------------------------------------------------------------------------------------------

MAXIMISED, MINIMISED = ("_score",), ("_loss", "_error", "_deviance")  # scikit-learn's names, by its own convention


def own(
    name: str, beside: Path = Path(), greater_is_better: bool | None = None, order_only: bool | None = None
) -> Metric:
    """`module:function`, called as function(target, pred); the module is a .py file in the folder `beside`, else in
    the current one, else what Python can import.

    greater_is_better, order_only: what the competition file declares; else attributes of the function. A direction
    that neither declares is known for scikit-learn's names only: UserError says how to declare it.
    """
    module_name, _, function_name = name.rpartition(":")
    plain = getattr(_load(module_name, name, beside), function_name, None)
    if not callable(plain):
        raise UserError(f"metric '{name}': {module_name} has no function '{function_name}'")
    up = getattr(plain, "greater_is_better", None) if greater_is_better is None else greater_is_better
    up = _direction_in_scikit_learn(function_name) if up is None else up
    if up is None:
        raise UserError(
            f"metric '{name}': is more of it better? Write `metric: {{function: '{name}', greater_is_better: false}}` "
            f"(or true) in the competition file, or {function_name}.greater_is_better = False below the function"
        )
    ranks = getattr(plain, "order_only", False) if order_only is None else order_only
    return Metric(
        name, partial(_where_it_exists, plain), bool(up), order_only=bool(ranks), tasks=frozenset({"any"}), own=plain
    )


def _direction_in_scikit_learn(function_name: str) -> bool | None:
    import sklearn.metrics

    if function_name not in sklearn.metrics.__all__ or not function_name.endswith(MAXIMISED + MINIMISED):
        return None
    return function_name.endswith(MAXIMISED)


def _where_it_exists(plain: Callable[[Array, Array], Any], target: Array, pred: Array, weight: Array | None) -> float:
    """Rows repeated by weight; NaN where the function raises (`rehearse` has shown that it can do better)."""
    rows = slice(None) if weight is None else np.repeat(np.arange(len(target)), np.asarray(weight).astype(np.int64))
    try:
        return float(plain(target[rows], pred[rows]))
    except Exception:
        return float("nan")


def _reason(plain: Callable[[Array, Array], Any], target: Array, pred: Array) -> str:
    try:
        plain(target, pred)
    except Exception as error:
        return f": {type(error).__name__}: {error}"
    return ""


def rehearse(metric: Metric, target: Array, classes: int, task: str) -> None:
    """Call a metric of one's own on the truth and made-up predictions; UserError says what it did instead of scoring.

    target: as above. classes: of a multiclass task.
    """
    if metric.own is None:
        return
    rng = np.random.default_rng(0)
    pred = rng.permutation(target) if task == "regression" else rng.random(target.shape)
    if task == "multiclass":
        pred = rng.dirichlet(np.ones(classes), len(target))
    asked = f"metric '{metric.name}', called with target {target.shape} and pred {pred.shape} ({task}), "
    try:
        value = float(metric.own(target, pred))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = frames[min(1, len(frames) - 1)]  # its own function, where it is reached
        said = f"{type(error).__name__}: {error} ({line.filename}, line {line.lineno})"
        raise UserError(f"{asked}raises {said}") from None
    if not np.isfinite(value):
        raise UserError(f"{asked}gives back {value}; a finite number is needed")


def _load(module_name: str, name: str, beside: Path) -> Any:
    """The module of a metric, by its file, so that two files of one name are two modules."""
    file = module_name.removesuffix(".py") + ".py"
    path = next((place.resolve() for place in (beside / file, Path(file)) if place.is_file()), None)
    try:
        if path is None:
            return importlib.import_module(module_name)
        key = f"foldwise_metric_{path.stem}_{abs(hash(str(path)))}"
        if key not in sys.modules:
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None  # it ends in .py
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[key] = module
        return sys.modules[key]
    except Exception as error:  # whatever the file does when it is run
        where = f"{path}: " if path else f"no {file} in {beside.resolve()} or here, and "
        raise UserError(f"metric '{name}': {where}can't be imported ({type(error).__name__}: {error})") from None
