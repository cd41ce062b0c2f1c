"""DICOM files to pixels as their makers meant them, and to header fields.

read_image(path, size=None) -> uint8 (H, W) or (H, W, 3)
read_header(path, tags=None) -> {keyword: value}
read_series(folder or paths, size=None) -> uint8 (Z, H, W) or (Z, H, W, 3), and a table of the slices
"""

from foldwise.dicom.parse import DicomError, is_keyword
from foldwise.dicom.render import (
    DicomOptions,
    Size,
    apply_window,
    decode_reduced,
    describe,
    frame_count,
    is_dicom,
    read_header,
    read_image,
    resize,
    window_values,
)
from foldwise.dicom.series import read_series

__all__ = [
    "DicomError",
    "DicomOptions",
    "Size",
    "apply_window",
    "decode_reduced",
    "describe",
    "frame_count",
    "is_dicom",
    "is_keyword",
    "read_header",
    "read_image",
    "read_series",
    "resize",
    "window_values",
]
