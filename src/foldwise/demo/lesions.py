"""The embedded demo: a small dermoscopy-like competition whose best possible score is known.

Each image shows one lesion. Its malignancy is drawn with probability

    p = sigmoid(intercept + shape + colour + texture      what the image shows
                + freckles                                what every image of the patient shows
                + age + sex + site)                       what the table and the DICOM header say

so p is a function of observables, and AUC(p, target) is the Bayes optimum: no honest model beats it by more
than luck. `solution.csv` holds p and the truth; only the final table (`print_scores`) reads it.

Traps of real competitions are built in: photographs filed twice under different patients, in train and
across train and test (exactly, or re-encoded, brightened and shifted by a pixel or two); 12-bit
MONOCHROME1 and MONOCHROME2 files that need their window; gaps in the table and in the header, on
different rows; a truncated file in train, a file of random bytes in test.

A copy shows its source's lesion, so it keeps the source's site, p and label: it is not drawn again, which
would give one photograph two truths. Age and sex are those of the patient under whom it was filed, as a
clerk's error would leave them. `solution.csv` names the source of every copy (`copy_of`, `copy`).

Every random number comes from numpy generators keyed by the seed, and the files carry no dates or UIDs but
derived ones: the same seed and the same library versions give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
)
from tqdm import tqdm

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.cli import say
from foldwise.core.parallel import parallel_map

Floats = NDArray[np.float32]
Pair = tuple[dict[str, Any], dict[str, Any]]  # a case, and the case whose lesion its image shows

VERSION = 5  # of the generator: a folder made by another version is made again
FEWEST_IMAGES = 40  # below that five positives in each part are a matter of patience
TEST_SHARE = 2 / 7

SITES = {  # table's word: (header's word, share of images, weight in the logit)
    "head/neck": ("HEADNECK", 0.15, 2.0),
    "torso": ("TRUNK", 0.40, 0.6),
    "upper extremity": ("ARM", 0.18, -0.5),
    "lower extremity": ("LEG", 0.22, -1.3),
    "foot": ("FOOT", 0.05, -2.0),
}
WEIGHTS = {"asymmetry": 4.8, "variegation": 6.9, "texture": 4.6, "freckles": 3.0, "age": 0.095, "male": 1.2}
INTERCEPT = -3.85  # gives some 22 % positives
ATYPIA = 0.6  # correlation between asymmetry, variegation and texture of one lesion
SIZES = ((128, 128), (120, 160), (144, 144), (128, 152), (150, 132))  # rows, columns
SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "jpeg2000": JPEG2000Lossless,
    "rle": RLELossless,
}
COMPRESSED = ("jpeg2000", "rle")
COPIES = (  # kind, the part of the source, the part of the copy, share of all images (one at least)
    ("exact", "train", "train", 0.005),
    ("near", "train", "train", 0.008),
    ("exact", "train", "test", 0.004),
    ("near", "train", "test", 0.006),
)
TRAITS = ["asymmetry", "variegation", "texture"]  # each 0..1
SHOWN = ["rows", "columns", "photometric", "site", "tone", "freckles", *TRAITS]  # what a copy shows again
TABLE = ["image_id", "patient_id", "age", "sex", "site"]


@dataclass(frozen=True)
class Settings:
    """What decides every byte of the demo; saved as demo.json."""

    images: int = 1400
    seed: int = 0
    version: int = VERSION


# --- what is drawn: patients, lesions, labels -------------------------------------------------------------


def draw_cases(settings: Settings) -> pd.DataFrame:
    """One row per image: ids, metadata, what the lesion looks like, p, label, file format and flaws.

    Small demos are drawn again until both parts hold five positives in three patients, as folds need them;
    from some 200 images on the first draw passes, and labels follow p exactly.
    """
    for attempt in range(1000):
        cases = _draw_once(settings, np.random.default_rng([settings.seed, 0, attempt]))
        positives = cases[cases["target"] == 1].groupby("split")
        if (positives.size() >= 5).sum() == 2 and (positives["patient_id"].nunique() >= 3).sum() == 2:
            return cases
    raise UserError(f"--images {settings.images}: too few for five positives in train and test; take more")


def _draw_once(settings: Settings, rng: np.random.Generator) -> pd.DataFrame:
    n_test = round(settings.images * TEST_SHARE)
    parts = [_draw_part("train", settings.images - n_test, rng), _draw_part("test", n_test, rng)]
    cases = pd.concat(parts, ignore_index=True)
    # Ids are random numbers: neither the order of rows nor an id tells the label, the part or the patient.
    cases["image_id"] = [f"LES_{k:07d}" for k in rng.choice(10_000_000, len(cases), replace=False)]
    codes, patients = pd.factorize(cases["patient_id"])
    names = np.array([f"P_{k:05d}" for k in rng.choice(100_000, len(patients), replace=False)])
    cases["patient_id"] = names[codes]
    cases = cases.sort_values(["split", "image_id"], ascending=[False, True], ignore_index=True)
    cases["probability"] = probability(cases)
    cases["target"] = (rng.random(len(cases)) < cases["probability"]).astype(int)
    _draw_formats(cases, rng)
    _draw_flaws(cases, rng)
    return cases


def _draw_part(split: str, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Patients with a long-tailed number of images (most one or two, a few sixteen), then their lesions."""
    counts: list[int] = []
    while sum(counts) < n:
        longest = min(16, max(2, n // 8), n - sum(counts))
        counts.append(min(1 + int(1.3 * rng.pareto(1.25)), longest))
    patient = np.repeat(np.arange(len(counts)), counts)
    people = pd.DataFrame(
        {
            "patient_id": [f"{split}{k}" for k in range(len(counts))],
            "age": np.clip(rng.normal(52, 16, len(counts)), 15, 89).astype(int),
            "sex": rng.choice(["female", "male"], len(counts)),
            "tone": rng.beta(1.3, 2.6, len(counts)),  # 0 fair to 1 brown; says nothing about the label
            "freckles": rng.beta(1.1, 2.0, len(counts)),  # 0 none to 1 dense
        }
    )
    lesions = people.iloc[patient].reset_index(drop=True)
    lesions["split"] = split
    lesions["site"] = rng.choice(list(SITES), n, p=[share for _, share, _ in SITES.values()])
    atypia = rng.normal(size=n)
    for trait in TRAITS:
        z = np.sqrt(ATYPIA) * atypia + np.sqrt(1 - ATYPIA) * rng.normal(size=n)
        lesions[trait] = np.clip(0.5 + z / 4.4, 0, 1)  # drawn as it is scored: nothing beyond 0..1
    return lesions


def probability(cases: pd.DataFrame) -> NDArray[np.float64]:
    """p of each row, 0..1, from what its image and its metadata show."""
    logit = INTERCEPT + WEIGHTS["age"] * (cases["age"].to_numpy() - 52) + WEIGHTS["male"] * (cases["sex"] == "male")
    for trait in TRAITS:
        logit = logit + WEIGHTS[trait] * (cases[trait].to_numpy() - 0.5)
    logit = logit + WEIGHTS["freckles"] * (cases["freckles"].to_numpy() - 0.35)
    logit = logit + cases["site"].map({site: weight for site, (_, _, weight) in SITES.items()}).to_numpy()
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float64)


def _draw_formats(cases: pd.DataFrame, rng: np.random.Generator) -> None:
    """Size, photometric interpretation and transfer syntax; none of them depends on the label."""
    n = len(cases)
    cases[["rows", "columns"]] = np.array(SIZES)[rng.integers(len(SIZES), size=n)]
    cases["photometric"] = rng.choice(["RGB", "MONOCHROME2", "MONOCHROME1"], n, p=[0.84, 0.09, 0.07])
    cases["syntax"] = rng.choice(list(SYNTAXES), n, p=[0.4, 0.1, 0.25, 0.25])
    cases["hide_table_age"] = rng.random(n) < 0.04
    cases["hide_table_sex"] = rng.random(n) < 0.01
    cases["hide_table_site"] = rng.random(n) < 0.15
    # The header's gaps lie on other rows, so that whoever reads both knows nearly everything.
    for name, share in (("age", 0.06), ("sex", 0.03), ("site", 0.12)):
        cases[f"hide_header_{name}"] = (rng.random(n) < share) & ~cases[f"hide_table_{name}"]


def _draw_flaws(cases: pd.DataFrame, rng: np.random.Generator) -> None:
    """Copies across patients, and one unreadable file in each part."""
    free = [int(row) for row in rng.permutation(len(cases))]
    split, patient = cases["split"].to_numpy(), cases["patient_id"].to_numpy()

    def take(part: str, but_patient: str = "") -> int:
        row = next(k for k in free if split[k] == part and patient[k] != but_patient)
        free.remove(row)
        return row

    damage, copy = np.full(len(cases), "", object), np.full(len(cases), "", object)
    damage[take("train")], damage[take("test")] = "truncated", "garbage"
    photo = np.arange(len(cases))  # the row whose lesion the image shows
    for kind, source_part, part, share in COPIES:
        for _ in range(max(1, round(share * len(cases)))):
            source = take(source_part)
            row = take(part, but_patient=patient[source])
            photo[row], copy[row] = source, kind
    for column in [*SHOWN, "probability", "target", "syntax"]:
        cases[column] = cases[column].to_numpy()[photo]
    syntax = cases["syntax"].to_numpy(dtype=object, copy=True)
    syntax[(copy == "near") & (syntax == "jpeg2000")] = "rle"  # near copies went through another program
    syntax[(copy == "near") & (syntax != "rle")] = "jpeg2000"
    syntax[damage != ""] = "explicit"
    cases["photo"], cases["copy"], cases["damage"], cases["syntax"] = photo, copy, damage, syntax


# --- what is shown: skin, lesion, optics ------------------------------------------------------------------


def render(case: dict[str, Any], rng: np.random.Generator) -> Floats:
    """The photograph of a case: float32 (rows, columns, 3), RGB, 0..1.

    The generator decides all that the label does not depend on: place, size, hair, light, noise.
    """
    rows, columns = int(case["rows"]), int(case["columns"])
    image = _skin(rows, columns, float(case["tone"]), float(case["freckles"]), rng)
    depth, polar = _outline(rows, columns, float(case["asymmetry"]), rng)
    cover = _smoothstep(0.0, rng.uniform(0.10, 0.30), depth)[..., None]
    pigment = _brown(image, depth, rng)
    pigment = _meshes(pigment, float(case["texture"]), rng)
    pigment = _areas(pigment, depth > 0, float(case["variegation"]), rng)
    pigment = _globules_and_streaks(pigment, depth, polar, float(case["texture"]), rng)
    image = image * (1 - cover) + pigment * cover
    image = _hair(image, rng)
    return _optics(image, rng)


def _noise(rows: int, columns: int, scale: float, rng: np.random.Generator) -> Floats:
    """Smooth noise with features of some `scale` pixels: mean 0, standard deviation 1."""
    coarse = max(1.0, scale / 3)
    small = rng.standard_normal((int(rows / coarse) + 8, int(columns / coarse) + 8), dtype=np.float32)
    blurred = cv2.GaussianBlur(small, (0, 0), scale / coarse / 2)
    big = cv2.resize(blurred, None, fx=coarse, fy=coarse, interpolation=cv2.INTER_CUBIC)
    field = big[2 : rows + 2, 2 : columns + 2]
    return _floats((field - field.mean()) / (field.std() + 1e-6))


def _floats(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float32)


def _smoothstep(low: float, high: float, x: Floats) -> Floats:
    t = _floats(np.clip((x - low) / (high - low), 0, 1))
    return t * t * (3 - 2 * t)


def _rgb(*levels: int) -> Floats:
    return _floats(levels) / np.float32(255)


def _skin(rows: int, columns: int, tone: float, freckles: float, rng: np.random.Generator) -> Floats:
    base = (1 - tone) * _rgb(226, 184, 166) + tone * _rgb(172, 124, 98)
    image = _floats(base * rng.uniform(0.96, 1.04, 3))
    grain = 0.03 * _noise(rows, columns, 40, rng) + 0.016 * _noise(rows, columns, 5, rng)
    image = _floats(image * (1 + grain + 0.012 * _noise(rows, columns, 2, rng))[..., None])
    flush = _smoothstep(0.6, 2.4, _noise(rows, columns, 34, rng))[..., None]
    image = image * (1 - flush * np.array([0.0, 0.08, 0.07], np.float32))
    mask = np.zeros((rows, columns), np.float32)
    for _ in range(rng.poisson(90 * freckles**1.2)):
        centre = (int(rng.integers(columns * 8)), int(rng.integers(rows * 8)))
        axes = tuple(int(8 * radius) for radius in np.exp(rng.normal(0.55, 0.4, 2)))
        shade = float(rng.uniform(0.3, 0.9))
        cv2.ellipse(mask, centre, (axes[0], axes[1]), float(rng.uniform(0, 180)), 0, 360, shade, -1, shift=3)
    cover = 0.6 * _floats(cv2.GaussianBlur(mask, (0, 0), 1.1))[..., None]
    return _floats(image * (1 - cover * (1 - _rgb(134, 84, 54))))


def _outline(rows: int, columns: int, asymmetry: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Depth inside the lesion (1 at its centre, 0 on its border, negative outside) and the polar angle."""
    radius = rng.uniform(0.24, 0.34) * min(rows, columns)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    y -= rows * rng.uniform(0.45, 0.55)
    x -= columns * rng.uniform(0.45, 0.55)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.12) + 0.5 * asymmetry**1.5
    u = (x * np.cos(turn) + y * np.sin(turn)) / np.sqrt(stretch)
    v = (y * np.cos(turn) - x * np.sin(turn)) * np.sqrt(stretch)
    angle = np.arctan2(v, u)
    border = 1 + (0.02 + 0.09 * asymmetry) * _noise(rows, columns, 12, rng)
    for k in range(2, 10):  # lobes, then notches
        size = (0.01 + 0.6 * asymmetry**1.6) * rng.uniform(0.3, 1.2) / k
        border = border + _floats(size * np.cos(k * angle + rng.uniform(0, 2 * np.pi)))
    depth = 1 - np.hypot(u, v) / (radius * np.maximum(border, 0.25))
    return _floats(depth), _floats(angle)


def _brown(skin: Floats, depth: Floats, rng: np.random.Generator) -> Floats:
    """The lesion's own colour: light to dark brown, deeper inwards, on dark skin darker."""
    mix = rng.uniform(0, 1)
    rows, columns = depth.shape
    brown = _floats((1 - mix) * _rgb(178, 124, 92) + mix * _rgb(128, 82, 60))
    brown = brown * (0.5 + 0.5 * skin.mean((0, 1)) / _rgb(215, 172, 150))
    inwards = _smoothstep(0.0, 0.9, depth)
    mottle = 1 + 0.06 * _noise(rows, columns, 12, rng) + 0.03 * _noise(rows, columns, 3, rng)
    return _floats(brown * ((1.1 - rng.uniform(0.2, 0.45) * inwards) * mottle)[..., None])


def _areas(image: Floats, inside: NDArray[np.bool_], variegation: float, rng: np.random.Generator) -> Floats:
    """With variegation black, blue-grey, white and red areas join the brown, one after the other.

    Each is scaled to what lies inside the lesion: a colour that fell outside would move p, yet not be seen.
    """
    rows, columns = image.shape[:2]
    colours = [_rgb(58, 38, 33), _rgb(92, 91, 103), _rgb(208, 178, 166), _rgb(158, 84, 72)]
    for k, colour in enumerate(colours):
        strength = np.clip(variegation * 5.4 - 1.0 - 0.75 * k, 0, 1) * rng.uniform(0.7, 0.9)
        field = _noise(rows, columns, rng.uniform(18, 30), rng) + 0.35 * _noise(rows, columns, 6, rng)
        field = _floats((field - field[inside].mean()) / field[inside].std())
        area = strength * _smoothstep(0.0, 1.1, field)[..., None]
        mottle = 1 + 0.05 * _noise(rows, columns, 8, rng)[..., None]
        image = image * (1 - area) + colour * mottle * area
    return _floats(image)


def _meshes(image: Floats, texture: float, rng: np.random.Generator) -> Floats:
    """The pigment network: three waves at 60 degrees; coarser, warped and interrupted as texture grows."""
    rows, columns = image.shape[:2]
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    warp = 1.2 + 3.5 * texture
    x += warp * _noise(rows, columns, 14, rng)
    y += warp * _noise(rows, columns, 14, rng)
    pitch, turn = 2 * np.pi / (rng.uniform(3.8, 5.0) * (1 + 0.5 * texture)), rng.uniform(0, np.pi)
    waves = sum(np.cos(pitch * (x * np.cos(t) + y * np.sin(t))) for t in turn + np.pi / 3 * np.arange(3))
    lines = 1 - _smoothstep(-1.3, 0.8, _floats(waves))
    seen = _smoothstep(-0.8, 0.8, _floats(_noise(rows, columns, 22, rng) + 0.8 - texture))
    return _floats(image * (1 - (0.12 + 0.28 * texture) * lines * seen)[..., None])


def _globules_and_streaks(
    image: Floats, depth: Floats, angle: Floats, texture: float, rng: np.random.Generator
) -> Floats:
    """Dark dots inside and spokes at the rim, more of both as texture grows."""
    wobble = 1.6 * _noise(depth.shape[0], depth.shape[1], 14, rng)
    rim = np.exp(-(((depth - 0.13) / 0.15) ** 2))
    spokes = _smoothstep(0.3, 1.0, _floats(np.cos(angle * int(rng.integers(12, 20)) + wobble)))
    dark = 0.62 * _globules(depth, texture, rng) + 0.9 * np.clip(texture - 0.4, 0, 1) * rim * spokes
    return _floats(image * (1 - np.clip(dark, 0, 0.8))[..., None])


def _globules(depth: Floats, texture: float, rng: np.random.Generator) -> Floats:
    """Round dots inside the lesion, 0..1: few and alike when texture is low, many, of all sizes when high."""
    mask = np.zeros_like(depth)
    inside = np.argwhere(depth > 0.08)
    for _ in range(rng.poisson(2 + 70 * texture**2.2) if len(inside) else 0):
        row, column = inside[rng.integers(len(inside))]
        radius = 1.0 if rng.random() > texture else rng.uniform(1, 3.2)
        centre = (int(column * 8), int(row * 8))
        cv2.circle(mask, centre, int(radius * 8), float(rng.uniform(0.4, 1.0)), -1, cv2.LINE_AA, shift=3)
    return _floats(cv2.GaussianBlur(mask, (0, 0), 0.8))


def _hair(image: Floats, rng: np.random.Generator) -> Floats:
    """Dark curved hairs over everything; most images have none or few."""
    rows, columns = image.shape[:2]
    mask = np.zeros((rows, columns), np.float32)
    for _ in range(rng.poisson(rng.choice([0, 2, 9], p=[0.5, 0.35, 0.15]))):
        start = rng.uniform([0, 0], [columns, rows])
        heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.035)
        turns = heading + bend * np.arange(int(rng.integers(10, 40)))
        path = start + np.cumsum(3 * np.stack([np.cos(turns), np.sin(turns)], 1), 0)
        points = np.round(path * 16).astype(np.int32)[:, None]
        cv2.polylines(mask, [points], False, float(rng.uniform(0.5, 0.9)), 1, cv2.LINE_AA, shift=4)
    cover = 0.8 * mask[..., None]
    return _floats(image * (1 - cover) + cover * _rgb(48, 34, 28))


def _optics(image: Floats, rng: np.random.Generator) -> Floats:
    """Uneven light, vignette (some dermatoscopes show their round edge), white balance, blur, noise."""
    rows, columns = image.shape[:2]
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    radius = _floats(np.hypot(x * columns, y * rows) / np.hypot(columns, rows))
    turn = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.10) * (x * np.cos(turn) + y * np.sin(turn))
    light = light * (1 - rng.uniform(0.02, 0.3) * radius**2.5)
    if rng.random() < 0.12:
        edge = rng.uniform(0.80, 0.95)
        light = light * (1 - 0.97 * _smoothstep(edge - 0.02, edge + 0.02, radius))
    balance = rng.uniform(0.92, 1.06) * rng.uniform(0.97, 1.03, 3)
    blurred = cv2.GaussianBlur(_floats(image * light[..., None] * balance), (0, 0), rng.uniform(0.4, 0.8))
    return _floats(np.clip(blurred + rng.normal(0, 0.010, image.shape), 0, 1))


