"""A saved blend on the test rows that lie there now: a valid file at once, a better one whenever one is whole.

    the training prior -> the models that look at no image -> chunk by chunk the whole blend -> submission.csv

Beside the CSV stands <out>.work/ until it is whole: what has been computed, for the next try after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.blend.mixture import Mixture
from foldwise.blend.run_set import join_tests
from foldwise.core.cli import duration, note
from foldwise.core.files import digest, file_digest, write_text
from foldwise.core.schema import nearest
from foldwise.data import folds, index, oof, submission, test_rows
from foldwise.data.competition import Competition
from foldwise.data.encoder import Rows
from foldwise.data.runs import mean_test
from foldwise.inference.budget import Budget, Choice
from foldwise.inference.members import Member, members_of
from foldwise.inference.pixels import Looks, Pixels, chunks
from foldwise.model.predict import with_fallback
from foldwise.tabular import boosting, embeddings
from foldwise.tabular.features import Wish, as_columns, columns

FIRST_REPLACED = 120.0  # seconds between two replacements, at least: each costs what heads and the CSV cost


@dataclass(frozen=True)
class Saved:
    """What submissions/<competition>/<name>.json says: the mixture, what each run is worth, the sample's shape."""

    name: str
    mixture: Mixture
    worth: dict[str, float]
    sample: dict[str, Any] | None

    @classmethod
    def load(cls, competition: Competition, name: str) -> Saved:
        """UserError where there is no such submission, or it was made before it held what predicts."""
        path = competition.submissions() / f"{name}.json"
        if not path.exists():
            there = sorted(file.stem for file in competition.submissions().glob("*.json"))
            raise UserError(f"{path}: not there{nearest(name, there)}; make it with 06_blend.py --name {name}")
        meta = json.loads(path.read_text(encoding="utf-8"))
        if "mixture" not in meta:
            raise UserError(
                f"{path}: made before it held what predicts new rows; run the same 06_blend.py again (a blend of ranks "
                "may change a little: they are taken among the out-of-fold predictions now, not among the test rows)"
            )
        worth = {row["run"]: row["adds"] for row in meta["leave_one_out"]}
        return cls(name, Mixture.of_saved(meta["mixture"]), worth, meta.get("sample"))


@dataclass
class Outcome:
    """What was predicted: rows of the submission, images that could not be read, what was left out."""

    rows: int
    unreadable: int
    notes: list[str]
    dropped: list[str]
    seconds: float


