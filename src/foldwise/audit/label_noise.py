"""Label noise candidates by confident learning (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068), over all runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.data import index, top
from foldwise.data.competition import Competition
from foldwise.data.runs import Run, load_run


def suspects(target: np.ndarray, pred: np.ndarray) -> pd.DataFrame:
    """Rows that are confidently another class than their label: row, given, suggested, p_given, p_suggested.

    target: int64 (N,) classes; pred: out-of-fold probabilities (N, C). Worst first. A row is confidently j if its p_j
    reaches the mean p_j of the rows labelled j; among several such j the largest p_j counts. A class that is never
    predicted with confidence, or a badly calibrated model, moves its own threshold along: the point of the method.
    """
    row, given, confident = _confident(target, pred)
    off = given != confident
    suspect = pd.DataFrame({"row": row[off], "given": given[off], "suggested": confident[off]})
    suspect["p_given"] = pred[suspect["row"], suspect["given"]]
    suspect["p_suggested"] = pred[suspect["row"], suspect["suggested"]]
    order = (suspect["p_suggested"] - suspect["p_given"]).sort_values(ascending=False, kind="stable").index
    return suspect.loc[order].reset_index(drop=True)


def _confident(target: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    classes = pred.shape[1]
    present = np.bincount(target, minlength=classes) > 0
    own = np.bincount(target, weights=pred[np.arange(len(target)), target], minlength=classes)
    threshold = np.where(present, own / np.maximum(np.bincount(target, minlength=classes), 1), np.inf)
    above = np.where(pred >= threshold, pred, -1.0)
    rows = np.flatnonzero(above.max(axis=1) >= 0)
    return rows, target[rows], above[rows].argmax(axis=1)


def candidates(competition: Competition, table: pd.DataFrame) -> pd.DataFrame | None:
    """Training rows whose label at least half of the finished runs contradict with confidence, the worst first.

    id, given, suggested (names), score (how much likelier the suggestion is, mean over all runs, 0 where one does not
    contradict), agree (share of the runs), runs (their names). None for regression and votes, and where no run with
    probabilities is finished. Multilabel: each label by itself, named 'label: yes' and 'label: no'.
    """
    if competition.task in {"regression", "soft"}:
        return None
    names = sorted(path.parent.name for path in competition.runs().glob("*/oof.csv"))
    runs = [run for name in names if (run := _load(competition, name)) is not None]
    if not runs:
        return None
    each = pd.concat([_of_table(competition, table, run.oof).assign(runs=run.name) for run in runs])
    each["score"] = each["p_suggested"] - each["p_given"]
    whole = each.groupby(["id", "given", "suggested"], as_index=False).agg({"score": "sum", "runs": " ".join})
    count = whole["runs"].str.count(" ") + 1
    whole = whole.assign(score=whole["score"] / len(runs), agree=count / len(runs))
    whole = whole[2 * count >= len(runs)].sort_values(["score", "id"], ascending=[False, True], kind="stable")
    return whole[["id", "given", "suggested", "score", "agree", "runs"]].reset_index(drop=True)


def _load(competition: Competition, name: str) -> Run | None:
    """The run; None of one that gives no probability of every class."""
    try:
        run = load_run(competition, name, tests=False)
    except UserError:
        return None
    if top.is_top(run.oof) or not set(competition.truth) <= set(run.oof):
        return None
    pred = run.oof[run.pred_columns].to_numpy(float)
    return run if pred.min() >= 0 and pred.max() <= 1 else None


def _of_table(competition: Competition, table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    names = index.classes(competition, table)
    if competition.task == "multiclass":
        target = pd.Categorical(frame["target"].astype(str), categories=names).codes.astype(np.int64)
        questions = [(names, target, frame[[f"pred_{name}" for name in names]].to_numpy(float))]
    else:
        columns = (
            [("target", "pred", ["0", "1"])]
            if competition.task == "binary"
            else [(f"target_{name}", f"pred_{name}", [f"{name}: no", f"{name}: yes"]) for name in names]
        )
        questions = []
        for truth, pred, words in columns:
            p = frame[pred].to_numpy(float)
            given = index.known(frame[[truth]])[truth].fillna(-1).to_numpy(np.int64)
            questions.append((words, given, np.column_stack([1 - p, p])))
    parts = []
    for words, target, pred in questions:
        known = target >= 0
        rows = suspects(target[known], pred[known])
        rows.insert(0, "id", frame["id"].to_numpy()[known][rows.pop("row")])
        parts.append(
            rows.assign(given=[words[k] for k in rows["given"]], suggested=[words[k] for k in rows["suggested"]])
        )
    return pd.concat(parts, ignore_index=True)
