"""Tables of many classes: memory, disk and seconds to keep, write, read, score and blend them, on made-up predictions.

python bench/many_classes.py --rows 840000 --classes 15501 --runs 2
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise import metrics
from foldwise.blend import fit_weights
from foldwise.blend.run_set import BLENDED, _shared
from foldwise.blend.spaces import PLACES
from foldwise.data import oof, top

BATCH = 512


def made(rows: int, classes: int, truth: np.ndarray, seed: int) -> np.ndarray:
    """What a run of about 60 % accuracy keeps: softmax outputs a batch at a time, as training predicts them."""
    rng, kept = np.random.default_rng(seed), []
    base = rng.normal(size=(BATCH, classes)).astype(np.float32)
    for start in range(0, rows, BATCH):
        part = truth[start : start + BATCH]
        logits = np.roll(base, start, axis=1)[: len(part)].copy()
        logits[np.arange(len(part)), part] += rng.normal(5, 2, len(part)).astype(np.float32)
        grown = np.exp(logits)
        kept.append(top.keep(grown / grown.sum(axis=1, keepdims=True)))
    return np.concatenate(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=15_501)
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = rng.integers(0, args.classes, args.rows)
    fold = rng.integers(0, 5, args.rows)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"run{m}" / "oof.csv" for m in range(args.runs)]
        for m, file in enumerate(files):
            file.parent.mkdir()
            start = time.perf_counter()
            kept = made(args.rows, args.classes, truth, m)
            say("predict and keep", start)
            start = time.perf_counter()
            beside = {"id": [f"i{k:07d}" for k in range(args.rows)], "fold": fold, "target": truth.astype(str)}
            oof.write_table(pd.DataFrame({**beside, "target_code": truth} | top.columns(kept)), file)
            say("write", start)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{'disk':<18}{disk / 1e9:8.2f} GB")
        start = time.perf_counter()
        tables = [top.array(oof.read_table(file)) for file in files]
        say("read", start)
        for name in ("accuracy", "f1_macro", "log_loss"):
            start = time.perf_counter()
            scores = [top.score(metrics.resolve(name), truth, table) for table in tables]
            say(f"score {name}", start, ", ".join(f"{one:.4f}" for one in scores))
        start = time.perf_counter()
        some = rng.choice(args.rows, min(BLENDED[1], args.rows), replace=False)
        slots, said = top.merge([top.narrowed(table[some], BLENDED[0]) for table in tables], truth[some])
        metric, target = top.of_slots(metrics.resolve("accuracy")), top.place(slots, truth[some])
        preds = _shared(said, slots.shape[1])
        blend = fit_weights(preds, target, metric, "weights", folds=fold[some], task=PLACES)
        say("blend", start, f"nested {blend.nested_score:.4f}")


def say(what: str, start: float, more: str = "") -> None:
    """A line: seconds, and the largest memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:<18}{time.perf_counter() - start:8.1f} s   peak {peak:5.1f} GB   {more}", flush=True)


if __name__ == "__main__":
    main()
