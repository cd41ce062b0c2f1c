"""Recipes x folds over a Dask cluster: the same tables as without one, also where a worker is killed at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, REPOSITORY, Workplace, make_tiny

pytest.importorskip("distributed")

PORT = 28786


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler, and two workers that offer one GPU each (they need not have it)."""
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(PORT), "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL, cwd=tmp_path)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{PORT}", "--no-nanny"]
    command += ["--nthreads", "1", "--resources", "GPU=1", "--no-dashboard"]
    made = [subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path) for _ in range(2)]
    time.sleep(6)
    yield made
    for process in [*made, scheduler]:
        process.kill()
        process.wait()


@pytest.mark.nightly
def test_a_killed_worker_s_fold_is_taken_up_from_its_checkpoint(
    workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    place = make_tiny(tmp_path / "place")
    place.run("01_preprocess.py", "--sizes", 32)
    train = {**QUICK["train"], "epochs": 12, "save_minutes": 0.0, "threads": 1, "precision": "plain"}  # type: ignore[dict-item]
    for name, seed in (("red", 1), ("blue", 2), ("red_here", 1), ("blue_here", 2)):
        (place.root / f"{name}.yaml").write_text(yaml.safe_dump({**QUICK, "train": train, "seed": seed}))
    command = [sys.executable, str(REPOSITORY / "src" / "02_train.py"), "--competition", str(place.competition)]
    command += ["--recipe", "red.yaml,blue.yaml", "--fold", "0", "--dask", f"tcp://127.0.0.1:{PORT}"]
    spread = subprocess.Popen(
        command, cwd=place.root, env={**os.environ, "FOLDWISE_ROOT": str(place.root)}, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):  # until a worker is inside a fold
        if list(place.runs.glob("*/fold*.ckpt")):
            break
        time.sleep(0.1)
    workers[0].send_signal(signal.SIGKILL)
    _, said = spread.communicate(timeout=300)
    assert spread.returncode == 0, said
    place.run("02_train.py", "--recipe", "red_here.yaml,blue_here.yaml", "--fold", 0)
    for name in ("red", "blue"):
        for file in ("fold0.csv", "fold0_test.csv", "fold0.safetensors"):
            assert (place.runs / name / file).read_bytes() == (place.runs / f"{name}_here" / file).read_bytes()
    assert not list(place.runs.glob("*/*.ckpt*"))


def test_an_absent_scheduler_is_one_clear_line(trained: Workplace) -> None:
    line = trained.refused("02_train.py", "--recipe", "quick.yaml", "--name", "far", "--dask", "tcp://127.0.0.1:1")
    assert "no scheduler answers there" in line
