"""What of a blend predicts, as its JSON holds it: nothing but numbers, text and trees in text form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldwise.blend.cuts import Cut, Graded, Tilted
from foldwise.blend.methods import Power, Vote
from foldwise.blend.spaces import Maps, Quantiles, Scaling, Sigmoid, Steps, to_space
from foldwise.blend.stacking import Clipped, Combiner, Linear, Trees
from foldwise.core.saved import from_plain, to_plain

Array = NDArray[Any]


@dataclass(frozen=True)
class Prepare:
    """Predictions (M, N[, C]) -> the blend's space, row by row: each as if it came alone.

    maps: of the spaces that were learnt from the out-of-fold predictions (calibrated; ranks among these).
    """

    scaling: Scaling
    space: str
    task: str
    maps: Maps | None

    def __call__(self, preds: Array) -> Array:
        scaled = self.scaling(preds)
        return to_space(self.space, scaled, self.task) if self.maps is None else self.maps(scaled)


@dataclass(frozen=True)
class Mixture:
    """Runs by name, how their predictions are prepared, and how they are combined."""

    names: list[str]
    prepare: Prepare
    combiner: Combiner

    def predict(self, preds: Array) -> Array:
        """(M, N[, C]) -> (N[, C]). A run's row that is NaN counts as the weighted mean of the runs that have one, in
        the blend's space: with weights that sum to one, the others' weights are scaled up."""
        z = self.prepare(np.ascontiguousarray(preds))  # whose layout decides the last bit of a sum
        there = np.isfinite(z)
        if not there.all():
            weights = np.abs(self.combiner.weights).reshape(len(z), -1).mean(axis=1)
            # 1e-9: where only runs without a weight are there, their mean
            own = np.where(there, weights.reshape(-1, *[1] * (z.ndim - 1)) + 1e-9, 0)
            mean = (own * np.nan_to_num(z)).sum(axis=0) / np.maximum(own.sum(axis=0), 1e-300)
            z = np.where(there, z, mean)
        return self.combiner(z)

    @property
    def needed(self) -> list[str]:
        """The runs that the prediction depends on."""
        inner = self.combiner
        while isinstance(inner, (Cut, Graded, Tilted)):
            inner = inner.base
        if not isinstance(inner, (Linear, Clipped)):
            return self.names
        return [name for name, weight in zip(self.names, inner.weights, strict=True) if np.any(weight)]

    def saved(self) -> Any:
        """Plain data for JSON."""
        return to_plain(self)

    @classmethod
    def of_saved(cls, data: Any) -> Mixture:
        """What `saved` described."""
        return from_plain(data, KINDS)


KINDS: Sequence[type] = (
    *(Mixture, Prepare, Scaling, Maps, Sigmoid, Steps, Quantiles),
    *(Linear, Clipped, Trees, Cut, Graded, Tilted, Power, Vote),
)
