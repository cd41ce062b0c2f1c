"""The web app: its answers by function, its pages without a browser, and all of it in a real headless Chromium."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import time
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
from foldwise.core.files import write_json
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


def test_a_blend_gives_an_uploaded_test_image_its_row_of_the_submission(service: Service, trained: Workplace) -> None:
    answer = ask(service, upload(trained, "te0000"))
    trained.submissions.mkdir(parents=True, exist_ok=True)
    wanted = pd.read_csv(trained.runs / "quick" / "test.csv").set_index("id").loc["te0000", "pred"]
    facts = {"metric": "roc_auc", "method": "mean", "space": "prob"}
    for name, runs in (("alone", ["quick"]), ("both", ["lightgbm", "quick"])):  # as step 6 writes them
        weights = [{"run": run, "weight": 1 / len(runs)} for run in runs]
        write_json(trained.submissions / f"{name}.json", {**facts, "runs": weights})
    pred, absent = service.mixture("alone").predict(answer)
    assert not absent and pred[0, 0] == pytest.approx(wanted, abs=1e-5)
    pred, absent = service.mixture("both").predict(answer)
    assert absent == ["lightgbm"] and pred[0, 0] == pytest.approx(wanted, abs=1e-5)
    stranger = {**facts, "runs": [{"run": "quick", "weight": 0.2}, {"run": "lightgbm", "weight": 0.8}]}
    write_json(trained.submissions / "old.json", stranger)
    with pytest.raises(UserError, match="have changed since"):
        service.mixture("old")
    for name in ("alone", "both", "old"):
        (trained.submissions / f"{name}.json").unlink()


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


@pytest.mark.parametrize("page", ["one", "batch", "results", "errors"])
def test_pages_show_without_an_exception(service: Service, trained: Workplace, page: str, tmp_path: Path) -> None:
    from streamlit.testing.v1 import AppTest

    script = tmp_path / "page.py"  # guarded: the processes that decode look at it, too
    script.write_text(
        "if __name__ == '__main__':\n"
        "    import streamlit as st\n"
        "    from app.main import guarded\n"
        f"    from app.pages import {page}\n"
        f"    st.session_state['competition'] = {str(trained.competition)!r}\n"
        f"    guarded({page}.show)()\n"
    )
    shown = AppTest.from_file(str(script), default_timeout=60).run()
    assert not shown.exception and not shown.error
    assert shown.title[0].value


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
