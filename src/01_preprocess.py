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
  python src/01_preprocess.py --list-metrics                         # every metric: tasks, direction, what it is
  python src/01_preprocess.py --inspect some/folder --report files.csv   # any folder: what is readable, and why not

Killed, or stopped by --hours? Run the same command again: it continues.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from foldwise import metrics
from foldwise.core import cli, paths
from foldwise.core.cli import note
from foldwise.core.schema import describe
from foldwise.data import image, propose
from foldwise.data.competition import Competition, load_competition
from foldwise.report.preparation import prepare


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
    parser.add_argument("--workers", type=cli.count, metavar="N", help="processes (default: all cores)")
    cli.add_hours(parser)
    parser.add_argument("--dask", metavar="ADDRESS", help="spread the work over the Dask cluster of this scheduler")
    parser.add_argument(
        "--new-folds", action="store_true", help="make folds.csv anew; runs made with the old ones stop"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE.csv", help="take in the decisions of noise.html; none: forget them"
    )
    parser.add_argument("--inspect", metavar="DIR", help="only read every file below DIR and report on it")
    parser.add_argument("--report", metavar="FILE.csv", default="inspect.csv", help="where --inspect writes its rows")
    parser.add_argument("--new", metavar="NAME", type=cli.name, help="propose src/competitions/NAME.yaml and stop")
    parser.add_argument("--from", dest="raw", metavar="DIR", help="with --new: the raw folder (default: input/NAME)")
    parser.add_argument("--out", metavar="FILE.yaml", help="with --new: where to write it")
    parser.add_argument("--help-competition", action="store_true", help="list every key of a competition file and stop")
    parser.add_argument("--list-metrics", action="store_true", help="list every metric, what it is and needs, and stop")
    moved = next((flag for flag in sys.argv[1:] if re.match("--(crop|boxes|detector|finetune|download)", flag)), None)
    if moved:
        parser.error(f"{moved}: crops have a step of their own, after this one: 08_crop.py")
    args = parser.parse_args()

    if args.list_metrics:
        print(metrics.listing())
        return
    if args.help_competition:
        print(describe(Competition))
        return
    if args.new:
        path, proposal = propose.write_proposal(args.new, args.raw, args.out)
        print(f"{path}:\n\n{proposal.text()}")
        for doubt in proposal.doubts:
            note(f"look at  {doubt}")
        named = str(path) if args.out else args.new
        cli.next_step(named, "02_train.py", "--recipe", "auto", "--hours", 0.1, "--submit")
        return
    if args.inspect:
        print(image.inspect(args.inspect, args.report, workers=args.workers))
        return

    cli.stop_after(args.hours)
    competition = load_competition(args.competition)
    prepare(competition, args.sizes, args.workers, args.dask, args.new_folds, args.labels)
    own = (paths.RECIPES / f"{competition.name}.yaml").exists()
    cli.next_step(args.competition, "02_train.py", "--recipe", *([competition.name] if own else ["auto", "--hours", 1]))


if __name__ == "__main__":
    cli.run(main)
