"""Step 6: blend runs into a submission, and say how far to trust it.

reads    oof/<competition>/<run>/ (oof.csv, test.csv), input/derived/<competition>/ (index.parquet, folds.csv)
writes   submissions/<competition>/<name>.csv, .json (weights, nested score, gains), .html (the same in figures);
         submissions/log.csv (every submission, with the scores you add by --lb)

The score to believe is the nested one: weights fitted on the other folds, judged on this one.

examples
  python src/06_blend.py                                     # runs that add something, the method that nested CV picks
  python src/06_blend.py --all                               # every finished run
  python src/06_blend.py --runs baseline lightgbm --method rank
  python src/06_blend.py --method weights --space auto --name simplex
  python src/06_blend.py --runs baseline                     # with fold 0 alone trained: a first submission
  python src/06_blend.py --weights baseline=0.6 lightgbm=0.4 --space rank --name hand
  python src/06_blend.py --foreign notebook oof.parquet sub.csv --columns image_name=id prob=pred
  python src/06_blend.py --name simplex --lb 0.941 0.936     # public, then private score of that submission
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from foldwise import metrics
from foldwise.blend.by_hand import ByHand
from foldwise.blend.dominated import dominated
from foldwise.blend.methods import METHODS
from foldwise.blend.run_set import gather_runs, hand_weights, renames
from foldwise.core import cli
from foldwise.data.competition import load_competition
from foldwise.report.blend import note_scores, print_summary, write_blend


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    some = "folders in oof/ (default: the finished ones, without those that the blend is no worse without)"
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=some)
    parser.add_argument("--all", action="store_true", help="every finished run, whatever it adds")
    names = ", ".join(["auto", *METHODS])
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="RUN=W",
        help="weights set by hand, in --space; the automatic blend is fitted beside it and compared",
    )
    parser.add_argument("--method", default="auto", metavar="METHOD", help=f"{names} (default: auto)")
    parser.add_argument("--space", metavar="SPACE", help="prob, logit, rank or auto (default: the method's own)")
    parser.add_argument("--no-cuts", action="store_true", help="metrics of labels: tune no cuts, decide at 0.5")
    parser.add_argument("--name", type=cli.name, default="blend", help="the submission's name (default: blend)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--foreign",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "OOF", "TEST"),
        help="a run made elsewhere, its two tables as CSV or parquet",
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="THEIRS=OURS", help="the foreign tables' columns: image_name=id"
    )
    parser.add_argument(
        "--lb",
        nargs="+",
        type=float,
        metavar="SCORE",
        help="only note the public (and private) score of the submission --name in submissions/log.csv",
    )
    parser.add_argument("--list-metrics", action="store_true", help="list every metric, what it is and needs, and stop")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.list_metrics:
        print(metrics.listing())
        return
    competition = load_competition(args.competition)
    if args.lb:
        note_scores(competition, args.name, args.lb)
        return
    by_hand = hand_weights(args.weights)
    names = [name for name in by_hand if name not in {foreign[0] for foreign in args.foreign}] or args.runs
    runs = gather_runs(competition, names, args.foreign, renames(args.columns))
    hand = ByHand(runs, *runs.judged_by(competition), args.seed, not args.no_cuts)
    automatic, left_out = None, list[dict[str, Any]]()
    if by_hand:
        blend, automatic = hand.blend(by_hand, args.space, draws=1000), hand.automatic
    else:
        blend = hand.fit(method=args.method, space=args.space)
        while not (names or args.foreign or args.all) and len(runs.names) > 2:
            one = dominated(runs, blend, hand.metric, hand.task, args.seed)
            if one is None:
                break
            left_out.append(one)
            runs = gather_runs(competition, [name for name in runs.names if name != one["run"]])
            blend = replace(hand, runs=runs).fit(method=args.method, space=args.space)
    path, meta = write_blend(competition, args.name, runs, blend, args.seed, automatic, left_out)
    print_summary(meta, path)
    cli.next_step(args.competition, "06_blend.py", "--name", args.name, "--lb", "SCORE", "  # once it is handed in")


if __name__ == "__main__":
    cli.run(main)
