"""Prediction tables: what is read back, and what is refused with file and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace

from foldwise import UserError
from foldwise.data import oof
from foldwise.data.competition import load_competition
from foldwise.data.runs import list_runs, load_run, read_run_info, write_run_info

pytestmark = pytest.mark.smoke


def test_a_float32_comes_back_to_the_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(1000, dtype=np.float32) ** 8
    oof.write_table(pd.DataFrame({"id": [f"{k:04d}" for k in range(1000)], "pred": values}), tmp_path / "t.csv")
    back = oof.read_table(tmp_path / "t.csv")
    assert (back["pred"].to_numpy(np.float32) == values).all()
    assert back["id"].iloc[7] == "0007"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,pred\na,0.1\na,0.2\n", "row 3: id 'a' stands there twice"),
        ("id,pred\na,0.1\nb,\n", r"row 3 \(id b\): pred is 'nan'"),
        ("id,pred\na,0.1\nb,high\n", r"row 3 \(id b\): pred is 'high'"),
        ("id,pred\na,0.1\n,0.2\n", "row 3: id .* is empty"),
        ("id,score\na,0.1\n", "needs columns id and pred"),
        ("", "can't be read as a table"),
    ],
)
def test_a_bad_table_names_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "oof.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        oof.read_table(tmp_path / "oof.csv")
    assert str(tmp_path / "oof.csv") in str(error.value)


def test_a_prediction_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="id b"):
        oof.write_table(pd.DataFrame({"id": ["a", "b"], "pred": [0.1, np.nan]}), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


def test_runs_are_listed_and_named(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(trained.root))
    about = load_competition(str(trained.competition))
    assert {"lightgbm", "quick"} <= set(list_runs(about))
    run = load_run(about, "quick")
    assert run.pred_columns == ["pred"]
    assert run.info.metric == "roc_auc"
    with pytest.raises(UserError, match="did you mean 'lightgbm'"):
        load_run(about, "lightgmb")


def test_a_foreign_run_needs_no_run_json(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(trained.root))
    about = load_competition(str(trained.competition))
    folder = trained.runs / "public_notebook"
    folder.mkdir()
    for name in ("oof.csv", "test.csv"):
        (folder / name).write_bytes((trained.runs / "quick" / name).read_bytes())
    try:
        assert load_run(about, "public_notebook").info.says_anything is False
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_run_json_keeps_what_it_does_not_know_and_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"run": "mine", "score": 0.5, "kernel": "https://kaggle.com/k"}')
    write_run_info(tmp_path, info := read_run_info(tmp_path))
    assert info.score == 0.5 and not info.is_whole
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "run": "mine",
        "score": 0.5,
        "kernel": "https://kaggle.com/k",
    }
    (tmp_path / "run.json").write_text('{"score": "high"}')
    with pytest.raises(UserError, match=r"run\.json: damaged \(score: .*number"):
        read_run_info(tmp_path)
