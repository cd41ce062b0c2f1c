"""The web app: its answers by function, its pages without a browser, and all of it in a real headless Chromium."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, Workplace

from app import uploads
from app.service import Answer, Service
from app.uploads import Upload
from foldwise import UserError
from foldwise.data.competition import load_competition


@pytest.fixture(scope="module")
def service(trained: Workplace) -> Iterator[Service]:
    """The tiny competition's service."""
    before = os.environ.get("FOLDWISE_ROOT")
    os.environ["FOLDWISE_ROOT"] = str(trained.root)
    uploads.prepare()
    yield Service(load_competition(str(trained.competition)))
    os.environ.pop("FOLDWISE_ROOT") if before is None else os.environ.update(FOLDWISE_ROOT=before)


def upload(trained: Workplace, name: str, split: str = "test") -> Upload:
    return Upload(f"{name}.png", (trained.raw / split / f"{name}.png").read_bytes())


def ask(service: Service, *files: Upload, runs: tuple[str, ...] = ("quick",), **more: Any) -> Answer:
    with uploads.receiving(files) as received:
        return service.predict(received, list(runs), **more)


def test_an_uploaded_test_image_gets_what_training_predicted_for_it(service: Service, trained: Workplace) -> None:
    answer = ask(service, upload(trained, "te0000"), upload(trained, "te0003"), upload(trained, "te0005"))
    assert answer.ids == ["te0000.png", "te0005.png"] and list(answer.errors) == ["te0003.png"]
    for fold in service.folds("quick"):
        table = pd.read_csv(trained.runs / "quick" / f"fold{fold}_test.csv").set_index("id")["pred"]
        wanted = table.loc[["te0000", "te0005"]].to_numpy()
        assert np.allclose(answer.preds["quick"][fold][:, 0], wanted, atol=1e-5)
    mean = pd.read_csv(trained.runs / "quick" / "test.csv").set_index("id").loc["te0000", "pred"]
    assert answer.table(answer.mean("quick"))["pred"].iloc[0] == pytest.approx(mean, abs=1e-5)


def test_hostile_uploads_end_in_a_message(service: Service) -> None:
    with pytest.raises(UserError, match="not an image"):
        ask(service, Upload("x.png", b"no image" * 99))
    with pytest.raises(UserError, match="empty file"):
        ask(service, Upload("x.png", b""))
    with pytest.raises(UserError, match="nothing was sent"):
        ask(service)


def test_two_visitors_at_once_get_what_each_would_get_alone(service: Service, trained: Workplace) -> None:
    names = [f"te{k:04}" for k in (0, 1, 2, 4, 5, 6)]

    def one(name: str) -> tuple[np.ndarray, np.ndarray]:
        answer = ask(service, upload(trained, name))
        return answer.mean("quick"), service.map(answer, "quick", 0, 0)

    alone = [one(name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, names * 2))
    for k, (pred, heat) in enumerate(together):
        assert np.array_equal(pred, alone[k % len(names)][0])
        assert np.allclose(heat, alone[k % len(names)][1], atol=1e-5)  # gradients differ in the last bits
    assert len({float(pred[0, 0]) for pred, _ in alone}) == len(names)
    assert max(heat.max() for _, heat in alone) > 0


def test_a_map_is_of_the_image_as_the_model_saw_it(service: Service, trained: Workplace) -> None:
    answer = ask(service, upload(trained, "te0000"))
    heat = service.map(answer, "quick", 1, 0)
    assert heat.shape == answer.images[32, False].shape[1:3] == (32, 32)
    assert heat.min() >= 0 and heat.max() <= 1 + 1e-6


