"""The terminal's summary: the verdict first, each thing once, what failed and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.report.table import print_summary
from wattload.report.verdict import verdict
from wattload.rundir.result import RunJson, SloLimits


def made(path: Path, **settings: Any) -> RunJson:
    return finish(Synthetic(**{"rate": 20.0, **settings}).write(path))


def printed(run: RunJson, width: int = 80, directory: Path | None = None) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=False, soft_wrap=False)
    with console.capture() as captured:
        print_summary(run, console, directory=directory)
    return captured.get()


def test_a_valid_run_says_so_first_and_each_number_once(tmp_path: Path) -> None:
    text = printed(made(tmp_path / "r", slo=SloLimits(ttft_seconds=1.0)), directory=tmp_path / "r")
    lines = text.splitlines()
    assert lines[0] == "Valid: all checks passed"
    for title in (
        "Scheduled rate",
        "Total energy per request",
        "Mean power",
        "TTFT",
        "TPOT",
        "Split",
        "Goodput",
    ):
        assert sum(line.startswith(title) for line in lines) == 1, title
    assert lines[-1] == f"next: wattload compare {tmp_path / 'r'} RUN"
    assert "SIMULATED" not in text
    assert "Failed" not in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_cut_or_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    text = printed(made(tmp_path / "r"), width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_simulated_joules_have_a_banner(tmp_path: Path) -> None:
    lines = printed(made(tmp_path / "r", source="modelled")).splitlines()
    assert "SIMULATED" in lines[1]
    assert any(line.startswith("Energy (simulated)") for line in lines)


def test_failures_are_listed_with_what_the_server_said(tmp_path: Path) -> None:
    run = made(tmp_path / "r", failed=0.3)
    run.requests.failures[0].message, run.requests.failures[0].hint = "500: out of memory", "a lower --rate"
    text = " ".join(printed(run, directory=tmp_path / "r").split())
    assert text.startswith("Not valid: do not use these results - ")
    assert "Failed requests, over the whole run" in text
    assert "http_5xx: 500: out of memory (try: a lower --rate)" in text
    assert text.endswith("next: a lower --rate")


def test_few_requests_are_not_simply_valid(tmp_path: Path) -> None:
    run = made(tmp_path / "r", requests=10, warmup=0.0)
    assert verdict(run).title == "Too few requests: no figure has an interval"
    text = printed(run, directory=tmp_path / "r")
    assert "next: a longer run has intervals" in text
    assert "[" not in text.split("Load")[1].split("Latency")[0]


def test_without_energy_the_reason_stands_in_its_place(tmp_path: Path) -> None:
    run = made(tmp_path / "r", overrides={"no_energy_reason": "not asked for (--energy none)"})
    assert "not asked for (--energy none)" in printed(run)
