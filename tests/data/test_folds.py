"""Folds: groups whole, classes even, saved once, refused when they change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldwise import UserError
from foldwise.data import folds

pytestmark = pytest.mark.smoke


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(20, 200),
    groups=st.integers(5, 60),
    classes=st.integers(1, 4),
    n=st.integers(2, 5),
)
def test_a_group_never_lies_in_two_folds(seed: int, rows: int, groups: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    strata = np.eye(classes)[rng.integers(0, classes, rows)]
    group = rng.integers(0, groups, rows)
    fold = folds.stratify(strata, group, n, seed)
    assert fold.shape == (rows,)
    assert set(fold) <= set(range(n))
    assert pd.DataFrame({"g": group, "f": fold}).groupby("g")["f"].nunique().max() == 1


def test_without_groups_every_class_is_even_to_one_row() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(3, 1000, p=[0.9, 0.08, 0.02])
    fold = folds.stratify(np.eye(3)[label], np.arange(1000), 5, 0)
    counts = pd.crosstab(fold, label)
    assert (counts.max() - counts.min()).max() <= 1


def test_with_groups_a_rare_class_is_spread() -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 400, 3000)
    sick_group = rng.random(400) < 0.06
    label = (sick_group[group] & (rng.random(3000) < 0.5)).astype(int)
    fold = folds.stratify(np.eye(2)[label], group, 5, 0)
    positives = np.bincount(fold, weights=label)
    rows = np.bincount(fold)
    assert positives.max() - positives.min() <= 0.25 * positives.mean()
    assert rows.max() - rows.min() <= 0.02 * rows.mean()


def test_same_seed_same_folds_other_seed_other_folds() -> None:
    label = np.eye(2)[np.arange(200) % 2]
    one, two, other = (folds.stratify(label, np.arange(200), 4, seed) for seed in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()


def test_digest_ignores_row_order_and_sees_a_moved_row() -> None:
    table = pd.DataFrame({"id": ["a", "b", "c"], "group": ["a", "b", "c"], "fold": [0, 1, 0]})
    assert folds.digest(table) == folds.digest(table.iloc[::-1])
    assert folds.digest(table) != folds.digest(table.assign(fold=[1, 1, 0]))


def test_saved_folds_are_reread_and_an_edit_is_refused(trained) -> None:  # type: ignore[no-untyped-def]
    path = trained.derived / "folds.csv"
    before = path.read_bytes()
    trained.run("01_preprocess.py", "--sizes", 32)
    assert path.read_bytes() == before
    try:
        table = pd.read_csv(path)
        table.loc[0, "fold"] = (table.loc[0, "fold"] + 1) % 3
        table.to_csv(path, index=False)
        assert "edited since" in trained.refused("03_metadata.py")
    finally:
        path.write_bytes(before)


def test_folds_from_elsewhere_are_checked(tiny) -> None:  # type: ignore[no-untyped-def]
    train = pd.read_csv(tiny.raw / "train.csv", dtype=str)
    own = pd.DataFrame({"id": train["image_id"], "fold": [int(p[6:]) % 3 for p in train["patient"]]})
    own.to_csv(tiny.raw / "own.csv", index=False)
    tiny.describe(folds={"file": "own.csv"})
    tiny.run("01_preprocess.py", "--sizes", 32)
    made = pd.read_csv(tiny.derived / "folds.csv").set_index("id")["fold"]
    assert (made == own.set_index("id")["fold"].reindex(made.index)).all()

    own.assign(fold=np.arange(len(own)) % 3).to_csv(tiny.raw / "own.csv", index=False)
    assert "lies in" in tiny.refused("01_preprocess.py", "--sizes", 32, "--new-folds")
    own.iloc[1:].to_csv(tiny.raw / "own.csv", index=False)
    assert "no fold for 1 training rows" in tiny.refused("01_preprocess.py", "--sizes", 32, "--new-folds")


def test_more_folds_than_groups_is_one_clear_line(tiny) -> None:  # type: ignore[no-untyped-def]
    tiny.describe(folds={"n": 50})
    assert "only 30 groups" in tiny.refused("01_preprocess.py", "--sizes", 32)


def test_check_names_a_class_that_a_fold_lacks(tiny) -> None:  # type: ignore[no-untyped-def]
    from foldwise.data.competition import load_competition

    about = load_competition(str(tiny.competition))
    table = pd.DataFrame({"id": list("abcd"), "target": [1.0, 0.0, 0.0, 0.0], "split": "train"})
    split = pd.DataFrame({"id": list("abcd"), "group": list("abcd"), "fold": [0, 0, 1, 1]})
    assert folds.check(about, split, table) == ["fold 1: no row has target = 1.0; its score is shaky"]
    with pytest.raises(UserError, match=r"group 'g' \(patient\) lies in 2 folds"):
        folds.check(about, split.assign(group="g"), table)


def test_a_merged_group_or_a_row_less_moves_few_rows() -> None:
    rng = np.random.default_rng(3)
    label = np.eye(2)[rng.choice(2, 2000, p=[0.9, 0.1])]
    groups = np.array([f"p{k}" for k in rng.integers(0, 900, 2000)], dtype=object)
    before = folds.stratify(label, groups, 5, 0)
    merged = groups.copy()
    for one, other in rng.choice(np.unique(groups), (5, 2), replace=False):
        merged[merged == one] = other
    assert (folds.stratify(label, merged, 5, 0) == before).mean() > 0.95
    assert (folds.stratify(label[1:], groups[1:], 5, 0) == before[1:]).mean() > 0.95


def test_where_there_are_few_groups_the_best_way_is_found() -> None:
    """scikit-learn#28218: six rows, four groups, two folds, every class in both."""
    y, groups = np.array([1, 1, 0, 0, 2, 2]), np.array(list("abbccd"))
    for seed in range(5):
        fold = folds.stratify(np.eye(3)[y], groups, 2, seed)
        assert (pd.crosstab(fold, y) == 1).all(axis=None)


def test_uneven_folds_name_the_group_that_makes_them(tiny) -> None:  # type: ignore[no-untyped-def]
    from foldwise.data.competition import load_competition

    tiny.describe(folds={"n": 5})
    about = load_competition(str(tiny.competition))
    table = pd.DataFrame(
        {
            "id": [f"i{k}" for k in range(50)],
            "split": "train",
            "target": np.arange(50) % 2.0,
            "error": None,
            "group": ["grey"] * 25 + [f"g{k}" for k in range(25)],
            "host_group": [f"h{k}" for k in range(50)],
        }
    )
    (line,) = [line for line in folds.check(about, folds.assign_folds(about, table), table) if "would be even" in line]
    assert "group 'grey' alone has 25" in line
    few = table.assign(group=["a"] * 49 + ["b"])
    with pytest.raises(UserError, match=r"merged 50 groups into 2, such as h0, h1, h10 .*merge_copies: false"):
        folds.assign_folds(about, few)
