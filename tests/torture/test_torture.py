"""What a step leaves when it is killed, stopped, out of disk, denied, damaged, doubled, or its competition changes: the
same command writes the same numbers, or one line says why not.

`make torture` runs a sample, `make torture LONG=1` every rename of every step, every output and every pair.
FOLDWISE_TORTURE_SEED draws other samples. docs/reliability.md is written from this folder:
`python tests/torture/faults.py`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Workplace, make_tiny

LONG = bool(os.environ.get("FOLDWISE_TORTURE_LONG"))
STEPS = {
    "01": ("01_preprocess.py", "--sizes", "32", "--workers", "1"),
    "02": ("02_train.py", "--recipe", "quick.yaml", "train.threads=1", "train.precision=plain", "train.epochs=1"),
    "03": ("03_metadata.py", "--params", "rounds=20"),
    "04": ("04_embed.py", "--run", "quick", "--head", "logreg"),
    "05": ("05_predict.py", "--run", "quick", "predict.tta=flip"),
    "06": ("06_blend.py", "--method", "mean"),
    "07": ("07_explain.py", "--run", "quick", "--sheet", "worst", "--count", "1", "--deletion", "2"),
    "10": ("10_report.py",),
}
BLENDED = ["01", "02", "03", "04", "05", "06"]
STATUS = {"KILL": -9, "TERM": 143, "INT": 130}
PAGES = {".html", ".png"}  # read by people alone
NUMBERS = {".csv", ".npy", ".npz", ".safetensors", ".parquet"}  # what holds them; the rest has times in it
DRAW = random.Random(int(os.environ.get("FOLDWISE_TORTURE_SEED", "0")))
Bytes = dict[str, str]
Done = subprocess.CompletedProcess[str]


class Torture:
    """A tiny competition after each of the steps, to go back to."""

    def __init__(self, root: Path) -> None:
        self.place = make_place(root / "place")
        self.kept, self.tried = root / "kept", Counter[str]()
        self.renames: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.wrote: dict[str, Bytes] = {}
        self.own: dict[str, Bytes] = {}
        self.files: dict[str, list[Path]] = {}
        before: dict[Path, bytes] = {}
        shutil.copytree(root / "place", self.kept / "raw")
        for step in STEPS:
            self.keep(step)
            (count := root / "count").write_text("0 0")
            done = self.run(step, "count", count)
            assert not done.returncode, done.stderr
            renames, seconds = count.read_text().split()
            self.renames[step], self.seconds[step], self.wrote[step] = int(renames), float(seconds), self.numbers()
            now = {path: path.read_bytes() for path in outputs(self.place)}
            self.files[step] = [path for path, data in now.items() if before.get(path) != data]
            own = {str(path.relative_to(self.place.root)) for path in self.files[step]}
            self.own[step] = {name: digest for name, digest in self.wrote[step].items() if name in own}
            before = now
        self.keep("whole")

    @property
    def folders(self) -> list[Path]:
        return folders(self.place)

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

    def run(self, step: str, fault: str = "none", number: object = 0) -> Done:
        """A step, with a fault of doomed.py."""
        return run(self.place, step, fault, number)

    def numbers(self) -> Bytes:
        return numbers(self.place)

    def again(self, step: str, but: str = "(?!)") -> Iterator[str]:
        """The same command, undisturbed: it writes what it would have written, and leaves nothing of its own."""
        done = self.run(step)
        if done.returncode:
            yield f"again: status {done.returncode}, {done.stderr[-700:]}"
            return
        now, then = self.numbers(), self.wrote[step]
        other = [name for name in sorted(now.keys() | then) if now.get(name) != then.get(name)]
        yield from (f"again: other {name}" for name in other if not re.search(but, name))
        yield from (f"left: {path}" for folder in self.folders for path in folder.rglob("*.part*"))

    def endure(self, kind: str, every: list[Any], some: int, trial: Callable[..., Iterator[str]]) -> None:
        """A trial of each fault in the long form, else of so many; its complaints are told at once, and fail it."""
        odd = []
        for fault in every if LONG else DRAW.sample(every, some):
            self.tried[kind] += 1
            for complaint in trial(self, *fault):
                odd.append(f"{kind} {fault}: {complaint}")
                print("\nODD", odd[-1], flush=True)
        assert not odd, "\n".join(odd)


def make_place(root: Path) -> Workplace:
    place = make_tiny(root, rows=24, test_rows=4)
    place.describe(folds={"n": 2, "seed": 0})
    return place


def run(place: Workplace, step: str, fault: str = "none", number: object = 0) -> Done:
    return place.run(*STEPS[step], check=False, fault=(fault, number))


def folders(place: Workplace) -> list[Path]:
    """Where the steps write."""
    return [place.root / "input" / "derived", place.root / "oof", place.root / "submissions"]


def outputs(place: Workplace) -> list[Path]:
    """Every output that is no lock."""
    return [path for top in folders(place) for path in sorted(top.rglob("*")) if path.is_file() and path.name[0] != "."]


def numbers(place: Workplace) -> Bytes:
    """Digest of every file that holds numbers; the logs have times."""
    return {
        str(path.relative_to(place.root)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in outputs(place)
        if path.suffix in NUMBERS and not path.name.endswith("log.csv")
    }


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    if sys.platform != "linux":
        pytest.skip("forks and limits of Linux")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDWISE_CORES", "1")
        torture = Torture(tmp_path_factory.mktemp("torture"))
        yield torture
    print(f"\ntried: {dict(torture.tried)}")


def told(done: Done, *statuses: int) -> Iterator[str]:
    """What is wrong with how a step ended: a status that it may not have, or a traceback."""
    if done.returncode not in statuses or "Traceback" in done.stderr:
        yield f"status {done.returncode}, {done.stderr[-700:]}"


def refused_or_done(done: Done) -> Iterator[str]:
    """As `told`: ended well, or with one line that names a file, a key or a step."""
    yield from told(done, 0, 2)
    line = done.stderr.strip().rpartition("\n")[2]
    if done.returncode and not re.match(r"error: .*([./]|--)", line):
        yield f"says only: {line}"


# --- ended ------------------------------------------------------------------------------------------------


def ends(torture: Torture) -> list[tuple[str, str, str]]:
    """(step, signal, moment): KILL at every rename, the others at some; all at moments of the processor's time."""
    every = []
    for step, renames in torture.renames.items():
        moments = [f"{DRAW.uniform(0.02, 1) * torture.seconds[step]:.4f}s" for _ in range(9)]
        every += [(step, "KILL", at) for at in (*map(str, range(1, renames + 1)), *moments[:5])]
        for fault, some in (("TERM", moments[5:7]), ("INT", moments[7:])):
            every += [(step, fault, at) for at in (*map(str, DRAW.sample(range(1, renames + 1), 2)), *some)]
    return every


