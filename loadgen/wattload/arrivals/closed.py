"""A closed loop: so many users, each of whom waits for an answer before asking again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows
from wattload.errors import InputError


@dataclass(frozen=True, slots=True)
class Closed:
    """Request i is due when one of `concurrency` slots is free, so its due time is not known before: NaN.

    The rate then is what the server makes of it (Little's law: concurrency = rate x latency), latency counts
    from the sending, and a run is marked as closed: the two kinds of latency are not to be compared.
    """

    concurrency: int
    text: str

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        if demand.rate_rps is not None or demand.speed != 1.0:
            raise InputError(
                "rate", "does not go with `arrivals` closed: the server decides the rate of a closed loop"
            )
        count = demand.requests
        if count is None:
            # A duration does not say how many: as many as the trace holds, or more than any server answers.
            if rows.limit is not None:
                count = rows.limit
            elif demand.duration_seconds is not None:
                most = int(MAX_RPS_PER_SLOT * self.concurrency * demand.duration_seconds)
                count = min(max(self.concurrency, most), MAX_REQUESTS)
            else:
                raise InputError(
                    "arrivals", "closed needs `requests` or `duration` with a trace that has no end"
                )
        return np.full(count, np.nan)


# Requests a slot can be answered in a second at most, and all together, that are planned for a duration.
MAX_RPS_PER_SLOT = 10.0
MAX_REQUESTS = 1_000_000


def parse(parameters: Parameters) -> Closed:
    value = parameters.number("concurrency")
    if value != int(value) or value > 100_000:
        raise InputError("arrivals", f"closed: concurrency {value:g} must be a whole number up to 100000")
    return Closed(int(value), f"closed:concurrency={int(value)}")
