"""One frame of DICOM pixel data -> stored values, by the decoder that is right for it, then fast.

What a compressed frame is, its own first bytes say: a wrong transfer syntax misleads nobody. Its size,
precision and end are checked against the header before any native decoder sees it, because decoders
crash, or fill in grey, where these lie.

| codestream | decoder |
|---|---|
| uncompressed | numpy on the file's own bytes |
| RLE | pylibjpeg-rle (Rust) |
| JPEG 8 bit, sequential or progressive | libjpeg-turbo in cv2, scaled when the target is smaller |
| JPEG 12 bit, sequential | dicomsdl (IJG 12); pylibjpeg-libjpeg where installed, also progressive |
| JPEG lossless | dicomsdl (IJG 16), twice as fast as gdcm, bit for bit the same; else gdcm |
| JPEG-LS | pyjpegls (CharLS) |
| JPEG 2000, HTJ2K | pylibjpeg-openjpeg; Pillow's `reduce` for fewer wavelet levels |
| deflated frames | zlib |

Tried and lost: dicomsdl on whole files and on RLE (it crashes on several of the test files, and reads
32-bit samples wrongly); gdcm for JPEG lossless (half the speed).
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import struct
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from typing import IO, Any

import numpy as np

from foldwise.core.source import ReadWarning
from foldwise.dicom.parse import DicomError, Parsed

Array = np.ndarray[Any, np.dtype[Any]]

RLE = "1.2.840.10008.1.2.5"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@dataclass(frozen=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    allocated: int  # bits a sample takes
    stored: int  # bits of it that carry a value
    high: int  # the highest of these
    signed: bool
    photometric: str
    planar: int
    frames: int
    kind: str = "int"  # int | float

    @property
    def bits_per_frame(self) -> int:
        pixels = self.rows * self.columns
        if self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            return pixels * 2 * self.allocated  # PS3.3 C.7.6.3.1.2: two Y for each Cb, Cr
        return pixels * self.samples * self.allocated

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)


def layout_of(parsed: Parsed, max_pixels: int) -> Layout:
    """The header's description of a frame; DicomError where it is missing, impossible or too large."""
    if not parsed.pixel_tag:
        raise DicomError("holds no pixel data")
    number = _whole(parsed)
    rows, columns = number("Rows", 0), number("Columns", 0)
    if rows < 1 or columns < 1:
        raise DicomError(f"header says {rows} rows x {columns} columns")
    if rows * columns > max_pixels:
        what = f"header claims {rows} x {columns} pixels, over the limit max_pixels={max_pixels}"
        raise DicomError(f"{what}; raise `image: max_pixels` to read it")
    kind, allocated = "int", number("BitsAllocated", 0)
    if parsed.pixel_tag != 0x7FE00010:  # PS3.3 C.7.6.24, C.7.6.25
        kind, allocated = "float", 32 if parsed.pixel_tag == 0x7FE00008 else 64
    stored = min(number("BitsStored", allocated), allocated) or allocated
    high = number("HighBit", stored - 1)
    samples = number("SamplesPerPixel", 1)
    layout = Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high if stored - 1 <= high < allocated else stored - 1,
        signed=number("PixelRepresentation", 0) == 1,
        photometric=str(parsed.first("PhotometricInterpretation", "")).upper().replace("-", "_"),
        planar=number("PlanarConfiguration", 0),
        frames=max(1, number("NumberOfFrames", 1)),
        kind=kind,
    )
    _check_samples(layout)
    return layout


def _whole(parsed: Parsed) -> Callable[[str, int], int]:
    return lambda keyword, default: int(parsed.number(keyword, default))


_MONO, _COLOUR = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), ("RGB", "YBR_")


def _check_samples(layout: Layout) -> None:
    if layout.allocated not in (1, 8, 12, 16, 32, 64):
        raise DicomError(f"BitsAllocated {layout.allocated} is none of 1, 8, 12, 16, 32, 64")
    if layout.samples not in (1, 3):
        raise DicomError(f"SamplesPerPixel {layout.samples} is neither 1 nor 3")
    if layout.photometric.startswith(_MONO if layout.samples == 1 else _COLOUR):
        return
    if layout.photometric == "":
        raise DicomError("PhotometricInterpretation is missing: what the values mean is not said")
    raise DicomError(f"photometric {layout.photometric} with {layout.samples} samples a pixel is not readable")


