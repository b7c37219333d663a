"""When a run is warm, and whether it then stays steady: MSER-5 and a trend test."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

F64 = npt.NDArray[np.float64]

_MSER_BATCH = 5
_TREND_ALPHA = 0.01
_TREND_MATERIAL = 0.25


@dataclass(frozen=True, slots=True)
class Trend:
    """Mann-Kendall's test on batch means. `steady` False: the series drifts, significantly and materially.

    `relative_change` is Theil-Sen's slope times the length of the series over its mean.
    """

    test: str
    series: str
    p_value: float
    relative_change: float
    steady: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def mser5(values: npt.ArrayLike) -> int | None:
    """How many of the first `values`, shape (N,), to leave out as warm-up; None where no answer can be
    trusted.

    MSER-5 (White 1997): of the means of five, the truncation d is taken that minimises S^2(d) / (n - d)^2,
    S^2(d) the sum of squares about the mean of what is kept. An optimum in the second half means that the
    series never became steady: None.
    """
    series = np.asarray(values, np.float64)
    n = len(series) // _MSER_BATCH
    if n < 4:
        return None
    means = series[: n * _MSER_BATCH].reshape(n, _MSER_BATCH).mean(axis=1)
    kept = n - np.arange(n)
    tail = np.cumsum(means[::-1])[::-1]
    squares = np.cumsum((means**2)[::-1])[::-1]
    spread = np.maximum(squares - tail**2 / kept, 0.0)
    # The last five truncations keep so little that their spread is small by chance.
    score = (spread / kept**2)[: max(1, n - 5)]
    best = int(np.argmin(score))
    return best * _MSER_BATCH if best <= n // 2 else None


def trend(values: npt.ArrayLike, series: str, *, batches: int = 20) -> Trend | None:
    """Whether `values`, shape (N,), drift. None where there are fewer than 8 to judge by.

    Mann-Kendall on at most `batches` batch means, since single values are correlated; steady unless p <
    0.01 and the drift over the series exceeds 25 % of its mean: with enough data any drift is
    significant, but not every one matters.
    """
    data = np.asarray(values, np.float64)
    count = min(batches, len(data))
    if count < 8:
        return None
    size = len(data) // count
    means = data[len(data) - count * size :].reshape(count, size).mean(axis=1)
    order = np.arange(count, dtype=np.float64)
    _tau, p = stats.kendalltau(order, means)
    p_value = float(p) if math.isfinite(p) else 1.0
    slope = float(stats.theilslopes(means, order)[0])
    level = abs(float(means.mean()))
    change = slope * (count - 1) / level if level > 0 else 0.0
    steady = not (p_value < _TREND_ALPHA and abs(change) > _TREND_MATERIAL)
    name = f"Mann-Kendall on {count} batch means, alpha {_TREND_ALPHA}, drift over {_TREND_MATERIAL:.0%}"
    return Trend(name, series, p_value, change, steady)
