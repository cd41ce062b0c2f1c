"""A step as it is typed, and a fault on its way: `doomed.py FAULT N script arguments`.

KILL, TERM, INT: that signal at its N-th rename. full: no file grows past N bytes, as on a full disk. count: its renames
are counted, for the file N.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fail_at(fault: str, last: int) -> Callable[[], None]:
    """What to call at each rename."""
    left = [last]

    def renamed() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.Signals[f"SIG{fault}"])

    return renamed


def count_in(path: Path) -> Callable[[], None]:
    """Write down how many renames there were."""
    seen = [0]

    def renamed() -> None:
        seen[0] += 1
        path.write_text(str(seen[0]))

    return renamed


def watch(renamed: Callable[[], None]) -> None:
    """Have every rename of a file or folder call it first."""
    os.replace, os.rename = (_watched(move, renamed) for move in (os.replace, os.rename))


def _watched(move: Callable[..., None], renamed: Callable[[], None]) -> Callable[..., None]:
    def watched(*paths: Any, **more: Any) -> None:
        renamed()
        move(*paths, **more)

    return watched


if __name__ == "__main__":
    fault, number, *sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if fault == "full":
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
    else:
        watch(count_in(Path(number)) if fault == "count" else fail_at(fault, int(number)))
    runpy.run_path(sys.argv[0], run_name="__main__")
