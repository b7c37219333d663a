"""The joules a simulated GPU has used up to any moment: what its meter's counter is made of."""

from __future__ import annotations

import threading
from collections import deque


class ModelledEnergy:
    """Idle power all the time, plus each step's joules spread evenly over its length.

    The engine adds a step when it begins, so part of it lies in the future; the sampler's thread asks. An
    engine that runs late adds a step after part of it has passed: the counter then catches up at its next
    update, and nothing is lost.
    """

    def __init__(self, idle_watts: float, origin_ns: int) -> None:
        self._idle_watts = idle_watts
        self._origin_ns = origin_ns
        self._lock = threading.Lock()
        self._ended_joules = 0.0
        self._open: deque[tuple[int, int, float]] = deque()

    def add_load(self, start_ns: int, end_ns: int, joules: float) -> None:
        """`joules` above idle over [start_ns, end_ns); calls come in order of time."""
        with self._lock:
            self._open.append((start_ns, end_ns, joules))

    def joules_at(self, at_ns: int) -> float:
        """Joules used since the origin, which counts as the zero; times asked for must not decrease."""
        with self._lock:
            while self._open and self._open[0][1] <= at_ns:
                self._ended_joules += self._open.popleft()[2]
            joules = self._ended_joules
            for start, end, step_joules in self._open:
                if start >= at_ns:
                    break
                joules += step_joules * (at_ns - start) / (end - start)
        return joules + self._idle_watts * (at_ns - self._origin_ns) * 1e-9
