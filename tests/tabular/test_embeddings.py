"""Embeddings and the heads on them: exact kernels, honest folds, resumed files, the same report for every run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, REPOSITORY, Workplace, shared
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC

from foldwise import UserError
from foldwise.data.runs import recipe_of
from foldwise.report.run import thresholds, write_run_report
from foldwise.stats import platt
from foldwise.tabular import heads, kernel
from foldwise.tabular.heads import CLASSIFIERS, REGRESSORS, Chunked, Heads
from foldwise.tabular.kernel import Features, KernelMethod, Pairs, _svc


def blobs(rows: int = 240, width: int = 12, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, width) with unequal scales, and the class of each row, that overlap."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    x = rng.normal(0, 1, (rows, width)) + 0.7 * rng.normal(0, 1, (classes, width))[y]
    return (x * rng.uniform(0.1, 30, width) + 50).astype(np.float32), y


def alone(rows: int) -> np.ndarray:
    return np.arange(rows).astype(str)


@pytest.mark.smoke
@pytest.mark.parametrize("classes", [2, 4])
def test_one_matrix_gives_the_predictions_of_scikit_learns_svc(classes: int) -> None:
    x, y = blobs(classes=classes)
    fit, ask = np.flatnonzero(np.arange(240) % 3 > 0), np.flatnonzero(np.arange(240) % 3 == 0)
    features = Features.fit(x, fit)
    method = KernelMethod(Pairs(features, True, fit), _svc, classes, features.variance(fit))
    settings = [{"gamma": 1.0, "C": 1.0}, {"gamma": 0.25, "C": 10.0}]
    found = [method.scores(fit, y[fit], ask, share) for share in method.shares(settings)]
    scaled = (x - x[fit].mean(axis=0)) / x[fit].std(axis=0)
    for setting, (scores,) in zip(settings, found, strict=True):
        svc = SVC(C=setting["C"], gamma=setting["gamma"] / x.shape[1], class_weight="balanced").fit(scaled[fit], y[fit])
        expected = svc.decision_function(scaled[ask])
        assert np.abs(scores.squeeze() - expected).max() < 5e-3  # libsvm itself stops at 1e-3
        answers = [f.reshape(80, -1).argmax(axis=1) if classes > 2 else f.ravel() > 0 for f in (scores, expected)]
        assert (answers[0] == answers[1]).all()


@pytest.mark.smoke
def test_probabilities_are_those_of_calibrated_classifier_cv() -> None:
    x, y = blobs(seed=3)
    split = np.arange(len(y)) // 2 % 3
    scaled = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float64)
    every = [(np.flatnonzero(split != k), np.flatnonzero(split == k)) for k in range(3)]
    theirs = CalibratedClassifierCV(SVC(), ensemble=False, cv=every).fit(scaled, y).predict_proba(scaled)[:, 1]
    scores = np.zeros(len(y))
    for fit, ask in every:
        scores[ask] = SVC().fit(scaled[fit], y[fit]).decision_function(scaled[ask])
    slope, offset = platt(scores, y == 1)
    own = 1 / (1 + np.exp(-(slope * SVC().fit(scaled, y).decision_function(scaled) + offset)))
    assert np.abs(own - theirs).max() < 2e-3


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_head_tells_classes_apart_and_gives_probabilities(name: str, classes: int) -> None:
    x, y = blobs(180, classes=classes)
    head = Heads(name, "multiclass", x, alone(180), outputs=classes + 1)  # one class has no row here
    (pred,), (chosen,) = head.fit_predict(np.arange(120), y[:120], [np.arange(120, 180)])
    assert pred.shape == (60, classes + 1)
    assert np.allclose(pred.sum(axis=1), 1, atol=1e-6)
    assert (pred >= 0).all() and np.allclose(pred[:, classes], 0.5 / (120 + 0.5 * (classes + 1)))
    assert (pred.argmax(axis=1) == y[120:]).mean() > 0.8
    assert chosen in heads._grid(name)


@pytest.mark.parametrize("name", REGRESSORS)
def test_every_regressor_beats_the_mean(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (200, 6)).astype(np.float32)
    y = 1000 + 50 * (x[:, 0] + np.sin(2 * x[:, 1])) + rng.normal(0, 5, 200)
    (pred,), _ = Heads(name, "regression", x, alone(200)).fit_predict(np.arange(150), y[:150], [np.arange(150, 200)])
    assert np.square(pred[:, 0] - y[150:]).mean() < 0.7 * np.square(y[:150].mean() - y[150:]).mean()


@pytest.mark.parametrize("name", ["svm", "linear_svm", "kernel_ridge", "ridge"])
def test_no_head_is_turned_upside_down(name: str) -> None:
    """Labels as in leave-one-out of noise: out of fold, each head ranks the training rows the wrong way round."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (90, 4)).astype(np.float32)
    for seed in range(8):
        y = np.random.default_rng(seed).permutation(np.arange(90) % 2)
        head = Heads(name, "binary", x, alone(90))
        method = head._method(Features.fit(x, np.arange(60)), np.arange(60), 2)
        (pred,), (chosen,) = head.fit_predict(np.arange(60), y[:60], [np.arange(60, 90)])
        raw = method.scores(np.arange(60), y[:60], np.arange(60, 90), [chosen])[0][:, 0]
        flat = np.ptp(pred[:, 0]) == 0
        assert np.corrcoef(raw, pred[:, 0])[0, 1] > 0 if not flat else abs(pred[0, 0] - y[:60].mean()) < 0.05


