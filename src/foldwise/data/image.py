"""Any image file -> RGB pixels: DICOM, JPEG, PNG, TIFF, WebP, BMP, GIF, and what else Pillow opens;
arrays of numbers (see arrays).

The steps, in this order: decode (at a reduced scale where the target allows), crop, fit to the size,
grayscale, colour constancy, CLAHE, pad. Alpha is laid over `background` (black); of animated files the
first frame counts; EXIF orientation is applied; CMYK is converted; 16-bit gray without a display range is
stretched between percentiles, as in DICOM.

`listing` tells the images below a folder from what else lies there. `inspect` says of each file of a folder what it
is and whether all of it can be read.
"""

from __future__ import annotations

import csv
import math
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from foldwise import UserError, dicom
from foldwise.core import source
from foldwise.data import arrays
from foldwise.data.arrays import ArrayOptions
from foldwise.dicom import DicomError, Size, resize
from foldwise.dicom.decode import Array, captured_stderr, imdecode_strict, jpeg_parameters, scaled_by


class ImageError(UserError):
    """A file that is no image, or cannot be read safely: one line that names it, with the true reason."""


class SeriesOptions(ArrayOptions):
    """The part of `image:` that says which slices of a row's series are seen."""

    slices: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="of each `series` so many, in gray, or a channel a `window`; together they are the row's pixels",
    )
    colour: bool = Field(False, description="slices in RGB, as of tissue or video")
    choose: Literal["even", "middle"] = Field(
        "even", description="of more slices than `slices`: evenly spaced ones, or those in the middle of the stack"
    )
    around: str | None = Field(
        None,
        description="a column of the tables: of more slices than `slices`, those about the one of this "
        "InstanceNumber (of a file that holds all: its number, from 1); without a value as `choose` says",
    )
    resample: tuple[float, float, float] | None = Field(
        None, description="mm between slices, rows and columns, [z, y, x], made equal about the middle of each series"
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="a series that is one large picture (a slide): its tiles of so many pixels a side, those "
        "with the most tissue, darkest on white, are the slices",
    )
    level: int = Field(0, ge=0, description="`tile`: of a pyramidal TIFF (by tifffile), 0: full size")
    series: list[str] = Field([], description="the names of several `series`; filled in from `train`")

    @property
    def per_slice(self) -> int:
        """Channels of a slice, or of a picture."""
        if self.slices is None:
            return self.channels
        return 3 if self.colour or not isinstance(self.window, str) else 1

    @property
    def planes(self) -> int:
        """Channels of a row's pixels: of its picture, or of all slices of all its series."""
        return self.per_slice * (self.slices or 1) * max(1, len(self.series))

    @model_validator(mode="after")
    def _a_stack(self) -> SeriesOptions:
        if self.resample is not None and (self.slices is None or min(self.resample) <= 0):
            raise ValueError("`resample` is [z, y, x], mm above 0, of `slices`")
        if self.around is not None and (self.slices is None or self.resample is not None):
            raise ValueError("`around` chooses among `slices`, without `resample`")
        if self.tile is not None and (self.slices is None or not self.colour):
            raise ValueError("`tile` cuts a picture into `slices`, with `colour: true`")
        if self.slices is not None and (self.channels != 3 or self.bands):
            raise ValueError("`slices` are gray, `colour: true`, or a channel a window; no `channels` or `bands`")
        return self


