"""Every run of a competition in one table: score with interval and spread, what it cost, and in what it differs.

Everything is computed from the runs' tables, logs and run.json, never remembered. A run that can't be used stands in
the list of those left out, with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import UserError, metrics, stats
from foldwise.blend.run_set import RunSet, family, look
from foldwise.core.cli import counted
from foldwise.core.schema import nearest
from foldwise.data import folds, submission
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, differences, merge, recipe_settings
from foldwise.data.runs import Run, RunInfo, finished_folds, read_run_info

NAN = float("nan")
DRAWS = 500  # bootstrap draws a run: enough for the second digit of an interval's end


@dataclass(frozen=True)
class Result:
    """One run. Scores are the competition's metric on out-of-fold rows; NaN where it does not exist.

    reason: why the run has no score here, '' where it has one. note: what a reader should know about one that has.
    gain, gain_low, gain_high: against the best complete run, on the rows of both, positive is better.
    seconds: of wall time that making it took, NaN where run.json does not say. public, private: the leaderboard's
    score of the submission of that name. differs: settings other than the defaults, key=value. blend: a submission of
    step 6, whose score is the nested one.
    """

    run: str
    folder: Path
    reason: str = ""
    note: str = ""
    model: str = ""
    image_size: str = ""
    rows: int = 0
    folds_done: int = 0
    folds_wanted: int = 0
    score: float = NAN
    low: float = NAN
    high: float = NAN
    by_fold: dict[int, float] = field(default_factory=dict)
    fold_mean: float = NAN
    fold_std: float = NAN
    gain: float = NAN
    gain_low: float = NAN
    gain_high: float = NAN
    seconds: float = NAN
    public: float = NAN
    private: float = NAN
    differs: dict[str, str] = field(default_factory=dict)
    run_set: RunSet | None = None
    blend: bool = False

    @property
    def complete(self) -> bool:
        """Whether every fold is there."""
        return not self.reason and self.folds_done == self.folds_wanted


def gather(competition: Competition, names: list[str] | None = None) -> list[Result]:
    """All runs in oof/<competition>/ (or those named), best score first, complete ones before others, broken ones last.

    UserError where there is nothing, or a name is unknown.
    """
    known = _candidates(competition)
    for name in names or []:
        if name not in known:
            raise UserError(f"{competition.runs() / name}: no such run{nearest(name, known)}")
    if not known:
        raise UserError(f"{competition.runs()}: no runs; make one with python src/02_train.py")
    metric = competition.scorer()
    results = [of_run(competition, name) for name in names or known]
    sign = 1 if metric.greater_is_better else -1
    best = _best(results, sign)
    results = [_compared(result, best, metric) for result in results]
    return sorted(results, key=lambda one: (bool(one.reason), not one.complete, _last(-sign * one.score), one.run))


def _candidates(competition: Competition) -> list[str]:
    """Folders that hold, or begin, a run."""
    folder = competition.runs()
    marks = ("oof.csv", "fold*")
    there = {path.parent.name for mark in marks for path in folder.glob(f"*/{mark}")} if folder.is_dir() else set()
    return sorted(there)


def _last(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def _best(results: list[Result], sign: int) -> Result | None:
    scored = [one for one in results if one.complete and not np.isnan(one.score)]
    return max(scored, key=lambda one: sign * one.score, default=None)


def blends(competition: Competition) -> list[Result]:
    """The submissions of step 6, best nested score first, by their JSON."""
    every = []
    for path in sorted(competition.submissions().glob("*.json")):
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            low, high = (NAN if end is None else end for end in meta["interval_95"])
            gain = {key: NAN if value is None else value for key, value in meta["gains"]["over_best_single"].items()}
            facts = {
                "score": meta["nested_score"],
                "low": low,
                "high": high,
                "rows": meta["rows"],
                "gain": gain["gain"],
            }
            facts |= {"gain_low": gain["low"], "gain_high": gain["high"]}
            model = f"{meta['method']} of {counted(len(meta['runs']), 'run')}"
            every.append(Result(path.stem, path.parent, model=model, blend=True, **facts))
        except (ValueError, KeyError, TypeError, OSError):
            continue  # of another tool, or damaged: step 6 says so where it matters
    sign = -1 if competition.scorer().greater_is_better else 1
    return sorted(with_leaderboard(competition, every), key=lambda one: sign * one.score)


def with_leaderboard(competition: Competition, every: list[Result]) -> list[Result]:
    """Results with the leaderboard's scores of the submissions of their names, by submissions/log.csv."""
    log = submission.scored(submission.read_log(competition), competition).drop_duplicates("name", keep="last")
    known = log.set_index("name")[["public", "private"]].astype(float).T.to_dict()
    return [replace(one, **known.get(one.run, {})) for one in every]


