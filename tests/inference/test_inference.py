"""A saved blend on test rows that nobody has seen: equal to what 06 wrote, whatever lies there, within the hours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, Workplace, make_tiny

from foldwise.blend.mixture import Mixture
from foldwise.core.files import write_json
from foldwise.data import oof
from foldwise.inference.bundle import _is_id, digests
from foldwise.inference.rehearsal import cause

QUICK = ("02_train.py", "--recipe", "quick.yaml", "--fold", "all", "train.epochs=1", "train.threads=1")
PLAIN = ("train.precision=plain",)


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Networks with views, metadata fused, LightGBM by groups, a model on another run, a head, and two blends."""
    place = make_tiny(tmp_path_factory.mktemp("blended"), test_rows=24)
    place.describe(metadata={"numeric": ["age"], "categorical": ["site"], "dates": ["taken"]})
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(place.raw / name)
        days = pd.to_timedelta(table.index.to_numpy() * 7 % 90, unit="D")
        table.assign(taken=(pd.Timestamp("2019-01-17") + days).astype(str)).to_csv(place.raw / name, index=False)
    place.run("01_preprocess.py", "--sizes", 32)
    place.run(*QUICK, "--name", "plain", *PLAIN, "predict.tta=flip")
    place.run("05_predict.py", "--run", "plain", "predict.tta=d4")
    place.run(*QUICK, "--name", "fusion", *PLAIN, "model.metadata=true")
    place.run("03_metadata.py", "--params", "rounds=20", "--group-features")
    place.run("04_embed.py", "--run", "plain", "--head", "svm")
    place.run(
        "03_metadata.py",
        "--model",
        "logreg",
        "--name",
        "stacked",
        "--oof",
        "plain",
        "--embeddings",
        "plain",
        "--group-features",
        "--lof",
        "plain",
    )
    place.run("06_blend.py", "--all", "--method", "stack", "--name", "stack")
    place.run("06_blend.py", "--all", "--method", "rank", "--name", "rank")
    return place


@pytest.fixture
def hidden(blended: Workplace, tmp_path: Path) -> Workplace:
    """The same models where the original images are gone and other rows lie as the test set: fold 0's, truth known."""
    place = Workplace(tmp_path, tmp_path / "tiny.yaml")
    shutil.copy(blended.competition, place.competition)
    for folder in ("oof", "submissions", "input/derived"):
        shutil.copytree(blended.root / folder, tmp_path / folder)
    for cached in place.derived.glob("images*"):
        cached.unlink()
    folds = pd.read_csv(place.derived / "folds.csv", dtype=str)
    old = folds.loc[folds["fold"] == "0", "id"]
    new = [f"h{k:03d}" for k in range(len(old))]
    table = pd.read_csv(blended.raw / "train.csv").set_index("image_id").loc[old]
    (place.raw / "test").mkdir(parents=True)
    for before, now in zip(old, new, strict=True):
        shutil.copy(blended.raw / "train" / f"{before}.png", place.raw / "test" / f"{now}.png")
    table.assign(old=old.to_numpy()).to_csv(place.raw / "truth.csv")
    table.drop(columns="sick").assign(image_id=new).to_csv(place.raw / "test.csv", index=False)
    pd.DataFrame({"image_id": new, "sick": 0.5}).to_csv(place.raw / "sample_submission.csv", index=False)
    return place


def predicted(place: Workplace, name: str, *flags: object) -> tuple[pd.DataFrame, str]:
    out = place.root / "out.csv"
    done = place.run("05_predict.py", "--submission", name, "--out", out, "--workers", 1, *flags)
    assert not (place.root / "out.csv.work").exists()
    return pd.read_csv(out, dtype={"image_id": str}), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["stack", "rank"])
def test_the_rows_of_the_public_test_get_what_06_wrote_to_the_last_byte(blended: Workplace, name: str) -> None:
    predicted(blended, name)
    assert (blended.root / "out.csv").read_bytes() == (blended.submissions / f"{name}.csv").read_bytes()


