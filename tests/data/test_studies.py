"""Rows that are studies: which slices, from which files, in which channels; a competition of them from end to end."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, Workplace

from app import uploads
from app.service import Service
from app.uploads import Upload
from foldwise import UserError, demo, dicom
from foldwise.core.schema import validate
from foldwise.core.source import ReadWarning
from foldwise.data import image, series
from foldwise.data.cache import load_cache, load_slices
from foldwise.data.competition import Competition, load_competition
from foldwise.data.image import ImageError, ImageOptions
from foldwise.data.index import load_index
from foldwise.data.orientation import fitted
from foldwise.data.recipe import load_recipe
from foldwise.data.rows import rows_of_split
from foldwise.data.runs import recipe_of
from foldwise.model.fold_models import load_fold
from foldwise.train import auxiliary

STUDY = {"study_id": "S1", "slices": 9, "side": 64, "apart": 2.5, "flaw": "", "kind": 1, "row": 0, "split": "x"}


def options(**given: object) -> ImageOptions:
    return validate(ImageOptions, given, "image")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four CT studies of nine slices, one of each flaw."""
    folder = tmp_path_factory.mktemp("studies")
    for k, flaw in enumerate(["", "localizer", "copy", "damaged"]):
        case = {**STUDY, "study_id": f"S{k}", "row": k, "flaw": flaw, "patient_id": f"P{k}"}
        demo.series._write_study(case, folder / f"S{k}", demo.series.Settings())
    return folder


def quiet(*given: object) -> tuple[np.ndarray, pd.DataFrame]:
    with warnings.catch_warnings(action="ignore", category=ReadWarning):
        return series.read_study(*given)


@pytest.mark.smoke
def test_a_pattern_finds_its_ending_in_large_letters(tmp_path: Path) -> None:
    for name in ("b.DCM", "a.DCM", "c.txt", "IM"):
        (tmp_path / name).touch()
    assert [file.name for file in series.files(tmp_path / "*.dcm")] == ["a.DCM", "b.DCM"]
    assert [file.name for file in series.files(tmp_path / "I*")] == ["IM"]


@pytest.mark.smoke
@pytest.mark.parametrize("study", ["S0", "S1", "S2", "S3"])
def test_slices_are_channels_in_space(studies, study):
    pixels, table = quiet(studies / study, 64, options(slices=9, window="lung"))
    with warnings.catch_warnings(action="ignore", category=ReadWarning):
        stack, _ = dicom.read_series(studies / study, 64, options(window="lung"))
    assert pixels.shape == (64, 64, 9) and np.array_equal(pixels.transpose(2, 0, 1), stack)
    assert table["slot"].tolist() == list(range(9)) and table["position"].is_monotonic_increasing


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("choice", "seen"),
    [
        ({"slices": 12}, [0, 1, 2, 3, 4, 5, 6, 7, 8, None, None, None]),
        ({"slices": 4}, [1, 3, 5, 7]),
        ({"slices": 4, "choose": "middle"}, [2, 3, 4, 5]),
        ({"slices": 5, "resample": [5, 4, 4]}, [0, 2, 4, 6, 8]),
        ({"slices": 7, "resample": [5, 4, 4]}, [None, 0, 2, 4, 6, 8, None]),
    ],
)
def test_which_slices_are_seen(studies, choice, seen):
    every, _ = quiet(studies / "S0", None, options(slices=9))
    size = 60 if "resample" in choice else None  # 240 mm at 4
    pixels, table = quiet(studies / "S0", size, options(**choice))
    for slot, place in enumerate(seen):
        if place is None:
            assert not pixels[..., slot].any()
        elif size is None:
            assert np.array_equal(pixels[..., slot], every[..., place])
        else:
            assert np.array_equal(pixels[..., slot], dicom.resize(np.ascontiguousarray(every[..., place]), 60))
    assert table["slot"].tolist() == [slot for slot, place in enumerate(seen) if place is not None]


@pytest.mark.smoke
@pytest.mark.parametrize(("around", "first"), [(1, 0), (4, 1), (9, 5), (30, 5)])
def test_slices_around_one_that_a_table_names(tmp_path, around, first):
    volume = np.arange(9, dtype=np.float32)[:, None, None] + np.zeros((9, 4, 5), np.float32)
    np.save(tmp_path / "v.npy", volume)
    asked = options(slices=4, percentiles=[0, 100]).model_copy(update={"frame": around})
    _, table = quiet(tmp_path / "v.npy", None, asked)
    assert table["instance"].tolist() == [first + k + 1 for k in range(4)]
    rows = {"id": ["a", "b"], "target": [0, 1], "number": [around, None]}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    about = {**BASE, "root": str(tmp_path), "train": {"table": "t.csv", "series": "{id}.npy"}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**about, "image": {"slices": 4, "around": "number"}}))
    made = load_competition(str(tmp_path / "x.yaml"))
    frames = rows_of_split(made, "train", made.train)["frame"]
    assert frames[0] == around and pd.isna(frames[1])


