"""Models on columns, one a fold: early stopping, seeds and the search for settings all happen inside the fold.

The rows of fold K are predicted by models that were encoded, stopped, tuned and fitted without them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object
from threadpoolctl import threadpool_limits

from foldwise import UserError, metrics, stats
from foldwise.core import parallel
from foldwise.core.pieces import Piece
from foldwise.core.saved import read_saved, write_saved
from foldwise.data import folds, index
from foldwise.data.competition import Competition, Task
from foldwise.data.encoder import Codes, Components, Encoder, MeanTarget, Numbers, Rows
from foldwise.data.runs import RunInfo
from foldwise.tabular import learners
from foldwise.tabular.features import Inputs
from foldwise.tabular.learners import Data, Fitted, Learner, Settings

UNWATCHED = 100  # rounds where the watched rows hold one class only and cannot tell when to stop
FEWEST = 0.05  # share of the rows that early stopping must at least watch, or chance says when to stop
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear model, where neither given nor searched
INNER = 4  # folds of a search, at most: the usual five folds less the one held out


@dataclass(frozen=True)
class Plan:
    """How to fit. minutes: time for the search of settings, all folds together; trials: at most so many a fold."""

    learner: Learner
    settings: Settings
    seed: int = 0
    seeds: int = 1
    target_encode: Sequence[str] = ()
    components: int = 16
    minutes: float = 0.0
    trials: int | None = None
    negatives: float | None = None  # so many negatives a positive, others for each seed; None: all


@dataclass(frozen=True)
class Model:
    """A fold's models by target and seed, and the encoder of what they look at: predicts any rows."""

    encoder: Encoder
    models: list[list[Fitted]]
    outputs: int

    def predict(self, rows: Rows) -> np.ndarray:
        """float64 (N, outputs)."""
        return _predicted(self.models, self.encoder.transform(rows), self.outputs)


MODEL = (Model, Encoder, MeanTarget, Components, Codes, Numbers, *learners.FITTED)
REMEDY = "made before models were saved, or cut short: run the same 03_metadata.py again"


def save_models(folder: Path, results: Sequence[Fold]) -> None:
    """fold<K>_model.npz in a run's folder."""
    for part in results:
        write_saved(folder / f"fold{part.fold}_model.npz", part.model)


def load_model(folder: Path, fold: int) -> Model:
    """One fold's; UserError where it is not there."""
    return read_saved(folder / f"fold{fold}_model.npz", MODEL, REMEDY)


@dataclass(frozen=True)
class Fold:
    """One fold's predictions, float64 (N, outputs), and what its models leaned on.

    contributions: float64 (valid rows, outputs, sources + 1), the base last. inner_score: of the chosen settings, on
    the inner folds where they were chosen.
    """

    fold: int
    valid: np.ndarray
    test: np.ndarray
    contributions: np.ndarray
    importance: dict[str, float]
    rounds: list[int]
    settings: Settings
    model: Model
    inner_score: float | None = None
    trials: int = 0
    notes: list[str] = field(default_factory=list)


KINDS = (Fold, *MODEL)


