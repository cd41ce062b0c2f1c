"""A notebook's twin, from top to bottom, in a process with warm libraries: `notebook.py PATH`.

The steps that it starts are forks of this process, like those of `Workplace.run`: a start costs no imports.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from warm import script

STEPS = Path(__file__).resolve().parents[1] / "src"


def fds() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}


class Step(subprocess.Popen[Any]):
    """A step of ours in a fork that never comes to exec; any other command, a bundle's step too, as it is."""

    def __init__(self, args: list[str], **how: Any) -> None:
        before, env = fds(), dict(how.get("env") or os.environ)

        def step() -> None:
            for fd in fds() - before:  # among them the pipe that says whether exec went well: nobody waits for it
                with suppress(OSError):
                    os.close(fd)
            script(args[1:], how.get("cwd") or str(Path.cwd()), env)

        if args[0] == sys.executable and Path(args[1]).parent == STEPS:
            how["preexec_fn"] = step
        super().__init__(args, **how)


if __name__ == "__main__":
    subprocess.Popen = Step  # type: ignore[misc]
    sys.path[0] = str(Path(sys.argv[1]).parent)
    runpy.run_path(sys.argv[1], run_name="__main__")
