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
# Load the runs of a competition, move their weights, and see what the move is worth: the score on rows that did not
# choose the weights, and the interval of the gain. The last cell writes the submission through the same code as
# `python src/06_blend.py`.
#
# It needs runs: `make demo` makes the demo's; another competition is chosen with `FOLDWISE_COMPETITION=name`.

# %%
# ruff: noqa: E402
import base64
import os
import sys
from pathlib import Path

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "src" / "foldwise").is_dir())
sys.path.insert(0, str(root / "src"))

import numpy as np
import pandas as pd
from IPython.display import Image, display

from foldwise import metrics, stats
from foldwise.blend import fit_weights, trust
from foldwise.blend.assess import examine, test_table
from foldwise.blend.run_set import gather_runs
from foldwise.data import submission
from foldwise.data.competition import load_competition
from foldwise.report import blend_figures
from foldwise.report.blend import print_summary, write_blend_report

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
# ## Move the weights
# Weights that you choose while looking at the score have seen these rows, as fitted ones have. So the function below
# shows the gain over equal weights with its interval: if that holds zero, the move is not worth making.


# %%
def try_weights(**weights: float) -> None:
    """The score of hand-set weights, and the gain over equal ones with its paired bootstrap interval."""
    chosen = np.array([weights.get(name, 0.0) for name in runs.names])
    if not chosen.any():
        print("every weight is 0: there is nothing to average; move one up")
        return
    chosen = chosen / chosen.sum()
    mix, equal = np.tensordot(chosen, runs.preds, 1), runs.preds.mean(axis=0)
    draws = stats.bootstrap(metric, runs.target, [mix, equal], runs.groups, draws=300)
    scores = [metrics.score(metric, runs.target, pred) for pred in (mix, equal)]
    gain = stats.gain(draws, scores[0], scores[1], metric.greater_is_better)
    interval = f"({gain['low']:+.4f} to {gain['high']:+.4f})"
    print(f"{metric.name} {scores[0]:.4f}; over equal weights {gain['gain']:+.4f} {interval}")


try:
    import ipywidgets

    sliders = {name: ipywidgets.FloatSlider(value=1, min=0, max=3, step=0.1) for name in runs.names}
    display(ipywidgets.interactive(try_weights, **sliders))
except ImportError:  # plain cells do the same: edit and run again
    print("equal weights:    ", end="")
    try_weights(**dict.fromkeys(runs.names, 1.0))
    for name in runs.names:
        print(f"{name} doubled: ", end="")
        try_weights(**{**dict.fromkeys(runs.names, 1.0), name: 2.0})

# %% [markdown]
# ## Let nested cross-validation choose
# Every method is fitted without a fold and judged on it. The simplest within half a standard error of the best is
# taken.

# %%
blend = fit_weights(
    runs.preds,
    runs.target,
    metric,
    "auto",
    folds=runs.folds,
    groups=runs.groups,
    families=runs.families,
    names=runs.names,
    task=about.task,
)
columns = ["method", "space", "nested_score", "behind_best", "standard_error", "within"]
if blend.table:
    display(pd.DataFrame(blend.table)[columns].sort_values("behind_best").round(4).reset_index(drop=True))
print(
    f"{blend.method} ({blend.space}): nested {blend.nested_score:.4f}, 95 % interval "
    f"{blend.interval[0]:.4f} to {blend.interval[1]:.4f}; in-sample {blend.score:.4f}"
)
print(blend.note)

# %% [markdown]
# ## What it is worth

# %%
meta = examine(about, runs, blend)
print(meta["verdict"])
for line in meta["warnings"]:
    print("note:", line)
for draw in (blend_figures.gains, blend_figures.weights, blend_figures.contributions):
    figure = draw(meta)
    if figure is not None:
        display(Image(data=base64.b64decode(blend_figures.encode(figure)), width=640))

# %% [markdown]
# ## Write the submission

# %%
path = submission.write_submission(about, test_table(runs, blend), "notebook", meta)
write_blend_report(about, "notebook", runs, blend, meta)
print_summary(meta, path)
