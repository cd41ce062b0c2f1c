"""The report: whole, self-contained, escaped, and there for every kind of task; its numbers are right."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import make_tiny, shared

from foldwise.audit import label_noise
from foldwise.audit.duplicates import duplicate_groups, load_audit
from foldwise.data import cache, folds, index
from foldwise.data.competition import Competition, load_competition
from foldwise.data.runs import list_runs
from foldwise.report import figures, sections
from foldwise.report.competition import write_competition_report

SIZE = 48
EVIL = "<script>alert('$')</script>"
VOID = {"meta", "img", "br", "use", "path", "rect", "link"}


class Checker(HTMLParser):
    """Tags must nest; ids be unique; nothing be fetched, nothing run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert tag not in {"script", "iframe", "link", "object"}, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                assert value not in self.ids, f"id {value} stands there twice"
                self.ids.add(str(value))
            if name in {"href", "src"}:
                assert str(value).startswith(("#", "data:image/")), (tag, value)
                self.links |= {str(value)[1:]} if str(value).startswith("#") else set()
            for target in re.findall(r"url\(([^)]*)\)", str(value)):
                assert target.startswith("#"), target
                self.links.add(target[1:])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(path: Path) -> Checker:
    """The page, parsed; whole, and without a failed part."""
    html = path.read_text(encoding="utf-8")
    page = Checker()
    page.feed(html)
    page.close()
    assert not page.open
    assert page.links <= page.ids
    assert "://" not in re.sub(r"data:image/[^\"]*", "", html), "nothing from outside"
    assert "could not be made" not in page.text, re.findall(r"could not be made[^)]*", page.text)
    return page


def written(about: Competition, with_audit: bool = True) -> Path:
    """01's steps up to the report."""
    table = index.build_index(about, 1)
    table["error"] = cache.build_caches(about, table, [SIZE], 1)
    found = duplicate_groups(about, table, cache.load_cache(about, SIZE, table=table)) if with_audit else None
    if found is not None:
        table["group"] = found.group
    index.save_index(table, about)
    fold_table = folds.make_once(about, table)
    return write_competition_report(about, table, fold_table, [SIZE], found)[0]


def described(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Competition:
    monkeypatch.setenv("FOLDWISE_ROOT", str(root))
    file = root / "tiny.yaml"
    description = {**yaml.safe_load(file.read_text()), **changes}
    file.write_text(yaml.safe_dump({name: value for name, value in description.items() if value is not None}))
    return load_competition(str(file))


def rewritten(root: Path, split: str, **columns: object) -> None:
    """Change columns of a table of the tiny competition."""
    path = root / "input" / "tiny" / f"{split}.csv"
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


@pytest.mark.smoke
def test_a_binary_report_with_copies_and_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_tiny(tmp_path, rows=90, test_rows=30)
    raw = place.raw
    (raw / "train" / "tr0011.png").write_bytes((raw / "train" / "tr0000.png").read_bytes())  # labels 0 and 1
    (raw / "test" / "te0002.png").write_bytes((raw / "train" / "tr0005.png").read_bytes())
    about = described(tmp_path, monkeypatch)
    page = checked(written(about))
    for words in (
        "different labels: 1 pair, the first tr0000 and tr0011; the same pixels",
        "copies across train and test: 1 pair",
        "1 test file can't be read",
        "the mean of the others",
        "tr0007",
        "te0003",
        "age",
        "missing",
        "AUC, train against test: metadata",
    ):
        assert words in page.text, words
    assert page.seen.count("svg") >= 5 and page.seen.count("img") >= 18
    saved = pd.read_csv(about.derived() / "duplicates.csv")
    assert saved["kind"].tolist() == ["exact", "exact"]
    fold_of = folds.load_folds(about).set_index("id")["fold"]
    assert fold_of["tr0000"] == fold_of["tr0011"]


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_report_for_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    make_tiny(tmp_path, rows=60, test_rows=24)
    rng = np.random.default_rng(0)
    rewritten(tmp_path, "train", sick=rng.choice([EVIL, "b&b", "c"], 60), site=rng.choice([EVIL, "$leg$", None], 60))
    metric = {"multiclass": "accuracy", "multilabel": "roc_auc", "regression": "rmse"}[task]
    changes: dict[str, object] = {"task": task, "metric": metric}
    if task == "multilabel":
        changes["target"] = [EVIL, "b"]
        rewritten(tmp_path, "train", **{EVIL: rng.integers(0, 2, 60), "b": rng.integers(0, 2, 60)})
    if task == "regression":
        rewritten(tmp_path, "train", sick=rng.normal(size=60))
    path = written(described(tmp_path, monkeypatch, **changes))
    page = checked(path)
    assert EVIL in page.text and EVIL not in path.read_text(encoding="utf-8")


def test_thousands_of_classes_do_not_explode_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path, rows=160, test_rows=24)
    names = [f"kind {k // 2:04d}" for k in range(160)]
    rewritten(tmp_path, "train", sick=names)
    path = written(described(tmp_path, monkeypatch, task="multiclass", metric="accuracy", group=None))
    page = checked(path)
    assert path.stat().st_size < 1_500_000
    assert "8 smallest of 80 classes" in page.text and "more values of target are missing from some fold" in page.text


