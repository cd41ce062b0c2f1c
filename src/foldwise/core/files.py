"""Files written whole, under a temporary name, then renamed: a kill leaves nothing half-written. Locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import pandas as pd

from foldwise import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary path to write to; it takes the name `path` if the block ends well, and is gone if it does not."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException as error:
        full = None if isinstance(error, UserError) else _full(part)
        part.unlink(missing_ok=True)
        if full is not None and isinstance(error, Exception):
            raise OSError(full.errno, full.strerror, str(path)) from error
        raise


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no more can be written


def _full(part: Path) -> OSError | None:
    """Why no more can be written, asked of the file system: torch, NumPy and others hide it behind errors of theirs."""
    try:
        with part.open("ab") as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        return error if error.errno in FULL else None
    return None


@contextmanager
def locked(path: Path, wait: bool = True, mode: str = "w") -> Iterator[None]:
    """Hold the lock file `path`: one process at a time; BlockingIOError where another holds it and `wait` is False.

    The lock is the kernel's, and goes with the process however that ends. A file system that knows none (some network
    mounts) gets a file beside it that names the holder; one left by a process that is gone counts for nothing.
    """
    with path.open(mode) as file:
        if _kernel_lock(file, wait):
            yield
            return
    holder = path.with_name(path.name + ".holder")
    while not _claim(holder):
        if not wait:
            raise BlockingIOError(f"{holder}: held by {holder.read_text(encoding='utf-8')}")
        time.sleep(0.2)
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file `path` now."""
    try:
        with locked(path, wait=False, mode="r+"):  # never makes one: its folder may be going
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _kernel_lock(file: IO[str], wait: bool) -> bool:
    """Whether the kernel gave the lock; False where system or file system knows none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _claim(holder: Path) -> bool:
    """Create the file that names this process as the holder, unless one that lives (or may, elsewhere) has it."""
    own = f"{platform.node()} {os.getpid()}"
    try:
        with holder.open("x", encoding="utf-8") as file:
            file.write(own)
        return True
    except FileExistsError:
        node, _, process = holder.read_text(encoding="utf-8").partition(" ")
    if node == platform.node() and process.isdigit() and not _lives(int(process)):
        holder.unlink(missing_ok=True)
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder that is gone after the block; those that killed processes left under the same prefix go with it."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        if (left / ".lock").exists() and not is_locked(left / ".lock"):
            shutil.rmtree(left, ignore_errors=True)
    unseen = Path(tempfile.mkdtemp(dir=parent, prefix=f".{prefix}"))
    folder = unseen.with_name(unseen.name[1:])
    with locked(unseen / ".lock"):
        unseen.rename(folder)  # from here on another one looks at it, and finds it locked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8 text."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Indented JSON."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_csv(path: Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    """A CSV without the frame's index."""
    with replacing(path) as part:
        frame.to_csv(part, index=False, float_format=float_format, lineterminator="\n")


def file_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]


@contextmanager
def sealed(path: Path) -> Iterator[None]:
    """A block that writes `path`, whose digest then lies in a hidden file beside it."""
    seal = _seal(path)
    seal.unlink(missing_ok=True)
    yield
    write_text(seal, file_digest(path))


def is_intact(path: Path) -> bool:
    """False where a file that `sealed` saw written is no longer the same: edited by hand, or damaged."""
    try:
        return _seal(path).read_text(encoding="utf-8") == file_digest(path)
    except (FileNotFoundError, ValueError):
        return True


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.sum")


def write_sealed(path: Path, data: Any) -> None:
    """`write_json`, sealed."""
    with sealed(path):
        write_json(path, data)


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote; ValueError where it is not as it was written, or no JSON."""
    if not is_intact(path):
        raise ValueError("edited or damaged: other than it was written")
    return json.loads(path.read_text(encoding="utf-8"))


def write_voucher(path: Path, meta: dict[str, Any], *files: Path) -> None:
    """`meta` as JSON, written last: it vouches for files beside it, whose digests it holds."""
    write_json(path, {**meta, "vouches": {file.name: file_digest(file) for file in files}})


def read_voucher(path: Path) -> dict[str, Any] | None:
    """The `meta` of `write_voucher`; None where it, or a file that it vouches for, is gone or no longer the same."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if all(file_digest(path.parent / name) == digest for name, digest in meta.pop("vouches").items()):
            return meta
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        pass
    _warn_once(f"warning: {path} or a file that it vouches for is damaged or edited; it does not count")
    return None


@cache
def _warn_once(message: str) -> None:
    print(message, file=sys.stderr)


def digest(data: Any) -> str:
    """A short hash of plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
