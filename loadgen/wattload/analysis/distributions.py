"""A quantity over many requests, or sessions: mean, quantiles, maximum, and their intervals."""

from __future__ import annotations

import numpy as np

from wattload.analysis.statistics import mean_interval, quantile, quantile_interval
from wattload.rundir.requests import F64
from wattload.rundir.result import Distribution

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))


def distribution(values: F64) -> Distribution | None:
    """Mean, quantiles, maximum and their intervals of `values` in time order; NaN are left out.

    None for none.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    interval = mean_interval(known)
    spread = {name: quantile_interval(known, q) for name, q in _QUANTILES}
    return Distribution(
        mean=float(known.mean()),
        max=float(known.max()),
        n=len(known),
        ci95=interval.pair if interval is not None else None,
        quantile_ci95={name: value.pair for name, value in spread.items() if value is not None},
        **{name: quantile(known, q) for name, q in _QUANTILES},
    )
