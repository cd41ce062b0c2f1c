"""Columns of tables as numbers, dates and text, however they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from foldwise.dicom import parse


def by_number(names: Iterable[str]) -> list[str]:
    """Names sorted: numbers as numbers, then the others."""
    return sorted(names, key=lambda name: (0, float(name), "") if is_number(name) else (1, 0.0, name))


def date_parts(dates: pd.Series, first: pd.Timestamp) -> dict[str, pd.Series]:
    """What a model gets of dates, float64: year, month, and days since the first training row's."""
    days = (dates - first) / pd.Timedelta(days=1)
    parts = {"year": dates.dt.year, "month": dates.dt.month, "days": days}
    return {name: values.astype("float64") for name, values in parts.items()}


def first_date(known: pd.DataFrame, column: str) -> pd.Timestamp:
    """The first training row's date, as an index tells it: the day from which its days lead into its months."""
    rows = known.loc[known["split"] == "train", [f"{column}_{part}" for part in ("year", "month", "days")]].dropna()
    if not len(rows):
        return pd.NaT
    year, month, _ = rows.loc[rows[f"{column}_days"].idxmin()]
    begin = pd.Timestamp(int(year), int(month), 1)
    days = [begin + pd.Timedelta(days=k) for k in range(begin.days_in_month)]

    def fitting(day: pd.Timestamp) -> int:
        dates = day + pd.to_timedelta(rows[f"{column}_days"], unit="D")
        return int(((dates.dt.year == rows[f"{column}_year"]) & (dates.dt.month == rows[f"{column}_month"])).sum())

    return max(days, key=fitting)


_DAY_FIRST = r"(1[3-9]|2\d|3[01])[-/.]\d{1,2}[-/.]\d{2,4}.*|\d{1,2}\.\d{1,2}\.\d{2,4}.*"
_DATE = r"\d{4}[-/.]?\d{1,2}[-/.]?\d{1,2}([ T].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([ T].*)?"


def read_dates(values: pd.Series) -> pd.Series:
    """A column as datetime64[ns], NaT where a value is no date of 1678 to 2261.

    Read are 2019-05-01, 20190501, 5/1/2019, 1.5.2019, with a time or without.
    The day comes first where points stand between, or where any row's first number can be no month.
    """
    text = values.dropna().astype(str).str.strip()
    text = text[text.str.fullmatch(_DATE)]
    first = bool(text.str.fullmatch(_DAY_FIRST).any()) and not text.str.fullmatch(r"\d{4}.*").all()
    dates = pd.to_datetime(text, errors="coerce", format="mixed", dayfirst=first, utc=True).dt.tz_localize(None)
    known = dates.between(pd.Timestamp("1678-01-01"), pd.Timestamp("2262-01-01"))  # what 64 bits of ns hold
    return dates.where(known).reindex(values.index).astype("datetime64[ns]")


_COMMA = r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)(?:,\d+)?"
_THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"  # 1234 to one reader, 1.234 to another


def read_numbers(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """A column as float64, and what in it is no number: NaN in the first, text in the second.

    Beside numbers, ages are read as DICOM writes them ('045Y', '010M', in years), and decimal commas ('1,5',
    '1.234,5') where the whole column has them and they can't be meant as thousands.
    """
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    numbers = numbers.where(np.isfinite(numbers))  # an infinite age is none
    text = values[numbers.isna() & values.notna()].astype(str).str.strip()
    text = text[~text.str.lower().isin(["", "nan"])]
    if not len(text):
        return numbers, text
    every = values.dropna().astype(str).str.strip()
    commas = every[every.str.contains(",", regex=False)]
    if every.str.fullmatch(_COMMA).all() and not commas.str.fullmatch(_THOUSANDS).all():
        points = every.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        return pd.to_numeric(points).astype("float64").reindex(values.index), text[:0]
    years = text.map(parse.age).astype("float64")
    return numbers.fillna(years), text[years.isna()]


def like(known: pd.Series, values: pd.Series) -> pd.Series:
    """New rows' values of a metadata column in the type that the known rows gave it."""
    if not pd.api.types.is_numeric_dtype(known):
        return text(values)
    numbers = typed(values)
    return numbers if pd.api.types.is_float_dtype(numbers) else read_numbers(values)[0]


def typed(values: pd.Series) -> pd.Series:
    """A header column as float64 where all of it is numbers, or dates (days since 1970-01-01); else as text."""
    there = values.notna()
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    if numbers.notna().equals(there):
        return numbers
    dates = text(values)
    if dates[there].str.fullmatch(r"\d{4}-\d{2}-\d{2}").all():
        days = pd.to_datetime(dates, errors="coerce") - pd.Timestamp("1970-01-01")
        return (days / pd.Timedelta(days=1)).astype("float64")
    return dates


def text(values: pd.Series) -> pd.Series:
    """A column as strings: 1.0 and 1 are one, what is missing stays missing."""
    return values.astype(object).map(_name, na_action="ignore").astype("string")


def _name(value: Any) -> str:
    """1.0 and 1 name the same category: a column with gaps is read as float, one without as int."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_number(text: str) -> bool:
    """Whether a name is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
