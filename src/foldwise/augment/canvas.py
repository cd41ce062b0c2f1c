"""One image on its way through a list of operations: geometry is gathered into one warp, colour into one table.

A pixel is touched when it must be, not once an operation. The warp is worked out on a coarse lattice of nodes (every
2 to 8 pixels), where an affine map, a lens or an elastic field costs next to nothing, and is brought to full size by
bilinear interpolation: exact for affine maps, within 0.0004 of the side for a lens, and rounding the kinks of a grid
distortion over one node's distance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]  # uint8 (S, S, 3)
Matrix = NDArray[np.float64]  # (2, 3): where in the image before an output pixel (x, y) comes from
Plane = NDArray[Any]  # float32
Distortion = Callable[[Plane, Plane], tuple[Plane, Plane]]  # output x, y -> x, y in the image before
Change = Callable[[Image, Image], Any]  # reads the first, writes the second


class Border(NamedTuple):
    """What lies outside the image: mirrored, or one grey level."""

    mode: int
    level: int = 0


REFLECT = Border(cv2.BORDER_REFLECT_101)
BLACK = Border(cv2.BORDER_CONSTANT, 0)
GREY = Border(cv2.BORDER_CONSTANT, 128)
WHITE = Border(cv2.BORDER_CONSTANT, 255)

# the eight symmetries of the square: bit 0 mirrors, bits 1 and 2 turn
_MIRROR = np.array([[-1.0, 0.0], [0.0, 1.0]])
_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
_SYMMETRIES = [(np.linalg.matrix_power(_TURN, k >> 1) @ (_MIRROR if k & 1 else np.eye(2))).T for k in range(8)]


def about_centre(linear: NDArray[np.float64], size: int, shift: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """The (2, 3) matrix of an inverse linear map about the image's centre; `shift` moves the content, in pixels."""
    centre = (size - 1) / 2
    moved = np.array([centre + shift[0], centre + shift[1]])
    return np.column_stack([linear, centre - linear @ moved])


