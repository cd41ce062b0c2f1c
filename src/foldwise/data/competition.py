"""What the host defines: tables, columns, classes, metric, submission shape; where it lies, here or on Kaggle."""

from __future__ import annotations

import ast
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from foldwise import UserError, metrics
from foldwise.core import paths
from foldwise.core.cli import note
from foldwise.core.schema import Strict, find_yaml, nearest, read_yaml, validate
from foldwise.core.source import stamp
from foldwise.data import arrays, tables
from foldwise.data.columns import by_number
from foldwise.data.image import ImageOptions
from foldwise.data.template import template_columns

Task = Literal["binary", "multiclass", "multilabel", "soft", "regression"]


_PLAIN = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.BinOp),
    *(ast.BitAnd, ast.BitOr, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod),
    *(ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple),
)


@cache
def _say_elsewhere(file: Path, root: str, place: Path) -> None:
    note(f"{file}: root {root} is not there; the raw files are taken from {place}")


def condition_columns(condition: str) -> list[str]:
    """The columns that a pandas query compares; ValueError where it is more than comparisons (calls, attributes, @)."""
    quoted = re.findall(r"`([^`]+)`", condition)
    plain = re.sub(r"`[^`]+`", lambda _: "_quoted", condition)
    try:
        nodes = list(ast.walk(ast.parse(plain.strip(), mode="eval")))
    except SyntaxError:
        raise ValueError(f"`where: {condition}` is no condition such as view == 'PA' and age > 18") from None
    odd = {type(node).__name__ for node in nodes if not isinstance(node, _PLAIN)}
    if odd:
        raise ValueError(f"`where: {condition}`: only comparisons of columns, and, or, not, in; no {min(odd).lower()}")
    named = [*quoted, *(node.id for node in nodes if isinstance(node, ast.Name) and node.id != "_quoted")]
    if not named:
        raise ValueError(f"`where: {condition}` names no column")
    return named


def _with_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"no regex: {error}") from None
    if not groups:
        raise ValueError(r"the regex needs a group in parentheses, such as '^(.+)_\d+'")
    return pattern


Pattern = Annotated[str, AfterValidator(_with_group)]  # a regex whose group 1 is what is looked for


