"""What of a network learns, how fast, and from which weights it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from timm.models._manipulate import group_with_matcher
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from foldwise import UserError
from foldwise.core.cli import note
from foldwise.data.recipe import Recipe, Train
from foldwise.model import weights
from foldwise.model.network import Network, PretrainedNetwork, classifier_names


def start_at_base_rate(network: Network, target: np.ndarray, classes: int, shares: bool = False) -> None:
    """Set the new head's bias to the training rows' log-odds, so that training does not begin by unlearning 0.5.

    target: int64 class numbers (N,), 0/1 (N,) or (N, C), or `shares` (N, C) that sum to one. The prior of Lin 2017
    (focal loss, section 3.3). A pretrained head used as it is stays as it is.
    """
    if isinstance(network, PretrainedNetwork) or network.head.classifier.bias is None:
        return
    if target.dtype.kind == "i" or shares:
        counts = target.sum(axis=0) if shares else np.bincount(target, minlength=classes)
        bias = np.log((counts + 0.5) / (len(target) + 0.5 * classes))
    else:
        cells = target.reshape(len(target), -1)
        fraction = (np.nansum(cells, axis=0) + 0.5) / (np.isfinite(cells).sum(axis=0) + 1)
        bias = np.log(fraction / (1 - fraction))
    with torch.no_grad():
        network.head.classifier.bias.copy_(torch.from_numpy(bias).float())


def init_from(network: Network, path: Path) -> None:
    """Fill the network from another run's fold<K>.safetensors: its layers of the same name and shape.

    What stays with this run: normalisation and units. UserError where the file lacks part of the first backbone, whose
    pretrained weights were not looked for; new heads, sub-networks and second backbones start afresh, and it is said.
    """
    if not path.is_file():
        raise UserError(f"model.init_from: no {path}; train that run's fold first")
    state, own = _saved(network, path), network.state_dict()
    wanted = [key for key in own if "." in key]  # without mean, std, scale, shift
    fits = {key: state[key] for key in wanted if key in state and state[key].shape == own[key].shape}
    missing = [key for key in wanted if key.startswith("backbone.") and key not in fits]
    if missing:
        raise UserError(
            f"{path}: does not fit model.name: it has no {missing[0]} of that shape; it is of another model"
        )
    network.load_state_dict(fits, strict=False)
    rest = sorted({".".join(key.split(".")[:2]) for key in wanted if key not in fits})
    note(f"{len(fits)} of {len(wanted)} tensors from {path}" + (f"; new: {', '.join(rest[:6])}" if rest else ""))


def load_weights(network: Network, path: Path) -> None:
    """Weights written by weights.save, strictly."""
    try:
        network.load_state_dict(_saved(network, path))
    except Exception as error:
        raise UserError(
            f"{path}: does not fit the recipe's network: {weights.misfit(error)}; train the fold anew with --restart"
        ) from error


def _saved(network: Network, path: Path) -> dict[str, Tensor]:
    """What weights.save wrote, under today's keys: before format 2 a plain network's classifier lay in its backbone."""
    state = weights.read_state(path)
    if weights.format_of(path) < 2 and not isinstance(network, PretrainedNetwork):
        (name, *others) = classifier_names(network.backbone)
        old = f"backbone.{name}"
        if not others and f"{old}.weight" in state:
            state["head.classifier.weight"] = state.pop(f"{old}.weight").flatten(1)  # some were 1 x 1 convolutions
            state["head.classifier.bias"] = state.pop(f"{old}.bias")
    return state


def unfreeze(network: Network, recipe: Recipe, epoch: int) -> bool:
    """Gradual unfreezing (Howard 2018, arXiv:1801.06146): what learns in this epoch; True where that has changed.

    For `model.unfreeze_epochs` epochs the head alone, then one more of timm's stages from the top every so many. Call
    it before each epoch and after `parameter_groups`, which lists all that will ever learn; parameters without a
    gradient are left alone by the optimizer.
    """
    every = recipe.model.unfreeze_epochs
    if not every:
        return False
    depth = {**_depths("backbone", network.backbone), **_depths("second", network.second)}
    before = count_parameters(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name in network.learns and depth.get(name, 0) * every <= epoch
    network.train(network.training)
    return count_parameters(network) != before


def _depths(prefix: str, backbone: nn.Module | None) -> dict[str, int]:
    """{parameter: 1 in the backbone's top stage, and so on down}."""
    if backbone is None:
        return {}
    layer = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    rank = {stage: k + 1 for k, stage in enumerate(sorted(set(layer.values()), reverse=True))}
    return {f"{prefix}.{name}": rank[stage] for name, stage in layer.items()}


def parameter_groups(network: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """For the optimizer: dicts of params, lr (the peak), lr_scale (which timm's schedules multiply), weight_decay.

    Biases, norms and what timm's model excludes (position tables) have no weight decay. With train.layer_decay each
    layer of a backbone learns slower than the one above it; heads, pools and sub-networks have lr_scale 1. Empty
    where nothing learns (mode as_is).
    """
    t = recipe.train
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name in network.learns
    groups: list[dict[str, Any]] = []
    for body in (network.backbone, network.second):
        if body is None:
            continue
        scale = t.layer_decay ** _layers_below_head(body) if t.layer_decay else 1.0
        for group in _body_groups(body, t):
            groups.append({**group, "lr": t.lr, "lr_scale": group.get("lr_scale", 1.0) * scale})
    rest = {name: part for name, part in network.named_children() if name not in {"backbone", "second"}}
    for group in param_groups_weight_decay(nn.ModuleDict(rest), t.weight_decay):
        groups.append({**group, "lr": t.head_lr or t.lr, "lr_scale": 1.0})
    return [group for group in groups if group["params"]]


def _layers_below_head(body: nn.Module) -> int:
    """1, or 0 where timm counts a part that is left (a norm before the classifier) into the classifier's own layer."""
    names = [name for name, _ in body.named_parameters()]
    classifier = f"{classifier_names(body)[0]}.weight"
    matcher = body.group_matcher()  # type: ignore[operator]
    layer = group_with_matcher(((name, None) for name in [*names, classifier]), matcher, reverse=True)
    return layer[classifier] - max(layer[name] for name in names)


def _body_groups(body: nn.Module, train: Train) -> list[dict[str, Any]]:
    spared = body.no_weight_decay() if hasattr(body, "no_weight_decay") else ()  # type: ignore[operator]
    if train.layer_decay:
        return param_groups_layer_decay(
            body, train.weight_decay, no_weight_decay_list=spared, layer_decay=train.layer_decay
        )
    return param_groups_weight_decay(body, train.weight_decay, no_weight_decay_list=spared)


def checkpoint_gradients(network: Network) -> None:
    """Keep the inputs of blocks alone and compute the rest again for the gradient (Chen 2016, arXiv:1604.06174).

    The same gradients. UserError where timm's model does not know how.
    """
    for body in filter(None, (network.backbone, network.second)):
        try:
            body.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError, NotImplementedError):
            name = type(body).__name__
            raise UserError(f"train.gradient_checkpointing: timm's {name} can't; set it to false") from None


@contextmanager
def counted_once(network: nn.Module) -> Iterator[None]:
    """A backward pass: where activations are made again, batch norms do not count the same pictures twice."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum


def count_parameters(network: Network) -> tuple[int, int]:
    """(that learn, all)."""
    every: Iterable[tuple[int, bool]] = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, learns in every if learns), sum(n for n, _ in every)
