"""Augmentation where the images are: recorded steps carried out on a device's uint8 tensors, a kind at a time.

As augment.canvas does them, but for the rounding of OpenCV's fixed-point warps (to a 32nd of a pixel): 99 of 100 values
within 4 grey levels, on the mean within 0.6 (tests/model/test_device_images.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foldwise.augment.canvas import NOISE_ZERO, Canvas, noise_bank
from foldwise.augment.operations import Operation
from foldwise.augment.recorder import Hole, Noise, Step, Table, Warp, recordable, recorded
from foldwise.data.batches import Batches
from foldwise.model.transfer import DeviceBatch, to_device

SHARE = 0.4  # of the free memory that a cache may take


@dataclass(frozen=True)
class DeviceImages:
    """Batches of `batches`, in their order, by `ops` with their seeds, from a cache that lies on the device.

    images: uint8 (rows, S, S, 3).
    """

    batches: Batches
    ops: Sequence[Operation]
    images: Tensor

    def epoch(self, number: int, start: int) -> Iterator[DeviceBatch]:
        """One pass, from batch `start` on."""
        device, size = self.images.device, self.images.shape[1]

        def plan(rows: np.ndarray, rng: np.random.Generator) -> Any:
            return rows, recorded(self.ops, size, len(rows), rng)

        planned: Any = replace(self.batches, cache=_RowNumbers(), ops=plan)  # type: ignore[arg-type]
        for batch in planned.epoch(number, start):
            rows, plans = batch.images
            images = augmented(self.images[to_device(rows, device)], plans)
            yield DeviceBatch(images, to_device(batch.rows, device), batch.of)


class _RowNumbers:
    """A cache whose images are their row numbers."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        return rows


def on_the_device(batches: Batches, ops: Sequence[Operation], device: torch.device) -> DeviceImages | None:
    """None where an operation looks at pixels, or the cache does not fit into SHARE of the device's free memory."""
    cache = batches.cache
    room = SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
    if cache.holds_features or not recordable(ops) or cache.channels != 3 or len(cache.ids) * cache.size**2 * 3 > room:
        return None
    parts = [to_device(cache.read(part), device) for part in np.array_split(np.arange(len(cache.ids)), 16) if len(part)]
    return DeviceImages(batches, ops, torch.cat(parts))


def augmented(images: Tensor, plans: Sequence[Sequence[Step]]) -> Tensor:
    """uint8 (B, S, S, 3) with each image's steps done; the images that go in are left as they are."""
    images = images.clone()
    carried_out: dict[type, Any] = {Warp: _warped, Table: _tabled, Noise: _noisy, Hole: _holed}
    for number in range(max(map(len, plans), default=0)):
        for kind, carry_out in carried_out.items():
            chosen = [k for k, plan in enumerate(plans) if number < len(plan) and isinstance(plan[number], kind)]
            if chosen:
                rows = to_device(np.array(chosen), images.device)
                images[rows] = carry_out(images[rows], [plans[k][number] for k in chosen])
    return images


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return to_device(np.array(values, np.float32), like.device)[:, None, None, None]


def _warped(images: Tensor, steps: Sequence[Warp]) -> Tensor:
    size = images.shape[1]
    places = _straight(np.stack([step.matrix for step in steps]), size, images.device)
    bent = [k for k, step in enumerate(steps) if step.nodes is not None]
    if bent:
        nodes = np.stack([step.nodes for step in steps if step.nodes is not None])
        places[to_device(np.array(bent), images.device)] = _bent(nodes, size, images.device)
    grid = places * (2 / (size - 1)) - 1
    planes = images.permute(0, 3, 1, 2).float()
    mirrored = F.grid_sample(planes, grid, "bilinear", "reflection", align_corners=True)
    if any(step.border.mode == cv2.BORDER_CONSTANT for step in steps):
        level = _column([step.border.level for step in steps], images)
        flat = F.grid_sample(planes - level, grid, "bilinear", "zeros", align_corners=True) + level
        constant = _column([float(step.border.mode == cv2.BORDER_CONSTANT) for step in steps], images)
        mirrored = torch.where(constant > 0, flat, mirrored)
    out = mirrored.permute(0, 2, 3, 1).round().clamp(0, 255)
    for k, step in enumerate(steps):  # rare: an affine map with a border of its own after a distortion
        if step.outside is not None:
            matrix, border = step.outside
            at = _straight(matrix[None], size, images.device)[0]
            out[k][((at < -0.5) | (at > size - 0.5)).any(dim=-1)] = border.level
    return out.to(torch.uint8)


def _straight(matrices: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Where each pixel comes from by affine maps (B, 2, 3): x and y, float32 (B, S, S, 2)."""
    axis = torch.arange(size, device=device, dtype=torch.float32)
    here = torch.stack(
        [axis.expand(size, size), axis[:, None].expand(size, size), torch.ones_like(axis).expand(size, size)], -1
    )
    return torch.einsum("yxj,bij->byxi", here, to_device(matrices.astype(np.float32), device))


def _bent(nodes: np.ndarray, size: int, device: torch.device) -> Tensor:
    """The same by places at a lattice's nodes (B, n, n, 2), between which it is bilinear."""
    spacing = Canvas(size).spacing
    planes = to_device(nodes.astype(np.float32), device).permute(0, 3, 1, 2)
    whole = F.interpolate(planes, scale_factor=spacing, mode="bilinear", align_corners=False)
    first = spacing // 2
    return whole[:, :, first : first + size, first : first + size].permute(0, 2, 3, 1)


def _tabled(images: Tensor, steps: Sequence[Table]) -> Tensor:
    tables = to_device(np.stack([step.levels for step in steps]), images.device)
    return tables.gather(1, images.flatten(1).long()).view_as(images)


def _noisy(images: Tensor, steps: Sequence[Noise]) -> Tensor:
    bank = to_device(noise_bank(), images.device)
    start = to_device(np.array([step.start for step in steps]), images.device)
    count = images[0].numel()
    places = start[:, None] + torch.arange(count, device=images.device) % (len(bank) - start[:, None])
    noise = bank[places].view_as(images).float() - NOISE_ZERO
    out = (images + _column([step.weight for step in steps], images) * noise).round().clamp(0, 255).to(torch.uint8)
    keep = _column([float(step.keep_white) for step in steps], images) > 0
    return torch.where(keep & (images == 255).all(dim=3, keepdim=True), images, out)


def _holed(images: Tensor, steps: Sequence[Hole]) -> Tensor:
    top, left, side = (_column([step[k] for step in steps], images)[..., 0] for k in range(3))
    axis = torch.arange(images.shape[1], device=images.device)
    rows, columns = axis[None, :, None], axis[None, None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return images.masked_fill(inside[..., None], 0)
