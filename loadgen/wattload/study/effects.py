"""What an arm changes: estimates over repeats, ratios to a baseline, and how sure they are.

Energy and latency are positive and their errors are relative, so everything is on logarithms: a ratio of 0.8
is a saving of 20 %, and an estimate is the geometric mean of its repeats.

A repeat is a block in the statistician's sense: all arms get the same requests at the same times, so what a
draw of requests costs more or less is common to them. log y = treatment + repeat + error, fitted by least
squares over the cells of a point; the error's variance is that of all treatments of the point. Where that
leaves fewer than two degrees of freedom (one repeat; two of two arms), the two runs are compared request by
request instead, or by their own intervals where they are not paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

_LEAST_DEGREES = 2
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Observation:
    """One run's figure with the run's own 95 % interval, None where it has none."""

    value: float
    interval: tuple[float, float] | None = None

    @property
    def log_error(self) -> float | None:
        """The standard error of the logarithm, from the run's own interval."""
        if self.interval is None or self.value <= 0:
            return None
        return log_error(self.interval, self.value)


def log_error(interval: tuple[float, float], value: float) -> float:
    """The standard error of the logarithm of `value` that a 95 % interval of it stands for."""
    low, high = interval
    return math.log(high / low) / 2 / _Z95 if low > 0 else (high - low) / 2 / _Z95 / value


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of an arm at a point over its repeats. `low` and `high` are None where nothing says them."""

    value: float
    low: float | None
    high: float | None
    repeats: int
    method: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "repeats": self.repeats,
            "method": self.method,
        }


@dataclass(frozen=True, slots=True)
class Effect:
    """The ratio of two treatments at a point.

    `p` is that of no difference, `p_adjusted` after Holm's correction for `comparisons` of them; `low` and
    `high` are the 95 % interval of this ratio alone. All are None where nothing says them.
    """

    ratio: float
    low: float | None
    high: float | None
    p: float | None
    repeats: int
    method: str
    p_adjusted: float | None = None
    comparisons: int = 1

    @property
    def saving(self) -> float:
        return 1 - self.ratio

    @property
    def significant(self) -> bool | None:
        """At 5 % after the correction; None where that cannot be said."""
        return None if self.p_adjusted is None else self.p_adjusted < 0.05

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "saving": self.saving,
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "comparisons": self.comparisons,
            "significant": self.significant,
            "repeats": self.repeats,
            "method": self.method,
        }


def estimate(observations: Sequence[Observation]) -> Estimate | None:
    """The geometric mean with a 95 % interval: over three repeats or more, else from the runs' own."""
    known = [each for each in observations if each.value > 0]
    if not known:
        return None
    logs = np.log([each.value for each in known])
    middle, count = float(logs.mean()), len(known)
    if count > _LEAST_DEGREES:
        error = float(logs.std(ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * error
        return Estimate(
            math.exp(middle), math.exp(middle - half), math.exp(middle + half), count, "over repeats"
        )
    own = _own_error([known])
    if own is None:
        return Estimate(math.exp(middle), None, None, count, "no interval")
    half = _Z95 * own
    method = "of one run" if count == 1 else f"of {count} runs' own intervals"
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), count, method)


