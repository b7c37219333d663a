"""The thread that reads a meter: at a bounded rate, without drift, and on through every failure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wattmeter.clock import Clocks
from wattmeter.edges import EdgeClock
from wattmeter.faults import Fault
from wattmeter.meter import Device, DeviceState, Meter, Reading

READS_PER_SECOND = 10
POWER_PERIOD_SECONDS = 0.025
# Reads that follow updates 100 ms apart come a little early or late; over seconds the mean is 10 and no more.
LIMIT_SLACK_NS = 20_000_000
RETRY_SECONDS = 1.0
STATE_PERIOD_SECONDS = 1.0


@dataclass(slots=True)
class _Schedule:
    """When a device's counter is read next; `reads` holds the times of the last reads, for the limit."""

    edges: EdgeClock | None
    next_ns: int
    reads: deque[int] = field(default_factory=lambda: deque(maxlen=READS_PER_SECOND))


class Sampler:
    """Reads every device of a meter and hands the readings to `on_energy` and `on_power`, from one thread.

    The counter of a device is read at most READS_PER_SECOND times in any second (and no oftener than the
    meter's `min_energy_interval_seconds` asks on average), at the moments its EdgeClock picks where it has
    one; power every POWER_PERIOD_SECONDS. A reading with a fault, or an exception from the meter, is handed
    on as a reading with that fault; the device is tried again after RETRY_SECONDS. `read_cost_seconds` is the
    mean time one counter read took.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        on_energy: Callable[[Reading], None],
        on_power: Callable[[Reading], None],
        on_state: Callable[[str, DeviceState], None] | None = None,
        edges: dict[str, EdgeClock] | None = None,
        power_period_seconds: float = POWER_PERIOD_SECONDS,
        clocks: Clocks | None = None,
    ) -> None:
        self._clocks = clocks or Clocks()
        self._meter = meter
        self._on_energy = on_energy
        self._on_power = on_power
        self._on_state = on_state
        self._next_state_ns = 0
        self._period_ns = round(power_period_seconds * 1e9)
        self._interval_ns = round(meter.min_energy_interval_seconds * 1e9)
        self._devices: Sequence[Device] = tuple(meter.devices)
        now = self._clocks.monotonic_ns()
        self._schedules = {
            device.id: _Schedule((edges or {}).get(device.id), now) for device in self._devices
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
        for device in self._devices:
            schedule = self._schedules[device.id]
            self._deliver(self._read(self._meter.read_power, device.id), self._on_power)
            if now_ns >= schedule.next_ns:
                self._read_energy(device.id, schedule)
            wake = min(wake, schedule.next_ns)
        if now_ns >= self._next_state_ns:
            self._next_state_ns = now_ns + round(STATE_PERIOD_SECONDS * 1e9)
            self._read_states()
        return wake

    def _read_states(self) -> None:
        read = getattr(self._meter, "read_state", None)
        if read is None or self._on_state is None:
            return
        for device in self._devices:
            try:
                self._on_state(device.id, read(device.id))
            except Exception:
                self.errors += 1

    def _read_energy(self, device_id: str, schedule: _Schedule) -> None:
        before = self._clocks.monotonic_ns()
        reading = self._read(self._meter.read_energy, device_id)
        after = self._clocks.monotonic_ns()
        self.reads += 1
        self.read_seconds += (after - before) * 1e-9
        self._deliver(reading, self._on_energy)
        schedule.reads.append(before)
        if reading.energy_joules is None:
            schedule.next_ns = after + round(RETRY_SECONDS * 1e9)
            return
        least_ns = 0
        if len(schedule.reads) == schedule.reads.maxlen:
            window_ns = max(1_000_000_000, READS_PER_SECOND * self._interval_ns)
            least_ns = schedule.reads[0] + window_ns - LIMIT_SLACK_NS
        if schedule.edges is not None:
            schedule.next_ns = schedule.edges.next_read_ns(reading.monotonic_ns, least_ns)
            return
        # On a grid, so that the time of a read does not add up; what was missed is skipped, not caught up.
        schedule.next_ns += self._interval_ns
        if schedule.next_ns <= after:
            schedule.next_ns += ((after - schedule.next_ns) // self._interval_ns + 1) * self._interval_ns
        schedule.next_ns = max(schedule.next_ns, least_ns)

    def _read(self, read: Callable[[str], Reading], device_id: str) -> Reading:
        try:
            return read(device_id)
        except Exception:
            # A meter's bug must not end the metering of the other devices; it is counted and named.
            return Reading(
                device_id, self._clocks.monotonic_ns(), self._clocks.unix_seconds(), fault=Fault.UNKNOWN_ERROR
            )

    def _deliver(self, reading: Reading, sink: Callable[[Reading], None]) -> None:
        try:
            sink(reading)
        except Exception:
            self.errors += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            wake = self.tick(self._clocks.monotonic_ns())
            self._stop.wait(max(0.0, (wake - self._clocks.monotonic_ns()) * 1e-9))
