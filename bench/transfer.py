"""Transfer modes on real data: scratch, frozen, fine-tuned, fused with metadata; three seeds, in a CSV.

    python bench/transfer.py [--out docs/transfer.csv] [--root DIR]

MobileNetV2 (ImageNet weights from a file) on skin1500 at 96 px, whose test truth is known, and on hymenoptera at 128
px (frozen also at 224). A row is one run of five folds: the score of their pooled OOF, its spread over
folds, and on skin1500 the test score of the five models' mean beside that of the single models. Continues where it
was: --root keeps the runs. Needs the data and weights that the competition and recipe files name; says so and stops
where they are absent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

COMMON = ["train.batch_size=32", "train.precision=channels_last", "train.threads=1", "augment.preset=light"]
EPOCHS = {"skin1500": 4, "hymenoptera": 5}
SIZES = {"skin1500": 96, "hymenoptera": 128}
GENTLY = [  # a new head on old features: it may move, they should not be thrown away
    "train.lr=5e-4",
    "train.head_lr=5e-3",
    "train.averaging=ema",
    "train.ema_decay=0.98",
    "train.checkpoint=last",
]
FOLDS = range(5)
WAYS = {
    "scratch": ["model.mode=scratch", "model.weights=null", "train.lr=2e-3"],
    "frozen": ["model.mode=frozen", "train.lr=1e-2"],
    "finetune": GENTLY,
    "fusion": [*GENTLY, "model.metadata=true", "model.head.samples=5", "model.head.dropout=0.5"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/transfer.csv"), help="default: docs/transfer.csv")
    parser.add_argument("--root", type=Path, help="keep caches and runs here (default: a temporary folder)")
    parser.add_argument("--only", choices=list(SIZES), nargs="+", default=list(SIZES), help="competitions")
    parser.add_argument("--seeds", type=int, default=3, help="runs a way (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        root = args.root or Path(passing)
        root.mkdir(parents=True, exist_ok=True)
        os.environ["FOLDWISE_ROOT"] = str(root.resolve())
        rows = [row for name in args.only for row in competition_rows(name, args.seeds)]
    if rows:
        table = pd.DataFrame(rows)
        table.to_csv(args.out, index=False, float_format="%.4f", lineterminator="\n")
        print(summary(table).to_string(index=False))


def competition_rows(name: str, seeds: int) -> list[dict[str, object]]:
    """A row a run."""
    from foldwise import UserError
    from foldwise.core import parallel
    from foldwise.data.competition import load_competition

    parallel.tune_allocator()
    about = load_competition(name)
    try:
        about.raw()
    except UserError as problem:
        print(f"skipped: {problem}")
        return []
    launch_script("01_preprocess.py", "--competition", name, "--sizes", str(SIZES[name]), "224")
    ways = dict(WAYS)
    if name == "hymenoptera":  # it has no metadata
        ways = {way: WAYS[way] for way in ("scratch", "frozen", "finetune")}
        ways["frozen at 224"] = [*WAYS["frozen"], "image_size=224"]
    return [run(about, way, options, seed) for seed in range(seeds) for way, options in ways.items()]


def launch_script(script: str, *arguments: str) -> None:
    """One of the numbered scripts, as a user runs it."""
    import subprocess

    subprocess.run([sys.executable, str(SOURCE / script), *arguments], check=True)


def run(about, way: str, options: list[str], seed: int) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """Five folds; what they scored."""
    from foldwise.data import oof
    from foldwise.data.recipe import load_recipe
    from foldwise.train.run import in_turn

    size = SIZES[about.name]
    overrides = [*COMMON, f"image_size={size}", f"train.epochs={EPOCHS[about.name]}", f"seed={seed}", *options]
    name = f"{way.replace(' ', '_')}_{seed}"
    recipe = load_recipe("mobilenetv2", overrides)
    (info,) = in_turn(about, {name: recipe}, FOLDS)[1]
    assert info is not None
    seconds = sum(info["folds"][str(fold)]["seconds"] for fold in FOLDS)
    tables = [oof.read_table(about.runs() / name / f"fold{fold}.csv") for fold in FOLDS]
    scores = [oof.score(about, table) for table in tables]
    row: dict[str, object] = {
        "competition": about.name,
        "way": way,
        "seed": seed,
        "image_size": recipe.image_size,
        "metric": about.metric,
        "oof": oof.score(about, pd.concat(tables)),
        "fold_mean": np.mean(scores),
        "fold_sd": np.std(scores, ddof=1),
        "seconds": round(seconds),
        "overrides": " ".join(overrides),
    }
    truth = about.raw() / "solution.csv"
    if truth.exists():
        row |= test_scores(about, name, truth)
    print({key: value for key, value in row.items() if key != "overrides"}, flush=True)
    return row


def test_scores(about, name: str, solution: Path) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """The mean of the folds' models beside the single ones, on rows none of them saw."""
    from foldwise import metrics
    from foldwise.data import oof
    from foldwise.data.runs import mean_test

    truth = pd.read_csv(solution).set_index(about.id)[about.targets[0]]
    folder = about.runs() / name
    single = []
    for fold in FOLDS:
        table = oof.read_table(folder / f"fold{fold}_test.csv")
        single.append(metrics.score(about.metric, truth.loc[table["id"]].to_numpy(), table["pred"].to_numpy()))
    table = mean_test(folder, FOLDS)
    mean = metrics.score(about.metric, truth.loc[table["id"]].to_numpy(), table["pred"].to_numpy())
    return {"test_single": np.mean(single), "test_single_sd": np.std(single, ddof=1), "test_mean": mean}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds."""
    columns = [c for c in ("oof", "fold_mean", "test_single", "test_mean", "seconds") if c in table]
    made = table.groupby(["competition", "way"], sort=False)[columns].agg(["mean", "std"])
    made.columns = ["_".join(column) for column in made.columns]
    return made.reset_index().round(4)


if __name__ == "__main__":
    main()