def test_a_training_image_is_its_own_nearest_neighbour(service: Service, trained: Workplace) -> None:
    with uploads.receiving([upload(trained, "tr0010", "train")]) as received:
        found = service.nearest(received, "quick", 0, 3)
        assert found["id"].iloc[0] == "tr0010" and found["similarity"].iloc[0] == pytest.approx(1, abs=1e-4)
        made = (trained.derived / "neighbours" / "quick_fold0.npy").stat().st_mtime_ns
        assert service.nearest(received, "quick", 0, 3).equals(found)
        assert (trained.derived / "neighbours" / "quick_fold0.npy").stat().st_mtime_ns == made
    assert found["target"].notna().all() and len(service.neighbours("quick", 0).ids) == 59  # one is unreadable


@pytest.fixture(scope="module")
def blended(trained: Workplace, service: Service) -> Iterator[None]:
    """Blends of the trained runs: a mean, and one of ranks."""
    trained.run("06_blend.py", "--name", "both", "--runs", "quick", "lightgbm", "--method", "mean")
    trained.run("06_blend.py", "--name", "ranks", "--runs", "quick", "lightgbm", "--method", "rank")
    yield
    shutil.rmtree(trained.submissions.parent, ignore_errors=True)


def metadata_of(trained: Workplace, row_id: str) -> dict[str, Any]:
    row = pd.read_csv(trained.raw / "test.csv").set_index("image_id").loc[row_id]
    return {name: row[name] for name in ("age", "site") if pd.notna(row[name])}


def test_a_whole_blend_gives_an_uploaded_test_image_its_row_of_the_submission(
    service: Service, trained: Workplace, blended: None
) -> None:
    told = list[str]()
    for name in ("te0000", "te0005"):
        with uploads.receiving([upload(trained, name)]) as received:
            blend = service.blend(received, "both", metadata_of(trained, name), told=told.append)
        wanted = pd.read_csv(trained.submissions / "both.csv").set_index("image_id").loc[name, "sick"]
        assert blend.pred[0, 0] == pytest.approx(wanted, abs=1e-5) and blend.above is None
    assert told[0] == "decoding" and "quick: fold 1 of 3" in told
    assert service.fuses(["quick"], "both") and not service.fuses(["quick"])  # LightGBM looks at metadata


def test_a_blend_of_ranks_says_which_share_of_the_test_images_it_ranks_above(
    service: Service, trained: Workplace, blended: None
) -> None:
    table = pd.read_csv(trained.submissions / "ranks.csv").set_index("image_id")["sick"]
    for name in ("te0000", "te0001"):
        with uploads.receiving([upload(trained, name)]) as received:
            blend = service.blend(received, "ranks", metadata_of(trained, name))
        assert blend.above is not None
        assert blend.above[0, 0] == pytest.approx((table < table[name] - 1e-9).mean(), abs=0.01)


def test_a_blend_whose_run_is_gone_is_refused_in_words(service: Service, trained: Workplace, blended: None) -> None:
    text = (trained.submissions / "both.json").read_text().replace("lightgbm", "absent")
    (trained.submissions / "gone.json").write_text(text)
    with (
        uploads.receiving([upload(trained, "te0000")]) as received,
        pytest.raises(UserError, match=r"absent: no run\.json"),
    ):
        service.blend(received, "gone")


def test_noise_is_like_nothing_in_training(service: Service, trained: Workplace) -> None:
    with uploads.receiving([upload(trained, "tr0010", "train")]) as received:
        assert not service.nearest(received, "quick", 0, 3).attrs["strange"]
    stripes = np.zeros((40, 48, 3), np.uint8)
    stripes[::2] = (255, 0, 0)
    with uploads.receiving([Upload("x.png", cv2.imencode(".png", stripes)[1].tobytes())]) as received:
        nearest = service.nearest(received, "quick", 0, 3)
    assert nearest.attrs["strange"], nearest


def test_examples_are_readable_test_images_as_they_lie_there(service: Service, trained: Workplace) -> None:
    rows = service.examples()
    assert len(rows) == 6 and (rows["split"] == "test").all() and "te0003" not in rows["id"].tolist()
    file = service.file("test", rows["id"].iloc[0])
    assert file.data == (trained.raw / "test" / file.name).read_bytes()


