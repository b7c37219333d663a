"""Confidence intervals for series that are correlated in time.

Requests that run together share batches, queues and bursts, so treating them as independent makes intervals
too narrow. Everything here is built on batch means (Schmeiser 1982; Law, Simulation Modeling and Analysis,
9.5): the series is cut into batches in time order, long enough that the batch means pass a test of
independence, and a Student interval is taken over the batch means. docs/statistics.md has the coverage
measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

F64 = npt.NDArray[np.float64]

_BATCH_COUNTS = (40, 32, 24, 20, 16, 12, 10, 8)
_MIN_VALUES = 8
_Z90 = 1.2815515655446004


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval and how it was obtained.

    `correlated`: even the longest batches were still correlated in time, so the interval is a lower limit
    of the true width. `standard_error` and `degrees` (of freedom) are what `minimum_detectable_difference`
    needs.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees: int
    batches: int
    correlated: bool
    confidence: float = 0.95

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def pair(self) -> tuple[float, float]:
        return (self.low, self.high)

    def minimum_detectable_difference(self, *, power: float = 0.8, paired: bool = False) -> float:
        """The smallest true change that a comparison would find with probability `power` at this confidence.

        (t_{1-alpha/2} + t_{power}) x SE, times sqrt(2) where the other run adds as much noise of its own
        (`paired` False). In the unit of the estimate.
        """
        t = stats.t.ppf((1 + self.confidence) / 2, self.degrees) + stats.t.ppf(power, self.degrees)
        return float(t * self.standard_error * (1.0 if paired else math.sqrt(2)))


def mean_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval | None:
    """Interval of the mean of `values`, shape (N,), in time order.

    None where N < 8: too few to say anything.
    """
    series = np.asarray(values, np.float64)
    return ratio_interval(series, np.ones_like(series), confidence=confidence)


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval | None:
    """Interval of sum(numerators) / sum(denominators), both of shape (N,) in time order.

    The delta method on batch sums (Law, 9.5.3): with R the ratio, the residuals z = numerator - R x
    denominator have mean 0, and Var(R) = Var(mean z) / (mean denominator)^2. None where N < 8 or the
    denominators sum to 0.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"two series of one length are needed, not {top.shape} and {bottom.shape}")
    if len(top) < _MIN_VALUES or bottom.sum() == 0:
        return None
    ratio = float(top.sum() / bottom.sum())
    return interval_of(ratio, influence(top, bottom), confidence=confidence)


def influence(numerators: F64, denominators: F64) -> F64:
    """What each place of the series, shape (N,), adds to the error of the ratio of the sums:

    z / mean denominator.
    """
    ratio = numerators.sum() / denominators.sum()
    result: F64 = (numerators - ratio * denominators) / abs(denominators.mean())
    return result


def interval_of(estimate: float, residuals: F64, *, confidence: float = 0.95) -> Interval:
    """The interval of an estimate whose error is the mean of `residuals`, shape (N,), in time order."""
    error, batches, correlated = _standard_error(residuals)
    half = float(stats.t.ppf((1 + confidence) / 2, batches - 1)) * error
    low, high = estimate - half, estimate + half
    return Interval(estimate, low, high, error, batches - 1, batches, correlated, confidence)


def paired_quantile_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, q: float, *, confidence: float = 0.95
) -> Interval | None:
    """second's `q` quantile minus first's, for two series of one shape (N,) whose places belong together.

    Sectioning as in `quantile_interval`, on the difference of the two quantiles of each batch.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    needed = 3 / max(min(q, 1 - q), 1e-9)
    usable = [n for n in _BATCH_COUNTS if len(a) // n >= needed]
    if not usable:
        return None
    batches = usable[len(usable) // 2]
    size = len(a) // batches
    whole = float(np.quantile(b, q) - np.quantile(a, q))
    parts = [np.quantile(values[: batches * size].reshape(batches, size), q, axis=1) for values in (a, b)]
    error = float(np.sqrt(((parts[1] - parts[0] - whole) ** 2).sum() / (batches - 1) / batches))
    half = float(stats.t.ppf((1 + confidence) / 2, batches - 1)) * error
    return Interval(whole, whole - half, whole + half, error, batches - 1, batches, False, confidence)


def quantile_interval(values: npt.ArrayLike, q: float, *, confidence: float = 0.95) -> Interval | None:
    """Interval of the `q` quantile of `values`, shape (N,), in time order, by batch quantiles (sectioning).

    The quantile is taken in each batch; the spread of those around the quantile of the whole gives the
    interval (Asmussen and Glynn, Stochastic Simulation, III.5a). None where a batch would have under 3
    values beyond the quantile, since its own quantile would then mean nothing.
    """
    series = np.asarray(values, np.float64)
    needed = 3 / max(min(q, 1 - q), 1e-9)
    usable = [b for b in _BATCH_COUNTS if len(series) // b >= needed]
    if not usable:
        return None
    whole = float(np.quantile(series, q))
    batches = usable[len(usable) // 2]
    size = len(series) // batches
    inside = np.quantile(series[: batches * size].reshape(batches, size), q, axis=1)
    error = float(np.sqrt(((inside - whole) ** 2).sum() / (batches - 1) / batches))
    half = float(stats.t.ppf((1 + confidence) / 2, batches - 1)) * error
    return Interval(whole, whole - half, whole + half, error, batches - 1, batches, False, confidence)


def difference_interval(first: Interval, second: Interval) -> Interval:
    """second - first for independent runs: Welch's interval, degrees of freedom by Welch-Satterthwaite."""
    a, b = first.standard_error**2, second.standard_error**2
    error = math.sqrt(a + b)
    degrees = first.degrees
    if error > 0:
        degrees = max(1, int((a + b) ** 2 / (a**2 / first.degrees + b**2 / second.degrees)))
    half = float(stats.t.ppf((1 + first.confidence) / 2, degrees)) * error
    change = second.estimate - first.estimate
    return Interval(
        change,
        change - half,
        change + half,
        error,
        degrees,
        min(first.batches, second.batches),
        first.correlated or second.correlated,
        first.confidence,
    )


def lag1(values: F64) -> float:
    """Autocorrelation at lag 1 of `values`, shape (N,); 0 where they are all equal."""
    centred = values - values.mean()
    spread = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum() / spread) if spread > 0 else 0.0


def _standard_error(residuals: F64) -> tuple[float, int, bool]:
    """Standard error of the mean of `residuals`, the number of batches used, and whether they were
    correlated.

    The most batches whose means pass a one-sided test of lag-1 correlation at 10 % (von Neumann's, normal
    approximation) are taken; what correlation is left is corrected for as in an AR(1) series, which keeps
    coverage where the series is too short for longer batches.
    """
    count = len(residuals)
    usable = [b for b in _BATCH_COUNTS if count // b >= 2] or [count if count < 2 * _MIN_VALUES else 8]
    correlated = True
    for batches in usable:
        size = count // batches
        means = residuals[count - batches * size :].reshape(batches, size).mean(axis=1)
        spread = math.sqrt((batches - 2) / (batches**2 - 1))
        left = lag1(means) + 1 / batches
        if left <= _Z90 * spread:
            correlated = False
            break
    left = min(max(left, 0.0), 0.9)
    inflation = (1 + left) / (1 - left)
    # Scaled from the batches' span to the whole series, a few values of which may lie before the first batch.
    variance = float(means.var(ddof=1)) * inflation / batches * (batches * size / count)
    return math.sqrt(variance), batches, correlated
