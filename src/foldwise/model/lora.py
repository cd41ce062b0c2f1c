"""Low-rank adaptation (Hu 2021, arXiv:2106.09685): linear layers learn W + scale x B A, of a rank far below W's.

It stands on the weights as torch's parametrization, so that layers whose weight is read directly (EVA's qkv) have it,
too; `merged` makes plain weights of it, so that no file of weights and no reader of one knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foldwise import UserError
from foldwise.data.recipe import Lora, Recipe

if TYPE_CHECKING:  # network reads weights, whose files are made plain here
    from foldwise.model.network import Network

ORIGINAL, A, B, SCALE = (f".parametrizations.weight.{part}" for part in ("original", "0.a", "0.b", "0.scale"))


class LowRank(nn.Module):
    """weight (out, in) -> weight + scale x b a, with b (out, rank) zero at first and a (rank, in)."""

    scale: Tensor

    def __init__(self, weight: Tensor, settings: Lora) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.a = nn.Parameter(nn.init.kaiming_uniform_(weight.new_empty(settings.rank, inputs), a=5**0.5))
        self.b = nn.Parameter(weight.new_zeros(out, settings.rank))
        self.register_buffer("scale", weight.new_tensor(settings.alpha / settings.rank))

    def forward(self, weight: Tensor) -> Tensor:
        return _sum(weight, self.a, self.b, self.scale)


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return weight + scale * (b @ a)


def add(network: Network, recipe: Recipe) -> None:
    """Freeze the backbones but for low-rank terms on their linear layers, where the recipe asks for them.

    UserError where a backbone has no linear layer.
    """
    settings = recipe.model.lora
    if settings is None:
        return
    for key, body in (("model", network.backbone), ("model.second", network.second)):
        if body is None:
            continue
        linear = [layer for layer in body.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise UserError(f"model.lora: {key}.name has no linear layers; use model.mode=partial or finetune")
        body.requires_grad_(False)
        for layer in linear:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight.detach(), settings))
            layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    network.learns = frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that it has without low-rank terms, these added to the weights."""
    plain = {key: value for key, value in state.items() if ".parametrizations." not in key}
    with torch.no_grad():
        for key in state:
            if key.endswith(ORIGINAL):
                layer = key.removesuffix(ORIGINAL)
                plain[f"{layer}.weight"] = _sum(*(state[layer + part] for part in (ORIGINAL, A, B, SCALE)))
    return plain
