"""Bootstrap, correlated errors, drift: each against a plain twin or a case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from foldwise.blend import trust
from foldwise.blend.spaces import Calibration, ranks
from foldwise.metrics import resolve

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
    fast = trust.bootstrap(resolve("auc"), target, list(preds), draws=5, seed=seed)
    rng = np.random.default_rng(seed)
    for scores in fast:
        rows = rng.integers(0, target.size, target.size, dtype=np.int32)
        assert scores == pytest.approx([roc_auc_score(target[rows], pred[rows]) for pred in preds], abs=1e-12)


def test_bootstrap_draws_patients_whole():
    """Every row of a patient alike: resampling rows would halve the interval, resampling patients does not."""
    target, preds = draw(3)
    twice, groups = np.repeat(np.arange(200), 4), np.repeat(np.arange(200), 4)
    widths = [
        np.std(trust.bootstrap(resolve("auc"), t, [p], g, draws=300)[:, 0])
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
    assert trust.gain(draws, 0.5, 0.6, greater_is_better=False)["gain"] == pytest.approx(0.1)
    assert trust.gain(draws, 0.5, 0.6, greater_is_better=True)["share_above_zero"] == 0


@given(st.integers(0, 10**6), st.integers(1, 6))
@quick
def test_effective_number(seed, m):
    rng = np.random.default_rng(seed)
    independent = np.linalg.qr(rng.normal(size=(500, m)) - 0)[0].T
    independent = np.linalg.qr((independent - independent.mean(axis=1, keepdims=True)).T)[0].T
    assert trust.effective_number(trust.correlation(independent)) == pytest.approx(m, rel=0.05)
    assert trust.effective_number(np.ones((m, m))) == pytest.approx(1)


def test_twins_and_their_clusters():
    rng = np.random.default_rng(0)
    one = rng.random(100)
    preds = np.stack([one, np.exp(one), rng.random(100), one])
    pairs = trust.twins(preds, ["a", "b", "c", "d"], ["pred"])
    assert trust.clusters(pairs) == [("pred", ["a", "b", "d"])]
    assert [pair["identical"] for pair in pairs] == [False, True, False]


def test_drift_names_the_run_that_changed():
    rng = np.random.default_rng(0)
    oof, test = rng.random((3, 1000)), rng.random((3, 800))
    test[1] = test[1] ** 2
    found = trust.drift(oof, test, ["a", "b", "c"])
    assert found["named"] == ["b"]
    assert abs(found["auc_by_run"]["a"] - 0.5) < 0.06


def test_folds_on_different_scales_show():
    rng = np.random.default_rng(0)
    folds = np.arange(400) % 4
    target = (rng.random(400) < 0.3).astype(int)
    pred = target * 0.1 + rng.random(400) * 0.3 + folds
    row = trust.fold_ranks(resolve("auc"), target, pred[None], folds)[0]
    assert row["fold_ranked"] > row["raw"] + 0.05
    assert row["fold_mean"] == pytest.approx(row["fold_ranked"], abs=0.02)


@given(st.integers(0, 10**6))
@quick
def test_ranks(seed):
    from scipy.stats import rankdata

    values = np.round(np.random.default_rng(seed).random((2, 50, 3)), 1)
    assert ranks(values) == pytest.approx((rankdata(values, axis=1) - 0.5) / 50)


@pytest.mark.parametrize("rows", [300, 8000])
def test_calibration_mends_a_tilted_run(rows):
    rng = np.random.default_rng(0)
    truth = rng.random(rows)
    target = (rng.random(rows) < truth).astype(int)
    tilted = truth[None] ** 4
    maps = Calibration(tilted, target, np.arange(rows) % 5, 0)
    before, after = (np.abs(np.ravel(pred) - truth).mean() for pred in (tilted, maps.fitted))
    assert after < 0.6 * before
    assert (np.diff(maps(np.linspace(0, 1, 50)[None])[0]) > 0).all()


def test_reliability_bins_hold_all_rows():
    target, preds = draw(1)
    bins = trust.reliability(target, preds[0])
    assert sum(one["rows"] for one in bins) == 200
    assert sum(one["observed"] * one["rows"] for one in bins) == pytest.approx(target.sum())
