"""Boxes and crops: tables from anywhere, windows that stay inside, recall, margins, detectors, caches of crops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, Workplace, make_tiny, shared
from PIL import Image

from foldwise import UserError
from foldwise.data import cache, image, index
from foldwise.data.boxes import (
    COLUMNS,
    MARGIN,
    MARGINS,
    XYXY,
    Recall,
    box_recall,
    choose_margin,
    crops,
    iou,
    kept,
    load_boxes,
    load_crop_meta,
    on_index,
    one_each,
    read_boxes,
    windows,
    worst_first,
)
from foldwise.data.competition import Competition, load_competition
from foldwise.model.crops import CropOptions, crop_again, make_crops, warn_of_stale_crops

INDEX = pd.DataFrame(
    {
        "split": ["train", "train", "train", "test"],
        "id": ["a", "b", "c", "d"],
        "path": ["train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.png"],
        "width": [100, 200, 60, 80],
        "height": [50, 100, 60, 40],
        "error": [None, None, None, None],
        "bytes": [10, 20, 30, 40],
    }
)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def boxes_of(tmp_path: Path, text: str, **options: Any) -> pd.DataFrame:
    """The index's boxes from a CSV's text."""
    file = table(tmp_path / "boxes.csv", text)
    return on_index(read_boxes(file), INDEX, file, **options)


# --- windows and recall -----------------------------------------------------------------------------------


@pytest.mark.smoke
def test_windows_hold_the_box_stay_inside_and_are_square_where_asked() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 400, (500, 2)).astype(float)
    ends = np.sort(rng.random((500, 2, 2)), axis=1) * sizes[:, None]
    boxes = np.concatenate([ends[:, 0], ends[:, 1]], axis=1)
    for margin in (0.0, 0.2):
        for square in (False, True):
            found = windows(boxes, sizes, margin, square)
            there = found[:, 0] >= 0
            assert there.mean() > 0.9
            cut, size, box = found[there], sizes[there], boxes[there]
            assert (cut[:, :2] >= 0).all() and (cut[:, 2:] <= size).all()
            assert (kept(cut, box) > 1 - 1e-9).all(), "a window never cuts its own box"
            if square:
                sides = cut[:, 2:] - cut[:, :2]
                room = np.minimum(size.min(axis=1), (box[:, 2:] - box[:, :2]).max(axis=1) * (1 + 2 * margin))
                assert (abs(sides[:, 0] - sides[:, 1])[room < size.min(axis=1)] <= 1).all()
    nothing = windows(np.full((1, 4), np.nan), sizes[:1], 0.1)
    assert nothing.tolist() == [[-1, -1, -1, -1]]
    assert windows(np.array([[10.0, 10, 20, 30]]), np.array([[100.0, 100]]), 0.1).tolist() == [[9, 8, 21, 32]]


@pytest.mark.smoke
def test_overlap_and_the_margin_that_keeps_enough() -> None:
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10]])
    assert iou(a, b) == pytest.approx(1 / 3)
    assert kept(np.array([[5, 0, 15, 10]]), a) == pytest.approx(0.5)
    assert kept(np.array([[-1, -1, -1, -1]]), a) == 1
    n = 40  # found boxes miss 9 % of the object's width on the left: a margin of 0.1 mends it, 0.075 does not
    truth = np.tile([100.0, 100, 200, 200], (n, 1))
    met = Recall(truth + np.array([9.0, 0, 0, 0]), truth, np.full((n, 2), 400.0), square=False)
    assert met.choose() == 0.1
    assert met.at(0.0)["recall"] == pytest.approx(0.91)
    assert met.at(0.1) == {"recall": 1.0, "whole": 1.0, "lowest": 1.0, "area": pytest.approx((111 * 120) / 160000)}
    assert met.nested() == (1.0, 1.0)
    assert choose_margin(None, met)[0] == 0.1
    assert choose_margin(0.3, met) == (0.3, "given")
    far = Recall(truth + 150.0, truth, np.full((n, 2), 800.0), square=False)
    assert far.choose() is None
    assert choose_margin(None, far)[0] == MARGINS[-1]
    few = Recall(truth[:3], truth[:3], np.full((3, 2), 400.0), square=False)
    assert choose_margin(None, few) == (MARGIN, "default: only 3 true boxes to choose it by")
    assert choose_margin(None, None)[0] == MARGIN
    one_far = np.concatenate([truth[:-1], truth[-1:] + 90])  # one of 40 is off: nested says what it costs
    mixed = Recall(one_far, truth, np.full((n, 2), 400.0), square=False)
    chosen = mixed.choose()
    assert chosen is not None and mixed.nested()[0] <= mixed.at(chosen)["recall"]


# --- tables -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_boxes_come_from_many_kinds_of_tables(tmp_path: Path) -> None:
    plain = boxes_of(tmp_path, "id,xmin,ymin,xmax,ymax\na,10,10,50,40\nd,0,0,80,40\n")
    assert plain["row"].tolist() == [0, 3] and plain[XYXY].iloc[0].tolist() == [10, 10, 50, 40]
    names = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,50,25,clock,5,5,25,20\n"
    scaled = boxes_of(tmp_path, names)  # drawn at half the size
    assert scaled[XYXY].iloc[0].tolist() == [10, 10, 50, 40] and scaled["class"].tolist() == ["clock"]
    assert boxes_of(tmp_path, names, units="pixels")[XYXY].iloc[0].tolist() == [5, 5, 25, 20]
    shares = boxes_of(tmp_path, "image_id,x,y,w,h\nb,0.1,0.2,0.5,0.5\n")
    assert shares[XYXY].iloc[0].tolist() == pytest.approx([20, 20, 120, 70])
    corners = boxes_of(tmp_path, "file,x1,y1,x2,y2,confidence\ntrain/c.jpg,1,2,30,40,0.5\n")
    assert corners["row"].tolist() == [2] and corners["score"].tolist() == [0.5]


@pytest.mark.smoke
def test_unusable_boxes_fall_back_with_their_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = boxes_of(
        tmp_path, "id,xmin,ymin,xmax,ymax\na,-20,-5,50,400\nb,,1,2,3\nc,70,70,90,90\nd,30,5,20,9\nx,1,1,9,9\n"
    )
    assert found[XYXY].iloc[0].tolist() == [0, 0, 50, 50], "clipped to the image"
    boxes = one_each(found, INDEX, "file")
    assert boxes["source"].tolist() == ["file", "whole", "whole", "whole"]
    assert boxes["reason"].tolist()[1:] == [
        "a corner is no number",
        "outside the image or too small",
        "xmax or ymax is not above xmin or ymin",
    ]
    assert boxes.loc[1, XYXY].tolist() == [0, 0, 200, 100]
    assert "1 ids are no images" in capsys.readouterr().err
    turned = boxes_of(tmp_path, "filename,width,height,xmin,ymin,xmax,ymax\na.jpg,50,100,1,1,40,90\n")
    assert "another shape" in turned["reason"].iloc[0]
    missing = one_each(found.iloc[:1], INDEX, "file")
    assert missing["reason"].tolist() == ["", "no box", "no box", "no box"]


@pytest.mark.smoke
def test_tables_that_can_not_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'ymax'; did you mean 'ymx'"):
        boxes_of(tmp_path, "id,xmin,ymin,xmax,ymx\na,1,2,3,4\n")
    with pytest.raises(UserError, match="no column that names the image"):
        boxes_of(tmp_path, "xmin,ymin,xmax,ymax\n1,2,3,4\n")
    with pytest.raises(UserError, match=r"none of its 2 ids is an image of this competition, such as 'q'"):
        boxes_of(tmp_path, "id,xmin,ymin,xmax,ymax\nq,1,2,3,4\nr,1,2,3,4\n")
    with pytest.raises(UserError, match="no such file"):
        read_boxes(tmp_path / "nowhere.csv")


@pytest.mark.smoke
def test_one_box_of_several_by_score_area_or_union(tmp_path: Path) -> None:
    found = boxes_of(
        tmp_path,
        "id,xmin,ymin,xmax,ymax,score,class\na,0,0,10,10,0.9,cat\na,20,20,60,45,0.6,clock\na,5,5,9,9,0.95,clock\n"
        "b,1,1,50,50,0.3,cat\n",
    )
    by_score = one_each(found, INDEX, "detector", "score", 0.5)
    assert by_score.loc[0, "score"] == 0.95 and by_score.loc[1, "reason"] == "no box with a score of 0.5"
    assert one_each(found, INDEX, "detector", "area", 0.5).loc[0, XYXY].tolist() == [20, 20, 60, 45]
    assert one_each(found, INDEX, "detector", "union", 0.5).loc[0, XYXY].tolist() == [0, 0, 60, 45]
    cats = one_each(found, INDEX, "detector", "score", 0.2, "cat")
    assert cats["class"].tolist()[:2] == ["cat", "cat"]
    unread = INDEX.assign(error=["broken", None, None, None])
    assert one_each(found, unread, "detector").loc[0, "reason"] == "unreadable"
    order = worst_first(by_score, 3)
    assert by_score.loc[order[0], "source"] == "whole"


# --- pixels -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_window_counts_pixels_of_the_upright_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (image.read_image(tmp_path / "a.png", window=(10, 5, 50, 35)) == pixels[5:35, 10:50]).all()
    sized = image.read_image(tmp_path / "a.png", 20, window=(10, 5, 50, 35))
    assert (sized == image.resize(np.ascontiguousarray(pixels[5:35, 10:50]), (20, 20))).all()
    smooth = cv2.GaussianBlur(pixels, (0, 0), 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: 40 x 60 is shown as 60 x 40
    Image.fromarray(smooth).save(tmp_path / "b.jpg", exif=exif, quality=95)
    upright = image.read_image(tmp_path / "b.jpg")
    assert upright.shape == (60, 40, 3)
    assert (image.read_image(tmp_path / "b.jpg", window=(0, 20, 40, 60)) == upright[20:60]).all()
    with pytest.raises(UserError, match=r"does not lie in its 40 x 60 pixels; run 08_crop.py again"):
        image.read_image(tmp_path / "b.jpg", window=(0, 20, 60, 40))


def dicom_file(path: Path, frames: int) -> None:
    """An uncompressed 8-bit DICOM file of 24 x 32 pixels; frame k is k x 40 with a bright square."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.NumberOfFrames, data.SamplesPerPixel = 24, 32, frames, 1
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    data.WindowCenter, data.WindowWidth = 128, 256
    pixels = np.stack([np.full((24, 32), 40 * (k + 1), np.uint8) for k in range(frames)])
    pixels[:, 6:18, 8:24] = 250
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_frames_are_cut_like_any_image(tmp_path: Path) -> None:
    raw = tmp_path / "input" / "slides"
    raw.mkdir(parents=True)
    for name, frames in (("s1", 2), ("s2", 1), ("s3", 3)):
        dicom_file(raw / f"{name}.dcm", frames)
    pd.DataFrame({"id": ["s1", "s2", "s3"], "target": [0.5, 1.5, 2.5]}).to_csv(raw / "train.csv", index=False)
    place = Workplace(tmp_path, tmp_path / "slides.yaml")
    place.competition.write_text(
        yaml.safe_dump(
            {
                "name": "slides",
                "root": str(raw),
                "task": "regression",
                "metric": "rmse",
                "frames": "each",
                "train": {"table": "train.csv", "images": "{id}.dcm"},
                "folds": {"n": 2},
            }
        )
    )
    about = load_competition(str(place.competition))
    rows = index.build_index(about)
    assert rows["id"].tolist() == ["s1#0", "s1#1", "s2", "s3#0", "s3#1", "s3#2"]
    file = table(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax\ns1.dcm,8,6,24,18\ns3.dcm,8,6,24,18\n")
    boxes = one_each(on_index(read_boxes(file), rows, file), rows, "file")
    assert boxes["source"].tolist() == ["file", "file", "whole", "file", "file", "file"], "a box serves all frames"
    made = crops(boxes, rows, 0.0, False)
    cache.build_size(raw, tmp_path, rows, 16, about.image, 1, crops=made)
    pixels = cache.open_size(tmp_path, 16, crop=True).read(np.arange(6))
    assert (pixels[[0, 1, 3, 4, 5]].min(axis=(1, 2, 3)) > 240).all(), "nothing but the square"
    assert pixels[2].min() < 60


# --- as users type it -------------------------------------------------------------------------------------


def boxes_file(place: Workplace, rows: int = 50) -> Path:
    """The discs' boxes of the first rows; one row without a number, one outside, one unknown, one of a broken file."""
    lines = ["filename,xmin,ymin,xmax,ymax"]
    for path in sorted((place.raw / "train").glob("*.png"))[:rows]:
        pixels = cv2.imread(str(path))
        if pixels is None:
            lines.append(f"{path.name},1,1,30,30")
            continue
        even = (np.ptp(pixels, axis=2) == 0).astype(np.uint8)  # the disc is gray, the noise is not
        _, _, stats, _ = cv2.connectedComponentsWithStats(even)
        left, top, width, height, _ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
        lines.append(f"{path.name},{left},{top},{left + width},{top + height}")
    lines[2] = lines[2].split(",")[0] + ",,1,2,3"
    lines[3] = lines[3].split(",")[0] + ",500,500,600,600"
    return table(place.root / "boxes.csv", "\n".join([*lines, "stranger.png,1,2,30,40"]) + "\n")


def rebuild(about: Competition, rows: pd.DataFrame, **options: Any) -> None:
    """What 08_crop.py does."""
    cache.build_caches(about, rows, [24], 1, crops=make_crops(about, rows, CropOptions(**options)))


def test_crops_from_a_file_end_to_end(tiny: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    file = boxes_file(tiny)
    tiny.run("01_preprocess.py", "--sizes", 24)
    done = tiny.run("08_crop.py", "--boxes", file, "--margin", 0)
    assert "stranger.png" in done.stderr and "47 of 70 images have a box, 23 stay whole; margin 0" in done.stderr
    boxes = load_boxes(about := _load(tiny))
    assert list(boxes) == COLUMNS and len(boxes) == 72
    assert boxes["source"].value_counts().to_dict() == {"file": 47, "whole": 25}
    unread = boxes[boxes["id"] == "tr0007"].iloc[0]
    assert (unread["source"], unread["reason"]) == ("whole", "unreadable")
    whole, cut = cache.load_cache(about, 24), cache.load_cache(about, 24, crop=True)
    assert (cut.ids["ok"] == whole.ids["ok"]).all()
    rows = np.flatnonzero((boxes["source"] == "file").to_numpy())
    spread = cut.read(rows).std(axis=(1, 2, 3)).mean(), whole.read(rows).std(axis=(1, 2, 3)).mean()
    assert spread[0] != pytest.approx(spread[1], rel=0.1), "cropped to the disc, there is another picture"
    one = int(rows[0])
    corners = boxes.loc[one, XYXY].astype(int).tolist()
    path = tiny.raw / index.load_index(about)["path"].iloc[one]
    assert (cut.read(np.array([one]))[0] == image.read_image(path, 24, about.image, window=corners)).all()
    left = np.flatnonzero((boxes["source"] == "whole").to_numpy())
    assert (cut.read(left) == whole.read(left)).all()
    assert cv2.imread(str(tiny.derived / "crops.png")).shape[1] == 1500
    page = (tiny.derived / "report.html").read_text()
    assert "could not be made" not in page and "a corner is no number" in page and "47 of 70 readable images" in page

    rows = index.load_index(about)
    before = (tiny.derived / "images_24_crop.npy").stat().st_mtime_ns
    rebuild(about, rows, boxes=str(file), margin=0.0)
    assert (tiny.derived / "images_24_crop.npy").stat().st_mtime_ns == before, "same boxes and margin: nothing to do"
    rebuild(about, rows, boxes=str(file), margin=0.2)
    assert (tiny.derived / "images_24_crop.npy").stat().st_mtime_ns != before
    capsys.readouterr()
    warn_of_stale_crops(about, rows)
    assert capsys.readouterr().err == ""
    warn_of_stale_crops(about, rows.assign(bytes=rows["bytes"] + 1))
    assert "run 08_crop.py again" in capsys.readouterr().err
    facts = json.loads((tiny.derived / "crop.json").read_text())
    (tiny.derived / "crop.json").write_text(json.dumps({**facts, "key": "other"}))
    with pytest.raises(UserError, match="made from other boxes"):
        cache.load_cache(about, 24, crop=True)
    with pytest.raises(UserError, match=r"images_48_crop.npy: not there yet \(made so far: 24\).*08_crop.py"):
        cache.load_cache(about, 48, crop=True)


def _load(place: Workplace) -> Competition:
    about = load_competition(str(place.competition))
    object.__setattr__(about, "derived", lambda: place.derived)  # FOLDWISE_ROOT is the scripts', not this process's
    object.__setattr__(about, "raw", lambda: place.raw)
    return about


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--boxes", "b.csv", "--finetune-boxes", "b.csv"], "give one"),
        (["--finetune-epochs", "0"], "--finetune-epochs and --finetune-rate are above 0"),
        (["--boxes", "b.csv", "--margin", "wide"], "'wide' is neither auto nor a share"),
        (["--boxes", "b.csv", "--min-score", "7"], "'7' is not a share, 0 to 1"),
    ],
)
def test_flags_that_contradict_each_other(tiny: Workplace, arguments: list[str], expected: str) -> None:
    assert expected in tiny.refused("08_crop.py", *arguments)


