"""The terminal's summary: the verdict first, each thing once, what failed and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.report import build
from wattload.report.formatting import interval, quantity
from wattload.report.table import print_summary
from wattload.report.verdict import verdict
from wattload.rundir.directory import RunDir
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


def test_long_titles_make_room_for_wide_figures(tmp_path: Path) -> None:
    run = made(tmp_path / "r", turns=4, rate=60.0, decode_token_joules=2.2)
    assert run.sessions is not None
    each = run.sessions.per_session
    assert each is not None
    assert each.energy_joules is not None
    text = printed(run)
    assert "…" not in text
    assert interval(each.energy_joules.ci95, "J", each.energy_joules.mean) in text


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


@pytest.mark.parametrize("width", [80, 200])
def test_several_models_have_joules_with_intervals(tmp_path: Path, width: int) -> None:
    models = ("base", "a-very-long-name-of-an-adapter-that-somebody-trained-for-french-contracts-v2")
    run = made(tmp_path / "r", models=(*models, "base", "base"), source="modelled")
    assert run.by_model is not None
    assert set(run.by_model) == set(models)
    text = printed(run, width)
    page = build(RunDir(tmp_path / "r")).read_text(encoding="utf-8")
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert "Attributed energy by model (simulated)" in text
    for name, part in run.by_model.items():
        assert part.attributed_requests == part.completed > 100
        each, token = part.attributed_mean_joules, part.attributed_per_output_token_joules
        spread, token_spread = part.attributed_ci95, part.attributed_per_output_token_ci95
        assert each is not None
        assert token is not None
        assert spread is not None
        assert token_spread is not None
        assert spread[0] < each < spread[1]
        assert token_spread[0] < token < token_spread[1]
        assert part.output_tokens is not None
        assert part.attributed_joules == pytest.approx(each * part.completed)
        assert part.attributed_joules == pytest.approx(token * part.output_tokens)
        for value, pair, unit in ((each, spread, "J"), (token, token_spread, "J/token")):
            assert quantity(value, unit) in text
            assert interval(pair, unit, value) in text
            assert f">{quantity(value, unit, modelled=True)}<" in page
            assert f">{interval(pair, unit, value)}<" in page
        if width > 80:
            assert f"{name}, per request" in text
    assert "of the others" not in text + page


def test_joules_of_a_part_of_a_models_requests_say_so(tmp_path: Path) -> None:
    written = Synthetic(rate=20.0, models=("base", "french")).write(tmp_path / "r")

    def provisional(table: pa.Table) -> pa.Table:
        """Every fifth row of the second model is not final."""
        status = ["provisional" if row % 10 == 1 else "settled" for row in range(table.num_rows)]
        place = table.schema.get_field_index("energy_status")
        return table.set_column(place, table.schema.field(place), pa.array(status))

    written.write_requests(provisional)
    run = finish(written)
    assert run.by_model is not None
    base, french = run.by_model["base"], run.by_model["french"]
    assert base.attributed_requests == base.completed
    assert 0 < french.attributed_requests < french.completed
    sentence = f"french: energy is of {french.attributed_requests} of {french.completed} completed requests"
    assert sentence in printed(run, 200)
    assert sentence in build(written).read_text(encoding="utf-8")
    assert "base: energy is of" not in printed(run, 200)
