"""foldwise.dicom against its plain twin: on real files, on made ones of every kind, and on damaged ones."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import reference_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from foldwise import UserError, dicom
from foldwise.core.source import ReadWarning
from foldwise.dicom import DicomError, DicomOptions, decode, parse, render

REPO = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FOLDWISE_SHARED", REPO.parent / "shared")) / "data/dicom"
FILES = sorted(path for path in SHARED.glob("*") if path.suffix != ".csv") if SHARED.is_dir() else []
needs_shared = pytest.mark.skipif(not FILES, reason=f"no DICOM files at {SHARED} (set FOLDWISE_SHARED)")

# Files without an image, and the reason that must be given
REFUSED = {
    "MR_truncated.dcm": "truncated: 8130 of 8192 bytes",
    "1.2.840.10008.1.2.4.55.dcm": "12-bit progressive JPEG needs the GPL plugin",
    "1.2.840.10008.1.2.4.53.dcm": "12-bit progressive JPEG needs the GPL plugin",
}
# 12-bit JPEG that no permissive plugin of pydicom reads: no twin; CT_LOSSY below checks one of them
NO_TWIN = ("CT0012.fragmented_no_bot_jpeg_baseline.51.dcm", "TransferSyntax_1.2.840.10008.1.2.4.51.dcm", "RG2_JPLY.dcm")

# mean of the image to a hundredth, so that twin and reader cannot go wrong together
GOLDEN = {
    "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm": 47.32,
    "JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm": 47.05,
    "OBXXXX1A_rle.dcm": 12.44,
    "OBXXXX1A_expb.dcm": 12.44,
    "JPEG-LL.dcm": 30.84,
    "RG1_J2KI.dcm": 192.17,
    "RG3_J2KI.dcm": 177.5,
    "Fake_MONOHR1.dcm": 94.6,
    "TOSHIBA_J2K_SIZ1_PixRep0.dcm": 54.23,
    "MR_small_bigendian.dcm": 113.07,
    "SC_rgb.dcm": 127.7,
    "liver_rle.dcm": 34.67,
    "liver_j2k.dcm": 34.67,
    "mlut_18.dcm": 128.83,
    "examples_ybr_color.dcm": 10.67,
    "bad_sequence.dcm": 119.12,
}


def short(path: Path) -> str:
    return path.name.split("__")[-1]


# -------------------------------------------------------------------------------------- real files


@needs_shared
@pytest.mark.parametrize("path", FILES, ids=short)
def test_real_file_is_read_like_the_twin_or_refused_with_the_reason(path: Path) -> None:
    refusal = next((reason for name, reason in REFUSED.items() if path.name.endswith(name)), None)
    if refusal and not ("GPL" in refusal and _has_libjpeg()):
        with pytest.raises(DicomError, match=refusal) as caught:
            dicom.read_image(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
        return
    image = dicom.read_image(path)
    assert image.dtype == np.uint8 and image.ndim in (2, 3)
    golden = next((mean for name, mean in GOLDEN.items() if path.name.endswith(name)), None)
    assert golden is None or abs(image.mean() - golden) < 0.006
    if not path.name.endswith(NO_TWIN) and not refusal:
        np.testing.assert_array_equal(image, reference_dicom.read_image(path))


def _has_libjpeg() -> bool:
    return decode._has("libjpeg")


@needs_shared
def test_lossy_12_bit_jpeg_is_near_its_original() -> None:
    (original,) = (path for path in FILES if path.name.endswith("1.2.1.99.dcm"))
    (lossy,) = (path for path in FILES if "CTImage" in path.name and path.name.endswith("4.51.dcm"))
    difference = np.abs(dicom.read_image(original).astype(int) - dicom.read_image(lossy))
    assert difference.mean() < 2.5  # 4 HU under a window of 400


@needs_shared
@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_reduced_decoding_stays_within_its_bound(size: int) -> None:
    checked = 0
    for path in FILES:
        if not any(mark in path.name for mark in ("J2K", "2000", "HTJ2K", "jp2k", "Fake_MONOHR1", "ybr_color")):
            continue
        reduced = dicom.decode_reduced(path, size)
        full = dicom.decode_reduced(path)
        if reduced.shape == full.shape:
            continue
        assert min(reduced.shape[:2]) >= size
        difference = np.abs(dicom.read_image(path, size).astype(int) - dicom.resize(full, size))
        assert difference.mean() <= render.REDUCED_BOUND, (short(path), difference.mean())
        checked += 1
    assert checked or size == 512


def test_radiographs_leave_out_one_wavelet_level_more_than_others(tmp_path: Path) -> None:
    def shape(modality: str) -> tuple[int, ...]:
        values = gradient("u2", 12, (256, 256))
        path = make(tmp_path / f"{modality}.dcm", values, syntax=JPEG2000Lossless, Modality=modality)
        return dicom.decode_reduced(path, 64).shape

    assert [shape("MG"), shape("US"), shape("CT")] == [(64, 64), (128, 128), (256, 256)]


@needs_shared
@pytest.mark.parametrize("path", FILES, ids=short)
def test_header_scan_agrees_with_pydicom(path: Path) -> None:
    view = memoryview(path.read_bytes())
    parsed = parse.scan(view, header_only=True)
    full = parse.parse_with_pydicom(view)
    if parsed is not None:
        found, expected = parse.metadata(parsed, None), parse.metadata(full, None)
        assert found == expected
    whole = parse.scan(view)
    if whole is not None:
        assert bytes(whole.pixels).startswith(bytes(full.pixels))
    fields = dicom.read_header(path)
    assert fields and not {"PatientName", "PatientID", "PatientBirthDate", "PixelData"} & set(fields)


@needs_shared
def test_decoders_write_nothing_to_the_terminal() -> None:
    code = "import sys\nfrom foldwise import dicom\nfor p in sys.argv[1:]:\n"
    code += " try: dicom.read_image(p)\n except dicom.DicomError: pass"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, FILES)],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""


@needs_shared
def test_the_two_lossless_jpeg_decoders_agree() -> None:
    checked = 0
    for path in FILES:
        parsed = parse.parse(path.read_bytes())
        if parsed.syntax == decode.JPEG_LOSSLESS:
            layout = decode.layout_of(parsed, 10**8)
            frame = decode._encapsulated(parsed, layout, 0)
            precision = decode.jpeg_parameters(frame).precision
            fast = decode._dicomsdl(frame, layout, decode.JPEG_LOSSLESS, precision)
            np.testing.assert_array_equal(fast, decode._gdcm_lossless(frame, layout))
            checked += 1
    assert checked == 4


# ---------------------------------------------------------------------------------------- made files


def make(
    path: Path,
    values: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    stored: int | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **elements: object,
) -> Path:
    """A file of (N, H, W) or (H, W) gray, or (..., 3) colour values, by pydicom."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    ds = FileDataset(path, {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=implicit, is_little_endian=little)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta.MediaStorageSOPClassUID, generate_uid(), "OT"
    colour = values.shape[-1] == 3 and photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    shape = values.shape[:-1] if colour else values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        ds.PlanarConfiguration = 0
    if len(shape) == 3:
        ds.NumberOfFrames = shape[0]
    ds.Rows, ds.Columns = shape[-2:]
    bits = values.dtype.itemsize * 8
    ds.BitsAllocated, ds.PixelRepresentation = bits, int(values.dtype.kind == "i")
    ds.BitsStored = stored or bits
    ds.HighBit = ds.BitsStored - 1
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    _add_pixels(ds, values, syntax)
    return save(ds, path)


