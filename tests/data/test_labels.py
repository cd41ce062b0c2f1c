"""Labels that are blank, uncertain or ignored: masked in loss and metrics, on the whole way to a submission."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Workplace, make_tiny
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from foldwise import UserError, blend, metrics
from foldwise.core.schema import validate
from foldwise.data import index, tables
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.data.recipe import Train, load_recipe
from foldwise.model.predict import predict_rows
from foldwise.model.targets import Targets
from foldwise.train import losses

RNG = np.random.default_rng(0)
TRUTH = np.where(RNG.random((200, 3)) < 0.3, np.nan, (RNG.random((200, 3)) < 0.4).astype(float))
PRED = np.clip(0.4 * np.nan_to_num(TRUTH, nan=0.5) + 0.6 * RNG.random((200, 3)), 0.01, 0.99)
KNOWN = ~np.isnan(TRUTH)


def gaps(place: Workplace, **labels: str) -> pd.DataFrame:
    """The tiny competition with three labels, of which a third is blank and some -1."""
    table = pd.read_csv(place.raw / "train.csv")
    rng = np.random.default_rng(1)
    for name in "abc":
        value = (table["sick"] ^ (rng.random(len(table)) < 0.3)).astype(float)
        table[name] = value.mask(rng.random(len(table)) < 0.3).mask(rng.random(len(table)) < 0.1, -1)
    table.to_csv(place.raw / "train.csv", index=False)
    place.describe(task="multilabel", target=["a", "b", "c"], sample_submission=None, labels=labels)
    return table.set_index("image_id")[["a", "b", "c"]]


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["roc_auc", "log_loss", "f1_macro", "f1_micro", "accuracy", "average_precision"])
def test_a_metric_is_that_of_the_known_cells(name: str) -> None:
    columns = [(TRUTH[KNOWN[:, c], c], PRED[KNOWN[:, c], c]) for c in range(3)]
    cells = TRUTH[KNOWN], PRED[KNOWN]
    expected = {
        "roc_auc": lambda: np.mean([roc_auc_score(*each) for each in columns]),
        "log_loss": lambda: log_loss(*cells),
        "f1_macro": lambda: np.mean([f1_score(t, p >= 0.5) for t, p in columns]),
        "f1_micro": lambda: f1_score(cells[0], cells[1] >= 0.5),
    }.get(name, lambda: np.mean([metrics.score(name, *each) for each in columns]))
    assert metrics.score(name, TRUTH, PRED) == pytest.approx(expected())
    weight = np.arange(200) % 3
    rows = np.repeat(np.arange(200), weight)
    assert metrics.score(name, TRUTH, PRED, weight) == pytest.approx(metrics.score(name, TRUTH[rows], PRED[rows]))
    assert metrics.resampler(metrics.resolve(name), TRUTH, PRED)(weight.astype(float)) == pytest.approx(
        metrics.score(name, TRUTH[rows], PRED[rows])
    )


@pytest.mark.parametrize("loss", ["bce", "focal", "asymmetric"])
def test_ignored_cells_have_no_part_in_the_loss_and_no_gradient(loss: str) -> None:
    targets = Targets("multilabel", list("abc"), list("abc"), "sigmoid")
    function = losses.make_loss(Train(loss=loss), targets, torch.tensor([[1.0, 2, 1], [3, 1, 1]]))
    target = torch.from_numpy(TRUTH[:8]).float()
    values, gradients = [], []
    for unknown in (0.0, 5.0):
        logits = torch.where(target.isnan(), unknown, torch.linspace(-2, 2, 24).reshape(8, 3)).requires_grad_()
        value = function(logits, target)
        value.backward()
        values.append(value.item())
        gradients.append(logits.grad)
    assert values[0] == values[1] > 0
    for gradient in gradients:
        assert gradient[target.isnan()].abs().max() == 0
        assert gradient[~target.isnan()].isfinite().all()


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "f1_macro"])
def test_every_blending_method_takes_labels_with_gaps(metric: str) -> None:
    """What is said of unknown cells changes nothing: their predictions are drawn anew, the score stays."""
    scores = []
    for seed in (0, 1):
        noise = np.random.default_rng(seed).random((3, *TRUTH.shape))
        preds = np.where(KNOWN, np.stack([PRED, 0.5 * PRED + 0.25, PRED**2]), noise)
        scores.append(blend.fit_weights(preds, TRUTH, metric, "stack", draws=100).nested_score)
    assert scores[0] == pytest.approx(scores[1])
    made = blend.fit_weights(preds, TRUTH, metric, "auto", draws=100, families=[("x", "1")] * 3)
    assert np.isfinite([row["nested_score"] for row in made.table]).all()


def test_labels_with_gaps_go_all_the_way(tmp_path: Path) -> None:
    place = make_tiny(tmp_path)
    table = gaps(place, blank="ignore", uncertain="0.5").dropna(how="all")
    assert "could not be made" not in place.run("01_preprocess.py", "--sizes", 32).stderr
    read = pd.read_parquet(place.derived / "index.parquet").set_index("id")
    for name in "abc":
        column = read.loc[table.index, f"target_{name}"]
        np.testing.assert_array_equal(column, table[name].replace(-1, 0.5))
    quick = ["train.epochs=1", "train.threads=1", "augment.mixup=0.4"]
    done = place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all", *quick)
    assert "could not be made" not in done.stderr
    place.run("03_metadata.py")
    place.run("04_embed.py", "--run", "quick", "--head", "logreg")
    place.run("06_blend.py", "--name", "s")
    for run in ("quick", "lightgbm", "quick_logreg"):
        oof = pd.read_csv(place.runs / run / "oof.csv")
        truth = index.known(table.loc[oof["id"]].reset_index(drop=True))
        known = truth.notna()
        expected = np.mean([roc_auc_score(truth[c][known[c]], oof[f"pred_{c}"][known[c]]) for c in "abc"])
        assert json.loads((place.runs / run / "run.json").read_text())["score"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "labels", "cells", "expected"),
    [
        ("binary", {"blank": "0"}, ["1", "", "1"], [1, 0, 1]),
        ("binary", {"blank": "ignore", "uncertain": "1"}, ["0", "", "-1"], [0, 1]),
        ("multilabel", {"blank": "ignore", "uncertain": "ignore"}, ["1", "", "-1"], [1, np.nan, np.nan]),
        ("multilabel", {"blank": "1", "uncertain": "0.5"}, ["0", "", "-1"], [0, 1, 0.5]),
        ("multiclass", {"blank": "ignore"}, ["x", "", "y"], ["x", "y"]),
    ],
)
def test_blank_and_uncertain_cells_are_what_the_competition_says(
    tiny: Workplace, task: str, labels: dict, cells: list, expected: list
) -> None:
    table = pd.read_csv(tiny.raw / "train.csv").assign(y=[cells[k % 3] for k in range(60)], other=np.arange(60) % 2)
    table.to_csv(tiny.raw / "train.csv", index=False)
    target = ["y", "other"] if task == "multilabel" else "y"
    metric = "accuracy" if task == "multiclass" else "roc_auc"
    tiny.describe(task=task, target=target, labels=labels, metric=metric, sample_submission=None)
    done = tiny.run("01_preprocess.py", "--sizes", 32)
    read = pd.read_parquet(tiny.derived / "index.parquet")
    column = read.loc[read["split"] == "train", "target_y" if task == "multilabel" else "target"]
    np.testing.assert_array_equal(column[: len(expected)], expected)
    assert ("20 of 60 rows have no label" in done.stderr) == (len(expected) < 3)


@pytest.mark.parametrize(
    ("task", "labels", "cells", "said"),
    [
        ("binary", {}, ["1", "", "0"], "row 3 (id tr0001): 'y' is empty; give it a label, take the row out, or say"),
        ("binary", {}, ["1", "-1", "0"], "found -1; if it means uncertain, set `labels: {uncertain: ignore}`"),
        ("binary", {"uncertain": "0.5"}, ["1", "-1", "0"], "belongs to task: multilabel"),
        ("multiclass", {"blank": "0"}, ["x", "", "y"], "`labels` of 0 and 1 belong to"),
        ("binary", {"blank": "maybe"}, ["x", "", "y"], "labels.blank"),
    ],
)
def test_cells_without_a_meaning_are_refused(tiny: Workplace, task: str, labels: dict, cells: list, said: str) -> None:
    table = pd.read_csv(tiny.raw / "train.csv").assign(y=[cells[k % 3] for k in range(60)])
    table.to_csv(tiny.raw / "train.csv", index=False)
    tiny.describe(task=task, target="y", labels=labels)
    assert said in tiny.refused("01_preprocess.py", "--sizes", 32)


@pytest.mark.smoke
def test_a_mirror_image_answers_with_left_and_right_exchanged(tmp_path):
    """Each half's brightness is its label: a mirrored view must say the same of the same side."""

    class Halves(torch.nn.Module):
        slices = None

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor, metadata: None = None) -> torch.Tensor:
            left, right = images.float().mean(dim=(1, 3)).split(images.shape[2] // 2, dim=1)
            return torch.stack([left.mean(1), right.mean(1), images.float().mean(dim=(1, 2, 3))], dim=1) / 255

    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, :, :4], images[1, :, 4:] = 255, 100
    np.save(tmp_path / "images_8.npy", images)
    ids = pd.DataFrame({"split": "train", "id": ["a", "b"], "ok": 1})
    cache = Cache(tmp_path / "images_8.npy", 8, ids)
    recipe = load_recipe("baseline", ["image_size=16", "predict.tta=flip", "predict.batch_size=2"])
    recipe = recipe.model_copy(update={"image_size": 8})
    names = ["left", "right", "both"]
    plain, swapped = (
        predict_rows(
            Halves(), cache, np.arange(2), Targets("multilabel", names, names, "identity", mirror=mirror), recipe
        )
        for mirror in (None, [1, 0, 2])
    )
    assert np.allclose(plain[:, 0], plain[:, 1]) and np.allclose(swapped[0], [1, 0, 0.5])
    assert np.allclose(swapped[1], [0, 100 / 255, 50 / 255], atol=1e-6)
    base = {"name": "x", "metric": "log_loss", "train": {"table": "t.csv", "images": "{id}.png"}, "target": names[:2]}
    fits = validate(Competition, {**base, "task": "multilabel", "mirror": {"left": "right"}}, "x.yaml")
    assert fits.mirror == {"left": "right"}
    for wrong in (
        {"task": "multiclass", "mirror": {"left": "right"}},
        {"task": "multilabel", "mirror": {"left": "up"}},
    ):
        with pytest.raises(UserError, match="mirror"):
            validate(Competition, {**base, **wrong}, "x.yaml")


@pytest.mark.smoke
@pytest.mark.parametrize("value", ["9223372036854775809", "1e39", "-2e18"])
def test_a_target_that_no_network_can_learn_is_refused(tiny: Workplace, value: str) -> None:
    tiny.describe(task="regression", metric="rmse")
    table = pd.read_csv(tiny.raw / "train.csv", dtype=str)
    table.loc[3, "sick"] = value
    table.to_csv(tiny.raw / "train.csv", index=False)
    assert "rescale it" in tiny.refused("01_preprocess.py", "--sizes", 32)


@pytest.mark.smoke
def test_a_target_listed_twice_is_refused(tiny: Workplace) -> None:
    tiny.describe(task="multilabel", target=["sick", "sick"])
    assert "`target` names 'sick' twice" in tiny.refused("01_preprocess.py", "--sizes", 32)


@pytest.mark.smoke
def test_whole_numbers_that_int64_does_not_hold_stay_floats() -> None:
    whole = [tables.are_whole(pd.Series(values)) for values in ([1.0, -3.0], [1.5], [2.0**63, 1.0], [np.nan, 1.0])]
    assert whole == [True, False, False, False]
