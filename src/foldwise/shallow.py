"""Gradient boosting on metadata: fitted inside each fold, never across."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foldwise import UserError, folds, index, launch
from foldwise.competition import Competition

LIGHTGBM = {
    "learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.8,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "cat_smooth": 20, "max_cat_to_onehot": 8,
}  # fmt: skip
MAX_ROUNDS, PATIENCE = 2000, 100

OBJECTIVES = {"binary": "binary", "multilabel": "binary", "multiclass": "multiclass", "regression": "l2"}


@dataclass(frozen=True)
class Encoder:
    """Metadata columns -> float64 features, as one fold's training rows define them.

    Numbers stay numbers, text becomes the number of its category among the training rows; missing values and
    categories first seen later are NaN, which LightGBM takes as missing.
    """

    numeric: list[str]
    categories: dict[str, list[str]]

    @classmethod
    def fit(cls, rows: pd.DataFrame, columns: list[str]) -> Encoder:
        """Learn the categories of text columns from training rows."""
        numeric = [c for c in columns if pd.api.types.is_numeric_dtype(rows[c])]
        text = [c for c in columns if c not in numeric]
        return cls(numeric, {c: sorted(rows[c].dropna().unique()) for c in text})

    def transform(self, rows: pd.DataFrame) -> np.ndarray:
        """float64 (N, numeric + text columns)."""
        parts = [rows[c].to_numpy(dtype=float, na_value=np.nan) for c in self.numeric]
        for column, known in self.categories.items():
            codes = pd.Categorical(rows[column].astype(object), categories=known).codes.astype(float)
            parts.append(np.where(codes < 0, np.nan, codes))
        return np.column_stack(parts)

    @property
    def names(self) -> list[str]:
        """Feature names in the order of `transform`."""
        return [*self.numeric, *self.categories]

    @property
    def categorical(self) -> list[int]:
        """Positions of the category columns."""
        return list(range(len(self.numeric), len(self.numeric) + len(self.categories)))


@dataclass(frozen=True)
class FoldPrediction:
    """One fold's predictions, float64 (N, outputs) each, and the rounds that were boosted."""

    fold: int
    valid: np.ndarray
    test: np.ndarray
    rounds: list[int]
    importance: dict[str, float]


def metadata_folds(
    competition: Competition, table: pd.DataFrame, fold_table: pd.DataFrame, seed: int = 0,
    params: dict[str, object] | None = None,
) -> list[FoldPrediction]:  # fmt: skip
    """LightGBM on the metadata columns, a model a fold (one thread each, folds side by side).

    The number of rounds comes from early stopping on one inner fold, never on the fold that is predicted; the model
    is then fitted anew on all training rows.
    """
    columns = index.metadata_columns(competition)
    if not columns:
        raise UserError(f"{competition.file}: no metadata columns; name some under `metadata` or `dicom_tags`")
    names = index.classes(competition, table)
    train = folds.rows(table, fold_table)
    empty = [column for column in columns if train[column].isna().all()]
    columns = [column for column in columns if column not in empty]
    if not columns:
        raise UserError(f"{competition.file}: metadata columns {', '.join(empty)} are empty in every training row")
    test = table[table["split"] == "test"]
    target = index.target_array(competition, train, names)
    fold_of, groups = fold_table["fold"].to_numpy(), fold_table["group"].to_numpy()
    settings = {**LIGHTGBM, "objective": OBJECTIVES[competition.task], "seed": seed, **(params or {})}
    if competition.task == "multiclass":
        settings["num_class"] = len(names)

    def one(fold: int) -> FoldPrediction:
        fit = fold_of != fold
        encoder = Encoder.fit(train[fit], columns)
        x, x_test = encoder.transform(train), encoder.transform(test)
        inner = _inner(fold_of, fold, groups, seed)
        outputs = [target] if target.ndim == 1 else list(target.T)
        boosted = [_boost(settings, x[fit], y[fit], inner, encoder) for y in outputs]
        importance = sum(model.feature_importance("gain") for model, _ in boosted)
        nothing = np.zeros((0, max(1, len(names))))
        return FoldPrediction(
            fold, _stack([model.predict(x[~fit]) for model, _ in boosted]),
            _stack([model.predict(x_test) for model, _ in boosted]) if len(x_test) else nothing,
            [rounds for _, rounds in boosted], dict(zip(encoder.names, map(float, importance), strict=True)),
        )  # fmt: skip

    every = sorted(np.unique(fold_of).tolist())
    with ThreadPoolExecutor(min(launch.cores(), len(every))) as pool:
        return list(pool.map(one, every))


def _inner(fold_of: np.ndarray, fold: int, groups: np.ndarray, seed: int) -> np.ndarray:
    """Which of the fold's training rows early stopping watches: the next fold; a fifth of the groups of two folds."""
    fit = fold_of != fold
    others = sorted(set(fold_of[fit].tolist()))
    if len(others) == 1:
        return folds.stratify(np.ones((int(fit.sum()), 1)), groups[fit], 5, seed) == 0
    later = [other for other in others if other > fold]
    return fold_of[fit] == (later or others)[0]


def _boost(settings: dict[str, object], x: np.ndarray, y: np.ndarray, inner: np.ndarray, encoder: Encoder):  # type: ignore[no-untyped-def]
    import lightgbm

    settings = {**settings, "verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}

    def dataset(rows: np.ndarray) -> lightgbm.Dataset:
        return lightgbm.Dataset(
            x[rows],
            y[rows],
            feature_name=[f"f{k}" for k in range(x.shape[1])],  # LightGBM refuses names with brackets or quotes
            categorical_feature=encoder.categorical or "auto",
            free_raw_data=False,
        )

    whole = np.ones(len(x), bool)
    probe = lightgbm.train(
        settings,
        dataset(~inner),
        MAX_ROUNDS,
        valid_sets=[dataset(inner)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    rounds = max(1, probe.best_iteration)
    return lightgbm.train(settings, dataset(whole), rounds), rounds


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    return np.column_stack(parts) if len(parts) > 1 or parts[0].ndim == 1 else parts[0]
