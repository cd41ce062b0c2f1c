"""Embeddings of every row, kept on disk: of a recipe's pretrained weights, or fold by fold of a trained run.

    oof/<competition>/<recipe>_embeddings/embeddings.npy    --recipe: one network that never saw this data
    oof/<competition>/<run>/fold<K>_embeddings.npy          --run: by the network of fold K, for the head of fold K

float32 (rows, D): the training rows in the order of folds.csv, then the test rows in the order of the index; zeros
where an image could not be read. A JSON of the same name vouches for each, and says what made it. A killed run leaves
*.part files, and the next one goes on from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.core.files import digest, file_digest, locked, read_voucher, write_json, write_voucher
from foldwise.core.saved import read_saved, write_saved
from foldwise.core.schema import nearest
from foldwise.data import cache, folds, index, top
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.data.orientation import fitted
from foldwise.data.recipe import Head, Recipe, load_recipe, recipe_settings, run_name
from foldwise.data.runs import check_folds
from foldwise.model import fold_models, weights
from foldwise.model.fold_models import FoldModel
from foldwise.model.network import Network, create_network
from foldwise.model.predict import embed_rows, pick_device, say_unreadable, with_fallback
from foldwise.tabular.heads import KINDS, NEAREST, FittedHead, Heads, available_memory, check
from foldwise.tabular.kernel import Scale, Setting
from foldwise.tabular.learners import by_votes
from foldwise.tabular.nearest import Nearest

FORMAT = 1  # raise it when the same model and images would give other embeddings
CHUNK = 1024  # rows between two saves

Embed = Callable[[Cache, np.ndarray, pd.DataFrame, str], np.ndarray]
Fold = tuple[int, np.ndarray, np.ndarray, list[Setting], FittedHead | Nearest]


@dataclass(frozen=True)
class Rows:
    """Training rows in the order of folds.csv, then test rows; where: their places in the cache, -1: unreadable."""

    table: pd.DataFrame
    where: np.ndarray
    images: Cache
    folds: pd.DataFrame

    @property
    def train(self) -> int:
        """How many training rows come first."""
        return len(self.folds)

    @classmethod
    def of(cls, competition: Competition, recipe: Recipe, table: pd.DataFrame, fold_table: pd.DataFrame) -> Rows:
        """The rows and their images in the recipe's size; UserError where the cache is missing."""
        images = cache.load_cache(competition, recipe.image_size, recipe.crop)
        train = folds.rows(table, fold_table)
        both = pd.concat([train, table[table["split"] == "test"]])
        return cls(both, images.rows_of(both), images, fold_table)


def folder(competition: Competition, recipe: Recipe, source: str, run: str | None) -> Path:
    """Where embeddings lie: the run's own folder; for pretrained weights a folder by the recipe's name.

    A recipe under overrides gets another name than the bare one, so that neither replaces the other.
    """
    if run:
        return competition.runs() / run
    name = run_name(source)
    own = _made_of(recipe)
    changed = own != _made_of(fitted(load_recipe(source), competition.orientation, competition.image))
    return competition.runs() / (f"{name}-{digest(own)[:6]}_embeddings" if changed else f"{name}_embeddings")


def each_fold(
    competition: Competition,
    recipe: Recipe,
    source: str,
    run: str | None,
    table: pd.DataFrame,
    fold_table: pd.DataFrame,
) -> Iterator[tuple[int, np.ndarray, Rows]]:
    """(fold, float32 (rows, D) memory-mapped, rows) for every fold; the same array where one network serves all."""
    rows = Rows.of(competition, recipe, table, fold_table)
    place = folder(competition, recipe, source, run)
    if run is None:
        shared = _stored(place, "embeddings", rows, *pretrained(recipe, source), competition)
        for fold in sorted(fold_table["fold"].unique().tolist()):
            yield fold, shared, rows
        return
    check_folds(competition, run, fold_table)
    for fold in fold_models.trained_folds(competition, run):
        file = sorted([*place.glob(f"fold{fold}_snapshot*.safetensors"), place / f"fold{fold}.safetensors"])[-1]
        made_by = {"run": run, "fold": fold, "weights": file_digest(file), "folds_hash": folds.digest(fold_table)}
        meta = {**_made_of(recipe), **made_by}
        embed = _trained(partial(fold_models.load_fold, competition, recipe, run, fold, table))
        yield fold, _stored(place, f"fold{fold}_embeddings", rows, embed, meta, competition), rows