# --- one run ------------------------------------------------------------------------------------------------


def of_run(competition: Competition, name: str) -> Result:
    """One run, compared with none."""
    folder, metric = competition.runs() / name, competition.scorer()
    result = Result(name, folder)
    try:
        result = replace(result, folds_wanted=folds.load_folds(competition)["fold"].nunique())
        info = read_run_info(folder)
        result = replace(result, **_origin(name, info))
        if not (folder / "oof.csv").exists() and not finished_folds(folder):
            return replace(result, reason=_begun(folder))
        runs = look(competition, name)
        return replace(result, **_scores(metric, runs), note=_note(info, metric, runs), run_set=runs)
    except UserError as error:
        return replace(result, reason=str(error).replace(f"{folder}/", "").removeprefix(f"{folder}: "))
    except Exception as error:  # a folder that anybody may have filled: said, and the other runs still count
        return replace(result, reason=f"can't be used ({type(error).__name__}: {error})")


def _begun(folder: Path) -> str:
    logs = sorted(path.name.removesuffix("_log.csv") for path in folder.glob("fold*_log.csv"))
    return f"no fold is finished yet{f' (begun: {logs[0]})' if logs else ''}"


def _scores(metric: metrics.Metric, runs: RunSet) -> dict[str, Any]:
    pred = runs.preds[0]
    parts = {int(k): score(metric, runs.target[runs.folds == k], pred[runs.folds == k]) for k in np.unique(runs.folds)}
    values = [value for value in parts.values() if not np.isnan(value)]
    pooled = score(metric, runs.target, pred)
    low, high = stats.interval(_draws(metric, runs, [pred])[:, 0], pooled)
    return {
        "rows": len(pred),
        "folds_done": len(parts),
        "score": pooled,
        "low": low,
        "high": high,
        "by_fold": parts,
        "fold_mean": float(np.mean(values)) if values else NAN,
        "fold_std": float(np.std(values, ddof=1)) if len(values) > 1 else NAN,
    }


def score(metric: metrics.Metric, target: NDArray[Any], pred: NDArray[Any]) -> float:
    """The metric, or NaN where it does not exist (one class only)."""
    try:
        return metrics.score(metric, target, pred)
    except metrics.Undefined:
        return NAN


def _draws(metric: metrics.Metric, runs: RunSet, preds: list[NDArray[Any]]) -> NDArray[Any]:
    try:
        return stats.bootstrap(metric, runs.target, preds, runs.groups, DRAWS)
    except metrics.Undefined:
        return np.full((1, len(preds)), NAN)


def _note(info: RunInfo, metric: metrics.Metric, runs: RunSet) -> str:
    """What run.json says otherwise than the tables do."""
    gone = sorted(set(info.folds_done) - set(np.unique(runs.folds).tolist()))
    if gone:
        return f"fold {', '.join(map(str, gone))} is missing, though run.json says that it was done"
    if runs.unchecked:
        return "its table has no fold column: on other folds, its models saw rows that they are judged by"
    said, now = info.score, score(metric, runs.target, runs.preds[0])
    if info.metric == metric.name and said is not None and abs(now - said) > 1e-6 * max(1, abs(said)):
        return f"run.json says {said:.4f}, its tables {now:.4f}: they were changed since"
    return ""


