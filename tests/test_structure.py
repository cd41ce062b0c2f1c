"""The house in order: imports run one way, from room to room; every script is documented, nothing unsafe is loaded."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.smoke

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SOURCE = REPOSITORY / "src"
FILES = sorted((SOURCE / "foldwise").rglob("*.py"))
STOREYS = [  # a room imports from itself and from those above it; rooms of one storey do not know each other
    {"core"},
    {"dicom", "augment", "metrics"},
    {"stats"},
    {"data"},
    {"audit", "blend", "model"},
    {"train", "tabular"},
    {"inference"},
    {"report", "demo"},
]
HEAVY = {
    "torch": {"model", "train", "core/ranks"},
    "matplotlib": {"report"},
    "streamlit": set(),
    "distributed": {"core"},
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at the top or later."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(SOURCE / "foldwise").parts[0].removesuffix(".py")


def storey(name: str) -> int:
    return next(k for k, rooms in enumerate(STOREYS) if name in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_rooms_import_one_way(path: Path) -> None:
    if path == SOURCE / "foldwise" / "__init__.py":
        return
    own, names = room(path), imported(path)
    others = {name.split(".")[1] for name in names if name.startswith("foldwise.")} - {"UserError", "__version__", own}
    wrong = {other for other in others if storey(other) >= storey(own)}
    assert not wrong, f"{own} imports {sorted(wrong)}"
    assert not {name for name in names if re.match(r"app\b", name)}
    for library, allowed in HEAVY.items():
        if any(name.split(".")[0] == library for name in names):
            places = {own, path.relative_to(SOURCE / "foldwise").with_suffix("").as_posix()}
            assert places & allowed, f"{path} imports {library}"


def test_the_map_names_every_room() -> None:
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= set(re.findall(r"^    (\w+)(?:/|\.py) +\S", README, flags=re.MULTILINE))


@pytest.mark.parametrize("path", sorted(SOURCE.glob("[0-9]*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_and_documented(path: Path) -> None:
    assert path.name in README
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


def test_modules_have_a_caption_and_public_functions_a_docstring() -> None:
    for path in FILES:
        assert ast.get_docstring(tree(path)), path
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_nothing_is_pickled_or_loaded_unsafely() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle|joblib|dill)\b|yaml\.load\(|weights_only=False|allow_pickle=True", text), path


def test_benches_name_what_is_there() -> None:
    """Also the programs that they hold as text: nothing else runs them before somebody wants a figure."""
    homeless = []
    for path in sorted((REPOSITORY / "bench").glob("*.py")):
        for module, names in re.findall(r"from (foldwise[\w.]*) import ([\w, ]+)", path.read_text(encoding="utf-8")):
            home = SOURCE.joinpath(*module.split("."))
            file = home / "__init__.py" if home.is_dir() else home.with_suffix(".py")
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            for name in re.findall(r"\w+", names.split(" as ")[0]):
                there = (home / name).is_dir() or (home / f"{name}.py").exists()
                if not there and not re.search(rf"\b{name}\b", text):
                    homeless.append(f"{path.name}: {module}.{name}")
    assert not homeless