class ImageOptions(SeriesOptions):
    """`image:` of competition.yaml: how every file becomes pixels."""

    fit: Literal["squash", "pad", "crop"] = Field(
        "squash", description="how an image meets a size of another shape: squashed, padded, or cut at the center"
    )
    pad_value: int = Field(0, ge=0, le=255, description="gray level of the padding of fit: pad")
    crop: Literal["none", "black_border", "vignette", "threshold"] = Field(
        "none",
        description="'black_border': rows and columns of near-black outside go; 'vignette': the largest upright "
        "rectangle inside a bright circle (dermoscope); 'threshold': the box of the largest bright object "
        "(breast, body)",
    )
    crop_threshold: int | None = Field(
        None, ge=0, le=254, description="gray level above which a pixel is content; null: Otsu's, or 16 for borders"
    )
    crop_margin: float = Field(0.02, ge=0, le=0.5, description="kept around the 'threshold' box, share of its sides")
    grayscale: bool = Field(False, description="luma on all three channels")
    colour_constancy: bool = Field(False, description="shades of gray: the illuminant becomes neutral")
    colour_power: float = Field(6.0, ge=1, description="Minkowski norm of the shades of gray")
    clahe: float | None = Field(None, gt=0, description="clip limit of CLAHE on luma, e.g. 2.0; null: none")
    clahe_tiles: int = Field(8, ge=1, le=64, description="CLAHE's grid, tiles a side")
    background: int = Field(0, ge=0, le=255, description="gray level under transparent pixels")
    deep: Literal["percentile", "full"] = Field(
        "percentile",
        description="PNG and TIFF with more than 8 bits of gray: stretched between `percentiles`, or "
        "from the whole range of the type",
    )

    @model_validator(mode="after")
    def _colours_are_three(self) -> ImageOptions:
        if self.per_slice != 3 and (self.grayscale or self.colour_constancy or (self.clahe and self.slices is None)):
            raise ValueError(f"grayscale, colour_constancy and clahe are for 3 channels, not {self.per_slice}")
        return self


_DEFAULT = ImageOptions()


def read_image(
    path: str | Path, size: Size = None, options: ImageOptions | None = None, window: Sequence[int] | None = None
) -> Array:
    """A file's image, uint8 (H, W, 3) RGB, at its own size, at S x S, or at (H, W); (H, W, C) of `options.channels`.

    window: left, top, right, bottom in pixels of the full upright image (foldwise.roi); it takes the place of
    `options.crop`. ImageError where the file is no image or cannot be read safely: a truncated file is refused, not
    filled.
    """
    options = options or _DEFAULT
    image = decoded(Path(path), size if window is None else None, options)
    image = crop(image, options) if window is None else cut(image, window, Path(path))
    return finished(image, size, options, path)


def finished(image: Array, size: Size, options: ImageOptions, path: str | Path) -> Array:
    """What is left of `read_image` for a cropped uint8 (H, W) or (H, W, C)."""
    if size is None:
        return _as_channels(_tones(image, options), options.channels, path)
    height, width = (size, size) if isinstance(size, int) else size
    image = _tones(_fit(image, height, width, options), options)
    return _pad(_as_channels(image, options.channels, path), height, width, options.pad_value)


def as_picture(images: Array) -> Array:
    """uint8 (..., C) as something to look at, (..., 3): the first three channels, or the first one in gray.

    Of more channels than an array may have, which are slices: nine of them as a sheet.
    """
    if images.shape[-1] == 3:
        return images
    if images.shape[-1] > arrays.MOST:
        return _sheet(images)
    return np.ascontiguousarray(images[..., :3] if images.shape[-1] > 3 else images[..., [0, 0, 0]])


def nine(pixels: Array) -> Array:
    """uint8 (9, S, S): evenly spaced slices of (S, S, slices), black ones left out."""
    places = np.flatnonzero(pixels.any(axis=(0, 1)))
    places = places if len(places) else np.arange(pixels.shape[-1])
    return np.ascontiguousarray(
        pixels[..., places[((np.arange(9) + 0.5) * len(places) / 9).astype(int)]].transpose(2, 0, 1)
    )


