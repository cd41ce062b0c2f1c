"""Uploads: hostile files end in a message, harmless ones go through training's own code."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shared

from app import uploads
from app.uploads import Limits, TooMuch, Upload
from foldwise import UserError
from foldwise.data import cache, image
from foldwise.data.image import ImageOptions
from foldwise.dicom import parse


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    """As the app does at its start."""
    uploads.prepare()


def picture(seed: int = 0, size: int = 40, kind: str = ".png") -> bytes:
    """A small noisy image file."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size + 8, 3)).astype(np.uint8)
    return cv2.imencode(kind, noise)[1].tobytes()


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return stream.getvalue()


def refused(*files: Upload, limits: Limits | None = None, size: int = 32) -> dict[str, str]:
    """{id: reason} of what is refused or can't read."""
    with uploads.receiving(files, limits) as received:
        if not len(received.rows):
            return received.refused
        _, where, errors = received.cached(size, ImageOptions())
        assert [row_id for row_id, row in zip(received.rows["id"], where, strict=True) if row < 0] == list(errors)
        return received.refused | errors


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with hardly a pixel in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deflated_bomb(grown: int) -> bytes:
    """A deflated DICOM data set (PS3.5 A.5) of a private element that grows to `grown` bytes."""
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [squeeze.compress(struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, grown))]
    zeros = bytes(1 << 24)
    parts += [squeeze.compress(zeros) for _ in range(grown >> 24)]
    return bytes(128) + b"DICM" + meta + b"".join(parts) + squeeze.flush()


@pytest.mark.smoke
def test_pixels_are_those_that_training_would_cache(tmp_path: Path) -> None:
    files = [Upload("a.png", picture(1)), Upload("b/c.jpg", picture(2, 90, ".jpg"))]
    with uploads.receiving(files) as received:
        images, where, errors = received.cached(32, ImageOptions())
        got = images.read(where)
    assert not errors
    for place, file in zip(got, files, strict=True):
        (tmp_path / "x").write_bytes(file.data)
        assert np.array_equal(place, image.read_image(tmp_path / "x", size=32))


def test_a_folder_of_uploads_is_gone_afterwards() -> None:
    with uploads.receiving([Upload("a.png", picture())]) as received:
        folder = received.folder
        assert received.path().exists()
    assert not folder.exists()


def test_wrong_types_and_damage_are_refused_by_name() -> None:
    found = refused(
        Upload("notes.txt", b"hello, this is no image at all, only words " * 9),
        Upload("empty.png", b""),
        Upload("cut.jpg", picture(3, 200, ".jpg")[:900]),
        Upload("good.png", picture()),
        Upload("page.ps", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run"),
        Upload("fake.dcm", bytes(128) + b"DICM" + b"\xff" * 99),
    )
    assert set(found) == {"notes.txt", "empty.png", "cut.jpg", "page.ps", "fake.dcm"}
    assert "not an image" in found["notes.txt"] and found["empty.png"] == "empty file"
    assert "damaged" in found["cut.jpg"] and "PostScript" in found["page.ps"]
    assert not any("Traceback" in reason or "\n" in reason for reason in found.values())


def test_an_image_that_claims_too_many_pixels_is_not_decoded() -> None:
    found = refused(Upload("bomb.png", png_header(50_000, 50_000)), Upload("wide.png", png_header(2_000_000_000, 1)))
    assert "pixels, over the limit max_pixels=50000000" in found["bomb.png"]
    assert "limit" in found["wide.png"]
    small = refused(Upload("a.png", picture(0, 64)), limits=Limits(pixels=1000))
    assert "72 x 64 pixels, over the limit" in small["a.png"]


def test_a_deflated_dicom_bomb_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "MAX_INFLATED", 4 << 20)
    with uploads.receiving([Upload("bomb.dcm", deflated_bomb(64 << 20))]) as received:
        for look in (uploads.header, image.read_image):
            with pytest.raises(UserError, match="grows past 4 MiB"):
                look(received.path())


@pytest.mark.smoke
def test_an_archive_is_unpacked_and_its_names_never_name_a_file() -> None:
    files = {
        "../../etc/evil.png": picture(1),
        "/abs.png": picture(2),
        "..\\win.png": picture(3),
        "in/x.png": picture(4),
    }
    data = archive({**files, "in/.hidden.png": picture(5), "__MACOSX/y.png": picture(6), "in/deep.zip": archive(files)})
    with uploads.receiving([Upload("all.zip", data)]) as received:
        assert received.rows["id"].tolist() == ["etc/evil.png", "abs.png", "win.png", "in/x.png"]
        written = {path.resolve() for path in received.folder.rglob("*")}
        assert all(path.parent == received.folder.resolve() for path in written)
        assert received.refused == {"in/deep.zip": "an archive inside an archive is not opened"}
        _, where, errors = received.cached(32, ImageOptions())
        assert (where >= 0).all() and not errors