@pytest.mark.smoke
def test_at_equal_distances_a_smaller_frame_cuts_and_a_larger_one_pads(studies):
    whole, _ = quiet(studies / "S0", 60, options(slices=9, resample=[2.5, 4, 4]))
    small, _ = quiet(studies / "S0", 40, options(slices=9, resample=[2.5, 4, 4]))
    large, _ = quiet(studies / "S0", 80, options(slices=9, resample=[2.5, 4, 4]))
    assert np.array_equal(whole[10:50, 10:50], small) and np.array_equal(large[10:70, 10:70], whole)
    assert not large[:10].any()


@pytest.mark.smoke
def test_windows_are_channels_of_each_slice(studies):
    pixels, _ = quiet(studies / "S0", 32, options(slices=9, window=["brain", "lung", "bone"]))
    lung, _ = quiet(studies / "S0", 32, options(slices=9, window="lung"))
    assert pixels.shape == (32, 32, 27) and np.array_equal(pixels[..., 1::3], lung)


@pytest.mark.smoke
def test_one_box_cuts_all_slices_alike(studies):
    """A box of each slice's own would shift neighbours against each other."""
    pixels, _ = quiet(studies / "S0", 64, options(slices=9, crop="threshold", crop_margin=0))
    edges = [np.flatnonzero(pixels[..., k].max(axis=0) > 20)[[0, -1]].tolist() for k in range(9)]
    assert all(abs(left) <= 2 and abs(63 - right) <= 2 for left, right in edges)


@pytest.mark.smoke
def test_pictures_arrays_and_nifti_are_series_too(tmp_path):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 256, (11, 10, 12)).astype(np.uint8)
    (tmp_path / "png").mkdir()
    for k, plane in enumerate(volume):
        cv2.imwrite(str(tmp_path / "png" / f"im{k}.png"), plane)
    (tmp_path / "png" / "notes.txt").write_text("no slice")
    (tmp_path / "png" / "im4.png").write_bytes(b"\x89PNG")
    pixels, table = quiet(tmp_path / "png", None, options(slices=11))
    assert [path.name for path in table["path"]] == [f"im{k}.png" for k in range(11) if k != 4]  # 9 before 10
    rest = [k for k in range(11) if k != 4]
    assert np.array_equal(pixels[..., rest], volume[rest].transpose(1, 2, 0)) and not pixels[..., 4].any()

    np.save(tmp_path / "v.npy", volume.astype(np.float32) - 100)
    pixels, _ = quiet(tmp_path / "v.npy", None, options(slices=11, percentiles=[0, 100]))
    assert np.abs(pixels.transpose(2, 0, 1).astype(int) - volume).max() <= 1

    nibabel = pytest.importorskip("nibabel")
    # axes to the left, the back, the head (LPS), as DICOM has them: x of 12, y of 10, z of 11
    affine = np.diag([-0.5, -0.7, 3.0, 1])
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0).astype(np.int16), affine), tmp_path / "v.nii.gz")
    pixels, table = quiet(tmp_path / "v.nii.gz", None, options(slices=11, percentiles=[0, 100]))
    assert np.abs(pixels.transpose(2, 0, 1).astype(int) - volume).max() <= 1
    assert table[["spacing", "row_spacing", "column_spacing"]].iloc[0].tolist() == pytest.approx([3.0, 0.7, 0.5])
    hounsfield, _ = quiet(tmp_path / "v.nii.gz", None, options(slices=11, window="128/257"))
    assert np.abs(hounsfield.transpose(2, 0, 1).astype(int) - volume).max() <= 1
    (tmp_path / "bad.nii.gz").write_bytes((tmp_path / "v.nii.gz").read_bytes()[:200])
    with pytest.raises(ImageError, match="damaged or truncated NIfTI"):
        series.read_study(tmp_path / "bad.nii.gz", None, options(slices=4))


