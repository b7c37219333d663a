"""Shapley values by their definition, and the factors that bring a closed form to them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, batch
from step_records import MODEL, jobs, random_jobs, run
from wattmeter.attribution import shapley
from wattmeter.attribution.shapley import (
    LEAST_FACTOR,
    MAX_EXACT_PLAYERS,
    coalitions,
    group_factors,
    group_joules,
    sampled_shapley_values,
    shapley_values,
)
from wattmeter.attribution.split import attribute, entry_joules
from wattmeter.energy_model.batching import EngineLimits, replay
from wattmeter.energy_model.step_model import StepModel

LIMITS = EngineLimits()


@given(st.lists(st.floats(-10.0, 10.0), min_size=16, max_size=16))
def test_a_value_is_the_mean_over_all_orders(worth: list[float]) -> None:
    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        mask = 0
        for player in order:
            expected[player] += (worth[mask | 1 << player] - worth[mask]) / 24
            mask |= 1 << player
    assert shapley_values(lambda mask: worth[mask], 4) == pytest.approx(expected, abs=1e-9)


def test_samples_come_with_their_reverse_and_near_the_value() -> None:
    def value(mask: int) -> float:
        return float(mask.bit_count() ** 2 + 3 * (mask & 1))

    exact = shapley_values(value, 5)
    sampled = sampled_shapley_values(value, 5, pairs=1)
    # Of a value that is a square of the number, an order and its reverse together give everyone the mean.
    assert sampled == pytest.approx(exact)
    assert sampled.sum() == pytest.approx(value(31) - value(0))
    assert sampled_shapley_values(value, 5, pairs=3, seed=1) == pytest.approx(exact)

    def crooked(mask: int) -> float:
        return float(mask**2 % 7)

    by_seed = [sampled_shapley_values(crooked, 5, pairs=2, seed=seed).tolist() for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    assert sampled_shapley_values(crooked, 5, pairs=2).tolist() == by_seed[0]
    assert sampled_shapley_values(crooked, 5, pairs=4000) == pytest.approx(
        shapley_values(crooked, 5), abs=0.1
    )


def test_groups_are_players_of_the_replay() -> None:
    work = random_jobs(3, 12, 4.0)
    groups = [0, 2, 1, 2] * 3

    def value(mask: int) -> float:
        inside = np.array([bool(mask >> group & 1) for group in groups])
        return replay(work.only(inside), MODEL, LIMITS).joules(MODEL) if inside.any() else 0.0

    assert group_joules(work, groups, MODEL, LIMITS) == pytest.approx(shapley_values(value, 3))


def test_up_to_eight_groups_are_exact_and_more_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def sampled(value: object, players: int, *, pairs: int, seed: int = 0) -> object:
        asked.append(pairs)
        return sampled_shapley_values(lambda mask: float(mask.bit_count()), players, pairs=1)

    monkeypatch.setattr(shapley, "sampled_shapley_values", sampled)
    work = jobs([(1.0 + 0.1 * n, 100, 3) for n in range(9)])
    assert len(group_joules(work, [n % 8 for n in range(9)], MODEL)) == 8 == MAX_EXACT_PLAYERS
    assert asked == []
    assert group_joules(work, list(range(9)), MODEL).tolist() == pytest.approx([1.0] * 9)
    group_joules(work, list(range(9)), MODEL, pairs=5)
    assert asked == [32, 5]


@pytest.mark.parametrize("groups", [62, 63, 64, 70])
def test_there_may_be_more_groups_than_a_machine_word_has_bits(groups: int) -> None:
    work = jobs([(1.0 + 0.5 * n, 60, 2) for n in range(groups)])
    value = group_joules(work, list(range(groups)), MODEL, pairs=1)
    assert value.sum() == pytest.approx(replay(work, MODEL).joules(MODEL))
    assert (value > 0.0).all()


def test_coalitions_are_all_subsets() -> None:
    assert coalitions("ab") == [("a",), ("b",), ("a", "b")]
    assert len(coalitions("abcde")) == 31
    assert coalitions([]) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_factors_bring_each_group_to_its_value(seed: int, count: int) -> None:
    work = random_jobs(seed, 16, 12.0)
    steps = run(work, MODEL, LIMITS)
    groups = np.arange(16, dtype=np.int32) % count
    arrivals = dict(zip(work.names, work.arrival_seconds.tolist(), strict=True))
    factors = group_factors(steps, groups, MODEL, limits=LIMITS, arrivals=arrivals)
    value = group_joules(work, groups.tolist(), MODEL, LIMITS)
    edges = np.array([steps.launch_ns[0] - SECOND, steps.end_ns[-1] + SECOND], dtype=np.int64)
    joules = np.array([value.sum()])
    seconds = float(steps.end_ns[-1] - steps.launch_ns[0]) * 1e-9
    concurrency = len(steps.step) * MODEL.fixed_seconds / seconds
    split = attribute(
        steps, edges, joules, MODEL, groups=groups, group_factors=factors, concurrency=concurrency
    )
    got = np.bincount(groups, weights=split.request_joules)
    least = LEAST_FACTOR * got / factors
    assert got == pytest.approx(np.maximum(value, least), rel=2e-3)


def test_without_several_groups_or_steps_all_factors_are_one() -> None:
    steps = run(random_jobs(1, 4, 5.0), MODEL, LIMITS)
    assert group_factors(steps, np.zeros(4, dtype=np.int32), MODEL).tolist() == [1.0]
    nothing = batch([])
    assert group_factors(nothing, np.zeros(0, dtype=np.int32), MODEL).tolist() == [1.0]


def test_a_group_that_costs_the_others_nothing_still_pays_a_twentieth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = run(jobs([(1.0, 200, 40), (1.0, 200, 40)]), MODEL, LIMITS)
    monkeypatch.setattr(shapley, "group_joules", lambda *_: np.array([100.0, -20.0]))
    groups = np.array([0, 1], dtype=np.int32)
    factors = group_factors(steps, groups, MODEL)
    prefill, decode = entry_joules(MODEL.work(steps), MODEL, groups=groups)
    own = np.bincount(steps.request, weights=prefill + decode)
    assert factors[1] / factors[0] == pytest.approx(0.05 * float(own[1]) / 100.0, rel=0.2)
    assert (factors >= LEAST_FACTOR).all()
    assert (factors <= 1.0 / LEAST_FACTOR).all()


def test_a_group_without_a_job_keeps_the_factor_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are known but of which no step is in this window have no number in the replay."""
    steps = batch(
        [(k * 20 * MS, (k + 1) * 20 * MS, [("a", 0, 1, 10), ("b", 0, 1, 10)]) for k in range(1, 20)]
    )
    named = replace(steps, request_ids=("a", "b", "nobody"))
    factors = group_factors(named, np.array([0, 1, 2], dtype=np.int32), MODEL)
    assert len(factors) == 3
    assert factors[:2].tolist() == pytest.approx([1.0, 1.0], rel=1e-3)


def test_a_model_without_costs_divides_nothing() -> None:
    free = StepModel(0.0, 0.0, 0.0, 0.0, fixed_seconds=0.005)
    steps = run(random_jobs(1, 4, 5.0), MODEL, LIMITS)
    factors = group_factors(steps, np.array([0, 1, 0, 1], dtype=np.int32), free)
    assert np.isfinite(factors).all()