def test_zip_bombs_are_refused_before_they_grow() -> None:
    zeros = archive({"zeros.png": bytes(30 << 20)})
    assert "decompression bomb" in refused(Upload("b.zip", zeros))["zeros.png"]
    many = archive({f"{k}.png": b"x" for k in range(30)}, zipfile.ZIP_STORED)
    with pytest.raises(TooMuch, match="30 files, and 20"):
        refused(Upload("many.zip", many), limits=Limits(files=20))
    with pytest.raises(TooMuch, match="send fewer"):
        refused(Upload("many.zip", many * 200), limits=Limits(files=20))  # thousands of entries: not even parsed
    noise = archive({f"{k}.png": picture(k, 60) for k in range(9)})
    with pytest.raises(TooMuch, match=r"send less|send fewer"):
        refused(Upload("big.zip", noise), limits=Limits(total_bytes=40_000))
    with pytest.raises(TooMuch, match="send fewer"):
        refused(*(Upload(f"{k}.png", picture(k, 60)) for k in range(9)), limits=Limits(total_bytes=40_000))


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_the_limit() -> None:
    data = bytearray(archive({"a.bin": bytes(5 << 20)}))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)  # the central directory says ten bytes
    found = refused(Upload("liar.zip", bytes(data)), limits=Limits(file_bytes=1 << 20))
    assert list(found) == ["a.bin"]


def test_damaged_encrypted_and_doubled_members_are_said() -> None:
    good = archive({"a.png": picture(1), "b.png": picture(2)}, zipfile.ZIP_STORED)
    broken = bytearray(good)
    broken[good.index(b"b.png") + 200] ^= 0xFF
    assert "damaged in the archive" in refused(Upload("x.zip", bytes(broken)))["b.png"]
    assert "damaged archive" in refused(Upload("x.zip", good[: len(good) // 2]))["x.zip"]
    locked = bytearray(good)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[good.index(mark) + at] |= 1
    assert refused(Upload("x.zip", bytes(locked)))["a.png"] == "encrypted"
    assert refused(Upload("a.png", picture(1)), Upload("x.zip", good)) == {"a.png": "a second file of this name"}


def test_names_with_control_characters_become_one_line() -> None:
    with uploads.receiving([Upload("a\nb\x1b[31m.png", picture())]) as received:
        assert received.rows["id"].tolist() == ["a�b�[31m.png"]


def test_no_descriptor_is_kept_for_an_upload() -> None:
    import gc

    def ask() -> None:
        with uploads.receiving([Upload("a.png", picture())]) as received:
            images, where, _ = received.cached(32, ImageOptions())
            images.read(where)

    ask()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        ask()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_crash_in_a_decoder_takes_nobody_along() -> None:
    import os

    with pytest.raises(UserError, match="crashed"):
        uploads.apart(os._exit, 3)
    assert uploads.apart(max, 1, 2) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA")
def test_a_file_that_takes_too_much_memory_is_refused() -> None:
    assert len(uploads.apart(bytes, 1 << 20)) == 1 << 20
    with pytest.raises(UserError, match="more memory than a file may take"):
        uploads.apart(bytes, uploads.WORKER_MEMORY)


def deep(values: np.ndarray) -> Upload:
    return Upload("deep.png", cv2.imencode(".png", values)[1].tobytes())


def test_a_window_on_16_bits_shows_what_it_says() -> None:
    values = np.tile(np.arange(0, 40_000, 625, dtype=np.uint16), (64, 1))
    own = ImageOptions()
    with uploads.receiving([deep(values), Upload("flat.png", picture())]) as received:
        found = uploads.depth(received.path(0), own)
        assert found is not None and (found.low, found.high) == (0, 39_375)
        assert uploads.depth(received.path(1), own) is None
        chosen = uploads.windowed(received.path(0), own, 20_000, 10_000)
        shown = uploads.look(received.path(0), 64, chosen)[0, :, 0].astype(float)
        wanted = np.clip((values[0].astype(float) - 15_000) / 10_000, 0, 1) * 255
        assert np.abs(shown - wanted).max() <= 12  # ends fall on values that the image has
        _, where, _ = received.cached(32, chosen)
        assert (where >= 0).all()


def test_a_ct_is_windowed_in_hounsfield_units_and_its_header_hides_the_patient() -> None:
    import pydicom

    file = next(shared("data", "dicom").rglob("*CTImage.dcm_Deflated*"))
    header = pydicom.dcmread(file)
    with uploads.receiving([Upload("ct.dcm", file.read_bytes())]) as received:
        found = uploads.depth(received.path(), ImageOptions())
        assert found is not None and found.unit == "HU"
        low, high = (float(f(header.pixel_array)) + header.RescaleIntercept for f in (np.min, np.max))
        assert (found.low, found.high) == (low, high)
        options = uploads.windowed(received.path(), ImageOptions(), 40, 400)
        assert options.window == "40.0000/400.0000"
        fields = uploads.header(received.path())
    assert fields["Modality"] == "CT" and fields["Rows"] == str(header.Rows)
    assert not {"PatientName", "PatientID", "PatientBirthDate", "ReferringPhysicianName"} & set(fields)
    assert str(header.PatientName) not in " ".join(fields.values())


def test_other_options_make_another_cache() -> None:
    values = np.tile(np.arange(0, 60_000, 1000, dtype=np.uint16), (60, 1))
    with uploads.receiving([deep(values)]) as received:
        first, where, _ = received.cached(32, ImageOptions())
        second, _, _ = received.cached(32, uploads.windowed(received.path(), ImageOptions(), 10_000, 5_000))
        assert isinstance(first, cache.Cache)
        assert not np.array_equal(first.read(where), second.read(where))
