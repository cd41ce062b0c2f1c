"""Where images come from: archives, several folders, links, and files known by their first bytes."""

from __future__ import annotations

import shutil
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

from foldwise.core import source
from foldwise.data import image, index
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
    assert "1 other file, no image, left out (1 .txt)" in said.splitlines()[-1]
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
        ("train/{image_id:05d}.png", "row 2: 'tr0000' does not fit the format of image_id"),
        ("train/{image_id[9]}.png", "row 2: 'tr0000' does not fit the format of image_id"),
        ("train/{image.name}.png", "no column 'image.name'"),
        ("train/{image_id!r}.png", "'image_id', is no column"),
        ("train/{}.png", "'', is no column"),
        ("train/{image_id", "write columns as {id}"),
    ],
)
def test_templates_that_do_not_fit_are_one_line(tiny: Workplace, images: str, said: str) -> None:
    tiny.describe(train={"table": "train.csv", "images": images})
    assert said in tiny.refused("01_preprocess.py", "--sizes", 32)
