"""Raw folder -> one row per image, with its target and metadata; unreadable files set aside with the reason.

Columns of index.parquet, one row per image:

    split      'train', 'test', or 'extra' (labelled, from elsewhere: trained on, never validated on)
    id         str, the competition's id; unique within a split
    row_id     str, the submission row that the image belongs to (= id unless several images make a row)
    group      str, rows that must share a fold (= id where the host gives none), copies merged by the audit
    host_group str, the same before the audit
    path       str, below the competition's raw folder (or absolute: an extra with its own root)
    target     binary 0/1, multiclass the class's name, regression a number; multilabel: target_<column>...
    width, height, format             of the image
    slices     of a competition of series: how many the row has, files or frames
    bytes, modified, content          of its file: size, time in ns, a hash of head, middle and tail
    frame      where the competition makes each frame a row: its number, null in a file with one; of series with
               `image.around`: the slice about which others are chosen
    error      str, why the file can't be used; null where it can
    (metadata columns and dicom_tags under their own names: float64 or str)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from foldwise import UserError, dicom, metrics
from foldwise.core import source
from foldwise.core.cli import note
from foldwise.core.files import digest, locked, replacing, write_csv
from foldwise.core.parallel import parallel_map
from foldwise.core.schema import nearest
from foldwise.data import arrays, image, series
from foldwise.data.columns import by_number, date_parts, is_number, read_dates, read_numbers, text, typed
from foldwise.data.competition import Competition
from foldwise.data.image import ImageOptions
from foldwise.data.rows import listing, once, rows_of_split

FEW = 0.01  # share of a split's images that may be set aside without a warning


def build_index(competition: Competition, workers: int | None = None, dask: str | None = None) -> pd.DataFrame:
    """The index of both splits, file headers read in parallel; nothing is written."""
    competition.scorer()  # named wrongly, it is said before anything is read
    frames = [rows_of_split(competition, "train", competition.train)]
    if competition.test is not None:
        frames.append(rows_of_split(competition, "test", competition.test))
    if competition.extra:
        extra = [rows_of_split(competition, "extra", split) for split in competition.extra]
        frames.append(once(competition, "extra", pd.concat(extra, ignore_index=True)))
    index = pd.concat(frames, ignore_index=True)
    index = by_header_groups(competition, pd.concat([index, headers(competition, index, workers, dask)], axis=1))
    index = a_row_a_frame(index) if competition.frames == "each" else index.drop(columns="frames")
    check_readable(competition, index)
    classes(competition, index)
    index = _typed(competition, index)
    try_metric(competition, index)
    return index


def identity(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of an index, as text, that tell whether its rows are still the same files."""
    columns = ["split", "id", "path", "bytes", "modified", "content", "frame"]
    return table[[column for column in columns if column in table]].astype(str)


@contextmanager
def alone(competition: Competition) -> Iterator[None]:
    """Hold input/derived/<competition>/: UserError where another process makes its files now."""
    folder = competition.derived()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except BlockingIOError:
        raise UserError(f"{folder}: another process (step 01 or 08) works on it; wait for it or stop it") from None


def save_index(index: pd.DataFrame, competition: Competition) -> None:
    """index.parquet, and unreadable.csv with the files set aside and the reason; each written whole."""
    folder = competition.derived()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "index.parquet") as part:
        index.to_parquet(part, index=False, write_page_checksum=True)
    write_csv(folder / "unreadable.csv", index.loc[index["error"].notna(), ["split", "id", "path", "error"]])


def load_index(competition: Competition) -> pd.DataFrame:
    """The saved index; UserError says what to run where there is none."""
    path = competition.derived() / "index.parquet"
    if not path.exists():
        demo = "make demo, or " if competition.name == "demo" else ""
        raise UserError(
            f"{path}: not there yet; run {demo}python src/01_preprocess.py --competition {competition.name}"
        )
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: damaged ({why}); run 01_preprocess.py again, which makes it anew") from None


