"""The wall clock against the monotonic one: converts both ways and notices steps of the wall clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64, I64

STEP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Clocks:
    """The two clocks of this host; a test gives its own."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    unix_seconds: Callable[[], float] = time.time


class WallClock:
    """Keeps unix - monotonic as a function of the monotonic time, one observation a second at most.

    A slewed clock is followed; a change of more than STEP_SECONDS between two observations is a step:
    `observe` returns it, so that the interval in which it happened can be flagged. Not thread-safe: its owner
    locks.
    """

    def __init__(self, history_seconds: float = 3600.0) -> None:
        self._points: deque[tuple[int, float]] = deque(maxlen=max(4, int(history_seconds) + 4))
        self._latest: tuple[int, float] | None = None

    def observe(self, monotonic_ns: int, unix_seconds: float) -> float | None:
        """Note that both clocks showed these at one moment; the step in seconds if the wall clock jumped."""
        offset = unix_seconds - monotonic_ns * 1e-9
        before, self._latest = self._latest, (monotonic_ns, offset)
        if before is None:
            self._points.append(self._latest)
            return None
        step = offset - before[1]
        if abs(step) > STEP_SECONDS:
            if before[0] > self._points[-1][0]:
                self._points.append(before)
            self._points.append(self._latest)
            return step
        if monotonic_ns - self._points[-1][0] >= 1_000_000_000:
            self._points.append(self._latest)
        return None

    def unix(self, monotonic_ns: int) -> float:
        """UNIX seconds of a monotonic time."""
        index = self._before(lambda point: point[0] <= monotonic_ns)
        return monotonic_ns * 1e-9 + self._offset(index, monotonic_ns)

    def converter(self) -> Callable[[I64], F64]:
        """`unix` of many times at once, as of now, from a copy of the points: needs no lock when called."""
        if not self._points:
            raise RuntimeError("wall clock: nothing observed yet")
        points = list(self._points)
        times = np.array([time_ns for time_ns, _ in points], dtype=np.int64)
        offsets = np.array([offset for _, offset in points], dtype=np.float64)
        gained = np.diff(offsets, append=offsets[-1])
        gained[np.abs(gained) > STEP_SECONDS] = 0.0  # constant before a step, as in `_offset`
        lengths = np.maximum(np.diff(times, append=times[-1]), 1)

        def unix(monotonic_ns: I64) -> F64:
            index = np.maximum(np.searchsorted(times, monotonic_ns, side="right") - 1, 0)
            share = np.clip((monotonic_ns - times[index]) / lengths[index], 0.0, 1.0)
            result: F64 = monotonic_ns * 1e-9 + (offsets[index] + share * gained[index])
            return result

        return unix

    def monotonic_ns(self, unix_seconds: float) -> int:
        """Monotonic time of a UNIX time.

        Where the wall clock was set back the time occurred twice: the later one. Where it was set forward
        past the time, that never occurred: the moment of the step.
        """
        index = self._before(lambda point: point[0] * 1e-9 + point[1] <= unix_seconds)
        guess = round((unix_seconds - self._points[index][1]) * 1e9)
        guess = round((unix_seconds - self._offset(index, guess)) * 1e9)
        if index + 1 < len(self._points):
            guess = min(guess, self._points[index + 1][0])
        return guess

    def _before(self, holds: Callable[[tuple[int, float]], bool]) -> int:
        """The newest point for which `holds`, else the oldest. Most asks are for recent times."""
        if not self._points:
            raise RuntimeError("wall clock: nothing observed yet")
        for index in range(len(self._points) - 1, -1, -1):
            if holds(self._points[index]):
                return index
        return 0

    def _offset(self, index: int, monotonic_ns: int) -> float:
        """The offset between point `index` and the next: linear, but constant before a step."""
        time_ns, offset = self._points[index]
        if index + 1 >= len(self._points):
            return offset
        next_ns, next_offset = self._points[index + 1]
        if abs(next_offset - offset) > STEP_SECONDS or next_ns == time_ns:
            return offset
        share = min(max((monotonic_ns - time_ns) / (next_ns - time_ns), 0.0), 1.0)
        return offset + share * (next_offset - offset)
