"""Page: the out-of-fold rows that a run got most wrong, with their images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import charts, frame

PER_PAGE = 24


def show() -> None:
    """The page."""
    frame.title("errors")
    competition = frame.competition()
    folder = competition.runs()
    runs = sorted({path.parent.name for path in folder.glob("*/oof.csv")} | set(frame.service().runs()))
    if not runs:
        raise frame.no_runs()
    run = st.sidebar.selectbox("Run", runs)
    table = _errors(frame.service(), str(competition.file), run, frame.stamp(*(folder / run).glob("*.csv")))
    table = _filtered(table, competition.task)
    what = "absolute error" if competition.task == "regression" else "1 − probability of the truth"
    st.caption(frame.plain(f"{len(table):,} out-of-fold rows of {run}, worst first ({what})."))
    if not len(table):
        return
    pages = -(-len(table) // PER_PAGE)
    page = st.number_input(f"Page, of {pages:,}", 1, pages, 1) if pages > 1 else 1
    _gallery(run, table.iloc[(page - 1) * PER_PAGE : page * PER_PAGE])


@st.cache_data(show_spinner="Reading the predictions ...", max_entries=8)
def _errors(_service: Any, competition_file: str, run: str, version: str) -> pd.DataFrame:
    return _service.errors(run)


def _filtered(table: pd.DataFrame, task: str) -> pd.DataFrame:
    folds = st.sidebar.multiselect("Folds", sorted(table["fold"].unique().tolist()), placeholder="all")
    if folds:
        table = table[table["fold"].isin(folds)]
    if task != "regression":
        truths = st.sidebar.multiselect("Truth", sorted(table["truth"].unique().tolist()), placeholder="all")
        table = table[table["truth"].isin(truths)] if truths else table
    search = st.sidebar.text_input("Id holds")
    return table[table["id"].str.contains(search, regex=False)] if search else table


def _gallery(run: str, rows: pd.DataFrame) -> None:
    service, competition = frame.service(), frame.competition()
    size, crop = frame.size_of(run)
    images = None if size is None else service.pictures(rows["id"].tolist(), size, crop)
    with st.container(horizontal=True):
        for k, row in enumerate(rows.itertuples()):
            with st.container(width=frame.CARD):
                _card(row, None if images is None else images[k])
    words = f"Images as the models see them, {size} x {size}." if size else f"{competition.name}: no image cache."
    st.caption(frame.plain(words))


def _card(row: Any, image: np.ndarray | None) -> None:
    if image is not None:
        st.image(charts.enlarged(image, frame.CARD), width="stretch")
    lines = [f"{row.wrong:.3f}, fold {row.fold}", f"truth: {row.truth}", f"said: {row.answer} ({row.sure:.2f})"]
    st.caption("  \n".join(map(frame.plain, [*lines, row.id])))
    if st.button("Open", key=f"open-{row.Index}-{row.id}", help="Open it in One image."):
        st.session_state["opened"] = ("train", row.id)
        st.switch_page(st.session_state["one-page"])
