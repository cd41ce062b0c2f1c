"""Train operations on batches of uint8 images, their plain albumentations twin, and the views of TTA.

All geometry of an image (flips, rotation, scale, shift) is one warp, all its colour one look-up table, its noise a
slice of a bank made once: the pixels are touched two or three times instead of once an operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from foldwise import UserError
from foldwise.schema import nearest

Ops = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Preset:
    """How far each operation goes; p_* are probabilities an image."""

    shift: float = 0.0  # of the side, either way
    scale: float = 0.0  # relative, either way
    rotate: float = 0.0  # degrees, either way
    p_affine: float = 0.0
    brightness: float = 0.0  # of the full range, either way
    contrast: float = 0.0  # relative, either way
    p_colour: float = 0.0
    noise: float = 0.0  # largest standard deviation, in grey levels
    p_noise: float = 0.0
    blur: float = 0.0  # largest sigma, in pixels
    p_blur: float = 0.0
    hole: float = 0.0  # side of the one cut-out square, of the image's side
    p_hole: float = 0.0


PRESETS: dict[str, Preset] = {
    "none": Preset(),
    "light": Preset(shift=0.05, scale=0.1, rotate=10, p_affine=0.5),
    "medium": Preset(
        shift=0.1, scale=0.15, rotate=15, p_affine=0.75,
        brightness=0.2, contrast=0.2, p_colour=0.5, hole=0.25, p_hole=0.3,
    ),
    "heavy": Preset(
        shift=0.1, scale=0.25, rotate=45, p_affine=0.85, brightness=0.3, contrast=0.3, p_colour=0.75,
        noise=12, p_noise=0.3, blur=1.5, p_blur=0.2, hole=0.375, p_hole=0.5,
    ),
}  # fmt: skip

FLIPS = ("none", "horizontal", "d4")


def train_ops(preset: str, image_size: int, flips: str = "horizontal") -> Ops:
    """fn(images, rng) -> images, uint8 (B, H, W, 3) in and out, H = W = image_size; the same for an equal rng.

    flips: none, horizontal (mirror, p 0.5), or d4 (any of the eight symmetries of the square, for images without an
    up and down).
    """
    chosen = _preset(preset, flips)
    if preset == "none" and flips == "none":
        return lambda images, rng: images

    def apply(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = np.empty_like(images)
        for place, picture in zip(out, images, strict=True):
            place[...] = _one(picture, chosen, flips, rng)
        return out

    return apply


def reference_ops(preset: str, image_size: int, flips: str = "horizontal") -> Ops:
    """The same distribution by albumentations, an operation at a time: the slow twin that tests compare with."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for news
    import albumentations as A

    p = _preset(preset, flips)
    reflect = cv2.BORDER_REFLECT_101
    ops = {"none": [], "horizontal": [A.HorizontalFlip(p=0.5)], "d4": [A.D4(p=1.0)]}[flips] + [
        A.Affine(
            translate_percent=(-p.shift, p.shift), scale=(1 - p.scale, 1 + p.scale), rotate=(-p.rotate, p.rotate),
            border_mode=reflect, p=p.p_affine,
        ),
        A.RandomBrightnessContrast(p.brightness, p.contrast, p=p.p_colour),
        A.GaussianBlur(sigma_limit=(0.1, max(p.blur, 0.1)), blur_limit=0, p=p.p_blur),
        A.GaussNoise(std_range=(0.0, p.noise / 255), per_channel=True, p=p.p_noise),
        A.CoarseDropout((1, 1), (p.hole, p.hole), (p.hole, p.hole), p=p.p_hole) if p.hole else A.NoOp(),
    ]  # fmt: skip
    compose = A.Compose(ops)

    def apply(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        compose.set_random_seed(int(rng.integers(2**31)))
        return np.stack([compose(image=picture)["image"] for picture in images])

    return apply


def _preset(name: str, flips: str) -> Preset:
    if name not in PRESETS:
        raise UserError(f"augment.preset={name}: no such preset{nearest(name, PRESETS)}")
    if flips not in FLIPS:
        raise UserError(f"augment.flips={flips}: no such choice{nearest(flips, FLIPS)}")
    return PRESETS[name]


def _one(picture: np.ndarray, p: Preset, flips: str, rng: np.random.Generator) -> np.ndarray:
    picture = _geometry(picture, p, flips, rng)
    if rng.random() < p.p_colour:
        picture = cv2.LUT(picture, _colour_table(p, rng))
    if rng.random() < p.p_blur:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.1, p.blur))
    if rng.random() < p.p_noise:
        picture = _add_noise(picture, rng.uniform(0, p.noise), rng)
    if rng.random() < p.p_hole:
        picture = _cut_hole(picture, p.hole, rng)
    return picture


def _geometry(picture: np.ndarray, p: Preset, flips: str, rng: np.random.Generator) -> np.ndarray:
    """Flips and the affine as one warp; flips alone are exact copies."""
    symmetry = {"none": 1, "horizontal": 2, "d4": 8}[flips]
    flip = int(rng.integers(symmetry))
    if rng.random() >= p.p_affine:
        return _flipped(picture, flip)
    height, width = picture.shape[:2]
    angle = np.deg2rad(rng.uniform(-p.rotate, p.rotate))
    scale = rng.uniform(1 - p.scale, 1 + p.scale)
    shift = rng.uniform(-p.shift, p.shift, 2) * (width, height)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ _FLIP_MATRICES[flip]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


# the eight symmetries of the square: bit 0 mirrors, bits 1 and 2 turn
_MIRROR = np.array([[-1.0, 0.0], [0.0, 1.0]])
_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
_FLIP_MATRICES = [np.linalg.matrix_power(_TURN, k >> 1) @ (_MIRROR if k & 1 else np.eye(2)) for k in range(8)]


def _flipped(picture: np.ndarray, flip: int) -> np.ndarray:
    if flip & 1:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture, -(flip >> 1)))


def _colour_table(p: Preset, rng: np.random.Generator) -> np.ndarray:
    contrast = 1 + rng.uniform(-p.contrast, p.contrast)
    brightness = 255 * rng.uniform(-p.brightness, p.brightness)
    return np.clip(np.arange(256) * contrast + brightness, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Standard normal float32, 4 M values: drawing them an image at a time would cost more than all else."""
    return np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)


def _add_noise(picture: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    bank = _noise_bank()
    start = int(rng.integers(max(1, len(bank) - picture.size)))
    noise = np.resize(bank[start : start + picture.size], picture.size).reshape(picture.shape)
    return np.clip(np.rint(picture + sigma * noise), 0, 255).astype(np.uint8)


def _cut_hole(picture: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    rows, columns = int(height * share), int(width * share)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    picture = picture.copy()
    picture[top : top + rows, left : left + columns] = 0
    return picture


def tta_views(tta: str) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Views of uint8 (B, H, W, 3) batches whose predictions are averaged: none 1, flip 2, d4 8."""
    count = {"none": 1, "flip": 2, "d4": 8}[tta]

    def view(flip: int) -> Callable[[np.ndarray], np.ndarray]:
        def apply(images: np.ndarray) -> np.ndarray:
            mirrored = images[:, :, ::-1] if flip & 1 else images
            return np.ascontiguousarray(np.rot90(mirrored, -(flip >> 1), axes=(1, 2)))

        return apply

    return [view(flip) for flip in range(count)]
