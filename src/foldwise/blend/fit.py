"""Blends of runs, and the score to expect of them: weights, ranks, votes, stacking.

    blend = fit_weights(preds, target, "roc_auc", "auto", folds=folds)
    blend.weights, blend.nested_score, blend.interval
    blend.predict(test_preds)

`score` is in-sample: the weights have seen those rows. `nested_score` is not: for each fold the method is fitted
on the other folds and predicts this one. Only the second is worth comparing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from foldwise import UserError, metrics, stats
from foldwise.blend import cuts
from foldwise.blend.methods import ALL, FIXED_SPACE, METHODS, mean
from foldwise.blend.mixture import Mixture, Prepare
from foldwise.blend.search import Problem
from foldwise.blend.spaces import PLACES, RANKED, SPACES, Calibration, Maps, Scaling, ranks, to_space
from foldwise.blend.stacking import Combiner
from foldwise.core.schema import nearest
from foldwise.data.folds import stratify

Array = NDArray[Any]


# --- the result ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blend:
    """A fitted blend. `weights` is (M,), or (M, C) where classes have their own; they sum to one except in
    `stack` and `ridge`, where they are coefficients.

    score: in-sample. nested_score: cross-validated, with its 95 % `interval`. nested: those predictions,
    (N,) or (N, C). table: every method that was tried (one row for a named method). note: what auto found.
    """

    method: str
    space: str
    metric: str
    names: tuple[str, ...]
    weights: Array
    score: float
    nested_score: float
    interval: tuple[float, float]
    nested: Array
    combiner: Combiner
    prepare: Prepare
    fitted: Array
    table: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def predict(self, preds: ArrayLike) -> Array:
        """(models, rows[, classes]) in the order of the runs fitted -> (rows,) or (rows, classes).

        Ranks are taken among the out-of-fold predictions: what a row gets does not depend on the rows beside it.
        """
        array = _stack(preds, self.names)
        if array.shape[0] != len(self.names):
            raise UserError(f"the blend is of {len(self.names)} runs, predictions came from {array.shape[0]}")
        return self.mixture.predict(array)

    @property
    def mixture(self) -> Mixture:
        """What predicts, and no more: to be saved."""
        return Mixture(list(self.names), self.prepare, self.combiner)


def fit_weights(
    preds: ArrayLike | Sequence[ArrayLike],
    target: ArrayLike,
    metric: str | metrics.Metric,
    method: str = "auto",
    seed: int = 0,
    *,
    folds: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    families: Sequence[tuple[str, str]] | None = None,
    names: Sequence[str] | None = None,
    space: str | None = None,
    task: str | None = None,
    nested: bool = True,
    draws: int = 1000,
    weights: Sequence[float] | None = None,
    cut: bool = True,
) -> Blend:
    """The blend of out-of-fold predictions by `method`, and the score to expect of it.

    preds: (models, rows) or (models, rows, classes), finite. target: (rows,), or (rows, classes) of 0/1.
    method: a name in METHODS, or auto: the simplest within half a standard error of the best nested score.
    folds: (rows,) the runs' folds, five stratified ones where absent. groups: (rows,) patients, kept whole in
    those folds and drawn whole by the bootstrap. families: (model, image size) of each run, for `hierarchical`.
    space: prob, logit, rank, ... or auto (chosen by nested CV); each method has its own default.
    nested=False skips cross-validation: nested_score and interval are NaN. weights: one a run, set by hand instead
    of by a method, and scaled to sum to one. cut: for metrics of labels, a method without a cut of its own ("mean+cut")
    is tried with them, too, and gets one where auto's rule finds it worth it.
    Raises UserError for unknown names, NaN, and shapes that do not fit.
    """
    runs = tuple(names or ())
    array = _stack(preds, runs)
    runs = runs or tuple(f"run {m}" for m in range(array.shape[0]))
    problem = _problem(array, target, metric, seed, folds, groups, families, task)
    if len(runs) != array.shape[0]:
        raise UserError(f"{len(runs)} names for {array.shape[0]} runs")
    if weights is not None:
        method, problem = "given", replace(problem, given=_by_hand(weights, runs))
    work = _Work(array, problem, runs, None if groups is None else np.asarray(groups), draws)
    choices = _choices(method, space, problem, array, cut and nested)
    with threadpool_limits(1):  # matrices here are small: BLAS threads wait for each other, 5 x slower
        if not nested:
            return work.finish(*choices[0], None, [])
        return work.choose(choices, auto=method == "auto")


def _by_hand(weights: Sequence[float], runs: Sequence[str]) -> tuple[float, ...]:
    values = np.asarray(weights, np.float64)
    if values.shape != (len(runs),) or not np.isfinite(values).all() or values.sum() <= 0:
        raise UserError(f"weights set by hand: one number for each of {', '.join(runs)}, with a sum above 0")
    return tuple((values / values.sum()).tolist())


def _stack(preds: Any, names: Sequence[str]) -> Array:
    if not isinstance(preds, np.ndarray):
        shapes = [np.shape(one) for one in preds]
        if len(set(shapes)) > 1:
            raise UserError(f"runs differ in shape: {', '.join(str(shape) for shape in dict.fromkeys(shapes))}")
        preds = np.stack([np.asarray(one) for one in preds]) if shapes else np.empty((0, 0))
    if preds.ndim not in (2, 3) or not preds.size:
        raise UserError(f"preds must be (models, rows) or (models, rows, classes), found {preds.shape}")
    if preds.dtype.kind not in "fiub":
        raise UserError(f"preds hold {preds.dtype.name} values; numbers are needed")
    array = preds if preds.ndim == 3 and preds.dtype == np.float32 else preds.astype(np.float64)
    for m, run in enumerate(array):
        if not np.isfinite(run).all():
            name = names[m] if m < len(names) else f"run {m}"
            raise UserError(f"{name}: row {int(np.argwhere(~np.isfinite(run))[0][0])} is NaN or infinite")
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _problem(
    preds: Array,
    target: ArrayLike,
    metric: str | metrics.Metric,
    seed: int,
    folds: ArrayLike | None,
    groups: ArrayLike | None,
    families: Sequence[tuple[str, str]] | None,
    task: str | None,
) -> Problem:
    metric = metrics.resolve(metric)
    truth, first = metrics.check(metric.name, target, preds[0])
    low, width = (preds.min(), preds.max() - preds.min()) if metric.probability else (0.0, 1.0)
    judged = first if low >= 0 and low + width <= 1 else (first - low) / width
    metrics.score(metric, truth, judged)  # refuses labels and truth on which the metric does not exist
    if task is None:
        only = next(iter(metric.tasks & {"regression", "soft"}), None)
        task = only or metrics.task_of(truth, first)
    rows = truth.shape[0]
    if folds is None:
        fold_of = make_folds(truth, task, None if groups is None else np.asarray(groups), seed)
    else:
        fold_of = np.unique(np.asarray(folds), return_inverse=True)[1]
    for what, values in (("folds", fold_of), ("groups", np.asarray(groups) if groups is not None else fold_of)):
        if values.shape != (rows,):
            raise UserError(f"{what}: {values.shape[0] if values.ndim else 0} values for {rows} rows")
    if np.unique(fold_of).size < 2:
        raise UserError("folds: one fold only; the nested score needs at least two")
    return Problem(truth, metric, task, fold_of, seed, tuple(families or ()))


def make_folds(target: Array, task: str, groups: Array | None, seed: int, n: int = 5) -> Array:
    """(N,) fold numbers, stratified; rows of a group stay together."""
    units = np.arange(len(target)) if groups is None else groups
    return stratify(stats.strata(target, task), units, min(n, len(np.unique(units))), seed)


# --- choosing -----------------------------------------------------------------------------------------------

Choice = tuple[str, str]  # method, space
SLACK = 0.5  # paired standard errors: 1 costs 0.004 log loss on 500 rows, 0 flatters labels drawn at random more


def _default_space(method: str, problem: Problem) -> str:
    space = ALL[method].space
    if problem.task == "regression":
        return "prob"
    return ("rank" if problem.metric.order_only else "prob") if space == "order" else space


def _choices(method: str, space: str | None, problem: Problem, preds: Array, cut: bool) -> list[Choice]:
    if space not in {None, "auto", *SPACES}:
        raise UserError(f"space '{space}' is not known{nearest(str(space), [*SPACES, 'auto'])}")
    if method == "auto":
        return _auto_choices(problem, preds, cut)
    for task, some in (("soft", OF_SHARES), (PLACES, (*OF_PLACES, "given"))):
        if problem.task == task and method not in some:
            what = "of shares that sum to one" if task == "soft" else "of many classes"
            raise UserError(f"method '{method}': {what} there are auto, {', '.join(some)}")
    if method not in ALL or (method.startswith("given") and not problem.given):
        raise UserError(f"method '{method}' is not known{nearest(method, ['auto', *METHODS])}")
    base, plus, kind = method.partition("+")
    if plus and plus + kind not in cuts.kinds(problem):
        kinds = ", ".join(cuts.kinds(problem)) or "none"
        raise UserError(f"method '{method}': cuts of {problem.metric.name} on a {problem.task} target are {kinds}")
    spaces = [_default_space(method, problem)]
    if space is not None and base not in FIXED_SPACE:
        spaces = _spaces(problem) if space == "auto" else [space]
    named = [method, *(method + kind for kind in cuts.kinds(problem) if cut and not plus)]
    return [(one, where) for one in named for where in spaces]


def _spaces(problem: Problem) -> list[str]:
    if problem.task == "regression":
        return ["prob"]
    return ["rank", "prob", "logit"] if problem.metric.order_only else ["prob", "logit"]


OF_PLACES = ("best", "mean", "weights")  # what needs no column to mean the same class in every row
OF_SHARES = ("mean", "logit", "geometric", "best", "hierarchical", "gradient", "weights", "caruana", "hill", "given")
CUT_BY_AUTO = ("mean", "best", "gradient", "weights", "stack")  # methods that auto tries with a cut


def _auto_choices(problem: Problem, preds: Array, cut: bool) -> list[Choice]:
    if problem.task == PLACES:
        return [(name, "prob") for name in OF_PLACES]
    large = preds.size > 50_000_000  # 1,000 classes: methods whose cost does not grow with the classes
    if large:
        methods = ["mean", "geometric", "best", "gradient", "weights", "caruana"]
    else:
        methods = [name for name in METHODS if _applies(name, problem, preds)]
    if cut:
        kinds = cuts.kinds(problem)[:1] if large else cuts.kinds(problem)
        methods += [name + kind for name in methods if name in CUT_BY_AUTO for kind in kinds]
    choices = [(name, _default_space(name, problem)) for name in methods]
    if not large:
        choices += [(name, space) for name in ("gradient",) for space in _spaces(problem)]
    return list(dict.fromkeys(choices))


def _applies(method: str, problem: Problem, preds: Array) -> bool:
    metric, task = problem.metric, problem.task
    if task == "soft" and method not in OF_SHARES:
        return False
    if preds.shape[0] == 1 and method != "mean":
        return False
    if task == "regression" and ALL[method].uniform and method != "mean":
        return False
    return {
        "rank": metric.order_only,
        "fold_rank": metric.order_only,
        "vote": metric.decides,
        "per_class": preds.ndim == 3 and metric.name != "log_loss",
        "hierarchical": bool(problem.families),
        # free to turn all runs over, which pays where noise errs against the labels; clipped ends keep an order only
        "ridge": task == "regression",
        "hill_negative": not metric.probability or task == "regression",
        "hill": False,  # where `weights` ends, too, from another start: by name only
        "caruana": False,
        "lightgbm": problem.target.shape[0] >= 1000 and (preds.ndim == 2 or preds.shape[2] <= 30),
        "calibrated": preds.ndim == 2 or preds.shape[2] <= 30,
    }.get(method, True)


class _Work:
    """One problem, its runs in every space that was asked for, and the bootstrap that judges them."""

    def __init__(self, preds: Array, problem: Problem, names: tuple[str, ...], groups: Array | None, draws: int):
        self.problem, self.names, self.groups = problem, names, groups
        self.scaling = Scaling.of(preds, problem.task)
        self.preds = self.scaling(preds)
        self.draws = draws
        self.spaces: dict[str, Array] = {}
        self.fits: dict[tuple[str, str, int], Combiner] = {}

    def space(self, name: str) -> Array:
        if name not in self.spaces:
            if self.preds.size > 50_000_000:
                self.spaces.clear()  # two of them would not fit beside the predictions
            self.spaces[name] = to_space(name, self.preds, self.problem.task, self.problem.folds)
        return self.spaces[name]

    def fit(self, choice: Choice, rows: Array | None = None) -> tuple[Combiner, Calibration | None]:
        """The combiner fitted on `rows` (all where None), and its calibration, if that is its space."""
        problem = self.problem if rows is None else _with_inner_folds(self.problem.take(rows))
        if choice[1] == "calibrated":
            preds = self.preds if rows is None else self.preds[:, rows]
            maps = Calibration(preds, problem.target, problem.folds, problem.seed)
            return self._combined(choice, maps.fitted, problem, rows), maps
        z = self.space(choice[1])
        return self._combined(choice, z if rows is None else z[:, rows], problem, rows), None

    def _combined(self, choice: Choice, z: Array, problem: Problem, rows: Array | None) -> Combiner:
        """A method's combiner, and a cut behind it; what one cut follows, the other follows too: fitted once."""
        name, how = choice[0].partition("+")[0], ALL[choice[0]]
        key = (name, choice[1], 0 if rows is None else hash(rows.tobytes()))
        if key not in self.fits:
            self.fits[key] = how.fit(z, problem, choice[1])
        return self.fits[key] if how.cuts is None else cuts.cut(self.fits[key], z, problem, how.cuts)

    def nested(self, choice: Choice) -> Array:
        """Predictions for every fold by the method fitted on the other folds."""
        method, space = choice
        folds = self.problem.folds
        out = np.empty(self.preds.shape[1:], np.float32 if self.preds.dtype == np.float32 else np.float64)
        if ALL[method].fit is mean and ALL[method].cuts is None and space != "calibrated":
            out[:] = mean(self.preds, self.problem, space)(self.space(space))
            return out
        if space != "calibrated":
            self.space(space)

        def one(k: int) -> None:
            train, held = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
            combiner, maps = self.fit(choice, train)
            seen = maps(self.preds[:, held]) if maps else self.space(space)[:, held]
            out[held] = combiner(seen)

        big = self.preds.size > 50_000_000
        with ThreadPoolExecutor(1 if big else 2) as pool:  # NumPy lets go of the lock; big ones fill memory twice
            list(pool.map(one, np.unique(folds)))
        return out

    def score(self, pred: Array) -> float:
        return float(self.problem.metric.function(self.problem.target, pred, None))

    def bootstrap(self, preds: list[Array], draws: int) -> Array:
        return stats.bootstrap(self.problem.metric, self.problem.target, preds, self.groups, draws, self.problem.seed)

    def choose(self, choices: list[Choice], auto: bool) -> Blend:
        nested = [self.nested(choice) for choice in choices]
        if len(choices) == 1:
            return self.finish(*choices[0], nested[0], [])
        # a standard error needs fewer than an interval
        draws = self.bootstrap(nested, int(np.clip(self.draws, 100, 200)))
        sign = 1 if self.problem.metric.greater_is_better else -1
        scores = np.array([sign * self.score(pred) for pred in nested])
        chosen, table = _pick(choices, scores, draws)
        honest = self._choose_without_each_fold(choices, nested, draws, sign)
        method, space = choices[chosen]
        note = ""
        if auto and ALL[method].uniform:
            note = f"{ALL[method].says} is as good as anything tried: no weights are worth fitting"
            if (method, space) != ("rank", "rank") and any(r["method"] == "rank" and r["within"] for r in table):
                note += "; an equal rank mean is as good"
        rows = [{**row, "nested_score": float(sign * value)} for row, value in zip(table, scores, strict=True)]
        return self.finish(method, space, honest, rows, note)

    def _choose_without_each_fold(self, choices: list[Choice], nested: list[Array], draws: Array, sign: int) -> Array:
        """The nested predictions of the choosing itself: for each fold, the choice that the other folds make.

        Taking the best of many nested scores flatters; this does not.
        """
        if self.problem.metric.order_only:  # methods differ in scale; rows of different ones must compare
            nested = [ranks(pred[None])[0] for pred in nested]
        out = np.empty_like(nested[0])
        for k in np.unique(self.problem.folds):
            rest, held = self.problem.folds != k, self.problem.folds == k
            target = self.problem.target[rest]
            scores = np.array([sign * self.problem.metric.function(target, pred[rest], None) for pred in nested])
            out[held] = nested[_pick(choices, scores, draws)[0]][held]
        return out

    def finish(
        self, method: str, space: str, nested: Array | None, table: list[dict[str, Any]], note: str = ""
    ) -> Blend:
        combiner, calibration = self.fit((method, space))
        seen = calibration.fitted if calibration else self.space(space)
        fitted = combiner(seen)
        score, interval = float("nan"), (float("nan"), float("nan"))
        if nested is not None:
            score = self.score(nested)
            interval = stats.interval(self.bootstrap([nested], self.draws)[:, 0], score) if self.draws else interval
        maps = calibration.maps if calibration else Maps.ranks(self.preds) if space in RANKED else None
        return Blend(
            method,
            space,
            self.problem.metric.name,
            self.names,
            combiner.weights,
            self.score(fitted),
            score,
            interval,
            fitted if nested is None else nested,
            combiner,
            Prepare(self.scaling, space, self.problem.task, maps),
            fitted,
            table,
            note,
        )


