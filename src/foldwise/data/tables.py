"""Files of rows: CSV, TSV, parquet, JSON (records, lines, or images with their annotations), also in archives."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import source
from foldwise.core.schema import nearest
from foldwise.data.columns import text

SUFFIXES = {".csv", ".tsv", ".tab", ".txt", ".parquet", ".json", ".jsonl", ".ndjson"}
NO_TEXT = "is no text in UTF-8; save the table as CSV in UTF-8 (iconv -f latin1 -t utf8), as parquet or JSON"
SEPARATORS = ",\t;|"


def read_table(
    path: Path, text_columns: Sequence[str] = (), records: str | None = None, separator: str | None = None
) -> pd.DataFrame:
    """A table by its suffix; `text_columns` stay text, so that ids keep their leading zeros. An empty cell there is ''.

    records: of a JSON object, the list to read ('images'); without it an object with `images` and `annotations` (COCO)
    is a row per image, with its annotations' columns and its category's name.
    separator: what stands between the items of a list in a cell (default: a space); given, no item of a text column
    may hold it.
    """
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(source.plain(path))
        elif path.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
            frame = _json(path, records)
        else:
            return _csv(path, text_columns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_nearby(path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {NO_TEXT}") from None
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: can't be read as a table ({' '.join(str(error).split())[:200]})") from None
    asked = [column for column in dict.fromkeys(text_columns) if column in frame]
    if separator is not None:
        _keep_apart(path, frame[asked], separator)
    frame = frame.apply(lambda column: column.map(_cell(separator or " ")) if column.dtype == object else column)
    return frame.assign(**{column: text(frame[column]).fillna("").astype(object) for column in asked})


def _cell(separator: str) -> Callable[[object], object]:
    """What a value becomes in a cell: a list its items, what is nested deeper JSON."""

    def of(value: object) -> object:
        if isinstance(value, list | np.ndarray) and not any(isinstance(item, list | dict) for item in value):
            return separator.join(map(str, value))
        return json.dumps(value) if isinstance(value, list | dict) else value

    return of


def _keep_apart(path: Path, frame: pd.DataFrame, separator: str) -> None:
    """UserError where an item of a list holds what is to stand between items."""
    for column in frame:
        for value in frame[column]:
            odd = [one for one in value if separator in str(one)] if isinstance(value, list | np.ndarray) else []
            if odd:
                spare = next((one for one in "|;," if one not in odd[0]), "||")
                hint = f"set `labels: {{separator: '{spare}'}}`"
                raise UserError(f"{path}: '{odd[0]}' in '{column}' holds '{separator}', which parts labels; {hint}")


def header(path: Path) -> list[str]:
    """A table's columns; [] where it can't be read (read_table says why)."""
    try:
        if path.suffix.lower() in {".csv", ".tsv", ".tab", ".txt"}:
            return list(pd.read_csv(source.plain(path), nrows=0, sep=_separator(path)).columns)
        return list(read_table(path).columns)
    except (ValueError, OSError, UserError):
        return []


def join(first: pd.DataFrame, second: pd.DataFrame, on: tuple[str, str], where: tuple[Path, Path]) -> pd.DataFrame:
    """first's rows with second's columns, by `on` (a column of each); UserError unless second has each of them once.

    A column that both have stays the first's; where the two differ, the second's is <name>_2.
    """
    left, right = on
    for column, table, path in ((left, first, where[0]), (right, second, where[1])):
        if column not in table:
            raise UserError(f"{path}: no column '{column}' to join on{nearest(column, table)}")
    keys, other = first[left].astype(str), second[right].astype(str)
    if other.duplicated().any():
        raise UserError(
            f"{where[1]}: {right} '{other[other.duplicated()].iloc[0]}' stands there twice; a join needs one row each"
        )
    lacking = keys[~keys.isin(set(other))]
    if len(lacking):
        more = f" and {lacking.nunique() - 1} more" if lacking.nunique() > 1 else ""
        raise UserError(f"{where[1]}: no row for {left} '{lacking.iloc[0]}'{more} of {where[0]}")
    added = second.set_axis(other).drop(columns=right).reindex(keys).set_axis(first.index)
    same = [column for column in added if column in first]
    differ = [column for column in same if not added[column].astype(str).equals(first[column].astype(str))]
    added = added.drop(columns=[column for column in same if column not in differ])
    return pd.concat([first, added.rename(columns={column: f"{column}_2" for column in differ})], axis=1)


def expand(names: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Column names with their patterns spelled out: 'shape1..64', 'C1..C7', and 'margin*' of the columns there are."""
    spelled: list[str] = []
    for name in names:
        numbered = re.fullmatch(r"(.*?)(\d+)\.\.(?:\1)?(\d+)", name)
        if numbered and name not in columns:
            first, last = int(numbered[2]), int(numbered[3])
            width = len(numbered[2]) if numbered[2].startswith("0") else 0
            spelled += [f"{numbered[1]}{number:0{width}d}" for number in range(first, last + 1)]
        elif is_pattern(name) and name not in columns:
            spelled += [column for column in columns if fnmatchcase(column, name)]
        else:
            spelled.append(name)
    return list(dict.fromkeys(spelled))


