"""Runs scripts in forks of a process that has their libraries imported: a start costs milliseconds, not seconds.

A fork is the script's own: arguments, folder, environment, output and exit status, the package itself imported anew.
What a warm library could hide (variables read while torch loads) is tested with a process of its own: `Workplace.run`
starts one wherever variables are given. Figures are made, but drawn blank: drawing takes longer than all the rest of a
tiny competition. Tests that look at a picture ask for it (`drawn=True`).
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "numpy",
    "pandas",
    "pyarrow",
    "pydicom",
    "cv2",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.metrics",
    "sklearn.svm",
    "sklearn.linear_model",
    "lightgbm",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.layout_engine",
    "torch",
    "timm",
    "tqdm",
    "pydantic",
    "yaml",
    "safetensors.torch",
)


class Warm:
    """A server of forks; one call at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(
        self, arguments: list[str], folder: Path, env: dict[str, str], drawn: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """`python <arguments>` in `folder`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([arguments, str(folder), env, drawn]), file=self.process.stdin, flush=True)
        status, out, err = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, out, err)


def serve() -> None:
    """Fork for every line of stdin; answer with (exit status, output, errors) when the fork has ended."""
    for name in LIBRARIES:
        __import__(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a library started threads: they would not live on in a fork"
    gc.freeze()  # the collector of a fork leaves the shared memory alone
    for line in sys.stdin:
        arguments, folder, env, drawn = json.loads(line)
        pipes = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            for (reads, writes), place in zip(pipes, (1, 2), strict=True):
                os.dup2(writes, place)
                os.close(reads)
                os.close(writes)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if not drawn:
                draw_blank()
            script(arguments, folder, env)
        for _, writes in pipes:
            os.close(writes)
        out, err = collect([reads for reads, _ in pipes], child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, out, err]), flush=True)


def draw_blank() -> None:
    """Figures are neither laid out nor drawn: a file of the right kind, with nothing on it."""
    import cv2
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    def savefig(_: Figure, to: Any, format: str, **__: object) -> None:
        if format == "svg":
            to.write("<svg></svg>")
            return
        data = cv2.imencode(f".{format}", np.full((1, 1, 3), 255, np.uint8))[1].tobytes()
        _ = to.write(data) if hasattr(to, "write") else Path(to).write_bytes(data)

    ConstrainedLayoutEngine.execute = lambda *_: None  # type: ignore[method-assign]
    Figure.savefig = savefig  # type: ignore[method-assign, assignment]


def collect(pipes: list[int], child: int, limit: float = 600) -> list[str]:
    """What comes through the pipes until the child has ended; it is killed after `limit` seconds of silence."""
    parts: dict[int, bytes] = dict.fromkeys(pipes, b"")
    left = set(pipes)
    while left:
        ready = select.select(list(left), [], [], limit)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
        for pipe in ready:
            data = os.read(pipe, 1 << 16)
            parts[pipe] += data
            if not data:
                left.remove(pipe)
                os.close(pipe)
    return [data.decode(errors="replace") for data in parts.values()]


def script(arguments: list[str], folder: str, env: dict[str, str]) -> NoReturn:
    """Run a script and end this process with its exit status, as an interpreter does, less the tearing down of modules
    (which would write to all the memory that the fork shares)."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    status = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
