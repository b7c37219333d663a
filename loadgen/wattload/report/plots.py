"""The report's plots, one function each:

a run's data in, one SVG out. Every x axis of time starts at the run's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from wattload.measure_columns import F64
from wattload.measure_energy import RunData
from wattload.measure_joules import column
from wattload.measure_window import in_flight
from wattload.report.quantities import digits, percent
from wattload.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PARTS,
    PURPLE,
    legend_above,
    log_ticks,
    plotting,
    svg,
)
from wattload.runjson import RunJson

_BINS = 240
DOTS = 20_000


def spanseconds_text(data: RunData) -> float:
    """From the run's start to its last answer, at least its planned length."""
    begin = data.capture.started_unix
    last = data.requests.last[~np.isnan(data.requests.last)]
    return max(float(last.max()) - begin if len(last) else 0.0, data.capture.duration_seconds, 1e-3)


def phases(axes: Axes, data: RunData, *, label: bool = False) -> None:
    """Shades warm-up and cool-down; what stays white is the measurement window."""
    begin, length = data.capture.started_unix, spanseconds_text(data)
    start, end = data.window.start_unix - begin, data.window.end_unix - begin
    for left, right, name in ((0.0, start, "warm-up"), (start, end, "measured"), (end, length, "cool-down")):
        if right <= left:
            continue
        if name != "measured":
            axes.axvspan(left, right, color="#eef0f3", zorder=-2, linewidth=0)
        if label and right - left > 0.06 * length:
            axes.text(
                (left + right) / 2,
                0.985,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=7.5,
                color="#666a70",
            )
    axes.set_xlim(0, length)
    axes.set_xlabel("seconds since the run started")


