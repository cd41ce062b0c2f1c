"""The blend: properties for any input, the documented example, real models, and 06 as a user types it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, Workplace, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from foldwise import UserError, metrics
from foldwise.blend import fit_weights, make_folds, stacking
from foldwise.blend.methods import METHODS, shrunk
from foldwise.blend.mixture import Mixture
from foldwise.blend.run_set import renames
from foldwise.blend.search import Problem
from foldwise.blend.spaces import Calibration, Maps, ranks
from foldwise.data import folds, submission
from foldwise.data.competition import load_competition
from foldwise.report.blend import note_scores

quick = settings(max_examples=8, deadline=None)
ON_A_SIMPLEX = ["mean", "rank", "logit", "weights", "gradient", "hill", "caruana", "hierarchical", "hill_negative"]


def draw(seed: int, models: int = 4, rows: int = 240, classes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (models, rows[, classes]) that know something of the target, each with its own noise."""
    rng = np.random.default_rng(seed)
    skill = rng.uniform(0.5, 1.5, models)
    if classes:
        target = rng.permutation(np.arange(rows) % classes)
        logits = skill[:, None, None] * np.eye(classes)[target] * 2 + rng.normal(size=(models, rows, classes))
        odds = np.exp(logits)
        return odds / odds.sum(axis=2, keepdims=True), target
    target = rng.permutation(np.arange(rows) % 3 == 0).astype(int)
    shift = rng.normal(size=(models, rows)) + skill[:, None] * (2.0 * target - 1)
    return 1 / (1 + np.exp(-shift)), target


# --- properties ---------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "pf1", "accuracy", "average_precision"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_kind_of_metric(method, metric):
    preds, target = draw(1)
    blend = fit_weights(preds, target, metric, method, draws=20)
    assert np.isfinite([blend.score, blend.nested_score]).all()
    assert blend.predict(preds).shape == target.shape
    assert blend.predict(preds).min() >= 0 and blend.predict(preds).max() <= 1
    assert blend.interval[0] <= blend.nested_score + 0.05 and blend.interval[1] >= blend.nested_score - 0.05


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "f1_macro", "map@2"])
@pytest.mark.parametrize(
    "method",
    [
        "mean",
        "geometric",
        "vote",
        "weights",
        "hill",
        "caruana",
        "stack",
        "ridge",
        "per_class",
        "lightgbm",
        "calibrated",
        "hierarchical",
    ],
)
def test_classes(method, metric):
    preds, target = draw(2, classes=4)
    blend = fit_weights(preds, target, metric, method, draws=0)
    assert blend.predict(preds).shape == preds.shape[1:]
    better = metrics.resolve(metric).greater_is_better
    floor = metrics.score(metric, target, preds[int(np.argmin([metrics.score(metric, target, p) for p in preds]))])
    assert np.isfinite(blend.nested_score) and (not better or blend.nested_score > floor - 0.1)


@pytest.mark.parametrize("method", ["mean", "weights", "hill", "caruana", "stack", "ridge", "lightgbm", "best", "auto"])
def test_regression(method):
    rng = np.random.default_rng(0)
    target = rng.normal(size=300)
    preds = target + rng.normal(size=(4, 300)) * np.array([0.3, 0.6, 0.9, 1.2])[:, None]
    blend = fit_weights(preds, target, "rmse", method, draws=20)
    assert blend.nested_score < 0.5
    assert blend.predict(preds[:, :7]).shape == (7,)


def test_grades_get_cut_points():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, 600).astype(float)
    preds = 0.5 * target + 1.0 + rng.normal(size=(3, 600)) * 0.4  # squeezed: plain rounding is wrong
    plain, cut = (fit_weights(preds, target, "qwk", "mean", draws=0, cut=wanted) for wanted in (False, True))
    assert cut.method == "mean+cuts" and cut.nested_score > plain.nested_score + 0.1
    assert set(np.unique(cut.predict(preds))) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("metric", "task"), [("f1_macro", "multiclass"), ("balanced_accuracy", "multiclass")])
