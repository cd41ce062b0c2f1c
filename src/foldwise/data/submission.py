"""The only writer of submissions/: the host's shape, checked row by row before the file gets its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import cli
from foldwise.core.files import locked, replacing, write_csv, write_sealed
from foldwise.core.schema import nearest
from foldwise.data import index, oof, tables, top
from foldwise.data.competition import Competition
from foldwise.data.rows import binary_labels, numbered


def write_submission(competition: Competition, pred: pd.DataFrame, name: str, made_by: dict[str, Any]) -> Path:
    """submissions/<competition>/<name>.csv and .json from a test table (id, pred...), whose ids may come in any order.

    Where several images make a row, ids are either the images' (joined here) or the submission rows'.

    The file has the columns and the row order of the sample submission; nothing is written unless `validate` agrees.
    `made_by` goes into the JSON: runs, weights, scores.
    """
    table_index = index.load_index(competition)
    sample = read_sample(competition, table_index, pred)
    rows = to_rows(competition, pred, table_index)
    frame = shape(competition, rows, sample, table_index)
    folder = competition.submissions()
    path = folder / f"{name}.csv"
    validate(competition, frame, sample, str(path))
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"name": name, "competition": competition.name, "metric": competition.metric, "rows": len(frame)}
    meta |= {"sample": json.loads(sample.head(2).to_json(orient="split", index=False)), **made_by}
    with locked(folder / f".{name}.lock"):
        write_sealed(path.with_suffix(".json"), meta)  # before the CSV: a new CSV never stands beside an old JSON
        write_frame(competition, frame, sample, path)
    return path


def objection(competition: Competition, table_index: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Why step 6 would refuse whatever is predicted of these test rows (an index's), by a rehearsal; None where not."""
    test = table_index[table_index["split"] == "test"]
    if not len(test):
        return None
    train = table_index[(table_index["split"] == "train") & table_index["error"].isna()]
    values = np.tile(index.prior(competition, train, list(names)), (len(test), 1))
    columns = [f"pred_{name}" for name in names] or ["pred"]
    pred = pd.DataFrame(values, columns=columns).assign(id=test["id"].to_numpy())
    try:
        sample = read_sample(competition, table_index, pred)
        validate(
            competition, shape(competition, to_rows(competition, pred, table_index), sample, table_index), sample, ""
        )
    except UserError as error:
        return str(error).removeprefix(": ")
    return None


def write_frame(competition: Competition, frame: pd.DataFrame, sample: pd.DataFrame, path: Path) -> None:
    """A submission's CSV, checked as the host will read it before it gets its name."""
    validate(competition, frame, sample, str(path))
    with replacing(path) as part:
        frame.to_csv(part, index=False, float_format=oof.DIGITS, lineterminator="\n")
        text = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]  # a class may be 'NA'
        validate(competition, tables.read_table(part, text), sample, str(path))


def read_sample(competition: Competition, table_index: pd.DataFrame, pred: pd.DataFrame) -> pd.DataFrame:
    """The host's sample submission, its ids first, as text; made from the test rows where the host gives none.

    A column without a name is an index that somebody saved with it: left out.
    """
    if competition.sample_submission is not None:
        path = competition.raw() / competition.sample_submission
        named = [column for column in tables.header(path) if not re.fullmatch(r"Unnamed: \d+", str(column))]
        key = competition.submission.id or next(iter(named), "")
        if named and key not in named:
            raise UserError(f"{path}: no column '{key}', which `submission.id` names{nearest(key, named)}")
        if len(named) == 1:
            raise UserError(f"{path}: has no column beside '{key}' for the predictions")
        frame = tables.read_table(path, [key])
        return frame[[key, *(column for column in frame if column in named and column != key)]]
    row_ids = table_index.loc[table_index["split"] == "test", "row_id"].drop_duplicates()
    columns, key = oof.pred_columns(pred), competition.submission.id or competition.id
    names = competition.targets[: len(columns)]
    if competition.submission.melted:
        return sample_of(competition, key, row_ids, {"target": 0.0})
    if competition.task == "multiclass" and wants_label(competition):
        return sample_of(competition, key, row_ids, {names[0]: ""})
    if competition.delimited and competition.scorer().decides:
        return sample_of(competition, key, row_ids, {str(competition.target): ""})
    if competition.task == "multiclass":
        names = [name.removeprefix("pred_") for name in columns]
    return sample_of(competition, key, row_ids, dict.fromkeys(names, 0.0))


