"""Step 4: a classifier or regressor (SVM, logistic regression...) on a network's embeddings, on the same folds.

reads    input/derived/<competition>/ (index, folds, images), and one of
           oof/<competition>/<run>/fold<K>.safetensors   with --run: fold K's head uses the network of fold K, which
                                                         did not see the rows it predicts
           the recipe's pretrained weights                with --recipe: one network, never trained on this data
writes   oof/<competition>/<recipe or run>_<head>/: the same tables as step 2, and
           fold<K>_head.npz, the head as arrays, by which 05 predicts new rows
         oof/<competition>/<run>/fold<K>_embeddings.npy, or <recipe>_embeddings/embeddings.npy: made once, in chunks
           (killed, or stopped by --hours, the same command continues), and used again by every head; a JSON beside each
           says what made it

heads    svm (RBF, calibrated), linear_svm, logreg, knn, lightgbm, kernel_ridge, ridge
         nearest: classes of any number by their nearest image, and `unknown`, what is near to none
         for task regression: svr, ridge, kernel_ridge, knn, lightgbm
         Their settings (C, gamma...) are chosen inside each fold's training rows, and are in run.json.

examples
  python src/04_embed.py --run baseline --head svm
  python src/04_embed.py --competition hymenoptera --recipe mobilenetv2 --head svm predict.tta=flip
  python src/04_embed.py --competition skin1500 --recipe clip_vit_b16 --head logreg
"""

from __future__ import annotations

import time

from foldwise.core import cli, parallel
from foldwise.data import folds, index
from foldwise.data.competition import load_competition
from foldwise.data.orientation import fitted
from foldwise.data.recipe import load_recipe, recipe_settings, run_name
from foldwise.data.runs import recipe_of, write_run
from foldwise.report.ending import end_run
from foldwise.tabular.heads import HEADS, NEAREST, check


def main() -> None:
    started = time.monotonic()
    parser = cli.parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", metavar="RUN", help="embed by a trained run's folds")
    source.add_argument(
        "--recipe", default="baseline", metavar="R", help="embed by a recipe's weights (default: baseline)"
    )
    heads = (*HEADS, NEAREST)
    parser.add_argument("--head", choices=heads, default="svm", metavar="H", help=f"{', '.join(heads)} (default: svm)")
    parser.add_argument(
        "--scale",
        choices=("fold", "unit", "none"),
        default="fold",
        help="fold: features standardised by the fold's training rows; unit: each row divided by its length, so that "
        "one kernel matrix serves all folds; none (default: fold)",
    )
    parser.add_argument("--name", type=cli.name, metavar="RUN", help="name of the new run's folder")
    cli.add_hours(parser)
    cli.add_report_flag(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe settings; with --run only predict.*")
    args = parser.parse_intermixed_args()
    cli.stop_after(args.hours)

    parallel.tune_allocator()
    from foldwise.tabular import embeddings  # torch

    competition = load_competition(args.competition)
    if args.head != NEAREST:
        check(args.head, competition.task)
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    index.try_metric(competition, table)
    recipe = recipe_of(competition, args.run, args.overrides) if args.run else load_recipe(args.recipe, args.overrides)
    recipe = fitted(recipe, competition.orientation, competition.image)
    made_of = {"run": args.run, "predict": recipe_settings(recipe)["predict"]} if args.run else recipe_settings(recipe)
    settings = {"embed": made_of, "head": args.head, "scale": args.scale}
    name = args.name or f"{args.run or run_name(args.recipe)}_{args.head}"
    preds, chosen, heads = {}, {}, {}
    for fold, valid, test, best, head in embeddings.fit_heads(
        competition, recipe, args.recipe, args.run, args.head, table, fold_table, args.scale
    ):
        preds[fold], chosen[str(fold)], heads[fold] = (valid, test), best, head
    meta = {"chosen": chosen, "seconds": round(time.monotonic() - started, 1)}
    info = write_run(competition, name, settings, fold_table, table, preds, meta)
    for fold, head in heads.items():
        embeddings.save_head(competition.runs() / name, fold, head)
    end_run(competition, info, args.report)
    cli.next_step(args.competition, "06_blend.py")


if __name__ == "__main__":
    cli.run(main)
