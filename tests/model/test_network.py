"""Networks: weights from files, freezing, honest failures."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import shared
from torch import nn
from torch.profiler import profile

from foldwise import UserError
from foldwise.core import paths
from foldwise.data.image import ImageOptions
from foldwise.data.orientation import fitted
from foldwise.data.recipe import Fusion, Head, Recipe, load_recipe
from foldwise.model import heads, precision, weights
from foldwise.model.finetune import (
    count_parameters,
    init_from,
    load_weights,
    parameter_groups,
    start_at_base_rate,
    unfreeze,
)
from foldwise.model.network import IMAGENET, Network, PretrainedNetwork, _without_copies, create_network

TINY = ["model.name=test_resnet", "model.pretrained=false", "image_size=32"]


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (count, size, size, 3)).astype(np.uint8))


@pytest.mark.smoke
def test_uint8_batch_to_logits_equals_plain_normalisation() -> None:
    network = create_network(load_recipe("baseline", [*TINY, "model.mean=[0.5,0.4,0.3]", "model.std=[0.2,0.3,0.4]"]), 3)
    network.eval()
    batch = images()
    plain = (batch.permute(0, 3, 1, 2).float() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(1, 3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(network(batch), network.head(network.backbone(plain)), atol=1e-4)
        assert network(batch).shape == (4, 3)
        assert network.embed(batch).ndim == 2


@pytest.mark.parametrize("name", ["mobilenetv2_035", "efficientnet_b0", "mobilenetv3_small_050"])
def test_activations_are_not_copied_and_the_gradients_are_the_same_bits(name: str) -> None:
    """timm's in-place ReLU6, SiLU and Hardswish keep a copy of what they overwrite."""

    def step(network: nn.Module) -> tuple[list[torch.Tensor], int, float]:
        torch.manual_seed(0)
        with profile() as seen:
            loss = network(batch).square().sum()
            loss.backward()
        copies = sum(event.count for event in seen.key_averages() if event.key == "aten::clone")
        return [p.grad for p in network.parameters() if p.grad is not None], copies, float(loss.detach())

    torch.manual_seed(1)
    batch = torch.randn(4, 3, 64, 64)
    network = timm.create_model(name, num_classes=2, drop_rate=0.2).train()
    theirs, copied, loss = step(copy.deepcopy(network))
    ours, left, same = step(_without_copies(network))
    assert same == loss and len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert copied > 10 and not left


@pytest.mark.smoke
def test_frozen_trains_the_head_alone_and_its_statistics_stay() -> None:
    network = create_network(load_recipe("baseline", [*TINY, "model.mode=frozen"]), 2)
    learn, every = count_parameters(network)
    head = sum(p.numel() for p in network.head.parameters())
    assert learn == head < every
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(images())
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())


@pytest.mark.smoke
def test_partial_trains_from_the_named_layer_on() -> None:
    network = create_network(load_recipe("baseline", [*TINY, "model.mode=partial", "model.unfreeze_from=layer4"]), 2)
    learning = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"layer4", "classifier"}
    with pytest.raises(UserError, match="did you mean 'layer4'"):
        create_network(load_recipe("baseline", [*TINY, "model.mode=partial", "model.unfreeze_from=layer_4"]), 2)


@pytest.mark.smoke
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_by_path_fill_the_backbone(tmp_path: Path, ending: str) -> None:
    source = create_network(load_recipe("baseline", TINY), 10)
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.backbone.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in source.backbone.state_dict().items()}, path)
    recipe = load_recipe("baseline", ["model.name=test_resnet", f"model.weights={path}", "image_size=32"])
    network = create_network(recipe, 2)
    assert torch.equal(network.backbone.conv1[0].weight, source.backbone.conv1[0].weight)
    assert network.head.classifier.out_features == 2


@pytest.mark.smoke
def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """safetensors writes several entries of metadata in an order of chance: one run in two differed from its twin."""
    layer, path = nn.Linear(2, 2), tmp_path / "w.safetensors"
    written = set()
    for _ in range(20):
        weights.save(layer, path, ["a", "b"])
        written.add(path.read_bytes())
    assert len(written) == 1
    weights.check_classes(path, ["a", "b"])
    with pytest.raises(UserError, match="trained on other classes"):
        weights.check_classes(path, ["b", "a"])


