"""Where things lie: the repository, what it writes, Kaggle's folders."""

from __future__ import annotations

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
REPOSITORY = SOURCE.parent
COMPETITIONS = SOURCE / "competitions"
RECIPES = SOURCE / "recipes"
KAGGLE = Path(os.environ.get("FOLDWISE_KAGGLE", "/kaggle"))  # elsewhere in a rehearsal
KAGGLE_INPUT = KAGGLE / "input"
KAGGLE_WORKING = KAGGLE / "working"


def output_root() -> Path:
    """Where input/derived, oof and submissions are written: FOLDWISE_ROOT, else the repository, else Kaggle's."""
    if os.environ.get("FOLDWISE_ROOT"):
        return Path(os.environ["FOLDWISE_ROOT"])
    if os.access(REPOSITORY, os.W_OK) or not KAGGLE_WORKING.is_dir():
        return REPOSITORY
    return KAGGLE_WORKING
