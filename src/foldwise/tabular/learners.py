"""LightGBM, XGBoost, CatBoost, TabPFN and linear models behind one call: fit, predict, and what each feature added.

Each but TabPFN is fitted on one thread: folds side by side use the cores better (bench/metadata.py), and the bits do
not depend on how many there are. XGBoost, CatBoost and TabPFN are optional.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from scipy.special import expit, logit, softmax

from foldwise import UserError
from foldwise.core.files import file_digest
from foldwise.core.schema import nearest
from foldwise.data.competition import Task

Settings = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Features float64 (N, F), target (N,), the positions of features that are category numbers, and of those that
    may only raise the prediction."""

    x: np.ndarray
    y: np.ndarray
    categorical: Sequence[int] = ()
    rising: Sequence[int] = ()

    def signs(self) -> list[int]:
        """1 for a rising feature, else 0; [] where there is none, so that settings stay as they are."""
        return [int(k in self.rising) for k in range(self.x.shape[1])] if len(self.rising) else []


class Fitted(Protocol):
    """A fitted model. Outputs: 1 (probability of 1, or the value), or one a class."""

    @property
    def rounds(self) -> int:
        """How many were boosted."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, outputs): probabilities, or values of a regression."""

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, outputs, F + 1): what each feature adds to the log-odds (or value); last, what all start from.

        Trees: exact SHAP values (Lundberg 2020). Linear models: coefficient x (value - training mean).
        """

    def importance(self) -> np.ndarray:
        """float64 (F,), the library's own measure: gain of splits, change of prediction, or mean |contribution|."""


@dataclass(frozen=True)
class Learner:
    """A library: its settings with defaults, what a search may choose from, and how it is fitted.

    space: name -> (low, high, 'int' | 'log' | 'float' | 'intlog').
    fit(settings, classes, data, watch, rounds): classes 0 is a regression, 1 binary, else their number; with `watch`
    the rounds end when it gets no better, without it there are exactly `rounds`.
    """

    name: str
    package: str
    defaults: Settings
    space: dict[str, tuple[float, float, str]]
    fit: Callable[[Settings, int, Data, Data | None, int], Fitted]
    seed: str | None  # the setting's name
    linear: bool = False
    boosted: bool = True  # has rounds, and a time to stop
    complete: Callable[[Settings, Task], Settings] = lambda settings, task: settings  # what depends on the task

    @property
    def version(self) -> str:
        """'lightgbm 4.6.0'."""
        return f"{self.package} {importlib.metadata.version(self.package)}"


def get(name: str) -> Learner:
    """The learner of that name; UserError where there is none, or its package is not installed."""
    if name not in LEARNERS:
        raise UserError(f"--model {name}: no such model{nearest(name, LEARNERS)}")
    named = LEARNERS[name]
    try:
        importlib.import_module(named.package.split("-")[0].replace("scikit", "sklearn"))
    except ImportError:
        raise UserError(
            f"--model {name}: {named.package} is not installed; pip install {named.package}, or use --model lightgbm"
        ) from None
    return named


def settings_of(learner: Learner, given: Settings, task: Task) -> Settings:
    """The learner's defaults under `given`; UserError for a name or value that the library does not know."""
    aliases = {"num_iterations", "n_estimators", "num_boost_round", "iterations", "early_stopping_rounds"}
    for alias in aliases & set(given) if learner.boosted else ():
        own = "patience" if alias.startswith("early") else "rounds"
        raise UserError(f"--params {alias}: it is called {own} here, for every model")
    settings = learner.complete({**learner.defaults, **given}, task)
    if given:
        _try(learner, settings, given, int(task != "regression"))
    return settings


def _try(learner: Learner, settings: Settings, given: Settings, classes: int) -> None:
    """Fit 40 random rows, to hear what the library says of the settings."""
    rng = np.random.default_rng(0)
    data = Data(rng.random((40, 2)), (np.arange(40) % 2).astype(float))
    heard: list[str] = []
    if learner.name == "lightgbm":
        importlib.import_module("lightgbm").register_logger(_Listener(heard))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            learner.fit({**settings, **LOUD.get(learner.name, {})}, classes, data, None, 1)
        except Exception as error:  # each library has errors of its own
            said = " ".join(str(error).split())[:200]
            raise UserError(f"--params {' '.join(map(str, given))}: {learner.name} refuses: {said}") from None
    heard += [str(warning.message) for warning in caught]
    for name in given:
        unknown = [line for line in heard if ("Unknown parameter" in line or "not used" in line) and name in line]
        if unknown:
            raise UserError(f"--params {name}: unknown to {learner.name}{nearest(name, learner.defaults)}")