@pytest.mark.smoke
def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (print, ("ran",))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="holds more than tensors, and code is not run"):
        weights.read_state(tmp_path / "w.pth")


@pytest.mark.smoke
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"nonsense": torch.zeros(3)}, tmp_path / "w.safetensors")
    recipe = load_recipe("baseline", ["model.name=test_resnet", f"model.weights={tmp_path / 'w.safetensors'}"])
    with pytest.raises(UserError, match="of another model"):
        create_network(recipe, 2)
    save_file({k: v.contiguous() for k, v in made().backbone.state_dict().items()}, tmp_path / "w.safetensors")
    recipe = load_recipe("baseline", ["model.name=resnet18", f"model.weights={tmp_path / 'w.safetensors'}"])
    with pytest.raises(
        UserError, match=r"w.safetensors: is not of model.name=resnet18: bn1.weight is 32 in the file and 64 in"
    ):
        create_network(recipe, 2)


def test_a_named_file_is_used_whatever_pretrained_says(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = made(outputs=2).backbone
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    network = made(f"model.weights={tmp_path / 'w.safetensors'}", "model.mode=frozen")
    assert torch.equal(network.backbone.conv1[0].weight, source.conv1[0].weight)
    assert not torch.equal(made("model.mode=frozen").backbone.conv1[0].weight, source.conv1[0].weight)


def test_real_weights_see_the_insects() -> None:
    """MobileNetV2's ImageNet head, used as it is, finds an insect in the photos of ants and bees."""
    from foldwise.data import image

    labels = shared("weights", "imagenet_labels.txt").read_text().splitlines()[1:]
    file = shared("weights", "mobilenetv2_100.safetensors")
    recipe = load_recipe("mobilenetv2", [f"model.weights={file}"])
    network = timms_own(recipe, file)
    files = sorted(shared("data", "hymenoptera", "train", "bees").glob("*.jpg"))[:24]
    batch = torch.from_numpy(np.stack([image.read_image(file, size=224) for file in files]))
    with torch.inference_mode():
        top = network(batch).argmax(dim=1)
    assert np.mean([labels[k] in {"bee", "daisy", "fly", "ladybug", "cardoon", "bee eater"} for k in top]) > 0.6


# --- pooling and heads ----------------------------------------------------------------------------------------


def timms_own(recipe: Recipe, file: Path) -> Network:
    """A timm model with its own head and weights, behind our normalisation."""
    backbone = timm.create_model(recipe.model.name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    network = PretrainedNetwork(backbone, *IMAGENET)
    network.classes = nn.Identity()
    return network.eval()


def made(*overrides: str, outputs: int = 3, metadata: int = 0) -> Network:
    return create_network(load_recipe("baseline", [*TINY, *overrides]), outputs, metadata=metadata)


def test_every_layout_of_a_feature_map_becomes_the_same_tokens() -> None:
    nchw = torch.rand(2, 8, 3, 5)
    flat = heads.tokens(nchw, 8, nhwc=False, prefix=0)
    assert torch.equal(flat, heads.tokens(nchw.permute(0, 2, 3, 1), 8, nhwc=False, prefix=0))
    assert torch.equal(flat, heads.tokens(torch.cat([torch.rand(2, 2, 8), flat], dim=1), 8, nhwc=False, prefix=2))
    square = torch.rand(2, 8, 8, 8)  # ambiguous by shape: what timm says of the layout decides
    assert torch.equal(heads.tokens(square, 8, nhwc=True, prefix=0), square.flatten(1, 2))


@pytest.mark.smoke
def test_pools_are_what_their_names_say() -> None:
    x = torch.rand(2, 20, 6) * 10
    gem = heads.Pool("gem", 6)
    assert torch.allclose(gem(x), x.pow(3).mean(dim=1).pow(1 / 3), rtol=1e-4)
    with torch.no_grad():
        gem.p.fill_(1.0)
        assert torch.allclose(gem(x), x.mean(dim=1), rtol=1e-4)
        gem.p.fill_(200.0)
        assert torch.allclose(gem(x), x.amax(dim=1), rtol=0.02)
    assert torch.equal(heads.Pool("max", 6)(x), x.amax(dim=1))
    attention = heads.Pool("attention", 6)
    assert torch.allclose(attention(x), x.mean(dim=1), rtol=1e-4)
    with torch.no_grad():
        attention.query.copy_(torch.eye(6)[2] * 100)
    assert torch.allclose(attention(x)[:, 2], x[:, :, 2].amax(dim=1), rtol=1e-3)


def test_gem_survives_fp16_and_dead_channels() -> None:
    gem = heads.Pool("gem", 4)
    x = torch.full((2, 9, 4), 5e4, dtype=torch.float16)
    x[:, :, 1] = 0
    x[:, :, 2] = -3
    leaf = x.float().requires_grad_()
    gem(leaf).sum().backward()
    assert gem(x).isfinite().all() and leaf.grad.isfinite().all() and gem.p.grad.isfinite().all()


@pytest.mark.parametrize("pool", ["avg", "max", "gem", "attention"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_pools_stand_on_any_backbone(name: str, pool: str) -> None:
    network = made(f"model.name={name}", f"model.head.pool={pool}", "image_size=64")
    network(images(2, 64)).sum().backward()
    assert network.embed(images(2, 64)).shape == (2, network.head.classifier.in_features)
    if pool == "avg" and name == "test_resnet":
        network.eval()
        timms = network.backbone.forward_features(network.inputs(images(2, 64))).mean(dim=(2, 3))
        assert torch.allclose(network.embed(images(2, 64)), timms, atol=1e-5)


def test_pools_stand_on_swin_and_on_vgg_without_its_dense_layers() -> None:
    with torch.device("meta"):
        for name, width in (("swin_tiny_patch4_window7_224", 768), ("vgg16", 512), ("resnet50x16_clip.openai", 3072)):
            network = made(f"model.name={name}", "model.head.pool=gem", "image_size=96")
            assert network.embed(torch.zeros(2, 96, 96, 3, dtype=torch.uint8)).shape == (2, width)


def test_samples_of_dropout_are_the_mean_of_their_logits() -> None:
    head = heads.Head(32, 3, Head(dropout=0.5, samples=5), None)
    x = torch.rand(4, 32)
    torch.manual_seed(0)
    ours = head(x)
    torch.manual_seed(0)
    masks = torch.nn.functional.dropout(torch.ones(5, 4, 32), 0.5)
    assert torch.allclose(ours, torch.stack([head.classifier(x * mask) for mask in masks]).mean(dim=0), atol=1e-6)
    assert torch.equal(head.eval()(x), head.classifier(x))


@pytest.mark.smoke
def test_every_head_is_ours_on_a_backbone_without_one() -> None:
    plain, own = made(), made("model.head.hidden=16", "model.head.dropout=0.3")
    outside = {key for key in plain.state_dict() if not key.startswith("backbone.")}
    assert outside == {"mean", "std", "scale", "shift", "head.classifier.weight", "head.classifier.bias"}
    assert not any(key.startswith("backbone.fc.") for key in [*plain.state_dict(), *own.state_dict()])
    assert own.embed(images()).shape == (4, 16)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_weights_of_format_1_are_read_under_todays_keys(tmp_path: Path, name: str) -> None:
    """A plain network's classifier lay in its backbone; a file of a newer format is refused by name."""
    from safetensors.torch import save_file

    settings = (f"model.name={name}", "image_size=64")
    network, path = made(*settings).eval(), tmp_path / "fold0.safetensors"
    nn.init.normal_(network.head.classifier.bias)
    old = f"backbone.{network.backbone.pretrained_cfg['classifier']}"
    state = {key.replace("head.classifier", old, 1): value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, path, {"classes": "[]", "checksum": weights.checksum(state)})
    plain = timm.create_model(name, num_classes=3, **({"img_size": 64} if name == "test_vit" else {})).eval()
    plain.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    for read in (load_weights, init_from):
        again = made(*settings).eval()
        read(again, path)
        with torch.inference_mode():
            assert torch.equal(again(images(size=64)), network(images(size=64)))
            assert torch.allclose(again(images(size=64)), plain(network.inputs(images(size=64))), atol=1e-4)
    save_file(state, path, {"foldwise": '{"format": 99}'})
    with pytest.raises(UserError, match="written by a newer foldwise"):
        load_weights(again, path)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["model.head.pool=gem"],
        ["model.head={hidden: 8, dropout: 0.2, samples: 3}"],
        ["model.head.pool=attention", "model.second={name: test_vit, pretrained: false}"],
    ],
)
def test_heads_survive_autocast(half: torch.dtype, extra: list[str]) -> None:
    network = made(*extra, "image_size=64")
    with torch.autocast("cpu", dtype=half):
        logits = network(images(size=64))
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_cosine_heads_look_for_the_nearest_centre() -> None:
    network = made("model.head={cosine: 30, centers: 3}")
    features = network.embed(images())
    weight = network.head.classifier.weight
    every = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(weight).T
    expected = 30 * every.reshape(len(features), 3, 3).amax(dim=2)  # three classes, three centres each
    torch.testing.assert_close(network.head.classifier(features), expected)
    with pytest.raises(UserError, match=r"model\.head\.cosine"):
        made("train.margin=0.3")


@pytest.mark.parametrize("extra", [[], ["model.head.hidden=8"], ["model.head={pool: gem, dropout: 0.1, samples: 2}"]])
def test_training_begins_at_the_base_rate_whatever_the_head(extra: list[str]) -> None:
    network = made(*extra)
    start_at_base_rate(network, np.array([0] * 80 + [1] * 15 + [2] * 5), 3)
    with torch.inference_mode():
        probabilities = network.eval()(images()).softmax(dim=1).mean(dim=0)
    assert np.allclose(probabilities, [0.8, 0.15, 0.05], atol=0.03)


@pytest.mark.parametrize("extra", [[], ["model.head.hidden=8"], ["model.head.pool=max", "model.head.dropout=0.5"]])
def test_a_frozen_backbones_features_can_be_kept(extra: list[str]) -> None:
    network = made("model.mode=frozen", *extra).train()
    kept = network.features(images())
    optimizer = torch.optim.SGD(parameter_groups(network, load_recipe("baseline", TINY)), lr=1.0)
    network(images()).square().sum().backward()
    optimizer.step()
    assert torch.equal(kept, network.features(images()))
    network.eval()
    assert torch.allclose(network(images()), network.classify(kept), atol=1e-5)


# --- input ----------------------------------------------------------------------------------------------------


def test_grey_input_is_the_mean_of_the_colours() -> None:
    network = made("model.kwargs={in_chans: 1}", "model.mean=[0.2,0.4,0.6]", "model.std=[0.5]").eval()
    batch = images()
    grey = (batch.float().mean(dim=3, keepdim=True).permute(0, 3, 1, 2) / 255 - 0.4) / 0.5
    assert torch.allclose(network.inputs(batch), grey, atol=1e-5)
    assert network(batch).shape == (4, 3)
    with pytest.raises(UserError, match="in_chans=4: the images have 3 channels"):
        fitted(load_recipe("baseline", ["model.kwargs={in_chans: 4}"]), None)
    assert "in_chans" not in fitted(load_recipe("baseline"), None).model.kwargs
    network = create_network(
        fitted(load_recipe("baseline", [*TINY, "model.mean=[0.2,0.4,0.6]"]), None, ImageOptions(channels=6)), 2
    )
    bands = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 6), np.uint8)
    assert network(torch.from_numpy(bands)).shape == (2, 2) and network.mean.shape == (1, 6, 1, 1)
    assert network.mean.flatten().tolist() == pytest.approx([0.4 * 255] * 6)


