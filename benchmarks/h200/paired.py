"""Differences between two arms that took turns: metered over plain, with 95 % intervals over the blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

F64 = npt.NDArray[np.float64]

# With fewer a resampled interval is too narrow for a claim.
LEAST_RESAMPLED_BLOCKS = 8
RESAMPLES = 4000
RESAMPLES_TOGETHER = 200
# (window, figure, limit): the limit is what the interval must lie within, on both sides; None: no claim.
MEANS: tuple[tuple[str, str, float | None], ...] = (
    ("burst", "output_tokens_per_second", 0.01),
    ("open", "tpot_p99_seconds", 0.01),
    ("open", "joules", 0.005),
    ("burst", "joules_per_output_token", 0.005),
    ("open", "tpot_mean_seconds", None),
    ("open", "ttft_p50_seconds", None),
    ("open", "end_to_end_mean_seconds", None),
    ("burst", "tpot_p99_seconds", None),
    ("burst", "ttft_p50_seconds", None),
    ("burst", "end_to_end_mean_seconds", None),
)
# A window with a hiccup in either arm moves a mean of ten; half of the blocks must, to move their median.
MEDIANS: tuple[tuple[str, str, float | None], ...] = (("open", "tpot_p99_seconds", 0.01),)
LEAST_MEDIAN_BLOCKS = 6
POOLED: tuple[tuple[str, float | None], ...] = (("open", 0.01), ("burst", None))


def compared(windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All figures of MEANS, POOLED and MEDIANS from the windows of complete blocks, in the order of MEANS,
    with the others after the first."""
    rows = [mean_change(windows, kind, name, limit) for kind, name, limit in MEANS]
    pooled = [pooled_p99_change(windows, kind, limit) for kind, limit in POOLED]
    medians = [median_change(windows, kind, name, limit) for kind, name, limit in MEDIANS]
    return [rows[0], *pooled, *medians, *rows[1:]]


def mean_change(
    windows: list[dict[str, Any]], kind: str, name: str, limit: float | None = None
) -> dict[str, Any]:
    """Mean of ln(metered / plain) over the blocks as a fraction, with its t interval, and the standard
    deviation of a block, which says how many blocks a narrower interval would take."""
    pairs = _pairs(windows, kind, name)
    if not all(metered > 0.0 and plain > 0.0 for metered, plain in pairs):
        return _not_measured(kind, name, limit, "not above 0 in every window")
    ratios = np.array([math.log(metered / plain) for metered, plain in pairs])
    if len(ratios) < 2:
        return _not_measured(kind, name, limit, "not measured in two blocks")
    mean, deviation = float(ratios.mean()), float(ratios.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(ratios) - 1)) * deviation / math.sqrt(len(ratios))
    row = _row(kind, name, limit, change=mean, low=mean - half, high=mean + half, blocks=len(ratios))
    return row | {"block_deviation": deviation, "method": "paired t over blocks"}


def median_change(
    windows: list[dict[str, Any]], kind: str, name: str, limit: float | None = None
) -> dict[str, Any]:
    """Median of metered / plain over the blocks less 1, with the narrowest interval of order statistics that
    holds it in at least 95 % of cases, whatever the distribution (the sign test's)."""
    shown = f"{name}_median"
    pairs = _pairs(windows, kind, name)
    if len(pairs) < LEAST_MEDIAN_BLOCKS:
        return _not_measured(kind, shown, limit, f"not measured in {LEAST_MEDIAN_BLOCKS} blocks")
    if not all(metered > 0.0 and plain > 0.0 for metered, plain in pairs):
        return _not_measured(kind, shown, limit, "not above 0 in every window")
    logs = np.sort([math.log(metered / plain) for metered, plain in pairs])
    outside = int(stats.binom.ppf(0.025, len(logs), 0.5)) - 1
    if stats.binom.cdf(outside + 1, len(logs), 0.5) <= 0.025:
        outside += 1
    outside = max(outside, 0)
    low, high = float(logs[outside]), float(logs[-1 - outside])
    row = _row(kind, shown, limit, change=float(np.median(logs)), low=low, high=high, blocks=len(logs))
    return row | {"method": "median over blocks, sign test's interval"}


