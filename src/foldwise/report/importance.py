"""What metadata models lean on, out of fold: importance and contributions by column, as tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from foldwise.core.files import write_csv
from foldwise.data.encoder import is_number, numbers, texts
from foldwise.report import figures
from foldwise.tabular.boosting import Fold, Problem

SHOWN = 20  # columns in a figure
NAME = 44  # letters of a column's name
VALUES = 6  # of a category that get a row of their own
POINTS = 2000  # of a column in the figure, drawn at random
COLOURS = "viridis"  # told apart by colour-blind readers; grey is free for missing


def write_importance(folder: Path, problem: Problem, folds: Sequence[Fold]) -> None:
    """importance.csv, contributions.csv and a figure of each, beside the run's tables."""
    shares, contributions = importance(problem, folds), contributed(problem, folds)
    write_csv(folder / "importance.csv", shares, "%.6g")
    write_csv(folder / "contributions.csv", contributions, "%.6g")
    figures.save(importance_figure(shares), folder / "importance.png")
    drawn = beeswarm(problem, folds, shares) if problem.outputs == 1 else heatmap(problem, contributions, shares)
    figures.save(drawn, folder / "contributions.png")


def importance(problem: Problem, folds: Sequence[Fold]) -> pd.DataFrame:
    """A row per column, the most important first.

    share: of the library's own measure (gain of splits, change of prediction, |coefficient| x spread), mean over folds;
    share_std: over folds; mean_contribution: mean |contribution| to rows out of fold, in log-odds (or the target's
    unit); share_fold<K>.
    """
    by_fold = pd.DataFrame({f"share_fold{part.fold}": part.importance for part in folds})
    added = np.concatenate([np.abs(part.contributions[..., :-1]).mean(axis=1) for part in folds]).mean(axis=0)
    table = pd.DataFrame(
        {
            "column": problem.inputs.sources,
            "share": by_fold.mean(axis=1).to_numpy(),
            "share_std": by_fold.std(axis=1).to_numpy(),
            "mean_contribution": added,
        }
    )
    table = pd.concat([table, by_fold.reset_index(drop=True)], axis=1)
    return table.sort_values("mean_contribution", ascending=False, kind="stable").reset_index(drop=True)


def contributed(problem: Problem, folds: Sequence[Fold]) -> pd.DataFrame:
    """A row per training row and output, each by the models that did not see it: id, fold, output, base, columns.

    They add up to the log-odds of the prediction (of the value, in a regression), for one seed.
    """
    ids = problem.ids
    tables = []
    for part in folds:
        rows = np.flatnonzero(problem.fold_of == part.fold)
        for k in range(part.contributions.shape[1]):
            shap = part.contributions[:, k]
            table = pd.DataFrame({"id": ids[rows], "fold": part.fold, "base": shap[:, -1]})
            if problem.names:
                table.insert(2, "output", problem.names[k])
            tables.append(pd.concat([table, pd.DataFrame(shap[:, :-1], columns=problem.inputs.sources)], axis=1))
    return pd.concat(tables, ignore_index=True)


def importance_figure(shares: pd.DataFrame) -> Figure:
    """Bars of mean |contribution|, and of the share of gain with a dot for every fold."""
    top = shares.head(SHOWN)
    heights = np.arange(len(top))[::-1]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.7, 1.2 + 0.32 * len(top)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(heights, top["mean_contribution"], color=figures.BLUE, height=0.65)
        left.set(title="To out-of-fold predictions", xlabel="mean |contribution|, log-odds or the target's unit")
        right.barh(heights, top["share"], color=figures.SKY, height=0.65)
        for name in [column for column in top if column.startswith("share_fold")]:
            right.plot(top[name], heights, "o", color=figures.INK, markersize=3)
        right.set(title="To the fit (a dot a fold)", xlabel="share of the model's importance")
        right.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        left.set_yticks(heights, [figures.short(name, NAME) for name in top["column"]])
    return figure


