"""Step records that are not settled yet, as one batch, and those of the seconds before."""

from __future__ import annotations

from collections import deque

import numpy as np

from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import busy_starts

# What ran before a device was idle this long has no influence on what runs after it.
GAP_SECONDS = 1.0
KEEP_SECONDS = 15.0
KEEP_ENTRIES = 100_000


class StepQueue:
    """Steps between what is settled and what the engine did last. The settling thread owns it.

    Of the settled ones it keeps KEEP_SECONDS, at most about KEEP_ENTRIES (request, step) entries, and it
    knows when the device was idle for GAP_SECONDS. `entries` counts those of the steps that are not settled.
    """

    def __init__(self) -> None:
        self._batch = StepBatch.concat([])
        self._new: list[StepBatch] = []
        self._past: deque[StepBatch] = deque()
        self._past_entries = 0
        self._gaps: deque[tuple[int, int]] = deque()
        self._previous_end_ns: int | None = None
        self.last_end_ns: int | None = None
        self.entries = 0

    def add(self, batch: StepBatch) -> None:
        """Take the engine's next steps."""
        if len(batch):
            self._new.append(batch)
            self._note_gaps(batch)
            self.last_end_ns = max(self.last_end_ns or 0, int(batch.end_ns[-1]))
            self.entries += len(batch.step)

    @property
    def begin_ns(self) -> int | None:
        """When the first of the steps that are not settled began; None without any."""
        self._join()
        starts = busy_starts(self._batch.slice(0, 1), self._previous_end_ns)
        return int(starts[0]) if len(starts) else None

    def until(self, end_ns: int) -> tuple[StepBatch, int | None]:
        """(the steps that began before end_ns, the end of the step before them); they stay in the queue."""
        self._join()
        count = int(np.searchsorted(busy_starts(self._batch, self._previous_end_ns), end_ns))
        return self._batch.slice(0, count).renumber(), self._previous_end_ns

    def drop(self, end_ns: int) -> None:
        """The steps that ended by end_ns are settled."""
        self._join()
        count = int(np.searchsorted(self._batch.end_ns, end_ns, side="right"))
        if count:
            self._previous_end_ns = int(self._batch.end_ns[count - 1])
            self._past.append(self._batch.slice(0, count).renumber())
            self._batch = self._batch.slice(count, len(self._batch)).renumber()
            moved = len(self._past[-1].step)
            self.entries -= moved
            self._past_entries += moved
        oldest = end_ns - round(KEEP_SECONDS * 1e9)
        while self._past and (
            int(self._past[0].end_ns[-1]) <= oldest
            or (self._past_entries > KEEP_ENTRIES and len(self._past) > 1)
        ):
            self._past_entries -= len(self._past.popleft().step)
        while self._gaps and self._gaps[0][1] <= oldest:
            self._gaps.popleft()

    def rest(self) -> tuple[StepBatch, int | None]:
        """All steps in the queue, and the end of the step before them."""
        self._join()
        return self._batch, self._previous_end_ns

    def names(self, since_ns: int) -> set[str]:
        """The requests of all steps it knows, roughly from since_ns on."""
        self._join()
        past = [batch.request_ids for batch in self._past if int(batch.end_ns[-1]) > since_ns]
        return set(self._batch.request_ids).union(*past)

    def window(self, start_ns: int, end_ns: int, max_entries: int) -> StepBatch:
        """The steps, settled ones too, that end after start_ns and were launched before end_ns.

        The first of them only where they have more than `max_entries` entries.
        """
        self._join()
        steps = StepBatch.concat([*self._past, self._batch]).between(start_ns, end_ns)
        count = len(steps) if len(steps.step) <= max_entries else int(steps.step[max_entries])
        return steps.slice(0, count).renumber()

    def busy_since(self, at_ns: int) -> int | None:
        """The end of the last idle gap that began by at_ns; None where none is known."""
        return next((end for begin, end in reversed(self._gaps) if begin <= at_ns), None)

    def idle_from(self, at_ns: int, until_ns: int) -> int | None:
        """When the device first became idle after at_ns and stayed so for GAP_SECONDS, known by until_ns."""
        for begin, _ in self._gaps:
            if begin > at_ns:
                return begin
        last_ns = self.last_end_ns
        ended = last_ns is not None and last_ns > at_ns and until_ns - last_ns >= GAP_SECONDS * 1e9
        return last_ns if ended else None

    def _note_gaps(self, batch: StepBatch) -> None:
        first = int(batch.launch_ns[0]) if self.last_end_ns is None else self.last_end_ns
        before = np.concatenate([[first], batch.end_ns[:-1]])
        for row in np.flatnonzero(batch.launch_ns - before >= GAP_SECONDS * 1e9).tolist():
            self._gaps.append((int(before[row]), int(batch.launch_ns[row])))

    def _join(self) -> None:
        if self._new:
            new, self._new = self._new, []
            self._batch = StepBatch.concat([self._batch, *new])
