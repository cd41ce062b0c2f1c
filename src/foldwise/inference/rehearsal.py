"""A bundle run as the host runs it: offline, from read-only mounts, on a test set that nobody has seen, and judged.

The hidden test set is made of one fold's training rows under new ids, and predicted by that fold's models alone: what
each row must get is known, the blend of its out-of-fold predictions. Into it go an unreadable file, a missing one, a
category never seen, and a file that no row names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import source
from foldwise.core.cli import duration, note
from foldwise.data import folds, index, oof, series, submission
from foldwise.data.competition import Competition, Split, load_competition
from foldwise.data.rows import rows_of_table, table_of
from foldwise.data.tables import read_table
from foldwise.data.template import Piece, template_columns, template_pieces
from foldwise.inference.bundle import broken_rules, damaged, read_about
from foldwise.inference.writer import Saved

MEMORY, DISK = 29e9, 20e9  # what Kaggle gives a notebook
LATE = 124  # as timeout(1) has it
ROWS = 200  # of the rehearsal's test set, about: whole groups
FEW = 8  # rows, about, that every fold's models predict
NEAR = {False: 1e-4, True: 2e-2}  # of a row's prediction to what it must be, full or half precision
SHAPES = {  # where Kaggle mounts the competition and a dataset
    "competitions/ and datasets/": ("competitions/{slug}", "datasets/{owner}/{dataset}"),
    "input/": ("{slug}", "{dataset}"),
    "datasets/ alone": ("datasets/{owner}/{slug}", "datasets/{owner}/{dataset}"),
}
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "FOLDWISE_CORES", "OMP_NUM_THREADS")
GUARD = '''"""Cuts a rehearsal off from the network, and writes down who asked for it."""
import os, socket, sys
def _refuse(what):
    def refuse(*args, **more):
        address = next((a for a in args if isinstance(a, (tuple, str)) and a), "somewhere")
        if isinstance(address, tuple) or what != "connect":
            with open(os.environ["FOLDWISE_GUARD"], "a") as log:
                log.write(f"{what} {address}\\n")
            raise OSError(101, "Network is unreachable (rehearsal)")
        return getattr(_socket, what)(*args, **more)
    return refuse
_socket = socket.socket
class Offline(_socket):
    def connect(self, address):
        if self.family == socket.AF_UNIX:
            return super().connect(address)
        return _refuse("connect")(address)
    connect_ex = connect
socket.socket = Offline
socket.create_connection = _refuse("create_connection")
socket.getaddrinfo = _refuse("getaddrinfo")
class Absent:
    names = set(filter(None, os.environ.get("FOLDWISE_ABSENT", "").split(",")))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (not on the image, no wheel in the bundle)", name=name)
sys.meta_path.insert(0, Absent())
'''


@dataclass
class Verdict:
    """Rules with what was met: (rule, what, fine)."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, rule: str, what: str, fine: bool) -> bool:
        """One more; whether it holds."""
        self.rows.append((rule, what, fine))
        return fine

    @property
    def broken(self) -> list[str]:
        """The rules that do not hold."""
        return [f"{rule}: {what}" for rule, what, fine in self.rows if not fine]

    def table(self) -> str:
        """One line a rule."""
        width = max(len(rule) for rule, _, _ in self.rows)
        return "\n".join(f"{'ok  ' if fine else 'FAIL'}  {rule:<{width}}  {what}" for rule, what, fine in self.rows)


@dataclass(frozen=True)
class Hidden:
    """A made-up hidden test set: the folder; of each image its old id, the new one, and its submission row; the new
    ids that were tampered with."""

    folder: Path
    old: list[str]
    new: list[str]
    rows: list[str]
    tampered: list[str]


# --- the test set -----------------------------------------------------------------------------------------


