"""Arrays of numbers as images: .npy, .npz and parquet, their channels and scaling; a rule that one channel holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, Workplace

from foldwise import UserError
from foldwise.core.schema import validate
from foldwise.data import image, index
from foldwise.data.competition import load_competition
from foldwise.data.image import ImageOptions
from foldwise.data.rows import rows_of_split

RNG = np.random.default_rng(0)
PLANES = RNG.normal(0, 1, (6, 20, 30)).astype(np.float16)


def options(**given: object) -> ImageOptions:
    return validate(ImageOptions, given, "image")


def saved(path: Path, array: np.ndarray, **more: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, a=array, **more)
    elif path.suffix == ".parquet":
        pd.DataFrame(array).rename(columns=str).to_parquet(path)
    else:
        np.save(path, array)
    return path


@pytest.mark.smoke
def test_numbers_become_grey_levels_between_fixed_ends(tmp_path):
    path = saved(tmp_path / "a.npy", PLANES)
    fixed = {"fixed": [-2, 2]}
    seen = image.read_image(path, options=options(channels=6, scaling=fixed))
    expected = np.rint(np.clip((PLANES.astype(np.float32) + 2) / 4, 0, 1) * 255).transpose(1, 2, 0)
    assert seen.shape == (20, 30, 6) and seen.dtype == np.uint8 and np.array_equal(seen, expected)
    turned = saved(tmp_path / "b.npy", PLANES.transpose(1, 2, 0))
    assert np.array_equal(image.read_image(turned, options=options(channels=6, scaling=fixed)), seen)
    pair = {"fixed": [[-2, 2]] * 5 + [[-8, 8]]}
    other = image.read_image(path, options=options(channels=6, scaling=pair))
    assert np.array_equal(other[..., :5], seen[..., :5]) and other[..., 5].std() < seen[..., 5].std() / 2
    assert (
        image.probe(path, options(channels=6))["height"] == 20 and image.probe(path, options(channels=6))["width"] == 30
    )
    zipped = saved(tmp_path / "c.npz", PLANES)
    assert np.array_equal(image.read_image(zipped, options=options(channels=6, scaling=fixed)), seen)
    two = saved(tmp_path / "d.npz", PLANES, b=PLANES[:3])
    named = options(key="b", scaling=fixed)
    assert np.array_equal(image.read_image(two, options=named), seen[..., :3])
    for size in (16, 64):
        assert image.read_image(path, size, options(channels=6, fit="pad")).shape == (size, size, 6)
    gaps = PLANES.copy()
    gaps[0, 0] = np.nan
    holed = image.read_image(saved(tmp_path / "e.npy", gaps), options=options(channels=6, scaling=fixed))
    assert (holed[0, :, 0] == 0).all() and np.array_equal(holed[1:], seen[1:])


def test_matrices_are_grey_and_bands_are_channels(tmp_path):
    matrix = saved(tmp_path / "a.parquet", PLANES[0].astype(np.float32))
    grey = image.read_image(matrix)
    assert grey.shape == (20, 30, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert image.read_image(matrix, options=options(channels=1)).shape == (20, 30, 1)
    assert np.corrcoef(grey[..., 0].ravel(), PLANES[0].ravel())[0, 1] > 0.98
    names = [f"{band}_{k}" for band in ("L", "R") for k in range(15)]
    table = pd.DataFrame(PLANES[0].astype(np.float32), columns=names).assign(time=np.arange(20))
    table.to_parquet(tmp_path / "b.parquet")
    fixed = {"fixed": [-2, 2]}
    seen = image.read_image(tmp_path / "b.parquet", options=options(channels=2, bands=["L_*", "R_*"], scaling=fixed))
    assert seen.shape == (20, 15, 2)
    whole = image.read_image(matrix, options=options(scaling=fixed))[..., 0]
    assert np.array_equal(seen[..., 0], whole[:, :15]) and np.array_equal(seen[..., 1], whole[:, 15:])


@pytest.mark.parametrize(
    ("array", "given", "words"),
    [
        (PLANES, {}, r"of 6 channels, not 3; `image: \{channels: 6\}`"),
        (PLANES, {"channels": 5}, "6 channels, not 5"),
        (RNG.random((40, 40, 40)), {}, "12 at most"),
        (PLANES[:3], {"channels": 6}, "3 channels, not 6"),
        (PLANES[0], {"channels": 6}, "1 channels, and .* asks for 6"),
        (PLANES[None], {"channels": 6}, "two axes, or three"),
        (np.array([["a", "b"]]), {}, "numbers are needed"),
        (np.full((4, 4), np.nan), {}, "no finite value"),
        (PLANES, {"channels": 6, "scaling": {"fixed": [[0, 1]] * 3}}, "`image.scaling` is for 3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(tmp_path, array, given, words):
    path = saved(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=words) as caught:
        image.read_image(path, options=options(**given))
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError):
        image.read_image(path, options=options(**given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scaling": {}}, "write {percentiles"),
        ({"scaling": {"fixed": [2, 1]}}, "ascending"),
        ({"scaling": {"percentiles": [99, 1]}}, "ascending"),
        ({"channels": 13}, "less than or equal to 12"),
        ({"channels": 6, "clahe": 2.0}, "for 3 channels"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        options(**given)


@pytest.fixture
def banded(tmp_path: Path) -> Workplace:
    """Six noisy channels, in the fifth of which a square is bright or dark: that is the label."""
    place = Workplace(tmp_path, tmp_path / "bands.yaml")
    for split, count in (("train", 60), ("test", 12)):
        folder = tmp_path / "input" / "bands" / split
        folder.mkdir(parents=True)
        ids, target = [f"{split[:2]}{k:03d}" for k in range(count)], np.arange(count) % 2
        for name, bright in zip(ids, target, strict=True):
            planes = RNG.normal(0, 1, (6, 36, 34))
            y, x = RNG.integers(2, 22, 2)
            planes[4, y : y + 12, x : x + 12] += 9 if bright else -9
            np.save(folder / f"{name}.npy", planes.astype(np.float16))
        pd.DataFrame({"id": ids, "target": target}).to_csv(folder.parent / f"{split}.csv", index=False)
    about = {"name": "bands", "task": "binary", "metric": "roc_auc", "folds": {"n": 3}}
    for split in ("train", "test"):
        about[split] = {"table": f"{split}.csv", "images": split + "/{id}.npy"}
    about["image"] = {"channels": 6, "scaling": {"percentiles": [1, 99]}}
    place.competition.write_text(yaml.safe_dump(about))
    recipe = {**QUICK, "train": {**QUICK["train"], "epochs": 8, "threads": 1, "precision": "plain"}}
    recipe["augment"] = {"preset": "medium", "randaugment": 3}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(recipe))
    return place


def test_a_rule_that_one_channel_holds_is_learnt_and_the_scaling_is_the_training_parts(banded, monkeypatch):
    banded.run("01_preprocess.py", "--sizes", 32)
    learnt = json.loads((banded.derived / "scaling.json").read_text())
    low, high = np.array(learnt["fixed"]).T
    assert low[:4] == pytest.approx([-2.33] * 4, abs=0.1) and high[5] == pytest.approx(2.33, abs=0.1)
    assert low[4] < -8 and high[4] > 8 and learnt["images"] == 60
    images = np.load(banded.derived / "images_32.npy", mmap_mode="r")
    assert images.shape == (72, 32, 32, 6)
    assert "could not be made" not in (banded.derived / "report.html").read_text()
    monkeypatch.setenv("FOLDWISE_ROOT", str(banded.root))
    competition = load_competition(str(banded.competition))
    assert competition.image.scaling.ends.tolist() == learnt["fixed"]
    stamp = (banded.derived / "scaling.json").stat().st_mtime_ns
    index.learn_scaling(competition, index.load_index(competition))  # of the same files nothing is learnt anew
    assert (banded.derived / "scaling.json").stat().st_mtime_ns == stamp
    banded.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    banded.run("06_blend.py")
    sent = pd.read_csv(banded.submissions / "blend.csv").set_index("id")["target"]
    truth = pd.read_csv(banded.raw / "test.csv").set_index("id")["target"]
    assert (sent[truth == 1].min() > sent[truth == 0].max()) or sent[truth == 1].mean() > sent[truth == 0].mean() + 0.1
    assert json.loads((banded.runs / "quick" / "run.json").read_text())["score"] > 0.9
    banded.run("07_explain.py", "--run", "quick", "--rows", "tr000", "--method", "ig")


@pytest.mark.parametrize("how", ["columns", "text", "lists"])
def test_images_that_lie_flat_in_a_table(tmp_path, how, monkeypatch):
    place = Workplace(tmp_path, tmp_path / "flat.yaml")
    raw = tmp_path / "input" / "flat"
    raw.mkdir(parents=True)
    about = {"name": "flat", "task": "binary", "metric": "roc_auc", "target": "label", "folds": {"n": 3}}
    about["image"] = {"channels": 2, "bands": ["one_*", "two_*"], "scaling": {"fixed": [0, 255]}}
    planes = {}
    for split, count in (("train", 40), ("test", 8)):
        pixels = planes[split] = RNG.integers(0, 256, (count, 2, 256))
        table = pd.DataFrame({"id": [f"{split}{k}" for k in range(count)]})
        for c, name in enumerate(("one", "two")):
            if how == "columns":
                more = pd.DataFrame(pixels[:, c], columns=[f"{name}_{k}" for k in range(256)])
                table = pd.concat([table, more], axis=1)
            else:
                table[f"{name}_all"] = [
                    " ".join(map(str, row)) if how == "text" else row for row in pixels[:, c].tolist()
                ]
        if split == "train":
            table["label"] = np.arange(count) % 2
        file = f"{split}.json" if how == "lists" else f"{split}.csv"
        table.to_json(raw / file, orient="records") if how == "lists" else table.to_csv(raw / file, index=False)
        about[split] = {"table": file}
    place.competition.write_text(yaml.safe_dump(about))
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    competition = load_competition(str(place.competition))
    for split, part in (("train", competition.train), ("test", competition.test)):
        paths = rows_of_split(competition, split, part)["path"]
        expected = planes[split].reshape(-1, 2, 16, 16).transpose(0, 2, 3, 1)
        seen = [image.read_image(competition.raw() / path, options=competition.image) for path in paths]
        assert np.array_equal(np.stack(seen), expected)
    stamp = (place.derived / "bands_train.zip").stat().st_mtime_ns
    rows_of_split(competition, "train", competition.train)
    assert (place.derived / "bands_train.zip").stat().st_mtime_ns == stamp
    for changed, words in (
        ({**about["image"], "shape": [10, 10]}, "an image 10 x 10"),
        ({**about["image"], "bands": ["on_*", "two_*"]}, r"no column fits 'on_\*'"),
        ({"channels": 2}, "image.bands"),
    ):
        place.describe(image=changed)
        with pytest.raises(UserError, match=words):
            competition = load_competition(str(place.competition))
            rows_of_split(competition, "train", competition.train)
