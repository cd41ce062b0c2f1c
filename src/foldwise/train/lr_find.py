"""A learning-rate range test (Smith 2017, arXiv:1506.01186): the rate grows, the loss falls, then breaks.

What a batch's labels alone explain is taken off: the loss of the constant answer that the training starts from. With
few positives the rest would drown in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from foldwise import UserError
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.model import precision
from foldwise.model.finetune import unfreeze
from foldwise.model.heads import Cosine
from foldwise.model.network import Network
from foldwise.model.transfer import DeviceBatch, on_device
from foldwise.train.optim import Schedule
from foldwise.train.trainer import Trainer

LOW, HIGH = 1e-5, 1.0
STEPS, FEWEST = 100, 40
SECONDS = 35.0  # for the steps; on a slow machine they are fewer, of smaller batches
WARM = 2  # steps at the lowest rate that tell how long one takes
BROKEN = 3.0  # times the lowest loss so far
SMOOTH = 0.04  # of all steps: the width of the Gaussian that losses are averaged by
BELOW = 3.0  # the proposal is so much below the rate of the lowest loss


@dataclass(frozen=True)
class Ramp(Schedule):
    """A rate that grows by one factor a step, whatever the recipe's own is."""

    count: int = STEPS

    def factor(self, step: int, drops: int = 0) -> float:
        """The rate at `step` as a share of the recipe's."""
        share = max(0, step - WARM) / max(1, self.count - 1)
        return LOW * (HIGH / LOW) ** share / self.settings.lr


@dataclass(frozen=True)
class RangeTest:
    """rates, losses: float (steps,), the losses above a constant answer's, averaged over neighbouring steps."""

    rates: np.ndarray
    losses: np.ndarray

    @property
    def falls(self) -> bool:
        """Whether the loss fell enough to tell anything."""
        return float(self.losses.min()) < -0.02

    @property
    def proposed(self) -> float:
        """A peak rate, two digits: below that of the lowest loss before the first that gave half of its gain back."""
        lowest = np.minimum.accumulate(self.losses)
        back = self.losses > lowest + np.maximum(0.5 * np.abs(lowest), 0.02)
        upto = int(np.argmax(back)) if back.any() else len(back)
        return float(f"{self.rates[int(np.argmin(self.losses[: max(1, upto)]))] / BELOW:.1e}")


def range_test(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> RangeTest:
    """Train a fold's network for some steps at growing rates; nothing is written. UserError where nothing learns."""
    trainer = Trainer(competition, recipe, fold, fold_table, Path())
    stepper, progress = trainer.stepper, trainer.progress
    if recipe.model.mode == "as_is":
        raise UserError("--lr-find: in model.mode=as_is nothing learns")
    unfreeze(trainer.state.network, recipe, 0)
    stepper.precision = precision.of_device(recipe, trainer.device)
    trainer.state.network.train()
    network, started, count, share = stepper.wrapped(), time.monotonic(), STEPS, 1.0
    constant, begun = _Constant(trainer.state.network), time.monotonic()
    rates, losses = list[float](), list[float]()
    for number, (epoch, step, batch) in enumerate(_batches(trainer)):
        if number == WARM:
            pace = time.monotonic() - begun  # of the last one: the first also starts everything up
            count = int(min(STEPS, max(FEWEST, SECONDS / pace)))
            share = min(1.0, SECONDS / (pace * count))
        stepper.schedule = Ramp(recipe.train, len(trainer.loader), count)
        batch = batch.first(max(min(4, len(batch.rows)), round(share * len(batch.rows))))
        loss, rows, begun = progress.loss, progress.rows, time.monotonic()
        stepper.step(network, batch, epoch, step, True)
        stepper.look()
        if progress.rows == rows:  # no number any more
            break
        late = time.monotonic() - started > 1.4 * SECONDS
        if number < WARM:
            continue
        target = stepper.soft_target(batch.rows)
        of_labels = float(stepper.backward(constant, batch.images, target, None, batch.of, False))
        rates.append(recipe.train.lr * stepper.schedule.factor(number))
        losses.append((progress.loss - loss) / (progress.rows - rows) - of_labels)
        if number >= count + WARM or late or (number > FEWEST / 2 and np.mean(losses[-5:]) > BROKEN * abs(of_labels)):
            break
    return RangeTest(np.array(rates), _smooth(losses))


class _Constant(nn.Module):
    """The answer of a network that has seen nothing: its classifier's bias, whatever the image."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        last = network.head.classifier
        own = torch.zeros(last.outputs) if isinstance(last, Cosine) else last.bias.detach().clone()
        bias = own * network.scale + network.shift
        self.answer = nn.Parameter(bias.float())

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        return self.answer.expand(len(images), -1)


def _smooth(losses: list[float]) -> np.ndarray:
    return gaussian_filter1d(np.array(losses), max(1.0, SMOOTH * len(losses)), mode="nearest")


def _batches(trainer: Trainer) -> Iterator[tuple[int, int, DeviceBatch]]:
    epoch = 0
    while True:
        for step, batch in enumerate(on_device(trainer.loader.epoch(epoch, 0), trainer.device)):
            yield epoch, step, batch
        epoch += 1
