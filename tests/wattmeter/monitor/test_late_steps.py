"""Steps that become known after their time was settled: what they lose is said, and nothing else is."""

from __future__ import annotations

import pytest

from meter_fakes import MS, SECOND, batch
from wattmeter.faults import Fault
from wattmeter.schema import RequestEnergy
from world import MODEL, World

LOST = Fault.LOST_STEP_RECORDS


def energy_of(world: World, name: str) -> RequestEnergy:
    energy = world.monitor.request_energy(name)
    assert energy is not None
    return energy


def lost_in(world: World, start_ns: int, end_ns: int) -> bool:
    offset = world.wall_offset
    return LOST in world.monitor.window_energy(start_ns * 1e-9 + offset, end_ns * 1e-9 + offset).flags


@pytest.mark.parametrize("first_ever", [True, False])
def test_a_step_longer_than_anyone_waits_is_flagged_where_it_lost_joules(first_ever: bool) -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    if not first_ever:
        world.serve({"before": (10, 3)})
        world.pass_time(6.0)
    world.monitor.request_started("big")
    start_ns = world.now_ns
    world.step([("big", 8192, 0, 0)], seconds=8.0)
    closed_ns = world.settled_ns
    assert start_ns < closed_ns < start_ns + 8 * SECOND
    world.monitor.request_finished("big", output_tokens=1)
    world.pass_time(4.0)
    assert LOST in energy_of(world, "big").flags
    assert world.monitor.snapshot().faults["lost_step_records"] == 1
    assert lost_in(world, start_ns + SECOND, start_ns + 2 * SECOND)  # settled before the step was known
    assert not lost_in(world, start_ns - 4 * SECOND, start_ns - MS)
    assert not lost_in(world, closed_ns + MS, closed_ns + 4 * SECOND)
    if not first_ever:
        assert LOST not in energy_of(world, "before").flags


def test_the_first_request_ever_waits_for_its_records_too() -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    world.monitor.request_started("first")
    world.step([("first", 8192, 0, 0)], seconds=1.5)
    world.monitor.request_finished("first", output_tokens=1)
    world.pass_time(4.0)
    energy = energy_of(world, "first")
    assert energy.joules == pytest.approx(world.above_idle, rel=0.03)
    assert LOST not in energy.flags


def test_an_aborted_request_whose_step_ends_later_is_flagged() -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    world.monitor.request_started("gone")
    world.monitor.request_finished("gone", aborted=True)
    start_ns = world.now_ns
    world.step([("gone", 8192, 0, 0)], seconds=1.5)
    world.pass_time(4.0)
    assert LOST in energy_of(world, "gone").flags
    assert lost_in(world, start_ns, start_ns + SECOND // 2)


def test_only_the_late_ones_of_a_batch_are_flagged() -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(10.0)
    closed_ns = world.settled_ns
    spans = [(closed_ns - 5 * SECOND, "late"), (closed_ns - SECOND, "late"), (closed_ns + 50 * MS, "in time")]
    steps = [(start_ns, start_ns + 20 * MS, [(name, 0, 1, 10)]) for start_ns, name in spans]
    world.monitor.add_steps(batch(steps))
    world.pass_time(4.0)
    assert LOST in energy_of(world, "late").flags
    assert LOST not in energy_of(world, "in time").flags
    assert lost_in(world, spans[0][0], spans[0][0] + SECOND)
    assert lost_in(world, spans[1][0], spans[1][0] + SECOND // 4)
    assert not lost_in(world, closed_ns - 4 * SECOND, closed_ns - 2 * SECOND)
    assert not lost_in(world, closed_ns + MS, closed_ns + SECOND)


def test_a_step_launched_while_the_one_before_ran_is_not_late() -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    world.monitor.request_started("a")
    for number in range(250):
        start_ns = world.now_ns
        world.step([("a", 0, 1, 10)], record=False)
        launch_ns = start_ns - 2 * SECOND if number else start_ns
        world.monitor.add_steps(batch([(launch_ns, world.now_ns, [("a", 0, 1, 10)])], number))
    world.monitor.request_finished("a", output_tokens=250)
    world.pass_time(4.0)
    assert LOST not in energy_of(world, "a").flags
    assert not lost_in(world, world.now_ns - 9 * SECOND, world.now_ns - SECOND)


@pytest.mark.parametrize("late_seconds", [0.5, 2.0, 4.0])
def test_records_that_come_late_after_the_last_request_ended_are_waited_for(late_seconds: float) -> None:
    """An engine that says up to when its records are complete: on a busy machine they come late."""
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    monitor = world.monitor
    monitor.steps_complete(world.now_ns)
    world.pass_time(0.35)
    monitor.request_started("a")
    start_ns = world.now_ns
    world.step([("a", 8192, 0, 0)], seconds=0.5, record=False)
    end_ns = world.now_ns
    monitor.request_finished("a", output_tokens=1)
    world.pass_time(late_seconds)
    monitor.add_steps(batch([(start_ns, end_ns, [("a", 8192, 0, 0)])]))
    monitor.steps_complete(world.now_ns)
    world.pass_time(4.0)
    monitor.steps_complete(world.now_ns)
    world.pass_time(1.0)
    energy = energy_of(world, "a")
    assert energy.status == "settled"
    assert LOST not in energy.flags
    assert energy.joules == pytest.approx(world.above_idle, rel=0.03)


def test_an_engine_that_says_nothing_more_is_not_waited_for_for_ever() -> None:
    world = World(step_model=MODEL, idle_watts=100.0)
    world.pass_time(6.0)
    world.monitor.steps_complete(world.now_ns)
    silent_ns = world.now_ns
    world.pass_time(8.0)
    assert world.settled_ns > silent_ns + 2 * SECOND
