"""Uploaded bytes -> images in a temporary cache, by the code that makes training's: limited, and hostile files refused.

What came from a browser is not trusted. Its names never name a file here, archives are opened with one limit on what
they grow to, and every decoder runs in a process of its own, so that a file that crashes it takes nobody else along.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise import UserError, dicom
from foldwise.core import parallel, paths
from foldwise.core.files import temporary_folder
from foldwise.core.parallel import parallel_map
from foldwise.data import cache, image, series
from foldwise.data.boxes import Crops
from foldwise.data.cache import Cache
from foldwise.data.image import ImageOptions
from foldwise.data.series import NIFTI
from foldwise.dicom.series import natural


@dataclass(frozen=True)
class Limits:
    """What one visitor may send at once."""

    file_bytes: int = 64 << 20  # of one file
    pixels: int = 50_000_000  # of one image; a mammogram has 20 million
    files: int = 1000
    total_bytes: int = 1 << 30  # of all files, archives unpacked
    ratio: int = 200  # unpacked / packed; images hardly shrink, and bombs reach a thousand


class Upload(NamedTuple):
    """A file as it came: the name it had elsewhere, and its bytes."""

    name: str
    data: bytes


class TooMuch(UserError):
    """More than the limits allow: all of it is refused."""


@dataclass(frozen=True)
class Uploads:
    """Files received into `folder`.

    rows: split (new), id (the name it had elsewhere), path, error, bytes. refused: {id: reason}.
    """

    folder: Path
    rows: pd.DataFrame
    limits: Limits
    refused: dict[str, str] = field(default_factory=dict)

    def path(self, row: int = 0) -> Path:
        """Where a received file lies."""
        return self.folder / str(self.rows["path"].iloc[row])

    def cached(self, size: int, options: ImageOptions, crops: Crops | None = None) -> tuple[Cache, np.ndarray, dict]:
        """The files as the models see them: a cache, its rows (-1: unreadable), and {id: reason} of the unreadable."""
        tmp_dir = self.folder / f"made.{len(list(self.folder.glob('made.*')))}"
        return cache.temporary(self.folder, tmp_dir, self.rows, size, self.bounded(options), crops=crops)

    def bounded(self, options: ImageOptions) -> ImageOptions:
        """The options under this visitor's limit of pixels."""
        return options.model_copy(update={"max_pixels": min(options.max_pixels, self.limits.pixels)})


# ---------------------------------------------------------------------------------------------- receiving


@contextmanager
def receiving(
    files: Sequence[Upload], limits: Limits | None = None, options: ImageOptions | None = None
) -> Iterator[Uploads]:
    """The files, archives unpacked, in a folder that lives as long as the block; studies, where `options` see slices.

    TooMuch where all together pass the limits; a single file that does is refused by name.
    """
    limits = limits or Limits()
    with temporary_folder(paths.output_root(), "upload.") as tmp_dir:
        if options is None or options.slices is None:
            yield _received(files, tmp_dir, limits)
        else:
            yield _studies(_received(files, tmp_dir, limits, within=True), options)


def _received(files: Sequence[Upload], folder: Path, limits: Limits, within: bool = False) -> Uploads:
    """within: files of an archive lie in a folder of its name."""
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    taken: set[str] = set()
    total = 0
    for name, data in _unpacked(files, limits, within):
        reason = data if isinstance(data, str) else _refusal(data, limits)
        reason = reason or ("a second file of this name" if name in taken else "")
        if isinstance(data, str) or reason:
            refused[name] = str(reason)
            continue
        taken.add(name)
        total += len(data)
        if total > limits.total_bytes or len(rows) >= limits.files:
            raise TooMuch(f"more than {limits.files} files or {limits.total_bytes >> 20} MiB at once; send fewer")
        path = f"{len(rows):06}{_suffix(name)}"
        (folder / path).write_bytes(data)
        rows.append({"split": "new", "id": name, "path": path, "error": None, "bytes": len(data)})
    columns = ["split", "id", "path", "error", "bytes"]
    return Uploads(folder, pd.DataFrame(rows, columns=columns), limits, refused)


def _suffix(name: str) -> str:
    """The suffix, where it helps to tell the format."""
    return next((suffix for suffix in (".dcm", ".dicom", ".ima", *NIFTI) if name.lower().endswith(suffix)), "")


