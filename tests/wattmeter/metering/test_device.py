"""A device: which sensor it is metered by, what it can draw, what it shows, and when it is read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from meter_fakes import MS, SECOND
from wattmeter.faults import Fault
from wattmeter.metering.device import MeteredDevice
from wattmeter.meters.base import Device, DeviceState, Reading


def test_power_that_cannot_be_read_any_more_is_gone_and_its_fault_counted() -> None:
    device = MeteredDevice(Device("g0", "gpu", "nvml"), history_seconds=60.0, update_period_seconds=None)
    for second in range(1, 8):
        now = second * SECOND
        device.take_energy(Reading("g0", now, 0.0, energy_joules=100.0 * second))
        if second in {1, 5}:
            device.take_power(Reading("g0", now, 0.0, power_watts=700.0))
            assert device.status(now).power_watts == 700.0
        else:
            device.take_power(Reading("g0", now, 0.0, fault=Fault.TIMEOUT))
            assert device.status(now).power_watts is None
    status = device.status(7 * SECOND)
    assert status.energy_joules == 600.0 - 100.0
    assert status.faults == {"timeout": 2}


def test_a_failure_of_both_is_counted_once() -> None:
    for power_first in (True, False):
        device = MeteredDevice(Device("g0", "gpu", "nvml"), history_seconds=60.0, update_period_seconds=None)
        for second in range(1, 8):
            now, lost = second * SECOND, second in {4, 5}
            fault = Fault.GPU_LOST if lost else None
            energy = Reading("g0", now, 0.0, energy_joules=None if lost else 100.0 * second, fault=fault)
            power = Reading("g0", now, 0.0, power_watts=None if lost else 700.0, fault=fault)
            for add, reading in ((device.take_energy, energy), (device.take_power, power))[
                :: -1 if power_first else 1
            ]:
                add(reading)
        assert device.status(7 * SECOND).faults["gpu_lost"] == 1


def metered(**options: Any) -> MeteredDevice:
    device = Device("g0", "gpu", "nvml", options.pop("limit_watts", 700.0))
    return MeteredDevice(device, history_seconds=60.0, update_period_seconds=0.1, **options)


def test_a_device_without_a_counter_integrates_its_power_and_says_so() -> None:
    device = metered()
    for tick in range(400):
        now = tick * 25 * MS
        if tick % 40 == 0:
            device.take_energy(Reading("g0", now, 0.0, fault=Fault.NOT_SUPPORTED))
        device.take_power(Reading("g0", now, 0.0, power_watts=200.0 + tick % 2))
    # A counter that answers later than that is another story, and is not mixed in.
    device.take_energy(Reading("g0", 400 * 25 * MS, 0.0, energy_joules=5e6))
    status = device.status(400 * 25 * MS)
    assert status.energy_joules == pytest.approx(200.5 * 9.975, rel=1e-3)
    assert status.flags == {Fault.INTEGRATED_POWER}
    assert device.timeline.energy(SECOND, 9 * SECOND).joules == pytest.approx(1604.0, rel=1e-3)


def test_the_highest_power_limit_says_what_is_possible() -> None:
    device = metered(limit_watts=300.0)
    device.take_state(DeviceState(40.0, 1e9, 700.0), 0)
    device.take_state(DeviceState(40.0, 1e9, 100.0), SECOND)
    for tick in range(50):
        device.take_energy(Reading("g0", tick * 100 * MS, 0.0, energy_joules=80.0 * tick))
    assert device.status(5 * SECOND).faults == {}
    device.take_energy(Reading("g0", 5 * SECOND, 0.0, energy_joules=80.0 * 49 + 5000.0))
    device.take_energy(Reading("g0", 5 * SECOND + 100 * MS, 0.0, energy_joules=80.0 * 49 + 5080.0))
    assert device.status(6 * SECOND).faults == {"counter_jump": 1}


@pytest.mark.parametrize("watts", [math.nan, math.inf, -1.0, 4294967.295])
def test_power_that_cannot_be_is_not_shown(watts: float) -> None:
    device = metered()
    for second in range(1, 4):
        device.take_energy(Reading("g0", second * SECOND, 0.0, energy_joules=100.0 * second))
        device.take_power(Reading("g0", second * SECOND, 0.0, power_watts=200.0 if second < 3 else watts))
    assert device.status(3 * SECOND).power_watts is None
    assert len(device.timeline.view().power_watts) == 1


def test_a_device_is_read_when_its_counter_moves() -> None:
    device = metered()
    assert device.next_read_ns(0) is None
    now, reads = 3 * MS, []
    while now < 10 * SECOND:
        device.take_energy(Reading("g0", now, 0.0, energy_joules=10.0 * (now // (100 * MS))))
        reads.append(now)
        least = reads[-10] + 980 * MS if len(reads) >= 10 else 0
        wanted = device.next_read_ns(least)
        assert wanted is not None
        now = max(wanted, now + 1)
    assert all(moment % (100 * MS) < 10 * MS for moment in reads[-20:])


def test_a_model_that_catches_up_is_not_implausible() -> None:
    device = MeteredDevice(
        Device("m0", "simulated GPU", "modelled", 700.0), history_seconds=60.0, update_period_seconds=0.1
    )
    for tick in range(50):
        late = 0.0 if tick < 30 else 600.0  # a second of work at 600 W that was told late
        device.take_energy(Reading("m0", tick * 100 * MS, 0.0, energy_joules=10.0 * tick + late))
    assert device.status(5 * SECOND).faults == {}
    assert device.timeline.energy(SECOND, 4 * SECOND).joules == pytest.approx(900.0, abs=10.0)
