"""Maps fall where the answer comes from, in every layout; rows are explained by the model that did not see them."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import Workplace, shared
from torch import Tensor, nn

from foldwise import UserError
from foldwise.data.competition import Competition, load_competition
from foldwise.data.recipe import load_recipe
from foldwise.data.runs import recipe_of
from foldwise.model import explain, fold_models, precision
from foldwise.model.fold_models import FoldModel
from foldwise.model.network import IMAGENET, PretrainedNetwork, create_network
from foldwise.model.targets import OutputTarget, Targets
from foldwise.report import cases, explain_figures
from foldwise.report.explain import Explanation

SIZE = 32
BOTH = [OutputTarget(0), OutputTarget(1)]


class Corner(nn.Module):
    """A network whose answer is the brightness of the upper right quadrant minus that of the lower left."""

    def __init__(self, layout: str = "nchw") -> None:
        super().__init__()
        self.layout = layout
        self.conv = nn.Conv2d(3, 2, 4, stride=4)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.zero_()
            self.conv.weight[0] = 1 / 48
        self.out = nn.ReLU()
        self.output_fmt = "NHWC" if layout == "nhwc" else "NCHW"
        self.num_prefix_tokens = 1 if layout == "tokens" else 0
        self.pretrained_cfg: dict = {}
        side = SIZE // 4
        mask = torch.zeros(side, side)
        mask[: side // 2, side // 2 :] = 1
        mask[side // 2 :, : side // 2] = -1
        self.register_buffer("mask", mask)

    def forward_features(self, x: Tensor) -> Tensor:
        planes = self.conv(x)
        if self.layout == "nhwc":
            planes = planes.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = planes.flatten(2).transpose(1, 2)
            planes = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return self.out(planes)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.forward_features(x)
        if self.layout == "tokens":
            seen = seen[:, 1:].transpose(1, 2).unflatten(2, (SIZE // 4, SIZE // 4))
        if self.layout == "nhwc":
            seen = seen.permute(0, 3, 1, 2)
        answer = (seen[:, 0].relu() * self.mask).sum(dim=(1, 2))  # relu: dark cells have no gradient
        return torch.stack([answer, -answer], dim=1)


def fold_model(network: nn.Module, classes: int = 2) -> FoldModel:
    """A network that tells `classes` apart, as a fold's model; nothing in it learns, as in a frozen one."""
    network.requires_grad_(False)
    names = [str(k) for k in range(classes)]
    targets = Targets("multiclass", names, names, "softmax")
    recipe = load_recipe("baseline")
    plain = precision.of_device(recipe, torch.device("cpu"))
    return FoldModel(
        about("multiclass"), recipe, 0, targets, [network.eval()], None, plain, np.full(classes, 1 / classes)
    )


def as_is(body: nn.Module, *mean_std: tuple[float, ...]) -> PretrainedNetwork:
    """A module that answers by itself."""
    network = PretrainedNetwork(body, *mean_std)
    network.classes = nn.Identity()
    return network


def corner(layout: str = "nchw") -> FoldModel:
    return fold_model(as_is(Corner(layout), (0.0,) * 3, (1.0,) * 3))


