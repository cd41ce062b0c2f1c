"""The views of test-time augmentation: symmetries, scales and crops whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import cv2
import numpy as np

from foldwise.config import Predict

View = Callable[[np.ndarray], np.ndarray]
SYMMETRIES = {"none": (0,), "flip": (0, 1), "d4": tuple(range(8))}


def tta_views(predict: Predict, image_size: int | None = None) -> list[View]:
    """Views of uint8 (B, S, S, 3) batches, each giving uint8 (B, S', S', 3): S' = S times the view's scale, rounded.

    Every symmetry (predict.tta) at every scale, each as the whole image or as 5 crops (corners and centre) brought to
    S'; crops=10 adds the mirrored ones, which flip and d4 hold already. image_size: S, if not that of the images.
    """
    turns = set(SYMMETRIES[predict.tta])
    if predict.crops == 10:
        turns |= {turn ^ 1 for turn in turns}
    places = list(_places(predict.crop_share)) if predict.crops > 1 else [(0.0, 0.0, 1.0)]
    return [_view(*chosen, image_size) for chosen in product(sorted(turns), predict.scales, places)]


def turned(images: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the eight symmetries of (B, S, S, 3): bit 0 mirrors, bits 1 and 2 turn by quarters."""
    images = images[:, :, ::-1] if symmetry & 1 else images
    return np.ascontiguousarray(np.rot90(images, -(symmetry >> 1), axes=(1, 2)))


def _places(share: float) -> Iterator[tuple[float, float, float]]:
    """Top, left and side of each crop, as shares of the side."""
    rest = 1 - share
    for top, left in ((0.0, 0.0), (0.0, rest), (rest, 0.0), (rest, rest), (rest / 2, rest / 2)):
        yield top, left, share


def _view(symmetry: int, scale: float, place: tuple[float, float, float], image_size: int | None) -> View:
    def apply(images: np.ndarray) -> np.ndarray:
        size = images.shape[1]
        top, left, side = (round(part * size) for part in place)
        to = round((image_size or size) * scale)
        part = turned(images, symmetry)[:, top : top + side, left : left + side]
        if side == to or not len(part):
            return np.ascontiguousarray(part)
        how = cv2.INTER_AREA if side > to else cv2.INTER_LINEAR
        return np.stack([cv2.resize(image, (to, to), interpolation=how) for image in part])

    return apply
