"""Index and groups -> a fold for every training row: made once, checked, saved with its hash, then only reread."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise import UserError, atomic
from foldwise.competition import Competition


def stratify(strata: np.ndarray, groups: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A fold in 0..n-1 for every row, int64 (N,): each group whole, each stratum spread evenly.

    strata: (N, S) float, what to balance (one-hot classes, labels, target bins); groups: (N,) any hashable.
    Greedy, the largest and most lopsided groups first (shuffled before, so ties fall by the seed): each goes to the
    fold whose shares of all strata, and of rows, it leaves most even. scikit-learn's StratifiedGroupKFold does the
    same, but its shuffle is broken in 1.6.1 and its folds differ by version.
    """
    _, group_of = np.unique(groups.astype(str), return_inverse=True)
    n_groups = int(group_of.max()) + 1
    counted = np.concatenate([strata.astype(np.float64), np.ones((len(strata), 1))], axis=1)
    per_group = np.zeros((n_groups, counted.shape[1]))
    np.add.at(per_group, group_of, counted)
    total = np.maximum(per_group.sum(axis=0), 1e-12)
    shares = per_group / total  # a rare class weighs as much as a common one

    order = np.random.default_rng(seed).permutation(n_groups)
    order = order[np.argsort(-shares[order].max(axis=1), kind="stable")]
    held = np.zeros((n, counted.shape[1]))
    fold_of_group = np.empty(n_groups, dtype=np.int64)
    for group in order:
        # adding g to fold k changes sum((held - 1/n)^2) by 2 held_k.g + const: pick the smallest
        overlap = held @ shares[group]
        fold = int(np.argmin(np.round(overlap, 12)))
        held[fold] += shares[group]
        fold_of_group[group] = fold
    return fold_of_group[group_of]


def make_once(competition: Competition, table: pd.DataFrame, anew: bool = False) -> pd.DataFrame:
    """The saved folds, or new ones of the index's readable training rows, saved; checked either way.

    Saved folds whose rows are not today's rows are refused rather than remade: runs already rest on them.
    """
    train = table[(table["split"] == "train") & table["error"].isna()]
    folder = competition.derived()
    if anew or not _saved(folder):
        made = make(competition, train)
        check(competition, made, train)
        save(made, folder)
    found = load(competition)
    astray = set(found["id"]) ^ set(train["id"])
    if astray:
        some = sorted(astray)[0]
        where = "only in folds.csv" if some in set(found["id"]) else "not in folds.csv"
        raise UserError(
            f"{folder / 'folds.csv'}: made for other rows ({len(astray)} differ; id '{some}' is {where}); "
            "run 01_preprocess.py --new-folds, then train anew"
        )
    return found


def choose(folds: pd.DataFrame, text: str) -> list[int]:
    """The folds that `--fold K|all` names."""
    known = sorted(folds["fold"].unique().tolist())
    if text == "all":
        return known
    if not text.isdigit() or int(text) not in known:
        raise UserError(f"--fold {text}: choose one of {', '.join(map(str, known))}, or all")
    return [int(text)]


