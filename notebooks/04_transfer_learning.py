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
# # Transfer learning: four ways to use pretrained weights, side by side
#
# | way | `model.mode` | what trains |
# |---|---|---|
# | from scratch | `scratch` | everything, from random weights |
# | feature extraction | `frozen` | only the head; the backbone stays, its batch-norm statistics too |
# | partial | `partial` | from one layer on: early layers see edges and colours, which are the same everywhere |
# | fine-tuning | `finetune` | everything, from the pretrained weights |
#
# Each is a run of `python src/02_train.py --fold 0`, so everything else is equal: rows, images, epochs. On the demo it
# takes half a minute.

# %% [markdown]
# ## Settings
# For your own competition: run `python src/01_preprocess.py --competition <name> --sizes 224` first, start Jupyter with
# `FOLDWISE_COMPETITION=<name>`, and give `BASE` the recipe, `LAYER` the name of the first layer that trains in the
# partial mode (a misspelt one is answered with the nearest), and more epochs. Where the recipe's model is not in a
# local file, its weights are fetched once.

# %%
# ruff: noqa: E402
import os
import runpy
import sys
import tempfile
from pathlib import Path

here = Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "src" / "foldwise").is_dir())
sys.path.insert(0, str(root / "src"))

import pandas as pd
from IPython.display import Image, display

from foldwise.core import parallel
from foldwise.data import index
from foldwise.data.competition import load_competition
from foldwise.data.runs import recipe_of
from foldwise.report import curves, figures, results

parallel.tune_allocator()  # before torch is loaded
from foldwise.model.finetune import count_parameters
from foldwise.model.network import create_network

COMPETITION = os.environ.get("FOLDWISE_COMPETITION", "demo")
BASE, LAYER, SIZE = ["--recipe", "baseline", "train.epochs=5"], "blocks.5", 224
WEIGHTS = Path(os.environ.get("FOLDWISE_SHARED", root.parent / "shared")) / "weights" / "mobilenetv2_100.safetensors"
if COMPETITION == "demo" and WEIGHTS.exists():
    SIZE = 64
    BASE = ["--recipe", "mobilenetv2", f"model.weights={WEIGHTS}", "train.epochs=4", "train.batch_size=16"]
elif COMPETITION == "demo":  # no ImageNet weights here: a small network learns on another hospital's images, below
    SIZE, LAYER = 64, "layer3"
    BASE = ["--recipe", "demo", "model.pretrained=true", "train.epochs=4", "train.batch_size=16", "train.lr=1e-3"]


# %%
def step(script: str, *arguments: object) -> None:
    """`python src/<script> <arguments>` inside this process, so that torch is loaded once."""
    sys.argv = [str(root / "src" / script), *map(str, arguments)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{script} ended with status {end.code}; its last line says why") from None


# %% [markdown]
# ## Weights from elsewhere
# With ImageNet weights at hand this cell does nothing. Without, it makes a demo competition of other patients,
# trains on it from scratch, and keeps that network's backbone as the pretrained one.

# %%
if COMPETITION == "demo" and not WEIGHTS.exists():
    from safetensors.torch import load_file, save_file

    from foldwise import demo

    elsewhere, home = Path(tempfile.mkdtemp()), os.environ.get("FOLDWISE_ROOT")
    os.environ["FOLDWISE_ROOT"] = str(elsewhere)
    demo.make_demo(images=300, seed=1, root=elsewhere)
    step("01_preprocess.py", "--sizes", SIZE)
    step("02_train.py", "--recipe", "demo", "--fold", 0, f"image_size={SIZE}", "train.epochs=6")
    os.environ.pop("FOLDWISE_ROOT") if home is None else os.environ.update(FOLDWISE_ROOT=home)
    learnt = load_file(elsewhere / "oof" / "demo" / "demo" / "fold0.safetensors")
    backbone = {key.removeprefix("backbone."): one for key, one in learnt.items() if key.startswith("backbone.")}
    save_file(backbone, elsewhere / "pretrained.safetensors")
    BASE.append(f"model.weights={elsewhere / 'pretrained.safetensors'}")

# %% [markdown]
# ## Train fold 0 in each way
# A new head on a frozen backbone bears a higher learning rate than weights that are already good.

# %%
WAYS = {
    "scratch": ["model.mode=scratch", "model.weights=null"],
    "frozen": ["model.mode=frozen", "train.lr=1e-2"],
    "partial": ["model.mode=partial", f"model.unfreeze_from={LAYER}"],
    "finetune": ["model.mode=finetune"],
}
step("01_preprocess.py", "--competition", COMPETITION, "--sizes", SIZE)
for way, settings in WAYS.items():
    run = ["--name", f"transfer_{way}", "--fold", 0, "--restart"]
    step("02_train.py", "--competition", COMPETITION, *BASE, *run, f"image_size={SIZE}", *settings)

# %% [markdown]
# ## Curves

# %%
about = load_competition(COMPETITION)
logs = {way: curves.read(about.runs() / f"transfer_{way}")[0] for way in WAYS}
display(Image(figures.png(curves.figure(logs, about.metric))))

# %% [markdown]
# ## What each costs and brings
# The interval is of fold 0's rows alone (bootstrap, whole groups drawn): on few rows it is wide, and ways whose
# intervals overlap much are not told apart by one fold. `--fold all`, and several seeds, tell more.

# %%
outputs = max(1, len(index.classes(about, index.load_index(about))))
rows = []
for one in results.gather(about, [f"transfer_{way}" for way in WAYS]):
    learn, every = count_parameters(create_network(recipe_of(about, one.run), outputs))
    log = logs[one.run.removeprefix("transfer_")]
    rows.append(
        {
            "way": one.run.removeprefix("transfer_"),
            "parameters that train": f"{learn:,}",
            "of": f"{every:,}",
            "seconds an epoch": log["seconds"].mean(),
            "epoch that predicts": int(curves.chosen(log)["epoch"]),
            f"fold 0 {about.metric}": one.score,
            "95 % interval": f"{one.low:.3f} to {one.high:.3f}",
        }
    )
display(pd.DataFrame(rows).round(3).set_index("way"))
