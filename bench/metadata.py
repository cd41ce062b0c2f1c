"""LightGBM, XGBoost and CatBoost on 33,000 x 10: folds side by side, one thread each, or in turn on all threads.

    python bench/metadata.py [--rounds 100] [--repeats 3]

Both sides boost the same rounds on the same rows, alternate, and are timed by the wall. Libraries that are not
installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.core import parallel
from foldwise.tabular import learners

ROWS, COLUMNS, FOLDS = 33_000, 10, 5
THREADS = {"lightgbm": "num_threads", "xgboost": "nthread", "catboost": "thread_count"}


def table() -> tuple[np.ndarray, np.ndarray]:
    """Seven numbers and three categories of 20; 2 % positives, as in the melanoma competition of 2020."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(ROWS, COLUMNS - 3)), rng.integers(0, 20, (ROWS, 3))])
    odds = x[:, 0] + x[:, 1] * (x[:, -1] > 10) - 4.5
    return x, (rng.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float)


def timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    x, y = table()
    cores, fold_of = parallel.cores(), np.arange(ROWS) % FOLDS
    print(
        f"{ROWS:,} x {COLUMNS}, {FOLDS} folds, {args.rounds} rounds, {cores} cores; wall seconds, {args.repeats} pairs"
    )
    for name, threads in THREADS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name:<10} not installed: left out")
            continue
        learner = learners.get(name)

        def fold(k: int, count: int, learner: learners.Learner = learner, threads: str = threads) -> None:
            data = learners.Data(x[fold_of != k], y[fold_of != k], [7, 8, 9])
            learner.fit({**learner.defaults, threads: count}, 1, data, None, args.rounds)

        def beside(fold: Callable[[int, int], None] = fold) -> None:
            with ThreadPoolExecutor(min(cores, FOLDS)) as pool:
                list(pool.map(lambda k: fold(k, 1), range(FOLDS)))

        def in_turn(fold: Callable[[int, int], None] = fold) -> None:
            for k in range(FOLDS):
                fold(k, cores)

        pairs = [(timed(beside), timed(in_turn)) for _ in range(args.repeats)]
        a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(turn / side for side, turn in pairs)
        print(
            f"{name:<10} side by side {a:6.2f}   in turn on {cores} threads {b:6.2f}   "
            f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
