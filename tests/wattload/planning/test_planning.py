"""Plans from servers whose power and latency are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.options import parse_slo
from wattload.errors import InputError
from wattload.planning.curve import Curve, Point, curves
from wattload.planning.fleet import FleetOptions, simulate
from wattload.planning.grid import grid_of, grids
from wattload.planning.plan import Factors, plan_for

SLO = parse_slo("ttft=500ms")


def point(rate: float, watts: float, ttft: float) -> Point:
    return Point(rate, watts, 3, {("ttft_seconds", "p95"): ttft})


def curve(*points: Point, idle_watts: float = 100.0, gpus: int = 1) -> Curve:
    return Curve("a", "conv", gpus, "H200", idle_watts, points, modelled=False)


# 100 W and 10 W for each request a second.
LINEAR = curve(point(5, 150, 0.1), point(10, 200, 0.2), point(20, 300, 0.9))


def test_the_fewest_servers_within_the_limits() -> None:
    made = plan_for(LINEAR, 95.0, SLO, quantile="p95", headroom=0.0, factors=Factors())
    assert (made.highest_rps, made.servers, made.gpus) == (10, 10, 10)
    assert made.watts == pytest.approx(10 * 100 + 95 * 10)
    assert made.joules_per_request == pytest.approx(1950 / 95)
    assert made.kwh_per_day == pytest.approx(1.95 * 24)
    assert (made.cost_per_day, made.carbon_kg_per_day) == (None, None)
    assert made.rms_error == pytest.approx(0.0, abs=1e-9)
    exact = plan_for(LINEAR, 100.0, SLO, quantile="p95", headroom=0.0, factors=Factors())
    assert exact.servers == 10
    careful = plan_for(LINEAR, 100.0, SLO, quantile="p95", headroom=0.2, factors=Factors())
    assert careful.servers == 13


def test_servers_of_several_gpus() -> None:
    made = plan_for(replace(LINEAR, gpus=2), 95.0, SLO, quantile="p95", headroom=0.0, factors=Factors())
    assert (made.servers, made.gpus) == (10, 20)


def test_factors_are_used_and_none_is_assumed() -> None:
    factors = Factors(pue=1.2, price_per_kwh=0.25, currency="EUR", carbon_grams_per_kwh=100.0)
    made = plan_for(LINEAR, 95.0, SLO, quantile="p95", headroom=0.0, factors=factors)
    assert made.kwh_per_day == pytest.approx(1.95 * 24 * 1.2)
    assert made.cost_per_day == pytest.approx(1.95 * 24 * 1.2 * 0.25)
    assert made.carbon_kg_per_day == pytest.approx(1.95 * 24 * 1.2 * 0.1)


def test_a_rate_above_one_that_failed_does_not_count() -> None:
    odd = curve(point(5, 150, 0.1), point(10, 200, 0.9), point(20, 300, 0.2))
    assert odd.highest_rate(SLO, "p95") == 5
    assert curve(point(5, 150, 0.9)).highest_rate(SLO, "p95") is None
    made = plan_for(curve(point(5, 150, 0.9)), 1.0, SLO, quantile="p95", headroom=0.0, factors=Factors())
    assert (made.servers, made.watts, made.rms_error) == (None, None, None)
    # A latency that was not measured is within no limit.
    assert curve(point(5, 150, 0.1)).highest_rate(parse_slo("tpot=1s"), "p95") is None


def test_the_error_is_that_of_leaving_a_rate_out() -> None:
    bent = curve(point(5, 200, 0.1), point(10, 200, 0.1))
    # Idle 100 W and 200 W at 10/s say 150 W at 5/s, where it is 200.
    assert bent.interpolation_errors() == [pytest.approx(-0.25)]


def test_power_is_not_predicted_beyond_what_was_measured() -> None:
    assert LINEAR.watts(40.0) == 300
    assert LINEAR.watts(0.0) == 100


def test_where_idle_costs_nothing_more_packing_saves_nothing() -> None:
    """With straight power and servers that sleep at their idle power, routing cannot matter."""
    options = FleetOptions(1000, 4000.0, 10.0, sleep_watts=100.0)
    spread, packed = simulate(LINEAR, options)
    assert packed.kwh == pytest.approx(spread.kwh, rel=1e-9)
    # 100 W each and 10 J per request, whose number is drawn.
    assert spread.kwh == pytest.approx((1000 * 100 + 4000 * 10) * 24 / 1000, rel=1e-3)


def test_what_sleeping_saves_is_the_idle_power_of_those_that_sleep() -> None:
    options = FleetOptions(1000, 4000.0, 10.0, sleep_watts=20.0)
    spread, packed = simulate(LINEAR, options)
    asleep = 1000 - packed.awake_mean
    assert spread.kwh - packed.kwh == pytest.approx(asleep * 80 * 24 / 1000, rel=1e-6)
    assert packed.awake_mean >= 400
    assert spread.awake_mean == 1000
    assert packed.short_fraction < 0.02
    assert simulate(LINEAR, options) == (spread, packed)


def test_slow_waking_keeps_more_awake() -> None:
    quick = simulate(LINEAR, FleetOptions(1000, 4000.0, 10.0, 0.0, wake_seconds=0.0))[1]
    slow = simulate(LINEAR, FleetOptions(1000, 4000.0, 10.0, 0.0, wake_seconds=1800.0))[1]
    assert slow.awake_mean > quick.awake_mean


def test_every_grid_has_a_year_and_a_source() -> None:
    for name, grid in grids().items():
        assert grid.name == name
        assert 0 < grid.grams_per_kwh < 1500
        assert 2020 <= grid.year <= 2026
        assert grid.source
        assert grid.what
    with pytest.raises(InputError, match=r"'moon': the table has .*world"):
        grid_of("moon")


def test_a_sweeps_runs_are_read(tmp_path: Path) -> None:
    for rate in (2.0, 8.0):
        run = Synthetic(rate=rate, duration=30.0, warmup=5.0, gaps=False, idle_watts=120.0)
        finish(replace(run, overrides={"config": {"rate": f"{rate:g}"}}).write(tmp_path / f"rate-{rate:g}"))
    bad = Synthetic(rate=16.0, duration=30.0, warmup=5.0, gaps=False)
    finish(
        replace(bad, overrides={"config": {"rate": "16"}, "reasons": ["late"]}).write(tmp_path / "rate-16")
    )
    (found,) = curves(tmp_path)
    assert (found.workload, found.gpus, found.device) == ("conv", 1, "Synthetic")
    assert found.idle_watts == pytest.approx(120.0)
    assert len(found.points) == 2, "what is not valid counts nowhere"
    assert found.points[0].rate_rps == pytest.approx(2.0, rel=0.4)
    assert found.points[1].watts > found.points[0].watts > 120.0
    assert math.isfinite(found.points[0].latency["tpot_seconds", "p95"])


def test_directories_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no valid run"):
        curves(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        curves(tmp_path / "no")
