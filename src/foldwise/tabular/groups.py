"""What a row is within its group (a patient, a lesion): how many there are, its rank, its z-score, and how far it lies
from the others, the "ugly duckling" sign of the ISIC 2024 solutions. Only a group's own rows tell, and no target does.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

FEWEST = 5  # rows of a group among which one can be an outlier
NEIGHBOURS = 20  # of the local outlier factor at most: 2 and a tenth of the group, as nobody is far among all of it


def within(values: pd.DataFrame, key: pd.Series) -> pd.DataFrame:
    """'<column> rank in group', 0 the lowest value and 1 the highest, and '<column> z in group', of columns of numbers.

    key: each row's group. NaN where a group has one value only.
    """
    columns = {}
    for name in values:
        grouped = values[name].groupby(key)
        rank = grouped.rank(method="dense") - 1
        columns[f"{name} rank in group"] = rank / rank.groupby(key).transform("max").replace(0, np.nan)
        columns[f"{name} z in group"] = standardised(values[name], key)
    return pd.DataFrame(columns, index=values.index)


def standardised(values: pd.Series, key: pd.Series) -> pd.Series:
    """(value - its group's mean) / its group's standard deviation; NaN where that is 0."""
    grouped = values.groupby(key)
    spread = grouped.transform("std", ddof=0)
    real = spread > 1e-9 * (1 + grouped.transform("mean").abs())  # else it is rounding
    return (values - grouped.transform("mean")) / spread.where(real)


def outlyingness(values: pd.DataFrame, key: pd.Series) -> pd.Series:
    """The local outlier factor (Breunig 2000) of each row in its group: about 1 among its like, more far from them.

    Columns count in standard deviations of the group, a missing value as its mean. NaN in groups of fewer than FEWEST.
    """
    from sklearn.neighbors import LocalOutlierFactor

    spread = pd.DataFrame({name: standardised(values[name], key).fillna(0.0) for name in values}, index=values.index)
    factor = pd.Series(np.nan, index=values.index)
    for _, rows in spread.groupby(key, sort=False):
        if len(rows) >= FEWEST:
            model = LocalOutlierFactor(n_neighbors=min(NEIGHBOURS, 2 + len(rows) // 10))
            factor[rows.index] = -model.fit(rows.to_numpy()).negative_outlier_factor_
    return factor.clip(upper=100.0)  # the copies of a row are infinitely dense
