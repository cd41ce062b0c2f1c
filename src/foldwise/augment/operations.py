"""Augmenting operations: each says how it is done on a canvas, and what it is called in albumentations.

The second is the plain twin that figures, tests and benches compare with; `albumentations` comes in as an argument
because its import is slow and needed by nobody who trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import cv2
import numpy as np

from foldwise.augment.canvas import BLACK, NOISE_UNIT, REFLECT, Border, Canvas, Image, Plane, about_centre, noise_bank

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation; p: its probability, or inside OneOf its weight."""

    strengths: ClassVar[tuple[str, ...]] = ()  # fields that say how much; none: how often says it
    p: float = 1.0

    def scaled(self, strength: float) -> Operation:
        """The operation at `strength` times as much; kernels, whose sides are whole, that much oftener or rarer."""
        if not self.strengths:
            return replace(self, p=min(1.0, self.p * strength))
        return replace(self, **{name: getattr(self, name) * strength for name in self.strengths})

    def without_colours(self) -> Operation:
        """The operation for three channels that are no colours: what mixes them is left out."""
        return self

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        """Do it, or note it as still to be done."""
        raise NotImplementedError

    def reference(self, A: Any, size: int) -> Any:
        """The albumentations 2.0.8 transform (or a list) of the same distribution for images of this side."""
        raise NotImplementedError


@dataclass(frozen=True)
class OneOf(Operation):
    """One of several, drawn by their weights."""

    choices: tuple[Operation, ...]

    def scaled(self, strength: float) -> Operation:
        """Each choice at that strength; how often one is drawn stays."""
        return replace(self, choices=tuple(replace(one.scaled(strength), p=one.p) for one in self.choices))

    def without_colours(self) -> Operation:
        """Of the choices that are left."""
        return replace(self, choices=tuple(one.without_colours() for one in self.choices))

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        draw = rng.random() * sum(choice.p for choice in self.choices)
        for choice in self.choices:
            draw -= choice.p
            if draw < 0:
                break
        choice.apply(canvas, rng)

    def reference(self, A: Any, size: int) -> Any:
        return A.OneOf([choice.reference(A, size) for choice in self.choices], p=self.p)


# --- geometry -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flips(Operation):
    """none, horizontal (mirror, p 0.5) or d4 (Transpose, VerticalFlip and HorizontalFlip, each p 0.5)."""

    kind: str

    def scaled(self, strength: float) -> Operation:
        """A mirror image is one or is none."""
        return self

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        canvas.turn(int(rng.random() * {"none": 1, "horizontal": 2, "d4": 8}[self.kind]))

    def reference(self, A: Any, size: int) -> Any:
        d4 = [A.Transpose(p=0.5), A.VerticalFlip(p=0.5), A.HorizontalFlip(p=0.5)]
        return {"none": [], "horizontal": d4[2:], "d4": d4}[self.kind]


@dataclass(frozen=True)
class Affine(Operation):
    """Shift (of the side), scale (relative) and rotation (degrees) about the centre, each uniform either way."""

    strengths = ("shift", "scale", "rotate")
    shift: float
    scale: float
    rotate: float
    border: Border = REFLECT

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        angle = math.radians(_either_way(rng, self.rotate))
        scale = 1 + _either_way(rng, self.scale)
        reach = self.shift * canvas.size
        shift = (_either_way(rng, reach), _either_way(rng, reach))
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        canvas.affine(about_centre(np.array([[cos, sin], [-sin, cos]]), canvas.size, shift), self.border)

    def reference(self, A: Any, size: int) -> Any:
        # keep_ratio: one scale for both axes, as ShiftScaleRotate drew it until albumentations 2
        return A.Affine(
            translate_percent=(-self.shift, self.shift),
            scale=(1 - self.scale, 1 + self.scale),
            keep_ratio=True,
            rotate=(-self.rotate, self.rotate),
            border_mode=self.border.mode,
            fill=self.border.level,
            p=self.p,
        )


