"""Networks: one timm backbone that takes uint8 images as they lie in the cache; freezing; weights from files."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from foldwise import UserError, atomic, config
from foldwise.command import note
from foldwise.competition import KAGGLE_INPUT, REPOSITORY, output_root
from foldwise.schema import nearest


class Network(nn.Module):
    """A timm model behind its normalisation: uint8 (B, S, S, 3) RGB in, logits float (B, outputs) out.

    NHWC bytes are what the cache holds; permuted, they are channels_last, so the conversion costs nothing.
    `scale` and `shift` turn a regression's outputs into the target's units, and do nothing elsewhere.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen: list[nn.Module] = []
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised float (B, 3, S, S), channels_last."""
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.inputs(images)).float() * self.scale + self.shift  # not in fp16

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features before the classifier, float (B, D)."""
        features = self.backbone.forward_features(self.inputs(images))  # type: ignore[operator]
        return self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]

    def train(self, mode: bool = True) -> Network:
        """Frozen parts stay in evaluation mode: their batch-norm statistics must not drift either."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def create(recipe: config.Recipe, outputs: int) -> Network:
    """The recipe's network with `outputs` logits, its weights loaded and its frozen parts frozen."""
    settings = recipe.model
    kwargs: dict[str, Any] = {"num_classes": outputs, **settings.kwargs}
    file = weights_file(settings) if settings.mode != "scratch" and settings.pretrained else None
    if settings.mode != "scratch" and settings.pretrained:
        if file is not None:
            kwargs["pretrained_cfg_overlay"] = {"state_dict": read_state(file)}
        else:
            _offline_if_unreachable()
        kwargs["pretrained"] = True
    backbone = _create(settings.name, kwargs)
    if file is not None:
        _check_covered(backbone, kwargs["pretrained_cfg_overlay"]["state_dict"], file, settings.name)
    _start_head(backbone)
    defaults = getattr(backbone, "pretrained_cfg", {}) or {}
    network = Network(
        backbone,
        settings.mean or defaults.get("mean") or (0.485, 0.456, 0.406),
        settings.std or defaults.get("std") or (0.229, 0.224, 0.225),
    )
    _freeze(network, settings)
    return network.to(memory_format=torch.channels_last) if recipe.train.channels_last else network


def _create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    if name.split(".")[0] not in timm.list_models():
        raise UserError(f"model.name={name}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, **kwargs)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"model.kwargs for {name}: {error}") from None
    except Exception as error:  # hub errors come as many classes: OSError, RuntimeError, hub's own
        if kwargs.get("pretrained") and "pretrained_cfg_overlay" not in kwargs:
            raise UserError(
                f"model.name={name}: its pretrained weights are not on this machine and could not be fetched; put "
                f"{name}.safetensors into {output_root() / 'input' / 'weights'} (on Kaggle: attach a dataset that "
                "holds it), or set model.weights=PATH, or model.pretrained=false"
            ) from error
        raise UserError(f"model.name={name}: could not be made: {' '.join(str(error).split())[:300]}") from error


def _check_covered(backbone: nn.Module, state: dict[str, Tensor], file: Path, name: str) -> None:
    """timm loads what fits and is silent about the rest: a file of another model must not pass for random weights."""
    heads = tuple(f"{head}." for head in _head_names(backbone))
    wanted = [key for key in backbone.state_dict() if not key.startswith(heads)]
    missing = [key for key in wanted if key not in state]
    if len(missing) == len(wanted):
        raise UserError(f"{file}: holds none of the layers of {name}; it is of another model")
    if missing:
        note(f"warning: {file} lacks {len(missing)} of {len(wanted)} tensors of {name}, such as {missing[0]}")


def _start_head(backbone: nn.Module) -> None:
    """Small weights for a new linear head: timm's EfficientNet family draws them from -1..1 where outputs are few."""
    head = backbone.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)


