"""What differs between train and test, and what gives the target away: per column, and all columns together.

Three kinds of sources: the competition's metadata (table, DICOM header), the files (width, bytes, format, order of
the rows), and the cached pixels (brightness, colour). A column that alone separates the classes is either the
answer, filed under another name, or a mark of how the images of each class were collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, ks_2samp

from foldwise import UserError, dicom, metrics, stats
from foldwise.data import folds, index, series
from foldwise.data.columns import typed
from foldwise.data.competition import Competition

BINS, ROWS_A_BIN = 32, 100  # a number's quantile bins, at most, and rows in each, at least; missing is its own bin
CLASSES = 8  # the largest classes that each column is tried on, one against the rest
LEAK = {"table": 0.95, "header": 0.95, "pixels": 0.99, "file": 0.8, "order": 0.75}  # AUC of one column, its lower end
STRONG = 0.75  # of one column of the table or header: not a leak yet, but to be asked about
SPLIT_LEAK = 0.8
FEWEST = 20  # rows of either side below which nothing is claimed
HEADERS = 1500  # DICOM files a split whose whole headers are read
PLACES = ["InstitutionName", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber"]  # not given by default
ADVERSARY = {
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
}
ROUNDS = 120  # at this rate enough for an AUC's second digit, and not tuned: the question is whether, not how well


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Adversary:
    """How well a model tells test rows from training rows: AUC 0.5 is not at all."""

    name: str
    auc: Interval
    columns: pd.Series  # share of the model's gain by column, largest first
    rows: int


# --- columns ----------------------------------------------------------------------------------------------


def columns(
    competition: Competition, table: pd.DataFrame, statistics: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns to check, aligned with the index, and the source of each: table, header, file, order, pixels."""
    named = competition.metadata.columns
    sources: dict[str, str] = {**dict.fromkeys(competition.dicom_tags, "header"), **dict.fromkeys(named, "table")}
    frame = table[index.metadata_columns(competition)].copy()
    width, height = table["width"].astype("float64"), table["height"].astype("float64")
    file_columns: dict[str, Any] = {
        "width": width,
        "height": height,
        "aspect": width / height,
        "bytes": table["bytes"].astype("float64"),
        "format": table["format"],
    }
    for name, values in file_columns.items():
        frame[f"file {name}"], sources[f"file {name}"] = values, "file"
    if competition.train.sources:
        frame["row number"] = table.groupby("split").cumcount().astype("float64")
        frame["number in id"] = pd.to_numeric(table["id"].str.extract(r"(\d{1,15})\D*$")[0]).astype("float64")
        sources |= {"row number": "order", "number in id": "order"}
    if statistics is not None:
        for name in statistics:
            frame[f"pixel {name}"], sources[f"pixel {name}"] = statistics[name], "pixels"
    return frame, sources


def headers(competition: Competition, table: pd.DataFrame, limit: int = HEADERS) -> pd.DataFrame:
    """Every public header field of up to `limit` readable DICOM files a split (indexed like `table`), and PLACES.

    Personal fields stay out; of institution and device only whether they predict is told. Identifiers of single
    images stay out too, for they predict nothing.
    """
    readable = table[(table["format"] == "DICOM") & table["error"].isna() & (table["split"] != "extra")]
    picked = [part.sample(min(limit, len(part)), random_state=0) for _, part in readable.groupby("split")]
    header_of: dict[Any, dict[str, Any]] = {}
    for row, path in (pair for part in picked for pair in part["path"].items()):
        try:
            file = series.header_file(competition.raw() / path, competition.image)
            fields = dicom.read_header(file) | dicom.read_header(file, PLACES)
        except UserError:  # its pixels could be read, and that is what counts
            continue
        header_of[row] = {
            name: "\\".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in fields.items()
            if not name.endswith("InstanceUID")
        }
    frame = pd.DataFrame.from_dict(header_of, orient="index").sort_index()
    return frame.dropna(axis=1, how="all").apply(typed) if len(frame) else frame


