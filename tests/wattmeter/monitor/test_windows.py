"""How a window divides the settled second that its edge cuts."""

from __future__ import annotations

import pytest

from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.meters.base import Device
from wattmeter.monitor.settler import Notice, SettledSecond
from wattmeter.monitor.windows import DeviceView, History, share_inside
from world import MODEL, World

SECOND = 1_000_000_000


def device() -> DeviceView:
    """100 W for a second, then 500 W for another."""
    timeline = EnergyTimeline(history_seconds=60)
    joules = 0.0
    for tenth in range(21):
        at = tenth * SECOND // 10
        timeline.add_update(CounterUpdate(at, at, joules, 0))
        joules += 10.0 if tenth < 10 else 50.0
    return DeviceView(Device("d", "d", "nvml", None), timeline.view())


def settled(idle_watts: float) -> SettledSecond:
    """The two seconds as one: 600 J, idle at `idle_watts`, the rest decoding."""
    idle = 2.0 * idle_watts
    return SettledSecond(0, 2 * SECOND, 600.0, 0.0, idle, 0.0, 600.0 - idle, 0.0, {}, frozenset())


@pytest.mark.parametrize("idle_watts", [100.0, 99.0, 101.0])
@pytest.mark.parametrize("cut_seconds", [0.2, 0.5, 0.9])
def test_an_edge_in_the_idle_part_leaves_all_work_on_its_side(idle_watts: float, cut_seconds: float) -> None:
    """Also where idle power is off by a per cent, in either direction: never the edge's share of the time."""
    cut = round(cut_seconds * SECOND)
    before = share_inside(settled(idle_watts), 0, cut, [device()])[1]
    after = share_inside(settled(idle_watts), cut, 2 * SECOND, [device()])[1]
    assert before == pytest.approx(0.0, abs=0.006)
    assert before + after == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= before <= after <= 1.0


def test_an_edge_in_the_working_part_divides_by_energy() -> None:
    seconds, share = share_inside(settled(100.0), 0, 3 * SECOND // 2, [device()])
    assert seconds == pytest.approx(1.5)
    assert share == pytest.approx(0.5)


def test_idle_is_null_before_anything_is_settled_or_measured() -> None:
    """Never 0 J: a device that idles uses energy, it is only not known how much of it is idling."""
    world = World(step_model=MODEL)
    world.pass_time(1.5)
    window = world.monitor.window_energy(world.unix - 1.0, world.unix - 0.2)
    assert window.idle_joules is None
    assert Fault.IDLE_NOT_MEASURED in window.flags
    assert not window.complete
    assert window.total_joules is not None
    assert window.unattributed_joules == pytest.approx(window.total_joules)


def test_history_finds_what_overlaps_and_is_bounded() -> None:
    history = History(history_seconds=20e-9)
    for number in range(100):
        history.add([SettledSecond(number, number + 1, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, {}, frozenset())])
    assert [second.start_ns for second in history.seconds(96, 99)] == [96, 97, 98]
    assert len(history.seconds(0, 100)) <= 23  # an eighth more
    assert len(history.seconds(80, 100)) == 20


def test_notices_in_a_row_are_one() -> None:
    history = History(history_seconds=5.0)
    for start, end in ((0, 5), (5, 9), (12, 15)):
        history.notice(Notice(Fault.LOST_STEP_RECORDS, start, end))
    assert [(n.start_ns, n.end_ns) for n in history.notices(0)] == [(0, 9), (12, 15)]
    assert [(n.start_ns, n.end_ns) for n in history.notices(9)] == [(12, 15)]
    assert history.notices(9, 12) == ()
