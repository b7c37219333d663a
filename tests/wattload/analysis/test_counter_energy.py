"""Energy of a window out of a counter's samples: exact, cached, slow or reset, with its uncertainty."""

from __future__ import annotations

import numpy as np
import pytest

from wattload.analysis.window_energy import counter_energy
from wattmeter.arrays import F64
from wattmeter.faults import Fault

T0 = 1.75e9
WATTS = 300.0


def sampled(*, step: float, until: float, every: float = 0.0, phase: float = 0.0) -> tuple[F64, F64]:
    """Samples each `step` seconds of a counter at 300 W that a cache refreshes each `every` seconds."""
    seconds = np.arange(0.0, until, step)
    seen = np.floor((seconds - phase) / every) * every + phase if every else seconds
    return T0 + seconds, WATTS * (seen + 1000.0)


def test_a_counter_that_moves_with_every_sample_is_exact() -> None:
    seconds, joules = sampled(step=0.5, until=20.0)
    energy = counter_energy(seconds, joules, T0 + 3.3, T0 + 12.8)
    assert energy.complete
    assert energy.joules == pytest.approx(WATTS * 9.5, rel=1e-6)


@pytest.mark.parametrize("every", [1.0, 2.5, 5.0])
@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9])
def test_a_cached_counter_is_right_within_its_uncertainty(every: float, phase: float) -> None:
    seconds, joules = sampled(step=0.5, until=60.0, every=every, phase=phase)
    energy = counter_energy(seconds, joules, T0 + 11.0, T0 + 41.7)
    assert energy.complete
    assert energy.joules is not None
    assert energy.uncertainty_joules is not None
    assert energy.uncertainty_joules > 0.0
    assert abs(energy.joules - WATTS * 30.7) < 3 * energy.uncertainty_joules
    # The value of a cache is at most one refresh old at each edge.
    assert abs(energy.joules - WATTS * 30.7) < WATTS * (every + 0.5)


def test_before_the_first_new_value_and_after_the_last_nothing_is_covered() -> None:
    seconds, joules = sampled(step=0.5, until=21.0, every=5.0)
    assert Fault.PARTIAL_COVERAGE in counter_energy(seconds, joules, T0 - 8.0, T0 + 10.0).flags
    assert Fault.PARTIAL_COVERAGE in counter_energy(seconds, joules, T0 + 5.0, T0 + 20.9).flags


def test_a_reset_counts_only_where_it_was() -> None:
    seconds, joules = sampled(step=0.5, until=30.0)
    joules[20:] -= joules[20]
    assert Fault.COUNTER_RESET in counter_energy(seconds, joules, T0 + 5.0, T0 + 15.0).flags
    after = counter_energy(seconds, joules, T0 + 11.0, T0 + 21.0)
    assert after.complete
    assert after.flags == frozenset()
    assert after.joules == pytest.approx(WATTS * 10.0)


def gauge(seconds: F64, watts: float = WATTS) -> F64:
    return np.full(len(seconds), watts)


@pytest.mark.parametrize("extra", [5e6, 5e4, 3e3])
@pytest.mark.parametrize("every", [0.0, 2.0])
def test_a_counter_that_comes_back_higher_is_no_energy(extra: float, every: float) -> None:
    """The exporter was started anew, or a board was swapped: what was used meanwhile is not known."""
    seconds, joules = sampled(step=0.5, until=40.0, every=every)
    joules[40:] += extra
    energy = counter_energy(seconds, joules, T0 + 5.0, T0 + 32.0, gauge(seconds))
    assert Fault.COUNTER_JUMP in energy.flags
    assert not energy.complete
    after = counter_energy(seconds, joules, T0 + 25.0, T0 + 32.0, gauge(seconds))
    assert after.complete
    assert after.flags == frozenset()


@pytest.mark.parametrize("stood", [3.0, 9.0])
def test_a_counter_that_stands_while_power_is_drawn_has_lost_joules(stood: float) -> None:
    seconds, joules = sampled(step=0.5, until=40.0)
    held = (seconds >= T0 + 10.0) & (seconds < T0 + 10.0 + stood)
    joules[seconds >= T0 + 10.0 + stood] -= WATTS * stood
    joules[held] = joules[~held & (seconds < T0 + 10.0)][-1]
    energy = counter_energy(seconds, joules, T0 + 5.0, T0 + 32.0, gauge(seconds))
    assert Fault.STALE_SENSOR in energy.flags
    assert not energy.complete


def test_a_counter_that_stands_and_catches_up_has_lost_nothing() -> None:
    seconds, joules = sampled(step=0.5, until=40.0)
    held = (seconds >= T0 + 10.0) & (seconds < T0 + 13.0)
    joules[held] = joules[seconds < T0 + 10.0][-1]
    energy = counter_energy(seconds, joules, T0 + 5.0, T0 + 32.0, gauge(seconds))
    assert energy.flags == frozenset()
    assert energy.joules == pytest.approx(WATTS * 27.0, rel=0.02)


def test_a_cached_gauge_that_shows_what_was_drawn_before_accuses_nobody() -> None:
    """Counter and gauge are refreshed each 5 s, and the load ends between two refreshes."""
    seconds = np.arange(0.0, 60.0, 0.5)
    true = np.where(seconds < 31.0, 400.0 * seconds, 400.0 * 31.0 + 70.0 * (seconds - 31.0))
    power = np.where(seconds < 31.0, 400.0, 70.0)
    refreshed = (np.floor(seconds / 5.0) * 10).astype(int)
    energy = counter_energy(T0 + seconds, true[refreshed], T0 + 10.0, T0 + 52.0, power[refreshed])
    assert energy.flags == frozenset()
    assert energy.complete


def test_without_a_gauge_only_what_no_device_can_draw_is_a_jump() -> None:
    seconds, joules = sampled(step=0.5, until=40.0)
    joules[40:] += 5e6
    nothing = np.full(len(seconds), np.nan)
    assert Fault.COUNTER_JUMP in counter_energy(seconds, joules, T0 + 5.0, T0 + 32.0, nothing).flags
