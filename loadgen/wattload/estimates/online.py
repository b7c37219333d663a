"""The online extension: a workload's energy at the times its requests arrive.

A continuous-batching scheduler is run over the arrivals with the profile's step costs instead of a GPU:
first come, first served, generating requests first, prompts in chunks into what is left of a step's token
budget. Batch sizes, queues and idle time then follow from the arrival rate, which the binning model knows
nothing of. Ten minutes of traffic take about a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattload.estimates.stepcost import StepCost

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Online:
    """Per step its end and the joules above idle up to it, shape (S,); per request its first and last
    token, shape (N,). Seconds count from the same moment as the arrivals.
    """

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
    prompt: npt.NDArray[np.int64],
    output: npt.NDArray[np.int64],
    cost: StepCost,
    idle_watts: float,
    *,
    max_batched_tokens: int = 8192,
    max_seqs: int = 256,
) -> Online:
    """Serves requests due at `due` seconds (ascending), shape (N,), with the given lengths."""
    count = len(due)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    waiting: deque[int] = deque()
    done = np.zeros(count, np.int64)  # prompt tokens computed
    made = np.zeros(count, np.int64)  # tokens generated
    decoding = np.zeros(0, np.int64)
    ends: list[float] = []
    joules: list[float] = []
    busy: list[float] = []
    now, arrived, spent, worked, running = 0.0, 0, 0.0, 0.0, 0
    prefilling: deque[int] = deque()
    while arrived < count or waiting or prefilling or len(decoding):
        if not waiting and not prefilling and not len(decoding):
            now = max(now, float(due[arrived]) + cost.start_seconds)
        while arrived < count and due[arrived] + cost.start_seconds <= now:
            waiting.append(arrived)
            arrived += 1
        while waiting and running < max_seqs:
            prefilling.append(waiting.popleft())
            running += 1
        work = np.zeros(5)
        work[0], work[3] = 1.0, len(decoding)
        work[4] = float((prompt[decoding] + made[decoding]).sum())
        through = _prefill(prefilling, prompt, done, max_batched_tokens - len(decoding), work)
        seconds, above = cost.step(work)
        now += seconds
        spent += above
        worked += seconds
        ends.append(now)
        joules.append(spent)
        busy.append(worked)
        for request in through:
            prefilling.popleft()
            first[request] = now
        made[decoding] += 1
        fresh = np.array(through, np.int64)
        made[fresh] += 1
        decoding = np.concatenate((decoding, fresh))
        over = made[decoding] >= output[decoding]
        if over.any():
            last[decoding[over]] = now
            running -= int(over.sum())
            decoding = decoding[~over]
    return Online(np.array(ends), np.array(joules), np.array(busy), first, last, idle_watts)


def _prefill(
    waiting: deque[int],
    prompt: npt.NDArray[np.int64],
    done: npt.NDArray[np.int64],
    budget: int,
    work: F64,
) -> list[int]:
    """Computes prompts in order up to `budget` tokens:

    adds to `work` and `done`, gives back those now complete.
    """
    through = []
    for request in waiting:
        if budget <= 0:
            break
        tokens = min(int(prompt[request] - done[request]), budget)
        work[1] += tokens
        work[2] += tokens * (done[request] + (tokens - 1) / 2)
        done[request] += tokens
        budget -= tokens
        if done[request] == prompt[request]:
            through.append(request)
    return through
