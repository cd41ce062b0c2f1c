"""What one fold trains, validates and predicts on: rows joined by id from index, folds, cache and other runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.data import cache, folds, index, oof
from foldwise.data.competition import Competition
from foldwise.data.encoder import Numbers
from foldwise.data.recipe import Recipe, Train
from foldwise.data.runs import check_folds, load_run
from foldwise.data.tables import read_table
from foldwise.model import targets
from foldwise.model.targets import Targets
from foldwise.train import auxiliary
from foldwise.train.auxiliary import Auxiliary


@dataclass(frozen=True)
class FoldData:
    """Rows are index rows; targets as Targets.array gives them.

    teacher_target: float32 (train rows, C), what other models said of the training rows; teacher_weight: float32
    (train rows,), its weight in the target. encoder: metadata columns -> features, fitted on the fold's training rows.
    prior: float32 (C,), index.prior of the competition's own training rows. auxiliary: what is learnt beside.
    """

    images: cache.Cache
    targets: Targets
    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame
    train_target: np.ndarray
    valid_target: np.ndarray  # the competition's own, whatever is learnt
    prior: np.ndarray
    teacher_target: np.ndarray | None = None
    teacher_weight: np.ndarray | None = None
    encoder: Numbers | None = None
    auxiliary: Auxiliary | None = None

    def cache_rows(self, split: str) -> np.ndarray:
        """Cache rows int64 of 'train', 'valid' or 'test'; -1 where the file could not be read."""
        return self.images.rows_of(getattr(self, split))

    def metadata(self, split: str) -> np.ndarray | None:
        """Features float32 (N, F) of 'train', 'valid' or 'test' for a fusion network, else None."""
        return None if self.encoder is None else self.encoder.transform(getattr(self, split))

    def sample_weights(self, sampling: str) -> np.ndarray | None:
        """How often each training row is drawn, by 1/frequency of its class (sqrt: its root); None: each once.

        multilabel: of the rarest label a row has.
        """
        if sampling == "all":
            return None
        target = self.train_target
        if self.targets.task == "soft":
            target = target.argmax(axis=1)
        if target.ndim == 2:
            count = np.maximum(np.nansum(target, axis=0), 1)
            none = max(1, int((np.nansum(target, axis=1) == 0).sum()))
            rarest = np.where(target > 0, count, np.inf).min(axis=1)
            frequency = np.where(np.isfinite(rarest), rarest, none)
        else:
            count = np.bincount(target.astype(int))
            frequency = count[target.astype(int)]
        return 1 / np.asarray(frequency, float) ** (1.0 if sampling == "balanced" else 0.5)


def gather(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> FoldData:
    """The rows of one fold; UserError where a piece is missing."""
    table = index.load_index(competition)
    plan = targets.plan(competition, recipe, table)
    train = folds.rows(table, fold_table)
    inside = (fold_table["fold"] == fold).to_numpy()
    if not inside.any():
        raise UserError(f"--fold {fold}: the folds are {', '.join(map(str, sorted(fold_table['fold'].unique())))}")
    fit, valid, test = train[~inside], train[inside], table[table["split"] == "test"]
    prior = index.prior(competition, fit, plan.names)
    images = cache.load_cache(competition, recipe.image_size, recipe.crop)
    if plan.column is None:
        fit = pd.concat([fit, _extra(table, valid, plan.names)])
    fit = fit[images.rows_of(fit) >= 0]
    fit_target = plan.array(competition, fit)
    encoder = _encoder(competition, recipe, fit)
    valid_target = index.target_array(competition, valid, plan.names)
    data = FoldData(images, plan, fit, valid, test, fit_target, valid_target, prior, encoder=encoder)
    if recipe.train.distill or recipe.train.pseudo:
        data = _with_teacher(competition, recipe.train, fold, fold_table, data)
    if not recipe.train.auxiliary or recipe.model.mode == "as_is":
        return data
    return replace(data, auxiliary=auxiliary.of_rows(competition, data.train, recipe))


def _extra(table: pd.DataFrame, valid: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Rows from elsewhere that this fold may train on: none that shares a group, or a copy, with a validation row."""
    extra = table[(table["split"] == "extra") & table["error"].isna() & ~table["group"].isin(valid["group"])]
    unknown = set(extra["target"]) - set(names) if names and "target" in extra else set()
    if unknown:
        raise UserError(f"extra: class '{sorted(map(str, unknown))[0]}' is none of the training classes")
    return extra


def _encoder(competition: Competition, recipe: Recipe, rows: pd.DataFrame) -> Numbers | None:
    if not recipe.model.metadata:
        return None
    columns = index.metadata_columns(competition)
    if not columns:
        raise UserError(
            f"model.metadata=true: {competition.file} names no metadata columns; name some under `metadata` or "
            "`dicom_tags`"
        )
    return Numbers.fit(rows, columns)