def _export_again(image: Floats, rng: np.random.Generator) -> Floats:
    """A near-duplicate: shifted by a pixel or two, brighter or darker, through a lossy JPEG."""
    shift = rng.integers(1, 3, 2) * rng.choice([-1, 1], 2)
    moved = np.roll(np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge"), tuple(shift), (0, 1))[2:-2, 2:-2]
    moved = np.clip(moved * rng.choice([0.94, 1.05]) * 255, 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", np.ascontiguousarray(moved[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    decoded = _floats(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return decoded[..., ::-1] / np.float32(255)


# --- what is filed: DICOM ---------------------------------------------------------------------------------


def write_image(case: dict[str, Any], source: dict[str, Any], folder: Path, settings: Settings) -> None:
    """Render one case (`source` is the case whose lesion it shows) and write <folder>/<split>/<id>.dcm."""
    path = folder / str(case["split"]) / f"{case['image_id']}.dcm"
    photo = np.random.default_rng([settings.seed, 1, int(case["photo"])])
    own = np.random.default_rng([settings.seed, 2, int(case["row"])])
    if case["damage"] == "garbage":
        path.write_bytes(own.bytes(20_000))
        return
    image = render(source, photo)
    if case["copy"] == "near":
        image = _export_again(image, own)
    dataset = _header(case, settings)
    if case["photometric"] == "RGB":
        _put_rgb(dataset, image)
    else:
        _put_mono(dataset, image, str(case["photometric"]), photo)
    _save(dataset, str(case["syntax"]), path)
    if case["damage"] == "truncated":
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])


