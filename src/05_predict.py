"""Step 5: predict from saved models: a run's rows with other views, any folder of images, or a blend's hidden test set.

reads    oof/<competition>/<run>/ (run.json, fold<K>.safetensors); input/derived/<competition>/
         --submission: submissions/<competition>/<name>.json, the models of its runs, the test rows that lie there now
writes   oof/<competition>/<name>/: the same tables as step 2, or --out FILE.csv (id, pred...) for --images DIR
         --submission: --out FILE.csv as the host wants it, valid from the first seconds on, replaced as it gets better

examples
  python src/05_predict.py --submission blend --out submission.csv --hours 9
  python src/05_predict.py --run baseline                            # the tables of step 2, made again
  python src/05_predict.py --run baseline predict.tta=d4             # a new run baseline_d4, OOF and test alike
  python src/05_predict.py --run baseline --images new_images --out new.csv
"""

from __future__ import annotations

import time
from argparse import SUPPRESS, Namespace
from dataclasses import asdict
from pathlib import Path

from foldwise.core import cli, parallel, pieces
from foldwise.core.cli import note
from foldwise.core.files import write_json
from foldwise.data import folds, image, index, oof
from foldwise.data.competition import Competition, load_competition
from foldwise.data.recipe import recipe_settings
from foldwise.data.runs import recipe_of, write_run
from foldwise.inference import writer


def main() -> None:
    parser = cli.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="RUN", help="a run of step 2")
    what.add_argument(
        "--submission", type=cli.name, metavar="NAME", help="a blend of step 6, on the test rows that lie there now"
    )
    parser.add_argument(
        "--hours",
        type=cli.hours,
        metavar="H",
        help="stop when they are over, with what is finished saved (status 75); --submission: be done by then, less "
        "what costs least to leave out; 30m: minutes",
    )
    parser.add_argument(
        "--started", type=float, metavar="T", help="when they began, in seconds since 1970 (default: with this command)"
    )
    parser.add_argument(
        "--folds", type=int, nargs="+", metavar="K", help="--submission: by these folds' models alone, for a rehearsal"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="--submission: processes that share the images (default: one a GPU)"
    )
    parser.add_argument("--part", type=int, default=0, help=SUPPRESS)  # which of them this is
    parser.add_argument("--stats", metavar="FILE.json", help="--submission: write down what it took")
    parser.add_argument("--workers", type=cli.count, metavar="N", help="processes that decode (default: all cores)")
    parser.add_argument(
        "--name", type=cli.name, metavar="RUN", help="name of the new run's folder (default: RUN_<tta>)"
    )
    parser.add_argument("--images", metavar="DIR", help="predict every image below this folder instead")
    parser.add_argument(
        "--out", metavar="FILE.csv", default="predictions.csv", help="where to write (default: predictions.csv)"
    )
    cli.add_report_flag(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="predict.* settings, such as predict.tta=flip"
    )
    args = parser.parse_intermixed_args()

    competition = load_competition(args.competition)
    if args.submission:
        predict_blend(competition, args)
        return
    for flag in ("started", "folds", "stats", "devices"):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag} goes with --submission")
    cli.stop_after(args.hours, *(["nothing is written: --images has to be done in time"] if args.images else []))
    recipe = recipe_of(competition, args.run, args.overrides)
    parallel.tune_allocator()
    from foldwise.model import fold_models  # torch
    from foldwise.report.ending import end_run

    if args.images:
        from foldwise.inference.predict import predict_folder

        table, broken = predict_folder(competition, recipe, args.run, Path(args.images))
        oof.write_table(table, Path(args.out))
        for path, reason in broken.items():
            note(f"warning: {path}: {reason}")
        others = image.listing(Path(args.images)).left_out
        cli.say(f"{len(table)} images predicted into {args.out}, {len(broken)} of them unreadable{others}")
        return
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    name = args.name or (f"{args.run}_{recipe.predict.tta}" if args.overrides else args.run)
    meta, key = {"weights_of": args.run}, fold_models.made_of(competition, recipe, args.run)
    with pieces.of_run(competition.runs(), name, key) as kept:
        preds = fold_models.predict_folds(competition, recipe, args.run, table, fold_table, kept.keep)
        info = write_run(competition, name, recipe_settings(recipe), fold_table, table, preds, meta, anew=False)
    end_run(competition, info, args.report)
    cli.next_step(args.competition, "06_blend.py")


def predict_blend(competition: Competition, args: Namespace) -> None:
    started = writer.process_start() if args.started is None else args.started
    deadline = None if args.hours is None else started + 3600 * args.hours
    # before torch: a valid file at once
    first = writer.begin(competition, args.submission, Path(args.out), write=not args.part)
    if deadline is not None and time.time() >= deadline:
        cli.say(f"{args.out}: the training prior for each row: the hours are over")
        return
    parallel.tune_allocator()
    from foldwise.inference.predict import How, predict_part, predict_submission

    devices = args.devices or max(1, parallel.gpus())
    how = How(deadline, args.folds, args.workers, (args.part, devices))
    if args.part:
        predict_part(first, how)
        return
    done = predict_submission(first, how)
    if args.stats:
        write_json(Path(args.stats), asdict(done))
    left_out = f"; left out for time: {'; '.join(done.dropped)}" if done.dropped else ""
    broken = f"{done.unreadable} images unreadable"
    cli.say(f"{args.out}: {done.rows:,} rows, {broken}, {cli.duration(time.time() - started)}{left_out}")


if __name__ == "__main__":
    cli.run(main)
