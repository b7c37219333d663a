"""The online extension of the binning model: a workload's energy at the times its requests arrive.

Continuous batching (wattmeter.energy_model.batching) is run over the arrivals with the step costs of a
calibration instead of a GPU: first come, first served, generating requests first, prompts in chunks into what
is left of a step's token budget. Batch sizes, queues and idle time then follow from the arrival rate, which
the binning model does not know. Ten minutes of traffic take about a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.estimates.step_cost import StepCost
from wattmeter.arrays import F64, I64
from wattmeter.energy_model.batching import EngineLimits, Jobs, replay


@dataclass(frozen=True, slots=True)
class Online:
    """What a simulated engine did; seconds count from the same moment as the arrivals.

    For each block of steps, shape (B,): how many they are, its end, and the joules above idle and the busy
    time up to it. For each request its first and last token, shape (N,).
    """

    steps: F64
    ends: F64
    joules: F64
    busy_seconds: F64
    first: F64
    last: F64
    idle_watts: float

    def window_joules(self, start: float, end: float) -> float:
        """All joules in [start, end), idle included."""
        return self.idle_watts * (end - start) + float(
            self._at(end, self.joules) - self._at(start, self.joules)
        )

    def busy_fraction(self, start: float, end: float) -> float:
        """The share of [start, end) in which a step ran."""
        busy = self._at(end, self.busy_seconds) - self._at(start, self.busy_seconds)
        return float(busy) / (end - start)

    def _at(self, when: float, series: F64) -> float:
        if not len(self.ends):
            return 0.0
        return float(np.interp(when, self._begins_and_ends(), self._held(series)))

    def _begins_and_ends(self) -> F64:
        lengths = np.diff(self.busy_seconds, prepend=0.0)
        return np.column_stack((self.ends - lengths, self.ends)).ravel()

    @staticmethod
    def _held(series: F64) -> F64:
        before = np.concatenate(([0.0], series[:-1]))
        return np.column_stack((before, series)).ravel()


def simulate(
    due: F64,
    prompt: I64,
    output: I64,
    cost: StepCost,
    idle_watts: float,
    *,
    max_batched_tokens: int = 8192,
    max_seqs: int = 256,
) -> Online:
    """Serves requests due at `due` seconds (ascending), shape (N,), with the given lengths in tokens."""
    # The step that completes a prompt makes the first token, so the others take a step fewer.
    jobs = Jobs(
        arrival_seconds=np.asarray(due, np.float64) + cost.start_seconds,
        context_tokens=np.zeros(len(due), np.int64),
        prefill_tokens=np.asarray(prompt, np.int64),
        decode_steps=np.asarray(output, np.int64) - 1,
        decode_tokens=np.asarray(output, np.int64) - 1,
        names=("",) * len(due),
    )
    limits = EngineLimits(max_batched_tokens, max_seqs, lookahead=0, power_limit_watts=cost.limit_watts)
    done = replay(jobs, cost.model, limits)
    return Online(
        steps=done.steps,
        ends=done.end_seconds,
        joules=np.cumsum(done.block_joules(cost.model)),
        busy_seconds=np.cumsum(done.end_seconds - done.start_seconds),
        first=done.first_seconds,
        last=done.last_seconds,
        idle_watts=idle_watts,
    )
