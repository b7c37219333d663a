"""Where the counter's rules begin and end: each limit from both of its sides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pytest

from meter_fakes import MS, energy_reading, power_reading
from wattmeter.faults import Fault
from wattmeter.metering.counter import (
    CounterUpdate,
    EnergyCounter,
    FaultInterval,
    PowerIntegrator,
    is_power,
)
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.meters.base import Reading

Faults = list[tuple[Fault, int, int | None]]


def read(counter: EnergyCounter, values: Iterable[tuple[int, float]]) -> list[CounterUpdate]:
    """Updates of readings (ms, joules)."""
    return [update for ms, joules in values for update in counter.add(energy_reading(ms * MS, joules))]


def told(faults: Sequence[FaultInterval]) -> Faults:
    return [(fault.fault, fault.start_ns, fault.end_ns) for fault in faults]


def within(ms: int, joules: float, half_ms: float) -> Reading:
    return Reading("gpu", ms * MS, 1e9, energy_joules=joules, within_seconds=half_ms * 1e-3)


def test_a_power_is_from_nothing_to_the_most() -> None:
    assert [is_power(watts, 700.0) for watts in (0.0, 0.1, 700.0)] == [True] * 3
    bad = (None, -0.1, 700.1, math.nan, math.inf, -math.inf)
    assert [is_power(watts, 700.0) for watts in bad] == [False] * 6


# --- a counter that stands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ms", "stale"), [(1000, False), (1001, True)])
def test_a_counter_may_stand_for_a_second(ms: int, stale: bool) -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 1.0), (100, 2.0), (500, 2.0), (100 + ms, 2.0)])
    assert told(counter.take_faults()) == ([(Fault.STALE_SENSOR, 100 * MS, None)] if stale else [])


@pytest.mark.parametrize(
    ("watts", "stale"),
    [
        ([0.5, 0.5], False),  # a joule in 2 s: a counter may move in steps of that
        ([0.51, 0.51], True),
        ([0.51, 0.0], False),  # it has just been switched off
    ],
)
def test_standing_is_judged_by_what_the_gauge_says_at_least(watts: list[float], stale: bool) -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 1.0), (100, 2.0)])
    for ms in range(100, 2101, 500):
        counter.add_power(ms * MS, watts[0] if ms < 2100 else watts[1])
        read(counter, [(ms, 2.0)])
    expected = [Fault.STALE_SENSOR] if stale else []
    assert [fault.fault for fault in counter.take_faults()] == expected


def test_the_lower_of_two_powers_holds_between_them() -> None:
    """0.4 W and 300 W in turns: less than a joule was used in 2 s for sure."""
    counter = EnergyCounter("gpu")
    read(counter, [(0, 1.0), (100, 2.0)])
    for number, ms in enumerate(range(100, 2101, 500)):
        counter.add_power(ms * MS, 0.4 if number % 2 else 300.0)
        read(counter, [(ms, 2.0)])
    assert counter.take_faults() == []


@pytest.mark.parametrize(
    ("gauge_ms", "stale"),
    [
        # 0.8 x 2 s - 0.05 s = 1.55 s have to be watched for the gauge to say that the device rests.
        (range(100, 1701, 100), False),
        (range(100, 1501, 100), True),
        ((100, 1100, 2100), False),  # a second between two readings is watched,
        ((100, 1099, 2100), True),  # and more is not
        ((), True),
    ],
)
def test_a_gauge_counts_that_watched_four_fifths_of_the_time(gauge_ms: Sequence[int], stale: bool) -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 1.0), (100, 2.0)])
    for ms in gauge_ms:
        counter.add_power(ms * MS, 0.0)
    read(counter, [(2100, 2.0)])
    assert bool(counter.take_faults()) is stale


def test_a_gauge_begins_anew_with_each_move_of_the_counter() -> None:
    """What was used before the last move is in it, and a power of before is known until then only."""
    counter = EnergyCounter("gpu")
    counter.add_power(0, 300.0)
    read(counter, [(0, 1.0), (100, 31.0)])
    counter.add_power(50 * MS, 300.0)
    counter.add_power(900 * MS, 0.1)
    for ms in range(900, 2101, 100):
        counter.add_power(ms * MS, 0.1)
    read(counter, [(500, 31.0), (1200, 31.0), (2100, 31.0)])
    assert counter.take_faults() == []


def test_a_gauge_that_is_read_twice_at_a_time_or_out_of_order_counts_nothing_twice() -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 1.0), (100, 2.0)])
    for ms in (100, 1000, 1000, 900, 1000, 900, 1000):
        counter.add_power(ms * MS, 0.9)
    read(counter, [(1101, 2.0)])
    assert counter.take_faults() == []  # 0.81 J + what was read again in between, 0.18 J


# --- joules that are lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stood_ms", "gained", "lost"),
    [
        (350, 41.0, True),  # of 100 J half less 5 J is 45 J
        (350, 46.0, False),
        (349, 1.0, False),
        (350, 1.0, True),
    ],
)
def test_a_counter_that_stood_and_gained_too_little_has_lost_the_rest(
    stood_ms: int, gained: float, lost: bool
) -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 0.0), (100, 20.0), (200, 40.0)])
    for ms in range(200, 701, 50):
        counter.add_power(ms * MS, 200.0)
    updates = read(counter, [(400, 40.0), (200 + stood_ms, 40.0), (700, 40.0 + gained), (800, 60.0 + gained)])
    assert told(counter.take_faults()) == ([(Fault.STALE_SENSOR, 200 * MS, 700 * MS)] if lost else [])
    assert [(update.segment, update.joules) for update in updates] == (
        [(1, 20.0), (1, 40.0)] if lost else [(0, 20.0 + gained), (0, 40.0 + gained)]
    )


def test_nothing_is_lost_before_the_first_move_or_without_a_gauge() -> None:
    for watched in (True, False):
        counter = EnergyCounter("gpu")
        values = (
            [(0, 0.0), (400, 0.0), (900, 1.0)] if watched else [(0, 0.0), (100, 9.0), (600, 9.0), (900, 10.0)]
        )
        for ms in range(0, 901, 100) if watched else ():
            counter.add_power(ms * MS, 200.0)
        updates = read(counter, values)
        assert counter.take_faults() == []
        assert updates[-1].segment == 0


# --- values that cannot follow ------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "fault"), [(-0.01, []), (0.01, [Fault.COUNTER_JUMP])])
def test_a_counter_may_gain_what_its_device_can_draw_since_it_was_last_reached(
    more: float, fault: list[Fault]
) -> None:
    """The last value was reached in (0, 100] ms; this one by 200 ms: 200 ms of 1,000 W, and a joule."""
    counter = EnergyCounter("gpu", most_watts=1000.0)
    read(counter, [(0, 0.0), (100, 10.0), (200, 211.0 + more)])
    assert [one.fault for one in counter.take_faults()] == fault


@pytest.mark.parametrize(("more", "fault"), [(-0.01, []), (0.01, [Fault.COUNTER_JUMP])])
def test_the_first_value_may_have_been_reached_a_second_ago(more: float, fault: list[Fault]) -> None:
    counter = EnergyCounter("gpu", most_watts=1000.0)
    read(counter, [(0, 0.0), (100, 1101.0 + more)])
    assert [one.fault for one in counter.take_faults()] == fault


@pytest.mark.parametrize(("more", "fault"), [(-0.01, []), (0.01, [Fault.COUNTER_JUMP])])
def test_reads_that_take_long_allow_more(more: float, fault: list[Fault]) -> None:
    """Reached after 80 ms - 20 ms; by 200 ms + 30 ms."""
    counter = EnergyCounter("gpu", most_watts=1000.0)
    for reading in (within(80, 0.0, 20), within(100, 10.0, 10), within(200, 181.0 + more, 30)):
        counter.add(reading)
    assert [one.fault for one in counter.take_faults()] == fault


@pytest.mark.parametrize("later", [-1.0, 1e5])
def test_a_suspect_that_is_not_continued_is_replaced_by_the_next(later: float) -> None:
    """Three boards in the slot in turns: only what a second value continues is believed."""
    counter = EnergyCounter("gpu", most_watts=1000.0)
    updates = read(
        counter, [(0, 5000.0), (100, 5010.0), (200, 100.0), (300, 2900.0 + later), (400, 2910.0 + later)]
    )
    assert [(update.joules, update.segment) for update in updates] == [(0.0, 0), (0.0, 1)]
    assert updates[-1].by_ns == 400 * MS
    assert {fault.fault for fault in counter.take_faults()} <= {Fault.COUNTER_RESET, Fault.COUNTER_JUMP}


def test_a_fault_that_another_followed_is_open_once_and_ends_with_the_first_good_value() -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 5.0), (100, 6.0)])
    for ms in (200, 300):
        counter.add(energy_reading(ms * MS, None, Fault.TIMEOUT))
    counter.add(energy_reading(400 * MS, None, Fault.GPU_LOST))
    read(counter, [(500, 10.0)])
    counter.add(energy_reading(600 * MS, None, Fault.TIMEOUT))
    assert told(counter.take_faults()) == [
        (Fault.TIMEOUT, 100 * MS, 500 * MS),
        (Fault.GPU_LOST, 100 * MS, 500 * MS),
        (Fault.TIMEOUT, 500 * MS, None),
    ]
    assert counter.take_faults() == []


def test_a_fault_before_the_first_reading_begins_with_itself() -> None:
    counter = EnergyCounter("gpu")
    counter.add(energy_reading(700 * MS, None, Fault.TIMEOUT))
    assert told(counter.take_faults()) == [(Fault.TIMEOUT, 700 * MS, None)]


def test_zero_joules_is_a_value_and_two_readings_may_share_a_time() -> None:
    counter = EnergyCounter("gpu")
    assert read(counter, [(0, 0.0), (0, 0.0)]) == []
    assert counter.take_faults() == []


def test_a_reset_ends_a_stale_fault_and_the_gauge_begins_anew() -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(0, 50.0), (100, 60.0), (1200, 60.0), (1300, 5.0), (1400, 15.0)])
    assert told(counter.take_faults()) == [
        (Fault.STALE_SENSOR, 100 * MS, 1300 * MS),
        (Fault.COUNTER_RESET, 1200 * MS, 1300 * MS),
    ]


# --- when a value was reached -------------------------------------------------------------------------------


def test_the_bracket_is_from_the_read_before_to_this_one_with_what_both_took() -> None:
    counter = EnergyCounter("gpu")
    updates = [
        update
        for reading in (within(0, 0.0, 3), within(100, 20.0, 4), within(200, 40.0, 5))
        for update in counter.add(reading)
    ]
    assert [(update.after_ns, update.by_ns) for update in updates] == [
        (-3 * MS, 104 * MS),
        (96 * MS, 205 * MS),
    ]


def test_after_a_gap_the_counter_is_as_old_as_its_longest_of_the_last_eight_intervals() -> None:
    counter, ms, joules = EnergyCounter("gpu"), 0, 0.0
    values = []
    for step in (50, 50, 400, 50, 60, 50, 50, 50, 50, 50, 50, 50):
        ms, joules = ms + step, joules + 10.0
        values.append((ms, joules))
    read(counter, values)
    (update,) = read(counter, [(ms + 1500, joules + 300.0)])
    # Each interval is from the earliest moment of the last value to the latest of this one: 50 + 60 ms.
    assert (update.after_ns, update.by_ns) == ((ms + 1500 - 110) * MS, (ms + 1500) * MS)


@pytest.mark.parametrize(("gap_ms", "unread"), [(1000, False), (1001, True)])
def test_a_gap_is_longer_than_a_second(gap_ms: int, unread: bool) -> None:
    counter = EnergyCounter("gpu")
    read(counter, [(tick * 100, 10.0 * tick) for tick in range(8)])
    (update,) = read(counter, [(700 + gap_ms, 200.0)])
    assert update.after_ns == ((700 + gap_ms - 200) * MS if unread else 700 * MS)
    # What was not read is no interval of the counter's: the next gap is told by those before.
    (after,) = read(counter, [(700 + gap_ms + 1500, 400.0)])
    assert after.after_ns == (700 + gap_ms + 1500 - (200 if unread else 1100)) * MS


@pytest.mark.parametrize(("half_ms", "asked"), [(25.0, True), (25.1, False)])
def test_a_read_longer_than_half_a_period_teaches_no_phase(half_ms: float, asked: bool) -> None:
    lock = PhaseLock(0.1)
    counter = EnergyCounter("gpu", phase_lock=lock)
    for ms, joules in ((0, 0.0), (60, 10.0)):
        counter.add(within(ms, joules, half_ms if ms else 0.0))
    assert (lock.width_seconds is not None) is asked


def test_sums_may_begin_with_the_first_reading() -> None:
    for first, total in ((False, 20.0), (True, 30.0)):
        counter = EnergyCounter("gpu", from_first_reading=first)
        read(counter, [(0, 5.0), (100, 15.0), (200, 35.0)])
        assert counter.joules == total


# --- power that is integrated -------------------------------------------------------------------------------


def integrated(values: Iterable[tuple[int, float | None]]) -> tuple[list[CounterUpdate], Faults, float]:
    integrator = PowerIntegrator("gpu", most_watts=1000.0)
    updates = [update for ms, watts in values for update in integrator.add(power_reading(ms * MS, watts))]
    return updates, told(integrator.take_faults()), integrator.joules


def test_a_power_counts_from_the_reading_before_in_its_own_segment() -> None:
    updates, faults, joules = integrated([(0, 100.0), (1000, 300.0), (2001, 100.0), (2501, 200.0)])
    assert [(update.time_ns, update.joules, update.segment) for update in updates] == [
        (0, 0.0, 0),
        (1000 * MS, 200.0, 0),
        (2001 * MS, 200.0, 1),
        (2501 * MS, 275.0, 1),
    ]
    assert all(update.after_ns == update.by_ns for update in updates)
    assert faults == [(Fault.STALE_SENSOR, 1000 * MS, 2001 * MS)]
    assert joules == 275.0


@pytest.mark.parametrize(("ms", "stale"), [(2500, False), (2501, True)])
def test_a_power_may_stand_for_two_and_a_half_seconds(ms: int, stale: bool) -> None:
    values = [
        (0, 100.0),
        (100, 200.0),
        *((100 + tick * 500, 200.0) for tick in range(1, 5)),
        (100 + ms, 200.0),
    ]
    _, faults, _ = integrated([*values, (100 + ms + 100, 201.0)])
    expected: Faults = [(Fault.STALE_SENSOR, 100 * MS, (200 + ms) * MS)]
    assert faults == (expected if stale else [])


@pytest.mark.parametrize(
    ("watts", "fault"),
    [
        (0.0, Fault.IMPLAUSIBLE_POWER),
        (1000.1, Fault.IMPLAUSIBLE_POWER),
        (1000.0, None),
        (0.1, None),
        (-0.1, Fault.UNKNOWN_ERROR),
        (math.inf, Fault.UNKNOWN_ERROR),
        (math.nan, Fault.UNKNOWN_ERROR),
        (None, Fault.UNKNOWN_ERROR),
    ],
)
def test_a_power_that_is_none_is_named_until_the_next(watts: float | None, fault: Fault | None) -> None:
    updates, faults, _ = integrated([(0, 100.0), (100, watts), (200, 100.0)])
    assert faults == ([] if fault is None else [(fault, 0, 200 * MS)])
    assert len(updates) == (3 if fault is None else 2)


def test_a_fault_of_the_first_power_begins_with_itself() -> None:
    assert integrated([(300, 0.0)])[1] == [(Fault.IMPLAUSIBLE_POWER, 300 * MS, None)]


def test_powers_come_in_order_and_no_two_at_a_time() -> None:
    for ms in (99, 100):
        integrator = PowerIntegrator("gpu")
        integrator.add(power_reading(100 * MS, 50.0))
        with pytest.raises(ValueError, match="time order"):
            integrator.add(power_reading(ms * MS, 60.0))


def test_a_fault_overlaps_what_it_has_a_moment_of() -> None:
    fault = FaultInterval("gpu", Fault.TIMEOUT, 10, 20)
    spans = [(0, 10), (9, 11), (19, 21), (20, 30), (12, 13)]
    assert [fault.overlaps(*span) for span in spans] == [False, True, True, False, True]
    assert FaultInterval("gpu", Fault.TIMEOUT, 10).overlaps(10**6, 10**6 + 1)


def test_a_reading_that_begins_anew_ends_what_was_suspected() -> None:
    counter = EnergyCounter("zone")
    read(counter, [(0, 50.0), (100, 60.0), (200, 5.0)])
    counter.add(energy_reading(300 * MS, 7.0, Fault.COUNTER_WRAPPED))
    updates = read(counter, [(400, 17.0), (500, 27.0)])
    assert [(update.joules, update.segment) for update in updates] == [(0.0, 1), (10.0, 1)]
    assert told(counter.take_faults()) == [
        (Fault.COUNTER_RESET, 100 * MS, 300 * MS),
        (Fault.COUNTER_WRAPPED, 100 * MS, 300 * MS),
    ]
