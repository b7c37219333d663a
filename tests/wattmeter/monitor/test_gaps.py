"""A process that was stopped, a read that hung: no joule is lost, but when they were used is uncertain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from meter_fakes import MS, SECOND, energy_reading
from wattmeter.energy_model.online_fit import OnlineFit
from wattmeter.faults import Fault
from wattmeter.metering.counter import EnergyCounter
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.meters.base import Reading
from world import MODEL, World

IDLE_WATTS = 100.0


class Unpaced(World):
    """A counter whose update times the sampler cannot know (RAPL's, a model's)."""

    update_period_seconds = None  # type: ignore[assignment]


KINDS = pytest.mark.parametrize("kind", [World, Unpaced])


def idle_over(world: World, seconds: float) -> Iterator[float | None]:
    for _ in range(round(seconds / 0.25)):
        world.pass_time(0.25)
        yield world.monitor.snapshot().idle.watts


def stop_process(world: World, seconds: float) -> None:
    """Time passes and nobody reads or settles."""
    world.now_ns += round(seconds * SECOND)


@KINDS
@pytest.mark.parametrize("gap_seconds", [3.0, 5.0, 30.0, 600.0])
def test_idle_power_is_not_learnt_from_a_gap(kind: type[World], gap_seconds: float) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    stop_process(world, gap_seconds)
    assert all(watts == pytest.approx(IDLE_WATTS, rel=0.002) for watts in idle_over(world, 15.0))


@KINDS
def test_idle_power_is_not_learnt_from_a_gap_before_anything_was_booked(kind: type[World]) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(0.8)
    stop_process(world, 6.0)
    found = [watts for watts in idle_over(world, 20.0) if watts is not None]
    assert found
    assert found == pytest.approx([IDLE_WATTS] * len(found), rel=0.01)


@KINDS
def test_a_gap_loses_no_joule_and_widens_what_has_an_edge_in_it(kind: type[World]) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    begin = world.unix
    assert world.monitor.snapshot().devices[0].flags == frozenset()
    stop_process(world, 5.0)
    end = world.unix
    device = world.monitor.snapshot().devices[0]
    assert device.sample_age_seconds == pytest.approx(5.0, abs=0.2)
    world.pass_time(3.0)
    assert world.monitor.snapshot().devices[0].flags == frozenset()
    for start, stop in ((begin - 1.0, end + 1.0), (begin + 1.0, begin + 2.0), (end - 0.5, end + 0.5)):
        window = world.monitor.window_energy(start, stop)
        assert window.devices[0].flags == frozenset()
        assert window.total_joules is not None
        assert window.uncertainty_joules is not None
        error = window.total_joules - IDLE_WATTS * (stop - start)
        assert abs(error) < 3 * window.uncertainty_joules + 0.002 * window.total_joules
    whole = world.monitor.window_energy(begin - 1.0, end + 1.0)
    assert whole.total_joules == pytest.approx(IDLE_WATTS * (end - begin + 2.0), rel=0.002)
    assert whole.uncertainty_joules is not None
    assert whole.uncertainty_joules < 10.0
    inside = world.monitor.window_energy(begin + 1.0, begin + 2.0)
    assert inside.uncertainty_joules is not None
    assert inside.uncertainty_joules > 50.0  # when the energy was used is not known
    for start, stop in ((begin - 4.0, begin - 1.0), (end + 0.5, end + 1.5)):
        window = world.monitor.window_energy(start, stop)
        assert window.flags == {Fault.MODELLED}
        assert window.total_joules == pytest.approx(IDLE_WATTS * (stop - start), rel=0.002)


@KINDS
def test_a_request_over_a_gap_has_its_joules_and_teaches_nothing(
    kind: type[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    begins: list[int] = []
    monkeypatch.setattr(OnlineFit, "add", lambda self, work, start_ns, *rest: begins.append(start_ns))
    world.monitor.request_started("a")
    world.step([("a", 100, 0, 0)])
    stop_process(world, 4.0)
    resumed_ns = world.now_ns
    world.step([("a", 0, 1, 100)])
    world.monitor.request_finished("a", output_tokens=2)
    world.pass_time(3.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.joules is not None
    assert energy.flags <= {Fault.MODELLED, Fault.MODEL_NOT_TRUSTED}
    # The counter's last update before the first read after the gap is at most 100 ms old.
    assert all(start_ns >= resumed_ns - 100 * MS for start_ns in begins)
    assert world.monitor.snapshot().conservation_error_ratio < 1e-9


@KINDS
def test_a_read_that_hangs_is_a_gap(kind: type[World]) -> None:
    """The process stops inside the meter's call: the value is of its begin, and nobody can tell."""
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    begin = world.unix
    real = world.read_energy

    def hanging(device_id: str) -> Reading:
        world.read_energy = real  # type: ignore[method-assign]
        value = real(device_id).energy_joules
        stop_process(world, 5.0)
        middle_ns = world.now_ns - round(2.5 * SECOND)
        return Reading(device_id, middle_ns, world.unix - 2.5, energy_joules=value, within_seconds=2.5)

    world.read_energy = hanging  # type: ignore[method-assign]
    assert all(watts == pytest.approx(IDLE_WATTS, rel=0.002) for watts in idle_over(world, 15.0))
    window = world.monitor.window_energy(begin + 1.0, begin + 4.0)
    assert window.total_joules is not None
    assert window.uncertainty_joules is not None
    assert abs(window.total_joules - 300.0) < 3 * window.uncertainty_joules
    after = world.monitor.window_energy(begin + 6.0, begin + 9.0)
    assert after.flags == {Fault.MODELLED}
    assert after.total_joules == pytest.approx(300.0, rel=0.002)