def made(*overrides: str, size: int = 64, outputs: int = 2, metadata: int = 0) -> FoldModel:
    """A small timm network, its weights moved off the zeros that some layers start from."""
    recipe = load_recipe("baseline", ["model.pretrained=false", "model.mode=scratch", f"image_size={size}", *overrides])
    torch.manual_seed(0)
    network = create_network(recipe, outputs, metadata) if metadata else create_network(recipe, outputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return fold_model(network)


def energy_inside(heat: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fractions of each map's sum and of its area that lie in its box (x0, y0, x1, y1 in 0..1)."""
    at = (np.arange(heat.shape[1]) + 0.5) / heat.shape[1]
    across, down = ((at >= box[:, k : k + 1]) & (at < box[:, k + 2 : k + 3]) for k in (0, 1))
    inside = down[:, :, None] & across[:, None, :]
    return np.where(inside, heat, 0).sum(axis=(1, 2)) / heat.sum(axis=(1, 2)), inside.mean(axis=(1, 2))


def noise(count: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, size, size, 3)).astype(np.uint8)


# --- maps -------------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_the_map_falls_where_the_answer_comes_from(layout: str) -> None:
    asked = corner(layout)
    lit = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    lit[0, : SIZE // 2, SIZE // 2 :] = 200  # upper right: for class 0
    lit[1, SIZE // 2 :, : SIZE // 2] = 200  # lower left: for class 1
    layers = explain.cam_layers(asked.network, SIZE)
    assert layers == {"backbone": "backbone.out"}
    heat = explain.cams(asked, lit, BOTH, layers).maps["backbone"]
    for each, (down, right) in zip(heat, [(0, 1), (1, 0)], strict=True):
        share = each.reshape(2, SIZE // 2, 2, SIZE // 2).sum(axis=(1, 3)) / each.sum()
        assert share[down, right] > 0.8, share
    against = explain.cams(asked, lit, [OutputTarget(1), OutputTarget(0)], layers).maps["backbone"]
    assert (against == 0).all(), "nothing speaks for the other class"
    ig, total, difference = explain.integrated_gradients(asked, torch.from_numpy(lit), BOTH)
    share = explain.ig_map(ig).numpy().reshape(2, 2, SIZE // 2, 2, SIZE // 2).sum(axis=(2, 4))
    assert share[0, 0, 1] > 0.9 * share[0].sum()
    assert share[1, 1, 0] > 0.9 * share[1].sum()
    assert torch.allclose(total, difference, rtol=0.02)


@pytest.mark.smoke
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "ig"])
def test_the_map_of_a_trained_network_falls_on_what_it_learnt(method: str) -> None:
    """Class 1: a bright square somewhere. A small CNN learns it in seconds; its map must lie on the square."""
    asked, images, boxes = learnt()
    layers = explain.cam_layers(asked.network, SIZE)
    heat = next(iter(explain.cams(asked, images, [OutputTarget(1)] * len(images), layers, method=method).maps.values()))
    share, area = energy_inside(heat, boxes)
    assert heat.shape == (len(images), SIZE, SIZE)
    assert np.median(share / area) > 2
    peaks = heat.reshape(len(heat), -1).max(axis=1)
    assert np.allclose(peaks[peaks > 0], 1)


_LEARNT: list[tuple[FoldModel, np.ndarray, np.ndarray]] = []


def learnt() -> tuple[FoldModel, np.ndarray, np.ndarray]:
    """A small CNN that tells noise with a bright square from noise; images with squares, and their boxes."""
    if _LEARNT:
        return _LEARNT[0]
    rng = np.random.default_rng(0)
    images = rng.integers(60, 140, (192, SIZE, SIZE, 3)).astype(np.uint8)
    at = rng.integers(2, SIZE - 10, (192, 2))
    for k in range(96):
        y, x = at[k]
        images[k, y : y + 8, x : x + 8] = 255
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    network = as_is(Plain(body), (0.4,) * 3, (0.2,) * 3)
    pixels, truth = torch.from_numpy(images), (torch.arange(192) < 96).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(pixels), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(pixels).argmax(dim=1) == truth).float().mean() > 0.95
    box = np.column_stack([at[:96, 1], at[:96, 0], at[:96, 1] + 8, at[:96, 0] + 8]) / SIZE
    _LEARNT.append((fold_model(network), images[:32], box[:32]))
    return _LEARNT[0]


class Plain(nn.Module):
    """A body, global average pooling, a linear head; timm's manners."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.fc, self.pretrained_cfg = body, nn.Linear(8, 2), {}

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).amax(dim=(2, 3)))


@pytest.mark.smoke
def test_gradcam_is_captums() -> None:
    from captum.attr import LayerGradCam

    asked, images = made("model.name=test_resnet"), torch.from_numpy(noise())
    seen = explain.maps(asked, images, [OutputTarget(1), OutputTarget(1)], ["backbone.layer3"])
    ours = explain.gradcam(seen.activation["backbone.layer3"], seen.gradient["backbone.layer3"])
    theirs = LayerGradCam(asked.network, asked.network.backbone.layer3).attribute(
        images.float(), target=1, relu_attributions=True
    )
    assert ours.max() > 0
    assert torch.allclose(ours, theirs[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.smoke
def test_evidence_against_is_the_other_map() -> None:
    asked = made("model.name=test_resnet", outputs=1)
    images, layers = noise(), explain.cam_layers(asked.network, 64)
    seen = {
        sign: explain.maps(asked, torch.from_numpy(images), [OutputTarget(0, sign)] * 2, list(layers.values()))
        for sign in (1, -1)
    }
    (layer,) = layers.values()
    assert torch.allclose(seen[1].gradient[layer], -seen[-1].gradient[layer])


@pytest.mark.parametrize(
    "name, size, layer, shape",
    [
        ("test_resnet", 64, "layer3", (192, 4, 4)),  # layer4 has 2 x 2 cells
        ("test_resnet", 128, "layer4", (96, 4, 4)),
        ("test_vit", 160, "blocks.5.norm1", (64, 10, 10)),
        ("test_efficientnet", 128, "bn2", (256, 4, 4)),
        ("test_convnext", 128, "stages", (64, 4, 4)),
    ],
)
def test_the_default_layer_is_the_last_that_can_say_where(
    name: str, size: int, layer: str, shape: tuple[int, ...]
) -> None:
    asked = made(f"model.name={name}", size=size)
    found = explain.cam_layers(asked.network, size)
    assert found == {"backbone": f"backbone.{layer}"}
    seen = explain.maps(asked, torch.from_numpy(noise(2, size)), BOTH, list(found.values()))
    assert seen.activation[f"backbone.{layer}"].shape == (2, *shape)
    assert (seen.gradient[f"backbone.{layer}"].abs().sum(dim=(1, 2, 3)) > 0).all()
    heat = explain.cams(asked, noise(2, size), BOTH, found).maps["backbone"]
    assert heat.shape == (2, size, size)


def test_swin_maps_are_channels_last() -> None:
    asked = made("model.name=swin_tiny_patch4_window7_224", size=224)
    found = explain.cam_layers(asked.network, 224)
    seen = explain.maps(asked, torch.from_numpy(noise(1, 224)), [OutputTarget(0)], list(found.values()))
    assert seen.activation["backbone.norm"].shape == (1, 768, 7, 7)


def test_two_backbones_give_two_maps_and_fusion_takes_metadata() -> None:
    asked = made(
        "model.name=test_resnet",
        "model.second={name: test_efficientnet, pretrained: false}",
        "model.metadata=true",
        metadata=3,
    )
    layers = explain.cam_layers(asked.network, 64)
    assert set(layers) == {"backbone", "second"}
    beside = np.array([[1, 0, -2], [0, 0, 0]], np.float32)
    heat = explain.cams(asked, noise(), BOTH, layers, beside)
    assert {name: each.shape for name, each in heat.maps.items()} == dict.fromkeys(layers, (2, 64, 64))
    chosen = explain.cam_layers(asked.network, 64, "second.blocks.1")
    assert chosen == {"backbone": layers["backbone"], "second": "second.blocks.1"}

    images, meta = asked.tensors(noise(), beside)
    added, whole = explain.metadata_contributions(asked, images, BOTH, meta)
    assert added.shape == (2, 3)
    assert torch.allclose(added.sum(dim=1), whole, atol=0.02 * float(whole.abs().max()) + 1e-5)
    assert (added[beside == 0].abs() < 1e-7).all(), "a feature at the average adds nothing"
    logits = asked.network(images, torch.stack([meta[0], 0 * meta[0]]))
    same = asked.network(images[:1].repeat(2, 1, 1, 1), torch.stack([meta[0], 0 * meta[0]]))[:, 0]
    assert logits.shape == (2, 2)
    assert float(whole[0]) == pytest.approx(float(same[0] - same[1]), abs=1e-4)


@pytest.mark.smoke
def test_a_misspelt_layer_lists_the_nearest() -> None:
    asked = made("model.name=test_resnet")
    with pytest.raises(UserError, match="did you mean 'layer4'"):
        explain.cam_layers(asked.network, 64, "layer_4")
    with pytest.raises(UserError, match="no map of the image"):
        explain.cam_layers(asked.network, 64, "fc")
    assert explain.cam_layers(asked.network, 64, "layer2.0")["backbone"] == "backbone.layer2.0"


def test_integrated_gradients_are_complete() -> None:
    asked, targets = made("model.name=test_resnet"), [OutputTarget(0), OutputTarget(1, -1)]
    images = torch.from_numpy(noise())
    _, total, difference = explain.integrated_gradients(asked, images, targets, steps=96)
    with torch.inference_mode():
        start = explain.blurred(images)
        before, after = (explain.evidence_for(asked, asked.network(x), targets) for x in (start, images))
    assert torch.allclose(difference, after - before, atol=1e-4)
    assert torch.allclose(total, difference, rtol=0.05, atol=0.02)


@pytest.mark.smoke
def test_stages_filters_and_maximised_inputs() -> None:
    asked = made("model.name=test_resnet")
    layers = explain.stages(asked.network, 64)["backbone"]
    seen = explain.feature_maps(asked, noise()[0], OutputTarget(1), layers)
    assert [stage.channels for stage in seen] == [32, 32, 48, 192, 96]
    sides = [stage.mean.shape[0] for stage in seen]
    assert sides == sorted(sides, reverse=True)
    assert all((np.diff(np.abs(stage.weights)) <= 1e-6).all() for stage in seen), "strongest first"
    filters = explain.first_filters(asked.network.backbone)
    assert filters is not None and filters.shape[-1] == 3
    start = float(explain.evidence_for(asked, asked.network(torch.full((1, 64, 64, 3), 128.0)), [OutputTarget(1)]))
    image, reached = explain.maximise(asked, OutputTarget(1), 64, steps=20)
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
    assert reached > start
    assert np.array_equal(image, explain.maximise(asked, OutputTarget(1), 64, steps=20)[0])


@pytest.mark.smoke
def test_deletion_by_a_true_map_beats_chance_and_a_false_one_does_not() -> None:
    asked, images, boxes = learnt()
    images, boxes, targets = images[:8], boxes[:8], [OutputTarget(1)] * 8
    at = (np.arange(SIZE) + 0.5) / SIZE
    inside = (at[:, None] >= boxes[:, None, None, 1]) & (at[:, None] < boxes[:, None, None, 3])
    inside = inside & (at >= boxes[:, None, None, 0]) & (at < boxes[:, None, None, 2])
    heat = inside[:, 0].astype(np.float32) if inside.ndim == 4 else inside.astype(np.float32)
    true = {o: explain.area(c) for o, c in explain.deletion(asked, images, targets, heat).items()}
    false = {o: explain.area(c) for o, c in explain.deletion(asked, images, targets, 1 - heat).items()}
    assert true["map"].mean() < true["random"].mean() - 0.1
    assert false["map"].mean() > false["random"].mean()
    curves = explain.deletion(asked, images, targets, heat)["map"]
    assert np.allclose(curves[:, 0], asked.answer(images)[:, 1], atol=1e-5)


# --- rows -------------------------------------------------------------------------------------------------


def about(task: str, target: str | list[str] = "y") -> Competition:
    return Competition(
        name="x", task=task, metric="roc_auc", target=target, train={"table": "t.csv", "images": "{id}.png"}
    )


def ids(sheet: cases.Sheet) -> list[str]:
    return [case.id for case in sheet.cases]


@pytest.mark.smoke
def test_sheets_of_a_binary_run() -> None:
    table = pd.DataFrame(
        {
            "id": list("abcdef"),
            "fold": [0, 0, 1, 1, 2, 2],
            "target": [1, 1, 0, 0, 0, 1],
            "pred": [0.05, 0.9, 0.6, 0.01, 0.2, 0.7],
        }
    )
    found = cases.answers(about("binary"), table)
    worst, right, *pairs = cases.sheets(found, cases.SHEETS, 2)
    assert ids(worst) == ["a", "c"]
    assert ids(right) == ["b", "d"] or ids(right) == ["d", "b"]
    assert sorted((sheet.title, tuple(ids(sheet))) for sheet in pairs) == [
        ("y = 0, taken for y = 1", ("c",)),
        ("y = 1, taken for y = 0", ("a",)),
    ]
    missed = worst.cases[0]
    assert [(target.name, target.sign) for target in missed.targets] == [("y = 0", -1), ("y = 1", 1)]
    assert missed.fold == 0 and missed.probability == pytest.approx(0.95) and not missed.right


@pytest.mark.smoke
def test_of_copies_one_is_shown_and_pairs_do_not_repeat_the_worst() -> None:
    rng = np.random.default_rng(0)
    facts = {"id": [f"r{k:02d}" for k in range(40)], "fold": 0, "target": np.arange(40) % 2, "pred": rng.random(40)}
    found = cases.answers(about("binary"), pd.DataFrame(facts))
    order = found.table["id"].to_numpy()[np.argsort(found.of_truth, kind="stable")]
    copies = {order[0]: "g", order[1]: "g"}
    worst, _, *pairs = cases.sheets(found, cases.SHEETS, 3, copies)
    assert ids(worst) == [order[0], order[2], order[3]]
    assert pairs and not {*ids(worst)} & {name for sheet in pairs for name in ids(sheet)}
    assert any("Without the worst errors above." in sheet.lead for sheet in pairs)
    assert all("as many rows as are 1" in sheet.lead for sheet in pairs)


@pytest.mark.smoke
def test_sheets_of_other_tasks() -> None:
    rows = {"id": list("abc"), "fold": [0, 1, 2]}
    table = pd.DataFrame({**rows, "target": ["01", "x", "x"], "pred_01": [0.2, 0.4, 0.1], "pred_x": [0.8, 0.6, 0.9]})
    worst, _, pair = cases.sheets(cases.answers(about("multiclass"), table), cases.SHEETS, 5)
    assert ids(worst)[0] == "a" and pair.title == "01, taken for x"
    assert [(target.name, target.output, target.sign) for target in worst.cases[0].targets] == [
        ("x", 1, 1),
        ("01", 0, 1),
    ]

    table = pd.DataFrame({**rows, "target": [1.0, 5.0, 3.0], "pred": [1.1, 2.0, 3.0]})
    worst, right = cases.sheets(cases.answers(about("regression"), table), cases.SHEETS, 5)
    assert ids(worst) == ["b", "a", "c"] and ids(right) == ["c", "a", "b"]
    assert worst.cases[0].answer == "2" and worst.cases[0].truth == "5"

    table = pd.DataFrame(
        {**rows, "target_p": [1, 0, 0], "target_q": [0, 1, 0], "pred_p": [0.9, 0.1, 0.2], "pred_q": [0.3, 0.2, 0.1]}
    )
    found = cases.answers(about("multilabel", ["p", "q"]), table)
    worst = cases.sheets(found, ["worst"], 2)[0]
    assert [(case.id, case.truth) for case in worst.cases] == [("b", "q = 1"), ("a", "q = 0")]
    assert [target.output for target in worst.cases[0].targets] == [1, 1]
    assert [case.truth for case in cases.chosen(found, ["a"])] == ["p = 1", "q = 0"]


@pytest.mark.smoke
def test_the_deletion_check_is_drawn_among_answers_that_are_there() -> None:
    table = pd.DataFrame({"id": range(50), "fold": 0, "target": [1] * 5 + [0] * 45, "pred": np.linspace(1, 0, 50)})
    drawn = cases.sample(cases.answers(about("binary"), table.astype({"id": str})), 24)
    assert {case.answer for case in drawn} == {"y = 1"} and len(drawn) == 5


# --- the script -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(trained: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A copy of the trained tiny competition with its run explained."""
    root = tmp_path_factory.mktemp("explained")
    shutil.copytree(trained.root, root, dirs_exist_ok=True)
    place = Workplace(root, root / "tiny.yaml")
    done = place.run("07_explain.py", "--run", "quick", "--count", 2, "--deletion", 4, "--maximise", drawn=True)
    assert "look at oof/tiny/quick/explain/index.html" in done.stdout
    assert re.match(r"(maps matter|do not trust these maps): .* \([+-]0\.\d+, ", done.stdout.splitlines()[-1])
    assert done.stdout.splitlines()[-1] in unescape((place.runs / "quick" / "explain" / "index.html").read_text())
    return place


def test_the_page_is_whole(explained: Workplace) -> None:
    folder = explained.runs / "quick" / "explain"
    html = (folder / "index.html").read_text()
    links = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', html))
    files = {link for link in links if not link.startswith("data:")}
    assert files and all((folder / file).is_file() for file in files)
    assert "://" not in re.sub(r'data:image/[^"]*', "", html)
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors <= set(re.findall(r'id="([^"]+)"', html))
    for words in (
        "Worst errors",
        "Most confident right",
        "Does the map matter",
        "Stage by stage",
        "First-layer",
        "age",
    ):
        assert words in html
    for path in folder.glob("*.png"):
        assert cv2.imread(str(path)) is not None, path
    assert {"worst.png", "right.png", "deletion.png", "stage_1.png", "filters_backbone.png", "input_1.png"} <= {
        path.name for path in folder.glob("*.png")
    }
    assert not list(folder.parent.glob("*.part"))


def test_each_row_is_explained_by_the_model_that_did_not_see_it(explained: Workplace) -> None:
    """The model that made the map gives the row's out-of-fold prediction again; another fold's would not."""
    made = pd.read_csv(explained.runs / "quick" / "explain" / "cases.csv", dtype={"id": str})
    folds = pd.read_csv(explained.derived / "folds.csv").set_index("id")["fold"]
    assert (folds.reindex(made["id"]).to_numpy() == made["fold"].to_numpy()).all()
    assert np.allclose(made["probability"], made["model_probability"], atol=1e-4)
    assert made["fold"].nunique() > 1
    assert explained_with(explained, lambda fold: fold) < 1e-4
    assert explained_with(explained, lambda fold: (fold + 1) % 3) > 1e-3, "the check above can't fail"


def explained_with(place: Workplace, other: object, count: int = 6) -> float:
    """How far the explaining model is from the OOF prediction, at worst, were fold K explained by model other(K)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDWISE_ROOT", str(place.root))
        real = fold_models.load_fold
        patch.setattr(
            fold_models,
            "load_fold",
            lambda about, recipe, run, fold, table: real(about, recipe, run, other(fold), table),
        )
        about = load_competition(str(place.competition))
        recipe = recipe_of(about, "quick")
        explained = Explanation(about, recipe, "quick")
        sheets = explained.sheets(["worst"], count)
        explained.ask(sheets, [])
        return max(abs(explained._own(case) - case.probability) for case in sheets[0].cases)


def test_rows_by_id_unreadable_ones_are_named(explained: Workplace, tmp_path: Path) -> None:
    done = explained.run(
        "07_explain.py", "--run", "quick", "--rows", "tr0000", "tr0007", "--method", "ig", "--deletion", 0
    )
    assert "skipped tr0007: can't be read" in done.stderr
    made = pd.read_csv(explained.runs / "quick" / "explain" / "cases.csv")
    assert made["id"].tolist() == ["tr0000"]
    assert not (explained.runs / "quick" / "explain" / "worst.png").exists(), "nothing of before stays"
    html = (explained.runs / "quick" / "explain" / "index.html").read_text()
    assert "Completeness" in html
    assert "did you mean" in explained.refused("07_explain.py", "--run", "quick", "--rows", "tr000")
    assert "did you mean 'layer4'" in explained.refused("07_explain.py", "--run", "quick", "--layer", "layer_4")
    assert "nothing to explain" in explained.refused("07_explain.py", "--run", "quick", "--rows", "tr0007")
    info = json.loads((explained.runs / "quick" / "run.json").read_text())
    (explained.runs / "quick" / "run.json").write_text(json.dumps({**info, "folds_hash": "other"}))
    assert "other folds" in explained.refused("07_explain.py", "--run", "quick")
    (explained.runs / "quick" / "run.json").write_text(json.dumps(info))


@pytest.mark.smoke
def test_an_overlay_shows_the_image_where_the_map_is_dark() -> None:
    image = noise(1, 32)[0]
    heat = np.zeros((32, 32), np.float32)
    heat[8:16, 8:16] = 1
    shown = explain_figures.overlay(image, heat)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.corrcoef(shown[20:, 20:].mean(axis=2).ravel(), gray[20:, 20:].ravel())[0, 1] > 0.99
    assert np.ptp(shown[9:15, 9:15].astype(int), axis=2).mean() > 60, "coloured where it is bright"
    assert explain_figures.strip([image, shown]).shape == (224, 2 * 224 + explain_figures.GAP, 3)


# --- real weights -----------------------------------------------------------------------------------------


def test_maps_of_real_weights_fall_on_the_raccoon() -> None:
    """24 photos with boxes, ImageNet's own classes: more of the map lies in the box than its area."""
    files = {path.name: path for path in shared("data", "raccoon").rglob("*.jpg")}
    table = pd.read_csv(shared("data", "raccoon", "labels.csv")).drop_duplicates("filename", keep=False)
    table = table[table["filename"].isin(files)].head(24)
    weights = shared("weights", "mobilenetv2_100.safetensors")
    overlay = {"file": str(weights)}
    network = as_is(timm.create_model("mobilenetv2_100", pretrained=True, pretrained_cfg_overlay=overlay), *IMAGENET)
    asked = fold_model(network, 1000)
    images = np.stack([cv2.resize(cv2.imread(str(files[name]))[..., ::-1], (224, 224)) for name in table["filename"]])
    targets = [OutputTarget(int(k)) for k in asked.answer(images).argmax(axis=1)]
    heat = explain.cams(asked, images, targets, explain.cam_layers(network, 224)).maps["backbone"]
    scale = table[["width", "height", "width", "height"]].to_numpy(float)
    share, area = energy_inside(heat, table[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float) / scale)
    assert np.median(share / area) > 1.15
    assert np.mean(share > area) > 0.8
