"""Step records that are not settled yet, as one batch, and those of the seconds before."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from wattmeter.busytime import busy_starts
from wattmeter.recording import between, concatenate, rows
from wattmeter.steps import StepBatch

# What ran before a device was idle this long has no influence on what runs after it.
GAP_SECONDS = 1.0
KEEP_SECONDS = 15.0
KEEP_ENTRIES = 100_000


def take_steps(batch: StepBatch, first: int, last: int) -> StepBatch:
    """The steps first..last-1 of a batch, with only the requests that are in them."""
    part = rows(batch, first, last)
    used = np.bincount(part.request, minlength=len(batch.request_ids)) > 0
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    names = tuple(itertools.compress(batch.request_ids, used.tolist()))
    return replace(part, request=number[part.request], request_ids=names, lost_steps=0)


class StepQueue:
    """Steps between what is settled and what the engine did last. Its owner locks.

    Of the settled ones it keeps KEEP_SECONDS, at most about KEEP_ENTRIES (request, step) entries, and it
    knows when the device was idle for GAP_SECONDS. `entries` counts those of the steps that are not settled.

    All methods are called with its owner's lock held, and all but `add` from one thread at a time. Inside
    `pause` the lock is let go: there only what no other thread touches is used.
    """

    def __init__(self, pause: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._pause = pause
        self._batch = concatenate([])
        self._new: list[StepBatch] = []
        self._past: deque[StepBatch] = deque()
        self._past_entries = 0
        self._gaps: deque[tuple[int, int]] = deque()
        self._previous_end_ns: int | None = None
        self._next_index: int | None = None
        self.last_end_ns: int | None = None
        self.lost_steps = 0
        self.steps = 0
        self.entries = 0

    def add(self, batch: StepBatch) -> int:
        """Take a batch; returns how many steps are known to be lost before or in it."""
        lost = batch.lost_steps
        if len(batch):
            if self._next_index is not None:
                lost = max(lost, int(batch.index[0]) - self._next_index)
            self._next_index = int(batch.index[-1]) + 1
            self._new.append(batch)
            self._note_gaps(batch)
            self.last_end_ns = max(self.last_end_ns or 0, int(batch.end_ns[-1]))
            self.steps += len(batch)
            self.entries += len(batch.step)
        lost = max(lost, 0)
        self.lost_steps += lost
        return lost

    def until(self, end_ns: int) -> tuple[StepBatch, int | None]:
        """(the steps that began before end_ns, the end of the step before them); they stay in the queue."""
        self._join()
        with self._pause():
            count = int(np.searchsorted(busy_starts(self._batch, self._previous_end_ns), end_ns))
            return take_steps(self._batch, 0, count), self._previous_end_ns

    def drop(self, end_ns: int) -> None:
        """The steps that ended by end_ns are settled."""
        self._join()
        count = int(np.searchsorted(self._batch.end_ns, end_ns, side="right"))
        if count:
            self._previous_end_ns = int(self._batch.end_ns[count - 1])
            with self._pause():
                self._past.append(take_steps(self._batch, 0, count))
                self._batch = take_steps(self._batch, count, len(self._batch))
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
        with self._pause():
            steps = between(concatenate([*self._past, self._batch]), start_ns, end_ns)
            count = len(steps) if len(steps.step) <= max_entries else int(steps.step[max_entries])
            return take_steps(steps, 0, count)

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
        while self._new:
            new, self._new = self._new, []
            with self._pause():
                self._batch = concatenate([self._batch, *new])
