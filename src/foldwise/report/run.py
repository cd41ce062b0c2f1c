"""A look at one run, whatever made it, from its oof.csv: confusion, classes, most confused pairs, calibration.

oof/<competition>/<run>/report/
  confusion.csv     at, threshold, truth, answer, rows, share of the truth
  per_class.csv     at, threshold, class, precision, recall, f1, support, answered
  pairs.csv         the rows shown as examples: id, fold, truth, answer, probability
  residuals.csv     regression: by tenths of the prediction
  *.png, report.html
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from foldwise import UserError, stats
from foldwise.core import cli
from foldwise.core.cli import note, say
from foldwise.core.files import write_csv, write_text
from foldwise.data import cache, index, oof, top
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.data.runs import RunInfo, list_runs, read_run_info
from foldwise.report import cases, curves, figures, noise, page, results, run_figures
from foldwise.report.cases import Answers, Sheet
from foldwise.report.ending import say_scores
from foldwise.report.page import Page
from foldwise.report.results import Result

EXAMPLES = 6  # images of each confused pair
PICTURE = 132  # their height on the page, in pixels
FOLD_TILES = 10  # folds that get a tile
RESULTS = "results.html"  # of all runs
AS_MANY = "as many as are 1"  # the threshold by which examples are answered, here and in 07_explain


@dataclass(frozen=True)
class Decision:
    """One way to turn probabilities into classes: its counts int (K, K), rows the truth."""

    at: str
    threshold: float | None
    counts: np.ndarray
    label: str = ""


def write_run_report(competition: Competition, run: str) -> Path:
    """Write the report of a finished run; returns report.html. UserError where there is no oof.csv (yet)."""
    folder = competition.runs() / run
    if not (folder / "oof.csv").exists():
        raise UserError(f"{folder}: no oof.csv (yet); the report needs every fold")
    table, info, result = oof.read_table(folder / "oof.csv"), read_run_info(folder), results.of_run(competition, run)
    place = folder / "report"
    place.mkdir(parents=True, exist_ok=True)
    sheet = Page(f"Run {run} of {competition.name}", _lead(result) + _links(competition, run))
    if top.is_top(table):
        sheet.lead += page.text(f"More than {top.MANY:,} classes: what single ones are taken for is not shown.")
    _tiles(sheet, competition, table, result)
    sheet.warnings = _warnings(competition, result)
    sheets = [] if top.is_top(table) else _sheets(sheet, competition, table, place)
    _examples(sheet, competition, sheets, cache.to_show(competition, info.config.get("image_size")))
    _curves(sheet, competition, folder)
    _importance(sheet, folder)
    _settings(sheet, info, result)
    write_csv(place / "pairs.csv", cases.table(sheets), "%.6g")
    sheet.footer = "Every row was predicted by a model that had not seen it."
    write_text(place / "report.html", sheet.html())
    return place / "report.html"


def _sheets(sheet: Page, competition: Competition, table: pd.DataFrame, place: Path) -> list[cases.Sheet]:
    answers = cases.answers(competition, table)
    if competition.task == "regression":
        return _regression(sheet, place, answers)
    return _classes(sheet, place, competition.as_classes(), answers)


def illustrate(competition: Competition, result: Result) -> None:
    """The run's curves.png and its report, where they are missing or older than what they show or link to.

    What can't be made is said, and keeps no run from the page of all.
    """
    folder = result.folder
    if list(folder.glob("fold*_log.csv")):
        curves.draw(folder, competition.metric)
    made_of = [folder / "oof.csv", *(path for path, _ in _linked(competition, result.run))]
    page_file = folder / "report" / "report.html"
    newest = max((path.stat().st_mtime for path in made_of if path.exists() and path.name != RESULTS), default=0.0)
    if not (result.complete and made_of[0].exists()) or (page_file.exists() and page_file.stat().st_mtime >= newest):
        return
    try:
        write_run_report(competition, result.run)
    except Exception as error:
        note(f"warning: {page_file}: not made ({type(error).__name__}: {error})")


def report_run(competition: Competition, info: RunInfo) -> None:
    """A run's scores; of a whole run also its report, and the labels in doubt."""
    say_scores(info)
    if info.is_whole:
        noise.announce(competition)
        say(f"{info.run}: report {write_run_report(competition, info.run)}")


