"""Raw folders of real competitions in small: their files, columns and archives, with pictures that show their label.

A picture is 4 x 4 blocks, bright where the label of that number holds: whoever reads it knows what its row must say.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from test_dicom import make as dicom_file

TRAIN, TEST = 24, 7
BRIGHT = 230


def blocks(held: Iterable[int], seed: int) -> np.ndarray:
    """uint8 (32, 32): dark noise, bright blocks."""
    image = np.random.default_rng(seed).integers(0, 60, (32, 32)).astype(np.uint8)
    for k in held:
        image[k // 4 * 8 : k // 4 * 8 + 8, k % 4 * 8 : k % 4 * 8 + 8] = BRIGHT
    return image


def seen(image: np.ndarray) -> np.ndarray:
    """float (16,): how bright each block of an image (32, 32[, C]) is, 0 to 1."""
    gray = image.reshape(32, 32, -1).mean(axis=2)
    return gray.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel() / BRIGHT


@dataclass
class Raw:
    """A raw folder in the making; labels: what each block means; truth: what the submission must say of each id."""

    folder: Path
    labels: list[str] = field(default_factory=list)
    truth: dict[str, object] = field(default_factory=dict)
    pictures: int = 0

    def picture(self, path: str, held: Iterable[int]) -> None:
        """An image file that shows these blocks."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        self.pictures += 1
        image = blocks(held, self.pictures)
        if file.suffix == ".dcm":
            dicom_file(file, image, Modality="CT")
        elif file.suffix == ".npy":
            np.save(file, np.repeat(image[None], 6, 0).astype(np.float16))
        elif file.suffix == ".parquet":
            pd.DataFrame(image.astype(np.float32)).rename(columns=str).to_parquet(file)
        else:
            encoded = cv2.imencode(file.suffix, image)[1]
            file.write_bytes(encoded.tobytes())

    def table(self, name: str, rows: dict[str, object], **options: object) -> None:
        """A CSV."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(self.folder / name, **{"index": False, **options})

    def json(self, name: str, data: object) -> None:
        """A JSON file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(json.dumps(data))

    def pack(self, folder: str, suffix: str, lead: str = "") -> None:
        """The folder as an archive beside it, its members below `lead`, and the folder gone."""
        place, archive = self.folder / folder, self.folder / (folder + suffix)
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        names = [lead + (path.relative_to(place).as_posix() if place.is_dir() else path.name) for path in files]
        if suffix == ".zip":
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for path, name in zip(files, names, strict=True):
                    packed.write(path, name)
        elif suffix == ".7z":
            import py7zr

            with py7zr.SevenZipFile(archive, "w") as packed:
                for path, name in zip(files, names, strict=True):
                    packed.write(path, name)
        else:
            with tarfile.open(archive, "w:gz" if suffix == ".gz" else "w") as packed:
                for path, name in zip(files, names, strict=True):
                    packed.add(path, name)
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def names(count: int, start: str) -> list[str]:
    """Ids in no order, of letters and digits that differ from the row numbers."""
    rng = np.random.default_rng(len(start) + count)
    return [f"{start}{k:03x}{rng.integers(16**4):04x}" for k in rng.permutation(count)]


def kinds(count: int, classes: int) -> list[int]:
    """A class for each row, each several times."""
    return np.random.default_rng(classes).permutation(np.arange(count) % classes).tolist()


def simple(raw: Raw, id_: str, target: str, labels: list[object], where: str, **files: str) -> None:
    """A table of ids and labels (0 and 1, or names), pictures by the id, a sample of ids and a value."""
    raw.labels = [str(label) for label in labels]
    binary = labels == [0, 1]
    told = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids = [one + files.get("id_suffix", "") for one in names(count, split[:2])]
        kind = kinds(count, len(labels))
        for one, k in zip(ids, kind, strict=True):
            raw.picture(where.format(split=split, id=one), ([0] if k else []) if binary else [k])
        told[split] = {id_: ids, target: [labels[k] for k in kind]}
    raw.table(files.get("train", "train.csv"), told["train"])
    if "test" in files:
        raw.table(files["test"], {id_: told["test"][id_]})
    raw.truth = dict(zip(told["test"][id_], told["test"][target], strict=True))
    raw.table("sample_submission.csv", {id_: told["test"][id_], target: [files.get("shown", labels[0])] * TEST})


