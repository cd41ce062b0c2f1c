"""What a network looks at: class activation maps, integrated gradients, feature maps, filters, deletion curves.

Every function takes uint8 or float images (B, S, S, 3) in 0..255 as they lie in the cache; gradients start at the
images, so they reach every layer of a frozen network too. One map per backbone, whatever its layout: NCHW (most
CNNs), NHWC (Swin), or tokens (B, N, C) with class tokens in front (ViT).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise import UserError
from foldwise.core.schema import nearest
from foldwise.model.fold_models import FoldModel
from foldwise.model.network import Network
from foldwise.model.targets import OutputTarget

Method = Literal["gradcam", "gradcam++", "ig"]
COARSEST = 4  # a map of fewer cells a side can't say where: an earlier stage serves
STAGES = 6  # feature maps shown of one backbone


def _part(values: np.ndarray | None, rows: Any) -> np.ndarray | None:
    return None if values is None else values[rows]


# --- layers -----------------------------------------------------------------------------------------------


def backbones(network: Network) -> dict[str, nn.Module]:
    """{'backbone': ...}, and 'second' where the network has two."""
    return {"backbone": network.backbone} | ({} if network.second is None else {"second": network.second})


def cam_layers(network: Network, size: int, layer: str | None = None) -> dict[str, str]:
    """{backbone: module name below the network} of the layer whose map is explained, for images of `size` pixels.

    layer: a timm module name, or 'second.<name>' in the second backbone; the other keeps its default, which is the
    last map that forward_features gives, or an earlier stage where that has fewer than 4 cells a side. A ViT's is
    the input of its last block's attention: after it, only the class token reaches the head.
    UserError lists the nearest name for a misspelt layer.
    """
    found = {
        name: f"{name}.{_default_layer(module, size, network, name)}" for name, module in backbones(network).items()
    }
    if layer is None:
        return found
    owner, _, inner = layer.partition(".")
    owner, inner = (owner, inner) if owner in found else ("backbone", layer)
    modules = [name for name, _ in backbones(network)[owner].named_modules() if name]
    if inner not in modules:
        near = nearest(inner, modules if "." in inner else [name for name in modules if "." not in name])
        raise UserError(f"--layer {layer}: the network has no such layer{near}")
    found[owner] = f"{owner}.{inner}"
    _grid(_shapes(network, size, [found[owner]]).get(found[owner], ()), backbones(network)[owner], found[owner], 1)
    return found


def stages(network: Network, size: int, most: int = STAGES) -> dict[str, list[str]]:
    """{backbone: module names}: what timm's feature_info lists, thinned evenly to at most `most`, in order."""
    found = {}
    for name, module in backbones(network).items():
        listed = [f"{name}.{inner}" for inner in _listed(module)]
        shapes = _shapes(network, size, listed)
        maps = [layer for layer in listed if layer in shapes and _is_map(shapes[layer], module)]
        spread = np.linspace(0, len(maps) - 1, min(most, len(maps))).round().astype(int)
        keep: list[int] = np.unique(spread).tolist() if maps else []
        found[name] = [maps[k] for k in keep]
    return found


def _listed(backbone: nn.Module) -> list[str]:
    info: Any = getattr(backbone, "feature_info", None)
    rows = info.info if hasattr(info, "info") else info
    modules = dict(backbone.named_modules())
    names = [row.get("module", "") for row in rows] if isinstance(rows, list | tuple) else []
    return [name for name in names if name in modules]


def _default_layer(backbone: nn.Module, size: int, network: Network, owner: str) -> str:
    attention = [name for name, _ in backbone.named_modules() if re.fullmatch(r"blocks\.\d+\.norm1", name)]
    last, shape = _last_layer(backbone, size, network)
    if len(shape) == 3 and attention:
        return attention[-1]
    if last and _is_map(shape, backbone) and min(_sides(shape, backbone)) >= COARSEST:
        return last
    earlier = [name.removeprefix(f"{owner}.") for name in stages(network, size, most=99)[owner]]
    shapes = _shapes(network, size, [f"{owner}.{name}" for name in earlier])
    sides = {name: min(_sides(shapes[f"{owner}.{name}"], backbone)) for name in earlier}
    if not sides:
        raise UserError(f"{owner}: no layer of it gives a spatial map; name one with --layer")
    fine = [name for name, side in sides.items() if side >= COARSEST]
    return fine[-1] if fine else max(sides, key=lambda name: sides[name])


