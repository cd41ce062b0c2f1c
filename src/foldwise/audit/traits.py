"""One look at every cached image: its perceptual hash, a thumbnail, a digest of its pixels, its light and colour."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.fft import dctn

from foldwise.core import parallel
from foldwise.data.cache import Cache

THUMBNAIL = 48  # side in pixels: the smallest at which unrelated images of one kind still differ in detail
HASHED, KEPT = 32, 8  # imagehash.phash: an image of 32 x 32, the lowest 8 x 8 frequencies
FLAT = 3.0  # gray levels of standard deviation below which an image has no detail to compare
BLOCK = 64  # images in memory at once, a thread
STATISTICS = ["brightness", "contrast", "red", "green", "blue", "saturation", "sharpness"]


class Thumbnails:
    """uint8 (N, 48, 48) gray thumbnails in an unnamed file, so that memory does not grow with the images."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object

    def append(self, images: np.ndarray) -> None:
        """Add uint8 (n, 48, 48) at the end."""
        self._file.write(np.ascontiguousarray(images).data)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (len(rows), 48, 48), in the order of `rows`."""
        self._file.flush()
        size = THUMBNAIL * THUMBNAIL
        data = b"".join(os.pread(self._file.fileno(), size, int(row) * size) for row in rows)
        return np.frombuffer(data, np.uint8).reshape(len(rows), THUMBNAIL, THUMBNAIL)


@dataclass(frozen=True)
class Traits:
    """What was seen of the N readable images; `rows` are their row numbers in the index and the cache."""

    rows: np.ndarray  # int64 (N,)
    frequencies: np.ndarray  # float32 (N, 8, 8): the lowest DCT coefficients, what the perceptual hash is made of
    digests: np.ndarray  # uint64 (N,) of the cached pixels
    statistics: pd.DataFrame  # STATISTICS, N rows; gray levels 0..255 but for saturation 0..1
    thumbnails: Thumbnails

    @property
    def flat(self) -> np.ndarray:
        """bool (N,): images without detail (all black, all white), which would resemble each other."""
        return self.statistics["contrast"].to_numpy() < FLAT


class _Seen(NamedTuple):
    frequencies: np.ndarray
    digests: np.ndarray
    statistics: np.ndarray
    thumbnails: np.ndarray


def look(images: Cache, rows: np.ndarray, thumbnails: bool = True) -> Traits:
    """Traits of the cache's images at `rows` (row numbers of readable images), read once, in blocks."""
    kept = Thumbnails()
    parts: list[_Seen] = []
    for seen in _in_threads(images, rows):
        if thumbnails:
            kept.append(seen.thumbnails)
        parts.append(seen._replace(thumbnails=np.empty(0)))
    return Traits(
        np.asarray(rows, np.int64),
        np.concatenate([part.frequencies for part in parts] or [np.empty((0, KEPT, KEPT), np.float32)]),
        np.concatenate([part.digests for part in parts] or [np.empty(0, np.uint64)]),
        pd.DataFrame(
            np.concatenate([part.statistics for part in parts] or [np.empty((0, len(STATISTICS)))]), columns=STATISTICS
        ),
        kept,
    )


def _in_threads(images: Cache, rows: np.ndarray) -> Iterator[_Seen]:
    """Blocks in order, few at a time: reading, OpenCV and hashing all let go of the interpreter's lock."""
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    workers = parallel.cores()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(blocks), 4 * workers):
            yield from pool.map(lambda block: _see(images.read(block)), blocks[start : start + 4 * workers])


def _see(images: np.ndarray) -> _Seen:
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    small = np.stack([cv2.resize(image, (HASHED, HASHED), interpolation=cv2.INTER_AREA) for image in gray])
    thumbs = np.stack([cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for image in gray])
    digests = [int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little") for image in images]
    statistics = [_statistics(image, luma) for image, luma in zip(images, gray, strict=True)]
    return _Seen(frequencies(small), np.array(digests, np.uint64), np.array(statistics), thumbs)


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
    """float32 (N, 8, 8): the lowest frequencies of the type-II DCT of uint8 (N, 32, 32)."""
    return np.asarray(dctn(gray.astype(np.float32), axes=(1, 2))[:, :KEPT, :KEPT], np.float32)


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


VIEWS = {
    0: "as it is",
    1: "mirrored",
    2: "upside down, mirrored",
    3: "turned by 180°",
    4: "transposed",
    5: "turned by 90°",
    6: "turned by 270°",
    7: "transposed, turned",
}
