"""What the web app answers: fold models kept loaded, predictions of what was sent in, neighbours, errors to look at.

One `Service` serves every visitor and holds nothing of theirs: an answer belongs to the call that made it. Models are
read-only and in evaluation mode, so any number of calls may predict by one at a time. Class activation maps hook into
the layers, and are therefore made by models of their own, one call after the other.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from app.uploads import Upload, Uploads
from foldwise import UserError
from foldwise.blend.run_set import gather_runs
from foldwise.blend.spaces import RANKED
from foldwise.core import source
from foldwise.core.files import digest, read_voucher, replacing, write_voucher
from foldwise.data import cache, folds, index, oof, series
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions
from foldwise.data.recipe import Recipe
from foldwise.data.runs import finished_folds, read_folds, read_run_info, recipe_of
from foldwise.data.test_rows import with_known
from foldwise.inference.budget import Choice
from foldwise.inference.members import Source, members_of
from foldwise.inference.pixels import Looks, Pixels, chunks
from foldwise.inference.predict import Work
from foldwise.inference.writer import Saved
from foldwise.model import explain, explain_slices, fold_models
from foldwise.model.crops import crop_again
from foldwise.model.targets import OutputTarget
from foldwise.report import cases

MODELS = 16  # kept loaded; the one not used for longest makes room
Told = Callable[[str], None]


def silent(words: str) -> None:
    """Says nothing of what is being done."""


@dataclass(frozen=True)
class Answer:
    """Predictions of the readable images: preds[run][fold] float32 (N, outputs), columns as in test.csv.

    images: {(size, cropped): uint8 (N, size, size, 3)} as the models saw them, kept where there are few.
    errors: {id: reason} of what could not be read or was refused.
    """

    ids: list[str]
    columns: list[str]
    preds: dict[str, dict[int, np.ndarray]]
    images: dict[tuple[int, bool], np.ndarray]
    errors: dict[str, str]

    def mean(self, run: str) -> np.ndarray:
        """(N, outputs): the folds' mean, as test.csv has it."""
        return np.mean(list(self.preds[run].values()), axis=0)

    def image(self, recipe: Recipe) -> np.ndarray:
        """uint8 (N, S, S, 3): the images as this recipe's models saw them."""
        return self.images[recipe.image_size, recipe.crop]

    def table(self, pred: np.ndarray) -> pd.DataFrame:
        """id and prediction columns, as a CSV to take away."""
        return pd.DataFrame({"id": self.ids, **dict(zip(self.columns, pred.T, strict=True))})


class Neighbours(NamedTuple):
    """Embeddings of the readable training images by one fold's network: unit vectors float32 (N, D), ids, folds."""

    vectors: np.ndarray
    ids: list[str]
    fold: np.ndarray


@dataclass(frozen=True)
class Blended:
    """A whole blend's predictions (N, outputs) of the images received.

    above: share of the test images' blend that each value lies above, where the blend averages ranks; else None.
    """

    name: str
    pred: np.ndarray
    above: np.ndarray | None


@dataclass
class Served(Looks):
    """The networks behind a blend: those that the service keeps loaded."""

    service: Service | None = None
    told: Told = silent

    def fold(self, source: Source) -> fold_models.FoldModel:
        """The fold's model, and a word on it."""
        assert self.service is not None
        run, fold = str(source.run), int(source.fold or 0)
        self.told(f"{run}: fold {fold + 1} of {len(self.service.folds(run))}")
        return self.service.model(run, fold)


