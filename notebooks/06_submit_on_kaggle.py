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
# # Predict the hidden test set by a bundle, offline
#
# `python src/11_bundle.py --submission NAME --out DIR` fills in the settings and puts this notebook into the bundle;
# `docs/kaggle.md` is the walk. The bundle is a dataset with the code, the models and the blend: nothing is fetched. A
# valid `submission.csv` lies there within seconds and is replaced as the predictions come in; what the hours do not
# hold is left out, what is worth least first.

# %%
import os
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.time()
HOURS = 8.75  # of the rerun's 9: the rest is for starting up and for the last write
DATASET, SUBMISSION, COMPETITION = "foldwise-demo-blend", "blend", "demo"
KAGGLE = Path(os.environ.get("FOLDWISE_KAGGLE", "/kaggle"))
OUT = KAGGLE / "working" / "submission.csv"

# %% [markdown]
# ## Where the dataset is mounted
# Kaggle has two ways for datasets, and three for competitions; the second is the package's business.

# %%
places = [KAGGLE / "input" / DATASET, *sorted((KAGGLE / "input" / "datasets").glob(f"*/{DATASET}"))]
bundle = next((place for place in places if (place / "code" / "src" / "05_predict.py").is_file()), None)
if bundle is None:
    raise SystemExit(f"rule dataset: '{DATASET}' is not mounted under {KAGGLE / 'input'}: attach it, or mend DATASET")

# %% [markdown]
# ## Wheels that the image lacks, if the bundle has any

# %%
wheels = sorted(map(str, (bundle / "wheels").glob("*.whl")))
if wheels and "FOLDWISE_REHEARSAL" not in os.environ:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels]
    subprocess.run(pip, check=False)  # what can't be installed costs the files that need it, not the submission

# %% [markdown]
# ## Predict

# %%
env = {**os.environ, "FOLDWISE_ROOT": str(bundle / "root"), "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
command = [sys.executable, str(bundle / "code" / "src" / "05_predict.py")]
command += ["--competition", str(bundle / "code" / "src" / "competitions" / f"{COMPETITION}.yaml")]
command += ["--submission", SUBMISSION, "--out", str(OUT), "--hours", str(HOURS), "--started", str(STARTED)]
status = subprocess.run([*command, *os.environ.get("FOLDWISE_REHEARSAL", "").split()], env=env).returncode
if status:
    print(f"05_predict.py ended with status {status}; what it wrote before counts", file=sys.stderr)
if not OUT.exists() or (status and "FOLDWISE_REHEARSAL" in os.environ):
    sys.exit(status)
