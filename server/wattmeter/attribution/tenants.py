"""By which factors the seconds of several tenants are divided, and until when they wait for them.

The factors of a second (`shapley.group_factors`) come from replaying what ran around it, after it too: a
request that arrives a second later decides whether this second's work could have waited. So a second in which
requests of two tenants shared steps is held back until its surroundings are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from wattmeter.attribution.shapley import group_factors
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.queue import KEEP_ENTRIES, KEEP_SECONDS, StepQueue

# Beyond this number the replay of all subsets takes too long: the closed form is used as it is.
MAX_GROUPS = 5
BLOCK_SECONDS = 5.0
# Twice as far ahead changes no tenant's joules by more than 0.6 % (tests), and nobody waits for it.
AHEAD_SECONDS = 8.0
MAX_ENTRIES = 2 * KEEP_ENTRIES
NO_FACTORS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Arrival:
    """Whose a request is, and when it was first heard of."""

    group: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of time [start, end) with one factor for each tenant; a tenant that is not in it has 1."""

    start_ns: int
    end_ns: int
    factors: Mapping[str, float]


class TenantFactors:
    """The factors of each second, or that it has to wait for them. The settling thread owns it.

    A stretch between idle gaps of the device is a game of its own: its factors are those of the whole of it.
    A longer one is cut into blocks of BLOCK_SECONDS, each looked at with the KEEP_SECONDS before it and the
    AHEAD_SECONDS after it, as far as no gap cuts them. Where more than MAX_ENTRIES entries would be held,
    less is known of what follows.
    """

    def __init__(self, queue: StepQueue) -> None:
        self._queue = queue
        self._arrivals: dict[str, Arrival] = {}
        self._held_ns: int | None = None
        #: the block whose factors were computed last, or were to be where that failed: then it has none
        self.block = Block(0, 0, NO_FACTORS)

    def update(self, arrivals: Mapping[str, Arrival | None]) -> None:
        """Take what is new of requests; None for one that is forgotten."""
        for name, arrival in arrivals.items():
            if arrival is None:
                self._arrivals.pop(name, None)
            else:
                self._arrivals[name] = arrival

    def groups(self, names: Iterable[str]) -> list[str]:
        """The tenant of each request; "" for one that is not known (any more)."""
        arrivals = self._arrivals
        return [arrivals[name].group if name in arrivals else "" for name in names]

    def held(self, start_ns: int, until_ns: int) -> bool:
        """Whether the second at start_ns is known to wait for what follows it; costs next to nothing."""
        waits = self._held_ns == start_ns and self._known(start_ns) is None
        return waits and self._span(start_ns, until_ns) is None

    def factors(
        self, start_ns: int, steps: StepBatch, until_ns: int, model: StepModel, *, patient: bool
    ) -> Mapping[str, float] | None:
        """The factors of the second at start_ns with these steps, as is known up to until_ns.

        None: it waits for what follows; without `patient` it does not. May take up to a second. Where the
        replay raises, the block is divided without factors when it is asked for again.
        """
        if model.fixed_seconds <= 0.0 or len(set(self.groups(steps.request_ids))) < 2:
            return NO_FACTORS  # a step of one tenant is that tenant's, whatever its factor
        known = self._known(start_ns)
        if known is not None:
            return known
        if self._held_ns != start_ns:
            self._held_ns = start_ns
            names = self._queue.names(self._begin(start_ns))
            if len(set(self.groups(names))) > MAX_GROUPS:
                return NO_FACTORS
        span = self._span(start_ns, until_ns)
        if span is None:
            if patient:
                return None
            span = until_ns, until_ns
        end_ns, latest_ns = span
        self.block = Block(start_ns, end_ns, NO_FACTORS)
        self.block = Block(start_ns, end_ns, self._replayed(start_ns, latest_ns, model))
        return self.block.factors

    def _known(self, start_ns: int) -> Mapping[str, float] | None:
        block = self.block
        return block.factors if block.start_ns <= start_ns < block.end_ns else None

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

    def _replayed(self, start_ns: int, latest_ns: int, model: StepModel) -> Mapping[str, float]:
        """The factor of each tenant in the block at start_ns, from what ran around it."""
        begin_ns = self._begin(start_ns)
        steps = self._queue.window(begin_ns, latest_ns, MAX_ENTRIES)
        numbers: dict[str, int] = {}
        of_request = [numbers.setdefault(name, len(numbers)) for name in self.groups(steps.request_ids)]
        if not 2 <= len(numbers) <= MAX_GROUPS:
            return NO_FACTORS
        known = ((name, self._arrivals.get(name)) for name in steps.request_ids)
        # A request that came before the window is there when it begins.
        arrivals = {
            name: max(arrival.started_ns, begin_ns) * 1e-9
            for name, arrival in known
            if arrival is not None and arrival.started_ns > 0
        }
        factors = group_factors(steps, np.array(of_request, dtype=np.int32), model, arrivals=arrivals)
        return {name: float(factors[number]) for name, number in numbers.items()}

    def _begin(self, start_ns: int) -> int:
        """From when on steps are looked at for a block that starts at start_ns."""
        begin_ns = start_ns - round(KEEP_SECONDS * 1e9)
        since_ns = self._queue.busy_since(start_ns)
        return begin_ns if since_ns is None else max(begin_ns, since_ns)
