"""The table of docs/research/estimates.md, made again from the H200's runs and profile that are kept."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
KEPT = REPOSITORY / "benchmarks" / "h200" / "results" / "estimates"


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
    assert line in (REPOSITORY / "docs" / "research" / "estimates.md").read_text(encoding="utf-8")
    assert abs(ratio["online"] - 1) <= 0.05
    assert 0.3 < ratio["roofline"] < 1.0


def estimated(*flags: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wattload", "estimate", str(KEPT / "profile.json"), "--trace", "conv"),
            *("--duration", "220", "--json", *flags),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def test_a_lower_limit_of_requests_costs_more_where_the_traffic_reaches_it() -> None:
    """The table of docs/findings.md, for fewer seconds."""
    rates = ("--rate", "0.25", "--rate", "4")
    alone, few, free = (estimated(*rates, *limit) for limit in (("--max-seqs", "1"), ("--max-seqs", "8"), ()))
    assert alone[0]["online_joules_per_request"] > 1.02 * free[0]["online_joules_per_request"]
    assert few[0]["online_joules_per_request"] == pytest.approx(
        free[0]["online_joules_per_request"], rel=0.01
    )
    assert alone[1]["online_joules_per_request"] > 3 * free[1]["online_joules_per_request"]
    assert (alone[1]["over_capacity"], free[1]["over_capacity"]) == (True, False)
    assert alone[1]["ttft_p50_seconds"] > 10.0 > free[1]["ttft_p50_seconds"]
    (narrow,) = estimated("--rate", "4", "--max-batched-tokens", "64")
    assert narrow["ttft_p50_seconds"] > 2 * free[1]["ttft_p50_seconds"]