def _made_of(recipe: Recipe) -> dict[str, Any]:
    settings = recipe_settings(recipe)
    views = {key: value for key, value in settings["predict"].items() if key not in {"batch_size", "average"}}
    return {"image_size": recipe.image_size, "crop": recipe.crop, "model": settings["model"], "views": views}


def _trained(load_fold: Callable[[], FoldModel]) -> Embed:
    loaded = lru_cache(load_fold)  # only where something is left to embed
    return lambda images, where, rows, label: loaded().embed(images, where, rows, label)


def pretrained(recipe: Recipe, source: str) -> tuple[Embed, dict[str, Any]]:
    """What embeds by a recipe's weights, and what says so beside the array.

    The recipe's backbones with their pretrained weights and pooled features, no head or metadata on them."""
    backbones = [backbone for backbone in (recipe.model, recipe.model.second) if backbone is not None]
    if not all(backbone.has_weights for backbone in backbones) or recipe.model.mode == "scratch":
        raise UserError(
            f"--recipe {source}: a network without pretrained weights sees nothing yet; train it and give --run, or "
            "set model.pretrained=true (or model.weights=FILE) and another model.mode"
        )
    if recipe.model.init_from:
        raise UserError(
            f"--recipe {source}: model.init_from={recipe.model.init_from} is a run, a network a fold; give "
            f"--run {recipe.model.init_from}, or set model.init_from=null"
        )
    pool = recipe.model.head.pool if recipe.model.head.pool in {"avg", "max"} else "default"
    update = {"mode": "frozen", "metadata": False, "head": Head(pool=pool)}
    bare = recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})

    @lru_cache
    def network() -> Network:
        return create_network(bare, 2).to(pick_device(bare))

    files = [weights.of_backbone(backbone) for backbone in backbones]
    meta = {**_made_of(bare), "weights": [file_digest(file) if file else "timm" for file in files]}
    return lambda images, where, _, label: embed_rows(network(), images, where, bare, label), meta


def _stored(
    place: Path, stem: str, rows: Rows, embed: Embed, meta: dict[str, Any], competition: Competition
) -> np.ndarray:
    """The array on disk if the same made it, else made now."""
    images = json.loads(rows.images.path.with_suffix(".json").read_text(encoding="utf-8"))["key"]
    meta = {"format": FORMAT, **meta, "images": images, "rows": digest(rows.table["id"].tolist())}
    path = place / f"{stem}.npy"
    voucher = path.with_suffix(".json")
    if read_voucher(voucher) != meta:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / f".{stem}.lock"):  # another process may be making it: then it is there
            if read_voucher(voucher) != meta:
                _make(path, digest(meta), rows, embed, f"{competition.name} {stem.replace('_', ' ')}")
                write_voucher(voucher, meta, path)
                note(f"{path}: {len(rows.table):,} rows embedded")
    return np.load(path, mmap_mode="r")


def _make(path: Path, key: str, rows: Rows, embed: Embed, label: str) -> None:
    part, state = path.with_suffix(".npy.part"), path.with_suffix(".state.part")
    readable = np.flatnonzero(rows.where >= 0)
    if not len(readable):
        raise UserError(f"{rows.images.path}: not one image in it can be read")
    done, out = _continue(part, state, key)
    with tqdm(total=len(readable), initial=done, desc=label, unit="img", disable=None) as bar:
        for start in range(done, len(readable), CHUNK):
            chosen = readable[start : start + CHUNK]
            vectors = embed(rows.images, rows.where[chosen], rows.table.iloc[chosen], label)
            if out is None:
                shape = (len(rows.where), vectors.shape[1])
                out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            out[chosen] = vectors
            out.flush()
            write_json(state, {"key": key, "done": start + len(chosen)})
            bar.update(len(chosen))
    part.replace(path)
    state.unlink()


