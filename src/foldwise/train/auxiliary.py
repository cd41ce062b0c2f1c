"""Auxiliary targets: columns of the train table that a network learns beside the main one, to learn better features.

Each has logits of its own on what the main classifier sees, and a loss of its own weight; a cell that is missing has no
part in it (Caruana 1997, "Multitask Learning"). They go into no prediction, and into no weights file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from foldwise import UserError
from foldwise.core.schema import nearest
from foldwise.data.cache import load_slices
from foldwise.data.columns import by_number, read_numbers, text
from foldwise.data.competition import AuxiliaryTarget, Competition, SliceLabels
from foldwise.data.recipe import Recipe
from foldwise.data.rows import table_columns
from foldwise.data.tables import read_table


@dataclass(frozen=True)
class Auxiliary:
    """task and weight of each target, and its columns among `target` float32 (rows, outputs): 0 and 1, classes one-hot,
    or a number in standard deviations from its mean; NaN where it is missing."""

    parts: list[tuple[AuxiliaryTarget, slice]]
    target: np.ndarray
    of_slices: int = 0  # labels of single slices; the last columns, for each of a row's pictures so many

    @property
    def outputs(self) -> int:
        """Logits that they need."""
        return self.target.shape[1]

    @property
    def of_rows(self) -> int:
        """Of these, those of a row's columns: all but the slices'."""
        return self.parts[-1][1].start if self.of_slices else self.outputs

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted sum of the targets' losses, each a mean over the rows that have one. Both (B, outputs)."""
        total = logits.new_zeros(())
        for asked, at in self.parts:
            said, truth = logits[:, at], target[:, at]
            known = truth.isfinite()
            known = known.all(dim=1) if asked.task == "multiclass" else known
            rows = (_loss(asked.task, said, truth.nan_to_num()) * known).sum()
            total = total + asked.weight * rows / known.sum().clamp_min(1)
        return total


def _loss(task: str, logits: Tensor, target: Tensor) -> Tensor:
    """(B,) of each row's classes, (B, width) of labels and numbers."""
    if task == "multiclass":
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)
    if task == "binary":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (logits - target).square()


def of_rows(competition: Competition, rows: pd.DataFrame, recipe: Recipe) -> Auxiliary | None:
    """The competition's, of a fold's training rows; None where it has none. Rows from elsewhere have no values.

    UserError for a column that the train table lacks, or whose values do not fit its task.
    """
    asked, parts = competition.slice_labels, _of_columns(competition, rows)
    if asked is None:
        return parts
    labels = _of_slices(competition, asked, rows, recipe)
    of_all = AuxiliaryTarget(task="binary", weight=asked.weight)
    before = parts or Auxiliary([], np.zeros((len(rows), 0), np.float32))
    every = [*before.parts, (of_all, slice(before.outputs, before.outputs + labels.shape[1]))]
    return Auxiliary(every, np.concatenate([before.target, labels], axis=1), len(asked.targets))


