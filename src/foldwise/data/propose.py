"""A raw folder -> a competition file, each line with its reason: what a user would otherwise write by hand.

Tables are told by their names and columns (train, test, sample submission), the target by what train has and test has
not, images by looking up the ids of some rows among the files. What can't be known is marked with `# ?`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import yaml

from foldwise import UserError, dicom
from foldwise.core import archives, paths
from foldwise.core.files import write_text
from foldwise.data import arrays, image
from foldwise.data.columns import by_number, read_dates
from foldwise.data.orientation import LOOKED_AT, Judgement, judge
from foldwise.data.tables import read_table

TRIED = 200  # rows whose images are looked for
READ = 40  # DICOM headers that are read
MOST_CLASSES = 0.5  # distinct values a row, from which a text column is no class but a name
TABLES = {".csv", ".tsv", ".parquet", ".json", ".jsonl"}
GROUPS = ("patient", "lesion", "subject", "case", "study", "exam", "scene", "location", "site", "group", "series")
TAGS = ("PatientAge", "PatientSex", "BodyPartExamined", "ViewPosition", "Laterality", "Modality", "Manufacturer")
METRICS = {
    "binary": ("roc_auc", "log_loss, average_precision, accuracy, f1"),
    "multiclass": ("log_loss", "accuracy, f1_macro, quadratic_weighted_kappa, map@5"),
    "multilabel": ("roc_auc", "log_loss, f1_micro, f1_macro, average_precision"),
    "regression": ("rmse", "mae"),
    "soft": ("kl_divergence", "log_loss"),
}


@dataclass
class Proposal:
    """Lines of a competition file in order: (key, value as plain data, reason, whether it is a guess)."""

    lines: list[tuple[str, object, str, bool]] = field(default_factory=list)

    def add(self, key: str, value: object, reason: str, guess: bool = False) -> None:
        """A line, unless there is nothing to say."""
        if value not in (None, [], {}):
            self.lines.append((key, value, reason, guess))

    def value(self, key: str) -> object:
        """What a line says; None where there is no such line."""
        return next((value for name, value, *_ in self.lines if name == key), None)

    @property
    def doubts(self) -> list[str]:
        """The guesses, for a person to look at."""
        return [f"{key}: {reason}" for key, _, reason, guess in self.lines if guess]

    def text(self) -> str:
        """The YAML, each line with its reason behind it."""
        shown = []
        for key, value, reason, guess in self.lines:
            dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
            line = f"{key}: {dumped.removesuffix('...' + chr(10)).strip()}"
            mark = "? " if guess else ""
            shown.append(f"{line}  # {mark}{reason}")
        return "\n".join(shown) + "\n"


@dataclass(frozen=True)
class Raw:
    """What lies in a raw folder, packed or not: its tables by name, and its images' paths below it."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    images: list[str]

    @classmethod
    def look(cls, folder: Path) -> Raw:
        """Read every table and list every image; UserError where there are no images."""
        if not folder.is_dir():
            raise UserError(f"--from {folder}: no such folder")
        listed, packed = image.listing(folder).images, list[Path]()
        for file in sorted(folder.glob("*")):
            stands_for = archives.alias(file)
            if stands_for is not None and not stands_for.exists():
                packed += archives.members(stands_for) or []
                if stands_for.suffix in TABLES:
                    packed = [path for path in packed if stands_for not in path.parents] + [stands_for]
        images = [path for path in [*listed, *packed] if path.suffix.lower() in image.SUFFIXES]
        images += sorted(folder.rglob("*/*.parquet"))
        if not images:
            raise UserError(f"--from {folder}: holds no images (JPEG, PNG, DICOM, ...)")
        pictures = set(images)
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in TABLES and path not in pictures]
        below = {path.relative_to(folder).as_posix(): path for path in [*files, *packed] if path.suffix in TABLES}
        held = {name: _head(path) for name, path in below.items() if name.count("/") < 3}
        images_below = [path.relative_to(folder).as_posix() for path in images]
        return cls(folder, {name: table for name, table in held.items() if table is not None}, images_below)

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """The folders of each name that hold images."""
        named: dict[str, list[str]] = {}
        for path in dict.fromkeys(path.rpartition("/")[0] for path in self.images):
            named.setdefault(path.rpartition("/")[2], []).append(path)
        return named

    @cached_property
    def ending(self) -> dict[str, str]:
        """The suffix of a folder's first image."""
        return {path.rpartition("/")[0]: PurePosixPath(path).suffix for path in reversed(self.images)}

    @cached_property
    def places(self) -> dict[str, list[str]]:
        """Where the files of each name lie, with its ending and without."""
        places: dict[str, list[str]] = {}
        for path in self.images:
            file = path.rpartition("/")[2]
            for key in {file, file.rpartition(".")[0] or file}:
                places.setdefault(key, []).append(path)
        return places

    def table(self, *words: str, without: Sequence[str] = ()) -> str | None:
        """The name of the table that holds one of the words and none of the others, the shortest first."""
        fits = [
            name
            for name in self.tables
            if any(word in name.lower() for word in words) and not any(word in name.lower() for word in without)
        ]
        return min(fits, key=len, default=None)


