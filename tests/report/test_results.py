"""The page of all runs: numbers that come from the tables, runs that are broken, and a table that sorts and filters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace
from sklearn.metrics import roc_auc_score

from foldwise import UserError
from foldwise.core.files import write_json
from foldwise.data import submission
from foldwise.data.competition import Competition, load_competition
from foldwise.report import curves, results, results_page

HOSTILE = 'a "run" <b>&amp;'


def log(rows: int = 4, metric: str = "roc_auc", **columns: object) -> pd.DataFrame:
    """A training log whose second epoch is the best."""
    epochs = np.arange(1, rows + 1)
    made = {"epoch": epochs, "lr": 1e-3 / epochs, "train_loss": 1 / epochs, "valid_loss": 1.1 / epochs}
    made |= {metric: np.where(epochs == 2, 0.9, 0.6), "best": (epochs <= 2).astype(float)}
    return pd.DataFrame({**made, "seconds": 1.0, "images_per_second": 10.0, **columns})


# --- curves -------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_curves_of_every_fold_are_drawn_with_the_epoch_that_predicts(tmp_path: Path) -> None:
    for fold in (0, 1, 10):
        log().to_csv(tmp_path / f"fold{fold}_log.csv", index=False)
    logs = curves.read(tmp_path)
    assert list(logs) == [0, 1, 10]
    assert curves.chosen(logs[0])["epoch"] == 2
    train, valid, score, rate = curves.figure(logs, "roc_auc").axes
    assert [len(place.lines) for place in (train, valid, score, rate)] == [3, 6, 6, 1]  # dots; one shared rate
    assert train.get_ylim() == valid.get_ylim()
    assert [place.get_ylabel() for place in (train, score, rate)] == ["loss", "roc_auc", "learning rate"]
    assert score.lines[1].get_xydata().tolist() == [[2.0, 0.9]]
    path = curves.draw(tmp_path)
    assert path == tmp_path / "curves.png" and path.read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.smoke
def test_the_metric_is_found_by_name_or_by_its_place() -> None:
    wide = log(metric="my_module:score", grad_norm=1.0)
    assert curves.metric_column(wide) == "my_module:score"
    assert curves.metric_column(wide, "grad_norm") == "grad_norm"
    assert curves.metric_column(wide, "absent") == "my_module:score"


@pytest.mark.smoke
def test_logs_that_are_none_stop_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curves.draw(tmp_path) is None
    (tmp_path / "fold0_log.csv").write_text("epoch,lr\n1,what\n")
    assert curves.draw(tmp_path) is None
    assert "fold0_log.csv" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"fold0_log\.csv: not a training log \(no column train_loss\)"):
        curves.read(tmp_path)
    log(1).assign(roc_auc=np.nan, best=0.0).to_csv(tmp_path / "fold0_log.csv", index=False)  # a fold of one class
    assert curves.draw(tmp_path) is not None


# --- results ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(trained: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The trained competition, with runs from elsewhere, half-finished ones and broken ones beside its own."""
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(trained.root, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("oof", "submissions"))
    made = Workplace(root, root / "tiny.yaml")
    runs = made.runs
    for name in ("quick", "lightgbm"):
        shutil.copytree(trained.runs / name, runs / name)
    for name in ("torn", "moved", "half", "edited", "bad_json", "begun", "no_log"):
        shutil.copytree(runs / "quick", runs / name)
    (runs / HOSTILE).mkdir()
    for table in ("oof.csv", "test.csv"):
        shutil.copy(runs / "lightgbm" / table, runs / HOSTILE / table)
    text = (runs / "torn" / "oof.csv").read_text().splitlines()
    (runs / "torn" / "oof.csv").write_text("\n".join([*text[:9], text[9].rpartition(",")[0] + ",?", *text[10:]]))
    frame = pd.read_csv(runs / "moved" / "oof.csv")
    frame.assign(fold=(frame["fold"] + 1) % 3).to_csv(runs / "moved" / "oof.csv", index=False)
    for path in [runs / "half" / "oof.csv", runs / "half" / "fold0.csv", runs / "half" / "fold2_test.csv"]:
        path.unlink()
    frame = pd.read_csv(runs / "edited" / "oof.csv")
    frame.assign(pred=1 - frame["pred"]).to_csv(runs / "edited" / "oof.csv", index=False)
    (runs / "bad_json" / "run.json").write_text("{")
    for path in [*(runs / "begun").glob("*.csv")]:
        path.unlink()
    log(2).to_csv(runs / "begun" / "fold1_log.csv", index=False)
    (runs / "no_log" / "fold0_log.csv").write_text("nothing")
    (runs / "not a run").mkdir()
    return made