def swap(competition: Competition, fold: int, folder: Path, most: int) -> Hidden:
    """A raw folder with a test set of about `most` of one fold's training rows, under new ids and groups."""
    table, fold_table, test = index.load_index(competition), folds.load_folds(competition), competition.test
    if test is None or competition.frames == "each":
        raise UserError(f"{competition.file}: a rehearsal needs `test`, and a row a file (frames: one)")
    if competition.id_template:
        raise UserError(f"{competition.file}: an id made of columns can't be rehearsed; the bundle can be sent")
    if competition.submission.melted:
        raise UserError(f"{competition.file}: a row for each target can't be rehearsed; the bundle can be sent")
    mine = folds.rows(table, fold_table)[(fold_table["fold"] == fold).to_numpy()]
    mine = mine[mine["error"].isna()]
    groups = mine["group"].drop_duplicates().sample(frac=1, random_state=0)
    size = mine["group"].value_counts()
    chosen = groups[size.loc[groups].cumsum().shift(fill_value=0).to_numpy() < most]
    mine = mine[mine["group"].isin(chosen)]
    new = _new_ids(mine["id"].tolist(), table["id"].tolist())
    paths, row_ids = _write_table(competition, test, mine, new, folder)
    for old, to in zip(mine["path"], paths, strict=True):
        for here, there in zip(series.places(competition.raw() / old), series.places(folder / to), strict=True):
            for file in series.files(here):
                target = there if file == here else _fixed(there) / file.relative_to(_fixed(here))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read(file))
    tampered = _tamper(competition, folder, paths, new)
    return Hidden(folder, mine["id"].tolist(), new, row_ids, tampered)


def _fixed(place: Path) -> Path:
    """The folder of a series: what stands before a pattern's *."""
    return Path(str(place).partition("*")[0].rpartition("/")[0]) if "*" in str(place) else place


def _new_ids(old: Sequence[str], known: Sequence[str]) -> list[str]:
    """Ids that nobody has, of the same kind: numbers where they are numbers."""
    if all(map(str.isdigit, old)):
        start = max(int(one) for one in known if one.isdigit()) + 1
        return [str(start + k) for k in range(len(old))]
    return [f"hidden{k:05d}" + (Path(one).suffix if "/" in one or "." in one else "") for k, one in enumerate(old)]


def _write_table(
    competition: Competition, split: Split, mine: pd.DataFrame, new: Sequence[str], folder: Path
) -> tuple[list[str], list[str]]:
    """The host's tables of the new rows; where each row's image is to lie below the folder, and its submission row."""
    if split.sources and not split.templates:
        raise UserError(
            f"{competition.file}: images that are columns of a table can't be rehearsed; the bundle can be sent"
        )
    folder.mkdir(parents=True, exist_ok=True)
    row_ids = pd.Series(new)
    if not split.sources:
        paths = [f"{split.folders or split.images}/{one}" for one in new]
    else:
        given = competition.train
        columns = {competition.id: new}
        if given.sources:
            _, told = table_of(competition, given)
            told = told.drop_duplicates(competition.id).set_index(competition.id).loc[mine["id"]]
            drop = [column for column in competition.targets if column in told]
            columns |= {str(c): told[c].to_numpy() for c in told.drop(columns=drop)}
        columns |= {
            c: mine[c].to_numpy() for c in index.metadata_columns(competition) if c in competition.metadata.numeric
        }
        frame = pd.DataFrame(columns)
        group = competition.group_column
        if group in frame:  # as counted in training, each group stands by itself
            frame[group] = "h" + frame[group].astype(str)
        for template in split.templates:
            for column in set(template_columns(template)) - set(frame):
                frame[column] = new
        target = folder / split.sources[0].table
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".parquet":
            frame.to_parquet(target, index=False)
        else:
            frame.to_csv(target, index=False)
        templates = split.templates if split.series else split.templates[:1]
        records = frame.astype(str).to_dict("records")
        paths = [series.several([_filled(template_pieces(one), row) for one in templates]) for row in records]
        paths = [path.replace(".zip/", "/").replace(".hdf5/", "/") for path in paths]
        row_ids = rows_of_table(competition, split, frame.astype({competition.id: str}), target)["row_id"]
    if competition.sample_submission is not None:
        table = index.load_index(competition)
        shown = Saved.load(competition, _any_submission(competition)).sample
        first = pd.DataFrame(**shown).head(1) if shown else submission.read_sample(competition, table, pd.DataFrame())
        unique = row_ids.drop_duplicates().tolist()
        sample = {first.columns[0]: unique, **{c: [first[c].iloc[0]] * len(unique) for c in first.columns[1:]}}
        pd.DataFrame(sample).to_csv(folder / competition.sample_submission, index=False)
    return paths, row_ids.tolist()


