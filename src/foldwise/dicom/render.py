"""A DICOM file -> an 8-bit image as its makers meant it to be seen, and its header as typed values.

Gray images go through the stages of PS3.3 C.7.6.3 and PS3.4 N.2 in their order: stored values, modality
transformation (C.11.1), VOI transformation (C.11.2), and last the inversion of MONOCHROME1. Up to 16 bits
all of it is one look-up table, so a frame is touched once.

    image = read_image("mammogram.dcm", size=512)          # uint8 (512, 512)
    image = read_image("head.dcm", options=DicomOptions(window=["brain", "subdural", "bone"]))
    fields = read_header("head.dcm")                        # {"PatientAge": 45.0, "Modality": "CT", ...}

The plain twin, on pydicom alone, is tests/reference_dicom.py. Against it, uncompressed and losslessly
compressed images are equal to the bit, except that reduced decoding (a `size` that the wavelet levels of a
JPEG 2000 file or the DCT of a JPEG allow) differs by a mean of at most REDUCED_BOUND gray levels.

Tried and lost: resizing 16-bit values before the window (no faster than the table, and wrong at edges
between clipped tissues), a float window on every pixel (17 times slower), pydicom's own element
conversion for headers (less than half the speed).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from foldwise.core import source
from foldwise.core.schema import Strict
from foldwise.core.source import ReadWarning
from foldwise.dicom.decode import Array, Frame, Layout, decode_frame, layout_of, name_of
from foldwise.dicom.parse import DicomError, Parsed, is_keyword, is_sequence, metadata, parse, parse_with_pydicom, scan

# Customary windows of CT, (center, width) in Hounsfield units
WINDOWS = {
    "brain": (40.0, 80.0),
    "subdural": (80.0, 200.0),
    "stroke": (40.0, 40.0),
    "soft_tissue": (40.0, 400.0),
    "mediastinum": (50.0, 350.0),
    "abdomen": (60.0, 400.0),
    "liver": (60.0, 160.0),
    "spine": (50.0, 250.0),
    "angio": (300.0, 600.0),
    "lung": (-600.0, 1500.0),
    "pulmonary_embolism": (100.0, 700.0),
    "bone": (400.0, 1800.0),
    "temporal_bone": (600.0, 2800.0),
}

# Of projected X-rays: as smooth as the detector blurs them, so that a wavelet level left out costs little
RADIOGRAPHS = ("CR", "DX", "MG", "RG", "PX", "IO")

REDUCED_BOUND = 2.0  # gray levels, mean absolute difference between reduced and full decoding at one size

Percent = Annotated[float, Field(ge=0, le=100)]


class DicomOptions(Strict):
    """How DICOM pixels become 8-bit gray or RGB."""

    window: str | list[str] = Field(
        "auto",
        description="'auto': the file's VOI LUT or window, else the modality's default, else percentiles; 'file:N': "
        "its Nth window (from 0); 'percentile'; 'full': all values that the bits can hold; a CT window by name "
        f"({', '.join(WINDOWS)}); or 'center/width' in modality units. A list of three: one for each channel.",
    )
    voi_lut: bool = Field(True, description="prefer the file's VOI LUT over its window where it has both")
    default_windows: dict[str, str] = Field(
        default={"CT": "soft_tissue"}, description="window for files of a modality that carry none"
    )
    percentiles: tuple[Percent, Percent] = Field(
        (0.5, 99.5), description="values shown black and white where nothing else says; padding does not count"
    )
    frame: int | Literal["first", "middle", "last", "mean"] = Field(
        "middle", description="which frame of a multi-frame file; negative numbers count from the last"
    )
    oversample: float | None = Field(
        None,
        ge=1,
        description="JPEG 2000 is decoded at the smallest scale that is still this many times the target; 1 is 3 "
        "times as fast as 2 and twice as far from the full decode. By default 1 for radiographs "
        f"({', '.join(RADIOGRAPHS)}), 2 for others. CT is always decoded in full.",
    )
    max_pixels: int = Field(100_000_000, gt=0, description="files that claim more pixels a frame are refused")
    unwrap: bool = Field(
        False, description="CT whose negative values came out at the top of an unsigned range: they are negative again"
    )
    truncated: Literal["refuse", "fill"] = Field(
        "refuse", description="uncompressed DICOM that ends before its pixels do: refused, or the rest filled with 0"
    )

    @field_validator("window")
    @classmethod
    def _known_window(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if len(names) not in (1, 3):
            raise ValueError("one window, or three for the channels")
        for name in names:
            _check_window(name)
        return value

    @field_validator("default_windows")
    @classmethod
    def _known_defaults(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            _check_window(name)
        return value

    @field_validator("percentiles")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("the first percentile must be below the second")
        return value


def _check_window(name: str) -> None:
    if name in WINDOWS or name in ("auto", "percentile", "full") or re.fullmatch(r"file:\d+", name):
        return
    center_width = _numbers(name)
    if center_width is None or center_width[1] <= 0:
        from foldwise.core.schema import nearest

        known = [*WINDOWS, "auto", "percentile", "full", "file:0"]
        raise ValueError(f"unknown window '{name}'{nearest(name, known)}, or 'center/width'")


def window_values(name: str) -> tuple[float, float] | None:
    """(center, width) of a window by name or of 'center/width'; None of one that depends on the file."""
    return WINDOWS.get(name) or _numbers(name)


def _numbers(name: str) -> tuple[float, float] | None:
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", name)
    return (float(match[1]), float(match[2])) if match else None


_DEFAULT = DicomOptions()

Size = int | tuple[int, int] | None


# ---------------------------------------------------------------------------------------------- public


def read_image(path: str | Path, size: Size = None, options: DicomOptions | None = None) -> Array:
    """A file's image, uint8, (H, W) for gray and (H, W, 3) RGB for colour or three windows.

    size: None for the native size, S for a squashed S x S, or (H, W). DicomError with the true reason
    where the file cannot be read safely.
    """
    at_least = None if size is None else max((size, size) if isinstance(size, int) else size)
    image = decode_reduced(path, at_least, options)
    return image if size is None else resize(image, size)


def decode_reduced(path: str | Path, at_least: int | None = None, options: DicomOptions | None = None) -> Array:
    """The image at its native size or, where `at_least` and the codestream allow, at a half, a quarter, ...
    of it, its shorter side never below `at_least` (unless it was before)."""
    options = options or _DEFAULT
    return guarded(path, lambda data: _render(parse(data), options, at_least))


def decode_frames(
    path: Path, frames: Sequence[int], at_least: int | None = None, options: DicomOptions | None = None
) -> list[Array]:
    """Some frames of one file as `decode_reduced` gives them; the file is read once."""
    options = options or _DEFAULT

    def work(data: memoryview) -> list[Array]:
        parsed = parse(data)
        layout = layout_of(parsed, options.max_pixels)
        places = [_frame_index(frame, layout.frames) for frame in frames]
        return [_render_frame(parsed, layout, place, options, at_least) for place in places]

    return guarded(path, work)


def modality_values(path: Path, frames: Sequence[int], options: DicomOptions | None = None) -> list[Array]:
    """float64 values of every second pixel of frames after the modality transformation (C.11.1); padding is NaN."""
    options = options or _DEFAULT

    def work(data: memoryview) -> list[Array]:
        parsed = parse(data)
        layout = layout_of(parsed, options.max_pixels)
        return [_modality_values(parsed, layout, _frame_index(frame, layout.frames)) for frame in frames]

    return guarded(path, work)


def _modality_values(parsed: Parsed, layout: Layout, index: int) -> Array:
    frame = decode_frame(parsed, layout, index)
    if frame.layout.samples > 1 or frame.layout.photometric == "PALETTE COLOR":
        return np.zeros(0)
    stored = _numbers_of(frame)[::2, ::2].astype(np.float64)
    scope = [*_functional_groups(parsed, index), parsed]
    padding = _padding(stored, scope, layout)
    values = _modality(stored, scope)
    return values if padding is None else np.where(padding, np.nan, values)


WITHOUT_UNIT = ("MR", "PT", "NM")  # what a value means differs by scanner, sequence and even file


def series_window(path: Path, frame: int, window: str, options: DicomOptions) -> str:
    """What one window of the options means for the whole series that a frame is of: another window, by its values."""

    def work(data: memoryview) -> str:
        parsed = parse(data)
        layout = layout_of(parsed, options.max_pixels)
        scope = [*_functional_groups(parsed, _frame_index(frame, layout.frames)), parsed]
        named = _auto_window(scope, layout, options) if window == "auto" else _named_window(window, scope)
        if window == "auto" and named != "full" and parsed.first("Modality") in WITHOUT_UNIT:
            return "percentile"
        known = _file_windows(scope)
        place = int(named[5:]) if named.startswith("file:") else len(known)
        if place < len(known) and known[place][2] in ("", "LINEAR"):
            return f"{known[place][0]:.6f}/{known[place][1]:.6f}"
        return "auto" if named == "lut" else named

    return guarded(path, work)


def read_header(path: str | Path, tags: Iterable[str] | None = None) -> dict[str, Any]:
    """Header fields by keyword as plain Python values, never pixels.

    AS in years, DA/TM/DT as ISO 8601 text, DS/IS and binary numbers as numbers, several values as a list.
    `tags`: exactly these keywords, None where absent; by default all public ones except names, other
    personal fields (PS3.15 basic profile; see tags.PERSONAL), sequences and bulk data.
    """
    wanted = None if tags is None else list(tags)
    return guarded(path, lambda data: _header(data, wanted, path), read=_head)


def frame_count(path: str | Path) -> int:
    """NumberOfFrames, 1 where the header does not say."""
    fields = read_header(path, ["NumberOfFrames"])
    return max(1, int(fields["NumberOfFrames"] or 1))


def is_dicom(head: bytes, suffix: str = "") -> bool:
    """By a file's first 132 bytes and suffix: the DICM mark (PS3.10 7.1), or a data set without one."""
    if head[128:132] == b"DICM":
        return True
    return suffix.lower() in (".dcm", ".dicom", ".ima") or (
        bytes(head[:2]) in (b"\x08\x00", b"\x02\x00")
        and (head[2:4] in (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x10\x00"))
    )


def whole(path: Path) -> memoryview:
    """All bytes of a file or member."""
    return memoryview(source.read(path))


def guarded(path: str | Path, work: Callable[[memoryview], Any], read: Callable[[Path], memoryview] = whole) -> Any:
    """`work` on the file's bytes; whatever goes wrong becomes one DicomError line that names the file."""
    try:
        data = read(Path(path))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ReadWarning)
            result = work(data)
        for text in dict.fromkeys(str(one.message) for one in caught if one.category is ReadWarning):
            warnings.warn(f"{path}: {text}", ReadWarning, stacklevel=4)
        return result
    except DicomError as error:
        raise DicomError(f"{path}: {error}") from None
    except OSError as error:
        raise DicomError(f"{path}: {error.strerror or error}") from None
    except MemoryError:
        raise DicomError(f"{path}: needs more memory than there is") from None
    except Exception as error:  # a damaged header can break pydicom anywhere
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DicomError(f"{path}: damaged DICOM file ({reason})") from None


HEAD = 1 << 16  # bytes that hold the header of nearly every file


def _head(path: Path) -> memoryview:
    return memoryview(source.head(path, HEAD)[0])


def _header(head: memoryview, tags: list[str] | None, path: str | Path) -> dict[str, Any]:
    """Fields from a file's first bytes, from all of it where these do not reach the pixel data."""
    for keyword in tags or ():
        if not is_keyword(keyword):
            raise DicomError(f"'{keyword}' is no DICOM keyword")
    sequences = any(is_sequence(keyword) for keyword in tags or ())
    parsed = None if sequences else scan(head, header_only=True)
    if parsed is None or (len(head) == HEAD and not parsed.pixel_tag):
        parsed = parse_with_pydicom(whole(Path(path)), header_only=True)
    return metadata(parsed, tags)


# ------------------------------------------------------------------------------------------- rendering


def _render(parsed: Parsed, options: DicomOptions, at_least: int | None) -> Array:
    layout = layout_of(parsed, options.max_pixels)
    if options.frame == "mean" and layout.frames > 1:
        return _mean_frame(parsed, layout, options, at_least)
    index = _frame_index(options.frame, layout.frames)
    return _render_frame(parsed, layout, index, options, at_least)


def _frame_index(choice: int | str, frames: int) -> int:
    named = {"first": 0, "middle": frames // 2, "last": frames - 1, "mean": 0}
    index = named[choice] if isinstance(choice, str) else choice
    if not -frames <= index < frames:
        raise DicomError(f"frame {choice} of a file with {frames}")
    return index % frames


def _mean_frame(parsed: Parsed, layout: Layout, options: DicomOptions, at_least: int | None) -> Array:
    """The mean of all rendered frames, one in memory at a time."""
    total = _render_frame(parsed, layout, 0, options, at_least).astype(np.float32)
    for index in range(1, layout.frames):
        total += _render_frame(parsed, layout, index, options, at_least)
    return np.rint(total / layout.frames).astype(np.uint8)


def _render_frame(parsed: Parsed, layout: Layout, index: int, options: DicomOptions, at_least: int | None) -> Array:
    modality = parsed.first("Modality")
    if modality == "CT":
        at_least = None  # air, tissue and bone side by side under a narrow window: averages must come after it
    oversample = options.oversample or (1.0 if modality in RADIOGRAPHS else 2.0)
    frame = decode_frame(parsed, layout, index, at_least, oversample, options.truncated == "fill")
    if frame.layout.photometric == "PALETTE COLOR":
        return _palette(frame, parsed)
    if frame.layout.samples == 3:
        return _colour(frame)
    scope = [*_functional_groups(parsed, index), parsed]
    windows = [options.window] if isinstance(options.window, str) else options.window
    channels = [_gray(frame, scope, window, options) for window in windows]
    return channels[0] if len(channels) == 1 else np.dstack(channels)


def _functional_groups(parsed: Parsed, index: int) -> list[Parsed]:
    """The macros that hold this frame's own transformations (PS3.3 C.7.6.16.2.9, C.7.6.16.2.10), its own
    before the shared ones."""
    per_frame = parsed.items("PerFrameFunctionalGroupsSequence")
    groups = per_frame[index : index + 1] + parsed.items("SharedFunctionalGroupsSequence")[:1]
    names = ("FrameVOILUTSequence", "PixelValueTransformationSequence")
    return [item for group in groups for name in names for item in group.items(name)[:1]]


def _look(scope: list[Parsed], keyword: str) -> Parsed | None:
    """The innermost data set that holds a keyword with a value."""
    return next((one for one in scope if one.get(keyword) is not None), None)


# ------------------------------------------------------------------------------------------------ gray


def _gray(frame: Frame, scope: list[Parsed], window: str, options: DicomOptions) -> Array:
    """Stored values through modality LUT, VOI LUT and inversion: by a table up to 16 bits, else in float."""
    layout, values = frame.layout, frame.values
    window = _auto_window(scope, layout, options) if window == "auto" else _named_window(window, scope)
    if layout.kind == "float" or values.dtype.itemsize > 2:
        real = values.astype(np.float64) if layout.kind == "float" else numeric(values, layout).astype(np.float64)
        return _shade(real, real, None, layout, scope, window, options)
    wrapped = _is_wrapped(frame, scope)
    key = None if wrapped else _table_key(layout, values.dtype, scope, window)
    if key in _TABLES:
        return look_up(values, _TABLES[key])
    counts = histogram(values) if window == "percentile" else None
    # Containers that differ in bits outside the stored ones mean the same number: they share table entries
    low = layout.high + 1 - layout.stored
    distinct = 8 * values.dtype.itemsize if counts is not None else layout.high + 1
    container = np.arange(0, 1 << distinct, 1 << low if counts is None else 1, dtype=values.dtype)
    stored = numeric(container, layout).astype(np.float64)
    real = _unwrapped(stored, layout, options) if wrapped else stored
    table = _shade(real, stored, counts, layout, scope, window, options)
    if counts is None:
        table = np.tile(np.repeat(table, 1 << low), 1 << (8 * values.dtype.itemsize - distinct))
    if key is not None:
        if len(_TABLES) > 8:
            _TABLES.clear()
        _TABLES[key] = table
    return look_up(values, table)


_TABLES: dict[
    tuple[Any, ...] | None, Array
] = {}  # of a series, one a window: making one takes as long as looking pixels up in it


def _table_key(layout: Layout, dtype: np.dtype[Any], scope: list[Parsed], window: str) -> tuple[Any, ...] | None:
    """All that a table depends on; None where that is more than a few numbers."""
    if window in ("lut", "percentile") or any(one.items("ModalityLUTSequence") for one in scope):
        return None
    named = _file_windows(scope) if window.startswith("file:") else None
    padding = [scope[-1].number(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    return layout, dtype.str, window, str(named), rescale(scope), *padding


def numeric(values: Array, layout: Layout) -> Array:
    """Containers -> numbers: the stored bits alone (others may hold overlays, PS3.5 8.1.1), sign extended."""
    width = 8 * values.dtype.itemsize
    up, down = width - 1 - layout.high, width - layout.stored
    kind = "i" if layout.signed else "u"
    if not up and not down:
        return values.view(f"{kind}{values.dtype.itemsize}")
    shifted = values << up
    shifted = shifted.view(f"{kind}{values.dtype.itemsize}")
    return shifted >> down if down else shifted


def histogram(values: Array) -> Array:
    """How often each container value occurs, by cv2 (5 times faster than bincount)."""
    import cv2

    bins = 1 << 8 * values.dtype.itemsize
    image = np.ascontiguousarray(values)
    return cv2.calcHist([image], [0], None, [bins], [0, bins]).ravel().astype(np.int64)


def look_up(values: Array, table: Array) -> Array:
    """table[values]; cv2 takes 16-bit indices since 4.12, 4 times faster than numpy."""
    import cv2

    try:
        return cv2.LUT(np.ascontiguousarray(values), table.reshape(1, -1))
    except cv2.error:
        return table[values]


def _shade(
    real: Array,
    stored: Array,
    counts: Array | None,
    layout: Layout,
    scope: list[Parsed],
    window: str,
    options: DicomOptions,
) -> Array:
    """Stored numbers -> uint8. `counts` says how often each occurs where `stored` is a table's index."""
    padding = _padding(stored, scope, layout)
    modality = _modality(real, scope)
    shown = np.rint(255.0 * _voi(modality, padding, counts, layout, scope, window, options))
    if layout.photometric == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2: the lowest value is white, after VOI
        shown = 255.0 - shown
    if padding is not None:
        shown[padding] = 0.0  # background, whatever its value would look like (PS3.3 C.7.5.1.1.2)
    return shown.astype(np.uint8)


_ROOM = 2048  # values at the top of an unsigned range that may be negative ones: -2000 is a scanner's padding


def _is_wrapped(frame: Frame, scope: list[Parsed]) -> bool:
    """Whether a CT's negative values came out at the top of an unsigned range, -1000 as 3096 of 12 bits: without an
    intercept that makes room for them, two humps of values, and hardly any in between."""
    layout = frame.layout
    if scope[-1].first("Modality") != "CT" or layout.signed or layout.stored < 12 or rescale(scope)[1] <= -100:
        return False
    numbers = numeric(np.arange(1 << 8 * frame.values.dtype.itemsize, dtype=frame.values.dtype), layout)
    counts = np.bincount(numbers, weights=histogram(frame.values), minlength=1 << layout.stored)
    top = len(counts)
    humps = counts[: top - _ROOM].sum(), counts[top - 1200 :].sum()
    return min(humps) > 0.05 * counts.sum() and counts[top - 1900 : top - 1200].sum() < 0.01 * counts.sum()


def _unwrapped(stored: Array, layout: Layout, options: DicomOptions) -> Array:
    if not options.unwrap:
        warnings.warn(
            "its air seems to have wrapped round to the top of the range; `image: {unwrap: true}` mends it", ReadWarning
        )
        return stored
    span = 1 << layout.stored
    return np.where(stored >= span - _ROOM, stored - span, stored)


def _padding(stored: Array, scope: list[Parsed], layout: Layout) -> Array | None:
    """Where stored values are padding: one value, or all from it to the range limit; NaN always is."""
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    if layout.kind == "float":
        prefix = "Float" if layout.allocated == 32 else "DoubleFloat"
        names = (f"{prefix}PixelPaddingValue", f"{prefix}PixelPaddingRangeLimit")
    value, limit = (scope[-1].number(name) for name in names)
    bad = ~np.isfinite(stored) if layout.kind == "float" else None
    if value is None or layout.stored == 1:
        return bad if bad is not None and bad.any() else None
    value = _in_range(value, layout)
    limit = value if limit is None else _in_range(limit, layout)
    inside = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return inside if bad is None else inside | bad


def _in_range(value: float, layout: Layout) -> float:
    """A padding value that was written with the other sign's VR, as the number it stands for."""
    if layout.kind == "float":
        return value
    span = 1 << layout.allocated
    if layout.signed and value >= span // 2:
        return value - span
    return value + span if not layout.signed and value < 0 else value


def _modality(stored: Array, scope: list[Parsed]) -> Array:
    """PS3.3 C.11.1: a LUT, or slope and intercept."""
    holder = next((one for one in scope if one.items("ModalityLUTSequence")), None)
    if holder is not None:
        table, first, _ = _lut(holder.items("ModalityLUTSequence")[0], holder)
        return table[np.clip(stored - first, 0, len(table) - 1).astype(np.int64)]
    slope, intercept = rescale(scope)
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def rescale(scope: list[Parsed]) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept, (1, 0) where there are none; DicomError for a slope of 0."""
    holder = _look(scope, "RescaleSlope") or _look(scope, "RescaleIntercept")
    if holder is None:
        return 1.0, 0.0
    slope = float(holder.number("RescaleSlope", 1.0))
    if slope == 0.0:
        raise DicomError("RescaleSlope is 0: all values would be one")
    return slope, float(holder.number("RescaleIntercept", 0.0))


def _lut(item: Parsed, owner: Parsed) -> tuple[Array, int, float]:
    """A LUT's entries as float64, the first value that it maps, and its highest output (PS3.3 C.11.1.1.1)."""
    descriptor = item.get("LUTDescriptor")
    if isinstance(descriptor, bytes) and len(descriptor) == 6:  # written without its VR
        descriptor = np.frombuffer(descriptor, "<u2" if item.little else ">u2").tolist()
    if not isinstance(descriptor, list) or len(descriptor) != 3:
        raise DicomError(f"damaged LUT: its descriptor is {descriptor}, not three numbers")
    entries, first, bits = (int(value) for value in descriptor)
    entries = entries % 65536 or 65536  # read as SS, 65536 may be 0 and 40000 negative
    signed = owner.first("PixelRepresentation", 0) == 1
    first = first - 65536 if signed and first > 32767 else first
    data = _lut_data(item, entries, item.little)
    if not len(data):
        raise DicomError("damaged LUT: it has no entries")
    if len(data) < entries:
        warnings.warn("a LUT has fewer entries than its descriptor says: the last stands for the others", ReadWarning)
    top = (1 << bits) - 1 if 0 < bits <= 16 else 65535
    return data[:entries].astype(np.float64), first, float(max(top, data[:entries].max()))


def _lut_data(item: Parsed, entries: int, little: bool) -> Array:
    """LUTData (US or OW): one word each, or two 8-bit entries a word where so few bytes are there."""
    value = item.get("LUTData")
    if isinstance(value, bytes):
        if len(value) <= entries + 1:
            return np.frombuffer(value, np.uint8)
        return np.frombuffer(value[: len(value) & ~1], "<u2" if little else ">u2")
    data = np.atleast_1d(np.asarray(value if value is not None else [], dtype=np.int64)) & 0xFFFF
    return data


# -------------------------------------------------------------------------------------------- VOI


def _auto_window(scope: list[Parsed], layout: Layout, options: DicomOptions) -> str:
    """What 'auto' means for this file: 'lut', 'file:0', 'full', a modality's default, or 'percentile'."""
    if options.voi_lut and any(one.items("VOILUTSequence") for one in scope):
        return "lut"
    if _file_windows(scope):
        return "file:0"
    if any(one.items("VOILUTSequence") for one in scope):
        return "lut"
    if layout.stored == 1:
        return "full"
    modality = str(scope[-1].first("Modality", ""))
    if modality in options.default_windows and (modality != "CT" or _is_hounsfield(scope)):
        return options.default_windows[modality]
    unscaled = rescale(scope) == (1.0, 0.0) and not any(one.items("ModalityLUTSequence") for one in scope)
    if layout.kind == "int" and layout.stored <= 8 and not layout.signed and unscaled:
        return "full"  # 8-bit values without a window are made for the screen: they are shown as they are
    return "percentile"


def _is_hounsfield(scope: list[Parsed]) -> bool:
    """Whether modality values can be HU: a CT without rescale (a localizer by hand, a phantom) is not."""
    holder = _look(scope, "RescaleIntercept")
    kind = holder.first("RescaleType", "HU") if holder else ""
    return str(kind).upper() in ("HU", "US", "") and holder is not None


def _file_windows(scope: list[Parsed]) -> list[tuple[float, float, str]]:
    """(center, width, function) of each usable window of the file (PS3.3 C.11.2.1.2)."""
    holder = _look(scope, "WindowCenter")
    if holder is None:
        return []
    centers, widths = _as_list(holder.get("WindowCenter")), _as_list(holder.get("WindowWidth"))
    function = str(holder.first("VOILUTFunction", "LINEAR")).upper()
    return [
        (float(center), float(width), function)
        for center, width in zip(centers, widths, strict=False)
        if isinstance(center, (int, float)) and isinstance(width, (int, float)) and width > 0
    ]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _voi(
    modality: Array,
    padding: Array | None,
    counts: Array | None,
    layout: Layout,
    scope: list[Parsed],
    window: str,
    options: DicomOptions,
) -> Array:
    """Modality values -> 0..1 (PS3.3 C.11.2)."""
    if window == "lut":
        return _voi_lut(modality, scope)
    if window.startswith("file:"):
        windows, index = _file_windows(scope), int(window[5:])
        if index >= len(windows):
            raise DicomError(f"window {window} of a file with {len(windows)} windows")
        return apply_window(modality, *windows[index])
    if window == "full":
        low, high = _full_range(layout, scope)
        return _ramp(modality, low, high)
    if window == "percentile":
        return _ramp(modality, *_percentiles(modality, padding, counts, options.percentiles))
    center, width = window_values(window) or (0.0, 1.0)
    return apply_window(modality, center, width, "LINEAR")


def _named_window(name: str, scope: list[Parsed]) -> str:
    """The window, or 'percentile' for a window in Hounsfield units where values are none."""
    if name not in WINDOWS:
        return name
    modality = str(scope[-1].first("Modality", "CT"))
    if modality not in ("CT", "PT", "OT", "SC"):
        raise DicomError(f"window '{name}' is in Hounsfield units, and the modality is {modality}")
    if _is_hounsfield(scope):
        return name
    warnings.warn(
        f"window '{name}' is in Hounsfield units, and no rescale makes its values that: shown by percentiles",
        ReadWarning,
    )
    return "percentile"


def apply_window(values: Array, center: float, width: float, function: str) -> Array:
    """PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT), C.11.2.1.3.1 (SIGMOID) -> 0..1.

    A LINEAR width below 1 is not allowed by the standard; it is met where values are small after a rescale,
    and can only mean LINEAR_EXACT. A LINEAR width of 1 is a threshold.
    """
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0))))
    if function == "LINEAR_EXACT" or width < 1.0:
        return _ramp(values, center - width / 2.0, center + width / 2.0)
    if function not in ("LINEAR", ""):
        raise DicomError(f"VOILUTFunction {function} is unknown")
    if width == 1.0:
        return np.where(values > center - 0.5, 1.0, 0.0)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _ramp(values: Array, low: float, high: float) -> Array:
    if high <= low:  # one value only: black, and what lies above it white
        return np.where(values > low, 1.0, 0.0)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _voi_lut(modality: Array, scope: list[Parsed]) -> Array:
    """PS3.3 C.11.2.1.1: values outside the table take its first or last entry."""
    item = next(one for one in scope if one.items("VOILUTSequence"))
    table, first, top = _lut(item.items("VOILUTSequence")[0], scope[-1])
    return table[np.clip(np.nan_to_num(modality) - first, 0, len(table) - 1).astype(np.int64)] / top


