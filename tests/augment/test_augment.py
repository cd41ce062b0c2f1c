"""Train operations: shapes, seeds, exact symmetries, and each operation in the distribution of its albumentations twin.

A probe is an image whose pixels tell where they came from (a ramp across and a ramp down), so that geometry is compared
as displacement; colour, noise and blur are compared as moments of pixel values on a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
from torchvision.transforms.v2 import functional as tv

from foldwise import UserError, augment
from foldwise.augment import canvas, randaugment
from foldwise.augment.canvas import BLACK, REFLECT, WHITE, Canvas
from foldwise.augment.operations import (
    Affine,
    BrightnessContrast,
    Clahe,
    CutOut,
    ElasticTransform,
    Flips,
    GaussianBlur,
    GaussNoise,
    GridDistortion,
    HueSaturationValue,
    MedianBlur,
    MotionBlur,
    OneOf,
    Operation,
    OpticalDistortion,
)
from foldwise.data.recipe import Predict
from foldwise.model.predict import tta_views, turned
from foldwise.report import figures, previews

pytestmark = pytest.mark.smoke


def photos(count: int, size: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (count, size, size, 3): a smooth random picture with fine grain, the same one `count` times."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 216, (6, 6, 3)).astype(np.uint8)
    smooth = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC).astype(int)
    grainy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    return np.repeat(grainy[None], count, axis=0)


# --- contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", augment.PRESETS)
@pytest.mark.parametrize("flips", augment.FLIPS)
@pytest.mark.parametrize("magnitude", [0, 9])
def test_uint8_in_and_out_and_equal_rng_equal_images(preset: str, flips: str, magnitude: int) -> None:
    images = photos(8)
    images.setflags(write=False)
    ops = augment.train_ops(preset, 48, flips, randaugment=magnitude)
    one, two = ops(images, np.random.default_rng(1)), ops(images, np.random.default_rng(1))
    assert one.shape == images.shape
    assert one.dtype == np.uint8
    assert (one == two).all()
    if preset != "none" or flips != "none" or magnitude:
        assert (one != ops(images, np.random.default_rng(2))).any()
    assert (images == photos(8)).all()


def test_an_image_does_not_depend_on_those_before_it_but_through_the_rng() -> None:
    """Buffers are used again: nothing of an image may be left for the next."""
    ops = augment.train_ops("melanoma2020", 48, randaugment=9)
    first, second = photos(1, seed=1), photos(1, seed=2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ops(first, rng)
        alone = ops(second, rng)
        rng = np.random.default_rng(seed)
        assert (ops(np.concatenate([first, second]), rng)[1:] == alone).all()


def test_other_sizes_are_resized_and_other_shapes_refused() -> None:
    ops = augment.train_ops("melanoma2020", 32)
    assert ops(photos(2, 48), np.random.default_rng(0)).shape == (2, 32, 32, 3)
    assert augment.reference_ops("melanoma2020", 32)(photos(2, 48), np.random.default_rng(0)).shape == (2, 32, 32, 3)
    assert ops(photos(0, 48), np.random.default_rng(0)).shape == (0, 32, 32, 3)
    for wrong in (photos(2)[:, :40], photos(1)[0], photos(2).astype(np.float32)):
        with pytest.raises(UserError, match="square uint8"):
            ops(wrong, np.random.default_rng(0))


def test_strength_and_single_operations() -> None:
    """Half the strength moves half as much; a named operation is added, or takes the preset's own place."""
    half = augment.operations("heavy", "none", 0.5)
    assert [type(one) for one in half] == [type(one) for one in augment.operations("heavy", "none")]
    assert (half[0].rotate, half[0].p, half[-1].share) == (22.5, 0.85, 0.1875)
    added = augment.operations("light", "none", ops={"elastic": 0.3, "affine": 0.1})
    assert [(type(one).__name__, one.p) for one in added] == [("ElasticTransform", 0.3), ("Affine", 0.1)]
    assert augment.operations("light", "none", ops={"affine": 0}) == ()
    images = photos(6)
    moved = [
        np.abs(
            augment.train_ops("medium", 48, "none", strength=s)(images, np.random.default_rng(1)) - images.astype(int)
        )
        for s in (0.0, 0.5, 1.0)
    ]
    assert moved[0].max() <= 1 and 0 < moved[1].mean() < moved[2].mean()
    for preset in augment.PRESETS:
        augment.train_ops(preset, 48, strength=2.0, ops=dict.fromkeys(augment.OPS, 1.0))(
            images, np.random.default_rng(0)
        )
    with pytest.raises(UserError, match=r"augment.ops=elastik: no such operation; did you mean 'elastic'"):
        augment.train_ops("light", 48, ops={"elastik": 0.3})


