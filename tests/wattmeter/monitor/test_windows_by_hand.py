"""The energy of a window out of seconds whose every part is known, figured out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate, FaultInterval
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.meters.base import Device
from wattmeter.monitor.settler import Notice, SettledSecond, Totals
from wattmeter.monitor.windows import (
    COMPONENTS,
    MAX_NOTICES,
    DeviceView,
    History,
    WindowView,
    settled_joules,
    share_inside,
    window_energy,
)

SECOND = 1_000_000_000


def device(watts: float, seconds: int = 10, name: str = "d") -> DeviceView:
    """So many watts all the time, and 3 W more in every other second."""
    timeline, joules = EnergyTimeline(history_seconds=60), 0.0
    for tenth in range(seconds * 10 + 1):
        at = tenth * SECOND // 10
        timeline.add_update(CounterUpdate(at - 1000, at + 1000, joules, 0))
        joules += (watts + (3.0 if tenth // 10 % 2 else 0.0)) / 10
    return DeviceView(Device(name, f"name of {name}", "nvml", None), timeline.view())


def second(number: int, *, idle: float | None = 40.0) -> SettledSecond:
    """100 J (103 J): idle power, 2 J prefill, 30 J decode, the rest nobody's."""
    joules = 103.0 if number % 2 else 100.0
    nobody = joules - (idle or 0.0) - 32.0
    groups = {"a": 20.0, "b" if number % 2 else "c": 12.0}
    start_ns = number * SECOND
    return SettledSecond(
        start_ns, start_ns + SECOND, joules, 1.0, idle, 2.0, 30.0, nobody, groups, frozenset()
    )


