"""What the pages share: the service behind them, how runs are chosen, and words that are safe to show."""

from __future__ import annotations

import re
import time
from typing import Any

import streamlit as st

from app import uploads
from foldwise import UserError
from foldwise.core import parallel, paths
from foldwise.core.files import digest
from foldwise.data import cache
from foldwise.data.competition import Competition, load_competition
from foldwise.data.runs import recipe_of

CARD = 150  # pixels that a picture with its words is wide: two stand beside each other on a phone


class NothingYet(UserError):
    """Nothing is there to be shown: no fault; `command` makes it."""

    def __init__(self, words: str, command: str) -> None:
        super().__init__(words)
        self.command = command


def public(words: str) -> str:
    """Words without the places of this machine's folders: they start at the competition's own."""
    for place in (paths.output_root(), paths.REPOSITORY, paths.REPOSITORY.parent):
        words = words.replace(f"{place}/", "")
    return words


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


def size_of(run: str) -> tuple[int | None, bool]:
    """The size that the run looks at, and whether at crops; for a run without images, the smallest cache there is."""
    shown = competition()
    try:
        recipe = recipe_of(shown, run)
        return recipe.image_size, recipe.crop
    except UserError:
        sizes = cache.sizes(shown)
        return (sizes[0], False) if sizes else (None, False)


def stamp(*files: Any) -> str:
    """Changes when one of the files does."""
    return digest([(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(files) if p.exists()])


def chosen_runs(key: str) -> list[str]:
    """The runs that a visitor asks, in the sidebar; UserError where none is trained or chosen."""
    runs = service().runs()
    if not runs:
        raise no_runs()
    picked = st.sidebar.multiselect("Runs to ask", runs, default=runs[:1], key=f"{key}-runs")
    if not picked:
        raise UserError("choose a run in the sidebar")
    return picked


def no_runs() -> NothingYet:
    """What to do where no run is trained."""
    shown = competition()
    command = f"python src/02_train.py --competition {shown.name} --recipe auto --hours 0.1"
    return NothingYet(f"No run of {shown.name} has its models here yet. This makes one:", command)


def chosen_blend(key: str) -> str | None:
    """The submission whose blend is shown beside the runs."""
    names = list(service().submissions())
    if not names:
        return None
    return st.sidebar.selectbox(
        "Blend of submission", [None, *names], index=1, key=f"{key}-blend", format_func=lambda name: name or "none"
    )


def title(words: str) -> None:
    """The page's title, with the competition's name."""
    st.title(f"{competition().name}: {words}")


def took(started: float) -> None:
    """How long an answer took."""
    st.caption(f"{time.perf_counter() - started:.2f} s")