def _add_pixels(ds: FileDataset, values: np.ndarray, syntax: str) -> None:
    if values.dtype.kind == "f":
        setattr(ds, "FloatPixelData" if values.dtype.itemsize == 4 else "DoubleFloatPixelData", values.tobytes())
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, keyword)
        return
    big = syntax == ExplicitVRBigEndian
    raw = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plugin = "pyjpegls" if syntax == JPEGLSLossless else "pylibjpeg"  # gdcm's RLE encoder aborts on odd sizes
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


def save(ds: FileDataset, path: Path) -> Path:
    syntax = ds.file_meta.TransferSyntaxUID
    ds.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian)
    return path


def gradient(dtype: str, bits: int | None = None, shape: tuple[int, ...] = (37, 41)) -> np.ndarray:
    """Every kind of value that the bits can hold."""
    kind = np.dtype(dtype)
    bits = bits or kind.itemsize * 8
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind.kind == "i" else (0, (1 << bits) - 1)
    rng = np.random.default_rng(bits)
    values = rng.integers(low, high, shape, dtype=np.int64 if bits < 64 else np.uint64, endpoint=True)
    values.flat[0], values.flat[1] = low, high
    return values.astype(kind)


def same_as_twin(path: Path, **options: object) -> np.ndarray:
    image = dicom.read_image(path, options=DicomOptions(**options) if options else None)
    np.testing.assert_array_equal(image, reference_dicom.read_image(path))
    return image


@pytest.mark.smoke
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 10), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)])
def test_gray_of_every_depth(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    values = gradient(dtype, bits)
    path = make(
        tmp_path / "a.dcm",
        values,
        stored=bits,
        syntax=syntax,
        WindowCenter=100,
        WindowWidth=900,
        RescaleSlope=0.5,
        RescaleIntercept=-20,
    )
    same_as_twin(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 16)])
