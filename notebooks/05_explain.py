# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where was the model wrong, and what did it look at?
#
# The worst out-of-fold errors of a run with class activation maps (CAM), each made by the model that did not train on
# that row: a map of a memorised image explains memory. `python src/07_explain.py --run <run>` writes the whole page;
# this notebook turns its pieces over by hand.
#
# It needs a run of `src/02_train.py`; `FOLDWISE_COMPETITION` and `FOLDWISE_RUN` choose which.

# %%
# ruff: noqa: E402
import os
import sys
from pathlib import Path

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "src" / "foldwise").is_dir())
sys.path.insert(0, str(root / "src"))

import numpy as np
from IPython.display import HTML, Image, display

from foldwise.data import cache, index
from foldwise.data.competition import load_competition
from foldwise.data.runs import load_run, recipe_of
from foldwise.model import explain, fold_models
from foldwise.report import cases, figures, page
from foldwise.report import explain_figures as pictures

about = load_competition(os.environ.get("FOLDWISE_COMPETITION", "demo"))
trained = sorted(
    path.parent.name for path in about.runs().glob("*/fold0.safetensors") if (path.parent / "oof.csv").exists()
)
run = os.environ.get("FOLDWISE_RUN") or ("demo" if "demo" in trained else trained[0])
recipe = recipe_of(about, run)
table = index.load_index(about)
rows = table[table["split"] == "train"].set_index("id", drop=False)
images = cache.load_cache(about, recipe.image_size, recipe.crop)
found = cases.answers(about, load_run(about, run).oof)
print(f"{run}: {recipe.model.name} at {recipe.image_size} px, {len(found.table)} out-of-fold answers")

# %% [markdown]
# ## The errors
# `probability` is the answer's. A binary answer is 1 above the threshold that calls as many rows 1 as there are.

# %%
sheets = cases.sheets(found, ["worst", "right"], 6)
display(cases.table(sheets).round(3))

# %% [markdown]
# ## What each fold's model looked at
# For every case the image, and the map of the evidence for the model's answer; where that was wrong, also for the
# truth. The brighter, the more the evidence hangs on that place.


# %%
def model_of(fold: int) -> fold_models.FoldModel:
    """The model of a fold, ready to be asked."""
    if fold not in models:
        models[fold] = fold_models.load_fold(about, recipe, run, fold, table)
    return models[fold]


def pixels(case: cases.Case) -> np.ndarray:
    """uint8 (S, S, 3) as the model takes it."""
    return images.read(images.rows("train", [case.id]))[0]


def heat(case: cases.Case) -> list[np.ndarray]:
    """A map (S, S) in 0..1 for each of the case's targets."""
    model = model_of(case.fold)
    image = np.repeat(pixels(case)[None], len(case.targets), axis=0)
    beside = model.metadata(rows.loc[[case.id] * len(case.targets)])
    layers = explain.cam_layers(model.network, recipe.image_size)
    made = explain.cams(model, image, case.targets, layers, beside)
    return list(np.mean(list(made.maps.values()), axis=0))


models = {}
for sheet in sheets:
    readable = [case for case in sheet.cases if images.rows("train", [case.id])[0] >= 0]
    cards = []
    for case in readable:
        maps = [pictures.overlay(pixels(case), one) for one in heat(case)]
        words = f"{case.id}: {case.answer}, p {case.probability:.2f}" + ("" if case.right else f"; truth {case.truth}")
        shown = page.picture(pictures.strip([pixels(case), *maps]), words, 120)
        cards.append(f'<figure style="margin:6px">{shown}<figcaption>{page.escape(words)}</figcaption></figure>')
    display(HTML(f'<h3>{sheet.title}</h3><div style="display:flex;flex-wrap:wrap">{"".join(cards)}</div>'))

# %% [markdown]
# ## Does the map matter?
# Parts of the image give way to a blurred copy: by the map's order, at random, and from the centre outwards. If the
# answer falls faster in the map's order, the model did use what the map marks. A network trained for a moment, or on
# tiny images, often fails this test; then its maps are pictures, and no explanation.

# %%
curves = []
for case in cases.sample(found, 8):
    if images.rows("train", [case.id])[0] >= 0:
        model = model_of(case.fold)
        beside = model.metadata(rows.loc[[case.id]])
        curves.append(explain.deletion(model, pixels(case)[None], case.targets[:1], heat(case)[0][None], beside))
orders = {order: np.concatenate([one[order] for one in curves]) for order in curves[0]}
areas = {order: explain.area(values) for order, values in orders.items()}
saved = {order: areas[order] - areas["map"] for order in orders if order != "map"}
display(Image(figures.png(pictures.deletion(orders, "probability of the answer", saved))))
for order, values in saved.items():
    spread = values.std(ddof=1)
    print(f"area saved by the map against {order}: {values.mean():+.3f} (sd {spread:.3f}, {len(values)} images)")
