"""One step of training: forward, backward, accumulate, move; past numbers that are none and memory that is short.

A GPU runs behind the host, which must not wait for it in every step: losses and whether they are numbers are added up
there and looked at every LOOK steps. On a CPU, where nothing waits, every step is looked at.
"""

from __future__ import annotations

import time
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
from foldwise.data.recipe import Recipe
from foldwise.model import precision
from foldwise.model.finetune import counted_once
from foldwise.model.transfer import DeviceBatch, to_device
from foldwise.train import auxiliary, losses
from foldwise.train.fold_data import FoldData
from foldwise.train.mixup import mix
from foldwise.train.optim import Schedule
from foldwise.train.state import State

MAX_BAD_STEPS = 3  # in a row: one or two are a bad batch, more are bad weights, and the last good ones come back
LOOK = 20  # steps between looks at what a GPU has added up, where they take less than a second
GIVE_UP = 10  # bad steps in all: the rate is down to a thousandth by then, so the rate is not what is wrong


def seed(recipe: Recipe, fold: int, epoch: int = -1, step: int = -1) -> int:
    """Of everything random at that point of a fold's training, whatever happened before: a restart draws the same."""
    parts, rank = [recipe.seed, fold, epoch + 1, step + 1], current_ranks().rank
    return int(np.random.SeedSequence([*parts, rank] if rank and step >= 0 else parts).generate_state(1)[0])


