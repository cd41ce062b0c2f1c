"""All that only a GPU can prove or measure, in one command and less than nine minutes on one card; no network is used.

    python bench/gpu.py [--minutes 9] [--device cpu] [--models resnet18 ...] [--sizes 224 384] [--csv docs/gpu.csv]

1. The tests marked gpu. 2. Of each model and size, on real JPEGs where they are there (shared/data; else made ones):
images a second of training steps as recipes have them, with the loader and with batches from memory (their ratio is
the loader's efficiency), where the time of a step goes (wait for the loader, copy, forward, backward, optimizer; each
waited for, so their sum is more than a step) and peak memory. 3. bench/speed.py: five folds beside timm's script and
fastai, where these are there. What no time is left for is said. --device cpu rehearses every part in small.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))
os.environ["HF_HUB_OFFLINE"] = "1"

import cv2
import numpy as np
import pandas as pd
import torch

from foldwise import augment
from foldwise.core import parallel
from foldwise.data.batches import Batch, Batches
from foldwise.data.cache import Cache
from foldwise.data.recipe import load_recipe
from foldwise.model import precision
from foldwise.model.network import create_network
from foldwise.model.transfer import DeviceBatch, on_device

MODELS = ("resnet18", "mobilenetv2_100", "efficientnet_b0", "efficientnet_b3", "convnext_tiny", "vit_small_patch16_224")
BATCH, LOADERS, IMAGES = 64, 4, 256
CSV = REPOSITORY / "docs" / "gpu.csv"
SHARE = {"tests": 0.4, "figures": 0.75}  # of the time, until when each part may begin something new
PARTS = ("wait", "copy", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Card:
    """The device, what it is called, and how much is asked of it."""

    device: torch.device
    name: str
    batch: int
    steps: int

    @classmethod
    def of(cls, device: str) -> Card:
        if device == "cuda":
            return cls(torch.device("cuda"), torch.cuda.get_device_name(), BATCH, 20)
        return cls(torch.device("cpu"), "CPU, a rehearsal", 4, 2)

    def wait(self) -> float:
        """The time when all that was asked of it is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> float:
        """MiB, since the last time it was asked; NaN on a CPU."""
        if self.device.type != "cuda":
            return float("nan")
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return round(peak)


def photographs() -> list[np.ndarray]:
    """RGB images of different sizes: real JPEGs, or made ones."""
    shared = Path(os.environ.get("FOLDWISE_SHARED", REPOSITORY.parent / "shared"))
    paths = sorted((shared / "data").rglob("*.jpg"))[:IMAGES]
    if paths:
        return [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in paths]
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (32, 32, 3), np.uint8), (400, 300)) for _ in range(IMAGES)]


def cached(folder: Path, images: list[np.ndarray], size: int) -> Cache:
    """The images at `size` as step 01 leaves them."""
    path = folder / f"images_{size}.npy"
    np.save(path, np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]))
    return Cache(path, size, pd.DataFrame({"split": "train", "id": [str(k) for k in range(len(images))], "ok": 1}))


class Training:
    """Steps of one model at one size, as recipes have them by default."""

    def __init__(self, card: Card, name: str, cache: Cache, size: int) -> None:
        self.card, self.cache, self.size = card, cache, size
        model = ["model.pretrained=false", "model.mode=scratch", f"model.name={name}", f"image_size={size}"]
        self.recipe = load_recipe("baseline", model)
        torch.manual_seed(0)
        self.network = create_network(self.recipe, 1).to(card.device).train()
        self.how = precision.of_device(self.recipe, card.device)
        self.how.to_memory_format(self.network)
        fused = {"fused": True} if card.device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, **fused)
        self.scaler = torch.amp.GradScaler(card.device.type, enabled=self.how.half == torch.float16)
        self.batch = card.batch

    def loaded(self) -> Iterator[Batch]:
        """Augmented batches without end."""
        ops = augment.train_ops(self.recipe.augment.preset, self.size)
        rows = np.tile(np.arange(len(self.cache.ids)), 1000)
        return Batches(self.cache, rows, self.batch, ops, (0,), LOADERS).epoch()

    def kept(self) -> Iterator[Batch]:
        """The same batch without end."""
        rows = np.arange(self.batch) % len(self.cache.ids)
        batch = Batch(self.cache.read(rows), rows, self.batch)
        while True:
            yield batch

    def forward(self, batch: DeviceBatch) -> torch.Tensor:
        with self.how.autocast(self.card.device):
            return self.network(batch.images).float().square().mean()

    def move(self) -> None:
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def rate(self, batches: Iterator[Batch], steps: int) -> float:
        """Images a second of whole steps, copies beside them."""
        moved, start = on_device(batches, self.card.device), 0.0
        for step in range(steps + 2):
            if step == 2:
                start = self.card.wait()
            self.scaler.scale(self.forward(next(moved))).backward()
            self.move()
        return steps * self.batch / (self.card.wait() - start)

    def split(self, steps: int) -> dict[str, float]:
        """Milliseconds of each part of a step, each waited for."""
        seconds, batches = dict.fromkeys(PARTS, 0.0), self.loaded()
        for _ in range(steps):
            times = [self.card.wait()]
            batch = next(batches)
            times.append(self.card.wait())
            (there,) = on_device([batch], self.card.device)
            times.append(self.card.wait())
            loss = self.scaler.scale(self.forward(there))
            times.append(self.card.wait())
            loss.backward()
            times.append(self.card.wait())
            self.move()
            times.append(self.card.wait())
            for part, spent in zip(PARTS, np.diff(times), strict=True):
                seconds[part] += spent
        return {f"{part}_ms": round(1e3 * value / steps, 2) for part, value in seconds.items()}


