"""Where the bytes of an image come from: a file, a member of an archive, and all files below a folder.

A path may go on inside an archive: 'photos.zip/a.jpg' is a member of a ZIP, 'train.hdf5/ISIC_0015670' a dataset of
an HDF5 file: encoded bytes as they are, or pixels, uint8 or uint16 (H, W) or (H, W, 3), which come back as PNG.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from foldwise import UserError

SAMPLE = 1 << 14  # bytes of a file hashed at its head, middle and tail


class ReadWarning(UserWarning):
    """A file that was read all the same, though something about it is odd: what, and what helps."""


def read(path: Path) -> bytes:
    """All bytes of a file or member; OSError where it is not there."""
    try:
        return path.read_bytes()
    except NotADirectoryError:  # a file stands where a folder should: an archive
        return _member(path)


def head(path: Path, length: int) -> tuple[bytes, int]:
    """The first bytes and the number of all; OSError where it is not there."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(length), os.fstat(file.fileno()).st_size
    except NotADirectoryError:
        data = _member(path)
        return data[:length], len(data)


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, modified in ns) of a file, or of the archive that it lies in; zeros where there is none."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except (OSError, ValueError):
            continue
        return (status.st_size, status.st_mtime_ns) if place.is_file() else (0, 0)
    return (0, 0)


def identity(path: Path) -> dict[str, Any]:
    """What tells a file from another under the same name, without reading all of it: bytes, modified (ns), content (a
    hash of head, middle and tail; of a member, of all)."""
    hashed = hashlib.blake2b(digest_size=8)
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            for start in (0, status.st_size // 2, status.st_size - SAMPLE):
                file.seek(max(0, start))
                hashed.update(file.read(SAMPLE))
        return {"bytes": status.st_size, "modified": status.st_mtime_ns, "content": hashed.hexdigest()}
    except NotADirectoryError:
        data = _member(path)
        hashed.update(data)
        return {"bytes": len(data), "modified": 0, "content": hashed.hexdigest()}


def plain(path: Path) -> Path | io.BytesIO:
    """What a library opens: the path of a file, or a member's bytes as a stream."""
    return path if path.exists() else io.BytesIO(read(path))


def is_there(path: Path) -> bool:
    """Whether there is such a file, or such a member of an archive that can be read."""
    if path.is_file():
        return True
    if path.exists():
        return False
    try:
        archive, name = _archive(path)
        return archive.holds(name)
    except OSError:
        return False


# --- archives -------------------------------------------------------------------------------------------------


def _member(path: Path) -> bytes:
    archive, name = _archive(path)
    if not archive.holds(name):
        raise FileNotFoundError(2, "No such member of the archive", str(path))
    return archive.read(name)


def _archive(path: Path) -> tuple[_Zip | _Hdf5, str]:
    file = next((parent for parent in path.parents if parent.is_file()), None)
    if file is None:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return _opened(str(file), os.getpid()), path.relative_to(file).as_posix()


@lru_cache(maxsize=16)
def _opened(file: str, process: int) -> _Zip | _Hdf5:
    """An archive, opened once a process: two that share one descriptor would move each other's place in it."""
    if zipfile.is_zipfile(file):
        return _Zip(zipfile.ZipFile(file))
    try:
        import h5py
    except ImportError:
        raise UserError(f"{file}: pip install h5py reads what lies inside, if it is HDF5") from None
    if not h5py.is_hdf5(file):
        raise OSError(20, "Neither a folder, nor a ZIP or HDF5 file", file)
    return _Hdf5(h5py.File(file, "r", locking=False))


@dataclass(frozen=True)
class _Zip:
    archive: zipfile.ZipFile

    def holds(self, name: str) -> bool:
        return name in self.archive.NameToInfo

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, odd packing
            raise OSError(5, f"can't be unpacked ({error})", name) from None


@dataclass(frozen=True)
class _Hdf5:
    file: Any

    def holds(self, name: str) -> bool:
        return hasattr(self.file.get(name), "dtype")  # a dataset; groups have none

    def read(self, name: str) -> bytes:
        value = self.file[name][()]
        if isinstance(value, bytes):
            return value
        if value.dtype.kind == "V" or (value.dtype == np.uint8 and value.ndim == 1):
            return value.tobytes()
        colour = value.ndim == 3 and value.shape[2] == 3
        if value.dtype not in (np.uint8, np.uint16) or not (value.ndim == 2 or colour):
            raise OSError(22, f"HDF5 dataset {value.dtype} {value.shape} is no image", name)
        import cv2

        pixels = value[..., ::-1] if colour else value
        return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


# --- folders --------------------------------------------------------------------------------------------------


@dataclass
class Tree:
    """What lies below a folder: files, sorted; links that lead out of `within`; how much else, hidden or dead."""

    within: Path
    files: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def tree(folder: Path, within: Path | None = None) -> Tree:
    """All files below a folder, links followed: but not in circles, and out of `within` (default: the folder) only
    by links that lie in it themselves, not by those of the place that such a link leads to.
    """
    grown = Tree((within or folder).resolve())
    real = folder.resolve()
    _grow(grown, folder, (real,), [grown.within, real])
    grown.files.sort()
    return grown


def _grow(grown: Tree, folder: Path, above: tuple[Path, ...], allowed: list[Path]) -> None:
    """above: the real folders from the top to this one; allowed: where links may lead."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        grown.others["folder that can't be opened"] += 1
        return
    for entry in entries:
        path, link = Path(entry.path), entry.is_symlink()
        real = path.resolve() if link else above[-1] / entry.name
        inside = not link or any(real.is_relative_to(place) for place in allowed)
        reason = _left_out(entry, real, above)
        if not inside and not above[-1].is_relative_to(grown.within):
            reason = reason or "link out of a linked folder"
        if reason:
            grown.others[reason] += 1
            continue
        if not inside:
            grown.outside.append(path)
        if entry.is_dir():
            _grow(grown, path, (*above, real), allowed if inside else [*allowed, real])
        else:
            grown.files.append(path)


def _left_out(entry: os.DirEntry[str], real: Path, above: tuple[Path, ...]) -> str:
    if entry.name.startswith("."):
        return "hidden"
    if not (entry.is_dir() or entry.is_file()):
        return "broken link" if entry.is_symlink() else "special file"
    return "link to a folder above it" if real in above else ""
