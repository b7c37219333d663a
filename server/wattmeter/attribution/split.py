"""Splits the joules of a counter interval over requests: pure, conserving, non-negative.

The game it solves and why is in docs/explanation/attribution.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64, I32, I64, sum_by
from wattmeter.energy_model.step_model import NO_PADDING, StepModel, StepWork
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import overlaps

# Relative standard deviation of a request's joules where the model has none of its own.
UNKNOWN_RESIDUAL = 0.3


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


def attribute(
    steps: StepBatch | StepWork,
    edges_ns: I64,
    joules: F64,
    model: StepModel,
    *,
    groups: I32 | None = None,
    group_factors: F64 | None = None,
    concurrency: float | None = None,
    previous_end_ns: int | None = None,
) -> Attribution:
    """Split over requests the `joules` above idle, shape (N,), of the intervals between `edges_ns`, (N+1,).

    A step may reach over the first or last edge: only the part of it inside is attributed here, so
    consecutive calls with adjoining edges, both given the straddling step, add up. `previous_end_ns` is the
    end of the step before the batch. An interval in which no step ran, or in which the counter fell below
    idle, is unattributed. Intervals of a second or so are best: a counter that moves every 100 ms says
    little about steps of 5 ms.

    `groups`, shape (R,), numbers the group (tenant, API key, ...) of each request: groups are then the
    players, and requests share within theirs. `group_factors`, shape (G,), multiplies what each group would
    get before the sum is met (see groupshares.py). `concurrency` is the mean number of
    requests present, were steps as short as alone; by default it is taken from the steps and edges given.

    `steps` may be given as the StepWork of them, where the caller has it already: of the model's padding, and
    with the end of the step before in it.

    Raises ValueError where edges and joules do not fit each other or are not finite, or where the work is
    padded by another rule than the model's.
    """
    work = steps if isinstance(steps, StepWork) else model.work(steps, previous_end_ns)
    if work.padding != model.padding or work.experts != model.experts:
        raise ValueError("attribution: the steps are padded otherwise than the model, or have other experts")
    steps = work.batch
    edges = np.asarray(edges_ns, dtype=np.int64)
    measured = np.asarray(joules, dtype=np.float64)
    if edges.ndim != 1 or len(edges) != len(measured) + 1 or np.any(np.diff(edges) <= 0):
        raise ValueError("attribution: edges must increase and be one more than the joules")
    if not np.all(np.isfinite(measured)):
        raise ValueError("attribution: joules must be finite; leave a faulty interval out")
    requests = len(steps.request_ids)
    intervals = len(measured)
    row, column, overlap = overlaps(work.starts_ns, steps.end_ns, edges)
    if concurrency is None:
        covered = sum_by(row, overlap, len(steps))
        alone_seconds = covered * np.bincount(steps.step, minlength=len(steps)) * model.fixed_seconds
        concurrency = float(np.sum(alone_seconds)) / (float(edges[-1] - edges[0]) * 1e-9)
    tails = work.tail_seconds(int(edges[-1]))
    prefill, decode = entry_joules(work, model, groups=groups, concurrency=concurrency, tails=tails)
    if groups is not None and group_factors is not None:
        factors = np.asarray(group_factors, dtype=np.float64)[np.asarray(groups)[steps.request]]
        prefill, decode = prefill * factors, decode * factors
    entry_total = prefill + decode
    step_total = sum_by(steps.step, entry_total, len(steps))
    # The step's own energy decides how much of an interval is the step's, whatever factors shift inside it.
    predicted_step = model.step_joules(work.steps) + model.tail_watts * tails
    shrink = np.divide(predicted_step, step_total, out=np.zeros_like(step_total), where=step_total > 0)

    predicted = sum_by(column, predicted_step[row] * overlap * (step_total[row] > 0), intervals)
    usable = (predicted > 0) & (measured > 0)
    scale = np.full(intervals, np.nan)
    np.divide(measured, predicted, out=scale, where=usable)
    weight = sum_by(row, overlap * np.where(usable, scale, 0.0)[column], len(steps))
    factor = (shrink * weight)[steps.step]
    prefill_joules = sum_by(steps.request, prefill * factor, requests)
    decode_joules = sum_by(steps.request, decode * factor, requests)
    return Attribution(
        request_ids=steps.request_ids,
        prefill_joules=prefill_joules,
        decode_joules=decode_joules,
        uncertainty_joules=_uncertainty(work, model, tails, factor, prefill_joules + decode_joules),
        unattributed_joules=np.where(usable, 0.0, measured),
        scale=scale,
    )


def stall_share(concurrency: float) -> float:
    """The part of what a request lengthens a step by that it alone is charged, beyond an equal share.

    With P requests present in a step that one of them lengthens by s seconds, it is charged
    s (1/P + k (1 - 1/P)) and each of the others s (1 - k)/P. k is 1 when it is mostly alone (the others' work
    is put off into time that was idle) and falls as 1/A as the device fills (the others' work is put off into
    time that was busy anyway): k = (1 - e^-A (1 + A)) / (A - 1 + e^-A) for A requests present on average,
    from the Aumann-Shapley value of the busy time of a stream of independent requests
    (docs/explanation/attribution.md).
    """
    load = max(concurrency, 0.0)
    if load < 1e-3:
        return 1.0 - load / 3.0  # the series of the same function, which would divide 0 by 0
    left = math.exp(-load)
    return (1.0 - left * (1.0 + load)) / (load - 1.0 + left)


def entry_joules(
    work: StepWork,
    model: StepModel,
    *,
    groups: I32 | None = None,
    concurrency: float = 0.0,
    tails: F64 | None = None,
) -> tuple[F64, F64]:
    """Modelled (prefill, decode) joules above idle of each entry, (E,) each: its work's and its shares.

    A step's energy is the device's busy power (fixed_joules / fixed_seconds) for as long as the model says
    the step takes, plus what each entry's work costs above that. The second is charged to the entry. The
    first is the game of who kept the device busy: shared equally by those present, but for `stall_share` of
    what an entry made the step longer. What the step computes beyond its tokens (`model.padding`) and its
    tail (`tails`: its seconds, (S,), none by default) nobody's work sets alone: they are shared equally as
    well. The sum over a step's entries is the step's energy and that of its tail.
    """
    steps = work.batch
    prefill, decode = model.work_joules(work.entries)
    prefill_stall, decode_stall = _stall_joules(model, work, prefill, decode)
    k = stall_share(concurrency)
    stall = prefill_stall + decode_stall
    shared = model.fixed_joules + (1.0 - k) * sum_by(steps.step, stall, len(steps))
    if model.padding != NO_PADDING:
        shared = shared + model.prefill_token_joules * work.steps.prefill_padding
        shared = shared + model.decode_token_joules * work.steps.decode_padding
        shared = shared + model.expert_joules * work.steps.expert_padding
    if tails is not None:
        shared = shared + model.tail_watts * tails
    share = shared[steps.step] * (work.equal_share if groups is None else _group_share(steps, groups))
    tokens = steps.prefill_tokens + steps.decode_tokens
    in_prefill = np.divide(
        steps.prefill_tokens, tokens, out=np.zeros(len(tokens), dtype=np.float64), where=tokens > 0
    )
    return (
        prefill - (1.0 - k) * prefill_stall + share * in_prefill,
        decode - (1.0 - k) * decode_stall + share * (1.0 - in_prefill),
    )


def _stall_joules(model: StepModel, work: StepWork, prefill: F64, decode: F64) -> tuple[F64, F64]:
    """Busy power times the seconds that each entry makes its step longer, at most the joules of its work."""
    if model.fixed_seconds <= 0.0:
        return np.zeros(len(prefill)), np.zeros(len(decode))
    watts = model.fixed_joules / model.fixed_seconds
    prefill_seconds, decode_seconds = model.work_seconds(work.entries)
    return np.minimum(watts * prefill_seconds, prefill), np.minimum(watts * decode_seconds, decode)


def _group_share(steps: StepBatch, groups: I32) -> F64:
    """Share of an entry where groups are the players, (E,): 1 / groups in the step / requests of its own."""
    count = len(steps)
    group = np.asarray(groups, dtype=np.int64)[steps.request]
    width = int(group.max(initial=0)) + 1
    pair, inverse, members = np.unique(
        steps.step.astype(np.int64) * width + group, return_inverse=True, return_counts=True
    )
    present = np.bincount(pair // width, minlength=count)
    sharers: F64 = (members[inverse] * present[steps.step]).astype(np.float64)
    return 1.0 / sharers


def _uncertainty(work: StepWork, model: StepModel, tails: F64, factor: F64, joules: F64) -> F64:
    """One standard deviation of each request's joules, (R,): the model's residual and its parameters'."""
    residual = model.residual_fraction if model.residual_fraction is not None else UNKNOWN_RESIDUAL
    variance = (residual * joules) ** 2
    if model.covariance is not None:
        steps, entries, share = work.batch, work.entries, work.equal_share
        requests = len(steps.request_ids)
        columns = [
            share,
            entries.prefill_tokens,
            entries.decode_tokens,
            entries.decode_context_tokens,
            entries.attention_pairs,
            share * tails[steps.step],
        ]
        if model.experts is not None:
            columns.append(entries.experts)
        features = np.stack([sum_by(steps.request, column * factor, requests) for column in columns])
        covariance = np.asarray(model.covariance, dtype=np.float64)
        variance = variance + np.maximum(np.einsum("ir,ij,jr->r", features, covariance, features), 0.0)
    return np.sqrt(variance)