@dataclass(frozen=True)
class Problem:
    """What is learnt of which rows: y (N,) or (N, labels) of the training rows, and their folds and groups."""

    competition: Competition
    inputs: Inputs
    names: list[str]
    y: np.ndarray
    ids: np.ndarray
    fold_of: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, competition: Competition, table: pd.DataFrame, fold_table: pd.DataFrame, inputs: Inputs) -> Problem:
        """UserError where a training row has no target, or all have the same."""
        names = index.classes(competition, table)
        train = folds.rows(table, fold_table)
        for column in competition.truth:
            gaps = train[column].isna()
            if gaps.any() and competition.task != "multilabel":
                raise UserError(
                    f"{competition.derived() / 'index.parquet'}: id '{train['id'][gaps].iloc[0]}' has no {column} "
                    f"({int(gaps.sum())} such); mend the training table and run 01_preprocess.py"
                )
        y = index.target_array(competition, train, names)
        if competition.task != "regression" and (y == y[:1]).all():
            raise UserError(f"{competition.name}: every training row is of one class; nothing to learn")
        ids, fold_of, groups = (fold_table[column].to_numpy() for column in ("id", "fold", "group"))
        return cls(competition, inputs, names, y, ids, fold_of, groups)

    def digest(self, settings: dict[str, Any]) -> str:
        """A hash of all that the models of every fold see, and of `settings`."""
        total = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode())
        for fold in np.unique(self.fold_of).tolist():
            rows = self.inputs.of_fold(fold)
            total.update(hash_pandas_object(rows.frame, index=False).to_numpy().tobytes())
            for vectors in rows.embeddings.values():
                total.update(vectors.tobytes())
        for array in (self.y, self.fold_of, self.groups):
            total.update(array.astype(str).tobytes())
        return total.hexdigest()

    @property
    def task(self) -> Task:
        """The models': votes are learnt as classes, each row as many times as learners.VOTES."""
        return "multiclass" if self.competition.task == "soft" else self.competition.task

    @property
    def outputs(self) -> int:
        """Classes or labels; 1 for binary and regression."""
        return max(1, len(self.names))

    @property
    def wide(self) -> np.ndarray:
        """float64 (N, outputs): classes one-hot; a label that is not known as the mean of its column."""
        if self.competition.task == "soft":
            return self.y.astype(float)
        if self.task == "multiclass":
            return np.eye(self.outputs)[self.y]
        columns = self.columns.astype(float)
        return np.where(np.isnan(columns), np.nanmean(columns, axis=0), columns)

    @property
    def columns(self) -> np.ndarray:
        """(N, targets): a column for each model that a fold needs."""
        y = self.y.argmax(axis=1) if self.competition.task == "soft" else self.y
        return y.reshape(len(y), -1)


def fit(
    problem: Problem,
    plan: Plan,
    told: Callable[[str], None] = lambda line: None,
    piece: Piece = lambda name, make: make(),
) -> list[Fold]:
    """Every fold's models, folds side by side, one thread each. `told` hears of each fold that is done, `piece` keeps
    it."""
    every = sorted(np.unique(problem.fold_of).tolist())
    workers = min(parallel.cores(), len(every))
    seconds = plan.minutes * 60 * workers / len(every)

    def one(fold: int) -> Fold:
        result = piece(f"fold{fold}", lambda: _fold(problem, plan, fold, seconds))
        for line in result.notes:
            told(f"fold {fold}: {line}")
        return result

    pool = ThreadPoolExecutor(workers)
    try:
        with threadpool_limits(1):  # linear algebra, too, on one thread a fold
            return list(pool.map(one, every))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fold(problem: Problem, plan: Plan, fold: int, seconds: float) -> Fold:
    rows = problem.inputs.of_fold(fold)
    learn, valid = np.flatnonzero(problem.fold_of != fold), np.flatnonzero(problem.fold_of == fold)
    test = np.arange(problem.inputs.training, len(rows))
    settings, inner_score, trials = _settings(problem, plan, rows, learn, fold, seconds)
    encoder, x, (x_valid,) = _encoded(problem, plan, rows, learn, [valid])
    rounds, notes = _rounds(problem, plan, settings, rows, learn, fold)
    notes += _unseen(problem, learn)
    models = []
    for k in range(problem.columns.shape[1]):
        data = _known(problem, encoder, x, learn, k)
        seeds = [_fit(problem, plan, settings, data, None, rounds[seed][k], seed) for seed in range(len(rounds))]
        models.append(seeds)
        if isinstance(seeds[0], learners.Constant):
            label = f" of {problem.names[k]}" if problem.task == "multilabel" else ""
            notes.append(f"its training rows hold one class{label} only, or no column that varies: predicts a constant")
    model = Model(encoder, models, problem.outputs)
    return Fold(
        fold,
        _predicted(models, x_valid, problem.outputs),
        model.predict(rows[test]),
        _contributed(models, x_valid, encoder, problem),
        _importance(models, encoder, problem.inputs.sources),
        [model.rounds for seeds in models for model in seeds],
        settings,
        model,
        inner_score,
        trials,
        notes,
    )


