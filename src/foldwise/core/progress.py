"""Progress bars; a child process sends what its bars show, and the one that has the terminal draws them."""

from __future__ import annotations

import io
import json
import sys
import threading
from typing import Any, ClassVar

from tqdm import tqdm

SENT = "\x1e"  # ASCII's record separator: begins a line that is a bar's state


class Bar(tqdm):
    """A bar at a terminal; in a child of one that has it, its state as a line of JSON, a few times a second."""

    sends: ClassVar[bool] = False

    @classmethod
    def start_in_child(cls, send: bool) -> None:
        """Call it first in a child. tqdm's own lock is a semaphore that a killed child would leave behind."""
        cls.set_lock(threading.RLock())
        cls.sends = send

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if self.sends:  # what tqdm itself would write goes nowhere
            kwargs |= {"disable": bool(kwargs.get("disable")), "file": io.StringIO(), "mininterval": 0.3}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw it, or send it."""
        if not self.sends:
            super().display(msg, pos)
        elif msg is None:
            print(SENT + json.dumps(self.format_dict), file=sys.stderr, flush=True)


class RemoteBar:
    """The bar of a child, drawn below those of its siblings from when the child sends one."""

    bar: Any = None

    def show(self, sent: str, name: str) -> None:
        """Draw what the child's bar showed, as wide as this terminal, with a name before it."""
        if self.bar is None:
            self.bar = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True)
        state = json.loads(sent.removeprefix(SENT))
        own = {key: self.bar.format_dict[key] for key in ("ncols", "nrows", "ascii")}
        self.bar.set_description_str(tqdm.format_meter(**{**state, **own, "prefix": f"{name} {state['prefix']}"}))

    def close(self) -> None:
        """Take it off the terminal."""
        if self.bar is not None:
            self.bar.close()
