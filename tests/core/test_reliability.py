"""What may change between two steps, and what two processes may do at once: refused by name, or harmless."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, Workplace, make_tiny

from foldwise import UserError
from foldwise.core import files, pieces
from foldwise.core.files import is_locked, locked, platform, temporary_folder
from foldwise.data import folds, index
from foldwise.data.competition import load_competition
from foldwise.data.runs import load_run, write_run
from foldwise.model import fold_models, weights

QUICK = ("02_train.py", "--recipe", "quick.yaml", "train.threads=1", "train.precision=plain", "train.epochs=1")


@pytest.fixture
def prepared(tiny: Workplace) -> Workplace:
    """The tiny competition after 01, without a group."""
    tiny.describe(group=None)
    tiny.run("01_preprocess.py", "--sizes", 32)
    return tiny


def pixels(place: Workplace) -> bytes:
    return (place.derived / "images_32.npy").read_bytes()


# --- between steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [({"group": "patient"}, "group: None -> patient"), ({"folds": {"n": 4, "seed": 0}}, "folds.n: 3 -> 4")],
)
def test_a_changed_competition_file_is_refused_once_folds_exist(prepared: Workplace, change: dict, named: str) -> None:
    prepared.describe(**change)
    for step in (("01_preprocess.py", "--sizes", 32), QUICK, ("03_metadata.py",)):
        line = prepared.refused(*step)
        assert named in line and "--new-folds" in line
    prepared.run("01_preprocess.py", "--sizes", 32, "--new-folds")
    if "group" in change:
        split = pd.read_csv(prepared.derived / "folds.csv")
        table = pd.read_csv(prepared.raw / "train.csv").set_index("image_id")["patient"]
        assert split.groupby(split["id"].map(table))["fold"].nunique().max() == 1


def test_groups_of_the_index_are_checked_against_folds_made_without_them(prepared: Workplace) -> None:
    about = load_competition(str(prepared.competition))
    rows = pd.DataFrame({"id": ["a", "b", "c"], "host_group": ["p", "p", "q"], "group": ["a", "b", "c"], "target": 1.0})
    split = pd.DataFrame({"id": ["a", "b", "c"], "group": ["a", "b", "c"], "fold": [0, 1, 1]})
    with pytest.raises(UserError, match=r"group 'p' .*lies in 2 folds.*--new-folds"):
        folds.check(about, split, rows)


def test_a_folds_file_that_changes_is_refused(tiny: Workplace) -> None:
    table = pd.read_csv(tiny.raw / "train.csv")
    given = pd.DataFrame({"id": table["image_id"], "fold": np.arange(len(table)) // 2 % 3})
    given.to_csv(tiny.raw / "folds.csv", index=False)
    tiny.describe(folds={"file": "folds.csv"})
    tiny.run("01_preprocess.py", "--sizes", 32)
    given.assign(fold=(given["fold"] + 1) % 3).to_csv(tiny.raw / "folds.csv", index=False)
    assert "folds.file: folds.csv" in tiny.refused("01_preprocess.py", "--sizes", 32)


def test_a_refused_01_leaves_the_caches_as_they_were(prepared: Workplace, tmp_path: Path) -> None:
    before = pixels(prepared)
    (away := tmp_path / "away").mkdir()
    for path in sorted((prepared.raw / "train").glob("*.png"))[10:20]:
        shutil.move(path, away)
    assert "bring the files back" in prepared.refused("01_preprocess.py", "--sizes", 32)
    assert pixels(prepared) == before
    for path in away.iterdir():
        shutil.move(path, prepared.raw / "train")
    prepared.run("01_preprocess.py", "--sizes", 32)
    assert pixels(prepared) == before


def test_a_cache_of_other_rows_than_the_index_is_refused(prepared: Workplace) -> None:
    ids = pd.read_csv(prepared.derived / "images_32_ids.csv")
    path, vouching = prepared.derived / "images_32_ids.csv", prepared.derived / "images_32.json"
    ids.assign(ok=ids["ok"].where(ids["id"] != "tr0001", 0)).to_csv(path, index=False)
    assert ", or damaged; run" in prepared.refused(*QUICK, "--fold", 0)
    meta = json.loads(vouching.read_text())
    del meta["vouches"]
    files.write_voucher(vouching, meta, path)
    assert "other rows than index.parquet" in prepared.refused(*QUICK, "--fold", 0)


def test_an_image_replaced_by_one_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    place = make_tiny(tmp_path, rows=12, test_rows=3)
    place.describe(train={"table": "train.csv", "images": "train/{image_id}.bmp"}, folds={"n": 2}, group=None)
    noise = np.random.default_rng(0)
    for path in sorted((place.raw / "train").glob("*.png")):
        cv2.imwrite(str(path.with_suffix(".bmp")), noise.integers(0, 255, (40, 48, 3)).astype(np.uint8))
    place.run("01_preprocess.py", "--sizes", 32)
    before = pixels(place)
    one = place.raw / "train" / "tr0000.bmp"
    kept = one.stat()
    cv2.imwrite(str(one), np.full((40, 48, 3), 200, np.uint8))
    os.utime(one, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # even where the time says nothing
    assert one.stat().st_size == kept.st_size
    place.run("01_preprocess.py", "--sizes", 32)
    after = np.load(place.derived / "images_32.npy")
    assert pixels(place) != before and (after[0] == 200).all()


def test_other_image_options_are_never_mixed_into_a_run(prepared: Workplace) -> None:
    prepared.run(*QUICK, "--fold", 0)
    prepared.describe(image={"grayscale": True})
    assert "image.grayscale: False -> True" in prepared.refused(*QUICK)
    prepared.run("01_preprocess.py", "--sizes", 32)
    for step in (QUICK, ("05_predict.py", "--run", "quick")):
        assert "grayscale" in prepared.refused(*step)


def test_other_labels_are_never_mixed_into_a_run(prepared: Workplace) -> None:
    prepared.run(*QUICK, "--fold", 0)
    table = pd.read_csv(prepared.raw / "train.csv")
    table.assign(sick=table["sick"].where(table.index != 3, 0)).to_csv(prepared.raw / "train.csv", index=False)
    prepared.run("01_preprocess.py", "--sizes", 32)
    assert "labels: " in prepared.refused(*QUICK)
    assert "trained on other labels" in prepared.refused("05_predict.py", "--run", "quick")


def test_a_renamed_class_never_takes_another_ones_column(tmp_path: Path) -> None:
    place = make_tiny(tmp_path, rows=30, test_rows=4)
    table = pd.read_csv(place.raw / "train.csv")
    table["sick"] = np.array(["cat", "dog", "fox"])[np.arange(len(table)) % 3]
    table.to_csv(place.raw / "train.csv", index=False)
    place.describe(task="multiclass", metric="accuracy", sample_submission=None, group=None, folds={"n": 2, "seed": 0})
    place.run("01_preprocess.py", "--sizes", 32)
    place.run(*QUICK)
    table.assign(sick=table["sick"].replace("cat", "zebra")).to_csv(place.raw / "train.csv", index=False)
    place.run("01_preprocess.py", "--sizes", 32)
    again = ("05_predict.py", "--run", "quick", "--name", "again")
    assert "trained on other labels" in place.refused(*again)
    info = place.runs / "quick" / "run.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "targets_hash": None}))  # a run of before
    line = place.refused(*again)
    assert "'cat', now 'dog'" in line and "train it anew" in line


@pytest.mark.smoke
def test_a_flipped_bit_in_weights_is_noticed(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "w.safetensors"
    weights.save(torch.nn.Linear(40, 30), path, ["a", "b"])
    assert weights.read_state(path)["weight"].shape == (30, 40)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="checksum"):
        weights.read_state(path)
    for cut in (0, 5, 100):
        path.write_bytes(damaged[:cut])
        with pytest.raises(UserError, match="damaged"):
            weights.classes_of(path)


def test_what_changed_since_it_was_written_is_said_or_refused(trained: Workplace, tmp_path: Path) -> None:
    """A table of predictions and run.json may be edited by hand; the rows of a fold, an encoder, a mixture may not."""
    place = Workplace(tmp_path, tmp_path / "tiny.yaml")
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    folder = place.runs / "quick"
    said = "not as its step wrote it: edited or damaged"
    assert said not in place.run("06_blend.py", "--all", "--method", "mean").stderr
    for name in ("test.csv", "run.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[:-9] + text[-9:].replace(text.rstrip()[-2], "1" if name == "test.csv" else " "))
    spoken = place.run("06_blend.py", "--all", "--method", "mean").stderr
    assert spoken.count(said) == 2 and f"test.csv: {said}" in spoken and f"run.json: {said}" in spoken
    table = folder / "fold0.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:-3]))
    assert "fold0.csv: cut off or edited: 3 ids" in place.refused("02_train.py", "--recipe", "quick.yaml")
    assert "fold0.csv: cut off or edited: 3 ids" in place.refused("07_explain.py", "--run", "quick")
    blend = next(place.submissions.glob("*.json"))
    blend.write_text(blend.read_text().replace(" 0.5", " 0.6"))
    assert "other than it was written" in place.refused("05_predict.py", "--submission", blend.stem)
    encoder = tmp_path / "fold0_metadata.json"
    with files.sealed(encoder):
        encoder.write_text('{"mean": 1.25}')
    encoder.write_text('{"mean": 1.35}')
    with pytest.raises(UserError, match="edited or damaged"):
        fold_models._encoder(encoder)


def test_explanations_at_once_leave_one_that_is_whole(trained: Workplace, tmp_path: Path) -> None:
    """They once took each other's half-made folder away."""
    place = Workplace(tmp_path, tmp_path / "tiny.yaml")
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    command = ("07_explain.py", "--run", "quick", "--sheet", "worst", "--count", 1, "--deletion", 2)
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda _: place.run(*command, check=False), range(3)))
    assert [one.returncode for one in ended] == [0, 0, 0], [one.stderr[-300:] for one in ended]
    assert (place.runs / "quick" / "explain" / "index.html").exists()
    assert not list((place.runs / "quick").glob("*.part"))


