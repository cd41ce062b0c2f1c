"""Learning curves of a run, drawn from its fold<K>_log.csv: loss, metric and learning rate by epoch, for every fold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from foldwise import UserError
from foldwise.core import parallel
from foldwise.core.cli import note, say
from foldwise.data import folds
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.report import figures

NEEDED = ("epoch", "lr", "train_loss", "valid_loss", "best")
DASHES = ("-", "--", ":")  # beyond seven lines the colours come again, dashed


def read(folder: Path) -> dict[int, pd.DataFrame]:
    """The logs of a run's folds, {} where it has none; UserError names one that can't be read."""
    paths = {path.stem.removeprefix("fold").removesuffix("_log"): path for path in folder.glob("fold*_log.csv")}
    return {int(fold): read_log(paths[fold]) for fold in sorted(filter(str.isdigit, paths), key=int)}


def read_log(path: Path) -> pd.DataFrame:
    """One fold<K>_log.csv, a row per epoch; UserError where a column is missing or holds no numbers."""
    try:
        log = pd.read_csv(path)
        missing = [name for name in NEEDED if name not in log]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        log[list(NEEDED)] = log[list(NEEDED)].apply(pd.to_numeric)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a training log ({error}); train the fold anew with --restart") from None
    return log


def metric_column(log: pd.DataFrame, metric: str | None = None) -> str:
    """The column that holds the competition's metric: the one of that name, else the one after valid_loss."""
    if metric in log:
        return str(metric)
    return str(log.columns[log.columns.get_loc("valid_loss") + 1])


def chosen(log: pd.DataFrame) -> pd.Series:
    """The row of the epoch whose weights predict: the last that was the best so far."""
    best = log[log["best"] > 0]
    return log.iloc[-1] if best.empty else best.iloc[-1]


def figure(logs: Mapping[Any, pd.DataFrame], metric: str | None = None) -> Figure:
    """Training loss, validation loss, metric and learning rate over epochs, a line for each log.

    logs: by fold number, or by any name (recipes side by side). A dot marks the epoch that predicts. Where all follow
    one learning rate, it is drawn once, in the colour of the text.
    """
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(figures.WIDTH, 5.6), layout="constrained")
        (train, valid), (score, rate) = drawn.subplots(2, 2, sharex=True)
        name = metric_column(next(iter(logs.values())), metric)
        for place, column in ((train, "train_loss"), (valid, "valid_loss"), (score, name)):
            _lines(place, logs, column, marked=place is not train)
        same = len({tuple(log["lr"]) for log in logs.values()}) == 1
        _lines(rate, dict([next(iter(logs.items()))]) if same else logs, "lr", marked=False, ink=same)
        for place in (train, valid):  # one scale, so that the gap between them shows
            place.set_ylim(*_clipped(logs))
        train.set(title="training loss", ylabel="loss")
        valid.set(title="validation loss", ylabel="loss")
        score.set(title=f"validation {name}", ylabel=name, xlabel="epoch")
        rate.set(title="learning rate", ylabel="learning rate", xlabel="epoch")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        score.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        handles, labels = train.get_legend_handles_labels()
        dot = Line2D([], [], marker="o", linestyle="", color=figures.INK, markersize=7)
        drawn.legend([*handles, dot], [*labels, "epoch that predicts"], loc="outside lower center", ncols=6)
    return drawn


def _clipped(logs: Mapping[Any, pd.DataFrame]) -> tuple[float, float]:
    """Ends of the losses' axis: one wild epoch, as the first often is, must not flatten all others."""
    losses = np.concatenate([log[["train_loss", "valid_loss"]].to_numpy(float).ravel() for log in logs.values()])
    if not np.isfinite(losses).any():
        return 0.0, 1.0
    low, usual, high = np.nanquantile(losses[np.isfinite(losses)], [0, 0.95, 1])
    top = min(high, usual + 0.5 * (usual - low))
    margin = 0.05 * (top - low) or 0.05
    return float(low - margin), float(top + margin)


