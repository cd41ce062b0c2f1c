"""Step 4: a classifier (SVM or logistic regression) on a network's embeddings, on the same folds.

reads    input/derived/<competition>/ (index, folds, images), and one of
           oof/<competition>/<run>/fold<K>.safetensors   with --run: fold K's rows are embedded by the model of fold K,
                                                         which did not see them
           the recipe's pretrained weights                with --recipe: one model, never trained on this data
writes   oof/<competition>/<recipe>_<head>/: the same files as step 2

examples
  python src/04_embed.py --run baseline --head svm
  python src/04_embed.py --competition ants.yaml --recipe baseline --head logreg
"""

from __future__ import annotations

import time

from foldwise import command, competition, config, folds, index, launch, oof


def main() -> None:
    started = time.monotonic()
    parser = command.parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", metavar="RUN", help="embed by a trained run's folds")
    source.add_argument(
        "--recipe", default="baseline", metavar="R", help="embed by a recipe's weights (default: baseline)"
    )
    parser.add_argument("--head", choices=["svm", "logreg"], default="svm", help="(default: svm)")
    parser.add_argument("--name", type=command.name, metavar="RUN", help="name of the new run's folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe settings, with --recipe")
    args = parser.parse_intermixed_args()

    launch.settle()
    if args.run and args.overrides:
        parser.error("overrides go with --recipe; a trained run has its own settings")
    from foldwise import ensemble  # torch

    about = competition.load(args.competition)
    table, fold_table = index.load(about), folds.load(about)
    recipe = oof.recipe_of(about, args.run) if args.run else config.load(args.recipe, args.overrides)
    settings = {"embed": args.run or config.settings(recipe), "head": args.head}
    name = args.name or f"{args.run or config.run_name(args.recipe)}_{args.head}"
    preds = ensemble.embed_folds(about, recipe, args.run, args.head, table, fold_table)
    folder = oof.open_run(about, name, settings, fold_table, sorted(preds))
    oof.write_folds(about, folder, table, fold_table, preds)
    info = oof.finish(
        about, folder, fold_table, table, {"config": settings, "seconds": round(time.monotonic() - started, 1)}
    )
    oof.print_scores(info)


if __name__ == "__main__":
    command.run(main)
