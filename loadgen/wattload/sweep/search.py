"""Runs at several rates: which are made, what each point says, and the search for the best rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattload.errors import InputError
from wattload.rundir.numbers import headline, number_of
from wattload.rundir.result import RunJson

MAX_RATES = 100
GOALS = ("rate", "energy")
_REFINED = 1.08


# The fields of a point that are numbers of run.json.
POINT_NUMBERS = {
    "completed": "requests.completed_in_window",
    "achieved_rps": "load.achieved_rps",
    "met_fraction": "slo.met_fraction",
    "goodput_rps": "slo.goodput_rps",
    "joules_per_request": "energy.per_request_joules.mean",
    "joules_per_good_request": "slo.joules_per_good_request",
    "joules_per_output_token": "energy.per_output_token_joules",
    "mean_watts": "energy.mean_watts",
    "ttft_p50_seconds": "latency.ttft_seconds.p50",
    "ttft_p99_seconds": "latency.ttft_seconds.p99",
    "tpot_p50_seconds": "latency.tpot_seconds.p50",
    "tpot_p99_seconds": "latency.tpot_seconds.p99",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One rate of a sweep. None: not measured."""

    rate_rps: float
    directory: Path
    valid: bool
    reasons: tuple[str, ...]
    completed: float | None
    achieved_rps: float | None
    met_fraction: float | None
    goodput_rps: float | None
    joules_per_request: float | None
    joules_per_request_ci95: tuple[float, float] | None
    joules_per_good_request: float | None
    joules_per_output_token: float | None
    mean_watts: float | None
    ttft_p50_seconds: float | None
    ttft_p99_seconds: float | None
    tpot_p50_seconds: float | None
    tpot_p99_seconds: float | None
    modelled: bool
    steady: bool = True

    @property
    def cost(self) -> float:
        """Joules per SLO-compliant request; infinite where there is none."""
        value = self.joules_per_good_request
        return value if value is not None and self.valid else math.inf

    def within(self, share: float) -> bool:
        """Whether `share` of the requests met the limits in a valid run."""
        return self.valid and self.met_fraction is not None and self.met_fraction >= share


def point_of(rate: float, directory: Path, run: RunJson) -> Point:
    """What a finished run says about its rate."""
    return Point(
        rate_rps=rate,
        directory=directory,
        valid=run.valid,
        reasons=tuple(run.reasons),
        joules_per_request_ci95=number_of(POINT_NUMBERS["joules_per_request"]).interval_of(run),
        modelled=run.energy.simulated,
        steady=headline(run).path == POINT_NUMBERS["joules_per_request"],
        **{name: number_of(path).of(run) for name, path in POINT_NUMBERS.items()},
    )


def parse_rates(text: str) -> list[float]:
    """`1,2,4` or `1..32x2` (from 1 to 32, each twice the one before). Raises InputError naming --rates."""
    wrong = InputError(f"--rates {text}: write 1,2,4 or 1..32x2, with rates above 0")
    try:
        if ".." in text:
            low_text, _, rest = text.partition("..")
            high_text, x, factor_text = rest.partition("x")
            low, high, factor = float(low_text), float(high_text), float(factor_text) if x else 2.0
            if not (0 < low <= high < math.inf and 1 < factor < math.inf):
                raise wrong
            count = math.floor(math.log(high / low) / math.log(factor) + 1e-9) + 1
            if count > MAX_RATES:
                raise InputError(f"--rates {text}: {count} rates; at most {MAX_RATES}")
            return [low * factor**i for i in range(count)]
        rates = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise error if error is wrong else wrong from error
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise wrong
    if len(rates) > MAX_RATES:
        raise InputError(f"--rates {text}: {len(rates)} rates; at most {MAX_RATES}")
    return rates


Measure = Callable[[float], Point]


def search_rate(measure: Measure, start: float, share: float, most: int) -> list[Point]:
    """Doubles from `start` until the limits are missed, then halves the gap (in ratio) down to 8 %."""
    points: list[Point] = []
    good, bad, rate = 0.0, math.inf, start
    while len(points) < most:
        point = measure(rate)
        points.append(point)
        if point.within(share):
            good = rate
        else:
            bad = rate
        if math.isinf(bad):
            rate = good * 2
        elif good == 0.0:
            rate = bad / 2
            if rate < start / 64:
                break
        elif bad / good <= _REFINED:
            break
        else:
            rate = math.sqrt(good * bad)
    return points


def search_energy(measure: Measure, start: float, share: float, most: int) -> list[Point]:
    """Doubles from `start` until the limits are missed, then narrows in around the least joules a good
    request.
    """
    points: list[Point] = []
    rate = start
    while len(points) < most:
        points.append(measure(rate))
        if not points[-1].within(share):
            break
        rate *= 2
    while len(points) < most:
        ordered = sorted(points, key=lambda point: point.rate_rps)
        best = min(range(len(ordered)), key=lambda i: ordered[i].cost)
        gaps = [(i, i + 1) for i in (best - 1, best) if 0 <= i < len(ordered) - 1]
        wide = [g for g in gaps if ordered[g[1]].rate_rps / ordered[g[0]].rate_rps > _REFINED**2]
        if not wide or math.isinf(ordered[best].cost):
            break
        left, right = max(wide, key=lambda g: ordered[g[1]].rate_rps / ordered[g[0]].rate_rps)
        points.append(measure(math.sqrt(ordered[left].rate_rps * ordered[right].rate_rps)))
    return points


def best_point(points: Sequence[Point], goal: str | None, share: float) -> Point | None:
    """The highest rate within the limits, or the one of least energy per SLO-compliant request.

    None where no rate is within them.
    """
    if goal == "energy":
        good = [point for point in points if math.isfinite(point.cost)]
        return min(good, key=lambda point: point.cost, default=None)
    good = [point for point in points if point.within(share)]
    return max(good, key=lambda point: point.rate_rps, default=None)


def stopped_by(points: Sequence[Point], best: Point) -> Point | None:
    """The next rate above the best, where it failed for not being valid and not for what the limits ask."""
    above = [point for point in points if point.rate_rps > best.rate_rps]
    following = min(above, key=lambda point: point.rate_rps, default=None)
    return following if following is not None and not following.valid else None
