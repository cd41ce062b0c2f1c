"""Files that hold numbers and no picture: .npy, .npz and parquet matrices -> uint8 (H, W, C) by a stated scaling.

The numbers of each channel are stretched between two values: fixed ones, percentiles of the training part (learnt once
by step 01 and kept beside the index), or, where nothing is said, each image's own percentiles for all its channels.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from foldwise import UserError
from foldwise.core import parallel, source
from foldwise.core.files import digest, read_voucher, replacing, write_json, write_voucher
from foldwise.core.schema import Strict, nearest
from foldwise.dicom import DicomOptions

Array = np.ndarray[Any, Any]
KINDS = {b"\x93NUM": "NPY", b"PK\x03\x04": "NPZ", b"PAR1": "PARQUET"}
MOST = 12  # channels: more would be no picture that a pretrained first convolution can be stretched to
LEARNT_FROM, PIXELS = 1000, 2000  # training images at most, and values of each channel of one of them
FILE = "scaling.json"


class Scaling(Strict):
    """Which numbers become 0 and 255: percentiles of each channel over the training part, or fixed values."""

    percentiles: tuple[float, float] | None = Field(None, description="two, of each channel over the training part")
    fixed: list[float] | list[tuple[float, float]] | None = Field(
        None, description="two values for all channels, or two for each"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Scaling:
        if (self.percentiles is None) == (self.fixed is None):
            raise ValueError("write {percentiles: [1, 99]}, {fixed: [low, high]} or {fixed: [[low, high], ...]}")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("`percentiles` are two numbers of 0 to 100, ascending")
        if self.fixed is not None and not (self.ends[:, 0] < self.ends[:, 1]).all():
            raise ValueError("`fixed` is [low, high], or such a pair for each channel, ascending")
        return self

    @property
    def ends(self) -> Array:
        """float (1 or C, 2) of fixed values."""
        return np.array(self.fixed, np.float64).reshape(-1, 2)


class ArrayOptions(DicomOptions):
    """The part of `image:` that says what of an array is what."""

    channels: int = Field(
        3, ge=1, le=MOST, description="of arrays (.npy, .npz, parquet), and of the images that networks see; 3: RGB"
    )
    axes: Literal["auto", "first", "last"] = Field(
        "auto", description="where the channels of an array stand: (C, H, W), (H, W, C), or where `channels` fits"
    )
    key: str | None = Field(None, description="the array's name in an .npz that holds several")
    bands: list[str] = Field(
        [],
        description="patterns of columns of numbers, a channel each: of a parquet file that is an image, or of the "
        "table of a split without `images`, an image a row: [LL_*, RL_*], [pixel*], [band_1, band_2]",
    )
    shape: tuple[int, int] | None = Field(
        None, description="rows and columns of an image that lies flat in a table's `bands`; default: square"
    )
    scaling: Scaling | None = Field(
        None,
        description="numbers of an array that become 0 and 255: {percentiles: [1, 99]} of each channel over the "
        "training part, {fixed: [low, high]}, or such a pair for each; default: each image's own `percentiles`",
    )


def kind(path: Path, head: bytes) -> str | None:
    """NPY, NPZ, PARQUET; None of a file that is none of them."""
    named = KINDS.get(head[:4])
    return None if named == "NPZ" and path.suffix.lower() != ".npz" else named


def probe(path: Path, what: str, options: ArrayOptions) -> dict[str, int]:
    """width and height; of a .npy file from its header alone."""
    if what == "NPY":
        stream = io.BytesIO(source.head(path, 1024)[0])
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape = header(stream)[0]
    else:
        shape = _read(path, what, options).shape
    axis = _channel_axis(shape, path, options)
    rows, columns = (length for k, length in enumerate(shape) if k != axis)
    return {"width": columns, "height": rows}


def channels_of(path: Path) -> int | None:
    """How many channels an array seems to have, RGB for one; None where that can't be told."""
    options = ArrayOptions()
    try:
        shape = _read(path, str(kind(path, source.head(path, 8)[0])), options).shape
    except UserError:
        return None
    least = min(shape[0], shape[-1]) if len(shape) == 3 else 1
    return None if least > MOST else 3 if least == 1 else least


def read_array(path: Path, what: str, options: ArrayOptions) -> Array:
    """float32 (H, W, C); UserError where the file is damaged, or of other channels than `image.channels` says."""
    array = _read(path, what, options)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{path}: holds {array.dtype} values; numbers are needed")
    axis = _channel_axis(array.shape, path, options)
    array = array[..., None] if axis is None else np.moveaxis(array, axis, 2)
    return array.astype(np.float32)


