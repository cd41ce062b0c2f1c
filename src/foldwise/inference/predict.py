"""A saved blend on the test rows that lie there now: a valid file at once, a better one whenever one is whole.

    the training prior -> the models that look at no image -> chunk by chunk the whole blend -> submission.csv

Beside the CSV stands <out>.work/ until it is whole: what has been computed, for the next try after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import parallel, paths
from foldwise.core.cli import duration, note
from foldwise.core.files import digest, file_digest, temporary_folder, write_json, write_text
from foldwise.core.source import stamp
from foldwise.data import image, index, oof, series, test_rows
from foldwise.data.competition import Competition
from foldwise.data.encoder import Rows
from foldwise.data.recipe import Recipe
from foldwise.data.runs import mean_test
from foldwise.inference.budget import Budget, Choice
from foldwise.inference.members import Member, Source, members_of
from foldwise.inference.pixels import Looks, Pixels, chunks
from foldwise.inference.writer import Submission, process_start
from foldwise.model.fold_models import trained_folds
from foldwise.model.predict import say_unreadable, with_fallback
from foldwise.tabular import boosting, embeddings
from foldwise.tabular.features import Wish, as_columns, columns, host_group

FIRST_REPLACED = 120.0  # seconds between two replacements, at least: each costs what heads and the CSV cost


@dataclass(frozen=True)
class Outcome:
    """What was predicted: rows of the submission, images that could not be read, what was left out; what it took.

    per_image: seconds; row_bytes: of memory, and disk_bytes: of the work folder, that grow with the images; seconds of
    what comes before them and after; peak_bytes of memory, those of the processes that decode included once.
    """

    rows: int
    images: int = 0
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    per_image: float = 0.0
    before: float = 0.0
    after: float = 0.0
    row_bytes: float = 0.0
    disk_bytes: float = 0.0
    peak_bytes: int = 0


@dataclass
class Work(Submission):
    """A submission with the runs that predict it."""

    members: Mapping[str, Member] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """What has been computed so far."""
        return self.out.with_name(f"{self.out.name}.work")

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
            model = boosting.load_model(folder, fold)
            return model.predict(self._looked_at(model, member, fold, pixels, rows))
        assert pixels is not None
        (source,) = member.sources([fold])
        values, readable = pixels.values(source.key, source, rows)
        if not readable.any():
            return np.tile(self.prior(fold), (len(readable), 1))
        if member.kind == "head":
            values = embeddings.load_head(folder, fold).predict(values)
        return with_fallback(values, readable, self.prior(fold))

    def _looked_at(
        self, model: boosting.Model, member: Member, fold: int, pixels: Pixels | None, rows: np.ndarray
    ) -> Rows:
        """What a model on columns looks at."""
        wish = Wish.of(member.config)
        frame = columns(self.competition, self.table, wish)[(self.table["split"] == "test").to_numpy()][rows]
        ids = self.rows["id"][rows]
        for other in member.rests_on:
            own = oof.read_table(self.folder / "runs" / other / f"fold{fold}_test.csv").set_index("id")
            stacked = as_columns(self.competition, other, own.loc[ids, self.columns], host_group(self.rows)[rows], wish)
            frame = pd.concat([frame, stacked.set_index(frame.index)], axis=1)
        vectors = {}
        for column, by_fold in member.embeddings.items():
            assert pixels is not None
            values, readable = pixels.values(by_fold[fold].key, by_fold[fold], rows)
            if not readable.any():
                values = np.zeros((len(readable), len(model.encoder.components[column].mean)), np.float32)
            values[~values.any(axis=1)] = np.nan
            vectors[column] = values
        return Rows(frame, vectors)


@dataclass(frozen=True)
class How:
    """deadline: in seconds since 1970. only: the folds whose models predict, all where None. workers: processes that
    decode. part: (k, n), of n processes with a device each the k-th; the first starts the others, and writes."""

    deadline: float | None = None
    only: Sequence[int] | None = None
    workers: int | None = None
    part: tuple[int, int] = (0, 1)


def predict_submission(first: Submission, how: How) -> Outcome:
    """Replace a submission that `writer.begin` wrote by the blend's predictions; what was done comes back.

    UserError where one of the blend's models is not there: nothing in the test rows raises one.
    """
    work, whole = _prepare(first, how)
    rows = work.rows
    tests = _without_images(work, whole)
    if not whole.sources:
        _finish(work)
        return Outcome(len(rows), notes=work.notes, peak_bytes=_peak())
    pixels = _open(work, whole, how)
    budget = Budget(how.deadline, parallel.gpus() > 0)
    begun = time.time()
    with _others(pixels, how):
        choice = _look(work, pixels, whole, budget, tests)
    if pixels.part[1] > 1:  # what a process that died has left
        pixels.part = (0, 1)
        choice = _look(work, pixels, choice, budget, tests)
    looked = time.time()
    readable = pixels.seen(choice.sources)
    written = work.write({**tests, **work.predict(choice, pixels, readable)} if readable.any() else tests)
    if not readable.all():
        work.say(f"time is over: {int((~readable).sum()):,} of {len(rows):,} rows have no prediction of their image")
    unreadable = pixels.unreadable()
    if unreadable:
        some = f"{len(unreadable)} of {len(rows):,} images can't be read, such as {unreadable[0]}"
        work.say(f"{some}: predicted as the others' mean")
    disk = sum(file.stat().st_size for file in work.folder.rglob("*") if file.is_file())
    table = float(work.rows.memory_usage(deep=True).sum())
    stored = [pixels.values(key, source, readable)[0] for key, source in choice.sources.items() if readable.any()]
    values = sum(array.nbytes for array in stored)
    _finish(work)
    return Outcome(
        written,
        len(rows),
        len(unreadable),
        work.notes,
        choice.left_out(whole),
        choice.seconds(pixels.pace, budget.overlapped),
        begun - process_start(),
        time.time() - looked,
        (4 * table + 2 * values) / len(rows),  # tables are joined, values gathered: each lies there more than once
        disk / len(rows),
        _peak(),
    )


def predict_part(first: Submission, how: How) -> None:
    """The chunks of one of several processes, and no more: the first process gathers and writes."""
    work, whole = _prepare(first, how)
    pixels = _open(work, whole, how)
    _look(work, pixels, whole, Budget(how.deadline, True), {})


def _prepare(first: Submission, how: How) -> tuple[Work, Choice]:
    """The test rows described, the runs of the blend, and the choice of everything."""
    competition, saved = first.competition, first.saved
    known, members = index.load_index(competition), members_of(competition, saved.mixture.needed)
    choice = Choice.everything(members, saved.mixture.needed, saved.worth, how.only)
    headers = any(m.config.get("file_features") or (m.recipe and m.recipe.crop) for m in members.values())
    rows, notes = test_rows.describe(competition, known, first.rows, headers, how.workers)
    work = Work(competition, saved, first.out, test_rows.with_known(known, rows), rows, first.notes, members)
    for line in notes if not how.part[0] else []:
        work.say(line)
    return work, choice


@contextmanager
def _others(pixels: Pixels, how: How) -> Iterator[None]:
    """The same command once more for each further device, and waiting for them."""
    n = how.part[1]
    seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one] or [str(k) for k in range(n)]
    others = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--part", str(k)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": seen[k % len(seen)]},
            stdout=subprocess.DEVNULL,
        )
        for k in range(1, n)
    ]
    try:
        yield
        for other in others:
            left = None if how.deadline is None else max(1.0, how.deadline - time.time() - 5)
            with suppress(subprocess.TimeoutExpired):
                other.wait(left)
    finally:
        for other in others:
            other.kill()
            other.wait()


def _peak() -> int:
    """Bytes of memory that this process, and the largest of those it started, held at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return sum(resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _without_images(work: Work, choice: Choice) -> dict[str, pd.DataFrame]:
    """The runs that look at no image, and the submission by them alone where the blend has such."""
    blind = [name for name in choice.used if not choice.needs_pixels(name)]
    if not blind:
        return {}
    tests = work.predict(replace(choice, keep=tuple(blind)), None, np.ones(len(work.rows), bool))
    if set(blind) & set(choice.keep):
        work.write(tests)
        note(f"{work.out}: by {', '.join(blind)}, which need no image")
    return tests


def _open(work: Work, choice: Choice, how: How) -> Pixels:
    """The chunks, those that an earlier try of the same has left included."""
    about = work.competition
    runs = {path: file_digest(path) for path in _models(about, choice)}
    rows = work.rows[["id", "path", *index.metadata_columns(about)]].astype(str).to_numpy().tolist()
    places = [place for path in work.rows["path"] for place in series.places(about.raw() / path)]
    files = [stamp(file) for place in places for file in [place, *(series.files(place) if about.image.slices else [])]]
    # others under the same names are others
    key = digest([str(work.saved.mixture), rows, files, about.image.model_dump(), list(runs.values())])
    chunked = work.folder / "chunks"
    if not (chunked / "key").exists() or (chunked / "key").read_text(encoding="utf-8") != key:
        shutil.rmtree(chunked, ignore_errors=True)
        chunked.mkdir(parents=True)
        write_text(chunked / "key", key)
    grid = chunks(len(work.rows), sorted({source.images for source in choice.sources.values()}))
    looks = Looks(work.competition, work.table)
    raw = work.competition.raw()
    workers = how.workers or max(1, parallel.cores() // how.part[1])
    return Pixels(work.competition, work.rows, raw, chunked, looks, grid, workers, part=how.part)


def _models(competition: Competition, choice: Choice) -> list[Path]:
    """What the networks' folds are made of."""
    runs = {source.run for source in choice.sources.values() if source.run}
    kinds = {".safetensors", ".json", ".npz"}
    folders = [competition.runs() / run for run in sorted(runs)]
    return [path for folder in folders for path in sorted(folder.glob("fold*")) if path.suffix in kinds]


def _look(work: Work, pixels: Pixels, choice: Choice, budget: Budget, tests: dict[str, pd.DataFrame]) -> Choice:
    """Every chunk by what of the choice the hours hold, the submission replaced now and then; the choice at last."""
    left, told, chunk, replaced, cost = pixels.todo(list(choice.sources)), "", 0.0, time.monotonic(), 0.0
    own, leads = pixels.mine(left), not pixels.part[0]
    if len(left) < len(pixels.grid) and leads and not pixels.pace.decode:
        note(f"{len(pixels.grid) - len(left)} of {len(pixels.grid)} chunks are there from an earlier try")
    whole, agreed = choice, pixels.folder / "choice.json"
    images = sum(piece.stop - piece.start for piece in own)

    def ask() -> Any:
        nonlocal choice, told
        before, says = choice, ""
        if leads:
            choice, says = budget.fit(choice, pixels.pace, images, time.time())
            if choice is not before:
                write_json(agreed, choice.state())
        elif agreed.exists():  # the first process decides for all
            choice = whole.as_in(json.loads(agreed.read_text(encoding="utf-8")))
        if says and (not told or choice is not before):
            left_out = f"; left out: {'; '.join(choice.left_out(whole))}" if choice is not whole else ""
            note(f"--hours: {says}{left_out}")
            told = says
        late = budget.deadline is not None and time.time() + 1.3 * chunk + 5 > budget.deadline
        return None if late or not choice.sources else choice.sources

    for piece, chunk in pixels.run(ask, own):
        images -= piece.stop - piece.start
        if leads and images and time.monotonic() - replaced > max(FIRST_REPLACED, 20 * cost):
            begun = time.monotonic()
            work.write({**tests, **work.predict(choice, pixels, pixels.seen(choice.sources))})
            replaced, cost = time.monotonic(), time.monotonic() - begun
            pace = chunk / (piece.stop - piece.start)
            note(f"{work.out}: replaced; {images:,} images are left, {duration(images * pace)}")
    return choice


def _finish(work: Work) -> None:
    shutil.rmtree(work.folder, ignore_errors=True)


def predict_folder(
    competition: Competition, recipe: Recipe, run: str, folder: Path, workers: int | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The folds' mean for every image below `folder` (id = its path below it), and {id: reason} of unreadable ones.

    The images go through the same cache as training's, a temporary one: never a second path.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    if recipe.model.metadata:
        raise UserError(f"run {run} fuses metadata with the image: a folder of images alone can't be predicted with it")
    listed = image.listing(folder)
    if not listed.images:
        raise UserError(f"--images {folder}: no images in it{listed.left_out}")
    ids = [path.relative_to(folder).as_posix() for path in listed.images]
    sizes = [path.stat().st_size for path in listed.images]
    rows = pd.DataFrame({"split": "new", "id": ids, "path": ids, "error": None, "bytes": sizes})
    table, sources = (
        index.load_index(competition),
        [Source("pred", run, fold, recipe) for fold in trained_folds(competition, run)],
    )
    with temporary_folder(paths.output_root(), "images.") as tmp_dir:
        grid = chunks(len(rows), [(recipe.image_size, recipe.crop)])
        pixels = Pixels(competition, rows, folder, tmp_dir, Looks(competition, table), grid, workers)
        for _ in pixels.run(lambda: {source.key: source for source in sources}, grid):
            pass
        if len(pixels.broken) > competition.unreadable * len(ids):
            first, reason = next(iter(pixels.broken.items()))
            raise UserError(
                f"--images {folder}: {len(pixels.broken)} of {len(ids)} files can't be read; the first: {first}: "
                f"{reason}; mend them, or allow more than `unreadable: {competition.unreadable:g}` in "
                f"{competition.file}"
            )
        preds = []
        for source in sources:
            values, readable = pixels.values(source.key, source, np.ones(len(ids), bool))
            preds.append(with_fallback(values, readable, pixels.looks.fold(source).prior))
        say_unreadable(f"--images {folder}", ids, readable)
    names = index.classes(competition, table)
    return oof.prediction_table(competition, names, rows, np.mean(preds, axis=0)), pixels.broken
