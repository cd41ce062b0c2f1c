"""Bootstrap, paired gain, calibration, Newton: each against a plain twin or a case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from foldwise import stats
from foldwise.data.folds import stratify
from foldwise.metrics import auc_of, resolve

quick = settings(max_examples=25, deadline=None)


def draw(seed: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(rows) % 4 == 0).astype(int)
    return target, np.round(target * 0.4 + rng.random((2, rows)), 2)


@pytest.mark.smoke
@given(st.integers(0, 10**6))
@quick
def test_bootstrap_is_scikit_learns_loop(seed):
    target, preds = draw(seed)
    fast = stats.bootstrap(resolve("auc"), target, list(preds), draws=5, seed=seed)
    rng = np.random.default_rng(seed)
    for scores in fast:
        rows = rng.integers(0, target.size, target.size, dtype=np.int32)
        assert scores == pytest.approx([roc_auc_score(target[rows], pred[rows]) for pred in preds], abs=1e-12)


def test_bootstrap_draws_patients_whole():
    """Every row of a patient alike: resampling rows would halve the interval, resampling patients does not."""
    target, preds = draw(3)
    twice, groups = np.repeat(np.arange(200), 4), np.repeat(np.arange(200), 4)
    widths = [
        np.std(stats.bootstrap(resolve("auc"), t, [p], g, draws=300)[:, 0])
        for t, p, g in (
            (target, preds[0], None),
            (target[twice], preds[0][twice], groups),
            (target[twice], preds[0][twice], None),
        )
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert widths[2] < 0.7 * widths[0]


def test_gain_has_the_metrics_direction():
    draws = np.array([[0.5, 0.6], [0.4, 0.6], [0.5, 0.7]])
    assert stats.gain(draws, 0.5, 0.6, greater_is_better=False)["gain"] == pytest.approx(0.1)
    assert stats.gain(draws, 0.5, 0.6, greater_is_better=True)["share_above_zero"] == 0


def test_calibration_bins_hold_all_rows():
    target, preds = draw(1)
    bins = stats.calibration_bins(preds[0], target)
    assert bins["rows"].sum() == 200
    assert bins["ones"].sum() == target.sum()


def test_newton_is_scikit_learns_logistic_regression():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(300, 3)), np.ones(300)])
    y = (rng.random(300) < expit(4 * x[:, 0])).astype(float)

    def loss(w):
        p = expit(x @ w)
        return (
            np.logaddexp(0, x @ w).sum() - y @ (x @ w) + w @ w / 2,
            x.T @ (p - y) + w,
            (x.T * p * (1 - p)) @ x + np.eye(4),
        )

    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(x, y).coef_[0]
    assert stats.newton(loss, np.full(4, 20.0), 1e-12) == pytest.approx(
        theirs, abs=1e-4
    )  # from afar: needs its damping


def test_platt_keeps_the_slope_asked_for():
    scores, positive = np.linspace(-3, 3, 100), np.arange(100) < 50  # the wrong way round
    assert stats.platt(scores, positive)[0] == 0
    assert stats.platt(scores, positive, (0.5, 2))[0] == pytest.approx(0.5)


def test_rows_that_differ_are_told_apart_and_others_are_not():
    rng = np.random.default_rng(0)
    x, label, part = rng.normal(size=(600, 2)), np.arange(600) % 2 == 0, np.arange(600) // 2 % 3
    pred, gains = stats.tell_apart(x, label, part, 20)
    assert abs(auc_of(pred[~label], pred[label]) - 0.5) < 0.1
    x[label, 1] += 2
    pred, gains = stats.tell_apart(x, label, part, 20)
    assert auc_of(pred[~label], pred[label]) > 0.85 and gains[1] > 5 * gains[0]


def test_strata_are_what_a_task_balances():
    assert stats.strata(["b", "a", "b"], "multiclass").tolist() == [[0, 1], [1, 0], [0, 1]]
    assert stats.strata([[1, np.nan], [0, 1]], "multilabel").tolist() == [[1, 0], [0, 1]]
    values = np.random.default_rng(0).random(400) ** 3
    fold = stratify(stats.strata(values, "regression"), np.arange(400), 4, 0)
    assert np.ptp([np.median(values[fold == k]) for k in range(4)]) < 0.1 * values.std()
