"""The thread that reads a meter: at a bounded rate, without drift, and on through every failure."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from wattmeter.clock import Clocks
from wattmeter.faults import Fault
from wattmeter.meters.base import DeviceState, Meter, Reading

READS_PER_SECOND = 10
POWER_PERIOD_SECONDS = 0.025
# What looks for the moment of an update reads a little sooner at times; over seconds it makes up for it.
SPARE_READS = 2
# Updates that are to be followed one by one may come a little faster than they should.
INTERVAL_RATIO = 0.98
RETRY_SECONDS = 1.0
STATE_PERIOD_SECONDS = 1.0


class SampledDevice(Protocol):
    """What the sampler knows of a device: it takes readings, and may know when to be read next."""

    def take_energy(self, reading: Reading) -> None: ...

    def take_power(self, reading: Reading) -> None: ...

    def next_read_ns(self, not_before_ns: int) -> int | None: ...


class ReadLimit:
    """A limit of one read each `interval_ns` in the long run, with SPARE_READS more at any time."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = round(INTERVAL_RATIO * max(interval_ns, 1_000_000_000 // READS_PER_SECOND))
        self._paid_to_ns = 0

    def read_at(self, now_ns: int) -> int:
        """A read began now; the next may not begin before the returned time."""
        self._paid_to_ns = max(self._paid_to_ns, now_ns) + self._interval_ns
        return self._paid_to_ns - SPARE_READS * self._interval_ns


@dataclass(slots=True)
class _Schedule:
    """When a device's counter is read next."""

    next_ns: int
    limit: ReadLimit


class Sampler:
    """Reads every device of a meter and hands the readings to `devices`, from one thread.

    The counter of a device is read READS_PER_SECOND times a second at most (and no oftener than the meter's
    `min_energy_interval_seconds` asks) but for a few more at times, see `ReadLimit`, at the moments that the
    device asks for where it does; power every POWER_PERIOD_SECONDS; the state (`take_state`) once a second
    where the meter has one.

    A device is touched inside `lock` only. `on_energy` sees each energy reading there, before its device.
    A reading with a fault is handed on as it is. An exception from the meter, or what is no reading, is
    handed on as a reading with `unknown_error`; the device is tried again after RETRY_SECONDS, and the
    other devices go on. `read_cost_seconds` is the mean time one counter read took.
    """

    def __init__(
        self,
        meter: Meter,
        devices: Mapping[str, SampledDevice],
        lock: AbstractContextManager[Any],
        *,
        on_energy: Callable[[Reading], None] | None = None,
        take_state: Callable[[str, DeviceState], None] | None = None,
        power_period_seconds: float = POWER_PERIOD_SECONDS,
        clocks: Clocks | None = None,
    ) -> None:
        self._clocks = clocks or Clocks()
        self._meter = meter
        self._devices = dict(devices)
        self._lock = lock
        self._on_energy = on_energy
        self._take_state = take_state
        self._next_state_ns = 0
        self._period_ns = round(power_period_seconds * 1e9)
        self._interval_ns = round(meter.min_energy_interval_seconds * 1e9)
        now = self._clocks.monotonic_ns()
        self._schedules = {
            device_id: _Schedule(now, ReadLimit(self._interval_ns)) for device_id in self._devices
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.reads = 0
        self.read_seconds = 0.0
        self.errors = 0

    @property
    def read_cost_seconds(self) -> float | None:
        return self.read_seconds / self.reads if self.reads else None

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("sampler: already started")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="wattmeter-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def tick(self, now_ns: int) -> int:
        """Do every read that is due at now_ns; returns when to come again."""
        wake = now_ns + self._period_ns
        for device_id, device in self._devices.items():
            schedule = self._schedules[device_id]
            self._hand_over(device.take_power, self._read(self._meter.read_power, device_id))
            if now_ns >= schedule.next_ns:
                self._read_energy(device_id, device, schedule)
            wake = min(wake, schedule.next_ns)
        if now_ns >= self._next_state_ns:
            self._next_state_ns = now_ns + round(STATE_PERIOD_SECONDS * 1e9)
            self._read_states()
        return wake

    def _read_states(self) -> None:
        read = getattr(self._meter, "read_state", None)
        if read is None or self._take_state is None:
            return
        for device_id in self._devices:
            try:
                state = read(device_id)
                with self._lock:
                    self._take_state(device_id, state)
            except Exception:
                self.errors += 1

    def _read_energy(self, device_id: str, device: SampledDevice, schedule: _Schedule) -> None:
        before = self._clocks.monotonic_ns()
        reading = self._read(self._meter.read_energy, device_id)
        after = self._clocks.monotonic_ns()
        self.reads += 1
        self.read_seconds += (after - before) * 1e-9
        if self._on_energy is not None:
            self._hand_over(self._on_energy, reading)
        self._hand_over(device.take_energy, reading)
        least_ns = schedule.limit.read_at(before)
        if reading.energy_joules is None:
            schedule.next_ns = after + round(RETRY_SECONDS * 1e9)
            return
        with self._lock:
            wanted_ns = device.next_read_ns(least_ns)
        if wanted_ns is not None:
            schedule.next_ns = wanted_ns
            return
        # On a grid, so that the time of a read does not add up; what was missed is skipped, not caught up.
        schedule.next_ns += self._interval_ns
        if schedule.next_ns <= after:
            schedule.next_ns += ((after - schedule.next_ns) // self._interval_ns + 1) * self._interval_ns
        schedule.next_ns = max(schedule.next_ns, least_ns)

    def _read(self, read: Callable[[str], Reading], device_id: str) -> Reading:
        reading: object = None
        # A meter's bug must not end the metering of the other devices; it is counted and named.
        with suppress(Exception):
            reading = read(device_id)
        now_ns, unix_seconds = self._clocks.monotonic_ns(), self._clocks.unix_seconds()
        try:
            return _checked(reading, device_id, now_ns)
        except (TypeError, ValueError, OverflowError):
            self.errors += 1
            return Reading(device_id, now_ns, unix_seconds, fault=Fault.UNKNOWN_ERROR)

    def _hand_over(self, take: Callable[[Reading], None], reading: Reading) -> None:
        try:
            with self._lock:
                take(reading)
        except Exception:
            self.errors += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            wake = self.tick(self._clocks.monotonic_ns())
            self._stop.wait(max(0.0, (wake - self._clocks.monotonic_ns()) * 1e-9))


_PLAIN = {float, type(None)}


def _checked(reading: object, device_id: str, now_ns: int) -> Reading:
    """The reading with plain numbers in it. Raises TypeError or ValueError where it is no such reading."""
    if not isinstance(reading, Reading) or reading.device_id != device_id:
        raise TypeError(f"not a reading of {device_id}: {reading!r}")
    within = float(reading.within_seconds)
    if reading.monotonic_ns > now_ns or not math.isfinite(reading.unix_seconds) or not 0.0 <= within < 1e4:
        raise ValueError("the reading has an impossible time")
    numbers = (reading.energy_joules, reading.power_watts)
    if type(reading.monotonic_ns) is int and reading.fault is None and _PLAIN.issuperset(map(type, numbers)):
        return reading
    return replace(
        reading,
        monotonic_ns=int(reading.monotonic_ns),
        energy_joules=_number(reading.energy_joules),
        power_watts=_number(reading.power_watts),
        fault=None if reading.fault is None else Fault(reading.fault),
        within_seconds=within,
    )


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | str | bytes | complex):
        raise TypeError(f"not a number: {value!r}")
    return float(value)  # type: ignore[arg-type]
