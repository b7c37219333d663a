"""One monotonic joule counter out of a device's readings, with every fault a named interval.

The counter is the sensor's own where there is one, and integrated power where there is not (`PowerCounter`).
What comes out are knots: energies at the moments when the sensor was updated. Nothing is clamped: where a
counter falls, what was used meanwhile is unknown, and the segment ends there.
"""

from __future__ import annotations

import math

from wattmeter.edges import EdgeClock
from wattmeter.faults import Fault
from wattmeter.knots import FaultInterval, Knot
from wattmeter.meter import Reading

STALE_SECONDS = 1.0
STALE_POWER_SECONDS = 30.0
GAP_SECONDS = 1.0


class _Faults:
    """Opens and closes fault intervals of one device; at most one of a kind is open at a time."""

    def __init__(self, device_id: str) -> None:
        self._device_id = device_id
        self._open: dict[Fault, FaultInterval] = {}
        self._new: list[FaultInterval] = []

    def begin(self, fault: Fault, start_ns: int, detail: str = "") -> None:
        if fault not in self._open:
            interval = FaultInterval(self._device_id, fault, start_ns, None, detail)
            self._open[fault] = interval
            self._new.append(interval)

    def end(self, fault: Fault, end_ns: int) -> None:
        interval = self._open.pop(fault, None)
        if interval is not None:
            interval.end_ns = end_ns

    def over(self, fault: Fault, start_ns: int, end_ns: int | None, detail: str = "") -> FaultInterval:
        interval = FaultInterval(self._device_id, fault, start_ns, end_ns, detail)
        self._new.append(interval)
        return interval

    def end_read_faults(self, end_ns: int) -> None:
        for fault in [fault for fault in self._open if fault is not Fault.STALE_SENSOR]:
            self.end(fault, end_ns)

    def take(self) -> list[FaultInterval]:
        new, self._new = self._new, []
        return new


class JouleCounter:
    """Turns energy readings of one device into knots.

    `add` returns the knots that a reading made: one when the value moved, none when it did not. `take_faults`
    returns the fault intervals begun since the last call; open ones are closed in place later.

    Where nothing was read for more than `gap_seconds` (the process was stopped, a read hung) the energy is
    known, but not when it was used: the stretch is a stale sensor's, up to the first update seen after it.
    """

    def __init__(
        self,
        device_id: str,
        *,
        edges: EdgeClock | None = None,
        stale_seconds: float = STALE_SECONDS,
        gap_seconds: float = GAP_SECONDS,
    ) -> None:
        self.edges = edges
        self._stale_ns = round(stale_seconds * 1e9)
        self._gap_ns = round(gap_seconds * 1e9)
        self._gap: FaultInterval | None = None
        self._faults = _Faults(device_id)
        self._segment = 0
        self._joules = 0.0
        self._raw: float | None = None
        self._last_ns = 0
        self._half_ns = 0
        self._moved_ns = 0
        self._after_fault: int | None = None
        self._first_move_pending = True

    @property
    def joules(self) -> float:
        """Joules since the first reading, as far as they are known."""
        return self._joules

    def take_faults(self) -> list[FaultInterval]:
        return self._faults.take()

    def add(self, reading: Reading) -> list[Knot]:
        """Take one reading, not before the last; one without an energy is a fault over its time."""
        now = reading.monotonic_ns
        value = reading.energy_joules
        if value is None or not math.isfinite(value) or value < 0.0:
            reason = reading.fault or Fault.UNKNOWN_ERROR
            self._faults.begin(reason, self._last_ns if self._raw is not None else now, f"energy {value!r}")
            return []
        if self._raw is not None and now < self._last_ns:
            raise ValueError("joule counter: readings must come in time order")
        self._faults.end_read_faults(now)
        previous, previous_ns, previous_half_ns = self._raw, self._last_ns, self._half_ns
        self._raw, self._last_ns, self._half_ns = value, now, round(reading.within_seconds * 1e9)
        if self.edges is not None:
            self.edges.call_ns = 2 * self._half_ns
        unread_ns = now + self._half_ns - previous_ns - previous_half_ns
        if previous is not None and unread_ns > self._gap_ns:
            self._begin_gap(previous_ns, unread_ns)
        if previous is None:
            self._moved_ns = now
        elif value < previous:
            self._reset(previous, value, previous_ns)
        elif value == previous:
            self._stands(previous_ns + previous_half_ns)
        else:
            knot = self._moved(value - previous, previous_ns - previous_half_ns)
            if unread_ns <= self._gap_ns:
                self._end_gap(knot.by_ns)
            return [knot]
        return []

    def _begin_gap(self, since_ns: int, unread_ns: int) -> None:
        self._end_gap(since_ns)
        detail = f"not read for {unread_ns * 1e-9:.1f} s"
        self._gap = self._faults.over(Fault.STALE_SENSOR, since_ns, None, detail)

    def _end_gap(self, end_ns: int) -> None:
        if self._gap is not None:
            self._gap.end_ns = end_ns
            self._gap = None

    def _reset(self, previous: float, value: float, previous_ns: int) -> None:
        """The counter began anew (driver reload, GPU reset): what was used since the last read is unknown."""
        self._faults.over(
            Fault.COUNTER_RESET, previous_ns, self._last_ns, f"{previous:.3f} J to {value:.3f} J"
        )
        self._faults.end(Fault.STALE_SENSOR, self._last_ns)
        self._moved_ns = self._last_ns
        self._segment += 1
        self._first_move_pending = True
        if self.edges is not None:
            self.edges.restart()

    def _stands(self, since_ns: int) -> None:
        if self.edges is not None:
            self.edges.unmoved(since_ns, self._last_ns - self._half_ns)
        if self._last_ns - self._moved_ns > self._stale_ns:
            self._faults.begin(Fault.STALE_SENSOR, self._moved_ns, "the counter stands while time passes")

    def _moved(self, gained: float, since_ns: int) -> Knot:
        self._faults.end(Fault.STALE_SENSOR, self._last_ns)
        self._moved_ns = self._last_ns
        after, by = since_ns, self._last_ns + self._half_ns
        # A read that took long may show the counter as it was before one of its updates.
        if self.edges is not None and 4 * self._half_ns <= self.edges.period_ns:
            after, by = self.edges.moved(after, by)
        if self._first_move_pending:
            # The first move after the start or a reset: energy counts from this update on, since when the
            # value before it was reached is not known.
            self._first_move_pending = False
        else:
            self._joules += gained
        return Knot(after, by, self._joules, self._segment)


