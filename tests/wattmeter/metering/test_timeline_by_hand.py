"""The energy of a window, figured out by hand from the docstrings: plain numbers, update after update."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_fakes import MS, SECOND
from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate, FaultInterval
from wattmeter.metering.timeline import EnergyTimeline, Interval


@dataclass(frozen=True)
class Update:
    time_ns: int
    joules: float
    half: float
    segment: int


@dataclass(frozen=True)
class Edge:
    joules: float
    variance: float


def edge(time_ns: int, run: list[Update], powers: list[tuple[int, float]]) -> Edge:
    """Joules by `time_ns` within a segment, and how uncertain that is."""
    right = next((i for i, update in enumerate(run) if i and update.time_ns >= time_ns), len(run) - 1)
    a, b = run[right - 1], run[right]
    seconds = (b.time_ns - a.time_ns) * 1e-9
    fraction = (time_ns - a.time_ns) * 1e-9 / seconds
    watts = (b.joules - a.joules) / seconds
    bracket = watts * (a.half * (1 - fraction) + b.half * fraction) / 3**0.5
    around = [
        (y.joules - x.joules) / ((y.time_ns - x.time_ns) * 1e-9)
        for x, y in pairwise(run[max(right - 1 - 3, 0) : right + 1 + 3])
    ]
    change = max(abs(one - watts) for one in around)
    if seconds > 0.25:
        change = max(change, watts)
    shape = change * fraction * (1 - fraction) * seconds
    inside = [power for power in powers if a.time_ns <= power[0] < b.time_ns]
    before = [power for power in powers if power[0] < a.time_ns]
    part = fraction
    if seconds > 0.25 and len(inside) >= 2 and before:
        levels = [(a.time_ns, before[-1][1]), *inside]
        ends = [*(time for time, _ in inside), b.time_ns]
        whole = sum(level * (end - begin) for (begin, level), end in zip(levels, ends, strict=True))
        used = sum(
            level * (min(end, time_ns) - min(begin, time_ns))
            for (begin, level), end in zip(levels, ends, strict=True)
        )
        part = used / whole if whole > 0 else fraction
    return Edge(a.joules + (b.joules - a.joules) * part, bracket**2 + shape**2)


def runs_of(updates: list[Update]) -> list[list[Update]]:
    runs: list[list[Update]] = []
    for update in updates:
        if runs and runs[-1][-1].segment == update.segment:
            runs[-1].append(update)
        else:
            runs.append([update])
    return [run for run in runs if len(run) >= 2]


def by_hand(
    updates: list[Update], powers: list[tuple[int, float]], start_ns: int, end_ns: int
) -> tuple[float | None, float | None, float, float]:
    """(joules, uncertainty, covered seconds, gap seconds) of [start, end)."""
    total, variance, covered, gap, any_part = 0.0, 0.0, 0.0, 0.0, False
    for run in runs_of(updates):
        low, high = max(start_ns, run[0].time_ns), min(end_ns, run[-1].time_ns)
        if high <= low:
            continue
        any_part = True
        begin, end = edge(low, run, powers), edge(high, run, powers)
        total += end.joules - begin.joules
        variance += begin.variance + end.variance
        covered += (high - low) * 1e-9
        for a, b in pairwise(run):
            if a.time_ns < high and b.time_ns > low:
                gap = max(gap, (b.time_ns - a.time_ns) * 1e-9 + a.half + b.half)
    return (total, variance**0.5, covered, gap) if any_part else (None, None, 0.0, 0.0)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Update], list[tuple[int, float]]]:
    """Updates 20 ms to 1.5 s apart, of some segments; power readings before, among and after them."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from([20, 90, 100, 100, 110, 250, 251, 400, 1500]),
                st.floats(0.0, 90.0),
                st.integers(0, 40),
                st.sampled_from([0, 0, 0, 0, 0, 0, 1]),
            ),
            min_size=1,
            max_size=24,
        )
    )
    updates, time_ns, joules, segment = list[Update](), 2 * SECOND, 0.0, 0
    for step_ms, gained, half_ms, cut in steps:
        time_ns += step_ms * MS
        joules += gained
        segment += cut
        updates.append(Update(time_ns, joules, half_ms * 1e-3, segment))
    times = sorted(draw(st.sets(st.integers(1, time_ns // (50 * MS)), max_size=30)))
    powers = [
        (tick * 50 * MS, float(watts))
        for tick, watts in zip(times, draw_watts(draw, len(times)), strict=True)
    ]
    return updates, powers


def draw_watts(draw: st.DrawFn, count: int) -> list[int]:
    """Watts of which no two that follow each other are equal: those are one reading."""
    watts = draw(st.lists(st.integers(0, 700), min_size=count, max_size=count))
    return [2 * value + index % 2 for index, value in enumerate(watts)]


def filled(updates: list[Update], powers: list[tuple[int, float]]) -> EnergyTimeline:
    timeline = EnergyTimeline()
    for update in updates:
        half_ns = round(update.half * 1e9)
        timeline.add_update(
            CounterUpdate(update.time_ns - half_ns, update.time_ns + half_ns, update.joules, update.segment)
        )
    for time_ns, watts in powers:
        timeline.add_power(time_ns, watts)
    return timeline


@settings(max_examples=150, deadline=None)
@given(timelines(), st.data())
def test_a_window_is_what_comes_out_by_hand(
    made: tuple[list[Update], list[tuple[int, float]]], data: st.DataObject
) -> None:
    updates, powers = made
    timeline = filled(updates, powers)
    edges = st.one_of(
        st.integers(2 * SECOND - 200 * MS, updates[-1].time_ns + 200 * MS),
        st.sampled_from([update.time_ns for update in updates]),
    )
    start_ns, end_ns = sorted((data.draw(edges), data.draw(edges)))
    part = timeline.energy(start_ns, end_ns)
    joules, uncertainty, covered, gap = by_hand(updates, powers, start_ns, end_ns)
    assert part.joules == (None if joules is None else pytest.approx(joules, rel=1e-9, abs=1e-7))
    assert part.uncertainty_joules == (
        None if uncertainty is None else pytest.approx(uncertainty, rel=1e-6, abs=1e-5)
    )
    assert part.covered_seconds == pytest.approx(covered, abs=1e-9)
    assert part.gap_seconds == pytest.approx(gap, abs=1e-9)
    whole = start_ns < end_ns and covered >= (end_ns - start_ns) * 1e-9 - 1e-6
    assert part.flags == (frozenset() if whole else {Fault.PARTIAL_COVERAGE})
    assert part.complete == whole
    assert (part.start_ns, part.end_ns) == (start_ns, end_ns)


@given(timelines(), st.data())
def test_the_series_is_every_update_with_the_power_since_the_one_before(
    made: tuple[list[Update], list[tuple[int, float]]], data: st.DataObject
) -> None:
    updates, powers = made
    view = filled(updates, powers).view()
    ticks = st.sampled_from([update.time_ns + off for update in updates for off in (-1, 0, 1)])
    start_ns, end_ns = sorted((data.draw(ticks), data.draw(ticks)))
    times, joules, watts = view.series(start_ns, end_ns)
    expected = []
    for number, update in enumerate(updates):
        if start_ns <= update.time_ns <= end_ns:
            before = updates[number - 1] if number else None
            mean = np.nan
            if before is not None and before.segment == update.segment:
                mean = (update.joules - before.joules) / ((update.time_ns - before.time_ns) * 1e-9)
            expected.append((update.time_ns, update.joules, mean))
    assert times.tolist() == [one[0] for one in expected]
    assert joules.tolist() == [one[1] for one in expected]
    assert watts.tolist() == pytest.approx([one[2] for one in expected], nan_ok=True)


@given(timelines(), st.data())
def test_a_gap_ends_with_the_update_after_it(
    made: tuple[list[Update], list[tuple[int, float]]], data: st.DataObject
) -> None:
    updates, powers = made
    view = filled(updates, powers).view()
    at_ns = data.draw(st.integers(updates[0].time_ns - 50 * MS, updates[-1].time_ns + 50 * MS))
    expected = at_ns
    for a, b in pairwise(updates):
        seconds = (b.time_ns - a.time_ns) * 1e-9 + a.half + b.half
        if a.time_ns < at_ns <= b.time_ns and a.segment == b.segment and seconds > 1.0:
            expected = b.time_ns
    assert view.gap_end_ns(at_ns) == expected


def test_a_window_that_touches_a_gap_of_a_second_is_resolved_and_a_longer_one_is_not() -> None:
    for gap_ns, resolved in ((SECOND, True), (SECOND + 1000, False)):
        timeline = filled([Update(0, 0.0, 0.0, 0), Update(gap_ns, 100.0, 0.0, 0)], [])
        assert timeline.energy(0, gap_ns // 2).resolved is resolved
        assert timeline.view().gap_end_ns(SECOND // 2) == (SECOND // 2 if resolved else gap_ns)


@pytest.mark.parametrize(
    ("halves_ms", "wanted", "busy", "begin"),
    [
        ([5.0, 5.0, 5.0], None, None, 0),
        ([5.1, 40.0, 5.0], None, None, 2),
        ([40.0] * 21, None, None, None),  # 2 s: one may come yet
        ([40.0] * 22, None, None, 0),
        ([40.0] * 20 + [5.0], None, None, 20),
        ([40.0] * 22 + [5.0], None, None, 0),  # far too late to wait for
        ([], None, None, None),
        ([5.0, 5.0, 5.0, 5.0], 2, None, 2),  # the last narrow one up to there
        ([5.0, 40.0, 40.0, 5.0], 2, None, 0),
        ([40.0, 40.0, 40.0, 5.0], 2, None, 3),
        ([40.0] * 23, 2, None, None),
        ([40.0] * 24, 2, None, 2),
        ([5.0, 40.0, 40.0, 5.0], 2, 1, 0),  # what works began before: what was read before that
        ([40.0, 40.0, 40.0, 5.0], 2, 1, 1),
        ([40.0, 40.0, 40.0, 5.0], 2, -1, 0),
        ([40.0, 5.0], None, 0, 0),
        ([40.0], None, 3, 0),
        ([5.0, 40.0, 40.0], None, 2, 0),
    ],
)
def test_accounting_begins_at_a_narrow_update_or_before_what_works(
    halves_ms: list[float], wanted: int | None, busy: int | None, begin: int | None
) -> None:
    def at(number: int) -> int:
        return SECOND + number * 100 * MS

    updates = [Update(at(i), 10.0 * i, half * 1e-3, 0) for i, half in enumerate(halves_ms)]
    view = filled(updates, []).view()
    found = view.begin_ns(0 if wanted is None else at(wanted), None if busy is None else at(busy))
    assert found == (None if begin is None else at(begin))
    assert view.covered_from_ns == (updates[0].time_ns if updates else None)
    assert view.covered_to_ns == (updates[-1].time_ns if updates else None)


def test_faults_are_flagged_where_they_overlap_and_are_in_a_view_until_they_end() -> None:
    timeline = EnergyTimeline()
    timeline.add_fault(FaultInterval("gpu", Fault.TIMEOUT, 10, 20))
    timeline.add_fault(FaultInterval("gpu", Fault.GPU_LOST, 30))
    for asked in (timeline, timeline.view()):
        assert asked.flags(0, 10) == asked.flags(20, 30) == frozenset()
        assert asked.flags(9, 11) == asked.flags(19, 20) == {Fault.TIMEOUT}
        assert asked.flags(30, 31) == asked.flags(99, 100) == {Fault.GPU_LOST}
    assert [fault.fault for fault in timeline.view(19).faults] == [Fault.TIMEOUT, Fault.GPU_LOST]
    assert [fault.fault for fault in timeline.view(20).faults] == [Fault.GPU_LOST]


def test_an_update_is_placed_after_the_one_before_and_a_power_is_not_taken_again() -> None:
    timeline = EnergyTimeline()
    timeline.add_update(CounterUpdate(0, 200, 1.0))
    timeline.add_update(CounterUpdate(50, 150, 2.0))
    timeline.add_update(CounterUpdate(0, 204, 3.0))
    for time_ns, watts in ((10, 100.0), (20, 100.0), (20, 101.0), (30, 102.0), (30, 103.0), (29, 104.0)):
        timeline.add_power(time_ns, watts)
    view = timeline.view()
    assert view.times_ns.tolist() == [100, 101, 102]
    assert view.half_seconds.tolist() == pytest.approx([100e-9, 50e-9, 102e-9], rel=1e-12)
    assert list(zip(view.power_times_ns.tolist(), view.power_watts.tolist(), strict=True)) == [
        (10, 100.0),
        (20, 101.0),
        (30, 102.0),
    ]


def test_memory_holds_an_hour_of_updates_and_of_powers() -> None:
    """A counter moves 10 times a second at most; there is room for 12."""
    timeline, small = EnergyTimeline(), EnergyTimeline(history_seconds=0.5)
    for tick in range(43_300):
        timeline.add_update(CounterUpdate(tick * 10, tick * 10, float(tick)))
        timeline.add_power(tick * 10, float(tick))
    for tick in range(40):
        small.add_update(CounterUpdate(tick * 10, tick * 10, float(tick)))
        small.add_power(tick * 10, float(tick))
    assert len(timeline.view().times_ns) == len(timeline.view().power_times_ns) == 43_200
    assert len(small.view().times_ns) == len(small.view().power_times_ns) == 16


def test_a_part_is_complete_where_it_has_joules_and_all_is_covered() -> None:
    assert Interval(0, 1, 1.0, 0.0, 1e-9, frozenset({Fault.TIMEOUT})).complete
    assert not Interval(0, 1, None, None, 0.0, frozenset()).complete
    assert not Interval(0, 1, 1.0, 0.0, 0.0, frozenset({Fault.PARTIAL_COVERAGE})).complete


def test_the_newest_ten_thousand_faults_are_kept() -> None:
    timeline = EnergyTimeline()
    for number in range(10_003):
        timeline.add_fault(FaultInterval("gpu", Fault.TIMEOUT, number, number + 1))
    faults = timeline.view().faults
    assert (len(faults), faults[0].start_ns) == (10_000, 3)


def test_a_window_after_a_cut_is_not_that_before_it() -> None:
    before = [Update(100 * k * MS, 10.0 * k, 0.0, 0) for k in range(3)]
    after = [Update((300 + 100 * k) * MS, 20.0 + 30.0 * k, 0.0, 1) for k in range(5)]
    part = filled(before + after, []).energy(320 * MS, 400 * MS)
    assert part.joules == pytest.approx(24.0)
    assert part.flags == frozenset()
    first = filled(after, []).energy(0, 350 * MS)
    assert first.joules == pytest.approx(15.0)
    assert first.covered_seconds == pytest.approx(0.05)
