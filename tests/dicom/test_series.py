"""read_series: which slices, in which order, under one window; golden orders of real series; file names say nothing."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from test_dicom import SHARED, needs_shared

from foldwise.core.source import ReadWarning
from foldwise.dicom import DicomError, DicomOptions, read_image, read_series, series

pytestmark = pytest.mark.smoke
REAL = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests"

# folder: names in their order in space (or number), the first distance in mm, what must be said
GOLDEN = {
    "77654033/CT2": ("17106 17136 17166 17196", 202.5, "gaps"),
    "98892001/CT2N": ("6293 6924", np.nan, "an orientation each (ImagePositionPatient): sorted by InstanceNumber"),
    "98892001/CT5N": ("3353 3023 2693 2392 2062", 2.5, ""),
    "98892003/MR700": ("4558 4528 4588 4467 4618 4678 4648", np.nan, "an orientation each"),
    "98892003/MR2": ("4950 5011 4981", np.nan, "more than one series"),
}


def said(*source: object, **options: object) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """read_series's slices and table, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels, table = read_series(*source, **options)
    return pixels, table, [str(one.message) for one in caught if one.category is ReadWarning]


@pytest.mark.parametrize("folder", GOLDEN)
def test_real_series_are_sorted_in_space(folder, tmp_path):
    names, distance, remark = GOLDEN[folder]
    pixels, table, remarks = said(REAL / folder)
    assert [path.name for path in table["path"]] == names.split()
    assert table["spacing"].iloc[0] == pytest.approx(distance, nan_ok=True)
    assert (remark in " ".join(remarks)) and (remark or not remarks)
    files = sorted((REAL / folder).iterdir())
    for k, file in enumerate(np.random.default_rng(1).permutation(files)):  # other names, the same study
        shutil.copyfile(file, tmp_path / f"{k}.dcm")
    again, _, _ = said(tmp_path)
    assert np.array_equal(again, pixels)
    assert np.array_equal(said(list(reversed(files)))[0], pixels)


@needs_shared
@pytest.mark.parametrize(
    ("name", "first", "distance", "slices"),
    [("liver_expb.dcm", -128.69, 1.0, 3), ("rtdose.dcm", -761.87, 5.0, 15), ("emri_small_RLE.dcm", np.nan, np.nan, 10)],
)
def test_frames_of_one_file_are_slices(name, first, distance, slices):
    (file,) = [path for path in SHARED.iterdir() if path.name.endswith(f"__{name}")]
    pixels, table, _ = said([file])
    assert len(pixels) == len(table) == slices and table["frame"].tolist() == list(range(slices))
    assert table["position"].iloc[0] == pytest.approx(first, nan_ok=True)
    assert table["spacing"].iloc[0] == pytest.approx(distance, nan_ok=True)
    assert np.array_equal(said([file], size=8)[0].shape[1:], (8, 8))


# --- made series ----------------------------------------------------------------------------------------------


