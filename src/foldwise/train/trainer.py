"""Train one fold: plain PyTorch, saved inside the epoch and after it, the chosen weights' predictions as tables.

Everything random depends on (seed, fold, epoch, step) alone, so a run that was killed and continued writes the same
bytes on a CPU as one that was not. Under torchrun every rank runs this; rank 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from foldwise import augment, metrics
from foldwise.core.cli import note, terminated
from foldwise.core.files import write_csv, write_json, write_sealed
from foldwise.core.progress import Bar
from foldwise.core.ranks import current_ranks
from foldwise.data import cache, oof, top
from foldwise.data.batches import Batches
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.data.runs import check_folds
from foldwise.model import checkpoint, precision, weights
from foldwise.model.device_images import DeviceImages, on_the_device
from foldwise.model.finetune import count_parameters, unfreeze
from foldwise.model.network import Network
from foldwise.model.predict import pick_device, predict_rows, say_unreadable
from foldwise.model.transfer import DeviceBatch, Timed, on_device
from foldwise.train import fold_data, kept_features, losses
from foldwise.train.logger import Logger
from foldwise.train.optim import make_schedule
from foldwise.train.state import new_state
from foldwise.train.step import Stepper, seed

WAITED = 0.1  # share of an epoch's time spent on waiting for the loader above which the GPU augments by itself


def as_they_are(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In place of augmentation."""
    return features


class OutOfTime(Exception):
    """The session's hours are over; everything is saved, and the same command continues."""


def dry_run(competition: Competition, recipe: Recipe, fold: int, fold_table: pd.DataFrame) -> None:
    """Make everything that a fold needs and throw it away: UserError now, rather than after old results are cleared."""
    Trainer(competition, recipe, fold, fold_table, Path())