def ended(torture: Torture, step: str, fault: str, moment: str) -> Iterator[str]:
    torture.back_to(step)
    done = torture.run(step, fault, moment)
    late = moment.endswith("s")  # it may be over before
    killed = STATUS[fault] if not (late and fault == "KILL") else -27
    torture.tried["killed" if done.returncode in {-9, -27} else f"status {done.returncode}"] += 1
    # a TERM lets 02 finish its fold or save it; the last rename of all may be behind it
    yield from told(done, killed, *([0] if late or fault == "TERM" else []))
    yield from torture.again(step)


def test_a_step_that_is_ended_at_a_rename_or_any_moment_continues(torture: Torture) -> None:
    torture.endure("end", ends(torture), 6, ended)


# --- no room, no permission -------------------------------------------------------------------------------


def full(torture: Torture, step: str, most: int) -> Iterator[str]:
    torture.back_to(step)
    done = torture.run(step, "full", most)
    yield from told(done, 0, 2)
    if done.returncode and "no space left" not in done.stderr.strip().rpartition("\n")[2]:
        yield done.stderr
    yield from torture.again(step)


def test_a_full_disk_is_one_line_and_the_same_command_continues(torture: Torture) -> None:
    every = [(step, most) for step in STEPS for most in (100, 3000, 30_000, 300_000)]
    torture.endure("full disk", every, 2, full)


