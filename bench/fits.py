"""Which network fits which GPU, at which size and batch: computed on tensors without values, not measured.

    python bench/fits.py [--memory 15] [--sizes 224 384] [--models NAME ...] [--markdown docs/fits.md]

A step in half precision with AdamW is run on fake tensors (shapes alone), and every storage that lives is counted:
weights, gradients, the optimizer's moments, activations and what an operation needs beside them. The largest batch is
what fits into --memory GiB (a T4 has 15 after its driver) less 1 GiB for CUDA's context and libraries and a tenth for
gaps between blocks. Attention keeps no matrix of all pairs, as on a GPU. train: everything learns; twice: the same with
train.gradient_checkpointing; rank 8: with model.lora, too; head: frozen.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foldwise import UserError
from foldwise.data.recipe import Recipe, load_recipe
from foldwise.model import lora
from foldwise.model.finetune import checkpoint_gradients, count_parameters
from foldwise.model.network import Network, create_network

MODELS = (
    "mobilenetv4_conv_medium",
    "tf_efficientnetv2_s",
    "tf_efficientnet_b3",
    "tf_efficientnet_b5",
    "convnextv2_base",
    "convnextv2_large",
    "vit_base_patch16_dinov3",
    "vit_large_patch16_dinov3",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "eva02_base_patch14_224",
    "eva02_large_patch14_448",
)
WAYS = {
    "train": [],
    "twice": ["train.gradient_checkpointing=true"],
    "rank 8": ["model.lora={rank: 8}", "train.gradient_checkpointing=true"],
    "head": ["model.mode=frozen"],
}
GIB, CONTEXT, GAPS, MOST = 2**30, 1.0, 1.1, 256


class Memory(TorchDispatchMode):
    """Bytes of all storages that live now, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return made


def laid_out(recipe: Recipe) -> Network:
    """The recipe's network on torch's meta device."""
    with torch.device("meta"):
        network = create_network(recipe, 1, pretrained=False)
        lora.add(network, recipe)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(network)
    return network


def peak(recipe: Recipe, batch: int) -> int:
    """Bytes of a training step at its most."""
    network = laid_out(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True), Memory() as memory:
        network.to_empty(device="cpu")
        for tensor in (*network.parameters(), *network.buffers()):
            memory.count(tensor)
        learning = [parameter for parameter in network.train().parameters() if parameter.requires_grad]
        moments = [torch.zeros_like(parameter) for parameter in learning for _ in range(2)]  # AdamW's
        images = torch.zeros(batch, recipe.image_size, recipe.image_size, 3, dtype=torch.uint8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images)
        logits.float().square().mean().backward()
        del moments
    return memory.peak


def largest(recipe: Recipe, gib: float) -> str:
    """The largest batch that fits, as a cell of the table.

    The peak is the highest of several lines in the batch size (at the optimizer's step, in the backward pass, ...):
    what a chord of it says fits, fits.
    """
    room = (gib - CONTEXT) * GIB / GAPS
    batch, fitting, most = 2, peak(recipe, 2), peak(recipe, MOST)
    if fitting > room:
        return "-"
    if most <= room:
        return f"{MOST}+"
    for _ in range(2):
        batch += int((room - fitting) / (most - fitting) * (MOST - batch))
        fitting = peak(recipe, batch)
    return str(batch)


def fits(name: str, size: int, way: str, gib: float) -> str:
    asked = [f"model.name={name}", "model.pretrained=false", f"image_size={size}", *WAYS[way]]
    try:
        return largest(load_recipe("baseline", asked), gib)
    except UserError as problem:
        return "no" if "lora" in str(problem) or "checkpointing" in str(problem) else "size"


def table(models: list[str], sizes: list[int], gib: float) -> str:
    """Markdown: a row for each model and size, a column for each way."""
    lines = [f"| model | M parameters | size | {' | '.join(WAYS)} |", "|---|---|---|" + "---|" * len(WAYS)]
    for name in models:
        millions = count_parameters(laid_out(load_recipe("baseline", [f"model.name={name}"])))[1] / 1e6
        for size in sizes:
            cells = [fits(name, size, way, gib) for way in WAYS]
            if "size" not in cells:
                lines.append(f"| `{name}` | {millions:.0f} | {size} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


HEAD = """# What fits a T4

Computed by `python bench/fits.py` (`--models NAME --sizes S` for others; half a minute a row), not measured: no GPU has
been at hand. The largest batch in half precision with AdamW that {gib:g} GiB hold: everything learns (train), the same
with `train.gradient_checkpointing=true` (twice), with `model.lora={{rank: 8}}` as well (rank 8), the head alone (head).
Counted is every tensor that lives when most do, with 1 GiB for CUDA and a tenth for gaps; `no`: the model can't, `-`:
not even two images. cuDNN's workspaces are not in it, so begin a step below; a batch that does not fit after all is
computed in halves by itself.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=float, default=15.0, help="GiB (default: 15, a T4)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384], help="default: 224 384")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="timm's names")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    text = table(args.models, args.sizes, args.memory)
    if args.markdown:
        args.markdown.write_text(HEAD.format(gib=args.memory) + text, encoding="utf-8")


if __name__ == "__main__":
    main()
