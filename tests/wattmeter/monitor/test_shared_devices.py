"""A GPU that others use: their work is not idle power, and what it mixes with is flagged or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from meter_fakes import SECOND
from wattmeter.faults import Fault
from wattmeter.meters.base import DeviceState, Reading
from wattmeter.monitor.energy_monitor import MIG_REFUSAL
from world import MODEL, World

IDLE_WATTS = 100.0
OTHERS_WATTS = 300.0


class SharedWorld(World):
    """A device whose driver tells its state; `others` computes beside the engine from `begin` on."""

    def __init__(self, *, told: bool = True, limit_watts: float | None = 700.0, **options: Any) -> None:
        self.told = told
        self.limit_watts = limit_watts
        self.foreign: tuple[int, int] | None = None
        self.processes: int | None = None
        self.mig = False
        super().__init__(idle_watts=IDLE_WATTS, step_model=MODEL, **options)

    def others(self, seconds: float) -> None:
        """From now on another process uses OTHERS_WATTS for so long."""
        end = self.now_ns + round(seconds * SECOND)
        self.foreign = (self.now_ns, end)
        self.work.append((self.now_ns, end, OTHERS_WATTS * seconds))

    def read_state(self, device_id: str) -> DeviceState:
        busy = any(start <= self.now_ns < end + SECOND for start, end, _ in self.work)
        ratio = (1.0 if busy else 0.0) if self.told else None
        return DeviceState(40.0, 1.5e9, self.limit_watts, 0, ratio, self.processes, self.mig)


def idle_watts(world: World) -> float | None:
    return world.monitor.snapshot().idle.watts


def test_what_computes_before_the_first_request_is_not_idle_power() -> None:
    """A real H100 was once believed to idle at 680 W, because another server computed on it."""
    world = SharedWorld()
    world.others(30.0)
    world.pass_time(25.0)
    assert idle_watts(world) is None
    world.pass_time(20.0)
    assert idle_watts(world) == pytest.approx(IDLE_WATTS, rel=0.01)


def test_above_half_of_the_power_limit_nothing_idles_whatever_the_driver_tells() -> None:
    world = SharedWorld(told=False, limit_watts=500.0)
    world.others(30.0)
    world.pass_time(25.0)
    assert idle_watts(world) is None


def test_where_the_driver_does_not_tell_the_lowest_idle_power_is_the_measure() -> None:
    world = SharedWorld(told=False, limit_watts=None)
    world.pass_time(10.0)
    world.others(30.0)
    world.pass_time(28.0)
    assert idle_watts(world) == pytest.approx(IDLE_WATTS, rel=0.01)


def test_work_while_no_request_runs_is_somebody_elses() -> None:
    world = SharedWorld()
    world.pass_time(6.0)
    world.serve({"a": (100, 20)})
    world.pass_time(6.0)
    assert world.monitor.snapshot().devices[0].flags == frozenset()
    begin = world.unix
    world.others(20.0)
    world.pass_time(15.0)
    assert Fault.SHARED_DEVICE in world.monitor.snapshot().devices[0].flags
    world.pass_time(20.0)
    assert Fault.SHARED_DEVICE in world.monitor.window_energy(begin, begin + 15.0).flags
    assert world.monitor.snapshot().devices[0].flags == frozenset()
    assert Fault.SHARED_DEVICE not in world.monitor.window_energy(begin - 8.0, begin - 2.0).flags
    assert idle_watts(world) == pytest.approx(IDLE_WATTS, rel=0.01)
    request = world.monitor.request_energy("a")
    assert request is not None
    assert Fault.SHARED_DEVICE not in request.flags


def test_own_requests_do_not_make_a_device_shared() -> None:
    world = SharedWorld()
    world.pass_time(6.0)
    for number in range(5):
        world.serve({f"a{number}": (100, 60)})
        world.pass_time(1.5)
    world.pass_time(10.0)
    assert world.monitor.snapshot().devices[0].faults == {}


def test_requests_beside_a_foreign_process_are_flagged() -> None:
    world = SharedWorld()
    world.pass_time(6.0)
    world.processes = 1
    world.pass_time(2.0)
    world.serve({"a": (100, 50)})
    world.processes = 0
    world.pass_time(10.0)
    world.serve({"b": (100, 50)})
    world.pass_time(5.0)
    flags = {name: world.monitor.request_energy(name).flags for name in "ab"}  # type: ignore[union-attr]
    assert Fault.SHARED_DEVICE in flags["a"]
    assert Fault.SHARED_DEVICE not in flags["b"]


def test_under_mig_the_gpu_is_metered_and_no_request_is() -> None:
    world = SharedWorld()
    world.pass_time(6.0)
    begin = world.unix
    world.serve({"a": (100, 50)})
    world.pass_time(5.0)
    assert world.monitor.request_energy("a").joules is not None  # type: ignore[union-attr]
    world.mig = True
    world.serve({"b": (100, 50)})
    world.pass_time(5.0)
    request = world.monitor.request_energy("b")
    assert request is not None
    assert (request.joules, request.prefill_joules, request.decode_joules) == (None, None, None)
    assert request.reason == MIG_REFUSAL
    window = world.monitor.window_energy(begin, begin + 6.0)
    assert Fault.MIG in window.flags
    assert window.total_joules is not None


def test_a_window_in_an_hour_that_the_clock_skipped_has_no_joules() -> None:
    world = World(idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    before = world.unix
    world.wall_offset += 3600.0
    world.pass_time(10.0)
    skipped = world.monitor.window_energy(before + 100.0, before + 200.0)
    assert (skipped.total_joules, skipped.complete) == (None, False)
    assert Fault.PARTIAL_COVERAGE in skipped.flags
    over = world.monitor.window_energy(before - 2.0, world.unix)
    assert Fault.CLOCK_STEP in over.flags


@pytest.mark.parametrize("watts", [math.nan, math.inf, -math.inf, -5.0, 1e12])
def test_settling_goes_on_whatever_the_power_gauge_says(
    watts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(idle_watts=IDLE_WATTS, step_model=MODEL)
    world.pass_time(6.0)
    plain = World.read_power
    monkeypatch.setattr(
        World, "read_power", lambda self, name: Reading(name, self.now_ns, self.unix, power_watts=watts)
    )
    world.faults["gpu-0"] = Fault.TIMEOUT
    world.serve({"a": (100, 25)})
    world.faults.clear()
    monkeypatch.setattr(World, "read_power", plain)
    world.serve({"b": (100, 50)})
    world.pass_time(5.0)
    for name in "ab":
        request = world.monitor.request_energy(name)
        assert request is not None
        assert request.status == "settled"
        assert request.joules is not None
    assert world.monitor.snapshot().conservation_error_ratio < 1e-9