def _sheet(images: Array) -> Array:
    """(..., S, S, slices) -> (..., S, S, 3) gray: three rows of three slices."""
    import cv2

    if images.ndim > 3:
        return np.stack([_sheet(one) for one in images])
    height, width = images.shape[:2]
    sheet = np.zeros((height, width), np.uint8)
    for k, plane in enumerate(nine(images)):
        (top, bottom), (left, right) = (
            (side * at // 3, side * (at + 1) // 3) for side, at in zip((height, width), divmod(k, 3), strict=True)
        )
        sheet[top:bottom, left:right] = cv2.resize(plane, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return np.repeat(sheet[..., None], 3, axis=-1)


def probe(path: str | Path, options: ImageOptions | None = None) -> dict[str, Any]:
    """format, width, height (as displayed: after EXIF orientation) and bytes, from the header alone.

    For DICOM also frames. ImageError where the file is no image.
    """
    path = Path(path)
    head, length = _head(path)
    if not length:
        raise ImageError(f"{path}: empty file")
    if _is_dicom(head, path):
        return {"format": "DICOM", **_probe_dicom(path), "bytes": length}
    if what := arrays.kind(path, head):
        return {"format": what, **arrays.probe(path, what, options or _DEFAULT), "bytes": length}
    with _pillow(path) as image:
        width, height = image.size
        if image.format in ("JPEG", "PNG", "WEBP", "TIFF", "MPO") and _orientation(image) >= 5:
            width, height = height, width
        return {"format": _FORMATS.get(image.format, image.format), "width": width, "height": height, "bytes": length}


_FORMATS = {"MPO": "JPEG"}  # several JPEGs in one file (stereo cameras, phones); the first counts


# --------------------------------------------------------------------------------------------- decode


def _head(path: Path) -> tuple[bytes, int]:
    try:
        return source.head(path, 132)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None


_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


_IMAGES = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM.{4}\0{4}.{4}.\0\0\0|II[*+]\0|MM\0[*+]"
    rb"|P[1-6fF]\s|\0\0\0\x0cjP  |\xff\x4f\xff\x51|.{4}ftyp(?:avi|hei|hev|mif)|qoif|8BPS|DDS |\x59\xa6\x6a\x95",
    re.DOTALL,
)  # the first bytes of JPEG, PNG, GIF, WebP, BMP, TIFF, PNM and PFM, JPEG 2000, AVIF and HEIF, QOI, PSD, DDS, Sun
SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".tga",
    ".jp2",
    ".j2k",
    ".avif",
    ".dcm",
    ".dicom",
    ".ima",
    ".npy",
    ".npz",
}


@dataclass(frozen=True)
class Listing:
    """The images below a folder, sorted; how many other files lie there, by kind; links that lead out of it."""

    images: list[Path]
    others: Counter[str]
    outside: list[Path]

    @property
    def left_out(self) -> str:
        """', 3 files that are no images left out (2 .txt, 1 no suffix)', or '' where there are none."""
        return left_out(self.others)


def without(series: str) -> str:
    """What is remarked of a row that lacks one of several series."""
    return f"series {series} missing or unreadable"


def left_out(others: Counter[str]) -> str:
    """The files of a Listing that are no images, in words that go on a sentence; '' where there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    files = "other file, no image," if others.total() == 1 else "other files, no images,"
    return f", {others.total()} {files} left out ({kinds})" if others else ""


def listing(folder: Path, within: Path | None = None) -> Listing:
    """The images below a folder, by suffix or, where that does not say, by their first bytes; links are followed.

    A file that has an image's suffix and is none is listed: reading it will say what is wrong with it. within: the
    folder that links are to stay in (see source.tree).
    """
    tree = source.tree(folder, within)
    images = [path for path in tree.files if is_picture(path)]
    kept = set(images)
    others = Counter(path.suffix.lower() or "no suffix" for path in tree.files if path not in kept)
    return Listing(images, others + tree.others, tree.outside)


def is_picture(path: Path) -> bool:
    """By its suffix, or where that does not say, by its first bytes."""
    return path.suffix.lower() in SUFFIXES or _is_image(path)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is, or says by its suffix that it is, a DICOM file."""
    return _is_dicom(_head(path)[0], path)


def _is_image(path: Path) -> bool:
    try:
        head, _ = _head(path)
    except ImageError:
        return True  # that it can't be opened is said when it is read
    return bool(_IMAGES.match(head)) or dicom.is_dicom(head)


def _is_dicom(head: bytes, path: Path) -> bool:
    return (not head.startswith(_MAGIC) and dicom.is_dicom(head, path.suffix)) or head[128:132] == b"DICM"