def figures(card: Card, name: str, cache: Cache, size: int) -> dict[str, object]:
    """A row of docs/gpu.csv; batches are halved until they fit."""
    training = Training(card, name, cache, size)
    while True:
        try:
            training.rate(training.kept(), 1)
            card.peak()
            memory = training.rate(training.kept(), card.steps)
            peak = card.peak()
            break
        except torch.OutOfMemoryError:
            training.optimizer.zero_grad(set_to_none=True)
            training.batch //= 2
    loader = training.rate(training.loaded(), card.steps)
    row: dict[str, object] = {"card": card.name, "torch": torch.__version__, "model": name, "size": size}
    row |= {"batch": training.batch, "precision": training.how.name, "images_s": round(loader, 1)}
    row |= {"images_s_from_memory": round(memory, 1), "loader_efficiency": round(loader / memory, 3)}
    return row | training.split(card.steps // 2) | {"peak_mib": peak}


def proofs(card: Card, seconds: float) -> int:
    """The tests marked gpu: pytest's exit status."""
    rehearsal = {} if card.device.type == "cuda" else {"FOLDWISE_REHEARSE_GPU": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests"]
    return limited(command, seconds, rehearsal)


def five_folds(card: Card, seconds: float) -> int:
    """bench/speed.py with one seed; in small where it is a rehearsal."""
    command = [sys.executable, "bench/speed.py", "--seeds", "0", "--size", "128", "--epochs", "1"]
    small = ["--rows", "200", "--folds", "0", "--size", "64"]
    return limited(command + (small if card.device.type == "cpu" else []), seconds, {})


def limited(command: list[str], seconds: float, env: dict[str, str]) -> int:
    """Run a command from the repository for at most so long; its exit status."""
    if seconds < 20:
        print("  no time is left for it", flush=True)
        return 0
    try:
        return subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **env}, timeout=seconds, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"  stopped after {seconds:.0f} s", flush=True)
        return 1


def measured(card: Card, models: list[str], sizes: list[int], path: Path, left: Callable[[float], float]) -> None:
    """A row for each model and size, written as soon as it is there."""
    rows, images = [], photographs()
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            cache = cached(Path(folder), images, size)
            for name in models:
                if left(SHARE["figures"]) < 0:
                    print(f"  {name} at {size}: no time is left")
                    continue
                rows.append(figures(card, name, cache, size))
                print("  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                if card.device.type == "cuda" or path != CSV:
                    pd.DataFrame(rows).to_csv(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal in small")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="timm's names")
    parser.add_argument("--sizes", type=int, nargs="+", help="default: 224 384, in a rehearsal 64")
    parser.add_argument("--csv", type=Path, default=CSV, help="a rehearsal never writes gpu.csv")
    parser.add_argument("--only", choices=("tests", "figures", "folds"), help="one of the three parts")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA card is here: nothing was run (--device cpu rehearses it)")
    begun, card, status = time.monotonic(), Card.of(args.device), 0

    def left(share: float = 1.0) -> float:
        return 60 * args.minutes * share - (time.monotonic() - begun)

    def wanted(part: str) -> bool:
        return args.only in {None, part}

    print(f"{card.name}, torch {torch.__version__}, {parallel.cores()} cores", flush=True)
    if wanted("tests"):
        print("tests marked gpu", flush=True)
        status = proofs(card, left(SHARE["tests"]))
    if wanted("figures"):
        print("training steps", flush=True)
        measured(card, args.models, args.sizes or ([224, 384] if args.device == "cuda" else [64]), args.csv, left)
    if wanted("folds"):
        print("five folds, from JPEGs to out-of-fold predictions", flush=True)
        status = five_folds(card, left()) or status
    print(f"{60 * args.minutes - left():.0f} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