class PowerCounter:
    """Integrates power where a device has no energy counter: trapezoids between readings.

    A gap of more than GAP_SECONDS between readings ends the segment: its energy is unknown, not interpolated.
    Power that stands to the last digit for STALE_POWER_SECONDS is a stale sensor: a real one never holds
    still.
    """

    def __init__(
        self,
        device_id: str,
        *,
        gap_seconds: float = GAP_SECONDS,
        stale_seconds: float = STALE_POWER_SECONDS,
    ) -> None:
        self._stale_ns = round(stale_seconds * 1e9)
        self._moved_ns = 0
        self._gap_ns = round(gap_seconds * 1e9)
        self._faults = _Faults(device_id)
        self._segment = 0
        self._joules = 0.0
        self._last: tuple[int, float] | None = None

    @property
    def joules(self) -> float:
        return self._joules

    def take_faults(self) -> list[FaultInterval]:
        return self._faults.take()

    def add(self, reading: Reading) -> list[Knot]:
        """Take one power reading, later than all before."""
        now, watts = reading.monotonic_ns, reading.power_watts
        if watts is None or not math.isfinite(watts) or watts < 0.0:
            reason = reading.fault or Fault.UNKNOWN_ERROR
            self._faults.begin(reason, self._last[0] if self._last else now, f"power {watts!r}")
            return []
        self._faults.end_read_faults(now)
        last, self._last = self._last, (now, watts)
        if last is None or watts != last[1]:
            self._moved_ns = now
            self._faults.end(Fault.STALE_SENSOR, now)
        elif now - self._moved_ns > self._stale_ns:
            self._faults.begin(Fault.STALE_SENSOR, self._moved_ns, "power stands to the last digit")
        if last is None:
            return [Knot(now, now, self._joules, self._segment)]
        if now <= last[0]:
            raise ValueError("power counter: readings must come in time order")
        if now - last[0] > self._gap_ns:
            self._faults.over(Fault.PARTIAL_COVERAGE, last[0], now, "no power reading: energy unknown")
            self._segment += 1
            return [Knot(now, now, self._joules, self._segment)]
        self._joules += 0.5 * (last[1] + watts) * (now - last[0]) * 1e-9
        return [Knot(now, now, self._joules, self._segment)]
