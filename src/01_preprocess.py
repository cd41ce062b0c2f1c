"""Step 1: from the raw folder to an index, folds, and image caches.

reads    the competition's raw folder (tables, images, DICOM headers), never changing it
writes   input/derived/<competition>/
           index.parquet       a row per image: target, metadata, sizes, and why a file can't be used
           unreadable.csv      the files set aside, with the reason
           folds.csv, .json    id, group, fold; made once, then only reread (--new-folds makes them anew)
           images_<size>.npy   uint8 RGB pixels, with images_<size>_ids.csv saying whose row is which
           duplicates.csv      exact and near copies; training copies share a group, so that no fold splits them
           report.html         what to look at before training

examples
  python src/01_preprocess.py                                        # the demo competition, 224 x 224
  python src/01_preprocess.py --competition siim-isic-melanoma-classification --sizes 256 384
  python src/01_preprocess.py --dask tcp://10.0.0.5:8786             # on a cluster that sees the same folders
  python src/01_preprocess.py --new my-competition --from some/folder    # propose a competition file for a raw folder
  python src/01_preprocess.py --help-competition                     # every key: default, meaning, allowed values
  python src/01_preprocess.py --inspect some/folder --report files.csv   # any folder: what is readable, and why not

Killed? Run the same command again: it continues.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace

from pandas import DataFrame

from foldwise.audit import groups
from foldwise.audit.duplicates import SIZE, duplicate_groups
from foldwise.core import cli
from foldwise.core.cli import note
from foldwise.core.schema import describe
from foldwise.data import cache, folds, image, index, orientation, propose
from foldwise.data.competition import Competition, load_competition
from foldwise.model.crops import warn_of_stale_crops
from foldwise.report.competition import write_competition_report


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--sizes",
        type=cli.image_size,
        nargs="+",
        default=[224],
        metavar="N",
        help="sides of the cached images in pixels (default: 224)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--dask", metavar="ADDRESS", help="spread the work over the Dask cluster of this scheduler")
    parser.add_argument(
        "--new-folds", action="store_true", help="make folds.csv anew; runs made with the old ones stop"
    )
    parser.add_argument("--inspect", metavar="DIR", help="only read every file below DIR and report on it")
    parser.add_argument("--report", metavar="FILE.csv", default="inspect.csv", help="where --inspect writes its rows")
    parser.add_argument("--new", metavar="NAME", type=cli.name, help="propose src/competitions/NAME.yaml and stop")
    parser.add_argument("--from", dest="raw", metavar="DIR", help="with --new: the raw folder (default: input/NAME)")
    parser.add_argument("--out", metavar="FILE.yaml", help="with --new: where to write it")
    parser.add_argument("--help-competition", action="store_true", help="list every key of a competition file and stop")
    moved = next((flag for flag in sys.argv[1:] if re.match("--(crop|boxes|detector|finetune|download)", flag)), None)
    if moved:
        parser.error(f"{moved}: crops have a step of their own, after this one: 08_crop.py")
    args = parser.parse_args()

    if args.help_competition:
        print(describe(Competition))
        return
    if args.new:
        path, proposal = propose.write_proposal(args.new, args.raw, args.out)
        print(f"{path}:\n\n{proposal.text()}")
        for doubt in proposal.doubts:
            note(f"look at  {doubt}")
        named = path if args.out else args.new
        note(f"next: python src/01_preprocess.py --competition {named} --sizes 224")
        return
    if args.inspect:
        print(image.inspect(args.inspect, args.report, workers=args.workers))
        return

    competition = load_competition(args.competition)
    with index.alone(competition):
        preprocess(competition, args)


def preprocess(competition: Competition, args: Namespace) -> None:
    table = index.build_index(competition, args.workers, args.dask)
    if not args.new_folds:
        folds.check_saved(competition, table)
    sizes = list(dict.fromkeys([*args.sizes, SIZE]))
    table["error"] = cache.build_caches(competition, table, sizes, args.workers, args.dask)
    index.check_readable(competition, table)
    ties = groups.ties(competition, table)
    groups.refuse(competition, ties)
    images = cache.load_cache(competition, SIZE, table=table)
    copies = duplicate_groups(competition, table, images, turned=competition.turned_copies)
    table = table.assign(host_group=table["group"], group=copies.group)
    warn_of_stale_crops(competition, table)
    fold_table = folds.make_once(competition, table, anew=args.new_folds)
    index.save_index(table, competition)
    path, warnings = write_competition_report(competition, table, fold_table, args.sizes, copies)
    look_at_orientation(competition, table, images)
    odd = index.remarked(cache.remarks(competition, table, args.sizes[0])) + index.odd_formats(table)
    forgotten = [str(tie) for tie in ties[:1]]
    for warning in index.set_aside(table) + odd + forgotten + warnings:
        note(f"warning: {warning}")
    others = index.left_out(competition)
    note(f"{len(table)} images, {int(table['error'].notna().sum())} set aside{others}; look at {path}")


def look_at_orientation(competition: Competition, table: DataFrame, images: cache.Cache) -> None:
    """Say what the training images are taken for, where the competition file says nothing."""
    train = table[(table["split"] == "train") & table["error"].isna()]
    some = train.iloc[:: max(1, len(train) // orientation.LOOKED_AT)]
    files = [competition.raw() / path for path in some["path"]]
    judged = orientation.judge(files, images.read(images.rows_of(some)))
    if competition.orientation is None and judged.orientation is not None:
        line, turn = f"orientation: {judged.orientation}", "no recipe" if judged.orientation == "upright" else "recipes"
        note(f"images look {judged.orientation}: {judged.reason}; `{line}` in {competition.file} lets {turn} turn them")


if __name__ == "__main__":
    cli.run(main)
