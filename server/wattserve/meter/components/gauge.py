"""A sensor that shows watts, or joules so far, about once a second, as a meter of one device.

Watts are integrated, by trapezoids from one reading to the next. A reading that fails ends the stretch: what
was used until the next one is not known and not bridged. A value may stand for as long as it likes: a BMC
gives whole watts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wattmeter.faults import Fault
from wattmeter.meters.base import Device, Reading

PERIOD_SECONDS = 1.0
# Between two readings further apart than this, power may have been anything.
LONGEST_GAP_SECONDS = 10.0
MOST_WATTS = 100_000.0


class SensorError(Exception):
    """No value, and why: one sentence."""

    def __init__(self, message: str, fault: Fault = Fault.UNKNOWN_ERROR) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Value:
    """What a sensor shows: watts now, or joules since some moment."""

    watts: float | None = None
    joules: float | None = None


class GaugeMeter:
    """`read` gives the value, or raises SensorError. The first value says whether it is watts or joules."""

    min_energy_interval_seconds = PERIOD_SECONDS
    update_period_seconds: float | None = None

    def __init__(
        self,
        device_id: str,
        name: str,
        source: str,
        read: Callable[[], Value],
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.source = source
        self._read = read
        self._now_ns = now_ns
        self._joules = 0.0
        self._last: tuple[int, float] | None = None
        self._began = False
        self._device = Device(device_id, name, source)
        first = read()
        self._counts = first.joules is not None
        flags = frozenset[Fault]() if self._counts else frozenset({Fault.INTEGRATED_POWER})
        self.device_flags = {device_id: flags}

    @property
    def devices(self) -> Sequence[Device]:
        return (self._device,)

    def read_energy(self, device_id: str) -> Reading:
        before = self._now_ns()
        try:
            value = self._read()
        except SensorError as error:
            self._last = None
            return Reading(device_id, self._now_ns(), time.time(), fault=error.fault)
        after = self._now_ns()
        now = (before + after) // 2
        within = (after - before) * 0.5e-9
        unix = time.time() - (after - now) * 1e-9
        if self._counts:
            fault = None if value.joules is not None else Fault.UNKNOWN_ERROR
            return Reading(device_id, now, unix, value.joules, fault=fault, within_seconds=within)
        watts = value.watts
        if watts is None or not 0.0 < watts < MOST_WATTS:
            self._last = None
            return Reading(device_id, now, unix, fault=Fault.IMPLAUSIBLE_POWER)
        fault = None
        last = self._last
        if last is not None and now - last[0] <= LONGEST_GAP_SECONDS * 1e9:
            self._joules += 0.5 * (watts + last[1]) * (now - last[0]) * 1e-9
        elif self._began:
            fault = Fault.STALE_SENSOR
        self._last, self._began = (now, watts), True
        return Reading(device_id, now, unix, self._joules, watts, fault, within)

    def read_power(self, device_id: str) -> Reading:
        """Asked many times a second, which the sensor is not made for: the counter says enough."""
        return Reading(device_id, self._now_ns(), time.time(), fault=Fault.NOT_SUPPORTED)

    def close(self) -> None:
        return None


class GaugesMeter:
    """Several gauges of one kind as one meter: `readers` are by (component, name of the device)."""

    min_energy_interval_seconds = PERIOD_SECONDS
    update_period_seconds: float | None = None

    def __init__(self, source: str, readers: Mapping[tuple[str, str], Callable[[], Value]]) -> None:
        self.source = source
        self.components: dict[str, str] = {}
        self._gauges: dict[str, GaugeMeter] = {}
        for (component, name), read in readers.items():
            device_id = f"{source}: {name}"
            self.components[device_id] = component
            self._gauges[device_id] = GaugeMeter(device_id, name, source, read)
        self.device_flags = {one: gauge.device_flags[one] for one, gauge in self._gauges.items()}

    @property
    def devices(self) -> Sequence[Device]:
        return tuple(device for gauge in self._gauges.values() for device in gauge.devices)

    def read_energy(self, device_id: str) -> Reading:
        return self._gauges[device_id].read_energy(device_id)

    def read_power(self, device_id: str) -> Reading:
        return self._gauges[device_id].read_power(device_id)

    def close(self) -> None:
        return None
