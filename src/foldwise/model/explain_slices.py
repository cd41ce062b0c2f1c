"""Which slices of a study an answer rests on: what it loses without each, and maps on those that count the most.

The backbone sees each picture (a slice and its neighbours) once; leaving one out is a matter of the head alone, so
effects are measured, not estimated, whatever the pooling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foldwise.model import explain
from foldwise.model.fold_models import FoldModel
from foldwise.model.predict import activate
from foldwise.model.slices import Slices
from foldwise.model.targets import OutputTarget

SHOWN = 3  # slices with a map


@dataclass(frozen=True)
class Study:
    """A study as the head sees it: features float (1, N, F) of its pictures, and bool (1, N): which there are."""

    model: FoldModel
    slices: Slices
    features: Tensor
    present: Tensor
    metadata: Tensor | None

    def logits(self, present: Tensor) -> Tensor:
        """(B, outputs) with the slices `present` (B, N) alone."""
        count = len(present)
        seen = self.slices.study(self.features.expand(count, -1, -1) * present[..., None], present)
        beside = None if self.metadata is None else self.metadata.expand(count, -1)
        return self.model.network.classify(seen, beside)


def study_of(model: FoldModel, image: np.ndarray, metadata: np.ndarray | None = None) -> Study:
    """The study uint8 (S, S, slices x ...) with metadata float32 (1, F) where the network takes them."""
    slices = model.network.eval().slices
    assert slices is not None
    with torch.inference_mode():
        pixels, beside = model.tensors(image[None], metadata)
        pictures, present = slices.pictures(pixels)
        features = slices.through(model.network.of_pictures, pictures, present)
    return Study(model, slices, features, present, beside)


def effects(study: Study, target: OutputTarget) -> np.ndarray:
    """float (N,): how much evidence for the target goes when a picture is left out; NaN where there is none."""
    places = torch.nonzero(study.present[0])[:, 0]
    without = study.present.repeat(len(places) + 1, 1)
    without[torch.arange(len(places)) + 1, places] = False
    with torch.inference_mode():
        evidence = explain.evidence_for(study.model, study.logits(without), [target] * len(without))
    lost = np.full(study.present.shape[1], np.nan)
    lost[places.cpu().numpy()] = (evidence[0] - evidence[1:]).cpu().numpy()
    return lost


@dataclass(frozen=True)
class SliceMap:
    """A picture's place among all, the slice in its middle uint8 (S, S, 3), and the map float32 (S, S) on it."""

    place: int
    picture: np.ndarray
    heat: np.ndarray


def slice_maps(
    model: FoldModel,
    image: np.ndarray,
    target: OutputTarget,
    lost: np.ndarray,
    layer: str,
    metadata: np.ndarray | None = None,
    method: explain.Method = "gradcam",
) -> list[SliceMap]:
    """Maps on the SHOWN pictures of largest effect, on one scale."""
    slices = model.network.slices
    assert slices is not None
    weigh = explain.gradcam_plus if method == "gradcam++" else explain.gradcam
    pixels, beside = model.tensors(image[None], metadata)
    seen = explain.maps(model, pixels, [target], [layer], beside)
    there = np.flatnonzero(~np.isnan(lost))  # a row of the maps for each
    heat = weigh(seen.activation[layer], seen.gradient[layer]).cpu().numpy()
    top = there[np.argsort(-lost[there], kind="stable")[:SHOWN]]
    side, raw = len(image), heat[np.searchsorted(there, top)]
    shown = explain.upsampled(raw, side) * (raw.max(axis=(1, 2)) / max(float(raw.max()), 1e-12))[:, None, None]
    pictures, _ = slices.pictures(pixels)
    middle = slices.neighbours // 2 * slices.stack.channels
    planes = pictures[0, top, :, :, middle : middle + slices.stack.channels].cpu().numpy()
    return [SliceMap(int(k), plane, one) for k, plane, one in zip(top, planes, shown, strict=True)]


def deletion(
    study: Study, target: OutputTarget, lost: np.ndarray, steps: int = 14, draws: int = 2
) -> dict[str, np.ndarray]:
    """explain.deletion for a study: slices go, those of the largest effect first, at random, or from the middle on."""
    rng, there = np.random.default_rng(0), np.flatnonzero(~np.isnan(lost))
    ranks = {
        "map": [-lost[there]],
        "random": [rng.random(len(there)) for _ in range(draws)],
        "centre": [np.abs(np.arange(len(there)) - (len(there) - 1) / 2)],
    }
    curves = {
        order: np.mean([_curve(study, target, there[np.argsort(r, kind="stable")], steps) for r in each], axis=0)
        for order, each in ranks.items()
    }
    return {order: curve[None].astype(np.float32) for order, curve in curves.items()}


def _curve(study: Study, target: OutputTarget, order: np.ndarray, steps: int) -> np.ndarray:
    present = study.present.repeat(steps + 1, 1)
    for k in range(steps + 1):
        present[k, order[: round(len(order) * k / steps)].tolist()] = False
    with torch.inference_mode():
        pred = activate(study.logits(present), study.model.targets).cpu().numpy()[:, target.output]
    return pred if target.sign > 0 else 1 - pred
