"""The joule counter: monotonic, and every fault a named interval."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meter_fakes import MS, SECOND, energy_reading, power_reading
from shared import shared_file
from wattmeter.counter import JouleCounter, PowerCounter
from wattmeter.faults import Fault
from wattmeter.knots import FaultInterval, Knot
from wattmeter.meters.recorded import RecordedMeter


def run(
    values: list[float | Fault | None], step_ns: int = 100 * MS
) -> tuple[list[Knot], list[FaultInterval]]:
    counter = JouleCounter("gpu")
    knots: list[Knot] = []
    faults: list[FaultInterval] = []
    for i, value in enumerate(values):
        if isinstance(value, Fault):
            reading = energy_reading(i * step_ns, None, value)
        else:
            reading = energy_reading(i * step_ns, value)
        knots += counter.add(reading)
        faults += counter.take_faults()
    return knots, faults


def test_a_knot_is_where_the_counter_moved() -> None:
    knots, faults = run([10.0, 10.0, 22.5, 22.5, 35.0])
    assert [(k.after_ns, k.by_ns, k.joules) for k in knots] == [
        (100 * MS, 200 * MS, 0.0),
        (300 * MS, 400 * MS, 12.5),
    ]
    assert faults == []


def test_a_reset_is_neither_negative_nor_zero_energy() -> None:
    """AIPerf and aitra-meter clamp the change to 0, CodeCarbon leaves it negative, Zeus does not look."""
    knots, faults = run([100.0, 112.0, 124.0, 3.0, 15.0, 27.0])
    assert [k.joules for k in knots] == [0.0, 12.0, 12.0, 24.0]
    assert [k.segment for k in knots] == [0, 0, 1, 1]
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.COUNTER_RESET, 200 * MS, 300 * MS)]


def test_a_failed_read_is_no_reset_and_no_zero() -> None:
    """CodeCarbon takes a failed RAPL read for a wrap."""
    knots, faults = run([100.0, 112.0, Fault.TIMEOUT, Fault.TIMEOUT, 148.0])
    assert [k.joules for k in knots] == [0.0, 36.0]
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.TIMEOUT, 100 * MS, 400 * MS)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, None])
def test_values_that_are_no_energy_are_faults(value: float | None) -> None:
    knots, faults = run([100.0, value, 112.0, 124.0])
    assert [f.fault for f in faults] == [Fault.UNKNOWN_ERROR]
    assert faults[0].end_ns == 200 * MS
    assert [k.joules for k in knots] == [0.0, 12.0]


@pytest.mark.parametrize(
    "fault", [Fault.GPU_LOST, Fault.RESET_REQUIRED, Fault.NO_PERMISSION, Fault.DRIVER_MISMATCH, Fault.TIMEOUT]
)
def test_each_fault_keeps_its_name_while_it_lasts(fault: Fault) -> None:
    _, faults = run([100.0, 112.0, fault, fault, fault])
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(fault, 100 * MS, None)]


def test_a_counter_that_stands_is_stale() -> None:
    values: list[float | Fault | None] = [1.0, 2.0, *([3.0] * 15), 40.0]
    knots, faults = run(values)
    assert [(f.fault, f.start_ns, f.end_ns) for f in faults] == [(Fault.STALE_SENSOR, 200 * MS, 1700 * MS)]
    assert knots[-1].joules == pytest.approx(38.0)


def test_readings_out_of_order_are_refused() -> None:
    counter = JouleCounter("gpu")
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
    knots, faults = run(values)
    joules = [k.joules for k in knots]
    assert joules == sorted(joules)
    assert [k.by_ns for k in knots] == sorted({k.by_ns for k in knots})
    numbers = [v for v in values if isinstance(v, float)]
    falls = sum(b < a for a, b in pairwise(numbers))
    assert sum(f.fault is Fault.COUNTER_RESET for f in faults) == falls
    assert all(f.end_ns is None or f.end_ns >= f.start_ns for f in faults)


@given(st.lists(st.floats(0.1, 80.0), min_size=2, max_size=50), st.floats(0.0, 1e7))
def test_without_faults_the_sum_is_the_counters_change(gains: list[float], start: float) -> None:
    values = [start]
    for gain in gains:
        values.append(values[-1] + gain)
    knots, faults = run(list(values))
    assert faults == []
    assert knots[-1].joules == pytest.approx(values[-1] - values[1], rel=1e-9, abs=1e-6)


def test_power_is_integrated_by_trapezoids() -> None:
    counter = PowerCounter("gpu")
    knots = [
        k for i, w in enumerate([100.0, 200.0, 100.0]) for k in counter.add(power_reading(i * 500 * MS, w))
    ]
    assert [k.joules for k in knots] == [0.0, 75.0, 150.0]


def test_a_gap_in_power_is_unknown_energy() -> None:
    counter = PowerCounter("gpu")
    knots = []
    for time_ns in (0, 500 * MS, 3000 * MS, 3500 * MS):
        knots += counter.add(power_reading(time_ns, 100.0 + time_ns * 1e-9))
    assert [k.segment for k in knots] == [0, 0, 1, 1]
    assert [f.fault for f in counter.take_faults()] == [Fault.PARTIAL_COVERAGE]
    assert knots[2].joules == knots[1].joules


def test_power_that_never_moves_is_stale() -> None:
    counter = PowerCounter("gpu", stale_seconds=1.0)
    for i in range(15):
        counter.add(power_reading(i * 100 * MS, 80.203))
    assert [f.fault for f in counter.take_faults()] == [Fault.STALE_SENSOR]


@pytest.mark.parametrize(("value", "fault"), [(None, Fault.GPU_LOST), (-3.0, None), (math.nan, None)])
def test_power_faults_are_named(value: float | None, fault: Fault | None) -> None:
    counter = PowerCounter("gpu")
    counter.add(power_reading(0, 100.0))
    assert counter.add(power_reading(100 * MS, value, fault)) == []
    assert [f.fault for f in counter.take_faults()] == [fault or Fault.UNKNOWN_ERROR]


@pytest.mark.parametrize("name", ["square-wave.csv", "tenants/nvml.csv.gz", "rates/nvml.csv.gz"])
def test_a_real_counter_loses_nothing(name: str) -> None:
    meter = RecordedMeter(shared_file("h200", *name.split("/")))
    counter = JouleCounter("recorded-0")
    knots = [knot for reading in meter.replay() for knot in counter.add(reading)]
    energy = meter.readings.energy_joules
    first_move = energy[energy > energy[0]][0]
    assert knots[-1].joules == pytest.approx(float(energy[-1] - first_move), rel=1e-9)
    assert counter.take_faults() == []
    assert max(k.by_ns - k.after_ns for k in knots) < 120 * MS
