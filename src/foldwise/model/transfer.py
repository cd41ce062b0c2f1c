"""Batches on the device: a GPU gets the next, from pinned memory and on a second stream, while it computes this one.

On a CPU nothing is copied at all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foldwise.data.batches import Batch

AHEAD = 2  # batches that are copied or being copied


@dataclass(frozen=True)
class DeviceBatch:
    """images: uint8 (B, S, S, 3). rows: int64 (B,), as in Batch; both on the device. of: rows over all ranks."""

    images: Tensor
    rows: Tensor
    of: int

    def first(self, count: int) -> DeviceBatch:
        """Its first rows alone, as a batch of their own."""
        return DeviceBatch(self.images[:count], self.rows[:count], min(count, len(self.rows)))


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """The batches in their order, on the device when they are handed out."""
    if device.type != "cuda":
        yield from (_moved(batch, device) for batch in batches)
        return
    stream, waiting = torch.cuda.Stream(device), iter(batches)

    def copy() -> tuple[DeviceBatch, torch.cuda.Event] | None:
        batch = next(waiting, None)  # of one thread: the batches are taken in turn
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return _moved(batch, device), stream.record_event()

    with ThreadPoolExecutor(1, "copies") as pool:
        copies: deque[Future[tuple[DeviceBatch, torch.cuda.Event] | None]] = deque()
        copies.extend(pool.submit(copy) for _ in range(AHEAD))
        while (copied := copies.popleft().result()) is not None:
            copies.append(pool.submit(copy))
            batch, there = copied
            current = torch.cuda.current_stream(device)
            current.wait_event(there)
            for tensor in (batch.images, batch.rows):  # made on one stream, freed on another
                tensor.record_stream(current)
            yield batch


class Timed:
    """Batches, and the seconds spent on waiting for them."""

    def __init__(self, batches: Iterator[DeviceBatch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[DeviceBatch]:
        while True:
            begun = time.monotonic()
            batch = next(self.batches, None)
            self.seconds += time.monotonic() - begun
            if batch is None:
                return
            yield batch


def _moved(batch: Batch, device: torch.device) -> DeviceBatch:
    return DeviceBatch(to_device(batch.images, device), to_device(batch.rows, device), batch.of)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array's values on the device; from pinned memory on a GPU, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
