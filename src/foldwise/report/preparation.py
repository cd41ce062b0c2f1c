"""From the raw folder to index, folds, caches and the page to look at before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pandas import DataFrame

from foldwise.audit import groups
from foldwise.audit.duplicates import SIZE, duplicate_groups
from foldwise.core.cli import note
from foldwise.data import cache, decisions, folds, index, orientation, series, submission
from foldwise.data.competition import Competition
from foldwise.data.recipe import load_recipe
from foldwise.model.crops import warn_of_stale_crops
from foldwise.report.competition import write_competition_report


def prepare(
    competition: Competition,
    sizes: Sequence[int],
    workers: int | None = None,
    dask: str | None = None,
    new_folds: bool = False,
    decided: Path | None = None,
) -> None:
    """Write input/derived/<competition>/ with caches of these sizes; what is there already and fits stays as it is."""
    with index.alone(competition):
        table = index.build_index(competition, workers, dask)
        decisions.put(competition, table, decided)
        _prepare(competition, decisions.applied(competition, table), sizes, workers, dask, new_folds)


def _prepare(
    competition: Competition,
    table: DataFrame,
    sizes: Sequence[int],
    workers: int | None,
    dask: str | None,
    new_folds: bool,
) -> None:
    index.learn_scaling(competition, table)
    if not new_folds:
        folds.check_saved(competition, table)
    table["error"] = cache.build_caches(competition, table, list(dict.fromkeys([*sizes, SIZE])), workers, dask)
    index.check_readable(competition, table)
    remarks = cache.remarks(competition, table, sizes[0])
    index.check_series(competition, table, remarks)
    ties = groups.ties(competition, table)
    groups.refuse(competition, ties)
    images = cache.load_cache(competition, SIZE, table=table)
    copies = duplicate_groups(competition, table, images, turned=competition.turned_copies)
    table = table.assign(host_group=table["group"], group=copies.group)
    warn_of_stale_crops(competition, table)
    fold_table = folds.make_once(competition, table, anew=new_folds)
    index.save_index(table, competition)
    path, warnings = write_competition_report(competition, table, fold_table, sizes, copies)
    _look_at_orientation(competition, table, images)
    odd = index.remarked(remarks) + index.odd_formats(table)
    forgotten = [str(tie) for tie in ties[:1]]
    refused = submission.objection(competition, table, index.classes(competition, table))
    if refused is not None:
        forgotten.append(f"step 06 would refuse any submission: {refused}")
    for warning in index.set_aside(table) + odd + forgotten + warnings:
        note(f"warning: {warning}")
    others = index.left_out(competition)
    note(f"{len(table)} images, {int(table['error'].notna().sum())} set aside{others}; look at {path}")


def auto_recipe(
    competition: Competition, hours: float, fold: str, anew: bool, overrides: list[str]
) -> tuple[Path, int, str | None]:
    """(file of the recipe that fits, folds side by side, step 4's head where its backbone is frozen), images made."""
    from foldwise.train import auto  # torch takes seconds, which step 1 need not wait for

    if not (competition.derived() / "index.parquet").exists() or not folds.are_saved(competition):
        prepare(competition, [SIZE])
    wanted = folds.choose(folds.load_folds(competition), fold)
    file = auto.recipe_file(competition, hours, len(wanted), anew)
    recipe = load_recipe(str(file), overrides)
    with index.alone(competition):
        cache.build_caches(competition, index.load_index(competition), [recipe.image_size])
    head = "ridge" if competition.task == "regression" else "logreg"
    return file, auto.side_by_side(len(wanted)), head if recipe.model.mode == "frozen" else None


def _look_at_orientation(competition: Competition, table: DataFrame, images: cache.Cache) -> None:
    """Say what the training images are taken for, where the competition file says nothing."""
    train = table[(table["split"] == "train") & table["error"].isna()]
    some = train.iloc[:: max(1, len(train) // orientation.LOOKED_AT)]
    files = [series.header_file(competition.raw() / path, competition.image) for path in some["path"]]
    judged = orientation.judge(files, images.pictures(images.rows_of(some)))
    if competition.orientation is None and judged.orientation is not None:
        line, turn = f"orientation: {judged.orientation}", "no recipe" if judged.orientation == "upright" else "recipes"
        note(f"images look {judged.orientation}: {judged.reason}; `{line}` in {competition.file} lets {turn} turn them")
