"""Which runs a blend is better without: clearly worse than the best one, and nothing lost where they are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from foldwise import stats
from foldwise.blend.assess import cut_alike, leave_one_out
from foldwise.blend.fit import Blend
from foldwise.blend.run_set import RunSet
from foldwise.blend.spaces import Scaling
from foldwise.metrics import Metric

DRAWS = 200  # of rows, to tell a run from the best


def dominated(runs: RunSet, blend: Blend, metric: Metric, task: str, seed: int = 0) -> dict[str, Any] | None:
    """The run that `blend` (of these runs) loses least without, as {run, adds, score, best}; None where each is worth
    its place.

    Only a run whose own score is below the best single run's, with an interval (paired, groups drawn whole) that
    leaves out 0, and whose absence costs the nested score nothing: near copies of a good run are no harm, and stay.
    """
    adds = {row["run"]: row["adds"] for row in leave_one_out(runs, blend, metric, seed)}
    preds, _ = cut_alike(runs, blend, Scaling.of(runs.preds, task)(runs.preds), metric, seed)
    scores = [float(metric.function(runs.target, run, None)) for run in preds]
    best = int(np.argmax(scores) if metric.greater_is_better else np.argmin(scores))
    for m in sorted(range(len(scores)), key=lambda m: adds.get(runs.names[m], 0.0)):
        name = runs.names[m]
        if m == best or adds.get(name, 1.0) > 0:
            continue
        draws = stats.bootstrap(metric, runs.target, [preds[m], preds[best]], runs.groups, DRAWS, seed)
        if stats.gain(draws, scores[m], scores[best], metric.greater_is_better)["high"] < 0:
            return {"run": name, "adds": adds[name], "score": scores[m], "best": runs.names[best]}
    return None
