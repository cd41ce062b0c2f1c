"""Does the score hold? Labels drawn at random through real learners and every second level, and simulated competitions
whose true score is known.

    python bench/trust.py [--seeds 20] [--csv docs/trust.csv]

Random labels: seven learners of noise, five folds; 0.5 is the truth, and 2.5 % of 95 % intervals may lie above it.
The networks' branch is a small one on 24-pixel noise. Known truth: eight scenarios, among them seven real learners;
10,000 more rows tell the true score of the blend that `auto` takes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise import metrics, stats
from foldwise.blend import fit_weights
from foldwise.blend.fit import make_folds
from foldwise.core import parallel
from foldwise.tabular import learners

FOLDS, TEST = 5, 10_000
SCENARIOS = ["learners", "equal", "correlated", "one strong", "twins", "noise runs", "fold scales", "suppressor"]
METHODS = ["mean", "best", "weights", "hill", "stack", "ridge", "lightgbm", "auto"]
Row = dict[str, Any]
World = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # OOF (M, N), truth, folds, test, its truth


def models() -> list[Any]:
    """Seven that err in different ways."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    linear = [LogisticRegression(C=c, max_iter=500) for c in (1, 0.1, 0.01)]
    trees = [ExtraTreesClassifier(60, min_samples_leaf=3, random_state=0), ExtraTreesClassifier(60, max_depth=3)]
    trees[1].random_state = 1
    return [*linear, *trees, KNeighborsClassifier(15), GaussianNB()]


def learnt(rows: int, seed: int, signal: float, test: int = TEST, features: int = 20) -> World:
    """Real learners on Gaussian features; a quarter are positive."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows + test, features))
    bend = 0.5 * x[:, :6].sum(axis=1) + 0.5 * x[:, 0] * x[:, 1] + 0.5 * (np.square(x[:, 2]) - 1)
    y = (rng.random(len(x)) < expit(signal * bend + np.log(1 / 3))).astype(float)
    folds = make_folds(y[:rows], "binary", None, seed)
    every = models()
    oof, tests = np.empty((len(every), rows)), np.zeros((len(every), test))
    for m, model in enumerate(every):
        for k in range(FOLDS):
            learn, held = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
            model.fit(x[learn], y[learn])
            oof[m, held] = model.predict_proba(x[held])[:, 1]
            if test:
                tests[m] += model.predict_proba(x[rows:])[:, 1] / FOLDS
    return oof, y[:rows], folds, tests, y[rows:]


def drawn(scenario: str, rows: int, seed: int, runs: int = 7, positive: float = 0.2) -> World:
    """Runs by formula: scores of two normal classes with a shared part, as calibrated logits at their own heat."""
    rng = np.random.default_rng(seed)
    n = rows + TEST
    y = (rng.random(n) < positive).astype(float)
    apart, shared = np.full(runs, 1.2), 0.9 if scenario == "correlated" else 0.5
    own, common = rng.standard_normal((runs, n)), rng.standard_normal(n)
    noise = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    if scenario == "one strong":
        apart = np.array([1.8] + [0.8] * (runs - 1))
    if scenario == "noise runs":
        apart = np.array([1.3, 1.2, 1.1] + [0.05] * (runs - 3))
    if scenario == "suppressor":
        apart[-1], noise[-1] = 0.1, 0.95 * common + 0.3 * own[-1]
    score = apart[:, None] * y + noise
    if scenario == "twins":
        score[3:] = score[2] + 0.1 * own[3:]
    logit = apart[:, None] * score - np.square(apart)[:, None] / 2 + np.log(positive / (1 - positive))
    logit *= np.exp(rng.normal(0, 0.3, runs))[:, None]
    folds = make_folds(y[:rows], "binary", None, seed)
    if scenario == "fold scales":
        slope, offset = np.exp(rng.normal(0, 0.3, (runs, FOLDS))), rng.normal(0, 0.6, (runs, FOLDS))
        seen = logit[:, :rows] * slope[:, folds] + offset[:, folds]
        logit = np.concatenate([seen, logit[:, rows:] * slope.mean(1)[:, None] + offset.mean(1)[:, None]], axis=1)
    pred = expit(logit)
    return pred[:, :rows], y[:rows], folds, pred[:, rows:], y[rows:]


# --- random labels ------------------------------------------------------------------------------------------


def random_labels(job: tuple[int, int]) -> list[Row]:
    """Nested score and interval of every method, and of a second level as step 03 --oof fits it."""
    rows, seed = job
    oof, y, folds, _, _ = learnt(rows, seed, 0.0, test=0)
    out = []
    for method in METHODS:
        blend = fit_weights(oof, y, "roc_auc", method, folds=folds, draws=400)
        out.append({"what": method, "rows": rows, "score": blend.nested_score, "above": blend.interval[0] > 0.5})
    for name in ("lightgbm", "logreg"):
        pred = second_level(name, oof, y, folds, seed)
        draws = stats.bootstrap(metrics.resolve("roc_auc"), y, [pred], None, 400)[:, 0]
        score = metrics.score("roc_auc", y, pred)
        above = stats.interval(draws, score)[0] > 0.5
        out.append({"what": f"03 --oof {name}", "rows": rows, "score": score, "above": above})
    return out


def second_level(name: str, oof: np.ndarray, y: np.ndarray, folds: np.ndarray, seed: int) -> np.ndarray:
    """Out-of-fold predictions of a step-03 learner on other runs' out-of-fold predictions, fold by fold."""
    learner, pred = learners.get(name), np.empty(len(y))
    for k in range(FOLDS):
        learn, held = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
        watch = np.random.default_rng(seed).permutation(len(learn)) < len(learn) // 5
        parts = [
            learners.Data(oof.T[part], y[part], (), range(len(oof))) for part in (learn[~watch], learn[watch], learn)
        ]
        settings = learners.settings_of(learner, {}, "binary")
        rounds = 1
        if learner.boosted:
            rounds = max(1, learners.fit(learner, settings, "binary", 1, parts[0], parts[1], 500).rounds)
        fitted = learners.fit(learner, settings, "binary", 1, parts[2], None, rounds)
        pred[held] = fitted.predict(oof.T[held])[:, 0]
    return pred


