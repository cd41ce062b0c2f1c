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
    bytes, modified, content          of its file: size, time in ns, a hash of head, middle and tail
    frame      where the competition makes each frame a row: its number, null in a file with one
    error      str, why the file can't be used; null where it can
    (metadata columns and dicom_tags under their own names: float64 or str)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from foldwise.core.files import locked, replacing, write_csv
from foldwise.core.parallel import parallel_map
from foldwise.core.schema import nearest
from foldwise.data import image
from foldwise.data.competition import Competition, Split, condition_columns, template_columns, template_pieces
from foldwise.dicom import parse

FEW = 0.01  # share of a split's images that may be set aside without a warning


def build_index(competition: Competition, workers: int | None = None, dask: str | None = None) -> pd.DataFrame:
    """The index of both splits, file headers read in parallel; nothing is written."""
    competition.scorer()  # named wrongly, it is said before anything is read
    frames = [_split(competition, "train", competition.train)]
    if competition.test is not None:
        frames.append(_split(competition, "test", competition.test))
    if competition.extra:
        extra = [_split(competition, "extra", split) for split in competition.extra]
        frames.append(_once(competition, "extra", pd.concat(extra, ignore_index=True)))
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
    columns = ["split", "id", "path", "bytes", "modified", "content"]
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
    plain = [split for split in splits if split is not None and split.table is None]
    return image.left_out(sum((_listing(competition, split).others for split in plain), Counter()))


def _listing(competition: Competition, split: Split) -> image.Listing:
    raw = competition.raw_of(split)
    return image.listing(raw / str(split.folders or split.images), raw)


def classes(competition: Competition, index: pd.DataFrame) -> list[str]:
    """The names behind pred_<name>: classes in their order, or the target columns; [] for binary and regression."""
    if competition.task == "multilabel":
        return competition.targets
    if competition.task != "multiclass":
        return []
    return order(competition, index.loc[index["split"] == "train", "target"].dropna().unique().tolist())


def order(competition: Competition, names: list[str]) -> list[str]:
    """The classes `names` in the order of the competition's `classes`, else sorted, numbers as numbers.

    UserError where `classes` names others, or where the metric asks for an order that nobody gave.
    """
    if competition.classes is None:
        if ":" not in competition.metric and metrics.resolve(competition.metric).ordered:
            check_order(competition, names, f"metric {competition.metric}")
        return by_number(names)
    for name in sorted(set(names) ^ set(competition.classes)):
        where = "in the data, not in" if name in set(names) else "not in the data, but in"
        other = competition.classes if name in set(names) else names
        raise UserError(f"{competition.file}: class '{name}' is {where} `classes`{nearest(name, other)}")
    return list(competition.classes)


def by_number(names: Iterable[str]) -> list[str]:
    """Names sorted: numbers as numbers, then the others."""
    return sorted(names, key=lambda name: (0, float(name), "") if is_number(name) else (1, 0.0, name))


def check_order(competition: Competition, names: list[str], what: str) -> None:
    """UserError where classes have no order: names that are no numbers, without `classes` in the competition."""
    if competition.classes is None and not all(map(is_number, names)):
        line = yaml.safe_dump(sorted(names), default_flow_style=True, width=10**6, allow_unicode=True).strip()
        raise UserError(
            f"{competition.file}: {what} goes by the order of the classes, and their names do not tell it: add the "
            f"line `classes: {line}`, sorted from lowest to highest"
        )


def binary_labels(competition: Competition) -> tuple[str, str]:
    """The labels that count as 0 and as 1, as the host writes them; ('0', '1') where they are numbers or many."""
    if not isinstance(competition.positive, str):
        return "0", "1"
    split, raw = competition.train, competition.raw_of(competition.train)
    if split.table:
        labels = table_of(competition, split)[1][competition.targets[0]].dropna()
    else:
        folder = raw / str(split.folders or split.images)
        files = pd.Series([path.relative_to(folder).as_posix() for path in _listing(competition, split).images])
        labels = _folder_labels(competition, split, files, folder)
    return next(name for name in sorted(set(labels)) if name != competition.positive), competition.positive


