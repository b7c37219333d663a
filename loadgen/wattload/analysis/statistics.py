"""Confidence intervals for positive quantities of series that are correlated in time.

Requests that run together share batches, queues and bursts, so intervals that take them for independent are
too narrow. Here the variance of a mean is estimated from the slow cosine waves of the series (the
equal-weighted cosine estimator of Lazarus, Lewis, Stock and Watson, 2018): each wave is one degree of freedom
of a Student interval, as one batch is with batch means, but with far less bias where batches are correlated.
Intervals are taken on the scale of the logarithm, where the quantities (joules, watts, seconds) cannot become
negative. Quantiles are inverted from the share of values below them (Woodruff, 1952), shares of requests by
Wilson's interval. Of latencies, what a slowly changing load adds beyond those waves is estimated from the
requests in flight. `benchmarks/interval_coverage.py` measures how often the truth lies inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

F64 = npt.NDArray[np.float64]

# Fewer values than this have no interval.
LEAST_VALUES = 30
# Fewer repeats of a run have none over them.
LEAST_REPEATS = 3
# A quantile with fewer values beyond it has none.
LEAST_BEYOND = 10
TOO_FEW = f"fewer than {LEAST_VALUES} values: too few for an interval"
_SECTIONS = 10
# Standard errors are larger by 1 + 4 / N: what the estimates of N values add, calibrated by the benchmark.
_SMALL_SAMPLE = 4.0
# A server's load keeps its level for this many latencies: 1 where the speed does not depend on the load, and
# more where requests that slow each other stay longer. Calibrated by the benchmark.
_LOAD_LATENCIES = 3.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate above 0 with its confidence interval.

    `relative_error` is the standard error of the estimate's logarithm, and `degrees` those of freedom with
    which it is known.
    """

    estimate: float
    low: float
    high: float
    relative_error: float
    degrees: float
    confidence: float = 0.95

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def pair(self) -> tuple[float, float]:
        return (self.low, self.high)

    def around(self, estimate: float) -> Interval:
        """The same relative interval about another estimate."""
        scale = estimate / self.estimate
        return replace(self, estimate=estimate, low=self.low * scale, high=self.high * scale)

    def minimum_detectable_fraction(self, *, power: float = 0.8, paired: bool = False) -> float:
        """The smallest true increase, as a fraction, that a comparison finds with probability `power`.

        exp((t_{1-alpha/2} + t_{power}) x error) - 1, the error times sqrt(2) where the other run adds as much
        noise of its own (`paired` False).
        """
        t = stats.t.ppf((1 + self.confidence) / 2, self.degrees) + stats.t.ppf(power, self.degrees)
        return math.expm1(float(t) * self.relative_error * (1.0 if paired else math.sqrt(2)))