@dataclass(frozen=True)
class OpticalDistortion(Operation):
    """A lens: radius r (in sides) comes from r (1 + k r^2 + k r^4), k uniform in +-limit; barrel and pincushion."""

    strengths = ("limit",)
    limit: float

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        k, side = _either_way(rng, self.limit), canvas.size
        here, there = (side - 1) / 2, side / 2  # the centre, and half a pixel off it: cv2.initUndistortRectifyMap's way

        def lens(x: Plane, y: Plane) -> tuple[Plane, Plane]:
            x, y = (x - here) / side, (y - here) / side
            square = x * x + y * y
            factor = side * (1 + k * square * (1 + square))
            return x * factor + there, y * factor + there

        canvas.distort(lens, REFLECT)

    def reference(self, A: Any, size: int) -> Any:
        return A.OpticalDistortion(self.limit, border_mode=REFLECT.mode, p=self.p)


@dataclass(frozen=True)
class GridDistortion(Operation):
    """Rows and columns of cells, each stretched by 1 + uniform(+-limit); the stretches add up from the left and top."""

    steps: int
    limit: float

    def scaled(self, strength: float) -> Operation:
        """A cell shrinks to nothing at most."""
        return replace(self, limit=min(1.0, self.limit * strength))

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        cell = canvas.size // self.steps

        def axis() -> tuple[Plane, Plane]:
            slope = (1 + self.limit * (2 * rng.random(self.steps + 1) - 1)).astype(np.float32)
            start = np.concatenate([[0], np.cumsum(slope)[:-1]]).astype(np.float32) * cell
            return slope, start - slope * (np.arange(self.steps + 1, dtype=np.float32) * cell)

        across, down = axis(), axis()

        def place(line: tuple[Plane, Plane], at: Plane) -> Plane:
            index = np.clip(at * np.float32(1 / cell), 0, self.steps).astype(np.intp)
            return line[0][index] * at + line[1][index]

        canvas.distort(lambda x, y: (place(across, x), place(down, y)), REFLECT)

    def reference(self, A: Any, size: int) -> Any:
        # normalized=False and the mirrored border are what this operation did until albumentations 2
        return A.GridDistortion(self.steps, self.limit, normalized=False, border_mode=REFLECT.mode, p=self.p)


@dataclass(frozen=True)
class ElasticTransform(Operation):
    """A smooth random field (Simard 2003): white noise of [-1, 1], blurred by sigma pixels, times alpha.

    side: alpha and sigma are meant for images of this side and grow with it; None: pixels, whatever the side.
    """

    strengths = ("alpha",)
    alpha: float
    sigma: float
    border: Border = REFLECT
    side: int | None = None

    def sized(self, size: int) -> tuple[float, float]:
        """alpha and sigma for images of side `size`: a displacement is proportional to alpha / sigma."""
        ratio = size / self.side if self.side else 1.0
        return self.alpha * ratio * ratio, self.sigma * ratio

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        alpha, sigma = self.sized(canvas.size)
        fields = _smooth_fields(canvas.nodes * canvas.spacing, sigma, rng)
        fields = cv2.resize(fields, (canvas.nodes, canvas.nodes), interpolation=cv2.INTER_LINEAR)
        fields = fields * (alpha / _largest_of_normal(2 * canvas.size**2) / (2 * math.sqrt(math.pi) * sigma))
        canvas.distort(lambda x, y: (x + fields[..., 0], y + fields[..., 1]), self.border)

    def reference(self, A: Any, size: int) -> Any:
        alpha, sigma = self.sized(size)
        fill = (self.border.level,) * 3  # one number would fill the first channel alone
        return A.ElasticTransform(alpha, sigma, border_mode=self.border.mode, fill=fill, p=self.p)


def _smooth_fields(side: int, sigma: float, rng: Rng) -> Plane:
    """Two fields of unit variance, correlated over `sigma` pixels, at every quarter of it over `side`: (n, n, 2)."""
    count, margin = math.ceil(4 * side / sigma), 12
    noise: Plane = rng.standard_normal((count + 2 * margin, count + 2 * margin, 2), dtype=np.float32)
    kernel = cv2.getGaussianKernel(2 * margin + 1, 4, cv2.CV_32F)
    noise = cv2.sepFilter2D(noise, -1, kernel, kernel)
    return noise[margin:-margin, margin:-margin] / float(np.square(kernel).sum())


