"""What a blend is worth, in plain numbers: the score to believe, gains with their intervals, what to warn of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import metrics, stats
from foldwise.blend import trust
from foldwise.blend.cuts import Cut, Graded, Tilted
from foldwise.blend.fit import Blend, fit_weights
from foldwise.blend.methods import ALL
from foldwise.blend.run_set import RunSet
from foldwise.blend.spaces import RANKED, Scaling, ranks, to_space
from foldwise.data import top
from foldwise.data.competition import Competition

Array = NDArray[Any]
Meta = dict[str, Any]  # what stands in the submission's JSON


def test_table(runs: RunSet, blend: Blend) -> pd.DataFrame:
    """The blend of the test predictions: id, pred..."""
    if runs.slots is not None:
        kept = top.of_slots_kept(runs.slots, blend.predict(runs.tests)[:, :-1])
        return pd.DataFrame({"id": runs.test_ids, **top.columns(kept)})
    pred = blend.predict(runs.tests).reshape(len(runs.test_ids), -1)
    return pd.DataFrame({"id": runs.test_ids, **dict(zip(runs.columns, pred.T, strict=True))})


def examine(
    competition: Competition, runs: RunSet, blend: Blend, seed: int = 0, automatic: Blend | None = None
) -> Meta:
    """Everything that the JSON and the page say, as plain numbers and lists.

    automatic: what a blend by hand is compared with.
    """
    metric, task = runs.judged_by(competition)
    preds = Scaling.of(runs.preds, task)(runs.preds)
    judged, mean = cut_alike(runs, blend, preds, metric, seed)
    singles = [float(metric.function(runs.target, run, None)) for run in judged]
    best = int(np.argmax(singles) if metric.greater_is_better else np.argmin(singles))
    rivals = [blend.nested, judged[best], mean, _nested_best(runs, metric, seed)]
    over = ["over_best_single", "over_plain_mean", "over_nested_best_single"]
    if automatic is not None:
        rivals, over = [*rivals, automatic.nested], [*over, "over_automatic"]
    draws = stats.bootstrap(metric, runs.target, rivals, runs.groups, seed=seed)
    scores = [float(metric.function(runs.target, pred, None)) for pred in rivals]
    gains = {
        name: stats.gain(draws[:, [0, at]], scores[0], scores[at], metric.greater_is_better)
        for at, name in enumerate(over, 1)
    }
    matrix = trust.correlation(trust.errors(preds, runs.target, task))
    meta = {
        "method": blend.method,
        "space": blend.space,
        "says": ALL[blend.method].says,
        "cuts": _cuts(blend, runs.columns),
        "note": blend.note,
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "order_only": metric.order_only,
        "nested_score": blend.nested_score,
        "interval_95": list(blend.interval),
        "draws": len(draws),
        "draws_undefined": int(np.isnan(draws).any(axis=1).sum()),
        "in_sample_score": blend.score,
        "best_single": runs.names[best],
        "best_single_score": singles[best],
        "best_of_many": _best_of_many(metric, runs, judged, singles, seed),
        "plain_mean_score": scores[2],
        "gains": gains,
        "automatic": automatic and {key: getattr(automatic, key) for key in ("method", "space", "nested_score")},
        "one_fold": runs.one_fold,
        "parents": {name: sorted({*made_of} & {*runs.names}) for name, made_of in runs.parents.items()},
        "expected": _expected(competition, runs, metric, draws, blend),
        "in_folds": trust.fold_ranks(metric, runs.target, blend.nested[None], runs.folds)[0],
        "rows": int(runs.target.shape[0]),
        "rarer_class": _rarer(runs.target) if competition.task == "binary" else None,
        "rows_of_all_folds": runs.rows_all,
        "patients_or_groups": int(np.unique(runs.groups).size),
        "runs": _runs(runs, blend, judged, metric),
        "coverage": runs.coverage,
        "unchecked_folds": list(runs.unchecked),
        "leave_one_out": leave_one_out(runs, blend, metric, seed),
        "leave_one_out_by": " in ".join(dict.fromkeys(_leave_one_out_method(runs, blend))),
        "methods": blend.table,
        "error_correlation": np.round(matrix, 4).tolist(),
        "effective_number_of_runs": trust.effective_number(matrix),
        "near_identical": trust.near_duplicates(
            preds, runs.names, [c.removeprefix("pred_") or "pred" for c in runs.columns]
        ),
        "oof_against_test": trust.drift(runs.preds, _tests_like_oof(runs), runs.names, seed),
    }
    meta["verdict"] = verdict(meta)
    meta["rank_order_kept"] = _rank_order_kept(runs, blend)
    meta["warnings"] = warnings(meta)
    return plain_json({**meta, "mixture": blend.mixture.saved()})


def _rank_order_kept(runs: RunSet, blend: Blend) -> float | None:
    """Spearman's correlation of the test predictions with those of ranks among the test rows, as they once were."""
    if blend.space not in RANKED:
        return None
    prepare = blend.prepare
    among_test = blend.combiner(to_space(blend.space, prepare.scaling(runs.tests), prepare.task))
    both = np.stack([blend.predict(runs.tests).reshape(-1), among_test.reshape(-1)])
    return float(trust.correlation(ranks(both))[0, 1])


