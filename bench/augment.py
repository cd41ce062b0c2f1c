"""Our augmentation against albumentations': speed, and whether a model can tell which one trained it.

    python bench/augment.py [--sizes 224 384 512] [--presets melanoma2020 medium heavy] [--repeats 15]
    python bench/augment.py --models [--seeds 3]       needs ../shared: skin1500 and the MobileNetV2 weights
    python bench/augment.py --figures docs/augment     the pictures of docs/augment.md, of the demo's images

Speed: images per second of one core, both sides call by call in turn in one process, a batch of 8 each; median over
the calls and, in brackets, the ratio's quartiles. Images: skin1500 and hymenoptera, resized; else the demo's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from foldwise import augment, demo
from foldwise.augment import canvas, operations
from foldwise.report import figures, previews

SHARED = Path(os.environ.get("FOLDWISE_SHARED", REPOSITORY.parent / "shared"))


def demo_images(count: int, size: int) -> np.ndarray:
    """uint8 (count, size, size, 3) of the demo's generator."""
    cases = demo.draw_cases(demo.Settings(images=200, seed=3))
    chosen = cases.sort_values("asymmetry", ascending=False).head(count).to_dict("records")
    images = [demo.render(case, np.random.default_rng(number)) for number, case in enumerate(chosen)]
    return np.stack([_square(np.clip(image * 255, 0, 255).astype(np.uint8), size) for image in images])


def contents(size: int) -> dict[str, np.ndarray]:
    """Batches of 8 by kind of content."""
    found = {}
    for name, pattern in (("skin1500", "data/skin1500/train/*.jpg"), ("hymenoptera", "data/hymenoptera/**/*.jpg")):
        paths = sorted(SHARED.glob(pattern))[:8]
        if paths:
            found[name] = np.stack([_square(cv2.imread(str(path))[:, :, ::-1], size) for path in paths])
    return found or {"demo": demo_images(8, size)}


def _square(image: np.ndarray, size: int) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(
        np.ascontiguousarray(image[top : top + side, left : left + side]), (size, size), interpolation=how
    )


def speed(sizes: list[int], presets: list[str], repeats: int) -> None:
    """Print a line per preset, size and content."""
    print(f"{'preset':<14}{'side':>5}  {'images':<12}{'ours':>8}{'albumentations':>16}   ratio (quartiles)")
    for preset in presets:
        for size in sizes:
            for name, images in contents(size).items():
                sides = augment.train_ops(preset, size), augment.reference_ops(preset, size)
                rngs = np.random.default_rng(0), np.random.default_rng(0)
                seconds = np.zeros((repeats, 2))
                for repeat in range(-2, repeats):  # two rounds to warm up
                    for side in (0, 1):
                        started = time.thread_time()
                        for _ in range(2):
                            sides[side](images, rngs[side])
                        seconds[repeat, side] = (time.thread_time() - started) / (2 * len(images))
                rates = 1 / np.median(seconds, axis=0)
                ratio = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 75])
                print(
                    f"{preset:<14}{size:>5}  {name:<12}{rates[0]:>8.0f}{rates[1]:>16.0f}   {rates[0] / rates[1]:.2f} "
                    f"({ratio[0]:.2f} to {ratio[1]:.2f})",
                    flush=True,
                )


def models(seeds: int, size: int = 96, rows: int = 500) -> None:
    """AUC of nevus against the rest: logistic regression on MobileNetV2's features, trained on one side's images."""
    import pandas as pd
    import timm
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    torch.set_num_threads(1)
    network = timm.create_model(
        "mobilenetv2_100",
        pad_type="same",
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(SHARED / "weights/mobilenetv2_100.safetensors"), "num_classes": 1000},
    ).eval()

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [torch.from_numpy(part).permute(0, 3, 1, 2) / 127.5 - 1 for part in np.array_split(images, 8)]
            return torch.cat([network(part) for part in parts]).numpy()

    table = pd.read_csv(SHARED / "data/skin1500/train.csv").sample(2 * rows, random_state=0)
    files = [cv2.imread(str(SHARED / f"data/skin1500/train/{name}.jpg"))[:, :, ::-1] for name in table["isic_id"]]
    images = np.stack([_square(file, size) for file in files])
    truth = (table["dx"] == "NV").to_numpy()
    sides = {"ours": augment.train_ops("melanoma2020", size), "twin": augment.reference_ops("melanoma2020", size)}
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        made = {name: embed(ops(images, np.random.default_rng(seed))) for name, ops in sides.items()}
        half = np.random.default_rng(seed).permutation(2 * rows)
        fit, held = half[:rows], half[rows:]
        for trained in sides:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=500))
            model.fit(made[trained][fit], truth[fit])
            for scored in sides:
                auc = roc_auc_score(truth[held], model.decision_function(made[scored][held]))
                scores.setdefault((trained, scored), []).append(float(auc))
        print(
            f"seed {seed}: " + "  ".join(f"{a} -> {b} {values[-1]:.4f}" for (a, b), values in scores.items()),
            flush=True,
        )
    for (trained, scored), values in scores.items():
        print(
            f"trained on {trained}, scored on {scored}: AUC {np.mean(values):.4f}, spread {np.std(values, ddof=1):.4f}"
        )
    gap = np.subtract(scores["ours", "twin"], scores["ours", "ours"])
    print(f"trained on ours, scored on twin minus ours: {gap.mean():+.4f}, spread {gap.std(ddof=1):.4f}")


