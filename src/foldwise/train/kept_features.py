"""Features of a frozen backbone, kept once for all epochs and folds: heads and sequence heads train in minutes.

Where nothing before the head learns and nothing augments, every epoch would compute the same features again. They are
made once of each picture (of studies, of each slice) and lie in input/derived/<C>/features_<key>.npy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foldwise.core.files import digest, locked, read_voucher, replacing, write_voucher
from foldwise.data.cache import Cache
from foldwise.data.recipe import Recipe
from foldwise.model import weights
from foldwise.model.network import Network
from foldwise.model.precision import Precision
from foldwise.model.predict import Function, rows_of_outputs


@dataclass(frozen=True)
class KeptFeatures(Cache):
    """A cache's rows as features: float32 (n, F), or (n, pictures, F) of studies, in place of pixels."""

    holds_features = True
    features: Path = Path()
    shape: tuple[int, ...] = ()

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32 (len(rows), ...), in the order of `rows`."""
        return np.load(self.features, mmap_mode="r")[rows].reshape(len(rows), *self.shape)


def stay_alike(network: Network, recipe: Recipe) -> bool:
    """Whether a row's features are the same in every epoch."""
    a = recipe.augment
    plain = a.preset == "none" and a.flips == "none" and not (a.ops or a.randaugment or a.mixup or a.cutmix)
    one_view = recipe.predict.tta == "none" and recipe.predict.crops == 1 and recipe.predict.scales == [1.0]
    parts = (network.backbone, network.second, network.pool, network.second_pool)
    learning = any(p.requires_grad for part in parts if part is not None for p in part.parameters())
    return recipe.model.mode == "frozen" and plain and one_view and not recipe.train.sizes and not learning


def keep_features(network: Network, images: Cache, recipe: Recipe, how: Precision) -> KeptFeatures:
    """The features of all of a cache's readable rows, made where they do not lie there yet."""
    voucher = read_voucher(images.path.with_suffix(".json")) or {}
    parts = {name: value for name, value in network.state_dict().items() if not name.startswith(LEARNT)}
    series = {"neighbours": recipe.model.series.neighbours, "step": recipe.model.series.step}
    stack = recipe.model.stack.model_dump() if recipe.model.stack else None
    what = [voucher.get("key"), voucher.get("crop"), weights.checksum(parts), how.name, series, stack]
    key = digest([*what, torch.__version__, torch.get_num_threads()])[:16]
    path = images.path.with_name(f"features_{key}.npy")
    with locked(path.with_suffix(".lock")):
        if read_voucher(path.with_suffix(".json")) is None or not path.exists():
            rows = np.where(images.ids["ok"].to_numpy() > 0, np.arange(len(images.ids)), -1)
            values = rows_of_outputs(network, images, rows, _of(network), recipe, "features, once", how=how)
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, values)
            write_voucher(path.with_suffix(".json"), {"key": key}, path)
    width = np.load(path, mmap_mode="r").shape[1]
    count = network.slices.stack.series * len(network.slices.middles) if network.slices else 0
    shape = (count, width // count) if count else (width,)
    return KeptFeatures(images.path, images.size, images.ids, path, shape)


LEARNT = ("head.", "fusion.", "slices.", "beside.", "scale", "shift")  # what does not make the features


def _of(network: Network) -> Function:
    def features(images: Tensor, metadata: Tensor | None) -> Tensor:
        if network.slices is None:
            return network.of_pictures(images)
        pictures, present = network.slices.pictures(images)
        return network.slices.through(network.of_pictures, pictures, present).flatten(1)

    return features
