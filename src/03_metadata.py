"""Step 3: a model on the metadata columns, on the same folds as the images.

reads    input/derived/<competition>/ (index.parquet, folds.csv); with --oof and --embeddings other runs
writes   oof/<competition>/<model>/: the same tables as step 2; fold<K>_model.npz, encoder and model as numbers and
           text, by which 05 predicts new rows; and of rows out of fold
           importance.csv, importance.png         what the models lean on, by column and fold
           contributions.csv, contributions.png   what each column adds to each row's prediction (SHAP values)

Encoders, target means, principal components, early stopping and the search for settings see a fold's training rows
only. Columns that the test rows lack are left out, and drift between train and test is told. Extra images are not used.

examples
  python src/03_metadata.py                                          # LightGBM on the demo's age, sex, site
  python src/03_metadata.py --competition siim-isic-melanoma-classification --group-features
  python src/03_metadata.py --model catboost --seeds 5               # the mean of five seeds a fold
  python src/03_metadata.py --tune 10 --name tuned                   # ten minutes of search, nested: an honest score
  python src/03_metadata.py --params num_leaves=7 learning_rate=0.01 --name small
  python src/03_metadata.py --model logreg --target-encode site      # a category as its mean target, inner folds
  python src/03_metadata.py --oof demo --embeddings demo --name stacked      # other runs as columns
  python src/03_metadata.py --oof demo --group-features --lof demo age --negatives 5 --seeds 5 --name ugly_duckling
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import yaml

from foldwise import UserError
from foldwise.core import cli, pieces
from foldwise.data import folds, index
from foldwise.data.competition import load_competition
from foldwise.data.runs import write_run
from foldwise.report import importance
from foldwise.report.ending import end_run
from foldwise.tabular import boosting, features, learners


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not key=value, such as learning_rate=0.01")
    return name, yaml.safe_load(value)


def arguments() -> argparse.Namespace:
    """What the user asked for."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--model", choices=list(learners.LEARNERS), default="lightgbm", help="(default: lightgbm)")
    add("--name", type=cli.name, metavar="RUN", help="name of the run's folder (default: the model's)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--seeds", type=cli.at_least_one, default=1, metavar="N", help="average N models a fold (default: 1)")
    add(
        "--params",
        type=_setting,
        nargs="+",
        default=[],
        metavar="key=value",
        help="the library's own settings; rounds=2000 (at most) and patience=100 for early stopping",
    )
    add("--tune", type=float, default=0.0, metavar="MINUTES", help="search settings by Optuna, inside each fold")
    add("--trials", type=cli.at_least_one, metavar="N", help="with --tune: at most N trials a fold: reproducible")
    add("--target-encode", nargs="+", default=[], metavar="COL", help="columns to replace by their mean target")
    add(
        "--group-features",
        action="store_true",
        help="images per group (patient); rank and z-score within it of numbers, and of the predictions of --oof",
    )
    add(
        "--lof",
        nargs="+",
        default=[],
        metavar="COL|RUN",
        help="how far a row lies from the others of its group by these columns or runs of --oof (local outlier factor)",
    )
    add(
        "--negatives",
        type=float,
        metavar="N",
        help="fit on all positives and N times as many negatives, others for each of --seeds; probabilities stay true",
    )
    add("--file-features", action="store_true", help="image width, height, bytes, format: they leak the scanner")
    add("--oof", nargs="+", default=[], metavar="RUN", help="other runs' predictions as columns, fold by fold")
    add(
        "--embeddings",
        nargs="+",
        default=[],
        metavar="RUN|FILE",
        help="principal components of what 04_embed.py wrote for a run, or of a .npy file",
    )
    add("--components", type=cli.at_least_one, default=16, metavar="N", help="of each embedding (default: 16)")
    cli.add_hours(parser)
    cli.add_report_flag(parser)
    args = parser.parse_args()
    cli.stop_after(args.hours)
    args.name = args.name or args.model
    if args.trials and not args.tune:
        parser.error("--trials goes with --tune MINUTES")
    if args.negatives is not None and args.negatives <= 0:
        parser.error(f"--negatives {args.negatives:g}: a number above 0, such as 5")
    if args.tune < 0:
        parser.error(f"--tune {args.tune:g}: minutes can't be negative")
    return args


def main() -> None:
    started = time.monotonic()
    args = arguments()
    competition = load_competition(args.competition)
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    index.try_metric(competition, table)
    learner = learners.get(args.model)
    asked = {key: value for key, value in vars(args).items() if key not in {"competition", "name", "report", "hours"}}
    params = learners.settings_of(learner, dict(args.params), competition.task)
    settings = {**asked, "params": params, "columns": index.metadata_columns(competition)}
    if args.tune:
        boosting.load_optuna(learner)
    if args.negatives and competition.task not in {"binary", "multilabel"}:
        raise UserError(f"--negatives: task {competition.task} has no negatives; leave it out")
    if args.name in args.oof:
        raise UserError(f"--oof {args.name}: is this run's own name; give it another with --name")
    wish = features.Wish(args.group_features, args.file_features, args.oof, args.embeddings, args.lof)
    inputs = features.gather(competition, table, fold_table, wish, args.target_encode)
    for line in inputs.notes:
        cli.note(line)
    problem = boosting.Problem.of(competition, table, fold_table, inputs)
    searched = (args.tune, args.trials, args.negatives)
    plan = boosting.Plan(learner, params, args.seed, args.seeds, args.target_encode, args.components, *searched)
    key = problem.digest({**settings, "library": learner.version})
    with pieces.of_run(competition.runs(), args.name, key, boosting.KINDS) as kept:
        results = boosting.fit(problem, plan, cli.note, kept.keep)
        seconds = round(time.monotonic() - started, 1)
        meta = {**boosting.folds_meta(results), **inputs.meta, "library": learner.version, "seconds": seconds}
        preds = {part.fold: (part.valid, part.test) for part in results}
        info = write_run(competition, args.name, settings, fold_table, table, preds, meta)
        boosting.save_models(competition.runs() / args.name, results)
        importance.write_importance(competition.runs() / args.name, problem, results)
    end_run(competition, info, args.report)
    if args.tune:
        cli.say(boosting.tuning_line(info, results))
    cli.next_step(args.competition, "06_blend.py")


if __name__ == "__main__":
    cli.run(main)
