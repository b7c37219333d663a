"""One monotonic joule counter out of a device's readings, with every fault a named interval.

The counter is the sensor's own where there is one (`EnergyCounter`), and integrated power where there is not
(`PowerIntegrator`). What comes out are counter updates: energies at the moments when the sensor was updated.
Nothing is clamped: where a counter falls, or rises by more than its device can draw, what was used meanwhile
is unknown, and the segment ends there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from wattmeter.faults import Fault
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.meters.base import Reading

STALE_SECONDS = 1.0
# The instant power of the recorded H200 stood to the last digit for 0.8 s at most, in 13 minutes.
STALE_POWER_SECONDS = 2.5
GAP_SECONDS = 1.0
# No single device draws more, whatever it is: the largest boards and CPUs of today stay below 2 kW.
MOST_WATTS = 10_000.0
# A power limit is kept on the average of some 10 ms. A counter's mean over 100 ms may exceed it a little,
# an instant reading by more.
COUNTER_LIMIT_MULTIPLE = 1.5
POWER_LIMIT_MULTIPLE = 2.0
# Counters move in steps of up to a joule.
STEP_JOULES = 1.0
# A counter that stood this long, and then gained less than half of what power says, has lost the rest.
LOST_SECONDS = 0.35
LOST_FRACTION = 0.5
LOST_JOULES = 5.0


def is_power(watts: float | None, most_watts: float) -> bool:
    """Whether a device that may draw `most_watts` can have this power."""
    return watts is not None and math.isfinite(watts) and 0.0 <= watts <= most_watts


class _Faults:
    """Opens and closes fault intervals of one device; at most one of a kind is open at a time."""

    # These are ended by what ends them, not by the next reading.
    LASTING = frozenset({Fault.STALE_SENSOR, Fault.COUNTER_RESET, Fault.COUNTER_JUMP})

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

    def over(self, fault: Fault, start_ns: int, end_ns: int, detail: str = "") -> None:
        self._new.append(FaultInterval(self._device_id, fault, start_ns, end_ns, detail))

    def end_read_faults(self, end_ns: int) -> None:
        for fault in [fault for fault in self._open if fault not in self.LASTING]:
            self.end(fault, end_ns)

    def take(self) -> list[FaultInterval]:
        new, self._new = self._new, []
        return new


class _Gauge:
    """What the power gauge says a device used at least since a moment, as far as the gauge was read.

    Between two readings the lower one holds: a peak that was read just before a time without readings says
    nothing of that time.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._since_ns = 0
        self._joules = 0.0
        self._seconds = 0.0

    def add(self, time_ns: int, watts: float) -> None:
        """Take a reading; between it and the one before is nothing known if they are GAP_SECONDS apart."""
        if self._last is not None and time_ns > self._last[0]:
            start_ns = max(self._last[0], self._since_ns)
            seconds = (time_ns - start_ns) * 1e-9
            if 0.0 < seconds <= GAP_SECONDS:
                self._joules += min(self._last[1], watts) * seconds
                self._seconds += seconds
        self._last = (time_ns, watts)

    def restart(self, since_ns: int) -> None:
        self._since_ns, self._joules, self._seconds = since_ns, 0.0, 0.0

    @property
    def draws(self) -> bool:
        """Whether the last reading was above zero."""
        return self._last is not None and self._last[1] > 0.0

    def joules(self, now_ns: int) -> float | None:
        """Joules since the restart, at least; None where less than 80 % of the time was watched."""
        watched = (now_ns - self._since_ns) * 1e-9
        return self._joules if self._seconds > 0.8 * watched - 0.05 and self._seconds > 0.0 else None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A counter's value as read at `time_ns`, give or take `half_ns`."""

    joules: float
    time_ns: int
    half_ns: int

    @property
    def from_ns(self) -> int:
        return self.time_ns - self.half_ns

    @property
    def by_ns(self) -> int:
        return self.time_ns + self.half_ns


