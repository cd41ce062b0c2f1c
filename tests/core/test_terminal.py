"""What a person at a terminal sees: narrow, near, coloured where asked, and the next command at the end."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Workplace

from foldwise.core import cli, progress
from foldwise.core.schema import describe
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe

SCRIPTS = sorted((REPOSITORY / "src").glob("[01]*.py"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_at_most_80_columns_wide(script: Path, tmp_path: Path) -> None:
    said = Workplace(tmp_path, Path("x.yaml")).run(script.name, "--help").stdout
    wide = [line for line in said.splitlines() if len(line) > 80]
    assert not wide
    assert f"python src/{script.name}" in said


@pytest.mark.smoke
def test_every_key_is_described_in_80_columns() -> None:
    for model in (Recipe, Competition):
        words = describe(model)
        assert max(map(len, words.splitlines())) <= 80
        assert re.search(r"^\S+=\S*\n {6}\S", words, re.MULTILINE)


@pytest.mark.smoke
def test_words_wrap_at_a_terminal_and_stay_one_line_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    line = "warning: " + "some words " * 12
    cli.say(line)
    shown = terminal.getvalue()
    assert shown.startswith("\033[33mwarning:\033[0m some") and max(map(len, shown.splitlines())) <= 80 + 9
    monkeypatch.setenv("NO_COLOR", "1")
    cli.say(line)
    assert "\033" not in terminal.getvalue()[len(shown) :]
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    cli.say(line)
    assert plain.getvalue() == line + "\n"


@pytest.mark.smoke
def test_a_folder_that_can_not_be_written_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "oof/tiny")

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which run changes
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: oof/tiny: Read-only file system; ")
    assert "set FOLDWISE_ROOT" in said and said.count("\n") == 1


@pytest.mark.smoke
def test_paths_below_the_current_folder_are_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.near(f"wrote {tmp_path}/oof/a.csv, '{tmp_path}/b'") == "wrote oof/a.csv, 'b'"
    assert cli.near(f"/mnt{tmp_path}/oof") == f"/mnt{tmp_path}/oof"


def test_steps_end_with_the_next_command(trained: Workplace) -> None:
    done = trained.run("02_train.py", "--recipe", "quick.yaml", "--fold", "all")
    assert done.stderr.count("done already") == 3
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"next: python {REPOSITORY}/src/06_blend.py --competition {trained.competition.name}"


def test_a_refused_start_leaves_no_run(tiny: Workplace) -> None:
    tiny.run("01_preprocess.py", "--sizes", 32)
    line = tiny.refused("02_train.py", "--recipe", "quick.yaml", "model.name=test_resnett")
    assert "did you mean 'test_resnet'" in line and not (tiny.runs / "quick").exists()


def test_an_unreadable_test_file_is_told_once_a_run(tiny: Workplace) -> None:
    tiny.run("01_preprocess.py", "--sizes", 32)
    done = tiny.run("02_train.py", "--recipe", "quick.yaml", "train.epochs=1", "train.threads=1")
    assert done.stderr.count("te0003") == 1
    lines = [line for line in done.stderr.splitlines() if " epoch " in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.smoke
def test_a_childs_bar_is_drawn_by_the_process_that_has_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state comes as whole lines; a terminal of 72 columns shows count, rate and loss in one line of them."""
    monkeypatch.setattr(progress.Bar, "sends", True)
    monkeypatch.setattr(sys, "stderr", sent := io.StringIO())
    for _ in (bar := progress.Bar(range(3), desc="fold 1 epoch 2", leave=False)):
        bar.set_postfix(loss="0.5000")
    lines = sent.getvalue().rstrip("\n").split("\n")
    assert lines and all(line.startswith(progress.SENT) and "\r" not in line for line in lines)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (72, 24))
    drawn = progress.RemoteBar()
    drawn.show(lines[-1], "quick")
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("quick fold 1 epoch 2:   0%|") and "loss=0.5000" in last and len(last) <= 72
    drawn.close()
    assert terminal.getvalue().split("\r")[-2].strip() == ""