def _uid(settings: Settings, *parts: object) -> UID:
    return derived_uid(settings.images, settings.seed, *parts)


def derived_uid(*parts: object) -> UID:
    """A UID derived from what it names: 2.25 and a 128-bit integer (PS3.5 B.2)."""
    text = "/".join(map(str, parts))
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}")


def _header(case: dict[str, Any], settings: Settings) -> Dataset:
    rgb = case["photometric"] == "RGB"
    dataset = Dataset()
    dataset.SOPClassUID = VLPhotographicImageStorage if rgb else SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = _uid(settings, "image", case["image_id"])
    dataset.StudyInstanceUID = _uid(settings, "study", case["patient_id"])
    dataset.SeriesInstanceUID = _uid(settings, "series", case["image_id"])
    dataset.Modality = "XC" if rgb else "OT"
    dataset.Manufacturer = "Foldwise demo"
    dataset.PatientName = ""
    dataset.PatientID = str(case["patient_id"])
    dataset.PatientSex = "" if case["hide_header_sex"] else str(case["sex"])[0].upper()
    dataset.PatientAge = "" if case["hide_header_age"] else f"{int(case['age']):03d}Y"  # PS3.5 6.2, AS
    dataset.BodyPartExamined = "" if case["hide_header_site"] else SITES[str(case["site"])][0]
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.SeriesNumber = dataset.InstanceNumber = "1"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = UID("2.25.77101108100119105115101")
    dataset.file_meta.ImplementationVersionName = "FOLDWISE"  # else pydicom writes its own version's name
    return dataset