@pytest.mark.smoke
def test_calibration_s_slope_is_never_below_zero() -> None:
    slope, offset = platt(np.linspace(-1, 1, 40), np.arange(40) < 10)
    assert slope == 0 and 1 / (1 + np.exp(-offset)) == pytest.approx((10 * 11 / 12 + 30 / 32) / 40)


@pytest.mark.parametrize("scale", ["fold", "none"])
def test_ridge_is_scikit_learn_s_at_the_same_penalty(scale: str) -> None:
    x, y = blobs(120)
    x = ((x - x.mean(axis=0)) / x.std(axis=0) + 1).astype(np.float32)  # an intercept that matters
    fit, ask = np.arange(80), np.arange(80, 120)
    features = Features.fit(x, fit, scale)
    heads = Heads("ridge", "binary", x, alone(120), scale=scale)
    inner = fit[:45]  # rows whose own mean is not 0, as in an inner split
    scaled, variance = features.take(np.arange(120)).astype(np.float64), features.variance(fit)
    for penalty in (0.01, 1.0, 100.0):
        (own,) = heads._method(features, fit, 2).scores(inner, y[inner], ask, [{"penalty": penalty}])
        theirs = Ridge(penalty * variance).fit(scaled[inner], 2 * y[inner] - 1).predict(scaled[ask])
        assert np.allclose(own[:, 0], theirs, atol=2e-4)


def test_labels_one_by_one_even_one_that_nobody_has() -> None:
    x, y = blobs(120)
    labels = np.column_stack([y, np.zeros(120), 1 - y]).astype(np.float32)
    (pred,), chosen = Heads("logreg", "multilabel", x, alone(120), 3).fit_predict(
        np.arange(80), labels[:80], [np.arange(80, 120)]
    )
    assert pred.shape == (40, 3) and np.allclose(pred[:, 1], 0.5 / 81) and len(chosen) == 3
    assert np.allclose(pred[:, 0] + pred[:, 2], 1, atol=0.05)


@pytest.mark.smoke
def test_a_shared_matrix_changes_nothing() -> None:
    x, y = blobs(150)
    found = []
    for share in (False, True):
        heads = Heads("linear_svm", "binary", x, alone(150), scale="unit")
        if share:
            heads.share(np.arange(150))
        for k in range(3):
            fit, ask = np.flatnonzero(np.arange(150) % 3 != k), np.flatnonzero(np.arange(150) % 3 == k)
            found.append(heads.fit_predict(fit, y[fit], [ask])[0][0])
    assert np.allclose(found[:3], found[3:], atol=2e-3)


