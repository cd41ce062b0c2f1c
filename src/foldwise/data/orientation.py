"""Whether a competition's images have an up and a down: what its file's `orientation` says, and what the images say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from foldwise import UserError, augment, dicom
from foldwise.core.cli import note
from foldwise.data.image import ImageOptions
from foldwise.data.recipe import Backbone, Recipe, Series, Stack

B = TypeVar("B", bound=Backbone)
Orientation = Literal["free", "upright"]

LOOKED_AT = 120  # files
MAKER, MODEL, TURNED = 271, 272, 274  # EXIF tags
# PS3.3 C.7.3.1.1.1: of these a patient lies or stands in a known way before the device
UPRIGHT = ("CR", "CT", "DX", "IO", "MG", "MR", "NM", "OCT", "OP", "PT", "PX", "RF", "RG", "US", "XA")
FREE = ("DMS", "ES", "GM", "SM", "XC")  # dermoscopes, endoscopes, microscopes, a camera in somebody's hand


class Judgement(NamedTuple):
    """What the images are taken for, and why; None where they do not tell."""

    orientation: Orientation | None
    reason: str


def judge(files: Sequence[Path], images: np.ndarray) -> Judgement:
    """By the DICOM modality, else by EXIF (a camera held upright), else by the edges; images uint8 (N, S, S, 3)."""
    some = [file for file in files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT] if file.is_file()]
    modalities = {_modality(file) for file in some} - {None}
    for orientation, known in (("upright", UPRIGHT), ("free", FREE)):
        if modalities and modalities <= set(known):
            return Judgement(orientation, f"DICOM modality {', '.join(sorted(map(str, modalities)))}")  # type: ignore[arg-type]
    taken = [_by_camera(file) for file in some]
    if sum(taken) > len(some) / 2:
        return Judgement("upright", f"EXIF: {sum(taken)} of {len(some)} are photographs by a camera")
    return _by_edges(images)


def _modality(file: Path) -> str | None:
    try:
        return str(dicom.read_header(file, ["Modality"])["Modality"])
    except (dicom.DicomError, KeyError):
        return None


def _by_camera(file: Path) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            exif = image.getexif()
    except (OSError, ValueError, SyntaxError):
        return False
    return MAKER in exif or MODEL in exif or exif.get(TURNED, 1) != 1


def _by_edges(images: np.ndarray) -> Judgement:
    """Photographs of the upright world have more horizontal and vertical edges than oblique ones (Switkes 1978,
    Torralba and Oliva 2003); skin, tissue and land from above have them in every direction."""
    if len(images) < 30:
        return Judgement(None, f"{len(images)} images are too few to tell")
    shares = np.array([_cardinal(image) for image in images])
    mean = float(shares.mean())
    sure = mean / max(float(shares.std()) / len(shares) ** 0.5, 1e-9)
    if mean > 0.03 and sure > 4:
        return Judgement("upright", f"edges are horizontal and vertical more than oblique ({mean:.3f})")
    if mean < 0.015 and sure < 3:
        return Judgement("free", f"edges have every direction alike ({mean:.3f})")
    return Judgement(None, f"edges do not tell ({mean:.3f})")


def _cardinal(image: np.ndarray) -> float:
    """Mean of cos 4a over the gradients' angles a, by their strength: 1 all horizontal or vertical, -1 all oblique."""
    gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    along = [cv2.Sobel(gray, cv2.CV_32F, *axis)[4:-4, 4:-4] for axis in ((1, 0), (0, 1))]
    strength = np.hypot(*along)
    return float((strength * np.cos(4 * np.arctan2(*along))).sum() / max(float(strength.sum()), 1e-6))


def fitted(recipe: Recipe, orientation: str | None, options: ImageOptions | None = None) -> Recipe:
    """The recipe for images that are `orientation`; what would turn upright ones is left out, and said.

    augment.flips: auto becomes d4 where they are free, else horizontal. options: of the images; the backbones'
    in_chans follow their channels, model.stack their slices.
    """
    recipe, channels = _stacked(recipe, options or ImageOptions())
    flips, tta, preset = recipe.augment.flips, recipe.predict.tta, recipe.augment.preset
    if flips == "auto":
        flips = "d4" if orientation == "free" else "horizontal"
    if orientation == "upright":
        if augment.turns(preset):
            raise UserError(f"augment.preset={preset} turns images, and the competition has `orientation: upright`")
        asked = {f"augment.flips={flips}": flips, f"predict.tta={tta}": tta}
        turning = [text for text, value in asked.items() if value == "d4"]
        if turning:
            note(f"{' and '.join(turning)} would turn images that are upright (`orientation`): mirrored only")
        flips, tta = "horizontal" if flips == "d4" else flips, "flip" if tta == "d4" else tta
    update: dict[str, Any] = {
        "augment": recipe.augment.model_copy(update={"flips": flips}),
        "predict": recipe.predict.model_copy(update={"tta": tta}),
    }
    if channels != 3 or "in_chans" in recipe.model.kwargs:
        second = recipe.model.second and _seeing(recipe.model.second, channels)
        update["model"] = _seeing(recipe.model, channels).model_copy(update={"second": second})
    return recipe.model_copy(update=update)


def _stacked(recipe: Recipe, options: ImageOptions) -> tuple[Recipe, int]:
    """The recipe with the shape of a row's slices, and the channels of a picture."""
    model = recipe.model
    if options.slices is None:
        if model.series != Series():
            raise UserError("model.series belongs to competitions with `series` and `image: {slices: N}`")
        return recipe, options.channels
    if model.mode == "as_is":
        raise UserError("model.mode=as_is: a pretrained head sees one picture, and this competition's rows are series")
    if recipe.train.compile and model.series.batch:
        raise UserError("train.compile=true does not go with model.series.batch, whose activations are made again")
    stack = Stack(series=max(1, len(options.series)), slices=options.slices, channels=options.per_slice)
    recipe = recipe.model_copy(update={"model": model.model_copy(update={"stack": stack})})
    return recipe, model.series.neighbours * options.per_slice


def _seeing(backbone: B, channels: int) -> B:
    seen = backbone.kwargs.get("in_chans", channels)
    if seen not in {1, channels}:
        raise UserError(f"model.kwargs: in_chans={seen}: the images have {channels} channels; {channels}, or 1: grey")
    return backbone.model_copy(update={"kwargs": {**backbone.kwargs, "in_chans": seen}})
