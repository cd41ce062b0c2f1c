"""oof/<competition>/<run>/explain/: PNGs and one page of what a run's models look at, each row by its fold's model.

The model that explains a row is the one that did not train on it: an explanation of a memorised row explains memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldwise import UserError, __version__
from foldwise.audit.duplicates import connected, load_audit
from foldwise.core.cli import counted, note
from foldwise.core.files import locked, write_csv, write_text
from foldwise.core.schema import nearest
from foldwise.data import cache, folds, index
from foldwise.data.competition import Competition
from foldwise.data.image import as_picture
from foldwise.data.recipe import Recipe
from foldwise.data.runs import check_folds, finished_folds, read_folds
from foldwise.model import explain, explain_slices, fold_models
from foldwise.model.explain import Method
from foldwise.model.explain_slices import SliceMap
from foldwise.model.fold_models import FoldModel
from foldwise.model.targets import OutputTarget
from foldwise.report import cases, figures, page
from foldwise.report import explain_figures as pictures
from foldwise.report.cases import Case, Sheet
from foldwise.report.page import Page

SHOWN = 168  # pixels a side of a picture on the page
INPUTS = 8  # outputs whose maximising input is shown


def write_explain_report(
    competition: Competition,
    recipe: Recipe,
    run: str,
    *,
    rows: Sequence[str] = (),
    sheets: Sequence[str] = cases.SHEETS,
    count: int = 8,
    layer: str | None = None,
    method: Method = "gradcam",
    maximise: bool = False,
    deletion: int = 24,
) -> tuple[Path, str]:
    """Explain a run; returns the page's path, and whether its maps are to be trusted.

    The folder is replaced whole, so that no picture of before stays.

    rows: ids instead of sheets. count: cases a sheet. deletion: images of the deletion check.
    """
    if recipe.model.stack is not None and (maximise or method == "ig"):
        raise UserError(f"{'--maximise' if maximise else '--method ig'} is for single pictures; this run sees studies")
    explained = Explanation(competition, recipe, run, method)
    shown = explained.readable(explained.asked_for(rows) if rows else explained.sheets(sheets, count))
    if not shown:
        raise UserError(f"{competition.runs() / run}: nothing to explain: none of the rows asked for has a model")
    tried = explained.readable([Sheet("tried", "", "", cases.sample(explained.answers, deletion))])
    explained.ask(shown, tried[0].cases if tried else [], layer, maximise)
    folder = competition.runs() / run / "explain"
    part = folder.with_name("explain.part")
    with locked(folder.with_name(".explain.lock")):  # of two at once the later one stays, whole
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        explained.write(shown, part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder / "index.html", explained.verdict


class Explanation:
    """A run's rows, images and answers; what its fold models say of cases, once `ask`ed; the page of it.

    table: training rows of the index, by id. heat: of (case, which of its targets), a map a backbone. studies: of the
    same, what each slice adds, and maps on some. pred: the model's own predictions of a case, (C,). metadata:
    contributions, (F,). completeness: (sum, difference) of integrated gradients.
    """

    def __init__(self, competition: Competition, recipe: Recipe, run: str, method: Method = "gradcam") -> None:
        self.competition, self.recipe, self.run, self.method = competition, recipe, run, method
        table, fold_table, folder = (
            index.load_index(competition),
            folds.load_folds(competition),
            competition.runs() / run,
        )
        check_folds(competition, run, fold_table)
        with_weights = fold_models.trained_folds(competition, run)
        self.trained = [fold for fold in finished_folds(folder) if fold in with_weights]
        if not self.trained:
            raise UserError(f"{folder}: no finished fold with weights; train one with 02_train.py --fold 0")
        preds = pd.concat(read_folds(folder, self.trained, fold_table), ignore_index=True)
        self.table = table[table["split"] == "train"].set_index("id", drop=False)
        self.images = cache.load_cache(competition, recipe.image_size, recipe.crop)
        self.answers = cases.answers(competition, preds)
        audit = load_audit(competition, table)
        self.copies = {} if audit is None else connected(audit.pairs[["id_a", "id_b"]].itertuples(index=False))
        self.verdict = "no verdict on the maps: no image was tried (--deletion)"
        self.layers: dict[str, str] = {}
        self.features: list[str] = []
        self.heat: dict[tuple[Case, int], dict[str, np.ndarray]] = {}
        self.pred: dict[Case, np.ndarray] = {}
        self.metadata: dict[Case, np.ndarray] = {}
        self.studies: dict[tuple[Case, int], tuple[np.ndarray, list[SliceMap]]] = {}
        self.completeness: list[tuple[float, float]] = []
        self.curves: list[dict[str, np.ndarray]] = []
        self.stages: list[tuple[Case, list[explain.Stage]]] = []
        self.filters: dict[str, np.ndarray] = {}
        self.inputs: list[tuple[str, np.ndarray, float, np.ndarray]] = []

    # --- the cases ----------------------------------------------------------------------------------------

    def sheets(self, wanted: Sequence[str], count: int) -> list[Sheet]:
        """The sheets of these names, of at most `count` cases each."""
        return cases.sheets(self.answers, wanted, count, self.copies)

    def asked_for(self, ids: Sequence[str]) -> list[Sheet]:
        """A sheet of rows by id; those that no model has seen are named, UserError for an id that is none."""
        known = set(self.answers.table["id"])
        for row_id in ids:
            if row_id not in self.table.index:
                raise UserError(f"--rows {row_id}: no such training row{nearest(row_id, self.table.index)}")
            if row_id not in known:
                broken, elsewhere = self.table.loc[row_id, "error"], f"not in a trained fold ({self.trained})"
                why = f"can't be read ({broken})" if isinstance(broken, str) else elsewhere
                note(f"skipped {row_id}: {why}")
        chosen = cases.chosen(self.answers, [row_id for row_id in ids if row_id in known])
        return [Sheet("rows", "Rows asked for", "", chosen)] if chosen else []

    def readable(self, sheets: Iterable[Sheet]) -> list[Sheet]:
        """The sheets without rows whose image can't be read, which are named."""
        kept = []
        for sheet in sheets:
            cache_rows = self.images.rows("train", [case.id for case in sheet.cases])
            for case, row in zip(sheet.cases, cache_rows, strict=True):
                if row < 0:
                    note(f"skipped {case.id}: its image can't be read")
            left = [case for case, row in zip(sheet.cases, cache_rows, strict=True) if row >= 0]
            kept += [Sheet(sheet.key, sheet.title, sheet.lead, left)] if left else []
        return kept

    def _pixels(self, wanted: Sequence[Case]) -> np.ndarray:
        """uint8 (N, S, S, 3)."""
        return self.images.read(self.images.rows("train", [case.id for case in wanted]))

    def _beside(self, model: FoldModel, wanted: Sequence[Case]) -> np.ndarray | None:
        """Metadata float32 (N, F) of the cases' rows, None where the network takes none."""
        return model.metadata(self.table.loc[[case.id for case in wanted]])

    # --- the models' part ---------------------------------------------------------------------------------

    def ask(
        self, sheets: Sequence[Sheet], tried: Sequence[Case], layer: str | None = None, maximise: bool = False
    ) -> None:
        """All that needs a model, fold by fold: each is loaded once, and sees only rows it did not train on.

        tried: cases of the deletion check.
        """
        shown = list(dict.fromkeys(case for sheet in sheets for case in sheet.cases))
        examples = list(dict.fromkeys(sheet.cases[0] for sheet in sheets))[:3]  # whose feature maps are shown
        by_fold = sorted({case.fold for case in [*shown, *tried]})
        for fold in tqdm(by_fold, desc="folds", leave=False, disable=None):
            model = fold_models.load_fold(self.competition, self.recipe, self.run, fold, self.table)
            if not self.layers:
                self._look_inside(model, layer, maximise)
            for case in tqdm(_of(fold, shown), desc=f"fold {fold} maps", leave=False, disable=None):
                self._explain_case(model, case)
            self.stages += [(case, self._stages_of(model, case)) for case in _of(fold, examples)]
            for case in tqdm(_of(fold, tried), desc=f"fold {fold} deletion", leave=False, disable=None):
                self.curves.append(self._deletion(model, case))
        self.stages.sort(key=lambda one: examples.index(one[0]))

    def _look_inside(self, model: FoldModel, layer: str | None, maximise: bool) -> None:
        self.layers = explain.cam_layers(model.network, self.recipe.image_size, layer)
        self.features = model.features
        for name, backbone in explain.backbones(model.network).items():
            weights = explain.first_filters(backbone)
            if weights is not None:
                self.filters[name] = weights
        wanted = _outputs(self.answers)[:INPUTS] if maximise else []
        for target in tqdm(wanted, desc="maximising inputs", leave=False, disable=None if wanted else True):
            image, reached = explain.maximise(model, target, self.recipe.image_size, len(model.features))
            beside = np.zeros((1, len(model.features)), np.float32) if model.features else None
            self.inputs.append((target.name, as_picture(image), reached, model.answer(image[None], beside)[0]))

    def _explain_case(self, model: FoldModel, case: Case) -> None:
        count = len(case.targets)
        image, beside = np.repeat(self._pixels([case]), count, axis=0), self._beside(model, [case] * count)
        if model.network.slices is not None:
            self._explain_study(model, case, image[0], None if beside is None else beside[:1])
        else:
            heat = explain.cams(model, image, case.targets, self.layers, beside, self.method)
            for k in range(count):
                self.heat[case, k] = {name: maps[k] for name, maps in heat.maps.items()}
            self.completeness += heat.completeness
        self.pred[case] = model.answer(image[:1], None if beside is None else beside[:1])[0]
        if beside is not None:
            pixels, metadata = model.tensors(image[:1], beside[:1])
            assert metadata is not None
            positive = [OutputTarget(case.targets[0].output)]
            added, _ = explain.metadata_contributions(model, pixels, positive, metadata)
            self.metadata[case] = added[0].cpu().numpy()

    def _explain_study(self, model: FoldModel, case: Case, image: np.ndarray, beside: np.ndarray | None) -> None:
        study, layer = explain_slices.study_of(model, image, beside), self.layers["backbone"]
        for k, target in enumerate(case.targets):
            lost = explain_slices.effects(study, target)
            maps = explain_slices.slice_maps(model, image, target, lost, layer, beside, self.method)
            self.studies[case, k] = lost, maps

    def _stages_of(self, model: FoldModel, case: Case) -> list[explain.Stage]:
        layers = explain.stages(model.network, self.recipe.image_size)
        beside, every = self._beside(model, [case]), [layer for names in layers.values() for layer in names]
        metadata = None if beside is None else beside[0]
        return explain.feature_maps(model, self._pixels([case])[0], case.targets[0], every, metadata)

    def _deletion(self, model: FoldModel, case: Case) -> dict[str, np.ndarray]:
        image, target, beside = self._pixels([case]), case.targets[:1], self._beside(model, [case])
        if model.network.slices is not None:
            study = explain_slices.study_of(model, image[0], beside)
            return explain_slices.deletion(study, target[0], explain_slices.effects(study, target[0]))
        maps = explain.cams(model, image, target, self.layers, beside, self.method).maps
        return explain.deletion(model, image, target, np.mean(list(maps.values()), axis=0), beside)

    # --- the page -----------------------------------------------------------------------------------------

    def write(self, sheets: Sequence[Sheet], folder: Path) -> None:
        """index.html and cases.csv, with all that they name, into an empty folder."""
        sheet = Page(f"Run {self.run} of {self.competition.name}: what it looks at")
        sheet.lead = self._lead()
        matters = self._deletion_section(sheet, folder)
        for each in sheets:
            sheet.add(each.title, self._cards(each, folder))
        sheet.add("Does the map matter?", matters)
        sheet.add("Completeness", self._completeness_section())
        sheet.add("Metadata", self._metadata_section(sheet, folder))
        sheet.add("Stage by stage", self._stages_section(sheet, folder))
        sheet.add("First-layer filters", self._filters_section(sheet, folder))
        sheet.add("Inputs that the answers ask for", self._inputs_section(folder))
        sheet.footer = escape(f"Made by 07_explain.py, foldwise {__version__}; cases.csv lists every case.")
        write_csv(folder / "cases.csv", self._table(sheets))
        write_text(folder / "index.html", sheet.html())

    def _lead(self) -> str:
        method = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "ig": "integrated gradients"}[self.method]
        where = "" if self.method == "ig" else f" at {', '.join(self.layers.values())}"
        words = (
            f"Maps by {method}{where}: bright is where the evidence for the named answer lies. Every row is explained "
            "by the model that did not train on it; a wrong one for its answer, and for the truth beside it. A map "
            "shows where, not what; one that stays gray found no evidence for that answer."
        )
        if self.studies:
            words += (
                " Bars: the evidence that goes when a slice is left out, first slice to last; then the slices that "
                "count the most, their maps on one scale."
            )
        return page.text(words)

    def _table(self, sheets: Sequence[Sheet]) -> pd.DataFrame:
        """cases.csv: what the sheets show, and what the model used said of the row (a single view of it)."""
        table = cases.table(sheets)
        every = [case for sheet in sheets for case in sheet.cases]
        own = [self._own(case) for case in every]
        return table.assign(model_probability=own, file=[_file(s, k) for s in sheets for k in range(len(s.cases))])

    def _own(self, case: Case) -> float:
        """What the model that explains a case says of its answer."""
        target, pred = case.targets[0], self.pred[case]
        value = float(pred[target.output])
        return value if target.sign > 0 or self.answers.task == "regression" else 1 - value

    def _cards(self, sheet: Sheet, folder: Path) -> str:
        strips, words, cards = [], [], []
        for k, (case, image) in enumerate(zip(sheet.cases, self._pixels(sheet.cases), strict=True)):
            panels = [("the image", as_picture(image))]
            for number, target in enumerate(case.targets):
                panels += self._study_panels(case, number, target.name)
                for backbone, heat in self.heat.get((case, number), {}).items():
                    label = target.name if len(self.layers) == 1 else f"{target.name}, {backbone}"
                    panels.append((f"for {label}", pictures.overlay(image, heat)))
            strip = pictures.strip([panel for _, panel in panels])
            (folder / _file(sheet, k)).write_bytes(pictures.png(strip))
            strips.append(strip)
            words.append(f"{case.id}, fold {case.fold}\n{_said(case)}")
            cards.append(self._card(case, panels, _file(sheet, k)))
        figures.save(pictures.sheet(sheet.title, strips, words), folder / f"{sheet.key}.png")
        whole = f'<p class=soft>{escape(sheet.lead)} <a href="{sheet.key}.png">{sheet.key}.png</a></p>'
        each = 1 + explain_slices.SHOWN if self.studies else len(self.layers)
        wide = 110 * max(1 + len(case.targets) * each for case in sheet.cases)
        style = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {max(258, wide)}px), 1fr))"
        return f'{whole}<div class="pairs" style="{style}">{"".join(cards)}</div>'

    def _study_panels(self, case: Case, number: int, name: str) -> list[tuple[str, np.ndarray]]:
        """What each slice adds, and those that add the most with their maps; none of a picture."""
        if (case, number) not in self.studies:
            return []
        lost, maps = self.studies[case, number]
        bars = pictures.bars(lost, [one.place for one in maps])
        shown = [(f"slice {m.place + 1}: {lost[m.place]:+.2f}", pictures.overlay(m.picture, m.heat)) for m in maps]
        return [(f"slices, for {name}", bars), *shown]

    def _card(self, case: Case, panels: Sequence[tuple[str, np.ndarray]], file: str) -> str:
        shown = "".join(
            f"<div>{page.picture(panel, f'{case.id} {name}', SHOWN)}<span class=soft>{escape(name)}</span></div>"
            for name, panel in panels
        )
        lines = [f'<a href="{file}">{escape(case.id)}</a>, fold {case.fold}', escape(_said(case))]
        group = self.copies.get(case.id)
        twins = [other for other, name in self.copies.items() if name == group and other != case.id]
        lines += [escape(f"one of {len(twins) + 1} copies, such as {twins[0]}")] if group and twins else []
        beside = self.table.loc[case.id, index.metadata_columns(self.competition)]
        facts = [f"{name} {_value(value)}" for name, value in beside.items()]
        lines += [escape(", ".join(facts))] if facts else []
        if case in self.metadata:
            added = self.metadata[case]
            top = np.argsort(-np.abs(added), kind="stable")[:3]
            lines.append(escape("metadata: " + ", ".join(f"{self.features[k]} {added[k]:+.2f}" for k in top)))
        return (
            f'<div class="pair"><div class="two">{shown}</div>{"".join(f"<div>{line}</div>" for line in lines)}</div>'
        )

    def _deletion_section(self, sheet: Page, folder: Path) -> str:
        if not self.curves:
            return ""
        curves = {order: np.concatenate([each[order] for each in self.curves]) for order in explain.ORDERS}
        quantity = "probability of the answer"
        if self.answers.task == "regression":
            curves = {order: -np.abs(values - values[:, :1]) for order, values in curves.items()}
            quantity = "minus the change of the predicted value"
        areas = {order: explain.area(values) for order, values in curves.items()}
        saved = {order: areas[order] - areas["map"] for order in ("random", "centre")}
        gain, low, high = _ends(saved["random"])
        trusted = low > 0
        words = "maps matter: deleting what they mark lowers the answer faster than at random"
        if not trusted:
            words = "do not trust these maps: deleting what they mark lowers the answer no faster than at random"
        self.verdict = f"{words} ({gain:+.3f}, {low:.3f} to {high:.3f})"
        sheet.fine = self.verdict if trusted else ""
        sheet.warnings += [] if trusted else [self.verdict]
        figure = pictures.deletion(curves, quantity, saved)
        figures.save(figure, folder / "deletion.png")
        pd.DataFrame(areas).to_csv(folder / "deletion.csv", index=False)
        words = (
            f"{'Slices' if self.studies else 'Parts'} of {counted(len(areas['map']), 'image')} (drawn at random among "
            "rows whose answer is a class that is there) are "
            f"{'left out' if self.studies else 'replaced by a blurred copy'}, most marked first. "
            "If the map shows what the answer rests "
            "on, it falls faster than when parts go at random, or from the centre outwards. Area under the curve: "
        )
        body = page.text(words + "; ".join(f"{o} {_spread(v)}" for o, v in areas.items()) + ".")
        verdicts = [
            f"smaller than {name} by {_spread(gain)}, in {np.mean(gain > 0):.0%} of the images"
            for name, gain in (("at random", saved["random"]), ("from the centre", saved["centre"]))
        ]
        return body + page.text(f"By the map it is {'; '.join(verdicts)}.") + sheet.figure(figure, "deletion curves")

    def _completeness_section(self) -> str:
        if not self.completeness:
            return ""
        total, difference = np.array(self.completeness).T
        gap = np.abs(total - difference) / np.maximum(np.abs(difference), 1e-6)
        words = (
            f"Attributions should add up to the evidence's difference between the image and its blurred copy. Over "
            f"{counted(len(gap), 'map')}: median relative gap {np.median(gap):.2%}, largest {gap.max():.2%}."
        )
        rows = [[float(a), float(b), float(abs(a - b))] for a, b in zip(total, difference, strict=True)]
        each = page.table(["sum of attributions", "difference of evidence", "gap"], rows)
        return page.text(words) + page.folded("Each map", each)

    def _metadata_section(self, sheet: Page, folder: Path) -> str:
        if not self.metadata:
            return ""
        values = pd.DataFrame(np.stack(list(self.metadata.values())), columns=self.features)
        figure = pictures.contributions(values)
        figures.save(figure, folder / "metadata.png")
        values.insert(0, "id", [case.id for case in self.metadata])
        write_csv(folder / "metadata.csv", values)
        words = (
            "Integrated gradients over the metadata features, the image held as it is, from the average row (the "
            "median where missing, no category). A dot is a row of the sheets above."
        )
        return page.text(words) + sheet.figure(figure, "metadata contributions")

    def _stages_section(self, sheet: Page, folder: Path) -> str:
        if not self.stages:
            return ""
        shown = [case for case, _ in self.stages]
        images = list(as_picture(self._pixels(shown)))
        words = (
            "Left: the image and the mean of a stage's channels (absolute values); then the channels that move the "
            "answer most, with what each adds to its evidence, to first order (activation times gradient)."
        )
        body = page.text(words, soft=True)
        for k, first in enumerate(self.stages[0][1]):
            each = [stages[k] for _, stages in self.stages]
            side = "{} x {}".format(*first.mean.shape)
            layer = first.layer if len(self.layers) > 1 else first.layer.removeprefix("backbone.")
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

    def _filters_section(self, sheet: Page, folder: Path) -> str:
        body = ""
        for name, weights in self.filters.items():
            figure = pictures.filters(weights)
            figures.save(figure, folder / f"filters_{name}.png")
            words = f"{name}: the {len(weights)} strongest filters of the first convolution, {weights.shape[1]} x "
            words += f"{weights.shape[2]} pixels, each around gray. Noise here means too little training or too much "
            words += "rate."
            body += page.text(words, soft=True) + sheet.figure(figure, "first-layer filters")
        return body

    def _inputs_section(self, folder: Path) -> str:
        if not self.inputs:
            return ""
        cells = []
        for k, (name, image, reached, pred) in enumerate(self.inputs):
            file = f"input_{k + 1}.png"
            (folder / file).write_bytes(pictures.png(image))
            says = ", ".join(f"{value:.3f}" for value in pred[:8])
            cells.append(
                f'<div class="pair">{page.picture(image, name, SHOWN)}<a href="{file}">{escape(name)}</a>: evidence '
                f"{reached:.1f}; predicted {escape(says)}</div>"
            )
        words = "Made by gradient ascent from noise, at every scale at once: what the network would like to see, not "
        words += "what is."
        return page.text(words, soft=True) + f'<div class="pairs">{"".join(cells)}</div>'