@dataclass(frozen=True)
class Frame:
    """Stored values of one frame, and what they now mean."""

    values: Array  # (H, W) or (H, W, 3): integers of the container's type, or float
    layout: Layout  # photometric, bits and sign as after decoding; rows and columns as in the header


def decode_frame(
    parsed: Parsed, layout: Layout, index: int, at_least: int | None = None, oversample: float = 1.0, fill: bool = False
) -> Frame:
    """Frame `index`; at reduced resolution where its codestream allows, never smaller than `at_least` on
    the shorter side, JPEG 2000 not smaller than `oversample` times that. DicomError where the bytes are not
    there or not sound; fill: an uncompressed frame that is there in part ends in zeros."""
    if not parsed.encapsulated and not _hidden_items(parsed, layout):
        return _native(parsed, layout, index, fill)
    frame = _with_start(_encapsulated(parsed, layout, index), parsed.syntax)
    kind = sniff(frame)
    if kind == "jpeg":
        return _jpeg(frame, layout, at_least)
    if kind == "j2k":
        return _jpeg_2000(frame, layout, math.ceil(at_least * oversample) if at_least else None)
    if parsed.syntax == RLE:
        return _rle(frame, layout)
    if parsed.syntax == DEFLATED_FRAMES:
        return _deflated(frame, layout)
    raise DicomError(f"no decoder for {name_of(parsed.syntax)}: {_video_or_unknown(parsed.syntax)}")


def name_of(syntax: str) -> str:
    """A transfer syntax in words."""
    from pydicom.uid import UID

    return UID(syntax).name if syntax else "an unnamed transfer syntax"


def _video_or_unknown(syntax: str) -> str:
    tail = syntax.removeprefix("1.2.840.10008.1.2.4.")
    return "video" if tail[:3] in ("100", "101", "102", "103", "104", "105", "106", "107") else "unknown codestream"


def _with_start(frame: bytes, syntax: str) -> bytes:
    """A JPEG codestream that lost its first byte or its first marker (FFD8) has them again, as other readers do."""
    if not syntax.startswith(("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7", "1.2.840.10008.1.2.4.8")):
        return frame
    lost = b"\xff" if frame[:2] == b"\xd8\xff" else b"\xff\xd8" if _STARTS.match(frame) else b""
    if lost:
        warnings.warn("its compressed data lacks the first marker, which is put back", ReadWarning)
    return lost + frame


_STARTS = re.compile(rb"\xff[\xc0-\xc3\xc4\xdb\xe0-\xef\xf7\xf8\xfe]")  # what follows the first marker


