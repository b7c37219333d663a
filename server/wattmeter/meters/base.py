"""A meter: what can be asked for the joules a device has used since some fixed moment, and for its power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wattmeter.faults import Fault


@dataclass(frozen=True, slots=True)
class Device:
    """One metered device. `id` is stable over restarts (a GPU's UUID, say); `source` names the sensor."""

    id: str
    name: str
    source: str
    power_limit_watts: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one device's sensors said at one moment; a field that was not read or not available is None.

    `energy_joules` is the device's own running counter, whatever its origin. `fault` says why a value that
    was asked for is missing. With `energy_joules` it says why the counter does not continue the readings
    before. The value was taken at `monotonic_ns`, give or take
    `within_seconds` (half of what the call took).
    """

    device_id: str
    monotonic_ns: int
    unix_seconds: float
    energy_joules: float | None = None
    power_watts: float | None = None
    fault: Fault | None = None
    within_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a dashboard shows beside power, from a meter's `read_state`; None: the driver does not say.

    `clock_event_reasons` are NVML's bits for why the clocks are not higher (nvmlClocksEventReasons).
    `utilization_ratio` is the part of the last moments in which any kernel ran. `other_processes` counts the
    processes that hold a compute context and are not the engine's. `mig`: the GPU is divided into instances.
    """

    temperature_celsius: float | None
    sm_clock_hertz: float | None
    power_limit_watts: float | None
    clock_event_reasons: int | None = None
    utilization_ratio: float | None = None
    other_processes: int | None = None
    mig: bool = False


class Meter(Protocol):
    """A source of readings. Calls may block for milliseconds; they come from the sampler's thread only.

    `min_energy_interval_seconds` is the shortest time between two counter reads that the source deserves: an
    NVML counter steps every 100 ms and a read costs 4 ms, so asking more often only disturbs what is
    measured.

    A meter may also have: `update_period_seconds`, how often its counter moves, from which the sampler finds
    the moments of its updates; `device_flags`, faults that hold for a device always, by id; and
    `read_state(device_id) -> DeviceState`. A meter that wraps another passes them on.
    """

    source: str
    min_energy_interval_seconds: float

    @property
    def devices(self) -> Sequence[Device]: ...

    def read_energy(self, device_id: str) -> Reading: ...

    def read_power(self, device_id: str) -> Reading: ...

    def close(self) -> None: ...
