"""Does the loader keep the device busy? The 2020 winner's augmentation, beside the usual practice, in one run.

    python bench/loader.py [--steps 24] [--rounds 5]

First loaders alone (images a second of wall time): the cache with threads, beside PIL + torchvision and cv2 +
albumentations in DataLoaders from 1024-pixel JPEGs. Then training: the rate with the real loader over the rate with
batches that lie in memory (loader efficiency; 1 is the limit), the two taking turns. On a GPU EfficientNet-B0 at 224
and B3 at 384 with 4 loaders, else resnet18 at 224 and mobilenetv3_small at 128 on the CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from foldwise.core import parallel

parallel.tune_allocator()

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from foldwise import augment
from foldwise.data.batches import Batch, Batches
from foldwise.data.cache import Cache
from foldwise.data.recipe import load_recipe
from foldwise.model import precision
from foldwise.model.network import create_network
from foldwise.model.predict import pick_device
from foldwise.model.transfer import on_device

PRESET = "melanoma2020"
COUNT, SOURCE = 512, 1024


def photographs(folder: Path) -> list[Path]:
    """COUNT JPEGs of SOURCE x SOURCE pixels with content at every scale."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(COUNT):
        layers = [cv2.resize(rng.integers(0, 256, (n, n, 3), np.uint8), (SOURCE, SOURCE)) for n in (4, 32, 256)]
        picture = np.mean(layers, axis=0).astype(np.uint8)
        paths.append(folder / f"{k}.jpg")
        cv2.imwrite(str(paths[-1]), picture)
    return paths


def cached(folder: Path, paths: list[Path], size: int) -> Cache:
    """The photographs as a cache of one size."""
    images = np.stack([cv2.resize(cv2.imread(str(path)), (size, size), interpolation=cv2.INTER_AREA) for path in paths])
    np.save(folder / f"images_{size}.npy", images)
    ids = pd.DataFrame({"split": "train", "id": [str(k) for k in range(len(paths))], "ok": 1})
    return Cache(folder / f"images_{size}.npy", size, ids)


class Pillow(Dataset):  # type: ignore[type-arg]
    """PIL + torchvision, as most notebooks have it (its augmentation is far lighter than the winner's)."""

    def __init__(self, paths: list[Path], size: int) -> None:
        from torchvision import transforms as T

        self.paths = paths
        self.ops = T.Compose(
            [
                T.RandomResizedCrop(size, (0.8, 1)),
                T.RandomHorizontalFlip(),
                T.RandomVerticalFlip(),
                T.ColorJitter(0.2, 0.2, 0.1, 0.03),
                T.ToTensor(),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        from PIL import Image

        return self.ops(Image.open(self.paths[k]).convert("RGB"))


class Albumentations(Dataset):  # type: ignore[type-arg]
    """cv2 + the winner's list by albumentations, resized first, then normalised on the CPU."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size
        self.ops = augment.reference_ops(PRESET, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        cv2.setNumThreads(0)
        picture = cv2.cvtColor(cv2.imread(str(self.paths[k])), cv2.COLOR_BGR2RGB)
        picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_AREA)
        made = self.ops(picture[None], np.random.default_rng(k))[0]
        return torch.from_numpy(((made / 255.0 - 0.45) / 0.225).astype(np.float32).transpose(2, 0, 1))


def rate(batches: Iterator[object], images: int) -> float:
    """Images a second of an iterator, from its first batch on."""
    next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * images / (time.perf_counter() - start)


def loaders(folder: Path, paths: list[Path], rounds: int) -> None:
    """Loaders alone."""
    cores = parallel.cores()
    print(f"loaders alone, img/s of wall time, {cores} cores, batch 64; median of {rounds} rounds that take turns")
    for size in (224, 384):
        cache = cached(folder, paths, size)
        ops = augment.train_ops(PRESET, size)
        ours = Batches(cache, np.arange(len(paths)), 64, ops, (0,), cores)
        pillow = DataLoader(Pillow(paths, size), 64, num_workers=cores)
        twin = DataLoader(Albumentations(paths, size), 64, num_workers=cores)
        found: dict[str, list[float]] = {"ours": [], "PIL + torchvision": [], "cv2 + albumentations": []}
        for turn in range(rounds):
            found["ours"].append(rate(ours.epoch(turn), 64))
            found["PIL + torchvision"].append(rate(iter(pillow), 64))
            found["cv2 + albumentations"].append(rate(iter(twin), 64))
        middle = {name: statistics.median(values) for name, values in found.items()}
        ratios = {name: f"{middle['ours'] / value:.1f} x" for name, value in middle.items() if name != "ours"}
        print(
            f"  {size}: " + "  ".join(f"{name} {value:.0f}" for name, value in middle.items()) + f"  ours is {ratios}"
        )


def efficiency(folder: Path, paths: list[Path], name: str, size: int, batch: int, steps: int, rounds: int) -> None:
    """Training with the real loader over training from memory."""
    recipe = load_recipe("baseline", [f"model.name={name}", "model.pretrained=false", f"image_size={size}"])
    device = pick_device(recipe)
    torch.manual_seed(0)
    network = create_network(recipe, 1).to(device).train()
    chosen = precision.choose(network, recipe, device)
    chosen.to_memory_format(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    threads = 4 if device.type == "cuda" else None
    cache = cached(folder, paths, size)
    rows = np.tile(np.arange(len(paths)), 1 + steps * batch * (rounds + 2) // len(paths))
    real = Batches(cache, rows, batch, augment.train_ops(PRESET, size), (0,), threads).epoch()
    memory = [Batch(cache.read(np.arange(batch)), np.arange(batch), batch)] * steps

    def run(batches: Callable[[], Iterator[Batch]]) -> float:
        taken = on_device(batches(), device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            images = next(taken).images
            with chosen.autocast(device):
                logits = network(images)
            F.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits.float())).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return steps * batch / (time.perf_counter() - start)

    run(lambda: iter(memory))
    run(lambda: real)
    pairs = []
    for _ in range(rounds):  # the loader fills its queue while the other side runs: drain what it prepared
        synthetic = run(lambda: iter(memory))
        for _ in range(2 * (threads or max(1, parallel.cores() - 1)) + 1):
            next(real)
        pairs.append((run(lambda: real), synthetic))
    real_rate, synthetic_rate = (statistics.median(side) for side in zip(*pairs, strict=True))
    shares = sorted(a / b for a, b in pairs)
    print(
        f"  {name} at {size}, batch {batch}, {device.type} {chosen.name}: {real_rate:.0f} of {synthetic_rate:.0f} "
        f"img/s, efficiency {statistics.median(shares):.3f} ({shares[0]:.3f} to {shares[-1]:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="steps a turn (default: 24)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: 5)")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder))
        loaders(Path(folder), paths, min(3, args.rounds))
        print(f"loader efficiency with preset {PRESET}: rate with the real loader / rate with batches in memory")
        gpu = torch.cuda.is_available()
        cpu = [("resnet18", 224, 32), ("mobilenetv3_small_100", 128, 64)]
        for name, size, batch in [("tf_efficientnet_b0", 224, 64), ("tf_efficientnet_b3", 384, 32)] if gpu else cpu:
            efficiency(Path(folder), paths, name, size, batch, args.steps, args.rounds)


if __name__ == "__main__":
    main()