def _full_range(layout: Layout, scope: list[Parsed]) -> tuple[float, float]:
    """What the stored bits can hold, in modality values."""
    if layout.kind == "float":
        raise DicomError("window 'full' has no meaning for float pixel data")
    low = -(1 << (layout.stored - 1)) if layout.signed else 0
    ends = _modality(np.array([low, low + (1 << layout.stored) - 1], dtype=np.float64), scope)
    return float(ends.min()), float(ends.max())


def _percentiles(
    modality: Array, padding: Array | None, counts: Array | None, percents: tuple[float, float]
) -> tuple[float, float]:
    """The values below which these shares of the pixels lie, padding left out (nearest rank)."""
    keep = np.isfinite(modality) if padding is None else np.isfinite(modality) & ~padding
    if counts is None:
        kept = modality[keep]
        if not kept.size:
            return 0.0, 0.0
        low, high = np.percentile(kept, percents, method="inverted_cdf")
        return float(low), float(high)
    keep &= counts > 0
    if not keep.any():
        return 0.0, 0.0
    order = np.argsort(modality[keep], kind="stable")
    sorted_values, cumulated = modality[keep][order], np.cumsum(counts[keep][order])
    ranks = np.maximum(1, np.ceil(np.array(percents) / 100.0 * cumulated[-1]))
    low, high = sorted_values[np.searchsorted(cumulated, ranks)]
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------- colour


