"""Time and peak memory of the audit at 2,000 and 30,000 cached images of 224 x 224, and which planted copies it finds.

    python bench/audit.py [--counts 2000 30000]
    python bench/audit.py --recall ../shared/data/skin1500/train      # by kind of copy, of any folder of images

The images are lookalikes, a blob on mottled ground each, so that the hash proposes many wrong pairs and the pixels
have to decide; one in a hundred is a copy (brighter, recoded, shifted, cropped, mirrored). Needs 4.6 GB of disk for
30,000.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.audit import traits
from foldwise.audit.duplicates import duplicate_groups, duplicates
from foldwise.data.cache import Cache
from foldwise.data.competition import load_competition

SIZE = 224


def photo(rng: np.random.Generator) -> np.ndarray:
    """uint8 (224, 224, 3): a dark blob in the middle of mottled skin."""
    image = np.full((SIZE, SIZE), 165, np.float32)
    for scale in (8, 24, 60):
        coarse = rng.standard_normal((SIZE // scale + 3, SIZE // scale + 3)).astype(np.float32)
        image += 18 * cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    centre = (int(rng.uniform(100, 124)), int(rng.uniform(100, 124)))
    axes = (int(rng.uniform(40, 60)), int(rng.uniform(40, 60)))
    cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, 70, -1)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 2)[..., None] * (1.1, 0.9, 0.8), 0, 255).astype(np.uint8)


def copy_of(image: np.ndarray, how: int) -> np.ndarray:
    """One of five kinds of copies."""
    if how == 0:
        return np.clip(image * 1.15, 0, 255).astype(np.uint8)
    if how == 1:
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    if how == 2:
        return np.roll(image, (2, -1), (0, 1))
    if how == 3:
        return cv2.resize(image[10:-10, 10:-10], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return image[:, ::-1]


def generate(folder: Path, count: int) -> None:
    """A cache of `count` images, table.parquet (its index) and planted.json (the pairs of copies) in a folder."""
    rng = np.random.default_rng(0)
    pixels = np.lib.format.open_memmap(folder / f"images_{SIZE}.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    planted = set()
    for k in range(count):
        source = k - 37
        if k % 100 == 99:
            pixels[k] = copy_of(pixels[source], (k // 100) % 5)
            planted.add((f"{source:06d}", f"{k:06d}"))
        else:
            pixels[k] = photo(rng)
    ids = [f"{k:06d}" for k in range(count)]
    table = pd.DataFrame({"split": "train", "id": ids, "group": ids, "path": ids, "bytes": 1, "target": 0.0})
    table.assign(error=pd.Series([None] * count, dtype="string")).to_parquet(folder / "table.parquet")
    (folder / "planted.json").write_text(json.dumps(sorted(planted)))


def measure(count: int) -> dict[str, object]:
    """The audit of `count` images in this process."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["FOLDWISE_ROOT"] = name
        root = Path(name)
        (root / "input" / "bench").mkdir(parents=True)
        file = root / "bench.yaml"
        file.write_text("{name: bench, task: binary, metric: roc_auc, train: {table: t.csv, images: '{id}'}}")
        about = load_competition(str(file))
        about.derived().mkdir(parents=True)
        # in a process of its own: its memory is not the audit's
        process = multiprocessing.get_context("spawn").Process(target=generate, args=(about.derived(), count))
        process.start()
        process.join()
        table = pd.read_parquet(about.derived() / "table.parquet")
        planted = set(map(tuple, json.loads((about.derived() / "planted.json").read_text())))
        images = Cache(about.derived() / f"images_{SIZE}.npy", SIZE, table[["split", "id"]].assign(ok=1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu = time.perf_counter(), time.process_time()
        found = duplicate_groups(about, table, images)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        pairs = {tuple(sorted(pair)) for pair in zip(found.pairs["id_a"], found.pairs["id_b"], strict=True)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "images": count,
            "seconds": round(wall, 1),
            "cpu": round(cpu, 1),
            "candidates": found.meta["candidates"],
            "skipped": found.meta["skipped"],
            "planted": len(planted),
            "found": len(planted & pairs),
            "wrong": len(pairs - planted),
            "peak MiB": peak // 1024,
            "before MiB": before // 1024,
        }


def cut(left: float, top: float, right: float, bottom: float) -> Callable[[np.ndarray], np.ndarray]:
    """Crop by shares of the sides, enlarged again."""

    def crop(image: np.ndarray) -> np.ndarray:
        kept = image[int(top * SIZE) : SIZE - int(bottom * SIZE), int(left * SIZE) : SIZE - int(right * SIZE)]
        return cv2.resize(kept, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    return crop


def turn(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    """Turn about the middle; black where nothing was."""
    warp = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1)
    return lambda image: cv2.warpAffine(image, warp, (SIZE, SIZE))


def bordered(image: np.ndarray) -> np.ndarray:
    """A black border of 6 %."""
    edge = int(0.06 * SIZE)
    small = cv2.resize(image, (SIZE - 2 * edge, SIZE - 2 * edge), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, edge, edge, edge, edge, cv2.BORDER_CONSTANT)


def written_on(image: np.ndarray) -> np.ndarray:
    """White text in a corner."""
    return cv2.putText(image.copy(), "L 12.03.2019", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{
        name: partial(copy_of, how=k)
        for k, name in enumerate(("brighter", "JPEG 40", "shift", "crop 4 % a side", "mirror"))
    },
    "text": written_on,
    "border 6 %": bordered,
    **{f"crop {int(100 * p)} % a side": cut(p, p, p, p) for p in (0.05, 0.08, 0.10, 0.15)},
    "corner crop 15 %": cut(0, 0, 0.15, 0.15),
    "corner crop 25 %": cut(0.25, 0.25, 0, 0),
    "mirror + crop 5 %": lambda image: cut(0.05, 0.05, 0.05, 0.05)(image[:, ::-1]),
    **{f"turned by {degrees} degrees": turn(degrees) for degrees in (5, 10, 15)},
}


def recall(folder: Path, count: int = 300) -> pd.DataFrame:
    """The share of copies found by kind, of up to 300 images a folder, and wrong pairs among originals and copies."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}][:count]
    read = [cv2.resize(cv2.imread(str(path)), (SIZE, SIZE), interpolation=cv2.INTER_AREA) for path in files]
    rows = []
    for kind, change in KINDS.items():
        both = [cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA) for image in [*read, *map(change, read)]]
        with tempfile.TemporaryDirectory() as name:
            np.save(Path(name) / "images.npy", np.stack(both))
            ids = pd.DataFrame({"split": "train", "id": range(len(both)), "ok": 1, "path": map(str, range(len(both)))})
            cache = Cache(Path(name) / "images.npy", 96, ids)
            seen = traits.look(cache, np.arange(len(both)))
            table = ids.assign(bytes=range(len(both)))
            pairs, _ = duplicates(seen, table, cache, Path(name))
        ends = np.sort(pairs[["a", "b"]].to_numpy(), axis=1)
        true = ends[:, 1] - ends[:, 0] == len(read)
        rows.append(
            {"kind": kind, "images": len(read), "found": round(true.sum() / len(read), 2), "others": int((~true).sum())}
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 30000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--recall", type=Path, metavar="FOLDER", help="which kinds of copies are found, on its images")
    options = parser.parse_args()
    if options.recall:
        print(recall(options.recall).to_string(index=False))
        return
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for count in options.counts:  # a process each, for its peak
        command = [sys.executable, __file__, "--one", str(count)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
