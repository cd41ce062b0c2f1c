"""Step 2: train a CNN fold by fold; every training row is predicted by the model that did not see it.

reads    input/derived/<competition>/ (index, folds, images of the recipe's size), src/recipes/<recipe>.yaml
writes   oof/<competition>/<run>/
           fold<K>.csv, fold<K>_test.csv     predictions of validation and test rows
           fold<K>.safetensors, fold<K>_log.csv
           oof.csv, test.csv                 after the last fold: all rows; the folds' mean
           run.json                          recipe, hashes, scores, versions, seconds

examples
  python src/02_train.py --fold 0                                    # one fold of the demo with recipe baseline
  python src/02_train.py --competition skin --recipe baseline --fold all --hours 11.5
  python src/02_train.py --fold 0 --name quick train.epochs=1 model.name=resnet18 image_size=128
  python src/02_train.py --help-recipe                               # every knob, its default and meaning

Run again, it continues after the last finished epoch, or says that the fold is done. When --hours run out it stops
in time with status 75 and everything saved.
"""

from __future__ import annotations

import sys
import time

from foldwise import command, competition, config, folds, index, launch, oof
from foldwise.command import note


def main() -> None:
    started = time.monotonic()
    parser = command.parser(__doc__)
    parser.add_argument(
        "--recipe", default="baseline", metavar="R", help="src/recipes/R.yaml or a path (default: baseline)"
    )
    parser.add_argument("--fold", default="all", metavar="K|all", help="fold to train (default: all, in turn)")
    parser.add_argument(
        "--name", type=command.name, metavar="RUN", help="name of the run's folder (default: the recipe's)"
    )
    parser.add_argument("--restart", action="store_true", help="forget these folds' results and train them anew")
    parser.add_argument("--hours", type=float, metavar="H", help="stop in time when so many hours are over")
    parser.add_argument("--help-recipe", action="store_true", help="list every recipe setting and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe settings, such as train.epochs=1")
    args = parser.parse_intermixed_args()
    if args.help_recipe:
        print(config.help_recipe())
        return

    about = competition.load(args.competition)
    recipe = config.load(args.recipe, args.overrides)
    table, fold_table = index.load(about), folds.load(about)
    wanted = folds.choose(fold_table, args.fold)
    settings = config.settings(recipe)
    name = args.name or config.run_name(args.recipe)
    launch.settle()
    from foldwise import loop  # torch takes seconds: only now that everything named above is known to exist

    if args.restart:
        loop.rehearse(about, recipe, wanted[0], fold_table)
    folder = oof.open_run(about, name, settings, fold_table, wanted if args.restart else ())
    deadline = None if args.hours is None else started + 3600 * args.hours
    facts = oof.read_info(folder).get("folds", {})
    for fold in wanted:
        if fold in oof.finished_folds(folder):
            note(f"fold {fold}: done already ({folder / f'fold{fold}.csv'}; --restart trains it anew)")
            continue
        try:
            facts[str(fold)] = loop.train_fold(about, recipe, fold, fold_table, folder, deadline, _pace(facts))
        except loop.OutOfTime as stop:
            note(f"--hours {args.hours:g} are nearly over. {stop}; run the same command to continue")
            sys.exit(75)  # EX_TEMPFAIL: not done, not wrong
        info = oof.finish(about, folder, fold_table, table, {"config": settings, "folds": facts})
    info = oof.finish(about, folder, fold_table, table, {"config": settings, "folds": facts})
    oof.print_scores(info)


def _pace(facts: dict) -> float:
    return max((fold["seconds"] / max(1, fold["epochs"]) for fold in facts.values()), default=0.0)


if __name__ == "__main__":
    command.run(main)
