"""Charts as a figure of a page: a picture for paper and for readers without scripts, and their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis as PlottedAxis
from matplotlib.ticker import MaxNLocator

from wattload.colours import GREY, INK
from wattload.report.chart import Axis, Chart, Series
from wattload.report.formatting import quantity
from wattload.report.style import ON_PAPER, legend_above, log_ticks, plotting, svg
from wattload.rundir.requests import F64

_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# A series with no more points than these is told point by point in words, a longer one by its range.
_TOLD = 16
# Of a legend: how many characters an inch holds, and what a key before its name takes.
_CHARACTERS_PER_INCH = 14.0
_KEY_CHARACTERS = 5


@dataclass(frozen=True, slots=True)
class Told:
    """A row of the table beside a figure: a series, or one of its points, in words."""

    series: str
    what: str
    lowest: str
    middle: str
    highest: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of a page: `still` is what stands there without scripts and on paper, `charts` the data of the
    interactive plots, `table` the same in words.
    """

    still: Markup
    charts: list[dict[str, Any]]
    table: list[Told]
    height: int
    down: bool = False


def draw(name: str, *charts: Chart, height: float = 2.7, width: float = 7.6, down: bool = False) -> Drawing:
    """The charts side by side, or one under the other (`down`), in one figure of `width` x `height` inches.

    `name` is unique on its page.
    """
    panel_width = width if down else width / len(charts)
    # A legend of many rows gets room of its own, or the plot under it would have none.
    legends = [_legend(chart, panel_width) for chart in (charts if down else charts[:1])]
    rows = max(rows for _, rows in legends)
    with plotting(width=width, height=height + 0.17 * max(0, rows - 2)) as figure:
        panels = figure.subplots(*((len(charts), 1) if down else (1, len(charts))), squeeze=False).ravel()
        for place, (axes, chart) in enumerate(zip(panels, charts, strict=True)):
            _panel(axes, chart, legend_columns=legends[place][0] if place < len(legends) else 0)
            if down:
                axes.set_xlabel(chart.x.label if place == len(charts) - 1 else "")
                axes.set_ylabel(chart.y.unit)
            elif len(charts) > 1:
                axes.tick_params(axis="x", labelsize=7.5)
                axes.set_ylabel(chart.y.label if chart.y != charts[place - 1].y or not place else "")
        return Drawing(
            Markup(svg(figure, name)),
            [chart.as_dict() for chart in charts],
            [row for chart in charts for row in _table(chart, titled=len(charts) > 1)],
            round(height * 92 / (len(charts) if down else 1)),
            down,
        )


def _table(chart: Chart, *, titled: bool) -> list[Told]:
    value, key = (chart.x, chart.y) if chart.across else (chart.y, chart.x)
    rows = []
    for series in chart.series:
        values, keys = (series.x, series.y) if chart.across else (series.y, series.x)
        name = f"{chart.title}: {series.label}" if titled else series.label
        known = values[~np.isnan(values)]
        if not len(known):
            continue
        if len(values) > _TOLD:
            low, middle, high = (_text(v, value) for v in np.quantile(known, (0, 0.5, 1)))
            rows.append(Told(name, "", low, middle, high))
            continue
        for place, (at, each) in enumerate(zip(keys, values, strict=True)):
            what = series.texts[place] if series.texts else _text(at, key)
            ends = ("", "")
            if series.low is not None and series.high is not None:
                ends = (_text(series.low[place], value), _text(series.high[place], value))
            rows.append(Told(name, what, ends[0], _text(each, value), ends[1]))
    return rows


def _text(value: float, axis: Axis) -> str:
    if axis.names:
        return axis.names[int(value)] if float(value).is_integer() and 0 <= value < len(axis.names) else ""
    return quantity(float(value), axis.unit, modelled=axis.simulated)