def mean_interval(
    values: npt.ArrayLike, in_flight: F64 | None = None, *, confidence: float = 0.95
) -> Interval | None:
    """Interval of the mean of `values`, shape (N,), in time order.

    `in_flight`, shape (N,), allows for a load that changes slowly, as `slow_load_variance` says. None where N
    < 30, or where the mean is not above 0.
    """
    series = np.asarray(values, np.float64)
    ones = np.ones_like(series)
    if in_flight is None or len(series) < LEAST_VALUES or series.sum() <= 0:
        return ratio_interval(series, ones, confidence=confidence)
    more = slow_load_variance(series, in_flight)
    return interval_of(
        float(series.mean()), influence(series, ones), slow_variance=more, confidence=confidence
    )


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval | None:
    """Interval of sum(numerators) / sum(denominators), both of shape (N,) in time order.

    The delta method: the error of the ratio's logarithm is that of the mean of `influence`. None where N <
    30, or where the ratio is not above 0.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"two series of one length are needed, not {top.shape} and {bottom.shape}")
    if len(top) < LEAST_VALUES or bottom.sum() <= 0 or top.sum() <= 0:
        return None
    return interval_of(float(top.sum() / bottom.sum()), influence(top, bottom), confidence=confidence)


def influence(numerators: F64, denominators: F64) -> F64:
    """The influence of each value on the logarithm of the ratio of the sums, shape (N,); its mean is 0."""
    result: F64 = numerators / numerators.mean() - denominators / denominators.mean()
    return result


def interval_of(
    estimate: float, residuals: F64, *, slow_variance: float = 0.0, confidence: float = 0.95
) -> Interval:
    """The interval of an estimate whose logarithm errs by the mean of `residuals`, shape (N,), in time order.

    `slow_variance` is added to the variance of that mean. On the side of the residuals' long tail the
    interval is wider, by the second-order term of a Student statistic of skewed values (Hall, 1992), less
    what the logarithm makes good already.
    """
    count = len(residuals)
    variance, degrees = long_run_variance(residuals)
    shown = math.sqrt(variance / count) * (1 + _SMALL_SAMPLE / count)
    # Both come from the same waves, so that the sum is known no better than either.
    error = math.hypot(shown, math.sqrt(slow_variance))
    t = _student(confidence, degrees)
    spread = math.sqrt(float((residuals**2).mean()))
    skewness = float((residuals**3).mean()) / spread**3 if spread > 0 else 0.0
    tail = abs(skewness)
    more = (max(0.0, tail / 3 - spread / 2) * t**2 + tail / 6) / math.sqrt(count)
    below, above = (0.0, more) if skewness > 0 else (more, 0.0)
    low = estimate * math.exp(-error * t - shown * below)
    high = estimate * math.exp(error * t + shown * above)
    return Interval(estimate, low, high, error, degrees, confidence)


def long_run_variance(residuals: F64) -> tuple[float, int]:
    """N times the variance of the mean of `residuals`, shape (N,), in time order; and its degrees of freedom.

    The mean square of the series' projections on its slowest cosine waves: those of 1/2, 1, 3/2, ... periods.
    They are all constant-free, so that the mean of the series does not matter.
    """
    projected = _projected(residuals)
    return float((projected**2).mean() * 2 / len(residuals)), len(projected)


def _projected(series: F64) -> F64:
    """The projections of a series of shape (N,) on its slowest cosine waves, shape (waves,)."""
    count = len(series)
    at = (np.arange(count) + 0.5) / count
    projected: F64 = np.cos(np.pi * np.outer(np.arange(1, _waves(count) + 1), at)) @ series
    return projected


def slow_load_variance(values: F64, in_flight: F64) -> float:
    """What load that changes more slowly than the waves show adds to the variance of the mean's logarithm.

    `values`, shape (N,), in time order, are latencies, and `in_flight`, shape (N,), the requests that were in
    flight at the same time as each. The load's level comes and goes over a few latencies (N requests last N /
    in_flight of them), and pulls all values of a short window to one side: the waves, which lie within the
    window, show little of that. So the part of each wave that follows the load is taken at its value at
    frequency 0, for a load whose spectrum is that of an exponential decay over _LOAD_LATENCIES latencies.
    How far values follow the load is their slope on it, less the slope's own error, and no more than in
    proportion. And the load of a window cannot stray further than the load of a moment, which with
    independent arrivals has the variance of a Poisson distribution.
    """
    count, level = len(values), float(in_flight.mean())
    load, relative = in_flight / level - 1, values / values.mean() - 1
    squares = float(load @ load)
    if squares <= 0:
        return 0.0
    slope = float(load @ relative) / squares
    error = float(((relative - slope * load) ** 2).sum()) / (count - 2) / squares
    follows = min(max(0.0, slope**2 - error), 1.0)
    projected = _projected(load)
    frequencies = np.pi * np.arange(1, len(projected) + 1) * _LOAD_LATENCIES * level / count
    hidden = float((projected**2 * frequencies**2).mean()) * 2 / count**2
    return follows * min(hidden, max(1 / level, squares / count))


def _waves(count: int) -> int:
    """How many waves: 3 for 30 values, 4 for 100, 7 for 1,000.

    Far fewer than the usual 0.41 N^(2/3): load comes and goes more slowly than the requests' own correlation
    shows, and intervals must hold where it does. The price is a Student quantile of 2.8 for 100 values, not
    2.2.
    """
    return max(3, round(1.3 * math.sqrt(math.sqrt(count))))


def _student(confidence: float, degrees: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def share_interval(hits: npt.NDArray[np.bool_], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the share of `hits`, shape (N,), in time order: Wilson's, for as many independent values as
    the series is worth. None where N < 30.
    """
    count = len(hits)
    if count < LEAST_VALUES:
        return None
    share = float(hits.mean())
    variance, degrees = long_run_variance(hits.astype(np.float64))
    spread = share * (1 - share)
    worth = count * spread / variance if variance > 0 and spread > 0 else count
    t2 = _student(confidence, degrees) ** 2
    middle = (share + t2 / (2 * worth)) / (1 + t2 / worth)
    half = math.sqrt(t2 * (spread / worth + t2 / (4 * worth**2))) / (1 + t2 / worth)
    return (max(0.0, middle - half), min(1.0, middle + half))


