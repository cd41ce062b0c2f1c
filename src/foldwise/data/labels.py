"""Labels of a table's rows: numbers, names, columns of 0 and 1, several names in one cell; gaps as the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.core.schema import nearest
from foldwise.data import tables
from foldwise.data.columns import read_numbers
from foldwise.data.competition import Competition

LARGEST = 1e18  # of a target: a squared error of it still is a float32


def label_columns(competition: Competition) -> list[str]:
    """The table's columns that hold the labels."""
    return [str(competition.target)] if competition.delimited else competition.targets


def read_targets(competition: Competition, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """'target', or 'target_<label>' for each, of a labelled table's rows; UserError names the row of a bad label."""
    if competition.delimited:
        return _in_cells(competition, table[str(competition.target)])
    if competition.task == "multiclass" and len(competition.targets) > 1:
        return _one_of(competition, table, path)
    if competition.task == "soft":
        return _shares(competition, table, path)
    columns = zip(competition.truth, competition.targets, strict=True)
    return pd.DataFrame({name: _column(competition, table, column, path) for name, column in columns})


def _in_cells(competition: Competition, cells: pd.Series) -> pd.DataFrame:
    """float32 0 and 1 for every label that a cell may hold; NaN for all of an empty one that `labels` ignores."""
    names, separator = {name: k for k, name in enumerate(competition.targets)}, competition.labels.separator
    blank = cells.isna() | (cells.astype(str).str.strip() == "")
    held = [[] if empty else str(cell).split(separator) for cell, empty in zip(cells, blank, strict=True)]
    rows = np.repeat(np.arange(len(held)), list(map(len, held)))
    columns = [names.get(name.strip(), -1) for cell in held for name in cell]
    said = np.zeros((len(cells), len(names) + 1), np.float32)
    said[rows, columns] = 1
    if competition.labels.blank == "ignore":
        said[blank.to_numpy()] = np.nan
    return pd.DataFrame(said[:, :-1], cells.index, competition.truth)


def _one_of(competition: Competition, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The name of the one column that holds a 1."""
    cells = table[competition.targets].apply(pd.to_numeric, errors="coerce")
    held = (cells == 1).sum(axis=1)
    odd = (held != 1) | ~cells.isin([0, 1]).all(axis=1)
    if competition.labels.blank == "ignore":
        odd &= cells.fillna(0).ne(0).any(axis=1)
    if odd.any():
        row = odd.idxmax()
        what = "several are 1" if held[row] > 1 else "none is 1" if not held[row] else "not all are 0 or 1"
        where = f"{path}: row {row + 2} (id {table[competition.id][row]}): of {', '.join(competition.targets[:6])}"
        raise UserError(f"{where} one must be 1, {what}; for labels that come together set `task: multilabel`")
    return pd.DataFrame({"target": cells.idxmax(axis=1).where(held == 1)})


def _shares(competition: Competition, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Votes over a row's sum, and in 'target' the class with most (of as many, the first)."""
    votes = table[competition.targets].apply(pd.to_numeric, errors="coerce").astype("float64")
    if competition.labels.blank == "0":
        votes = votes.mask(table[competition.targets].isna(), 0.0)
    total = votes.sum(axis=1)
    odd = votes.isna().any(axis=1) | (votes < 0).any(axis=1) | (total <= 0) | ~np.isfinite(total)
    if competition.labels.blank == "ignore":
        odd &= table[competition.targets].notna().any(axis=1)
    if odd.any():
        row = odd.idxmax()
        cells = ", ".join(map(str, table.loc[row, competition.targets]))
        where = f"{path}: row {row + 2} (id {table[competition.id][row]})"
        raise UserError(f"{where}: votes are numbers of 0 or more with a sum above 0, not {cells}")
    shares = votes.div(total, axis=0).set_axis(competition.truth, axis=1)
    most = votes.where(~votes.isna().any(axis=1), 0.0).idxmax(axis=1)
    return shares.assign(target=most.where(shares.notna().all(axis=1)))


def _column(competition: Competition, table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    labels, values, where = competition.labels, table[column], f"{path}: column '{column}'"
    blank = values.isna() | (values.astype(str).str.strip() == "")
    unsure = pd.to_numeric(values, errors="coerce").eq(-1) & (labels.uncertain is not None)
    if blank.any() and labels.blank is None:
        row = blank.idxmax()
        raise UserError(
            f"{path}: row {row + 2} (id {table[competition.id][row]}): '{column}' is empty; give it a label, "
            "take the row out, or say what it means: `labels: {blank: ignore}` in the competition"
        )
    target = target_of(competition, values[~blank & ~unsure], where).reindex(table.index)
    for cells, meaning in ((blank, labels.blank), (unsure, labels.uncertain)):
        if meaning not in {None, "ignore"}:
            target[cells] = float(str(meaning))
    if competition.task == "binary" and target.nunique() < 2:
        raise UserError(f"{where}: every row is {target.dropna().iloc[0]:g}; nothing to learn")
    return target


def labelled(competition: Competition, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a label; how many have none is said."""
    empty = rows[competition.truth].isna().all(axis=1)
    if empty.any():
        note(f"{name}: {int(empty.sum())} of {len(rows)} rows have no label (`labels`: ignore) and are left out")
    return rows[~empty].reset_index(drop=True)


def target_of(competition: Competition, values: pd.Series, where: str) -> pd.Series:
    """Labels as the task has them: 0 and 1, names, numbers; `where` begins the UserError of a label that is none."""
    if not len(values):
        raise UserError(f"{where}: no row has a label")
    if competition.task == "multiclass":
        names = (values.astype("int64") if tables.are_whole(values) else values).astype(str).str.strip()
        if names.nunique() < 2:
            raise UserError(f"{where}: only one class, '{names.iloc[0]}'; nothing to learn")
        return names
    if isinstance(competition.positive, list):
        names = values.astype(str).str.strip()
        for one in set(competition.positive) - set(names):
            raise UserError(f"{where}: no row has the label '{one}' of `positive`{nearest(one, names.unique())}")
        return names.isin(competition.positive).astype("float64")
    if competition.positive is not None:
        names = values.astype(str)
        if competition.positive not in set(names) or names.nunique() != 2:
            some = ", ".join(sorted(set(names))[:5])
            raise UserError(
                f"{where}: `positive: {competition.positive}` needs two labels with it among them; found {some}; "
                f"`positive: [{competition.positive}]` takes all others for 0"
            )
        return (names == competition.positive).astype("float64")
    return _numbers(competition, values, where)


def _numbers(competition: Competition, values: pd.Series, where: str) -> pd.Series:
    numbers, _ = read_numbers(values)
    if numbers.isna().any() or not np.isfinite(numbers).all():
        bad = values[~np.isfinite(numbers)].iloc[0]
        hint = (
            "; set `positive` in the competition to the label that counts as 1" if competition.task == "binary" else ""
        )
        raise UserError(f"{where}: '{bad}' is not a number{hint}")
    if (numbers.abs() > LARGEST).any():
        raise UserError(f"{where}: {numbers.abs().max():g} is beyond {LARGEST:g}: its square is no float32; rescale it")
    if competition.task != "regression" and not numbers.isin([0, 1]).all():
        strange = numbers[~numbers.isin([0, 1])].iloc[0]
        hint = "; if it means uncertain, set `labels: {uncertain: ignore}`" if strange == -1 else ""
        raise UserError(f"{where}: {competition.task} targets are 0 and 1, found {strange:g}{hint}")
    return numbers