def target_array(competition: Competition, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Targets of index rows: float32 (N,), int64 class numbers (N,), or float32 (N, C) for multilabel, NaN: ignored."""
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
        target = np.eye(len(names))[target]
    return np.nanmean(target.reshape(len(rows), -1), axis=0).astype(np.float32)


def metadata_columns(competition: Competition) -> list[str]:
    """The columns a model may use beside the pixels: numeric, categorical, parts of dates, DICOM header fields."""
    return list(dict.fromkeys([*competition.metadata.columns, *competition.dicom_tags]))


# --- rows -------------------------------------------------------------------------------------------------


def _split(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    rows = _from_table(competition, name, split) if split.table else _from_folder(competition, name, split)
    if not len(rows):
        raise UserError(f"{competition.file}: `{name}` has no rows")
    rows.insert(0, "split", name)
    return _once(competition, name, rows)


def _once(competition: Competition, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    twice = rows["id"].duplicated()
    if twice.any():
        raise UserError(f"{competition.file}: {name} id '{rows['id'][twice].iloc[0]}' stands there twice")
    return rows


def read_table(path: Path, text_columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV or parquet; `text_columns` stay text, so that ids keep their leading zeros. An empty cell there is ''."""
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=dict.fromkeys(text_columns, str), low_memory=False)
            gaps = [column for column in text_columns if column in frame and frame[column].isna().any()]
            if gaps:  # an id or a class may be called NA, None or null
                frame[gaps] = pd.read_csv(path, dtype=str, usecols=gaps, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: can't be read as a table ({' '.join(str(error).split())[:200]})") from None
    return frame.astype({column: str for column in text_columns if column in frame and frame[column].notna().all()})


def _from_table(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    path, table = table_of(competition, split)
    if left_out := table.attrs["left_out"]:
        note(f"{name}: {left_out} of {left_out + len(table)} rows of {split.table} are left out by `where`")
    identity, group = identity_columns(competition, split), competition.group_column
    needed = set(identity)
    if name != "test":
        needed |= set(competition.targets)
    if name == "train":
        needed |= {group} if group and not dicom.is_keyword(group) else set()
        needed |= set(competition.metadata.columns.values())
    for column in sorted(needed):
        if column not in table:
            raise UserError(f"{path}: no column '{column}', which {competition.file} names{nearest(column, table)}")
    for column in sorted(identity):
        empty = table[column].isna() | (table[column] == "")
        if empty.any():
            raise UserError(f"{path}: row {empty.idxmax() + 2}: '{column}' is empty")
    rows = rows_of_table(competition, split, table, path)
    if name == "test":
        return rows.reset_index(drop=True)
    at = list(rows).index("path") + 1
    rows = pd.concat([rows.iloc[:, :at], _targets(competition, table, path), rows.iloc[:, at:]], axis=1)
    return _labelled(competition, name, rows)


def identity_columns(competition: Competition, split: Split) -> set[str]:
    """The columns that a row can't do without: its id, and what its image's path is made of."""
    return {competition.id, *(column for template in split.templates for column in template_columns(template))}


def _row_template(competition: Competition) -> str:
    row_id = competition.submission.row_id or competition.id
    return row_id if template_columns(row_id) else f"{{{row_id}}}"


def table_of(competition: Competition, split: Split) -> tuple[Path, pd.DataFrame]:
    """A split's table and where it lies; ids, groups and class names in it are text."""
    path = competition.raw_of(split) / str(split.table)
    keys = identity_columns(competition, split) | set(template_columns(_row_template(competition)))
    keys |= set(competition.targets if competition.task == "multiclass" or competition.positive else [])
    keys |= {competition.group_column} if competition.group_column else set()
    return path, _where(competition, split, read_table(path, sorted(keys)), path)


def table_columns(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    """All columns of the train table, by the rows of `train` (index rows); none where there is no table."""
    if competition.train.table is None:
        return pd.DataFrame(index=train.index)
    table = table_of(competition, competition.train)[1].drop_duplicates(competition.id).set_index(competition.id)
    ids = train["id"].str.replace(r"#\d+$", "", regex=True) if competition.frames == "each" else train["id"]
    return table.reindex(ids).set_axis(train.index)


def rows_of_table(competition: Competition, split: Split, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """id, row_id, group, path and the metadata columns (null where the table has none) of a split's table."""
    row_template = _row_template(competition)
    rows = pd.DataFrame({"id": table[competition.id]})
    known = set(template_columns(row_template)) <= set(table)
    rows["row_id"] = _fill(row_template, table, path) if known else rows["id"]
    rows["group"] = groups_of(competition, table, rows["id"])
    rows["path"] = _paths(competition, split, table, path)
    for column in dict.fromkeys(competition.metadata.columns.values()):
        rows[column] = table.get(column)
    return rows


def _where(competition: Competition, split: Split, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows that `where` keeps, under their places in the file, and in attrs how many it leaves out."""
    kept = table
    for condition in filter(None, [split.where, competition.where if split is not competition.test else None]):
        columns = condition_columns(condition)
        for column in columns:
            if column not in kept:
                raise UserError(f"{path}: no column '{column}', which `where` asks{nearest(column, table)}")
        try:
            true = kept.eval(condition, engine="python")
            if not isinstance(true, pd.Series) or true.dtype != bool:
                raise ValueError("is no comparison")
            some = kept[true]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: `where: {condition}`: {' '.join(str(error).split())[:150]}") from None
        if not len(some):
            values = ", ".join(map(repr, table[columns[0]].dropna().unique()[:5])) if columns else "nothing"
            raise UserError(f"{path}: `where: {condition}` is true of no row; {columns[:1]} holds {values}, ...")
        kept = some
    kept.attrs["left_out"] = len(table) - len(kept)
    return kept


def _paths(competition: Competition, split: Split, table: pd.DataFrame, where: Path) -> list[str]:
    """Each row's image, below the raw folder; of several places the first that holds one."""
    raw = competition.raw_of(split)
    places = [_fill(template, table, where) for template in split.templates]
    if len(places) == 1:
        paths = places[0]
    else:
        paths = [next((p for p in row if source.is_there(raw / p)), row[0]) for row in zip(*places, strict=True)]
    return paths if split.root is None else [(raw / path).as_posix() for path in paths]


def _fill(template: str, table: pd.DataFrame, where: Path) -> list[str]:
    """The template with every row's values in it; UserError names the row whose value does not fit."""
    filled = [""] * len(table)
    for piece in template_pieces(template):
        values = table[piece.column] if piece.column is not None else [""] * len(table)
        for row, value in enumerate(values):
            try:
                filled[row] += piece.fill(value)
            except ValueError:
                what = f"'{value}' does not fit the format of {piece.column} in '{template}'"
                raise UserError(f"{where}: row {table.index[row] + 2}: {what}") from None
    return filled


def groups_of(competition: Competition, table: pd.DataFrame, ids: pd.Series) -> pd.Series:
    """Each row's group, by its id or the table; a row without one is a group of its own."""
    if competition.group_pattern is not None:
        named = ids.str.extract(re.compile(competition.group_pattern))[0]
    elif competition.group_column in table:
        named = table[competition.group_column]
    else:
        return ids
    return named.astype(str).where(named.notna() & (named.astype(str) != ""), ids)


def by_header_groups(competition: Competition, index: pd.DataFrame) -> pd.DataFrame:
    """Groups by a header field, where the competition names one and the table has no such column."""
    tag = competition.group_column
    if tag not in index:
        return index
    from_header = index[tag].astype(str).where(index[tag].notna() & (index["group"] == index["id"]), index["group"])
    return index.assign(group=from_header).drop(columns=[] if tag in metadata_columns(competition) else [tag])


def _targets(competition: Competition, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    labels = competition.labels
    targets = {}
    for column, name in zip(competition.targets, competition.truth, strict=True):
        values, where = table[column], f"{path}: column '{column}'"
        blank = values.isna() | (values.astype(str).str.strip() == "")
        unsure = pd.to_numeric(values, errors="coerce").eq(-1) & (labels.uncertain is not None)
        if blank.any() and labels.blank is None:
            row = blank.idxmax()
            raise UserError(
                f"{path}: row {row + 2} (id {table[competition.id][row]}): '{column}' is empty; give it a label, "
                "take the row out, or say what it means: `labels: {blank: ignore}` in the competition"
            )
        target = _target(competition, values[~blank & ~unsure], where).reindex(table.index)
        for cells, meaning in ((blank, labels.blank), (unsure, labels.uncertain)):
            if meaning not in {None, "ignore"}:
                target[cells] = float(str(meaning))
        if competition.task == "binary" and target.nunique() < 2:
            raise UserError(f"{where}: every row is {target.dropna().iloc[0]:g}; nothing to learn")
        targets[name] = target
    return pd.DataFrame(targets)


def _labelled(competition: Competition, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a label; how many have none is said."""
    empty = rows[competition.truth].isna().all(axis=1)
    if empty.any():
        note(f"{name}: {int(empty.sum())} of {len(rows)} rows have no label (`labels`: ignore) and are left out")
    return rows[~empty].reset_index(drop=True)


def _target(competition: Competition, values: pd.Series, where: str) -> pd.Series:
    if not len(values):
        raise UserError(f"{where}: no row has a label")
    if competition.task == "multiclass":
        whole = pd.api.types.is_float_dtype(values) and (values % 1 == 0).all()
        names = (values.astype("int64") if whole else values).astype(str).str.strip()
        if names.nunique() < 2:
            raise UserError(f"{where}: only one class, '{names.iloc[0]}'; nothing to learn")
        return names
    if isinstance(competition.positive, list):
        names = values.astype(str).str.strip()
        for one in set(competition.positive) - set(names):
            raise UserError(f"{where}: no row has the label '{one}' of `positive`{nearest(one, names.unique())}")
        return names.isin(competition.positive).astype("float64")
    if competition.positive is not None:
        names = values.astype(str)
        if competition.positive not in set(names) or names.nunique() != 2:
            some = ", ".join(sorted(set(names))[:5])
            raise UserError(
                f"{where}: `positive: {competition.positive}` needs two labels with it among them; found {some}; "
                f"`positive: [{competition.positive}]` takes all others for 0"
            )
        return (names == competition.positive).astype("float64")
    numbers, _ = read_numbers(values)
    if numbers.isna().any() or not np.isfinite(numbers).all():
        bad = values[~np.isfinite(numbers)].iloc[0]
        hint = (
            "; set `positive` in the competition to the label that counts as 1" if competition.task == "binary" else ""
        )
        raise UserError(f"{where}: '{bad}' is not a number{hint}")
    if competition.task != "regression" and not numbers.isin([0, 1]).all():
        strange = numbers[~numbers.isin([0, 1])].iloc[0]
        hint = "; if it means uncertain, set `labels: {uncertain: ignore}`" if strange == -1 else ""
        raise UserError(f"{where}: {competition.task} targets are 0 and 1, found {strange:g}{hint}")
    return numbers


def _from_folder(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    raw = competition.raw_of(split)
    folder = raw / str(split.folders or split.images)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, named by `{name}` in {competition.file}")
    listed = _listing(competition, split)
    files = listed.images
    if not files:
        raise UserError(f"{folder}: no images in it{listed.left_out}")
    if listed.outside:
        some = f"{listed.outside[0]} -> {listed.outside[0].resolve()}"
        more = f" and {len(listed.outside) - 1} more links" if len(listed.outside) > 1 else ""
        note(f"{name}: a link leads out of the raw folder and is followed: {some}{more}")
    ids = pd.Series([path.relative_to(folder).as_posix() for path in files])
    rows = pd.DataFrame({"id": ids, "row_id": ids, "group": groups_of(competition, pd.DataFrame(), ids)})
    rows["path"] = [path.as_posix() if split.root else path.relative_to(raw).as_posix() for path in files]
    if name != "test":
        labels = _folder_labels(competition, split, ids, folder)
        rows["target"] = _target(competition, labels, f"{folder}: its labels")
    return rows


def _folder_labels(competition: Competition, split: Split, ids: pd.Series, folder: Path) -> pd.Series:
    if split.folders:
        stray = ids[~ids.str.contains("/")]
        if len(stray):
            raise UserError(f"{folder / stray.iloc[0]}: lies beside the class folders; move it into one or away")
        return ids.str.split("/").str[0]
    labels = ids.str.extract(re.compile(str(split.target_pattern)))[0]
    if labels.isna().any():
        raise UserError(
            f"{folder / ids[labels.isna()].iloc[0]}: its name does not match target_pattern "
            f"'{split.target_pattern}' in {competition.file}"
        )
    return labels


# --- files ------------------------------------------------------------------------------------------------


def headers(
    competition: Competition, index: pd.DataFrame, workers: int | None = None, dask: str | None = None
) -> pd.DataFrame:
    """What the files' headers say of index rows: format, sizes, why one can't be read, the DICOM tags asked for."""
    raw = competition.raw()
    tags = [*competition.dicom_tags, *header_groups(competition)]
    job = partial(_read_headers, str(raw), tuple(dict.fromkeys(tags)))
    each: list[dict[str, Any]] = [{} for _ in range(len(index))]
    rows = list(enumerate(index["path"]))
    for (row, _), result in parallel_map(job, rows, workers=workers, label="headers", dask=dask):
        each[row] = {"error": str(result)} if isinstance(result, Exception) else result
    columns = ["format", "width", "height", "frames", "bytes", "modified", "content", "error", *dict.fromkeys(tags)]
    return pd.DataFrame(each, columns=columns)


def header_groups(competition: Competition) -> list[str]:
    """The header field that tells the group, if one does."""
    group = competition.group_column
    return [group] if group and dicom.is_keyword(group) else []


def a_row_a_frame(index: pd.DataFrame) -> pd.DataFrame:
    """A row per frame, id '<id>#<k>', frame k; row_id and group stay those of the file."""
    count = index.pop("frames").astype("Int64").fillna(1).astype(int)
    spread = index.loc[index.index.repeat(count)]
    frame = spread.groupby(level=0).cumcount()
    several = count.loc[spread.index] > 1
    ids = (spread["id"] + "#" + frame.astype(str)).where(several, spread["id"])
    return spread.assign(id=ids, frame=frame.astype("Int64").where(several)).reset_index(drop=True)


def _read_headers(raw: str, tags: tuple[str, ...], rows: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    return [_read_header(Path(raw) / path, tags) for _, path in rows]


def _read_header(path: Path, tags: tuple[str, ...]) -> dict[str, Any]:
    try:
        if not source.is_there(path):
            return {"error": "missing file"}
        header: dict[str, Any] = {**image.probe(path), **source.identity(path)}
        if tags and header["format"] == "DICOM":
            header.update({tag: _scalar(value) for tag, value in dicom.read_header(path, list(tags)).items()})
        return header
    except UserError as error:
        return {"error": str(error).removeprefix(f"{path}: "), **source.identity(path)}
    except Exception as error:  # whatever a damaged file does to a parser, the other files go on
        return {"error": f"{type(error).__name__}: {error}", **source.identity(path)}


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
        index[column] = _text(index[column])
    for column in competition.dicom_tags:
        index[column] = typed(index[column])
    for column in ("width", "height", "bytes", "modified"):
        index[column] = index[column].astype("Int64")
    for column in ("format", "content", "error"):
        index[column] = _text(index[column])
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


def date_parts(dates: pd.Series, first: pd.Timestamp) -> dict[str, pd.Series]:
    """What a model gets of dates, float64: year, month, and days since the first training row's."""
    days = (dates - first) / pd.Timedelta(days=1)
    parts = {"year": dates.dt.year, "month": dates.dt.month, "days": days}
    return {name: values.astype("float64") for name, values in parts.items()}


def first_date(known: pd.DataFrame, column: str) -> pd.Timestamp:
    """The first training row's date, as an index tells it: the day from which its days lead into its months."""
    rows = known.loc[known["split"] == "train", [f"{column}_{part}" for part in ("year", "month", "days")]].dropna()
    if not len(rows):
        return pd.NaT
    year, month, _ = rows.loc[rows[f"{column}_days"].idxmin()]
    begin = pd.Timestamp(int(year), int(month), 1)
    days = [begin + pd.Timedelta(days=k) for k in range(begin.days_in_month)]

    def fitting(day: pd.Timestamp) -> int:
        dates = day + pd.to_timedelta(rows[f"{column}_days"], unit="D")
        return int(((dates.dt.year == rows[f"{column}_year"]) & (dates.dt.month == rows[f"{column}_month"])).sum())

    return max(days, key=fitting)


_DAY_FIRST = r"(1[3-9]|2\d|3[01])[-/.]\d{1,2}[-/.]\d{2,4}.*|\d{1,2}\.\d{1,2}\.\d{2,4}.*"
_DATE = r"\d{4}[-/.]?\d{1,2}[-/.]?\d{1,2}([ T].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([ T].*)?"


def read_dates(values: pd.Series) -> pd.Series:
    """A column as datetime64[ns], NaT where a value is no date of 1678 to 2261.

    Read are 2019-05-01, 20190501, 5/1/2019, 1.5.2019, with a time or without.
    The day comes first where points stand between, or where any row's first number can be no month.
    """
    text = values.dropna().astype(str).str.strip()
    text = text[text.str.fullmatch(_DATE)]
    first = bool(text.str.fullmatch(_DAY_FIRST).any()) and not text.str.fullmatch(r"\d{4}.*").all()
    dates = pd.to_datetime(text, errors="coerce", format="mixed", dayfirst=first, utc=True).dt.tz_localize(None)
    known = dates.between(pd.Timestamp("1678-01-01"), pd.Timestamp("2262-01-01"))  # what 64 bits of ns hold
    return dates.where(known).reindex(values.index).astype("datetime64[ns]")


_COMMA = r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)(?:,\d+)?"
_THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"  # 1234 to one reader, 1.234 to another


def read_numbers(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """A column as float64, and what in it is no number: NaN in the first, text in the second.

    Beside numbers, ages are read as DICOM writes them ('045Y', '010M', in years), and decimal commas ('1,5',
    '1.234,5') where the whole column has them and they can't be meant as thousands.
    """
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    numbers = numbers.where(np.isfinite(numbers))  # an infinite age is none
    text = values[numbers.isna() & values.notna()].astype(str).str.strip()
    text = text[~text.str.lower().isin(["", "nan"])]
    if not len(text):
        return numbers, text
    every = values.dropna().astype(str).str.strip()
    commas = every[every.str.contains(",", regex=False)]
    if every.str.fullmatch(_COMMA).all() and not commas.str.fullmatch(_THOUSANDS).all():
        points = every.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        return pd.to_numeric(points).astype("float64").reindex(values.index), text[:0]
    years = text.map(parse.age).astype("float64")
    return numbers.fillna(years), text[years.isna()]


def like(known: pd.Series, values: pd.Series) -> pd.Series:
    """New rows' values of a metadata column in the type that the known rows gave it."""
    if not pd.api.types.is_numeric_dtype(known):
        return _text(values)
    numbers = typed(values)
    return numbers if pd.api.types.is_float_dtype(numbers) else read_numbers(values)[0]


def typed(values: pd.Series) -> pd.Series:
    """A header column as float64 where all of it is numbers, or dates (days since 1970-01-01); else as text."""
    there = values.notna()
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    if numbers.notna().equals(there):
        return numbers
    text = _text(values)
    if text[there].str.fullmatch(r"\d{4}-\d{2}-\d{2}").all():
        days = pd.to_datetime(text, errors="coerce") - pd.Timestamp("1970-01-01")
        return (days / pd.Timedelta(days=1)).astype("float64")
    return text


def _text(values: pd.Series) -> pd.Series:
    return values.astype(object).map(_name, na_action="ignore").astype("string")


def _name(value: Any) -> str:
    """1.0 and 1 name the same category: a column with gaps is read as float, one without as int."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_number(text: str) -> bool:
    """Whether a name is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
