"""Work spread over processes: rows over cores or a Dask cluster, in chunks, past any file that crashes its decoder."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from foldwise import UserError
from foldwise.core import paths

T = TypeVar("T")

CRASH = "the decoder crashed its process on this file"
FILE_SECONDS = 60.0  # a decoder that takes longer on one file hangs, or is fed something that no model needs


def cores() -> int:
    """Cores this process may use: as many as FOLDWISE_CORES says, or all of its container's (not the machine's)."""
    asked = os.environ.get("FOLDWISE_CORES")
    if asked is not None:
        if not asked.isdecimal() or not int(asked):
            raise UserError(f"FOLDWISE_CORES={asked}: a number of cores, 1 or more")
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """GPUs that torch sees, asked in a process of its own: this one stays free to fork. A few seconds where one is."""
    devices = ("nvidia[0-9]*", "dxg", "kfd")  # NVIDIA, under Windows' Linux, AMD
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in devices):
        return 0
    try:
        asked = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return int(asked.stdout)
    except (subprocess.SubprocessError, ValueError):
        return 0


def die_with_parent() -> None:
    """In a fresh child: be killed when the thread that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h


def end_with_parent() -> None:
    """In a process that multiprocessing started: end at once when the process that asked for it is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def tune_allocator() -> None:
    """Make CPU training cheap; call it before torch is imported. Changes speed only, never a result.

    glibc hands every large block back to the kernel when it is freed and faults it in anew a moment later: half the
    CPU time of a MobileNetV2 step at 224 (bench/step.py). And OpenMP threads that spin while they wait take the core
    from the threads that load.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not musl
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def lower_priority() -> None:
    """Let this thread run where the others leave a core idle: loaders work in the gaps of a training step."""
    if sys.platform == "linux":  # elsewhere a nice value is a process's, not a thread's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def parallel_map(
    job: Callable[[Sequence[T]], list[Any]],
    rows: Sequence[T],
    *,
    workers: int | None = None,
    label: str = "",
    unit: str = "file",
    dask: str | None = None,
    most: int = 64,
) -> Iterator[tuple[T, Any]]:
    """(row, result) for every row, in the order in which they finish, with a progress bar.

    `job` takes a short list of rows and returns one result a row; it runs in worker processes and must be a
    module-level function (or a partial of one) that raises nothing. A native decoder can still kill its process:
    the rows that were in flight then run again, one process each, and those that kill it again, or take longer than
    FILE_SECONDS, yield a RuntimeError as their result. Few chunks, of at most `most` rows, are in flight at once:
    memory does not grow with the rows.

    dask: the address of a scheduler ('tcp://10.0.0.5:8786'); its workers must see the same folders at the same paths.
    """
    from tqdm import tqdm

    if dask is not None and rows:
        yield from _over_dask(job, rows, dask, label, unit)
        return
    workers = max(1, min(workers or cores(), len(rows)))
    size = max(1, min(most, len(rows) // (workers * 8)))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    crashed: list[Sequence[T]] = []
    with tqdm(total=len(rows), desc=label, unit=unit, smoothing=0.05, disable=not rows or None) as bar:
        for chunk, results in _in_pool(job, chunks, workers, crashed):
            bar.update(len(chunk))
            yield from zip(chunk, results, strict=True)
        for row, result in _one_by_one(job, [row for chunk in crashed for row in chunk]):
            bar.update(1)
            yield row, result


def _over_dask(
    job: Callable[[Sequence[T]], list[Any]], rows: Sequence[T], address: str, label: str, unit: str
) -> Iterator[tuple[T, Any]]:
    from distributed import as_completed
    from tqdm import tqdm

    with _client(address) as client, tqdm(total=len(rows), desc=label, unit=unit, disable=None) as bar:
        waiting = [rows[start : start + 64] for start in range(0, len(rows), 64)][::-1]
        window = 2 * sum(client.nthreads().values())
        flying = {client.submit(job, chunk, pure=False): chunk for chunk in _take(waiting, window)}
        done = as_completed(list(flying))
        for future in done:
            chunk = flying.pop(future)
            if future.status == "finished":
                bar.update(len(chunk))
                yield from zip(chunk, future.result(), strict=True)
            elif len(chunk) > 1:  # a worker died of one of these: each row alone will tell which
                waiting.extend(chunk[k : k + 1] for k in range(len(chunk)))
            else:
                bar.update(1)
                yield chunk[0], RuntimeError(CRASH)
            for chunk in _take(waiting, window - len(flying)):
                future = client.submit(job, chunk, pure=False)
                flying[future] = chunk
                done.add(future)


def _on_path(source: str) -> Any:
    """A worker plugin that makes this package importable, also for workers that join later."""
    from distributed import WorkerPlugin

    class OnPath(WorkerPlugin):  # local, so that it travels whole: the package can't be imported over there yet
        name = "foldwise"

        def setup(self, worker: Any) -> None:
            import sys

            if source not in sys.path:
                sys.path.insert(0, source)

    return OnPath()


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A Dask client of a scheduler that has workers; they can import this package."""
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(f"--dask {address}: no scheduler answers there ({error}); start one: dask scheduler") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"--dask {address}: the scheduler has no workers; start some: dask worker {address}")
        source = str(paths.SOURCE)
        client.run_on_scheduler(exec, f"import sys\nif {source!r} not in sys.path: sys.path.insert(0, {source!r})")
        client.register_plugin(_on_path(source))
        yield client


def on_cluster(job: Callable[[T], Any], rows: Sequence[T], address: str) -> Iterator[tuple[T, Any]]:
    """(row, job(row)) as they finish on a Dask cluster, one at a time a worker, or a GPU where workers offer them.

    `job` is a module-level function. A row whose worker dies is given to another worker, up to five times.
    """
    from distributed import as_completed
    from tqdm import tqdm

    with _client(address) as client, tqdm(total=len(rows), desc="folds", unit="fold", disable=None) as bar:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        need = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else {}
        options: dict[str, Any] = {"resources": need} if need else {}
        flying = {client.submit(job, row, pure=False, retries=5, **options): row for row in rows}
        for future in as_completed(list(flying)):
            bar.update(1)
            yield flying[future], future.result()


def _take(waiting: list[Sequence[T]], count: int) -> list[Sequence[T]]:
    return [waiting.pop() for _ in range(min(count, len(waiting)))]


def context(*modules: str) -> Any:
    """How processes start: as forks of a server that has imported `modules`, and what the script imports of ours,
    which each would import for itself.

    Not as forks of this process: one that has threads (BLAS, OpenCV, torch) can deadlock.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    script = vars(sys.modules["__main__"]).values()
    named = [str(getattr(value, "__module__", None) or getattr(value, "__name__", "")) for value in script]
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([*modules, *dict.fromkeys(name for name in named if name.startswith("foldwise."))])
    with _starting:
        before = os.environ.get("PYTHONPATH")  # the one way to tell the server of 3.11 where we lie
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.SOURCE), before]))
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return chosen


