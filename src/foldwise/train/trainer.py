"""Train one fold: plain PyTorch, saved inside the epoch and after it, the chosen weights' predictions as tables.

Everything random depends on (seed, fold, epoch, step) alone, so a run that was killed and continued writes the same
bytes on a CPU as one that was not. Under torchrun every rank runs this; rank 0 writes.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from foldwise import UserError, augment
from foldwise.core.cli import note, terminated
from foldwise.core.files import digest, write_csv, write_json
from foldwise.core.ranks import current_ranks
from foldwise.core.schema import nearest
from foldwise.data import cache, oof
from foldwise.data.batches import Batch, Batches
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, recipe_settings
from foldwise.data.runs import check_folds
from foldwise.model import checkpoint, precision, weights
from foldwise.model.finetune import count_parameters, parameter_groups, start_at_base_rate, start_from, thaw
from foldwise.model.network import Network, create_network, to_device
from foldwise.model.predict import pick_device, predict_rows, say_unreadable
from foldwise.train import fold_data, losses
from foldwise.train.fold_data import FoldData
from foldwise.train.logger import Logger
from foldwise.train.mixup import mix
from foldwise.train.optim import Averaged, make_schedule

STUMBLES = 3  # steps in a row with a loss that is no number, before the weights go back to the last good ones
GIVE_UP = 10


class OutOfTime(Exception):
    """The session's hours are over; everything is saved, and the same command continues."""


