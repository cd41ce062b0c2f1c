"""Every recipe builds and trains a step; docs/recipes.md is true; `python tests/data/test_recipes.py` rewrites it.

Networks of which a smaller one is stepped for real are built and stepped here at full size without memory or arithmetic
(torch's meta device), and for real, at a small image size, in the tests marked nightly: `pytest -m nightly`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import REPOSITORY
from timm.optim import create_optimizer_v2

from foldwise.core import paths
from foldwise.data.recipe import Recipe, load_recipe
from foldwise.model import lora
from foldwise.model.finetune import checkpoint_gradients, count_parameters, parameter_groups
from foldwise.model.network import create_network

NAMES = sorted(path.stem for path in paths.RECIPES.glob("*.yaml"))
TABLE = REPOSITORY / "docs" / "recipes.md"
LARGE = {
    *("beit", "clip_resnet50x16", "clip_vit_b16", "convnext", "convnextv2", "eva02", "eva02_convnextv2"),
    *("dinov2", "dinov2_full", "dinov3", "dinov3_full", "dinov3_last", "dinov3_lora", "efficientnetv2", "eva02_lora"),
    *("siglip2", "siglip2_full"),
    *("eva02_convnextv2_frozen", "seresnext50", "swin", "vgg16", *(f"efficientnet_b{k}" for k in range(1, 8))),
}


LAST = {  # of each family, where its last blocks begin: model.mode=partial model.unfreeze_from=...
    **dict.fromkeys(("dinov2", "dinov3", "siglip2", "eva02"), "blocks.10"),
    **{"convnextv2": "stages.3", "efficientnetv2": "blocks.5", "mobilenetv4": "blocks.3"},
}


MODES = """
Any of them trains in any way: `model.mode=frozen` (the head alone), `model.mode=partial model.unfreeze_from=LAYER`
(last blocks: {last}), `model.mode=finetune` (all of it), and with `model.lora={{rank: 8}}` low-rank terms on its linear
layers, which the saved weights hold merged: step 5, the app and the bundle read them as any. `train.layer_decay=null`
where a recipe has one that the mode has no use for. Tables of positions are resampled to `image_size`.
`train.gradient_checkpointing=true` spares most of the memory of activations for a third more time;
[fits.md](fits.md) says what fits a T4.

Licences are those that timm names for the weights (fetched from the hub by whoever trains, or put there as a file):
`dinov3-license` is Meta's own, with terms to accept; `cc-by-nc-4.0` forbids commercial use; read a competition's rules
on external data.
"""


def licence(name: str) -> str:
    """Of a model's weights, as timm has it."""
    config = timm.models.get_pretrained_cfg(name)
    return (config and config.license) or "not said"


def step(name: str, overrides: list[str] | None = None) -> tuple[float, float]:
    """Build a recipe's network and train it one step on two images; how much its parameters moved: (head, all)."""
    recipe = load_recipe(name, overrides)
    network = create_network(recipe, 3, metadata=5 if recipe.model.metadata else 0, pretrained=False)
    lora.add(network, recipe)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(network)
    images = torch.randint(0, 255, (2, recipe.image_size, recipe.image_size, 3)).to(torch.uint8)
    metadata = torch.randn(2, 5) if recipe.model.metadata else None
    t = recipe.train
    optimizer = create_optimizer_v2(parameter_groups(network, recipe), opt=t.optimizer, lr=t.lr)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in learning]
    network.train()
    logits = network(images, metadata)
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    (logits * torch.linspace(-1, 1, 6).view(2, 3)).sum().backward()
    assert sum(parameter.grad is not None for parameter in learning) > 0.9 * len(learning)
    optimizer.step()
    moved = [torch.count_nonzero(now.detach() != was) for now, was in zip(learning, before, strict=True)]
    return (float("nan"), float("nan")) if images.is_meta else (float(moved[-1]), float(sum(moved)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - LARGE))
def test_it_builds_and_trains_a_step(name: str) -> None:
    head, every = step(name, ["image_size=80"])
    assert head > 0 and every > head