@pytest.mark.smoke
def test_a_slide_is_its_tiles_with_the_most_tissue(tmp_path):
    """Of 4 x 5 tiles of 16 px, at the edge cut off, the three dark ones; at the second level of a pyramid, too."""
    slide = np.full((60, 75, 3), 255, np.uint8)
    for row, column, value in ((0, 1, 90), (2, 4, 60), (3, 0, 30)):
        slide[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = value
    cv2.imwrite(str(tmp_path / "slide.png"), slide)
    asked = {"slices": 4, "tile": 16, "colour": True}
    pixels, table = quiet(tmp_path / "slide.png", 16, options(**asked))
    assert pixels.shape == (16, 16, 12) and table["instance"].tolist() == [1, 14, 15]
    assert (pixels[..., 0] == 90).all() and (pixels[:, :11, 3] == 60).all() and (pixels[:12, :, 6] == 30).all()
    assert not pixels[..., 9:].any()  # no fourth with anything on it
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "slide.tif") as writer:
        writer.write(slide.repeat(2, 0).repeat(2, 1), subifds=1, photometric="rgb")
        writer.write(slide, subfiletype=1, photometric="rgb")
    again, _ = quiet(tmp_path / "slide.tif", 16, options(**asked, level=1))
    assert np.array_equal(again, pixels)
    with pytest.raises(ImageError, match="of 2 levels"):
        series.read_study(tmp_path / "slide.tif", 16, options(**asked, level=2))


@pytest.mark.smoke
def test_several_series_lie_side_by_side_and_a_missing_one_is_black(studies):
    two = options(slices=4, series=["A", "B"])
    pixels, table = quiet(studies / series.several(["S0", "S1"]), 32, two)
    a, b = (quiet(studies / name, 32, options(slices=4))[0] for name in ("S0", "S1"))
    assert np.array_equal(pixels, np.concatenate([a, b], axis=-1)) and set(table["series"]) == {0, 1}
    with pytest.warns(ReadWarning, match="series A missing"):  # and of S1's localizer
        half, _ = series.read_study(studies / series.several(["none", "S1"]), 32, two)
    assert not half[..., :4].any() and np.array_equal(half[..., 4:], quiet(studies / "S1", 32, options(slices=4))[0])
    with pytest.raises(UserError, match="missing series"):
        quiet(studies / series.several(["none", "nothing"]), 32, two)


