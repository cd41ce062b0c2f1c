"""Every notebook runs from top to bottom on a small demo, shows small outputs, and is what its twin, a script, is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK, REPOSITORY, Workplace, warm

RUNNER = REPOSITORY / "tests" / "notebook.py"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A small demo with two runs."""
    root = tmp_path_factory.mktemp("demo")
    place = Workplace(root, REPOSITORY / "src" / "competitions" / "demo.yaml")
    (root / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    place.run("00_demo.py", "--images", 160)
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("02_train.py", "--recipe", "quick.yaml")
    place.run("03_metadata.py")
    place.run("06_blend.py", "--name", "blend", "--method", "mean")
    place.run("11_bundle.py", "--submission", "blend", "--out", root / "bundle", "--owner", "some-body")
    mounts = root / "kaggle" / "input"
    (mounts / "competitions").mkdir(parents=True)
    (mounts / "competitions" / "demo").symlink_to(place.raw)
    (mounts / "foldwise-demo-blend").symlink_to(root / "bundle" / "dataset")
    (root / "kaggle" / "working").mkdir()
    return place


def execute(path: Path, demo: Workplace, **env: str) -> None:
    """Run a notebook's cells (those of its twin, the script) from top to bottom in a fork with warm libraries."""
    all_env = {**os.environ, "FOLDWISE_ROOT": str(demo.root), **env}
    done = warm().run([str(RUNNER), str(path.with_suffix(".py"))], path.parent, all_env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, demo: Workplace) -> None:
    execute(path, demo, **({"FOLDWISE_KAGGLE": str(demo.root / "kaggle")} if "submit" in path.stem else {}))


def test_runs_in_a_kernel_as_jupyter_starts_it(demo: Workplace) -> None:
    pytest.importorskip("nbmake")
    blend = REPOSITORY / "notebooks" / "03_blend.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-q", "--rootdir", REPOSITORY, blend],
        env={**os.environ, "FOLDWISE_ROOT": str(demo.root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.nightly
def test_transfer_learning_runs_without_imagenet_weights(demo: Workplace) -> None:
    execute(REPOSITORY / "notebooks" / "04_transfer_learning.ipynb", demo, FOLDWISE_SHARED=str(demo.root / "none"))
    info = json.loads((demo.runs / "transfer_finetune" / "run.json").read_text())
    assert info["config"]["model"]["name"] == "test_resnet"


def test_an_earlier_session_is_taken_over(trained: Workplace, tmp_path: Path) -> None:
    """The function of 02_train_on_kaggle: finished folds and caches go on, what is there already stays."""
    cells = json.loads((REPOSITORY / "notebooks" / "02_train_on_kaggle.ipynb").read_text())["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "def take_over" in "".join(cell["source"]))
    scope: dict = {"Path": Path, "shutil": shutil, "KAGGLE_INPUT": tmp_path / "none", "repository": REPOSITORY}
    exec(source, scope)
    place = Workplace(tmp_path / "working", tmp_path / "working" / "tiny.yaml")
    shutil.copytree(trained.raw, place.root / "input" / "tiny")  # the competition is attached anew
    for name in ("tiny.yaml", "quick.yaml"):
        shutil.copy(trained.root / name, place.root / name)
    copied = scope["take_over"](trained.root, place.root)
    assert "oof/tiny/quick/fold0.csv" in copied and "input/derived/tiny/folds.csv" in copied
    assert not scope["take_over"](trained.root, place.root)
    place.run("01_preprocess.py", "--sizes", 32)
    done = place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    assert done.stderr.count("done already") == 3
    assert (place.runs / "quick" / "oof.csv").read_bytes() == (trained.runs / "quick" / "oof.csv").read_bytes()


def test_what_the_sliders_say_is_what_is_written() -> None:
    """The cell of 03_blend with ipywidgets: each move reaches `chosen`, all zeros too."""
    pytest.importorskip("ipywidgets")
    cells = json.loads((REPOSITORY / "notebooks" / "03_blend.ipynb").read_text())["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "ipywidgets.interactive" in "".join(cell["source"]))
    shown: list[Any] = []
    weights = np.array([0.5, 0.5])
    blend = SimpleNamespace(space="prob", weights=weights, method="mean")
    hand = SimpleNamespace(spaces=["prob", "rank"], start={"a": 0.5, "b-2": 0.5}, says=str, blend=lambda *_: blend)
    scope: dict[str, Any] = {"hand": hand, "blend": blend, "runs": SimpleNamespace(names=["a", "b-2"]), "pd": pd}
    scope["display"] = shown.append
    exec(source, scope)
    space, *sliders = shown[-1].children[:3]
    space.value, sliders[1].value = "rank", 0.25
    assert scope["chosen"] == {"space": "rank", "a": 0.5, "b-2": 0.25}
    sliders[0].value = sliders[1].value = 0
    assert not any(scope["chosen"][name] for name in ("a", "b-2"))


@pytest.mark.smoke
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_small_outputs_and_is_paired(path: Path) -> None:
    """What GitHub shows: figures and tables. 06 is a template that 11_bundle.py fills in, and has none."""
    jupytext = pytest.importorskip("jupytext")
    text = path.read_text()
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert bool(outputs) == ("submit" not in path.stem) and len(text) < 400_000
    assert not any(output["output_type"] == "error" for output in outputs)
    assert str(REPOSITORY) not in text and "/tmp/" not in text, "no place of the machine that ran it"
    paired = jupytext.read(path.with_suffix(".py"))
    assert [cell["source"] for cell in paired.cells] == ["".join(cell["source"]) for cell in cells]
