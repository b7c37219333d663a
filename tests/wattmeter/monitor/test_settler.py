"""How time is cut into seconds, what each waits for, and what becomes of each second's joules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from meter_fakes import MS, SECOND, batch
from wattmeter.attribution.tenants import Arrival
from wattmeter.energy_model.step_model import StepModel
from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate, FaultInterval
from wattmeter.metering.idle_power import IdleTracker
from wattmeter.metering.timeline import EnergyTimeline, TimelineView
from wattmeter.monitor.settler import Collected, Notice, Progress, SettledSecond, Settler
from wattmeter.steps.batch import StepBatch

# A step costs 10 J and is short: tenants need no factors.
MODEL = StepModel(10.0, 0.01, 1.0, 0.0, residual_fraction=0.1, trusted=True)
T0 = 100 * SECOND


def at(seconds: float) -> int:
    return T0 + round(seconds * SECOND)


def view(
    seconds: float,
    watts: Callable[[int], float] = lambda tenth: 100.0,
    *,
    half_ms: float = 1.0,
    begin: float = 0.0,
    without: range = range(0),
    faults: tuple[FaultInterval, ...] = (),
) -> TimelineView:
    """A device read every 100 ms, of so many watts in each tenth of a second."""
    timeline, joules, half_ns = EnergyTimeline(), 0.0, round(half_ms * MS)
    for tenth in range(round(begin * 10), round(seconds * 10) + 1):
        now = at(tenth / 10)
        if tenth not in without:
            timeline.add_update(CounterUpdate(now - half_ns, now + half_ns, joules, 0))
        joules += watts(tenth) / 10
    for fault in faults:
        timeline.add_fault(fault)
    return timeline.view()


def steps(*spans: tuple[float, float, str], first_index: int = 0) -> StepBatch:
    """Steps of [launch, end) seconds, each decoding a token of the requests named by letters."""
    return batch([(at(a), at(b), [(name, 0, 1, 10) for name in names]) for a, b, names in spans], first_index)


def collected(now: float, timelines: TimelineView | list[TimelineView], **rest: Any) -> Collected:
    views = timelines if isinstance(timelines, list) else [timelines]
    by_name = {f"g{number}": one for number, one in enumerate(views)}
    return Collected(at(now), 1e9 + now, rest.pop("model", MODEL), by_name, **rest)


def settler(idle_watts: float | None = 100.0, **options: Any) -> Settler:
    return Settler(IdleTracker(idle_watts), **options)


def advance(own: Settler, new: Collected) -> Progress:
    progress = Progress()
    own.advance(new, progress)
    return progress


def spans(progress: Progress) -> list[tuple[float, float]]:
    return [
        (round((one.start_ns - T0) * 1e-9, 9), round((one.end_ns - T0) * 1e-9, 9)) for one in progress.seconds
    ]


def frontier(own: Settler) -> float | None:
    ns = own.state.frontier_ns
    return None if ns is None else (ns - T0) * 1e-9


# --- how far ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "settled"),
    [
        ({}, 9.7),  # records may be on their way for 0.3 s
        ({"active": 1}, 5.0),  # a step may be under way, for 5 s
        ({"active": 1, "batches": [steps((6.0, 8.2, "a"))]}, 8.0),
        ({"active": 1, "batches": [steps((6.0, 9.9, "a"))]}, 9.0),
        ({"active": 1, "batches": [steps((1.0, 2.5, "a"))]}, 5.0),
        ({"batches": [steps((6.0, 8.2, "a"))]}, 9.7),
        ({"complete_ns": at(7.5)}, 7.5),
        ({"complete_ns": at(2.0)}, 5.0),
        ({"complete_ns": at(50.0)}, 9.7),
        ({"complete_ns": at(7.5), "patient": False}, 9.7),
        ({"complete_ns": at(9.5), "active": 1}, 5.0),
    ],
)
def test_it_settles_as_far_as_everything_is_known(rest: dict[str, Any], settled: float) -> None:
    own = settler()
    progress = advance(own, collected(10.0, view(10.0), **rest))
    assert frontier(own) == pytest.approx(settled)
    assert spans(progress)[-1][1] == pytest.approx(settled)
    assert spans(progress)[0][0] == 0.0
    assert all(a[1] == b[0] for a, b in pairwise(spans(progress)))
    assert all(end - start <= 1.0 + 1e-9 for start, end in spans(progress))


@pytest.mark.parametrize(
    ("known", "active", "expected"),
    [
        (0.24, 0, []),
        (0.25, 0, [(0.0, 0.2)]),  # up to an update of the counter
        (0.35, 0, [(0.0, 0.3)]),
        (0.99, 1, []),
        (1.0, 1, [(0.0, 1.0)]),
        (1.9, 1, [(0.0, 1.0)]),
    ],
)
def test_a_second_is_a_quarter_at_least_at_rest_and_whole_while_requests_run(
    known: float, active: int, expected: list[tuple[float, float]]
) -> None:
    own = settler()
    ended = [steps((0.0, known, "a"))] if active else []
    progress = advance(own, collected(known + 0.3, view(2.0), active=active, batches=ended))
    assert spans(progress) == expected


def test_a_second_ends_at_an_update_and_a_step_in_the_next_interval_loses_nothing() -> None:
    """Of an interval that a quiet second cut in two, the step's joules would be spread over both parts."""
    burst = view(3.0, lambda tenth: 300.0 if tenth == 4 else 100.0)  # 20 J above idle between 0.4 and 0.5 s
    own = settler()
    quiet = advance(own, collected(0.75, burst))
    assert spans(quiet) == [(0.0, 0.4)]
    assert quiet.seconds[0].unattributed_joules == pytest.approx(0.0)
    busy = advance(own, collected(2.0, burst, batches=[steps((0.46, 0.48, "a"))]))
    assert sum(one.decode_joules for one in busy.seconds) == pytest.approx(20.0)


