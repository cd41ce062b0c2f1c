"""Rows -> batches: threads fetch from the cache and augment, uint8 all the way to the device.

Threads, not processes: fetching, warping and look-up tables release the interpreter's lock, so nothing is copied
between processes. A batch depends on (seed, epoch, its number) alone, so the order in which threads finish, their
count, and an interruption change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from foldwise import launch
from foldwise.augment import Ops
from foldwise.cache import Cache


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B, S, S, 3) RGB. rows: int64 (B,), positions in the arrays that the batches were made from."""

    images: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Batches:
    """Batches over the cache's rows `where` (int64 (N,)); shuffled and augmented where `ops` is given.

    A shuffled epoch leaves out a last batch of one image, which batch norm can't take.
    """

    cache: Cache
    where: np.ndarray
    batch_size: int
    ops: Ops | None = None
    seed: tuple[int, ...] = (0,)
    threads: int | None = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.where), self.batch_size)
        return whole + (rest > (1 if self.ops and whole else 0))

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """One pass. At most a few batches are held, whatever N."""
        order = np.arange(len(self.where))
        if self.ops:
            np.random.default_rng([*self.seed, number]).shuffle(order)
        threads = self.threads or min(8, max(1, launch.cores() - 1))
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        try:
            for batch in range(len(self)):
                rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                pending.append(pool.submit(self._make, rows, number, batch))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, rows: np.ndarray, epoch: int, batch: int) -> Batch:
        images = self.cache.read(self.where[rows])
        if self.ops:
            images = self.ops(images, np.random.default_rng([*self.seed, epoch, batch]))
        return Batch(images, rows)