def test_lossless_compression(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    path = make(tmp_path / "a.dcm", gradient(dtype, bits), stored=bits, syntax=syntax, WindowCenter=3, WindowWidth=999)
    same_as_twin(path)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4"])
def test_window_functions(tmp_path: Path, function: str | None, photometric: str, dtype: str) -> None:
    voi = {"VOILUTFunction": function} if function else {}
    path = make(
        tmp_path / "a.dcm",
        gradient(dtype, 8 if dtype == "u1" else 12),
        photometric=photometric,
        stored=8 if dtype == "u1" else 12,
        WindowCenter=[70.5, 0],
        WindowWidth=[300, 10],
        **voi,
    )
    image = same_as_twin(path)
    assert 0 < image.mean() < 255


def test_window_of_one_is_a_threshold_and_a_smaller_one_is_exact(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.uint16).reshape(2, 4)
    path = make(tmp_path / "a.dcm", values, WindowCenter=4, WindowWidth=1)
    assert dicom.read_image(path).tolist() == [[0, 0, 0, 0], [255, 255, 255, 255]]
    path = make(tmp_path / "b.dcm", values, RescaleSlope=0.1, RescaleIntercept=0, WindowCenter=0.35, WindowWidth=0.7)
    assert dicom.read_image(path).tolist() == [[0, 36, 73, 109], [146, 182, 219, 255]]


def test_monochrome1_is_the_negative_of_monochrome2(tmp_path: Path) -> None:
    values = gradient("u2", 12)
    for window in ({}, {"WindowCenter": 700, "WindowWidth": 900}):
        one = dicom.read_image(make(tmp_path / "1.dcm", values, photometric="MONOCHROME1", stored=12, **window))
        two = dicom.read_image(make(tmp_path / "2.dcm", values, stored=12, **window))
        np.testing.assert_array_equal(one, 255 - two)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_float_pixel_data(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (20, 30)).astype(dtype)
    values[0, 0], values[0, 1], values[3, 3] = np.nan, np.inf, -1000
    pad = {"FloatPixelPaddingValue" if dtype == "f4" else "DoubleFloatPixelPaddingValue": -1000.0}
    image = same_as_twin(make(tmp_path / "a.dcm", values, **pad))
    assert image[0, 0] == image[3, 3] == 0
    same_as_twin(make(tmp_path / "b.dcm", values, WindowCenter=1.0, WindowWidth=4.0, **pad))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("elements", [{}, {"PixelPaddingRangeLimit": -1800}, {"WindowCenter": 0, "WindowWidth": 100}])
def test_padding_is_black_and_does_not_count(tmp_path: Path, photometric: str, elements: dict[str, object]) -> None:
    values = gradient("i2", 10)
    values[:9] = -2000
    values[9:12] = -1900
    path = make(tmp_path / "a.dcm", values, photometric=photometric, PixelPaddingValue=-2000, **elements)
    image = same_as_twin(path)
    assert (image[:9] == 0).all()


def test_overlay_bits_are_masked_and_the_sign_is_extended(tmp_path: Path) -> None:
    clean = gradient("u2", 12)
    dirty = clean | (np.arange(clean.size).reshape(clean.shape) % 16 << 12).astype(np.uint16)
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    a = dicom.read_image(make(tmp_path / "a.dcm", clean, stored=12, **window))
    b = dicom.read_image(make(tmp_path / "b.dcm", dirty, stored=12, **window))
    np.testing.assert_array_equal(a, b)
    negative = np.array([[0x0FFF, 0x0001]], np.uint16)  # -1 and 1 in 12 bits, the sign not extended
    path = make(tmp_path / "c.dcm", negative, stored=12, WindowCenter=0.5, WindowWidth=3, PixelRepresentation=1)
    assert dicom.read_image(path).tolist() == [[0, 255]]


@pytest.mark.parametrize(("photometric", "bits"), [("RGB", "u1"), ("RGB", "u2"), ("RGB", "u4"), ("YBR_FULL", "u1")])
@pytest.mark.parametrize("planar", [0, 1])
def test_colour(tmp_path: Path, photometric: str, bits: str, planar: int) -> None:
    values = gradient(bits, shape=(12, 14, 3))
    laid = np.ascontiguousarray(values.transpose(2, 0, 1)) if planar else values
    path = make(tmp_path / "a.dcm", values, photometric=photometric)
    ds = pydicom.dcmread(path)
    ds.PlanarConfiguration, ds.PixelData = planar, laid.tobytes()
    image = same_as_twin(save(ds, path))
    assert image.shape == (12, 14, 3)


@pytest.mark.parametrize("markers", ["jfif", "adobe", "ids", "header", "subsampled"])
@pytest.mark.parametrize("size", [None, 20])
def test_colour_of_jpeg_is_told_by_its_markers_then_by_the_header(
    tmp_path: Path, markers: str, size: int | None
) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    y, x = np.mgrid[0:96, 0:96]
    rgb = np.stack([x * 2, 255 - y * 2, 255 - x - y // 2], axis=-1).astype(np.uint8)
    raw = markers in ("adobe", "ids", "header")  # RGB in the components, not YCbCr
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=97, subsampling=2 if markers == "subsampled" else 0, keep_rgb=raw)
    frame = stream.getvalue()
    segment = frame[20 if frame[2:4] == b"\xff\xe0" else 2 :]
    if markers in ("ids", "header"):  # without the Adobe segment; component ids R, G, B or 1, 2, 3
        if segment[:2] == b"\xff\xee":
            segment = segment[2 + int.from_bytes(segment[2:4], "big") :]
        if markers == "header":
            for sof, name in ((b"\xff\xc0", b"RGB"), (b"\xff\xda", b"RGB")):
                at = segment.index(sof)
                step, start = (3, 10) if sof == b"\xff\xc0" else (2, 5)
                head = bytearray(segment)
                for i in range(3):
                    assert head[at + start + i * step] == name[i]
                    head[at + start + i * step] = i + 1
                segment = bytes(head)
        frame = b"\xff\xd8" + segment
    path = make(tmp_path / "a.dcm", rgb, photometric="RGB" if raw else "YBR_FULL_422")
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    image = dicom.read_image(save(ds, path), size)
    expected = rgb if size is None else dicom.resize(rgb, size)
    assert np.abs(image.astype(int) - expected).mean() < 3


def test_ybr_422_and_partial(tmp_path: Path) -> None:
    full = np.array([[[76, 85, 255], [150, 44, 21]]], np.uint8)  # red and green in YBR_FULL
    image = dicom.read_image(make(tmp_path / "a.dcm", full, photometric="YBR_FULL"))
    assert np.abs(image.astype(int) - [[[255, 0, 0], [0, 255, 0]]]).max() <= 2
    partial = np.array([[[81, 90, 240], [145, 54, 34]]], np.uint8)
    image = dicom.read_image(make(tmp_path / "b.dcm", partial, photometric="YBR_PARTIAL_420"))
    assert np.abs(image.astype(int) - [[[255, 0, 0], [0, 255, 0]]]).max() <= 3
    path = make(tmp_path / "c.dcm", full, photometric="YBR_FULL_422")
    ds = pydicom.dcmread(path)
    ds.PixelData = bytes([76, 76, 85, 255])  # Y Y Cb Cr
    assert np.abs(dicom.read_image(save(ds, path)).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("frames", [1, 3])
def test_one_bit_and_packed_twelve(tmp_path: Path, frames: int) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (frames, 5, 7), dtype=np.uint8)
    path = make(tmp_path / "a.dcm", bits)
    ds = pydicom.dcmread(path)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    save(ds, path)
    for frame in range(frames):
        image = dicom.read_image(path, options=DicomOptions(frame=frame))
        np.testing.assert_array_equal(image, bits[frame] * 255)
    values = rng.integers(0, 4096, (6, 4), dtype=np.uint16)
    path = make(tmp_path / "b.dcm", values)
    ds = pydicom.dcmread(path)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 12, 12, 11
    loose = (values.ravel()[:, None] >> np.arange(12)) & 1
    ds.PixelData = np.packbits(loose.astype(np.uint8).ravel(), bitorder="little").tobytes()
    image = dicom.read_image(save(ds, path), options=DicomOptions(window="full"))
    np.testing.assert_array_equal(image, np.rint(values * (255 / 4095)).astype(np.uint8))


def _lut_item(data: np.ndarray, first: int, bits: int) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first, bits])
    item.add_new("LUTData", "US", data.astype(int).tolist())
    return item