class Sums:
    """What steps add up on the device: loss x rows, rows, optimizer steps that were none, and how many of these came
    last."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.began()

    def began(self) -> None:
        """Nothing has been added yet."""
        self.steps, self.moves, self.since = 0, 0, time.monotonic()

    def add(self, value: Tensor, rows: int, fine: Tensor, moved: bool) -> None:
        """A step: float64 mean loss of its rows, and whether it was a number (bool), as were its gradients if moved."""
        loss, count, bad, last = self.sums.unbind()
        loss += torch.where(fine, value * rows, 0.0)
        count += fine * rows
        self.steps += 1
        if moved:
            self.moves += 1
            bad += ~fine
            last.add_(1).mul_(~fine)

    def take(self) -> list[float]:
        """The four sums, which begin anew; the host waits for the device."""
        values = self.sums.tolist()
        self.sums.zero_()
        self.began()
        return values


class Stepper:
    """A fold's steps on batches of its training rows; what they change is in `state`."""

    def __init__(
        self, recipe: Recipe, fold: int, data: FoldData, state: State, schedule: Schedule, device: torch.device
    ) -> None:
        self.recipe, self.fold, self.targets, self.state = recipe, fold, data.targets, state
        self.computes_twice = recipe.train.gradient_checkpointing or recipe.model.stack is not None
        self.schedule, self.device, self.ranks = schedule, device, current_ranks()
        self.precision = precision.of_device(recipe, device)
        self.sums, self.patient = Sums(device), fused(state.optimizer)
        metadata = data.metadata("train")
        self.target, self.metadata, self.teacher_target, self.teacher_weight = (
            None if rows is None else to_device(rows, device)
            for rows in (data.train_target, metadata, data.teacher_target, data.teacher_weight)
        )
        self.auxiliary = data.auxiliary
        self.beside = None if data.auxiliary is None else to_device(data.auxiliary.target, device)
        of_class = losses.class_weights(recipe.train, data.targets, data.train_target)
        of_class = None if of_class is None else of_class.to(device)
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

    @property
    def looked(self) -> bool:
        """Whether the progress holds all that the steps so far have added up."""
        return not self.sums.steps

    def step(self, network: nn.Module, batch: DeviceBatch, epoch: int, step: int, move: bool) -> None:
        """Forward and backward of one batch, in micro-batches where memory asks for it; the optimizer's if `move`."""
        torch.manual_seed(seed(self.recipe, self.fold, epoch, step))  # dropout
        number = epoch * self.schedule.steps + step
        self.set_lr(number)
        rank = [self.ranks.rank] if self.ranks.rank else []
        rng = np.random.default_rng([self.recipe.seed, self.fold, epoch, step, 1, *rank])
        metadata = None if self.metadata is None else self.metadata[batch.rows]
        target = auxiliary.beside(self.soft_target(batch.rows), self.beside, batch.rows)
        mixed = mix(batch.images, target, metadata, self.recipe.augment, rng)
        while True:
            try:
                value = self.backward(network, *mixed, batch.of, move)
                break
            except torch.OutOfMemoryError:
                self._halve(len(batch.rows))
        fine = self.optimizer_step(value, number) if move else value.isfinite()
        self.sums.add(value, len(batch.rows), fine, move)
        late = self.sums.steps >= LOOK or (self.ranks.size == 1 and time.monotonic() - self.sums.since > 1)
        if late or not self.patient:
            self.look()

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
    ) -> Tensor:
        """Add the gradients of a batch, `of` rows over all ranks; its mean loss here, float64 ()."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
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
                total += loss.detach().double() * len(rows)
                # ranks average their gradients: a rank with fewer rows of this batch counts for less
                fraction = len(rows) * self.ranks.size / of / self.recipe.train.accumulate
                with counted_once(network) if self.computes_twice else nullcontext():
                    self.state.scaler.scale(loss * fraction).backward()
        return total / len(images)

    def total_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The main target's loss, and those of what is learnt beside."""
        if self.auxiliary is None:
            return self.loss(logits, target)
        k = self.auxiliary.outputs
        return self.loss(logits[:, :-k], target[:, :-k]) + self.auxiliary.loss(logits[:, -k:], target[:, -k:])

    def optimizer_step(self, value: Tensor, number: int) -> Tensor:
        """The optimizer's step, unless loss or gradient is no number; returns whether it was made, bool ()."""
        state, scaler = self.state, self.state.scaler
        scaler.unscale_(state.optimizer)  # before the norm: it is the true gradient's that is clipped
        limit = self.recipe.train.clip_grad or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), limit)
        scaling = scaler.is_enabled()  # fp16's scaler skips overflown gradients itself, as part of its search
        fine = self._everywhere(value.isfinite() if scaling else value.isfinite() & norm.isfinite())
        if self.patient and not scaling:
            state.optimizer.grad_scale, state.optimizer.found_inf = None, (~fine).float()  # type: ignore[attr-defined]
        if self.patient or bool(fine):
            scaler.step(state.optimizer)
            state.average.after_step(number)
        if scaling:
            scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return fine

    def _everywhere(self, fine: Tensor) -> Tensor:
        """Whether it is so on every rank: all skip a step, or none."""
        if self.ranks.size == 1:
            return fine
        flag = fine.float()
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return flag.bool()

    def look(self) -> None:
        """Add the device's sums to the progress, and answer steps that were none."""
        progress, moves = self.state.progress, self.sums.moves
        loss, rows, bad, last = self.sums.take()
        progress.loss += loss
        progress.rows += int(rows)
        if last < moves:
            progress.consecutive = 0
        if bad:
            self.skipped(min(int(bad), MAX_BAD_STEPS), int(last))

    def skipped(self, bad: int = 1, last: int = 1) -> None:
        """Loss or a gradient was no number in `bad` steps, `last` of them up to now, which were skipped: halve the rate
        for each; in the end go back, or give up."""
        state, progress = self.state, self.state.progress
        progress.bad_steps += bad
        progress.consecutive += last
        progress.lr_scale /= 2**bad
        back = progress.consecutive >= MAX_BAD_STEPS
        if not self.ranks.rank:
            note(
                f"warning: fold {self.fold}, epoch {progress.epoch + 1}, step {progress.step + 1}: the loss or its "
                f"gradient is no number; the step is skipped and the learning rate halved to {progress.lr_scale:g} of "
                f"the recipe's{'; weights go back to the last good ones' if back else ''}"
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


def fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer itself skips a step by a flag on the device, so that nobody has to wait for the flag."""
    return any(group.get("fused") for group in optimizer.param_groups)
