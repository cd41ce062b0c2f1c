"""A session that dies loses nothing: kills, damaged checkpoints, the end of the hours, bad numbers, little memory."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, Workplace, make_tiny
from conftest import quick_recipe as recipe

from foldwise import UserError
from foldwise.data import folds, index
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, load_recipe
from foldwise.data.runs import finish_run, read_run_info
from foldwise.model import checkpoint
from foldwise.train import run as train_run
from foldwise.train.run import Child, Job, side_by_side, spread
from foldwise.train.step import MAX_BAD_STEPS
from foldwise.train.trainer import OutOfTime, Trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("survival"))
    made.run("01_preprocess.py", "--sizes", 32)
    return made


def trainer(about: Competition, made: Recipe, folder: Path, **kwargs: float) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(about, made, 0, folds.load_folds(about), folder, **kwargs)


def test_a_run_killed_anywhere_writes_the_bytes_of_one_that_was_not(about: Competition) -> None:
    """Seven named moments and two random ones; each a kill -9, then the same command again. More in the torture."""
    command = [sys.executable, str(REPOSITORY / "tests" / "killed_runs.py"), str(about.file)]
    done = subprocess.run(
        [*command, str(about.file.with_name("quick.yaml")), "1", "9"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 10
    assert all(trial["kills"] for trial in trials[1:8]), "a named moment never came"
    assert sum(trial["kills"] for trial in trials[8:]) >= 1, "the random kills came after the end"
    odd = [trial for trial in trials if trial["digest"] != trials[0]["digest"]]
    assert not odd, odd


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    about: Competition, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(about, "train.epochs=3")
    first = trainer(about, made, tmp_path / "a")
    first.start()
    first.run_epoch()
    first.run_epoch()
    path = tmp_path / "a" / "fold0.ckpt"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x10  # a bit of some weight: torch alone would load it
        path.write_bytes(data)
    else:
        path.unlink()
    second = trainer(about, made, tmp_path / "a")
    second.start()
    assert second.progress.epoch == 1, "the checkpoint before the damaged one is of epoch 1"
    assert damage == "gone" or "fold0.ckpt is damaged" in capsys.readouterr().err
    while not second.done:
        second.run_epoch()
    second.finish()
    trainer(about, made, tmp_path / "b").run()
    assert (tmp_path / "a" / "fold0.csv").read_bytes() == (tmp_path / "b" / "fold0.csv").read_bytes()


def test_both_checkpoints_damaged_start_the_fold_anew(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fold0.ckpt").write_bytes(b"PK\x03\x04 nonsense")
    (tmp_path / "fold0.ckpt.before").write_bytes(b"")
    made = trainer(about, recipe(about), tmp_path)
    made.start()
    assert made.progress.epoch == 0
    assert "no whole checkpoint is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "over", "stops"),
    [
        (["train.averaging=swa"], 4, 5),
        (["train.accumulate=3"], 4, 6),  # only where the optimizer has moved: summed gradients are not saved
        # before validation: the epoch is averaged in once
        (["train.averaging=swa", "train.swa_start=0", "train.checkpoint=last"], 9, 10),
    ],
    ids=["inside", "accumulating", "before validation"],
)
def test_hours_end_inside_an_epoch_and_the_same_command_continues(
    about: Competition, tmp_path: Path, overrides: list[str], over: int, stops: int
) -> None:
    made = recipe(about, "train.epochs=2", "train.batch_size=4", *overrides)
    slow = trainer(about, made, tmp_path / "a", deadline=time.monotonic() + 1000)
    slow.start()
    step = slow.stepper.step

    def late(*args: object) -> None:
        step(*args)  # type: ignore[arg-type]
        if slow.progress.step == over:
            slow.deadline = time.monotonic()

    slow.stepper.step = late  # type: ignore[method-assign, assignment]
    with pytest.raises(OutOfTime, match=f"0 of 2 epochs and {stops} of 10 steps of the next are done and saved"):
        slow.run_epoch()
    for name in ("a", "b"):
        again = trainer(about, made, tmp_path / name)
        again.start()
        assert again.progress.step == (stops if name == "a" else 0)
        while not again.done:
            again.run_epoch()
        again.finish()
    for file in ("fold0.csv", "fold0_test.csv", "fold0.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_no_time_left_for_the_test_rows_saves_instead(about: Competition, tmp_path: Path) -> None:
    made = trainer(about, recipe(about, "train.epochs=1"), tmp_path, deadline=time.monotonic() + 1000)
    made.start()
    made.run_epoch()
    made.deadline = time.monotonic()
    with pytest.raises(OutOfTime):
        made.finish()
    assert checkpoint.load(tmp_path / "fold0.ckpt")["progress"]["epoch"] == 1  # type: ignore[index]
    assert not (tmp_path / "fold0.csv").exists()


def test_a_loss_that_is_no_number_is_skipped_and_the_rate_halved(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trainer(about, recipe(about, "train.batch_size=8"), tmp_path)
    made.start()
    loss, calls = made.stepper.loss, [0]

    def sometimes(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return loss(logits, target) * (float("nan") if calls[0] == 2 else 1.0)

    made.stepper.loss = sometimes
    made.run_epoch()
    assert (made.progress.bad_steps, made.progress.lr_scale) == (1, 0.5)
    assert "the step is skipped and the learning rate halved" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in made.state.network.state_dict().values())
    assert np.isfinite(made.progress.log[0]["train_loss"])
    assert made.state.optimizer.param_groups[0]["lr"] <= 0.5 * made.recipe.train.lr


def test_numbers_that_stay_bad_end_with_advice(about: Competition, tmp_path: Path) -> None:
    made = trainer(about, recipe(about, "train.batch_size=4", "train.epochs=4"), tmp_path)
    made.start()
    made.run_epoch()
    good = {key: value.clone() for key, value in made.state.best_weights.items()}
    with torch.no_grad():
        next(made.state.network.parameters()).fill_(float("inf"))
    made.state.average.ema = None
    for _ in range(MAX_BAD_STEPS):
        made.stepper.skipped()
    assert all(torch.equal(value, good[key]) for key, value in made.state.network.state_dict().items())
    made.stepper.loss = lambda logits, target: logits.sum() * float("nan")
    with pytest.raises(UserError, match=r"gave no finite loss; lower train.lr \(now 0.003\)"):
        made.run_epoch()


def test_out_of_gpu_memory_halves_the_batch_and_sums_the_gradients(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network without batch norm learns the same from a batch in pieces."""
    options = ("model.name=test_vit", "image_size=32", "train.batch_size=16", "train.epochs=1", "augment.preset=none")
    weights = []
    for limit in (1000, 5):
        made = trainer(about, recipe(about, *options), tmp_path / str(limit))
        made.start()
        forward = made.state.network.forward

        def tight(images: torch.Tensor, *rest: object, limit: int = limit, forward=forward) -> torch.Tensor:  # type: ignore[no-untyped-def]
            if len(images) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(images, *rest)

        made.state.network.forward = tight  # type: ignore[method-assign, assignment]
        made.run_epoch()
        weights.append({key: value.clone() for key, value in made.state.network.state_dict().items()})
    assert made.progress.micro_batches == 4
    assert "a batch of 16 is computed in 4 micro-batches" in capsys.readouterr().err
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=2e-4) for key in weights[0])


