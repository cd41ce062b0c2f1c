"""Exact and near duplicates -> groups that folds keep whole; copies across train and test; conflicting labels.

    duplicates.csv    id_a, split_a, id_b, split_b, kind (exact | near), distance, agreement, view, same_label
    duplicates.json   the key of what made it, and how much was compared
    statistics.parquet  brightness, contrast and colour of every cached image

Candidates come from perceptual hashes (64 bits, Hamming distance, faiss) of the image in LOOKS: mirrored and turned,
cropped in the middle and at corners, turned by some degrees. A
hash forgets detail, and of images of one kind (lesions, chests) many have hashes alike: so each candidate is
confirmed on pixels, by how well the fine structure of both agrees after the best shift and zoom.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import fft
from threadpoolctl import threadpool_limits

from foldwise.audit import traits
from foldwise.audit.traits import LOOKS, STATISTICS, THUMBNAIL, Look, Traits, as_channels, bar
from foldwise.core import parallel, source
from foldwise.core.cli import counted
from foldwise.core.files import digest, read_voucher, replacing, write_csv, write_voucher
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition

SIZE = 96  # pixels a side that images are compared at: the same groups whatever sizes are cached
VERSION = 4  # raise it when the same images would give other pairs
RADIUS = 14  # bits of 64; a crop by 5 % on each side changes 8 in the median, 14 in one case of twenty
LOOK_RADIUS = 12  # in any other look: each is one more chance of a false candidate, so less is let through
TRIED = 3  # looks of a pair, beside whole ones, that are compared on pixels: the nearest is not always the right crop
NEIGHBOURS = 32  # candidates an image and look; more copies than that still chain together
MOST = 300_000  # candidates compared on pixels, nearest hashes first: bounds the time
AGREE = 0.80  # correlation of fine structure; of 1,900 candidates of unrelated skin lesions the highest had 0.71
ZOOMS = (1.0, 1.06, 1.12, 1 / 1.06, 1 / 1.12)  # crops of up to 8 % a side, on either image
HOPELESS = 0.3  # agreement without zoom below which zooming is not tried; crops of 5 % a side keep 0.38
COLUMNS = ["id_a", "split_a", "id_b", "split_b", "kind", "distance", "agreement", "view", "same_label"]


@dataclass(frozen=True)
class Audit:
    """What the images told: pairs, merged groups, light and colour."""

    group: pd.Series  # str, aligned with the index: the host's group, merged over duplicates within train
    pairs: pd.DataFrame  # COLUMNS; a copy of many is paired with the first of them only
    statistics: pd.DataFrame  # traits.STATISTICS, aligned with the index, NaN where unreadable
    meta: dict[str, int | float | bool]  # images, flat, candidates, skipped, merged, seconds

    @property
    def conflicts(self) -> pd.DataFrame:
        """Labelled pairs whose labels differ."""
        return self.pairs[self.pairs["same_label"].eq(False).fillna(False)]

    def accused(self, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The conflicts by what they say: the same pixels (a label is wrong), one group (two visits?), only alike."""
        own = table.set_index(["split", "id"])["host_group" if "host_group" in table else "group"]
        ends = [own.loc[list(zip(self.conflicts[f"split_{s}"], self.conflicts[f"id_{s}"], strict=True))] for s in "ab"]
        exact = (self.conflicts["kind"] == "exact").to_numpy()
        visits = (ends[0].to_numpy() == ends[1].to_numpy()) & ~exact
        return self.conflicts[exact], self.conflicts[visits], self.conflicts[~exact & ~visits]

    @property
    def across(self) -> pd.DataFrame:
        """Pairs of a labelled and a test image: their test rows are known, and their scores flatter."""
        return self.pairs[(self.pairs["split_a"] == "test") != (self.pairs["split_b"] == "test")]

    def split_by(self, fold_table: pd.DataFrame) -> pd.DataFrame:
        """Training pairs in two folds of `fold_table` (id, fold): folds that were made without this audit."""
        fold_of = dict(zip(fold_table["id"], fold_table["fold"], strict=True))
        within = self._within
        folds = within[["id_a", "id_b"]].map(lambda name: fold_of.get(name, np.nan))
        return within[(folds["id_a"] != folds["id_b"]) & folds.notna().all(axis=1)]

    @property
    def _within(self) -> pd.DataFrame:
        return self.pairs[(self.pairs["split_a"] == "train") & (self.pairs["split_b"] == "train")]

    def warnings(self, table: pd.DataFrame, fold_table: pd.DataFrame) -> list[str]:
        """What of it a person should know before training, a line each. table: the index."""
        lines, split = [], self.split_by(fold_table)
        says = (
            "the same pixels, so at least one label of each is wrong",
            "of one group: perhaps two visits",
            "much alike: mislabelled copies, or two things of one kind; look",
        )
        for pairs, words in zip(self.accused(table), says, strict=True):
            if len(pairs):
                first = f"{pairs['id_a'].iloc[0]} and {pairs['id_b'].iloc[0]}"
                lines.append(f"different labels: {counted(len(pairs), 'pair')}, the first {first}; {words}")
        if len(split):
            lines.append(
                f"copies in different folds: {counted(len(split), 'pair')}, the first {split['id_a'].iloc[0]} and "
                f"{split['id_b'].iloc[0]}; scores flatter until the folds are made anew (--new-folds)"
            )
        elif len(self._within) and self.meta["merged"]:
            lines.append(f"copies within train: {counted(len(self._within), 'pair')}, each kept in one fold")
        extra = (self.pairs[["split_a", "split_b"]] == "extra").any(axis=1) & ~self.pairs.index.isin(self.across.index)
        if extra.any():
            lines.append(
                f"copies among the extra images: {counted(extra.sum(), 'pair')}, kept out of folds that validate them"
            )
        if len(self.across):
            lines.append(
                f"copies across train and test: {counted(len(self.across), 'pair')}; their test score is too good"
            )
        if self.meta.get("skipped"):
            lines.append(f"{self.meta['skipped']} candidates for copies were not compared: too many look alike")
        return lines


