"""What a metric refuses before it counts: shapes, values, labels, truth that lacks a class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from foldwise import UserError
from foldwise.metrics.columns import columns
from foldwise.metrics.metric import Array, Metric, Undefined


def check(name: str, target: ArrayLike, pred: ArrayLike) -> tuple[Array, Array]:
    """Both as finite numeric arrays of matching shapes, or a UserError that says what does not fit."""
    truth, values = numbers(name, "target", target, np.ndim(target) == 2), numbers(name, "pred", pred)
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


def numbers(name: str, what: str, values: ArrayLike, gaps: bool = False) -> Array:
    """`values` as a numeric array, finite but for `gaps`: NaN."""
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


def check_task(metric: Metric, target: Array, pred: Array) -> None:
    """UserError where target and pred are of another task than the metric's, Undefined where it has no value."""
    if metric.tasks == frozenset({"any"}):
        return
    if metric.probability and (pred.min() < 0 or pred.max() > 1):
        low, high = float(pred.min()), float(pred.max())
        raise UserError(f"{metric.name}: predictions must be probabilities, found {low:.6g} to {high:.6g}")
    if "soft" in metric.tasks:
        _check_shares(metric, target)
    elif "regression" not in metric.tasks:
        _check_labels(metric, target, pred)
    elif np.isnan(target).any() or not (target.shape == pred.shape or (metric.spread and pred.shape[1:] == (2,))):
        raise UserError(f"{metric.name}: target {target.shape} and pred {pred.shape} do not fit together")
    if metric.outputs and metric.outputs != (pred.shape[1] if pred.ndim == 2 else 1):
        raise UserError(f"{metric.name}: its weights are for {metric.outputs} columns, pred is {pred.shape}")
    if metric.needs:
        _check_defined(metric, target, pred)


def _check_shares(metric: Metric, target: Array) -> None:
    sums = target.sum(axis=1, dtype=np.float64) if target.ndim == 2 else np.zeros(1)
    bad = ~(np.abs(sums - 1) < 1e-3) | (target.reshape(len(sums), -1).min(axis=1) < 0)
    if bad.any():
        raise UserError(
            f"{metric.name}: target must be (N, C) shares that sum to one, found {target.shape}, row "
            f"{int(np.argmax(bad))} with a sum of {sums[np.argmax(bad)]:g}"
        )


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
    for number, (_, truth, _) in enumerate(columns(target, pred)):
        labels = {"1"} if truth.all() else {"0", "1"} if truth.any() else {"0"}
        if not set(metric.needs) <= labels:
            where = "target" if pred.ndim == 1 else f"column {number} of target"
            raise Undefined(f"{metric.name} is undefined: {where} holds one class only ({min(labels)})")


def _odd(target: Array) -> str:
    fractional = target[target != np.floor(target)]
    return f"{float(fractional[0] if fractional.size else target.flat[0]):g}"
