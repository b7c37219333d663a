"""A device's figures and flags after each reading, and the limits of what it may draw."""

from __future__ import annotations

import math
from typing import Any

import pytest

from meter_fakes import MS, SECOND
from wattmeter.faults import Fault
from wattmeter.metering.device import MeteredDevice, combined_limit_watts, in_use
from wattmeter.meters.base import Device, DeviceState, Reading


def device(source: str = "nvml", limit_watts: float | None = 700.0, **options: Any) -> MeteredDevice:
    made = Device("g0", "board", source, limit_watts)
    options = {"history_seconds": 60.0, "update_period_seconds": None, **options}
    return MeteredDevice(made, **options)


def energy(own: MeteredDevice, ms: int, joules: float | None, fault: Fault | None = None) -> None:
    own.take_energy(Reading("g0", ms * MS, 0.0, energy_joules=joules, fault=fault))


def power(own: MeteredDevice, ms: int, watts: float | None, fault: Fault | None = None) -> None:
    own.take_power(Reading("g0", ms * MS, 0.0, power_watts=watts, fault=fault))


def state(**known: Any) -> DeviceState:
    return DeviceState(
        known.pop("celsius", None), known.pop("hertz", None), known.pop("limit", None), **known
    )


def test_a_device_shows_what_it_is_and_what_it_said_last() -> None:
    own = device(flags=frozenset({Fault.MODULE_SCOPE}))
    empty = own.status(SECOND)
    assert (empty.id, empty.name, empty.source, empty.power_limit_watts) == ("g0", "board", "nvml", 700.0)
    assert (empty.power_watts, empty.energy_joules, empty.sample_age_seconds) == (None, None, None)
    assert empty.flags == {Fault.MODULE_SCOPE}
    assert (empty.faults, own.failure(SECOND)) == ({}, None)
    for ms in (0, 100, 200):
        energy(own, ms, 10.0 + ms / 10)
        power(own, ms, 100.0 + ms)
    own.take_state(state(celsius=40.0, hertz=1e9, limit=600.0), 200 * MS)
    shown = own.status(700 * MS)
    assert (shown.power_watts, shown.energy_joules) == (300.0, 10.0)
    assert shown.sample_age_seconds == pytest.approx(0.5)
    assert (shown.temperature_celsius, shown.sm_clock_hertz, shown.power_limit_watts) == (40.0, 1e9, 600.0)
    assert shown.flags == {Fault.MODULE_SCOPE}


@pytest.mark.parametrize(("age_ms", "failed"), [(2000, False), (2001, True)])
def test_a_device_that_says_nothing_for_two_seconds_has_failed(age_ms: int, failed: bool) -> None:
    own = device()
    energy(own, 0, 10.0)
    energy(own, 100, 20.0)
    reason = own.failure((100 + age_ms) * MS)
    assert (reason is not None) is failed
    if failed:
        assert reason == "meter of g0: no reading for 2 s"


def test_a_read_that_failed_is_a_flag_and_a_reason_until_the_next() -> None:
    own = device()
    energy(own, 0, 10.0)
    energy(own, 100, 20.0)
    power(own, 100, 200.0)
    energy(own, 200, None, Fault.TIMEOUT)
    assert own.failure(200 * MS) == "meter of g0: timeout"
    failed = own.status(200 * MS)
    assert failed.flags == {Fault.TIMEOUT}
    assert (failed.power_watts, failed.energy_joules) == (None, 0.0)
    assert failed.sample_age_seconds == pytest.approx(0.1)
    energy(own, 300, None)
    assert own.failure(300 * MS) == "meter of g0: unknown_error"
    energy(own, 400, 50.0)
    good = own.status(400 * MS)
    assert (good.flags, good.power_watts, own.failure(400 * MS)) == (frozenset(), 200.0, None)
    assert good.faults == {"timeout": 1, "unknown_error": 1}


def test_a_counter_that_stands_is_a_reason_and_a_flag_while_it_does() -> None:
    own = device()
    for ms, joules in ((0, 10.0), (100, 20.0), (1000, 20.0), (1200, 20.0)):
        energy(own, ms, joules)
    assert own.failure(1200 * MS) == "meter of g0: stale_sensor"
    assert own.status(1200 * MS).flags == {Fault.STALE_SENSOR}
    energy(own, 1300, 30.0)
    assert (own.failure(1301 * MS), own.status(1301 * MS).flags) == (None, frozenset())


