"""How far the closed-form split between groups is from the Shapley value of coalitions, as factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from wattmeter.attribution import entry_joules
from wattmeter.recording import between, concatenate
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
    step_total = sum_by(steps.step, entry, count)
    of_entry = np.asarray(groups)[steps.request]
    goal = np.zeros(number)
    goal[: len(value)] = value
    goal = np.maximum(goal, LEAST_FACTOR * sum_by(of_entry, entry, number))
    goal *= float(np.sum(entry)) / max(float(np.sum(goal)), 1e-12)
    factors = np.ones(number)
    for _ in range(30):  # each step keeps its sum, so the factors meet the goal only by and by
        weighted = entry * factors[of_entry]
        step_weighted = sum_by(steps.step, weighted, count)
        ratio = np.divide(step_total, step_weighted, out=np.ones(count), where=step_weighted > 0)
        reached = sum_by(of_entry, weighted * ratio[steps.step], number)
        change = np.divide(goal, reached, out=np.ones(number), where=reached > 0)
        factors = np.clip(factors * change, LEAST_FACTOR, 1.0 / LEAST_FACTOR)
        if np.all(np.abs(change - 1.0) < 1e-4):
            break
    return factors


class GroupShares:
    """Keeps the factors up to date over the last HORIZON_SECONDS of steps, for a server's own books.

    Beyond MAX_GROUPS groups in the horizon the closed form is used as it is (factors of 1): the replay of all
    coalitions would take too long. Not thread-safe.
    """

    HORIZON_SECONDS = 60.0
    REFRESH_SECONDS = 5.0
    MAX_GROUPS = 5

    def __init__(self) -> None:
        self._batches: list[StepBatch] = []
        self._factors: dict[str, float] = {}
        self._refreshed_ns: int | None = None

    def add(self, steps: StepBatch) -> None:
        """The steps of a settled piece, those only that end inside it; call in the order of time."""
        if len(steps):
            self._batches.append(steps)

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
        if not due or not self._batches or model.fixed_seconds <= 0.0:
            return self._factors
        self._refreshed_ns = now_ns
        oldest = now_ns - round(self.HORIZON_SECONDS * 1e9)
        steps = between(concatenate(self._batches), oldest, now_ns + 1)
        self._batches = [steps] if len(steps) else []
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
