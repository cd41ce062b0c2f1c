"""foldwise.image: every format and kind of pixel, crops, fits and tones, damaged files, and inspect."""

from __future__ import annotations

import csv
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldwise import UserError, dicom
from foldwise.core import schema
from foldwise.data import image
from foldwise.data.image import ImageError, ImageOptions

REPO = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FOLDWISE_SHARED", REPO.parent / "shared")) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data at {SHARED} (set FOLDWISE_SHARED)")


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth, in colour, with a top left that differs from every other corner."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9) * np.cos(y / 7)]
    rgb = np.stack(channels, axis=-1).astype(np.uint8)
    rgb[: height // 4, : width // 4] = (250, 10, 10)
    return rgb


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jpg", "gif"])
def test_formats_give_rgb_in_its_order(tmp_path: Path, suffix: str) -> None:
    rgb = picture()
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    path = saved(tmp_path / f"a.{suffix}", rgb, **options)
    read = image.read_image(path)
    assert read.dtype == np.uint8 and read.shape == rgb.shape and read.flags.c_contiguous and read.flags.writeable
    if suffix in ("png", "bmp", "tif", "webp"):
        np.testing.assert_array_equal(read, rgb)
    else:
        assert psnr(read, rgb) > (20 if suffix == "gif" else 38)
    name = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    assert image.probe(path) == {"format": name, "width": 64, "height": 48, "bytes": path.stat().st_size}
    assert image.read_image(path, 32).shape == (32, 32, 3)
    assert image.read_image(path, (20, 30)).shape == (20, 30, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    rgb = picture(160, 240)
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    laid = Image.fromarray(rgb)
    laid = laid.transpose(undo[orientation]) if orientation > 1 else laid
    quality = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", laid, exif=exif, **quality)
    assert psnr(image.read_image(path), rgb) > 35
    assert (image.probe(path)["height"], image.probe(path)["width"]) == (160, 240)
    small = image.read_image(path, (40, 60))  # by scaled decode
    assert psnr(small, np.asarray(Image.fromarray(rgb).resize((60, 40), Image.Resampling.BOX))) > 30


def test_gray_palette_alpha_and_cmyk(tmp_path: Path) -> None:
    rgb = picture()
    gray = rgb[..., 2]
    for suffix in ("png", "tif", "bmp"):
        read = image.read_image(saved(tmp_path / f"g.{suffix}", gray))
        np.testing.assert_array_equal(read, np.dstack([gray] * 3))
    one = Image.fromarray(gray > 128)
    assert set(np.unique(image.read_image(saved(tmp_path / "one.png", one)))) == {0, 255}
    palette = Image.fromarray(rgb).quantize(32)
    np.testing.assert_array_equal(
        image.read_image(saved(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB"))
    )
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
    path = saved(tmp_path / "a.png", alpha)
    assert np.abs(image.read_image(path) - rgb * (128 / 255)).max() <= 1
    white = image.read_image(path, options=ImageOptions(background=255))
    assert np.abs(white - (rgb * (128 / 255) + 255 * (127 / 255))).max() <= 1
    la = Image.fromarray(gray).convert("LA")
    np.testing.assert_array_equal(image.read_image(saved(tmp_path / "la.png", la)), np.dstack([gray] * 3))
    cmyk = saved(tmp_path / "c.jpg", Image.fromarray(rgb).convert("CMYK"), quality=95)
    assert psnr(image.read_image(cmyk), rgb) > 28


def test_deep_gray_is_stretched_and_deep_colour_is_not(tmp_path: Path) -> None:
    deep = (np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) + 1000).astype(np.uint16)  # 12 bits in 16
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"d.{suffix}", Image.fromarray(deep))
        read = image.read_image(path)[..., 0]
        assert read.min() == 0 and read.max() == 255 and abs(read.mean() - 127.5) < 1
        full = image.read_image(path, options=ImageOptions(deep="full"))[..., 0]
        assert np.abs(full - deep / 257).max() <= 0.5
    real = np.linspace(-5, 5, 48 * 64, dtype=np.float32).reshape(48, 64)
    assert abs(image.read_image(saved(tmp_path / "f.tif", Image.fromarray(real))).mean() - 127.5) < 1
    import cv2

    colour = picture().astype(np.uint16) * 257
    for name in ("c.png", "c.tif"):
        cv2.imwrite(str(tmp_path / name), colour[..., ::-1])
        np.testing.assert_array_equal(image.read_image(tmp_path / name), picture())


def test_the_first_frame_of_animations(tmp_path: Path) -> None:
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    for suffix, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second], **options)
        assert psnr(image.read_image(path), picture()) > 20


