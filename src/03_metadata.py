"""Step 3: gradient boosting on the metadata columns, on the same folds as the images.

reads    input/derived/<competition>/ (index.parquet, folds.csv)
writes   oof/<competition>/<model>/: the same files as step 2, without weights

examples
  python src/03_metadata.py                                          # LightGBM on the demo's age, sex, site
  python src/03_metadata.py --competition siim-isic-melanoma-classification
"""

from __future__ import annotations

import time

from foldwise import command, competition, folds, index, oof, shallow


def main() -> None:
    started = time.monotonic()
    parser = command.parser(__doc__)
    parser.add_argument("--model", choices=["lightgbm"], default="lightgbm", help="(default: lightgbm)")
    parser.add_argument(
        "--name", type=command.name, metavar="RUN", help="name of the run's folder (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()

    about = competition.load(args.competition)
    table, fold_table = index.load(about), folds.load(about)
    settings = {
        "model": args.model,
        "columns": index.metadata_columns(about),
        "seed": args.seed,
        "params": dict(shallow.LIGHTGBM),
    }
    found = shallow.metadata_folds(about, table, fold_table, args.seed)
    everything = sorted(fold_table["fold"].unique().tolist())
    folder = oof.open_run(about, args.name or args.model, settings, fold_table, everything)
    oof.write_folds(about, folder, table, fold_table, {part.fold: (part.valid, part.test) for part in found})
    facts = {str(part.fold): {"rounds": part.rounds, "importance": part.importance} for part in found}
    info = oof.finish(
        about,
        folder,
        fold_table,
        table,
        {"config": settings, "folds": facts, "seconds": round(time.monotonic() - started, 1)},
    )
    oof.print_scores(info)


if __name__ == "__main__":
    command.run(main)
