"""Networks: timm backbones that take uint8 images as they lie in the cache; heads; what learns, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.schema import nearest
from foldwise.data.recipe import Backbone, Head, Model, Recipe
from foldwise.model import heads, weights
from foldwise.model.slices import Slices

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Network(nn.Module):
    """One or two timm models behind their normalisation, and our head on their pooled features.

    uint8 (B, S, S, 3) RGB (or C channels, or all slices of a study) in, and float32 (B, F) encoded metadata where
    `uses_metadata`; logits float32 (B, outputs) out. NHWC bytes are what the cache holds; permuted, they are
    channels_last, so converting is free. `scale` and `shift` turn a regression's outputs into the target's units, and
    do nothing elsewhere.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor
    second_mean: Tensor
    second_std: Tensor
    head: heads.Head

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.second: nn.Module | None = None
        self.pool: heads.Pool | None = None
        self.second_pool: heads.Pool | None = None
        self.fusion: heads.Metadata | None = None
        self.beside: heads.Beside | None = None
        self.slices: Slices | None = None
        self.learns: frozenset[str] = frozenset()  # parameters that learn, at once or when their stage is unfrozen
        self._normalise_by("mean", mean, "std", std)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def _normalise_by(self, mean_name: str, mean: Sequence[float], std_name: str, std: Sequence[float]) -> None:
        self.register_buffer(mean_name, 255 * torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer(std_name, 255 * torch.tensor(std).reshape(1, -1, 1, 1))

    @property
    def uses_metadata(self) -> bool:
        """Whether `forward` needs the second argument."""
        return self.fusion is not None

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised float (B, C, S, S), channels_last; C = 1: the mean of RGB."""
        return _normalised(images, self.mean, self.std)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        logits = self.classify(self.features(images), metadata)
        if self.beside is None or self.beside.slice is None or not self.training:
            return logits
        assert self.slices is not None
        return torch.cat([logits, self.beside.slice(self.slices.taken()).flatten(1)], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features of the backbones, concatenated, float (B, D): all that `classify` needs of an image."""
        if images.ndim < 4:  # features already (train.kept_features)
            return images if self.slices is None else self.slices.study(images, images.abs().amax(dim=2) > 0)
        return self.of_pictures(images) if self.slices is None else self.slices(images, self.of_pictures)

    def of_pictures(self, images: Tensor) -> Tensor:
        """Pooled features of single pictures, float (B, D)."""
        pooled = _tower(self.backbone, self.inputs(images), self.pool)
        if self.second is None:
            return pooled
        more = _tower(self.second, _normalised(images, self.second_mean, self.second_std), self.second_pool)
        return torch.cat([pooled, more], dim=1)

    def classify(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Logits (B, outputs) of `features`; a frozen backbone's can be kept and used in every epoch.

        In training those of auxiliary targets follow.
        """
        joined = self._joined(features, metadata)
        logits = self._units(self.head(joined))
        if self.beside is None or self.beside.row is None or not self.training:
            return logits
        return torch.cat([logits, self.beside.row(self.head.neck(joined))], dim=1)

    def learn_beside(self, outputs: int, of_slices: int = 0) -> None:
        """Give the network logits of auxiliary targets, and so many of each picture of a study; they are in no file
        of weights."""
        width = self.head.classifier.weight.shape[1]
        slices = (self.slices.width // self.slices.stack.series, of_slices) if self.slices and of_slices else None
        if self.slices is not None:
            self.slices.keeps = slices is not None
        self.beside = heads.Beside((width, outputs) if outputs else None, slices)
        self.learns |= {f"beside.{name}" for name, _ in self.beside.named_parameters()}

    def embed(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """What the linear classifier sees, float (B, D): pooled features, metadata's too, through the hidden layer."""
        return self.head.neck(self._joined(self.features(images), metadata))

    def _joined(self, features: Tensor, metadata: Tensor | None) -> Tensor:
        if self.fusion is None:
            return features
        if metadata is None:
            raise UserError("model.metadata=true: this network needs the metadata of each image")
        return torch.cat([features, self.fusion(metadata)], dim=1)

    def _units(self, logits: Tensor) -> Tensor:
        return logits.float() * self.scale + self.shift  # a target's units overflow fp16, which ends at 65504

    def train(self, mode: bool = True) -> Network:
        """Parts that don't learn stay in evaluation mode: their batch-norm statistics must not drift either."""
        super().train(mode)
        if mode:
            _still(self)
        return self


class PretrainedNetwork(Network):
    """Mode as_is: timm's model with the head it was trained with, whose logits `classes` makes the competition's."""

    classes: nn.Module

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        return self._units(self.classes(self.backbone(self.inputs(images))))

    def embed(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """What timm's classifier sees, float (B, D)."""
        features = self.backbone.forward_features(self.inputs(images))  # type: ignore[operator]
        return self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]


def _still(module: nn.Module) -> None:
    for child in module.children():
        learning = [parameter.requires_grad for parameter in child.parameters()]
        if learning and not any(learning):
            child.eval()
        elif learning:
            _still(child)


def _normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    planes = images.permute(0, 3, 1, 2).float()
    if mean.shape[1] == 1:
        planes = planes.mean(dim=1, keepdim=True)
    return (planes - mean) / std


def _tower(backbone: nn.Module, inputs: Tensor, pool: heads.Pool | None) -> Tensor:
    """Pooled features (B, D); `backbone` without a classifier, and without its own pooling where there is a `pool`."""
    features = backbone(inputs)
    return features if pool is None else pool(_tokens(backbone, features))


def _tokens(backbone: nn.Module, features: Tensor) -> Tensor:
    nhwc = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
    return heads.tokens(features, int(backbone.num_features), nhwc, getattr(backbone, "num_prefix_tokens", 0))  # type: ignore[arg-type]


def create_network(
    recipe: Recipe, outputs: int, metadata: int = 0, names: Sequence[str] = (), pretrained: bool = True
) -> Network:
    """The recipe's network with `outputs` logits, its weights loaded and its frozen parts frozen.

    metadata: encoded metadata features, for `model.metadata`. names: the competition's classes, for mode as_is (none:
    binary, where the classes are '0' and '1'). pretrained=False: look for no weights, because `load_weights` follows.
    """
    settings = recipe.model
    if settings.metadata and not metadata:
        raise UserError("model.metadata=true: the competition names no metadata columns")
    if not pretrained:
        recipe, settings = _without_weights(recipe)
    if settings.mode == "as_is":
        backbone = _backbone(settings, recipe, None, "model")
        classes = _class_groups(settings, backbone, outputs, names)
        network: Network = PretrainedNetwork(backbone, *_mean_std(settings, backbone, "model"))
        network.classes = classes
    else:
        backbone = _backbone(settings, recipe, 0, "model")
        network = Network(backbone, *_mean_std(settings, backbone, "model"))
        _add_head(network, recipe, outputs, metadata)
    _choose_what_learns(network, settings)
    return network.to(memory_format=torch.channels_last) if recipe.train.channels_last else network


def _without_weights(recipe: Recipe) -> tuple[Recipe, Model]:
    bare = {"pretrained": False, "weights": None}
    second = recipe.model.second and recipe.model.second.model_copy(update=bare)
    settings = recipe.model.model_copy(update={**bare, "second": second})
    return recipe.model_copy(update={"model": settings}), settings


def _add_head(network: Network, recipe: Recipe, outputs: int, metadata: int) -> None:
    settings = recipe.model
    network.pool, width = _pool(network.backbone, settings.head, recipe, settings.name, network.mean)
    if settings.second is not None:
        network.second = _backbone(settings.second, recipe, 0, "model.second")
        mean, std = _mean_std(settings.second, network.second, "model.second")
        network._normalise_by("second_mean", mean, "second_std", std)
        network.second_pool, more = _pool(
            network.second, settings.head, recipe, settings.second.name, network.second_mean
        )
        width += more
    if settings.stack is not None:
        network.slices = Slices(settings.series, settings.stack, width)
        width = network.slices.width
    if settings.metadata:
        network.fusion = heads.Metadata(metadata, settings.fusion)
        width += network.fusion.width
    network.head = heads.Head(width, outputs, settings.head, settings.fusion if settings.metadata else None)
    # small: a new head starts at the base rate (finetune.start_at_base_rate), whatever the features' scale
    nn.init.trunc_normal_(network.head.classifier.weight, std=0.01)
    if network.head.classifier.bias is not None:
        nn.init.zeros_(network.head.classifier.bias)


def _pool(
    backbone: nn.Module, settings: Head, recipe: Recipe, name: str, mean: Tensor
) -> tuple[heads.Pool | None, int]:
    """The pooling of the unpooled feature map, and the width of what comes out. timm's own: None."""
    if settings.pool != "default":
        if hasattr(backbone, "pre_logits"):
            backbone.pre_logits = nn.Identity()  # VGG's two layers of 4096 leave no map to pool
        backbone.reset_classifier(0, global_pool="")  # type: ignore[operator]
    features = _dry_run(backbone, recipe.image_size, mean.shape[1], name)
    if settings.pool == "default":
        return None, features.shape[1]
    if features.ndim < 3:
        raise UserError(f"model.head.pool={settings.pool}: {name} gives no feature map; use pool=default")
    width = _tokens(backbone, features).shape[2]
    return heads.Pool(settings.pool, width), width


def _dry_run(backbone: nn.Module, size: int, channels: int, name: str) -> Tensor:
    """The backbone's output for two images without computing it: shapes alone."""
    state = chain(backbone.named_parameters(), backbone.named_buffers())
    shapes = {key: torch.empty_like(value, device="meta") for key, value in state}
    was = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            images = torch.empty(2, channels, size, size, device="meta")
            return torch.func.functional_call(backbone, shapes, images)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"image_size={size}: {name} does not take images of {size} px: {text}") from error
    finally:
        backbone.train(was)


def _mean_std(settings: Backbone, backbone: nn.Module, key: str) -> list[list[float]]:
    """Per input channel, in 0..1: the recipe's, else what the weights were made with, else ImageNet's."""
    defaults = getattr(backbone, "pretrained_cfg", {}) or {}
    mean_std = []
    for name, default in zip(("mean", "std"), IMAGENET, strict=True):
        values = list(getattr(settings, name) or defaults.get(name) or default)
        channels = settings.kwargs.get("in_chans", 3)
        if channels != 3 and len(values) != channels:
            values = [sum(values) / len(values)]
        if len(values) == 1:
            values *= channels
        elif len(values) != channels:
            raise UserError(f"{key}.{name}: {len(values)} values; give one, or three for RGB")
        mean_std.append(values)
    return mean_std


def _backbone(settings: Backbone, recipe: Recipe, outputs: int | None, key: str) -> nn.Module:
    """A timm model with `outputs` logits (None: those of its weights; 0: none), pretrained where the recipe says so.

    With `init_from` the first backbone's weights come from that run, so none are looked for.
    """
    kwargs: dict[str, Any] = {**_input_size(settings, recipe), **settings.kwargs}
    if outputs is not None:
        kwargs = {"num_classes": outputs, **kwargs}
    replaced = recipe.model.init_from is not None and key == "model"
    if recipe.model.mode == "scratch" or not settings.has_weights or replaced:
        return _create(settings.name, kwargs, key)
    file = weights.of_backbone(settings, key)
    if file is None:
        weights.offline_if_unreachable()
        return _create(settings.name, {**kwargs, "pretrained": True}, key)
    state = weights.read_state(file)
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    backbone = _create(settings.name, {**kwargs, **overlay}, key, file)
    weights.check_covered(backbone, classifier_names(backbone), state, file, settings.name)
    backbone.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]  # else every copy holds it
    return backbone


