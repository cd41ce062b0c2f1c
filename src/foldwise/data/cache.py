"""Decoded, resized images on disk: one uint8 file per size, keyed by what made it, written by many processes.

    images_<size>.npy        uint8 (N, size, size, C), RGB, the channels of `image.channels`, or of all slices; a row
                             per row of index.parquet, in its order
    images_<size>_ids.csv    split, id, ok, crc: whose row is which; ok is 0 where the file could not be read (row of
                             zeros); crc of its pixels, checked when they are first read
    images_<size>.json       the key of what made it
    images_<size>_slices.csv  of series: split, id, slot, and which slice it is (see series.read_study)
    images_<size>_crop...    the same three for the windows of 08_crop.py

Workers write pixels straight into the file (nothing is sent back but one byte a row), so a pool scales with cores.
A build that is killed leaves only *.part files, and the next one goes on from them.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import time
import warnings
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core.files import digest, read_voucher, write_csv, write_voucher
from foldwise.core.parallel import parallel_map
from foldwise.core.source import ReadWarning
from foldwise.data import arrays, image, index, series
from foldwise.data.boxes import Crops, load_crop_meta
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions, SeriesOptions
from foldwise.dicom import DicomOptions

FORMAT = 2  # raise it when the same file and options would give other pixels


@dataclass(frozen=True)
class Cache:
    """Images of one size, read by row number without holding them in memory."""

    path: Path
    size: int
    ids: pd.DataFrame
    holds_features = False  # in place of pixels (train.kept_features)

    @cached_property
    def _file(self) -> tuple[int, int, int]:
        with self.path.open("rb") as stream:
            try:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            except ValueError:
                shape, dtype = (), np.dtype(object)
            header = stream.tell()
        if shape[:3] != (len(self.ids), self.size, self.size) or len(shape) != 4 or dtype != np.uint8:
            raise UserError(
                f"{self.path}: holds {dtype} {shape}, not uint8 for {len(self.ids)} images; delete it and "
                "run 01_preprocess.py again"
            )
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)  # a server opens one for every upload
        return descriptor, header, shape[3]

    @property
    def channels(self) -> int:
        """3 (RGB), or what `image.channels` was."""
        return self._file[2]

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """`read` as something to look at, uint8 (len(rows), size, size, 3)."""
        return image.as_picture(self.read(rows))

    def views(self, rows: np.ndarray) -> list[np.ndarray]:
        """`pictures`, or of slices nine of each study, one after the other: what must all agree in copies."""
        if self.channels <= arrays.MOST:
            return [self.pictures(rows)]
        slices = np.stack([image.nine(pixels) for pixels in self.read(rows)])
        return [np.repeat(part[..., None], 3, axis=-1) for part in slices.transpose(1, 0, 2, 3)]

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (len(rows), size, size, channels), in the order of `rows`; thread-safe.

        pread rather than a memory map: mapped pages count as this process's memory, and would grow with the images.
        """
        descriptor, header, channels = self._file
        if out is None:
            out = np.empty((len(rows), self.size, self.size, channels), np.uint8)
        step = self.size * self.size * channels
        checked, expected = self._checked
        for place, row in zip(out, rows, strict=True):
            if os.preadv(descriptor, [place.reshape(-1)], header + int(row) * step) != step:
                raise UserError(f"{self.path}: ends before image {row}; run 01_preprocess.py again")
            if not checked[row]:
                if zlib.crc32(place.data) != expected[row]:
                    raise UserError(
                        f"{self.path}: image {row} is damaged; delete the file and run 01_preprocess.py again"
                    )
                checked[row] = True
        return out

    @cached_property
    def _checked(self) -> tuple[np.ndarray, np.ndarray]:
        """Which rows' pixels need no check (any more), and their checksums: once a process, 2 to 3 GB/s."""
        known = "crc" in self.ids
        expected = self.ids["crc"].to_numpy(np.int64) if known else np.zeros(len(self.ids), np.int64)
        return (self.ids["ok"].to_numpy() == 0) | (not known), expected

    def rows(self, split: str, ids: Sequence[str]) -> np.ndarray:
        """Row numbers int64 of ids in one split, -1 where the file could not be read; UserError for an unknown id."""
        part = self.ids[self.ids["split"] == split]
        rows = pd.Series(np.where(part["ok"], part.index, -1), index=part["id"]).reindex(ids)
        if rows.isna().any():
            raise UserError(
                f"{self.path}: has no image of {split} id '{rows.index[rows.isna()][0]}'; run 01_preprocess.py again"
            )
        return rows.to_numpy(np.int64, copy=True)

    def rows_of(self, table: pd.DataFrame) -> np.ndarray:
        """Row numbers int64 of index rows of any splits, -1 where the file could not be read."""
        numbers = np.empty(len(table), np.int64)
        for split in table["split"].unique():
            part = (table["split"] == split).to_numpy()
            numbers[part] = self.rows(split, table.loc[part, "id"].tolist())
        return numbers


