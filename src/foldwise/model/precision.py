"""How a step computes: number format and memory layout, by the device, and on a CPU by a short probe."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.core import parallel
from foldwise.core.files import digest, locked, write_json
from foldwise.data.recipe import Recipe
from foldwise.model.network import Network

N = TypeVar("N", bound=nn.Module)

MARGIN = 1.15  # another precision has to be this much faster than plain: a probe on a busy machine errs
STEPS = {"plain": (None, False), "channels_last": (None, True), "bf16": (torch.bfloat16, True)}


@dataclass(frozen=True)
class Precision:
    """half: what autocast computes in, or None. channels_last: memory layout of weights and images."""

    name: str
    half: torch.dtype | None
    channels_last: bool

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context in which the network runs forward."""
        return torch.autocast(device.type, dtype=self.half, enabled=self.half is not None)

    def to_memory_format(self, network: N) -> N:
        """The network's weights in this layout."""
        return network.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def of_device(recipe: Recipe, device: torch.device) -> Precision:
    """On a GPU bf16 where it is native, else fp16 (a T4 'supports' bf16 only by emulation); on a CPU as named.

    `train.precision: auto` gives plain here; `choose` probes.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        half = (torch.bfloat16 if native else torch.float16) if recipe.train.amp else None
        name = "fp32" if half is None else str(half).removeprefix("torch.")
        return Precision(name, half, recipe.train.channels_last)
    name = "plain" if recipe.train.precision == "auto" else recipe.train.precision
    return Precision(name, *STEPS[name])


def named(name: str, recipe: Recipe, device: torch.device) -> Precision:
    """The precision of that name, as a run's record has it, where this device knows it; else of_device."""
    return Precision(name, *STEPS[name]) if device.type == "cpu" and name in STEPS else of_device(recipe, device)


def choose(network: Network, recipe: Recipe, device: torch.device, metadata: Tensor | None = None) -> Precision:
    """of_device, and on a CPU by `train.precision: auto` the fastest step as a probe of this machine found it.

    The finding is remembered in ~/.cache/foldwise ($XDG_CACHE_HOME), so that the same machine computes the same bits
    every time, and folds side by side compute alike. The network is left as it was.
    """
    if device.type == "cuda" or recipe.train.precision != "auto":
        return of_device(recipe, device)
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldwise" / "steps.json"
    model = recipe.model.model_dump(mode="json", exclude={"weights", "pretrained", "init_from"})
    size = {"image_size": recipe.image_size, "threads": torch.get_num_threads()}
    key = digest({**size, "model": model, "torch": torch.__version__, "cpu": _cpu()})
    with ExitStack() as stack:
        with suppress(OSError):  # a read-only home: it is probed anew next time
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_name("steps.lock")))  # two folds that probe at once slow each other
        known = _read(path)
        if known.get(key) not in STEPS:
            seconds = probe(network, recipe.image_size, metadata)
            best = min(seconds, key=lambda name: seconds[name])
            known[key] = best if seconds["plain"] > MARGIN * seconds[best] else "plain"
            with suppress(OSError):
                write_json(path, known)
    return Precision(known[key], *STEPS[known[key]])


def probe(
    network: Network, image_size: int, metadata: Tensor | None = None, batch: int = 8, rounds: int = 3
) -> dict[str, float]:
    """{precision: least seconds of a training step} on made images; they take turns. The network is left as it was.

    metadata: some rows, float32 (at least `batch`, F), for a fusion network.
    """
    stack = network.slices and network.slices.stack
    channels = stack.series * stack.slices * stack.channels if stack else max(3, network.mean.shape[1])
    batch = 2 if stack else batch  # of studies, each of many pictures
    shape = (batch, image_size, image_size, channels)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    training, random = network.training, torch.get_rng_state()
    seconds = dict.fromkeys(STEPS, float("inf"))
    network.train()
    for turn in range(rounds + 1):
        for name, (half, channels_last) in STEPS.items():
            precision = Precision(name, half, channels_last)
            precision.to_memory_format(network)
            start = time.perf_counter()
            with precision.autocast(torch.device("cpu")):
                logits = network(images, None if metadata is None else metadata[:batch])
            F.mse_loss(logits.float(), torch.zeros_like(logits, dtype=torch.float32)).backward()
            if turn:  # the first of each warms up
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)
    network.train(training)
    torch.set_rng_state(random)
    return seconds


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line for line in text.splitlines() if line.startswith(("model name", "flags"))][:2]
    except OSError:
        names = [platform.processor()]
    return f"{' '.join(names)} {parallel.cores()}"


def _read(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