LOUD = {"lightgbm": {"verbosity": 1}, "xgboost": {"verbosity": 1}}  # the others complain anyway


@dataclass
class _Listener:
    heard: list[str]

    def info(self, line: str) -> None:
        self.heard.append(line)

    warning = info


# --- LightGBM ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def read_booster(text: str) -> Any:
    """A LightGBM model from its text form."""
    import lightgbm

    return lightgbm.Booster(model_str=text)


@dataclass(frozen=True)
class _LightGBM:
    model: Any
    rounds: int

    def state(self) -> dict[str, Any]:
        return {"text": self.model.model_to_string(), "rounds": self.rounds}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _LightGBM:
        return cls(read_booster(state["text"]), state["rounds"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict(x, num_threads=1).reshape(len(x), -1)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict(x, pred_contrib=True, num_threads=1).reshape(len(x), -1, x.shape[1] + 1)

    def importance(self) -> np.ndarray:
        return self.model.feature_importance("gain").astype(np.float64)


def _fit_lightgbm(settings: Settings, classes: int, data: Data, watch: Data | None, rounds: int) -> Fitted:
    import lightgbm

    objective = {0: "l2", 1: "binary"}.get(classes, "multiclass")
    fixed: Settings = {"verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}
    asked = {**fixed, "objective": objective, **_without(settings)} | ({"num_class": classes} if classes > 1 else {})
    asked |= {"monotone_constraints": data.signs()} if data.signs() else {}

    def dataset(part: Data) -> Any:
        return lightgbm.Dataset(
            part.x,
            part.y,
            feature_name=[f"f{k}" for k in range(part.x.shape[1])],  # it refuses brackets and quotes
            categorical_feature=list(part.categorical) or "auto",
            free_raw_data=False,
            params=asked,
        )

    if watch is None:
        return _LightGBM(lightgbm.train(asked, dataset(data), rounds), rounds)
    stop = lightgbm.early_stopping(settings["patience"], verbose=False)
    model = lightgbm.train(asked, dataset(data), rounds, valid_sets=[dataset(watch)], callbacks=[stop])
    return _LightGBM(model, max(1, model.best_iteration))


# --- XGBoost ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _XGBoost:
    model: Any
    rounds: int
    categorical: Sequence[int]

    def state(self) -> dict[str, Any]:
        text = self.model.save_raw("json").decode()
        return {"text": text, "rounds": self.rounds, "categorical": list(self.categorical)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _XGBoost:
        import xgboost

        model = xgboost.Booster({"nthread": 1})
        model.load_model(bytearray(state["text"].encode()))
        return cls(model, state["rounds"], state["categorical"])

    def _matrix(self, x: np.ndarray) -> Any:
        return _dmatrix(Data(x, np.zeros(len(x)), self.categorical), labelled=False)

    def predict(self, x: np.ndarray) -> np.ndarray:
        pred = self.model.predict(self._matrix(x), iteration_range=(0, self.rounds))
        return pred.astype(np.float64).reshape(len(x), -1)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        shap = self.model.predict(self._matrix(x), pred_contribs=True, iteration_range=(0, self.rounds))
        return shap.astype(np.float64).reshape(len(x), -1, x.shape[1] + 1)

    def importance(self) -> np.ndarray:
        gains = self.model.get_score(importance_type="total_gain")
        return np.array([gains.get(f"f{k}", 0.0) for k in range(self.model.num_features())], dtype=np.float64)


def _dmatrix(data: Data, labelled: bool = True) -> Any:
    import xgboost

    kinds = ["c" if k in data.categorical else "q" for k in range(data.x.shape[1])]
    label = data.y if labelled else None
    return xgboost.DMatrix(data.x, label, feature_types=kinds, enable_categorical=True, nthread=1)


def _fit_xgboost(settings: Settings, classes: int, data: Data, watch: Data | None, rounds: int) -> Fitted:
    import xgboost

    objective = {0: "reg:squarederror", 1: "binary:logistic"}.get(classes, "multi:softprob")
    fixed: Settings = {"nthread": 1, "verbosity": 0, "objective": objective}
    asked = {**fixed, **_without(settings)} | ({"num_class": classes} if classes > 1 else {})
    asked |= {"monotone_constraints": tuple(data.signs())} if data.signs() else {}
    if watch is None:
        return _XGBoost(xgboost.train(asked, _dmatrix(data), rounds), rounds, data.categorical)
    model = xgboost.train(
        asked,
        _dmatrix(data),
        rounds,
        evals=[(_dmatrix(watch), "watch")],
        verbose_eval=False,
        early_stopping_rounds=settings["patience"],
    )
    return _XGBoost(model, model.best_iteration + 1, data.categorical)


# --- CatBoost ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CatBoost:
    model: Any
    rounds: int
    categorical: Sequence[int]
    classes: int

    def state(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_model(f"{folder}/model.json", format="json")
            text = Path(folder, "model.json").read_text(encoding="utf-8")
        own = {"rounds": self.rounds, "categorical": list(self.categorical), "classes": self.classes}
        return {"text": text, **own}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _CatBoost:
        import catboost

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.json").write_text(state["text"], encoding="utf-8")
            model = catboost.CatBoost().load_model(f"{folder}/model.json", format="json")
        return cls(model, state["rounds"], state["categorical"], state["classes"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        kind = "Probability" if self.classes else "RawFormulaVal"
        pred = self.model.predict(_pool(Data(x, np.zeros(0), self.categorical)), prediction_type=kind, thread_count=1)
        return pred[:, 1:] if self.classes == 1 else pred.reshape(len(x), -1)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        pool = _pool(Data(x, np.zeros(0), self.categorical))
        shap = self.model.get_feature_importance(pool, type="ShapValues", thread_count=1)
        return np.asarray(shap, dtype=np.float64).reshape(len(x), -1, x.shape[1] + 1)

    def importance(self) -> np.ndarray:
        return np.asarray(self.model.get_feature_importance(type="PredictionValuesChange"), dtype=np.float64)


def _pool(data: Data) -> Any:
    import catboost
    import pandas as pd

    frame = pd.DataFrame({f"f{k}": values for k, values in enumerate(data.x.T)})
    for k in data.categorical:
        frame[f"f{k}"] = frame[f"f{k}"].fillna(-1).astype(int)  # it takes no NaN as a category
    label = data.y if len(data.y) else None
    return catboost.Pool(frame, label, cat_features=list(data.categorical), thread_count=1)


def _fit_catboost(settings: Settings, classes: int, data: Data, watch: Data | None, rounds: int) -> Fitted:
    import catboost

    loss = {0: "RMSE", 1: "Logloss"}.get(classes, "MultiClass")
    fixed: Settings = {"thread_count": 1, "allow_writing_files": False, "logging_level": "Silent"}
    asked = {**fixed, "loss_function": loss, **_without(settings), "iterations": rounds}
    if classes > 1:
        asked["classes_count"] = classes
    asked |= {"monotone_constraints": data.signs()} if data.signs() else {}
    model = catboost.CatBoost(asked)
    if watch is None:
        model.fit(_pool(data))
        return _CatBoost(model, rounds, data.categorical, classes)
    model.fit(_pool(data), eval_set=_pool(watch), early_stopping_rounds=settings["patience"], use_best_model=True)
    return _CatBoost(model, max(1, model.tree_count_), data.categorical, classes)


# --- linear -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odds:
    """A linear model as numbers: coef (1 or C, F), intercept; `link` sigmoid gives two columns, softmax C, none one."""

    coef: np.ndarray
    intercept: np.ndarray
    link: Literal["none", "sigmoid", "softmax"]

    @classmethod
    def of(cls, model: Any) -> Odds:
        """What scikit-learn's fitted model predicts by."""
        coef = np.atleast_2d(model.coef_)
        classes = hasattr(model, "predict_proba")
        return cls(
            coef, np.atleast_1d(model.intercept_), ("sigmoid" if len(coef) == 1 else "softmax") if classes else "none"
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.coef.T + self.intercept
        if self.link == "sigmoid":
            p = expit(scores[:, 0])
            return np.column_stack([1 - p, p])
        return softmax(scores, axis=1) if self.link == "softmax" else scores


@dataclass(frozen=True)
class _Linear:
    line: Odds
    rounds: int
    mean: np.ndarray  # (F,) of the training rows
    scale: np.ndarray
    binary: bool

    def predict(self, x: np.ndarray) -> np.ndarray:
        pred = self.line(x)
        return pred[:, 1:] if self.binary else pred

    def contributions(self, x: np.ndarray) -> np.ndarray:
        weights = self.line.coef
        base = self.line.intercept + weights @ self.mean
        added = (x - self.mean)[:, None, :] * weights[None]
        return np.concatenate([added, np.broadcast_to(base[None, :, None], (*added.shape[:2], 1))], axis=2)

    def importance(self) -> np.ndarray:
        return np.abs(self.line.coef).mean(axis=0) * self.scale


def _fit_linear(settings: Settings, classes: int, data: Data, watch: Data | None, rounds: int) -> Fitted:
    from sklearn.linear_model import LogisticRegression, Ridge

    asked = _without(settings)
    strength = asked.pop("C") or 1.0
    model = (
        Ridge(alpha=1 / strength, **asked) if classes == 0 else LogisticRegression(C=strength, max_iter=5000, **asked)
    )
    used = np.ones(data.x.shape[1])
    while True:  # a rising feature whose weight would be negative is left out; the penalty keeps a column of zeros at 0
        model.fit(data.x * used, data.y)
        falling = [k for k in data.rising if np.atleast_2d(model.coef_)[0, k] < 0]
        if not falling:
            break
        used[falling] = 0
    return _Linear(Odds.of(model), rounds, data.x.mean(axis=0), data.x.std(axis=0), classes == 1)


def _without(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name not in {"rounds", "patience"}}


# --- TabPFN -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TabPFN:
    """Learns in context (Hollmann 2025): it predicts by the training rows themselves and a file of weights."""

    data: Data
    weights: str
    digest: str  # of that file
    settings: Settings
    classes: int
    rounds: int = 1

    @cached_property
    def _model(self) -> Any:
        import tabpfn

        file = tabpfn_weights(self.weights)
        if file_digest(file) != self.digest:
            raise UserError(f"{file}: not the weights that this model was fitted with; put those back, or run 03 again")
        model = (tabpfn.TabPFNClassifier if self.classes else tabpfn.TabPFNRegressor)(
            model_path=str(file),
            categorical_features_indices=list(self.data.categorical),
            ignore_pretraining_limits=True,  # else it refuses a CPU above 1,000 rows
            **self.settings,
        )
        return model.fit(self.data.x, self.data.y.astype(int if self.classes else float))

    def predict(self, x: np.ndarray) -> np.ndarray:
        pred = self._model.predict_proba(x) if self.classes else self._model.predict(x)[:, None]
        return (pred[:, 1:] if self.classes == 1 else pred).astype(np.float64)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """Shapley values of two orders of the features, one the other's reverse (Mitchell 2022), from the training
        rows' medians; exact in their sum. 2 F predictions of all rows."""
        ordered = np.sort(self.data.x, axis=0)  # NaN last
        middle = np.maximum(0, (~np.isnan(ordered)).sum(axis=0) - 1) // 2
        start = np.tile(np.take_along_axis(ordered, middle[None], axis=0), (len(x), 1))
        base = self._score(start)
        added = np.zeros((*base.shape, x.shape[1] + 1))
        added[..., -1] = base
        for order in (range(x.shape[1]), range(x.shape[1])[::-1]):
            rows, before = start.copy(), base
            for k in order:
                rows[:, k] = x[:, k]
                after = self._score(rows)
                added[..., k] += (after - before) / 2
                before = after
        return added

    def _score(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, outputs): log-odds, log probabilities of classes, or values."""
        pred = self.predict(x)
        sure = np.clip(pred, 1e-12, 1 - 1e-12)
        return pred if not self.classes else logit(sure) if self.classes == 1 else np.log(sure)

    def importance(self) -> np.ndarray:
        every = -(-len(self.data.x) // 256)
        return np.abs(self.contributions(self.data.x[::every])[..., :-1]).mean(axis=(0, 1))


def tabpfn_weights(path: str) -> Path:
    """The file there, or wherever one of its name lies now."""
    from foldwise.model import weights

    return Path(path) if Path(path).is_file() else weights.named(Path(path).name, "--params weights")


def _fit_tabpfn(settings: Settings, classes: int, data: Data, watch: Data | None, rounds: int) -> Fitted:
    if len(data.rising):
        raise UserError(
            "--oof: tabpfn can't be held to let other runs' predictions only raise its own, and so would learn the "
            "folds; take another --model for stacking"
        )
    asked = dict(settings)
    file = asked.pop("weights")
    fitted = _TabPFN(data, file, file_digest(Path(file)), asked, classes)
    try:
        _ = fitted._model
    except ValueError as error:  # more classes or features than the weights were made for
        raise UserError(f"--model tabpfn refuses: {' '.join(str(error).split())[:300]}") from None
    return fitted


def _with_weights(settings: Settings, task: Task) -> Settings:
    """With the file of weights that lies there; nothing is fetched."""
    from foldwise.model import weights

    if settings["weights"]:
        return {**settings, "weights": str(weights.named(settings["weights"], "--params weights").resolve())}
    other = "classifier" if task == "regression" else "regressor"
    for file in weights.within_reach():
        if file.name.startswith("tabpfn") and other not in file.name:
            return {**settings, "weights": str(file.resolve())}
    raise UserError(
        "--model tabpfn: no weights (tabpfn*.ckpt or .safetensors, under the name they are published by) in "
        f"{', '.join(map(str, weights.folders()))}; put them there, or name them: --params weights=FILE. Their "
        "licences differ: version 2 asks for attribution, later ones forbid commercial use"
    )


# --- constant ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """Predicts the training rows' mean: where these hold one class only, or no feature that varies."""

    value: np.ndarray  # (outputs,)
    features: int
    rounds: int = 0

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, outputs)."""
        return np.broadcast_to(self.value, (len(x), len(self.value))).copy()

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, outputs, F + 1), zeros."""
        return np.zeros((len(x), len(self.value), self.features + 1))

    def importance(self) -> np.ndarray:
        """float64 (F,), zeros."""
        return np.zeros(self.features)


@dataclass(frozen=True)
class _Placed:
    """A model of the classes that training rows held, put in place among all; the others keep their base rate."""

    model: Fitted
    classes: np.ndarray
    rates: np.ndarray  # (outputs,)

    @property
    def rounds(self) -> int:
        return self.model.rounds

    def predict(self, x: np.ndarray) -> np.ndarray:
        return placed(self.model.predict(x), self.classes, self.rates)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        shap = self.model.contributions(x)
        whole = np.zeros((len(x), len(self.rates), shap.shape[2]))
        whole[:, self.classes[-shap.shape[1] :]] = shap  # a linear model of two classes gives the second's
        return whole

    def importance(self) -> np.ndarray:
        return self.model.importance()


def fit(
    learner: Learner, settings: Settings, task: Task, outputs: int, data: Data, watch: Data | None, rounds: int
) -> Fitted:
    """A fitted model, whatever the rows hold: absent classes get their base rate, one class only a Constant.

    task 'multiclass' has class numbers 0..outputs-1 as target; any other one output.
    """
    if task == "multiclass":
        held = np.unique(data.y).astype(int)
        share = base_rates(data.y, outputs)
    elif task == "regression":
        held, share = np.array([]), np.array([data.y.mean()])
    else:
        held, share = np.unique(data.y), base_rates(data.y, 2)[1:]
    flat = (data.x == data.x[:1]) | (np.isnan(data.x) & np.isnan(data.x[:1]))
    if len(held) == 1 or flat.all():
        return Constant(share, data.x.shape[1])
    if task != "multiclass":
        return learner.fit(settings, int(task != "regression"), data, watch, rounds)

    def renumbered(part: Data) -> Data:
        known = np.isin(part.y, held)
        return Data(part.x[known], np.searchsorted(held, part.y[known]), part.categorical)

    model = learner.fit(settings, len(held), renumbered(data), watch and renumbered(watch), rounds)
    return _Placed(model, held, share)


@dataclass(frozen=True)
class Thinned:
    """A model of all positives and a share of the negatives, as if it had seen all: its log-odds are so much lower
    (Dal Pozzolo 2015, equation 4)."""

    model: Fitted
    share: float

    @property
    def rounds(self) -> int:
        """How many were boosted."""
        return self.model.rounds

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, 1)."""
        p = self.model.predict(x)
        return self.share * p / (self.share * p + 1 - p)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """float64 (N, 1, F + 1)."""
        added = self.model.contributions(x)
        added[..., -1] += np.log(self.share)
        return added

    def importance(self) -> np.ndarray:
        """float64 (F,)."""
        return self.model.importance()


def thinned(data: Data, negatives: float | None, seed: int) -> tuple[Data, float]:
    """All rows of 1 and at most `negatives` times as many of 0, by the seed; and the share that is kept of these."""
    zero = np.flatnonzero(data.y == 0)
    keep = len(zero) if negatives is None else round(negatives * (len(data.y) - len(zero)))
    if not 0 < keep < len(zero):
        return data, 1.0
    drawn = np.random.default_rng(seed).choice(zero, keep, replace=False)
    rows = np.sort(np.concatenate([np.flatnonzero(data.y != 0), drawn]))
    return replace(data, x=data.x[rows], y=data.y[rows]), keep / len(zero)


VOTES = 6  # times that a row of shares stands among the rows of classes: three experts of two opinions are told


def by_votes(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (N, C) as classes: row numbers, each VOTES times, and class numbers int64 in the shares' proportion.

    Drawn systematically, each row from a start of its own (golden-ratio steps): over rows the proportions are exact.
    """
    start = np.arange(len(shares))[:, None] * 0.6180339887498949 % 1
    points = (start + np.arange(VOTES)) / VOTES
    classes = (points[:, :, None] >= np.cumsum(shares, axis=1, dtype=np.float64)[:, None, :-1]).sum(axis=2)
    return np.repeat(np.arange(len(shares)), VOTES), classes.reshape(-1)


def base_rates(y: np.ndarray, classes: int) -> np.ndarray:
    """float64 (classes,): shares of class numbers, half a row of each added, so that none is 0 (Krichevsky 1981)."""
    return (np.bincount(y.astype(int), minlength=classes) + 0.5) / (len(y) + 0.5 * classes)


def placed(pred: np.ndarray, known: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Probabilities (N, known classes) put among all classes (N, C); the others get their base rate."""
    whole = np.tile(rates, (len(pred), 1))
    whole[:, known] = pred * rates[known].sum()
    return whole


FITTED = (_LightGBM, _XGBoost, _CatBoost, _TabPFN, Data, _Linear, Odds, Constant, _Placed, Thinned)

BOOSTING: Settings = {"rounds": 2000, "patience": 100}  # at rates of 0.03 to 0.05 it stops by itself before

LEARNERS = {
    learner.name: learner
    for learner in (
        Learner(
            "lightgbm",
            "lightgbm",
            {
                "learning_rate": 0.03,
                "num_leaves": 15,
                "min_data_in_leaf": 20,
                "feature_fraction": 0.8,
                "bagging_fraction": 0.8,
                "bagging_freq": 1,
                "lambda_l2": 1.0,
                "cat_smooth": 20,
                "max_cat_to_onehot": 8,
                **BOOSTING,
            },
            {
                "learning_rate": (0.01, 0.1, "log"),
                "num_leaves": (3, 63, "intlog"),
                "min_data_in_leaf": (5, 100, "intlog"),
                "feature_fraction": (0.4, 1.0, "float"),
                "bagging_fraction": (0.5, 1.0, "float"),
                "lambda_l2": (1e-2, 100.0, "log"),
                "cat_smooth": (1.0, 100.0, "log"),
            },
            _fit_lightgbm,
            "seed",
        ),
        Learner(
            "xgboost",
            "xgboost-cpu",
            {
                "eta": 0.03,
                "max_depth": 4,
                "min_child_weight": 5.0,
                "subsample": 0.8,
                "colsample_bytree": 0.8,
                "lambda": 1.0,
                "tree_method": "hist",
                "max_cat_to_onehot": 8,
                **BOOSTING,
            },
            {
                "eta": (0.01, 0.1, "log"),
                "max_depth": (2, 8, "int"),
                "min_child_weight": (1.0, 50.0, "log"),
                "subsample": (0.5, 1.0, "float"),
                "colsample_bytree": (0.4, 1.0, "float"),
                "lambda": (1e-2, 100.0, "log"),
            },
            _fit_xgboost,
            "seed",
        ),
        Learner(
            "catboost",
            "catboost",
            {"learning_rate": 0.05, "depth": 4, "l2_leaf_reg": 3.0, "random_strength": 1.0, **BOOSTING},
            {
                "learning_rate": (0.02, 0.2, "log"),
                "depth": (2, 8, "int"),
                "l2_leaf_reg": (1.0, 30.0, "log"),
                "random_strength": (0.1, 10.0, "log"),
            },
            _fit_catboost,
            "random_seed",
        ),
        Learner(
            "logreg",
            "scikit-learn",
            {"C": None, **BOOSTING},
            {"C": (1e-4, 1e2, "log")},
            _fit_linear,
            None,
            linear=True,
            boosted=False,
        ),
        Learner(
            "tabpfn",
            "tabpfn",
            {"weights": None, "n_estimators": "auto"},
            {},
            _fit_tabpfn,
            "random_state",
            boosted=False,
            complete=_with_weights,
        ),
    )
}
