"""The replay against a scheduler written apart from it, and Shapley values against their definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_records import FULL_MODEL, MODEL, jobs, random_jobs, run
from wattmeter.attribution.shapley import coalitions, group_joules, sampled_shapley_values, shapley_values
from wattmeter.energy_model.batching import EngineLimits, limits_of, replay
from wattmeter.energy_model.step_model import StepModel, step_work
from wattmeter.steps.busy import busy_starts, tail_seconds


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 40),
    rate=st.floats(0.5, 200),
    max_step_tokens=st.sampled_from([256, 2048, 8192]),
    max_running=st.sampled_from([3, 1024]),
    lookahead=st.sampled_from([0, 1]),
    model=st.sampled_from([MODEL, FULL_MODEL]),
)
def test_replay_does_what_the_step_by_step_scheduler_does(
    seed: int,
    count: int,
    rate: float,
    max_step_tokens: int,
    max_running: int,
    lookahead: int,
    model: StepModel,
) -> None:
    limits = EngineLimits(max_step_tokens, max_running, lookahead)
    work = random_jobs(seed, count, rate)
    steps = run(work, model, limits)
    fast = replay(work, model, limits)
    total = step_work(steps, model.padding)
    assert fast.steps.sum() == len(steps)
    assert fast.work.prefill_tokens.sum() == total.prefill_tokens.sum()
    assert fast.work.decode_context_tokens.sum() == pytest.approx(total.decode_context_tokens.sum())
    assert fast.work.attention_pairs.sum() == pytest.approx(total.attention_pairs.sum())
    assert fast.end_seconds[-1] == pytest.approx(steps.end_ns[-1] * 1e-9, abs=1e-6)
    tails = tail_seconds(steps, busy_starts(steps), int(steps.end_ns[-1]) + 10**9)
    joules = model.step_joules(total).sum() + model.tail_watts * tails.sum()
    assert fast.joules(model) == pytest.approx(joules, rel=1e-5)


def test_power_ceiling_takes_effect_over_seconds() -> None:
    work = random_jobs(2, 200, 40.0)
    free = replay(work, MODEL)
    capped = free.joules(replace(MODEL, power_cap_watts=400.0))
    assert capped <= 400.0 * (free.busy_seconds + free.tail_seconds.sum()) + 1e-6
    assert capped < free.joules(MODEL)
    assert free.joules(replace(MODEL, power_cap_watts=1e6)) == pytest.approx(free.joules(MODEL))


def test_limits_are_read_from_the_record() -> None:
    work = random_jobs(3, 60, 100.0)
    for lookahead in (0, 1):
        limits = EngineLimits(16_384, 1024, lookahead)
        found = limits_of(run(work, MODEL, limits))
        assert found.lookahead == lookahead
        assert found.max_step_tokens >= 8192


def test_replay_needs_step_times() -> None:
    with pytest.raises(ValueError, match="fixed_seconds"):
        replay(jobs([(0.0, 5, 5)]), StepModel(1, 1, 1, 1))


def test_no_jobs_cost_nothing() -> None:
    work = jobs([(0.0, 5, 5)])
    assert replay(work.only(np.array([False])), MODEL).joules(MODEL) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_an_additive_game_gives_everyone_their_own(worth: list[float]) -> None:
    def value(mask: int) -> float:
        return sum(w for i, w in enumerate(worth) if mask >> i & 1)

    assert shapley_values(value, len(worth)) == pytest.approx(worth, abs=1e-9)
    assert sampled_shapley_values(value, len(worth), pairs=2) == pytest.approx(worth, abs=1e-9)


def test_the_airport_game() -> None:
    """Littlechild and Owen (1973): a runway as long as the longest plane needs, costs 1, 2 and 4."""
    lengths = (1.0, 2.0, 4.0)

    def value(mask: int) -> float:
        return max((w for i, w in enumerate(lengths) if mask >> i & 1), default=0.0)

    assert shapley_values(value, 3) == pytest.approx([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 2])


def test_groups_share_the_whole_and_equal_groups_equally() -> None:
    rows = [(1.0 + 0.3 * i, 400, 60) for i in range(12)]
    work = jobs(rows)
    value = group_joules(work, [i % 2 for i in range(12)], MODEL)
    assert value.sum() == pytest.approx(replay(work, MODEL).joules(MODEL))
    twins = jobs([row for row in rows for _ in range(2)])
    assert np.diff(group_joules(twins, [0, 1] * 12, MODEL))[0] == pytest.approx(0.0, abs=1e-6)


def test_many_groups_are_sampled_and_still_share_the_whole() -> None:
    work = random_jobs(5, 24, 5.0)
    value = group_joules(work, [i % 12 for i in range(24)], MODEL, pairs=4)
    assert len(value) == 12
    assert value.sum() == pytest.approx(replay(work, MODEL).joules(MODEL))


def test_coalitions_of_three() -> None:
    assert coalitions("abc") == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
