"""The house in order: imports run one way, README's map is true, every script and flag is documented."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.smoke

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "src" / "foldwise"
TORCH = {
    "models", "heads", "weights", "losses", "mixing", "averaging", "precision", "checkpoint", "journal", "infer",
    "loop", "ensemble", "embeddings", "explain", "launch", "roi", "detector", "serve",
}  # fmt: skip


def mapped() -> list[str]:
    """Module names in the order of README's map."""
    return re.findall(r"^    (\w+)\.py +\S", README, flags=re.MULTILINE)


def imports(path) -> list[tuple[str, bool]]:  # type: ignore[no-untyped-def]
    """(module, at top level) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "foldwise":
            found += [(f"foldwise.{alias.name}", id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((str(node.module), id(node) in top))
    return found


def test_the_map_names_every_module_once() -> None:
    assert sorted(mapped()) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_from_those_above_it(path) -> None:  # type: ignore[no-untyped-def]
    order = mapped()
    above = order[: order.index(path.stem)] if path.stem in order else []
    own = {name.removeprefix("foldwise.") for name, _ in imports(path) if name.startswith("foldwise.")}
    own -= {"UserError", "__version__"}
    assert own <= set(above), f"{path.stem} imports {sorted(own - set(above))} from below it"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_torch_stays_in_the_training_modules(path) -> None:  # type: ignore[no-untyped-def]
    heavy = {name for name, _ in imports(path) if name.split(".")[0] in {"torch", "timm", "torchvision"}}
    assert not heavy or path.stem in TORCH


@pytest.mark.parametrize("path", sorted((REPOSITORY / "src").glob("[0-9]*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_and_documented(path) -> None:  # type: ignore[no-untyped-def]
    assert path.name in README
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


def test_modules_have_a_caption_and_public_functions_a_docstring() -> None:
    for path in sorted(PACKAGE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_nothing_is_pickled_or_loaded_unsafely() -> None:
    for path in sorted([*PACKAGE.glob("*.py"), *(REPOSITORY / "src").glob("*.py")]):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle|joblib|dill)\b|yaml\.load\(|weights_only=False|allow_pickle=True", text), path
