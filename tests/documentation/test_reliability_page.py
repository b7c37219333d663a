"""docs/reliability.md names a test for every fault, and each of them is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def named_in(path: str) -> frozenset[str]:
    """The names of the tests that a file has."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def rows() -> list[list[str]]:
    """The rows of the tables of faults, cell by cell."""
    tables = PAGE.read_text("utf-8").partition("## What do other")[0]
    lines = [line for line in tables.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_fault_has_a_test_that_is_there() -> None:
    faults = [cells for cells in rows() if cells[0] != "what is done to it"]
    assert len(faults) > 95
    for cells in faults:
        assert len(cells) == 3, cells
        found = NAMED.fullmatch(cells[2])
        assert found is not None, cells
        assert found[2] in named_in(found[1]), f"{found[1]} has no {found[2]}"


def test_every_file_that_is_named_is_there() -> None:
    for path in re.findall(r"`(tests/[\w/]+\.py)", PAGE.read_text("utf-8")):
        assert (ROOT / path).exists(), path
