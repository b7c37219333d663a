"""Steps in a monitor's first moments: their joules are right, or unknown with the reason; never 0."""

from __future__ import annotations

import pytest

from meter_fakes import MS, SECOND
from wattmeter.faults import Fault
from wattmeter.meters.base import Reading
from wattmeter.schema import RequestEnergy
from world import MODEL, World


def energy_of(world: World, name: str) -> RequestEnergy:
    energy = world.monitor.request_energy(name)
    assert energy is not None
    return energy


def past_readings(world: World, seconds: float) -> list[Reading]:
    """What somebody else read every 10 ms until now."""
    now_ns = world.now_ns
    readings = []
    for at_ns in range(now_ns - round(seconds * SECOND), now_ns, 10 * MS):
        world.now_ns = at_ns
        readings += [world.read_energy(device.id) for device in world.devices]
        readings += [world.read_power(device.id) for device in world.devices]
    world.now_ns = now_ns
    return readings


@pytest.mark.parametrize("more", [0, 100])
def test_what_ran_before_the_counter_was_read_is_unknown(more: int) -> None:
    world = World(step_model=MODEL, given_watts=100.0)
    world.starved = True
    world.serve({"early": (500, 4)})
    world.starved = False
    if more:
        world.serve({"later": (500, more)})
    world.pass_time(8.0)
    energy = energy_of(world, "early")
    assert (energy.status, energy.joules) == ("settled", None)
    assert energy.reason == "the meter did not cover all of this request's steps"
    assert Fault.PARTIAL_COVERAGE in energy.flags
    if more:
        # The first of its steps may lie before the counter's first move.
        later = energy_of(world, "later")
        assert later.joules is None or later.joules > 0.9 * MODEL.decode_token_joules * more


def test_an_edge_that_is_not_sharp_is_better_than_a_request_lost() -> None:
    world = World(step_model=MODEL, given_watts=100.0)
    world.pass_time(0.35)  # two or three updates, none of them narrow
    world.serve({"early": (500, 10)})
    world.pass_time(6.0)
    assert energy_of(world, "early").joules == pytest.approx(world.above_idle, rel=0.03)


@pytest.mark.parametrize("devices", [1, 2])
def test_readings_of_the_past_cover_what_runs_at_once(devices: int) -> None:
    world = World(step_model=MODEL, given_watts=100.0 * devices, devices=devices)
    world.monitor.take_past(past_readings(world, 3.0))
    made_unix = world.unix
    world.starved = True
    world.serve({"early": (500, 60)})
    world.starved = False
    world.pass_time(6.0)
    energy = energy_of(world, "early")
    assert energy.status == "settled"
    # Where the first second ends is known to the time between two updates, of devices that idle.
    assert energy.joules == pytest.approx(world.above_idle, abs=devices * 100.0 * 0.1)
    window = world.monitor.window_energy(made_unix, made_unix + 4.0)
    assert window.complete
    assert window.total_joules == pytest.approx(devices * 400.0 + world.above_idle, rel=0.01)


def test_no_joules_above_idle_are_no_figure() -> None:
    world = World(step_model=MODEL, idle_watts=50.0, given_watts=5_000.0)  # a wrong idle power
    world.pass_time(3.0)
    world.serve({"a": (100, 10)})
    world.pass_time(5.0)
    energy = energy_of(world, "a")
    assert (energy.status, energy.joules, energy.uncertainty_joules) == ("settled", None, None)
    assert energy.reason == "no energy above idle power was measured while this request ran"
