"""A split's rows, from its tables or its folders: id, row_id, group, path, targets, metadata."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd

from foldwise import UserError, dicom
from foldwise.core import source
from foldwise.core.cli import note
from foldwise.core.schema import nearest
from foldwise.data import arrays, image, series, tables
from foldwise.data.competition import Competition, Split, condition_columns
from foldwise.data.labels import label_columns, labelled, read_targets, target_of
from foldwise.data.template import fill, template_columns
from foldwise.dicom.series import natural


def rows_of_split(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    """split, id, row_id, group, path, targets but of the test split, metadata; UserError where there are none."""
    rows = _from_table(competition, name, split) if split.sources else _from_folder(competition, name, split)
    if not len(rows):
        raise UserError(f"{competition.file}: `{name}` has no rows")
    rows = pd.concat([pd.Series(name, rows.index, name="split"), rows], axis=1)
    if name == "test":
        rows = _repeated(rows)
    return once(competition, name, rows)


def _repeated(rows: pd.DataFrame) -> pd.DataFrame:
    """Test rows that ask for one image twice as one, those that name another under the same id numbered: a, a#1."""
    rows = rows.drop_duplicates(["id", "row_id", "path"]).reset_index(drop=True)
    ids = numbered(rows["id"])
    return rows.assign(id=ids, row_id=rows["row_id"].where(rows["row_id"] != rows["id"], ids))


def numbered(ids: pd.Series) -> pd.Series:
    """Repeated ids as a, a#1, a#2."""
    count = ids.groupby(ids).cumcount()
    return ids.where(count == 0, ids.astype(str) + "#" + count.astype(str))