def _of_slices(competition: Competition, asked: SliceLabels, rows: pd.DataFrame, recipe: Recipe) -> np.ndarray:
    """float32 (rows, pictures x labels), NaN of slices that the table does not name."""
    key, where = asked.id or competition.id, competition.raw_of(competition.train) / asked.table
    columns = [key, asked.slice, *([asked.series] if asked.series else [])]
    table = read_table(where, columns)
    for column in [*columns, *asked.targets]:
        if column not in table:
            raise UserError(f"{where}: no column '{column}', which `slice_labels` names{nearest(column, table)}")
    series = competition.image.series
    if series and not asked.series:
        raise UserError(f"{competition.file}: `slice_labels: {{series: COLUMN}}` says which of {', '.join(series)}")
    named = table[columns].astype(str).assign(**{asked.slice: _bare(table[asked.slice])}).agg("\n".join, axis=1)
    values = table[asked.targets].apply(pd.to_numeric, errors="coerce").set_axis(named).groupby(level=0).max()
    own = rows.assign(at=np.arange(len(rows)), key=rows["id"])[(rows["split"] == "train").to_numpy()]
    told = table_columns(competition, own)
    if asked.id is not None and asked.id in told:
        own = own.assign(key=told[asked.id].astype(str).to_numpy())
    shown = load_slices(competition, recipe.image_size)
    shown = shown[shown["split"] == "train"].merge(own[["id", "at", "key"]], on="id")
    seen = shown["file"] if asked.by == "file" else shown["instance"].map(lambda value: f"{value:g}")
    parts = [shown["key"], _bare(seen), *([shown["series"].map(dict(enumerate(series)))] if series else [])]
    keys = pd.concat(parts, axis=1).agg("\n".join, axis=1) if len(shown) else pd.Series([], dtype=str)
    if not keys.isin(values.index).any():
        row, file = (shown["key"].iloc[0], shown["file"].iloc[0]) if len(shown) else ("none", "none")
        raise UserError(
            f"{where}: '{asked.slice}' names no slice by {asked.by}: {key} is {table[key].iloc[0]} there, {row} here; a"
            f"  slice is {table[asked.slice].iloc[0]} there, {file} here"
        )
    stack, step = recipe.model.stack, recipe.model.series.step
    assert stack is not None
    labels = np.full((len(rows), stack.series * stack.slices, len(asked.targets)), np.nan, np.float32)
    labels[shown["at"], shown["slot"]] = values.reindex(keys).to_numpy()
    middles = [min(k + step // 2, stack.slices - 1) for k in range(0, stack.slices, step)]
    return labels.reshape(len(rows), stack.series, stack.slices, -1)[:, :, middles].reshape(len(rows), -1)


def _bare(names: pd.Series) -> pd.Series:
    """File names without their suffix, numbers without leading zeros."""
    bare = names.astype(str).str.replace(r"\.[A-Za-z][A-Za-z0-9.]*$", "", regex=True)
    return bare.where(~bare.str.fullmatch(r"[0-9]+"), bare.str.lstrip("0").replace("", "0"))


def _of_columns(competition: Competition, rows: pd.DataFrame) -> Auxiliary | None:
    if not competition.auxiliary:
        return None
    table, own = table_columns(competition, rows), (rows["split"] == "train").to_numpy()
    table = table.where(np.broadcast_to(own[:, None], table.shape))
    parts, columns, at = [], [], 0
    for name, asked in competition.auxiliary.items():
        if name not in table:
            raise UserError(f"{competition.file}: `auxiliary: {name}`: no such column{nearest(name, table)}")
        values = _encoded(f"{competition.file}: `auxiliary: {name}`", asked.task, table[name])
        parts.append((asked, slice(at, at + values.shape[1])))
        columns.append(values)
        at += values.shape[1]
    return Auxiliary(parts, np.concatenate(columns, axis=1).astype(np.float32))


def _encoded(where: str, task: str, values: pd.Series) -> np.ndarray:
    """float (N, width)."""
    if task == "regression":
        numbers, odd = read_numbers(values)
        if len(odd) or not numbers.notna().any():
            raise UserError(f"{where}: " + (f"'{odd.iloc[0]}' is no number" if len(odd) else "no row has a value"))
        spread = float(numbers.std(ddof=0))
        return ((numbers - numbers.mean()) / (spread or 1.0)).to_numpy()[:, None]
    names = values.astype(object).where(values.notna() & (values.astype(str).str.strip() != ""))
    held_by = text(names)
    classes = by_number(held_by.dropna().unique())
    if len(classes) < 2 or (task == "binary" and len(classes) > 2):
        held = ", ".join(classes[:5]) or "nothing"
        raise UserError(f"{where}: task {task} needs {'two' if task == 'binary' else 'several'} classes, found {held}")
    hot = (held_by.fillna("").to_numpy(object)[:, None] == np.array(classes, object)).astype(float)
    hot[held_by.isna().to_numpy()] = np.nan
    return hot[:, 1:] if task == "binary" else hot


def beside(target: Tensor, auxiliary: Tensor | None, rows: Tensor) -> Tensor:
    """The main target (B, C) with the auxiliary columns of its rows behind it, so that both are mixed alike."""
    return target if auxiliary is None else torch.cat([target, auxiliary[rows]], dim=1)
