"""Shapley values of the energy game of docs/attribution.md, on coalitions replayed in modelled time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from wattmeter.replay import EngineLimits, Jobs, replay
from wattmeter.stepmodel import F64, StepEnergyModel
from wattmeter.steps import I64

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
    model: StepEnergyModel,
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
