"""A look at one run, whatever made it, from its oof.csv: confusion, classes, most confused pairs, calibration.

oof/<competition>/<run>/report/
  confusion.csv     at, threshold, truth, answer, rows, share of the truth
  per_class.csv     at, threshold, class, precision, recall, f1, support, answered
  pairs.csv         the rows shown as examples: id, fold, truth, answer, probability
  residuals.csv     regression: by tenths of the prediction
  *.png, report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from foldwise import UserError, stats
from foldwise.core.cli import say
from foldwise.core.files import write_csv, write_text
from foldwise.data import cache, oof
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.data.runs import RunInfo, read_run_info
from foldwise.report import cases, figures, page, run_figures
from foldwise.report.cases import Answers, Sheet
from foldwise.report.page import Page

EXAMPLES = 6  # images of each confused pair
PICTURE = 132  # their height on the page, in pixels


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
    table, info = oof.read_table(folder / "oof.csv"), read_run_info(folder)
    return write_table(competition, table, folder / "report", run, info)


def write_table(
    competition: Competition, table: pd.DataFrame, place: Path, title: str, info: RunInfo | None = None
) -> Path:
    """The same report of any out-of-fold table (id, fold, target..., pred...), such as a blend's, in folder `place`."""
    info = info or RunInfo()
    sheet = Page(f"{title} on {competition.name}", _lead(info))
    place.mkdir(parents=True, exist_ok=True)
    answers = cases.answers(competition, table)
    _tiles(sheet, competition, table, info)
    if competition.task == "regression":
        sheets = _regression(sheet, place, answers)
    else:
        sheets = _classes(sheet, place, competition, answers)
    _examples(sheet, competition, sheets, _images(competition, info))
    write_csv(place / "pairs.csv", cases.table(sheets), "%.6g")
    sheet.footer = "Made from the out-of-fold table alone: every row was predicted by a model that had not seen it."
    write_text(place / "report.html", sheet.html())
    return place / "report.html"


def report_run(competition: Competition, info: RunInfo) -> None:
    """How a step ends: the run's score a fold and over all rows, what is missing, and the report of a whole run."""
    scores = ", ".join(f"{k}: {'-' if v is None else f'{v:.4f}'}" for k, v in info.fold_scores.items())
    say(f"{info.run}: {info.metric} by fold  {scores}")
    if not info.is_whole:
        missing = sorted(set(info.folds_wanted) - set(info.folds_done))
        say(f"{info.run}: folds {', '.join(map(str, missing))} are missing; oof.csv follows the last one")
        return
    spread = "" if info.fold_std is None else f", standard deviation over folds {info.fold_std:.4f}"
    score = "undefined" if info.score is None else f"{info.score:.4f}"
    say(f"{info.run}: {info.metric} out-of-fold {score}{spread}")
    say(f"{info.run}: report {write_run_report(competition, info.run)}")


def _lead(info: RunInfo) -> str:
    config = info.config
    parts = [str(config["head"])] if "head" in config else []
    parts += [str(config["model"]["name"])] if isinstance(config.get("model"), dict) else []
    parts += [f"{config['image_size']} pixels"] if "image_size" in config else []
    parts += [f"{info.seconds:.0f} s"] if info.seconds is not None else []
    return page.text(" · ".join(parts), soft=True) if parts else ""


def _tiles(sheet: Page, competition: Competition, table: pd.DataFrame, info: RunInfo) -> None:
    score = oof.score(competition, table)
    sheet.tile("–" if np.isnan(score) else f"{score:.4f}", f"{competition.metric}, out-of-fold")
    if info.fold_std is not None:
        sheet.tile(f"{info.fold_std:.4f}", "its standard deviation over folds")
    sheet.tile(f"{len(table):,}", "rows")


# --- classes ----------------------------------------------------------------------------------------------


def _classes(sheet: Page, place: Path, competition: Competition, answers: Answers) -> list[Sheet]:
    decisions, answers = _decisions(answers)
    names = answers.names if answers.task == "multiclass" else list(map(competition.shown, "01"))
    per_class = per_class_table(decisions, names)
    write_csv(place / "per_class.csv", per_class, "%.6g")
    write_csv(place / "confusion.csv", confusion_table(decisions, names), "%.6g")
    if answers.task == "multilabel":
        _labels(sheet, place, per_class)
    else:
        _confusion(sheet, place, competition, decisions, names)
        _per_class(sheet, place, per_class)
    _calibration(sheet, place, answers)
    return cases.sheets(answers, ["pairs"], EXAMPLES)


def _decisions(answers: Answers) -> tuple[list[Decision], Answers]:
    """Every way to decide, and the answers at the one that examples are shown for: argmax, or the best F1."""
    if answers.task == "multiclass":
        return [Decision("argmax", None, _counts(answers.truth, answers.decided, len(answers.names)))], answers
    decisions = []
    decided = answers.decided.copy()
    for k, name in enumerate(answers.names):
        rows = answers.label == k
        truth, p = answers.truth[rows], answers.prob[rows, 1]
        for at, threshold in (("0.5", 0.5), *thresholds(truth, p).items()):
            counts = _counts(truth, (p >= threshold).astype(np.int64), 2)
            decisions.append(Decision(at, threshold, counts, name if answers.task == "multilabel" else ""))
            if at == "best F1":
                decided[rows] = p >= threshold
    return decisions, replace(answers, decided=decided)


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
    figure.set_layout_engine("none")  # laid out; not once more for the page
    return sheet.figure(figure, alt)


def _images(competition: Competition, info: RunInfo) -> Cache | None:
    """The cached images, in the run's size where there is one, else the smallest of 128 pixels on, else any."""
    sizes = cache.sizes(competition)
    if not sizes:
        return None
    own = info.config.get("image_size")
    size = own if own in sizes else next((size for size in sizes if size >= 128), sizes[-1])
    return cache.open_size(competition.derived(), size)


def _examples(report: Page, competition: Competition, sheets: Sequence[Sheet], images: Cache | None) -> None:
    body = ""
    for sheet in sheets:
        body += f"<h3>{page.escape(sheet.title)}</h3>" + page.text(sheet.lead, soft=True) + '<div class="strip">'
        where = _places(images, [case.id for case in sheet.cases])
        for case, row in zip(sheet.cases, where, strict=True):
            words = f"{case.id}: p {case.probability:.3f}"
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
