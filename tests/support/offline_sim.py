"""The simulated GPU without waiting: arrivals run through scheduler and power limit in virtual time."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64
from wattserve.sim.profile import Profile
from wattserve.sim.scheduler import Limits, Scheduler, Sequence


@dataclass(frozen=True, slots=True)
class Outcome:
    """N requests in the order given, times in seconds on the clock of the arrivals; M steps.

    `first_seconds`, `last_seconds` (N,): when the first and last token were sampled. `step_start_seconds`,
    `step_end_seconds`, `step_joules` (M,): the steps that ran, joules above idle.
    """

    first_seconds: F64
    last_seconds: F64
    step_start_seconds: F64
    step_end_seconds: F64
    step_joules: F64

    def joules_above_idle(self, start_seconds: float, end_seconds: float) -> float:
        """Of [start, end), steps that reach over an edge in proportion."""
        low = np.maximum(self.step_start_seconds, start_seconds)
        high = np.minimum(self.step_end_seconds, end_seconds)
        part = np.clip(high - low, 0, None) / (self.step_end_seconds - self.step_start_seconds)
        return float(np.sum(self.step_joules * part))


def run_offline(
    profile: Profile,
    limits: Limits,
    arrival_seconds: Rows[float],
    prompt_tokens: Rows[int],
    output_tokens: Rows[int],
) -> Outcome:
    """Serve N requests that arrive at given times, in order; every prompt is its own (no shared prefixes)."""
    scheduler = Scheduler(limits)
    device = profile.device()
    first = np.full(len(arrival_seconds), np.nan)
    last = np.full(len(arrival_seconds), np.nan)
    sequences = []
    for row, (when, prompt, output) in enumerate(
        zip(arrival_seconds, prompt_tokens, output_tokens, strict=True)
    ):
        sequences.append(
            Sequence(str(row), [row] * prompt, output, arrival_ns=round(when * 1e9), deliver=lambda _: None)
        )
    rows = {id(seq): row for row, seq in enumerate(sequences)}
    pending = sequences[::-1]
    steps: list[tuple[int, int, float]] = []
    now_ns, ended_ns = 0, 0
    while pending or scheduler.has_work:
        if not scheduler.has_work:
            now_ns = max(now_ns, pending[-1].arrival_ns)
        # What is launched at the start of a step has to be here by then; see Engine about launching ahead.
        while pending and pending[-1].arrival_ns <= now_ns:
            scheduler.add(pending.pop())
        step = scheduler.schedule(None)
        start_ns = max(now_ns, ended_ns)
        device.idle((start_ns - ended_ns) * 1e-9)
        seconds, joules = device.step(
            step.prefill_tokens,
            step.decode_tokens,
            step.decode_context_tokens,
            step.attention_pairs,
            len(step.entries),
        )
        ended_ns = start_ns + round(seconds * 1e9)
        steps.append((start_ns, ended_ns, joules))
        for seq in scheduler.finish_step(step):
            row = rows[id(seq)]
            if seq.generated == 1:
                first[row] = ended_ns * 1e-9
            last[row] = ended_ns * 1e-9
        now_ns = start_ns if profile.launches_ahead and scheduler.running else ended_ns
        if not scheduler.has_work:
            now_ns = start_ns
    table = np.array(steps, dtype=np.float64).reshape(-1, 3)
    return Outcome(first, last, table[:, 0] * 1e-9, table[:, 1] * 1e-9, table[:, 2])
