"""What only a GPU can show (`make gpu`): skipped without one, or rehearsed on the CPU as far as that goes, with
FOLDWISE_REHEARSE_GPU=1."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, Workplace, make_tiny
from conftest import quick_recipe as recipe

from foldwise.core import parallel
from foldwise.data import cache, folds, index
from foldwise.data.batches import Batch
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.model import explain, fold_models, precision
from foldwise.model.network import create_network
from foldwise.model.precision import Precision
from foldwise.model.predict import predict_rows
from foldwise.model.transfer import on_device
from foldwise.train.run import spread
from foldwise.train.trainer import OutOfTime, Trainer

CARDS = parallel.gpus()
REHEARSAL = not CARDS and "FOLDWISE_REHEARSE_GPU" in os.environ
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CARDS and not REHEARSAL, reason="needs a CUDA card (FOLDWISE_REHEARSE_GPU=1: on the CPU)"),
]
of_a_card = pytest.mark.skipif(not CARDS, reason="has no meaning on a CPU")
DEVICE = torch.device("cuda" if CARDS else "cpu")
EXACT, TF32, HALF = 1e-4, 5e-3, 3e-2  # probabilities on two devices: in float32, with cuDNN's TF32, in half precision
AGAIN = 0.02  # mean distance of two trainings that differ by the order in which a GPU adds


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("gpu"))
    made.run("01_preprocess.py", "--sizes", 32)
    made.run("02_train.py", "--recipe", "quick.yaml", "--name", "quick", "--fold", 0, "train.amp=false")
    return made


def trainer(about: Competition, made: Recipe, folder: Path, **kwargs: float) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(about, made, 0, folds.load_folds(about), folder, **kwargs)


def predictions(folder: Path) -> np.ndarray:
    return pd.read_csv(folder / "fold0.csv").sort_values("id")["pred"].to_numpy()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_trains_and_predicts(
    about: Competition, tmp_path: Path, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 with its scaler, as on a T4, and bf16; predictions near those of the same weights in full."""
    how = Precision(str(half).removeprefix("torch."), half, True)
    if half == torch.bfloat16 and CARDS and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("bf16 is not native on this card")
    monkeypatch.setattr(precision, "of_device", lambda *_: how)
    monkeypatch.setattr(precision, "named", lambda *_: how)
    made = trainer(about, recipe(about, "train.epochs=4"), tmp_path)
    assert made.state.scaler.is_enabled() == (half == torch.float16)
    made.run()
    log = made.progress.log
    assert log[-1]["train_loss"] < log[0]["train_loss"] and not made.progress.bad_steps
    data = made.data
    full = predict_rows(
        made.state.network,
        data.images,
        data.cache_rows("valid"),
        data.targets,
        made.recipe,
        how=Precision("", None, False),
    )
    assert np.abs(made._predict("valid", made.state.network) - full).max() < HALF


