"""Archives read as folders: members of ZIP, tar and HDF5 files in place; compressed tars and 7z unpacked once.

'photos.zip/a.jpg' is a member. Where there is no folder 'train' but a train.zip, train.tar, train.tar.gz or train.7z,
'train/a.jpg' is a member of that, with its own leading folder or without; 'train.csv' may lie in train.csv.zip. So a
raw folder is the same packed and unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.files import FULL, locked, temporary_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z")
SAMPLE = 1 << 14  # bytes of a file hashed at its head, middle and tail
BOMB = (1 << 30, 200)  # bytes, and times the archive's own: pictures are compressed already
SPARE = 1 << 28  # bytes of the disk that unpacking leaves free


class Archive(Protocol):
    """What holds members by name, '/' between folders."""

    def holds(self, name: str) -> bool:
        """Whether there is such a member that can be read."""

    def size(self, name: str) -> int:
        """Bytes of a member."""

    def read(self, name: str, length: int | None = None) -> bytes:
        """A member's bytes, or the first of them; OSError where it can't be read."""

    def content(self, name: str) -> str:
        """What tells a member from another of its name."""

    @property
    def names(self) -> Collection[str]:
        """All members that are files."""


def member(path: Path) -> tuple[Archive, str]:
    """The archive that a path leads into, and the member's name in it; FileNotFoundError where there is none."""
    place = _place(path.parent) or _place(path)
    if place is None:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    archive, inside = _opened(*place.key), path.relative_to(place.top).parts
    for name in ["/".join([*lead, *inside]) for lead in _leads(place)]:
        if archive.holds(name):
            return archive, name
    raise FileNotFoundError(2, "No such member of the archive", str(path))


def file_of(path: Path) -> Path | None:
    """The archive that a path leads into, if it does."""
    place = _place(path.parent) or _place(path)
    return None if place is None else place.file


def members(folder: Path) -> list[Path] | None:
    """The files below a folder that is an archive, or lies in one, as paths below it; None where it is neither."""
    place = _place(folder)
    if place is None:
        return None
    try:
        every = _sorted_names(*place.key)
    except (OSError, EOFError):  # a file of another kind, or a broken one
        return None
    inside = folder.relative_to(place.top).parts
    names: list[str] = []
    for lead in ("".join(f"{part}/" for part in [*lead, *inside]) for lead in _leads(place)):
        first, last = bisect_left(every, lead), bisect_left(every, lead + chr(0x10FFFF))
        names = names or [name.removeprefix(lead) for name in every[first:last]]
    return sorted(folder / name for name in names if not name.startswith((".", "__MACOSX")) and "/." not in name)


def _leads(place: _Place) -> list[list[str]]:
    """The folders of an archive in which what a path names may lie, in the order in which they are tried."""
    return [[place.lead] if place.lead else [], [], [place.top.name]]


def alias(file: Path) -> Path | None:
    """The folder or table that an archive stands for: 'train' of train.tar.gz; None of other files."""
    suffix = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)
    return None if suffix is None else file.with_name(file.name[: -len(suffix)])


@dataclass(frozen=True)
class _Place:
    """Where a path enters an archive: below `top`, which is the archive or (alias) what it stands for; lead: the one
    folder in which it holds everything."""

    file: Path
    top: Path
    alias: bool

    @property
    def key(self) -> tuple[str, int]:
        """What `_opened` asks for."""
        return str(self.file), os.getpid()

    @property
    def lead(self) -> str:
        """'train' where an archive that stands for a folder has all its members in such a folder, else ''."""
        return _only_folder(*self.key) if self.alias else ""


@lru_cache(maxsize=64)
def _sorted_names(file: str, process: int) -> list[str]:
    return sorted(_opened(file, process).names)


@lru_cache(maxsize=64)
def _only_folder(file: str, process: int) -> str:
    tops = {name.partition("/")[0] if "/" in name else "" for name in _opened(file, process).names} - {"__MACOSX"}
    return tops.pop() if len(tops) == 1 else ""


_PLACES: dict[Path, _Place] = {}


def _place(path: Path) -> _Place | None:
    """Where a path enters an archive, found once; one that is not there now may come."""
    if path not in _PLACES:
        place = _look(path)
        if place is None:
            return None
        _PLACES[path] = place
    return _PLACES[path]


def _look(path: Path) -> _Place | None:
    above = next((place for place in (path, *path.parents) if place.exists()), None)
    if above is None or (above == path and not path.is_file()):
        return None
    if above.is_file():
        return _Place(above, above, False)
    top = above / path.relative_to(above).parts[0]
    files = (top.with_name(top.name + suffix) for suffix in SUFFIXES)
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else _Place(file, top, True)