def _put_rgb(dataset: Dataset, image: Floats) -> None:
    pixels = np.round(image * 255).astype(np.uint8)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    _put_pixels(dataset, pixels, "RGB", 8)


def _put_mono(dataset: Dataset, image: Floats, photometric: str, rng: np.random.Generator) -> None:
    """12 bits in 16, with a window; pixels outside the window make scaling by min and max a bad guess."""
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    low, width = rng.integers(300, 1200), rng.integers(1200, 2200)
    levels = np.clip(np.round(low + grey * width), 0, 4095).astype(np.uint16)
    top, left = rng.integers(1, 8, 2)
    levels[top : top + 3, left : left + 10] = 4095  # a burnt-in mark
    levels[-3:, -3:] = 0
    centre = low + width / 2
    if photometric == "MONOCHROME1":  # high values are dark (PS3.3 C.7.6.3.1.2)
        levels, centre = (4095 - levels).astype(np.uint16), 4095 - centre
    dataset.SamplesPerPixel = 1
    dataset.WindowCenter, dataset.WindowWidth = f"{centre:.1f}", str(int(width))
    _put_pixels(dataset, levels, photometric, 12)


def _put_pixels(dataset: Dataset, pixels: NDArray[Any], photometric: str, bits: int) -> None:
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype == np.uint8 else "OW"


