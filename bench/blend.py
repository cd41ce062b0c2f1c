"""Blending: ours against the usual practice, both sides in this one run.

  python bench/blend.py             # metric, bootstrap, hill climbing at 10 x 30k, 100 x 30k (about two minutes)
  python bench/blend.py --large     # also 30 x 100k, nested CV of all methods there, and 1,000 classes x 50k x 10

The comparison with hill climbing needs `pip install hillclimbers`, which Foldwise itself does not.
Data: runs that share part of their error, 5 % positives; every AUC named is on the rows fitted, and on as many others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise import stats
from foldwise.blend import fit_weights
from foldwise.metrics import auc_of, resolve, score


def make(models: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random(rows) < 0.05).astype(int)
    shared = rng.normal(size=(4, rows))
    skill = np.random.default_rng(99).uniform(0.8, 1.6, models)
    logits = [skill[m] * target + 0.7 * shared[m % 4] + rng.normal(size=rows) * 0.7 - 2.5 for m in range(models)]
    return (1 / (1 + np.exp(-np.stack(logits)))), target


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def metric() -> None:
    for rows in (30_000, 100_000):
        preds, target = make(1, rows)
        pred = preds[0].astype(np.float32)
        negative, positive = pred[target == 0], pred[target == 1]
        plain = seconds(lambda t=target, p=pred: roc_auc_score(t, p), 7)
        ours = seconds(lambda n=negative, p=positive: auc_of(n, p), 21)
        print(f"AUC, {rows} rows: scikit-learn {plain * 1e3:.2f} ms, ours {ours * 1e3:.3f} ms, {plain / ours:.0f} x")


def bootstrap(rows: int = 30_000, draws: int = 200) -> None:
    preds, target = make(1, rows)
    rng = np.random.default_rng(0)

    def plain() -> None:
        for _ in range(20):
            chosen = rng.integers(0, rows, rows)
            roc_auc_score(target[chosen], preds[0][chosen])

    theirs = seconds(plain) / 20
    ours = seconds(lambda: stats.bootstrap(resolve("roc_auc"), target, [preds[0]], draws=draws)) / draws
    print(
        f"bootstrap of AUC, {rows} rows, a draw: scikit-learn {theirs * 1e3:.2f} ms, ours {ours * 1e3:.3f} ms, "
        f"{theirs / ours:.0f} x"
    )


class Counted:
    """An AUC that counts its calls; `hillclimbers` asks for its name."""

    def __init__(self, target: np.ndarray, fast: bool) -> None:
        self.calls, self.positive, self.fast = 0, target > 0, fast
        self.__name__ = "roc_auc_score"

    def __call__(self, truth: pd.Series, pred: pd.Series) -> float:
        self.calls += 1
        if not self.fast:
            return float(roc_auc_score(truth, pred))
        values = pred.to_numpy()
        return auc_of(values[~self.positive], values[self.positive])


def climb_theirs(preds: np.ndarray, target: np.ndarray, fast: bool) -> tuple[float, np.ndarray, int]:
    import hillclimbers

    names = [f"m{i}" for i in range(len(preds))]
    frame = pd.DataFrame(preds.T, columns=names)
    counted = Counted(target, fast)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        _, blend = hillclimbers.climb_hill(
            train=pd.DataFrame({"y": target}),
            oof_pred_df=frame,
            test_pred_df=frame[:10],
            target="y",
            objective="maximize",
            eval_metric=hillclimbers.partial(counted),
            negative_weights=True,
            precision=0.01,
            plot_hill=False,
            return_oof_preds=True,
        )
    return time.perf_counter() - start, blend, counted.calls


def hill(models: int, rows: int, extrapolate: bool, compare: bool = True) -> None:
    preds, target = make(models, rows)
    others, truth = make(models, rows, seed=1)
    print(f"\nhill climbing, {models} runs x {rows} rows, negative weights, steps of 0.01")
    theirs = None
    try:
        if not compare:
            print("  ours only: hillclimbers would take most of an hour")
        elif extrapolate:  # its own search on our AUC gives its path and result; its time is calls x its own cost
            _, blend, calls = climb_theirs(preds, target, fast=True)
            mix = pd.Series(preds[0])
            once = seconds(lambda: roc_auc_score(target, 0.9 * mix + 0.1 * pd.Series(preds[1])), 9)
            theirs, how = calls * once, f"extrapolated: {calls} evaluations x {once * 1e3:.1f} ms"
        else:
            theirs, blend, calls = climb_theirs(preds, target, fast=False)
            how = f"{calls} evaluations"
        if theirs:
            print(f"  hillclimbers    {theirs:9.2f} s          AUC {score('auc', target, blend):.6f}  ({how})")
    except ImportError:
        print("  hillclimbers is not installed (pip install hillclimbers): only ours is timed")
    for method in ("hill_negative", "hill", "weights", "gradient", "caruana", "stack"):
        call = lambda m=method: fit_weights(preds, target, "roc_auc", m, nested=False, draws=0, space="prob")  # noqa: E731
        ours, made = seconds(call, 3), call()
        factor = f"{theirs / ours:6.0f} x" if theirs else ""
        print(
            f"  {method:<15} {ours:9.3f} s {factor} AUC {made.score:.6f}, on other rows "
            f"{score('auc', truth, made.predict(others)):.6f}"
        )


def nested(models: int = 30, rows: int = 100_000) -> None:
    preds, target = make(models, rows)
    families = [(f"model{m % 6}", str(224 + 160 * (m // 6 % 3))) for m in range(models)]
    start, cpu = time.perf_counter(), time.process_time()
    made = fit_weights(preds, target, "roc_auc", "auto", families=families, draws=200)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"\nnested CV of {len(made.table)} methods, {models} x {rows}: {wall:.1f} s wall, {cpu:.1f} s of CPU; "
        f"chose {made.method} ({made.space}), nested {made.nested_score:.5f}"
    )


def thousand_classes(models: int = 10, rows: int = 50_000, classes: int = 1000) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, rows)
    preds = np.empty((models, rows, classes), np.float32)
    for run in preds:
        rng.standard_exponential(out=run, dtype=np.float32)
        run[np.arange(rows), target] += rng.exponential(8, rows)
        run /= run.sum(axis=1, keepdims=True)
    start = time.perf_counter()
    made = fit_weights(preds, target, "log_loss", "auto", draws=50)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{classes} classes x {rows} rows x {models} runs, auto: {time.perf_counter() - start:.1f} s, peak "
        f"{peak:.2f} GiB, {made.method}, nested log loss {made.nested_score:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--classes", action="store_true", help="only the 1,000 classes, for a clean peak of memory")
    args = parser.parse_args()
    if args.classes:
        thousand_classes()
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    metric()
    bootstrap()
    hill(10, 30_000, extrapolate=False)
    hill(100, 30_000, extrapolate=True, compare=False)
    if args.large:
        hill(30, 100_000, extrapolate=True)
        nested()
        subprocess.run([sys.executable, __file__, "--classes"], check=True)


if __name__ == "__main__":
    main()