def _legend(chart: Chart, width: float) -> tuple[int, int]:
    """Columns and rows of the legend over a plot `width` inches wide; 0 and 0 where it needs none."""
    named = [series.label for series in chart.series if not series.labelled]
    if len(named) < 2:
        return 0, 0
    wide = max(map(len, named)) + _KEY_CHARACTERS
    columns = min(len(named), 6, max(1, int(width * _CHARACTERS_PER_INCH / wide)))
    return columns, -(-len(named) // columns)


def _panel(axes: Axes, chart: Chart, *, legend_columns: int) -> None:
    for left, right, name in chart.shades:
        if name != "measured":
            axes.axvspan(left, right, color="#eef0f3", zorder=-2, linewidth=0)
        if right - left > 0.06 * (chart.shades[-1][1] - chart.shades[0][0]):
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
    areas = [series for series in chart.series if series.kind == "area"]
    if chart.stacked and areas:
        axes.stackplot(
            areas[0].x,
            [np.nan_to_num(series.y) for series in areas],
            labels=[series.label for series in areas],
            colors=[series.colour for series in areas],
            linewidth=0,
            step="post",
        )
    for order, series in enumerate(chart.series):
        if not (chart.stacked and series.kind == "area"):
            _draw(axes, series, chart, _MARKERS[order % len(_MARKERS)])
    _scale(axes, axes.xaxis, chart.x, axes.set_xlim)
    _scale(axes, axes.yaxis, chart.y, axes.set_ylim)
    for mark in chart.marks:
        _mark(axes, chart, mark.axis == "x", mark.at, mark.text, dashed=mark.dashed)
    if chart.shades:
        axes.set_xlim(chart.shades[0][0], chart.shades[-1][1])
    axes.set_xlabel(chart.x.label)
    axes.set_ylabel(chart.y.label)
    if not chart.series:
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
    if legend_columns:
        legend_above(axes, columns=legend_columns)


def _draw(axes: Axes, series: Series, chart: Chart, marker: str) -> None:
    colour = ON_PAPER if series.colour == INK else series.colour
    line: Any = {"color": colour, "label": series.label, "linewidth": series.width}
    if series.dashed:
        line["linestyle"] = (0, (4, 2))
    match series.kind:
        case "line":
            axes.plot(series.x, series.y, **line)
        case "steps":
            axes.step(series.x, series.y, where="post", **line)
        case "area":
            axes.fill_between(series.x, series.y, step="post", color=colour, alpha=0.25, linewidth=0)
            axes.step(series.x, series.y, where="post", **line)
        case "bars":
            axes.barh(series.y, series.x - chart.base, left=chart.base, height=0.6, color=colour, alpha=0.6)
        case "dots":
            axes.scatter(
                series.x,
                series.y,
                s=18 if series.labelled else max(2.0, min(12.0, 12_000 / max(len(series.x), 1))),
                color=colour,
                label=None if series.labelled else series.label,
                alpha=1.0 if series.labelled else 0.7,
                linewidths=0,
                rasterized=not series.labelled,
            )
        case "points":
            if chart.across:
                line["linewidth"] = 0
            axes.plot(series.x, series.y, **line)
            hollow = series.hollow if series.hollow is not None else np.zeros(len(series.x), bool)
            for empty in (False, True):
                axes.plot(
                    series.x[hollow == empty],
                    series.y[hollow == empty],
                    marker,
                    color=colour,
                    markerfacecolor="white" if empty else colour,
                    markersize=4.5,
                )
    if series.low is not None and series.high is not None:
        lines = axes.hlines if chart.across else axes.vlines
        at = series.y if chart.across else series.x
        lines(at, series.low, series.high, color=colour if series.kind != "bars" else ON_PAPER, linewidth=1.8)
    if series.labelled:
        _labels(axes, series, chart)


def _labels(axes: Axes, series: Series, chart: Chart) -> None:
    for place, (given, y, text) in enumerate(zip(series.x, series.y, series.texts, strict=True)):
        x = chart.base if np.isnan(given) else given
        right = series.high[place] if chart.across and series.high is not None else x
        over = chart.across and x < chart.base
        axes.annotate(
            text,
            (x if over else right, y),
            xytext=(-6, 0) if over else (6, 0) if chart.across else (5, 3),
            textcoords="offset points",
            fontsize=7.5,
            ha="right" if over else "left",
            va="center" if chart.across else "baseline",
            color="#33373d",
        )


def _scale(
    axes: Axes, axis: PlottedAxis, shown: Axis, limit: Callable[[float | None, float | None], Any]
) -> None:
    name = "x" if axis is axes.xaxis else "y"
    if shown.log:
        axes.set(**{f"{name}scale": "log"})
    if shown.low is not None or shown.high is not None:
        limit(shown.low, shown.high)
    if shown.names:
        limit(-0.7, len(shown.names) - 0.3)
        axis.set_ticks(np.arange(len(shown.names)), list(shown.names), fontsize=8)
        axes.grid(visible=False, axis="y" if name == "y" else "x")
    elif shown.ticks:
        axis.set_ticks([at for at, _ in shown.ticks], [text for _, text in shown.ticks])
        axis.set_minor_locator(MaxNLocator(1))
        axes.minorticks_off()
    elif shown.log:
        log_ticks(axis, lambda value: tick(value, shown.unit), most=4 if shown.unit == "s" else 12)


def _mark(axes: Axes, chart: Chart, upright: bool, at: float, text: str, *, dashed: bool) -> None:
    style: Any = {"color": ON_PAPER, "linewidth": 1, "linestyle": (0, (4, 3)) if dashed else "-"}
    (axes.axvline if upright else axes.axhline)(at, **style)
    if text:
        axes.annotate(
            text,
            (at, 1) if upright else (1, at),
            xycoords=("data", "axes fraction") if upright else ("axes fraction", "data"),
            xytext=(4, -8) if upright else (-4, -3),
            textcoords="offset points",
            ha="left" if upright else "right",
            va="top",
            fontsize=7.5,
        )


def tick(value: float, unit: str) -> str:
    """A value for a tick: no more digits than it needs, times with their unit."""
    if unit != "s":
        return f"{value:,g}"
    if value < 1e-3:
        return f"{value * 1e6:g} µs"
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:g} s"


def steps(edges: F64, values: F64) -> tuple[F64, F64]:
    """Steps (x, y) of `values`, one a bin between `edges`; the last is held to the last edge."""
    return edges, np.append(values, values[-1:] if len(values) else [np.nan])
