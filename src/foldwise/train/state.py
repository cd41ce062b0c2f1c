"""All that moves while one fold is trained: what its checkpoint holds, and what brings it back to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.core.files import digest
from foldwise.core.ranks import current_ranks
from foldwise.core.schema import nearest
from foldwise.data.recipe import Recipe, recipe_settings
from foldwise.model import checkpoint, lora, precision
from foldwise.model.finetune import checkpoint_gradients, init_from, parameter_groups, start_at_base_rate
from foldwise.model.network import Network, create_network
from foldwise.train.fold_data import FoldData
from foldwise.train.optim import Averaged

FORMAT = 2  # raise it when a checkpoint's parts or their names change: folds of older ones start anew
MOVING = ("network", "optimizer", "scaler", "average")  # have a state_dict of their own


@dataclass
class Progress:
    """How far the training of a fold has come, and what it found on the way."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # steps of the next one that are done
    loss: float = 0.0  # sum over the rows of those steps
    rows: int = 0
    best: float = float("nan")
    best_epoch: int = -1
    epochs_without_improvement: int = 0
    lr_drops: int = 0  # by schedule plateau
    lr_scale: float = 1.0  # halved at every bad step
    bad_steps: int = 0  # with a loss or gradient that was no number, in all
    consecutive: int = 0  # of those, up to the last step
    on_device: bool = False  # images are augmented on the GPU, which had to wait for them
    micro_batches: int = 1  # a batch is computed in so many, where memory does not hold it whole
    seconds: float = 0.0
    predict_seconds: float = 0.0  # of the last validation, a row
    threads: int = field(default_factory=torch.get_num_threads)
    precision: str = ""
    stopped: bool = False  # by early stopping
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass
class State:
    """One fold's network, optimizer, gradient scaler, average of weights and progress."""

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Averaged
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)

    def weights(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of the weights that predict now."""
        current = self.average.current.state_dict()
        return {key: value.detach().cpu().clone() for key, value in current.items()}

    def save(self, path: Path, recipe: Recipe) -> None:
        """Write all of it; `resume` of the same recipe takes it up."""
        parts = {name: getattr(self, name).state_dict() for name in MOVING}
        parts |= {"progress": vars(self.progress), "best_weights": self.best_weights, "snapshots": self.snapshots}
        checkpoint.save({"key": _key(recipe), **parts}, path)

    def resume(self, path: Path, recipe: Recipe, fold: int) -> bool:
        """Take up the checkpoint of the same recipe, if there is one; why one that lies there is not taken is said."""
        saved = checkpoint.load(path)
        if saved is None or saved["key"] != _key(recipe):
            if checkpoint.exists(path):
                why = (
                    "no whole checkpoint is left" if saved is None else "the checkpoint is of another recipe or version"
                )
                note(f"fold {fold}: {why}; the fold starts anew")
            return False
        for group, own in zip(saved["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            group |= {key: own[key] for key in ("fused",) if key in own}  # of this device, not of the one before
        for name in MOVING:
            getattr(self, name).load_state_dict(saved[name])
        vars(self.progress).update(saved["progress"])
        self.best_weights, self.snapshots = saved["best_weights"], saved["snapshots"]
        torch.set_num_threads(self.progress.threads)  # of another machine, perhaps: the bits depend on it
        return True


def _key(recipe: Recipe) -> str:
    return digest({"format": FORMAT, **recipe_settings(recipe)})


def new_state(recipe: Recipe, data: FoldData, file: Path | None, device: torch.device) -> State:
    """A fold's beginning, drawn by torch's seed; file: the fold's weights in the run of `model.init_from`."""
    features = 0 if data.encoder is None else len(data.encoder.names)
    network = create_network(recipe, data.targets.outputs, features, data.targets.learnt)
    if data.auxiliary is not None:
        network.learn_beside(data.auxiliary.of_rows, data.auxiliary.of_slices)
    _set_units(network, data)
    if file is not None:
        init_from(network, file)
    lora.add(network, recipe)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(network)
    network.to(device)
    if recipe.train.sync_bn and current_ranks().size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    half = precision.of_device(recipe, device).half
    return State(
        network,
        _optimizer(network, recipe, device),
        torch.amp.GradScaler(device.type, enabled=half == torch.float16),  # bf16 has fp32's range: it needs none
        Averaged(network, recipe.train),
    )


def _set_units(network: Network, data: FoldData) -> None:
    if data.targets.task == "regression":
        network.shift.fill_(float(data.train_target.mean()))
        network.scale.fill_(max(float(data.train_target.std()), 1e-6))  # a constant target has no unit of its own
    elif data.targets.activation in {"softmax", "sigmoid"}:
        start_at_base_rate(network, data.train_target, len(data.targets.learnt), data.targets.task == "soft")


def _optimizer(network: Network, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    t = recipe.train
    if t.optimizer not in list_optimizers():
        hint = nearest(t.optimizer, map(str, list_optimizers()))
        raise UserError(f"train.optimizer={t.optimizer}: timm has none such{hint}")
    groups: list[dict[str, Any]] = parameter_groups(network, recipe) or [{"params": [torch.zeros(())]}]  # as_is
    # one pass over all weights, which a flag on the device can skip; SGD's leaves its momentum undefined in that case
    more: dict[str, Any] = {"fused": True} if device.type == "cuda" and t.optimizer in {"adam", "adamw"} else {}
    return create_optimizer_v2(groups, opt=t.optimizer, lr=t.lr, weight_decay=t.weight_decay, **more)
