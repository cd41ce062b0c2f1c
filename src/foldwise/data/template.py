"""Templates of paths and ids: 'train/{patient}/{id:05d}.png', columns of a table in braces, no code."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from foldwise import UserError

HOW = "write columns as {id}, {id:05d}, {id[0]}, {id[:2]}, {id//100}, {id%10} or {id.stem}"
_FIELD = re.compile(
    r"(?P<column>[^\[\]]+?)(?P<stem>\.stem)?(?P<steps>(?:(?://|%)\d+)*)(?:\[(?P<at>-?\d+|-?\d*:-?\d*)\])?"
)


class Piece(NamedTuple):
    """A part of a template: text, then a column's value (column None: no value), some of it, formatted.

    stem: without the suffix of a file's name. steps: ('//', 100), ('%', 10), of a whole number. cut: characters.
    """

    text: str
    column: str | None = None
    stem: bool = False
    steps: tuple[tuple[str, int], ...] = ()
    cut: int | slice | None = None
    form: str = ""

    @property
    def whole(self) -> bool:
        """Whether the column's value stands there as it is."""
        return not (self.stem or self.steps or self.form) and self.cut is None

    def fill(self, value: object) -> str:
        """The text and the value behind it; ValueError where the value does not fit the format."""
        shown = str(value)
        if shown.startswith("/") or ".." in shown.split("/"):  # no table names files outside the raw folder
            raise ValueError
        if self.stem:
            shown = shown.removesuffix(PurePosixPath(shown).suffix)
        for operation, number in self.steps:
            shown = str(int(shown) // number if operation == "//" else int(shown) % number)
        if isinstance(self.cut, int) and not -len(shown) <= self.cut < len(shown):
            raise ValueError
        shown = shown if self.cut is None else shown[self.cut]
        kind = int if self.form[-1:] in set("bcdoxX") else float if self.form[-1:] in set("eEfFgGn%") else str
        return self.text + (format(kind(shown), self.form) if self.form else shown)


def template_pieces(template: str) -> list[Piece]:
    """'x/{id:05d}.png' -> a Piece 'x/' with column id, and a Piece '.png' without; ValueError says what is wrong."""
    try:
        return [_piece(*part) for part in string.Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"'{template}': {error}; {HOW}") from None


def _piece(text: str, field: str | None, form: str | None, conversion: str | None) -> Piece:
    if field is None:
        return Piece(text)
    named = _FIELD.fullmatch(field)
    if named is None or conversion or "{" in (form or ""):
        raise ValueError(f"what stands in braces, '{field}', is no column")
    steps = tuple((operation, int(number)) for operation, number in re.findall(r"(//|%)(\d+)", named["steps"]))
    if any(number == 0 for _, number in steps):
        raise ValueError(f"'{field}' divides by zero")
    cut: int | slice | None = None
    if named["at"]:
        ends = [int(end) if end else None for end in named["at"].split(":")]
        cut = slice(*ends) if len(ends) > 1 else ends[0]
    return Piece(text, named["column"], bool(named["stem"]), steps, cut, form or "")


def template_columns(template: str) -> list[str]:
    """The columns named in braces: 'train/{patient_id}/{image_id}.dcm' -> ['patient_id', 'image_id']."""
    return [piece.column for piece in template_pieces(template) if piece.column is not None]


def fill(template: str, table: pd.DataFrame, where: Path) -> list[str]:
    """The template with every row's values in it; UserError names the row whose value does not fit."""
    filled = [""] * len(table)
    for piece in template_pieces(template):
        values: Sequence[object] = [""] * len(table) if piece.column is None else table[piece.column].tolist()
        try:
            filled = [text + piece.fill(value) for text, value in zip(filled, values, strict=True)]
        except ValueError:
            row = next(row for row, value in enumerate(values) if not fits(piece, value))
            what = f"'{values[row]}' does not fit {piece.column} in '{template}' (its format, or a path that leads out)"
            raise UserError(f"{where}: row {table.index[row] + 2}: {what}") from None
    return filled


def fits(piece: Piece, value: object) -> bool:
    """Whether a value can stand there."""
    try:
        piece.fill(value)
    except ValueError:
        return False
    return True


def pattern(template: str) -> str:
    """A regex of the paths that a template makes: its first whole use of a column names it, the others must agree."""
    made, named = "", set[str]()
    for piece in template_pieces(template):
        made += re.escape(piece.text).replace(r"\*", "[^/]*")
        if piece.column is None:
            continue
        if not piece.whole:
            made += "[^/]*"
        elif piece.column in named:
            made += f"(?P={piece.column})"
        else:
            named.add(piece.column)
            made += f"(?P<{piece.column}>[^/]+)"
    return made
