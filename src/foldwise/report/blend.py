"""What a blend is worth, written down: the facts beside the submission, and a self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import UserError, metrics
from foldwise.blend import Blend, fit_weights, trust
from foldwise.blend.methods import METHODS
from foldwise.blend.run_set import RunSet
from foldwise.blend.spaces import Scaling
from foldwise.core.files import write_text
from foldwise.data import submission
from foldwise.data.competition import Competition
from foldwise.report import blend_figures, figures

Array = NDArray[Any]
Facts = dict[str, Any]


def renames(pairs: Sequence[str]) -> dict[str, str]:
    """['image_name=id', ...] as a mapping; UserError for anything else."""
    for pair in pairs:
        if pair.count("=") != 1 or pair.startswith("=") or pair.endswith("="):
            raise UserError(f"--columns {pair}: expected THEIRS=OURS, such as image_name=id")
    return dict(pair.split("=") for pair in pairs)


def test_table(runs: RunSet, blend: Blend) -> pd.DataFrame:
    """The blend of the test predictions: id, pred..."""
    pred = blend.predict(runs.tests).reshape(len(runs.test_ids), -1)
    return pd.DataFrame({"id": runs.test_ids, **dict(zip(runs.columns, pred.T, strict=True))})


# --- facts --------------------------------------------------------------------------------------------------


def examine(competition: Competition, runs: RunSet, blend: Blend, seed: int = 0) -> Facts:
    """Everything that the JSON and the page say, as plain numbers and lists."""
    metric = competition.scorer()
    preds = Scaling.of(runs.preds, competition.task)(runs.preds)
    singles = [float(metric.function(runs.target, run, None)) for run in preds]
    best = int(np.argmax(singles) if metric.greater_is_better else np.argmin(singles))
    plain = preds.mean(axis=0)
    draws = trust.bootstrap(metric, runs.target, [blend.nested, preds[best], plain], runs.groups, seed=seed)
    scores = [blend.nested_score, singles[best], float(metric.function(runs.target, plain, None))]
    gains = {
        name: trust.gain(draws[:, [0, at]], scores[0], scores[at], metric.greater_is_better)
        for name, at in (("over_best_single", 1), ("over_plain_mean", 2))
    }
    matrix = trust.correlation(trust.errors(preds, runs.target, competition.task))
    facts = {
        "method": blend.method,
        "space": blend.space,
        "says": METHODS[blend.method].says,
        "note": blend.note,
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "nested_score": blend.nested_score,
        "interval_95": list(blend.interval),
        "draws": len(draws),
        "draws_undefined": int(np.isnan(draws).any(axis=1).sum()),
        "in_sample_score": blend.score,
        "best_single": runs.names[best],
        "best_single_score": singles[best],
        "plain_mean_score": scores[2],
        "gains": gains,
        "rows": int(runs.target.shape[0]),
        "rows_of_all_folds": runs.rows_all,
        "patients_or_groups": int(np.unique(runs.groups).size),
        "runs": _runs(runs, blend, preds, metric),
        "coverage": runs.coverage,
        "unchecked_folds": list(runs.unchecked),
        "leave_one_out": _leave_one_out(runs, blend, metric, seed),
        "leave_one_out_by": " in ".join(dict.fromkeys(_leave_one_out_method(runs, blend))),
        "methods": blend.table,
        "error_correlation": np.round(matrix, 4).tolist(),
        "effective_number_of_runs": trust.effective_number(matrix),
        "near_identical": trust.twins(preds, runs.names, [c.removeprefix("pred_") or "pred" for c in runs.columns]),
        "oof_against_test": trust.drift(runs.preds, _tests_like_oof(runs), runs.names, seed),
    }
    facts["verdict"] = verdict(facts)
    facts["warnings"] = warnings(facts)
    return plain_json(facts)


def _tests_like_oof(runs: RunSet) -> Array:
    return runs.tests if runs.tests_by_one is None else runs.tests_by_one


def _runs(runs: RunSet, blend: Blend, preds: Array, metric: metrics.Metric) -> list[Facts]:
    by_fold = trust.fold_ranks(metric, runs.target, preds, runs.folds)
    weights = blend.weights if blend.weights.ndim == 1 else blend.weights.mean(axis=1)
    return [
        {"run": name, "model": family[0], "image_size": family[1], "weight": float(weight), **scores}
        for name, family, weight, scores in zip(runs.names, runs.families, weights, by_fold, strict=True)
    ]


def _leave_one_out(runs: RunSet, blend: Blend, metric: metrics.Metric, seed: int) -> list[Facts]:
    """With the blend's own method, or by the plain mean where that would take minutes."""
    m = len(runs.names)
    if m == 1:
        return []
    method, space = _leave_one_out_method(runs, blend)

    def nested_score(keep: Array) -> float:
        known: dict[str, Any] = {
            "folds": runs.folds,
            "groups": runs.groups,
            "families": [runs.families[i] for i in keep],
        }
        made = fit_weights(runs.preds[keep], runs.target, metric, method, seed, space=space, draws=0, **known)
        return made.nested_score

    everything = np.arange(m)
    whole = nested_score(everything)
    sign = 1 if metric.greater_is_better else -1
    return trust.leave_one_out(runs.names, whole, lambda i: nested_score(np.delete(everything, i)), sign)