def load_cache(competition: Competition, size: int, crop: bool = False, table: pd.DataFrame | None = None) -> Cache:
    """The finished cache of one size, of whole images or of crops; UserError says what to run where there is none.

    table: the index whose rows it must hold (default: the saved one).
    """
    path = competition.derived() / f"{_stem(size, crop)}.npy"
    how = f"run python src/01_preprocess.py --competition {competition.name} --sizes {size}"
    if crop:
        how = f"run python src/08_crop.py --competition {competition.name} --sizes {size} (see its --help)"
    known = read_voucher(path.with_suffix(".json"))
    if known is None or not path.exists():
        there = ", ".join(map(str, sizes(competition, crop)))
        has = f" (made so far: {there})" if there else ""
        raise UserError(f"{path}: not there yet{has}, or damaged; {how}")
    if known["image"] != _options_digest(competition.image):
        raise UserError(f"{path}: made with other `image` options than {competition.file} has now; {how} again")
    meta = load_crop_meta(competition) if crop else None
    if crop and (meta is None or meta["key"] != known.get("crop")):
        raise UserError(f"{path}: made from other boxes than boxes.csv and crop.json beside it hold now; {how} again")
    images = open_size(path.parent, size, crop)
    _check_rows(images, index.load_index(competition) if table is None else table, how)
    return images


def sizes(competition: Competition, crop: bool = False) -> list[int]:
    """Sides of the finished caches, ascending."""
    stems = (path.stem for path in competition.derived().glob("images_*.npy"))
    return sorted(int(part[1]) for stem in stems if (part := re.fullmatch(_stem(r"(\d+)", crop), stem)))


def _check_rows(images: Cache, table: pd.DataFrame, how: str) -> None:
    """A run of step 1 that was refused or killed may have left the pixels of other rows."""
    same = len(table) == len(images.ids) and (table["id"].to_numpy() == images.ids["id"].to_numpy()).all()
    if not same or (table["error"].isna().to_numpy() & (images.ids["ok"].to_numpy() == 0)).any():
        raise UserError(f"{images.path}: made for other rows than index.parquet beside it holds; {how} again")


def open_size(folder: Path, size: int, crop: bool = False) -> Cache:
    """The finished cache of one size in a folder."""
    path = folder / f"{_stem(size, crop)}.npy"
    ids = pd.read_csv(_ids_file(path), dtype={"id": str, "split": str}, keep_default_na=False)
    return Cache(path, size, ids)


def to_show(competition: Competition, own: int | None = None) -> Cache | None:
    """Images for a page: of size `own` where it is there (and whole), else the smallest of 128 pixels on, else any."""
    folder = competition.derived()
    by_choice = sorted(sizes(competition), key=lambda size: (size != own, size < 128, size if size >= 128 else -size))
    whole = (size for size in by_choice if read_voucher(folder / f"{_stem(size, False)}.json") is not None)
    return next((open_size(folder, size) for size in whole), None)


def _stem(size: int | str, crop: bool) -> str:
    return f"images_{size}_crop" if crop else f"images_{size}"


def _ids_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_ids.csv")


def temporary(
    raw: Path,
    tmp_dir: Path,
    rows: pd.DataFrame,
    size: int,
    options: ImageOptions,
    workers: int | None = None,
    crops: Crops | None = None,
) -> tuple[Cache, np.ndarray, dict[str, str]]:
    """A cache in the temporary folder `tmp_dir` of new files: never a second path for images that come later.

    rows: an index's split, id, path (below `raw`), error, bytes. Back come the cache, the cache's row of each of
    them (int64, -1: unreadable), and {id: reason} of the unreadable ones.
    """
    errors = build_size(raw, tmp_dir, rows, size, options, workers, crops=crops)
    images = open_size(tmp_dir, size, crops is not None)
    ids = rows["id"].tolist()
    reasons = {row_id: str(reason) for row_id, reason in zip(ids, errors, strict=True) if isinstance(reason, str)}
    return images, images.rows("new", ids), reasons


def build_caches(
    competition: Competition,
    table: pd.DataFrame,
    sizes: Sequence[int],
    workers: int | None = None,
    dask: str | None = None,
    crops: Crops | None = None,
) -> pd.Series:
    """Make the caches that are missing; returns the reason (str, null where readable) for every index row."""
    errors = table["error"].astype(object).where(table["error"].notna(), None)
    for size in sizes:
        reasons = build_size(
            competition.raw(), competition.derived(), table, size, competition.image, workers, dask, crops
        )
        errors = errors.combine_first(reasons)
    return errors