def save_pretrained(name: str, path: Path) -> None:
    """timm's own weights of a model, fetched or from its cache, as a file that is found by the model's name."""
    from safetensors.torch import save_file

    weights.offline_if_unreachable()
    model = _create(name, {"pretrained": True}, "model")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def _input_size(settings: Backbone, recipe: Recipe) -> dict[str, Any]:
    """Transformers must know the image's size; timm then resamples the position table of their weights."""
    known = timm.models.get_pretrained_cfg(settings.name)
    if known is None or not known.fixed_input_size:
        return {}
    sizes: dict[str, Any] = {"img_size": recipe.image_size}
    several = {recipe.image_size, *recipe.train.sizes}, {1.0, *recipe.predict.scales}
    if any(len(values) > 1 for values in several) and "strict_img_size" not in settings.kwargs:
        sizes["dynamic_img_size"] = True
    return sizes


class _Clamp(torch.autograd.Function):
    """ReLU6 in place; what came out tells its gradient, so that nothing else is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.clamp_(0, 6))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, 0.0, 6.0)


class _ReLU6(nn.ReLU6):
    def forward(self, input: Tensor) -> Tensor:
        return _Clamp.apply(input) if self.inplace else super().forward(input)


def _without_copies(backbone: nn.Module) -> nn.Module:
    """Activations without the copy that autograd makes of an input which is overwritten but needed for the gradient.

    The same values and gradients to the bit; a step of MobileNetV2 takes 7 to 9 % less time on a CPU.
    """
    for layer in backbone.modules():
        if type(layer) is nn.ReLU6:
            layer.__class__ = _ReLU6
        elif isinstance(layer, (nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish)):
            layer.inplace = False
    return backbone


def _create(name: str, kwargs: dict[str, Any], key: str, file: Path | None = None) -> nn.Module:
    if name.split(".")[0] not in timm.list_models():
        raise UserError(f"{key}.name={name}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        return _without_copies(timm.create_model(name, **kwargs))
    except UserError:
        raise
    except TypeError as error:
        if "dynamic_img_size" in str(error):
            raise UserError(
                f"{name} takes images of one size: no train.sizes or predict.scales, or {key}.kwargs="
                "{strict_img_size: false} where it knows that"
            ) from None
        raise UserError(f"{key}.kwargs for {name}: {error}") from None
    except Exception as error:  # hub errors come as many classes: OSError, RuntimeError, hub's own
        if file is not None and "size mismatch" in str(error):
            raise UserError(
                f"{file}: is not of {key}.name={name}: {weights.misfit(error)}; set {key}.name to the model that the "
                f"file is of, or {key}.weights to a file of {name}"
            ) from None
        fits = "size mismatch" not in str(error) and "Unexpected key" not in str(error)
        if kwargs.get("pretrained") and "pretrained_cfg_overlay" not in kwargs and fits:
            raise UserError(
                f"{key}.name={name}: its pretrained weights are not on this machine and could not be fetched; put "
                f"{name}.safetensors into {paths.output_root() / 'input' / 'weights'} (on Kaggle: attach a dataset "
                f"that holds it), or set {key}.weights=PATH, or {key}.pretrained=false"
            ) from error
        raise UserError(f"{key}.name={name}: could not be made: {' '.join(str(error).split())[:300]}") from error


def _class_groups(settings: Model, backbone: nn.Module, outputs: int, names: Sequence[str]) -> heads.ClassGroups:
    count = int(backbone.num_classes)  # type: ignore[arg-type]
    known = weights.read_labels(weights.named(str(settings.labels), "model.labels"), count)
    if names:
        places = weights.match_labels(list(names), known, settings.label_map)
        return heads.ClassGroups([places[name] for name in names], binary=False)
    if outputs != 1 or "1" not in settings.label_map:
        raise UserError('model.mode=as_is in a binary competition needs model.label_map={"1": [NAME, ...]}')
    stated: list[str] = [label for label in ("0", "1") if label in settings.label_map]
    unknown = set(settings.label_map) - {"0", "1"}
    if unknown:
        raise UserError(f"model.label_map: '{sorted(unknown)[0]}' is no class of the competition: 0, 1")
    places = weights.match_labels(stated, known, settings.label_map)
    rest = sorted(set(range(count)) - set(places["1"]))
    return heads.ClassGroups([places.get("0", rest), places["1"]], binary=True)


def classifier_names(backbone: nn.Module) -> list[str]:
    """timm's names of its own linear head; two of them in a distilled model."""
    classifier = (getattr(backbone, "pretrained_cfg", {}) or {}).get("classifier") or "fc"
    return [classifier] if isinstance(classifier, str) else list(classifier)


def _choose_what_learns(network: Network, settings: Model) -> None:
    if settings.mode == "as_is":
        network.requires_grad_(False)
    if settings.mode in {"frozen", "partial"}:
        for body in (network.backbone, network.second):
            if body is not None:
                _freeze(body, settings)
    network.learns = frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad)


def _freeze(backbone: nn.Module, settings: Model) -> None:
    modules = [name for name, _ in backbone.named_modules() if name]
    start = settings.unfreeze_from if settings.mode == "partial" else None
    if start is not None and start not in modules:
        top = [name for name in modules if name.count(".") <= 1]
        raise UserError(f"model.unfreeze_from={start}: {settings.name} has no such layer{nearest(start, top)}")
    learning = False
    for name, module in backbone.named_modules():
        learning = learning or name == start
        for parameter in module.parameters(recurse=False):  # a block's own too: layer scales, position tables
            parameter.requires_grad = learning
