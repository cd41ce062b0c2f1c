"""Competition metrics: (truth, prediction) -> float, exact with ties, and which direction is better.

Shapes, the same for every metric:

    binary      target (N,) of 0/1            pred (N,) scores
    multiclass  target (N,) of class indices  pred (N, C) scores, or (N,) values that are rounded to a class
    multilabel  target (N, C) of 0/1          pred (N, C) scores
    soft        target (N, C) shares of a row pred (N, C) scores
    regression  target (N,) or (N, C)         pred of the same shape

A multilabel target may hold NaN: cells that nobody knows, which have no part in the value (a metric of one's own
gets them as they are).

Where a metric is defined for one column, several columns (one-vs-rest for classes) give the plain mean; so accuracy of
multilabel targets is the share of right cells, where scikit-learn's asks for whole rows.
`score` checks its input. `resampler` and `auc_of` are the unchecked parts that the bootstrap and the blender
call thousands of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from foldwise import UserError
from foldwise.core.schema import nearest
from foldwise.metrics import columns, labels, rows
from foldwise.metrics.checks import check, check_task, numbers
from foldwise.metrics.columns import Bands, auc_many, auc_of, known_rows
from foldwise.metrics.custom import own, reason, rehearse
from foldwise.metrics.labels import decide
from foldwise.metrics.metric import Array, Function, Metric, Presorted, Undefined

__all__ = [
    "ALIASES",
    "METRICS",
    "OPTIONS",
    "Metric",
    "Undefined",
    "auc_many",
    "auc_of",
    "check",
    "decide",
    "greater_is_better",
    "known_rows",
    "listing",
    "own",
    "rehearse",
    "resampler",
    "resolve",
    "score",
    "task_of",
]


# --- the public calls --------------------------------------------------------------------------------------


def score(metric: str | Metric, target: ArrayLike, pred: ArrayLike, weight: ArrayLike | None = None) -> float:
    """`metric`, or the one of that name, of `pred` against `target` (shapes above), in the metric's own direction.

    weight: (N,) non-negative row weights or counts, not all 0, optional.
    Raises UserError for unknown names, NaN or infinite values, shapes that differ, labels out of range; Undefined for
    truth on which the metric has no value (one class only).
    """
    metric = resolve(metric)
    truth, values = check(metric.name, target, pred)
    check_task(metric, truth, values)
    counts = None if weight is None else numbers(metric.name, "weight", weight)
    if counts is not None and (counts.shape != truth.shape[:1] or counts.min() < 0 or not counts.any()):
        raise UserError(f"{metric.name}: weight must be {truth.shape[0]} non-negative numbers, not 0 for all")
    value = float(metric.function(truth, values, counts))
    if metric.own is not None and np.isnan(value):
        raise Undefined(f"metric '{metric.name}' has no value on these rows{reason(metric.own, truth, values)}")
    return value


def greater_is_better(metric: str | Metric) -> bool:
    """Whether a larger value of the metric is better."""
    return resolve(metric).greater_is_better


def resolve(metric: str | Metric, **options: Any) -> Metric:
    """The metric of that name or alias, `map@K`, or `module:function` of one's own (see `own`); a Metric as it is.

    options: of a metric in OPTIONS, by name; UserError for those that it does not have.
    """
    if isinstance(metric, Metric):
        return metric
    if ":" in metric:
        return own(metric)
    key = metric.strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if options or key == "weighted_log_loss":
        return _with_options(key, options)
    numbered = re.fullmatch(r"(map|top_k_error|pauc)@?(\d*\.?\d+)", key)
    if numbered:
        return _numbered(numbered[1], numbered[2])
    if key not in METRICS:
        hint = nearest(key, [*METRICS, *ALIASES, "map@3"])
        raise UserError(f"metric '{metric}' is not known{hint} (or 'module:function' for your own)")
    return METRICS[key]


def _with_options(name: str, options: dict[str, Any]) -> Metric:
    known = OPTIONS.get(name)
    if known is None:
        raise UserError(f"metric '{name}' takes no options such as '{min(options)}'")
    strange = sorted(set(options) - set(known[1]))
    if strange:
        raise UserError(f"metric '{name}': no option '{strange[0]}'{nearest(strange[0], known[1])}")
    return known[0](**options)


def resampler(metric: Metric, target: Array, pred: Array) -> Callable[[Array], float]:
    """A function of row weights (N,) to the metric; areas under curves sort only once."""
    inner = metric.presorted
    if inner is None:
        return lambda weight: float(metric.function(target, pred, weight))
    each = [(known, inner(truth, values)) for known, truth, values in columns.columns(target, pred)]
    return lambda weight: columns.mean([column(weight[known]) for known, column in each])


def task_of(target: Array, pred: Array) -> str:
    """binary, multiclass, multilabel or regression, told from shapes and values."""
    if target.ndim == 2:
        return "multilabel" if (np.isin(target, (0, 1)) | np.isnan(target)).all() else "regression"
    if pred.ndim == 2:
        return "multiclass"
    return "binary" if np.isin(target, (0, 1)).all() else "regression"


def listing() -> str:
    """Every metric, a line each: its name, the tasks it is for, which way is better, what it is and needs."""
    known = [*METRICS.values(), *(resolve(f"{name}@{number}") for name, number in EXAMPLES.items())]
    known.append(_weighted_log_loss(weights=np.ones(2)))
    needs = {"01": "; both labels in each column", "1": "; a positive in each column", "2": "; two classes"}
    lines = []
    for metric in sorted(known, key=lambda one: one.name):
        name = re.sub(r"@.*", lambda shown: "@TPR" if "." in shown[0] else "@K", metric.name)
        tasks = ", ".join(sorted(metric.tasks - {"ordinal"}))
        options = f"; options: {', '.join(OPTIONS[name][1])}" if name in OPTIONS else ""
        way = "higher" if metric.greater_is_better else "lower"
        lines.append(f"{name:<26}{tasks:<32}{way:<8}{metric.says}{needs.get(metric.needs, '')}{options}")
    return "\n".join(lines)


# --- the registry -------------------------------------------------------------------------------------------

_LABELS = frozenset({"binary", "multiclass", "multilabel", "ordinal"})
_NUMBERS = frozenset({"regression"})
_ONE = frozenset({"binary", "multilabel"})
_LISTED = frozenset({"multiclass", "multilabel"})


def _of_columns(name: str, presorted: Presorted, says: str, needs: str = "01", of: columns.Of | None = None) -> Metric:
    each = columns.column_mean(of or columns.unsorted(presorted))
    return Metric(name, each, needs=needs, order_only=True, says=says, presorted=presorted)


def _weighted_auc(bands: Bands = ((0.4, 2.0), (1.0, 1.0))) -> Metric:
    ends, heights = [0.0, *(end for end, _ in bands)], [weight for _, weight in bands]
    if not (np.diff(ends) > 0).all() or ends[-1] != 1 or min(heights) < 0 or not any(heights):
        raise UserError(
            f"metric 'weighted_auc': bands are [upper true positive rate, weight], ascending to 1, not {list(bands)}"
        )
    scale = float(np.diff(ends) @ heights)
    says = "area under the ROC curve, weighted by bands of the true positive rate: [[0.4, 2], [1, 1]]"
    return _of_columns("weighted_auc", partial(columns.presorted_bands, bands, scale), says)


def _weighted_log_loss(weights: ArrayLike | None = None, normalise: str = "row") -> Metric:
    """weights: (classes,), or (columns, 2) for 0 and 1."""
    if weights is None:
        raise UserError(
            "metric 'weighted_log_loss' needs weights: `metric: {function: weighted_log_loss, weights: {class: 2}}` or "
            "{column: [1, 2]} for columns of 0 and 1"
        )
    cells = np.asarray(weights, np.float64)
    says = "log loss, cells weighted by column and truth; weights sum to one in each row (normalise: row) or in all"
    function = partial(rows.weighted_log_loss, cells, normalise == "row")
    more: dict[str, Any] = {"probability": True, "says": says, "outputs": len(cells)}
    return Metric("weighted_log_loss", function, greater_is_better=False, **more)


def _laplace(sigma: float = 70.0, delta: float = 1000.0) -> Metric:
    says = "Laplace log likelihood, sigma at least `sigma`, errors at most `delta`"
    return Metric("laplace_log_likelihood", partial(rows.laplace, sigma, delta), tasks=_NUMBERS, says=says, spread=True)


def _map(k: int) -> Metric:
    says = "mean average precision of the K likeliest"
    return Metric(f"map@{k}", partial(rows.map_at, k), tasks=_LISTED, says=says, top=k)


def _top_k_error(k: int) -> Metric:
    says = "share of rows whose class is not among the K likeliest; @1: 1 - accuracy"
    if k == 1:
        wrong = labels.of_labels(lambda counts: 1 - labels.accuracy(counts))
        return Metric("top_k_error@1", wrong, greater_is_better=False, decides=True, tasks=_LABELS, says=says, top=1)
    function, tasks = partial(rows.top_k_error, k), frozenset({"multiclass"})
    return Metric(f"top_k_error@{k}", function, greater_is_better=False, tasks=tasks, says=says, top=k)


def _partial_auc(least: float) -> Metric:
    says = "area under the ROC curve above a true positive rate, 0 to 1 - TPR"
    return _of_columns(f"pauc@{least:g}", partial(columns.presorted_bands, ((least, 0.0), (1.0, 1.0)), 1.0), says)


def _numbered(name: str, number: str) -> Metric:
    if name == "pauc":
        if not 0 < float(number) < 1:
            raise UserError(f"metric 'pauc@{number}': the true positive rate is between 0 and 1")
        return _partial_auc(float(number))
    if not number.isdigit() or not int(number):
        raise UserError(f"metric '{name}@{number}': a whole number from 1 on says how many classes are looked at")
    return _map(int(number)) if name == "map" else _top_k_error(int(number))


EXAMPLES = {"map": "5", "top_k_error": "1", "pauc": "0.8"}
OPTIONS: dict[str, tuple[Callable[..., Metric], tuple[str, ...]]] = {
    "weighted_auc": (_weighted_auc, ("bands",)),
    "weighted_log_loss": (_weighted_log_loss, ("weights", "normalise")),
    "laplace_log_likelihood": (_laplace, ("sigma", "delta")),
}


def _labelled(name: str, function: Function, says: str, **more: Any) -> Metric:
    return Metric(name, function, decides=True, says=says, **{"tasks": _LABELS, **more})


_AUC, _AP = columns.presorted_auc, columns.presorted_ap
_KAPPA, _QUADRATIC = (labels.of_labels(partial(labels.kappa, quadratic=squared)) for squared in (False, True))

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _of_columns("roc_auc", _AUC, "area under the ROC curve; mean of columns, classes one-vs-rest", of=columns.auc),
        _of_columns("average_precision", _AP, "area under the precision-recall curve, in steps", needs="1"),
        _weighted_auc(),
        Metric("log_loss", rows.log_loss, False, probability=True, says="cross-entropy; of labels, mean of cells"),
        Metric(
            "kl_divergence",
            rows.kl_divergence,
            False,
            probability=True,
            tasks=frozenset({"soft"}),
            says="Kullback-Leibler divergence of shares (votes) from predictions, rows that sum to one",
        ),
        _labelled("accuracy", labels.of_labels(labels.accuracy), "share of right classes, or of right cells"),
        _labelled("balanced_accuracy", labels.of_labels(labels.balanced_accuracy), "mean recall of the classes"),
        _labelled("f1", labels.of_labels(labels.f1), "F1 of the positive class; mean of labels", tasks=_ONE),
        _labelled("f1_macro", labels.f1_columns, "mean F1 of classes or labels"),
        _labelled("f1_micro", labels.f1_micro, "F1 of all cells counted together; of classes, the accuracy"),
        _labelled(
            "f1_samples",
            labels.f1_samples,
            "mean over rows of the F1 of a row's labels",
            tasks=frozenset({"multilabel"}),
        ),
        _labelled("mcc", labels.of_labels(labels.mcc), "Matthews' correlation coefficient"),
        Metric(
            "pf1",
            columns.column_mean(columns.pf1),
            needs="1",
            tasks=_ONE,
            says="probabilistic F1: predictions as counts",
        ),
        Metric(
            "lrap",
            rows.lrap,
            tasks=frozenset({"multilabel"}),
            says="label ranking average precision: true labels before others, in each row",
        ),
        _labelled("cohen_kappa", _KAPPA, "Cohen's kappa", needs="2"),
        _labelled(
            "quadratic_weighted_kappa", _QUADRATIC, "kappa of grades, by squared distance", needs="2", ordered=True
        ),
        Metric("rmse", rows.rmse, False, tasks=_NUMBERS, says="root mean squared error; mean of columns"),
        Metric("mae", rows.mae, False, tasks=_NUMBERS, says="mean absolute error"),
        _laplace(),
    )
}

ALIASES = {
    "auc": "roc_auc",
    "rocauc": "roc_auc",
    "auroc": "roc_auc",
    "roc_auc_score": "roc_auc",
    "logloss": "log_loss",
    "cross_entropy": "log_loss",
    "bce": "log_loss",
    "nll": "log_loss",
    "acc": "accuracy",
    "bacc": "balanced_accuracy",
    "ap": "average_precision",
    "pr_auc": "average_precision",
    "auprc": "average_precision",
    "f1_score": "f1",
    "f1_binary": "f1",
    "macro_f1": "f1_macro",
    "micro_f1": "f1_micro",
    "probabilistic_f1": "pf1",
    "probabilistic_f1_score": "pf1",
    "pfbeta": "pf1",
    "qwk": "quadratic_weighted_kappa",
    "quadratic_kappa": "quadratic_weighted_kappa",
    "kappa": "cohen_kappa",
    "cohen_kappa_score": "cohen_kappa",
    "matthews_corrcoef": "mcc",
    "samples_f1": "f1_samples",
    "error": "top_k_error@1",
    "label_ranking_average_precision": "lrap",
    "kl": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
    "laplace": "laplace_log_likelihood",
    "root_mean_squared_error": "rmse",
    "mean_absolute_error": "mae",
}
