"""The page of one run: its tiles and warnings are right, one threshold decides, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace

from foldwise.data.competition import load_competition
from foldwise.report import curves, run_figures
from foldwise.report.results import Result
from foldwise.report.run import _warnings, write_run_report


@pytest.fixture
def page(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLDWISE_ROOT", str(trained.root))
    return write_run_report(load_competition(str(trained.competition)), "quick")


def test_tiles_links_and_command(trained: Workplace, page: Path) -> None:
    html = page.read_text()
    table = pd.read_csv(trained.runs / "quick" / "oof.csv")
    tiles = re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", html)
    assert {"fold 0", "fold 1", "fold 2", "rows"} <= {label for _, label in tiles}
    assert dict((label, value) for value, label in tiles)["rows"] == f"{len(table)}"
    assert any(re.fullmatch(r"roc_auc, out-of-fold, 95 % interval [\d.]+ to [\d.]+", label) for _, label in tiles)
    links = [unquote(link) for link in re.findall(r'<a href="([^"#]+)"', html)]
    assert any(link.endswith("derived/tiny/report.html") for link in links)
    assert all((page.parent / link).exists() for link in links), links
    assert re.search(r"<pre>python \S+02_train\.py --competition \S+ --recipe quick.yaml --fold all</pre>", html)
    for section in ("ROC and precision", "Learning curves", "Settings"):
        assert f"<h2>{section}</h2>" in html


def test_one_threshold_is_named_where_rows_are_taken_for_others(page: Path) -> None:
    cells = pd.read_csv(page.parent / "confusion.csv")
    mine = cells[(cells["at"] == "as many as are 1") & (cells["truth"] != cells["answer"])]
    said = dict(
        re.findall(r"<h3>sick = (\d), taken for sick = \d</h3><p class=soft>(\d+) of \d+, answered", page.read_text())
    )
    assert said and {int(truth): int(rows) for truth, rows in said.items()} == {
        int(row.truth): int(row.rows) for row in mine.itertuples() if row.rows
    }


def result(**facts: object) -> Result:
    return Result("r", Path("/nowhere"), score=0.80, low=0.77, high=0.83, fold_mean=0.801, **facts)  # type: ignore[arg-type]


def test_warnings_of_scores_that_part_and_of_a_fold_that_stands_out(trained: Workplace) -> None:
    about = load_competition(str(trained.competition))
    alike = dict(enumerate([0.80, 0.81, 0.79, 0.80, 0.805]))
    assert not _warnings(about, result(by_fold=alike))
    (line,) = _warnings(about, result(by_fold={**alike, 2: 0.70}))
    assert line.startswith("fold 2 stands out: 0.7000, the others 0.8000 to 0.8100")
    (line,) = _warnings(about, Result("r", Path("/nowhere"), score=0.814, low=0.79, high=0.84, fold_mean=0.841))
    assert "over all rows 0.8140, by fold 0.8410" in line


def log(valid: list[float]) -> pd.DataFrame:
    epochs = np.arange(1, len(valid) + 1)
    facts = {"epoch": epochs, "lr": 1e-3, "train_loss": 1 / epochs, "valid_loss": valid, "roc_auc": 0.8, "best": 1.0}
    return pd.DataFrame(facts)


@pytest.mark.smoke
def test_curves_that_part_are_told_and_one_wild_epoch_is_clipped() -> None:
    falls, rises = log([0.9, 0.7, 0.6, 0.58, 0.6]), log([0.9, 0.6, 0.7, 0.8, 0.9])
    assert curves.parted({0: falls, 1: falls, 2: rises}) is None
    said = curves.parted({0: falls, 1: rises, 2: rises})
    assert said is not None and "in 2 of 3 folds (by up to 50% since epoch 2)" in said
    wild = log([400.0, *[0.7] * 30])
    train, valid, *_ = curves.figure({0: wild}).axes
    assert train.get_ylim() == valid.get_ylim() and valid.get_ylim()[1] < 5


@pytest.mark.smoke
def test_operating_points_lie_on_the_curves() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(400) < 0.3).astype(np.int64)
    p = np.round(np.clip(0.3 * truth + rng.random(400) * 0.7, 0, 1), 2)
    roc, pr = run_figures.roc_pr({"y": (p, truth)}, [("0.5", 0.5)]).axes
    for axes, place in ((roc, ((p >= 0.5)[truth == 0].mean(), (p >= 0.5)[truth == 1].mean())), (pr, None)):
        line, dot = (one.get_xydata() for one in [axes.lines[0], next(x for x in axes.lines if x.get_marker() == "o")])
        assert place is None or dot[0] == pytest.approx(place)
        assert np.abs(line - dot[0]).sum(axis=1).min() < 1e-9
