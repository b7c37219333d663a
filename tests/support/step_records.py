"""Step records made from a replay of jobs: what an engine would have recorded, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wattmeter.energy_model.batching import EngineLimits, Jobs
from wattmeter.energy_model.step_model import VLLM_PADDING, StepModel
from wattmeter.steps.batch import ENTRY_COLUMNS, StepBatch

MODEL = StepModel(
    fixed_joules=1.83,
    prefill_token_joules=14.4e-3,
    decode_token_joules=13e-3,
    context_token_joules=24e-6,
    attention_pair_joules=2e-7,
    fixed_seconds=4.9e-3,
    prefill_token_seconds=18e-6,
    decode_token_seconds=10e-6,
    context_token_seconds=3.4e-8,
    attention_pair_seconds=1e-9,
    residual_fraction=0.02,
    trusted=True,
)

# The same with all that a step may cost besides.
FULL_MODEL = replace(
    MODEL,
    large_prompt_token_seconds=8e-6,
    first_context_token_seconds=1e-8,
    tail_watts=36.0,
    padding=VLLM_PADDING,
)


def jobs(rows: list[tuple[float, int, int]]) -> Jobs:
    """Jobs of (arrival seconds, prompt tokens, output tokens); the first token comes with the prompt."""
    ordered = sorted(rows)
    outputs = np.array([row[2] - 1 for row in ordered], dtype=np.int64)
    return Jobs(
        np.array([row[0] for row in ordered]),
        np.zeros(len(rows), dtype=np.int64),
        np.array([row[1] for row in ordered], dtype=np.int64),
        outputs,
        outputs,
        tuple(f"r{number}" for number in range(len(rows))),
    )


def random_jobs(seed: int, count: int, rate: float) -> Jobs:
    generator = np.random.default_rng(seed)
    arrivals = 1.0 + np.cumsum(generator.exponential(1 / rate, count))
    prompts = generator.integers(10, 3000, count)
    outputs = generator.integers(1, 200, count)
    return jobs(list(zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)))


def run(work: Jobs, model: StepModel, limits: EngineLimits) -> StepBatch:
    """The record of the jobs, one step after another: the slow way, not wattmeter.energy_model.batching."""
    step_rows: list[tuple[float, float]] = []
    entries: list[tuple[int, int, int, int, int]] = []
    waiting: list[int] = []
    running: list[int] = []
    prompt_done = [0] * len(work)
    decoded = [0] * len(work)
    arrived, now, previous = 0, -np.inf, -np.inf
    while True:
        if running or waiting:
            seen = previous if limits.lookahead else now
        elif arrived < len(work):
            seen = now = max(now, work.arrival_seconds[arrived])
        else:
            break
        while arrived < len(work) and work.arrival_seconds[arrived] <= seen:
            waiting.append(arrived)
            arrived += 1
        number = len(step_rows)
        decoding = [job for job in running if prompt_done[job] == work.prefill_tokens[job]]
        filling = [job for job in running if job not in decoding]
        left = limits.max_step_tokens - len(decoding)
        here = [(number, job, 0, 1, int(work.prefill_tokens[job]) + decoded[job]) for job in decoding]
        for job in decoding:
            decoded[job] += 1
        while left > 0 and (filling or (waiting and len(running) < limits.max_running)):
            if filling:
                job = filling.pop(0)
            else:
                job = waiting.pop(0)
                running.append(job)
            part = min(left, int(work.prefill_tokens[job]) - prompt_done[job])
            here.append((number, job, part, 0, prompt_done[job]))
            prompt_done[job] += part
            left -= part
        seconds = model.fixed_seconds
        for _, _, prefill, decode, context in here:
            seconds += (
                model.prefill_token_seconds * prefill
                + model.attention_pair_seconds * prefill * (context + prefill / 2)
                + model.decode_token_seconds * decode
                + model.context_token_seconds * (context if decode else 0)
            )
        prompt = sum(row[2] for row in here)
        context_read = sum(row[4] for row in here if row[3])
        seconds += model.large_prompt_token_seconds * max(prompt - 64, 0)
        seconds += model.first_context_token_seconds * min(context_read, 10_000)
        entries.extend(here)
        step_rows.append((seen, now + seconds))
        previous, now = now, now + seconds
        running = [
            job
            for job in running
            if prompt_done[job] < work.prefill_tokens[job] or decoded[job] < work.decode_steps[job]
        ]
    table = np.array(entries, dtype=np.int32).reshape(-1, 5)
    times = np.round(np.array(step_rows).reshape(-1, 2) * 1e9).astype(np.int64)
    return StepBatch.of(
        work.names,
        {
            "index": np.arange(len(times)),
            "launch_ns": times[:, 0],
            "end_ns": times[:, 1],
            **dict(zip(ENTRY_COLUMNS, table.T, strict=False)),
        },
    )