def compare(
    competition: Competition, table: pd.DataFrame, fold_of: pd.Series, frame: pd.DataFrame, sources: dict[str, str]
) -> pd.DataFrame:
    """A row per column of `frame`: coverage, drift between train and test, and what it alone predicts.

    frame: rows of the index (any subset), indexed like `table`. fold_of: fold by index label, NaN for rows without.

    column, source, kind        number | category
    coverage_train, _test       share of rows with a value; NaN where there are no rows
    values                      distinct ones
    drift, p                    numbers: the Kolmogorov-Smirnov statistic; categories: the share of rows that would
                                have to change category; 0 to 1. p takes rows as independent, which patients' are not
    target, target_low, target_class     out-of-fold AUC of the target from this column alone (of the best class, one
                                against the rest; R² for regression), the lower end of its 95 % interval, and the class
    split, split_low            the same for 'is this a test row', in five folds of groups
    """
    rows = table.loc[frame.index]
    tasks = _questions(competition, rows)
    part = _split_folds(rows)
    lines = [_compare_column(frame[name], rows, fold_of.reindex(frame.index), tasks, part) for name in frame]
    compared = pd.DataFrame(lines, columns=_COLUMNS)
    compared.insert(0, "column", list(frame))
    compared.insert(1, "source", [sources.get(name, "header") for name in frame])
    compared.loc[compared["source"] == "order", ["drift", "p", "split", "split_low"]] = np.nan  # counted a split
    return compared


_COLUMNS = [
    "kind",
    "coverage_train",
    "coverage_test",
    "values",
    "drift",
    "p",
    "target",
    "target_low",
    "target_class",
    "split",
    "split_low",
]


def _compare_column(
    values: pd.Series, rows: pd.DataFrame, fold_of: pd.Series, tasks: dict[str, pd.Series], part: pd.Series | None
) -> list[Any]:
    train, test = values[rows["split"] == "train"], values[rows["split"] == "test"]
    number = pd.api.types.is_numeric_dtype(values)
    shift, p = _drift(train.dropna(), test.dropna(), number)
    best, name = Interval(np.nan, np.nan, np.nan), ""
    for task, truth in tasks.items():
        told = alone(values, truth, fold_of)
        if not told.value <= best.value:  # also where either is NaN
            best, name = (told, task) if not np.isnan(told.value) else (best, name)
    split = Interval(np.nan, np.nan, np.nan)
    if part is not None:
        split = alone(values, (rows["split"] == "test").astype("float64"), part)
    return [
        "number" if number else "category",
        train.notna().mean(),
        test.notna().mean() if len(test) else np.nan,
        values.nunique(),
        shift,
        p,
        best.value,
        best.low,
        name,
        split.value,
        split.low,
    ]


def _questions(competition: Competition, rows: pd.DataFrame) -> dict[str, pd.Series]:
    """What a column is asked to predict: named 0/1 series (or the number itself), NaN for test rows."""
    if competition.task == "multilabel":
        truth = index.known(rows[competition.truth[:CLASSES]])
        asked = dict(zip(competition.targets, (truth[column] for column in truth), strict=False))
    elif competition.as_classes().task == "multiclass":
        known = rows["target"].notna()
        largest = rows.loc[known, "target"].value_counts().index[:CLASSES]
        asked = {name: (rows["target"] == name).astype("float64").where(known) for name in largest}
    else:
        asked = {"": rows["target"]}
    return asked


def _split_folds(rows: pd.DataFrame) -> pd.Series | None:
    test = (rows["split"] == "test").to_numpy()
    if min(test.sum(), (~test).sum()) < FEWEST:
        return None
    return pd.Series(
        folds.stratify(stats.strata(test, "binary"), rows["group"].to_numpy(), 5, seed=0),
        index=rows.index,
        dtype="float64",
    )


def _drift(train: pd.Series, test: pd.Series, number: bool) -> tuple[float, float]:
    if min(len(train), len(test)) < FEWEST:
        return np.nan, np.nan
    if number:
        tested = ks_2samp(train.to_numpy(float), test.to_numpy(float), method="asymp")
        return float(tested.statistic), float(tested.pvalue)
    counts = pd.DataFrame({"train": train.value_counts(), "test": test.value_counts()}).astype("float64").fillna(0)
    shares = counts / counts.sum()
    distance = float((shares["train"] - shares["test"]).abs().sum() / 2)
    return distance, float(chi2_contingency(counts.to_numpy()).pvalue) if len(counts) > 1 else 1.0


