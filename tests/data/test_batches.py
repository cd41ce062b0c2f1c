"""Cache and batches: every row once, its own pixels, the same whatever the threads, memory that does not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from foldwise import UserError, augment
from foldwise.data.batches import Batches
from foldwise.data.cache import Cache

pytestmark = pytest.mark.smoke


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """37 images of 16 x 16 whose first byte is their row."""
    images = np.random.default_rng(0).integers(0, 255, (37, 16, 16, 3)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(37)
    np.save(tmp_path / "images_16.npy", images)
    ids = pd.DataFrame(
        {"split": "train", "id": [f"{k:03d}" for k in range(37)], "ok": (np.arange(37) != 5).astype(int)}
    )
    return Cache(tmp_path / "images_16.npy", 16, ids)


def test_rows_are_joined_by_id(cache: Cache) -> None:
    where = cache.rows("train", ["010", "005", "000"])
    assert where.tolist() == [10, -1, 0]
    assert cache.read(where[[0, 2]])[:, 0, 0, 0].tolist() == [10, 0]
    with pytest.raises(UserError, match="no image of train id 'x'"):
        cache.rows("train", ["x"])
    with pytest.raises(UserError, match="no image of test id '010'"):
        cache.rows("test", ["010"])


def test_a_cut_off_file_is_refused(cache: Cache) -> None:
    with cache.path.open("r+b") as stream:
        stream.truncate(cache.path.stat().st_size - 10)
    with pytest.raises(UserError, match="ends before image 36"):
        cache.read(np.array([36]))


@pytest.mark.parametrize("threads", [1, 4])
def test_every_row_once_in_order(cache: Cache, threads: int) -> None:
    where = np.arange(37)[::-1].copy()
    batches = list(Batches(cache, where, 8, threads=threads).epoch())
    assert [len(batch.rows) for batch in batches] == [8, 8, 8, 8, 5]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(37))
    assert np.concatenate([batch.images[:, 0, 0, 0] for batch in batches]).tolist() == where.tolist()


def test_an_epoch_depends_on_seed_and_number_alone(cache: Cache) -> None:
    def epoch(seed: int, number: int, threads: int) -> tuple[bytes, bytes]:
        ops = augment.train_ops("heavy", 16)
        parts = list(Batches(cache, np.arange(37), 6, ops, (seed, 0), threads).epoch(number))
        rows = np.concatenate([part.rows for part in parts])
        assert sorted(rows) == sorted(set(rows))
        return rows.tobytes(), b"".join(part.images.tobytes() for part in parts)

    assert epoch(1, 2, 1) == epoch(1, 2, 4)
    assert epoch(1, 2, 1) != epoch(1, 3, 1)
    assert epoch(1, 2, 1) != epoch(2, 2, 1)


def test_a_last_batch_of_one_is_left_out_of_training_only(cache: Cache) -> None:
    ops = augment.train_ops("none", 16)
    train, plain = Batches(cache, np.arange(37), 6, ops), Batches(cache, np.arange(37), 6)
    assert len(train) == len(list(train.epoch())) == 6
    assert len(plain) == len(list(plain.epoch())) == 7
    assert len(list(Batches(cache, np.arange(1), 6, ops).epoch())) == 1
