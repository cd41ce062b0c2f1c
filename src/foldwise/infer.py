"""Network + cached rows -> probabilities or embeddings, with test-time views; rows without an image fall back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from foldwise import launch
from foldwise.augment import tta_views
from foldwise.cache import Cache
from foldwise.competition import Task
from foldwise.config import Recipe
from foldwise.dataset import Batches
from foldwise.models import Network, to_device


def pick_device(recipe: Recipe) -> torch.device:
    """The GPU if there is one, else the CPU with the recipe's number of threads.

    The number is set, whatever OMP_NUM_THREADS says: sums over other chunks differ in their last bits.
    """
    torch.set_num_threads(recipe.train.threads or launch.cores())
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_type(device: torch.device) -> torch.dtype | None:
    """bf16 where the GPU has it natively, else fp16; None on a CPU. A T4 'supports' bf16 only by emulation."""
    if device.type != "cuda":
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def activate(logits: Tensor, task: Task) -> Tensor:
    """Probabilities (values for a regression) of logits, in float32: fp16 overflows in a softmax."""
    logits = logits.float()
    if task == "multiclass":
        return logits.softmax(dim=1)
    return logits if task == "regression" else logits.sigmoid()


def predict(
    network: Network, cache: Cache, where: np.ndarray, task: Task, recipe: Recipe, label: str = "predict"
) -> np.ndarray:
    """float32 (N, outputs) probabilities for the cache rows `where` (int64 (N,), -1: the file could not be read).

    A row without an image gets the mean prediction of the rows that have one: it moves nobody else's rank much, and
    never is another image's prediction.
    """
    made = _over_rows(network, cache, where, lambda images: activate(network(images), task), recipe, label)
    readable = where >= 0
    if not readable.all() and readable.any():
        made[~readable] = made[readable].mean(axis=0)
    return made


def embed(network: Network, cache: Cache, where: np.ndarray, recipe: Recipe, label: str = "embed") -> np.ndarray:
    """float32 (N, D) pooled features for the cache rows `where`; zeros where there is no image."""
    return _over_rows(network, cache, where, network.embed, recipe, label)


@torch.inference_mode()
def _over_rows(
    network: Network,
    cache: Cache,
    where: np.ndarray,
    function: Callable[[Tensor], Tensor],
    recipe: Recipe,
    label: str,
) -> np.ndarray:
    network.eval()
    device = next(network.parameters()).device
    half = half_type(device) if recipe.train.amp else None
    views = tta_views(recipe.predict.tta)
    readable = np.flatnonzero(where >= 0)
    batches = Batches(cache, where[readable], recipe.predict.batch_size, threads=recipe.train.loaders)
    result: np.ndarray | None = None
    for batch in tqdm(batches.epoch(), total=len(batches), desc=label, leave=False, disable=None):
        total: Tensor | None = None
        for view in views:
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                out = function(to_device(view(batch.images), device)).float()
            total = out if total is None else total + out
        assert total is not None
        values = (total / len(views)).cpu().numpy()
        if result is None:
            result = np.zeros((len(where), values.shape[1]), np.float32)
        result[readable[batch.rows]] = values
    return result if result is not None else np.zeros((len(where), 1), np.float32)