class Trainer:
    """One fold's data, state and steps, to be `run`.

    It writes fold<K>.csv, fold<K>_test.csv, fold<K>.safetensors, fold<K>_log.csv and fold<K>.json into `folder`, and
    continues from fold<K>.ckpt where one of the same recipe lies there, also inside an epoch. `deadline`
    (time.monotonic seconds): everything is saved and OutOfTime raised before it. `after`: folds that will follow here.
    """

    def __init__(
        self,
        competition: Competition,
        recipe: Recipe,
        fold: int,
        fold_table: pd.DataFrame,
        folder: Path,
        deadline: float | None = None,
        after: int = 0,
    ) -> None:
        self.competition, self.recipe, self.fold, self.folder = competition, recipe, fold, folder
        self.after = after
        self.deadline, self.ranks = deadline, current_ranks()
        self.data = fold_data.gather(competition, recipe, fold, fold_table)
        self.device = pick_device(recipe)
        torch.manual_seed(seed(recipe, fold))
        other = recipe.model.init_from
        if other:
            check_folds(competition, other, fold_table)
        beginning = competition.runs() / other / f"fold{fold}.safetensors" if other else None
        self.state = new_state(recipe, self.data, beginning, self.device)
        self.progress = self.state.progress
        self.loader = self._batches(0)
        self.resident: DeviceImages | None = None
        self.schedule = make_schedule(recipe.train, len(self.loader))
        self.stepper = Stepper(recipe, fold, self.data, self.state, self.schedule, self.device)
        self.saved_at = self.clock = time.monotonic()
        self.save_seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Train, validate and predict the fold, from where it was left; its facts."""
        self.start()
        while not self.done:
            self.run_epoch()
        return self.finish()

    @property
    def done(self) -> bool:
        """Whether no epoch is left."""
        return self.progress.epoch >= self.recipe.train.epochs or self.progress.stopped

    @property
    def _stem(self) -> Path:
        return self.folder / f"fold{self.fold}"

    def _say(self, text: str) -> None:
        if not self.ranks.rank:
            note(f"fold {self.fold}{text}")

    # --- start ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Continue from a checkpoint, or choose how to compute and save the beginning."""
        network, progress = self.state.network, self.progress
        learn, every = count_parameters(network)
        some = "" if learn == every else f"{learn / 1e6:.2f} learn of "
        devices = f", {self.ranks.size} processes" if self.ranks.size > 1 else ""
        self._say(
            f": {len(self.data.train)} train, {len(self.data.valid)} valid, {len(self.data.test)} test rows; "
            f"{some}{every / 1e6:.2f} M parameters; {self.device.type}{devices}"
        )
        resumed = self.state.resume(self._stem.with_suffix(".ckpt"), self.recipe, self.fold)
        if resumed:
            inside = f", step {progress.step} of {len(self.loader)} of the next" if progress.step else ""
            self._say(f": continues after epoch {progress.epoch} of {self.recipe.train.epochs}{inside}")
            self._write_log()  # a kill may have come between the checkpoint and the log
        elif self.ranks.size == 1:  # ranks must compute alike: no probe of their own
            progress.precision = precision.choose(network, self.recipe, self.device, self.stepper.metadata).name
        self.stepper.precision = precision.named(progress.precision, self.recipe, self.device)
        progress.precision = self.stepper.precision.name
        for module in filter(None, (network, self.state.average.kept)):
            self.stepper.precision.to_memory_format(module)
        if kept_features.stay_alike(network, self.recipe) and self.ranks.size == 1:
            images = kept_features.keep_features(network, self.data.images, self.recipe, self.stepper.precision)
            self.data = replace(self.data, images=images)
            self.loader = self._batches(0)
        if not learn:  # mode as_is: there is nothing to train
            progress.epoch, self.state.best_weights = self.recipe.train.epochs, self.state.weights()
        self.logger = Logger(self.recipe, self.folder, self.fold) if not self.ranks.rank else None

    def _batches(self, epoch: int) -> Batches:
        """The training rows in batches, at the epoch's image size."""
        t, a, recipe = self.recipe.train, self.recipe.augment, self.recipe
        size = t.sizes[min(epoch * len(t.sizes) // t.epochs, len(t.sizes) - 1)] if t.sizes else recipe.image_size
        images = (
            self.data.images if size == recipe.image_size else cache.load_cache(self.competition, size, recipe.crop)
        )
        flips = "none" if self.data.targets.mirror else a.flips
        ops = augment.train_ops(a.preset, size, flips, a.randaugment, a.strength, a.ops)
        if images.holds_features:
            ops = as_they_are
        return Batches(
            images,
            images.rows_of(self.data.train),
            t.batch_size,
            ops,
            (recipe.seed, self.fold),
            t.loaders,
            self.data.sample_weights(t.sampling),
            (self.ranks.rank, self.ranks.size),
        )

    # --- an epoch ---------------------------------------------------------------------------------------------

    def run_epoch(self) -> None:
        """What is left of one pass over the training rows, then validation; then everything is saved."""
        epoch, first, started = self.progress.epoch, self.progress.step, time.monotonic()
        unfreeze(self.state.network, self.recipe, epoch)
        self._train(epoch)
        trained = time.monotonic()
        self._stop_in_time(self.progress.predict_seconds * len(self.data.valid))
        self.state.average.after_epoch(epoch)  # no save lies between this and the epoch's count: none is averaged twice
        row = self._validate(epoch)
        rows = max(1, len(self.loader) - first) * self.recipe.train.batch_size * self.ranks.size
        row["seconds"] = round(time.monotonic() - started, 2)
        row["images_per_second"] = round(rows / max(1e-9, trained - started), 1)
        self.progress.log.append(row)
        self.progress.epoch, self.progress.step, self.progress.loss, self.progress.rows = epoch + 1, 0, 0.0, 0
        patience = self.recipe.train.early_stopping
        self.progress.stopped = patience is not None and self.progress.epochs_without_improvement >= patience
        self._save()
        self._report(row)

    def _train(self, epoch: int) -> None:
        """Steps of one epoch, from progress.step on."""
        self.state.network.train()
        if self.recipe.train.sizes:
            self.loader = self._batches(epoch)
        network, progress = self.stepper.wrapped(), self.progress
        batches = Timed(self._epoch(epoch))
        bar = Bar(
            batches,
            total=len(self.loader),
            initial=progress.step,
            desc=f"fold {self.fold} epoch {epoch + 1}",
            unit="batch",
            leave=False,
            disable=True if self.ranks.rank else None,
        )
        begun, first = time.monotonic(), progress.step
        for step, batch in enumerate(bar, start=first):
            last = step + 1 == len(self.loader)
            move = (step + 1) % self.recipe.train.accumulate == 0 or last
            self.stepper.step(network, batch, epoch, step, move)
            progress.step = step + 1
            bar.set_postfix(loss=f"{progress.loss / max(1, progress.rows):.4f}", refresh=False)
            if move and self.stepper.looked and not last:  # a checkpoint holds no gradients, and all of the sums
                self._save_inside((time.monotonic() - begun) / (step + 1 - first))
        self.stepper.look()
        self._choose_where_to_augment(batches.seconds / (time.monotonic() - begun))

    def _epoch(self, epoch: int) -> Iterator[DeviceBatch]:
        """The epoch's batches from the next step on, augmented by threads or on the device."""
        step, a = self.progress.step, self.recipe.augment
        if self.progress.on_device and self.resident is None:
            self.resident = on_the_device(
                self.loader, augment.operations(a.preset, a.flips, a.strength, a.ops), self.device
            )
        if self.resident is None:
            return on_device(self.loader.epoch(epoch, step), self.device)
        return self.resident.epoch(epoch, step)

    def _choose_where_to_augment(self, waited: float) -> None:
        """A GPU that waited for the loader, a share of the epoch's time, augments from the next one on."""
        images = self.data.images
        plain = not (self.recipe.train.sizes or self.recipe.augment.randaugment or self.progress.on_device)
        plain = plain and not images.holds_features and images.channels == 3 and not self.data.targets.mirror
        if self.device.type == "cuda" and self.ranks.size == 1 and plain and waited > WAITED:
            self.progress.on_device = True
            self._say(f": {waited:.0%} of the time went by waiting for images: the GPU augments them where it can")

    def _report(self, row: dict[str, float]) -> None:
        """The epoch's line in the log, for the logger and on the terminal."""
        if self.logger is None:
            return
        progress, epoch, metric = self.progress, int(row["epoch"]), self.competition.metric
        self._write_log()
        self.logger.write(epoch, {name: value for name, value in row.items() if name != "epoch"})
        self._say(
            f"  epoch {epoch:>3}/{self.recipe.train.epochs}  loss {row['train_loss']:.4f}  {metric} {row[metric]:.4f}  "
            f"{row['seconds']:.1f} s{self._expected()}{'  best' if row['best'] else ''}"
        )
        if progress.stopped:
            self._say(f": stops early, {progress.epochs_without_improvement} epochs without gain")

    def _write_log(self) -> None:
        if self.progress.log and not self.ranks.rank:
            write_csv(self.folder / f"fold{self.fold}_log.csv", pd.DataFrame(self.progress.log), "%.6g")

    # --- validate ---------------------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> dict[str, float]:
        """The epoch's numbers for the log; the weights are kept where they are the best, or end a cycle."""
        started = time.monotonic()
        pred = self._predict("valid")
        self.progress.predict_seconds = (time.monotonic() - started) / max(1, len(self.data.valid))
        score = oof.score(self.competition, self._valid_table(pred), self.data.valid)
        better = self._keep_best(score, epoch)
        if self._is_snapshot(epoch):
            self._keep_snapshot(pred, epoch)
        return {
            "epoch": epoch + 1,
            "lr": self.state.optimizer.param_groups[-1]["lr"],
            "train_loss": self.progress.loss / max(1, self.progress.rows),
            "valid_loss": self._valid_loss(pred),
            self.competition.metric: score,
            "best": float(better),
        }

    def _predict(self, split: str, network: Network | None = None) -> np.ndarray:
        return predict_rows(
            network or self.state.average.current,  # type: ignore[arg-type]
            self.data.images,
            self.data.cache_rows(split),
            self.data.targets,
            self.recipe,
            f"fold {self.fold} {split}",
            self.data.metadata(split),
            self.stepper.precision,
            self.data.prior,
        )

    def _valid_loss(self, pred: np.ndarray) -> float:
        if self.data.targets.many:
            return top.score(metrics.resolve("log_loss"), self.data.valid_target, pred)
        return losses.valid_loss(self.competition.task, self.data.valid_target, pred)

    def _valid_table(self, pred: np.ndarray) -> pd.DataFrame:
        return oof.prediction_table(self.competition, self.data.targets.names, self.data.valid, pred, self.fold)

    def _keep_best(self, score: float, epoch: int) -> bool:
        t, progress = self.recipe.train, self.progress
        gain = score - progress.best
        first = math.isnan(progress.best)
        better = first or (gain > 0 if self.competition.scorer().greater_is_better else gain < 0)
        progress.epochs_without_improvement = 0 if better else progress.epochs_without_improvement + 1
        if better:
            progress.best = score
        elif t.schedule == "plateau" and progress.epochs_without_improvement % t.patience == 0:
            progress.lr_drops += 1
        if better or t.checkpoint == "last":
            progress.best_epoch = epoch
            self.state.best_weights = self.state.weights()
        return better

    def _is_snapshot(self, epoch: int) -> bool:
        kept, epochs = self.recipe.train.snapshots, self.recipe.train.epochs
        return self.schedule.cycle_ends(epoch) if kept is True else epoch >= epochs - kept

    def _keep_snapshot(self, pred: np.ndarray, epoch: int) -> None:
        """The weights at the end of a cycle, or of a late epoch, with their own OOF table beside the run's."""
        self.state.snapshots.append(self.state.weights())
        if not self.ranks.rank:
            number = len(self.state.snapshots)
            (self.folder / "snapshots").mkdir(exist_ok=True)
            oof.write_table(self._valid_table(pred), self.folder / "snapshots" / f"fold{self.fold}_{number}.csv")
            self._say(f": snapshot {number} kept after epoch {epoch + 1}")

    # --- deadline ---------------------------------------------------------------------------------------------

    def _prediction_time(self) -> float:
        """Seconds that validation and test rows will take, by the last validation."""
        return self.progress.predict_seconds * (len(self.data.valid) + len(self.data.test))

    def _expected(self) -> str:
        """When this fold and those after it end, at the pace so far."""
        epochs = self.recipe.train.epochs
        left = epochs - self.progress.epoch + self.after * epochs
        if not left:
            return ""
        pace = float(np.mean([row["seconds"] for row in self.progress.log[-3:]]))  # the first epochs warm caches up
        seconds = left * pace + (1 + self.after) * self._prediction_time()
        end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        late = self.deadline is not None and time.monotonic() + seconds > self.deadline
        what = "all end" if self.after else "ends"
        return f"; {what} {end}{', after --hours: it will be continued' if late else ''}"

    def _stop_in_time(self, seconds: float) -> None:
        """Save and raise OutOfTime if what comes next takes `seconds` and the deadline lies before its end."""
        margin = 0.3 * seconds + 3  # a busy machine is slower than it was, and the last save takes a moment
        late = terminated() or (self.deadline is not None and time.monotonic() + seconds + margin > self.deadline)
        if self.ranks.size > 1:  # one clock for all
            flag = torch.tensor(float(late), device=self.device)
            dist.broadcast(flag, 0)
            late = bool(flag)
        if late:
            self._save()
            why = "stopped" if terminated() else "--hours are nearly over"
            raise OutOfTime(
                f"{why}: fold {self.fold}: {self.progress.epoch} of {self.recipe.train.epochs} epochs and "
                f"{self.progress.step} of {len(self.loader)} steps of the next are done and saved"
            )

    # --- save -------------------------------------------------------------------------------------------------

    def _save_inside(self, pace: float) -> None:
        """A checkpoint inside the epoch every save_minutes, and before the time is over; pace: seconds a step."""
        if self.deadline is not None or (terminated() and self.ranks.size == 1):
            self._stop_in_time(pace * self.recipe.train.accumulate + self.save_seconds)
        if time.monotonic() - self.saved_at >= 60 * self.recipe.train.save_minutes:
            self._save()

    def _save(self) -> None:
        start = time.monotonic()
        self.progress.seconds += start - self.clock
        self.clock = start
        if not self.ranks.rank:
            self.state.save(self._stem.with_suffix(".ckpt"), self.recipe)
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - start

    # --- finish -----------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Predict validation and test rows with the chosen weights; write the fold's files, the OOF table last."""
        self._stop_in_time(self._prediction_time())
        valid, test = self._predict_with(self.state.snapshots or [self.state.best_weights])
        readable = self.data.cache_rows("test") >= 0
        facts = {
            "seconds": round(self.progress.seconds, 1),
            "ended": round(time.time(), 1),
            "epochs": self.progress.epoch,
            "threads": self.progress.threads,
            "precision": self.progress.precision,
            "best_epoch": self.progress.best_epoch + 1,
            "skipped_steps": self.progress.bad_steps,
            "micro_batches": self.progress.micro_batches,
            "augmented_on_device": self.resident is not None,
            "snapshots": len(self.state.snapshots),
            "unreadable_test": say_unreadable("test", self.data.test["id"].tolist(), readable),
        }
        if not self.ranks.rank:
            self._write(valid, test, facts)
        return facts

    def _predict_with(self, chosen: list[dict[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        """(valid, test) predictions, the mean over the chosen weights; said where it is no better than the last's."""
        network, each = self.state.network, []
        for one in chosen:
            network.load_state_dict(one)
            each.append((self._predict("valid", network), self._predict("test", network)))
        parts = [list(part) for part in zip(*each, strict=True)]
        valid, test = (top.mean(part) if self.data.targets.many else np.mean(part, axis=0) for part in parts)
        mean, last = (oof.score(self.competition, self._valid_table(p), self.data.valid) for p in (valid, each[-1][0]))
        if last > mean if self.competition.scorer().greater_is_better else last < mean:
            self._say(
                f": the mean of {len(chosen)} snapshots has {mean:.4f}, the last alone {last:.4f}: they do not help "
                "here (train.snapshots=false)"
            )
        return valid, test

    def _write(self, valid: np.ndarray, test: np.ndarray, facts: dict[str, Any]) -> None:
        network, snapshots, targets = self.state.network, self.state.snapshots, self.data.targets
        if self.data.encoder is not None:
            write_sealed(self.folder / f"fold{self.fold}_metadata.json", self.data.encoder.state())
        several = snapshots if len(snapshots) > 1 else []  # one is the fold's weights
        for number, snapshot in enumerate(several, start=1):
            network.load_state_dict(snapshot)
            weights.save(network, self.folder / f"fold{self.fold}_snapshot{number}.safetensors", targets.learnt)
        weights.save(network, self._stem.with_suffix(".safetensors"), targets.learnt)  # loaded last by _predict_with
        test_table = oof.prediction_table(self.competition, targets.names, self.data.test, test)
        oof.write_table(test_table, self.folder / f"fold{self.fold}_test.csv")
        write_json(self._stem.with_suffix(".json"), facts)
        oof.write_table(self._valid_table(valid), self._stem.with_suffix(".csv"))
        checkpoint.remove(self._stem.with_suffix(".ckpt"))
