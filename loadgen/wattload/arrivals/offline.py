"""Everything at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows
from wattload.errors import InputError


@dataclass(frozen=True, slots=True)
class Offline:
    """Every request is due at 0: how fast, and with how much energy, a server works off a batch."""

    text: str = "offline"
    concurrency: int = 0

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        if demand.rate_rps is not None or demand.speed != 1.0:
            raise InputError("rate", "does not go with `arrivals` offline: everything is due at once")
        count = demand.requests or rows.limit
        if count is None:
            raise InputError("arrivals", "offline needs `requests`: the workload has no end")
        return np.zeros(count)


def parse(parameters: Parameters) -> Offline:
    return Offline()
