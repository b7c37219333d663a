"""The times of an engine on another host, on this meter's clock.

Monotonic clocks of two hosts have nothing in common. The engine's host measures by how much they differ and
says so in each hello; here the times of its step records are moved by that much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TypeGuard

from wattserve.protocol.host import boot_id
from wattserve.protocol.messages import EngineHello, StepRecords

# The joules of a step are those between two ends of steps: at 20 ms a step this is a quarter of one.
MOST_ERROR_NS = 5_000_000
# The sum of two such times is one that 64 bits hold.
MOST_NS = 2**62
# For so long an offset that was measured well may be kept while new measurements are worse.
KEPT_SECONDS = 60.0


class UnknownClockError(ValueError):
    """The engine's clock is not known well enough against this host's: one sentence."""


@dataclass(frozen=True, slots=True)
class _Measured:
    offset_ns: int
    error_ns: int


class EngineClock:
    """An engine's clock against this host's, followed from hello to hello. Raises UnknownClockError for a
    first hello of another host that does not know it to MOST_ERROR_NS."""

    def __init__(self, hello: EngineHello) -> None:
        self.uncertain = False
        self._told_ns = 0
        self._offset_ns: int | None = None
        self._measured_at = time.monotonic()
        if is_here(hello):
            return
        measured = _measured(hello)
        if measured is None:
            raise UnknownClockError(
                "the engine runs on another host, and by how much its clock differs from this one's is not"
                " known yet"
            )
        if measured.error_ns > MOST_ERROR_NS:
            raise UnknownClockError(
                "the engine runs on another host, and its clock against this one's is known to"
                f" {measured.error_ns * 1e-6:.1f} ms only, where {MOST_ERROR_NS * 1e-6:.0f} ms are needed"
            )
        self._offset_ns = measured.offset_ns

    def note(self, hello: EngineHello) -> None:
        """Take in what a further hello says. `uncertain` where the clocks did not keep together, or have not
        been compared well for KEPT_SECONDS."""
        if self._offset_ns is None:
            return
        measured = _measured(hello)
        if measured is None or measured.error_ns > MOST_ERROR_NS:
            self.uncertain = self.uncertain or time.monotonic() - self._measured_at > KEPT_SECONDS
            return
        self._measured_at = time.monotonic()
        if abs(measured.offset_ns - self._offset_ns) > MOST_ERROR_NS:
            self.uncertain = True
        self._offset_ns = measured.offset_ns

    def hello(self, hello: EngineHello) -> EngineHello:
        """The hello with its times on this host's clock."""
        if self._offset_ns is None:
            return hello
        return replace(
            hello, sent_ns=hello.sent_ns + self._offset_ns, started_ns=hello.started_ns + self._offset_ns
        )

    def records(self, records: StepRecords) -> StepRecords:
        """The records with their times on this host's clock, in the order in which they were told."""
        if self._offset_ns is None:
            return records
        batch = records.batch
        times = [int(batch.end_ns[0])] if len(batch) else []
        times += [records.complete_ns] if records.complete_ns is not None else []
        shift = self._offset_ns
        if max([*times, int(batch.end_ns[-1]) if len(batch) else 0]) >= MOST_NS:
            return records  # of a time to come on any clock, as whoever takes them will find
        if times:
            # An offset that was measured again may be less by a little: nothing moves behind what was told.
            behind = self._told_ns - (min(times) + shift)
            shift += behind if 0 < behind <= MOST_ERROR_NS else 0
        complete = None if records.complete_ns is None else records.complete_ns + shift
        ends = batch.end_ns + shift
        self._told_ns = max(self._told_ns, int(ends[-1]) if len(ends) else 0, complete or 0)
        moved = replace(batch, launch_ns=batch.launch_ns + shift, end_ns=ends)
        return replace(records, batch=moved, complete_ns=complete)


def is_here(hello: EngineHello) -> bool:
    """Whether the engine runs on this host, as far as can be told."""
    own = boot_id()
    return not hello.boot_id or not own or hello.boot_id == own


def _measured(hello: EngineHello) -> _Measured | None:
    """What a hello says of its clock against this host's; None where it says nothing usable."""
    offset, error = hello.clock.get("offset_ns"), hello.clock.get("error_ns")
    if hello.clock.get("boot_id") != boot_id() or not _is_ns(offset) or not _is_ns(error) or error < 0:
        return None
    return _Measured(offset, error)


def _is_ns(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_NS
