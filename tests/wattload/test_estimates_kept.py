"""The table of docs/estimates.md, made again from the H200's runs and profile that are kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "h200_estimates", REPOSITORY / "benchmarks" / "h200" / "estimates.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("workload", "rate"), [("conv", 2), ("conv", 10), ("conv", 34), ("code", 6), ("code", 36)]
)
def test_kept_runs_give_the_documented_row(script: ModuleType, workload: str, rate: int) -> None:
    line, ratio = script.row(workload, rate)
    assert line in (REPOSITORY / "docs" / "estimates.md").read_text(encoding="utf-8")
    assert abs(ratio["online"] - 1) <= 0.05
    assert 0.3 < ratio["roofline"] < 1.0
