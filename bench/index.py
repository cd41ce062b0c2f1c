"""Seconds from a raw folder to its index, files plain or packed: headers are read, no image twice.

python bench/index.py --rows 300000 --as folder zip tar
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.core.parallel import cores
from foldwise.data import index
from foldwise.data.competition import load_competition


def pack(folder: Path, kind: str, names: list[str], images: list[bytes]) -> None:
    """The images as train/ or train.<kind>."""
    if kind == "folder":
        for name, data in zip(names, images, strict=True):
            file = folder / "train" / name[:2] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(folder / "train.zip", "w") as archive:
            for name, data in zip(names, images, strict=True):
                archive.writestr(f"{name[:2]}/{name}", data)
    else:
        with tarfile.open(folder / "train.tar", "w") as archive:
            for name, data in zip(names, images, strict=True):
                info = tarfile.TarInfo(f"{name[:2]}/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--as", nargs="+", default=["folder", "zip", "tar"], dest="kinds")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    some = [cv2.imencode(".jpg", rng.integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes() for _ in range(50)]
    names = [f"{k:07x}.jpg" for k in rng.permutation(16**7)[: args.rows]] if args.rows < 10_000 else None
    names = names or [f"{(k * 2654435761) % 16**7:07x}{k:06d}.jpg" for k in range(args.rows)]
    images = [some[k % 50] for k in range(args.rows)]
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as place:
            os.environ["FOLDWISE_ROOT"] = place
            raw = Path(place) / "input" / "many"
            raw.mkdir(parents=True)
            pack(raw, kind, names, images)
            labels = rng.integers(0, 100, args.rows)
            pd.DataFrame({"id": names, "label": labels}).to_csv(raw / "train.csv", index=False)
            file = Path(place) / "many.yaml"
            split = {"table": "train.csv", "images": "train/{id[:2]}/{id}"}
            file.write_text(
                yaml.safe_dump(
                    {"name": "many", "task": "multiclass", "metric": "accuracy", "target": "label", "train": split}
                )
            )
            start = time.perf_counter()
            table = index.build_index(load_competition(str(file)))
            index.save_index(table, load_competition(str(file)))
            seconds = time.perf_counter() - start
            assert table["error"].isna().all() and len(table) == args.rows
            print(f"{kind:<8}{args.rows:>9,} rows  {seconds:7.1f} s on {cores()} cores", flush=True)


if __name__ == "__main__":
    main()