def quantile(values: npt.ArrayLike, q: float) -> float:
    """The one definition of a quantile: linear between order statistics, with (N - 1) q values below it."""
    return float(np.quantile(np.asarray(values, np.float64), q))


def quantile_interval(
    values: npt.ArrayLike, q: float, in_flight: F64 | None = None, *, confidence: float = 0.95
) -> Interval | None:
    """Interval of the `q` quantile of `values`, shape (N,), in time order.

    Woodruff's: the interval of the share of values below the quantile, read off as quantiles again.
    `in_flight`, shape (N,), allows for a load that changes slowly, which moves the quantile as it moves the
    mean (`slow_load_variance`). None where N < 30, or where fewer than 10 values lie beyond the quantile or
    none beyond the interval.
    """
    series = np.asarray(values, np.float64)
    count = len(series)
    if count < LEAST_VALUES or count * min(q, 1 - q) < LEAST_BEYOND:
        return None
    whole = quantile(series, q)
    variance, degrees = long_run_variance((series <= whole).astype(np.float64))
    t = _student(confidence, degrees)
    half = t * math.sqrt(variance / count)
    if q - half < 1 / count or q + half > 1 - 1 / count:
        return None
    low, high = quantile(series, q - half), quantile(series, q + half)
    if low <= 0:
        return None
    shown = math.log(high / low) / (2 * t)
    slow = math.sqrt(slow_load_variance(series, in_flight)) if in_flight is not None else 0.0
    below, above = math.hypot(math.log(whole / low), t * slow), math.hypot(math.log(high / whole), t * slow)
    low, high = whole * math.exp(-below), whole * math.exp(above)
    return Interval(whole, low, high, math.hypot(shown, slow), degrees, confidence)


def paired_quantile_ratio(
    first: npt.ArrayLike, second: npt.ArrayLike, q: float, *, confidence: float = 0.95
) -> Interval | None:
    """second's `q` quantile over first's, for two series of one shape (N,) whose places belong together.

    Sectioning: the ratio of the two quantiles in each of ten sections, and their spread about the whole's.
    None where a section has fewer than 3 values beyond the quantile, or a quantile is not above 0.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    size = len(a) // _SECTIONS
    if size * min(q, 1 - q) < 3:
        return None
    parts = [np.quantile(v[: _SECTIONS * size].reshape(_SECTIONS, size), q, axis=1) for v in (a, b)]
    whole = [quantile(v, q) for v in (a, b)]
    if min(*whole, *parts[0], *parts[1]) <= 0:
        return None
    ratio = whole[1] / whole[0]
    spread = np.log(parts[1] / parts[0]) - math.log(ratio)
    error = math.sqrt(float((spread**2).sum()) / (_SECTIONS - 1) / _SECTIONS)
    return _about(ratio, error, _SECTIONS - 1, confidence)


def repeats_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval | None:
    """Interval of the mean over repeats, `values` of shape (N,), which are independent of each other.

    Student's of the logarithms, with N - 1 degrees of freedom. None where N < 3 or a value is not above 0.
    """
    known = np.asarray(values, np.float64)
    count = len(known)
    if count < LEAST_REPEATS or known.min() <= 0:
        return None
    error = float(np.log(known).std(ddof=1)) / math.sqrt(count)
    return _about(float(known.mean()), error, count - 1, confidence)


def ratio_of(first: Interval, second: Interval) -> Interval:
    """second / first for independent runs: Welch's interval of the difference of the logarithms, degrees of
    freedom by Welch-Satterthwaite.
    """
    a, b = first.relative_error**2, second.relative_error**2
    degrees = first.degrees
    if a + b > 0:
        degrees = max(1.0, (a + b) ** 2 / (a**2 / first.degrees + b**2 / second.degrees))
    return _about(second.estimate / first.estimate, math.sqrt(a + b), degrees, first.confidence)


def _about(estimate: float, error: float, degrees: float, confidence: float) -> Interval:
    wide = math.exp(_student(confidence, degrees) * error)
    return Interval(estimate, estimate / wide, estimate * wide, error, degrees, confidence)
