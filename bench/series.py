"""Studies of CT slices -> one uint8 (slices, 256, 256) each: a plain loop against foldwise, in one run, on one core.

    python bench/series.py [--studies 6 --slices 60 --side 512]
    python bench/series.py --memory        # peak of the whole step 01 at 20 and at 80 studies

The loop is a notebook's: pydicom.dcmread of all files, sorted by ImagePositionPatient[2], pixel_array, rescale and a
window in float64, cv2.resize, np.stack. Ours: foldwise.dicom.read_series(folder, 256). Both take turns, study by study;
the figure is the median CPU time of a slice. Files are made here: 16 bits, uncompressed, names that say nothing.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from foldwise import demo, dicom
from foldwise.core import parallel
from foldwise.data import cache
from foldwise.data.image import ImageOptions

SIZE = 256


def make_studies(folder: Path, studies: int, slices: int, side: int) -> list[Path]:
    """Uncompressed CT studies; the pixels of the first, shifted, serve them all."""
    case = {"slices": slices, "side": side, "apart": 2.5, "flaw": "", "kind": 1, "row": 0}
    volume = demo.series.render_study(case, 0)
    rng, made = np.random.default_rng(0), []
    for k in range(studies):
        study = folder / f"S{k:04d}"
        study.mkdir(parents=True)
        names = rng.permutation(slices)
        for z, pixels in enumerate(volume):
            header = demo.series._header(
                {**case, "study_id": study.name, "patient_id": k}, demo.series.Settings(), z, z, 2.5 * z
            )
            demo.series._save(header, np.roll(pixels, k, axis=0), study / f"{names[z]}.dcm")
        made.append(study)
    return made


def by_a_loop(study: Path) -> np.ndarray:
    """A notebook's way, soft tissue window."""
    files = sorted(
        (pydicom.dcmread(path) for path in study.iterdir()), key=lambda ds: float(ds.ImagePositionPatient[2])
    )
    shown = []
    for ds in files:
        values = ds.pixel_array.astype(np.float64) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        scaled = np.clip((values - (40 - 200)) / 400, 0, 1) * 255
        shown.append(cv2.resize(scaled.astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    return np.stack(shown)


def by_foldwise(study: Path) -> np.ndarray:
    return dicom.read_series(study, SIZE)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=6)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    folder = Path(tempfile.mkdtemp(prefix="series."))
    try:
        (memory if args.memory else speed)(folder, args)
    finally:
        shutil.rmtree(folder)


def speed(folder: Path, args: argparse.Namespace) -> None:
    """CPU time of a slice, both sides in turns; the pixels must agree."""
    studies = make_studies(folder, args.studies, args.slices, args.side)
    for work in (by_a_loop, by_foldwise):
        work(studies[0])
    a, b = by_a_loop(studies[0]).astype(int), by_foldwise(studies[0]).astype(int)
    seconds: dict[str, list[float]] = {"loop": [], "foldwise": []}
    for study in studies:
        for name, work in (("loop", by_a_loop), ("foldwise", by_foldwise)):
            start = time.process_time()
            work(study)
            seconds[name].append((time.process_time() - start) / args.slices)
    slow, fast = (float(np.median(each)) for each in seconds.values())
    print(f"{args.side} px, uncompressed, {args.slices} slices, to {SIZE}; mean difference {np.abs(a - b).mean():.2f}")
    print(f"loop {1 / slow:.0f} slices a second and core, foldwise {1 / fast:.0f}: {slow / fast:.1f} x")


def memory(folder: Path, args: argparse.Namespace) -> None:
    """Peak of this process and its workers while a cache of studies is made; it must not grow with their number."""
    options = ImageOptions(slices=args.slices, window="soft_tissue")
    for count in (20, 80):
        raw = folder / str(count)
        make_studies(raw, count, args.slices, 128)
        rows = pd.DataFrame({"split": "new", "id": [f"S{k:04d}" for k in range(count)], "error": None})
        rows = rows.assign(path=rows["id"], bytes=0)
        start = time.perf_counter()
        cache.temporary(raw, folder / f"cache{count}", rows, 128, options)
        wall = time.perf_counter() - start
        peak = (
            max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
        )
        each = count * args.slices / wall / parallel.cores()
        print(f"{count} studies x {args.slices} slices: peak {peak} MiB, {each:.0f} slices a second and core (wall)")


if __name__ == "__main__":
    main()
