"""Copies are found and unrelated images are not; groups never straddle folds; drift and leaks are told from noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from foldwise.audit import drift, label_noise, traits
from foldwise.audit.duplicates import (
    AGREE,
    COLUMNS,
    Audit,
    agreement,
    candidates,
    connected,
    duplicate_groups,
    load_audit,
    merge,
)
from foldwise.data import folds
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition, load_competition

SIZE = 96


def photo(rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3): a dark blob in the middle of mottled skin, so that all of them are alike at a glance."""
    image = np.full((size, size, 3), (200, 160, 140), np.float32)
    for scale, strength in ((4, 25), (10, 30), (24, 30)):
        coarse = rng.standard_normal((size // scale + 3, size // scale + 3, 1)).astype(np.float32)
        image += strength * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    centre = (int(size * rng.uniform(0.45, 0.55)), int(size * rng.uniform(0.45, 0.55)))
    cv2.circle(image, centre, int(size * rng.uniform(0.2, 0.25)), (90, 60, 50), -1)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def recoded(image: np.ndarray, quality: int = 40) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def cropped(image: np.ndarray, share: float) -> np.ndarray:
    margin = int(len(image) * share)
    return cv2.resize(image[margin:-margin, margin:-margin], image.shape[1::-1], interpolation=cv2.INTER_AREA)


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1), (SIZE, SIZE))


COPIES = {
    "crop": lambda image: cropped(image, 0.05),
    "brighter": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 1.4).astype(np.uint8),
    "other colours": lambda image: np.clip(image * np.array([0.85, 1, 1.1]), 0, 255).astype(np.uint8),
    "recoded": recoded,
    "shifted by a pixel": lambda image: np.roll(image, (1, -1), (0, 1)),
    "cropped by a third": lambda image: cropped(image, 0.15),
    "a corner away": lambda image: cv2.resize(image[: SIZE * 3 // 4, SIZE // 4 :], (SIZE, SIZE)),
    "with a border": lambda image: cv2.copyMakeBorder(cv2.resize(image, (84, 84)), 6, 6, 6, 6, cv2.BORDER_CONSTANT),
    "mirrored and cropped": lambda image: cropped(np.ascontiguousarray(image[:, ::-1]), 0.05),
    "turned by 10 degrees": lambda image: rotated(image, 10),
    "turned by -15 degrees": lambda image: rotated(image, -15),
    "smaller": lambda image: cv2.resize(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), (SIZE, SIZE)),
    "mirrored": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image),
    "turned and recoded": lambda image: recoded(np.ascontiguousarray(np.rot90(image, 2)), 70),
}


