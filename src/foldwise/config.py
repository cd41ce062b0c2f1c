"""Every knob with type, default and meaning; recipes as differences from the defaults; key=value overrides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field
from pydantic.fields import FieldInfo

from foldwise import UserError
from foldwise.schema import Strict, nearest, read_yaml, submodel, validate

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


class Model(Strict):
    """The network."""

    name: str = Field("tf_efficientnet_b0", description="a timm model name")
    pretrained: bool = Field(True, description="start from timm's weights, or from `weights`")
    weights: str | None = Field(None, description="a .safetensors or state-dict file, relative to the repository")
    kwargs: dict[str, Any] = Field({}, description="passed to timm.create_model, such as {drop_path_rate: 0.2}")
    mean: list[float] | None = Field(
        None, min_length=3, max_length=3, description="input mean in 0..1 (default: what the weights were made with)"
    )
    std: list[float] | None = Field(
        None, min_length=3, max_length=3, description="input standard deviation in 0..1 (default: likewise)"
    )
    mode: Literal["scratch", "frozen", "partial", "finetune"] = Field(
        "finetune",
        description="scratch: no pretrained weights; frozen: only the head learns; partial: from `unfreeze_from` on; "
        "finetune: everything learns",
    )
    unfreeze_from: str | None = Field(None, description="mode partial: first layer that learns, by timm module name")


class Train(Strict):
    """Training of one fold."""

    epochs: int = Field(10, ge=1, description="passes over the training rows")
    batch_size: int = Field(32, ge=1, description="images a step")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    optimizer: str = Field("adamw", description="a timm optimizer name")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps that warm the learning rate up linearly")
    final_lr: float = Field(0.01, ge=0, le=1, description="learning rate at the end of the cosine, as a share of lr")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over the classes")
    clip_grad: float | None = Field(1.0, gt=0, description="clip the gradient's norm here; null: never")
    checkpoint: Literal["best", "last"] = Field(
        "best", description="which epoch predicts: best by the competition's metric on the fold, or the last"
    )
    amp: bool = Field(True, description="mixed precision where there is a GPU (bf16 if native, else fp16)")
    channels_last: bool = Field(True, description="NHWC memory format")
    threads: int | None = Field(
        None, ge=1, description="torch's CPU threads (default: all cores); the last digits of a CPU run depend on it"
    )
    loaders: int | None = Field(None, ge=1, description="threads that make batches (default: cores - 1, 1 to 8)")


class Augment(Strict):
    """What happens to training images."""

    preset: str = Field("medium", description="none | light | medium | heavy: see foldwise.augment")
    flips: Literal["none", "horizontal", "d4"] = Field(
        "horizontal", description="mirror, or d4: the eight symmetries, for images without an up and down"
    )
    mixup: float = Field(0.0, ge=0, le=1, description="probability that a batch is mixed (Zhang 2018, alpha 0.4)")
    cutmix: float = Field(0.0, ge=0, le=1, description="probability that a batch is cut and pasted (Yun 2019, alpha 1)")


class Predict(Strict):
    """Prediction of validation and test rows."""

    tta: Literal["none", "flip", "d4"] = Field("none", description="views averaged: 1, 2 (mirror) or 8 (dihedral)")
    batch_size: int = Field(64, ge=1, description="images a step")


class Recipe(Strict):
    """One way to train. A recipe file holds only what differs from these defaults."""

    base: str | None = Field(None, description="another recipe that this one starts from (default: these defaults)")
    image_size: int = Field(224, ge=16, description="side of the cached images, in pixels")
    model: Model = Model()
    train: Train = Train()
    augment: Augment = Augment()
    predict: Predict = Predict()
    seed: int = Field(0, ge=0, description="seeds weights, order and augmentation")


def load(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """src/recipes/NAME.yaml or a file, over its bases, under `key=value` overrides such as `train.epochs=1`."""
    return recipe_from(_with_bases(_find(name_or_path), ()), overrides or [], f"recipe {name_or_path}")


def recipe_from(data: dict[str, Any], overrides: list[str], source: str) -> Recipe:
    """Plain data under `key=value` overrides as a checked recipe; complaints name `source`."""
    for text in overrides:
        data = _merge(data, _override(text))
    recipe = validate(Recipe, data, source)
    if recipe.model.mode == "partial" and recipe.model.unfreeze_from is None:
        raise UserError(f"{source}: model.mode=partial needs model.unfreeze_from=<layer>")
    return recipe


def run_name(name_or_path: str) -> str:
    """The run's name: the recipe's file name without its ending."""
    return Path(name_or_path).stem if name_or_path.endswith((".yaml", ".yml")) else name_or_path


def settings(recipe: Recipe) -> dict[str, Any]:
    """What makes a run: the recipe as plain data, bases resolved, without what changes no result."""
    return recipe.model_dump(mode="json", exclude={"base": True, "train": {"loaders"}})


def digest(data: Any) -> str:
    """A short hash of plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed between two settings: ['train.epochs: 10 -> 1']."""
    old, new = dict(_flat(before)), dict(_flat(after))
    keys = dict.fromkeys([*old, *new])
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def help_recipe() -> str:
    """Every knob, one a line: dotted name, default, meaning. Made from the fields themselves."""
    rows = list(_fields(Recipe))
    width = max(len(f"{name}={_show(field.default)}") for name, field in rows)
    return "\n".join(f"{f'{name}={_show(field.default)}':<{width}}  {field.description}" for name, field in rows)


def _show(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def _fields(model: type[Any], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = submodel(field.annotation)
        if inner is not None:
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    path = RECIPES / f"{name_or_path}.yaml"
    if not path.exists():
        known = nearest(name_or_path, (file.stem for file in RECIPES.glob("*.yaml")))
        raise UserError(f"--recipe {name_or_path}: no {path}{known}; or give the path of a .yaml file")
    return path


def _with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: recipes inherit in a circle: {' -> '.join(p.stem for p in (*seen, path))}")
    data = read_yaml(path)
    base = data.get("base")
    if base is None:
        return data
    beside = path.parent / f"{base}.yaml"
    return _merge(_with_bases(beside if beside.exists() else _find(str(base)), (*seen, path)), data)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs"
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}': expected key=value, such as train.epochs=1 (see --help-recipe)")
    try:
        leaf = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override '{text}': the value is not valid YAML") from None
    for part in reversed(key.split(".")):
        leaf = {part: leaf}
    return leaf


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
