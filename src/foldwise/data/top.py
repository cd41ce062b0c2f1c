"""Predictions of many classes: of each row the likeliest, and what is left for each of the others.

As an array float32 (N, 2k + 1): k class numbers, likeliest first, their probabilities, the mean of the others' (class
numbers are whole in float32 up to 2^24). As columns: class_top1.., pred_top1.., pred_rest, and target_code where the
truth is known. Dense tables of 15,501 classes and 840,000 rows would be 52 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import UserError, metrics

Array = NDArray[np.floating]
Codes = NDArray[np.integer]

MANY = 1000  # classes from which only the likeliest are kept
KEPT = 100  # of each row: beyond, a softmax has less than rounding leaves
CHUNK = 1 << 16  # rows whose scores are made at once
SCORED = "accuracy, balanced_accuracy, f1_micro, f1_macro, log_loss, map@K, top_k_error@K"


def is_top(table: pd.DataFrame) -> bool:
    """Whether a prediction table holds the likeliest classes instead of a column a class."""
    return "class_top1" in table


def keep(pred: Array) -> Array:
    """Probabilities (N, C) -> (N, 2k + 1), equal ones by their class number."""
    k = min(KEPT, pred.shape[1])
    some = np.argpartition(-pred, k - 1, axis=1)[:, :k] if k < pred.shape[1] else np.tile(np.arange(k), (len(pred), 1))
    codes = np.sort(some, axis=1)
    values = np.take_along_axis(pred, codes, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    codes, values = (np.take_along_axis(one, order, axis=1) for one in (codes, values))
    rest = (pred.sum(axis=1, keepdims=True) - values.sum(axis=1, keepdims=True)) / max(1, pred.shape[1] - k)
    return np.concatenate([codes, values, np.maximum(rest, 0)], axis=1).astype(np.float32)


def split(top: Array) -> tuple[Codes, Array, Array]:
    """Class numbers int64 (N, k), their probabilities (N, k), each other's (N,)."""
    k = top.shape[1] // 2
    return top[:, :k].astype(np.int64), top[:, k : 2 * k], top[:, -1]


def columns(top: Array) -> dict[str, NDArray[np.generic]]:
    """The columns of a table."""
    codes, values, rest = split(top)
    named: dict[str, NDArray[np.generic]] = {
        f"class_top{j + 1}": codes[:, j].astype(np.int32) for j in range(codes.shape[1])
    }
    return named | {f"pred_top{j + 1}": values[:, j] for j in range(codes.shape[1])} | {"pred_rest": rest}


def array(table: pd.DataFrame) -> Array:
    """The array of a table's columns."""
    k = sum(name.startswith("class_top") for name in table)
    names = [f"{kind}_top{j + 1}" for kind in ("class", "pred") for j in range(k)]
    return table[[*names, "pred_rest"]].to_numpy(dtype=np.float32)


def merge(tops: Sequence[Array], truth: Codes | None = None) -> tuple[Codes, Array]:
    """The classes that any of M predictions keeps, int64 (N, U) with -1 where there are fewer, and what each says of
    them, float32 (M, N, U): its own value, or its rest. truth (N,): a class that is one of them in any case.
    """
    rows = np.arange(len(tops[0]))
    every = [split(top)[0] for top in tops] + ([] if truth is None else [truth.reshape(-1, 1)])
    codes = np.sort(np.concatenate(every, axis=1), axis=1)
    fresh = np.concatenate([np.ones((len(codes), 1), bool), codes[:, 1:] != codes[:, :-1]], axis=1)
    slots = np.full((len(codes), int(fresh.sum(axis=1).max())), -1, np.int64)
    at = fresh.cumsum(axis=1) - 1
    slots[np.repeat(rows, fresh.sum(axis=1)), at[fresh]] = codes[fresh]
    said = np.empty((len(tops), *slots.shape), np.float32)
    bound = np.iinfo(np.int32).max
    keys = (np.where(slots < 0, bound, slots) + rows[:, None] * (bound + 1)).ravel()
    for m, top in enumerate(tops):
        own, values, rest = split(top)
        said[m] = np.where(slots < 0, 0, rest[:, None])
        place = np.searchsorted(keys, (own + rows[:, None] * (bound + 1)).ravel())
        said[m].ravel()[place] = values.ravel()
    return slots, said


