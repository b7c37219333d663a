"""Batching in stretches of steps against the same engine run step by step, at a power limit and below."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from wattmeter.arrays import F64
from wattmeter.energy_model.batching import EngineLimits, Jobs, replay
from wattmeter.energy_model.step_model import Experts, Padding, StepModel

MODEL = StepModel(
    fixed_joules=1.84,
    prefill_token_joules=0.0143,
    decode_token_joules=0.0148,
    context_token_joules=25e-6,
    attention_pair_joules=0.5e-6,
    fixed_seconds=5.03e-3,
    prefill_token_seconds=8.5e-6,
    decode_token_seconds=5e-6,
    context_token_seconds=4.2e-8,
    attention_pair_seconds=1e-9,
)


def jobs(rate: float, seconds: float = 20.0) -> Jobs:
    rng = np.random.default_rng(3)
    count = int(rate * seconds)
    output = np.clip(rng.lognormal(4.5, 0.8, count), 1, 1000).astype(np.int64)
    return Jobs(
        np.sort(rng.uniform(0, seconds, count)),
        np.zeros(count, np.int64),
        np.clip(rng.lognormal(6.5, 1.0, count), 1, 12_000).astype(np.int64),
        output - 1,
        output - 1,
        ("",) * count,
    )


def by_steps(work: Jobs, model: StepModel, limits: EngineLimits) -> tuple[float, F64, F64]:
    """(joules of all steps, first and last token of each job), every step computed by itself."""
    count = len(work)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    done, made = np.zeros(count, np.int64), np.zeros(count, np.int64)
    waiting: deque[int] = deque()
    filling: list[int] = []
    decoding: list[int] = []
    now, arrived, total = 0.0, 0, 0.0
    while arrived < count or waiting or filling or decoding:
        if not waiting and not filling and not decoding:
            now = max(now, float(work.arrival_seconds[arrived]))
        while arrived < count and work.arrival_seconds[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        tokens = len(decoding)
        context = sum(int(work.prefill_tokens[job] + made[job]) for job in decoding)
        left, prompt, pairs, through = limits.max_step_tokens - tokens, 0, 0.0, list[int]()
        while waiting and tokens + len(filling) < limits.max_running:
            filling.append(waiting.popleft())
        for job in filling:
            if left <= 0:
                break
            part = min(left, int(work.prefill_tokens[job] - done[job]))
            pairs += part * (done[job] + 0.5 * part)
            prompt, left = prompt + part, left - part
            done[job] += part
            if done[job] == work.prefill_tokens[job]:
                through.append(job)
        padding = model.padding.padded_one(prompt + tokens) - prompt - tokens
        own = model.prefill_token_joules * prompt + model.attention_pair_joules * pairs
        own += model.decode_token_joules * tokens + model.context_token_joules * context
        own += padding * (model.prefill_token_joules if prompt else model.decode_token_joules)
        joules = model.fixed_joules + own
        length = model.fixed_seconds + model.prefill_token_seconds * prompt
        length += model.attention_pair_seconds * pairs + model.decode_token_seconds * tokens
        length += model.context_token_seconds * context
        if limits.power_limit_watts is not None:
            length = max(length, joules / limits.power_limit_watts)
        now, total = now + length, total + joules
        for job in decoding:
            made[job] += 1
        for job in through:
            filling.remove(job)
            first[job] = now
        over = [job for job in [*decoding, *through] if made[job] >= work.decode_steps[job]]
        last[over] = now
        decoding = [job for job in [*decoding, *through] if job not in over]
    return total, first, last


@pytest.mark.parametrize("rate", [0.5, 4.0, 16.0, 40.0])
@pytest.mark.parametrize("limit_watts", [None, 575.0, 400.0])
@pytest.mark.parametrize("max_running", [256, 12])
def test_stretches_of_steps_are_what_single_steps_are(
    rate: float, limit_watts: float | None, max_running: int
) -> None:
    work = jobs(rate, 6.0)
    limits = EngineLimits(4096, max_running, 0, limit_watts)
    total, first, last = by_steps(work, MODEL, limits)
    done = replay(work, MODEL, limits)
    assert done.block_joules(MODEL).sum() == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose(done.first_seconds, first, rtol=1e-9)
    np.testing.assert_allclose(done.last_seconds, last, rtol=1e-9)


def test_padding_counts_at_the_limit() -> None:
    padded = replace(MODEL, padding=Padding((1, 8, 64), 64))
    work, limits = jobs(10.0, 4.0), EngineLimits(2048, 64, 0, 300.0)
    total, _, last = by_steps(work, padded, limits)
    done = replay(work, padded, limits)
    assert done.block_joules(padded).sum() == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose(done.last_seconds, last, rtol=1e-9)


@pytest.mark.parametrize("experts", [None, Experts(active=8, total=128)])
def test_no_power_passes_the_limit_and_none_is_the_model_alone(experts: Experts | None) -> None:
    model = replace(MODEL, experts=experts, expert_joules=0.02 if experts else 0.0)
    work = jobs(40.0, 5.0)
    limited = replay(work, model, EngineLimits(8192, 256, 0, 400.0))
    watts = limited.block_joules(model) / (limited.end_seconds - limited.start_seconds)
    assert watts.max() <= 400.0 * (1 + 1e-9)
    free = replay(work, model, EngineLimits(8192, 256, 0))
    assert free.end_seconds[-1] < limited.end_seconds[-1]