def sample_of(competition: Competition, key: str, row_ids: Iterable[str], values: Mapping[str, Any]) -> pd.DataFrame:
    """A sample that asks for these rows, each (of a melted submission, each target of it) with the same values."""
    ids = [str(one) for one in row_ids]
    if competition.submission.melted:
        ids = [one.replace("{target}", name) for one in ids for name in competition.targets]
    return pd.DataFrame({key: ids, **{column: [value] * len(ids) for column, value in values.items()}})


def rows_asked(competition: Competition, row_ids: Iterable[str], asked: pd.Series) -> pd.Series:
    """The row_id behind each id of a sample; an id that nobody has stays as it is.

    A sample may repeat ids (the k-th is the k-th row of that name, else the same row again), leave the files' suffix
    out or put one on, and ask for each target by itself (`submission.row_id` with {target}).
    """
    asked, known = asked.astype(str), dict.fromkeys(map(str, row_ids))
    names = {one: one for one in known}
    if competition.submission.melted:
        names = {one.replace("{target}", name): one for one in known for name in competition.targets}
    for spelled in (numbered(asked), asked):
        if spelled.isin(names).all():
            return spelled.map(names)
    mixed = numbered(asked)
    mixed = mixed.where(mixed.isin(names), asked)
    bare = {PurePosixPath(one).stem if PurePosixPath(one).suffix else one: one for one in known}
    if not mixed.isin(names).any() and len(bare) == len(known):
        mixed, names = mixed.map(lambda one: one if one in bare else PurePosixPath(one).stem), bare
        mixed = mixed.where(mixed.isin(names), asked)
    return mixed.map(lambda one: names.get(one, one))


def to_rows(competition: Competition, pred: pd.DataFrame, table_index: pd.DataFrame) -> pd.DataFrame:
    """Predictions a submission row, indexed by row_id: images of one row aggregated; UserError for ids mismatched."""
    test = table_index[table_index["split"] == "test"]
    if competition.aggregates and set(pred["id"]) == set(test["row_id"]):  # joined already, before the blend
        _once("the test predictions: id", pred["id"])
        return pred.set_index("id")[oof.pred_columns(pred)]
    _once("the test predictions: id", pred["id"])
    _same_ids("the test predictions", pred["id"], "the test images", test["id"])
    row_ids = test.set_index("id")["row_id"].reindex(pred["id"]).to_numpy()
    columns = [column for column in pred if column != "id"] if top.is_top(pred) else oof.pred_columns(pred)
    if not competition.aggregates:
        return pred.set_index(row_ids)[columns]
    return pred[columns].groupby(row_ids, sort=False).agg(competition.submission.aggregate)


def shape(
    competition: Competition, rows: pd.DataFrame, sample: pd.DataFrame, table_index: pd.DataFrame
) -> pd.DataFrame:
    """Rows in the sample's order under the sample's columns: probabilities by class name, or labels."""
    id_column, *columns = sample.columns
    keys, fill = rows_asked(competition, rows.index, sample[id_column]), competition.submission.fill
    remedy = f"; correct `sample_submission`, `test` or `submission: row_id` in {competition.file}"
    _same_ids("the test table", pd.Series(rows.index), "the sample submission", keys, remedy)
    for name in fill:
        if name not in columns:
            raise UserError(f"`submission: fill` names '{name}', no column of the sample{nearest(name, columns)}")
    value_columns = [column for column in columns if column not in fill]
    one = rows.shape[1] == 1 or competition.submission.melted or top.is_top(rows)
    if one and len(value_columns) > 1:
        raise _unpredicted(competition, value_columns)
    if competition.submission.melted:
        values = _melted(competition, rows, keys, sample[id_column])[:, None]
    elif wants_label(competition, sample[value_columns]):
        values = _labels(competition, rows.reindex(keys), table_index, sample[value_columns])
    elif len(value_columns) == rows.shape[1] == 1:
        values = rows.reindex(keys).to_numpy()
    else:
        preds = _matching(competition, list(rows.columns), value_columns)
        values = rows.reindex(keys)[preds].to_numpy()
        if _sums_to_one(competition):  # ranks and calibrated classes need not, and hosts ask
            values = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-300)
    values = _within(competition, values)
    cells = {**dict(zip(value_columns, values.T, strict=True)), **fill}
    shaped = pd.DataFrame({id_column: sample[id_column], **{column: cells[column] for column in columns}})
    return shaped.infer_objects()


def _unpredicted(competition: Competition, columns: list[str]) -> UserError:
    """The error of a sample with more columns than are predicted."""
    spare = next((column for column in reversed(columns) if column not in competition.targets), columns[-1])
    return UserError(
        f"{competition.raw() / str(competition.sample_submission)}: columns {', '.join(columns)}, of which one is "
        f"predicted; give the others a value: `submission: {{fill: {{{spare}: 0}}}}`"
    )