def test_one_process_makes_embeddings_at_a_time(trained: Workplace, tmp_path: Path) -> None:
    """Two once wrote into one file, of which the first took away what the other had begun."""
    place = Workplace(tmp_path, tmp_path / "tiny.yaml")
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    command = ("04_embed.py", "--run", "quick", "--head", "logreg")
    with ThreadPoolExecutor(1) as pool:
        with locked(place.runs / "quick" / ".fold0_embeddings.lock"):
            waits = pool.submit(place.run, *command)
            time.sleep(1.5)
            assert not waits.done() and not (place.runs / "quick" / "fold0_embeddings.state.part").exists()
        assert not waits.result().returncode


# --- at once ----------------------------------------------------------------------------------------------


def test_a_second_01_is_refused_while_one_works(prepared: Workplace) -> None:
    with locked(prepared.derived / ".lock"):
        assert "another process (step 01 or 08)" in prepared.refused("01_preprocess.py", "--sizes", 32)


def test_restart_and_other_settings_are_refused_while_a_fold_trains(prepared: Workplace) -> None:
    prepared.run(*QUICK, "--fold", 0, "--hours", 1e-9, check=False)
    folder = prepared.runs / "quick"
    (folder / "fold0.ckpt").write_bytes(b"of the process that trains it")
    with locked(folder / ".fold0.lock"):
        assert "being trained by another process" in prepared.refused(*QUICK, "--fold", 0, "--restart")
        assert (folder / "fold0.ckpt").exists(), "a refused --restart deletes nothing"
        (folder / "fold0.ckpt").unlink()
        assert "train.lr" in prepared.refused(*QUICK, "--fold", 1, "train.lr=0.5")