def duplicate_groups(
    competition: Competition, table: pd.DataFrame, images: Cache, *, turned: bool = True, fresh: bool = False
) -> Audit:
    """The audit of an index and its cache of SIZE, whatever sizes are trained on; saved, and reread while both stay.

    turned: also find mirrored and turned copies. fresh: compare anew even if the saved pairs fit.
    """
    key = _key(competition, table, images, turned)
    saved = None if fresh else _saved(competition, table, key)
    if saved is not None:
        return saved
    started = time.perf_counter()
    rows = np.flatnonzero(images.ids["ok"].to_numpy(bool) & table["error"].isna().to_numpy())
    seen = traits.look(images, rows)
    pairs, compared = duplicates(seen, table, images, competition.raw(), turned)
    named = _named(competition, pairs, table)
    merged = merge(table, named) if competition.merge_copies else table["group"]
    meta: dict[str, int | float | bool] = {
        "images": len(rows),
        "flat": int(seen.flat.sum()),
        **compared,
        "merged": _merged_away(table, merged),
        "seconds": round(time.perf_counter() - started, 1),
    }
    statistics = seen.statistics.set_axis(table.index[rows]).reindex(table.index)
    audit = Audit(merged, named, statistics, meta)
    _save(audit, table, competition.derived(), key)
    return audit


def load_audit(competition: Competition, table: pd.DataFrame) -> Audit | None:
    """The saved audit of the index `table`, or None where there is none or the index has other rows."""
    return _saved(competition, table, None)


# --- pairs ------------------------------------------------------------------------------------------------


