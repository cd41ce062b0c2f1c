"""Images and targets of one batch mixed: mixup and CutMix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from foldwise.data.recipe import Augment
from foldwise.model.transfer import to_device


def mix(
    images: Tensor, target: Tensor, metadata: Tensor | None, settings: Augment, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mixup (Zhang 2018) or CutMix (Yun 2019) of a batch with its own permutation, each with its probability.

    images: uint8 (B, S, S, 3). target: float (B, C). metadata: float (B, F), mixed in the same fraction.
    """
    draw = rng.random()
    if draw >= settings.mixup + settings.cutmix or len(images) < 2:
        return images, target, metadata
    other = to_device(rng.permutation(len(images)), images.device)
    if draw < settings.mixup:
        fraction = float(rng.beta(settings.mixup_alpha, settings.mixup_alpha))
        mixed = (fraction * images.float() + (1 - fraction) * images[other].float()).round().to(torch.uint8)
    else:
        alpha = settings.cutmix_alpha
        mixed, fraction = _paste(images, other, math.sqrt(1 - float(rng.beta(alpha, alpha))), rng)
    return mixed, _blend(target, other, fraction), None if metadata is None else _blend(metadata, other, fraction)


def mixed(images: np.ndarray, way: str, settings: Augment, rng: np.random.Generator) -> np.ndarray:
    """uint8 (B, S, S, 3): a batch mixed by `way` (mixup, cutmix) for certain, to look at."""
    always = settings.model_copy(update={"mixup": 0.0, "cutmix": 0.0, way: 1.0})
    return mix(torch.from_numpy(images), torch.zeros(len(images), 1), None, always, rng)[0].numpy()


def _blend(values: Tensor, other: Tensor, fraction: float) -> Tensor:
    return fraction * values + (1 - fraction) * values[other]


def _paste(images: Tensor, other: Tensor, side: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    height, width = images.shape[1:3]
    rows, columns = int(height * side), int(width * side)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    pasted = images.clone()
    pasted[:, top : top + rows, left : left + columns] = images[other, top : top + rows, left : left + columns]
    return pasted, 1 - rows * columns / (height * width)
