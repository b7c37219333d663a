"""A quantity over many requests, or sessions: mean, quantiles, maximum, and their intervals."""

from __future__ import annotations

import numpy as np

from wattload.analysis.statistics import mean_interval, quantile, quantile_interval
from wattload.rundir.requests import F64
from wattload.rundir.result import Distribution

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))


def distribution(values: F64, in_flight: F64 | None = None) -> Distribution | None:
    """Mean, quantiles, maximum and their intervals of `values`, shape (N,), in time order; NaN are left out.

    `in_flight`, shape (N,), are the requests in flight with each, where the values are latencies. None for
    none.
    """
    there = ~np.isnan(values)
    known = values[there]
    if not len(known):
        return None
    load = in_flight[there] if in_flight is not None else None
    interval = mean_interval(known, load)
    spread = {name: quantile_interval(known, q, load) for name, q in _QUANTILES}
    return Distribution(
        mean=float(known.mean()),
        max=float(known.max()),
        n=len(known),
        ci95=interval.pair if interval is not None else None,
        quantile_ci95={name: value.pair for name, value in spread.items() if value is not None},
        **{name: quantile(known, q) for name, q in _QUANTILES},
    )