def test_the_flags_that_step_01_had_say_where_they_went(tiny: Workplace) -> None:
    assert "08_crop.py" in tiny.refused("01_preprocess.py", "--crop", "detector")


def test_what_a_user_can_mend(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    file = boxes_file(tiny)
    bad = table(tiny.root / "bad.csv", file.read_text().replace("xmax", "right_side"))
    tiny.run("01_preprocess.py", "--sizes", 24)
    line = tiny.refused("08_crop.py", "--boxes", bad)
    assert "bad.csv: no column 'xmax'" in line
    monkeypatch.setenv("FOLDWISE_ROOT", str(tiny.root))
    about, named = _load(tiny), table(tiny.root / "b.csv", "id,xmin,ymin,xmax,ymax,class\ntr0001,1,2,30,30,clock\n")
    rows = index.build_index(about)
    for options, expected in (
        ({"object_class": "clock"}, "COCO weights are not on this machine.*input/weights.*--download"),
        ({"weights": "gone.pth"}, "gone.pth: no such file"),
        ({"detector": "resnet5"}, "did you mean 'resnet50'"),
        ({"finetune_boxes": str(named)}, "too few"),
        ({"boxes": str(named), "object_class": "clok"}, "has no such class; did you mean 'clock'"),
        ({"boxes": str(tiny.root / "gone.csv")}, "no such file"),
    ):
        with pytest.raises(UserError, match=expected):
            make_crops(about, rows, CropOptions(**options))
    with pytest.raises(UserError, match=r"crop.json: not there; run 08_crop.py first"):
        crop_again(about, tiny.raw, rows)


# --- detectors --------------------------------------------------------------------------------------------

SMALL = {
    "model": {"name": "test_resnet", "pretrained": False, "mode": "scratch"}
}  # a recipe whose backbone trains in seconds


def small_place(tmp_path: Path) -> tuple[Workplace, Competition, pd.DataFrame, pd.DataFrame, Path]:
    place = make_tiny(tmp_path, rows=24, test_rows=3)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    about = _load(place)
    rows = index.build_index(about)
    file = boxes_file(place, 20)
    return place, about, rows, on_index(read_boxes(file), rows, file), recipe


def test_a_detector_tuned_on_boxes_continues_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foldwise.model import detector

    _, about, rows, boxes, recipe = small_place(tmp_path)
    plan = detector.box_split(boxes, rows, 6, seed=0)
    groups = rows["group"].to_numpy()
    assert not set(groups[plan.train]) & set(groups[plan.held_out]) and len(plan.held_out) >= 6
    settings: dict[str, Any] = {"name": str(recipe), "size": 64, "epochs": 2, "seed": 3}
    whole = detector.finetune(about, rows, plan, tmp_path / "whole", **settings)
    write = detector.write_csv

    def killed(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(detector, "write_csv", killed)
        detector.finetune(about, rows, plan, tmp_path / "killed", **settings)
    detector.finetune(about, rows, plan, tmp_path / "killed", **settings)
    assert "goes on after epoch 0" in capsys.readouterr().err
    one, other = (tmp_path / name / "detector.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    detector.finetune(about, rows, plan, tmp_path / "whole", **settings)
    assert "fine-tuned already" in capsys.readouterr().err

    saved = tmp_path / "detections.csv"
    found = detector.detect(whole, about.raw(), about.image, rows, saved)
    again = detector.detect(detector.load(str(tmp_path / "whole")), about.raw(), about.image, rows, saved)
    assert f"{int(rows['error'].isna().sum())} images are done already" in capsys.readouterr().err
    pd.testing.assert_frame_equal(found, again, check_dtype=False)
    if len(found):
        assert (
            found[["xmax", "ymax"]].to_numpy() <= rows[["width", "height"]].to_numpy(float)[found["row"]] + 1e-6
        ).all()


def test_crops_by_a_tuned_detector_and_of_new_images_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, about, rows, _, recipe = small_place(tmp_path)
    tuned = {"finetune_boxes": str(place.root / "boxes.csv"), "holdout": 6, "epochs": 1}
    asked: dict[str, Any] = {"detector": str(recipe), "detector_size": 64, "min_score": 0.05, **tuned}
    made = make_crops(about, rows, CropOptions(**asked))
    facts = load_crop_meta(about)
    assert facts is not None and facts["recall"]["images"] + facts["trained_on"] == 17
    assert made.margin in MARGINS and len(facts["recall"]["margins"]["recall"]) == len(MARGINS)
    new = rows.loc[rows["split"] == "train", ["split", "id", "path", "bytes", "error"]].reset_index(drop=True)
    monkeypatch.setattr(image, "read_image", None)  # files may be anybody's: only worker processes read them
    assert (crop_again(about, about.raw(), new).windows == made.windows[: len(new)]).all()
    with pytest.raises(UserError, match=r"the detector knows no such class; did you mean 'object'"):
        make_crops(about, rows, CropOptions(**asked, object_class="objekt"))


def test_coco_detectors_by_local_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from foldwise.model import detector

    build, entry = detector._entry("mobilenet_320")
    folder = tmp_path / "input" / "weights"
    folder.mkdir(parents=True)
    network = build(weights=None, weights_backbone=None, num_classes=91)
    save_file(network.state_dict(), folder / "fasterrcnn_mobilenet_v3_large_320_fpn.safetensors")
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    made = detector.load("mobilenet_320", size=64)
    assert made.classes == entry.meta["categories"] and "clock" in made.classes
    (found,) = made([np.zeros((48, 64, 3), np.uint8)])
    assert list(found) == [*XYXY, "score", "class"]
    save_file({"a": network.state_dict()["backbone.body.0.0.weight"]}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit the detector"):
        detector.load("mobilenet_320", str(tmp_path / "other.safetensors"))


@pytest.mark.nightly
def test_tuning_on_forty_raccoons_beats_the_mean_box(tmp_path: Path) -> None:
    from foldwise.model import detector

    photos, labels = shared("data", "raccoon", "images"), shared("data", "raccoon", "labels.csv")
    shared("weights", "mobilenetv2_100.safetensors")
    about = load_competition(str(REPOSITORY / "src" / "competitions" / "raccoon.yaml"))
    object.__setattr__(about, "raw", lambda: photos.parent)
    object.__setattr__(about, "derived", lambda: tmp_path)
    rows = index.build_index(about).iloc[:55].reset_index(drop=True)
    boxes = on_index(read_boxes(labels), rows, labels)
    plan = detector.box_split(boxes, rows, 15, seed=0)
    made = detector.finetune(about, rows, plan, tmp_path / "detector", "mobilenetv2", size=224, epochs=5)
    found = one_each(detector.detect(made, about.raw(), about.image, rows), rows, "detector", min_score=0.3)
    truth = boxes[boxes["row"].isin(plan.held_out)]
    met = box_recall(found, truth, rows, square=False)
    assert met is not None and len(met.truth) == len(plan.held_out)
    sizes = np.tile(rows[["width", "height"]].to_numpy(float), 2)
    seen = boxes[boxes["row"].isin(plan.train)]
    mean = (seen[XYXY].to_numpy() / sizes[seen["row"]]).mean(axis=0)
    guess = Recall(mean * np.tile(met.sizes, 2), met.truth, met.sizes, square=False)
    assert met.iou.mean() > guess.iou.mean() + 0.05, (met.iou.mean(), guess.iou.mean())