def cut_alike(runs: RunSet, blend: Blend, preds: Array, metric: metrics.Metric, seed: int) -> tuple[Array, Array]:
    """The runs and their plain mean, with a cut where the blend has one: fitted without each fold, as the blend's."""
    kind = "".join(blend.method.partition("+")[1:])
    if not kind:
        return preds, preds.mean(axis=0)
    rows: Any = {"folds": runs.folds, "groups": runs.groups, "task": blend.prepare.task, "draws": 0}
    *singles, mean = (
        fit_weights(some, runs.target, metric, f"mean{kind}", seed, **rows).nested
        for some in [*runs.preds[:, None], runs.preds]
    )
    return np.stack(singles), mean


def _cuts(blend: Blend, columns: list[str]) -> dict[str, float]:
    """What was tuned behind the method: {label: its cut}, {grades: the cut between them} or {class: its factor}."""
    fitted = blend.combiner
    if isinstance(fitted, Graded):
        return {f"{fitted.low + k}|{fitted.low + k + 1}": float(cut) for k, cut in enumerate(fitted.cuts)}
    if not isinstance(fitted, (Cut, Tilted)):
        return {}
    return {name.removeprefix("pred_"): float(cut) for name, cut in zip(columns, fitted.cuts, strict=True)}


def _rarer(target: Array) -> int:
    return int(min((target > 0.5).sum(), (target <= 0.5).sum()))


def _best_of_many(metric: metrics.Metric, runs: RunSet, preds: Array, singles: list[float], seed: int) -> float:
    """By how much the score of the best of these runs flatters it: the bootstrap's optimism of picking it (Efron)."""
    sign = 1 if metric.greater_is_better else -1
    draws = sign * stats.bootstrap(metric, runs.target, list(preds), runs.groups, 200, seed)
    known = ~np.isnan(draws).any(axis=1)
    picked = draws[known].argmax(axis=1)
    return float(np.mean(draws[known].max(axis=1) - sign * np.array(singles)[picked])) if known.any() else float("nan")


def _nested_best(runs: RunSet, metric: metrics.Metric, seed: int) -> Array:
    """Predictions of the best single run, chosen without each fold: a rival that no luck of these rows has made."""
    rows: Any = {"folds": runs.folds, "groups": runs.groups}
    return fit_weights(runs.preds, runs.target, metric, "best", seed, draws=0, **rows).nested


def _expected(competition: Competition, runs: RunSet, metric: metrics.Metric, draws: Array, blend: Blend) -> Meta:
    """The public leaderboard's score, by the OOF's interval and the draw of so many public rows, and the change there
    that means nothing: what chance makes of two submissions as alike as this blend and the plain mean."""
    share = len(runs.target) / max(competition.submission.public * len(runs.test_ids), 1)  # variance goes by 1 / rows
    low, high = (
        blend.nested_score + np.sqrt(1 + share / stats.WIDER**2) * (end - blend.nested_score) for end in blend.interval
    )
    top = 1.0 if np.nanmax(draws, initial=0) <= 1 else np.inf
    apart = [1.96 * np.sqrt(share) * float(np.nanstd(draws[:, 0] - draws[:, at])) for at in (2, 1)]
    noise, rows = apart[0] or apart[1], int(len(runs.target) / share)
    return {"low": low, "high": min(high, top), "noise": noise, "public_rows": rows}


def _tests_like_oof(runs: RunSet) -> Array:
    return runs.tests if runs.tests_by_one is None else runs.tests_by_one


def _runs(runs: RunSet, blend: Blend, preds: Array, metric: metrics.Metric) -> list[Meta]:
    by_fold = trust.fold_ranks(metric, runs.target, preds, runs.folds)
    weights = blend.weights if blend.weights.ndim == 1 else blend.weights.mean(axis=1)
    return [
        {"run": name, "model": family[0], "image_size": family[1], "weight": float(weight), **scores}
        for name, family, weight, scores in zip(runs.names, runs.families, weights, by_fold, strict=True)
    ]


def leave_one_out(runs: RunSet, blend: Blend, metric: metrics.Metric, seed: int) -> list[Meta]:
    """What each run adds to the nested score, {run, adds}: with the blend's own method, or by the plain mean where that
    would take minutes."""
    m = len(runs.names)
    if m == 1:
        return []
    method, space = _leave_one_out_method(runs, blend)

    def nested_score(keep: Array) -> float:
        families = [runs.families[i] for i in keep]
        rows: Any = {"folds": runs.folds, "groups": runs.groups, "families": families, "task": blend.prepare.task}
        return fit_weights(
            runs.preds[keep], runs.target, metric, method, seed, space=space, draws=0, cut=False, **rows
        ).nested_score

    everything = np.arange(m)
    whole = nested_score(everything)
    sign = 1 if metric.greater_is_better else -1
    return trust.leave_one_out(runs.names, whole, lambda i: nested_score(np.delete(everything, i)), sign)


