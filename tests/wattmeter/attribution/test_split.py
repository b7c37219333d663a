"""The split is conserving, non-negative, symmetric and deterministic, and near the Shapley value."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from line_recording import read_lines
from shared import shared_file
from step_records import FULL_MODEL, MODEL, jobs, random_jobs, run
from wattmeter.arrays import I64
from wattmeter.attribution.shapley import (
    group_factors,
    group_joules,
    sampled_shapley_values,
    shapley_values,
)
from wattmeter.attribution.split import attribute, entry_joules, stall_share
from wattmeter.energy_model.batching import EngineLimits, jobs_of, replay
from wattmeter.energy_model.step_model import StepModel, StepWork, step_work
from wattmeter.steps.batch import StepBatch

LIMITS = EngineLimits()


def edges_over(steps: StepBatch, count: int = 20) -> I64:
    span = int(steps.end_ns[-1] - steps.launch_ns[0])
    first = int(steps.launch_ns[0]) - span // 50
    return np.arange(count + 1, dtype=np.int64) * (span * 26 // 25 // count) + first


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    rate=st.floats(0.5, 60),
    joules=st.lists(st.floats(-50, 900), min_size=12, max_size=12),
    group_count=st.integers(0, 4),
    trusted_terms=st.booleans(),
)
def test_conserves_and_is_never_negative(
    seed: int, count: int, rate: float, joules: list[float], group_count: int, trusted_terms: bool
) -> None:
    steps = run(random_jobs(seed, count, rate), MODEL, LIMITS)
    model = MODEL if trusted_terms else replace(MODEL, fixed_seconds=0.0)
    groups = np.arange(count, dtype=np.int32) % group_count if group_count else None
    split = attribute(steps, edges_over(steps, 12), np.array(joules), model, groups=groups)
    given_out = split.request_joules.sum() + split.unattributed_joules.sum()
    assert given_out == pytest.approx(sum(joules), abs=1e-6)
    assert (split.prefill_joules >= 0).all()
    assert (split.decode_joules >= 0).all()
    assert (split.uncertainty_joules >= 0).all()
    again = attribute(steps, edges_over(steps, 12), np.array(joules), model, groups=groups)
    assert np.array_equal(split.request_joules, again.request_joules)


def test_every_interval_gives_out_its_own_joules() -> None:
    steps = run(random_jobs(4, 40, 8.0), MODEL, LIMITS)
    edges = edges_over(steps, 10)
    one = np.zeros(10)
    one[4] = 250.0
    split = attribute(steps, edges, one, MODEL)
    assert split.request_joules.sum() == pytest.approx(250.0)
    inside = steps.between(int(edges[4]), int(edges[5]))
    ran = np.zeros(len(steps.request_ids), dtype=bool)
    ran[inside.request] = True
    assert (split.request_joules[~ran] == 0).all()


def test_adjoining_calls_add_up_although_a_step_straddles_them() -> None:
    steps = run(random_jobs(9, 12, 20.0), MODEL, LIMITS)
    edges = edges_over(steps, 2)
    whole = attribute(steps, edges, np.array([300.0, 200.0]), MODEL, concurrency=2.0)
    parts = [
        attribute(steps, edges[i : i + 2], np.array([joules]), MODEL, concurrency=2.0)
        for i, joules in enumerate((300.0, 200.0))
    ]
    assert whole.request_joules == pytest.approx(sum(part.request_joules for part in parts))


def test_the_work_of_steps_may_be_derived_once_and_passed() -> None:
    steps = run(random_jobs(9, 12, 20.0), FULL_MODEL, LIMITS)
    edges, joules, before = edges_over(steps, 4), np.full(4, 90.0), int(steps.launch_ns[0]) + 1000
    direct = attribute(steps, edges, joules, FULL_MODEL, previous_end_ns=before)
    passed = attribute(StepWork.of(steps, FULL_MODEL.padding, before), edges, joules, FULL_MODEL)
    assert np.array_equal(direct.prefill_joules, passed.prefill_joules)
    assert np.array_equal(direct.uncertainty_joules, passed.uncertainty_joules)
    with pytest.raises(ValueError, match="padded otherwise"):
        attribute(StepWork.of(steps), edges, joules, FULL_MODEL)


def test_a_request_that_computed_nothing_gets_nothing() -> None:
    steps = run(random_jobs(3, 5, 5.0), MODEL, LIMITS)
    named = replace(steps, request_ids=(*steps.request_ids, "idle"))
    split = attribute(named, edges_over(steps, 3), np.full(3, 100.0), MODEL)
    assert split.request_joules[-1] == 0.0


def test_equal_requests_at_the_same_time_get_the_same() -> None:
    steps = run(jobs([(1.0, 500, 40)] * 4), MODEL, LIMITS)
    split = attribute(steps, edges_over(steps, 1), np.array([400.0]), MODEL)
    assert split.request_joules == pytest.approx(np.full(4, 100.0))


def test_one_request_alone_gets_all_of_its_window() -> None:
    steps = run(jobs([(1.0, 800, 100)]), MODEL, LIMITS)
    split = attribute(steps, edges_over(steps, 1), np.array([333.0]), MODEL)
    assert split.request_joules[0] == pytest.approx(333.0)
    assert split.prefill_joules[0] > 0 < split.decode_joules[0]


def test_no_steps_and_counters_below_idle_are_unattributed() -> None:
    steps = run(jobs([(1.0, 800, 100)]), MODEL, LIMITS)
    later = steps.end_ns[-1] + np.array([10, 1_000_000_000], dtype=np.int64)
    split = attribute(steps, later, np.array([42.0]), MODEL)
    assert split.unattributed_joules.tolist() == [42.0]
    assert np.isnan(split.scale[0])
    below = attribute(steps, edges_over(steps, 1), np.array([-5.0]), MODEL)
    assert below.unattributed_joules.tolist() == [-5.0]
    assert below.request_joules.sum() == 0.0


@pytest.mark.parametrize(
    ("edges", "joules", "said"),
    [([0, 10, 5], [1.0, 1.0], "increase"), ([0, 10], [1.0, 2.0], "one more"), ([0, 10], [np.nan], "finite")],
)
def test_bad_intervals_are_refused(edges: list[int], joules: list[float], said: str) -> None:
    steps = run(jobs([(1.0, 8, 2)]), MODEL, LIMITS)
    with pytest.raises(ValueError, match=said):
        attribute(steps, np.array(edges, dtype=np.int64), np.array(joules), MODEL)


@pytest.mark.parametrize("model", [MODEL, FULL_MODEL])
def test_entries_of_a_step_sum_to_the_models_step(model: StepModel) -> None:
    steps = run(random_jobs(11, 50, 30.0), model, LIMITS)
    work = StepWork.of(steps, model.padding)
    tails = work.tail_seconds(int(steps.end_ns[-1]) + 10**9)
    assert tails[-1] == pytest.approx(0.1)
    whole = model.step_joules(work.steps) + model.tail_watts * tails
    for groups in (None, np.arange(50, dtype=np.int32) % 3):
        for concurrency in (0.0, 1.0, 30.0):
            prefill, decode = entry_joules(work, model, groups=groups, concurrency=concurrency, tails=tails)
            assert (prefill >= 0.0).all()
            assert (decode >= 0.0).all()
            assert np.bincount(steps.step, weights=prefill + decode) == pytest.approx(whole)


def test_own_joules_is_the_least_an_entry_pays_beyond_the_busy_power() -> None:
    steps = run(random_jobs(11, 30, 30.0), MODEL, LIMITS)
    work = StepWork.of(steps)
    prefill, decode = entry_joules(work, MODEL, concurrency=5.0)
    own = sum(MODEL.work_joules(work.entries))
    stall = MODEL.fixed_joules / MODEL.fixed_seconds * sum(MODEL.work_seconds(work.entries))
    assert (prefill + decode >= own - stall - 1e-12).all()


@given(st.floats(0, 500))
def test_stall_share_lies_between_all_and_one_over_the_load(load: float) -> None:
    share = stall_share(load)
    assert 0.0 < share <= 1.0
    if load > 10:
        assert share == pytest.approx(1 / (load - 1), rel=0.01)


def test_stall_share_is_smooth_at_its_series() -> None:
    assert stall_share(0.999e-3) == pytest.approx(stall_share(1.001e-3), abs=1e-4)


def lane(
    seed: int, count: int, rate: float, prompts: tuple[int, int], outputs: tuple[int, int]
) -> list[tuple[float, int, int]]:
    generator = np.random.default_rng(seed)
    arrivals = 1.0 + np.cumsum(generator.exponential(1 / rate, count))
    return [
        (at, int(generator.integers(*prompts)), int(generator.integers(*outputs))) for at in arrivals.tolist()
    ]


@pytest.mark.parametrize("load", [0.3, 1.0, 2.0, 4.0])
def test_groups_meet_the_shapley_value_of_replayed_coalitions(load: float) -> None:
    """Three unlike tenants from light load to near saturation; the truth is an independent scheduler's."""
    lanes = {
        "code": lane(1, 40, 2.2 * load, (500, 5000), (5, 40)),
        "conv": lane(2, 40, 2.0 * load, (200, 3000), (50, 400)),
        "long": lane(3, 14, 0.7 * load, (30, 300), (300, 700)),
    }
    tagged = sorted((row, tag) for tag, rows in lanes.items() for row in rows)
    number = {tag: position for position, tag in enumerate(lanes)}
    groups = np.array([number[tag] for _, tag in tagged], dtype=np.int32)

    def cost_alone(mask: int) -> float:
        rows = [row for row, tag in tagged if mask >> number[tag] & 1]
        return float(MODEL.step_joules(step_work(run(jobs(rows), MODEL, LIMITS))).sum()) if rows else 0.0

    truth = shapley_values(cost_alone, 3)
    steps = run(jobs([row for row, _ in tagged]), MODEL, LIMITS)
    total = MODEL.step_joules(step_work(steps)).sum()
    edges = np.array([steps.launch_ns[0] - 1, steps.end_ns[-1]], dtype=np.int64)
    closed = attribute(steps, edges, np.array([total]), MODEL, groups=groups)
    factors = group_factors(steps, groups, MODEL)
    replayed = attribute(steps, edges, np.array([total]), MODEL, groups=groups, group_factors=factors)
    for split, within in ((closed, 0.08), (replayed, 0.03)):
        given_out = np.bincount(groups, weights=split.request_joules)
        assert given_out == pytest.approx(truth, rel=within)