def test_modality_and_voi_luts(tmp_path: Path) -> None:
    values = gradient("u2", 8)
    modality = _lut_item(np.arange(256)[::-1] * 16, 0, 16)
    modality.ModalityLUTType = "US"
    voi = _lut_item(np.sqrt(np.arange(4096)) * 63, 0, 12)
    path = make(tmp_path / "a.dcm", values, ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    same_as_twin(path)
    path = make(tmp_path / "b.dcm", values, VOILUTSequence=[voi], WindowCenter=100, WindowWidth=50)
    same_as_twin(path)
    window = dicom.read_image(path, options=DicomOptions(voi_lut=False))
    np.testing.assert_array_equal(window, dicom.read_image(path, options=DicomOptions(window="file:0")))
    path = make(tmp_path / "c.dcm", values, ModalityLUTSequence=[modality])
    same_as_twin(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path: Path, bits: int) -> None:
    values = gradient("u1", 8)
    rng = np.random.default_rng(2)
    elements: dict[str, object] = {}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [200, 10, bits]
        table = rng.integers(0, 1 << bits, 200).astype(np.uint8 if bits == 8 else np.uint16)
        elements[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    same_as_twin(make(tmp_path / "a.dcm", values, photometric="PALETTE COLOR", **elements))


def test_frames_and_windows_are_chosen(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), level, np.uint8) for level in (0, 50, 100, 250)])
    path = make(tmp_path / "a.dcm", values)
    shown = {
        frame: int(dicom.read_image(path, options=DicomOptions(frame=frame))[0, 0])
        for frame in ("first", "middle", "last", "mean", 1, -1)
    }
    assert shown == {"first": 0, "middle": 100, "last": 250, "mean": 100, 1: 50, -1: 250}
    with pytest.raises(DicomError, match="frame 4 of a file with 4"):
        dicom.read_image(path, options=DicomOptions(frame=4))
    assert dicom.frame_count(path) == 4
    hounsfield = np.linspace(-1000, 2000, 400).astype(np.int16).reshape(20, 20)
    path = make(
        tmp_path / "b.dcm",
        hounsfield,
        Modality="CT",
        RescaleIntercept=0,
        RescaleSlope=1,
        WindowCenter=[40, 400],
        WindowWidth=[80, 1800],
    )
    stack = dicom.read_image(path, options=DicomOptions(window=["brain", "file:1", "-600/1500"]))
    assert stack.shape == (20, 20, 3)
    np.testing.assert_array_equal(stack[..., 0], dicom.read_image(path))
    np.testing.assert_array_equal(stack[..., 1], dicom.read_image(path, options=DicomOptions(window="bone")))
    np.testing.assert_array_equal(stack[..., 2], dicom.read_image(path, options=DicomOptions(window="lung")))
    with pytest.raises(DicomError, match="Hounsfield"):
        make(path, hounsfield, Modality="MR")
        dicom.read_image(path, options=DicomOptions(window="brain"))


