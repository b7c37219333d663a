"""Waiting until the GPU is back at its idle power, so that no cell starts on the heat of the one before."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import httpx
import numpy as np

from wattload.clock import unix_now
from wattload.energy.client import EnergySource

_SPAN_SECONDS = 2.0
# The newest readings may be on their way.
_LATE_SECONDS = 0.3
_STEP_SECONDS = 0.5
_UNKNOWN_SECONDS = 5.0
# A power that falls no further is the idle power, where the meter does not know it.
_FLAT_FRACTION = 0.03
# Never less than what readings of an idle GPU differ by.
_LEAST_WATTS = 2.0


@dataclass(frozen=True, slots=True)
class Cooled:
    """Where a wait ended. `watts` None: the source gave no power, and nothing was waited for."""

    watts: float | None
    idle_watts: float | None
    seconds: float
    note: str | None


class IdlePower:
    """The power of the metered devices, and what it is when nothing runs."""

    def __init__(self, source: EnergySource, offset_seconds: float = 0.0) -> None:
        self._source, self._offset = source, offset_seconds
        self._lowest: float | None = None

    def watts(self) -> float | None:
        """Mean power of all devices over the last two seconds; None where it is not to be had."""
        end = unix_now() + self._offset - _LATE_SECONDS
        try:
            devices = self._source.series(end - _SPAN_SECONDS, end)
        except (httpx.HTTPError, ValueError):
            return None
        total = 0.0
        for device in devices:
            seconds, joules = device.unix_seconds, device.joules
            known = ~np.isnan(joules)
            if known.sum() >= 2 and (span := float(np.ptp(seconds[known]))) > 0:
                total += float(np.ptp(joules[known])) / span
            elif len(device.watts) and not math.isnan(device.watts[-1]):
                total += float(device.watts[-1])
            else:
                return None
        return total if devices else None

    def idle_watts(self) -> float | None:
        """The meter's own figure, else the lowest power at which a wait has ended."""
        try:
            idle = (self._source.info().get("idle") or {}).get("watts")
        except (httpx.HTTPError, ValueError):
            idle = None
        return float(idle) if isinstance(idle, (int, float)) else self._lowest

    def wait(self, *, limit_seconds: float, tolerance: float) -> Cooled:
        """Until the power is within `tolerance` of the idle power, or `limit_seconds` have passed."""
        begun = time.monotonic()
        before = math.inf
        while True:
            watts, idle = self.watts(), self.idle_watts()
            taken = time.monotonic() - begun
            if watts is None:
                if taken < _UNKNOWN_SECONDS:  # a meter that has just started has read too little
                    time.sleep(_STEP_SECONDS)
                    continue
                return Cooled(None, idle, taken, "its power before the cell is not known")
            if idle is not None and watts <= max(idle * (1 + tolerance), idle + _LEAST_WATTS):
                return Cooled(watts, idle, taken, None)
            if idle is None and taken >= _SPAN_SECONDS and before - watts <= _FLAT_FRACTION * watts:
                self._lowest = watts
                return Cooled(watts, watts, taken, None)
            if taken >= limit_seconds:
                reference = f"idle power of {idle:.0f} W" if idle is not None else "steady power"
                note = f"started at {watts:.0f} W: not back at its {reference} after {taken:.0f} s"
                return Cooled(watts, idle, taken, note)
            if idle is None:
                before = watts
                time.sleep(_SPAN_SECONDS)
            else:
                time.sleep(_STEP_SECONDS)