def decoded(path: Path, size: Size, options: ImageOptions) -> Array:
    """uint8 (H, W) or (H, W, 3), reduced while decoding where `size` allows."""
    head, length = _head(path)
    if not length:
        raise ImageError(f"{path}: empty file")
    target = size if options.crop == "none" else None  # a crop is found on all pixels
    try:
        if _is_dicom(head, path):
            return _decode_dicom(path, target, options)
        if what := arrays.kind(path, head):
            return _decode_array(path, what, options)
        if head.startswith(b"\xff\xd8\xff"):
            return _decode_jpeg(path, target, options)
        if head.startswith(b"\x89PNG"):
            return _decode_png(path, options)
        if head.startswith((b"II*\0", b"MM\0*")):
            return _decode_tiff(path, options)
        return _decode_pillow(path, options)
    except DicomError as error:
        reason = str(error)
        raise ImageError(reason if reason.startswith(f"{path}: ") else f"{path}: {reason}") from None
    except MemoryError:
        raise ImageError(f"{path}: needs more memory than there is") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None


def _decode_array(path: Path, what: str, options: ImageOptions) -> Array:
    values = arrays.read_array(path, what, options)
    _check_pixels(path, values.shape[1], values.shape[0], options)
    return arrays.as_bytes(values, path, options)


def _decode_dicom(path: Path, target: Size, options: ImageOptions) -> Array:
    # the larger side of the target is enough for the shorter side of the image, however it is fitted
    return dicom.decode_reduced(path, max(target) if isinstance(target, tuple) else target, options)


def _shorter_needed(rows: int, columns: int, size: int | tuple[int, int], fit: str) -> int:
    """How long the decoded image's shorter side must be so that no axis is enlarged after."""
    height, width = (size, size) if isinstance(size, int) else size
    scales = height / rows, width / columns
    scale = min(scales) if fit == "pad" else max(scales)
    return math.ceil(min(rows, columns) * scale)


def _check_pixels(path: Path, width: int, height: int, options: ImageOptions) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{path}: header says {width} x {height} pixels")
    if width * height > options.max_pixels:
        what = f"{width} x {height} pixels, over the limit max_pixels={options.max_pixels}"
        raise ImageError(f"{path}: {what}; raise `image: max_pixels` to read it")