def body(size: int = 64) -> np.ndarray:
    """Hounsfield units int16: air around tissue, some bone."""
    y, x = np.mgrid[:size, :size] - size / 2
    rng = np.random.default_rng(0)
    tissue = np.where(np.hypot(x, y) < size / 3, 40, -1000) + rng.normal(0, 15, (size, size))
    tissue[28:36, 28:36] += 900
    return tissue.round().astype(np.int16)


def test_a_named_window_is_not_laid_on_values_that_are_no_hounsfield_units(tmp_path: Path) -> None:
    raw = make(tmp_path / "raw.dcm", (body() + 1024).astype(np.uint16), stored=12, Modality="CT")
    with pytest.warns(ReadWarning, match=r"raw.dcm: window 'brain' is in Hounsfield units.*percentiles"):
        shown = dicom.read_image(raw, options=DicomOptions(window="brain"))
    np.testing.assert_array_equal(shown, dicom.read_image(raw))  # as auto shows it
    assert (shown == 255).mean() < 0.1


def test_wrapped_air_is_told_and_unwrapped(tmp_path: Path) -> None:
    hounsfield = body()
    right = make(tmp_path / "right.dcm", hounsfield, Modality="CT", RescaleIntercept=0, RescaleSlope=1)
    wrapped = make(
        tmp_path / "wrapped.dcm",
        (hounsfield.astype(int) % 4096).astype(np.uint16),
        stored=12,
        Modality="CT",
        RescaleIntercept=0,
        RescaleSlope=1,
    )
    for window in ("soft_tissue", "lung", "percentile"):
        with pytest.warns(ReadWarning, match=r"image: \{unwrap: true\}"):
            white = dicom.read_image(wrapped, options=DicomOptions(window=window))
        assert white[0, 0] > 250
        mended = dicom.read_image(wrapped, options=DicomOptions(window=window, unwrap=True))
        np.testing.assert_array_equal(mended, dicom.read_image(right, options=DicomOptions(window=window)))
    sound = make(
        tmp_path / "sound.dcm",
        (hounsfield + 1024).astype(np.uint16),
        stored=12,
        Modality="CT",
        RescaleIntercept=-1024,
        RescaleSlope=1,
    )
    full = make(tmp_path / "full.dcm", gradient("u2", 12), stored=12, Modality="CT", RescaleIntercept=0, RescaleSlope=1)
    for path in (sound, full):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = dicom.read_image(path, options=DicomOptions(window="bone"))
        np.testing.assert_array_equal(plain, dicom.read_image(path, options=DicomOptions(window="bone", unwrap=True)))


