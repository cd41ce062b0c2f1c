"""A run's fold models, loaded again: predictions and embeddings of cached rows, and of any folder of images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise import UserError, cache, folds, index, infer, models, oof, shallow
from foldwise.competition import Competition, output_root
from foldwise.config import Model, Recipe
from foldwise.models import Network

Preds = dict[int, tuple[np.ndarray, np.ndarray]]


def network(competition: Competition, recipe: Recipe, run: str, fold: int, names: list[str]) -> Network:
    """The model of one fold, on the device; UserError where its weights are not there."""
    path = competition.runs() / run / f"fold{fold}.safetensors"
    if not path.exists():
        raise UserError(f"{path}: not there; train it with 02_train.py --fold {fold}")
    bare = recipe.model_copy(
        update={"model": Model(**{**recipe.model.model_dump(), "pretrained": False, "weights": None})}
    )
    made = models.create(bare, max(1, len(names)))
    models.load_weights(made, path)
    return made.to(infer.pick_device(recipe))


def predict_folds(
    competition: Competition, recipe: Recipe, run: str, table: pd.DataFrame, fold_table: pd.DataFrame
) -> Preds:
    """{fold: (valid, test)} predictions of every fold that has weights, in the order oof.write_folds takes."""
    oof.check_folds(competition, run, fold_table)
    names = index.classes(competition, table)
    images = cache.load(competition, recipe.image_size)
    test = images.rows("test", table.loc[table["split"] == "test", "id"].tolist())
    found: Preds = {}
    for fold in trained_folds(competition, run):
        model = network(competition, recipe, run, fold, names)
        valid = images.rows("train", fold_table.loc[fold_table["fold"] == fold, "id"].tolist())
        found[fold] = (
            infer.predict(model, images, valid, competition.task, recipe, f"fold {fold} valid"),
            infer.predict(model, images, test, competition.task, recipe, f"fold {fold} test"),
        )
    return found


def predict_folder(
    competition: Competition, recipe: Recipe, run: str, folder: Path, workers: int | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The folds' mean for every image below `folder` (id = its path below it), and {id: reason} of unreadable ones.

    The images go through the same cache as training's, a temporary one: never a second path.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    paths = index.image_files(folder)
    if not paths:
        raise UserError(f"--images {folder}: no images in it")
    ids = [path.relative_to(folder).as_posix() for path in paths]
    rows = pd.DataFrame(
        {"split": "new", "id": ids, "path": ids, "error": None, "bytes": [p.stat().st_size for p in paths]}
    )
    names = index.classes(competition, index.load(competition))
    with tempfile.TemporaryDirectory(dir=output_root()) as room:
        errors = cache.build_size(folder, Path(room), rows, recipe.image_size, competition.image, workers)
        images = cache.open_size(Path(room), recipe.image_size)
        where = images.rows("new", ids)
        if (where < 0).all():
            raise UserError(f"--images {folder}: none of {len(ids)} files can be read; the first: {errors.iloc[0]}")
        trained = trained_folds(competition, run)
        preds = [
            infer.predict(
                network(competition, recipe, run, fold, names), images, where, competition.task, recipe, f"fold {fold}"
            )
            for fold in trained
        ]  # fmt: skip
    table = oof.table(competition, names, rows, np.mean(preds, axis=0))
    return table, {row_id: str(reason) for row_id, reason in zip(ids, errors, strict=True) if isinstance(reason, str)}


def embed_folds(
    competition: Competition, recipe: Recipe, run: str | None, head: str, table: pd.DataFrame, fold_table: pd.DataFrame
) -> Preds:
    """{fold: (valid, test)} of a head fitted on embeddings: fold K's rows by a network that did not train on them.

    run None: the recipe's own pretrained weights embed all rows, once.
    """
    names = index.classes(competition, table)
    outputs = max(1, len(names))
    images = cache.load(competition, recipe.image_size)
    if run:
        oof.check_folds(competition, run, fold_table)
    train = folds.rows(table, fold_table)
    where = images.rows("train", train["id"].tolist())
    where_test = images.rows("test", table.loc[table["split"] == "test", "id"].tolist())
    target = index.target_array(competition, train, names)
    fold_of = fold_table["fold"].to_numpy()
    classify = shallow.head(head, competition.task, outputs, recipe.seed)
    shared: tuple[np.ndarray, np.ndarray] | None = None
    found: Preds = {}
    for fold in trained_folds(competition, run) if run else sorted(np.unique(fold_of).tolist()):
        if shared is None or run:
            model = network(competition, recipe, run, fold, names) if run else models.create(recipe, outputs)
            model.to(infer.pick_device(recipe))
            shared = (
                infer.embed(model, images, where, recipe, f"fold {fold} train"),
                infer.embed(model, images, where_test, recipe, f"fold {fold} test"),
            )
        x, x_test = shared
        fit = (fold_of != fold) & (where >= 0)
        others = [x[fold_of == fold], x_test] if len(x_test) else [x[fold_of == fold]]
        valid, *rest = classify(x[fit], target[fit], others)
        test = rest[0] if rest else np.zeros((0, outputs))
        for pred, rows in ((valid, where[fold_of == fold]), (test, where_test)):
            if (rows < 0).any() and (rows >= 0).any():
                pred[rows < 0] = pred[rows >= 0].mean(axis=0)
        found[fold] = (valid, test)
    return found


def trained_folds(competition: Competition, run: str) -> list[int]:
    """Folds of a run whose weights are there; UserError where there are none."""
    folder = competition.runs() / run
    found = sorted(int(path.stem[4:]) for path in folder.glob("fold*.safetensors") if path.stem[4:].isdigit())
    if not found:
        raise UserError(f"{folder}: holds no fold<K>.safetensors; train the run with 02_train.py")
    return found