def _of(fold: int, wanted: Iterable[Case]) -> list[Case]:
    return [case for case in wanted if case.fold == fold]


def _outputs(answers: cases.Answers) -> list[OutputTarget]:
    """All that the answers can be: each class, or for and against each label, or high and low."""
    if answers.task == "multiclass":
        return [OutputTarget(k, 1, name) for k, name in enumerate(answers.names)]
    if answers.task == "regression":
        return [OutputTarget(0, sign, f"{answers.names[0]}: {word}") for word, sign in (("high", 1), ("low", -1))]
    return [OutputTarget(k, 2 * cls - 1, f"{name} = {cls}") for k, name in enumerate(answers.names) for cls in (1, 0)]


def _file(sheet: Sheet, k: int) -> str:
    return f"{sheet.key}_{k + 1:02d}.png"


def _said(case: Case) -> str:
    if len(case.targets) == 1 and case.truth != case.answer:  # a regression
        return f"true {case.truth}, predicted {case.answer}"
    if case.right:
        return f"{case.answer} ({case.probability:.3f}), right"
    return f"{case.answer} ({case.probability:.3f}); true: {case.truth} ({case.of_truth:.3f})"


def _value(value: object) -> str:
    if pd.isna(value):
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ends(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and its 95 % bootstrap interval over images."""
    rng = np.random.default_rng(0)
    draws = values[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def _spread(values: np.ndarray) -> str:
    """'0.41 (0.35 to 0.47)'."""
    mean, low, high = _ends(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
