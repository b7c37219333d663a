"""Step records that are not settled yet, as one batch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from wattmeter.attribution import busy_starts
from wattmeter.recording import concatenate, rows
from wattmeter.steps import StepBatch


def take_steps(batch: StepBatch, first: int, last: int) -> StepBatch:
    """The steps first..last-1 of a batch, with only the requests that are in them."""
    part = rows(batch, first, last)
    used = np.bincount(part.request, minlength=len(batch.request_ids)) > 0
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    names = tuple(itertools.compress(batch.request_ids, used.tolist()))
    return replace(part, request=number[part.request], request_ids=names, lost_steps=0)


class StepQueue:
    """Steps between what is settled and what the engine did last. Its owner locks."""

    def __init__(self) -> None:
        self._batch = concatenate([])
        self._new: list[StepBatch] = []
        self._previous_end_ns: int | None = None
        self._next_index: int | None = None
        self.last_end_ns: int | None = None
        self.lost_steps = 0
        self.steps = 0

    def add(self, batch: StepBatch) -> int:
        """Take a batch; returns how many steps are known to be lost before or in it."""
        lost = batch.lost_steps
        if len(batch):
            if self._next_index is not None:
                lost = max(lost, int(batch.index[0]) - self._next_index)
            self._next_index = int(batch.index[-1]) + 1
            self._new.append(batch)
            self.last_end_ns = max(self.last_end_ns or 0, int(batch.end_ns[-1]))
            self.steps += len(batch)
        lost = max(lost, 0)
        self.lost_steps += lost
        return lost

    def until(self, end_ns: int) -> tuple[StepBatch, int | None]:
        """(the steps that began before end_ns, the end of the step before them); they stay in the queue."""
        self._join()
        count = int(np.searchsorted(busy_starts(self._batch, self._previous_end_ns), end_ns))
        return take_steps(self._batch, 0, count), self._previous_end_ns

    def drop(self, end_ns: int) -> None:
        """Forget the steps that ended by end_ns."""
        self._join()
        count = int(np.searchsorted(self._batch.end_ns, end_ns, side="right"))
        if count:
            self._previous_end_ns = int(self._batch.end_ns[count - 1])
            self._batch = take_steps(self._batch, count, len(self._batch))

    def rest(self) -> tuple[StepBatch, int | None]:
        """All steps in the queue, and the end of the step before them."""
        self._join()
        return self._batch, self._previous_end_ns

    def _join(self) -> None:
        if self._new:
            self._batch = concatenate([self._batch, *self._new])
            self._new = []
