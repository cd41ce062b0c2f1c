"""Classifiers and regressors on fixed features such as embeddings, fitted on one fold's training rows.

A head's settings (C, gamma, neighbours...) are chosen by cross-validation inside those rows, groups kept whole, by log
loss (classes) or squared error (numbers). The kernel heads rest on one float32 matrix of squared distances (or inner
products) between the rows: it serves every C, every gamma and every inner split, exactly. Where features are scaled
row by row (`unit`) the same matrix also serves every fold; scaled by a fold's training rows (`fold`) each fold has one.
Where that matrix would not fit in memory, the kernel heads work on Nystroem features, and the linear ones on sums
gathered chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import expit
from threadpoolctl import threadpool_limits

from foldwise import UserError, stats
from foldwise.core import parallel
from foldwise.core.cli import note
from foldwise.data import folds
from foldwise.data.competition import Task
from foldwise.metrics import known_rows
from foldwise.tabular.kernel import (
    Array,
    Features,
    Fitted,
    KernelMethod,
    KernelModel,
    Method,
    Pairs,
    Scale,
    Scaler,
    Setting,
    Solved,
    _by_gamma,
    _chunks,
    _gathered,
    _ridge,
    _signs,
    _svc,
    _svr,
    pairwise,
)
from foldwise.tabular.learners import Odds, base_rates, placed, read_booster

CLASSIFIERS = ("svm", "linear_svm", "logreg", "knn", "lightgbm", "kernel_ridge", "ridge")
REGRESSORS = ("svr", "ridge", "kernel_ridge", "knn", "lightgbm")
NEAREST = "nearest"  # of any number of classes: its own module
HEADS = tuple(dict.fromkeys([*CLASSIFIERS, *REGRESSORS]))

TUNE_ROWS = 4000  # settings are chosen on so many rows at most: a kernel's cost grows with their cube
INNER = 3  # inner splits: each model still sees two thirds of the rows
LANDMARKS = 1000  # of Nystroem features: their (1000, 1000) eigenproblem takes a second
MEMORY_SHARE = 0.6  # of the memory that is free now: others grow, too
BYTES_A_PAIR = 28  # at the peak: distances (4), the kernel in float64 (8), its damped copy (8), blocks

GAMMAS = (1 / 16, 1 / 4, 1.0)  # relative to 1 / (total variance of the features): scikit-learn's gamma="scale"
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "svm": {"gamma": GAMMAS, "C": (0.1, 0.3, 1.0, 3.0, 10.0)},
    "svr": {"gamma": GAMMAS, "C": (0.3, 1.0, 3.0, 10.0)},
    "linear_svm": {"C": (1e-3, 0.01, 0.1, 1.0, 10.0)},
    "kernel_ridge": {"gamma": GAMMAS, "penalty": (0.03, 0.1, 0.3, 1.0, 3.0)},
    "ridge": {"penalty": (0.01, 0.1, 1.0, 10.0, 100.0)},
    "logreg": {"C": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
    "knn": {"neighbours": (5, 10, 20, 40, 80)},
    "lightgbm": {"rounds": (25, 50, 100, 200, 400)},
}
LIGHTGBM = {
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 10,
    "feature_fraction": 0.2,  # embeddings have many columns that say the same
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
}


# --- features ---------------------------------------------------------------------------------------------


# --- methods ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearModel:
    """The k nearest of `rows` float32 (S, D), their votes (S, outputs), and the training rows' base rate."""

    neighbours: int
    votes: Array
    base: Array
    classes: int
    rows: Array

    def pick(self, block: Array) -> Array:
        """(n, outputs) from squared distances (n, S)."""
        k = min(self.neighbours, block.shape[1])
        near = np.argpartition(block, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(near, np.take_along_axis(block, near, axis=1).argsort(axis=1), axis=1)
        distance = np.sqrt(np.take_along_axis(block, near, axis=1), dtype=np.float64)
        # a copy does not outvote all others
        weight = 1 / np.maximum(distance, 1e-3 * distance.mean(axis=1, keepdims=True) + 1e-12)
        one = weight.mean(axis=1, keepdims=True) if self.classes else np.zeros((len(block), 1))
        total = np.einsum("nk,nkc->nc", weight, self.votes[near]) + one * self.base
        pred = total / (weight.sum(axis=1, keepdims=True) + one)
        return pred[:, 1:] if self.classes == 2 else pred

    def __call__(self, x: Array) -> Array:
        parts = [self.pick(pairwise(x[part], self.rows, True)) for part in _chunks(np.arange(len(x)))]
        return np.concatenate(parts)


@dataclass
class Neighbours(Method):
    """k nearest rows, weighted by 1/distance, and one more vote for the training rows' base rate."""

    pairs: Pairs
    classes: int
    calibrated: bool = True

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[NearModel]:
        votes = np.eye(self.classes)[y] if self.classes else y.astype(np.float64)[:, None]
        none = np.zeros(0)
        return [NearModel(int(s["neighbours"]), votes, votes.mean(axis=0), self.classes, none) for s in settings]

    def answers(self, models: Sequence[NearModel], fit: Array, ask: Array) -> list[Array]:
        return _gathered(self.pairs.blocks(ask, fit), lambda block: [model.pick(block) for model in models])

    def alone(self, model: NearModel, fit: Array) -> NearModel:
        """The model with its rows."""
        return replace(model, rows=self.pairs.features.take(fit))


@dataclass
class OnFeatures(Method):
    """A method whose models need a row's features alone."""

    features: Features

    def answers(self, models: Sequence[Fitted], fit: Array, ask: Array) -> list[Array]:
        return _gathered(map(self.features.take, _chunks(ask)), lambda x: [model(x) for model in models])

    def alone(self, model: Fitted, fit: Array) -> Fitted:
        """The model as it is."""
        return model


@dataclass(frozen=True)
class LogisticModel:
    """Coefficients on the features over `spread`; `present`: the classes that the training rows held."""

    line: Odds
    spread: float
    present: Array
    classes: int

    def __call__(self, x: Array) -> Array:
        pred = np.zeros((len(x), self.classes))
        pred[:, self.present] = self.line(x / np.float32(self.spread))
        return pred[:, 1:] if self.classes == 2 else pred


@dataclass
class Logistic(OnFeatures):
    """Multinomial logistic regression with an L2 penalty, on the features brought to a mean variance of 1."""

    classes: int
    spread: float = 1.0
    calibrated: bool = True

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        return [[setting] for setting in settings]

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[LogisticModel]:
        from sklearn.linear_model import LogisticRegression

        x = self.features.take(fit) / np.float32(self.spread)
        models = [LogisticRegression(C=setting["C"], max_iter=2000).fit(x, y) for setting in settings]
        return [LogisticModel(Odds.of(model), float(self.spread), model.classes_, self.classes) for model in models]


@dataclass(frozen=True)
class TreesModel:
    """A booster in LightGBM's text form, and how many of its rounds count."""

    text: str
    rounds: int

    def __call__(self, x: Array) -> Array:
        pred = read_booster(self.text).predict(x, num_iteration=self.rounds, num_threads=1)
        return np.asarray(pred).reshape(len(x), -1)


@dataclass
class Boosting(OnFeatures):
    """LightGBM on the features; one training serves every number of rounds."""

    classes: int
    seed: int
    calibrated: bool = True

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[TreesModel]:
        import lightgbm

        kind = "regression" if self.classes == 0 else "binary" if self.classes == 2 else "multiclass"
        options = {**LIGHTGBM, "objective": kind, "seed": self.seed}
        if kind == "multiclass":
            options["num_class"] = self.classes
        data = lightgbm.Dataset(self.features.take(fit), y, free_raw_data=True)
        text = lightgbm.train(options, data, int(max(s["rounds"] for s in settings))).model_to_string()
        return [TreesModel(text, int(setting["rounds"])) for setting in settings]


# --- beyond memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapping:
    """Features float32 (n, D) over `scale`, or their Nystroem features, float64 with a last column of ones."""

    scale: float
    gamma: float = 0.0
    landmarks: Array | None = None  # float32 (L, D)
    root: Array | None = None

    def __call__(self, x: Array) -> Array:
        if self.landmarks is None:
            values = x / self.scale
        else:
            parts = [pairwise(x[part], self.landmarks, True) for part in _chunks(np.arange(len(x)))]
            values = np.exp(-self.gamma * np.concatenate(parts)) @ self.root
        return np.column_stack([values, np.ones(len(values))]).astype(np.float64)


@dataclass(frozen=True)
class MappedModel:
    """A weighted sum of mapped features."""

    mapping: Mapping
    weights: Array

    def __call__(self, x: Array) -> Array:
        return self.mapping(x) @ self.weights


@dataclass
class Chunked(OnFeatures):
    """Ridge, squared-hinge SVM and logistic regression by sums over chunks of rows: memory for (width, width) only.

    Newton's method on the primal (Keerthi & DeCoste 2005 for the SVM): each step solves a weighted ridge, gathered
    chunk by chunk. Ridge and logistic regression are exact (several classes: one against the rest). `landmarks`:
    the features are first mapped to Nystroem features of an RBF kernel (Williams & Seeger 2001).
    """

    loss: Literal["ridge", "hinge", "logistic"]
    classes: int
    variance: float
    landmarks: Array | None = None
    calibrated: bool = False

    def shares(self, settings: Sequence[Setting]) -> list[list[Setting]]:
        return _by_gamma(settings)

    def fitted(self, fit: Array, y: Array, settings: Sequence[Setting]) -> list[MappedModel]:
        mapping, target = self._map(settings[0]), _signs(y, self.classes)
        return [
            MappedModel(mapping, np.column_stack([self._fit(mapping, fit, column, setting) for column in target.T]))
            for setting in settings
        ]

    def _map(self, setting: Setting) -> Mapping:
        if self.landmarks is None:
            return Mapping(float(np.sqrt(self.variance)))
        gamma = setting["gamma"] / self.variance
        landmarks = self.features.take(self.landmarks)
        parts = [pairwise(landmarks[part], landmarks, True) for part in _chunks(np.arange(len(landmarks)))]
        values, vectors = np.linalg.eigh(np.exp(-gamma * np.concatenate(parts).astype(np.float64)))
        root = vectors / np.sqrt(np.maximum(values, 1e-10))  # of the inverse, up to a rotation
        return Mapping(1.0, gamma, landmarks, root)

    def _fit(self, mapping: Mapping, fit: Array, target: Array, setting: Setting) -> Array:
        penalty = setting["penalty"] if self.loss == "ridge" else 1 / setting["C"]
        share = float(np.mean(target > 0))

        def loss(w: Array) -> tuple[float, Array, Array]:
            pull = np.append(np.full(len(w) - 1, penalty), 1e-9)  # the last one, the intercept, is free
            value, gradient, hessian = float(pull @ np.square(w)) / 2, pull * w, np.diag(pull)
            for part, t in zip(_chunks(fit), _chunks(target), strict=True):
                x = mapping(self.features.take(part))
                losses, slope, curve = self._curve(x @ w, t, share)
                value, gradient = value + float(losses.sum()), gradient + slope @ x
                hessian += (x * curve[:, None]).T @ x
            return value / len(fit), gradient / len(fit), hessian / len(fit)

        start = np.zeros(mapping(self.features.take(fit[:1])).shape[1])
        if self.loss == "ridge":  # a parabola: the first step is the answer
            _, gradient, hessian = loss(start)
            return -np.linalg.solve(hessian, gradient)
        return stats.newton(loss, start, 1e-13)  # weights to about six digits, as scikit-learn's solvers have them

    def _curve(self, score: Array, target: Array, share: float) -> tuple[Array, Array, Array]:
        """Each row's loss, and its first and second derivative by the score."""
        if self.loss == "ridge":
            return np.square(score - target) / 2, score - target, np.ones(len(score))
        if self.loss == "hinge":  # squared, classes weighed evenly
            curve = (target * score < 1) / np.where(target > 0, 2 * share, 2 - 2 * share)
            return curve * np.square(score - target) / 2, curve * (score - target), curve
        p = expit(score)
        return np.logaddexp(0, -target * score), p - (target + 1) / 2, np.maximum(p * (1 - p), 1e-9)


# --- calibration ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """scores (N, outputs) -> numbers, or probabilities (N, classes). fits: a sigmoid a column, if need be."""

    classes: int
    fits: list[tuple[float, float]]

    @classmethod
    def of(cls, method: Method, scores: Array, y: Array, classes: int) -> Link:
        """Learnt from out-of-fold scores."""
        if method.calibrated or not classes:
            return cls(classes, [])
        return cls(classes, [stats.platt(column, y == (1 if classes == 2 else c)) for c, column in enumerate(scores.T)])

    @property
    def is_flat(self) -> bool:
        """Whether every row gets the same: out of fold, the scores said nothing."""
        return bool(self.fits) and not any(slope for slope, _ in self.fits)

    def __call__(self, values: Array) -> Array:
        if not self.classes:
            return values
        if self.fits:
            z = np.column_stack([slope * v + offset for (slope, offset), v in zip(self.fits, values.T, strict=True)])
            values = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        if self.classes == 2:
            return np.column_stack([1 - values[:, 0], values[:, 0]])
        total = values.sum(axis=1, keepdims=True)
        return np.where(total > 0, values / np.maximum(total, 1e-300), 1 / self.classes)


def _loss(pred: Array, y: Array, classes: int) -> float:
    if classes == 0:
        return float(np.square(pred[:, 0] - y).mean())
    return float(-np.log(np.clip(pred[np.arange(len(y)), y], 1e-6, 1)).mean())  # one sure error decides nothing


# --- heads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One target's fitted model and its link; model None: `rates` for every row (a label that never varies).

    present: the classes that the training rows held, of all those that `rates` (C,) are of.
    """

    model: Fitted | None
    link: Link | None
    rates: Array | None = None
    present: Array | None = None

    def __call__(self, x: Array) -> Array:
        if self.model is None:
            return np.tile(np.asarray(self.rates), (len(x), 1))
        return self.of_scores(self.model(x))

    def of_scores(self, scores: Array) -> Array:
        """(n, 1), or (n, C) of classes."""
        pred = self.link(scores) if self.link else scores
        if self.present is None or self.rates is None:
            return pred[:, -1:]
        return placed(pred, self.present, self.rates) if len(self.present) < len(self.rates) else pred


@dataclass(frozen=True)
class FittedHead:
    """A fitted head by itself: embeddings float32 (n, D) as the network gives them -> float64 (n, outputs)."""

    scaler: Scaler
    multiclass: bool
    columns: list[Column]

    def joined(self, preds: Sequence[Array]) -> Array:
        """Columns side by side."""
        return preds[0] if self.multiclass else np.concatenate(preds, axis=1)

    def predict(self, source: Array) -> Array:
        """In chunks: what is held at once does not grow with the rows."""
        if not len(source):
            return np.zeros((0, len(np.asarray(self.columns[0].rates)) if self.multiclass else len(self.columns)))
        parts = [self.scaler(np.asarray(source[part])) for part in _chunks(np.arange(len(source)))]
        return np.concatenate([self.joined([column(x) for column in self.columns]) for x in parts])


KINDS = (
    *(FittedHead, Column, Scaler, Link, KernelModel, Solved, NearModel, LogisticModel, Odds, TreesModel),
    *(MappedModel, Mapping),
)


@dataclass
class Heads:
    """Fits one head a fold. `source` float32 (N, D): all rows, those to fit and those to predict.

    groups: (N,) rows of a group stay together in inner splits. memory: bytes that may be used (default: measured).
    """

    name: str
    task: Task
    source: Array
    groups: Array
    outputs: int = 1
    scale: Scale = "fold"
    seed: int = 0
    memory: int | None = None
    _shared: dict[bool, Pairs] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check(self.name, self.task)

    def share(self, rows: Array) -> None:
        """All folds' training rows: with rows scaled one by one, their pairs are computed once for every fold."""
        squared = self.name not in {"linear_svm", "ridge"}
        if self.scale != "fold" and self.name not in {"logreg", "lightgbm"} and self._fits(len(rows)):
            self._shared[squared] = Pairs(Features.fit(self.source, rows, self.scale), squared, rows)

    def fit_predict(self, fit: Array, y: Array, asks: Sequence[Array]) -> tuple[list[Array], list[Setting]]:
        """Predictions (n, outputs) of each of `asks`, and the settings chosen for each target column.

        fit: training rows' numbers; y: their targets, (n,) classes or numbers, or (n, C) labels, NaN: not known.
        """
        pred, chosen, _ = self.fit(fit, y, np.concatenate(asks))
        return np.split(pred, np.cumsum([len(ask) for ask in asks])[:-1]), chosen

    def fit(self, fit: Array, y: Array, ask: Array) -> tuple[Array, list[Setting], FittedHead]:
        """As `fit_predict`, of one set of rows, and the head itself, which predicts any others."""
        features = Features.fit(self.source, fit, self.scale)
        methods: dict[int, Any] = {}
        columns = [self._one(features, fit, column, ask, methods) for column in (list(y.T) if y.ndim == 2 else [y])]
        head = FittedHead(features.scaler, self.task == "multiclass", [column for _, _, column in columns])
        return head.joined([pred for pred, _, _ in columns]), [setting for _, setting, _ in columns], head

    def _one(
        self, features: Features, fit: Array, y: Array, ask: Array, methods: dict[int, Any]
    ) -> tuple[Array, Setting, Column]:
        rows = known_rows(y)
        fit, y = fit[rows], y[rows]
        present: Array = np.zeros(0, np.int64)
        codes: Array = y.astype(np.float64)
        if self.task != "regression":
            present, codes = np.unique(y.astype(np.int64), return_inverse=True)
            if len(present) < 2 and self.task != "multilabel":
                raise UserError(f"--head {self.name}: a fold's training rows hold one class only; make other folds")
            if len(present) < 2:  # a label that all rows, or none, have
                self._say(
                    f"{self.name}: a label is the same in all training rows of a fold: its base rate is predicted"
                )
                same = Column(None, None, base_rates(codes + present[0], 2)[1:])
                return same(self.source[ask]), {}, same
        classes = len(present)
        if classes not in methods:
            methods[classes] = self._method(features, fit, classes)
        method = methods[classes]
        setting, link = _choose(method, _grid(self.name), fit, codes, self.groups[fit], classes, self.seed)
        (model,) = method.fitted(fit, codes, [setting])
        rates = base_rates(y, self.outputs) if self.task == "multiclass" else None
        column = Column(method.alone(model, fit), link, rates, present if rates is not None else None)
        if link.is_flat:
            self._say(
                f"{self.name}: nothing in some training rows tells their classes apart: their shares are predicted"
            )
        if self.task == "multiclass" and classes < self.outputs:
            self._say(f"{self.name}: a fold's training rows lack a class: its base rate is predicted")
        return column.of_scores(method.answers([model], fit, ask)[0]), setting, column

    def _method(self, features: Features, fit: Array, classes: int) -> Any:
        if self.name == "lightgbm":
            return Boosting(features, classes, self.seed)
        wide = 24 * len(fit) * features.source.shape[1]
        if self.name == "logreg" and wide <= self._budget():
            return Logistic(features, classes, np.sqrt(features.variance(fit) / self.source.shape[1]))
        linear = self.name in {"linear_svm", "ridge"}
        if self.name != "logreg" and self._fits(len(fit)):
            pairs = self._shared.get(not linear) or Pairs(features, not linear, fit)
            if self.name == "knn":
                return Neighbours(pairs, classes)
            solve = {"svm": _svc, "linear_svm": _svc, "svr": _svr}.get(self.name, _ridge)
            return KernelMethod(pairs, solve, classes, features.variance(fit))
        if self.name == "knn":  # never holds more than a chunk of distances
            return Neighbours(Pairs(features, True), classes)
        if self.name == "svr":
            raise UserError(f"--head svr: {len(fit):,} rows need {self._need(len(fit))}; take kernel_ridge or ridge")
        return self._chunked(features, fit, classes)

    def _chunked(self, features: Features, fit: Array, classes: int) -> Chunked:
        losses: dict[str, Literal["ridge", "hinge", "logistic"]] = {"logreg": "logistic", "svm": "hinge"}
        loss = losses.get(self.name.removeprefix("linear_"), "ridge")
        variance = features.variance(fit) / (self.source.shape[1] if self.name == "logreg" else 1)
        if self.name not in {"svm", "kernel_ridge"}:
            self._say(f"{self.name}: {len(fit):,} rows don't fit in memory: their sums are gathered chunk by chunk")
            return Chunked(features, loss, classes, variance)
        count = min(LANDMARKS, len(fit))
        self._say(
            f"{self.name}: a kernel of {len(fit):,} rows needs {self._need(len(fit))}: approximated by Nystroem "
            f"features of {count:,} landmarks"
        )
        landmarks = np.sort(np.random.default_rng(self.seed).choice(fit, count, replace=False))
        return Chunked(features, loss, classes, variance, landmarks)

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            note(words)

    def _budget(self) -> float:
        return MEMORY_SHARE * (available_memory() if self.memory is None else self.memory)

    def _fits(self, rows: int) -> bool:
        held = sum(pairs.rows.size**2 * 4 for pairs in self._shared.values()) if self.memory is not None else 0
        return BYTES_A_PAIR * rows**2 + held <= self._budget()

    def _need(self, rows: int) -> str:
        free = available_memory() if self.memory is None else self.memory
        return f"{BYTES_A_PAIR * rows**2 / 1e9:.1f} GB ({free / 1e9:.1f} GB free)"


def check(name: str, task: Task) -> None:
    """UserError where the head is unknown, or not made for the task."""
    known = REGRESSORS if task == "regression" else CLASSIFIERS
    if name not in known:
        raise UserError(f"--head {name}: task {task} takes {', '.join(known)}")


def _grid(name: str) -> list[Setting]:
    grid = GRIDS[name]
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _choose(
    method: Method, settings: list[Setting], fit: Array, y: Array, groups: Array, classes: int, seed: int
) -> tuple[Setting, Link]:
    """The setting of least inner loss, and the link (calibration) learnt from its inner out-of-fold scores."""
    strata = stats.strata(y, "multiclass" if classes else "regression")
    part = np.arange(len(fit))
    if len(fit) > TUNE_ROWS:
        part = np.flatnonzero(folds.stratify(strata, groups, -(-len(fit) // TUNE_ROWS), seed) == 0)
        if classes and len(np.unique(y[part])) < classes:
            part = np.arange(len(fit))
    scores = _out_of_fold(method, settings, fit[part], y[part], strata[part], groups[part], seed)
    links = [Link.of(method, scored, y[part], classes) for scored in scores]
    losses = [_loss(link(scored), y[part], classes) for link, scored in zip(links, scores, strict=True)]
    best = int(np.argmin(losses))
    if len(part) == len(fit) or method.calibrated or not classes:
        return settings[best], links[best]
    whole = _out_of_fold(method, [settings[best]], fit, y, strata, groups, seed)
    return settings[best], Link.of(method, whole[0], y, classes)


def _out_of_fold(
    method: Method, settings: list[Setting], fit: Array, y: Array, strata: Array, groups: Array, seed: int
) -> list[Array]:
    """Scores of every row by models that did not see its inner split; (len(fit), outputs) for each setting."""
    splits = min(INNER, len(np.unique(groups)))
    if splits < 2:
        raise UserError("a fold's training rows are one group: nothing inside them to choose the head's settings by")
    split = folds.stratify(strata, groups, splits, seed)
    outputs = 1 if strata.shape[1] == 2 or y.dtype.kind == "f" else strata.shape[1]
    scores = {id(setting): np.zeros((len(fit), outputs)) for setting in settings}

    def one(task: tuple[int, list[Setting]]) -> None:
        number, together = task
        ask = split == number
        if y.dtype.kind != "f" and len(np.unique(y[~ask])) < 2:
            return  # a class in one split only: no score tells these rows apart
        for setting, scored in zip(together, method.scores(fit[~ask], y[~ask], fit[ask], together), strict=True):
            scores[id(setting)][ask] = scored

    with ThreadPoolExecutor(parallel.cores()) as pool, threadpool_limits(1):
        list(pool.map(one, product(range(splits), method.shares(settings))))
    return [scores[id(setting)] for setting in settings]


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or its container's if that is less."""
    free = [64 << 30]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            free.append(int(text) - int(Path(used).read_text()))
    return max(min(free), 0)