def _head(path: Path) -> pd.DataFrame | None:
    """A table whose columns of digits stay text where zeros lead, for they name files, and are whole where they are
    written so; None of what is no table."""
    try:
        table = read_table(path, separator="|")
    except UserError:
        if path.suffix.lower() == ".json":
            return None
        raise
    table = table[[column for column in table if not str(column).startswith("Unnamed: ")]]
    digits = [
        column for column in table if pd.api.types.is_numeric_dtype(table[column]) and table[column].notna().all()
    ]
    text = read_table(path, digits)[digits].astype(str)
    whole = [c for c in digits if text[c].str.fullmatch(r"-?\d{1,18}").all()]
    return table.assign(**{c: text[c] if text[c].str.match(r"0\d").any() else text[c].astype("int64") for c in whole})


def write_proposal(name: str, folder: str | None, out: str | None) -> tuple[Path, Proposal]:
    """src/competitions/<name>.yaml, or `out`, for a raw folder (default: input/<name>); an existing file stays."""
    path = Path(out) if out else paths.COMPETITIONS / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: is there already; move it away, or name another file with --out")
    usual = [base / "input" / name for base in (paths.output_root(), paths.REPOSITORY)]
    source = Path(folder) if folder else next((place for place in usual if place.is_dir()), usual[0])
    proposal = propose(name, source, root=source not in usual)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, proposal.text())
    return path, proposal


def propose(name: str, folder: Path, root: bool = True) -> Proposal:
    """A competition file for a raw folder; root: whether it must say where that is."""
    raw, made = Raw.look(folder), Proposal()
    made.add("name", name, "names its folders under oof/ and so on")
    made.add("root", str(folder.resolve()) if root else None, "the raw folder")
    sample = raw.table("sample", "submission")
    train = raw.table("train", "label", without=["sample", "test", "annotation", "box"])
    if train is None:
        train = next((n for n, t in raw.tables.items() if n != sample and "test" not in n.lower() and len(t)), None)
    if train is None:
        _folders(raw, made, sample)
    else:
        _tables(raw, made, train, raw.table("test", without=["sample", "train"]), sample)
    if sample is not None:
        made.add("sample_submission", sample, f"{len(raw.tables[sample]):,} rows")
    _headers(raw, made)
    _orientation(raw, made)
    return made


# --- a folder per class -----------------------------------------------------------------------------------------


def _folders(raw: Raw, made: Proposal, sample: str | None) -> None:
    tops = Counter(path.split("/")[0] for path in raw.images if "/" in path)
    test = next((top for top in tops if "test" in top.lower() and "train" not in top.lower()), None)
    train = next((top for top in tops if "train" in top.lower()), None)
    siblings = sorted(top for top in tops if top != test) if train is None and test is not None else []
    train = train or ("." if len(tops) > 1 else next(iter(tops), "."))
    inside = [path if train == "." else path.removeprefix(f"{train}/") for path in _below(raw, train)]
    inside = [path for path in inside if not siblings or path.split("/")[0] in siblings]
    classes = Counter(path.split("/")[0] for path in inside if "/" in path)
    if len(classes) < 2:
        raise UserError(f"--from {raw.folder}: no table of labels, and no folder a class; write the file by hand")
    named = f"{len(classes)} folders, a class each: {', '.join(list(classes)[:4])}, ..."
    repeated = [Counter(path.rpartition("/")[2] for path in inside)[path.rpartition("/")[2]] for path in inside]
    if siblings and min(repeated) == len(siblings) and sample is not None:
        made.add("task", "binary", f"{named}, the same pictures in each", guess=True)
        made.add("metric", "roc_auc", f"others: {METRICS['binary'][1]}", guess=True)
        made.add("positive", siblings[1:], f"all but {siblings[0]}, the first of the folders", guess=True)
        made.add("group_pattern", "/([^/]+)$", "pictures of one name are one scene")
        made.add("merge_copies", False, "the group says it")
    else:
        made.add("task", "multiclass", named)
        made.add("metric", "accuracy", "others: log_loss, f1_macro, quadratic_weighted_kappa, map@5", guess=True)
    made.add("train", {"folders": siblings or train}, f"{len(inside):,} images")
    if test is not None:
        nested = any("/" in path.removeprefix(f"{test}/") for path in _below(raw, test))
        made.add("test", {"folders" if nested else "images": test}, f"{tops[test]:,} images")