def test_errors_come_worst_first(service: Service) -> None:
    table = service.errors("quick")
    assert len(table) == 59 and table["wrong"].is_monotonic_decreasing
    assert set(table["truth"]) == {"sick = 0", "sick = 1"}


def test_metadata_that_nobody_gave_is_missing(service: Service) -> None:
    rows = service.described(pd.DataFrame({"id": ["a", "b"]}), {"age": 50})
    assert rows["age"].tolist() == [50, 50] and rows["site"].isna().all()
    known = service.metadata()
    assert known["site"] == ["arm", "leg"] and len(known["age"]) == 3


@pytest.mark.smoke
def test_streamlit_is_imported_by_the_app_alone() -> None:
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        names = [
            alias.name if isinstance(node, ast.Import) else str(node.module)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        if any(name.split(".")[0].startswith("streamlit") for name in names):
            assert "app" in path.parts[-3:] or path.name == "09_app.py", path


@pytest.mark.smoke
def test_words_from_elsewhere_are_not_read_as_markdown() -> None:
    from app import frame

    assert frame.plain("![x](http://y) <b>$a$\n`c`") == r"\!\[x\]\(http\://y\) \<b\>\$a\$ \`c\`"


def page_of(competition: Path, page: str, tmp_path: Path, **state: object) -> Any:
    """A page without a browser."""
    from streamlit.testing.v1 import AppTest

    script = tmp_path / "page.py"  # guarded: the processes that decode look at it, too
    script.write_text(
        "if __name__ == '__main__':\n"
        "    import streamlit as st\n"
        "    from app.main import guarded\n"
        f"    from app.pages import {page}\n"
        f"    st.session_state['competition'] = {str(competition)!r}\n"
        f"    guarded({page}.show)()\n"
    )
    shown = AppTest.from_file(str(script), default_timeout=60)
    for name, value in state.items():
        shown.session_state[name] = value
    return shown.run()


@pytest.mark.parametrize("page", ["one", "batch", "results", "errors", "weights"])
def test_pages_show_without_an_exception(service: Service, trained: Workplace, page: str, tmp_path: Path) -> None:
    shown = page_of(trained.competition, page, tmp_path)
    assert not shown.exception and not shown.error
    assert shown.title[0].value.startswith("tiny: ")


def test_an_example_is_answered_in_one_large_sentence(
    service: Service, trained: Workplace, blended: None, tmp_path: Path
) -> None:
    shown = page_of(trained.competition, "one", tmp_path, opened=("test", "te0000"))
    assert not shown.exception and not shown.error
    assert re.match(r"sick = 1\\?: \d+ %, folds \d+ to \d+ %", shown.header[0].value)
    assert any("Submission both, all its runs: " in line.value.replace("\\", "") for line in shown.markdown)


def test_several_images_at_once_are_sent_to_the_other_page(
    service: Service, trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a zip renamed .dcm: what it is shows in its bytes."""
    with zipfile.ZipFile(tmp_path / "two.dcm", "w") as archive:
        for name in ("te0000", "te0001"):
            archive.write(trained.raw / "test" / f"{name}.png", f"{name}.png")
    two = Upload("two.dcm", (tmp_path / "two.dcm").read_bytes())
    monkeypatch.setattr(Service, "file", lambda *_: two)
    shown = page_of(trained.competition, "one", tmp_path, opened=("test", "te0000"))
    assert not shown.exception
    assert "holds 2 images; open it on the page Many images" in shown.error[0].value.replace("\\", "")


def test_an_image_cut_short_is_not_named_by_a_place_of_this_machine(
    service: Service, trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))[1].tobytes()
    monkeypatch.setattr(Service, "file", lambda *_: Upload("cut.jpg", data[:300]))
    shown = page_of(trained.competition, "one", tmp_path, opened=("test", "te0000"))
    words = " ".join(error.value.replace("\\", "") for error in shown.error)
    assert not shown.exception and "upload." not in words and str(trained.root) not in words


def test_without_runs_the_command_that_makes_one_is_shown(tiny: Workplace, tmp_path: Path) -> None:
    tiny.run("01_preprocess.py", "--sizes", 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDWISE_ROOT", str(tiny.root))
        for page in ("one", "errors", "weights"):
            shown = page_of(tiny.competition, page, tmp_path)
            assert not shown.error and not shown.exception and shown.info
            assert shown.code[0].value.startswith("python src/02_train.py --competition tiny")


def test_the_weights_page_writes_what_its_sliders_say(service: Service, trained: Workplace, tmp_path: Path) -> None:
    shown = page_of(trained.competition, "weights", tmp_path)
    shown.slider[0].set_value(0.25)
    shown.slider[1].set_value(0.75)
    shown.selectbox[0].set_value("prob")
    shown.run()
    try:
        shown.button[0].click().run()
        assert not shown.exception and not shown.error and str(trained.root) not in shown.success[0].value
        meta = json.loads((trained.submissions / "hand.json").read_text())
    finally:
        for path in trained.submissions.glob("hand.*"):
            path.unlink()
    assert {row["run"]: row["weight"] for row in meta["runs"]} == {"lightgbm": 0.25, "quick": 0.75}
    assert meta["space"] == "prob" and meta["automatic"]["method"]


def test_a_wrong_competition_is_one_line(trained: Workplace) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "09_app.py"), "--competition", "no-such"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FOLDWISE_ROOT": str(trained.root)},
    )
    assert done.returncode == 2 and done.stderr.startswith("error: --competition no-such")


# ------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def app(service: Service, trained: Workplace) -> Iterator[str]:
    """The address of the app, running as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "src" / "09_app.py"), "--competition", str(trained.competition)]
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=trained.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FOLDWISE_ROOT": str(trained.root)},
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--window-size=1366,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


