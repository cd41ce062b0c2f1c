"""How runs and submissions of a demo score beside the best possible: the only reader of its solution.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from foldwise import UserError, metrics
from foldwise.core import paths
from foldwise.core.cli import say

SCORES = ["kind", "name", "oof_auc", "oof_std", "test_auc", "test_low", "test_high"]


def print_scores(root: Path | None = None, csv: Path | None = None, name: str = "demo") -> None:
    """Print how runs and submissions score beside the best possible, and the newest submission's path."""
    root = root or paths.output_root()
    scores = score_table(root, name)
    say(_aligned(scores))
    if csv is not None:
        scores.to_csv(csv, index=False, float_format="%.6f")
    newest = max(_submissions(root, name), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is not None:
        say(f"\nsubmission: {newest}")


def score_table(root: Path, name: str = "demo") -> pd.DataFrame:
    """kind, name, oof_auc, oof_std (over folds), test_auc, test_low, test_high: a row per run and submission.

    The interval is a 95 % bootstrap over patients. The last row is the Bayes optimum, p against the labels.
    """
    solution = _read_solution(root, name)
    train, test = solution[solution["split"] == "train"], solution[solution["split"] == "test"]
    counts = _resampled_patients(test["patient_id"])
    rows = [_score_run(folder, train, test, counts) for folder in _runs(root, name)]
    for path in _submissions(root, name):
        pred = _joined(path, str(test.index.name), "target", test, whole=True)
        rows.append({"kind": "submission", "name": path.stem, **_test_scores(test, pred, counts)})
    if not rows:
        raise UserError(f"{root / 'oof' / name}: no finished run yet; first: python src/02_train.py --fold all")
    best = {"kind": "optimum", "name": "Bayes (the true p)", "oof_auc": _auc(train, train["probability"])}
    rows.append({**best, "oof_std": np.nan, **_test_scores(test, test["probability"], counts)})
    return pd.DataFrame(rows, columns=SCORES)


def _read_solution(root: Path, name: str) -> pd.DataFrame:
    path = root / "input" / name / "solution.csv"
    if not path.exists():
        raise UserError(f"{path}: not there yet; first: python src/00_demo.py")
    table = pd.read_csv(path)
    return table.set_index(table.columns[0])


def _runs(root: Path, name: str) -> list[Path]:
    folders = (path.parent for path in (root / "oof" / name).glob("*/oof.csv"))
    return sorted(folder for folder in folders if (folder / "test.csv").exists())


def _submissions(root: Path, name: str) -> list[Path]:
    return sorted((root / "submissions" / name).glob("*.csv"))


def _score_run(folder: Path, train: pd.DataFrame, test: pd.DataFrame, counts: NDArray[Any]) -> dict[str, Any]:
    oof = _joined(folder / "oof.csv", "id", "pred", train, whole=False)
    fold = pd.read_csv(folder / "oof.csv", dtype={"id": str}).set_index("id")["fold"].reindex(oof.index)
    truth = train.loc[oof.index]
    of_folds = [_auc(truth[fold == k], oof[fold == k]) for k in sorted(fold.unique())]
    pred = _joined(folder / "test.csv", "id", "pred", test, whole=True)
    of_train = {"oof_auc": _auc(truth, oof), "oof_std": float(np.nanstd(of_folds, ddof=1))}
    return {"kind": "run", "name": folder.name, **of_train, **_test_scores(test, pred, counts)}


def _joined(path: Path, key: str, column: str, truth: pd.DataFrame, whole: bool) -> pd.Series[float]:
    """A table's predictions in the order of `truth`; it may lack rows only where it need not be `whole`."""
    table = pd.read_csv(path, dtype={key: str})
    for name in (key, column):
        if name not in table:
            raise UserError(f"{path}: no column {name}; move the file away or write it anew")
    strangers = table.loc[~table[key].isin(truth.index), key]
    absent = truth.index[~truth.index.isin(table[key])]
    if len(strangers) or (whole and len(absent)):
        what = f"{strangers.iloc[0]} is not in input/demo" if len(strangers) else f"{absent[0]} is missing"
        raise UserError(f"{path}: {what}; made for another demo? Delete it and run its step again")
    return table.set_index(key)[column].reindex(truth.index.difference(absent, sort=False))


def _auc(truth: pd.DataFrame, pred: pd.Series[float]) -> float:
    """AUC, or NaN where only one class is present (a fold of a very small demo)."""
    if truth["target"].nunique() < 2:
        return float("nan")
    return metrics.score("roc_auc", truth["target"].to_numpy(), pred.to_numpy())


def _resampled_patients(patient: pd.Series[str], times: int = 1000) -> NDArray[np.float64]:
    """(times, rows): how often each row is drawn when patients are drawn with replacement.

    Images of one patient resemble each other: resampling images would promise too narrow an interval.
    """
    codes, names = pd.factorize(patient)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=times)
    return np.asarray(drawn[:, codes], dtype=np.float64)


def _test_scores(test: pd.DataFrame, pred: pd.Series[float], counts: NDArray[Any]) -> dict[str, float]:
    resampled = metrics.resampler(metrics.resolve("roc_auc"), test["target"].to_numpy(), pred.to_numpy())
    low, high = np.nanquantile([resampled(weight) for weight in counts], [0.025, 0.975])
    return {"test_auc": _auc(test, pred), "test_low": float(low), "test_high": float(high)}


def _aligned(scores: pd.DataFrame) -> str:
    """The table as text, a line per row; what does not exist is left blank."""
    width = max(len(name) for name in scores["name"])
    lines = [f"{'AUC':{width + 12}}     OOF  (std over folds)    test  (95 % interval)"]
    for row in scores.to_dict("records"):
        oof = "" if np.isnan(row["oof_auc"]) else f"{row['oof_auc']:.4f}"
        std = "" if np.isnan(row["oof_std"]) else f"({row['oof_std']:.4f})"
        interval = f"({row['test_low']:.3f} to {row['test_high']:.3f})"
        name = f"{row['kind']:10}  {row['name']:{width}}"
        lines.append(f"{name}  {oof:>6}  {std:^16}  {row['test_auc']:.4f}  {interval}")
    return "\n".join(lines)