def _largest_of_normal(count: int) -> float:
    """Expected largest magnitude of so many standard normal values (Gumbel's limit)."""
    root = math.sqrt(2 * math.log(2 * count))
    return root + (0.5772 - 0.5 * math.log(4 * math.pi * math.log(2 * count))) / root


# --- colour ---------------------------------------------------------------------------------------------------

_LEVELS = np.arange(256)


@dataclass(frozen=True)
class BrightnessContrast(Operation):
    """Grey level v becomes v (1 + contrast) + 255 brightness, each uniform either way."""

    strengths = ("brightness", "contrast")
    brightness: float = 0.0
    contrast: float = 0.0

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        contrast, brightness = _either_way(rng, self.contrast), _either_way(rng, self.brightness)
        canvas.recolour(np.clip(_LEVELS * (1 + contrast) + 255 * brightness, 0, 255).astype(np.uint8))

    def reference(self, A: Any, size: int) -> Any:
        return A.RandomBrightnessContrast(self.brightness, self.contrast, p=self.p)


@dataclass(frozen=True)
class Clahe(Operation):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of 8 x 8 tiles; limit uniform in 1..limit.

    The twin equalises L of LAB. We take the luma Y of YCrCb, a fifth of the conversion's cost, on the scale of L that
    a grey of that luma has.
    """

    limit: float

    def scaled(self, strength: float) -> Operation:
        """A limit of 1 changes nothing."""
        return replace(self, limit=1 + (self.limit - 1) * strength)

    def without_colours(self) -> Operation:
        """Nothing."""
        return replace(self, p=0.0)

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        canvas.clahe.setClipLimit(1 + (self.limit - 1) * rng.random())
        to_lightness, to_luma = _lightness()

        def change(image: Image, out: Image) -> None:
            cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb, dst=out)
            lightness = cv2.LUT(cv2.extractChannel(out, 0), to_lightness)
            cv2.insertChannel(cv2.LUT(canvas.clahe.apply(lightness), to_luma), out, 0)
            cv2.cvtColor(out, cv2.COLOR_YCrCb2RGB, dst=out)

        canvas.colour(change)

    def reference(self, A: Any, size: int) -> Any:
        return A.CLAHE(self.limit, p=self.p)


@lru_cache(maxsize=1)
def _lightness() -> tuple[Image, Image]:
    """Tables from luma to L of LAB (0 to 255) for greys, and back."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    to_lightness = cv2.cvtColor(greys, cv2.COLOR_RGB2LAB)[0, :, 0].copy()
    greys[..., 1:] = 128
    return to_lightness, cv2.cvtColor(greys, cv2.COLOR_LAB2RGB)[0, :, 1].copy()


@dataclass(frozen=True)
class HueSaturationValue(Operation):
    """Hue (of 180), saturation and value (of 255) shifted, each uniform either way; grey pixels stay grey."""

    strengths = ("hue", "saturation", "value")
    hue: float
    saturation: float
    value: float

    def without_colours(self) -> Operation:
        """Nothing."""
        return replace(self, p=0.0)

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        table = np.empty((1, 256, 3), np.uint8)
        table[0, :, 0] = (_LEVELS + _either_way(rng, self.hue)) % 180
        for channel, reach in ((1, self.saturation), (2, self.value)):
            table[0, :, channel] = np.clip(_LEVELS + _either_way(rng, reach), 0, 255)
        table[0, 0, 1] = 0

        def change(image: Image, out: Image) -> None:
            cv2.cvtColor(image, cv2.COLOR_RGB2HSV, dst=out)
            cv2.LUT(out, table, dst=out)
            cv2.cvtColor(out, cv2.COLOR_HSV2RGB, dst=out)

        canvas.colour(change)

    def reference(self, A: Any, size: int) -> Any:
        return A.HueSaturationValue(self.hue, self.saturation, self.value, p=self.p)


# --- blur, noise, holes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianBlur(Operation):
    """Sigma uniform in low..high pixels; kernel of a side drawn from 3..largest, or as wide as sigma asks for."""

    strengths = ("low", "high")
    low: float
    high: float
    largest: int | None = None

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        sigma = self.low + (self.high - self.low) * rng.random()
        side = (3 + int(rng.random() * (self.largest - 2))) | 1 if self.largest else int(sigma * 3.5) * 2 + 1
        canvas.filter(lambda image, out: cv2.GaussianBlur(image, (side, side), sigma, dst=out))

    def reference(self, A: Any, size: int) -> Any:
        blur_limit = (3, self.largest) if self.largest else 0
        return A.GaussianBlur(blur_limit, (self.low, self.high), p=self.p)


