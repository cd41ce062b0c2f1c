"""DICOM files to pixels as their makers meant them, and to header fields.

read_image(path, size=None) -> uint8 (H, W) or (H, W, 3)
read_header(path, tags=None) -> {keyword: value}
"""

from foldwise.dicom.parse import DicomError, is_keyword
from foldwise.dicom.render import (
    DicomOptions,
    Size,
    decode_reduced,
    describe,
    frame_count,
    is_dicom,
    read_header,
    read_image,
    resize,
)

__all__ = [
    "DicomError",
    "DicomOptions",
    "Size",
    "decode_reduced",
    "describe",
    "frame_count",
    "is_dicom",
    "is_keyword",
    "read_header",
    "read_image",
    "resize",
]
