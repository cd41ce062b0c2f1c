"""CPU time of a training step, with glibc's usual ways and with tune_allocator(), in one run, one thread each.

    python bench/step.py [--steps 12]

Each side is a process of its own, and the two take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).resolve().parents[1] / "src"
CASES = (("mobilenetv2_100", 224), ("resnet18", 224), ("test_resnet", 96))
SIDE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from foldwise.core import parallel
if sys.argv[2] == "settled":
    parallel.tune_allocator()
import torch
from foldwise.data.recipe import load_recipe
from foldwise.model.network import create_network
recipe = load_recipe("baseline", [f"model.name={sys.argv[3]}", f"image_size={sys.argv[4]}", "model.mode=scratch"])
torch.set_num_threads(1)
network = create_network(recipe, 1).train()
optimizer = torch.optim.AdamW(network.parameters())
images = torch.randint(0, 255, (32, recipe.image_size, recipe.image_size, 3), dtype=torch.uint8)
target = torch.rand(32, 1)
for step in range(2 + int(sys.argv[5])):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF)
    torch.nn.functional.binary_cross_entropy_with_logits(network(images), target).backward()
    optimizer.step()
    optimizer.zero_grad()
after = resource.getrusage(resource.RUSAGE_SELF)
user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
print(user + system, system, after.ru_maxrss // 1024)
"""


def side(name: str, model: str, size: int, steps: int) -> list[float]:
    """CPU seconds a step, those of them in the kernel, and peak memory in MiB."""
    command = [sys.executable, "-c", SIDE, str(SOURCE), name, model, str(size), str(steps)]
    cpu, system, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3:]
    return [float(cpu) / steps, float(system) / steps, float(peak)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps a side and turn (default: 12)")
    steps = parser.parse_args().steps
    heads = ("ms", "kernel", "MiB", "ms", "kernel", "MiB")
    print(f"{'batch of 32':<22}" + "".join(f"{head:>8}" for head in heads) + "   usual, then settled")
    for model, size in CASES:
        turns = [(side("usual", model, size, steps), side("settled", model, size, steps)) for _ in range(3)]
        usual, settled = ([median(turn[k][i] for turn in turns) for i in range(3)] for k in (0, 1))
        figures = (1e3 * usual[0], 1e3 * usual[1], usual[2], 1e3 * settled[0], 1e3 * settled[1], settled[2])
        cells = "".join(f"{figure:>8.0f}" for figure in figures)
        print(f"{f'{model} {size}':<22}{cells}   {usual[0] / settled[0]:.2f} x", flush=True)


if __name__ == "__main__":
    main()
