"""The only reader and writer of prediction tables: oof/<competition>/<run>/, joined by id, never by position.

    fold<K>.csv, oof.csv      id, fold, target, pred         (multiclass: pred_<class>...;
    fold<K>_test.csv, test.csv      id, pred                  multilabel: target_<c>..., pred_<c>...)
    run.json                  what made them, and their scores

Any folder with an oof.csv and a test.csv is a run, whoever made it; run.json is then optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError, metrics
from foldwise.core.cli import note, note_if_edited
from foldwise.core.files import replacing, sealed, write_csv
from foldwise.data import index, tables, top
from foldwise.data.competition import Competition

DIGITS = "%.9g"  # a float32 comes back to the bit


def pred_columns(table: pd.DataFrame) -> list[str]:
    """The prediction columns of a table."""
    return [name for name in table.columns if name == "pred" or name.startswith("pred_")]


def prediction_table(
    competition: Competition, names: Sequence[str], rows: pd.DataFrame, pred: np.ndarray, fold: int | None = None
) -> pd.DataFrame:
    """A prediction table for index rows: with fold and target where `fold` is given, else a test table.

    pred: (N,) or (N, C) with its columns in the order of `names` (index.classes), or data.top's array of many.
    """
    table = {"id": rows["id"].to_numpy()}
    if fold is not None:
        table["fold"] = np.full(len(rows), fold)
        for column in competition.truth:
            table[column] = rows[column].to_numpy()
    if competition.task == "multiclass" and len(names) > top.MANY:
        if fold is not None:
            table["target_code"] = index.target_array(competition, rows, list(names))
        return pd.DataFrame(table | top.columns(top.keep(pred) if pred.shape[1] == len(names) else pred))
    columns = [f"pred_{name}" for name in names] or ["pred"]
    values = pred.reshape(len(rows), len(columns))
    return pd.DataFrame({**table, **dict(zip(columns, values.T, strict=True))})


def with_class(competition: Competition, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the likeliest class as its target, where `competition` asks for one and it holds shares."""
    if competition.task != "multiclass" or "target" in table:
        return table
    names = np.array([column.removeprefix("pred_") for column in pred_columns(table)])
    return table.assign(target=names[table[[f"target_{name}" for name in names]].to_numpy().argmax(axis=1)])


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """A CSV, written whole: under a temporary name, then renamed. 0/1 targets as integers, no NaN.

    Of many classes the CSV has the likeliest, and <name>_top.parquet beside it all that are kept.
    """
    preds = frame[pred_columns(frame)]
    if not np.isfinite(preds.to_numpy(dtype=float)).all():
        row = int(np.flatnonzero(~np.isfinite(preds.to_numpy(dtype=float)).all(axis=1))[0])
        raise UserError(f"{path}: the prediction of id {frame['id'].iloc[row]} is not a finite number; not written")
    if top.is_top(frame):
        with replacing(_beside(path)) as part:
            frame.to_parquet(part, index=False, write_page_checksum=True)
        frame = frame[[*(c for c in frame if not c.startswith(("class_top", "pred_"))), "class_top1", "pred_top1"]]
    whole = {c: "int64" for c in frame if c.startswith("target") and tables.are_whole(frame[c])}
    with sealed(path):
        write_csv(path, frame.astype(whole), DIGITS)


def read_table(path: Path) -> pd.DataFrame:
    """A prediction table; UserError names the file and row of a missing or doubled id or a prediction not finite.

    One that has changed since it was written counts as it is, and is said.
    """
    note_if_edited(path)
    frame = tables.read_table(path, ["id", *_class_names(path)])
    if top.is_top(frame):
        frame = _read_top(path, frame)
    preds = pred_columns(frame)
    if "id" not in frame or not preds:
        raise UserError(f"{path}: needs columns id and pred (or pred_<class>...), has {', '.join(frame.columns)}")
    for problem, rows in (("is empty", frame["id"] == ""), ("stands there twice", frame["id"].duplicated())):
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise UserError(f"{path}: row {row + 2}: id '{frame['id'].iloc[row]}' {problem}")
    for column in preds:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = ~np.isfinite(numbers.to_numpy(dtype=float))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{path}: row {row + 2} (id {frame['id'].iloc[row]}): {column} is "
                f"'{frame[column].iloc[row]}', not a finite number"
            )
        frame[column] = numbers.astype(float)
    return frame


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}_top.parquet")


def _read_top(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    whole = tables.read_table(_beside(path))
    if not top.is_top(whole) or whole["id"].astype(str).tolist() != frame["id"].tolist():
        raise UserError(f"{_beside(path)}: its rows are not those of {path.name}; make both again")
    return whole.astype({"id": str})


def _class_names(path: Path) -> list[str]:
    """['target'] where it holds class names, which stay text: '01', 'NA' and '1' are names."""
    try:
        columns = list(pd.read_csv(path, nrows=0).columns)
    except (ValueError, OSError):
        return []  # read_table says what is wrong
    return ["target"] if "target" in columns and any(name.startswith("pred_") for name in columns) else []


def score(competition: Competition, oof: pd.DataFrame, table_index: pd.DataFrame | None = None) -> float:
    """The competition's metric on an OOF table, or NaN where it does not exist (one class only).

    Where several images make a submission row, predictions are aggregated first, as they will be in the submission
    (the truth of such a row is the largest of its images' targets).
    """
    if top.is_top(oof):
        return top.score(competition.scorer(), oof["target_code"].to_numpy(), top.array(oof))
    names = [column.removeprefix("pred_") for column in pred_columns(oof)]
    if competition.task == "multiclass":
        names = index.order(competition, names)
    if competition.aggregates and table_index is not None:
        row_ids = table_index.loc[table_index["split"] == "train"].set_index("id")["row_id"]
        how: dict[str, Any] = {c: competition.submission.aggregate for c in pred_columns(oof)}
        how |= {c: "mean" if competition.task == "soft" else "max" for c in oof if c.startswith("target")}
        oof = oof.groupby(row_ids.reindex(oof["id"]).to_numpy(), sort=False).agg(how).reset_index()
    pred = oof[["pred"] if names == ["pred"] else [f"pred_{name}" for name in names]].to_numpy()
    target = index.target_array(competition, oof, names)
    metric = competition.scorer()
    try:
        return metrics.score(metric, target, pred[:, 0] if names == ["pred"] else pred)
    except metrics.Undefined as error:
        if metric.own is not None:
            note(f"warning: {error}")
        return float("nan")
