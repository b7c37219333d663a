"""How far the closed-form split between groups is from the Shapley value of coalitions, as factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wattmeter.attribution import entry_joules
from wattmeter.busytime import TAIL_SECONDS, busy_starts, tail_seconds
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
    last_ns = int(steps.end_ns[-1]) + round(TAIL_SECONDS * 1e9)
    tails = tail_seconds(steps, busy_starts(steps), last_ns)
    prefill, decode = entry_joules(steps, model, groups=groups, concurrency=concurrency, tails=tails)
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
