"""Up and down: told by modality, EXIF and edges, and kept by flips and test-time views."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Workplace, shared
from PIL import Image

from foldwise import UserError
from foldwise.data.image import read_image
from foldwise.data.orientation import fitted, judge
from foldwise.data.recipe import load_recipe

pytestmark = pytest.mark.smoke
NOTHING = np.zeros((0, 96, 96, 3), np.uint8)


def walls(count: int = 40) -> np.ndarray:
    """uint8 (count, 96, 96, 3): upright boxes on noise."""
    images = tissue(count)
    for image, box in zip(images, np.random.default_rng(1).integers(10, 50, (count, 4)), strict=True):
        cv2.rectangle(image, tuple(box[:2].tolist()), tuple((box[:2] + box[2:] // 2 + 10).tolist()), (250,) * 3, -1)
    return images


def tissue(count: int = 40) -> np.ndarray:
    """uint8 (count, 96, 96, 3): smooth noise, alike in every direction."""
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.normal(128, 400, (96, 96, 3)), (0, 0), 3) for _ in range(count)]
    return np.clip(noise, 0, 255).astype(np.uint8)


def test_edges_tell_walls_from_tissue() -> None:
    assert judge([], walls()).orientation == "upright"
    assert judge([], tissue()).orientation == "free"
    assert judge([], walls(5)).orientation is None, "five images are too few"


@pytest.mark.parametrize(("name", "orientation"), [("skin1500/train", "free"), ("raccoon/images", "upright")])
def test_real_images_are_told(name: str, orientation: str) -> None:
    files = sorted(shared("data", name).glob("*.jpg"))[:110]
    assert judge(files, np.stack([read_image(file, 96) for file in files])).orientation == orientation


def test_exif_and_modality_come_first(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert judge([tmp_path / "a.jpg"], NOTHING) == ("upright", "EXIF: 1 of 1 are photographs by a camera")
    ct = "cornerstone__testImages__CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm"
    assert judge([shared("data", "dicom", ct)], NOTHING) == ("upright", "DICOM modality CT")


def test_flips_and_views_follow(capsys: pytest.CaptureFixture[str]) -> None:
    plain = load_recipe("baseline")
    assert [fitted(plain, o).augment.flips for o in (None, "free", "upright")] == ["horizontal", "d4", "horizontal"]
    turning = load_recipe("baseline", ["augment.flips=d4", "predict.tta=d4"])
    assert fitted(turning, None) == fitted(turning, "free") == turning
    upright = fitted(turning, "upright")
    assert (upright.augment.flips, upright.predict.tta) == ("horizontal", "flip")
    assert "augment.flips=d4 and predict.tta=d4 would turn images" in capsys.readouterr().err
    with pytest.raises(UserError, match="melanoma2020 turns images"):
        fitted(load_recipe("baseline", ["augment.preset=melanoma2020"]), "upright")


def test_turning_views_of_a_trained_run_are_refused(trained: Workplace, tmp_path: Path) -> None:
    about = tmp_path / "upright.yaml"
    about.write_text(trained.competition.read_text() + "orientation: upright\n")
    line = trained.refused("05_predict.py", "--competition", about, "--run", "quick", "predict.tta=d4")
    assert "predict.tta=d4 turns images" in line and "take flip" in line