def test_without_audit_test_split_and_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for k in range(30):
        folder = tmp_path / "input" / "pets" / "train" / ("cat", "dog")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{k}.png"), rng.integers(0, 255, (40, 50, 3)).astype(np.uint8))
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    file = tmp_path / "pets.yaml"
    file.write_text("{name: pets, task: multiclass, metric: accuracy, train: {folders: train}, folds: {n: 3}}")
    page = checked(written(load_competition(str(file)), with_audit=False))
    assert "none" in page.text and "No warnings." in page.text and "at most 3,000 images" in page.text


def test_image_options_are_shown_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path)
    page = checked(written(described(tmp_path, monkeypatch, image={"clahe": 2.0, "grayscale": True})))
    for words in ("before", "clahe: 2.0", "grayscale: True", "all together"):
        assert words in page.text


def test_a_failing_part_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("<oops>")

    make_tiny(tmp_path)
    monkeypatch.setattr(sections, "SECTIONS", [("Broken", broken), *sections.SECTIONS])
    text = written(described(tmp_path, monkeypatch)).read_text(encoding="utf-8")
    assert "could not be made (ZeroDivisionError: &lt;oops&gt;)" in text and "Unreadable files" in text


def test_label_noise_is_shown_once_a_run_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path)
    about = described(tmp_path, monkeypatch)
    written(about)
    table, fold_table = index.load_index(about), folds.load_folds(about)
    assert label_noise.candidates(about, table) is None
    frame = fold_table.merge(table.loc[table["split"] == "train", ["id", "target"]], on="id")
    frame["pred"] = np.where(frame["id"] == "tr0001", 0.99, frame["target"] * 0.9 + 0.05)
    (about.runs() / "a").mkdir(parents=True)
    frame[["id", "fold", "target", "pred"]].to_csv(about.runs() / "a" / "oof.csv", index=False)
    test = table.loc[table["split"] == "test", ["id"]].assign(pred=0.5)
    test.to_csv(about.runs() / "a" / "test.csv", index=False)
    assert list_runs(about) == ["a"]
    found = label_noise.candidates(about, table)
    assert found is not None and found.iloc[0][["id", "runs"]].tolist() == ["tr0001", "a"]
    page = checked(write_competition_report(about, table, fold_table, [SIZE], load_audit(about, table))[0])
    assert "given 0, suggested 1" in page.text and "score 0.98, 100% of the runs" in page.text


def test_real_photographs_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = shared("data", "hymenoptera")
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    file = tmp_path / "h.yaml"
    about = {"name": "h", "root": str(raw), "task": "multiclass", "metric": "accuracy", "train": {"folders": "train"}}
    file.write_text(yaml.safe_dump(about))
    page = checked(written(load_competition(str(file))))
    assert "ants" in page.text and "bees" in page.text


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_wilson_s_interval() -> None:
    low, high = figures.wilson(np.array([0, 5, 10]), np.array([10, 10, 10]))
    np.testing.assert_allclose(low, [0, 0.2366, 0.7225], atol=1e-3)  # R: prop.test(k, 10, correct = FALSE)
    np.testing.assert_allclose(high, [0.2775, 0.7634, 1], atol=1e-3)


def test_rates_by_value_count_every_row_once() -> None:
    values = pd.Series([1.0, 2.0, np.nan, *np.linspace(3, 99, 97)])
    truth = pd.DataFrame({"t": np.arange(100) % 2.0})
    found = figures.by_value(values, truth)
    assert found["rows"].sum() == 100 and found["value"].iloc[-1] == "missing"
    names = pd.Series([f"n{k % 40}" for k in range(100)]).where(np.arange(100) > 3)
    found = figures.by_value(names, truth, most=5)
    assert found["rows"].sum() == 100 and set(found["value"].iloc[-2:]) == {"other", "missing"}
    assert (found[("t", "low")] <= found[("t", "mean")]).all() and (found[("t", "mean")] <= found[("t", "high")]).all()
