"""Auxiliary targets: learnt beside the main one, gaps ignored, and in nothing that comes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Workplace, make_tiny

from foldwise import UserError
from foldwise.data import index
from foldwise.data.competition import load_competition
from foldwise.data.recipe import Recipe
from foldwise.train import auxiliary

ASKED = {"age": {"task": "regression", "weight": 0.5}, "site": {"task": "multiclass", "weight": 0.2}}
QUIET = ("--recipe", "quick.yaml", "train.threads=1", "train.precision=plain", "train.epochs=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("auxiliary"), rows=36, test_rows=6)
    made.describe(auxiliary=ASKED)
    made.run("01_preprocess.py", "--sizes", 32)
    return made


def test_targets_are_encoded_and_gaps_have_no_part_in_the_loss(about):
    table = index.load_index(about)
    rows = table[(table["split"] == "train") & table["error"].isna()]
    learnt = auxiliary.of_rows(about, rows, Recipe())
    raw = pd.read_csv(about.raw() / "train.csv").set_index("image_id").loc[rows["id"]]
    assert learnt is not None and learnt.outputs == 3
    assert np.array_equal(np.isnan(learnt.target[:, 0]), raw["age"].isna())
    assert np.nanmean(learnt.target[:, 0]) == pytest.approx(0, abs=1e-5) and np.nanstd(
        learnt.target[:, 0]
    ) == pytest.approx(1)
    assert np.array_equal(learnt.target[:, 1] == 1, raw["site"] == "arm")
    assert np.array_equal(np.isnan(learnt.target[:, 1:]).all(axis=1), raw["site"].isna())
    target, logits = torch.tensor(learnt.target), torch.zeros(len(rows), 3, requires_grad=True)
    value = learnt.loss(logits, target)
    known = np.square(learnt.target[~raw["age"].isna(), 0]).mean()
    assert float(value) == pytest.approx(0.5 * known + 0.2 * np.log(2), rel=1e-5)
    value.backward()
    assert (logits.grad[raw["site"].isna().to_numpy(), 1:] == 0).all() and logits.grad.isfinite().all()
    nothing = torch.full_like(target, float("nan"))
    assert float(learnt.loss(logits, nothing)) == 0


def test_they_change_the_training_and_nothing_that_comes_out(place):
    place.run("02_train.py", "--name", "with", "--fold", "all", *QUIET, "augment.mixup=0.5")
    place.run("02_train.py", "--name", "off", "--fold", "0", *QUIET, "train.auxiliary=false")
    info = json.loads((place.runs / "with" / "run.json").read_text())
    assert info["auxiliary"] == ASKED
    table = pd.read_csv(place.runs / "with" / "oof.csv")
    assert list(table) == ["id", "fold", "target", "pred"]
    place.run("05_predict.py", "--run", "with")  # its weights file fits the network without them
    place.run("06_blend.py", "--runs", "with")
    line = place.refused(
        "02_train.py",
        "--name",
        "with",
        *QUIET,
        "augment.mixup=0.5",
        "--fold",
        "0",
        "--restart",
        "--competition",
        str(other(place)),
    )
    assert "auxiliary" in line
    place.describe(auxiliary={})
    place.run("02_train.py", "--name", "none", "--fold", "0", *QUIET)
    place.describe(auxiliary=ASKED)
    off, none = ((place.runs / run / "fold0.csv").read_bytes() for run in ("off", "none"))
    assert off == none != (place.runs / "with" / "fold0.csv").read_bytes()


def other(place: Workplace) -> Path:
    """The same competition with another weight."""
    text = place.competition.read_text().replace("weight: 0.5", "weight: 0.4")
    path = place.root / "other.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"agee": {"task": "regression", "weight": 1}}, "did you mean 'age'"),
        ({"patient": {"task": "regression", "weight": 1}}, "is no number"),
        ({"patient": {"task": "binary", "weight": 1}}, "needs two classes"),
        ({"sick": {"task": "binary", "weight": 1}}, "is the target itself"),
        ({"age": {"task": "regression", "weight": 0}}, "greater than 0"),
    ],
)
def test_columns_that_do_not_fit_are_refused(place, about, asked, words, tmp_path, monkeypatch):
    made = Workplace(place.root, tmp_path / "c.yaml")
    made.competition.write_text(place.competition.read_text())
    made.describe(auxiliary=asked)
    table = index.load_index(about)
    with pytest.raises(UserError, match=words):
        auxiliary.of_rows(load_competition(str(made.competition)), table[table["split"] == "train"], Recipe())
