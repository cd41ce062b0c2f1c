"""Page: a blend's weights on sliders, with the score that they make beside the automatic blend's; to be written."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, frame
from foldwise import UserError
from foldwise.blend.by_hand import ByHand
from foldwise.blend.run_set import gather_runs
from foldwise.data.runs import list_runs
from foldwise.report.blend import write_blend


def show() -> None:
    """The page."""
    frame.title("weights")
    competition = frame.competition()
    known = list_runs(competition)
    if not known:
        raise frame.no_runs()
    picked = st.sidebar.multiselect("Runs to blend", known, default=known)
    if len(picked) < 2:
        raise UserError("choose two runs at least in the sidebar")
    files = [path for run in picked for path in (competition.runs() / run).glob("*.csv")]
    hand = _by_hand(str(competition.file), tuple(picked), frame.stamp(*files))
    st.caption(
        "Weights found by trying them on these rows have seen them: the score flatters, the automatic one does not."
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        space = st.selectbox("Averaged as", hand.spaces, index=_usual(hand))
        weights = {name: st.slider(name, 0.0, 1.0, min(1.0, value), 0.01) for name, value in hand.start.items()}
    blend = hand.blend(weights, space)
    with right:
        _score(hand, blend)
        _drawn(hand, blend)
        _write(competition, hand, blend)


@st.cache_resource(show_spinner="Lining up the runs, and choosing the automatic blend ...", max_entries=4)
def _by_hand(competition_file: str, runs: tuple[str, ...], version: str) -> ByHand:
    competition = frame.competition()
    lined = gather_runs(competition, list(runs))
    hand = ByHand(lined, *lined.judged_by(competition))
    assert hand.automatic
    return hand


def _usual(hand: ByHand) -> int:
    return hand.spaces.index(hand.automatic.space) if hand.automatic.space in hand.spaces else 0


def _score(hand: ByHand, blend: Any) -> None:
    gain, metric = hand.gain(blend), hand.metric
    mine, other = st.columns(2)
    told = f"{gain['gain']:+.4f}" if abs(gain["gain"]) >= 5e-5 else None
    mine.metric(f"{metric.name}, by hand", f"{blend.nested_score:.4f}", told)
    other.metric(f"nested {metric.name}, automatic", f"{hand.automatic.nested_score:.4f}")
    ends = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
    verdict = "can't be told apart" if gain["low"] <= 0 <= gain["high"] else "differ by more than chance"
    st.markdown(frame.plain(f"By hand over automatic {gain['gain']:+.4f}, 95 % interval {ends}: they {verdict}."))


def _drawn(hand: ByHand, blend: Any) -> None:
    rows = [
        {"run": name, "weight": float(weight), "whose": whose}
        for whose, one in (("by hand", blend), (f"automatic: {hand.automatic.method}", hand.automatic))
        for name, weight in zip(
            hand.runs.names, one.weights.reshape(len(hand.runs.names), -1).mean(axis=1), strict=True
        )
    ]
    st.altair_chart(charts.weights(pd.DataFrame(rows)), width="stretch")


def _write(competition: Any, hand: ByHand, blend: Any) -> None:
    name = st.text_input("Name of the submission", "hand")
    if not st.button("Write this blend", type="primary"):
        return
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"'{name}' is no name: letters, digits, '.', '_' and '-'")
    with st.spinner("Writing ..."):
        path, meta = write_blend(competition, name, hand.runs, blend, hand.seed, hand.automatic)
    st.success(frame.plain(frame.public(f"{path} and its report beside it. {meta['verdict']}")))