def _compared(result: Result, best: Result | None, metric: metrics.Metric) -> Result:
    """With the paired gain over the best complete run, on the rows of `result` (whole folds)."""
    if best is None or best is result or best.run_set is None or result.run_set is None:
        return result
    mine, other = result.run_set, best.run_set
    same = np.isin(other.folds, np.unique(mine.folds))
    if same.sum() != len(mine.folds) or not np.array_equal(other.folds[same], mine.folds):
        return result
    preds = [mine.preds[0], other.preds[0][same]]
    draws = _draws(metric, mine, preds)
    values = [score(metric, mine.target, pred) for pred in preds]
    gained = stats.gain(draws, values[0], values[1], metric.greater_is_better)
    return replace(result, gain=gained["gain"], gain_low=gained["low"], gain_high=gained["high"])


# --- what made it -------------------------------------------------------------------------------------------


def _origin(name: str, info: RunInfo) -> dict[str, Any]:
    model, size = family(Run(name, Path(), pd.DataFrame(), pd.DataFrame(), info))
    settings = info.config
    if "embed" in settings:
        base = settings["embed"]
        model = f"{settings.get('head', 'head')} on {base if isinstance(base, str) else 'embeddings'}"
    elif not settings:
        model = "made elsewhere"
    elif (settings.get("model") or {}) and isinstance(settings["model"], dict) and settings["model"].get("second"):
        model = f"{model} + {settings['model']['second'].get('name', '?')}"
    return {"model": model, "image_size": size, "seconds": _seconds(info), "differs": differs(settings)}


def _seconds(info: RunInfo) -> float:
    if info.seconds is not None:
        return info.seconds
    known = [fold for fold in info.folds.values() if isinstance(fold.get("seconds"), int | float)]
    return _wall(known) if known else NAN


def _wall(each: list[dict[str, Any]]) -> float:
    """Seconds in which at least one fold was trained: folds side by side count once. One that does not say when it
    ended (of an older run) counts by itself."""
    total, until = sum(fold["seconds"] for fold in each if "ended" not in fold), float("-inf")
    spans = [(fold["ended"] - fold["seconds"], fold["ended"]) for fold in each if "ended" in fold]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def differs(settings: dict[str, Any]) -> dict[str, str]:
    """{dotted key: value} of a run's settings that are not the recipe's defaults (all of them for another step's)."""
    base = recipe_settings(Recipe()) if "image_size" in settings else {}
    changed = {}
    merged = merge(base, settings)  # a run from before a knob was there has its default
    for line in differences(base, merged):
        key, _, change = line.partition(": ")
        changed[key] = change.partition(" -> ")[2]
    return changed


def varying(results: list[Result]) -> set[str]:
    """Settings in which the runs of step 02 are not all alike (an absent one is the default)."""
    recipes = [one.differs for one in results if one.image_size]
    keys = {key for differs in recipes for key in differs}
    return {key for key in keys if len({differs.get(key) for differs in recipes}) > 1} - {"image_size", "model.name"}


def table(results: list[Result]) -> pd.DataFrame:
    """A row per run, as results.csv holds it: scores, folds, seconds, settings; reason for those without a score."""
    plain = [
        "run",
        "model",
        "image_size",
        "score",
        "low",
        "high",
        "fold_mean",
        "fold_std",
        "gain",
        "gain_low",
        "gain_high",
        "rows",
        "folds_done",
        "folds_wanted",
        "seconds",
        "public",
        "private",
    ]
    numbers = sorted({fold for one in results for fold in one.by_fold})
    rows = [
        {name: getattr(one, name) for name in plain}
        | {f"fold{k}": one.by_fold.get(k, NAN) for k in numbers}
        | {"differs": " ".join(f"{k}={v}" for k, v in one.differs.items()), "note": one.note, "reason": one.reason}
        for one in results
    ]
    return pd.DataFrame(rows)