def is_pattern(name: str) -> bool:
    """Whether a name stands for the columns that fit it."""
    return "*" in name


def _csv(path: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    sep = _separator(path)
    frame = pd.read_csv(source.plain(path), dtype=dict.fromkeys(text_columns, str), low_memory=False, sep=sep)
    gaps = [column for column in text_columns if column in frame and frame[column].isna().any()]
    if gaps:  # an id or a class may be called NA, None or null
        frame[gaps] = pd.read_csv(source.plain(path), dtype=str, usecols=gaps, keep_default_na=False, sep=sep)
    return frame


def _separator(path: Path) -> str:
    """What stands between the header's names, outside quotes: a comma unless there is none."""
    head = source.head(path, 1 << 16)[0]
    if head.startswith(b"\x1f\x8b"):
        head = zlib.decompressobj(31).decompress(head)
    line = re.sub(r'"[^"]*"', "", next(iter(head.decode("utf-8", "replace").splitlines()), ""))
    if "\0" in line:
        raise UserError(f"{path}: {NO_TEXT}")
    return "," if "," in line else max(SEPARATORS, key=line.count) if any(map(line.count, SEPARATORS)) else ","


def _json(path: Path, records: str | None) -> pd.DataFrame:
    text = source.read(path).decode("utf-8-sig")
    if path.suffix.lower() != ".json":
        return pd.read_json(io.StringIO(text), lines=True, dtype=False, convert_dates=False)
    data = json.loads(text)
    if isinstance(data, Mapping):
        lists = [name for name, value in data.items() if _is_records(value)]
        if records is None and {"images", "annotations"} & set(lists):
            return _annotated(data)
        if records is None and len(lists) > 1:
            raise UserError(f"{path}: holds several lists, {', '.join(lists)}; say which with `records: {lists[0]}`")
        if records is not None and records not in lists:
            raise UserError(
                f"{path}: has no list '{records}'{nearest(records, lists)}; it holds {', '.join(lists) or 'none'}"
            )
        data = data[records or lists[0]] if lists else data
    columns = isinstance(data, Mapping) and all(isinstance(value, list | Mapping) for value in data.values())
    if data and not (columns or _is_records(data)):
        raise UserError(f"{path}: holds no list of records, [{{...}}, ...]; write it as one, or as CSV")
    frame = pd.DataFrame(data)
    if not len(frame.columns):
        raise UserError(f"{path}: holds no records")
    return frame


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value[:10])


def _annotated(data: Mapping[str, Any]) -> pd.DataFrame:
    """Images with their annotations (cocodataset.org, format-data): an image's different categories are a list; its
    other columns are its first annotation's."""
    images = pd.DataFrame(data.get("images") or [], dtype=object)
    notes = pd.DataFrame(data.get("annotations") or [], dtype=object)
    if not len(notes) or "image_id" not in notes:
        return images.infer_objects()
    names = {one["id"]: str(one["name"]) for one in data.get("categories") or [] if "name" in one}
    if "category_id" in notes:
        notes["category"] = notes["category_id"].map(names) if names else notes["category_id"]
    first = notes.drop_duplicates("image_id").set_index("image_id")
    for column in {"category_id", "category"} & set(notes):
        first[column] = notes.drop_duplicates(["image_id", column]).groupby("image_id")[column].agg(list)
    if not len(images):
        return first.reset_index(names="id").infer_objects()
    first = first.drop(columns=[column for column in first if column in images])
    return images.join(first, on="id").infer_objects()


def _nearby(path: Path) -> str:
    """The tables that lie there instead."""
    if not path.parent.is_dir():
        return ""
    names = sorted(other.name for other in path.parent.iterdir() if SUFFIXES & set(other.suffixes))
    return nearest(path.name, names)


def are_whole(values: pd.Series) -> bool:
    """Whether floats are whole numbers that int64 holds as they are."""
    return pd.api.types.is_float_dtype(values) and bool(((values % 1 == 0) & (values.abs() < 2**53)).all())
