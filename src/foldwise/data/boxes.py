"""Region of interest: tables of boxes -> the box of each image -> the window that is cut out of it.

    input/derived/<competition>/
      boxes.csv     a row per row of index.parquet: id, split, xmin, ymin, xmax, ymax (pixels of the full image as it is
                    displayed, ends not included), score, class, source ('detector', 'file', or 'whole': the fallback
                    to the whole image), reason (of the fallback)
      crop.json     what made them: method, margin and how it was chosen, recall on true boxes, counts
      crops.png     contact sheet: fallbacks and the lowest scores first

Boxes stay as they were found or given; margin and square shape are added when the crops are cut, so that either can be
changed without detecting again. A crop must not cut the object: `margins` measures how much of true boxes each margin
keeps, and `choose_margin` takes the smallest that keeps enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd

from foldwise import UserError, dicom
from foldwise.core.cli import note
from foldwise.core.files import digest, read_voucher, replacing, write_csv, write_voucher
from foldwise.core.parallel import parallel_map
from foldwise.core.schema import nearest
from foldwise.data import image
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions
from foldwise.data.index import identity
from foldwise.data.tables import read_table

XYXY = ["xmin", "ymin", "xmax", "ymax"]
COLUMNS = ["id", "split", *XYXY, "score", "class", "source", "reason"]
MARGINS = (0.0, 0.02, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)  # share of a side, each side
MARGIN = 0.15  # where there are no true boxes to choose by
KEEP, WHOLLY = 0.99, 0.95  # a margin is enough where it keeps this mean share of area, and so many boxes wholly
WHOLE = 0.999  # a box is kept wholly from this share of its area on: corners are rounded to pixels
SMALLEST = 2.0  # pixels a side; a box below that is no box
LEAST_TRUTH = 8  # true boxes below which their choice of a margin means nothing

Pick = Literal["score", "area", "union"]
Units = Literal["auto", "pixels", "relative"]

_ALIASES = {
    "xmin": ("x_min", "left", "x1"),
    "ymin": ("y_min", "top", "y1"),
    "xmax": ("x_max", "right", "x2"),
    "ymax": ("y_max", "bottom", "y2"),
    "class": ("label", "category", "name"),
    "score": ("confidence", "probability"),
}
_IDS = ("id", "image_id", "filename", "file_name", "file", "image", "path")


# --- tables of boxes --------------------------------------------------------------------------------------


def read_boxes(path: Path, id_column: str = "id") -> pd.DataFrame:
    """A table of boxes from elsewhere, a row per box: key (str), XYXY (float64, NaN where no number), and where the
    file has them split, score, class, width, height (of the image that the boxes were drawn on).

    Corners as xmin, ymin, xmax, ymax (or left/top/..., x1/y1/...), or x, y, w, h. UserError for a column that is not
    there.
    """
    table = read_table(path, [id_column, *_IDS])
    table.columns = [str(name).strip() for name in table]
    lower = {name.lower(): name for name in table}
    named = next((lower[name] for name in (id_column.lower(), *_IDS) if name in lower), None)
    if named is None:
        raise UserError(f"{path}: no column that names the image; call it '{id_column}' or 'filename'")
    boxes = pd.DataFrame({"key": table[named].astype(str)})
    for name, aliases in _ALIASES.items():
        column = next((lower[alias] for alias in (name, *aliases) if alias in lower and lower[alias] != named), None)
        if column is not None:
            named_class = table[column].astype(object).where(table[column].notna(), "").astype(str)
            boxes[name] = named_class if name == "class" else pd.to_numeric(table[column], errors="coerce")
    if {"x", "y", "w", "h"} <= set(lower) and not {"xmin", "xmax"} & set(boxes):
        x, y, w, h = (pd.to_numeric(table[lower[name]], errors="coerce") for name in "xywh")
        boxes = boxes.assign(xmin=x, ymin=y, xmax=x + w, ymax=y + h)
    for name in XYXY:
        if name not in boxes:
            raise UserError(f"{path}: no column '{name}'{nearest(name, table)} (boxes are xmin, ymin, xmax, ymax)")
    for name in ("width", "height", "split"):
        if name in lower:
            boxes[name] = table[lower[name]]
    return boxes.astype(dict.fromkeys(XYXY, "float64"))


def on_index(boxes: pd.DataFrame, index: pd.DataFrame, path: Path, units: Units = "auto") -> pd.DataFrame:
    """Boxes of `read_boxes` on the rows of the index: row (its number), XYXY in pixels of the full image, score,
    class, reason (why a box can't be used, else null). Boxes of unknown images are counted and left out.

    A box names its image by id, path, file name or file name without ending: by what fits most. Where the table has
    the size of the image that it was drawn on, boxes are scaled to the file's; coordinates that all lie in 0..1 are
    shares of the sides (units auto).
    """
    keys = {
        "id": index["id"],
        "path": index["path"],
        "name": index["path"].map(lambda p: Path(p).name),
        "stem": index["path"].map(lambda p: Path(p).stem),
    }
    how = max(keys, key=lambda name: int(boxes["key"].isin(set(keys[name])).sum()))
    rows = pd.DataFrame({"key": keys[how].astype(str), "row": np.arange(len(index))})
    for name in ("width", "height"):
        rows[f"{name}_file"] = index[name].astype("float64").to_numpy()
    by = ["key"]
    if "split" in boxes:
        rows["split"], by = index["split"].astype(str), ["key", "split"]
    placed = boxes.merge(rows, on=by, how="left")
    mismatched = placed.loc[placed["row"].isna(), "key"].unique()
    if len(mismatched) == boxes["key"].nunique():
        raise UserError(
            f"{path}: none of its {len(mismatched)} ids is an image of this competition, such as '{mismatched[0]}' "
            f"(images are called '{index['id'].iloc[0]}', '{index['path'].iloc[0]}')"
        )
    if len(mismatched):
        some = f"{len(mismatched)} ids are no images of this competition, such as '{mismatched[0]}'"
        note(f"warning: {path}: {some}; left out")
    placed = placed[placed["row"].notna()].astype({"row": "int64"})
    for name, missing in (("score", np.nan), ("class", "")):
        if name not in placed:
            placed[name] = missing
    scaled = _in_pixels(placed, units)
    return scaled[["row", *XYXY, "score", "class", "reason"]].reset_index(drop=True)


def _in_pixels(placed: pd.DataFrame, units: Units) -> pd.DataFrame:
    """Scaled to the file's pixels, clipped to it, with the reason where nothing usable is left."""
    placed = placed.copy()
    size = placed[["width_file", "height_file"]].to_numpy(float)
    corners = placed[XYXY].to_numpy(float)
    drawn = (
        placed[["width", "height"]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        if {"width", "height"} <= set(placed)
        else np.full_like(size, np.nan)
    )
    known = np.isfinite(drawn).all(axis=1) & (drawn > 0).all(axis=1)
    if units == "relative" or (units == "auto" and np.nanmax(np.abs(corners), initial=0) <= 1):
        corners = corners * np.tile(size, 2)
    elif units == "auto":
        corners = np.where(known[:, None], corners * np.tile(size / np.where(known[:, None], drawn, 1), 2), corners)
    ratio = (drawn[:, 0] / drawn[:, 1]) / (size[:, 0] / size[:, 1])
    number = np.isfinite(corners).all(axis=1)
    clipped = np.clip(corners, 0, np.tile(size, 2))
    sides = clipped[:, 2:] - clipped[:, :2]
    turned = (corners[:, 2:] <= corners[:, :2]).any(axis=1)
    reason = np.select(
        [~number, known & (np.abs(np.log(np.where(known, ratio, 1))) > 0.05), turned, (sides < SMALLEST).any(axis=1)],
        [
            "a corner is no number",
            "drawn on an image of another shape (turned by EXIF?)",
            "xmax or ymax is not above xmin or ymin",
            "outside the image or too small",
        ],
        default="",
    )
    placed[XYXY] = clipped
    placed["reason"] = pd.Series(reason, index=placed.index).replace("", None)
    return placed


def one_each(
    candidates: pd.DataFrame,
    index: pd.DataFrame,
    source: str,
    pick: Pick = "score",
    min_score: float = 0.0,
    of_class: str = "any",
) -> pd.DataFrame:
    """boxes.csv: of the candidates (`on_index`) one box a row of the index, the whole image where there is none.

    pick: the highest score (the largest area where there are no scores), the largest area, or the union of all.
    """
    boxes_of = pd.DataFrame({"id": index["id"].to_numpy(), "split": index["split"].to_numpy()})
    boxes_of[["xmin", "ymin"]] = 0.0
    boxes_of["xmax"], boxes_of["ymax"] = (index[name].astype("float64").to_numpy() for name in ("width", "height"))
    boxes_of["score"], boxes_of["class"], boxes_of["source"] = np.nan, "", "whole"
    boxes_of["reason"] = np.where(index["error"].notna(), "unreadable", "no box")
    asked = candidates if of_class == "any" else candidates[candidates["class"] == of_class]
    bad = asked[asked["reason"].notna()].drop_duplicates("row")
    boxes_of.loc[bad["row"], "reason"] = bad["reason"].to_numpy()
    good = asked[asked["reason"].isna() & index["error"].isna().to_numpy()[asked["row"]]]
    weak = good["score"] < min_score
    low = good.loc[weak, "row"].unique()
    boxes_of.loc[low, "reason"] = f"no box with a score of {min_score:g}"
    picked = _pick(good[~weak], pick)
    rows = picked["row"].to_numpy()
    boxes_of.loc[rows, [*XYXY, "score", "class"]] = picked[[*XYXY, "score", "class"]].to_numpy(object)
    boxes_of.loc[rows, "source"], boxes_of.loc[rows, "reason"] = source, ""
    return boxes_of.astype({**dict.fromkeys([*XYXY, "score"], "float64"), "class": str})[COLUMNS]


def _pick(boxes: pd.DataFrame, pick: Pick) -> pd.DataFrame:
    if pick == "union" and len(boxes):
        how = {"xmin": "min", "ymin": "min", "xmax": "max", "ymax": "max", "score": "max", "class": "first"}
        return boxes.groupby("row", as_index=False).agg(how)
    area = (boxes["xmax"] - boxes["xmin"]) * (boxes["ymax"] - boxes["ymin"])
    rank = boxes["score"].fillna(-1.0) if pick == "score" else area
    return (
        boxes.assign(rank=rank, area=area)
        .sort_values(["rank", "area"], kind="stable")
        .drop_duplicates("row", keep="last")
    )


# --- windows ----------------------------------------------------------------------------------------------


def windows(boxes: np.ndarray, sizes: np.ndarray, margin: float, square: bool = False) -> np.ndarray:
    """int32 (N, 4) left, top, right, bottom of what is cut out; all -1 where the whole image stays.

    boxes: float (N, 4) xmin, ymin, xmax, ymax in pixels, NaN for none. sizes: (N, 2) width, height. margin: share of
    the box's sides added on each side. square: the shorter side grows to the longer one, moved inside the image; where
    the image itself is shorter, its whole side is taken.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    grown = margin * (high - low)
    low, high = low - grown, high + grown
    if square:
        side = np.minimum((high - low).max(axis=1, keepdims=True), sizes)
        middle = (low + high) / 2
        low = np.clip(middle - side / 2, 0, sizes - side)
        high = low + side
    with np.errstate(invalid="ignore"):
        ends = np.concatenate([np.floor(np.maximum(low, 0) + 1e-6), np.ceil(np.minimum(high, sizes) - 1e-6)], axis=1)
        usable = np.isfinite(ends).all(axis=1) & (ends[:, 2:] - ends[:, :2] >= SMALLEST).all(axis=1)
        return np.where(usable[:, None], ends, -1).astype(np.int32)


@dataclass(frozen=True)
class Crops:
    """Which window of each row of the index is cut out: int32 (N, 4), -1 for the whole image; and what made them."""

    windows: np.ndarray
    margin: float
    square: bool

    @cached_property
    def key(self) -> str:
        """A digest of the windows, margin and shape: part of the cache's key."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.windows, np.int32).tobytes()).hexdigest()
        return digest({"windows": pixels, "margin": self.margin, "square": self.square})


def crops(boxes: pd.DataFrame, index: pd.DataFrame, margin: float, square: bool) -> Crops:
    """The windows of boxes.csv on its index."""
    return Crops(windows(_corners(boxes), _sizes(index), margin, square), margin, square)


def _corners(boxes: pd.DataFrame) -> np.ndarray:
    """float (N, 4) of boxes.csv, NaN where the whole image stays."""
    corners = boxes[XYXY].to_numpy(float, copy=True)
    corners[(boxes["source"] == "whole").to_numpy()] = np.nan
    return corners


def _sizes(index: pd.DataFrame) -> np.ndarray:
    return index[["width", "height"]].astype("float64").to_numpy()


# --- recall -----------------------------------------------------------------------------------------------


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.clip(sides, 0, None).prod(axis=-1)


def _area(a: np.ndarray) -> np.ndarray:
    return np.clip(a[..., 2:] - a[..., :2], 0, None).prod(axis=-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, 0..1, of boxes float (..., 4) xyxy, pair by pair (broadcast)."""
    both = _intersection(a, b)
    return both / np.maximum(_area(a) + _area(b) - both, 1e-9)


def kept(window: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share 0..1 of each true box's area that its window keeps; 1 where the whole image stays (window -1)."""
    share = _intersection(window.astype(float), truth) / np.maximum(_area(truth), 1e-9)
    return np.where(window[..., 0] < 0, 1.0, share)


@dataclass(frozen=True)
class Recall:
    """How found boxes meet true ones that their detector was not trained on, a row per image with a true box.

    found: float (n, 4) xyxy in pixels, NaN where nothing was found (the whole image stays). truth: (n, 4).
    sizes: (n, 2) width, height. square: whether windows are.
    """

    found: np.ndarray
    truth: np.ndarray
    sizes: np.ndarray
    square: bool

    @cached_property
    def iou(self) -> np.ndarray:
        """(n,) 0..1, 0 where nothing was found."""
        return np.nan_to_num(iou(self.found, self.truth))

    def kept(self, margin: float) -> np.ndarray:
        """(n,) share of each true box inside its window."""
        return kept(windows(self.found, self.sizes, margin, self.square), self.truth)

    def at(self, margin: float) -> dict[str, float]:
        """recall (mean share of a true box kept), whole (share of boxes kept wholly), lowest, area (of the image)."""
        cut, shares = windows(self.found, self.sizes, margin, self.square), self.kept(margin)
        area = np.where(cut[:, 0] < 0, 1.0, _area(cut.astype(float)) / self.sizes.prod(axis=1))
        return {
            "recall": float(shares.mean()),
            "whole": float((shares > WHOLE).mean()),
            "lowest": float(shares.min()),
            "area": float(area.mean()),
        }

    @cached_property
    def table(self) -> pd.DataFrame:
        """`at` each of MARGINS."""
        return pd.DataFrame([{"margin": margin, **self.at(margin)} for margin in MARGINS])

    def choose(self) -> float | None:
        """The smallest of MARGINS that keeps enough; None where none does."""
        place = _enough(self._every)
        return None if place is None else MARGINS[place]

    def nested(self) -> tuple[float, float]:
        """(recall, whole) where the margin of each image is chosen on the other images: free of the choice's luck."""
        shares = []
        for k in range(len(self.truth)):
            place = _enough(np.delete(self._every, k, axis=1))
            shares.append(self._every[len(MARGINS) - 1 if place is None else place, k])
        return float(np.mean(shares)), float((np.array(shares) > WHOLE).mean())

    @cached_property
    def _every(self) -> np.ndarray:
        return np.stack([self.kept(margin) for margin in MARGINS])


def _enough(shares: np.ndarray) -> int | None:
    """Place of the first row of (margins, n) shares that keeps enough."""
    ok = (shares.mean(axis=1) >= KEEP) & ((shares > WHOLE).mean(axis=1) >= WHOLLY)
    return int(np.argmax(ok)) if ok.any() else None


def box_recall(
    boxes: pd.DataFrame, truth: pd.DataFrame, index: pd.DataFrame, square: bool, pick: Pick = "score"
) -> Recall | None:
    """boxes.csv against true boxes (`on_index`); None where no image has a true box.

    Of several true boxes the one that the found box meets best counts (pick union: all of them together).
    """
    truth = truth[truth["reason"].isna() & index["error"].isna().to_numpy()[truth["row"]]]
    if pick == "union":
        truth = _pick(truth.assign(score=1.0), "union")
    if not len(truth):
        return None
    corners = _corners(boxes)
    overlap = np.nan_to_num(iou(corners[truth["row"]], truth[XYXY].to_numpy(float)))
    best = truth.assign(iou=overlap).sort_values("iou", kind="stable").drop_duplicates("row", keep="last")
    rows = best["row"].to_numpy()
    return Recall(corners[rows], best[XYXY].to_numpy(float), _sizes(index)[rows], square)


def choose_margin(asked: float | None, met: Recall | None) -> tuple[float, str]:
    """(margin, how it came about): as asked, by true boxes where there are enough, else the default."""
    if asked is not None:
        return asked, "given"
    if met is None or len(met.truth) < LEAST_TRUTH:
        few = "no true boxes" if met is None else f"only {len(met.truth)} true boxes"
        return MARGIN, f"default: {few} to choose it by"
    chosen = met.choose()
    if chosen is None:
        return MARGINS[-1], f"the largest: none keeps {KEEP:.0%} of the area and {WHOLLY:.0%} of the boxes wholly"
    return chosen, f"smallest that keeps {KEEP:.0%} of the true area and {WHOLLY:.0%} of the boxes wholly"


# --- saved ------------------------------------------------------------------------------------------------


def save_boxes(
    competition: Competition, index: pd.DataFrame, boxes: pd.DataFrame, windows: Crops, meta: dict[str, Any]
) -> None:
    """boxes.csv and crop.json, which vouches for it; the cache of crops is checked against the latter's key."""
    folder = competition.derived()
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "boxes.csv", boxes.round(dict.fromkeys([*XYXY, "score"], 4)))
    what = {"margin": windows.margin, "square": windows.square, "key": windows.key, "files": files_digest(index)}
    write_voucher(folder / "crop.json", {**meta, **what}, folder / "boxes.csv")


def files_digest(index: pd.DataFrame) -> str:
    """A digest of which files, of how many bytes, the boxes are of."""
    return digest(identity(index).to_numpy().tolist())


def load_crop_meta(competition: Competition) -> dict[str, Any] | None:
    """crop.json; None where nothing was cropped, or boxes.csv was changed since."""
    return read_voucher(competition.derived() / "crop.json")


def load_boxes(competition: Competition) -> pd.DataFrame:
    """boxes.csv."""
    text = {"id": str, "split": str, "class": str, "source": str, "reason": str}
    path = competition.derived() / "boxes.csv"
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={name: [""] for name in [*XYXY, "score"]})


# --- pictures ---------------------------------------------------------------------------------------------

FOUND, CUT = (230, 120, 0), (86, 180, 233)  # orange, sky blue


def full_image(raw: Path, row: Any, options: ImageOptions) -> np.ndarray:
    """uint8 (H, W, 3): all of an index row's image, upright, as boxes count its pixels. ImageError as read_image."""
    update: dict[str, Any] = {"crop": "none"}
    frame = getattr(row, "frame", None)
    if frame is not None and not pd.isna(frame):
        update["frame"] = int(frame)
    return image.read_image(raw / row.path, options=options.model_copy(update=update))


def small_image(raw: Path, row: Any, options: ImageOptions, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An index row's image as a detector sees it, its longer side at `size`, and (width, height) of the file."""
    full = full_image(raw, row, options)
    height, width = full.shape[:2]
    by = size / max(height, width)
    small = dicom.resize(full, (max(1, round(height * by)), max(1, round(width * by))))
    return np.ascontiguousarray(small), (width, height)


def small_images(
    raw: Path, rows: pd.DataFrame, options: ImageOptions, size: int
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[int, int]] | str]]:
    """(row's number, small_image or the reason why not), as worker processes get done: no decoder runs in this one."""
    frames = rows["frame"] if "frame" in rows else [None] * len(rows)
    asked = [
        (k, SimpleNamespace(path=path, frame=frame))
        for k, (path, frame) in enumerate(zip(rows["path"], frames, strict=True))
    ]
    for (k, _), small in parallel_map(partial(_small_images, raw, options, size), asked, label="look", most=4):
        yield k, f"{small}" if isinstance(small, Exception) else small


