"""A run's fold models, loaded again: predictions and embeddings of cached rows, and of any folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from foldwise import UserError
from foldwise.core.files import digest, file_digest, read_sealed
from foldwise.core.pieces import Piece
from foldwise.data import cache, folds, index
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.data.encoder import Numbers
from foldwise.data.recipe import Recipe, recipe_settings
from foldwise.data.runs import check_folds, fold_meta
from foldwise.model import precision, targets, weights
from foldwise.model.finetune import load_weights
from foldwise.model.network import Network, create_network
from foldwise.model.precision import Precision
from foldwise.model.predict import activate, embed_rows, pick_device, predict_readable, predict_rows, say_unreadable
from foldwise.model.targets import Targets

Preds = dict[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class FoldModel:
    """One fold's model: networks (one, or several snapshots) in evaluation mode on the device, and what goes with them.

    encoder: metadata columns -> features, where the network is fused with them. prior: float32 (C,), the training
    rows' mean target.
    """

    competition: Competition
    recipe: Recipe
    fold: int
    targets: Targets
    networks: list[Network]
    encoder: Numbers | None
    precision: Precision
    prior: np.ndarray

    @property
    def network(self) -> Network:
        """The network, or the last of several snapshots."""
        return self.networks[-1]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.network.parameters()).device

    def metadata(self, rows: pd.DataFrame | None) -> np.ndarray | None:
        """Features float32 (N, F) of index rows for a fusion network, else None."""
        if self.encoder is None:
            return None
        if rows is None:
            raise UserError("this run fuses metadata with the image: its columns are needed")
        return self.encoder.transform(rows)

    def predict(self, images: Cache, cache_rows: np.ndarray, rows: pd.DataFrame, label: str = "predict") -> np.ndarray:
        """float32 (N, C) probabilities of index rows that lie in the cache at `cache_rows` (-1: unreadable)."""
        beside, how = self.metadata(rows), self.precision
        return predict_rows(
            self.networks, images, cache_rows, self.targets, self.recipe, label, beside, how, self.prior
        )

    def predict_readable(
        self, images: Cache, cache_rows: np.ndarray, rows: pd.DataFrame, label: str = "predict"
    ) -> np.ndarray:
        """As `predict`, of rows that all have an image."""
        beside, how = self.metadata(rows), self.precision
        return predict_readable(self.networks, images, cache_rows, self.targets, self.recipe, label, beside, how)

    def embed(self, images: Cache, cache_rows: np.ndarray, rows: pd.DataFrame, label: str = "embed") -> np.ndarray:
        """float32 (N, D) features before the classifier, of the last snapshot; zeros where unreadable."""
        return embed_rows(self.network, images, cache_rows, self.recipe, label, self.metadata(rows))

    @property
    def features(self) -> list[str]:
        """Names of the metadata features that the networks take."""
        return [] if self.encoder is None else self.encoder.names

    def tensors(self, images: np.ndarray, metadata: np.ndarray | None = None) -> tuple[Tensor, Tensor | None]:
        """Both on the networks' device."""
        pixels = torch.from_numpy(images).to(self.device)
        return pixels, None if metadata is None else torch.from_numpy(metadata).to(self.device)

    def answer(self, images: np.ndarray, metadata: np.ndarray | None = None, batch: int = 32) -> np.ndarray:
        """float32 (N, C) predictions of the last snapshot for images uint8 (N, S, S, 3) and metadata float32 (N, F)."""
        parts = []
        with torch.inference_mode():
            for k in range(0, len(images), batch):
                beside = None if metadata is None else metadata[k : k + batch]
                logits = self.network(*self.tensors(images[k : k + batch], beside))
                parts.append(activate(logits, self.targets).cpu().numpy())
        return np.concatenate(parts)

    def evidence(self, logits: Tensor) -> Tensor:
        """What gradients are of, (B, C): the logits, or the predictions' log-odds where outputs are not one for one."""
        if self.targets.fold is None and self.targets.activation in {"softmax", "sigmoid", "identity"}:
            return logits.float()
        return torch.logit(activate(logits, self.targets), eps=1e-6)  # finite where a probability is 0 or 1


