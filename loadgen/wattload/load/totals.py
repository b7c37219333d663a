"""Running totals of a load, in memory that does not grow with it."""

from __future__ import annotations

import array
import math
import statistics
from collections import Counter, deque
from typing import Any

from wattload.client.record import Outcome, RequestRecord
from wattload.client.transport.descriptors import OUT_OF_DESCRIPTORS

_EXAMPLES = 3
_RECENT = 400
# 16 buckets for each doubling of a microsecond: quantiles right to 4.5 %.
_PER_DOUBLING = 16
_UNIT_SECONDS = 1e-6
_BUCKETS = 40 * _PER_DOUBLING


class LogHistogram:
    """Counts of times on a logarithmic scale, from 1 us to 12 days."""

    __slots__ = ("count", "counts", "maximum")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.count = 0
        self.maximum = 0.0

    def add(self, seconds: float) -> None:
        place = 0
        if seconds > _UNIT_SECONDS:
            place = min(_BUCKETS - 1, int(math.log2(seconds / _UNIT_SECONDS) * _PER_DOUBLING))
        self.counts[place] += 1
        self.count += 1
        self.maximum = max(self.maximum, seconds)

    def quantile(self, q: float) -> float | None:
        """Upper edge of the bucket that holds the quantile; None where nothing was counted."""
        if not self.count:
            return None
        wanted = q * self.count
        seen = 0
        for place, number in enumerate(self.counts):
            seen += number
            if seen >= wanted and number:
                return min(self.maximum, _UNIT_SECONDS * 2 ** ((place + 1) / _PER_DOUBLING))
        return self.maximum

    def above(self, seconds: float) -> int:
        """How many were longer; those within 4.5 % of it may be on either side."""
        first = max(0, math.ceil(math.log2(seconds / _UNIT_SECONDS) * _PER_DOUBLING))
        return sum(self.counts[first:])

    def as_dict(self) -> dict[str, Any]:
        filled = {str(place): number for place, number in enumerate(self.counts) if number}
        return {"counts": filled, "maximum": self.maximum}

    def merge(self, other: dict[str, Any]) -> None:
        """Adds what `as_dict` of another gave."""
        for place, number in other["counts"].items():
            self.counts[int(place)] += int(number)
            self.count += int(number)
        self.maximum = max(self.maximum, float(other["maximum"]))


class Totals:
    """What the progress display and the end of a run need to know of the requests that ended.

    `examples`: for each way of failing, the first few sentences of what was said. `joules`: of every
    completed request due at `joules_from_unix` or later, in order of completion; eight bytes each, so only
    where `keep_joules` is asked for (the stop rule needs them).
    """

    def __init__(self, *, keep_joules: bool = False) -> None:
        self.outcomes: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.sent = 0
        self.out_of_descriptors = 0
        self.joules = array.array("d")
        self.joules_from_unix = -math.inf
        self._keep_joules = keep_joules
        self._ttft: deque[float] = deque(maxlen=_RECENT)
        # Of responses that have no first token, because nothing is generated.
        self._e2e: deque[float] = deque(maxlen=_RECENT)
        self._joules: deque[float] = deque(maxlen=_RECENT)
        self._tokens: deque[int] = deque(maxlen=_RECENT)

    def add(self, record: RequestRecord) -> None:
        outcome = record.outcome
        self.outcomes[outcome.value] += 1
        if record.sent_unix is not None:
            self.sent += 1
        if outcome is Outcome.COMPLETED:
            if record.first_token_unix is not None:
                self._ttft.append(record.first_token_unix - record.due_unix)
            elif record.last_token_unix is not None:
                self._e2e.append(record.last_token_unix - record.due_unix)
            if record.energy_joules is not None:
                if self._keep_joules and record.due_unix >= self.joules_from_unix:
                    self.joules.append(record.energy_joules)
                self._joules.append(record.energy_joules)
                self._tokens.append(record.output_tokens or 0)
        elif outcome is not Outcome.UNSENT:
            if record.error is not None and record.error.startswith(OUT_OF_DESCRIPTORS):
                self.out_of_descriptors += 1
            examples = self.examples.setdefault(outcome.value, [])
            if len(examples) < _EXAMPLES and record.error is not None and record.error not in examples:
                examples.append(record.error)

    @property
    def completed(self) -> int:
        return self.outcomes[Outcome.COMPLETED.value]

    @property
    def failed(self) -> int:
        """Ended otherwise than completed, unsent ones left out."""
        return sum(self.outcomes.values()) - self.completed - self.outcomes[Outcome.UNSENT.value]

    @property
    def recent_ttft_seconds(self) -> float | None:
        """Median of the last few hundred."""
        return statistics.median(self._ttft) if self._ttft else None

    @property
    def recent_e2e_seconds(self) -> float | None:
        """Median of the last few hundred whole responses, where nothing is generated."""
        return statistics.median(self._e2e) if self._e2e else None

    @property
    def recent_joules(self) -> float | None:
        """Mean of the last few hundred requests' own joules."""
        return sum(self._joules) / len(self._joules) if self._joules else None

    @property
    def recent_joules_per_output_token(self) -> float | None:
        """Of the last few hundred requests together."""
        tokens = sum(self._tokens)
        return sum(self._joules) / tokens if tokens else None
