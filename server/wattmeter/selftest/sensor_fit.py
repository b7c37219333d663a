"""What samples of a counter and of power say of the sensor: periods, averaging, lag, agreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64

LEAST_UPDATES = 8
LEAST_SWITCHES = 4
LEAST_FIT = 0.8
MAX_LAG_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Period:
    """Seconds between updates of a sensor's value: median, 10th and 90th percentile, and their number."""

    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    updates: int


@dataclass(frozen=True, slots=True)
class Response:
    """How a power figure follows a load: it is the mean over `window_seconds`, which ended `lag_seconds` ago.

    `explained` is the part of the figure's variance that this explains (R squared).
    """

    window_seconds: float
    lag_seconds: float
    explained: float


def updates(times: F64, values: F64) -> tuple[F64, F64]:
    """(when, what) of each new value among samples, (N,) each; when: midway between the samples around it."""
    new = np.flatnonzero(np.diff(values) != 0.0) + 1
    return 0.5 * (times[new] + times[new - 1]), values[new]


def update_period(times: F64, values: F64) -> Period | None:
    """The period of a value's updates; None with fewer than LEAST_UPDATES of them.

    A power reading may repeat a value by chance; then two periods look like one, which the median forgives.
    """
    moments, _ = updates(times, values)
    if len(moments) < LEAST_UPDATES:
        return None
    gaps = np.diff(moments)
    p10, median, p90 = np.percentile(gaps, [10, 50, 90])
    return Period(float(median), float(p10), float(p90), len(moments))


def response(
    times: F64, watts: F64, load_times: F64, load: F64, *, windows: F64 | None = None
) -> Response | None:
    """Fit watts(t) = a + b x mean of the load over [t - lag - window, t - lag] by least squares on a grid.

    `times` are the moments of the updates (N,), `load` is 0 or 1 from each of `load_times` on. None where the
    load did not switch LEAST_SWITCHES times or explains less than LEAST_FIT of the variance. Resolution: 10
    ms.
    """
    if int(np.count_nonzero(np.diff(load))) < LEAST_SWITCHES or len(times) < LEAST_UPDATES:
        return None
    area = np.concatenate(([0.0], np.cumsum(load[:-1] * np.diff(load_times))))
    if windows is None:
        windows = np.concatenate((np.arange(0.01, 0.3, 0.01), np.arange(0.3, 2.01, 0.05)))
    lags = np.arange(-0.05, 1.0, 0.01)
    inside = times > load_times[0] + float(windows[-1]) + 1.0
    if np.count_nonzero(inside) < LEAST_UPDATES:
        inside = times > load_times[0]
    moments, seen = times[inside], watts[inside]
    spread = float(np.var(seen))
    if spread <= 0.0:
        return None
    best: Response | None = None
    for window in windows:
        for lag in lags:
            end = np.interp(moments - lag, load_times, area)
            begin = np.interp(moments - lag - window, load_times, area)
            mean = (end - begin) / window
            # Only upwards: the mean of the rest of a square wave's period fits as well, upside down.
            explained = max(_correlation(mean, seen), 0.0) ** 2
            if best is None or explained > best.explained:
                best = Response(round(float(window), 4), round(float(lag), 4), explained)
    return best if best is not None and best.explained >= LEAST_FIT else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """A counter's joules and power's integral over `seconds`; power runs `power_lag_seconds` behind."""

    counter_joules: float
    integrated_joules: float
    seconds: float
    power_lag_seconds: float


def counter_against_power(times: F64, joules: F64, power_times: F64, watts: F64) -> Agreement | None:
    """Compare a counter, (N,) samples at `times`, with the integral of power, (M,) samples at `power_times`.

    Each power value is held until the next. The integral is taken over the time between the counter's
    updates, moved by the lag (0 to 0.3 s) at which the two follow each other best: else a load that was off
    at the start and on at the end would pass for a disagreement. None with fewer than LEAST_UPDATES updates,
    or where the counter fell.
    """
    moments, values = updates(times, joules)
    if len(moments) < LEAST_UPDATES or len(power_times) < 2 or np.any(np.diff(values) < 0.0):
        return None
    area = np.concatenate(([0.0], np.cumsum(watts[:-1] * np.diff(power_times))))
    inside = (moments >= power_times[0]) & (moments + MAX_LAG_SECONDS <= power_times[-1])
    moments, values = moments[inside], values[inside]
    if len(moments) < LEAST_UPDATES:
        return None
    gained = np.diff(values)
    best, best_error, integral = 0.0, np.inf, 0.0
    for lag in np.arange(0.0, MAX_LAG_SECONDS + 1e-9, 0.01):
        part = np.diff(np.interp(moments + lag, power_times, area))
        error = float(np.sum((gained - part) ** 2))
        if error < best_error:
            best, best_error, integral = float(lag), error, float(np.sum(part))
    return Agreement(float(values[-1] - values[0]), integral, float(moments[-1] - moments[0]), round(best, 4))


def _correlation(a: F64, b: F64) -> float:
    deviation_a, deviation_b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(np.dot(deviation_a, deviation_a) * np.dot(deviation_b, deviation_b)))
    return float(np.dot(deviation_a, deviation_b)) / scale if scale > 0.0 else 0.0