def test_misspelt_names_propose_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'heavy'"):
        augment.train_ops("heavey", 64)
    with pytest.raises(UserError, match="did you mean 'horizontal'"):
        augment.train_ops("light", 64, "horizontl")


# --- the canvas -----------------------------------------------------------------------------------------------


def test_the_eight_symmetries_are_exact_and_those_of_the_views() -> None:
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    canvas, out = Canvas(16), np.empty_like(image)
    seen = set()
    for symmetry in range(8):
        canvas.load(image)
        canvas.turn(symmetry)
        canvas.finish(out)
        assert (out == turned(image[None], symmetry)[0]).all(), symmetry
        seen.add(out.tobytes())
        canvas.load(image)
        canvas.turn(symmetry)
        canvas.distort(lambda x, y: (x, y), REFLECT)  # through the remap
        canvas.finish(out)
        assert (out == turned(image[None], symmetry)[0]).all(), symmetry
    assert len(seen) == 8


@pytest.mark.parametrize("border", [BLACK, WHITE])
def test_one_warp_is_what_one_after_the_other_gives(border: canvas.Border) -> None:
    """Flip, lens, turn and shift in one remap against three, on a smooth picture; also what is painted outside."""
    smooth = cv2.GaussianBlur(photos(1, 128)[0], (0, 0), 3)
    ops = (Flips("d4"), OpticalDistortion(0.6), Affine(0.1, 0.1, 15, border))
    for seed in range(6):
        canvas, fused, stepwise = Canvas(128), np.empty_like(smooth), smooth.copy()
        rng = np.random.default_rng(seed)
        canvas.load(smooth)
        for operation in ops:
            operation.apply(canvas, rng)
        canvas.finish(fused)
        rng = np.random.default_rng(seed)
        for operation in ops:
            canvas.load(stepwise.copy())
            operation.apply(canvas, rng)
            canvas.finish(stepwise)
        error = np.abs(fused.astype(int) - stepwise).max(axis=2)
        assert np.percentile(error, 95) <= 2, seed
        assert error.mean() < 2.5  # a rim of one pixel is sharp, not blended with what was painted


# --- each operation against its twin --------------------------------------------------------------------------


def ramps(count: int, size: int) -> np.ndarray:
    """Red tells x, green y, blue is 200 everywhere (0 where black came in): levels 20 to 220 over the side."""
    levels = np.linspace(20, 220, size)
    x, y = np.meshgrid(levels, levels)
    probe = np.stack([x, y, np.full_like(x, 200)], axis=-1).round().astype(np.uint8)
    return np.repeat(probe[None], count, axis=0)


def where_from(batch: np.ndarray) -> np.ndarray:
    """Where each pixel came from, in sides, x and y, and the share that is still image: float (B, 7) moments an image.

    Taken inside a margin: at the rim an elastic field of the twin is larger, as its noise is continued there by
    repeating the outermost pixel.
    """
    size = batch.shape[1]
    margin = size // 6
    inner = batch[:, margin:-margin, margin:-margin].astype(float)
    known = inner[..., 2] > 100
    places = (inner[..., :2] - 20) / 200
    here = (np.arange(margin, size - margin)) / (size - 1)
    moved_x, moved_y = places[..., 0] - here, places[..., 1] - here[:, None]
    features = []
    for moved in (moved_x, moved_y):
        masked = np.where(known, moved, np.nan)
        steps = [np.nanmean(np.abs(np.diff(masked, axis=axis)), axis=(1, 2)) for axis in (1, 2)]
        features += [np.nanmean(masked, axis=(1, 2)), np.nanstd(masked, axis=(1, 2)), sum(steps)]
    return np.stack([*features, (batch[..., 2] > 100).mean(axis=(1, 2))], axis=1)