def read_volume(path: Path, what: str, options: ArrayOptions) -> Array:
    """float32 (slices, H, W); UserError where the array has not three axes of numbers."""
    array = _read(path, what, options)
    if array.ndim != 3 or array.dtype.kind not in "fiub":
        raise UserError(f"{path}: an array {array.shape} of {array.dtype}; a series is (slices, H, W), numbers")
    return array.astype(np.float32)


def _read(path: Path, what: str, options: ArrayOptions) -> Array:
    try:
        if what == "PARQUET":
            return _bands(path, options)
        loaded = np.load(io.BytesIO(source.read(path)))
        if what == "NPY":
            return loaded
        key = options.key or next(iter(loaded.files), "")
        if key not in loaded.files or (options.key is None and len(loaded.files) > 1):
            named = f"no array '{options.key}'" if options.key else "several arrays: name one, `image: {key: NAME}`"
            raise UserError(f"{path}: {named}{nearest(key, loaded.files)}")
        return loaded[key]
    except UserError:
        raise
    except Exception as error:  # zip, zlib, Arrow and NumPy each have their own
        raise UserError(f"{path}: damaged or truncated {what} ({' '.join(str(error).split())[:120]})") from None


def _bands(path: Path, options: ArrayOptions) -> Array:
    """A parquet table: its columns of numbers as one channel, or a channel for each pattern of `image.bands`."""
    table = pd.read_parquet(source.plain(path))
    if not options.bands:
        return table.select_dtypes("number").to_numpy()
    named = [[column for column in table if fnmatchcase(str(column), pattern)] for pattern in options.bands]
    counts = {len(columns) for columns in named}
    if counts == {0} or len(counts) > 1:
        each = ", ".join(f"{pattern} {len(columns)}" for pattern, columns in zip(options.bands, named, strict=True))
        raise UserError(f"{path}: `image.bands` need as many columns each, found {each}")
    return np.stack([table[columns].to_numpy(np.float32) for columns in named], axis=2)


def pack(table: pd.DataFrame, where: Path, options: ArrayOptions, file: Path) -> list[str]:
    """Images that lie flat in a table's rows, as members (H, W, C) of the ZIP `file`, made once: their paths.

    UserError for columns, rows or lengths that do not fit `image.bands` and `image.shape`.
    """
    paths = [f"{file.as_posix()}/{k}.npy" for k in range(len(table))]
    voucher = file.with_suffix(".json")
    made_of = {"table": digest([source.stamp(where), options.bands, options.shape, *table.index])}
    if read_voucher(voucher) == made_of:
        return paths
    flat = [_flat(table, pattern, where) for pattern in options.bands]
    length, side = flat[0].shape[1], math.isqrt(flat[0].shape[1])
    shape = options.shape or (side, side)
    if any(band.shape[1] != shape[0] * shape[1] for band in flat):
        counts = ", ".join(f"{name} {band.shape[1]}" for name, band in zip(options.bands, flat, strict=True))
        hint = "" if options.shape else f"; {length} is no square: state `image: {{shape: [H, W]}}`"
        raise UserError(f"{where}: `image.bands` hold {counts} numbers a row, an image {shape[0]} x {shape[1]}{hint}")
    images = np.stack(flat, axis=2).reshape(len(table), *shape, len(flat))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, zipfile.ZipFile(part, "w") as archive:
        for path, image in zip(paths, images, strict=True):
            stream = io.BytesIO()
            np.save(stream, image)
            archive.writestr(zipfile.ZipInfo(path.rpartition("/")[2]), stream.getvalue())
    write_voucher(voucher, made_of, file)
    return paths


def _flat(table: pd.DataFrame, pattern: str, where: Path) -> Array:
    """float32 (N, n): the columns of one band, or the lists of numbers in the cells of one column."""
    columns = [column for column in table if fnmatchcase(str(column), pattern)]
    if not columns:
        raise UserError(f"{where}: no column fits '{pattern}' of `image.bands`{nearest(pattern, map(str, table))}")
    if len(columns) > 1:
        return table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    cells = []
    for row, cell in zip(table.index, table[columns[0]], strict=True):
        text = cell.replace(",", " ").strip("[] ").split() if isinstance(cell, str) else cell
        try:
            cells.append(np.asarray(text, np.float32).reshape(-1))
        except (TypeError, ValueError):
            raise UserError(f"{where}: row {row + 2}: '{columns[0]}' holds no list of numbers") from None
        if cells[-1].size != cells[0].size:
            raise UserError(
                f"{where}: row {row + 2}: '{columns[0]}' holds {cells[-1].size} numbers, not {cells[0].size}"
            )
    return np.stack(cells)