def _save(dataset: Dataset, syntax: str, path: Path) -> None:
    if syntax in COMPRESSED:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(SYNTAXES[syntax], encoding_plugin="pylibjpeg", generate_instance_uid=False)
    else:
        if syntax == "implicit":
            dataset["PixelData"].VR = "OW"  # PS3.5 A.1
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    dataset.save_as(path, enforce_file_format=True)


# --- the folder -------------------------------------------------------------------------------------------


def make_demo(images: int = 1400, seed: int = 0, root: Path | None = None, workers: int | None = None) -> Path:
    """Write <root>/input/demo, unless it is there already with these settings; returns the folder."""
    if images < FEWEST_IMAGES:
        raise UserError(f"--images {images}: take at least {FEWEST_IMAGES}, or folds lack a class")
    if seed < 0:
        raise UserError(f"--seed {seed}: give a number from 0 upwards")
    settings = Settings(images, seed)
    folder = (root or paths.output_root()) / "input" / "demo"
    if already(folder, settings):
        say(f"{folder} is there already: {images} images, seed {seed}")
        return folder
    cases = draw_cases(settings)
    with whole_folder(folder, settings) as part:
        _write_tables(cases, part)
        _write_images(cases, part, settings, workers)
    counts = cases["split"].value_counts()
    positive = cases["target"].mean()
    say(f"{folder}: {counts['train']} train and {counts['test']} test images, {positive:.0%} positive")
    return folder


