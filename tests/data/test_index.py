"""Header columns: numbers, dates and text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace

from foldwise.data.columns import read_numbers, typed

pytestmark = pytest.mark.smoke


def test_header_columns_are_typed() -> None:
    ages = typed(pd.Series([45.0, None, "31"]))
    assert ages.dtype == float
    assert ages.tolist()[0] == 45.0
    assert np.isnan(ages[1])
    days = typed(pd.Series(["1970-01-03", None, "1969-12-31"]))
    assert days.tolist()[0] == 2.0
    assert days.tolist()[2] == -1.0
    text = typed(pd.Series(["M", None, 1.0]))
    assert text.tolist()[::2] == ["M", "1"]
    assert pd.isna(text[1])


@pytest.mark.parametrize(
    ("column", "numbers", "odd"),
    [
        (["020Y", "006M", "90+", None, 31], [20, 0.5, np.nan, np.nan, 31], ["90+"]),
        (["1,5", "2", "1.234,5", None], [1.5, 2, 1234.5, np.nan], []),
        (["0,125", "0,250"], [0.125, 0.25], []),
        (["1,5", "2.5", ""], [np.nan, 2.5, np.nan], ["1,5"]),  # not the whole column
        (["1,234", "5"], [np.nan, 5], ["1,234"]),  # a thousand, or a little more than one
        ([True, False], [1, 0], []),
        ([1.5, np.inf, "-inf"], [1.5, np.nan, np.nan], ["inf", "-inf"]),
    ],
)
def test_numbers_in_known_forms_are_read_and_the_rest_is_returned(column: list, numbers: list, odd: list) -> None:
    read, rest = read_numbers(pd.Series(column))
    np.testing.assert_allclose(read, numbers, atol=1e-3)
    assert rest.tolist() == odd


def test_values_that_are_no_numbers_are_counted(tiny: Workplace) -> None:
    table = pd.read_csv(tiny.raw / "train.csv")
    ages = table["age"].round().astype("Int64").astype("string").str.zfill(3) + "Y"
    ages[:3] = ["90+", "90+", "old"]
    table.assign(age=ages).to_csv(tiny.raw / "train.csv", index=False)
    said = tiny.run("01_preprocess.py", "--sizes", 32).stderr
    assert "metadata column 'age': 3 of " in said
    assert "values are no numbers and count as missing: '90+' (2), 'old' (1)" in said
    read = pd.read_parquet(tiny.derived / "index.parquet")
    known = pd.concat([table["age"][3:], pd.read_csv(tiny.raw / "test.csv")["age"]]).notna()
    assert read["age"].notna().sum() == known.sum()


def test_a_later_test_set_is_told_by_its_dates() -> None:
    """A split by time shows as drift of the date column."""
    from foldwise.audit import drift

    dates = pd.date_range("2019-01-01", periods=400).strftime("%Y-%m-%d").to_series(index=range(400))
    days = typed(dates)
    later = pd.Series(np.arange(400) >= 300).astype(float)
    found = drift.alone(days, later, pd.Series(np.arange(400) % 5))
    assert found.value > 0.95