def window(start: float, end: float, seconds: list[SettledSecond], **changes: object) -> WindowView:
    plain = WindowView(
        round(start * SECOND), round(end * SECOND), (device(100.0),), seconds, 40.0, frozenset()
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_whole_seconds_are_added_up() -> None:
    view = window(1.0, 4.0, [second(1), second(2), second(3)])
    got = window_energy(101.0, 104.0, view)
    assert got.total_joules == pytest.approx(306.0)
    assert (got.idle_joules, got.prefill_joules, got.decode_joules) == (120.0, 6.0, 90.0)
    assert got.unattributed_joules == pytest.approx(90.0)
    assert got.groups == {"a": 60.0, "b": 24.0, "c": 12.0}
    assert (got.start_unix, got.end_unix, got.complete, got.reason) == (101.0, 104.0, True, None)
    assert got.flags == frozenset()
    (part,) = got.devices
    assert (part.id, part.name, part.source) == ("d", "name of d", "nvml")
    assert part.joules == pytest.approx(306.0)
    assert part.covered_seconds == pytest.approx(3.0)
    assert got.uncertainty_joules == pytest.approx(part.uncertainty_joules)
    assert settled_joules(view) == {
        "prefill": 6.0,
        "decode": 90.0,
        "idle": 120.0,
        "unattributed": pytest.approx(90.0),
    }


def test_seconds_that_the_window_cuts_give_their_parts() -> None:
    view = window(1.75, 3.5, [second(1), second(2), second(3)])
    got = window_energy(0.0, 1.75, view)
    assert got.total_joules == pytest.approx(0.25 * 103.0 + 100.0 + 0.5 * 103.0)
    assert got.idle_joules == pytest.approx(1.75 * 40.0)
    assert got.prefill_joules == pytest.approx(1.75 * 2.0)
    assert got.decode_joules == pytest.approx(1.75 * 30.0)
    assert got.groups == pytest.approx({"a": 35.0, "b": 9.0, "c": 12.0})
    assert got.complete
    parts = settled_joules(view)
    assert parts == pytest.approx(
        {"prefill": 3.5, "decode": 52.5, "idle": 70.0, "unattributed": 0.25 * 31 + 28 + 0.5 * 31}
    )
    assert tuple(parts) == COMPONENTS == ("prefill", "decode", "idle", "unattributed")


def test_what_is_not_settled_yet_idles_at_the_idle_power_as_far_as_it_is_covered() -> None:
    got = window_energy(0.0, 3.0, window(1.0, 4.0, [second(1)]))
    assert not got.complete
    assert got.total_joules == pytest.approx(306.0)
    assert got.idle_joules == pytest.approx(40.0 + 2.0 * 40.0)
    assert got.unattributed_joules == pytest.approx(306.0 - 32.0 - 120.0)
    half = window_energy(0.0, 1.5, window(1.0, 2.5, [second(1)]))
    assert half.idle_joules == pytest.approx(40.0 + 0.5 * 40.0)
    late = window_energy(0.0, 4.0, window(8.0, 12.0, [second(8)]))
    assert late.idle_joules == pytest.approx(40.0 + 40.0)
    assert Fault.PARTIAL_COVERAGE in late.flags
    assert not late.complete


def test_a_window_is_complete_up_to_a_microsecond() -> None:
    for missing_ns, complete in ((999, True), (1001, False)):
        view = window(1.0, 2.0, [second(1)])
        view = replace(view, end_ns=view.end_ns + missing_ns, idle_watts=None)
        got = window_energy(0.0, 1.0, view)
        assert got.complete is complete
        assert (got.idle_joules is None) is not complete
        assert (Fault.IDLE_NOT_MEASURED in got.flags) is not complete


def test_idle_of_a_second_that_nobody_knows_is_unknown_for_the_window() -> None:
    for order in ([1, 2], [2, 1]):
        seconds = [
            second(1, idle=None if order[0] == 1 else 40.0),
            second(2, idle=None if order[1] == 1 else 40.0),
        ]
        view = window(1.0, 3.0, seconds)
        got = window_energy(0.0, 2.0, view)
        assert got.idle_joules is None
        assert got.unattributed_joules == pytest.approx(203.0 - 64.0)
        assert got.complete
        assert settled_joules(view)["idle"] == 40.0


def test_a_second_without_joules_has_no_part_and_its_flags_stay() -> None:
    lost = replace(second(2), joules=None, flags=frozenset({Fault.COUNTER_RESET}))
    view = window(1.0, 4.0, [second(1), lost, second(3)])
    got = window_energy(0.0, 3.0, view)
    assert (got.prefill_joules, got.decode_joules) == (4.0, 60.0)
    assert Fault.COUNTER_RESET in got.flags
    assert not got.complete
    assert got.idle_joules == pytest.approx(120.0)
    assert settled_joules(view)["prefill"] == 4.0


def test_devices_are_added_up_and_their_errors_in_squares() -> None:
    pair = (device(60.0, name="a"), replace(device(40.0, name="b"), flags=frozenset({Fault.MIG})))
    got = window_energy(0.0, 2.0, window(1.5, 3.5, [second(1), second(2), second(3)], devices=pair))
    assert got.total_joules == pytest.approx(sum(part.joules or 0.0 for part in got.devices))
    squares = sum((part.uncertainty_joules or 0.0) ** 2 for part in got.devices)
    assert squares > 0.0
    assert got.uncertainty_joules == pytest.approx(squares**0.5)
    assert got.flags == {Fault.MIG}
    assert [part.flags for part in got.devices] == [frozenset(), {Fault.MIG}]


def test_one_device_without_joules_leaves_no_sum() -> None:
    pair = (device(100.0), device(100.0, seconds=1, name="short"))
    got = window_energy(5.0, 6.0, window(5.0, 6.0, [second(5)], devices=pair, reason="no steps"))
    assert (got.total_joules, got.uncertainty_joules, got.idle_joules) == (None, None, None)
    assert (got.prefill_joules, got.decode_joules, got.unattributed_joules) == (None, None, None)
    assert (got.complete, got.reason) == (False, "no steps")
    assert (got.start_unix, got.end_unix) == (5.0, 6.0)
    assert [part.joules is None for part in got.devices] == [False, True]
    assert Fault.PARTIAL_COVERAGE in got.flags


def test_without_attribution_nobody_is_charged() -> None:
    idle_only = replace(second(1), prefill_joules=0.0, decode_joules=0.0, groups={})
    got = window_energy(0.0, 1.0, window(1.0, 2.0, [idle_only], reason="no steps are recorded"))
    assert (got.prefill_joules, got.decode_joules) == (None, None)
    assert got.unattributed_joules == pytest.approx(63.0)
    assert got.reason == "no steps are recorded"


def test_flags_of_a_window_are_kept() -> None:
    got = window_energy(0.0, 1.0, window(1.0, 2.0, [second(1)], flags=frozenset({Fault.CLOCK_STEP})))
    assert got.flags == {Fault.CLOCK_STEP}
    assert got.complete


@given(st.integers(0, 2 * SECOND), st.integers(0, 2 * SECOND))
def test_a_share_is_of_what_is_above_idle(a: int, b: int) -> None:
    """A quarter above idle in the first second, three quarters in the second."""
    start_ns, end_ns = min(a, b), max(a, b)
    timeline = EnergyTimeline()
    for at, joules in ((0, 0.0), (SECOND, 150.0), (2 * SECOND, 400.0)):
        timeline.add_update(CounterUpdate(at, at, joules, 0))
    view = DeviceView(Device("d", "d", "nvml", None), timeline.view())
    both = SettledSecond(0, 2 * SECOND, 400.0, 0.0, 200.0, 0.0, 200.0, 0.0, {}, frozenset())
    seconds, share = share_inside(both, start_ns, end_ns, [view])
    assert seconds == pytest.approx((end_ns - start_ns) * 1e-9)
    first = max(min(end_ns, SECOND) - start_ns, 0) * 1e-9
    assert share == pytest.approx(first * 0.25 + (seconds - first) * 0.75, abs=1e-9)


def test_a_share_is_that_of_the_time_where_energy_does_not_tell() -> None:
    both = SettledSecond(0, 2 * SECOND, 200.0, 0.0, 60.0, 0.0, 140.0, 0.0, {}, frozenset())
    views = [device(100.0)]
    at_idle = replace(both, idle_joules=200.0)
    below = replace(both, idle_joules=201.0)
    unknown = replace(both, joules=None)
    short = [device(100.0), device(100.0, seconds=0)]
    for what, devices in ((at_idle, views), (below, views), (unknown, views), (both, short)):
        assert share_inside(what, 0, SECOND // 2, devices) == pytest.approx((0.5, 0.25))
    no_idle = replace(both, idle_joules=None)
    assert share_inside(no_idle, 0, SECOND, views) == pytest.approx((1.0, 0.5))
    assert share_inside(both, -SECOND, 5 * SECOND, views) == (2.0, 1.0)


# --- what is remembered -------------------------------------------------------------------------------------


def test_seconds_are_found_that_overlap_and_not_those_that_touch() -> None:
    history = History(60.0)
    history.add([second(number) for number in range(5)])
    found = history.seconds(SECOND, 3 * SECOND)
    assert [one.start_ns // SECOND for one in found] == [1, 2]
    assert [one.start_ns // SECOND for one in history.seconds(SECOND - 1, 3 * SECOND + 1)] == [0, 1, 2, 3]
    assert history.seconds(9 * SECOND, 10 * SECOND) == []


def test_seconds_are_kept_for_the_history_and_an_eighth_more() -> None:
    history = History(16.0)
    history.add([])
    kept = []
    for number in range(40):
        history.add([second(number)])
        kept.append(len(history.seconds(0, 100 * SECOND)))
    assert kept[:19] == list(range(1, 20))
    assert kept[19:22] == [16, 17, 18]
    assert min(kept[15:]) == 16
    assert max(kept) == 19


def test_notices_are_one_where_fault_and_time_go_on() -> None:
    history = History(60.0)
    for fault, start, end in (
        (Fault.LOST_STEP_RECORDS, 0, 5),
        (Fault.UNKNOWN_ERROR, 5, 9),
        (Fault.UNKNOWN_ERROR, 9, 12),
        (Fault.UNKNOWN_ERROR, 13, 15),
    ):
        history.notice(Notice(fault, start, end))
    told = [(one.fault, one.start_ns, one.end_ns) for one in history.notices(0)]
    assert told == [
        (Fault.LOST_STEP_RECORDS, 0, 5),
        (Fault.UNKNOWN_ERROR, 5, 12),
        (Fault.UNKNOWN_ERROR, 13, 15),
    ]
    assert [one.start_ns for one in history.notices(5)] == [5, 13]
    assert [one.start_ns for one in history.notices(4, 5)] == [0]
    assert [one.start_ns for one in history.notices(4, 6)] == [0, 5]
    assert [one.start_ns for one in history.notices(12, 14)] == [13]
    assert Notice(Fault.TIMEOUT, 10, 20).overlaps(19, 30)
    assert Notice(Fault.TIMEOUT, 10, 20).overlaps(0, 11)
    assert not Notice(Fault.TIMEOUT, 10, 20).overlaps(20, 30)
    assert not Notice(Fault.TIMEOUT, 10, 20).overlaps(0, 10)


def test_notices_are_bounded() -> None:
    history = History(60.0)
    for number in range(MAX_NOTICES + 5):
        history.notice(Notice(Fault.TIMEOUT, 3 * number, 3 * number + 1))
    assert (len(history.notices(0)), history.notices(0)[0].start_ns) == (10_000, 15)


def test_totals_are_summed_from_what_has_joules() -> None:
    totals = Totals()
    assert totals.conservation_error_ratio() == 0.0
    for one in (second(1), replace(second(2), joules=None), second(3, idle=None)):
        totals = totals.plus(one)
    assert totals.as_buckets() == {
        "prefill": 4.0,
        "decode": 60.0,
        "idle": 40.0,
        "unattributed": 31.0 + 71.0,
    }
    assert totals.counter_joules == 206.0
    assert totals.conservation_error_ratio() == 0.0
    assert Totals(1.0, 2.0, 3.0, 5.0, 10.0).conservation_error_ratio() == pytest.approx(0.1)
    assert Totals(1.0, 2.0, 3.0, 4.0, 8.0).conservation_error_ratio() == pytest.approx(0.25)


def test_a_fault_of_a_device_is_a_flag_of_its_windows() -> None:
    timeline = EnergyTimeline()
    for at, joules in ((0, 0.0), (SECOND, 100.0)):
        timeline.add_update(CounterUpdate(at, at, joules, 0))
    timeline.add_fault(FaultInterval("d", Fault.STALE_SENSOR, 0, SECOND // 2))
    view = DeviceView(Device("d", "d", "nvml", None), timeline.view())
    assert view.energy(0, SECOND).flags == {Fault.STALE_SENSOR}
    assert view.energy(SECOND // 2, SECOND).flags == frozenset()


def test_what_is_missing_idles_as_far_as_every_device_is_covered() -> None:
    pair = (device(60.0, name="a"), device(40.0, seconds=3, name="b"))
    got = window_energy(0.0, 4.0, window(1.0, 5.0, [second(1)], devices=pair))
    assert got.idle_joules == pytest.approx(40.0 + 40.0)
    unknown = window_energy(0.0, 3.0, window(1.0, 4.0, [second(1, idle=None)]))
    assert (unknown.idle_joules, unknown.complete) == (None, False)


def test_without_idle_power_a_share_is_that_of_all_joules() -> None:
    timeline = EnergyTimeline()
    for at, joules in ((0, 0.0), (SECOND, 150.0), (2 * SECOND, 400.0)):
        timeline.add_update(CounterUpdate(at, at, joules, 0))
    view = DeviceView(Device("d", "d", "nvml", None), timeline.view())
    both = SettledSecond(0, 2 * SECOND, 400.0, 0.0, None, 0.0, 400.0, 0.0, {}, frozenset())
    assert share_inside(both, 0, SECOND, [view])[1] == pytest.approx(0.375, rel=1e-9)


def test_a_settled_stretch_is_not_always_a_second_long() -> None:
    """Half of a stretch of half a second has half of its idle energy, not a quarter's or twice of it."""
    stretch = replace(second(2), end_ns=2 * SECOND + SECOND // 2, joules=50.0, idle_joules=20.0)
    view = window(2.0, 2.25, [stretch])
    assert window_energy(0.0, 0.25, view).idle_joules == pytest.approx(10.0)
    assert settled_joules(view)["idle"] == pytest.approx(10.0)
