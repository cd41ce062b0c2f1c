"""Real data, end to end: five folds of MobileNetV2 from ImageNet weights, metadata, blend; OOF beside the test truth.

    python bench/skin1500.py
    python bench/skin1500.py --table RUN RUN ... [--blend NAME]      # of runs that are there already

Needs the images that src/competitions/skin1500.yaml names and the weights that src/recipes/mobilenetv2.yaml names;
says so and stops where they are absent. Steps that are done already are not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

from foldwise import UserError, metrics
from foldwise.data import oof
from foldwise.data.competition import Competition, load_competition
from foldwise.data.runs import finished_folds, load_run

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", metavar="RUN", help="train nothing: a Markdown table of these runs")
    parser.add_argument("--blend", default="blend", metavar="NAME", help="the submission beside them (default: blend)")
    args = parser.parse_args()
    about = load_competition("skin1500")
    try:
        raw = about.raw()
    except UserError as problem:
        print(f"skipped: {problem}")
        return
    if args.table:
        table(about, Truth.read(about, raw), args.table, args.blend)
        return
    started = time.perf_counter()
    for script, *arguments in STEPS:
        subprocess.run([sys.executable, SOURCE / script, "--competition", "skin1500", *arguments], check=True)
    print(f"\nall steps: {time.perf_counter() - started:.0f} s (0 to a few where they were done before)")
    by_fold(about, Truth.read(about, raw), ("mobilenetv2", "lightgbm"))


@dataclass(frozen=True)
class Truth:
    """Groups of the training rows; truth and lesion of the test rows, by id."""

    groups: pd.Series
    melanoma: pd.Series
    lesion: pd.Series

    @classmethod
    def read(cls, about: Competition, raw: Path) -> Truth:
        """From folds.csv, test.csv and solution.csv."""
        groups = pd.read_csv(about.derived() / "folds.csv", dtype=str).set_index("id")["group"]
        test = pd.read_csv(raw / "test.csv").set_index("isic_id")
        lesion = test["lesion_id"].fillna(pd.Series(test.index, index=test.index))
        return cls(groups, pd.read_csv(raw / "solution.csv").set_index("isic_id")["melanoma"], lesion)

    def of_oof(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(truth, prediction, group) of an OOF table."""
        return frame["target"].to_numpy(), frame["pred"].to_numpy(), self.groups.reindex(frame["id"]).to_numpy()

    def of_test(self, ids: pd.Series, pred: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(truth, prediction, lesion) of test rows."""
        return self.melanoma.reindex(ids).to_numpy(), pred.to_numpy(), self.lesion.reindex(ids).to_numpy()


def by_fold(about: Competition, truth: Truth, names: Sequence[str]) -> None:
    """OOF and test scores of runs and of each fold."""
    runs = [load_run(about, name) for name in names]
    print(f"\nROC AUC, 95 % interval\n{'':<22} OOF")
    for run in runs:
        print(line(run.name, *truth.of_oof(run.oof)))
        for fold, part in run.oof.groupby("fold"):
            print(line(f"  fold {fold}", *truth.of_oof(part)))
    print(f"{'':<22} test")
    for run in runs:
        print(line(run.name, *truth.of_test(run.test["id"], run.test["pred"])))
        for k in finished_folds(run.folder):
            test = oof.read_table(run.folder / f"fold{k}_test.csv")
            print(line(f"  fold {k}", *truth.of_test(test["id"], test["pred"])))
    blend = pd.read_csv(about.submissions() / "blend.csv")
    print(line("blend", *truth.of_test(blend["isic_id"], blend["melanoma"])))


def table(about: Competition, truth: Truth, names: Sequence[str], blend: str) -> None:
    """One row a run: OOF and test AUC with 95 % intervals; the blend's OOF is nested."""

    def cell(target: np.ndarray, pred: np.ndarray, groups: np.ndarray) -> str:
        low, high = interval(target, pred, groups)
        return f"{metrics.score('roc_auc', target, pred):.3f} ({low:.3f} to {high:.3f})"

    print("| run | OOF | test |\n|---|---|---|")
    for name in names:
        run = load_run(about, name)
        print(f"| {name} | {cell(*truth.of_oof(run.oof))} | {cell(*truth.of_test(run.test['id'], run.test['pred']))} |")
    facts = json.loads((about.submissions() / f"{blend}.json").read_text(encoding="utf-8"))
    made = pd.read_csv(about.submissions() / f"{blend}.csv")
    low, high = facts["interval_95"]
    nested = f"{facts['nested_score']:.3f} ({low:.3f} to {high:.3f})"
    print(f"| {blend} ({facts['method']}) | {nested} | {cell(*truth.of_test(made['isic_id'], made['melanoma']))} |")


if __name__ == "__main__":
    main()
