"""Where images come from: archives, several folders, links, and files known by their first bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import Workplace
from PIL import Image
from test_dicom import make as dicom_file

from foldwise import UserError
from foldwise.core import archives, source
from foldwise.data import image, index, tables
from foldwise.data.competition import load_competition
from foldwise.data.template import fill

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, PIXELS[..., ::-1])[1].tobytes()


@pytest.mark.smoke
def test_members_of_archives_are_read_like_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.png", encoded(".png"))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["void"] = np.void(encoded(".png"))  # as ISIC 2024 packs them
        file["bytes"] = np.frombuffer(encoded(".png"), np.uint8)
        file["in/pixels"] = PIXELS
        file["deep"] = (PIXELS[..., 0].astype(np.uint16) << 4)[:, ::-1]
        file["real"] = PIXELS[..., 0].astype(np.float32)
    for name in ("a.zip/in/a.png", "a.hdf5/void", "a.hdf5/bytes", "a.hdf5/in/pixels"):
        np.testing.assert_array_equal(image.read_image(tmp_path / name), PIXELS)
        assert image.probe(tmp_path / name)["width"] == 24
    assert image.read_image(tmp_path / "a.hdf5" / "deep").shape == (20, 24, 3)
    with pytest.raises(image.ImageError, match=r"float32 .* is no image"):
        image.read_image(tmp_path / "a.hdf5" / "real")
    for absent in ("a.zip/b.png", "a.hdf5/b", "a.hdf5/in", "b.zip/a", "a.zip"):
        assert source.is_there(tmp_path / absent) == (absent == "a.zip")
    with pytest.raises(image.ImageError, match="No such member"):
        image.read_image(tmp_path / "a.zip" / "b.png")


@pytest.mark.smoke
def test_images_are_known_by_their_first_bytes_and_the_rest_is_counted(tmp_path: Path) -> None:
    formats = dict.fromkeys(["a.jfif", "d", "e.data", "f.JPG"], "JPEG")
    formats |= {"b.ppm": "PPM", "c.PNG": "PNG", "g.x": "WEBP", "h.y": "TIFF", "i.z": "BMP"}
    for name, kind in formats.items():
        Image.fromarray(PIXELS).save(tmp_path / name, kind)
    for name in ("LICENSE", "README.txt", "notes.txt", "BM.txt", ".hidden.png"):
        (tmp_path / name).write_text("BMW P6 is a car, of " + name)
    listed = image.listing(tmp_path)
    assert [path.name for path in listed.images] == sorted(formats)
    assert listed.others == Counter({".txt": 3, "no suffix": 1, "hidden": 1})
    assert listed.left_out == ", 5 other files, no images, left out (3 .txt, 1 no suffix, 1 hidden)"


@pytest.mark.smoke
def test_links_are_followed_but_not_in_circles_nor_from_elsewhere_on(tmp_path: Path) -> None:
    raw, away, further = tmp_path / "raw", tmp_path / "away", tmp_path / "further"
    for folder in (raw / "cats", away / "more", further):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(encoded(".png"))
    (raw / "dogs").symlink_to(away)
    (raw / "copy").symlink_to(raw / "cats")
    (raw / "cats" / "up").symlink_to(raw)
    (raw / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (away / "escape").symlink_to(further)
    listed = image.listing(raw)
    assert [path.relative_to(raw).as_posix() for path in listed.images] == [
        "cats/a.png",
        "copy/a.png",
        "dogs/more/a.png",
    ]
    assert listed.outside == [raw / "dogs"]
    assert set(listed.others) == {"link to a folder above it", "broken link", "link out of a linked folder"}


def test_a_class_folder_may_be_a_link_and_what_is_no_image_is_said(tiny: Workplace) -> None:
    table = pd.read_csv(tiny.raw / "train.csv")
    for kind, place in ((1, tiny.raw / "classes" / "sick"), (0, tiny.root / "elsewhere")):
        place.mkdir(parents=True)
        for name in table["image_id"][table["sick"] == kind]:
            shutil.copy(tiny.raw / "train" / f"{name}.png", place / name)  # without a suffix
    (tiny.raw / "classes" / "well").symlink_to(tiny.root / "elsewhere")
    (tiny.raw / "classes" / "labels.txt").write_text("sick, well")
    tiny.describe(train={"folders": "classes"}, test={"images": "test"}, positive="sick", metadata={}, group=None)
    said = tiny.run("01_preprocess.py", "--sizes", 32).stderr
    assert "train: a link leads out of the raw folder and is followed" in said
    assert "1 other file, no image, left out (1 .txt)" in said
    assert len(pd.read_csv(tiny.derived / "folds.csv")) == 59  # the broken file has no suffix: it is no image
    assert "no image, left out" in (tiny.derived / "report.html").read_text()


def test_one_table_over_folders_suffixes_and_an_hdf5_file(tiny: Workplace) -> None:
    files = sorted((tiny.raw / "train").glob("*.png"))
    (tiny.raw / "part2").mkdir()
    with h5py.File(tiny.raw / "train.hdf5", "w") as packed:
        for file in files[:20]:
            packed[file.stem] = np.void(file.read_bytes())
            file.unlink()
    for file in files[20:40]:
        file.rename(tiny.raw / "part2" / f"{file.stem}.PNG")
    places = ["train/{image_id}.png", "part2/{image_id}.PNG", "train.hdf5/{image_id}"]
    tiny.describe(train={"table": "train.csv", "images": places})
    done = tiny.run("01_preprocess.py", "--sizes", 32)
    about = load_competition(str(tiny.competition))
    table = pd.read_parquet(tiny.derived / "index.parquet")
    assert table[table["split"] == "train"]["error"].notna().sum() == 1
    assert "train: 1 of 60 images set aside (1.7%), 1 of them: " in done.stderr
    assert index.left_out(about) == ""
    (tiny.raw / "train.hdf5").unlink()
    said = tiny.run("01_preprocess.py", "--sizes", 32, "--new-folds").stderr
    assert "train: 20 of 60 images set aside (33.3%), 20 of them: missing file, such as train/tr0000.png" in said


def test_what_was_odd_is_counted_and_larger_images_fail_no_section(tiny: Workplace) -> None:
    for row in range(3):
        values = np.random.default_rng(row).integers(0, 4096, (40, 40)).astype(np.uint16)
        path = dicom_file(tiny.raw / "train" / f"tr000{row}.dcm", values)
        path.write_bytes(path.read_bytes()[:-40])
        path.rename(tiny.raw / "train" / f"tr000{row}.png")
    said = tiny.run("01_preprocess.py", "--sizes", 32).stderr
    assert "4 of 60 images set aside (6.7%), 3 of them: pixel data is truncated: 3160 of 3200 bytes" in said
    large = tiny.raw / "train" / "tr0005.png"
    cv2.imwrite(str(large), np.random.default_rng(9).integers(0, 256, (10001, 10001), np.uint8))  # over the default
    tiny.describe(image={"truncated": "fill", "max_pixels": 200_000_000, "clahe": 2.0})
    said = tiny.run("01_preprocess.py", "--sizes", 32, "--new-folds").stderr
    assert "warning: 3 images, such as train/tr0000.png: its pixel data is truncated: what is missing is filled" in said
    assert "could not be made" not in said
    page = (tiny.derived / "report.html").read_text()
    assert "read all the same, though" in page
    assert "max_pixels: " not in page


@pytest.mark.smoke
def test_format_expressions_in_templates(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["7", "123"], "image.name": ["x", "y"]})
    where = tmp_path / "train.csv"
    assert fill("t/{id[0]}/{id:05d}.png", table, where) == ["t/7/00007.png", "t/1/00123.png"]
    assert fill("{image.name}_{id[-1]:>3}", table, where) == ["x_  7", "y_  3"]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("train/{image_id:05d}.png", "row 2: 'tr0000' does not fit image_id"),
        ("train/{image_id[9]}.png", "row 2: 'tr0000' does not fit image_id"),
        ("train/{image.name}.png", "no column 'image.name'"),
        ("train/{image_id!r}.png", "'image_id', is no column"),
        ("train/{}.png", "'', is no column"),
        ("train/{image_id", "write columns as {id}"),
    ],
)
def test_templates_that_do_not_fit_are_one_line(tiny: Workplace, images: str, said: str) -> None:
    tiny.describe(train={"table": "train.csv", "images": images})
    assert said in tiny.refused("01_preprocess.py", "--sizes", 32)


@pytest.mark.smoke
@pytest.mark.parametrize("value", ["../other/a", "/etc/passwd", "a/../../b"])
def test_ids_lead_nowhere_else(value: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["fine", value]})
    with pytest.raises(UserError, match=r"row 3: '.*' does not fit"):
        fill("train/{id}.png", table, tmp_path / "train.csv")


ARCHIVES = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tar.xz": "xztar"}


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", [*ARCHIVES, ".7z"])
@pytest.mark.parametrize("lead", ["", "train/", "other/"])
def test_an_archive_stands_for_its_folder(
    tmp_path: Path, suffix: str, lead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path / "out"))
    raw, inside = tmp_path / "raw", tmp_path / "inside"
    (inside / lead / "a").mkdir(parents=True)
    raw.mkdir()
    for name in ("x.png", "a/y.png", ".hidden.png"):
        (inside / lead / name).write_bytes(encoded(".png"))
    if suffix == ".7z":
        py7zr = pytest.importorskip("py7zr", reason="py7zr reads 7z archives; pip install py7zr")
        with py7zr.SevenZipFile(raw / "train.7z", "w") as archive:
            archive.writeall(inside, "")
    else:
        made = shutil.make_archive(str(tmp_path / "made"), ARCHIVES[suffix], inside)
        shutil.move(made, raw / f"train{suffix}")
    assert source.is_folder(raw / "train") and not source.is_folder(raw / "test")
    assert source.is_there(raw / "train/a/y.png") and not source.is_there(raw / "train/a/z.png")
    np.testing.assert_array_equal(image.read_image(raw / "train/x.png"), PIXELS)
    assert image.probe(raw / "train/a/y.png")["width"] == 24
    whole = encoded(".png")
    assert source.head(raw / "train/x.png", 8) == (whole[:8], len(whole))
    assert source.identity(raw / "train/x.png")["bytes"] == len(whole)
    assert source.stamp(raw / "train/x.png")[0] == (raw / f"train{suffix}").stat().st_size
    listed = image.listing(raw / "train")
    assert [path.relative_to(raw).as_posix() for path in listed.images] == ["train/a/y.png", "train/x.png"]
    assert [path.name for path in image.listing(raw / "train/a").images] == ["y.png"]
    unpacked = list((tmp_path / "out/input/derived/unpacked").glob("train*")) if suffix not in (".zip", ".tar") else []
    assert len(unpacked) == (suffix not in (".zip", ".tar"))


@pytest.mark.smoke
def test_a_table_may_lie_in_an_archive_of_its_name(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["007"], "y": [1]}).to_csv(tmp_path / "train.csv", index=False)
    with zipfile.ZipFile(tmp_path / "train.csv.zip", "w") as archive:
        archive.write(tmp_path / "train.csv", "train.csv")
    (tmp_path / "train.csv").unlink()
    assert tables.read_table(tmp_path / "train.csv", ["id"]).to_dict("list") == {"id": ["007"], "y": [1]}
    assert tables.header(tmp_path / "train.csv") == ["id", "y"]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"../evil.png": b"x"}, "leads out of its folder"),
        ({"/etc/evil.png": b"x"}, "leads out of its folder"),
        ({"big.png": bytes(1 << 22)}, "a bomb"),
        (None, "damaged"),
    ],
)
def test_archives_that_are_not_unpacked(
    tmp_path: Path, members: dict[str, bytes] | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path / "out"))
    monkeypatch.setattr(archives, "BOMB", (1 << 20, 200))
    file = tmp_path / "raw" / "train.tar.gz"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as archive:
        for name, data in (members or {"a.png": os.urandom(1 << 16)}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if members is None:
        file.write_bytes(file.read_bytes()[: 1 << 15])
    with pytest.raises(UserError, match=reason):
        source.read(file.parent / "train" / "a.png")
    assert not list((tmp_path / "out").rglob("*.png")) and not (tmp_path / "evil.png").exists()
    assert not [path for path in (tmp_path / "out/input/derived/unpacked").iterdir() if path.is_dir()]


@pytest.mark.smoke
def test_a_zip_member_that_would_explode_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "BOMB", (1 << 20, 200))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 24))
    with pytest.raises(image.ImageError, match="a bomb"):
        image.read_image(tmp_path / "a.zip" / "a.png")


@pytest.mark.parametrize(("name", "share"), [("train.zip", 0.5), ("train.tar", 0.1), ("train.zip", 0)])
def test_an_archive_that_broke_off_is_named(tmp_path: Path, name: str, share: float) -> None:
    whole = tmp_path / "whole"
    if name.endswith(".zip"):
        with zipfile.ZipFile(whole, "w") as packed:
            packed.writestr("a.png", encoded(".png"))
    else:
        with tarfile.open(whole, "w") as packed:
            for member in ("a.png", "b.png", "c.png"):
                packed.addfile(tarfile.TarInfo(member))
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content)) // 512 * 512])
    with pytest.raises(UserError, match=rf"{name}: damaged.*fetch it again"):
        source.is_there(tmp_path / "train" / "a.png")