def mean(tops: Sequence[Array]) -> Array:
    """The mean of predictions, as one."""
    if len(tops) == 1:
        return tops[0]
    slots, said = merge(tops)
    return _kept(slots, said.mean(axis=0), np.mean([split(top)[2] for top in tops], axis=0), tops[0].shape[1] // 2)


def of_slots_kept(slots: Codes, values: Array) -> Array:
    """The likeliest of each row's classes (N, U), as an array."""
    return _kept(slots, values, np.zeros(len(slots)), min(KEPT, slots.shape[1]))


def narrowed(top: Array, k: int) -> Array:
    """The same with fewer classes a row."""
    codes, values, rest = split(top)
    return np.concatenate([codes[:, :k], values[:, :k], rest[:, None]], axis=1).astype(np.float32)


def _kept(slots: Codes, values: Array, rest: Array, k: int) -> Array:
    order = np.argsort(np.where(slots < 0, np.inf, -values), axis=1, kind="stable")[:, :k]
    codes, kept = (np.take_along_axis(one, order, axis=1) for one in (slots, values))
    kept = np.where(codes < 0, 0, kept)
    return np.concatenate([np.maximum(codes, 0), kept, rest[:, None]], axis=1).astype(np.float32)


def score(metric: metrics.Metric, truth: Codes, top: Array) -> float:
    """The metric of the classes kept; of a class that is not, its share of the rest counts."""
    codes, _, _ = split(top)
    if metric.name in {"f1_macro", "balanced_accuracy"}:
        return _by_class(metric.name, truth, codes[:, 0])
    judge, parts = of_slots(metric), range(0, len(top), CHUNK)  # each of them is a mean over rows
    values = [_score(judge, truth[start : start + CHUNK], top[start : start + CHUNK]) for start in parts]
    return float(np.average(values, weights=[len(top[start : start + CHUNK]) for start in parts]))


def _score(metric: metrics.Metric, truth: Codes, top: Array) -> float:
    slots, said = merge([top], truth)
    rest = np.maximum(1 - said[0].sum(axis=1, keepdims=True), 0)
    return float(metric.function(place(slots, truth), np.concatenate([said[0], rest], axis=1), None))


def _by_class(name: str, truth: Codes, label: Codes) -> float:
    count = int(max(truth.max(), label.max())) + 1
    hits = np.bincount(truth[truth == label], minlength=count)
    held, said = np.bincount(truth, minlength=count), np.bincount(label, minlength=count)
    if name == "balanced_accuracy":
        return float((hits[held > 0] / held[held > 0]).mean())
    there = held + said > 0
    return float((2 * hits[there] / (held + said)[there]).mean())


def of_slots(metric: metrics.Metric) -> metrics.Metric:
    """The metric for places among a row's classes, whose last place is what all others share: it is never the answer
    of a metric of labels. What goes by single classes over rows is stood in for by accuracy.
    """
    if metric.name in {"f1_macro", "f1_micro", "balanced_accuracy"}:
        return of_slots(metrics.resolve("accuracy"))
    if metric.name == "log_loss":
        return metric
    if metric.name != "accuracy" and not metric.name.startswith(("map@", "top_k_error@")):
        raise UserError(f"metric {metric.name}: not for more than {MANY} classes; these are: {SCORED}")
    inner = metric.function
    return replace(metric, function=lambda truth, pred, weight: inner(truth, pred[:, :-1], weight))


def place(slots: Codes, truth: Codes) -> Codes:
    """Where the true class stands among a row's."""
    return (slots == truth[:, None]).argmax(axis=1)
