"""Crops of step 08: boxes from a file or a detector -> margin by true boxes -> crops, saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import parallel
from foldwise.core.cli import note
from foldwise.core.schema import nearest
from foldwise.data import image
from foldwise.data.boxes import (
    XYXY,
    Crops,
    Pick,
    Recall,
    Units,
    box_recall,
    choose_margin,
    contact_sheet,
    crops,
    files_digest,
    load_crop_meta,
    on_index,
    one_each,
    read_boxes,
    save_boxes,
    small_images,
    write_sheet,
)
from foldwise.data.competition import Competition


@dataclass(frozen=True)
class CropOptions:
    """What 08_crop.py is asked for. boxes: a table to take boxes from; without one, `detector` finds them.

    object_class, pick, min_score: which of an image's boxes. margin: share of the box's side, None: the smallest that
    keeps enough of the true boxes (`truth`, and those held out of `finetune_boxes`).
    """

    boxes: str | None = None
    units: Units = "auto"
    object_class: str = "any"
    pick: Pick = "score"
    min_score: float = 0.5  # below it a detector is wrong more often than right
    margin: float | None = None
    square: bool = False
    truth: str | None = None
    detector: str = "resnet50"
    weights: str | None = None
    detector_size: int | None = None
    download: bool = False
    finetune_boxes: str | None = None
    holdout: int | None = None
    epochs: int = 24
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.boxes and self.finetune_boxes:
            raise UserError("--boxes takes boxes as they are, --finetune-boxes tunes a detector on them: give one")
        if self.epochs < 1 or self.rate <= 0:
            raise UserError("--finetune-epochs and --finetune-rate are above 0")


def warn_of_stale_crops(competition: Competition, index: pd.DataFrame) -> None:
    """Say so where crops were made earlier, of other files than there are now."""
    meta = load_crop_meta(competition)
    if meta is not None and meta["files"] != files_digest(index):
        note("warning: the crops were made of other files than there are now; run 08_crop.py again")


def make_crops(competition: Competition, index: pd.DataFrame, options: CropOptions) -> Crops:
    """Boxes, margin and windows of every row of the index; boxes.csv, crop.json and crops.png are written."""
    find = _from_file if options.boxes else _by_detector
    boxes, truth, meta = find(competition, index, options)
    met = None if truth is None else box_recall(boxes, truth, index, options.square, options.pick)
    chosen, how = choose_margin(options.margin, met)
    cut = crops(boxes, index, chosen, options.square)
    whole = boxes[(boxes["source"] == "whole") & (boxes["reason"] != "unreadable")]
    meta |= {
        "method": "boxes" if options.boxes else "detector",
        "class": options.object_class,
        "pick": options.pick,
        "margin_chosen": how,
        "images": int((boxes["reason"] != "unreadable").sum()),
        "whole": len(whole),
        "reasons": whole["reason"].value_counts().to_dict(),
        "recall": None if met is None else _recall(met, chosen),
    }
    save_boxes(competition, index, boxes, cut, meta)
    write_sheet(contact_sheet(competition, index, boxes, cut), competition.derived() / "crops.png")
    note(
        f"crops: {meta['images'] - len(whole)} of {meta['images']} images have a box, {len(whole)} stay whole; "
        f"margin {chosen:g} ({how})"
    )
    if met is not None:
        kept = meta["recall"]
        note(
            f"crops: on {kept['images']} true boxes mean IoU {kept['iou']:.3f}; the margin keeps {kept['recall']:.1%} "
            f"of their area, {kept['whole']:.1%} of them wholly"
        )
    return cut


def _from_file(
    competition: Competition, index: pd.DataFrame, options: CropOptions
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    table = _table(competition, index, str(options.boxes), options.units)
    known = set(table["class"]) - {""}
    if options.object_class != "any" and options.object_class not in known:
        raise UserError(
            f"--class {options.object_class}: {options.boxes} has no such class{nearest(options.object_class, known)}"
        )
    lowest = options.min_score if table["score"].notna().any() else 0.0
    boxes = one_each(table, index, "file", options.pick, lowest, options.object_class)
    truth = _table(competition, index, options.truth, options.units) if options.truth else None
    return boxes, truth, {"boxes": Path(str(options.boxes)).name, "min_score": lowest}


def _by_detector(
    competition: Competition, index: pd.DataFrame, options: CropOptions
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    parallel.tune_allocator()
    from foldwise.model import detector  # torch

    if competition.image.channels != 3:
        raise UserError(
            f"{competition.file}: detectors see RGB, not {competition.image.channels} channels; --boxes FILE"
        )

    truths = [
        _table(competition, index, path, options.units) for path in (options.finetune_boxes, options.truth) if path
    ]
    if options.finetune_boxes:
        plan = detector.box_split(truths[0], index, options.holdout, options.seed)
        finder = detector.finetune(
            competition,
            index,
            plan,
            competition.derived() / "detector",
            options.detector,
            options.weights,
            options.detector_size,
            options.epochs,
            options.rate,
            options.seed,
            options.download,
        )
    else:
        finder = detector.load(options.detector, options.weights, options.detector_size, options.download)
    known = [name for name in finder.classes[1:] if name != "N/A"]
    if options.object_class != "any" and options.object_class not in known:
        raise UserError(
            f"--class {options.object_class}: the detector knows no such class{nearest(options.object_class, known)}"
        )
    saved = competition.derived() / "detections.csv"
    boxed = detector.detect(finder, competition.raw(), competition.image, index, saved)
    boxes = one_each(boxed, index, "detector", options.pick, options.min_score, options.object_class)
    truth = pd.concat(truths, ignore_index=True) if truths else None
    if truth is not None:  # what it was trained on proves nothing
        seen = set(finder.facts.get("trained", []))
        truth = truth[~detector.names(index).iloc[truth["row"]].isin(seen).to_numpy()]
    meta: dict[str, Any] = {key: finder.facts[key] for key in ("detector", "size") if key in finder.facts}
    if "trained" in finder.facts:
        meta |= {key: finder.facts[key] for key in ("epochs", "seed")} | {"trained_on": len(finder.facts["trained"])}
    return boxes, truth, {**meta, "min_score": options.min_score, "weights": options.weights}


def crop_again(
    competition: Competition, raw: Path, rows: pd.DataFrame, options: image.ImageOptions | None = None
) -> Crops:
    """Windows of other images below `raw`, found as crop.json says the competition's were; nothing is written.

    rows: columns path, error, split, id, bytes (and frame), as cache.build_size takes them. They may be anybody's:
    worker processes read them. options: how, the competition's where None.
    """
    meta = load_crop_meta(competition)
    if meta is None:
        raise UserError(f"{competition.derived() / 'crop.json'}: not there; run 08_crop.py first")
    if meta["method"] != "detector":
        where = competition.derived() / "crop.json"
        raise UserError(f"{where}: its boxes came from a file, which has none of new images; use a detector")
    parallel.tune_allocator()
    from foldwise.model import detector  # torch

    tuned = competition.derived() / "detector"
    name, weights = (str(tuned), None) if "trained_on" in meta else (meta["detector"], meta["weights"])
    finder = detector.load(name, weights, meta["size"])
    sides, errors = np.ones((len(rows), 2), int), rows["error"].astype(object).tolist()
    parts = [pd.DataFrame(columns=["row", *XYXY, "score", "class"])]
    for k, small in small_images(raw, rows, options or competition.image, finder.size):
        if isinstance(small, str):
            errors[k] = small
        else:
            sides[k] = small[1]
            parts.append(detector.detect_small(finder, k, *small))
    rows = rows.assign(width=sides[:, 0], height=sides[:, 1], error=errors)
    detections = pd.concat(parts[1:] or parts).sort_values("row", kind="stable", ignore_index=True)
    detections = detections[detections["score"].notna()].assign(reason=None).reset_index(drop=True)
    boxes = one_each(detections, rows, "detector", meta["pick"], meta["min_score"], meta["class"])
    return crops(boxes, rows, meta["margin"], meta["square"])


def _table(competition: Competition, index: pd.DataFrame, path: str, units: Any) -> pd.DataFrame:
    return on_index(read_boxes(Path(path), competition.id), index, Path(path), units)


def _recall(met: Recall, chosen: float) -> dict[str, Any]:
    """What the report shows of recall on true boxes."""
    recall, whole = met.nested()
    return {
        "images": len(met.truth),
        "found": int((~np.isnan(met.found[:, 0])).sum()),
        "iou": float(met.iou.mean()),
        "iou_median": float(np.median(met.iou)),
        "iou_half": float((met.iou >= 0.5).mean()),
        **met.at(chosen),
        "nested_recall": recall,
        "nested_whole": whole,
        "margins": met.table.round(4).to_dict("list"),
    }
