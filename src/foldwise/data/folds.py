"""Index and groups -> a fold for every training row: made once, checked, saved with its hash, then only reread."""

from __future__ import annotations

import hashlib
import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import UserError, stats
from foldwise.core.files import write_csv, write_json
from foldwise.data import index
from foldwise.data.competition import Competition
from foldwise.data.recipe import differences
from foldwise.data.rows import table_columns

BIG = 0.05  # share of a fold from which on a group is placed by balance alone
FEW = 20_000  # ways to spread groups over folds that are all tried


def stratify(strata: np.ndarray, groups: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A fold in 0..n-1 for every row, int64 (N,): each group whole, each stratum spread evenly.

    strata: (N, S) float, what to balance (one-hot classes, labels, target bins); groups: (N,) any hashable.
    A group goes where a hash of its name and the seed sends it first, as long as that fold has room for each of its
    strata (rendezvous hashing with bounded loads, Mirrokni 2018): a group that is merged or taken away moves few
    others. Large groups, and those without room, go to the fold whose shares they leave most even. Where there are few
    groups, all ways are tried.
    """
    names, group_of = np.unique(groups.astype(str), return_inverse=True)
    counted = np.concatenate([strata.astype(np.float64), np.ones((len(strata), 1))], axis=1)
    per_group = np.zeros((len(names), counted.shape[1]))
    np.add.at(per_group, group_of, counted)
    likes = _preferences(names, n, seed)
    place = _best if n ** len(names) <= FEW else _bounded
    return place(per_group, likes)[group_of]


def _preferences(names: np.ndarray, n: int, seed: int) -> np.ndarray:
    """uint64 (groups, n): random numbers that depend on a group's name, the fold and the seed alone."""
    digests = (hashlib.blake2b(f"{seed}\t{name}".encode(), digest_size=8).digest() for name in names)
    x = np.frombuffer(b"".join(digests), "<u8")[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _best(per_group: np.ndarray, likes: np.ndarray) -> np.ndarray:
    """The fold of each group by trying all ways; ties fall by preference."""
    count, n = likes.shape
    shares = per_group / np.maximum(per_group.sum(axis=0), 1e-12)
    ways = np.array(list(itertools.product(range(n), repeat=count)))
    held = np.stack([(ways == k) @ shares for k in range(n)], axis=1)
    uneven = np.round(((held - 1 / n) ** 2).sum(axis=(1, 2)), 9)  # rounded: ties are ties on every machine
    liked = likes[np.arange(count), ways].astype(np.float64).sum(axis=1)
    return ways[np.lexsort((liked, uneven))[0]]


def _bounded(per_group: np.ndarray, likes: np.ndarray) -> np.ndarray:
    """The fold of each group: the one it likes best that has room, the largest and most lopsided groups first."""
    n, total = likes.shape[1], np.maximum(per_group.sum(axis=0), 1e-12)
    shares = per_group / total  # a rare class weighs as much as a common one
    room = np.tile(np.floor(total / n), (n, 1)).tolist()
    spare = np.rint(total - n * np.floor(total / n)).tolist()  # folds that may hold one more
    held = np.zeros((n, len(total)))
    fold_of_group = np.empty(len(likes), np.int64)
    strata = [np.flatnonzero(row).tolist() for row in per_group]
    for group in np.lexsort((likes[:, 0], -shares.max(axis=1))):
        need, order = per_group[group], np.argsort(likes[group], kind="stable").tolist()
        fits = (
            k for k in order if all(room[k][s] >= need[s] - (spare[s] > 0 and room[k][s] >= 0) for s in strata[group])
        )
        fold = next(fits, None) if shares[group, -1] * n <= BIG else None
        if fold is None:  # adding g to fold k changes sum((held - 1/n)^2) by 2 held_k.g + const
            overlap = np.round(held @ shares[group], 12)
            fold = min(order, key=overlap.__getitem__)
        for s in strata[group]:
            was, room[fold][s] = room[fold][s], room[fold][s] - need[s]
            spare[s] -= was >= 0 > room[fold][s]
        held[fold] += shares[group]
        fold_of_group[group] = fold
    return fold_of_group


def make_once(competition: Competition, table: pd.DataFrame, anew: bool = False) -> pd.DataFrame:
    """The saved folds, or new ones of the index's readable training rows, saved; checked either way.

    Saved folds whose rows are not today's rows are refused rather than remade: runs already rest on them.
    """
    train = table[(table["split"] == "train") & table["error"].isna()]
    folder = competition.derived()
    if anew or not are_saved(competition):
        assigned = assign_folds(competition, train)
        check(competition, assigned, train)
        save_folds(assigned, competition)
    saved = load_folds(competition)
    _same_rows(folder, saved, set(train["id"]))
    check(competition, saved, train)
    return saved


def check_saved(competition: Competition, table: pd.DataFrame) -> None:
    """UserError, before anything is replaced, where folds.csv no longer fits the competition file or the raw rows.

    table: an index with its files' headers read. Rows that an earlier run set aside while decoding may be missing.
    """
    folder = competition.derived()
    if not are_saved(competition):
        return
    saved = load_folds(competition)
    train = table[(table["split"] == "train") & table["error"].isna()]
    _same_rows(folder, saved, set(train["id"]) - (_broken(competition) - set(saved["id"])))
    check(competition, saved, train)


def _broken(competition: Competition) -> set[str]:
    """Ids that an earlier 01 set aside, from its index, or where that is damaged from what it wrote for people."""
    with suppress(UserError):
        table = index.load_index(competition)
        return set(table["id"][table["error"].notna()])
    with suppress(OSError, ValueError, KeyError):
        return set(pd.read_csv(competition.derived() / "unreadable.csv", dtype=str, keep_default_na=False)["id"])
    return set()


def _same_rows(folder: Path, saved: pd.DataFrame, ids: set[str]) -> None:
    mismatched = set(saved["id"]) ^ ids
    if mismatched:
        some = sorted(mismatched)[0]
        where = "only in folds.csv" if some in set(saved["id"]) else "not in folds.csv"
        raise UserError(
            f"{folder / 'folds.csv'}: made for other rows ({len(mismatched)} differ; id '{some}' is {where}); "
            "bring the files back, or run 01_preprocess.py --new-folds, then train anew"
        )


def choose(folds: pd.DataFrame, text: str) -> list[int]:
    """The folds that `--fold K|all` names."""
    known = sorted(folds["fold"].unique().tolist())
    if text == "all":
        return known
    if not text.isdigit() or int(text) not in known:
        raise UserError(f"--fold {text}: choose one of {', '.join(map(str, known))}, or all")
    return [int(text)]


def assign_folds(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    """Columns id, group, fold for the readable training rows of an index; from `folds.file` where one is given."""
    if competition.folds.file is not None:
        return _from_file(competition, train)
    frame = train[["id", "group"]].reset_index(drop=True)
    n = competition.folds.n
    if frame["group"].nunique() < n:
        raise UserError(_too_few_groups(competition, train))
    if competition.folds.blocks is not None:
        return frame.assign(fold=_blocks(competition, train, n))
    strata = strata_of(competition, train)
    return frame.assign(fold=stratify(strata, frame["group"].to_numpy(), n, competition.folds.seed))


def _blocks(competition: Competition, train: pd.DataFrame, n: int) -> np.ndarray:
    """int64 (N,): n stretches of `folds.blocks` with as many rows each; a group lies where its median does."""
    column = str(competition.folds.blocks)
    table = table_columns(competition, train)
    if column not in table:
        raise UserError(f"{competition.file}: folds.blocks: no column '{column}' in the train table")
    values = table[column]
    if not pd.api.types.is_numeric_dtype(values):
        dates = pd.to_datetime(values, errors="coerce", format="mixed")
        values = dates if dates.notna().all() else values
    if values.isna().any():
        some = train["id"][values.isna().to_numpy()].iloc[0]
        raise UserError(f"{competition.file}: folds.blocks: '{column}' is empty for id '{some}'")
    place = values.rank(method="dense").groupby(train["group"].to_numpy()).transform("median")
    sizes = place.value_counts().sort_index()
    fold_of = ((sizes.cumsum() - sizes / 2) * n // len(train)).astype(np.int64)
    folds = place.map(fold_of)
    if folds.nunique() < n:
        raise UserError(f"{competition.file}: folds.blocks: '{column}' has too few different values for {n} folds")
    return folds.to_numpy()


def _too_few_groups(competition: Competition, train: pd.DataFrame) -> str:
    groups, own = train["group"].nunique(), train.get("host_group", train["group"]).nunique()
    why = ""
    if own >= competition.folds.n:
        largest = train.groupby("group")["host_group"].unique().map(len).idxmax()
        merged = sorted(train.loc[train["group"] == largest, "host_group"].unique())
        why = (
            f": images taken for copies merged {own} groups into {groups}, such as {', '.join(map(str, merged[:3]))} "
            "(duplicates.csv lists the pairs); `merge_copies: false` keeps them apart"
        )
    return f"{competition.file}: folds.n is {competition.folds.n}, but there are only {groups} groups{why}"


def strata_of(competition: Competition, train: pd.DataFrame) -> np.ndarray:
    """What the folds balance, float (N, S): classes one-hot, labels as they are, ten bins of a regression target."""
    return stats.strata(train[competition.truth if competition.task == "multilabel" else "target"], competition.task)


def check(competition: Competition, folds: pd.DataFrame, train: pd.DataFrame) -> list[str]:
    """Warnings (a class missing from a fold); UserError where a group, of the folds or of the host, lies in two."""
    own = [train.set_index("id")[column] for column in ("host_group",) if column in train]
    for groups in (folds["group"], *(folds["id"].map(host) for host in own)):
        spread = folds.groupby(groups.to_numpy())["fold"].nunique()
        if (spread > 1).any():
            group = spread.index[spread > 1][0]
            raise UserError(
                f"folds.csv: group '{group}' ({competition.groups_by or 'copies'}) lies in {spread[group]} folds; run "
                "01_preprocess.py --new-folds, then train anew"
            )
    uneven = _uneven(folds)
    if competition.task == "regression":
        return uneven
    joined = folds.merge(train[["id", *competition.alike]], on="id", validate="one_to_one")
    warnings = []
    for name in competition.alike:
        counts = pd.crosstab(joined["fold"], joined[name])
        lacking = counts.columns[(counts == 0).any()]
        for value in lacking[:3]:
            empty = counts.index[counts[value] == 0].tolist()
            warnings.append(f"fold {', '.join(map(str, empty))}: no row has {name} = {value}; its score is shaky")
        if len(lacking) > 3:
            warnings.append(f"{len(lacking) - 3} more values of {name} are missing from some fold")
    return uneven + warnings


def _uneven(folds: pd.DataFrame) -> list[str]:
    """A warning where a fold has under half or over twice its share of the rows."""
    sizes, share = folds["fold"].value_counts(), len(folds) / folds["fold"].nunique()
    if sizes.min() >= share / 2 and sizes.max() <= 2 * share:
        return []
    largest = folds["group"].value_counts()
    return [
        f"folds of {', '.join(map(str, sizes.sort_index()))} rows, where {share:.0f} each would be even: group "
        f"'{largest.index[0]}' alone has {largest.iloc[0]}, and a group lies in one fold; if its images are copies of "
        "one placeholder, take them out"
    ]


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


def are_saved(competition: Competition) -> bool:
    """True where step 1 has made the folds."""
    folder = competition.derived()
    return (folder / "folds.csv").exists() and (folder / "folds.json").exists()


def save_folds(folds: pd.DataFrame, competition: Competition) -> None:
    """folds.csv and folds.json (hashes, rows, the keys of the competition file they rest on), each written whole."""
    folder = competition.derived()
    meta = {
        "hash": digest(folds),
        "groups": digest(folds, "group"),
        "n": int(folds["fold"].nunique()),
        "rows": len(folds),
        "made_of": _made_of(competition),
    }
    (folder / "folds.json").unlink(missing_ok=True)
    write_csv(folder / "folds.csv", folds)
    write_json(folder / "folds.json", meta)  # last: it vouches for the other


def load_folds(competition: Competition) -> pd.DataFrame:
    """The saved folds (id str, group str, fold int); UserError where there are none or they changed since."""
    path = competition.derived() / "folds.csv"
    if not are_saved(competition):
        raise UserError(f"{path}: not there yet; run python src/01_preprocess.py --competition {competition.name}")
    remedy = "restore it from a copy, or run 01_preprocess.py --new-folds (the same seed gives the same folds)"
    try:
        folds = pd.read_csv(path, dtype={"id": str, "group": str, "fold": int}, keep_default_na=False)
        meta = json.loads((path.parent / "folds.json").read_text(encoding="utf-8"))
        if not {"id", "group", "fold"} <= set(folds) or not {"hash"} <= set(meta):
            raise ValueError("columns or keys are missing")
    except (ValueError, TypeError, OSError) as error:
        why = " ".join(str(error).split())[:100]
        raise UserError(f"{path} or folds.json beside it: damaged ({why}); {remedy}") from None
    if digest(folds) != meta["hash"] or digest(folds, "group") != meta.get("groups", digest(folds, "group")):
        raise UserError(
            f"{path}: edited since it was made (hash {digest(folds)}, was {meta['hash']}); to use other "
            "folds, set `folds: {file: ...}` in the competition and run 01_preprocess.py --new-folds"
        )
    changed = differences(meta.get("made_of", {}), _made_of(competition)) if "made_of" in meta else []
    if changed:
        raise UserError(
            f"{path}: {competition.file} has changed since it was made ({'; '.join(changed)}); change it back, or run "
            "01_preprocess.py --new-folds, then train anew"
        )
    return folds


def _made_of(competition: Competition) -> dict[str, Any]:
    """What of the competition file decides who is in which fold."""
    given = competition.folds
    if given.file is None:
        blocks = {"blocks": given.blocks} if given.blocks else {}
        return {"group": competition.groups_by, "folds": {"n": given.n, "seed": given.seed, "file": None} | blocks}
    path = _file(competition)
    contents = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "missing"
    return {"group": competition.groups_by, "folds": {"file": f"{given.file} ({contents})"}}


def digest(folds: pd.DataFrame, column: str = "fold") -> str:
    """A hash of who is in which fold (or group), whatever the row order."""
    lines = sorted(f"{row_id}\t{value}" for row_id, value in zip(folds["id"], folds[column], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _file(competition: Competition) -> Path:
    return competition.raw() / str(competition.folds.file)


def _from_file(competition: Competition, train: pd.DataFrame) -> pd.DataFrame:
    path = _file(competition)
    if not path.exists():
        raise UserError(f"{path}: no such file, named by folds.file in {competition.file}")
    given = pd.read_csv(path, dtype=str, keep_default_na=False)
    named = next((c for c in ("fold", "kfold", "folds", "Fold") if c in given), None)
    keys = [column for column in dict.fromkeys(["id", competition.id, *given]) if column in given and column != named]
    if named is None or not keys:
        raise UserError(f"{path}: needs a column of ids and a column fold, has {', '.join(given.columns)}")
    key = max(keys, key=lambda column: int(train["id"].isin(given[column]).sum()))  # the first of equals
    given = pd.DataFrame({"id": given[key], "fold": given[named]})
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
