"""An epoch's numbers for those who watch: TensorBoard, and wandb where asked; fold<K>_log.csv is always there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foldwise import UserError
from foldwise.data.recipe import Recipe


class Logger:
    """Writers of one fold, made when the recipe asks for them."""

    def __init__(self, recipe: Recipe, folder: Path, fold: int) -> None:
        self.fold, self.board, self.wandb = fold, None, None
        if recipe.train.tensorboard:
            self.board = _tensorboard(folder / "tensorboard" / f"fold{fold}")
        if recipe.train.wandb:
            self.wandb = _wandb(recipe, folder, fold)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """One epoch's scalars."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
        if self.wandb is not None:
            self.wandb.log({f"fold{self.fold}/{name}": value for name, value in values.items()}, step=epoch)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard=true: pip install tensorboard first, or leave it out") from None
    return SummaryWriter(str(folder))


def _wandb(recipe: Recipe, folder: Path, fold: int) -> Any:
    import os

    os.environ.setdefault("WANDB_MODE", "offline")  # nothing leaves the machine unless the user says so
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb=true: pip install wandb first, or leave it out") from None
    return wandb.init(
        project="foldwise",
        group=folder.name,
        name=f"{folder.name}-fold{fold}",
        dir=str(folder),
        config=recipe.model_dump(mode="json"),
        resume="allow",
        id=f"{folder.name}-fold{fold}",
        reinit=True,
    )
