"""Figures of the report and the notebooks: tables in, matplotlib figures out.

Colours are Okabe & Ito's (2008), told apart by colour-blind readers; text takes the page's colour (`svg`), so that
the figures read on light and dark grounds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib

matplotlib.use("Agg")  # no display is needed, nor asked for

import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foldwise import stats
from foldwise.core.files import replacing

P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
PALETTE = [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW]
SPLITS = {"train": BLUE, "test": ORANGE}
INK = "#010203"  # stands for the page's text colour until `svg` puts it in
WIDTH = 10.7  # inches; the page shows an inch as 100 pixels
STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "foldwise",
    "axes.prop_cycle": cycler(color=PALETTE),
}


def styled(make: Callable[P, F]) -> Callable[P, F]:
    """A decorator of functions that make a figure: in this module's style."""

    @wraps(make)
    def figure(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE):
            return make(*args, **kwargs)

    return figure


def panels(columns: int, height: float, rows: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` axes, row by row; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.ravel(np.array(figure.subplots(rows, columns))))


def tiles(
    axes: Axes, grid: Sequence[Sequence[tuple[np.ndarray, str]]], high: float = 1.0, head: float = 0.0, size: float = 8
) -> None:
    """Pictures (H, W[, 3]) with their words above, row by row in one axes: an axes a picture takes ten times as long.

    A tile is one unit wide and `high` units high, with `head` units above it. Gray pictures have their own scale each.
    """
    gap = 0.04
    for y, row in enumerate(grid):
        top = y * (high + head) + head
        for x, (image, words) in enumerate(row):
            tall, wide = high - gap * high, 1 - gap
            fit = min(tall / image.shape[0], wide / image.shape[1])
            place = (x, x + fit * image.shape[1], top + fit * image.shape[0], top)
            axes.imshow(image, cmap="cividis", interpolation="none", extent=place)
            axes.text(x, top - 0.01, words, va="bottom", fontsize=size)
    axes.set(xlim=(0, max(map(len, grid), default=1)), ylim=(len(grid) * (high + head), 0))
    axes.axis("off")


def _write(figure: Figure, stream: Any, **how: Any) -> None:
    """In this module's style. What savefig would lay out, draw for nothing and then draw is laid out here, once."""
    with matplotlib.rc_context(STYLE):
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(stream, **how)


def save(figure: Figure, path: Path, dpi: int = 110, tight: bool = False) -> None:
    """A PNG or JPEG on white, written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        box = "tight" if tight else None
        _write(figure, part, format=path.suffix[1:], dpi=dpi, facecolor="white", bbox_inches=box)


def png(figure: Figure, dpi: int = 80) -> bytes:
    """A small PNG on white, for a notebook."""
    stream = io.BytesIO()
    _write(figure, stream, format="png", dpi=dpi, facecolor="white")
    return stream.getvalue()


def svg(figure: Figure, number: int, alt: str) -> str:
    """Inline SVG for an HTML page: text in the page's colour, ids made unique by `number`, nothing fetched."""
    stream = io.StringIO()
    _write(figure, stream, format="svg")
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = text.replace(BLUE.lower(), f"var(--blue, {BLUE})")  # the one that is dim on a dark page
    text = text.replace(' id="', f' id="f{number}-').replace("url(#", f"url(#f{number}-")
    text = text.replace('href="#', f'href="#f{number}-')
    wide = figure.get_size_inches()[0] * 100
    return text.replace(
        "<svg", f'<svg role="img" aria-label="{alt}" style="--wide:{wide:.0f}px;max-width:{wide:.0f}px"', 1
    )


# --- target -----------------------------------------------------------------------------------------------


@styled
def class_balance(counts: pd.Series, total: int) -> Figure:
    """Bars of counts by class name, with their share of `total` images.

    More than 30 classes are cut to the 20 largest and the 8 smallest.
    """
    counts = counts.sort_values(ascending=False)
    if len(counts) > 30:
        counts = pd.concat([counts.iloc[:20], counts.iloc[-8:]])
    figure, (axes,) = panels(1, 0.7 + 0.28 * len(counts))
    places = np.arange(len(counts))[::-1]
    axes.barh(places, counts.to_numpy(), color=BLUE, height=0.7)
    for place, value in zip(places, counts.to_numpy(), strict=True):
        words = f"{int(value):,} ({value / total:.1%})"
        axes.annotate(words, (value, place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [short(name) for name in counts.index])
    axes.set_xlabel("training images")
    axes.margins(x=0.14, y=0.3 / len(counts))
    return figure


@styled
def target_histogram(values: pd.Series, name: str) -> Figure:
    """Histogram of a regression target."""
    figure, (axes,) = panels(1, 2.8)
    axes.hist(values, bins=50, color=BLUE)
    axes.set_xlabel(short(name, 60))
    axes.set_ylabel("training images")
    return figure


@styled
def together(labels: pd.DataFrame) -> Figure:
    """How often each two labels of a multilabel task come together: share of the row's label."""
    labels = labels[labels.sum().sort_values(ascending=False).index[:15]]
    values = labels.to_numpy(float)
    share = (values.T @ values) / np.maximum(values.sum(axis=0), 1)[:, None]
    side = 1.6 + 0.36 * len(labels.columns)
    figure, (axes,) = panels(1, side, width=side + 1.8)
    names = [short(name.removeprefix("target_"), 18) for name in labels]
    shown = axes.imshow(share, vmin=0, vmax=1, cmap="cividis")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("also has")
    axes.set_ylabel("of the images with")
    bar = figure.colorbar(shown, ax=axes, shrink=0.7)
    bar.set_label("share")
    return figure


# --- files and light --------------------------------------------------------------------------------------


@styled
def sizes(table: pd.DataFrame) -> Figure:
    """Width against height, aspect, and bytes of the files, by split."""
    figure, (plane, aspect, weight) = panels(3, 3.0)
    known = table[table["width"].notna() & table["height"].notna()]
    width, height = known["width"].astype(float), known["height"].astype(float)
    pairs = pd.DataFrame({"w": width, "h": height}).value_counts().head(300).reset_index()
    dots = 12 + 160 * np.sqrt(pairs["count"] / max(pairs["count"].max(), 1))
    plane.scatter(pairs["w"], pairs["h"], s=dots, color=GREEN, alpha=0.55, linewidths=0)
    plane.set(title="size (larger dot: more files)", xlabel="width, pixels", ylabel="height, pixels")
    plane.margins(0.15)
    densities(aspect, {split: (width / height)[known["split"] == split] for split in SPLITS}, SPLITS)
    aspect.set(title="shape", xlabel="width / height", ylabel="share of images")
    kilobytes = table["bytes"].astype(float) / 1000
    densities(weight, {split: kilobytes[table["split"] == split] for split in SPLITS}, SPLITS)
    weight.set(title="weight", xlabel="kB a file", ylabel="share of images")
    _legend(figure, aspect)
    return figure


LIGHT = {
    "brightness": "mean gray level, 0 to 255",
    "contrast": "spread of gray levels",
    "saturation": "of the mean colour, 0 to 1",
    "sharpness": "spread of the Laplacian",
    "red": "mean red, 0 to 255",
    "green": "mean green, 0 to 255",
    "blue": "mean blue, 0 to 255",
}


@styled
def light(statistics: pd.DataFrame, by: pd.Series, colours: dict[str, str] | None = None) -> Figure:
    """Distributions of brightness, contrast and colour by the names in `by` (aligned; missing is left out)."""
    paint = colours or dict(zip(by.dropna().unique(), PALETTE, strict=False))
    gray = (statistics["saturation"].dropna() < 1e-6).all()
    shown = ["brightness", "contrast", "sharpness"] if gray else list(LIGHT)
    figure, axes = panels(4 if not gray else 3, 2.7 if gray else 5.2, rows=1 if gray else 2)
    for place, name in zip(axes, shown, strict=False):
        densities(place, {key: statistics.loc[by == key, name].dropna() for key in paint}, paint)
        place.set(title=name, xlabel=LIGHT[name])
        place.xaxis.label.set_fontsize(8.5)
    for place in axes[:: len(axes) // (1 if gray else 2)]:
        place.set_ylabel("share of images")
    for place in axes[len(shown) :]:
        place.axis("off")
    _legend(figure, axes[0], axes[len(shown)] if len(axes) > len(shown) else None)
    return figure


def densities(axes: Axes, values: dict[str, pd.Series], colours: dict[str, str]) -> None:
    """Step histograms of shares on common bins, which show the middle 99 % of all values."""
    values = {name: numbers for name, numbers in values.items() if len(numbers)}
    if not values:
        return
    every = np.concatenate([numbers.to_numpy(float) for numbers in values.values()])
    low, high = np.quantile(every, [0.005, 0.995])
    if high - low < 1e-9 * max(abs(high), 1):
        low, high = low - 0.5, high + 0.5
    fewest = min(len(numbers) for numbers in values.values())
    edges = np.linspace(low, high, int(np.clip(2 * np.sqrt(fewest), 8, 28)) + 1)
    for name, numbers in values.items():
        shares = np.histogram(np.clip(numbers.to_numpy(float), low, high), edges)[0] / len(numbers)
        axes.stairs(shares, edges, color=colours[name], label=short(name), linewidth=1.6)
        if len(values) <= 3:
            axes.stairs(shares, edges, color=colours[name], fill=True, alpha=0.12)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))


def _legend(figure: Figure, source: Axes, place: Axes | None = None) -> None:
    handles, names = source.get_legend_handles_labels()
    if not names:
        return
    if place is not None:
        place.legend(handles, names, loc="center", fontsize=10)
    else:
        figure.legend(handles, names, loc="outside upper right", ncols=len(names))


# --- metadata ---------------------------------------------------------------------------------------------


def wilson(successes: np.ndarray, rows: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the 95 % interval of shares (Wilson 1927): stays inside 0..1, sound for few rows."""
    rows = np.maximum(rows, 1e-12)
    share = successes / rows
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def calibration_points(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and observed share of ten equally filled bins, and how far Wilson's interval reaches (2, bins)."""
    bins = stats.calibration_bins(pred, truth)
    observed = bins["observed"].to_numpy()
    low, high = wilson(bins["ones"].to_numpy(), bins["rows"].to_numpy())
    return bins["predicted"].to_numpy(), observed, np.abs(np.vstack([observed - low, high - observed]))


def by_value(values: pd.Series, truth: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """Rows, and for each column of `truth` its mean with a 95 % interval, by category or by quantile bin.

    truth: columns of 0/1 (Wilson) or of numbers (mean ± 1.96 standard errors). Columns: value, rows, then
    (name, 'mean'|'low'|'high') for each. Missing is a value of its own; categories beyond `most` are 'other'.
    """
    labels = _labels(values, most)
    parts = []
    for label in labels.cat.categories:
        chosen = truth[(labels == label).to_numpy()]
        if not len(chosen):
            continue
        row: dict[Any, Any] = {"value": label, "rows": len(chosen)}
        for name in truth:
            row |= dict(zip([(name, "mean"), (name, "low"), (name, "high")], _mean(chosen[name]), strict=True))
        parts.append(row)
    return pd.DataFrame(parts)


def _mean(values: pd.Series) -> tuple[float, float, float]:
    known = values.dropna().to_numpy(float)
    n = len(known)
    if not n:
        return np.nan, np.nan, np.nan
    if np.isin(known, (0, 1)).all():
        low, high = wilson(np.array(known.sum()), np.array(n))
        return float(known.mean()), float(low), float(high)
    half = 1.96 * known.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(known.mean()), float(known.mean() - half), float(known.mean() + half)


def _labels(values: pd.Series, most: int) -> pd.Series:
    missing = values.isna()
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > most:
        numbers = values.astype("float64")
        edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, 9)))
        bins = pd.cut(numbers, edges, include_lowest=True)
        order = [f"{_number(max(b.left, edges[0]))} to {_number(b.right)}" for b in bins.cat.categories]
        text = bins.cat.rename_categories(order).astype(object)
    elif pd.api.types.is_numeric_dtype(values):
        order = [_number(value) for value in sorted(values.dropna().unique())]
        text = values.map(_number, na_action="ignore").astype(object)
    else:
        counts = values.value_counts()
        order = [short(str(name)) for name in counts.index[:most]]
        text = values.map(lambda v: short(str(v)) if v in set(counts.index[:most]) else "other", na_action="ignore")
        order = list(dict.fromkeys([*order, "other"]))
    text = text.astype(object).where(~missing, "missing")
    return pd.Series(pd.Categorical(text, categories=list(dict.fromkeys([*order, "missing"]))), index=values.index)


@styled
def against_target(frames: dict[str, pd.DataFrame], names: Sequence[str], base: Sequence[float], share: bool) -> Figure:
    """One panel per column: dots with 95 % intervals of each target in `names` by value, and how many rows.

    frames: column -> by_value(...). base: the mean over all rows, drawn as a line. share: the targets are 0/1.
    """
    columns, rows = 2, -(-len(frames) // 2)
    tall = max(len(frame) for frame in frames.values())
    figure, axes = panels(columns, rows * (1.0 + (0.17 + 0.1 * len(names)) * tall), rows=rows)
    for place, (column, frame) in zip(axes, frames.items(), strict=False):
        heights = np.arange(len(frame))[::-1].astype(float)
        for k, name in enumerate(names):
            at = heights - (k - (len(names) - 1) / 2) * 0.8 / max(len(names), 2)
            mean, low, high = (frame[(name, part)].to_numpy(float) for part in ("mean", "low", "high"))
            place.hlines(at, low, high, color=PALETTE[k % 7], linewidth=2, alpha=0.7)
            place.plot(mean, at, "o", color=PALETTE[k % 7], markersize=5, label=short(name))
            place.axvline(base[k], color=PALETTE[k % 7], linewidth=1, linestyle=":")
        counts = frame["rows"].astype(int)
        place.set_yticks(heights, [f"{v}  ({n:,})" for v, n in zip(frame["value"], counts, strict=True)])
        place.set_ylim(-0.7, len(frame) - 0.3)
        place.set_title(short(column, 40))
        if share:
            place.set_xlim(left=0)
            place.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        place.set_xlabel("share of images with the target, 95 % interval" if share else "mean target, 95 % interval")
    for place in axes[len(frames) :]:
        place.axis("off")
    if len(names) > 1:
        _legend(figure, axes[0])
    return figure


@styled
def missing(shares: pd.DataFrame) -> Figure:
    """Share of rows without a value, by column (rows of `shares`) and split (its columns)."""
    figure, (axes,) = panels(1, 0.8 + 0.34 * len(shares))
    heights = np.arange(len(shares))[::-1].astype(float)
    thick = 0.7 / len(shares.columns)
    for k, split in enumerate(shares):
        at = heights - (k - (len(shares.columns) - 1) / 2) * thick
        axes.barh(at, shares[split], height=thick * 0.9, color=SPLITS[split], label=split)
    axes.set_yticks(heights, [short(name, 40) for name in shares.index])
    axes.set_xlim(0, max(0.05, float(np.nanmax(shares.to_numpy())) * 1.1))
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes.set_xlabel("share of images without a value")
    _legend(figure, axes)
    return figure


@styled
def responsible(shares: pd.Series, title: str) -> Figure:
    """Bars of what an adversarial model leans on: share of its gain by column."""
    shares = shares.head(8)
    figure, (axes,) = panels(1, 0.9 + 0.26 * len(shares), width=4.7)
    axes.barh(np.arange(len(shares))[::-1], shares.to_numpy(), color=PURPLE, height=0.7)
    axes.set_yticks(np.arange(len(shares))[::-1], [short(name) for name in shares.index])
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set(title=title, xlabel="share of the model's gain")
    return figure


@styled
def crop_margins(table: pd.DataFrame, chosen: float, images: int) -> Figure:
    """What each crop margin keeps of true boxes (columns margin, recall, whole), and of the image (area)."""
    figure, (left, right) = panels(2, 3.3)
    left.plot(table["margin"], table["recall"], "o-", color=BLUE, label="mean share of the object's area kept")
    left.plot(table["margin"], table["whole"], "s--", color=VERMILLION, label="share of objects kept wholly")
    left.set(title=f"{images} true boxes that the detector did not train on", ylabel="share")
    left.set_ylim(max(0.0, min(table["recall"].min(), table["whole"].min()) - 0.05), 1.03)
    right.plot(table["margin"], table["area"], "o-", color=GREEN, label="mean share of the image in the crop")
    right.set(title="what it costs: background", ylabel="share of the image")
    right.set_ylim(0, 1.03)
    for place in (left, right):
        place.axvline(chosen, color=INK, linewidth=1, linestyle=":", label=f"margin used: {chosen:g}")
        place.set_xlabel("margin on each side, share of the box's side")
        place.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        place.legend(loc="lower right", fontsize=9)
    return figure


def short(name: object, most: int = 28) -> str:
    """The name, cut to `most` letters."""
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
