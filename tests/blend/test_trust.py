"""Correlated errors, drift, calibration: each against a plain twin or a case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldwise.blend import trust
from foldwise.blend.spaces import Calibration, ranks
from foldwise.metrics import resolve

quick = settings(max_examples=25, deadline=None)


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
    pairs = trust.near_duplicates(preds, ["a", "b", "c", "d"], ["pred"])
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
