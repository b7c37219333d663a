"""Rows of a trace as a run asks for them: from a file as far as it goes or over and over, from a workload
without end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wattload.arrivals.process import limited
from wattload.traces.trace import Trace

F64 = npt.NDArray[np.float64]


class TraceRows:
    """The rows a run may draw on.

    An embedded workload is sampled anew with `seed`, as many rows as asked for. A file ends; with `repeat` it
    starts again a mean gap after its last row, as new requests: their sessions are new ones, their contents
    are too.
    """

    def __init__(self, trace: Trace, *, seed: int = 0, repeat: bool = False) -> None:
        self._trace, self._seed, self._repeat = trace, seed, repeat
        self._drawn = trace

        if trace.workload is not None:
            self._drawn = trace.take(np.zeros(0, np.int64))

    @property
    def limit(self) -> int | None:
        return None if self._trace.workload is not None or self._repeat else len(self._trace)

    @property
    def timed(self) -> bool:
        return self._trace.timed

    @property
    def mean_gap_seconds(self) -> float:
        return self._trace.span_seconds / len(self._trace)

    def first(self, count: int) -> F64:
        return self.take(count).seconds

    def until(self, seconds: float) -> F64:
        """Times of all rows before `seconds`."""
        if self.limit is not None:
            return self._drawn.seconds[: int(np.searchsorted(self._drawn.seconds, seconds, side="left"))]
        gap = self.mean_gap_seconds
        count = limited(seconds / gap * 1.2, "duration") + 100 if gap > 0 else len(self._trace)
        while self.first(count)[-1] < seconds:
            if gap <= 0:
                return self.first(count)
            count = limited(count * 2, "duration")
        times = self.first(count)
        return times[: int(np.searchsorted(times, seconds, side="left"))]

    def take(self, count: int) -> Trace:
        """The first `count` rows (fewer where the trace ends)."""
        trace = self._trace
        if trace.workload is not None:
            if len(self._drawn) < count:
                self._drawn = trace.workload.sample(count, self._seed)
        elif self._repeat and len(self._drawn) < count:
            self._drawn = repeated(trace, count)
        return self._drawn.head(count)


def repeated(trace: Trace, count: int) -> Trace:
    """`count` rows of `trace` played over and over; each round's sessions and prefix blocks are its own."""
    n = len(trace)
    index = np.arange(count)
    rounds = index // n
    taken = trace.take(index % n)
    sessions = int(trace.session.max()) + 1
    session = np.where(taken.session >= 0, taken.session + rounds * sessions, -1)
    prefix = taken.prefix
    if prefix is not None and len(prefix.ids):
        per_round = int(trace.prefix.ids.max()) + 1 if trace.prefix is not None else 0
        shift = np.repeat(rounds, np.diff(prefix.offsets)) * per_round
        prefix = replace(prefix, ids=prefix.ids + shift)
    return replace(
        taken,
        seconds=taken.seconds + rounds * trace.span_seconds,
        session=session,
        prefix=prefix,
        parents=None if trace.parents is None else trace.parents.repeated(count),
    )