def _below(raw: Raw, folder: str) -> list[str]:
    return raw.images if folder == "." else [path for path in raw.images if path.startswith(f"{folder}/")]


# --- tables -----------------------------------------------------------------------------------------------------


def _tables(raw: Raw, made: Proposal, train: str, test: str | None, sample: str | None) -> None:
    table = raw.tables[train]
    held = raw.tables[test] if test is not None else None
    asked = _ids_first(raw, raw.tables[sample], held) if sample is not None else None
    named, images, hits = _images(raw, table, train)
    row_id = _id(table, held, asked, named)
    target, task, why, sure = _target(table, held, asked, row_id)
    made.add("task", task, why, guess=not sure)
    metric, others = _metric(task, asked, table, target)
    made.add("metric", metric, f"others: {others}", guess=True)
    made.add("id", row_id, f"{table[row_id].nunique():,} values in {len(table):,} rows")
    made.add("target", target, why, guess=not sure)
    if task == "binary" and not set(table[str(target)].dropna().astype(str)) <= {"0", "1", "0.0", "1.0"}:
        labels = sorted(table[str(target)].dropna().astype(str).unique())
        made.add("positive", labels[-1], f"of {', '.join(labels)}: the one that counts as 1", guess=True)
    groups = _groups(table, row_id, target)
    if groups:
        made.add("group", groups[0], f"{table[groups[0]].nunique():,} values in {len(table):,} rows")
    tried = min(TRIED, len(table))
    hit = f"found for {hits:,} of {tried:,} rows tried"
    if "*" in images:
        hit += "; the middle one of each folder: `series` with `image: {slices: 24}` sees all (docs/series.md)"
    made.add("train", {"table": train, "images": images}, hit, guess=hits < tried)
    if task == "multilabel" and isinstance(target, str) and (separator := _separator(table[target])) != " ":
        made.add("labels", {"separator": separator}, "stands between labels")
    _classes(raw, made, task, table, target)
    _test(raw, made, (test, held), (sample, asked), row_id, named)
    used = {row_id, named, *groups, *(target if isinstance(target, list) else [target])}
    made.add("metadata", _metadata(table, held, used), "columns that both tables have")
    if asked is not None:
        made.add("submission", *_submission(made, asked, held, row_id, target, list(raw.tables[str(sample)])))


def _ids_first(raw: Raw, asked: pd.DataFrame, held: pd.DataFrame | None) -> pd.DataFrame:
    """The sample with the column first that holds the test table's ids, or names images."""

    def share(column: str) -> float:
        known = set(held[column].astype(str)) if held is not None and column in held else set(raw.places)
        return float(asked[column].astype(str).isin(known).mean()) if asked[column].is_unique else 0.0

    key = max(asked, key=share)
    return asked[[key, *(column for column in asked if column != key)]]


def _id(table: pd.DataFrame, held: pd.DataFrame | None, asked: pd.DataFrame | None, named: str) -> str:
    """The column that tells rows apart: what the sample asks for, else what names the images, else another of ids."""
    if held is not None and asked is not None:
        wanted = set(asked.iloc[:, 0].astype(str))
        same = [str(column) for column in held if column in table and set(held[column].astype(str)) == wanted]
        if same and table[same[0]].is_unique:
            return same[0]
    if table[named].is_unique:
        return named
    ids = [str(column) for column in table if "id" in str(column).lower() and table[column].is_unique]
    return next(iter(ids), named)


