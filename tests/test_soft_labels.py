"""A competition of votes, from the raw folder to the submission, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import Workplace, make_tiny, picture

from foldwise.blend import fit_weights
from foldwise.metrics import score
from foldwise.tabular.learners import VOTES, by_votes

CLASSES = ["dark", "grey", "bright"]


def make_votes(root: Path) -> Workplace:
    """The tiny competition with three kinds of discs, and votes of ten experts who mostly see which."""
    place = make_tiny(root, rows=90, test_rows=15)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        table = pd.read_csv(place.raw / f"{split}.csv")
        kind = rng.integers(0, 3, len(table))
        for name, k in zip(table["image_id"], kind, strict=True):
            image = picture(rng, k == 2)
            if k == 1:
                image[image == 25] = 128
            cv2.imwrite(str(place.raw / split / f"{name}.png"), image)
        votes = 8 * np.eye(3, dtype=int)[kind] + rng.multinomial(2, np.ones(3) / 3, len(table))
        table["age"] = 40 + 20 * kind + rng.normal(0, 4, len(table))
        frame = table.drop(columns="sick", errors="ignore").assign(**dict(zip(CLASSES, votes.T, strict=True)))
        keep = frame if split == "train" else frame.drop(columns=CLASSES)
        keep.to_csv(place.raw / f"{split}.csv", index=False)
        if split == "test":
            frame[["image_id", *CLASSES]].assign(**dict.fromkeys(CLASSES, 1 / 3)).to_csv(
                place.raw / "sample_submission.csv", index=False
            )
            frame.to_csv(root / "truth.csv", index=False)
    place.describe(task="soft", target=CLASSES, metric="kl_divergence", name="votes")
    (root / "input" / "tiny").rename(place.raw)
    return place


@pytest.fixture(scope="module")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = make_votes(tmp_path_factory.mktemp("votes"))
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all", "train.threads=1", "train.precision=plain")
    place.run("03_metadata.py", "--report")
    place.run("04_embed.py", "--run", "quick", "--head", "logreg")
    return place


def test_votes_become_a_submission_whose_rows_sum_to_one(voted):
    runs = sorted(path.name for path in voted.runs.iterdir() if (path / "oof.csv").exists())
    assert len(runs) == 3
    for run in runs:
        for name in ("oof.csv", "test.csv"):
            table = pd.read_csv(voted.runs / run / name)
            assert table[[f"pred_{c}" for c in CLASSES]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    table = pd.read_csv(voted.runs / "lightgbm" / "oof.csv")
    truth, pred = (table[[f"{what}_{c}" for c in CLASSES]].to_numpy() for what in ("target", "pred"))
    assert truth.sum(axis=1) == pytest.approx(1) and set(np.round(truth * 10, 6).ravel()) >= {0, 1, 8, 9}
    info = json.loads((voted.runs / "lightgbm" / "run.json").read_text())
    assert info["score"] == pytest.approx(score("kl", truth, pred)) and info["score"] < 0.25
    constant = score("kl", truth, np.tile(truth.mean(axis=0), (len(truth), 1)))
    assert constant > 0.5
    done = voted.run("06_blend.py")
    facts = json.loads((voted.submissions / "blend.json").read_text())
    assert facts["nested_score"] < info["score"] + 0.02 and "kl_divergence" in done.stdout
    sent = pd.read_csv(voted.submissions / "blend.csv")
    assert list(sent) == ["image_id", *CLASSES] and sent[CLASSES].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    expected = pd.read_csv(voted.root / "truth.csv").set_index("image_id").loc[sent["image_id"], CLASSES].to_numpy()
    assert (sent[CLASSES].to_numpy().argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8
    assert "of shares that sum to one" in voted.refused("06_blend.py", "--method", "stack")


@pytest.mark.parametrize(
    "method", ["mean", "logit", "geometric", "gradient", "weights", "hill", "caruana", "hierarchical"]
)
def test_blends_of_votes_learn_which_run_is_the_better(method):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 300)
    runs = np.stack([np.exp(np.log(shares + 0.02) + rng.normal(0, noise, shares.shape)) for noise in (0.2, 1.5)])
    runs /= runs.sum(axis=2, keepdims=True)
    blend = fit_weights(runs, shares, "kl_divergence", method, draws=0)
    assert blend.predict(runs).sum(axis=1) == pytest.approx(1)
    best, mean = score("kl", shares, runs[0]), score("kl", shares, runs.mean(axis=0))
    assert blend.nested_score < (2 * mean if method in {"mean", "logit", "geometric"} else best + 0.005)


def test_reports_and_pages_count_votes_by_the_likeliest_class(voted):
    page = (voted.derived / "report.html").read_text()
    assert "could not be made" not in page and "soft, scored by kl_divergence" in page
    confusion = pd.read_csv(voted.runs / "lightgbm" / "report" / "confusion.csv")
    assert set(CLASSES) <= set(map(str, confusion.to_numpy().ravel())) | set(confusion)
    voted.run("07_explain.py", "--run", "quick", "--rows", "tr0001")
    voted.run("10_report.py")
    voted.run("05_predict.py", "--run", "quick")


@pytest.mark.smoke
def test_a_row_stands_as_often_as_it_was_voted_for():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 2000).astype(np.float32)
    rows, classes = by_votes(shares)
    assert len(rows) == 2000 * VOTES and (np.bincount(rows) == VOTES).all()
    drawn = np.zeros((2000, 4))
    np.add.at(drawn, (rows, classes), 1 / VOTES)
    assert np.abs(drawn - shares).max() < 2 / VOTES
    assert drawn.mean(axis=0) == pytest.approx(shares.mean(axis=0), abs=4e-3)


@pytest.mark.parametrize(("cell", "words"), [(-1, "row 4"), ("x", "row 4"), (0, "a sum above 0")])
def test_votes_that_are_none_are_named_by_their_row(tmp_path, cell, words):
    place = make_votes(tmp_path)
    table = pd.read_csv(place.raw / "train.csv").astype({name: object for name in CLASSES})
    table.loc[2, CLASSES] = cell
    table.to_csv(place.raw / "train.csv", index=False)
    assert words in place.refused("01_preprocess.py", "--sizes", 32)
