"""What a step has finished, kept until all of it is written: stopped, the same command goes on from there.

The files are `core.saved`'s: plain data, in `.<run>.part` beside the run's folder, for one process at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from foldwise import UserError
from foldwise.core.files import locked, write_text
from foldwise.core.saved import read_saved, write_saved

T = TypeVar("T")
Piece = Callable[[str, Callable[[], Any]], Any]  # (name, what makes it) -> it, made or kept from before


@dataclass(frozen=True)
class Pieces:
    """kinds: the dataclasses that may stand in a piece."""

    folder: Path
    kinds: Iterable[type] = ()

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """What a command that was stopped has kept under this name; else made now, and kept."""
        path = self.folder / f"{name}.npz"
        with suppress(UserError):  # not there, or damaged
            return read_saved(path, self.kinds, "")
        value = make()
        write_saved(path, value)
        return value


@contextmanager
def of_run(runs: Path, name: str, key: str, kinds: Iterable[type] = ()) -> Iterator[Pieces]:
    """The pieces of a run, gone when it is written or refused; those made of something else (`key`) are forgotten.

    UserError where another process makes the run.
    """
    folder = runs / f".{name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / ".lock", wait=False):
            made_of = folder / "key"
            if not made_of.exists() or made_of.read_text(encoding="utf-8", errors="replace") != key:
                for path in folder.glob("*.npz"):
                    path.unlink()
                write_text(made_of, key)
            try:
                yield Pieces(folder, tuple(kinds))
            except UserError:
                shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)
    except BlockingIOError:
        raise UserError(
            f"{runs / name}: another process makes this run; wait for it, or choose another --name"
        ) from None