def test_what_other_readers_read_is_read_with_a_warning(tmp_path: Path) -> None:
    values = gradient("u2", 12)
    path = make(tmp_path / "a.dcm", values, stored=12, syntax=JPEGLSLossless)
    expected = dicom.read_image(path)
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff\xf7")
    for lost in (1, 2):  # a byte, or the whole marker; the length of the fragment stays even
        ds = pydicom.dcmread(path)
        frame = pydicom.encaps.get_frame(ds.PixelData, 0)[lost:]
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        with pytest.warns(ReadWarning, match="lacks the first marker"):
            np.testing.assert_array_equal(dicom.read_image(save(ds, tmp_path / "b.dcm")), expected)
    assert start > 0
    short = make(tmp_path / "c.dcm", values, stored=12)
    data = short.read_bytes()
    short.write_bytes(data[:-62])
    with pytest.raises(DicomError, match=r"truncated: \d+ of \d+ bytes; `image: \{truncated: fill\}`"):
        dicom.read_image(short)
    with pytest.warns(ReadWarning, match="filled with zeros"):
        filled = dicom.read_image(short, options=DicomOptions(truncated="fill", window="full"))
    whole = dicom.read_image(make(tmp_path / "d.dcm", values, stored=12), options=DicomOptions(window="full"))
    np.testing.assert_array_equal(filled.ravel()[:-31], whole.ravel()[:-31])
    assert filled.ravel()[-31:].max() == 0
    short.write_bytes(data[: -int(0.6 * 2 * values.size)])
    with pytest.raises(DicomError, match="truncated"):
        dicom.read_image(short, options=DicomOptions(truncated="fill"))


def test_a_damaged_modality_lut(tmp_path: Path) -> None:
    def with_lut(descriptor: list[int], entries: int) -> Path:
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", descriptor)
        item.add_new("LUTData", "OW", (np.arange(entries, dtype="<u2") * 16).tobytes())
        return make(
            tmp_path / "lut.dcm",
            np.arange(256, dtype=np.uint8).reshape(16, 16),
            ModalityLUTSequence=[item],
            WindowCenter=2048,
            WindowWidth=4096,
        )

    sound = dicom.read_image(with_lut([256, 0, 16], 256))
    with pytest.warns(ReadWarning, match="fewer entries than its descriptor says"):
        short = dicom.read_image(with_lut([256, 0, 16], 250))
    np.testing.assert_array_equal(short.ravel()[:250], sound.ravel()[:250])
    assert set(short.ravel()[250:]) == {sound.ravel()[249]}
    with pytest.raises(DicomError, match=r"damaged LUT: its descriptor is \[256, 0\], not three numbers"):
        dicom.read_image(with_lut([256, 0], 256))


def test_functional_groups_hold_a_frame_s_own_window(tmp_path: Path) -> None:
    groups = []
    for center in (100, 200):
        voi = pydicom.Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 100
        group = pydicom.Dataset()
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    rescale = pydicom.Dataset()
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = 10, 2, "US"
    shared = pydicom.Dataset()
    shared.PixelValueTransformationSequence = [rescale]
    values = np.stack([gradient("u2", 8)] * 2)
    path = make(
        tmp_path / "a.dcm", values, PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[shared]
    )
    for frame, center in enumerate((100, 200)):
        expected = make(
            tmp_path / "b.dcm", values[0], RescaleIntercept=10, RescaleSlope=2, WindowCenter=center, WindowWidth=100
        )
        np.testing.assert_array_equal(
            dicom.read_image(path, options=DicomOptions(frame=frame)), dicom.read_image(expected)
        )


def test_percentiles_and_defaults_where_there_is_no_window(tmp_path: Path) -> None:
    same_as_twin(make(tmp_path / "a.dcm", gradient("u2", 14), stored=14, Modality="MG"))
    same_as_twin(
        make(tmp_path / "b.dcm", gradient("i2", 12), stored=12, Modality="CT", RescaleIntercept=-24, RescaleSlope=1)
    )
    constant = np.full((5, 5), 7, np.uint16)
    assert dicom.read_image(make(tmp_path / "c.dcm", constant)).max() == 0
    plain = gradient("u1")
    np.testing.assert_array_equal(dicom.read_image(make(tmp_path / "d.dcm", plain)), plain)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["u1", "u2", "i2", "u4"]), st.data())
def test_any_window_and_rescale_like_the_twin(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, dtype: str, data: st.DataObject
) -> None:
    values = gradient(dtype, shape=(rows, columns)) if rows * columns > 1 else np.zeros((1, 1), dtype)
    numbers = st.integers(-3000, 3000).map(lambda n: n / 4)
    path = make(
        tmp_path_factory.mktemp("any") / "a.dcm",
        values,
        photometric=data.draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        WindowCenter=data.draw(numbers),
        WindowWidth=data.draw(st.integers(2, 90000)),
        VOILUTFunction=data.draw(st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])),
        RescaleSlope=data.draw(st.sampled_from([-1.0, 0.25, 1.0, 3.5])),
        RescaleIntercept=data.draw(numbers),
    )
    image, twin = dicom.read_image(path).astype(int), reference_dicom.read_image(path)
    assert np.abs(image - twin).max() <= 1 and (image != twin).mean() < 0.05  # ties of rounding in float64


