"""Idle power: what the devices draw while no request runs, measured whenever that is so."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

from wattmeter.answers import IdleState

SETTLE_SECONDS = 3.0
LEAST_SECONDS = 2.0
SPAN_SECONDS = 30.0
STEADY_FRACTION = 0.05


class IdleTracker:
    """Idle watts of all devices together.

    `quiet` takes the energy of a stretch in which no step ran and none had for SETTLE_SECONDS. Idle power is
    the mean over the last SPAN_SECONDS of such stretches, once there are LEAST_SECONDS of them and they agree
    within STEADY_FRACTION: a device that is loading or compiling has no requests either, but its power does
    not hold still.

    A given figure (`given_watts`) is kept as it is, and only stretches that agree with it are idle whole.
    Without `measure` idle power is what was given, or unknown: whoever does not see the requests cannot tell
    steady work from rest.
    """

    def __init__(self, given_watts: float | None = None, *, measure: bool = True) -> None:
        if given_watts is not None and not 0.0 <= given_watts < 1e6:
            raise ValueError(f"idle watts: must be a number of at least 0, not {given_watts!r}")
        self._given = given_watts
        self._measure = measure
        self._stretches: deque[tuple[float, float]] = deque()
        self._state = IdleState(given_watts, None if given_watts is None else "given", None)

    @property
    def state(self) -> IdleState:
        return self._state

    @property
    def watts(self) -> float | None:
        return self._state.watts

    def interrupted(self) -> None:
        """A request ran: the stretches before and after it are not one measurement."""
        self._stretches.clear()

    def quiet(self, seconds: float, joules: float, unix_seconds: float) -> bool:
        """Take one quiet stretch ending at unix_seconds; True where it belongs to a measurement."""
        if seconds <= 0.0:
            return False
        self._stretches.append((seconds, joules / seconds))
        while len(self._stretches) > 1 and sum(part for part, _ in self._stretches) > SPAN_SECONDS:
            self._stretches.popleft()
        watts = [value for _, value in self._stretches]
        mean, spread = fmean(watts), pstdev(watts) if len(watts) > 1 else 0.0
        if max(watts) - min(watts) > STEADY_FRACTION * mean:
            while len(self._stretches) > 1:
                self._stretches.popleft()
            return False
        if sum(part for part, _ in self._stretches) < LEAST_SECONDS:
            known = self._state.watts
            return known is not None and abs(mean - known) <= STEADY_FRACTION * known
        if self._given is not None:
            return abs(mean - self._given) <= STEADY_FRACTION * self._given
        if not self._measure:
            return False
        self._state = IdleState(mean, "measured", unix_seconds, spread)
        return True
