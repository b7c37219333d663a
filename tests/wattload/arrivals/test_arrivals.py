# ruff: noqa: E501 - tables of cases
"""Each process has the rate and the burstiness its formula says, and refuses what makes no sense."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload import arrivals, traces
from wattload.arrivals import Demand
from wattload.arrivals.demand import demand_of
from wattload.errors import BadInput
from wattload.schedule.build import build_schedule
from wattload.schedule.rows import TraceRows
from wattload.traces import embedded as workloads
from wattload.traces.trace import Trace


def due(text: str, seed: int = 0, **demand: float) -> np.ndarray:
    rows = TraceRows(traces.load("conv"), seed=seed)
    return arrivals.parse(text).due_seconds(Demand(**demand), rows, np.random.default_rng(seed))  # type: ignore[arg-type]


def cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def plain(seconds: list[float]) -> Trace:
    n = len(seconds)
    return Trace(
        name="t", format="plain", seconds=np.array(seconds, np.float64),
        prompt_tokens=np.full(n, 10, np.int32), output_tokens=np.full(n, 5, np.int32),
        session=np.full(n, -1), turn=np.zeros(n, np.int32), think_seconds=np.full(n, np.nan), tag=np.zeros(n, np.int16),
    )  # fmt: skip


def test_constant_is_every_1_over_r() -> None:
    np.testing.assert_allclose(due("constant", rate_rps=4.0, duration_seconds=2.0), np.arange(8) / 4)


@pytest.mark.parametrize(("text", "expected"), [("poisson", 1.0), ("gamma:cv=0.5", 0.5), ("gamma:cv=3", 3.0)])
def test_renewal_processes_have_their_rate_and_cv(text: str, expected: float) -> None:
    times = due(text, rate_rps=50.0, duration_seconds=2000.0)
    # The count of a renewal process has variance cv^2 n: five standard deviations.
    assert abs(len(times) - 100_000) < 5 * expected * math.sqrt(100_000)
    assert cv(times) == pytest.approx(expected, rel=0.03)
    assert len(due(text, rate_rps=50.0, requests=777)) == 777


def test_poisson_gaps_are_exponential() -> None:
    from scipy import stats

    gaps = np.diff(due("poisson", seed=3, rate_rps=10.0, duration_seconds=1000.0))
    assert stats.kstest(gaps, "expon", args=(0, 0.1)).pvalue > 0.01


def windowed(times: np.ndarray, edges: list[float]) -> list[float]:
    counts, _ = np.histogram(times, edges)
    return [c / (b - a) for c, (a, b) in zip(counts, pairwise(edges), strict=True)]


def test_ramp_grows_as_its_line() -> None:
    times = due("ramp:from=10,to=110", duration_seconds=1000.0)
    assert windowed(times, [0, 250, 500, 750, 1000]) == pytest.approx([22.5, 47.5, 72.5, 97.5], rel=0.05)
    exact = due("ramp:from=0,to=8,cv=0", duration_seconds=100.0)
    # L(t) = 0.04 t^2, so request i is due at sqrt(i / 0.04).
    np.testing.assert_allclose(exact, np.sqrt(np.arange(400) / 0.04), atol=0.05)


def test_steps_hold_their_rates_and_the_last_one_stays() -> None:
    times = due("steps:rates=5/0/40,each=100", duration_seconds=400.0)
    assert windowed(times, [0, 100, 200, 300, 400]) == pytest.approx([5, 0, 40, 40], rel=0.15)
    assert not ((times > 100) & (times < 200)).any()
    even = due("steps:rates=10/20,cv=0", duration_seconds=10.0)
    assert windowed(even, [0, 5, 10]) == [10, 20]
    assert due("steps:rates=10/20,each=100", duration_seconds=50.0).max() < 50


def test_diurnal_swings_about_its_mean() -> None:
    times = due("diurnal:amplitude=0.5", rate_rps=20.0, duration_seconds=1000.0)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    low, high = windowed(times, [0, 100])[0], windowed(times, [450, 550])[0]
    assert low < 12
    assert high > 28


def test_onoff_is_silent_between_bursts_and_keeps_the_mean() -> None:
    times = due("onoff:on=10,off=30", rate_rps=5.0, duration_seconds=4000.0)
    assert len(times) == pytest.approx(20_000, rel=0.05)
    assert (np.mod(times, 40) <= 10).all()
    assert len(due("onoff:on=10,off=30,low=0.1", rate_rps=5.0, requests=500)) == 500


def test_offline_and_closed() -> None:
    assert due("offline", requests=10).tolist() == [0.0] * 10
    closed = arrivals.parse("closed:concurrency=8")
    assert closed.concurrency == 8
    assert np.isnan(due("closed:concurrency=8", requests=10)).all()


def test_trace_times_are_stretched_and_none_dropped() -> None:
    trace = plain([0, 1, 2, 10, 11, 30])
    own = build_schedule(trace)
    assert own.due_seconds.tolist() == [0, 1, 2, 10, 11, 30]
    thrice = build_schedule(trace, rate="3x")
    np.testing.assert_allclose(thrice.due_seconds, own.due_seconds / 3)
    # 4 requests in 2 s: the fifth row, at 11 s, marks the end of the part that is used.
    fast = build_schedule(trace, rate=2, duration=2)
    np.testing.assert_allclose(fast.due_seconds, np.array([0, 1, 2, 10]) * 2 / 11)
    assert fast.rate_rps == 2
    assert len(build_schedule(trace, duration=10)) == 3


def test_a_trace_that_ends_early_says_so_and_repeats_when_asked() -> None:
    trace = plain([0, 1, 2, 3])
    short = build_schedule(trace, rate=2, duration=10)
    assert len(short) == 4
    assert short.rate_rps == pytest.approx(2)
    assert any("ends after 4 requests" in note for note in short.notes)
    again = build_schedule(trace, rate=2, duration=10, repeat=True)
    assert len(again) == 20
    assert not again.notes
    assert len(set(again.content_seed.tolist())) == 20
    np.testing.assert_allclose(again.due_seconds, np.arange(20) / 2)
    own = build_schedule(trace, duration=9.5, repeat=True)
    np.testing.assert_allclose(own.due_seconds, np.arange(10))


@pytest.mark.parametrize(("name", "rate"), [("conv", 5.53), ("code", 2.57)])
def test_an_embedded_workload_has_its_own_rate_for_as_long_as_asked(name: str, rate: float) -> None:
    trace = traces.load(name)
    assert trace.rate_rps == pytest.approx(rate, rel=0.1)
    long = build_schedule(trace, duration=4 * 3600)
    assert long.rate_rps == pytest.approx(rate, rel=0.15)
    assert build_schedule(trace, rate=100, duration=10).rate_rps == 100


@pytest.mark.parametrize(
    "text",
    ["", "weibull", "gamma", "gamma:cv=0", "gamma:cv=-1", "gamma:cv=nan", "gamma:cv=x", "gamma:cv=1,cv=2", "poisson:x=1",
     "gamma:cv", "ramp:from=1", "ramp:from=0,to=0", "ramp:from=-1,to=5", "steps", "steps:rates=0/0", "steps:rates=1/x",
     "steps:rates=1,each=0", "diurnal:amplitude=2", "onoff:on=1", "onoff:on=0,off=1", "closed", "closed:concurrency=0",
     "closed:concurrency=1.5", "closed:concurrency=-3", "closed:concurrency=inf"],
)  # fmt: skip
def test_nonsense_specifications(text: str) -> None:
    with pytest.raises(BadInput, match="arrivals"):
        arrivals.parse(text)


@pytest.mark.parametrize(
    "rate", [0, -1, math.nan, math.inf, -math.inf, "0", "nan", "x", "0x", "-2x", "", "3y"]
)
def test_nonsense_rates(rate: float | str) -> None:
    with pytest.raises(BadInput, match="rate"):
        demand_of(rate, 10, None)


@pytest.mark.parametrize("duration", [0, -5, math.nan, math.inf])
def test_nonsense_durations(duration: float) -> None:
    with pytest.raises(BadInput, match="duration"):
        demand_of(1, duration, None)


def test_nonsense_counts_and_missing_flags() -> None:
    with pytest.raises(BadInput, match="requests"):
        demand_of(1, None, 0)
    with pytest.raises(BadInput, match="`duration` or `requests`"):
        due("constant", rate_rps=1.0)
    with pytest.raises(BadInput, match="needs `rate`"):
        due("poisson", duration_seconds=10.0)
    with pytest.raises(BadInput, match="rate does not go with"):
        due("ramp:from=1,to=2", rate_rps=1.0, duration_seconds=10.0)
    with pytest.raises(BadInput, match="needs `duration`"):
        due("ramp:from=1,to=2", requests=10)
    with pytest.raises(BadInput, match="has no end"):
        due("trace")
    with pytest.raises(BadInput, match="same time"):
        build_schedule(plain([0, 0, 0, 0, 5]), rate=1, duration=3)


ANY = st.sampled_from(
    [
        "trace",
        "constant",
        "poisson",
        "gamma:cv=2.5",
        "diurnal",
        "onoff:on=3,off=2",
        "ramp:from=1,to=9",
        "steps:rates=2/9",
    ]
)


@settings(max_examples=60, deadline=None)
@given(ANY, st.integers(0, 2**40), st.floats(0.5, 40), st.floats(1, 60))
def test_due_times_never_decrease_lie_within_the_run_and_depend_on_the_seed_alone(
    text: str, seed: int, rate: float, duration: float
) -> None:
    own = text.startswith(("ramp", "steps"))
    demand = Demand(rate_rps=None if own else rate, duration_seconds=duration)
    rows = TraceRows(SAMPLE, seed=seed)
    first = arrivals.parse(text).due_seconds(demand, rows, np.random.default_rng(seed))
    again = arrivals.parse(text).due_seconds(
        demand, TraceRows(SAMPLE, seed=seed), np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.diff(first) >= 0).all()
    # Constant plans a rounded number of requests, the last of which may start a rounding after the end.
    assert not len(first) or (first[0] >= 0 and first[-1] <= duration * (1 + 1e-9) + 1 / rate)


SAMPLE = traces.load("conv")


def test_specifications_survive_a_round_trip() -> None:
    for text in ("trace", "constant", "poisson", "gamma:cv=2", "ramp:from=1,to=9", "steps:rates=2/9,each=5",
                 "onoff:on=3,off=2,low=0", "diurnal:amplitude=0.8", "closed:concurrency=4", "offline", "ramp:from=1,to=9,cv=0"):  # fmt: skip
        assert arrivals.parse(text).text == text
        assert arrivals.parse(arrivals.parse(text).text) == arrivals.parse(text)
    assert set(workloads.NAMES) == {"conv", "code", "agent"}


@pytest.mark.parametrize("text", ["constant", "poisson", "gamma:cv=2"])
def test_a_file_without_duration_is_sent_whole(text: str) -> None:
    assert len(build_schedule(plain([0, 1, 2, 3]), text, rate=5)) == 4


@pytest.mark.parametrize(
    "text", ["trace", "constant", "poisson", "gamma:cv=2", "diurnal", "onoff:on=1,off=1"]
)
def test_of_requests_and_duration_the_smaller_counts(text: str) -> None:
    few = due(text, rate_rps=10.0, duration_seconds=100.0, requests=50)
    assert len(few) == 50
    brief = due(text, rate_rps=10.0, duration_seconds=4.0, requests=5000)
    assert 20 <= len(brief) <= 70
    assert brief.max() < 4
