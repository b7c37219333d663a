"""Latency limits: parsing `--slo ttft=500ms,tpot=50ms`, and which requests met them."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from wattload.errors import BadInput
from wattload.runjson import SloLimits

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_TERM = re.compile(
    r"^(ttft|tpot|e2e)\s*=\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(us|ms|s|min)$", re.IGNORECASE
)


def parse_slo(text: str) -> SloLimits:
    """`ttft=500ms,tpot=50ms,e2e=10s`, any of the three. Raises BadInput naming the term that is wrong."""
    limits: dict[str, float] = {}
    for term in text.split(","):
        match = _TERM.match(term.strip())
        if match is None:
            raise BadInput(f"--slo {text!r}: {term.strip()!r} is not like ttft=500ms, tpot=50ms or e2e=10s")
        name = match[1].lower() + "_seconds"
        if name in limits:
            raise BadInput(f"--slo {text!r}: {match[1]} is given twice")
        limits[name] = float(match[2]) * _UNITS[match[3].lower()]
        if not 0 < limits[name] < math.inf:
            raise BadInput(f"--slo {text!r}: {match[1]} must be above 0 and finite")
    return SloLimits(**limits)


def met(
    limits: SloLimits,
    *,
    completed: npt.NDArray[np.bool_],
    ttft_seconds: npt.NDArray[np.float64],
    tpot_seconds: npt.NDArray[np.float64],
    e2e_seconds: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Which requests met all limits, shape (N,). One that failed met none; one token has no TPOT to miss."""
    good = completed.copy()
    if limits.ttft_seconds is not None:
        good &= ttft_seconds <= limits.ttft_seconds
    if limits.tpot_seconds is not None:
        good &= np.isnan(tpot_seconds) | (tpot_seconds <= limits.tpot_seconds)
    if limits.e2e_seconds is not None:
        good &= e2e_seconds <= limits.e2e_seconds
    return good
