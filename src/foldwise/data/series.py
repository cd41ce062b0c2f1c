"""A row's pixels, whatever it is made of: one picture, or the slices of one or several series.

A series is a folder or the files that a pattern names: DICOM slices (foldwise.dicom.series has their order), PNG, JPEG
and the like by the numbers in their names; or one file that holds them: multi-frame DICOM, NIfTI, a .npy of (Z, H, W).
Its `image.slices` slices are the channels of the row's pixels, so that one warp turns all of them alike. Fewer are
followed by black ones, and a series that is missing is black: networks leave black slices out.
"""

from __future__ import annotations

import glob
import io
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from foldwise import UserError, dicom
from foldwise.core import source
from foldwise.core.files import digest
from foldwise.data import arrays, image
from foldwise.data.image import ImageError, ImageOptions
from foldwise.dicom import Size
from foldwise.dicom import series as stacks
from foldwise.dicom.decode import Array
from foldwise.dicom.series import COLUMNS, natural, say, unread

T = TypeVar("T")
MAX_RESAMPLED = 16_000_000  # pixels of a slice: a PixelSpacing that asks for more is damaged
SEVERAL = "|"  # before each of a row's series in the index's `path`, where there are several
NIFTI = (".nii", ".nii.gz")
SLIDE = 2_000_000_000  # pixels of a slide that is cut into tiles


def several(places: Sequence[str]) -> str:
    """Series, each a path below the raw folder, as the index's `path`."""
    return places[0] if len(places) == 1 else "".join(SEVERAL + place for place in places)


def places(path: Path) -> list[Path]:
    """The raw folder's path / an index's `path` as the paths of its series."""
    raw, *named = str(path).split(SEVERAL)
    return [Path(raw, place) for place in named] or [path]


def files(place: Path) -> list[Path]:
    """The files of a series, sorted: one file, all below a folder, or those that fit a pattern with *."""
    text = str(place)
    if place.is_file() and text.lower().endswith(NIFTI):  # a .gz that is no archive
        return [place]
    if "*" not in text:
        return source.tree(place).files if source.is_folder(place) else [place] if source.is_there(place) else []
    folder = Path(text.partition("*")[0].rpartition("/")[0])
    depth, lead = len(place.parts), text.partition("*")[0]  # a * is no folder's end
    names = _listed(folder, source.stamp_of_folder(folder))
    some = names[bisect_left(names, lead) : bisect_left(names, lead + chr(0x10FFFF))]
    stem, dot, suffix = text.rpartition(".")
    for ending in dict.fromkeys((suffix, suffix.lower(), suffix.upper())):  # *.dcm finds .DCM
        fits = "*".join(map(glob.escape, f"{stem}{dot}{ending}".split("*")))
        if fit := [file for name in some if fnmatchcase(name, fits) and len((file := Path(name)).parts) == depth]:
            return fit
    return []


@lru_cache(maxsize=8)
def _listed(folder: Path, stamped: int) -> list[str]:
    """All files below a folder, sorted as text; read once where it is not changed."""
    return sorted(map(str, source.tree(folder).files))


def read(
    path: Path, size: Size = None, options: ImageOptions | None = None, window: Sequence[int] | None = None
) -> tuple[Array, pd.DataFrame | None]:
    """uint8 (H, W, options.planes) of an index's `path` below the raw folder, and of series the table of slices."""
    if options is None or options.slices is None:
        return image.read_image(path, size, options, window), None
    return read_study(path, size, options, window)


def read_study(
    path: Path, size: Size, options: ImageOptions, window: Sequence[int] | None = None
) -> tuple[Array, pd.DataFrame]:
    """`read` of series, and a table of the slices: a row for each of them in the order of the pixels' channels.

    The table: series (its number), slot (its place among all slices), and dicom.read_series's columns. What is odd is
    said by ReadWarnings. UserError where no series of the row can be read.
    """
    assert options.slices is not None
    parts: dict[int, Array] = {}
    tables, errors = [], []
    for number, place in enumerate(places(path)):
        try:
            slots, parts[number], table = _read_stack(place, size, options, window)
        except UserError as error:
            errors.append(error)
            if options.series:
                say(image.without(options.series[number]))
            continue
        tables.append(table.assign(series=number, slot=number * options.slices + slots))
    if not parts:
        raise errors[0]
    first = next(iter(parts.values()))
    pixels = np.zeros((*first.shape[:2], max(1, len(options.series)), first.shape[2]), np.uint8)
    for number, part in parts.items():
        if part.shape != first.shape:
            raise ImageError(f"{path}: series of other sizes need a size")
        pixels[:, :, number] = part
    return pixels.reshape(*pixels.shape[:2], -1), pd.concat(tables, ignore_index=True)


