"""Page: many images, or archives of them; one CSV to take away, and a list of what could not be read."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from app import frame, uploads
from app.uploads import Limits, Upload
from foldwise.core.files import digest


def show() -> None:
    """The page."""
    st.title("Many images")
    limits = Limits()
    st.caption(
        f"Several files or a zip: at most {limits.files:,} images and {limits.total_bytes >> 20:,} MiB unpacked, "
        f"{limits.file_bytes >> 20} MiB and {limits.pixels / 1e6:.0f} million pixels an image."
    )
    runs = frame.chosen_runs("many")
    blend = frame.chosen_blend("many", runs)
    files = st.file_uploader("Images or zip archives", accept_multiple_files=True, key="many-files")
    if frame.service().fuses(runs):
        st.caption("A chosen run looks at metadata too; all of them count as unknown here.")
    if not files:
        return
    asked = digest([[(file.file_id, file.name, file.size) for file in files], runs, blend])
    if st.button("Predict", type="primary"):
        started = time.perf_counter()
        with st.spinner("Reading and predicting ..."):
            answer = _answer([Upload(file.name, file.getvalue()) for file in files], runs, blend)
        st.session_state["many"] = (asked, *answer, time.perf_counter() - started)
    kept = st.session_state.get("many")
    if kept is not None and kept[0] == asked:
        _result(*kept[1:])


def _answer(files: list[Upload], runs: list[str], blend: str | None) -> tuple[pd.DataFrame, dict[str, str], str]:
    service = frame.service()
    with uploads.receiving(files) as received:
        answer = service.predict(received, runs, keep=0)
    if blend is None:
        pred, note = sum(answer.mean(run) for run in runs) / len(runs), f"mean of {', '.join(runs)}"
    else:
        pred, absent = frame.mixture(blend).predict(answer)
        note = f"blend: {blend}" + (f" (the others' mean stands in for {', '.join(absent)})" if absent else "")
    return answer.table(pred), answer.errors, note


def _result(table: pd.DataFrame, errors: dict[str, str], note: str, seconds: float) -> Any:
    st.success(frame.plain(f"{len(table):,} images in {seconds:.1f} s; {note}"))
    st.download_button(
        "Download the CSV", table.to_csv(index=False, float_format="%.9g"), "predictions.csv", "text/csv"
    )
    st.dataframe(table.head(1000), hide_index=True, width="stretch")
    if errors:
        st.warning(f"{len(errors):,} could not be read; they are not in the CSV")
        st.dataframe(
            pd.DataFrame({"file": list(errors), "reason": list(errors.values())}), hide_index=True, width="stretch"
        )
