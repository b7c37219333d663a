"""The energy of any window of time out of timelines and settled seconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wattmeter.faults import Fault
from wattmeter.metering.timeline import TimelineView
from wattmeter.meters.base import Device
from wattmeter.monitor.settler import Notice, SettledSecond, Totals
from wattmeter.schema import DeviceEnergy, WindowEnergy

MAX_NOTICES = 10_000
COMPONENTS = tuple(Totals().as_buckets())


class History:
    """The settled seconds and the notices of the last `history_seconds`. Its owner locks."""

    def __init__(self, history_seconds: float) -> None:
        self._history_ns = round(history_seconds * 1e9)
        self._seconds: list[SettledSecond] = []
        self._notices: deque[Notice] = deque(maxlen=MAX_NOTICES)

    def add(self, seconds: Iterable[SettledSecond]) -> None:
        """Take the next settled seconds, in order of time."""
        self._seconds += seconds
        if not self._seconds:
            return
        oldest_ns = self._seconds[-1].end_ns - self._history_ns
        if self._seconds[0].end_ns < oldest_ns - self._history_ns // 8:  # not one by one
            del self._seconds[: bisect_right(self._seconds, oldest_ns, key=lambda second: second.end_ns)]

    def notice(self, notice: Notice) -> None:
        """Flag a stretch of time from now on; those that follow each other without a gap are one."""
        last = self._notices[-1] if self._notices else None
        if last is not None and last.end_ns == notice.start_ns and last.fault is notice.fault:
            self._notices[-1] = replace(last, end_ns=notice.end_ns)
        else:
            self._notices.append(notice)

    def seconds(self, start_ns: int, end_ns: int) -> Sequence[SettledSecond]:
        """The settled seconds that overlap [start_ns, end_ns), oldest first."""
        first = bisect_right(self._seconds, start_ns, key=lambda second: second.end_ns)
        last = bisect_left(self._seconds, end_ns, key=lambda second: second.start_ns)
        return self._seconds[first:last]

    def notices(self, start_ns: int, end_ns: int | None = None) -> tuple[Notice, ...]:
        """The notices that overlap [start_ns, end_ns), those of seconds settled before they came too."""
        return tuple(
            notice
            for notice in self._notices
            if notice.end_ns > start_ns and (end_ns is None or notice.start_ns < end_ns)
        )


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device's timeline as it was at one moment; `flags` hold for the device always."""

    device: Device
    timeline: TimelineView
    flags: frozenset[Fault] = frozenset()

    def energy(self, start_ns: int, end_ns: int) -> DeviceEnergy:
        """Its energy over [start_ns, end_ns)."""
        part = self.timeline.energy(start_ns, end_ns)
        return DeviceEnergy(
            id=self.device.id,
            name=self.device.name,
            source=self.device.source,
            joules=part.joules,
            uncertainty_joules=part.uncertainty_joules,
            covered_seconds=part.covered_seconds,
            flags=part.flags | self.flags,
        )


@dataclass(frozen=True, slots=True)
class WindowView:
    """All that the energy of [start_ns, end_ns) follows from, as it was at one moment.

    `seconds` are the settled ones that overlap it, `idle_watts` is None where it was never measured, `flags`
    hold for the window as a whole. `reason` is why nothing is attributed, where nothing is.
    """

    start_ns: int
    end_ns: int
    devices: Sequence[DeviceView]
    seconds: Sequence[SettledSecond]
    idle_watts: float | None
    flags: frozenset[Fault]
    reason: str | None = None


