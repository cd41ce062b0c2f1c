"""Jobs on rows, in a module that a worker imports at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence


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