def _images(raw: Raw, table: pd.DataFrame, name: str) -> tuple[str, str, int]:
    """(column, template, how often it was found): the column whose values name files, wherever those lie."""
    best: tuple[int, str, str] = (0, "", "")
    for find in (_files, _folders_named):
        for column in table if not best[0] else []:
            count, template = _template(raw, table, str(column), "test", find)
            better = count > best[0] or (count == best[0] > 0 and table[column].nunique() > table[best[1]].nunique())
            best = (count, str(column), template) if better else best
    if not best[0]:
        raise UserError(f"{raw.folder / name}: no column names an image file; write the competition file by hand")
    return best[1], best[2], best[0]


Find = Callable[["Raw", str, str, dict[str, str], str], Iterator[str]]


def _template(raw: Raw, table: pd.DataFrame, column: str, other: str, *finds: Find) -> tuple[int, str]:
    """(rows, template) of the place that holds images for most of the rows tried, outside the `other` split's."""
    rows = table.sample(min(TRIED, len(table)), random_state=0).to_dict("records")
    for find in finds or (_files, _folders_named):
        each = [set(find(raw, str(row[column]), column, _parts(column, row), other)) for row in rows]
        templates = Counter(template for some in each for template in some)
        if templates:
            template, count = templates.most_common(1)[0]
            return count, template
    return 0, ""


def _parts(column: str, row: dict[str, object]) -> dict[str, str]:
    """What folders may be called after: other columns' values, and the first letters of this one's."""
    value = str(row[column])
    others = {str(cell): f"{{{name}}}" for name, cell in row.items() if name != column and len(str(cell)) > 2}
    return others | {value[:k]: f"{{{column}[{0 if k == 1 else f':{k}'}]}}" for k in (1, 2, 3) if len(value) > k}


def _files(raw: Raw, value: str, column: str, parts: dict[str, str], other: str) -> Iterator[str]:
    """'train/{image_id}.jpg' for each file of that name."""
    shown = value.replace("{", "{{").replace("}", "}}")
    for path in raw.places.get(value.rpartition("/")[2], []):
        if _of_split(path, other) or not f"/{path}".endswith((f"/{value}", f"/{value}{PurePosixPath(path).suffix}")):
            continue
        escaped = path.replace("{", "{{").replace("}", "}}")
        lead, _, rest = escaped.rpartition(shown)
        folders = lead.split("/")[:-1] if "/" not in value else []
        above = "".join(f"{parts.get(part, part)}/" for part in folders) if folders else lead
        yield f"{above}{{{column}}}{rest}"


def _folders_named(raw: Raw, value: str, column: str, parts: dict[str, str], other: str) -> Iterator[str]:
    """'train/{study}/*.dcm' for each folder of that name."""
    for folder in raw.folders.get(value, []):
        if not _of_split(f"{folder}/", other):
            above = [parts.get(part, part) for part in folder.split("/")[:-1]]
            yield "/".join([*above, f"{{{column}}}", f"*{raw.ending[folder]}"])


def _of_split(path: str, other: str) -> bool:
    return re.search(rf"(^|/)[^/]*{other}[^/]*/", path.lower()) is not None and not re.match(
        rf"[^/]*{'train' if other == 'test' else 'test'}", path.lower()
    )


Target = tuple[str | list[str], str, str, bool]  # target, task, why, sure


def _target(table: pd.DataFrame, held: pd.DataFrame | None, asked: pd.DataFrame | None, row_id: str) -> Target:
    """What train has and test has not, as the sample asks for it."""
    columns = [str(c) for c in table if c != row_id and (held is None or c not in held)]
    wanted = [str(c) for c in asked.columns[1:]] if asked is not None else []
    named = [c for c in wanted if c in columns]
    if len(named) > 1:
        return _several(table, named, "that the sample asks for")
    if len(wanted) > 1:
        for column in columns:
            separator = _separator(table[column])
            if set(wanted) <= set(_tokens(table[column], separator or "\n")):
                task = "multilabel" if separator else "multiclass"
                return column, task, f"its {len(wanted)} values are the sample's columns", True
    if asked is not None and len(melted := _melted(table, asked, row_id, columns)) > 1:
        return _several(table, melted, "that the sample asks for in rows of their own")
    if not columns:
        raise UserError("the train table has no column beside the id that the test table lacks: nothing to predict")
    target = named[0] if named else min(columns, key=lambda c: (_is_name(table[c]), table[c].nunique() < 2))
    task, why = _task(table[target])
    return target, task, why, bool(named) or len(columns) == 1


