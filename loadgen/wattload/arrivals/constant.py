"""Equal gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows


@dataclass(frozen=True, slots=True)
class Constant:
    """Request i is due at i / R."""

    concurrency: int = 0
    text: str = "constant"

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        rate = demand.rate("constant")
        return demand.within(np.arange(demand.count("constant", rows.limit), dtype=np.float64) / rate)


def parse(parameters: Parameters) -> Constant:
    return Constant()