def test_other_rows_get_what_their_fold_s_models_gave_out_of_fold(hidden: Workplace) -> None:
    """Nothing of a group stays the same but its size, so that even the columns of groups agree."""
    got, said = predicted(hidden, "stack", "--folds", 0)
    truth = pd.read_csv(hidden.raw / "truth.csv")
    mixture = Mixture.of_saved(json.loads((hidden.submissions / "stack.json").read_text())["mixture"])
    runs = [oof.read_table(hidden.runs / name / "oof.csv").set_index("id") for name in mixture.names]
    expected = mixture.predict(np.stack([run.loc[truth["old"], "pred"].to_numpy() for run in runs]))
    readable = [old not in {"tr0007"} for old in truth["old"]]
    assert got["sick"][readable].to_numpy() == pytest.approx(expected[readable], abs=1e-6)
    assert "training prior" in said


def test_whatever_is_wrong_with_the_rows_is_counted_and_stops_nothing(hidden: Workplace) -> None:
    table = pd.read_csv(hidden.raw / "test.csv")
    table.loc[0, "site"] = "elsewhere"
    table = pd.concat([table, table.tail(1), table.tail(1).assign(image_id=None)])
    table.drop(columns="age").to_csv(hidden.raw / "test.csv", index=False)
    (hidden.raw / "test" / "h001.png").write_bytes(b"broken")
    (hidden.raw / "test" / "h002.png").unlink()
    (hidden.raw / "test" / "more.png").write_bytes(b"broken")
    got, said = predicted(hidden, "stack")
    assert np.isfinite(got["sick"]).all() and len(got) == len(table) - 2
    for words in (
        "1 rows with an id that stands there twice",
        "1 rows with an empty id",
        "1 rows with a category never seen, such as 'elsewhere'",
        "1 files that the table does not name, such as test/more.png",
        "images can't be read",
    ):
        assert words in said


@pytest.mark.parametrize("missing", ["test.csv", "test", "sample_submission.csv", "all but one row"])
def test_a_missing_piece_is_made_up_for(hidden: Workplace, missing: str) -> None:
    table = pd.read_csv(hidden.raw / "test.csv")
    if missing == "all but one row":
        for name in ("test.csv", "sample_submission.csv"):
            pd.read_csv(hidden.raw / name).head(1).to_csv(hidden.raw / name, index=False)
    else:
        (hidden.raw / missing).rename(hidden.root / "away")
    got, _ = predicted(hidden, "rank")
    assert got["image_id"].tolist() == table["image_id"].tolist()[: 1 if missing == "all but one row" else None]
    assert got.columns.tolist() == ["image_id", "sick"] and got["sick"].between(0, 1).all()


def test_an_old_sample_lends_its_columns_only(hidden: Workplace) -> None:
    pd.DataFrame({"image_id": ["te0000"], "sick": [0.5]}).to_csv(hidden.raw / "sample_submission.csv", index=False)
    got, said = predicted(hidden, "stack")
    assert got["image_id"].tolist() == pd.read_csv(hidden.raw / "test.csv")["image_id"].tolist()
    assert "its columns are used, not its ids" in said


@pytest.mark.parametrize("sample", [b"", b"image_id,sick\n", b"row,other\nh000,1\n", b"image_id,sick\n\xff\xfe,1\n"])
def test_a_damaged_sample_is_made_up_for(hidden: Workplace, sample: bytes) -> None:
    (hidden.raw / "sample_submission.csv").write_bytes(sample)
    got, said = predicted(hidden, "stack")
    assert got.columns.tolist() == ["image_id", "sick"] and "made up for" in said
    assert got["image_id"].tolist() == pd.read_csv(hidden.raw / "test.csv")["image_id"].tolist()


def test_a_date_that_no_calendar_holds_counts_as_missing(hidden: Workplace) -> None:
    table = pd.read_csv(hidden.raw / "test.csv")
    table.loc[0, "taken"] = None
    table.to_csv(hidden.raw / "test.csv", index=False)
    without, _ = predicted(hidden, "stack")
    table.loc[0, "taken"] = "9999-12-31"
    table.to_csv(hidden.raw / "test.csv", index=False)
    pd.testing.assert_frame_equal(predicted(hidden, "stack")[0], without)


