"""What networks say of images, chunk by chunk: decoded once for all of them, kept on disk, taken up after a kill.

The images of a chunk go through the same cache as training's, a temporary one; the next chunk is decoded while the
networks look at this one. A chunk's file holds every source's values of the rows that could be read.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.core.files import replacing, temporary_folder
from foldwise.data import cache
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.inference.members import Source
from foldwise.model import fold_models
from foldwise.model.crops import crop_again
from foldwise.model.fold_models import FoldModel
from foldwise.tabular import embeddings

Look = Callable[[Cache, np.ndarray, pd.DataFrame], np.ndarray]
Decoded = dict[tuple[int, bool], tuple[Cache, np.ndarray]]
BATCH = 64  # chunks are a multiple of it, as batches are by default
DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)  # what a chunk's file may raise
LARGEST = 1 << 30  # bytes of a chunk's pixels


def chunks(rows: int, images: Sequence[tuple[int, bool]]) -> list[slice]:
    """The rows in pieces: sixteen or more, but of a batch at least, of 512 rows and LARGEST bytes at most."""
    bytes_each = sum(size * size * 3 for size, _ in images) or 1
    most = max(1, min(512, LARGEST // bytes_each) // BATCH) * BATCH
    step = min(most, -(-rows // (16 * BATCH)) * BATCH)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass
class Pace:
    """Seconds an image, as measured: of decoding, and of each source by the number of its views."""

    decode: dict[tuple[int, bool], tuple[float, int]] = field(default_factory=dict)
    view: dict[str, tuple[float, int]] = field(default_factory=dict)

    @staticmethod
    def add(to: dict, key: object, seconds: float, images: int) -> None:
        """The first batch of a process is slow: what comes later counts, too, and outweighs it."""
        before = to.get(key, (0.0, 0))
        to[key] = (before[0] + seconds, before[1] + images)

    @staticmethod
    def of(measured: tuple[float, int]) -> float:
        """Seconds an image."""
        return measured[0] / max(1, measured[1])


@dataclass
class Looks:
    """The networks behind sources, each loaded once."""

    competition: Competition
    table: pd.DataFrame
    _folds: dict[tuple[str, int], FoldModel] = field(default_factory=dict)
    _recipes: dict[str, Look] = field(default_factory=dict)

    def of(self, source: Source) -> Look:
        """(images, their rows in it, index rows) -> float32 (N, width); each row has an image."""
        if source.run is None or source.fold is None:
            if source.key not in self._recipes:
                embed = embeddings.pretrained(source.recipe, "")[0]
                self._recipes[source.key] = lambda images, where, rows: embed(images, where, rows, "embed")
            return self._recipes[source.key]
        model = replace(self.fold(source), recipe=source.recipe)
        return model.predict_readable if source.what == "pred" else model.embed

    def fold(self, source: Source) -> FoldModel:
        """The fold's model behind a run's source."""
        place = (str(source.run), int(source.fold or 0))
        if place not in self._folds:
            self._folds[place] = fold_models.load_fold(self.competition, source.recipe, *place, self.table)
        return self._folds[place]


@dataclass
class Pixels:
    """The chunks of some index rows, in a folder. raw: where the rows' paths start from.

    part: (k, n): of n processes that share the chunks, this is the k-th.
    """

    competition: Competition
    rows: pd.DataFrame
    raw: Path
    folder: Path
    looks: Looks
    grid: list[slice]
    workers: int | None = None
    pace: Pace = field(default_factory=Pace)
    broken: dict[str, str] = field(default_factory=dict)
    part: tuple[int, int] = (0, 1)

    def file(self, piece: slice) -> Path:
        """Where a chunk's values lie."""
        return self.folder / f"rows_{piece.start:07d}_{piece.stop:07d}.npz"

    def todo(self, keys: Sequence[str]) -> list[slice]:
        """The chunks that lack values of some source."""
        return [piece for piece in self.grid if not set(keys) <= set(self._names(piece))]

    def mine(self, pieces: Sequence[slice]) -> list[slice]:
        """Those of the chunks that are this process's."""
        k, n = self.part
        return [piece for piece in pieces if self.grid.index(piece) % n == k]

    def _read(self, piece: slice) -> Mapping[str, np.ndarray]:
        try:
            with np.load(self.file(piece)) as stored:
                return {name: stored[name] for name in stored.files}
        except DAMAGED:
            return {}

    def run(
        self, ask: Callable[[], Mapping[str, Source] | None], pieces: Sequence[slice]
    ) -> Iterator[tuple[slice, float]]:
        """Chunk after chunk, each with its seconds. ask: the sources by key before each chunk; None to stop."""
        with temporary_folder(self.folder, "images.") as tmp_dir, ThreadPoolExecutor(1) as ahead:
            wanted, coming = ask(), list[Future[tuple[Decoded, float]]]()
            for k, piece in enumerate(pieces):
                if wanted is None:
                    break
                started, sets = time.monotonic(), {source.images for source in wanted.values()}
                coming = coming or [ahead.submit(self._decode, piece, sets, tmp_dir / str(piece.start))]
                decoded, _ = coming.pop().result()
                if k + 1 < len(pieces):
                    coming = [ahead.submit(self._decode, pieces[k + 1], sets, tmp_dir / str(pieces[k + 1].start))]
                self._look(piece, wanted, decoded)
                for images, _ in decoded.values():
                    for file in images.path.parent.glob("*"):
                        file.unlink()
                yield piece, time.monotonic() - started
                wanted = ask()

    def _decode(self, piece: slice, sets: set[tuple[int, bool]], folder: Path) -> tuple[Decoded, float]:
        rows, begun = self.rows.iloc[piece].assign(split="new"), time.monotonic()
        rows = rows.reset_index(drop=True)
        decoded: Decoded = {}
        for size, crop in sorted(sets):
            started = time.monotonic()
            crops = crop_again(self.competition, self.raw, rows) if crop else None
            place = folder / f"{size}{'_crop' if crop else ''}"
            images, where, reasons = cache.temporary(
                self.raw, place, rows, size, self.competition.image, self.workers, crops
            )
            decoded[size, crop] = images, where
            self.broken |= reasons
            Pace.add(self.pace.decode, (size, crop), time.monotonic() - started, len(rows))
        return decoded, time.monotonic() - begun

    def _look(self, piece: slice, wanted: Mapping[str, Source], decoded: Decoded) -> None:
        """Every source's values of a chunk that are not there yet, and its file written whole."""
        rows, values = self.rows.iloc[piece], dict(self._read(piece))
        for key, source in wanted.items():
            images, where = decoded[source.images]
            readable = np.flatnonzero(where >= 0)
            values[f"readable {source.images[0]} {source.images[1]}"] = where >= 0
            if key in values:
                continue
            look, started = self.looks.of(source), time.monotonic()
            if len(readable):
                values[key] = look(images, where[readable], rows.iloc[readable])
            else:
                values[key] = np.zeros((0, 0), np.float32)
            Pace.add(self.pace.view, key, (time.monotonic() - started) / views(source), len(readable))
        with replacing(self.file(piece)) as part, part.open("wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]

    # --- what is there ------------------------------------------------------------------------------------------

    def seen(self, sources: Mapping[str, Source]) -> np.ndarray:
        """bool (N,): rows whose chunk has every source's values."""
        mask = np.zeros(len(self.rows), bool)
        for piece in self.grid:
            mask[piece] = set(sources) <= set(self._names(piece))
        return mask

    def _names(self, piece: slice) -> list[str]:
        try:
            with np.load(self.file(piece)) as stored:
                return stored.files
        except DAMAGED:
            return []

    def unreadable(self) -> list[str]:
        """Ids of the rows whose image could not be read at some size, of all chunks that are there."""
        ids: list[str] = []
        for piece in self.grid:
            masks = [mask for name, mask in self._read(piece).items() if name.startswith("readable ")]
            if masks:
                ids += self.rows["id"].iloc[piece][~np.logical_and.reduce(masks)].tolist()
        return ids

    def values(self, key: str, source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, width) of the rows `rows` bool (N,), zeros where unreadable; and bool (n,), who has one."""
        parts, masks = [], []
        for piece in self.grid:
            if not rows[piece].any():
                continue
            with np.load(self.file(piece)) as stored:
                parts.append(stored[key])
                masks.append(stored[f"readable {source.images[0]} {source.images[1]}"])
        readable = np.concatenate(masks)
        width = max(part.shape[1] for part in parts)
        whole = np.zeros((len(readable), width), np.float32)
        if readable.any():
            whole[readable] = np.concatenate([part for part in parts if len(part)])
        return whole, readable


def views(source: Source) -> int:
    """How many views of an image a source averages."""
    from foldwise.model.predict import tta_views

    return len(tta_views(source.recipe.predict))


def plain(source: Source) -> Source:
    """The source with one view, the image as it is."""
    one = source.recipe.predict.model_copy(update={"tta": "none", "crops": 1, "scales": [1.0]})
    return replace(source, recipe=source.recipe.model_copy(update={"predict": one}))