def next_after(competition: Competition, named: str, infos: Sequence[RunInfo], training: Sequence[str]) -> None:
    """Say what follows: the other folds; a model on the metadata, where there are some and it is not there; the blend.

    named: the competition, as --competition has it; training: the arguments of step 2 but for its folds.
    """
    if not all(info.is_whole for info in infos):
        return cli.next_step(named, "02_train.py", *training, "--fold", "all")
    looked = [read_run_info(competition.runs() / run).config for run in list_runs(competition)]
    metadata = index.metadata_columns(competition) and not any("target_encode" in config for config in looked)
    if infos:  # under torchrun, the first process speaks
        cli.next_step(named, "03_metadata.py" if metadata else "06_blend.py")


def _lead(result: Result) -> str:
    size = f"{result.image_size} pixels" if result.image_size else ""
    return page.text(" · ".join(filter(None, [result.model, size])), soft=True)


def _linked(competition: Competition, run: str) -> list[tuple[Path, str]]:
    """Pages that belong to the run, with what they are: those that are there."""
    folder = competition.runs() / run
    blends = [
        path for path in sorted(competition.submissions().glob("*.json")) if f'"run": "{run}"' in path.read_text()
    ]
    places = [
        (competition.derived() / "report.html", "data"),
        (competition.runs() / RESULTS, "all runs"),
        (competition.runs() / "noise.html", "label noise"),
        (folder / "explain" / "index.html", "what it looks at"),
        *((path.with_suffix(".html"), f"blend {path.stem}") for path in blends),
    ]
    return [(path, what) for path, what in places if path.exists()]


def _links(competition: Competition, run: str) -> str:
    here = competition.runs() / run / "report"
    links = [
        f'<a href="{quote(os.path.relpath(path, here))}">{page.escape(what)}</a>'
        for path, what in _linked(competition, run)
    ]
    return f"<p>See also: {' · '.join(links)}</p>" if links else ""


def _tiles(sheet: Page, competition: Competition, table: pd.DataFrame, result: Result) -> None:
    score = oof.score(competition, table) if np.isnan(result.score) else result.score
    ends = "" if np.isnan(result.low) else f", 95 % interval {result.low:.3f} to {result.high:.3f}"
    sheet.tile("–" if np.isnan(score) else f"{score:.4f}", f"{competition.metric}, out-of-fold{ends}")
    if not np.isnan(result.fold_std):
        sheet.tile(f"{result.fold_mean:.4f}", f"mean of folds, standard deviation {result.fold_std:.4f}")
    for fold, value in list(result.by_fold.items())[:FOLD_TILES]:
        sheet.tile("–" if np.isnan(value) else f"{value:.4f}", f"fold {fold}")
    sheet.tile(f"{len(table):,}", "rows")
    if not np.isnan(result.seconds):
        sheet.tile(cli.duration(result.seconds), "to make it")


def _warnings(competition: Competition, result: Result) -> list[str]:
    """What a reader should know before believing the score."""
    warnings = [result.note] if result.note else []
    sign = 1 if competition.scorer().greater_is_better else -1
    half = (result.high - result.low) / 2
    apart = sign * (result.fold_mean - result.score)
    if apart > half / 4:
        warnings.append(
            f"over all rows {result.score:.4f}, by fold {result.fold_mean:.4f}: the folds' models are on different "
            "scales. Test rows get the mean of all folds, which does not suffer from that; 06 --method fold_rank helps"
        )
    values = {fold: value for fold, value in result.by_fold.items() if not np.isnan(value)}
    for fold, value in values.items():
        others = [other for name, other in values.items() if name != fold]
        if len(others) > 2 and abs(value - float(np.mean(others))) > max(4 * float(np.std(others, ddof=1)), half):
            ends = f"{min(others):.4f} to {max(others):.4f}"
            warnings.append(f"fold {fold} stands out: {value:.4f}, the others {ends}; look at its rows")
    try:
        rises = curves.parted(_logs(result.folder))
    except UserError as error:
        rises = str(error)
    return warnings + ([rises] if rises else [])


def _logs(folder: Path) -> dict[int, pd.DataFrame]:
    return {fold: log for fold, log in curves.read(folder).items() if len(log)}


