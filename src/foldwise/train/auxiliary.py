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
from foldwise.data.columns import by_number, read_numbers, text
from foldwise.data.competition import AuxiliaryTarget, Competition
from foldwise.data.rows import table_columns


@dataclass(frozen=True)
class Auxiliary:
    """task and weight of each target, and its columns among `target` float32 (rows, outputs): 0 and 1, classes one-hot,
    or a number in standard deviations from its mean; NaN where it is missing."""

    parts: list[tuple[AuxiliaryTarget, slice]]
    target: np.ndarray

    @property
    def outputs(self) -> int:
        """Logits that they need."""
        return self.target.shape[1]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted sum of the targets' losses, each a mean over the rows that have one. Both (B, outputs)."""
        total = logits.new_zeros(())
        for asked, at in self.parts:
            said, truth = logits[:, at], target[:, at]
            known = truth.isfinite().all(dim=1)
            rows = (_loss(asked.task, said, truth.nan_to_num()) * known).sum()
            total = total + asked.weight * rows / known.sum().clamp_min(1)
        return total


def _loss(task: str, logits: Tensor, target: Tensor) -> Tensor:
    """(B,) of each row."""
    if task == "multiclass":
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)
    if task == "binary":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
    return (logits - target).square()[:, 0]


def of_rows(competition: Competition, rows: pd.DataFrame) -> Auxiliary | None:
    """The competition's, of a fold's training rows; None where it has none. Rows from elsewhere have no values.

    UserError for a column that the train table lacks, or whose values do not fit its task.
    """
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
