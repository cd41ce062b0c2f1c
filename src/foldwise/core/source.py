"""Where the bytes of an image come from: a file or a member of an archive (see archives); all files below a folder."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foldwise.core import archives

ABSENT = (NotADirectoryError, FileNotFoundError)  # a file stands where a folder should, or nothing does


class ReadWarning(UserWarning):
    """A file that was read all the same, though something about it is odd: what, and what helps."""


def read(path: Path) -> bytes:
    """All bytes of a file or member; OSError where it is not there."""
    try:
        return path.read_bytes()
    except ABSENT:
        archive, name = archives.member(path)
        return archive.read(name)


def head(path: Path, length: int) -> tuple[bytes, int]:
    """The first bytes and the number of all; OSError where it is not there."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(length), os.fstat(file.fileno()).st_size
    except ABSENT:
        archive, name = archives.member(path)
        return archive.read(name, length), archive.size(name)


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, modified in ns) of a file, or of the archive that it lies in; zeros where there is none."""
    for place in (path, archives.file_of(path)):
        try:
            status = place.stat() if place is not None else None
        except (OSError, ValueError):
            continue
        if status is not None and place is not None and place.is_file():
            return status.st_size, status.st_mtime_ns
    return (0, 0)


def stamp_of_folder(folder: Path) -> int:
    """When a folder, or the archive that stands for it, was changed last, in ns; 0 where neither is there."""
    for place in (folder, archives.file_of(folder)):
        if place is not None and place.exists():
            return place.stat().st_mtime_ns
    return 0


def identity(path: Path) -> dict[str, Any]:
    """What tells a file from another under the same name, without reading all of it: bytes, modified (ns), content (a
    hash of head, middle and tail, or an archive's checksum)."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            content = archives.sampled(status.st_size, lambda at, length: os.pread(file.fileno(), length, at))
        return {"bytes": status.st_size, "modified": status.st_mtime_ns, "content": content}
    except ABSENT:
        archive, name = archives.member(path)
        return {"bytes": archive.size(name), "modified": 0, "content": archive.content(name)}


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
        archives.member(path)
    except OSError:
        return False
    return True


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, an archive, or a folder in one."""
    return path.is_dir() or bool(archives.members(path))


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
    packed = None if folder.is_dir() else archives.members(folder)
    if packed is not None:
        return replace(grown, files=packed)
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
