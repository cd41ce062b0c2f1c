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
# # From the raw competition to a submission, on Kaggle
#
# Paste this notebook's cells into a Kaggle notebook, or upload it; it runs here unchanged on the demo. What to set in
# Kaggle's sidebar, the two GPUs and weights without internet are described step by step in `docs/kaggle.md`.
#
# | on Kaggle | where |
# |---|---|
# | the competition's files, read-only | `/kaggle/input/competitions/<name>` or `/kaggle/input/<name>` |
# | this repository, attached as a dataset | `/kaggle/input/<your name for it>` |
# | weights without internet: a dataset that holds `<model name>.safetensors` or `.pth` | found by its file name |
# | the output of an earlier session, attached | `/kaggle/input/<that notebook>` |
# | everything that is written: `input/derived`, `oof`, `submissions` | `/kaggle/working` |

# %% [markdown]
# ## Settings
# The only cell to change.

# %%
# ruff: noqa: E402
import os
import shutil
import subprocess
import sys
from pathlib import Path

COMPETITION = os.environ.get("FOLDWISE_COMPETITION", "demo")  # a name in src/competitions, or the path of a .yaml
HOURS = 11.5  # of the 12 that a session has: the rest is for saving the version
SIZE, RECIPE = 256, ["--recipe", "baseline"]
if COMPETITION == "demo":
    SIZE, RECIPE = 64, ["--recipe", "demo", "train.epochs=2"]

# %% [markdown]
# ## The repository
# Attached as a dataset, cloned into the working folder (`!git clone <address>`), or, at home, the folder above.

# %%
KAGGLE_INPUT = Path("/kaggle/input")
mounted = [folder for depth in ("*", "*/*", "*/*/*") for folder in KAGGLE_INPUT.glob(depth)]
homes = [Path.cwd(), *Path.cwd().parents, *Path.cwd().glob("*"), *mounted]
repository = next((folder for folder in homes if (folder / "src" / "foldwise").is_dir()), None)
if repository is None:
    raise SystemExit("Foldwise is neither here nor in /kaggle/input: attach it as a dataset, or clone it")
sys.path.insert(0, str(repository / "src"))
# On Kaggle, once, with internet on:  %pip install -q -r {repository}/requirements.txt
# Without internet: attach a dataset of wheels, and  %pip install -q --no-index --find-links /kaggle/input/<it> ...


def step(script: str, *arguments: object) -> int:
    """`python src/<script> <arguments>`, its lines shown as they come.

    Returns 0, or 75 where --hours ended it in time with everything saved. Anything else stops the notebook.
    """
    line = [sys.executable, str(repository / "src" / script), "--competition", COMPETITION, *map(str, arguments)]
    print("$ python", *line[1:], flush=True)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for text in process.stdout:
            print(text, end="", flush=True)
    if process.returncode not in (0, 75):
        raise RuntimeError(f"{script} ended with status {process.returncode}; its last line says why")
    return process.returncode


# %% [markdown]
# ## Continue an earlier session
# Attach the output of the notebook's last version (*Add input*, *Notebook output*). Its folds, caches, finished folds
# and checkpoints are copied to where the steps below look for them; they then go on where that session stopped.


# %%
def take_over(saved: Path, root: Path) -> list[str]:
    """Copy input/derived and oof of an earlier session to this one's root; what is there already stays as it is."""
    copied = []
    for part in (Path("input") / "derived", Path("oof")):
        for file in sorted(path for path in (saved / part).rglob("*") if path.is_file()):
            target = root / file.relative_to(saved)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                copied.append(str(file.relative_to(saved)))
    return copied


from foldwise.core import paths
from foldwise.data.competition import load_competition

root = paths.output_root()
attached = [*KAGGLE_INPUT.glob("*/oof"), *KAGGLE_INPUT.glob("*/*/*/oof")]
sessions = [folder.parent for folder in attached if folder.parent != repository]
for saved in sessions:
    print(f"{saved}: {len(take_over(saved, root))} files taken over")
print(f"{len(sessions)} earlier sessions attached; writing to {root}")

# %% [markdown]
# ## Raw files to index, folds and images

# %%
if COMPETITION == "demo" and not (root / "input" / "demo").is_dir():
    subprocess.run([sys.executable, str(repository / "src" / "00_demo.py")], check=True)
step("01_preprocess.py", "--sizes", SIZE)

# %% [markdown]
# ## One fold first
# A fold costs a fifth of all, and says most of what there is to know about a recipe.

# %%
status = step("02_train.py", *RECIPE, f"image_size={SIZE}", "--name", "first", "--fold", 0, "--hours", HOURS)

# %% [markdown]
# Its learning curves: is it still getting better at the end, or has it begun to learn the training rows by heart?

# %%
from IPython.display import Image, display

from foldwise.data import oof
from foldwise.data.runs import load_run
from foldwise.report import curves, figures

about = load_competition(COMPETITION)
folder = about.runs() / "first"
logs = curves.read(folder)
if logs:
    display(Image(figures.png(curves.figure(logs, about.metric))))

# %% [markdown]
# ## All folds
# On T4 x2 they train two at a time. Fold 0 is there already and is not trained again. Status 75 means that the hours
# were over: save this version, attach its output to the next, and run it again.

# %%
status = step("02_train.py", *RECIPE, f"image_size={SIZE}", "--name", "first", "--fold", "all", "--hours", HOURS)
if status == 75:
    raise SystemExit("the session's hours are over and everything is saved: continue in the next one")

# %% [markdown]
# ## Out-of-fold predictions
# Each training row as predicted by the model that never saw it: what every decision from here on is judged by.

# %%
run = load_run(about, "first")
display(run.oof.head())
print(f"{about.metric} out-of-fold {oof.score(about, run.oof):.4f} on {len(run.oof)} rows")

# %% [markdown]
# ## Metadata, then the blend and the submission
# More recipes first, if there is time: each is a line like the one above with another `--name`.

# %%
if about.metadata.numeric or about.metadata.categorical or about.dicom_tags:
    step("03_metadata.py")
step("06_blend.py", "--name", "kaggle")
step("10_report.py")

# %% [markdown]
# `submission.csv` in the working folder is what Kaggle's *Submit* button takes.

# %%
made = about.submissions() / "kaggle.csv"
if Path("/kaggle/working").is_dir():
    shutil.copyfile(made, "/kaggle/working/submission.csv")
print(made.read_text()[:200])