def test_groups_stay_together_where_settings_are_chosen() -> None:
    """Copies of a row in another inner split would make it pay to remember."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(0, 1, (60, 5)), 4, axis=0).astype(np.float32)
    y = np.repeat(rng.integers(0, 2, 60), 4)  # nothing to learn, but everything to remember
    groups = np.repeat(np.arange(60), 4).astype(str)
    kept, apart = (
        Heads("kernel_ridge", "binary", x, units).fit_predict(np.arange(240), y, [np.arange(240)])[0][0]
        for units in (groups, alone(240))
    )
    assert np.ptp(kept) < 0.4 and np.ptp(apart) > 0.9


@pytest.mark.parametrize("name", ["svm", "kernel_ridge", "linear_svm", "ridge", "logreg", "knn"])
def test_beyond_memory_the_answers_stay_close_and_it_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = blobs(240)
    fit, ask = np.arange(160), np.arange(160, 240)
    (near,), _ = Heads(name, "binary", x, alone(240)).fit_predict(fit, y[fit], [ask])
    (far,), _ = Heads(name, "binary", x, alone(240), memory=50_000).fit_predict(fit, y[fit], [ask])
    assert np.corrcoef(near[:, 0], far[:, 0])[0, 1] > 0.95
    said = capsys.readouterr().err
    assert ("Nystroem" in said) == (name in {"svm", "kernel_ridge"})
    assert ("chunk by chunk" in said) == (name in {"linear_svm", "ridge", "logreg"})


def test_sums_over_chunks_are_exact_for_ridge_and_logistic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK", 64)
    x, y = blobs(300)
    fit, ask = np.arange(200), np.arange(200, 300)
    features = Features.fit(x, fit)
    scaled = features.take(np.arange(300)).astype(np.float64)
    (own,) = Chunked(features, "logistic", 2, 1.0).scores(fit, y[fit], ask, [{"C": 0.1}])
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(scaled[fit], y[fit])
    assert np.allclose(own[:, 0], theirs.decision_function(scaled[ask]), atol=1e-4)
    (own,) = Chunked(features, "ridge", 2, 1.0).scores(fit, y[fit], ask, [{"penalty": 3.0}])
    assert np.allclose(own[:, 0], Ridge(3.0).fit(scaled[fit], 2 * y[fit] - 1).predict(scaled[ask]), atol=1e-4)


@pytest.mark.smoke
def test_what_a_head_cannot_do_is_one_line() -> None:
    x, y = blobs(30)
    with pytest.raises(UserError, match="task regression takes svr"):
        Heads("svm", "regression", x, alone(30))
    with pytest.raises(UserError, match="one class only"):
        Heads("svm", "binary", x, alone(30)).fit_predict(np.arange(20), np.zeros(20), [np.arange(20, 30)])
    with pytest.raises(UserError, match="one group"):
        Heads("knn", "binary", x, np.full(30, "g")).fit_predict(np.arange(20), y[:20], [np.arange(20, 30)])


def test_constant_features_and_a_class_of_one_row() -> None:
    x, y = blobs(90, classes=3)
    x[:, 2] = 7.0
    y = np.where(y == 2, 0, y)
    y[4] = 2
    (pred,), _ = Heads("svm", "multiclass", x, alone(90), 3).fit_predict(np.arange(60), y[:60], [np.arange(60, 90)])
    assert np.isfinite(pred).all() and np.allclose(pred.sum(axis=1), 1)


# --- step 4 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(trained: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A copy of the trained competition, and its folds' embeddings under a logistic regression."""
    root = tmp_path_factory.mktemp("embedded") / "root"
    shutil.copytree(trained.root, root)
    place = Workplace(root, root / trained.competition.name)
    place.run("04_embed.py", "--run", "quick", "--head", "logreg")
    return place