def cactus(raw: Raw) -> None:
    simple(raw, "id", "has_cactus", [0, 1], "{split}/{id}", id_suffix=".jpg", shown="0.5")
    for split in ("train", "test"):
        raw.pack(split, ".zip")


def aptos(raw: Raw) -> None:
    simple(raw, "id_code", "diagnosis", [0, 1, 2, 3, 4], "{split}_images/{id}.png", test="test.csv")


def dogs(raw: Raw) -> None:
    breeds = ["affenpinscher", "beagle", "chow", "wire-haired_fox_terrier"]
    simple(raw, "id", "breed", breeds, "{split}/{id}.jpg", train="labels.csv")
    ids = list(raw.truth)
    raw.table("sample_submission.csv", {"id": ids, **{breed: [0.25] * TEST for breed in breeds}})


def histology(raw: Raw) -> None:
    simple(raw, "id", "label", [0, 1], "{split}/{id}.tif", train="train_labels.csv", shown="0")


def leaves(raw: Raw) -> None:
    species = ["Acer_Opalus", "Quercus_Ilex", "Tilia_Tomentosa"]
    simple(raw, "id", "species", species, "images/{id}.jpg", test="test.csv")
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(raw.folder / name)
        rng = np.random.default_rng(len(table))
        more = {f"{kind}{k}": rng.random(len(table)) for kind in ("margin", "shape", "texture") for k in range(1, 65)}
        raw.table(name, {**table, **more})
    raw.table("sample_submission.csv", {"id": list(raw.truth), **{one: [1 / 3] * TEST for one in species}})


def plants_2020(raw: Raw) -> None:
    raw.labels = ["healthy", "multiple_diseases", "rust", "scab"]
    for split, count in (("Train", TRAIN), ("Test", TEST)):
        ids, kind = [f"{split}_{k}" for k in range(count)], kinds(count, 4)
        for one, k in zip(ids, kind, strict=True):
            raw.picture(f"images/{one}.jpg", [k])
        held = {name: [int(k == c) for k in kind] for c, name in enumerate(raw.labels)}
        raw.table(f"{split.lower()}.csv", {"image_id": ids, **(held if split == "Train" else {})})
        raw.truth = {one: raw.labels[k] for one, k in zip(ids, kind, strict=True)}
    raw.table("sample_submission.csv", {"image_id": ids, **{name: [0.25] * count for name in raw.labels}})


def lines(raw: Raw) -> None:
    nine = [f"{kind} - {state}" for kind in ("ETT", "NGT") for state in ("Abnormal", "Borderline", "Normal")]
    nine.insert(5, "NGT - Incompletely Imaged")
    nine += ["CVC - Abnormal", "CVC - Borderline"]
    raw.labels = [*nine, "CVC - Normal", "Swan Ganz Catheter Present"]
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, held = [f"1.2.826.{one}" for one in names(count, split[:1])], rng.random((count, 11)) < 0.4
        for one, row in zip(ids, held, strict=True):
            raw.picture(f"{split}/{one}.jpg", np.flatnonzero(row))
        if split == "train":
            cells = {name: held[:, c].astype(int) for c, name in enumerate(raw.labels)}
            patients = [f"p{k // 2}" for k in range(count)]
            raw.table("train.csv", {"StudyInstanceUID": ids, **cells, "PatientID": patients})
            raw.table("train_annotations.csv", {"StudyInstanceUID": ids[:3], "label": nine[:3], "data": ["[]"] * 3})
        raw.truth = {one: {nine[c] for c in np.flatnonzero(row[:9])} for one, row in zip(ids, held, strict=True)}
    raw.table("sample_submission.csv", {"StudyInstanceUID": ids, **{name: [0] * count for name in nine}})


