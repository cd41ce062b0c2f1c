"""Statistics that several rooms share, one of each: bootstrap, paired gain, calibration, adversarial AUC, Newton.

Arrays in, arrays and plain numbers out: nothing here knows a competition, a run or a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from foldwise.core import parallel
from foldwise.metrics import Metric, known_rows, resampler

Array = NDArray[Any]
# Draws of rows leave out that folds share their models' rows, so that one draw of labels moves all folds together
# (Nadeau & Bengio 2003; no unbiased estimate exists, Bengio & Grandvalet 2004). Measured by bench/trust.py: errors of
# learners' OOF scores are 1.0 to 1.45 times what the bootstrap says, 1.2 in the mean.
WIDER = 1.25
BINS = 10  # of a calibration curve; ten keep enough rows a bin for an interval of a few points at 1,000 rows


# --- intervals ----------------------------------------------------------------------------------------------


def bootstrap(
    metric: Metric, target: Array, preds: Sequence[Array], groups: Array | None = None, draws: int = 1000, seed: int = 0
) -> Array:
    """(draws, len(preds)) scores on resampled rows, the same rows for every prediction, so differences are paired.

    groups: (N,) rows of a group are drawn together. Predictions are sorted once, not once a draw. NaN where a draw
    lacks a class. Fewer draws are made where they would cost more than about a minute.
    """
    cells = sum(pred.size for pred in preds)
    draws = int(np.clip(2e10 // max(cells, 1), min(draws, 30), draws))  # 2e10 cells: the minute
    scorers = [resampler(metric, target, pred) for pred in preds]
    rng = np.random.default_rng(seed)
    n = target.shape[0]
    members = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = n if members is None else int(members.max()) + 1
    out = np.empty((draws, len(preds)))
    with threadpool_limits(1):  # dot products this short lose all they gain to waiting BLAS threads on a busy machine
        for d in range(draws):
            counts = np.bincount(rng.integers(0, units, units, dtype=np.int32), minlength=units).astype(np.float64)
            rows = counts if members is None else counts[members]
            out[d] = [scorer(rows) for scorer in scorers]
    return out


def percentiles(values: Array) -> tuple[float, float]:
    """The central 95 %."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def interval(draws: Array, score: float) -> tuple[float, float]:
    """95 % for an out-of-fold score by its bootstrap `draws`, (N,): their central 95 %, WIDER about the score.

    What all draws keep below 1 or above 0 stays there.
    """
    low, high = (score + WIDER * (end - score) for end in percentiles(draws))
    floor = 0.0 if np.nanmin(draws, initial=0) >= 0 else -np.inf
    return max(low, floor), min(high, 1.0 if np.nanmax(draws, initial=0) <= 1 else np.inf)


def gain(draws: Array, score: float, other: float, greater_is_better: bool) -> dict[str, float]:
    """draws: (draws, 2) of the two scores. The gain (positive is better), its 95 % interval, the share above 0."""
    sign = 1 if greater_is_better else -1
    differences = sign * (draws[:, 0] - draws[:, 1])
    differences = differences[~np.isnan(differences)]  # draws on which the metric has no value
    if not len(differences):
        return dict.fromkeys(("gain", "low", "high", "share_above_zero"), float("nan"))
    low, high = (sign * (score - other) + WIDER * (end - sign * (score - other)) for end in percentiles(differences))
    above = float(np.mean((differences > 0) + 0.5 * (differences == 0)))
    return {"gain": float(sign * (score - other)), "low": low, "high": high, "share_above_zero": above}


# --- calibration --------------------------------------------------------------------------------------------


def calibration_bins(pred: Array, truth: Array) -> pd.DataFrame:
    """Ten equally filled bins of 0/1 truth by prediction: rows, ones, predicted (mean), observed (share).

    Columns are pooled, and cells whose truth is NaN left out.
    """
    known = known_rows(truth.reshape(-1))
    p, happened = pred.reshape(-1)[known], truth.reshape(-1)[known].astype(np.float64)
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), BINS) if part.size]
    rows = [(part.size, happened[part].sum(), p[part].mean(), happened[part].mean()) for part in parts]
    return pd.DataFrame(rows, columns=["rows", "ones", "predicted", "observed"])


