"""Step 8: cut the object out of each image, for recipes with crop: true.

reads    input/derived/<competition>/ (index.parquet, images of step 1), the raw images; tables of boxes
writes   input/derived/<competition>/
           boxes.csv, detections.csv   the box of each image; all that the detector found, which is not made twice
           images_<size>_crop.npy      the boxes and their margin cut out, beside the whole images_<size>.npy
           crop.json, crops.png        how the margin was chosen, recall on true boxes; a sheet of doubtful boxes
           report.html                 the same page as before, with its section on crops

examples
  python src/08_crop.py --competition watches --class clock                       # COCO's detector; needs its weights
  python src/08_crop.py --competition watches --boxes boxes.csv --margin 0.1      # boxes from a file
  python src/08_crop.py --competition raccoon --detector mobilenetv2 --finetune-boxes labels.csv

Killed? Run the same command again: it continues. docs/crop.md says more.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from foldwise.audit.duplicates import SIZE, load_audit
from foldwise.core import cli
from foldwise.data import cache, folds, index
from foldwise.data.boxes import MARGIN
from foldwise.data.competition import load_competition
from foldwise.model.crops import CropOptions, make_crops
from foldwise.report.competition import write_competition_report


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


def arguments() -> argparse.Namespace:
    """What the user asked for."""
    parser = cli.parser(__doc__)
    parser.set_defaults(**{field.name: field.default for field in fields(CropOptions)})
    add = parser.add_argument
    add("--sizes", type=cli.image_size, nargs="+", metavar="N", help="sides in pixels (default: those of step 1)")
    add("--workers", type=int, metavar="N", help="processes (default: all cores)")
    add("--dask", metavar="ADDRESS", help="spread the cutting over the Dask cluster of this scheduler")
    add("--class", dest="object_class", metavar="NAME", help="the object, such as clock (default: any)")
    add("--pick", choices=["score", "area", "union"], help="of several boxes: best score, largest, one around all")
    add("--min-score", type=share, metavar="S", help="with lower scores only, the image stays whole (default: 0.5)")
    words = "auto, or a share of the box's side, added on each side; auto: the smallest that keeps 99 %% of the area "
    words += f"of true boxes and 95 %% of them wholly, {MARGIN} where no true boxes are known (default: auto)"
    add("--margin", type=margin, metavar="M", help=words)
    add("--square", action="store_true", help="square windows, so that squashing to a square distorts nothing")
    add("--truth", metavar="FILE.csv", help="true boxes of some images: measure recall, choose the margin")
    file = parser.add_argument_group("boxes from a file")
    words = (
        "id (or filename), xmin, ymin, xmax, ymax; optional: score, class, split, width and height of the image that "
    )
    file.add_argument("--boxes", metavar="FILE.csv", help=words + "they were drawn on")
    words = "of coordinates in files; auto: shares where all lie in 0..1, scaled where width and height are given"
    file.add_argument("--units", choices=["auto", "pixels", "relative"], help=words)
    add = parser.add_argument_group("boxes from a detector").add_argument
    words = "resnet50 or mobilenet_320 (COCO weights), a fine-tuned folder, or with --finetune-boxes a recipe's name, "
    add("--detector", metavar="D", help=words + "for its backbone (default: resnet50)")
    words = "COCO weights, or the backbone's to tune from (default: what lies in input/weights or an attached dataset)"
    add("--weights", metavar="FILE", help=words)
    add("--download", action="store_true", help="fetch COCO weights from pytorch.org where they are missing")
    words = "longer side in pixels that it sees (default: resnet50 1024, the others 320)"
    add("--detector-size", type=cli.image_size, metavar="N", help=words)
    words = "tune the detector on these true boxes first; some images are held out, and the margin is chosen by them"
    add("--finetune-boxes", metavar="FILE.csv", help=words)
    add("--finetune-holdout", dest="holdout", type=cli.count, metavar="N", help="images held out (default: a quarter)")
    add("--finetune-epochs", dest="epochs", type=cli.count, metavar="N", help="(default: 24)")
    add("--finetune-rate", dest="rate", type=float, metavar="LR", help="peak learning rate (default: 0.001)")
    words = "of the images held out, the order and the augmentation (default: 0)"
    add("--finetune-seed", dest="seed", type=cli.count, metavar="N", help=words)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    options = CropOptions(**{field.name: getattr(args, field.name) for field in fields(CropOptions)})
    competition = load_competition(args.competition)
    with index.alone(competition):
        table, fold_table = index.load_index(competition), folds.load_folds(competition)
        whole = [size for size in cache.sizes(competition) if size != SIZE] or [SIZE]
        crops = make_crops(competition, table, options)
        cache.build_caches(competition, table, args.sizes or whole, args.workers, args.dask, crops)
        path, _ = write_competition_report(competition, table, fold_table, whole, load_audit(competition, table))
    cli.note(f"crops of {', '.join(map(str, args.sizes or whole))} pixels; look at {path}")
    cli.next_step(args.competition, "02_train.py", "--recipe", "baseline", f"image_size={whole[0]}", "crop=true")


if __name__ == "__main__":
    cli.run(main)
