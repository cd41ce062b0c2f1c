"""Recipe `auto`: this machine is measured for seconds, and the recipe that fits the hours is written as a file.

Every backbone with weights within reach, at a few sizes, frozen under a head or fine-tuned, is a plan: what it would
take (images a second, rows, folds, epochs) and what it is worth (a prior: ImageNet accuracy, less for smaller images,
few epochs and few steps). The best that fits is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml

from foldwise import UserError
from foldwise.core import parallel
from foldwise.core.cli import duration, note
from foldwise.core.files import write_text
from foldwise.data import index
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, load_recipe
from foldwise.model import precision, weights
from foldwise.model.network import create_network

TOP1 = {  # of the recipes' weights on ImageNet, by timm's results table
    "convnext": 85.8,
    "efficientnet_b4": 85.2,
    "efficientnet_b3": 84.0,
    "efficientnet_b2": 82.4,
    "efficientnet_b1": 81.4,
    "resnet50": 80.2,
    "efficientnet_b0": 78.7,
    "densenet121": 75.6,
    "mobilenetv2": 72.0,
}
UNKNOWN, SCRATCH = 70.0, 40.0  # a file in input/weights that no recipe names; a network from nothing
FOR_CPU = ("efficientnet_b0", "mobilenetv2")
SHARE = 0.8  # of the hours that a plan may take: a machine is not equally fast all the time
EPOCHS, FEWEST, STEPS = (
    10,
    3,
    150,
)  # with fewer steps a fold, fine-tuning disturbs more than it teaches (docs/results.md)
START = 12.0  # seconds: libraries, folds' processes, reports
HEAD = 4e-3  # seconds a row and fold of the head's choice of settings
MEASURED = 0.4  # seconds a measurement


@dataclass(frozen=True)
class Candidate:
    """A backbone with weights within reach: the recipe it starts from, and what differs."""

    base: str
    changes: dict[str, Any]
    recipe: Recipe
    top1: float

    @property
    def name(self) -> str:
        """timm's name."""
        return self.recipe.model.name


@dataclass(frozen=True)
class Plan:
    """One way to train, how long it takes here and what it is worth beside others."""

    candidate: Candidate
    mode: str
    size: int
    epochs: int
    images_per_second: float  # of one device
    seconds: float
    worth: float

    def data(self) -> dict[str, Any]:
        """The recipe as a file holds it."""
        model = {**self.candidate.changes, **({} if self.mode == "scratch" else {"mode": self.mode})}
        data: dict[str, Any] = {"base": self.candidate.base, "image_size": self.size, "model": model}
        return data if self.mode == "frozen" else {**data, "train": {"epochs": self.epochs}}

    def __str__(self) -> str:
        what = {"frozen": "frozen, a head on its features", "finetune": f"fine-tuned, {self.epochs} epochs"}
        how = what.get(self.mode, f"from scratch, {self.epochs} epochs")
        return f"{self.candidate.name} at {self.size} px, {how}"


