"""oof/<competition>/<run>/explain/: PNGs and one page of what a run's models look at, each row by its fold's model.

The model that explains a row is the one that did not train on it: an explanation of a memorised row explains memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldwise import UserError, __version__
from foldwise.core.cli import note
from foldwise.core.files import write_csv, write_text
from foldwise.core.schema import nearest
from foldwise.data import cache, folds, index
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.data.runs import check_folds, finished_folds, read_folds
from foldwise.model import explain, fold_models
from foldwise.model.explain import Claim, Method, Subject
from foldwise.report import cases, figures, page
from foldwise.report import explain_figures as pictures
from foldwise.report.cases import Case, Sheet
from foldwise.report.page import Page

SHOWN = 168  # pixels a side of a picture on the page
INPUTS = 8  # outputs whose maximising input is shown


@dataclass(frozen=True)
class Request:
    """What to explain. rows: ids instead of sheets. count: cases a sheet. deletion: images of the deletion check."""

    rows: Sequence[str] = ()
    sheets: Sequence[str] = cases.SHEETS
    count: int = 8
    layer: str | None = None
    method: Method = "gradcam"
    maximise: bool = False
    deletion: int = 24


@dataclass
class Found:
    """What the fold models gave, by case."""

    heat: dict[tuple[Case, int], dict[str, np.ndarray]] = field(default_factory=dict)  # (case, view) -> backbone's map
    layers: dict[str, str] = field(default_factory=dict)
    pred: dict[Case, np.ndarray] = field(default_factory=dict)  # the model's own predictions, (C,)
    metadata: dict[Case, np.ndarray] = field(default_factory=dict)  # contributions, (F,)
    features: list[str] = field(default_factory=list)
    completeness: list[tuple[float, float]] = field(default_factory=list)  # (sum, difference) of integrated gradients
    curves: list[dict[str, np.ndarray]] = field(default_factory=list)
    stages: list[tuple[Case, list[explain.Stage]]] = field(default_factory=list)
    filters: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[tuple[str, np.ndarray, float, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class Material:
    """A run's rows, images and answers."""

    competition: Competition
    recipe: Recipe
    run: str
    table: pd.DataFrame  # training rows of the index, by id
    images: cache.Cache
    answers: cases.Answers

    def pixels(self, wanted: Sequence[Case]) -> np.ndarray:
        """uint8 (N, S, S, 3)."""
        return self.images.read(self.images.rows("train", [case.id for case in wanted]))


