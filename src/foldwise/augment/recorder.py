"""What operations would do to an image, as numbers: warps, tables, noise and holes for another device to carry out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foldwise.augment.canvas import REFLECT, Border, Canvas, Image, Matrix, Plane
from foldwise.augment.operations import (
    Affine,
    BrightnessContrast,
    CutOut,
    ElasticTransform,
    Flips,
    GaussNoise,
    GridDistortion,
    Operation,
    OpticalDistortion,
)

KNOWN = (Affine, BrightnessContrast, CutOut, ElasticTransform, Flips, GaussNoise, GridDistortion, OpticalDistortion)


class Warp(NamedTuple):
    """Where each output pixel comes from: an affine map (2, 3), or places at the lattice's nodes, float32 (n, n, 2)."""

    matrix: Matrix
    nodes: Plane | None
    border: Border
    outside: tuple[Matrix, Border] | None


class Table(NamedTuple):
    """uint8 (256,) for all channels."""

    levels: Image


class Noise(NamedTuple):
    """The bank of normal noise from `start` on, times `weight`; white pixels stay white where `keep_white`."""

    start: int
    weight: float
    keep_white: bool


class Hole(NamedTuple):
    """A black square."""

    top: int
    left: int
    side: int


Step = Warp | Table | Noise | Hole


class Recorder(Canvas):
    """A canvas that notes what is done, fused as on any other, and does nothing."""

    def begin(self) -> list[Step]:
        """Another image; its steps are added to the list."""
        self.load(self._buffers[0])
        self.steps: list[Step] = []
        return self.steps

    def end(self) -> None:
        """Note what is pending."""
        self._apply_table()
        self._warp()

    def blacken(self, top: int, left: int, side: int) -> None:
        """A hole after all that came before."""
        self.end()
        self.steps.append(Hole(top, left, side))

    def add_noise(self, start: int, weight: float, keep_white: bool) -> None:
        """Noise; a pending turn may come after it."""
        self._apply_table()
        if not self._exact:
            self._warp()
        self.steps.append(Noise(start, weight, keep_white))

    def _apply_table(self) -> None:
        if self._table is not None:
            self.steps.append(Table(self._table))
            self._table = None

    def _warp(self) -> None:
        if self._steps:
            matrix = np.zeros((2, 3)) if self._bent else self._matrix()
            nodes = self._places().copy() if self._bent else None
            self.steps.append(Warp(matrix, nodes, self._border or REFLECT, self._outside))
        self._forget_warp()


def recorded(ops: Sequence[Operation], size: int, count: int, rng: np.random.Generator) -> list[list[Step]]:
    """What `pipeline(ops, size)` does with the same `rng` to each of `count` images."""
    canvas, plans = Recorder(size), []
    for _ in range(count):
        plans.append(canvas.begin())
        for operation in ops:
            if operation.p >= 1 or rng.random() < operation.p:
                operation.apply(canvas, rng)
        canvas.end()
    return plans


def recordable(ops: Sequence[Operation]) -> bool:
    """Whether all of the operations can be noted: none looks at the pixels."""
    return all(isinstance(one, KNOWN) for one in ops)
