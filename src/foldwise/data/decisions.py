"""What a person decided of suspicious labels: input/derived/<competition>/labels.csv, taken in by step 1.

    id,decision,suggested      decision: drop, or relabel to `suggested` (0/1, a class; multilabel: 'label: yes')

oof/<competition>/noise.html writes such a file; `01_preprocess.py --labels FILE` checks it and puts it in its place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from foldwise import UserError
from foldwise.core.cli import counted, note
from foldwise.core.files import file_digest
from foldwise.data import index
from foldwise.data.competition import Competition
from foldwise.data.tables import read_table

DROPPED = "dropped by labels.csv"


def path_of(competition: Competition) -> Path:
    """Where the decisions lie."""
    return competition.derived() / "labels.csv"


def digest(competition: Competition) -> dict[str, str]:
    """{labels_hash: of the decisions}, for run.json; {} where nobody decided anything."""
    path = path_of(competition)
    return {"labels_hash": file_digest(path)} if path.exists() else {}


def put(competition: Competition, table: pd.DataFrame, given: Path | None) -> None:
    """Put the decisions of file `given` in their place, or with 'none' take them away; checked against an index."""
    if given is None:
        return
    place = path_of(competition)
    if str(given) == "none":
        place.unlink(missing_ok=True)
        return
    applied(competition, table, given)
    if not (place.exists() and given.samefile(place)):
        shutil.copyfile(given, place)


def applied(competition: Competition, table: pd.DataFrame, path: Path | None = None) -> pd.DataFrame:
    """The index with the decisions in it: dropped rows set aside as unreadable ones are, others with their new label.

    UserError names the line of an unknown id, decision or label.
    """
    path = path or path_of(competition)
    if not path.exists():
        if path != path_of(competition):
            raise UserError(f"--labels {path}: no such file")
        return table
    rows, table = read_table(path, ["id", "decision", "suggested"]), table.copy()
    missing = [name for name in ("id", "decision", "suggested") if name not in rows]
    if missing:
        raise UserError(f"{path}: no column '{missing[0]}'; it has id, decision, suggested")
    train = table.index[table["split"] == "train"]
    where = pd.Series(train, index=table.loc[train, "id"])
    names = index.classes(competition, table)
    for line, row in enumerate(rows.itertuples(), 2):
        if row.id not in where.index:
            raise UserError(f"{path}: line {line}: no training row '{row.id}'")
        if row.decision == "drop":
            table.loc[where[row.id], "error"] = DROPPED
        elif row.decision == "relabel":
            column, value = _label(competition, names, str(row.suggested), f"{path}: line {line}")
            table.loc[where[row.id], column] = value
        else:
            raise UserError(f"{path}: line {line}: decision '{row.decision}' is neither drop nor relabel")
    counts = rows["decision"].value_counts()
    if path == path_of(competition):
        note(f"{path}: {counted(counts.get('drop', 0), 'row')} dropped, {counts.get('relabel', 0)} relabelled")
    return table


def _label(competition: Competition, names: list[str], suggested: str, where: str) -> tuple[str, object]:
    """The column and the value that a suggestion names."""
    label, _, answer = suggested.rpartition(": ")
    if competition.task == "multilabel" and label in names and answer in {"yes", "no"}:
        return f"target_{label}", int(answer == "yes")
    if competition.task == "multiclass" and suggested in names:
        return "target", suggested
    if competition.task == "binary" and suggested in {"0", "1"}:
        return "target", int(suggested)
    known = ", ".join(names[:8]) or "0, 1"
    raise UserError(f"{where}: '{suggested}' is no label; known: {known}")
