"""Metrics of one's own: `module:function`, called as function(target, pred)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foldwise import UserError
from foldwise.metrics.metric import Array, Metric

MAXIMISED, MINIMISED = ("_score",), ("_loss", "_error", "_deviance")  # scikit-learn's names, by its own convention


def own(
    name: str, beside: Path = Path(), greater_is_better: bool | None = None, order_only: bool | None = None
) -> Metric:
    """`module:function`, called as function(target, pred); the module is a .py file in the folder `beside`, else in
    the current one, else what Python can import.

    greater_is_better, order_only: what the competition file declares; else attributes of the function. A direction
    that neither declares is known for scikit-learn's names only: UserError says how to declare it.
    """
    module_name, _, function_name = name.rpartition(":")
    plain = getattr(_load(module_name, name, beside), function_name, None)
    if not callable(plain):
        raise UserError(f"metric '{name}': {module_name} has no function '{function_name}'")
    up = getattr(plain, "greater_is_better", None) if greater_is_better is None else greater_is_better
    up = _direction_in_scikit_learn(function_name) if up is None else up
    if up is None:
        raise UserError(
            f"metric '{name}': is more of it better? Write `metric: {{function: '{name}', greater_is_better: false}}` "
            f"(or true) in the competition file, or {function_name}.greater_is_better = False below the function"
        )
    ranks = getattr(plain, "order_only", False) if order_only is None else order_only
    return Metric(
        name, partial(_where_it_exists, plain), bool(up), order_only=bool(ranks), tasks=frozenset({"any"}), own=plain
    )


def _direction_in_scikit_learn(function_name: str) -> bool | None:
    import sklearn.metrics

    if function_name not in sklearn.metrics.__all__ or not function_name.endswith(MAXIMISED + MINIMISED):
        return None
    return function_name.endswith(MAXIMISED)


def _where_it_exists(plain: Callable[[Array, Array], Any], target: Array, pred: Array, weight: Array | None) -> float:
    """Rows repeated by weight; NaN where the function raises (`rehearse` has shown that it can do better)."""
    rows = slice(None) if weight is None else np.repeat(np.arange(len(target)), np.asarray(weight).astype(np.int64))
    try:
        return float(plain(target[rows], pred[rows]))
    except Exception:
        return float("nan")


def reason(plain: Callable[[Array, Array], Any], target: Array, pred: Array) -> str:
    """': what the function raises', or nothing."""
    try:
        plain(target, pred)
    except Exception as error:
        return f": {type(error).__name__}: {error}"
    return ""


def rehearse(metric: Metric, target: Array, classes: int, task: str) -> None:
    """Call a metric of one's own on the truth and made-up predictions; UserError says what it did instead of scoring.

    target: as above. classes: of a multiclass task.
    """
    if metric.own is None:
        return
    rng = np.random.default_rng(0)
    pred = rng.permutation(target) if task == "regression" else rng.random(target.shape)
    if task == "multiclass":
        pred = rng.dirichlet(np.ones(classes), len(target))
    asked = f"metric '{metric.name}', called with target {target.shape} and pred {pred.shape} ({task}), "
    try:
        value = float(metric.own(target, pred))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = frames[min(1, len(frames) - 1)]  # its own function, where it is reached
        said = f"{type(error).__name__}: {error} ({line.filename}, line {line.lineno})"
        raise UserError(f"{asked}raises {said}") from None
    if not np.isfinite(value):
        raise UserError(f"{asked}gives back {value}; a finite number is needed")


def _load(module_name: str, name: str, beside: Path) -> Any:
    """The module of a metric, by its file, so that two files of one name are two modules."""
    file = module_name.removesuffix(".py") + ".py"
    path = next((place.resolve() for place in (beside / file, Path(file)) if place.is_file()), None)
    try:
        if path is None:
            return importlib.import_module(module_name)
        key = f"foldwise_metric_{path.stem}_{abs(hash(str(path)))}"
        if key not in sys.modules:
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None  # it ends in .py
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[key] = module
        return sys.modules[key]
    except Exception as error:  # whatever the file does when it is run
        where = f"{path}: " if path else f"no {file} in {beside.resolve()} or here, and "
        raise UserError(f"metric '{name}': {where}can't be imported ({type(error).__name__}: {error})") from None
