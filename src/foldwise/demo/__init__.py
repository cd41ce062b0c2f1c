"""Embedded competitions whose best possible score is known: lesions (demo), and studies of slices (demo-series)."""

from foldwise.demo.lesions import Settings, draw_cases, make_demo, render, write_image
from foldwise.demo.scores import print_scores, score_table
from foldwise.demo.series import SERIES, make_series_demo

__all__ = [
    "SERIES",
    "Settings",
    "draw_cases",
    "make_demo",
    "make_series_demo",
    "print_scores",
    "render",
    "score_table",
    "write_image",
]