@lru_cache(maxsize=16)
def _opened(file: str, process: int) -> Archive:
    """An archive, opened once a process: two that share one descriptor would move each other's place in it."""
    if zipfile.is_zipfile(file):
        try:
            return _Zip(zipfile.ZipFile(file))
        except zipfile.BadZipFile as error:
            raise UserError(f"{file}: damaged ({error}); fetch it again") from None
    with Path(file).open("rb") as opened:
        head = opened.read(6)
    if head == b"7z\xbc\xaf\x27\x1c":
        return _Folder(_unpacked(Path(file), _unpack_7z))
    if tarfile.is_tarfile(file):
        plain = head[:2] != b"\x1f\x8b" and head[:3] != b"BZh" and head != b"\xfd7zXZ\0"
        return _Tar(file) if plain else _Folder(_unpacked(Path(file), _unpack_tar))
    if alias(Path(file)) is not None:
        size = Path(file).stat().st_size
        raise UserError(f"{file}: damaged, or no archive in spite of its name ({size:,} bytes); fetch it again")
    try:
        import h5py
    except ImportError:
        raise UserError(f"{file}: pip install h5py reads what lies inside, if it is HDF5") from None
    if not h5py.is_hdf5(file):
        raise OSError(20, "Neither a folder, nor a ZIP, tar, 7z or HDF5 file", file)
    return _Hdf5(h5py.File(file, "r", locking=False))