def _channel_axis(shape: Sequence[int], path: Path, options: ArrayOptions) -> int | None:
    """The axis of the channels, None where there is but one; UserError where they are not `image.channels`."""
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise UserError(f"{path}: an array {tuple(shape)}; an image has two axes, or three with its channels")
    likely = 0 if shape[0] < shape[2] else 2
    fits = [axis for axis in (2, 0) if shape[axis] == options.channels]
    axis = {"first": 0, "last": 2}.get(options.axes, fits[0] if fits else likely)
    if shape[axis] not in {options.channels, 1}:
        hint = f"`image: {{channels: {shape[axis]}}}`" if shape[axis] <= MOST else f"{MOST} at most"
        raise UserError(f"{path}: an array {tuple(shape)} of {shape[axis]} channels, not {options.channels}; {hint}")
    return axis


def as_bytes(values: Array, path: Path, options: ArrayOptions) -> Array:
    """float32 (H, W, C) -> uint8 of the same shape, or (H, W) of one channel. What is no number becomes 0."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UserError(f"{path}: no finite value in it")
    if options.scaling is not None and options.scaling.fixed is not None:
        ends = options.scaling.ends
        if len(ends) not in {1, values.shape[2]}:
            raise UserError(f"{path}: {values.shape[2]} channels, and `image.scaling` is for {len(ends)}")
    else:
        ends = np.percentile(finite, options.percentiles)[None]
    low, width = ends[:, 0].astype(np.float32), np.maximum(ends[:, 1] - ends[:, 0], 1e-12).astype(np.float32)
    scaled = np.rint(np.nan_to_num(np.clip((values - low) / width, 0, 1)) * 255).astype(np.uint8)
    return scaled[..., 0] if scaled.shape[2] == 1 else scaled


# --- percentiles of the training part -----------------------------------------------------------------------------


def learnt(folder: Path, scaling: Scaling | None) -> Scaling | None:
    """The scaling with what step 01 has learnt of it in `folder`, as fixed values; else as it is."""
    said = _said(folder)
    if scaling is None or scaling.percentiles is None or said.get("percentiles") != list(scaling.percentiles):
        return scaling
    return Scaling(fixed=said["fixed"])


def learn_once(
    folder: Path, scaling: Scaling | None, files: Sequence[Path], key: str, options: ArrayOptions
) -> Scaling | None:
    """`learnt`, and learnt now where it is not, or of other files than those of `key`."""
    said = _said(folder)
    asked = None if scaling is None else scaling.percentiles
    if scaling is not None and scaling.fixed is not None and scaling.ends.tolist() == said.get("fixed"):
        asked = (said["percentiles"][0], said["percentiles"][1])  # learnt by an earlier step 01
    if asked is None:
        return scaling
    if said.get("key") == key and said["percentiles"] == list(asked):
        return Scaling(fixed=said["fixed"])
    chosen = files[:: max(1, len(files) // LEARNT_FROM)][:LEARNT_FROM]
    with ThreadPoolExecutor(parallel.cores()) as pool:
        parts = [part for part in pool.map(lambda file: _some_values(file, options), chosen) if part is not None]
    if not parts:
        return scaling
    values = np.concatenate(parts)
    fixed = [[float(end) for end in np.percentile(column[np.isfinite(column)], asked)] for column in values.T]
    fixed = [[low, high if high > low else low + 1] for low, high in fixed]
    write_json(folder / FILE, {"percentiles": list(asked), "fixed": fixed, "key": key, "images": len(parts)})
    return Scaling(fixed=[(low, high) for low, high in fixed])


def _said(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _some_values(file: Path, options: ArrayOptions) -> Array | None:
    """float32 (n, C) of a file; None of one that can't be read: the cache will say why."""
    try:
        what = kind(file, source.head(file, 8)[0])
        values = None if what is None else read_array(file, what, options)
    except (UserError, OSError):
        return None
    if values is None:
        return None
    cells = values.reshape(-1, values.shape[2])
    return cells[np.random.default_rng(0).integers(len(cells), size=PIXELS)]
