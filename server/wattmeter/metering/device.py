"""Everything of one device: its counter, its timeline, its faults, its state, and when to read it next."""

from __future__ import annotations

import math
from collections.abc import Iterable

from wattmeter.faults import Fault
from wattmeter.metering.counter import (
    COUNTER_LIMIT_MULTIPLE,
    GAP_SECONDS,
    MOST_WATTS,
    POWER_LIMIT_MULTIPLE,
    EnergyCounter,
    FaultInterval,
    PowerIntegrator,
    is_power,
)
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.schema import DeviceStatus

FAILED_SECONDS = 2.0
GAP_PERIODS = 5
# A GPU whose kernels ran for less of the time than this did nothing that its power would show.
USED_RATIO = 0.02


class MeteredDevice:
    """Takes a device's readings and keeps its timeline. Its owner locks.

    The energy counter is used where there is one. A device that says NOT_SUPPORTED to the first energy read
    is metered by its power from then on, and flagged `integrated_power`.
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
        self.timeline = EnergyTimeline(history_seconds=history_seconds)
        self._phase_lock = PhaseLock(update_period_seconds) if update_period_seconds else None
        gap_seconds = max(GAP_SECONDS, GAP_PERIODS * (update_period_seconds or 0.0))
        self._counter = EnergyCounter(device.id, phase_lock=self._phase_lock, gap_seconds=gap_seconds)
        self._integrator: PowerIntegrator | None = None
        self._seen_energy = False
        self._last_energy: Reading | None = None
        self._power: tuple[int, float] | None = None
        self._power_fault: Fault | None = None
        self._answered_ns: int | None = None
        self._fault: Fault | None = None
        self._fault_counts: dict[str, int] = {}
        self._most_power_watts = MOST_WATTS
        self._limit_watts = 0.0
        self._shared: FaultInterval | None = None
        self._state_ns: int | None = None
        self.state = DeviceState(None, None, device.power_limit_watts)
        self._take_limit(device.power_limit_watts)

    # --- what the sampler brings ----------------------------------------------------------------------------

    def take_energy(self, reading: Reading) -> None:
        """Take what a read of the energy counter gave, a fault too."""
        self._last_energy = reading
        if self._integrator is not None:
            return
        if reading.fault is Fault.NOT_SUPPORTED and not self._seen_energy:
            self._integrator = PowerIntegrator(self.device.id, most_watts=self._most_power_watts)
            self.flags |= {Fault.INTEGRATED_POWER}
            return
        if reading.energy_joules is not None:
            self._seen_energy = True
            self._answered_ns = reading.monotonic_ns
            self._fault = None
            if self._power_fault is not None:  # of the power alone: the counter answers
                self._count(self._power_fault)
        else:
            self._fault = reading.fault or Fault.UNKNOWN_ERROR
        self._power_fault = None
        for update in self._counter.add(reading):
            self.timeline.add_update(update)
        for fault in self._counter.take_faults():
            self.add_fault(fault)

    def take_power(self, reading: Reading) -> None:
        """Take what a read of the power gave, a fault too."""
        watts = reading.power_watts
        if watts is not None and is_power(watts, self._most_power_watts):
            self._power = (reading.monotonic_ns, watts)
            self.timeline.add_power(reading.monotonic_ns, watts)
            self._counter.add_power(reading.monotonic_ns, watts)
        elif self._integrator is None and self._power is not None:
            # For show beside a counter: no joule is in doubt, but the last watts are.
            self._power, self._power_fault = None, _power_fault(reading)
        if self._integrator is None:
            return
        if watts is not None:
            self._answered_ns = reading.monotonic_ns
            self._fault = None
        else:
            self._fault = reading.fault or Fault.UNKNOWN_ERROR
        for update in self._integrator.add(reading):
            self.timeline.add_update(update)
        for fault in self._integrator.take_faults():
            self.add_fault(fault)

    def take_state(self, state: DeviceState, now_ns: int, *, quiet: bool = False) -> None:
        """Take the device's state as read at now_ns; `quiet` where none of its requests ran for a while.

        A device on which other processes compute, or which computes although it is quiet, is flagged
        `shared_device` from the state before up to the next one. MIG that was switched on stays flagged.
        """
        since_ns = now_ns if self._state_ns is None else self._state_ns
        self.state, self._state_ns = state, now_ns
        self._take_limit(state.power_limit_watts)
        if state.mig:
            self.flags |= {Fault.MIG}
        if state.other_processes or (quiet and in_use([state])):
            if self._shared is None:
                detail = f"{state.other_processes or 'unknown'} other processes"
                self._shared = FaultInterval(self.device.id, Fault.SHARED_DEVICE, since_ns, None, detail)
                self.add_fault(self._shared)
        elif self._shared is not None:
            self._shared.end_ns = now_ns
            self._shared = None

    def next_read_ns(self, not_before_ns: int) -> int | None:
        """When to read the counter next, `not_before_ns` at the earliest; None where any time will do."""
        last = self._last_energy
        if self._phase_lock is None or last is None:
            return None
        call_ns = 2 * round(last.within_seconds * 1e9)
        return self._phase_lock.next_read_ns(last.monotonic_ns, not_before_ns, call_ns=call_ns)

    def add_fault(self, fault: FaultInterval) -> None:
        self.timeline.add_fault(fault)
        self._count(fault.fault)

    def clock_stepped(self, now_ns: int, step_seconds: float) -> None:
        """The wall clock jumped in the second before now_ns."""
        detail = f"wall clock moved by {step_seconds:+.3f} s"
        start_ns = now_ns - 1_000_000_000
        self.add_fault(FaultInterval(self.device.id, Fault.CLOCK_STEP, start_ns, now_ns + 1, detail))

    # --- what is asked --------------------------------------------------------------------------------------

    def failure(self, now_ns: int) -> str | None:
        """Why the device gives no energy at present; None where it does or has only just begun."""
        if Fault.STALE_SENSOR in self.timeline.flags(now_ns - 1, now_ns):
            return f"meter of {self.device.id}: {Fault.STALE_SENSOR.value}"
        age = self._age_seconds(now_ns)
        if self._fault is not None:
            return f"meter of {self.device.id}: {self._fault.value}"
        if age is not None and age > FAILED_SECONDS:
            return f"meter of {self.device.id}: no reading for {age:.0f} s"
        return None

    def status(self, now_ns: int) -> DeviceStatus:
        joules = self._counter.joules if self._seen_energy else None
        if self._integrator is not None:
            joules = self._integrator.joules
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

    def _flags(self, now_ns: int) -> frozenset[Fault]:
        """What is wrong at present: a read's own fault, or an interval that has not ended."""
        if self._fault is not None:
            return self.flags | {self._fault}
        now = self.timeline.flags(now_ns - 1, now_ns) & {Fault.STALE_SENSOR, Fault.SHARED_DEVICE}
        age = self._age_seconds(now_ns)
        if self._integrator is not None and age is not None and age > GAP_SECONDS:
            now |= {Fault.STALE_SENSOR}
        return self.flags | now

    def _age_seconds(self, now_ns: int) -> float | None:
        return None if self._answered_ns is None else (now_ns - self._answered_ns) * 1e-9

    def _take_limit(self, watts: float | None) -> None:
        """What the device may draw follows from the highest power limit that was seen.

        A modelled device keeps the absolute bound: a model that gets a step late catches up at once.
        """
        if self.device.source == "modelled":
            return
        if watts is None or not math.isfinite(watts) or watts <= self._limit_watts:
            return
        self._limit_watts = watts
        self._most_power_watts = POWER_LIMIT_MULTIPLE * watts
        self._counter.most_watts = COUNTER_LIMIT_MULTIPLE * watts
        if self._integrator is not None:
            self._integrator.most_watts = self._most_power_watts

    def _count(self, fault: Fault) -> None:
        self._fault_counts[fault.value] = self._fault_counts.get(fault.value, 0) + 1


def _power_fault(reading: Reading) -> Fault:
    """Why a power reading cannot be used."""
    if reading.power_watts is not None and math.isfinite(reading.power_watts):
        return reading.fault or Fault.IMPLAUSIBLE_POWER
    return reading.fault or Fault.UNKNOWN_ERROR


def in_use(states: Iterable[DeviceState]) -> bool | None:
    """Whether any of the devices computed when its state was read; None where one does not tell."""
    ratios = [state.utilization_ratio for state in states]
    if any(ratio is not None and ratio > USED_RATIO for ratio in ratios):
        return True
    return None if None in ratios else False


def combined_limit_watts(states: Iterable[DeviceState]) -> float | None:
    """What all the devices together may draw; None where one does not tell its limit."""
    limits = [state.power_limit_watts for state in states]
    return None if None in limits else sum(limit for limit in limits if limit is not None)
