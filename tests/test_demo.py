"""The embedded demo: same seed, same bytes; honest tables; the traps it promises; a known optimum."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.errors import InvalidDicomError

from foldwise import UserError, demo, metrics
from foldwise.data.competition import load_competition

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = 80


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("demo")
    demo.make_demo(IMAGES, seed=3, root=where)
    return where


@pytest.fixture(scope="module")
def solution(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "input/demo/solution.csv", keep_default_na=False)


def pixels(root: Path, row: pd.Series) -> np.ndarray:
    return pydicom.dcmread(root / "input/demo" / row["split"] / f"{row['image_id']}.dcm").pixel_array


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "src/00_demo.py"), *arguments]
    environment = {"FOLDWISE_ROOT": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = bytes_of(demo.make_demo(IMAGES, seed=3, root=tmp_path))
    assert again == bytes_of(root / "input/demo")
    other = bytes_of(demo.make_demo(IMAGES, seed=4, root=tmp_path))
    assert not set(other) & {name for name in again if name.endswith(".dcm")}


def test_many_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    settings = demo.Settings(images=220, seed=1)
    folder = demo.make_demo(settings.images, settings.seed, root=tmp_path, workers=2)
    cases = demo.draw_cases(settings)
    for row in (0, 100, 219):
        case, source = cases.loc[row].to_dict(), cases.loc[cases.loc[row, "photo"]].to_dict()
        there = folder / case["split"] / f"{case['image_id']}.dcm"
        written = there.read_bytes()
        demo.write_image({**case, "row": row}, source, folder, settings)
        assert there.read_bytes() == written


@pytest.mark.smoke
def test_tables_agree_and_keep_the_test_labels_secret(root: Path, solution: pd.DataFrame) -> None:
    folder = root / "input/demo"
    train, test = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "test.csv")
    sample = pd.read_csv(folder / "sample_submission.csv")
    assert list(train.columns) == ["image_id", "patient_id", "age", "sex", "site", "target"]
    assert list(test.columns) == ["image_id", "patient_id", "age", "sex", "site"]
    assert list(sample["image_id"]) == list(test["image_id"])
    assert sorted(solution["image_id"]) == sorted([*train["image_id"], *test["image_id"]])
    assert solution["image_id"].is_unique and len(solution) == IMAGES
    assert not set(train["patient_id"]) & set(test["patient_id"])
    truth = solution.set_index("image_id")["target"]
    assert (truth[train["image_id"]].to_numpy() == train["target"].to_numpy()).all()
    for table, split in ((train, "train"), (test, "test")):
        assert {p.stem for p in (folder / split).iterdir()} == set(table["image_id"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("images", [40, 60])
def test_small_demos_have_positives_in_several_patients(images: int, seed: int) -> None:
    cases = demo.draw_cases(demo.Settings(images, seed))
    for _, part in cases.groupby("split"):
        positive = part[part["target"] == 1]
        assert len(positive) >= 5 and positive["patient_id"].nunique() >= 3
        assert (part["target"] == 0).sum() >= 5


def test_files_read_but_for_two(root: Path, solution: pd.DataFrame) -> None:
    broken = {}
    for _, row in solution.iterrows():
        try:
            image = pixels(root, row)
        except (InvalidDicomError, AttributeError, ValueError) as error:
            broken[row["split"]] = type(error)
        else:
            assert image.std() > 0
    assert broken == {"train": ValueError, "test": InvalidDicomError}


@pytest.mark.filterwarnings("ignore:End of file")
def test_formats_are_those_of_a_real_archive(root: Path) -> None:
    files = (root / "input/demo/train").iterdir()
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    assert {h.PhotometricInterpretation for h in headers} == {"RGB", "MONOCHROME1", "MONOCHROME2"}
    assert {h.file_meta.TransferSyntaxUID.name.split(" ")[0] for h in headers} >= {"Explicit", "JPEG", "RLE"}
    for header in headers:
        if header.PhotometricInterpretation != "RGB":
            assert (header.BitsAllocated, header.BitsStored) == (16, 12)
            assert 0 < float(header.WindowCenter) < 4096 and float(header.WindowWidth) > 1
        assert header.PatientAge == "" or (len(header.PatientAge) == 4 and header.PatientAge[-1] == "Y")


def test_table_and_header_miss_different_values() -> None:
    cases = demo.draw_cases(demo.Settings(1400, 0))
    for name, low, high in (("age", 0.02, 0.06), ("site", 0.12, 0.18)):
        assert low < cases[f"hide_table_{name}"].mean() < high
        assert not (cases[f"hide_table_{name}"] & cases[f"hide_header_{name}"]).any()
        assert cases[f"hide_header_{name}"].any()


def test_copies_show_their_source_under_another_patient(root: Path, solution: pd.DataFrame) -> None:
    rows = solution.set_index("image_id", drop=False)
    copies = rows[rows["copy"] != ""]
    assert set(zip(copies["copy"], copies["split"], strict=True)) >= {
        (kind, split) for kind in ("exact", "near") for split in ("train", "test")
    }
    for _, row in copies.iterrows():
        source = rows.loc[row["copy_of"]]
        assert source["patient_id"] != row["patient_id"]
        assert (source["target"], source["probability"]) == (row["target"], row["probability"])
        ours, theirs = pixels(root, row).astype(float), pixels(root, source).astype(float)
        assert ours.shape == theirs.shape
        assert (ours == theirs).all() == (row["copy"] == "exact")
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_labels_follow_p_and_the_optimum_is_in_range(seed: int) -> None:
    cases = demo.draw_cases(demo.Settings(6000, seed))
    p, target = cases["probability"].to_numpy(), cases["target"].to_numpy()
    assert 0.19 < target.mean() < 0.26
    assert 0.93 < metrics.score("roc_auc", target, p) < 0.965
    groups = np.digitize(p, [0.05, 0.2, 0.5, 0.8])
    for k in range(5):
        inside = groups == k
        spread = np.sqrt((p * (1 - p))[inside].sum()) / inside.sum()
        assert abs(target[inside].mean() - p[inside].mean()) < 4 * spread


def test_description_fits_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(root))
    description = load_competition("demo")
    assert description.raw() == root / "input/demo"
    assert description.group == "patient_id"


def test_made_again_only_for_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = demo.make_demo(40, root=tmp_path)
    (folder / "train.csv").write_text("touched")
    demo.make_demo(40, root=tmp_path)
    assert (folder / "train.csv").read_text() == "touched"
    assert "there already" in capsys.readouterr().out
    demo.make_demo(44, root=tmp_path)
    assert json.loads((folder / "demo.json").read_text())["images"] == 44
    assert len(pd.read_csv(folder / "train.csv")) == 31
    assert [p.name for p in folder.parent.iterdir()] == ["demo"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.make_demo(40, root=tmp_path)
    before = bytes_of(folder)
    monkeypatch.setattr(demo.lesions, "_save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.make_demo(44, root=tmp_path)
    assert bytes_of(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["demo"]


def test_a_folder_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "input/demo").mkdir(parents=True)
    (tmp_path / "input/demo/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="move it away"):
        demo.make_demo(40, root=tmp_path)


@pytest.fixture
def scored(tmp_path: Path, root: Path, solution: pd.DataFrame) -> Path:
    """A root with one run that knows p, and one submission that does not."""
    (tmp_path / "input").symlink_to(root / "input")
    run_folder, submissions = tmp_path / "oof/demo/knows", tmp_path / "submissions/demo"
    run_folder.mkdir(parents=True)
    submissions.mkdir(parents=True)
    table = solution.rename(columns={"image_id": "id", "probability": "pred"}).sample(frac=1, random_state=0)
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    fold = np.arange(len(train)) % 2
    train.assign(fold=fold)[["id", "fold", "target", "pred"]].to_csv(run_folder / "oof.csv", index=False)
    test[["id", "pred"]].to_csv(run_folder / "test.csv", index=False)
    constant = test[["id"]].rename(columns={"id": "image_id"}).assign(target=0.5)
    constant.to_csv(submissions / "constant.csv", index=False)
    return tmp_path


@pytest.mark.smoke
def test_score_table(scored: Path) -> None:
    done = run(scored, "--score", "--csv", str(scored / "scores.csv"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["run", "submission", "optimum"]
    assert len({line.index("(0.") for line in (lines[1], lines[1])}) == 1
    assert lines[-1] == f"submission: {scored}/submissions/demo/constant.csv"
    scores = pd.read_csv(scored / "scores.csv").set_index("kind")
    assert scores.loc["run", "oof_auc"] == scores.loc["optimum", "oof_auc"]
    assert scores.loc["run", "test_auc"] == scores.loc["optimum", "test_auc"]
    assert (scores.loc["submission", ["test_auc", "test_low", "test_high"]] == 0.5).all()
    assert scores.loc["run", "test_low"] < scores.loc["run", "test_auc"] < scores.loc["run", "test_high"]


def test_score_table_names_what_does_not_fit(scored: Path) -> None:
    path = scored / "submissions/demo/constant.csv"
    table = pd.read_csv(path)
    table.iloc[1:].to_csv(path, index=False)
    with pytest.raises(UserError, match=rf"constant.csv: {table['image_id'][0]} is missing"):
        demo.score_table(scored)
    table.replace({"image_id": {table["image_id"][0]: "LES_X"}}).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"constant.csv: LES_X is not in input/demo"):
        demo.score_table(scored)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score"], "src/00_demo.py"),
        (["--images", "12"], "--images 12"),
        (["--seed", "-1"], "--seed -1"),
        (["--csv", "x.csv"], "--score"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_studies_are_the_same_bytes_and_no_slice_alone_tells(tmp_path: Path) -> None:
    """Both kinds have the same spots in the same slices; which lies between the others is all that differs."""
    folder = demo.make_series_demo(40, seed=1, root=tmp_path / "a", workers=1)
    other = demo.make_series_demo(40, seed=1, root=tmp_path / "b", workers=2)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(names) > 40 * 18 and all((folder / one).read_bytes() == (other / one).read_bytes() for one in names)
    solution = pd.read_csv(folder / "solution.csv")
    best = metrics.score("roc_auc", solution["target"].to_numpy(), solution["probability"].to_numpy())
    assert 0.85 < best <= 1 and set(solution["split"]) == {"train", "test"}
    assert not set(solution[solution["split"] == "train"]["patient_id"]) & set(
        solution[solution["split"] == "test"]["patient_id"]
    )
    case = {"slices": 21, "side": 64, "row": 3}
    one, two = (demo.series.render_study({**case, "kind": kind}, seed=0).astype(float) for kind in (0, 1))
    assert np.abs(one.mean(axis=(1, 2)) - two.mean(axis=(1, 2))).max() < 6  # the same amount of white in each slice
