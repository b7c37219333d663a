"""The binning model of arXiv 2504.17674: a workload's energy from a small grid of measured shapes, offline.

    E = sum over bins of N(I, O) / B(I, O) x E_batch(I, O, B)

Lengths are rounded up to powers of two; B is the largest batch measured for the bin. The model knows neither
arrival rate nor idle time between requests: it takes all requests for queued from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from wattload.estimates.calibration_file import Profile, ShapeCost, workload_bins
from wattload.estimates.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class Binned:
    """`joules` of the whole workload.

    `filled_in`: the share of requests whose bin was not measured, so that the step model of the profile
    stands in.
    """

    joules: float
    bins: int
    filled_in: float


def binned_joules(profile: Profile, cost: StepCost, prompt: npt.ArrayLike, output: npt.ArrayLike) -> Binned:
    """The estimate for requests of the given lengths, shape (N,)."""
    measured: dict[tuple[int, int], ShapeCost] = {}
    for shape in sorted(profile.shapes, key=lambda s: s.batch):
        measured[(shape.prompt_tokens, shape.output_tokens)] = shape
    most = max(shape.batch for shape in profile.shapes)
    total, missing, requests = 0.0, 0, 0
    bins = workload_bins(prompt, output)
    for (i, o), count in bins.items():
        requests += count
        if (i, o) in measured:
            shape = measured[(i, o)]
            total += count / shape.batch * profile.batch_joules(shape)
            continue
        missing += count
        seconds, joules = cost.batch(i, o, most, profile.max_batched_tokens)
        total += count / most * (joules + profile.idle_watts * seconds)
    return Binned(total, len(bins), missing / max(requests, 1))