def _curves(sheet: Page, competition: Competition, folder: Path) -> None:
    try:
        logs = _logs(folder)
    except UserError:  # said among the warnings
        return
    if logs:
        slow = ", ".join(f"fold {k}: {int(curves.chosen(log)['epoch'])} of {len(log)}" for k, log in logs.items())
        drawn = sheet.figure(curves.figure(logs, competition.metric), "learning curves")
        sheet.add("Learning curves", page.text(f"Epoch that predicts: {slow}.", soft=True) + drawn)


def _importance(sheet: Page, folder: Path) -> None:
    if (folder / "importance.csv").exists():
        from foldwise.report.importance import importance_figure

        drawn = sheet.figure(importance_figure(pd.read_csv(folder / "importance.csv")), "importance by column")
        more = '<p class=soft><a href="../contributions.png">What each value adds</a> (contributions.csv).</p>'
        sheet.add("What the model leans on", drawn + (more if (folder / "contributions.png").exists() else ""))


def _settings(sheet: Page, info: RunInfo, result: Result) -> None:
    body = f"<p>Made by</p><pre>{page.escape(info.command)}</pre>" if info.command else ""
    if result.differs:
        body += page.table(["setting", "other than the default"], list(result.differs.items()))
    sheet.add("Settings", body)


# --- classes ----------------------------------------------------------------------------------------------


def _classes(sheet: Page, place: Path, competition: Competition, answers: Answers) -> list[Sheet]:
    decisions = _decisions(answers)
    names = answers.names if answers.task == "multiclass" else list(map(competition.shown, "01"))
    per_class = per_class_table(decisions, names)
    write_csv(place / "per_class.csv", per_class, "%.6g")
    write_csv(place / "confusion.csv", confusion_table(decisions, names), "%.6g")
    if answers.task == "multilabel":
        _labels(sheet, place, per_class)
    else:
        _confusion(sheet, place, competition, decisions, names)
        _per_class(sheet, place, per_class)
    _roc(sheet, place, answers, decisions)
    _calibration(sheet, place, answers)
    return cases.sheets(answers, ["pairs"], EXAMPLES)


def _decisions(answers: Answers) -> list[Decision]:
    """Every way to decide: argmax; or for each label 0.5, the threshold of the examples, the best F1 and Youden."""
    if answers.task == "multiclass":
        return [Decision("argmax", None, _counts(answers.truth, answers.decided, len(answers.names)))]
    decisions = []
    for k, name in enumerate(answers.names):
        rows = answers.label == k
        truth, p = answers.truth[rows], answers.prob[rows, 1]
        for at, threshold in (("0.5", 0.5), (AS_MANY, answers.cuts[k]), *thresholds(truth, p).items()):
            counts = _counts(truth, (p >= threshold).astype(np.int64), 2)
            decisions.append(Decision(at, threshold, counts, name if answers.task == "multilabel" else ""))
    return decisions