def test_all_devices_set_the_end_and_the_beginning() -> None:
    own = settler(200.0)
    progress = advance(own, collected(20.0, [view(10.0, begin=1.0), view(8.0)]))
    assert spans(progress)[0] == (1.0, 2.0)
    assert spans(progress)[-1] == (7.0, 8.0)
    assert [one.joules for one in progress.seconds] == pytest.approx([200.0] * 7)


def test_nothing_begins_before_each_device_has_an_exact_update() -> None:
    own = settler(200.0)
    vague = view(1.0, half_ms=40.0)
    assert advance(own, collected(20.0, [view(10.0), vague])).seconds == []
    assert (frontier(own), own.state.scale) == (None, None)
    assert advance(own, collected(20.0, [view(10.0), EnergyTimeline().view()])).seconds == []
    assert frontier(own) is None
    assert advance(own, collected(20.0, [view(10.0), view(3.0, half_ms=40.0)])).seconds != []


def test_a_gap_is_one_stretch_for_all_devices() -> None:
    own = settler(200.0)
    broken = view(10.0, without=range(25, 52))
    progress = advance(own, collected(20.0, [view(10.0), broken]))
    assert spans(progress)[:5] == [(0.0, 1.0), (1.0, 2.0), (2.0, 5.2), (5.2, 6.2), (6.2, 7.2)]
    assert [one.resolved for one in progress.seconds[:4]] == [True, True, False, True]
    assert progress.seconds[2].joules == pytest.approx(640.0)
    assert progress.seconds[2].seconds == pytest.approx(3.2)
    until = advance(settler(200.0), collected(5.0, [view(10.0), broken]))
    assert spans(until)[-1] == (1.0, 2.0)


