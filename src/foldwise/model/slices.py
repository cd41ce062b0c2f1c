"""Studies: pictures of neighbouring slices through one backbone, their features in sequence, pooled to a study's.

2.5D as in the RSNA competitions of 2022 to 2024: each picture is a slice with its neighbours as channels. Black slices
(of short or missing series, see data.series) are never seen: they cost nothing and have no say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foldwise.data import recipe
from foldwise.model.heads import in_full

AT_ONCE = 256  # pictures in the backbone at once in prediction, where no activation is kept
Backbone = Callable[[Tensor], Tensor]  # uint8 (N, S, S, c) -> float (N, F)


class Slices(nn.Module):
    """uint8 (B, S, S, series x slices x channels) and the backbone -> float (B, width) features of studies."""

    def __init__(self, settings: recipe.Series, stack: recipe.Stack, features: int) -> None:
        super().__init__()
        self.stack, self.neighbours, self.batch = stack, settings.neighbours, settings.batch
        # of `step` slices that a picture stands for, the one in the middle first, then those nearest to it
        nearest = sorted(range(settings.step), key=lambda k: abs(k - settings.step // 2))
        begins = torch.arange(0, stack.slices, settings.step)
        middles = (begins[:, None] + torch.tensor(nearest)).clamp(0, stack.slices - 1)
        self.register_buffer("middles", middles, persistent=False)
        self.register_buffer("around", torch.arange(settings.neighbours) - settings.neighbours // 2, persistent=False)
        self.context = Context(settings, features, len(middles)) if settings.context != "none" else None
        width = features if self.context is None else self.context.width
        self.pool = SlicePool(settings.pool, width)
        self.missing = nn.Parameter(torch.zeros(stack.series, width)) if stack.series > 1 else None
        self.width = width * stack.series
        self.keeps = False  # whether `sequence` holds what a forward made of slices (B, series x P, F), to be `taken`
        self.sequence: Tensor | None = None

    middles: Tensor
    around: Tensor

    def forward(self, images: Tensor, backbone: Backbone) -> Tensor:
        pictures, present = self.pictures(images)
        return self.study(self.through(backbone, pictures, present), present)

    def taken(self) -> Tensor:
        """The last forward's features of slices, handed over."""
        assert self.sequence is not None
        sequence, self.sequence = self.sequence, None
        return sequence

    def pictures(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, series x P, S, S, neighbours x channels) of P slices with their neighbours, and bool (B, series x P):
        which are not black. A study that is black all over is seen as it is."""
        stack = self.stack
        slices = images.unflatten(3, (stack.series, stack.slices, stack.channels)).permute(0, 3, 4, 1, 2, 5)
        there = slices.amax(dim=(3, 4, 5)) > 0
        seen = there[:, :, self.middles]  # (B, series, P, step)
        present = seen.any(dim=3)
        present = present | ~present.flatten(1).any(dim=1)[:, None, None]
        middle = self.middles[torch.arange(len(self.middles), device=images.device), seen.int().argmax(dim=3)]
        places = (middle[..., None] + self.around).clamp(0, stack.slices - 1)
        studies, series = (torch.arange(n, device=images.device) for n in there.shape[:2])
        at = (studies[:, None, None, None], series[:, None, None])
        # where there is no neighbour, at the ends, a slice is its own
        places = torch.where(there[(*at, places)], places, middle[..., None])
        windows = slices[(*at, places)]  # (B, series, P, k, S, S, c)
        return windows.flatten(1, 2).permute(0, 1, 3, 4, 2, 5).flatten(4), present.flatten(1)

    def through(self, backbone: Backbone, pictures: Tensor, present: Tensor) -> Tensor:
        """Features (B, N, F) of the pictures (B, N, ...); zeros where they are not `present`.

        In training those of `batch` pictures at a time, whose activations are made again for the gradient (Chen 2016,
        arXiv:1604.06174): memory is that of so many pictures, whatever N.
        """
        flat = pictures[present]
        step = (self.batch or len(flat)) if self.training else AT_ONCE
        again = self.training and torch.is_grad_enabled() and step < len(flat)
        run = partial(checkpoint, backbone, use_reentrant=False) if again else backbone
        # as equal as they come: none of a single picture, which batch norm can't take
        values = torch.cat([run(part) for part in flat.tensor_split(max(1, len(flat) // step))])
        return values.new_zeros(*present.shape, values.shape[1]).index_put((present,), values)

    def study(self, features: Tensor, present: Tensor) -> Tensor:
        """Features (B, series x P, F) of slices as (B, width): each series pooled, then one beside the other."""
        series = self.stack.series
        x = features.unflatten(1, (series, -1)).flatten(0, 1)
        seen = present.unflatten(1, (series, -1)).flatten(0, 1)
        if self.context is not None:
            x = self.context(x, seen)
        if self.keeps:
            self.sequence = x.unflatten(0, (-1, series)).flatten(1, 2)
        pooled = self.pool(x, seen).unflatten(0, (-1, series))
        if self.missing is not None:
            there = seen.any(dim=1).unflatten(0, (-1, series))
            pooled = torch.where(there[..., None], pooled, self.missing.to(pooled.dtype))
        return pooled.flatten(1)


class Context(nn.Module):
    """Features (B, P, F) of slices in their order -> (B, P, width), each knowing of the others that are `seen`."""

    def __init__(self, settings: recipe.Series, features: int, length: int) -> None:
        super().__init__()
        self.width = settings.width
        self.enter = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, settings.width))
        self.gru: nn.GRU | None = None
        if settings.context == "gru":
            self.gru = nn.GRU(settings.width, settings.width // 2, batch_first=True, bidirectional=True)
            return
        heads = next(heads for heads in (8, 4, 2, 1) if settings.width % heads == 0)
        self.place = nn.Parameter(nn.init.trunc_normal_(torch.empty(length, settings.width), std=0.02))
        layer = nn.TransformerEncoderLayer(
            settings.width, heads, 2 * settings.width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        with in_full(x):
            x = self.enter(x.float())
            if self.gru is None:
                hidden = ~seen & seen.any(dim=1, keepdim=True)  # a row of nothing may look at itself
                return self.layers(x + self.place, src_key_padding_mask=hidden)
            order = torch.arange(1, x.shape[1] + 1, device=x.device)
            length = (seen * order).amax(dim=1).clamp(min=1).cpu()  # what is black at the end is no part of it
            packed = nn.utils.rnn.pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
            out, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
            return out + x


class SlicePool(nn.Module):
    """(B, P, F) -> (B, F) over the slices that are `seen`: mean, maximum, or gated attention.

    attention: Ilse 2018 (arXiv:1802.04712, equation 9), the plain mean at first. Rows of nothing give zeros.
    """

    def __init__(self, kind: str, features: int, hidden: int = 128) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.norm = nn.LayerNorm(features)
            self.tanh, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
            self.score = nn.Linear(hidden, 1, bias=False)
            nn.init.zeros_(self.score.weight)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        with in_full(x):
            x = x.float()
            some = seen.any(dim=1, keepdim=True)
            if self.kind == "max":
                return torch.where(some, x.masked_fill(~seen[..., None], -torch.inf).amax(dim=1), 0)
            return torch.einsum("bp,bpf->bf", self.weights(x, seen), x)

    def weights(self, x: Tensor, seen: Tensor) -> Tensor:
        """float (B, P): what each slice counts, of a sum of 1 (0 for a row of nothing)."""
        if self.kind != "attention":
            return seen / seen.sum(dim=1, keepdim=True).clamp(min=1)
        normal = self.norm(x)
        score = self.score(torch.tanh(self.tanh(normal)) * torch.sigmoid(self.gate(normal)))[..., 0]
        some = seen.any(dim=1, keepdim=True)
        score = score.masked_fill(~seen & some, -torch.inf)
        return score.softmax(dim=1) * seen
