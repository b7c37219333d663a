"""Everything of one device: its counter, its ledger, its faults and its state for a dashboard."""

from __future__ import annotations

from wattmeter.answers import DeviceStatus
from wattmeter.counter import GAP_SECONDS, JouleCounter, PowerCounter
from wattmeter.edges import EdgeClock
from wattmeter.faults import Fault
from wattmeter.knots import FaultInterval
from wattmeter.ledger import DeviceLedger
from wattmeter.meter import Device, DeviceState, Reading

FAILED_SECONDS = 2.0
GAP_PERIODS = 5


class DeviceBook:
    """Takes a device's readings and keeps its ledger. Its owner locks.

    The energy counter is used as long as it has ever answered; a device that says NOT_SUPPORTED to the first
    energy read is metered by its power.
    """

    def __init__(
        self,
        device: Device,
        *,
        history_seconds: float,
        update_period_seconds: float | None,
        flags: frozenset[Fault] = frozenset(),
    ) -> None:
        self.flags = flags
        self.device = device
        self.ledger = DeviceLedger(history_seconds=history_seconds)
        self.edges = EdgeClock(update_period_seconds) if update_period_seconds else None
        self._gap_seconds = max(GAP_SECONDS, GAP_PERIODS * (update_period_seconds or 0.0))
        self._counter = JouleCounter(device.id, edges=self.edges, gap_seconds=self._gap_seconds)
        self._power_counter: PowerCounter | None = None
        self._seen_energy = False
        self._power: tuple[int, float] | None = None
        self._power_fault: Fault | None = None
        self._answered_ns: int | None = None
        self._fault: Fault | None = None
        self._fault_counts: dict[str, int] = {}
        self.state = DeviceState(None, None, device.power_limit_watts)

    def add_energy(self, reading: Reading) -> None:
        if reading.fault is Fault.NOT_SUPPORTED and not self._seen_energy:
            if self._power_counter is None:
                self._power_counter = PowerCounter(self.device.id)
            return
        if reading.energy_joules is not None:
            self._seen_energy = True
            self._answered_ns = reading.monotonic_ns
            self._fault = None
            if self._power_fault is not None:  # of the power alone: the counter answers
                name = self._power_fault.value
                self._fault_counts[name] = self._fault_counts.get(name, 0) + 1
        else:
            self._fault = reading.fault or Fault.UNKNOWN_ERROR
        self._power_fault = None
        for knot in self._counter.add(reading):
            self.ledger.add_knot(knot)
        for fault in self._counter.take_faults():
            self.add_fault(fault)

    def add_power(self, reading: Reading) -> None:
        if reading.power_watts is not None:
            self._power = (reading.monotonic_ns, reading.power_watts)
            self.ledger.add_power(reading.monotonic_ns, reading.power_watts)
        if self._power_counter is None or self._seen_energy:
            if reading.power_watts is None and self._power is not None:
                # For show beside a counter: no joule is in doubt, but the last watts are.
                self._power, self._power_fault = None, reading.fault or Fault.UNKNOWN_ERROR
            return
        if reading.power_watts is not None:
            self._answered_ns = reading.monotonic_ns
            self._fault = None
        else:
            self._fault = reading.fault or Fault.UNKNOWN_ERROR
        for knot in self._power_counter.add(reading):
            self.ledger.add_knot(knot)
        for fault in self._power_counter.take_faults():
            self.add_fault(fault)

    def add_fault(self, fault: FaultInterval) -> None:
        self.ledger.add_fault(fault)
        self._fault_counts[fault.fault.value] = self._fault_counts.get(fault.fault.value, 0) + 1

    def clock_stepped(self, now_ns: int, step_seconds: float) -> None:
        """The wall clock jumped in the second before now_ns."""
        detail = f"wall clock moved by {step_seconds:+.3f} s"
        start_ns = now_ns - 1_000_000_000
        self.add_fault(FaultInterval(self.device.id, Fault.CLOCK_STEP, start_ns, now_ns + 1, detail))

    def failure(self, now_ns: int) -> str | None:
        """Why the device gives no energy at present; None where it does or has only just begun."""
        if Fault.STALE_SENSOR in self.ledger.flags(now_ns - 1, now_ns):
            return f"meter of {self.device.id}: {Fault.STALE_SENSOR.value}"
        age = self._age_seconds(now_ns)
        if self._fault is not None:
            return f"meter of {self.device.id}: {self._fault.value}"
        if age is not None and age > FAILED_SECONDS:
            return f"meter of {self.device.id}: no reading for {age:.0f} s"
        return None

    def _age_seconds(self, now_ns: int) -> float | None:
        return None if self._answered_ns is None else (now_ns - self._answered_ns) * 1e-9

    def _flags(self, now_ns: int) -> frozenset[Fault]:
        """What is wrong at present: a read's own fault, or readings that stand or do not come."""
        if self._fault is not None:
            return self.flags | {self._fault}
        age = self._age_seconds(now_ns)
        unread = age is not None and age > self._gap_seconds
        stale = unread or Fault.STALE_SENSOR in self.ledger.flags(now_ns - 1, now_ns)
        return self.flags | ({Fault.STALE_SENSOR} if stale else frozenset())

    def status(self, now_ns: int) -> DeviceStatus:
        joules = self._counter.joules if self._seen_energy else None
        if self._power_counter is not None and not self._seen_energy:
            joules = self._power_counter.joules
        return DeviceStatus(
            id=self.device.id,
            name=self.device.name,
            source=self.device.source,
            power_watts=self._power[1] if self._power is not None and self._fault is None else None,
            energy_joules=joules,
            power_limit_watts=self.state.power_limit_watts,
            sample_age_seconds=self._age_seconds(now_ns),
            temperature_celsius=self.state.temperature_celsius,
            sm_clock_hertz=self.state.sm_clock_hertz,
            faults=dict(self._fault_counts),
            flags=self._flags(now_ns),
        )