def _small_images(raw: Path, options: ImageOptions, size: int, rows: Sequence[tuple[int, Any]]) -> list[Any]:
    results: list[Any] = []
    for _, row in rows:
        try:
            results.append(small_image(raw, row, options, size))
        except (UserError, MemoryError) as error:
            results.append(str(error).removeprefix(f"{raw / row.path}: ") or "needs more memory than there is")
    return results


def drawn(
    picture: np.ndarray, box: Sequence[float] | None, window: Sequence[int] | None, height: int = 180
) -> np.ndarray:
    """The picture `height` pixels high, with its box (orange) and the window that is cut out (blue, dimmed outside)."""
    import cv2

    by = height / picture.shape[0]
    wide = max(1, round(picture.shape[1] * by))
    small = cv2.resize(picture, (wide, height), interpolation=cv2.INTER_AREA)
    if window is not None and window[0] >= 0:
        left, top, right, bottom = (round(float(value) * by) for value in window)
        dim = small // 3
        dim[top:bottom, left:right] = small[top:bottom, left:right]
        small = dim
        cv2.rectangle(small, (left, top), (min(right, wide) - 1, min(bottom, height) - 1), CUT, 2)
    if box is not None:
        left, top, right, bottom = (round(float(value) * by) for value in box)
        cv2.rectangle(small, (left, top), (min(right, wide) - 1, min(bottom, height) - 1), FOUND, 2)
    return small