@pytest.fixture
def found(about: Competition) -> dict[str, results.Result]:
    return {one.run: one for one in results.gather(about)}


def test_scores_are_those_of_the_tables(place: Workplace, found: dict[str, results.Result]) -> None:
    for name in ("quick", "lightgbm"):
        one, info = found[name], json.loads((place.runs / name / "run.json").read_text())
        table = pd.read_csv(place.runs / name / "oof.csv")
        assert one.score == pytest.approx(roc_auc_score(table["target"], table["pred"]))
        assert one.score == pytest.approx(info["score"]) and one.fold_std == pytest.approx(info["fold_std"])
        for fold, rows in table.groupby("fold"):
            assert one.by_fold[fold] == pytest.approx(roc_auc_score(rows["target"], rows["pred"]))
        assert one.low <= one.score <= one.high and one.complete and one.folds_wanted == 3
    assert found[HOSTILE].score == found["lightgbm"].score and found[HOSTILE].model == "made elsewhere"
    quick = json.loads((place.runs / "quick" / "run.json").read_text())
    assert found["quick"].seconds == pytest.approx(sum(fold["seconds"] for fold in quick["folds"].values()), abs=0.5)
    assert np.isnan(found[HOSTILE].seconds)
    beside = [{"seconds": 60, "ended": 100}, {"seconds": 50, "ended": 110}, {"seconds": 10, "ended": 200}]
    assert results._wall(beside) == 80 and results._wall([*beside, {"seconds": 7}]) == 87


def test_what_is_broken_is_named_with_its_reason(found: dict[str, results.Result]) -> None:
    assert re.match(r"oof\.csv: row 10 .*pred is '\?', not a finite number", found["torn"].reason)
    assert "made on other folds" in found["moved"].reason
    assert "run.json: damaged" in found["bad_json"].reason
    assert found["begun"].reason == "no fold is finished yet (begun: fold1)"
    assert "not a run" not in found
    assert not found["no_log"].reason  # its log is damaged, its predictions are not
    assert re.match(r"run\.json says .* they were changed since", found["edited"].note)


def test_a_fold_counts_for_itself_and_against_the_same_rows_of_the_best(
    place: Workplace, found: dict[str, results.Result]
) -> None:
    half, best = found["half"], next(iter(found.values()))  # only fold 1 has both tables
    assert (half.folds_done, half.folds_wanted, half.complete, list(half.by_fold)) == (1, 3, False, [1])
    assert best.complete and best.score == max(one.score for one in found.values() if one.complete)
    other = pd.read_csv(place.runs / best.run / "oof.csv").query("fold == 1")
    mine = pd.read_csv(place.runs / "half" / "fold1.csv")
    gain = roc_auc_score(mine["target"], mine["pred"]) - roc_auc_score(other["target"], other["pred"])
    assert half.gain == pytest.approx(gain)
    assert half.gain_low <= half.gain <= half.gain_high
    order = [(bool(one.reason), not one.complete) for one in found.values()]
    assert order == sorted(order)


def test_only_what_differs_from_the_defaults_is_told(found: dict[str, results.Result]) -> None:
    differs = found["quick"].differs
    assert differs["image_size"] == "32" and differs["train.epochs"] == "2" and "train.optimizer" not in differs
    old = {"image_size": 64, "model": {"name": "resnet18"}, "train": {"epochs": 3}}  # before other knobs were there
    assert results.differs(old) == {"image_size": "64", "model.name": "resnet18", "train.epochs": "3"}
    assert results.differs({"model": "lightgbm", "seed": 1}) == {"model": "lightgbm", "seed": "1"}
    assert results.differs({"image_size": 64, "a_knob_of_later": 1}) == {"image_size": "64", "a_knob_of_later": "1"}