def epochs(seed: int) -> list[Row]:
    """A small network on noise, ten epochs, 60 rows and 15 positives a fold: the fold's best epoch and its last."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images = torch.randn(300, 3, 24, 24)
    y = torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(300) < 75)).float()
    folds = make_folds(y.numpy(), "binary", None, seed)
    best, last = np.empty(300), np.empty(300)
    for k in range(FOLDS):
        learn, held = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
        block = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        network = nn.Sequential(*block, nn.Flatten(), nn.Linear(128, 1))
        optimizer, top = torch.optim.AdamW(network.parameters(), 3e-3), -1.0
        for _ in range(10):
            for batch in torch.randperm(len(learn)).split(32):
                at = learn[batch.numpy()]
                loss = nn.functional.binary_cross_entropy_with_logits(network(images[at])[:, 0], y[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                last[held] = network(images[held])[:, 0].sigmoid().numpy()
            score = metrics.score("roc_auc", y[held].numpy(), last[held])
            if score > top:
                top, best[held] = score, last[held]
    scores = {"best": best, "last": last}
    return [
        {
            "what": f"02 checkpoint={name}",
            "rows": 300,
            "score": metrics.score("roc_auc", y.numpy(), pred),
            "above": None,
        }
        for name, pred in scores.items()
    ]


# --- known truth --------------------------------------------------------------------------------------------


def known_truth(job: tuple[str, str, int, int]) -> list[Row]:
    """Of auto's blend: does its interval hold the true score, and is what the verdict says so?"""
    scenario, metric, rows, seed = job
    oof, y, folds, test, truth = learnt(rows, seed, 1.0) if scenario == "learners" else drawn(scenario, rows, seed)
    scorer = metrics.resolve(metric)
    sign = 1 if scorer.greater_is_better else -1
    auto = fit_weights(oof, y, metric, "auto", folds=folds, draws=400)
    stack = fit_weights(oof, y, metric, "stack", folds=folds, nested=False)
    single = fit_weights(oof, y, metric, "best", folds=folds, draws=0)
    true, other = (metrics.score(metric, truth, blend.predict(test)) for blend in (auto, stack))
    singles = [metrics.score(metric, y, run) for run in oof]
    at = int(np.argmax(sign * np.array(singles)))
    rival = metrics.score(metric, truth, test[at])
    draws = stats.bootstrap(scorer, y, [auto.nested, oof[at], single.nested], None, 400)
    over = stats.gain(draws[:, [0, 1]], auto.nested_score, singles[at], scorer.greater_is_better)
    fair = stats.gain(draws[:, [0, 2]], auto.nested_score, single.nested_score, scorer.greater_is_better)
    beats, worse = over["low"] > 0, fair["high"] < 0 and auto.method != "best"
    low, high = auto.interval
    return [
        {
            "what": scenario,
            "metric": metric,
            "rows": rows,
            "holds": low <= true <= high,
            "width": high - low,
            "error": sign * (auto.nested_score - true),
            "over_stack": sign * (true - other),
            "beats": beats,
            "beats_wrong": beats and sign * (true - rival) < 0,
            "worse": worse,
            "worse_wrong": worse and sign * (true - rival) > 0,
        }
    ]


