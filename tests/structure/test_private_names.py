"""Tests ask the product through its public names: what begins with an underscore may change any day."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PRIVATE = re.compile(r"_(?!_)\w+")
# Functions that take a name as text, with which a private one could be reached all the same.
BY_NAME = {"getattr", "setattr", "delattr", "hasattr", "patch", "object"}
# Of others: prometheus_client has no public way to a family's labels before its first sample.
ALLOWED = {"public_surface/surface.py": ("_collector_to_names", "_labelnames")}
PACKAGES = ("wattload", "wattmeter", "wattserve")


def reached(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, expression) of each use of a private name of something else than the test's own object."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if PRIVATE.fullmatch(name):
                yield node.lineno, ast.unparse(node)
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in PACKAGES:
                for path in (f"{module}.{alias.name}" for alias in names):
                    if any(PRIVATE.fullmatch(part) for part in path.split(".")):
                        yield node.lineno, path
            case ast.Call(func=ast.Attribute(attr=function) | ast.Name(id=function)) if function in BY_NAME:
                texts = (
                    a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
                )
                if any(PRIVATE.fullmatch(text.rpartition(".")[2]) for text in texts):
                    yield node.lineno, ast.unparse(node)


def test_no_test_reaches_a_private_name_of_the_product() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 100
    found = [
        f"{path.relative_to(TESTS)}:{line}: {said}"
        for path in files
        for line, said in reached(ast.parse(path.read_text("utf-8")))
        if not any(name in said for name in ALLOWED.get(path.relative_to(TESTS).as_posix(), ()))
    ]
    assert found == [], "test through a public name, or give the product one:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        "client._head",
        "client.pool._free.clear()",
        "from wattload.session import _measured_run",
        "from wattmeter._native import read",
        "monkeypatch.setattr(command, '_point', once)",
        "monkeypatch.setattr('wattload.cli.sweep._point', once)",
        "getattr(meter, '_read')",
    ],
)
def test_a_planted_use_is_found(planted: str) -> None:
    assert len(list(reached(ast.parse(planted)))) == 1


@pytest.mark.parametrize(
    "allowed",
    [
        "self._answers",
        "type(meter).__name__",
        "from os import _exit",
        "monkeypatch.setattr(command, 'point', once)",
    ],
)
def test_what_is_not_a_private_name_of_the_product_is_passed_over(allowed: str) -> None:
    assert list(reached(ast.parse(allowed))) == []