def _melted(competition: Competition, rows: pd.DataFrame, keys: pd.Series, ids: pd.Series) -> np.ndarray:
    """(N,) each row's prediction of the target that its id ends in."""
    at = {name: k for k, name in enumerate(competition.targets)}
    told = {key.replace("{target}", name): k for key in set(keys) for name, k in at.items()}
    return rows.reindex(keys).to_numpy()[np.arange(len(keys)), [told[str(one)] for one in ids]]


def _sums_to_one(competition: Competition) -> bool:
    return competition.task == "soft" or (competition.task == "multiclass" and competition.scorer().probability)


def _within(competition: Competition, values: np.ndarray) -> np.ndarray:
    """The values within the host's bounds; how many were not is said."""
    low, high = competition.submission.min, competition.submission.max
    if low is None and high is None:
        return values
    kept = np.clip(values.astype(float), low, high)
    moved = int((kept != values).sum())
    if moved:
        cli.note(f"{moved} of {values.size} predictions lie outside {low} to {high} and become the bound")
    return kept


def wants_label(competition: Competition, shown: pd.DataFrame | None = None) -> bool:
    """Whether classes are wanted rather than numbers: as the competition says, the sample shows, or the metric implies.

    shown: the sample's value columns.
    """
    if competition.submission.prediction != "auto":
        return competition.submission.prediction == "label"
    kinds = set() if shown is None else {_kind(shown[column]) for column in shown}
    if kinds & {"text", "true or false"}:
        return True
    metric = competition.scorer()
    if shown is not None and shown.shape[1] > 1:  # a column a label; probabilities where the sample shows fractions
        return competition.task == "multilabel" and metric.decides and bool((shown % 1 == 0).all(axis=None))
    return metric.decides or metric.name.startswith("map@")


def validate(competition: Competition, frame: pd.DataFrame, sample: pd.DataFrame, where: str) -> None:
    """UserError for what a host rejects: columns, ids, doubles, order, NaN, values out of range."""
    if list(frame.columns) != list(sample.columns):
        raise UserError(f"{where}: columns are {', '.join(frame.columns)}, the sample's {', '.join(sample.columns)}")
    id_column, *value_columns = sample.columns
    ids, asked = frame[id_column].astype(str), sample[id_column].astype(str)
    if not asked.duplicated().any():
        _once(f"{where}: {id_column}", ids)
    _same_ids(where, ids, "the sample submission", asked)
    if ids.tolist() != asked.tolist():
        raise UserError(f"{where}: rows are not in the sample's order")
    value_columns = [column for column in value_columns if column not in competition.submission.fill]
    if _sums_to_one(competition) and len(value_columns) > 1:
        sums = frame[value_columns].sum(axis=1)
        if (odd := (sums - 1).abs() > 1e-6).any():
            raise UserError(f"{where}: {ids[odd].iloc[0]} sums to {sums[odd].iloc[0]:.9g}, not to 1")
    for column in value_columns:
        _validate_values(competition, frame[column], ids, f"{where}: {column}")
        _validate_kind(competition, frame[column], sample[column], f"{where}: {column}")


def _validate_kind(competition: Competition, values: pd.Series, shown: pd.Series, where: str) -> None:
    """UserError where the sample shows another kind of value: text, numbers, true or false."""
    ours, theirs = _kind(values), _kind(shown)
    classes = competition.task == "multiclass"  # whose sample may hold a placeholder, if the competition says so
    free = classes and (competition.submission.prediction == "label" or _top(competition) > 1)
    free = free or (competition.delimited and not _sums_to_one(competition))
    if ours != theirs and theirs and not free:
        odd = next((value for value in values if _kind(pd.Series([value])) == ours), "")
        raise UserError(
            f"{where}: holds {ours or 'nothing'} such as '{odd}', the sample {theirs} such as "
            f"'{shown.dropna().iloc[0]}'; see `submission: prediction` and `positive` of the competition"
        )


def _kind(values: pd.Series) -> str:
    """'numbers', 'true or false', or 'text', as a reader of the file takes it; '' of an empty column."""
    words = {word for value in values.dropna().unique() for word in str(value).split()}
    if not words:
        return ""
    if words <= {"True", "False", "true", "false", "TRUE", "FALSE"}:
        return "true or false"
    return "numbers" if pd.to_numeric(pd.Series(list(words)), errors="coerce").notna().all() else "text"