def effect(
    cells: Mapping[str, Mapping[int, Observation]],
    treatment: str,
    against: str,
    paired: Callable[[int], tuple[float, float] | None] = lambda _repeat: None,
) -> Effect | None:
    """The ratio of `treatment` to `against`; `cells` are those of one point, by treatment and repeat.

    `paired` gives the interval of the ratio in a repeat by its requests, where the two had the same ones.
    None where the two share no repeat.
    """
    positive = {
        name: {repeat: each for repeat, each in values.items() if each.value > 0}
        for name, values in cells.items()
    }
    shared = sorted(positive.get(treatment, {}).keys() & positive.get(against, {}).keys())
    if not shared:
        return None
    fitted = _fitted(positive, treatment, against)
    if fitted is not None:
        change, error, degrees = fitted
        method = f"over {len(shared)} repeats, {degrees} degrees of freedom"
        return _effect(change, error, float(degrees), len(shared), method)
    pairs = [(positive[treatment][repeat], positive[against][repeat]) for repeat in shared]
    change = float(np.mean([math.log(a.value / b.value) for a, b in pairs]))
    by_request = [paired(repeat) for repeat in shared]
    known = [
        log_error(interval, a.value / b.value)
        for interval, (a, b) in zip(by_request, pairs, strict=True)
        if interval is not None
    ]
    if len(known) == len(shared):
        error = math.sqrt(sum(each**2 for each in known)) / len(known)
        return _effect(change, error, math.inf, len(shared), f"request by request, {_runs(len(shared))}")
    own = _own_error([[a for a, _ in pairs], [b for _, b in pairs]])
    if own is None:
        return Effect(math.exp(change), None, None, None, len(shared), "no interval")
    return _effect(change, own, math.inf, len(shared), f"the runs' own intervals, {_runs(len(shared))}")


def _runs(count: int) -> str:
    return "one run each" if count == 1 else f"{count} runs each"


def _effect(change: float, error: float, degrees: float, repeats: int, method: str) -> Effect:
    law = stats.norm() if math.isinf(degrees) else stats.t(degrees)
    half = float(law.ppf(0.975)) * error
    p = float(2 * law.sf(abs(change) / error)) if error > 0 else (1.0 if change == 0 else 0.0)
    return Effect(math.exp(change), math.exp(change - half), math.exp(change + half), p, repeats, method, p)


def _own_error(groups: Sequence[Sequence[Observation]]) -> float | None:
    """The standard error of the difference (or of the mean) of groups' mean logarithms, by the runs' own."""
    variance = 0.0
    for group in groups:
        errors = [each.log_error for each in group]
        if any(error is None for error in errors):
            return None
        variance += sum(error**2 for error in errors if error is not None) / len(group) ** 2
    return math.sqrt(variance)


def _fitted(
    cells: Mapping[str, Mapping[int, Observation]], treatment: str, against: str
) -> tuple[float, float, int] | None:
    """Change of the logarithm, its standard error and degrees of freedom; None for too few cells."""
    rows = [(name, repeat, math.log(o.value)) for name, by in cells.items() for repeat, o in by.items()]
    names, repeats = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    design = np.zeros((len(rows), len(names) + len(repeats)))
    for place, (name, repeat, _) in enumerate(rows):
        design[place, names.index(name)] = 1.0
        design[place, len(names) + repeats.index(repeat)] = 1.0
    wanted = np.zeros(design.shape[1])
    wanted[names.index(treatment)], wanted[names.index(against)] = 1.0, -1.0
    inverse = np.linalg.pinv(design)
    # A contrast that the cells do not fix (no repeat connects the two) is not in the design's row space.
    if not np.allclose(wanted @ inverse @ design, wanted, atol=1e-8):
        return None
    values = np.array([row[2] for row in rows])
    degrees = len(rows) - int(np.linalg.matrix_rank(design))
    if degrees < _LEAST_DEGREES:
        return None
    coefficients = inverse @ values
    spread = float(((values - design @ coefficients) ** 2).sum()) / degrees
    weights = wanted @ inverse
    return float(wanted @ coefficients), math.sqrt(spread * float(weights @ weights)), degrees


def corrected(effects: Sequence[Effect | None]) -> list[Effect | None]:
    """The effects with Holm's step-down correction for as many comparisons as have a p-value (Holm 1979)."""
    known = sorted(
        ((e.p, place) for place, e in enumerate(effects) if e is not None and e.p is not None),
        key=lambda pair: pair[0],
    )
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return [
        None if e is None else replace(e, p_adjusted=adjusted.get(place), comparisons=max(1, len(known)))
        for place, e in enumerate(effects)
    ]
