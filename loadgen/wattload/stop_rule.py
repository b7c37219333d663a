"""When a run knows enough: `--until ci95<2%` ends it early."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wattload.errors import BadInput

_SHAPE = re.compile(r"^ci95\s*<\s*([0-9]*\.?[0-9]+)\s*%$")
_AT_LEAST_REQUESTS = 100
_AT_LEAST_SECONDS = 10.0
_EVERY_SECONDS = 5.0


@dataclass(slots=True)
class StopRule:
    """Met when half the 95 % interval of the mean joules a request is under `fraction` of the mean.

    The joules are the requests' own, as told in their answers. Looked at every 5 s and not before 100
    requests and 10 s, since looking again and again at little data finds a narrow interval by chance.
    """

    fraction: float
    _next_seconds: float = _AT_LEAST_SECONDS

    def met(self, joules: Sequence[float], seconds: float) -> bool:
        """`joules`: of the requests completed so far, in order; `seconds`: since the warm-up."""
        if seconds < self._next_seconds or len(joules) < _AT_LEAST_REQUESTS:
            return False
        self._next_seconds = seconds + _EVERY_SECONDS
        from wattload.statistics import mean_interval

        interval = mean_interval(joules)
        return (
            interval is not None
            and not interval.correlated
            and interval.half_width < self.fraction * abs(interval.estimate)
        )


def parse_until(text: str) -> StopRule:
    """Raises BadInput where it is no stop rule."""
    match = _SHAPE.match(text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise BadInput(f"--until {text}: write ci95<2%")
    # Imported before the load: SciPy takes half a second, in which no request could be sent.
    import wattload.statistics  # noqa: F401

    return StopRule(float(match[1]) / 100)
