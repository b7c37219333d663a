"""How a window divides the piece of the books that its edge cuts."""

from __future__ import annotations

import pytest
from wattmeter.devicebook import DeviceBook
from wattmeter.faults import Fault
from wattmeter.knots import Knot
from wattmeter.meter import Device
from wattmeter.settlement import Piece
from wattmeter.windows import _share
from world import MODEL, World

SECOND = 1_000_000_000


def book() -> DeviceBook:
    """100 W for a second, then 500 W for another."""
    made = DeviceBook(Device("d", "d", "nvml", None), history_seconds=60, update_period_seconds=None)
    joules = 0.0
    for tenth in range(21):
        at = tenth * SECOND // 10
        made.ledger.add_knot(Knot(at, at, joules, 0))
        joules += 10.0 if tenth < 10 else 50.0
    return made


def piece(idle_watts: float) -> Piece:
    """The two seconds as one piece of the books: 600 J, idle at `idle_watts`, the rest decoding."""
    idle = 2.0 * idle_watts
    return Piece(0, 2 * SECOND, 600.0, 0.0, idle, 0.0, 600.0 - idle, 0.0, {}, frozenset())


@pytest.mark.parametrize("idle_watts", [100.0, 99.0, 101.0])
@pytest.mark.parametrize("cut_seconds", [0.2, 0.5, 0.9])
def test_an_edge_in_the_idle_part_leaves_all_work_on_its_side(idle_watts: float, cut_seconds: float) -> None:
    """Also where idle power is off by a per cent, in either direction: never the edge's share of the time."""
    cut = round(cut_seconds * SECOND)
    before = _share(piece(idle_watts), 0, cut, {"d": book()})[1]
    after = _share(piece(idle_watts), cut, 2 * SECOND, {"d": book()})[1]
    assert before == pytest.approx(0.0, abs=0.006)
    assert before + after == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= before <= after <= 1.0


def test_an_edge_in_the_working_part_divides_by_energy() -> None:
    seconds, share = _share(piece(100.0), 0, 3 * SECOND // 2, {"d": book()})
    assert seconds == pytest.approx(1.5)
    assert share == pytest.approx(0.5)


def test_idle_is_null_before_anything_is_settled_or_measured() -> None:
    """Never 0 J: a device that idles uses energy, it is only not known how much of it is idling."""
    world = World(step_model=MODEL)
    world.pass_time(1.5)
    window = world.account.window_energy(world.unix - 1.0, world.unix - 0.2)
    assert window.idle_joules is None
    assert Fault.IDLE_NOT_MEASURED in window.flags
    assert not window.complete
    assert window.total_joules is not None
    assert window.unattributed_joules == pytest.approx(window.total_joules)
