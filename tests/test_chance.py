"""Random labels score like chance in every branch and second level, and known scores lie in their intervals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from foldwise import metrics, stats
from foldwise.blend import fit_weights
from foldwise.tabular import learners

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from trust import FOLDS, SCENARIOS, drawn, learnt, second_level

SEEDS = 12


@pytest.fixture(scope="module")
def noise() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """OOF of seven learners (7, 400), random labels, folds; by seed."""
    return [learnt(400, seed, 0.0, test=0)[:3] for seed in range(SEEDS)]


def near_chance(scores: list[float]) -> None:
    error = max(np.std(scores, ddof=1), 0.02) / np.sqrt(len(scores))  # 0.02: below it the rows alone say more
    assert abs(np.mean(scores) - 0.5) < 3 * error, (np.mean(scores), error)


@pytest.mark.parametrize("method", ["mean", "rank", "best", "gradient", "weights", "hill", "caruana", "stack", "auto"])
def test_blends_of_noise_are_noise(method: str, noise: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    slow = method in {"auto", "caruana"}
    draws = 100 if method == "auto" else 0
    near_chance(
        [
            fit_weights(oof, y, "roc_auc", method, folds=folds, draws=draws).nested_score
            for oof, y, folds in noise[: SEEDS // 2 if slow else None]
        ]
    )


@pytest.mark.parametrize("learner", ["lightgbm", "logreg"])
def test_models_on_top_of_noise_are_noise(learner: str, noise: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    near_chance(
        [
            metrics.score("roc_auc", y, second_level(learner, oof, y, folds, seed))
            for seed, (oof, y, folds) in enumerate(noise)
        ]
    )


@pytest.mark.parametrize("method", ["stack", "gradient", "weights"])
@pytest.mark.parametrize("classes", [1, 3])
def test_no_weight_is_negative_where_every_run_errs_against_the_labels(method: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, max(2, classes), 300)
    wrong = rng.standard_normal((4, 300, classes)) - 0.8 * np.eye(max(2, classes))[y][:, -classes:]
    pred = expit(wrong[:, :, 0]) if classes == 1 else np.exp(wrong) / np.exp(wrong).sum(axis=2, keepdims=True)
    blend = fit_weights(pred, y, "log_loss", method, folds=np.arange(300) % FOLDS, draws=0)
    assert blend.weights.min() >= 0


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost", "logreg"])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_rising_feature_never_lowers_a_prediction(name: str, task: str) -> None:
    pytest.importorskip({"xgboost": "xgboost", "catboost": "catboost"}.get(name, "sklearn"))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    goal = x[:, 1] - 1.5 * x[:, 0]
    y = (goal > 0).astype(float) if task == "binary" else goal
    learner = learners.get(name)
    rounds = 1 if learner.linear else 30

    def steps(rising: list[int]) -> np.ndarray:
        data = learners.Data(x, y, (), rising)
        fitted = learners.fit(learner, learners.settings_of(learner, {}, task), task, 1, data, None, rounds)  # type: ignore[arg-type]
        grid = np.zeros((50, 3))
        grid[:, 0] = np.linspace(-2, 2, 50)
        return np.diff(fitted.predict(grid)[:, 0])

    assert steps([]).min() < -1e-3  # free, it falls: that is what the rows say
    assert steps([0]).min() >= -1e-9


@pytest.mark.parametrize("metric", [pytest.param("roc_auc", marks=pytest.mark.nightly), "log_loss"])
def test_intervals_hold_scores_that_are_known(metric: str) -> None:
    held, wrong = [], 0
    for seed in range(2):
        for scenario in SCENARIOS[1:]:
            oof, y, folds, test, truth = drawn(scenario, 500, seed)
            blend = fit_weights(oof, y, metric, "auto", folds=folds, draws=200)
            true = metrics.score(metric, truth, blend.predict(test))
            held.append(blend.interval[0] <= true <= blend.interval[1])
            single = fit_weights(oof, y, metric, "best", folds=folds, draws=0).nested_score
            sign = 1 if metrics.resolve(metric).greater_is_better else -1
            rows = [row for row in blend.table if row["method"] == blend.method and row["space"] == blend.space]
            wrong += sign * (rows[0]["nested_score"] - single) < 0
    assert np.sum(held) >= 12  # of 14: what 95 % gives in all but 3 % of such tests
    assert wrong == 0  # what auto takes is never below the best single run


def test_clipped_weights_stay_off_0_and_1() -> None:
    oof, y, folds, _, _ = drawn("suppressor", 500, 0)
    for method in ("ridge", "hill_negative"):
        blend = fit_weights(oof, y, "log_loss", method, folds=folds, draws=0)
        assert blend.nested.min() > 0 and blend.nested.max() < 1 and np.isfinite(blend.nested_score)
    tried = {row["method"] for row in fit_weights(oof, y, "log_loss", "auto", folds=folds, draws=100).table}
    assert not tried & {"ridge", "hill_negative"}


def test_an_interval_counts_more_than_the_draw_of_rows() -> None:
    draws = np.random.default_rng(0).normal(0.8, 0.02, 4000)
    low, high = stats.interval(draws, 0.8)
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.02 * stats.WIDER, 0.8 + 1.96 * 0.02 * stats.WIDER), abs=0.002)
    assert stats.interval(np.clip(draws + 0.19, 0, 1), 0.99)[1] == 1