def worst_first(boxes: pd.DataFrame, most: int) -> np.ndarray:
    """Rows of boxes.csv to look at: a third fallbacks, then the lowest scores, the rest at random; unreadable never."""
    rng = np.random.default_rng(0)
    readable = boxes[boxes["reason"] != "unreadable"]
    whole = readable.index[readable["source"] == "whole"].to_numpy()
    if len(whole) > most // 3:
        whole = np.sort(rng.choice(whole, most // 3, replace=False))
    boxed = readable[readable["source"] != "whole"]
    low = boxed["score"].dropna().sort_values(kind="stable").index.to_numpy()[: (most - len(whole)) // 2]
    rest = boxed.index.difference(low).to_numpy()
    rest = np.sort(rng.choice(rest, min(len(rest), most - len(whole) - len(low)), replace=False))
    return np.concatenate([whole, low, rest]).astype(int)


def caption(row: dict[str, Any]) -> str:
    """What stands below a picture: class and score, or why the whole image is used. row: of boxes.csv, as a dict."""
    if row["source"] == "whole":
        return f"whole image: {row['reason']}"
    score = "" if pd.isna(row["score"]) else f"{row['score']:.2f}"
    return f"{row['class']} {score}".strip() or "box from the file"


def contact_sheet(
    competition: Competition, index: pd.DataFrame, boxes: pd.DataFrame, cut: Crops, most: int = 48
) -> list[tuple[np.ndarray, str, str]]:
    """(picture with box and window, id, caption) of the rows to look at, the doubtful ones first."""
    pictures = []
    rows = {row.Index: row for row in index.iloc[worst_first(boxes, most)].itertuples()}
    for number in worst_first(boxes, most):
        row, box = rows[index.index[number]], boxes.iloc[number].to_dict()
        try:
            full = image.as_picture(full_image(competition.raw(), row, competition.image))
        except UserError:
            continue  # readable when the index was made, gone since: the cache says so
        corners = None if box["source"] == "whole" else [box[name] for name in XYXY]
        pictures.append((drawn(full, corners, cut.windows[number].tolist()), str(box["id"]), caption(box)))
    return pictures


def write_sheet(pictures: list[tuple[np.ndarray, str, str]], path: Path, across: int = 6, height: int = 180) -> None:
    """crops.png: the contact sheet as one picture, captions below."""
    import cv2

    if not pictures:
        return
    wide, tall = 250, height + 44
    sheet = np.full((-(-len(pictures) // across) * tall, across * wide, 3), 255, np.uint8)
    for number, (picture, name, words) in enumerate(pictures):
        top, left = number // across * tall, number % across * wide
        by = min(1.0, (wide - 8) / picture.shape[1])
        small = cv2.resize(picture, None, fx=by, fy=by, interpolation=cv2.INTER_AREA) if by < 1 else picture
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
        for line, text in enumerate((name[-34:], words[:38])):
            place = (left, top + height + 16 + 17 * line)
            cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    with replacing(path) as part:
        _, data = cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))
        part.write_bytes(data.tobytes())
