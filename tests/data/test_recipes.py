"""Every recipe builds and trains a step; docs/recipes.md is true; `python tests/data/test_recipes.py` rewrites it.

Networks of which a smaller one is stepped for real are built and stepped here at full size without memory or arithmetic
(torch's meta device), and for real, at a small image size, in the tests marked nightly: `pytest -m nightly`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from timm.optim import create_optimizer_v2

from foldwise.core import paths
from foldwise.data.recipe import load_recipe
from foldwise.model.finetune import count_parameters, parameter_groups
from foldwise.model.network import create_network

NAMES = sorted(path.stem for path in paths.RECIPES.glob("*.yaml"))
TABLE = REPOSITORY / "docs" / "recipes.md"
LARGE = {
    *("beit", "clip_resnet50x16", "clip_vit_b16", "convnext", "convnextv2", "eva02", "eva02_convnextv2"),
    *("eva02_convnextv2_frozen", "seresnext50", "swin", "vgg16", *(f"efficientnet_b{k}" for k in range(1, 8))),
}


def step(name: str, overrides: list[str] | None = None) -> tuple[float, float]:
    """Build a recipe's network and train it one step on two images; how much its parameters moved: (head, all)."""
    recipe = load_recipe(name, overrides)
    network = create_network(recipe, 3, metadata=5 if recipe.model.metadata else 0, pretrained=False)
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
    cells = [f"`{name}`", shown, str(recipe.image_size), recipe.model.mode, comment[0], " ".join(comment[1:])]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """docs/recipes.md from the recipes themselves."""
    head = (
        "# Recipes\n\n`python src/02_train.py --recipe NAME`; any knob of `--help-recipe` can follow as `key=value`. "
        "Sizes in pixels.\nMade from `src/recipes/*.yaml` by `python tests/data/test_recipes.py`; a test compares.\n\n"
        "| recipe | model | size | mode | idea | measured |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(map(described, NAMES)) + "\n"


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
