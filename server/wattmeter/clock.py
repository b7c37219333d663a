"""The wall clock against the monotonic one: converts both ways and notices steps of the wall clock."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

STEP_SECONDS = 0.05


class WallClock:
    """Keeps unix - monotonic as a function of the monotonic time, one observation a second at most.

    A slewed clock is followed; a change of more than STEP_SECONDS between two observations is a step:
    `observe` returns it, so that the interval in which it happened can be flagged. Not thread-safe: its owner
    locks.
    """

    def __init__(self, history_seconds: float = 3600.0) -> None:
        self._points: deque[tuple[int, float]] = deque(maxlen=max(2, int(history_seconds) + 2))

    def observe(self, monotonic_ns: int, unix_seconds: float) -> float | None:
        """Note that both clocks showed these at one moment; the step in seconds if the wall clock jumped."""
        offset = unix_seconds - monotonic_ns * 1e-9
        if not self._points:
            self._points.append((monotonic_ns, offset))
            return None
        last_ns, last_offset = self._points[-1]
        step = offset - last_offset
        if abs(step) > STEP_SECONDS:
            self._points.append((monotonic_ns, offset))
            return step
        if monotonic_ns - last_ns >= 1_000_000_000:
            self._points.append((monotonic_ns, offset))
        return None

    def _offset(self, monotonic_ns: float) -> float:
        if not self._points:
            return time.time() - time.monotonic_ns() * 1e-9
        if len(self._points) == 1 or monotonic_ns >= self._points[-1][0]:
            return self._points[-1][1]
        times = np.array([point[0] for point in self._points], dtype=np.float64)
        offsets = np.array([point[1] for point in self._points])
        return float(np.interp(monotonic_ns, times, offsets))

    def unix(self, monotonic_ns: float) -> float:
        """UNIX seconds of a monotonic time."""
        return monotonic_ns * 1e-9 + self._offset(monotonic_ns)

    def monotonic_ns(self, unix_seconds: float) -> int:
        """Monotonic time of a UNIX time; where the wall clock was set back, the latest moment that fits."""
        latest = self._offset(float("inf"))
        guess = (unix_seconds - latest) * 1e9
        return round((unix_seconds - self._offset(guess)) * 1e9)
