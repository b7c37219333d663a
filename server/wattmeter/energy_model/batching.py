"""A replay of continuous batching: what the engine would do with a set of requests alone, in modelled time.

The scheduler is vLLM's in outline: first come first served, running requests before waiting ones, one decode
step a request and step, prompts in chunks within the token budget, the next step scheduled while one runs.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64, I32, I64, Bool
from wattmeter.energy_model.step_model import (
    CONTEXT_KNEE_TOKENS,
    PROMPT_KNEE_TOKENS,
    StepModel,
    WorkTerms,
    capped,
    work_of,
)
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import TAIL_SECONDS


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What bounds a step: tokens, running requests, and how far ahead the engine schedules (0 or 1 step).

    `power_limit_watts` is the power above idle that no step exceeds: one that needs more joules than that
    takes longer, as the clock gives way. None: steps are as long as the model says, and power is left to the
    model's `power_cap_watts`, which acts on whole seconds.
    """

    max_step_tokens: int = 8192
    max_running: int = 1024
    lookahead: int = 1
    power_limit_watts: float | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    """N requests as the engine's work, each column (N,), sorted by arrival.

    `prefill_tokens` were computed on top of `context_tokens` that were there already (a cached prefix, or all
    of the context of a request that was decoding when the record begins); then `decode_steps` steps computed
    `decode_tokens` tokens (the same number without speculation). `names` are the request ids.
    """

    arrival_seconds: F64
    context_tokens: I64
    prefill_tokens: I64
    decode_steps: I64
    decode_tokens: I64
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    def only(self, rows: Bool | I64) -> Jobs:
        """The jobs of a mask or of row numbers in increasing order."""
        picked = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Jobs(
            self.arrival_seconds[rows],
            self.context_tokens[rows],
            self.prefill_tokens[rows],
            self.decode_steps[rows],
            self.decode_tokens[rows],
            tuple(self.names[int(row)] for row in picked),
        )

    def merged(self, other: Jobs) -> Jobs:
        """Both sets of jobs, by arrival."""
        arrival = np.concatenate([self.arrival_seconds, other.arrival_seconds])
        order = np.argsort(arrival, kind="stable")
        names = self.names + other.names
        return Jobs(
            arrival[order],
            np.concatenate([self.context_tokens, other.context_tokens])[order],
            np.concatenate([self.prefill_tokens, other.prefill_tokens])[order],
            np.concatenate([self.decode_steps, other.decode_steps])[order],
            np.concatenate([self.decode_tokens, other.decode_tokens])[order],
            tuple(names[int(row)] for row in order),
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What the device did for a set of jobs: blocks of steps with their summed work; columns are (B,).

    WorkTerms is what was computed, the model's padding included.
    """

    start_seconds: F64
    end_seconds: F64
    steps: F64
    work: WorkTerms
    first_seconds: F64
    last_seconds: F64

    @property
    def busy_seconds(self) -> float:
        return float(np.sum(self.end_seconds - self.start_seconds))

    @property
    def tail_seconds(self) -> F64:
        """Seconds of the tail of each block's last step."""
        gaps = np.append(self.start_seconds[1:] - self.end_seconds[:-1], TAIL_SECONDS)[: len(self.steps)]
        tails: F64 = np.clip(gaps, 0.0, TAIL_SECONDS)
        return tails

    def block_joules(self, model: StepModel) -> F64:
        """Joules above idle of each block and its tail, without the power cap."""
        prefill, decode = model.work_joules(self.work)
        joules: F64 = (
            model.fixed_joules * self.steps + prefill + decode + model.tail_watts * self.tail_seconds
        )
        return joules

    def joules(self, model: StepModel) -> float:
        """Joules above idle of all, each second `capped` by what the model's power cap allows."""
        joules = self.block_joules(model)
        if model.power_cap_watts is None or len(joules) == 0:
            return float(np.sum(joules))
        whole = np.floor(self.start_seconds[0])
        seconds = np.arange(whole, self.end_seconds[-1] + 1.0)
        # Cumulative energy and busy time are linear inside a block: both are read off at whole seconds.
        times = np.stack([self.start_seconds, self.end_seconds], axis=1).ravel()
        zeros = np.zeros(len(joules))
        energy = np.cumsum(np.stack([zeros, joules], axis=1).ravel())
        drawing = self.end_seconds - self.start_seconds + self.tail_seconds
        busy = np.cumsum(np.stack([zeros, drawing], axis=1).ravel())
        needed = np.diff(np.interp(seconds, times, energy))
        allowed = model.power_cap_watts * np.diff(np.interp(seconds, times, busy))
        return float(np.sum(capped(needed, allowed)))


def jobs_of(steps: StepBatch, arrivals: Mapping[str, float] | None = None) -> Jobs:
    """The jobs whose steps a record holds. Times are seconds of the record's monotonic clock.

    `arrivals` gives the arrival of requests by id where it is known. Without it, a request arrived between
    the call of the scheduler that first ran it and the call before: half way, and at the call itself where
    the device was idle. That is right to half a step unless requests queue for a place.
    """
    count = len(steps.request_ids)
    entries = len(steps.step)
    if entries == 0:
        empty = np.zeros(0, dtype=np.int64)
        return Jobs(np.zeros(0), empty, empty, empty, empty, ())
    first = np.full(count, entries, dtype=np.int64)
    np.minimum.at(first, steps.request, np.arange(entries, dtype=np.int64))
    present = np.flatnonzero(first < entries)
    first = first[present]

    def total(column: I32) -> I64:
        return np.bincount(steps.request, weights=column, minlength=count)[present].astype(np.int64)

    decoding = (steps.decode_tokens > 0).astype(np.int32)
    first_step = steps.step[first]
    launch = steps.launch_ns[first_step]
    before = np.where(first_step > 0, steps.launch_ns[np.maximum(first_step - 1, 0)], launch)
    idle = np.where(first_step > 0, steps.end_ns[np.maximum(first_step - 1, 0)] <= launch - 1_000_000, True)
    arrival = np.where(idle, launch, 0.5 * (launch + np.maximum(before, launch - 1_000_000_000))) * 1e-9
    names = [steps.request_ids[int(row)] for row in present]
    if arrivals:
        known = np.array([arrivals.get(name, math.nan) for name in names])
        arrival = np.where(np.isfinite(known), np.minimum(known, launch * 1e-9), arrival)
    order = np.argsort(arrival, kind="stable")
    return Jobs(
        arrival[order],
        steps.context_tokens[first][order].astype(np.int64),
        total(steps.prefill_tokens)[order],
        total(decoding)[order],
        total(steps.decode_tokens)[order],
        tuple(names[int(row)] for row in order),
    )


def limits_of(steps: StepBatch) -> EngineLimits:
    """What a record shows of the engine's limits: most tokens and requests of a step, and its lookahead."""
    if len(steps) < 2:
        return EngineLimits()
    tokens = np.bincount(steps.step, weights=steps.prefill_tokens + steps.decode_tokens, minlength=len(steps))
    running = np.bincount(steps.step, minlength=len(steps))
    ahead = np.mean(steps.launch_ns[1:] < steps.end_ns[:-1]) > 0.5
    base = EngineLimits()
    return EngineLimits(
        max_step_tokens=max(base.max_step_tokens, int(tokens.max())),
        max_running=max(base.max_running, int(running.max())),
        lookahead=int(ahead),
    )


def replay(jobs: Jobs, model: StepModel, limits: EngineLimits | None = None) -> Replay:
    """Run the jobs through continuous batching in the model's time.

    Stretches in which all that runs decodes and nothing arrives or ends are computed at once. A job of no
    decode steps ends with its prefill. Raises ValueError where the model has no step time.
    """
    if model.fixed_seconds <= 0.0:
        raise ValueError("replay: the step model has no fixed_seconds, so nothing can be replayed")
    batching = _Batching(jobs, model, limits or EngineLimits())
    while batching.more():
        if batching.waiting or batching.filling:
            batching.mixed_step()
        else:
            batching.decode_steps()
        batching.retire()
    table = np.array(batching.blocks, dtype=np.float64).reshape(-1, 9)
    prompt = table[:, 3] > 0
    # The knees, the padding and the experts are a step's. Of a block of several only the sums are kept: its
    # padding and experts were added up as it ran, and no time is asked of its work.
    work = dataclasses.replace(
        work_of(table[:, 3], table[:, 4], table[:, 5], table[:, 6]),
        prefill_padding=np.where(prompt, table[:, 7], 0.0),
        decode_padding=np.where(prompt, 0.0, table[:, 7]),
        experts=table[:, 8],
    )
    first, last = np.array(batching.first), np.array(batching.last)
    return Replay(table[:, 0], table[:, 1], table[:, 2], work, first, last)


class _Batching:
    """The state of the replay between two steps. Times are seconds; `number` counts the steps so far."""

    def __init__(self, jobs: Jobs, model: StepModel, limits: EngineLimits) -> None:
        self.model = model
        self.limits = limits
        self.arrival = jobs.arrival_seconds.tolist()
        self.context = jobs.context_tokens.tolist()
        self.prefill = jobs.prefill_tokens.tolist()
        self.steps_left = jobs.decode_steps.tolist()
        self.speed = (jobs.decode_tokens / np.maximum(jobs.decode_steps, 1)).tolist()
        self.done = [0] * len(self.arrival)  # prompt tokens computed
        self.first = [math.nan] * len(self.arrival)  # when the prompt was computed
        self.last = [math.nan] * len(self.arrival)  # when all was
        self.blocks: list[tuple[float, ...]] = []
        self.waiting: deque[int] = deque()
        self.filling: deque[int] = deque()  # admitted, prompt not yet computed to its end
        self.ends: list[tuple[int, int]] = []  # (number of the step after which a job has decoded all, job)
        self.decoding, self.tokens_a_step, self.held = 0, 0.0, 0.0  # jobs in decode, tokens, their context
        self.number = 0
        self.arrived = 0
        self.now = -math.inf  # end of the last step
        self.previous = -math.inf  # end of the one before: when the next step is scheduled, looking ahead

    def more(self) -> bool:
        """Take in who has arrived when the next step is scheduled; False when all is done."""
        count = len(self.arrival)
        if self.waiting or self.filling or self.decoding:
            seen = self.previous if self.limits.lookahead else self.now
        elif self.arrived < count:
            seen = self.now = max(self.now, self.arrival[self.arrived])
        else:
            return False
        while self.arrived < count and self.arrival[self.arrived] <= seen:
            self.waiting.append(self.arrived)
            self.arrived += 1
        return True

    def decode_steps(self) -> None:
        """Steps of nothing but decode, up to the next end or the step that the next arrival joins."""
        model = self.model
        tokens, held = self.tokens_a_step, self.held
        steps = self.ends[0][0] - self.number
        padding = model.padding.padded_one(tokens) - tokens
        experts = 0.0 if model.experts is None else model.experts.distinct_one(tokens + padding)
        a_token = model.context_token_seconds
        if held < CONTEXT_KNEE_TOKENS:
            # The stretch ends where the context passes its knee: beyond it another line holds.
            a_token += model.first_context_token_seconds
            steps = min(steps, 1 + int((CONTEXT_KNEE_TOKENS - held) / max(tokens, 1e-9)))
            over = 0.0
        else:
            over = model.first_context_token_seconds * CONTEXT_KNEE_TOKENS
        first = model.fixed_seconds + model.decode_token_seconds * tokens + a_token * held + over
        first += model.expert_seconds * experts
        growth = a_token * tokens
        if self.limits.power_limit_watts is not None:
            joules = (
                model.fixed_joules
                + model.decode_token_joules * (tokens + padding)
                + model.context_token_joules * held
                + model.expert_joules * experts
            )
            first, growth, steps = self._at_power_limit(joules, first, growth, steps)
        if self.arrived < len(self.arrival):
            gap = self.arrival[self.arrived] - self.now
            reach = 0 if gap <= 0 else _steps_within(gap, first, growth) + 1
            steps = max(1, min(steps, reach + self.limits.lookahead))
        triangle = steps * (steps - 1) / 2
        length = steps * first + growth * triangle
        read = steps * held + tokens * triangle
        row = self.now, self.now + length, steps, 0.0, steps * tokens, read, 0.0
        self.blocks.append((*row, steps * padding, steps * experts))
        self.held += steps * tokens
        self.now += length
        self.previous = self.now - first - growth * (steps - 1)
        self.number += steps

    def _at_power_limit(
        self, joules: float, first: float, growth: float, steps: int
    ) -> tuple[float, float, int]:
        """(seconds of the first step, growth from step to step, steps) where power must not pass the limit.

        `joules` are those of the first step. The steps end where what sets their length changes between the
        work and the limit.
        """
        limit_watts = self.limits.power_limit_watts
        assert limit_watts is not None
        at_limit = joules / limit_watts
        growth_at_limit = self.model.context_token_joules * self.tokens_a_step / limit_watts
        limited = at_limit > first
        apart, closing = at_limit - first, growth - growth_at_limit
        if not limited:
            apart, closing = -apart, -closing
        if closing > 0.0:
            steps = min(steps, 1 + int(apart / closing))
        return (at_limit, growth_at_limit, steps) if limited else (first, growth, steps)

    def mixed_step(self) -> None:
        """One step with prompt tokens in it, within the budget that decode leaves."""
        model, limits = self.model, self.limits
        left = limits.max_step_tokens - self.decoding
        new_tokens, pairs = 0, 0.0
        finished: list[int] = []
        while left > 0:
            if len(finished) < len(self.filling):
                job = self.filling[len(finished)]
            elif self.waiting and self.decoding + len(self.filling) < limits.max_running:
                job = self.waiting.popleft()
                self.filling.append(job)
            else:
                break
            part = min(left, self.prefill[job] - self.done[job])
            pairs += part * (self.context[job] + self.done[job] + 0.5 * part)
            new_tokens += part
            left -= part
            self.done[job] += part
            if self.done[job] < self.prefill[job]:
                break
            finished.append(job)
        total = new_tokens + self.tokens_a_step
        padding = model.padding.padded_one(total) - total
        experts = 0.0 if model.experts is None else model.experts.distinct_one(total + padding)
        length = (
            model.fixed_seconds
            + model.expert_seconds * experts
            + model.prefill_token_seconds * new_tokens
            + model.large_prompt_token_seconds * max(new_tokens - PROMPT_KNEE_TOKENS, 0.0)
            + model.attention_pair_seconds * pairs
            + model.decode_token_seconds * self.tokens_a_step
            + model.context_token_seconds * self.held
            + model.first_context_token_seconds * min(self.held, CONTEXT_KNEE_TOKENS)
        )
        if limits.power_limit_watts is not None:
            joules = (
                model.fixed_joules
                + model.prefill_token_joules * new_tokens
                + model.attention_pair_joules * pairs
                + model.decode_token_joules * self.tokens_a_step
                + model.context_token_joules * self.held
                + (model.prefill_token_joules if new_tokens else model.decode_token_joules) * padding
                + model.expert_joules * experts
            )
            length = max(length, joules / limits.power_limit_watts)
        row = self.now, self.now + length, 1.0, new_tokens, self.tokens_a_step, self.held, pairs
        self.blocks.append((*row, padding, experts))
        self.held += self.tokens_a_step
        self.previous = self.now
        self.now += length
        self.number += 1
        for job in finished:
            self.filling.popleft()
            self.first[job] = self.last[job] = self.now
            if self.steps_left[job] > 0:
                self.decoding += 1
                self.tokens_a_step += self.speed[job]
                self.held += self.context[job] + self.prefill[job]
                heapq.heappush(self.ends, (self.number + self.steps_left[job], job))

    def retire(self) -> None:
        """Let go of the jobs that have decoded all their tokens."""
        while self.ends and self.ends[0][0] <= self.number:
            _, job = heapq.heappop(self.ends)
            self.last[job] = self.now
            self.decoding -= 1
            self.tokens_a_step -= self.speed[job]
            self.held -= self.context[job] + self.prefill[job] + self.steps_left[job] * self.speed[job]
        if not self.decoding:
            self.tokens_a_step, self.held = 0.0, 0.0


def _steps_within(gap: float, first: float, growth: float) -> int:
    """How many whole steps end before `gap` seconds, when they take first, first + growth, ... seconds."""
    if growth <= 0.0:
        return int(gap / first)
    half = first - growth / 2
    return int((math.sqrt(half * half + 2 * growth * gap) - half) / growth)
