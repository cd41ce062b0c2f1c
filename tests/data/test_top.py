"""Predictions of many classes: what is kept of them gives the scores and the blends of the whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, Workplace

from foldwise import UserError, metrics
from foldwise.data import oof, top
from foldwise.data.competition import load_competition

CLASSES = 40


def whole(seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, C) probabilities with ties, and truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, CLASSES)).round(1) * 2
    pred = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return pred.astype(np.float32), np.random.default_rng(9).integers(0, CLASSES, rows)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1_micro", "f1_macro", "map@5", "top_k_error@3"])
def test_scores_of_what_is_kept_are_those_of_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "KEPT", 10)
    pred, truth = whole(0)
    assert top.score(metrics.resolve(name), truth, top.keep(pred)) == pytest.approx(metrics.score(name, truth, pred))


@pytest.mark.smoke
def test_log_loss_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, truth = whole(0)
    every = top.score(metrics.resolve("log_loss"), truth, top.keep(pred))
    assert every == pytest.approx(metrics.score("log_loss", truth, pred), rel=1e-5)
    monkeypatch.setattr(top, "KEPT", 5)
    codes = np.argsort(-pred, axis=1, kind="stable")[:, :5]
    flat = np.repeat((1 - np.take_along_axis(pred, codes, 1).sum(axis=1, keepdims=True)) / 35, CLASSES, axis=1)
    np.put_along_axis(flat, codes, np.take_along_axis(pred, codes, 1), axis=1)
    kept = top.score(metrics.resolve("log_loss"), truth, top.keep(pred))
    assert kept == pytest.approx(metrics.score("log_loss", truth, flat), rel=1e-5)
    with pytest.raises(UserError, match="not for more than"):
        top.score(metrics.resolve("roc_auc"), truth, top.keep(pred))


@pytest.mark.smoke
def test_merging_and_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "KEPT", 6)
    preds = [whole(seed)[0] for seed in range(3)]
    tops = [top.keep(pred) for pred in preds]
    slots, said = top.merge(tops, np.full(60, 39))
    for row in range(60):
        held = slots[row][slots[row] >= 0]
        kept = [set(top.split(one)[0][row]) for one in tops]
        assert held.tolist() == sorted(set.union(*kept) | {39})
        for m, one in enumerate(tops):
            for j, code in enumerate(held):
                expected = preds[m][row, code] if code in kept[m] else one[row, -1]
                assert said[m, row, j] == pytest.approx(expected)
    dense = np.mean([_dense(one) for one in tops], axis=0)
    codes, values, _ = top.split(top.mean(tops))
    np.testing.assert_allclose(values, -np.sort(-dense, axis=1)[:, :6], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(dense, codes, axis=1), values, rtol=1e-5)


def _dense(one: np.ndarray) -> np.ndarray:
    codes, values, rest = top.split(one)
    dense = np.repeat(rest[:, None], CLASSES, axis=1)
    np.put_along_axis(dense, codes, values, axis=1)
    return dense


MANY = 1010  # classes: a colour each


def colour(k: int) -> np.ndarray:
    return np.full((12, 12, 3), (k % 11 * 23, k // 11 % 11 * 23, k // 121 * 23), np.uint8)


def test_a_competition_of_many_classes_from_raw_folder_to_submission(tmp_path: Path) -> None:
    place = Workplace(tmp_path, tmp_path / "many.yaml")
    rng = np.random.default_rng(0)
    raw = tmp_path / "input" / "many"
    rows = {"train": np.repeat(np.arange(MANY), 2), "test": rng.permutation(MANY)[:30]}
    for split, kinds in rows.items():
        (raw / split).mkdir(parents=True)
        ids = [f"{split[1]}{k:04d}" for k in rng.permutation(len(kinds))]
        for one, k in zip(ids, kinds, strict=True):
            noisy = np.clip(colour(k) + rng.integers(-2, 3, (12, 12, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(raw / split / f"{one}.png"), noisy)
        table = pd.DataFrame({"id": ids, "species": [f"s{k}" for k in kinds]})
        table.to_csv(raw / f"{split}_truth.csv", index=False)
    pd.DataFrame({"id": ids, "species": "s0"}).to_csv(raw / "sample.csv", index=False)
    place.competition.write_text(
        yaml.safe_dump(
            {
                "name": "many",
                "task": "multiclass",
                "metric": "f1_macro",
                "target": "species",
                "merge_copies": False,
                "group": "none",
                "train": {"table": "train_truth.csv", "images": "train/{id}.png"},
                "test": {"table": "sample.csv", "images": "test/{id}.png"},
                "sample_submission": "sample.csv",
                "folds": {"n": 2},
            }
        )
    )
    recipe = {**QUICK, "image_size": 16, "train": {"epochs": 1, "batch_size": 256, "lr": 0.01}}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(recipe))
    place.run("01_preprocess.py", "--sizes", 16)
    for name in ("a", "b"):
        place.run("02_train.py", "--recipe", tmp_path / "quick.yaml", "--fold", "all", "--name", name)
    competition = load_competition(str(place.competition))
    table = oof.read_table(place.runs / "a" / "oof.csv")
    assert top.is_top(table) and len(table) == 2 * MANY and set(table["fold"]) == {0, 1}
    written = pd.read_csv(place.runs / "a" / "oof.csv")
    assert list(written) == ["id", "fold", "target", "target_code", "class_top1", "pred_top1"]

    # a run from elsewhere that knows the test images' colours: its answers must come back under their ids
    for name, truth in (("oof", "train_truth"), ("test", "test_truth")):
        frame = oof.read_table(place.runs / "a" / f"{name}.csv")
        right = pd.read_csv(raw / f"{truth}.csv").set_index("id")["species"].loc[frame["id"]]
        names = sorted({f"s{k}" for k in range(MANY)})
        dense = np.full((len(frame), MANY), 0.1 / MANY, np.float32)
        dense[np.arange(len(frame)), [names.index(one) for one in right]] += 0.9
        frame = frame.assign(**top.columns(top.keep(dense)))
        oof.write_table(frame, place.runs / "b" / f"{name}.csv")
    done = place.run("06_blend.py", "--all")
    submitted = pd.read_csv(place.submissions / "blend.csv").set_index("id")["species"]
    truth = pd.read_csv(raw / "test_truth.csv").set_index("id")["species"]
    assert (submitted.loc[truth.index] == truth).mean() > 0.95, done.stdout
    assert oof.score(competition, oof.read_table(place.runs / "b" / "oof.csv")) > 0.95
    damaged = place.runs / "b" / "oof_top.parquet"
    pd.read_parquet(damaged).iloc[::-1].to_parquet(damaged)
    assert "its rows are not those of oof.csv" in place.refused("06_blend.py", "--all")