@dataclass
class State:
    """What a checkpoint holds, beside weights and optimizer."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # steps of the next one that are done
    loss: float = 0.0  # sum over the rows of those steps
    rows: int = 0
    best: float = float("nan")
    best_epoch: int = -1
    stale: int = 0  # epochs since the best
    drops: int = 0  # of the learning rate, by schedule plateau
    lr_scale: float = 1.0  # halved at every stumble
    stumbles: int = 0  # steps with a loss that was no number, in all
    in_a_row: int = 0
    pieces: int = 1  # a batch is computed in so many, where memory does not hold it whole
    seconds: float = 0.0
    predict_seconds: float = 0.0  # of the last validation, a row
    threads: int = 0
    way: str = ""
    stopped: bool = False  # by early stopping
    log: list[dict[str, float]] = field(default_factory=list)


def rehearse(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> None:
    """Make everything that a fold needs and throw it away: UserError now, rather than after old results are cleared."""
    Trainer(competition, recipe, fold, fold_table, Path())


class Trainer:
    """One fold's network, optimizer and state, to be `run`.

    It writes fold<K>.csv, fold<K>_test.csv, fold<K>.safetensors, fold<K>_log.csv and fold<K>.json into `folder`, and
    continues from fold<K>.ckpt where one of the same recipe lies there, also inside an epoch. `deadline`
    (time.monotonic seconds): everything is saved and OutOfTime raised before it.
    """

    def __init__(
        self,
        competition: Competition,
        recipe: Recipe,
        fold: int,
        fold_table: pd.DataFrame,
        folder: Path,
        deadline: float | None = None,
    ) -> None:
        self.competition, self.recipe, self.fold, self.folder = competition, recipe, fold, folder
        self.deadline, self.ranks = deadline, current_ranks()
        self.data = data = fold_data.gather(competition, recipe, fold, fold_table)
        self.device = pick_device(recipe)
        torch.manual_seed(self._seed())
        t = recipe.train
        if recipe.model.mode == "as_is" and competition.task in {"multilabel", "regression"}:
            raise UserError(
                f"model.mode=as_is: a pretrained head tells classes apart; task {competition.task} needs other"
            )
        metadata = data.metadata("train")
        self.metadata = None if metadata is None else torch.from_numpy(metadata).to(self.device)
        self.network = create_network(
            recipe, data.targets.outputs, 0 if metadata is None else metadata.shape[1], data.targets.learnt
        )
        _set_units(self.network, data)
        if recipe.model.start_from:
            check_folds(competition, recipe.model.start_from, fold_table)
            start_from(self.network, competition.runs() / recipe.model.start_from / f"fold{fold}.safetensors")
        self.network.to(self.device)
        if t.sync_bn and self.ranks.size > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.optimizer = self._optimizer()
        self.way = precision.of_device(recipe, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.way.half == torch.float16)
        self.target = torch.from_numpy(data.train_target).to(self.device)
        self.taught = None if data.teacher is None else torch.from_numpy(data.teacher).to(self.device)
        self.trust = None if data.trust is None else torch.from_numpy(data.trust).to(self.device)
        of_class = losses.class_weights(t, data.targets, data.train_target)
        self.loss = losses.make_loss(t, data.targets, of_class, float(self.network.scale))
        self.draw = data.draw_weights(t.sampling)
        self.size = 0  # pixels a side of the loader's images
        self._load(0)
        self.schedule = make_schedule(t, len(self.loader))
        self.average = Averaged(self.network, t)
        self.state = State(threads=torch.get_num_threads())
        self.best_weights: dict[str, Tensor] = {}
        self.snapshots: list[dict[str, Tensor]] = []
        self.saved_at = self.clock = time.monotonic()
        self.save_seconds = 0.0

    def _optimizer(self) -> torch.optim.Optimizer:
        t = self.recipe.train
        if t.optimizer not in list_optimizers():
            hint = nearest(t.optimizer, map(str, list_optimizers()))
            raise UserError(f"train.optimizer={t.optimizer}: timm has none such{hint}")
        groups = parameter_groups(self.network, self.recipe) or [{"params": [torch.zeros(())]}]  # as_is
        return create_optimizer_v2(groups, opt=t.optimizer, lr=t.lr, weight_decay=t.weight_decay)

    # --- start ------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, validate and predict the fold, from where it was left; its facts."""
        self.start()
        while not self.done:
            self.run_epoch()
        return self.finish()

    def start(self) -> None:
        """Continue from a checkpoint, or choose how to compute and save the beginning."""
        learn, every = count_parameters(self.network)
        if not self.ranks.rank:
            note(
                f"fold {self.fold}: {len(self.data.train)} train, {len(self.data.valid)} valid, {len(self.data.test)} "
                f"test rows; {learn / 1e6:.2f} of {every / 1e6:.2f} M parameters train; {self._where()}"
            )
        if not self._resume():
            way = self.way  # ranks must compute alike: no probe of their own
            if self.ranks.size == 1:
                way = precision.choose(self.network, self.recipe, self.device, self.metadata)
            self.state.way = way.name
        self.way = precision.named(self.state.way, self.recipe, self.device)
        self.way.lay_out(self.network)
        if self.average.kept is not None:
            self.way.lay_out(self.average.kept)
        if not learn:  # mode as_is: there is nothing to train
            self.state.epoch, self.best_weights = self.recipe.train.epochs, _copy(self.network)
        self.journal = Logger(self.recipe, self.folder, self.fold) if not self.ranks.rank else None

    def _where(self) -> str:
        devices = f", {self.ranks.size} processes" if self.ranks.size > 1 else ""
        return f"{self.device.type}{devices}"

    @property
    def done(self) -> bool:
        """Whether no epoch is left."""
        return self.state.epoch >= self.recipe.train.epochs or self.state.stopped

    def _batch_rows(self) -> int:
        return self.recipe.train.batch_size * self.ranks.size

    # --- an epoch ---------------------------------------------------------------------------------------------

    def run_epoch(self) -> None:
        """What is left of one pass over the training rows, then validation; then everything is saved."""
        started, epoch = time.monotonic(), self.state.epoch
        first = self.state.step
        thaw(self.network, self.recipe, epoch)
        self._train(epoch)
        trained = time.monotonic()
        self._stop_in_time(self.state.predict_seconds * len(self.data.valid))
        self.average.after_epoch(epoch)  # no save lies between this and the epoch's count: none is averaged twice
        pred = self._predict("valid")
        now = time.monotonic()
        self.state.predict_seconds = (now - trained) / max(1, len(self.data.valid))
        score = self._score(pred)
        lr = self.optimizer.param_groups[-1]["lr"]
        better = self._keep_best(score, epoch)
        if self.recipe.train.snapshots and self.schedule.cycle_ends(epoch):
            self._keep_snapshot(pred, epoch)
        seconds, rows = now - started, self.state.rows
        steps = max(1, len(self.loader) - first)
        self.state.log.append(
            {
                "epoch": epoch + 1,
                "lr": lr,
                "train_loss": self.state.loss / max(1, rows),
                "valid_loss": self._valid_loss(pred),
                self.competition.metric: score,
                "best": float(better),
                "seconds": round(seconds, 2),
                "images_per_second": round(steps * self._batch_rows() / max(1e-9, trained - started), 1),
            }
        )
        self.state.epoch, self.state.step, self.state.loss, self.state.rows = epoch + 1, 0, 0.0, 0
        patience = self.recipe.train.early_stopping
        self.state.stopped = patience is not None and self.state.stale >= patience
        self._save()
        if self.ranks.rank:
            return
        log = pd.DataFrame(self.state.log)
        write_csv(self.folder / f"fold{self.fold}_log.csv", log, "%.6g")
        assert self.journal is not None
        self.journal.write(epoch + 1, {k: v for k, v in self.state.log[-1].items() if k != "epoch"})
        note(
            f"fold {self.fold}  epoch {epoch + 1:>3}/{self.recipe.train.epochs}  "
            f"train loss {log['train_loss'].iloc[-1]:.4f}  valid {self.competition.metric} {score:.4f}"
            f"{'  best' if better else ''}  {seconds:.1f} s{self._expected()}"
        )
        if self.state.stopped:
            note(f"fold {self.fold}: stops early, {self.state.stale} epochs without gain")

    def _train(self, epoch: int) -> None:
        """Steps of one epoch, from state.step on."""
        self.network.train()
        self._load(epoch)
        moving = self._wrapped()
        bar = tqdm(
            self.loader.epoch(epoch, self.state.step),
            total=len(self.loader),
            initial=self.state.step,
            desc=f"fold {self.fold} epoch {epoch + 1}",
            unit="batch",
            leave=False,
            disable=True if self.ranks.rank else None,
        )
        begun, first = time.monotonic(), self.state.step
        for step, batch in enumerate(bar, start=first):
            torch.manual_seed(self._seed(epoch, step))  # dropout, the same after a restart
            self._set_lr(epoch, step)
            last = step + 1 == len(self.loader)
            move = (step + 1) % self.recipe.train.accumulate == 0 or last
            self._step(moving, batch, epoch, step, move)
            self.state.step = step + 1
            bar.set_postfix(loss=f"{self.state.loss / max(1, self.state.rows):.4f}", refresh=False)
            if move and not last:  # a checkpoint holds no gradients
                self._save_inside((time.monotonic() - begun) / (step + 1 - first))

    def _step(self, moving: nn.Module, batch: Batch, epoch: int, step: int, move: bool) -> None:
        """Forward and backward of one batch, in pieces where memory asks for it; the optimizer moves if `move`."""
        images = to_device(batch.images, self.device)
        rows = torch.from_numpy(batch.rows).to(self.device)
        metadata = None if self.metadata is None else self.metadata[rows]
        rank = [self.ranks.rank] if self.ranks.rank else []
        rng = np.random.default_rng([self.recipe.seed, self.fold, epoch, step, 1, *rank])
        images, target, metadata = mix(images, self._soft_target(rows), metadata, self.recipe.augment, rng)
        while True:
            try:
                value = self._backward(moving, images, target, metadata, batch, move)
                break
            except torch.OutOfMemoryError:
                self._halve(len(images))
        if move:
            value = self._move(value, epoch * len(self.loader) + step)
        if math.isfinite(value):
            self.state.loss += value * len(rows)
            self.state.rows += len(rows)

    def _backward(
        self, moving: nn.Module, images: Tensor, target: Tensor, metadata: Tensor | None, batch: Batch, move: bool
    ) -> float:
        """Add the batch's gradients; its mean loss."""
        total = 0.0
        pieces = np.array_split(np.arange(len(images)), self.state.pieces)
        for k, piece in enumerate(pieces):
            part = slice(int(piece[0]), int(piece[-1]) + 1)
            sync: AbstractContextManager[None] = nullcontext()
            if isinstance(moving, DistributedDataParallel) and not (move and k == len(pieces) - 1):
                sync = moving.no_sync()
            with sync:
                with self.way.autocast(self.device):
                    logits = moving(images[part], None if metadata is None else metadata[part])
                # ranks average their gradients: a rank with fewer rows of this batch counts for less
                share = len(piece) * self.ranks.size / batch.of / self.recipe.train.accumulate
                loss = self.loss(logits.float(), target[part])
                total += float(loss.detach()) * len(piece)
                self.scaler.scale(loss * share).backward()
        return total / len(images)

    def _move(self, value: float, step: int) -> float:
        """The optimizer's step, unless loss or gradient is no number; returns the loss, NaN where it was skipped."""
        t = self.recipe.train
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), t.clip_grad or float("inf"))
        scaling = self.scaler.is_enabled()  # fp16's scaler skips overflown gradients itself, as part of its search
        fine = math.isfinite(value) and (scaling or bool(norm.isfinite()))
        if self.ranks.size > 1:  # all ranks skip, or none
            flag = torch.tensor(float(fine), device=self.device)
            dist.all_reduce(flag, dist.ReduceOp.MIN)
            fine = bool(flag)
        if fine:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.state.in_a_row = 0
            self.average.after_step(step)
        else:
            self._stumble(value)
            if scaling:
                self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return value if fine else float("nan")

    def _stumble(self, value: float) -> None:
        """The loss or a gradient is no number: skip the step and halve the rate; in the end go back, or give up."""
        self.state.stumbles += 1
        self.state.in_a_row += 1
        self.state.lr_scale /= 2
        back = self.state.in_a_row >= STUMBLES
        if not self.ranks.rank:
            note(
                f"warning: fold {self.fold}, epoch {self.state.epoch + 1}, step {self.state.step + 1}: loss {value:g} "
                f"or its gradient is no number; the step is skipped and the learning rate halved to "
                f"{self.state.lr_scale:g} of the recipe's{'; weights go back to the last good ones' if back else ''}"
            )
        if self.state.stumbles >= GIVE_UP:
            raise UserError(
                f"fold {self.fold}, epoch {self.state.epoch + 1}: {GIVE_UP} steps gave no finite loss; lower train.lr "
                f"(now {self.recipe.train.lr:g}) and run again with --restart"
            )
        if back:
            self.state.in_a_row = 0
            if self.best_weights:
                self.network.load_state_dict(self.best_weights)
            self.optimizer.state.clear()

    def _halve(self, rows: int) -> None:
        """CUDA is out of memory: compute batches in twice as many pieces."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.size > 1 or self.recipe.train.accumulate > 1 or rows // (2 * self.state.pieces) < 2:
            raise UserError(
                f"fold {self.fold}: out of GPU memory at train.batch_size={self.recipe.train.batch_size}; lower it, "
                "and raise train.accumulate by as much"
            )
        self.state.pieces *= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        note(
            f"warning: fold {self.fold}: out of GPU memory; from here on a batch of {self.recipe.train.batch_size} is "
            f"computed in {self.state.pieces} pieces, their gradients summed"
        )

    def _soft_target(self, rows: Tensor) -> Tensor:
        """float (B, C): what the loss takes, smoothed, with what other models said."""
        target, smooth, plan = self.target[rows], self.recipe.train.label_smoothing, self.data.targets
        if plan.task == "multiclass":
            classes = len(plan.learnt)
            soft = F.one_hot(target, classes).float() * (1 - smooth) + smooth / classes
        else:
            soft = target.reshape(len(rows), -1)
            soft = soft if plan.task == "regression" else soft * (1 - smooth) + smooth / 2
        if self.taught is None or self.trust is None:
            return soft
        trust = self.trust[rows, None]
        return (1 - trust) * soft + trust * self.taught[rows]

    def _set_lr(self, epoch: int, step: int) -> None:
        share = self.schedule.share(epoch * len(self.loader) + step, self.state.drops) * self.state.lr_scale
        for group in self.optimizer.param_groups:
            group.setdefault("peak", group["lr"] * group.get("lr_scale", 1.0))
            group["lr"] = group["peak"] * share

    def _wrapped(self) -> nn.Module:
        """The network as steps call it: compiled, or averaging gradients over ranks."""
        moving: nn.Module = self.network
        if self.recipe.train.compile:
            moving = torch.compile(moving)  # type: ignore[assignment]
        if self.ranks.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            moving = DistributedDataParallel(moving, device_ids=devices, find_unused_parameters=False)
        return moving

    def _load(self, epoch: int) -> None:
        """The training rows in batches, at the epoch's image size."""
        t, a, recipe = self.recipe.train, self.recipe.augment, self.recipe
        size = t.sizes[min(epoch * len(t.sizes) // t.epochs, len(t.sizes) - 1)] if t.sizes else recipe.image_size
        if size == self.size:
            return
        self.size = size
        own = size == recipe.image_size
        images = self.data.images if own else cache.load_cache(self.competition, size, recipe.crop)
        ops = augment.train_ops(a.preset, size, a.flips, a.randaugment)
        where = images.rows_of(self.data.train)
        self.loader = Batches(
            images,
            where,
            t.batch_size,
            ops,
            (recipe.seed, self.fold),
            t.loaders,
            self.draw,
            (self.ranks.rank, self.ranks.size),
        )

    # --- validation -------------------------------------------------------------------------------------------

    def _predict(self, split: str, networks: list[Network] | None = None) -> np.ndarray:
        return predict_rows(
            networks or [self.average.current],  # type: ignore[list-item]
            self.data.images,
            self.data.cache_rows(split),
            self.data.targets,
            self.recipe,
            f"fold {self.fold} {split}",
            self.data.metadata(split),
            self.way,
            self.data.prior,
        )

    def _score(self, pred: np.ndarray) -> float:
        table = oof.prediction_table(self.competition, self.data.targets.names, self.data.valid, pred, self.fold)
        return oof.score(self.competition, table, self.data.valid)

    def _valid_loss(self, pred: np.ndarray) -> float:
        """Cross-entropy of the competition's target, or squared error."""
        target, p = self.data.valid_target, np.clip(pred.astype(float), 1e-7, 1 - 1e-7)
        if self.competition.task == "multiclass":
            return float(-np.log(p[np.arange(len(p)), target]).mean())
        target = target.reshape(len(p), -1)
        if self.competition.task == "regression":
            return float(((pred - target) ** 2).mean())
        return float(-np.nanmean(target * np.log(p) + (1 - target) * np.log(1 - p)))

    def _keep_best(self, score: float, epoch: int) -> bool:
        gain = score - self.state.best
        first = math.isnan(self.state.best)
        better = first or (gain > 0 if self.competition.scorer().greater_is_better else gain < 0)
        self.state.stale = 0 if better else self.state.stale + 1
        if better:
            self.state.best = score
        elif self.recipe.train.schedule == "plateau" and self.state.stale % self.recipe.train.patience == 0:
            self.state.drops += 1
        if better or self.recipe.train.checkpoint == "last":
            self.state.best_epoch = epoch
            self.best_weights = _copy(self.average.current)
            return True
        return False

    def _keep_snapshot(self, pred: np.ndarray, epoch: int) -> None:
        """The weights at the end of a cycle, with their own OOF table beside the run's."""
        self.snapshots.append(_copy(self.average.current))
        if not self.ranks.rank:
            table = oof.prediction_table(self.competition, self.data.targets.names, self.data.valid, pred, self.fold)
            number = len(self.snapshots)
            (self.folder / "snapshots").mkdir(exist_ok=True)
            oof.write_table(table, self.folder / "snapshots" / f"fold{self.fold}_{number}.csv")
            note(f"fold {self.fold}: snapshot {number} kept after epoch {epoch + 1}")

    # --- time -------------------------------------------------------------------------------------------------

    def _expected(self) -> str:
        """When this fold ends, at the pace so far."""
        left = self.recipe.train.epochs - self.state.epoch
        if not left:
            return ""
        pace = float(np.mean([row["seconds"] for row in self.state.log[-3:]]))
        seconds = left * pace + self.state.predict_seconds * (len(self.data.valid) + len(self.data.test))
        end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        late = self.deadline is not None and time.monotonic() + seconds > self.deadline
        return f"; ends about {end} ({_duration(seconds)}){', after --hours: it will be continued' if late else ''}"

    def _stop_in_time(self, seconds: float) -> None:
        """Save and raise OutOfTime if what comes next takes `seconds` and the deadline lies before its end."""
        late = terminated() or (self.deadline is not None and time.monotonic() + 1.3 * seconds + 3 > self.deadline)
        if self.ranks.size > 1:  # one clock for all
            flag = torch.tensor(float(late), device=self.device)
            dist.broadcast(flag, 0)
            late = bool(flag)
        if late:
            self._save()
            why = "stopped" if terminated() else "--hours are nearly over"
            raise OutOfTime(
                f"{why}: fold {self.fold}: {self.state.epoch} of {self.recipe.train.epochs} epochs and "
                f"{self.state.step} of {len(self.loader)} steps of the next are done and saved"
            )

    def _save_inside(self, pace: float) -> None:
        """A checkpoint inside the epoch every save_minutes, and before the time is over; pace: seconds a step."""
        if self.deadline is not None or (terminated() and self.ranks.size == 1):
            self._stop_in_time(pace * self.recipe.train.accumulate + self.save_seconds)
        if time.monotonic() - self.saved_at >= 60 * self.recipe.train.save_minutes:
            self._save()

    # --- saved and continued ----------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.folder / f"fold{self.fold}.ckpt"

    def _save(self) -> None:
        start = time.monotonic()
        self.state.seconds += start - self.clock
        self.clock = start
        if not self.ranks.rank:
            checkpoint.save(
                {
                    "key": digest(recipe_settings(self.recipe)),
                    "state": vars(self.state),
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "average": self.average.state_dict(),
                    "best": self.best_weights,
                    "snapshots": self.snapshots,
                },
                self._checkpoint,
            )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - start

    def _resume(self) -> bool:
        """Take up the checkpoint of the same recipe, if there is one."""
        saved = checkpoint.load(self._checkpoint)
        if saved is None:
            if checkpoint.exists(self._checkpoint):
                note(f"fold {self.fold}: no whole checkpoint is left; the fold starts anew")
            return False
        if saved["key"] != digest(recipe_settings(self.recipe)):
            note(f"fold {self.fold}: the checkpoint is of another recipe; the fold starts anew")
            return False
        self.state = State(**saved["state"])
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.average.load_state_dict(saved["average"])
        self.best_weights, self.snapshots = saved["best"], saved["snapshots"]
        torch.set_num_threads(self.state.threads)  # of another machine, perhaps: the bits depend on it
        if not self.ranks.rank:
            inside = f", step {self.state.step} of {len(self.loader)} of the next" if self.state.step else ""
            note(f"fold {self.fold}: continues after epoch {self.state.epoch} of {self.recipe.train.epochs}{inside}")
        return True

    def finish(self) -> dict[str, Any]:
        """Predict validation and test rows with the chosen weights; write the fold's files, the OOF table last."""
        self._stop_in_time(self.state.predict_seconds * (len(self.data.valid) + len(self.data.test)))
        chosen = self.snapshots if self.snapshots else [self.best_weights]
        valid, test = self._predict_with(chosen)
        readable = self.data.cache_rows("test") >= 0
        missing = say_unreadable(f"fold {self.fold} test", self.data.test["id"].tolist(), readable)
        facts = {
            "seconds": round(self.state.seconds, 1),
            "ended": round(time.time(), 1),
            "epochs": self.state.epoch,
            "threads": self.state.threads,
            "step": self.state.way,
            "best_epoch": self.state.best_epoch + 1,
            "skipped_steps": self.state.stumbles,
            "pieces": self.state.pieces,
            "snapshots": len(self.snapshots),
            "unreadable_test": missing,
        }
        if not self.ranks.rank:
            self._write(valid, test, facts)
        return facts

    def _predict_with(self, chosen: list[dict[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        """(valid, test) predictions, the mean over the chosen weights."""
        made = []
        for one in chosen:
            self.network.load_state_dict(one)
            made.append((self._predict("valid", [self.network]), self._predict("test", [self.network])))
        valid, test = (np.mean(part, axis=0) for part in zip(*made, strict=True))
        return valid, test

    def _write(self, valid: np.ndarray, test: np.ndarray, facts: dict[str, Any]) -> None:
        names, stem = self.data.targets.names, self.folder / f"fold{self.fold}"
        if self.data.encoder is not None:
            write_json(stem.with_name(f"{stem.name}_metadata.json"), self.data.encoder.state())
        classes = self.data.targets.learnt
        several = self.snapshots if len(self.snapshots) > 1 else []  # one is the fold's weights
        for number, snapshot in enumerate(several, start=1):
            self.network.load_state_dict(snapshot)
            weights.save(self.network, stem.with_name(f"{stem.name}_snapshot{number}.safetensors"), classes)
        weights.save(self.network, stem.with_suffix(".safetensors"), classes)  # loaded last by _predict_with, or above
        oof.write_table(
            oof.prediction_table(self.competition, names, self.data.test, test), stem.with_name(f"{stem.name}_test.csv")
        )
        write_json(stem.with_suffix(".json"), facts)
        table = oof.prediction_table(self.competition, names, self.data.valid, valid, self.fold)
        oof.write_table(table, stem.with_suffix(".csv"))
        checkpoint.remove(self._checkpoint)

    def _seed(self, epoch: int = -1, step: int = -1) -> int:
        parts = [self.recipe.seed, self.fold, epoch + 1, step + 1]
        if self.ranks.rank and step >= 0:
            parts.append(self.ranks.rank)
        return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}


def _set_units(network: Network, data: FoldData) -> None:
    if data.targets.task == "regression":
        network.shift.fill_(float(data.train_target.mean()))
        network.scale.fill_(max(float(data.train_target.std()), 1e-6))
    elif data.targets.activation in {"softmax", "sigmoid"}:
        start_at_base_rate(network, data.train_target, len(data.targets.learnt))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"