def test_transformers_take_any_size_with_their_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = made("model.name=test_vit", "image_size=160").backbone
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    from_file = ["model.name=test_vit", f"model.weights={tmp_path / 'w.safetensors'}"]
    recipe = load_recipe("baseline", [*from_file, "image_size=96"])
    network = create_network(recipe, 3)
    assert network(images(2, 96)).shape == (2, 3)
    assert torch.equal(network.backbone.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert network.backbone.pos_embed.shape != source.pos_embed.shape
    several = made("model.name=test_vit", "image_size=96", "train.sizes=[64,96]")
    assert several(images(2, 64)).shape == several(images(2, 96)).shape == (2, 3)


# --- two backbones --------------------------------------------------------------------------------------------


def test_two_backbones_each_with_its_normalisation(tmp_path: Path) -> None:
    second = "model.second={name: test_vit, pretrained: false, mean: [0.1], std: [0.9]}"
    network = made(second, "image_size=64").eval()
    batch = images(2, 64)
    with torch.inference_mode():
        first = network.backbone(network.inputs(batch))
        planes = batch.permute(0, 3, 1, 2).float()
        other = network.second((planes - 255 * 0.1) / (255 * 0.9))
        assert torch.allclose(network.embed(batch), torch.cat([first, other], dim=1), atol=1e-4)
        weights.save(network, tmp_path / "fold0.safetensors")
        again = made(second, "image_size=64").eval()
        load_weights(again, tmp_path / "fold0.safetensors")
        assert torch.equal(network(batch), again(batch))
    frozen = made(second, "image_size=64", "model.mode=frozen")
    assert count_parameters(frozen)[0] == sum(p.numel() for p in frozen.head.parameters())
    with pytest.raises(UserError, match="names a layer of one"):
        made(second, "image_size=64", "model.mode=partial", "model.unfreeze_from=layer4")


# --- metadata -------------------------------------------------------------------------------------------------


def test_fusion_of_2020_is_the_winners_layers() -> None:
    network = made("model.metadata=true", "model.head={dropout: 0.5, samples: 5}", metadata=7)
    kinds = [type(layer).__name__ for layer in network.fusion.layers]
    assert kinds == ["Linear", "BatchNorm", "SiLU", "Dropout", "Linear", "BatchNorm", "SiLU"]
    widths = [tuple(layer.weight.shape) for layer in network.fusion.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [(512, 7), (128, 512)]
    width = 128 + network.backbone.num_features
    assert network.uses_metadata and network.embed(images(), torch.rand(4, 7)).shape[1] == width
    metadata = torch.randn(4, 7, requires_grad=True)
    network(images(), metadata).square().sum().backward()
    assert metadata.grad.abs().sum() > 0
    with pytest.raises(UserError, match="needs the metadata of each image"):
        network(images())
    with pytest.raises(UserError, match="names no metadata columns"):
        made("model.metadata=true")


def test_fusion_of_2019_is_the_winners_layers_on_a_loaded_frozen_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = made()
    weights.save(trained, tmp_path / "fold0.safetensors")
    fusion = "model.fusion={hidden: [256, 256], activation: relu, dropout: 0.4, joint: 1024, feature_drop: 0.1}"
    network = made("model.metadata=true", "model.mode=frozen", "model.init_from=cnn", fusion, metadata=7)
    init_from(network, tmp_path / "fold0.safetensors")
    assert "new: " in capsys.readouterr().err
    assert all(torch.equal(v, trained.state_dict()[f"backbone.{k}"]) for k, v in network.backbone.state_dict().items())
    kinds = [type(layer).__name__ for layer in network.fusion.layers]
    assert kinds == ["Linear", "BatchNorm", "ReLU", "Dropout"] * 2
    assert [type(layer).__name__ for layer in network.head.neck] == ["Linear", "BatchNorm", "ReLU", "Dropout"]
    assert network.head.classifier.in_features == 1024 and all(
        name.startswith(("fusion.", "head.")) for name in network.learns
    )
    network.train()
    network(images(1), torch.randn(1, 7))  # a last batch of one row has no variance of its own


def test_metadata_features_are_dropped_so_often_and_only_in_training() -> None:
    part = heads.Metadata(50, Fusion(hidden=[4], feature_drop=0.1))
    seen: list[torch.Tensor] = []
    part.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    part(torch.ones(400, 50))
    part.eval()(torch.ones(400, 50))
    assert abs(float((seen[0] == 0).float().mean()) - 0.1) < 0.01
    assert seen[1].all()


def test_init_from_refuses_what_does_not_fit(tmp_path: Path) -> None:
    weights.save(made("model.name=test_efficientnet"), tmp_path / "fold0.safetensors")
    with pytest.raises(UserError, match="it is of another model"):
        init_from(made("model.init_from=x"), tmp_path / "fold0.safetensors")
    with pytest.raises(UserError, match="train that run's fold first"):
        init_from(made("model.init_from=x"), tmp_path / "fold1.safetensors")


# --- as_is ----------------------------------------------------------------------------------------------------


def as_is(tmp_path: Path, label_map: str, outputs: int, names: list[str]) -> Network:
    from safetensors.torch import save_file

    source = timm.create_model("test_resnet", num_classes=1000)
    torch.nn.init.normal_(source.fc.weight)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "labels.txt").write_text("background\n" + "\n".join(f"Sea_Animal {k}" for k in range(1000)))
    files = [f"model.weights={tmp_path / 'w.safetensors'}", f"model.labels={tmp_path / 'labels.txt'}"]
    overrides = ["model.name=test_resnet", "image_size=32", "model.mode=as_is", *files, f"model.label_map={label_map}"]
    return create_network(load_recipe("baseline", overrides), outputs, names=names).eval()


@pytest.mark.smoke
def test_as_is_sums_the_pretrained_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sea animal 3", "fish"]
    network = as_is(tmp_path, "{fish: [Sea animal 5, sea_animal 900]}", 2, names)
    assert "first line, 'background', is dropped" in capsys.readouterr().err
    assert count_parameters(network)[0] == 0 and not parameter_groups(network, load_recipe("baseline"))
    with torch.inference_mode():
        every = network.backbone(network.inputs(images())).softmax(dim=1)
        wanted = torch.stack([every[:, 3], every[:, 5] + every[:, 900]], dim=1)
        assert torch.allclose(network(images()).softmax(dim=1), wanted / wanted.sum(dim=1, keepdim=True), atol=1e-5)
        binary = as_is(tmp_path, '{"1": [sea animal 7]}', 1, [])
        every = binary.backbone(binary.inputs(images())).softmax(dim=1)
        assert torch.allclose(binary(images()).sigmoid()[:, 0], every[:, 7], atol=1e-5)
        against = as_is(tmp_path, '{"1": [sea animal 7], "0": [sea animal 8]}', 1, [])
        every = against.backbone(against.inputs(images())).softmax(dim=1)
        share = every[:, 7] / (every[:, 7] + every[:, 8])
        assert torch.allclose(against(images()).sigmoid()[:, 0], share, atol=1e-5)


def test_as_is_says_what_it_cannot_match(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pretrained class is called 'see animal 3' \(nearest: sea animal 3"):
        as_is(tmp_path, "{}", 1, ["see animal 3"])
    with pytest.raises(UserError, match=r'needs model.label_map=\{"1"'):
        as_is(tmp_path, "{}", 1, [])
    with pytest.raises(UserError, match="'2' is no class"):
        as_is(tmp_path, '{"1": [sea animal 1], "2": [sea animal 3]}', 1, [])
    with pytest.raises(UserError, match=r"as_is needs model.pretrained=true or model.weights"):
        made("model.mode=as_is", "model.labels=x")


def test_as_is_knows_ants_from_bees() -> None:
    """The pretrained ImageNet head alone, on photos it was not trained on."""
    from foldwise.data import image

    overrides = [
        f"model.labels={shared('weights', 'imagenet_labels.txt')}",
        "model.mode=as_is",
        f"model.weights={shared('weights', 'mobilenetv2_100.safetensors')}",
    ]
    recipe = load_recipe("mobilenetv2", [*overrides, "model.label_map={ants: [ant], bees: [bee]}"])
    network = create_network(recipe, 2, names=["ants", "bees"]).eval()
    for k, name in enumerate(("ants", "bees")):
        files = sorted(shared("data", "hymenoptera", "train", name).glob("*.jpg"))[:20]
        batch = torch.from_numpy(np.stack([image.read_image(file, size=224) for file in files]))
        with torch.inference_mode():
            assert (network(batch).argmax(dim=1) == k).float().mean() > 0.7


# --- how fast what learns -------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["model.head={pool: gem, hidden: 8}"],
        ["model.mode=partial", "model.unfreeze_from=layer3"],
        ["model.second={name: test_vit, pretrained: false}", "image_size=64"],
    ],
)
@pytest.mark.parametrize("decay", ["null", "0.5"])
def test_every_learning_parameter_is_in_one_group(extra: list[str], decay: str) -> None:
    recipe = load_recipe(
        "baseline", [*TINY, *extra, f"train.layer_decay={decay}", "train.head_lr=0.1", "train.lr=0.01"]
    )
    network = create_network(recipe, 3)
    groups = parameter_groups(network, recipe)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    place = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group = place[id(parameter)]
        on_top = name.startswith(("head.", "pool.", "second_pool."))
        assert (group["lr"], group["lr_scale"] == 1.0) == (0.1, True) or not on_top
        assert group["lr"] == (0.1 if on_top else 0.01)
        assert (group["weight_decay"] == 0) or parameter.ndim > 1
    if decay != "null":
        scales = [place[id(p)]["lr_scale"] for p in network.backbone.layer3.parameters()]
        assert max(scales) < max(place[id(p)]["lr_scale"] for p in network.backbone.layer4.parameters()) <= 1
    else:
        assert {group["lr_scale"] for group in groups} == {1.0}


@pytest.mark.parametrize("extra", [[], ["model.head.hidden=8"]])
def test_stages_unfreeze_from_the_top(extra: list[str]) -> None:
    recipe = load_recipe("baseline", [*TINY, *extra, "model.unfreeze_epochs=2"])
    network = create_network(recipe, 3)
    everything = sum(len(group["params"]) for group in parameter_groups(network, recipe))
    learning = []
    for epoch in range(14):
        changed = unfreeze(network.train(), recipe, epoch)
        assert changed == (epoch % 2 == 0 and (not learning or len(learning[-1]) < everything))
        learning.append({name for name, p in network.named_parameters() if p.requires_grad})
        for module in network.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.training == module.weight.requires_grad
    assert all(name.startswith("head.") for name in learning[0]) and learning[0] == learning[1]
    assert {name.split(".")[1] for name in learning[2] - learning[0]} == {"layer4"}
    assert all(before <= after for before, after in pairwise(learning))
    assert len(learning[-1]) == everything
    with pytest.raises(UserError, match="the head alone learns"):
        made("model.mode=frozen", "model.unfreeze_epochs=1")


def test_half_precision_leaves_the_last_digits_of_a_logit() -> None:
    """bf16 logits have eight binary digits: a thousand rows would share a few hundred values."""
    network = create_network(load_recipe("baseline", TINY), 1).eval()
    images = torch.randint(0, 255, (256, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    assert logits.dtype == torch.float32 and len(logits.unique()) > 250


@pytest.mark.parametrize(
    "place",
    [
        "root/input/weights/resnet18.a1_in1k.safetensors",
        "root/input/weights/mine/resnet18.pth",  # a1_in1k is what timm takes for the bare name
        "kaggle/datasets/me/nets/deep/resnet18_a1_0-d63eafa0.pth",
        "kaggle/nets/resnet18.a1_in1k/model.safetensors",
        "hub/checkpoints/resnet18_a1_0-d63eafa0.pth",
    ],
)
def test_weights_are_found_by_their_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("FOLDWISE_SHARED", str(tmp_path / "nothing"))
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path / "kaggle")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    wanted = load_recipe("baseline", ["model.name=resnet18.a1_in1k"]).model
    other = load_recipe("baseline", ["model.name=resnet18.fb_ssl_yfcc100m_ft_in1k"]).model
    assert weights.of_backbone(wanted) is None
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    assert weights.of_backbone(wanted) == tmp_path / place and weights.of_backbone(other) is None
    named = load_recipe("baseline", [f"model.weights={Path(place).name}"]).model
    assert weights.of_backbone(named) == tmp_path / place
    with pytest.raises(UserError, match=r"model.weights=none.pth: no such file .*kaggle"):
        weights.named("none.pth", "model.weights")


def test_folds_that_begin_together_compute_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe would find another one the fastest: the second fold waits, and takes what the first has found."""
    recipe = load_recipe("baseline", TINY)
    network, found = create_network(recipe, 1), iter(["bf16", "channels_last"])

    def probe(*_: object) -> dict[str, float]:
        time.sleep(0.1)
        return {**dict.fromkeys(precision.STEPS, 2.0), next(found): 1.0}

    monkeypatch.setattr(precision, "probe", probe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as folds:
        chosen = list(folds.map(lambda _: precision.choose(network, recipe, torch.device("cpu")).name, range(2)))
    assert chosen == ["bf16", "bf16"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/home")  # nothing is remembered there
    assert precision.choose(network, recipe, torch.device("cpu")).name == "channels_last"