def _leave_one_out_method(runs: RunSet, blend: Blend) -> tuple[str, str]:
    heavy = len(runs.names) > 20 or runs.preds.size > 20_000_000
    return ("mean", "prob") if heavy else (blend.method, blend.space)


def verdict(facts: Facts) -> str:
    """One sentence, never from an in-sample score."""
    gain = facts["gains"]["over_best_single"]
    interval = f"(95 % interval {gain['low']:+.4f} to {gain['high']:+.4f})"
    name = facts["best_single"]
    if len(facts["runs"]) == 1:
        return "One run only: nothing to blend."
    if gain["low"] > 0:
        return f"The blend beats the best single run, {name}, by {gain['gain']:.4f} {interval}."
    if gain["high"] < 0:
        return f"The blend is worse than the best single run, {name}, by {-gain['gain']:.4f} {interval}."
    return f"The blend does not demonstrably beat the best single run, {name}: {gain['gain']:+.4f} {interval}."


def warnings(facts: Facts) -> list[str]:
    """What a careful reader would want pointed out."""
    found = []
    found += [
        f"{', '.join(runs)} are near-identical in {column}: together they count as one opinion"
        for column, runs in trust.clusters(facts["near_identical"])
    ]
    for name in facts["oof_against_test"]["named"]:
        auc = facts["oof_against_test"]["auc_by_run"][name]
        found.append(f"{name}: its test predictions look unlike its out-of-fold ones (told apart with AUC {auc:.2f})")
    wanted = {fold for counts in facts["coverage"].values() for fold in counts}
    for name, counts in facts["coverage"].items():
        if set(counts) != wanted:
            found.append(f"{name} lacks fold {', '.join(sorted(wanted - set(counts)))}")
    if facts["rows"] < facts["rows_of_all_folds"]:
        found.append(f"fitted and judged on {facts['rows']} of {facts['rows_of_all_folds']} rows, those all runs cover")
    found += [
        f"{name} has no fold column: if it was made on other folds than these, its models saw rows that they are "
        "judged by, and its score and weight are too good"
        for name in facts["unchecked_folds"]
    ]
    if facts["draws_undefined"]:
        share = f"{facts['draws_undefined']} of {facts['draws']}"
        found.append(f"{share} bootstrap draws are left out of the intervals: {facts['metric']} has no value on them")
    apart = abs(facts["in_sample_score"] - facts["nested_score"])
    width = facts["interval_95"][1] - facts["interval_95"][0]
    if apart > width / 2:
        found.append(
            f"the weights overfit: in-sample {facts['in_sample_score']:.4f}, nested {facts['nested_score']:.4f}"
        )
    return found