def denied(torture: Torture, step: str, what: str) -> Iterator[str]:
    """Folders that can't be written, or the files of the steps before that can't be read."""
    torture.back_to(step)
    below = [path for folder in torture.folders for path in (folder, *folder.rglob("*"))]
    closed = [path for path in below if path.is_dir()] if what == "write" else [p for p in below if p.is_file()]
    closed += [torture.place.raw / "train.csv"] if what == "read" else []
    try:
        for path in closed:
            path.chmod(0o555 if what == "write" else 0)
        done = torture.run(step, "denied")
    finally:
        for path in closed:
            path.chmod(0o755)
    yield from refused_or_done(done)
    if not done.returncode:
        yield "not refused"
    yield from torture.again(step)


def test_a_folder_without_permission_is_one_line(torture: Torture) -> None:
    every = [(step, what) for step in STEPS for what in ("write", "read")]
    torture.endure("denied", every, 2, denied)


# --- damaged ----------------------------------------------------------------------------------------------


def damaged(data: bytes, how: str) -> bytes:
    """Emptied, cut in half, or a bit flipped in the middle."""
    if how == "flipped" and data:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]
    return data[: len(data) // 2] if how == "cut" else b""


def damages(torture: Torture) -> list[tuple[str, list[Path], str]]:
    """(step, outputs of it, how): one file, of any one fold; all pages together."""
    every = []
    for step, files in torture.files.items():
        kinds: dict[str, list[Path]] = {}
        for path in files:
            page = path.suffix in PAGES or path.parent.name in {"report", "explain"}
            kinds.setdefault("pages" if page else re.sub(r"^fold\d", "fold", path.name), []).append(path)
        for kind, paths in kinds.items():
            for how in ("emptied", "cut", "flipped"):
                every.append((step, paths if kind == "pages" else [DRAW.choice(paths)], how))
    return every


def after_damage(torture: Torture, step: str, paths: list[Path], how: str) -> Iterator[str]:
    """The steps after it, or its own once more: other numbers than those of an undamaged one only where
    the step says so."""
    for steps in ([one for one in STEPS if one > step and (how == "cut" or one < "07")], [step]):
        torture.back_to([*STEPS, "whole"][list(STEPS).index(step) + 1])
        for path in paths:
            path.write_bytes(damaged(path.read_bytes(), how))
        left = torture.numbers() if steps == [step] else {}  # what is damaged may lie there as it is
        for after in steps:
            done = torture.run(after)
            yield from refused_or_done(done)
            if done.returncode:
                print(f"{step} {paths[0].name} {how}, then {after}: {done.stderr.strip().rpartition(chr(10))[2]}")
                break
            if "not as its step wrote it" in done.stderr:  # said; people edit tables, too
                break
            now = torture.numbers()
            yield from (
                f"other {name} after {after}"
                for name, digest in torture.own[after].items()
                if now.get(name) not in {digest, left.get(name)} and not name.endswith("results.csv")  # with seconds
            )


def test_a_damaged_output_is_made_again_refused_or_harmless(torture: Torture) -> None:
    """Never a traceback, and no step after it writes other numbers."""
    torture.endure("damage", damages(torture), 2, after_damage)


# --- changed ----------------------------------------------------------------------------------------------


def edit(change: Callable[[pd.DataFrame], pd.DataFrame], table: str = "train.csv") -> Callable[[Workplace], None]:
    def edited(place: Workplace) -> None:
        change(pd.read_csv(path := place.raw / table)).to_csv(path, index=False)

    return edited


def describe(**changes: object) -> Callable[[Workplace], None]:
    return lambda place: place.describe(**changes)


CHANGES: dict[str, Callable[[Workplace], None]] = {
    "no group": describe(group=None),
    "another group": describe(group="site"),
    "three folds": describe(folds={"n": 3, "seed": 0}),
    "another seed of folds": describe(folds={"n": 2, "seed": 1}),
    "gray images": describe(image={"grayscale": True}),
    "another metric": describe(metric="log_loss"),
    "a column less": describe(metadata={"numeric": ["age"]}),
    "other labels": edit(lambda rows: rows.assign(sick=rows["sick"].where(rows.index != 3, 0))),
    "classes renamed": edit(lambda rows: rows.assign(sick=rows["sick"].map({0: "no", 1: "yes"}))),
    "other ages": edit(lambda rows: rows.assign(age=rows["age"] + 5.0 * (rows.index % 2))),
    "other patients": edit(lambda rows: rows.assign(patient=rows["patient"].replace("ptrain0", "ptrain9"))),
    "a training row less": edit(lambda rows: rows.iloc[:-1]),
    "a test row less": edit(lambda rows: rows.iloc[1:], "test.csv"),
    "test rows in another order": edit(lambda rows: rows.iloc[::-1], "test.csv"),
    "another image in the place of one": lambda place: shutil.copy(
        place.raw / "train" / "tr0003.png", place.raw / "train" / "tr0004.png"
    ),
}


STAY = {  # what may be as it was before 01 ran again, or of both: what a run has learnt of the images that it saw
    "gray images": "submissions/",  # a blend of runs on other pixels is one that people make
    "another image in the place of one": "oof/|submissions/",
    "test rows in another order": "oof/",  # tables are joined by id
    "a test row less": "oof/",  # 06 refuses tables of other rows than the sample's
}


def changed(torture: Torture, change: str) -> Iterator[str]:
    """Each step after a change is refused, or its numbers are those of a competition that was so when it got these
    folds; where 01 did not see the change, they may also be those of before."""
    CHANGES[change](other := make_place(torture.kept / change))
    (folder := other.root / "input" / "derived" / "tiny").mkdir(parents=True)
    for name in ("folds.csv", "folds.json"):
        shutil.copy(torture.kept / "whole" / "derived" / "tiny" / name, folder)
    for step in BLENDED:
        run(other, step)
    fresh = numbers(other)
    try:
        for steps in (BLENDED[1:], BLENDED):
            torture.back_to("07")
            for name in ("tiny.yaml", "input/tiny"):
                copy(other.root / name, torture.place.root / name)
            for step in steps:
                done = torture.run(step)
                yield from refused_or_done(done)
                if done.returncode:
                    print(f"{change}, {step}: {done.stderr.strip().rpartition(chr(10))[2]}")
                    continue
                now, before = torture.numbers(), torture.own[step]
                yield from (
                    f"other {name} after {step} of {steps[0]} on"
                    for name in before
                    if not name.endswith("noise.csv")  # of all runs
                    and not (steps[0] == "01" and re.match(STAY.get(change, "(?!)"), name))
                    and now.get(name)
                    not in ({fresh[name]} if steps[0] == "01" and name in fresh else {fresh.get(name), before[name]})
                )
    finally:
        for name in ("tiny.yaml", "input/tiny"):
            copy(torture.kept / "raw" / name, torture.place.root / name)


def copy(source: Path, to: Path) -> None:
    """A file, or a folder in the place of another."""
    if source.is_file():
        shutil.copy(source, to)
        return
    shutil.rmtree(to)
    shutil.copytree(source, to)


def test_a_competition_that_changes_between_steps_is_refused_or_done_anew(torture: Torture) -> None:
    torture.endure("change", [(change,) for change in CHANGES], 1, changed)


# --- at once ----------------------------------------------------------------------------------------------


def doubled(torture: Torture, one: str, other: str) -> Iterator[str]:
    torture.back_to(max(one, other))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(torture.run, one)
        second = torture.run(other)
    for done in (first.result(), second):
        yield from refused_or_done(done)
    yield from torture.again(max(one, other), but="noise.csv|results.csv")  # of all runs that there are by then


def test_two_steps_at_once_are_refused_or_do_no_harm(torture: Torture) -> None:
    torture.endure("at once", list(combinations_with_replacement(STEPS, 2)), 1, doubled)