def write_explain_report(competition: Competition, recipe: Recipe, run: str, request: Request) -> Path:
    """Explain a run; returns the page's path. The folder is replaced whole, so that no picture of before stays."""
    material, trained = _material(competition, recipe, run)
    sheets = _readable(material, _sheets(material, request, trained))
    if not sheets:
        raise UserError(f"{competition.runs() / run}: nothing to explain: none of the rows asked for has a model")
    tried = _readable(material, [Sheet("tried", "", "", cases.sample(material.answers, request.deletion))])
    found = _explain(material, sheets, tried[0].cases if tried else [], request)
    folder = competition.runs() / run / "explain"
    part = folder.with_name("explain.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_page(material, sheets, found, request, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder / "index.html"


def _material(competition: Competition, recipe: Recipe, run: str) -> tuple[Material, list[int]]:
    table, fold_table = index.load_index(competition), folds.load_folds(competition)
    check_folds(competition, run, fold_table)
    folder = competition.runs() / run
    with_weights = fold_models.trained_folds(competition, run)
    trained = [fold for fold in finished_folds(folder) if fold in with_weights]
    if not trained:
        raise UserError(f"{folder}: no finished fold with weights; train one with 02_train.py --fold 0")
    preds = read_folds(folder, trained)
    today = fold_table.set_index("id")["fold"].reindex(preds["id"])
    if (today.to_numpy() != preds["fold"].to_numpy()).any():
        row = int(np.argmax(today.to_numpy() != preds["fold"].to_numpy()))
        raise UserError(f"{folder}: id {preds['id'].iloc[row]} is not in the fold that folds.csv says; train it anew")
    rows = table[table["split"] == "train"].set_index("id", drop=False)
    images = cache.load_cache(competition, recipe.image_size, recipe.crop)
    return Material(competition, recipe, run, rows, images, cases.answers(competition, preds)), trained


def _sheets(material: Material, request: Request, trained: Sequence[int]) -> list[Sheet]:
    if not request.rows:
        return cases.sheets(material.answers, request.sheets, request.count)
    known = set(material.answers.table["id"])
    for row_id in request.rows:
        if row_id not in material.table.index:
            raise UserError(f"--rows {row_id}: no such training row{nearest(row_id, material.table.index)}")
        if row_id not in known:
            broken = material.table.loc[row_id, "error"]
            why = f"can't be read ({broken})" if isinstance(broken, str) else f"not in a trained fold ({trained})"
            note(f"skipped {row_id}: {why}")
    asked = cases.chosen(material.answers, [row_id for row_id in request.rows if row_id in known])
    return [Sheet("rows", "Rows asked for", "", asked)] if asked else []


def _readable(material: Material, sheets: Iterable[Sheet]) -> list[Sheet]:
    """The sheets without rows whose image can't be read, which are named."""
    kept = []
    for sheet in sheets:
        where = material.images.rows("train", [case.id for case in sheet.cases])
        for case, row in zip(sheet.cases, where, strict=True):
            if row < 0:
                note(f"skipped {case.id}: its image can't be read")
        left = [case for case, row in zip(sheet.cases, where, strict=True) if row >= 0]
        kept += [Sheet(sheet.key, sheet.title, sheet.lead, left)] if left else []
    return kept


# --- the models' part -------------------------------------------------------------------------------------


def _explain(material: Material, sheets: list[Sheet], tried: list[Case], request: Request) -> Found:
    """All that needs a model, a fold after the other: each is loaded once, and sees only rows it did not train on."""
    found = Found()
    shown = list(dict.fromkeys(case for sheet in sheets for case in sheet.cases))
    first = _examples(sheets)
    by_fold = sorted({case.fold for case in [*shown, *tried]})
    for fold in tqdm(by_fold, desc="folds", leave=False, disable=None):
        model = FoldModel.load(material, fold)
        mine = [case for case in shown if case.fold == fold]
        tests = [case for case in tried if case.fold == fold]
        if not found.layers:
            found.layers = explain.cam_layers(model.subject.network, material.recipe.image_size, request.layer)
            found.features = model.features
            _look_inside(material, model, found)
            if request.maximise:
                _maximise(material, model, found)
        for case in tqdm(mine, desc=f"fold {fold} maps", leave=False, disable=None):
            _explain_case(material, model, case, request, found)
        for case in [case for case in first if case.fold == fold]:
            found.stages.append((case, _stages(material, model, case)))
        for case in tqdm(tests, desc=f"fold {fold} deletion", leave=False, disable=None):
            found.curves.append(_deletion(material, model, case, request, found.layers))
    found.stages.sort(key=lambda one: first.index(one[0]))
    return found


def _examples(sheets: Sequence[Sheet], most: int = 3) -> list[Case]:
    """The first case of each of the first sheets: their feature maps are shown."""
    return list(dict.fromkeys(sheet.cases[0] for sheet in sheets))[:most]


@dataclass(frozen=True)
class FoldModel:
    """A fold's model, as it is asked here."""

    trained: fold_models.Trained
    subject: Subject

    @classmethod
    def load(cls, material: Material, fold: int) -> FoldModel:
        """The model of a fold, which did not train on that fold's rows."""
        competition, recipe = material.competition, material.recipe
        trained = fold_models.load_fold(competition, recipe, material.run, fold, material.table)
        return cls(trained, explain.subject_of(trained))

    @property
    def features(self) -> list[str]:
        """Names of the metadata features that the network takes."""
        return self.trained.encoder.names if self.trained.encoder is not None else []

    def metadata(self, material: Material, wanted: Sequence[Case]) -> np.ndarray | None:
        """float32 (N, F) of the cases' rows, None where the network takes none."""
        return self.trained.metadata(material.table.loc[[case.id for case in wanted]])


def _claims(case: Case) -> list[Claim]:
    return [Claim(view.output, view.sign) for view in case.views]


def _explain_case(material: Material, model: FoldModel, case: Case, request: Request, found: Found) -> None:
    claims = _claims(case)
    image = np.repeat(material.pixels([case]), len(claims), axis=0)
    beside = model.metadata(material, [case] * len(claims))
    made = explain.cams(model.subject, image, claims, found.layers, beside, request.method)
    for k in range(len(claims)):
        found.heat[case, k] = {name: heat[k] for name, heat in made.maps.items()}
    found.completeness += made.completeness
    found.pred[case] = model.subject.predict(image[:1], None if beside is None else beside[:1])[0]
    if beside is not None:
        tensors = model.subject.tensors(image[:1], beside[:1])
        assert tensors[1] is not None
        positive = [Claim(claims[0].output, 1)]
        added, _ = explain.metadata_contributions(model.subject, tensors[0], positive, tensors[1])
        found.metadata[case] = added[0].cpu().numpy()


def _stages(material: Material, model: FoldModel, case: Case) -> list[explain.Stage]:
    layers = explain.stages(model.subject.network, material.recipe.image_size)
    beside = model.metadata(material, [case])
    every = [layer for names in layers.values() for layer in names]
    return explain.feature_maps(
        model.subject, material.pixels([case])[0], _claims(case)[0], every, None if beside is None else beside[0]
    )


def _look_inside(material: Material, model: FoldModel, found: Found) -> None:
    for name, backbone in explain.backbones(model.subject.network).items():
        weights = explain.first_filters(backbone)
        if weights is not None:
            found.filters[name] = weights


def _maximise(material: Material, model: FoldModel, found: Found) -> None:
    answers = material.answers
    if answers.task == "multiclass":
        wanted = [(name, Claim(k, 1)) for k, name in enumerate(answers.names)]
    elif answers.task == "regression":
        wanted = [(f"{answers.names[0]}: {word}", Claim(0, sign)) for word, sign in (("high", 1), ("low", -1))]
    else:
        wanted = [(f"{name} = {cls}", Claim(k, 2 * cls - 1)) for k, name in enumerate(answers.names) for cls in (1, 0)]
    for name, claim in tqdm(wanted[:INPUTS], desc="maximising inputs", leave=False, disable=None):
        image, reached = explain.maximise(model.subject, claim, material.recipe.image_size, len(model.features))
        beside = np.zeros((1, len(model.features)), np.float32) if model.features else None
        found.inputs.append((name, image, reached, model.subject.predict(image[None], beside)[0]))


def _deletion(
    material: Material, model: FoldModel, case: Case, request: Request, layers: dict[str, str]
) -> dict[str, np.ndarray]:
    image, claims, beside = material.pixels([case]), _claims(case)[:1], model.metadata(material, [case])
    made = explain.cams(model.subject, image, claims, layers, beside, request.method)
    heat = np.mean(list(made.maps.values()), axis=0)
    return explain.deletion(model.subject, image, claims, heat, beside)


# --- the page ---------------------------------------------------------------------------------------------


def _write_page(material: Material, sheets: list[Sheet], found: Found, request: Request, folder: Path) -> None:
    sheet = Page(f"{material.run} on {material.competition.name}: what it looks at")
    sheet.lead = _lead(material, found, request)
    for each in sheets:
        sheet.add(each.title, _cards(material, each, found, folder))
    sheet.add("Does the map matter?", _deletion_section(material, found, sheet, folder))
    sheet.add("Completeness", _completeness_section(found))
    sheet.add("Metadata", _metadata_section(sheets, found, sheet, folder))
    sheet.add("Stage by stage", _stages_section(material, found, sheet, folder))
    sheet.add("First-layer filters", _filters_section(found, sheet, folder))
    sheet.add("Inputs that the answers ask for", _inputs_section(material, found, folder))
    sheet.footer = escape(f"Made by 07_explain.py, foldwise {__version__}; cases.csv lists every case.")
    write_csv(folder / "cases.csv", _table(material, sheets, found))
    write_text(folder / "index.html", sheet.html())


def _lead(material: Material, found: Found, request: Request) -> str:
    method = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "ig": "integrated gradients"}[request.method]
    where = "" if request.method == "ig" else f" at {', '.join(found.layers.values())}"
    words = (
        f"Maps by {method}{where}: bright is where the evidence for the named answer lies. Every row is explained by "
        "the model that did not train on it; a wrong one for its answer, and for the truth beside it. A map shows "
        "where, not what; one that stays gray found no evidence for that answer."
    )
    return page.text(words)


