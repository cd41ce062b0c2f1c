"""The runs that a blend rests on: what each was made by, which models of it are saved, what they need of the pixels.

A network's run needs its networks' predictions of an image; a head its network's embeddings; a model on columns the
predictions and embeddings that it was given as columns. Runs come in an order in which each follows what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from foldwise import UserError
from foldwise.core.files import digest
from foldwise.data.boxes import load_crop_meta
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, recipe_from, recipe_settings
from foldwise.data.runs import read_run_info, recipe_of
from foldwise.model.fold_models import trained_folds
from foldwise.tabular.features import embedding_files

Kind = Literal["network", "head", "table"]


@dataclass(frozen=True)
class Source:
    """What one network says of an image: run's fold `fold`, or with run None a recipe's pretrained weights.

    what: predictions, or embeddings. recipe: with the views that are averaged.
    """

    what: Literal["pred", "embed"]
    run: str | None
    fold: int | None
    recipe: Recipe

    @property
    def key(self) -> str:
        """Names it among all sources: other views of the same networks are another's."""
        made_of = {**recipe_settings(self.recipe), "train": None, "augment": None}
        return f"{self.what} {self.run} {self.fold} {digest(made_of)}"

    @property
    def images(self) -> tuple[int, bool]:
        """Size and crop of the images that it takes."""
        return self.recipe.image_size, self.recipe.crop


@dataclass(frozen=True)
class Member:
    """A run and its saved folds. weights_of: the run whose networks predict or embed.

    embeddings: of a head, or by column name: the source of each fold.
    """

    name: str
    kind: Kind
    config: dict[str, Any]
    folds: list[int]
    weights_of: str | None = None
    recipe: Recipe | None = None
    rests_on: list[str] = field(default_factory=list)
    embeddings: dict[str, dict[int, Source]] = field(default_factory=dict)

    def sources(self, some: Iterable[int]) -> list[Source]:
        """What its folds `some` need of the pixels."""
        if self.kind == "network":
            assert self.recipe is not None
            return [Source("pred", self.weights_of, fold, self.recipe) for fold in some]
        return [by_fold[fold] for by_fold in self.embeddings.values() for fold in some]


def members_of(competition: Competition, names: Sequence[str]) -> dict[str, Member]:
    """The runs `names` and all that they rest on, in order; UserError where one can't predict new rows."""
    ordered: dict[str, Member] = {}

    def add(name: str) -> None:
        if name not in ordered:
            member = read_member(competition, name)
            for other in member.rests_on:
                add(other)
            ordered[name] = member

    for name in names:
        add(name)
    return ordered


def read_member(competition: Competition, name: str) -> Member:
    """One run by its run.json."""
    folder = competition.runs() / name
    config = read_run_info(folder).config
    if not folder.is_dir() or not config:
        raise UserError(f"{folder}: no run.json: a run made elsewhere has no models here that predict new rows")
    if "image_size" in config:
        weights_of = read_run_info(folder).weights_of or name
        trained = trained_folds(competition, weights_of)
        if config.get("crop") and (load_crop_meta(competition) or {}).get("method") != "detector":
            where = competition.derived() / "crop.json"
            raise UserError(f"{folder}: crops by boxes of a file ({where}): no file has those of new images")
        return Member(name, "network", config, trained, weights_of, recipe_of(competition, name))
    if "embed" in config:
        return _head(competition, name, config)
    if "target_encode" in config:
        return _table(competition, name, config)
    raise UserError(f"{folder}: run.json does not say by which step it was made")


def _saved(competition: Competition, name: str, what: str, step: str) -> list[int]:
    folder = competition.runs() / name
    every = sorted(int(path.name[4:].partition("_")[0]) for path in folder.glob(f"fold*_{what}.npz"))
    wanted = read_run_info(folder).folds_done
    if every != wanted:
        raise UserError(
            f"{folder}: models are saved of folds {every}, not of {wanted}: it was made before they were, or cut "
            f"short; run the same {step} again"
        )
    return every


def _head(competition: Competition, name: str, config: dict[str, Any]) -> Member:
    saved, made_of = _saved(competition, name, "head", "04_embed.py"), config["embed"]
    by_fold = _embedders(competition, saved, made_of.get("run"), made_of)
    return Member(name, "head", config, saved, embeddings={"": by_fold})


def _embedders(
    competition: Competition, every: Sequence[int], run: str | None, made_of: dict[str, Any]
) -> dict[int, Source]:
    """The source of each fold; made_of: a recipe, or of a run's networks `predict`."""
    if run is None:
        recipe = recipe_from(made_of, [], "run.json")
        return {fold: Source("embed", None, None, recipe) for fold in every}
    trained = recipe_settings(recipe_of(competition, run))
    recipe = recipe_from({**trained, "predict": made_of["predict"]}, [], "run.json")
    return {fold: Source("embed", run, fold, recipe) for fold in every}


def _table(competition: Competition, name: str, config: dict[str, Any]) -> Member:
    saved = _saved(competition, name, "model", "03_metadata.py")
    embeddings = {}
    for given in config["embeddings"]:
        column, files = embedding_files(competition, given, saved)
        embeddings[column] = {fold: _vouched(competition, files, fold) for fold in saved}
    return Member(name, "table", config, saved, rests_on=list(config["oof"]), embeddings=embeddings)


def _vouched(competition: Competition, files: dict[Any, Any], fold: int) -> Source:
    """The source of embeddings on disk, by the JSON beside them."""
    import json

    path = files[None if None in files else fold].with_suffix(".json")
    if not path.exists():
        raise UserError(f"{path}: not there: embeddings made elsewhere can't be made of new images")
    meta = json.loads(path.read_text(encoding="utf-8"))
    made_of = {key: meta[key] for key in ("image_size", "crop", "model")} | {"predict": meta["views"]}
    return _embedders(competition, [fold], meta.get("run"), made_of)[fold]