def try_metric(competition: Competition, index: pd.DataFrame) -> None:
    """UserError where a metric of one's own does not score the training rows: before hours of training, not after."""
    names = classes(competition, index)
    rows = index[(index["split"] == "train") & index["error"].isna()]
    target = target_array(competition, rows, names)
    metrics.rehearse(competition.scorer(), target, len(names), competition.task)


def learn_scaling(competition: Competition, index: pd.DataFrame) -> None:
    """Fill in `image.scaling`, where it asks for percentiles of the training part: learnt once of the same files."""
    train = index[(index["split"] == "train") & index["error"].isna()]
    files = [competition.raw() / path for path in train["path"].unique()]
    options, key = competition.image, digest(identity(train).to_numpy().tolist())
    scaling = arrays.learn_once(competition.derived(), options.scaling, files, key, options)
    competition.image = options.model_copy(update={"scaling": scaling})


def check_readable(competition: Competition, index: pd.DataFrame) -> None:
    """UserError where more of a split's images are unreadable than the competition allows, or all training images."""
    for split, part in index.groupby("split"):
        broken = part[part["error"].notna()]
        if len(broken) > competition.unreadable * len(part) or (split == "train" and len(broken) == len(part)):
            first = broken.iloc[0]
            raise UserError(
                f"{competition.file}: {len(broken)} of {len(part)} {split} images can't be read; the first: "
                f"{competition.raw() / first['path']}: {first['error']}; check `{split}.images`, or allow more than "
                f"`unreadable: {competition.unreadable:g}`"
            )


def check_series(competition: Competition, index: pd.DataFrame, remarks: pd.DataFrame) -> None:
    """UserError where no training row has one of several series: nothing would be learnt of it. remarks: the cache's"""
    train = int(((index["split"] == "train") & index["error"].isna()).sum())
    said = remarks.loc[remarks["split"] == "train", "remark"]
    for name in competition.image.series:
        if said.str.contains(image.without(name), regex=False).sum() == train:
            raise UserError(
                f"{competition.file}: `train.series`: no training row has '{name}'; mend its path, or take the series "
                "out of every split"
            )


def odd_formats(index: pd.DataFrame) -> list[str]:
    """Warnings about file formats that make under 2 % of a split: often a placeholder, not a picture."""
    warnings = []
    for split, part in index.groupby("split"):
        counts = part["format"].value_counts()
        for kind, count in counts[counts < 0.02 * len(part)].items():
            some = part.loc[part["format"] == kind, "path"].iloc[0]
            frame = ", read as its first frame" if kind == "GIF" else ""
            warnings.append(
                f"{split}: {count} {kind} among {counts.index[0]} files{frame}: {some}; it is used like the others, "
                "so see whether it is a picture at all"
            )
    return warnings


def set_aside(index: pd.DataFrame) -> list[str]:
    """Warnings where more than FEW of a split's images can't be used, with the most common reason."""
    warnings = []
    for split, part in index.groupby("split"):
        unread = part[part["error"].notna()]
        if len(unread) > FEW * len(part):
            reasons = unread["error"].value_counts()
            first = unread[unread["error"] == reasons.index[0]]["path"].iloc[0]
            warnings.append(
                f"{split}: {len(unread)} of {len(part)} images set aside ({len(unread) / len(part):.1%}), "
                f"{reasons.iloc[0]} of them: {reasons.index[0]}, such as {first}; all are in unreadable.csv"
            )
    return warnings


def remarked(remarks: pd.DataFrame) -> list[str]:
    """Warnings of cache.remarks: how many images there are of each kind, and one of them."""
    return [
        f"{len(part)} images, such as {part['path'].iloc[0]}: {remark}" for remark, part in remarks.groupby("remark")
    ]


def left_out(competition: Competition) -> str:
    """What lies in the folders that `folders` and `images` name and is no image, by kind; '' where nothing."""
    splits = [competition.train, competition.test, *competition.extra]
    plain = [split for split in splits if split is not None and not split.sources]
    return image.left_out(sum((listing(competition, split).others for split in plain), Counter()))


