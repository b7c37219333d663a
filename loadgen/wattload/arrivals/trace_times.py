"""The trace's own times, stretched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows
from wattload.errors import InputError


@dataclass(frozen=True, slots=True)
class TraceTimes:
    """Row i is due at t_i * s: time is stretched by s, no row is dropped and none is moved against another.

    Without a rate s = 1 / speed, and all rows before duration * speed are used. With a rate R over a duration
    D the first n = round(R D) rows are used and s = D / t_n, t_n being the time of the first row that is not
    used (or of the last one plus a mean gap): n requests in D seconds is a mean rate of n / D = R. With a
    number of requests n and a rate, s = (n / R) / t_n.
    """

    concurrency: int = 0
    text: str = "trace"

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        if not rows.timed:
            raise InputError(
                "arrivals",
                "trace: the trace has no times; choose another process, as `arrivals` poisson, or"
                " `concurrency`",
            )
        if demand.rate_rps is None:
            return self._own(demand, rows)
        count = demand.count("trace") if demand.duration_seconds or demand.requests else rows.limit
        if count is None:
            raise InputError(
                "arrivals", "trace: an embedded workload has no end, so `duration` or `requests` is needed"
            )
        count = count if rows.limit is None else min(count, rows.limit)
        known = rows.first(count + 1)
        span = known[count] if len(known) > count else known[-1] + rows.mean_gap_seconds
        if span <= 0:
            raise InputError(
                "rate",
                f"{demand.rate_rps:g}: the first {count} rows of the trace have the same time, so no "
                "stretching gives them a rate; choose another process, as `arrivals` poisson",
            )
        stretch: float = count / demand.rate_rps / float(span)
        return demand.within(known[:count] * stretch)

    def _own(self, demand: Demand, rows: Rows) -> F64:
        if demand.requests is not None:
            due = rows.first(demand.requests) / demand.speed
            return due if demand.duration_seconds is None else due[due < demand.duration_seconds]
        if demand.duration_seconds is not None:
            return rows.until(demand.duration_seconds * demand.speed) / demand.speed
        if rows.limit is None:
            raise InputError(
                "trace", ": an embedded workload has no end, so `duration` or `requests` is needed"
            )
        return rows.first(rows.limit) / demand.speed


def parse(parameters: Parameters) -> TraceTimes:
    return TraceTimes()
