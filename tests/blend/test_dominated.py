"""Runs that a blend leaves out by default: clearly worse, and not missed."""

from __future__ import annotations

import numpy as np
import pytest

from foldwise import metrics
from foldwise.blend import Blend, fit_weights
from foldwise.blend.dominated import dominated
from foldwise.blend.run_set import RunSet

METRIC = metrics.resolve("roc_auc")


def lined_up(preds: dict[str, np.ndarray], target: np.ndarray) -> tuple[RunSet, Blend]:
    """Runs on five folds, blended by their mean."""
    n = len(target)
    stacked, folds, ids = np.stack(list(preds.values())), np.arange(n) % 5, np.array([f"t{k}" for k in range(n)])
    families = [(name, "") for name in preds]
    runs = RunSet(tuple(preds), stacked, target, folds, np.arange(n).astype(str), stacked, ids, ["pred"], families)
    return runs, fit_weights(stacked, target, METRIC, "mean", folds=folds, names=list(preds), draws=0)


@pytest.mark.smoke
def test_a_weak_run_that_adds_nothing_is_named_and_a_weak_one_that_adds_is_kept() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 900))  # what two kinds of input tell
    target = (rng.random(900) < 1 / (1 + np.exp(-2.5 * a - 1.2 * b))).astype(np.int64)
    squeeze = [1 / (1 + np.exp(-values)) for values in (*(a + 0.3 * rng.normal(size=(2, 900))), 0.5 * b)]
    preds = dict(zip(("image", "copy", "metadata"), squeeze, strict=True))
    runs, blend = lined_up(preds, target)
    assert dominated(runs, blend, METRIC, "binary") is None  # the copy is no worse, the metadata add
    forgotten = 1 / (1 + np.exp(-0.3 * a - 1.5 * rng.normal(size=900)))
    runs, blend = lined_up({**preds, "forgotten": forgotten}, target)
    one = dominated(runs, blend, METRIC, "binary")
    assert one is not None and one["run"] == "forgotten" and one["adds"] <= 0 and one["best"] in {"image", "copy"}