def test_requests_as_players_meet_their_sampled_shapley_value_by_kind() -> None:
    rows = sorted(
        lane(1, 16, 2.2, (500, 5000), (5, 40))
        + lane(2, 14, 2.0, (200, 3000), (50, 300))
        + lane(3, 6, 0.7, (30, 300), (300, 600))
    )
    work = jobs(rows)
    known = {0: 0.0}

    def value(mask: int) -> float:
        if mask not in known:
            chosen = np.array([mask >> i & 1 for i in range(len(work))], dtype=bool)
            known[mask] = replay(work.only(chosen), MODEL, LIMITS).joules(MODEL)
        return known[mask]

    truth = sampled_shapley_values(value, len(work), pairs=60, seed=1)
    steps = run(work, MODEL, LIMITS)
    edges = np.array([steps.launch_ns[0] - 1, steps.end_ns[-1]], dtype=np.int64)
    total = MODEL.step_joules(step_work(steps)).sum()
    split = attribute(steps, edges, np.array([total]), MODEL)
    kind = np.array([0 if out <= 40 else 1 if out <= 300 else 2 for _, _, out in rows])
    assert np.bincount(kind, split.request_joules) == pytest.approx(np.bincount(kind, truth), rel=0.08)


def test_cost_is_under_a_millisecond_a_request() -> None:
    steps = run(random_jobs(6, 400, 10.0), MODEL, LIMITS)
    edges = edges_over(steps, 40)
    groups = np.arange(400, dtype=np.int32) % 3
    attribute(steps, edges, np.full(40, 300.0), MODEL, groups=groups)
    start = time.process_time()
    factors = group_factors(steps, groups, MODEL)
    attribute(steps, edges, np.full(40, 300.0), MODEL, groups=groups, group_factors=factors)
    assert time.process_time() - start < 0.4