@of_a_card
@pytest.mark.parametrize(
    "overrides", [[], ["augment.mixup=1"], ["train.averaging=ema", "train.class_weights=balanced"]]
)
def test_a_step_does_not_wait_for_the_card(about: Competition, tmp_path: Path, overrides: list[str]) -> None:
    made = trainer(about, recipe(about, "train.batch_size=8", *overrides), tmp_path)
    made.start()
    batches = list(on_device(made.loader.epoch(0, 0), made.device))
    made.stepper.step(made.state.network, batches[0], 0, 0, True)  # the optimizer's state is made
    torch.cuda.synchronize()
    made.stepper.sums.began()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in enumerate(batches[1:4], start=1):
            made.stepper.step(made.state.network, batch, 0, number, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not made.stepper.looked


def test_copies_beside_the_work_are_whole_and_in_order() -> None:
    rng = np.random.default_rng(0)
    batches = [Batch(rng.integers(0, 256, (16, 96, 96, 3), np.uint8), np.arange(16) + k, 16) for k in range(20)]
    work = torch.randn(512, 512, device=DEVICE)
    for batch, moved in zip(batches, on_device(iter(batches), DEVICE), strict=True):
        work = (work @ work).tanh()  # keeps the stream busy while the next is copied
        assert moved.images.device.type == DEVICE.type
        assert torch.equal(moved.images.cpu(), torch.from_numpy(batch.images))
        assert torch.equal(moved.rows.cpu(), torch.from_numpy(batch.rows))


def test_channels_last_changes_the_layout_and_not_the_answer(about: Competition, tmp_path: Path) -> None:
    made = trainer(about, recipe(about, "train.amp=false"), tmp_path)
    made.start()
    data, network = made.data, made.state.network
    answers = []
    for layout in (False, True):
        how = Precision("", None, layout)
        how.to_memory_format(network)
        answers.append(predict_rows(network, data.images, data.cache_rows("valid"), data.targets, made.recipe, how=how))
    weight = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(answers[0] - answers[1]).max() < TF32


def test_the_cpu_and_the_device_predict_alike(about: Competition, place: Workplace) -> None:
    made, table = recipe(about, "train.amp=false"), index.load_index(about)
    model = fold_models.load_fold(about, made, "quick", 0, table)
    images = cache.load_cache(about, 32)
    rows = np.flatnonzero(images.rows_of(table) >= 0)[:32]
    answers = []
    was = torch.backends.cudnn.allow_tf32
    for device, tf32 in (("cpu", False), (DEVICE.type, False), (DEVICE.type, True)):
        torch.backends.cudnn.allow_tf32 = tf32
        network = model.network.to(device)
        full = Precision("", None, False)
        answers.append(predict_rows(network, images, images.rows_of(table.iloc[rows]), model.targets, made, how=full))
    torch.backends.cudnn.allow_tf32 = was
    assert np.abs(answers[0] - answers[1]).max() < EXACT and np.abs(answers[0] - answers[2]).max() < TF32


def test_test_time_views_and_explanations_on_the_device(about: Competition, place: Workplace) -> None:
    made, table = (
        recipe(about, "train.amp=false", "predict.tta=d4", "predict.scales=[1.0,1.25]"),
        index.load_index(about),
    )
    model = fold_models.load_fold(about, made, "quick", 0, table)
    images = cache.load_cache(about, 32)
    where = images.rows_of(table)
    pixels = images.read(where[where >= 0][:8])
    pred = model.predict_readable(images, where[where >= 0], table[where >= 0])
    assert pred.shape == ((where >= 0).sum(), 1) and np.isfinite(pred).all() and pred.std() > 0
    layers = explain.cam_layers(model.network, 32)
    for method in ("gradcam", "ig"):
        heat = explain.cams(model, pixels, [explain.OutputTarget(0)] * 8, layers, method=method)  # type: ignore[arg-type]
        assert all(np.isfinite(values).all() for values in heat.maps.values())


@of_a_card
def test_a_batch_that_does_not_fit_is_computed_in_pieces(about: Competition, tmp_path: Path) -> None:
    """The memory of this process is limited to what half the batch takes."""
    wide = recipe(about, "model.name=resnet18", "train.batch_size=32", "train.amp=false", "train.epochs=1")
    made = trainer(about, wide, tmp_path)
    made.start()
    images = torch.zeros(256, 224, 224, 3, dtype=torch.uint8, device=DEVICE)
    rows = torch.zeros(256, dtype=torch.int64, device=DEVICE)
    batch = type(next(on_device(made.loader.epoch(0, 0), DEVICE)))(images, rows, 256)
    torch.cuda.reset_peak_memory_stats()
    made.stepper.step(made.state.network, batch, 0, 0, True)
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    try:
        made.stepper.step(made.state.network, batch, 0, 1, True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.progress.micro_batches >= 2


def test_a_killed_training_goes_on_to_the_same_predictions(about: Competition, tmp_path: Path) -> None:
    """To the bit on a CPU; on a GPU, which adds in any order, within AGAIN."""
    made = recipe(about, "train.amp=false", "train.batch_size=4", "train.epochs=3")
    trainer(about, made, tmp_path / "whole").run()
    cut = trainer(about, made, tmp_path / "cut", deadline=time.monotonic() + 1000)
    cut.start()
    cut.run_epoch()
    cut.deadline = time.monotonic()
    with pytest.raises(OutOfTime):
        cut.run_epoch()
    trainer(about, made, tmp_path / "cut").run()
    apart = np.abs(predictions(tmp_path / "whole") - predictions(tmp_path / "cut")).mean()
    assert apart < (AGAIN if CARDS else 1e-12)


@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun_on_each_card(about: Competition, place: Workplace, processes: int) -> None:
    if CARDS == 1 and processes > 1:
        pytest.skip("needs two cards")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command += [REPOSITORY / "src" / "02_train.py", "--competition", about.file, "--recipe", place.root / "quick.yaml"]
    command += ["--name", f"ranks{processes}", "--fold", 0, "model.name=test_vit", "train.amp=false"]
    command += [f"train.batch_size={16 // processes}", *(["train.sync_bn=true"] if CARDS else [])]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, cwd=place.root, check=False
    )
    assert done.returncode == 0, done.stderr
    ids = pd.read_csv(place.runs / f"ranks{processes}" / "fold0.csv")["id"]
    assert ids.is_unique and len(ids) == int((folds.load_folds(about)["fold"] == 0).sum())


def test_a_fold_a_card(about: Competition, place: Workplace) -> None:
    made = recipe(about, "train.epochs=1")
    status, infos = spread(about, {"a_fold_a_card": made}, [0, 1, 2], devices=max(1, CARDS), gpus=CARDS > 0)
    assert status == 0 and infos[0].is_whole and (place.runs / "a_fold_a_card" / "oof.csv").exists()


def test_a_compiled_network_learns(about: Competition, tmp_path: Path) -> None:
    made = trainer(about, recipe(about, "train.compile=true", "train.epochs=1", "train.amp=false"), tmp_path)
    made.run()
    plain = create_network(made.recipe, 1)
    assert set(plain.state_dict()) == set(made.state.network.state_dict()) and np.isfinite(
        made.progress.log[0]["train_loss"]
    )
