"""The learning rate over the steps of one fold, as a fraction of its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from foldwise.data.recipe import Train


@dataclass(frozen=True)
class Schedule:
    """A function of the step alone, so that it needs no state of its own (plateau: and of the drops so far)."""

    settings: Train
    steps: int  # of an epoch

    def factor(self, step: int, drops: int = 0) -> float:
        """Fraction of the peak rate at `step`, numbered from 0 over the whole training."""
        t = self.settings
        total = self.steps * t.epochs
        warm = round(total * t.warmup)
        if step < warm:
            return 0.01 + 0.99 * step / warm
        if t.schedule == "constant":
            return 1.0
        if t.schedule == "plateau":
            return max(0.1**drops, t.final_lr)
        done = (step - warm) / max(1, total - warm)
        if t.schedule == "step":  # a tenth after 60 % and again after 85 %
            return max(0.1 ** ((done >= 0.6) + (done >= 0.85)), t.final_lr)
        if t.schedule == "onecycle":  # Smith 2018: down in a line, the last tenth far below
            line = (
                1 - done / 0.9 * (1 - max(t.final_lr, 0.04)) if done < 0.9 else max(t.final_lr, 0.04) * (1 - done) * 10
            )
            return max(line, t.final_lr * 0.1)
        within = self._place(done)
        return t.final_lr + (1 - t.final_lr) * 0.5 * (1 + math.cos(math.pi * within))

    def cycle_ends(self, epoch: int) -> bool:
        """Whether a cosine cycle ends with `epoch`, numbered from 0: its last step is the lowest rate."""
        t = self.settings
        ends = {math.ceil((k + 1) * t.epochs / t.cycles) - 1 for k in range(t.cycles)}
        return epoch in ends

    def _place(self, done: float) -> float:
        """Where in its cycle 0..1 the training stands; cycles end with epochs."""
        t = self.settings
        if t.cycles == 1:
            return done
        start = t.warmup
        edges = [math.ceil(k * t.epochs / t.cycles) / t.epochs for k in range(t.cycles + 1)]
        at = start + done * (1 - start)
        for low, high in pairwise(edges):
            if at < high:
                low = max(low, start) if low == 0 else low
                return (at - low) / (high - low)
        return 1.0


def make_schedule(settings: Train, steps: int) -> Schedule:
    """The recipe's schedule; steps: batches of an epoch."""
    return Schedule(settings, max(1, steps))


class Averaged:
    """The weights that predict: the network's own, or an average that follows it."""

    def __init__(self, network: nn.Module, settings: Train) -> None:
        self.network, self.settings = network, settings
        self.ema = (
            ModelEmaV3(network, decay=settings.ema_decay, use_warmup=True) if settings.averaging == "ema" else None
        )
        # batch-norm statistics are averaged with the weights: no extra pass over the images
        self.swa = AveragedModel(network, use_buffers=True) if settings.averaging == "swa" else None

    def after_step(self, step: int) -> None:
        """Follow one optimizer step, numbered from 0 over the whole training."""
        if self.ema is not None:
            self.ema.update(self.network, step=step)

    def after_epoch(self, epoch: int) -> None:
        """Follow one epoch, numbered from 0: SWA takes the late ones in (Izmailov 2018)."""
        if self.swa is not None and epoch >= int(self.settings.swa_start * self.settings.epochs):
            self.swa.update_parameters(self.network)

    @property
    def kept(self) -> nn.Module | None:
        """The average, whichever it is."""
        return self.ema if self.ema is not None else self.swa

    @property
    def current(self) -> nn.Module:
        """The network to predict with now."""
        if self.ema is not None:
            return self.ema.module
        return self.swa.module if self.swa is not None and int(self.swa.n_averaged) else self.network

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {} if self.kept is None else self.kept.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        if self.kept is not None:
            self.kept.load_state_dict(state)