def _table(material: Material, sheets: Sequence[Sheet], found: Found) -> pd.DataFrame:
    """cases.csv: what the sheets show, and what the model used said of the row (a single view of it)."""
    made = cases.table(sheets)
    every = [case for sheet in sheets for case in sheet.cases]
    own = [_own(material, case, found) for case in every]
    return made.assign(model_probability=own, file=[_file(s, k) for s in sheets for k in range(len(s.cases))])


def _own(material: Material, case: Case, found: Found) -> float:
    """What the model that explains a case says of its answer."""
    view, pred = case.views[0], found.pred[case]
    value = float(pred[view.output])
    return value if view.sign > 0 or material.answers.task == "regression" else 1 - value


def _file(sheet: Sheet, k: int) -> str:
    return f"{sheet.key}_{k + 1:02d}.png"


def _cards(material: Material, sheet: Sheet, found: Found, folder: Path) -> str:
    strips, words, cards = [], [], []
    for k, (case, image) in enumerate(zip(sheet.cases, material.pixels(sheet.cases), strict=True)):
        panels = [("the image", image)]
        for number, view in enumerate(case.views):
            for backbone, heat in found.heat[case, number].items():
                label = view.name if len(found.layers) == 1 else f"{view.name}, {backbone}"
                panels.append((f"for {label}", pictures.overlay(image, heat)))
        strip = pictures.strip([panel for _, panel in panels])
        (folder / _file(sheet, k)).write_bytes(pictures.png(strip))
        strips.append(strip)
        words.append(f"{case.id}, fold {case.fold}\n{_said(case)}")
        cards.append(_card(material, case, panels, _file(sheet, k), found))
    figures.save(pictures.sheet(sheet.title, strips, words), folder / f"{sheet.key}.png")
    whole = f'<p class=soft>{escape(sheet.lead)} <a href="{sheet.key}.png">{sheet.key}.png</a></p>'
    wide = 110 * max(1 + len(case.views) * len(found.layers) for case in sheet.cases)
    style = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {max(258, wide)}px), 1fr))"
    return f'{whole}<div class="pairs" style="{style}">{"".join(cards)}</div>'


