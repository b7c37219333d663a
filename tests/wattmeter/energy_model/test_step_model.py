"""The step model: what it charges, and that a file gives back what was put in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from step_records import MODEL, jobs, run
from wattmeter.energy_model.batching import EngineLimits
from wattmeter.energy_model.step_model import (
    NO_PADDING,
    VLLM_PADDING,
    Padding,
    StepModel,
    WorkTerms,
    capped,
    entry_work,
    step_work,
    uncapped,
    work_of,
)


def work(
    prefill: float = 0.0,
    decode: float = 0.0,
    context: float = 0.0,
    pairs: float = 0.0,
    padding: Padding = NO_PADDING,
) -> WorkTerms:
    columns = [np.array([float(value)]) for value in (prefill, decode, context, pairs)]
    return work_of(columns[0], columns[1], columns[2], columns[3], padding)


def test_each_term_is_charged_once() -> None:
    base = MODEL.step_joules(work())[0]
    assert base == MODEL.fixed_joules
    assert MODEL.step_joules(work(prefill=10))[0] - base == pytest.approx(10 * MODEL.prefill_token_joules)
    assert MODEL.step_joules(work(decode=3))[0] - base == pytest.approx(3 * MODEL.decode_token_joules)
    assert MODEL.step_joules(work(context=900))[0] - base == pytest.approx(900 * MODEL.context_token_joules)
    assert MODEL.step_joules(work(pairs=50))[0] - base == pytest.approx(50 * MODEL.attention_pair_joules)
    assert MODEL.step_seconds(work(prefill=10))[0] == pytest.approx(
        MODEL.fixed_seconds + 10 * MODEL.prefill_token_seconds
    )


def test_the_ceiling_bounds_measured_lengths_only() -> None:
    limited = replace(MODEL, power_cap_watts=500.0)
    much = work(prefill=8000)
    seconds = np.array([0.1])
    assert limited.step_joules(much)[0] == MODEL.step_joules(much)[0] > 60.0
    assert limited.step_joules(much, seconds)[0] == pytest.approx(50.0, rel=0.001)


def test_a_ceiling_bites_a_little_before_it_is_reached_and_can_be_undone() -> None:
    limit = np.full(5, 500.0)
    asked = np.array([0.0, 250.0, 450.0, 500.0, 600.0])
    left = capped(asked, limit)
    assert left[0] == 0.0
    assert left[1] == pytest.approx(250.0, rel=1e-6)
    assert left[2] == pytest.approx(450.0 * (1 - 0.0032), rel=5e-4)
    assert left[3] == pytest.approx(500.0 * 2 ** (-1 / 24))
    assert 490.0 < left[4] < 500.0
    assert uncapped(left, limit) == pytest.approx(asked)
    assert capped(asked, np.zeros(5)) == pytest.approx(asked)


def test_padding_costs_energy_and_no_time() -> None:
    padded = work(decode=9, padding=VLLM_PADDING)
    assert padded.decode_padding[0] == 7.0
    assert padded.prefill_padding[0] == 0.0
    extra = MODEL.step_joules(padded) - MODEL.step_joules(work(decode=9))
    assert extra[0] == pytest.approx(7 * MODEL.decode_token_joules)
    assert MODEL.step_seconds(padded) == MODEL.step_seconds(work(decode=9))
    prompt = work(prefill=512, decode=7, padding=VLLM_PADDING)  # beyond the graphs: tiles of 64
    assert prompt.prefill_padding[0] == 576 - 519
    assert prompt.decode_padding[0] == 0.0


@pytest.mark.parametrize(
    ("tokens", "computed"), [(0, 0), (1, 1), (3, 4), (8, 8), (9, 16), (500, 512), (512, 512), (513, 576)]
)
def test_a_step_computes_the_next_graph_or_tile(tokens: int, computed: int) -> None:
    assert VLLM_PADDING.padded(np.array([float(tokens)]))[0] == computed
    assert VLLM_PADDING.padded_one(tokens) == computed
    assert Padding().padded_one(tokens) == tokens


@pytest.mark.parametrize("wrong", [{"graph_sizes": (2, 1)}, {"graph_sizes": (0, 1)}, {"tile_tokens": 0}])
def test_padding_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="padding"):
        Padding(**wrong)


def test_time_bends_at_the_knees() -> None:
    model = replace(MODEL, large_prompt_token_seconds=1e-5, first_context_token_seconds=1e-8)
    longer = model.step_seconds(work(prefill=164)) - MODEL.step_seconds(work(prefill=164))
    assert longer[0] == pytest.approx(100 * 1e-5)
    longer = model.step_seconds(work(decode=9, context=30_000)) - MODEL.step_seconds(
        work(decode=9, context=30_000)
    )
    assert longer[0] == pytest.approx(10_000 * 1e-8)


def test_work_of_a_record() -> None:
    steps = run(jobs([(1.0, 1000, 3)]), MODEL, EngineLimits(max_step_tokens=600))
    entries = entry_work(steps)
    assert entries.prefill_tokens.tolist() == [600, 400, 0, 0]
    assert entries.attention_pairs.tolist() == [600 * 300, 400 * (600 + 200), 0, 0]
    assert entries.decode_context_tokens.tolist() == [0, 0, 1000, 1001]
    assert len(step_work(steps)) == 4
    assert entries.large_prompt_tokens == pytest.approx([536, 336, 0, 0])
    assert entries.first_context_tokens == pytest.approx([0, 0, 1000, 1001])


def test_json_round_trip() -> None:
    model = replace(MODEL, covariance=((1.0, 0.0), (0.0, 2.0)), power_cap_watts=566.0, fitted_on="here")
    model = replace(model, padding=VLLM_PADDING, tail_watts=20.0)
    assert StepModel.from_json(model.to_json()) == model
    assert StepModel.from_json(model.as_json()) == model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not a wattmeter.stepmodel/2"),
        ('{"schema": "wattmeter.stepmodel/1", "fixed_jules": 1}', "unknown field 'fixed_jules'"),
        ('{"schema": "wattmeter.stepmodel/1", "fixed_joules": 1}', "missing"),
        ('{"schema": "wattmeter.stepmodel/2", "padding": {"graph_sizes": [2, 1]}}', "padding"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StepModel.from_json(text)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_terms_are_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="prefill_token_joules"):
        replace(MODEL, prefill_token_joules=value)
