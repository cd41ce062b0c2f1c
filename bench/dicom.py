"""DICOM file -> cached 512 x 512 uint8 image: the usual notebook against foldwise, in one run, on one core.

    python bench/dicom.py [--seconds 2]

The notebook: pydicom's pixel_array, rescale and VOI in float64, min-max to 8 bits, cv2.resize, a PNG.
Ours: foldwise.dicom.read_image(path, 512) into a row of a memory map. Files are made here: a smooth image
with structure and noise, 12 bits in 16, as scanners write them; JPEG lossless is made by gdcm.

Both sides take turns, so that what else the machine does weighs on both; the figure is the median CPU time
of the process, all its threads (gdcm decodes in its own).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless, generate_uid

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from foldwise import dicom

SIZE = 512
Work = Callable[[Path], None]
AIMS = {"uncompressed 512": 10, "uncompressed 2048": 10, "JPEG lossless 2048": 3, "JPEG 2000 2048": 4}


def picture(side: int) -> np.ndarray:
    """12-bit, with edges, texture and noise: it compresses about 2 to 1, as radiographs do."""
    rng = np.random.default_rng(side)
    y, x = np.mgrid[0:side, 0:side] / side
    body = 2200 * np.exp(-(((x - 0.5) / 0.3) ** 2) - ((y - 0.5) / 0.4) ** 2)
    ribs = 400 * (np.sin(40 * y + 6 * x) > 0.6) * (body > 600)
    return np.clip(body + ribs + rng.normal(300, 25, (side, side)), 0, 4095).astype(np.uint16)


def write(path: Path, side: int, syntax: str) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalMammographyXRayImageStorageForPresentation
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientAge, ds.PatientSex, ds.StudyDate = "MG", "055Y", "F", "20240101"
    ds.Manufacturer, ds.ImageType, ds.PixelSpacing = "ACME", ["ORIGINAL", "PRIMARY"], [0.1, 0.1]
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = generate_uid(), generate_uid(), 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", side, side
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth, ds.RescaleIntercept, ds.RescaleSlope = 1500, 3000, 0, 1
    ds.PixelData = picture(side).tobytes()
    ds["PixelData"].VR = "OW"
    if syntax in (RLELossless, JPEG2000Lossless):
        ds.compress(syntax, encoding_plugin="pylibjpeg")
    ds.save_as(path)
    if syntax == JPEGLosslessSV1:
        _to_jpeg_lossless(path)
    return path


def _to_jpeg_lossless(path: Path) -> None:
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise SystemExit("gdcm cannot encode JPEG lossless")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()


def notebook(path: Path, out: Path) -> None:
    """What nearly every public notebook does."""
    ds = pydicom.dcmread(path)
    image = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
    image = (image - image.min()) / (image.max() - image.min()) * 255
    cv2.imwrite(str(out), cv2.resize(image.astype(np.uint8), (SIZE, SIZE)))


def paired(left: Work, right: Work, paths: list[Path], seconds: float) -> tuple[float, float]:
    """Median seconds of CPU a file. The sides take turns in passes over all files, as a user's loop would
    run: call by call, each would pay for the memory and the caches that the other leaves behind."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for work, spent in zip((left, right), times, strict=True):
            work(paths[0])
            start = time.process_time()
            for path in paths:
                work(path)
            spent.append((time.process_time() - start) / len(paths))
    return float(np.median(times[0])), float(np.median(times[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per line")
    seconds = parser.parse_args().seconds
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = np.lib.format.open_memmap(folder / "cache.npy", "w+", np.uint8, (1, SIZE, SIZE))
        kinds = {
            "uncompressed 512": (512, ExplicitVRLittleEndian),
            "uncompressed 2048": (2048, ExplicitVRLittleEndian),
            "RLE 2048": (2048, RLELossless),
            "JPEG lossless 512": (512, JPEGLosslessSV1),
            "JPEG lossless 2048": (2048, JPEGLosslessSV1),
            "JPEG 2000 2048": (2048, JPEG2000Lossless),
        }
        print(f"{'to 512 x 512':22s} {'notebook':>11s} {'foldwise':>11s} {'ratio':>7s}  aim   files/s/core")
        for kind, (side, syntax) in kinds.items():
            first = write(folder / f"{kind.replace(' ', '_')}.dcm", side, syntax)
            paths = [first, *(Path(shutil.copy(first, folder / f"{copy}_{first.name}")) for copy in range(7))]

            def ours(path: Path) -> None:
                cache[0] = dicom.read_image(path, SIZE)

            slow, fast = paired(lambda path: notebook(path, folder / "out.png"), ours, paths, seconds)
            line = f"{kind:22s} {1 / slow:11.1f} {1 / fast:11.1f} {slow / fast:6.1f}x"
            print(f"{line}  {AIMS.get(kind, '')}")
        _headers(list(folder.glob("*uncompressed_512.dcm")), seconds)


def _headers(paths: list[Path], seconds: float) -> None:
    tags = ["PatientAge", "PatientSex", "Modality", "Rows", "Columns"]

    def by_pydicom(path: Path) -> None:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        _ = [ds.get(tag) for tag in tags]

    for label, wanted in (("header, 5 tags", tags), ("header, all typed", None)):

        def ours(path: Path, wanted: list[str] | None = wanted) -> None:
            dicom.read_header(path, wanted)

        slow, fast = paired(by_pydicom, ours, paths, seconds / 2)
        print(f"{label:22s} {1 / slow:11.1f} {1 / fast:11.1f} {slow / fast:6.1f}x")


if __name__ == "__main__":
    main()
