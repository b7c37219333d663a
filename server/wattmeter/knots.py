"""What a joule counter yields: knots of energy over time, and named intervals in which it failed."""

from __future__ import annotations

from dataclasses import dataclass

from wattmeter.faults import Fault


@dataclass(frozen=True, slots=True)
class Knot:
    """At one moment in (after_ns, by_ns] the device had used `joules` since the account began.

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
