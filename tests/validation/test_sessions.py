"""What benchmarks/results/loadgen.md says of sessions on real GPUs is what their kept runs say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy import stats

from markdown_tables import tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks" / "results" / "loadgen.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Sessions that go on from the server's own answers")[1].split("\n## ")[0]
HISTORIES = {
    "planned": "completions planned",
    "server, token ids": "completions server",
    "server, as text": "completions text",
}


def kept(machine: str, api: str = "completions") -> dict[str, list[dict[str, Any]]]:
    path = ROOT / "benchmarks" / machine / "sessions" / f"{api}.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def mean(runs: list[dict[str, Any]], number: str) -> float:
    return fmean(run[number] for run in runs)


def numbers(cell: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]


def test_text_of_random_weights_on_an_h100() -> None:
    _, *rows = tables(SECTION)[1]
    assert len(rows) == 4
    for route, history, count, tokens, joules, prefill, each in rows:
        runs = kept("h100", route)[f"{route} {history}"]
        prompt, cached = mean(runs, "prompt"), mean(runs, "cached")
        assert int(count) == len(runs)
        assert numbers(tokens) == pytest.approx([prompt, cached], abs=0.6)
        assert float(joules) == pytest.approx(mean(runs, "attributed"), abs=0.006)
        assert float(prefill) == pytest.approx(mean(runs, "prefill"), abs=0.006)
        assert float(each) == pytest.approx(1e3 * mean(runs, "prefill") / (prompt - cached), abs=0.06)


def test_token_ids_and_text_on_an_h200() -> None:
    _, *rows = tables(SECTION)[2]
    assert [row[0] for row in rows] == list(HISTORIES)
    found = kept("h200")
    planned = found["completions planned"]
    for history, tokens, joules, prefill, against, lag in rows:
        runs = found[HISTORIES[history]]
        assert all(run["valid"] and not run["simulated"] and run["completed"] == run["of"] for run in runs)
        assert numbers(tokens) == pytest.approx([mean(runs, "prompt"), mean(runs, "cached")], abs=0.6)
        assert float(joules) == pytest.approx(mean(runs, "attributed"), abs=0.006)
        assert float(prefill) == pytest.approx(mean(runs, "prefill"), abs=0.006)
        assert numbers(lag) == pytest.approx([run["lag"][1] for run in runs], abs=0.006)
        ratios = [
            interval([a[number] / b[number] for a, b in zip(runs, planned, strict=True)])
            for number in ("attributed", "prefill")
        ]
        if runs is not planned:
            assert numbers(against) == pytest.approx([*ratios[0], *ratios[1]], abs=0.006)
    assert {run["history"] for run in found["completions server"]} == {"token_ids"}
    computed = {name: mean(runs, "prompt") - mean(runs, "cached") for name, runs in found.items()}
    assert f"{computed['completions server']:.0f} tokens of a prompt are computed" in SECTION
    assert f"in place of {computed['completions planned']:.0f}" in SECTION


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The geometric mean and Student's 95 % interval of it."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = (float(np.exp(logs.mean() + side * half)) for side in (-1, 0, 1))
    return middle, low, high
