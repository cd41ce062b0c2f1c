"""Losses on soft targets: (logits (B, outputs), targets) -> a scalar, the mean over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foldwise import UserError
from foldwise.data.recipe import Train
from foldwise.model.targets import Targets

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(settings: Train, targets: Targets, weights: Tensor | None = None, unit: float = 1.0) -> Loss:
    """The recipe's loss.

    Targets are float (B, C): fractions of classes (multiclass, ordinal), 0..1 an output (binary, multilabel), or
    values. Of several labels, cells of NaN are not known and have no part in it.
    weights: class_weights(...). unit: a regression's standard deviation; its errors are measured in it.
    """
    if targets.task == "regression":
        if settings.loss == "mae":
            return lambda logits, target: F.l1_loss(logits / unit, target / unit)
        plain = F.huber_loss if settings.loss == "huber" else F.mse_loss
        return lambda logits, target: plain(logits / unit, target / unit)
    if settings.loss == "ordinal":
        return lambda logits, target: F.binary_cross_entropy_with_logits(logits, above(target))
    if settings.loss == "asymmetric":
        return _asymmetric_loss
    gamma = settings.focal_gamma if settings.loss == "focal" else 0.0
    if targets.activation == "softmax":
        return lambda logits, target: _softmax_loss(logits, target, gamma, weights)
    return lambda logits, target: _sigmoid_loss(logits, target, gamma, weights)


def class_weights(settings: Train, targets: Targets, target: np.ndarray) -> Tensor | None:
    """Weights of the classes, mean 1 over the rows: float (C,), or (2, C) of 0 and 1 for binary and multilabel.

    target: int64 (N,) class numbers, or 0/1 (N,) or (N, C).
    """
    if settings.class_weights == "none" or targets.task == "regression":
        return None
    frequency = _frequencies(targets, target)
    if isinstance(settings.class_weights, list):
        weight = np.asarray(settings.class_weights, float)
        if len(weight) != len(frequency):
            raise UserError(f"train.class_weights: {len(weight)} weights for {len(frequency)} classes")
        if weight.min() < 0 or not weight.any():
            raise UserError(f"train.class_weights={settings.class_weights}: 0 or more each, and not 0 for all")
        weight = np.repeat(weight[:, None], frequency.shape[1], 1) if frequency.ndim == 2 else weight
    else:
        weight = frequency ** (-1.0 if settings.class_weights == "balanced" else -0.5)
    return torch.from_numpy(weight / (weight * frequency).sum(axis=0)).float()


def _frequencies(targets: Targets, target: np.ndarray) -> np.ndarray:
    if targets.task == "soft":
        return np.maximum(target.mean(axis=0), 1 / len(target))
    if targets.task == "multiclass":
        count = np.bincount(target, minlength=len(targets.learnt)).astype(float)
        return np.maximum(count, 1) / len(target)
    ones = np.clip(np.nanmean(target.reshape(len(target), -1), axis=0), 1 / len(target), 1 - 1 / len(target))
    return np.stack([1 - ones, ones])


def valid_loss(task: str, target: np.ndarray, pred: np.ndarray) -> float:
    """Cross-entropy of predictions (N, C) for the competition's target, or a regression's squared error."""
    p = np.clip(pred.astype(float), 1e-7, 1 - 1e-7)  # float32's resolution below 1: a surer row costs no more
    if task == "multiclass":
        return float(-np.log(p[np.arange(len(p)), target]).mean())
    target = target.reshape(len(p), -1)
    if task == "soft":
        return float(-(target * np.log(p)).sum(axis=1).mean())
    if task == "regression":
        return float(((pred - target) ** 2).mean())
    return float(-np.nanmean(target * np.log(p) + (1 - target) * np.log(1 - p)))


def above(target: Tensor) -> Tensor:
    """Fractions of classes (B, C) -> fractions above each class (B, C - 1)."""
    return (1 - target.cumsum(dim=1))[:, :-1].clamp(0, 1)


def _softmax_loss(logits: Tensor, target: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    terms = target * log_p
    if gamma:  # Lin 2017, for soft targets class by class
        terms = terms * (1 - log_p.exp()) ** gamma
    if weights is not None:
        terms = terms * weights
    return -terms.sum(dim=1).mean()


def with_margin(loss: Loss, margin: float, scale: float) -> Loss:
    """A loss of `scale` times cosines, whose true class counts as `margin` radians further away (Deng 2019, eq. 3;
    past the angle where that would turn round, the slope stays, as in the authors' code). Of a mixture of classes each
    is moved by its share.
    """
    if not margin:
        return loss

    def moved(logits: Tensor, target: Tensor) -> Tensor:
        cosine = (logits / scale).clamp(-1, 1)
        sine = (1 - cosine.square()).clamp_min(1e-9).sqrt()
        further = cosine * math.cos(margin) - sine * math.sin(margin)
        further = torch.where(cosine > -math.cos(margin), further, cosine - margin * math.sin(margin))
        return loss(logits + target * scale * (further - cosine), target)

    return moved


def _sigmoid_loss(logits: Tensor, target: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    known = target.isfinite()
    target = target.nan_to_num()
    yes, no = target * F.logsigmoid(logits), (1 - target) * F.logsigmoid(-logits)
    if gamma:
        p = logits.sigmoid()
        yes, no = yes * (1 - p) ** gamma, no * p**gamma
    if weights is not None:
        yes, no = yes * weights[-1], no * weights[0]
    return -((yes + no) * known).sum() / known.sum().clamp_min(1)


def _asymmetric_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Ridnik 2021 (arXiv:2009.14119), gamma 4 and 1, margin 0.05: sums over the outputs."""
    known, target = target.isfinite(), target.nan_to_num()
    yes = logits.sigmoid()
    no = (1 - yes + 0.05).clamp(max=1)
    terms = target * yes.clamp(min=1e-8).log() + (1 - target) * no.clamp(min=1e-8).log()
    right = yes * target + no * (1 - target)
    return -(terms * (1 - right) ** (target + 4 * (1 - target)) * known).sum() / len(target)