def make(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    """Columns id, group, fold for the readable training rows of an index; from `folds.file` where one is given."""
    if competition.folds.file is not None:
        return _from_file(competition, train)
    frame = train[["id", "group"]].reset_index(drop=True)
    n = competition.folds.n
    if frame["group"].nunique() < n:
        raise UserError(f"{competition.file}: folds.n is {n}, but there are only {frame['group'].nunique()} groups")
    strata = strata_of(competition, train)
    return frame.assign(fold=stratify(strata, frame["group"].to_numpy(), n, competition.folds.seed))


def strata_of(competition: Competition, train: pd.DataFrame) -> np.ndarray:
    """What the folds balance, float (N, S): classes one-hot, labels as they are, ten bins of a regression target."""
    if competition.task == "multilabel":
        return np.nan_to_num(train[competition.truth].to_numpy(dtype=float))
    target = train["target"]
    if competition.task == "regression":
        target = pd.qcut(target.rank(method="first"), min(10, len(target)), labels=False)
    return pd.get_dummies(target).to_numpy(dtype=float)


def check(competition: Competition, folds: pd.DataFrame, train: pd.DataFrame) -> list[str]:
    """Warnings (a class missing from a fold); UserError where a group lies in two folds or ids do not match."""
    spread = folds.groupby("group")["fold"].nunique()
    if (spread > 1).any():
        group = spread.index[spread > 1][0]
        raise UserError(f"folds.csv: group '{group}' lies in {spread[group]} folds; delete the file to make it anew")
    if competition.task == "regression":
        return []
    joined = folds.merge(train[["id", *competition.truth]], on="id", validate="one_to_one")
    warnings = []
    for name in competition.truth:
        counts = pd.crosstab(joined["fold"], joined[name])
        lacking = counts.columns[(counts == 0).any()]
        for value in lacking[:3]:
            empty = counts.index[counts[value] == 0].tolist()
            warnings.append(f"fold {', '.join(map(str, empty))}: no row has {name} = {value}; its score is shaky")
        if len(lacking) > 3:
            warnings.append(f"{len(lacking) - 3} more values of {name} are missing from some fold")
    return warnings


def rows(table: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """The training rows of an index in the order of the folds; UserError where a row of the folds is not there."""
    train = table[table["split"] == "train"].set_index("id", drop=False)
    missing = folds["id"][~folds["id"].isin(train.index)]
    if len(missing):
        raise UserError(
            f"folds.csv: id '{missing.iloc[0]}' is not in the index ({len(missing)} such); run 01_preprocess.py "
            "--new-folds, then train anew"
        )
    return train.loc[folds["id"]]


def _saved(folder: Path) -> bool:
    return (folder / "folds.csv").exists() and (folder / "folds.json").exists()


def save(folds: pd.DataFrame, folder: Path) -> None:
    """folds.csv and folds.json (hash, rows a fold), each written whole."""
    facts = {"hash": digest(folds), "n": int(folds["fold"].nunique()), "rows": len(folds)}
    (folder / "folds.json").unlink(missing_ok=True)
    atomic.write_csv(folder / "folds.csv", folds)
    atomic.write_json(folder / "folds.json", facts)  # last: it vouches for the other


def load(competition: Competition) -> pd.DataFrame:
    """The saved folds (id str, group str, fold int); UserError where there are none or they changed since."""
    path = competition.derived() / "folds.csv"
    if not _saved(path.parent):
        raise UserError(f"{path}: not there yet; run python src/01_preprocess.py --competition {competition.name}")
    folds = pd.read_csv(path, dtype={"id": str, "group": str}, keep_default_na=False)
    expected = json.loads((path.parent / "folds.json").read_text(encoding="utf-8"))["hash"]
    if digest(folds) != expected:
        raise UserError(
            f"{path}: edited since it was made (hash {digest(folds)}, was {expected}); to use other "
            "folds, set `folds: {file: ...}` in the competition and run 01_preprocess.py --new-folds"
        )
    return folds


def digest(folds: pd.DataFrame) -> str:
    """A hash of who is in which fold, whatever the row order."""
    lines = sorted(f"{row_id}\t{fold}" for row_id, fold in zip(folds["id"], folds["fold"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _from_file(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    path = competition.raw() / str(competition.folds.file)
    if not path.exists():
        raise UserError(f"{path}: no such file, named by folds.file in {competition.file}")
    given = pd.read_csv(path, dtype={"id": str}, keep_default_na=False)
    if not {"id", "fold"} <= set(given.columns):
        raise UserError(f"{path}: needs columns id and fold, has {', '.join(given.columns)}")
    if given["id"].duplicated().any():
        raise UserError(f"{path}: id {given['id'][given['id'].duplicated()].iloc[0]} stands there twice")
    own = train["host_group"] if "host_group" in train else train["group"]  # copies may lie apart: audit warns of them
    frame = train[["id"]].assign(group=own).merge(given[["id", "fold"]], on="id", how="left")
    if frame["fold"].isna().any():
        raise UserError(
            f"{path}: no fold for {int(frame['fold'].isna().sum())} training rows, "
            f"such as id {frame['id'][frame['fold'].isna()].iloc[0]}"
        )
    numbers = pd.to_numeric(frame["fold"], errors="coerce")
    if numbers.isna().any() or (numbers % 1 != 0).any() or numbers.nunique() < 2:
        raise UserError(f"{path}: column fold must hold whole numbers, two folds at least")
    return frame.assign(fold=numbers.astype(int))
