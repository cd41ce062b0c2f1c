"""What the web app answers: fold models kept loaded, predictions of what was sent in, neighbours, errors to look at.

One `Service` serves every visitor and holds nothing of theirs: an answer belongs to the call that made it. Models are
read-only and in evaluation mode, so any number of calls may predict by one at a time. Class activation maps hook into
the layers, and are therefore made by models of their own, one call after the other.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from app.uploads import Uploads
from foldwise import UserError
from foldwise.blend import Blend, fit_weights
from foldwise.blend.run_set import RunSet, gather_runs
from foldwise.core.files import digest, read_voucher, replacing, write_voucher
from foldwise.data import cache, folds, index, oof
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions
from foldwise.data.recipe import Recipe
from foldwise.data.runs import finished_folds, read_folds, read_run_info, recipe_of
from foldwise.model import explain, fold_models
from foldwise.model.targets import OutputTarget
from foldwise.report import cases

MODELS = 16  # kept loaded; the one not used for longest makes room
LIKE_ALL = 0.02  # weights fitted again may differ from the submission's by so much: they come from the same tables


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
class Mixture:
    """A submission's blend, fitted again from the same out-of-fold tables, and the runs it is made of."""

    name: str
    meta: dict[str, Any]
    runs: RunSet
    blend: Blend

    @property
    def weights(self) -> dict[str, float]:
        """By run, the mean over classes where these have their own."""
        weights = self.blend.weights if self.blend.weights.ndim == 1 else self.blend.weights.mean(axis=1)
        return dict(zip(self.runs.names, map(float, weights), strict=True))

    def predict(self, answer: Answer) -> tuple[np.ndarray, list[str]]:
        """(N, outputs), and the runs that could not be asked and count in the blend.

        Each image is blended as one more row of the test set, so ranks mean what they meant there. The mean of the
        runs asked stands in for one that keeps no models.
        """
        asked = [name for name in self.runs.names if name in answer.preds]
        if not asked:
            raise UserError(f"{self.name}: blends {', '.join(self.runs.names)}; choose some of these runs")
        stand_in = np.mean([answer.mean(name) for name in asked], axis=0)
        new = np.stack([answer.mean(name) if name in asked else stand_in for name in self.runs.names])
        new = new.reshape(*new.shape[:2], *self.runs.tests.shape[2:])
        pred = self.blend.predict(np.concatenate([self.runs.tests, new], axis=1))[-new.shape[1] :]
        absent = [name for name, weight in self.weights.items() if name not in asked and abs(weight) > 1e-3]
        return pred.reshape(len(answer.ids), -1), absent


class Service:
    """A competition's runs, ready to answer; safe to share between threads."""

    def __init__(self, competition: Competition) -> None:
        self.competition = competition
        self.table = index.load_index(competition)
        self.names = index.classes(competition, self.table)
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

    def fuses(self, runs: Sequence[str]) -> bool:
        """Whether one of them looks at metadata too."""
        return any(self.recipe(run).model.metadata for run in runs)

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
    ) -> Answer:
        """Every chosen run's fold models on the images received; images are kept where there are at most `keep`.

        options: how files become pixels, the competition's where None. UserError where none can be read.
        """
        seen: dict[tuple[int, bool], tuple[cache.Cache, np.ndarray]] = {}
        errors = dict(received.refused)
        if not len(received.rows):
            raise UserError(_first(errors) or "nothing was sent")
        for run, recipe in zip(runs, map(self.recipe, runs), strict=True):
            if recipe.crop:
                raise UserError(f"run {run} was trained on crops (08_crop.py), and a new image has no box")
            kind = (recipe.image_size, recipe.crop)
            if kind not in seen:
                images, where, reasons = received.cached(recipe.image_size, options or self.competition.image)
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
            for fold in self.folds(run):
                trained = self.model(run, fold)
                preds[run][fold] = trained.predict(images, where[good], rows, f"{run} fold {fold}")
        kept = {kind: images.read(where[good]) for kind, (images, where) in seen.items() if int(good.sum()) <= keep}
        return Answer(rows["id"].tolist(), self.columns, preds, kept, errors)

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

    def mixture(self, name: str) -> Mixture:
        """A submission's blend; UserError where its runs are gone or have changed since."""
        meta = self.submissions().get(name)
        if meta is None:
            raise UserError(f"{self.competition.submissions() / name}.json: not there")
        said = {row["run"]: float(row["weight"]) for row in meta["runs"]}
        runs = gather_runs(self.competition, list(said))
        blend = fit_weights(
            runs.preds,
            runs.target,
            self.competition.scorer(),
            meta["method"],
            folds=runs.folds,
            groups=runs.groups,
            families=runs.families,
            names=runs.names,
            space=meta["space"],
            task=self.competition.task,
            nested=False,
        )
        mixture = Mixture(name, meta, runs, blend)
        if any(abs(mixture.weights[run] - weight) > LIKE_ALL for run, weight in said.items()):
            raise UserError(
                f"submission {name}: its runs have changed since it was made; make it again with 06_blend.py"
            )
        return mixture

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
        path = self.competition.derived() / "neighbours" / f"{run}_fold{fold}.npy"
        key = self._neighbours_key(run, fold, images, rows)
        with self._embedding:
            if read_voucher(path.with_suffix(".json")) != {"key": key}:
                vectors = self.model(run, fold).embed(images, where, rows, f"embed train by fold {fold}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as part, part.open("wb") as stream:
                    np.save(stream, _unit(vectors))
                write_voucher(path.with_suffix(".json"), {"key": key}, path)
        return Neighbours(np.load(path), rows["id"].tolist(), fold_of)

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
        images, where, errors = received.cached(recipe.image_size, options or self.competition.image)
        if where[0] < 0:
            raise UserError(_first(errors))
        rows = self.described(received.rows[:1], metadata)
        vector = self.model(run, fold).embed(images, where[:1], rows, "embed")
        likeness = known.vectors @ _unit(vector)[0]
        best = np.argsort(-likeness, kind="stable")[:count]
        nearest = pd.DataFrame(
            {"id": [known.ids[k] for k in best], "fold": known.fold[best], "similarity": likeness[best]}
        )
        return nearest.merge(self.truth(), on="id", how="left")

    def truth(self) -> pd.DataFrame:
        """id and target columns of the training rows."""
        train = self.table[self.table["split"] == "train"]
        return train[["id", *self.competition.truth]]

    def pictures(self, ids: Sequence[str], size: int, crop: bool = False) -> np.ndarray:
        """Training images as the models of that size see them, uint8 (N, size, size, 3); black where unreadable."""
        images = cache.load_cache(self.competition, size, crop)
        where = images.rows("train", list(ids))
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
