"""What a request is charged, figured out by hand from the docstrings: plain numbers, entry after entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, batch
from step_records import FULL_MODEL
from wattmeter.attribution.split import attribute, stall_share
from wattmeter.energy_model.step_model import Experts, Padding, StepModel

BEGIN = 50 * SECOND
Entry = tuple[str, int, int, int]


@dataclass
class Step:
    """A step as recorded, and what is figured out of it."""

    launch_ns: int
    end_ns: int
    entries: list[Entry]
    start_ns: int = 0
    tail: float = 0.0
    inside: list[float] = field(default_factory=list)


def place(steps: list[Step], edges: Sequence[int], previous_end_ns: int | None) -> None:
    """When each step ran, how long its tail is, and which part of it lies in each interval."""
    before = previous_end_ns
    for step in steps:
        step.start_ns = min(max(step.launch_ns, step.launch_ns if before is None else before), step.end_ns)
        before = step.end_ns
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        limit = max(edges[-1], step.end_ns) if last else steps[number + 1].start_ns
        step.tail = max(min(step.end_ns + 100 * MS, limit) - step.end_ns, 0) * 1e-9
        length = step.end_ns - step.start_ns
        step.inside = [
            max(min(step.end_ns, high) - max(step.start_ns, low), 0) / length for low, high in pairwise(edges)
        ]


def padded(tokens: int, padding: Padding) -> int:
    for size in padding.graph_sizes:
        if tokens <= size:
            return size
    return -(-tokens // padding.tile_tokens) * padding.tile_tokens


def charged(
    steps: list[Step],
    edges: Sequence[int],
    joules: Sequence[float],
    model: StepModel,
    previous_end_ns: int | None,
    groups: dict[str, int] | None,
    factors: Sequence[float] | None,
) -> tuple[dict[str, list[float]], list[float], list[float]]:
    """(prefill, decode and variance by request, unattributed joules, scale) of the intervals."""
    place(steps, edges, previous_end_ns)
    seconds = (edges[-1] - edges[0]) * 1e-9
    alone = sum(sum(step.inside) * len(step.entries) * model.fixed_seconds for step in steps)
    k = stall_share(alone / seconds)
    rows, wholes = [], []
    for step in steps:
        prompt = sum(p for _, p, _, _ in step.entries)
        context = sum(c for _, _, d, c in step.entries if d)
        tokens = prompt + sum(d for _, _, d, _ in step.entries)
        extra = padded(tokens, model.padding) - tokens
        shared = model.fixed_joules + model.tail_watts * step.tail
        shared += extra * (model.prefill_token_joules if prompt else model.decode_token_joules)
        own, whole = [], shared
        for name, p, d, c in step.entries:
            pairs, read = p * (c + p / 2), c if d else 0
            work = (
                model.prefill_token_joules * p + model.attention_pair_joules * pairs,
                model.decode_token_joules * d + model.context_token_joules * read,
            )
            longer = (
                model.prefill_token_seconds * p
                + model.attention_pair_seconds * pairs
                + model.large_prompt_token_seconds * (p / prompt * max(prompt - 64, 0) if p else 0),
                model.decode_token_seconds * d
                + model.context_token_seconds * read
                + model.first_context_token_seconds * (read / context * min(context, 10_000) if read else 0),
            )
            watts = model.fixed_joules / model.fixed_seconds if model.fixed_seconds else 0.0
            stall = tuple(min(watts * time, cost) for time, cost in zip(longer, work, strict=True))
            shared += (1 - k) * sum(stall)
            whole += sum(work)
            own.append((name, p, d, read, pairs, work, stall))
        present = {groups[name] for name, *_ in own} if groups else set()
        wholes.append(whole)
        for name, p, d, read, pairs, work, stall in own:
            part = 1 / len(own)
            if groups:
                mine = sum(groups[other] == groups[name] for other, *_ in own)
                part = 1 / len(present) / mine
            factor = factors[groups[name]] if groups and factors else 1.0
            both = [
                (work[0] - (1 - k) * stall[0] + shared * part * p / (p + d)) * factor,
                (work[1] - (1 - k) * stall[1] + shared * part * d / (p + d)) * factor,
            ]
            features = [1 / len(own), p, d, read, pairs, step.tail / len(own)]
            rows.append((len(wholes) - 1, name, both, features))
    totals = [sum(sum(both) for number, _, both, _ in rows if number == i) for i in range(len(steps))]
    scale, unattributed = [], []
    for column, measured in enumerate(joules):
        predicted = sum(
            whole * step.inside[column]
            for step, whole, total in zip(steps, wholes, totals, strict=True)
            if total > 0
        )
        usable = predicted > 0 and measured > 0
        scale.append(measured / predicted if usable else math.nan)
        unattributed.append(0.0 if usable else measured)
    by_request: dict[str, list[float]] = {}
    features_of: dict[str, list[float]] = {}
    for number, name, both, features in rows:
        weight = sum(
            part * one for part, one in zip(steps[number].inside, scale, strict=True) if not math.isnan(one)
        )
        factor = weight * (wholes[number] / totals[number] if totals[number] > 0 else 0.0)
        sums = by_request.setdefault(name, [0.0, 0.0])
        sums[0] += both[0] * factor
        sums[1] += both[1] * factor
        mine_of = features_of.setdefault(name, [0.0] * 6)
        for at, value in enumerate(features):
            mine_of[at] += value * factor
    residual = 0.3 if model.residual_fraction is None else model.residual_fraction
    for name, sums in by_request.items():
        variance = (residual * (sums[0] + sums[1])) ** 2
        if model.covariance is not None:
            x = features_of[name]
            variance += sum(x[i] * model.covariance[i][j] * x[j] for i in range(6) for j in range(6))
        sums.append(variance)
    return by_request, unattributed, scale


@st.composite
def some_steps(draw: st.DrawFn) -> list[Step]:
    found, now = list[Step](), BEGIN
    for _ in range(draw(st.integers(1, 8))):
        names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
        entries = []
        for name in names:
            kind = draw(st.sampled_from(["prompt", "decode", "decode", "both"]))
            prompt = draw(st.sampled_from([1, 5, 63, 64, 65, 300, 4000])) if kind != "decode" else 0
            context = draw(st.sampled_from([0, 1, 900, 9_999, 30_000]))
            entries.append((name, prompt, int(kind != "prompt"), context))
        launch = now + draw(st.sampled_from([-20, 0, 0, 30, 100, 250])) * MS
        now = max(launch, now) + draw(st.integers(1, 400)) * MS
        found.append(Step(launch, now, entries))
    return found


amount = st.sampled_from([0.0, 0.3, 1.0, 4.0])


@st.composite
def models(draw: st.DrawFn) -> StepModel:
    """The full model with each of its terms missing, as it is, or much larger or smaller."""
    names = [name for name in FULL_MODEL.__slots__ if name.endswith(("_joules", "_seconds", "_watts"))]
    terms: dict[str, Any] = {
        name: getattr(FULL_MODEL, name) * draw(amount)
        for name in names
        if name not in {"expert_joules", "expert_seconds", "power_cap_watts"}
    }
    root = np.array(
        draw(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=2, max_size=2))
    )
    scale = np.diag([0.1, 1e-3, 1e-3, 1e-6, 1e-7, 3.0])
    covariance = (scale @ root.T @ root @ scale).tolist()
    sizes = draw(st.sampled_from([(), (1, 2, 4, 8), (4, 300)]))
    return replace(
        FULL_MODEL,
        **terms,
        padding=Padding(sizes, draw(st.sampled_from([1, 64]))),
        covariance=draw(st.sampled_from([None, tuple(tuple(row) for row in covariance)])),
        residual_fraction=draw(st.sampled_from([None, 0.0, 0.05])),
    )


@settings(max_examples=100, deadline=None)
@given(some_steps(), models(), st.data())
def test_what_is_charged_is_what_comes_out_by_hand(
    steps: list[Step], model: StepModel, data: st.DataObject
) -> None:
    assume(model.fixed_joules > 0)
    first, last = steps[0].launch_ns, steps[-1].end_ns
    inner = data.draw(st.sets(st.integers(first + 1, last - 1), max_size=3))
    off = data.draw(st.sampled_from([(-50, 50), (1, 0), (-1, 300), (-1, -1)]))
    edges = sorted({*inner, first + off[0] * MS, last + off[1] * MS})
    assume(len(edges) >= 2)
    joules = data.draw(st.lists(st.sampled_from([-3.0, 0.0, 0.5, 120.0]), min_size=3, max_size=6))
    joules = (joules * 2)[: len(edges) - 1]
    previous = data.draw(st.sampled_from([None, first - MS, first + MS // 2]))
    groups = data.draw(st.sampled_from([None, {"a": 0, "b": 1, "c": 1, "d": 2}, dict.fromkeys("abcd", 0)]))
    factors = data.draw(st.sampled_from([None, [0.5, 1.0, 1.7]]))
    found = batch([(step.launch_ns, step.end_ns, step.entries) for step in steps])
    numbers = (
        None if groups is None else np.array([groups[name] for name in found.request_ids], dtype=np.int32)
    )
    split = attribute(
        found,
        np.array(edges, dtype=np.int64),
        np.array(joules),
        model,
        groups=numbers,
        group_factors=None if factors is None else np.array(factors),
        previous_end_ns=previous,
    )
    expected, unattributed, scale = charged(steps, edges, joules, model, previous, groups, factors)
    got = zip(
        split.request_ids,
        split.prefill_joules.tolist(),
        split.decode_joules.tolist(),
        split.uncertainty_joules.tolist(),
        strict=True,
    )
    for name, prefill, decode, uncertainty in got:
        assert prefill == pytest.approx(expected[name][0], rel=1e-7, abs=1e-9)
        assert decode == pytest.approx(expected[name][1], rel=1e-7, abs=1e-9)
        assert uncertainty == pytest.approx(max(expected[name][2], 0.0) ** 0.5, rel=1e-5, abs=1e-6)
    assert split.unattributed_joules.tolist() == unattributed
    assert split.scale.tolist() == pytest.approx(scale, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("load", [1e-9, 1e-5, 5e-4, 9.99e-4, 1e-3, 1.1e-3, 0.02, 0.5, 1.0, 3.0, 20.0, 500.0])
def test_the_share_of_a_stall_is_its_formula(load: float) -> None:
    with localcontext() as context:
        context.prec = 60
        a = Decimal(load)
        left = (-a).exp()
        exact = float((1 - left * (1 + a)) / (a - 1 + left))
    assert stall_share(load) == pytest.approx(exact, rel=2e-7)


def test_whoever_is_alone_is_charged_its_whole_stall() -> None:
    assert stall_share(0.0) == stall_share(-1.0) == 1.0


def test_a_step_without_length_gives_its_interval_to_its_requests() -> None:
    """Launched and ended while the step before ran, by two clocks: its work was done all the same."""
    found = batch([(BEGIN, BEGIN + 100 * MS, [("a", 0, 1, 5)]), (BEGIN, BEGIN + 100 * MS, [("b", 0, 1, 5)])])
    edges = np.array([BEGIN, BEGIN + SECOND], dtype=np.int64)
    split = attribute(found, edges, np.array([10.0]), replace(FULL_MODEL, tail_watts=0.0))
    assert split.request_joules.tolist() == pytest.approx([5.0, 5.0])


def test_a_model_without_times_charges_no_stall_however_full_the_device_is() -> None:
    timeless = StepModel(10.0, 0.1, 1.0, 0.0)
    found = batch([(BEGIN, BEGIN + 100 * MS, [("a", 50, 0, 0), ("b", 0, 1, 5)])])
    edges = np.array([BEGIN, BEGIN + SECOND], dtype=np.int64)
    split = attribute(found, edges, np.array([16.0]), timeless, concurrency=5.0)
    assert split.request_joules.tolist() == pytest.approx([10.0, 6.0])
    with pytest.raises(ValueError, match="edges must increase"):
        attribute(found, np.array([[0, 1], [2, 3]]), np.array([16.0]), timeless)


def test_a_model_for_which_the_steps_cost_nothing_leaves_the_joules_to_nobody() -> None:
    nothing = StepModel(0.0, 0.0, 0.0, 0.0)
    found = batch([(BEGIN, BEGIN + 100 * MS, [("a", 5, 0, 0)])])
    edges = np.array([BEGIN, BEGIN + SECOND], dtype=np.int64)
    split = attribute(found, edges, np.array([10.0]), nothing)
    assert (split.request_joules.tolist(), split.unattributed_joules.tolist()) == ([0.0], [10.0])


def test_work_of_other_experts_or_another_padding_is_refused() -> None:
    found = batch([(BEGIN, BEGIN + 100 * MS, [("a", 5, 0, 0)])])
    edges, joules = np.array([BEGIN, BEGIN + SECOND], dtype=np.int64), np.array([10.0])
    for other in (replace(FULL_MODEL, experts=Experts(8, 2)), replace(FULL_MODEL, padding=Padding((4,)))):
        with pytest.raises(ValueError, match="other experts"):
            attribute(other.work(found), edges, joules, FULL_MODEL)


def test_an_entry_without_tokens_shares_the_step_as_a_decoding_one() -> None:
    found = batch([(BEGIN, BEGIN + 100 * MS, [("a", 50, 0, 0), ("b", 0, 0, 5)])])
    edges = np.array([BEGIN, BEGIN + SECOND], dtype=np.int64)
    split = attribute(found, edges, np.array([15.0]), StepModel(10.0, 0.1, 1.0, 0.0))
    assert split.prefill_joules.tolist() == pytest.approx([10.0, 0.0])
    assert split.decode_joules.tolist() == pytest.approx([0.0, 5.0])