# --- what other models said -----------------------------------------------------------------------------------


def _with_teacher(competition: Competition, t: Train, fold: int, fold_table: pd.DataFrame, data: FoldData) -> FoldData:
    """Training rows with other models' predictions beside the labels; test rows join them with predictions alone."""
    names = data.targets.names
    teacher_target = np.zeros((len(data.train), max(1, len(names))), np.float32)
    teacher_weight = np.zeros(len(data.train), np.float32)
    if t.distill:
        check_folds(competition, t.distill, fold_table)
        said = _preds(load_run(competition, t.distill).oof, names, f"run {t.distill}").reindex(data.train["id"])
        known = said.notna().all(axis=1).to_numpy()  # extra rows have no OOF prediction
        teacher_target[known] = said.to_numpy(np.float32)[known]
        teacher_weight[known] = t.distill_weight
    if not t.pseudo:
        return FoldData(**{**vars(data), "teacher_target": teacher_target, "teacher_weight": teacher_weight})
    rows, said_of_test = _pseudo(competition, t, fold, fold_table, data)
    labels = _hard(data.targets.task, said_of_test)
    return FoldData(
        **{
            **vars(data),
            "train": pd.concat([data.train, rows]),
            "train_target": np.concatenate([data.train_target, labels]),
            "teacher_target": np.concatenate([teacher_target, said_of_test]),
            "teacher_weight": np.concatenate([teacher_weight, np.ones(len(rows), np.float32)]),
        }
    )


def _pseudo(
    competition: Competition, t: Train, fold: int, fold_table: pd.DataFrame, data: FoldData
) -> tuple[pd.DataFrame, np.ndarray]:
    """The test rows that join the training, and their labels float32 (n, C).

    A run's labels for fold K come from its fold-K model alone, which has not seen the rows that fold K validates on.
    A submission has no folds: its models saw those rows, so that the OOF score turns out too good; that is said.
    """
    source = str(t.pseudo)
    if source.endswith(".csv"):
        note(f"warning: train.pseudo={source}: its models saw this fold's validation rows; the OOF score is optimistic")
        frame = read_table(Path(source), [competition.id])
    else:
        check_folds(competition, source, fold_table)
        frame = oof.read_table(competition.runs() / source / f"fold{fold}_test.csv")
    said = _preds(frame, data.targets.names, f"train.pseudo={source}")
    test = data.test[(data.images.rows_of(data.test) >= 0) & data.test["id"].isin(said.index).to_numpy()]
    if not len(test):
        raise UserError(f"train.pseudo={source}: none of its ids is a readable test image's")
    values = said.loc[test["id"]].to_numpy(np.float32)
    if data.targets.task != "regression":
        sure = values.max(axis=1) if data.targets.task in {"multiclass", "soft"} else np.abs(values - 0.5).mean(axis=1)
        kept = np.sort(np.argsort(-sure, kind="stable")[: max(1, round(t.pseudo_keep * len(test)))])
        test, values = test.iloc[kept], values[kept]
        if t.pseudo_hard:
            hard = _hard(data.targets.task, values)
            values = (
                np.eye(values.shape[1], dtype=np.float32)[hard]
                if hard.dtype.kind == "i"
                else hard.reshape(values.shape)
            )
    return test, values


def _hard(task: str, values: np.ndarray) -> np.ndarray:
    """The likeliest labels, shaped as Targets.array gives them."""
    if task == "multiclass":
        return values.argmax(axis=1).astype(np.int64)
    if task == "soft":
        return np.eye(values.shape[1], dtype=np.float32)[values.argmax(axis=1)]
    if task == "regression":
        return values[:, 0]
    hard = (values > 0.5).astype(np.float32)
    return hard if task == "multilabel" else hard[:, 0]


def _preds(frame: pd.DataFrame, names: list[str], source: str) -> pd.DataFrame:
    """Predictions by id, columns in the order of the classes; of a prediction table or a submission."""
    key = "id" if "id" in frame else frame.columns[0]
    columns = [f"pred_{name}" for name in names] or ["pred"]
    if not set(columns) <= set(frame):
        columns = names or [c for c in frame.columns if c != key][:1]
    missing = [column for column in columns if column not in frame]
    if missing or not columns:
        raise UserError(f"{source}: has no column '{missing[0] if missing else 'pred'}'")
    values = frame[columns].apply(pd.to_numeric, errors="coerce")
    if values.isna().any().any():
        row = int(values.isna().any(axis=1).to_numpy().argmax())
        raise UserError(f"{source}: row {row + 2} (id {frame[key].iloc[row]}) holds no probabilities")
    return values.set_axis(frame[key].astype(str), axis=0)
