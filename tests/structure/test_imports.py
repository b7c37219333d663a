"""Imports point one way: wattserve -> wattmeter <- wattload. Files stay small enough to be read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "wattmeter": ROOT / "server/wattmeter",
    "wattserve": ROOT / "server/wattserve",
    "wattload": ROOT / "loadgen/wattload",
}
FORBIDDEN = {
    "wattmeter": {"wattserve", "wattload", "locust", "gevent", "fastapi", "starlette", "uvicorn", "vllm"},
    "wattserve": {"wattload", "locust", "gevent"},
    "wattload": {"wattserve", "fastapi", "starlette", "uvicorn", "vllm", "pynvml"},
}
MAX_LINES = 420


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_one_way(package: str) -> None:
    paths = modules(package)
    assert paths, f"{package} has no modules"
    wrong = {
        str(p.relative_to(ROOT)): sorted(bad)
        for p in paths
        if (bad := imported(p.read_text()) & FORBIDDEN[package])
    }
    assert not wrong


def test_the_check_sees_a_wrong_import() -> None:
    assert imported("def f():\n    from wattserve.cli import main\n") & FORBIDDEN["wattload"]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_files_are_short(package: str) -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in modules(package)
        if (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_no_module_is_called_utils() -> None:
    names = {p.stem for package in PACKAGES for p in modules(package)} | {
        p.name for package in PACKAGES for p in PACKAGES[package].rglob("*") if p.is_dir()
    }
    assert not names & {"utils", "util", "helpers", "common", "misc"}