def _leave_one_out_method(runs: RunSet, blend: Blend) -> tuple[str, str]:
    heavy = len(runs.names) > 20 or runs.preds.size > 20_000_000
    base, plus, kind = blend.method.partition("+")
    return (f"mean{plus}{kind}", "prob") if heavy or base == "given" else (blend.method, blend.space)


def verdict(meta: Meta) -> str:
    """One sentence, never from an in-sample score."""
    name, gains = meta["best_single"], meta["gains"]
    if len(meta["runs"]) == 1:
        return "One run only: nothing to blend."
    if meta["method"].startswith("best"):
        return f"No blend is better than the best single run: this is {name}."
    gain, fair = gains["over_best_single"], gains["over_nested_best_single"]
    if gain["low"] > 0:
        return f"The blend beats the best single run, {name}, by {_interval(gain)}."
    if fair["high"] < 0:  # a run that is the best of many on these rows is in part lucky on them
        return (
            f"The blend is worse than the best single run, chosen without the rows it is judged on: {_interval(fair)}."
        )
    rows, few = meta["rows"], meta["rarer_class"]
    of = f"{few} rows of the rarer class" if few is not None else f"{rows:,} rows"
    least = (gain["high"] - gain["low"]) / 2
    return (
        f"The blend does not demonstrably beat the best single run, {name}: {_interval(gain)}; with {of} a gain below "
        f"{least:.4f} can't be told from none."
    )


def _interval(gain: Meta) -> str:
    return f"{gain['gain']:+.4f} (95 % interval {gain['low']:+.4f} to {gain['high']:+.4f})"


def warnings(meta: Meta) -> list[str]:
    """What a careful reader would want pointed out."""
    lines = [
        f"{', '.join(runs)} are near-identical in {column}: together they count as one opinion"
        for column, runs in trust.clusters(meta["near_identical"])
    ]
    for name in meta["oof_against_test"]["named"]:
        auc = meta["oof_against_test"]["auc_by_run"][name]
        lines.append(f"{name}: its test predictions look unlike its out-of-fold ones (told apart with AUC {auc:.2f})")
    if meta["one_fold"] is not None:
        lines.append(
            f"fold {meta['one_fold']} alone: scored on its {meta['rows']} rows, and test rows are predicted by its "
            "models alone; the other folds add rows to the one and models to the other"
        )
    lines += [
        f"{name} was made of {' and '.join(made_of)}, which stand beside it: they count twice"
        for name, made_of in meta["parents"].items()
        if made_of
    ]
    wanted = {fold for counts in meta["coverage"].values() for fold in counts}
    for name, counts in meta["coverage"].items():
        if set(counts) != wanted and meta["one_fold"] is None:
            lines.append(f"{name} lacks fold {', '.join(sorted(wanted - set(counts)))}")
    if meta["rows"] < meta["rows_of_all_folds"] and meta["one_fold"] is None:
        lines.append(f"fitted and judged on {meta['rows']} of {meta['rows_of_all_folds']} rows, those all runs cover")
    lines += [
        f"{name} has no fold column: if it was made on other folds than these, its models saw rows that they are "
        "judged by, and its score and weight are too good"
        for name in meta["unchecked_folds"]
    ]
    apart = meta["in_folds"]["fold_ranked"] - meta["in_folds"]["raw"]
    if apart > (meta["interval_95"][1] - meta["nested_score"]) / 4 and meta["order_only"]:
        lines.append(
            f"the folds' models are on different scales: ranked within folds the blend scores {apart:+.4f}; test rows "
            "are predicted by the mean of all folds, which does not suffer from that"
        )
    if meta["draws_undefined"]:
        share = f"{meta['draws_undefined']} of {meta['draws']}"
        lines.append(f"{share} bootstrap draws are left out of the intervals: {meta['metric']} has no value on them")
    kept = meta["rank_order_kept"]
    if kept is not None and kept < 0.9999:
        lines.append(
            "ranks are taken among the out-of-fold predictions, so that a row's score does not depend on the rows "
            f"beside it; ranks among the test rows, as before, would order these otherwise (correlation {kept:.4f})"
        )
    apart = abs(meta["in_sample_score"] - meta["nested_score"])
    width = meta["interval_95"][1] - meta["interval_95"][0]
    if apart > width / 2:
        lines.append(f"the weights overfit: in-sample {meta['in_sample_score']:.4f}, nested {meta['nested_score']:.4f}")
    return lines


def plain_json(value: Any) -> Any:
    """Numpy scalars as numbers, NaN as null."""
    if isinstance(value, dict):
        return {str(key): plain_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