@pytest.mark.smoke
def test_scaled_jpeg_decode_is_near_the_full_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", picture(1024, 1536), quality=90)
    full = image.read_image(path)
    for size in (64, 224, 384, (128, 300)):
        assert psnr(image.read_image(path, size), dicom.resize(full, size)) > 35


@pytest.mark.parametrize("size", [96, (60, 90), (200, 40)])
def test_fits(tmp_path: Path, size: int | tuple[int, int]) -> None:
    white = saved(tmp_path / "w.png", np.full((80, 160, 3), 255, np.uint8))
    height, width = (size, size) if isinstance(size, int) else size
    for fit in ("squash", "pad", "crop"):
        read = image.read_image(white, size, ImageOptions(fit=fit, pad_value=7))
        assert read.shape == (height, width, 3)
        share = (read == 255).mean()
        inside = min(height / 80, width / 160) ** 2 * 80 * 160 / (height * width)
        assert share == pytest.approx(inside if fit == "pad" else 1.0, abs=0.02)
        assert fit != "pad" or set(np.unique(read)) <= {7, 255}


def test_crops() -> None:
    framed = np.zeros((100, 120, 3), np.uint8)
    framed[20:80, 30:110] = picture(60, 80) | 32
    np.testing.assert_array_equal(image.crop(framed, ImageOptions(crop="black_border")), framed[20:80, 30:110])
    breast = np.zeros((200, 150), np.uint8)
    breast[50:150, :60] = 120
    breast[5:15, 120:140] = 255  # a label
    kept = image.crop(breast, ImageOptions(crop="threshold", crop_margin=0))
    assert kept.shape == (100, 60) and kept.min() == 120
    y, x = np.mgrid[0:200, 0:300]
    lesion = (((y - 100) ** 2 + (x - 150) ** 2 < 98**2) * 180).astype(np.uint8)
    inside = image.crop(np.dstack([lesion] * 3), ImageOptions(crop="vignette"))
    assert inside.min() == 180 and inside.shape[0] > 120
    bright = np.full((50, 60, 3), 200, np.uint8)
    black = np.zeros((50, 60, 3), np.uint8)
    for kind in ("black_border", "vignette", "threshold", "none"):
        for plain in (bright, black):
            assert image.crop(plain, ImageOptions(crop=kind)).shape == plain.shape