def recipe_file(competition: Competition, hours: float, n_folds: int, anew: bool = False) -> Path:
    """oof/<competition>/auto.yaml: the recipe that fits the hours, measured and proposed where there is none yet."""
    path = competition.runs() / "auto.yaml"
    if path.exists() and not anew:
        note(f"recipe auto: {path}, as proposed before (--restart proposes anew)")
        return path
    started = time.monotonic()
    table = index.load_index(competition)
    rows = {split: int((table["split"] == split).sum()) for split in ("train", "test")}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plans = list(_plans(rows["train"], rows["test"], n_folds, device, 3600 * hours))
    fitting = [plan for plan in plans if plan.seconds <= SHARE * 3600 * hours]
    best = max(fitting, key=lambda plan: plan.worth) if fitting else min(plans, key=lambda plan: plan.seconds)
    why = _why(best, plans, rows, n_folds, device, hours, bool(fitting))
    if best.mode == "frozen":
        why.append(
            "frozen: --recipe auto fits step 4's head on it; by this file's path step 2 trains a head by gradient"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = "".join(f"# {line}\n" for line in why)
    write_text(path, comment + yaml.safe_dump(best.data(), sort_keys=False))
    end = time.strftime("%H:%M", time.localtime(time.time() + best.seconds))
    for line in why:
        note(f"plan: {line}")
    note(f"plan: ends about {end}; written to {path} (measured in {duration(time.monotonic() - started)})")
    return path


def side_by_side(n_folds: int) -> int:
    """Folds that train at once: a GPU each, or a core each."""
    return min(n_folds, parallel.gpus() or parallel.cores())


def _why(
    best: Plan, plans: list[Plan], rows: dict[str, int], n_folds: int, device: torch.device, hours: float, fits: bool
) -> list[str]:
    many = parallel.gpus() if device.type == "cuda" else parallel.cores()
    where = f"{many} {'GPU' if device.type == 'cuda' else 'core'}{'s' if many > 1 else ''}"
    lines = [
        f"{best}: {best.images_per_second:.0f} images a second on one of {where}; {rows['train']:,} training and "
        f"{rows['test']:,} test rows in {n_folds} folds take about {duration(best.seconds)} of {duration(3600 * hours)}"
    ]
    if not fits:
        lines.append("nothing fits the hours; this is the quickest")
    better = max((plan for plan in plans if plan.worth > best.worth), key=lambda plan: plan.worth, default=None)
    if better is not None:
        lines.append(f"worth more, but longer: {better}, about {duration(better.seconds)}")
    if best.mode == "scratch":
        lines.append(
            "no pretrained weights are on this machine, and the hub is out of reach: a file <timm's name>.safetensors "
            f"in {weights.folders()[0]} is a much better start"
        )
    return lines


def _plans(train: int, test: int, n_folds: int, device: torch.device, budget: float) -> Iterator[Plan]:
    """Every candidate at every size, frozen and fine-tuned."""
    many = max(1, side_by_side(n_folds))
    cut = (n_folds - 1) / n_folds
    for one in _candidates(device):
        own = one.recipe.image_size
        for size in _sizes(own, device):
            look, step = _measure(one, size, device)
            worth = one.top1 - 4 * math.log2(own / size)
            if one.recipe.model.mode != "scratch":
                seconds = START + (train + test) * look / (0.8 * many) + HEAD * train * n_folds / many
                yield Plan(one, "frozen", size, 0, 1 / look, seconds, worth)
            an_epoch = n_folds * cut * train * (step + look / n_folds) / (0.9 * many)
            last = START + (train + n_folds * test) * look / (0.9 * many)
            epochs = int(min(EPOCHS, max(FEWEST, (SHARE * budget - last) // an_epoch)))
            steps = epochs * cut * train / one.recipe.train.batch_size
            worth += (3 if steps >= STEPS else -5) - 0.3 * (EPOCHS - epochs)
            mode = "scratch" if one.recipe.model.mode == "scratch" else "finetune"
            yield Plan(one, mode, size, epochs, 1 / step, last + epochs * an_epoch, worth)


def _sizes(own: int, device: torch.device) -> list[int]:
    """The size that the weights were made at and smaller ones, on a GPU a larger one: multiples of 32."""
    shares = (1.0, 1.5, 0.75) if device.type == "cuda" else (1.0, 0.72, 0.57)
    return list(dict.fromkeys(max(64, 32 * round(own * share / 32)) for share in shares))


def _candidates(device: torch.device) -> Iterator[Candidate]:
    """Recipes and files whose weights are here, or can be fetched; else a small network from nothing."""
    reached = weights.offline_if_unreachable()
    one = None
    for base in TOP1 if device.type == "cuda" else FOR_CPU:
        recipe = load_recipe(base)
        here = _is_here(recipe)
        if here or (reached and recipe.model.weights is None):
            one = Candidate(base, {}, recipe, TOP1[base])
            yield one
    named = {load_recipe(base).model.name.split(".")[0] for base in TOP1}
    for name in _models_of_files():
        if name.split(".")[0] not in named:
            one = Candidate("baseline", {"name": name}, load_recipe("baseline", [f"model.name={name}"]), UNKNOWN)
            yield one
    if one is None:
        nothing = {"name": "test_resnet", "pretrained": False, "mode": "scratch"}
        recipe = load_recipe("baseline", [f"model={nothing}", "image_size=128", "train.lr=3e-3"])
        yield Candidate("baseline", nothing, recipe, SCRATCH)


def _is_here(recipe: Recipe) -> bool:
    try:
        return weights.of_backbone(recipe.model) is not None or weights.on_the_hub(recipe.model)
    except UserError:  # a file that is named and is nowhere
        return False


def _models_of_files() -> list[str]:
    """timm's models that files of weights are named after, outside the caches."""
    known = set(timm.list_models())
    stems = [file.stem for folder in weights.folders()[:-1] for file in weights.files_below(folder)]
    return sorted({stem for stem in stems if stem.split(".")[0] in known})[:4]


def _measure(one: Candidate, size: int, device: torch.device) -> tuple[float, float]:
    """Seconds an image on one device (a GPU, a core): predicting, and in a training step."""
    recipe = one.recipe.model_copy(update={"image_size": size})
    network = create_network(recipe, 2, pretrained=False).to(device)
    batch = recipe.train.batch_size if device.type == "cuda" else 8
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)).to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with precision.of_device(recipe, device).autocast(device):
            with torch.inference_mode():
                look = _pace(lambda: network.eval()(images), device)
            step = _pace(lambda: network.train()(images).float().square().mean().backward(), device)
    finally:
        torch.set_num_threads(threads)
    return look / batch, step / batch


def _pace(work: Any, device: torch.device) -> float:
    """Seconds a call, the first not counted."""
    calls, started = -1, 0.0
    while calls < 1 or time.perf_counter() - started < MEASURED:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        calls += 1
        started = started if calls else time.perf_counter()
    return (time.perf_counter() - started) / calls
