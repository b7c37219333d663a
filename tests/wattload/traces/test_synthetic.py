"""Workloads of random lengths: what they are drawn from, and that they are as reproducible as a trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wattload import traces
from wattload.errors import InputError
from wattload.schedule.build import build_schedule
from wattload.traces.synthetic import parse_random


def prompts(lengths: str, count: int = 20_000) -> npt.NDArray[np.int32]:
    return parse_random(f"random:prompt={lengths},output=7").sample(count, seed=3).prompt_tokens


def test_constant_lengths() -> None:
    trace = traces.load("random:prompt=512,output=128")
    assert set(trace.prompt_tokens.tolist()) == {512}
    assert set(trace.output_tokens.tolist()) == {128}
    assert trace.timed
    assert abs(trace.rate_rps - 1.0) < 0.05


def test_uniform_lengths_reach_both_ends() -> None:
    found = prompts("10..13")
    assert set(found.tolist()) == {10, 11, 12, 13}
    assert abs(found.mean() - 11.5) < 0.05


@pytest.mark.parametrize(
    ("lengths", "mean", "sd"),
    [
        ("normal:mean=500:sd=50", 500, 50),
        ("lognormal:mean=500:cv=0.6", 500, 300),
        ("exponential:mean=500", 500, 500),
    ],
)
def test_mean_and_spread_are_those_of_the_lengths(lengths: str, mean: float, sd: float) -> None:
    found = prompts(lengths)
    # Four standard errors of each, and half a token of rounding.
    assert abs(found.mean() - mean) < 4 * sd / len(found) ** 0.5 + 0.5
    assert abs(found.std() / sd - 1) < 0.08


def test_what_falls_outside_is_drawn_again_and_not_piled_up_at_the_edge() -> None:
    found = prompts("normal:mean=100:sd=50:min=80:max=120")
    assert (found.min(), found.max()) == (80, 120)
    at_the_edge = int((found == 80).sum() + (found == 120).sum())
    assert at_the_edge < 0.06 * len(found)


def test_the_same_seed_gives_the_same_and_a_longer_sample_begins_alike() -> None:
    workload = parse_random("random:prompt=lognormal:mean=300:cv=1,output=1..50")
    short, long, other = workload.sample(100, 5), workload.sample(9000, 5), workload.sample(100, 6)
    for name in ("seconds", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:100])
    assert (short.prompt_tokens != other.prompt_tokens).any()
    assert len(workload.sample(0)) == 0


def test_a_run_asks_for_as_many_as_it_needs_at_its_rate() -> None:
    trace = traces.load("random:prompt=16..64,output=8")
    schedule = build_schedule(trace, rate=5, duration="60s", seed=1)
    assert len(schedule) == 300
    assert schedule.rate_rps == pytest.approx(5)
    gaps = np.diff(schedule.due_seconds)
    assert 0.8 < gaps.std() / gaps.mean() < 1.2, "a Poisson process"
    assert build_schedule(trace, "constant", rate=5, duration="60s").due_seconds[1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("random:", "is not one of prompt=LENGTHS"),
        ("random:prompt=5", "output= is missing"),
        ("random:prompt=5,output=5,prompt=6", "each once"),
        ("random:prompt=5,output=5,tokens=5", "is not one of"),
        ("random:prompt=,output=5", "is not a number"),
        ("random:prompt=five,output=5", "is not a number"),
        ("random:prompt=0,output=5", "above 0"),
        ("random:prompt=1.5,output=5", "whole number"),
        ("random:prompt=nan,output=5", "above 0"),
        ("random:prompt=1e12,output=5", "whole number"),
        ("random:prompt=9..5,output=5", "below the first"),
        ("random:prompt=9,output=5,think=1", "between turns="),
        ("random:prompt=9,output=5,turns=0", "above 0"),
        ("random:prompt=9,output=5,turns=2,think=-1", "above 0"),
        ("random:prompt=9,output=5,turns=2,think=1e9", "up to 86400"),
        ("random:prompt=..5,output=5", "is not a number"),
        ("random:prompt=zipf:a=2,output=5", "one of normal"),
        ("random:prompt=normal,output=5", "normal takes mean and sd"),
        ("random:prompt=normal:mean=5,output=5", "normal takes mean and sd"),
        ("random:prompt=lognormal:mean=5:sd=1,output=5", "lognormal takes mean and cv"),
        ("random:prompt=normal:mean=5:sd=1:mean=6,output=5", "each key once"),
        ("random:prompt=normal:mean=5:sd,output=5", "KEY=NUMBER"),
        ("random:prompt=normal:mean=5:sd=1:min=9:max=8,output=5", "in this order"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        traces.load(text)
    assert refused.value.field == "trace"
    assert "\n" not in str(refused.value)


def test_limits_that_hardly_anything_meets_are_refused() -> None:
    with pytest.raises(InputError, match="hardly any"):
        traces.load("random:prompt=normal:mean=5:sd=1:min=100,output=5")


def test_sessions_say_more_from_turn_to_turn() -> None:
    trace = traces.load("random:prompt=100..200,output=10,turns=2..5,think=exponential:mean=3")
    assert (np.diff(trace.seconds) >= 0).all()
    assert abs(trace.rate_rps - 1.0) < 0.1
    for session in range(20):
        rows = np.flatnonzero(trace.session == session)
        assert 2 <= len(rows) <= 5
        assert trace.turn[rows].tolist() == list(range(len(rows)))
        assert (np.diff(trace.prompt_tokens[rows]) >= 110).all(), "the answer before, and what is new"
        assert np.isnan(trace.think_seconds[rows[0]])
        assert (trace.think_seconds[rows[1:]] > 0).all()
    later = trace.think_seconds[trace.turn > 0]
    assert abs(later.mean() - 3) < 0.2


def test_longer_samples_of_sessions_begin_alike() -> None:
    workload = parse_random("random:prompt=10,output=5..9,turns=1..4,think=1..2")
    short, long = workload.sample(50, 5), workload.sample(400, 5)
    for name in ("seconds", "prompt_tokens", "output_tokens", "session", "turn"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:50])
