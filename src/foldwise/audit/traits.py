"""One look at every cached image: its perceptual hash, a digest of its pixels, its light and colour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from foldwise.core import parallel
from foldwise.data.cache import Cache

THUMBNAIL = 48  # side in pixels: the smallest at which unrelated images of one kind still differ in detail
HASHED, KEPT = 32, 8  # imagehash.phash: an image of 32 x 32, the lowest 8 x 8 frequencies
FLAT = 3.0  # gray levels of standard deviation below which an image has no detail to compare
BLOCK = 64  # images in memory at once, a thread
STATISTICS = ["brightness", "contrast", "red", "green", "blue", "saturation", "sharpness"]


class Look(NamedTuple):
    """How an image may be seen in a copy of it: one of eight turns, then turned by degrees, enlarged, and shifted by
    parts of its side."""

    turn: int = 0
    zoom: float = 1.0
    right: float = 0.0
    down: float = 0.0
    degrees: float = 0.0

    def __str__(self) -> str:
        part = "" if self.zoom == 1 and not self.degrees else "cropped" if not self.degrees else "turned a little"
        whole = TURNS[self.turn] if self.turn or not part else ""
        return ", ".join(filter(None, (whole, part)))

    def warp(self, side: int, to: int) -> np.ndarray:
        """float (2, 3): from pixels of a square of `side` to those of one of `to`."""
        scale = self.zoom * to / side
        cos, sin = scale * np.cos(np.radians(self.degrees)), scale * np.sin(np.radians(self.degrees))
        linear = np.array([[cos, sin], [-sin, cos]])
        shift = (to - 1) / 2 + to * np.array([self.right, self.down]) - linear @ np.full(2, (side - 1) / 2)
        return np.column_stack([linear, shift])


TURNS = {
    0: "as it is",
    1: "mirrored",
    2: "upside down, mirrored",
    3: "turned by 180°",
    4: "transposed",
    5: "turned by 90°",
    6: "turned by 270°",
    7: "transposed, turned",
}
# Crops of 6 % and 12 % a side in every turn, of 15 % and 25 % at a corner, turns by up to 15 degrees with and without
# their corners: what the shifts and zooms of the comparison on pixels reach from there is the rest.
_CORNERS = [(right, down) for right in (-1, 1) for down in (-1, 1)]
LOOKS = [
    *(Look(turn, zoom) for zoom in (1.0, 1.14, 1.32) for turn in range(8)),
    *(Look(0, zoom, right * at, down * at) for zoom, at in ((1.17, 0.085), (1.33, 0.165)) for right, down in _CORNERS),
    *(Look(0, zoom, degrees=degrees) for zoom in (1.0, 1.14) for degrees in (-15, -10, -5, 5, 10, 15)),
]


bar = partial(tqdm, leave=False, disable=None)  # at a terminal alone


@dataclass(frozen=True)
class Traits:
    """What was seen of the N readable images; `rows` are their row numbers in the index and the cache."""

    rows: np.ndarray  # int64 (N,)
    hashes: np.ndarray  # uint8 (N, LOOKS, 8): the perceptual hash of the image in each look; (N, 0, 8) if not asked for
    digests: np.ndarray  # uint64 (N,) of the cached pixels
    statistics: pd.DataFrame  # STATISTICS, N rows; gray levels 0..255 but for saturation 0..1

    @property
    def flat(self) -> np.ndarray:
        """bool (N,): images without detail (all black, all white), which would resemble each other."""
        return self.statistics["contrast"].to_numpy() < FLAT


class _Seen(NamedTuple):
    hashes: np.ndarray
    digests: np.ndarray
    statistics: np.ndarray


def look(images: Cache, rows: np.ndarray, hashed: bool = True) -> Traits:
    """Traits of the cache's images at `rows` (row numbers of readable images), read once, in blocks."""
    parts = [*_in_threads(images, rows, hashed)] or [_see(np.empty((0, 8, 8, 3), np.uint8), hashed)]
    statistics = pd.DataFrame(np.concatenate([part.statistics for part in parts]), columns=STATISTICS)
    return Traits(
        np.asarray(rows, np.int64),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.digests for part in parts]),
        statistics,
    )


def _in_threads(images: Cache, rows: np.ndarray, hashed: bool) -> Iterator[_Seen]:
    """Blocks in order, few at a time: reading, OpenCV and hashing all let go of the interpreter's lock."""
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    workers = parallel.cores()
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for start in bar(range(0, len(blocks), 4 * workers), desc="looked at"):
            yield from pool.map(lambda block: _see(images.pictures(block), hashed), blocks[start : start + 4 * workers])


