"""Counters that wrap: how often one did between two readings, from the time between them."""

from __future__ import annotations

from wattmeter.faults import Fault

# Counters move in steps: so much may be seen beyond what power and time allow.
STEP_JOULES = 1.0


class WrappingCounter:
    """Continues a counter that wraps at `span_joules`, of a device that draws at most `most_watts`.

    How often it wrapped since the last good reading follows from the time between them. Where more than one
    number of wraps is possible, none is guessed: the fault is `counter_wrapped`, and the value does not
    continue the ones before. Where none is possible the counter began anew, and its fall is passed on.
    """

    def __init__(self, span_joules: float, most_watts: float) -> None:
        self._span, self._most_watts = span_joules, most_watts
        self._last: tuple[int, float] | None = None
        self._wrapped = 0.0

    def unwrapped(self, now_ns: int, joules: float) -> tuple[float, Fault | None]:
        """The counter's value with the wraps before it, and why it does not continue the last one."""
        fault = None
        if self._last is not None:
            fault = self._count(*self._last, now_ns, joules)
        self._last = (now_ns, joules)
        return joules + self._wrapped, fault

    def _count(self, last_ns: int, last_joules: float, now_ns: int, joules: float) -> Fault | None:
        most = self._most_watts * (now_ns - last_ns) * 1e-9 + STEP_JOULES
        fewest = 0 if joules >= last_joules else 1
        gained = joules - last_joules + fewest * self._span
        if gained + self._span <= most:
            return Fault.COUNTER_WRAPPED
        # After a reset the wraps before it count no more: the value falls for whoever reads it.
        possible = fewest == 0 or gained <= most
        self._wrapped = self._wrapped + fewest * self._span if possible else 0.0
        return None