def _several(table: pd.DataFrame, named: list[str], asked: str) -> Target:
    """Columns of 0 and 1 of which one holds, or several may; columns of votes."""
    cells = table[named].apply(pd.to_numeric, errors="coerce")
    if not cells.isin([0, 1]).all(axis=None) and (cells >= 0).all(axis=None):
        return named, "soft", f"{len(named)} columns of votes or shares {asked}", True
    if (cells.sum(axis=1) == 1).all():
        return named, "multiclass", f"{len(named)} columns {asked}, of which one is 1 in every row", True
    return named, "multilabel", f"{len(named)} columns {asked}", True


def _melted(table: pd.DataFrame, asked: pd.DataFrame, row_id: str, columns: list[str]) -> list[str]:
    """Columns that ids of the sample end in: 'study_C1'."""
    ids = asked.iloc[:, 0].astype(str)
    ends = [column for column in columns if ids.str.endswith(f"_{column}").any()]
    covered = sum(int(ids.str.endswith(f"_{column}").sum()) for column in ends)
    return ends if covered == len(ids) else []


def _is_name(values: pd.Series) -> bool:
    return not pd.api.types.is_numeric_dtype(values) and values.nunique() > MOST_CLASSES * len(values)


def _task(values: pd.Series) -> tuple[str, str]:
    known = values.dropna()
    distinct = known.nunique()
    if distinct == 2:
        return "binary", f"two values: {', '.join(sorted(map(str, known.unique())))}"
    if not pd.api.types.is_numeric_dtype(known) or ((known % 1 == 0).all() and distinct <= max(20, 0.2 * len(known))):
        if separator := _separator(known):
            return "multilabel", f"cells hold several of {_tokens(known, separator).nunique()} labels"
        return "multiclass", f"{distinct} classes"
    return "regression", f"{distinct:,} different numbers"


def _separator(cells: pd.Series) -> str:
    """What stands between the labels of a cell; '' where a cell holds one."""
    text = cells.dropna().astype(str)
    fits = (one for one in ("|", ";", ", ", ",", " ") if text.str.contains(one, regex=False).mean() > 0.05)
    return next((one for one in fits if _tokens(text, one).nunique() < text.nunique()), "")


def _tokens(cells: pd.Series, separator: str = " ") -> pd.Series:
    return cells.astype(str).str.split(separator, regex=False).explode()


def _classes(raw: Raw, made: Proposal, task: str, table: pd.DataFrame, target: str | list[str]) -> None:
    """`classes` from a JSON that maps each label to a name."""
    labels = set(table[target].dropna().astype(str)) if isinstance(target, str) and task == "multiclass" else set()
    for file in sorted(raw.folder.glob("*.json")) if labels else []:
        try:
            names = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(names, dict) and set(names) == labels and all(isinstance(name, str) for name in names.values()):
            made.add("classes", {label: names[label] for label in by_number(labels)}, f"{file.name}: names to show")


def _metric(task: str, asked: pd.DataFrame | None, table: pd.DataFrame, target: str | list[str]) -> tuple[str, str]:
    metric, others = METRICS[task]
    if task == "multilabel" and isinstance(target, str):
        return "f1_micro", "f1_samples, f1_macro"
    if asked is None or not len(asked) or task != "multiclass":
        return metric, others
    if isinstance(target, list):
        return "roc_auc", others
    shown = asked[asked.columns[1]]
    several = shown.astype(str).str.split().str.len().max()
    if several > 1 and set(_tokens(shown)) & set(table[str(target)].astype(str)):
        return f"map@{several}", f"accuracy, {others}"
    if asked.shape[1] > 2 or (pd.api.types.is_float_dtype(shown) and (shown % 1 != 0).any()):  # probabilities
        return metric, others
    grades = pd.api.types.is_integer_dtype(table[str(target)]) and table[str(target)].nunique() <= 10
    return ("quadratic_weighted_kappa" if grades else "accuracy"), f"log_loss, {others}"


def _groups(table: pd.DataFrame, row_id: str, target: str | list[str]) -> list[str]:
    """Columns whose values repeat and whose names say that rows belong together, the likeliest first."""
    taken = {row_id, *(target if isinstance(target, list) else [target])}
    # a site of seven values is a category, no group
    columns = [c for c in table if c not in taken and 20 < table[c].nunique() < table[c].notna().sum()]
    ranked = [(k, c) for c in columns for k, word in enumerate(GROUPS) if word in str(c).lower()]
    return list(dict.fromkeys(str(column) for _, column in sorted(ranked, key=lambda one: one[0])))


Named = tuple[str | None, pd.DataFrame | None]  # a table under its name