class EnergyCounter:
    """Turns energy readings of one device into counter updates.

    `add` returns the updates that a reading made: one when the value moved, none when it did not.
    `take_faults` returns the fault intervals begun since the last call; open ones are closed in place later.
    `add_power` takes what the device's power gauge says, against which a standing counter is judged.

    A value that falls (`counter_reset`), or rises by more than `most_watts` allow (`counter_jump`), is not
    believed until a second value continues it. Then a new segment begins, since the joules in between are not
    known. Where the next value continues the one before, a single reading was wrong and no joule is lost.

    A time without readings loses no joule either: the counter went on counting. Only the moments at which
    they were used are not known, which the bracket of the next update says.

    With `from_first_reading` the joules begin with the first reading, not with the first update after it (of
    which it is known when it was): for sums that nobody asks for moments.
    """

    def __init__(
        self,
        device_id: str,
        *,
        phase_lock: PhaseLock | None = None,
        from_first_reading: bool = False,
        stale_seconds: float = STALE_SECONDS,
        gap_seconds: float = GAP_SECONDS,
        most_watts: float = MOST_WATTS,
    ) -> None:
        self.most_watts = most_watts
        self._lock = phase_lock
        self._stale_ns = round(stale_seconds * 1e9)
        self._gap_ns = round(gap_seconds * 1e9)
        self._faults = _Faults(device_id)
        self._gauge = _Gauge()
        self._segment = 0
        self._joules = 0.0
        self._last: _Seen | None = None
        self._suspect: tuple[_Seen, Fault] | None = None
        self._moved_ns = 0
        # The earliest moment at which the last value can have been reached.
        self._reached_ns = 0
        self._first_move_pending = True
        self._from_first_reading = from_first_reading
        self._intervals: deque[int] = deque(maxlen=8)

    @property
    def joules(self) -> float:
        """Joules since the first reading, as far as they are known."""
        return self._joules

    def take_faults(self) -> list[FaultInterval]:
        return self._faults.take()

    def add_power(self, monotonic_ns: int, watts: float) -> None:
        """Take a plausible power reading of the same device."""
        self._gauge.add(monotonic_ns, watts)

    def add(self, reading: Reading) -> list[CounterUpdate]:
        """Take one reading, not before the last; one without an energy is a fault over its time.

        A reading with an energy and a fault does not continue the ones before it: a segment begins with it.
        Raises ValueError for a reading that is older than the last one.
        """
        value, last = reading.energy_joules, self._last
        if value is None or not math.isfinite(value) or value < 0.0:
            reason = reading.fault or Fault.UNKNOWN_ERROR
            start_ns = reading.monotonic_ns if last is None else last.time_ns
            self._faults.begin(reason, start_ns, f"energy {value!r}")
            return []
        seen = _Seen(value, reading.monotonic_ns, round(reading.within_seconds * 1e9))
        if last is not None and seen.time_ns < last.time_ns:
            raise ValueError("energy counter: readings must come in time order")
        self._faults.end_read_faults(seen.time_ns)
        if last is None:
            self._start_from(seen)
            return []
        if reading.fault is not None:
            self._faults.over(reading.fault, last.time_ns, seen.time_ns, "it does not continue the last one")
            self._begin_segment(seen)
            return []
        wrong = self._wrong(last, self._reached_ns, seen)
        if wrong is None:
            self._end_suspicion(seen.time_ns)
            return self._take(last, seen)
        if self._suspect is not None:
            suspect = self._suspect[0]
            if self._wrong(suspect, suspect.from_ns - self._stale_ns, seen) is None:
                self._end_suspicion(suspect.time_ns)
                self._begin_segment(suspect)
                return self._take(suspect, seen)
        self._suspect = (seen, wrong)
        self._faults.begin(wrong, last.time_ns, f"{last.joules:.3f} J to {value:.3f} J")
        return []

    def _wrong(self, last: _Seen, reached_ns: int, seen: _Seen) -> Fault | None:
        """Why a value cannot follow the one before, which was reached at `reached_ns` or later."""
        if seen.joules < last.joules:
            return Fault.COUNTER_RESET
        most = self.most_watts * (seen.by_ns - reached_ns) * 1e-9 + STEP_JOULES
        return Fault.COUNTER_JUMP if seen.joules - last.joules > most else None

    def _end_suspicion(self, end_ns: int) -> None:
        self._suspect = None
        self._faults.end(Fault.COUNTER_RESET, end_ns)
        self._faults.end(Fault.COUNTER_JUMP, end_ns)

    def _start_from(self, seen: _Seen) -> None:
        self._last, self._moved_ns = seen, seen.time_ns
        self._reached_ns = seen.from_ns - self._stale_ns
        self._gauge.restart(seen.time_ns)

    def _begin_segment(self, seen: _Seen) -> None:
        """What was used between the value before and this one is unknown."""
        self._end_suspicion(seen.time_ns)
        self._faults.end(Fault.STALE_SENSOR, seen.time_ns)
        self._start_from(seen)
        self._segment += 1
        self._first_move_pending = True
        if self._lock is not None:
            self._lock.restart()

    def _take(self, last: _Seen, seen: _Seen) -> list[CounterUpdate]:
        self._last = seen
        if seen.joules == last.joules:
            self._stands(last, seen)
            return []
        return [self._moved(last, seen)]

    def _stands(self, last: _Seen, seen: _Seen) -> None:
        if self._lock is not None:
            self._lock.unmoved(last.by_ns, seen.from_ns)
        expected = self._gauge.joules(seen.time_ns)
        should_move = expected is None or (expected > STEP_JOULES and self._gauge.draws)
        if seen.time_ns - self._moved_ns > self._stale_ns and should_move:
            self._faults.begin(Fault.STALE_SENSOR, self._moved_ns, "the counter stands while power is drawn")

    def _moved(self, last: _Seen, seen: _Seen) -> CounterUpdate:
        gained = seen.joules - last.joules
        # As read: what the phase lock adds is an estimate, on which no value is rejected.
        earliest_ns = last.from_ns
        after, by = earliest_ns, seen.by_ns
        unread = seen.by_ns - last.by_ns > self._gap_ns
        if unread and self._intervals:
            # The counter went on moving as often as it did before.
            after = max(after, seen.from_ns - max(self._intervals))
        # A read that took long may show the counter as it was before one of its updates.
        if self._lock is not None and 4 * seen.half_ns <= self._lock.period_ns:
            after, by = self._lock.moved(after, by, call_ns=2 * seen.half_ns)
        if not unread and not self._first_move_pending:
            self._intervals.append(by - self._reached_ns)
        if self._lost(gained, last, seen):
            self._faults.over(
                Fault.STALE_SENSOR, self._moved_ns, seen.time_ns, "the counter stood, and its joules are lost"
            )
            self._segment += 1
        elif self._first_move_pending:
            # The first move after the start or a reset: energy counts from this update on, since when the
            # value before it was reached is not known.
            self._first_move_pending = False
            if self._from_first_reading:
                self._joules += gained
        else:
            self._joules += gained
        self._faults.end(Fault.STALE_SENSOR, seen.time_ns)
        self._moved_ns, self._reached_ns = seen.time_ns, earliest_ns
        self._gauge.restart(seen.time_ns)
        return CounterUpdate(after, by, self._joules, self._segment)

    def _lost(self, gained: float, last: _Seen, seen: _Seen) -> bool:
        """Whether the counter was seen to stand for a while, and gained far less than the power gauge says.

        A counter that was not read for as long (on a busy machine) did not stand: it went on counting.
        """
        if last.time_ns - self._moved_ns < LOST_SECONDS * 1e9 or self._first_move_pending:
            return False
        expected = self._gauge.joules(seen.time_ns)
        return expected is not None and gained < LOST_FRACTION * expected - LOST_JOULES


