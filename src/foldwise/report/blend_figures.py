"""Figures of the blend report; colours are Okabe and Ito's, safe for colour-blind readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from foldwise.blend import Blend
from foldwise.blend.assess import Meta
from foldwise.blend.run_set import RunSet
from foldwise.data import submission
from foldwise.data.competition import Competition
from foldwise.report import figures
from foldwise.report.figures import BLUE, INK, ORANGE, PALETTE, SPLITS, VERMILLION, panels, short, styled

Array = NDArray[Any]
GREY = "#888888"
COLUMNS = 6  # classes or labels in the histograms


def draw(competition: Competition, runs: RunSet, blend: Blend, meta: Meta) -> list[tuple[str, str, Figure]]:
    """(title, caption, figure) of all that this blend has something to show in."""
    by_model = len({row["model"] for row in meta["runs"]}) < len(meta["runs"])
    drawn: list[tuple[str, str, Figure | None]] = [
        (
            "Gain of the blend",
            "Nested score minus the other's, 95 % paired bootstrap interval, whole groups drawn.",
            gains(meta),
        ),
        (
            "Weights",
            f"By run{', a colour for each model' if by_model else ''}; the dashed line is an equal share.",
            weights(meta),
        ),
        ("Weights by model and image size", "Sums of the runs' weights.", weights_by_size(meta)),
        (
            "What each run adds",
            "Nested score lost without the run; left of zero, the blend is better off without it.",
            contributions(meta),
        ),
        (
            "Correlation of errors",
            "Of truth minus prediction (its noise is shared: high): the paler, the more to win.",
            correlations(list(runs.names), meta["error_correlation"], "correlation of errors"),
        ),
        (
            "Reliability",
            "Observed share against predicted, in ten equally filled bins of nested predictions.",
            reliability(competition, runs, blend, meta),
        ),
        (
            "The submission beside the out-of-fold rows",
            "What the test rows get, and what the training rows got, by the same weights: two shapes say drift.",
            histograms(runs, blend),
        ),
        (
            "Cross-validation against leaderboard",
            "Every submission with a public score.",
            leaderboard(submission.scored(submission.read_log(competition), competition)),
        ),
    ]
    return [(title, caption, figure) for title, caption, figure in drawn if figure is not None]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = panels(1, height, width=width)
    return figure, axes


@styled
def histograms(runs: RunSet, blend: Blend) -> Figure | None:
    """Predictions of test rows and of training rows, on common bins, by class or label."""
    if not len(runs.tests[0]):
        return None
    parts = {"train": blend.fitted.reshape(len(blend.fitted), -1), "test": blend.predict(runs.tests)}
    parts["test"] = parts["test"].reshape(len(parts["test"]), -1)
    columns = min(COLUMNS, parts["train"].shape[1])
    across = min(3, columns)
    size = (across, 2.6 * -(-columns // across), -(-columns // across))
    figure, places = panels(*size, width=figures.WIDTH if columns > 1 else 6.5)
    for k, axes in enumerate(places):
        if k >= columns:
            axes.axis("off")
            continue
        figures.densities(axes, {name: pd.Series(values[:, k]) for name, values in parts.items()}, SPLITS)
        axes.set(title="" if columns == 1 else short(runs.columns[k].removeprefix("pred_")), ylabel="share of rows")
        axes.set_xlabel("prediction")
    places[0].legend(loc="upper right", labels=["out-of-fold (train)", "submission (test)"], fontsize=8.5)
    return figure


@styled
def gains(meta: Meta) -> Figure | None:
    """A forest plot of the two gains."""
    if len(meta["runs"]) == 1:
        return None
    figure, axes = _axes(7.5, 1.9)
    labels = {
        "over_best_single": f"over the best single\n({meta['best_single']})",
        "over_plain_mean": "over the plain mean",
    }
    for y, (key, label) in enumerate(reversed(labels.items())):
        gain = meta["gains"][key]
        axes.plot([gain["low"], gain["high"]], [y, y], color=BLUE, lw=3, solid_capstyle="round")
        axes.plot(gain["gain"], y, "o", color=BLUE, ms=9)
        axes.annotate(f"{gain['gain']:+.4f}", (gain["gain"], y), (0, 7), textcoords="offset points", ha="center")
        labels[key] = label
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(labels)), list(reversed(labels.values())))
    axes.set_ylim(-0.5, len(labels) - 0.3)
    axes.set_xlabel(f"gain in {meta['metric']} (right of zero: the blend is better)")
    return figure


@styled
def weights(meta: Meta) -> Figure:
    """Bars by run, at most the 40 largest."""
    rows = sorted(meta["runs"], key=lambda row: row["weight"])
    rows = sorted(rows, key=lambda row: abs(row["weight"]))[-40:]
    models = list(dict.fromkeys(row["model"] for row in meta["runs"]))
    shared = len(models) < len(meta["runs"])  # a colour a model says something only where runs share models
    figure, axes = _axes(7.5, 0.9 + 0.28 * len(rows))
    for i, model in enumerate(models if shared else [None]):
        mine = [row["weight"] if model in {None, row["model"]} else 0.0 for row in rows]
        axes.barh([row["run"] for row in rows], mine, color=PALETTE[i % len(PALETTE)], label=model)
    if shared:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.axvline(0, color=INK, lw=1)
    axes.axvline(1 / len(meta["runs"]), color=GREY, lw=1, ls="--")
    axes.annotate(
        "equal",
        (1 / len(meta["runs"]), 1),
        (3, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=GREY,
        fontsize=8,
        va="bottom",
    )
    axes.set_xlabel("weight" + (" (coefficient)" if meta["method"] in {"stack", "ridge"} else ""))
    return figure


@styled
def weights_by_size(meta: Meta) -> Figure | None:
    """A heat map, where runs differ in size."""
    table = pd.DataFrame(meta["runs"])
    table = table[table["image_size"] != ""]
    if table.empty or table["image_size"].nunique() < 2:
        return None
    pivot = table.pivot_table("weight", "model", "image_size", "sum")
    pivot = pivot[sorted(pivot.columns, key=lambda size: float(size) if str(size).isdigit() else 0)]
    return _heat(pivot.to_numpy(), list(pivot.index), [f"{size} px" for size in pivot.columns], "weight", "image size")


@styled
def _heat(
    values: Array, rows: list[str], columns: list[str], what: str, x: str = "", low: float | None = None
) -> Figure:
    size = 0.55 if len(columns) <= 15 else 0.28
    figure, axes = _axes(min(11.0, 3.2 + size * 1.25 * len(columns)), min(10.0, 1.5 + size * 0.9 * len(rows)))
    top = float(np.nanmax(values))
    image = axes.imshow(values, cmap="cividis_r", aspect="auto", vmin=low, vmax=top)
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=0 if len(columns) <= 4 else 45,
        ha="center" if len(columns) <= 4 else "right",
        fontsize=8,
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlabel(x)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=what, shrink=0.9)
    if values.size <= 225:
        shade: Any = image.norm(values)
        for i, j in np.ndindex(values.shape):
            if np.isfinite(values[i, j]):
                axes.text(
                    j,
                    i,
                    f"{values[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if float(shade[i, j]) > 0.6 else "black",
                )
    return figure


@styled
def contributions(meta: Meta) -> Figure | None:
    """Leave-one-run-out bars."""
    if not meta["leave_one_out"]:
        return None
    rows = sorted(meta["leave_one_out"], key=lambda row: row["adds"] or 0)
    figure, axes = _axes(7.5, 0.9 + 0.28 * len(rows))
    values = [row["adds"] or 0 for row in rows]
    axes.barh([row["run"] for row in rows], values, color=[BLUE if value >= 0 else VERMILLION for value in values])
    axes.axvline(0, color=INK, lw=1)
    axes.set_xlabel(f"gain in {meta['metric']} from having the run")
    return figure


def correlations(names: list[str], values: list[list[float]], what: str) -> Figure | None:
    """Runs in the order of a clustering, so that families stand together."""
    matrix = np.array(values, dtype=float)
    if len(matrix) < 2 or not np.isfinite(matrix).all():
        return None
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - matrix, 0, None)
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average"))
    names = [short(names[i]) for i in order]
    low = float(np.floor(matrix.min() * 10) / 10)
    return _heat(matrix[np.ix_(order, order)], names, names, what, low=min(low, 0.9))


@styled
def reliability(competition: Competition, runs: RunSet, blend: Blend, meta: Meta) -> Figure | None:
    """Predicted against observed, blend and best single run, for probabilities."""
    best = runs.preds[runs.names.index(meta["best_single"])]
    if competition.task == "regression" or blend.nested.size > 50_000_000:
        return None
    target = np.eye(best.shape[1])[runs.target] if competition.task == "multiclass" else runs.target
    figure, axes = _axes(4.8, 4.2)
    series: list[tuple[str, Array, str, str]] = [("blend (nested)", blend.nested, BLUE, "o-")]
    if best.min() >= 0 and best.max() <= 1:
        series.append((meta["best_single"], best, ORANGE, "s--"))
    top = 0.0
    for label, pred, colour, style in series:
        x, y, error = figures.calibration_points(pred, target)
        axes.errorbar(x, y, yerr=error, fmt=style, color=colour, label=label, ms=5, lw=1.5, capsize=2)
        top = max(top, *x, *y)
    axes.plot([0, top], [0, top], color=INK, lw=1, ls=":", label="perfect")
    # what auto chose without each fold is of several methods, joined by rank where only the order counts
    ranks = blend.space in {"rank", "fold_rank"} or (bool(meta["methods"]) and meta["order_only"])
    axes.set_xlabel("ranks: not a probability" if ranks else "predicted probability")
    axes.set_ylabel("observed share")
    axes.legend(fontsize=8)
    return figure


@styled
def leaderboard(scored: pd.DataFrame) -> Figure | None:
    """Nested score against public and private score, from three submissions on."""
    if len(scored) < 3:
        return None
    figure, axes = _axes(6.0, 4.2)
    error = np.abs(scored[["low", "high"]].to_numpy(dtype=float).T - scored["nested"].to_numpy(dtype=float))
    for column, colour, style in (("public", BLUE, "o"), ("private", ORANGE, "s")):
        if scored[column].notna().any():
            axes.errorbar(
                scored["nested"], scored[column], xerr=error, fmt=style, color=colour, label=column, lw=1, alpha=0.9
            )
    for row in scored.itertuples():
        axes.annotate(str(row.name), (row.nested, row.public), (5, 5), textcoords="offset points", fontsize=8)
    correlation = scored[["nested", "public"]].corr("spearman").iloc[0, 1]
    axes.set_title(
        f"rank correlation with public {correlation:.2f} ({len(scored)} submissions)", fontsize=9, loc="left"
    )
    axes.set_xlabel("nested score, 95 % interval")
    axes.set_ylabel("leaderboard")
    axes.legend()
    return figure