def window_energy(start_unix: float, end_unix: float, view: WindowView) -> WindowEnergy:
    """Joules of [start, end) by device from the timelines, by component from the settled seconds.

    A second that the window cuts is divided at the cut: its idle part by time, what is above idle by the
    timelines' energy above idle on either side (by time where that is not positive). What is not settled yet
    is in the total and unattributed, and the answer is not complete.
    """
    devices = tuple(device.energy(view.start_ns, view.end_ns) for device in view.devices)
    flags = set(view.flags).union(*(device.flags for device in devices))
    unknown = WindowEnergy(
        start_unix=start_unix,
        end_unix=end_unix,
        complete=False,
        total_joules=None,
        uncertainty_joules=None,
        idle_joules=None,
        prefill_joules=None,
        decode_joules=None,
        unattributed_joules=None,
        devices=devices,
        flags=frozenset(flags),
        reason=view.reason,
    )
    if any(device.joules is None or device.uncertainty_joules is None for device in devices):
        return unknown
    total = sum(device.joules for device in devices if device.joules is not None)
    variance = sum((device.uncertainty_joules or 0.0) ** 2 for device in devices)
    prefill = decode = settled_seconds = 0.0
    idle: float | None = 0.0
    groups: dict[str, float] = {}
    for second in view.seconds:
        seconds, share = share_inside(second, view.start_ns, view.end_ns, view.devices)
        flags |= second.flags
        if second.joules is None:
            continue
        settled_seconds += seconds
        prefill += second.prefill_joules * share
        decode += second.decode_joules * share
        for name, joules in second.groups.items():
            groups[name] = groups.get(name, 0.0) + joules * share
        if second.idle_joules is None:
            idle = None
        elif idle is not None:
            idle += second.idle_joules * seconds / second.seconds
    missing = (view.end_ns - view.start_ns) * 1e-9 - settled_seconds
    complete = Fault.PARTIAL_COVERAGE not in flags and missing < 1e-6
    if missing >= 1e-6 and idle is not None:
        if view.idle_watts is None:
            # What idling cost in the part that is not settled is not known: null, not what is settled of it.
            idle = None
            flags.add(Fault.IDLE_NOT_MEASURED)
        else:
            covered = min((device.covered_seconds for device in devices), default=0.0)
            idle += view.idle_watts * max(covered - settled_seconds, 0.0)
    attributed = view.reason is None
    return replace(
        unknown,
        complete=complete,
        total_joules=total,
        uncertainty_joules=variance**0.5,
        idle_joules=idle,
        prefill_joules=prefill if attributed else None,
        decode_joules=decode if attributed else None,
        unattributed_joules=total - prefill - decode - (idle or 0.0),
        groups=groups,
        flags=frozenset(flags),
    )


def settled_joules(view: WindowView) -> dict[str, float]:
    """What is settled of [start, end), by component: `prefill`, `decode`, `idle` and `unattributed`.

    The parts of adjoining windows add up to the totals of all settled seconds.
    """
    parts = dict.fromkeys(COMPONENTS, 0.0)
    for second in view.seconds:
        if second.joules is None:
            continue
        seconds, share = share_inside(second, view.start_ns, view.end_ns, view.devices)
        parts["prefill"] += second.prefill_joules * share
        parts["decode"] += second.decode_joules * share
        parts["unattributed"] += second.unattributed_joules * share
        parts["idle"] += (second.idle_joules or 0.0) * seconds / second.seconds
    return parts


def share_inside(
    second: SettledSecond, start_ns: int, end_ns: int, devices: Iterable[DeviceView]
) -> tuple[float, float]:
    """(seconds of a settled second in [start, end), fraction of its energy above idle in there)."""
    low, high = max(second.start_ns, start_ns), min(second.end_ns, end_ns)
    seconds = (high - low) * 1e-9
    if low == second.start_ns and high == second.end_ns:
        return seconds, 1.0
    fraction = seconds / second.seconds
    if second.joules is None:
        return seconds, fraction
    above = second.joules - (second.idle_joules or 0.0)
    inside = 0.0
    for device in devices:
        part = device.timeline.energy(low, high)
        if part.joules is None:
            return seconds, fraction
        inside += part.joules
    inside -= (second.idle_joules or 0.0) * fraction
    if above <= 0.0:
        return seconds, fraction
    # Where the part outside is idle, all energy above idle is inside, and idle power that is off by a little
    # makes the quotient a little more than one; the other side's is below zero by as much.
    return seconds, min(max(inside / above, 0.0), 1.0)
