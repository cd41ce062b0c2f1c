"""Training the folds of a run: one after the other here, a fold a device side by side, or spread over a cluster."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

from foldwise import UserError
from foldwise.core import cli, parallel, paths
from foldwise.core.cli import note
from foldwise.core.files import locked
from foldwise.core.progress import SENT, Bar, RemoteBar
from foldwise.core.ranks import current_ranks, joined_ranks, wait_for_ranks
from foldwise.core.schema import Strict
from foldwise.data import folds, index
from foldwise.data.competition import Competition, load_competition
from foldwise.data.recipe import Recipe, recipe_settings
from foldwise.data.runs import (
    RunInfo,
    check_settings,
    finish_run,
    finished_folds,
    forget_unbegun,
    open_run,
    read_run_info,
)

OUT_OF_TIME = 75  # EX_TEMPFAIL: not done, not wrong


class Job(Strict):
    """One fold of one run, as any process can train it that sees these folders at these paths."""

    competition: str  # its file
    run: str
    fold: int
    recipe: Recipe
    folder: str  # where relative paths of the recipe start
    root: str  # FOLDWISE_ROOT
    after: int = 0  # jobs that will follow on this device


def jobs_of(competition: Competition, run: str, recipe: Recipe, wanted: Sequence[int]) -> list[Job]:
    """A job for each wanted fold of a run."""
    places = {"folder": str(Path.cwd()), "root": str(paths.output_root().resolve())}
    of_run: Any = {"competition": str(competition.file), "run": run, "recipe": recipe, **places}
    return [Job(fold=fold, after=len(wanted) - 1 - k, **of_run) for k, fold in enumerate(wanted)]


def train_fold(job: Job, deadline: float | None = None) -> int:
    """Train a fold of an opened run here, and gather the run: 0, or OUT_OF_TIME where the hours ended first.

    A fold that is done stays as it is. Under torchrun all ranks call this, and train it together.
    """
    parallel.tune_allocator()
    from foldwise.model import checkpoint  # torch takes seconds: only now that everything named is known to exist
    from foldwise.train.trainer import OutOfTime, Trainer

    competition, rank, settings = load_competition(job.competition), current_ranks().rank, recipe_settings(job.recipe)
    folder, fold_table = competition.runs() / job.run, folds.load_folds(competition)
    if job.fold in finished_folds(folder):
        if not rank:
            note(f"fold {job.fold}: done already ({folder / f'fold{job.fold}.csv'}; --restart trains it anew)")
            checkpoint.remove(folder / f"fold{job.fold}.ckpt")  # left by a kill just before the fold's end
    else:
        try:
            with _alone(folder, job.fold, rank), cli.finishing():
                check_settings(folder, settings)
                Trainer(competition, job.recipe, job.fold, fold_table, folder, deadline, job.after).run()
        except UserError:
            if not rank:
                forget_unbegun(folder)
            raise
        except OutOfTime as stop:
            if not rank:
                note(f"{stop}; run the same command to continue")
            if cli.terminated():
                sys.exit(cli.TERMINATED)
            return OUT_OF_TIME
    if not rank:
        finish_run(competition, folder, fold_table, index.load_index(competition), {"config": settings})
    wait_for_ranks()
    return 0


def in_turn(
    competition: Competition,
    recipes: dict[str, Recipe],
    wanted: Sequence[int],
    restart: bool = False,
    deadline: float | None = None,
) -> tuple[int, list[RunInfo]]:
    """Train the wanted folds of one run after the other in this process: (exit status, the runs' run.json).

    Under torchrun all ranks call this, and the first alone gets a run.json.
    """
    fold_table, infos = folds.load_folds(competition), list[RunInfo]()
    parallel.tune_allocator()
    with joined_ranks() as rank:
        for run, recipe in recipes.items():
            if restart:
                from foldwise.train.trainer import dry_run

                dry_run(competition, recipe, wanted[0], fold_table)
            if not rank:
                open_run(competition, run, recipe_settings(recipe), fold_table, wanted if restart else ())
            wait_for_ranks()
            if any(train_fold(job, deadline) for job in jobs_of(competition, run, recipe, wanted)):
                return OUT_OF_TIME, infos
            infos += [] if rank else [read_run_info(competition.runs() / run)]
    return 0, infos


@contextmanager
def _alone(folder: Path, fold: int, rank: int) -> Iterator[None]:
    """Two processes that trained one fold would take each other's checkpoints: the second is refused."""
    with ExitStack() as held:
        try:
            if not rank:
                held.enter_context(locked(folder / f".fold{fold}.lock", wait=False))
        except BlockingIOError:
            raise UserError(
                f"{folder}: fold {fold} is being trained by another process; wait for it or stop it"
            ) from None
        yield


def spread(
    competition: Competition,
    recipes: dict[str, Recipe],
    wanted: Sequence[int],
    *,
    restart: bool = False,
    deadline: float | None = None,
    dask: str | None = None,
    devices: int = 1,
    gpus: bool = False,
) -> tuple[int, list[RunInfo]]:
    """Train recipes x folds, each in a process of its own: (exit status, the runs' run.json)."""
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    jobs = []
    for run, recipe in recipes.items():
        folder = open_run(competition, run, recipe_settings(recipe), fold_table, wanted if restart else ())
        left = [fold for fold in wanted if fold not in finished_folds(folder)]
        jobs += jobs_of(competition, run, recipe, left)
    status = over_cluster(jobs, dask) if dask else side_by_side(jobs, devices, gpus, deadline)
    infos = [
        finish_run(competition, competition.runs() / run, fold_table, table, {"config": recipe_settings(recipe)})
        for run, recipe in recipes.items()
    ]
    return status, infos


def side_by_side(jobs: Sequence[Job], devices: int, gpus: bool, deadline: float | None = None) -> int:
    """Train folds in processes of their own, one a device at once; run and fold stand before each line they say.

    Returns the exit status: 0, 75 where hours ended, else that of the first one that failed. A process sees its own
    GPU alone (CUDA_VISIBLE_DEVICES) and computes on an equal share of the cores (FOLDWISE_CORES). On a CPU an odd rest
    starts with the first ones: five folds on two cores are two turns and a half, not three.
    """
    odd = len(jobs) % devices if len(jobs) > devices and not gpus else 0
    free: list[int | None] = [*range(devices), *[None] * odd]
    cores_each = str(max(1, parallel.cores() // devices))
    parallel.tune_allocator()  # here too: a server of forks loads torch in this environment
    waiting, statuses = list(jobs), list[int]()
    running: dict[Any, Child] = {}

    def goes_on() -> bool:
        return bool(waiting) and not any(statuses) and not cli.terminated()

    with cli.finishing(), ExitStack() as bars:
        while running or goes_on():
            while free and goes_on():
                job = waiting.pop(0).model_copy(update={"after": len(waiting) // devices})
                child = _start(job, free.pop(0), cores_each, gpus, deadline)
                running[child.said] = child
                bars.callback(child.bar.close)
            for said in wait(running, 1):
                child = running[said]
                if not child.pass_on():
                    del running[said]
                    statuses.append(child.status())
                    if child.device is not None:
                        free.append(child.device)
            for child in running.values() if cli.terminated() else ():
                child.stop()
    if cli.terminated():
        sys.exit(cli.TERMINATED)
    failed = [status for status in statuses if status not in {0, OUT_OF_TIME}]
    return failed[0] if failed else max(statuses, default=0)


@dataclass
class Child:
    """A fold that is trained in a process of its own, and the pipe that its lines come through."""

    job: Job
    device: int | None
    process: Any
    said: Connection
    rest: bytes = b""
    bar: RemoteBar = field(default_factory=RemoteBar)
    stopped: bool = False
    told: ClassVar[set[str]] = set()  # what folds said of the run, not of themselves

    def pass_on(self) -> bool:
        """Print the lines that are whole, and move the bar; False at the end."""
        data = os.read(self.said.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines if data else filter(None, [self.rest]):
            text = line.decode(errors="replace").rstrip()
            if not self._moves_bar(text):
                self._say(text)
        return bool(data)

    def _moves_bar(self, text: str) -> bool:
        if text.startswith(SENT):
            self.bar.show(text, self.job.run)
        return text.startswith(SENT)

    def stop(self) -> None:
        """Let it save and end; once: a second SIGTERM would not wait."""
        if not self.stopped:
            self.process.terminate()
        self.stopped = True

    def status(self) -> int:
        """The exit status of a process that has ended; 128 + the signal that killed it, as a shell has it."""
        self.process.join()
        self.bar.close()
        status = int(self.process.exitcode)
        if status >= 0:
            return status
        why = ", perhaps for lack of memory" if status == -signal.SIGKILL else ""
        self._say(f"killed by signal {-status}{why}; run the same command to continue")
        return 128 - status

    def _say(self, line: str) -> None:
        if line not in self.told:
            own = re.sub(rf"^fold {self.job.fold}:? *", "", line)
            note(f"{self.job.run} {self.job.fold} | {own}")
        if line.startswith("test: "):
            self.told.add(line)


def _start(job: Job, device: int | None, cores: str, gpus: bool, deadline: float | None) -> Child:
    env = {"FOLDWISE_CORES": cores}
    if gpus and device is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        env["CUDA_VISIBLE_DEVICES"] = seen[device] if len(seen) > device and seen[0] else str(device)
    # CUDA may not live on in a fork: a fresh interpreter; on a CPU a fork of one that has imported torch
    context = multiprocessing.get_context("spawn") if gpus else parallel.context("torch", "timm")
    said, says = context.Pipe(duplex=False)
    live = sys.stderr.isatty()
    process = context.Process(target=_train_one, args=(says, env, job, deadline, live), daemon=True)
    process.start()
    says.close()
    return Child(job, device, process, said)


def _train_one(says: Connection, env: dict[str, str], job: Job, deadline: float | None, live: bool) -> None:
    """In a process of its own: train one fold; what would go to the terminal goes to `says`, its bars where `live`."""
    for stream in (1, 2):
        os.dup2(says.fileno(), stream)
    Bar.start_in_child(send=live)
    parallel.end_with_parent()
    os.environ.update(env)
    cli.run(lambda: sys.exit(train_fold(job, deadline)))


def over_cluster(jobs: Sequence[Job], address: str) -> int:
    """Run jobs on a Dask cluster whose workers see the same folders at the same paths; the first failed status, or 0.

    Workers that offer the resource GPU take one job a GPU, others one at a time. A dead worker's job is given to
    another, which continues from its checkpoint.
    """
    done = parallel.on_cluster(_on_worker, jobs, address)
    statuses = []
    for job, (status, lines) in done:
        note(
            f"{job.run} {job.fold}: {'done' if status == 0 else f'status {status}'}"
            + (f"; {lines[-1]}" if lines else "")
        )
        statuses.append(status)
    return next((status for status in statuses if status), 0)


def _on_worker(job: Job) -> tuple[int, list[str]]:
    """A job on a cluster's worker: (exit status, its last lines)."""
    sources = [str(paths.SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    for _ in range(120):  # a worker lost from sight may live a while: its lock says so
        done = subprocess.run(  # a process of its own: a crash or a signal must not take the worker along
            [sys.executable, "-m", "foldwise.train.run"],
            input=job.model_dump_json(),
            capture_output=True,
            text=True,
            check=False,
            cwd=job.folder,
            env={**os.environ, "FOLDWISE_ROOT": job.root, "PYTHONPATH": os.pathsep.join(sources)},
            preexec_fn=parallel.die_with_parent,
        )
        lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        if not (done.returncode == 2 and lines and "being trained by another process" in lines[-1]):
            break
        time.sleep(5)
    return done.returncode, lines


if __name__ == "__main__":
    cli.run(lambda: sys.exit(train_fold(Job.model_validate_json(sys.stdin.read()))))