def _validate_values(competition: Competition, values: pd.Series, ids: pd.Series, where: str) -> None:
    if values.isna().any():
        raise UserError(f"{where} of {ids[values.isna()].iloc[0]} is empty")
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        return  # classes
    numbers = values.to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} of {ids.iloc[int(np.flatnonzero(~np.isfinite(numbers))[0])]} is not finite")
    bounded, shape = competition.task != "regression" and not wants_label(competition), competition.submission
    low, high = (0.0, 1.0) if bounded else (-np.inf, np.inf)
    low, high = low if shape.min is None else shape.min, high if shape.max is None else shape.max
    if (outside := (numbers < low) | (numbers > high)).any():
        row = int(np.flatnonzero(outside)[0])
        raise UserError(f"{where} of {ids.iloc[row]} is {numbers[row]:g}, outside {low:g}..{high:g}")


def _labels(competition: Competition, rows: pd.DataFrame, table_index: pd.DataFrame, shown: pd.DataFrame) -> np.ndarray:
    """object (N, columns of the sample): classes in the sample's spelling."""
    if top.is_top(rows):
        names = np.array(index.classes(competition, table_index), dtype=object)[top.split(top.array(rows))[0]]
        return _in_one_cell(names[:, : max(1, _top(competition))])
    values = rows.to_numpy()
    if competition.task == "binary":
        return _binary_labels(competition, shown.iloc[:, 0])[(values >= 0.5).astype(int)]
    if competition.task == "regression":
        known = table_index.loc[table_index["split"] == "train", "target"]
        return np.clip(np.rint(values), known.min(), known.max()).astype(int)
    if shown.shape[1] > 1:
        ordered = rows[_matching(competition, list(rows.columns), list(shown))].to_numpy()
        multilabel = competition.task == "multilabel"
        hard = ordered >= 0.5 if multilabel else ordered.argmax(axis=1)[:, None] == np.arange(shown.shape[1])
        return hard if _kind(shown.iloc[:, 0]) == "true or false" else hard.astype(int)
    names = np.array([column.removeprefix("pred_") for column in rows.columns], dtype=object)
    if competition.submission.prediction == "auto":
        _check_vocabulary(competition, shown.iloc[:, 0], set(names))
    return _listed(competition, values, names)[:, None]


def _binary_labels(competition: Competition, shown: pd.Series) -> np.ndarray:
    """object (2,): what to write for 0 and 1, of the kind that the sample shows."""
    kind, labels = _kind(shown), binary_labels(competition)
    if kind == "text":
        _check_vocabulary(competition, shown, set(labels), every=True)
        return np.array(labels, dtype=object)
    if kind == "true or false":
        return np.array([True, False] if labels[1].casefold() == "false" else [False, True], dtype=object)
    numbers = pd.to_numeric(pd.Series(labels), errors="coerce")
    return (pd.Series([0, 1]) if numbers.isna().any() else numbers).to_numpy(dtype=object)


def _check_vocabulary(competition: Competition, shown: pd.Series, known: set[str], every: bool = False) -> None:
    """UserError where none of the sample's labels (with `every`, not each) is known: a placeholder, or a mistake."""
    values = shown.dropna().astype(str).unique()
    strange = [value for value in values if value not in known and not known & set(value.split())]
    if _kind(shown) == "text" and (len(strange) == len(values) or (every and strange)):
        hint = "" if every else "; if it only holds the place, set `submission: {prediction: label}`"
        raise UserError(
            f"{competition.raw() / str(competition.sample_submission)}: '{strange[0]}' is none of the labels "
            f"{', '.join(sorted(known)[:8])}{hint}"
        )