class Service:
    """A competition's runs, ready to answer; safe to share between threads."""

    def __init__(self, competition: Competition) -> None:
        self.competition = competition
        self.table = index.load_index(competition)
        self.names = index.classes(competition, self.table)
        self._recipes: dict[str, Any] = {}  # networks as they were pretrained
        self._test_blends: dict[tuple[str, str], np.ndarray] = {}
        self._usual: dict[str, float] = {}
        self._models: OrderedDict[tuple[str, int, str], fold_models.FoldModel] = OrderedDict()
        self._loading, self._embedding, self._explaining = threading.Lock(), threading.Lock(), threading.Lock()

    @property
    def columns(self) -> list[str]:
        """Prediction columns: ['pred'], or ['pred_<class>', ...]."""
        return [f"pred_{name}" for name in self.names] or ["pred"]

    @property
    def outputs(self) -> list[str]:
        """What each column says, for people."""
        if self.competition.task == "binary":
            return [f"{self.competition.targets[0]} = {self.competition.shown('1')}"]
        return list(map(self.competition.shown, self.names)) or self.competition.targets

    # --- runs and models ----------------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """Runs whose models are here, best score first: trained by step 2, or the same weights with other views."""
        folder = self.competition.runs()
        names = sorted(path.parent.name for path in folder.glob("*/run.json")) if folder.is_dir() else []
        sign = 1 if self.competition.scorer().greater_is_better else -1
        scores = {run: read_run_info(folder / run).score for run in names if self._is_served(run)}
        return sorted(scores, key=lambda run: (scores[run] is None, -sign * (scores[run] or 0), run))

    def _is_served(self, run: str) -> bool:
        try:
            return bool(self.recipe(run) and self.folds(run))
        except UserError:
            return False

    def recipe(self, run: str) -> Recipe:
        """What the run was trained and predicts with."""
        return recipe_of(self.competition, run)

    def weights_of(self, run: str) -> str:
        """The run that holds the weights: itself, or the one that step 5 took them from."""
        return read_run_info(self.competition.runs() / run).weights_of or run

    def folds(self, run: str) -> list[int]:
        """Folds whose models are there."""
        return fold_models.trained_folds(self.competition, self.weights_of(run))

    def model(self, run: str, fold: int, use: str = "predict") -> fold_models.FoldModel:
        """A fold's model, loaded once for each use."""
        key = (run, fold, use)
        with self._loading:  # quick, and two visitors must not load the same one twice
            if key not in self._models:
                one = fold_models.load_fold(self.competition, self.recipe(run), self.weights_of(run), fold, self.table)
                self._models[key] = one
            self._models.move_to_end(key)
            while len(self._models) > MODELS:
                self._models.popitem(last=False)
            return self._models[key]

    # --- metadata -----------------------------------------------------------------------------------------

    def fuses(self, runs: Sequence[str], blend: str | None = None) -> bool:
        """Whether one of them, or a run of the blend, looks at metadata too."""
        meta = self.submissions().get(blend or "", {"runs": []})
        return any(self._looks_at_metadata(run) for run in {*runs, *(row["run"] for row in meta["runs"])})

    def _looks_at_metadata(self, run: str) -> bool:
        config = read_run_info(self.competition.runs() / run).config
        return "target_encode" in config or bool(
            isinstance(config.get("model"), dict) and config["model"].get("metadata")
        )

    def metadata(self) -> dict[str, list[str] | tuple[float, float, float]]:
        """What a visitor can say of an image, by column: categories, or (lowest, median, highest) of numbers."""
        train = self.table[self.table["split"] == "train"]
        columns: dict[str, list[str] | tuple[float, float, float]] = {}
        for column in index.metadata_columns(self.competition):
            values = train[column].dropna()
            if not len(values):
                continue
            if pd.api.types.is_numeric_dtype(values):
                columns[column] = (float(values.min()), float(values.median()), float(values.max()))
            else:
                columns[column] = sorted(values.astype(str).unique().tolist())
        return columns

    def described(self, rows: pd.DataFrame, metadata: dict[str, Any] | None = None) -> pd.DataFrame:
        """Index rows of new images with what is known of them; every other metadata column is missing."""
        known = rows.copy()
        for column in index.metadata_columns(self.competition):
            value = (metadata or {}).get(column)
            numeric = pd.api.types.is_numeric_dtype(self.table[column])
            known[column] = pd.Series([value] * len(rows), index=rows.index, dtype="float64" if numeric else "object")
        return known

    # --- predictions --------------------------------------------------------------------------------------

    def predict(
        self,
        received: Uploads,
        runs: Sequence[str],
        metadata: dict[str, Any] | None = None,
        options: ImageOptions | None = None,
        keep: int = 1,
        told: Told = silent,
    ) -> Answer:
        """Every chosen run's fold models on the images received; images are kept where there are at most `keep`.

        options: how files become pixels, the competition's where None. UserError where none can be read.
        """
        seen: dict[tuple[int, bool], tuple[cache.Cache, np.ndarray]] = {}
        errors = dict(received.refused)
        if not len(received.rows):
            raise UserError(_first(errors) or "nothing was sent")
        told("decoding")
        for recipe in map(self.recipe, runs):
            kind = (recipe.image_size, recipe.crop)
            if kind not in seen:
                images, where, reasons = self._cached(received, recipe, options)
                seen[kind] = images, where
                errors |= reasons
        good = np.logical_and.reduce([where >= 0 for _, where in seen.values()])
        if not good.any():
            raise UserError(_first(errors) or "none of the files can be read")
        rows = self.described(received.rows, metadata)[good]
        preds: dict[str, dict[int, np.ndarray]] = {}
        for run in runs:
            recipe = self.recipe(run)
            images, where = seen[recipe.image_size, recipe.crop]
            preds[run] = {}
            for k, fold in enumerate(self.folds(run), 1):
                told(f"{run}: fold {k} of {len(self.folds(run))}")
                trained = self.model(run, fold)
                preds[run][fold] = trained.predict(images, where[good], rows, f"{run} fold {fold}")
        kept = {kind: images.read(where[good]) for kind, (images, where) in seen.items() if int(good.sum()) <= keep}
        return Answer(rows["id"].tolist(), self.columns, preds, kept, errors)

    def _cached(
        self, received: Uploads, recipe: Recipe, options: ImageOptions | None
    ) -> tuple[cache.Cache, np.ndarray, dict[str, str]]:
        """The images as this recipe's models see them, cropped by the competition's detector where they are."""
        options = received.bounded(options or self.competition.image)
        crops = crop_again(self.competition, received.folder, received.rows, options) if recipe.crop else None
        return received.cached(recipe.image_size, options, crops)

    def map(
        self, answer: Answer, run: str, fold: int, output: int, metadata: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Grad-CAM of the first image for one output, float32 (S, S), 0 or more and at most 1: explain.cams."""
        recipe = self.recipe(run)
        trained = self.model(run, fold, "explain")
        image = answer.image(recipe)[:1]
        rows = self.described(pd.DataFrame({"id": answer.ids[:1]}), metadata)
        with self._explaining:
            layers = explain.cam_layers(trained.network, recipe.image_size)
            targets = [OutputTarget(output)]
            found = explain.cams(trained, image, targets, layers, trained.metadata(rows))
        return np.mean([maps[0] for maps in found.maps.values()], axis=0)

    def slices(
        self, answer: Answer, run: str, fold: int, output: int, metadata: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, list[explain_slices.SliceMap]]:
        """Of a study: the evidence that goes with each slice, float (N,), NaN of none, and maps on some."""
        recipe, target = self.recipe(run), OutputTarget(output)
        trained, image = self.model(run, fold, "explain"), answer.image(recipe)[0]
        beside = trained.metadata(self.described(pd.DataFrame({"id": answer.ids[:1]}), metadata))
        with self._explaining:
            layer = explain.cam_layers(trained.network, recipe.image_size)["backbone"]
            lost = explain_slices.effects(explain_slices.study_of(trained, image, beside), target)
            return lost, explain_slices.slice_maps(trained, image, target, lost, layer, beside)

    # --- blends -------------------------------------------------------------------------------------------

    def submissions(self) -> dict[str, dict[str, Any]]:
        """Blends by name: the meta that step 6 wrote beside each submission."""
        blends = {}
        for path in sorted(self.competition.submissions().glob("*.json")):
            try:
                meta = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError):
                continue
            if isinstance(meta, dict) and meta.get("runs"):
                blends[path.stem] = meta
        return blends

    def blend(
        self,
        received: Uploads,
        name: str,
        metadata: dict[str, Any] | None = None,
        options: ImageOptions | None = None,
        told: Told = silent,
    ) -> Blended:
        """A submission's whole blend of the images received, as 05 predicts hidden test rows: every run and fold.

        UserError where a run of it has no models here.
        """
        saved = Saved.load(self.competition, name)
        members = members_of(self.competition, saved.mixture.needed)
        choice = Choice.everything(members, saved.mixture.needed, saved.worth)
        rows = self._as_test(received.rows, metadata)
        table = with_known(self.table, rows)
        work = Work(self.competition, saved, received.folder / f"{name}.csv", table, rows, [], members)
        pixels = None
        if choice.sources:
            seen = self.competition.model_copy(update={"image": received.bounded(options or self.competition.image)})
            grid = chunks(len(rows), sorted({source.images for source in choice.sources.values()}))
            looks = Served(self.competition, table, _recipes=self._recipes, service=self, told=told)
            folder = received.folder / f"{name}.chunks"
            folder.mkdir(exist_ok=True)
            pixels = Pixels(seen, rows, received.folder, folder, looks, grid)
            told("decoding")
            for _ in pixels.run(lambda: choice.sources, grid):
                pass
        tests = work.predict(choice, pixels, np.ones(len(rows), bool))
        pred = work.blend(tests)[work.columns].to_numpy(dtype=float)
        return Blended(name, pred, self._above(saved, pred))

    def _as_test(self, received: pd.DataFrame, metadata: dict[str, Any] | None) -> pd.DataFrame:
        """Uploads as test rows of the index, with what is known of them."""
        own = {name: received["id"] for name in ("row_id", "group", "host_group") if name in self.table}
        rows = self.described(received, metadata).assign(split="test", **own)
        return rows.reindex(columns=self.table.columns).astype(
            {name: kind for name, kind in self.table.dtypes.items() if kind.kind == "f"}
        )

    def _above(self, saved: Saved, pred: np.ndarray) -> np.ndarray | None:
        if saved.mixture.prepare.space not in RANKED:
            return None
        key = saved.name, str(saved.mixture)
        if key not in self._test_blends:
            runs = gather_runs(self.competition, saved.mixture.names)
            self._test_blends[key] = saved.mixture.predict(runs.tests).reshape(len(runs.test_ids), -1)
        tests = self._test_blends[key]
        return np.stack([(tests < one).mean(axis=0) for one in pred])

    # --- neighbours ---------------------------------------------------------------------------------------

    def neighbours(self, run: str, fold: int) -> Neighbours:
        """The training images in the embedding of one fold's network, made once and kept on disk.

        All by one network: distances between embeddings of different networks mean nothing. It has seen the images
        of the other folds in training, and `fold` tells which it has not.
        """
        recipe = self.recipe(run)
        images = cache.load_cache(self.competition, recipe.image_size, recipe.crop)
        fold_table = folds.load_folds(self.competition)
        rows, fold_of = folds.rows(self.table, fold_table), fold_table["fold"].to_numpy()
        where = images.rows("train", rows["id"].tolist())
        rows, fold_of, where = rows[where >= 0], fold_of[where >= 0], where[where >= 0]
        path = self.neighbours_file(run, fold)
        key = self._neighbours_key(run, fold, images, rows)
        with self._embedding:
            if read_voucher(path.with_suffix(".json")) != {"key": key}:
                vectors = self.model(run, fold).embed(images, where, rows, f"embed train by fold {fold}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as part, part.open("wb") as stream:
                    np.save(stream, _unit(vectors))
                write_voucher(path.with_suffix(".json"), {"key": key}, path)
        return Neighbours(np.load(path), rows["id"].tolist(), fold_of)

    def neighbours_file(self, run: str, fold: int) -> Path:
        """Where they are kept."""
        return self.competition.derived() / "neighbours" / f"{run}_fold{fold}.npy"

    def _neighbours_key(self, run: str, fold: int, images: cache.Cache, rows: pd.DataFrame) -> str:
        weights = (self.competition.runs() / self.weights_of(run) / f"fold{fold}.safetensors").stat()
        cached = images.path.stat()
        marks = [weights.st_size, weights.st_mtime_ns, cached.st_size, cached.st_mtime_ns]
        return digest({"marks": marks, "ids": rows["id"].tolist()})

    def nearest(
        self,
        received: Uploads,
        run: str,
        fold: int,
        count: int = 8,
        metadata: dict[str, Any] | None = None,
        options: ImageOptions | None = None,
    ) -> pd.DataFrame:
        """The training images most like the first image received: id, fold, similarity (cosine), target columns."""
        known = self.neighbours(run, fold)
        recipe = self.recipe(run)
        images, where, errors = self._cached(received, recipe, options)
        if where[0] < 0:
            raise UserError(_first(errors))
        rows = self.described(received.rows[:1], metadata)
        vector = self.model(run, fold).embed(images, where[:1], rows, "embed")
        likeness = known.vectors @ _unit(vector)[0]
        best = np.argsort(-likeness, kind="stable")[:count]
        nearest = pd.DataFrame(
            {"id": [known.ids[k] for k in best], "fold": known.fold[best], "similarity": likeness[best]}
        )
        nearest = nearest.merge(self.truth(), on="id", how="left")
        nearest.attrs["strange"] = bool(likeness.max() < self._usual_likeness(known, f"{run} {fold} {len(known.ids)}"))
        return nearest

    def _usual_likeness(self, known: Neighbours, key: str) -> float:
        """The first percentile of how like a training image is to its nearest one of another group."""
        if key not in self._usual:
            group = self.table[self.table["split"] == "train"].set_index("id")["group"].reindex(known.ids).to_numpy()
            some = np.random.default_rng(0).permutation(len(known.ids))[:2000]
            likeness = known.vectors[some] @ known.vectors.T
            likeness[group[some][:, None] == group[None]] = -1
            self._usual[key] = float(np.percentile(likeness.max(axis=1), 1))
        return self._usual[key]

    # --- examples -----------------------------------------------------------------------------------------

    def examples(self, count: int = 6) -> pd.DataFrame:
        """Some test images (training images where there are none), spread over the table: index rows."""
        rows = self.table[self.table["error"].isna()]
        test = rows[rows["split"] == "test"]
        rows = test if len(test) else rows[rows["split"] == "train"]
        return rows.iloc[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]

    def _row(self, split: str, row_id: str) -> pd.Series:
        return self.table[(self.table["split"] == split) & (self.table["id"] == row_id)].iloc[0]

    def known(self, split: str, row_id: str) -> dict[str, Any]:
        """The metadata of one of the competition's own images, where there are some."""
        return self._row(split, row_id)[index.metadata_columns(self.competition)].dropna().to_dict()

    def file(self, split: str, row_id: str) -> Upload:
        """A competition's own file, or all of a study's in an archive, as if it had been uploaded."""
        path, options = self.competition.raw() / self._row(split, row_id)["path"], self.competition.image
        if options.slices is None:
            return Upload(path.name, source.read(path))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, place in zip(options.series or [""], series.places(path), strict=True):
                for file in series.files(place):
                    archive.writestr("/".join(filter(None, [name, file.name])), source.read(file))
        return Upload(f"{row_id}.zip", packed.getvalue())

    def truth(self) -> pd.DataFrame:
        """id and target columns of the training rows."""
        train = self.table[self.table["split"] == "train"]
        return train[["id", *self.competition.truth]]

    def pictures(self, ids: Sequence[str], size: int, crop: bool = False, split: str = "train") -> np.ndarray:
        """A split's images as the models of that size see them, uint8 (N, size, size, 3); black where unreadable."""
        images = cache.load_cache(self.competition, size, crop)
        where = images.rows(split, list(ids))
        pictures = np.zeros((len(where), size, size, 3), np.uint8)
        pictures[where >= 0] = images.pictures(where[where >= 0])
        return pictures

    # --- errors -------------------------------------------------------------------------------------------

    def errors(self, run: str) -> pd.DataFrame:
        """The run's out-of-fold rows, worst first: id, fold, truth, answer, sure (the answer's probability), wrong.

        wrong: 1 - probability of the truth; |error| of a regression. A multilabel row stands there once a label.
        """
        path = self.competition.runs() / run
        file = path / "oof.csv"
        if file.exists():
            table = oof.read_table(file)
        else:
            done = finished_folds(path)
            if not done:
                raise UserError(f"{path}: no fold is finished yet")
            table = read_folds(path, done)
        answers = cases.answers(self.competition, table)
        words = [[answers.case(k).truth, answers.case(k).answer] for k in range(len(answers.table))]
        truth, said = map(list, zip(*words, strict=True))
        regression = self.competition.task == "regression"
        wrong = -answers.of_truth if regression else 1 - answers.of_truth
        rows = answers.table.assign(truth=truth, answer=said, sure=answers.sure, wrong=wrong)
        return rows.sort_values("wrong", ascending=False, kind="stable", ignore_index=True)


def _first(errors: dict[str, str]) -> str:
    return next((f"{name}: {reason}" for name, reason in errors.items()), "")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of length 1."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
