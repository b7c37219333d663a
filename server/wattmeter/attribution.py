"""Whom the joules of a counter interval belong to: a pure, conserving, non-negative split over requests.

The game it solves and why is in docs/attribution.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattmeter.stepmodel import StepEnergyModel, entry_work, step_work, sum_by
from wattmeter.steps import I32, I64, StepBatch

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Attribution:
    """Joules above idle by request and by interval.

    Per request, shape (R,), in the order of StepBatch.request_ids: `prefill_joules`, `decode_joules`,
    `uncertainty_joules` (one standard deviation of their sum). Per interval, shape (N,):
    `unattributed_joules`. sum(prefill) + sum(decode) + sum(unattributed) = sum(joules given), to rounding.
    `scale` (N,) is the factor by which the model's prediction was multiplied to meet the counter in each
    interval (nan where no step ran).
    """

    request_ids: tuple[str, ...]
    prefill_joules: F64
    decode_joules: F64
    uncertainty_joules: F64
    unattributed_joules: F64
    scale: F64

    @property
    def request_joules(self) -> F64:
        return self.prefill_joules + self.decode_joules


def busy_starts(steps: StepBatch, previous_end_ns: int | None = None) -> I64:
    """When the device began each step: max(launch, end of the step before), shape (S,), monotonic ns."""
    starts = steps.launch_ns.copy()
    if len(starts) == 0:
        return starts
    np.maximum(starts[1:], steps.end_ns[:-1], out=starts[1:])
    if previous_end_ns is not None:
        starts[0] = max(int(starts[0]), previous_end_ns)
    return np.minimum(starts, steps.end_ns)


def attribute(
    steps: StepBatch,
    edges_ns: I64,
    joules: F64,
    model: StepEnergyModel,
    *,
    groups: I32 | None = None,
    previous_end_ns: int | None = None,
) -> Attribution:
    """Split over requests the `joules` above idle, shape (N,), of the intervals between `edges_ns`, (N+1,).

    A step may reach over the first or last edge: only the part of it inside is attributed here, so
    consecutive calls with adjoining edges, both given the straddling step, add up. `groups`, shape (R,),
    numbers the group (tenant, API key, ...) of each request: groups are then the players, and requests share
    within theirs. `previous_end_ns` is the end of the step before the batch. An interval in which no step
    ran, or in which the counter fell below idle, is unattributed. Intervals of a second or so are best: a
    counter that moves every 100 ms says little about steps of 5 ms.
    """
    edges = np.asarray(edges_ns, dtype=np.int64)
    measured = np.asarray(joules, dtype=np.float64)
    if edges.ndim != 1 or len(edges) != len(measured) + 1 or np.any(np.diff(edges) <= 0):
        raise ValueError("attribution: edges must increase and be one more than the joules")
    if not np.all(np.isfinite(measured)):
        raise ValueError("attribution: joules must be finite; leave a faulty interval out")
    requests = len(steps.request_ids)
    intervals = len(measured)
    work = entry_work(steps)
    prefill, decode = model.own_joules(work)
    prefill_part, decode_part = _with_fixed_share(steps, prefill, decode, model.fixed_joules, groups)
    entry_total = prefill_part + decode_part
    step_total = sum_by(steps.step, entry_total, len(steps))
    # In the power-capped regime a step's energy is less than its terms: all its entries shrink alike.
    starts = busy_starts(steps, previous_end_ns)
    seconds = ((steps.end_ns - starts) * 1e-9).astype(np.float64)
    capped = model.step_joules(step_work(steps, work), seconds)
    shrink = np.divide(capped, step_total, out=np.zeros_like(capped), where=step_total > 0)

    row, column, overlap = _overlaps(starts, steps.end_ns, edges)
    predicted = sum_by(column, capped[row] * overlap, intervals)
    usable = (predicted > 0) & (measured > 0)
    scale = np.full(intervals, np.nan)
    np.divide(measured, predicted, out=scale, where=usable)
    weight = np.bincount(row, weights=overlap * np.where(usable, scale, 0.0)[column], minlength=len(steps))
    factor = (shrink * weight)[steps.step]
    request_prefill = sum_by(steps.request, prefill_part * factor, requests)
    request_decode = sum_by(steps.request, decode_part * factor, requests)
    total = request_prefill + request_decode
    fraction = model.residual_fraction if model.residual_fraction is not None else 0.5
    return Attribution(
        request_ids=steps.request_ids,
        prefill_joules=request_prefill,
        decode_joules=request_decode,
        uncertainty_joules=fraction * total,
        unattributed_joules=np.where(usable, 0.0, measured),
        scale=scale,
    )


def _with_fixed_share(
    steps: StepBatch, prefill: F64, decode: F64, fixed_joules: float, groups: I32 | None
) -> tuple[F64, F64]:
    """Each entry's own joules plus its share of the fixed part: equal among groups, then within them."""
    count = len(steps)
    if groups is None:
        sharers = np.bincount(steps.step, minlength=count)[steps.step].astype(np.float64)
    else:
        group = np.asarray(groups, dtype=np.int64)[steps.request]
        width = int(group.max(initial=0)) + 1
        _, inverse, members = np.unique(
            steps.step.astype(np.int64) * width + group, return_inverse=True, return_counts=True
        )
        first = np.zeros(len(members), dtype=np.int64)
        first[inverse] = steps.step
        present = np.bincount(first, minlength=count)
        sharers = members[inverse] * present[steps.step].astype(np.float64)
    share = np.divide(fixed_joules, sharers, out=np.zeros(len(sharers)), where=sharers > 0)
    tokens = steps.prefill_tokens + steps.decode_tokens
    in_prefill = np.divide(
        steps.prefill_tokens, tokens, out=np.zeros(len(sharers), dtype=np.float64), where=tokens > 0
    )
    return prefill + share * in_prefill, decode + share * (1.0 - in_prefill)


def _overlaps(starts: I64, ends: I64, edges: I64) -> tuple[I64, I64, F64]:
    """(step, interval, fraction of the step inside) for every pair that overlaps."""
    first = np.searchsorted(edges, starts, side="right") - 1
    last = np.searchsorted(edges, ends, side="left") - 1
    first = np.maximum(first, 0)
    last = np.minimum(last, len(edges) - 2)
    number = np.maximum(last - first + 1, 0)
    row = np.repeat(np.arange(len(starts), dtype=np.int64), number)
    offset = np.arange(len(row), dtype=np.int64) - np.repeat(np.cumsum(number) - number, number)
    column = first[row] + offset
    inside = np.minimum(ends[row], edges[column + 1]) - np.maximum(starts[row], edges[column])
    length = ends[row] - starts[row]
    fraction = np.where(length > 0, inside / np.maximum(length, 1), 1.0)
    return row, column, np.clip(fraction, 0.0, 1.0)