def _decode_jpeg(path: Path, target: Size, options: ImageOptions) -> Array:
    """libjpeg-turbo in cv2, scaled by 1/2, 1/4 or 1/8 where the target is smaller; it applies EXIF."""
    import cv2

    data = source.read(path)
    info = jpeg_parameters(data)
    _check_pixels(path, info.columns, info.rows, options)
    if info.components not in (1, 3) or info.precision != 8 or info.process not in (0xC0, 0xC1, 0xC2):
        return _decode_pillow(path, options)  # CMYK, YCCK, arithmetic coding
    side = None if target is None else target if isinstance(target, int) else max(target)  # EXIF may turn it
    at_least = _shorter_needed(info.rows, info.columns, side, options.fit) if side else None
    if info.rows * info.columns > CV2_PIXELS:
        return _decode_pillow(path, options, at_least)
    by = scaled_by(min(info.rows, info.columns), at_least)
    colour = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[by]
    gray = {
        1: cv2.IMREAD_GRAYSCALE,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }[by]
    image = imdecode_strict(data, gray if info.components == 1 else colour)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_png(path: Path, options: ImageOptions) -> Array:
    """cv2 keeps 16 bits and alpha; palettes with transparency and damaged files are Pillow's."""
    import cv2

    data = source.read(path)
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError(f"{path}: truncated PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    _check_pixels(path, width, height, options)
    bits, kind = data[24], data[25]
    marked = b"acTL" in data[:100] or b"eXIf" in data or b"tRNS" in data[:4096]
    if marked or kind == 3 or bits < 8 or width * height > CV2_PIXELS:
        return _decode_pillow(path, options)
    with captured_stderr():
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ImageError(f"{path}: damaged or truncated PNG")
    if image.ndim == 3:
        order = [2, 1, 0, 3][: image.shape[2]]
        image = np.ascontiguousarray(image[..., order])
    return _to_8_bits(image, options)


CV2_PIXELS = 1 << 30  # cv2 refuses larger images, whatever a caller allows


def _decode_pillow(path: Path, options: ImageOptions, at_least: int | None = None) -> Array:
    """The first frame by Pillow, upright, with its alpha laid over the background; a JPEG at a half, a quarter or an
    eighth of its size where its shorter side stays `at_least`."""
    from PIL import ImageOps

    with _pillow(path) as image:
        _check_pixels(path, image.size[0], image.size[1], options)
        try:
            with captured_stderr():
                if at_least:
                    by = scaled_by(min(image.size), at_least)
                    image.draft(None, (image.size[0] // by, image.size[1] // by))
                image.load()
                upright = ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's plugins raise what they like on damaged data
            reason = f"{path}: damaged or truncated {image.format} ({_one_line(error)})"
            raise ImageError(reason) from None
        return _to_8_bits(_pixels(upright), options)


def _pixels(image: Any) -> Array:
    """A Pillow image's values: (H, W), (H, W, 3) or (H, W, 4) with alpha, at their own depth."""
    if image.mode in ("1", "L", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        transparent = "transparency" in image.info and image.mode in ("1", "L", "RGB")
        values = np.asarray(image.convert("RGBA") if transparent else image)
        return values.astype(np.uint8) * 255 if values.dtype == bool else values
    if image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))  # P, CMYK (Adobe's inversion included), YCbCr, LAB, HSV


def _decode_tiff(path: Path, options: ImageOptions) -> Array:
    """Pillow, and cv2 for the kinds that Pillow lacks (16-bit RGB above all)."""
    import cv2

    _check_pixels(path, *_tiff_size(path), options)
    try:
        return _decode_pillow(path, options)
    except ImageError as error:
        with captured_stderr():
            image = cv2.imdecode(np.frombuffer(source.read(path), np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise error from None
    return _to_8_bits(image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]], options)


def _tiff_size(path: Path) -> tuple[int, int]:
    """(width, height) from the first directory of a TIFF (TIFF 6.0, section 2)."""
    data = source.read(path)
    order = "<" if data[:2] == b"II" else ">"
    sizes = {1: "B", 3: "H", 4: "I"}
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        tags: dict[int, int] = {}
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", data, entry)
            if tag in (256, 257):
                tags[tag] = struct.unpack_from(order + sizes[kind], data, entry + 8)[0]
        return tags[256], tags[257]
    except (struct.error, KeyError):
        raise ImageError(f"{path}: damaged or truncated TIFF") from None


def deep_gray(path: Path) -> Array | None:
    """uint16 (H, W) of a PNG or TIFF with 16 bits of gray; None of any other file."""
    import cv2

    if not source.head(path, 4)[0].startswith((b"\x89PNG", b"II*\0", b"MM\0*")):
        return None
    with captured_stderr():
        values = cv2.imdecode(np.frombuffer(source.read(path), np.uint8), cv2.IMREAD_UNCHANGED)
    return values if values is not None and values.ndim == 2 and values.dtype == np.uint16 else None


def _pillow(path: Path) -> Any:
    """A file opened by Pillow, its pixels not yet read."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # max_pixels is the limit, and is checked before anything is decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(source.plain(path))
    except UnidentifiedImageError:
        head = _head(path)[0]
        reason = "damaged or truncated image" if head.startswith(_MAGIC) else "not an image"
        raise ImageError(f"{path}: {reason}") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or _one_line(error)}") from None
    except Exception as error:
        raise ImageError(f"{path}: damaged image header ({_one_line(error)})") from None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:160] or type(error).__name__


def _orientation(image: Any) -> int:
    """EXIF orientation, 1 to 8; from 5 on, width and height change places."""
    try:
        value = image.getexif().get(0x0112, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    except Exception:
        return 1


def _probe_dicom(path: Path) -> dict[str, Any]:
    try:
        fields = dicom.read_header(path, ["Rows", "Columns", "NumberOfFrames"])
    except DicomError as error:
        raise ImageError(str(error)) from None
    rows, columns = fields["Rows"], fields["Columns"]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise ImageError(f"{path}: DICOM file without an image (no Rows and Columns)")
    frames = fields["NumberOfFrames"]
    return {"width": columns, "height": rows, "frames": frames if isinstance(frames, int) and frames > 0 else 1}


# ---------------------------------------------------------------------------------------------- depth


def _to_8_bits(image: Array, options: ImageOptions) -> Array:
    """Any depth, with or without alpha -> uint8 (H, W) or (H, W, 3)."""
    alpha = None
    if image.ndim == 3 and image.shape[2] == 4:
        top = 255.0 if image.dtype == np.uint8 else 65535.0
        image, alpha = image[..., :3], image[..., 3:].astype(np.float32) / top
    if image.dtype != np.uint8:
        image = _shallow(image, options)
    if alpha is not None:
        image = np.rint(image * alpha + options.background * (1 - alpha)).astype(np.uint8)
    return np.require(image, requirements=["C", "W"])  # Pillow's arrays are read-only


def _shallow(image: Array, options: ImageOptions) -> Array:
    """More than 8 bits -> uint8: colour by its range, gray by its range or between percentiles."""
    if image.dtype.itemsize == 2 and image.dtype.kind == "u" and (image.ndim == 3 or options.deep == "full"):
        return np.rint(image / np.float32(257.0)).astype(np.uint8)  # 65535 / 255
    real = image.astype(np.float64)
    finite = real[np.isfinite(real)]
    if not finite.size:
        raise DicomError("no finite value in it")
    if options.deep == "full":
        low, high = _whole_range(image.dtype, finite)
    else:
        low, high = np.percentile(finite, options.percentiles, method="inverted_cdf")
    if high <= low:
        return np.where(real > low, 255, 0).astype(np.uint8)
    return np.rint(np.clip(np.nan_to_num((real - low) / (high - low)), 0, 1) * 255).astype(np.uint8)


def _whole_range(dtype: np.dtype[Any], finite: Array) -> tuple[float, float]:
    """Float images by custom hold 0 to 1; 32-bit integers come from 16-bit files in Pillow's mode I."""
    if dtype.kind == "f" and finite.max() <= 1.0:
        return 0.0, 1.0
    return 0.0, 65535.0 if finite.max() <= 65535 else float(finite.max())


# ----------------------------------------------------------------------------------------------- crop

Box = tuple[int, int, int, int]  # top, bottom, left, right; the ends not included


def crop(image: Array, options: ImageOptions) -> Array:
    """The part of an image that `options.crop` keeps; all of it where it finds nothing to leave out."""
    if options.crop == "none":
        return image
    top, bottom, left, right = crop_box(image, options)
    return np.ascontiguousarray(image[top:bottom, left:right])


def crop_box(image: Array, options: ImageOptions) -> Box:
    """Where that part lies."""
    find = {"black_border": _content_box, "vignette": _vignette_box, "threshold": _object_box}[options.crop]
    top, bottom, left, right = find(_gray(image), options)
    if bottom - top < 8 or right - left < 8:
        return 0, image.shape[0], 0, image.shape[1]
    return top, bottom, left, right


def cut(image: Array, window: Sequence[int], path: Path) -> Array:
    """A window (left, top, right, bottom) of an image; ImageError where it does not lie in it."""
    left, top, right, bottom = window
    rows, columns = image.shape[:2]
    if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
        raise ImageError(
            f"{path}: the crop {left}..{right} x {top}..{bottom} does not lie in its {columns} x {rows} pixels; "
            "run 08_crop.py again"
        )
    return np.ascontiguousarray(image[top:bottom, left:right])


def _gray(image: Array) -> Array:
    import cv2

    if image.ndim == 2:
        return image
    if image.shape[2] != 3:
        return np.rint(image.mean(axis=2)).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _span(flags: Array) -> tuple[int, int]:
    where = np.flatnonzero(flags)
    return (int(where[0]), int(where[-1]) + 1) if where.size else (0, 0)


def _content_box(gray: Array, options: ImageOptions) -> Box:
    """Rows and columns at the border where (nearly) no pixel is above the threshold are left out; noise of
    up to 1 % of a line does not count as content."""
    bright = gray > (16 if options.crop_threshold is None else options.crop_threshold)
    return *_span(bright.mean(axis=1) > 0.01), *_span(bright.mean(axis=0) > 0.01)


def _vignette_box(gray: Array, options: ImageOptions) -> Box:
    """The largest rectangle of the image's shape inside a bright circle with dark corners."""
    height, width = gray.shape
    whole = (0, height, 0, width)
    threshold = 40 if options.crop_threshold is None else options.crop_threshold
    corner = max(2, min(height, width) // 20)
    corners = [gray[:corner, :corner], gray[:corner, -corner:], gray[-corner:, :corner], gray[-corner:, -corner:]]
    if max(float(part.mean()) for part in corners) > threshold:
        return whole
    top, bottom, left, right = _content_box(gray, options.model_copy(update={"crop_threshold": threshold}))
    center_y, center_x = (top + bottom - 1) / 2, (left + right - 1) / 2
    half_y, half_x = (bottom - top - 1) / 2, (right - left - 1) / 2
    for percent in range(100, 66, -2):  # a full circle leaves 70 %, one that the sensor cuts off leaves more
        y, x = percent / 100 * half_y, percent / 100 * half_x
        box = math.ceil(center_y - y), math.floor(center_y + y), math.ceil(center_x - x), math.floor(center_x + x)
        if gray[np.ix_(box[:2], box[2:])].min(initial=255) > threshold:
            break
    return box[0], box[1] + 1, box[2], box[3] + 1


def _object_box(gray: Array, options: ImageOptions) -> Box:
    """The box of the largest connected bright object (a breast, a body without its table), and a margin."""
    import cv2

    threshold, kind = (0, cv2.THRESH_OTSU) if options.crop_threshold is None else (options.crop_threshold, 0)
    _, mask = cv2.threshold(gray, threshold, 1, cv2.THRESH_BINARY | kind)
    if options.crop_threshold is None:  # Otsu splits an object's inside; its faint rim is below: half of that
        level, _ = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        mask = (gray > level / 2).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return 0, gray.shape[0], 0, gray.shape[1]
    left, top, width, height, _ = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))].tolist()
    margin_y, margin_x = round(height * options.crop_margin), round(width * options.crop_margin)
    return (
        max(0, top - margin_y),
        min(gray.shape[0], top + height + margin_y),
        max(0, left - margin_x),
        min(gray.shape[1], left + width + margin_x),
    )