def _known(problem: Problem, encoder: Encoder, x: np.ndarray, rows: np.ndarray, k: int) -> Data:
    """Those of `rows`, with features x, whose label k is known. What other runs say of it may only raise it: their
    models saw the labels of the fold that is predicted, and where nothing can be learnt err against them."""
    if problem.competition.task == "soft":
        row, y = learners.by_votes(problem.y[rows])
        return Data(x[row], y, encoder.categorical)
    y = problem.columns[rows, k]
    known = metrics.known_rows(y)
    same: set[str] = set()
    if problem.task != "multiclass":
        said = [str(stack.train.columns[k]) for stack in problem.inputs.stacks]
        same = {name + where for name in said for where in ("", " rank in group", " z in group")}
    rising = [i for i, source in enumerate(encoder.sources) if source in same]
    return Data(x[known], y[known], encoder.categorical, rising)


def _unseen(problem: Problem, learn: np.ndarray) -> list[str]:
    if problem.task != "multiclass":
        return []
    names = [name for name, count in zip(problem.names, problem.wide[learn].sum(axis=0), strict=True) if not count]
    rate = learners.base_rates(problem.columns[learn, 0], problem.outputs).min()
    return [f"no training row is of class {', '.join(names)}: predicted at the base rate, {rate:.2g}"] if names else []


def _encoded(
    problem: Problem, plan: Plan, rows: Rows, learn: np.ndarray, others: Sequence[np.ndarray]
) -> tuple[Encoder, np.ndarray, list[np.ndarray]]:
    """The encoder of some rows, their features, and those of other rows."""
    inner = np.zeros(len(learn), dtype=np.int64)
    if plan.target_encode:
        inner = _stratified(problem, learn, 5, plan.seed)
    encoder, x = Encoder.fit(
        rows[learn], problem.wide[learn], inner, plan.target_encode, plan.components, plan.learner.linear
    )
    return encoder, x, [encoder.transform(rows[other]) for other in others]


def _stratified(problem: Problem, learn: np.ndarray, n: int, seed: int) -> np.ndarray:
    task = "regression" if problem.task == "regression" else "multilabel"
    return folds.stratify(stats.strata(problem.wide[learn], task), problem.groups[learn], n, seed)


def _fit(
    problem: Problem, plan: Plan, settings: Settings, data: Data, watch: Data | None, rounds: int, seed: int
) -> Fitted:
    seeded = {plan.learner.seed: plan.seed + seed} if plan.learner.seed else {}
    task, outputs = problem.task, problem.outputs
    data, share = learners.thinned(data, plan.negatives, plan.seed + seed)
    watch = watch and learners.thinned(watch, plan.negatives, plan.seed + seed)[0]
    fitted = learners.fit(plan.learner, {**settings, **seeded}, task, outputs, data, watch, rounds)
    return fitted if share == 1 else learners.Thinned(fitted, share)


# --- rounds -----------------------------------------------------------------------------------------------


def _rounds(
    problem: Problem, plan: Plan, settings: Settings, rows: Rows, learn: np.ndarray, fold: int
) -> tuple[list[list[int]], list[str]]:
    """How long to boost, by seed and target: until rows of the training folds, held out for it, get no better."""
    targets = problem.columns.shape[1]
    if not plan.learner.boosted:
        return [[1] * targets], []
    held = _watched(problem, learn, fold, plan.seed)
    encoder, x, (x_watch,) = _encoded(problem, plan, rows, learn[~held], [learn[held]])
    fitted, notes = [], []
    for seed in range(plan.seeds):
        rounds = []
        for k in range(targets):
            data = _known(problem, encoder, x, learn[~held], k)
            watch = _known(problem, encoder, x_watch, learn[held], k)
            if not _tells(problem, data, watch):
                rounds.append(min(UNWATCHED, settings["rounds"]))
                notes.append(f"too few classes to stop early by: {rounds[-1]} rounds")
            else:
                rounds.append(max(1, _fit(problem, plan, settings, data, watch, settings["rounds"], seed).rounds))
        fitted.append(rounds)
    return fitted, sorted(set(notes))


