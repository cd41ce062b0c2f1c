"""What a metric is to those who use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from foldwise import UserError

Array = NDArray[Any]
Function = Callable[[Array, Array, Array | None], float]
Presorted = Callable[[Array, Array], Callable[[Array], float]]


class Undefined(UserError):
    """The metric has no value on these rows: a class is missing."""


@dataclass(frozen=True)
class Metric:
    """A metric as the blender sees it. `function(target, pred, weight)` trusts its input.

    `needs` are the labels that every column must hold for the value to exist: "01" both, "1" a positive.
    `order_only` metrics see the order of the rows and nothing else; `decides` metrics see labels only;
    `probability` metrics refuse predictions outside 0..1; `ordered` metrics measure how far apart classes are. says:
    what it is, in a line. top: how many classes of a row the host takes. outputs: the columns that its options are for.
    spread: of one regression target, pred (N, 2) is taken too: a value and its standard deviation. presorted: of one
    column's truth and scores, a function of row weights that sorts only once. own: the bare function(target, pred) of a
    `module:function`, where `function` gives NaN for rows on which that raises.
    """

    name: str
    function: Function
    greater_is_better: bool = True
    needs: str = ""
    order_only: bool = False
    decides: bool = False
    probability: bool = False
    ordered: bool = False
    tasks: frozenset[str] = field(default=frozenset({"binary", "multiclass", "multilabel"}))
    says: str = ""
    top: int = 0
    outputs: int = 0
    spread: bool = False
    presorted: Presorted | None = None
    own: Callable[[Array, Array], Any] | None = None
