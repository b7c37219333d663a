"""Shapley values of the game of docs/explanation/attribution.md, on coalitions replayed in modelled time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wattmeter.arrays import F64, I32, I64, sum_by
from wattmeter.attribution.split import entry_joules
from wattmeter.energy_model.batching import EngineLimits, Jobs, jobs_of, limits_of, replay
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import TAIL_SECONDS

MAX_EXACT_PLAYERS = 8


def shapley_values(value: Callable[[int], float], players: int) -> F64:
    """The Shapley value of each player, exactly: `value` takes a coalition as a bit mask. 2^players calls."""
    worth = np.array([value(mask) for mask in range(1 << players)])
    result = np.zeros(players)
    for player in range(players):
        bit = 1 << player
        for mask in range(1 << players):
            if not mask & bit:
                size = mask.bit_count()
                weight = math.factorial(size) * math.factorial(players - 1 - size) / math.factorial(players)
                result[player] += weight * (worth[mask | bit] - worth[mask])
    return result


def sampled_shapley_values(value: Callable[[int], float], players: int, *, pairs: int, seed: int = 0) -> F64:
    """Shapley values by `pairs` random orders, each also taken backwards, which cancels most of the noise."""
    generator = np.random.default_rng(seed)
    result = np.zeros(players)
    for _ in range(pairs):
        order = generator.permutation(players)
        for sequence in (order, order[::-1]):
            mask, before = 0, 0.0
            for player in sequence.tolist():
                mask |= 1 << player
                after = value(mask)
                result[player] += after - before
                before = after
    return result / (2 * pairs)


def group_joules(
    jobs: Jobs,
    groups: Sequence[int],
    model: StepModel,
    limits: EngineLimits | None = None,
    *,
    pairs: int = 32,
) -> F64:
    """Shapley value in joules above idle of each group, `groups` (N,) numbering the jobs' from 0.

    Exact up to MAX_EXACT_PLAYERS groups, else from `pairs` antithetic pairs of orders with a fixed seed.
    """
    group = np.asarray(groups, dtype=np.int64)
    players = int(group.max(initial=-1)) + 1
    known: dict[int, float] = {0: 0.0}

    def value(mask: int) -> float:
        if mask not in known:
            inside = (np.int64(mask) >> group) & 1 if players < 63 else _bits(mask, group)
            known[mask] = replay(jobs.only(inside.astype(np.bool_)), model, limits).joules(model)
        return known[mask]

    if players <= MAX_EXACT_PLAYERS:
        return shapley_values(value, players)
    return sampled_shapley_values(value, players, pairs=pairs)


def _bits(mask: int, group: I64) -> I64:
    return np.fromiter(((mask >> number) & 1 for number in group.tolist()), np.int64, len(group))


def coalitions(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets of the names, small ones first."""
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]


# A group whose value is almost nothing, or below it, in the replay still pays this part of its closed form:
# no request's energy may be negative.
LEAST_FACTOR = 0.05


def group_factors(
    steps: StepBatch,
    groups: I32,
    model: StepModel,
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
    work = model.work(steps)
    tails = work.tail_seconds(last_ns)
    prefill, decode = entry_joules(work, model, groups=groups, concurrency=concurrency, tails=tails)
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
