"""The energy of one device over [t0, t1): from the counter's updates, with uncertainty, coverage and flags.

Between two updates the energy is interpolated in time; where they lie further apart than power readings do,
the shape of the power readings is used, scaled to the updates. What lies outside the updates, or between two
segments, is not covered: it is reported missing, never filled.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from wattmeter.arrays import F64, I64, RingBuffer
from wattmeter.faults import Fault
from wattmeter.metering.counter import GAP_SECONDS, CounterUpdate, FaultInterval

UPDATES_PER_SECOND = 12
POWERS_PER_SECOND = 12
WIDE_SECONDS = 0.25
NEIGHBOURS = 3
EXACT_HALF_SECONDS = 0.005
EXACT_WAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Interval:
    """Joules of one device over [start_ns, end_ns); None where nothing of it was covered.

    `uncertainty_joules`: one standard deviation, from the two edges of the window only (see
    `TimelineView.energy`). `gap_seconds`: the longest time between two neighbouring counter updates that the
    window touches; within it only the sum of the joules was read.
    """

    start_ns: int
    end_ns: int
    joules: float | None
    uncertainty_joules: float | None
    covered_seconds: float
    flags: frozenset[Fault]
    gap_seconds: float = 0.0

    @property
    def resolved(self) -> bool:
        """Whether the window's joules were read in it, not drawn from a longer time by a line."""
        return self.gap_seconds <= GAP_SECONDS

    @property
    def complete(self) -> bool:
        return self.joules is not None and Fault.PARTIAL_COVERAGE not in self.flags


class EnergyTimeline:
    """Updates, powers and faults of one device over the last `history_seconds`. Its owner locks.

    A `view` gives the energy of windows; it needs no lock once it is taken.
    """

    def __init__(self, *, history_seconds: float = 3600.0) -> None:
        self._updates = RingBuffer(max(16, round(history_seconds * UPDATES_PER_SECOND)), 3)
        self._powers = RingBuffer(max(16, round(history_seconds * POWERS_PER_SECOND)), 1)
        self._faults: deque[FaultInterval] = deque(maxlen=10_000)
        self._last_power: float | None = None

    # --- what the sampler brings ----------------------------------------------------------------------------

    def add_update(self, update: CounterUpdate) -> None:
        """Updates come in time order; one whose bracket overlaps the last one's is placed after it."""
        time_ns = update.time_ns
        if len(self._updates) and time_ns <= self._updates.times[-1]:
            time_ns = int(self._updates.times[-1]) + 1
        half = 0.5e-9 * (update.by_ns - update.after_ns)
        self._updates.append(time_ns, update.joules, half, float(update.segment))

    def add_power(self, monotonic_ns: int, watts: float) -> None:
        """Power readings of any rate; only changes are kept: a sensor repeats its value until its update."""
        if watts == self._last_power or (len(self._powers) and monotonic_ns <= self._powers.times[-1]):
            return
        self._last_power = watts
        self._powers.append(monotonic_ns, watts)

    def add_fault(self, fault: FaultInterval) -> None:
        self._faults.append(fault)

    # --- what is asked --------------------------------------------------------------------------------------

    def view(self, since_ns: int | None = None) -> TimelineView:
        """What is known by now, with the faults that had not ended by `since_ns` (all by default).

        No row is copied: rows that were appended once are never written again.
        """
        updates, powers = self._updates, self._powers
        faults = (
            fault
            for fault in self._faults
            if since_ns is None or fault.end_ns is None or fault.end_ns > since_ns
        )
        return TimelineView(
            updates.times,
            updates.column(0),
            updates.column(1),
            updates.column(2),
            powers.times,
            powers.column(0),
            tuple(replace(fault) for fault in faults),
        )

    @property
    def covered_from_ns(self) -> int | None:
        return int(self._updates.times[0]) if len(self._updates) else None

    @property
    def covered_to_ns(self) -> int | None:
        """Up to here the energy is known and will not change any more."""
        return int(self._updates.times[-1]) if len(self._updates) else None

    def flags(self, start_ns: int, end_ns: int) -> frozenset[Fault]:
        return frozenset(fault.fault for fault in self._faults if fault.overlaps(start_ns, end_ns))

    def energy(self, start_ns: int, end_ns: int) -> Interval:
        """Energy over [start_ns, end_ns), as of now; see `TimelineView.energy`."""
        return self.view(start_ns).energy(start_ns, end_ns)