def melanoma(raw: Raw) -> None:
    simple(raw, "image_name", "target", [0, 1], "{split}/{id}.dcm", test="test.csv", shown="0")
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(raw.folder / name)
        count = len(table)
        beside = {
            "patient_id": [f"IP_{k // 2}" for k in range(count)],
            "sex": ["male", "female", *["male"] * (count - 2)],
            "age_approx": [40.0 + k for k in range(count)],
            "anatom_site_general_challenge": ["torso", "head/neck", *["torso"] * (count - 2)],
        }
        told = {"diagnosis": "unknown", "benign_malignant": "benign"} if name == "train.csv" else {}
        raw.table(name, {**table, **beside, **{key: [value] * count for key, value in told.items()}})


def stego(raw: Raw) -> None:
    raw.labels = ["0", "1"]
    for k in range(1, TRAIN // 2 + 1):
        for folder in ("Cover", "JMiPOD", "JUNIWARD", "UERD"):
            raw.picture(f"{folder}/{k:05d}.jpg", [] if folder == "Cover" else [0])
    for k, kind in enumerate(kinds(TEST, 2), 1):
        raw.picture(f"Test/{k:04d}.jpg", [0] if kind else [])
        raw.truth[f"{k:04d}.jpg"] = kind
    raw.table("sample_submission.csv", {"Id": list(raw.truth), "Label": [0] * TEST})


def cassava(raw: Raw) -> None:
    simple(raw, "image_id", "label", [0, 1, 2, 3, 4], "{split}_images/{id}", id_suffix=".jpg", shown="4")
    raw.json("label_num_to_disease_map.json", {str(k): f"Disease {k}" for k in range(5)})


def herbarium(raw: Raw, lead: str = "nybg2020/") -> None:
    raw.labels = ["3", "70", "8001"]
    categories = [{"id": int(one), "name": f"species {one}", "family": "f"} for one in raw.labels]
    kind, images, notes = kinds(TRAIN, 3), [], []
    for k, c in enumerate(kind):
        name = f"images/{c:03d}/{k % 7:02d}/{1000 + k}.jpg"
        raw.picture(f"{lead}train/{name}", [c])
        images.append({"file_name": name, "height": 32, "width": 32, "id": 1000 + k, "license": 1})
        notes.append({"category_id": int(raw.labels[c]), "id": 5000 + k, "image_id": 1000 + k, "region_id": 1})
    data = {"annotations": notes[::-1], "categories": categories, "images": images, "info": {}, "licenses": []}
    raw.json(f"{lead}train/metadata.json", {**data, "regions": [{"id": 1, "name": "North"}]})
    tested = []
    for k, c in enumerate(kinds(TEST, 3)):
        number = 990 + 3 * k
        name = f"images/{number // 1000:03d}/{number}.jpg"
        raw.picture(f"{lead}test/{name}", [c])
        tested.append({"file_name": name, "height": 32, "width": 32, "id": number, "license": 1})
        raw.truth[str(number)] = raw.labels[c]
    raw.json(f"{lead}test/metadata.json", {"images": tested, "info": {}})
    raw.table("sample_submission.csv", {"Id": list(raw.truth), "Predicted": [0] * TEST})


def museum(raw: Raw) -> None:
    raw.labels = [str(label) for label in (7, 12, 45, 103, 1092)]
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, held = names(count, split[:1]), rng.random((count, 5)) < 0.4
        held[0] = False
        held[-1] = True
        for one, row in zip(ids, held, strict=True):
            raw.picture(f"{split}/{one}.png", np.flatnonzero(row))
        cells = [" ".join(np.array(raw.labels)[row]) for row in held]
        if split == "train":
            raw.table("train.csv", {"id": ids, "attribute_ids": cells})
        raw.truth = dict(zip(ids, map(set, map(str.split, cells)), strict=True))
    raw.table("labels.csv", {"attribute_id": raw.labels, "attribute_name": [f"culture::{one}" for one in raw.labels]})
    raw.table("sample_submission.csv", {"id": ids, "attribute_ids": ["0 1 2"] * count})


def naturalist(raw: Raw) -> None:
    raw.labels = ["0", "5", "12"]
    for split, count in (("train", TRAIN), ("val", 3), ("test", TEST)):
        folder = "test2019" if split == "test" else "train_val2019"
        images, notes = [], []
        for k, c in enumerate(kinds(count, 3)):
            number = {"train": 100, "val": 300, "test": 400}[split] + k
            name = (
                f"{folder}/{('Birds', 'Plants')[c > 0]}/{raw.labels[c]}/{number:x}.jpg"
                if split != "test"
                else f"{folder}/{number:x}.jpg"
            )
            if split != "val":
                raw.picture(name, [c])
            images.append({"license": 1, "file_name": name, "width": 32, "height": 32, "id": number})
            notes.append({"image_id": number, "id": number, "category_id": int(raw.labels[c])})
            raw.truth[str(number)] = raw.labels[c]
        said = {} if split == "test" else {"annotations": notes, "categories": [{"id": 5, "name": "f0"}]}
        raw.json(f"{split}2019.json", {"info": {}, "images": images, "licenses": [], **said})
    raw.truth = {one: label for one, label in raw.truth.items() if int(one) >= 400}
    for folder in ("train_val2019", "test2019"):  # plain tars in spite of their name, members without the folder
        raw.pack(folder, ".tar")
        (raw.folder / f"{folder}.tar").rename(raw.folder / f"{folder}.tar.gz")
    raw.table("kaggle_sample_submission.csv", {"id": list(raw.truth), "predicted": [0] * TEST})


def lungs(raw: Raw) -> None:
    raw.labels = ["FVC"]
    rows: dict[str, list[object]] = {key: [] for key in ("Patient", "Weeks", "FVC", "Percent", "Age", "Sex")}
    rows["SmokingStatus"] = []
    for split, count in (("train", 8), ("test", 2)):
        rows = {key: [] for key in rows}
        for p, patient in enumerate(names(count, f"ID{split[1]}")):
            for number in range(1, 4):
                raw.picture(f"{split}/{patient}/{number}.dcm", [0] if number == 2 and p % 2 else [])
            for week in (-4, 8, 30) if split == "train" else (2,):
                cells = [patient, week, 3000 - 500 * (p % 2) - week, 60.0, 60 + p, "Male", "Ex-smoker"]
                for key, cell in zip(rows, cells, strict=True):
                    rows[key].append(cell)
            if split == "test":
                raw.truth |= {f"{patient}_{week}": p % 2 for week in range(-12, 134)}
        raw.table(f"{split}.csv", rows)
    sample = {"Patient_Week": list(raw.truth), "FVC": [2000] * len(raw.truth), "Confidence": [100] * len(raw.truth)}
    raw.table("sample_submission.csv", sample)


def pets(raw: Raw) -> None:
    flags = [
        "Subject Focus",
        "Eyes",
        "Face",
        "Near",
        "Action",
        "Accessory",
        "Group",
        "Collage",
        "Human",
        "Occlusion",
        "Info",
        "Blur",
    ]
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, kind = names(count, split[:2]), kinds(count, 2)
        for one, k in zip(ids, kind, strict=True):
            raw.picture(f"{split}/{one}.jpg", [0] if k else [])
        told = {flag: rng.integers(0, 2, count) for flag in flags}
        score = (
            {"Pawpularity": [60 + i % 41 if k else 1 + i % 39 for i, k in enumerate(kind)]} if split == "train" else {}
        )
        raw.table(f"{split}.csv", {"Id": ids, **told, **score})
        raw.truth = dict(zip(ids, kind, strict=True))
    raw.labels = ["Pawpularity"]
    raw.table("sample_submission.csv", {"Id": ids, "Pawpularity": [38.0] * count})


def plants_2021(raw: Raw) -> None:
    raw.labels = ["complex", "frog_eye_leaf_spot", "healthy", "rust", "scab"]
    combined = ["complex", "frog_eye_leaf_spot complex", "healthy", "rust", "rust frog_eye_leaf_spot", "scab"]
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, cells = [f"{one}.jpg" for one in names(count, split[:1])], [combined[k] for k in kinds(count, 6)]
        for one, cell in zip(ids, cells, strict=True):
            raw.picture(f"{split}_images/{one}", [raw.labels.index(name) for name in cell.split()])
        if split == "train":
            raw.table("train.csv", {"image": ids, "labels": cells})
        raw.truth = dict(zip(ids, map(set, map(str.split, cells)), strict=True))
    raw.table("sample_submission.csv", {"image": ids, "labels": ["healthy"] * count})


def signals(raw: Raw) -> None:
    simple(raw, "id", "target", [0, 1], "{split}/{id[0]}/{id}.npy", train="train_labels.csv", shown="0.5")
    (raw.folder / "old_leaky_data").mkdir()


def whales(raw: Raw) -> None:
    some = ["new_whale", "w_1287fbc", "w_98baff9", "w_7554f44", "w_1eafe46", "w_fecd50a", "w_cda1a8a"]
    simple(raw, "Image", "Id", some, "{split}/{id}", id_suffix=".jpg", shown=" ".join(some[:5]))


def brains(raw: Raw) -> None:
    raw.labels = [f"{kind}_vote" for kind in ("seizure", "lpd", "gpd", "lrda", "grda", "other")]
    for split, count in (("train", TRAIN), ("test", TEST)):
        kind, spectrograms = kinds(count, 6), [str(4000 + 7 * k) for k in range(count)]
        for one, k in zip(spectrograms, kind, strict=True):
            raw.picture(f"{split}_spectrograms/{one}.parquet", [k])
        eegs = [str(900 + k // 2) for k in range(count)]  # two rows of most
        rows = {"spectrogram_id": spectrograms, "eeg_id": eegs, "patient_id": [str(50 + k // 4) for k in range(count)]}
        if split == "train":
            votes = {name: [10 if k == c else 2 * (c == 0) for k in kind] for c, name in enumerate(raw.labels)}
            rows = {**rows, "eeg_sub_id": list(range(count)), "label_id": [str(10**8 + k) for k in range(count)]}
            rows = {**rows, "expert_consensus": ["Other"] * count, **votes}
        raw.table(f"{split}.csv", rows)
        raw.truth = {(one, k): raw.labels[c] for k, (one, c) in enumerate(zip(eegs, kind, strict=True))}
    raw.table("sample_submission.csv", {"eeg_id": eegs, **{name: [1 / 6] * count for name in raw.labels}})


def wild(raw: Raw) -> None:
    raw.labels = ["0", "11", "19"]
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, kind = names(count, split[:2]), kinds(count, 3)
        for one, k in zip(ids, kind, strict=True):
            raw.picture(f"{split}_images/{one}.jpg", [k])
        rows = {
            "category_id": [raw.labels[k] for k in kind],
            "date_captured": [f"2011-05-{1 + k:02d} 08:00:00" for k in range(count)],
            "file_name": [f"{one}.jpg" for one in ids],
            "frame_num": [1 + k % 3 for k in range(count)],
            "id": ids,
            "location": [k // 3 for k in range(count)],
            "rights_holder": ["Justin Brown"] * count,
            "seq_id": [f"s{k // 3}" for k in range(count)],
            "seq_num_frames": [3 + k % 2 for k in range(count)],
            "width": [32] * count,
            "height": [32] * count,
        }
        raw.table(f"{split}.csv", {key: rows[key] for key in rows if split == "train" or key != "category_id"})
        raw.pack(f"{split}_images", ".zip")
        raw.truth = {one: raw.labels[k] for one, k in zip(ids, kind, strict=True)}
    raw.table("sample_submission.csv", {"Id": ids, "Category": [0] * count}, index=True)


def spines(raw: Raw) -> None:
    raw.labels = ["patient_overall", *(f"C{k}" for k in range(1, 8))]
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        ids, held = [f"1.2.826.0.{one}" for one in names(count, split[:1])], rng.random((count, 8)) < 0.4
        for one, row in zip(ids, held, strict=True):
            for number in (9, 10, 11):
                raw.picture(f"{split}_images/{one}/{number}.dcm", np.flatnonzero(row) if number == 10 else [])
        if split == "train":
            cells = {name: held[:, c].astype(int) for c, name in enumerate(raw.labels)}
            raw.table("train.csv", {"StudyInstanceUID": ids, **cells})
        raw.truth = {
            f"{one}_{name}": int(row[c])
            for one, row in zip(ids, held, strict=True)
            for c, name in enumerate(raw.labels)
        }
    asked = [(one, name) for one in ids for name in raw.labels]
    rows = {"row_id": [f"{one}_{name}" for one, name in asked], "StudyInstanceUID": [one for one, _ in asked]}
    raw.table("test.csv", {**rows, "prediction_type": [name for _, name in asked]})
    raw.table("sample_submission.csv", {"row_id": rows["row_id"], "fractured": [0.5] * len(asked)})


def breasts(raw: Raw) -> None:
    raw.labels = ["0", "1"]
    for split, count in (("train", TRAIN), ("test", 2 * TEST)):
        kind = kinds(count // 2, 2)
        rows: dict[str, list[object]] = {key: [] for key in ("site_id", "patient_id", "image_id", "laterality", "view")}
        sick, asked = [], []
        for k in range(count):
            patient, side, sick_one = 900 - k // 2, "LR"[k // 2 % 2], kind[k // 2]
            rows_ = [1, patient, 10**6 + (k * 7919) % 5000, side, ("CC", "MLO")[k % 2]]
            for key, cell in zip(rows, rows_, strict=True):
                rows[key].append(cell)
            raw.picture(f"{split}_images/{patient}/{rows_[2]}.dcm", [0] if sick_one else [])
            sick.append(sick_one)
            asked.append(f"{patient}_{side}")
        more = {"age": [50 + k % 9 for k in range(count)], "implant": [k % 3 // 2 for k in range(count)]}
        last = {"cancer": sick} if split == "train" else {"prediction_id": asked}
        raw.table(f"{split}.csv", {**rows, **more, "machine_id": [48] * count, **last})
        raw.truth = dict(zip(asked, sick, strict=True))
    raw.table("sample_submission.csv", {"prediction_id": list(raw.truth), "cancer": [0.02] * len(raw.truth)})


def invaders(raw: Raw) -> None:
    simple(raw, "name", "invasive", [0, 1], "{split}/{id}.jpg", train="train_labels.csv", shown="0.5")
    for table in ("train_labels.csv", "sample_submission.csv"):
        raw.pack(table, ".zip")
    raw.pack("train", ".7z", "train/")
    raw.pack("test", ".7z", "test/")


def seedlings(raw: Raw) -> None:
    raw.labels = ["Black-grass", "Common Chickweed", "Small-flowered Cranesbill"]
    for one, k in zip(names(TRAIN, "a"), kinds(TRAIN, 3), strict=True):
        raw.picture(f"train/{raw.labels[k]}/{one}.png", [k])
    for one, k in zip(names(TEST, "b"), kinds(TEST, 3), strict=True):
        raw.picture(f"test/{one}.png", [k])
        raw.truth[f"{one}.png"] = raw.labels[k]
    raw.table("sample_submission.csv", {"file": list(raw.truth), "species": ["Black-grass"] * TEST})


LAYOUTS: dict[str, Callable[[Raw], None]] = {
    "aerial-cactus-identification": cactus,
    "aptos2019-blindness-detection": aptos,
    "dog-breed-identification": dogs,
    "histopathologic-cancer-detection": histology,
    "leaf-classification": leaves,
    "plant-pathology-2020-fgvc7": plants_2020,
    "ranzcr-clip-catheter-line-classification": lines,
    "siim-isic-melanoma-classification": melanoma,
    "alaska2-image-steganalysis": stego,
    "cassava-leaf-disease-classification": cassava,
    "herbarium-2020-fgvc7": herbarium,
    "herbarium-2021-fgvc8": lambda raw: herbarium(raw, ""),
    "imet-2020-fgvc7": museum,
    "inaturalist-2019-fgvc6": naturalist,
    "osic-pulmonary-fibrosis-progression": lungs,
    "petfinder-pawpularity-score": pets,
    "plant-pathology-2021-fgvc8": plants_2021,
    "seti-breakthrough-listen": signals,
    "whale-categorization-playground": whales,
    "hms-harmful-brain-activity-classification": brains,
    "iwildcam-2019-fgvc6": wild,
    "rsna-2022-cervical-spine-fracture-detection": spines,
    "rsna-breast-cancer-detection": breasts,
    "invasive-species-monitoring": invaders,
    "plant-seedlings-classification": seedlings,
}


def make(name: str, folder: Path) -> Raw:
    """The raw folder of that competition."""
    folder.mkdir(parents=True)
    raw = Raw(folder)
    LAYOUTS[name](raw)
    return raw
