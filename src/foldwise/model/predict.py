"""Network + cached rows -> probabilities or embeddings, with test-time views; rows without an image fall back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foldwise.core import parallel
from foldwise.core.cli import note_once
from foldwise.core.progress import Bar
from foldwise.core.ranks import current_ranks
from foldwise.data import top
from foldwise.data.batches import Batches
from foldwise.data.cache import Cache
from foldwise.data.recipe import Predict, Recipe
from foldwise.model import precision
from foldwise.model.network import Network
from foldwise.model.precision import Precision
from foldwise.model.targets import Targets
from foldwise.model.transfer import on_device, to_device

ON_GPU = 4  # batches of prediction in one there: no gradients are kept, and where memory is short it is halved
Function = Callable[[Tensor, Tensor | None], Tensor]


def pick_device(recipe: Recipe) -> torch.device:
    """The GPU if there is one (under torchrun the rank's own), else the CPU with the recipe's number of threads.

    The number is set, whatever OMP_NUM_THREADS says: sums over other chunks differ in their last bits.
    """
    ranks = current_ranks()
    torch.set_num_threads(recipe.train.threads or max(1, parallel.cores() // ranks.local_size))
    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def activate(logits: Tensor, targets: Targets) -> Tensor:
    """Probabilities (values for a regression) float32 (B, C) of logits: fp16 overflows in a softmax."""
    p = _probabilities(logits.float(), targets.activation)
    return p if targets.fold is None else p @ torch.from_numpy(targets.fold).to(p.device)


def _probabilities(logits: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return logits.softmax(dim=1)
    if activation == "identity":
        return logits
    p = logits.sigmoid()
    if activation == "normalised":
        return p / p.sum(dim=1, keepdim=True).clamp_min(1e-12)
    if activation == "ordinal":  # P(above k) can't rise with k: each at most the one before
        edge = torch.ones_like(p[:, :1])
        beyond = torch.cat([edge, p.cummin(dim=1).values, 0 * edge], dim=1)
        return beyond[:, :-1] - beyond[:, 1:]
    return p


def predict_rows(
    network: Network | Sequence[Network],
    cache: Cache,
    cache_rows: np.ndarray,
    targets: Targets,
    recipe: Recipe,
    label: str = "predict",
    metadata: np.ndarray | None = None,
    how: Precision | None = None,
    prior: np.ndarray | None = None,
) -> np.ndarray:
    """float32 (N, C) probabilities (of many classes data.top's array) for the cache rows `cache_rows`, int64 (N,), -1:
    the file could not be read.

    metadata: float32 (N, F) of a fusion network. Several networks (snapshots): their mean. A row without an image
    gets the mean prediction of the rows that have one: it moves nobody else's rank much, and never is another
    image's prediction. Where no row has one, all get `prior`, (C,).
    """
    if prior is not None and len(prior) > top.MANY:
        prior = top.keep(prior[None])[0]
    if prior is not None and not (cache_rows >= 0).any():
        return np.tile(prior, (len(cache_rows), 1))
    made = predict_readable(network, cache, cache_rows, targets, recipe, label, metadata, how)
    return with_fallback(made, cache_rows >= 0, prior, alike=not targets.many)


def predict_readable(
    network: Network | Sequence[Network],
    cache: Cache,
    cache_rows: np.ndarray,
    targets: Targets,
    recipe: Recipe,
    label: str = "predict",
    metadata: np.ndarray | None = None,
    how: Precision | None = None,
) -> np.ndarray:
    """As `predict_rows`; what stands in rows without an image means nothing."""
    logits = recipe.predict.average == "logit" and targets.activation in {"softmax", "sigmoid"} and not targets.many
    networks = network if isinstance(network, Sequence) else [network]

    def output(one: Network) -> Function:
        return lambda x, m: _finite(one, x, m) if logits else activate(_finite(one, x, m), targets)

    kept = top.keep if targets.many else np.asarray
    rest = (recipe, label, metadata, how, kept, targets.mirror)
    each = [rows_of_outputs(one, cache, cache_rows, output(one), *rest) for one in networks]
    made = top.mean(each) if targets.many else np.mean(each, axis=0)
    if logits:
        made = activate(torch.from_numpy(made), targets).numpy()
    return made


def with_fallback(pred: np.ndarray, readable: np.ndarray, prior: np.ndarray | None, alike: bool = True) -> np.ndarray:
    """pred (N, C), in place: rows without a readable image (bool (N,)) get the mean of those with one, else `prior`.

    alike: whether columns mean the same in every row; where they do not (data.top), it is the prior.
    """
    if not alike:
        pred[~readable] = prior
        return pred
    if not readable.all() and (readable.any() or prior is not None):
        pred[~readable] = pred[readable].mean(axis=0) if readable.any() else prior
    return pred


def say_unreadable(label: str, ids: Sequence[str], readable: np.ndarray) -> list[str]:
    """The ids (N,) of rows without a readable image, bool (N,); what they get instead is told."""
    missing = [row_id for row_id, fine in zip(ids, readable, strict=True) if not fine]
    if missing and not current_ranks().rank:
        more = ", ..." if len(missing) > 1 else ""
        what = "the mean of the others" if readable.any() else "the mean target of the training rows"
        note_once(
            f"{label}: {len(missing)} of {len(ids)} images can't be read ({missing[0]}{more}): predicted as {what}"
        )
    return missing


def embed_rows(
    network: Network,
    cache: Cache,
    cache_rows: np.ndarray,
    recipe: Recipe,
    label: str = "embed",
    metadata: np.ndarray | None = None,
) -> np.ndarray:
    """float32 (N, D) features before the classifier for the cache rows `cache_rows`; zeros where there is no image."""
    return rows_of_outputs(
        network, cache, cache_rows, lambda x, m: _finite(network.embed, x, m), recipe, label, metadata
    )


@torch.inference_mode()
def rows_of_outputs(
    network: Network,
    cache: Cache,
    cache_rows: np.ndarray,
    function: Function,
    recipe: Recipe,
    label: str,
    metadata: np.ndarray | None = None,
    how: Precision | None = None,
    kept: Callable[[np.ndarray], np.ndarray] = np.asarray,
    mirror: list[int] | None = None,
) -> np.ndarray:
    """Rows of what is `kept` of `function`'s outputs; under torchrun each rank makes its part, and all get all.

    mirror: of a mirrored view, the outputs in their places.
    """
    network.eval()
    device = next(network.parameters()).device
    how = how or precision.of_device(recipe, device)
    views = [AS_IT_IS] if cache.holds_features else tta_views(recipe.predict, recipe.image_size)
    ranks = current_ranks()
    readable = np.flatnonzero(cache_rows >= 0)
    mine = readable[ranks.rank :: ranks.size]
    slices = network.slices.stack.slices if network.slices else 1
    batch_size = max(1, recipe.predict.batch_size * (ON_GPU if device.type == "cuda" else 1) // slices)
    batches = Batches(cache, cache_rows[mine], batch_size, threads=recipe.train.loaders)
    beside = None if metadata is None else to_device(metadata[mine], device)
    quiet = True if ranks.rank else None
    seen = (replace(batch, images=view(batch.images)) for batch in batches.epoch() for view in views)
    bar = Bar(on_device(seen, device), total=len(batches) * len(views), desc=label, leave=False, disable=quiet)

    def outputs() -> Iterator[Tensor]:
        """The device's float32 sum over the views of each batch."""
        moved = iter(bar)
        for _ in range(len(batches)):
            total: Tensor | None = None
            for view, batch in zip(views, islice(moved, len(views)), strict=True):
                with how.autocast(device):
                    out = _in_pieces(function, batch.images, None if beside is None else beside[batch.rows]).float()
                out = out[:, mirror] if mirror and view.mirrored else out
                total = out if total is None else total + out
            assert total is not None
            yield total

    parts = [kept((total / len(views)).cpu().numpy()) for total in _one_behind(outputs())]
    values = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    by_rank: list[tuple[np.ndarray, np.ndarray]] = [(mine, values)]
    if ranks.size > 1:
        by_rank = [by_rank[0]] * ranks.size
        dist.all_gather_object(by_rank, (mine, values))
    width = max(part.shape[1] for _, part in by_rank) or 1
    result = np.zeros((len(cache_rows), width), np.float32)
    for rows, part in by_rank:
        if len(rows):
            result[rows] = part
    return result


def _one_behind(values: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same, each after the next has been asked for: the device works on that while the host reads this one."""
    before: list[Tensor] = []
    for value in values:
        yield from before
        before = [value]
    yield from before


def _finite(function: Function, images: Tensor, metadata: Tensor | None) -> Tensor:
    """`function` of the batch, in float32 where half precision overflowed: fp16 ends at 65504."""
    made = function(images, metadata).float()
    if torch.is_autocast_enabled(images.device.type) and not made.isfinite().all():
        with torch.autocast(images.device.type, enabled=False):
            made = function(images, metadata).float()
    return made


def _in_pieces(function: Function, images: Tensor, metadata: Tensor | None) -> Tensor:
    """`function` of the batch, in halves (and halves of those) where the device's memory does not hold it."""
    try:
        return function(images, metadata)
    except torch.OutOfMemoryError:
        if len(images) < 2:
            raise
    half = len(images) // 2
    torch.cuda.empty_cache()
    parts = [(images[:half], None if metadata is None else metadata[:half])]
    parts.append((images[half:], None if metadata is None else metadata[half:]))
    return torch.cat([_in_pieces(function, *part) for part in parts])


class View(NamedTuple):
    """uint8 (B, S, S, C) -> (B, S', S', C), and whether it mirrors."""

    apply: Callable[[np.ndarray], np.ndarray]
    mirrored: bool

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.apply(images)


AS_IT_IS = View(np.asarray, False)
SYMMETRIES = {"none": (0,), "flip": (0, 1), "d4": tuple(range(8))}


def tta_views(predict: Predict, image_size: int | None = None) -> list[View]:
    """Views of uint8 (B, S, S, 3) batches, each giving uint8 (B, S', S', 3): S' = S times the view's scale, rounded.

    Every symmetry (predict.tta) at every scale, each as the whole image or as 5 crops (corners and centre) brought to
    S'; crops=10 adds the mirrored ones, which flip and d4 hold already. image_size: S, if not that of the images.
    """
    turns = set(SYMMETRIES[predict.tta])
    if predict.crops == 10:
        turns |= {turn ^ 1 for turn in turns}
    places = list(_places(predict.crop_fraction)) if predict.crops > 1 else [(0.0, 0.0, 1.0)]
    return [_view(*chosen, image_size) for chosen in product(sorted(turns), predict.scales, places)]


def turned(images: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the eight symmetries of (B, S, S, 3): bit 0 mirrors, bits 1 and 2 turn by quarters."""
    images = images[:, :, ::-1] if symmetry & 1 else images
    return np.ascontiguousarray(np.rot90(images, -(symmetry >> 1), axes=(1, 2)))


def _places(fraction: float) -> Iterator[tuple[float, float, float]]:
    """Top, left and side of each crop, as fractions of the side."""
    rest = 1 - fraction
    for y, x in ((0.0, 0.0), (0.0, rest), (rest, 0.0), (rest, rest), (rest / 2, rest / 2)):
        yield y, x, fraction


def _view(symmetry: int, scale: float, place: tuple[float, float, float], image_size: int | None) -> View:
    def apply(images: np.ndarray) -> np.ndarray:
        size = images.shape[1]
        top, left, side = (round(part * size) for part in place)
        to = round((image_size or size) * scale)
        part = turned(images, symmetry)[:, top : top + side, left : left + side]
        if side == to or not len(part):
            return np.ascontiguousarray(part)
        how = cv2.INTER_AREA if side > to else cv2.INTER_LINEAR
        return np.stack([cv2.resize(image, (to, to), interpolation=how) for image in part])

    return View(apply, bool(symmetry & 1))
