"""Page: one image, uploaded or drawn; what every chosen model says, where it looks, and what is alike in training."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import charts, frame, uploads
from app.uploads import Upload
from foldwise import UserError
from foldwise.core.files import digest
from foldwise.data import series
from foldwise.data.image import ImageOptions, as_picture
from foldwise.report import explain_figures

SHOWN = 512  # pixels, the longer side of the image as it was sent


def show() -> None:
    """The page."""
    frame.title("one study" if _studies() else "one image")
    runs = frame.chosen_runs("one")
    blend = frame.chosen_blend("one")
    upload = _upload()
    if upload is None:
        _examples()
        return
    with uploads.receiving([upload], options=frame.competition().image) as received:
        if not len(received.rows):
            raise UserError(": ".join(next(iter(received.refused.items()), ("", "nothing was sent"))))
        if len(received.rows) > 1:
            what = "studies, a folder each" if _studies() else "images"
            raise UserError(f"{upload.name} holds {len(received.rows)} {what}; open it on the page Many images")
        _examine(received, digest([upload.name, upload.data.hex()]), runs, blend)


def _studies() -> bool:
    return frame.competition().image.slices is not None


def _upload() -> Upload | None:
    ways = ["Upload", "Draw"]  # no study is drawn
    words = "Where the image comes from"
    if not _studies() and st.radio(words, ways, horizontal=True, label_visibility="collapsed") == "Draw":
        st.session_state.pop("opened", None)
        return _drawing()
    limits = uploads.Limits()
    most = limits.file_bytes >> 20
    file = st.file_uploader("An image", label_visibility="collapsed", key="one-file", max_upload_size=most)
    kinds = f"JPEG, PNG, TIFF, WebP, BMP, GIF or DICOM, at most {limits.pixels / 1e6:.0f} million pixels."
    if _studies():
        named = frame.competition().image.series
        folders = f" in folders named {', '.join(named)}" if named else ""
        kinds = f"A ZIP of the study's slices{folders}, or a file that holds them: multi-frame DICOM, NIfTI, .npy."
    st.caption(frame.plain(kinds))
    if file is not None:
        st.session_state.pop("opened", None)
        return Upload(file.name, file.getvalue())
    opened = st.session_state.get("opened")
    if opened is None:
        return None
    if st.button("Back to the examples"):
        del st.session_state["opened"]
        return None
    st.caption(frame.plain(f"{opened[0]} image {opened[1]}"))
    return frame.service().file(*opened)


def _examples() -> None:
    """Some of the competition's own images to try."""
    service = frame.service()
    rows = service.examples()
    size, crop = frame.size_of(service.runs()[0])
    st.subheader("Or one of these")
    with st.container(horizontal=True):
        for row, image in zip(rows.itertuples(), _thumbnails(service, rows, size, crop), strict=True):
            with st.container(width=frame.CARD):
                st.image(image, width="stretch")
                key = f"example-{row.id}"
                st.button(f"Try {row.id}", key=key, on_click=_open, args=(row.split, row.id), width="stretch")


def _thumbnails(service: Any, rows: pd.DataFrame, size: int | None, crop: bool) -> list[np.ndarray]:
    pictures = [service.pictures([row.id], size, crop, row.split)[0] for row in rows.itertuples()]
    return [charts.enlarged(image, 160) for image in pictures]


def _open(split: str, row_id: str) -> None:
    st.session_state["opened"] = (split, row_id)


def _drawing() -> Upload | None:
    from streamlit_drawable_canvas import st_canvas  # it needs a running server

    left, right = st.columns([3, 2])
    with right:
        width = st.slider("Stroke, pixels", 1, 30, 6)
        colour = st.color_picker("Colour", "#000000")
        ground = st.color_picker("Ground", "#FFFFFF")
    with left:
        drawn = st_canvas(
            stroke_width=width,
            stroke_color=colour,
            background_color=ground,
            height=320,
            width=480,
            key="canvas",
            return_image_data=True,
        )
    if not (drawn.json_data or {}).get("objects") or not drawn.image_bytes:
        return None
    return Upload("sketch.png", drawn.image_bytes)  # as it came: it is decoded where every upload is