def test_a_competition_without_test_rows_has_results_too(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    shutil.copytree(place.derived, tmp_path / "input" / "derived" / "tiny")
    shutil.copytree(place.runs / "lightgbm", tmp_path / "oof" / "tiny" / "lightgbm")
    index = tmp_path / "input" / "derived" / "tiny" / "index.parquet"
    pd.read_parquet(index).query("split == 'train'").to_parquet(index)
    (tmp_path / "oof" / "tiny" / "lightgbm" / "test.csv").unlink()
    (one,) = results.gather(load_competition(str(place.competition)))
    assert not one.reason and one.complete


def test_the_script_writes_page_table_and_curves(place: Workplace) -> None:
    done = place.run("10_report.py")
    assert "torn" in done.stdout and "left out: oof.csv: row 10" in done.stdout
    table = pd.read_csv(place.runs / "results.csv").set_index("run")
    assert set(table.index) == {
        "quick",
        "lightgbm",
        HOSTILE,
        "torn",
        "moved",
        "half",
        "edited",
        "bad_json",
        "begun",
        "no_log",
    }
    assert table.loc["quick", "score"] == pytest.approx(
        json.loads((place.runs / "quick" / "run.json").read_text())["score"], abs=1e-5
    )
    page = (place.runs / "results.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert HOSTILE not in page and f"<td>{HOSTILE}" in unescape(page).replace(f'">{HOSTILE}</a>', f"<td>{HOSTILE}")
    for link in re.findall(r'(?:href|src)="(?!data:)([^"#][^"]*)"', page):
        assert (place.runs / unquote(link)).exists(), link
    assert 'src="quick/report/confusion.png"' in page and 'src="quick/report/calibration.png"' in page
    assert (place.runs / "quick" / "curves.png").exists() and not (place.runs / "lightgbm" / "curves.png").exists()
    assert place.refused("10_report.py", "--runs", "quik").endswith("no such run; did you mean 'quick'?")


def test_nothing_there_is_said(about: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="no runs; make one with"):
        results.gather(about)


def test_the_table_sorts_and_filters_in_a_browser(
    about: Competition, found: dict[str, results.Result], tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    steps = """<script>
const press = name => [...document.querySelectorAll("th button")].find(one => one.textContent === name).click();
const names = () => [...document.querySelectorAll("table.runs tbody tr")].filter(row => !row.hidden)
  .map(row => row.cells[0].textContent);
const told = {start: names()};
press("run"); told.up = names(); press("run"); told.down = names();
press("roc_auc"); told.score = names(); press("roc_auc"); told.worst = names();
press("time"); told.time = names();
const box = document.getElementById("filter");
const type = text => { box.value = text; box.dispatchEvent(new Event("input")); };
type("lightgbm"); told.filter = names(); told.shown = document.getElementById("shown").textContent;
type("-lightgbm -elsewhere"); told.without = names(); type(""); told.all = names();
told.sorted = [...document.querySelectorAll("th")].map(head => head.ariaSort).filter(Boolean);
location.hash = document.querySelector("table.runs a").getAttribute("href");
dispatchEvent(new Event("hashchange"));
told.opened = [...document.querySelectorAll("details[open]")].map(one => one.id);
document.title = JSON.stringify(told);
</script>"""
    path = tmp_path / "page.html"
    path.write_text(results_page.draw_page(about, list(found.values())).html().replace("</body>", steps + "</body>"))
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = json.loads(unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))  # type: ignore[index]
    scored = [one for one in found.values() if not one.reason]
    assert told["start"] == [one.run for one in scored] == told["all"] or sorted(told["all"]) == sorted(told["start"])
    assert told["up"] == sorted(told["start"], key=str.lower) and told["down"] == told["up"][::-1]
    value = {one.run: round(one.score, 9) for one in scored}  # sums in another order differ in their last digits
    assert [value[name] for name in told["score"]] == sorted(value.values(), reverse=True)
    assert [value[name] for name in told["worst"]] == sorted(value.values())
    timed = [found[name].seconds for name in told["time"]]
    known = [one for one in timed if not np.isnan(one)]
    assert timed[: len(known)] == sorted(known) and np.isnan(timed[len(known) :]).all()  # unknown ones last
    assert told["filter"] == ["lightgbm"] and told["shown"] == f"1 of {len(scored)} runs"
    assert set(told["without"]) == set(value) - {"lightgbm", HOSTILE}
    assert told["sorted"] == ["ascending"] and len(told["opened"]) == 1


def test_blends_and_the_leaderboard_s_scores_are_rows(about: Competition, found: dict[str, results.Result]) -> None:
    gain = {"gain": 0.02, "low": 0.01, "high": 0.03, "share_above_zero": 1.0}
    meta = {"method": "mean", "space": "prob", "metric": "roc_auc", "runs": [{"run": "quick"}, {"run": "lightgbm"}]}
    meta |= {"nested_score": 0.91, "interval_95": [0.88, 0.94], "in_sample_score": 0.92, "rows": 59}
    try:
        about.submissions().mkdir(parents=True)
        write_json(about.submissions() / "mix.json", {**meta, "gains": {"over_best_single": gain}})
        submission.log_submission(about, "mix", meta)
        submission.log_leaderboard(about, "mix", [0.9123])
        (one,) = results.blends(about)
        assert (one.score, one.gain_low, one.public, one.model) == (0.91, 0.01, 0.9123, "mean of 2 runs")
        html = results_page.draw_page(about, list(found.values())).html()
    finally:
        shutil.rmtree(about.submissions().parent)
    assert ">mix</a> (blend)" in html and ">public</button>" in html and 'data-v="0.9123">0.9123<' in html
    assert "<h2>How alike the runs are</h2>" in html