def _colour(frame: Frame) -> Array:
    """Three samples a pixel -> uint8 RGB (PS3.3 C.7.6.3.1.2)."""
    layout, values = frame.layout, frame.values
    if layout.kind == "float":
        raise DicomError("float pixel data in colour")
    if layout.signed:
        raise DicomError("signed samples in colour")
    values = numeric(values, layout)
    if layout.stored != 8 or values.dtype.itemsize != 1:
        values = np.rint(values * (255.0 / ((1 << layout.stored) - 1))).astype(np.uint8)
    if layout.photometric != "RGB":
        return ybr_to_rgb(values, layout.photometric)
    return values if values.flags.writeable else values.copy()  # never a view into the file's bytes


def ybr_to_rgb(values: Array, photometric: str) -> Array:
    """YBR_FULL: ITU-R BT.601 over 0..255; YBR_PARTIAL: luma in 16..235, chroma in 16..240."""
    if photometric in ("YBR_ICT", "YBR_RCT"):  # PS3.3 C.7.6.3.1.2: only inside JPEG 2000
        raise DicomError(f"{photometric} outside JPEG 2000 is not allowed")
    y, cb, cr = (values[..., i].astype(np.float32) for i in range(3))
    if photometric.startswith("YBR_PARTIAL"):
        y, cb, cr = (y - 16) * (255 / 219), (cb - 128) * (255 / 224), (cr - 128) * (255 / 224)
    else:
        cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _palette(frame: Frame, parsed: Parsed) -> Array:
    """PALETTE COLOR -> RGB by the three tables of PS3.3 C.7.9, segmented ones (C.7.9.2) expanded."""
    layout = frame.layout
    if frame.values.dtype.itemsize > 2:
        raise DicomError(f"PALETTE COLOR with {layout.allocated} bits allocated")
    stored = numeric(np.arange(1 << 8 * frame.values.dtype.itemsize, dtype=frame.values.dtype), layout)
    tables = [_palette_table(parsed, colour, stored.astype(np.int64)) for colour in ("Red", "Green", "Blue")]
    return np.dstack([look_up(frame.values, table) for table in tables])