def slice_file(path: Path, z: float | None, value: int, instance: int | None = None, **tags: object) -> Path:
    """A CT slice of 8 x 6 at z mm, whose Hounsfield units are `value` and a ramp."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[path.name, str(z), str(tags)])
    ds.SeriesInstanceUID, ds.Modality, ds.ImageType = "1.2.3", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.25]
    if z is not None:
        ds.ImagePositionPatient = [0, 0, z]
    if instance is not None:
        ds.InstanceNumber = instance
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 8, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for name, given in tags.items():
        setattr(ds, name, given)
    pixels = np.full((ds.Rows, ds.Columns), 1024 + value) + np.arange(ds.Rows)[:, None]
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def stack(folder: Path, count: int = 5, **tags: object) -> list[Path]:
    """Slices 3 mm apart, brighter upwards, numbered downwards, under names that say nothing."""
    folder.mkdir(exist_ok=True)
    return [slice_file(folder / f"{(7 * k) % count}.dcm", 3.0 * k, 10 * k, count - k, **tags) for k in range(count)]


def test_position_comes_before_number_and_name(tmp_path):
    files = stack(tmp_path)
    pixels, table, remarks = said(tmp_path)
    assert table["path"].tolist() == files and not remarks
    assert table["position"].tolist() == [0, 3, 6, 9, 12] and set(table["spacing"]) == {3.0}
    assert set(table["row_spacing"]) == {0.5} and set(table["column_spacing"]) == {0.25}
    assert (np.diff(pixels.mean(axis=(1, 2))) > 0).all()


@pytest.mark.parametrize(
    ("tags", "remark", "kept"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizers left out", 5),
        ({"SeriesInstanceUID": "1.2.4"}, "more than one series", 5),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "more than one orientation", 5),
        ({"Rows": 4}, "more than one image size", 5),
        ({"AcquisitionNumber": 2, "z": 3.0}, "more than one AcquisitionNumber", 5),
        ({"ImageOrientationPatient": [1, -1e-5, 0, 0, 1, 0], "z": 15.0}, "", 6),
        ({"z": 3.0}, "copies of slices", 5),
        ({"z": 30.0}, "gaps", 6),
    ],
)
def test_what_is_no_part_of_the_stack_is_named_and_left_out(tmp_path, tags, remark, kept):
    given = dict(tags)
    stack(tmp_path, AcquisitionNumber=1)
    slice_file(tmp_path / "other.dcm", given.pop("z", 20.0), 99, 9, **{"AcquisitionNumber": 1, **given})
    pixels, table, remarks = said(tmp_path)
    assert len(pixels) == kept and (any(remark in one for one in remarks) if remark else not remarks), remarks
    assert (table["path"].map(lambda path: path.name) == "other.dcm").sum() == kept - 5


def test_a_place_that_two_acquisitions_share_costs_one_slice(tmp_path):
    """Slabs that meet: all places stay, and each slice a number of its own tells nothing."""
    for k in range(6):
        slice_file(tmp_path / f"a{k}.dcm", float(k), k, k, AcquisitionNumber=1)
    for k in range(5, 10):
        slice_file(tmp_path / f"b{k}.dcm", float(k), k, k, AcquisitionNumber=2)
    pixels, table, _ = said(tmp_path)
    assert table["position"].tolist() == list(range(10)) and table["path"].iloc[5].name == "a5.dcm"
    stack(tmp_path / "one", AcquisitionNumber=1)
    for k, file in enumerate(sorted((tmp_path / "one").iterdir())):
        again = pydicom.dcmread(file)
        again.AcquisitionNumber = k
        again.save_as(file)
    shutil.copyfile(file, tmp_path / "one" / "copy.dcm")
    pixels, _, remarks = said(tmp_path / "one")
    assert len(pixels) == 5 and any("copies" in one for one in remarks)


def test_without_positions_numbers_count_then_names(tmp_path):
    for k in (9, 10, 11):
        slice_file(tmp_path / f"im{k}.dcm", None, k)
    _, table, remarks = said(tmp_path)
    assert [path.name for path in table["path"]] == ["im9.dcm", "im10.dcm", "im11.dcm"] and "file name" in remarks[0]
    for k in (9, 10, 11):
        slice_file(tmp_path / f"im{k}.dcm", None, k, 20 - k)
    _, table, remarks = said(tmp_path)
    assert [path.name for path in table["path"]] == ["im11.dcm", "im10.dcm", "im9.dcm"] and "InstanceNumber" in remarks[
        0
    ]
    assert table["position"].isna().all()


def test_all_slices_are_shown_by_one_window(tmp_path):
    """Windows of their own would make each slice as bright as the others."""
    for k in range(4):
        slice_file(tmp_path / f"{k}.dcm", 2.0 * k, 100 * k, WindowCenter=100 * k, WindowWidth=100)
    pixels, _, _ = said(tmp_path)
    alone = np.stack([read_image(tmp_path / f"{k}.dcm") for k in range(4)])
    assert np.ptp(alone.mean(axis=(1, 2))) < 5 < np.ptp(pixels.mean(axis=(1, 2)))
    assert np.array_equal(pixels[2], alone[2])  # the middle one's window
    three = said(tmp_path, options=DicomOptions(window=["brain", "lung", "bone"]))[0]
    assert three.shape == (4, 8, 6, 3)
    lung = said(tmp_path, options=DicomOptions(window="lung"))[0]
    assert np.array_equal(three[..., 1], lung)


def test_mr_is_scaled_by_percentiles_of_the_volume(tmp_path):
    for k in range(4):
        tags = {"WindowCenter": 5, "WindowWidth": 1, "RescaleIntercept": 0, "Modality": "MR"}
        slice_file(tmp_path / f"{k}.dcm", 2.0 * k, 100 * k, **tags)
    pixels, _, _ = said(tmp_path, options=DicomOptions(percentiles=(0, 100)))
    values = np.stack([pydicom.dcmread(tmp_path / f"{k}.dcm").pixel_array for k in range(4)]).astype(float)[:, ::2, ::2]
    low, high = values.min(), values.max()
    expected = np.rint(255 * (values - low) / (high - low))
    assert np.abs(pixels[:, ::2, ::2] - expected).max() <= 1


def test_a_damaged_slice_is_set_aside_and_nothing_at_all_is_an_error(tmp_path):
    files = stack(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-20])  # its pixels end early
    files[3].write_bytes(b"no DICOM")
    pixels, table, remarks = said(tmp_path)
    assert len(pixels) == 3 and files[1] not in table["path"].tolist()
    assert any("truncated" in one or "can't be read" in one for one in remarks)
    assert any("no DICOM images" in one for one in remarks)
    assert table["spacing"].tolist() == [6.0, 6.0, 6.0]
    with pytest.raises(DicomError, match="not a DICOM"):
        read_series([files[3]])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DicomError, match="no files"):
        read_series(empty)


def test_slices_know_what_they_are_without_pixels(tmp_path):
    stack(tmp_path)
    table = series.slices(sorted(tmp_path.iterdir()))
    assert list(table) == list(series.COLUMNS) and table["instance"].tolist() == [5, 4, 3, 2, 1]
