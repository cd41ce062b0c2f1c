"""A step as it is typed, and a fault on its way: `doomed.py FAULT N script arguments`.

KILL, TERM, INT: that signal at the N-th rename, or after 'Ns' of processor time (KILL: by the kernel, wherever it is).
full: no file grows past N bytes, as on a full disk. denied: permissions hold, also for root. count: renames and seconds
are written to the file N.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # linux/capability.h
CAPABILITIES = 0x20080522


def strike(fault: str) -> None:
    os.kill(os.getpid(), signal.Signals[f"SIG{fault}"])


def fail_after(fault: str, seconds: float) -> None:
    """The signal when this process has used so much of the processor."""
    if fault != "KILL":  # else SIGPROF's own end: no handler, no cleaning up
        signal.signal(signal.SIGPROF, lambda *_: strike(fault))
    signal.setitimer(signal.ITIMER_PROF, seconds)


def fail_at(fault: str, last: int) -> Callable[[], None]:
    """What to call at each rename."""
    left = [last]

    def renamed() -> None:
        left[0] -= 1
        if left[0] == 0:
            strike(fault)

    return renamed


def count_in(path: Path) -> Callable[[], None]:
    """Write down how many renames there were, and the seconds until the last."""
    seen, began = [0], time.process_time()

    def renamed() -> None:
        seen[0] += 1
        path.write_text(f"{seen[0]} {time.process_time() - began}")

    return renamed


def watch(renamed: Callable[[], None]) -> None:
    """Have every rename of a file or folder call it first."""
    os.replace, os.rename = (_watched(move, renamed) for move in (os.replace, os.rename))


def _watched(move: Callable[..., None], renamed: Callable[[], None]) -> Callable[..., None]:
    def watched(*paths: Any, **more: Any) -> None:
        renamed()
        move(*paths, **more)

    return watched


def fill_the_disk(most: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def obey_permissions() -> None:
    """Drop what lets root read and write everything: capabilities(7)."""
    libc, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    libc.capget(head, sets)
    sets[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)  # the effective ones
    assert not libc.capset(head, sets)


def arm(fault: str, number: str) -> None:
    if fault == "full":
        fill_the_disk(int(number))
    elif fault == "denied":
        obey_permissions()
    elif fault == "count":
        watch(count_in(Path(number)))
    elif number.endswith("s"):
        fail_after(fault, float(number[:-1]))
    else:
        watch(fail_at(fault, int(number)))


if __name__ == "__main__":
    fault, number, *sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    if fault != "none":
        arm(fault, number)
    runpy.run_path(sys.argv[0], run_name="__main__")
