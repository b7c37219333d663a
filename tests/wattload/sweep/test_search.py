"""Sweeps: the rates that are asked for, and searches against servers whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattload.cli import sweep as command
from wattload.config import RunConfig
from wattload.errors import BadInput
from wattload.rundir.resumed import check_same
from wattload.sweep.search import (
    Point,
    best_point,
    parse_rates,
    search_energy,
    search_rate,
    stopped_by,
)
from wattload.sweep.show import print_points, write_csv, write_page


def point(rate: float, met: float, joules: float | None = 10.0, *, valid: bool = True) -> Point:
    return Point(
        rate_rps=rate, directory=Path("r"), valid=valid, reasons=() if valid else ("why",),
        completed=40, achieved_rps=rate,
        met_fraction=met, goodput_rps=rate * met, joules_per_request=joules,
        joules_per_request_ci95=(9.0, 11.0),
        joules_per_good_request=joules, joules_per_output_token=0.1, mean_watts=500.0, ttft_p50_seconds=0.1,
        ttft_p99_seconds=0.2, tpot_p50_seconds=0.01, tpot_p99_seconds=0.02, modelled=True,
    )  # fmt: skip


def test_rates() -> None:
    assert parse_rates("1,2,4.5") == [1, 2, 4.5]
    assert parse_rates("1..8x2") == pytest.approx([1, 2, 4, 8])
    assert parse_rates("1..10") == pytest.approx([1, 2, 4, 8])
    assert parse_rates("3..3x2") == [3]


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "1,1", "inf", "a", "8..1x2", "1..8x1", "0..8", "1..inf", "1..1e9x1.001"]
)
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="--rates"):
        parse_rates(text)


@pytest.mark.parametrize("limit", [0.3, 1.0, 7.3, 100.0])
def test_the_highest_rate_within_the_limits(limit: float) -> None:
    points = search_rate(lambda rate: point(rate, 1.0 if rate <= limit else 0.5), 1.0, 0.95, 40)
    best = best_point(points, "rate", 0.95)
    assert best is not None
    assert limit / 1.09 <= best.rate_rps <= limit
    assert len(points) <= 14


def test_a_server_that_never_meets_the_limits_ends_the_search() -> None:
    points = search_rate(lambda rate: point(rate, 0.0), 1.0, 0.95, 40)
    assert best_point(points, "rate", 0.95) is None
    assert len(points) < 10


def test_the_least_joules_a_good_request() -> None:
    def measure(rate: float) -> Point:
        return point(rate, 1.0 if rate < 40 else 0.2, 5 + math.log2(rate / 11.0) ** 2)

    points = search_energy(measure, 1.0, 0.95, 30)
    best = best_point(points, "energy", 0.95)
    assert best is not None
    assert best.rate_rps == pytest.approx(11.0, rel=0.2)


def test_a_run_that_is_not_valid_is_no_answer() -> None:
    assert best_point([point(1, 1.0, valid=False)], "rate", 0.9) is None
    assert best_point([point(1, 1.0, valid=False)], "energy", 0.9) is None


def test_a_search_that_ended_at_a_run_that_is_not_valid_says_so() -> None:
    good, bad, missed = point(4, 1.0), point(8, 0.0, valid=False), point(8, 0.2)
    assert stopped_by([bad, good], good) is bad
    assert stopped_by([good, missed, point(16, 0.0, valid=False)], good) is None
    assert stopped_by([good], good) is None


@pytest.mark.parametrize("repeats_well", [True, False])
def test_a_search_makes_a_run_that_is_not_valid_once_more(
    repeats_well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[float] = []

    def once(base: RunConfig, folder: Path, rate: float) -> Point:
        made.append(rate)
        directory = folder / f"rate-{rate:g}"
        directory.mkdir()
        valid = rate < 8 or (repeats_well and made.count(rate) == 2)
        return replace(point(rate, 1.0 if rate < 10 else 0.5, valid=valid), directory=directory)

    monkeypatch.setattr(command, "run_point", once)
    monkeypatch.setattr("wattload.sweep.show.write_page", lambda *_: None)
    flags: dict[str, Any] = {"trace": "conv", "slo": "ttft=1s", "duration": "1s"}
    command.sweep("http://h", search="rate", start=2.0, most=4, out=tmp_path / "s", **flags)
    assert made[:4] == [2.0, 4.0, 8.0, 8.0]
    assert (tmp_path / "s" / "rate-8.cut-1").is_dir(), "what was not valid is kept"
    said = capsys.readouterr()
    assert "so the run is repeated" in said.err
    assert ("which is not valid" in said.out) == (not repeats_well)


def test_a_sweep_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    check_same(tmp_path / "s" / "sweep.json", {"trace": "conv", "seed": 1}, "a sweep")
    check_same(tmp_path / "s" / "sweep.json", {"trace": "conv", "seed": 1}, "a sweep")
    with pytest.raises(BadInput, match="another seed"):
        check_same(tmp_path / "s" / "sweep.json", {"trace": "conv", "seed": 2}, "a sweep")


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = [point(1, 1.0), point(2, 0.99), point(4, 0.1, None, valid=False)]
    print_points(points, points[1])
    said = capsys.readouterr().out
    assert "best" in said
    assert "not valid: why" in said
    assert "simulated" in said
    assert "[9, 11]" in " ".join(said.split())
    write_csv(points, tmp_path / "s.csv")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4
    write_page(points, points[1], tmp_path / "s.html")
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")
    made = (tmp_path / "s.html").read_text()
    assert "Best: 2 requests/s" in made
    assert "4/s: why" in made
    assert 'href="r/report.html"' in made


@pytest.mark.parametrize(
    "without",
    [
        {"joules_per_request": None, "joules_per_request_ci95": None, "joules_per_good_request": None},
        {"ttft_p50_seconds": None, "ttft_p99_seconds": None, "tpot_p99_seconds": None},
        {"tpot_p99_seconds": None},
        {"joules_per_good_request": None},
        {"ttft_p50_seconds": 0.0, "ttft_p99_seconds": 0.0, "tpot_p99_seconds": None},
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_sweep_is_drawn_without_what_it_did_not_measure(
    without: dict[str, Any], count: int, tmp_path: Path
) -> None:
    points = [replace(point(rate, 1.0), **without) for rate in range(1, count + 1)]
    write_page(points, None, tmp_path / "s.html")
    assert "<svg" in (tmp_path / "s.svg").read_text()
    print_points(points, None)
    write_csv(points, tmp_path / "s.csv")