def _tells(problem: Problem, data: Data, watch: Data) -> bool:
    if problem.task == "regression":
        return len(watch.y) > 1
    return min(len(np.unique(data.y)), len(np.unique(watch.y[np.isin(watch.y, data.y)]))) > 1


def _watched(problem: Problem, learn: np.ndarray, fold: int, seed: int) -> np.ndarray:
    """bool over the fold's training rows: those that early stopping watches.

    The next fold, where it is not too small and holds all the classes there are; else a fifth of the groups.
    """
    fold_of = problem.fold_of[learn]
    others = sorted(set(fold_of.tolist()))
    if len(others) > 1:
        held = fold_of == ([other for other in others if other > fold] or others)[0]
        known = problem.wide[learn] > 0
        whole = problem.task == "regression" or not (known.any(axis=0) & ~known[held].any(axis=0)).any()
        if held.mean() >= FEWEST and whole:
            return held
    return _stratified(problem, learn, 5, seed) == 0


# --- settings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    learn: np.ndarray
    watch: np.ndarray
    x: np.ndarray
    x_watch: np.ndarray
    encoder: Encoder


def _settings(
    problem: Problem, plan: Plan, rows: Rows, learn: np.ndarray, fold: int, seconds: float
) -> tuple[Settings, float | None, int]:
    """The settings that do best on inner folds of the fold's training rows, their score there, and the trials."""
    settings = dict(plan.settings)
    choose = plan.learner.linear and settings["C"] is None
    if not plan.minutes and not choose:
        return settings, None, 0
    inner = _inner_folds(problem, learn, plan.seed)
    splits = []
    for held in np.unique(inner):
        a, b = learn[inner != held], learn[inner == held]
        if len(a):
            encoder, x, (x_watch,) = _encoded(problem, plan, rows, a, [b])
            splits.append(_Split(a, b, x, x_watch, encoder))
    if not splits:  # a single training row
        return settings, None, 0

    def score(asked: Settings) -> float:
        return _inner_score(problem, plan, asked, splits)

    if not plan.minutes:
        best = max(STRENGTHS, key=lambda strength: score({**settings, "C": strength}))
        return {**settings, "C": best}, None, 0
    return _searched(problem, plan, settings, score, seconds, fold)


def _inner_folds(problem: Problem, learn: np.ndarray, seed: int) -> np.ndarray:
    """int (learn,): the other folds, joined to INNER at most; of two folds, thirds of the groups."""
    numbers = np.unique(problem.fold_of[learn], return_inverse=True)[1]
    return numbers % INNER if numbers.max() > 1 else _stratified(problem, learn, 3, seed)


def _inner_score(problem: Problem, plan: Plan, settings: Settings, splits: Sequence[_Split]) -> float:
    """The competition's metric over all inner folds, higher is better; minus the log loss where it is undefined."""
    preds = []
    for split in splits:
        models = []
        for k in range(problem.columns.shape[1]):
            data, watch = (
                _known(problem, split.encoder, x, part, k)
                for x, part in ((split.x, split.learn), (split.x_watch, split.watch))
            )
            told = watch if plan.learner.boosted and _tells(problem, data, watch) else None
            models.append([_fit(problem, plan, settings, data, told, settings["rounds"] if told else UNWATCHED, 0)])
        preds.append(_predicted(models, split.x_watch, problem.outputs))
    truth = problem.y[np.concatenate([split.watch for split in splits])]
    pred = np.concatenate(preds)
    pred = pred[:, 0] if problem.outputs == 1 else pred
    for metric in (problem.competition.scorer(), metrics.resolve("log_loss")):
        try:
            return metrics.score(metric, truth, pred) * (1 if metric.greater_is_better else -1)
        except metrics.Undefined:
            continue
    return float("-inf")


