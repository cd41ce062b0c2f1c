"""Every knob with type, default and meaning; recipes as differences from the defaults; key=value overrides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from foldwise import UserError, augment
from foldwise.core import paths
from foldwise.core.schema import Strict, find_yaml, read_yaml, validate


class Backbone(Strict):
    """A timm model and where its weights come from."""

    name: str = Field("tf_efficientnet_b0", description="a timm model name")
    pretrained: bool = Field(True, description="start from timm's weights, where `weights` names no file")
    weights: str | None = Field(
        None, description="a .safetensors or state-dict file; a bare name is looked for where weights lie"
    )
    kwargs: dict[str, Any] = Field({}, description="passed to timm.create_model, such as {drop_path_rate: 0.2}")
    mean: list[float] | None = Field(
        None, min_length=1, description="input mean in 0..1 (default: what the weights were made with)"
    )
    std: list[float] | None = Field(
        None, min_length=1, description="input standard deviation in 0..1 (default: likewise)"
    )

    @property
    def has_weights(self) -> bool:
        """Whether it starts from weights that learnt something: a file that is named counts, whatever `pretrained`."""
        return self.pretrained or self.weights is not None


class Fusion(Strict):
    """The sub-network of `model.metadata`: defaults are those of the SIIM-ISIC 2020 winner (arXiv:2010.05351)."""

    hidden: list[int] = Field([512, 128], min_length=1, description="widths of the metadata layers")
    activation: Literal["swish", "relu"] = Field("swish", description="after each batch norm")
    dropout: float = Field(
        0.3, ge=0, lt=1, description="between the metadata layers; with `joint`: after each, and after it"
    )
    joint: int | None = Field(None, ge=1, description="width of a layer after the concatenation (ISIC 2019: 1024)")
    feature_drop: float = Field(0.0, ge=0, lt=1, description="each metadata feature is set to 0 so often in training")


class Head(Strict):
    """What stands on the pooled features."""

    pool: Literal["default", "avg", "max", "gem", "attention"] = Field(
        "default", description="how the last feature map is pooled; default: as timm's model does"
    )
    hidden: int | None = Field(None, ge=1, description="width of a Dense + ReLU layer before the classifier")
    dropout: float = Field(0.0, ge=0, lt=1, description="right before the classifier")
    samples: int = Field(1, ge=1, description="dropout masks averaged on one classifier (multi-sample: 5)")
    cosine: float | None = Field(
        None,
        gt=0,
        description="multiclass: logits are so many times the cosine to each class's centre (30); train.margin",
    )
    centers: int = Field(1, ge=1, description="centres a class, the nearest counts (sub-centre ArcFace: 3)")


class Series(Strict):
    """How a network sees the slices of a competition with `image.slices`; without effect elsewhere."""

    neighbours: int = Field(3, ge=1, description="slices side by side that are one picture's channels (2.5D); 1: alone")
    step: int = Field(1, ge=1, description="slices from one picture's middle to the next one's; 3: 96 as 32 x 3")
    context: Literal["none", "gru", "transformer"] = Field(
        "none", description="what slices know of each other before they are pooled: a GRU both ways, or two layers"
    )
    pool: Literal["mean", "max", "attention"] = Field(
        "attention", description="over slices; attention: gated (Ilse 2018)"
    )
    width: int = Field(256, ge=2, multiple_of=2, description="of the GRU or transformer")
    batch: int | None = Field(
        None,
        ge=2,
        description="pictures in the backbone at once in training, activations made again (slower by a third): memory "
        "of so many; null: all",
    )


class Stack(Strict):
    """What a row's pixels are made of; filled in from the competition."""

    series: int = Field(1, ge=1, description="series")
    slices: int = Field(ge=1, description="of each")
    channels: int = Field(1, ge=1, description="of each")