class Table(Strict):
    """One of a split's tables."""

    table: str = Field(description="its file: CSV, TSV, parquet, JSON (records, lines, COCO); also in an archive")
    records: str | None = Field(None, description="of a JSON object with several lists: the one to read, images")
    on: str | list[str] | None = Field(
        None, description="the column to join on: its own, or [the first table's, its own]; default: `id`"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_file(cls, data: Any) -> Any:
        return {"table": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _two_columns(self) -> Table:
        if isinstance(self.on, list) and len(self.on) != 2:
            raise ValueError("`on` is a column, or two: [the first table's, its own]")
        return self

    def keys(self, default: str) -> tuple[str, str]:
        """The first table's and its own column to join on."""
        on = self.on or default
        return (on, on) if isinstance(on, str) else (on[0], on[1])


class Split(Strict):
    """Where the rows and the images of one split lie, below the competition's root."""

    table: str | None = Field(None, description="CSV, TSV, parquet or JSON with a row per image")
    tables: list[Table] = Field(
        [],
        description="several, joined one to one: [labels.csv, {table: more.csv, on: image_id}]; the first has the rows",
    )
    id: str | None = Field(None, description="this split's name of the `id` column, where it has another")
    images: str | list[str] | None = Field(
        None,
        description="'train/{image_id}.jpg', columns in braces, also {id[0]}, {id//100:03d}, {id.stem}; in archives "
        "(train.zip, train.tar.gz stand for train; 'train.hdf5/{isic_id}'); 'train/{id}/*.dcm': the middle one of "
        "several; a list: each row's image is the first of them that is there; without a table, a folder of images",
    )
    series: str | dict[str, str] | None = Field(
        None,
        description="instead of `images`, the slices of a row, with `image.slices`: 'train/{study}/{series}/*.dcm', a "
        "folder, or a file that holds them (multi-frame DICOM, NIfTI, .npy); several by name: {FLAIR: ..., T1w: ...}",
    )
    folders: str | list[str] | None = Field(
        None, description="a folder that holds a folder per class, instead of a table; a list: the classes' folders"
    )
    where: str | None = Field(
        None, description="only the table's rows of which this is true: view == 'PA' and age > 18 (a pandas query)"
    )
    root: str | None = Field(
        None, description="in `extra`: its own raw folder, relative to the repository, or found by that name as usual"
    )
    target_pattern: Pattern | None = Field(
        None, description=r"where a folder's file names hold the label: a regex whose group 1 is it, '^(cat|dog)\.'"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Split:
        given = [name for name in ("images", "series", "folders") if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.sources) or (self.series and not self.sources):
            raise ValueError("give either `images` or `folders`, or a `table` and `series`")
        if self.sources and not all(template_columns(template) for template in self.templates):
            raise ValueError(
                "`images` or `series` beside a `table` need a column in braces, such as 'train/{image_id}.jpg'"
            )
        if not self.sources and isinstance(self.images, list):
            raise ValueError("a list of `images` needs a `table` with a row per image")
        if self.folders and self.sources:
            raise ValueError("`folders` takes no `table`: each folder's name is the class")
        if self.where is not None and not self.sources:
            raise ValueError("`where` asks the columns of a `table`")
        if self.where is not None:
            condition_columns(self.where)
        return self

    @property
    def sources(self) -> list[Table]:
        """The split's tables, the one with the rows first; [] where it has none."""
        return ([Table(table=self.table)] if self.table else []) + self.tables

    @property
    def templates(self) -> list[str]:
        """Where a row's image may lie, in the order in which it is looked for, or its series; [] without either."""
        if isinstance(self.series, dict):
            return list(self.series.values())
        given = self.images or self.series
        return given if isinstance(given, list) else [given] if given else []


class Labels(Strict):
    """What cells of the target columns mean that hold no label, or several."""

    separator: str = Field(" ", min_length=1, description="multilabel in one column: what stands between labels")
    blank: Literal["0", "1", "ignore"] | None = Field(
        None, description="empty cells: 0, 1, or ignore (no loss, no score; a row without any label is left out)"
    )
    uncertain: Literal["0", "0.5", "1", "ignore"] | None = Field(
        None, description="cells of -1: 0, 1, ignore, or 0.5: half a label to the loss of a network, ignored elsewhere"
    )


class Metadata(Strict):
    """Columns of the tables that a model may use beside the pixels."""

    numeric: list[str] = Field([], description="columns read as numbers")
    categorical: list[str] = Field([], description="columns read as categories")
    dates: list[str] = Field(
        [],
        description="columns of dates; each becomes <column>_year, _month and _days (since the first training row's)",
    )

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a model, and the table's column that each is read from."""
        dated = {f"{date}_{part}": date for date in self.dates for part in ("year", "month", "days")}
        return {name: name for name in [*self.numeric, *self.categorical]} | dated


class Folds(Strict):
    """How the training rows are split, once."""

    n: int = Field(5, ge=2, description="number of folds")
    seed: int = Field(0, description="seed of the split")
    blocks: str | None = Field(
        None,
        description="a column of the train table, such as a date: folds are stretches of it, not balanced by class",
    )
    file: str | None = Field(
        None, description="a CSV from elsewhere, used and checked instead: a column of ids, under any name, and fold"
    )


class SubmissionShape(Strict):
    """How predictions become rows of the submission file."""

    row_id: str | None = Field(
        None,
        description="a table column, or a template such as '{patient_id}_{laterality}', when several images make a "
        "row; '{study}_{target}': a row for each target",
    )
    id: str | None = Field(None, description="the sample's column of row ids; default: the one that holds them")
    min: float | None = Field(None, description="smallest value the host takes; predictions below it become it")
    max: float | None = Field(None, description="largest value the host takes")
    fill: dict[str, Annotated[float | str, Field(union_mode="left_to_right")]] = Field(
        {}, description="the sample's columns that nothing predicts, and a value for all"
    )
    top: int | None = Field(
        None, ge=1, description="multiclass: so many names in one cell, likeliest first; default: the k of map@k"
    )
    aggregate: Literal["mean", "max", "median"] = Field("mean", description="over the images of one row")
    public: float = Field(
        1.0, gt=0, le=1, description="share of the test rows that the public leaderboard is scored on"
    )
    prediction: Literal["auto", "value", "label"] = Field(
        "auto",
        description="what the host wants: probabilities (value) or classes (label); auto asks the metric and columns",
    )

    @model_validator(mode="after")
    def _readable(self) -> SubmissionShape:
        template_columns(self.row_id or "")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError("`min` is below `max`")
        return self

    @property
    def melted(self) -> bool:
        """Whether each target has a row of its own."""
        return "{target}" in (self.row_id or "")


class HostMetric(Strict):
    """The metric: a name from foldwise.metrics, or a function of one's own and what it can't say itself."""

    function: str = Field(description="a name from foldwise.metrics, or module:function")
    greater_is_better: bool | None = Field(None, description="module:function: its direction")
    order_only: bool | None = Field(None, description="module:function: whether it sees the order of rows and no more")
    weights: dict[str, float | tuple[float, float]] | None = Field(
        None,
        description="weighted_log_loss: {class: 2, ...}, or of columns of 0 and 1 {column: [1, 2], ...}, [of 0, of 1]",
    )
    normalise: Literal["row", "all"] | None = Field(
        None, description="weighted_log_loss: the weights of several columns sum to one in each row, or in all"
    )
    bands: list[tuple[float, float]] | None = Field(
        None, description="weighted_auc: [upper end of true positive rates, weight] from 0 to 1: [[0.4, 2], [1, 1]]"
    )
    sigma: float | None = Field(None, gt=0, description="laplace_log_likelihood: the least deviation that counts (70)")
    delta: float | None = Field(None, gt=0, description="laplace_log_likelihood: the largest error that counts (1000)")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"function": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _declares_its_own(self) -> HostMetric:
        if ":" not in self.function and (self.greater_is_better is not None or self.order_only is not None):
            raise ValueError(f"'{self.function}' is known: its direction needs no declaring")
        if ":" not in self.function:
            try:
                self.metric({} if self.weights is None else {"weights": [1.0]})
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    def metric(self, weights: dict[str, Any]) -> metrics.Metric:
        """A known metric with its options, and what stands in `weights` in the columns' order."""
        options = {name: getattr(self, name) for name in ("normalise", "bands", "sigma", "delta")}
        return metrics.resolve(self.function, **{k: v for k, v in options.items() if v is not None}, **weights)


class AuxiliaryTarget(Strict):
    """A column that a network learns beside the target."""

    task: Literal["binary", "multiclass", "regression"] = Field(description="what kind of column it is")
    weight: float = Field(gt=0, description="of its loss, where the target's counts 1")


class SliceLabels(Strict):
    """Labels of single slices, which networks of `series` learn beside the target of the row."""

    table: str = Field(description="CSV, parquet... with a row per slice")
    slice: str = Field(description="its column that names a slice")
    by: Literal["file", "instance"] = Field(
        "file",
        description="what it names: a file, with or without suffix, or InstanceNumber (of a multi-frame file the "
        "frame, from 1)",
    )
    series: str | None = Field(None, description="its column that names the series, where there are several")
    id: str | None = Field(None, description="its column that names the row, where that is not the competition's `id`")
    target: str | list[str] = Field(description="its columns of 0 and 1")
    weight: float = Field(0.5, gt=0, description="of their loss, where the target's counts 1")

    @property
    def targets(self) -> list[str]:
        """Its columns of labels."""
        return [self.target] if isinstance(self.target, str) else self.target


NO_GROUP = "none"


class Competition(Strict):
    """A competition.yaml. Paths are relative to the folder that holds the competition's raw files."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names its folders under oof/ and so on")
    slug: str | None = Field(None, description="the host's name for the raw folder, where it is not `name`")
    root: str | None = Field(None, description="raw folder, relative to the repository; default: found by name")
    task: Task = Field(
        description="multilabel: several columns of 0 and 1; multiclass: one column of names; soft: columns of votes, "
        "or shares, for classes that exclude each other"
    )
    host_metric: HostMetric = Field(
        alias="metric",
        description="a name (also map@K), module:function, or {function: module:function, greater_is_better: false}",
        examples=list(metrics.METRICS),
    )
    id: str = Field("id", description="the column that names an image, or a template of columns: '{patient}_{week}'")
    target: str | list[str] = Field(
        "target",
        description="a column; a list of columns (label_*, C1..C7) for multilabel, and for multiclass columns of 0 and "
        "1 of which one holds; multilabel with one column: its cells hold names, `labels.separator` between them",
    )
    auxiliary: dict[str, AuxiliaryTarget] = Field(
        {},
        description="columns of the train table that networks learn beside the target, each with a loss of its own: "
        "{age: {task: regression, weight: 0.1}, site: {task: multiclass, weight: 0.2}}; gaps are ignored",
    )
    slice_labels: SliceLabels | None = Field(
        None, description="of `series`, labels of single slices, learnt beside: {table: slices.csv, slice: file, ...}"
    )
    derive: dict[str, tuple[str, Pattern]] = Field(
        {},
        description="columns cut from others where a table has no such: {week: [patient_week, '_(.+)$']}, group 1 of a "
        "regex",
    )
    positive: str | list[str] | None = Field(
        None, description="binary with two names as labels: the one that counts as 1; a list: those of many that do"
    )
    classes: list[str] | dict[str, str] | None = Field(
        None,
        description="multiclass: their order, lowest first, for metrics and losses of grades (default: sorted); "
        "{0: angry, 1: happy}: the same, and the names that reports show",
    )
    where: str | None = Field(None, description="train.where for all labelled rows, `train` and `extra`")
    labels: Labels = Labels()
    unknown: str | None = Field(
        None, description="multiclass: the class of what belongs to none of the others, new_whale (04 --head nearest)"
    )
    group: str | None = Field(
        None,
        description="rows that share it share a fold (patient, lesion, scene): a column, or a DICOM keyword; none: "
        "each row is its own, whatever step 1 finds",
    )
    group_pattern: Pattern | None = Field(
        None, description="where the id tells the group: a regex, its group 1, '^(.+)_'"
    )
    train: Split
    test: Split | None = Field(None, description="the rows to predict; without it, training rows alone are judged")
    extra: list[Split] = Field(
        [], description="labelled images from elsewhere: every fold may train on them, none is validated on them"
    )
    orientation: Literal["free", "upright"] | None = Field(
        None,
        description="free: no up and down (skin, tissue, land from above), any turn is as good; upright: nothing turns "
        "them, and they are mirrored only",
    )
    mirror: dict[str, str] = Field(
        {},
        description="multilabel: targets that change places in a mirror image, {left_hip: right_hip}; training then "
        "mirrors nothing, and test-time mirrors (predict.tta=flip) answer with them exchanged",
    )
    turned_copies: bool = Field(True, description="mirrored and turned images count as copies of each other, too")
    merge_copies: bool = Field(True, description="images taken for copies share a fold, whatever their groups")
    sample_submission: str | None = Field(
        None, description="the host's example: its rows, columns and kinds of values; without it one is made"
    )
    submission: SubmissionShape = SubmissionShape()
    frames: Literal["one", "each"] = Field(
        "one", description="multi-frame DICOM: the frame that image.frame names, or each frame a row, aggregated again"
    )
    unreadable: float = Field(
        0.5, ge=0, le=1, description="share of a split's images that may be unreadable before steps 1 and 5 refuse it"
    )
    metadata: Metadata = Metadata()
    dicom_tags: list[str] = Field([], description="header fields, by keyword, that join the metadata")
    folds: Folds = Folds()
    image: ImageOptions = ImageOptions()

    _file: Path = PrivateAttr(Path())
    _id_template: str | None = PrivateAttr(None)
    _labels: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _targets_fit_task(self) -> Competition:
        if isinstance(self.target, list) and self.task not in {"multilabel", "multiclass", "soft"}:
            raise ValueError("`target` is one column, unless the task is multilabel, multiclass or soft")
        if self.task == "soft" and (isinstance(self.target, str) or self.train.folders or self.labels.uncertain):
            raise ValueError("task: soft needs a table, and `target` as a list of its columns of votes")
        if isinstance(self.target, list) and len(self.target) == 1 and tables.expand(self.target, []) == self.target:
            raise ValueError("`target` as a list names two columns or more")
        for name in {one for one in self.target if isinstance(self.target, list) and self.target.count(one) > 1}:
            raise ValueError(f"`target` names '{name}' twice")
        for name in set(self.auxiliary) & {*self.targets}:
            raise ValueError(f"`auxiliary: {name}` is the target itself")
        if self.submission.melted and self.task != "multilabel":
            raise ValueError("`submission: row_id` with {target} belongs to task: multilabel")
        return self

    @model_validator(mode="after")
    def _columns_have_names(self) -> Competition:
        if template_columns(self.id):
            self._id_template, self.id = self.id, "id"
        return self

    @model_validator(mode="after")
    def _metadata_is_new(self) -> Competition:
        reserved = {"split", "id", "row_id", "group", "host_group", "path", "target", "width", "height", "bytes"}
        reserved |= {"format", "frame", "frames", "slices", "error", "modified", "content", *self.truth}
        listed = [*self.metadata.numeric, *self.metadata.categorical, *self.metadata.dates, *self.dicom_tags]
        for column in listed:
            if listed.count(column) > 1:
                raise ValueError(f"metadata column '{column}' is named twice")
            if column in reserved:
                raise ValueError(f"metadata column '{column}' has a name that the index uses itself; leave it out")
        return self

    @model_validator(mode="after")
    def _keys_fit(self) -> Competition:
        if self.unknown is not None and self.task != "multiclass":
            raise ValueError("`unknown` belongs to task: multiclass")
        if self.positive is not None and self.task != "binary":
            raise ValueError("`positive` belongs to task: binary")
        if self.group is not None and self.group_pattern is not None:
            raise ValueError("`group` and `group_pattern` say the same thing in two ways; keep one")
        for split in self._splits():
            if split.sources and not split.templates and not self.image.bands:
                raise ValueError("give `images`, or `image.bands` where they are columns of the table")
        for name, split in [("train", self.train), *(("extra", split) for split in self.extra)]:
            if not split.sources and split.folders is None and split.target_pattern is None:
                raise ValueError(f"`{name}` needs a table, `folders`, or `images` with a `target_pattern`")
        return self

    @model_validator(mode="after")
    def _mirrors_are_targets(self) -> Competition:
        named = [*self.mirror, *self.mirror.values()]
        if named and (self.task != "multilabel" or self.delimited):
            raise ValueError("`mirror` exchanges columns of a `target` list: task: multilabel")
        patterns = [name for name in self.targets if tables.is_pattern(name)]
        for name in named:
            known = name in self.targets or name in tables.expand(patterns, [name])
            if named.count(name) > 1 or not known:
                raise ValueError(f"`mirror`: '{name}' is no target, or stands there twice")
        return self

    @model_validator(mode="after")
    def _rows_are_alike(self) -> Competition:
        names = {tuple(one.series) if isinstance(one.series, dict) else () for one in self._splits()}
        if len({one.series is None for one in self._splits()}) > 1 or len(names) > 1:
            raise ValueError("`series` of train, test and extra have the same names")
        if (self.train.series is None) != (self.image.slices is None):
            raise ValueError("`series` and `image: {slices: N}` belong together")
        if self.slice_labels is not None and self.train.series is None:
            raise ValueError("`slice_labels` belong to `series`")
        if self.train.series is not None and self.frames == "each":
            raise ValueError("`frames: each` belongs to `images`, not to `series`")
        self.image = self.image.model_copy(update={"series": list(names.pop())})
        return self

    def _splits(self) -> list[Split]:
        return [split for split in (self.train, self.test, *self.extra) if split is not None]

    @model_validator(mode="after")
    def _labels_fit_task(self) -> Competition:
        graded = self.labels.uncertain is not None or self.labels.blank in {"0", "1"}
        if graded and self.task not in {"binary", "multilabel"}:
            raise ValueError("`labels` of 0 and 1 belong to task: binary and multilabel; `blank: ignore` to any")
        if self.labels.uncertain == "0.5" and self.task == "binary":
            raise ValueError("`labels: {uncertain: 0.5}` belongs to task: multilabel; choose 0, 1 or ignore")
        names = isinstance(self.classes, dict) and self.task == "binary" and set(self.classes) == {"0", "1"}
        if self.classes is not None and not names and self.task != "multiclass":
            raise ValueError("`classes` belongs to task: multiclass; of a binary one it names {0: ..., 1: ...}")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("`classes` names each class once")
        if isinstance(self.classes, dict) and len(set(self.classes.values())) < len(self.classes):
            raise ValueError("`classes` shows two classes under one name")
        if self.where is not None:
            condition_columns(self.where)
        return self

    def shown(self, name: str) -> str:
        """What reports call a class; of a binary target '1' is what counts as positive."""
        if isinstance(self.classes, dict):
            return self.classes.get(name, name)
        positive = [self.positive] if isinstance(self.positive, str) else self.positive or ["1"]
        return " or ".join(positive) if self.task == "binary" and name == "1" else name

    @property
    def targets(self) -> list[str]:
        """The labels of a multilabel task, else the target's columns, mostly one."""
        if self.delimited:
            return self._labels
        return self.target if isinstance(self.target, list) else [self.target]

    @property
    def id_template(self) -> str:
        """What makes the id of several columns; '' where the table has it."""
        return self._id_template or ""

    @property
    def delimited(self) -> bool:
        """Whether one column's cells hold all of a row's labels."""
        return self.task == "multilabel" and isinstance(self.target, str)

    @property
    def truth(self) -> list[str]:
        """The index's and prediction tables' columns that hold the truth: 'target', or 'target_<column>' for each."""
        return [f"target_{name}" for name in self.targets] if self.task in {"multilabel", "soft"} else ["target"]

    @property
    def alike(self) -> list[str]:
        """The index's columns that are equal where labels are: the truth, or of votes the likeliest class."""
        return ["target"] if self.task == "soft" else self.truth

    def as_classes(self) -> Competition:
        """Of votes, the competition that asks for the likeliest class, which reports count by; else the same."""
        if self.task != "soft":
            return self
        one = {"task": "multiclass", "target": "target", "classes": self.targets}
        return self.model_copy(update={**one, "host_metric": HostMetric(function="log_loss")})

    @property
    def group_column(self) -> str | None:
        """The table's column, or the header field, that says which rows belong together."""
        return None if self.group == NO_GROUP else self.group

    @property
    def groups_by(self) -> str | None:
        """What makes groups, as the file has it; None where each row is its own."""
        return self.group_column or self.group_pattern

    @property
    def aggregates(self) -> bool:
        """True where several rows of the index make one row of the submission."""
        return self.submission.row_id is not None or self.frames == "each"

    @property
    def metric(self) -> str:
        """The metric's name, as the file has it."""
        return self.host_metric.function

    def scorer(self) -> metrics.Metric:
        """The metric; a module:function is looked for beside this file first. UserError where there is no such."""
        host = self.host_metric
        if ":" not in host.function:
            return host.metric({} if host.weights is None else {"weights": self._weights(host.weights)})
        return metrics.own(host.function, self._file.parent, host.greater_is_better, host.order_only)

    def _weights(self, weights: dict[str, Any]) -> list[Any]:
        """The metric's weights, one a class, or (of 0, of 1) a column."""
        if self.task == "multilabel":
            return [each if isinstance(each := weights[name], tuple) else (each, each) for name in self.targets]
        return (
            [[weights["0"], weights["1"]]] if self.task == "binary" else [weights[name] for name in self.classes or []]
        )

    @property
    def file(self) -> Path:
        """The YAML this was read from."""
        return self._file

    def raw(self) -> Path:
        """The folder with the host's files; UserError lists the places where it was looked for."""
        places = self._raw_candidates(self.root, self.slug or self.name)
        for place in places:
            if place.is_dir():
                if self.root is not None and place not in self._beside(self.root):
                    _say_elsewhere(self._file, self.root, place)
                return place
        hint = "run python src/00_demo.py" if self.name == "demo" else f"put them in {places[-1]}, or set `root`"
        raise UserError(
            f"{self._file}: the raw files of '{self.name}' were not found in {', '.join(map(str, places))}; {hint}"
        )

    def raw_of(self, split: Split) -> Path:
        """The folder that a split's paths start from: the competition's, or an extra's own."""
        if split.root is None:
            return self.raw()
        places = self._raw_candidates(split.root, split.root)
        there = next((place for place in places if place.is_dir()), None)
        if there is None:
            raise UserError(f"{self._file}: extra.root {split.root} was not found in {', '.join(map(str, places))}")
        return there

    def _raw_candidates(self, root: str | None, slug: str) -> list[Path]:
        beside = self._beside(root) if root is not None else []
        mounted = sorted(paths.KAGGLE_INPUT.glob(f"datasets/*/{slug}")) if paths.KAGGLE_INPUT.is_dir() else []
        kaggle = [paths.KAGGLE_INPUT / "competitions" / slug, paths.KAGGLE_INPUT / slug, *mounted]
        own = [paths.output_root() / "input" / slug, paths.REPOSITORY / "input" / slug]
        return list(dict.fromkeys([*beside, *kaggle, *own]))

    def _beside(self, root: str) -> list[Path]:
        return [(base / root).resolve() for base in (paths.REPOSITORY, self._file.parent)]

    def derived(self) -> Path:
        """input/derived/<name>: what 01_preprocess.py writes."""
        return paths.output_root() / "input" / "derived" / self.name

    def runs(self) -> Path:
        """oof/<name>: a folder per run."""
        return paths.output_root() / "oof" / self.name

    def submissions(self) -> Path:
        """submissions/<name>."""
        return paths.output_root() / "submissions" / self.name


def load_competition(name_or_path: str) -> Competition:
    """The competition described by src/competitions/NAME.yaml, or by the file at that path."""
    path = find_yaml(paths.COMPETITIONS, name_or_path, "--competition")
    competition = validate(Competition, read_yaml(path, as_written=True), str(path))
    competition._file = path.resolve()
    _spell_out(competition)
    scaling = arrays.learnt(competition.derived(), competition.image.scaling)
    competition.image = competition.image.model_copy(update={"scaling": scaling})
    return competition


def _spell_out(competition: Competition) -> None:
    """Fill in what the tables tell: the columns behind 'margin*' and 'C1..C7', the labels in one column's cells."""
    meta = competition.metadata
    lists = [meta.numeric, meta.categorical, meta.dates]
    given = competition.target if isinstance(competition.target, list) else []
    patterns = [name for name in [*meta.numeric, *meta.categorical, *meta.dates, *given] if tables.is_pattern(name)]
    columns = _columns(competition) if patterns else []
    for name in patterns if columns else []:
        if not tables.expand([name], columns):
            raise UserError(f"{competition.file}: no column fits '{name}'{nearest(name, columns)}")
    known = columns or patterns
    spelled = [tables.expand(names, known) for names in lists]
    competition.metadata = Metadata(numeric=spelled[0], categorical=spelled[1], dates=spelled[2])
    if given:
        competition.target = tables.expand(given, known)
    if competition.delimited:
        competition._labels = _labels_in_cells(competition, str(competition.target))
    _check_weights(competition)


def _check_weights(competition: Competition) -> None:
    """UserError where the metric's weights are not those of the target's columns or classes."""
    weights, task = competition.host_metric.weights, competition.task
    if weights is None:
        return
    if task == "multiclass" and competition.classes is None:
        raise UserError(f"{competition.file}: `metric.weights` of classes need `classes`, in their order")
    named = {"multilabel": competition.targets, "binary": ["0", "1"]}.get(task, list(competition.classes or []))
    for name in sorted(set(weights) ^ set(named)):
        odd = f"'{name}' is {'too much' if name in weights else 'missing'}"
        raise UserError(f"{competition.file}: `metric.weights` of {', '.join(named)}: {odd}")
    if task != "multilabel" and any(isinstance(each, tuple) for each in weights.values()):
        raise UserError(f"{competition.file}: `metric.weights`: [of 0, of 1] are for multilabel; give a number a class")


def _columns(competition: Competition) -> list[str]:
    """The columns of the train tables, or of what step 01 made of them where they are not here."""
    try:
        raw = competition.raw_of(competition.train)
    except UserError:
        return _indexed(competition)
    return [column for source in competition.train.sources for column in tables.header(raw / source.table)]


def _labels_in_cells(competition: Competition, column: str) -> list[str]:
    try:
        raw = competition.raw_of(competition.train)
    except UserError:
        return [name.removeprefix("target_") for name in _indexed(competition) if name.startswith("target_")]
    separator = competition.labels.separator
    labels: set[str] = set()
    for split in [competition.train, *competition.extra]:
        for table in split.sources:
            file = competition.raw_of(split) / table.table
            labels |= _in_cells(file, stamp(file), column, table.records, separator)
    if len(labels) < 2:
        raise UserError(
            f"{competition.file}: `target: {column}` of {raw} holds {len(labels)} labels; multilabel needs two"
        )
    return by_number(labels)


@lru_cache(maxsize=8)
def _in_cells(file: Path, stamped: tuple[int, int], column: str, records: str | None, separator: str) -> frozenset[str]:
    if column not in tables.header(file):
        return frozenset()
    cells = tables.read_table(file, [column], records, separator)[column].dropna().unique()
    return frozenset(label.strip() for cell in cells for label in str(cell).split(separator) if label.strip())


def _indexed(competition: Competition) -> list[str]:
    """The columns of the saved index."""
    import pyarrow.parquet

    path = competition.derived() / "index.parquet"
    return list(pyarrow.parquet.read_schema(path).names) if path.exists() else []