def _searched(
    problem: Problem, plan: Plan, settings: Settings, score: Callable[[Settings], float], seconds: float, fold: int
) -> tuple[Settings, float, int]:
    optuna = load_optuna(plan.learner)
    optuna.logging.set_verbosity(logging.WARNING)
    space = {name: bounds for name, bounds in plan.learner.space.items()}

    def objective(trial: Any) -> float:
        return score({**settings, **{name: _suggest(trial, name, *bounds) for name, bounds in space.items()}})

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed + fold))
    study.enqueue_trial({name: settings[name] if settings[name] is not None else 1.0 for name in space})
    study.optimize(objective, timeout=seconds, n_trials=plan.trials)
    sign = 1 if problem.competition.scorer().greater_is_better else -1
    return {**settings, **study.best_params}, sign * study.best_value, len(study.trials)


def _suggest(trial: Any, name: str, low: float, high: float, kind: str) -> float:
    if kind in {"int", "intlog"}:
        return trial.suggest_int(name, int(low), int(high), log=kind == "intlog")
    return trial.suggest_float(name, low, high, log=kind == "log")


def load_optuna(learner: Learner) -> Any:
    """The search library; UserError where it is not installed, or there is nothing to search."""
    if not learner.space:
        raise UserError(f"--tune: {learner.name} has no settings to search; leave it out")
    try:
        import optuna
    except ImportError:
        raise UserError("--tune: optuna is not installed; pip install optuna") from None
    return optuna


# --- what comes out ---------------------------------------------------------------------------------------


def _predicted(models: list[list[Fitted]], x: np.ndarray, outputs: int) -> np.ndarray:
    """float64 (N, outputs): the seeds' mean, targets side by side."""
    if not len(x):
        return np.zeros((0, outputs))
    return np.concatenate([np.mean([model.predict(x) for model in seeds], axis=0) for seeds in models], axis=1)


def _by_source(encoder: Encoder, sources: Sequence[str]) -> np.ndarray:
    """float (F, sources): 1 where a feature comes from a source."""
    place = {name: k for k, name in enumerate(sources)}
    indicator = np.zeros((len(encoder.sources), len(sources)))
    indicator[np.arange(len(encoder.sources)), [place[name] for name in encoder.sources]] = 1
    return indicator


def _contributed(models: list[list[Fitted]], x: np.ndarray, encoder: Encoder, problem: Problem) -> np.ndarray:
    parts = [np.mean([model.contributions(x) for model in seeds], axis=0) for seeds in models]
    added = np.concatenate(parts, axis=1)
    return np.concatenate([added[..., :-1] @ _by_source(encoder, problem.inputs.sources), added[..., -1:]], axis=2)


def _importance(models: list[list[Fitted]], encoder: Encoder, sources: Sequence[str]) -> dict[str, float]:
    """Share of the library's own measure, by source."""
    shares = sum(model.importance() for seeds in models for model in seeds) @ _by_source(encoder, sources)
    return dict(zip(sources, map(float, shares / max(shares.sum(), 1e-12)), strict=True))


def folds_meta(results: Sequence[Fold]) -> dict[str, Any]:
    """What run.json tells of the folds: rounds, importance, and where it was searched the settings."""
    by_fold: dict[str, Any] = {}
    for part in results:
        by_fold[str(part.fold)] = {"rounds": part.rounds, "importance": part.importance, "notes": part.notes}
        if part.trials:
            by_fold[str(part.fold)] |= {
                "params": part.settings,
                "inner_score": _json(part.inner_score),
                "trials": part.trials,
            }
        elif "C" in part.settings:
            by_fold[str(part.fold)] |= {"C": part.settings["C"]}
    return {"folds": by_fold}


def tuning_line(info: RunInfo, results: Sequence[Fold]) -> str:
    """The score that the search saw beside the honest one."""
    inner = [part.inner_score for part in results if part.inner_score is not None and np.isfinite(part.inner_score)]
    honest = [value for value in info.fold_scores.values() if value is not None]
    trials = f"{min(part.trials for part in results)} to {max(part.trials for part in results)} trials a fold"
    return (
        f"{info.run}: {info.metric} on the inner folds where settings were chosen {_mean(inner)} (flattered by "
        f"the choice), on the folds that the search did not see {_mean(honest)}, means over folds; {trials}"
    )


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" if values else "undefined"


def _json(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