# --- one column alone -------------------------------------------------------------------------------------


def alone(values: pd.Series, truth: pd.Series, fold_of: pd.Series) -> Interval:
    """How well one column alone predicts: each row by the mean truth of its bin in the other folds.

    truth: 0/1 gives an AUC (interval: Hanley & McNeil 1982), anything else R². Rows are compared within their fold
    only: a fold with more positives leaves the others fewer, which would make pooled predictions run the wrong way.
    Rows without truth or fold do not count. NaN where the column says nothing, or too few rows are left.
    """
    nothing = Interval(np.nan, np.nan, np.nan)
    use = (truth.notna() & fold_of.notna()).to_numpy()
    y, fold = truth.to_numpy(float)[use], fold_of.to_numpy(float)[use]
    binary = bool(np.isin(y, (0, 1)).all())
    positives = int(y.sum()) if binary else 0
    if len(y) < 2 * FEWEST or (binary and min(positives, len(y) - positives) < FEWEST // 2):
        return nothing
    bins = _bins(values[use])
    if bins.max() == 0:
        return nothing
    pred = _out_of_fold(bins, y, fold)
    if not binary:
        return _r2(y, pred, fold)
    return _auc_interval(_auc_within(y, pred, fold), positives, len(y) - positives)


def _bins(values: pd.Series) -> np.ndarray:
    """int64 (N,): a number's quantile bin or a category's number; missing is 0 if there are any."""
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        bins = int(np.clip(len(finite) // ROWS_A_BIN, 4, BINS))
        edges = np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1))) if len(finite) else finite
        codes = np.where(np.isnan(numbers), -1, np.searchsorted(edges, numbers, side="right"))
    else:
        codes = pd.factorize(values)[0]
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _out_of_fold(bins: np.ndarray, y: np.ndarray, fold: np.ndarray, weight: float = 5.0) -> np.ndarray:
    """float (N,): the mean of y in the row's bin over the other folds, drawn to the mean of all by `weight` rows."""
    pred = np.empty(len(y))
    for held in np.unique(fold):
        out = fold == held
        mean = y[~out].mean() if (~out).any() else 0.0
        count = np.bincount(bins[~out], minlength=bins.max() + 1)
        total = np.bincount(bins[~out], weights=y[~out], minlength=bins.max() + 1)
        pred[out] = ((total + weight * mean) / (count + weight))[bins[out]]
    return pred


def _auc_within(y: np.ndarray, pred: np.ndarray, fold: np.ndarray) -> float:
    """The mean AUC of the folds, each by its number of pairs of a positive and a negative."""
    parts = [(pred[out & (y == 0)], pred[out & (y == 1)]) for out in (fold == held for held in np.unique(fold))]
    pairs = [len(negatives) * len(positives) for negatives, positives in parts]
    aucs = [metrics.auc_of(*part) if count else 0.0 for part, count in zip(parts, pairs, strict=True)]
    return float(np.dot(aucs, pairs) / sum(pairs)) if sum(pairs) else np.nan


def _auc_interval(auc: float, positives: int, negatives: int) -> Interval:
    if np.isnan(auc):
        return Interval(auc, auc, auc)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    half = 1.96 * np.sqrt(max(variance, 0) / (positives * negatives))
    return Interval(auc, max(0.0, auc - half), min(1.0, auc + half))


def _r2(y: np.ndarray, pred: np.ndarray, fold: np.ndarray) -> Interval:
    """R² of pred (with its own mean a fold, and its own scale) and an interval by Fisher's z."""
    number = np.unique(fold, return_inverse=True)[1]
    y, pred = (values - (np.bincount(number, values) / np.bincount(number))[number] for values in (y, pred))
    if pred.std() == 0 or y.std() == 0:
        return Interval(np.nan, np.nan, np.nan)
    r = float(np.clip(np.corrcoef(y, pred)[0, 1], -0.999999, 0.999999))
    half = 1.96 / np.sqrt(max(len(y) - 3, 1))
    low, high = np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)
    return Interval(max(r, 0.0) ** 2, max(low, 0.0) ** 2, max(high, 0.0) ** 2)