def power(data: RunData, run: RunJson) -> str | None:
    """Power by part over time, from the split series; the counter's as a line; None without
    energy.
    """
    if data.split is None and data.series is None:
        return None
    begin = data.capture.started_unix + data.offset_seconds
    word = " (modelled)" if "modelled" in run.energy.flags else ""
    with plotting(height=3.1) as figure:
        axes = figure.add_subplot()
        if data.split is not None and data.split.num_rows:
            _stacked(axes, data, begin)
        if data.series is not None and data.series.num_rows > 1:
            seconds, watts = counter_watts(data)
            axes.plot(seconds - begin, watts, color="#222222", linewidth=0.9, label="power, from the counter")
        floor = idle_watts(data)
        if floor is not None:
            axes.axhline(floor, color="#222222", linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                f"idle floor {digits(floor)} W",
                (1, floor),
                xycoords=("axes fraction", "data"),
                xytext=(-4, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=7.5,
            )
        phases(axes, data, label=True)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
        axes.set_ylabel(f"watts{word}")
        legend_above(axes)
        return svg(figure, "power")


def _stacked(axes: Axes, data: RunData, begin: float) -> None:
    assert data.split is not None
    left, right = (data.split.column(c).to_numpy() for c in ("start_unix", "end_unix"))
    group = max(1, len(left) // 600)
    edges = left[::group]
    lengths = np.add.reduceat(right - left, np.arange(0, len(left), group))
    layers, names = [], []
    for part in PARTS:
        joules = column(data.split, f"{part}_joules")
        if np.isnan(joules).all():
            continue
        watts = np.add.reduceat(joules, np.arange(0, len(left), group)) / lengths
        layers.append(np.repeat(watts, 2))
        names.append(part)
    if layers:
        x = np.column_stack((edges - begin, edges - begin + lengths)).ravel()
        colours = [PARTS[name] for name in names]
        axes.stackplot(x, layers, labels=names, colors=colours, linewidth=0, alpha=0.85)


def counter_watts(data: RunData) -> tuple[F64, F64]:
    """Middles (meter's clock) and mean watts of equal bins, summed over devices, from the counters.

    Half a second or more a bin: a counter that steps every 100 ms, read early or late, says nothing of the
    power within a step.
    """
    assert data.series is not None
    seconds = data.series.column("unix_seconds").to_numpy()
    joules = column(data.series, "joules")
    names = np.asarray(data.series.column("device").to_pylist(), object)
    length = float(seconds[-1] - seconds[0])
    edges = np.linspace(seconds[0], seconds[-1], int(np.clip(length / 0.5, 2, 600)) + 1)
    total = np.zeros(len(edges) - 1)
    for name in np.unique(names):
        mine = (names == name) & ~np.isnan(joules)
        if mine.any():
            total += np.diff(np.interp(edges, seconds[mine], joules[mine])) / np.diff(edges)
    return (edges[:-1] + edges[1:]) / 2, total


def idle_watts(data: RunData) -> float | None:
    """The endpoint's idle power: its own figure, or what its split took for idle inside the window."""
    said = (data.capture.energy_probe or {}).get("idle") or {}
    if isinstance(said.get("watts"), (int, float)):
        return float(said["watts"])
    window = data.capture.energy_window
    if window is None or window.get("idle_joules") is None:
        return None
    length = float(window["end"]) - float(window["start"])
    return float(window["idle_joules"]) / length


def arrivals(data: RunData) -> str:
    """Requests a second:

    due, sent and done. Where sent parts from due, the client was late, not the server.
    """
    begin, length = data.capture.started_unix, spanseconds_text(data)
    count = int(np.clip(length, 20, _BINS))
    edges = np.linspace(0, length, count + 1)
    with plotting() as figure:
        axes = figure.add_subplot()
        for values, name, colour, style in (
            (data.requests.due, "due", GREY, "-"),
            (data.requests.sent, "sent", BLUE, (0, (3, 2))),
            (np.where(data.requests.completed, data.requests.last, np.nan), "completed", GREEN, "-"),
        ):
            inside = values[~np.isnan(values)] - begin
            rate = np.histogram(inside, edges)[0] / np.diff(edges)
            width = 2.6 if name == "due" else 1.3
            axes.stairs(rate, edges, label=name, color=colour, linestyle=style, linewidth=width)
        phases(axes, data)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("requests/s")
        legend_above(axes)
        return svg(figure, "arrivals")


def concurrency(data: RunData) -> str:
    """Requests in flight over time."""
    begin, length = data.capture.started_unix, spanseconds_text(data)
    values, width = in_flight(data.requests, begin, begin + length, 400)
    with plotting(height=2.3) as figure:
        axes = figure.add_subplot()
        axes.stairs(values, width * np.arange(len(values) + 1), color=BLUE, fill=True, alpha=0.25)
        axes.stairs(values, width * np.arange(len(values) + 1), color=BLUE)
        phases(axes, data)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("requests in flight")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        return svg(figure, "concurrency")


def short_seconds(value: float) -> str:
    """A time for a tick: no more digits than it needs."""
    if value < 1e-3:
        return f"{value * 1e6:g} µs"
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:g} s"


def energy_by_tokens(data: RunData, run: RunJson) -> str | None:
    """A dot a request: its own joules against its output tokens, coloured by its prompt tokens."""
    known = data.done & ~np.isnan(data.requests.joules) & (data.requests.joules > 0)
    rows = np.flatnonzero(known)
    if not len(rows):
        return None
    if len(rows) > DOTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, DOTS, replace=False))
    requests = data.requests
    word = ", modelled" if "modelled" in run.energy.flags else ""
    with plotting(height=3.2) as figure:
        axes = figure.add_subplot()
        dots = axes.scatter(
            requests.output[rows],
            requests.joules[rows],
            c=np.maximum(requests.prompt[rows], 1),
            norm="log",
            cmap="cividis",
            s=max(2.0, min(14.0, 12_000 / len(rows))),
            alpha=0.7,
            linewidths=0,
            rasterized=True,
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain = FuncFormatter(lambda v, _: f"{v:,g}")
        for axis in (axes.xaxis, axes.yaxis):
            log_ticks(axis, lambda v: f"{v:,g}")
        axes.set_xlabel("output tokens of the request")
        axes.set_ylabel(f"joules of the request\n(attributed, without idle{word})")
        bar = figure.colorbar(dots, ax=axes, pad=0.01, format=plain)
        bar.set_label("prompt tokens")
        bar.outline.set_visible(False)
        return svg(figure, "tokens")


def split_bar(run: RunJson) -> str | None:
    """The window's joules by part, as one bar; None where the endpoint gives no split."""
    total = run.energy.total_joules
    parts = {part: getattr(run.energy, f"{part}_joules") for part in PARTS}
    if not total or any(value is None for value in parts.values()):
        return None
    with plotting(height=1.15) as figure:
        axes = figure.add_subplot()
        left = 0.0
        for part, value in parts.items():
            share = value / total
            axes.barh([0], [share], left=[left], color=PARTS[part], label=f"{part} {percent(share)}")
            left += share
        axes.set_xlim(0, max(1.0, left))
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        legend_above(axes)
        return svg(figure, "split")


def estimates_bars(ratios: dict[str, float], word: str) -> str:
    """Estimates as multiples of the measured energy, on a logarithmic axis around 1."""
    names, values = list(ratios), np.array(list(ratios.values()))
    with plotting(height=0.75 + 0.34 * len(names)) as figure:
        axes = figure.add_subplot()
        place = np.arange(len(names))[::-1]
        axes.hlines(place, 1, values, color=[ORANGE if v < 1 else PURPLE for v in values], linewidth=3)
        axes.plot(values, place, "o", color="#222222", markersize=5)
        for y, value in zip(place, values, strict=True):
            right = value >= 1
            axes.annotate(
                f"{digits(value)}×",
                (value, y),
                xytext=(7 if right else -7, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
            )
        axes.axvline(1, color="#222222", linewidth=1)
        axes.set_xscale("log")
        low, high = min(0.5, float(values.min())), max(2.0, float(values.max()))
        room = (high / low) ** 0.17
        axes.set_xlim(low / room, high * room)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(place, names)
        axes.grid(visible=False, axis="y")
        log_ticks(axes.xaxis, lambda v: f"{v:g}×")
        axes.set_xlabel(f"multiple of the measured energy{word}")
        return svg(figure, "estimates")


def frontier(points: list[dict[str, Any]], word: str = "") -> str:
    """Joules per request against latency over a sweep's rates.

    A point is {"rate_rps", "joules", "low", "high", "ttft_p99_seconds", "valid"}; `low` and `high` may be
    None.
    """
    with plotting(height=3.2) as figure:
        left, right = figure.subplots(1, 2)
        rates = np.array([p["rate_rps"] for p in points], np.float64)
        joules = np.array([p["joules"] for p in points], np.float64)
        spread = np.array(
            [
                [p["joules"] - (p["low"] or p["joules"]), (p["high"] or p["joules"]) - p["joules"]]
                for p in points
            ]
        ).T
        left.errorbar(rates, joules, yerr=np.abs(spread), fmt="o-", color=BLUE, capsize=3, markersize=4)
        left.set_xlabel("requests/s asked")
        left.set_ylabel(f"joules/request{word}")
        left.set_ylim(bottom=0)
        tail = np.array([p["ttft_p99_seconds"] for p in points], np.float64)
        right.plot(tail, joules, "o-", color=GREEN, markersize=4)
        for x, y, rate in zip(tail, joules, rates, strict=True):
            right.annotate(f"{rate:g}/s", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7.5)
        right.set_xscale("log")
        low, high = right.get_xlim()
        right.set_xlim(low, high * (high / low) ** 0.12)  # the last label stands to the right of its point
        log_ticks(right.xaxis, short_seconds)
        right.set_xlabel("TTFT p99")
        right.set_ylim(bottom=0)
        return svg(figure, "frontier")