@pytest.mark.parametrize(
    ("watts", "fault", "counted"),
    [
        (None, None, "unknown_error"),
        (None, Fault.TIMEOUT, "timeout"),
        (math.nan, None, "unknown_error"),
        (math.nan, Fault.GPU_LOST, "gpu_lost"),
        (9999.0, None, "implausible_power"),
        (9999.0, Fault.STALE_SENSOR, "stale_sensor"),
    ],
)
def test_a_power_that_is_lost_beside_a_counter_is_counted_with_its_reason(
    watts: float | None, fault: Fault | None, counted: str
) -> None:
    own = device()
    energy(own, 0, 10.0)
    power(own, 0, 200.0)
    for ms in (50, 75):
        power(own, ms, watts, fault)
    energy(own, 100, 20.0)
    energy(own, 200, 30.0)
    shown = own.status(200 * MS)
    assert (shown.power_watts, shown.faults) == (None, {counted: 1})


def test_a_device_by_power_alone_has_its_sum_and_its_faults() -> None:
    own = device()
    energy(own, 0, None, Fault.NOT_SUPPORTED)
    for ms in (0, 500, 1000):
        power(own, ms, 200.0 + ms / 500)
    energy(own, 1000, None, Fault.NOT_SUPPORTED)
    shown = own.status(2000 * MS)
    assert shown.energy_joules == pytest.approx(201.0)
    assert shown.flags == {Fault.INTEGRATED_POWER}
    assert shown.sample_age_seconds == pytest.approx(1.0)
    assert own.status(2001 * MS).flags == {Fault.INTEGRATED_POWER, Fault.STALE_SENSOR}
    power(own, 1100, None, Fault.TIMEOUT)
    assert own.failure(1100 * MS) == "meter of g0: timeout"
    power(own, 1200, None)
    assert own.failure(1200 * MS) == "meter of g0: unknown_error"
    power(own, 1300, 210.0)
    assert own.failure(1300 * MS) is None
    power(own, 1400, 9999.0)
    assert own.status(1400 * MS).faults == {"timeout": 1, "unknown_error": 1, "implausible_power": 1}


def test_a_counter_that_answered_once_stays_the_meter() -> None:
    own = device()
    energy(own, 0, 10.0)
    energy(own, 100, None, Fault.NOT_SUPPORTED)
    assert own.flags == frozenset()
    power(own, 100, 200.0)
    energy(own, 200, 20.0)
    assert own.status(200 * MS).energy_joules == 0.0


# --- what it may draw ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("watts", "plausible"), [(1400.0, True), (1400.1, False)])
def test_a_power_may_be_twice_the_limit(watts: float, plausible: bool) -> None:
    for by_power in (True, False):
        own = device()
        energy(own, 0, None if by_power else 1.0, Fault.NOT_SUPPORTED if by_power else None)
        power(own, 0, watts)
        assert len(own.timeline.view().power_watts) == plausible
        assert own.status(0).power_watts == (watts if plausible else None)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ((700.0, None), 1050.0),
        ((700.0, 300.0), 1050.0),
        ((300.0, 700.0), 1050.0),
        ((None, 700.0), 1050.0),
        ((math.nan, 700.0), 1050.0),
        ((math.inf, None), 10_000.0),
        ((None, None), 10_000.0),
    ],
)
@pytest.mark.parametrize(("more", "fault"), [(-0.5, {}), (0.5, {"counter_jump": 1})])
def test_a_counter_may_gain_one_and_a_half_times_the_highest_limit(
    limits: tuple[float | None, float | None], most: float, more: float, fault: dict[str, int]
) -> None:
    own = device(limit_watts=limits[0])
    own.take_state(state(limit=limits[1]), 0)
    energy(own, 0, 0.0)
    energy(own, 100, 10.0)
    energy(own, 200, 10.0 + 0.2 * most + 1.0 + more)
    energy(own, 300, 20.0 + 0.2 * most + 1.0 + more)
    assert own.status(300 * MS).faults == fault