@dataclass
class Work:
    """One submission being predicted. rows: index rows of the test split now; table: the saved index with them."""

    competition: Competition
    saved: Saved
    out: Path
    table: pd.DataFrame
    rows: pd.DataFrame
    members: Mapping[str, Member] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> list[str]:
        """The classes behind the predictions."""
        return index.classes(self.competition, self.table)

    @cached_property
    def columns(self) -> list[str]:
        """Of a prediction table."""
        return [f"pred_{name}" for name in self.names] or ["pred"]

    @property
    def folder(self) -> Path:
        """What has been computed so far."""
        return self.out.with_name(f"{self.out.name}.work")

    @cached_property
    def folds(self) -> pd.DataFrame:
        """folds.csv."""
        return folds.load_folds(self.competition)

    def prior(self, fold: int | None = None) -> np.ndarray:
        """float32 (C,): the mean target of the training rows, without those of a fold."""
        fold_table = self.folds if fold is None else self.folds[self.folds["fold"] != fold]
        return index.prior(self.competition, folds.rows(self.table, fold_table), self.names)

    # --- a run ------------------------------------------------------------------------------------------------

    def predict(self, choice: Choice, pixels: Pixels | None, rows: np.ndarray) -> dict[str, pd.DataFrame]:
        """id, pred... of each run of the choice for the rows `rows` bool (N,), as its test.csv would have them.

        Every run's tables are written and read as steps 2 to 4 do it: the same digits.
        """
        tests: dict[str, pd.DataFrame] = {}
        for name in choice.used:
            place, member = self.folder / "runs" / name, self.members[name]
            if choice.needs_pixels(name) and pixels is None:
                continue
            place.mkdir(parents=True, exist_ok=True)
            for fold in choice.folds_of(name):
                pred = self._fold(member, fold, pixels, rows)
                table = oof.prediction_table(self.competition, self.names, self.rows[rows], pred)
                oof.write_table(table, place / f"fold{fold}_test.csv")
            oof.write_table(mean_test(place, choice.folds_of(name)), place / "test.csv")
            tests[name] = oof.read_table(place / "test.csv")
        return tests

    def _fold(self, member: Member, fold: int, pixels: Pixels | None, rows: np.ndarray) -> np.ndarray:
        folder = self.competition.runs() / member.name
        if member.kind == "table":
            return boosting.load_model(folder, fold).predict(self._looked_at(member, fold, pixels, rows))
        assert pixels is not None
        (source,) = member.sources([fold])
        values, readable = pixels.values(source.key, source, rows)
        if member.kind == "head":
            values = embeddings.load_head(folder, fold).predict(values)
        elif not readable.any():
            values = np.zeros((len(readable), len(self.columns)), np.float32)
        return with_fallback(values, readable, self.prior(fold))

    def _looked_at(self, member: Member, fold: int, pixels: Pixels | None, rows: np.ndarray) -> Rows:
        """What a model on columns looks at."""
        wish = Wish(member.config["group_features"], member.config["file_features"])
        frame = columns(self.competition, self.table, wish)[(self.table["split"] == "test").to_numpy()][rows]
        ids = self.rows["id"][rows]
        for other in member.rests_on:
            own = oof.read_table(self.folder / "runs" / other / f"fold{fold}_test.csv").set_index("id")
            stacked = as_columns(self.competition, other, own.loc[ids, self.columns])
            frame = pd.concat([frame, stacked.set_index(frame.index)], axis=1)
        vectors = {}
        for column, by_fold in member.embeddings.items():
            assert pixels is not None
            values, _ = pixels.values(by_fold[fold].key, by_fold[fold], rows)
            values[~values.any(axis=1)] = np.nan
            vectors[column] = values
        return Rows(frame, vectors)

    # --- the blend --------------------------------------------------------------------------------------------

    def blend(self, tests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """id, pred... of every submission row (or image): rows that no run predicted get the training prior."""
        mixture, ids = self.saved.mixture, self.rows["id"].to_numpy()
        shape = (len(mixture.names), len(ids), len(self.columns))
        preds = np.full(shape, np.nan)
        for m, name in enumerate(mixture.names):
            if name in tests:
                preds[m] = tests[name].set_index("id")[self.columns].reindex(ids).to_numpy(dtype=np.float64)
        nobody = np.isnan(preds).all(axis=(0, 2))
        preds[:, nobody] = self.prior()
        if self.competition.aggregates:
            preds, ids = join_tests(self.competition, preds, ids, self.table)
        pred = mixture.predict(preds[:, :, 0] if self.columns == ["pred"] else preds).reshape(len(ids), -1)
        return pd.DataFrame({"id": ids, **dict(zip(self.columns, pred.T, strict=True))})

    def write(self, tests: Mapping[str, pd.DataFrame]) -> int:
        """The submission of what is there, validated, in place of the one before; its rows."""
        pred = self.blend(tests)
        sample = self.sample(pred)
        rows = submission.to_rows(self.competition, pred, self.table)
        if len(sample) != len(rows) or set(sample.iloc[:, 0]) != set(rows.index):  # the sample asks for more
            prior = self.blend({}).iloc[0][self.columns].to_numpy(dtype=float)
            rows = rows.reindex(sample.iloc[:, 0])
            rows[rows.isna().any(axis=1)] = prior
        frame = submission.shape(self.competition, rows, sample, self.table)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        submission.write_frame(self.competition, frame, sample, self.out)
        return len(frame)

    def sample(self, pred: pd.DataFrame) -> pd.DataFrame:
        """The host's sample if it asks for every row that is there; else one of these rows in the sample's columns."""
        about, wanted = self.competition, self.rows["row_id"].drop_duplicates().astype(str)
        path = about.raw() / str(about.sample_submission)
        if about.sample_submission is not None and path.exists():
            given = submission.read_sample(about, self.table, pred)
            more = len(given) - len(wanted)
            given = given[~given.iloc[:, 0].duplicated()].reset_index(drop=True)
            if set(wanted) <= set(given.iloc[:, 0]):
                if more > 0:
                    self._say(f"{path}: asks for {more} rows that are not there: they get the training prior")
                return given
            self._say(f"{path}: does not ask for the rows that are there: its columns are used, not its ids")
            shown = given.head(1)
        elif self.saved.sample is not None:
            shown = pd.DataFrame(**self.saved.sample).head(1)
        else:
            return submission.read_sample(about.model_copy(update={"sample_submission": None}), self.table, pred)
        values = {column: [shown[column].iloc[0]] * len(wanted) for column in shown.columns[1:]}
        return pd.DataFrame({shown.columns[0]: wanted.to_numpy(), **values})

    def _say(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)
            note(line)


def predict_submission(
    competition: Competition,
    name: str,
    out: Path,
    hours: float | None = None,
    started: float | None = None,
    workers: int | None = None,
) -> Outcome:
    """Predict the test rows of now by a saved submission's blend into `out`; what was done comes back.

    hours: from `started` (seconds since 1970; default: the start of this process). UserError where the submission or
    one of its models is not there: nothing in the test rows raises one, save that there are none.
    """
    begun = time.time()
    deadline = None if hours is None else (process_start() if started is None else started) + 3600 * hours
    saved, known = Saved.load(competition, name), index.load_index(competition)
    rows, notes = test_rows.list_test_rows(competition)
    work = Work(competition, saved, out, test_rows.with_known(known, rows), rows)
    for line in notes:
        work._say(line)
    written = work.write({})
    note(f"{out}: {written:,} rows, the training prior for each: valid, to be replaced")
    members = members_of(competition, saved.mixture.needed)
    choice = Choice.everything(members, saved.mixture.needed, saved.worth)
    headers = any(m.config.get("file_features") or (m.recipe and m.recipe.crop) for m in members.values())
    rows, notes = test_rows.describe(competition, known, rows, headers, workers)
    work = Work(competition, saved, out, test_rows.with_known(known, rows), rows, members, work.notes)
    for line in notes:
        work._say(line)
    tests = _without_images(work, choice)
    if not choice.sources:
        _finish(work)
        return Outcome(len(rows), 0, work.notes, [], time.time() - begun)
    pixels = _open(work, choice, workers)
    budget = Budget(deadline, _overlapped(), [])
    choice = _look(work, pixels, choice, budget, tests)
    readable = pixels.seen(choice.sources)
    written = work.write({**tests, **work.predict(choice, pixels, readable)} if readable.any() else tests)
    if not readable.all():
        work._say(f"time is over: {int((~readable).sum()):,} of {len(rows):,} rows have no prediction of their image")
    unreadable = len(pixels.broken) + int(rows["error"].notna().sum())
    if unreadable:
        some = next(iter(pixels.broken), None) or rows["id"][rows["error"].notna()].iloc[0]
        work._say(f"{unreadable} of {len(rows):,} images can't be read, such as {some}: predicted as the others' mean")
    _finish(work)
    return Outcome(written, unreadable, work.notes, budget.dropped, time.time() - begun)


def _without_images(work: Work, choice: Choice) -> dict[str, pd.DataFrame]:
    """The runs that look at no image, and the submission by them alone where the blend has such."""
    blind = [name for name in choice.used if not choice.needs_pixels(name)]
    if not blind:
        return {}
    some = Choice.everything(work.members, blind, work.saved.worth)
    tests = work.predict(some, None, np.ones(len(work.rows), bool))
    if set(blind) & set(choice.keep):
        work.write(tests)
        note(f"{work.out}: by {', '.join(blind)}, which need no image")
    return tests


def _open(work: Work, choice: Choice, workers: int | None) -> Pixels:
    """The chunks, those that an earlier try of the same has left included."""
    runs = {path: file_digest(path) for path in _models(work.competition, choice)}
    key = digest([str(work.saved.mixture), work.rows[["id", "path"]].to_numpy().tolist(), list(runs.values())])
    chunked = work.folder / "chunks"
    if not (chunked / "key").exists() or (chunked / "key").read_text(encoding="utf-8") != key:
        shutil.rmtree(chunked, ignore_errors=True)
        chunked.mkdir(parents=True)
        write_text(chunked / "key", key)
    grid = chunks(len(work.rows), sorted({source.images for source in choice.sources.values()}))
    looks = Looks(work.competition, work.table)
    return Pixels(work.competition, work.rows, work.competition.raw(), chunked, looks, grid, workers)


def _models(competition: Competition, choice: Choice) -> list[Path]:
    """The networks' files."""
    runs = {source.run for source in choice.sources.values() if source.run}
    return [path for run in sorted(runs) for path in sorted((competition.runs() / run).glob("fold*.safetensors"))]


def _look(work: Work, pixels: Pixels, choice: Choice, budget: Budget, tests: dict[str, pd.DataFrame]) -> Choice:
    """Every chunk by what of the choice the hours hold, the submission replaced now and then; the choice at last."""
    left, told, chunk, replaced, cost = pixels.todo(list(choice.sources)), "", 0.0, time.monotonic(), 0.0
    if len(left) < len(pixels.grid):
        note(f"{len(pixels.grid) - len(left)} of {len(pixels.grid)} chunks are there from an earlier try")
    images = sum(piece.stop - piece.start for piece in left)

    def ask() -> Any:
        nonlocal choice, told
        before = choice
        choice, says = budget.fit(choice, pixels.pace, images, time.time())
        if says and (not told or choice is not before):
            note(f"--hours: {says}")
            told = says
        late = budget.deadline is not None and time.time() + 1.3 * chunk + 5 > budget.deadline
        return None if late or not choice.sources else choice.sources

    for piece, chunk in pixels.run(ask, left):
        images -= piece.stop - piece.start
        if images and time.monotonic() - replaced > max(FIRST_REPLACED, 20 * cost):
            begun = time.monotonic()
            work.write({**tests, **work.predict(choice, pixels, pixels.seen(choice.sources))})
            replaced, cost = time.monotonic(), time.monotonic() - begun
            pace = chunk / (piece.stop - piece.start)
            note(f"{work.out}: replaced; {images:,} images are left, {duration(images * pace)}")
    return choice


def _finish(work: Work) -> None:
    shutil.rmtree(work.folder, ignore_errors=True)


def _overlapped() -> bool:
    """Whether networks compute beside the cores that decode."""
    from foldwise.core import parallel

    return parallel.gpus() > 0


def process_start() -> float:
    """When this process began, in seconds since 1970."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