def _pick(choices: list[Choice], scores: Array, draws: Array) -> tuple[int, list[dict[str, Any]]]:
    """The choice to take, and a row a choice that says why. scores: (choices,), larger is better; draws: paired.

    Of those within SLACK standard errors of the best, the simplest; never one that scores below the best single run.
    Methods that want evidence are taken only where they have it.
    """
    every = range(len(choices))
    plain = [i for i in every if not ALL[choices[i][0]].evidence] or list(every)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = max(plain, key=lambda i: scores[i])
    errors = np.nanstd(draws - draws[:, [best]], axis=0)
    behind = scores[best] - scores
    within = [i for i in plain if behind[i] <= SLACK * errors[i] or i == best]
    single = [i for i in plain if choices[i][0] == "best"]
    chosen = min(within, key=lambda i: (ALL[choices[i][0]].complexity, i))
    chosen = max([chosen, *single], key=lambda i: scores[i])
    proven = [i for i in every if i not in plain and -behind[i] > ALL[choices[i][0]].evidence * errors[i]]
    table = [
        {
            "method": choices[i][0],
            "space": choices[i][1],
            "behind_best": float(behind[i]),
            "standard_error": float(errors[i]),
            "within": i in within or i in proven,
        }
        for i in every
    ]
    return (max(proven, key=lambda i: scores[i]) if proven else chosen), table


def _with_inner_folds(problem: Problem) -> Problem:
    if np.unique(problem.folds).size >= 2:
        return problem
    return replace(problem, folds=np.arange(problem.folds.size) % 3)
