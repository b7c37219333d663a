"""How far the closed-form split between groups is from the Shapley value of coalitions, as factors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from wattmeter.attribution import entry_joules
from wattmeter.recording import concatenate
from wattmeter.replay import EngineLimits, jobs_of, limits_of
from wattmeter.shapley import group_joules
from wattmeter.stepmodel import F64, StepEnergyModel, sum_by
from wattmeter.steps import I32, StepBatch

# A group whose value is almost nothing, or below it, in the replay still pays this part of its closed form:
# no request's energy may be negative.
LEAST_FACTOR = 0.05


def group_factors(
    steps: StepBatch,
    groups: I32,
    model: StepEnergyModel,
    *,
    limits: EngineLimits | None = None,
    arrivals: Mapping[str, float] | None = None,
) -> F64:
    """What to multiply each group's closed-form joules by to meet its Shapley value over these steps, (G,).

    `groups`, shape (R,), numbers the group of each request of `steps.request_ids` from 0; `arrivals` are
    monotonic seconds by request id where known. Pass the result to `attribute` together with the same groups.
    """
    number = int(np.max(groups, initial=0)) + 1
    jobs = jobs_of(steps, arrivals)
    if number < 2 or len(jobs) == 0:
        return np.ones(number)
    numbers = {name: int(group) for name, group in zip(steps.request_ids, groups, strict=True)}
    value = group_joules(jobs, [numbers[name] for name in jobs.names], model, limits or limits_of(steps))
    seconds = float(steps.end_ns[-1] - steps.launch_ns[0]) * 1e-9
    concurrency = len(steps.step) * model.fixed_seconds / max(seconds, 1e-9)
    prefill, decode = entry_joules(steps, model, groups=groups, concurrency=concurrency)
    entry, count = prefill + decode, len(steps)
    of_entry = np.asarray(groups, dtype=np.int64)[steps.request]
    part = sum_by(steps.step.astype(np.int64) * number + of_entry, entry, count * number)
    part = part.reshape(count, number)  # joules of each group in each step by the closed form
    step_total = part.sum(axis=1)
    goal = np.zeros(number)
    goal[: len(value)] = value
    goal = np.maximum(goal, LEAST_FACTOR * part.sum(axis=0))
    goal *= float(np.sum(part)) / max(float(np.sum(goal)), 1e-12)
    factors = np.ones(number)
    for _ in range(30):  # each step keeps its sum, so the factors meet the goal only by and by
        weighted = part @ factors
        ratio = np.divide(step_total, weighted, out=np.ones(count), where=weighted > 0)
        reached = factors * (ratio @ part)
        change = np.divide(goal, reached, out=np.ones(number), where=reached > 0)
        factors = np.clip(factors * change, LEAST_FACTOR, 1.0 / LEAST_FACTOR)
        if np.all(np.abs(change - 1.0) < 1e-4):
            break
    return factors


class GroupShares:
    """Keeps the factors up to date over the last HORIZON_SECONDS of steps, for a server's own books.

    Less than that where a busy server's records exceed MAX_ENTRIES (request, step) entries. Beyond
    MAX_GROUPS groups in the horizon the closed form is used as it is (factors of 1): the replay of all
    coalitions would take too long. Not thread-safe.
    """

    HORIZON_SECONDS = 60.0
    REFRESH_SECONDS = 5.0
    MAX_GROUPS = 5
    MAX_ENTRIES = 200_000

    def __init__(self) -> None:
        self._batches: deque[StepBatch] = deque()
        self._entries = 0
        self._factors: dict[str, float] = {}
        self._refreshed_ns: int | None = None

    def add(self, steps: StepBatch) -> None:
        """The steps of a settled piece, those only that end inside it; call in the order of time."""
        if len(steps):
            self._batches.append(steps)
            self._entries += len(steps.step)
        while len(self._batches) > 1 and self._entries > self.MAX_ENTRIES:
            self._entries -= len(self._batches.popleft().step)

    def factors(
        self,
        now_ns: int,
        model: StepEnergyModel,
        group_of: Callable[[str], str],
        started_of: Callable[[str], float | None],
    ) -> dict[str, float]:
        """Factor by group name; a group that is not in it has 1.

        `group_of` names the group of a request, `started_of` gives its arrival in monotonic seconds, or None.
        """
        due = self._refreshed_ns is None or now_ns - self._refreshed_ns >= self.REFRESH_SECONDS * 1e9
        if not due or model.fixed_seconds <= 0.0:
            return self._factors
        self._refreshed_ns = now_ns
        oldest = now_ns - round(self.HORIZON_SECONDS * 1e9)
        while self._batches and int(self._batches[0].end_ns[-1]) <= oldest:
            self._entries -= len(self._batches.popleft().step)
        seen = {group_of(name) for batch in self._batches for name in batch.request_ids}
        if len(seen) < 2:  # most servers, most of the time: nothing to divide between groups
            self._factors = {}
            return self._factors
        steps = concatenate(self._batches)
        numbers: dict[str, int] = {}
        present = set(np.unique(steps.request).tolist())
        groups = np.array(
            [
                numbers.setdefault(group_of(name), len(numbers)) if row in present else 0
                for row, name in enumerate(steps.request_ids)
            ],
            dtype=np.int32,
        )
        if not 2 <= len(numbers) <= self.MAX_GROUPS:
            self._factors = {}
        else:
            known = ((steps.request_ids[row], started_of(steps.request_ids[row])) for row in present)
            arrivals = {name: when for name, when in known if when is not None}
            found = group_factors(steps, groups, model, arrivals=arrivals)
            self._factors = {
                name: float(found[number]) for name, number in numbers.items() if number < len(found)
            }
        return self._factors
