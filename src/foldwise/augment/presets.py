"""Train operations on batches of uint8 images: presets, RandAugment, and their plain albumentations twin.

All geometry of an image (flips, distortion, rotation, scale, shift) is one warp, its brightness and contrast one
look-up table, its noise a slice of a bank made once: the pixels are touched a few times instead of once an operation.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np

from foldwise import UserError
from foldwise.augment.canvas import BLACK, WHITE, Canvas
from foldwise.augment.operations import (
    Affine,
    BrightnessContrast,
    Clahe,
    CutOut,
    ElasticTransform,
    Flips,
    GaussianBlur,
    GaussNoise,
    GridDistortion,
    HueSaturationValue,
    MedianBlur,
    MotionBlur,
    OneOf,
    Operation,
    OpticalDistortion,
)
from foldwise.augment.randaugment import RandAugment
from foldwise.core.schema import nearest

Ops = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# The SIIM-ISIC 2020 winner's list (arXiv:2010.05351, its get_transforms), which was written for albumentations 0.4.6.
# Where 2.0.8 took other defaults (borders, grid, blur's sigma), the old behaviour is asked for by argument; see
# docs/augment.md for the two that are gone. Resize is the cache's work, Normalize the network's.
MELANOMA2020: tuple[Operation, ...] = (
    Flips("d4"),  # Transpose, VerticalFlip, HorizontalFlip, each p 0.5
    BrightnessContrast(brightness=0.2, p=0.75),
    BrightnessContrast(contrast=0.2, p=0.75),
    OneOf(
        (
            MotionBlur(5),
            MedianBlur(5),
            GaussianBlur(0.8, 1.1, largest=5),
            GaussNoise(5**0.5, 30**0.5),  # var_limit=(5, 30)
        ),
        p=0.7,
    ),
    OneOf((OpticalDistortion(1.0), GridDistortion(5, 1.0), ElasticTransform(3, 50)), p=0.7),
    Clahe(4.0, p=0.7),
    HueSaturationValue(10, 20, 10, p=0.5),
    Affine(0.1, 0.1, 15, BLACK, p=0.85),
    CutOut(0.375, p=0.7),
)

PRESETS: dict[str, tuple[Operation, ...]] = {
    "none": (),
    "light": (Affine(0.05, 0.1, 10, p=0.5),),
    "medium": (Affine(0.1, 0.15, 15, p=0.75), BrightnessContrast(0.2, 0.2, p=0.5), CutOut(0.25, p=0.3)),
    "heavy": (
        Affine(0.1, 0.25, 45, p=0.85),
        BrightnessContrast(0.3, 0.3, p=0.75),
        GaussianBlur(0.1, 1.5, p=0.2),
        GaussNoise(0, 12, p=0.3),
        CutOut(0.375, p=0.5),
    ),
    "sketch": (  # dark strokes on white paper, which stays white
        Affine(0.08, 0.15, 15, WHITE, p=0.85),
        ElasticTransform(300, 12, WHITE, side=224, p=0.5),
        MotionBlur(5, p=0.3),
        GaussNoise(0, 20, keep_white=True, p=0.5),
    ),
    "melanoma2020": MELANOMA2020,
}

# Single operations that `augment.ops` adds or, in a preset, gives another probability; middling strengths
OPS: dict[str, Operation] = {
    "affine": Affine(0.1, 0.15, 15),
    "optical": OpticalDistortion(0.5),
    "grid": GridDistortion(5, 0.5),
    "elastic": ElasticTransform(300, 12, side=224),
    "brightness": BrightnessContrast(0.2, 0.2),
    "hue": HueSaturationValue(10, 20, 10),
    "clahe": Clahe(4.0),
    "blur": GaussianBlur(0.1, 1.5),
    "median_blur": MedianBlur(5),
    "motion_blur": MotionBlur(5),
    "noise": GaussNoise(0, 12),
    "cutout": CutOut(0.3),
}

FLIPS = ("auto", "none", "horizontal", "d4")


def train_ops(
    preset: str,
    image_size: int,
    flips: str = "horizontal",
    randaugment: int = 0,
    strength: float = 1.0,
    ops: Mapping[str, float] | None = None,
) -> Ops:
    """fn(images, rng) -> images, uint8 (B, H, W, 3) in and (B, S, S, 3) out, S = image_size; the same for an equal rng.

    Images of other than three channels go through in threes, alike, without the operations on colours. Square images
    of another size are resized first; others are refused with a UserError. The images that go in are left as they are.

    flips: none, horizontal or auto (mirror, p 0.5), or d4 (any of the eight symmetries of the square, for images
    without an up and down); a preset with flips of its own (melanoma2020) keeps to those. randaugment: magnitude 1 to
    30 of two RandAugment operations after the preset; 0: none. strength: how much, of the preset's own. ops: single
    operations of OPS with their probabilities, added to the preset or in place of its own ones of that kind.
    """
    last = (RandAugment(randaugment),) if randaugment else ()
    return pipeline((*operations(preset, flips, strength, ops), *last), image_size)


def reference_ops(
    preset: str,
    image_size: int,
    flips: str = "horizontal",
    strength: float = 1.0,
    ops: Mapping[str, float] | None = None,
) -> Ops:
    """The same distribution by albumentations, an operation at a time: the slow twin that tests compare with."""
    return reference_pipeline(operations(preset, flips, strength, ops), image_size)


def turns(preset: str) -> bool:
    """Whether a preset has flips of its own, which turn images upside down."""
    return any(isinstance(operation, Flips) for operation in PRESETS.get(preset, ()))


def operations(
    preset: str, flips: str = "horizontal", strength: float = 1.0, ops: Mapping[str, float] | None = None
) -> tuple[Operation, ...]:
    """What a preset does, in its order, and `ops` after it; UserError for a name that is not one."""
    if preset not in PRESETS:
        raise UserError(f"augment.preset={preset}: no such preset{nearest(preset, PRESETS)}")
    if flips not in FLIPS:
        raise UserError(f"augment.flips={flips}: no such choice{nearest(flips, FLIPS)}")
    single = {type(OPS[name]): replace(OPS[name], p=p) for name, p in (ops or {}).items() if _is_known(name)}
    chosen = tuple(one for one in PRESETS[preset] if type(one) not in single)
    chosen = (*chosen, *(one for one in single.values() if one.p > 0))
    chosen = chosen if strength == 1 else tuple(one.scaled(strength) for one in chosen)
    own = flips == "none" or turns(preset)
    return chosen if own else (Flips("horizontal" if flips == "auto" else flips), *chosen)


def _is_known(name: str) -> bool:
    if name not in OPS:
        raise UserError(f"augment.ops={name}: no such operation{nearest(name, OPS)}")
    return True


def pipeline(ops: Sequence[Operation], image_size: int) -> Ops:
    """Any list of operations, done on one canvas after the other."""

    plain = tuple(one.without_colours() for one in ops)

    def in_threes(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        state, channels = rng.bit_generator.state, images.shape[3]
        black = images.max(axis=(1, 2)) == 0  # slices that a study lacks: whatever is done, they stay so
        places = np.arange(-(-channels // 3) * 3).reshape(-1, 3) % channels
        parts = []
        for place in places:
            rng.bit_generator.state = state  # the same warp, table and hole
            parts.append(apply(np.ascontiguousarray(images[..., place]), rng, plain))
        done = np.concatenate(parts, axis=3)[..., :channels]
        return np.ascontiguousarray(np.where(black[:, None, None], np.uint8(0), done) if black.any() else done)

    def apply(images: np.ndarray, rng: np.random.Generator, ops: Sequence[Operation] = ops) -> np.ndarray:
        if images.ndim == 4 and images.shape[3] != 3:
            return in_threes(images, rng)
        images = _sized(images, image_size)
        if not ops:
            return images
        out = np.empty_like(images)
        canvas = Canvas(image_size)
        for place, image in zip(out, images, strict=True):
            canvas.load(image)
            for operation in ops:
                if operation.p >= 1 or rng.random() < operation.p:
                    operation.apply(canvas, rng)
            canvas.finish(place)
        return out

    return apply


def reference_pipeline(ops: Sequence[Operation], image_size: int) -> Ops:
    """The same list by albumentations."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for news
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations as A

        twins = [operation.reference(A, image_size) for operation in ops]
        compose = A.Compose([one for twin in twins for one in (twin if isinstance(twin, list) else [twin])])

    def apply(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seed = int(rng.integers(2**31))
        # one state for all: set_random_seed would seed each transform alike, so that they all happen or none does
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.stack([compose(image=image)["image"] for image in _sized(images, image_size)])

    return apply


def _sized(images: np.ndarray, size: int) -> np.ndarray:
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise UserError(f"augmentation takes square uint8 images (B, S, S, C), not {images.dtype} {shape}")
    if shape[1] == size:
        return images
    how = cv2.INTER_AREA if shape[1] > size else cv2.INTER_LINEAR
    resized = [cv2.resize(image, (size, size), interpolation=how) for image in images]
    return np.stack(resized) if resized else np.empty((0, size, size, 3), np.uint8)
