"""Step 3: encoders that see a fold's training rows only, four libraries, and whatever a table of metadata may hold."""

from __future__ import annotations

import importlib.util
import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace, make_tiny
from sklearn.metrics import roc_auc_score

from foldwise import UserError, metrics
from foldwise.core import pieces
from foldwise.data import folds
from foldwise.data.competition import load_competition
from foldwise.data.encoder import Codes, Components, Encoder, MeanTarget, Numbers, Rows
from foldwise.data.runs import RunInfo, check_folds, load_run
from foldwise.report.importance import importance
from foldwise.tabular import boosting, features, groups, learners

MODELS = ["lightgbm", "xgboost", "catboost", "logreg"]
QUICKLY = {"rounds": 60, "patience": 10}


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install {'xgboost-cpu' if package == 'xgboost' else package}")


def learner(name: str) -> learners.Learner:
    need(*{"xgboost": ["xgboost"], "catboost": ["catboost"]}.get(name, []))
    return learners.get(name)


def make(root: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 240, tests: int = 60, **changes: object):  # type: ignore[no-untyped-def]
    """(competition, index, folds) of a made-up table: age and site tell the target, patients have two rows."""
    monkeypatch.setenv("FOLDWISE_ROOT", str(root))
    text = {
        "name": "made",
        "task": "binary",
        "metric": "roc_auc",
        "id": "id",
        "target": "y",
        "group": "patient",
        "train": {"table": "train.csv", "images": "{id}.png"},
        "test": {"table": "test.csv", "images": "{id}.png"},
        "metadata": {"numeric": ["age"], "categorical": ["site"]},
        **changes,
    }
    (root / "made.yaml").write_text(json.dumps(text))
    rng = np.random.default_rng(0)
    n = rows + tests
    age = rng.normal(50, 15, n)
    site = rng.choice(["arm", "leg", "head"], n)
    odds = (age - 50) / 8 + 2.0 * (site == "head") - 0.5
    table = pd.DataFrame(
        {
            "split": ["train"] * rows + ["test"] * tests,
            "id": [f"r{k:04d}" for k in range(n)],
            "group": [f"p{k // 2}" for k in range(n)],
            "path": "x.png",
            "width": 64,
            "height": 48,
            "bytes": rng.integers(1000, 2000, n),
            "format": "PNG",
            "error": None,
            "target": (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float),
            "age": np.where(rng.random(n) < 0.1, np.nan, age),
            "site": pd.Series(site, dtype="string"),
        }
    )
    table["row_id"] = table["id"]
    table.loc[table["split"] == "test", "target"] = np.nan
    fold_table = table.loc[: rows - 1, ["id", "group"]].assign(fold=(np.arange(rows) // 2) % 4)
    return load_competition(str(root / "made.yaml")), table, fold_table


def fitted(made, model: str = "lightgbm", wish: features.Wish | None = None, **plan: object):  # type: ignore[no-untyped-def]
    about, table, fold_table = made
    found = learner(model)
    settings = {**found.defaults, **QUICKLY}
    inputs = features.gather(about, table, fold_table, wish or features.Wish(), plan.get("target_encode", ()))  # type: ignore[arg-type]
    problem = boosting.Problem.of(about, table, fold_table, inputs)
    parts = boosting.fit(problem, boosting.Plan(found, settings, **plan))  # type: ignore[arg-type]
    boosting.save_models(about.file.parent, parts)
    for part in parts:  # as JSON and text, every model says the same
        rows = inputs.of_fold(part.fold)[np.arange(inputs.training, len(inputs.frame))]
        again = boosting.load_model(about.file.parent, part.fold).predict(rows)
        assert again == pytest.approx(part.test, rel=1e-12 if model == "catboost" else 0, abs=0)  # its JSON rounds
    return problem, parts


@pytest.mark.parametrize("model", ["lightgbm", "logreg"])
def test_folds_kept_by_a_stopped_step_are_those_that_it_would_fit(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, _ = fitted(made := make(tmp_path, monkeypatch), model)
    plan = boosting.Plan(learner(model), {**learner(model).defaults, **QUICKLY})
    key, written = problem.digest({}), []
    for again in (False, True):
        if again:
            monkeypatch.setattr(boosting, "_fold", None)
        with suppress(KeyboardInterrupt), pieces.of_run(tmp_path, "run", key, boosting.KINDS) as kept:
            boosting.save_models(tmp_path, parts := boosting.fit(problem, plan, piece=kept.keep))
            files = [path.read_bytes() for path in sorted(tmp_path.glob("fold*_model.npz"))]
            written.append([oof_of(problem, parts).tobytes(), importance(problem, parts).to_csv(), *files])
            raise KeyboardInterrupt
    assert written[0] == written[1] and len(written[0]) == 6
    about, table, fold_table = made
    other = table.assign(age=table["age"] + 1)
    inputs = features.gather(about, other, fold_table, features.Wish(), ())
    assert boosting.Problem.of(about, other, fold_table, inputs).digest({}) != key != problem.digest({"seed": 1})


def oof_of(problem: boosting.Problem, parts: list[boosting.Fold]) -> np.ndarray:
    pred = np.empty((len(problem.y), problem.outputs))
    for part in parts:
        pred[problem.fold_of == part.fold] = part.valid
        assert np.isfinite(part.valid).all() and np.isfinite(part.test).all()
        assert part.test.shape == (len(problem.inputs.frame) - problem.inputs.training, problem.outputs)
    return pred


# --- encoders ---------------------------------------------------------------------------------------------


ODD = pd.DataFrame(
    {
        "age": [1.0, 2.0, np.nan, np.inf],
        "site": pd.Series(["x", "y", None, "new"], dtype="string"),
        "flag": [True, False, True, True],
        "seen": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2021-01-01"]),
        "same": [5, 5, 5, 5],
        "empty": [np.nan] * 4,
        "count": pd.array([1, None, 3, 4], dtype="Int64"),
        "maybe": pd.array([True, None, False, True], dtype="boolean"),
    }
)


@pytest.mark.smoke
def test_numbers_of_odd_columns_are_finite_and_come_back_from_json() -> None:
    encoder = Numbers.fit(ODD.iloc[:3], list(ODD))
    made = pd.DataFrame(encoder.transform(ODD), columns=encoder.names)
    assert made.dtypes.eq(np.float32).all() and np.isfinite(made.to_numpy()).all()
    assert np.abs(made.to_numpy()).max() <= 10  # 2021 is a year from the dates known
    assert made["age missing"].tolist() == [0, 0, 1, 1]  # infinite is missing
    assert made.loc[3, ["site=x", "site=y", "site missing"]].tolist() == [0, 0, 0]  # never seen
    assert made.loc[2, ["site=x", "site=y", "site missing"]].tolist() == [0, 0, 1]
    assert (made[["same", "empty"]] == 0).all(axis=None)
    assert made["flag"].nunique() == 2 and made["seen"].iloc[0] < made["seen"].iloc[1]
    again = Numbers.from_state(json.loads(json.dumps(encoder.state())))
    assert again == encoder and (again.transform(ODD) == encoder.transform(ODD)).all()
    assert Numbers.fit(ODD, []).transform(ODD).shape == (4, 0)
    with pytest.raises(UserError, match="'weight' is not there"):
        Numbers.fit(ODD, ["weight"])
    with pytest.raises(UserError, match="not the state"):
        Numbers.from_state({"columns": [{"nonsense": 1}]})


@pytest.mark.smoke
def test_codes_keep_numbers_and_know_only_the_categories_of_training() -> None:
    codes = Codes.fit(ODD.iloc[:3], ["site", "age", "seen"])
    made = codes.transform(ODD)
    assert codes.categorical == [0]
    assert made[:2, 0].tolist() == [0, 1] and np.isnan(made[2:, 0]).all()
    assert np.isnan(made[2:, 1]).all() and made[1, 2] - made[0, 2] == 1


@pytest.mark.smoke
def test_target_means_are_smoothed_and_a_row_never_sees_its_own_target() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"id": [f"only{k}" for k in range(100)], "c": rng.choice(["a", "b", None], 100)})
    y = rng.integers(0, 2, (100, 1)).astype(float)
    inner = np.arange(100) % 5
    mean = MeanTarget.fit(rows, "c", y)
    a = (rows["c"] == "a").to_numpy()
    assert mean.transform(rows[a])[0, 0] == pytest.approx((y[a].sum() + 20 * y.mean()) / (a.sum() + 20))
    assert mean.transform(pd.DataFrame({"c": ["new"]}))[0, 0] == pytest.approx(y.mean())
    gaps = rows["c"].isna().to_numpy()
    assert mean.transform(rows[gaps])[0, 0] == pytest.approx((y[gaps].sum() + 20 * y.mean()) / (gaps.sum() + 20))
    own = MeanTarget.out_of_fold(rows, "id", y, inner)  # a value of its own in every row: nothing to know
    for held in range(5):
        assert own[inner == held, 0] == pytest.approx(y[inner != held].mean())
    flipped = y.copy()
    flipped[7] = 1 - flipped[7]
    changed = MeanTarget.out_of_fold(rows, "c", flipped, inner) != MeanTarget.out_of_fold(rows, "c", y, inner)
    assert not changed[inner == inner[7]].any() and changed[inner != inner[7]].any()


@pytest.mark.smoke
def test_components_are_of_the_training_rows_and_rows_without_image_are_missing() -> None:
    values = np.random.default_rng(0).normal(size=(50, 8)) * [9, 3, 1, 1, 1, 1, 1, 1]
    values[3] = np.nan
    part = Components.fit(values[:40], 3)
    made = part.transform(values)
    assert made.shape == (50, 3) and np.isnan(made[3]).all() and np.isfinite(np.delete(made, 3, axis=0)).all()
    assert abs(np.corrcoef(made[40:, 0], values[40:, 0])[0, 1]) > 0.99
    assert Components.fit(values[:1], 3).transform(values).shape == (50, 0)


@pytest.mark.smoke
def test_an_encoder_learns_from_its_training_rows_only() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"age": rng.normal(size=80), "site": rng.choice(["a", "b"], 80), "city": rng.choice(list("uvw"), 80)}
    )
    y = rng.integers(0, 2, (60, 1)).astype(float)
    embedded = rng.normal(size=(80, 6))
    other = frame.copy()
    other.loc[60:, "age"], other.loc[60:, "site"], other.loc[60:, "city"] = 1e6, "z", "z"
    learn = np.arange(60)
    for linear in (True, False):
        found = []
        for rows in (
            Rows(frame, {"e": embedded}),
            Rows(other, {"e": np.where(np.arange(80)[:, None] < 60, embedded, 99)}),
        ):
            encoder, x = Encoder.fit(rows[learn], y, learn % 3, ["city"], 2, linear)
            found.append((x, encoder.transform(rows[learn]), encoder.sources))
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found[0][:2], found[1][:2], strict=True))
        assert set(found[0][2]) == {"age", "site", "city", "e"}


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_and_its_contributions_add_up(model: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    made = make(tmp_path, monkeypatch)
    problem, parts = fitted(made, model, target_encode=["site"] if model == "logreg" else [])
    pred = oof_of(problem, parts)[:, 0]
    assert metrics.score("roc_auc", problem.y, pred) > 0.74
    for part in parts:
        odds = np.log(part.valid / (1 - part.valid))[:, 0]
        assert np.abs(part.contributions[:, 0].sum(axis=1) - odds).max() < 1e-4
        assert sum(part.importance.values()) == pytest.approx(1) and part.importance["age"] > 0.2
    again = oof_of(*fitted(made, model, target_encode=["site"] if model == "logreg" else []))
    assert (again[:, 0] == pred).all()


@pytest.mark.parametrize("model", MODELS)
def test_classes_absent_from_a_fold_and_first_seen_categories(model: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Class c only in fold 0: absent from its training rows, and from the validation rows of every other fold."""
    about, table, fold_table = make(tmp_path, monkeypatch, task="multiclass", metric="log_loss")
    names = np.where(np.arange(len(table)) % 3 == 0, "b", "a")
    names[:240][(fold_table["fold"] == 0) & (np.arange(240) % 5 == 0)] = "c"
    table["target"] = pd.Series(names).where(table["split"] == "train", None)
    table.loc[table["split"] == "test", "site"] = "tail"
    table.loc[5, "site"] = "ear"
    problem, parts = fitted((about, table, fold_table), model, target_encode=["site"])
    pred = oof_of(problem, parts)
    assert np.allclose(pred.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(pred[problem.fold_of == 0, 2], 0.5 / (180 + 1.5)) and (pred[problem.fold_of != 0, 2] > 0).all()
    assert metrics.score("log_loss", problem.y, pred) < 1.2
    assert "no training row is of class c" in " ".join(parts[0].notes)
    assert parts[0].contributions.shape == (60, 3, 3)


@pytest.mark.parametrize("model", MODELS)
def test_a_fold_of_one_row_and_one_whose_training_rows_hold_one_class(model: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(tmp_path, monkeypatch, rows=80, tests=30)
    fold_table["fold"] = [0] + [1] * 79
    fold_table["group"] = fold_table["id"]
    problem, parts = fitted((about, table, fold_table), model)
    assert len(oof_of(problem, parts)) == 80
    table.loc[:79, "target"] = (fold_table["fold"] == 0).astype(float).to_numpy()
    problem, parts = fitted((about, table, fold_table), model)
    assert np.allclose(parts[0].valid, 0.5 / 80)
    assert "one class only" in " ".join(parts[0].notes)


@pytest.mark.parametrize("model", MODELS)
def test_regression_and_labels(model: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(tmp_path, monkeypatch, task="regression", metric="rmse")
    table["target"] = table["age"].fillna(50) / 10
    problem, parts = fitted((about, table, fold_table), model)
    pred = oof_of(problem, parts)[:, 0]
    assert metrics.score("rmse", problem.y, pred) < 0.7 * np.std(problem.y)
    assert parts[0].contributions[:, 0].sum(axis=1) == pytest.approx(parts[0].valid[:, 0], abs=1e-4)
    about, table, fold_table = make(tmp_path, monkeypatch, task="multilabel", target=["u", "v"])
    table["target_u"], table["target_v"] = table.pop("target"), 0.0
    table.loc[0, "target_v"] = 1.0  # in fold 0: no other training rows hold it
    problem, parts = fitted((about, table, fold_table), model)
    assert oof_of(problem, parts).shape == (240, 2)
    assert np.allclose(parts[0].valid[:, 1], 0.5 / 181) and "of v" in " ".join(parts[0].notes)


def test_seeds_are_averaged_and_the_search_never_sees_its_fold(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    need("optuna")
    made = make(tmp_path, monkeypatch)
    singles = [oof_of(*fitted(made, seed=seed)) for seed in (3, 4)]
    assert oof_of(*fitted(made, seed=3, seeds=2)) == pytest.approx(np.mean(singles, axis=0))
    _, parts = fitted(made, minutes=5, trials=3)
    assert [part.trials for part in parts] == [3] * 4
    about, table, fold_table = made
    worse = table.copy()
    held = worse["id"].isin(fold_table["id"][fold_table["fold"] == 0])
    worse.loc[held, "target"] = (
        1 - worse.loc[held, "target"]
    )  # another truth in fold 0 changes nothing that predicts it
    worse.loc[held, ["age"]] = worse.loc[held, ["age"]] + 0.0
    _, after = fitted((about, worse, fold_table), minutes=5, trials=3)
    assert (after[0].valid == parts[0].valid).all() and after[0].settings == parts[0].settings
    assert not (after[1].valid == parts[1].valid).all()
    line = boosting.tuning_line(RunInfo(run="r", metric="roc_auc", fold_scores={"0": 0.5}), parts)
    assert "3 to 3 trials" in line and "did not see 0.5000" in line


@pytest.mark.parametrize(
    ("model", "given"),
    [("lightgbm", "num_leafs=3"), ("xgboost", "max_deep=3"), ("catboost", "dept=3"), ("logreg", "D=3")],
)
def test_settings_that_a_library_does_not_know_are_refused(trained: Workplace, model: str, given: str) -> None:
    """By the script: libraries speak through loggers and warnings of the whole process, which other tests change."""
    learner(model)
    line = trained.refused("03_metadata.py", "--model", model, "--name", "odd", "--params", given)
    assert given.partition("=")[0] in line


@pytest.mark.smoke
def test_settings_have_one_name_and_a_sensible_value() -> None:
    with pytest.raises(UserError, match="called rounds"):
        learners.settings_of(learners.get("lightgbm"), {"n_estimators": 3}, "binary")
    with pytest.raises(UserError, match="lightgbm refuses"):
        learners.settings_of(learners.get("lightgbm"), {"num_leaves": "many"}, "binary")
    assert learners.settings_of(learners.get("lightgbm"), {"num_leaves": 3}, "binary")["num_leaves"] == 3


@pytest.mark.smoke
def test_an_absent_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(learners.importlib, "import_module", absent)
    with pytest.raises(UserError, match="pip install xgboost-cpu"):
        learners.get("xgboost")


# --- columns ----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_columns_that_cannot_help_are_left_out_with_a_line(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(
        tmp_path,
        monkeypatch,
        metadata={"numeric": ["age", "same", "void", "gone", "wild"], "categorical": ["site", "text"]},
    )
    wild = np.arange(len(table), dtype=float)
    wild[3] = np.inf
    table = table.assign(
        same=7.0,
        void=np.nan,
        gone=np.where(table["split"] == "train", np.arange(len(table)), np.nan),
        wild=wild,
        text="always",
    )
    inputs = features.gather(about, table, fold_table, features.Wish())
    assert list(inputs.frame) == ["age", "wild", "site"]
    told = "\n".join(inputs.notes)
    for line in (
        "'same' is 7.0 in every training row",
        "'void' is empty in every training",
        "'text' is always in",
        "'gone' is empty in every test row",
        "'wild': 1 infinite",
    ):
        assert line in told
    raw = tmp_path / "input" / "made"
    raw.mkdir(parents=True)
    (raw / "test.csv").write_text("id,age,same,void,wild,site,text\n")
    assert "'gone' is not in test.csv" in "\n".join(features.gather(about, table, fold_table, features.Wish()).notes)
    with pytest.raises(UserError, match="no metadata column is left"):
        features.gather(about, table.assign(age=1.0, wild=np.nan, site=None), fold_table, features.Wish())
    with pytest.raises(UserError, match=r"target-encode sit: .*did you mean 'site'"):
        features.gather(about, table, fold_table, features.Wish(), ["sit"])


@pytest.mark.smoke
def test_a_target_that_is_missing_or_of_one_class(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(tmp_path, monkeypatch)
    inputs = features.gather(about, table, fold_table, features.Wish())
    gap = table.copy()
    gap.loc[11, "target"] = np.nan
    with pytest.raises(UserError, match="id 'r0011' has no target"):
        boosting.Problem.of(about, gap, fold_table, inputs)
    with pytest.raises(UserError, match="one class"):
        boosting.Problem.of(about, table.assign(target=1.0), fold_table, inputs)


@pytest.mark.smoke
def test_drift_is_told_and_files_come_with_a_warning(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(tmp_path, monkeypatch)
    quiet = features.gather(about, table, fold_table, features.Wish())
    assert "tells test rows" not in "\n".join(quiet.notes) and quiet.meta["drift"]["adversarial_auc"][1] < 0.6
    older = table.assign(age=table["age"] + np.where(table["split"] == "test", 80.0, 0.0))
    loud = features.gather(about, older, fold_table, features.Wish())
    assert "tells test rows from training rows" in "\n".join(loud.notes)
    assert loud.meta["drift"]["shift"]["age"] > 0.9
    files = features.gather(about, table, fold_table, features.Wish(files=True))
    assert "file bytes" in files.frame and "scanner" in "\n".join(files.notes)
    assert "file width" not in files.frame  # constant here


@pytest.mark.smoke
def test_group_columns_count_and_rank_within_the_patient(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    about, table, fold_table = make(tmp_path, monkeypatch)
    table.loc[:3, "group"], table.loc[:3, "age"] = "p", [30.0, 40.0, 40.0, 60.0]
    made = features.group_columns(about, table, features.Wish(groups=True))
    assert made.loc[:3, "images in group"].tolist() == [4] * 4
    assert made.loc[:3, "age rank in group"].tolist() == [0, 0.5, 0.5, 1]
    assert made.loc[:3, "age z in group"].tolist() == pytest.approx([-1.1471, -0.2294, -0.2294, 1.6059], abs=1e-4)
    about.group = None
    with pytest.raises(UserError, match="names no `group`"):
        features.gather(about, table, fold_table, features.Wish(groups=True))


PATIENTS, EACH = 40, 8  # in training; a third as many rows at test


def patients(root: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool = False):  # type: ignore[no-untyped-def]
    """As `make`: a lesion is sick that is larger than its patient's others; sizes differ more between patients."""
    rows, tests = PATIENTS * EACH, PATIENTS * EACH // 3 // EACH * EACH
    about, table, _ = make(root, monkeypatch, rows, tests)
    rng = np.random.default_rng(1)
    patient = np.arange(rows + tests) // EACH
    inside = rng.normal(0, 1, rows + tests)
    table["group"] = [f"p{k}" for k in patient]
    table["age"] = 50 + rng.normal(0, 20, patient.max() + 1)[patient] + inside
    sick = (inside + rng.normal(0, 0.3, rows + tests) > 1).astype(float)
    table["target"] = np.where(table["split"] == "train", rng.permutation(sick) if shuffled else sick, np.nan)
    fold_table = table.loc[: rows - 1, ["id", "group"]].assign(fold=patient[:rows] % 4)
    return about, table, fold_table


def test_an_effect_within_patients_is_found_and_none_where_labels_are_drawn(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    auc = {}
    for shuffled, groups_asked in ((False, False), (False, True), (True, True)):
        made = patients(tmp_path, monkeypatch, shuffled)
        wish = features.Wish(groups=groups_asked, outliers=["age"] if groups_asked else [])
        problem, parts = fitted(made, wish=wish, negatives=2.0, seeds=3)
        auc[shuffled, groups_asked] = roc_auc_score(problem.y, oof_of(problem, parts))
    assert auc[False, False] < 0.65 and auc[False, True] > 0.85 and 0.3 < auc[True, True] < 0.62, auc


def test_predictions_are_compared_within_a_patient_and_a_fold(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """What models of other folds say of a patient's rows, which may have seen a row's target, does not touch it."""
    about, table, fold_table = patients(tmp_path, monkeypatch)
    fold_table["fold"] = np.arange(len(fold_table)) % 2  # patients over both folds
    rng, test = np.random.default_rng(0), table.loc[table["split"] == "test", "id"]
    run = about.runs() / "other"
    run.mkdir(parents=True)
    pred = fold_table[["id", "fold"]].assign(target=table["target"], pred=rng.random(len(fold_table)))
    pd.DataFrame({"id": test, "pred": rng.random(len(test))}).to_csv(run / "test.csv", index=False)
    stacks = []
    for change in (0.0, 0.3):
        moved = pred.assign(
            pred=np.where(pred["fold"] == 1, pred["pred"] * (1 - change * rng.random(len(pred))), pred["pred"])
        )
        moved.to_csv(run / "oof.csv", index=False)
        wish = features.Wish(groups=True, runs=["other"], outliers=["other"])
        (stack,) = features.gather(about, table, fold_table, wish).stacks
        stacks.append(stack.train)
    names = ["run other", *(f"run other {what} in group" for what in ("rank", "z", "outlier"))]
    assert list(stacks[0]) == names
    same = fold_table["fold"].to_numpy() == 0
    pd.testing.assert_frame_equal(stacks[0][same], stacks[1][same])
    assert (stacks[0]["run other z in group"][~same] != stacks[1]["run other z in group"][~same]).any()
    with pytest.raises(UserError, match="--lof ager: no column of numbers, nor a run of --oof; did you mean 'age'"):
        features.gather(about, table, fold_table, features.Wish(outliers=["ager"]))


@pytest.mark.smoke
def test_an_ugly_duckling_is_far_from_its_patient_s_others() -> None:
    """By two columns together: neither is unusual alone."""
    rng = np.random.default_rng(0)
    key = pd.Series(np.repeat(np.arange(20), 40))
    along = rng.normal(0, 1, 800)
    values = pd.DataFrame({"a": along, "b": along + rng.normal(0, 0.1, 800)})
    odd = np.arange(800) % 40 == 0
    values.loc[odd, "b"] -= 1.5 * np.sign(values.loc[odd, "a"])
    factor = groups.outlyingness(values, key)
    assert roc_auc_score(odd, factor) > 0.95 and roc_auc_score(odd, values["b"].abs()) < 0.75
    few = groups.outlyingness(values.head(4), key.head(4))
    assert few.isna().all()


@pytest.mark.smoke
def test_thinned_negatives_leave_probabilities_true() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 1))
    y = (rng.random(20000) < 1 / (1 + np.exp(4 - x[:, 0]))).astype(float)
    part, share = learners.thinned(learners.Data(x, y), 3.0, 0)
    assert part.y.mean() == pytest.approx(0.25, abs=1e-3) and share == pytest.approx(
        3 * y.sum() / (y == 0).sum(), abs=1e-3
    )
    model = learners.Thinned(learners.get("logreg").fit({"C": 100.0}, 1, part, None, 1), share)
    assert model.predict(x).mean() == pytest.approx(y.mean(), rel=0.1)
    odds = model.contributions(x[:5]).sum(axis=2)
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(model.predict(x[:5]))
    assert not np.array_equal(part.x, learners.thinned(learners.Data(x, y), 3.0, 1)[0].x)
    assert learners.thinned(part, 3.0, 0)[1] == 1.0 and learners.thinned(learners.Data(x, 0 * y), 3.0, 0)[1] == 1.0


# --- the script -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A tiny competition with two metadata runs, lightgbm and quick; no network is needed here."""
    place = make_tiny(tmp_path_factory.mktemp("tabled"))
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("03_metadata.py")
    place.run("03_metadata.py", "--model", "logreg", "--name", "quick")
    return place


@pytest.mark.slow
def test_a_metric_beside_the_competition_file_is_found_by_every_step(trained: Workplace, tmp_path: Path) -> None:
    shutil.copytree(trained.root, tmp_path / "root")
    (tmp_path / "hosts").mkdir()
    place = Workplace(tmp_path / "root", Path(shutil.copy(trained.competition, tmp_path / "hosts" / "tiny.yaml")))
    source = "def far(target, pred):\n    assert len(set(target)) > 1\n    return abs(target - pred).mean()\n"
    (tmp_path / "hosts" / "mine.py").write_text(source)
    place.describe(metric="mine:far")
    assert "greater_is_better: false" in place.refused("03_metadata.py", "--model", "logreg")
    place.describe(metric={"function": "mine:far", "greater_is_better": False})
    place.run("03_metadata.py", "--model", "logreg")
    place.run("03_metadata.py", "--tune", "0.1", "--trials", 2, "--name", "tuned")
    said = place.run("06_blend.py", "--runs", "logreg", "tuned", "--method", "mean").stdout
    assert "mine:far" in said
    best = min(json.loads((place.runs / run / "run.json").read_text())["score"] for run in ("logreg", "tuned"))
    facts = json.loads((place.submissions / "blend.json").read_text())
    assert facts["greater_is_better"] is False and facts["best_single_score"] == pytest.approx(best)
    (tmp_path / "hosts" / "mine.py").write_text(source.replace("(target, pred)", "(target)"))
    for step in (("02_train.py", "--recipe", "quick.yaml", "--name", "no"), ("03_metadata.py",), ("04_embed.py",)):
        assert "takes 1 positional argument" in place.refused(*step)


def test_stacking_and_every_option_by_the_script(tabled: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "copy", tmp_path / "copy" / "tiny.yaml")
    shutil.copytree(tabled.root, place.root)
    folder = place.runs / "stacked"
    fold_table = pd.read_csv(place.derived / "folds.csv")
    ids = len(fold_table) + len(pd.read_csv(place.runs / "quick" / "test.csv"))
    rng = np.random.default_rng(0)
    for fold in range(3):
        np.save(place.runs / "quick" / f"fold{fold}_embeddings.npy", rng.normal(size=(ids, 8)).astype(np.float32))
    options = ["--oof", "quick", "--embeddings", "quick", "--components", 3, "--group-features", "--file-features"]
    options += ["--lof", "age", "quick", "--negatives", 1.5, "--seeds", 2]
    done = place.run("03_metadata.py", "--model", "logreg", "--name", "stacked", "--target-encode", "site", *options)
    assert "scanner" in done.stderr
    assert len(pd.read_csv(folder / "oof.csv")) == 59 and len(pd.read_csv(folder / "test.csv")) == 12
    leaned = pd.read_csv(folder / "importance.csv")
    assert {"run quick", "embeddings quick", "age rank in group", "site"} <= set(leaned["column"])
    added = pd.read_csv(folder / "contributions.csv").set_index("id")
    pred = pd.read_csv(folder / "oof.csv").set_index("id")["pred"]
    odds = added.drop(columns="fold").sum(axis=1)
    assert np.abs(1 / (1 + np.exp(-odds)) - pred.reindex(odds.index)).max() < 1e-4
    for name in ("importance.png", "contributions.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    info = json.loads((folder / "run.json").read_text())
    assert info["config"]["oof"] == ["quick"] and set(info["folds"]) == {"0", "1", "2"}

    assert "name the run" in place.refused(
        "03_metadata.py", "--name", "s", "--embeddings", str(place.runs / "quick" / "fold0_embeddings.npy")
    )
    np.save(place.root / "few.npy", np.zeros((7, 3)))
    assert f"with {ids} rows" in place.refused("03_metadata.py", "--name", "s", "--embeddings", "few.npy")
    assert "did you mean 'quick'" in place.refused("03_metadata.py", "--oof", "quik")
    assert "own name" in place.refused("03_metadata.py", "--oof", "lightgbm")
    (place.runs / "quick" / "fold1_embeddings.npy").unlink()
    assert "fold1_embeddings.npy" in place.refused("03_metadata.py", "--name", "s", "--embeddings", "quick")
    whole = pd.read_csv(place.runs / "quick" / "oof.csv")
    whole.assign(fold=(whole["fold"] + 1) % 3).to_csv(place.runs / "quick" / "oof.csv", index=False)
    assert "other folds" in place.refused("03_metadata.py", "--name", "s", "--oof", "quick")
    info = json.loads((place.runs / "quick" / "run.json").read_text())
    (place.runs / "quick" / "run.json").write_text(json.dumps({**info, "folds_hash": "0"}))
    assert "other folds" in place.refused("03_metadata.py", "--name", "s", "--oof", "quick")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", 3], "goes with --tune"),
        (["--params", "num_leaves"], "key=value"),
        (["--params", "num_leafs=3"], "num_leafs"),
    ],
)
def test_bad_arguments_are_one_clear_line(tabled: Workplace, arguments: list[object], message: str) -> None:
    assert message in tabled.refused("03_metadata.py", *arguments)


def test_a_run_is_the_same_again_and_reads_as_a_run(tabled: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tabled.root))
    about = load_competition(str(tabled.competition))
    run = load_run(about, "lightgbm")
    check_folds(about, "lightgbm", folds.load_folds(about))
    assert run.info.config["columns"] == ["age", "site"]
    assert set(pd.read_csv(run.folder / "importance.csv")["column"]) <= {"age", "site"}
    before = (run.folder / "oof.csv").read_bytes()
    tabled.run("03_metadata.py")
    assert (run.folder / "oof.csv").read_bytes() == before