def _examine(received: uploads.Uploads, image_key: str, runs: list[str], blend: str | None) -> None:
    service = frame.service()
    top = st.container()
    left, right = st.columns([2, 3], gap="large")
    with left:
        options = None if _studies() else _look(received)
    with right:
        metadata = _metadata(received, image_key) if service.fuses(runs, blend) else None
    started = time.perf_counter()
    asked = digest([image_key, runs, metadata, None if options is None else options.model_dump(mode="json")])
    with top, st.status("Working ...") as status:
        told = partial(_told, status)
        answer = _remembered("answer", asked, lambda: service.predict(received, runs, metadata, options, told=told))
        blended = _blended(service, received, blend, asked, metadata, options, told)
        status.update(label=f"done in {time.perf_counter() - started:.2f} s", state="complete")
    shown = _said(service, answer, runs, blended)
    with top:
        st.header(frame.plain(charts.sentence(shown)))
        _blend_line(service, blended, shown)
    with right:
        _probabilities(shown)
    with left:
        if _studies():
            _slices(service, answer, asked, runs, metadata)
        else:
            _looks_at(service, answer, asked, runs, metadata)
    tabs = st.tabs(["Similar training images", "DICOM header"])
    with tabs[0]:
        _neighbours(service, received, asked, runs, metadata, options)
    with tabs[1]:
        _header(uploads.apart(series.header_file, received.path(), frame.competition().image))


def _look(received: uploads.Uploads) -> ImageOptions | None:
    """The picture as it was sent; the options for the models, where a window was chosen."""
    options, looks = _window(received)
    st.image(uploads.apart(uploads.look, received.path(), SHOWN, received.bounded(looks)), caption="as it was sent")
    return options


def _told(status: Any, words: str) -> None:
    status.update(label=f"{words} ...")


def _blended(
    service: Any,
    received: uploads.Uploads,
    blend: str | None,
    asked: str,
    metadata: dict[str, Any] | None,
    options: ImageOptions | None,
    told: Any,
) -> Any:
    """The whole blend's answer; a line instead where one of its runs can't be asked."""
    if blend is None:
        return None
    key = digest([asked, blend, frame.stamp(frame.competition().submissions() / f"{blend}.json")])
    try:
        return _remembered("blend", key, lambda: service.blend(received, blend, metadata, options, told))
    except UserError as error:
        st.caption(frame.plain(f"No blend: {frame.public(str(error))}"))
        return None


def _remembered(what: str, key: str, make: Any) -> Any:
    """One answer of each kind is kept for this visitor, so that a slider does not ask the models again."""
    kept = st.session_state.get(what)
    if kept is None or kept[0] != key:
        st.session_state[what] = kept = (key, make())
    return kept[1]


# --- what the models see ------------------------------------------------------------------------------------


def _window(received: uploads.Uploads) -> tuple[ImageOptions | None, ImageOptions]:
    """(options for the models, None: the competition's own; options for the eye): sliders where there are 16 bits."""
    own = frame.competition().image
    depth = uploads.apart(uploads.depth, received.path(), received.bounded(own))
    if depth is None or depth.high <= depth.low:
        return None, own
    margin = (depth.high - depth.low) / 10
    low, high = min(depth.low, depth.center) - margin, max(depth.high, depth.center) + margin
    span = max(high - low, depth.width)
    chosen = st.checkbox("Choose the window", help="Which gray values are shown from black to white.")
    center = st.slider(f"Window centre, {depth.unit}", low, high, depth.center, disabled=not chosen)
    width = st.slider(f"Window width, {depth.unit}", span / 1000, span, depth.width, disabled=not chosen)
    also = st.checkbox(
        "The models see it through this window too",
        disabled=not chosen,
        help="Otherwise they see what training images were made by.",
    )
    if not chosen:
        return None, own
    windowed = uploads.apart(uploads.windowed, received.path(), own, center, width)
    return (windowed if also else None), windowed