def light(batch: np.ndarray) -> np.ndarray:
    """Moments of pixel values an image: level and spread of each channel, grain, hue, saturation: float (B, 9)."""
    values = batch.astype(float)
    hsv = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV) for image in batch]).astype(float)
    turn = np.exp(2j * np.pi * hsv[..., 0] / 180) * hsv[..., 1]
    grain = [np.abs(np.diff(values, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2)]
    return np.concatenate(
        [
            values.mean(axis=(1, 2)),
            values.std(axis=(1, 2)).mean(axis=1)[:, None],
            np.stack(grain, axis=1),
            np.stack([turn.mean(axis=(1, 2)).real, turn.mean(axis=(1, 2)).imag, hsv[..., 1].mean(axis=(1, 2))], axis=1),
        ],
        axis=1,
    )


Probe = Callable[[np.ndarray], np.ndarray]
COUNT = 400
# operation, probe, and how far the systematic means may lie apart, with the reason
CASES: dict[str, tuple[Operation, Probe, float]] = {
    "flips": (Flips("d4"), where_from, 1e-6),
    "affine": (Affine(0.1, 0.1, 15, BLACK), where_from, 0.003),  # the twin shifts by whole pixels, cut towards 0
    "optical": (OpticalDistortion(1.0), where_from, 0.003),  # nodes: 0.0004 of the side; levels are rounded: 0.0025
    "grid": (GridDistortion(5, 1.0), where_from, 0.004),  # likewise, and kinks rounded
    "elastic": (ElasticTransform(150, 4), where_from, 0.003),
    "brightness": (BrightnessContrast(brightness=0.2), light, 0.1),  # the same table
    "contrast": (BrightnessContrast(contrast=0.2), light, 0.1),
    "both": (BrightnessContrast(0.3, 0.3), light, 0.1),
    "clahe": (Clahe(4.0), light, 2.5),  # luma for lightness: of colours, not of greys, two levels apart
    "hsv": (HueSaturationValue(10, 20, 10), light, 0.6),  # the twin cuts where we round
    "gauss": (GaussianBlur(0.8, 1.1, largest=5), light, 0.1),
    "gauss_wide": (GaussianBlur(0.1, 1.5), light, 0.1),
    "median": (MedianBlur(5), light, 0.1),
    "motion": (MotionBlur(5), light, 0.3),  # a bank of 1024 kernels
    "noise": (GaussNoise(5**0.5, 30**0.5), light, 0.6),  # the twin cuts where we round: half a level
    "noise_on_strokes": (GaussNoise(0, 20, keep_white=True), light, 0.6),
    "cutout": (CutOut(0.375), light, 0.1),
    "one_of": (OneOf((BrightnessContrast(0.3), CutOut(0.3, p=0.5), GaussNoise(8, 12))), light, 0.6),
}


def probed(case: str) -> np.ndarray:
    """What a case is tried on: CLAHE's limit is too coarse to vary on small tiles, HSV's spread takes many draws."""
    if CASES[case][1] is where_from:
        return ramps(COUNT, 72)
    if case == "clahe":
        return photos(40, 192)
    return photos(1200, 24) if case == "hsv" else photos(COUNT, 48)


@lru_cache
def of_the_twin(case: str) -> np.ndarray:
    """The twin's features."""
    operation, probe, _ = CASES[case]
    images = probed(case)
    return probe(augment.reference_pipeline([operation], images.shape[1])(images, np.random.default_rng(0)))


def of_ours(case: str, ops: Sequence[Operation], seed: int) -> np.ndarray:
    """Our features, of any list of operations."""
    images = probed(case)
    return CASES[case][1](augment.pipeline(ops, images.shape[1])(images, np.random.default_rng(seed)))


def apart(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per feature (B, F): how far means and spreads lie apart beyond 4.5 standard errors."""
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / len(ours))
    means = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) - 4.5 * error
    kurtosis = max(1.0, float(np.median([_kurtosis(ours), _kurtosis(theirs)])))
    spread = np.abs(ours.std(axis=0) - theirs.std(axis=0)) - 4.5 * np.sqrt(kurtosis / 2) * error
    return means, spread


def _kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean(axis=0)
    return float(np.max((centred**4).mean(axis=0) / np.maximum(values.var(axis=0) ** 2, 1e-12)))


def same_distribution(ours: np.ndarray, theirs: np.ndarray, bias: float) -> bool:
    means, spread = apart(ours, theirs)
    return bool((means <= bias).all() and (spread <= bias).all())


@pytest.mark.parametrize("case", CASES)
def test_an_operation_is_in_the_distribution_of_its_twin(case: str) -> None:
    operation, _, bias = CASES[case]
    ours, theirs = of_ours(case, [operation], 0), of_the_twin(case)
    assert same_distribution(ours, theirs, bias), (ours.mean(0), theirs.mean(0), ours.std(0), theirs.std(0))


@pytest.mark.parametrize("case", CASES)
def test_that_comparison_notices_an_operation_dropped_or_doubled(case: str) -> None:
    """The test above is worth something: it fails for an operation that is not there, or there twice."""
    operation, _, bias = CASES[case]
    assert not same_distribution(of_ours(case, [], 1), of_the_twin(case), bias)
    if case != "flips":  # two draws of a symmetry are a symmetry
        assert not same_distribution(of_ours(case, [operation, operation], 1), of_the_twin(case), bias)


@pytest.mark.parametrize("preset", ["light", "medium", "heavy", "sketch", "melanoma2020"])
def test_a_preset_is_in_the_distribution_of_its_twin(preset: str) -> None:
    """The whole list at once, on a picture; in melanoma2020 our CLAHE (see above) shifts the levels a little."""
    images = photos(300, 48)
    pair = augment.train_ops(preset, 48), augment.reference_ops(preset, 48)
    ours, theirs = (light(make(images, np.random.default_rng(seed))) for seed, make in enumerate(pair))
    assert same_distribution(ours, theirs, 2.0 if preset == "melanoma2020" else 0.6), (ours.mean(0), theirs.mean(0))


@pytest.mark.parametrize("left_out", range(len(augment.MELANOMA2020)))
def test_the_winner_s_list_is_what_was_published(left_out: int) -> None:
    """Operation by operation, with its probability; a list without it is another one."""
    published = [
        ("Flips", 1.0),
        ("BrightnessContrast", 0.75),
        ("BrightnessContrast", 0.75),
        ("OneOf", 0.7),
        ("OneOf", 0.7),
        ("Clahe", 0.7),
        ("HueSaturationValue", 0.5),
        ("Affine", 0.85),
        ("CutOut", 0.7),
    ]
    operation = augment.MELANOMA2020[left_out]
    assert (type(operation).__name__, operation.p) == published[left_out]
    rng, drawn = np.random.default_rng(0), 0
    images = photos(400, 64)
    made = augment.pipeline([replace(operation)], 64)(images, rng)
    drawn = (made != images).any(axis=(1, 2, 3)).mean()
    unseen = {"Flips": 7 / 8}.get(type(operation).__name__, operation.p)  # one symmetry of eight changes nothing
    elastic = left_out == 4  # a third of its draws: alpha 3 moves by less than a pixel's hundredth
    assert unseen * (2 / 3 if elastic else 1) - 0.12 < drawn < unseen + 0.1


def test_melanoma2020_flips_by_itself_whatever_the_recipe_says() -> None:
    for flips in augment.FLIPS:
        assert augment.operations("melanoma2020", flips) == augment.MELANOMA2020
    assert [type(one).__name__ for one in augment.operations("light", "d4")] == ["Flips", "Affine"]


def test_a_sketch_s_paper_stays_white() -> None:
    paper = np.full((200, 64, 64, 3), 255, np.uint8)
    assert (augment.train_ops("sketch", 64)(paper, np.random.default_rng(0)) == 255).all()
    assert (augment.reference_ops("sketch", 64)(paper, np.random.default_rng(0)) == 255).all()
    drawn = paper.copy()
    drawn[:, 30:34, 8:56] = 0
    made = augment.train_ops("sketch", 64)(drawn, np.random.default_rng(0))
    assert 0.5 < (made < 128).mean() / (drawn < 128).mean() < 1.5  # the stroke is still there
    assert ((made == 255).mean(axis=(1, 2, 3)) > 0.8).all()


# --- RandAugment ----------------------------------------------------------------------------------------------

LEVEL = 0.5
TORCHVISION: dict[str, Callable[..., object]] = {
    "identity": lambda image: image,
    "shear_x": lambda image: _sheared(image, [float(np.degrees(np.arctan(0.3 * LEVEL))), 0.0]),
    "shear_y": lambda image: _sheared(image, [0.0, float(np.degrees(np.arctan(0.3 * LEVEL)))]),
    "translate_x": lambda image: tv.affine(image, 0, [round(150 / 331 * LEVEL * 64), 0], 1, [0, 0], fill=[128.0]),
    "translate_y": lambda image: tv.affine(image, 0, [0, round(150 / 331 * LEVEL * 64)], 1, [0, 0], fill=[128.0]),
    "rotate": lambda image: tv.rotate(image, 30 * LEVEL, interpolation=2, fill=[128.0]),
    "brightness": lambda image: tv.adjust_brightness(image, 1 + 0.9 * LEVEL),
    "contrast": lambda image: tv.adjust_contrast(image, 1 + 0.9 * LEVEL),
    "colour": lambda image: tv.adjust_saturation(image, 1 + 0.9 * LEVEL),
    "sharpness": lambda image: tv.adjust_sharpness(image, 1 + 0.9 * LEVEL),
    "posterize": lambda image: tv.posterize(image, 6),
    "solarize": lambda image: tv.solarize(image, 255 * (1 - LEVEL)),
    "autocontrast": tv.autocontrast,
    "equalize": tv.equalize,
}


def _sheared(image: object, shear: list[float]) -> object:
    return tv.affine(image, 0, [0, 0], 1, shear, interpolation=2, fill=[128.0], center=[0, 0])


@pytest.mark.parametrize("name", randaugment.STEPS)
def test_randaugment_s_operations_are_torchvision_s(name: str) -> None:
    """Each at half its reach, pixel by pixel; a shift and a resampling may round differently at edges."""
    import torch

    image = photos(1, 64)[0] if name == "sharpness" else cv2.GaussianBlur(photos(1, 64)[0], (0, 0), 2)
    canvas, ours = Canvas(64), np.empty_like(image)
    canvas.load(image)
    randaugment.STEPS[name](canvas, LEVEL)
    canvas.finish(ours)
    made = TORCHVISION[name](torch.from_numpy(image).permute(2, 0, 1))
    theirs = made.permute(1, 2, 0).numpy()  # type: ignore[attr-defined]
    error = np.abs(ours.astype(int) - theirs).max(axis=2)
    assert np.percentile(error, 90) <= (6 if name in ("equalize", "translate_x", "translate_y") else 2), name
    if name != "identity":
        assert np.abs(ours.astype(int) - image).mean() > 1, name


def test_randaugment_grows_with_its_magnitude_and_draws_every_operation() -> None:
    assert len(randaugment.STEPS) == 14
    images = photos(300, 48)
    change = [
        np.abs(randaugmented.astype(int) - images).mean()
        for magnitude in (1, 9, 25)
        for randaugmented in [augment.train_ops("none", 48, "none", magnitude)(images, np.random.default_rng(0))]
    ]
    assert change[0] < change[1] < change[2]


# --- views ----------------------------------------------------------------------------------------------------


def test_views_are_counted_once_and_whole_ones_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, 40, 40, 3)).astype(np.uint8)
    whole = [view(image)[0] for view in tta_views(Predict(tta="d4"))]
    assert len({view.tobytes() for view in whole}) == 8
    assert (whole[0] == image[0]).all()
    for tta, crops, scales, count in (
        ("none", 1, [1.0], 1),
        ("flip", 1, [1.0, 1.25], 4),
        ("none", 5, [1.0], 5),
        ("none", 10, [1.0], 10),
        ("flip", 10, [1.0], 10),
        ("d4", 10, [1.0, 1.5], 80),
    ):
        made = [view(image) for view in tta_views(Predict(tta=tta, crops=crops, scales=scales))]
        assert len(made) == count == len({view.tobytes() for view in made}), (tta, crops, scales)
        assert {view.shape[1] for view in made} == {round(40 * scale) for scale in scales}
        assert all(view.dtype == np.uint8 and view.flags.c_contiguous for view in made)


def test_crops_are_the_corners_and_the_centre() -> None:
    """A mark in each corner is seen by one crop of the five, a mark in the centre by all."""
    marks = [(2, 2), (2, 37), (37, 2), (37, 37)]
    image = np.zeros((1, 40, 40, 3), np.uint8)
    for number, (row, column) in enumerate(marks):
        image[0, row - 2 : row + 2, column - 2 : column + 2] = 50 + 50 * number
    image[0, 18:22, 18:22, 0] = 255
    seen = [
        set(np.unique(view(image)[0, ..., 1])) & {50, 100, 150, 200}
        for view in tta_views(Predict(crops=5, crop_fraction=0.75))
    ]
    assert seen == [{50}, {100}, {150}, {200}, set()]
    assert all(view(image)[..., 0].max() == 255 for view in tta_views(Predict(crops=5, crop_fraction=0.75)))
    assert tta_views(Predict(crops=5), 64)[0](image).shape == (1, 64, 64, 3)


# --- previews -------------------------------------------------------------------------------------------------


def test_preview_shows_a_row_a_preset_and_the_twin_beside(tmp_path) -> None:  # type: ignore[no-untyped-def]
    images = photos(2, 32)
    figure = previews.augmentation_grid(images, ["light", "melanoma2020"], versions=3)
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 2 * 2 * 3
    assert [axis.get_ylabel() for axis in drawn[::6]] == ["light", "melanoma2020"]
    assert (drawn[0].images[0].get_array() == images[0]).all()
    assert len(previews.augmentation_grid(images, ["light"], randaugment=9).axes) == 2 * 2
    figures.save(figure, tmp_path / "grid.png", dpi=40)
    assert cv2.imread(str(tmp_path / "grid.png")) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("channels", [1, 2, 6, 7])
def test_other_channels_are_moved_alike_and_keep_to_themselves(channels: int) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (3, 48, 48, channels), np.uint8)
    planes[..., -1] = planes[..., 0]
    for preset in ("heavy", "melanoma2020"):
        ops = augment.train_ops(preset, 32, "d4", randaugment=9)
        out = ops(planes, np.random.default_rng(1))
        assert out.shape == (3, 32, 32, channels) and out.dtype == np.uint8
        assert np.array_equal(ops(planes, np.random.default_rng(1)), out)
    ops = augment.train_ops("light", 48, "d4")
    out = ops(planes, np.random.default_rng(2))
    assert np.array_equal(out[..., 0], out[..., -1]) and not np.array_equal(out, planes)
    gray = np.repeat(planes[..., :1], 3, axis=3)
    assert np.array_equal(ops(gray, np.random.default_rng(2))[..., 0], out[..., 0])
