"""Runs scripts in forks of a process that has their libraries imported: a start costs milliseconds, not seconds.

A fork is the script's own: arguments, folder, environment, output and exit status. What a warm library could hide
(variables read while torch loads) is tested with a process of its own: `Workplace.run` starts one wherever variables
are given. The worker processes that a script asks for come from a fork server as warm as this one. Figures are made,
but drawn blank: drawing takes longer than all the rest of a tiny competition. Tests that look at a picture ask for it
(`drawn=True`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from multiprocessing import connection, forkserver, spawn
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "numpy",
    "pandas",
    "pandas.core.arrays.arrow.extension_types",
    "pandas.core.reshape.reshape",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "faiss",
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
    """A server of forks, for any number of calls at once."""

    def __init__(self) -> None:
        self.address = connection.arbitrary_address("AF_UNIX")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,  # its end is the server's
                pass_fds=[listener.fileno()],
                env={**os.environ, "JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"},
            )

    def run(
        self, arguments: list[str], folder: Path, env: dict[str, str], drawn: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """`python <arguments>` in `folder`."""
        with socket.socket(socket.AF_UNIX) as call:
            call.connect(self.address)
            with call.makefile("rw") as stream:
                print(json.dumps([arguments, str(folder), env, drawn]), file=stream, flush=True)
                status, out, err = json.loads(stream.readline())
        return subprocess.CompletedProcess(arguments, status, out, err)


def serve(listener: socket.socket) -> None:
    """A fork for every call."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    import foldwise

    for name in (*LIBRARIES, *(module.name for module in pkgutil.walk_packages(foldwise.__path__, "foldwise."))):
        importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a library started threads: they would not live on in a fork"
    gc.freeze()  # the collector of a fork leaves the shared memory alone
    share_fork_server()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        call, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(call)
            os._exit(0)
        call.close()


def answer(call: socket.socket) -> None:
    """Run what is asked for in a fork; answer with (exit status, output, errors) when that has ended."""
    stream = call.makefile("rw")
    arguments, folder, env, drawn = json.loads(stream.readline())
    pipes = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        for (reads, writes), place in zip(pipes, (1, 2), strict=True):
            os.dup2(writes, place)
            os.close(reads)
            os.close(writes)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        call.close()
        stream.close()
        if not drawn:
            draw_blank()
        script(arguments, folder, env)
    for _, writes in pipes:
        os.close(writes)
    out, err = collect([reads for reads, _ in pipes], child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), out, err]), file=stream, flush=True)


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


def share_fork_server() -> None:
    """Let every fork's multiprocessing use a fork server that is a fork of this process, not start one of its own,
    whose workers import everything anew; they get the environment of the fork that asks for them."""
    prepared, prepare = spawn.get_preparation_data, spawn.prepare

    def with_environment(name: str) -> dict[str, Any]:
        return {**prepared(name), "environment": dict(os.environ)}

    def prepare_with_environment(data: dict[str, Any]) -> None:
        os.environ.clear()
        os.environ.update(data.pop("environment"))
        prepare(data)

    spawn.get_preparation_data, spawn.prepare = with_environment, prepare_with_environment
    address, (alive, keeps_alive) = connection.arbitrary_address("AF_UNIX"), os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    if not os.fork():
        os.close(keeps_alive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        forkserver.main(listener.detach(), alive, [])
        os._exit(0)
    listener.close()
    os.close(alive)
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server._forkserver_alive_fd = address, keeps_alive
    server.ensure_running = forkserver.ensure_running = lambda: None


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
    serve(socket.socket(fileno=int(sys.argv[1])))