def duplicates(
    seen: Traits, table: pd.DataFrame, images: Cache, raw: Path, turned: bool = True
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs a, b (row numbers of `table`), kind, distance, agreement, look; and how many candidates there were."""
    exact = _exact(seen, table, raw)
    alone = np.flatnonzero(~seen.flat & ~np.isin(seen.rows, [b for _, b in exact]))
    alike = candidates(seen.hashes[alone], turned)
    skipped = max(0, len(alike) - MOST)
    alike = alike.head(MOST)
    places = alike.assign(a=seen.rows[alone[alike["a"]]], b=seen.rows[alone[alike["b"]]])
    places = places.sort_values(["a", "b"], ignore_index=True)
    places["agreement"] = agreement(images, places).round(5)  # a pair's two directions tie, whatever the last bits
    places = places[places["agreement"] >= AGREE].sort_values("agreement", ascending=False, kind="stable")
    both = [np.minimum(places["a"], places["b"]), np.maximum(places["a"], places["b"])]
    near = places[~pd.DataFrame(both).T.duplicated().to_numpy()].sort_values(["a", "b"]).assign(kind="near")
    same = pd.DataFrame(exact, columns=["a", "b"]).assign(distance=0, look=0, agreement=1.0, kind="exact")
    pairs = pd.concat([same, near], ignore_index=True).astype({"a": "int64", "b": "int64", "distance": "int64"})
    file = table["path"].to_numpy()
    pairs = pairs[file[pairs["a"]] != file[pairs["b"]]]  # frames of one file are alike, and in one group already
    return pairs.reset_index(drop=True), {"candidates": len(alike), "skipped": skipped}


def _exact(seen: Traits, table: pd.DataFrame, raw: Path) -> list[tuple[int, int]]:
    """(first, copy) row numbers of images whose cached pixels all are the same.

    All-black images can be the same and yet different scans: without detail, the bytes of their files decide.
    """
    frame = pd.DataFrame({"row": seen.rows, "pixels": seen.digests, "flat": seen.flat})
    frame["order"] = table["split"].map({"train": 0, "extra": 1, "test": 2}).to_numpy()[seen.rows]
    frame = frame.sort_values(["order", "row"])  # a training row stands first, and is what the others are copies of
    frame = frame[frame["pixels"].duplicated(keep=False)]
    pairs: list[tuple[int, int]] = []
    for (_, flat), part in frame.groupby(["pixels", "flat"], sort=False):
        rows = part["row"].tolist()
        for same in _same_files(rows, table, raw) if flat else [rows]:
            pairs += [(same[0], row) for row in same[1:]]
    return pairs


def _same_files(rows: list[int], table: pd.DataFrame, raw: Path) -> list[list[int]]:
    """Row numbers by the bytes of their files; only files of one length are read."""
    sizes = table["bytes"].iloc[rows].astype(object).tolist()
    common = Counter(sizes)
    by_bytes: dict[object, list[int]] = {}
    for row, size in zip(rows, sizes, strict=True):
        name = _file_digest(raw / table["path"].iloc[row]) if common[size] > 1 else row
        by_bytes.setdefault((size, name), []).append(row)
    return list(by_bytes.values())


def _file_digest(path: Path) -> str:
    try:
        return hashlib.blake2b(source.read(path)).hexdigest()
    except OSError:
        return str(path)  # gone since it was cached: then it is the copy of nothing


def candidates(hashes: np.ndarray, turned: bool = True) -> pd.DataFrame:
    """a, b (places in `hashes`), look (of a that resembles b), distance: pairs of alike hashes, each in its best TRIED
    looks.

    hashes: uint8 (N, LOOKS, 8). turned: also mirrored and in quarter turns. The nearest NEIGHBOURS an image and look,
    by exhaustive search: nothing is missed for the order in which images come.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # its threads wait by spinning: two on busy cores are 20 times slower than one
    n = len(hashes)
    index = faiss.IndexBinaryFlat(64)
    index.add(np.ascontiguousarray(hashes[:, 0]))

    def search(k: int) -> tuple[np.ndarray, np.ndarray]:
        near, other = index.search(np.ascontiguousarray(hashes[:, k]), min(NEIGHBOURS, n))
        one, place = np.nonzero(near <= (LOOK_RADIUS if k else RADIUS))
        two = other[one, place]
        apart = one != two
        # which of the two is looked at is kept in the rank's last bit
        ranks = (near[one, place].astype(np.int64) * len(LOOKS) + k) * 2 + (one > two)
        return (np.minimum(one, two) * n + np.maximum(one, two))[apart], ranks[apart]

    asked = [k for k, look in enumerate(LOOKS) if turned or not look.turn] if n >= 2 else []
    none = np.empty(0, np.int64)
    with ThreadPoolExecutor(parallel.cores()) as pool:
        hits = [(none, none), *bar(pool.map(search, asked), total=len(asked), desc="alike", unit="look")]
    keys, ranks = (np.concatenate(parts) for parts in zip(*hits, strict=True))
    return _nearest_looks(keys, ranks, max(1, n))


def _nearest_looks(keys: np.ndarray, ranks: np.ndarray, n: int) -> pd.DataFrame:
    """keys: low * n + high; ranks: (distance * looks + look) * 2 + (high is looked at), of which the smallest count."""
    order = np.lexsort((ranks, keys))
    begins = np.unique(keys[order], return_index=True)[1]
    number = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    whole = ranks[order] // 2 % len(LOOKS) < len(traits.TURNS)  # all of the image: always worth comparing
    first = order[(number < TRIED) | whole]
    first = first[np.argsort(ranks[first], kind="stable")]
    (low, high), ranks = np.divmod(keys[first], n), ranks[first]
    swapped, ranks = ranks % 2 == 1, ranks // 2
    a, b = np.where(swapped, high, low), np.where(swapped, low, high)
    return pd.DataFrame({"a": a, "b": b, "look": ranks % len(LOOKS), "distance": ranks // len(LOOKS)})


# --- confirmation on pixels -------------------------------------------------------------------------------


def agreement(images: Cache, pairs: pd.DataFrame, block: int = 4096) -> np.ndarray:
    """float (len(pairs),), -1..1: how well the fine structure of a, in its `look`, agrees with that of b.

    The highest correlation over shifts of up to a sixth of the side and over ZOOMS, of thumbnails whose smooth part
    is gone and whose local contrast is evened out: brightness, gamma, colour and compression hardly matter, and a
    dark blob in the middle is no agreement. a and b are rows of the cache. What pairs of a block share is made once.
    """
    parts = [pairs.iloc[start : start + block] for start in range(0, len(pairs), block)]
    with threadpool_limits(1), ThreadPoolExecutor(parallel.cores()) as pool:
        shares = bar(pool.map(lambda part: _lowest(images, part), parts), total=len(parts), desc="compared")
        return np.concatenate([np.empty(0), *shares])


def _lowest(images: Cache, pairs: pd.DataFrame) -> np.ndarray:
    """The agreement of the views of each pair that agree least."""
    (a, of_a), (b, of_b) = (np.unique(pairs[side].to_numpy(), return_inverse=True) for side in "ab")
    views = zip(images.views(a), images.views(b), strict=True)
    seen = of_a * len(LOOKS) + pairs["look"].to_numpy()
    return np.asarray(np.min([_agreement(one, seen, other, of_b) for one, other in views], axis=0))


def _agreement(a: np.ndarray, seen: np.ndarray, b: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """float (N,) of pairs: place in images `a` * LOOKS + look, and place in images `b`."""
    used, of_a = np.unique(seen, return_inverse=True)
    detail = _detail(_thumbnails(a, used))
    other = np.conj(_spectra(_detail(_thumbnails(b, np.arange(len(b)) * len(LOOKS)))))
    best = _best_shift(_spectra(detail), of_a, other, of_b)
    for zoom in ZOOMS[1:]:
        open_ = np.flatnonzero((best > HOPELESS) & (best < AGREE))
        if len(open_):
            used, place = np.unique(of_a[open_], return_inverse=True)
            zoomed = _spectra(_zoomed(detail[used], zoom))
            best[open_] = np.maximum(best[open_], _best_shift(zoomed, place, other, of_b[open_]))
    return best


def _thumbnails(images: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """uint8 (M, 48, 48), gray, of (M,) place in `images` * LOOKS + look; warped before they are made small, so that a
    crop keeps its detail."""
    gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    out = np.empty((len(seen), THUMBNAIL, THUMBNAIL), np.uint8)
    for look in np.unique(seen % len(LOOKS)):
        those = np.flatnonzero(seen % len(LOOKS) == look)
        turned = traits.turn(gray[seen[those] // len(LOOKS)], LOOKS[look].turn)
        for place, image in zip(those, _warped(turned, LOOKS[look]), strict=True):
            out[place] = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return out


def _warped(images: np.ndarray, seen: Look) -> np.ndarray:
    if seen._replace(turn=0) == Look():
        return np.ascontiguousarray(images)
    warp, size = seen.warp(images.shape[1], images.shape[1]), images.shape[1:]
    return as_channels(images, lambda one: cv2.warpAffine(one, warp, size, borderMode=cv2.BORDER_REFLECT))


def _detail(images: np.ndarray) -> np.ndarray:
    """float32 (N, S, S): what a blur of two pixels takes away, over its local strength."""
    values = images.astype(np.float32)
    fine = values - as_channels(values, lambda one: cv2.GaussianBlur(one, (0, 0), 2))
    strength = np.sqrt(as_channels(fine * fine, lambda one: cv2.GaussianBlur(one, (0, 0), 4)))
    return np.asarray(fine / (strength + 2))  # + 2 gray levels: noise on an even ground stays small


def _zoomed(images: np.ndarray, zoom: float) -> np.ndarray:
    centre = (1 - zoom) * (THUMBNAIL - 1) / 2
    warp = np.array([[zoom, 0, centre], [0, zoom, centre]], np.float32)
    return as_channels(images, lambda one: cv2.warpAffine(one, warp, (THUMBNAIL, THUMBNAIL)))


_side = np.hanning(THUMBNAIL).astype(np.float32)
_WINDOW = np.sqrt(np.outer(_side, _side))  # an image ends at its border; without it, border would match border


def _spectra(images: np.ndarray) -> np.ndarray:
    """complex64 (N, S, S // 2 + 1) of images of length 1 about their mean."""
    images = images * _WINDOW
    images -= images.mean(axis=(1, 2), keepdims=True)
    lengths = np.sqrt(np.einsum("nij,nij->n", images, images) + 1e-6)
    return np.asarray(fft.rfft2(images / lengths[:, None, None]))


def _back(frequencies: int, weights: np.ndarray) -> np.ndarray:
    """complex (frequencies, shifts): back from a side's frequencies, at shifts of up to a sixth of it alone."""
    near = np.arange(-(THUMBNAIL // 6), THUMBNAIL // 6 + 1)
    turns = np.outer(np.arange(frequencies), near) / THUMBNAIL
    return np.asarray(weights[:, None] * np.exp(2j * np.pi * turns) / THUMBNAIL)


_half = THUMBNAIL // 2 + 1  # of real images the other half of a side's frequencies is the conjugate of this one
_across, _down = _back(_half, np.where(np.arange(_half) % (THUMBNAIL // 2), 2, 1)), _back(THUMBNAIL, np.ones(THUMBNAIL))
# as real matrices: (real, imaginary) of each frequency in, real parts and then imaginary parts out; real parts out
_ACROSS = np.stack([np.hstack([_across.real, _across.imag]), np.hstack([-_across.imag, _across.real])], 1)
_ACROSS = _ACROSS.reshape(2 * _half, -1).astype(np.float32)
_DOWN = np.stack([_down.real.T, -_down.imag.T], 2).reshape(_down.shape[1], -1).astype(np.float32)


def _best_shift(a: np.ndarray, of_a: np.ndarray, b: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """float (N,) of pairs: the highest circular correlation of spectra a[of_a] with conjugate spectra b[of_b]."""
    best = np.empty(len(of_a))
    for start in range(0, len(best), 256):  # few enough to stay in the processor's cache
        some = slice(start, start + 256)
        product = a[of_a[some]] * b[of_b[some]]
        rows = product.view(np.float32).reshape(-1, 2 * _half) @ _ACROSS
        best[some] = (_DOWN @ rows.reshape(len(product), 2 * THUMBNAIL, -1)).max(axis=(1, 2))
    return best


# --- groups -----------------------------------------------------------------------------------------------


def merge(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.Series:
    """The `group` of every index row, merged along pairs of labelled images (union-find), under its smallest name.

    Train and extra alike: a fold trains on no extra image whose group it validates. A test image is nobody's fold:
    pairs with one are reported, not merged.
    """
    labelled = table["split"] != "test"
    rows = table[labelled]
    of = dict(zip(zip(rows["split"], rows["id"], strict=True), rows["group"], strict=True))
    ends = [list(zip(pairs[f"split_{side}"], pairs[f"id_{side}"], strict=True)) for side in "ab"]
    names = connected((of[a], of[b]) for a, b in zip(*ends, strict=True) if a in of and b in of)
    return table["group"].where(~labelled, table["group"].map(lambda name: names.get(name, name)))


def connected(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Every name that occurs -> the smallest name it is connected to, over any number of steps."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]  # halves the path for whoever comes next
            name = parent[name]
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {name: root(name) for name in list(parent)}


def _merged_away(table: pd.DataFrame, merged: pd.Series) -> int:
    labelled = table["split"] != "test"
    return int(table.loc[labelled, "group"].nunique() - merged[labelled].nunique())


def _named(competition: Competition, pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    a, b = (table.iloc[pairs[side].to_numpy()].reset_index(drop=True) for side in ("a", "b"))
    targets = competition.alike
    same = (a[targets].eq(b[targets]) | a[targets].isna() | b[targets].isna()).all(axis=1).astype("boolean")
    labelled = (a["split"] != "test") & (b["split"] != "test")
    named = pd.DataFrame(
        {
            "id_a": a["id"],
            "split_a": a["split"],
            "id_b": b["id"],
            "split_b": b["split"],
            "kind": pairs["kind"],
            "distance": pairs["distance"],
            "agreement": pairs["agreement"].round(3),
            "view": pairs["look"].map(lambda look: str(LOOKS[look])),
            "same_label": same.where(labelled, pd.NA),
        }
    )
    return named.sort_values(["kind", "distance", "id_a", "id_b"], ignore_index=True)[COLUMNS]


# --- files ------------------------------------------------------------------------------------------------


def _key(competition: Competition, table: pd.DataFrame, images: Cache, turned: bool) -> str:
    voucher = images.path.with_suffix(".json")
    made_of = (
        json.loads(voucher.read_text(encoding="utf-8"))["key"] if voucher.exists() else images.path.stat().st_mtime
    )
    return digest([VERSION, made_of, turned, _rows(table, ["split", "id", "group", *competition.truth])])


def _rows(table: pd.DataFrame, columns: list[str]) -> str:
    hashed = pd.util.hash_pandas_object(table[columns].astype(str), index=False)
    return hashlib.sha256(hashed.to_numpy().tobytes()).hexdigest()[:16]


def _save(audit: Audit, table: pd.DataFrame, folder: Path, key: str) -> None:
    (folder / "duplicates.json").unlink(missing_ok=True)  # it vouches for the other two: last to come, first to go
    with replacing(folder / "statistics.parquet") as part:
        audit.statistics.reset_index(drop=True).to_parquet(part)
    write_csv(folder / "duplicates.csv", audit.pairs)
    rows = _rows(table, ["split", "id"])
    files = (folder / "duplicates.csv", folder / "statistics.parquet")
    write_voucher(folder / "duplicates.json", {"key": key, "rows": rows, **audit.meta}, *files)


def _saved(competition: Competition, table: pd.DataFrame, key: str | None) -> Audit | None:
    folder = competition.derived()
    meta = read_voucher(folder / "duplicates.json")
    if meta is None:
        return None
    stale = key is not None and meta["key"] != key
    if stale or meta.pop("rows") != _rows(table, ["split", "id"]):
        return None
    statistics = pd.read_parquet(folder / "statistics.parquet")
    text = dict.fromkeys(["id_a", "split_a", "id_b", "split_b", "kind", "view"], str)
    pairs = pd.read_csv(
        folder / "duplicates.csv",
        dtype={**text, "same_label": "boolean"},
        keep_default_na=False,  # an id may be called NA
        na_values={"same_label": [""]},
    )
    del meta["key"]
    group = merge(table, pairs) if competition.merge_copies else table["group"]
    return Audit(group, pairs, statistics[STATISTICS].set_axis(table.index), meta)
