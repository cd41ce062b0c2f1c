"""Step 5: predict again from a run's saved weights: its rows with other test-time views, or any folder of images.

reads    oof/<competition>/<run>/ (run.json, fold<K>.safetensors); input/derived/<competition>/
writes   oof/<competition>/<name>/: the same tables as step 2, or --out FILE.csv (id, pred...) for --images DIR

examples
  python src/05_predict.py --run baseline                            # the tables of step 2, made again
  python src/05_predict.py --run baseline predict.tta=d4             # a new run baseline_d4, OOF and test alike
  python src/05_predict.py --run baseline --images new_images --out new.csv
"""

from __future__ import annotations

from pathlib import Path

from foldwise.core import cli, parallel
from foldwise.core.cli import note
from foldwise.data import folds, image, index, oof
from foldwise.data.competition import load_competition
from foldwise.data.recipe import recipe_settings
from foldwise.data.runs import recipe_of, write_run


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--run", required=True, metavar="RUN", help="a run of step 2")
    parser.add_argument(
        "--name", type=cli.name, metavar="RUN", help="name of the new run's folder (default: RUN_<tta>)"
    )
    parser.add_argument("--images", metavar="DIR", help="predict every image below this folder instead")
    parser.add_argument(
        "--out", metavar="FILE.csv", default="predictions.csv", help="where --images writes (default: predictions.csv)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="predict.* settings, such as predict.tta=flip"
    )
    args = parser.parse_intermixed_args()

    competition = load_competition(args.competition)
    recipe = recipe_of(competition, args.run, args.overrides)
    parallel.tune_allocator()
    from foldwise.model import fold_models  # torch, matplotlib
    from foldwise.report.run import report_run

    if args.images:
        table, broken = fold_models.predict_folder(competition, recipe, args.run, Path(args.images))
        oof.write_table(table, Path(args.out))
        for path, reason in broken.items():
            note(f"warning: {path}: {reason}")
        others = image.listing(Path(args.images)).left_out
        print(f"{len(table)} images predicted into {args.out}, {len(broken)} of them unreadable{others}")
        return
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    preds = fold_models.predict_folds(competition, recipe, args.run, table, fold_table)
    name = args.name or (f"{args.run}_{recipe.predict.tta}" if args.overrides else args.run)
    meta = {"weights_of": args.run}
    info = write_run(competition, name, recipe_settings(recipe), fold_table, table, preds, meta, anew=False)
    report_run(competition, info)


if __name__ == "__main__":
    cli.run(main)