def test_metadata_may_be_named_like_truth_folds_or_predictions(tmp_path: Path) -> None:
    """Columns called target_age, fold, pred and target_class give the scores that other names give them."""
    scores, tables = {}, {}
    for kind, names in {"odd": ["target_age", "fold", "pred"], "plain": ["a", "b", "c"]}.items():
        place = make_tiny(tmp_path / kind)
        for split in ("train", "test"):
            table = pd.read_csv(place.raw / f"{split}.csv")
            added = dict(zip(names, (table["age"], np.arange(len(table)) % 7, -table["age"]), strict=True))
            table.assign(**added).to_csv(place.raw / f"{split}.csv", index=False)
        place.describe(metadata={"numeric": names, "categorical": []})
        said = place.run("01_preprocess.py", "--sizes", 32).stderr
        assert "could not be made" not in said
        place.run("03_metadata.py")
        place.run("02_train.py", "--recipe", "quick.yaml", "model.metadata=true", "train.epochs=1", "train.threads=1")
        place.run("06_blend.py", "--method", "mean", "--name", "s")
        tables[kind] = pd.read_csv(place.runs / "lightgbm" / "oof.csv")
        assert list(tables[kind]) == ["id", "fold", "target", "pred"]
        scores[kind] = json.loads((place.submissions / "s.json").read_text())["nested_score"]
    assert scores["odd"] == scores["plain"]
    pd.testing.assert_frame_equal(tables["odd"], tables["plain"])


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["id", "target", "target_a"])
def test_a_name_that_the_index_uses_itself_is_refused(tiny: Workplace, name: str) -> None:
    tiny.describe(task="multilabel", target=["a", "b"], metadata={"numeric": [name]})
    assert f"metadata column '{name}' has a name that the index uses" in tiny.refused("01_preprocess.py")
