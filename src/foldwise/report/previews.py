"""Pictures of what augmentation does: originals, our versions, and albumentations' beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from foldwise import augment
from foldwise.core.cli import say
from foldwise.data import cache, folds
from foldwise.data.competition import Competition
from foldwise.data.recipe import Augment, Recipe
from foldwise.report.figures import STYLE, save

VERSIONS = 4
_GAP = 0.04  # between pictures, of their side


def draw_preview(competition: Competition, recipe: Recipe, path: Path) -> None:
    """A picture of the recipe's augmentation, and of its plain twin, on this competition's training images.

    Rows below show what mixup and CutMix make of these images, where the recipe mixes.
    """
    images = cache.load_cache(competition, recipe.image_size, recipe.crop)
    rows = images.rows("train", folds.load_folds(competition)["id"].tolist())
    some = images.pictures(rows[:: max(1, len(rows) // VERSIONS)][:VERSIONS])
    a, size = recipe.augment, recipe.image_size
    makers = [augment.train_ops(a.preset, size, a.flips, a.randaugment, a.strength, a.ops)]
    if not a.randaugment:
        makers.append(augment.reference_ops(a.preset, size, a.flips, a.strength, a.ops))
    lines = _rows(a.preset, some, makers, VERSIONS, recipe.seed) + _mixed(some, a, len(makers))
    save(_figure(lines), path, dpi=100)
    say(f"augmented images of preset {a.preset}, ours and albumentations': {path}")


def _mixed(images: np.ndarray, settings: Augment, columns: int) -> list[tuple[str, list[np.ndarray]]]:
    """Per way of mixing that the recipe uses: its name, the first image, each image mixed with another."""
    from foldwise.train.mixup import mixed  # torch

    lines = []
    for name in ("mixup", "cutmix"):
        if getattr(settings, name) and len(images) == VERSIONS:
            made = mixed(images, name, settings, np.random.default_rng(1))
            blank = [np.full_like(_strip(made), 255)] * (columns - 1)
            lines.append((name, [_strip(images[:1]), _strip(made), *blank]))
    return lines


def augmentation_grid(
    images: np.ndarray,
    presets: Sequence[str],
    *,
    flips: str = "horizontal",
    randaugment: int = 0,
    versions: int = VERSIONS,
    reference: bool = True,
    seed: int = 0,
) -> Figure:
    """A row per preset and image: the original, `versions` of ours, and as many of the albumentations twin's.

    images: uint8 (N, S, S, 3). The twin has no RandAugment: with it, or reference=False, ours stand alone.
    """
    size = images.shape[1]
    makers = {}
    for preset in presets:
        name = f"{preset}, Rand-\nAugment {randaugment}" if randaugment else preset
        makers[name] = [augment.train_ops(preset, size, flips, randaugment)]
        if reference and not randaugment:
            makers[name].append(augment.reference_ops(preset, size, flips))
    return grid(images, makers, versions, seed)


def grid(
    images: np.ndarray, makers: Mapping[str, Sequence[augment.Ops]], versions: int = VERSIONS, seed: int = 0
) -> Figure:
    """A row per name and image: the original, and `versions` by each of that name's makers."""
    rows = [row for name, some in makers.items() for row in _rows(name, images, some, versions, seed)]
    return _figure(rows)


def _rows(
    name: str, images: np.ndarray, makers: Sequence[augment.Ops], versions: int, seed: int
) -> list[tuple[str, list[np.ndarray]]]:
    """Per image: the name (on the first), and strips of the original and of what each maker makes of it."""
    rows = []
    for number, image in enumerate(images):
        repeated = np.repeat(image[None], versions, axis=0)
        augmented = [make(repeated, np.random.default_rng([seed, number])) for make in makers]
        rows.append(("" if number else name, [_strip(image[None]), *map(_strip, augmented)]))
    return rows


def _strip(images: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) side by side, white between."""
    gap = round(_GAP * images.shape[1])
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap] if gap else np.concatenate(list(images), axis=1)


def _figure(rows: Sequence[tuple[str, list[np.ndarray]]]) -> Figure:
    titles = ["original", "Foldwise", "albumentations, one operation at a time"]
    widths = [strip.shape[1] / strip.shape[0] for strip in rows[0][1]]
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 * sum(widths) + 0.6, 1.25 * len(rows) + 0.3), layout="constrained")
        axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
        for line, (name, strips) in zip(axes, rows, strict=True):
            line[0].set_ylabel(name)
            for axis, strip in zip(line, strips, strict=True):
                axis.imshow(strip, interpolation="antialiased")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, title in zip(axes[0], titles, strict=False):
            axis.set_title(title)
    return figure