def sniff(frame: bytes) -> str:
    """'jpeg' (any of its processes, JPEG-LS too), 'j2k' (HTJ2K too) or ''."""
    if frame[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if frame[:4] == b"\xff\x4f\xff\x51" or frame[4:8] == b"jP  ":
        return "j2k"
    return ""


# -------------------------------------------------------------------------------------- uncompressed


def _native(parsed: Parsed, layout: Layout, index: int, fill: bool = False) -> Frame:
    """PS3.5 8.1.1, A.1 to A.3: the bytes as they lie in the file."""
    bits, data = layout.bits_per_frame, parsed.pixels
    if (index + 1) * bits > len(data) * 8:
        need = (layout.frames * bits + 7) // 8
        if not fill or (index + 0.5) * bits > len(data) * 8:  # half of it at least must be there
            hint = "" if fill else "; `image: {truncated: fill}` reads what is there"
            raise DicomError(f"pixel data is truncated: {len(data)} of {need} bytes{hint}")
        warnings.warn("its pixel data is truncated: what is missing is filled with zeros", ReadWarning)
        data = memoryview(bytes(data).ljust(((index + 1) * bits + 7) // 8, b"\0"))
    if not parsed.little and parsed.pixel_vr == "OW" and layout.allocated == 8:
        # PS3.5 8.1.1, annex A.3: 16-bit words hold two 8-bit samples, the first in the low byte
        data = memoryview(np.frombuffer(data[: len(data) & ~1], "u2").byteswap().tobytes())
    if layout.allocated in (1, 12):
        return Frame(_packed(data, layout, index), replace(layout, planar=0))
    order = "<" if parsed.little else ">"
    kind = "f" if layout.kind == "float" else "u"
    dtype = np.dtype(f"{order}{kind}{layout.allocated // 8}")
    values = np.frombuffer(data, dtype, bits // layout.allocated, index * bits // 8)
    if order == ">":
        values = values.astype(dtype.newbyteorder("="))
    return _shaped(values, layout)


def _packed(data: memoryview, layout: Layout, index: int) -> Array:
    """Samples of 1 or 12 bits that lie next to each other (PS3.5 8.1.1), the lowest bit first."""
    bits = layout.bits_per_frame
    start, stop = index * bits, (index + 1) * bits
    raw = np.frombuffer(data, np.uint8)[start // 8 : (stop + 7) // 8]
    loose = np.unpackbits(raw, bitorder="little")[start % 8 : start % 8 + bits]
    if layout.allocated == 1:
        return loose.reshape(layout.shape)
    weights = (1 << np.arange(12)).astype(np.uint16)
    return (loose.reshape(-1, 12) @ weights).astype(np.uint16).reshape(layout.shape)


def _shaped(values: Array, layout: Layout) -> Frame:
    if layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        return Frame(_unpack_422(values, layout), replace(layout, planar=0))
    if layout.samples == 3 and layout.planar == 1:  # PS3.3 C.7.6.3.1.3: all of R, then G, then B
        planes = values.reshape(3, layout.rows, layout.columns)
        return Frame(np.ascontiguousarray(planes.transpose(1, 2, 0)), replace(layout, planar=0))
    return Frame(values.reshape(layout.shape), layout)


def _unpack_422(values: Array, layout: Layout) -> Array:
    """Y1 Y2 Cb Cr of each pair of pixels -> three samples a pixel (PS3.3 C.7.6.3.1.2)."""
    if layout.columns % 2:
        raise DicomError(f"{layout.photometric} with an odd number of columns ({layout.columns})")
    quads = values.reshape(layout.rows, layout.columns // 2, 4)
    out = np.empty((layout.rows, layout.columns, 3), values.dtype)
    out[:, 0::2, 0], out[:, 1::2, 0] = quads[..., 0], quads[..., 1]
    out[..., 1], out[..., 2] = np.repeat(quads[..., 2], 2, axis=1), np.repeat(quads[..., 3], 2, axis=1)
    return out


# -------------------------------------------------------------------------------------- encapsulation


def _hidden_items(parsed: Parsed, layout: Layout) -> bool:
    """Fragments inside an element of defined length: wrong, but seen; the bytes leave no doubt."""
    short = len(parsed.pixels) * 8 < layout.bits_per_frame * layout.frames
    return short and bytes(parsed.pixels[:4]) == b"\xfe\xff\x00\xe0"


def _encapsulated(parsed: Parsed, layout: Layout, index: int) -> bytes:
    """The codestream of a frame (PS3.5 A.4): its fragments joined."""
    fragments = list(_fragments(parsed.pixels))
    table, fragments = fragments[0] if fragments else b"", fragments[1:]
    if not fragments:
        raise DicomError("pixel data is truncated: no fragment of it is there")
    if layout.frames == 1:
        return b"".join(fragments)
    if len(fragments) == layout.frames:
        return bytes(fragments[index])
    groups = _by_table(bytes(table), fragments) or _by_end_mark(fragments)
    if len(groups) != layout.frames:
        raise DicomError(f"{layout.frames} frames in the header, {len(groups)} in the pixel data")
    return b"".join(groups[index])


def _fragments(view: memoryview) -> Iterator[memoryview]:
    """Item by item up to the sequence delimiter or the end of the file; the first is the offset table."""
    position = 0
    while position + 8 <= len(view):
        group, element, length = struct.unpack_from("<HHI", view, position)
        if (group, element) != (0xFFFE, 0xE000):
            return
        yield view[position + 8 : position + 8 + length]
        position += 8 + length


def _by_table(table: bytes, fragments: list[memoryview]) -> list[list[memoryview]]:
    """Fragments by frame, from the basic offset table (PS3.5 A.4); [] where there is none or it lies."""
    offsets = struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4])
    if not offsets:
        return []
    starts: dict[int, int] = {}
    position = 0
    for number, fragment in enumerate(fragments):
        starts[position] = number
        position += 8 + len(fragment)
    if any(offset not in starts for offset in offsets):
        return []
    bounds = [*(starts[offset] for offset in offsets), len(fragments)]
    return [fragments[a:b] for a, b in pairwise(bounds)]


def _by_end_mark(fragments: list[memoryview]) -> list[list[memoryview]]:
    """Fragments by frame where there is no table: JPEG and JPEG 2000 frames end in FFD9."""
    groups: list[list[memoryview]] = [[]]
    for fragment in fragments:
        groups[-1].append(fragment)
        if b"\xff\xd9" in bytes(fragment[-10:]):
            groups.append([])
    return groups if groups[-1] else groups[:-1]


# ---------------------------------------------------------------------------------------- RLE, deflate


def _rle(frame: bytes, layout: Layout) -> Frame:
    """PS3.5 annex G: one PackBits segment for each byte of each sample, most significant first."""
    try:
        with captured_stderr():
            return _rle_frame(frame, layout)
    except BaseException as error:
        # a Rust panic (an index out of bounds, caught in time) is no Exception
        if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
            raise DicomError(f"damaged RLE data ({str(error)[:100]})") from None
        raise


def _rle_frame(frame: bytes, layout: Layout) -> Frame:
    from rle import rle as codec  # pylibjpeg-rle

    if layout.allocated == 1:  # PS3.5 8.2.2: bits packed as uncompressed, each frame on its own
        size = (layout.bits_per_frame + 7) // 8
        (packed,) = _rle_segments(frame, 1)
        packed = bytes(codec.decode_segment(packed))
        return _native_bytes(packed[:size], layout)
    _rle_segments(frame, layout.samples * layout.allocated // 8)
    raw = codec.decode_frame(frame, layout.rows * layout.columns, layout.allocated, "<")
    values = np.frombuffer(raw, f"<u{layout.allocated // 8}")
    return _shaped(values, replace(layout, planar=1 if layout.samples == 3 else 0, photometric=_no_422(layout)))


def _rle_segments(frame: bytes, count: int) -> list[bytes]:
    """The segments of a frame; DicomError where their number is not what the header needs (PS3.5 G.5)."""
    if len(frame) < 64:
        raise DicomError("pixel data is truncated: no RLE header")
    found, *offsets = struct.unpack_from("<16I", frame)
    if found != count:
        raise DicomError(f"RLE data of {found} segments where the header needs {count}")
    bounds = [*offsets[:count], len(frame)]
    if any(not 64 <= a < b for a, b in pairwise(bounds)):
        raise DicomError("RLE header points outside its frame, which may be truncated")
    return [frame[a:b] for a, b in pairwise(bounds)]


def _deflated(frame: bytes, layout: Layout) -> Frame:
    """Deflated image frame compression (PS3.5 A.4.13): each frame deflated on its own."""
    size = (layout.bits_per_frame + 7) // 8
    try:
        raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size)
    except zlib.error as error:
        raise DicomError(f"deflated frame is damaged ({error})") from None
    return _native_bytes(raw, layout)


def _native_bytes(raw: bytes, layout: Layout) -> Frame:
    alone = Parsed({}, "", True, 0x7FE00010, "OB", memoryview(raw))
    return _native(alone, replace(layout, frames=1), 0)


def _no_422(layout: Layout) -> str:
    """Inside RLE and JPEG, chroma is back at full resolution once decoded."""
    return {"YBR_FULL_422": "YBR_FULL", "YBR_PARTIAL_422": "YBR_PARTIAL"}.get(layout.photometric, layout.photometric)


# ------------------------------------------------------------------------------------------------ JPEG


@dataclass(frozen=True)
class _Jpeg:
    process: int  # the SOF marker's second byte: C0, C1 sequential, C2 progressive, C3 lossless, F7 JPEG-LS
    precision: int
    rows: int
    columns: int
    components: int
    ids: bytes
    subsampled: bool
    adobe: int | None  # colour transform of the APP14 segment
    jfif: bool


def jpeg_parameters(frame: bytes) -> _Jpeg:
    """The frame header of a JPEG or JPEG-LS codestream (ITU-T T.81 B.2); DicomError without one."""
    position, adobe, jfif = 2, None, False
    while position + 4 <= len(frame):
        if frame[position] != 0xFF:
            break
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        body = frame[position + 4 : position + 2 + length]
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        jfif = jfif or (marker == 0xE0 and body[:4] == b"JFIF")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return _frame_header(marker, body, adobe, jfif)
        if marker == 0xDA:
            break
        position += 2 + length
    raise DicomError("JPEG data without a frame header")


def _frame_header(marker: int, body: bytes, adobe: int | None, jfif: bool) -> _Jpeg:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise DicomError("JPEG frame header is cut off")
    precision, rows, columns, components = struct.unpack_from(">BHHB", body)
    parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(components)]
    ids, factors = bytes(part[0] for part in parts), {part[1] for part in parts}
    return _Jpeg(marker, precision, rows, columns, components, ids, len(factors) > 1, adobe, jfif)


def _jpeg(frame: bytes, layout: Layout, at_least: int | None) -> Frame:
    info = jpeg_parameters(frame)
    _agree(layout, info.rows, info.columns, info.components, info.precision)
    if b"\xff\xd9" not in frame[-256:]:
        raise DicomError("JPEG data is truncated: it has no end mark")
    if info.process == 0xF7:
        return _jpeg_ls(frame, layout, info)
    if info.process in (0xC0, 0xC1, 0xC2) and info.precision == 8:
        return _jpeg_8(frame, layout, info, at_least)
    if info.process in (0xC0, 0xC1, 0xC2) and info.precision == 12:
        return _jpeg_12(frame, layout, info)
    if info.process == 0xC3:
        values = _jpeg_lossless(frame, layout, info)
        return Frame(values, replace(layout, photometric=_no_422(layout), planar=0))
    raise DicomError(f"JPEG process SOF{info.process - 0xC0} with {info.precision} bits has no decoder")


def _agree(layout: Layout, rows: int, columns: int, components: int, precision: int) -> None:
    """What the codestream holds must be what the header says; decoders overrun buffers otherwise."""
    if (rows, columns, components) != (layout.rows, layout.columns, layout.samples):
        said = f"{layout.rows} x {layout.columns} x {layout.samples}"
        raise DicomError(f"header says {said}, the compressed data {rows} x {columns} x {components}")
    if precision > max(8, layout.allocated) and layout.allocated != 1:
        raise DicomError(f"compressed data of {precision} bits in {layout.allocated} allocated")


def is_ycc(info: _Jpeg, photometric: str) -> bool:
    """Whether a three-component JPEG holds luma and chroma. Its own markers are believed before the
    header, and subsampled chroma before all: RGB is never subsampled."""
    if info.adobe is not None:
        return info.adobe == 1
    if info.subsampled or info.jfif:
        return True
    return info.ids != b"RGB" and photometric != "RGB"


def _jpeg_8(frame: bytes, layout: Layout, info: _Jpeg, at_least: int | None) -> Frame:
    import cv2

    reduction = scaled_by(min(info.rows, info.columns), at_least)
    if info.components == 1:
        flag = {
            1: cv2.IMREAD_GRAYSCALE,
            2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
            4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        }[reduction]
    else:
        flag = {
            1: cv2.IMREAD_COLOR,
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8,
        }[reduction]
        frame = _with_transform(frame, is_ycc(info, layout.photometric))
    values = imdecode_strict(frame, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if info.components == 3:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB)
    photometric = "RGB" if info.components == 3 else layout.photometric
    # process 2 and 4 with 8 bits in a header that allocates 16: the values are what the codestream says
    stored = 8 if info.components == 3 else layout.stored
    return Frame(values, replace(layout, allocated=8, stored=min(stored, 8), high=7, photometric=photometric, planar=0))


def scaled_by(shorter: int, at_least: int | None) -> int:
    """1, 2, 4 or 8: how far libjpeg may scale down while it decodes, by fewer DCT coefficients."""
    if not at_least:
        return 1
    return next((by for by in (8, 4, 2) if -(-shorter // by) >= at_least), 1)


def _with_transform(frame: bytes, ycc: bool) -> bytes:
    """The codestream with an Adobe segment that says whether its components are YCbCr, put before any
    other: libjpeg guesses by markers and component ids, and DICOM headers know better."""
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if ycc else b"\x00")
    start = 2
    while frame[start] == 0xFF and frame[start + 1] in range(0xE0, 0xF0):
        start += 2 + int.from_bytes(frame[start + 2 : start + 4], "big")
    return frame[:start] + segment + frame[start:]


def imdecode_strict(data: bytes, flags: int) -> Array:
    """cv2.imdecode, BGR or gray; DicomError where libjpeg had to make up what was missing."""
    import cv2

    with captured_stderr() as complaints:
        try:
            values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise DicomError(f"damaged image data ({' '.join(str(error.err or error).split())})") from None
    if values is None:
        raise DicomError("damaged image data: the decoder refuses it")
    for line in complaints():
        if any(word in line for word in ("remature end", "Corrupt JPEG data: bad", "nsupported marker")):
            raise DicomError(f"damaged or truncated JPEG ({line})")
    return values


_stderr_lock = threading.Lock()


@contextmanager
def captured_stderr() -> Iterator[Callable[[], list[str]]]:
    """What native code writes to file descriptor 2, which would flood a terminal; call the yielded function
    afterwards for its lines. One thread at a time, because the descriptor is the process's."""
    lines: list[str] = []
    with _stderr_lock, _sink() as sink:
        try:
            saved = os.dup(2)
        except OSError:  # a process without a standard error
            yield lambda: lines
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(sink.fileno(), 2)
        try:
            yield lambda: lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if os.fstat(sink.fileno()).st_size:
                sink.seek(0)
                lines.extend(sink.read(10_000).decode("utf-8", "replace").splitlines())


def _sink() -> IO[bytes]:
    """A file in memory where the system has such (10 times as quick to make), else a temporary one."""
    return os.fdopen(os.memfd_create("stderr"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _jpeg_12(frame: bytes, layout: Layout, info: _Jpeg) -> Frame:
    """12-bit DCT: IJG's 12-bit build inside dicomsdl does the sequential ones (lossy CT against its original:
    a mean of 3.8 HU); the progressive ones (retired from DICOM) need the GPL plugin."""
    if info.components == 1 and info.process != 0xC2 and _has("dicomsdl"):
        values = _dicomsdl(frame, layout, JPEG_EXTENDED, 12)
    elif _has("libjpeg"):
        values = _pylibjpeg_12(frame)
    else:
        what = "progressive" if info.process == 0xC2 else "extended"
        raise DicomError(f"12-bit {what} JPEG needs the GPL plugin: pip install pylibjpeg-libjpeg")
    return Frame(values, replace(layout, photometric=_no_422(layout), planar=0))


def _pylibjpeg_12(frame: bytes) -> Array:
    from libjpeg import decode

    return np.asarray(decode(frame)).astype(np.uint16)


def _jpeg_lossless(frame: bytes, layout: Layout, info: _Jpeg) -> Array:
    if not _has("dicomsdl"):
        return _gdcm_lossless(frame, layout)
    return _dicomsdl(frame, layout, JPEG_LOSSLESS, info.precision)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gdcm_lossless(frame: bytes, layout: Layout) -> Array:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    description: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": 0,
        "number_of_frames": 1,
        "photometric_interpretation": layout.photometric,
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(JPEG_LOSSLESS).as_array(encapsulate([frame]), index=0, raw=True, **description)
    return values


def _dicomsdl(frame: bytes, layout: Layout, syntax: str, precision: int) -> Array:
    """A codestream by dicomsdl's decoders, inside a DICOM file made for it: its parser, which crashes on
    odd headers, never sees the original one."""
    import dicomsdl

    dicomsdl.set_loglevel(dicomsdl.LogLevel.ERROR)
    allocated = 8 if precision <= 8 else 16
    out = np.zeros(layout.shape, f"u{allocated // 8}")
    data = _minimal_file(frame, layout, syntax, allocated, precision)
    with captured_stderr():
        try:
            dicomsdl.open_memory(data).copyFrameData(0, out)
        except RuntimeError as error:
            raise DicomError(f"damaged JPEG data ({str(error).splitlines()[0][:100]})") from None
    return out


def _minimal_file(frame: bytes, layout: Layout, syntax: str, allocated: int, precision: int) -> bytes:
    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HH2sH", group, number, vr, len(value)) + value

    def us(number: int, value: int) -> bytes:
        return element(0x28, number, b"US", struct.pack("<H", value))

    meta = element(2, 0x10, b"UI", syntax.encode())
    planar = us(6, 0) if layout.samples == 3 else b""
    frame += b"\0" * (len(frame) % 2)
    return b"".join(
        [
            bytes(128),
            b"DICM",
            element(2, 0, b"UL", struct.pack("<I", len(meta))),
            meta,
            us(2, layout.samples),
            element(0x28, 4, b"CS", b"RGB " if layout.samples == 3 else b"MONOCHROME2 "),
            planar,
            us(0x10, layout.rows),
            us(0x11, layout.columns),
            us(0x100, allocated),
            us(0x101, precision),
            us(0x102, precision - 1),
            us(0x103, 0),
            struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF),
            struct.pack("<HHI", 0xFFFE, 0xE000, 0),
            struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)),
            frame,
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        ]
    )


def _jpeg_ls(frame: bytes, layout: Layout, info: _Jpeg) -> Frame:
    import jpeg_ls

    try:
        raw, found = jpeg_ls.decode_buffer(frame)
    except Exception as error:
        raise DicomError(f"damaged JPEG-LS data ({str(error).splitlines()[0][:100]})") from None
    values = np.frombuffer(raw, "u1" if info.precision <= 8 else "<u2")
    planar = layout.samples == 3 and int(found.get("interleave_mode", 0)) == 0
    return _shaped(values, replace(layout, planar=int(planar), photometric=_no_422(layout)))


# ------------------------------------------------------------------------------------------- JPEG 2000


@dataclass(frozen=True)
class _J2k:
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    levels: int  # wavelet decomposition levels: how often the size can be halved
    multi_transform: bool  # RCT or ICT: the decoder gives RGB
    start: int  # of the codestream, behind a JP2 header that DICOM does not allow but files have


def j2k_parameters(frame: bytes) -> _J2k:
    """SIZ and COD of a JPEG 2000 codestream (ITU-T T.800 A.5.1, A.6.1); DicomError without them."""
    start = frame.find(b"\xff\x4f\xff\x51") if frame[:2] != b"\xff\x4f" else 0
    try:
        if start < 0:
            raise struct.error
        _, width, height, left, top = struct.unpack_from(">HIIII", frame, start + 6)
        tile_w, tile_h, tile_x, tile_y, components = struct.unpack_from(">IIIIH", frame, start + 24)
        depths = {frame[start + 42 + 3 * i] for i in range(min(components, 4))}
        steps = {frame[start + 43 + 3 * i : start + 45 + 3 * i] for i in range(min(components, 4))}
        if not tile_w or not tile_h or left >= width or top >= height or tile_x > left or tile_y > top:
            raise struct.error
        levels, transform = _coding_style(frame, start)
    except (struct.error, IndexError):
        raise DicomError("JPEG 2000 header is damaged or cut off") from None
    if len(depths) != 1 or steps != {b"\x01\x01"}:
        raise DicomError("JPEG 2000 components differ in depth or sampling")
    depth = depths.pop()
    return _J2k(height - top, width - left, components, (depth & 0x7F) + 1, depth > 0x7F, levels, transform, start)


def _coding_style(frame: bytes, start: int) -> tuple[int, bool]:
    position = start + 2
    while frame[position] == 0xFF and frame[position + 1] != 0x90:
        if frame[position + 1] == 0x52:  # COD: Scod, progression, layers, transform, levels
            return frame[position + 9], frame[position + 8] == 1
        position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    raise struct.error


def _check_whole(frame: bytes, start: int) -> None:
    """Every tile part must end inside the data (Psot, T.800 A.4.2): OpenJPEG fills in what is missing."""
    position = frame.find(b"\xff\x90\x00\x0a", start)
    while position >= 0 and frame[position : position + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", frame[position : position + 12].ljust(12, b"\0"), 6)
        if length == 0:  # up to the end mark
            if b"\xff\xd9" not in frame[-16:]:
                break
            return
        if length < 14 or position + length > len(frame):
            break
        position += length
    else:
        if position >= 0:
            return
    raise DicomError("JPEG 2000 data is truncated or damaged")


def _jpeg_2000(frame: bytes, layout: Layout, at_least: int | None) -> Frame:
    info = j2k_parameters(frame)
    _agree(layout, info.rows, info.columns, info.components, info.precision)
    _check_whole(frame, info.start)
    values = _reduced_2000(frame, info, reducible(info, layout, at_least))
    colour = info.components == 3
    photometric = "RGB" if colour and (info.multi_transform or layout.photometric in _IN_J2K) else layout.photometric
    stored = info.precision if layout.allocated > 1 else 1
    # A codestream of signed samples under an unsigned header: the encoder knew them, the header would turn
    # negative numbers into huge ones. The other way round they are two's complement in unsigned samples.
    signed = layout.signed or info.signed
    result = replace(
        layout,
        allocated=values.dtype.itemsize * 8,
        stored=stored,
        high=stored - 1,
        signed=signed,
        photometric=photometric,
        planar=0,
    )
    return Frame(values.view(f"u{values.dtype.itemsize}"), result)


_IN_J2K = ("YBR_ICT", "YBR_RCT", "RGB")  # PS3.5 8.2.4: the transform is part of the codestream


def reducible(info: _J2k, layout: Layout, at_least: int | None) -> int:
    """How many wavelet levels may be left out: only where Pillow keeps every bit, which for colour it does
    up to 8 bits a sample and for gray up to 16."""
    if not at_least or info.precision > (16 if info.components == 1 else 8) or layout.allocated == 1:
        return 0
    shorter = min(info.rows, info.columns)
    levels = 0
    while levels < info.levels and -(-shorter // 2 ** (levels + 1)) >= at_least:
        levels += 1
    return levels


def _openjpeg(frame: bytes) -> Array:
    import openjpeg

    with captured_stderr():
        try:
            return np.ascontiguousarray(openjpeg.decode(frame))
        except RuntimeError as error:
            raise DicomError(f"damaged JPEG 2000 data ({str(error).splitlines()[0][:100]})") from None


def _reduced_2000(frame: bytes, info: _J2k, reduce: int) -> Array:
    """With `reduce` wavelet levels left out, or fewer where Pillow's arithmetic of tile sizes fails (it does
    on some odd sizes), at last with all of them by OpenJPEG."""
    while reduce:
        try:
            return _centered(_pillow_2000(frame, info, reduce), reduce)
        except (OSError, SyntaxError, ValueError):
            reduce -= 1
    return _openjpeg(frame)


def _centered(values: Array, reduce: int) -> Array:
    """Wavelet low-pass samples sit on every 2**reduce-th pixel, not between pixels as the averages that a
    resize makes: moved by that part of a pixel, which halves the distance to the full decode."""
    import cv2

    shift = (2**reduce - 1) / 2 ** (reduce + 1)
    matrix = np.array([[1, 0, shift], [0, 1, shift]], dtype=np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(values, matrix, values.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _pillow_2000(frame: bytes, info: _J2k, reduce: int) -> Array:
    from PIL import Image

    with captured_stderr():
        image: Any = Image.open(BytesIO(frame[info.start :]), formats=("JPEG2000",))
        image.reduce = reduce
        image.load()
    values = np.asarray(image)
    if info.components == 1 and info.precision > 8:
        values = values.astype(np.uint16)
    # Pillow shifts samples up to 8 or 16 bits, and signed ones by half the range: undo both
    values = values >> (8 * values.dtype.itemsize - info.precision)
    if info.signed:
        values = (values.astype(np.int32) - (1 << (info.precision - 1))).astype(f"i{values.dtype.itemsize}")
    return np.ascontiguousarray(values)
