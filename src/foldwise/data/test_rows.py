"""The test rows that lie there now, whatever they are: nothing in them stops a prediction, all of it is counted.

A table without rows that can be used is made up for: by the images that fit its template, by the ids of the sample
submission. Ids that are empty or stand there twice are left out; columns that are missing are null.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core import source
from foldwise.data import index
from foldwise.data.columns import date_parts, first_date, like, read_dates
from foldwise.data.competition import Competition, Split
from foldwise.data.encoder import texts
from foldwise.data.rows import folder_of, groups_of, identity_columns, listing, rows_of_table, table_of
from foldwise.data.submission import read_sample
from foldwise.data.template import fits, pattern, template_pieces


def list_test_rows(competition: Competition) -> tuple[pd.DataFrame, list[str]]:
    """split, id, row_id, group, path and the tables' columns of the test rows as they are now; no file is opened.

    With them what was odd about them, a line each. UserError where there is nothing at all.
    """
    if competition.test is None:
        raise UserError(f"{competition.file}: names no `test`")
    notes: list[str] = []
    rows = _rows(competition, competition.test, notes).reset_index(drop=True)
    rows.insert(0, "split", "test")
    return rows, notes


def describe(
    competition: Competition, known: pd.DataFrame, rows: pd.DataFrame, headers: bool, workers: int | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Index rows of listed ones, a row a frame where the competition says so, and the categories that are new.

    known: the saved index, whose columns' types they take. headers: whether the files' headers are read (for sizes,
    DICOM tags, frames); else `error` is null, and a file that can't be read is met when it is decoded.
    """
    if headers or competition.dicom_tags or index.header_groups(competition) or competition.frames == "each":
        seen = index.headers(competition, rows, workers)
        rows = index.by_header_groups(competition, pd.concat([rows, seen], axis=1))
        rows = rows.astype(dict.fromkeys(("width", "height", "bytes", "modified"), "Int64"))
    else:
        rows = rows.assign(error=None)
    rows = index.a_row_a_frame(rows) if competition.frames == "each" else rows.drop(columns="frames", errors="ignore")
    for column in competition.metadata.dates:
        dates = read_dates(rows.pop(column) if column in rows else pd.Series(None, rows.index, dtype=object))
        parts = date_parts(dates, first_date(known, column))
        rows = rows.assign(**{f"{column}_{part}": values for part, values in parts.items()})
    for column in index.metadata_columns(competition):
        rows[column] = like(known[column], rows[column] if column in rows else pd.Series(None, rows.index))
    rows["host_group"] = rows["group"]
    return rows, _unknown_categories(competition, known, rows)