def _continue(part: Path, state: Path, key: str) -> tuple[int, np.memmap | None]:
    if part.exists() and state.exists():
        kept = json.loads(state.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return int(kept["done"]), np.lib.format.open_memmap(part, mode="r+")
    for stale in (part, state):
        stale.unlink(missing_ok=True)
    return 0, None


# --- heads on them ------------------------------------------------------------------------------------------


def fit_heads(
    competition: Competition,
    recipe: Recipe,
    source: str,
    run: str | None,
    head: str,
    table: pd.DataFrame,
    fold_table: pd.DataFrame,
    scale: Scale = "fold",
) -> Iterator[Fold]:
    """(fold, valid (n, outputs), test (m, outputs), chosen settings, head), fitted on each fold's training rows.

    A row whose image could not be read gets the mean of the others' predictions, or of the training rows' targets.
    """
    names = index.classes(competition, table)
    _check_head(competition, head, names)
    train = folds.rows(table, fold_table)
    target = index.target_array(competition, train, names)
    fold_of = fold_table["fold"].to_numpy()
    heads: Heads | None = None
    for fold, stored, rows in each_fold(competition, recipe, source, run, table, fold_table):
        if (heads is None or run is not None) and head != NEAREST:
            heads = _heads(competition, head, stored, rows, max(1, len(names)), scale, recipe.seed)
            if run is None:
                heads.share(np.flatnonzero(rows.where[: rows.train] >= 0))
        valid = np.flatnonzero(fold_of == fold)
        test = np.arange(rows.train, len(stored))
        fit = np.flatnonzero((fold_of != fold) & (rows.where[: rows.train] >= 0))
        learnt, y = fit, target[fit]
        if competition.task == "soft":
            row, y = by_votes(y)
            learnt = fit[row]
        fitted: FittedHead | Nearest
        if heads is None:
            fitted, chosen = _nearest(competition, np.asarray(stored[fit]), y, names, recipe.seed)
            of_valid = fitted.predict(np.asarray(stored[valid]))
        else:
            of_valid, chosen, fitted = heads.fit(learnt, y, valid)
        of_test = fitted.predict(stored[rows.train :])
        prior = index.prior(competition, train.iloc[fit], names)
        prior = top.keep(prior[None])[0] if len(names) > top.MANY else prior
        say_unreadable("test", rows.table["id"].iloc[test].tolist(), rows.where[test] >= 0)
        for pred, places in ((of_valid, valid), (of_test, test)):
            readable = rows.where[places] >= 0
            with_fallback(pred, readable, prior, alike=len(names) <= top.MANY)
        yield fold, of_valid, of_test, chosen, fitted


def _heads(
    competition: Competition, head: str, stored: np.ndarray, rows: Rows, outputs: int, scale: Scale, seed: int
) -> Heads:
    groups = np.concatenate([rows.folds["group"].to_numpy(str), np.full(len(stored) - rows.train, "")])
    held = stored if stored.nbytes > available_memory() / 8 else np.array(stored)
    return Heads(head, competition.as_classes().task, held, groups, outputs, scale, seed)


def _check_head(competition: Competition, head: str, names: list[str]) -> None:
    if head != NEAREST:
        check(head, competition.task)
    elif competition.task != "multiclass":
        raise UserError(f"--head {head}: task {competition.task} has no classes to be near to")
    if head != NEAREST and len(names) > top.MANY:
        raise UserError(f"--head {head}: {len(names):,} classes are too many for it; take --head {NEAREST}")
    unknown = competition.unknown
    if unknown is not None and unknown not in names:
        raise UserError(f"{competition.file}: `unknown: {unknown}` is no class{nearest(unknown, names)}")


def _nearest(
    competition: Competition, rows: np.ndarray, y: np.ndarray, names: list[str], seed: int
) -> tuple[Nearest, list[Setting]]:
    unknown = names.index(competition.unknown) if competition.unknown else -1
    fitted = Nearest.fit(rows, y, len(names), unknown, competition.scorer().top or 1, seed)
    return fitted, [{"threshold": fitted.threshold, "temperature": fitted.temperature}]


def save_head(folder: Path, fold: int, head: FittedHead | Nearest) -> None:
    """fold<K>_head.npz in a run's folder."""
    write_saved(folder / f"fold{fold}_head.npz", head)


def load_head(folder: Path, fold: int) -> FittedHead | Nearest:
    """One fold's; UserError where it is not there."""
    remedy = "made before heads were saved, or cut short: run the same 04_embed.py again"
    return read_saved(folder / f"fold{fold}_head.npz", (*KINDS, Nearest), remedy)