@dataclass(frozen=True)
class MedianBlur(Operation):
    """Median of a square of odd side, 3..largest."""

    largest: int

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        side = _odd(self.largest, rng)
        canvas.filter(lambda image, out: cv2.medianBlur(image, side, dst=out))

    def reference(self, A: Any, size: int) -> Any:
        return A.MedianBlur((3, self.largest), p=self.p)


@dataclass(frozen=True)
class MotionBlur(Operation):
    """The mean along a short line of random direction, lopsidedness and place, in a square of odd side, 3..largest."""

    largest: int

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        kernels = _motion_kernels(_odd(self.largest, rng))
        kernel = kernels[int(rng.random() * len(kernels))]
        canvas.filter(lambda image, out: cv2.filter2D(image, -1, kernel, dst=out))

    def reference(self, A: Any, size: int) -> Any:
        return A.MotionBlur((3, self.largest), p=self.p)


@lru_cache(maxsize=8)
def _motion_kernels(side: int, count: int = 1024) -> Plane:
    """A bank of line kernels, float32 (count, side, side), each of sum 1."""
    rng = np.random.default_rng(side)
    reach = side // 2
    angle, bias = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count)
    start = -reach * (1 - np.maximum(bias, 0))  # a bias shortens the line at one end
    end = reach * (1 + np.minimum(bias, 0))
    along = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, side)
    shift = rng.uniform(-reach / 2, reach / 2, (2, count, 1))
    x = np.clip(np.rint(reach + np.cos(angle)[:, None] * along + shift[0]), 0, side - 1).astype(int)
    y = np.clip(np.rint(reach + np.sin(angle)[:, None] * along + shift[1]), 0, side - 1).astype(int)
    kernels = np.zeros((count, side, side), np.float32)
    kernels[np.arange(count)[:, None], y, x] = 1
    return kernels / kernels.sum(axis=(1, 2), keepdims=True)


@dataclass(frozen=True)
class GaussNoise(Operation):
    """Standard deviation uniform in low..high grey levels, each pixel and channel for itself.

    keep_white: pixels of 255 in every channel, a sketch's paper, stay as they are.
    """

    strengths = ("low", "high")
    low: float
    high: float
    keep_white: bool = False

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        sigma = self.low + (self.high - self.low) * rng.random()
        start = int(rng.random() * max(1, len(noise_bank()) - canvas.size**2 * 3))
        canvas.add_noise(start, sigma / NOISE_UNIT, self.keep_white)

    def reference(self, A: Any, size: int) -> Any:
        kind: Any = _on_strokes(A.GaussNoise) if self.keep_white else A.GaussNoise
        return kind(std_range=(self.low / 255, self.high / 255), p=self.p)


def _on_strokes(kind: Any) -> Any:
    class StrokeNoise(kind):
        def apply(self, img: Image, **params: Any) -> Image:
            white = (img == 255).all(axis=2, keepdims=True)
            return np.where(white, img, super().apply(img, **params))

    return StrokeNoise


@dataclass(frozen=True)
class CutOut(Operation):
    """One black square, its side this share of the image's (DeVries 2017), wholly inside."""

    share: float

    def scaled(self, strength: float) -> Operation:
        """Something is left to see."""
        return replace(self, share=min(0.8, self.share * strength))

    def apply(self, canvas: Canvas, rng: Rng) -> None:
        side = int(canvas.size * self.share)
        top, left = (int(rng.random() * (canvas.size - side + 1)) for _ in range(2))
        canvas.blacken(top, left, side)

    def reference(self, A: Any, size: int) -> Any:
        return A.CoarseDropout((1, 1), (self.share, self.share), (self.share, self.share), fill=BLACK.level, p=self.p)


def _either_way(rng: Rng, reach: float) -> float:
    return reach * (2 * rng.random() - 1)


def _odd(largest: int, rng: Rng) -> int:
    return 3 + 2 * int(rng.random() * (largest // 2))
