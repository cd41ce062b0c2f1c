"""One step of training: forward, backward, accumulate, move; past numbers that are none and memory that is short."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.core.ranks import current_ranks
from foldwise.data.batches import Batch
from foldwise.data.recipe import Recipe
from foldwise.model import precision
from foldwise.model.network import to_device
from foldwise.train import auxiliary, losses
from foldwise.train.fold_data import FoldData
from foldwise.train.mixup import mix
from foldwise.train.optim import Schedule
from foldwise.train.state import State

MAX_BAD_STEPS = 3  # in a row: one or two are a bad batch, more are bad weights, and the last good ones come back
GIVE_UP = 10  # bad steps in all: the rate is down to a thousandth by then, so the rate is not what is wrong


def seed(recipe: Recipe, fold: int, epoch: int = -1, step: int = -1) -> int:
    """Of everything random at that point of a fold's training, whatever happened before: a restart draws the same."""
    parts, rank = [recipe.seed, fold, epoch + 1, step + 1], current_ranks().rank
    return int(np.random.SeedSequence([*parts, rank] if rank and step >= 0 else parts).generate_state(1)[0])


class Stepper:
    """A fold's steps on batches of its training rows; what they change is in `state`."""

    def __init__(
        self, recipe: Recipe, fold: int, data: FoldData, state: State, schedule: Schedule, device: torch.device
    ) -> None:
        self.recipe, self.fold, self.targets, self.state = recipe, fold, data.targets, state
        self.schedule, self.device, self.ranks = schedule, device, current_ranks()
        self.precision = precision.of_device(recipe, device)
        metadata = data.metadata("train")
        self.target, self.metadata, self.teacher_target, self.teacher_weight = (
            None if rows is None else torch.from_numpy(rows).to(device)
            for rows in (data.train_target, metadata, data.teacher_target, data.teacher_weight)
        )
        self.auxiliary, beside = data.auxiliary, data.auxiliary and data.auxiliary.target
        self.beside = None if beside is None else torch.from_numpy(beside).to(device)
        of_class = losses.class_weights(recipe.train, data.targets, data.train_target)
        self.loss = losses.make_loss(recipe.train, data.targets, of_class, float(state.network.scale))
        if recipe.model.head.cosine is not None:
            self.loss = losses.with_margin(self.loss, recipe.train.margin, recipe.model.head.cosine)

    def wrapped(self) -> nn.Module:
        """The network as steps call it: compiled, or averaging gradients over ranks."""
        network: nn.Module = self.state.network
        if self.recipe.train.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if self.ranks.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=devices, find_unused_parameters=False)
        return network

    def step(self, network: nn.Module, batch: Batch, epoch: int, step: int, move: bool) -> None:
        """Forward and backward of one batch, in micro-batches where memory asks for it; the optimizer's if `move`."""
        torch.manual_seed(seed(self.recipe, self.fold, epoch, step))  # dropout
        number = epoch * self.schedule.steps + step
        self.set_lr(number)
        rows = torch.from_numpy(batch.rows).to(self.device)
        rank = [self.ranks.rank] if self.ranks.rank else []
        rng = np.random.default_rng([self.recipe.seed, self.fold, epoch, step, 1, *rank])
        metadata = None if self.metadata is None else self.metadata[rows]
        images = to_device(batch.images, self.device)
        target = auxiliary.beside(self.soft_target(rows), self.beside, rows)
        mixed = mix(images, target, metadata, self.recipe.augment, rng)
        while True:
            try:
                value = self.backward(network, *mixed, batch.of, move)
                break
            except torch.OutOfMemoryError:
                self._halve(len(images))
        if move:
            value = self.optimizer_step(value, number)
        if math.isfinite(value):
            self.state.progress.loss += value * len(rows)
            self.state.progress.rows += len(rows)

    def set_lr(self, number: int) -> None:
        """The schedule's rate at a step, numbered from 0 over the whole training; each group's own share of it."""
        progress = self.state.progress
        factor = self.schedule.factor(number, progress.lr_drops) * progress.lr_scale
        for group in self.state.optimizer.param_groups:
            group.setdefault("peak", group["lr"] * group.get("lr_scale", 1.0))
            group["lr"] = group["peak"] * factor

    def soft_target(self, rows: Tensor) -> Tensor:
        """float (B, C): what the loss takes, smoothed, with what other models said."""
        assert self.target is not None
        target, smooth = self.target[rows], self.recipe.train.label_smoothing
        if self.targets.task == "multiclass":
            classes = len(self.targets.learnt)
            soft = F.one_hot(target, classes).float() * (1 - smooth) + smooth / classes
        else:
            soft = target.reshape(len(rows), -1)
            if self.targets.task != "regression":
                soft = soft * (1 - smooth) + smooth / (soft.shape[1] if self.targets.task == "soft" else 2)
        if self.teacher_target is None or self.teacher_weight is None:
            return soft
        weight = self.teacher_weight[rows, None]
        return (1 - weight) * soft + weight * self.teacher_target[rows]

    def backward(
        self, network: nn.Module, images: Tensor, target: Tensor, metadata: Tensor | None, of: int, move: bool
    ) -> float:
        """Add the gradients of a batch, `of` rows over all ranks; its mean loss here."""
        total = 0.0
        parts = np.array_split(np.arange(len(images)), self.state.progress.micro_batches)
        for k, rows in enumerate(parts):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            sync: AbstractContextManager[None] = nullcontext()
            if isinstance(network, DistributedDataParallel) and not (move and k == len(parts) - 1):
                sync = network.no_sync()  # ranks exchange gradients once a move, not once a micro-batch
            with sync:
                with self.precision.autocast(self.device):
                    logits = network(images[part], None if metadata is None else metadata[part])
                # in fp32: logarithms of half-precision numbers tie
                loss = self.total_loss(logits.float(), target[part])
                total += float(loss.detach()) * len(rows)
                # ranks average their gradients: a rank with fewer rows of this batch counts for less
                fraction = len(rows) * self.ranks.size / of / self.recipe.train.accumulate
                self.state.scaler.scale(loss * fraction).backward()
        return total / len(images)

    def total_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The main target's loss, and those of what is learnt beside."""
        if self.auxiliary is None:
            return self.loss(logits, target)
        k = self.auxiliary.outputs
        return self.loss(logits[:, :-k], target[:, :-k]) + self.auxiliary.loss(logits[:, -k:], target[:, -k:])

    def optimizer_step(self, value: float, number: int) -> float:
        """The optimizer's step, unless loss or gradient is no number; returns the loss, NaN where it was skipped."""
        state, scaler = self.state, self.state.scaler
        scaler.unscale_(state.optimizer)  # before the norm: it is the true gradient's that is clipped
        limit = self.recipe.train.clip_grad or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), limit)
        scaling = scaler.is_enabled()  # fp16's scaler skips overflown gradients itself, as part of its search
        fine = self._everywhere(math.isfinite(value) and (scaling or bool(norm.isfinite())))
        if fine:
            scaler.step(state.optimizer)
            state.progress.consecutive = 0
        else:
            self.skip_bad_step(value)
        if fine or scaling:
            scaler.update()
        if fine:
            state.average.after_step(number)
        state.optimizer.zero_grad(set_to_none=True)
        return value if fine else float("nan")

    def _everywhere(self, fine: bool) -> bool:
        """Whether it is so on every rank: all skip a step, or none."""
        if self.ranks.size == 1:
            return fine
        flag = torch.tensor(float(fine), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def skip_bad_step(self, value: float) -> None:
        """The loss or a gradient is no number: skip the step and halve the rate; in the end go back, or give up."""
        state, progress = self.state, self.state.progress
        progress.bad_steps += 1
        progress.consecutive += 1
        progress.lr_scale /= 2
        back = progress.consecutive >= MAX_BAD_STEPS
        if not self.ranks.rank:
            note(
                f"warning: fold {self.fold}, epoch {progress.epoch + 1}, step {progress.step + 1}: loss {value:g} "
                f"or its gradient is no number; the step is skipped and the learning rate halved to "
                f"{progress.lr_scale:g} of the recipe's{'; weights go back to the last good ones' if back else ''}"
            )
        if progress.bad_steps >= GIVE_UP:
            raise UserError(
                f"fold {self.fold}, epoch {progress.epoch + 1}: {GIVE_UP} steps gave no finite loss; lower train.lr "
                f"(now {self.recipe.train.lr:g}) and run again with --restart"
            )
        if back:
            progress.consecutive = 0
            if state.best_weights:
                state.network.load_state_dict(state.best_weights)
            state.optimizer.state.clear()  # moments of bad gradients would carry them on

    def _halve(self, rows: int) -> None:
        """CUDA is out of memory: compute batches in twice as many micro-batches."""
        progress, t = self.state.progress, self.recipe.train
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.ranks.size > 1 or t.accumulate > 1 or rows // (2 * progress.micro_batches) < 2:
            raise UserError(
                f"fold {self.fold}: out of GPU memory at train.batch_size={t.batch_size}; lower it, "
                "and raise train.accumulate by as much"
            )
        progress.micro_batches *= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        note(
            f"warning: fold {self.fold}: out of GPU memory; from here on a batch of {t.batch_size} is "
            f"computed in {progress.micro_batches} micro-batches, their gradients summed"
        )
