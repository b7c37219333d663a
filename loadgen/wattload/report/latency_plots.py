"""The report's charts of latency: distributions, and time to first token over the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from wattload.analysis.statistics import quantile
from wattload.colours import BLUE, QUANTILES, RED, SKY
from wattload.report.chart import Axis, Chart, Mark, Series
from wattload.report.drawing import Drawing, draw
from wattload.report.formatting import digits
from wattload.report.plots import DOTS, over_time
from wattload.rundir.requests import F64, GapHistogram
from wattload.rundir.result import SloLimits
from wattload.rundir.run import RunData


def latencies(data: RunData, gaps: GapHistogram, slo: SloLimits | None) -> Drawing:
    """Cumulative distributions of TTFT, TPOT and ITL on logarithmic axes, with p50, p95 and p99 marked."""
    done = data.done
    limits = slo or SloLimits()
    charts = []
    for name, values, limit in (
        ("TTFT", data.requests.ttft[done], limits.ttft_seconds),
        ("TPOT", data.requests.tpot[done], limits.tpot_seconds),
    ):
        known = np.sort(values[~np.isnan(values)])
        share = np.arange(1, len(known) + 1) / max(len(known), 1)
        charts.append(_ecdf(name, known, share, limit, partial(quantile, known)))
    filled = np.flatnonzero(gaps.counts)
    share = np.cumsum(gaps.counts[filled]) / max(gaps.n, 1)
    charts.append(_ecdf("ITL", gaps.edges()[filled], share, None, gaps.quantile))
    return draw("latencies", *charts, height=2.5)


def _ecdf(name: str, x: F64, y: F64, limit: float | None, quantile_of: Callable[[float], float]) -> Chart:
    share = Axis("cumulative share", low=0.0, high=1.08)
    if not len(x):
        return Chart(name, Axis(name, "s"), share, ())
    pick = np.unique(
        np.searchsorted(y, np.concatenate((np.linspace(0, 1, 400), [0.99, 0.999]))).clip(0, len(x) - 1)
    )
    at = {q: quantile_of(q) for q in (0.5, 0.95, 0.99)}
    marked = tuple(
        Series(
            f"p{q * 100:.0f}",
            np.array([max(value, 1e-6)]),
            np.array([q]),
            QUANTILES[f"p{q * 100:.0f}"],
            "dots",
            texts=(f"p{q * 100:.0f} {seconds_text(value)}",),
            labelled=True,
        )
        for q, value in at.items()
    )
    # A few gaps of microseconds (chunks that came in one read) would squeeze the rest to the right.
    start = float(x[min(int(np.searchsorted(y, 0.005)), len(x) - 1)])
    low, high = max(start, 1e-6), max(float(x[-1]), 2e-6)
    if limit is not None:
        high = max(high, limit)
    # Room on the right for the labels, which stand there.
    across = Axis(name, "s", log=True, low=low / 1.3, high=high * (high / low) ** 0.35 * 1.3)
    curve = Series("share", np.maximum(x[pick], 1e-6), y[pick], BLUE, "steps")
    marks = () if limit is None else (Mark("x", limit),)
    return Chart(name, across, share, (curve, *marked), marks=marks)


def seconds_text(value: float) -> str:
    """A time as a label: three digits, in the unit that suits it."""
    if value < 1e-3:
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value * 1e3)} ms" if value < 1 else f"{digits(value)} s"


def latency_over_time(data: RunData) -> Drawing | None:
    """TTFT of every request over its scheduled time, with p50 and p90 of each interval, which holds about 40
    requests.
    """
    rows = np.flatnonzero(data.requests.completed & (data.requests.ttft > 0))
    if len(rows) < 2:
        return None
    begin = data.capture.started_unix
    due, ttft = data.requests.due[rows] - begin, data.requests.ttft[rows]
    count = int(np.clip(len(rows) // 40, 4, 60))
    edges = np.linspace(0, max(data.capture.duration_seconds, float(due.max()) + 1e-9), count + 1)
    place = np.searchsorted(edges, due, "right") - 1
    dots = np.arange(len(rows))
    if len(dots) > DOTS:
        dots = np.sort(np.random.default_rng(0).choice(dots, DOTS, replace=False))
    series = [Series("a request", due[dots], ttft[dots], SKY, "dots")]
    middle, cuts = (edges[:-1] + edges[1:]) / 2, np.searchsorted(place, np.arange(count + 1))
    for q, colour, name in ((0.5, BLUE, "p50"), (0.9, RED, "p90")):
        line = [quantile(ttft[a:b], q) if b > a else np.nan for a, b in pairwise(cuts)]
        series.append(Series(name, middle, np.array(line), colour))
    return draw("latencytime", over_time(data, "TTFT", Axis("TTFT", "s", log=True), *series))
