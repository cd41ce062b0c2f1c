"""Low-rank terms: nothing at first, learnt alone, and plain weights at the end; activations computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Workplace, make_tiny
from conftest import quick_recipe as recipe

from foldwise import UserError
from foldwise.data import cache, folds, index
from foldwise.data.competition import Competition
from foldwise.data.recipe import load_recipe
from foldwise.model import fold_models, lora, weights
from foldwise.model.finetune import checkpoint_gradients, counted_once
from foldwise.model.network import Network, create_network
from foldwise.train.trainer import Trainer

VIT = ["model.name=test_vit", "model.mode=finetune", "model.lora={rank: 2}", "train.lr=0.01"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = make_tiny(tmp_path_factory.mktemp("lora"))
    made.run("01_preprocess.py", "--sizes", 32)
    return made


def network(name: str, *overrides: str, size: int = 56) -> Network:
    chosen = load_recipe("baseline", [f"model.name={name}", "model.pretrained=false", f"image_size={size}", *overrides])
    torch.manual_seed(0)
    made = create_network(chosen, 1)
    lora.add(made, chosen)
    return made


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_low_rank_terms_change_nothing_at_first_and_learn_alone(name: str) -> None:
    """Also where a model reads its layers' weights itself, as EVA-02 and BEiT do."""
    size, short = (56 if "eva" in name else 32), "model.kwargs={depth: 2}"
    images = torch.randint(0, 255, (2, size, size, 3), dtype=torch.uint8)
    tuned = network(name, "model.lora={rank: 2}", short, size=size)
    plain = network(name, short, size=size)
    plain.load_state_dict(lora.merged(tuned.state_dict()))
    assert torch.allclose(tuned.eval()(images), plain.eval()(images), atol=1e-6)
    tuned.train()(images).square().sum().backward()
    learnt = {key for key, value in tuned.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    bodies = {key for key in learnt if key.startswith("backbone.")}
    assert bodies and all(key.endswith("0.b") for key in bodies)  # a's gradient is 0 while b is
    assert any("qkv" in key or "q_proj" in key for key in bodies)
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if key.endswith("0.b"):
                value.normal_()
    plain.load_state_dict(lora.merged(tuned.state_dict()))
    assert torch.allclose(tuned.eval()(images), plain.eval()(images), atol=1e-5)


def test_a_fold_saves_plain_weights_that_predict_the_same(about: Competition, place: Workplace) -> None:
    chosen = recipe(about, *VIT)
    folder = place.runs / "lora"
    folder.mkdir(parents=True)
    made = Trainer(about, chosen, 0, folds.load_folds(about), folder)
    start = lora.merged(made.state.network.state_dict())
    made.start()
    made.run_epoch()
    again = Trainer(about, chosen, 0, folds.load_folds(about), folder)  # from the checkpoint, low-rank terms and all
    again.run()
    state = weights.read_state(folder / "fold0.safetensors")
    plain = create_network(chosen, 1, pretrained=False)
    assert set(state) == set(plain.state_dict())
    moved = {key for key, value in state.items() if not torch.equal(value, start[key])}
    linear = {
        f"{key}.weight"
        for key, layer in plain.backbone.named_modules(prefix="backbone")
        if isinstance(layer, torch.nn.Linear)
    }
    assert linear <= moved and {key for key in moved if key.startswith("backbone.")} == linear
    table = index.load_index(about)
    images, rows = cache.load_cache(about, 32), again.data.cache_rows("valid")
    pred = fold_models.load_fold(about, chosen, "lora", 0, table).predict(images, rows, again.data.valid)
    assert torch.allclose(
        torch.from_numpy(pred), torch.from_numpy(again._predict("valid", again.state.network)), atol=1e-5
    )


def test_what_has_no_linear_layers_is_refused(about: Competition, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora: model.name has no linear layers"):
        network("resnet18", "model.lora={rank: 2}")
    with pytest.raises(UserError, match=r"model.lora.* has no effect: it needs model.mode=finetune"):
        load_recipe("baseline", ["model.mode=frozen", "model.lora={rank: 2}"])


@pytest.mark.parametrize("name", ["test_vit", "convnextv2_atto", "test_resnet"])
def test_activations_computed_twice_give_the_same_gradients(name: str) -> None:
    images = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    gradients, statistics = [], []
    for twice in (False, True):
        made = network(name, size=32)
        if twice:
            checkpoint_gradients(made)
        loss = made.train()(images).square().sum()
        with counted_once(made):
            loss.backward()
        gradients.append({key: value.grad for key, value in made.named_parameters()})
        statistics.append(
            [value for key, value in made.named_buffers() if key.endswith(("running_mean", "running_var"))]
        )
    assert all(map(torch.equal, *statistics))
    assert all(torch.equal(value, gradients[1][key]) for key, value in gradients[0].items() if value is not None)


def test_what_can_t_compute_twice_is_said() -> None:
    with torch.device("meta"):
        made = network("dla34", size=64)
    with pytest.raises(UserError, match="gradient_checkpointing: timm's DLA can't"):
        checkpoint_gradients(made)
