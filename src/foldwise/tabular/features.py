"""What a metadata model may look at: columns, groups, files, other runs' predictions, embeddings; and what test lacks.

Everything is lined up once, training rows in the order of folds.csv, then test rows in the order of the index. What
other runs predict is taken fold by fold, so that no row is described by a model that saw its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.audit import drift
from foldwise.core.files import digest, read_voucher
from foldwise.core.schema import nearest
from foldwise.data import folds, index, oof
from foldwise.data.competition import Competition
from foldwise.data.encoder import Rows, is_number, numbers
from foldwise.data.rows import table_of
from foldwise.data.runs import check_folds, load_run
from foldwise.tabular import groups

DRIFTS = 0.6  # lower end of the adversarial AUC above which drift is worth a line
FILES = ["file width", "file height", "file aspect", "file bytes", "file format"]


@dataclass(frozen=True)
class Wish:
    """What to look at, beside the metadata columns of the competition."""

    groups: bool = False
    files: bool = False
    runs: Sequence[str] = ()
    embeddings: Sequence[str] = ()
    outliers: Sequence[str] = ()  # columns and runs by which a row is compared with its group

    @classmethod
    def of(cls, config: dict[str, Any]) -> Wish:
        """What a run's settings asked for, older ones included."""
        known = {"groups": "group_features", "files": "file_features", "runs": "oof", "embeddings": "embeddings"}
        return cls(**{name: config[key] for name, key in known.items()}, outliers=config.get("lof", []))


@dataclass(frozen=True)
class Stack:
    """Another run's predictions as columns: of training rows out of fold, of test rows by each fold's own model.

    With the columns within the group where these were asked for.
    """

    name: str
    train: pd.DataFrame
    tests: dict[int, pd.DataFrame]


@dataclass(frozen=True)
class Embedding:
    """Embeddings of training rows (order of folds.csv), then test rows: one array a fold, or one for all (None)."""

    name: str
    values: dict[int | None, np.ndarray]

    def of_fold(self, fold: int) -> np.ndarray:
        """float32 (rows, D) as fold K's network, which did not train on fold K, sees all rows; NaN: no image."""
        vectors = np.array(self.values[None if None in self.values else fold])
        vectors[~vectors.any(axis=1)] = np.nan  # stored as zeros
        return vectors