def platt(scores: Array, positive: Array, slopes: tuple[float, float | None] = (0, None)) -> tuple[float, float]:
    """(slope, offset) of Platt's sigmoid 1 / (1 + exp(-(slope f + offset))), with his smoothed targets (Platt 1999).

    What CalibratedClassifierCV(ensemble=False) fits to out-of-fold scores, but the slope stays within `slopes`, never
    below 0: scores that rank those rows the wrong way round say nothing of others (out of fold, where there is no
    signal, they tend to). At slope 0 all rows get the share of positives.
    """
    ones, zeros = float(positive.sum()), float((~positive).sum())
    target = np.where(positive, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    width = float(np.abs(scores).max()) or 1.0
    f = scores / width  # L-BFGS wants parameters of one size

    def loss(ab: Array) -> tuple[float, Array]:
        z = ab[0] * f + ab[1]
        error = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target  # exp overflows beyond 709
        return float((np.logaddexp(0, z) - target * z).sum()), np.array([error @ f, error.sum()])

    low, high = slopes
    start = np.array([low * width, np.log((ones + 1) / (zeros + 1))])
    bounds, options = [(low * width, high and high * width), (None, None)], {"gtol": 1e-9, "ftol": 1e-15}
    slope, offset = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return float(slope / width), float(offset)


# --- fits ---------------------------------------------------------------------------------------------------


def newton(
    loss: Callable[[Array], tuple[float, Array, Array]], start: Array, tolerance: float = 1e-8, steps: int = 25
) -> Array:
    """The least of a convex loss by damped Newton; `loss(w)` gives value, gradient (K,) and Hessian (K, K).

    A step is halved until it helps. Done where the next one would win less than `tolerance`: half the squared Newton
    decrement (Boyd & Vandenberghe 2004, 9.5.1).
    """
    w = start
    value, gradient, hessian = loss(w)
    for _ in range(steps):
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step / 2 <= tolerance:
            break
        for halvings in range(12):
            trial = w - 0.5**halvings * step
            there = loss(trial)
            if there[0] < value:
                break
        else:
            break
        w, (value, gradient, hessian) = trial, there
    return w


def tell_apart(x: Array, label: Array, part: Array, rounds: int, **settings: float) -> tuple[Array, Array]:
    """Adversarial validation: how LightGBM tells rows with `label` from the others, each by a model without its part.

    x: (N, K); label: bool (N,); part: (N,) numbers. Gives out-of-fold probabilities (N,) and each column's gain (K,).
    """
    import lightgbm

    fixed = {"objective": "binary", "verbose": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}

    def fit(out: Array) -> Any:
        data = lightgbm.Dataset(x[~out], label[~out].astype(np.float64), free_raw_data=True)
        return lightgbm.train({**fixed, "seed": 0, **settings}, data, num_boost_round=rounds)

    pred, gains = np.empty(label.size), np.zeros(x.shape[1])
    outs = [part == k for k in np.unique(part)]
    with ThreadPoolExecutor(parallel.cores()) as pool:  # one thread a part: LightGBM's own contend on busy cores
        for out, model in zip(outs, pool.map(fit, outs), strict=True):
            pred[out] = model.predict(x[out], num_threads=1)
            gains += model.feature_importance("gain")
    return pred, gains


def strata(target: ArrayLike, task: str) -> Array:
    """float64 (N, S), what splits balance: classes one-hot, labels as they are (0: unknown), ten bins of a number."""
    values = np.asarray(target)
    if task == "multilabel":
        return np.nan_to_num(values.astype(np.float64))
    if values.ndim == 2 and task == "soft":
        values = values.argmax(axis=1)
    if task == "regression":
        order = pd.Series(values.reshape(len(values), -1)[:, 0]).rank(method="first")
        values = pd.qcut(order, min(10, len(order)), labels=False).to_numpy()
    _, codes = np.unique(values, return_inverse=True)
    return np.eye(int(codes.max()) + 1)[codes]
