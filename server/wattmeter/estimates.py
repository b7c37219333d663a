"""What requests have used since the last settled second, by the step model alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wattmeter.attribution import attribute
from wattmeter.requests import Estimate
from wattmeter.stepmodel import StepEnergyModel, step_work
from wattmeter.steps import StepBatch


def estimate(
    steps: StepBatch,
    model: StepEnergyModel,
    scale: float | None,
    *,
    from_ns: int | None = None,
    previous_end_ns: int | None = None,
) -> Estimate:
    """The model's estimate of what steps that the meter has not settled cost their requests.

    `scale` is what the counter gained of late for each joule of the model's, where that is known.
    """
    start = int(steps.launch_ns[0]) if from_ns is None else from_ns
    end = int(steps.end_ns[-1])
    if end <= start:
        nothing = np.zeros(len(steps.request_ids))
        return Estimate(steps.request_ids, nothing, nothing)
    joules = float(np.sum(model.step_joules(step_work(steps, model.padding)))) * (scale or 1.0)
    split = attribute(
        steps,
        np.array([start, end], dtype=np.int64),
        np.array([joules]),
        model,
        previous_end_ns=previous_end_ns,
    )
    return Estimate(steps.request_ids, split.prefill_joules, split.decode_joules)


def estimated_ends(
    steps: StepBatch, model: StepEnergyModel, scale: float | None
) -> Iterator[tuple[str, int, float, float]]:
    """Of each request: (id, end of its last step, estimated prefill joules, decode joules)."""
    if not len(steps):
        return iter(())
    last = np.zeros(len(steps.request_ids), dtype=np.int64)
    np.maximum.at(last, steps.request, steps.end_ns[steps.step])
    found = estimate(steps, model, scale)
    joules = found.prefill_joules.tolist(), found.decode_joules.tolist()
    return zip(steps.request_ids, last.tolist(), *joules, strict=True)