def _metadata(received: uploads.Uploads, image_key: str) -> dict[str, Any]:
    """What the visitor says of the image; header fields of a DICOM file are filled in."""
    service = frame.service()
    known = uploads.apart(uploads.fields, received.path(), frame.competition().dicom_tags)
    known |= service.known(*st.session_state["opened"]) if st.session_state.get("opened") else {}
    said: dict[str, Any] = {}
    with st.expander("Metadata: a chosen run looks at them too", expanded=True):
        places = st.columns(2)
        for k, (column, values) in enumerate(service.metadata().items()):
            key, given = f"meta-{image_key[:8]}-{column}", known.get(column)
            with places[k % 2]:
                if isinstance(values, tuple):
                    number = float(given) if isinstance(given, int | float) else None
                    said[column] = st.number_input(column, value=number, placeholder="unknown", key=key)
                else:
                    at = values.index(str(given)) if str(given) in values else None
                    said[column] = st.selectbox(column, values, index=at, placeholder="unknown", key=key)
    return said


def _said(service: Any, answer: Any, runs: list[str], blended: Any) -> charts.Said:
    by_fold = {run: {f"fold {fold}": pred[0] for fold, pred in answer.preds[run].items()} for run in runs}
    means = {run: answer.mean(run)[0] for run in runs}
    if blended is not None and blended.above is None:
        means[f"blend {blended.name}"] = blended.pred[0]
    return charts.Said(service.outputs, means, by_fold, service.competition.task)


def _blend_line(service: Any, blended: Any, shown: charts.Said) -> None:
    """The blend's answer on a line of its own: a value, or where it ranks."""
    if blended is None:
        return
    k = int(next(iter(shown.means.values())).argmax())
    if blended.above is None:
        value = f"{blended.pred[0, k]:.4g}" if shown.task == "regression" else f"{blended.pred[0, k]:.0%}"
        words = f"Submission {blended.name}, all its runs: {value}"
    else:
        words = f"Submission {blended.name}, all its runs: ranks above {blended.above[0, k]:.0%} of the test images"
    st.markdown(frame.plain(words.replace("%", " %")))


def _probabilities(shown: charts.Said) -> None:
    most = len(shown.outputs)
    top = st.slider("Classes shown", 1, most, min(5, most)) if most > 2 else most
    st.altair_chart(charts.probabilities(shown, top), width="stretch")
    st.dataframe(charts.numbers(shown, top), hide_index=True, width="stretch")


# --- where it looks -----------------------------------------------------------------------------------------


def _looks_at(service: Any, answer: Any, asked: str, runs: list[str], metadata: dict[str, Any] | None) -> None:
    run, fold = _model("cam", service, runs)
    best = int(answer.mean(run)[0].argmax())
    output = st.selectbox(
        "Evidence for",
        range(len(service.outputs)),
        index=best,
        key=f"cam-{asked[:8]}",
        format_func=lambda k: service.outputs[k],
    )
    opacity = st.slider("Opacity of the map, %", 0, 100, 45)
    image = answer.image(service.recipe(run))[0]
    key = digest([asked, run, fold, output])
    with st.spinner("Map ..."):
        heat = _remembered("cam", key, lambda: service.map(answer, run, fold, output, metadata))
    shown = explain_figures.overlay(image, heat, opacity / 100)
    words = f"as {run} sees it; Grad-CAM of fold {fold}'s model, brighter: more evidence"
    st.image(charts.enlarged(shown), caption=words, width="stretch")