@pytest.fixture
def place(embedded: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The same, for calls inside this process."""
    monkeypatch.setenv("FOLDWISE_ROOT", str(embedded.root))
    return embedded


def tables(place: Workplace):  # type: ignore[no-untyped-def]
    """The competition, its index and its folds."""
    from foldwise.data import folds, index
    from foldwise.data.competition import load_competition

    about = load_competition(str(place.competition))
    return about, index.load_index(about), folds.load_folds(about)


def test_each_folds_embeddings_are_kept_and_used_again(place: Workplace) -> None:
    from foldwise.data.runs import recipe_of
    from foldwise.tabular import embeddings

    about, table, fold_table = tables(place)
    files = sorted((place.runs / "quick").glob("fold*_embeddings.npy"))
    assert len(files) == 3
    first, second = np.load(files[0]), np.load(files[1])
    assert first.dtype == np.float32 and len(first) == len(fold_table) + 12 and not np.allclose(first, second)
    tests = table.loc[table["split"] == "test", "id"].tolist()
    broken = len(fold_table) + tests.index("te0003")
    assert (first[broken] == 0).all() and (np.delete(first, broken, axis=0) != 0).any(axis=1).all()
    info = json.loads((place.runs / "quick_logreg" / "run.json").read_text())
    assert set(info["chosen"]) == {"0", "1", "2"} and info["score"] is not None
    report = place.runs / "quick_logreg" / "report" / "report.html"
    assert not report.exists()  # it takes longer than the heads: step 10 writes those that are missing
    place.run("10_report.py", "--runs", "quick_logreg")
    assert "quick_logreg" in report.read_text()

    times = [file.stat().st_mtime_ns for file in files]
    recipe = recipe_of(about, "quick")
    made = list(embeddings.fit_heads(about, recipe, "", "quick", "knn", table, fold_table))
    assert [file.stat().st_mtime_ns for file in files] == times
    for fold, valid, test, _, _ in made:
        assert valid.shape == ((fold_table["fold"] == fold).sum(), 1) and test.shape == (12, 1)
        assert test[tests.index("te0003")] == pytest.approx(np.delete(test, tests.index("te0003")).mean())
    turned = recipe_of(about, "quick", ["predict.tta=flip"])
    list(embeddings.each_fold(about, turned, "", "quick", table, fold_table))
    assert all(file.stat().st_mtime_ns != time for file, time in zip(files, times, strict=True))


SAVED = [(name, task, None) for name in CLASSIFIERS for task in ("binary", "multiclass", "multilabel")]
SAVED += [(name, "regression", None) for name in REGRESSORS] + [(name, "binary", 50_000) for name in CLASSIFIERS]


@pytest.mark.parametrize(("name", "task", "memory"), SAVED)
def test_a_saved_head_predicts_what_the_fitted_one_does(name: str, task, memory: int | None, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from foldwise.tabular import embeddings

    rng = np.random.default_rng(5)
    x = rng.normal(size=(120, 8)).astype(np.float32)
    score = x[:, :3] + rng.normal(size=(120, 3)) / 2
    y = {"binary": score[:, 0] > 0, "multiclass": score.argmax(axis=1), "multilabel": score > 0.3}.get(
        task, score[:, 0]
    )
    outputs = {"binary": 1, "regression": 1}.get(task, 3)
    heads = Heads(name, task, x, alone(120), outputs, memory=memory)
    pred, _, fitted = heads.fit(np.arange(90), np.asarray(y[:90], np.float32), np.arange(90, 120))
    embeddings.save_head(tmp_path, 0, fitted)
    again = embeddings.load_head(tmp_path, 0)
    assert np.array_equal(again.predict(x[90:]), fitted.predict(x[90:]))
    assert fitted.predict(x[90:]) == pytest.approx(pred, abs=1e-5)


def test_a_killed_embedding_goes_on_where_it_was(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from foldwise.tabular import embeddings

    about, table, fold_table = tables(place)
    monkeypatch.setattr(embeddings, "CHUNK", 16)
    recipe = recipe_of(about, "quick", ["predict.tta=d4"])
    seen: list[int] = []
    real = embeddings._trained

    def dying(load_fold):  # type: ignore[no-untyped-def]
        embed = real(load_fold)

        def one(images, where, rows, label):  # type: ignore[no-untyped-def]
            seen.append(len(where))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return embed(images, where, rows, label)

        return one

    monkeypatch.setattr(embeddings, "_trained", dying)
    with pytest.raises(KeyboardInterrupt):
        next(embeddings.each_fold(about, recipe, "", "quick", table, fold_table))
    assert seen == [16, 16, 16]
    _, whole, rows = next(embeddings.each_fold(about, recipe, "", "quick", table, fold_table))
    readable = int((rows.where >= 0).sum())
    assert sum(seen[3:]) == readable - 32 and not list((place.runs / "quick").glob("*.part"))
    whole = whole.copy()
    (place.runs / "quick" / "fold0_embeddings.npy").unlink()
    _, again, _ = next(embeddings.each_fold(about, recipe, "", "quick", table, fold_table))
    assert np.array_equal(whole, again)
    data = bytearray((file := place.runs / "quick" / "fold0_embeddings.npy").read_bytes())
    data[-3] ^= 64
    file.write_bytes(data)
    _, mended, _ = next(embeddings.each_fold(about, recipe, "", "quick", table, fold_table))
    assert np.array_equal(whole, mended), "a flipped bit is noticed, and the array made again"


def test_a_recipes_weights_embed_once_for_all_folds(place: Workplace) -> None:
    from foldwise.data.recipe import load_recipe
    from foldwise.tabular import embeddings

    about, table, fold_table = tables(place)
    with pytest.raises(UserError, match="without pretrained weights"):
        quick = str(place.root / "quick.yaml")
        next(embeddings.each_fold(about, load_recipe(quick), quick, None, table, fold_table))
    model = {"name": "test_resnet", "weights": str(backbone_of(place.runs / "quick" / "fold0.safetensors"))}
    given = str(place.root / "given.yaml")
    Path(given).write_text(yaml.safe_dump({**QUICK, "model": model}))
    for overrides in ([], ["predict.tta=flip"], ["train.lr=0.1"]):
        recipe = load_recipe(given, overrides)
        made = list(embeddings.fit_heads(about, recipe, given, None, "ridge", table, fold_table, "unit"))
        assert [fold for fold, *_ in made] == [0, 1, 2]
    assert (place.runs / "given_embeddings" / "embeddings.npy").exists()
    assert len(list(place.runs.glob("given-*_embeddings"))) == 1  # other views, another folder


def backbone_of(weights):  # type: ignore[no-untyped-def]
    """The backbone's tensors of a run's weights, as a file that timm would give."""
    from safetensors.torch import load_file, save_file

    state = {key.removeprefix("backbone."): value for key, value in load_file(weights).items()}
    path = weights.with_name("given.safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def test_ants_and_bees_by_frozen_features_and_an_svm(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """0.95 accuracy, with the placeholder .gif that is labelled ant among the rows."""
    shared("data", "hymenoptera")
    shared("weights", "mobilenetv2_100.safetensors")
    place = Workplace(tmp_path, REPOSITORY / "src" / "competitions" / "hymenoptera.yaml")
    place.run("01_preprocess.py", "--sizes", 224)
    place.run("04_embed.py", "--recipe", "mobilenetv2", "--head", "svm", "--report", "predict.tta=flip")
    info = json.loads((place.runs / "mobilenetv2_svm" / "run.json").read_text())
    assert info["score"] >= 0.95 and len(info["fold_scores"]) == 5
    oof = pd.read_csv(place.runs / "mobilenetv2_svm" / "oof.csv")
    assert len(oof) == 245 and oof["id"].str.endswith(".gif").any()
    counts = pd.read_csv(place.runs / "mobilenetv2_svm" / "report" / "confusion.csv")
    assert counts["rows"].sum() == 245 and counts.loc[counts["truth"] == counts["answer"], "rows"].sum() >= 233


# --- the report of a run ----------------------------------------------------------------------------------


@pytest.mark.smoke
def test_thresholds_against_trying_every_one() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(300) < 0.2).astype(np.int64)
    p = np.round(np.clip(0.3 * truth + rng.random(300) * 0.7, 0, 1), 2)  # with ties
    found = thresholds(truth, p)
    tried = np.unique(np.concatenate([p, [0.0]]))

    def f1(t: float) -> float:
        return 2 * (truth * (p >= t)).sum() / (truth.sum() + (p >= t).sum())

    def youden(t: float) -> float:
        return (p >= t)[truth == 1].mean() - (p >= t)[truth == 0].mean()

    assert f1(found["best F1"]) == pytest.approx(max(map(f1, tried)))
    assert youden(found["best Youden"]) == pytest.approx(max(map(youden, tried)))
    assert thresholds(np.zeros(5, np.int64), np.arange(5.0)) == {}


def test_report_of_a_binary_run_whoever_made_it(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(trained.root))
    from foldwise.data.competition import load_competition

    about = load_competition(str(trained.competition))
    page = write_run_report(about, "lightgbm")
    for name in ("confusion.png", "calibration.png", "per_class.csv", "confusion.csv", "pairs.csv"):
        assert (page.parent / name).stat().st_size > 50, name
    oof = pd.read_csv(trained.runs / "lightgbm" / "oof.csv")
    table = pd.read_csv(page.parent / "per_class.csv").set_index(["at", "class"])
    hits = ((oof["pred"] >= 0.5) & (oof["target"] == 1)).sum()
    assert table.loc[("0.5", 1), "recall"] == pytest.approx(hits / (oof["target"] == 1).sum(), abs=1e-5)
    cells = pd.read_csv(page.parent / "confusion.csv")
    assert set(cells["at"]) == {"0.5", "as many as are 1", "best F1", "best Youden"}
    assert cells["rows"].sum() == 4 * len(oof)
    html = page.read_text()
    assert "data:image/jpeg" in html and "chosen on these rows" in html and "<script" not in html


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_report_of_every_task_without_images(task: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    from foldwise.data.competition import load_competition

    rng = np.random.default_rng(0)
    n, names = 300, ["a<b", "tick & tock", "c"]
    base = pd.DataFrame({"id": [f"r{k}" for k in range(n)], "fold": np.arange(n) % 3})
    if task == "regression":
        truth = rng.normal(10, 3, n)
        base = base.assign(target=truth, pred=truth + rng.normal(0, 1, n))
    elif task == "multiclass":
        code = rng.integers(0, 3, n)
        p = np.exp(rng.normal(0, 1, (n, 3)) + 2 * np.eye(3)[code])
        p /= p.sum(axis=1, keepdims=True)
        base["target"] = np.array(names)[code]
        base[[f"pred_{name}" for name in names]] = p
    else:
        truth = (rng.random((n, 3)) < 0.3).astype(int)
        base[[f"target_{name}" for name in names]] = truth
        base[[f"pred_{name}" for name in names]] = np.clip(0.4 * truth + rng.random((n, 3)) * 0.6, 0, 1)
    description = {
        "name": "made",
        "task": task,
        "metric": {"regression": "rmse", "multiclass": "log_loss"}.get(task, "roc_auc"),
        "id": "id",
        "target": names if task == "multilabel" else "y",
        "train": {"table": "t.csv", "images": "{id}.png"},
        "test": {"table": "t.csv", "images": "{id}.png"},
    }
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(description))
    run = tmp_path / "oof" / "made" / "elsewhere"
    run.mkdir(parents=True)
    base.to_csv(run / "oof.csv", index=False)
    page = write_run_report(load_competition(str(tmp_path / "made.yaml")), "elsewhere")
    made = {path.name for path in page.parent.iterdir()}
    html = page.read_text()
    if task == "regression":
        assert {"residuals.png", "residuals.csv"} <= made and "Largest errors" in html
        return
    assert {"per_class.csv", "confusion.csv", "calibration.png"} <= made and "a&lt;b" in html and "a<b" not in html
    table = pd.read_csv(page.parent / "per_class.csv")
    assert len(table) == (3 if task == "multiclass" else 24)
    if task == "multiclass":
        answer = base[[f"pred_{name}" for name in names]].to_numpy().argmax(axis=1)
        expected = [(answer[code == k] == k).mean() for k in range(3)]
        assert np.allclose(table["recall"], expected, atol=1e-5)


def test_a_run_without_all_folds_has_no_report(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tiny.root))
    from foldwise.data.competition import load_competition

    with pytest.raises(UserError, match=r"no oof\.csv"):
        write_run_report(load_competition(str(tiny.competition)), "absent")