def _studies(received: Uploads, options: ImageOptions) -> Uploads:
    """The files of each folder as one row, its series those that lie in folders of their names below it."""
    refused, studies = dict(received.refused), dict[str, dict[str, list[tuple[str, str, int]]]]()
    for row in received.rows.itertuples():
        *folders, file = PurePosixPath(str(row.id)).parts
        folders += [file] if file.lower().endswith(NIFTI) and not options.series else []
        at = next((k for k, part in enumerate(folders) if part in options.series), len(folders))
        name = folders[at] if at < len(folders) else ""
        if options.series and not name:
            refused[str(row.id)] = f"lies in no folder {' or '.join(options.series)}"
            continue
        whole = studies.setdefault("/".join(folders[:at]) or "study", {})
        whole.setdefault(name, []).append((str(row.id), str(row.path), int(row.bytes)))
    rows = []
    for number, (study, parts) in enumerate(sorted(studies.items())):
        places = []
        for k, name in enumerate(options.series or [""]):
            place = f"study{number:04}/{k}"
            (received.folder / place).mkdir(parents=True)
            for n, (_, path, _) in enumerate(sorted(parts.get(name, []), key=lambda one: natural(one[0]))):
                (received.folder / path).rename(received.folder / place / f"{n:06}{_suffix(path)}")
            places.append(place)
        size = sum(size for files in parts.values() for *_, size in files)
        rows.append({"split": "new", "id": study, "path": series.several(places), "error": None, "bytes": size})
    return replace(received, rows=pd.DataFrame(rows, columns=received.rows.columns), refused=refused)


def _refusal(data: bytes, limits: Limits) -> str:
    """Why a file is not even looked at; '' where it is."""
    if not data:
        return "empty file"
    if len(data) > limits.file_bytes:
        return f"larger than {limits.file_bytes >> 20} MiB"
    if data.startswith(_ZIP):
        return "an archive inside an archive is not opened"
    if data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "PostScript is a program, not an image"
    return ""


_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def _unpacked(files: Sequence[Upload], limits: Limits, within: bool) -> Iterator[tuple[str, bytes | str]]:
    """(name, bytes or the reason why not) of each file, of each file of an archive."""
    for name, data in files:
        if data.startswith(_ZIP):
            lead = f"{PurePosixPath(_shown(name)).stem}/" if within else ""
            yield from ((lead + member, content) for member, content in _members(name, data, limits))
        else:
            yield _shown(name), data


def _members(name: str, data: bytes, limits: Limits) -> Iterator[tuple[str, bytes | str]]:
    if len(data) > limits.total_bytes or data.count(b"PK\x01\x02") > 4 * limits.files + 100:  # before it is all parsed
        raise TooMuch(f"{_shown(name)}: more than {limits.files} files or {limits.total_bytes >> 20} MiB; send fewer")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        yield _shown(name), f"damaged archive ({error})"
        return
    if len(members) > limits.files:
        raise TooMuch(f"{_shown(name)}: holds {len(members)} files, and {limits.files} are the limit; send fewer")
    left = limits.total_bytes
    for info in members:
        content = _member(archive, info, min(limits.file_bytes, left), limits.ratio)
        if len(content) > left:
            raise TooMuch(f"{_shown(name)}: grows past {limits.total_bytes >> 20} MiB; send less")
        left -= len(content) if isinstance(content, bytes) else 0
        yield _shown(info.filename), content


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int, ratio: int) -> bytes | str:
    """A member's bytes, never more than `most` and one, whatever its header says; else the reason why not."""
    if info.flag_bits & 1:
        return "encrypted"
    if info.file_size > (1 << 20) and info.file_size > ratio * max(1, info.compress_size):
        return f"unpacks to more than {ratio} times its size, as a decompression bomb does"
    try:
        with archive.open(info) as stream:
            return stream.read(most + 1)
    except Exception as error:  # zipfile and its decompressors raise what they like on damaged data
        return f"damaged in the archive ({type(error).__name__}: {error})"


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts


def _shown(name: str) -> str:
    """A name from elsewhere as one line of text, below no folder but its own; it is an id here, never a path."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    text = "".join(char if char.isprintable() else "\ufffd" for char in "/".join(parts))
    return text[-200:] or "unnamed"


# -------------------------------------------------------------------------------------------- decoding apart


WORKER_MEMORY = 3 << 30  # bytes; 50 million pixels of 16 bits take more than half of it


def prepare() -> None:
    """Make the processes that decode start in a tenth of a second: they are forked from one that has the imports."""
    source = str(paths.SOURCE)
    known = os.environ.get("PYTHONPATH", "")
    if source not in known.split(os.pathsep):  # until Python 3.13 the fork server does not take over sys.path
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *([known] if known else [])])
    multiprocessing.set_forkserver_preload([__name__])
    parallel.worker_memory = WORKER_MEMORY
    apart(_nothing)


def _nothing() -> None:
    return None


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own; UserError where it raises one, or crashes there."""
    ((_, result),) = parallel_map(partial(_each, function), [arguments], workers=1, label="look")
    if isinstance(result, Exception):
        words = str(result)
        for place in (one for one in arguments if isinstance(one, Path)):  # a temporary place says nothing to a visitor
            words = words.replace(f"{place}: ", "").replace(str(place), "the file")
        raise UserError(words)
    return result