def parted(logs: Mapping[int, pd.DataFrame]) -> str | None:
    """A warning where, in most folds, validation loss rose by a tenth from its least while training loss fell on."""
    rises = []
    for log in logs.values():
        least, last = log.loc[log["valid_loss"].idxmin()] if log["valid_loss"].notna().any() else None, log.iloc[-1]
        if (
            least is not None
            and last["valid_loss"] > 1.1 * least["valid_loss"]
            and last["train_loss"] < least["train_loss"]
        ):
            rises.append((last["valid_loss"] / least["valid_loss"] - 1, int(least["epoch"])))
    if 2 * len(rises) <= len(logs):
        return None
    most, epoch = max(rises)
    return (
        f"validation loss rises while training loss falls in {len(rises)} of {len(logs)} folds (by up to {most:.0%} "
        f"since epoch {epoch}): the network learns rows by heart; fewer epochs, stronger augmentation or a smaller one "
        "help"
    )


def _lines(place: Axes, logs: Mapping[Any, pd.DataFrame], column: str, marked: bool, ink: bool = False) -> None:
    for k, (name, log) in enumerate(logs.items()):
        colour, dash = figures.INK if ink else figures.PALETTE[k % 7], DASHES[k // 7 % 3]
        values = pd.to_numeric(log[column], errors="coerce") if column in log else log["epoch"] * float("nan")
        size = 3 if len(log) <= 30 else 0
        label = f"fold {name}" if isinstance(name, int) else name
        place.plot(
            log["epoch"], values, dash, color=colour, linewidth=1.6, marker=".", markersize=2 * size, label=label
        )
        if marked and len(log):
            at = chosen(log).name
            place.plot(log["epoch"][at], values[at], "o", color=colour, markersize=8, clip_on=False, zorder=3)
    place.grid(axis="y", color="#888888", alpha=0.25, linewidth=0.8)


def draw_range_test(competition: Competition, run: str, recipe: Recipe, fold: int) -> None:
    """A learning-rate range test: its curve as input/derived/<competition>/lr_<run>.png, and what it proposes."""
    parallel.tune_allocator()
    from foldwise.train.lr_find import range_test  # torch

    test = range_test(competition, recipe, fold, folds.load_folds(competition))
    path = competition.derived() / f"lr_{run}.png"
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(figures.WIDTH, 3.4), layout="constrained")
        place = drawn.subplots()
        place.plot(test.rates, test.losses, color=figures.PALETTE[0], linewidth=1.6)
        for rate, name, dash in ((test.proposed, "proposed", "-"), (recipe.train.lr, "the recipe's", ":")):
            place.axvline(rate, color=figures.INK, linestyle=dash, linewidth=1, label=f"{name}: {rate:.2g}")
        place.set(
            xscale="log",
            xlabel="learning rate",
            ylabel="training loss above a constant answer's",
            title=f"{run}: range test",
        )
        place.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        place.set_ylim(top=min(float(test.losses.max()), 0.3))
        place.legend()
    figures.save(drawn, path, dpi=120)
    says = "" if test.falls else "; the loss hardly fell in so few steps: trust the curve more than the number"
    say(f"train.lr={test.proposed:.2g} is proposed (the recipe has {recipe.train.lr:g}){says}")
    say(f"the curve of {len(test.rates)} steps: {path}")


def draw(folder: Path, metric: str | None = None) -> Path | None:
    """Write <folder>/curves.png from the logs that are there; None where there are none, or they can't be read.

    Called while a run trains, so a figure that can't be made is said, and stops nothing.
    """
    path = folder / "curves.png"
    try:
        logs = {fold: log for fold, log in read(folder).items() if len(log)}
        if not logs:
            return None
        figures.save(figure(logs, metric), path, dpi=120)
    except (UserError, OSError, ValueError) as error:
        note(f"warning: {path}: not drawn ({error})")
        return None
    return path
