"""Header columns: numbers, dates and text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from foldwise import index

pytestmark = pytest.mark.smoke


def test_header_columns_are_typed() -> None:
    ages = index.typed(pd.Series([45.0, None, "31"]))
    assert ages.dtype == float
    assert ages.tolist()[0] == 45.0
    assert np.isnan(ages[1])
    days = index.typed(pd.Series(["1970-01-03", None, "1969-12-31"]))
    assert days.tolist()[0] == 2.0
    assert days.tolist()[2] == -1.0
    text = index.typed(pd.Series(["M", None, 1.0]))
    assert text.tolist()[::2] == ["M", "1"]
    assert pd.isna(text[1])


def test_a_later_test_set_is_told_by_its_dates() -> None:
    """A split by time shows as drift of the date column."""
    from foldwise import drift

    dates = pd.date_range("2019-01-01", periods=400).strftime("%Y-%m-%d").to_series(index=range(400))
    typed = index.typed(dates)
    later = pd.Series(np.arange(400) >= 300).astype(float)
    found = drift.alone(typed, later, pd.Series(np.arange(400) % 5))
    assert found.value > 0.95
