"""input/derived/<competition>/report.html: what to look at before training, on one page without network or script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

import pandas as pd

from foldwise import __version__
from foldwise.audit import drift
from foldwise.audit.duplicates import Audit
from foldwise.core.cli import counted, note
from foldwise.core.files import write_text
from foldwise.data import cache, folds
from foldwise.data.competition import Competition
from foldwise.report import page, sections
from foldwise.report.page import Page
from foldwise.report.survey import SAMPLE, Survey

T = TypeVar("T")

DIFFERENT = 0.7  # lower end of the adversarial AUC from which train and test are said to differ


def write_competition_report(
    competition: Competition,
    table: pd.DataFrame,
    fold_table: pd.DataFrame,
    sizes: Sequence[int],
    audit: Audit | None = None,
) -> tuple[Path, list[str]]:
    """report.html from the index, the folds, the first size's cache and the audit; its path, and its warnings.

    What fails in one section is said in its place, and does not stop the others.
    """
    survey = Survey(competition.as_classes(), table, fold_table, cache.load_cache(competition, sizes[0]), sizes, audit)
    sheet = Page(f"{competition.name}: before training")
    for heading, make in sections.SECTIONS:
        try:
            sheet.add(heading, make(survey, sheet))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            sheet.add(heading, page.text(f"This part could not be made ({reason})."))
            note(f"warning: report.html: {heading}: could not be made ({reason})")
    _headline(competition, survey, sheet)
    sheet.warnings = _warnings(survey)
    path = competition.derived() / "report.html"
    write_text(path, sheet.html())
    return path, sheet.warnings


def _headline(competition: Competition, survey: Survey, sheet: Page) -> None:
    table = survey.table
    test = int((table["split"] == "test").sum())
    unread = table["error"].notna()
    sheet.lead = page.text(
        f"{competition.task}, scored by {competition.metric}. {len(survey.train):,} usable training images in "
        f"{survey.fold_table['fold'].nunique()} folds, {test:,} test images."
    )
    sheet.tile(f"{len(survey.train):,}", "training images")
    sheet.tile(f"{test:,}" if test else "none", "test images")
    if competition.task == "binary":
        sheet.tile(f"{survey.train['target'].mean():.1%}", "positive")
    elif competition.task != "regression":
        sheet.tile(f"{len(survey.counts):,}", "labels" if competition.task == "multilabel" else "classes")
    sheet.tile(f"{survey.fold_table['group'].nunique():,}", "groups, each in one fold")
    sheet.tile(f"{int(unread.sum()):,}", "unreadable files", warn=bool(unread.any()))
    if survey.audit is not None:
        pairs, conflicts = len(survey.audit.pairs), len(survey.audit.conflicts)
        sheet.tile(f"{pairs:,}", "pairs of copies", warn=pairs > 0)
        sheet.tile(f"{conflicts:,}", "copies that differ in label", warn=conflicts > 0)
    for one in _adversaries(survey):
        sheet.tile(f"{one.auc.value:.2f}", f"AUC, train against test: {one.name}", warn=one.auc.low > DIFFERENT)
    sizes = ", ".join(map(str, survey.sizes))
    sheet.footer = escape(
        f"Made by 01_preprocess.py, foldwise {__version__}, from images_{survey.sizes[0]}.npy (sizes made: {sizes}), "
        "index.parquet and folds.csv. "
        + ("" if survey.audit is not None else f"Light and colour from a sample of at most {SAMPLE:,} images. ")
        + f"Header fields from at most {drift.HEADERS:,} files a split."
    )


def _try(make: Callable[[], T], otherwise: T) -> T:
    try:
        return make()
    except Exception:  # its own section has said why
        return otherwise


def _adversaries(survey: Survey) -> list[drift.Adversary]:
    none: list[drift.Adversary] = []
    return _try(lambda: survey.adversaries, none)


def _warnings(survey: Survey) -> list[str]:
    """What to know before training, the gravest first."""
    nothing = survey.table.iloc[:0]
    compared = _try(lambda: survey.compared, nothing)
    lines = drift.leaks(compared)
    if survey.audit is not None:
        lines += survey.audit.warnings(survey.table, survey.fold_table)
    lines += folds.check(survey.competition, survey.fold_table, survey.train)
    shared = drift.shared_groups(survey.table)
    if shared:
        both = f"{counted(len(shared), 'group')} in both train and test, such as {shared[0]}"
        lines.append(f"{both}: the test score is that of known groups, the out-of-fold score that of new ones")
    for one in _adversaries(survey):
        if one.auc.low > DIFFERENT:
            lines.append(f"train and test differ in {one.name}: AUC {one.auc}, most by {one.columns.index[0]}")
    lines += drift.shifts(compared) + drift.unused(_try(lambda: survey.headers, nothing))
    return lines + [
        f"{counted(count, f'{split} file')} can't be read: "
        + ("predicted as the mean of the others" if split == "test" else "left out")
        for split, count in survey.table.loc[survey.table["error"].notna(), "split"].value_counts().items()
    ]