_starting = threading.Lock()  # the app's visitors may come at once


worker_memory: int | None = None  # bytes that a worker may take; the app, whose files are anybody's, sets it


def _pool(workers: int, job: Any) -> ProcessPoolExecutor:
    module = getattr(job, "func", job).__module__
    return ProcessPoolExecutor(workers, context(module), initializer=_start_worker, initargs=(worker_memory,))


def _start_worker(memory: int | None) -> None:
    import cv2

    end_with_parent()
    if memory and sys.platform == "linux":  # past it comes a MemoryError, or the end of this process alone
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    cv2.setNumThreads(0)  # the processes are the parallelism; threads inside them only contend


def _in_pool(
    job: Callable[[Sequence[T]], list[Any]], chunks: list[Sequence[T]], workers: int, crashed: list[Sequence[T]]
) -> Iterator[tuple[Sequence[T], list[Any]]]:
    waiting, slowest = list(reversed(chunks)), 0.0
    while waiting:
        flying: dict[Future[list[Any]], Sequence[T]] = {}
        pool = _pool(workers, job)
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * workers:
                    flying[pool.submit(job, waiting[-1])] = waiting[-1]  # submit raises where the pool broke
                    waiting.pop()
                begun = time.monotonic()
                done = wait(flying, max(FILE_SECONDS, 4 * slowest), return_when=FIRST_COMPLETED).done
                slowest = max(slowest, time.monotonic() - begun)
                if not done:
                    _kill(pool)  # which breaks it: what was in flight runs again, one by one
                for future in done or list(flying)[:1]:
                    results = future.result()
                    yield flying.pop(future), results
        except BrokenProcessPool:
            crashed.extend(flying.values())
        except (KeyboardInterrupt, SystemExit):  # in the middle of a start, too: a pool half made waits for ever
            _kill(pool)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _one_by_one(job: Callable[[Sequence[T]], list[Any]], rows: list[T]) -> Iterator[tuple[T, Any]]:
    """One row in flight at a time, so that a crash names its file."""
    waiting = list(reversed(rows))
    while waiting:
        with _pool(1, job) as pool:
            try:
                while waiting:
                    result = pool.submit(job, [waiting[-1]]).result(FILE_SECONDS)[0]
                    yield waiting.pop(), result
            except TimeoutError:
                _kill(pool)
                yield waiting.pop(), RuntimeError(f"the decoder took over {FILE_SECONDS:.0f} s on this file: stopped")
            except BrokenProcessPool:
                yield waiting.pop(), RuntimeError(CRASH)