def build_size(
    raw: Path,
    folder: Path,
    table: pd.DataFrame,
    size: int,
    options: ImageOptions,
    workers: int | None = None,
    dask: str | None = None,
    crops: Crops | None = None,
) -> pd.Series:
    """One cache in `folder` of the files that index column `path` names below `raw`; the reasons, as `build`.

    crops: the window of each row that is cut out, and their key.
    """
    path, key = folder / f"{_stem(size, crops is not None)}.npy", _key(table, size, options, crops)
    voucher = path.with_suffix(".json")
    known = read_voucher(voucher)
    shape = (len(table), size, size, options.planes)
    whole = len(_header(shape)) + math.prod(shape)
    if known is not None and known["key"] == key and path.exists() and path.stat().st_size == whole:
        reasons = {int(row): reason for row, reason in known["errors"].items()}
        return pd.Series(reasons, dtype=object).reindex(table.index)
    started = time.perf_counter()
    pixels, state = path.with_suffix(".npy.part"), path.with_suffix(".state.part")
    folder.mkdir(parents=True, exist_ok=True)
    _allocate(pixels, state, path.with_suffix(".key.part"), key, shape)

    done = np.fromfile(state, np.int64) > 0
    todo = table.index[table["error"].isna() & ~done]
    job = partial(_decode_rows, str(raw), str(pixels), str(state), size, options)
    reasons = {}
    frames = table["frame"] if "frame" in table else pd.Series(pd.NA, index=table.index)
    cut = [None] * len(table) if crops is None else [w if w[0] >= 0 else None for w in crops.windows.tolist()]
    cut = [cut[place] for place in table.index.get_indexer(todo)]
    rows = list(zip(todo.tolist(), table.loc[todo, "path"], frames.loc[todo], cut, strict=True))
    for (row, *_), result in parallel_map(job, rows, workers=workers, label=f"images {size}", unit="img", dask=dask):
        if result is not None:
            reasons[row] = str(result)
    marks = np.fromfile(state, np.int64)
    ok = marks > 0
    ids = table[["split", "id"]].assign(ok=ok.astype(int), crc=np.where(ok, marks - 1, 0))
    voucher.unlink(missing_ok=True)  # of an older build; from here to its new self, the cache counts as unfinished
    write_csv(_ids_file(path), ids)
    if options.slices is not None:
        write_csv(_slices_file(path), _seen_slices(state, ids))
    pixels.replace(path)
    write_voucher(
        voucher,
        {
            "key": key,
            "size": size,
            "image": _options_digest(options),
            **({} if crops is None else {"crop": crops.key, "margin": crops.margin, "square": crops.square}),
            "images": len(table),
            "unreadable": int((~ok).sum()),
            "seconds": round(time.perf_counter() - started, 2),
            "errors": reasons,
            "remarks": _remarks(state),
        },
        _ids_file(path),
    )
    for part in (state, path.with_suffix(".key.part"), _remarks_file(state), _slices_part(state)):
        part.unlink(missing_ok=True)
    return pd.Series(reasons, dtype=object).reindex(table.index)


def load_slices(competition: Competition, size: int) -> pd.DataFrame:
    """Which slice each slot of a cache of series shows: split, id, slot, series, file, instance, position."""
    path = _slices_file(competition.derived() / f"{_stem(size, False)}.npy")
    try:
        return pd.read_csv(path, dtype={"id": str, "split": str, "file": str})
    except (OSError, ValueError):
        raise UserError(f"{path}: not there, or damaged; delete images_{size}.npy and run 01_preprocess.py") from None


def _slices_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_slices.csv")


def _slices_part(state: Path) -> Path:
    return state.with_suffix(".slices")


def _seen_slices(state: Path, ids: pd.DataFrame) -> pd.DataFrame:
    """What the workers wrote down, in the order of rows and slots; a row that a kill made twice counts once."""
    columns = ["row", *SEEN]
    table = pd.DataFrame(
        [[row, *one] for row, slices in _noted(_slices_part(state)) for one in slices], columns=columns
    )
    table = table.drop_duplicates(["row", "slot"]).sort_values(["row", "slot"])
    return (
        ids[["split", "id"]]
        .loc[table["row"]]
        .reset_index(drop=True)
        .join(table.drop(columns="row").reset_index(drop=True))
    )


SEEN = ["slot", "series", "file", "instance", "position"]


