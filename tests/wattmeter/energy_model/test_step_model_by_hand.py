"""A step's work, joules and seconds with every number on paper."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, batch
from wattmeter.energy_model.step_model import (
    PRIOR_MODEL,
    VLLM_PADDING,
    Experts,
    Padding,
    StepModel,
    StepWork,
    WorkTerms,
    capped,
    entry_work,
    step_work,
    uncapped,
    work_of,
)

T0 = 100 * SECOND
# Powers of two, so that each sum says which terms are in it.
ODD = StepModel(
    fixed_joules=1.0,
    prefill_token_joules=2.0,
    decode_token_joules=4.0,
    context_token_joules=8.0,
    attention_pair_joules=16.0,
    fixed_seconds=1.0,
    prefill_token_seconds=2.0,
    decode_token_seconds=4.0,
    context_token_seconds=8.0,
    attention_pair_seconds=16.0,
    large_prompt_token_seconds=32.0,
    first_context_token_seconds=64.0,
    expert_joules=32.0,
    expert_seconds=128.0,
)


def terms(**given_terms: float) -> WorkTerms:
    return WorkTerms(**{name: np.array([given_terms.get(name, 0.0)]) for name in WorkTerms.__slots__})


def test_each_quantity_has_its_price_in_joules_and_seconds() -> None:
    joules = {
        "prefill_tokens": (2.0, 0.0),
        "prefill_padding": (2.0, 0.0),
        "attention_pairs": (16.0, 0.0),
        "decode_tokens": (0.0, 4.0),
        "decode_padding": (0.0, 4.0),
        "decode_context_tokens": (0.0, 8.0),
    }
    seconds = {
        "prefill_tokens": (2.0, 0.0),
        "attention_pairs": (16.0, 0.0),
        "large_prompt_tokens": (32.0, 0.0),
        "decode_tokens": (0.0, 4.0),
        "decode_context_tokens": (0.0, 8.0),
        "first_context_tokens": (0.0, 64.0),
    }
    for name in WorkTerms.__slots__:
        work = terms(**{name: 3.0})
        prefill, decode = ODD.work_joules(work)
        expected = joules.get(name, (0.0, 0.0))
        assert (prefill[0], decode[0]) == (3 * expected[0], 3 * expected[1])
        assert ODD.step_joules(work)[0] == 1.0 + 3 * sum(expected)
        prefill, decode = ODD.work_seconds(work)
        expected = seconds.get(name, (0.0, 0.0))
        assert (prefill[0], decode[0]) == (3 * expected[0], 3 * expected[1])
        assert ODD.step_seconds(work)[0] == 1.0 + 3 * sum(expected)


def test_experts_are_paid_by_the_tokens_that_need_them() -> None:
    mixture = replace(ODD, experts=Experts(8, 2))
    work = terms(prefill_tokens=1.0, decode_tokens=3.0, experts=5.0, expert_padding=3.0)
    prefill, decode = mixture.work_joules(work)
    assert (prefill[0], decode[0]) == (2.0 + 8 * 32 / 4, 12.0 + 8 * 32 * 3 / 4)
    prefill, decode = mixture.work_seconds(work)
    assert (prefill[0], decode[0]) == (2.0 + 8 * 128 / 4, 12.0 + 8 * 128 * 3 / 4)
    nobody = terms(experts=5.0)
    assert mixture.work_joules(nobody)[1][0] == 5 * 32.0
    assert mixture.energy_terms == (*ODD.energy_terms, "expert_joules")
    assert len(ODD.energy_terms) == 6


# Two steps: prompts of 100 and 28 beside a token with 5,000 of context; two tokens with 9,000 and 3,000.
WORK = batch(
    [
        (T0, T0 + 50 * MS, [("a", 100, 0, 40), ("b", 28, 0, 0), ("c", 0, 1, 5000)]),
        (T0, T0 + 90 * MS, [("a", 0, 1, 9000), ("b", 0, 1, 3000)]),
    ]
)


def test_the_work_of_entries_is_theirs() -> None:
    work = entry_work(WORK)
    assert len(work) == 5
    assert work.prefill_tokens.tolist() == [100, 28, 0, 0, 0]
    assert work.decode_tokens.tolist() == [0, 0, 1, 1, 1]
    assert work.decode_context_tokens.tolist() == [0, 0, 5000, 9000, 3000]
    assert work.attention_pairs.tolist() == [100 * 90, 28 * 14, 0, 0, 0]
    assert work.large_prompt_tokens.tolist() == pytest.approx([50.0, 14.0, 0, 0, 0])
    assert work.first_context_tokens.tolist() == pytest.approx([0, 0, 5000, 7500, 2500])
    for nothing in (work.prefill_padding, work.decode_padding, work.experts, work.expert_padding):
        assert nothing.tolist() == [0] * 5


def test_the_work_of_steps_is_that_of_their_entries_and_of_padding() -> None:
    for given_work in (None, entry_work(WORK)):
        work = step_work(WORK, Padding((1, 2, 4, 8), 64), given_work)
        assert work.prefill_tokens.tolist() == [128, 0]
        assert work.decode_tokens.tolist() == [1, 2]
        assert work.decode_context_tokens.tolist() == [5000, 12_000]
        assert work.attention_pairs.tolist() == [9392, 0]
        assert work.large_prompt_tokens.tolist() == [64, 0]
        assert work.first_context_tokens.tolist() == [5000, 10_000]
        assert work.prefill_padding.tolist() == [63, 0]
        assert work.decode_padding.tolist() == [0, 0]
    three = step_work(batch([(T0, T0 + MS, [(name, 0, 1, 1) for name in "abc"])]), Padding((4,)))
    assert (three.prefill_padding.tolist(), three.decode_padding.tolist()) == ([0], [1])


def test_padding_of_a_mixture_needs_experts_too() -> None:
    experts = Experts(8, 2)
    one = np.array([3.0])
    work = work_of(np.zeros(1), one, one, np.zeros(1), Padding((8,)), experts=experts)
    assert work.experts.tolist() == pytest.approx([8 * (1 - 0.75**3)])
    assert work.expert_padding.tolist() == pytest.approx([8 * (1 - 0.75**8) - 8 * (1 - 0.75**3)])
    mixed = work_of(one, one, one, np.zeros(1), Padding((8,)), experts=experts)
    assert mixed.experts.tolist() == pytest.approx([8 * (1 - 0.75**6)])
    assert mixed.expert_padding.tolist() == pytest.approx([8 * (0.75**6 - 0.75**8)])


def test_the_work_of_a_batch_is_derived_once() -> None:
    work = StepWork.of(WORK, Padding((8,)), T0 + 10 * MS, experts=Experts(8, 2))
    assert work.starts_ns.tolist() == [T0 + 10 * MS, T0 + 50 * MS]
    assert work.equal_share.tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)
    assert (work.padding, work.experts, work.previous_end_ns) == (Padding((8,)), Experts(8, 2), T0 + 10 * MS)
    assert work.steps.decode_padding.tolist() == [0, 6]
    assert work.entries.experts[:3].sum() == pytest.approx(8 * (1 - 0.75**129))
    assert work.entries.experts[3:].tolist() == pytest.approx([8 * (1 - 0.75**2) / 2] * 2)
    assert work.tail_seconds(T0 + 120 * MS).tolist() == pytest.approx([0.0, 0.03])
    model = replace(ODD, padding=Padding((8,)), experts=Experts(8, 2))
    again = model.work(WORK, T0 + 10 * MS)
    assert (again.padding, again.experts, again.previous_end_ns) == (work.padding, work.experts, T0 + 10 * MS)


@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_the_number_of_experts_is_what_random_tokens_meet(total: int, active: int, tokens: list[int]) -> None:
    experts = Experts(total, min(active, total))
    active = experts.active
    for count in tokens:
        exact = total * (1 - (1 - active / total) ** count)
        assert experts.distinct_one(count) == pytest.approx(exact, rel=1e-9)
    assert experts.distinct(np.array(tokens, dtype=np.float64)).tolist() == pytest.approx(
        [experts.distinct_one(count) for count in tokens]
    )
    shares = experts.shares(np.zeros(len(tokens), dtype=np.int32), np.array(tokens, dtype=np.float64), 1)
    assert shares.sum() == pytest.approx(experts.distinct_one(sum(tokens)))
    ordered = [share for _, share in sorted(zip(tokens, shares.tolist(), strict=True))]
    assert all(a <= b + 1e-12 for a, b in pairwise(ordered))


def test_a_model_knows_its_experts_by_its_shape() -> None:
    assert Experts.of_shape({"experts": 64, "experts_per_token": 8}) == Experts(64, 8)
    for shape in ({}, {"experts": 64}, {"experts_per_token": 8}, {"experts": "64", "experts_per_token": 8}):
        assert Experts.of_shape(shape) is None
    for total, active in ((8, 8), (8, 0), (0, 0), (8, -1)):
        assert Experts.of_shape({"experts": total, "experts_per_token": active}) is None
    assert Experts.of_shape({"experts": 2, "experts_per_token": 1}) == Experts(2, 1)
    assert Experts(1, 1).distinct_one(5) == pytest.approx(1.0)


@pytest.mark.parametrize("padding", [Padding(), Padding((3, 10)), Padding((3, 10), 4), Padding((), 4)])
def test_padding_is_to_the_next_size_and_then_to_whole_tiles(padding: Padding) -> None:
    for tokens in range(30):
        expected = next((size for size in (0, *padding.graph_sizes) if tokens <= size), None)
        if expected is None or not padding.graph_sizes:
            expected = math.ceil(tokens / padding.tile_tokens) * padding.tile_tokens
        assert padding.padded(np.array([float(tokens)])).tolist() == [expected]
        assert padding.padded_one(float(tokens)) == expected


@pytest.mark.parametrize("wrong", [((0,), 1), ((2, 2), 1), ((4, 2), 1), ((-1,), 1), ((1,), 0)])
def test_padding_that_cannot_be(wrong: tuple[tuple[int, ...], int]) -> None:
    with pytest.raises(ValueError, match="padding"):
        Padding(*wrong)
    assert Padding((1, 2), 1).graph_sizes == (1, 2)


def test_vllms_sizes_and_the_prior_are_what_was_found() -> None:
    assert VLLM_PADDING.graph_sizes[:6] == (1, 2, 4, 8, 16, 24)
    assert VLLM_PADDING.graph_sizes[-19:-15] == (240, 248, 256, 272)
    assert VLLM_PADDING.graph_sizes[-1] == 512
    assert len(VLLM_PADDING.graph_sizes) == 51
    assert VLLM_PADDING.tile_tokens == 64
    assert PRIOR_MODEL.fixed_joules / PRIOR_MODEL.fixed_seconds == pytest.approx(377.6, abs=0.1)
    assert (PRIOR_MODEL.trusted, PRIOR_MODEL.residual_fraction, PRIOR_MODEL.covariance) == (False, None, None)


# --- the ceiling --------------------------------------------------------------------------------------------


def test_a_ceiling_bends_the_joules_smoothly() -> None:
    asked, limit = np.array([0.0, 10.0, 90.0, 100.0, 200.0, 1e12, 5.0, 5.0]), np.full(8, 100.0)
    limit[-2:] = 0.0, -1.0
    left = capped(asked, limit).tolist()
    exact = [x / (1 + (x / 100.0) ** 24) ** (1 / 24) for x in (10.0, 90.0, 100.0, 200.0)]
    assert left[:5] == pytest.approx([0.0, *exact])
    assert left[3] == pytest.approx(100.0 / 2 ** (1 / 24))
    assert left[5] == pytest.approx(1e12 / (1 + 1e6**24) ** (1 / 24))
    assert left[6:] == [5.0, 5.0]
    back = uncapped(np.array([0.0, *exact]), limit[:5]).tolist()
    assert back == pytest.approx([0.0, 10.0, 90.0, 100.0, 200.0], rel=1e-6)
    assert uncapped(np.array([100.0, 130.0, 7.0]), np.array([100.0, 100.0, 0.0])).tolist() == [
        math.inf,
        math.inf,
        7.0,
    ]


def test_a_ceiling_takes_effect_with_seconds_alone() -> None:
    limited, work = replace(ODD, power_cap_watts=10.0), terms(decode_tokens=3.0)
    assert limited.step_joules(work)[0] == 13.0
    assert limited.step_joules(work, np.array([1.0]))[0] == pytest.approx(13.0 / (1 + 1.3**24) ** (1 / 24))
    assert ODD.step_joules(work, np.array([1.0]))[0] == 13.0


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_has_each_field_under_its_name() -> None:
    full = replace(
        ODD,
        experts=Experts(8, 2),
        padding=Padding((1, 2), 64),
        covariance=((1.0, 0.5), (0.5, 2.0)),
        power_cap_watts=500.0,
        trusted=True,
        residual_fraction=0.01,
        fitted_on="here",
    )
    content = json.loads(full.to_json())
    assert content["schema"] == "wattmeter.stepmodel/2"
    assert content["experts"] == {"total": 8, "active": 2}
    assert content["padding"] == {"graph_sizes": [1, 2], "tile_tokens": 64}
    assert (content["expert_joules"], content["expert_seconds"]) == (32.0, 128.0)
    assert StepModel.from_json(full.to_json()) == StepModel.from_json(full.as_json()) == full
    dense = ODD.as_json()
    assert not {"experts", "expert_joules", "expert_seconds"} & set(dense)
    assert dense["fixed_joules"] == 1.0
    old = {"schema": "wattmeter.stepmodel/1", "fixed_joules": 1, "prefill_token_joules": 1}
    old |= {"decode_token_joules": 1, "context_token_joules": 1}
    assert StepModel.from_json(json.dumps(old)).tail_watts == 0.0
    given_padding = StepModel.from_json({**old, "padding": {}})
    assert given_padding.padding == Padding((), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": None}, "not a wattmeter.stepmodel/2"),
        ({"schema": "wattmeter.stepmodel/3"}, "not a wattmeter.stepmodel/2"),
        ({"zebra": 1, "ant": 1}, "unknown field 'ant'"),
        ({"padding": {"graph_sizes": [2, 1]}}, "step model: padding: "),
        ({"padding": {"graph_sizes": ["x"]}}, "step model: padding: "),
        ({"padding": {"tile_tokens": None}}, "step model: padding: "),
        ({"experts": {"total": 8}}, "step model: experts: 'active'"),
        ({"experts": {"total": 8, "active": 9}}, "step model: experts: "),
        ({"experts": {"total": "x", "active": 1}}, "step model: experts: "),
        ({"tail_watts": -1.0}, "tail_watts"),
        ({"expert_seconds": math.nan}, "expert_seconds"),
        ({"large_prompt_token_seconds": math.inf}, "large_prompt_token_seconds"),
        ({"expert_joules": -0.1}, "expert_joules"),
    ],
)
def test_what_is_no_model_is_said(change: dict[str, Any], said: str) -> None:
    content = {**ODD.as_json(), **change}
    with pytest.raises(ValueError, match=said):
        StepModel.from_json(content)


def test_a_missing_field_and_a_list_are_said() -> None:
    content = ODD.as_json()
    del content["fixed_joules"]
    with pytest.raises(ValueError, match="fixed_joules"):
        StepModel.from_json(content)
    with pytest.raises(ValueError, match="not a wattmeter"):
        StepModel.from_json("[1]")
    assert replace(ODD, fixed_joules=0.0).fixed_joules == 0.0


def test_a_single_prompt_token_pays_its_own_experts() -> None:
    prefill, decode = replace(ODD, experts=Experts(8, 2)).work_joules(terms(prefill_tokens=1.0, experts=2.0))
    assert (prefill[0], decode[0]) == (2.0 + 2 * 32.0, 0.0)
