"""Train one fold: plain PyTorch, a checkpoint an epoch, the best epoch's predictions written as tables.

Everything random depends on (seed, fold, epoch, batch) alone, so a run that was killed and continued writes the same
bytes on a CPU as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor
from tqdm import tqdm

from foldwise import UserError, atomic, augment, cache, folds, index, infer, metrics, models, oof
from foldwise.command import note
from foldwise.competition import Competition
from foldwise.config import Recipe, digest, settings
from foldwise.dataset import Batches
from foldwise.models import Network
from foldwise.schema import nearest


class OutOfTime(Exception):
    """The session's hours are over; everything is saved, and the same command continues."""


@dataclass(frozen=True)
class FoldData:
    """What one fold trains, validates and predicts on. Positions are rows of the cache, -1 where unreadable."""

    images: cache.Cache
    names: list[str]  # index.classes: what the outputs mean
    train: pd.DataFrame  # index rows
    valid: pd.DataFrame
    test: pd.DataFrame
    train_target: np.ndarray
    valid_target: np.ndarray

    def where(self, split: str) -> np.ndarray:
        """Cache rows of 'train', 'valid' or 'test'."""
        return _where(self.images, getattr(self, split))


def fold_data(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> FoldData:
    """The rows of one fold, joined by id from index, folds and cache; UserError where a piece is missing."""
    table = index.load(competition)
    names = index.classes(competition, table)
    train = folds.rows(table, fold_table)
    inside = (fold_table["fold"] == fold).to_numpy()
    if not inside.any():
        raise UserError(f"--fold {fold}: the folds are {', '.join(map(str, sorted(fold_table['fold'].unique())))}")
    fit, valid, test = train[~inside], train[inside], table[table["split"] == "test"]
    images = cache.load(competition, recipe.image_size)
    fit = pd.concat([fit, _extra(table, valid, names)])
    fit = fit[_where(images, fit) >= 0]
    return FoldData(
        images, names, fit, valid, test,
        index.target_array(competition, fit, names), index.target_array(competition, valid, names),
    )  # fmt: skip


def _extra(table: pd.DataFrame, valid: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Rows from elsewhere that this fold may train on: none that shares a group, or a copy, with a validation row."""
    extra = table[(table["split"] == "extra") & table["error"].isna() & ~table["group"].isin(valid["group"])]
    unknown = set(extra["target"]) - set(names) if names and "target" in extra else set()
    if unknown:
        raise UserError(f"extra: class '{sorted(map(str, unknown))[0]}' is none of the training classes")
    return extra


def _where(images: cache.Cache, rows: pd.DataFrame) -> np.ndarray:
    found = np.empty(len(rows), np.int64)
    for split in rows["split"].unique():
        part = (rows["split"] == split).to_numpy()
        found[part] = images.rows(split, rows.loc[part, "id"].tolist())
    return found


@dataclass
class State:
    """What a checkpoint holds, beside weights and optimizer."""

    epoch: int = 0
    best: float = float("nan")
    best_epoch: int = -1
    seconds: float = 0.0
    threads: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


def train_fold(
    competition: Competition,
    recipe: Recipe,
    fold: int,
    fold_table: pd.DataFrame,
    folder: Path,
    deadline: float | None = None,
    pace: float = 0.0,
) -> dict[str, Any]:
    """Train, validate and predict one fold into `folder`; returns facts for run.json.

    Writes fold<K>.csv, fold<K>_test.csv, fold<K>.safetensors, fold<K>_log.csv. Continues from fold<K>.ckpt where one
    of the same recipe lies there. `deadline` (time.monotonic seconds): stop after the epoch that comes before it.
    `pace`: seconds an epoch took in other folds.
    """
    data = fold_data(competition, recipe, fold, fold_table)
    device = infer.pick_device(recipe)
    torch.manual_seed(_seed(recipe, fold))
    outputs = max(1, len(data.names))
    network = models.create(recipe, outputs)
    _set_units(network, competition, data)
    network.to(device)
    trainer = Trainer(competition, recipe, fold, data, network, folder)
    trainer.resume()
    learn, every = models.count_parameters(network)
    note(
        f"fold {fold}: {len(data.train)} train, {len(data.valid)} valid, {len(data.test)} test rows; "
        f"{learn / 1e6:.2f} of {every / 1e6:.2f} M parameters train; {device}"
    )
    while trainer.state.epoch < recipe.train.epochs:
        if trainer.state.epoch:
            pace = trainer.state.seconds / trainer.state.epoch
        if deadline is not None and time.monotonic() + 1.5 * pace > deadline:  # half an epoch's time to predict in
            raise OutOfTime(f"fold {fold}: {trainer.state.epoch} of {recipe.train.epochs} epochs are done and saved")
        trainer.run_epoch()
    return trainer.finish()


def rehearse(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> None:
    """Make everything that a fold needs and throw it away: UserError now, rather than after old results are cleared."""
    data = fold_data(competition, recipe, fold, fold_table)
    Trainer(competition, recipe, fold, data, models.create(recipe, max(1, len(data.names))), Path())


class Trainer:
    """One fold's network, optimizer and state; `run_epoch` until the recipe's epochs are done, then `finish`."""

    def __init__(
        self, competition: Competition, recipe: Recipe, fold: int, data: FoldData, network: Network, folder: Path
    ) -> None:
        self.competition, self.recipe, self.fold, self.data = competition, recipe, fold, data
        self.network, self.folder = network, folder
        self.device = next(network.parameters()).device
        t, a = recipe.train, recipe.augment
        ops = augment.train_ops(a.preset, recipe.image_size, a.flips)
        self.batches = Batches(data.images, data.where("train"), t.batch_size, ops, (recipe.seed, fold), t.loaders)
        self.target = torch.from_numpy(data.train_target).to(self.device)
        if t.optimizer not in list_optimizers():
            hint = nearest(t.optimizer, map(str, list_optimizers()))
            raise UserError(f"train.optimizer={t.optimizer}: timm has none such{hint}")
        self.optimizer = create_optimizer_v2(network, opt=t.optimizer, lr=t.lr, weight_decay=t.weight_decay)
        self.steps = max(1, len(self.batches))
        total = self.steps * t.epochs
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=total, lr_min=t.lr * t.final_lr, warmup_t=round(total * t.warmup),
            warmup_lr_init=t.lr * 0.01, t_in_epochs=False,
        )  # fmt: skip
        self.half = infer.half_type(self.device) if t.amp else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.loss = loss_for(competition.task)
        self.state = State(threads=torch.get_num_threads())
        self.best_weights: dict[str, Tensor] = {}

    def run_epoch(self) -> None:
        """One pass over the training rows, then validation; then everything is saved."""
        started = time.monotonic()
        epoch = self.state.epoch
        torch.manual_seed(_seed(self.recipe, self.fold, epoch))  # dropout and mixing, the same after a restart
        train_loss = self._train(epoch)
        pred = self._predict(self.data.where("valid"), "valid")
        score = self._score(pred)
        seconds = time.monotonic() - started
        better = self._is_better(score)
        self.state.epoch += 1
        self.state.seconds += seconds
        if better:
            self.state.best, self.state.best_epoch = score, epoch
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        self.state.log.append({
            "epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], "train_loss": train_loss,
            "valid_loss": self._valid_loss(pred), self.competition.metric: score, "best": float(better),
            "seconds": round(seconds, 2), "images_per_second": round(len(self.data.train) / seconds, 1),
        })  # fmt: skip
        atomic.write_csv(self.folder / f"fold{self.fold}_log.csv", pd.DataFrame(self.state.log), "%.6g")
        self._save()
        note(
            f"fold {self.fold}  epoch {epoch + 1:>3}/{self.recipe.train.epochs}  train loss {train_loss:.4f}  "
            f"valid {self.competition.metric} {score:.4f}{'  best' if better else ''}  {seconds:.1f} s"
        )

    def _train(self, epoch: int) -> float:
        self.network.train()
        total, seen = 0.0, 0
        bar = tqdm(
            self.batches.epoch(epoch),
            total=len(self.batches),
            desc=f"fold {self.fold} epoch {epoch + 1}",
            unit="batch",
            leave=False,
            disable=None,
        )
        for step, batch in enumerate(bar):
            self.schedule.step_update(epoch * self.steps + step)
            images = models.to_device(batch.images, self.device)
            target = self._soft_target(torch.from_numpy(batch.rows).to(self.device))
            images, target = mix(
                images, target, self.recipe, np.random.default_rng([self.recipe.seed, self.fold, epoch, step, 1])
            )
            with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
                logits = self.network(images)
            loss = self.loss(logits.float(), target)
            value = float(loss.detach())  # a device sync a step; it keeps the bar and the NaN check honest
            if not math.isfinite(value):
                raise UserError(
                    f"fold {self.fold}, epoch {epoch + 1}: the loss is {value}; lower train.lr "
                    f"(now {self.recipe.train.lr:g}) and run again with --restart"
                )
            self.scaler.scale(loss).backward()
            if self.recipe.train.clip_grad is not None:
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.train.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            total, seen = total + value * len(batch.rows), seen + len(batch.rows)
            bar.set_postfix(loss=f"{total / seen:.4f}", refresh=False)
        return total / max(1, seen)

    def _soft_target(self, rows: Tensor) -> Tensor:
        target, smooth = self.target[rows], self.recipe.train.label_smoothing
        if self.competition.task == "multiclass":
            classes = len(self.data.names)
            return F.one_hot(target, classes).float() * (1 - smooth) + smooth / classes
        target = target.reshape(len(rows), -1)
        return target if self.competition.task == "regression" else target * (1 - smooth) + smooth / 2

    def _predict(self, where: np.ndarray, label: str) -> np.ndarray:
        return infer.predict(self.network, self.data.images, where, self.competition.task, self.recipe, label)

    def _score(self, pred: np.ndarray) -> float:
        table = oof.table(self.competition, self.data.names, self.data.valid, pred, self.fold)
        return oof.score(self.competition, table, self.data.valid)

    def _valid_loss(self, pred: np.ndarray) -> float:
        target, p = self.data.valid_target, np.clip(pred.astype(float), 1e-7, 1 - 1e-7)
        if self.competition.task == "multiclass":
            return float(-np.log(p[np.arange(len(p)), target]).mean())
        target = target.reshape(len(p), -1)
        if self.competition.task == "regression":
            return float(((pred - target) ** 2).mean())
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())

    def _is_better(self, score: float) -> bool:
        if self.recipe.train.checkpoint == "last" or math.isnan(self.state.best):
            return True
        gain = score - self.state.best
        return gain > 0 if metrics.greater_is_better(self.competition.metric) else gain < 0

    # --- saved and continued ------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.folder / f"fold{self.fold}.ckpt"

    def _save(self) -> None:
        state = {
            "key": digest(settings(self.recipe)), "state": vars(self.state), "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "best": self.best_weights,
        }  # fmt: skip
        with atomic.replacing(self._checkpoint) as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Take up the checkpoint of the same recipe, if there is one."""
        if not self._checkpoint.exists():
            return
        try:
            saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            note(f"fold {self.fold}: {self._checkpoint} is damaged ({type(error).__name__}); the fold starts anew")
            return
        if saved["key"] != digest(settings(self.recipe)):
            note(f"fold {self.fold}: the checkpoint is of another recipe; the fold starts anew")
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.state, self.best_weights = State(**saved["state"]), saved["best"]
        torch.set_num_threads(self.state.threads)  # of another machine, perhaps: the bits depend on it
        note(f"fold {self.fold}: continues after epoch {self.state.epoch} of {self.recipe.train.epochs}")

    def finish(self) -> dict[str, Any]:
        """Predict validation and test rows with the chosen epoch; write the fold's files, the OOF table last."""
        self.network.load_state_dict(self.best_weights)
        stem = self.folder / f"fold{self.fold}"
        valid = self._predict(self.data.where("valid"), "valid")
        where = self.data.where("test")
        test = self._predict(where, "test")
        models.save_weights(self.network, stem.with_suffix(".safetensors"))
        oof.write_table(
            oof.table(self.competition, self.data.names, self.data.test, test),
            self.folder / f"fold{self.fold}_test.csv",
        )
        table = oof.table(self.competition, self.data.names, self.data.valid, valid, self.fold)
        oof.write_table(table, stem.with_suffix(".csv"))
        self._checkpoint.unlink(missing_ok=True)
        missing = self.data.test["id"].to_numpy()[where < 0].tolist()
        if missing:
            note(
                f"fold {self.fold}: {len(missing)} of {len(where)} test images can't be read ({missing[0]}"
                f"{', ...' if len(missing) > 1 else ''}): predicted as the mean of the others"
            )
        return {
            "seconds": round(self.state.seconds, 1),
            "epochs": self.state.epoch,
            "threads": self.state.threads,
            "best_epoch": self.state.best_epoch + 1,
            "unreadable_test": missing,
        }


def loss_for(task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, soft targets) -> scalar: cross-entropy, per-output binary cross-entropy, or squared error."""
    if task == "multiclass":
        return F.cross_entropy
    return F.mse_loss if task == "regression" else F.binary_cross_entropy_with_logits


def mix(images: Tensor, target: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang 2018) or CutMix (Yun 2019) of a uint8 batch with its own permutation, each with its probability."""
    a, draw = recipe.augment, rng.random()
    if draw >= a.mixup + a.cutmix or len(images) < 2:
        return images, target
    other = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if draw < a.mixup:
        share = float(rng.beta(0.4, 0.4))
        mixed = share * images.float() + (1 - share) * images[other].float()
        return mixed.round().to(torch.uint8), share * target + (1 - share) * target[other]
    height, width = images.shape[1:3]
    side = math.sqrt(1 - float(rng.beta(1.0, 1.0)))
    rows, columns = int(height * side), int(width * side)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    pasted = images.clone()
    pasted[:, top : top + rows, left : left + columns] = images[other, top : top + rows, left : left + columns]
    share = 1 - rows * columns / (height * width)
    return pasted, share * target + (1 - share) * target[other]


def _set_units(network: Network, competition: Competition, data: FoldData) -> None:
    if competition.task == "regression":
        network.shift.fill_(float(data.train_target.mean()))
        network.scale.fill_(max(float(data.train_target.std()), 1e-6))
    else:
        models.start_at_base_rate(network, data.train_target, len(data.names))


def _seed(recipe: Recipe, fold: int, epoch: int = -1) -> int:
    return int(np.random.SeedSequence([recipe.seed, fold, epoch + 1]).generate_state(1)[0])