# ------------------------------------------------------------------------------------------ fit, tones


def _fit(image: Array, height: int, width: int, options: ImageOptions) -> Array:
    """Resized to the size, or for 'pad' to what fits inside it."""
    rows, columns = image.shape[:2]
    if options.fit == "pad":
        scale = min(height / rows, width / columns)
        return _resized(image, (max(1, round(rows * scale)), max(1, round(columns * scale))))
    if options.fit == "crop":
        scale = max(height / rows, width / columns)
        keep_y, keep_x = min(rows, round(height / scale)), min(columns, round(width / scale))
        top, left = (rows - keep_y) // 2, (columns - keep_x) // 2
        image = image[top : top + keep_y, left : left + keep_x]
    return _resized(np.ascontiguousarray(image), (height, width))


def _resized(image: Array, shape: tuple[int, int]) -> Array:
    """OpenCV averages four channels at once, and no more."""
    if image.ndim == 2 or image.shape[2] <= 4:
        return resize(image, shape)
    parts = [resize(np.ascontiguousarray(image[..., k : k + 4]), shape) for k in range(0, image.shape[2], 4)]
    return np.concatenate([part.reshape(*shape, -1) for part in parts], axis=2)


def _pad(image: Array, height: int, width: int, value: int) -> Array:
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    out = np.full((height, width, image.shape[2]), value, np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    out[top : top + rows, left : left + columns] = image
    return out


def _as_channels(image: Array, channels: int, path: str | Path) -> Array:
    """(H, W, channels): gray as three equal ones, or any image as its gray."""
    import cv2

    if channels == 1:
        return np.ascontiguousarray(_gray(image)[..., None])
    if image.ndim == 2 and channels == 3:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    held = 1 if image.ndim == 2 else image.shape[2]
    if held != channels:
        raise ImageError(f"{path}: {held} channels, and `image: {{channels: {channels}}}` asks for {channels}")
    return np.ascontiguousarray(image)


def _tones(image: Array, options: ImageOptions) -> Array:
    if options.grayscale:
        image = _gray(image)
    if options.colour_constancy and image.ndim == 3:
        image = shades_of_gray(image, options.colour_power)
    return equalised(image, options.clahe, options.clahe_tiles) if options.clahe else image


def shades_of_gray(image: Array, power: float = 6.0) -> Array:
    """Each channel scaled so that the Minkowski means agree (Finlayson and Trezzi, 2004): a table a channel."""
    import cv2

    levels = np.arange(256, dtype=np.float64)
    counts = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    light = np.array([(count @ levels**power / count.sum()) ** (1 / power) for count in counts])
    gain = light.mean() / np.maximum(light, 1e-6)
    table = np.clip(np.rint(levels[:, None] * gain), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table[None])


def equalised(image: Array, clip: float, tiles: int) -> Array:
    """CLAHE on gray, or on the luma of YCrCb (twice as fast as Lab, the same to the eye)."""
    import cv2

    worker = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles))
    if image.ndim == 2:
        return worker.apply(image)
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)))
    planes[0] = worker.apply(planes[0])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2RGB)