def _last_layer(backbone: nn.Module, size: int, network: Network) -> tuple[str, tuple[int, ...]]:
    """The outermost module that makes what forward_features returns ('' where that is functional), and its shape."""
    made: list[tuple[str, Tensor]] = []
    with _hooked({name: m for name, m in backbone.named_modules() if name}, lambda n, out: made.append((n, out))):
        final = _run(network, backbone, size)
    modules = dict(backbone.named_modules())
    same = [name for name, out in made if out is final and not isinstance(modules[name], nn.Identity)]
    return min(reversed(same), key=lambda name: name.count("."), default=""), tuple(final.shape)


def _shapes(network: Network, size: int, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Output shapes of modules for one image; a module that is not run, or gives no tensor, is left out."""
    modules = dict(network.named_modules())
    found: dict[str, tuple[int, ...]] = {}

    def keep(name: str, out: Any) -> None:
        if torch.is_tensor(out):
            found[name] = tuple(out.shape)

    with _hooked({name: modules[name] for name in names}, keep):
        for owner, backbone in backbones(network).items():
            if any(name.startswith(f"{owner}.") for name in names):
                _run(network, backbone, size)
    return found


def _run(network: Network, backbone: nn.Module, size: int) -> Tensor:
    """The features of one gray image."""
    network.eval()
    mean = network.mean if backbone is network.backbone else network.second_mean
    with torch.inference_mode():
        inputs = torch.zeros(1, mean.shape[1], size, size, device=mean.device)
        return backbone.forward_features(inputs)  # type: ignore[operator]


@contextmanager
def _hooked(modules: dict[str, nn.Module], take: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `take(name, output)` whenever one of the modules has run."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: take(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_map(shape: tuple[int, ...], backbone: nn.Module) -> bool:
    try:
        _grid(shape, backbone, "", shape[0] if shape else 0)
    except UserError:
        return False
    return True


def _sides(shape: tuple[int, ...], backbone: nn.Module) -> tuple[int, int]:
    """Height and width of the map in an output of that shape."""
    if len(shape) == 3:
        side = math.isqrt(shape[1] - _prefix(shape[1], backbone))
        return side, side
    return (shape[1], shape[2]) if _is_nhwc(shape, backbone) else (shape[2], shape[3])


def _grid(shape: tuple[int, ...], backbone: nn.Module, name: str, rows: int) -> None:
    """UserError unless an output of that shape is a map of `rows` images, more than one cell large."""
    patches = shape[1] - _prefix(shape[1], backbone) if len(shape) == 3 else -1
    square = patches > 0 and math.isqrt(patches) ** 2 == patches
    if not ((len(shape) == 4 or square) and shape[0] == rows and max(_sides(shape, backbone)) > 1):
        raise UserError(
            f"--layer {name}: gives {shape or 'nothing'}, which is no map of the image; choose another layer"
        )


def _prefix(tokens: int, backbone: nn.Module) -> int:
    """Class and register tokens in front of the patches."""
    known = getattr(backbone, "num_prefix_tokens", None)
    return int(known) if known is not None else tokens - math.isqrt(tokens) ** 2


def _is_nhwc(shape: tuple[int, ...], backbone: nn.Module) -> bool:
    """Images are square, so the two equal sides are the map; where all three are equal, the model's word counts."""
    if shape[2] == shape[3] != shape[1]:
        return False
    return shape[1] == shape[2] != shape[3] or "NHWC" in str(getattr(backbone, "output_fmt", ""))


def _as_map(values: Tensor, backbone: nn.Module, name: str, rows: int) -> Tensor:
    """(B, C, H, W) of a layer's output in any layout."""
    _grid(tuple(values.shape), backbone, name, rows)
    if values.ndim == 3:
        height, width = _sides(tuple(values.shape), backbone)
        patches = values[:, values.shape[1] - height * width :]
        return patches.transpose(1, 2).unflatten(2, (height, width))
    return values.permute(0, 3, 1, 2) if _is_nhwc(tuple(values.shape), backbone) else values


# --- maps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    """Of each layer: activations and gradients float (B, C, H, W), of a study a row a picture; logits (B, outputs)."""

    activation: dict[str, Tensor]
    gradient: dict[str, Tensor]
    logits: Tensor


def maps(
    model: FoldModel,
    images: Tensor,
    targets: Sequence[OutputTarget],
    layers: Sequence[str],
    metadata: Tensor | None = None,
) -> Maps:
    """Activations of the layers and the gradients there of each row's target."""
    network = model.network.eval()
    modules = dict(network.named_modules())
    taken: dict[str, list[Tensor]] = {}

    def keep(name: str, out: Any) -> None:
        if not torch.is_tensor(out):
            raise UserError(f"--layer {name}: gives no tensor; choose another layer")
        taken.setdefault(name, []).append(out)

    with _hooked({name: modules[name] for name in layers}, keep), torch.enable_grad():
        start = images.float().requires_grad_()  # so that gradients reach a frozen network's layers
        logits = model.network(start, metadata)
        missing = [name for name in layers if name not in taken]
        if missing:
            raise UserError(f"--layer {missing[0]}: is not run on the way from image to answer; choose another layer")
        # a backbone of slices may run several times, on some pictures each
        parts = [part for name in layers for part in taken[name]]
        grads = iter(torch.autograd.grad(evidence_for(model, logits, targets).sum(), parts, allow_unused=True))
    owners = backbones(network)
    activation, gradient = {}, {}
    for name in layers:
        of_layer = [next(grads) for _ in taken[name]]
        if any(grad is None for grad in of_layer):
            raise UserError(f"--layer {name}: the answer does not depend on it; choose another layer")
        owner, values = owners[name.partition(".")[0]], torch.cat([part.detach() for part in taken[name]])
        rows = len(images) if network.slices is None else len(values)
        activation[name] = _as_map(values, owner, name, rows).float()
        gradient[name] = _as_map(torch.cat(of_layer), owner, name, rows).float()
    return Maps(activation, gradient, logits.detach())


def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju 2017): channels (B, C, H, W) weighted by their mean gradient -> (B, H, W), 0 or more."""
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).relu()


def gradcam_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay 2018, equations 10 and 19): positive gradients, weighted so that each copy counts."""
    square, cube = gradient**2, gradient**3
    below = 2 * square + activation.sum(dim=(2, 3), keepdim=True) * cube
    alpha = square / torch.where(below != 0, below, torch.ones_like(below))
    weights = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).relu()


