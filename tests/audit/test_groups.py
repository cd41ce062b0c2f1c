"""A group that nobody named is found where the target follows it, and not elsewhere; `group` names it in four ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from foldwise import UserError
from foldwise.audit import groups
from foldwise.data import folds, index
from foldwise.data.competition import Folds, load_competition

PATIENTS, EACH = 60, 4


def rows(seed: int = 0) -> pd.DataFrame:
    """60 patients of 4 images; `sick` belongs to the patient, `luck` to nobody, `old` to the age."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(PATIENTS), EACH)
    age = rng.integers(20, 90, len(patient))
    return pd.DataFrame(
        {
            "id": [f"im{k:04d}" for k in rng.permutation(len(patient))],
            "patient_id": 1000 + 7 * patient,
            "age": age,
            "sick": rng.permutation(np.arange(PATIENTS) < 20)[patient].astype(int),
            "luck": rng.permutation(np.arange(len(patient)) < 80).astype(int),
            "old": (age + rng.normal(0, 6, len(patient)) > 60).astype(int),
        }
    )


def index_of(folder: Path, table: pd.DataFrame, suffix: str = "png", **keys: Any) -> tuple[Any, pd.DataFrame]:
    """The competition of a table with an image a row, and its index."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for name, patient in zip(table["id"], table["patient_id"], strict=True):
        file = raw / f"{name}.{suffix}"
        write_dicom(file, str(patient)) if suffix == "dcm" else cv2.imwrite(str(file), np.full((4, 4, 3), 9, np.uint8))
    table.to_csv(raw / "train.csv", index=False)
    train = {"table": "train.csv", "images": f"{{id}}.{suffix}"}
    given = {"name": "forgot", "root": str(raw), "task": "binary", "metric": "roc_auc", "train": train, **keys}
    path = folder / "forgot.yaml"
    path.write_text(yaml.safe_dump(given))
    competition = load_competition(str(path))
    return competition, index.build_index(competition)


def write_dicom(path: Path, patient: str) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds = pydicom.Dataset()
    ds.file_meta, ds.PatientID = meta, patient
    ds.Rows = ds.Columns = 4
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 7, 1, 0, "MONOCHROME2"
    ds.PixelData = bytes(16)
    ds.save_as(path, enforce_file_format=True)


def test_a_patient_that_nobody_named_is_found_and_refused_until_answered(tmp_path: Path) -> None:
    competition, table = index_of(tmp_path, rows(), target="sick")
    ties = groups.ties(competition, table)
    assert [tie.name for tie in ties] == ["patient_id"] and ties[0].share > 0.95 and ties[0].strong
    with pytest.raises(UserError, match=r"rows of one patient_id .* group: patient_id\? \(`group: none` where"):
        groups.refuse(competition, ties)


@pytest.mark.parametrize("answer", ["none", "patient_id"])
def test_an_answer_is_taken(tmp_path: Path, answer: str) -> None:
    competition, table = index_of(tmp_path, rows(), target="sick", group=answer)
    ties = groups.ties(competition, table)
    assert not ties
    groups.refuse(competition, ties)
    assert folds.assign_folds(competition, table)["group"].nunique() == (PATIENTS if answer == "patient_id" else 240)


@pytest.mark.parametrize("target", ["luck", "old"])
def test_chance_and_a_number_that_predicts_are_no_groups(tmp_path: Path, target: str) -> None:
    competition, table = index_of(tmp_path, rows(), target=target)
    assert not groups.ties(competition, table)


def test_false_alarms_are_rare() -> None:
    truth = np.random.default_rng(1).permutation(240) < 80
    own = pd.Series(range(240))
    for seed in range(40):
        values = pd.Series(np.random.default_rng(seed).integers(0, 60, 240))
        assert groups._tie("x", "", values, own, truth[:, None].astype(float)) is None


def test_a_group_that_holds_a_smaller_one_is_named_and_a_held_one_is_not(tmp_path: Path) -> None:
    table = rows().assign(
        lesion=lambda t: t["patient_id"].astype(str) + "_" + (t.groupby("patient_id").cumcount() // 2).map(str)
    )
    competition, seen = index_of(tmp_path / "lesion", table, target="sick", group="lesion")
    ties = groups.ties(competition, seen)
    assert [tie.name for tie in ties] == ["patient_id"]  # lesions are kept whole, their patients are not
    groups.refuse(competition, ties)  # told, and no reason to stop: groups were named
    competition, seen = index_of(tmp_path / "patient", table, target="sick", group="patient_id")
    assert not groups.ties(competition, seen)


def test_the_start_of_an_id_is_a_group_by_a_pattern(tmp_path: Path) -> None:
    table = rows().assign(id=lambda t: [f"p{p}_{k}" for k, p in enumerate(t["patient_id"])]).drop(columns="patient_id")
    table["patient_id"] = 0
    competition, seen = index_of(tmp_path / "a", table, target="sick")
    tie = groups.ties(competition, seen)[0]
    key, pattern = yaml.safe_load(tie.line).popitem()
    assert (key, tie.values) == ("group_pattern", PATIENTS)
    competition, seen = index_of(tmp_path / "b", table, target="sick", group_pattern=pattern)
    assert seen["group"].nunique() == PATIENTS and not groups.ties(competition, seen)


def test_a_header_field_is_a_group_by_its_keyword(tmp_path: Path) -> None:
    table = rows()
    competition, seen = index_of(tmp_path / "a", table, "dcm", target="luck")
    assert not groups.ties(competition, seen)
    competition, seen = index_of(tmp_path / "b", table, "dcm", target="sick")
    (tmp_path / "b" / "raw" / "train.csv").write_text(table.drop(columns="patient_id").to_csv(index=False))
    assert [tie.line for tie in groups.ties(competition, seen)] == ["group: PatientID"]
    competition, seen = index_of(tmp_path / "c", table, "dcm", target="sick", group="PatientID")
    assert seen["group"].nunique() == PATIENTS and "PatientID" not in seen


def test_blocks_are_stretches_of_a_column_with_groups_whole(tmp_path: Path) -> None:
    table = rows()
    taken = pd.date_range("2020-01-01", periods=len(table)).to_series().sample(frac=1, random_state=0)
    table["taken"] = taken.dt.strftime("%Y-%m-%d").to_numpy()
    keys = {"target": "luck", "folds": {"n": 4, "blocks": "taken"}}
    competition, seen = index_of(tmp_path / "own", table, **keys)
    made = folds.assign_folds(competition, seen).merge(table, on="id").sort_values("taken")
    assert made["fold"].is_monotonic_increasing and made["fold"].value_counts().tolist() == [60] * 4
    table["visit"] = table["taken"].rank().astype(int) // 6
    competition, seen = index_of(tmp_path / "grouped", table, **keys, group="visit")
    made = folds.assign_folds(competition, seen).merge(table, on="id")
    assert made.groupby("visit")["fold"].nunique().max() == 1 and made["fold"].nunique() == 4
    with pytest.raises(UserError, match=r"folds\.blocks: no column 'when'"):
        folds.assign_folds(competition.model_copy(update={"folds": Folds(n=4, blocks="when")}), seen)
