"""What a step leaves when it is killed, stopped, out of disk, damaged or doubled: the same command writes the same.

`make torture` runs the small form, `make torture LONG=1` the long one: every rename of every step, every output, every
pair. docs/reliability.md is written from this folder: `python tests/torture/faults.py`.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from conftest import REPOSITORY, make_tiny
from warm import Warm

LONG = bool(os.environ.get("FOLDWISE_TORTURE_LONG"))
DOOMED = str(Path(__file__).with_name("doomed.py"))
STEPS = {
    "01": ("01_preprocess.py", "--sizes", "32", "--workers", "1"),
    "02": ("02_train.py", "--recipe", "quick.yaml", "train.threads=1", "train.precision=plain", "train.epochs=1"),
    "03": ("03_metadata.py", "--params", "rounds=20"),
    "04": ("04_embed.py", "--run", "quick", "--head", "logreg"),
    "05": ("05_predict.py", "--run", "quick", "predict.tta=flip"),
    "06": ("06_blend.py", "--method", "mean"),
    "07": ("07_explain.py", "--run", "quick", "--count", "1", "--deletion", "2"),
    "10": ("10_report.py",),
}
NUMBERS = {".csv", ".npy", ".npz", ".safetensors", ".parquet"}  # what holds them; the rest has times in it
DRAW = random.Random(int(os.environ.get("FOLDWISE_TORTURE_SEED", "0")))
Bytes = dict[str, str]


class Torture:
    """A tiny competition after each of the steps, to go back to."""

    def __init__(self, root: Path) -> None:
        self.place = make_tiny(root / "place", rows=24, test_rows=4)
        self.kept, self.warm = root / "kept", Warm()
        self.renames: dict[str, int] = {}
        self.wrote: dict[str, Bytes] = {}
        for step in STEPS:
            self.keep(step)
            (count := root / "count").write_text("0")
            done = self.run(step, "count", count)
            assert not done.returncode, done.stderr
            self.renames[step], self.wrote[step] = int(count.read_text()), self.numbers()
        self.keep("whole")

    @property
    def folders(self) -> list[Path]:
        root = self.place.root
        return [root / "input" / "derived", root / "oof", root / "submissions"]

    def keep(self, name: str) -> None:
        """Keep what is there before a step."""
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
            shutil.copytree(folder, self.kept / name / folder.name)

    def back_to(self, name: str) -> None:
        """What there was before a step, or at the end."""
        for folder in self.folders:
            shutil.rmtree(folder)
            shutil.copytree(self.kept / name / folder.name, folder)

    def run(self, step: str, *fault: object, warm: Warm | None = None) -> subprocess.CompletedProcess[str]:
        """A step, with a fault of doomed.py."""
        script, *rest = STEPS[step]
        command = [str(REPOSITORY / "src" / script), "--competition", str(self.place.competition), *rest]
        env = {**os.environ, "FOLDWISE_ROOT": str(self.place.root), "FOLDWISE_CORES": "1"}
        doomed = [DOOMED, *map(str, fault)] if fault else []
        return (warm or self.warm).run([*doomed, *command], self.place.root, env)

    def numbers(self) -> Bytes:
        """Digest of every file that holds numbers; the logs have times."""
        return {
            str(path.relative_to(self.place.root)): hashlib.blake2b(path.read_bytes()).hexdigest()
            for folder in self.folders
            for path in sorted(folder.rglob("*"))
            if path.suffix in NUMBERS and not path.name.endswith("log.csv")
        }

    def files(self) -> list[Path]:
        """Every output that is no lock."""
        return [p for folder in self.folders for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."]

    def again(self, step: str) -> None:
        """The same command, undisturbed: it writes what it would have written, and leaves nothing of its own."""
        done = self.run(step)
        assert not done.returncode, (step, done.stderr)
        now = self.numbers()
        odd = [name for name in now.keys() | self.wrote[step].keys() if now.get(name) != self.wrote[step].get(name)]
        assert not odd, (step, odd)
        left = [path for folder in self.folders for path in folder.rglob("*.part*")]
        assert not left, (step, left)


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Torture:
    if sys.platform != "linux":
        pytest.skip("forks and limits of Linux")
    return Torture(tmp_path_factory.mktemp("torture"))


STATUS = {"KILL": -9, "TERM": 143, "INT": 130}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_ended_at_a_rename_continues(torture: Torture, step: str) -> None:
    """In the small form one rename a step and signal in turn, in the long form every rename and signal."""
    every = [(fault, n) for fault in STATUS for n in range(1, torture.renames[step] + 1)]
    for fault, n in every if LONG else DRAW.sample(every, 1):
        torture.back_to(step)
        done = torture.run(step, fault, n)
        # 02 finishes its fold or saves it first; the last rename of all may be behind it
        assert done.returncode in {STATUS[fault], 0 if fault == "TERM" else STATUS[fault]}, (fault, n, done.stderr)
        assert "Traceback" not in done.stderr, (fault, n, done.stderr)
        torture.again(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_line_and_the_same_command_continues(torture: Torture, step: str) -> None:
    for most in (100, 3000, 30_000, 300_000, 1_000_000) if LONG else (DRAW.choice((100, 3000)),):
        torture.back_to(step)
        done = torture.run(step, "full", most)
        assert "Traceback" not in done.stderr and done.returncode in {0, 2}, (most, done.stderr)
        assert not done.returncode or "no space left" in done.stderr.strip().splitlines()[-1], (most, done.stderr)
        torture.again(step)


def damaged(data: bytes, how: str) -> bytes:
    """Emptied, cut in half, or a bit flipped in the middle."""
    if how == "flipped" and data:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]
    return data[: len(data) // 2] if how == "cut" else b""


def damages(torture: Torture) -> Iterator[tuple[Path, str]]:
    torture.back_to("whole")
    every = [(path, how) for path in torture.files() for how in ("emptied", "cut", "flipped")]
    yield from every if LONG else DRAW.sample(every, 10)


def test_a_damaged_output_is_made_again_refused_or_harmless(torture: Torture) -> None:
    """Never a traceback. And where all goes through: the numbers of an undamaged one in the submission."""
    odd = []
    for path, how in damages(torture):
        torture.back_to("whole")
        path.write_bytes(damaged(path.read_bytes(), how))
        for step in STEPS if LONG else ("01", "05", "06", "10"):
            done = torture.run(step)
            if done.returncode not in {0, 2} or "Traceback" in done.stderr:
                odd.append((path.name, how, step, done.stderr[-500:]))
            if done.returncode:
                break
        else:
            written = "submissions/tiny/blend.csv"
            if torture.numbers()[written] != torture.wrote["06"][written]:
                odd.append((path.name, how, "other numbers", ""))
    assert not odd, "\n".join(map(str, odd))


def test_two_steps_at_once_are_refused_or_do_no_harm(torture: Torture) -> None:
    pairs = list(combinations_with_replacement(STEPS, 2))
    beside = Warm()
    with ThreadPoolExecutor(2) as pool:
        for one, other in pairs if LONG else [("01", "01"), ("02", "02"), ("03", "06")]:
            torture.back_to(max(one, other))
            first = pool.submit(torture.run, one)
            second = torture.run(other, warm=beside)
            for done in (first.result(), second):
                assert done.returncode in {0, 2} and "Traceback" not in done.stderr, (one, other, done.stderr)
            torture.again(max(one, other))
    beside.process.kill()
