"""Sessions and tasks of agents while a load goes on: each is told once, when the last of its turns has ended.

The figures after the run are those of `analysis/sessions.py`. These need nothing but the records, so they are
known as the run goes on. Shares of idle energy are not: they depend on all that was open at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wattload.client.record import Outcome, RequestRecord


@dataclass(frozen=True, slots=True)
class EndedUnit:
    """A session or task all of whose turns have ended.

    `completed`: whether each of them has a whole response. `joules`: attributed to them, None where a
    response had none. `seconds`: from the scheduled time of the first to the last token of the last.
    `in_flight_seconds`: the part of them with a turn in flight.
    """

    completed: bool
    joules: float | None
    seconds: float
    in_flight_seconds: float

    @property
    def waiting_seconds(self) -> float:
        """The part of its time without a turn in flight."""
        return max(0.0, self.seconds - self.in_flight_seconds)


@dataclass(slots=True)
class _Open:
    left: int
    completed: bool = True
    joules: float | None = 0.0
    # From when to when its turns were in flight.
    spans: list[tuple[float, float]] = field(default_factory=list)


class OpenUnits:
    """Units that are not over yet. `numbers`: of which unit each planned request is, shape (N,), -1: none."""

    def __init__(self, numbers: npt.NDArray[np.int64]) -> None:
        self._numbers, self._turns = np.unique(numbers[numbers >= 0], return_counts=True)
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, record: RequestRecord) -> EndedUnit | None:
        """Takes a turn that ended; the unit where that was its last, None before and for units never begun.

        `number`: the turn's unit; -1 for none.
        """
        if number < 0:
            return None
        unit = self._open.get(number)
        if unit is None:
            place = int(np.searchsorted(self._numbers, number))
            unit = self._open[number] = _Open(int(self._turns[place]))
        unit.left -= 1
        unit.completed &= record.outcome is Outcome.COMPLETED
        if record.sent_unix is not None:
            until = record.last_token_unix or record.first_token_unix or record.sent_unix
            unit.spans.append((record.due_unix, max(until, record.due_unix)))
            if record.energy_joules is None or unit.joules is None:
                unit.joules = None
            else:
                unit.joules += record.energy_joules
        if unit.left:
            return None
        del self._open[number]
        return _ended(unit) if unit.spans else None


def _ended(unit: _Open) -> EndedUnit:
    spans = sorted(unit.spans)
    begin, reach = spans[0][0], spans[0][0]
    in_flight = 0.0
    for left, right in spans:
        in_flight += max(0.0, right - max(left, reach))
        reach = max(reach, right)
    return EndedUnit(unit.completed, unit.joules, reach - begin, in_flight)