# --- tables -------------------------------------------------------------------------------------------------


def every(work: Callable[[Any], list[Row]], jobs: Sequence[Any], workers: int) -> pd.DataFrame:
    """The rows of all jobs, processes side by side."""
    with ProcessPoolExecutor(workers) as pool:
        return pd.DataFrame([row for rows in pool.map(_quiet, [(work, job) for job in jobs]) for row in rows])


def _quiet(both: tuple[Callable[[Any], list[Row]], Any]) -> list[Row]:
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        return both[0](both[1])


def chance(seeds: int, workers: int) -> pd.DataFrame:
    """The table of random labels: mean, its standard error, and the share of intervals above 0.5."""
    jobs = [(400, seed) for seed in range(2 * seeds)] + [(2000, seed) for seed in range(seeds)]
    rows = pd.concat([every(random_labels, jobs, workers), every(epochs, range(2 * seeds), workers)], ignore_index=True)
    parts = rows.groupby(["what", "rows"], sort=False)
    table = parts["score"].agg(["size", "mean", "sem"]).rename(columns={"size": "seeds", "sem": "error"})
    return table.assign(above=parts["above"].apply(lambda part: part.dropna().astype(float).mean())).reset_index()


def truth(seeds: int, workers: int) -> pd.DataFrame:
    """The table of known truth, a row a metric and size, over all scenarios, and of the learners alone."""
    jobs = [(s, m, 500, k) for s in SCENARIOS for m in ("roc_auc", "log_loss", "accuracy") for k in range(seeds)]
    jobs += [(s, m, 3000, k) for s in SCENARIOS for m in ("roc_auc", "log_loss") for k in range(max(2, seeds // 4))]
    rows = every(known_truth, jobs, workers)
    named = pd.concat([rows.assign(what="all scenarios"), rows[rows["what"] == "learners"]])
    parts = named.groupby(["what", "metric", "rows"], sort=False)
    mean = parts[["holds", "width", "error", "over_stack"]].mean()
    counts = parts[["beats", "beats_wrong", "worse", "worse_wrong"]].sum().astype(int)
    return pd.concat([parts.size().rename("competitions"), mean, counts], axis=1).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="(default: 20: half an hour on two cores)")
    parser.add_argument("--csv", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    started, workers = time.monotonic(), parallel.cores()
    tables = {"random labels": chance(args.seeds, workers), "known truth": truth(args.seeds, workers)}
    for name, table in tables.items():
        print(f"\n{name}\n{table.to_string(index=False, float_format=lambda value: f'{value:.4f}')}")
    print(f"\n{time.monotonic() - started:.0f} s, {workers} processes")
    if args.csv:
        pd.concat([table.assign(table=name) for name, table in tables.items()]).round(4).to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
