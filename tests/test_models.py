"""Networks: weights from files, freezing, honest failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared

from foldwise import UserError, config, models, weights

TINY = ["model.name=test_resnet", "model.pretrained=false", "image_size=32"]


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (count, size, size, 3)).astype(np.uint8))


@pytest.mark.smoke
def test_uint8_batch_to_logits_equals_plain_normalisation() -> None:
    network = models.create(config.load("baseline", [*TINY, "model.mean=[0.5,0.4,0.3]", "model.std=[0.2,0.3,0.4]"]), 3)
    network.eval()
    batch = images()
    plain = (batch.permute(0, 3, 1, 2).float() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(1, 3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(network(batch), network.backbone(plain), atol=1e-4)
        assert network(batch).shape == (4, 3)
        assert network.embed(batch).ndim == 2


@pytest.mark.smoke
def test_frozen_trains_the_head_alone_and_its_statistics_stay() -> None:
    network = models.create(config.load("baseline", [*TINY, "model.mode=frozen"]), 2)
    learn, every = models.count_parameters(network)
    head = sum(p.numel() for p in network.backbone.get_classifier().parameters())
    assert learn == head < every
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(images())
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())


@pytest.mark.smoke
def test_partial_trains_from_the_named_layer_on() -> None:
    network = models.create(config.load("baseline", [*TINY, "model.mode=partial", "model.unfreeze_from=layer4"]), 2)
    learning = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"layer4", "fc"}
    with pytest.raises(UserError, match="did you mean 'layer4'"):
        models.create(config.load("baseline", [*TINY, "model.mode=partial", "model.unfreeze_from=layer_4"]), 2)


@pytest.mark.smoke
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_by_path_fill_the_backbone(tmp_path: Path, ending: str) -> None:
    source = models.create(config.load("baseline", TINY), 10)
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.backbone.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in source.backbone.state_dict().items()}, path)
    recipe = config.load("baseline", ["model.name=test_resnet", f"model.weights={path}", "image_size=32"])
    network = models.create(recipe, 2)
    assert torch.equal(network.backbone.conv1[0].weight, source.backbone.conv1[0].weight)
    assert network.backbone.get_classifier().out_features == 2


@pytest.mark.smoke
def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (print, ("ran",))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="can't be read as weights"):
        weights.read_state(tmp_path / "w.pth")


@pytest.mark.smoke
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"nonsense": torch.zeros(3)}, tmp_path / "w.safetensors")
    recipe = config.load("baseline", ["model.name=test_resnet", f"model.weights={tmp_path / 'w.safetensors'}"])
    with pytest.raises(UserError, match="of another model"):
        models.create(recipe, 2)


def test_real_weights_see_the_insects() -> None:
    """MobileNetV2's ImageNet head, used as it is, finds an insect in the photos of ants and bees."""
    from safetensors.torch import load_file

    from foldwise import image

    labels = shared("weights", "imagenet_labels.txt").read_text().splitlines()[1:]
    file = shared("weights", "mobilenetv2_100.safetensors")
    recipe = config.load("mobilenetv2", [f"model.weights={file}"])
    network = models.create(recipe, 1000)
    network.backbone.load_state_dict(load_file(file))
    network.eval()
    files = sorted(shared("data", "hymenoptera", "train", "bees").glob("*.jpg"))[:24]
    batch = torch.from_numpy(np.stack([image.read_image(file, size=224) for file in files]))
    with torch.inference_mode():
        top = network(batch).argmax(dim=1)
    assert np.mean([labels[k] in {"bee", "daisy", "fly", "ladybug", "cardoon", "bee eater"} for k in top]) > 0.6