def probe(path: Path, options: ImageOptions) -> dict[str, Any]:
    """image.probe and source.identity of an index's `path`; of series those of their middle file, and all bytes."""
    if options.slices is None:
        return {**image.probe(path, options), **source.identity(path)}
    each = [files(place) for place in places(path)]
    count = sum(map(len, each))
    seen = _first_readable(path, each, lambda file: _probe(file, options))
    return {**seen, **_identity(each), "slices": count if count > 1 else seen.get("frames", 1)}


def identity(path: Path, options: ImageOptions) -> dict[str, Any]:
    """source.identity of an index's `path`; of series of all their files."""
    if options.slices is None:
        return source.identity(path)
    return _identity([files(place) for place in places(path)])


def _identity(series: list[list[Path]]) -> dict[str, Any]:
    every = [file for one in series for file in one]
    each = [source.identity(file) for file in every]
    contents = [[str(file.parent), file.name, *one.values()] for file, one in zip(every, each, strict=True)]
    size, modified = sum(one["bytes"] for one in each), max((one["modified"] for one in each), default=0)
    return {"bytes": size, "modified": modified, "content": digest(contents)[:16]}


def header_file(path: Path, options: ImageOptions) -> Path:
    """The file whose header stands for a row: its own, or one in the middle of its first series' files."""
    if options.slices is None:
        return path

    def itself(file: Path) -> Path:
        _probe(file, options)
        return file

    return _first_readable(path, [files(place) for place in places(path)], itself)


TRIED = 5  # files of a series, from its middle on, before it counts as unreadable


