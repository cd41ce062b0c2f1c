"""Object detectors that find the box to crop: torchvision's Faster R-CNN, with COCO classes or tuned on a few boxes.

    resnet50        Faster R-CNN ResNet-50 FPN, COCO weights, seen at 1024 pixels (Ren 2015, Lin 2017)
    mobilenet_320   Faster R-CNN MobileNetV3-Large FPN, COCO weights, seen at 320
    <recipe>        Faster R-CNN on the backbone of src/recipes/<recipe>.yaml, seen at 320: only for fine-tuning, where
                    there are no COCO weights; what it knows of objects it learns from the boxes given
    <folder>        one that `finetune` wrote

Fine-tuning keeps batch norm frozen and the layers up to stride 8 still; what a small table of boxes can teach is in the
layers above. It is saved every epoch, continues where it was killed, and gives the same weights for the same seed,
threads and versions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from foldwise import UserError
from foldwise.core import parallel, paths
from foldwise.core.cli import note
from foldwise.core.files import digest, read_voucher, replacing, write_csv, write_voucher
from foldwise.core.schema import nearest
from foldwise.data.boxes import XYXY, small_image
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions
from foldwise.data.recipe import Backbone, Model, load_recipe
from foldwise.model import checkpoint, weights

BUILT_IN = {"resnet50": 1024, "mobilenet_320": 320}  # longer side in pixels that each sees
SIZE = 320  # of a detector on a recipe's backbone
MOST, FLOOR = 20, 0.05  # detections kept of an image, and their lowest score: what --min-score can choose from
SAVE_SECONDS = 30.0
HELD_OUT = 0.25  # of the images with boxes, where the number is not given
EPOCHS, BATCH, RATE = 24, 8, 1e-3
CHECKPOINT = "checkpoint.pt"
NAMED = ["split", "id", "content"]  # what tells whether a saved detection is of this file


@dataclass
class Detector:
    """A network that takes float images 0..1 (3, H, W) and returns boxes, labels and scores; classes[0] is nothing.

    facts identify it: what the saved detections are keyed by.
    """

    network: nn.Module
    classes: list[str]
    size: int
    facts: dict[str, Any]

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[pd.DataFrame]:
        """uint8 (H, W, 3) images, longer side at most `size` -> XYXY in their pixels, score, class; best first."""
        self.network.eval()
        device = next(self.network.parameters()).device
        found = self.network([torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images])
        tables = []
        for one in found:
            table = pd.DataFrame(one["boxes"].cpu().numpy().astype(float), columns=XYXY)
            table["score"] = one["scores"].cpu().numpy().astype(float)
            table["class"] = [self.classes[label] for label in one["labels"].tolist()]
            tables.append(table[table["score"] >= FLOOR].head(MOST))
        return tables


# --- making -----------------------------------------------------------------------------------------------


def load(name: str, weights_path: str | None = None, size: int | None = None, download: bool = False) -> Detector:
    """A detector by name, on the device: COCO weights, or a folder that `finetune` wrote.

    UserError says where its weights were looked for; they are fetched only where `download` asks for it.
    """
    if name in BUILT_IN:
        network, classes, file = _coco(name, size or BUILT_IN[name], weights_path, download)
        facts = {"detector": name, "weights": [file.name, file.stat().st_size], "size": size or BUILT_IN[name]}
        return Detector(_on_device(network), classes, size or BUILT_IN[name], facts)
    folder = Path(name)
    if not (folder / "detector.json").exists():
        known = nearest(name, BUILT_IN)
        raise UserError(
            f"--detector {name}: neither {' nor '.join(BUILT_IN)} nor a folder with a fine-tuned detector{known} (a "
            "recipe's backbone knows no objects until --finetune-boxes teaches it)"
        )
    saved = read_voucher(folder / "detector.json")
    if saved is None:
        raise UserError(f"{folder}: detector.json or detector.safetensors is damaged; give --finetune-boxes again")
    network = _build(saved["detector"], saved["classes"], saved["size"], saved["backbone"])
    _load_state(network, weights.read_state(folder / "detector.safetensors"), folder / "detector.safetensors")
    return Detector(_on_device(network), saved["classes"], saved["size"], saved)


def _on_device(network: nn.Module) -> nn.Module:
    torch.set_num_threads(parallel.cores())
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _entry(name: str) -> tuple[Any, Any]:
    """(builder, weights entry) of torchvision."""
    from torchvision.models import detection

    if name == "resnet50":
        return detection.fasterrcnn_resnet50_fpn, detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    return (
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    )


def _coco(name: str, size: int, path: str | None, download: bool) -> tuple[nn.Module, list[str], Path]:
    build, entry = _entry(name)
    file = weights.named(path, "--weights") if path else _coco_file(name, entry, download)
    classes = entry.meta["categories"]
    network = build(weights=None, weights_backbone=None, num_classes=len(classes), min_size=size, max_size=size)
    _load_state(network, weights.read_state(file), file)
    return network, classes, file


def coco_weights(name: str, path: str | None) -> Path:
    """The file of a built-in detector's weights; UserError where it is not on this machine."""
    return weights.named(path, "--weights") if path else _coco_file(name, _entry(name)[1], False)