def with_known(known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The saved index with these test rows in place of its own."""
    return pd.concat([known[known["split"] != "test"], rows], ignore_index=True)


def _rows(competition: Competition, split: Split, notes: list[str]) -> pd.DataFrame:
    if not split.sources:
        rows = _listed(competition, split, notes)
    else:
        try:
            path, table = table_of(competition, split)
            if competition.id not in table:
                raise UserError(f"{path}: no column '{competition.id}'")
            if not len(table):
                raise UserError(f"{path}: no rows")
        except UserError as error:
            path, table = competition.raw_of(split) / split.sources[0].table, _without_table(competition, split)
            notes.append(f"{error}: {len(table)} rows are made of the images, or of the sample submission's ids")
        rows = rows_of_table(competition, split, _cleaned(competition, split, table, path, notes), path)
        _say_left_over(competition, split, rows, notes)
    if not len(rows):
        raise UserError(f"{competition.raw_of(split)}: no test rows: neither a table, nor images, nor a sample")
    return rows


def _cleaned(competition: Competition, split: Split, table: pd.DataFrame, path: Path, notes: list[str]) -> pd.DataFrame:
    """Rows whose id can be used, each once, with values that fit the paths' templates."""
    ids = table[competition.id]
    empty, twice = ids.isna() | (ids.astype(str) == ""), ids.duplicated()
    for what, bad in (("an empty id", empty), ("an id that stands there twice", twice & ~empty)):
        if bad.any():
            notes.append(f"{path}: {int(bad.sum())} rows with {what} are left out")
    table = table[~(empty | twice)].reset_index(drop=True)
    for column in identity_columns(competition, split) - set(table):
        notes.append(f"{path}: no column '{column}', which images are found by: they count as missing")
        table[column] = ""
    for template in split.templates:
        for piece in template_pieces(template):
            odd = (
                [row for row, value in enumerate(table[piece.column]) if not fits(piece, value)] if piece.column else []
            )
            if odd:
                notes.append(f"{path}: {len(odd)} values of {piece.column} do not fit '{template}': no image")
                table.loc[odd, piece.column] = "0"
    return table


def _without_table(competition: Competition, split: Split) -> pd.DataFrame:
    """A table of what the images' paths tell, else of the sample submission's ids."""
    raw, seen = competition.raw_of(split), list[dict[str, str]]()
    for template in split.templates:
        folder = raw / template.partition("{")[0].rpartition("/")[0]
        regex = re.compile(pattern(template))
        paths = [path.relative_to(raw).as_posix() for path in source.tree(folder, raw).files]
        seen += [match.groupdict() for match in map(regex.fullmatch, paths) if match]
    asked = [] if competition.aggregates else sample_ids(competition)
    if not seen or competition.id not in seen[0]:
        return pd.DataFrame({competition.id: sample_ids(competition)})
    images = pd.DataFrame(seen).drop_duplicates(competition.id).set_index(competition.id)
    if images.index.isin(asked).any():  # the sample says which rows there are, the folder where their images lie
        images = images.reindex(asked).fillna("")
    return images.rename_axis(competition.id).reset_index()


def sample_ids(competition: Competition) -> Sequence[str]:
    """The ids of the host's sample submission; none where there is no such file."""
    path = competition.raw() / str(competition.sample_submission)
    if competition.sample_submission is None or not source.is_there(path):
        return []
    return read_sample(competition, pd.DataFrame(), pd.DataFrame()).iloc[:, 0].drop_duplicates().tolist()


def _listed(competition: Competition, split: Split, notes: list[str]) -> pd.DataFrame:
    raw = competition.raw_of(split)
    folder, listed = folder_of(competition, split), listing(competition, split)
    if not listed.images:
        ids = pd.Series(sample_ids(competition), dtype=object)
        notes.append(f"{folder}: no images in it: {len(ids)} rows of the sample submission without one")
        return pd.DataFrame({"id": ids, "row_id": ids, "group": ids, "path": ids})
    if listed.others:
        notes.append(f"{folder}: {listed.left_out.removeprefix('; ')}")
    ids = pd.Series([path.relative_to(folder).as_posix() for path in listed.images])
    paths = [path.relative_to(raw).as_posix() for path in listed.images]
    group = groups_of(competition, pd.DataFrame(), ids)
    return pd.DataFrame({"id": ids, "row_id": ids, "group": group, "path": paths})


def _say_left_over(competition: Competition, split: Split, rows: pd.DataFrame, notes: list[str]) -> None:
    """Files beside the table's images that no row names."""
    raw = competition.raw_of(split)
    folders = {raw / template.partition("{")[0].rpartition("/")[0] for template in split.templates}
    folders_of_slices = "(/.*)?" if split.series else ""
    several = [one for one in split.templates if "*" in one or split.series]
    named, slices = set(rows["path"]), [re.compile(pattern(one) + folders_of_slices) for one in several]
    for folder in sorted(folders - {raw}):
        paths = [path.relative_to(raw).as_posix() for path in source.tree(folder, raw).files]
        more = [path for path in paths if path not in named and not any(one.fullmatch(path) for one in slices)]
        if more:
            notes.append(f"{folder}: {len(more)} files that the table does not name, such as {more[0]}: left alone")


def _unknown_categories(competition: Competition, known: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    train, notes = known[known["split"] == "train"], []
    for column in index.metadata_columns(competition):
        if pd.api.types.is_numeric_dtype(known[column]):
            continue
        values, met = texts(rows[column]), set(texts(train[column]))
        new = np.array([value is not None and value not in met for value in values])
        if new.any():
            notes.append(f"{column}: {int(new.sum())} rows with a category never seen, such as '{values[new][0]}'")
    return notes
