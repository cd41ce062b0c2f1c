"""Classes by the nearest row, and the threshold beyond which nothing is near."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foldwise import metrics
from foldwise.core.saved import read_saved, write_saved
from foldwise.data import top
from foldwise.tabular.nearest import Nearest

pytestmark = pytest.mark.smoke
CLASSES, UNKNOWN = 60, 60  # the last number is the class of strangers


def rows(seed: int, each: int, strangers: int, spread: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around a centre a class, and of strangers around centres of their own."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, 16))
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    known = centres[labels] + spread * rng.normal(size=(len(labels), 16))
    odd = rng.normal(size=(strangers, 16))
    return np.concatenate([known, odd]).astype(np.float32), np.append(labels, np.full(strangers, UNKNOWN))


def test_strangers_are_told_by_a_threshold_learnt_on_held_out_classes(tmp_path: Path) -> None:
    fit, labels = rows(1, 3, 60)
    ask, truth = rows(2, 2, 40)
    model = Nearest.fit(fit, labels, CLASSES + 1, UNKNOWN)
    pred = model.predict(ask)
    assert np.allclose(pred.sum(axis=1), 1, atol=1e-5)
    with_threshold = metrics.score("accuracy", truth, pred)
    without = Nearest.fit(fit[labels != UNKNOWN], labels[labels != UNKNOWN], CLASSES + 1).predict(ask)
    known = truth != UNKNOWN
    assert metrics.score("accuracy", truth, without) == pytest.approx(
        known.mean() * metrics.score("accuracy", truth[known], without[known])
    )
    assert with_threshold > 0.95 > 0.8 > metrics.score("accuracy", truth, without)
    assert metrics.score("map@5", truth, Nearest.fit(fit, labels, CLASSES + 1, UNKNOWN, k=5).predict(ask)) > 0.95
    write_saved(tmp_path / "head.npz", model)
    np.testing.assert_array_equal(read_saved(tmp_path / "head.npz", (Nearest,), "").predict(ask), pred)


def test_many_classes_come_as_their_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, labels = rows(1, 3, 60)
    ask, truth = rows(2, 2, 40)
    model = Nearest.fit(fit, labels, CLASSES + 1, UNKNOWN)
    dense = model.predict(ask)
    monkeypatch.setattr(top, "MANY", 10)
    kept = model.predict(ask)
    codes, values, _ = top.split(kept)
    assert (codes[:, 0] == dense.argmax(axis=1)).all()
    assert all(len(set(row)) == len(row) for row in codes)
    assert np.allclose(values[:, 0], dense.max(axis=1), atol=0.01)
    assert top.score(metrics.resolve("accuracy"), truth, kept) == metrics.score("accuracy", truth, dense)
