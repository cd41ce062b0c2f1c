"""The embedded demo of studies: CT-like series whose label no single slice shows; the best possible score is known.

Every study has trails all along: spots in three neighbouring slices, one of which lies between the other two. In a
study of one kind the spot in the middle slice lies between the others, as of a vessel that runs through; in the other
kind it lies at an end. Each slice alone shows a spot somewhere, alike in both kinds, so only neighbours tell. The label
is the kind, turned round with probability NOISE: p = 1 - NOISE or NOISE, and AUC(p, target) is the Bayes optimum.

Traps of real studies: file names and (in every second study) InstanceNumbers say nothing of the order in space; slices
are 1 to 5 mm apart, of other sizes and numbers in each study; localizers, copies of slices and a damaged file lie among
them. Every random number comes from the seed: the same bytes each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.cli import say
from foldwise.core.parallel import parallel_map
from foldwise.demo.lesions import already, derived_uid, whole_folder

SERIES = "demo-series"
VERSION = 1
FEWEST_STUDIES = 40
TEST_SHARE = 0.25
NOISE = 0.04  # of labels
FIELD = 240.0  # mm across
SPOT, STEP = 9.0, 11.0  # mm: radius of a spot, and from one of a trail to the next
SLICES = (18, 28)
SIDES = (64, 80, 96)  # rows and columns


@dataclass(frozen=True)
class Settings:
    """What decides every byte; saved as demo.json."""

    images: int = 320  # studies
    seed: int = 0
    version: int = VERSION


def make_series_demo(studies: int = 320, seed: int = 0, root: Path | None = None, workers: int | None = None) -> Path:
    """Write <root>/input/demo-series, unless it is there already with these settings; returns the folder."""
    if studies < FEWEST_STUDIES or seed < 0:
        raise UserError(
            f"--images {studies} --seed {seed}: at least {FEWEST_STUDIES} studies, and a seed from 0 upwards"
        )
    settings = Settings(studies, seed)
    folder = (root or paths.output_root()) / "input" / SERIES
    if already(folder, settings):
        say(f"{folder} is there already: {studies} studies, seed {seed}")
        return folder
    cases = draw_studies(settings)
    with whole_folder(folder, settings) as part:
        _write_tables(cases, part)
        job = partial(_write_chunk, folder=part, settings=settings)
        records = list(enumerate(cases.to_dict("records")))
        for (_, case), result in parallel_map(job, records, workers=workers, label="drawing", unit="study"):
            if result is not None:
                raise RuntimeError(f"{case['study_id']} was not written") from result
    slices = int(cases["slices"].sum())
    say(f"{folder}: {studies} studies of {slices} slices, {cases['target'].mean():.0%} positive")
    return folder


def draw_studies(settings: Settings) -> pd.DataFrame:
    """A row a study: study_id, patient_id, split, kind, probability, target, slices, side, apart (mm), flaw."""
    rng = np.random.default_rng([settings.seed, 10])
    n = settings.images
    patient = np.sort(rng.integers(0, max(2, round(0.8 * n)), n))
    test = np.isin(patient, rng.permutation(np.unique(patient))[: round(TEST_SHARE * len(np.unique(patient)))])
    kind = rng.integers(0, 2, n)
    probability = np.where(kind == 1, 1 - NOISE, NOISE)
    flaw = np.full(n, "", object)
    flaw[: n // 4] = np.resize(["localizer", "copy", "damaged"], n // 4)
    cases = pd.DataFrame(
        {
            "study_id": [f"S{k:06d}" for k in rng.choice(10**6, n, replace=False)],
            "patient_id": np.array([f"P{k:05d}" for k in rng.choice(10**5, n, replace=False)])[patient],
            "split": np.where(test, "test", "train"),
            "kind": kind,
            "probability": probability,
            "target": (rng.random(n) < probability).astype(int),
            "slices": rng.integers(*SLICES, n, endpoint=True),
            "side": rng.choice(SIDES, n),
            "apart": rng.choice([1.0, 2.5, 5.0], n),
            "flaw": rng.permutation(flaw),
            "row": np.arange(n),
        }
    )
    return cases.sort_values("study_id", ignore_index=True)


def render_study(case: dict[str, Any], seed: int) -> NDArray[np.int16]:
    """Hounsfield units int16 (slices, side, side): a body with vessels that stay, single spots, and trails."""
    rng = np.random.default_rng([seed, 11, int(case["row"])])
    depth, side = int(case["slices"]), int(case["side"])
    scale = side / FIELD
    volume = np.full((depth, side, side), -1000.0, np.float32)
    inside = _disc(side, np.array([FIELD, FIELD]) / 2, FIELD * 0.44, scale, rim=4)
    volume += inside * (1040 + rng.normal(0, 15, volume.shape).astype(np.float32))
    vessels = _places(rng, 3)  # along the axis
    spots: list[list[NDArray[Any]]] = [list(vessels) for _ in range(depth)]
    starts = np.arange(depth % 3, depth, 3)
    for start in starts:
        direction = rng.uniform(0, 2 * np.pi)
        line = _places(rng, 1)[0] + np.outer([-1, 0, 1], STEP * np.array([np.cos(direction), np.sin(direction)]))
        order = (0, 1, 2) if case["kind"] else ((1, 0, 2) if rng.random() < 0.5 else (0, 2, 1))
        for k, point in enumerate(order):
            spots[start + k].append(line[point])
    for k, here in enumerate(spots):
        alone = [] if any(start <= k < start + 3 for start in starts) else list(_places(rng, 1))
        for place in [*here, *alone]:
            volume[k] += 160 * _disc(side, place, SPOT, scale, rim=3)
    return np.clip(np.rint(volume), -1024, 2000).astype(np.int16)


def _places(rng: np.random.Generator, count: int) -> NDArray[Any]:
    """mm (count, 2) well inside the body."""
    angle, radius = rng.uniform(0, 2 * np.pi, count), FIELD * 0.3 * np.sqrt(rng.random(count))
    return FIELD / 2 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _disc(side: int, centre: NDArray[Any], radius: float, scale: float, rim: float) -> NDArray[np.float32]:
    y, x = np.mgrid[:side, :side] / scale + 0.5 / scale
    distance = np.hypot(y - centre[0], x - centre[1])
    return np.clip((radius - distance) / rim + 0.5, 0, 1).astype(np.float32)


# --- files ----------------------------------------------------------------------------------------------------


def _write_tables(cases: pd.DataFrame, folder: Path) -> None:
    train, test = cases["split"] == "train", cases["split"] == "test"
    cases.loc[train, ["study_id", "patient_id", "target"]].to_csv(folder / "train.csv", index=False)
    cases.loc[test, ["study_id", "patient_id"]].to_csv(folder / "test.csv", index=False)
    cases.loc[test, ["study_id"]].assign(target=0.5).to_csv(folder / "sample_submission.csv", index=False)
    solution = ["study_id", "patient_id", "target", "probability", "split"]
    cases[solution].to_csv(folder / "solution.csv", index=False)


def _write_chunk(rows: Sequence[tuple[int, dict[str, Any]]], folder: Path, settings: Settings) -> list[None]:
    for _, case in rows:
        _write_study(case, folder / str(case["split"]) / str(case["study_id"]), settings)
    return [None for _ in rows]


def _write_study(case: dict[str, Any], folder: Path, settings: Settings) -> None:
    """The study's files, under names that tell nothing."""
    volume = render_study(case, settings.seed)
    rng = np.random.default_rng([settings.seed, 12, int(case["row"])])
    names = [f"{k:08x}.dcm" for k in rng.choice(2**31, len(volume) + 1, replace=False)]
    upward, numbered = rng.random() < 0.5, rng.random() < 0.5
    instance = np.arange(len(volume)) if numbered else rng.permutation(len(volume))
    folder.mkdir(parents=True)
    for k, pixels in enumerate(volume):
        place = k if upward else len(volume) - 1 - k
        dataset = _header(case, settings, k, int(instance[k]), place * float(case["apart"]))
        _save(dataset, pixels, folder / names[k])
    if case["flaw"] == "localizer":
        dataset = _header(case, settings, len(volume), 0, 0.0)
        dataset.ImageType, dataset.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
        side = cv2.resize(volume[:, volume.shape[1] // 2], volume.shape[1:])
        _save(dataset, side.astype(np.int16), folder / names[-1])
    if case["flaw"] == "copy":
        (folder / names[-1]).write_bytes((folder / names[0]).read_bytes())
    if case["flaw"] == "damaged":
        (folder / names[-1]).write_bytes((folder / names[0]).read_bytes()[:400])


def _header(case: dict[str, Any], settings: Settings, number: int, instance: int, place: float) -> Dataset:
    dataset, side = Dataset(), int(case["side"])
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = derived_uid(settings.images, settings.seed, "slice", case["study_id"], number)
    dataset.StudyInstanceUID = derived_uid(settings.images, settings.seed, "study", case["study_id"])
    dataset.SeriesInstanceUID = derived_uid(settings.images, settings.seed, "series", case["study_id"])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.Manufacturer = "CT", "Foldwise demo"
    dataset.PatientName, dataset.PatientID = "", str(case["patient_id"])
    dataset.InstanceNumber = str(instance + 1)
    dataset.ImagePositionPatient = [-FIELD / 2, -FIELD / 2, place]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [FIELD / side, FIELD / side]
    dataset.SliceThickness = str(case["apart"])
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = UID("2.25.77101108100119105115101")
    dataset.file_meta.ImplementationVersionName = "FOLDWISE"
    return dataset


def _save(dataset: Dataset, pixels: NDArray[np.int16], path: Path) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