def classes(competition: Competition, index: pd.DataFrame) -> list[str]:
    """The names behind pred_<name>: classes in their order, or the target columns; [] for binary and regression."""
    if competition.task in {"multilabel", "soft"}:
        return competition.targets
    if competition.task != "multiclass":
        return []
    return order(competition, index.loc[index["split"] == "train", "target"].dropna().unique().tolist())


def order(competition: Competition, names: list[str]) -> list[str]:
    """The classes `names` in the order of the competition's `classes`, else sorted, numbers as numbers.

    UserError where `classes` names others, or where the metric asks for an order that nobody gave.
    """
    if competition.classes is None:
        if ":" not in competition.metric and competition.scorer().ordered:
            check_order(competition, names, f"metric {competition.metric}")
        return by_number(names)
    for name in sorted(set(names) ^ set(competition.classes)):
        where = "in the data, not in" if name in set(names) else "not in the data, but in"
        other = competition.classes if name in set(names) else names
        raise UserError(f"{competition.file}: class '{name}' is {where} `classes`{nearest(name, other)}")
    return list(competition.classes)


def check_order(competition: Competition, names: list[str], what: str) -> None:
    """UserError where classes have no order: names that are no numbers, without `classes` in the competition."""
    if competition.classes is None and not all(map(is_number, names)):
        line = yaml.safe_dump(sorted(names), default_flow_style=True, width=10**6, allow_unicode=True).strip()
        raise UserError(
            f"{competition.file}: {what} goes by the order of the classes, and their names do not tell it: add the "
            f"line `classes: {line}`, sorted from lowest to highest"
        )