# ------------------------------------------------------------------------------------------- resizing


def test_resize_averages_and_does_not_alias() -> None:
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for size in (64, (64, 256), (256, 32), (100, 300)):
        resized = dicom.resize(checks, size)
        assert resized.shape == ((size, size) if isinstance(size, int) else size)
        assert resized.std() < 30 and abs(resized.mean() - 127.5) < 2


# -------------------------------------------------------------------------------------------- headers


@pytest.mark.smoke
def test_header_values_are_typed_and_personal_ones_left_out(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.dcm",
        gradient("u1"),
        PatientName="Doe^Jane",
        PatientID="123",
        PatientBirthDate="19700102",
        PatientAge="018M",
        PatientSex="F",
        PatientAddress="Main St",
        StudyDate="20240131",
        StudyTime="072731.5",
        AcquisitionDateTime="20240131072731.5+0100",
        PixelSpacing=["0.5", "0.25"],
        InstanceNumber="7",
        ReferringPhysicianName="Who",
        ImageType=["DERIVED", "PRIMARY"],
        Manufacturer="ACME ",
        EchoTime="",
        InstitutionName="Sankt Jürgen",
        SpecificCharacterSet="ISO_IR 100",
    )
    ds = pydicom.dcmread(path)
    ds.private_block(0x0011, "SECRET", create=True).add_new(1, "LO", "private")
    fields = dicom.read_header(save(ds, path))
    expected = {
        "PatientAge": 1.5,
        "PatientSex": "F",
        "StudyDate": "2024-01-31",
        "StudyTime": "07:27:31.5",
        "AcquisitionDateTime": "2024-01-31T07:27:31.5+0100",
        "PixelSpacing": [0.5, 0.25],
        "InstanceNumber": 7,
        "ImageType": ["DERIVED", "PRIMARY"],
        "Manufacturer": "ACME",
        "Rows": 37,
        "InstitutionName": "Sankt Jürgen",
    }
    assert {key: fields.get(key) for key in expected} == expected
    assert not {
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientAddress",
        "ReferringPhysicianName",
        "PixelData",
        "EchoTime",
    } & set(fields)
    assert "private" not in fields.values() and "SECRET" not in fields.values()
    assert dicom.read_header(path, ["PatientID", "EchoTime", "PatientAge"]) == {
        "PatientID": "123",
        "EchoTime": None,
        "PatientAge": 1.5,
    }
    with pytest.raises(DicomError, match="'PatientAges' is no DICOM keyword"):
        dicom.read_header(path, ["PatientAges"])


@pytest.mark.parametrize(
    ("text", "years"), [("045Y", 45.0), ("006M", 0.5), ("010D", 0.0274), ("52", 52.0), ("x", None)]
)
def test_age(text: str, years: float | None) -> None:
    assert parse.age(text) == years


# ------------------------------------------------------------------------------- what must be refused


@pytest.mark.smoke
def test_wrong_headers_are_refused_in_one_line(tmp_path: Path) -> None:
    cases = {
        "claims 60000 x 60000 pixels": {"Rows": 60000, "Columns": 60000},
        "truncated": {"Rows": 5000},
        "0 rows": {"Rows": 0},
        "BitsAllocated 24": {"BitsAllocated": 24},
        "RescaleSlope is 0": {"RescaleSlope": 0, "RescaleIntercept": 0},
        "SamplesPerPixel 4": {"SamplesPerPixel": 4},
        "PhotometricInterpretation is missing": {"PhotometricInterpretation": ""},
        "photometric CMYK": {"PhotometricInterpretation": "CMYK"},
        "VOILUTFunction CUBIC": {"VOILUTFunction": "CUBIC", "WindowCenter": 1, "WindowWidth": 9},
    }
    for reason, elements in cases.items():
        path = make(tmp_path / "a.dcm", gradient("u2", 12), **elements)
        with pytest.raises(DicomError, match=reason) as caught:
            dicom.read_image(path)
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_bombs(tmp_path: Path) -> None:
    huge = make(tmp_path / "a.dcm", gradient("u2"), Rows=60000, Columns=60000)
    with pytest.raises(DicomError, match="truncated"):
        dicom.read_image(huge, options=DicomOptions(max_pixels=1 << 40))
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        path = make(tmp_path / "b.dcm", gradient("u2"), syntax=syntax)
        ds = pydicom.dcmread(path)
        ds.Rows = ds.Columns = 9000
        with pytest.raises(DicomError):
            dicom.read_image(save(ds, path))
    with pytest.raises(DicomError, match="grows past"):
        import zlib

        parse.inflate(zlib.compress(bytes(1 << 20))[2:-4], 1 << 16)


