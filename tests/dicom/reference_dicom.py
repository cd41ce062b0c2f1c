"""The plain twin of foldwise.dicom: pydicom for pixels and values, float64 for every step, no table, no hurry.

Where pydicom cannot read a file, or reads it wrongly, `stored` says what is done instead, and why.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"


def load(path: Path) -> pydicom.Dataset:
    """The data set, with a transfer syntax where the file names none."""
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        assert little
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    return ds


def stored(ds: pydicom.Dataset) -> np.ndarray:
    """All frames, (N, H, W) or (N, H, W, 3); colour as RGB."""
    syntax, frames = ds.file_meta.TransferSyntaxUID, int(ds.get("NumberOfFrames") or 1)
    if ds.BitsAllocated == 1 and syntax in (DEFLATED_FRAMES, pydicom.uid.RLELossless):
        return _one_bit_frames(ds, frames)  # pydicom 3 knows neither
    values = ds.pixel_array
    if "J2K_SIZ1_PixRep0" in str(ds.filename):
        values = values.view(np.int16)  # signed samples in the codestream, unsigned by the header
    return values if frames > 1 else values[None]


def _one_bit_frames(ds: pydicom.Dataset, frames: int) -> np.ndarray:
    out = []
    for frame in generate_frames(ds.PixelData, number_of_frames=frames):
        packed = zlib.decompress(frame, -15) if ds.file_meta.TransferSyntaxUID == DEFLATED_FRAMES else _unrle(frame)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        out.append(bits[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns))
    return np.stack(out)


def _unrle(frame: bytes) -> bytes:
    """One PackBits segment (PS3.5 G.3.2)."""
    out, position = bytearray(), 64
    while position < len(frame) - 1:
        count = frame[position]
        if count < 128:
            out += frame[position + 1 : position + 2 + count]
            position += 2 + count
        elif count > 128:
            out += frame[position + 1 : position + 2] * (257 - count)
            position += 2
        else:
            position += 1
    return bytes(out)


def read_image(path: Path, frame: int | None = None) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) of one frame (the middle one), windowed as DicomOptions() would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = load(path)
        frames = stored(ds)
        values = frames[len(frames) // 2 if frame is None else frame]
        return render(ds, values)


def render(ds: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """One frame's stored values -> uint8."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        if not ds.original_encoding[1]:
            _swap_palettes(ds)  # pydicom reads big-endian palettes as if they were little-endian
        rgb = apply_color_lut(values, ds)
        return (rgb >> 8).astype(np.uint8) if rgb.dtype.itemsize == 2 else rgb.astype(np.uint8)
    if values.ndim == 3:
        top = float(2 ** int(ds.BitsStored) - 1)
        return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
    shown = np.rint(255.0 * voi(ds, values))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 255.0 - shown
    pad = padding(ds, values)
    return np.where(pad, 0.0, shown).astype(np.uint8)


def _swap_palettes(ds: pydicom.Dataset) -> None:
    for colour in ("Red", "Green", "Blue"):
        element = ds[f"{colour}PaletteColorLookupTableData"]
        element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()


def padding(ds: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        names = ("FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue")
        pads = [ds[name].value for name in names if name in ds]
        return np.isin(values, pads) | ~np.isfinite(values)
    if ds.get("PixelPaddingValue") is None or ds.get("BitsStored") == 1:
        return np.zeros(values.shape, bool)
    low = int(ds.PixelPaddingValue)
    high = int(ds.get("PixelPaddingRangeLimit", low))
    return (values >= min(low, high)) & (values <= max(low, high))


def voi(ds: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Modality and VOI transformations -> 0..1 in float64."""
    groups = _groups(ds)
    real = np.asarray(apply_modality_lut(values, groups), dtype=np.float64)
    if "VOILUTSequence" in groups:
        table = groups.VOILUTSequence[0]
        top = max(2 ** int(table.LUTDescriptor[2]) - 1, max(table.LUTData))
        return apply_voi_lut(real.astype(np.int64), groups).astype(np.float64) / top
    if "WindowWidth" in groups and groups.WindowWidth is not None:
        return window(groups, real)
    if ds.get("BitsStored") == 1:
        return real
    if ds.get("Modality") == "CT" and "RescaleIntercept" in groups:
        return np.clip((real - 39.5) / 399.0 + 0.5, 0.0, 1.0)
    plain = "RescaleSlope" not in groups and "ModalityLUTSequence" not in groups
    if plain and values.dtype.kind == "u" and ds.BitsStored <= 8:
        return real / (2 ** int(ds.BitsStored) - 1)
    kept = real[~padding(ds, values) & np.isfinite(real)]
    low, high = np.percentile(kept, [0.5, 99.5], method="inverted_cdf")
    return np.clip((real - low) / (high - low), 0.0, 1.0) if high > low else (real > low) * 1.0


def _groups(ds: pydicom.Dataset) -> pydicom.Dataset:
    """The data set with the shared functional groups' window and rescale on top."""
    out = pydicom.Dataset()
    out.update(ds)
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        items: Any = ds.get(sequence) or []
        group = items[len(items) // 2] if items else pydicom.Dataset()
        for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            if name in group:
                out.update(group[name].value[0])
    return out


def window(ds: pydicom.Dataset, real: np.ndarray) -> np.ndarray:
    """pydicom's own window function, with an output of 0..1 in place of the stored range."""
    center = ds.WindowCenter[0] if isinstance(ds.WindowCenter, pydicom.multival.MultiValue) else ds.WindowCenter
    width = ds.WindowWidth[0] if isinstance(ds.WindowWidth, pydicom.multival.MultiValue) else ds.WindowWidth
    center, width, function = float(center), float(width), ds.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (real - center) / width))
    if function == "LINEAR_EXACT":
        low, high = center - width / 2.0, center + width / 2.0
        return np.where(real <= low, 0.0, np.where(real > high, 1.0, (real - center) / width + 0.5))
    low, high = center - 0.5 - (width - 1.0) / 2.0, center - 0.5 + (width - 1.0) / 2.0
    inside = (real - (center - 0.5)) / (width - 1.0 or 1.0) + 0.5
    return np.where(real <= low, 0.0, np.where(real > high, 1.0, inside))
