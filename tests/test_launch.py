"""Rows over processes: every row once, and a file that kills its decoder costs only itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from foldwise import launch


def _square(rows: Sequence[int]) -> list[int]:
    return [row * row for row in rows]


def _die_on_seven(rows: Sequence[int]) -> list[int]:
    if 7 in rows:
        os.kill(os.getpid(), signal.SIGSEGV)
    return list(rows)


@pytest.mark.smoke
def test_every_row_comes_back_once() -> None:
    found = dict(launch.map_rows(_square, list(range(100)), workers=2))
    assert found == {k: k * k for k in range(100)}


def test_a_crashed_process_costs_one_row() -> None:
    found = dict(launch.map_rows(_die_on_seven, list(range(40)), workers=2))
    assert set(found) == set(range(40))
    assert isinstance(found.pop(7), RuntimeError)
    assert all(found[k] == k for k in found)


def test_no_rows_no_work() -> None:
    assert list(launch.map_rows(_square, [], workers=2)) == []