@dataclass(frozen=True, slots=True)
class TimelineView:
    """The timeline of one device as it was at one moment; any thread may ask it.

    K counter updates: `times_ns`, `joules`, `half_seconds` of the bracket, `segments`, (K,) each. P power
    readings: `power_times_ns` and `power_watts`, (P,) each.
    """

    times_ns: I64
    joules: F64
    half_seconds: F64
    segments: F64
    power_times_ns: I64
    power_watts: F64
    faults: tuple[FaultInterval, ...]

    @property
    def covered_from_ns(self) -> int | None:
        return int(self.times_ns[0]) if len(self.times_ns) else None

    def begin_ns(self, wanted_ns: int, busy_ns: int | None) -> int | None:
        """Where accounting that should begin at `wanted_ns` begins; None: not known yet.

        The last update with a narrow bracket up to there, or the first one in EXACT_WAIT_SECONDS after it. A
        device that worked since before that (`busy_ns`), or has no such update, begins at the last update
        before its work or, where there is none, at the first of all: a wide edge loses no joule.
        """
        times = self.times_ns
        if not len(times):
            return None
        latest_ns = max(wanted_ns, int(times[0])) + round(EXACT_WAIT_SECONDS * 1e9)
        narrow = times[(self.half_seconds <= EXACT_HALF_SECONDS) & (times <= latest_ns)]
        at = max(int(np.searchsorted(narrow, wanted_ns, side="right")) - 1, 0)
        exact = int(narrow[at]) if len(narrow) else None
        if busy_ns is not None and (exact is None or exact > busy_ns):
            wanted_ns = busy_ns
        elif exact is not None:
            return exact
        elif times[-1] <= latest_ns:
            return None  # one may come yet
        return int(times[max(int(np.searchsorted(times, wanted_ns, side="right")) - 1, 0)])

    @property
    def covered_to_ns(self) -> int | None:
        """Up to here the energy is known and will not change any more."""
        return int(self.times_ns[-1]) if len(self.times_ns) else None

    def flags(self, start_ns: int, end_ns: int) -> frozenset[Fault]:
        return frozenset(fault.fault for fault in self.faults if fault.overlaps(start_ns, end_ns))

    def energy(self, start_ns: int, end_ns: int) -> Interval:
        """Energy over [start_ns, end_ns).

        Each edge's standard deviation has two parts, added in squares: the update's bracket (uniform over its
        width: half width / sqrt 3, times the power there), and the shape of power between the updates around
        the edge: for a fraction f of an update interval dt, the largest difference of mean power from that of
        the NEIGHBOURS intervals on each side, x f (1 - f) dt: the error of linear interpolation when power
        switches within the interval. A device that switches several times within every update hides that
        from its own counter: its error may be twice what is stated.

        Nothing is covered of a window without length (of an hour that the wall clock skipped, say). Raises
        ValueError where the window is reversed.
        """
        if end_ns < start_ns:
            raise ValueError("timeline: the window must end after it starts")
        flags = set(self.flags(start_ns, end_ns))
        times, segments = self.times_ns, self.segments
        total, covered, variance, spans, gap = 0.0, 0.0, 0.0, 0, 0.0
        for first, last in _segment_spans(times, segments, start_ns, end_ns):
            low, high = max(start_ns, int(times[first])), min(end_ns, int(times[last]))
            if high <= low:
                continue
            from_joules, from_var = self._at(low, first, last)
            to_joules, to_var = self._at(high, first, last)
            total += to_joules - from_joules
            variance += from_var + to_var
            covered += (high - low) * 1e-9
            gap = max(gap, self._gap_seconds(low, high, first, last))
            spans += 1
        seconds = (end_ns - start_ns) * 1e-9
        if covered < seconds - 1e-6 or end_ns == start_ns:
            flags.add(Fault.PARTIAL_COVERAGE)
        if spans == 0:
            return Interval(start_ns, end_ns, None, None, 0.0, frozenset(flags))
        return Interval(start_ns, end_ns, total, variance**0.5, covered, frozenset(flags), gap)

    def series(self, start_ns: int, end_ns: int) -> tuple[I64, F64, F64]:
        """(times, joules since the start, mean watts since the update before) of updates in [start, end]."""
        times, joules = self.times_ns, self.joules
        low, high = np.searchsorted(times, [start_ns, end_ns + 1])
        watts = np.full(high - low, np.nan)
        begin = max(low, 1)
        if high > begin:
            seconds = np.diff(times[begin - 1 : high]) * 1e-9
            same = np.diff(self.segments[begin - 1 : high]) == 0
            rate = np.diff(joules[begin - 1 : high]) / seconds
            watts[begin - low :] = np.where(same, rate, np.nan)
        return times[low:high].copy(), joules[low:high].copy(), watts

    def gap_end_ns(self, at_ns: int) -> int:
        """The end of the gap between two counter updates that at_ns lies in; at_ns where it lies in none.

        A gap is longer than GAP_SECONDS. Within it only the sum of the joules is known.
        """
        right = int(np.searchsorted(self.times_ns, at_ns))
        if right == 0 or right == len(self.times_ns) or self.segments[right - 1] != self.segments[right]:
            return at_ns
        halves = self.half_seconds[right - 1] + self.half_seconds[right]
        seconds = int(self.times_ns[right] - self.times_ns[right - 1]) * 1e-9 + halves
        return int(self.times_ns[right]) if seconds > GAP_SECONDS else at_ns

    def _gap_seconds(self, low_ns: int, high_ns: int, first: int, last: int) -> float:
        """The longest time between neighbouring updates of first..last around [low, high]."""
        times = self.times_ns[first : last + 1]
        left = max(int(np.searchsorted(times, low_ns, side="right")) - 1, 0) + first
        right = min(int(np.searchsorted(times, high_ns)) + first, last) + 1
        halves = self.half_seconds[left:right]
        spans = np.diff(self.times_ns[left:right]) * 1e-9 + halves[1:] + halves[:-1]
        return float(np.max(spans, initial=0.0))

    def _at(self, time_ns: int, first: int, last: int) -> tuple[float, float]:
        """(joules, variance) at a time within the segment of updates first..last."""
        times, joules, halves = self.times_ns, self.joules, self.half_seconds
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
        """The part of an interval's energy used by time_ns: by power readings where updates are far apart."""
        if seconds <= WIDE_SECONDS or len(self.power_times_ns) < 2:
            return fraction
        times, watts = self.power_times_ns, self.power_watts
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
    """(first, last) update of each segment that may overlap the window, NEIGHBOURS intervals beyond it."""
    if len(times) < 2:
        return []
    low = max(int(np.searchsorted(times, start_ns, side="right")) - 1 - NEIGHBOURS, 0)
    high = min(int(np.searchsorted(times, end_ns, side="left")) + 1 + NEIGHBOURS, len(times))
    cuts = np.flatnonzero(np.diff(segments[low:high])) + low + 1
    bounds = [low, *(int(cut) for cut in cuts), high]
    return [(a, b - 1) for a, b in pairwise(bounds) if b - a >= 2]
