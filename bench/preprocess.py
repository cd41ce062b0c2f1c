"""Step 01 on made-up JPEGs: seconds of index, decoding, audit and report by number of rows, and how they grow.

    python bench/preprocess.py [--counts 5000 20000 80000] [--side 128]

Each count is a competition of its own, with a process of its own. The last lines: the exponent of each part (the slope
of log seconds over log rows; 1 is linear, 2 quadratic), what audit and report take of decoding's time at the middle
count, and decoded images a second and core beside those of cv2.imdecode alone on the same bytes, the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.core import parallel
from foldwise.data.competition import load_competition
from foldwise.report import preparation

PARTS = {
    "index": (preparation.index, "build_index"),
    "decoding": (preparation.cache, "build_caches"),
    "audit": (preparation, "duplicate_groups"),
    "report": (preparation, "write_competition_report"),
}
YAML = """
name: bench
task: binary
metric: roc_auc
id: id
target: target
train: {table: train.csv, images: "train/{id}.jpg"}
"""


def generate(folder: Path, count: int, side: int) -> None:
    """JPEGs of random colours at five scales, the coarse ones stronger as in photographs, and their table."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for k in range(count):
        drawn = [rng.standard_normal((n, n, 3)) * 100 / n for n in (4, 8, 16, 32, 64)]
        layers = [cv2.resize(layer, (side, side), interpolation=cv2.INTER_LINEAR) for layer in drawn]
        image = np.clip(128 + 2 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "train" / f"{k:06d}.jpg"), image)
    ids = [f"{k:06d}" for k in range(count)]
    pd.DataFrame({"id": ids, "target": rng.integers(0, 2, count)}).to_csv(folder / "train.csv", index=False)


def timed(work: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return work(*arguments, **named)
        finally:
            seconds[name] = round(time.perf_counter() - started, 2)

    return run


def measure(count: int, side: int) -> dict[str, float]:
    """Seconds of each part, of all of step 01, and images a second of cv2.imdecode on one core."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["FOLDWISE_ROOT"] = name
        folder = Path(name) / "input" / "bench"
        generate(folder, count, side)
        file = Path(name) / "bench.yaml"
        file.write_text(YAML)
        seconds: dict[str, float] = {"rows": count}
        for part, (module, function) in PARTS.items():
            setattr(module, function, timed(getattr(module, function), seconds, part))
        timed(preparation.prepare, seconds, "all")(load_competition(str(file)), [96])
        files = [np.frombuffer(path.read_bytes(), np.uint8) for path in sorted((folder / "train").iterdir())[:2000]]
        cv2.setNumThreads(0)
        started = time.perf_counter()
        for data in files:
            cv2.imdecode(data, cv2.IMREAD_COLOR)
        return seconds | {"cv2 img/s": round(len(files) / (time.perf_counter() - started))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 20000, 80000])
    parser.add_argument("--side", type=int, default=128, help="of the JPEGs, in pixels (default: 128)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.side)))
        return
    rows = []
    for count in options.counts:
        command = [sys.executable, __file__, "--one", str(count), "--side", str(options.side)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if len(table) > 1:
        grown = {part: np.polyfit(np.log(table["rows"]), np.log(table[part]), 1)[0] for part in [*PARTS, "all"]}
        print("exponents:", ", ".join(f"{part} {value:.2f}" for part, value in grown.items()))
    middle = table.iloc[len(table) // 2]
    share = (middle["audit"] + middle["report"]) / middle["decoding"]
    rate = middle["rows"] / middle["decoding"] / parallel.cores()
    print(f"{middle['rows']:.0f} rows: audit and report take {share:.2f} of decoding's time; {rate:.0f} decoded images")
    print(f"a second and core, cv2.imdecode alone {middle['cv2 img/s']:.0f}")


if __name__ == "__main__":
    main()
