"""Networks of studies: black slices have no say, micro-batches change nothing, order counts where it should."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foldwise import UserError
from foldwise.augment import train_ops
from foldwise.data.image import ImageOptions
from foldwise.data.orientation import fitted
from foldwise.data.recipe import Series, Stack, load_recipe
from foldwise.model import explain_slices
from foldwise.model.finetune import counted_once
from foldwise.model.network import Network, create_network
from foldwise.model.slices import Slices
from foldwise.model.targets import OutputTarget

pytestmark = pytest.mark.smoke
SIZE, FEATURES = 8, 4


def backbone(pictures: torch.Tensor) -> torch.Tensor:
    """(N, F): something that depends on each channel."""
    x = pictures.float().flatten(1) / 255
    weights = torch.linspace(-1, 1, x.shape[1] * FEATURES).reshape(-1, FEATURES).sin()
    return x @ weights


def module(stack: Stack, **settings: object) -> Slices:
    torch.manual_seed(0)
    made = Slices(Series(width=8, **settings), stack, FEATURES).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def studies(stack: Stack, present: list[int], seed: int = 0) -> torch.Tensor:
    """uint8 studies (B, S, S, ...) of which the first `present` slices of each series are not black."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (len(present), SIZE, SIZE, stack.series, stack.slices, stack.channels))
    images = 1 + images * rng.random((len(present), 1, 1, stack.series, stack.slices, stack.channels))
    for image, n in zip(images, present, strict=True):
        image[..., n:, :] = 0
    return torch.from_numpy(images.reshape(len(present), SIZE, SIZE, -1).astype(np.uint8))


@pytest.mark.parametrize("context", ["none", "gru", "transformer"])
@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_black_slices_have_no_say(context, pool):
    """A study of five slices in seven slots is the study of five slices in five."""
    short, padded = Stack(slices=5), Stack(slices=7)
    a, b = module(short, context=context, pool=pool), module(padded, context=context, pool=pool)
    state = {key: value for key, value in a.state_dict().items() if key != "context.place"}
    b.load_state_dict(state, strict=False)
    if context == "transformer":
        with torch.no_grad():
            b.context.place[:5] = a.context.place
    images = studies(short, [5, 5, 5])
    longer = torch.cat([images, torch.zeros(3, SIZE, SIZE, 2, dtype=torch.uint8)], dim=3)
    seen = a(images, backbone)
    assert seen.shape == (3, a.width) and torch.isfinite(seen).all()
    assert torch.allclose(seen, b(longer, backbone), atol=1e-5)


def test_neighbours_are_channels_in_their_order():
    stack = Stack(slices=6, channels=2)
    images = studies(stack, [6])
    pictures, present = module(stack, neighbours=3, step=2).pictures(images)
    slices = images.reshape(SIZE, SIZE, 6, 2)
    assert pictures.shape == (1, 3, SIZE, SIZE, 6) and present.all()
    for place, middle in enumerate((1, 3, 5)):  # of two slices, the second
        around = [min(max(middle + k, 0), 5) for k in (-1, 0, 1)]
        assert torch.equal(pictures[0, place].reshape(SIZE, SIZE, 3, 2), slices[:, :, around])


def test_a_missing_series_is_its_own_learnt_features():
    stack = Stack(series=2, slices=4)
    slices = module(stack, pool="mean", neighbours=1)
    images = studies(stack, [4, 4]).reshape(2, SIZE, SIZE, 2, 4)
    images[1, :, :, 0] = 0
    seen = slices(images.flatten(3), backbone).unflatten(1, (2, -1))
    assert torch.allclose(seen[1, 0], slices.missing[0]) and not torch.allclose(seen[0, 0], slices.missing[0])
    images[1, :, :, 1] = 0  # a study that is black all over is seen as it is: never NaN
    assert torch.isfinite(slices(images.flatten(3), backbone)).all()


def test_only_a_context_sees_the_order_of_single_slices():
    stack = Stack(slices=5)
    images = studies(stack, [5])
    turned = images.flip(3)
    for settings, same in (
        ({"pool": "attention"}, True),
        ({"context": "gru"}, False),
        ({"context": "transformer"}, False),
    ):
        slices = module(stack, neighbours=1, **settings)
        assert torch.allclose(slices(images, backbone), slices(turned, backbone), atol=1e-5) == same
    slices = module(stack, neighbours=3)
    assert not torch.allclose(slices(images, backbone), slices(turned, backbone), atol=1e-5)


def network_of(batch: int | str) -> Network:
    overrides = ["model.name=test_resnet", "model.pretrained=false", "image_size=32", f"model.series.batch={batch}"]
    torch.manual_seed(0)
    return create_network(fitted(load_recipe("baseline", overrides), None, ImageOptions(slices=6)), 1).train()


