"""By what factors the seconds of several groups are divided, and until when they wait for them.

The factors of a second (`groupshares.group_factors`) come from replaying what ran around it, after it too: a
request that arrives a second later decides whether this second's work could have waited. So a second in which
requests of two groups shared steps is held back until its surroundings are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wattmeter.groupshares import group_factors
from wattmeter.requests import RequestBook
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.stepqueue import KEEP_ENTRIES, KEEP_SECONDS, StepQueue
from wattmeter.steps import StepBatch

# Beyond this number the replay of all subsets takes too long: the closed form is used as it is.
MAX_GROUPS = 5
BLOCK_SECONDS = 5.0
# Twice as far ahead changes no group's joules by more than half a percent (tests), and nobody waits for it.
AHEAD_SECONDS = 8.0
MAX_ENTRIES = 2 * KEEP_ENTRIES
NO_FACTORS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Block:
    """Held time [start, end) and what ran around it: all that its factors follow from.

    `groups` has the group of each request in `steps`, `arrivals` its arrival in monotonic seconds.
    """

    start_ns: int
    end_ns: int
    steps: StepBatch
    groups: Mapping[str, str]
    arrivals: Mapping[str, float]

    def factors(self, model: StepEnergyModel) -> Mapping[str, float]:
        """Factor by group; a group that is not in it has 1. Takes up to a second: call it without a lock."""
        numbers: dict[str, int] = {}
        of_request = [numbers.setdefault(self.groups[name], len(numbers)) for name in self.steps.request_ids]
        if not 2 <= len(numbers) <= MAX_GROUPS or model.fixed_seconds <= 0.0:
            return NO_FACTORS
        found = group_factors(self.steps, np.array(of_request, dtype=np.int32), model, arrivals=self.arrivals)
        return {name: float(found[number]) for name, number in numbers.items()}


class GroupBook:
    """Says of each piece whether it can be divided, by which factors, or which block is due. Its owner locks.

    A stretch between idle gaps of the device is a game of its own: its factors are those of the whole of it.
    A longer one is cut into blocks of BLOCK_SECONDS, each looked at with the KEEP_SECONDS before it and the
    AHEAD_SECONDS after it, as far as no gap cuts them. Where more than MAX_ENTRIES entries would be held,
    less is known of what follows.
    """

    def __init__(self, queue: StepQueue, book: RequestBook) -> None:
        self._queue = queue
        self._book = book
        self._held_ns: int | None = None
        self._answer: tuple[int, int, Mapping[str, float]] = (0, 0, NO_FACTORS)
        self.due: Block | None = None

    def waits(self, start_ns: int, until_ns: int, *, patient: bool) -> bool:
        """Whether the piece at start_ns is known to be held and nothing is due yet; costs next to nothing."""
        self.due = None
        if self._held_ns != start_ns or self._known(start_ns) is not None:
            return False
        return patient and self._span(start_ns, until_ns) is None

    def factors(
        self, start_ns: int, steps: StepBatch, until_ns: int, model: StepEnergyModel, *, patient: bool
    ) -> Mapping[str, float] | None:
        """The factors for the piece at start_ns with these steps, known up to until_ns; None: it is held.

        It was held for long enough where `due` is a block then: `answer` it. Without `patience` that is now.
        """
        if model.fixed_seconds <= 0.0 or len(set(self._book.groups(steps.request_ids))) < 2:
            return NO_FACTORS  # a step of one group is that group's, whatever its factor
        known = self._known(start_ns)
        if known is not None:
            return known
        if self._held_ns != start_ns:
            self._held_ns = start_ns
            names = self._queue.names(self._begin(start_ns))
            if len(set(self._book.groups(names))) > MAX_GROUPS:
                return NO_FACTORS
        span = self._span(start_ns, until_ns)
        if span is None and not patient:
            span = until_ns, until_ns
        if span is not None:
            self.due = self._block(start_ns, *span)
        return None

    def answer(self, block: Block, factors: Mapping[str, float]) -> None:
        self._answer = block.start_ns, block.end_ns, factors
        self.due = None

    def _known(self, start_ns: int) -> Mapping[str, float] | None:
        begin, end, factors = self._answer
        return factors if begin <= start_ns < end else None

    def _span(self, start_ns: int, until_ns: int) -> tuple[int, int] | None:
        """(end of the block, end of what is looked at) for the block at start_ns; None: not yet."""
        end_ns = start_ns + round(BLOCK_SECONDS * 1e9)
        latest_ns = end_ns + round(AHEAD_SECONDS * 1e9)
        idle_ns = self._queue.idle_from(start_ns, until_ns)
        if idle_ns is not None and idle_ns <= latest_ns:
            return idle_ns, idle_ns
        if until_ns >= latest_ns:
            return end_ns, latest_ns
        if self._queue.entries > MAX_ENTRIES - KEEP_ENTRIES:
            return end_ns, until_ns
        return None

    def _block(self, start_ns: int, end_ns: int, latest_ns: int) -> Block:
        begin_ns = self._begin(start_ns)
        steps = self._queue.window(begin_ns, latest_ns, MAX_ENTRIES)
        arrivals = {}
        for name in steps.request_ids:
            state = self._book.get(name)
            if state is not None and state.started_ns > 0:
                # Who came before the window is there when it begins.
                arrivals[name] = max(state.started_ns, begin_ns) * 1e-9
        groups = dict(zip(steps.request_ids, self._book.groups(steps.request_ids), strict=True))
        return Block(start_ns, end_ns, steps, groups, arrivals)

    def _begin(self, start_ns: int) -> int:
        """From when on steps are looked at for a block that starts at start_ns."""
        begin_ns = start_ns - round(KEEP_SECONDS * 1e9)
        since_ns = self._queue.busy_since(start_ns)
        return begin_ns if since_ns is None else max(begin_ns, since_ns)
