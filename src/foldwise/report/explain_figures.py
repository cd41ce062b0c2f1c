"""Pictures of what a network looks at: overlays, sheets, feature maps, filters, deletion curves; arrays in."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from foldwise.data.image import as_picture
from foldwise.report import figures
from foldwise.report.figures import BLUE, GREEN, ORANGE, PALETTE, VERMILLION

PANEL = 224  # pixels a side of one panel of a strip, at least
GAP = 6  # white pixels between panels
HEAD = 0.45  # inches above a strip, for its two lines
ORDER_COLOURS = {"map": VERMILLION, "random": BLUE, "centre": GREEN}
ORDER_WORDS = {"map": "what the map marks first", "random": "at random", "centre": "from the centre outwards"}


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """uint8 (S, S, 3): the image in gray, and over it a map `heat` (S, S) in 0..1, from purple to yellow.

    Where the map is low the image shows through; the two ends differ in lightness, so that they are told apart
    without colour, too.
    """
    gray = np.repeat(cv2.cvtColor(as_picture(image), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.float32)
    level = np.clip(heat, 0, 1).astype(np.float32)
    colour = matplotlib.colormaps["plasma"](0.15 + 0.85 * level)[..., :3].astype(np.float32) * 255
    fraction = strength * level[..., None]
    return (0.85 * gray * (1 - fraction) + colour * fraction).round().astype(np.uint8)


def strip(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Square pictures uint8 (S, S, 3) side by side, enlarged to at least 224 pixels: uint8 (H, W, 3)."""
    side = max(PANEL, max(len(panel) for panel in panels))
    how = [cv2.INTER_CUBIC if len(panel) < side else cv2.INTER_AREA for panel in panels]
    shown = [cv2.resize(panel, (side, side), interpolation=each) for panel, each in zip(panels, how, strict=True)]
    gap = np.full((side, GAP, 3), 255, np.uint8)
    parts = [part for panel in shown for part in (panel, gap)][:-1]
    return np.concatenate(parts, axis=1)


def bars(values: np.ndarray, marked: Sequence[int], side: int = PANEL) -> np.ndarray:
    """uint8 (side, side, 3): a bar a value (N,) from left to right, `marked` ones in another colour; NaN: none."""
    out = np.full((side, side, 3), 255, np.uint8)
    reach = max(float(np.nanmax(np.abs(values), initial=0)), 1e-9)
    middle, wide = side // 2, side / max(1, len(values))
    cv2.line(out, (0, middle), (side - 1, middle), (120, 120, 120), 1)
    for k, value in enumerate(values):
        colour = [round(255 * part) for part in to_rgb(VERMILLION if k in marked else BLUE)]
        left, right = round(k * wide), max(round(k * wide) + 1, round((k + 1) * wide) - 1)
        if not np.isnan(value):
            cv2.rectangle(out, (left, middle), (right, middle - round(value / reach * (side // 2 - 4))), colour, -1)
    return out


def png(image: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W, 3) RGB."""
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


@figures.styled
def sheet(title: str, strips: Sequence[np.ndarray], words: Sequence[str], across: int = 2) -> Figure:
    """A sheet of strips, at most 2.4 inches high, with two lines of words above each."""
    grid = [[*zip(strips, words, strict=True)][k : k + across] for k in range(0, len(strips), across)]
    high = min(max(image.shape[0] / image.shape[1] for image in strips), 2.4 * across / figures.WIDTH)
    figure, (axes,) = figures.panels(1, len(grid) * (high * figures.WIDTH / across + HEAD) + 0.4)
    figures.tiles(axes, grid, high, HEAD * across / figures.WIDTH, size=8.5)
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


@figures.styled
def stage(
    title: str,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    means: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
) -> Figure:
    """One stage: a row per image, with the mean of all channels and then single channels (K, h, w) with what each
    adds to the evidence. Every picture has its own scale, dark is low."""
    grid = [
        [(image, figures.short(name, 16)), (mean, "mean of all"), *zip(each, (f"{a:+.2g}" for a in adds), strict=True)]
        for image, name, mean, each, adds in zip(images, names, means, maps, weights, strict=True)
    ]
    side = figures.WIDTH / max(map(len, grid))
    figure, (axes,) = figures.panels(1, 0.45 + (side + 0.2) * len(images))
    figures.tiles(axes, grid, head=0.2 / side)
    figure.suptitle(title, fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    return figure


@figures.styled
def filters(weights: np.ndarray, across: int = 16) -> Figure:
    """Filters float (K, h, w, 3), each on its own scale around gray."""
    scale = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    shown = 0.5 + 0.5 * weights / np.where(scale > 0, scale, 1)
    grid = [[(one, "") for one in shown[k : k + across]] for k in range(0, len(shown), across)]
    figure, (axes,) = figures.panels(1, figures.WIDTH / across * len(grid))
    figures.tiles(axes, grid)
    return figure


@figures.styled
def deletion(curves: dict[str, np.ndarray], quantity: str, differences: dict[str, np.ndarray]) -> Figure:
    """Deletion curves (images, steps + 1) by order, their mean with its 95 % interval; beside it, for each image, by
    how much the area under the map's curve is smaller than under the other orders'."""
    figure, (left, right) = figures.panels(2, 3.4)
    for order, values in curves.items():
        at = np.linspace(0, 1, values.shape[1])
        mean = values.mean(axis=0)
        half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * mean
        left.plot(at, mean, color=ORDER_COLOURS[order], label=ORDER_WORDS[order], linewidth=2)
        left.fill_between(at, mean - half, mean + half, color=ORDER_COLOURS[order], alpha=0.15, linewidth=0)
    left.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    left.set(xlabel="share of the image blurred away", ylabel=quantity, title="Mean over images, 95 % interval")
    left.legend(fontsize=8.5)
    rng = np.random.default_rng(0)
    for k, (order, values) in enumerate(differences.items()):
        right.scatter(
            values, k + rng.uniform(-0.18, 0.18, len(values)), s=18, alpha=0.6, linewidths=0, color=ORDER_COLOURS[order]
        )
        right.vlines(values.mean(), k - 0.32, k + 0.32, color=figures.INK, linewidth=2)
    right.axvline(0, color=figures.INK, linewidth=0.8, linestyle=":")
    right.set_yticks(
        range(len(differences)),
        [f"than {ORDER_WORDS[order]}".replace(" outwards", "\noutwards") for order in differences],
    )
    right.set_ylim(-0.6, len(differences) - 0.4)
    right.set(xlabel="area saved by the map (right of 0: the map did better)", title="An image a dot, line: mean")
    return figure


@figures.styled
def contributions(values: pd.DataFrame, most: int = 14) -> Figure:
    """What metadata features add to the evidence: a row per feature (a column of `values`), a dot per case."""
    order = values.abs().mean().sort_values(ascending=False, kind="stable").index[:most]
    figure, (axes,) = figures.panels(1, 1.0 + 0.3 * len(order))
    rng = np.random.default_rng(0)
    for k, name in enumerate(order[::-1]):
        added = values[name].to_numpy()
        colour = [ORANGE if value > 0 else PALETTE[0] for value in added]
        axes.scatter(added, k + rng.uniform(-0.16, 0.16, len(added)), s=16, alpha=0.65, linewidths=0, color=colour)
    axes.axvline(0, color=figures.INK, linewidth=0.8)
    axes.set_yticks(range(len(order)), [figures.short(name, 34) for name in order[::-1]])
    axes.set_xlabel("added to the evidence for the positive or named class, against the average row (log-odds, logits)")
    return figure