@dataclass(frozen=True)
class Heat:
    """maps: {backbone: float32 (B, S, S)}, 0 or more, the largest of an image 1 (all zeros: no evidence for it).

    completeness: of integrated gradients, each image's (sum of attributions, difference of evidence).
    """

    maps: dict[str, np.ndarray]
    completeness: list[tuple[float, float]]


def cams(
    model: FoldModel,
    images: np.ndarray,
    targets: Sequence[OutputTarget],
    layers: dict[str, str],
    metadata: np.ndarray | None = None,
    method: Method = "gradcam",
    batch: int = 16,
) -> Heat:
    """Maps of the evidence for each target, one per backbone, for images uint8 (B, S, S, 3).

    layers: of `cam_layers`. Method 'ig' gives one map of the whole network, under 'image'.
    """
    made: dict[str, list[np.ndarray]] = {}
    completeness: list[tuple[float, float]] = []
    for k in range(0, len(images), batch):
        part, rows = slice(k, k + batch), targets[k : k + batch]
        tensors = model.tensors(images[part], _part(metadata, part))
        if method == "ig":
            attributions, total, difference = integrated_gradients(model, tensors[0], rows, tensors[1])
            found = {"image": ig_map(attributions)}
            completeness += zip(total.tolist(), difference.tolist(), strict=True)
        else:
            weigh = gradcam if method == "gradcam" else gradcam_plus
            seen = maps(model, tensors[0], rows, list(layers.values()), tensors[1])
            found = {owner: weigh(seen.activation[name], seen.gradient[name]) for owner, name in layers.items()}
        for owner, values in found.items():
            made.setdefault(owner, []).append(upsampled(values.cpu().numpy(), images.shape[1]))
    return Heat({owner: np.concatenate(parts) for owner, parts in made.items()}, completeness)