def test_what_an_earlier_try_left_serves_the_same_files_only(
    hidden: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = hidden.root / "out.csv", hidden.root / "out.csv.work"
    stop = "import sys; from foldwise.inference import predict; predict._finish = lambda work: None; "
    command = ["--competition", str(hidden.competition), "--submission", "stack", "--out", str(out), "--workers", "1"]
    start = f"import runpy; sys.argv = {['05_predict.py', *command]!r}; "
    program = f"{stop}{start}runpy.run_path({str(REPOSITORY / 'src' / '05_predict.py')!r}, run_name='__main__')"
    env = {**os.environ, "FOLDWISE_ROOT": str(hidden.root), "PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True)
    assert list(work.rglob("rows_*.npz"))
    images = sorted((hidden.raw / "test").glob("*.png"))
    for one, other in zip(images, images[::-1], strict=True):
        (hidden.root / other.name).write_bytes(one.read_bytes())
    for one in images:
        (hidden.root / one.name).replace(one)
    for chunk in work.rglob("rows_*.npz"):
        chunk.write_bytes(chunk.read_bytes()[:100])  # and damaged besides
    swapped, said = predicted(hidden, "stack")
    assert "from an earlier try" not in said
    fresh, _ = predicted(hidden, "stack")
    pd.testing.assert_frame_equal(swapped, fresh)


def test_killed_it_goes_on_and_writes_the_same(hidden: Workplace) -> None:
    whole, _ = predicted(hidden, "stack")
    out = hidden.root / "out.csv"
    out.unlink()
    command = ["05_predict.py", "--competition", hidden.competition, "--submission", "stack", "--out", out]
    env = {**os.environ, "FOLDWISE_ROOT": str(hidden.root)}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "src" / command[0]), *map(str, command[1:])],
        env=env,
        stderr=subprocess.DEVNULL,
    )
    chunk, until = hidden.root / "out.csv.work" / "chunks", time.monotonic() + 120
    while not list(chunk.glob("rows_*.npz")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(pd.read_csv(out)) == len(whole)  # valid at any moment
    again, said = predicted(hidden, "stack")
    assert "chunks are there from an earlier try" in said or process.returncode == 0
    pd.testing.assert_frame_equal(again, whole)


def test_when_the_hours_are_short_what_is_left_out_is_said(hidden: Workplace) -> None:
    whole, _ = predicted(hidden, "rank")
    got, said = predicted(hidden, "rank", "--hours", 0.001, "--started", time.time())
    assert got["image_id"].tolist() == whole["image_id"].tolist() and got["sick"].between(0, 1).all()
    assert "time is over" in said


def test_two_processes_share_the_images(hidden: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.read_csv(hidden.raw / "test.csv")
    more = pd.concat([table.assign(image_id=[f"{one}x{k}" for one in table["image_id"]]) for k in range(5)])
    for one, old in zip(more["image_id"], 5 * table["image_id"].tolist(), strict=True):
        shutil.copy(hidden.raw / "test" / f"{old}.png", hidden.raw / "test" / f"{one}.png")
    more.to_csv(hidden.raw / "test.csv", index=False)  # two chunks
    (hidden.raw / "sample_submission.csv").unlink()
    alone, _ = predicted(hidden, "stack")
    shared, _ = predicted(hidden, "stack", "--devices", 2)
    pd.testing.assert_frame_equal(shared, alone, rtol=1e-6)


def test_what_can_not_be_predicted_is_named(hidden: Workplace) -> None:
    out = ("--out", hidden.root / "out.csv")
    assert "not there; did you mean 'stack'" in hidden.refused("05_predict.py", "--submission", "stak", *out)
    next(hidden.runs.glob("lightgbm/*_model.npz")).unlink()
    assert "run the same 03_metadata.py again" in hidden.refused("05_predict.py", "--submission", "stack", *out)
    assert len(pd.read_csv(hidden.root / "out.csv")) == len(pd.read_csv(hidden.raw / "test.csv"))  # the prior
    for damaged in ("", "[]", '{"method": "stack"', '{"mixture": {}, "leave_one_out": []}'):
        (hidden.submissions / "rank.json").write_text(damaged)
        line = hidden.refused("05_predict.py", "--submission", "rank", *out)
        assert "rank.json: damaged" in line and "run the same 06_blend.py again" in line
    assert "is no time" in hidden.refused("05_predict.py", "--submission", "stack", "--hours", "nan", *out)
    shutil.rmtree(hidden.runs / "fusion")
    assert "fusion: no run.json" in hidden.refused("05_predict.py", "--submission", "stack", *out)


# --- the bundle -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(blended: Workplace) -> Path:
    out = blended.root / "bundle"
    blended.run("11_bundle.py", "--submission", "stack", "--out", out, "--owner", "some-body", "--no-gpu")
    return out


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def meant(bundle: Path) -> None:
    """As though the bundle had been made with the files that lie there now."""
    about = json.loads((bundle / "bundle.json").read_text())
    write_json(bundle / "bundle.json", {**about, "files": digests(bundle)})


def test_a_bundle_holds_what_the_host_wants_and_nothing_of_the_rest(bundle: Path, blended: Workplace) -> None:
    kernel = json.loads((bundle / "kernel" / "kernel-metadata.json").read_text())
    assert kernel["enable_internet"] is False and kernel["competition_sources"] == ["tiny"]
    dataset = json.loads((bundle / "dataset" / "dataset-metadata.json").read_text())
    assert dataset == {
        "title": "foldwise tiny stack",
        "id": "some-body/foldwise-tiny-stack",
        "licenses": [{"name": "CC0-1.0"}],
    }
    code = bundle / "dataset" / "code" / "src" / "foldwise"
    assert (code / "inference" / "predict.py").exists()
    assert not (code / "report").exists() and not (code / "train").exists() and not (code / "demo.py").exists()
    cells = json.loads((bundle / "kernel" / "submit.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code + "\n" == (bundle / "submit.py").read_text() and '"foldwise-tiny-stack", "stack", "tiny"' in code
    assert "nothing that the host would refuse" in blended.run("11_bundle.py", "--check", bundle).stdout


def test_half_precision_is_measured_and_halves_the_weights(blended: Workplace, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "halved"
    done = blended.run("11_bundle.py", "--submission", "stack", "--out", out, "--owner", "some-body", "--fp16")
    assert "fp16: plain: out-of-fold roc_auc" in done.stderr and set(
        json.loads((out / "bundle.json").read_text())["fp16"]
    )
    weights = "dataset/root/oof/tiny/plain/fold0.safetensors"
    assert (out / weights).stat().st_size < 0.6 * (bundle / weights).stat().st_size


def test_the_rehearsal_finds_the_rows_as_they_were_out_of_fold(blended: Workplace, bundle: Path) -> None:
    done = blended.run("11_bundle.py", "--rehearse", bundle, "--hidden-rows", 1000)
    assert "FAIL" not in done.stdout
    for rule in (
        "files",
        "models",
        "mounts: competitions/",
        "internet",
        "read-only inputs",
        "rows as out of fold",
        "score",
        "memory",
        "disk",
    ):
        assert f"ok    {rule}" in done.stdout


def test_what_a_bundle_breaks_is_named(blended: Workplace, copied: Path) -> None:
    script = (copied / "submit.py").read_text()
    call = "import urllib.request\ntry:\n    urllib.request.urlopen('http://example.org')\nexcept OSError:\n    pass\n"
    (copied / "submit.py").write_text(script.replace("env = {", f"{call}env = {{"))
    (copied / "dataset/root/oof/tiny/plain/fold1.safetensors").write_bytes(b"cut")
    meant(copied)
    kernel = copied / "kernel" / "kernel-metadata.json"
    kernel.write_text(kernel.read_text().replace('"tiny"', '"tinny"'))
    done = blended.run("11_bundle.py", "--rehearse", copied, "--hidden-rows", 10**9, check=False)
    assert done.returncode == 1
    lines = ("models: ", "internet: asked for: ", "slug: competition_sources is not [tiny]", "memory: ", "time: ")
    for line in (*lines, "disk: "):
        assert f"broken: {line}" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        ("file", "file missing: dataset/root/oof/tiny/plain/fold1.safetensors; where that is meant, make the bundle"),
        ("blend", "JSONDecodeError: Expecting"),
        ("slug", "rule dataset: 'foldwise-tiny-other' is not mounted"),
        ("slow", "time: not done in"),
    ],
)
def test_what_stops_a_bundle_is_named(blended: Workplace, copied: Path, plant: str, named: str) -> None:
    if plant == "file":
        (copied / "dataset/root/oof/tiny/plain/fold1.safetensors").unlink()
    elif plant == "blend":
        blend = copied / "dataset/root/submissions/tiny/stack.json"
        blend.write_text(blend.read_text()[:200])
        meant(copied)
    elif plant == "slug":
        script = copied / "submit.py"
        script.write_text(script.read_text().replace('"foldwise-tiny-stack"', '"foldwise-tiny-other"'))
        meant(copied)
    else:
        about = copied / "bundle.json"
        about.write_text(about.read_text().replace('"hours": 9.0', '"hours": 0.0001'))
    done = blended.run("11_bundle.py", "--rehearse", copied, check=False)
    assert done.returncode == 1 and named in done.stdout, done.stdout + done.stderr


def test_a_file_that_is_no_longer_as_it_was_made_is_named(blended: Workplace, copied: Path) -> None:
    runs = copied / "dataset/root/oof/tiny"
    weights, columns = runs / "plain/fold1.safetensors", next(runs.glob("*/fold0_model.npz"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    columns.write_bytes(b"")
    index, blend = "dataset/root/input/derived/tiny/index.parquet", "dataset/root/submissions/tiny/stack.json"
    (copied / index).write_bytes(b"")
    (copied / blend).write_text((copied / blend).read_text()[:200])
    (copied / "dataset/code/src/05_predict.py").write_text("")
    (copied / "dataset/code/src/competitions/tiny.yaml").write_text("")
    (runs / "plain/run.json").write_text("[]")
    gone = [
        "submit.py",
        *(f"dataset/root/oof/tiny/{name}" for name in ("plain/fold0.json", "fusion/fold2_metadata.json")),
    ]
    for name in gone:
        (copied / name).unlink()
    (runs / "plain/more.npz").write_bytes(b"")
    done = blended.run("11_bundle.py", "--check", copied, check=False)
    names = [str(path.relative_to(copied)) for path in (weights, columns, runs / "plain/run.json")]
    names += [index, blend, "dataset/code/src/05_predict.py", "dataset/code/src/competitions/tiny.yaml"]
    lines = [f"missing: {name}" for name in gone] + [f"changed: {name}" for name in names]
    lines.append("added: dataset/root/oof/tiny/plain/more.npz")
    assert done.returncode == 1 and set(done.stdout.splitlines()) == {
        f"FAIL  file {line}; where that is meant, make the bundle again" for line in lines
    }


@pytest.mark.parametrize(
    ("file", "text", "status", "named"),
    [
        ("bundle.json", "{", 2, "bundle.json: can't be read"),
        ("bundle.json", "[1]", 2, "bundle.json: a JSON object belongs there, not [1]"),
        ("bundle.json", "{}", 2, "bundle.json (make the bundle again): competition: Field required"),
        ("dataset/dataset-metadata.json", "[]", 2, "dataset-metadata.json: a JSON object belongs there"),
        ("dataset/dataset-metadata.json", '{"licenses": [5]}', 1, "dataset-metadata.json has [5]; exactly one"),
        ("dataset/dataset-metadata.json", '{"licenses": [{"name": ""}]}', 1, "has [{'name': ''}]; exactly one"),
        ("dataset/dataset-metadata.json", '{"title": null}', 1, "dataset-metadata.json has None; 6 to 50"),
        ("kernel/kernel-metadata.json", '{"dataset_sources": 5, "title": 5}', 1, "kernel-metadata.json has 5; 5 to 50"),
    ],
)
def test_json_that_is_none_of_a_bundle_s_is_named(
    blended: Workplace, copied: Path, file: str, text: str, status: int, named: str
) -> None:
    (copied / file).write_text(text)
    done = blended.run("11_bundle.py", "--check", copied, check=False)
    assert done.returncode == status and named in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_the_cause_of_a_failure_is_its_error_line_or_what_its_traceback_ends_with() -> None:
    traced = (
        "Traceback (most recent call last):\n  File 'a'\n    ^^\nValueError: why\n05_predict.py ended with status 1"
    )
    assert cause(traced) == "ValueError: why"
    assert cause(f"error: first\nerror: last\n{traced}") == "error: last"
    assert cause("one\ntwo\n") == "two" and cause("") == ""


def test_the_owner_of_the_examples_is_one_that_the_host_takes() -> None:
    for owner in re.findall(r"--owner (\S+)", (REPOSITORY / "src" / "11_bundle.py").read_text()):
        assert _is_id(f"{owner}/some-data")