def _palette_table(parsed: Parsed, colour: str, stored: Array) -> Array:
    descriptor = parsed.get(f"{colour}PaletteColorLookupTableDescriptor")
    if not isinstance(descriptor, list) or len(descriptor) != 3:
        raise DicomError(f"PALETTE COLOR without a {colour.lower()} palette")
    entries, first, bits = int(descriptor[0]) % 65536 or 65536, int(descriptor[1]), int(descriptor[2])
    data = parsed.get(f"{colour}PaletteColorLookupTableData")
    if data is None:
        words = _words(parsed.get(f"Segmented{colour}PaletteColorLookupTableData"), bits, parsed.little)
        table = expand_segments(words, bits)
    elif isinstance(data, bytes) and (bits == 8 and len(data) < 2 * entries):
        table = np.frombuffer(data, np.uint8).astype(np.int64)  # two 8-bit entries a word
    else:
        table = _words(data, 16, parsed.little)
    if len(table) < entries:
        raise DicomError(f"{colour.lower()} palette of {len(table)} entries where it says {entries}")
    # 8-bit entries in words may be left-aligned by old writers: the values themselves tell
    shift = 8 if bits == 16 or table[:entries].max() > 255 else 0
    return (table[:entries] >> shift)[np.clip(stored - first, 0, entries - 1)].astype(np.uint8)


