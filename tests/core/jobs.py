"""Jobs on rows, in a module that a worker imports at once."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def square(rows: Sequence[int]) -> list[int]:
    return [row * row for row in rows]


def die_on_seven(rows: Sequence[int]) -> list[int]:
    if 7 in rows:
        os.kill(os.getpid(), signal.SIGSEGV)
    return list(rows)


def hang_on_seven(rows: Sequence[int]) -> list[int]:
    if 7 in rows:
        time.sleep(600)
    return list(rows)


def kib(name: str) -> int:
    """VmRSS, VmHWM: what this process holds of the memory, now or at most."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


FIRST: list[int] = []  # what this process held before its first image


def read_images(size: int, options: Any, paths: Sequence[Path]) -> list[int]:
    """KiB that reading these images, and those before, has taken at most."""
    from foldwise.data import series

    FIRST or FIRST.append(kib("VmRSS"))
    for path in paths:
        series.read(path, size, options, None)
    return [kib("VmHWM") - FIRST[0]] * len(paths)