def cached(folder: Path, images: list[np.ndarray], table: pd.DataFrame) -> Cache:
    """The images as 01 caches them, in the order of `table`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"images_{SIZE}.npy"
    np.save(path, np.stack(images))
    ids = table[["split", "id"]].assign(ok=table["error"].isna().astype(int))
    return Cache(path, SIZE, ids)


def indexed(n_train: int, n_test: int = 0, **columns: object) -> pd.DataFrame:
    """An index with a group per image and alternating targets."""
    n = n_train + n_test
    split = ["train"] * n_train + ["test"] * n_test
    ids = [f"{split[k][:2]}{k}" for k in range(n)]
    table = pd.DataFrame({"split": split, "id": ids, "row_id": ids, "group": ids, "path": [f"{i}.png" for i in ids]})
    table["target"] = np.where(table["split"] == "train", np.arange(n) % 2, np.nan)
    table["error"] = pd.Series([None] * n, dtype="string")
    table["format"] = pd.Series(["PNG"] * n, dtype="string")
    for name in ("width", "height", "bytes"):
        table[name] = pd.array([100] * n, dtype="Int64")
    return table.assign(**columns)


@pytest.fixture
def about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Competition:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    (tmp_path / "input" / "c").mkdir(parents=True)
    file = tmp_path / "c.yaml"
    file.write_text("{name: c, task: binary, metric: roc_auc, train: {table: t.csv, images: '{id}.png'}}")
    return load_competition(str(file))


def pairs_of(found: Audit) -> set[tuple[str, str]]:
    return {tuple(sorted(pair)) for pair in zip(found.pairs["id_a"], found.pairs["id_b"], strict=True)}


# --- copies -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_copies_are_found_and_unrelated_images_are_not(about: Competition) -> None:
    rng = np.random.default_rng(0)
    photos = [photo(rng) for _ in range(120)]
    copies = [change(photos[k]) for k, change in enumerate(COPIES.values())]
    table = indexed(len(photos) + len(copies))
    found = duplicate_groups(about, table, cached(about.derived(), photos + copies, table))
    expected = {tuple(sorted((f"tr{k}", f"tr{len(photos) + k}"))): name for k, name in enumerate(COPIES)}
    assert {expected[pair] for pair in pairs_of(found) & set(expected)} == set(COPIES)
    assert not pairs_of(found) - set(expected)
    looks = {
        expected[pair]: view
        for pair, view in zip(
            map(tuple, map(sorted, found.pairs[["id_a", "id_b"]].to_numpy())), found.pairs["view"], strict=True
        )
    }
    assert (
        looks["mirrored"] == "mirrored" and looks["turned"].startswith("turned by ") and looks["recoded"] == "as it is"
    )
    assert "cropped" in looks["cropped by a third"] and looks["turned by 10 degrees"].startswith("turned a little")


def test_without_turned_only_upright_copies_are_found(about: Competition) -> None:
    rng = np.random.default_rng(1)
    photos = [photo(rng) for _ in range(10)]
    table = indexed(12)
    images = cached(about.derived(), [*photos, photos[0][:, ::-1], recoded(photos[1])], table)
    assert pairs_of(duplicate_groups(about, table, images, turned=False)) == {("tr1", "tr11")}
    assert pairs_of(duplicate_groups(about, table, images)) == {("tr0", "tr10"), ("tr1", "tr11")}


def test_exact_copies_across_splits_and_conflicting_labels(about: Competition) -> None:
    rng = np.random.default_rng(2)
    photos = [photo(rng) for _ in range(8)]
    table = indexed(9, 2)  # tr8 copies tr1 (targets 0 and 1), te9 copies tr2
    found = duplicate_groups(about, table, cached(about.derived(), [*photos, photos[1], photos[2], photo(rng)], table))
    assert found.pairs["kind"].tolist() == ["exact", "exact"]
    assert found.conflicts[["id_a", "id_b"]].to_numpy().tolist() == [["tr1", "tr8"]]
    assert found.across[["id_a", "id_b"]].to_numpy().tolist() == [["tr2", "te9"]]
    assert found.across["same_label"].isna().all()
    assert found.group[1] == found.group[8]
    assert found.group[9] == "te9", "a test row keeps its group"
    lines = found.warnings(table, pd.DataFrame({"id": ["tr1", "tr8"], "fold": [0, 1]}))
    assert ["different labels" in line for line in lines] == [True, False, False]
    assert "--new-folds" in lines[1]


def test_extra_images_join_the_groups_of_their_copies(about: Competition) -> None:
    """They never enter validation, but must not train the fold that validates their copy; ids may repeat in splits."""
    rng = np.random.default_rng(6)
    photos = [photo(rng) for _ in range(4)]
    table = indexed(7, split=["train"] * 4 + ["extra"] * 2 + ["test"], id=["a", "b", "c", "d", "a", "x", "t"])
    table["group"] = [f"g{k}" for k in range(7)]
    images = cached(about.derived(), [*photos, photos[1], recoded(photos[2]), photos[3][:, ::-1]], table)
    found = duplicate_groups(about, table, images)
    assert found.group.tolist() == ["g0", "g1", "g2", "g3", "g1", "g2", "g6"]
    assert found.pairs["same_label"].isna().tolist() == [
        pair != ("extra", "train")
        for pair in zip(
            found.pairs[["split_a", "split_b"]].min(axis=1),
            found.pairs[["split_a", "split_b"]].max(axis=1),
            strict=True,
        )
    ]
    assert len(found.across) == 1 and not len(found.split_by(pd.DataFrame({"id": list("abcd"), "fold": range(4)})))


def test_frames_of_one_file_are_no_copies(about: Competition) -> None:
    one = photo(np.random.default_rng(7))
    table = indexed(3, path=["a.dcm", "a.dcm", "b.dcm"], group=["a", "a", "b"])
    found = duplicate_groups(about, table, cached(about.derived(), [one, recoded(one, 80), recoded(one, 60)], table))
    assert {frozenset(pair) for pair in pairs_of(found)} <= {frozenset(("tr0", "tr2")), frozenset(("tr1", "tr2"))}
    assert found.group.nunique() == 1


def test_black_images_are_copies_only_if_their_files_are(about: Competition) -> None:
    table = indexed(5)
    for name, content in zip(table["path"], (b"a" * 100, b"b" * 100, b"a" * 100, b"c" * 100, b"d" * 50), strict=True):
        (about.raw() / name).write_bytes(content)
    black = [np.zeros((SIZE, SIZE, 3), np.uint8)] * 5
    found = duplicate_groups(about, table, cached(about.derived(), black, table))
    assert pairs_of(found) == {("tr0", "tr2")}
    assert found.meta["flat"] == 5


def test_many_copies_chain_into_one_group(about: Competition) -> None:
    rng = np.random.default_rng(3)
    one = photo(rng)
    photos = [one] * 50 + [recoded(one, 30 + k) for k in range(50)] + [photo(rng) for _ in range(20)]
    table = indexed(120)
    found = duplicate_groups(about, table, cached(about.derived(), photos, table))
    assert found.group[:100].nunique() == 1
    assert found.group[100:].nunique() == 20


def test_the_saved_audit_comes_back_the_same(about: Competition) -> None:
    rng = np.random.default_rng(4)
    photos = [photo(rng) for _ in range(6)]
    table = indexed(7, id=["NA", "01", "1", "x", "y", "z", "copy"])
    images = cached(about.derived(), [*photos, photos[0]], table)
    made = duplicate_groups(about, table, images)
    for again in (duplicate_groups(about, table, images), load_audit(about, table)):
        assert again is not None
        pd.testing.assert_frame_equal(again.pairs, made.pairs, check_dtype=False)
        pd.testing.assert_frame_equal(again.statistics, made.statistics)
        assert again.group.tolist() == made.group.tolist()
        assert again.meta == made.meta
    assert load_audit(about, table.iloc[::-1].reset_index(drop=True)) is None
    assert not list(about.derived().glob("*.part"))


def test_an_empty_audit_has_all_columns(about: Competition) -> None:
    table = indexed(1)
    found = duplicate_groups(about, table, cached(about.derived(), [photo(np.random.default_rng(0))], table))
    assert list(found.pairs) == COLUMNS and not len(found.pairs)
    assert load_audit(about, table) is not None
    assert found.warnings(table, pd.DataFrame({"id": ["tr0"], "fold": [0]})) == []


def test_the_hash_is_imagehash_s_own() -> None:
    imagehash = pytest.importorskip("imagehash")
    from PIL import Image

    rng = np.random.default_rng(5)
    gray = np.stack([cv2.resize(photo(rng)[..., 0], (32, 32)) for _ in range(20)])
    lowest = traits.frequencies(gray)
    theirs = np.stack([np.packbits(imagehash.phash(Image.fromarray(image)).hash) for image in gray])
    assert np.array_equal(traits.hashes(lowest), theirs)
    for view in range(8):
        seen = traits.frequencies(np.ascontiguousarray(traits.turn(gray, view)))
        np.testing.assert_allclose(traits.turned(lowest, view), seen, atol=0.05)


def test_real_lesions_do_not_match_each_other(tmp_path: Path) -> None:
    """1,124 dermoscopic images: three moles are photographed twice, two of them from nearer by; no others agree."""
    folder = shared("data", "skin1500")
    ids = pd.read_csv(folder / "train.csv")["isic_id"]
    images = np.stack([cv2.resize(cv2.imread(str(folder / "train" / f"{name}.jpg")), (SIZE, SIZE)) for name in ids])
    np.save(tmp_path / "images.npy", images)
    cache = Cache(tmp_path / "images.npy", SIZE, pd.DataFrame({"split": "train", "id": ids, "ok": 1}))
    near = candidates(traits.look(cache, np.arange(len(ids))).hashes)
    assert len(near) > 500, "the hash alone would pair hundreds"
    agreed = near[agreement(cache, near) >= AGREE]
    names = {frozenset((ids[a], ids[b])) for a, b in zip(agreed["a"], agreed["b"], strict=True)}
    twice = [("0034731", "0034836"), ("0035936", "0035948"), ("0035673", "0035951")]
    assert names == {frozenset(f"ISIC_{number}" for number in pair) for pair in twice}


# --- groups -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_union_find_is_transitive() -> None:
    assert connected([("b", "c"), ("x", "y"), ("a", "b")]) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}
    chain = [(f"{k:04d}", f"{k + 1:04d}") for k in range(3000)]
    assert set(connected(chain).values()) == {"0000"}


@settings(max_examples=60, deadline=None)
@given(
    host=st.lists(st.integers(0, 25), min_size=12, max_size=60),
    links=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 59)), max_size=25),
    seed=st.integers(0, 5),
)
def test_no_pair_straddles_two_folds(host: list[int], links: list[tuple[int, int]], seed: int) -> None:
    table = indexed(len(host), 4)
    table.loc[table["split"] == "train", "group"] = [f"p{k}" for k in host]
    made = [(a, b % len(host)) for a, b in links if a != b % len(host)]
    pairs = pd.DataFrame({"id_a": [f"tr{a}" for a, _ in made], "id_b": [f"tr{b}" for _, b in made]}, dtype=str)
    group = merge(table, pairs.assign(split_a="train", split_b="train"))[: len(host)]
    fold = folds.stratify(np.eye(2)[np.arange(len(host)) % 2], group.to_numpy(), 3, seed)
    assert all(fold[a] == fold[b] for a, b in made)
    together = pd.DataFrame({"host": host, "merged": group})
    assert (together.groupby("host")["merged"].nunique() == 1).all(), "the host's groups stay whole"


# --- drift and leaks --------------------------------------------------------------------------------------


def checked(frame: pd.DataFrame, table: pd.DataFrame, about: Competition, sources: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    fold_of = pd.Series(np.where(table["split"] == "train", np.arange(len(table)) % 5, np.nan), index=table.index)
    sources = sources or dict.fromkeys(frame, "table")
    return drift.compare(about, table, fold_of, frame, sources).set_index("column")


@pytest.mark.smoke
def test_a_planted_shift_is_drift_and_noise_is_not(about: Competition) -> None:
    rng = np.random.default_rng(0)
    table = indexed(600, 300)
    test = (table["split"] == "test").to_numpy()
    frame = pd.DataFrame(
        {
            "same": rng.normal(size=900),
            "moved": rng.normal(size=900) + test,
            "kind": rng.choice(["a", "b"], 900),
            "scanner": np.where(test, "new", rng.choice(["old", "new"], 900, p=[0.97, 0.03])),
        }
    )
    frame["gone"] = frame["same"].where(~test)
    found = checked(frame, table, about)
    assert found.loc["same", "p"] > 0.001 and found.loc["kind", "p"] > 0.001
    assert found.loc["moved", "drift"] > 0.3 and found.loc["moved", "p"] < 1e-6
    assert found.loc["scanner", "drift"] > 0.9
    assert found.loc["gone", ["coverage_train", "coverage_test"]].tolist() == [1, 0]
    lines = drift.warnings(found.reset_index())
    assert [line.split()[0] for line in lines if "tells test rows" in line] == ["scanner", "gone"]
    assert any("gone" in line and "no value" in line for line in lines)


def test_a_planted_leak_is_warned_of_and_noise_is_not(about: Competition) -> None:
    rng = np.random.default_rng(1)
    table = indexed(1000)
    truth = table["target"].to_numpy()
    frame = pd.DataFrame(
        {
            "leak": truth + rng.normal(0, 0.2, 1000),
            "code": np.where(truth > 0, "M", "B"),
            "noise": rng.normal(size=1000),
            "many": [f"v{k}" for k in range(1000)],
            "useful": truth + rng.normal(0, 0.7, 1000),
            "empty": np.nan,
            "one": "x",
            "u": np.where(truth > 0, rng.choice([0, 9], 1000), rng.uniform(2, 7, 1000)),
        }
    )
    lines = drift.warnings(checked(frame, table, about).reset_index())
    sure = {line.split()[0] for line in lines if "a leak" in line}
    assert sure == {"leak", "code", "u"}, "'u' is no monotone function of the target"
    assert {line.split()[0] for line in lines if "strong; would the host" in line} == {"useful"}
    width = checked(frame[["useful"]], table, about, {"useful": "file"}).reset_index()
    assert drift.warnings(width), "what a useful column may do, a file's size may not"


def test_leaks_of_other_tasks(tmp_path: Path, about: Competition) -> None:
    rng = np.random.default_rng(2)
    table = indexed(600, target=rng.uniform(size=600) * 10)
    frame = pd.DataFrame({"leak": table["target"] * 3 + rng.normal(0, 0.1, 600), "noise": rng.normal(size=600)})
    regression = about.model_copy(update={"task": "regression"})
    lines = drift.warnings(checked(frame, table, regression).reset_index())
    assert [line.split()[0] for line in lines] == ["leak"]
    names = table.assign(target=rng.choice(["cat", "dog", "eel"], 600))
    frame["leak"] = (names["target"] == "eel") + rng.normal(0, 0.1, 600)
    lines = drift.warnings(checked(frame, names, about.model_copy(update={"task": "multiclass"})).reset_index())
    assert [("eel" in line, line.split()[0]) for line in lines] == [(True, "leak")]


def test_adversarial_validation_tells_what_differs(about: Competition) -> None:
    rng = np.random.default_rng(3)
    table = indexed(500, 250)
    frame = pd.DataFrame({"a": rng.normal(size=750), "b": rng.choice(["x", "y"], 750)})
    same = drift.adversarial("metadata", table, frame)
    assert same is not None and same.auc.low < 0.5 < same.auc.high + 0.05
    frame["b"] = frame["b"].where(table["split"] == "train", "y")
    other = drift.adversarial("metadata", table, frame)
    assert other is not None and other.auc.low > 0.6 and other.columns.index[0] == "b"
    assert drift.adversarial("nothing", table, frame[[]]) is None
    assert drift.adversarial("no test", table[:500], frame[:500]) is None


def test_groups_of_the_host_in_both_splits() -> None:
    table = indexed(3, 2, group=["p1", "p2", "tr2", "p2", "te4"])
    assert drift.shared_groups(table) == ["p2"]


# --- label noise ------------------------------------------------------------------------------------------


def test_confident_learning_finds_the_flipped_labels() -> None:
    rng = np.random.default_rng(4)
    true = rng.integers(0, 3, 1500)
    pred = np.eye(3)[true] * 4 + rng.normal(size=(1500, 3))
    pred = np.exp(pred) / np.exp(pred).sum(axis=1, keepdims=True)
    given = true.copy()
    flipped = rng.choice(1500, 60, replace=False)
    given[flipped] = (given[flipped] + 1) % 3
    found = label_noise.suspects(given, pred)
    assert len(set(found["row"][:60]) & set(flipped)) > 50
    assert (found["suggested"].to_numpy() == true[found["row"]]).mean() > 0.8
    assert not len(label_noise.suspects(true, np.eye(3)[true]))
