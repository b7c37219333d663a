"""When a run knows enough: `--until ci95<2%` ends it early."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from wattload.errors import InputError

_SHAPE = re.compile(r"^ci95\s*<\s*([0-9]*\.?[0-9]+)\s*%$")
_AT_LEAST_REQUESTS = 100
_AT_LEAST_SECONDS = 10.0
_EVERY_SECONDS = 5.0


@dataclass(slots=True)
class StopRule:
    """Met when half the 95 % interval of the mean attributed energy per request is under `fraction` of the
    mean.

    The joules are those that responses carry. It is checked every 5 s, from 100 requests and 10 s on, since
    many looks at little data find a narrow interval by chance.
    """

    fraction: float
    text: str
    _next_seconds: float = _AT_LEAST_SECONDS

    def __post_init__(self) -> None:
        # With SciPy, which takes half a second to load: now, and not while requests are due.
        import_module("wattload.analysis.statistics")

    def met(self, joules: Sequence[float], seconds: float) -> bool:
        """`joules`: of the requests completed so far, in order; `seconds`: since the warm-up."""
        if seconds < self._next_seconds or len(joules) < _AT_LEAST_REQUESTS:
            return False
        self._next_seconds = seconds + _EVERY_SECONDS
        from wattload.analysis.statistics import mean_interval

        interval = mean_interval(joules)
        return interval is not None and interval.half_width < self.fraction * interval.estimate


def parse_until(text: str, *, field: str = "until") -> StopRule:
    """Raises InputError, naming `field`, where it is no stop rule."""
    match = _SHAPE.match(text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise InputError(field, f"{text}: write ci95<2%")
    return StopRule(float(match[1]) / 100, text.strip())
