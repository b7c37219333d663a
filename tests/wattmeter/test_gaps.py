"""A process that was stopped, a read that hung: what was not watched is flagged and teaches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from meter_fakes import MS, SECOND, energy_reading
from wattmeter.counter import JouleCounter
from wattmeter.edges import EdgeClock
from wattmeter.faults import Fault
from wattmeter.meter import Reading
from world import MODEL, World

IDLE_WATTS = 100.0


class Unpaced(World):
    """A counter whose update times the sampler cannot know (RAPL's, a model's)."""

    update_period_seconds = None  # type: ignore[assignment]


KINDS = pytest.mark.parametrize("kind", [World, Unpaced])


def idle_over(world: World, seconds: float) -> Iterator[float | None]:
    for _ in range(round(seconds / 0.25)):
        world.pass_time(0.25)
        yield world.account.snapshot().idle.watts


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
def test_a_gap_is_flagged_in_windows_and_in_the_devices_status(kind: type[World]) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    begin = world.unix
    assert world.account.snapshot().devices[0].flags == frozenset()
    stop_process(world, 5.0)
    end = world.unix
    device = world.account.snapshot().devices[0]
    assert device.flags == {Fault.STALE_SENSOR}
    assert device.sample_age_seconds == pytest.approx(5.0, abs=0.2)
    world.pass_time(3.0)
    assert world.account.snapshot().devices[0].flags == frozenset()
    for start, stop in ((begin - 1.0, end + 1.0), (begin + 1.0, begin + 2.0), (end - 0.5, end + 0.5)):
        window = world.account.window_energy(start, stop)
        assert Fault.STALE_SENSOR in window.flags
        assert window.devices[0].flags == {Fault.STALE_SENSOR}
    whole = world.account.window_energy(begin - 1.0, end + 1.0)
    assert whole.total_joules == pytest.approx(IDLE_WATTS * (end - begin + 2.0), rel=0.002)
    inside = world.account.window_energy(begin + 1.0, begin + 2.0)
    assert inside.uncertainty_joules is not None
    assert inside.uncertainty_joules > 50.0  # when the energy was used is not known
    for start, stop in ((begin - 4.0, begin - 1.0), (end + 0.5, end + 1.5)):
        window = world.account.window_energy(start, stop)
        assert Fault.STALE_SENSOR not in window.flags
        assert window.total_joules == pytest.approx(IDLE_WATTS * (stop - start), rel=0.002)


@KINDS
def test_a_request_over_a_gap_is_flagged_and_teaches_nothing(kind: type[World]) -> None:
    world = kind(step_model=MODEL, idle_watts=IDLE_WATTS)
    world.pass_time(6.0)
    lessons: list[object] = []
    world.account._settlement._learn = lessons.append
    world.account.request_started("a")
    world.step([("a", 100, 0, 0)])
    stop_process(world, 4.0)
    world.step([("a", 0, 1, 100)])
    world.account.request_finished("a", output_tokens=2)
    world.pass_time(3.0)
    energy = world.account.request_energy("a")
    assert energy is not None
    assert Fault.STALE_SENSOR in energy.flags
    assert not lessons
    assert world.account.snapshot().conservation_error_ratio < 1e-9


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
    window = world.account.window_energy(begin + 1.0, begin + 4.0)
    assert Fault.STALE_SENSOR in window.flags
    assert window.uncertainty_joules is not None
    after = world.account.window_energy(begin + 6.0, begin + 9.0)
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


def test_a_gap_lasts_until_the_first_update_seen_after_it() -> None:
    counter = JouleCounter("gpu")
    for tick in range(20):
        counter.add(energy_reading(tick * 100 * MS, float(tick)))
    assert not counter.take_faults()
    counter.add(energy_reading(5 * SECOND, 50.0))
    (gap,) = counter.take_faults()
    assert (gap.fault, gap.start_ns, gap.end_ns) == (Fault.STALE_SENSOR, 1_900 * MS, None)
    assert "3.1 s" in gap.detail
    counter.add(energy_reading(5 * SECOND + 40 * MS, 50.0))
    assert gap.end_ns is None
    counter.add(energy_reading(5 * SECOND + 100 * MS, 51.0))
    assert gap.end_ns == 5 * SECOND + 100 * MS
    assert not counter.take_faults()


def test_a_value_read_in_a_long_call_is_not_placed_by_its_end() -> None:
    """A call of 80 ms around an update: the value may be from before it."""
    edges = EdgeClock(0.1)
    counter = JouleCounter("gpu", edges=edges)
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
