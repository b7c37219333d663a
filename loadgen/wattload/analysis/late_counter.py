"""Whether an energy counter follows the load late, as the start of the load shows.

An exporter that shows each value some seconds after its time, with no time of its own, gives a series that is
right in itself: values alone cannot tell. The start of a load can. Work that goes on at the same rate takes
about the same power from its first second on, so where the power rises long after the work, the counter is
late, or something else began to use its devices; either way the joules of a window are not the load's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from wattload.analysis.received import output_tokens, prefilled, prompt_tokens
from wattload.analysis.window_energy import column
from wattload.rundir.requests import F64, Requests

# The power has risen where it is this share of what it is in the second half of the load, or more; and before
# that its mean is less than this share of the mean after it.
RISEN_SHARE = 2 / 3
# Before the rise the work was this share of what it is afterwards, or more. Power is idle power and what the
# work takes, and a token takes no less in small batches: so the truth never falls below this share.
WORK_SHARE = 0.75
# A delay below this, or below two updates of the counter, is not looked for.
LEAST_SECONDS = 5.0
LEAST_UPDATES = 2.0


def late_seconds(series: pa.Table, requests: Requests, offset_seconds: float) -> float | None:
    """How long after the load's first token the counters' power began to rise; None where it is not late, or
    nothing tells.

    `series` has the samples of all devices by the meter's clock, which is `offset_seconds` ahead of the
    requests'. A load whose work grows, or whose power hardly differs from that at rest, tells nothing.
    """
    times, joules = total_counter(series)
    counts = output_tokens(requests)
    computed = prefilled(requests) + offset_seconds
    if counts is None or len(times) < 4 or not np.isfinite(computed).any():
        return None
    first = float(np.nanmin(computed))
    last = float(np.nanmax(requests.last + offset_seconds))
    begun = max(int(np.searchsorted(times, first, "right")) - 1, 0)
    ended = int(np.searchsorted(times, last, "right"))
    # Updates of the load, from the last one before it: power from each to the next.
    edges, gained = times[begun:ended], joules[begun:ended]
    if len(edges) < 4:
        return None
    watts = np.diff(gained) / np.diff(edges)
    half = edges[:-1] >= (first + last) / 2
    level = float(np.median(watts[half] if half.any() else watts))
    risen = np.flatnonzero(watts >= RISEN_SHARE * level)
    rise = float(edges[risen[0]])
    late = rise - first
    split = int(risen[0])
    if not split or late < max(LEAST_SECONDS, LEAST_UPDATES * float(np.diff(edges).max())):
        return None
    before, after = float(watts[:split].mean()), float(watts[split:].mean())
    if before > RISEN_SHARE * after:
        return None
    within = (float(edges[0]), rise, float(edges[-1]))
    sent_first, sent_last = requests.first + offset_seconds, requests.last + offset_seconds
    for tokens, begin, end in (
        (counts[0], sent_first, sent_last),
        (prompt_tokens(requests), computed, computed),
    ):
        earlier, later = _rates(tokens, begin, end, within)
        if earlier < WORK_SHARE * later:
            return None
    return late


def total_counter(series: pa.Table) -> tuple[F64, F64]:
    """The sum of all devices' counters, shape (N,), at the times (N,) at which the slowest of them had a new
    value; empty where one has none, or falls.
    """
    names = np.asarray(series.column("device").to_pylist(), object)
    seconds, joules = series.column("unix_seconds").to_numpy(), column(series, "joules")
    curves = []
    for name in np.unique(names):
        mine = (names == name) & np.isfinite(joules) & np.isfinite(seconds)
        order = np.argsort(seconds[mine], kind="stable")
        times, values = seconds[mine][order], joules[mine][order]
        new = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
        times, values = times[new], values[new]
        if len(times) < 2 or (np.diff(values) < 0).any() or (np.diff(times) <= 0).any():
            return np.zeros(0), np.zeros(0)
        curves.append((times, values))
    if not curves:
        return np.zeros(0), np.zeros(0)
    slowest = min(curves, key=lambda curve: len(curve[0]))[0]
    low = max(times[0] for times, _ in curves)
    high = min(times[-1] for times, _ in curves)
    at = slowest[(slowest >= low) & (slowest <= high)]
    total = np.zeros(len(at))
    for times, values in curves:
        total += np.interp(at, times, values)
    return at, total


def _rates(tokens: F64, begin: F64, end: F64, edges: tuple[float, float, float]) -> tuple[float, float]:
    """Tokens per second between the first two `edges` and between the last two, each request's `tokens`
    spread evenly over [begin, end], shape (N,) each.
    """
    known = np.isfinite(begin) & np.isfinite(end) & np.isfinite(tokens)
    # Where they came at once, they came within this.
    length = np.maximum(end[known] - begin[known], 1e-6)
    begin, tokens = begin[known], tokens[known]

    def rate(low: float, high: float) -> float:
        inside = np.clip(np.minimum(begin + length, high) - np.maximum(begin, low), 0.0, None)
        return float((tokens * inside / length).sum()) / max(high - low, 1e-9)

    return rate(edges[0], edges[1]), rate(edges[1], edges[2])
