"""The report's plots of latency: distributions, and time to first token over the run."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from wattload.measure_columns import F64, GapHistogram
from wattload.measure_energy import RunData
from wattload.report.plots import DOTS, phases, short_seconds
from wattload.report.quantities import digits
from wattload.report.style import BLUE, GREEN, GREY, RED, SKY, legend_above, log_ticks, plotting, svg
from wattload.runjson import SloLimits


def latencies(data: RunData, gaps: GapHistogram, slo: SloLimits | None) -> str:
    """Share of requests (of gaps, for ITL) that took at most so long, on a logarithmic axis; p50 and p99
    marked.
    """
    done = data.done
    limits = slo or SloLimits()
    panels: list[tuple[str, F64, F64, float | None]] = []
    for name, values, limit in (
        ("time to first token", data.requests.ttft[done], limits.ttft_seconds),
        ("time per output token", data.requests.tpot[done], limits.tpot_seconds),
    ):
        known = np.sort(values[~np.isnan(values)])
        panels.append((name, known, np.arange(1, len(known) + 1) / max(len(known), 1), limit))
    filled = np.flatnonzero(gaps.counts)
    share = np.cumsum(gaps.counts[filled]) / max(gaps.n, 1)
    panels.append(("gap between chunks (ITL)", gaps.edges()[filled], share, None))
    with plotting(height=2.5) as figure:
        for place, (name, x, y, limit) in enumerate(panels):
            axes = figure.add_subplot(1, 3, place + 1)
            _ecdf(axes, x, y, limit)
            axes.set_title(name)
            if place == 0:
                axes.set_ylabel("share at most so long")
        return svg(figure, "latencies")


def _ecdf(axes: Axes, x: F64, y: F64, limit: float | None) -> None:
    if not len(x):
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        return
    pick = np.unique(
        np.searchsorted(y, np.concatenate((np.linspace(0, 1, 400), [0.99, 0.999]))).clip(0, len(x) - 1)
    )
    axes.step(np.maximum(x[pick], 1e-6), y[pick], where="post", color=BLUE)
    axes.set_xscale("log")
    for q, colour, up in ((0.5, GREEN, -11), (0.99, RED, -11)):
        at = float(x[min(int(np.searchsorted(y, q)), len(x) - 1)])
        axes.plot([max(at, 1e-6)], [q], "o", color=colour, markersize=4)
        axes.annotate(
            f"p{q * 100:.0f} {seconds_text(at)}",
            (max(at, 1e-6), q),
            xytext=(5, up),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )
    if limit is not None:
        axes.axvline(limit, color="#222222", linestyle=(0, (4, 3)), linewidth=1)
    axes.set_ylim(0, 1.03)
    # A few gaps of microseconds (chunks that came in one read) would squeeze the rest to the right.
    start = float(x[min(int(np.searchsorted(y, 0.005)), len(x) - 1)])
    low, high = max(start, 1e-6), max(float(x[-1]), 2e-6)
    if limit is not None:
        high = max(high, limit)
    # Room on the right for the labels, which stand there.
    axes.set_xlim(low / 1.3, high * (high / low) ** 0.35 * 1.3)
    log_ticks(axes.xaxis, short_seconds, most=3)
    axes.tick_params(axis="x", labelsize=7)


def seconds_text(value: float) -> str:
    if value < 1e-3:
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value * 1e3)} ms" if value < 1 else f"{digits(value)} s"


def latency_over_time(data: RunData) -> str | None:
    """TTFT of every request over the time it was due, with the median and p99 of each stretch."""
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
        dots = np.random.default_rng(0).choice(dots, DOTS, replace=False)
    with plotting() as figure:
        axes = figure.add_subplot()
        axes.scatter(due[dots], ttft[dots], s=6, color=SKY, alpha=0.5, linewidths=0, rasterized=True)
        middle, cuts = (edges[:-1] + edges[1:]) / 2, np.searchsorted(place, np.arange(count + 1))
        for q, colour, name in ((0.5, BLUE, "median"), (0.99, RED, "p99")):
            line = [float(np.quantile(ttft[a:b], q)) if b > a else np.nan for a, b in pairwise(cuts)]
            axes.plot(middle, line, color=colour, label=name)
        axes.set_yscale("log")
        log_ticks(axes.yaxis, short_seconds)
        phases(axes, data)
        axes.set_ylabel("time to first token")
        legend_above(axes)
        return svg(figure, "latencytime")
