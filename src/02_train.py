"""Step 2: train a CNN fold by fold; every training row is predicted by the model that did not see it.

reads    input/derived/<competition>/ (index, folds, images of the recipe's size), src/recipes/<recipe>.yaml
writes   oof/<competition>/<run>/
           fold<K>.csv, fold<K>_test.csv     predictions of validation and test rows
           fold<K>.safetensors, fold<K>_log.csv, curves.png, report/report.html
           oof.csv, test.csv                 after the last fold: all rows; the folds' mean
           run.json                          recipe, hashes, scores, versions, seconds

examples
  python src/02_train.py --fold 0                                    # one fold of the demo with recipe baseline
  python src/02_train.py --competition skin --recipe baseline --fold all --hours 11.5
  python src/02_train.py --competition skin --recipe auto --hours 0.1 --submit    # measure, choose, train, hand in
  python src/02_train.py --fold 0 --name quick train.epochs=1 model.name=resnet18 image_size=128
  python src/02_train.py --help-recipe                               # every knob: default, meaning, allowed values
  python src/02_train.py --recipe baseline --lr-find                 # which learning rate
  python src/02_train.py --recipe baseline --preview augment.png     # what the augmentation does to the images
  torchrun --nproc_per_node 2 src/02_train.py --fold 0               # one fold on two GPUs (batch_size each)
  python src/02_train.py --recipe baseline,resnet50 --dask tcp://10.0.0.5:8786     # recipes x folds on a cluster

Several folds run side by side, one a GPU, where there are several GPUs. Run again, it continues where it was, also
inside an epoch, or says that the fold is done. When --hours run out it stops in time with status 75 and everything
saved.
"""

from __future__ import annotations

import importlib
import sys
import time
from argparse import Namespace
from pathlib import Path

from foldwise import UserError
from foldwise.core import cli, parallel
from foldwise.core.ranks import current_ranks
from foldwise.core.schema import describe
from foldwise.data import folds, index, submission
from foldwise.data.competition import Competition, load_competition
from foldwise.data.orientation import fitted
from foldwise.data.recipe import Recipe, load_recipe, run_name
from foldwise.data.runs import load_run, run_lock
from foldwise.train.run import in_turn, spread

AUTO = "auto"  # the recipe that is measured and chosen


def main() -> None:
    started = time.monotonic()
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--recipe",
        default="baseline",
        metavar="R[,R...]",
        help="src/recipes/R.yaml or a path (default: baseline); auto: measured and chosen for this machine and --hours",
    )
    parser.add_argument("--fold", default="all", metavar="K|all", help="fold to train (default: all)")
    parser.add_argument("--name", type=cli.name, metavar="RUN", help="name of the run's folder (default: the recipe's)")
    parser.add_argument("--restart", action="store_true", help="forget these folds' results and train them anew")
    parser.add_argument("--hours", type=cli.hours, metavar="H", help="stop in time when they are over; 30m: minutes")
    parser.add_argument("--submit", action="store_true", help="write the test predictions of a whole run, at the end")
    parser.add_argument("--devices", type=int, metavar="N", help="folds side by side (default: the GPUs, or 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="spread recipes x folds over a Dask cluster")
    parser.add_argument("--lr-find", action="store_true", help="draw the loss over growing rates, propose one and stop")
    parser.add_argument("--preview", metavar="FILE.png", help="draw augmented training images and stop")
    parser.add_argument("--help-recipe", action="store_true", help="list every recipe setting and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe settings, such as train.epochs=1")
    args = parser.parse_intermixed_args()
    if args.help_recipe:
        return print(describe(Recipe))

    competition = load_competition(args.competition)
    if args.submit and competition.test is None:
        raise UserError(f"--submit: {competition.file} has no `test`: there is nothing to hand in")
    if args.recipe == AUTO and is_done_by_a_head(competition, args):
        return  # by step 4
    names = args.recipe.split(",")
    if args.name and len(names) > 1:
        raise UserError(f"--name {args.name}: several recipes are several runs, named after them; leave it out")
    loaded = {args.name or run_name(name): load_recipe(name, args.overrides) for name in names}
    recipes = {run: fitted(recipe, competition.orientation, competition.image) for run, recipe in loaded.items()}
    if args.preview or args.lr_find:
        return look(competition, *next(iter(recipes.items())), args)
    index.try_metric(competition, index.load_index(competition))
    wanted = folds.choose(folds.load_folds(competition), args.fold)
    deadline = None if args.hours is None else started + 3600 * args.hours
    several = len(recipes) * len(wanted) > 1
    gpus = parallel.gpus() if several and not args.dask and args.devices is None else 0
    devices = args.devices or max(1, gpus)
    if args.dask or (several and devices > 1):
        where = {"dask": args.dask, "devices": devices, "gpus": gpus > 0}
        status, infos = spread(competition, recipes, wanted, restart=args.restart, deadline=deadline, **where)
    else:
        n_parallel = min(parallel.cores(), len(recipes) * len(wanted))
        if args.devices is None and not gpus and n_parallel > 1 and current_ranks().size == 1:
            cli.note(f"no GPU: --devices {n_parallel} trains {n_parallel} folds side by side, and faster on most CPUs")
        status, infos = in_turn(competition, recipes, wanted, args.restart, deadline)
    from foldwise.report import curves  # matplotlib: after the training, not before
    from foldwise.report.run import next_after, report_run

    for info in infos:
        folder = competition.runs() / info.run
        with run_lock(folder):
            curves.draw(folder)
            report_run(competition, info)
    if status:
        sys.exit(status)
    submit(competition, [info.run for info in infos if args.submit and info.is_whole])
    named = ["--name", args.name] if args.name else []
    next_after(competition, args.competition, infos, ["--recipe", args.recipe, *named, *args.overrides])


def is_done_by_a_head(competition: Competition, args: Namespace) -> bool:
    """Prepare and measure; a frozen backbone is done by step 4, else `args` names the recipe to train."""
    parallel.tune_allocator()
    from foldwise.report.preparation import auto_recipe  # torch, matplotlib

    recipe, devices, head = auto_recipe(competition, args.hours or 1.0, args.fold, args.restart, args.overrides)
    args.recipe, args.name = str(recipe), args.name or AUTO
    args.devices = args.devices or (None if parallel.gpus() else devices)  # a fold a GPU comes by itself
    if head is None or args.preview or args.lr_find:
        return False
    options = ["--competition", args.competition, "--recipe", args.recipe, "--head", head, "--name", args.name]
    sys.argv[:] = [str(Path(sys.argv[0]).with_name("04_embed.py")), *options, *args.overrides]
    importlib.import_module("04_embed").main()  # embeddings are made once, heads take seconds
    submit(competition, [args.name] * args.submit)
    return True


def look(competition: Competition, run: str, recipe: Recipe, args: Namespace) -> None:
    """Before training: the first recipe's augmentation, or its learning rates."""
    from foldwise.report import curves, previews  # matplotlib

    if args.preview:
        return previews.draw_preview(competition, recipe, Path(args.preview))
    curves.draw_range_test(competition, run, recipe, folds.choose(folds.load_folds(competition), args.fold)[0])


def submit(competition: Competition, runs: list[str]) -> None:
    """Write each run's test predictions as a submission of its name."""
    for run in runs:
        path = submission.write_submission(competition, load_run(competition, run).test, run, {"runs": [run]})
        cli.say(f"submission: {path}")


if __name__ == "__main__":
    cli.run(main)
