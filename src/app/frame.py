"""What the pages share: the service behind them, how runs are chosen, and words that are safe to show."""

from __future__ import annotations

import re
import time
from typing import Any

import streamlit as st

from app import uploads
from foldwise import UserError
from foldwise.core import parallel
from foldwise.core.files import digest
from foldwise.data.competition import Competition, load_competition


def plain(words: str) -> str:
    """Text from elsewhere (a file's name, a reason) that Markdown must not read as its own."""
    return re.sub(r"([\\`*_{}\[\]()#+\-!|<>$~:&])", r"\\\1", " ".join(words.split()))


def competition() -> Competition:
    """The competition that is shown."""
    return load_competition(st.session_state["competition"])


def service() -> Any:
    """The service of the competition, shared by all visitors; a new one where step 1 was run again."""
    shown = competition()
    return _service(st.session_state["competition"], stamp(shown.derived() / "index.parquet"))


@st.cache_resource(show_spinner="Loading ...", max_entries=4)
def _service(name: str, version: str) -> Any:
    parallel.tune_allocator()
    uploads.prepare()
    from app.service import Service  # torch

    return Service(load_competition(name))


@st.cache_resource(show_spinner="Fitting the blend ...", max_entries=8)
def _mixture(_service: Any, competition_name: str, name: str, version: str) -> Any:
    return _service.mixture(name)


def mixture(name: str) -> Any:
    """A submission's blend, fitted once."""
    shown = competition()
    version = stamp(shown.submissions() / f"{name}.json", *shown.runs().glob("*/oof.csv"))
    return _mixture(service(), str(shown.file), name, version)


def stamp(*paths: Any) -> str:
    """Changes when one of the files does."""
    return digest([(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(paths) if p.exists()])


def chosen_runs(key: str) -> list[str]:
    """The runs that a visitor asks, in the sidebar; UserError where none is trained or chosen."""
    runs = service().runs()
    if not runs:
        raise UserError(f"no run of {competition().name} has its models here; train one with 02_train.py")
    picked = st.sidebar.multiselect("Runs to ask", runs, default=runs[:1], key=f"{key}-runs")
    if not picked:
        raise UserError("choose a run in the sidebar")
    return picked


def chosen_blend(key: str, runs: list[str]) -> str | None:
    """The submission whose blend is shown beside the runs; those that blend none of them are left out."""
    names = [name for name, meta in service().submissions().items() if {r["run"] for r in meta["runs"]} & set(runs)]
    if not names:
        return None
    return st.sidebar.selectbox(
        "Blend of submission", [None, *names], index=1, key=f"{key}-blend", format_func=lambda name: name or "none"
    )


def took(started: float) -> None:
    """How long an answer took."""
    st.caption(f"{time.perf_counter() - started:.2f} s")
