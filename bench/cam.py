"""Do the maps fall on the animal? Share of a map's energy inside the box of photos with boxes, against the box's area.

    python bench/cam.py [--images N] [--methods gradcam gradcam++ ig]      # ig: some ten minutes on two cores

The boxes are the raccoon photos' (labels.csv: filename, width, height, xmin, ymin, xmax, ymax); nothing is trained on
them. Two questions, MobileNetV2 with ImageNet weights, no change to its backbone:

  top-1     its own 1,000-class head, unchanged, asked for the class it answers (there is no raccoon among them)
  raccoon   a logistic regression on its frozen features, raccoons against the photos of ants and bees, in five folds:
            each photo is explained by a head that did not see it

Ratio 1 is a map that pays the box no more attention than its area; a map that is bright in the middle of every photo
(`centre`: a Gaussian of a quarter of the side) is what a box in the middle must be told apart from.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

SIZE = 224
METHODS = ("gradcam", "gradcam++", "ig")


def read(paths: list[Path]) -> np.ndarray:
    """uint8 (N, 224, 224, 3), squashed, as training's cache holds them: boxes stay shares of width and height."""
    from foldwise.data import image

    return np.stack([image.read_image(path, size=SIZE) for path in paths])


def interval(values: np.ndarray, of: str, draws: int = 2000) -> str:
    """A statistic and its 95 % bootstrap interval over images."""
    rng = np.random.default_rng(0)
    function = {"median": np.median, "mean": np.mean}[of]
    found = [function(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{function(values):.3f} ({low:.3f} to {high:.3f})"


def energy_inside(heat: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of each map's sum that lies inside its box, and the box's share of the area; (B,) each.

    heat: (B, S, S), 0 or more. box: (B, 4) x0, y0, x1, y1 as shares of width and height. A map of zeros gives NaN.
    """
    at = (np.arange(heat.shape[1]) + 0.5) / heat.shape[1]
    across = (at >= box[:, :1]) & (at < box[:, 2:3])
    down = (at >= box[:, 1:2]) & (at < box[:, 3:4])
    inside = down[:, :, None] & across[:, None, :]
    total = heat.sum(axis=(1, 2))
    share = np.where(inside, heat, 0).sum(axis=(1, 2)) / np.where(total > 0, total, np.nan)
    return share, inside.mean(axis=(1, 2))


def report(name: str, heat: np.ndarray, box: np.ndarray) -> None:
    """One line: shares, their ratio, how often it is above 1, and how often the map's peak lies in the box."""
    share, area = energy_inside(heat, box)
    known = np.isfinite(share)
    share, area, heat, box = share[known], area[known], heat[known], box[known]
    top = heat.reshape(len(heat), -1).argmax(axis=1)
    y, x = (top // SIZE + 0.5) / SIZE, (top % SIZE + 0.5) / SIZE
    hit = (x >= box[:, 0]) & (x < box[:, 2]) & (y >= box[:, 1]) & (y < box[:, 3])
    small = area < np.median(area)
    print(
        f"{name:<22} {len(share):>4}  {interval(share, 'median')}   {interval(share / area, 'median')}   "
        f"{interval(share[small] / area[small], 'median')}   {np.mean(share > area):6.1%}   {hit.mean():6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = REPOSITORY.parent / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "mobilenetv2_100.safetensors")
    parser.add_argument("--images", type=int, default=200, help="raccoon photos at most (all: 110)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["gradcam", "gradcam++"])
    args = parser.parse_args()
    for needed in (args.data / "raccoon", args.data / "hymenoptera", args.weights):
        if not needed.exists():
            print(f"skipped: {needed} is not there")
            return
    measure(args.data, args.weights, args.images, args.methods)


def measure(data: Path, weights: Path, images: int, methods: list[str]) -> None:
    import timm
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    from foldwise.core import parallel
    from foldwise.data import competition
    from foldwise.data.recipe import load_recipe
    from foldwise.model import explain, precision
    from foldwise.model.fold_models import FoldModel
    from foldwise.model.network import IMAGENET, PretrainedNetwork
    from foldwise.model.targets import OutputTarget, Targets

    parallel.tune_allocator()
    torch.set_num_threads(parallel.cores())
    table = pd.read_csv(data / "raccoon" / "labels.csv").drop_duplicates("filename", keep=False)  # one animal a photo
    found = {path.name: path for path in (data / "raccoon").rglob("*.jpg")}
    table = table[table["filename"].isin(found)].sort_values("filename").head(images)
    box = table[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float) / table[
        ["width", "height", "width", "height"]
    ].to_numpy(float)
    photos = read([found[name] for name in table["filename"]])
    others = read(sorted((data / "hymenoptera").rglob("*.jpg"))[::2])
    overlay = {"file": str(weights)}
    backbone = timm.create_model("mobilenetv2_100", pretrained=True, pretrained_cfg_overlay=overlay)
    network = PretrainedNetwork(backbone, *IMAGENET).eval()
    network.classes = torch.nn.Identity()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    names = (weights.parent / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()[1:]

    recipe, classes = load_recipe("mobilenetv2"), [str(k) for k in range(len(names))]
    plain = precision.of_device(recipe, torch.device("cpu"))
    targets = Targets("multiclass", classes, classes, "softmax")
    prior = np.full(len(classes), 1 / len(classes))
    model = FoldModel(competition.load("raccoon"), recipe, 0, targets, [network], None, plain, prior)
    layers = explain.cam_layers(network, SIZE)
    top = model.answer(photos).argmax(axis=1)
    counts = pd.Series([names[k].split(",")[0] for k in top]).value_counts()
    covered = interval(energy_inside(np.ones((len(box), SIZE, SIZE)), box)[1], "median")
    print(f"{len(photos)} photos of one raccoon each; the box covers {covered} of them; layer {layers['backbone']}")
    print("top-1 answers: " + ", ".join(f"{name} {n}" for name, n in counts.head(8).items()))
    print(
        f"\n{'':<22} {'n':>4}  {'share inside, median':<24} {'ratio, median':<25} {'ratio, smaller boxes':<23} "
        "ratio>1  peak in box"
    )
    at = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    centre = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 0.25**2))
    report("centre (no network)", np.repeat(centre[None], len(photos), axis=0), box)
    for method in methods:
        started = time.perf_counter()
        heat = explain.cams(model, photos, [OutputTarget(int(k)) for k in top], layers, method=method).maps
        report(f"top-1, {method}", next(iter(heat.values())), box)
        print(f"{'':<22} {1000 * (time.perf_counter() - started) / len(photos):.0f} ms an image", file=sys.stderr)

    with torch.inference_mode():
        every = np.concatenate([photos, others])
        batches = [torch.from_numpy(every[k : k + 32]) for k in range(0, len(every), 32)]
        x = torch.cat([network.embed(batch) for batch in batches]).numpy()
    truth = np.arange(len(every)) < len(photos)
    heat = {method: np.zeros((len(photos), SIZE, SIZE), np.float32) for method in methods}
    right = []
    for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(x, truth):
        head = LogisticRegression(C=1.0, max_iter=2000).fit(x[fit], truth[fit])
        right.append(head.score(x[held], truth[held]))
        classifier = network.backbone.get_classifier()
        with torch.no_grad():
            classifier.weight.zero_()
            classifier.bias.zero_()
            classifier.weight[0] = torch.from_numpy(head.coef_[0].astype(np.float32))
            classifier.bias[0] = float(head.intercept_[0])
        mine = held[held < len(photos)]
        for method in methods:
            made = explain.cams(model, photos[mine], [OutputTarget(0)] * len(mine), layers, method=method).maps
            heat[method][mine] = next(iter(made.values()))
    print(f"\nraccoon against {len(others)} ants and bees: accuracy of the held-out folds {np.mean(right):.3f}")
    for method in methods:
        report(f"raccoon, {method}", heat[method], box)


if __name__ == "__main__":
    main()