@dataclass(frozen=True)
class Inputs:
    """Training rows (order of folds.csv), then test rows. notes: what the user should know, a line each."""

    frame: pd.DataFrame
    training: int
    stacks: list[Stack] = field(default_factory=list)
    embeddings: list[Embedding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Names of the columns of any fold, then of the embeddings."""
        stacked = [name for stack in self.stacks for name in stack.train]
        return [*self.frame, *stacked, *(embedding.name for embedding in self.embeddings)]

    def of_fold(self, fold: int) -> Rows:
        """All rows as fold K's model may see them."""
        parts = [self.frame]
        for stack in self.stacks:
            both = pd.concat([stack.train, stack.tests[fold]], ignore_index=True)
            parts.append(both.set_index(self.frame.index))
        frame = pd.concat(parts, axis=1) if len(parts) > 1 else self.frame
        return Rows(frame, {embedding.name: embedding.of_fold(fold) for embedding in self.embeddings})


def gather(
    competition: Competition, table: pd.DataFrame, fold_table: pd.DataFrame, wish: Wish, encoded: Sequence[str] = ()
) -> Inputs:
    """Everything asked for, lined up and checked.

    Columns that are empty in training, empty or absent in test, or constant are left out with a note; UserError where
    nothing is left, one of the columns to be target-encoded is not among them, or another run's folds are not these.
    """
    if wish.groups or wish.outliers:
        _check_groups(competition, table)
    _check_outliers(competition, table, wish)
    frame_of = columns(competition, table, wish)
    if not len(frame_of.columns) and not wish.runs and not wish.embeddings:
        raise UserError(f"{competition.file}: no metadata columns; name some under `metadata` or `dicom_tags`")
    train, test = folds.rows(table.assign(_row=np.arange(len(table))), fold_table), table[table["split"] == "test"]
    order = np.concatenate([train["_row"].to_numpy(dtype=np.int64), np.flatnonzero(table["split"] == "test")])
    frame = frame_of.iloc[order].reset_index(drop=True)
    frame, notes = _usable(competition, frame, len(train))
    if not len(frame.columns) and not wish.runs and not wish.embeddings:
        raise UserError(f"{competition.file}: no metadata column is left to learn from: {'; '.join(notes)}")
    for name in encoded:
        if name not in frame:
            raise UserError(f"--target-encode {name}: no such column{nearest(name, map(str, frame))}")
    stacks = [_stack(competition, run, table, fold_table, wish) for run in wish.runs]
    ids = [*fold_table["id"].tolist(), *test["id"].tolist()]
    embeddings = [_embedding(competition, given, ids, fold_table) for given in wish.embeddings]
    meta, lines = _drift(competition, table, fold_table, frame_of[list(frame)], wish)
    return Inputs(frame, len(train), stacks, embeddings, [*notes, *lines], meta)


def columns(competition: Competition, table: pd.DataFrame, wish: Wish) -> pd.DataFrame:
    """The columns that are asked for of index rows, all splits together: other rows tell of a row's group."""
    parts = [table[index.metadata_columns(competition)]]
    parts += [group_columns(competition, table, wish)] if wish.groups or wish.outliers else []
    parts += [file_columns(competition, table)] if wish.files else []
    return pd.concat(parts, axis=1)


# --- made columns -----------------------------------------------------------------------------------------


def group_columns(competition: Competition, table: pd.DataFrame, wish: Wish) -> pd.DataFrame:
    """'images in group', of each numeric column its rank and z-score within the group, and 'outlier in group'.

    A group is the host's (a patient, say), over training and test rows together, as both are known beforehand.
    """
    group = host_group(table)
    key = group.where(table["split"] != "extra", "extra\x1f" + group.astype(str))
    values = _numeric(competition, table)
    parts = []
    if wish.groups:
        parts += [key.map(key.value_counts()).astype("float64").rename("images in group"), groups.within(values, key)]
    compared = [name for name in values if name in wish.outliers]
    if compared:
        parts.append(groups.outlyingness(values[compared], key).rename("outlier in group"))
    return pd.concat(parts, axis=1) if parts else pd.DataFrame(index=table.index)


def _numeric(competition: Competition, table: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in index.metadata_columns(competition) if is_number(table[name])]
    return pd.DataFrame({name: numbers(table[name]) for name in names}, index=table.index)


def _check_groups(competition: Competition, table: pd.DataFrame) -> None:
    """UserError where the competition names no group, or the test rows have none."""
    if competition.groups_by is None:
        raise UserError(f"--group-features: {competition.file} names no `group` (a patient or lesion column)")
    alone = (host_group(table) == table["id"]).groupby(table["split"]).all()
    if alone.get("test", False) and not alone["train"]:
        raise UserError(
            f"--group-features: test rows have no {competition.groups_by}, so every one would seem alone in its group; "
            "leave the flag out"
        )


def _check_outliers(competition: Competition, table: pd.DataFrame, wish: Wish) -> None:
    known = [*_numeric(competition, table), *wish.runs]
    for name in wish.outliers:
        if name not in known:
            raise UserError(f"--lof {name}: no column of numbers, nor a run of --oof{nearest(name, known)}")


def file_columns(competition: Competition, table: pd.DataFrame) -> pd.DataFrame:
    """Width, height, aspect, bytes and format of the image files, under names that start with 'file '."""
    return drift.columns(competition, table)[0][FILES]


# --- what can be used -------------------------------------------------------------------------------------


def _usable(competition: Competition, frame: pd.DataFrame, training: int) -> tuple[pd.DataFrame, list[str]]:
    """The columns worth learning from, and a line on each that is not."""
    notes, kept = [], []
    absent = _absent_in_test(competition)
    train, test = frame.iloc[:training], frame.iloc[training:]
    for name in frame:
        values = train[name]
        endless = is_number(values) and int(np.isinf(values.to_numpy(dtype=float, na_value=np.nan)).sum())
        if endless:
            notes.append(f"column '{name}': {endless} infinite values in training rows are taken as missing")
        there = ~np.isnan(numbers(values)) if is_number(values) else values.notna().to_numpy()
        if not there.any():
            notes.append(f"column '{name}' is empty in every training row: left out")
        elif len(test) and name in absent:
            notes.append(f"column '{name}' is not in {absent[str(name)]}: left out")
        elif len(test) and test[name].isna().all():
            notes.append(f"column '{name}' is empty in every test row: left out")
        elif there.all() and values.nunique() == 1:
            notes.append(f"column '{name}' is {values.iloc[0]} in every training row: left out")
        else:
            kept.append(name)
    return frame[kept], notes


def _absent_in_test(competition: Competition) -> dict[str, str]:
    """{metadata column: the test table} of columns that the host's test table does not have."""
    if competition.test is None or not competition.test.sources:
        return {}
    try:
        path, there = table_of(competition, competition.test)
    except UserError:
        return {}  # the raw folder need not be at hand any more
    return {name: path.name for name, column in competition.metadata.columns.items() if column not in there}


def _drift(
    competition: Competition, table: pd.DataFrame, fold_table: pd.DataFrame, frame: pd.DataFrame, wish: Wish
) -> tuple[dict[str, Any], list[str]]:
    """Facts for run.json and warnings: what these columns give away, and whether test is like training."""
    rows = frame[table["error"].isna() & (table["split"] != "extra")]
    lines = []
    if wish.files:
        lines.append(
            "--file-features: file size and dimensions tell the scanner, the site and the encoder, not the patient; "
            "a score that rests on them may not carry over"
        )
    if not (table["split"] == "test").any() or not len(rows.columns):
        return {}, lines
    fold_of = table["id"].map(fold_table.set_index("id")["fold"]).where(table["split"] == "train").astype("float64")
    sources = {name: "file" if name in FILES else "table" for name in rows}
    compared = drift.compare(competition, table, fold_of, rows, sources)
    lines += drift.warnings(compared)
    meta: dict[str, Any] = {"shift": _finite(compared.set_index("column")["drift"])}
    adversary = drift.adversarial("metadata", table, rows)
    if adversary is not None:
        auc = adversary.auc
        meta |= {"adversarial_auc": [auc.value, auc.low, auc.high]}
        if auc.low > DRIFTS:
            most = ", ".join(f"{name} ({share:.0%})" for name, share in adversary.columns.head(3).items())
            lines.append(f"drift: a model tells test rows from training rows by these columns, AUC {auc}; by {most}")
    return {"drift": meta}, lines


def _finite(values: pd.Series) -> dict[str, float | None]:
    return {str(name): None if np.isnan(value) else round(float(value), 4) for name, value in values.items()}


# --- other runs -------------------------------------------------------------------------------------------


def _stack(competition: Competition, name: str, table: pd.DataFrame, fold_table: pd.DataFrame, wish: Wish) -> Stack:
    group = host_group(folds.rows(table, fold_table)).astype(str).to_numpy()
    of_train = fold_table["fold"].astype(str) + "\x1f" + group  # models of other folds may have seen a row's target
    of_test = host_group(table[table["split"] == "test"])
    ids = table.loc[table["split"] == "test", "id"]
    run = load_run(competition, name, tests=len(ids) > 0)
    if run.info.says_anything:
        check_folds(competition, name, fold_table)
    columns = [f"pred_{each}" for each in index.classes(competition, table)] or ["pred"]
    if set(run.pred_columns) != set(columns):
        raise UserError(f"{run.folder}: predicts {', '.join(run.pred_columns)}, not {', '.join(columns)}")
    train = run.oof.set_index("id")
    _same_rows(run.folder / "oof.csv", train, fold_table["id"])
    train = train.loc[fold_table["id"]]
    if "fold" not in train or (train["fold"].to_numpy() != fold_table["fold"].to_numpy()).any():
        raise UserError(
            f"{run.folder / 'oof.csv'}: predicted in other folds than folds.csv's: its models have seen rows that a "
            "model on top would be judged by; make the run anew on these folds"
        )
    tests = {}
    for fold in sorted(fold_table["fold"].unique().tolist()):
        own = run.folder / f"fold{fold}_test.csv"
        preds = (oof.read_table(own) if len(ids) and own.exists() else run.test).set_index("id")
        _same_rows(own if own.exists() else run.folder / "test.csv", preds, ids)
        tests[fold] = as_columns(competition, name, preds.loc[ids, columns], of_test, wish)
    return Stack(name, as_columns(competition, name, train[columns], of_train, wish), tests)


def _same_rows(path: Path, preds: pd.DataFrame, ids: pd.Series) -> None:
    lacking = ids[~ids.isin(preds.index)]
    if len(lacking):
        raise UserError(f"{path}: no prediction for id '{lacking.iloc[0]}' ({len(lacking)} such); make the run anew")


def as_columns(competition: Competition, name: str, preds: pd.DataFrame, group: pd.Series, wish: Wish) -> pd.DataFrame:
    """Probabilities as log-odds, which linear models need and trees don't mind; then what was asked for within groups.

    group: each row's, (N,).
    """
    values = preds.to_numpy(dtype=float)
    if competition.task != "regression" and values.min(initial=0) >= 0 and values.max(initial=1) <= 1:
        values = np.clip(values, 1e-7, 1 - 1e-7)  # float32's last digit below 1: log-odds within ±16
        values = np.log(values / (1 - values))
    labels = [f"run {name}{column.removeprefix('pred').replace('_', ': ', 1)}" for column in preds]
    odds, key = pd.DataFrame(values, columns=labels), group.reset_index(drop=True)
    parts = [odds, *([groups.within(odds, key)] if wish.groups else [])]
    if name in wish.outliers:
        parts.append(groups.outlyingness(odds, key).rename(f"run {name} outlier in group"))
    return pd.concat(parts, axis=1)


def host_group(table: pd.DataFrame) -> pd.Series:
    """The group that the host names, whatever joins rows in the folds."""
    return table["host_group"] if "host_group" in table else table["group"]


# --- embeddings -------------------------------------------------------------------------------------------


def _embedding(competition: Competition, given: str, ids: list[str], fold_table: pd.DataFrame) -> Embedding:
    """Embeddings of a run (its name, or a folder), one file a fold; or one .npy made by no trained network."""
    name, files = embedding_files(competition, given, sorted(fold_table["fold"].unique().tolist()))
    for file in files.values():
        _check_origin(file, ids, fold_table)
    return Embedding(name, {fold: _read_array(file, len(ids)) for fold, file in files.items()})


def embedding_files(competition: Competition, given: str, every: Sequence[int]) -> tuple[str, dict[int | None, Path]]:
    """What embeddings are called among the columns, and their file for each fold, or one (None) for all."""
    path = Path(given)
    if path.suffix == ".npy" and path.stem.startswith("fold"):
        raise UserError(f"--embeddings {given}: one fold's; its network saw the other folds' rows: name the run")
    folder = path.parent if path.suffix == ".npy" else path if path.is_dir() else competition.runs() / given
    alone = path if path.suffix == ".npy" else folder / "embeddings.npy"
    if path.suffix != ".npy" and not any(folder.glob("*embeddings.*")):
        known = sorted(file.parent.name for file in competition.runs().glob("*/*embeddings.npy"))
        raise UserError(f"{folder}: no embeddings{nearest(given, known)}; make them with 04_embed.py")
    files: dict[int | None, Path] = {None: alone}
    if path.suffix != ".npy" and not alone.exists() and not alone.with_suffix(".json").exists():
        files = {fold: folder / f"fold{fold}_embeddings.npy" for fold in every}
    name = path.stem if path.suffix == ".npy" and path.stem != "embeddings" else folder.name
    return f"embeddings {name}", files


def _check_origin(file: Path, ids: list[str], fold_table: pd.DataFrame) -> None:
    """UserError where embeddings of 04_embed.py are damaged, or made on other folds or of other rows."""
    path = file.with_suffix(".json")
    if not (file.exists() and path.exists()):  # somebody's own
        return
    meta = read_voucher(path)
    if meta is None:
        raise UserError(f"{path}: damaged, or {file.name} is; make the embeddings anew with 04_embed.py")
    own, now = meta.get("folds_hash"), folds.digest(fold_table)
    if own not in {None, now}:  # None: a network that never saw this data
        raise UserError(f"{path}: made on other folds ({own}) than folds.csv ({now}); make them anew")
    if meta["rows"] != digest(ids):
        raise UserError(f"{path}: made of other rows than today's; make the embeddings anew with 04_embed.py")


def _read_array(path: Path, rows: int) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path}: not there; make it with 04_embed.py") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a NumPy array ({error})") from None
    if values.ndim != 2 or values.shape[0] != rows or values.dtype.kind != "f":
        raise UserError(
            f"{path}: {values.dtype} {values.shape}; needs float (rows, D) with {rows} rows: those of folds.csv, "
            "then the test rows"
        )
    return values