def test_recorded_tenants_are_within_five_per_cent_of_what_they_measurably_cost() -> None:
    """The recorded H200: three tenants, all subsets; measured Shapley values 1,588, 4,809 and 3,322 J."""
    folder = shared_file("h200", "tenants")
    recording = read_lines(folder)
    offset = recording.unix_minus_monotonic_seconds
    marks = recording.meta["marks"]
    _, start = next(mark for mark in marks if mark[0] == "code+conv+long#0")
    end = start - offset + 28.0
    steps = recording.steps.between(round((start - offset) * 1e9), round(end * 1e9))
    (series,) = recording.devices.values()
    when, what = series.updates()
    total = float(np.diff(np.interp([start - offset, end], when * 1e-9, what))[0]) - 123.96 * 28.0
    tag_of = {row[1]: row[0].split("|")[1] for row in recording.meta["recs"] if "|" in row[0]}
    names = ("code", "conv", "long")
    groups = np.array(
        [names.index(tag_of.get(r.rsplit("-", 2)[0], "code")) for r in steps.request_ids], dtype=np.int32
    )
    model = StepModel(
        1.83, 14.3e-3, 14.8e-3, 24e-6, 0.0, 4.88e-3, 18.4e-6, 10e-6, 34e-9, 1.8e-9
    )  # the published step model of this recording
    factors = group_factors(steps, groups, model)
    edges = np.array([round((start - offset) * 1e9), round(end * 1e9)], dtype=np.int64)
    split = attribute(steps, edges, np.array([total]), model, groups=groups, group_factors=factors)
    given_out = np.bincount(groups, weights=split.request_joules)
    assert given_out == pytest.approx([1588, 4809, 3322], rel=0.05)


def test_jobs_of_a_record_are_the_jobs_that_made_it() -> None:
    work = random_jobs(8, 30, 6.0)
    found = jobs_of(run(work, MODEL, LIMITS))
    assert found.names == work.names
    assert np.array_equal(found.prefill_tokens, work.prefill_tokens)
    assert np.array_equal(found.decode_steps, work.decode_steps)
    assert np.abs(found.arrival_seconds - work.arrival_seconds).max() < 0.1
    assert group_joules(found, [0] * 30, MODEL)[0] == pytest.approx(
        replay(work, MODEL, LIMITS).joules(MODEL), rel=0.02
    )
