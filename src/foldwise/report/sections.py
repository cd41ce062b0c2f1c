"""The sections of report.html: each takes the survey and the page, and returns its HTML, '' to be left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from foldwise.audit import drift, label_noise
from foldwise.audit.duplicates import SIZE
from foldwise.core.cli import counted
from foldwise.core.source import ReadWarning
from foldwise.data import cache, image, index, series
from foldwise.data.boxes import contact_sheet, crops, load_boxes, load_crop_meta
from foldwise.data.image import ImageOptions
from foldwise.report import figures, noise, page
from foldwise.report.page import Page
from foldwise.report.survey import Survey

CLASSES = 12  # classes whose images are shown
ACROSS = 9  # images a class
THUMB = 92  # their side on the page; nine fit beside the name
PAIRS = 24  # pairs of copies shown, of each kind
LIST = 200  # rows of a long list
WHOLE = 512  # sides of the before/after pictures, read from the raw files
CONFLICTS = (
    "The same pixels under different labels",
    "Different labels in one group: perhaps two visits",
    "Much alike, with different labels",
)
COLUMNS = 16  # metadata columns drawn against the target


def _target(survey: Survey, sheet: Page) -> str:
    competition = survey.competition
    if competition.task == "regression":
        name = str(competition.target)
        return sheet.figure(figures.target_histogram(survey.train["target"], name), "histogram of the target")
    counts = survey.counts
    body = sheet.figure(figures.class_balance(counts, len(survey.train)), "training images by class")
    if len(counts) > 30:
        body += page.text(f"The 20 largest and 8 smallest of {len(counts):,} classes.", soft=True)
    rare = counts[counts < survey.fold_table["fold"].nunique()]
    if len(rare):
        words = counted(len(rare), "class", "classes")
        body += page.text(f"{words} with fewer images than there are folds, such as {rare.index[0]}.")
    if competition.task == "multilabel":
        labels = survey.truth.sum(axis=1)
        body += page.text(f"{(labels == 0).sum():,} images carry no label; on average {labels.mean():.2f} an image.")
        body += sheet.figure(figures.together(survey.truth), "labels that come together")
    return body


def _grid(survey: Survey, sheet: Page) -> str:
    rng = np.random.default_rng(0)
    rows = []
    for name in survey.counts.index[survey.counts > 0][:CLASSES]:
        ids = survey.train.loc[survey.members(name), "id"].to_numpy()
        picked = rng.choice(ids, min(ACROSS, len(ids)), replace=False)
        rows.append(_strip(survey, name, f"{len(ids):,} images", "train", picked))
    test = survey.table[(survey.table["split"] == "test") & survey.table["error"].isna()]
    if len(test):
        picked = rng.choice(test["id"].to_numpy(), min(ACROSS, len(test)), replace=False)
        rows.append(_strip(survey, "test", f"{len(test):,} images", "test", picked))
    more = f" The {CLASSES} largest of {len(survey.counts):,} classes." if len(survey.counts) > CLASSES else ""
    lead = f"Drawn at random, windowed, cropped and resized as they were cached at {survey.images.size} pixels.{more}"
    return page.text(lead, soft=True) + "".join(rows)


def _strip(survey: Survey, name: str, count: str, split: str, ids: np.ndarray) -> str:
    pixels = survey.images.pictures(survey.images.rows(split, list(ids)))
    shown = "".join(page.picture(pixel, str(one), THUMB) for pixel, one in zip(pixels, ids, strict=True))
    words = f"<div><b>{escape(name)}</b><br><span class=soft>{escape(count)}</span></div>"
    return f'<div class="class">{words}<div class="strip">{shown}</div></div>'


def _slices(survey: Survey, sheet: Page) -> str:
    """Of studies: how many slices they have, how many are seen, how far apart they lie."""
    options = survey.competition.image
    if options.slices is None:
        return ""
    asked, rows = options.slices * max(1, len(options.series)), []
    seen = cache.load_slices(survey.competition, survey.images.size)
    seen["apart"] = seen.groupby(["split", "id", "series"])["position"].diff()
    for split, part in survey.table[survey.table["error"].isna()].groupby("split", sort=False):
        count, apart = part["slices"].astype(float), seen.loc[seen["split"] == split, "apart"].dropna()
        mm = " / ".join(f"{value:g}" for value in apart.quantile([0, 0.5, 1]).round(2)) if len(apart) else "unknown"
        held = " / ".join(f"{value:g}" for value in count.quantile([0, 0.5, 1]))
        rows.append([split, len(part), held, f"{(count > asked).mean():.0%}", f"{(count < asked).mean():.0%}", mm])
    heads = [
        "split",
        "studies",
        "slices: least / median / most",
        f"more than {asked}",
        "fewer",
        "mm between those seen",
    ]
    named = f", {', '.join(options.series)}" if options.series else ""
    words = f"{options.slices} slices of each series are seen{named}; black ones stand for those that are missing."
    return page.text(words) + page.table(heads, rows)


def _before_after(survey: Survey, sheet: Page) -> str:
    """Each image option that is set, alone, and all of them together, on the same raw files."""
    chosen = survey.competition.image
    read = ("max_pixels", "truncated", "channels", "axes", "key", "bands", "scaling", "slices", "colour", "series")
    default = ImageOptions(**{name: getattr(chosen, name) for name in read})
    changed = [name for name in ImageOptions.model_fields if getattr(chosen, name) != getattr(default, name)]
    if not changed:
        return ""
    steps: dict[str, ImageOptions] = {"before": default}
    for name in changed:
        value = getattr(chosen, name)
        steps[f"{name}: {value}"] = default.model_copy(update={name: value})
    if len(changed) > 1:
        steps["all together"] = chosen
    files = survey.train.sample(min(ACROSS, len(survey.train)), random_state=1)
    size = min(WHOLE, 2 * survey.images.size)
    rows = []
    for name, options in steps.items():
        with warnings.catch_warnings(action="ignore", category=ReadWarning):  # step 01 has said what is odd
            pixels = [series.read(survey.competition.raw() / path, size, options)[0] for path in files["path"]]
        shown = map(image.as_picture, pixels)
        strip = "".join(page.picture(pixel, f"{i}, {name}", THUMB) for pixel, i in zip(shown, files["id"], strict=True))
        rows.append(f'<div class="class"><div><b>{escape(name)}</b></div><div class="strip">{strip}</div></div>')
    lead = "The same images without and with each option of `image:`, all else at its default."
    return page.text(lead, soft=True) + "".join(rows)


def _crops(survey: Survey, sheet: Page) -> str:
    """Boxes of 08_crop.py: how many, what became of the others, what the margin keeps, and pictures."""
    meta = load_crop_meta(survey.competition)
    if meta is None:
        return ""
    boxes = load_boxes(survey.competition)
    if boxes["id"].tolist() != survey.table["id"].tolist():
        return page.text("The crops were made for other images than there are now: run 08_crop.py again.")
    by = f"from {meta['boxes']}" if meta["method"] == "boxes" else f"by detector {meta['detector']}"
    by += f", fine-tuned on {counted(meta['trained_on'], 'image')}" if "trained_on" in meta else ""
    shape = ", square" if meta["square"] else ""
    body = page.text(
        f"{meta['images'] - meta['whole']:,} of {counted(meta['images'], 'readable image')} have a box {by}; "
        f"{counted(meta['whole'], 'image')} {'stays' if meta['whole'] == 1 else 'stay'} whole. Margin on each side: "
        f"{meta['margin']:g} of the box's side{shape} ({meta['margin_chosen']})."
    )
    if meta["reasons"]:
        body += page.table(["why the whole image", "images"], list(meta["reasons"].items()))
    body += _crop_recall(meta, sheet)
    pictures = contact_sheet(
        survey.competition, survey.table, boxes, crops(boxes, survey.table, meta["margin"], meta["square"])
    )
    cards = [
        f'<figure class="pair">{page.picture(picture, name, 116)}{escape(name)}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
        for picture, name, words in pictures
    ]
    lead = "Whole images and the lowest scores first, then some at random. Orange: the box; blue: what is cut out."
    return body + page.text(lead, soft=True) + f'<div class="pairs singles">{"".join(cards)}</div>'


def _crop_recall(meta: dict[str, Any], sheet: Page) -> str:
    met = meta["recall"]
    if met is None:
        return page.text(
            "How much of the object the crops keep is not known: there are no true boxes to measure it by "
            "(--truth, or --finetune-boxes).",
            soft=True,
        )
    words = (
        f"{counted(met['images'], 'image')} with a true box that the detector did not train on: a box was found in "
        f"{met['found']}, mean IoU {met['iou']:.3f} (median {met['iou_median']:.3f}; {met['iou_half']:.0%} at least "
        f"0.5). At the margin used, {met['recall']:.2%} of the object's area is kept on average, {met['whole']:.1%} of "
        f"the objects wholly, {met['lowest']:.1%} of the worst; chosen on the other images each, the margin keeps "
        f"{met['nested_recall']:.2%} and {met['nested_whole']:.1%}."
    )
    margins = pd.DataFrame(met["margins"])
    figure = figures.crop_margins(margins, meta["margin"], met["images"])
    body = page.text(words) + sheet.figure(figure, "share of true boxes kept, by margin")
    heads = ["margin", "area kept", "kept wholly", "worst", "share of the image"]
    rows = margins[["margin", "recall", "whole", "lowest", "area"]].to_numpy().tolist()
    return body + page.folded("The table", page.table(heads, rows, hot=lambda k: rows[k][0] == meta["margin"]))


def _files(survey: Survey, sheet: Page) -> str:
    known = survey.table[survey.table["error"].isna()]
    formats = known.groupby(["format", "split"]).size().unstack(fill_value=0)
    rows = [[str(name), *map(int, counts)] for name, counts in zip(formats.index, formats.to_numpy(), strict=True)]
    body = sheet.figure(figures.sizes(known), "sizes, shapes and weights of the files")
    others = index.left_out(survey.competition).removeprefix(", ")
    body += page.table(["format", *map(str, formats.columns)], rows)
    return body + (page.text(f"{others}.") if others else "")


def _light(survey: Survey, sheet: Page) -> str:
    statistics, table = survey.statistics, survey.table
    body = page.text("Of the cached images: each line is a distribution, its ends cut at the middle 99 %.", soft=True)
    largest = [str(name) for name in survey.counts.index[:6]]
    by = pd.Series(pd.NA, index=table.index, dtype="object")
    for name in largest:  # of several labels an image counts for its rarest: the last to be written
        by[survey.train.index[survey.members(name)]] = name
    colours = dict(zip(largest, figures.PALETTE, strict=False))
    word = "third of the target" if survey.competition.task == "regression" else "class"
    body += f"<h3>By {word}{', the six largest' if len(survey.counts) > 6 else ''}</h3>"
    body += sheet.figure(figures.light(statistics, by, colours), f"brightness, contrast and colour by {word}")
    if table["split"].nunique() > 1:
        shown = figures.light(statistics, table["split"], figures.SPLITS)
        body += "<h3>Train and test</h3>" + sheet.figure(shown, "brightness, contrast and colour in train and test")
    return body


def _metadata(survey: Survey, sheet: Page) -> str:
    columns = [name for name in index.metadata_columns(survey.competition) if survey.train[name].notna().any()]
    if not columns:
        return ""
    binary = survey.competition.task != "regression"
    names = list(survey.truth)[: 5 if len(survey.truth.columns) > 1 else 1]
    truth = survey.truth[names]
    lead = "Dots with 95 % intervals (Wilson) by value, number of images in brackets; dotted: all images."
    if len(survey.counts) > len(names) > 1:
        word = "largest classes" if survey.competition.task == "multiclass" else "first labels"
        lead += f" The {len(names)} {word} of {len(survey.counts):,}."
    body = page.text(lead if binary else lead.replace(" (Wilson)", " of the mean"), soft=True)
    for start in range(0, min(len(columns), COLUMNS), 2):  # by twos: short ones do not stretch to the longest
        frames = {c: figures.by_value(survey.train[c], truth) for c in columns[start : start + 2]}
        base = [float(truth[name].mean()) for name in names]
        figure = figures.against_target(frames, names, base, binary)
        body += sheet.figure(figure, f"target by {' and by '.join(columns[start : start + 2])}")
    return body + (
        page.text(f"The first {COLUMNS} of {len(columns)} columns.", soft=True) if len(columns) > COLUMNS else ""
    )


def _missing(survey: Survey, sheet: Page) -> str:
    columns = index.metadata_columns(survey.competition)
    if not columns:
        return ""
    shares = survey.table[columns].isna().groupby(survey.table["split"]).mean().T
    shares = shares[[split for split in figures.SPLITS if split in shares]]
    if not (shares.to_numpy() > 0).any():
        return page.text("Every metadata column is filled in every row.")
    return sheet.figure(figures.missing(shares.head(40)), "missing metadata by column")


def _folds(survey: Survey, sheet: Page) -> str:
    task, shown = survey.competition.task, list(survey.truth)[:6]
    truth = survey.truth.set_axis(survey.train["id"], axis=0)
    rows = []
    for fold, part in survey.fold_table.groupby("fold"):
        values = truth.loc[part["id"], shown]
        cells: list[Any] = values.mean().tolist() if task == "regression" else values.sum().astype(int).tolist()
        if task == "binary":
            cells.append(f"{values.iloc[:, 0].mean():.1%}")
        rows.append([str(fold), len(part), int(part["group"].nunique()), *cells])
    words = {"binary": ["positives", "share"], "regression": ["mean target"]}.get(task, list(map(str, shown)))
    more = ""
    if len(survey.counts) > len(shown) > 1:
        more = page.text(f"Images a fold of {len(shown)} of the {len(survey.counts):,} classes.", soft=True)
    return page.table(["fold", "images", "groups", *words], rows) + more


def _duplicates(survey: Survey, sheet: Page) -> str:
    if survey.audit is None:
        return ""
    counts, n = survey.audit.meta, len(survey.audit.pairs)
    lead = (
        f"{counts['images']:,} images compared at {SIZE} pixels: {counts['candidates']:,} candidates by "
        f"perceptual hash, {counted(n, 'pair')} confirmed on pixels. A pair says how many of the hash's 64 bits "
        "differ, and how well the fine structure agrees (0 to 1)."
        + (f" {counts['flat']:,} images without detail compared by their files only." if counts["flat"] else "")
    )
    body = page.text(lead, soft=True)
    pairs = survey.audit.pairs
    within = pairs["same_label"].eq(True).fillna(False)
    test = (pairs["split_a"] == "test") & (pairs["split_b"] == "test")
    for heading, part in (
        *zip(CONFLICTS, survey.audit.accused(survey.table), strict=True),
        ("Across train and test", survey.audit.across),
        ("Labelled alike, now in one group", pairs[within]),
        ("Within test", pairs[test]),
    ):
        if len(part):
            body += f"<h3>{heading} ({len(part):,})</h3>" + _pairs(survey, part)
    if n:
        body += page.text("All pairs are in duplicates.csv.", soft=True)
    return body


def _pairs(survey: Survey, pairs: pd.DataFrame) -> str:
    body = "".join(_pair(survey, pair) for pair in pairs.head(PAIRS).itertuples())
    more = page.text(f"The first {PAIRS} of {len(pairs):,}.", soft=True) if len(pairs) > PAIRS else ""
    return f'<div class="pairs">{body}</div>{more}'


def _pair(survey: Survey, pair: Any) -> str:
    sides = []
    for split, name in ((pair.split_a, pair.id_a), (pair.split_b, pair.id_b)):
        row = survey.row(split, name)
        shown = page.picture(survey.images.read(np.array([row]))[0], name, 116)
        label = f", {_label(survey, row)}" if split != "test" else ""
        sides.append(f"<div>{shown}{escape(name)}<br><span class=soft>{escape(split + label)}</span></div>")
    turned = "" if pair.view == "as it is" else f", {pair.view}"
    words = f"{pair.kind}{turned}: {pair.distance} of 64 bits, agreement {pair.agreement:.2f}"
    kind = "pair" if pd.isna(pair.same_label) or pair.same_label else "pair warn"
    caption = f"<figcaption>{escape(words)}</figcaption>"
    return f'<figure class="{kind}"><div class="two">{"".join(sides)}</div>{caption}</figure>'


def _label(survey: Survey, row: int) -> str:
    if survey.competition.task == "multilabel":
        names = survey.competition.targets
        return ", ".join(name for name in names if survey.table[f"target_{name}"].iloc[row] > 0.5) or "no label"
    value = survey.table["target"].iloc[row]
    return f"target {value:g}" if isinstance(value, float) else str(value)


def _drift(survey: Survey, sheet: Page) -> str:
    body = page.text(
        "What each column alone tells. Drift between train and test: Kolmogorov-Smirnov distance of numbers, share of "
        "rows that would have to move for categories. Predicts target: out-of-fold AUC of the column alone"
        + (" (R² here)" if survey.competition.task == "regression" else ", of the class it tells best")
        + ". Tells test: the AUC of 'is this a test row'. Marked: a warning above.",
        soft=True,
    )
    body += _compared(survey.compared)
    shown = [
        sheet.figure(figures.responsible(one.columns, f"{one.name}\nAUC {one.auc}"), f"adversary on {one.name}")
        for one in survey.adversaries
    ]
    if shown:
        body += "<h3>Adversarial validation</h3>" + page.text(
            "A model learns to tell test images from training images (LightGBM, five folds of groups, interval by "
            "bootstrap over groups). AUC 0.5: it can't; near 1: what it leans on will mislead a model trained here.",
            soft=True,
        )
        body += f'<div class="side">{"".join(f"<div>{one}</div>" for one in shown)}</div>'
    return body


def _headers(survey: Survey, sheet: Page) -> str:
    if not len(survey.headers):
        return ""
    lead = "Every public DICOM field that is not among the metadata; personal fields are left out."
    return page.text(lead, soft=True) + page.folded(f"{len(survey.headers)} fields", _compared(survey.headers))


def _compared(compared: pd.DataFrame) -> str:
    flagged = [bool(drift.warnings(compared.iloc[[k]])) for k in range(len(compared))]
    order = np.argsort([not flag for flag in flagged], kind="stable")
    rows = []
    for k in order:
        row = compared.iloc[k]
        covered = [f"{v:.0%}" if v == v else "–" for v in (row["coverage_train"], row["coverage_test"])]
        p = "–" if np.isnan(row["p"]) else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        best = f" {row['target_class']}" if row["target_class"] else ""
        rows.append(
            [
                f"{row['column']}",
                row["source"],
                " / ".join(covered),
                int(row["values"]),
                float(row["drift"]),
                p,
                float(row["target"]),
                best,
                float(row["split"]),
            ]
        )
    heads = ["column", "source", "filled, train / test", "values", "drift", "p", "predicts target", "", "tells test"]
    return page.table(heads, rows, hot=lambda k: flagged[order[k]], bars=(4,))


def _noise(survey: Survey, sheet: Page) -> str:
    frame = label_noise.candidates(survey.competition, survey.table)
    if frame is None:
        return ""
    frame = frame[frame["id"].isin(survey.train["id"])]
    lead = (
        f"{counted(len(frame), 'training row')} whose out-of-fold predictions contradict the label with confidence "
        "(Northcutt et al. 2021): mislabelled, or hard. The most contradicted first; to decide on them, open "
        f"{survey.competition.runs() / 'noise.html'}."
    )
    cards = "".join(noise.card(survey.competition, survey.images, row) for row in frame.head(PAIRS).itertuples())
    return page.text(lead, soft=True) + f'<div class="pairs singles">{cards}</div>'


def _unreadable(survey: Survey, sheet: Page) -> str:
    unread = survey.table[survey.table["error"].notna()]
    remarks = cache.remarks(survey.competition, survey.table, survey.images.size)
    odd = [[text, len(part), part["path"].iloc[0]] for text, part in remarks.groupby("remark")]
    read = page.table(["read all the same, though", "files", "such as"], odd) if odd else ""
    if not len(unread):
        return page.text("Every file could be read.") + read
    body = page.text(
        "Training rows are left out. Test rows stay in the submission: their prediction is the stated "
        "fallback, the mean of the others."
    )
    shown = unread.head(LIST)
    what = {"train": "left out", "extra": "left out", "test": "predicted as the mean of the others"}
    rows = [[r.split, r.id, r.path, r.error, what[r.split]] for r in shown.itertuples()]
    body += page.table(["split", "id", "file", "reason", "what happens"], rows)
    more = page.text(f"The first {LIST} of {len(unread):,}; all are in unreadable.csv.", soft=True)
    return read + body + (more if len(unread) > LIST else "")


SECTIONS: list[tuple[str, Callable[[Survey, Page], str]]] = [
    ("Target", _target),
    ("Images as the model sees them", _grid),
    ("Slices", _slices),
    ("Image options, before and after", _before_after),
    ("Crops", _crops),
    ("Copies", _duplicates),
    ("Folds", _folds),
    ("Files", _files),
    ("Light and colour", _light),
    ("Metadata and target", _metadata),
    ("Missing metadata", _missing),
    ("Drift and leaks", _drift),
    ("DICOM header", _headers),
    ("Label noise candidates", _noise),
    ("Unreadable files", _unreadable),
]
