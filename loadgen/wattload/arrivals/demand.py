"""What --rate, --duration and --requests ask for, checked."""

from __future__ import annotations

import math

from wattload.arrivals.process import Demand, limited, number
from wattload.errors import InputError


def demand_of(rate: float | str | None, duration: float | None, requests: int | None) -> Demand:
    """The demand of three flags, any of them None. Raises InputError naming the flag."""
    rate_rps, speed = parse_rate(rate)
    if duration is not None and (not math.isfinite(duration) or duration <= 0):
        raise InputError("duration", f"{duration} must be a finite number of seconds above 0")
    if requests is not None and requests < 1:
        raise InputError("requests", f"{requests} must be at least 1")
    if requests is not None:
        limited(requests, "requests")
    return Demand(rate_rps, speed, duration, requests)


def parse_rate(rate: float | str | None) -> tuple[float | None, float]:
    """(requests a second or None, speed) of `5`, `"5"` or `"3x"`. Raises InputError."""
    if rate is None:
        return None, 1.0
    text = str(rate).strip()
    if text.endswith("x"):
        return None, number(text[:-1], "rate")
    return number(text, "rate"), 1.0
