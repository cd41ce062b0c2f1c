"""From a raw folder to a submission by two commands, and what recipe auto chooses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY, Workplace, make_tiny, shared

from foldwise.core.cli import hours
from foldwise.data.recipe import load_recipe
from foldwise.train import auto
from foldwise.train.lr_find import Ramp, RangeTest


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose machine has no weights."""
    monkeypatch.setenv("FOLDWISE_SHARED", str(tmp_path / "nothing"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    return tmp_path


def give_weights(root: Path, name: str = "test_resnet") -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (root / "input" / "weights").mkdir(parents=True)
    save_file(timm.create_model(name).state_dict(), root / "input" / "weights" / f"{name}.safetensors")


def test_a_table_with_images_in_two_commands(bare: Path) -> None:
    """Weights are in input/weights: the backbone stays frozen, a head learns."""
    raw = make_tiny(bare / "elsewhere").raw
    give_weights(bare)
    place = Workplace(bare, bare / "new.yaml")
    place.run("01_preprocess.py", "--new", "new", "--from", raw, "--out", place.competition)
    done = place.run("02_train.py", "--recipe", "auto", "--hours", "1m", "--submit")
    assert "plan: test_resnet at" in done.stderr and "ends about" in done.stderr
    recipe = yaml.safe_load((place.runs / "auto.yaml").read_text())
    assert recipe["model"] == {"name": "test_resnet", "mode": "frozen"} and recipe["base"] == "baseline"
    handed_in = pd.read_csv(place.submissions / "auto.csv")
    assert handed_in.columns.tolist() == ["image_id", "sick"] and len(handed_in) == 12
    again = place.run("02_train.py", "--recipe", "auto", "--hours", "1m", "--submit")
    assert "as proposed before" in again.stderr


def test_a_folder_a_class_in_two_commands_without_weights(bare: Path) -> None:
    """A small network from nothing, and the plan says what would help."""
    raw = make_tiny(bare / "elsewhere", rows=40).raw
    table = pd.read_csv(raw / "train.csv")
    for row in table.itertuples():
        (raw / "photos" / "train" / ("ill" if row.sick else "well")).mkdir(parents=True, exist_ok=True)
        file = f"{row.image_id}.png"
        (raw / "train" / file).rename(raw / "photos" / "train" / ("ill" if row.sick else "well") / file)
    (raw / "test").rename(raw / "photos" / "test")
    place = Workplace(bare, bare / "new.yaml")
    place.run("01_preprocess.py", "--new", "new", "--from", raw / "photos", "--out", place.competition)
    done = place.run("02_train.py", "--recipe", "auto", "--hours", "0.1m", "--submit", "train.epochs=1", check=False)
    assert "from scratch" in done.stderr and "no pretrained weights are on this machine" in done.stderr
    assert "nothing fits the hours" in done.stderr
    assert done.returncode == 75, "and the hours are kept"
    done = place.run("02_train.py", "--recipe", "auto", "--submit", "train.epochs=1")
    handed_in = pd.read_csv(place.submissions / "auto.csv")
    assert len(handed_in) == 12 and set(handed_in["target"]) <= {"ill", "well"}


def test_more_hours_buy_more(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured speeds and rows are made up: what is chosen is a function of them."""
    monkeypatch.setenv("FOLDWISE_ROOT", str(bare))
    give_weights(bare, "test_efficientnet")
    monkeypatch.setattr(
        auto, "_measure", lambda one, size, device: (0.01 * (size / 224) ** 2, 0.03 * (size / 224) ** 2)
    )
    monkeypatch.setattr(auto, "side_by_side", lambda folds: 2)

    def best(budget: float, rows: int = 3000) -> auto.Plan:
        plans = auto._plans(rows, 500, 5, torch.device("cpu"), budget)
        return max((plan for plan in plans if plan.seconds <= 0.8 * budget), key=lambda plan: plan.worth)

    quick, long, longer = best(70), best(1800), best(36000)
    assert quick.mode == "frozen" and quick.size < 224
    assert (long.mode, longer.mode) == ("finetune", "finetune") and long.epochs < longer.epochs == 10
    assert longer.size == 224
    assert best(36000, rows=200).mode == "frozen", "too few rows to fine-tune on"


@pytest.mark.smoke
def test_hours_and_minutes() -> None:
    assert [hours(text) for text in ("0.5", "30m", "90 min", "2h", ".1")] == [0.5, 0.5, 1.5, 2, 0.1]
    with pytest.raises(Exception, match="is no time"):
        hours("soon")


def test_nothing_to_submit_is_said(trained: Workplace, tmp_path: Path) -> None:
    about = yaml.safe_load(trained.competition.read_text())
    del about["test"], about["sample_submission"]
    file = tmp_path / "untested.yaml"
    file.write_text(yaml.safe_dump(about))
    options = ["--competition", file, "--recipe", trained.root / "quick.yaml", "--submit"]
    assert "has no `test`: there is nothing to hand in" in trained.refused("02_train.py", *options)


@pytest.mark.nightly
def test_seven_hundred_real_images_in_two_commands(tmp_path: Path) -> None:
    """Both commands as a new user types them, MobileNetV2's weights in a local file."""
    data = shared("data", "skin1500")
    shared("weights", "mobilenetv2_100.safetensors")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train", "test"):
        (raw / name).symlink_to(data / name)
    for name, rows in (("train", 550), ("test", 150), ("sample_submission", 150)):
        pd.read_csv(data / f"{name}.csv").head(rows).to_csv(raw / f"{name}.csv", index=False)
    env = {**os.environ, "FOLDWISE_ROOT": str(tmp_path)}
    for command in (
        ["01_preprocess.py", "--new", "skin", "--from", raw, "--out", tmp_path / "skin.yaml"],
        ["02_train.py", "--competition", tmp_path / "skin.yaml", "--recipe", "auto", "--hours", "6m", "--submit"],
    ):
        script, *rest = map(str, command)
        subprocess.run([sys.executable, str(REPOSITORY / "src" / script), *rest], env=env, check=True)
    assert len(pd.read_csv(tmp_path / "submissions" / "skin" / "auto.csv")) == 150


@pytest.mark.smoke
def test_the_proposed_rate_lies_below_the_first_lowest_loss() -> None:
    rates = np.geomspace(1e-5, 1, 100)
    falls = -0.05 * np.exp(-((np.log10(rates) + 2) ** 2) / 0.3)
    breaks = np.where(rates > 0.1, 0.4 - 0.6 * (rates > 0.8), 0.0)  # and a lucky end, lower than all
    test = RangeTest(rates, falls + breaks)
    assert test.falls and test.proposed == pytest.approx(0.01 / 3, rel=0.1)
    assert not RangeTest(rates, np.zeros(100)).falls
    ramp = Ramp(load_recipe("baseline").train, 7, 100)
    assert ramp.factor(0) * 3e-4 == pytest.approx(1e-5) and ramp.factor(101) * 3e-4 == pytest.approx(1)


def test_lr_find_draws_and_writes_no_run(trained: Workplace) -> None:
    done = trained.run(
        "02_train.py", "--recipe", trained.root / "quick.yaml", "--lr-find", "train.batch_size=8", drawn=True
    )
    assert "is proposed (the recipe has 0.003)" in done.stdout
    assert (trained.derived / "lr_quick.png").stat().st_size > 9000
    assert not list(trained.root.glob("fold*"))


def test_preview_with_mixed_images_and_the_last_epochs_as_snapshots(trained: Workplace, tmp_path: Path) -> None:
    recipe = ["--recipe", trained.root / "quick.yaml"]
    mixing = ["augment.mixup=0.5", "augment.cutmix=0.5", "augment.strength=0.5", "augment.ops={elastic: 0.5}"]
    trained.run("02_train.py", *recipe, "--preview", tmp_path / "a.png", *mixing, drawn=True)
    trained.run("02_train.py", *recipe, "--preview", tmp_path / "b.png", *mixing[2:], drawn=True)
    tall, short = (cv2.imread(str(tmp_path / f"{name}.png")).shape[0] for name in "ab")
    assert tall > 1.3 * short
    options = ["--fold", 0, "--name", "late", "train.snapshots=3", "train.epochs=5", "train.lr=0.01"]
    done = trained.run("02_train.py", *recipe, *options)
    assert done.stderr.count("snapshot") >= 3 and (trained.runs / "late" / "snapshots" / "fold0_3.csv").exists()
