"""How close a CPU training step comes to the machine: its FLOP/s beside the machine's own best, on one core.

    python bench/flops.py [--models resnet18 ...] [--sizes 96 224] [--batch 16]

A step is forward and backward, as recipes have it; its floating-point operations are three times those of the forward
pass: 2 for a multiply-add of every convolution and linear layer (attention's products of tokens are left out). The
limit is what the same core takes for as many operations at its best: of a matrix product, 2048 x 2048, in the same
number format, and of a depthwise convolution, the best of some shapes. Where the time goes is told by torch.profiler.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.core import parallel

parallel.tune_allocator()

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from foldwise.data.recipe import load_recipe
from foldwise.model.network import Network, create_network
from foldwise.model.precision import STEPS, Precision, probe

MODELS = ("resnet18", "mobilenetv2_100", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224")
KINDS = {  # of torch's own kernels, the first that fits
    "convolutions, products": ("conv", "mm", "linear", "attention"),
    "norms": ("norm",),
    "activations": ("relu", "hardtanh", "silu", "sigmoid", "gelu", "threshold"),
    "copies, layouts": ("copy", "clone", "to_copy", "contiguous", "transpose"),
}


def best(call: Callable[[], object], rounds: int = 5) -> float:
    """Least seconds of a call."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def matrix_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    a, b = torch.rand(2, 2048, 2048).to(dtype)
    return 2 * 2048**3 / best(lambda: a @ b)


def depthwise_peak(dtype: torch.dtype, channels_last: bool) -> float:
    """FLOP/s of 3 x 3 depthwise convolutions, the best shape of some."""
    rates = []
    for channels, side in ((96, 56), (192, 28), (384, 14)):
        images, weights = torch.rand(16, channels, side, side).to(dtype), torch.rand(channels, 1, 3, 3).to(dtype)
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        seconds = best(lambda x=images, w=weights, c=channels: torch.conv2d(x, w, padding=1, groups=c))  # type: ignore[misc]
        rates.append(2 * 9 * images.numel() / seconds)
    return max(rates)


def forward_flops(network: Network, size: int) -> tuple[int, int]:
    """Of one image: (in dense layers, in depthwise convolutions)."""
    counted = [0, 0]

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.weight
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        pixels = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else output[0].numel() // output.shape[-1]
        counted[depthwise] += 2 * weight.numel() * pixels

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return counted[0], counted[1]


def shares(network: Network, size: int, batch: int, name: str) -> dict[str, float]:
    """Which part of a step's time each kind of kernel takes."""
    precision = Precision(name, *STEPS[name])
    precision.to_memory_format(network).train()
    images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        with precision.autocast(torch.device("cpu")):
            loss = network(images).float().square().mean()
        loss.backward()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        spent[kind] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in (*KINDS, "the rest")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"timm's names (default: {' '.join(MODELS)})")
    parser.add_argument("--sizes", nargs="+", type=int, default=(96, 224), help="pixels (default: 96 224)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default: 16)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    peaks = {
        name: (matrix_peak(half or torch.float32), depthwise_peak(half or torch.float32, last))
        for name, (half, last) in STEPS.items()
    }
    for name, (matrix, depthwise) in peaks.items():
        print(f"peak, {name}: matrix product {matrix / 1e9:.0f} GFLOP/s, depthwise convolution {depthwise / 1e9:.0f}")
    heads = ("model", "size", "format", "ms an image", "GFLOP/s", "of the limit", *KINDS, "the rest")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for model in asked.models:
        for size in asked.sizes:
            fits = [] if size == 224 or "vit" not in model else [f"model.kwargs={{img_size: {size}}}"]
            options = [f"model.name={model}", f"image_size={size}", "model.mode=scratch", "model.pretrained=false"]
            network = create_network(load_recipe("baseline", [*options, *fits]), 1)
            dense, depthwise = forward_flops(network, size)
            for name, seconds in probe(network, size, batch=asked.batch).items():
                limit = 3 * asked.batch * (dense / peaks[name][0] + depthwise / peaks[name][1])
                rate = 3 * asked.batch * (dense + depthwise) / seconds
                parts = " | ".join(f"{share:.0%}" for share in shares(network, size, asked.batch, name).values())
                print(
                    f"| {model} | {size} | {name} | {1e3 * seconds / asked.batch:.1f} | {rate / 1e9:.0f} "
                    f"| {limit / seconds:.0%} | {parts} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