def _words(data: Any, bits: int, little: bool) -> Array:
    if isinstance(data, bytes):
        kind = "u1" if bits == 8 else "<u2" if little else ">u2"
        whole = len(data) if bits == 8 else len(data) & ~1
        return np.frombuffer(data[:whole], kind).astype(np.int64)
    return np.atleast_1d(np.asarray(data if data is not None else [], dtype=np.int64)) & 0xFFFF


def expand_segments(words: Array, bits: int) -> Array:
    """Discrete, linear and indirect segments -> the plain table (PS3.3 C.7.9.2.1 to C.7.9.2.3)."""
    from pydicom.pixels.processing import _expand_segmented_lut

    code = "B" if bits == 8 else "H"
    try:
        return np.asarray(_expand_segmented_lut(tuple(words.tolist()), f"<{code}"), dtype=np.int64)
    except (ValueError, IndexError) as error:
        raise DicomError(f"segmented palette is damaged ({error})") from None


# ---------------------------------------------------------------------------------------------- resize


def resize(image: Array, size: int | tuple[int, int]) -> Array:
    """uint8 to (S, S) or (H, W): each axis by area averages where it shrinks (no aliasing), by cubic
    interpolation where it grows. cv2's INTER_AREA averages only if both axes shrink, so they go apart.

    Averages of four pixels are vectorised, others are not: sides of twice the target or more are halved
    first, 7 times as fast from 2048 to 512, and at most one gray level off in each halving.
    """
    import cv2

    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = image.shape[:2]
    while rows >= 2 * height and columns >= 2 * width and rows % 2 == columns % 2 == 0:
        rows, columns = rows // 2, columns // 2
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    shrunk = min(height, rows), min(width, columns)
    if shrunk != (rows, columns):
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


