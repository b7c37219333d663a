"""A device's power for a dashboard: the last reading, and none once reading it fails."""

from __future__ import annotations

from meter_fakes import SECOND
from wattmeter.devicebook import DeviceBook
from wattmeter.faults import Fault
from wattmeter.meter import Device, Reading


def test_power_that_cannot_be_read_any_more_is_gone_and_its_fault_counted() -> None:
    book = DeviceBook(Device("g0", "gpu", "nvml"), history_seconds=60.0, update_period_seconds=None)
    for second in range(1, 8):
        now = second * SECOND
        book.add_energy(Reading("g0", now, 0.0, energy_joules=100.0 * second))
        if second in {1, 5}:
            book.add_power(Reading("g0", now, 0.0, power_watts=700.0))
            assert book.status(now).power_watts == 700.0
        else:
            book.add_power(Reading("g0", now, 0.0, fault=Fault.TIMEOUT))
            assert book.status(now).power_watts is None
    status = book.status(7 * SECOND)
    assert status.energy_joules == 600.0 - 100.0
    assert status.faults == {"timeout": 2}


def test_a_failure_of_both_is_counted_once() -> None:
    for power_first in (True, False):
        book = DeviceBook(Device("g0", "gpu", "nvml"), history_seconds=60.0, update_period_seconds=None)
        for second in range(1, 8):
            now, lost = second * SECOND, second in {4, 5}
            fault = Fault.GPU_LOST if lost else None
            energy = Reading("g0", now, 0.0, energy_joules=None if lost else 100.0 * second, fault=fault)
            power = Reading("g0", now, 0.0, power_watts=None if lost else 700.0, fault=fault)
            for add, reading in ((book.add_energy, energy), (book.add_power, power))[
                :: -1 if power_first else 1
            ]:
                add(reading)
        assert book.status(7 * SECOND).faults["gpu_lost"] == 1
