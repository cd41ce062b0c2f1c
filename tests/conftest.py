"""A tiny competition, and a way to run the scripts as a user types them, from a clean folder."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # a core a worker, and so for all it starts: many threads on few cores wait for each other. Before NumPy is loaded,
    # whose BLAS starts its threads then
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from warm import Warm

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from foldwise.data.competition import Competition, load_competition
from foldwise.data.recipe import Recipe, load_recipe

warm = cache(Warm)

LONG = ("test_notebooks.py", "test_survival.py", "test_pipeline.py")  # first: none is left alone at the end

QUICK = {  # a recipe that trains in a second
    "image_size": 32,
    "model": {"name": "test_resnet", "pretrained": False, "mode": "scratch"},
    "train": {"epochs": 2, "batch_size": 16, "lr": 3e-3},
    "augment": {"preset": "light"},
}


@dataclass
class Workplace:
    """A FOLDWISE_ROOT with a competition file, and the scripts run against it."""

    root: Path
    competition: Path = field(default_factory=Path)

    def run(
        self, *arguments: object, check: bool = True, drawn: bool = False, fault: Sequence[object] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`python src/<arguments>` as a user types it; the output comes back. In a fork of a process with warm
        libraries where no `env` is given, and there with blank figures unless `drawn`. fault: two words of doomed.py,
        as ("KILL", "0.5s")."""
        script, *rest = map(str, arguments)
        chosen = [] if script.startswith("00") or "--competition" in rest else ["--competition", str(self.competition)]
        command = [str(REPOSITORY / "src" / script), *chosen, *rest]
        if fault:
            command = [str(REPOSITORY / "tests" / "torture" / "doomed.py"), *map(str, fault), *command]
        all_env = {**os.environ, "FOLDWISE_ROOT": str(self.root), **env}
        if sys.platform == "linux" and not env:
            done = warm().run(command, self.root, all_env, drawn)
        else:
            done = subprocess.run(
                [sys.executable, *command], cwd=self.root, env=all_env, capture_output=True, text=True, timeout=600
            )
        if check:
            assert done.returncode == 0, f"{script} {rest}\n{done.stdout}\n{done.stderr}"
        return done

    def refused(self, *arguments: object, **env: str) -> str:
        """The one line of an error that a user can mend; asserts exit status 2 and no traceback."""
        done = self.run(*arguments, check=False, **env)
        assert done.returncode == 2, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("error: ") or ".py: " in line, done.stderr
        return line

    @property
    def description(self) -> dict:
        return yaml.safe_load(self.competition.read_text())

    def describe(self, **changes: object) -> None:
        """Change keys of the competition file."""
        self.competition.write_text(yaml.safe_dump({**self.description, **changes}))

    @property
    def derived(self) -> Path:
        return self.root / "input" / "derived" / self.description["name"]

    @property
    def runs(self) -> Path:
        return self.root / "oof" / self.description["name"]

    @property
    def submissions(self) -> Path:
        return self.root / "submissions" / self.description["name"]

    @property
    def raw(self) -> Path:
        return self.root / "input" / self.description["name"]


def picture(rng: np.random.Generator, bright: bool, size: int = 40) -> np.ndarray:
    """uint8 (size, size + 8, 3): noise, with a bright or dark disc; no two alike."""
    image = rng.integers(60, 196, (size, size + 8, 3)).astype(np.uint8)
    cv2.circle(
        image,
        (int(rng.integers(12, size - 4)), int(rng.integers(12, size - 12))),
        9,
        (230,) * 3 if bright else (25,) * 3,
        -1,
    )
    return image


def make_tiny(root: Path, rows: int = 60, test_rows: int = 12, seed: int = 0) -> Workplace:
    """A binary competition of PNG files with patients, metadata, and a broken image in either split."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    place = Workplace(root, root / "tiny.yaml")
    recipe = root / "quick.yaml"
    recipe.write_text(yaml.safe_dump(QUICK))
    description = {
        "name": "tiny",
        "task": "binary",
        "metric": "roc_auc",
        "id": "image_id",
        "target": "sick",
        "group": "patient",
        "train": {"table": "train.csv", "images": "train/{image_id}.png"},
        "test": {"table": "test.csv", "images": "test/{image_id}.png"},
        "sample_submission": "sample_submission.csv",
        "metadata": {"numeric": ["age"], "categorical": ["site"]},
        "folds": {"n": 3, "seed": 0},
    }
    place.competition.write_text(yaml.safe_dump(description))
    tables = {}
    for split, count in (("train", rows), ("test", test_rows)):
        (place.raw / split).mkdir(parents=True)
        sick = np.arange(count) % 3 == 0
        ids = [f"{split[:2]}{k:04d}" for k in range(count)]
        for row_id, bright in zip(ids, sick, strict=True):
            cv2.imwrite(str(place.raw / split / f"{row_id}.png"), picture(rng, bool(bright)))
        tables[split] = pd.DataFrame(
            {
                "image_id": ids,
                "patient": [f"p{split}{k // 2}" for k in range(count)],
                "age": np.where(rng.random(count) < 0.1, np.nan, 40 + 15 * sick + rng.normal(0, 8, count)),
                "site": rng.choice(["arm", "leg", None], count),
                "sick": sick.astype(int),
            }
        )
    tables["train"].to_csv(place.raw / "train.csv", index=False)
    shuffled = tables["test"].sample(frac=1, random_state=1)
    shuffled.drop(columns="sick").to_csv(place.raw / "test.csv", index=False)
    tables["test"][["image_id", "sick"]].assign(sick=0.5).to_csv(place.raw / "sample_submission.csv", index=False)
    (place.raw / "train" / "tr0007.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (place.raw / "test" / "te0003.png").write_bytes(b"not an image")
    return place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first (with --no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def tiny(tmp_path: Path) -> Workplace:
    """A fresh tiny competition."""
    return make_tiny(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A tiny competition that went through 01 to 03; tests only read it."""
    place = make_tiny(tmp_path_factory.mktemp("trained"))
    place.run("01_preprocess.py", "--sizes", 32)
    place.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    place.run("03_metadata.py")
    return place


@pytest.fixture
def about(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Competition:
    """The competition of the module's own `place`."""
    monkeypatch.setenv("FOLDWISE_ROOT", str(place.root))
    return load_competition(str(place.competition))


def quick_recipe(about: Competition, *overrides: str) -> Recipe:
    """QUICK on one thread, with nothing probed."""
    return load_recipe(
        str(about.file.with_name("quick.yaml")), ["train.precision=plain", "train.threads=1", *overrides]
    )


def shared(*parts: str) -> Path:
    """A path in the shared folder of real data; the test is skipped where it is absent."""
    base = Path(os.environ.get("FOLDWISE_SHARED", REPOSITORY.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real data: {path} is not there (set FOLDWISE_SHARED)")
    return path