def sampled(size: int, at: Callable[[int, int], bytes]) -> str:
    """A hash of a file's head, middle and tail; at(offset, length) reads."""
    hashed = hashlib.blake2b(digest_size=8)
    for start in (0, size // 2, size - SAMPLE):
        hashed.update(at(max(0, start), SAMPLE))
    return hashed.hexdigest()


@dataclass(frozen=True)
class _Zip:
    archive: zipfile.ZipFile

    @cached_property
    def names(self) -> list[str]:
        return [name for name in self.archive.NameToInfo if not name.endswith("/")]

    def holds(self, name: str) -> bool:
        return name in self.archive.NameToInfo

    def size(self, name: str) -> int:
        return self.archive.NameToInfo[name].file_size

    def content(self, name: str) -> str:
        return f"{self.archive.NameToInfo[name].CRC:08x}"

    def read(self, name: str, length: int | None = None) -> bytes:
        info = self.archive.NameToInfo[name]
        if length is None and _explodes(info.file_size, info.compress_size):
            raise OSError(27, f"would unpack to {info.file_size:,} bytes: a bomb, no picture", name)
        try:
            with self.archive.open(info) as opened:
                return opened.read(-1 if length is None else length)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, odd packing
            raise OSError(5, f"can't be unpacked ({error})", name) from None


@lru_cache(maxsize=4)
def _tar_table(file: str, modified: int) -> dict[str, tuple[int, int]]:
    """Where each member of a plain tar begins, and its length; TarError where it lacks the block of zeros at its end
    (POSIX pax, ustar Interchange Format), for tarfile takes a download that broke off for a whole one."""
    with tarfile.open(file, "r:") as archive, Path(file).open("rb") as raw:
        table = {_clean(info.name): (info.offset_data, info.size) for info in archive if info.isreg()}
        raw.seek(archive.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends in the middle")
        return table


@dataclass(frozen=True)
class _Tar:
    file: str

    @cached_property
    def _at(self) -> int:
        return os.open(self.file, os.O_RDONLY)

    @cached_property
    def _table(self) -> dict[str, tuple[int, int]]:
        try:
            return _tar_table(self.file, Path(self.file).stat().st_mtime_ns)
        except tarfile.TarError as error:
            raise UserError(f"{self.file}: damaged ({error}); fetch it again") from None

    @property
    def names(self) -> Collection[str]:
        return self._table.keys()

    def holds(self, name: str) -> bool:
        return name in self._table

    def size(self, name: str) -> int:
        return self._table[name][1]

    def content(self, name: str) -> str:
        start, size = self._table[name]
        return sampled(size, lambda at, length: os.pread(self._at, min(length, size - at), start + at))

    def read(self, name: str, length: int | None = None) -> bytes:
        start, size = self._table[name]
        return os.pread(self._at, size if length is None else min(length, size), start)


@dataclass(frozen=True)
class _Folder:
    """An archive unpacked."""

    root: Path

    @cached_property
    def names(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def holds(self, name: str) -> bool:
        return (self.root / name).is_file()

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def content(self, name: str) -> str:
        with (self.root / name).open("rb") as file:
            return sampled(self.size(name), lambda at, length: os.pread(file.fileno(), length, at))

    def read(self, name: str, length: int | None = None) -> bytes:
        with (self.root / name).open("rb") as file:
            return file.read(-1 if length is None else length)


@dataclass(frozen=True)
class _Hdf5:
    """Datasets: encoded bytes as they are, or pixels, uint8 or uint16 (H, W) or (H, W, 3), which come back as PNG."""

    file: Any

    @property
    def names(self) -> list[str]:
        names: list[str] = []
        self.file.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
        return names

    def holds(self, name: str) -> bool:
        return hasattr(self.file.get(name), "dtype")  # a dataset; groups have none

    def size(self, name: str) -> int:
        return len(self.read(name))

    def content(self, name: str) -> str:
        return hashlib.blake2b(self.read(name), digest_size=8).hexdigest()

    def read(self, name: str, length: int | None = None) -> bytes:
        value = self.file[name][()]
        if isinstance(value, bytes):
            return value[:length]
        if value.dtype.kind == "V" or (value.dtype == np.uint8 and value.ndim == 1):
            return bytes(value.tobytes()[:length])
        colour = value.ndim == 3 and value.shape[2] == 3
        if value.dtype not in (np.uint8, np.uint16) or not (value.ndim == 2 or colour):
            raise OSError(22, f"HDF5 dataset {value.dtype} {value.shape} is no image", name)
        import cv2

        pixels = value[..., ::-1] if colour else value
        return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()[:length]


# --- unpacking ------------------------------------------------------------------------------------------------


def _unpacked(file: Path, unpack: Callable[[Path, Path], None]) -> Path:
    """The folder with an archive's members, made once, whole or not at all, by one process while the others wait."""
    status = file.stat()
    parent = paths.output_root() / "input" / "derived" / "unpacked"
    folder = parent / f"{file.name}-{status.st_size}-{status.st_mtime_ns}"
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            with temporary_folder(parent, f".{folder.name}-") as part:
                (part / "members").mkdir()
                unpack(file, part / "members")
                (part / "members").rename(folder)
    return folder


def _unpack_tar(file: Path, folder: Path) -> None:
    from tqdm import tqdm

    room = _Room(file, folder)
    try:
        with (
            tqdm(total=file.stat().st_size, desc=f"unpack {file.name}", unit="B", unit_scale=True, disable=None) as bar,
            file.open("rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*") as archive,
        ):
            for info in archive:
                bar.update(raw.tell() - bar.n)
                target = room.target(info.name, info.size if info.isreg() else 0)
                if info.isreg() and (source := archive.extractfile(info)) is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(
            f"{file}: damaged, can't be unpacked ({' '.join(str(error).split())}); fetch it again"
        ) from None


def _unpack_7z(file: Path, folder: Path) -> None:
    try:
        import py7zr
    except ImportError:
        hint = f"pip install py7zr, or unpack it beside itself into {file.stem}/"
        raise UserError(f"{file}: 7z archives need py7zr: {hint}") from None
    from tqdm import tqdm

    room = _Room(file, folder)
    try:
        with py7zr.SevenZipFile(file) as archive:
            infos = [info for info in archive.list() if not info.is_directory]
            for info in infos:
                room.target(info.filename, info.uncompressed)
            with tqdm(total=len(infos), desc=f"unpack {file.name}", unit="file", disable=None) as bar:
                archive.extractall(folder)
                bar.update(len(infos))
    except (py7zr.exceptions.ArchiveError, EOFError, ValueError) as error:
        raise UserError(
            f"{file}: damaged, can't be unpacked ({error or type(error).__name__}); fetch it again"
        ) from None
    for path in _links(folder):
        path.unlink()


def _links(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if stat.S_ISLNK(path.lstat().st_mode))


class _Room:
    """Where members may go, and how much of them: below a folder, within the disk, and no bomb."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder, self.total = file, folder, 0
        self.free = shutil.disk_usage(folder).free - SPARE

    def target(self, name: str, size: int) -> Path:
        """Where a member goes; UserError where it would leave the folder, or the archive is larger than may be."""
        self.total += size
        clean = PurePosixPath(_clean(name))
        if clean.is_absolute() or ".." in clean.parts:
            raise UserError(f"{self.file}: member '{name}' leads out of its folder; this archive is not unpacked")
        if _explodes(self.total, self.file.stat().st_size):
            raise UserError(f"{self.file}: unpacks to over {BOMB[1]} times its size: a bomb; it is not unpacked")
        if self.total > self.free:
            raise UserError(f"{self.file}: does not fit on the disk, {self.free / 1e9:.1f} GB free below {self.folder}")
        return self.folder / clean


def _explodes(size: int, packed: int) -> bool:
    return size > BOMB[0] and size > BOMB[1] * packed


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")
