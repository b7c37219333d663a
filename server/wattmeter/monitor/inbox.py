"""What reached the monitor since it last settled: step records, and what they are estimated to have cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from wattmeter.arrays import F64, I64
from wattmeter.attribution.split import attribute
from wattmeter.energy_model.step_model import StepModel, StepWork
from wattmeter.steps.batch import StepBatch, number_names


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated joules above idle of steps that are not settled, (R,) each, in the order of `request_ids`."""

    request_ids: tuple[str, ...]
    prefill_joules: F64
    decode_joules: F64


class Preview(NamedTuple):
    """What is estimated of one request's steps in the inbox; `received_ns` is when the first of them came."""

    received_ns: int
    last_step_ns: int
    prefill_joules: float
    decode_joules: float

    def plus(self, later: Preview) -> Preview:
        return Preview(
            self.received_ns,
            max(self.last_step_ns, later.last_step_ns),
            self.prefill_joules + later.prefill_joules,
            self.decode_joules + later.decode_joules,
        )


@dataclass(frozen=True, slots=True)
class Previews:
    """The previews of some requests as columns, (R,) each; `rows` has the row of each request."""

    rows: dict[str, int]
    received_ns: I64
    last_step_ns: I64
    prefill_joules: F64
    decode_joules: F64

    @classmethod
    def of(cls, steps: StepBatch, model: StepModel, scale: float | None, received_ns: int) -> Previews:
        """What new steps are estimated to have cost each of their requests."""
        count = len(steps.request_ids)
        last = np.zeros(count, dtype=np.int64)
        np.maximum.at(last, steps.request, steps.end_ns[steps.step])
        nothing = np.zeros(count)
        cost = Estimate(steps.request_ids, nothing, nothing)
        if len(steps):
            cost = estimate(model.work(steps), model, scale)
        rows = dict(zip(steps.request_ids, range(count), strict=True))
        received = np.full(count, received_ns, dtype=np.int64)
        return cls(rows, received, last, cost.prefill_joules, cost.decode_joules)

    @classmethod
    def sum(cls, parts: Sequence[Previews]) -> Previews:
        """The sums by request of what came one after the other."""
        numbers: dict[str, int] = {}
        rows = [number_names(tuple(part.rows), numbers) for part in parts]
        kept = [np.fromiter(part.rows.values(), np.int64, len(part.rows)) for part in parts]
        count = len(numbers)
        received = np.full(count, np.iinfo(np.int64).max)
        last = np.zeros(count, dtype=np.int64)
        joules = np.zeros((2, count))
        for part, row, old in zip(parts, rows, kept, strict=True):
            received[row] = np.minimum(received[row], part.received_ns[old])
            last[row] = np.maximum(last[row], part.last_step_ns[old])
            joules[0, row] += part.prefill_joules[old]
            joules[1, row] += part.decode_joules[old]
        return cls(numbers, received, last, joules[0], joules[1])

    def get(self, request_id: str) -> Preview | None:
        row = self.rows.get(request_id)
        if row is None:
            return None
        return Preview(
            self.received_ns.item(row),
            self.last_step_ns.item(row),
            self.prefill_joules.item(row),
            self.decode_joules.item(row),
        )

    def items(self) -> Iterator[tuple[str, Preview]]:
        """Each request and its preview, of rows 0 to R - 1 in order."""
        columns = self.received_ns, self.last_step_ns, self.prefill_joules, self.decode_joules
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return zip(list(self.rows), map(Preview._make, rows), strict=True)


def estimate(
    work: StepWork, model: StepModel, scale: float | None, *, from_ns: int | None = None
) -> Estimate:
    """The model's estimate of what steps that are not settled cost their requests, from `from_ns` on.

    `scale` is what the counter gained of late for each joule of the model's, where that is known.
    """
    steps = work.batch
    start = int(steps.launch_ns[0]) if from_ns is None else from_ns
    end = int(steps.end_ns[-1])
    if end <= start:
        nothing = np.zeros(len(steps.request_ids))
        return Estimate(steps.request_ids, nothing, nothing)
    joules = float(np.sum(model.step_joules(work.steps))) * (scale or 1.0)
    split = attribute(work, np.array([start, end], dtype=np.int64), np.array([joules]), model)
    return Estimate(steps.request_ids, split.prefill_joules, split.decode_joules)


@dataclass(slots=True)
class Inbox:
    """Step records that wait for the settling thread. Its owner locks; no call takes longer than a few µs.

    A preview counts for its request from the moment its steps arrive until it is entered in the request's
    own figures: `previews` are those of the batches waiting here, `leaving` those being entered. Every step
    that ended by `complete_ns` has come; None where the engine does not say.
    """

    batches: list[StepBatch] = field(default_factory=list)
    previews: list[Previews] = field(default_factory=list)
    leaving: list[Previews] = field(default_factory=list)
    last_end_ns: int | None = None
    complete_ns: int | None = None
    _next_index: int | None = None

    def add(self, batch: StepBatch, previews: Previews) -> int:
        """Take the engine's next steps; returns how many are known to be lost before or in them."""
        lost = batch.lost_steps
        if len(batch):
            if self._next_index is not None:
                lost = max(lost, int(batch.index[0]) - self._next_index)
            self._next_index = int(batch.index[-1]) + 1
            self.last_end_ns = max(self.last_end_ns or 0, int(batch.end_ns[-1]))
            self.batches.append(batch)
            self.previews.append(previews)
        return max(lost, 0)

    def preview(self, request_id: str) -> Preview | None:
        """What the steps of one request that are in here are estimated to have cost; None without any."""
        total: Preview | None = None
        for previews in (*self.leaving, *self.previews):
            preview = previews.get(request_id)
            if preview is not None:
                total = preview if total is None else total.plus(preview)
        return total

    def has(self, request_id: str) -> bool:
        return any(request_id in previews.rows for previews in (*self.leaving, *self.previews))

    def take(self) -> list[StepBatch]:
        """The batches that wait, for the settling thread; their previews are `leaving` from now on."""
        batches, self.batches = self.batches, []
        self.leaving += self.previews
        self.previews = []
        return batches
