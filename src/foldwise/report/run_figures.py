"""Figures of a run's report: confusion matrices, calibration, residuals, labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foldwise import stats
from foldwise.report import figures
from foldwise.report.figures import BLUE, INK, PALETTE, SKY, VERMILLION, panels, short, styled

SHOWN = 40  # classes in a confusion matrix, the most confused first to stay
EDGES = [k / 25 for k in range(26)]


@styled
def confusion(matrices: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> Figure:
    """Counts int (K, K), rows the truth: each matrix as shares of its rows, with the counts below them.

    One large matrix is drawn twice, counts beside shares; more than 40 classes are cut to the most confused.
    """
    keep = _most_confused(matrices[0][1])
    labels = [short(names[k], 18) for k in keep]
    twice = len(labels) > 6 and len(matrices) == 1
    drawn = matrices if not twice else [("Counts", matrices[0][1]), ("Shares of the true class", matrices[0][1])]
    side = figures.WIDTH / max(2, len(drawn))
    figure, axes = panels(len(drawn), min(side, 1.9 + 0.5 * len(labels)), width=side * len(drawn))
    for place, (ax, (title, counts)) in enumerate(zip(axes, drawn, strict=True)):
        part = counts[np.ix_(keep, keep)]
        shares = part / np.maximum(counts[keep].sum(axis=1, keepdims=True), 1)
        ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        ax.set_title(title)
        ax.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) < 4 else 60, ha="center")
        ax.set_yticks(range(len(labels)), labels if place == 0 else [""] * len(labels))
        ax.set_xlabel("answer")
        ax.set_ylabel("truth" if place == 0 else "")
        ax.spines[:].set_visible(False)
        _cells(ax, part, shares, "counts" if twice and place == 0 else "shares" if twice else "both")
    return figure


def _most_confused(counts: np.ndarray) -> np.ndarray:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    return np.sort(order[:SHOWN])


def _cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, what: str) -> None:
    if len(counts) > 25:
        return
    size = 10 if len(counts) <= 8 else 7 if len(counts) <= 15 else 5
    for (row, column), count in np.ndenumerate(counts):
        share = f"{100 * shares[row, column]:.0f}"
        text = {"counts": f"{count:,}", "shares": share, "both": f"{share} %\n{count:,}"}[what]
        if count or what == "both":
            colour = "white" if shares[row, column] > 0.55 else "#1c2430"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


@styled
def roc_pr(curves: dict[str, tuple[np.ndarray, np.ndarray]], points: Sequence[tuple[str, float]]) -> Figure:
    """{name: (probability (N,), 0/1 truth (N,))}: ROC and precision against recall; points: (name, threshold p >= t)
    on the curve of a single name."""
    figure, (roc, pr) = panels(2, 4.1)
    for (name, (p, truth)), colour in zip(curves.items(), PALETTE, strict=False):
        order = np.argsort(-p, kind="stable")
        ends = np.append(p[order][1:] < p[order][:-1], True)
        hits, called = np.cumsum(truth[order])[ends], np.arange(1, len(p) + 1)[ends]
        ones = max(int(truth.sum()), 1)
        false = (called - hits) / max(len(p) - ones, 1)
        label = short(name, 24) if len(curves) > 1 else None
        roc.plot(np.append(0, false), np.append(0, hits / ones), color=colour, linewidth=1.6, label=label)
        pr.plot(hits / ones, hits / called, color=colour, linewidth=1.6, label=label)
        pr.axhline(ones / len(p), color=colour, alpha=0.5, linestyle="--", linewidth=1)
        for (at, threshold), dot, marker in zip(points, PALETTE[1:], "osDv", strict=False):
            above = p >= threshold
            inside = max(int(above.sum()), 1)
            words = f"{at}: p ≥ {threshold:.3g}"
            roc.plot((above & (truth == 0)).sum() / max(len(p) - ones, 1), truth[above].sum() / ones, marker, color=dot)
            pr.plot(truth[above].sum() / ones, truth[above].sum() / inside, marker, color=dot, label=words)
    roc.plot([0, 1], [0, 1], color=INK, alpha=0.45, linestyle="--", linewidth=1)
    roc.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)", title="ROC")
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall; dashed: share of 1", ylim=(-0.02, 1.02))
    if points or len(curves) > 1:
        pr.legend(fontsize=8)
    return figure


@styled
def calibration(curves: dict[str, tuple[np.ndarray, np.ndarray]], words: tuple[str, str]) -> Figure:
    """{name: (probability (N,), 0/1 what happened (N,))}: observed share against predicted, and who gets what.

    words: what 0 and 1 are called.
    """
    figure, (curve, spread) = panels(2, 3.9)
    curve.plot([0, 1], [0, 1], color=INK, alpha=0.45, linestyle="--", linewidth=1)
    for (name, (p, happened)), colour in zip(curves.items(), PALETTE, strict=False):
        predicted, observed, error = figures.calibration_points(p, happened)
        label = short(name, 24) if len(curves) > 1 else None
        curve.errorbar(
            predicted, observed, error, color=colour, marker="o", markersize=4, elinewidth=1, linewidth=1.3, label=label
        )
        if len(curves) > 1:
            spread.hist(p, bins=EDGES, histtype="step", color=colour, linewidth=1.4)
    if len(curves) > 1:
        curve.legend(loc="upper left", fontsize=8)
    else:
        p, happened = next(iter(curves.values()))
        for kind, colour, word in ((False, SKY, words[0]), (True, VERMILLION, words[1])):
            spread.hist(
                p[(happened > 0.5) == kind], bins=EDGES, histtype="stepfilled", color=colour, alpha=0.65, label=word
            )
        spread.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    curve.set(xlabel="predicted probability", ylabel="share that happened", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    curve.set_title("Calibration, ten equally filled bins, 95 % intervals")
    spread.set(xlabel="predicted probability", ylabel="rows", yscale="log")
    spread.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    spread.set_title("Predictions")
    return figure


@styled
def residuals(truth: np.ndarray, pred: np.ndarray, name: str) -> Figure:
    """Prediction against truth, residual against prediction, and the residuals' histogram."""
    figure, (against, spread, shape) = panels(3, 3.6)
    some = np.random.default_rng(0).permutation(len(truth))[:5000]
    low, high = float(min(truth.min(), pred.min())), float(max(truth.max(), pred.max()))
    against.plot([low, high], [low, high], color=INK, alpha=0.45, linestyle="--", linewidth=1)
    against.plot(truth[some], pred[some], ".", color=BLUE, alpha=0.5, markersize=4)
    against.set(xlabel=f"true {short(name)}", ylabel=f"predicted {short(name)}", title="Predicted against true")
    error = pred - truth
    spread.axhline(0, color=INK, alpha=0.45, linestyle="--", linewidth=1)
    spread.plot(pred[some], error[some], ".", color=BLUE, alpha=0.5, markersize=4)
    order = np.argsort(pred, kind="stable")
    parts = [part for part in np.array_split(order, min(stats.BINS, len(order))) if len(part)]
    spread.plot([pred[k].mean() for k in parts], [error[k].mean() for k in parts], color=VERMILLION, label="mean")
    spread.legend(fontsize=8)
    spread.set(xlabel=f"predicted {short(name)}", ylabel="predicted minus true", title="Residuals")
    shape.hist(error, bins=40, color=BLUE)
    shape.set(xlabel="predicted minus true", ylabel="rows", title="Their spread")
    return figure


@styled
def by_class(table: pd.DataFrame) -> Figure:
    """Precision, recall and F1 of each class as dots on a line; columns class, precision, recall, f1, support."""
    table = table.iloc[:60]
    figure, (axes,) = panels(1, 1.1 + 0.27 * len(table))
    places = np.arange(len(table))[::-1]
    values = table[["precision", "recall", "f1"]].to_numpy(float)
    axes.hlines(places, np.nanmin(values, axis=1), np.nanmax(values, axis=1), color=INK, alpha=0.25, linewidth=2)
    for column, colour, marker in (("precision", BLUE, "o"), ("recall", VERMILLION, "s"), ("f1", PALETTE[2], "D")):
        axes.plot(table[column], places, marker, color=colour, markersize=6, label=column.replace("f1", "F1"))
    axes.set_yticks(places, [f"{short(n, 24)} ({s:,})" for n, s in zip(table["class"], table["support"], strict=True)])
    axes.set(xlim=(-0.02, 1.02), xlabel="share; in brackets the rows of the class", ylim=(-0.7, len(table) - 0.3))
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.5 / (1 + 0.27 * len(table))), ncols=3, fontsize=8)
    return figure