class PowerIntegrator:
    """Integrates power where a device has no energy counter: trapezoids between readings.

    A gap of more than GAP_SECONDS between readings ends the segment: its energy is unknown, not interpolated.
    Power that stands to the last digit for STALE_POWER_SECONDS is a stale sensor: a real one never holds
    still. No power at all, or more than `most_watts`, is no reading of a device that is switched on.
    """

    def __init__(
        self,
        device_id: str,
        *,
        gap_seconds: float = GAP_SECONDS,
        stale_seconds: float = STALE_POWER_SECONDS,
        most_watts: float = MOST_WATTS,
    ) -> None:
        self.most_watts = most_watts
        self._stale_ns = round(stale_seconds * 1e9)
        self._moved_ns = 0
        self._gap_ns = round(gap_seconds * 1e9)
        self._faults = _Faults(device_id)
        self._segment = 0
        self._joules = 0.0
        self._last: tuple[int, float] | None = None

    @property
    def joules(self) -> float:
        """Joules since the first reading, as far as they are known."""
        return self._joules

    def take_faults(self) -> list[FaultInterval]:
        return self._faults.take()

    def add(self, reading: Reading) -> list[CounterUpdate]:
        """Take one power reading. Raises ValueError where it is not later than all before."""
        now, watts, last = reading.monotonic_ns, reading.power_watts, self._last
        if watts is None or reading.fault is not None or not is_power(watts, self.most_watts) or watts == 0.0:
            start_ns = last[0] if last else now
            self._faults.begin(reading.fault or self._fault_of(watts), start_ns, f"power {watts!r}")
            return []
        if last is not None and now <= last[0]:
            raise ValueError("power integrator: readings must come in time order")
        self._faults.end_read_faults(now)
        self._last = (now, watts)
        if last is None or watts != last[1]:
            self._moved_ns = now
            self._faults.end(Fault.STALE_SENSOR, now)
        elif now - self._moved_ns > self._stale_ns:
            self._faults.begin(Fault.STALE_SENSOR, self._moved_ns, "power stands to the last digit")
        if last is None:
            return [CounterUpdate(now, now, self._joules, self._segment)]
        if now - last[0] > self._gap_ns:
            detail = f"power was not read for {(now - last[0]) * 1e-9:.1f} s"
            self._faults.over(Fault.STALE_SENSOR, last[0], now, detail)
            self._segment += 1
            return [CounterUpdate(now, now, self._joules, self._segment)]
        self._joules += 0.5 * (last[1] + watts) * (now - last[0]) * 1e-9
        return [CounterUpdate(now, now, self._joules, self._segment)]

    @staticmethod
    def _fault_of(watts: float | None) -> Fault:
        if watts is None or not math.isfinite(watts) or watts < 0.0:
            return Fault.UNKNOWN_ERROR
        return Fault.IMPLAUSIBLE_POWER


@dataclass(frozen=True, slots=True)
class CounterUpdate:
    """At one moment in (after_ns, by_ns] the device had used `joules` since metering began.

    The moment is that of the sensor's update, not of the read: a counter that steps every 100 ms and is read
    at a random moment is up to 100 ms old. `segment` changes where energy was lost from sight (a reset):
    nothing may be interpolated from one segment to the next.
    """

    after_ns: int
    by_ns: int
    joules: float
    segment: int = 0

    @property
    def time_ns(self) -> int:
        return (self.after_ns + self.by_ns) // 2


@dataclass(slots=True)
class FaultInterval:
    """A named fault of one device over [start_ns, end_ns); end_ns is None while it lasts."""

    device_id: str
    fault: Fault
    start_ns: int
    end_ns: int | None = None
    detail: str = ""

    def overlaps(self, start_ns: int, end_ns: int) -> bool:
        return self.start_ns < end_ns and (self.end_ns is None or self.end_ns > start_ns)