def once(competition: Competition, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if no id stands there twice."""
    twice = rows["id"].duplicated()
    if twice.any():
        hint = "; a template of columns that tells the rows apart can be the id: `id: '{a}_{b}'`"
        raise UserError(f"{competition.file}: {name} id '{rows['id'][twice].iloc[0]}' stands there twice{hint}")
    return rows


def binary_labels(competition: Competition) -> tuple[str, str]:
    """The labels that count as 0 and as 1, as the host writes them; ('0', '1') where they are numbers or many."""
    if not isinstance(competition.positive, str):
        return "0", "1"
    split = competition.train
    if split.sources:
        labels = table_of(competition, split)[1][competition.targets[0]].dropna()
    else:
        folder = folder_of(competition, split)
        files = pd.Series([path.relative_to(folder).as_posix() for path in listing(competition, split).images])
        labels = _folder_labels(competition, split, files, folder)
    return next(name for name in sorted(set(labels) - {""}) if name != competition.positive), competition.positive


def listing(competition: Competition, split: Split) -> image.Listing:
    """The images of a split without a table: those of its folder, or of each class's."""
    raw = competition.raw_of(split)
    folders = split.folders if isinstance(split.folders, list) else [split.folders or split.images]
    listed = [image.listing(raw / str(folder), raw) for folder in folders]
    return image.Listing(
        [path for one in listed for path in one.images],
        sum((one.others for one in listed), Counter()),
        [path for one in listed for path in one.outside],
    )


def folder_of(competition: Competition, split: Split) -> Path:
    """The folder that ids of a split without a table are relative to."""
    return competition.raw_of(split) / ("." if isinstance(split.folders, list) else str(split.folders or split.images))


def _from_table(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    path, table = table_of(competition, split)
    if left_out := table.attrs["left_out"]:
        note(f"{name}: {left_out} of {left_out + len(table)} rows of {path.name} are left out by `where`")
    identity, group = identity_columns(competition, split), competition.group_column
    needed = set(identity)
    if name != "test":
        needed |= set(label_columns(competition))
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
    rows = pd.concat([rows.iloc[:, :at], read_targets(competition, table, path), rows.iloc[:, at:]], axis=1)
    return labelled(competition, name, rows)


def identity_columns(competition: Competition, split: Split) -> set[str]:
    """The columns that a row can't do without: its id, and what its image's path is made of."""
    return {competition.id, *(column for template in split.templates for column in template_columns(template))}


def _row_template(competition: Competition) -> str:
    """What makes a row_id; a '{target}' in it stays, for the submission to fill."""
    row_id = competition.submission.row_id or competition.id
    row_id = row_id if template_columns(row_id) else f"{{{row_id}}}"
    return row_id.replace("{target}", "{{target}}") if competition.submission.melted else row_id


def table_of(competition: Competition, split: Split, text: tuple[str, ...] = ()) -> tuple[Path, pd.DataFrame]:
    """A split's tables joined, and where the first lies; ids, groups, class names and `text` in them are text."""
    raw, keys = competition.raw_of(split), identity_columns(competition, split) | set(text)
    keys |= set(template_columns(_row_template(competition))) | {split.id or competition.id}
    keys |= set(label_columns(competition) if competition.task == "multiclass" or competition.positive else [])
    keys |= {str(competition.target)} if competition.delimited else set()
    keys |= {competition.group_column} if competition.group_column else set()
    keys |= set(template_columns(competition.id_template)) | {column for column, _ in competition.derive.values()}
    first, *others = split.sources
    path, names = raw / first.table, sorted(keys)
    separator = competition.labels.separator if competition.delimited else None
    table = _derived(competition, tables.read_table(path, names, first.records, separator))
    for other in others:
        on = other.keys(split.id or competition.id)
        joined = tables.read_table(raw / other.table, [*names, *on], other.records, separator)
        table = tables.join(table, _derived(competition, joined), on, (path, raw / other.table))
    return path, _where(competition, split, _with_id(competition, split, table, path), path)


def _derived(competition: Competition, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns that the competition cuts from others, where it lacks them."""
    for column, (whole, pattern) in competition.derive.items():
        if whole in table and column not in table:
            table = table.assign(**{column: table[whole].astype(str).str.extract(re.compile(pattern))[0]})
    return table


def _with_id(competition: Competition, split: Split, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with the column `competition.id`, whatever this split calls it."""
    if split.id is not None:
        if split.id not in table:
            raise UserError(f"{path}: no column '{split.id}'{nearest(split.id, table)}")
        return table.assign(**{competition.id: table[split.id]})
    if not competition.id_template or not set(template_columns(competition.id_template)) <= set(table):
        return table
    return table.assign(**{competition.id: fill(competition.id_template, table, path)})


def table_columns(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    """All columns of the train table, by the rows of `train` (index rows); none where there is no table."""
    if not competition.train.sources:
        return pd.DataFrame(index=train.index)
    table = table_of(competition, competition.train)[1].drop_duplicates(competition.id).set_index(competition.id)
    ids = train["id"].str.replace(r"#\d+$", "", regex=True) if competition.frames == "each" else train["id"]
    return table.reindex(ids).set_axis(train.index)


def rows_of_table(competition: Competition, split: Split, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """id, row_id, group, path and the metadata columns (null where the table has none) of a split's table."""
    row_template = _row_template(competition)
    rows = pd.DataFrame({"id": table[competition.id]})
    known = set(template_columns(row_template)) <= set(table)
    rows["row_id"] = fill(row_template, table, path) if known else rows["id"]
    rows["group"] = groups_of(competition, table, rows["id"])
    rows["path"] = _paths(competition, split, table, path)
    if (around := competition.image.around) is not None:
        if around not in table:
            raise UserError(f"{path}: no column '{around}', which `image.around` names{nearest(around, table)}")
        rows["frame"] = pd.to_numeric(table[around], errors="coerce").round().astype("Int64")
    columns = dict.fromkeys(competition.metadata.columns.values())
    return pd.concat([rows, table.reindex(columns=list(columns))], axis=1)


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
    if not split.templates:
        packed = competition.derived() / f"bands_{where.name.partition('.')[0]}.zip"
        return arrays.pack(table, where, competition.image, packed.resolve())
    places = list(zip(*(fill(template, table, where) for template in split.templates), strict=True))
    if split.series is not None:
        at = raw.as_posix() + "/" if split.root is not None else ""
        for row, filled in zip(table.index, places, strict=True):
            if any(
                series.SEVERAL in place or place.count("*") > template.count("*")
                for place, template in zip(filled, split.templates, strict=True)
            ):
                raise UserError(f"{where}: row {row + 2}: '{filled[0]}' holds | or *, which no path of a series can")
        return [series.several([at + place for place in row]) for row in places]
    plain = len(split.templates) == 1 and "*" not in split.templates[0]
    if plain and all(source.is_there(raw / row[0]) for row in places[:: max(1, len(places) // TRIED)]):
        paths = [row[0] for row in places]
    else:
        paths = [next((p for place in row if (p := _place(raw, place))), row[0]) for row in places]
    return paths if split.root is None else [(raw / path).as_posix() for path in paths]


TRIED = 50  # rows whose image is looked for, before the other spellings of its suffix are


def _place(raw: Path, path: str) -> str | None:
    """The path as it lies there: its suffix in small or large letters, the middle of the files that a * stands for."""
    if "*" in path:
        return _middle(raw, path)
    stem, dot, suffix = path.rpartition(".")
    spellings = dict.fromkeys([path, f"{stem}{dot}{suffix.lower()}", f"{stem}{dot}{suffix.upper()}"])
    return next((spelling for spelling in spellings if source.is_there(raw / spelling)), None)


def _middle(raw: Path, path: str) -> str | None:
    """Of the files that fit, by the numbers in their names, the middle one."""
    fit = sorted((file.relative_to(raw).as_posix() for file in series.files(raw / path)), key=natural)
    return fit[len(fit) // 2] if fit else None


def groups_of(competition: Competition, table: pd.DataFrame, ids: pd.Series) -> pd.Series:
    """Each row's group, by its id or the table; a row without one is a group of its own."""
    if competition.group_pattern is not None:
        named = ids.str.extract(re.compile(competition.group_pattern))[0]
    elif competition.group_column in table:
        named = table[competition.group_column]
    else:
        return ids
    return named.astype(str).where(named.notna() & (named.astype(str) != ""), ids)


def _from_folder(competition: Competition, name: str, split: Split) -> pd.DataFrame:
    raw, folder = competition.raw_of(split), folder_of(competition, split)
    for each in split.folders if isinstance(split.folders, list) else ["."]:
        if not source.is_folder(folder / each):
            raise UserError(f"{folder / each}: no such folder, named by `{name}` in {competition.file}")
    listed = listing(competition, split)
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
        rows["target"] = target_of(competition, labels, f"{folder}: its labels")
    return rows


def _folder_labels(competition: Competition, split: Split, ids: pd.Series, folder: Path) -> pd.Series:
    if isinstance(split.folders, list):
        named = {f"{each}/": PurePosixPath(each).name for each in sorted(split.folders, key=len)}
        return ids.map(lambda path: [name for start, name in named.items() if path.startswith(start)][-1])
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
