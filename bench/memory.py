"""Peak memory of preprocessing and of training at 2,000 and at 20,000 generated images: it must not grow.

    python bench/memory.py [--counts 2000 20000]

Training is one epoch; at the smallest count also four epochs, and one and four loader threads.

Every process of the command is polled; the figures are the largest resident set of any one process and of all
together, in MiB. Pages of the page cache are not the process's own and do not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import yaml

SOURCE = Path(__file__).resolve().parents[1] / "src"
RECIPE = {
    "image_size": 64,
    "model": {"name": "test_resnet", "pretrained": False, "mode": "scratch"},
    "train": {"epochs": 1},
}


def generate(root: Path, count: int) -> None:
    """A competition of `count` JPEGs of 160 x 120; few distinct pictures, so that writing them takes seconds."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64, 6, 8, 3)).astype(np.uint8)
    pictures = [
        cv2.imencode(".jpg", cv2.resize(one, (160, 120), interpolation=cv2.INTER_CUBIC))[1].tobytes() for one in small
    ]
    for split, rows in (("train", count * 4 // 5), ("test", count // 5)):
        folder = root / "input" / "big" / split
        folder.mkdir(parents=True)
        for k in range(rows):
            (folder / f"{split}{k}.jpg").write_bytes(pictures[k % 64] + b"%d" % k)
        table = pd.DataFrame({"id": [f"{split}{k}" for k in range(rows)], "target": np.arange(rows) % 2})
        table.to_csv(folder.parent / f"{split}.csv", index=False)
    (root / "big.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "big",
                "task": "binary",
                "metric": "roc_auc",
                "folds": {"n": 10},
                **{split: {"table": f"{split}.csv", "images": f"{split}/{{id}}.jpg"} for split in ("train", "test")},
            }
        )
    )
    (root / "small.yaml").write_text(yaml.safe_dump(RECIPE))


def peak(root: Path, script: str, *arguments: str) -> tuple[int, int, float]:
    """(largest process, all processes) in MiB, and seconds, of a script run to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(SOURCE / script), "--competition", str(root / "big.yaml"), *arguments],
        cwd=root,
        env={**os.environ, "FOLDWISE_ROOT": str(root)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    largest = together = 0
    while process.poll() is None:
        sizes = [_resident(path) for path in Path("/proc").glob("[0-9]*") if _session(path) == process.pid]
        largest, together = max(largest, *sizes, 0), max(together, sum(sizes))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{script} failed with status {process.returncode}")
    return largest // 1024, together // 1024, time.perf_counter() - started


def _session(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[3])
    except (OSError, IndexError):
        return -1


def _resident(path: Path) -> int:
    try:
        lines = (path / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 20000])
    counts = parser.parse_args().counts
    train = ("--recipe", "small.yaml", "--fold", "0")
    print(f"{'images':>7}  {'step':<36}  largest MiB  together MiB  seconds")
    for count in counts:
        with tempfile.TemporaryDirectory() as room:
            generate(Path(room), count)
            cases = [("01_preprocess.py", ("--sizes", "64")), ("02_train.py", train)]
            if count == min(counts):
                more = ("train.epochs=4", "train.loaders=1", "train.loaders=4")
                cases += [("02_train.py", (*train, "--name", f"run{k}", knob)) for k, knob in enumerate(more)]
            for script, arguments in cases:
                largest, together, seconds = peak(Path(room), script, *arguments)
                step = f"{script} {arguments[-1] if '=' in arguments[-1] else ''}"
                print(f"{count:>7}  {step:<36}  {largest:>11}  {together:>12}  {seconds:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
