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
# # Looking at a competition before training
#
# The pieces of `report.html`, to turn over by hand. Run `python src/01_preprocess.py` first; another competition is
# chosen with `FOLDWISE_COMPETITION=name`. What the demo hides: copies of one photograph under two patients, in train
# and across train and test.

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
from matplotlib.figure import Figure

from foldwise.audit import drift
from foldwise.audit.duplicates import load_audit
from foldwise.data import cache, folds, index
from foldwise.data.competition import load_competition
from foldwise.report import figures, page
from foldwise.report.survey import Survey

about = load_competition(os.environ.get("FOLDWISE_COMPETITION", "demo"))
table, fold_table = index.load_index(about), folds.load_folds(about)
sizes = cache.sizes(about)
survey = Survey(about, table, fold_table, cache.load_cache(about, sizes[0]), sizes, load_audit(about, table))
print(f"{about.name}: {len(survey.train)} training images in {fold_table['group'].nunique()} groups; sizes {sizes}")

# %% [markdown]
# ## What is asked, and what the images look like


# %%
def show(rows: np.ndarray, height: int = 96) -> None:
    """Images of the cache by their row numbers in the index."""
    pixels = survey.images.read(rows)
    shown = [page.picture(one, name, height) for one, name in zip(pixels, table["id"].iloc[rows], strict=True)]
    display(HTML(f'<div style="display:flex;flex-wrap:wrap;gap:4px">{"".join(shown)}</div>'))


def draw(figure: Figure) -> None:
    """A figure as the report shows it."""
    display(Image(figures.png(figure)))


if about.task == "regression":
    draw(figures.target_histogram(survey.train["target"], str(about.target)))
else:
    draw(figures.class_balance(survey.counts, len(survey.train)))
for name in survey.counts.index[:6]:
    print(name)
    show(survey.train.index[survey.members(name)][:9].to_numpy())

# %% [markdown]
# ## Copies
# Pairs within train were merged into one group before the folds were made; pairs across train and test are only
# reported. `agreement` is the correlation of the fine structure after the best shift and zoom.

# %%
if survey.audit is not None:
    display(survey.audit.pairs.head(20))
    print("\n".join(survey.audit.warnings(table, fold_table)) or "no copies")
    for pair in survey.audit.pairs.tail(3).itertuples():
        show(np.array([survey.row(pair.split_a, pair.id_a), survey.row(pair.split_b, pair.id_b)]), 160)

# %% [markdown]
# ## Light and colour
# A model will use what differs here between the classes, whether it has to do with them or not.

# %%
draw(figures.light(survey.statistics, table["split"], figures.SPLITS))

# %% [markdown]
# ## Metadata against the target

# %%
columns = [name for name in index.metadata_columns(about) if survey.train[name].notna().any()][:4]
if columns:
    asked = list(survey.truth)[:3]
    frames = {name: figures.by_value(survey.train[name], survey.truth[asked]) for name in columns}
    base = [float(survey.truth[name].mean()) for name in asked]
    draw(figures.against_target(frames, asked, base, about.task != "regression"))

# %% [markdown]
# ## Drift and leaks
# `target`: how well the column alone predicts the target out of fold. `split`: how well it tells test rows from
# training rows. Both are AUCs (R² for a regression target): 0.5 is nothing.

# %%
display(survey.compared.round(3))
print("\n".join(drift.warnings(survey.compared)) or "no warnings")
for one in survey.adversaries:
    print(f"train against test by {one.name}: AUC {one.auc}")