def _filled(pieces: Sequence[Piece], row: dict[Any, str]) -> str:
    return "".join(piece.fill(row[piece.column] if piece.column else "") for piece in pieces)


def _any_submission(competition: Competition) -> str:
    return sorted(competition.submissions().glob("*.json"))[0].stem


def _tamper(competition: Competition, folder: Path, paths: Sequence[str], new: Sequence[str]) -> list[str]:
    """What a hidden test set may hold; the ids that it touches."""
    broken, gone = (
        [file for place in series.places(folder / path) for file in series.files(place)] for path in paths[:2]
    )
    for file in broken:
        file.write_bytes(b"broken")
    split = competition.test
    if split is None or not split.sources:
        return [new[0]]  # any other file is a row, and no row is without one
    for file in gone:
        file.unlink()
    broken[0].with_name("nobodys" + broken[0].suffix).write_bytes(b"broken")
    tampered = [new[0], new[1]]
    named = competition.metadata.categorical
    table = folder / split.sources[0].table
    if named and table.suffix == ".csv":
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        if named[0] in frame:
            frame.loc[2, named[0]] = "never seen"
            frame.to_csv(table, index=False)
            tampered.append(new[2])
    return tampered


# --- the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stand-in for /kaggle in a folder: mounts, the guard, the script."""

    folder: Path
    script: Path
    namespace: bool
    absent: str

    def run(self, raw: Path, bundle: Path, mounts: tuple[str, str], flags: str, limit: float) -> tuple[int, str, float]:
        """(exit status, what was said, seconds) of the script where raw files and bundle are mounted so."""
        kaggle = self.folder / "kaggle"
        shutil.rmtree(kaggle, ignore_errors=True)
        pairs = [(raw, kaggle / "input" / mounts[0]), (bundle, kaggle / "input" / mounts[1])]
        for here, there in pairs:
            there.parent.mkdir(parents=True, exist_ok=True)
            if self.namespace:
                there.mkdir()
            else:
                there.symlink_to(here.resolve())
        (kaggle / "working").mkdir()
        env = {key: os.environ[key] for key in KEPT if key in os.environ} | {
            "FOLDWISE_KAGGLE": str(kaggle),
            "FOLDWISE_REHEARSAL": flags,
            "FOLDWISE_GUARD": str(self.folder / "network.log"),
            "FOLDWISE_ABSENT": self.absent,
            "PYTHONPATH": str(self.folder / "guard"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, str(self.script)]
        if self.namespace:
            mount = "".join(
                f"mount --bind '{here.resolve()}' '{there}' && mount -o remount,bind,ro '{there}' && "
                for here, there in pairs
            )
            command = ["unshare", "-rmn", "sh", "-c", f'{mount}exec "$@"', "sh", *command]
        begun, status = time.monotonic(), LATE
        with subprocess.Popen(
            command,
            env=env,
            cwd=kaggle / "working",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=limit)
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and all that it has started
                said, _ = process.communicate()
        return status, said, time.monotonic() - begun


def has_namespaces() -> bool:
    """Whether the kernel lets us have a network and mounts of our own."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-rmn", "true"], capture_output=True).returncode == 0


def rehearse(folder: Path, hidden_rows: int = 21_000, rows: int = ROWS, home: str | None = None) -> Verdict:
    """Everything; the verdict. UserError where there is no bundle, or the raw training files are not at hand.

    home: the competition file of the training rows (default: the bundle's own).
    """
    about, verdict = read_about(folder), Verdict()
    bad = damaged(folder, about)
    says = f"{len(bad)} of {len(about['files'])}: {bad[0]}" if bad else f"{len(about['files'])}, each as it was made"
    if not verdict.add("files", says, not bad):
        return verdict
    for line in broken_rules(folder, about):
        if "OWNER/" not in line:
            rule, _, why = line.partition(": ")
            verdict.add(rule, why, False)
    bundled = folder / "dataset" / "code" / "src" / "competitions" / f"{about['competition']}.yaml"
    competition = load_competition(home or str(bundled))
    namespace = has_namespaces()
    cut = "a network namespace" if namespace else "a guard on sockets (no namespaces here)"
    with tempfile.TemporaryDirectory(prefix="rehearsal.") as name:
        place = Path(name)
        (place / "guard").mkdir()
        (place / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
        fold = _common_fold(about)
        hidden = swap(competition, fold, place / "raw", rows)
        stage = Stage(place, folder.resolve() / "submit.py", namespace, ",".join(_absent(about)))
        before = _listing([hidden.folder, folder / "dataset"])
        few = swap(competition, fold, place / "few", FEW)
        if _every_model(verdict, stage, few.folder, folder, about):
            _runs(verdict, stage, hidden, folder, about, fold)
        log = place / "network.log"
        asked = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        verdict.add("internet", f"asked for: {asked[0]}" if asked else f"never asked for; cut off by {cut}", not asked)
        same = _listing([hidden.folder, folder / "dataset"]) == before
        verdict.add("read-only inputs", "unchanged" if same else "something was written into them", same)
        out, stats = place / "kaggle" / "working" / "submission.csv", place / "stats.json"
        if verdict.add("submission", f"{out.name} was written" if out.exists() else "none", out.exists()):
            _judge(verdict, competition, about, hidden, out)
        if stats.exists():
            _count_unreadable(
                verdict, json.loads(stats.read_text(encoding="utf-8")), about, min(2, len(hidden.tampered))
            )
            _scale(verdict, json.loads(stats.read_text(encoding="utf-8")), about, hidden_rows)
    return verdict


def _every_model(verdict: Verdict, stage: Stage, raw: Path, folder: Path, about: Mapping[str, Any]) -> bool:
    """A run over a few rows by every fold's models, none of which may fail; False where it took longer than allowed."""
    stats, limit = stage.folder / "every.json", 3600 * about["hours"]
    status, said, _ = stage.run(raw, folder / "dataset", _places(about)[0], f"--stats {stats}", limit)
    if status == LATE:
        return verdict.add("time", f"not done in {about['hours']:g} h, with a few rows", False)
    wrong = _of_models(json.loads(stats.read_text(encoding="utf-8"))) if stats.exists() else [cause(said)]
    many = sum(map(len, about["runs"].values()))
    verdict.add("models", wrong[0][:300] if wrong else f"{many}, of every run and fold, have predicted", not wrong)
    return True


def _of_models(stats: Mapping[str, Any]) -> list[str]:
    """What a run has left out, or has said of a model."""
    return stats["dropped"] + [line for line in stats["notes"] if re.search(r"root/oof/|\bmodels? ", line)]


def cause(said: str) -> str:
    """Why a script failed: its last `error:` line, else what its last traceback ends with, else its last line."""
    lines = said.strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error: ")]
    traced = said.rpartition("Traceback (most recent call last):\n")[2].splitlines() if "Traceback (" in said else []
    return [*lines[-1:], *[line for line in traced if line[:1].strip()][:1], *errors[-1:]][-1]


def _places(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where competition and dataset lie below input/, in each shape of mounts."""
    owner, dataset = about["dataset"].split("/")
    names = {"slug": about["slug"], "owner": owner, "dataset": dataset}
    return [(raw.format(**names), bundle.format(**names)) for raw, bundle in SHAPES.values()]


def _runs(verdict: Verdict, stage: Stage, hidden: Hidden, folder: Path, about: Mapping[str, Any], fold: int) -> None:
    """One run in each shape of mounts: the first as a whole, of the others what shows that all is found."""
    shapes = list(zip(SHAPES, _places(about), strict=True))
    for shape, places in [*shapes[1:], shapes[0]]:
        whole = shape == next(iter(SHAPES))
        flags = f"--folds {fold} --stats {stage.folder / 'stats.json'}" if whole else "--hours 0"
        status, said, seconds = stage.run(hidden.folder, folder / "dataset", places, flags, 3600 * about["hours"])
        if status == LATE:
            verdict.add("time", f"not done in {about['hours']:g} h, with {len(hidden.new)} rows", False)
            return
        verdict.add(
            f"mounts: {shape}", duration(seconds) if not status else f"status {status}: {cause(said)[:300]}", not status
        )
        if status:
            note(said[-3000:])
            return


def _common_fold(about: Mapping[str, Any]) -> int:
    every = [set(own) for own in about["runs"].values()]
    common = set.intersection(*every)
    if not common:
        raise UserError(f"the runs have no fold in common: {about['runs']}")
    return min(common)


def _absent(about: Mapping[str, Any]) -> Iterator[str]:
    """Modules of this interpreter that neither the image nor the bundle has."""
    from importlib.metadata import packages_distributions

    lacking = {name.lower() for name in about["missing_wheels"]}
    for module, owners in packages_distributions().items():
        if lacking & {owner.lower() for owner in owners}:
            yield module


def _listing(folders: Sequence[Path]) -> str:
    """A digest of every file's name, size and time."""
    hashed = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            status = file.stat()
            hashed.update(f"{file} {status.st_size if file.is_file() else ''} {status.st_mtime_ns}".encode())
    return hashed.hexdigest()


# --- the verdict ------------------------------------------------------------------------------------------


def _judge(verdict: Verdict, competition: Competition, about: Mapping[str, Any], hidden: Hidden, out: Path) -> None:
    """The submission as the host would check it, and its rows against the blend of their out-of-fold predictions."""
    text = list(pd.read_csv(out, nrows=0).columns[:1])
    got = read_table(out, text).set_index(text[0])
    rows, truth = _expected(competition, about["submission"], hidden)
    fine = set(got.index) == set(rows.index) and not got.index.duplicated().any() and not got.isna().any(axis=None)
    verdict.add("submission's rows", f"{len(got)} rows, columns {', '.join(map(str, got.columns[:4]))}", bool(fine))
    if not fine:
        return
    sample = pd.DataFrame({text[0]: rows.index, **{c: [got[c].iloc[0]] * len(rows) for c in got}})
    expected = submission.shape(competition, rows, sample, index.load_index(competition)).set_index(text[0])
    spoilt = {row for row, new in zip(hidden.rows, hidden.new, strict=True) if new in hidden.tampered}
    kept = [row for row in rows.index if row not in spoilt]
    near = NEAR[bool(about["fp16"])]
    if all(map(pd.api.types.is_float_dtype, got.dtypes)):
        apart = float(np.abs(got.loc[kept].to_numpy() - expected.loc[kept, got.columns].to_numpy()).max())
        verdict.add(
            "rows as out of fold", f"{len(kept)} rows, {apart:.1e} apart at most ({near:g} allowed)", apart <= near
        )
    else:
        other = int((got.loc[kept].astype(str) != expected.loc[kept, got.columns].astype(str)).any(axis=1).sum())
        verdict.add("rows as out of fold", f"{other} of {len(kept)} labels differ", other <= near * len(kept))
    if submission.wants_label(competition, got) or set(got) ^ set(expected):
        return
    pairs = [rows.assign(**dict(zip(rows, got.loc[rows.index].to_numpy().T, strict=True))), rows]
    plain = competition.model_copy(update={"submission": competition.submission.model_copy(update={"row_id": None})})
    scores = [oof.score(plain, pd.concat([truth, one], axis=1).loc[kept].reset_index()) for one in pairs]
    same = bool(np.isnan(scores).any() or abs(scores[0] - scores[1]) <= 10 * near)
    verdict.add("score", f"{competition.metric} {scores[0]:.4f}, out of fold {scores[1]:.4f} on these rows", same)


def _expected(competition: Competition, name: str, hidden: Hidden) -> tuple[pd.DataFrame, pd.DataFrame]:
    """pred... and the truth of each submission row: the blend of its images' out-of-fold predictions."""
    mixture, how = Saved.load(competition, name).mixture, competition.submission.aggregate
    tables = {run: oof.read_table(competition.runs() / run / "oof.csv").set_index("id") for run in mixture.needed}
    columns = oof.pred_columns(next(iter(tables.values())))
    by_row = {
        run: table.loc[hidden.old, columns].set_axis(hidden.rows, axis=0).groupby(level=0, sort=False).agg(how)
        for run, table in tables.items()
    }
    ids = next(iter(by_row.values())).index
    preds = np.full((len(mixture.names), len(ids), len(columns)), np.nan)
    for m, run in enumerate(mixture.names):
        preds[m] = by_row[run].to_numpy() if run in by_row else np.nan
    pred = mixture.predict(preds[:, :, 0] if columns == ["pred"] else preds).reshape(len(ids), -1)
    table = index.load_index(competition)
    truth = table[table["split"] == "train"].set_index("id").loc[hidden.old, competition.truth]
    truth = truth.set_axis(hidden.rows, axis=0).groupby(level=0, sort=False).max()
    return pd.DataFrame(pred, ids, columns), truth


def _count_unreadable(verdict: Verdict, stats: Mapping[str, Any], about: Mapping[str, Any], planted: int) -> None:
    """More than were planted means that a decoder is not there."""
    more = stats["unreadable"] - planted
    why = f": wheels that the bundle lacks: {', '.join(about['missing_wheels'])}" if about["missing_wheels"] else ""
    says = (
        f"{more} of {stats['images']} can't be read there{why}" if more > 0 else f"all but {planted} that were damaged"
    )
    verdict.add("images", says, more <= 0)


def _scale(verdict: Verdict, stats: Mapping[str, Any], about: Mapping[str, Any], rows: int) -> None:
    """What was measured, scaled to the hidden test set by all folds' models."""
    folds_of = max(len(own) for own in about["runs"].values())
    pace = stats["per_image"] * folds_of  # the rehearsal asks one fold's models; decoding is counted with them
    if about.get("seconds_per_1000"):
        pace = about["seconds_per_1000"] / 1000
    seconds = stats["before"] + pace * rows + stats["after"] * max(1.0, rows / max(1, stats["images"]))
    says = f"{duration(seconds)} for {rows:,} images here; the limit is {about['hours']:g} h"
    verdict.add("time", says, seconds <= 3600 * about["hours"])
    memory = stats["peak_bytes"] + rows * stats["row_bytes"] * folds_of
    verdict.add("memory", f"{memory / 1e9:.1f} GB for {rows:,} rows, {MEMORY / 1e9:.0f} there are", memory <= MEMORY)
    disk = rows * stats["disk_bytes"] * folds_of + (2 << 30)
    verdict.add("disk", f"{disk / 1e9:.1f} GB for {rows:,} rows, {DISK / 1e9:.0f} there are", disk <= DISK)
