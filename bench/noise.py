"""Label noise: how many of the candidates are labels that were flipped on purpose? 5 % of two real sets, three draws.

    python bench/noise.py [--out docs/noise.csv] [--root DIR]

MobileNetV2 features (ImageNet weights from a file) under three heads; the flips go in as a user's decisions do, by
`01 --labels`. A row is one draw: the candidates, how many of them were flipped, how many flipped ones are among
them, and the same of as many first candidates as there are flips. Needs the data and weights that the competition
and recipe files name; says so and stops where they are absent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

SOURCE = Path(__file__).resolve().parents[1] / "src"
SHARE, DRAWS, HEADS = 0.05, 3, ("svm", "logreg", "knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/noise.csv"), help="default: docs/noise.csv")
    parser.add_argument("--root", type=Path, help="keep caches and runs here (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        root = args.root or Path(passing)
        os.environ["FOLDWISE_ROOT"] = str(root.resolve())
        rows = [measure(name, root, seed) for name in ("hymenoptera", "skin1500") for seed in range(DRAWS)]
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False, float_format="%.3f", lineterminator="\n")
    print(table.round(3).to_string(index=False))


def step(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, SOURCE / script, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def measure(name: str, root: Path, seed: int) -> dict[str, object]:
    """Flip, embed, look for the flips."""
    base = ["--competition", name]
    derived, runs = root / "input" / "derived" / name, root / "oof" / name
    if not (derived / "index.parquet").exists():
        step("01_preprocess.py", *base, "--sizes", 224)
    step("01_preprocess.py", *base, "--sizes", 224, "--labels", "none", "--new-folds")
    index = pd.read_parquet(derived / "index.parquet").query("split == 'train' and error.isna()")
    flipped = index.sample(frac=SHARE, random_state=seed)
    classes = np.sort(index["target"].unique())
    other = [str(next(c for c in classes if c != given)) for given in flipped["target"]]  # two classes each
    file = root / f"{name}_flips.csv"
    decisions = {"id": flipped["id"], "decision": "relabel", "suggested": [value.removesuffix(".0") for value in other]}
    pd.DataFrame(decisions).to_csv(file, index=False)
    step("01_preprocess.py", *base, "--sizes", 224, "--labels", file, "--new-folds")
    for head in HEADS:
        step("04_embed.py", *base, "--recipe", "mobilenetv2", "--head", head, "--name", head)
    listed = pd.read_csv(runs / "noise.csv", dtype={"id": str})["id"]
    planted, first = set(flipped["id"]), listed.head(len(flipped))
    hits = listed.isin(planted).sum()
    return {
        "competition": name,
        "draw": seed,
        "rows": len(index),
        "flipped": len(planted),
        "candidates": len(listed),
        "precision": hits / max(len(listed), 1),
        "recall": hits / len(planted),
        "precision_of_first": first.isin(planted).mean(),
    }


if __name__ == "__main__":
    main()
