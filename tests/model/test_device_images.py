"""Augmentation on a device's tensors is the canvas's, but for the rounding of its warps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Workplace, make_tiny
from conftest import quick_recipe as recipe

from foldwise import augment
from foldwise.augment.canvas import BLACK, WHITE
from foldwise.augment.operations import (
    Affine,
    BrightnessContrast,
    CutOut,
    GaussNoise,
    GridDistortion,
    OpticalDistortion,
)
from foldwise.augment.recorder import recordable, recorded
from foldwise.data import folds
from foldwise.data.competition import Competition
from foldwise.model.device_images import augmented, on_the_device
from foldwise.model.transfer import on_device
from foldwise.train.trainer import Trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("device"))
    made.run("01_preprocess.py", "--sizes", 32)
    return made


MEAN, MOST = 0.6, 4  # grey levels: of all values, and of 99 of 100


def photographs(count: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    layers = [
        [cv2.resize(rng.integers(0, 256, (n, n, 3), np.uint8), (size, size)) for n in (4, 16)] for _ in range(count)
    ]
    return np.stack([np.mean(each, axis=0).astype(np.uint8) for each in layers])


@pytest.mark.parametrize(
    "ops",
    [
        *(
            augment.presets.operations(preset, flips)
            for preset in ("none", "light", "medium")
            for flips in ("auto", "d4")
        ),
        augment.presets.operations("medium", ops={"elastic": 1.0, "noise": 0.5}),
        (OpticalDistortion(0.5), Affine(0.2, 0.2, 40, WHITE), BrightnessContrast(0.3, 0.3)),
        (
            Affine(0.2, 0.2, 40, BLACK),
            BrightnessContrast(0.3),
            GridDistortion(5, 0.5),
            GaussNoise(5, 9, keep_white=True),
        ),
        (CutOut(0.3), Affine(0.1, 0.1, 20), CutOut(0.2)),
    ],
    ids=lambda ops: "+".join(type(one).__name__ for one in ops) or "none",
)
def test_the_device_does_what_the_canvas_does(ops: tuple) -> None:  # type: ignore[type-arg]
    size = 160
    images = photographs(12, size)
    before = images.copy()
    assert recordable(ops)
    expected = augment.pipeline(ops, size)(images, np.random.default_rng(3))
    found = augmented(torch.from_numpy(images), recorded(ops, size, len(images), np.random.default_rng(3)))
    apart = np.abs(expected.astype(int) - found.numpy().astype(int))
    assert found.dtype == torch.uint8 and apart.mean() < MEAN and np.quantile(apart, 0.99) <= MOST, (
        apart.mean(),
        np.quantile(apart, [0.9, 0.99, 0.999]),
    )
    assert np.array_equal(images, before)
    if not {type(one).__name__ for one in ops} - {"Flips", "BrightnessContrast", "CutOut"}:
        assert not apart.any()


def test_what_looks_at_pixels_is_not_recorded() -> None:
    assert not recordable(augment.presets.operations("melanoma2020")) and not recordable(
        augment.presets.operations("heavy")
    )


def test_batches_from_the_device_are_those_of_the_loader(place: Workplace, about: Competition, tmp_path: Path) -> None:
    """The same rows in the same order under the same augmentation; a fold trains on them."""
    made = Trainer(
        about, recipe(about, "augment.preset=medium", "train.epochs=1"), 0, folds.load_folds(about), tmp_path
    )
    ops = augment.operations("medium", "auto")
    resident = on_the_device(made.loader, ops, torch.device("cpu"))
    assert resident is not None and on_the_device(made.loader, augment.operations("heavy"), torch.device("cpu")) is None
    for ours, theirs in zip(resident.epoch(3, 1), on_device(made.loader.epoch(3, 1), torch.device("cpu")), strict=True):
        assert torch.equal(ours.rows, theirs.rows) and ours.of == theirs.of
        apart = (ours.images.int() - theirs.images.int()).abs().float()
        assert apart.mean() < 2 * MEAN  # noise of 32 pixels: every value lies on an edge
    made.progress.on_device = True
    made.run()
    assert (
        np.isfinite(made.progress.log[0]["train_loss"])
        and '"augmented_on_device": true' in (tmp_path / "fold0.json").read_text()
    )