# --- idle power comes first ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "rest", "count"),
    [
        (1.9, {}, 0),
        (2.1, {}, 3),
        (1.9, {"active": 1}, 1),
        (1.9, {"batches": [steps((0.5, 0.7, "a"))]}, 2),
    ],
)
def test_the_first_seconds_wait_until_idle_power_is_measured(
    known: float, rest: dict[str, Any], count: int
) -> None:
    own = settler(None)
    if rest.get("active"):
        rest = {**rest, "batches": [steps((0.0, known, "a"))]}
    progress = advance(own, collected(known + 0.3, view(12.0), **rest))
    assert len(progress.seconds) == (count if known != 2.1 else 2)
    if known == 2.1:
        assert own.state.idle.watts == pytest.approx(100.0)
        assert [one.idle_joules for one in progress.seconds] == pytest.approx([100.0, 100.0])


@pytest.mark.parametrize(("known", "settles"), [(9.9, False), (10.1, True)])
def test_who_never_holds_still_is_waited_for_ten_seconds(known: float, settles: bool) -> None:
    def restless(tenth: int) -> float:
        return 100.0 + 100.0 * (tenth // 10 % 2)

    own = settler(None)
    progress = advance(own, collected(known + 0.3, view(12.0, restless)))
    assert bool(progress.seconds) is settles
    assert own.state.idle.watts is None
    for one in progress.seconds:
        assert (one.idle_joules, one.flags) == (None, frozenset({Fault.IDLE_NOT_MEASURED}))
        assert one.unattributed_joules == one.joules
    assert advance(settler(None, wait_for_idle=False), collected(1.3, view(12.0, restless))).seconds
    assert advance(settler(150.0), collected(1.3, view(12.0, restless))).seconds


def test_what_is_flagged_while_it_waits_is_no_idle_power() -> None:
    fault = FaultInterval("g", Fault.SHARED_DEVICE, at(1.2), at(1.3))
    for known, settles in ((3.9, False), (4.0, True)):
        own = settler(None)
        progress = advance(own, collected(known + 0.3, view(12.0, faults=(fault,))))
        assert bool(progress.seconds) is settles


def test_where_a_device_is_not_covered_nothing_is_waited_for() -> None:
    timeline = EnergyTimeline()
    for tenth in range(31):
        segment = 0 if tenth < 5 else 1
        timeline.add_update(CounterUpdate(at(tenth / 10), at(tenth / 10), 10.0 * tenth, segment))
    progress = advance(settler(None), collected(1.8, timeline.view()))
    assert spans(progress) == [(0.0, 1.0), (1.0, 1.5)]
    assert progress.seconds[0].joules is None
    assert Fault.PARTIAL_COVERAGE in progress.seconds[0].flags


def test_idle_power_is_measured_three_seconds_after_the_last_step() -> None:
    def calming(tenth: int) -> float:
        return 300.0 if tenth < 20 else 120.0 if tenth < 50 else 100.0

    own = settler(None, wait_for_idle=False)
    progress = advance(own, collected(12.3, view(12.5, calming), batches=[steps((0.0, 2.0, "a"))]))
    measured = [one.idle_joules is not None for one in progress.seconds]
    assert measured == [False] * 6 + [True] * 6
    assert own.state.idle.watts == pytest.approx(100.0)
    assert own.state.idle.measured_unix == 1e9 + 12.3


def test_while_requests_run_or_a_fault_lasts_no_idle_power_is_measured() -> None:
    ended = [steps((0.0, 0.1, "a"))]
    own = settler(None, wait_for_idle=False)
    advance(own, collected(17.3, view(12.5), batches=ended, active=1))
    assert own.state.idle.watts is None
    fault = FaultInterval("g", Fault.SHARED_DEVICE, at(0.0), None)
    own = settler(None, wait_for_idle=False)
    advance(own, collected(12.3, view(12.5, faults=(fault,))))
    assert own.state.idle.watts is None


def test_a_stretch_whose_readings_are_far_apart_teaches_no_idle_power() -> None:
    """It agrees with the idle power around it, but nobody saw the device hold still."""
    idle = IdleTracker(None)
    own = Settler(idle)
    far_apart = view(12.0, lambda tenth: 103.0 if 40 <= tenth < 90 else 100.0, without=range(41, 90))
    progress = advance(own, collected(12.0, far_apart))
    (gap,) = [one for one in progress.seconds if not one.resolved]
    assert gap.seconds == pytest.approx(5.0)
    assert not gap.flags
    assert gap.idle_joules == pytest.approx(500.0)
    assert idle.watts == pytest.approx(100.0, rel=1e-6)


def test_use_and_limits_are_passed_on_to_idle_power() -> None:
    for rest, known in (({}, True), ({"in_use": True}, False), ({"power_limit_watts": 150.0}, False)):
        own = settler(None, wait_for_idle=False)
        advance(own, collected(5.3, view(5.5), **rest))
        assert (own.state.idle.watts is not None) is known
    own = settler(None, wait_for_idle=False)
    advance(own, collected(5.3, view(5.5), in_use=False))
    assert own.state.idle.watts == pytest.approx(100.0)


# --- what a second's joules become --------------------------------------------------------------------------


def test_a_second_without_steps_idles_and_the_rest_is_nobodys() -> None:
    own = settler(80.0)
    (one,) = advance(own, collected(1.3, view(2.0))).seconds
    assert (one.idle_joules, one.prefill_joules, one.decode_joules) == (80.0, 0.0, 0.0)
    assert one.unattributed_joules == pytest.approx(20.0)
    assert (one.groups, one.flags, one.resolved) == ({}, frozenset(), True)
    totals = own.state.totals
    assert (totals.idle, totals.unattributed, totals.counter_joules) == pytest.approx((80.0, 20.0, 100.0))


def test_a_second_with_steps_is_divided_over_their_requests() -> None:
    own = settler(80.0)
    arrivals = {"a": Arrival("red", at(0.0)), "b": Arrival("blue", at(0.0))}
    work = batch(
        [(at(0.2), at(0.4), [("a", 300, 0, 0), ("b", 0, 1, 10)]), (at(0.4), at(0.6), [("b", 0, 1, 10)])]
    )
    progress = advance(own, collected(1.3, view(2.0), batches=[work], arrivals=arrivals))
    (one,) = progress.seconds
    (share,) = progress.shares
    # The model's joules: a 3 + 5, b 1 + 5 + 1 + 10; 25 J for 20 J above idle.
    assert share.request_ids == ("a", "b")
    assert share.split is not None
    assert share.variance is not None
    assert share.split.request_joules.tolist() == pytest.approx([6.4, 13.6])
    assert (one.prefill_joules, one.decode_joules) == pytest.approx((6.4, 13.6))
    assert one.groups == pytest.approx({"red": 6.4, "blue": 13.6})
    assert one.unattributed_joules == pytest.approx(0.0, abs=1e-9)
    assert one.flags == share.flags == frozenset()
    own_error = np.array([0.1 * 6.4, 0.1 * 13.6])
    shared_error = one.uncertainty_joules * np.array([6.4, 13.6]) / 20.0
    assert one.uncertainty_joules > 0.0
    assert share.variance.tolist() == pytest.approx((own_error**2 + shared_error**2).tolist())
    (sample,) = progress.samples
    assert (sample.start_ns, sample.end_ns) == (at(0.0), at(1.0))
    assert sample.joules_above_idle == pytest.approx(20.0)
    assert sample.work.batch.request_ids == ("a", "b")
    assert own.state.scale == pytest.approx(0.8)


def test_requests_of_a_group_share_its_part_of_a_step() -> None:
    """Two of red and one of blue: each tenant pays half of what the step costs whoever is in it."""
    own = settler(80.0)
    arrivals = {
        name: Arrival(group, at(0.0)) for name, group in zip("abc", ("red", "red", "blue"), strict=True)
    }
    progress = advance(own, collected(1.3, view(2.0), batches=[steps((0.2, 0.4, "abc"))], arrivals=arrivals))
    # 13 J of the model: 5 J each and their tokens.
    assert progress.seconds[0].groups == pytest.approx({"red": 20 * 7 / 13, "blue": 20 * 6 / 13})
    alone = advance(settler(80.0), collected(1.3, view(2.0), batches=[steps((0.2, 0.4, "abc"))]))
    assert alone.seconds[0].groups == pytest.approx({"": 20.0})


def test_the_scale_follows_the_counter_slowly() -> None:
    own = settler(80.0)
    for number, scale in ((0, 20 / 11), (1, 0.7 * 20 / 11 + 0.3 * 20 / 22)):
        work = steps(*[(number + 0.2 * k, number + 0.2 * k + 0.1, "a") for k in range(1 + number)])
        advance(own, collected(1.3 + number, view(2.5), batches=[work]))
        assert own.state.scale == pytest.approx(scale)


def test_without_idle_power_all_is_divided_and_nothing_learnt() -> None:
    own = settler(None, wait_for_idle=False)
    progress = advance(own, collected(1.3, view(2.0), batches=[steps((0.2, 0.4, "a"))]))
    (one,) = progress.seconds
    assert one.idle_joules is None
    assert one.decode_joules == pytest.approx(100.0)
    assert one.flags == {Fault.IDLE_NOT_MEASURED}
    assert progress.samples == []


def test_a_model_that_is_not_trusted_is_flagged_and_learns() -> None:
    own = settler(80.0)
    model = replace(MODEL, trusted=False)
    progress = advance(own, collected(1.3, view(2.0), batches=[steps((0.2, 0.4, "a"))], model=model))
    assert progress.seconds[0].flags == {Fault.MODEL_NOT_TRUSTED}
    assert len(progress.samples) == 1


def test_a_second_with_a_fault_or_in_a_gap_teaches_nothing() -> None:
    fault = FaultInterval("g", Fault.SHARED_DEVICE, at(0.5), at(0.6))
    work = [steps((0.2, 0.4, "a"))]
    flagged = advance(settler(80.0), collected(1.3, view(2.0, faults=(fault,)), batches=work))
    assert flagged.seconds[0].flags == {Fault.SHARED_DEVICE}
    assert flagged.samples == []
    gap = advance(settler(80.0), collected(2.3, view(3.0, without=range(3, 18)), batches=work))
    assert spans(gap)[:2] == [(0.0, 0.2), (0.2, 1.8)]
    assert ([one.resolved for one in gap.seconds[:2]], gap.samples) == ([True, False], [])


def test_devices_are_added_up_and_their_errors_in_squares() -> None:
    pair = [view(2.0, half_ms=3.0), view(2.0, lambda tenth: 50.0, half_ms=4.0)]
    (one,) = advance(settler(150.0), collected(1.3, pair)).seconds
    assert one.joules == pytest.approx(150.0)
    parts = [own.energy(at(0.0), at(1.0)).uncertainty_joules or 0.0 for own in pair]
    assert min(parts) > 0.0
    assert one.uncertainty_joules == pytest.approx((parts[0] ** 2 + parts[1] ** 2) ** 0.5)


def test_a_device_that_missed_a_part_leaves_no_joules_and_its_requests_without_number() -> None:
    timeline = EnergyTimeline()
    for tenth in range(31):
        segment = 0 if tenth < 5 else 1
        timeline.add_update(CounterUpdate(at(tenth / 10), at(tenth / 10), 10.0 * tenth, segment))
    work = [steps((0.2, 0.4, "a"), (1.2, 1.4, "a"))]
    own = settler(200.0)
    progress = advance(own, collected(2.3, [view(3.0), timeline.view()], batches=work))
    first, second = progress.seconds
    assert (first.joules, first.uncertainty_joules, first.idle_joules) == (None, 0.0, None)
    assert first.flags == {Fault.PARTIAL_COVERAGE}
    assert second.joules == pytest.approx(200.0)
    assert [share.split is None for share in progress.shares] == [True, False]
    assert progress.shares[0].flags == {Fault.PARTIAL_COVERAGE}
    assert own.state.totals.counter_joules == pytest.approx(200.0)
    (row,) = progress.by_request()
    assert (row.request_id, row.missing, row.flags) == ("a", True, frozenset({Fault.PARTIAL_COVERAGE}))


def test_notices_flag_the_seconds_that_they_overlap() -> None:
    notices = [Notice(Fault.LOST_STEP_RECORDS, at(1.5), at(2.0)), Notice(Fault.CLOCK_STEP, at(2.9), at(3.1))]
    progress = advance(settler(), collected(4.3, view(5.0), notices=notices))
    assert [one.flags for one in progress.seconds] == [
        frozenset(),
        {Fault.LOST_STEP_RECORDS},
        {Fault.CLOCK_STEP},
        {Fault.CLOCK_STEP},
    ]


# --- steps over the edges -----------------------------------------------------------------------------------


def test_what_ran_before_the_first_update_has_joules_that_nobody_knows() -> None:
    own = settler(80.0)
    work = [steps((0.2, 0.4, "a"), (0.5, 1.5, "b"), (1.6, 1.7, "c"))]
    progress = advance(own, collected(2.3, view(3.0, begin=1.0), batches=work))
    assert (progress.shares[0].request_ids, progress.shares[0].split) == (("a", "b"), None)
    assert progress.shares[0].flags == {Fault.PARTIAL_COVERAGE}
    missing = {row.request_id: row.missing for row in progress.by_request()}
    assert missing == {"a": True, "b": True, "c": False}


def test_steps_of_settled_time_are_late_and_flagged_where_they_ran() -> None:
    own = settler(80.0)
    advance(own, collected(3.3, view(5.0)))
    assert frontier(own) == 3.0
    work = [steps((1.0, 1.5, "a"), (2.9, 3.2, "b"), (3.3, 3.5, "c"))]
    progress = advance(own, collected(4.3, view(5.0), batches=work))
    assert [(one.fault, one.start_ns, one.end_ns) for one in progress.notices] == [
        (Fault.LOST_STEP_RECORDS, at(1.0), at(1.5)),
        (Fault.LOST_STEP_RECORDS, at(2.9), at(3.0)),
    ]
    assert [late.request_ids for late in progress.late] == [("a", "b")]
    assert progress.seconds[0].flags == frozenset()
    assert progress.seconds[0].decode_joules == pytest.approx(20.0)


def test_steps_that_are_not_settled_are_estimated_by_what_the_counter_gained() -> None:
    own = settler(80.0)
    work = [steps((0.2, 0.4, "a"), (1.2, 1.4, "a"), (1.5, 1.6, "b"))]
    progress = advance(own, collected(1.3, view(2.0), batches=work, active=1))
    assert spans(progress) == [(0.0, 1.0)]
    assert progress.pending is not None
    estimated = dict(zip(progress.pending.request_ids, progress.pending.decode_joules.tolist(), strict=True))
    assert estimated == pytest.approx({"a": 20.0, "b": 20.0})
    by_name = {row.request_id: row for row in progress.by_request()}
    assert by_name["a"].decode_joules == pytest.approx(20.0)
    assert by_name["b"].decode_joules == 0.0
    assert by_name["a"].pending_decode_joules == pytest.approx(20.0)
    assert by_name["b"].pending_decode_joules == pytest.approx(20.0)
    assert own.waiting_entries == 2
    again = advance(own, collected(2.3, view(3.0), batches=[]))
    assert (own.waiting_entries, again.pending) == (0, None)


def test_shares_of_several_seconds_are_added_up_by_request() -> None:
    own = settler(80.0)
    work = [steps((0.2, 0.4, "ab"), (1.2, 1.4, "ab"))]
    model = replace(MODEL, trusted=False)
    progress = advance(own, collected(2.3, view(3.0), batches=work, model=model))
    rows = progress.by_request()
    variances = [share.variance for share in progress.shares]
    total = sum(float(one[0]) for one in variances if one is not None)
    assert [(row.request_id, row.missing, row.flags) for row in rows] == [
        ("a", False, frozenset({Fault.MODEL_NOT_TRUSTED})),
        ("b", False, frozenset({Fault.MODEL_NOT_TRUSTED})),
    ]
    assert [row.decode_joules for row in rows] == pytest.approx([20.0, 20.0])
    assert [row.prefill_joules for row in rows] == [0.0, 0.0]
    assert [row.variance for row in rows] == pytest.approx([total, total])


def test_a_second_knows_its_length_and_its_parts() -> None:
    one = SettledSecond(0, 1_500_000_000, 1.0, 0.0, None, 0.0, 0.0, 1.0, {}, frozenset())
    assert one.seconds == 1.5
    assert one.resolved


# --- seconds of several tenants -----------------------------------------------------------------------------


def shared(seconds: float) -> StepBatch:
    """A step of two tenants' requests every 100 ms."""
    return steps(*[(k / 10, (k + 1) / 10, "ab") for k in range(round(seconds * 10))])


TENANTS = {"a": Arrival("red", at(0.0)), "b": Arrival("blue", at(0.0))}
SLOW = replace(MODEL, fixed_seconds=0.1)


def test_seconds_of_two_tenants_wait_for_what_follows_unless_the_server_stops() -> None:
    for rest, settled in (({"active": 1}, 0), ({"active": 1, "patient": False}, 9)):
        own = settler(80.0)
        new = collected(9.5, view(10.0), batches=[shared(9.5)], arrivals=TENANTS, model=SLOW, **rest)
        assert len(advance(own, new).seconds) == settled


def test_they_are_settled_once_the_device_rests() -> None:
    own = settler(80.0)
    new = collected(9.5, view(10.0), batches=[shared(4.0)], arrivals=TENANTS, model=SLOW, complete_ns=at(9.5))
    progress = advance(own, new)
    assert frontier(own) == 9.0
    assert progress.seconds[0].groups == pytest.approx({"red": 10.0, "blue": 10.0})


def test_factors_that_cannot_be_computed_flag_their_block_and_settling_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ArithmeticError("no")

    monkeypatch.setattr("wattmeter.attribution.tenants.group_factors", fails)
    own = settler(80.0)
    new = collected(9.5, view(10.0), batches=[shared(4.0)], arrivals=TENANTS, model=SLOW, complete_ns=at(9.5))
    progress = advance(own, new)
    assert isinstance(progress.error, ArithmeticError)
    assert [(one.fault, one.start_ns, one.end_ns) for one in progress.notices] == [
        (Fault.UNKNOWN_ERROR, at(0.0), at(4.0))
    ]
    assert [Fault.UNKNOWN_ERROR in one.flags for one in progress.seconds] == [True] * 4 + [False] * 5
    assert progress.seconds[0].groups == pytest.approx({"red": 10.0, "blue": 10.0})


def test_once_begun_nothing_waits_for_idle_power_any_more() -> None:
    def restless(tenth: int) -> float:
        return 100.0 + 100.0 * (tenth // 10 % 2)

    own = settler(None)
    assert advance(own, collected(10.4, view(12.0, restless))).seconds
    assert spans(advance(own, collected(11.4, view(12.0, restless))))[-1] == (10.0, 11.0)


def test_a_counter_without_error_leaves_none() -> None:
    (one,) = advance(settler(80.0), collected(1.3, view(2.0, half_ms=0.0))).seconds
    assert one.uncertainty_joules == pytest.approx(0.0, abs=1e-6)


def test_the_first_idle_power_after_a_step_is_of_what_came_three_seconds_later() -> None:
    own = settler(None, wait_for_idle=False)
    progress = advance(own, collected(9.3, view(9.5), batches=[steps((0.0, 2.0, "a"))]))
    assert [one.idle_joules is not None for one in progress.seconds] == [False] * 6 + [True] * 3


def test_a_second_that_waits_is_counted_once_however_often_it_is_looked_at() -> None:
    own = settler(None)
    for _ in range(4):
        assert advance(own, collected(1.9, view(12.0))).seconds == []
    assert own.state.idle.watts is None
