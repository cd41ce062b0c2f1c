"""docs/reliability.md is written from the list, and every test that it names is there."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from torture import faults

pytestmark = pytest.mark.smoke


def test_the_page_is_that_of_the_list() -> None:
    assert faults.PAGE.read_text(encoding="utf-8") == faults.page(), "python tests/torture/faults.py writes it"


@pytest.mark.parametrize(("fault", "happens", "file", "test"), faults.FAULTS, ids=lambda text: text[:40])
def test_every_fault_is_shown_by_a_test(fault: str, happens: str, file: str, test: str) -> None:
    assert f"def {test}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), (fault, happens)
