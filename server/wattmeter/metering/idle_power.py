"""Idle power: what the devices draw while nothing computes on them, measured whenever that is so."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

from wattmeter.schema import IdleState

SETTLE_SECONDS = 3.0
LEAST_SECONDS = 2.0
SPAN_SECONDS = 30.0
STEADY_FRACTION = 0.05
# How long ago a device may have been seen computing for a stretch that is judged about a second after it.
USE_SECONDS = 2.0
# No device idles at more of its power limit. The recorded H200 and H100 idle at 18 % with a model loaded.
MOST_OF_LIMIT = 0.5
# Loading a model raised idle power from 82 to 125 W on the recorded H200. A rise by more than this factor
# is taken for somebody's work, unless the driver says that nothing computed.
MOST_RISE = 2.0


class IdleTracker:
    """Idle watts of all devices together.

    `quiet` takes the energy of a stretch in which no step ran and none had for SETTLE_SECONDS. Idle power is
    the mean over the last SPAN_SECONDS of such stretches, once there are LEAST_SECONDS of them and they agree
    within STEADY_FRACTION: a device that is loading or compiling has no requests either, but its power does
    not hold still.

    Idle power is the lower envelope: a stretch in which anything computed is not idle, whoever it was. Where
    the driver tells utilization (`note_use`) that decides; elsewhere a stretch far above the lowest idle
    power so far is not believed, and nowhere one above MOST_OF_LIMIT of `power_limit_watts`.

    A given figure (`given_watts`) is kept as it is, and only stretches that agree with it are idle whole.
    Without `measure` idle power is what was given, or unknown: whoever does not see the requests cannot tell
    steady work from rest.
    """

    def __init__(self, given_watts: float | None = None, *, measure: bool = True) -> None:
        if given_watts is not None and not 0.0 <= given_watts < 1e6:
            raise ValueError(f"idle watts: must be a number of at least 0, not {given_watts!r}")
        self.power_limit_watts: float | None = None
        self._given = given_watts
        self._measure = measure
        self._stretches: deque[tuple[float, float]] = deque()
        self._state = IdleState(given_watts, None if given_watts is None else "given", None)
        self._lowest: float | None = given_watts
        self._use_told = False
        self._used_unix: float | None = None

    @property
    def state(self) -> IdleState:
        return self._state

    @property
    def watts(self) -> float | None:
        return self._state.watts

    def interrupted(self) -> None:
        """A request ran: the stretches before and after it are not one measurement."""
        self._stretches.clear()

    def note_use(self, used: bool, unix_seconds: float) -> None:
        """What the driver said of all devices at `unix_seconds`: whether any of them computed."""
        self._use_told = True
        if used:
            self._used_unix = unix_seconds

    def quiet(self, seconds: float, joules: float, unix_seconds: float) -> bool:
        """Take one quiet stretch, settled at unix_seconds; True where it belongs to a measurement."""
        if seconds <= 0.0 or self._in_use(seconds, unix_seconds):
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
        if self._given is not None or not self._measure or not self._plausible(mean):
            return self._given is not None and abs(mean - self._given) <= STEADY_FRACTION * self._given
        self._lowest = mean if self._lowest is None else min(self._lowest, mean)
        self._state = IdleState(mean, "measured", unix_seconds, spread)
        return True

    def _in_use(self, seconds: float, unix_seconds: float) -> bool:
        used = self._used_unix is not None and unix_seconds - self._used_unix < seconds + USE_SECONDS
        if used:
            self.interrupted()
        return used

    def _plausible(self, watts: float) -> bool:
        limit = self.power_limit_watts
        if limit is not None and watts > MOST_OF_LIMIT * limit:
            return False
        return self._use_told or self._lowest is None or watts <= MOST_RISE * self._lowest