def remarks(competition: Competition, table: pd.DataFrame, size: int) -> pd.DataFrame:
    """What was odd about images that could be read (split, path, remark), from the cache of one size."""
    meta = read_voucher(competition.derived() / f"{_stem(size, False)}.json") or {}
    said = {int(row): text for row, text in meta.get("remarks", {}).items()}
    return table.loc[list(said), ["split", "path"]].assign(remark=list(said.values()))


def _remarks_file(state: Path) -> Path:
    return state.with_suffix(".remarks")


def _remarks(state: Path) -> dict[int, str]:
    return dict(sorted(_noted(_remarks_file(state))))


def _note_down(file: Path, what: Any) -> None:
    """A line of JSON, at once: other workers write there too, and a kill may have cut the line before."""
    with file.open("ab", buffering=0) as stream:
        stream.write(f"\n{json.dumps(what)}\n".encode())


def _noted(file: Path) -> list[Any]:
    """What was noted down and is whole; of what a kill cut, the row is read again."""
    noted = []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        with suppress(ValueError):
            noted.append(json.loads(line))
    return noted


def _options_digest(options: ImageOptions) -> str:
    return digest(_settings(options))


def _settings(options: ImageOptions) -> dict[str, Any]:
    """Options as plain data, those of arrays and series only where they are set: caches made before them stay good."""
    later = {name: field for name, field in SeriesOptions.model_fields.items() if name not in DicomOptions.model_fields}
    unset = {
        name for name, field in later.items() if getattr(options, name) == field.get_default(call_default_factory=True)
    }
    return options.model_dump(mode="json", exclude=unset)


def _key(table: pd.DataFrame, size: int, options: ImageOptions, crops: Crops | None = None) -> str:
    files = index.identity(table).to_numpy().tolist()
    what = {"format": FORMAT, "size": size, "image": _settings(options), "files": files}
    return digest(what if crops is None else {**what, "crop": crops.key})


def _allocate(pixels: Path, state: Path, keyfile: Path, key: str, shape: tuple[int, ...]) -> None:
    """Files of the final size, zeroed and reserved, unless those of a killed build with the same key are there."""
    if keyfile.exists() and keyfile.read_text(encoding="utf-8") == key and pixels.exists() and state.exists():
        return
    for stale in (keyfile, pixels, state, _remarks_file(state), _slices_part(state)):
        stale.unlink(missing_ok=True)
    header = _header(shape)
    total = len(header) + math.prod(shape)
    free = shutil.disk_usage(pixels.parent).free
    if total > free:
        raise UserError(
            f"{pixels.parent}: {shape[0]} images at {shape[1]} need {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; make room, choose a smaller --sizes, or set FOLDWISE_ROOT to another disk"
        )
    with pixels.open("wb") as stream:
        stream.write(header)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, total)
        stream.truncate(total)
    state.write_bytes(bytes(8 * shape[0]))
    keyfile.write_text(key, encoding="utf-8")  # last: it vouches for the other two


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _decode_rows(
    raw: str, pixels: str, state: str, size: int, options: ImageOptions, rows: Sequence[tuple[int, str, Any, Any]]
) -> list[str | None]:
    """Decode, resize and write each row in place; its reason where it can't be read. Pixels first, then its mark."""
    results: list[str | None] = []
    with Path(pixels).open("r+b", buffering=0) as out, Path(state).open("r+b", buffering=0) as marks:
        np.lib.format.read_magic(out)
        np.lib.format.read_array_header_1_0(out)
        header = out.tell()
        for row, path, frame, window in rows:
            chosen = options if pd.isna(frame) else options.model_copy(update={"frame": int(frame)})
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", ReadWarning)
                    pixels_of, slices = series.read(Path(raw) / path, size, chosen, window)
            except UserError as error:
                results.append(str(error).removeprefix(f"{Path(raw) / path}: "))
                continue
            except Exception as error:  # whatever a damaged file does to a decoder, the other files go on
                results.append(f"{type(error).__name__}: {error}")
                continue
            odd = [
                str(one.message).removeprefix(f"{Path(raw) / path}: ") for one in said if one.category is ReadWarning
            ]
            if odd:
                _note_down(_remarks_file(Path(state)), [row, "; ".join(odd)])
            if slices is not None:
                table = slices.assign(file=[Path(one).name for one in slices["path"]])[SEEN].astype(object)
                _note_down(_slices_part(Path(state)), [row, table.where(table.notna(), None).to_numpy().tolist()])
            data = np.ascontiguousarray(pixels_of).data
            os.pwrite(out.fileno(), data, header + row * pixels_of.size)
            os.pwrite(marks.fileno(), np.int64(zlib.crc32(data) + 1).tobytes(), 8 * row)
            results.append(None)
    return results