def start_at_base_rate(network: Network, target: np.ndarray, classes: int) -> None:
    """Set the new head's bias to the training rows' log-odds, so that training does not begin by unlearning 0.5.

    target: int64 class numbers (N,), or 0/1 (N,) or (N, C). The prior of Lin 2017 (focal loss, section 3.3).
    """
    head = network.backbone.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.bias is None:
        return
    if target.dtype.kind == "i":
        share = (np.bincount(target, minlength=classes) + 0.5) / (len(target) + 0.5 * classes)
        bias = np.log(share)
    else:
        share = (target.reshape(len(target), -1).sum(axis=0) + 0.5) / (len(target) + 1)
        bias = np.log(share / (1 - share))
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(bias).float())


def weights_file(settings: config.Model) -> Path | None:
    """`weights`, else <model name>.safetensors/.pth/.pt/.bin in input/weights or in an attached Kaggle dataset."""
    if settings.weights is not None:
        for base in (Path(), REPOSITORY, output_root()):
            if (base / settings.weights).is_file():
                return base / settings.weights
        raise UserError(
            f"model.weights={settings.weights}: no such file (looked here, in {REPOSITORY} and in {output_root()})"
        )
    names = {f"{settings.name}{ending}" for ending in (".safetensors", ".pth", ".pt", ".bin")}
    folders = [output_root() / "input" / "weights", REPOSITORY / "input" / "weights"]
    if KAGGLE_INPUT.is_dir():
        folders += [path for path in KAGGLE_INPUT.glob("*") if path.is_dir()]
        folders += [path for path in KAGGLE_INPUT.glob("datasets/*/*") if path.is_dir()]
    for folder in folders:
        for name in sorted(names):
            if (folder / name).is_file():
                return folder / name
    return None


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file read with weights_only=True (no code can run)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: can't be read as weights: {' '.join(str(error).split())[:200]}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()}


def save_weights(network: Network, path: Path) -> None:
    """fold<K>.safetensors, written whole."""
    from safetensors.torch import save_file

    with atomic.replacing(path) as part:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, part)


def load_weights(network: Network, path: Path) -> None:
    """Weights written by save_weights, strictly."""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(f"{path}: does not fit the recipe's network: {' '.join(str(error).split())[:200]}") from error


def _freeze(network: Network, settings: config.Model) -> None:
    if settings.mode not in {"frozen", "partial"}:
        return
    backbone = network.backbone
    modules = [name for name, _ in backbone.named_modules() if name]
    heads = _head_names(backbone)
    start = settings.unfreeze_from if settings.mode == "partial" else None
    if start is not None and start not in modules:
        top = [name for name in modules if name.count(".") <= 1]
        raise UserError(f"model.unfreeze_from={start}: {settings.name} has no such layer{nearest(start, top)}")
    learning = False
    for name, module in backbone.named_modules():
        learning = learning or (start is not None and (name == start or name.startswith(f"{start}.")))
        if learning or any(name == head or name.startswith(f"{head}.") for head in heads):
            continue
        for parameter in module.parameters(recurse=False):  # a block's own too: layer scales, position tables
            parameter.requires_grad = False
        if not list(module.children()):
            network.frozen.append(module)


def _head_names(backbone: nn.Module) -> list[str]:
    classifier = (getattr(backbone, "pretrained_cfg", {}) or {}).get("classifier", "fc")
    return [classifier] if isinstance(classifier, str) else list(classifier)


def _offline_if_unreachable(host: str = "huggingface.co", seconds: float = 3.0) -> None:
    """Without a network, make the hub fail at once instead of after 47 s of retries; its local cache still serves."""
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=seconds).close()
            reached.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # a name server that hangs is not covered by the timeout
    thread.start()
    thread.join(seconds)
    if not reached.is_set():
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True


def count_parameters(network: Network) -> tuple[int, int]:
    """(that learn, all)."""
    every = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(n for n, learns in every if learns), sum(n for n, _ in every)


def to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """A batch's bytes on the device; pinned and asynchronous on a GPU."""
    tensor = torch.from_numpy(images)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
