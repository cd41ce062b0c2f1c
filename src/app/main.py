"""The app for one competition: its navigation, and the page that a visitor chose."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import streamlit as st
from PIL import Image

from app import frame
from app.pages import batch, errors, one, results, weights
from foldwise import UserError


def show(name: str) -> None:
    """The app for one competition: navigation, and the page that was chosen."""
    st.set_page_config(page_title=f"Foldwise: {name}", page_icon=_icon(), layout="wide")
    st.session_state["competition"] = name
    pages = [
        st.Page(guarded(one.show), title="One image", icon=":material/image_search:", url_path="one", default=True),
        st.Page(guarded(batch.show), title="Many images", icon=":material/photo_library:", url_path="many"),
        st.Page(guarded(results.show), title="Results", icon=":material/leaderboard:", url_path="results"),
        st.Page(guarded(errors.show), title="Errors", icon=":material/troubleshoot:", url_path="errors"),
        st.Page(guarded(weights.show), title="Weights", icon=":material/tune:", url_path="weights"),
    ]
    st.session_state["one-page"] = pages[0]
    st.navigation(pages).run()


def _icon() -> Image.Image:
    """Three folds, as pixels: an icon by name would be fetched from the internet."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    for k, colour in enumerate(((0, 114, 178), (230, 159, 0), (0, 158, 115))):
        pixels[4 + 9 * k : 10 + 9 * k, 4:28] = colour
    return Image.fromarray(pixels)


def guarded(page: Callable[[], None]) -> Callable[[], None]:
    """The page, with what a visitor can mend as a message."""

    @wraps(page)
    def shown() -> None:
        try:
            page()
        except frame.NothingYet as error:
            st.info(frame.plain(str(error)))
            st.code(error.command, language="bash")
        except UserError as error:
            st.error(frame.plain(frame.public(str(error))))

    return shown
