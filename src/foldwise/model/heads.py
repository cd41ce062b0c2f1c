"""What stands on a backbone: pooling, the metadata sub-network, the classifier, a pretrained head's classes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.data import recipe


def tokens(features: Tensor, channels: int, nhwc: bool, prefix: int) -> Tensor:
    """A feature map (B, C, H, W), (B, H, W, C) or (B, prefix + N, C) as (B, N, C): class tokens are left out."""
    if features.ndim == 3:
        return features[:, prefix:]
    if nhwc or (features.shape[-1] == channels and features.shape[1] != channels):
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def in_full(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast; the meta device, where large networks are only laid out, knows none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Pool(nn.Module):
    """(B, N, C) -> (B, C): the mean, the maximum, GeM, or the mean under learnt attention.

    gem: the generalised mean of Radenovic 2018 (arXiv:1711.02512) with a learnt p, 3 at first; what is negative counts
    as 0, so it suits backbones that end in a ReLU. attention: softmax of one learnt score a position (Ilse 2018,
    arXiv:1802.04712, without the gate), the plain mean at first. All in float32: powers overflow in fp16.
    """

    def __init__(self, kind: Literal["avg", "max", "gem", "attention"], channels: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "gem":
            self.p = nn.Parameter(torch.full((1,), 3.0))
        if kind == "attention":
            self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        with in_full(x):
            x = x.float()
            if self.kind == "max":
                return x.amax(dim=1)
            if self.kind == "gem":
                top = x.amax(dim=1, keepdim=True).clamp(min=1e-6)  # powers of 0..1 stay finite for any p
                return ((x / top).clamp(min=1e-6).pow(self.p).mean(dim=1)).pow(1 / self.p) * top[:, 0]
            if self.kind == "attention":
                return torch.einsum("bn,bnc->bc", (x @ self.query).softmax(dim=1), x)
            return x.mean(dim=1)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that takes a last batch of one row by its running statistics instead of failing."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def _dense(width: int, out: int, activation: str, dropout: float) -> list[nn.Module]:
    act = nn.SiLU() if activation == "swish" else nn.ReLU()
    return [nn.Linear(width, out), BatchNorm(out), act, nn.Dropout(dropout)]


class Metadata(nn.Module):
    """The metadata sub-network: float (B, F) -> (B, hidden[-1]).

    The defaults are the SIIM-ISIC 2020 winner's (arXiv:2010.05351): 512, 128, each with batch norm and Swish, dropout
    between. With `joint` it is that of the ISIC 2019 winner (Gessert 2020, arXiv:1910.03910): dropout after the last
    layer too, and each feature set to 0, the mean of its training rows, with probability `feature_drop`.
    """

    def __init__(self, features: int, settings: recipe.Fusion) -> None:
        super().__init__()
        self.drop = settings.feature_drop
        widths = [features, *settings.hidden]
        layers: list[nn.Module] = []
        for width, out in pairwise(widths):
            layers += _dense(width, out, settings.activation, settings.dropout)
        self.layers = nn.Sequential(*(layers if settings.joint else layers[:-1]))
        self.width = widths[-1]

    def forward(self, metadata: Tensor) -> Tensor:
        if self.training and self.drop:
            metadata = metadata * (torch.rand_like(metadata) >= self.drop)
        return self.layers(metadata)


class Classifier(nn.Linear):
    """A linear layer in float32 under autocast too: half precision has so few digits that rows would tie."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) -> float32 (B, outputs)."""
        with in_full(input):
            return super().forward(input.float())


class Beside(nn.Module):
    """Linear layers (width, outputs) of what is learnt beside: of a row, and of each slice."""

    def __init__(self, row: tuple[int, int] | None, slices: tuple[int, int] | None) -> None:
        super().__init__()
        self.row = None if row is None else Classifier(*row)
        self.slice = None if slices is None else Classifier(*slices)


class Cosine(nn.Module):
    """(B, D) -> float32 (B, outputs): `scale` times the cosine to the nearest of each output's centres.

    Deng 2019 (ArcFace, arXiv:1801.07698; its margin is the loss's); several centres: Deng 2020 (sub-centre ArcFace,
    ECCV), for classes that look in more ways than one, or whose labels are noisy.
    """

    bias = None

    def __init__(self, width: int, outputs: int, scale: float, centers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs * centers, width))
        self.scale, self.centers = scale, centers

    @property
    def outputs(self) -> int:
        """How many classes it tells apart."""
        return len(self.weight) // self.centers

    def forward(self, input: Tensor) -> Tensor:
        with in_full(input):
            cosine = F.linear(F.normalize(input.float()), F.normalize(self.weight.float()))
            return self.scale * cosine.unflatten(1, (-1, self.centers)).amax(dim=2)


class Head(nn.Module):
    """(B, D) features -> logits (B, outputs): [joint layer,] [Dense + ReLU,] dropout, one linear classifier.

    `samples` dropout masks on one classifier (multi-sample dropout, Inoue 2019, arXiv:1905.09788; in the 2020 winner's
    network 5): the mean of linear maps is the linear map of the mean, so the masks are averaged, not the logits.
    """

    def __init__(self, width: int, outputs: int, settings: recipe.Head, fusion: recipe.Fusion | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if fusion is not None and fusion.joint:
            layers += _dense(width, fusion.joint, fusion.activation, fusion.dropout)
            width = fusion.joint
        if settings.hidden:
            layers += [nn.Linear(width, settings.hidden), nn.ReLU()]
            width = settings.hidden
        self.neck = nn.Sequential(*layers)
        plain, cosine = Classifier(width, outputs), settings.cosine
        self.classifier = plain if cosine is None else Cosine(width, outputs, cosine, settings.centers)
        self.dropout, self.samples = settings.dropout, settings.samples

    def forward(self, features: Tensor) -> Tensor:
        x = self.neck(features)
        if self.training and self.dropout:
            keep = F.dropout(torch.ones(self.samples, *x.shape, device=x.device), self.dropout).mean(dim=0)
            x = x * keep
        return self.classifier(x)


class ClassGroups(nn.Module):
    """A pretrained head's logits (B, P) as the competition's: softmax over all P, summed within each class.

    As logits: one class's is the log of its sum of exponentials, so that a softmax over the classes is those sums,
    renormalised. A binary competition has one logit, of class 1 against class 0, or against all else where no
    pretrained class is named for 0.
    """

    def __init__(self, groups: list[list[int]], binary: bool) -> None:
        super().__init__()
        self.groups, self.binary = groups, binary

    def forward(self, logits: Tensor) -> Tensor:
        sums = torch.stack([logits.float()[:, group].logsumexp(dim=1) for group in self.groups], dim=1)
        return sums[:, 1:] - sums[:, :1] if self.binary else sums
