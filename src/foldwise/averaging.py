"""Averages of weights: a moving one over steps (EMA), or a plain mean over late epochs (SWA)."""

from __future__ import annotations

from typing import Any

from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from foldwise.config import Train


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