def test_micro_batches_give_the_same_gradients():
    images = studies(Stack(slices=6), [6, 4]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    gradients = []
    for batch in ("null", 5):
        network = network_of(batch)
        for norm in network.modules():  # whose statistics in training are those of a micro-batch
            norm.train(not isinstance(norm, nn.BatchNorm2d))
        network(images).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_activations_made_again_leave_batch_norms_statistics_alone():
    images = studies(Stack(slices=6), [6, 4]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    statistics = []
    for backward in (True, False):
        network = network_of(5)
        logits = network(images)
        if backward:
            with counted_once(network):
                logits.sum().backward()
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and norms[0].momentum == 0.1
        statistics.append([norm.running_mean.clone() for norm in norms])
    assert all(map(torch.equal, *statistics))


def test_a_network_of_studies_takes_them_and_others_refuse_its_settings():
    recipe = load_recipe("demo_series", ["image_size=32"])
    options = ImageOptions(slices=4, window=["brain", "lung", "bone"], series=["A", "B"])
    assert options.planes == 24 and options.per_slice == 3
    network = create_network(fitted(recipe, None, options), 3).eval()
    assert network.mean.shape[1] == 9  # three neighbours of three windows
    images = torch.randint(0, 255, (2, 32, 32, 24)).to(torch.uint8)
    assert network(images).shape == (2, 3) and network.embed(images).shape[0] == 2
    with pytest.raises(UserError, match=r"model\.series"):
        fitted(load_recipe("baseline", ["model.series.pool=max"]), None, ImageOptions())
    with pytest.raises(UserError, match="as_is"):
        fitted(recipe.model_copy(update={"model": recipe.model.model_copy(update={"mode": "as_is"})}), None, options)


def test_a_slices_effect_is_what_the_answer_loses_without_it():
    """The head's own arithmetic against a network that is given the study without the slice."""
    network = network_of("null").eval()
    model = SimpleNamespace(
        network=network,
        tensors=lambda images, metadata: (torch.from_numpy(images), None),
        evidence=lambda logits: logits,
        targets=SimpleNamespace(activation="sigmoid", fold=None),
    )
    image = studies(Stack(slices=6), [4])[0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    study = explain_slices.study_of(model, image.numpy())
    lost = explain_slices.effects(study, OutputTarget(0))
    assert np.isnan(lost[4:]).all() and np.isfinite(lost[:4]).all()
    alone = torch.tensor([[False, True, True, True, False, False]])
    with torch.inference_mode():
        whole = network(image[None])
        assert float(whole) == pytest.approx(float(study.logits(study.present)), abs=1e-5)
        assert lost[0] == pytest.approx(float(whole - study.logits(alone)), abs=1e-5)
    curves = explain_slices.deletion(study, OutputTarget(0), lost)
    nothing = torch.zeros_like(study.present)
    for curve in curves.values():
        assert curve.shape == (1, 15) and curve[0, 0] == pytest.approx(float(whole.sigmoid()), abs=1e-5)
        assert curve[0, -1] == pytest.approx(float(study.logits(nothing).sigmoid()), abs=1e-5)


@pytest.mark.parametrize("step", [1, 2, 3, 16, 40])
def test_no_slice_is_lost_between_pictures(step):
    """A slice alone in its stretch stands for it; a study of one slice is one picture, whatever the step."""
    stack = Stack(series=2, slices=8)
    images = studies(stack, [8, 1])
    images.reshape(2, SIZE, SIZE, 2, 8)[0, :, :, 0, 4:] = 0
    slices = module(stack, neighbours=1, step=step)
    pictures, present = slices.pictures(images)
    count = -(-8 // step)
    assert present.shape == (2, 2 * count)
    assert present[0].tolist() == [k * step < 4 for k in range(count)] + [True] * count
    assert present[1].tolist() == ([True] + [False] * (count - 1)) * 2
    own = images.reshape(2, SIZE, SIZE, 2, 8)[1, :, :, 0, 0]
    assert torch.equal(pictures[1, 0, :, :, 0], own)


def test_black_slices_stay_black_under_augmentation():
    """Noise and brightness would make pictures of what a study lacks."""
    images = studies(Stack(slices=12), [6] * 8).numpy().repeat(4, 1).repeat(4, 2)
    for preset in ("medium", "heavy", "melanoma2020"):
        seen = train_ops(preset, 32, randaugment=9)(images, np.random.default_rng(0))
        assert not seen[..., 6:].any() and seen[..., :6].any(axis=(1, 2)).mean() > 0.9