def test_memory_that_holds_no_two_images_is_said(about: Competition, tmp_path: Path) -> None:
    made = trainer(about, recipe(about), tmp_path)
    made.start()

    def never(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made.state.network.forward = never  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match=r"out of GPU memory at train\.batch_size=16; lower it"):
        made.run_epoch()


def test_two_processes_never_train_one_fold(about: Competition, tmp_path: Path) -> None:
    with (
        train_run._alone(tmp_path, 0, 0),
        pytest.raises(UserError, match="fold 0 is being trained by another process"),
        train_run._alone(tmp_path, 0, 0),
    ):
        pass
    with train_run._alone(tmp_path, 0, 0):
        pass


def test_folds_side_by_side_are_those_trained_in_turn(about: Competition, place: Workplace) -> None:
    """--devices 2: two processes at once, their lines told apart, the same tables as one after the other."""
    quick = about.file.with_name("quick.yaml")
    fixed = ("train.threads=1", "train.precision=plain")
    one = place.run("02_train.py", "--recipe", quick, "--name", "one", "--devices", 1, *fixed)
    two = place.run("02_train.py", "--recipe", quick, "--name", "two", "--devices", 2, *fixed)
    assert "two 0 | epoch   1/2" in two.stderr
    assert "two: roc_auc out-of-fold" in two.stdout and "one: roc_auc out-of-fold" in one.stdout
    for file in ("oof.csv", "test.csv", "fold2.safetensors"):
        assert (place.runs / "one" / file).read_bytes() == (place.runs / "two" / file).read_bytes(), file
    facts = read_run_info(place.runs / "two").folds
    assert sorted(facts) == ["0", "1", "2"] and all(fold["epochs"] == 2 for fold in facts.values())


