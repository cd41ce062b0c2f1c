"""Classes by the nearest embeddings, for many classes of few images, and for images of no class that is known.

The score of a class is the cosine to its nearest training row (faiss, exact). `unknown`, the class of what is none of
the others, has no place of its own: it scores a threshold, learnt on training rows whose class is held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foldwise.data import top

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

NEIGHBOURS = 100  # rows looked at: classes further away share the rest
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the softmax over cosines; the best inner log loss chooses
TUNED = 20_000  # training rows on which threshold and temperature are learnt
LEFT = 0.01  # of the probability, for classes that no neighbour has


@dataclass(frozen=True)
class Nearest:
    """A fitted head: rows float32 (N, D) of length one, their classes int64 (N,); threshold: a cosine, -2 where no
    class is unknown."""

    rows: Array
    labels: Labels
    classes: int
    unknown: int
    threshold: float
    temperature: float

    @classmethod
    def fit(cls, rows: Array, labels: Labels, classes: int, unknown: int = -1, k: int = 1, seed: int = 0) -> Nearest:
        """rows (N, D) embeddings; unknown: the number of that class, -1 where there is none; k: answers that count."""
        rows = _unit(rows)
        known = labels != unknown
        fitted = cls(rows[known], labels[known], classes, unknown, -2.0, TEMPERATURES[0])
        chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:TUNED])
        truth, within = labels[chosen], known[chosen]
        codes, cosines = fitted._classes(rows[chosen], truth, within)
        if unknown >= 0:
            fitted = replace(fitted, threshold=_threshold(codes, cosines, truth, within, k))
        losses = {one: replace(fitted, temperature=one)._loss(codes, cosines, truth) for one in TEMPERATURES}
        return replace(fitted, temperature=min(losses, key=lambda one: losses[one]))

    def _loss(self, codes: Labels, cosines: Array, truth: Labels) -> float:
        slots, p = self._probabilities(codes, cosines)
        own = np.where(slots == truth[:, None], p, 0).sum(axis=1)
        return float(-np.log(np.maximum(own, LEFT / self.classes)).mean())

    def predict(self, rows: Array) -> Array:
        """(n, D) -> float32 (n, C), or data.top's array where classes are many."""
        slots, p = self._probabilities(*self._classes(_unit(rows)))
        left = LEFT / max(1, self.classes)
        if self.classes <= top.MANY:
            dense = np.full((len(rows), self.classes), left, np.float32)
            at = np.repeat(np.arange(len(rows)), slots.shape[1]).reshape(slots.shape)
            dense[at[slots >= 0], slots[slots >= 0]] += p[slots >= 0].astype(np.float32)
            return dense / dense.sum(axis=1, keepdims=True)
        order = np.argsort(-p, axis=1, kind="stable")[:, : min(top.KEPT, slots.shape[1])]
        codes, values = np.take_along_axis(slots, order, axis=1), np.take_along_axis(p, order, axis=1)
        values = np.where(codes < 0, left, values)
        return np.concatenate([_filled(codes), values, np.full((len(rows), 1), left)], axis=1).astype(np.float32)

    def _classes(
        self, rows: Array, own: Labels | None = None, beside: NDArray[np.bool_] | None = None
    ) -> tuple[Labels, Array]:
        """The classes of each row's neighbours, nearest first, int64 (n, NEIGHBOURS) with -1 where they repeat, and
        their cosines. own, beside: labels of rows that lie among the rows fitted; each is no neighbour of itself."""
        import faiss

        index = faiss.IndexFlatIP(self.rows.shape[1])
        index.add(np.ascontiguousarray(self.rows, dtype=np.float32))
        count = min(NEIGHBOURS + 1, len(self.rows))
        cosines, places = index.search(np.ascontiguousarray(rows, dtype=np.float32), count)
        codes = self.labels[places]
        if own is not None and beside is not None:  # the nearest of its own class is itself
            itself = (codes == own[:, None]) & (cosines > 1 - 1e-5)
            first = itself & (itself.cumsum(axis=1) == 1) & beside[:, None]
            codes = np.where(first, -1, codes)
        order = np.argsort(codes, axis=1, kind="stable")
        ordered = np.take_along_axis(codes, order, axis=1)
        again = np.concatenate([np.zeros((len(rows), 1), bool), ordered[:, 1:] == ordered[:, :-1]], axis=1)
        repeated = np.empty_like(again)
        np.put_along_axis(repeated, order, again, axis=1)
        codes = np.where(repeated, -1, codes)
        return codes, np.where(codes < 0, -2, cosines)

    def _probabilities(self, codes: Labels, cosines: Array) -> tuple[Labels, Array]:
        """Softmax over the classes met, and the unknown one at its threshold."""
        if self.unknown >= 0:
            codes = np.concatenate([codes, np.full((len(codes), 1), self.unknown)], axis=1)
            cosines = np.concatenate([cosines, np.full((len(codes), 1), self.threshold)], axis=1)
        z = np.where(codes < 0, -np.inf, cosines / self.temperature)
        grown = np.exp(z - z.max(axis=1, keepdims=True))
        return codes, (1 - LEFT) * grown / grown.sum(axis=1, keepdims=True)


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _filled(codes: Labels) -> Labels:
    """-1 as classes that the row does not have yet: the smallest numbers."""
    filled = codes.copy()
    for row in np.flatnonzero((codes < 0).any(axis=1)):
        held = set(codes[row].tolist())
        spare = [number for number in range(2 * codes.shape[1]) if number not in held]
        empty = np.flatnonzero(codes[row] < 0)
        filled[row, empty] = spare[: len(empty)]
    return filled


def _threshold(codes: Labels, cosines: Array, labels: Labels, known: NDArray[np.bool_], k: int) -> float:
    """The cosine that gives the unknown class its place where 1/rank (0 beyond k) is best on average.

    Rows of known classes as they are, and once more with their own class held out: then they are unknown. Both sides
    count by the share of unknown rows in the table; rows of the unknown class are unknown as they are.
    """
    own = codes == labels[:, None]
    others = np.where(own, -2, cosines)
    met, mine = known & own.any(axis=1), np.where(own, cosines, -2).max(axis=1)
    ranks = 1 + (others > mine[:, None]).sum(axis=1)
    share = float(np.clip(1 - known.mean(), 0.02, 0.98))
    best, place = -1.0, 0.0
    for threshold in np.quantile(np.concatenate([mine[met], others.max(axis=1)]), np.linspace(0, 1, 101)):
        rank = ranks[met] + (threshold > mine[met])
        inside = np.where(rank <= k, 1 / rank, 0).mean() if met.any() else 0.0
        unknown = 1 + (others > threshold).sum(axis=1)
        value = (1 - share) * inside + share * np.where(unknown <= k, 1 / unknown, 0).mean()
        if value > best:
            best, place = float(value), float(threshold)
    return place