class Lora(Strict):
    """Low-rank terms on the linear layers of a backbone, which is frozen otherwise (Hu 2021)."""

    rank: int = Field(8, ge=1, description="of each term: more learns more, and takes more memory")
    alpha: float = Field(16.0, gt=0, description="a term counts alpha / rank times")


class Model(Backbone):
    """The network."""

    mode: Literal["scratch", "as_is", "frozen", "partial", "finetune"] = Field(
        "finetune",
        description="scratch: no pretrained weights; as_is: the pretrained head unchanged, classes by name; frozen: "
        "only the head learns; partial: from `unfreeze_from` on; finetune: everything learns",
    )
    unfreeze_from: str | None = Field(None, description="mode partial: first layer that learns, by timm module name")
    unfreeze_epochs: int | None = Field(
        None, ge=1, description="gradual unfreezing: the head alone first, then one more stage every so many epochs"
    )
    labels: str | None = Field(None, description="mode as_is: file with the pretrained head's class names, one a line")
    label_map: dict[str, list[str]] = Field(
        {}, description="mode as_is: competition class -> pretrained classes, where names differ, as {ants: [ant]}"
    )
    head: Head = Head()
    series: Series = Series()
    stack: Stack | None = Field(None, description="series, slices and channels of a row; filled in")
    second: Backbone | None = Field(None, description="another backbone whose features are concatenated: {name: ...}")
    metadata: bool = Field(False, description="fuse the metadata columns with the image features (`model.fusion`)")
    fusion: Fusion = Fusion()
    lora: Lora | None = Field(
        None,
        description="mode finetune: the head and low-rank terms on the backbone's linear layers learn, {rank: 8}; the "
        "saved weights are plain",
    )
    init_from: str | None = Field(
        None, description="a run whose fold models this one starts from (its layers of the same name and shape)"
    )


class Target(Strict):
    """An auxiliary target: learn its classes, score on the competition's."""

    column: str | None = Field(None, description="a text column of the train table to learn instead, such as dx")
    positive: list[str] = Field([], description="binary competitions: its classes that count as positive, as [mel]")
    map: dict[str, str] = Field({}, description="multiclass competitions: its class -> the competition's class")


