"""Weights set by hand, judged beside the automatic blend of the same runs: for the app's sliders and notebook 03."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foldwise import stats
from foldwise.blend.fit import Blend, fit_weights
from foldwise.blend.run_set import RunSet
from foldwise.metrics import Metric

DRAWS = 300  # of rows: a slider must not wait for more
SPACES = ("prob", "logit", "rank", "fold_rank")


@dataclass(frozen=True)
class ByHand:
    """Runs lined up, and how they are scored. cut: as fit_weights takes it."""

    runs: RunSet
    metric: Metric
    task: str
    seed: int = 0
    cut: bool = True

    @property
    def spaces(self) -> tuple[str, ...]:
        """In which weights may act."""
        return SPACES[:1] if self.task == "regression" else SPACES

    def fit(self, **settings: Any) -> Blend:
        """fit_weights of the runs."""
        runs = self.runs
        lined: Any = {"folds": runs.folds, "groups": runs.groups, "families": runs.families, "names": runs.names}
        how: Any = {"seed": self.seed, "task": self.task, "cut": self.cut}
        return fit_weights(runs.preds, runs.target, self.metric, **how, **lined, **settings)

    @cached_property
    def automatic(self) -> Blend:
        """The blend that nested cross-validation picks."""
        return self.fit()

    @property
    def start(self) -> dict[str, float]:
        """Where sliders begin: at the automatic blend's weights, equal ones where these are not one a run."""
        weights = self.automatic.weights
        alike = weights.ndim > 1 or weights.min() < 0 or weights.sum() <= 0
        return (
            dict.fromkeys(self.runs.names, 1.0) if alike else dict(zip(self.runs.names, weights.tolist(), strict=True))
        )

    def blend(self, weights: Mapping[str, float], space: str | None = None, draws: int = 0) -> Blend:
        """The blend by weights a run (absent: 0), scaled to sum to one; UserError where their sum is not above 0.

        draws: of rows, for an interval.
        """
        return self.fit(space=space, weights=[weights.get(name, 0.0) for name in self.runs.names], draws=draws)

    def gain(self, blend: Blend) -> dict[str, float]:
        """Over the automatic blend, with its paired 95 % interval: stats.gain."""
        runs, other = self.runs, self.automatic
        draws = stats.bootstrap(self.metric, runs.target, [blend.nested, other.nested], runs.groups, DRAWS, self.seed)
        return stats.gain(draws, blend.nested_score, other.nested_score, self.metric.greater_is_better)

    def says(self, blend: Blend) -> str:
        """Score and gain in words."""
        gain = self.gain(blend)
        ends = f"{gain['gain']:+.4f} (95 % interval {gain['low']:+.4f} to {gain['high']:+.4f})"
        return f"{self.metric.name} {blend.nested_score:.4f}; over the automatic blend {ends}"