def beeswarm(problem: Problem, folds: Sequence[Fold], shares: pd.DataFrame) -> Figure:
    """Contributions of the most important columns: a point an out-of-fold row; of a category, a line a value."""
    lines = _lines(problem, folds, shares)[:SHOWN]
    rng = np.random.default_rng(0)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.7, 1.4 + 0.36 * max(len(lines), 2)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=figures.INK, linewidth=0.8)
        points: Any = None
        for height, (_, added, values) in zip(range(len(lines))[::-1], lines, strict=True):
            some = rng.permutation(len(added))[:POINTS]
            place = height + _spread(added[some], rng)
            if values is None:
                axes.scatter(added[some], place, s=7, color=figures.BLUE, alpha=0.6, linewidth=0)
            else:
                grey = np.isnan(values[some])
                axes.scatter(added[some][grey], place[grey], s=7, color="#999999", alpha=0.6, linewidth=0)
                points = axes.scatter(
                    added[some][~grey],
                    place[~grey],
                    s=7,
                    c=values[some][~grey],
                    cmap=COLOURS,
                    vmin=0,
                    vmax=1,
                    alpha=0.8,
                    linewidth=0,
                )
        axes.set_yticks(range(len(lines))[::-1], [name for name, _, _ in lines])
        axes.set_ylim(-0.7, len(lines) - 0.3)
        unit = "the target's unit" if problem.competition.task == "regression" else "log-odds"
        axes.set_xlabel(f"contribution to the prediction of a row out of fold, {unit}")
        axes.grid(axis="y", color="#88888833", linewidth=0.6)
        if points is not None:
            bar = figure.colorbar(points, ax=axes, ticks=[0, 1], aspect=30, pad=0.01)
            bar.ax.set_yticklabels(["low", "high"])
            bar.set_label("number's rank; grey: missing", labelpad=-12)
            bar.outline.set_visible(False)
    return figure


def _lines(
    problem: Problem, folds: Sequence[Fold], shares: pd.DataFrame
) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """(label, contributions, ranks 0..1 of the values or None) of each line of the figure."""
    added = np.concatenate([part.contributions[:, 0, :-1] for part in folds])
    rows = np.concatenate([np.flatnonzero(problem.fold_of == part.fold) for part in folds])
    frame = pd.concat([problem.inputs.frame, *([stack.train for stack in problem.inputs.stacks])], axis=1).iloc[rows]
    lines: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    for name in shares["column"]:
        mine = added[:, problem.inputs.sources.index(name)]
        if name not in frame:  # embeddings: many numbers at once
            lines.append((figures.short(name, NAME), mine, None))
        elif is_number(frame[name]):
            lines.append((figures.short(name, NAME), mine, pd.Series(numbers(frame[name])).rank(pct=True).to_numpy()))
        else:
            values = pd.Series(texts(frame[name]), dtype=object).fillna("missing")
            for value in values.value_counts().index[:VALUES]:
                lines.append((figures.short(f"{name}: {value}", NAME), mine[(values == value).to_numpy()], None))
    return lines


def _spread(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heights -0.35..0.35 that keep points apart where many have the same value."""
    if not len(values) or np.ptp(values) == 0:
        return rng.uniform(-0.35, 0.35, len(values)) * min(1.0, len(values) / 50)
    bins = ((values - values.min()) / np.ptp(values) * 80).astype(int)
    crowd = np.bincount(bins)[bins]
    return rng.uniform(-0.35, 0.35, len(values)) * crowd / crowd.max()


def heatmap(problem: Problem, contributions: pd.DataFrame, shares: pd.DataFrame) -> Figure:
    """Mean |contribution| by column and class (or label), the most important columns and at most 12 classes."""
    columns = shares["column"].head(SHOWN).tolist()
    sizes = contributions[columns].abs().groupby(contributions["output"], sort=False).mean()
    sizes = sizes.loc[sizes.mean(axis=1).sort_values(ascending=False).index[:12]].T
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.7, 1.6 + 0.32 * len(sizes)), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(sizes, cmap=COLOURS, aspect="auto", vmin=0)
        axes.set_xticks(range(sizes.shape[1]), [figures.short(name, 14) for name in sizes], rotation=30, ha="right")
        axes.set_yticks(range(len(sizes)), [figures.short(name, NAME) for name in sizes.index])
        for (row, column), value in np.ndenumerate(sizes.to_numpy()):
            colour = "black" if value > 0.6 * sizes.to_numpy().max() else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        figure.colorbar(shown, ax=axes, pad=0.01)
        axes.set_title("mean |contribution| to rows out of fold, log-odds")
    return figure