def already(folder: Path, settings: Any) -> bool:
    """Whether a demo of these settings lies there; UserError where something else does."""
    note = folder / "demo.json"
    if not folder.exists():
        return False
    if not note.exists():
        raise UserError(f"{folder}: not made by this script (no demo.json); move it away first")
    try:
        return bool(json.loads(note.read_text(encoding="utf-8")) == asdict(settings))
    except ValueError:
        return False


@contextmanager
def whole_folder(folder: Path, settings: Any) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder`, its settings in demo.json, only when the block ends well."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old.part")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for split in ("train", "test"):
        (part / split).mkdir(parents=True)
    try:
        yield part
        (part / "demo.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_tables(cases: pd.DataFrame, folder: Path) -> None:
    table = cases.astype({"age": "Int64"})
    for name in ("age", "sex", "site"):
        table[name] = table[name].mask(table[f"hide_table_{name}"])
    train, test = table["split"] == "train", table["split"] == "test"
    table.loc[train, [*TABLE, "target"]].to_csv(folder / "train.csv", index=False)
    table.loc[test, TABLE].to_csv(folder / "test.csv", index=False)
    table.loc[test, ["image_id"]].assign(target=0.5).to_csv(folder / "sample_submission.csv", index=False)
    ids = cases["image_id"].to_numpy()
    solution = cases[["image_id", "patient_id", "target", "probability", "split", "copy"]].copy()
    solution["probability"] = solution["probability"].round(6)
    solution["copy_of"] = np.where(cases["copy"] == "", "", ids[cases["photo"].to_numpy()])
    solution.to_csv(folder / "solution.csv", index=False)


def _write_images(cases: pd.DataFrame, folder: Path, settings: Settings, workers: int | None) -> None:
    cases = cases.assign(row=np.arange(len(cases)))
    records: list[dict[str, Any]] = cases.to_dict("records")
    sources = [records[record["photo"]] for record in records]
    pairs = list(zip(records, sources, strict=True))
    job = partial(_write_chunk, folder=folder, settings=settings)
    if len(pairs) < 200:  # starting processes would take longer than drawing so few
        for pair in tqdm(pairs, desc="drawing", unit="image", disable=None):
            job([pair])
        return
    for (record, _), result in parallel_map(job, pairs, workers=workers, label="drawing", unit="image"):
        if result is not None:
            raise RuntimeError(f"{record['image_id']} was not written") from result


def _write_chunk(pairs: Sequence[Pair], folder: Path, settings: Settings) -> list[None]:
    for case, source in pairs:
        write_image(case, source, folder, settings)
    return [None for _ in pairs]