def test_rare_classes_gain_where_the_metric_counts_classes_alike(metric, task):
    preds, target = rare_grades(0)
    plain, cut = (fit_weights(preds, target, metric, "mean", draws=0, cut=wanted) for wanted in (False, True))
    assert cut.method == "mean+cut" and cut.nested_score > plain.nested_score + 0.01
    assert cut.predict(preds).sum(axis=1) == pytest.approx(1)
    qwk = fit_weights(preds, target, "qwk", "mean+cuts", draws=0)
    said = qwk.predict(preds)
    assert (
        said.sum(axis=1) == pytest.approx(1)
        and qwk.nested_score > fit_weights(preds, target, "qwk", "mean", draws=0, cut=False).nested_score
    )


def rare_grades(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities (2, 1500, 5) of classes of which the last is rare."""
    rng = np.random.default_rng(seed)
    share = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
    target = rng.choice(5, 1500, p=share)
    seen = target + rng.normal(0, 0.9, (2, 1500))
    odds = share * np.exp(-((seen[:, :, None] - np.arange(5)) ** 2) / 2 / 0.81)
    return odds / odds.sum(axis=2, keepdims=True), target


def label_sets(seed: int, rows: int, skewed: float) -> tuple[np.ndarray, np.ndarray]:
    """Three runs' probabilities (3, rows, 8) of labels from rare to common, each moved its own way."""
    rng = np.random.default_rng(seed)
    moved = skewed * np.tile([-1, 1], 4)
    signal = np.linspace(-3.5, 0.5, 8) + rng.normal(0, 2, (rows, 8))
    target = (rng.random((rows, 8)) < 1 / (1 + np.exp(-signal))).astype(float)
    return 1 / (1 + np.exp(-0.7 * (signal + rng.normal(0, 1, (3, rows, 8))) - moved)), target


@pytest.mark.parametrize("metric", ["f1_micro", "f1_samples", "f1_macro"])
def test_label_sets_come_near_to_the_best_cuts(metric):
    preds, target = label_sets(0, 4600, 1.0)
    train, test = slice(600), slice(600, None)
    fits = [
        fit_weights(preds[:, train], target[train], metric, method, draws=50, cut=wanted)
        for method, wanted in (("mean", False), ("mean+cut", True), ("mean", True))
    ]
    best = fit_weights(preds[:, test], target[test], metric, "mean+cuts", nested=False).score  # tuned on those rows
    plain, one, each = (metrics.score(metric, target[test], fit.predict(preds[:, test])) for fit in fits)
    assert fits[2].method == "mean+cuts" and plain + 0.03 < each > one + 0.01
    assert best - each < 0.012 and abs(fits[2].nested_score - each) < 0.025
    again = Mixture.of_saved(json.loads(json.dumps(fits[2].mixture.saved())))
    assert np.array_equal(again.predict(preds[:, test]), fits[2].predict(preds[:, test]))


def test_a_cut_that_helps_nothing_is_not_taken():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 400)
    preds = np.clip(target * 0.5 + rng.random((2, 400)) * 0.5, 0, 1)[:, :, None].repeat(2, axis=2)
    assert fit_weights(preds, np.c_[target, target], "f1_samples", "mean", draws=50).method == "mean"
    with pytest.raises(UserError, match=r"cuts of roc_auc on a multilabel target are none"):
        fit_weights(preds, np.c_[target, target], "roc_auc", "mean+cut")


@given(st.integers(0, 10**6), st.sampled_from(ON_A_SIMPLEX), st.sampled_from(["roc_auc", "log_loss"]))
@quick
def test_weights_sum_to_one(seed, method, metric):
    preds, target = draw(seed)
    weights = fit_weights(preds, target, metric, method, seed, nested=False).weights
    assert weights.sum() == pytest.approx(1)
    assert method == "hill_negative" or weights.min() >= 0


@given(st.integers(0, 10**6), st.sampled_from(["rank", "weights", "stack", "ridge", "hill"]))
@quick
def test_a_copy_of_a_run_changes_little(seed, method):
    preds, target = draw(seed)
    one = fit_weights(preds, target, "roc_auc", method, nested=False)
    two = fit_weights(np.concatenate([preds, preds[:1]]), target, "roc_auc", method, nested=False)
    before, after = one.predict(preds), two.predict(np.concatenate([preds, preds[:1]]))
    assert np.corrcoef(before, after)[0, 1] > (0.95 if method == "rank" else 0.98)


