"""Independent gaps: Poisson, and gamma for more or less burstiness than that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows, limited
from wattload.errors import InputError

MIN_CV, MAX_CV = 0.001, 30.0


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps ~ Gamma(k, 1 / (k R)), k = 1 / cv^2: mean 1 / R, coefficient of variation cv.

    cv = 1 is the Poisson process, cv > 1 comes in bursts, cv < 1 is more regular. With a duration D, requests
    are due as long as the gaps' sum is below D, so that their number varies from seed to seed as the process
    says; with a number of requests there are exactly that many.
    """

    cv: float = 1.0
    concurrency: int = 0
    text: str = "poisson"

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        rate = demand.rate(self.text)
        end = demand.duration_seconds
        if demand.requests is None and end is not None:
            return unit_times(end * rate, self.cv, rng) / rate
        due = np.cumsum(self.gaps(demand.count(self.text, rows.limit), rng)) / rate
        return due if end is None else due[due < end]

    def gaps(self, count: int, rng: np.random.Generator) -> F64:
        """`count` gaps of mean 1."""
        shape = 1.0 / self.cv**2
        return rng.gamma(shape, 1.0 / shape, count)


def unit_times(end: float, cv: float, rng: np.random.Generator) -> F64:
    """Times of a renewal process of rate 1 in [0, end)."""
    limited(end, "rate", "times `duration`")
    process = Gamma(cv)
    batch = int(end + 4 * (1 + cv) * math.sqrt(end) + 16)
    parts = [np.cumsum(process.gaps(batch, rng))]
    while parts[-1][-1] < end:
        parts.append(parts[-1][-1] + np.cumsum(process.gaps(batch, rng)))
    times = np.concatenate(parts)
    return times[times < end]


def parse_poisson(parameters: Parameters) -> Gamma:
    return Gamma()


def parse_gamma(parameters: Parameters) -> Gamma:
    cv = burstiness(parameters.number("cv"), "gamma")
    return Gamma(cv, text=f"gamma:cv={cv:g}")


def burstiness(cv: float, process: str) -> float:
    """A coefficient of variation that floating point can draw: with a far larger one nearly all gaps are 0.

    Raises InputError naming the process.
    """
    if not (cv == 0 or MIN_CV <= cv <= MAX_CV):
        raise InputError("arrivals", f"{process}: cv {cv:g} must be from {MIN_CV:g} to {MAX_CV:g}")
    return cv