def target_array(competition: Competition, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Targets of index rows: float32 (N,), int64 class numbers (N,), or float32 (N, C) of labels, NaN: ignored, or of
    shares that sum to one."""
    if competition.task == "soft":
        return rows[[f"target_{name}" for name in names]].to_numpy(dtype=np.float32, copy=True)
    if competition.task == "multilabel":
        return known(rows[[f"target_{name}" for name in names]]).to_numpy(dtype=np.float32, copy=True)
    if competition.task == "multiclass":
        codes = pd.Categorical(rows["target"], categories=names).codes.astype(np.int64)
        if (codes < 0).any():
            raise UserError(f"class '{rows['target'].iloc[int(np.argmin(codes))]}' is none of {', '.join(names[:12])}")
        return codes
    return rows["target"].to_numpy(dtype=np.float32, copy=True)


def known(truth: pd.DataFrame) -> pd.DataFrame:
    """Labels that are 0 or 1; others (ignored, uncertain) as NaN."""
    return truth.where(truth.isin([0, 1]))


def prior(competition: Competition, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """float32 (C,): the mean target of rows, shares of classes: what is predicted of a row that nothing is known of."""
    target = target_array(competition, rows, names)
    if competition.task == "multiclass":
        return (np.bincount(target, minlength=len(names)) / len(rows)).astype(np.float32)
    return np.nanmean(target.reshape(len(rows), -1), axis=0).astype(np.float32)


def metadata_columns(competition: Competition) -> list[str]:
    """The columns a model may use beside the pixels: numeric, categorical, parts of dates, DICOM header fields."""
    return list(dict.fromkeys([*competition.metadata.columns, *competition.dicom_tags]))


# --- files ------------------------------------------------------------------------------------------------


def headers(
    competition: Competition, index: pd.DataFrame, workers: int | None = None, dask: str | None = None
) -> pd.DataFrame:
    """What the files' headers say of index rows: format, sizes, why one can't be read, the DICOM tags asked for."""
    raw = competition.raw()
    tags = [*competition.dicom_tags, *header_groups(competition)]
    job = partial(_read_headers, str(raw), tuple(dict.fromkeys(tags)), competition.image)
    each: list[dict[str, Any]] = [{} for _ in range(len(index))]
    rows = list(enumerate(index["path"]))
    for (row, _), result in parallel_map(job, rows, workers=workers, label="headers", dask=dask):
        each[row] = {"error": str(result)} if isinstance(result, Exception) else result
    columns = ["format", "width", "height", "frames", "bytes", "modified", "content", "error", *dict.fromkeys(tags)]
    columns += [] if competition.image.slices is None else ["slices"]
    return pd.DataFrame(each, columns=columns)


def header_groups(competition: Competition) -> list[str]:
    """The header field that tells the group, if one does."""
    group = competition.group_column
    return [group] if group and dicom.is_keyword(group) else []


def by_header_groups(competition: Competition, index: pd.DataFrame) -> pd.DataFrame:
    """Groups by a header field, where the competition names one and the table has no such column."""
    tag = competition.group_column
    if tag not in index:
        return index
    from_header = index[tag].astype(str).where(index[tag].notna() & (index["group"] == index["id"]), index["group"])
    return index.assign(group=from_header).drop(columns=[] if tag in metadata_columns(competition) else [tag])


def a_row_a_frame(index: pd.DataFrame) -> pd.DataFrame:
    """A row per frame, id '<id>#<k>', frame k; row_id and group stay those of the file."""
    count = index.pop("frames").astype("Int64").fillna(1).astype(int)
    spread = index.loc[index.index.repeat(count)]
    frame = spread.groupby(level=0).cumcount()
    several = count.loc[spread.index] > 1
    ids = (spread["id"] + "#" + frame.astype(str)).where(several, spread["id"])
    return spread.assign(id=ids, frame=frame.astype("Int64").where(several)).reset_index(drop=True)


def _read_headers(
    raw: str, tags: tuple[str, ...], options: ImageOptions, rows: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    return [_read_header(Path(raw) / path, tags, options) for _, path in rows]


def _read_header(path: Path, tags: tuple[str, ...], options: ImageOptions) -> dict[str, Any]:
    try:
        if options.slices is None and not source.is_there(path):
            return {"error": "missing file"}
        header = series.probe(path, options)
        if tags and header["format"] == "DICOM":
            file = series.header_file(path, options)
            header.update({tag: _scalar(value) for tag, value in dicom.read_header(file, list(tags)).items()})
        return header
    except UserError as error:
        return {"error": str(error).removeprefix(f"{path}: "), **series.identity(path, options)}
    except Exception as error:  # whatever a damaged file does to a parser, the other files go on
        return {"error": f"{type(error).__name__}: {error}", **series.identity(path, options)}


def _scalar(value: Any) -> Any:
    return "\\".join(map(str, value)) if isinstance(value, list | tuple) else value


def _typed(competition: Competition, index: pd.DataFrame) -> pd.DataFrame:
    for column in competition.metadata.numeric:
        index[column], odd = read_numbers(index[column])
        if len(odd):
            some = ", ".join(f"'{value}' ({count})" for value, count in odd.value_counts().head(4).items())
            there = int(index[column].notna().sum()) + len(odd)
            what = f"{len(odd)} of {there} values are no numbers and count as missing: {some}"
            hint = "; if they are dates, name it under `metadata.dates`" if read_dates(odd).notna().all() else ""
            note(f"warning: metadata column '{column}': {what}{hint}")
    for column in competition.metadata.dates:
        index = _dated(index, column)
    for column in competition.metadata.categorical:
        index[column] = text(index[column])
    for column in competition.dicom_tags:
        index[column] = typed(index[column])
    for column in [name for name in ("width", "height", "bytes", "modified", "slices") if name in index]:
        index[column] = index[column].astype("Int64")
    for column in ("format", "content", "error"):
        index[column] = text(index[column])
    return index


def _dated(index: pd.DataFrame, column: str) -> pd.DataFrame:
    """The index with a column of dates as its year, month and days since the first of the training rows."""
    text = index.pop(column)
    dates = read_dates(text)
    odd = text[dates.isna() & text.notna()]
    if len(odd):
        note(f"warning: metadata column '{column}': {len(odd)} values are no dates and count as missing: {odd.iloc[0]}")
    parts = date_parts(dates, dates[index["split"] == "train"].min())
    return index.assign(**{f"{column}_{part}": values for part, values in parts.items()})