@given(st.integers(0, 10**6), st.sampled_from(["weights", "stack", "ridge", "caruana", "hill"]))
@settings(max_examples=4, deadline=None)
def test_noise_runs_stay_within_the_interval(seed, method):
    preds, target = draw(seed, models=3, rows=600)
    noise = np.random.default_rng(seed + 1).random((2, 600))
    clean = fit_weights(preds, target, "roc_auc", method, draws=100)
    noisy = fit_weights(np.concatenate([preds, noise]), target, "roc_auc", method, draws=0)
    assert noisy.nested_score >= clean.interval[0]


@given(st.integers(0, 10**6))
@quick
def test_order_of_rows_does_not_matter(seed):
    preds, target = draw(seed)
    fold = make_folds(target, "binary", None, 0)
    order = np.random.default_rng(seed).permutation(target.size)
    one = fit_weights(preds, target, "log_loss", "weights", folds=fold, draws=0)
    two = fit_weights(preds[:, order], target[order], "log_loss", "weights", folds=fold[order], draws=0)
    assert one.nested_score == pytest.approx(two.nested_score, abs=1e-4)
    assert one.weights == pytest.approx(two.weights, abs=0.02)


def test_nested_score_is_not_in_sample():
    """Thirty runs of noise and no signal: weights look good on the rows they saw, the nested score does not."""
    rng = np.random.default_rng(0)
    preds, target = rng.random((30, 300)), np.arange(300) % 2
    blend = fit_weights(preds, target, "roc_auc", "lightgbm")
    assert blend.score > 0.8
    assert abs(blend.nested_score - 0.5) < 0.1


def test_patients_stay_whole_in_folds():
    groups = np.arange(200) // 4
    fold = make_folds((np.arange(200) % 8 == 0).astype(int), "binary", groups, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(50))


def test_shrinking_to_families():
    free = np.array([0.7, 0.1, 0.2, 0.0])
    families = [("a", "224"), ("a", "384"), ("b", "224"), ("b", "384")]
    assert shrunk(free, families, 0, 0) == pytest.approx(free)
    assert shrunk(free, families, 0, 1) == pytest.approx([0.25] * 4)
    # model means .4 and .1, size means .45 and .05, mean .25: .6, .2, .3, -.1 -> 0, over their sum
    assert shrunk(free, families, 1, 0) == pytest.approx(np.array([0.6, 0.2, 0.3, 0]) / 1.1)


def test_auto_says_when_equal_weights_are_as_good():
    rng = np.random.default_rng(5)
    target = (np.arange(400) % 2).astype(int)
    preds = 1 / (1 + np.exp(-(target * 1.0 + rng.normal(size=(5, 400)))))
    blend = fit_weights(preds, target, "roc_auc", "auto", draws=100)
    assert METHODS[blend.method].uniform and "as good" in blend.note
    assert len(blend.table) > 10


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "wieghts"}, "weights"),
        ({"space": "lgoit"}, "logit"),
        ({"metric": "roc_acu"}, "roc_auc"),
        ({"preds": [[0.1, np.nan, 0.2, 0.3]]}, "row 1"),
        ({"preds": [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2]]}, "differ in shape"),
        ({"preds": [["a", "b", "c", "d"]]}, "numbers"),
        ({"preds": []}, "preds must be"),
        ({"target": [1, 1, 1, 1]}, "one class"),
        ({"target": [0, 1]}, "do not fit"),
        ({"folds": [0, 0, 0, 0]}, "one fold"),
        ({"folds": [0, 1]}, "2 values for 4 rows"),
    ],
)
def test_bad_arguments(change, words):
    good = {"preds": [[0.1, 0.7, 0.2, 0.9]], "target": [0, 1, 0, 1], "metric": "auc", "method": "mean"}
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        fit_weights(**{**good, **change})
    assert "\n" not in str(caught.value)


# --- the documented example ---------------------------------------------------------------------------------


