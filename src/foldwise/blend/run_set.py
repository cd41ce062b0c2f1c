"""Runs lined up for blending: read, checked against the folds, joined by id, as arrays.

A run whose ids or folds are others than the competition's is refused by name, with the rows that differ. A run that
lacks whole folds is taken, and the rows that every run covers are the ones that weights are fitted on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import UserError, metrics
from foldwise.blend.fit import make_folds
from foldwise.blend.spaces import PLACES
from foldwise.data import folds, index, oof, top
from foldwise.data.competition import Competition
from foldwise.data.runs import (
    Run,
    RunInfo,
    finished_folds,
    list_runs,
    load_run,
    mean_test,
    read_folds,
    read_run_info,
    write_run_info,
)
from foldwise.data.tables import read_table

Array = NDArray[Any]


@dataclass(frozen=True)
class RunSet:
    """preds: (M, N) or (M, N, C) of the rows that all runs cover. target: (N,) or (N, C). tests: (M, T[, C]).

    tests_by_one: as tests, but each row predicted by one fold's model, drawn at random, as an OOF row is: what the
    OOF can fairly be compared with. A run without tables a fold has its means there.

    columns: the prediction columns' names. families: (model, image size) by run. coverage: rows by run and fold.
    unchecked: runs whose tables don't say on which folds they were made. one_fold: the only fold that all runs cover;
    `folds` are then parts of it, to be blended on. parents: the runs that a run of step 03 --oof was made of.
    Where several images make a submission row, N and T count submission rows: images are joined before they are
    blended, in OOF and test alike.

    slots: of many classes (data.top), int64 (T, U): which class each column of a test row speaks of; the columns of
    `preds` are a row's own likeliest classes likewise, `target` is the true one's place among them, and the last
    column is what all other classes share.
    """

    names: tuple[str, ...]
    preds: Array
    target: Array
    folds: Array
    groups: Array
    tests: Array
    test_ids: Array
    columns: list[str]
    families: list[tuple[str, str]]
    coverage: dict[str, dict[str, int]] = field(default_factory=dict)
    rows_all: int = 0
    tests_by_one: Array | None = None
    unchecked: tuple[str, ...] = ()
    one_fold: int | None = None
    parents: dict[str, list[str]] = field(default_factory=dict)
    slots: Array | None = None

    def judged_by(self, competition: Competition) -> tuple[metrics.Metric, str]:
        """The metric and the task of `target` and `preds`."""
        if self.slots is None:
            return competition.scorer(), competition.task
        return top.of_slots(competition.scorer()), PLACES


def gather_runs(
    competition: Competition,
    names: Sequence[str] = (),
    foreign: Sequence[tuple[str, str, str]] = (),
    rename: Mapping[str, str] | None = None,
) -> RunSet:
    """The runs of those names (all finished ones where none is given) and foreign (name, OOF file, test file), which
    are kept as runs of that name.

    rename: foreign column -> ours (id, fold, target, pred, pred_<class>).
    Raises UserError where there is nothing to blend, and for rows, columns, folds or truth that do not match.
    """
    strange = {name for name, _, _ in foreign}
    names = names or [name for name in list_runs(competition) if name not in strange]
    if not names and not foreign:
        raise UserError(f"{competition.runs()}: no runs to blend; make one with python src/02_train.py --fold all")
    runs = [_load(competition, name) for name in names]
    strangers = [_foreign(competition, name, Path(a), Path(b), rename or {}) for name, a, b in foreign]
    runs += strangers
    twice = [run.name for i, run in enumerate(runs) if run.name in {other.name for other in runs[:i]}]
    if twice:
        raise UserError(f"run '{twice[0]}' is given twice")
    table = index.load_index(competition)
    joined = _checked(competition, runs, table)
    for run in strangers:
        _keep(competition, run, table)
    if joined.one_fold is not None:  # no model of it saw any of these rows: weights are judged on parts of the fold
        joined = replace(joined, folds=make_folds(joined.target, competition.task, joined.groups, 0))
    return joined


def _keep(competition: Competition, run: Run, table: pd.DataFrame) -> None:
    """A foreign run as one of the competition's: its tables with fold and truth, and a run.json."""
    tests = table.loc[table["split"] == "test", "id"]
    mismatched = sorted(set(tests) ^ set(run.test["id"]))
    if mismatched:
        raise UserError(
            f"run '{run.name}': its test table and the test rows differ in {len(mismatched)} ids, such as "
            f"'{mismatched[0]}'"
        )
    fold_table = folds.load_folds(competition)
    rows = fold_table[fold_table["id"].isin(run.oof["id"])]
    known = table[table["split"] == "train"].set_index("id").loc[rows["id"], competition.truth].reset_index()
    pred = run.oof.set_index("id").loc[rows["id"], oof.pred_columns(run.oof)].reset_index(drop=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    oof.write_table(
        pd.concat([known[["id"]], rows[["fold"]].reset_index(drop=True), known[competition.truth], pred], axis=1),
        run.folder / "oof.csv",
    )
    oof.write_table(run.test, run.folder / "test.csv")
    done = sorted(int(fold) for fold in rows["fold"].unique())
    config = {"foreign": True, "unchecked": "fold" not in run.oof}
    named = {"run": run.name, "competition": competition.name, "task": competition.task, "metric": competition.metric}
    wanted = sorted(int(fold) for fold in fold_table["fold"].unique())
    info = RunInfo(**named, config=config, folds_hash=folds.digest(fold_table), folds_done=done, folds_wanted=wanted)
    write_run_info(run.folder, info)


def look(competition: Competition, name: str) -> RunSet:
    """One run by itself, to look at and not to blend: one finished fold will do, and so will a competition without
    test rows. UserError says what is wrong with the run."""
    table = index.load_index(competition)
    run = _load(competition, name, bool((table["split"] == "test").any()))
    return _checked(competition, [run], table)


def _checked(competition: Competition, runs: list[Run], table: pd.DataFrame) -> RunSet:
    train = table.loc[table["split"] == "train", ["id", "row_id", *competition.truth]]
    rows = folds.load_folds(competition).merge(train, on="id")
    classes = index.classes(competition, table)
    if competition.task == "multiclass" and len(classes) > top.MANY:
        for run in runs:
            _check_top(run, classes)
            _check_rows(run, rows, competition)
        return _line_up_many(competition, runs, rows, classes)
    columns = [f"pred_{name}" for name in classes] or ["pred"]
    for run in runs:
        _check_columns(run, columns)
        _check_rows(run, rows, competition)
    return _line_up(competition, runs, rows, table, columns)


def _load(competition: Competition, name: str, tests: bool = True) -> Run:
    """A run, or what there is of an unfinished one."""
    folder = competition.runs() / name
    done = finished_folds(folder) if folder.is_dir() and not (folder / "oof.csv").exists() else []
    if not done:
        return load_run(competition, name, tests)
    parts = read_folds(folder, done, folds.load_folds(competition))
    return Run(name, folder, pd.concat(parts, ignore_index=True), mean_test(folder, done), read_run_info(folder))


def _foreign(competition: Competition, name: str, oof_file: Path, test_file: Path, rename: Mapping[str, str]) -> Run:
    folder = competition.runs() / name
    if (folder / "run.json").exists() and not read_run_info(folder).config.get("foreign"):
        raise UserError(f"--foreign {name}: {folder} is a run of your own; give the foreign one another name")
    tables = []
    for path in (oof_file, test_file):
        ids = [column for column in ("id", *(theirs for theirs, ours in rename.items() if ours == "id"))]
        frame = read_table(path, ids).rename(columns=dict(rename))
        with tempfile.TemporaryDirectory() as tmp:  # read as any run is, so that the same checks hold
            copy = Path(tmp) / "table.csv"
            frame.to_csv(copy, index=False)
            try:
                tables.append(oof.read_table(copy))
            except UserError as error:
                hint = "" if rename else "; map its columns with --columns theirs=ours"
                raise UserError(str(error).replace(str(copy), str(path)) + hint) from None
    return Run(name, folder, tables[0], tables[1])


def hand_weights(pairs: Sequence[str]) -> dict[str, float]:
    """['image=0.6', 'svm=0.4'] as a mapping; UserError for anything else."""
    weights = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        if name in weights:
            raise UserError(f"--weights {pair}: '{name}' has a weight already")
        try:
            weights[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"--weights {pair}: expected RUN=WEIGHT, such as image=0.6")
    return weights


def renames(pairs: Sequence[str]) -> dict[str, str]:
    """['image_name=id', ...] as a mapping; UserError for anything else."""
    for pair in pairs:
        if pair.count("=") != 1 or pair.startswith("=") or pair.endswith("="):
            raise UserError(f"--columns {pair}: expected THEIRS=OURS, such as image_name=id")
    return dict(pair.split("=") for pair in pairs)


# --- checks -------------------------------------------------------------------------------------------------


def _check_columns(run: Run, columns: list[str]) -> None:
    for where, frame in (("oof", run.oof), ("test", run.test)):
        present = oof.pred_columns(frame)
        if set(present) == set(columns):
            continue
        lacking = [column for column in columns if column not in present]
        more = [column for column in present if column not in columns]
        what = "; ".join(
            f"{word} {', '.join(some[:5])}{', ...' if len(some) > 5 else ''}"
            for word, some in (("lacks", lacking), ("has besides", more))
            if some
        )
        raise UserError(f"run '{run.name}': {where} columns are not the competition's: {what}")


def _check_top(run: Run, classes: list[str]) -> None:
    """UserError where a run's classes of many are numbered otherwise than the index's today."""
    for where, frame in (("oof", run.oof), ("test", run.test)):
        if not top.is_top(frame):
            raise UserError(
                f"run '{run.name}': its {where} table has no column class_top1, as {len(classes)} classes need"
            )
    named = np.array(classes, dtype=object)[run.oof["target_code"].to_numpy()]
    other = np.flatnonzero(named != run.oof["target"].astype(str).to_numpy())
    if len(other):
        then, number = run.oof["target"].iloc[other[0]], run.oof["target_code"].iloc[other[0]]
        raise UserError(
            f"run '{run.name}': its class {number} is '{then}', here '{named[other[0]]}'; the classes have changed, "
            "train it anew"
        )


def _check_rows(run: Run, rows: pd.DataFrame, competition: Competition) -> None:
    known = rows.set_index("id")
    strange = run.oof.loc[~run.oof["id"].isin(known.index), "id"]
    if len(strange):
        raise UserError(f"run '{run.name}': {_some(strange)} not in {competition.derived() / 'folds.csv'}; drop it")
    mine = run.oof.set_index("id")
    here = known.loc[mine.index]
    if "fold" in mine:
        moved = mine.index[mine["fold"].to_numpy() != here["fold"].to_numpy()]
        if len(moved):
            first = f"'{moved[0]}' is in fold {mine['fold'][moved[0]]} there, in fold {here['fold'][moved[0]]} here"
            raise UserError(
                f"run '{run.name}': made on other folds, {len(moved)} of {len(mine)} rows differ ({first}); "
                "its scores would leak, drop it or run it again"
            )
    for column in competition.truth:
        if column in mine:
            _check_truth(run.name, column, mine[column], here[column])
    missing = known.loc[~known.index.isin(mine.index)]
    counts = missing["fold"].value_counts()
    torn = [k for k, n in counts.items() if n < (known["fold"] == k).sum()]
    if torn:
        ids = pd.Series(missing.index[missing["fold"] == torn[0]])
        raise UserError(
            f"run '{run.name}': fold {torn[0]} lacks {len(ids)} of its rows, such as id '{ids.iloc[0]}'; only "
            "whole folds may be missing"
        )


def _check_truth(name: str, column: str, theirs: pd.Series, ours: pd.Series) -> None:
    a, b = pd.to_numeric(theirs, errors="coerce"), pd.to_numeric(ours, errors="coerce")
    text = (a.isna() | b.isna()).to_numpy()
    near = np.isclose(a.to_numpy(dtype=float), b.to_numpy(dtype=float), rtol=1e-6)
    equal = np.where(text, theirs.astype(str).to_numpy() == ours.astype(str).to_numpy(), near)
    equal |= theirs.isna().to_numpy() & ours.isna().to_numpy()  # labels that nobody knows
    if not equal.all():
        at = int(np.flatnonzero(~equal)[0])
        raise UserError(
            f"run '{name}': {column} differs from the index in {int((~equal).sum())} rows, the first "
            f"'{theirs.index[at]}': {theirs.iloc[at]} there, {ours.iloc[at]} here"
        )


def _some(ids: pd.Series) -> str:
    more = f" and {len(ids) - 1} more are" if len(ids) > 1 else " is"
    return f"id '{ids.iloc[0]}'{more}"


# --- joining ------------------------------------------------------------------------------------------------


def _line_up(
    competition: Competition, runs: list[Run], rows: pd.DataFrame, table: pd.DataFrame, columns: list[str]
) -> RunSet:
    indexed = [run.oof.set_index("id")[columns] for run in runs]
    used = _covered(runs, rows).reset_index(drop=True)
    coverage = {
        run.name: {str(k): int(n) for k, n in part.groupby("fold").size().items()}
        for run, part in ((run, rows[rows["id"].isin(run.oof["id"])]) for run in runs)
    }
    preds = np.stack([part.loc[used["id"]].to_numpy(dtype=np.float64) for part in indexed])
    tests, test_ids = _tests(runs, columns)
    single = np.stack([_by_one_fold(run, test_ids, columns, mean) for run, mean in zip(runs, tests, strict=True)])
    target = index.target_array(competition, used, index.classes(competition, table))
    fold, group = used["fold"].to_numpy(), used["group"].astype(str).to_numpy()
    total = len(rows)
    if competition.aggregates:
        codes, first = _rows_of(used["row_id"])
        preds = np.stack([_aggregate(run, codes, competition.submission.aggregate) for run in preds])
        how = "mean" if competition.task == "soft" else "max"
        target = _aggregate(target.reshape(len(used), -1), codes, how).reshape(-1, *target.shape[1:])
        fold, group, total = fold[first], group[first], rows["row_id"].nunique()
        single, _ = join_tests(competition, single, test_ids, table)
        tests, test_ids = join_tests(competition, tests, test_ids, table)
    one_fold = int(fold[0]) if len(np.unique(fold)) == 1 else None
    if columns == ["pred"]:
        preds, tests, single = preds[:, :, 0], tests[:, :, 0], single[:, :, 0]
    return RunSet(
        tuple(run.name for run in runs),
        preds,
        target,
        fold,
        group,
        tests,
        test_ids,
        columns,
        [family(run) for run in runs],
        coverage,
        total,
        single,
        tuple(run.name for run in runs if "fold" not in run.oof or run.info.config.get("unchecked")),
        one_fold,
        {run.name: [str(name) for name in run.info.config.get("oof") or []] for run in runs},
    )


BLENDED = (20, 100_000)  # of many classes: so many of each run's, and so many training rows, are blended on


def _line_up_many(competition: Competition, runs: list[Run], rows: pd.DataFrame, classes: list[str]) -> RunSet:
    """Runs of many classes, in the places of each row's likeliest; on a sample of the training rows where they are
    more than weights need."""
    used, (k, most) = _covered(runs, rows), BLENDED
    used = used.sample(min(most, len(used)), random_state=0).sort_index().reset_index(drop=True)
    truth = index.target_array(competition, used, classes)
    ids = runs[0].test["id"]
    _tests(runs, ["pred_rest"])
    slots, preds = top.merge([_narrow(run.oof, used["id"], k) for run in runs], truth)
    test_slots, tests = top.merge([_narrow(run.test, ids, k) for run in runs])
    width = max(slots.shape[1], test_slots.shape[1])
    fold = used["fold"].to_numpy()
    return RunSet(
        tuple(run.name for run in runs),
        _shared(preds, width),
        top.place(slots, truth),
        fold,
        used["group"].astype(str).to_numpy(),
        _shared(tests, width),
        ids.to_numpy(),
        [f"pred_{number}" for number in range(1, width + 1)] + ["pred_others"],
        [family(run) for run in runs],
        {run.name: {str(k): int(n) for k, n in run.oof.groupby("fold").size().items()} for run in runs},
        len(rows),
        None,
        (),
        int(fold[0]) if len(np.unique(fold)) == 1 else None,
        slots=np.pad(test_slots, ((0, 0), (0, width - test_slots.shape[1])), constant_values=-1),
    )


def _covered(runs: list[Run], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that every run has."""
    used = rows[np.logical_and.reduce([rows["id"].isin(run.oof["id"]).to_numpy() for run in runs])]
    if not len(used):
        raise UserError(f"{', '.join(run.name for run in runs)}: no fold is covered by every run; --runs takes fewer")
    return used


def _narrow(table: pd.DataFrame, ids: pd.Series, k: int) -> Array:
    return top.narrowed(top.array(table.set_index("id").loc[ids]), k)


def _shared(said: Array, width: int) -> Array:
    """float64 (M, N, width + 1): the places filled up, and what all other classes share."""
    padded = np.pad(said.astype(np.float64), ((0, 0), (0, 0), (0, width - said.shape[2])))
    others = np.clip(1 - padded.sum(axis=2, keepdims=True), 0, 1)
    return np.concatenate([padded, others], axis=2)


def join_tests(competition: Competition, tests: Array, ids: Array, table: pd.DataFrame) -> tuple[Array, Array]:
    """Predictions of images (M, T, C) joined to those of submission rows, and these rows' ids."""
    row_of = table[table["split"] == "test"].set_index("id")["row_id"].reindex(ids)
    if row_of.isna().any():
        raise UserError(f"the runs' test tables: id '{ids[row_of.isna()][0]}' is no test image of {competition.name}")
    codes, first = _rows_of(row_of)
    how = competition.submission.aggregate
    return np.stack([_aggregate(run, codes, how) for run in tests]), row_of.to_numpy()[first]


def _rows_of(row_id: pd.Series) -> tuple[Array, Array]:
    """The submission row's number of each image, and each row's first image."""
    _, first, codes = np.unique(row_id.astype(str).to_numpy(), return_index=True, return_inverse=True)
    return codes, first


def _aggregate(values: Array, codes: Array, how: str) -> Array:
    return pd.DataFrame(values).groupby(codes).agg(how).to_numpy()


def _tests(runs: list[Run], columns: list[str]) -> tuple[Array, Array]:
    ids = runs[0].test["id"]
    for run in runs[1:]:
        mismatched = sorted(set(ids) ^ set(run.test["id"]))
        if mismatched:
            where = "lacks" if mismatched[0] in set(ids) else "alone has"
            raise UserError(
                f"run '{run.name}': its test table differs from '{runs[0].name}' in {len(mismatched)} ids; it {where} "
                f"'{mismatched[0]}'; predict anew with the one that is older than the test table: 05_predict.py --run "
                "of a network, else the step that made it"
            )
    arrays = [run.test.set_index("id").loc[ids, columns].to_numpy(dtype=np.float64) for run in runs]
    return np.stack(arrays), ids.to_numpy()


def _by_one_fold(run: Run, ids: Array, columns: list[str], mean: Array) -> Array:
    tables = [oof.read_table(path).set_index("id") for path in sorted(run.folder.glob("fold*_test.csv"))]
    if not tables or any(set(ids) != set(table.index) for table in tables):
        return mean
    values = np.stack([table.loc[ids, columns].to_numpy(dtype=np.float64) for table in tables])
    return values[np.random.default_rng(0).integers(len(tables), size=len(ids)), np.arange(len(ids))]


def family(run: Run) -> tuple[str, str]:
    """(model, image size) from run.json; a run that does not say is a family of its own."""
    config = run.info.config
    model = config.get("model", run.name)
    model = model.get("name", run.name) if isinstance(model, dict) else model
    return str(model), str(config.get("image_size", ""))