def _said(case: Case) -> str:
    if len(case.views) == 1 and case.truth != case.answer:  # a regression
        return f"true {case.truth}, predicted {case.answer}"
    if case.right:
        return f"{case.answer} ({case.probability:.3f}), right"
    return f"{case.answer} ({case.probability:.3f}); true: {case.truth} ({case.of_truth:.3f})"


def _card(material: Material, case: Case, panels: Sequence[tuple[str, np.ndarray]], file: str, found: Found) -> str:
    shown = "".join(
        f"<div>{page.picture(panel, f'{case.id} {name}', SHOWN)}<span class=soft>{escape(name)}</span></div>"
        for name, panel in panels
    )
    lines = [f'<a href="{file}">{escape(case.id)}</a>, fold {case.fold}', escape(_said(case))]
    beside = material.table.loc[case.id, index.metadata_columns(material.competition)]
    facts = [f"{name} {_value(value)}" for name, value in beside.items()]
    lines += [escape(", ".join(facts))] if facts else []
    if case in found.metadata:
        added = found.metadata[case]
        top = np.argsort(-np.abs(added), kind="stable")[:3]
        lines.append(escape("metadata: " + ", ".join(f"{found.features[k]} {added[k]:+.2f}" for k in top)))
    return f'<div class="pair"><div class="two">{shown}</div>{"".join(f"<div>{line}</div>" for line in lines)}</div>'


def _value(value: object) -> str:
    if pd.isna(value):
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _deletion_section(material: Material, found: Found, sheet: Page, folder: Path) -> str:
    if not found.curves:
        return ""
    curves = {order: np.concatenate([each[order] for each in found.curves]) for order in explain.ORDERS}
    quantity = "probability of the answer"
    if material.answers.task == "regression":
        curves = {order: -np.abs(values - values[:, :1]) for order, values in curves.items()}
        quantity = "minus the change of the predicted value"
    areas = {order: explain.area(values) for order, values in curves.items()}
    saved = {order: areas[order] - areas["map"] for order in ("random", "centre")}
    figure = pictures.deletion(curves, quantity, saved)
    figures.save(figure, folder / "deletion.png")
    pd.DataFrame(areas).to_csv(folder / "deletion.csv", index=False)
    words = (
        f"Parts of {page.counted(len(areas['map']), 'image')} (drawn at random among rows whose answer is a class that "
        "is there) are replaced by a blurred copy, most marked first. If the map shows what the answer rests on, it "
        "falls faster than when parts go at random, or from the centre outwards. Area under the curve: "
    )
    body = page.text(words + "; ".join(f"{o} {_spread(v)}" for o, v in areas.items()) + ".")
    verdicts = [
        f"smaller than {name} by {_spread(gain)}, in {np.mean(gain > 0):.0%} of the images"
        for name, gain in (("at random", saved["random"]), ("from the centre", saved["centre"]))
    ]
    return body + page.text(f"By the map it is {'; '.join(verdicts)}.") + sheet.figure(figure, "deletion curves")


