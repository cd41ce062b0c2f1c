"""RandAugment: two operations of a list, all at one magnitude (Cubuk 2020, arXiv:1909.13719).

Ranges are those of torchvision's RandAugment; what a shear, shift or turn brings in is mid-grey, as in the paper's
code. Geometry is one warp and what is a table of grey levels is a table, as in the presets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from foldwise.augment.canvas import GREY, Canvas, Image, about_centre
from foldwise.augment.operations import Operation, Rng

Step = Callable[[Canvas, float], None]  # the canvas, and how far to go: 0 to 1, or -1 to 1 where it is signed
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


@dataclass(frozen=True)
class RandAugment(Operation):
    """`count` operations, each as likely, at a magnitude of 0 to 30."""

    magnitude: int
    count: int = 2
    colours: bool = True

    def without_colours(self) -> Operation:
        """Without `colour`, which is identity then."""
        return replace(self, colours=False)

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        for _ in range(self.count):
            step = STEPS[list(STEPS)[int(rng.random() * len(STEPS))]]
            step = identity if step is colour and not self.colours else step
            sign = -1 if rng.random() < 0.5 else 1
            step(canvas, sign * self.magnitude / 30)


def identity(canvas: Canvas, level: float) -> None:
    """Nothing."""


def shear_x(canvas: Canvas, level: float) -> None:
    """Rows pushed sideways by up to 0.3 of their height in the image."""
    canvas.affine(np.array([[1, 0.3 * level, 0], [0, 1, 0]]), GREY)


def shear_y(canvas: Canvas, level: float) -> None:
    """Columns pushed up or down likewise."""
    canvas.affine(np.array([[1, 0, 0], [0.3 * level, 1, 0]]), GREY)


def translate_x(canvas: Canvas, level: float) -> None:
    """Sideways by up to 150/331 of the side."""
    canvas.affine(np.array([[1, 0, -150 / 331 * level * canvas.size], [0, 1, 0]]), GREY)


def translate_y(canvas: Canvas, level: float) -> None:
    """Up or down likewise."""
    canvas.affine(np.array([[1, 0, 0], [0, 1, -150 / 331 * level * canvas.size]]), GREY)


def rotate(canvas: Canvas, level: float) -> None:
    """By up to 30 degrees."""
    cos, sin = math.cos(math.radians(30 * level)), math.sin(math.radians(30 * level))
    canvas.affine(about_centre(np.array([[cos, -sin], [sin, cos]]), canvas.size), GREY)


def brightness(canvas: Canvas, level: float) -> None:
    """Blended with black, or away from it."""
    canvas.recolour(_table(_LEVELS * (1 + 0.9 * level)))


def contrast(canvas: Canvas, level: float) -> None:
    """Blended with the image's mean grey, or away from it."""
    mean = float(cv2.cvtColor(canvas.settled(), cv2.COLOR_RGB2GRAY).mean())
    canvas.recolour(_table(mean + (_LEVELS - mean) * (1 + 0.9 * level)))


def colour(canvas: Canvas, level: float) -> None:
    """Blended with its own greys, or away from them."""
    share = 1 + 0.9 * level
    weights = np.array([0.299, 0.587, 0.114])
    matrix = share * np.eye(3) + (1 - share) * weights
    canvas.colour(lambda image, out: cv2.transform(image, matrix, dst=out))


def sharpness(canvas: Canvas, level: float) -> None:
    """Blended with a smoothed copy, or away from it; the rim of a pixel stays."""
    share = 1 + 0.9 * level

    def change(image: Image, out: Image) -> None:
        np.copyto(out, image)
        inner = np.s_[1:-1, 1:-1]
        smooth = cv2.filter2D(image, -1, _SMOOTH)
        out[inner] = cv2.addWeighted(image, share, smooth, 1 - share, 0)[inner]

    canvas.filter(change)


def posterize(canvas: Canvas, level: float) -> None:
    """Grey levels cut to 8 to 4 bits."""
    bits = 8 - round(4 * abs(level))
    canvas.recolour((_LEVELS & ~((1 << (8 - bits)) - 1)).astype(np.uint8))


def solarize(canvas: Canvas, level: float) -> None:
    """Levels from 255 (1 - magnitude) on are inverted."""
    canvas.recolour(np.where(255 * (1 - abs(level)) <= _LEVELS, 255 - _LEVELS, _LEVELS).astype(np.uint8))


def autocontrast(canvas: Canvas, level: float) -> None:
    """Each channel stretched to 0..255."""
    image = canvas.settled()
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    wide = np.where(high > low, high - low, 255.0)
    tables = _table((_LEVELS[:, None] - np.where(high > low, low, 0)) * 255 / wide)
    canvas.colour(lambda image, out: cv2.LUT(image, tables[None], dst=out))


def equalize(canvas: Canvas, level: float) -> None:
    """Each channel's histogram made flat."""

    def change(image: Image, out: Image) -> None:
        for channel in range(3):
            cv2.insertChannel(cv2.equalizeHist(cv2.extractChannel(image, channel)), out, channel)

    canvas.settled()
    canvas.colour(change)


def _table(values: np.ndarray) -> Image:
    return np.clip(values, 0, 255).astype(np.uint8)


STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (
        identity,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
        rotate,
        brightness,
        colour,
        contrast,
        sharpness,
        posterize,
        solarize,
        autocontrast,
        equalize,
    )
}