# -------------------------------------------------------------------------------------------- inspect

COLUMNS = ("path", "status", "error", "transfer_syntax", "photometric", "bits", "shape", "min", "max")


def inspect(folder: str | Path, report: str | Path, workers: int | None = None) -> dict[str, int]:
    """A row for every file below `folder` (sorted, hidden ones left out) -> `report`; counts by status.

    DICOM: all frames are decoded; min and max are of stored values. Other images: the format stands in for
    the transfer syntax, the mode for the photometric interpretation. Files that are no images (tables,
    licences) get the status error and the reason 'not an image'; so does one that crashes its decoder.
    """
    from foldwise.core.files import replacing
    from foldwise.core.parallel import parallel_map

    folder, report = Path(folder), Path(report)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    if not report.parent.is_dir():
        raise ImageError(f"{report.parent}: no such folder for the report")
    names = [path.relative_to(folder).as_posix() for path in source.tree(folder).files if path != report]
    rows: dict[str, dict[str, Any]] = {}
    for name, row in parallel_map(partial(_inspect_rows, str(folder)), names, workers=workers, label="inspect"):
        rows[name] = row if isinstance(row, dict) else {"path": name, "status": "error", "error": str(row)}
    with replacing(report) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in names)
    ok = sum(row["status"] == "ok" for row in rows.values())
    return {"ok": ok, "error": len(rows) - ok}


def _inspect_rows(folder: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [_inspect_row(folder, name) for name in names]


def _inspect_row(folder: str, name: str) -> dict[str, Any]:
    import warnings

    path = Path(folder, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", source.ReadWarning)
            return {"path": name, "status": "ok", "error": "", **_describe(path)}
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except Exception as error:  # a row must say so, whatever it was
        reason = f"{type(error).__name__}: {_one_line(error)}"
    return {"path": name, "status": "error", "error": reason}


def _describe(path: Path) -> dict[str, Any]:
    head, _ = _head(path)
    if head and _is_dicom(head, path):
        return dicom.describe(path)
    probed = probe(path)
    image = read_image(path)
    with _pillow(path) as opened:
        mode, bits = opened.mode, _BITS.get(opened.mode, 8)
    shape = image.shape[:2] if mode in _GRAY_MODES else image.shape
    return {
        "transfer_syntax": probed["format"],
        "photometric": mode,
        "bits": bits,
        "shape": "x".join(map(str, shape)),
        "min": int(image.min()),
        "max": int(image.max()),
    }


_GRAY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_BITS = {"1": 1, "I": 32, "F": 32, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16}