def _spread(values: np.ndarray) -> str:
    """'0.41 (0.35 to 0.47)': mean and its 95 % bootstrap interval over images."""
    rng = np.random.default_rng(0)
    draws = values[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def _completeness_section(found: Found) -> str:
    if not found.completeness:
        return ""
    total, difference = np.array(found.completeness).T
    gap = np.abs(total - difference) / np.maximum(np.abs(difference), 1e-6)
    words = (
        f"Attributions should add up to the evidence's difference between the image and its blurred copy. Over "
        f"{page.counted(len(gap), 'map')}: median relative gap {np.median(gap):.2%}, largest {gap.max():.2%}."
    )
    rows = [[float(a), float(b), float(abs(a - b))] for a, b in zip(total, difference, strict=True)]
    made = page.table(["sum of attributions", "difference of evidence", "gap"], rows)
    return page.text(words) + page.folded("Each map", made)


def _metadata_section(sheets: Sequence[Sheet], found: Found, sheet: Page, folder: Path) -> str:
    if not found.metadata:
        return ""
    values = pd.DataFrame(np.stack(list(found.metadata.values())), columns=found.features)
    figure = pictures.contributions(values)
    figures.save(figure, folder / "metadata.png")
    values.insert(0, "id", [case.id for case in found.metadata])
    write_csv(folder / "metadata.csv", values)
    words = (
        "Integrated gradients over the metadata features, the image held as it is, from the average row (the median "
        "where missing, no category). A dot is a row of the sheets above."
    )
    return page.text(words) + sheet.figure(figure, "metadata contributions")


def _stages_section(material: Material, found: Found, sheet: Page, folder: Path) -> str:
    if not found.stages:
        return ""
    shown = [case for case, _ in found.stages]
    images = list(material.pixels(shown))
    words = (
        "Left: the image and the mean of a stage's channels (absolute values); then the channels that move the "
        "answer most, with what each adds to its evidence, to first order (activation times gradient)."
    )
    body = page.text(words, soft=True)
    for k, first in enumerate(found.stages[0][1]):
        each = [stages[k] for _, stages in found.stages]
        side = "{} x {}".format(*first.mean.shape)
        layer = first.layer if len(found.layers) > 1 else first.layer.removeprefix("backbone.")
        figure = pictures.stage(
            f"{layer}: {first.channels} channels of {side}",
            images,
            [case.id for case in shown],
            [s.mean for s in each],
            [s.maps for s in each],
            [s.weights for s in each],
        )
        figures.save(figure, folder / f"stage_{k + 1}.png")
        body += sheet.figure(figure, f"feature maps of {first.layer}")
    return body


def _filters_section(found: Found, sheet: Page, folder: Path) -> str:
    body = ""
    for name, weights in found.filters.items():
        figure = pictures.filters(weights)
        figures.save(figure, folder / f"filters_{name}.png")
        words = f"{name}: the {len(weights)} strongest filters of the first convolution, {weights.shape[1]} x "
        words += f"{weights.shape[2]} pixels, each around gray. Noise here means too little training or too much rate."
        body += page.text(words, soft=True) + sheet.figure(figure, "first-layer filters")
    return body


def _inputs_section(material: Material, found: Found, folder: Path) -> str:
    if not found.inputs:
        return ""
    cells = []
    for k, (name, image, reached, pred) in enumerate(found.inputs):
        file = f"input_{k + 1}.png"
        (folder / file).write_bytes(pictures.png(image))
        says = ", ".join(f"{value:.3f}" for value in pred[:8])
        cells.append(
            f'<div class="pair">{page.picture(image, name, SHOWN)}<a href="{file}">{escape(name)}</a>: evidence '
            f"{reached:.1f}; predicted {escape(says)}</div>"
        )
    words = (
        "Made by gradient ascent from noise, at every scale at once: what the network would like to see, not what is."
    )
    return page.text(words, soft=True) + f'<div class="pairs">{"".join(cells)}</div>'