def test_folds_that_end_together_take_turns_at_the_tables_of_the_run(about: Competition, place: Workplace) -> None:
    """Two folds once ended within a hundredth of a second, and one took the other's half-written oof.csv away."""
    place.run("02_train.py", "--recipe", about.file.with_name("quick.yaml"), "--name", "together", "train.epochs=1")
    folder, table, fold_table = about.runs() / "together", index.load_index(about), folds.load_folds(about)
    before = [(folder / name).read_bytes() for name in ("oof.csv", "test.csv")]
    with ThreadPoolExecutor(4) as pool:
        ended = [pool.submit(finish_run, about, folder, fold_table, table, {}) for _ in range(40)]
    assert all(end.result().folds_done == [0, 1, 2] for end in ended)
    assert [(folder / name).read_bytes() for name in ("oof.csv", "test.csv")] == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_folds_side_by_side_end_with_the_process_that_started_them(about: Competition, place: Workplace) -> None:
    """kill -9 of the command; its children let go of their folds, and the same command writes the undisturbed bytes."""
    quick = about.file.with_name("quick.yaml")
    fixed = ("--recipe", quick, "--devices", 3, "train.threads=1", "train.precision=plain", "train.epochs=4")
    place.run("02_train.py", *fixed, "--name", "whole")
    line = [
        sys.executable,
        REPOSITORY / "src" / "02_train.py",
        "--competition",
        about.file,
        *fixed,
        "--name",
        "orphaned",
    ]
    with subprocess.Popen(list(map(str, line)), cwd=place.root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = list(itertools.takewhile(lambda line: "epoch   1/4" not in line, process.stderr))
        assert process.poll() is None, said
        process.kill()
        process.stderr.read()  # ends when the children do: they write to it too
    again = place.run("02_train.py", *fixed, "--name", "orphaned")
    assert "continues after epoch" in again.stderr
    for file in ("oof.csv", "test.csv", "fold2.safetensors"):
        assert (place.runs / "whole" / file).read_bytes() == (place.runs / "orphaned" / file).read_bytes(), file


def test_folds_in_fresh_interpreters_as_gpus_ask_for(
    about: Competition, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process a GPU, which sees its own alone; without any GPU it computes the bits of a fork."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    given: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Process

    def process(*, args: tuple[Any, ...], **rest: Any) -> Any:
        given.append(args[1]["CUDA_VISIBLE_DEVICES"])
        return start(args=args, **rest)

    monkeypatch.setattr(spawn, "Process", process)
    made = recipe(about, "train.epochs=1")
    for name, gpus in (("fresh", True), ("forked", False)):
        status, infos = spread(about, {name: made}, [0, 1], devices=2, gpus=gpus)
        assert status == 0 and sorted(infos[0].folds) == ["0", "1"]
        assert f"{name} 1 | epoch   1/1" in capsys.readouterr().err
    assert given == ["5", "7"]
    for file in ("fold0.csv", "fold1_test.csv", "fold1.safetensors"):
        assert (about.runs() / "fresh" / file).read_bytes() == (about.runs() / "forked" / file).read_bytes(), file


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("count", "devices", "most"), [(5, 2, 3), (14, 4, 6), (5, 4, 5), (6, 2, 2), (3, 4, 3), (1, 2, 1)]
)
def test_an_odd_rest_of_folds_starts_with_the_first_ones(
    about: Competition, monkeypatch: pytest.MonkeyPatch, count: int, devices: int, most: int
) -> None:
    """Each fold once; at most `most` at once, and never more than the devices after the first turn."""
    alive: list[int] = []
    seen: list[int] = []

    def start(job: Job, device: int | None, *__: object) -> Child:
        alive.append(job.fold)
        seen.append(len(alive))
        said, says = multiprocessing.Pipe(duplex=False)
        says.close()
        ended = SimpleNamespace(join=lambda: alive.remove(job.fold), exitcode=0)
        return Child(job, device, ended, said)

    monkeypatch.setattr(train_run, "_start", start)
    jobs = train_run.jobs_of(about, "run", load_recipe("baseline"), range(count))
    assert side_by_side(jobs, devices, gpus=False) == 0
    assert len(seen) == count and not alive and max(seen) == most
    assert seen[:most] == list(range(1, most + 1)) and max(seen[most:], default=0) <= devices


@pytest.mark.smoke
def test_a_killed_fold_is_said_and_no_other_is_started(
    about: Competition, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []

    def start(job: Job, device: int | None, *__: object) -> Child:
        started.append(job.fold)
        said, says = multiprocessing.Pipe(duplex=False)
        os.write(says.fileno(), b"a line\nand half a li")
        says.close()
        return Child(job, device, SimpleNamespace(join=lambda: None, exitcode=-9), said)

    monkeypatch.setattr(train_run, "_start", start)
    jobs = train_run.jobs_of(about, "run", load_recipe("baseline"), range(4))
    assert side_by_side(jobs, 1, gpus=False) == 137
    said = capsys.readouterr().err
    assert started == [0]
    assert "run 0 | a line\nrun 0 | and half a li\n" in said
    assert "run 0 | killed by signal 9, perhaps for lack of memory; run the same command to continue" in said


def test_torchrun_trains_one_fold_as_one_process_does(about: Competition, place: Workplace) -> None:
    """Two gloo processes of batch 8 are one of batch 16; every validation row is there once."""
    quick = about.file.with_name("quick.yaml")
    fixed = [  # no batch norm: its statistics are a device's own
        "model.name=test_vit",
        "augment.preset=none",
        "augment.flips=none",
        "train.threads=1",
        "train.precision=plain",
        "train.optimizer=sgd",
        "train.lr=0.05",
    ]
    place.run("02_train.py", "--recipe", quick, "--name", "single", "--fold", 0, *fixed, "train.batch_size=16")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            "29517",
            str(REPOSITORY / "src" / "02_train.py"),
            "--competition",
            str(about.file),
            "--recipe",
            str(quick),
            "--name",
            "double",
            "--fold",
            "0",
            *fixed,
            "train.batch_size=8",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=place.root,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fold 0  epoch   1/2") == 1, "rank 0 alone speaks"
    single, double = (pd.read_csv(place.runs / name / "fold0.csv") for name in ("single", "double"))
    assert double["id"].tolist() == single["id"].tolist()
    np.testing.assert_allclose(double["pred"], single["pred"], atol=2e-4)
    np.testing.assert_allclose(
        pd.read_csv(place.runs / "double" / "fold0_test.csv")["pred"],
        pd.read_csv(place.runs / "single" / "fold0_test.csv")["pred"],
        atol=2e-4,
    )