def upsampled(values: np.ndarray, size: int) -> np.ndarray:
    """float32 (B, size, size) of maps (B, h, w) by linear interpolation; each divided by its largest value."""
    shown = np.stack(
        [cv2.resize(one.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) for one in values]
    )
    peak = shown.max(axis=(1, 2), keepdims=True)
    return shown / np.where(peak > 0, peak, 1)


def integrated_gradients(
    model: FoldModel, images: Tensor, targets: Sequence[OutputTarget], metadata: Tensor | None = None, steps: int = 48
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrated gradients (Sundararajan 2017) by captum, from a heavily blurred copy of each image.

    Returns attributions (B, S, S, 3) in units of evidence, and two (B,) that completeness says are equal: their sum
    over each image, and the evidence's difference between image and blurred copy.
    """

    def evidence(floats: Tensor, beside: Tensor | None, places: Tensor, signs: Tensor) -> Tensor:
        return _chosen(model.evidence(model.network(floats, beside)), places, signs)

    more = (metadata, *_places_and_signs(targets, images.device))
    return _attributed(model, evidence, images.float(), blurred(images), more, steps)


def metadata_contributions(
    model: FoldModel, images: Tensor, targets: Sequence[OutputTarget], metadata: Tensor, steps: int = 32
) -> tuple[Tensor, Tensor]:
    """What each metadata feature adds to the evidence, (B, F), from the average row (zeros: features are standardised
    or one-hot), by integrated gradients with the image held; and (B,) the evidence's whole difference."""

    def evidence(beside: Tensor, floats: Tensor, places: Tensor, signs: Tensor) -> Tensor:
        return _chosen(model.evidence(model.network(floats, beside)), places, signs)

    more = (images, *_places_and_signs(targets, images.device))
    added, _, difference = _attributed(model, evidence, metadata, torch.zeros_like(metadata), more, steps)
    return added, difference


def _attributed(
    model: FoldModel,
    evidence: Callable[..., Tensor],
    values: Tensor,
    start: Tensor,
    more: tuple[Tensor | None, ...],
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attributions to `values` (B, ...), their sum (B,), and the evidence's difference from `start` (B,)."""
    from captum.attr import IntegratedGradients

    model.network.eval()
    with torch.enable_grad():
        attributions, gap = IntegratedGradients(evidence).attribute(
            values,
            start,
            additional_forward_args=more,
            n_steps=steps,
            internal_batch_size=max(16, len(values)),  # not all steps at once: memory is that of a small batch
            return_convergence_delta=True,
        )
    total = attributions.sum(dim=tuple(range(1, attributions.ndim))).detach()
    return attributions.detach(), total, total - gap.detach()


def evidence_for(model: FoldModel, logits: Tensor, targets: Sequence[OutputTarget]) -> Tensor:
    """float (B,): what the logits (B, outputs) say for each row's target."""
    return _chosen(model.evidence(logits), *_places_and_signs(targets, logits.device))


def _chosen(values: Tensor, places: Tensor, signs: Tensor) -> Tensor:
    return values.gather(1, places[:, None]).squeeze(1) * signs


def _places_and_signs(targets: Sequence[OutputTarget], device: torch.device) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor([(target.output, target.sign) for target in targets], device=device)
    return pairs[:, 0], pairs[:, 1]


def ig_map(attributions: Tensor) -> Tensor:
    """(B, S, S): evidence for the target a pixel, its colours added, smoothed over S/32 pixels; 0 or more."""
    plane = attributions.sum(dim=-1)[:, None]
    width = max(1, plane.shape[-1] // 32) | 1
    return F.avg_pool2d(plane.relu(), width, stride=1, padding=width // 2).squeeze(1)


def blurred(images: Tensor) -> Tensor:
    """Float images with a Gaussian of a tenth of their side: colours stay, shapes go. Same shape, 0..255."""
    sigma = images.shape[1] / 10
    reach = int(2.5 * sigma)
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    planes = images.float().permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    for weights, pad in ((kernel, (reach, reach, 0, 0)), (kernel.transpose(2, 3), (0, 0, reach, reach))):
        planes = F.conv2d(F.pad(planes, pad, mode="reflect"), weights)
    return planes.squeeze(1).unflatten(0, (len(images), images.shape[3])).permute(0, 2, 3, 1)


# --- what the stages see ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage's feature maps for one image: the `maps` (K, h, w) that move the answer most, and their `weights`."""

    layer: str
    channels: int
    maps: np.ndarray
    weights: np.ndarray  # what each adds to the evidence, to first order: the sum of gradient x activation
    mean: np.ndarray  # (h, w) over all channels, of the absolute value


def feature_maps(
    model: FoldModel,
    image: np.ndarray,
    target: OutputTarget,
    layers: Sequence[str],
    metadata: np.ndarray | None = None,
    most: int = 8,
) -> list[Stage]:
    """What each layer makes of an image uint8 (S, S, 3): its `most` channels of largest |gradient x activation|."""
    tensors = model.tensors(image[None], None if metadata is None else metadata[None])
    seen = maps(model, tensors[0], [target], layers, tensors[1])
    found = []
    for name in layers:
        products = (seen.activation[name] * seen.gradient[name]).sum(dim=(1, 2, 3))
        row = int(products.argmax())  # of a study, the picture that speaks for the target the most
        values, grads = seen.activation[name][row], seen.gradient[name][row]
        weights = (values * grads).sum(dim=(1, 2))
        order = weights.abs().argsort(descending=True)[:most]
        found.append(
            Stage(
                name,
                len(values),
                values[order].cpu().numpy(),
                weights[order].cpu().numpy(),
                values.abs().mean(dim=0).cpu().numpy(),
            )
        )
    return found


def first_filters(backbone: nn.Module, most: int = 64) -> np.ndarray | None:
    """The first convolution's filters that see colour, float32 (K, h, w, 3), strongest first, or None."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            weights = module.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
            return weights[np.argsort(-np.abs(weights).sum(axis=(1, 2, 3)), kind="stable")][:most]
    return None


def maximise(
    model: FoldModel, target: OutputTarget, size: int, metadata: int = 0, steps: int = 128, seed: int = 0
) -> tuple[np.ndarray, float]:
    """An image uint8 (size, size, 3) that raises the evidence by gradient ascent, and the evidence reached.

    The image is a sum of pictures from coarse to fine, so that no scale runs away with it; it is shifted at random at
    each step, and rough images cost (Olah 2017, "Feature visualization"). Metadata, if any, is that of the average row.
    """
    device, channels = model.device, max(3, model.network.mean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    sides = [side for k in range(8) if (side := size >> k) >= 4]
    levels = [(0.1 * torch.randn(1, channels, s, s, generator=generator)).to(device).requires_grad_() for s in sides]
    beside = torch.zeros(1, metadata, device=device) if metadata else None
    gains = [min(1.0, size / (4 * side)) for side in sides]  # fine detail alone is what fools a network
    optimizer = torch.optim.AdamW(levels, lr=0.03, weight_decay=0.5)  # drawn back to gray, so that colours don't clip
    model.network.eval()

    def render() -> Tensor:
        planes = [
            gain * F.interpolate(level, (size, size), mode="bilinear", align_corners=False)
            for gain, level in zip(gains, levels, strict=True)
        ]
        return torch.stack(planes).sum(dim=0).sigmoid() * 255

    with torch.enable_grad():
        for _ in range(steps):
            picture = render()
            shift = torch.randint(-size // 16, size // 16 + 1, (2,), generator=generator).tolist()
            moved = torch.roll(picture, shift, (2, 3))
            evidence = evidence_for(model, model.network(moved.permute(0, 2, 3, 1), beside), [target]).sum()
            rough = (picture.diff(dim=2).abs().mean() + picture.diff(dim=3).abs().mean()) / 255
            grads = torch.autograd.grad(-evidence + 10.0 * rough, levels)
            for level, grad in zip(levels, grads, strict=True):
                level.grad = grad / (grad.std() + 1e-8)  # the scale of logits differs a hundredfold between networks
            optimizer.step()
    image = render().detach().permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)
    with torch.inference_mode():
        reached = float(evidence_for(model, model.network(image, beside), [target]))
    return image[0].cpu().numpy(), reached


# --- does the map matter ----------------------------------------------------------------------------------

ORDERS = ("map", "random", "centre")
CELLS = 14  # cells a side that a deletion order ranks


def deletion(
    model: FoldModel,
    images: np.ndarray,
    targets: Sequence[OutputTarget],
    heat: np.ndarray,
    metadata: np.ndarray | None = None,
    steps: int = 14,
    draws: int = 2,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Deletion curves (Petsiuk 2018): the target's prediction while ever more cells give way to a blurred copy.

    Cells of a 14 x 14 grid go in three orders: by the map `heat` (B, S, S), largest first; at random (the mean of
    `draws`); and from the centre outwards, which is what a map must beat on photos of centred things.
    Returns {order: float32 (B, steps + 1)}, the prediction of the target's side (1 - p for sign -1) at fractions
    0, 1/steps, ..., 1 of the cells.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {order: [] for order in ORDERS}
    for k, (image, target) in enumerate(zip(images, targets, strict=True)):
        soft = blurred(torch.from_numpy(image[None]))[0].round().to(torch.uint8).numpy()
        beside = _part(metadata, slice(k, k + 1))
        cells = cv2.resize(heat[k], (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel()
        tie = rng.random(CELLS**2) * 1e-9  # cells that the map leaves at zero go in no order of their own
        for order, ranks in (
            ("map", [-(cells + tie)]),
            ("random", [rng.random(CELLS**2) for _ in range(draws)]),
            ("centre", [_distance() + tie]),
        ):
            curves = [_curve(model, image, soft, np.argsort(rank), target, beside, steps) for rank in ranks]
            found[order].append(np.mean(curves, axis=0))
    return {order: np.stack(curves).astype(np.float32) for order, curves in found.items()}


def _distance() -> np.ndarray:
    at = np.arange(CELLS) - (CELLS - 1) / 2
    return np.hypot(at[:, None], at[None]).ravel()


def _curve(
    model: FoldModel,
    image: np.ndarray,
    soft: np.ndarray,
    order: np.ndarray,
    target: OutputTarget,
    metadata: np.ndarray | None,
    steps: int,
) -> np.ndarray:
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    size = len(image)
    plane = cv2.resize(rank.reshape(CELLS, CELLS).astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)
    gone = [plane < round(len(order) * k / steps) for k in range(steps + 1)]
    shown = np.stack([np.where(mask[..., None], soft, image) for mask in gone])
    beside = None if metadata is None else np.repeat(metadata, len(shown), axis=0)
    pred = model.answer(shown, beside)[:, target.output]
    return pred if target.sign > 0 else 1 - pred


def area(curves: np.ndarray) -> np.ndarray:
    """Area under deletion curves (B, steps + 1) over fractions 0..1, (B,): the smaller, the more the order mattered."""
    return np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)