def test_documented_example():
    """The code of docs/blend.md runs, and prints what stands there."""
    text = (REPOSITORY / "docs" / "blend.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    shown = re.findall(r"```text\n(.*?)```", text, flags=re.S)
    printed: list[str] = []
    exec(code[0], {"print": lambda *values: printed.append(" ".join(map(str, values)))})
    assert "\n".join(printed).split() == shown[0].split()


# --- real models --------------------------------------------------------------------------------------------

LABELS = ["Cardiomegaly", "Edema"]


def chexpert() -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    folder = shared("data", "chexpert10")
    truth = pd.read_csv(folder / "truth.csv").set_index("Study")[LABELS]
    files = sorted(path for path in folder.glob("*.csv") if path.stem != "truth")
    preds = np.stack([pd.read_csv(path).set_index("Study").loc[truth.index, LABELS].to_numpy() for path in files])
    return [path.stem for path in files], preds, truth.to_numpy(), list(truth.index)


def test_real_models_by_repeated_split_halves():
    """Ten repeats, the method chosen and fitted on one half and judged on the other: the claim the README may make."""
    _, preds, target, _ = chexpert()
    gains, over_mean = [], []
    for seed in range(10):
        half = np.random.default_rng(seed).permutation(len(target)) < len(target) // 2
        for fit, judge in ((half, ~half), (~half, half)):
            blend = fit_weights(preds[:, fit], target[fit], "roc_auc", "rank", seed, draws=0)
            singles = [metrics.score("roc_auc", target[fit], run[fit]) for run in preds]
            single = metrics.score("roc_auc", target[judge], preds[int(np.argmax(singles))][judge])
            plain = metrics.score("roc_auc", target[judge], np.clip(preds, 0, 1).mean(axis=0)[judge])
            found = metrics.score("roc_auc", target[judge], blend.predict(preds[:, judge]))
            gains.append(found - single)
            over_mean.append(found - plain)
    assert np.mean(gains) > 0.003  # over the single run that the other half would have picked
    assert np.mean(np.array(gains) > 0) > 0.8
    assert abs(np.mean(over_mean)) < 0.01


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Workplace:
    """chexpert10 as a competition: 400 studies with folds, 100 to predict, a run a model, column orders mixed."""
    names, preds, target, ids = chexpert()
    return place(tmp_path_factory.mktemp("hospital"), names, preds, target, ids)


def place(
    root: Path, names: list[str], preds: np.ndarray, target: np.ndarray, ids: list[str], metric: str = "roc_auc"
) -> Workplace:
    made = Workplace(root, root / "hospital.yaml")
    split = {"table": "none.csv", "images": "{id}.png"}
    about = {"name": "hospital", "task": "multilabel", "metric": metric, "id": "id", "target": LABELS}
    made.competition.write_text(yaml.safe_dump({**about, "train": split, "test": split}))
    made.raw.mkdir(parents=True)
    made.derived.mkdir(parents=True)
    n = len(ids) * 4 // 5
    frame = pd.DataFrame({"split": ["train"] * n + ["test"] * (len(ids) - n), "id": ids, "row_id": ids, "group": ids})
    for c, label in enumerate(LABELS):
        frame[f"target_{label}"] = np.where(np.arange(len(ids)) < n, target[:, c], np.nan)
    frame.assign(path=ids, error=None).to_parquet(made.derived / "index.parquet", index=False)
    fold = make_folds(target[:n], "multilabel", None, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDWISE_ROOT", str(root))
        own = pd.DataFrame({"id": ids[:n], "group": ids[:n], "fold": fold})
        folds.save_folds(own, load_competition(str(made.competition)))
    for m, name in enumerate(names):
        (made.runs / name).mkdir(parents=True)
        columns = [f"pred_{label}" for label in (LABELS if m % 2 else LABELS[::-1])]
        table = pd.DataFrame({"id": ids, **{f"pred_{label}": preds[m, :, c] for c, label in enumerate(LABELS)}})
        oof = table[:n].assign(fold=fold, **{f"target_{label}": target[:n, c] for c, label in enumerate(LABELS)})
        shuffled = oof.sample(frac=1, random_state=m)
        shuffled[["id", "fold", *[f"target_{label}" for label in LABELS], *columns]].to_csv(
            made.runs / name / "oof.csv", index=False
        )
        table[n:][["id", *columns]].to_csv(made.runs / name / "test.csv", index=False)
    return made


def test_06_on_real_models(hospital):
    done = hospital.run("06_blend.py", "--method", "rank", "--name", "real", drawn=True)
    facts = json.loads((hospital.submissions / "real.json").read_text())
    twins = {tuple(pair["runs"]) for pair in facts["near_identical"] if pair["identical"]}
    assert {("drnet", "ihil"), ("drnet", "sensexdr"), ("ihil", "sensexdr")} <= twins
    assert "drnet, ihil, sensexdr, uestc are near-identical in Edema" in done.stdout
    assert "best single run" in facts["verdict"] and facts["gains"]["over_best_single"]["gain"] != 0
    assert 1 <= facts["effective_number_of_runs"] <= 10
    table = pd.read_csv(hospital.submissions / "real.csv")
    assert len(table) == 100 and table[LABELS].to_numpy().max() <= 1
    page = (hospital.submissions / "real.html").read_text()
    assert page.count("<svg role") >= 6 and "://" not in page and "What to do" in page and "real.csv" in page


def test_auto_and_partial_and_foreign_runs(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (300, 2))
    preds = np.clip(target * 0.3 + rng.random((3, 300, 2)) * 0.7, 0, 1)
    made = place(tmp_path, ["a", "b", "c"], preds, target, [f"{i:04d}" for i in range(300)])
    whole = pd.read_csv(made.runs / "c" / "oof.csv", dtype={"id": str})
    for k in (0, 1, 2):  # c stopped after three folds
        whole[whole["fold"] == k].to_csv(made.runs / "c" / f"fold{k}.csv", index=False)
        (made.runs / "c" / f"fold{k}_test.csv").write_bytes((made.runs / "c" / "test.csv").read_bytes())
    (made.runs / "c" / "oof.csv").unlink()
    (made.runs / "c" / "test.csv").unlink()
    b = made.runs / "b"
    for file in ("oof", "test"):  # b is a notebook's: parquet, other names, no folds
        table = pd.read_csv(b / f"{file}.csv", dtype={"id": str}).rename(columns={"id": "image", "pred_Edema": "wet"})
        table.drop(columns=[c for c in table if c.startswith(("target", "fold"))]).to_parquet(
            tmp_path / f"{file}.parquet"
        )
        (b / f"{file}.csv").unlink()
    done = made.run(
        "06_blend.py",
        "--runs",
        "a",
        "c",
        "--foreign",
        "nb",
        "oof.parquet",
        "test.parquet",
        "--columns",
        "image=id",
        "wet=pred_Edema",
        "--method",
        "auto",
    )
    facts = json.loads((made.submissions / "blend.json").read_text())
    assert [row["run"] for row in facts["runs"]] == ["a", "c", "nb"]
    assert facts["rows"] == sum(facts["coverage"]["c"].values()) < facts["rows_of_all_folds"] == 240
    assert "c lacks fold 3, 4" in done.stdout
    assert "note: nb has no fold column" in done.stdout and "note: a has no" not in done.stdout
    assert len(facts["methods"]) > 8
    made.run("06_blend.py", "--runs", "a", "nb", "--method", "mean")  # it is kept as a run
    (made.runs / "nb" / "run.json").write_text("{}")
    line = made.refused("06_blend.py", "--runs", "a", "--foreign", "nb", "oof.parquet", "test.parquet")
    assert "nb is a run of your own; give the foreign one another name" in line


def test_fold_0_alone_makes_a_submission_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (300, 2))
    preds = np.clip(target * 0.3 + rng.random((2, 300, 2)) * 0.7, 0, 1)
    made = place(tmp_path, ["a", "b"], preds, target, [f"{i:04d}" for i in range(300)])
    for run in "ab":
        whole = pd.read_csv(made.runs / run / "oof.csv", dtype={"id": str})
        whole[whole["fold"] == 0].to_csv(made.runs / run / "fold0.csv", index=False)
        (made.runs / run / "test.csv").rename(made.runs / run / "fold0_test.csv")
        (made.runs / run / "oof.csv").unlink()
    done = made.run("06_blend.py", "--runs", "a", "--name", "first")
    facts = json.loads((made.submissions / "first.json").read_text())
    fold0 = pd.read_csv(made.runs / "a" / "fold0.csv")
    labels = [column.removeprefix("target_") for column in fold0 if column.startswith("target_")]
    score = metrics.score("roc_auc", fold0[[f"target_{x}" for x in labels]], fold0[[f"pred_{x}" for x in labels]])
    assert facts["one_fold"] == 0 and facts["rows"] == len(fold0) and facts["nested_score"] == pytest.approx(score)
    assert f"note: fold 0 alone: scored on its {len(fold0)} rows" in done.stdout
    sent, test = pd.read_csv(made.submissions / "first.csv"), pd.read_csv(made.runs / "a" / "fold0_test.csv")
    assert sent.iloc[:, 1].sum() == pytest.approx(test["pred_" + sent.columns[1]].sum())
    made.run("06_blend.py", "--name", "both", "--method", "weights", "--runs", "a", "b")  # judged on parts of the fold
    both = json.loads((made.submissions / "both.json").read_text())
    assert both["nested_score"] != both["in_sample_score"]


def test_weights_by_hand_are_written_and_compared_with_the_automatic_ones(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (300, 2))
    preds = np.clip(target * 0.3 + rng.random((3, 300, 2)) * 0.7, 0, 1)
    made = place(tmp_path, ["a", "b", "c"], preds, target, [f"{i:04d}" for i in range(300)])
    done = made.run("06_blend.py", "--weights", "a=3", "b=1", "--space", "prob", "--name", "hand")
    facts = json.loads((made.submissions / "hand.json").read_text())
    assert [(row["run"], row["weight"]) for row in facts["runs"]] == [("a", 0.75), ("b", 0.25)]
    assert facts["nested_score"] == pytest.approx(facts["in_sample_score"]) and facts["automatic"]["method"]
    assert "The automatic blend: " in done.stdout and "95 % interval" in done.stdout
    sent = pd.read_csv(made.submissions / "hand.csv")
    tests = [pd.read_csv(made.runs / run / "test.csv").set_index("id") for run in "ab"]
    column = sent.columns[1]
    mixed = 0.75 * tests[0]["pred_" + column] + 0.25 * tests[1]["pred_" + column]
    assert sent.set_index("id")[column].to_numpy() == pytest.approx(mixed.loc[sent["id"]].to_numpy())
    for bad, says in (("a", "expected RUN=WEIGHT"), ("a=x", "expected RUN=WEIGHT"), ("a=0", "a sum above 0")):
        assert says in made.refused("06_blend.py", "--weights", bad)
    assert "no oof.csv" in made.refused("06_blend.py", "--weights", "z=1")


def test_06_tunes_and_tells_the_cuts_of_label_sets(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (300, 2))
    preds = np.clip(target * 0.3 + rng.random((2, 300, 2)) * 0.6, 0, 1) * [0.3, 1.0]  # Edema never reaches a half
    made = place(tmp_path, ["a", "b"], preds, target, [f"{i:04d}" for i in range(300)], "f1_samples")
    done = made.run("06_blend.py", "--method", "mean")
    facts = json.loads((made.submissions / "blend.json").read_text())
    assert facts["method"] == "mean+cuts" and facts["cuts"].keys() == set(LABELS)
    first, second = (facts["cuts"][label] for label in LABELS)
    assert first < 0.3 and 0.3 < second < 0.7
    assert "cuts: " in done.stdout and "Cuts: " in (made.submissions / "blend.html").read_text()
    assert facts["best_single_score"] > 0.6  # cut alike, or it would be near 0.5
    assert pd.read_csv(made.submissions / "blend.csv")[LABELS[0]].ge(0.5).mean() > 0.2
    made.run("06_blend.py", "--method", "mean", "--no-cuts", "--name", "plain")
    plain = json.loads((made.submissions / "plain.json").read_text())
    assert not plain["cuts"] and plain["nested_score"] < facts["nested_score"] - 0.1


def test_leaderboard_scores_are_noted(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    made = place(tmp_path, ["a"], rng.random((1, 50, 2)), rng.integers(0, 2, (50, 2)), [str(i) for i in range(50)])
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    about = load_competition(str(made.competition))
    about.submissions().mkdir(parents=True)
    facts = {"method": "rank", "space": "rank", "runs": [{"run": "a"}], "metric": "roc_auc", "in_sample_score": 0.95}
    for name, nested in (("one", 0.92), ("two", 0.91), ("three", 0.94)):
        submission.log_submission(
            about, name, {**facts, "nested_score": nested, "interval_95": [nested - 0.01, nested + 0.01]}
        )
    note_scores(about, "one", [0.92])
    note_scores(about, "two", [0.93, 0.92])
    assert not (about.submissions() / "cv_against_lb.png").exists()
    done = made.run("06_blend.py", "--name", "three", "--lb", 0.94, 0.93)
    assert "cv_against_lb.png" in done.stdout and (about.submissions() / "cv_against_lb.png").exists()
    log = pd.read_csv(tmp_path / "submissions" / "log.csv").set_index("name")
    assert log.loc["two", ["public", "private"]].tolist() == pytest.approx([0.93, 0.92])
    with pytest.raises(UserError, match="did you mean 'three'"):
        note_scores(about, "thre", [0.9])


# --- bad input, as a user meets it --------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Workplace:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, (100, 2))
    return place(tmp_path, ["a", "b"], rng.random((2, 100, 2)), target, [f"{i:04d}" for i in range(100)])


def edit(name: str, change):
    def spoil(made: Workplace) -> None:
        path = made.runs / "b" / name
        table = pd.read_csv(path, dtype={"id": str})
        change(table).to_csv(path, index=False)

    return spoil


def put(row: int, column: str, value: object):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (edit("oof.csv", lambda t: t.drop(3)), "only whole folds"),
        (edit("oof.csv", lambda t: pd.concat([t, t[:1]])), "twice"),
        (edit("oof.csv", put(2, "pred_Edema", np.nan)), "not a finite number"),
        (edit("oof.csv", put(2, "pred_Edema", "high")), "'high'"),
        (edit("oof.csv", put(2, "id", "stranger")), "'stranger'"),
        (edit("oof.csv", lambda t: t.assign(fold=(t["fold"] + 1) % 5)), "other folds"),
        (edit("oof.csv", lambda t: t.assign(target_Edema=1 - t["target_Edema"])), "target_Edema differs"),
        (edit("oof.csv", lambda t: t.drop(columns="pred_Edema")), "pred_Edema"),
        (edit("test.csv", lambda t: t.drop(0)), "test table differs"),
        (edit("test.csv", lambda t: t.assign(id="x" + t["id"])), "test table differs"),
        (lambda made: [p.unlink() for p in made.runs.glob("*/*")], "no runs to blend"),
    ],
)
def test_bad_tables_are_refused_in_one_line(small, spoil, words):
    spoil(small)
    line = small.refused("06_blend.py", "--method", "mean")
    assert words in line and any(name in line for name in ("'b'", "/b/", "/b:", "no runs"))
    assert not small.submissions.exists()