class Train(Strict):
    """Training of one fold."""

    epochs: int = Field(10, ge=1, description="passes over the training rows")
    batch_size: int = Field(32, ge=1, description="images a step (of each device)")
    accumulate: int = Field(1, ge=1, description="steps whose gradients are summed before the optimizer moves")
    loss: Literal["default", "ce", "bce", "focal", "asymmetric", "ordinal", "mse", "mae", "huber"] = Field(
        "default", description="default: ce, bce or mse by task; see foldwise.losses"
    )
    auxiliary: bool = Field(True, description="learn the competition's `auxiliary` targets beside the main one")
    margin: float = Field(
        0.0, ge=0, lt=1.6, description="ArcFace: radians by which a row has to be nearer to its class (0.3 to 0.5)"
    )
    focal_gamma: float = Field(2.0, ge=0, description="loss focal: how much easy rows are discounted (Lin 2017)")
    class_weights: Literal["none", "balanced", "sqrt"] | list[float] = Field(
        "none", description="weights of the classes in the loss: balanced = 1/frequency, its root, or a list"
    )
    sampling: Literal["all", "balanced", "sqrt"] = Field(
        "all",
        description="rows of an epoch: each once, or drawn with replacement by 1/frequency of the class (its root)",
    )
    optimizer: str = Field(
        "adamw",
        description="any of timm's",
        examples=["adamw", "adam", "nadamw", "sgd", "rmsprop", "lamb", "lion", "..."],
    )
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    head_lr: float | None = Field(None, gt=0, description="peak learning rate of the head (default: lr)")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="learning rate of each layer, relative to the one above it (Clark 2020)"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    schedule: Literal["cosine", "onecycle", "step", "plateau", "constant"] = Field(
        "cosine", description="of the learning rate; plateau: a tenth after `patience` epochs without gain"
    )
    cycles: int = Field(1, ge=1, description="warm restarts: the cosine runs so often")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps that warm the learning rate up linearly")
    final_lr: float = Field(0.01, ge=0, le=1, description="learning rate at the end of the schedule, as a share of lr")
    patience: int = Field(2, ge=1, description="schedule plateau: epochs without gain before the rate drops")
    early_stopping: int | None = Field(None, ge=1, description="stop after so many epochs without gain; null: never")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over the classes")
    clip_grad: float | None = Field(1.0, gt=0, description="clip the gradient's norm here; null: never")
    averaging: Literal["none", "ema", "swa"] = Field(
        "none", description="which weights predict: the raw ones, their moving average, or their mean over late epochs"
    )
    ema_decay: float = Field(0.998, ge=0, lt=1, description="averaging ema: memory a step (shorter at the start)")
    swa_start: float = Field(0.6, ge=0, lt=1, description="averaging swa: share of the epochs before the mean begins")
    snapshots: bool | Annotated[int, Field(ge=2)] = Field(
        False, description="average the predictions at the end of each cycle (Huang 2017); a number: of the last epochs"
    )
    checkpoint: Literal["best", "last"] = Field(
        "last",
        description="which epoch predicts: the last, or the best by the fold's own score, which flatters: with 15 "
        "positives a fold, labels drawn at random score 0.56 by best and 0.50 by last",
    )
    sizes: list[int] = Field([], description="progressive resizing: image sizes for equal shares of the epochs")
    distill: str | None = Field(None, description="a run whose OOF predictions are learnt beside the labels")
    distill_weight: float = Field(0.5, ge=0, le=1, description="share of `distill` in the target")
    pseudo: str | None = Field(
        None, description="a run whose test predictions become labels of the test images, fold by fold"
    )
    pseudo_keep: float = Field(0.5, gt=0, le=1, description="share of the test rows kept, the most certain first")
    pseudo_hard: bool = Field(False, description="pseudo-labels as the likeliest class instead of probabilities")
    amp: bool = Field(True, description="mixed precision where there is a GPU (bf16 if native, else fp16)")
    precision: Literal["auto", "plain", "channels_last", "bf16"] = Field(
        "auto", description="of a CPU (a GPU: amp); auto: the fastest by a short probe, remembered for this machine"
    )
    channels_last: bool = Field(True, description="NHWC memory format on a GPU")
    compile: bool = Field(False, description="torch.compile: a minute to start, then faster steps")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: far less memory, a third more time"
    )
    sync_bn: bool = Field(False, description="under torchrun: batch-norm statistics over all devices")
    threads: int | None = Field(
        None, ge=1, description="torch's CPU threads (default: all cores); the last digits of a CPU run depend on it"
    )
    loaders: int | None = Field(None, ge=1, description="threads that make batches (default: cores - 1, 1 to 8)")
    save_minutes: float = Field(
        5.0, ge=0, description="a checkpoint inside the epoch so often, and at every epoch's end"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard events to <run>/tensorboard")
    wandb: bool = Field(False, description="also log to wandb, offline unless WANDB_MODE says otherwise")


class Augment(Strict):
    """What happens to training images."""

    preset: str = Field("medium", description="a list of operations, docs/augment.md", examples=list(augment.PRESETS))
    flips: Literal["auto", "none", "horizontal", "d4"] = Field(
        "auto",
        description="mirror, or d4: the eight symmetries, for images without an up and down; auto: d4 where the "
        "competition has `orientation: free`, else horizontal; melanoma2020 has its own",
    )
    strength: float = Field(1.0, ge=0, le=2, description="of the preset and `ops`, of their own: 0.5 is half as much")
    ops: dict[str, float] = Field(
        {},
        description="single operations and their probabilities, {elastic: 0.3}: added, or in place of the preset's own",
        examples=list(augment.OPS),
    )
    randaugment: int = Field(
        0, ge=0, le=30, description="magnitude of RandAugment after the preset (Cubuk 2020); 0: none"
    )
    mixup: float = Field(0.0, ge=0, le=1, description="probability that a batch is mixed (Zhang 2018)")
    mixup_alpha: float = Field(0.4, gt=0, description="of the beta distribution of mixup's share")
    cutmix: float = Field(0.0, ge=0, le=1, description="probability that a batch is cut and pasted (Yun 2019)")
    cutmix_alpha: float = Field(1.0, gt=0, description="of the beta distribution of cutmix's share")


class Predict(Strict):
    """Prediction of validation and test rows."""

    tta: Literal["none", "flip", "d4"] = Field("none", description="views averaged: 1, 2 (mirror) or 8 (dihedral)")
    crops: Literal[1, 5, 10] = Field(
        1, description="crops of each view: 1 (whole), 5 (corners and centre) or 10 (mirrored too)"
    )
    crop_fraction: float = Field(0.875, gt=0, le=1, description="side of those crops, of the image's side")
    scales: list[float] = Field([1.0], min_length=1, description="sizes of each view, relative: [1.0, 1.25]")
    average: Literal["probability", "logit"] = Field("probability", description="what is averaged over the views")
    batch_size: int = Field(64, ge=1, description="images a step; on a GPU four times as many")


class Recipe(Strict):
    """One way to train. A recipe file holds only what differs from these defaults."""

    base: str | None = Field(None, description="another recipe that this one starts from (default: these defaults)")
    image_size: int = Field(224, ge=16, description="side of the cached images, in pixels")
    crop: bool = Field(False, description="train on the images that 08_crop.py cut out")
    model: Model = Model()
    target: Target = Target()
    train: Train = Train()
    augment: Augment = Augment()
    predict: Predict = Predict()
    seed: int = Field(0, ge=0, description="seeds weights, order and augmentation")


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """src/recipes/NAME.yaml or a file, over its bases, under `key=value` overrides such as `train.epochs=1`."""
    source = f"recipe {name_or_path}"
    recipe = recipe_from(_with_bases(find_yaml(paths.RECIPES, name_or_path, "--recipe"), ()), overrides or [], source)
    refuse_idle(recipe, source)
    return recipe


def recipe_from(data: dict[str, Any], overrides: list[str], source: str) -> Recipe:
    """Plain data under `key=value` overrides as a checked recipe; complaints name `source`, or the override."""
    data = renamed(data)
    recipe = validate(Recipe, data, source)
    for text in overrides:
        data = merge(data, renamed(_override(text)))
        recipe = validate(Recipe, data, f"override {text}")
    _consistent(recipe, source)
    return recipe


RENAMED = {  # by section: keys of older recipes and run.json, and what they are called now
    "model": {"thaw_epochs": "unfreeze_epochs", "start_from": "init_from"},
    "train": {"cpu_step": "precision"},
    "predict": {"crop_share": "crop_fraction"},
}


GONE = {"model": {"warm_head": False}}  # settings that are no more, at the value that changed nothing


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with today's keys for those it has by an older name."""
    parts = {section: data[section] for section in RENAMED if isinstance(data.get(section), dict)}
    return data | {name: {RENAMED[name].get(key, key): part[key] for key in part} for name, part in parts.items()}


def _consistent(recipe: Recipe, source: str) -> None:
    if recipe.model.mode == "partial" and recipe.model.unfreeze_from is None:
        raise UserError(f"{source}: model.mode=partial needs model.unfreeze_from=<layer>")
    if recipe.model.mode == "as_is" and not recipe.model.labels:
        raise UserError(f"{source}: model.mode=as_is needs model.labels=<file of class names, one a line>")
    if recipe.model.mode == "as_is" and not recipe.model.has_weights:
        raise UserError(f"{source}: model.mode=as_is needs model.pretrained=true or model.weights=<file>")
    if recipe.train.cycles > recipe.train.epochs:
        raise UserError(f"{source}: train.cycles={recipe.train.cycles} is more than train.epochs={recipe.train.epochs}")
    if recipe.augment.mixup + recipe.augment.cutmix > 1:
        raise UserError(f"{source}: augment.mixup and augment.cutmix are chances of one draw: their sum is 1 at most")


# --- settings that need others ------------------------------------------------------------------------------

OF_TRAINING = (  # what changes what is learnt; how fast, a base recipe says for all modes alike
    "train.head_lr train.layer_decay train.class_weights train.sampling train.label_smoothing train.averaging "
    "train.snapshots train.early_stopping train.sizes train.distill train.pseudo augment.mixup augment.cutmix "
    "augment.randaugment"
)
# (settings or whole sections, what they need to have an effect, whether a recipe has that)
NEEDS: tuple[tuple[str, str, Callable[[Recipe], bool]], ...] = (
    ("model.weights model.second.weights", "another model.mode than scratch", lambda r: r.model.mode != "scratch"),
    ("model.weights", "model.init_from=null, whose weights it would give way to", lambda r: not r.model.init_from),
    ("model.unfreeze_from", "model.mode=partial", lambda r: r.model.mode == "partial"),
    ("model.labels model.label_map", "model.mode=as_is", lambda r: r.model.mode == "as_is"),
    (
        f"model.head model.second model.metadata model.unfreeze_epochs {OF_TRAINING}",
        "another model.mode than as_is, where nothing learns",
        lambda r: r.model.mode != "as_is",
    ),
    (
        "model.unfreeze_epochs train.layer_decay train.head_lr",
        "another model.mode than frozen, where the head alone learns",
        lambda r: r.model.mode != "frozen",
    ),
    ("model.lora", "model.mode=finetune", lambda r: r.model.mode == "finetune"),
    (
        "train.gradient_checkpointing",
        "another model.mode than frozen or as_is: no activations are kept there",
        lambda r: r.model.mode not in {"frozen", "as_is"},
    ),
    ("model.second", "another model.mode than partial: that names a layer of one", lambda r: r.model.mode != "partial"),
    ("model.head.samples", "model.head.dropout", lambda r: r.model.head.dropout > 0),
    ("model.head.centers", "model.head.cosine", lambda r: r.model.head.cosine is not None),
    (
        "train.margin",
        "model.head.cosine, and train.loss=ce or focal",
        lambda r: r.model.head.cosine is not None and r.train.loss in {"default", "ce", "focal"},
    ),
    ("model.fusion", "model.metadata=true", lambda r: r.model.metadata),
    (
        "model.fusion.dropout",
        "a second model.fusion.hidden layer, or model.fusion.joint",
        lambda r: len(r.model.fusion.hidden) > 1 or r.model.fusion.joint is not None,
    ),
    ("target.positive target.map", "target.column", lambda r: r.target.column is not None),
    (
        "train.distill train.pseudo",
        "target.column=null: it teaches the competition's target",
        lambda r: r.target.column is None,
    ),
    ("train.focal_gamma", "train.loss=focal", lambda r: r.train.loss == "focal"),
    ("train.class_weights", "train.loss=ce, bce or focal", lambda r: r.train.loss in {"default", "ce", "bce", "focal"}),
    ("train.cycles", "train.schedule=cosine", lambda r: r.train.schedule == "cosine"),
    (
        "train.snapshots",
        "train.schedule=cosine, or a number of last epochs",
        lambda r: r.train.snapshots is not True or r.train.schedule == "cosine",
    ),
    (
        "train.snapshots",
        "train.cycles=<two or more>, or a number of last epochs",
        lambda r: r.train.snapshots is not True or r.train.cycles > 1,
    ),
    (
        "train.snapshots",
        "as many train.epochs",
        lambda r: r.train.snapshots is True or r.train.snapshots <= r.train.epochs,
    ),
    ("train.checkpoint", "train.snapshots=false, which predict instead", lambda r: not r.train.snapshots),
    ("train.final_lr", "a train.schedule that falls", lambda r: r.train.schedule != "constant"),
    ("train.patience", "train.schedule=plateau", lambda r: r.train.schedule == "plateau"),
    ("train.ema_decay", "train.averaging=ema", lambda r: r.train.averaging == "ema"),
    ("train.swa_start", "train.averaging=swa", lambda r: r.train.averaging == "swa"),
    ("train.distill", "train.distill_weight above 0", lambda r: r.train.distill_weight > 0),
    ("train.distill_weight", "train.distill=<run>", lambda r: r.train.distill is not None),
    ("train.pseudo_keep train.pseudo_hard", "train.pseudo=<run>", lambda r: r.train.pseudo is not None),
    ("augment.mixup augment.cutmix", "train.batch_size of two or more", lambda r: r.train.batch_size > 1),
    ("augment.mixup_alpha", "augment.mixup above 0", lambda r: r.augment.mixup > 0),
    ("augment.cutmix_alpha", "augment.cutmix above 0", lambda r: r.augment.cutmix > 0),
    ("predict.crop_fraction", "predict.crops=5 or 10", lambda r: r.predict.crops > 1),
    (
        "predict.average",
        "several views (predict.tta, crops or scales) or train.snapshots",
        lambda r: (
            r.predict.tta != "none" or r.predict.crops > 1 or len(r.predict.scales) > 1 or bool(r.train.snapshots)
        ),
    ),
)


def refuse_idle(recipe: Recipe, source: str, within: str = "") -> None:
    """UserError names the first setting (its key beginning with `within`) that another one keeps from any effect."""
    for keys, needs, has in NEEDS:
        if not has(recipe):
            refuse(recipe, [key for key in keys.split() if key.startswith(within)], needs, source)


def refuse(recipe: Recipe, keys: Iterable[str], needs: str, source: str) -> None:
    """UserError where one of `keys` (a setting, or a section) is not at its default; `needs`: what it needs."""
    given, usual = dict(_flat(recipe.model_dump(mode="json"))), dict(_flat(Recipe().model_dump(mode="json")))
    for key, value in given.items():
        named = any(key == one or key.startswith(f"{one}.") for one in keys)
        if named and value != usual.get(key):
            back = _show(usual.get(key))
            raise UserError(f"{source}: {key}={_show(value)} has no effect: it needs {needs}; or set {key}={back}")


def run_name(name_or_path: str) -> str:
    """The run's name: the recipe's file name without its ending."""
    return Path(name_or_path).stem if name_or_path.endswith((".yaml", ".yml")) else name_or_path


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """What makes a run: the recipe as plain data, bases resolved, without what changes no result."""
    return recipe.model_dump(
        mode="json", exclude={"base": True, "train": {"loaders", "save_minutes", "tensorboard", "wandb"}}
    )


def of_today(config: dict[str, Any]) -> dict[str, Any]:
    """Settings as run.json has them, under today's names; of a recipe, keys that came later at their defaults, and
    none that are gone."""
    config = renamed(config)
    for section in GONE.keys() & config.keys():
        if isinstance(config[section], dict):
            unused = GONE[section].items()
            config = config | {section: dict(pair for pair in config[section].items() if pair not in unused)}
    return merge(recipe_settings(Recipe()), config) if "image_size" in config else config


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed between two settings: ['train.epochs: 10 -> 1']."""
    old, new = dict(_flat(before)), dict(_flat(after))
    keys = dict.fromkeys([*old, *new])
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _show(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def _with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: recipes inherit in a circle: {' -> '.join(p.stem for p in (*seen, path))}")
    data = renamed(read_yaml(path))
    base = data.get("base")
    if base is None:
        return data
    beside = path.parent / f"{base}.yaml"
    under = beside if beside.exists() else find_yaml(paths.RECIPES, str(base), "--recipe")
    return merge(_with_bases(under, (*seen, path)), data)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, section by section; kwargs are replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs"
        merged[key] = merge(merged[key], value) if both else value
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