def _first_readable(path: Path, each: list[list[Path]], look: Callable[[Path], T]) -> T:
    error: UserError = ImageError(f"{path}: missing series")
    for file in [file for every in each for file in [*every[len(every) // 2 :], *every[: len(every) // 2]][:TRIED]]:
        try:
            return look(file)
        except UserError as reason:
            error = reason
    raise error


# --- one series -----------------------------------------------------------------------------------------------


@dataclass
class Stack:
    """Slices in their order, COLUMNS; how to read some of them: uint8 (H, W[, C]) each or None, and the reasons."""

    table: pd.DataFrame
    read: Callable[[pd.DataFrame], tuple[list[Array | None], list[str]]]


def _read_stack(
    place: Path, size: Size, options: ImageOptions, window: Sequence[int] | None
) -> tuple[Array, Array, pd.DataFrame]:
    """Places int (n,) of n slices among options.slices, uint8 (H, W, slices * per slice), and the n slices' table."""
    assert options.slices is not None
    plain = options.model_copy(update={"channels": options.per_slice, "slices": None})
    if options.tile is not None:
        plain = plain.model_copy(update={"max_pixels": max(options.max_pixels, SLIDE)})
    stack = _stack(place, None if window or options.resample else size, plain, options.slices)
    chosen = _choose(stack.table, options, place)
    slots = np.flatnonzero(chosen >= 0)
    table = stack.table.iloc[chosen[slots]].reset_index(drop=True)
    images, errors = stack.read(table)
    kept = [k for k, one in enumerate(images) if one is not None]
    if not kept:
        raise ImageError(errors[0])
    say(unread(errors))
    shown = _alike([images[k] for k in kept], size, window, plain, place, table)  # type: ignore[misc]
    each = [image.finished(one, size, plain, place) for one in shown]
    if size is None and len({one.shape for one in each}) > 1:
        raise ImageError(f"{place}: slices of other sizes need a size")
    pixels = np.zeros((*each[0].shape[:2], options.slices, plain.channels), np.uint8)
    for slot, one in zip(slots[kept], each, strict=True):
        pixels[:, :, slot] = one
    return slots[kept], pixels.reshape(*pixels.shape[:2], -1), table.iloc[kept]


def _choose(table: pd.DataFrame, options: ImageOptions, place: Path) -> Array:
    """The slices int (options.slices,) that are seen, -1 where there are none."""
    there, asked = len(table), int(options.slices or 0)
    if options.resample is not None:
        return _at_equal_distances(table, asked, options.resample[0], place)
    if there <= asked:
        return np.append(np.arange(there), np.full(asked - there, -1))
    if isinstance(options.frame, int):  # of `around`
        known = table["instance"].to_numpy(np.float64) if table["instance"].notna().all() else np.arange(there) + 1.0
        first = int(np.abs(known - options.frame).argmin()) - asked // 2
        return np.arange(asked) + min(max(first, 0), there - asked)
    if options.choose == "middle":
        return np.arange(asked) + (there - asked) // 2
    return ((np.arange(asked) + 0.5) * there / asked).astype(int)


def _at_equal_distances(table: pd.DataFrame, asked: int, step: float, place: Path) -> Array:
    """The slices nearest to positions `step` mm apart about the middle; -1 beyond the ends."""
    position = table["position"].to_numpy(np.float64)
    if np.isnan(position).any() or table[["row_spacing", "column_spacing"]].isna().any(axis=None):
        raise ImageError(f"{place}: `image.resample` needs ImagePositionPatient and PixelSpacing, and it has none")
    wanted = (position[0] + position[-1]) / 2 + (np.arange(asked) - (asked - 1) / 2) * step
    nearest = np.abs(position[None] - wanted[:, None]).argmin(axis=1)
    half = max(step, float(np.nan_to_num(table["spacing"]).max())) / 2
    return np.where(np.abs(position[nearest] - wanted) <= half + 1e-6, nearest, -1)


def _alike(
    images: list[Array],
    size: Size,
    window: Sequence[int] | None,
    options: ImageOptions,
    place: Path,
    table: pd.DataFrame,
) -> list[Array]:
    """All slices cut by one box: the window's, or the one that the brightest of all slices asks for; or resampled."""
    if window is not None:
        return [image.cut(one, window, place) for one in images]
    if options.resample is not None:
        rows, columns = (float(table[f"{axis}_spacing"].iloc[0]) for axis in ("row", "column"))
        images = [_at_spacing(one, rows / options.resample[1], columns / options.resample[2]) for one in images]
        if size is not None:
            images = [_framed(one, *((size, size) if isinstance(size, int) else size)) for one in images]
    if options.crop == "none" or len({one.shape for one in images}) > 1:
        return images
    top, bottom, left, right = image.crop_box(np.max(images, axis=0), options)
    return [np.ascontiguousarray(one[top:bottom, left:right]) for one in images]


def _at_spacing(pixels: Array, by_rows: float, by_columns: float) -> Array:
    height, width = (max(1, round(side * by)) for side, by in zip(pixels.shape[:2], (by_rows, by_columns), strict=True))
    if not (by_rows > 0 < by_columns and height * width <= MAX_RESAMPLED):
        raise ImageError(f"its PixelSpacing would make {height} x {width} pixels of {pixels.shape[:2]}")
    return dicom.resize(pixels, (height, width))


def _framed(pixels: Array, height: int, width: int) -> Array:
    """The middle of an image at its own scale, black around it."""
    out = np.zeros((height, width, *pixels.shape[2:]), np.uint8)
    spans = [
        (min(have, want), (have - want) // 2) for have, want in zip(pixels.shape[:2], (height, width), strict=True)
    ]
    there, here = (tuple(slice(max(0, sign * more), max(0, sign * more) + n) for n, more in spans) for sign in (1, -1))
    out[here] = pixels[there]
    return out


def _stack(place: Path, size: Size, options: ImageOptions, most: int) -> Stack:
    every = files(place)
    if not every:
        raise ImageError(f"{place}: missing series")
    if len(every) == 1 and options.tile is not None:
        return _tiles(every[0], options, most)
    if len(every) == 1 and (volume := _volume(every[0], options)) is not None:
        return volume
    if len({file.suffix.lower() for file in every}) > 1:
        every = _of_one_kind(every)
    if image.is_dicom_file(every[len(every) // 2]):
        at_least = None if size is None or options.crop != "none" else max(np.atleast_1d(size))
        return Stack(stacks.slices(every), lambda rows: stacks.render_slices(rows, options, at_least))
    pictures = sorted((file for file in every if image.is_picture(file)), key=lambda file: natural(file.name))
    if not pictures:
        raise ImageError(f"{place}: no images in it")
    table = pd.DataFrame({"path": pictures, "frame": 0}, columns=list(COLUMNS))
    ends = _deep_ends(pictures, options) if options.deep == "percentile" else None
    return Stack(table, lambda rows: _pictures(rows, size, options, ends))


def _of_one_kind(every: list[Path]) -> list[Path]:
    """Of DICOM files and pictures in one folder the more numerous; the others are told."""
    dicoms = {file for file in every if image.is_dicom_file(file)}
    pictures = [file for file in every if file not in dicoms and image.is_picture(file)]
    if dicoms and pictures:
        say("DICOM files and pictures in one series: the more numerous are used")
    return pictures if len(pictures) > len(dicoms) else [file for file in every if file in dicoms] or every


def _deep_ends(pictures: list[Path], options: ImageOptions) -> tuple[float, float] | None:
    """Values that become 0 and 255 in all slices: percentiles of some of them, where they hold 16 bits of gray."""
    some = [pictures[k] for k in np.unique(np.linspace(0, len(pictures) - 1, 9).round().astype(int))]
    values = [one[::2, ::2].ravel() for one in map(image.deep_gray, some) if one is not None]
    if not values:
        return None
    low, high = np.percentile(np.concatenate(values), options.percentiles, method="inverted_cdf")
    return float(low), float(max(high, low + 1))


def _tiles(path: Path, options: ImageOptions, most: int) -> Stack:
    """The tiles of a slide, in rows; only as many as are seen, those with the most that is not white (as in PANDA)."""
    side, pixels = int(options.tile or 0), _level(path, options)
    rows, columns = (-(-length // side) for length in pixels.shape[:2])
    padded = np.full((rows * side, columns * side, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    darkness = 255.0 - np.array([tile.mean() for tile in tiles])
    best = np.sort(np.argsort(-darkness, kind="stable")[:most])
    best = best[darkness[best] > 0] if darkness.max() > 0 else best
    table = pd.DataFrame({"path": path, "frame": best, "instance": best}, columns=list(COLUMNS))
    return Stack(table, lambda rows: ([tiles[k] for k in rows["frame"]], []))


def _level(path: Path, options: ImageOptions) -> Array:
    """uint8 (H, W, 3) of a picture, or of one level of a pyramidal TIFF."""
    if not options.level:
        return image.read_image(path, options=options)
    try:
        import tifffile
    except ImportError:
        raise ImageError(f"{path}: `image.level` of a TIFF is read by tifffile: pip install tifffile") from None
    try:
        with tifffile.TiffFile(source.plain(path)) as opened:
            levels = opened.series[0].levels
            if options.level >= len(levels):
                raise ImageError(f"{path}: `image: {{level: {options.level}}}` of {len(levels)} levels")
            values = levels[options.level].asarray()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: damaged or odd TIFF ({' '.join(str(error).split())[:120]})") from None
    if values.ndim != 3 or values.shape[2] < 3 or values.dtype != np.uint8:
        raise ImageError(f"{path}: a level of {values.dtype} {values.shape}, not of RGB")
    return np.ascontiguousarray(values[..., :3])


def _pictures(
    rows: pd.DataFrame, size: Size, options: ImageOptions, ends: tuple[float, float] | None
) -> tuple[list[Array | None], list[str]]:
    images: list[Array | None] = []
    errors = []
    for path in rows["path"]:
        try:
            images.append(image.decoded(path, size, options) if ends is None else _between(path, size, options, ends))
        except ImageError as error:
            images.append(None)
            errors.append(str(error))
    return images, errors


def _between(path: Path, size: Size, options: ImageOptions, ends: tuple[float, float]) -> Array:
    """A slice whose 16 bits of gray are stretched between `ends`; of any other kind as it is."""
    image.probe(path, options)  # refuses what claims too many pixels
    deep = image.deep_gray(path)
    if deep is None:
        return image.decoded(path, size, options)
    scaled = (deep.astype(np.float32) - ends[0]) / (ends[1] - ends[0])
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _volume_values(path: Path, options: ImageOptions) -> tuple[Array, tuple[float, float, float], str] | None:
    """float32 (Z, H, W) of a NIfTI file or an array, mm between slices, rows and columns, and what it is; else None."""
    if path.name.lower().endswith(NIFTI):
        return *_nifti(path), "NIFTI"
    what = arrays.kind(path, source.head(path, 8)[0])
    return (arrays.read_volume(path, what, options), (np.nan,) * 3, what) if what else None


def _volume(path: Path, options: ImageOptions) -> Stack | None:
    """The slices of a file that holds all of them; None of any other file."""
    volume = _volume_values(path, options)
    if volume is None:
        return None
    values, spacing, _ = volume
    names = [options.window] if isinstance(options.window, str) else options.window
    shown = np.stack([_by_window(values, name, options, path) for name in names], axis=-1)
    table = pd.DataFrame({"path": path, "frame": np.arange(len(values))}, columns=list(COLUMNS)).assign(
        instance=np.arange(len(values)) + 1,
        position=np.arange(len(values)) * spacing[0],
        **{"spacing": spacing[0], "row_spacing": spacing[1], "column_spacing": spacing[2]},
    )
    return Stack(
        table, lambda rows: ([np.squeeze(shown[k], -1) if len(names) == 1 else shown[k] for k in rows["frame"]], [])
    )


def _by_window(values: Array, name: str, options: ImageOptions, path: Path) -> Array:
    """uint8 of float32 (Z, H, W): a window of Hounsfield units, or between percentiles of the volume."""
    center_width = dicom.window_values(name)
    if center_width is not None:
        return np.rint(255 * dicom.apply_window(values, *center_width, "LINEAR")).astype(np.uint8)
    return arrays.as_bytes(values, path, options.model_copy(update={"scaling": None}))


def _nifti(path: Path) -> tuple[Array, tuple[float, float, float]]:
    """float32 (Z, H, W) of axial slices, feet first, seen as radiologists do; mm between slices, rows, columns."""
    try:
        import nibabel
    except ImportError:
        raise ImageError(f"{path}: NIfTI is read by nibabel: pip install nibabel") from None
    try:
        data = source.read(path)
        holder = nibabel.Nifti1Image.from_bytes(data if path.suffix.lower() != ".gz" else _inflated(data))
        scan = nibabel.as_closest_canonical(holder)  # axes to the right, the front, the head
        values = np.asarray(scan.dataobj, np.float32)
    except Exception as error:  # nibabel's readers raise what they like on damaged files
        raise ImageError(f"{path}: damaged or truncated NIfTI ({' '.join(str(error).split())[:120]})") from None
    values = values[..., 0] if values.ndim == 4 else values
    if values.ndim != 3:
        raise ImageError(f"{path}: a NIfTI of {values.ndim} axes; a volume has three")
    x, y, z = (float(mm) for mm in scan.header.get_zooms()[:3])
    return np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0)), (z, y, x)


def _inflated(data: bytes) -> bytes:
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        inflated = stream.read(MAX_VOLUME + 1)
    if len(inflated) > MAX_VOLUME:
        raise ValueError(f"grows past {MAX_VOLUME >> 20} MiB")
    return inflated


MAX_VOLUME = 2 << 30  # bytes of an unpacked NIfTI file


def _probe(path: Path, options: ImageOptions) -> dict[str, Any]:
    if (volume := _volume_values(path, options)) is not None:
        (depth, height, width), _, what = volume[0].shape, *volume[1:]
        return {"format": what, "width": width, "height": height, "frames": depth}
    return image.probe(path, options)
