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
# # Blending by hand, and by nested cross-validation
#
# Load the runs of a competition, move their weights, and see what the move is worth: the score, and the interval of the
# gain over the automatic blend. The last cell writes what the sliders say, through the same code as
# `python src/06_blend.py --weights`.
#
# It needs runs: `make demo` makes the demo's; another competition is chosen with `FOLDWISE_COMPETITION=name`.

# %%
# ruff: noqa: E402
import os
import sys
from pathlib import Path

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "src" / "foldwise").is_dir())
sys.path.insert(0, str(root / "src"))

import pandas as pd
from IPython.display import Image, display

from foldwise.blend import trust
from foldwise.blend.assess import examine
from foldwise.blend.by_hand import ByHand
from foldwise.blend.run_set import gather_runs
from foldwise.data.competition import load_competition
from foldwise.report import blend_figures, figures
from foldwise.report.blend import print_summary, write_blend

about = load_competition(os.environ.get("FOLDWISE_COMPETITION", "demo"))
runs = gather_runs(about)
metric = about.scorer()
print(len(runs.names), "runs,", runs.preds.shape[1], "rows, metric", metric.name)

# %% [markdown]
# ## The runs, one by one
# `ranked in folds` well above `raw` would mean that the folds' models are on different scales.

# %%
table = pd.DataFrame(trust.fold_ranks(metric, runs.target, runs.preds, runs.folds), index=runs.names)
display(table.round(4))

# %% [markdown]
# ## Let nested cross-validation choose
# Every method is fitted without a fold and judged on it. The simplest within half a standard error of the best is
# taken.

# %%
hand = ByHand(runs, metric, about.task)
blend = hand.automatic
columns = ["method", "space", "nested_score", "behind_best", "standard_error", "within"]
if blend.table:
    display(pd.DataFrame(blend.table)[columns].sort_values("behind_best").round(4).reset_index(drop=True))
print(
    f"{blend.method} ({blend.space}): nested {blend.nested_score:.4f}, 95 % interval "
    f"{blend.interval[0]:.4f} to {blend.interval[1]:.4f}; in-sample {blend.score:.4f}"
)
print(blend.note)

# %% [markdown]
# ## Move the weights
# A slider a run, and the space that they act in. Weights that you choose while looking at the score have seen these
# rows, so the line below shows the gain over the automatic blend with its interval: if that holds zero, the move is
# not worth making. The app's page *Weights* (`make app`) is the same.

# %%
chosen = {"space": blend.space if blend.space in hand.spaces else hand.spaces[0], **hand.start}


def by_hand(space: str, **weights: float) -> None:
    """What these weights are worth, beside the automatic ones; they are kept for the last cell."""
    chosen.update(weights, space=space)
    if not any(weights.values()):
        print("every weight is 0: there is nothing to average; move one up")
        return
    mine = hand.blend(weights, space)
    print(hand.says(mine))
    both = {"by hand": mine.weights}
    if blend.weights.ndim == 1:
        both[f"automatic ({blend.method})"] = blend.weights
    display(pd.DataFrame(both, index=runs.names).round(3))


try:
    import ipywidgets
except ImportError:  # the same without sliders: edit `chosen` and run this cell again
    by_hand(**chosen)
else:
    sliders = {name: ipywidgets.FloatSlider(value=value, min=0, max=1, step=0.01) for name, value in hand.start.items()}
    space = ipywidgets.Dropdown(options=hand.spaces, value=chosen["space"], description="averaged as")
    display(ipywidgets.interactive(by_hand, space=space, **sliders))

# %% [markdown]
# ## What the automatic blend is worth

# %%
meta = examine(about, runs, blend)
print(meta["verdict"])
for line in meta["warnings"]:
    print("note:", line)
for draw in (blend_figures.gains, blend_figures.weights, blend_figures.contributions):
    figure = draw(meta)
    if figure is not None:
        display(Image(figures.png(figure)))

# %% [markdown]
# ## Write this blend
# What the sliders say now, through the same code as `python src/06_blend.py --weights`.

# %%
weights = {name: chosen[name] for name in runs.names}
mine = hand.blend(weights, chosen["space"], draws=1000)
path, meta = write_blend(about, "notebook", runs, mine, automatic=blend)
print_summary(meta, path)
