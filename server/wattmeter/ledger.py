"""The energy of one device over [t0, t1): from the counter's knots, with uncertainty, coverage and flags.

Between two knots the energy is interpolated in time; where knots lie further apart than power readings do,
the shape of the power readings is used, scaled to the knots. What lies outside the knots, or between two
segments, is not covered: it is reported missing, never filled.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wattmeter.faults import Fault
from wattmeter.knots import FaultInterval, Knot
from wattmeter.ring import I64, Ring

F64 = npt.NDArray[np.float64]

KNOTS_PER_SECOND = 12
POWERS_PER_SECOND = 12
WIDE_SECONDS = 0.25
NEIGHBOURS = 3
EXACT_HALF_SECONDS = 0.005
EXACT_WAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Interval:
    """Joules of one device over [start_ns, end_ns); None where nothing of it was covered.

    `uncertainty_joules`: one standard deviation, from the two edges of the window only (see
    `DeviceLedger.energy`).
    """

    start_ns: int
    end_ns: int
    joules: float | None
    uncertainty_joules: float | None
    covered_seconds: float
    flags: frozenset[Fault]

    @property
    def complete(self) -> bool:
        return self.joules is not None and Fault.PARTIAL_COVERAGE not in self.flags


class DeviceLedger:
    """Knots, powers and faults of one device over the last `history_seconds`. Its owner locks."""

    def __init__(self, *, history_seconds: float = 3600.0) -> None:
        self._knots = Ring(max(16, round(history_seconds * KNOTS_PER_SECOND)), 3)
        self._powers = Ring(max(16, round(history_seconds * POWERS_PER_SECOND)), 1)
        self._faults: deque[FaultInterval] = deque(maxlen=10_000)
        self._last_power: float | None = None

    # --- what the sampler brings ----------------------------------------------------------------------------

    def add_knot(self, knot: Knot) -> None:
        """Knots come in time order; one whose bracket overlaps the last one's is placed after it."""
        time_ns = knot.time_ns
        if len(self._knots) and time_ns <= self._knots.times[-1]:
            time_ns = int(self._knots.times[-1]) + 1
        half = 0.5e-9 * (knot.by_ns - knot.after_ns)
        self._knots.append(time_ns, knot.joules, half, float(knot.segment))

    def add_power(self, monotonic_ns: int, watts: float) -> None:
        """Power readings of any rate; only changes are kept: a sensor repeats its value until its update."""
        if watts == self._last_power or (len(self._powers) and monotonic_ns <= self._powers.times[-1]):
            return
        self._last_power = watts
        self._powers.append(monotonic_ns, watts)

    def add_fault(self, fault: FaultInterval) -> None:
        self._faults.append(fault)

    # --- what is asked --------------------------------------------------------------------------------------

    @property
    def covered_from_ns(self) -> int | None:
        return int(self._knots.times[0]) if len(self._knots) else None

    @property
    def exact_from_ns(self) -> int | None:
        """The first knot with a narrow bracket; the first of all where none came in EXACT_WAIT_SECONDS."""
        if not len(self._knots):
            return None
        times, halves = self._knots.times, self._knots.column(1)
        narrow = np.flatnonzero(halves[:50] <= EXACT_HALF_SECONDS)
        if len(narrow):
            return int(times[narrow[0]])
        return int(times[0]) if times[-1] - times[0] > EXACT_WAIT_SECONDS * 1e9 else None

    @property
    def covered_to_ns(self) -> int | None:
        """Up to here the energy is known and will not change any more."""
        return int(self._knots.times[-1]) if len(self._knots) else None

    def flags(self, start_ns: int, end_ns: int) -> frozenset[Fault]:
        return frozenset(fault.fault for fault in self._faults if fault.overlaps(start_ns, end_ns))

    def energy(self, start_ns: int, end_ns: int) -> Interval:
        """Energy over [start_ns, end_ns).

        Each edge's standard deviation has two parts, added in squares: the knot's bracket (uniform over its
        width: half width / sqrt 3, times the power there), and the shape of power between the knots around
        the edge: for a fraction f of an update interval dt, the largest difference of mean power from that of
        the NEIGHBOURS intervals on each side, x f (1 - f) dt: the error of linear interpolation when power
        switches within the interval. A device that switches several times within every update hides that
        from its own counter: its error may be twice what is stated.

        Raises ValueError where the window is empty or reversed.
        """
        if end_ns <= start_ns:
            raise ValueError("ledger: the window must end after it starts")
        flags = set(self.flags(start_ns, end_ns))
        times, segments = self._knots.times, self._knots.column(2)
        total, covered, variance, spans = 0.0, 0.0, 0.0, 0
        for first, last in _segment_spans(times, segments, start_ns, end_ns):
            low, high = max(start_ns, int(times[first])), min(end_ns, int(times[last]))
            if high <= low:
                continue
            from_joules, from_var = self._at(low, first, last)
            to_joules, to_var = self._at(high, first, last)
            total += to_joules - from_joules
            variance += from_var + to_var
            covered += (high - low) * 1e-9
            spans += 1
        seconds = (end_ns - start_ns) * 1e-9
        if covered < seconds - 1e-6:
            flags.add(Fault.PARTIAL_COVERAGE)
        if spans == 0:
            return Interval(start_ns, end_ns, None, None, 0.0, frozenset(flags))
        return Interval(start_ns, end_ns, total, variance**0.5, covered, frozenset(flags))

    def series(self, start_ns: int, end_ns: int) -> tuple[I64, F64, F64]:
        """(times, joules since the start, mean watts since the knot before) of knots in [start, end]."""
        times = self._knots.times
        low, high = np.searchsorted(times, [start_ns, end_ns + 1])
        joules = self._knots.column(0)
        watts = np.full(high - low, np.nan)
        begin = max(low, 1)
        if high > begin:
            seconds = np.diff(times[begin - 1 : high]) * 1e-9
            same = np.diff(self._knots.column(2)[begin - 1 : high]) == 0
            rate = np.diff(joules[begin - 1 : high]) / seconds
            watts[begin - low :] = np.where(same, rate, np.nan)
        return times[low:high].copy(), joules[low:high].copy(), watts

    def _at(self, time_ns: int, first: int, last: int) -> tuple[float, float]:
        """(joules, variance) at a time within the segment of knots first..last."""
        times, joules, halves = self._knots.times, self._knots.column(0), self._knots.column(1)
        right = int(np.clip(np.searchsorted(times[first : last + 1], time_ns) + first, first + 1, last))
        left = right - 1
        seconds = (int(times[right]) - int(times[left])) * 1e-9
        gained = joules[right] - joules[left]
        fraction = (time_ns - int(times[left])) * 1e-9 / seconds
        watts = gained / seconds
        half = halves[left] * (1.0 - fraction) + halves[right] * fraction
        bracket = watts * half / 3.0**0.5
        low, high = max(first, left - NEIGHBOURS), min(last, right + NEIGHBOURS) + 1
        around = np.diff(joules[low:high]) / (np.diff(times[low:high]) * 1e-9)
        change = float(np.max(np.abs(around - watts)))
        if seconds > WIDE_SECONDS:
            change = max(change, watts)
        shape = change * fraction * (1.0 - fraction) * seconds
        share = self._shape(int(times[left]), int(times[right]), time_ns, fraction, seconds)
        return float(joules[left] + gained * share), float(bracket**2 + shape**2)

    def _shape(self, left_ns: int, right_ns: int, time_ns: int, fraction: float, seconds: float) -> float:
        """The part of an interval's energy used by time_ns: by power readings where knots are far apart."""
        if seconds <= WIDE_SECONDS or len(self._powers) < 2:
            return fraction
        times, watts = self._powers.times, self._powers.column(0)
        low, high = np.searchsorted(times, [left_ns, right_ns])
        if high - low < 2 or low == 0:
            return fraction
        grid = np.concatenate(([left_ns], times[low:high], [right_ns])).astype(np.int64)
        level = np.concatenate(([watts[low - 1]], watts[low:high]))
        whole = float(np.dot(level, np.diff(grid)))
        if whole <= 0.0:
            return fraction
        part = float(np.dot(level, np.diff(np.minimum(grid, time_ns))))
        return part / whole


def _segment_spans(times: I64, segments: F64, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """(first, last) knot of each segment that may overlap the window, widened to the knots around it."""
    if len(times) < 2:
        return []
    low = max(int(np.searchsorted(times, start_ns, side="right")) - 3, 0)
    high = min(int(np.searchsorted(times, end_ns, side="left")) + 3, len(times))
    cuts = np.flatnonzero(np.diff(segments[low:high])) + low + 1
    bounds = [low, *(int(cut) for cut in cuts), high]
    return [(a, b - 1) for a, b in pairwise(bounds) if b - a >= 2]