def pooled_p99_change(windows: list[dict[str, Any]], kind: str, limit: float | None = None) -> dict[str, Any]:
    """The p99 of the TPOT of all requests of all blocks, metered over plain; the interval resamples whole
    blocks, both arms of a block together."""
    name = "tpot_p99_pooled"
    pairs = _pairs(windows, kind, "tpot_microseconds")
    if len(pairs) < 2:
        return _not_measured(kind, name, limit, "not measured in two blocks")
    metered, plain = (np.array([pair[arm] for pair in pairs], np.float64) for arm in (0, 1))
    if not min(_p99(metered[:, None]).min(), _p99(plain[:, None]).min()) > 0.0:
        return _not_measured(kind, name, limit, "not above 0 in every window")
    dice = np.random.default_rng(20261121)
    logs: list[F64] = []
    for _ in range(RESAMPLES // RESAMPLES_TOGETHER):
        chosen = dice.integers(0, len(pairs), (RESAMPLES_TOGETHER, len(pairs)))
        logs.append(np.log(_p99(metered[chosen]) / _p99(plain[chosen])))
    low, high = np.quantile(np.concatenate(logs), [0.025, 0.975])
    change = float(np.log(_p99(metered[None]) / _p99(plain[None]))[0])
    row = _row(kind, name, limit, change=change, low=float(low), high=float(high), blocks=len(pairs))
    if len(pairs) < LEAST_RESAMPLED_BLOCKS:
        row["within_limit"] = None
    return row | {"requests": int(metered.size), "method": "paired block bootstrap"}


def _p99(blocks: F64) -> F64:
    """Of (resamples, blocks, requests): the p99 of each resample."""
    found: F64 = np.quantile(blocks.reshape(len(blocks), -1), 0.99, axis=1)
    return found


def _pairs(windows: list[dict[str, Any]], kind: str, name: str) -> list[tuple[Any, Any]]:
    value = {(w["block"], w["arm"]): w.get(name) for w in windows if w["kind"] == kind}
    found = [(value.get((block, "metered")), value.get((block, "plain"))) for block in blocks_of(windows)]
    return [pair for pair in found if pair[0] is not None and pair[1] is not None]


def blocks_of(windows: list[dict[str, Any]]) -> list[int]:
    return sorted({int(window["block"]) for window in windows})


def _row(
    kind: str, name: str, limit: float | None, *, change: float, low: float, high: float, blocks: int
) -> dict[str, Any]:
    """`change`, `low` and `high` are differences of logarithms."""
    interval = [math.expm1(low), math.expm1(high)]
    within = None if limit is None else max(abs(interval[0]), abs(interval[1])) <= limit
    return {
        "window": kind,
        "figure": name,
        "change": math.expm1(change),
        "ci95": interval,
        "blocks": blocks,
        "limit": limit,
        "within_limit": within,
    }


def _not_measured(kind: str, name: str, limit: float | None, reason: str) -> dict[str, Any]:
    return {
        "window": kind,
        "figure": name,
        "change": None,
        "reason": reason,
        "limit": limit,
        "within_limit": None,
    }


def line(row: dict[str, Any]) -> str:
    """One figure as text."""
    name = f"{row['window']:5s} {row['figure']:26s}"
    if row["change"] is None:
        return f"{name} {row['reason']}"
    verdict = {
        None: "",
        True: f"  within {row['limit'] or 0:.1%}",
        False: f"  NOT within {row['limit'] or 0:.1%}",
    }
    low, high = row["ci95"]
    text = f"{name} {row['change']:+.3%}  [{low:+.3%}, {high:+.3%}]  {row['blocks']} blocks"
    return text + verdict[row["within_limit"]]
