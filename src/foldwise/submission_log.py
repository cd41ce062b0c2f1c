"""submissions/log.csv: every submission with its cross-validated score and, once known, the leaderboard's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise import UserError, atomic, command
from foldwise.competition import Competition
from foldwise.schema import nearest

COLUMNS = ["when", "competition", "name", "method", "runs", "metric", "in_sample", "nested", "low", "high",
           "public", "private"]  # fmt: skip


def path_of(competition: Competition) -> Path:
    """One log for all competitions, beside their folders."""
    return competition.submissions().parent / "log.csv"


def read(competition: Competition) -> pd.DataFrame:
    """The log, empty where there is none."""
    path = path_of(competition)
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        log = pd.read_csv(path, dtype={"competition": str, "name": str})
    except ValueError as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from None
    missing = [column for column in COLUMNS if column not in log]
    if missing:
        raise UserError(f"{path}: lacks column {missing[0]}; mend it, or move it away to start a new one")
    return log


def add(competition: Competition, name: str, facts: dict[str, Any]) -> None:
    """A line for a submission just written; one of that name before it is replaced, as its file is."""
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "competition": competition.name, "name": name,
        "method": f"{facts['method']}:{facts['space']}", "runs": " ".join(row["run"] for row in facts["runs"]),
        "metric": facts["metric"], "in_sample": facts["in_sample_score"], "nested": facts["nested_score"],
        "low": facts["interval_95"][0], "high": facts["interval_95"][1], "public": None, "private": None,
    }  # fmt: skip
    with _writing(competition):
        try:
            log = read(competition)
        except UserError as error:  # a log is no reason to lose a submission
            path_of(competition).replace(path_of(competition).with_suffix(".csv.damaged"))
            command.note(f"warning: {error}; kept as log.csv.damaged, and a new one begun")
            log = read(competition)
        mine = (log["competition"] == competition.name) & (log["name"] == name)
        lines = [*log[~mine].to_dict("records"), line]
        atomic.write_csv(path_of(competition), pd.DataFrame(lines, columns=COLUMNS))


def note(competition: Competition, name: str, scores: Sequence[float]) -> pd.DataFrame:
    """Public (and private) score of a submission; the competition's lines that have a public score come back."""
    if len(scores) > 2:
        raise UserError(f"--lb takes a public and a private score, found {len(scores)} numbers")
    with _writing(competition):
        log = read(competition)
        mine = (log["competition"] == competition.name) & (log["name"] == name)
        if not mine.any():
            known = nearest(name, log.loc[log["competition"] == competition.name, "name"])
            raise UserError(f"{path_of(competition)}: no submission '{name}' of {competition.name}{known}")
        log = log.astype({"public": float, "private": float})
        for column, value in zip(("public", "private"), scores, strict=False):
            log.loc[mine, column] = value
        atomic.write_csv(path_of(competition), log)
    return scored(log, competition)


def _writing(competition: Competition) -> AbstractContextManager[None]:
    """The log is one file for all: read and written by one process at a time."""
    folder = path_of(competition).parent
    folder.mkdir(parents=True, exist_ok=True)
    return atomic.locked(folder / ".log.lock")


def scored(log: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """This competition's lines with a nested and a public score."""
    mine = log[log["competition"] == competition.name]
    return mine[mine["public"].notna() & mine["nested"].notna()]