def warnings(compared: pd.DataFrame) -> list[str]:
    """All that is wrong in a table made by `compare`, a line each."""
    return leaks(compared) + shifts(compared)


def leaks(compared: pd.DataFrame) -> list[str]:
    """Columns that give the target away, then those that are suspiciously strong."""
    sure, strong = [], []
    for row in compared.sort_values("target", ascending=False, kind="stable").itertuples():
        what = f"class {row.target_class}" if row.target_class else "the target"
        says = f"{row.column} ({row.source}) alone predicts {what} ({row.target:.3f} out of fold)"
        if row.target_low >= LEAK[str(row.source)]:
            sure.append(f"{says}: a leak, or a mark of how the images were collected")
        elif row.source in {"table", "header"} and row.target >= STRONG and row.target_low >= STRONG - 0.1:
            strong.append(f"{says}: strong; would the host's test rows have it, and from before the diagnosis?")
    return sure + strong


def shifts(compared: pd.DataFrame) -> list[str]:
    """Columns that tell test rows from training rows, or that test rows lack."""
    lines = []
    for row in compared.itertuples():
        if row.split_low >= SPLIT_LEAK:
            lines.append(
                f"{row.column} ({row.source}) alone tells test rows from training rows (AUC {row.split:.3f}); a model "
                "that leans on it may not carry over"
            )
        if row.coverage_train > 0 and row.coverage_test == 0:
            lines.append(f"{row.column} ({row.source}) has no value in any test row; a model must do without it")
    return lines


def unused(compared: pd.DataFrame) -> list[str]:
    """One line on the header fields that no model uses: those that would give target or split away."""
    told = [
        row.column for row in compared.itertuples() if row.target_low >= LEAK["header"] or row.split_low >= SPLIT_LEAK
    ]
    if not told:
        return []
    some = ", ".join(told[:3]) + (", ..." if len(told) > 3 else "")
    return [
        f"{len(told)} header fields that no model uses tell the target or the split ({some}): a mark of how the images "
        "were collected, which their pixels may carry too"
    ]


# --- all columns together ---------------------------------------------------------------------------------


def adversarial(name: str, table: pd.DataFrame, frame: pd.DataFrame) -> Adversary | None:
    """Adversarial validation: LightGBM tells test rows from training rows by `frame`, in five folds of groups.

    The interval is a bootstrap over groups. None where there are no columns or too few rows.
    """
    rows = table.loc[frame.index]
    part = _split_folds(rows)
    x = _encoded(frame)
    if part is None or not x.shape[1]:
        return None
    is_test, groups = (rows["split"] == "test").to_numpy(), rows["group"].to_numpy()
    pred, gains = stats.tell_apart(x.to_numpy(), is_test, part.to_numpy(), ROUNDS, **ADVERSARY)
    draws = stats.bootstrap(metrics.resolve("roc_auc"), is_test, [pred], groups.astype(str), 200)
    auc = Interval(metrics.auc_of(pred[~is_test], pred[is_test]), *stats.percentiles(draws))
    columns = pd.Series(gains / max(gains.sum(), 1e-12), index=x.columns).sort_values(ascending=False)
    return Adversary(name, auc, columns, len(is_test))


def _encoded(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are, categories as their codes by frequency; constant columns left out."""
    encoded = {}
    for name in frame:
        values = frame[name]
        if not pd.api.types.is_numeric_dtype(values):
            order = values.value_counts().index
            values = pd.Series(pd.Categorical(values, categories=order).codes, index=frame.index).replace(-1, np.nan)
        if values.nunique(dropna=False) > 1:
            encoded[name] = values.astype("float64")
    return pd.DataFrame(encoded, index=frame.index)


def shared_groups(table: pd.DataFrame) -> list[str]:
    """Groups that the host put both in train and in test."""
    named = table[(table["group"] != table["id"]) & (table["split"] != "extra")]
    by_split: Sequence[set[str]] = [set(part["group"]) for _, part in named.groupby("split")]
    return sorted(set.intersection(*by_split)) if len(by_split) == 2 else []
