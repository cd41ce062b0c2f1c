"""Rows over processes: every row once, and a file that kills its decoder costs only itself."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import jobs
import numpy as np
import pytest
from conftest import Workplace, make_tiny

from foldwise import UserError
from foldwise.core import parallel, paths
from foldwise.core.parallel import parallel_map
from foldwise.data.competition import ImageOptions


@pytest.mark.smoke
def test_every_row_comes_back_once() -> None:
    found = dict(parallel_map(jobs.square, list(range(100)), workers=2))
    assert found == {k: k * k for k in range(100)}


def test_a_crashed_process_costs_one_row() -> None:
    found = dict(parallel_map(jobs.die_on_seven, list(range(40)), workers=2))
    assert set(found) == set(range(40))
    assert isinstance(found.pop(7), RuntimeError)
    assert all(found[k] == k for k in found)


def test_workers_find_what_the_script_imports_imported(tmp_path: Path) -> None:
    """Else each worker of each pool imports it anew, which takes longer than many a job."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nbefore = 'foldwise.data.index' in sys.modules\nsys.path.insert(0, {str(paths.SOURCE)!r})\n"
        "from foldwise.core.parallel import parallel_map\nfrom foldwise.data.index import load_index\n"
        "def job(rows):\n    return [before for _ in rows]\n"
        "if __name__ == '__main__':\n    print([seen for _, seen in parallel_map(job, [1, 2], workers=1)])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True]"


@pytest.mark.smoke
def test_cores_are_those_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLDWISE_CORES", raising=False)
    assert parallel.cores() >= 1
    monkeypatch.setenv("FOLDWISE_CORES", "3")
    assert parallel.cores() == 3
    for odd in ("0", "two", "-1", ""):
        monkeypatch.setenv("FOLDWISE_CORES", odd)
        with pytest.raises(UserError, match=f"FOLDWISE_CORES={odd}: a number of cores"):
            parallel.cores()


def test_a_decoder_that_hangs_is_stopped_and_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "FILE_SECONDS", 2.0)
    answers = dict(parallel_map(jobs.hang_on_seven, list(range(20)), workers=2))
    assert "took over 2 s" in str(answers.pop(7))
    assert answers == {k: k for k in range(20) if k != 7}


def test_no_rows_no_work() -> None:
    assert list(parallel_map(jobs.square, [], workers=2)) == []


@pytest.fixture(scope="module")
def cluster():  # type: ignore[no-untyped-def]
    """The address of a local scheduler with two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        yield local.scheduler_address


def test_dask_writes_the_same_bytes(cluster: str, tmp_path: Path) -> None:
    one, other = make_tiny(tmp_path / "one", rows=150), make_tiny(tmp_path / "other", rows=150)
    one.run("01_preprocess.py", "--sizes", 32, 48)
    other.run("01_preprocess.py", "--sizes", 32, 48, "--dask", cluster)
    for name in ("images_32.npy", "images_48.npy", "images_32_ids.csv", "folds.csv", "unreadable.csv"):
        assert (one.derived / name).read_bytes() == (other.derived / name).read_bytes(), name


def test_an_absent_scheduler_is_one_clear_line(tiny: Workplace) -> None:
    assert "no scheduler answers" in tiny.refused("01_preprocess.py", "--dask", "tcp://127.0.0.1:1")


def test_the_memory_of_each_worker_is_a_few_images(tmp_path: Path) -> None:
    """Never a chunk of them: of 12 megapixels, 36 MB decoded, a worker holds the file, its image and what is small."""
    ramp = np.linspace(0, 255, 4000, dtype=np.uint8)
    picture = np.broadcast_to(ramp[None, :, None], (3000, 4000, 3))
    cv2.imwrite(str(path := tmp_path / "large.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    job = partial(jobs.read_images, 64, ImageOptions())
    taken = [kib / 1024 for _, kib in parallel_map(job, [path] * 8, workers=2)]
    assert 30 < max(taken) < 4 * 36, taken
