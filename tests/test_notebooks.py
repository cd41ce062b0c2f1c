"""Every notebook runs from top to bottom on a small demo, is stripped, and says what its paired script says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, REPOSITORY, Workplace

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
    return place


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, demo: Workplace) -> None:
    pytest.importorskip("nbmake")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-q", "--rootdir", REPOSITORY, path],
        env={**os.environ, "FOLDWISE_ROOT": str(demo.root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.smoke
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stripped_and_paired(path: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    paired = jupytext.read(path.with_suffix(".py"))
    assert [cell["source"] for cell in paired.cells] == ["".join(cell["source"]) for cell in cells]