def _counts(truth: np.ndarray, answer: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(truth * k + answer, minlength=k * k).reshape(k, k)


def thresholds(truth: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """The thresholds (p >= t means 1) of the best F1 and of the largest sensitivity + specificity - 1 (Youden 1950).

    Halfway between neighbouring predictions; {} where a class is absent. Chosen on the rows they are shown for.
    """
    ones = int(truth.sum())
    if ones in {0, len(truth)}:
        return {}
    order = np.argsort(-p, kind="stable")
    hits, called = np.cumsum(truth[order]), np.arange(1, len(p) + 1)
    ends = np.append(p[order][1:] < p[order][:-1], True)  # only between different predictions
    f1 = np.where(ends, 2 * hits / (called + ones), -1)
    youden = np.where(ends, hits / ones - (called - hits) / (len(p) - ones), -2)
    below = np.append(p[order][1:], p[order][-1])
    middle = np.where(below < p[order], (p[order] + below) / 2, p[order])
    return {"best F1": float(middle[f1.argmax()]), "best Youden": float(middle[youden.argmax()])}


def per_class_table(decisions: Sequence[Decision], names: Sequence[str]) -> pd.DataFrame:
    """at, threshold, (label,) class, precision, recall, f1, support, answered; NaN where there is nothing to divide."""
    rows: list[dict[str, Any]] = []
    for one in decisions:
        support, answered = one.counts.sum(axis=1), one.counts.sum(axis=0)
        for k, name in enumerate(names):
            hits = int(one.counts[k, k])
            both = int(support[k] + answered[k])
            rows.append(
                {
                    "at": one.at,
                    "threshold": one.threshold,
                    "label": one.label,
                    "class": name,
                    "precision": hits / answered[k] if answered[k] else np.nan,
                    "recall": hits / support[k] if support[k] else np.nan,
                    "f1": 2 * hits / both if both else np.nan,
                    "support": int(support[k]),
                    "answered": int(answered[k]),
                }
            )
    return _bare(pd.DataFrame(rows))


def confusion_table(decisions: Sequence[Decision], names: Sequence[str]) -> pd.DataFrame:
    """at, threshold, (label,) truth, answer, rows, share of the truth's rows: a line per cell."""
    rows = [
        (one.at, one.threshold, one.label, names[i], names[j], int(count), count / max(int(one.counts[i].sum()), 1))
        for one in decisions
        for (i, j), count in np.ndenumerate(one.counts)
    ]
    return _bare(pd.DataFrame(rows, columns=["at", "threshold", "label", "truth", "answer", "rows", "share"]))


def _bare(table: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing."""
    idle = [c for c in ("threshold", "label") if c in table and table[c].replace("", np.nan).isna().all()]
    return table.drop(columns=idle)


def _confusion(
    sheet: Page, place: Path, competition: Competition, decisions: Sequence[Decision], names: Sequence[str]
) -> None:
    titles = [one.at if one.threshold is None else f"{one.at}: p ≥ {one.threshold:.3g}" for one in decisions]
    titles = ["threshold 0.5" if title.startswith("0.5:") else title for title in titles]
    shown = names if competition.task == "multiclass" else [f"{competition.targets[0]} = {name}" for name in names]
    figure = run_figures.confusion([(t, one.counts) for t, one in zip(titles, decisions, strict=True)], shown)
    words = "Shares of each true class's rows, and counts."
    if competition.task == "binary":
        words += " Best F1 and best Youden (sensitivity + specificity - 1) are chosen on these rows: they flatter."
    sheet.add("Confusion", page.text(words) + _both(sheet, place, "confusion", figure, "Confusion matrix"))
    for name, row in zip(names, decisions[-1].counts.T, strict=True):
        if not row.sum():
            sheet.warnings.append(f"No row is answered {name}.")


def _roc(sheet: Page, place: Path, answers: Answers, decisions: Sequence[Decision]) -> None:
    curves = dict[str, tuple[np.ndarray, np.ndarray]]()
    for k, name in enumerate(answers.names[: len(run_figures.PALETTE)]):
        if answers.task == "multiclass":
            curves[name] = answers.prob[:, k], (answers.truth == k).astype(np.int64)
        else:
            curves[name] = answers.prob[answers.label == k, 1], answers.truth[answers.label == k]
    points = [(one.at, float(one.threshold or 0)) for one in decisions] if answers.task == "binary" else []
    figure = run_figures.roc_pr(curves, points)
    words = "A dot is one way to decide, as above." if points else "Each against all others."
    sheet.add("ROC and precision", page.text(words, soft=True) + _both(sheet, place, "roc", figure, "ROC, precision"))


def _per_class(sheet: Page, place: Path, table: pd.DataFrame) -> None:
    if table["at"].nunique() == 1 and len(table) > 2:
        figure = _both(sheet, place, "per_class", run_figures.by_class(table), "Precision, recall and F1 of each class")
        sheet.add("Classes", figure + page.folded("as a table", _table(table)))
        return
    sheet.add("Classes", _table(table))


def _labels(sheet: Page, place: Path, per_class: pd.DataFrame) -> None:
    best = per_class[(per_class["class"] == "1") & (per_class["at"] == "best F1")]
    shown = best.assign(**{"class": best["label"]}) if "label" in best else best.assign(**{"class": "label"})
    words = "Each label at the threshold of its best F1, chosen on these rows; 0.5 and Youden's in per_class.csv."
    body = page.text(words) + _table(shown.drop(columns=["at"] + [c for c in ("label",) if c in shown]))
    if len(shown):
        figure = run_figures.by_class(shown)
        body = (
            page.text(words)
            + _both(sheet, place, "per_class", figure, "Each label")
            + page.folded(
                "as a table", _table(shown.drop(columns=["at", *([] if "label" not in shown else ["label"])]))
            )
        )
    sheet.add("Labels", body)


def _table(table: pd.DataFrame) -> str:
    return page.table(list(table.columns), table.astype(object).to_numpy().tolist())


def _calibration(sheet: Page, place: Path, answers: Answers) -> None:
    if answers.task == "multiclass":
        curves = {"the answer": (answers.sure, (answers.truth == answers.decided).astype(float))}
        words, kinds = "How often the likeliest class is right, by its probability.", ("wrong", "right")
    else:
        curves = {
            name: (answers.prob[answers.label == k, 1], answers.truth[answers.label == k].astype(float))
            for k, name in enumerate(answers.names[: len(run_figures.PALETTE)])
        }
        words, kinds = "How often it is 1, by its probability.", ("is 0", "is 1")
    if any(p.min() < 0 or p.max() > 1 for p, _ in curves.values()):
        sheet.add("Calibration", page.text("Predictions lie outside 0..1: they rank rows, but are no probabilities."))
        return
    gap = float(np.mean([expected_error(p, y) for p, y in curves.values()]))
    sheet.tile(f"{gap:.3f}", "calibration error (ECE)")
    figure = run_figures.calibration(curves, kinds)
    sheet.add("Calibration", page.text(words) + _both(sheet, place, "calibration", figure, "Calibration curve"))


def expected_error(p: np.ndarray, happened: np.ndarray) -> float:
    """Expected calibration error: mean gap of predicted and observed over ten equally filled bins, by rows."""
    table = stats.calibration_bins(p, happened)
    return float(np.average(np.abs(table["predicted"] - table["observed"]), weights=table["rows"]))


# --- numbers ----------------------------------------------------------------------------------------------


def _regression(sheet: Page, place: Path, answers: Answers) -> list[Sheet]:
    pred, truth = answers.prob.T
    error = pred - truth
    sheet.tile(f"{np.sqrt(np.mean(error**2)):.4g}", "root mean squared error, all rows")
    sheet.tile(f"{np.abs(error).mean():.4g}", "mean absolute error, all rows")
    sheet.tile(f"{1 - np.sum(error**2) / max(np.sum((truth - truth.mean()) ** 2), 1e-300):.3f}", "R²")
    parts = [k for k in np.array_split(np.argsort(pred, kind="stable"), min(stats.BINS, len(pred))) if len(k)]
    rows = [
        (len(k), pred[k].min(), pred[k].max(), truth[k].mean(), error[k].mean(), np.abs(error[k]).mean()) for k in parts
    ]
    table = pd.DataFrame(rows, columns=["rows", "from", "to", "mean truth", "mean residual", "mean absolute error"])
    write_csv(place / "residuals.csv", table, "%.6g")
    figure = run_figures.residuals(truth, pred, answers.names[0])
    sheet.add(
        "Residuals",
        _both(sheet, place, "residuals", figure, "Residuals")
        + page.folded("by tenths of the prediction", _table(table)),
    )
    return cases.sheets(answers, ["worst"], 2 * EXAMPLES)


# --- pictures ---------------------------------------------------------------------------------------------


def _both(sheet: Page, place: Path, name: str, figure: Figure, alt: str) -> str:
    """The figure as <name>.png and for the page."""
    figures.save(figure, place / f"{name}.png")
    return sheet.figure(figure, alt)


def _examples(report: Page, competition: Competition, sheets: Sequence[Sheet], images: Cache | None) -> None:
    body = ""
    for sheet in sheets:
        body += f"<h3>{page.escape(sheet.title)}</h3>" + page.text(sheet.lead, soft=True) + '<div class="strip">'
        where = _places(images, [case.id for case in sheet.cases])
        for case, row in zip(sheet.cases, where, strict=True):
            words = f"{case.id}: {case.answer} ({case.probability:.2f})"
            if competition.task == "regression":
                words = f"{case.id}: {case.answer} for {case.truth}"
            picture = "" if row < 0 or images is None else page.picture(images.read(np.array([row]))[0], words, PICTURE)
            body += f'<figure style="width:{PICTURE}px;overflow-wrap:anywhere">{picture}<figcaption>'
            body += f"{page.escape(words)}</figcaption></figure>"
        body += "</div>"
    if competition.task == "regression":
        report.add("Largest errors", body)
    elif body:
        report.add("Most confused", page.text("Rows answered wrongly: look for wrong labels, too.") + body)


def _places(images: Cache | None, ids: list[str]) -> np.ndarray:
    if images is None:
        return np.full(len(ids), -1)
    try:
        return images.rows("train", ids)
    except UserError:  # a run from elsewhere, of rows that this cache does not hold
        return np.full(len(ids), -1)
