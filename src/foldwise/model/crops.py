"""`01_preprocess.py --crop`: its flags; boxes from a file or a detector -> margin by true boxes -> crops, saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import cli, parallel
from foldwise.core.cli import note
from foldwise.core.schema import nearest
from foldwise.data import image
from foldwise.data.boxes import (
    MARGIN,
    Crops,
    Recall,
    box_recall,
    choose_margin,
    contact_sheet,
    crops,
    files_digest,
    load_facts,
    on_index,
    one_each,
    read_boxes,
    save,
    write_sheet,
)
from foldwise.data.competition import Competition


def add_crop_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of --crop, in a group of their own in --help."""
    group = parser.add_argument_group(
        "crops",
        "cut the object out of each image: images_<size>_crop.npy beside images_<size>.npy, for recipes with\n"
        "crop: true; boxes.csv, crops.png and a section of report.html show what was found (docs/crop.md)",
    )
    add = group.add_argument
    add("--crop", choices=["detector", "boxes"], help="find boxes by a detector, or take them from --boxes")
    add(
        "--boxes",
        metavar="FILE.csv",
        help="id (or filename), xmin, ymin, xmax, ymax; optional: score, class, "
        "width and height of the image that they were drawn on, split",
    )
    add(
        "--crop-units",
        choices=["auto", "pixels", "relative"],
        default="auto",
        help="of coordinates in files; auto: shares where all lie in 0..1, scaled where width and height are given",
    )
    add(
        "--detector",
        default="resnet50",
        metavar="D",
        help="resnet50 or mobilenet_320 (COCO weights), a fine-tuned "
        "folder, or with --finetune-boxes a recipe's name: its backbone (default: resnet50)",
    )
    add(
        "--crop-weights",
        metavar="FILE",
        help="COCO weights, or the backbone's to tune from (default: what lies in "
        "input/weights or in an attached Kaggle dataset)",
    )
    add("--download", action="store_true", help="fetch COCO weights from pytorch.org where they are missing")
    add("--crop-class", default="any", metavar="NAME", help="the object, such as clock (default: any)")
    add(
        "--crop-size",
        type=cli.image_size,
        metavar="N",
        help="longer side in pixels that the detector sees (default: resnet50 1024, the others 320)",
    )
    add(
        "--crop-pick",
        choices=["score", "area", "union"],
        default="score",
        help="which of several boxes: the best score, the largest, or one around all (default: score)",
    )
    add(
        "--crop-min-score",
        type=share,
        default=0.5,
        metavar="S",
        help="with lower scores only, the whole image is used (default: 0.5)",
    )
    add(
        "--crop-margin",
        type=margin,
        metavar="M",
        help="auto, or a share of the box's side, added on each side; auto: "
        "the smallest that keeps 99 %% of the area of true boxes and 95 %% of them wholly, "
        f"{MARGIN} where no true boxes are known (default: auto)",
    )
    add("--crop-square", action="store_true", help="square windows, so that squashing to a square distorts nothing")
    add("--crop-truth", metavar="FILE.csv", help="true boxes of some images: measure recall, choose the margin")
    add(
        "--finetune-boxes",
        metavar="FILE.csv",
        help="tune the detector on these true boxes first; some images are held out, and the margin is chosen by them",
    )
    add("--finetune-holdout", type=cli.count, metavar="N", help="images held out (default: a quarter)")
    add("--finetune-epochs", type=cli.count, metavar="N", default=24, help="(default: 24)")
    add("--finetune-rate", type=float, metavar="LR", default=1e-3, help="peak learning rate (default: 0.001)")
    add(
        "--finetune-seed",
        type=cli.count,
        metavar="N",
        default=0,
        help="of the images held out, the order and the augmentation (default: 0)",
    )


def share(text: str, most: float = 1.0, wrong: str = "not a share, 0 to 1") -> float:
    """An argparse type: 0..most."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is {wrong}")
    return value


def margin(text: str) -> float | None:
    """An argparse type: 'auto' (None), or a share of the box's side, 0..2."""
    return None if text == "auto" else share(text, 2.0, "neither auto nor a share of the box's side, 0 to 2")


def check_crop_arguments(args: argparse.Namespace) -> None:
    """UserError where flags contradict each other, before anything is read."""
    if args.crop is None:
        given = [flag for flag in ("boxes", "crop_truth", "finetune_boxes") if getattr(args, flag)]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')}: needs --crop boxes or --crop detector beside it")
    if args.crop == "boxes" and not args.boxes:
        raise UserError("--crop boxes: needs --boxes FILE.csv (id, xmin, ymin, xmax, ymax)")
    if args.crop == "detector" and args.boxes:
        raise UserError("--boxes goes with --crop boxes; to tune a detector on boxes, give --finetune-boxes FILE.csv")
    if args.crop == "boxes" and args.finetune_boxes:
        raise UserError("--finetune-boxes goes with --crop detector")
    if args.finetune_epochs < 1 or args.finetune_rate <= 0:
        raise UserError("--finetune-epochs and --finetune-rate are above 0")


def warn_of_stale_crops(competition: Competition, index: pd.DataFrame) -> None:
    """Say so where crops were made earlier, of other files than there are now."""
    facts = load_facts(competition)
    if facts is not None and facts["files"] != files_digest(index):
        note("warning: the crops were made of other files than there are now; give --crop again")


