"""Real data, end to end: five folds of MobileNetV2 from ImageNet weights, metadata, blend; OOF beside the test truth.

    python bench/skin1500.py

Needs the images that src/competitions/skin1500.yaml names and the weights that src/recipes/mobilenetv2.yaml names;
says so and stops where they are absent. Steps that are done already are not done again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

from foldwise import UserError, competition, metrics, oof  # noqa: E402

STEPS = (
    ("01_preprocess.py", "--sizes", "224"),
    ("02_train.py", "--recipe", "mobilenetv2", "--fold", "all"),
    ("03_metadata.py",),
    ("06_blend.py", "--name", "blend"),
)


def interval(truth: np.ndarray, pred: np.ndarray, groups: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, lesions drawn whole."""
    value = metrics.resampler(metrics.resolve("roc_auc"), truth, pred)
    codes = np.unique(groups.astype(str), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    counts = (
        np.bincount(rng.integers(0, codes.max() + 1, codes.max() + 1), minlength=codes.max() + 1) for _ in range(draws)
    )
    return tuple(np.nanquantile([value(count[codes].astype(float)) for count in counts], (0.025, 0.975)))


def line(name: str, truth: np.ndarray, pred: np.ndarray, groups: np.ndarray) -> str:
    low, high = interval(truth, pred, groups)
    return f"{name:<22} {metrics.score('roc_auc', truth, pred):.4f}  ({low:.3f} to {high:.3f})"


def main() -> None:
    about = competition.load("skin1500")
    try:
        raw = about.raw()
    except UserError as problem:
        print(f"skipped: {problem}")
        return
    started = time.perf_counter()
    for script, *arguments in STEPS:
        subprocess.run([sys.executable, SOURCE / script, "--competition", "skin1500", *arguments], check=True)
    print(f"\nall steps: {time.perf_counter() - started:.0f} s (0 to a few where they were done before)")

    folds = pd.read_csv(about.derived() / "folds.csv", dtype=str).set_index("id")["group"]
    test_table = pd.read_csv(raw / "test.csv").set_index("isic_id")
    truth = pd.read_csv(raw / "solution.csv").set_index("isic_id")["melanoma"]
    lesion = test_table["lesion_id"].fillna(pd.Series(test_table.index, index=test_table.index))
    print(f"\nROC AUC, 95 % interval\n{'':<22} OOF")
    for name in ("mobilenetv2", "lightgbm"):
        run = oof.load_run(about, name)
        groups = folds.reindex(run.oof["id"]).to_numpy()
        print(line(name, run.oof["target"].to_numpy(), run.oof["pred"].to_numpy(), groups))
        for fold, part in run.oof.groupby("fold"):
            print(
                line(
                    f"  fold {fold}",
                    part["target"].to_numpy(),
                    part["pred"].to_numpy(),
                    folds.reindex(part["id"]).to_numpy(),
                )
            )
    print(f"{'':<22} test")
    for name in ("mobilenetv2", "lightgbm"):
        run = oof.load_run(about, name)
        tables = {name: run.test} | {
            f"  fold {k}": oof.read_table(run.folder / f"fold{k}_test.csv") for k in oof.finished_folds(run.folder)
        }
        for label, table in tables.items():
            ids = table["id"]
            print(line(label, truth.reindex(ids).to_numpy(), table["pred"].to_numpy(), lesion.reindex(ids).to_numpy()))
    blend = pd.read_csv(about.submissions() / "blend.csv").set_index("isic_id")["melanoma"]
    print(
        line("blend", truth.reindex(blend.index).to_numpy(), blend.to_numpy(), lesion.reindex(blend.index).to_numpy())
    )


if __name__ == "__main__":
    main()