class Canvas:
    """A uint8 (size, size, 3) image with what is still to be done to it; used for one image after the other.

    The image that is loaded is never written to.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._buffers = [np.empty((size, size, 3), np.uint8) for _ in range(2)]
        self._lattice = _lattice(size)
        side = len(self._lattice.places)
        self._nodes = np.empty((side, side, 2), np.float32)
        self._map = np.empty((side * self._lattice.spacing,) * 2 + (2,), np.float32)
        self.clahe = cv2.createCLAHE()
        self._image: Image = self._buffers[0]
        self._table: Image | None = None
        self._steps: list[Matrix | Distortion] = []
        self._border: Border | None = None
        self._outside: tuple[Matrix, Border] | None = None
        self._exact, self._bent = True, False

    def load(self, image: Image) -> None:
        """Begin with another image."""
        self._image = image
        self._table = None
        self._forget_warp()

    @property
    def spacing(self) -> int:
        """Distance of the nodes at which distortions are evaluated, in pixels."""
        return self._lattice.spacing

    @property
    def nodes(self) -> int:
        """Nodes a side."""
        return len(self._lattice.places)

    # --- what operations call ---------------------------------------------------------------------------------

    def turn(self, symmetry: int) -> None:
        """One of the eight symmetries (0: none, bit 0: mirrored, bits 1 and 2: quarter turns); exact."""
        if self._outside:
            self._warp()
        if symmetry:
            self._steps.append(about_centre(_SYMMETRIES[symmetry], self.size))

    def affine(self, matrix: Matrix, border: Border) -> None:
        """An affine map, given as where an output pixel comes from."""
        bent_inside = self._bent and self._border == REFLECT and not self._outside
        if self._border not in (None, border) and not bent_inside:
            self._warp()
        if self._border in (None, border):
            self._border = border
        else:
            self._outside = (matrix, border)  # painted after the one warp, whose border is the distortion's
        self._exact = False
        self._steps.append(matrix)

    def distort(self, distortion: Distortion, border: Border) -> None:
        """Any other map, given likewise: x and y planes (broadcastable, at the nodes) to x and y planes."""
        if self._border not in (None, border) or self._outside:
            self._warp()
        self._border, self._exact, self._bent = border, False, True
        self._steps.append(distortion)

    def recolour(self, table: Image) -> None:
        """A look-up table uint8 (256,) for all channels."""
        self._before_colour()
        self._table = table if self._table is None else table[self._table]

    def colour(self, change: Change) -> None:
        """A change of colours that may as well come before the warp that is pending."""
        self._before_colour()
        self._apply_table()
        self._do(change)

    def filter(self, change: Change) -> None:
        """A change that looks at neighbours, as likely in any of the eight directions: pending symmetries can wait."""
        self._apply_table()
        if not self._exact:
            self._warp()
        self._do(change)

    def add_noise(self, start: int, weight: float, keep_white: bool) -> None:
        """Normal noise from a place of the bank on, times `weight`; white pixels stay white where `keep_white`."""
        noise = np.resize(noise_bank()[start : start + self.size**2 * 3], (self.size, self.size, 3))

        def change(image: Image, out: Image) -> None:
            cv2.addWeighted(image, 1, noise, weight, -NOISE_ZERO * weight, dst=out)
            if keep_white:
                np.copyto(out, 255, where=(image == 255).all(axis=2, keepdims=True))

        self.filter(change)

    def blacken(self, top: int, left: int, side: int) -> None:
        """A black square after all that came before."""
        self.settled()[top : top + side, left : left + side] = 0

    def settled(self) -> Image:
        """The image with everything done; the caller may write to it."""
        self._apply_table()
        self._warp()
        if not any(self._image is buffer for buffer in self._buffers):
            self._do(lambda image, out: np.copyto(out, image))
        return self._image

    def finish(self, out: Image) -> None:
        """Do what is left, and write the image to `out`."""
        self._apply_table()
        self._warp()
        np.copyto(out, self._image)

    # --- how it is done ---------------------------------------------------------------------------------------

    def _forget_warp(self) -> None:
        self._steps, self._border, self._outside = [], None, None
        self._exact, self._bent = True, False

    def _do(self, change: Change) -> None:
        spare = self._buffers[1] if self._image is self._buffers[0] else self._buffers[0]
        change(self._image, spare)
        self._image = spare

    def _before_colour(self) -> None:
        if self._outside or self._border not in (None, REFLECT):
            self._apply_table()
            self._warp()  # what fills the border is coloured too, as it would be one operation at a time

    def _apply_table(self) -> None:
        if self._table is not None:
            table, self._table = self._table, None
            self._do(lambda image, out: cv2.LUT(image, table, dst=out))

    def _warp(self) -> None:
        if not self._steps:
            return
        if self._bent:
            self._do(self._remap)
        else:
            matrix = self._matrix()
            self._do(lambda image, out: self._straight(matrix, image, out))
        self._forget_warp()

    def _matrix(self) -> Matrix:
        return _chained([step for step in self._steps if isinstance(step, np.ndarray)])

    def _straight(self, matrix: Matrix, image: Image, out: Image) -> None:
        if self._exact:
            _turned(matrix, image, out)
        else:
            mode, level = self._border or REFLECT
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            cv2.warpAffine(image, matrix, (self.size, self.size), out, flags, mode, (level,) * 3)

    def _places(self) -> Plane:
        """Where the nodes come from, (n, n, 2)."""
        places = self._lattice.places
        x, y = places[None, :], places[:, None]
        for step in reversed(self._steps):
            x, y = step(x, y) if callable(step) else _moved(step, x, y)
        self._nodes[..., 0], self._nodes[..., 1] = x, y
        return self._nodes

    def _remap(self, image: Image, out: Image) -> None:
        spacing = self.spacing
        cv2.resize(self._places(), self._map.shape[:2], dst=self._map, interpolation=cv2.INTER_LINEAR)
        first = spacing // 2
        part = self._map[first : first + self.size, first : first + self.size]
        mode, level = self._border or REFLECT
        cv2.remap(image, part, None, cv2.INTER_LINEAR, out, mode, (level,) * 3)  # type: ignore[call-overload]
        if self._outside:
            _fill_outside(out, *self._outside)


NOISE_ZERO, NOISE_UNIT = 128, 28.0  # the bank holds 128 + 28 normal: to 4.5 sigma, in steps of 1/28 sigma


@lru_cache(maxsize=1)
def noise_bank() -> Image:
    """Normal noise as uint8, 4 M values: drawing them an image at a time would cost more than all else."""
    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
    return np.clip(np.rint(NOISE_ZERO + NOISE_UNIT * values), 0, 255).astype(np.uint8)


class _Lattice(NamedTuple):
    places: Plane  # pixel coordinates of the nodes, along x as along y
    spacing: int


@lru_cache(maxsize=16)
def _lattice(size: int) -> _Lattice:
    """Nodes half a pixel before 0 and every `spacing` pixels: where cv2.resize puts the centres of its source."""
    spacing = max(2, 2 * round(size / 128))
    count = int(np.ceil((size - 0.5) / spacing)) + 1
    return _Lattice((np.arange(count) * spacing - 0.5).astype(np.float32), spacing)


def _moved(matrix: Matrix, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    (a, b, c), (d, e, f) = matrix.tolist()
    return (a * x + c) + b * y, (d * x + f) + e * y


def _chained(steps: list[Matrix]) -> Matrix:
    """One inverse matrix of steps that are applied in their order: the last one's is asked first."""
    whole = np.eye(3)
    for step in steps:
        whole = whole @ np.vstack([step, [0, 0, 1]])
    return whole[:2]


def _turned(matrix: Matrix, image: Image, out: Image) -> None:
    """A symmetry as a copy."""
    (a, b, _), (c, d, _) = np.rint(matrix).astype(int).tolist()
    if a:  # out[y, x] = image[d y, a x]
        signs = (a, d)
    else:  # out[y, x] = image[c x, b y]
        image = cv2.transpose(image)
        signs = (c, b)
    if signs == (1, 1):
        np.copyto(out, image)
    else:
        cv2.flip(image, {(-1, 1): 1, (1, -1): 0, (-1, -1): -1}[signs], dst=out)


def _fill_outside(image: Image, matrix: Matrix, border: Border) -> None:
    """Paint what an affine map brings in from outside the image."""
    end = len(image)
    square = np.array([[-1, -1, 1], [end, -1, 1], [end, end, 1], [-1, end, 1]], float)
    inside = square @ cv2.invertAffineTransform(matrix).T
    frame = square[:, :2] * 9  # far enough outside to leave no line in the picture
    shapes = [np.rint(shape * 16).astype(np.int32) for shape in (frame, inside)]
    cv2.fillPoly(image, shapes, (border.level,) * 3, shift=4)
