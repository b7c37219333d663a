"""The joule counter: monotonic, and every fault a named interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, energy_reading, power_reading
from shared import shared_file
from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate, EnergyCounter, FaultInterval, PowerIntegrator
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.meters.recorded import RecordedMeter


def run(
    values: list[float | Fault | None], step_ns: int = 100 * MS
) -> tuple[list[CounterUpdate], list[FaultInterval]]:
    counter = EnergyCounter("gpu")
    updates: list[CounterUpdate] = []
    faults: list[FaultInterval] = []
    for i, value in enumerate(values):
        if isinstance(value, Fault):
            reading = energy_reading(i * step_ns, None, value)
        else:
            reading = energy_reading(i * step_ns, value)
        updates += counter.add(reading)
        faults += counter.take_faults()
    return updates, faults


def test_a_knot_is_where_the_counter_moved() -> None:
    updates, faults = run([10.0, 10.0, 22.5, 22.5, 35.0])
    assert [(k.after_ns, k.by_ns, k.joules) for k in updates] == [
        (100 * MS, 200 * MS, 0.0),
        (300 * MS, 400 * MS, 12.5),
    ]
    assert faults == []


def test_a_reset_is_neither_negative_nor_zero_energy() -> None:
    """AIPerf and aitra-meter clamp the change to 0, CodeCarbon leaves it negative, Zeus does not look."""
    updates, faults = run([100.0, 112.0, 124.0, 3.0, 15.0, 27.0])
    assert [k.joules for k in updates] == [0.0, 12.0, 12.0, 24.0]
    assert [k.segment for k in updates] == [0, 0, 1, 1]
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.COUNTER_RESET, 200 * MS, 300 * MS)]


def test_a_failed_read_is_no_reset_and_no_zero() -> None:
    """CodeCarbon takes a failed RAPL read for a wrap."""
    updates, faults = run([100.0, 112.0, Fault.TIMEOUT, Fault.TIMEOUT, 148.0])
    assert [k.joules for k in updates] == [0.0, 36.0]
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.TIMEOUT, 100 * MS, 400 * MS)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, None])
def test_values_that_are_no_energy_are_faults(value: float | None) -> None:
    updates, faults = run([100.0, value, 112.0, 124.0])
    assert [f.fault for f in faults] == [Fault.UNKNOWN_ERROR]
    assert faults[0].end_ns == 200 * MS
    assert [k.joules for k in updates] == [0.0, 12.0]


@pytest.mark.parametrize(
    "fault", [Fault.GPU_LOST, Fault.RESET_REQUIRED, Fault.NO_PERMISSION, Fault.DRIVER_MISMATCH, Fault.TIMEOUT]
)
def test_each_fault_keeps_its_name_while_it_lasts(fault: Fault) -> None:
    _, faults = run([100.0, 112.0, fault, fault, fault])
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(fault, 100 * MS, None)]


def test_a_counter_that_stands_is_stale() -> None:
    values: list[float | Fault | None] = [1.0, 2.0, *([3.0] * 15), 40.0]
    updates, faults = run(values)
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.STALE_SENSOR, 200 * MS, 1700 * MS)]
    assert updates[-1].joules == pytest.approx(38.0)


def test_readings_out_of_order_are_refused() -> None:
    counter = EnergyCounter("gpu")
    counter.add(energy_reading(SECOND, 1.0))
    with pytest.raises(ValueError, match="time order"):
        counter.add(energy_reading(SECOND - 1, 2.0))


@given(
    st.lists(
        st.one_of(st.floats(0.0, 1e9), st.sampled_from([Fault.TIMEOUT, Fault.GPU_LOST]), st.none()),
        min_size=1,
        max_size=60,
    )
)
def test_knots_are_monotonic_whatever_is_read(values: list[float | Fault | None]) -> None:
    updates, faults = run(values)
    joules = [k.joules for k in updates]
    assert joules == sorted(joules)
    assert [k.by_ns for k in updates] == sorted({k.by_ns for k in updates})
    numbers = [v for v in values if isinstance(v, float)]
    fell = any(b < a for a, b in pairwise(numbers))
    assert not fell or {f.fault for f in faults} & {Fault.COUNTER_RESET, Fault.COUNTER_JUMP}
    assert all(f.end_ns is None or f.end_ns >= f.start_ns for f in faults)


@given(st.lists(st.floats(0.1, 80.0), min_size=2, max_size=50), st.floats(0.0, 1e7))
def test_without_faults_the_sum_is_the_counters_change(gains: list[float], start: float) -> None:
    values = [start]
    for gain in gains:
        values.append(values[-1] + gain)
    updates, faults = run(list(values))
    assert faults == []
    assert updates[-1].joules == pytest.approx(values[-1] - values[1], rel=1e-9, abs=1e-6)


def test_power_is_integrated_by_trapezoids() -> None:
    counter = PowerIntegrator("gpu")
    updates = [
        k for i, w in enumerate([100.0, 200.0, 100.0]) for k in counter.add(power_reading(i * 500 * MS, w))
    ]
    assert [k.joules for k in updates] == [0.0, 75.0, 150.0]


def test_a_gap_in_power_is_unknown_energy() -> None:
    counter = PowerIntegrator("gpu")
    updates = []
    for time_ns in (0, 500 * MS, 3000 * MS, 3500 * MS):
        updates += counter.add(power_reading(time_ns, 100.0 + time_ns * 1e-9))
    assert [k.segment for k in updates] == [0, 0, 1, 1]
    assert [f.fault for f in counter.take_faults()] == [Fault.STALE_SENSOR]
    assert updates[2].joules == updates[1].joules


def test_power_that_never_moves_is_stale() -> None:
    counter = PowerIntegrator("gpu", stale_seconds=1.0)
    for i in range(15):
        counter.add(power_reading(i * 100 * MS, 80.203))
    assert [f.fault for f in counter.take_faults()] == [Fault.STALE_SENSOR]


@pytest.mark.parametrize(("value", "fault"), [(None, Fault.GPU_LOST), (-3.0, None), (math.nan, None)])
def test_power_faults_are_named(value: float | None, fault: Fault | None) -> None:
    counter = PowerIntegrator("gpu")
    counter.add(power_reading(0, 100.0))
    assert counter.add(power_reading(100 * MS, value, fault)) == []
    assert [f.fault for f in counter.take_faults()] == [fault or Fault.UNKNOWN_ERROR]


@pytest.mark.parametrize("name", ["square-wave.csv", "tenants/nvml.csv.gz", "rates/nvml.csv.gz"])
def test_a_real_counter_loses_nothing(name: str) -> None:
    meter = RecordedMeter(shared_file("h200", *name.split("/")))
    counter = EnergyCounter("recorded-0")
    updates = [update for reading in meter.replay() for update in counter.add(reading)]
    energy = meter.readings.energy_joules
    first_move = energy[energy > energy[0]][0]
    assert updates[-1].joules == pytest.approx(float(energy[-1] - first_move), rel=1e-9)
    assert counter.take_faults() == []
    assert max(k.by_ns - k.after_ns for k in updates) < 120 * MS


# --- values that no device can have -------------------------------------------------------------------------

LIMIT_WATTS = 700.0


def metered(
    values: Sequence[float | Fault | None],
    *,
    watts: Callable[[int], float] | None = None,
    step_ns: int = 100 * MS,
    most_watts: float = 1.5 * LIMIT_WATTS,
) -> tuple[EnergyTimeline, list[FaultInterval]]:
    """The timeline of a counter read every 100 ms, beside a gauge that says `watts` of each time."""
    counter, timeline = EnergyCounter("gpu", most_watts=most_watts), EnergyTimeline()
    faults: list[FaultInterval] = []
    for tick, value in enumerate(values):
        if watts is not None:
            counter.add_power(tick * step_ns, watts(tick))
        fault = value if isinstance(value, Fault) else None
        reading = energy_reading(tick * step_ns, None if isinstance(value, Fault) else value, fault)
        for update in counter.add(reading):
            timeline.add_update(update)
        for interval in counter.take_faults():
            faults.append(interval)
            timeline.add_fault(interval)
    return timeline, faults


def true(watts: float, count: int) -> list[float | Fault | None]:
    return [1000.0 + watts * tick / 10 for tick in range(count)]


@pytest.mark.parametrize("bad", [0.0, 5.0, 1e6, (2**64 - 1) / 1000, 1199.0])
def test_one_wrong_value_is_flagged_and_no_joule_is_lost(bad: float) -> None:
    values = true(200.0, 40)
    values[20] = bad
    timeline, faults = metered(values)
    part = timeline.energy(500 * MS, 3500 * MS)
    assert part.joules == pytest.approx(600.0)
    assert part.flags & {Fault.COUNTER_RESET, Fault.COUNTER_JUMP}
    assert timeline.energy(2200 * MS, 3500 * MS).flags == frozenset()
    assert [(f.start_ns, f.end_ns) for f in faults] == [(1900 * MS, 2100 * MS)]


@pytest.mark.parametrize("offset", [-900.0, -100.0, 500.0, 1e6, 5e8])
def test_a_counter_that_begins_elsewhere_is_missing_there_and_right_after(offset: float) -> None:
    """A driver reload begins lower, another board in the slot anywhere: those joules nobody used."""
    values = [value if tick < 20 else value + offset for tick, value in enumerate(true(200.0, 60))]  # type: ignore[operator]
    timeline, faults = metered(values)
    (fault,) = faults
    assert fault.fault is (Fault.COUNTER_RESET if offset < 0 else Fault.COUNTER_JUMP)
    assert (fault.start_ns, fault.end_ns) == (1900 * MS, 2000 * MS)
    whole = timeline.energy(500 * MS, 5500 * MS)
    assert {fault.fault, Fault.PARTIAL_COVERAGE} <= whole.flags
    assert whole.joules == pytest.approx(200.0 * whole.covered_seconds, rel=0.03)
    after = timeline.energy(2500 * MS, 5500 * MS)
    assert after.joules == pytest.approx(600.0)
    assert after.flags == frozenset()


def test_a_jump_within_the_power_limit_cannot_be_told_from_work() -> None:
    values = [value if tick < 20 else value + 40.0 for tick, value in enumerate(true(200.0, 40))]  # type: ignore[operator]
    assert metered(values)[1] == []


def test_a_long_gap_may_hold_many_joules_but_not_any_number() -> None:
    for joules, plausible in ((600.0 * 30, True), (5000.0 * 30, False)):
        counter = EnergyCounter("gpu", most_watts=1.5 * LIMIT_WATTS)
        for tick in range(20):
            counter.add(energy_reading(tick * 100 * MS, 60.0 * tick))
        counter.add(energy_reading(1900 * MS + 30 * SECOND, 60.0 * 19 + joules))
        faults = [interval.fault for interval in counter.take_faults()]
        assert faults == ([] if plausible else [Fault.COUNTER_JUMP])


def test_a_gap_widens_the_edges_inside_it_and_no_more() -> None:
    values = true(200.0, 100)
    counter, timeline = EnergyCounter("gpu"), EnergyTimeline()
    for tick, value in enumerate(values):
        if not 30 < tick < 60:
            for update in counter.add(energy_reading(tick * 100 * MS, value)):  # type: ignore[arg-type]
                timeline.add_update(update)
    assert counter.take_faults() == []
    whole, inside, after = (
        timeline.energy(round(a * SECOND), round(b * SECOND)) for a, b in ((1.0, 9.0), (1.0, 4.5), (6.5, 9.0))
    )
    assert whole.joules == pytest.approx(1600.0, rel=0.01)
    assert (whole.flags, whole.complete) == (frozenset(), True)
    assert after.joules == pytest.approx(500.0, rel=0.02)
    assert after.resolved
    assert inside.uncertainty_joules is not None
    assert whole.uncertainty_joules is not None
    assert inside.uncertainty_joules > 100.0
    assert whole.uncertainty_joules < 20.0
    assert not inside.resolved
    assert not whole.resolved


def test_a_counter_that_stands_is_stale_only_where_power_is_drawn() -> None:
    values = [*true(200.0, 20), *[1380.0] * 30, 2000.0, 2020.0]
    assert [f.fault for f in metered(values, watts=lambda tick: 200.0)[1]] == [Fault.STALE_SENSOR]
    assert metered(values[:-2], watts=lambda tick: 200.0 if tick < 20 else 0.0)[1] == []
    # Without a gauge nothing says that the device rests.
    assert [f.fault for f in metered(values)[1]] == [Fault.STALE_SENSOR]


def test_joules_that_a_counter_lost_while_it_stood_are_missing_and_not_zero() -> None:
    """A counter that stood for 0.9 s at 200 W and went on from where it was."""
    values = true(200.0, 60)
    held = values[:20] + [values[19]] * 9 + [values[19] + 20.0 * (tick + 1) for tick in range(31)]  # type: ignore[operator]
    timeline, faults = metered(held, watts=lambda tick: 200.0)
    assert [f.fault for f in faults] == [Fault.STALE_SENSOR]
    part = timeline.energy(500 * MS, 5500 * MS)
    assert {Fault.STALE_SENSOR, Fault.PARTIAL_COVERAGE} <= part.flags
    assert part.joules == pytest.approx(200.0 * part.covered_seconds, rel=0.05)


@pytest.mark.parametrize("peak_watts", [200.0, 700.0])
@pytest.mark.parametrize("unread_ms", [400, 700, 900])
def test_a_peak_before_a_time_without_readings_loses_no_joule(peak_watts: float, unread_ms: int) -> None:
    """A device that falls to 50 W while a busy machine reads nothing: the counter did not stand."""
    counter, timeline = EnergyCounter("gpu"), EnergyTimeline()
    joules = 1000.0
    times = [*range(0, 2001, 100), *range(2000 + unread_ms, 6001, 100)]
    for before_ms, now_ms in pairwise([0, *times]):
        watts = peak_watts if now_ms <= 2000 else 50.0
        joules += watts * (now_ms - before_ms) * 1e-3
        counter.add_power(now_ms * MS, watts)
        for update in counter.add(energy_reading(now_ms * MS, joules)):
            timeline.add_update(update)
    assert counter.take_faults() == []
    part = timeline.energy(500 * MS, 5500 * MS)
    assert part.complete
    assert part.joules == pytest.approx(1.5 * peak_watts + 3.5 * 50.0, rel=0.05)


def test_a_reading_with_a_fault_begins_anew() -> None:
    counter = EnergyCounter("zone")
    updates = []
    for tick, joules in enumerate((10.0, 20.0, 30.0)):
        updates += counter.add(energy_reading(tick * SECOND, joules))
    assert counter.add(energy_reading(900 * SECOND, 5.0, Fault.COUNTER_WRAPPED)) == []
    updates += counter.add(energy_reading(901 * SECOND, 15.0))
    updates += counter.add(energy_reading(902 * SECOND, 25.0))
    assert [(update.joules, update.segment) for update in updates] == [(0, 0), (10, 0), (10, 1), (20, 1)]
    faults = counter.take_faults()
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [
        (Fault.COUNTER_WRAPPED, 2 * SECOND, 900 * SECOND)
    ]


Mistake = tuple[int, str]
KINDS = ["zero", "huge", "jump", "reset", "back", "nan", "negative", "timeout", "none", "gap"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(10.0, 70.0), min_size=60, max_size=120),
    st.lists(st.tuples(st.integers(5, 110), st.sampled_from(KINDS)), max_size=6),
    st.data(),
)
def test_whatever_is_read_a_window_is_right_or_flagged(
    gains: list[float], mistakes: list[Mistake], data: st.DataObject
) -> None:
    """Between 100 and 700 W, with any mistakes: never negative, additive, and never wrong without a flag."""
    exact = np.concatenate(([0.0], np.cumsum(gains)))
    values: list[float | Fault | None] = [5000.0 + float(joules) for joules in exact]
    offset, left_out = 0.0, set()
    kinds = dict(mistakes)
    for tick in range(len(values)):
        if kinds.get(tick) == "jump":
            offset += 1e5
        elif kinds.get(tick) == "reset":
            offset = -float(exact[tick]) - 5000.0
        values[tick] = 5000.0 + float(exact[tick]) + offset
        once = {"zero": 0.0, "huge": 1.8e16, "nan": math.nan, "negative": -1.0, "none": None}
        once |= {"timeout": Fault.TIMEOUT, "back": max(5000.0 + float(exact[tick]) + offset - 400.0, 0.0)}  # type: ignore[dict-item]
        if tick in kinds and kinds[tick] in once:
            values[tick] = once[kinds[tick]]
        if kinds.get(tick) == "gap":
            left_out |= set(range(tick, tick + 15))
    counter, timeline = EnergyCounter("gpu", most_watts=1.5 * LIMIT_WATTS), EnergyTimeline()
    for tick, value in enumerate(values):
        if tick in left_out:
            continue
        fault = value if isinstance(value, Fault) else None
        reading = energy_reading(tick * 100 * MS, None if isinstance(value, Fault) else value, fault)
        for update in counter.add(reading):
            timeline.add_update(update)
        for interval in counter.take_faults():
            timeline.add_fault(interval)
    last = (len(values) - 1) * 100 * MS
    cuts = sorted({0, last, *data.draw(st.lists(st.integers(0, last), max_size=6))})
    parts = [timeline.energy(a, b) for a, b in pairwise(cuts)]
    whole = timeline.energy(0, last)
    assert all(part.joules is None or part.joules >= -1e-9 for part in parts)
    assert sum(part.joules or 0.0 for part in parts) == pytest.approx(whole.joules or 0.0, abs=1e-6)
    for part in parts:
        if part.joules is None or part.flags:
            continue
        at = np.interp([part.start_ns, part.end_ns], np.arange(len(exact)) * 100 * MS, exact)
        # The bracket of a read every 100 ms is 70 J at each edge; an edge in a gap has more.
        allowed = 145.0 + 4.0 * (part.uncertainty_joules or 0.0)
        assert abs(part.joules - float(np.diff(at)[0])) <= allowed


@pytest.mark.parametrize("watts", [0.0, 1e9, (2**32 - 1) / 1000, 1500.0])
def test_power_that_no_device_has_is_no_reading(watts: float) -> None:
    integrator, timeline = PowerIntegrator("gpu", most_watts=2 * LIMIT_WATTS), EnergyTimeline()
    for tick in range(240):
        value = watts if 80 <= tick < 160 else 200.0 + tick % 3
        for update in integrator.add(power_reading(tick * 25 * MS, value)):
            timeline.add_update(update)
        for interval in integrator.take_faults():
            timeline.add_fault(interval)
    part = timeline.energy(0, 239 * 25 * MS)
    assert {Fault.IMPLAUSIBLE_POWER, Fault.STALE_SENSOR, Fault.PARTIAL_COVERAGE} <= part.flags
    assert part.joules == pytest.approx(201.0 * part.covered_seconds, rel=0.01)


def test_power_that_stands_for_three_seconds_is_stale() -> None:
    integrator = PowerIntegrator("gpu")
    for tick in range(240):
        integrator.add(power_reading(tick * 25 * MS, 100.0 if 80 <= tick < 200 else 200.0 + tick % 3))
    assert [(f.fault, f.start_ns) for f in integrator.take_faults()] == [(Fault.STALE_SENSOR, 2 * SECOND)]