def _coco_file(name: str, entry: Any, download: bool) -> Path:
    """torchvision's file, under its own name or `fasterrcnn_..._coco`, where weights lie; or fetched on demand."""
    stem = Path(entry.url).stem
    for known in (stem, stem.rsplit("-", 1)[0]):
        found = weights.of_backbone(Backbone(name=known))
        if found is not None:
            return found
    folder = paths.output_root() / "input" / "weights"
    if not download:
        raise UserError(
            f"--detector {name}: its COCO weights are not on this machine; put {stem}.pth (from {entry.url}) into "
            f"{folder} (on Kaggle: attach a dataset that holds it), or name it by --weights FILE, or let "
            "--download fetch it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(folder / f"{stem}.pth") as part:
            torch.hub.download_url_to_file(entry.url, str(part), hash_prefix=stem.rsplit("-", 1)[1])
    except Exception as error:  # urllib, ssl, hash: many kinds
        raise UserError(f"{entry.url}: could not be fetched ({error}); put the file into {folder}") from None
    return folder / f"{stem}.pth"


def _load_state(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the detector: {' '.join(str(error).split())[:200]}") from None


class _Backbone(nn.Module):
    """A recipe's backbone as a pyramid of its last two strides (16, 32) and one pooled beyond, 128 channels each."""

    out_channels = 128

    def __init__(self, settings: Backbone) -> None:
        super().__init__()
        import timm
        from timm.layers import freeze_batch_norm_2d
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        try:
            body: Any = timm.create_model(settings.name, features_only=True, out_indices=(-2, -1), **settings.kwargs)
        except (RuntimeError, TypeError, KeyError, AttributeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"--detector: {settings.name} gives no feature maps ({reason}); choose a CNN") from None
        self.body = freeze_batch_norm_2d(body)
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), 128, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float (B, 3, H, W) -> {'0', '1', 'pool'} feature maps."""
        return self.fpn({str(level): found for level, found in enumerate(self.body(images))})


def _build(name: str, classes: Sequence[str], size: int, backbone: dict[str, Any] | None) -> nn.Module:
    """The network of a fine-tuned detector, without weights."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    if backbone is None:
        made = _entry(name)[0](weights=None, weights_backbone=None, num_classes=91, min_size=size, max_size=size)
        made.roi_heads.box_predictor = FastRCNNPredictor(
            made.roi_heads.box_predictor.cls_score.in_features, len(classes)
        )
        return made
    settings = Backbone(**backbone)
    by = size / 320
    sides = tuple(tuple(round(side * by) for side in pair) for pair in ((40, 64), (96, 144), (192, 288)))
    return detection.FasterRCNN(
        _Backbone(settings),
        min_size=size,
        max_size=size,
        image_mean=settings.mean or [0.485, 0.456, 0.406],
        image_std=settings.std or [0.229, 0.224, 0.225],
        rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=TwoMLPHead(128 * 49, 256),
        box_predictor=FastRCNNPredictor(256, len(classes)),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
    )


# --- reading and detecting --------------------------------------------------------------------------------


def _read(raw: Path, options: ImageOptions, size: int, row: Any) -> tuple[np.ndarray, float] | None:
    """(image with its longer side at `size`, pixels of the file a pixel of it); None where it can't be read."""
    try:
        small, sides = small_image(raw, row, options, size)
    except UserError:
        return None
    return small, max(sides) / size


def _images(
    raw: Path, options: ImageOptions, size: int, rows: Sequence[Any]
) -> Iterator[tuple[Any, tuple[np.ndarray, float] | None]]:
    """(row, what _read gives), read ahead by threads: decoders release the interpreter's lock."""
    ahead = 2 * max(2, min(8, parallel.cores()))
    with ThreadPoolExecutor(ahead // 2, thread_name_prefix="detect") as pool:
        pending = [pool.submit(_read, raw, options, size, row) for row in rows[:ahead]]
        for number, row in enumerate(rows):
            yield row, pending[number % ahead].result()
            if number + ahead < len(rows):
                pending[number % ahead] = pool.submit(_read, raw, options, size, rows[number + ahead])


def detect(
    detector: Detector, raw: Path, options: ImageOptions, index: pd.DataFrame, saved: Path | None = None
) -> pd.DataFrame:
    """Detections of all readable rows of the index, as `roi.on_index` makes them.

    saved: a CSV that keeps them as they come, so that none is made twice; a row whose file changed (in bytes), another
    detector, size or `image` option is detected again.
    """
    key = digest({**detector.facts, "image": options.model_dump(mode="json")})
    known = _known(saved, key, index)
    readable = index.assign(place=np.arange(len(index)))[index["error"].isna()]
    rows = list(readable[~readable["place"].isin(set(known["row"]))].itertuples())
    if len(rows) < len(readable):
        note(f"detections: {len(readable) - len(rows)} images are done already")
    parts, last = [known], time.monotonic()
    batch: list[tuple[Any, np.ndarray, float]] = []
    at_once = 8 if torch.cuda.is_available() else 1
    with tqdm(total=len(rows), desc="detect", unit="img", disable=None) as bar:
        for number, (row, found) in enumerate(_images(raw, options, detector.size, rows)):
            if found is not None:
                batch.append((row, *found))
            if batch and (len(batch) == at_once or number == len(rows) - 1):
                parts.append(_detected(detector, batch))
                batch = []
            if saved is not None and time.monotonic() - last > SAVE_SECONDS:
                _save(saved, key, index, parts)
                last = time.monotonic()
            bar.update(1)
    made = _joined(parts)
    if saved is not None and rows:
        _save(saved, key, index, parts)
    return made[made["score"].notna()].assign(reason=None).reset_index(drop=True)


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    made = pd.concat([part for part in parts if len(part)] or parts[:1]).sort_values("row", kind="stable")
    return made.round(dict.fromkeys([*XYXY, "score"], 4)).reset_index(drop=True)[["row", *XYXY, "score", "class"]]


def detect_small(detector: Detector, place: int, small: np.ndarray, sides: tuple[int, int]) -> pd.DataFrame:
    """Detections of one image that was read elsewhere (boxes.small_image), as `detect` makes them of row `place`."""
    row = SimpleNamespace(place=place, width=sides[0], height=sides[1])
    return _joined([_detected(detector, [(row, small, max(sides) / detector.size)])])


def _detected(detector: Detector, batch: list[tuple[Any, np.ndarray, float]]) -> pd.DataFrame:
    """Detections in pixels of the file; an image without any gets a row of gaps, so that it counts as done."""
    parts = []
    for (row, _, by), table in zip(batch, detector([image for _, image, _ in batch]), strict=True):
        if not len(table):
            table = pd.DataFrame({**{name: [np.nan] for name in [*XYXY, "score"]}, "class": [""]})
        table = table.assign(row=row.place)
        table[XYXY] = np.minimum(table[XYXY].to_numpy(float) * by, [float(row.width), float(row.height)] * 2)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _known(path: Path | None, key: str, index: pd.DataFrame) -> pd.DataFrame:
    """Saved detections of the same key, on the rows of this index; none where anything differs."""
    numbers = [*XYXY, "score"]
    none = pd.DataFrame(columns=["row", *numbers, "class"]).astype({"row": "int64", **dict.fromkeys(numbers, float)})
    if path is None or not path.exists():
        return none
    text = dict.fromkeys([*NAMED, "class", "key"], str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={name: [""] for name in numbers})
    if "content" not in table:
        return none
    found = table[table["key"] == key].merge(_named(index).assign(row=np.arange(len(index))), on=NAMED)
    return found[list(none)] if len(found) else none


def _named(index: pd.DataFrame) -> pd.DataFrame:
    return index.reindex(columns=NAMED).fillna("").astype(str)


def _save(path: Path, key: str, index: pd.DataFrame, parts: list[pd.DataFrame]) -> None:
    made = _joined(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = _named(index).iloc[made["row"].to_numpy()].reset_index(drop=True)
    write_csv(path, pd.concat([named, made.drop(columns="row")], axis=1).assign(key=key))


# --- fine-tuning ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxSplit:
    """What a detector is tuned on: true boxes on the index, and the rows held out."""

    boxes: pd.DataFrame
    train: np.ndarray
    held_out: np.ndarray
    classes: list[str]


def box_split(boxes: pd.DataFrame, index: pd.DataFrame, held_out: int | None, seed: int) -> BoxSplit:
    """Split the images with usable boxes (`roi.on_index`) by group, so that copies of one patient or scene stay on
    one side; a quarter of them is held out, or `held_out` images or the next more that whole groups make.
    """
    good = boxes[boxes["reason"].isna() & index["error"].isna().to_numpy()[boxes["row"]]]
    rows = np.unique(good["row"].to_numpy())
    wanted = max(1, round(HELD_OUT * len(rows))) if held_out is None else held_out
    if len(rows) - wanted < 4:
        raise UserError(f"--finetune-boxes: {len(rows)} images with usable boxes, {wanted} of them held out: too few")
    groups = index["group"].astype(str).to_numpy()[rows] if "group" in index else rows.astype(str)
    names = np.unique(groups)
    np.random.default_rng(seed).shuffle(names)
    counts = pd.Series(groups).value_counts()[names].cumsum().to_numpy()
    out = np.isin(groups, names[: int(np.searchsorted(counts, wanted)) + 1])
    if out.all():
        raise UserError("--finetune-boxes: all images with boxes share one group; nothing is left to hold out")
    classes = ["__background__", *sorted({name or "object" for name in good["class"]})]
    return BoxSplit(good, rows[~out], rows[out], classes)


def names(index: pd.DataFrame) -> pd.Series:
    """'train/<id>' of every row, as detector.json names the images of its split."""
    return index["split"].astype(str) + "/" + index["id"].astype(str)


def finetune(
    competition: Competition,
    index: pd.DataFrame,
    plan: BoxSplit,
    folder: Path,
    name: str = "mobilenet_320",
    weights_path: str | None = None,
    size: int | None = None,
    epochs: int = EPOCHS,
    rate: float = RATE,
    seed: int = 0,
    download: bool = False,
) -> Detector:
    """A detector tuned on `plan.train`, saved as folder/detector.safetensors and detector.json (the last epoch's).

    Losses an epoch lie in log.csv. Run again with the same arguments it continues, or loads what is done.
    """
    size = size or BUILT_IN.get(name, SIZE)
    backbone = None if name in BUILT_IN else load_recipe(name).model
    plain = None if backbone is None else backbone.model_dump(mode="json", include=set(Backbone.model_fields))
    facts = {
        "detector": name,
        "size": size,
        "classes": plan.classes,
        "backbone": plain,
        "epochs": epochs,
        "rate": rate,
        "seed": seed,
        "batch": BATCH,
        "boxes": digest(plan.boxes[["row", *XYXY, "class"]].astype(str).to_numpy().tolist()),
        "trained": names(index).iloc[plan.train].tolist(),
        "held_out": names(index).iloc[plan.held_out].tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "detector.json"
    if read_voucher(done) == facts:
        note(f"{folder}: fine-tuned already with these boxes and settings")
        return load(str(folder))
    done.unlink(missing_ok=True)  # it vouches for the weights beside it
    torch.set_num_threads(parallel.cores())  # whatever OMP_NUM_THREADS says: the last bits depend on it
    torch.manual_seed(seed)
    network = _build(name, plan.classes, size, plain)
    if backbone is None:
        coco, _, _ = _coco(name, size, weights_path, download)
        state = {k: v for k, v in coco.state_dict().items() if "box_predictor" not in k}
        network.load_state_dict(state, strict=False)
    else:
        _start_backbone(network, backbone, weights_path)
    _train(network, competition, index, plan, folder, facts)
    weights.save(network, folder / "detector.safetensors")
    write_voucher(done, facts, folder / "detector.safetensors")
    checkpoint.remove(folder / CHECKPOINT)
    return Detector(_on_device(network), plan.classes, size, facts)


def _start_backbone(network: Any, settings: Model, path: str | None) -> None:
    file = weights.named(path, "--weights") if path else None
    if file is None and settings.pretrained and settings.mode != "scratch":
        file = weights.of_backbone(settings)
    if file is None:
        note(f"warning: no weights of {settings.name}: the detector starts from nothing, and needs thousands of boxes")
        return
    body = network.backbone.body
    state = weights.read_state(file)
    weights.check_covered(body, [], state, file, settings.name)
    body.load_state_dict(state, strict=False)
    named = list(body.named_parameters())
    fine = next((info["module"] for info in body.feature_info.info if info["reduction"] == 8), None)
    if fine is not None:  # strides 2 to 8: edges and textures, and most of the cost
        starts = (f"{fine}.", f"{fine.replace('.', '_')}.")
        last = max((k for k, (name, _) in enumerate(named) if name.startswith(starts)), default=-1)
        for _, parameter in named[: last + 1]:
            parameter.requires_grad = False


def _train(
    network: nn.Module,
    competition: Competition,
    index: pd.DataFrame,
    plan: BoxSplit,
    folder: Path,
    facts: dict[str, Any],
) -> None:
    """All epochs, from the checkpoint if one of the same facts is there. AdamW, warm-up, cosine to zero."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    learns = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    slow = [parameter for name, parameter in learns if ".body." in name]
    groups = [{"params": slow, "scale": 0.3}, {"params": [p for n, p in learns if ".body." not in n], "scale": 1.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=facts["rate"], weight_decay=1e-4)
    steps = -(-len(plan.train) // BATCH)
    begin, log = _resume(folder / CHECKPOINT, network, optimizer, facts)
    millions = sum(parameter.numel() for _, parameter in learns) / 1e6
    note(
        f"fine-tuning {facts['detector']} at {facts['size']} on {len(plan.train)} images ({len(plan.held_out)} held "
        f"out), {millions:.1f} M parameters learn"
    )
    with tqdm(total=facts["epochs"], initial=begin, desc="fine-tune", unit="epoch", disable=None) as bar:
        for epoch in range(begin, facts["epochs"]):
            started, losses = time.monotonic(), []
            torch.manual_seed(1_000_003 * facts["seed"] + epoch)
            for step, (images, targets) in enumerate(_batches(competition, index, plan, facts["size"])):
                fraction = (epoch * steps + step + 1) / (facts["epochs"] * steps)
                for group in optimizer.param_groups:
                    group["lr"] = facts["rate"] * group["scale"] * _schedule(fraction)
                targets = [{key: value.to(device) for key, value in one.items()} for one in targets]
                loss = sum(network([image.to(device) for image in images], targets).values())
                assert isinstance(loss, Tensor)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([parameter for _, parameter in learns], 5.0)
                optimizer.step()
                losses.append(loss.item())
            if not np.isfinite(losses).all():
                raise UserError(f"{folder}: the loss of epoch {epoch} is not finite; choose a lower --finetune-rate")
            log.append(
                {
                    "epoch": epoch,
                    "loss": round(float(np.mean(losses)), 4),
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
            state = {"facts": json.dumps(facts), "network": network.state_dict(), "log": log}
            checkpoint.save({**state, "optimizer": optimizer.state_dict()}, folder / CHECKPOINT)
            write_csv(folder / "log.csv", pd.DataFrame(log))
            bar.set_postfix(loss=log[-1]["loss"])
            bar.update(1)
    network.eval()


def _schedule(fraction: float) -> float:
    """Learning rate by fraction of the training done: a tenth of it warms up, then a cosine falls to zero."""
    return min(fraction / 0.1, 0.5 * (1 + float(np.cos(np.pi * max(0.0, fraction - 0.1) / 0.9))))


def _resume(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    """(next epoch, log so far) of a killed run with the same facts; anything else starts anew."""
    state = checkpoint.load(path)
    if state is None or state["facts"] != json.dumps(facts):
        return 0, []
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    note(f"{path}: goes on after epoch {len(state['log']) - 1}")
    return len(state["log"]), list(state["log"])


def _batches(
    competition: Competition, index: pd.DataFrame, plan: BoxSplit, size: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """An epoch's shuffled, augmented batches: float images 0..1 and their boxes and labels."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    augment = v2.Compose(
        [
            v2.RandomPhotometricDistort(p=0.5),
            v2.RandomZoomOut(fill=127, side_range=(1.0, 2.0), p=0.4),
            v2.RandomIoUCrop(min_scale=0.5),
            v2.RandomHorizontalFlip(),
            v2.Resize(size=None, max_size=size),
            v2.SanitizeBoundingBoxes(labels_getter=lambda sample: sample[1]["labels"]),
        ]
    )
    number = {name: place for place, name in enumerate(plan.classes)}
    truth = {row: part for row, part in plan.boxes.groupby("row")}
    order = plan.train[torch.randperm(len(plan.train)).numpy()]
    rows = list(index.iloc[order].assign(place=order).itertuples())
    images: list[Tensor] = []
    targets: list[dict[str, Tensor]] = []
    for row, found in _images(competition.raw(), competition.image, size, rows):
        if found is not None:
            boxes = truth[row.place]
            image = tv_tensors.Image(torch.from_numpy(found[0]).permute(2, 0, 1))
            corners = torch.from_numpy(boxes[XYXY].to_numpy(float) / found[1]).float()
            labels = torch.tensor([number[name or "object"] for name in boxes["class"]])
            area = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.shape[-2:])
            image, target = augment(image, {"boxes": area, "labels": labels})
            images.append(image.float() / 255)
            targets.append({"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]})
        if images and (len(images) == BATCH or row is rows[-1]):
            yield images, targets
            images, targets = [], []