@pytest.mark.smoke
def test_archives_and_patterns_name_the_same_files(studies, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted((studies / "S0").iterdir()):
            archive.write(file, f"S0/{file.name}")
    places = [
        studies / "S0",
        studies / "S0/*.dcm",
        studies / "*0/*",
        tmp_path / "all.zip/S0",
        tmp_path / "all/S0/*.dcm",
    ]
    seen = [quiet(place, 32, options(slices=9))[0] for place in places]
    assert all(np.array_equal(one, seen[0]) for one in seen)
    probes = [series.probe(place, options(slices=9)) for place in places[:2]]
    assert probes[0] == probes[1] and probes[0]["slices"] == 9 and probes[0]["format"] == "DICOM"


@pytest.mark.smoke
def test_pages_show_nine_slices(studies):
    pixels, _ = quiet(studies / "S0", 60, options(slices=20))
    sheet = image.as_picture(pixels)
    assert sheet.shape == (60, 60, 3)
    assert np.array_equal(sheet[20:40, 20:40, 0], cv2.resize(pixels[..., 4], (20, 20), interpolation=cv2.INTER_AREA))


BASE = {
    **{"name": "x", "task": "binary", "metric": "roc_auc", "target": "target"},
    "train": {"table": "train.csv", "series": "train/{id}"},
}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "belong together"),
        ({"image": {"slices": 4}, "test": {"table": "t.csv", "images": "{id}.dcm"}}, "same names"),
        ({"image": {"slices": 4}, "frames": "each"}, "frames: each"),
        ({"image": {"slices": 4, "channels": 1}}, "channels"),
        ({"image": {"resample": [1, 1, 1]}}, "resample"),
        ({"image": {"slices": 4}, "train": {**BASE["train"], "images": "{id}.dcm"}}, "either"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        validate(Competition, {**BASE, **changes}, "x.yaml")


# --- from end to end ------------------------------------------------------------------------------------------


def make_place(root: Path, studies: Path) -> Workplace:
    """24 studies of two series of PNG slices, one without its second series, one whose slices are all broken."""
    rng, place = np.random.default_rng(0), Workplace(root, root / "study.yaml")
    raw = root / "input" / "study"
    rows = []
    for k in range(24):
        label = k % 2
        for name, count in (("t1", 5), ("t2", 7)):
            folder = raw / name / f"s{k}"
            if (k, name) == (3, "t2"):
                continue
            folder.mkdir(parents=True)
            for z in range(count + k % 3):
                plane = rng.integers(40, 90, (24, 24)) + 100 * label * (z == 2)
                cv2.imwrite(str(folder / f"{z}.png"), plane.astype(np.uint8))
                if k == 5:
                    (folder / f"{z}.png").write_bytes(b"\x89PNG broken")
        rows.append({"id": f"s{k}", "patient": f"p{k // 2 * 2 + k % 2}", "target": label})
    table = pd.DataFrame(rows)
    table.iloc[:18].to_csv(raw / "train.csv", index=False)
    table.iloc[18:].drop(columns="target").to_csv(raw / "test.csv", index=False)
    where = {"t1": "t1/{id}/*.png", "t2": "t2/{id}/*.png"}
    place.competition.write_text(
        yaml.safe_dump(
            {
                **{"name": "study", "task": "binary", "metric": "roc_auc", "target": "target", "group": "patient"},
                "train": {"table": "train.csv", "series": where},
                "test": {"table": "test.csv", "series": where},
                "image": {"slices": 8},
                "folds": {"n": 2},
            }
        )
    )
    recipe = {
        **QUICK,
        "model": {**QUICK["model"], "series": {"neighbours": 3, "step": 2, "context": "gru", "width": 16}},
    }
    (root / "quick.yaml").write_text(yaml.safe_dump({**recipe, "train": {**QUICK["train"], "batch_size": 4}}))
    return place


def test_a_series_that_no_training_row_has_is_refused(tmp_path, studies):
    place = make_place(tmp_path, studies)
    train = place.description["train"]
    place.describe(train={**train, "series": {**train["series"], "t2": "t3/{id}/*.png"}})
    said = place.refused("01_preprocess.py", "--sizes", 16)
    assert "no training row has 't2'; mend its path" in said
    place.describe(train=train)
    place.run("01_preprocess.py", "--sizes", 16)


def ask_the_app(place: Workplace, about: Competition) -> None:
    """An archive of a test study gets what training predicted for it, and a look at its slices."""
    service = Service(about)
    packed = service.file("test", "s20")
    assert packed.name == "s20.zip"
    with uploads.receiving([packed], options=about.image) as received:
        assert received.rows["id"].tolist() == ["s20"] and not received.refused
        answer = service.predict(received, ["quick"])
        lost, maps = service.slices(answer, "quick", 0, 0)
    wanted = pd.read_csv(place.runs / "quick" / "test.csv").set_index("id").loc["s20", "pred"]
    assert answer.table(answer.mean("quick"))["pred"].iloc[0] == pytest.approx(wanted, abs=1e-5)
    assert len(lost) == 8 and np.isfinite(lost).sum() == 4 + 4 and len(maps) == 3  # t1: 7 slices of 8, t2: 9
    stray = Upload("x.zip", packed.data.replace(b"t1/", b"t9/"))
    with uploads.receiving([stray], options=about.image) as received:
        assert all("t1 or t2" in reason for reason in received.refused.values()) and len(received.refused) == 7
        assert received.rows["id"].tolist() == ["x"]


def keep_features(place: Workplace, about: Competition, root: Path) -> None:
    """A frozen backbone's features are made once; what its models say of pixels is what they said in training."""
    frozen = ["model.mode=frozen", "augment.preset=none", "augment.flips=none", "train.epochs=3"]
    started = ["02_train.py", "--recipe", root / "quick.yaml", "--name", "frozen", *frozen]
    place.run(*started, "--fold", 0)
    (made,) = place.derived.glob("features_*.npy")
    assert len(np.load(made)) == 24 and np.load(made).shape[1] % 8 == 0  # four pictures of two series
    before = made.stat().st_mtime_ns
    place.run(*started[:4], "again", *frozen, "--fold", 0)  # the same backbone
    assert [path.stat().st_mtime_ns for path in place.derived.glob("features_*.npy")] == [before]
    recipe, table = recipe_of(about, "frozen"), load_index(about)
    rows = table[(table["split"] == "test") & table["error"].isna()]
    images = load_cache(about, 32)
    seen = load_fold(about, recipe, "frozen", 0, table).predict(images, images.rows_of(rows), rows)[:, 0]
    said = pd.read_csv(place.runs / "frozen" / "fold0_test.csv").set_index("id")["pred"]
    assert np.allclose(seen, said.loc[rows["id"]], atol=1e-5) and np.ptp(seen) > 1e-5


def learn_slices(place: Workplace, root: Path) -> None:
    """Labels of single slices, by the names of their files: those that the table does not name count for nothing."""
    about = load_competition(str(place.competition))
    table = pd.DataFrame({"study": ["s0", "s0", "s1", "s9"], "file": ["2", "03", "2", "0"], "bright": [0, 0, 1, 1]})
    table["series"] = ["t1", "t2", "t1", "t1"]
    table.to_csv(place.raw / "slices.csv", index=False)
    asked = {"table": "slices.csv", "id": "study", "slice": "file", "target": "bright", "series": "series"}
    place.describe(slice_labels=asked)
    about = load_competition(str(place.competition))
    recipe = fitted(load_recipe(str(root / "quick.yaml")), None, about.image)
    rows = pd.DataFrame({"id": ["s1", "s0", "s2"], "split": "train"})
    learnt = auxiliary.of_rows(about, rows, recipe)
    assert learnt is not None and learnt.of_slices == 1 and learnt.target.shape == (3, 2 * 4)
    # pictures of slots 1, 3, 5, 7; the second series of s1 has 8 slices of 8, t1's 6
    seen = load_slices(about, 32).set_index(["id", "series", "slot"])["file"]
    for row, row_id in enumerate(rows["id"]):
        for series_number in (0, 1):
            for picture in range(4):
                name = seen.get((row_id, series_number, 8 * series_number + 1 + 2 * picture), "")
                same = (table["study"] == row_id) & (table["series"] == ("t1", "t2")[series_number])
                known = table[same & (table["file"].str.lstrip("0") + ".png" == name)]["bright"]
                value = learnt.target[row, 4 * series_number + picture]
                assert np.isnan(value) if known.empty else value == known.iloc[0]
    assert np.isfinite(learnt.target).sum() > 0
    place.run("02_train.py", "--recipe", root / "quick.yaml", "--name", "slices", "--fold", 0)
    place.describe(slice_labels={**asked, "series": None})
    line = place.refused("02_train.py", "--recipe", root / "quick.yaml", "--name", "other", "--fold", 0)
    assert "says which of t1, t2" in line
    place.describe(slice_labels=asked)
    table.assign(file="none").to_csv(place.raw / "slices.csv", index=False)
    line = place.refused("02_train.py", "--recipe", root / "quick.yaml", "--name", "other", "--fold", 0)
    assert "names no slice" in line


def test_a_competition_of_studies_from_end_to_end(tmp_path, studies, monkeypatch):
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    place = make_place(tmp_path, studies)
    prepared = place.run("01_preprocess.py", "--sizes", 32)
    assert "series t2 missing" in prepared.stderr and "1 train file can't be read" in prepared.stderr + prepared.stdout
    about = load_competition(str(place.competition))
    index = pd.read_parquet(place.derived / "index.parquet").set_index("id")
    assert index.loc["s3", "slices"] == 5 and index.loc["s4", "slices"] == 14 and pd.isna(index.loc["s5", "width"])
    cache = load_cache(about, 32)
    assert cache.channels == 16 and cache.read(np.array([3]))[..., 8:].max() == 0
    place.run("02_train.py", "--recipe", tmp_path / "quick.yaml", "--fold", "all")
    oof = pd.read_csv(place.runs / "quick" / "oof.csv")
    assert len(oof) == 17 and len(pd.read_csv(place.runs / "quick" / "test.csv")) == 6
    place.run("04_embed.py", "--run", "quick", "--head", "logreg")
    place.run("05_predict.py", "--run", "quick", "predict.tta=flip")
    place.run("06_blend.py")
    explained = place.run("07_explain.py", "--run", "quick", "--count", 2, "--deletion", 2)
    assert "look at" in explained.stdout and "no verdict" not in explained.stdout
    page = (place.runs / "quick/explain/index.html").read_text()
    assert "slices, for target = " in page and "when a slice is left out" in page
    assert "single pictures" in place.refused("07_explain.py", "--run", "quick", "--maximise")
    assert len(list(place.submissions.glob("*.csv"))) == 1
    ask_the_app(place, about)
    keep_features(place, about, tmp_path)
    learn_slices(place, tmp_path)
    # other slices are other pixels: the run refuses them
    place.describe(image={"slices": 6})
    assert "image" in place.refused("05_predict.py", "--run", "quick", "predict.tta=d4")