def load_fold(competition: Competition, recipe: Recipe, run: str, fold: int, table: pd.DataFrame) -> FoldModel:
    """The model of one fold of a run, on the device; UserError where its weights are not there. `table`: the index."""
    stem = competition.runs() / run / f"fold{fold}"
    plan = targets.plan(competition, recipe, table, weights.classes_of(stem.with_suffix(".safetensors")))
    encoder = _encoder(stem.with_name(f"{stem.name}_metadata.json")) if recipe.model.metadata else None
    files = sorted(stem.parent.glob(f"{stem.name}_snapshot*.safetensors")) or [stem.with_suffix(".safetensors")]
    device = pick_device(recipe)
    meta = fold_meta(stem.parent, fold)
    how = precision.named(str(meta.get("precision", meta.get("step", ""))), recipe, device)  # step: as it was called
    networks, features = [], 0 if encoder is None else len(encoder.names)
    for path in files:
        if not path.exists():
            raise UserError(f"{path}: not there; train it with 02_train.py --fold {fold}")
        network = create_network(recipe, plan.outputs, features, plan.learnt, pretrained=False)
        weights.check_classes(path, plan.learnt)
        load_weights(network, path)
        networks.append(how.to_memory_format(network.to(device)).eval())
    fold_table = folds.load_folds(competition)
    others = folds.rows(table, fold_table)[(fold_table["fold"] != fold).to_numpy()]
    prior = index.prior(competition, others, plan.names)
    return FoldModel(competition, recipe, fold, plan, networks, encoder, how, prior)


def _encoder(path: Path) -> Numbers:
    try:
        return Numbers.from_state(read_sealed(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: can't be read ({type(error).__name__}: {error}); train the fold anew with --restart"
        ) from None


def made_of(competition: Competition, recipe: Recipe, run: str) -> str:
    """A hash of what a run's predictions are made of: settings, weights, rows and folds, pixels."""
    derived, folder = competition.derived(), competition.runs() / run
    cached = cache.load_cache(competition, recipe.image_size, recipe.crop).path
    files = [derived / "index.parquet", derived / "folds.csv", cached.with_suffix(".json")]
    files += sorted(folder.glob("fold*.safetensors")) + sorted(folder.glob("fold*_metadata.json"))
    return digest([recipe_settings(recipe), *map(file_digest, files)])


def predict_folds(
    competition: Competition,
    recipe: Recipe,
    run: str,
    table: pd.DataFrame,
    fold_table: pd.DataFrame,
    piece: Piece = lambda name, make: make(),
) -> Preds:
    """{fold: (valid, test)} predictions of every fold that has weights, in the order oof.write_folds takes; `piece`
    keeps each half."""
    check_folds(competition, run, fold_table)
    images = cache.load_cache(competition, recipe.image_size, recipe.crop)
    train, test = folds.rows(table, fold_table), table[table["split"] == "test"]
    preds: Preds = {}
    for fold in trained_folds(competition, run):
        model = load_fold(competition, recipe, run, fold, table)
        valid = train[(fold_table["fold"] == fold).to_numpy()]
        say_unreadable("test", test["id"].tolist(), images.rows_of(test) >= 0)
        half = {
            part: piece(
                f"fold{fold}_{part}", partial(model.predict, images, images.rows_of(rows), rows, f"fold {fold} {part}")
            )
            for part, rows in (("valid", valid), ("test", test))
        }
        preds[fold] = (half["valid"], half["test"])
    return preds


def trained_folds(competition: Competition, run: str) -> list[int]:
    """Folds of a run whose weights are there; UserError where there are none."""
    folder = competition.runs() / run
    trained = sorted(int(path.stem[4:]) for path in folder.glob("fold*.safetensors") if path.stem[4:].isdigit())
    if not trained:
        raise UserError(f"{folder}: holds no fold<K>.safetensors; train the run with 02_train.py")
    return trained
