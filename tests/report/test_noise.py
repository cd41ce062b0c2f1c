"""Labels in doubt: candidates over all runs, a page to decide on them, and decisions that step 1 takes in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace

from foldwise import UserError
from foldwise.data import decisions, index
from foldwise.data.competition import load_competition
from foldwise.data.runs import read_run_info
from foldwise.report.noise import write_noise


@pytest.fixture
def place(trained: Workplace, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Workplace:  # type: ignore[no-untyped-def]
    """A copy of the trained competition."""
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    return Workplace(tmp_path, tmp_path / "tiny.yaml")


def planted(place: Workplace, runs: dict[str, float]) -> None:
    """Runs whose only contradiction is of tr0001 (label 0), with that probability."""
    shutil.rmtree(place.runs)
    table = pd.read_parquet(place.derived / "index.parquet")
    frame = pd.read_csv(place.derived / "folds.csv").merge(
        table.loc[table["split"] == "train", ["id", "target"]], on="id"
    )
    for name, p in runs.items():
        (place.runs / name).mkdir(parents=True)
        frame["pred"] = np.where(frame["id"] == "tr0001", p, frame["target"] * 0.9 + 0.05)
        frame[["id", "fold", "target", "pred"]].to_csv(place.runs / name / "oof.csv", index=False)


def test_candidates_are_those_that_half_of_the_runs_contradict(place: Workplace) -> None:
    about = load_competition(str(place.competition))
    planted(place, {"a": 0.99, "b": 0.97, "c": 0.05})
    frame = write_noise(about)
    assert frame is not None and frame["id"].tolist() == ["tr0001"]
    assert frame["runs"].tolist() == ["a b"] and frame["score"].iloc[0] == pytest.approx((0.98 + 0.94) / 3)
    assert list(pd.read_csv(place.runs / "noise.csv")) == ["id", "given", "suggested", "score", "agree", "runs"]
    html = (place.runs / "noise.html").read_text()
    assert 'value="relabel" data-id="tr0001" data-suggested="1"' in html and "://" not in re.sub(
        r"data:[^\"]*", "", html
    )
    planted(place, {"a": 0.99, "b": 0.05, "c": 0.05})
    frame = write_noise(about)
    assert frame is not None and not len(frame)


def test_step_1_takes_decisions_in_and_runs_of_before_are_refused(place: Workplace) -> None:
    file = place.root / "labels.csv"
    file.write_text("id,decision,suggested\ntr0001,relabel,1\ntr0002,drop,\n")
    line = place.refused("01_preprocess.py", "--sizes", 32, "--labels", file)
    assert "id 'tr0002' is only in folds.csv" in line and "--new-folds" in line
    done = place.run("01_preprocess.py", "--sizes", 32, "--labels", file, "--new-folds")
    assert "1 row dropped, 1 relabelled" in done.stderr
    table = pd.read_parquet(place.derived / "index.parquet").set_index("id")
    assert table.loc["tr0001", "target"] == 1 and table.loc["tr0002", "error"] == "dropped by labels.csv"
    assert "tr0002" not in pd.read_csv(place.derived / "folds.csv")["id"].tolist()
    line = place.refused("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    assert "labels.csv: none -> " in line
    place.run("03_metadata.py", "--name", "fresh")
    about = load_competition(str(place.competition))
    assert read_run_info(place.runs / "fresh").labels_hash == decisions.digest(about)["labels_hash"]
    place.run("01_preprocess.py", "--sizes", 32, "--labels", "none", "--new-folds")
    assert pd.read_parquet(place.derived / "index.parquet").set_index("id").loc["tr0001", "target"] == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nobody,drop,", "line 2: no training row 'nobody'"),
        ("tr0001,remove,", "line 2: decision 'remove' is neither drop nor relabel"),
        ("tr0001,relabel,dog", "line 2: 'dog' is no label; known: 0, 1"),
    ],
)
def test_decisions_that_make_no_sense_are_refused_by_line(place: Workplace, line: str, says: str) -> None:
    about = load_competition(str(place.competition))
    file = place.root / "labels.csv"
    file.write_text(f"id,decision,suggested\n{line}\n")
    with pytest.raises(UserError, match=says):
        decisions.put(about, index.load_index(about), file)
    assert not decisions.path_of(about).exists()


def test_ticked_boxes_become_labels_csv_in_a_browser(place: Workplace) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    planted(place, {"a": 0.99})
    write_noise(load_competition(str(place.competition)))
    steps = """<script>
const tell = text => { document.title = JSON.stringify([said.textContent, text]); };
URL.createObjectURL = blob => { blob.text().then(tell); return "#"; };
const said = document.getElementById("chosen"), [drop, relabel] = document.querySelectorAll(".candidates input");
drop.click(); relabel.click(); document.getElementById("save").click();
</script>"""
    path = place.root / "page.html"
    path.write_text((place.runs / "noise.html").read_text().replace("</body>", f"{steps}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place.root / 'chromium'}"]
    command = [chromium, *flags, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = json.loads(unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))  # type: ignore[index]
    assert told == ["1 chosen", "id,decision,suggested\ntr0001,relabel,1\n"]  # of one row, the last tick counts