def test_tones() -> None:
    cast = np.clip(picture() * np.array([0.5, 0.8, 0.6]) + 5, 0, 255).astype(np.uint8)
    levels = cast.astype(np.float64)
    light = (levels**6).mean(axis=(0, 1)) ** (1 / 6)  # the plain twin
    twin = np.clip(np.rint(levels * light.mean() / light), 0, 255)
    np.testing.assert_array_equal(image.shades_of_gray(cast), twin)
    equalised = image.equalised(cast // 4, 2.0, 8)
    assert equalised.std() > (cast // 4).std()


def test_grayscale_option(tmp_path: Path) -> None:
    read = image.read_image(saved(tmp_path / "a.png", picture()), 32, ImageOptions(grayscale=True, clahe=2.0))
    assert read.shape == (32, 32, 3) and (read[..., 0] == read[..., 2]).all()


@pytest.mark.smoke
def test_options_are_strict() -> None:
    with pytest.raises(UserError, match="did you mean 'percentiles'"):
        schema.validate(ImageOptions, {"percentile": [1, 99]}, "competition.yaml")
    for bad in ({"window": "brian"}, {"percentiles": [50, 10]}, {"fit": "stretch"}, {"window": ["brain", "bone"]}):
        with pytest.raises(UserError, match=r"competition\.yaml"):
            schema.validate(ImageOptions, bad, "competition.yaml")
    assert all(field.description for field in ImageOptions.model_fields.values())


# --------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    for share in (0.02, 0.3, 0.7, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError) as caught:
            image.read_image(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_damage_inside_a_jpeg_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", picture(256, 256), quality=95)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = data[-2:]  # half of the scan, then a proper end mark
    path.write_bytes(data)
    with pytest.raises(ImageError, match="damaged or truncated JPEG"):
        image.read_image(path)


def test_not_an_image(tmp_path: Path) -> None:
    for name, content, reason in (
        ("a.csv", b"id,target\n1,2\n" * 99, "not an image"),
        ("b.jpg", b"", "empty file"),
        ("LICENSE", b"MIT License", "not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        for read in (image.read_image, image.probe):
            with pytest.raises(ImageError, match=reason):
                read(tmp_path / name)
    with pytest.raises(ImageError, match="No such file"):
        image.read_image(tmp_path / "missing.png")


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture())
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(ImageError):
        image.read_image(path)
    jpeg = saved(tmp_path / "a.jpg", picture())
    data = bytearray(jpeg.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    jpeg.write_bytes(data)
    with pytest.raises(ImageError, match="over the limit max_pixels"):
        image.read_image(jpeg)
    small = saved(tmp_path / "b.webp", picture())
    with pytest.raises(ImageError, match="over the limit max_pixels=100"):
        image.read_image(small, options=ImageOptions(max_pixels=100))


def test_max_pixels_alone_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has a limit of its own, and cv2 another: neither stands above the option."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses what is twice as large
    monkeypatch.setattr(image, "CV2_PIXELS", 1000)
    for name in ("a.tif", "a.webp", "a.jpg", "a.png", "a.bmp"):
        path = saved(tmp_path / name, picture(96, 128))
        assert image.read_image(path).shape == (96, 128, 3)
        assert psnr(image.read_image(path, 24), dicom.resize(picture(96, 128), 24)) > 30
        with pytest.raises(ImageError, match="max_pixels=9000; raise `image: max_pixels` to read it"):
            image.read_image(path, options=ImageOptions(max_pixels=9000))


FUZZ = """
import random, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from foldwise.data import image
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
folder = Path(sys.argv[2])
files = [(p, p.read_bytes()) for p in map(Path, sys.argv[4:])]
for seed in range(int(sys.argv[3])):
    rng = random.Random(seed)
    path, data = files[rng.randrange(len(files))]
    data = bytearray(data)
    if rng.random() < 0.8:
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(rng.choice([len(data), min(200, len(data))]))] = rng.randrange(256)
    else:
        del data[rng.randrange(len(data)):]
    target = folder / ("case" + path.suffix)
    target.write_bytes(data)
    (folder / "seed").write_text(f"{seed} {path.name}")
    for work in (image.probe, lambda p: image.read_image(p, rng.choice([None, 24]))):
        try:
            work(target)
        except image.ImageError as error:
            assert "\\n" not in str(error)
"""


def test_damaged_images_never_crash_or_hang(tmp_path: Path) -> None:
    files = []
    for suffix in ("jpg", "png", "webp", "tif", "bmp", "gif"):
        files.append(saved(tmp_path / f"a.{suffix}", picture()))
        files.append(saved(tmp_path / f"g.{suffix}", picture()[..., 0]))
    files.append(saved(tmp_path / "d.png", Image.fromarray(picture()[..., 0].astype(np.uint16) * 9)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FUZZ, str(REPO / "src"), str(tmp_path), "1200", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"case {(tmp_path / 'seed').read_text()}: {done.stderr[-800:]}"


# ---------------------------------------------------------------------------------------- inspect


def test_inspect_reports_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    saved(folder / "sub/b.png", picture())
    saved(folder / "a.jpg", picture()[..., 0])
    (folder / "train.csv").write_text("id\n1\n")
    (folder / ".hidden").write_text("x")
    counts = image.inspect(folder, tmp_path / "report.csv", workers=1)
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert counts == {"ok": 2, "error": 1}
    assert [(row["path"], row["status"], row["error"]) for row in rows] == [
        ("a.jpg", "ok", ""),
        ("sub/b.png", "ok", ""),
        ("train.csv", "error", "not an image"),
    ]
    assert tuple(rows[0]) == image.COLUMNS and rows[0]["shape"] == "48x64" and rows[1]["shape"] == "48x64x3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "report.csv"]
    with pytest.raises(ImageError, match="no such folder"):
        image.inspect(tmp_path / "missing", tmp_path / "r.csv")


@needs_shared
def test_inspect_agrees_with_the_inventory(tmp_path: Path) -> None:
    counts = image.inspect(SHARED / "dicom", tmp_path / "report.csv", workers=2)
    with (tmp_path / "report.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    with (SHARED / "dicom/inventory.csv").open() as file:
        inventory = list(csv.DictReader(file))
    assert sum(counts.values()) == len(inventory) + 1
    for known in inventory:
        row = rows[known["file"]]
        if known["decodes_with_pydicom_and_all_plugins"] == "yes":
            assert row["status"] == "ok" or "GPL" in row["error"], row
        if row["status"] == "ok":
            assert (row["photometric"], row["bits"]) == (known["photometric"], known["bits_stored"]), row
        else:
            assert row["error"]


@needs_shared
def test_real_photos(tmp_path: Path) -> None:
    files = random.Random(0).sample(sorted(SHARED.glob("hymenoptera/train/*/*")), 20)
    for path in files:
        found, read = image.probe(path), image.read_image(path)
        assert read.shape == (found["height"], found["width"], 3)
        plain = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        assert psnr(read, plain) > 45
