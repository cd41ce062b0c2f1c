"""Groups that nobody named: columns, header fields and parts of ids whose rows share more than chance explains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foldwise import UserError, dicom
from foldwise.data import folds, series, tables
from foldwise.data.competition import NO_GROUP, Competition
from foldwise.data.rows import table_columns

TAGS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "DeviceSerialNumber"]
HEADERS = 2_000  # training files whose headers are read: enough to see values repeat
LEAST = 20  # distinct values: fewer are a category (sex, site), which models may well use
SHUFFLES = 200
NEAR = 5  # neighbouring values that are shuffled together: what a number's size tells (age) is no identity
NOTED, STRONG = (4.0, 0.05), (6.0, 0.3)  # standard errors, and share of the target's variance, from which on


@dataclass(frozen=True)
class Tie:
    """A source whose equal values share the target: `share` of its variance, `errors` standard errors over chance."""

    name: str
    line: str  # of the competition file, that keeps those rows in one fold
    values: int
    rows: int
    share: float
    errors: float

    @property
    def strong(self) -> bool:
        """True where the score would be of known groups."""
        return self.errors >= STRONG[0] and self.share >= STRONG[1]

    def __str__(self) -> str:
        return (
            f"rows of one {self.name} are not kept in one fold ({self.rows:,} rows, {self.values:,} values), and share "
            f"the target more than chance explains ({self.share:.0%} of its variance): {self.line}?"
        )


def ties(competition: Competition, table: pd.DataFrame) -> list[Tie]:
    """Sources of the readable training rows whose values tie rows of different groups, the strongest first.

    None where the competition says `group: none`.
    """
    train = table[(table["split"] == "train") & table["error"].isna()]
    if competition.group == NO_GROUP:
        return []
    truth = folds.strata_of(competition, train)
    seen = [_tie(name, line, values, train["group"], truth) for name, line, values in _sources(competition, train)]
    known = [tie for tie in seen if tie is not None]
    return sorted(known, key=lambda tie: (-tie.strong, tie.values, -tie.errors))  # of two, the one that holds more rows


def refuse(competition: Competition, ties: list[Tie]) -> None:
    """UserError for a strong tie, unless the competition names groups or folds of its own, or has its folds already."""
    answered = competition.groups_by or competition.folds.file or folds.are_saved(competition)
    if ties and ties[0].strong and not answered:
        raise UserError(f"{competition.file}: {ties[0]} (`group: {NO_GROUP}` where it is meant)")


def _sources(competition: Competition, train: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """(name, the line that would answer it, values by row of `train`)."""
    ids = train["id"].astype(str)
    for separator in "_-/":
        for how, found in (("last", ids.str.rsplit(separator, n=1)), ("first", ids.str.split(separator, n=1))):
            pattern = f"^(.+){separator}[^{separator}]*$" if how == "last" else f"^([^{separator}]+){separator}"
            if found.str.len().gt(1).mean() > 0.9:
                yield f"start of the id (before the {how} '{separator}')", f"group_pattern: '{pattern}'", found.str[0]
    columns = table_columns(competition, train)
    bands = tables.expand(competition.image.bands, [str(column) for column in columns])
    columns = columns.drop(columns=bands, errors="ignore")  # pixels
    for column in columns.columns.difference([competition.group, *competition.targets]):
        values = columns[column]
        if not pd.api.types.is_float_dtype(values) or (values.dropna() % 1 == 0).all():
            yield column, f"group: {column}", values
    for tag, values in _headers(competition, train).items():
        yield f"DICOM {tag}", f"group: {tag}", values


def _headers(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    files = train.loc[train["format"] == "DICOM", "path"]
    if not len(files):
        return pd.DataFrame(index=train.index)
    some = files.sort_values().iloc[:HEADERS]  # neighbours, not a sample: one study's files lie together
    rows = {}
    for row, path in some.items():
        with suppress(UserError):  # its pixels could be read, and that is what counts
            rows[row] = dicom.read_header(series.header_file(competition.raw() / path, competition.image), TAGS)
    return pd.DataFrame.from_dict(rows, orient="index").reindex(train.index).dropna(axis=1, how="all")


def _tie(name: str, line: str, values: pd.Series, groups: pd.Series, truth: np.ndarray) -> Tie | None:
    """Rows of a group count once: what stands in one fold anyway is no leak."""
    one = pd.DataFrame({"value": values, "group": groups, "row": np.arange(len(values))}).dropna()
    one = one.drop_duplicates(["value", "group"])
    codes = pd.factorize(one["value"], sort=True)[0]
    sizes = np.bincount(codes) if len(codes) else np.zeros(0, int)
    shared = sizes[codes] > 1 if len(codes) else np.zeros(0, bool)
    if (sizes > 0).sum() < LEAST or shared.sum() < max(LEAST, 0.05 * len(values)):
        return None
    labels = truth[one["row"].to_numpy()]
    labels = labels - labels.mean(axis=0)
    order = np.argsort(codes, kind="stable")
    codes, labels = codes[order], labels[order]
    observed = _share(codes, labels)
    rng = np.random.default_rng(0)
    blocks = codes // NEAR
    chance = [_share(codes, labels[np.lexsort((rng.random(len(codes)), blocks))]) for _ in range(SHUFFLES)]
    above = observed - float(np.mean(chance))
    tie = Tie(name, line, int((sizes > 0).sum()), int(shared.sum()), observed, above / max(float(np.std(chance)), 1e-9))
    return tie if tie.errors >= NOTED[0] and above >= NOTED[1] else None


def _share(codes: np.ndarray, labels: np.ndarray) -> float:
    """The share of variance that equal codes explain: products of pairs within them (Fisher's intraclass one)."""
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.stack([np.bincount(codes, column) for column in labels.T], axis=1)
    own = np.bincount(codes, np.square(labels).sum(axis=1))
    pairs = (np.square(sums).sum(axis=1) - own) / np.maximum(sizes - 1, 1)
    return float(pairs[sizes > 1].sum() / max(float(own[sizes > 1].sum()), 1e-12))
