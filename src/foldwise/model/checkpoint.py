"""Checkpoints written whole; a damaged one is told apart, and the one before it serves."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from foldwise.core.cli import note
from foldwise.core.files import replacing


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` under a temporary name; the checkpoint that lay there is kept as <path>.before until the next."""
    with replacing(path) as part:
        torch.save(state, part)
        if path.exists():
            path.replace(_before(path))


def load(path: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, read without running code in it; None where there is none."""
    for candidate in (path, _before(path)):
        if not candidate.exists():
            continue
        try:
            with zipfile.ZipFile(candidate) as archive:  # torch.load does not check the sums
                broken = archive.testzip()
            if broken is None:
                return torch.load(candidate, map_location="cpu", weights_only=True)
            reason = f"{broken} is corrupt"
        except Exception as error:  # zip, zlib and torch each have their own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        fallback = "; the one before it is taken" if candidate == path and _before(path).exists() else ""
        note(f"warning: {candidate} is damaged ({reason}){fallback}")
    return None


def exists(path: Path) -> bool:
    """Whether a checkpoint, whole or not, lies there."""
    return path.exists() or _before(path).exists()


def remove(path: Path) -> None:
    """Take it away, with the one before and what a kill left half written."""
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")
