"""The scripts as a user types them, from a clean folder: contract files, interruptions, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, REPOSITORY, Workplace, make_tiny, picture
from sklearn.metrics import cohen_kappa_score

from foldwise.data import oof
from foldwise.data.competition import load_competition

SCRIPTS = sorted(path.name for path in (REPOSITORY / "src").glob("0*.py"))


@pytest.mark.smoke
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches_by_example(script: str, tmp_path: Path) -> None:
    text = Workplace(tmp_path, Path("x.yaml")).run(script, "--help").stdout
    assert "reads" in text
    assert "writes" in text
    assert f"python src/{script}" in text


@pytest.mark.smoke
def test_misspelt_flag_proposes_the_nearest(tmp_path: Path) -> None:
    line = Workplace(tmp_path, Path("x.yaml")).refused("02_train.py", "--flod", "0")
    assert "--fold" in line


# --- 01 ---------------------------------------------------------------------------------------------------


def test_preprocess_writes_the_contract(trained: Workplace) -> None:
    index = pd.read_parquet(trained.derived / "index.parquet")
    assert len(index) == 72
    assert index["split"].value_counts().to_dict() == {"train": 60, "test": 12}
    aside = pd.read_csv(trained.derived / "unreadable.csv")
    assert sorted(aside["id"]) == ["te0003", "tr0007"]
    assert aside["error"].str.len().gt(5).all()

    folds = pd.read_csv(trained.derived / "folds.csv")
    assert list(folds.columns) == ["id", "group", "fold"]
    assert len(folds) == 59
    assert "tr0007" not in set(folds["id"])
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert sorted(folds["fold"].unique()) == [0, 1, 2]

    images = np.load(trained.derived / "images_32.npy", mmap_mode="r")
    ids = pd.read_csv(trained.derived / "images_32_ids.csv")
    assert images.shape == (72, 32, 32, 3)
    assert images.dtype == np.uint8
    assert ids["ok"].sum() == 70
    assert (images[np.flatnonzero(ids["ok"] == 0)] == 0).all()
    assert (images[np.flatnonzero(ids["ok"] == 1)].reshape(70, -1).std(axis=1) > 5).all()
    assert (trained.derived / "report.html").stat().st_size > 1000
    assert not list(trained.derived.glob("*.part"))


def test_cache_rows_are_the_right_images(trained: Workplace) -> None:
    """Every cached row is the shrunk picture of its own id, not of a neighbour."""
    images = np.load(trained.derived / "images_32.npy", mmap_mode="r")
    ids = pd.read_csv(trained.derived / "images_32_ids.csv")
    for row in np.flatnonzero(ids["ok"] == 1)[::7]:
        split, name = ids.loc[row, "split"], ids.loc[row, "id"]
        picture = cv2.imread(str(trained.raw / split / f"{name}.png"))[:, :, ::-1]
        expected = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
        assert np.abs(images[row].astype(int) - expected).mean() < 3


def test_killed_preprocessing_continues(tmp_path: Path) -> None:
    """kill -9 at several moments; the finished cache has the bytes of an undisturbed one."""
    calm, rough = make_tiny(tmp_path / "calm", rows=400), make_tiny(tmp_path / "rough", rows=400)
    calm.run("01_preprocess.py", "--sizes", 64, "--workers", 1)
    for moment in (0.3, 0.7, 1.0):  # of two seconds of the processor
        killed = rough.run("01_preprocess.py", "--sizes", 64, "--workers", 1, fault=("KILL", f"{moment}s"), check=False)
        assert killed.returncode < 0
    rough.run("01_preprocess.py", "--sizes", 64, "--workers", 1)
    for name in ("images_64.npy", "folds.csv", "images_64_ids.csv", "unreadable.csv"):
        assert (calm.derived / name).read_bytes() == (rough.derived / name).read_bytes(), name
    assert not list(rough.derived.glob("*.part"))


def test_second_preprocessing_does_no_work_and_a_changed_file_is_seen(tiny: Workplace) -> None:
    tiny.run("01_preprocess.py", "--sizes", 32)
    stamp = (tiny.derived / "images_32.npy").stat().st_mtime_ns
    tiny.run("01_preprocess.py", "--sizes", 32)
    assert (tiny.derived / "images_32.npy").stat().st_mtime_ns == stamp
    cv2.imwrite(str(tiny.raw / "train" / "tr0000.png"), np.full((50, 50, 3), 255, np.uint8))
    tiny.run("01_preprocess.py", "--sizes", 32)
    assert (np.load(tiny.derived / "images_32.npy")[0] == 255).all()


def test_inspect_needs_no_competition(tiny: Workplace) -> None:
    tiny.run("01_preprocess.py", "--inspect", tiny.raw / "train", "--report", tiny.root / "files.csv")
    rows = pd.read_csv(tiny.root / "files.csv")
    assert len(rows) == 60
    assert rows["status"].value_counts().to_dict() == {"ok": 59, "error": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: shutil.rmtree(place.raw), "were not found in"),
        (lambda place: (place.raw / "train.csv").unlink(), "train.csv: no such file"),
        (lambda place: (place.raw / "train.csv").write_text(""), "can't be read as a table"),
        (lambda place: place.describe(target="sik"), "did you mean 'sick'"),
        (lambda place: place.describe(metadata={"numeric": ["agee"]}), "did you mean 'age'"),
        (lambda place: _edit(place, "train.csv", "sick", 4, ""), "row 6 (id tr0004): 'sick' is empty"),
        (lambda place: _edit(place, "train.csv", "sick", 4, "2"), "binary targets are 0 and 1, found 2"),
        (lambda place: _edit(place, "train.csv", "sick", 4, "yes"), "'yes' is not a number"),
        (lambda place: _edit(place, "train.csv", "image_id", 4, "tr0005"), "'tr0005' stands there twice"),
        (lambda place: _edit(place, "train.csv", "image_id", 4, ""), "row 6: 'image_id' is empty"),
        (
            lambda place: place.describe(train={"table": "train.csv", "images": "tarin/{image_id}.png"}),
            "60 of 60 train images",
        ),
        (lambda place: place.describe(metric="rocauc_"), "did you mean"),
    ],
)
def test_bad_input_to_preprocessing_is_one_clear_line(tiny: Workplace, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(tiny)
    assert message in tiny.refused("01_preprocess.py", "--sizes", 32)


# --- 02 ---------------------------------------------------------------------------------------------------


def test_train_writes_the_contract(trained: Workplace) -> None:
    folder = trained.runs / "quick"
    folds = pd.read_csv(trained.derived / "folds.csv")
    for k in range(3):
        fold = pd.read_csv(folder / f"fold{k}.csv")
        assert list(fold.columns) == ["id", "fold", "target", "pred"]
        assert set(fold["id"]) == set(folds.loc[folds["fold"] == k, "id"])
        assert list(pd.read_csv(folder / f"fold{k}_test.csv").columns) == ["id", "pred"]
        assert (folder / f"fold{k}.safetensors").exists()
        assert {"epoch", "lr", "train_loss", "valid_loss", "roc_auc"} <= set(pd.read_csv(folder / f"fold{k}_log.csv"))
    oof, test = pd.read_csv(folder / "oof.csv"), pd.read_csv(folder / "test.csv")
    assert list(oof["id"]) == list(folds["id"])
    truth = pd.read_csv(trained.raw / "train.csv").set_index("image_id")["sick"]
    assert (oof.set_index("id")["target"] == truth.reindex(oof["id"])).all()
    assert oof["pred"].between(0, 1).all()
    assert len(test) == 12

    info = json.loads((folder / "run.json").read_text())
    assert info["config"]["train"]["epochs"] == 2
    assert set(info["fold_scores"]) == {"0", "1", "2"}
    assert info["score"] > 0.5
    assert info["folds_hash"] == json.loads((trained.derived / "folds.json").read_text())["hash"]
    assert info["versions"]["torch"]
    assert not list(folder.glob("*.part")) + list(folder.glob("*.ckpt"))


def test_unreadable_test_image_gets_the_stated_fallback(trained: Workplace) -> None:
    for k in range(3):
        test = pd.read_csv(trained.runs / "quick" / f"fold{k}_test.csv").set_index("id")["pred"]
        assert test["te0003"] == pytest.approx(test.drop("te0003").mean(), rel=1e-5)
    info = json.loads((trained.runs / "quick" / "run.json").read_text())
    assert info["folds"]["0"]["unreadable_test"] == ["te0003"]


def test_without_a_readable_test_image_the_training_prior_is_predicted_and_said(tiny: Workplace) -> None:
    for k in range(12):
        (tiny.raw / "test" / f"te{k:04d}.png").write_bytes(b"not an image")
    line = tiny.refused("01_preprocess.py", "--sizes", 32)
    assert "12 of 12 test images can't be read" in line and "unreadable: 0.5" in line
    tiny.describe(unreadable=1)
    tiny.run("01_preprocess.py", "--sizes", 32)
    fold_of = pd.read_csv(tiny.derived / "folds.csv").set_index("id")["fold"]
    sick = pd.read_csv(tiny.raw / "train.csv").set_index("image_id")["sick"].reindex(fold_of.index)
    quick = ("--recipe", "quick.yaml", "--fold", 0, "train.epochs=1", "train.threads=1", "train.precision=plain")
    steps = {
        "quick": ("02_train.py", *quick),
        "quick_svm": ("04_embed.py", "--run", "quick", "--head", "svm"),
        "quick_flip": ("05_predict.py", "--run", "quick", "predict.tta=flip"),
    }
    for run, step in steps.items():
        assert "12 of 12 images can't be read (te" in (said := tiny.run(*step).stderr), said
        assert "the mean target of the training rows" in said
        pred = pd.read_csv(tiny.runs / run / "fold0_test.csv")["pred"]
        assert pred.to_numpy() == pytest.approx(sick[fold_of != 0].mean(), rel=1e-5)


def test_a_finished_fold_says_so_and_changes_nothing(trained: Workplace) -> None:
    before = (trained.runs / "quick" / "fold0.csv").read_bytes()
    done = trained.run("02_train.py", "--recipe", "quick.yaml", "--fold", 0)
    assert "fold 0: done already" in done.stderr
    assert (trained.runs / "quick" / "fold0.csv").read_bytes() == before


def test_another_recipe_under_the_same_name_is_refused(trained: Workplace) -> None:
    line = trained.refused("02_train.py", "--recipe", "quick.yaml", "--fold", 0, "train.epochs=3")
    assert "train.epochs: 2 -> 3" in line
    assert "--name" in line


def test_same_seed_same_bytes_and_a_killed_run_too(trained: Workplace, tmp_path: Path) -> None:
    """A second run, killed while it trains and run again, writes the same bytes."""
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    for moment in (0.5, 0.8):
        killed = place.run("02_train.py", "--recipe", "quick.yaml", fault=("KILL", f"{moment}s"), check=False)
        assert killed.returncode < 0
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    for name in ("oof.csv", "test.csv", "fold1.csv", "fold2.safetensors"):
        assert (place.runs / "quick" / name).read_bytes() == (trained.runs / "quick" / name).read_bytes(), name


def test_hours_stop_in_time_and_the_next_run_continues(trained: Workplace, tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", 0)
    stopped = place.run("02_train.py", "--recipe", "quick.yaml", "--fold", 1, "--hours", 0, check=False)
    assert stopped.returncode == 75
    assert "run the same command to continue" in stopped.stderr
    assert not (place.runs / "quick" / "oof.csv").exists()
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    assert (place.runs / "quick" / "oof.csv").read_bytes() == (trained.runs / "quick" / "oof.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fold", "9"], "choose one of 0, 1, 2, or all"),
        (["--recipe", "quikc.yaml"], "no such file"),
        (["--recipe", "baselin"], "did you mean 'baseline'"),
        (["--name", "x", "image_size=48"], "made so far: 32"),
        (["--name", "x", "model.name=test_resnett"], "did you mean 'test_resnet'"),
        (["--name", "x", "model.pretrained=true", "model.mode=finetune"], "input/weights"),
        (["--name", "x", "model.mode=finetune", "model.pretrained=true", "model.weights=no.pth"], "no such file"),
        (["--name", "x", "augment.preset=mediun"], "did you mean 'medium'"),
        (["--name", "x", "train.optimizer=adamm"], "train.optimizer=adamm"),
        (["--name", "x", "model.kwargs={nonsense: 1}"], "nonsense"),
    ],
)
def test_bad_training_arguments_are_one_clear_line(trained: Workplace, arguments: list[str], message: str) -> None:
    given = arguments if "--recipe" in arguments else ["--recipe", "quick.yaml", *arguments]
    assert message in trained.refused("02_train.py", *given)


def test_a_run_that_never_began_binds_nobody(trained: Workplace) -> None:
    """A misspelt model name, mended, goes on under the same name."""
    given = ["--recipe", "quick.yaml", "--fold", 0, "--name", "mended", "train.epochs=1"]
    trained.refused("02_train.py", *given, "model.name=test_resnett")
    trained.run("02_train.py", *given)
    shutil.rmtree(trained.runs / "mended")


def test_the_bits_do_not_depend_on_the_environments_threads(trained: Workplace, tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", 0, "train.loaders=3", OMP_NUM_THREADS="1")
    name = "fold0.safetensors"
    assert (place.runs / "quick" / name).read_bytes() == (trained.runs / "quick" / name).read_bytes()


def test_training_before_preprocessing_says_what_to_run(tiny: Workplace) -> None:
    assert "01_preprocess.py" in tiny.refused("02_train.py", "--fold", 0)


# --- 03, 05, other tasks ----------------------------------------------------------------------------------


def test_metadata_run(trained: Workplace) -> None:
    folder = trained.runs / "lightgbm"
    oof = pd.read_csv(folder / "oof.csv")
    assert len(oof) == 59
    assert len(pd.read_csv(folder / "test.csv")) == 12
    before = (folder / "oof.csv").read_bytes()
    trained.run("03_metadata.py")
    assert (folder / "oof.csv").read_bytes() == before


def test_predict_again_gives_the_same_and_views_make_a_new_run(trained: Workplace) -> None:
    before = (trained.runs / "quick" / "oof.csv").read_bytes()
    trained.run("05_predict.py", "--run", "quick")
    assert (trained.runs / "quick" / "oof.csv").read_bytes() == before
    trained.run("05_predict.py", "--run", "quick", "predict.tta=d4")
    assert len(pd.read_csv(trained.runs / "quick_d4" / "oof.csv")) == 59
    shutil.rmtree(trained.runs / "quick_d4")


def test_predict_any_folder(trained: Workplace, tmp_path: Path) -> None:
    """The same images from a loose folder get the same predictions; a broken one is named."""
    done = trained.run(
        "05_predict.py", "--run", "quick", "--images", trained.raw / "test", "--out", tmp_path / "new.csv"
    )
    assert "te0003.png" in done.stderr
    new = pd.read_csv(tmp_path / "new.csv").set_index("id")["pred"].rename(lambda name: name.removesuffix(".png"))
    known = pd.read_csv(trained.runs / "quick" / "test.csv").set_index("id")["pred"]
    pd.testing.assert_series_equal(new.sort_index(), known.sort_index(), check_names=False, rtol=1e-5)


def _other_task(place: Workplace, column: str, values, **changes: object) -> None:  # type: ignore[no-untyped-def]
    train = pd.read_csv(place.raw / "train.csv").assign(**{column: values})
    train.to_csv(place.raw / "train.csv", index=False)
    place.describe(target=column, sample_submission=None, group=None, **changes)


def test_multiclass_end_to_end(tiny: Workplace) -> None:
    names = np.array(["ant", "bee", "wasp <b>"])
    _other_task(tiny, "kind", names[np.arange(60) % 3], task="multiclass", metric="log_loss")
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml", "augment.mixup=0.3", "augment.cutmix=0.3")
    oof = pd.read_csv(tiny.runs / "quick" / "oof.csv")
    assert list(oof.columns) == ["id", "fold", "target", "pred_ant", "pred_bee", "pred_wasp <b>"]
    assert np.allclose(oof.filter(like="pred_").sum(axis=1), 1, atol=1e-5)
    tiny.run("06_blend.py", "--runs", "quick", "--method", "mean", "--name", "one")
    made = pd.read_csv(tiny.submissions / "one.csv")
    assert list(made.columns) == ["image_id", *names]  # log loss wants probabilities
    assert np.allclose(made[list(names)].sum(axis=1), 1, atol=1e-5)


def test_multilabel_and_regression_end_to_end(tiny: Workplace) -> None:
    train = pd.read_csv(tiny.raw / "train.csv").assign(left=np.arange(60) % 2, right=np.arange(60) % 5 == 0)
    train.astype({"right": int}).to_csv(tiny.raw / "train.csv", index=False)
    tiny.describe(task="multilabel", target=["left", "right"], metric="roc_auc", sample_submission=None)
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    oof = pd.read_csv(tiny.runs / "quick" / "oof.csv")
    assert list(oof.columns) == ["id", "fold", "target_left", "target_right", "pred_left", "pred_right"]
    tiny.run("03_metadata.py")

    tiny.describe(
        name="regress",
        root=str(tiny.raw),
        task="regression",
        target="age",
        metric="rmse",
        metadata={"categorical": ["site"]},
    )
    line = tiny.refused("01_preprocess.py", "--sizes", 32)
    assert "'age' is empty" in line
    train["age"] = train["age"].fillna(50)
    train.to_csv(tiny.root / "input" / "tiny" / "train.csv", index=False)
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    oof = pd.read_csv(tiny.runs / "quick" / "oof.csv")
    assert abs(oof["pred"].mean() - oof["target"].mean()) < 15


def test_folder_per_class(tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    table = pd.read_csv(place.raw / "train.csv")
    for name, sick in zip(table["image_id"], table["sick"], strict=True):
        folder = place.raw / "classes" / ("sick" if sick else "well")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(place.raw / "train" / f"{name}.png", folder)
    place.competition.write_text(
        yaml.safe_dump(
            {
                "name": "tiny",
                "task": "multiclass",
                "metric": "accuracy",
                "folds": {"n": 3},
                "train": {"folders": "classes"},
                "test": {"images": "test"},
            }
        )
    )
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("02_train.py", "--recipe", "quick.yaml")
    oof = pd.read_csv(place.runs / "quick" / "oof.csv")
    assert "sick/tr0000.png" in set(oof["id"])
    assert list(oof.filter(like="pred_").columns) == ["pred_sick", "pred_well"]
    place.run("06_blend.py", "--method", "mean", "--name", "s")
    made = pd.read_csv(place.submissions / "s.csv")
    assert len(made) == 12
    assert "te0000.png" in set(made["id"])
    cv2.imwrite(str(place.raw / "classes" / "stray.png"), np.zeros((9, 9, 3), np.uint8))
    assert "stray.png: lies beside the class folders" in place.refused("01_preprocess.py", "--sizes", 32)


STAGES = ["No_DR", "Mild", "Moderate", "Severe"]


def test_grades_with_names_need_their_order(tiny: Workplace) -> None:
    stage = [STAGES[k % 4] for k in range(60)]
    pd.read_csv(tiny.raw / "train.csv").assign(stage=stage).to_csv(tiny.raw / "train.csv", index=False)
    tiny.describe(task="multiclass", target="stage", metric="quadratic_weighted_kappa", sample_submission=None)
    said = tiny.refused("01_preprocess.py", "--sizes", 32)
    assert "`classes: [Mild, Moderate, No_DR, Severe]`" in said
    tiny.describe(classes=["Mild", "No_DR", "Moderate"])
    assert "class 'Severe' is in the data, not in `classes`" in tiny.refused("01_preprocess.py", "--sizes", 32)
    tiny.describe(classes=STAGES)
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("03_metadata.py")
    table = pd.read_csv(tiny.runs / "lightgbm" / "oof.csv")
    assert list(table)[3:] == [f"pred_{name}" for name in STAGES]
    truth = table["target"].map(STAGES.index)
    expected = cohen_kappa_score(truth, table.iloc[:, 3:].to_numpy().argmax(axis=1), weights="quadratic")
    assert json.loads((tiny.runs / "lightgbm" / "run.json").read_text())["score"] == pytest.approx(expected)
    about = load_competition(str(tiny.competition))
    assert oof.score(about, table[[*table.columns[:3], *sorted(table.columns[3:])]]) == pytest.approx(expected)
    tiny.describe(classes=None, metric="log_loss")
    said = tiny.refused("02_train.py", "--recipe", "quick.yaml", "train.loss=ordinal")
    assert "train.loss=ordinal goes by the order of the classes" in said


def test_labels_are_taken_as_the_yaml_file_writes_them(tmp_path: Path) -> None:
    text = "name: a\ntask: binary\nmetric: auc\ntrain: {table: t.csv, images: '{id}.png'}\nfolds: {n: 3}\n"
    more = "positive: yes\ngroup: null\nturned_copies: no\nimage: {clahe: 2.0, frame: 3}"
    (tmp_path / "a.yaml").write_text(text + more)
    about = load_competition(str(tmp_path / "a.yaml"))
    assert (about.positive, about.group, about.turned_copies, about.folds.n) == ("yes", None, False, 3)
    assert (about.image.clahe, about.image.frame) == (2.0, 3)
    text = text.replace("binary", "multiclass") + "classes: [no, yes, 007, 2020-01-01]"
    (tmp_path / "b.yaml").write_text(text)
    assert load_competition(str(tmp_path / "b.yaml")).classes == ["no", "yes", "007", "2020-01-01"]


@pytest.mark.parametrize("labels", [("no", "yes"), ("1", "2"), ("False", "True")])
def test_the_positive_label_needs_no_quotes(tiny: Workplace, labels: tuple[str, str]) -> None:
    table = pd.read_csv(tiny.raw / "train.csv")
    table.assign(sick=[labels[k] for k in table["sick"]]).to_csv(tiny.raw / "train.csv", index=False)
    tiny.competition.write_text(tiny.competition.read_text() + f"positive: {labels[1]}\n")
    tiny.run("01_preprocess.py", "--sizes", 32)
    read = pd.read_parquet(tiny.derived / "index.parquet")
    assert read["target"].dropna().tolist() == table["sick"].tolist()


def test_several_images_make_a_submission_row(tiny: Workplace) -> None:
    train = pd.read_csv(tiny.raw / "train.csv")
    test = pd.read_csv(tiny.raw / "test.csv")
    rows = pd.DataFrame({"row": sorted(test["patient"].unique())}).assign(sick=0)
    rows.to_csv(tiny.raw / "sample_submission.csv", index=False)
    tiny.describe(submission={"row_id": "patient", "aggregate": "mean"})
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml")
    tiny.run("06_blend.py", "--method", "mean", "--name", "s")
    made = pd.read_csv(tiny.submissions / "s.csv").set_index("row")["sick"]
    pred = pd.read_csv(tiny.runs / "quick" / "test.csv").set_index("id")["pred"]
    expected = test.assign(pred=pred.reindex(test["image_id"]).to_numpy()).groupby("patient")["pred"].mean()
    pd.testing.assert_series_equal(made, expected.reindex(made.index), check_names=False, rtol=1e-6)
    info = json.loads((tiny.runs / "quick" / "run.json").read_text())
    from foldwise import metrics

    oof = pd.read_csv(tiny.runs / "quick" / "oof.csv")
    patient = train.set_index("image_id")["patient"].reindex(oof["id"]).to_numpy()
    by_row = oof.groupby(patient).agg({"target": "max", "pred": "mean"})
    assert info["score"] == pytest.approx(metrics.score("roc_auc", by_row["target"], by_row["pred"]))


def test_labels_in_file_names(tmp_path: Path) -> None:
    """The shape of dogs-vs-cats: train/cat.0.jpg, and a sample submission that lists the test images."""
    place = Workplace(tmp_path, tmp_path / "pets.yaml")
    rng = np.random.default_rng(0)
    for split in ("train", "test1"):
        (tmp_path / "input" / "pets" / split).mkdir(parents=True)
    for k in range(24):
        name = f"{'dog' if k % 2 else 'cat'}.{k}.jpg"
        cv2.imwrite(
            str(tmp_path / "input" / "pets" / "train" / name), rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        )
    for k in range(1, 6):
        cv2.imwrite(
            str(tmp_path / "input" / "pets" / "test1" / f"{k}.jpg"), rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        )
    pd.DataFrame({"id": range(1, 6), "label": 0}).to_csv(
        tmp_path / "input" / "pets" / "sampleSubmission.csv", index=False
    )
    shipped = yaml.safe_load((REPOSITORY / "src" / "competitions" / "dogs-vs-cats.yaml").read_text())
    place.competition.write_text(yaml.safe_dump({**shipped, "name": "pets", "folds": {"n": 2}}))
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("02_train.py", "--recipe", "quick.yaml")
    place.run("06_blend.py", "--method", "mean", "--name", "s")
    made = pd.read_csv(place.submissions / "s.csv")
    assert made["id"].tolist() == [1, 2, 3, 4, 5]
    assert set(made["label"]) <= {0, 1}
    oof = pd.read_csv(place.runs / "quick" / "oof.csv")
    assert (oof["target"] == oof["id"].str.startswith("dog")).all()


def _edit(place: Workplace, file: str, column: str, row: int, value: str) -> None:
    table = pd.read_csv(place.raw / file, dtype=str)
    table.loc[row, column] = value
    table.to_csv(place.raw / file, index=False)


def test_extra_images_are_trained_on_and_never_validated_on(tiny: Workplace) -> None:
    """Images from elsewhere join every fold, but not the fold that holds a copy of them."""
    other = tiny.root / "elsewhere"
    (other / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(9)
    for k in range(6):
        cv2.imwrite(str(other / "pictures" / f"x{k}.png"), picture(rng, bool(k % 2)))
    shutil.copy(tiny.raw / "train" / "tr0010.png", other / "pictures" / "x6.png")
    table = pd.DataFrame({"image_id": [f"x{k}" for k in range(7)], "sick": [0, 1, 0, 1, 0, 1, 0]})
    table.to_csv(other / "more.csv", index=False)
    tiny.describe(extra=[{"table": "more.csv", "images": "pictures/{image_id}.png", "root": str(other)}])
    tiny.run("01_preprocess.py", "--sizes", 32)
    folds = pd.read_csv(tiny.derived / "folds.csv").set_index("id")["fold"]
    assert len(folds) == 59
    done = tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    for fold in range(3):
        own = int((folds != fold).sum())
        extra = 6 if folds["tr0010"] == fold else 7
        assert f"fold {fold}: {own + extra} train" in done.stderr
    assert len(pd.read_csv(tiny.runs / "quick" / "oof.csv")) == 59


def test_each_frame_a_row(tiny: Workplace) -> None:
    """A multi-frame DICOM becomes a row a frame, its frames share a fold, and the submission has a row a file."""
    from pydicom.data import get_testdata_file

    source = Path(str(get_testdata_file("rtdose.dcm", download=False)))  # 15 frames
    for split, ids in (("train", ["tr0000", "tr0001"]), ("test", ["te0000"])):
        for name in ids:
            shutil.copy(source, tiny.raw / split / f"{name}.png")  # found by what it is, not by its ending
    tiny.describe(frames="each")
    tiny.run("01_preprocess.py", "--sizes", 32)
    index = pd.read_parquet(tiny.derived / "index.parquet").set_index(["split", "id"])
    assert len(index) == 72 + 3 * 14
    assert index.loc[("train", "tr0000#14"), "row_id"] == "tr0000"
    folds = pd.read_csv(tiny.derived / "folds.csv")
    assert folds[folds["id"].str.startswith(("tr0000", "tr0001"))]["fold"].nunique() == 1
    images = np.load(tiny.derived / "images_32.npy")
    assert len({image.tobytes() for image in images[:15]}) > 10
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    tiny.run("06_blend.py", "--method", "mean", "--name", "s")
    made = pd.read_csv(tiny.submissions / "s.csv")
    assert len(made) == 12
    pred = pd.read_csv(tiny.runs / "quick" / "test.csv").set_index("id")["pred"]
    frames = pred[pred.index.str.startswith("te0000#")]
    assert len(frames) == 15
    assert made.set_index("image_id").loc["te0000", "sick"] == pytest.approx(frames.mean(), rel=1e-6)


# --- found by trying to break it --------------------------------------------------------------------------


def test_classes_named_by_numbers_or_by_NA_keep_their_names(tiny: Workplace) -> None:
    """'01', '1' and 'NA' are three classes; they are trained, scored, gathered and blended as such."""
    _other_task(tiny, "kind", np.array(["01", "1", "NA"])[np.arange(60) % 3], task="multiclass", metric="accuracy")
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=4")
    oof = pd.read_csv(tiny.runs / "quick" / "oof.csv", dtype=str, keep_default_na=False)
    assert set(oof["target"]) == {"01", "1", "NA"}
    info = json.loads((tiny.runs / "quick" / "run.json").read_text())
    named = oof.filter(like="pred_").astype(float).idxmax(axis=1).str.removeprefix("pred_")
    assert info["score"] == pytest.approx((named == oof["target"]).mean())
    tiny.run("06_blend.py", "--method", "mean", "--name", "s")
    made = pd.read_csv(tiny.submissions / "s.csv", dtype=str, keep_default_na=False)
    assert set(made["kind"]) <= {"01", "1", "NA"}


def test_models_of_other_folds_predict_nothing(tiny: Workplace) -> None:
    """After --new-folds the old weights have seen rows they would predict: 04, 05 and 06 refuse the run."""
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    tiny.describe(folds={"n": 3, "seed": 5})
    tiny.run("01_preprocess.py", "--sizes", 32, "--new-folds")
    assert "trained on other folds" in tiny.refused("05_predict.py", "--run", "quick", "predict.tta=flip")
    assert "trained on other folds" in tiny.refused("04_embed.py", "--run", "quick")
    assert "made on other folds" in tiny.refused("06_blend.py", "--runs", "quick")
    assert "--restart" in tiny.refused("02_train.py", "--recipe", "quick.yaml", "--fold", 0, "train.epochs=1")


def test_a_cache_that_is_not_vouched_for_is_not_read(trained: Workplace, tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    facts = place.derived / "images_32.json"
    text = facts.read_text()
    facts.unlink()  # as after a kill between the files
    assert "not there yet" in place.refused("02_train.py", "--recipe", "quick.yaml", "--fold", 0)
    facts.write_text(text)
    place.describe(image={"grayscale": True})
    assert "other `image` options" in place.refused("02_train.py", "--recipe", "quick.yaml", "--fold", 0)


def test_nothing_trained_is_cleared_by_mistake(trained: Workplace, tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    shutil.copytree(trained.runs, place.runs)
    weights = sorted(path.read_bytes() for path in (place.runs / "quick").glob("*.safetensors"))
    quick = ("02_train.py", "--recipe", "quick.yaml", "--restart")
    assert "another step" in place.refused("03_metadata.py", "--name", "quick")
    assert "would clear fold 1, 2" in place.refused(*quick, "--fold", 0, "train.lr=1e-3")
    assert "did you mean" in place.refused(*quick, "--fold", "all", "model.name=test_resnett")
    assert "made so far: 32" in place.refused(*quick, "--fold", "all", "image_size=64")
    assert sorted(path.read_bytes() for path in (place.runs / "quick").glob("*.safetensors")) == weights


def test_rows_that_come_and_go_are_named(trained: Workplace, tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    shutil.copytree(trained.derived, place.derived)
    table = pd.read_csv(place.raw / "train.csv")
    table[table["image_id"] != "tr0010"].to_csv(place.raw / "train.csv", index=False)
    assert "'tr0010' is only in folds.csv" in place.refused("01_preprocess.py", "--sizes", 32)
    assert len(pd.read_parquet(place.derived / "index.parquet")) == 72  # the index is that of the folds still
    table.to_csv(place.raw / "train.csv", index=False)
    (place.derived / "folds.csv").unlink()
    place.run("01_preprocess.py", "--sizes", 32)
    assert (place.derived / "folds.csv").read_bytes() == (trained.derived / "folds.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["06_blend.py", "--name", "../../zz"], "is no name"),
        (["02_train.py", "--name", "a/b"], "is no name"),
        (["04_embed.py", "--run", "quick", "image_size=64"], "only predict.* can change now"),
        (["05_predict.py", "--run", "quick", "--images", "nowhere"], "no such folder"),
        (["02_train.py", "--recipe", "quick.yaml", "seed=-1"], "seed"),
        (["02_train.py", "--recipe", "quick.yaml", "model.mean=[0.5]"], "model.mean"),
    ],
)
def test_more_bad_arguments(trained: Workplace, arguments: list[str], message: str) -> None:
    assert message in trained.refused(*arguments)


def test_overrides_may_stand_anywhere(trained: Workplace) -> None:
    done = trained.run("02_train.py", "seed=0", "--recipe", "quick.yaml", "--fold", 0, "train.epochs=2")
    assert "done already" in done.stderr


def test_metadata_with_two_folds_odd_names_and_no_test(tiny: Workplace) -> None:
    for split in ("train", "test"):
        table = pd.read_csv(tiny.raw / f"{split}.csv").rename(columns={"age": 'age[y]: "x"'})
        table.to_csv(tiny.raw / f"{split}.csv", index=False)
    tiny.describe(metadata={"numeric": ['age[y]: "x"'], "categorical": ["site"]}, folds={"n": 2}, test=None)
    tiny.run("01_preprocess.py", "--sizes", 32)
    tiny.run("03_metadata.py")
    tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1")
    tiny.run("04_embed.py", "--run", "quick", "--head", "logreg")
    assert len(pd.read_csv(tiny.runs / "quick_logreg" / "oof.csv")) == 59
    tiny.describe(metadata={"numeric": ["width"]})
    assert "'width'" in tiny.refused("01_preprocess.py", "--sizes", 32)