def wait(browser: Any, what: str, script: str, *arguments: Any) -> Any:
    """What the script returns, once that is true."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return WebDriverWait(browser, 60, 0.2).until(lambda one: one.execute_script(f"return {script}", *arguments))
    except TimeoutException:
        text = browser.execute_script("return document.body.innerText")
        raise AssertionError(f"no {what} within a minute; the page says: {text[:1500]}") from None


ANSWERED = (
    "(document.querySelector('[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg')"
    " && document.querySelectorAll('[data-testid=stImage] img').length >= 2) || null"
)


@pytest.mark.slow
def test_upload_and_draw_in_a_real_browser(browser: Any, app: str, trained: Workplace, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.get(app)
    field = wait(browser, "upload field", "document.querySelector('input[type=file]')")
    field.send_keys(str(trained.raw / "test" / "te0000.png"))
    wait(browser, "answer to the upload", ANSWERED)
    words = browser.execute_script("return document.body.innerText")
    assert "as it was sent" in words and re.search(r"\d\.\d\d s", words)
    picture = tmp_path / "upload.png"
    browser.save_screenshot(str(picture))
    shot = cv2.imread(str(picture))
    assert shot.shape[1] >= 1300 and shot.std() > 5

    browser.execute_script(
        "[...document.querySelectorAll('[data-testid=stRadio] label')].find(l => l.innerText == 'Draw').click()"
    )
    canvas = wait(browser, "canvas", f"({CANVAS})()")
    chain = ActionChains(browser, duration=60).move_to_element(canvas).click_and_hold()
    for dx, dy in ((60, 20), (-30, 50), (-60, -60), (40, -20)):
        chain = chain.move_by_offset(dx, dy)
    chain.release().perform()
    wait(browser, "answer to the drawing", ANSWERED)
    assert not browser.find_elements("css selector", "[data-testid=stException]")
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(re.match(r"(https?|wss?)://localhost|data:|blob:", name) for name in asked), "it asks the internet"


CANVAS = """() => {
  const look = root => {
    const found = [...root.querySelectorAll('canvas.upper-canvas')];
    for (const one of root.querySelectorAll('*')) if (one.shadowRoot) found.push(...look(one.shadowRoot));
    return found;
  };
  return look(document)[0] || null;
}"""