@KINDS
def test_idle_power_is_not_learnt_around_failed_reads(kind: type[World]) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    for fault in (Fault.TIMEOUT, Fault.GPU_LOST):
        world.faults["gpu-0"] = fault
        world.pass_time(4.0)
        world.faults.clear()
        assert all(watts == pytest.approx(IDLE_WATTS, rel=0.002) for watts in idle_over(world, 6.0))


def test_after_a_gap_the_counter_is_as_old_as_its_updates_are_apart() -> None:
    counter = EnergyCounter("gpu")
    for tick in range(20):
        counter.add(energy_reading(tick * 100 * MS, float(tick)))
    (update,) = counter.add(energy_reading(5 * SECOND, 50.0))
    assert update.by_ns == 5 * SECOND
    assert update.after_ns >= 4_800 * MS
    assert not counter.take_faults()


def test_a_value_read_in_a_long_call_is_not_placed_by_its_end() -> None:
    """A call of 80 ms around an update: the value may be from before it."""
    edges = PhaseLock(0.1)
    counter = EnergyCounter("gpu", phase_lock=edges)
    now = 0
    while not edges.locked or now % (100 * MS) > 50 * MS:
        counter.add(energy_reading(now, float(now // (100 * MS))))
        now = edges.next_read_ns(now)
    before = now // (100 * MS)
    counter.add(energy_reading(now, float(before)))
    # Begun 10 ms before the second update from now, answered 70 ms after it, with the first one's value.
    second_ns = (before + 2) * 100 * MS
    slow = replace(energy_reading(second_ns + 30 * MS, float(before + 1)), within_seconds=0.04)
    (knot,) = counter.add(slow)
    assert knot.after_ns <= second_ns - 100 * MS <= knot.by_ns


GAPS = pytest.mark.parametrize("gap_seconds", [1.3, 5.0, 30.0])


def starve(world: World, seconds: float, busy_seconds: float, name: str) -> None:
    """The sampler gets no turn for a while; a request runs for the first part of it."""
    world.starved = True
    world.serve({name: (200, round(busy_seconds / 0.02))})
    world.pass_time(seconds - busy_seconds)
    world.starved = False


@KINDS
@GAPS
def test_what_ran_while_the_counter_was_not_read_is_attributed(kind: type[World], gap_seconds: float) -> None:
    """The counter lost no joule, and the step records say who ran: only the moments are uncertain."""
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    begin, used_before = world.unix, world.above_idle
    starve(world, gap_seconds, 0.4 * gap_seconds, "a")
    end = world.unix
    world.pass_time(4.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    # An update of the counter is known to 0.1 s, where the moments of its updates are not.
    used = world.above_idle - used_before
    assert energy.joules == pytest.approx(used, rel=0.03, abs=0.1 * IDLE_WATTS)
    assert energy.flags <= {Fault.MODELLED, Fault.MODEL_NOT_TRUSTED}
    window = world.monitor.window_energy(begin - 2.0, end + 2.0)
    assert window.complete
    assert window.flags <= {Fault.MODELLED, Fault.MODEL_NOT_TRUSTED}
    assert window.total_joules == pytest.approx(
        IDLE_WATTS * (gap_seconds + 4.0) + world.above_idle, rel=0.005
    )
    assert window.total_joules is not None
    assert abs(window.unattributed_joules or 0.0) < 0.01 * window.total_joules
    assert window.uncertainty_joules is not None
    inside = world.monitor.window_energy(begin + 0.3 * gap_seconds, begin + 0.5 * gap_seconds)
    assert inside.complete
    assert inside.uncertainty_joules is not None
    assert inside.uncertainty_joules > 5.0 * window.uncertainty_joules
    snapshot = world.monitor.snapshot()
    assert snapshot.conservation_error_ratio < 1e-9
    assert snapshot.faults == {}
    assert snapshot.devices[0].flags == frozenset()


@GAPS
def test_a_gap_of_several_devices_is_attributed_as_one(gap_seconds: float) -> None:
    world = World(step_model=MODEL, idle_watts=IDLE_WATTS, devices=2)
    world.pass_time(6.0)
    used_before = world.above_idle
    starve(world, gap_seconds, 0.5 * gap_seconds, "a")
    world.pass_time(4.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.joules == pytest.approx(world.above_idle - used_before, rel=0.03)