def plain_json(value: Any) -> Any:
    """Numpy scalars as numbers, NaN as null."""
    if isinstance(value, dict):
        return {str(key): plain_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --- the page -----------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p.lead { font-size: 1.1rem; } .muted { color: #666; font-size: .9rem; }
table { border-collapse: collapse; font-size: .88rem; } th, td { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 2px solid #444; font-weight: 600; } td { border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; } tr.chosen td { font-weight: 700; background: #eef5fb; }
.wide { overflow-x: auto; } img { max-width: 100%; } ul.warn li { margin: .2rem 0; }
ul.warn { background: #fff6e5; border-left: 4px solid #e69f00; padding: .6rem 1rem .6rem 2rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 2.2rem; margin: 1rem 0; } .numbers b { font-size: 1.5rem; }
.numbers b { display: block; }
"""


def write_blend_report(competition: Competition, name: str, runs: RunSet, blend: Blend, facts: Facts) -> Path:
    """submissions/<competition>/<name>.html, and the submission's line in submissions/log.csv."""
    submission.log_submission(competition, name, facts)
    path = competition.submissions() / f"{name}.html"
    write_text(path, page(competition, name, runs, blend, facts))
    return path


def page(competition: Competition, name: str, runs: RunSet, blend: Blend, facts: Facts) -> str:
    """The report as HTML that needs no other file."""
    low, high = (_number(value) for value in facts["interval_95"])
    numbers = [
        ("nested " + facts["metric"], _number(facts["nested_score"]), f"95 % interval {low} to {high}"),
        ("best single run", _number(facts["best_single_score"]), facts["best_single"]),
        ("plain mean", _number(facts["plain_mean_score"]), f"of {len(runs.names)} runs"),
        ("in-sample", _number(facts["in_sample_score"]), "not to be believed"),
        ("effective runs", f"{facts['effective_number_of_runs']:.1f}", f"of {len(runs.names)}, by their errors"),
    ]
    cells = "".join(
        f"<div><span class=muted>{_e(a)}</span><b>{b}</b><span class=muted>{_e(c)}</span></div>" for a, b, c in numbers
    )
    warned = "".join(f"<li>{_e(one)}</li>" for one in facts["warnings"])
    drawn = "".join(
        f"<h2>{_e(title)}</h2><p class=muted>{_e(caption)}</p>"
        f"<img alt='{_e(title)}' src='data:image/png;base64,{data}'>"
        for title, caption, data in blend_figures.draw(competition, runs, blend, facts)
    )
    note = f"<p>{_e(facts['note'][:1].upper() + facts['note'][1:])}.</p>" if facts["note"] else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(name)}: {_e(competition.name)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<h1>{_e(name)}</h1><p class=muted>{_e(competition.name)}: {_e(facts['says'])} "
        f"(method {facts['method']}, space {facts['space']}), {facts['rows']} rows, {len(runs.names)} runs</p>"
        f"<p class=lead>{_e(facts['verdict'])}</p>{note}<div class=numbers>{cells}</div>"
        + (f"<ul class=warn>{warned}</ul>" if warned else "")
        + _runs_table(facts)
        + _methods_table(facts)
        + drawn
        + "</html>\n"
    )


def _runs_table(facts: Facts) -> str:
    adds = {row["run"]: row["adds"] for row in facts["leave_one_out"]}
    drift = facts["oof_against_test"]["auc_by_run"]
    head = [
        "run",
        "model",
        "size",
        "weight",
        "OOF",
        "ranked in folds",
        "mean of folds",
        "± sd",
        "adds",
        "drift",
        "rows",
    ]
    rows = [
        [
            row["run"],
            row["model"],
            row["image_size"],
            f"{row['weight']:.3f}",
            _number(row["raw"]),
            _number(row["fold_ranked"]),
            _number(row["fold_mean"]),
            _number(row["fold_std"]),
            "" if adds.get(row["run"]) is None else f"{adds[row['run']]:+.4f}",
            f"{drift[row['run']]:.2f}",
            str(sum(facts["coverage"].get(row["run"], {}).values())),
        ]
        for row in facts["runs"]
    ]
    more = (
        f"adds: what the nested score of {facts['leave_one_out_by']} loses without the run. drift: AUC that tells its "
        "test predictions from its out-of-fold ones, 0.5 cannot tell. Ranked in folds far above OOF: its folds are on "
        "different scales."
    )
    return f"<h2>Runs</h2><div class=wide>{_table(head, rows)}</div><p class=muted>{more}</p>"


def _methods_table(facts: Facts) -> str:
    if not facts["methods"]:
        return ""
    sign = -1 if facts["greater_is_better"] else 1
    ranked = sorted(facts["methods"], key=lambda row: sign * (row["nested_score"] or 0))
    rows = [
        [
            f"{row['method']} ({row['space']})",
            METHODS[row["method"]].says,
            _number(row["nested_score"]),
            f"{row['behind_best']:.4f}",
            f"{row['standard_error']:.4f}",
            "yes" if row["within"] else "",
        ]
        for row in ranked
    ]
    chosen = [row["method"] == facts["method"] and row["space"] == facts["space"] for row in ranked]
    head = ["method", "what it is", "nested", "behind best", "standard error", "within one"]
    more = (
        "Chosen: the simplest within one paired standard error of the best. The headline is not that row's score but "
        "the score of this choosing, done anew without each fold, and so free of the flattery of a best of many."
    )
    return f"<h2>Methods tried</h2><div class=wide>{_table(head, rows, chosen)}</div><p class=muted>{more}</p>"


def _table(head: list[str], rows: list[list[str]], chosen: Sequence[bool] = ()) -> str:
    marks = list(chosen) or [False] * len(rows)
    top = "".join(f"<th>{_e(one)}</th>" for one in head)
    body = "".join(
        f"<tr{' class=chosen' if mark else ''}>" + "".join(f"<td>{_e(one)}</td>" for one in row) + "</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def print_summary(facts: Facts, path: Path) -> None:
    """The few lines that a person at the terminal wants."""
    low, high = facts["interval_95"]
    width = max(len(row["run"]) for row in facts["runs"])
    print(f"{'run':<{width}}  weight  {facts['metric']}")
    for row in facts["runs"]:
        print(f"{row['run']:<{width}}  {row['weight']:6.3f}  {_number(row['raw'])}")
    print(
        f"{facts['method']} ({facts['space']}): nested {_number(facts['nested_score'])} "
        f"[{_number(low)}, {_number(high)}], in-sample {_number(facts['in_sample_score'])}"
    )
    print(facts["verdict"])
    for line in [facts["note"], *facts["warnings"]]:
        if line:
            print(f"note: {line}")
    print(f"wrote {path}, {path.with_suffix('.json').name} and {path.with_suffix('.html').name}")


def note_scores(competition: Competition, name: str, scores: Sequence[float]) -> None:
    """--lb: the scores go into submissions/log.csv; from three on, cv_against_lb.png shows what CV is worth."""
    lines = submission.log_leaderboard(competition, name, scores)
    print(f"{submission.log_path(competition)}: {name} scored {' / '.join(f'{score:g}' for score in scores)}")
    figure = blend_figures.leaderboard(lines)
    if figure is not None:
        path = competition.submissions() / "cv_against_lb.png"
        figures.save(figure, path, dpi=130, tight=True)
        print(f"wrote {path}")
    elif len(lines) < 3:
        print(f"{3 - len(lines)} more scored submissions until CV can be drawn against the leaderboard")
