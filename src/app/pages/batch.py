"""Page: many images, or archives of them; one CSV to take away, and a list of what could not be read."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, frame, uploads
from app.uploads import Limits, Upload
from foldwise.core.cli import counted
from foldwise.core.files import digest

SHOWN = 300  # images that are shown beside their rows


def show() -> None:
    """The page."""
    frame.title("many images")
    limits = Limits()
    st.caption(
        f"Several files or a zip: at most {limits.files:,} images and {limits.total_bytes >> 20:,} MiB unpacked, "
        f"{limits.file_bytes >> 20} MiB and {limits.pixels / 1e6:.0f} million pixels an image."
    )
    runs = frame.chosen_runs("many")
    blend = frame.chosen_blend("many")
    files = st.file_uploader("Images or zip archives", accept_multiple_files=True, key="many-files")
    if frame.service().fuses(runs, blend):
        st.caption("A chosen run looks at metadata too; all of them count as unknown here.")
    if not files:
        return
    asked = digest([[(file.file_id, file.name, file.size) for file in files], runs, blend])
    if st.button("Predict", type="primary"):
        started = time.perf_counter()
        with st.status("Reading ...") as status:
            answer = _answer([Upload(file.name, file.getvalue()) for file in files], runs, blend, status)
            status.update(label="done", state="complete")
        st.session_state["many"] = (asked, *answer, time.perf_counter() - started)
    kept = st.session_state.get("many")
    if kept is not None and kept[0] == asked:
        _result(*kept[1:])


def _answer(
    files: list[Upload], runs: list[str], blend: str | None, status: Any
) -> tuple[pd.DataFrame, list[str], dict[str, str], str]:
    """The CSV's table, thumbnails of its first rows, {id: reason} of what could not be read, and what predicted."""
    service = frame.service()

    def told(words: str) -> None:
        status.update(label=f"{words} ...")

    with uploads.receiving(files, options=frame.competition().image) as received:
        answer = service.predict(received, runs, keep=SHOWN, told=told)
        if blend is None:
            pred, note = sum(answer.mean(run) for run in runs) / len(runs), f"mean of {', '.join(runs)}"
        else:
            readable = received.rows["id"].isin(answer.ids).to_numpy()
            pred, note = service.blend(received, blend, told=told).pred[readable], f"submission {blend}, all its runs"
    kept = next(iter(answer.images.values()), [])
    return answer.table(pred), [charts.thumbnail(image) for image in kept], answer.errors, note


def _result(table: pd.DataFrame, images: list[str], errors: dict[str, str], note: str, seconds: float) -> Any:
    st.success(frame.plain(f"{len(table):,} images in {seconds:.1f} s; {note}"))
    st.download_button(
        "Download the CSV", table.to_csv(index=False, float_format="%.9g"), "predictions.csv", "text/csv"
    )
    shown = table.head(len(images) or 1000)
    if images:
        shown = shown.assign(image=images)[["image", *table]]
    columns = {"image": st.column_config.ImageColumn("image")}
    st.dataframe(shown, hide_index=True, width="stretch", row_height=72 if images else None, column_config=columns)
    if errors:
        st.warning(f"Not in the CSV: {counted(len(errors), 'file')} that could not be read.")
        st.dataframe(
            pd.DataFrame({"file": list(errors), "reason": list(errors.values())}), hide_index=True, width="stretch"
        )
