"""What is noted of every reading on its way to a monitor: the node's own counters, and the recording."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattmeter.faults import Fault
from wattmeter.metering.counter import COUNTER_LIMIT_MULTIPLE, MOST_WATTS, EnergyCounter
from wattmeter.meters.base import Device, DeviceState, Meter, Reading
from wattmeter.steps.recording import RecordingWriter

# A monitor that takes over knows what was read for so long before.
RECENT_SECONDS = 10.0
NOT_RUNNING = "the meter was not running"


@dataclass(frozen=True, slots=True)
class Hole:
    """One device while no meter ran: its counter went on, so the joules are known where it did not start
    anew, nor rose by more than the device can draw; what they were spent on is not."""

    device_id: str
    start_unix: float
    end_unix: float
    joules: float | None
    reason: str = NOT_RUNNING

    def part(self, start_unix: float, end_unix: float) -> float | None:
        """The joules in a window, spread evenly over the hole; None where they are not known."""
        low, high = max(start_unix, self.start_unix), min(end_unix, self.end_unix)
        if self.joules is None or high <= low:
            return None if self.joules is None else 0.0
        return self.joules * (high - low) / (self.end_unix - self.start_unix)

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.device_id,
            "start": self.start_unix,
            "end": self.end_unix,
            "joules": self.joules,
            "reason": self.reason,
        }


@dataclass(slots=True)
class _Kept:
    """One device's counter: joules of meters before this one, the last reading, and what it all comes to."""

    counter: EnergyCounter
    before_joules: float
    last: Reading
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def joules(self) -> float:
        return self.before_joules + self.counter.joules


class DeviceCounters:
    """Each device's joules since the node's first meter began, over all monitors and restarts. Thread-safe.

    Several monitors may read one device: a reading older than the last one adds nothing. What a counter that
    falls, or rises by more than its device can draw, gained meanwhile is not known and not counted, as in the
    monitors' own windows. `saved` is what `as_json` gave to a meter before this one.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._recent: dict[str, deque[Reading]] = {}
        # device id: (the counter's own joules, the joules gained so far, unix seconds of the reading)
        self._before = {
            str(name): (float(row[0]), float(row[1]), float(row[2])) for name, row in (saved or {}).items()
        }
        self.holes: list[Hole] = []

    def observe(self, reading: Reading, *, most_watts: float = MOST_WATTS) -> None:
        """Take a reading of a device that cannot draw more than `most_watts`."""
        with self._lock:
            self._remember(reading)
            if reading.energy_joules is None:
                return
            kept = self._kept.get(reading.device_id)
            if kept is None:
                kept = self._kept[reading.device_id] = self._begun(reading, most_watts)
            elif reading.monotonic_ns < kept.last.monotonic_ns:
                return
            kept.counter.most_watts = most_watts
            kept.counter.add(reading)
            kept.last = reading
            for fault in kept.counter.take_faults():
                if fault.fault in (Fault.COUNTER_JUMP, Fault.COUNTER_RESET):
                    kept.faults[fault.fault.value] = kept.faults.get(fault.fault.value, 0) + 1

    def recent(self, device_ids: Iterable[str]) -> list[Reading]:
        """What was read of the devices in the last RECENT_SECONDS, in order of time."""
        with self._lock:
            readings = [reading for name in device_ids for reading in self._recent.get(name, ())]
        return sorted(readings, key=lambda reading: reading.monotonic_ns)

    def _remember(self, reading: Reading) -> None:
        if reading.energy_joules is None and reading.power_watts is None:
            return
        recent = self._recent.setdefault(reading.device_id, deque())
        recent.append(reading)
        while reading.monotonic_ns - recent[0].monotonic_ns > RECENT_SECONDS * 1e9:
            recent.popleft()

    def _begun(self, reading: Reading, most_watts: float) -> _Kept:
        """A device's first reading here; where a meter before this one knew it, a hole lies between."""
        counter = EnergyCounter(reading.device_id, from_first_reading=True, most_watts=most_watts)
        before = self._before.pop(reading.device_id, None)
        if before is None:
            return _Kept(counter, 0.0, reading)
        assert reading.energy_joules is not None
        gained, reason = reading.energy_joules - before[0], NOT_RUNNING
        seconds = max(reading.unix_seconds - before[2], 0.0)
        if gained < 0.0:
            reason += ", and the counter began anew meanwhile"
        elif gained > most_watts * (seconds + 1.0):
            reason += f", and the counter rose by more than {most_watts:.0f} W can explain"
        known = gained if reason == NOT_RUNNING else None
        self.holes.append(Hole(reading.device_id, before[2], reading.unix_seconds, known, reason))
        return _Kept(counter, before[1] + (known or 0.0), reading)

    def joules(self, device_id: str) -> float | None:
        with self._lock:
            kept = self._kept.get(device_id)
            return None if kept is None else kept.joules

    def faults(self, device_id: str) -> dict[str, int]:
        """How often each fault of the counter's own was seen, by its name."""
        with self._lock:
            kept = self._kept.get(device_id)
            return {} if kept is None else dict(kept.faults)

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            now = {
                name: (kept.last.energy_joules, kept.joules, kept.last.unix_seconds)
                for name, kept in self._kept.items()
            }
            return {name: list(row) for name, row in {**self._before, **now}.items()}


class TappedMeter:
    """A meter whose readings are noted as they are taken. `lock` is shared by all who read the same meter."""

    def __init__(
        self,
        meter: Meter,
        *,
        counters: DeviceCounters | None = None,
        writer: RecordingWriter | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        self._meter = meter
        self._counters = counters
        self._writer = writer
        self._lock = lock or threading.Lock()
        self._most_watts = {
            device.id: COUNTER_LIMIT_MULTIPLE * device.power_limit_watts
            for device in meter.devices
            # A model that gets a step late catches up at once.
            if device.power_limit_watts is not None and device.source != "modelled"
        }
        self.source = meter.source
        self.min_energy_interval_seconds = meter.min_energy_interval_seconds
        read_state = getattr(meter, "read_state", None)
        if read_state is not None:
            self._read_state = read_state
            self.read_state = self._noted_state

    def __getattr__(self, name: str) -> Any:
        # What a meter may have besides the protocol (its update period, temperatures) passes through.
        return getattr(self._meter, name)

    @property
    def devices(self) -> Sequence[Device]:
        return self._meter.devices

    def read_energy(self, device_id: str) -> Reading:
        with self._lock:
            reading = self._meter.read_energy(device_id)
        if self._counters is not None:
            self._counters.observe(reading, most_watts=self._most_watts.get(device_id, MOST_WATTS))
        if self._writer is not None:
            self._writer.add_reading(reading)
        return reading

    def read_power(self, device_id: str) -> Reading:
        with self._lock:
            reading = self._meter.read_power(device_id)
        if self._counters is not None:
            self._counters.observe(reading)
        if self._writer is not None:
            self._writer.add_reading(reading)
        return reading

    def _noted_state(self, device_id: str) -> DeviceState:
        # About once a second (STATE_PERIOD_SECONDS); with it is written what it cost.
        before = time.monotonic_ns()
        with self._lock:
            state: DeviceState = self._read_state(device_id)
        after = time.monotonic_ns()
        if self._writer is not None:
            self._writer.add_state(
                device_id, (before + after) // 2, state, read_seconds=(after - before) * 1e-9
            )
        return state

    def close(self) -> None:
        self._meter.close()