# --------------------------------------------------------------------------------------------- inspect


def describe(path: str | Path, options: DicomOptions | None = None) -> dict[str, Any]:
    """What a file is and that all of it can be read: transfer_syntax, photometric, bits, shape (as
    pydicom's pixel_array), min and max of the stored values over all frames (RGB values for colour)."""
    options = options or _DEFAULT
    return guarded(path, lambda data: _describe(parse(data), options))


def _describe(parsed: Parsed, options: DicomOptions) -> dict[str, Any]:
    layout = layout_of(parsed, options.max_pixels)
    _render(parsed, options, None)
    low, high = [], []
    for index in range(layout.frames):
        frame = decode_frame(parsed, layout, index)
        values = _rgb_at_depth(frame) if layout.samples == 3 else _numbers_of(frame)
        low.append(values.min().item())
        high.append(values.max().item())
    shape = (layout.frames, *layout.shape) if layout.frames > 1 else layout.shape
    return {
        "transfer_syntax": name_of(parsed.syntax) if parsed.syntax else "",
        "photometric": layout.photometric,
        "bits": layout.stored,
        "shape": "x".join(map(str, shape)),
        "min": min(low),
        "max": max(high),
    }


def _numbers_of(frame: Frame) -> Array:
    return frame.values if frame.layout.kind == "float" else numeric(frame.values, frame.layout)


def _rgb_at_depth(frame: Frame) -> Array:
    return numeric(frame.values, frame.layout) if frame.layout.photometric == "RGB" else _colour(frame)