def test_two_writers_of_one_run_never_mix(prepared: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(prepared.root))
    about = load_competition(str(prepared.competition))
    table, fold_table = index.load_index(about), folds.load_folds(about)
    sizes = fold_table["fold"].value_counts()
    together = threading.Barrier(4)

    def write(value: float) -> None:
        preds = {k: (np.full((sizes[k], 1), value), np.full((12, 1), value)) for k in range(3)}
        together.wait()
        write_run(about, "shared", {"value": value}, fold_table, table, preds, {})

    writers = [threading.Thread(target=write, args=(k / 4,)) for k in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    run = load_run(about, "shared")
    assert run.oof["pred"].nunique() == 1 and run.oof["pred"].iloc[0] == run.info.config["value"]


@pytest.mark.smoke
def test_a_lock_holds_where_the_kernel_knows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    path = tmp_path / ".lock"
    with locked(path):
        assert is_locked(path)
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
    assert not is_locked(path)
    (tmp_path / ".lock.holder").write_text(f"{platform.node()} 4194304")  # beyond any process number
    with locked(path):
        assert is_locked(path), "a holder that is gone counts for nothing"


# --- ends -------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_closed_pipe_is_no_success(tmp_path: Path) -> None:
    command = f"{sys.executable} {REPOSITORY / 'src/02_train.py'} --help-recipe; echo $? >&2"
    process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read().split()[-1] == b"141"
    process.wait()


IGNORED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from foldwise.core import cli
class Ends:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(1)
def main():
    one = Ends()
    del one
    time.sleep(60)
cli.run(main)
"""


@pytest.mark.smoke
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("end", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_destructor_is_not_lost(end: signal.Signals, status: int) -> None:
    command = [sys.executable, "-c", IGNORED, str(REPOSITORY / "src"), str(int(end))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_killed_01(tmp_path: Path, end: signal.Signals) -> None:
    noise = np.random.default_rng(0)
    for k in range(60):
        cv2.imwrite(str(tmp_path / f"{k}.png"), noise.integers(0, 255, (900, 900, 3)).astype(np.uint8))
    command = [sys.executable, REPOSITORY / "src" / "01_preprocess.py", "--inspect", tmp_path, "--workers", "2"]
    process = subprocess.Popen(
        [*map(str, command), "--report", str(tmp_path / "r.csv")],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )

    def alive() -> list[int]:
        ours = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process.pid and fields[0] != "Z":  # of the session that it leads
                ours.append(int(stat.parent.name))
        return ours

    limit = time.monotonic() + 60
    while len(alive()) < 4 and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(alive()) >= 4, "the workers never started"
    process.send_signal(end)
    process.wait(timeout=60)
    limit = time.monotonic() + 15
    while alive() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not alive()


@pytest.mark.smoke
def test_folders_that_killed_processes_left_are_swept(tmp_path: Path) -> None:
    (left := tmp_path / "upload.abc").mkdir()
    (left / ".lock").touch()
    with temporary_folder(tmp_path, "upload.") as one, temporary_folder(tmp_path, "upload.") as two:
        assert one.is_dir() and two.is_dir() and not left.exists()
    assert not list(tmp_path.iterdir())


def test_folders_made_at_once_are_not_swept(tmp_path: Path) -> None:
    """Between its making and its locking a folder once looked like one that a killed process had left."""

    def visit(_: int) -> None:
        for _ in range(40):
            with temporary_folder(tmp_path, "upload.") as folder:
                (folder / "sent").touch()
                assert (folder / "sent").exists()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(visit, range(6)))
    assert not list(tmp_path.iterdir())


def test_sigterm_saves_inside_the_epoch_and_the_same_command_continues(prepared: Workplace) -> None:
    long = [*map(str, QUICK[1:-1]), "--fold", "0", "train.epochs=400"]
    command = [sys.executable, str(REPOSITORY / "src" / "02_train.py"), "--competition", str(prepared.competition)]
    env = {**os.environ, "FOLDWISE_ROOT": str(prepared.root)}
    process = subprocess.Popen([*command, *long], cwd=prepared.root, env=env, stderr=subprocess.PIPE, text=True)
    folder, limit = prepared.runs / "quick", time.monotonic() + 120
    while not (folder / "fold0_log.csv").exists() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "stopped: fold 0" in said and "run the same command to continue" in said
    again = prepared.run("02_train.py", *long, "--hours", 1e-9, check=False)
    assert again.returncode == 75 and "continues after epoch" in again.stderr


def test_hours_end_01_and_the_same_command_continues(tiny: Workplace) -> None:
    done = tiny.run("01_preprocess.py", "--sizes", 32, "--hours", 1e-6, check=False)
    assert done.returncode == 75 and "run the same command to continue" in done.stderr.strip().splitlines()[-1]
    assert not list(tiny.derived.glob("*.part")) and not (tiny.derived / "report.html").exists()
    tiny.run("01_preprocess.py", "--sizes", 32, "--hours", 1)


def test_hours_end_03_05_and_07_and_what_is_there_stays(trained: Workplace) -> None:
    steps = (("03_metadata.py", "--name", "timed"), ("05_predict.py", "--run", "quick", "--name", "timed"))
    for step in (*steps, ("07_explain.py", "--run", "quick")):
        done = trained.run(*step, "--hours", 1e-6, check=False)
        assert done.returncode == 75 and "--hours are over" in done.stderr.strip().splitlines()[-1], done.stderr
    assert not (trained.runs / "timed").exists()


def test_pieces_of_a_stopped_step_are_used_by_the_same_command_alone(tmp_path: Path) -> None:
    def never() -> np.ndarray:
        raise AssertionError("made again")

    with pytest.raises(SystemExit), pieces.of_run(tmp_path, "r", "key") as kept:
        kept.keep("fold0", lambda: np.arange(3.0))
        with pytest.raises(UserError, match="another process makes this run"), pieces.of_run(tmp_path, "r", "key"):
            pass
        sys.exit(75)
    with pytest.raises(SystemExit), pieces.of_run(tmp_path, "r", "key") as kept:
        assert kept.keep("fold0", never).tolist() == [0, 1, 2]
        path = kept.folder / "fold0.npz"
        path.write_bytes(path.read_bytes()[:-40])
        assert kept.keep("fold0", lambda: np.ones(1)).tolist() == [1], "a damaged piece is made again"
        sys.exit(75)
    with pieces.of_run(tmp_path, "r", "another") as kept:
        assert kept.keep("fold0", lambda: np.zeros(1)).tolist() == [0]
    assert not list(tmp_path.iterdir())


@pytest.mark.smoke
def test_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    from foldwise.core.schema import read_yaml

    lines = ["a0: &a0 [x, x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="YAML aliases"):
        read_yaml(tmp_path / "laughs.yaml")


@pytest.mark.smoke
def test_script_in_a_run_reaches_no_page(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<script>alert(1)</script>"
    folder = shutil.copytree(trained.runs / "quick", trained.runs / "evil")
    try:
        info = json.loads((folder / "run.json").read_text())
        info["config"] |= {"image_size": evil, "seed": evil, "model": {**info["config"]["model"], "name": evil}}
        (folder / "run.json").write_text(json.dumps(info))
        trained.run("10_report.py")
        assert evil not in (trained.runs / "results.html").read_text()
        assert "evil" in (trained.runs / "results.html").read_text()
    finally:
        shutil.rmtree(folder)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["null", "[]", "", '{"config": 3}', '{"score": "high", "config": {}}'])
def test_a_damaged_run_json_is_one_line(trained: Workplace, text: str) -> None:
    folder = shutil.copytree(trained.runs / "quick", trained.runs / "hurt")
    try:
        (folder / "run.json").write_text(text)
        for step in (("06_blend.py", "--runs", "hurt", "--method", "best"), ("10_report.py",)):
            done = trained.run(*step, check=False)
            assert done.returncode in {0, 2} and "Traceback" not in done.stderr, done.stderr
    finally:
        shutil.rmtree(folder)


def test_a_damaged_log_never_costs_a_submission(trained: Workplace) -> None:
    trained.run("06_blend.py", "--method", "best", "--name", "first")
    log = trained.submissions.parent / "log.csv"
    log.write_text("")
    done = trained.run("06_blend.py", "--method", "best", "--name", "second")
    assert "log.csv.damaged" in done.stderr and len(pd.read_csv(log)) == 1