def _test(raw: Raw, made: Proposal, test: Named, sample: Named, row_id: str, named: str) -> None:
    """`test` by its table, else by the sample submission, whose ids the host wants; else a folder of images."""
    for name, table in (test, sample):
        if table is None:
            continue
        for column in dict.fromkeys([named, row_id, *table.columns[:1]]):
            if column not in table:
                continue
            count, template = _template(raw, table, column, "train")
            if count > MOST_CLASSES * min(TRIED, len(table)):
                key = str(sample[1].columns[0]) if sample[1] is not None else column
                other = {} if row_id in table else {"id": key if key in table else column}
                made.add("test", {"table": name, "images": template, **other}, f"{len(table):,} rows")
                return
    folders = dict.fromkeys(path.split("/")[0] for path in raw.images if "/" in path and "test" in path.lower())
    if folders:
        made.add("test", {"images": next(iter(folders))}, "a folder of images, without a table")


def _metadata(table: pd.DataFrame, held: pd.DataFrame | None, used: set[str]) -> dict[str, list[str]]:
    both = [str(c) for c in table if c not in used and (held is not None and c in held) and table[c].nunique() > 1]
    numeric = [c for c in both if pd.api.types.is_numeric_dtype(table[c]) and table[c].nunique() > 2]
    dates = [c for c in both if c not in numeric and read_dates(table[c]).notna().mean() > 0.5]
    other = [c for c in both if c not in [*numeric, *dates] and table[c].nunique() <= max(50, 0.05 * len(table))]
    return {key: names for key, names in (("numeric", numeric), ("categorical", other), ("dates", dates)) if names}


def _submission(
    made: Proposal,
    asked: pd.DataFrame,
    held: pd.DataFrame | None,
    row_id: str,
    target: str | list[str],
    columns: list[str],
) -> tuple[dict[str, str], str, bool]:
    """`submission`, its reason, and whether it is a guess: where the sample's rows are not the images', or its ids do
    not stand first."""
    key = str(asked.columns[0])
    first = {"id": key} if key != columns[0] else {}
    if made.value("task") == "multilabel" and isinstance(target, list):
        melted = asked[key].astype(str).str.endswith(tuple(f"_{name}" for name in target)).all()
        if melted:
            return {**first, "row_id": f"{{{row_id}}}_{{target}}"}, "each target has a row of its own", False
    if held is None or row_id not in held or set(asked[key].astype(str)) == set(held[row_id].astype(str)):
        return first, "the sample's ids do not stand first", False
    if key in held:
        return {**first, "row_id": key, "aggregate": "mean"}, "several images make a row of the sample", False
    return {**first, "row_id": f"{{{row_id}}}"}, f"the sample's '{key}' is no column of the test table", True


# --- headers ----------------------------------------------------------------------------------------------------


def _orientation(raw: Raw, made: Proposal) -> None:
    files, images = [], []
    for path in raw.images[:: max(1, len(raw.images) // LOOKED_AT)][:LOOKED_AT]:
        try:
            images.append(image.read_image(raw.folder / path, 96))
            files.append(raw.folder / path)
        except UserError:
            continue
    judged = judge(files, np.stack(images)) if images else Judgement(None, "no image can be read")
    _arrays(raw, made)
    made.add("orientation", judged.orientation, f"{judged.reason}; free: any turn is as good", guess=True)


def _arrays(raw: Raw, made: Proposal) -> None:
    """`image` of arrays of numbers: how many channels, and what becomes black and white."""
    path = next((raw.folder / path for path in raw.images if path.endswith((".npy", ".npz"))), None)
    if path is not None and (channels := arrays.channels_of(path)):
        scaling = {"percentiles": [1, 99]}
        made.add("image", {"channels": channels, "scaling": scaling}, "arrays of numbers, no pictures", guess=True)


def _headers(raw: Raw, made: Proposal) -> None:
    files = [path for path in raw.images if path.lower().endswith((".dcm", ".dicom"))][
        :: max(1, len(raw.images) // READ)
    ]
    seen: dict[str, set[str]] = {}
    for path in files[:READ]:
        try:
            header = dicom.read_header(raw.folder / path, list(TAGS))
        except dicom.DicomError:
            continue
        for tag, value in header.items():
            seen.setdefault(tag, set()).add(str(value))
    made.add("dicom_tags", [tag for tag in TAGS if len(seen.get(tag, ())) > 1], f"vary among {len(files[:READ])} files")
