"""How far to trust a blend: correlated errors, near-duplicates, drift between OOF and test, scales of folds.

Nothing here fits weights; `leave_one_out` is handed the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldwise import stats
from foldwise.blend.spaces import PLACES, ranks
from foldwise.metrics import Metric, auc_of, known_rows

Array = NDArray[Any]


def errors(preds: Array, target: Array, task: str) -> Array:
    """(M, N) or (M, N * C) truth minus prediction, at most 2 million cells a run."""
    if task in {"multiclass", PLACES}:
        rows = np.arange(preds.shape[1])
        return 1.0 - preds[:, rows, target.astype(np.int64)]
    known = known_rows(target.reshape(-1))
    flat = preds.reshape(preds.shape[0], -1)[:, known]
    step = -(-flat.shape[1] // 2_000_000)  # evenly thinned: a correlation of so many cells is exact to 0.001
    return (target.reshape(-1)[known] - flat)[:, ::step]


def correlation(values: Array) -> Array:
    """(M, M) Pearson; a constant run correlates with nothing."""
    centered = values - values.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(centered).sum(axis=1))
    matrix = centered @ centered.T / np.maximum(np.outer(norm, norm), 1e-300)
    np.fill_diagonal(matrix, 1.0)
    return np.clip(matrix, -1, 1)


def effective_number(matrix: Array) -> float:
    """How many independent runs err as these do: (sum of eigenvalues)^2 / sum of squares, from 1 to M."""
    values = np.clip(np.linalg.eigvalsh(matrix), 0, None)
    return float(values.sum() ** 2 / np.square(values).sum())


def near_duplicates(
    preds: Array, names: Sequence[str], columns: Sequence[str], limit: float = 0.995
) -> list[dict[str, Any]]:
    """Pairs of runs whose ranks correlate above `limit` in a column: near-identical, and counted twice by a mean."""
    cells = preds.reshape(*preds.shape[:2], -1)
    step = -(-cells.shape[1] * cells.shape[2] // 2_000_000)
    pairs = []
    for c in range(cells.shape[2]):
        matrix = correlation(ranks(cells[:, ::step, c : c + 1])[:, :, 0])
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                if matrix[i, j] > limit:
                    same = bool(np.array_equal(cells[i, :, c], cells[j, :, c]))
                    pairs.append(
                        {
                            "runs": [names[i], names[j]],
                            "column": columns[c],
                            "rank_correlation": float(matrix[i, j]),
                            "identical": same,
                        }
                    )
    return pairs


def clusters(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(column, runs) that the pairs of `near_duplicates` chain together."""
    chains: list[tuple[str, set[str]]] = []
    for pair in pairs:
        column, runs = pair["column"], set(pair["runs"])
        touching = [one for one in chains if one[0] == column and one[1] & runs]
        chains = [one for one in chains if one not in touching]
        chains.append((column, runs.union(*(one[1] for one in touching))))
    return [(column, sorted(runs)) for column, runs in chains]


def leave_one_out(
    names: Sequence[str], nested_score: float, without: Callable[[int], float], sign: int
) -> list[dict[str, Any]]:
    """What each run adds: the blend's nested score minus the score `without(m)` it, positive where it helps."""
    return [{"run": name, "adds": float(sign * (nested_score - without(m)))} for m, name in enumerate(names)]


def drift(oof: Array, test: Array, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Adversarial validation: can out-of-fold predictions be told from test predictions?

    oof, test: (M, N) or (M, N, C). A run's number is the cross-validated AUC of a shallow forest on its own
    columns; 0.5 cannot tell. Means over folds are less extreme than OOF predictions, and told apart by that alone:
    hand in test predictions of one fold's model a row where there are such (RunSet.tests_by_one). A run is named only
    where it stands out from the median run by 0.05 and from 0.5 by four standard deviations.
    """
    n, n_test = min(oof.shape[1], 10_000), min(test.shape[1], 10_000)
    rng = np.random.default_rng(seed)
    rows, rows_test = rng.permutation(oof.shape[1])[:n], rng.permutation(test.shape[1])[:n_test]
    both = np.concatenate([oof[:, rows], test[:, rows_test]], axis=1).reshape(len(names), n + n_test, -1)[:, :, :30]
    label = np.arange(n + n_test) >= n
    each = {name: _told_apart(both[m], label, seed) for m, name in enumerate(names)}
    everything = both.transpose(1, 0, 2).reshape(n + n_test, -1)
    usual = float(np.median(list(each.values())))
    noise = float(np.sqrt((1 / n + 1 / n_test) / 12))  # standard deviation of an AUC where nothing differs
    odd = [name for name, value in each.items() if value > max(0.5 + 4 * noise, usual + 0.05)]
    return {"auc_by_run": each, "auc_all_runs": _told_apart(everything, label, seed), "named": odd}


def _told_apart(x: Array, label: Array, seed: int) -> float:
    part = np.random.default_rng(seed).permutation(label.size) % 3
    # stumps of four leaves, few and fast: a run has few columns, and dozens of runs are asked
    few = {"num_leaves": 4, "learning_rate": 0.2, "min_data_in_leaf": max(10, label.size // 50), "seed": seed}
    pred, _ = stats.tell_apart(x, label, part, 20, **few)
    return auc_of(pred[~label], pred[label])


def fold_ranks(metric: Metric, target: Array, preds: Array, folds: Array) -> list[dict[str, float]]:
    """For each run the raw score, the score after ranking within folds, and the mean over folds.

    Ranked within folds scoring higher than raw means that the folds' models are on different scales.
    """
    ranked = ranks(preds, folds)
    out = []
    for run, again in zip(preds, ranked, strict=True):
        each = [metric.function(target[folds == k], run[folds == k], None) for k in np.unique(folds)]
        parts = [value for value in each if not np.isnan(value)]
        out.append(
            {
                "raw": float(metric.function(target, run, None)),
                "fold_ranked": float(metric.function(target, again, None)),
                "fold_mean": float(np.mean(parts)) if parts else float("nan"),
                "fold_std": float(np.std(parts, ddof=1)) if len(parts) > 1 else float("nan"),
            }
        )
    return out
