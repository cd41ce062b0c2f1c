"""RBF SVM on embeddings: one distance matrix a fold, for every C, gamma and inner split, against scikit-learn's SVC.

    python bench/kernel.py                        3,000 rows x 768, a few seconds
    python bench/kernel.py --rows 11000           the size of a competition; SVC alone takes minutes

Synthetic features like a network's: correlated, of unequal scale, non-negative for half of them, classes overlapping.
Both sides see the same standardised rows, solve the same problems to libsvm's own tolerance, and are compared answer
by answer. Each time is the best of --repeats.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from sklearn.svm import SVC

from foldwise.tabular.kernel import Features, KernelMethod, Pairs, _svc

GAMMA = 0.25


def features(rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, width) and 0/1: 60 factors behind the features, some of which carry the class."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(np.int64)
    factors = rng.normal(0, 1, (rows, 60)) * np.linspace(2, 0.2, 60)
    factors[:, 10:25] += 0.35 * y[:, None]
    x = factors @ rng.normal(0, 1, (60, width)) / 8 + rng.normal(0, 0.5, (rows, width))
    x[:, ::2] = np.maximum(x[:, ::2], 0)
    return (x * rng.uniform(0.2, 5, width)).astype(np.float32), y


def best(function: Callable[[], list[np.ndarray]], repeats: int) -> tuple[float, float, list[np.ndarray]]:
    """Wall and CPU seconds of the fastest call, and its result."""
    times = []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        found = function()
        times.append((time.perf_counter() - started, time.process_time() - used))
    return *min(times), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    x, y = features(args.rows, args.width)
    rows = np.arange(args.rows)
    ask, fit = rows[rows % 5 == 0], rows[rows % 5 != 0]
    print(f"{len(fit):,} rows to fit, {len(ask):,} to predict, {args.width} features, gamma {GAMMA} / D")

    def own(costs: tuple[float, ...]) -> list[np.ndarray]:
        scaled = Features.fit(x, fit)
        method = KernelMethod(Pairs(scaled, True, fit), _svc, 2, scaled.variance(fit))
        return method.scores(fit, y[fit], ask, [{"gamma": GAMMA, "C": c} for c in costs])

    def usual(costs: tuple[float, ...]) -> list[np.ndarray]:
        mean, deviation = x[fit].mean(axis=0), x[fit].std(axis=0)
        a, b = (x[fit] - mean) / deviation, (x[ask] - mean) / deviation
        return [
            SVC(C=c, gamma=GAMMA / args.width, class_weight="balanced").fit(a, y[fit]).decision_function(b)
            for c in costs
        ]

    for costs in ((1.0,), (0.3, 1.0, 3.0, 10.0)):
        mine, own_cpu, found = best(lambda costs=costs: own(costs), args.repeats)
        theirs, cpu, expected = best(lambda costs=costs: usual(costs), args.repeats)
        same = np.mean([(f[:, 0] > 0) == (e > 0) for f, e in zip(found, expected, strict=True)])
        apart = max(np.abs(f[:, 0] - e).max() for f, e in zip(found, expected, strict=True))
        print(
            f"fold 0, C = {', '.join(f'{c:g}' for c in costs)}: one matrix {mine:.2f} s (CPU {own_cpu:.2f}), SVC "
            f"{theirs:.2f} s (CPU {cpu:.2f}), {theirs / mine:.1f} x (CPU {cpu / own_cpu:.1f} x); "
            f"same answers {same:.2%}, decision values within {apart:.1g}"
        )


if __name__ == "__main__":
    main()