def _see(images: np.ndarray, hashed: bool) -> _Seen:
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    digests = [int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little") for image in images]
    statistics = np.array([_statistics(image, luma) for image, luma in zip(images, gray, strict=True)])
    looks = looks_of(gray) if hashed and gray else np.empty((len(gray), 0, 8), np.uint8)
    return _Seen(looks, np.array(digests, np.uint64), statistics.reshape(len(gray), len(STATISTICS)))


def looks_of(gray: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 (N, LOOKS, 8): the hash of gray images (H, W) in each look, warped from a thumbnail of theirs."""
    thumbs = [cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for image in gray]
    out = np.empty((len(gray), len(LOOKS), 8), np.uint8)
    lowest: dict[Look, np.ndarray] = {}
    for k, seen in enumerate(LOOKS):
        straight = seen._replace(turn=0)
        if straight not in lowest:
            lowest[straight] = frequencies(_warped(gray, thumbs, straight))
        out[:, k] = hashes(turned(lowest[straight], seen.turn))
    return out


def _warped(gray: Sequence[np.ndarray], thumbs: Sequence[np.ndarray], seen: Look) -> np.ndarray:
    if seen == Look():
        return np.stack([cv2.resize(image, (HASHED, HASHED), interpolation=cv2.INTER_AREA) for image in gray])
    warp, size = seen.warp(THUMBNAIL, HASHED), (HASHED, HASHED)
    return as_channels(np.stack(thumbs), lambda one: cv2.warpAffine(one, warp, size, borderMode=cv2.BORDER_REFLECT))


def as_channels(images: np.ndarray, work: Callable[[np.ndarray], np.ndarray], most: int = 64) -> np.ndarray:
    """`work` of OpenCV on images (N, H, W) as channels of one picture: the same pixels, small ones 20 x as fast."""
    parts = [work(np.ascontiguousarray(images[k : k + most].transpose(1, 2, 0))) for k in range(0, len(images), most)]
    return np.concatenate(
        [np.ascontiguousarray(part.reshape(*part.shape[:2], -1).transpose(2, 0, 1)) for part in parts]
    )


def _statistics(image: np.ndarray, gray: np.ndarray) -> list[float]:
    mean, spread = cv2.meanStdDev(gray)
    red, green, blue, _ = cv2.mean(image)
    low, high = min(red, green, blue), max(red, green, blue)
    sharpness = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))[1]
    return [
        float(mean[0, 0]),
        float(spread[0, 0]),
        red,
        green,
        blue,
        (high - low) / high if high else 0.0,
        float(sharpness[0, 0]),
    ]


def frequencies(gray: np.ndarray) -> np.ndarray:
    """float32 (N, 8, 8): the lowest frequencies of the type-II DCT of uint8 (N, 32, 32); the others aren't computed."""
    across = gray.reshape(-1, HASHED).astype(np.float32) @ _DCT.T
    return np.asarray(_DCT @ across.reshape(len(gray), HASHED, KEPT))


_DCT = (2 * np.cos(np.pi / HASHED * np.outer(np.arange(KEPT), np.arange(HASHED) + 0.5))).astype(np.float32)


def hashes(lowest: np.ndarray) -> np.ndarray:
    """Perceptual hashes, uint8 (N, 8) of 64 bits: which of (N, 8, 8) frequencies lie above their median.

    The same bits as imagehash.phash (http://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html).
    """
    flat = lowest.reshape(len(lowest), -1)
    return np.packbits(flat > np.median(flat, axis=1, keepdims=True), axis=1)


def turned(lowest: np.ndarray, view: int) -> np.ndarray:
    """The (N, 8, 8) frequencies that the images would have in one of 8 views; no image is transformed.

    Mirroring an image changes the sign of its odd frequencies in that direction; transposing transposes them. View 0
    is the image itself; bit 0 mirrors left-right, bit 1 up-down, then bit 2 transposes.
    """
    sign = np.where(np.arange(KEPT) % 2, -1.0, 1.0).astype(np.float32)
    if view & 1:
        lowest = lowest * sign
    if view & 2:
        lowest = lowest * sign[:, None]
    return lowest.transpose(0, 2, 1) if view & 4 else lowest


def turn(images: np.ndarray, view: int) -> np.ndarray:
    """The same 8 views of images (N, H, H), for pixels."""
    if view & 1:
        images = images[:, :, ::-1]
    if view & 2:
        images = images[:, ::-1]
    return images.transpose(0, 2, 1) if view & 4 else images
