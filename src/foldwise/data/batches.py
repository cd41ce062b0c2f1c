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

from foldwise.augment import Ops
from foldwise.core import parallel
from foldwise.data.cache import Cache


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B, S, S, 3) RGB. rows: int64 (B,), positions in the arrays that the batches were made from.

    of: rows of this batch over all ranks.
    """

    images: np.ndarray
    rows: np.ndarray
    of: int


@dataclass(frozen=True)
class Batches:
    """Batches over the cache's rows `where` (int64 (N,)); shuffled and augmented where `ops` is given.

    weights: float (N,), how often a row is drawn, relative to the others; each row once where it is None. share:
    (rank, ranks): this process takes every ranks-th row of each batch, which holds batch_size rows a rank. A shuffled
    epoch leaves out a last batch of one image a rank, which batch norm can't take.
    """

    cache: Cache
    where: np.ndarray
    batch_size: int
    ops: Ops | None = None
    seed: tuple[int, ...] = (0,)
    threads: int | None = None
    weights: np.ndarray | None = None
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        ranks = self.share[1]
        whole, rest = divmod(len(self.where), self.batch_size * ranks)
        return whole + (rest >= (2 * ranks if self.ops and whole else 1))

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[Batch]:
        """One pass, from batch `start` on. At most a few batches are held, whatever N."""
        order = self._order(number)
        rank, ranks = self.share
        threads = self.threads or min(8, max(1, parallel.cores() - 1))
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(threads, "loader", parallel.lower_priority)
        try:
            for batch in range(start, len(self)):
                step = self.batch_size * ranks
                rows = order[batch * step : (batch + 1) * step]
                pending.append(pool.submit(self._make, rows[rank::ranks], len(rows), number, batch))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int) -> np.ndarray:
        order = np.arange(len(self.where))
        if not self.ops:
            return order
        rng = np.random.default_rng([*self.seed, epoch])
        if self.weights is not None:
            return rng.choice(order, len(order), p=self.weights / self.weights.sum())
        rng.shuffle(order)
        return order

    def _make(self, rows: np.ndarray, of: int, epoch: int, batch: int) -> Batch:
        images = self.cache.read(self.where[rows])
        if self.ops:
            rank = self.share[:1] if self.share[0] else ()  # rank 0 draws what a single process draws
            images = self.ops(images, np.random.default_rng([*self.seed, epoch, batch, *rank]))
        return Batch(images, rows, of)
