"""The step model: what it charges, and that a file gives back what was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from step_records import MODEL, jobs, run
from wattmeter.replay import EngineLimits
from wattmeter.stepmodel import StepEnergyModel, Work, entry_work, step_work


def work(prefill=0.0, decode=0.0, context=0.0, pairs=0.0):
    return Work(*(np.array([value]) for value in (prefill, decode, context, pairs)))


def test_each_term_is_charged_once():
    base = MODEL.step_joules(work())[0]
    assert base == MODEL.fixed_joules
    assert MODEL.step_joules(work(prefill=10))[0] - base == pytest.approx(10 * MODEL.prefill_token_joules)
    assert MODEL.step_joules(work(decode=3))[0] - base == pytest.approx(3 * MODEL.decode_token_joules)
    assert MODEL.step_joules(work(context=900))[0] - base == pytest.approx(900 * MODEL.context_token_joules)
    assert MODEL.step_joules(work(pairs=50))[0] - base == pytest.approx(50 * MODEL.attention_pair_joules)
    assert MODEL.step_seconds(work(prefill=10))[0] == pytest.approx(
        MODEL.fixed_seconds + 10 * MODEL.prefill_token_seconds
    )


def test_the_ceiling_bounds_measured_lengths_only():
    capped = replace(MODEL, power_cap_watts=500.0)
    much = work(prefill=8000)
    seconds = np.array([0.1])
    assert capped.step_joules(much)[0] == MODEL.step_joules(much)[0] > 50.0
    assert capped.step_joules(much, seconds)[0] == 50.0


def test_work_of_a_record():
    steps = run(jobs([(1.0, 1000, 3)]), MODEL, EngineLimits(max_step_tokens=600))
    entries = entry_work(steps)
    assert entries.prefill_tokens.tolist() == [600, 400, 0, 0]
    assert entries.attention_pairs.tolist() == [600 * 300, 400 * (600 + 200), 0, 0]
    assert entries.decode_context_tokens.tolist() == [0, 0, 1000, 1001]
    assert len(step_work(steps)) == 4


def test_json_round_trip():
    model = replace(MODEL, covariance=((1.0, 0.0), (0.0, 2.0)), power_cap_watts=566.0, fitted_on="here")
    assert StepEnergyModel.from_json(model.to_json()) == model
    assert StepEnergyModel.from_json(model.as_json()) == model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not a wattmeter.stepmodel/1"),
        ('{"schema": "wattmeter.stepmodel/1", "fixed_jules": 1}', "unknown field 'fixed_jules'"),
        ('{"schema": "wattmeter.stepmodel/1", "fixed_joules": 1}', "missing"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        StepEnergyModel.from_json(text)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_terms_are_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="prefill_token_joules"):
        replace(MODEL, prefill_token_joules=value)
