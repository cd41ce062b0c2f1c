"""Metrics that are a mean over rows, or over known cells."""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr

from foldwise.metrics.metric import Array

CLIP = 1e-15  # Kaggle's, for probabilities whose logarithm is taken


def log_loss(target: Array, pred: Array, weight: Array | None) -> float:
    """Natural log; probabilities clipped by the machine epsilon; class rows scaled to sum to one first."""
    right = _of_the_truth(target, pred)
    if target.ndim == 2:
        right, weight = known_cells(target, right, weight)[1:]
    return row_mean(-np.log(np.clip(right, np.finfo(np.float64).eps, 1.0)), weight)


def _of_the_truth(target: Array, pred: Array) -> Array:
    """The probability given to what came true, (N,) or (N, C)."""
    if target.ndim == 1 and pred.ndim == 2:
        chosen = np.take_along_axis(pred, target.astype(np.int64)[:, None], axis=1)[:, 0].astype(np.float64)
        return chosen / np.maximum(pred.sum(axis=1, dtype=np.float64), np.finfo(np.float64).eps)
    return np.where(target > 0.5, pred, 1.0 - pred.astype(np.float64))


def weighted_log_loss(weights: Array, by_row: bool, target: Array, pred: Array, weight: Array | None) -> float:
    """Log loss of cells that weigh by what is true, over the sum of those weights; probabilities clipped at CLIP.

    weights: (classes,), or (columns, 2) for 0 and 1. by_row: several columns' weights are scaled to sum to one in each
    row first.
    """
    loss = -np.log(np.clip(_of_the_truth(target, pred), CLIP, 1.0)).reshape(len(target), -1)
    if weights.ndim == 1:
        cells = weights[target.astype(np.int64)][:, None]
    else:
        truth = target.reshape(loss.shape)
        cells = np.where(truth > 0.5, weights[:, 1], weights[:, 0]) * ~np.isnan(truth)
    rows, every = (cells * loss).sum(axis=1), cells.sum(axis=1)
    if by_row and target.ndim == 2:
        rows, every = rows / np.maximum(every, 1e-300), (every > 0).astype(np.float64)
    count = np.ones(len(target)) if weight is None else weight
    total = every @ count
    return float(rows @ count / total) if total > 0 else float("nan")


def kl_divergence(target: Array, pred: Array, weight: Array | None) -> float:
    """Mean over rows of sum p log(p / q), p the shares in target; rows of pred are scaled to sum to one first."""
    q = pred / np.maximum(pred.sum(axis=1, keepdims=True, dtype=np.float64), CLIP)
    return row_mean(rel_entr(target.astype(np.float64), np.clip(q, CLIP, 1 - CLIP)).sum(axis=1), weight)


def known_cells(target: Array, pred: Array, weight: Array | None) -> tuple[Array, Array, Array | None]:
    """Target, predictions and weights of single cells where some are not known; as they come where all are."""
    known = ~np.isnan(target)
    if known.all():
        return target, pred, weight
    cells = None if weight is None else np.broadcast_to(weight if target.ndim == 1 else weight[:, None], known.shape)
    return target[known], pred[known], None if cells is None else cells[known]


def row_mean(values: Array, weight: Array | None) -> float:
    """The weighted mean of (N,), or of the rows' means of (N, C)."""
    rows = values.mean(axis=1, dtype=np.float64) if values.ndim == 2 else values
    return float(rows.mean(dtype=np.float64) if weight is None else rows @ weight / weight.sum())


def rmse(target: Array, pred: Array, weight: Array | None) -> float:
    """Root mean squared error; of several columns, the mean of theirs."""
    squares = np.square(pred.astype(np.float64) - target)
    if squares.ndim == 1:
        return float(np.sqrt(row_mean(squares, weight)))
    return float(np.mean(np.sqrt(np.average(squares, axis=0, weights=weight))))


def mae(target: Array, pred: Array, weight: Array | None) -> float:
    """Mean absolute error."""
    return row_mean(np.abs(pred.astype(np.float64) - target), weight)


def laplace(least: float, largest: float, target: Array, pred: Array, weight: Array | None) -> float:
    """Laplace log likelihood: -sqrt(2) |error| / sigma - log(sqrt(2) sigma), the larger the better.

    least: sigma is no smaller; largest: an error is no larger. pred (N, 2): value and sigma; (N,): values, with the
    one sigma that is best for them.
    """
    value, sigma = (pred[:, 0], pred[:, 1]) if pred.ndim > target.ndim else (pred, None)
    error = np.minimum(np.abs(value.astype(np.float64) - target), largest)
    spread = np.maximum(np.sqrt(2) * row_mean(error, weight) if sigma is None else sigma, least)
    return row_mean(-np.sqrt(2) * error / spread - np.log(np.sqrt(2) * spread), weight)


def map_at(k: int, target: Array, pred: Array, weight: Array | None) -> float:
    """Mean average precision at k; equal scores are taken in column order, as a submission lists them."""
    if target.ndim == 1:
        rank = _rank_of_truth(target, pred)
        return row_mean(np.where(rank <= k, 1.0 / rank, 0.0), weight)
    order = np.argsort(-np.where(np.isnan(target), -np.inf, pred), axis=1, kind="stable")[:, :k]
    hit = np.take_along_axis(target, order, axis=1) > 0.5
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    possible = np.minimum((target > 0.5).sum(axis=1), k)
    return row_mean((precision * hit).sum(axis=1) / np.maximum(possible, 1), weight)


def top_k_error(k: int, target: Array, pred: Array, weight: Array | None) -> float:
    """The share of rows whose class is not among the k likeliest; equal scores are taken in column order."""
    return row_mean((_rank_of_truth(target, pred) > k).astype(np.float64), weight)


def _rank_of_truth(target: Array, pred: Array) -> Array:
    """(N,) from 1 on; equal scores are taken in column order."""
    index = target.astype(np.int64)[:, None]
    own = np.take_along_axis(pred, index, axis=1)
    earlier = np.arange(pred.shape[1]) < index
    return 1 + ((pred > own) | ((pred == own) & earlier)).sum(axis=1)


def lrap(target: Array, pred: Array, weight: Array | None) -> float:
    """Label ranking average precision: of each true label, the share of true ones among those scored as high.

    Equal scores share the last of their places; a row without a true label counts as 1, as scikit-learn has it.
    """
    scores = np.where(np.isnan(target), -np.inf, pred)
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    hit = np.take_along_axis(target, order, axis=1) > 0.5
    place, last = np.arange(hit.shape[1]), np.full(hit.shape, hit.shape[1] - 1)
    last[:, :-1] = np.where(ordered[:, 1:] != ordered[:, :-1], place[:-1], place[-1])
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(np.cumsum(hit, axis=1), last, axis=1) / (last + 1)
    positives = hit.sum(axis=1)
    return row_mean(np.where(positives, (precision * hit).sum(axis=1) / np.maximum(positives, 1), 1.0), weight)