def draw(folder: Path) -> None:
    """One picture of the presets, and one of melanoma2020's operations one by one."""
    images = demo_images(2, 224)
    versions = 5
    figures.save(
        previews.augmentation_grid(images, ["melanoma2020"], versions=versions), folder / "melanoma2020.jpg", dpi=75
    )
    named = {
        "shift, scale,\nrotate": operations.Affine(0.1, 0.1, 15, canvas.BLACK),
        "lens": operations.OpticalDistortion(1.0),
        "grid": operations.GridDistortion(5, 1.0),
        "elastic\n(alpha 3)": operations.ElasticTransform(3, 50),
        "brightness": operations.BrightnessContrast(0.2),
        "contrast": operations.BrightnessContrast(0, 0.2),
        "CLAHE": operations.Clahe(4.0),
        "HSV": operations.HueSaturationValue(10, 20, 10),
        "motion blur": operations.MotionBlur(5),
        "median": operations.MedianBlur(5),
        "Gaussian blur": operations.GaussianBlur(0.8, 1.1, largest=5),
        "noise": operations.GaussNoise(5**0.5, 30**0.5),
        "cutout": operations.CutOut(0.375),
    }
    size = images.shape[1]
    pipelines = (augment.pipeline, augment.reference_pipeline)
    makers = {name: [pipeline([one], size) for pipeline in pipelines] for name, one in named.items()}
    figures.save(previews.grid(images[:1], makers, versions), folder / "operations.jpg", dpi=75)
    others = ["light", "medium", "heavy"]
    figures.save(previews.augmentation_grid(images[:1], others, versions=versions), folder / "presets.jpg", dpi=75)
    figures.save(
        previews.augmentation_grid(images[:1], ["none"], flips="none", randaugment=12, versions=10),
        folder / "randaugment.jpg",
        dpi=75,
    )
    figures.save(
        previews.augmentation_grid(_sketch(224)[None], ["sketch"], versions=versions), folder / "sketch.jpg", dpi=75
    )


def _sketch(size: int) -> np.ndarray:
    """A house drawn by code: dark strokes on white."""
    paper = np.full((size, size, 3), 255, np.uint8)
    unit = size / 10
    for line in (
        [(2, 9), (2, 5), (5, 2), (8, 5), (8, 9), (2, 9)],
        [(4, 9), (4, 6.5), (5.5, 6.5), (5.5, 9)],
        [(6.3, 6), (7.3, 6), (7.3, 7), (6.3, 7), (6.3, 6)],
        [(6.8, 3.7), (6.8, 2.2), (7.5, 2.2), (7.5, 4.4)],
    ):
        cv2.polylines(paper, [np.rint(np.array(line) * unit).astype(np.int32)], False, (40, 40, 40), 3, cv2.LINE_AA)
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512])
    parser.add_argument("--presets", nargs="+", default=["melanoma2020", "medium", "heavy"])
    parser.add_argument("--repeats", type=int, default=15, help="calls of each side (default: 15)")
    parser.add_argument("--models", action="store_true", help="train on one side's images, score on the other's")
    parser.add_argument("--seeds", type=int, default=3, help="of --models (default: 3)")
    parser.add_argument("--figures", type=Path, help="write the pictures of docs/augment.md to this folder")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    if arguments.figures:
        draw(arguments.figures)
    elif arguments.models:
        models(arguments.seeds)
    else:
        speed(arguments.sizes, arguments.presets, arguments.repeats)


if __name__ == "__main__":
    main()