def _each(function: Callable[..., Any], rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    results: list[Any] = []
    for row in rows:
        try:
            results.append(function(*row))
        except UserError as error:
            results.append(error)
        except MemoryError:
            results.append(UserError("needs more memory than a file may take"))
        except Exception as error:
            results.append(UserError(f"can't be read ({type(error).__name__}: {error})"))
    return results


# ------------------------------------------------------------------------------------------------ looking


MANY = 64  # frames


class Depth(NamedTuple):
    """The gray values of an image with more than 8 bits: lowest, highest, the window it is shown by, their unit."""

    low: float
    high: float
    center: float
    width: float
    unit: str


def depth(path: Path, options: ImageOptions) -> Depth | None:
    """What a window can be chosen from; None for colour and 8 bits. UserError for what can't be read."""
    if not _is_dicom(path):
        values = image.deep_gray(path)
        if values is None:
            return None
        low, high = float(values.min()), float(values.max())
        ends = np.percentile(values, (0.5, 99.5), method="inverted_cdf")
        return Depth(low, high, float(ends.mean()), max(1.0, float(ends[1] - ends[0])), "gray value")
    if dicom.frame_count(path) > MANY:
        return None  # all frames are looked at for the lowest and highest value
    described = dicom.describe(path, options)
    tags = ["SamplesPerPixel", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "Modality"]
    header = {
        tag: value[0] if isinstance(value, list) else value for tag, value in dicom.read_header(path, tags).items()
    }
    if described["bits"] <= 8 or (header["SamplesPerPixel"] or 1) > 1 or described["photometric"] == "PALETTE COLOR":
        return None
    slope, intercept = header["RescaleSlope"] or 1.0, header["RescaleIntercept"] or 0.0
    low, high = sorted(float(described[end] * slope + intercept) for end in ("min", "max"))
    center, width = header["WindowCenter"], header["WindowWidth"]
    if center is None or not width or width <= 0:
        center, width = (low + high) / 2, max(1.0, high - low)
    return Depth(low, high, float(center), float(width), "HU" if header["Modality"] == "CT" else "modality value")


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return dicom.is_dicom(file.read(132), path.suffix)


def windowed(path: Path, options: ImageOptions, center: float, width: float) -> ImageOptions:
    """The competition's options with the window [center - width / 2, center + width / 2] for this file.

    DICOM takes it as it is; PNG and TIFF as the percentiles of their values that lie there.
    """
    if _is_dicom(path):
        return options.model_copy(update={"window": f"{center:.4f}/{max(width, 0.001):.4f}"})
    values = image.deep_gray(path)
    if values is None:
        return options
    low, high = (100 * float((values <= end).mean()) for end in (center - width / 2, center + width / 2))
    low, high = min(low, 99.0), max(high, 1.0)
    return options.model_copy(update={"deep": "percentile", "percentiles": (low, max(high, low + 0.01))})


def look(path: Path, side: int, options: ImageOptions) -> np.ndarray:
    """The image to show, uint8 (H, W, 3), in its own shape, its longer side at most `side`."""
    pixels = image.as_picture(image.read_image(path, options=options))
    scale = min(1.0, side / max(pixels.shape[:2]))
    return dicom.resize(pixels, (max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))))


def header(path: Path) -> dict[str, str]:
    """A DICOM file's public header fields by keyword, personal ones left out (tags.PERSONAL); {} for other files."""
    if not _is_dicom(path):
        return {}
    return {name: _text(value) for name, value in dicom.read_header(path).items()}


def fields(path: Path, tags: Sequence[str]) -> dict[str, Any]:
    """These header fields of a DICOM file, where it is one and they are there."""
    if not tags or not _is_dicom(path):
        return {}
    return {name: value for name, value in dicom.read_header(path, tags).items() if value is not None}


def _text(value: Any) -> str:
    words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"\s+", " ", words)[:300]
