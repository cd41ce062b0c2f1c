"""Files written whole, under a temporary name, then renamed: a kill leaves nothing half-written. Locks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary path to write to; it takes the name `path` if the block ends well, and is gone if it does not."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`: one process at a time; BlockingIOError where another holds it and `wait` is False.

    The lock is the kernel's, and goes with the process however that ends. Without one where the system or the file
    system knows none.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield


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