def _slices(service: Any, answer: Any, asked: str, runs: list[str], metadata: dict[str, Any] | None) -> None:
    """The study, slice by slice; what each adds to the evidence, and maps on those that add the most."""
    run, fold = _model("cam", service, runs)
    best = int(answer.mean(run)[0].argmax())
    outputs, key = service.outputs, f"cam-{asked[:8]}"
    output = st.selectbox("Evidence for", range(len(outputs)), index=best, key=key, format_func=lambda k: outputs[k])
    options, pixels = frame.competition().image, answer.image(service.recipe(run))[0]
    planes = pixels.reshape(*pixels.shape[:2], -1, options.per_slice)
    shown = np.flatnonzero(planes.any(axis=(0, 1, 3)))
    at = st.select_slider("Slice", shown.tolist(), value=int(shown[len(shown) // 2]), format_func=lambda k: str(k + 1))
    st.image(charts.enlarged(as_picture(planes[:, :, at])), caption=f"slice {at + 1} as {run} sees it", width="stretch")
    with st.spinner("Slices ..."):
        asked_of = digest([asked, run, fold, output])
        lost, maps = _remembered("cam", asked_of, lambda: service.slices(answer, run, fold, output, metadata))
    st.image(explain_figures.bars(lost, [one.place for one in maps], 320), caption="the evidence that goes with each")
    for place, one in zip(st.columns(len(maps)), maps, strict=True):
        words = f"picture {one.place + 1}: {lost[one.place]:+.2f}"
        overlaid = charts.enlarged(explain_figures.overlay(one.picture, one.heat), 160)
        place.image(overlaid, caption=words, width="stretch")


def _model(key: str, service: Any, runs: list[str]) -> tuple[str, int]:
    left, right = st.columns(2)
    run = left.selectbox("Run", runs, key=f"{key}-run")
    return run, right.selectbox("Fold's model", service.folds(run), key=f"{key}-fold")


# --- what is alike ------------------------------------------------------------------------------------------


def _neighbours(
    service: Any,
    received: uploads.Uploads,
    asked: str,
    runs: list[str],
    metadata: dict[str, Any] | None,
    options: ImageOptions | None,
) -> None:
    st.caption(
        "Nearest training images in the embedding of one fold's network (cosine). That one network embeds them all; "
        "it was trained on the images of the other folds."
    )
    run, fold = _model("near", service, runs)
    key = digest([asked, run, fold])
    wanted = st.button("Find them", help="The first time, all training images are embedded, and kept on disk.")
    if not wanted and not service.neighbours_file(run, fold).exists() and st.session_state.get("near", ("",))[0] != key:
        return
    with st.spinner("Embedding ..."):
        nearest = _remembered("near", key, lambda: service.nearest(received, run, fold, 8, metadata, options))
    recipe = service.recipe(run)
    if nearest.attrs["strange"]:
        st.warning(
            "Nothing like this in training: 99 % of the training images have a nearer one. Don't trust the answer."
        )
    _gallery(nearest, service.pictures(nearest["id"].tolist(), recipe.image_size, recipe.crop), fold)


def _gallery(nearest: pd.DataFrame, images: np.ndarray, fold: int) -> None:
    places = st.columns(4)
    for k, row in enumerate(nearest.itertuples()):
        words = [
            f"{row.similarity:.3f}",
            str(row.id),
            f"fold {row.fold}" + (" (not trained on)" if row.fold == fold else ""),
        ]
        words += [f"{name} {_value(getattr(row, name))}" for name in nearest if name.startswith("target")]
        with places[k % 4]:
            st.image(images[k], width="stretch")
            st.caption("  \n".join(map(frame.plain, words)))


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _header(path: Path) -> None:
    fields = uploads.apart(uploads.header, path)
    if not fields:
        st.caption("Not a DICOM file.")
        return
    st.caption("Personal fields (PS3.15 basic profile: names, ids, birth date, addresses, comments ...) are left out.")
    table = pd.DataFrame({"field": list(fields), "value": list(fields.values())})
    st.dataframe(table, hide_index=True, width="stretch")