@pytest.mark.parametrize("name", sorted(LARGE))
def test_it_builds_and_trains_a_step_at_full_size_without_memory(name: str) -> None:
    with torch.device("meta"):
        step(name)


@pytest.mark.parametrize("name", sorted(LAST))
def test_last_blocks_and_low_ranks_learn_at_another_size(name: str) -> None:
    """A table of positions is resampled; rotary positions and convolutions take any size."""
    partial = ["model.mode=partial", f"model.unfreeze_from={LAST[name]}", "train.layer_decay=null"]
    with torch.device("meta"):
        step(name, ["image_size=336", *partial])
        if LAST[name].startswith("blocks.1"):
            step(name, ["image_size=336", "model.mode=finetune", "model.lora={rank: 4}"])


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(LARGE))
def test_a_large_one_trains_a_step(name: str) -> None:
    head, every = step(name, ["image_size=96"])
    assert head > 0 and every > head


def test_two_backbones_are_concatenated_and_learn_together_or_not() -> None:
    with torch.device("meta"):
        for name, learning in (("eva02_convnextv2", 400e6), ("eva02_convnextv2_frozen", 3 * (1024 + 1536 + 1))):
            recipe = load_recipe(name)
            network = create_network(recipe, 3, pretrained=False)
            images = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
            assert network.embed(images).shape == (2, 1024 + 1536)
            learn, _ = count_parameters(network)
            assert learn > learning if "frozen" not in name else learn == learning
            learning = {part.split(".")[0] for part in network.learns}
            assert learning.isdisjoint({"backbone", "second"}) == name.endswith("frozen")


def described(name: str) -> str:
    """A recipe's row of docs/recipes.md: its comment's first line is the idea, the rest says what was measured."""
    text = (paths.RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line[2:].strip() for line in text.splitlines() if line.startswith("# ")]
    recipe = load_recipe(name)
    names = [recipe.model.name, *([recipe.model.second.name] if recipe.model.second else [])]
    shown = " + ".join(f"`{model}`" for model in names) + (" + metadata" if recipe.model.metadata else "")
    licences = " + ".join(dict.fromkeys(map(licence, names)))
    cells = [f"`{name}`", shown, str(recipe.image_size), _mode(recipe), licences, comment[0], " ".join(comment[1:])]
    return "| " + " | ".join(cells) + " |"


def _mode(recipe: Recipe) -> str:
    lora = recipe.model.lora
    return f"low rank {lora.rank}" if lora else recipe.model.mode


def table() -> str:
    """docs/recipes.md from the recipes themselves."""
    head = (
        "# Recipes\n\n`python src/02_train.py --recipe NAME`; any knob of `--help-recipe` can follow as `key=value`. "
        "Sizes in pixels.\nMade from `src/recipes/*.yaml` by `python tests/data/test_recipes.py`; a test compares.\n\n"
        "| recipe | model | size | mode | licence of its weights | idea | measured |\n|---|---|---|---|---|---|---|\n"
    )
    last = ", ".join(f"`{name}` {layer}" for name, layer in LAST.items())
    return head + "\n".join(map(described, NAMES)) + "\n" + MODES.format(last=last)


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_it_says_whether_it_was_measured(name: str) -> None:
    assert described(name).rpartition(" | ")[2].startswith(("Measured: ", "Not measured here."))


@pytest.mark.smoke
def test_the_table_of_recipes_is_true() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run `python tests/data/test_recipes.py`"


@pytest.mark.smoke
def test_bases_spare_a_recipe_what_others_say() -> None:
    b3, fusion = load_recipe("efficientnet_b3"), load_recipe("fusion2020")
    assert fusion.model.name == b3.model.name and fusion.model.kwargs == {}  # its dropout is the head's alone
    assert load_recipe("eva02_convnextv2_frozen").model.second == load_recipe("eva02_convnextv2").model.second


if __name__ == "__main__":
    Path(TABLE).write_text(table(), encoding="utf-8")
