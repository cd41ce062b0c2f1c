"""Steps of training: nothing waits for the device between looks, and what is no number is answered all the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workplace, make_tiny
from conftest import quick_recipe as recipe
from timm.loss import AsymmetricLossMultiLabel
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from foldwise.data import folds
from foldwise.data.batches import Batch
from foldwise.data.competition import Competition
from foldwise.data.recipe import Train
from foldwise.model.targets import Targets
from foldwise.model.transfer import on_device
from foldwise.train import losses, step
from foldwise.train.trainer import Trainer

HARD = (  # settings with work of their own in a step
    ["train.label_smoothing=0.1", "augment.mixup=0.5", "augment.cutmix=0.5", "train.averaging=ema"],
    ["train.class_weights=balanced", "train.loss=focal", "model.head.dropout=0.3", "model.head.samples=3"],
    ["train.loss=asymmetric", "model.metadata=true"],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("steps"))
    made.run("01_preprocess.py", "--sizes", 32)
    return made


def begun(about: Competition, folder: Path, *overrides: str, patient: bool = False) -> Trainer:
    """A fold about to train; patient: by an optimizer that skips steps by itself, as on a GPU."""
    folder.mkdir(exist_ok=True)
    made = Trainer(about, recipe(about, "train.batch_size=8", *overrides), 0, folds.load_folds(about), folder)
    for group in made.state.optimizer.param_groups:
        group["fused"] = True
    made.stepper.patient = patient
    made.start()
    return made


@pytest.mark.parametrize("overrides", HARD)
def test_a_step_reads_nothing_back_from_the_device(about: Competition, tmp_path: Path, overrides: list[str]) -> None:
    """On tensors without values, of which none can be read: a step that looked at one would raise."""
    made = begun(about, tmp_path, *overrides, patient=True)
    (batch, *_) = on_device(made.loader.epoch(0, 0), made.device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made.stepper.step(made.state.network, batch, 0, 0, move=True)
        made.stepper.patient = False
        with pytest.raises(DataDependentOutputException):
            made.stepper.step(made.state.network, batch, 0, 0, move=True)


def test_looking_every_step_or_once_an_epoch_learns_the_same(about: Competition, tmp_path: Path) -> None:
    weights, losses_ = [], []
    for patient in (False, True):
        made = begun(about, tmp_path / str(patient), patient=patient)
        made.run_epoch()
        weights.append(copy.deepcopy(made.state.network.state_dict()))
        losses_.append(made.progress.log[0]["train_loss"])
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    assert losses_[0] == pytest.approx(losses_[1], rel=1e-12)


def test_a_step_that_is_none_is_skipped_before_anybody_looks(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = begun(about, tmp_path, patient=True)
    loss, network = made.stepper.loss, made.state.network
    batches = list(on_device(made.loader.epoch(0, 0), made.device))
    for number, batch in enumerate(batches[:4]):
        before = copy.deepcopy(list(network.parameters()))
        bad = number in {1, 2}
        made.stepper.loss = lambda *both, bad=bad: loss(*both) * (float("nan") if bad else 1.0)
        made.stepper.step(network, batch, 0, number, move=True)
        same = all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        assert same == bad and made.progress.bad_steps == 0
    made.stepper.look()
    assert (made.progress.bad_steps, made.progress.lr_scale, made.progress.consecutive) == (2, 0.25, 0)
    assert np.isfinite(made.progress.loss) and made.progress.rows == 16
    assert "learning rate halved to 0.25" in capsys.readouterr().err


def test_weights_that_are_none_go_back_when_it_is_seen(about: Competition, tmp_path: Path) -> None:
    made = begun(about, tmp_path, "train.epochs=2", patient=True)
    made.run_epoch()
    good = {key: value.clone() for key, value in made.state.best_weights.items()}
    with torch.no_grad():
        next(made.state.network.parameters()).fill_(float("inf"))
    for number, batch in enumerate(on_device(made.loader.epoch(1, 0), made.device)):
        made.stepper.step(made.state.network, batch, 1, number, move=True)
    made.stepper.look()
    assert made.progress.bad_steps == step.MAX_BAD_STEPS  # a burst between two looks counts as that
    assert all(torch.equal(value, good[key]) for key, value in made.state.network.state_dict().items())


def test_unknown_cells_have_no_part_in_an_asymmetric_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, requires_grad=True)
    target = torch.tensor([[1.0, 0.0, float("nan")]] * 6)
    known = target.isfinite()
    expected = AsymmetricLossMultiLabel(reduction="sum")(logits[known], target[known]) / 6
    loss = losses.make_loss(Train(loss="asymmetric"), Targets("multilabel", list("abc"), list("abc"), "sigmoid"))
    value = loss(logits, target)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[:, 2] == 0).all() and gradient[:, :2].abs().min() > 0


def test_batches_come_in_order_and_whole() -> None:
    batches = [Batch(np.full((2, 4, 4, 3), k, np.uint8), np.array([k, k]), 2) for k in range(5)]
    moved = list(on_device(iter(batches), torch.device("cpu")))
    assert [int(batch.rows[0]) for batch in moved] == list(range(5)) and moved[3].images[1, 2, 2, 0] == 3
    assert moved[0].first(1).images.shape == (1, 4, 4, 3) and moved[0].first(1).of == 1