def _listed(competition: Competition, values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """object (N,): one class a row; of MAP@k the likeliest, of several labels those that hold, in one cell."""
    first, separator = _top(competition), competition.labels.separator
    if competition.task == "multilabel" and not first:
        return np.array([separator.join(names[row >= 0.5]) for row in values], dtype=object)
    order = np.argsort(-values, axis=1, kind="stable")[:, : max(1, first)]
    return _in_one_cell(names[order])[:, 0]


def _in_one_cell(names: np.ndarray) -> np.ndarray:
    return np.array([[" ".join(row)] for row in names], dtype=object)


def _top(competition: Competition) -> int:
    """How many names a cell holds, likeliest first, as the metric or the competition says; 0 where neither does."""
    return competition.submission.top or competition.scorer().top or 0


def _matching(competition: Competition, preds: list[str], columns: list[str]) -> list[str]:
    """pred_<class> for each of the sample's columns, by name."""
    if preds == ["pred"] and len(columns) == 1:
        return preds
    missing = [column for column in columns if f"pred_{column}" not in preds]
    if missing or (len(columns) != len(preds) and competition.task != "multilabel"):
        names = ", ".join(name.removeprefix("pred_") for name in preds)
        raise UserError(
            f"{competition.raw() / str(competition.sample_submission)}: columns {', '.join(columns)} do not "
            f"match the predicted classes {names}; what nothing predicts stands under `submission: fill`"
        )
    return [f"pred_{column}" for column in columns]


def _once(what: str, ids: pd.Series) -> None:
    if ids.duplicated().any():
        raise UserError(f"{what} '{ids[ids.duplicated()].iloc[0]}' stands there twice")


def _same_ids(what: str, ids: pd.Series, other: str, expected: pd.Series, remedy: str = "") -> None:
    ids, expected = ids.astype(str), expected.astype(str)
    missing, extra = expected[~expected.isin(set(ids))], ids[~ids.isin(set(expected))]
    if len(missing):
        beside = f", and {other} none for {_first(extra)}" if len(extra) else ""
        raise UserError(f"{what}: no row for {_first(missing)} of {other}{beside}{remedy}")
    if len(extra):
        raise UserError(f"{what}: {_first(extra)} is not in {other}{remedy}")


def _first(ids: pd.Series) -> str:
    return f"'{ids.iloc[0]}'" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")


LOG_COLUMNS = [
    "when",
    "competition",
    "name",
    "method",
    "runs",
    "metric",
    "in_sample",
    "nested",
    "low",
    "high",
    "public",
    "private",
]


def log_path(competition: Competition) -> Path:
    """One log for all competitions, beside their folders."""
    return competition.submissions().parent / "log.csv"


def read_log(competition: Competition) -> pd.DataFrame:
    """The log, empty where there is none."""
    path = log_path(competition)
    if not path.exists():
        return pd.DataFrame(columns=LOG_COLUMNS)
    try:
        log = pd.read_csv(path, dtype={"competition": str, "name": str})
    except ValueError as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from None
    missing = [column for column in LOG_COLUMNS if column not in log]
    if missing:
        raise UserError(f"{path}: lacks column {missing[0]}; mend it, or move it away to start a new one")
    return log


def log_submission(competition: Competition, name: str, meta: dict[str, Any]) -> None:
    """A line for a submission just written; one of that name before it is replaced, as its file is, unless it has a
    leaderboard's score."""
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "competition": competition.name,
        "name": name,
        "method": f"{meta['method']}:{meta['space']}",
        "runs": " ".join(row["run"] for row in meta["runs"]),
        "metric": meta["metric"],
        "in_sample": meta["in_sample_score"],
        "nested": meta["nested_score"],
        "low": meta["interval_95"][0],
        "high": meta["interval_95"][1],
        "public": None,
        "private": None,
    }
    with _writing(competition):
        try:
            log = read_log(competition)
        except UserError as error:  # a log is no reason to lose a submission
            log_path(competition).replace(log_path(competition).with_suffix(".csv.damaged"))
            cli.note(f"warning: {error}; kept as log.csv.damaged, and a new one begun")
            log = read_log(competition)
        mine = (log["competition"] == competition.name) & (log["name"] == name) & log["public"].isna()
        lines = [*log[~mine].to_dict("records"), line]
        write_csv(log_path(competition), pd.DataFrame(lines, columns=LOG_COLUMNS))


def log_leaderboard(competition: Competition, name: str, scores: Sequence[float]) -> pd.DataFrame:
    """Public (and private) score of a submission; the competition's lines that have a public score come back."""
    if len(scores) > 2:
        raise UserError(f"--lb takes a public and a private score, found {len(scores)} numbers")
    with _writing(competition):
        log = read_log(competition)
        mine = (log["competition"] == competition.name) & (log["name"] == name)
        if not mine.any():
            known = nearest(name, log.loc[log["competition"] == competition.name, "name"])
            raise UserError(f"{log_path(competition)}: no submission '{name}' of {competition.name}{known}")
        log = log.astype({"public": float, "private": float})
        for column, value in zip(("public", "private"), scores, strict=False):
            log.loc[log.index[mine][-1], column] = value  # earlier ones of that name had theirs
        write_csv(log_path(competition), log)
    return scored(log, competition)


def _writing(competition: Competition) -> AbstractContextManager[None]:
    """The log is one file for all: read and written by one process at a time."""
    folder = log_path(competition).parent
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder / ".log.lock")


def scored(log: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """This competition's lines with a nested and a public score."""
    mine = log[log["competition"] == competition.name]
    return mine[mine["public"].notna() & mine["nested"].notna()]