def test_a_limit_that_is_learnt_later_holds_for_power_that_is_integrated() -> None:
    own = device(limit_watts=None)
    energy(own, 0, None, Fault.NOT_SUPPORTED)
    own.take_state(state(limit=100.0), 0)
    power(own, 0, 200.0)
    power(own, 100, 201.0)
    assert own.status(100 * MS).faults == {"implausible_power": 1}


def test_a_model_has_the_absolute_bound_alone() -> None:
    own = device("modelled")
    power(own, 0, 9999.0)
    assert own.status(0).power_watts == 9999.0


# --- who else computes on it --------------------------------------------------------------------------------


def test_a_device_is_shared_from_the_state_before_to_the_next_one_without_others() -> None:
    own = device()
    for second, others in ((1, 0), (2, 2), (3, 1), (4, 0), (5, None)):
        own.take_state(state(other_processes=others), second * SECOND)
    (fault,) = own.timeline.view().faults
    assert (fault.fault, fault.start_ns, fault.end_ns) == (Fault.SHARED_DEVICE, SECOND, 4 * SECOND)
    assert own.status(2500 * MS).flags == {Fault.SHARED_DEVICE}
    assert own.status(5 * SECOND).flags == frozenset()
    assert own.status(5 * SECOND).faults == {"shared_device": 1}
    first = device()
    first.take_state(state(other_processes=1), 7 * SECOND)
    assert first.timeline.view().faults[0].start_ns == 7 * SECOND
    assert first.timeline.view().faults[0].end_ns is None


@pytest.mark.parametrize(
    ("ratio", "quiet", "shared"),
    [(0.021, True, True), (0.02, True, False), (0.5, False, False), (None, True, False)],
)
def test_a_quiet_device_that_computes_is_somebody_elses(
    ratio: float | None, quiet: bool, shared: bool
) -> None:
    own = device()
    own.take_state(state(utilization_ratio=ratio, other_processes=0), SECOND, quiet=quiet)
    assert bool(own.timeline.view().faults) is shared


def test_mig_stays_flagged() -> None:
    own = device()
    own.take_state(state(mig=True), SECOND)
    own.take_state(state(mig=False), 2 * SECOND)
    assert own.flags == {Fault.MIG}


def test_use_and_limits_of_several_devices() -> None:
    busy, rests, silent = (state(utilization_ratio=ratio) for ratio in (0.03, 0.02, None))
    assert in_use([rests, busy]) is True
    assert in_use([silent, busy]) is True
    assert in_use([rests, silent]) is None
    assert in_use([rests, rests]) is False
    assert combined_limit_watts([state(limit=300.0), state(limit=400.0)]) == 700.0
    assert combined_limit_watts([state(limit=300.0), state()]) is None


def test_a_clock_step_flags_the_second_before_it_and_the_moment_itself() -> None:
    own = device()
    own.clock_stepped(5 * SECOND, 3600.0)
    (fault,) = own.timeline.view().faults
    assert (fault.fault, fault.start_ns, fault.end_ns) == (Fault.CLOCK_STEP, 4 * SECOND, 5 * SECOND + 1)
    assert own.status(5 * SECOND).faults == {"clock_step": 1}


@pytest.mark.parametrize(("gap_ms", "half"), [(1000, 0.5), (1001, 0.1)])
def test_after_a_gap_an_update_is_placed_by_the_counters_own_intervals(gap_ms: int, half: float) -> None:
    own = device()
    for tick in range(6):
        energy(own, tick * 100, 10.0 * tick)
    energy(own, 500 + gap_ms, 500.0)
    assert own.timeline.view().half_seconds[-1] == pytest.approx(half)


def test_when_it_is_read_next_is_told_by_its_phase_lock() -> None:
    own = device(update_period_seconds=0.1)
    assert own.next_read_ns(0) is None
    energy(own, 1000, 10.0)
    assert own.next_read_ns(0) == 1060 * MS
    assert own.next_read_ns(1090 * MS) == 1090 * MS
    assert device().next_read_ns(0) is None
