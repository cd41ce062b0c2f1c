"""What a network learns, and how its outputs become the competition's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from foldwise import UserError
from foldwise.core.schema import nearest
from foldwise.data import index, top
from foldwise.data.columns import by_number, is_number
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe, refuse
from foldwise.data.rows import table_of

OF_CLASSES = (  # settings that a regression has no use for
    "train.class_weights",
    "train.sampling",
    "train.label_smoothing",
    "train.pseudo_keep",
    "train.pseudo_hard",
    "predict.average",
)
Activation = Literal["softmax", "sigmoid", "normalised", "ordinal", "identity"]


@dataclass(frozen=True)
class OutputTarget:
    """What is explained of a network: the evidence for output `output` of its predictions, or against it (sign -1)."""

    output: int = 0
    sign: int = 1
    name: str = ""  # of the answer that this speaks for


@dataclass(frozen=True)
class Targets:
    """names: what the predictions mean (index.classes). learnt: the classes the network tells apart, [] for one output.

    activation: how logits become probabilities; `ordinal`: logit k says whether the class lies above class k (Niu
    2016). fold: float32 (learnt classes, competition outputs), sums of class probabilities, where the network learns
    an auxiliary target.
    """

    task: str  # of the network
    names: list[str]
    learnt: list[str]
    activation: Activation
    fold: np.ndarray | None = None
    column: str | None = None
    labels: pd.Series | None = None  # of `column`, by id
    mirror: list[int] | None = None  # the outputs of a mirror image in their places, where some change them

    @property
    def many(self) -> bool:
        """Whether only the likeliest classes of a row are kept (see data.top)."""
        return self.task == "multiclass" and len(self.names) > top.MANY

    @property
    def outputs(self) -> int:
        """Logits the network has."""
        return max(1, len(self.learnt) - (self.activation == "ordinal"))

    def array(self, competition: Competition, rows: pd.DataFrame) -> np.ndarray:
        """Targets of index rows: float32 (N,), int64 class numbers (N,), or float32 (N, C) for multilabel and soft.

        Of several labels, 0.5 is half a label, and NaN none: it has no part in the loss.
        """
        if competition.task == "multilabel":
            return rows[competition.truth].to_numpy(dtype=np.float32, copy=True)
        if self.labels is None:
            return index.target_array(competition, rows, self.names)
        labels = self.labels.reindex(rows["id"])
        if labels.isna().any():
            raise UserError(
                f"target.column={self.column}: id '{rows['id'].iloc[int(labels.isna().argmax())]}' has none"
            )
        return pd.Categorical(labels, categories=self.learnt).codes.astype(np.int64)


def plan(competition: Competition, recipe: Recipe, table: pd.DataFrame, learnt: Sequence[str] = ()) -> Targets:
    """Targets of a recipe; `table` is the index. UserError where recipe and competition don't go together.

    learnt: what trained weights tell apart, which stands in for an auxiliary column where its table is not at hand.
    """
    if recipe.model.mode == "as_is" and competition.task not in {"binary", "multiclass"}:
        raise UserError(f"model.mode=as_is: a pretrained head tells classes apart; task {competition.task} needs other")
    names = index.classes(competition, table)
    kind = competition.task if recipe.target.column is None else "multiclass"
    loss = recipe.train.loss
    fitting = {
        "regression": {"default", "mse", "mae", "huber"},
        "multiclass": {"default", "ce", "bce", "focal", "asymmetric", "ordinal"},
        "soft": {"default", "ce", "focal"},
    }.get(kind, {"default", "bce", "focal", "asymmetric"})
    if loss not in fitting:
        raise UserError(f"train.loss={loss}: does not go with task {kind}; choose from {', '.join(sorted(fitting))}")
    if kind == "regression":
        refuse(recipe, OF_CLASSES, "a task with classes", competition.name)
    if len(names) > top.MANY and kind == "multiclass":
        top.of_slots(competition.scorer())
        if competition.aggregates or recipe.target.column is not None:
            raise UserError(f"{competition.file}: {len(names):,} classes: a row an image, and no target.column")
    if recipe.target.column is not None:
        return _auxiliary(competition, recipe, names, learnt)
    if recipe.model.head.cosine is not None and _activation(kind, loss) != "softmax":
        raise UserError("model.head.cosine: classes that exclude each other, with train.loss=ce or focal, have centres")
    if loss == "ordinal":
        index.check_order(competition, names, "train.loss=ordinal")
    return Targets(kind, names, names, _activation(kind, loss), mirror=_mirrored(competition, recipe, names))


def _mirrored(competition: Competition, recipe: Recipe, names: list[str]) -> list[int] | None:
    """Where each output of a mirror image stands; None where none changes places."""
    if not competition.mirror:
        return None
    if recipe.predict.tta == "d4" or recipe.augment.flips == "d4":
        raise UserError(f"{competition.file}: `mirror` goes with predict.tta=flip and augment.flips=auto, not with d4")
    pairs = competition.mirror | {right: left for left, right in competition.mirror.items()}
    return [names.index(pairs.get(name, name)) for name in names]


def _activation(task: str, loss: str) -> Activation:
    if task == "multiclass":
        by_loss: dict[str, Activation] = {"ordinal": "ordinal", **dict.fromkeys(("bce", "asymmetric"), "normalised")}
        return by_loss.get(loss, "softmax")
    return {"regression": "identity", "soft": "softmax"}.get(task, "sigmoid")  # type: ignore[return-value]


def _auxiliary(competition: Competition, recipe: Recipe, names: list[str], trained: Sequence[str]) -> Targets:
    settings, column = recipe.target, str(recipe.target.column)
    if competition.task not in {"binary", "multiclass"}:
        raise UserError(f"target.column={column}: auxiliary targets are for binary and multiclass competitions")
    if not competition.train.sources:
        raise UserError(f"target.column={column}: {competition.file} has no train table to read it from")
    path, labels = _auxiliary_labels(competition, column, bool(trained))
    learnt = list(trained) if labels is None else by_number(labels.dropna().unique())
    if recipe.train.loss == "ordinal" and not all(map(is_number, learnt)):
        raise UserError(
            f"target.column={column}: train.loss=ordinal needs classes in an order, and '{learnt[-1]}' is "
            "no number; choose another loss"
        )
    if len(learnt) < 2:
        raise UserError(f"target.column={column}: {path} holds fewer than two classes of it")
    fold = np.zeros((len(learnt), max(1, len(names))), np.float32)
    idle, other = ("target.map", "multiclass") if competition.task == "binary" else ("target.positive", "binary")
    refuse(recipe, [idle], f"task {other}", competition.name)
    if competition.task == "binary":
        if not settings.positive:
            raise UserError(f"target.positive: name the classes of {column} that count as 1: {', '.join(learnt)}")
        for name in settings.positive:
            fold[_place(name, learnt, f"target.positive: {column}"), 0] = 1
    else:
        for k, name in enumerate(learnt):
            fold[k, _place(settings.map.get(name, name), names, f"target.map: class '{name}' of {column}:")] = 1
    return Targets("multiclass", names, learnt, _activation("multiclass", recipe.train.loss), fold, column, labels)


def _auxiliary_labels(competition: Competition, column: str, dispensable: bool) -> tuple[str, pd.Series | None]:
    """The training table's name and its column by id; None where it is not there and dispensable."""
    try:
        path, frame = table_of(competition, competition.train, (column,))
        if column not in frame:
            raise UserError(f"target.column={column}: not in {path}{nearest(column, frame.columns)}")
    except UserError:
        if dispensable:
            return competition.train.sources[0].table, None
        raise
    return str(path), frame.set_index(competition.id)[column].replace("", np.nan)


def _place(name: str, known: list[str], where: str) -> int:
    if name not in known:
        raise UserError(f"{where} has no class '{name}'{nearest(name, known)}")
    return known.index(name)
