"""Train operations: shapes, seeds, exact flips, and the same distribution as the albumentations twin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from foldwise import UserError, augment

pytestmark = pytest.mark.smoke


def photos(count: int, size: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (count, size, size, 3): smooth random pictures, the same one `count` times."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 216, (6, 6, 3)).astype(np.uint8)
    return np.repeat(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)[None], count, axis=0)


@pytest.mark.parametrize("preset", augment.PRESETS)
@pytest.mark.parametrize("flips", augment.FLIPS)
def test_uint8_in_and_out_and_equal_rng_equal_images(preset: str, flips: str) -> None:
    images = photos(8)
    before = images.copy()
    ops = augment.train_ops(preset, 48, flips)
    one, two = ops(images, np.random.default_rng(1)), ops(images, np.random.default_rng(1))
    assert one.shape == images.shape
    assert one.dtype == np.uint8
    assert (one == two).all()
    assert (images == before).all()
    if preset != "none" or flips != "none":
        assert (one != ops(images, np.random.default_rng(2))).any()


def test_eight_symmetries_are_exact_and_different() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 5, 3)).astype(np.uint8)
    views = [view(image[None])[0] for view in augment.tta_views("d4")]
    assert len({view.tobytes() for view in views}) == 8
    assert all((np.sort(view.ravel()) == np.sort(image.ravel())).all() for view in views)
    assert (views[0] == image).all()


def test_the_warp_with_nothing_but_a_flip_is_that_flip() -> None:
    """Geometry's matrices and the plain copies agree on which symmetry each number means."""
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    still = augment.Preset(p_affine=1.0)
    seen = set()
    for seed in range(60):
        warped = augment._geometry(image, still, "d4", np.random.default_rng(seed))
        copied = augment._flipped(image, int(np.random.default_rng(seed).integers(8)))
        assert np.abs(warped.astype(int) - copied).max() <= 1
        seen.add(copied.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("preset", ["light", "medium", "heavy"])
def test_same_distribution_as_albumentations(preset: str) -> None:
    """Mean, spread and roughness over many draws agree with the one-op-at-a-time twin."""
    images = photos(600)
    fast = augment.train_ops(preset, 48)(images, np.random.default_rng(0)).astype(float)
    slow = augment.reference_ops(preset, 48)(images, np.random.default_rng(0)).astype(float)

    def moments(batch: np.ndarray) -> np.ndarray:
        each = [
            batch.mean(axis=(1, 2, 3)),
            batch.std(axis=(1, 2, 3)),
            np.abs(np.diff(batch, axis=2)).mean(axis=(1, 2, 3)),
        ]
        return np.array([[values.mean(), values.std()] for values in each])

    ours, theirs = moments(fast), moments(slow)
    error = 4 * ours[:, 1] / np.sqrt(600) * np.sqrt(2) + 0.35  # four standard errors, and rounding
    assert (np.abs(ours[:, 0] - theirs[:, 0]) < error).all(), (ours, theirs)
    assert np.allclose(ours[:, 1], theirs[:, 1], rtol=0.25, atol=0.4), (ours, theirs)


def test_misspelt_preset_proposes_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'heavy'"):
        augment.train_ops("heavey", 64)
