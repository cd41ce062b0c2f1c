"""Page: the competition's runs with score, spread, cost and size; their folds; and what its blends are made of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from app import charts, frame
from foldwise import UserError
from foldwise.core.cli import duration
from foldwise.report import results


def show() -> None:
    """The page."""
    competition = frame.competition()
    frame.title("results")
    what = f"{competition.task}, {competition.metric}"
    st.caption(frame.plain(f"{what}, out-of-fold: no row was predicted by a model that saw it."))
    runs, blends = st.tabs(["Runs and folds", "Blends"])
    with runs:
        try:
            _runs()
        except UserError:
            raise frame.no_runs() from None
    with blends:
        _blends()


def _runs() -> None:
    competition = frame.competition()
    marks = [path for pattern in ("*/*.csv", "*/run.json") for path in competition.runs().glob(pattern)]
    table = _gathered(str(competition.file), frame.stamp(*marks))
    good, bad = table[table["reason"] == ""], table[table["reason"] != ""]
    if len(good):
        st.altair_chart(charts.forest(good, competition.metric), width="stretch")
        st.caption("Dot: all rows. Line: its 95 % interval, groups drawn whole. Diamonds: single folds.")
        folds = [name for name in good if name.startswith("fold") and name[4:].isdigit()]
        shown = good.assign(
            took=good["seconds"].map(duration), weights=[_megabytes(competition.runs() / run) for run in good["run"]]
        )
        columns = ["run", "model", "image_size", "score", "fold_std", "took", "weights", "differs", "note"]
        st.dataframe(shown[columns], hide_index=True, width="stretch", column_config=_COLUMNS)
        st.subheader("Folds")
        by_fold = {name: st.column_config.NumberColumn(name.replace("fold", "fold "), format="%.4f") for name in folds}
        columns = ["run", *folds, "fold_mean", "fold_std"]
        st.dataframe(good[columns], hide_index=True, width="stretch", column_config=_COLUMNS | by_fold)
    if len(bad):
        st.subheader("Left out")
        st.dataframe(bad[["run", "reason"]], hide_index=True, width="stretch")


_COLUMNS = {
    "score": st.column_config.NumberColumn("score, all rows", format="%.4f"),
    "fold_mean": st.column_config.NumberColumn("mean of folds", format="%.4f"),
    "fold_std": st.column_config.NumberColumn("sd over folds", format="%.4f"),
    "image_size": "image size",
    "differs": "differs from the defaults in",
}


@st.cache_data(show_spinner="Reading the runs ...", max_entries=8)
def _gathered(competition_file: str, version: str) -> pd.DataFrame:
    return results.table(results.gather(frame.competition()))


def _megabytes(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.glob("fold*.safetensors")]
    return f"{sum(sizes) / 1e6:.1f} MB" if sizes else "–"


def _blends() -> None:
    blends = frame.service().submissions()
    if not blends:
        shown = frame.competition()
        st.info("No blend yet. This makes one:")
        st.code(f"python src/06_blend.py --competition {shown.name}", language="bash")
        return
    name = st.selectbox("Submission", list(blends))
    meta = blends[name]
    st.markdown(f"**{frame.plain(str(meta.get('verdict', '')))}**")
    low, high = (meta.get("interval_95") or [None, None])[:2]
    places = st.columns(4)
    for place, (label, value) in zip(
        places,
        [
            (f"nested {meta['metric']}", meta.get("nested_score")),
            ("95 % interval from", low),
            ("to", high),
            ("best single run", meta.get("best_single_score")),
        ],
        strict=True,
    ):
        place.metric(label, "–" if value is None else f"{value:.4f}")
    averaged = "" if meta["method"] == meta["space"] else f", averaged as {meta['space']}"
    st.caption(frame.plain(f"method {meta['method']}{averaged}; {meta.get('rows', '?')} rows"))
    st.altair_chart(charts.weights(pd.DataFrame(meta["runs"])), width="stretch")
    for line in meta.get("warnings", []):
        st.warning(frame.plain(line))
    with st.expander(f"{name}.json"):
        st.json(meta, expanded=1)