@pytest.mark.smoke
def test_bad_flags_are_refused_in_one_line(small):
    assert "did you mean 'weights'" in small.refused("06_blend.py", "--method", "wieghts")
    assert "did you mean 'a'" in small.refused("06_blend.py", "--runs", "aa")
    assert "given twice" in small.refused("06_blend.py", "--runs", "a", "a")
    assert not small.submissions.exists()
    with pytest.raises(UserError, match="THEIRS=OURS"):
        renames(["image"])


def test_shuffled_files_give_the_same_submission(small):
    small.run("06_blend.py", "--method", "rank", "--name", "before")
    for name in ("oof.csv", "test.csv"):
        edit(name, lambda t: t.sample(frac=1, random_state=7))(small)
    small.run("06_blend.py", "--method", "rank", "--name", "after")
    before, after = ((small.submissions / f"{name}.csv").read_text() for name in ("before", "after"))
    assert before == after


def test_several_images_a_row_are_joined_before_scoring(small):
    frame = pd.read_parquet(small.derived / "index.parquet")
    for label in LABELS:
        frame[f"target_{label}"] = frame.groupby(np.arange(100) // 2)[f"target_{label}"].transform("first")
    frame["row_id"] = [f"r{i // 2}" for i in range(100)]
    frame["group"] = frame["row_id"]
    frame.to_parquet(small.derived / "index.parquet", index=False)
    small.describe(submission={"row_id": "row_id", "aggregate": "mean"})
    for name in ("a", "b"):
        path = small.runs / name / "oof.csv"
        table = pd.read_csv(path, dtype={"id": str})
        table.drop(columns=[c for c in table if c.startswith("target")]).to_csv(path, index=False)
    small.run("06_blend.py", "--method", "mean")
    facts = json.loads((small.submissions / "blend.json").read_text())
    assert facts["rows"] == 40 and len(pd.read_csv(small.submissions / "blend.csv")) == 10


def test_complexity_orders_the_methods():
    assert all(a.complexity <= b.complexity for a, b in pairwise([METHODS["mean"], METHODS["rank"], METHODS["hill"]]))


@pytest.mark.smoke
@pytest.mark.filterwarnings("error")
def test_calibration_within_folds_too_small_for_halves_borrows_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    target = (np.arange(30) % 3 == 0).astype(float)
    folds = np.where(np.arange(30) == 0, 0, 1 + np.arange(30) % 2)  # fold 0: one row
    fitted = Calibration(np.clip(target * 0.3 + rng.random((2, 30)) * 0.7, 0, 1), target, folds, 0).fitted
    assert np.isfinite(fitted).all() and (fitted > 0).all() and (fitted < 1).all()


@pytest.mark.smoke
def test_multiclass_stacking_chooses_its_pull_by_the_folds() -> None:
    """Twenty noisy twins: free weights would fit noise. One good run among bad ones: equal weights would waste it."""
    rng = np.random.default_rng(0)
    target, folds = rng.integers(0, 3, 240), np.arange(240) % 4
    truth = np.eye(3)[target]

    def run(skill: float) -> np.ndarray:
        power = np.exp(skill * truth + rng.normal(0, 1, (240, 3)))
        return power / power.sum(axis=1, keepdims=True)

    twins, unlike = np.stack([run(0.3) for _ in range(20)]), np.stack([run(4.0), *(run(0.0) for _ in range(4))])
    problem = Problem(target, metrics.resolve("log_loss"), "multiclass", folds)
    assert stacking._choose_softmax_strength(np.log(twins), problem) == stacking.STRENGTHS[-1]
    assert stacking._choose_softmax_strength(np.log(unlike), problem) <= 0.1
    stack, plain = (
        fit_weights(twins, target, "log_loss", method, folds=folds, draws=0).nested_score
        for method in ("stack", "mean")
    )
    assert stack < plain


@pytest.mark.parametrize("method", [*METHODS, "mean+cut", "stack+cuts"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_saved_blend_predicts_the_same_and_each_row_by_itself(method, task):
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2 if task == "binary" else 3, 300)
    truth = target if task == "binary" else np.eye(3)[target]
    preds = np.clip(truth * 0.2 + rng.random((3, *truth.shape)) * 0.7, 0.01, 0.99)
    if task == "multiclass":
        preds /= preds.sum(axis=2, keepdims=True)
    metric = "roc_auc" if task == "binary" else "log_loss"
    if "+" in method or method == "vote":
        metric = "qwk" if method.endswith("s") else "accuracy"
    if method.endswith("+cuts") and task == "binary":
        pytest.skip("one cut alone")
    blend = fit_weights(preds, target, metric, method, nested=False, task=task)
    again = Mixture.of_saved(json.loads(json.dumps(blend.mixture.saved())))
    new = preds[:, ::7]
    assert np.array_equal(again.predict(new), blend.predict(new))
    alone = np.concatenate([again.predict(new[:, k : k + 1]) for k in range(new.shape[1])])
    assert alone == pytest.approx(blend.predict(new), abs=1e-12)


def test_a_run_that_is_missing_hands_its_weight_to_the_others():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 200)
    preds = np.clip(target * 0.3 + rng.random((3, 200)) * 0.6, 0, 1)
    mixture = fit_weights(preds, target, "roc_auc", "mean", nested=False).mixture
    preds[1, :50] = np.nan
    assert mixture.predict(preds)[:50] == pytest.approx(preds[[0, 2], :50].mean(axis=0))
    assert mixture.predict(preds)[50:] == pytest.approx(preds[:, 50:].mean(axis=0))


def test_ranks_among_out_of_fold_predictions_are_exact_on_them_and_rise_beyond():
    values = np.random.default_rng(1).random((1, 500))
    maps = Maps.ranks(values)
    assert maps(values) == pytest.approx(ranks(values))
    beyond = maps(np.array([[-0.5, -0.1, 0.0, 0.5, 1.0, 1.2, 3.0]]))[0]
    assert (np.diff(beyond) > 0).all() and beyond[0] > 0 and beyond[-1] < 1