def make_crops(competition: Competition, index: pd.DataFrame, args: argparse.Namespace) -> Crops:
    """Boxes, margin and windows of every row of the index; boxes.csv, crop.json and crops.png are written."""
    if args.crop == "boxes":
        boxes, truth, facts = _from_file(competition, index, args)
    else:
        boxes, truth, facts = _by_detector(competition, index, args)
    met = None if truth is None else box_recall(boxes, truth, index, args.crop_square, args.crop_pick)
    chosen, how = choose_margin(args.crop_margin, met)
    made = crops(boxes, index, chosen, args.crop_square)
    whole = boxes[(boxes["source"] == "whole") & (boxes["reason"] != "unreadable")]
    facts |= {
        "method": args.crop,
        "class": args.crop_class,
        "pick": args.crop_pick,
        "margin_chosen": how,
        "images": int((boxes["reason"] != "unreadable").sum()),
        "whole": len(whole),
        "reasons": whole["reason"].value_counts().to_dict(),
        "recall": None if met is None else _recall(met, chosen),
    }
    save(competition, index, boxes, made, facts)
    write_sheet(contact_sheet(competition, index, boxes, made), competition.derived() / "crops.png")
    note(
        f"crops: {facts['images'] - len(whole)} of {facts['images']} images have a box, {len(whole)} stay whole; "
        f"margin {chosen:g} ({how})"
    )
    if met is not None:
        kept = facts["recall"]
        note(
            f"crops: on {kept['images']} true boxes mean IoU {kept['iou']:.3f}; the margin keeps {kept['recall']:.1%} "
            f"of their area, {kept['whole']:.1%} of them wholly"
        )
    return made


def _from_file(
    competition: Competition, index: pd.DataFrame, args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    found = _table(competition, index, args.boxes, args.crop_units)
    known = set(found["class"]) - {""}
    if args.crop_class != "any" and args.crop_class not in known:
        raise UserError(
            f"--crop-class {args.crop_class}: {args.boxes} has no such class{nearest(args.crop_class, known)}"
        )
    lowest = args.crop_min_score if found["score"].notna().any() else 0.0
    boxes = one_each(found, index, "file", args.crop_pick, lowest, args.crop_class)
    truth = _table(competition, index, args.crop_truth, args.crop_units) if args.crop_truth else None
    return boxes, truth, {"boxes": Path(args.boxes).name, "min_score": lowest}


def _by_detector(
    competition: Competition, index: pd.DataFrame, args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    parallel.tune_allocator()
    from foldwise.model import detector  # torch

    truths = [
        _table(competition, index, path, args.crop_units) for path in (args.finetune_boxes, args.crop_truth) if path
    ]
    if args.finetune_boxes:
        plan = detector.box_split(truths[0], index, args.finetune_holdout, args.finetune_seed)
        made = detector.finetune(
            competition,
            index,
            plan,
            competition.derived() / "detector",
            args.detector,
            args.crop_weights,
            args.crop_size,
            args.finetune_epochs,
            args.finetune_rate,
            args.finetune_seed,
            args.download,
        )
    else:
        made = detector.load(args.detector, args.crop_weights, args.crop_size, args.download)
    known = [name for name in made.classes[1:] if name != "N/A"]
    if args.crop_class != "any" and args.crop_class not in known:
        raise UserError(
            f"--crop-class {args.crop_class}: the detector knows no such class{nearest(args.crop_class, known)}"
        )
    saved = competition.derived() / "detections.csv"
    found = detector.detect(made, competition.raw(), competition.image, index, saved)
    boxes = one_each(found, index, "detector", args.crop_pick, args.crop_min_score, args.crop_class)
    truth = pd.concat(truths, ignore_index=True) if truths else None
    if truth is not None:  # what it was trained on proves nothing
        seen = set(made.facts.get("trained", []))
        truth = truth[~detector.names(index).iloc[truth["row"]].isin(seen).to_numpy()]
    facts: dict[str, Any] = {key: made.facts[key] for key in ("detector", "size") if key in made.facts}
    if "trained" in made.facts:
        facts |= {"epochs": made.facts["epochs"], "seed": made.facts["seed"], "trained_on": len(made.facts["trained"])}
    return boxes, truth, {**facts, "min_score": args.crop_min_score, "weights": args.crop_weights}


def crop_again(competition: Competition, raw: Path, rows: pd.DataFrame) -> Crops:
    """Windows of other images below `raw`, found as crop.json says the competition's were; nothing is written.

    rows: columns path, error, split, id, bytes (and frame), as cache.build_size takes them.
    """
    facts = load_facts(competition)
    if facts is None:
        raise UserError(f"{competition.derived() / 'crop.json'}: not there; run 01_preprocess.py --crop first")
    if facts["method"] != "detector":
        where = competition.derived() / "crop.json"
        raise UserError(f"{where}: its boxes came from a file, which has none of new images; use --crop detector")
    parallel.tune_allocator()
    from foldwise.model import detector  # torch

    tuned = competition.derived() / "detector"
    name, weights = (str(tuned), None) if "trained_on" in facts else (facts["detector"], facts["weights"])
    made = detector.load(name, weights, facts["size"])
    sizes: list[tuple[int, int, str | None]] = []
    for row in rows.itertuples():
        try:
            seen = image.probe(raw / str(row.path))
            sizes.append((seen["width"], seen["height"], None))
        except UserError as error:
            sizes.append((1, 1, str(error)))
    rows = rows.assign(**{name: [size[k] for size in sizes] for k, name in enumerate(("width", "height", "error"))})
    found = detector.detect(made, raw, competition.image, rows)
    boxes = one_each(found, rows, "detector", facts["pick"], facts["min_score"], facts["class"])
    return crops(boxes, rows, facts["margin"], facts["square"])


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