def test_no_preamble_no_syntax_and_not_dicom(tmp_path: Path) -> None:
    path = make(tmp_path / "a.dcm", gradient("u2", 12), WindowCenter=9, WindowWidth=99)
    expected = dicom.read_image(path)
    bare = tmp_path / "bare"
    ds = pydicom.dcmread(path)
    del ds.file_meta
    pydicom.dcmwrite(bare, pydicom.Dataset(ds), implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(dicom.read_image(bare), expected)
    wrong = tmp_path / "wrong.dcm"  # explicit VR under the name of implicit VR
    wrong.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))
    np.testing.assert_array_equal(dicom.read_image(wrong), expected)
    for content in (b"", b"hello", bytes(500), b"id,target\n1,0\n" * 50):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DicomError, match="not a DICOM file"):
            dicom.read_image(tmp_path / "x")
    with pytest.raises(DicomError, match="No such file"):
        dicom.read_header(tmp_path / "missing.dcm")


def test_compressed_data_under_an_uncompressed_syntax_is_recognised(tmp_path: Path) -> None:
    path = make(tmp_path / "a.dcm", gradient("u2", 12), syntax=JPEG2000Lossless, WindowCenter=99, WindowWidth=999)
    expected = dicom.read_image(path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.50"))
    np.testing.assert_array_equal(dicom.read_image(path), expected)


def test_truncation_is_never_filled_in(tmp_path: Path) -> None:
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless):
        path = make(tmp_path / "a.dcm", gradient("u2", 12, (200, 200)), stored=12, syntax=syntax)
        data = path.read_bytes()
        for share in (0.3, 0.6, 0.9):
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(DicomError):
                dicom.read_image(path)


# --------------------------------------------------------------------------------------------- fuzzing

FUZZ = """
import collections, random, resource, sys
from pathlib import Path
import cv2
sys.path.insert(0, sys.argv[1])
from foldwise import dicom
cv2.setNumThreads(0)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
first, count, folder = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
files = [(p, p.read_bytes()) for p in map(Path, sys.argv[5:])]
counts, target = collections.Counter(), folder / "case.dcm"
for seed in range(first, first + count):
    rng = random.Random(seed)
    path, data = files[rng.randrange(len(files))]
    data, kind = bytearray(data), rng.randrange(4)
    if kind < 2:
        for _ in range(rng.choice([1, 3, 10, 60])):
            data[rng.randrange(min(len(data), 3000) if kind else len(data))] = rng.randrange(256)
    elif kind == 2:
        del data[rng.randrange(len(data)):]
    else:
        at, size = rng.randrange(len(data)), rng.randrange(1, 400)
        data[at:at + size * rng.randrange(2)] = rng.randbytes(size * rng.randrange(2))
    target.write_bytes(data)
    (folder / "seed").write_text(f"{seed} {path.name}")
    for work in (lambda: dicom.read_image(target, rng.choice([None, 64])), lambda: dicom.read_header(target)):
        try:
            work()
            counts["read"] += 1
        except dicom.DicomError as error:
            assert "\\n" not in str(error)
            counts["refused"] += 1
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the process which started this one
peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
assert peak < 1500, f"{peak} MB"
print(dict(counts), peak, "MB")
"""


def _fuzz(folder: Path, files: list[Path], first: int, count: int, timeout: float) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            FUZZ,
            str(REPO / "src"),
            str(first),
            str(count),
            str(folder),
            *map(str, files),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    seed = (folder / "seed").read_text() if (folder / "seed").exists() else "none"
    assert done.returncode == 0, f"exit {done.returncode} at case {seed}: {done.stderr[-500:]}"


@needs_shared
def test_damaged_real_files_never_crash_or_hang(tmp_path: Path) -> None:
    small = [path for path in FILES if path.stat().st_size < 300_000]
    _fuzz(tmp_path, small, 0, 2500, 120)


def test_damaged_made_files_never_crash_or_hang(tmp_path: Path) -> None:
    rng = random.Random(0)
    files = []
    for number, syntax in enumerate(
        [
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            RLELossless,
            JPEG2000Lossless,
            JPEGLSLossless,
            DeflatedExplicitVRLittleEndian,
        ]
    ):
        files.append(
            make(tmp_path / f"{number}.dcm", gradient(rng.choice(["u1", "u2", "i2"]), shape=(48, 50)), syntax=syntax)
        )
        if syntax != ImplicitVRLittleEndian:
            colour = gradient("u1", shape=(2, 40, 33, 3))
            files.append(make(tmp_path / f"{number}c.dcm", colour, photometric="RGB", syntax=syntax))
    _fuzz(tmp_path, files, 0, 1500, 60)
