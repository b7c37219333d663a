"""One function a kind of panel: draws the answers to its queries into a matplotlib axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.dates as mdates
from checker.dashboard import PanelQuery
from checker.prometheus import Series
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from picture import quantity

# Okabe and Ito's palette: distinct for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#555555")
INK, FAINT = "#222222", "#888888"


@dataclass(frozen=True, slots=True)
class Line:
    """One series with what it is called; `dashed` for limits and references."""

    name: str
    unit: str
    column: str
    series: Series
    dashed: bool = False


def colours(panel: dict[str, Any], lines: Sequence[Line]) -> list[str]:
    """A colour for each line: the one that the dashboard fixes for its name, else the next of the palette."""
    fixed = {
        override["matcher"]["options"].strip("/"): each["value"]["fixedColor"]
        for override in panel["fieldConfig"].get("overrides", [])
        for each in override["properties"]
        if each["id"] == "color"
    }
    return [
        next((colour for name, colour in fixed.items() if re.search(name, line.name)), other)
        for line, other in zip(lines, COLOURS * 9, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Region:
    """A phase of a test, for the marks behind the lines."""

    name: str
    start: float
    end: float


def legend_name(query: PanelQuery, series: Series) -> str:
    """The legend with its {{labels}} filled in; without a legend, the labels."""
    name = query.legend
    if not name:
        return ", ".join(f"{k}={v}" for k, v in series.labels.items() if k != "__name__") or "value"
    for label, value in series.labels.items():
        name = name.replace(f"{{{{{label}}}}}", value)
    return name


def _days(unix_seconds: float) -> float:
    """A time as matplotlib's axes of dates have it: days since 1970 in UTC."""
    return unix_seconds / 86400.0


def _times(line: Line) -> list[float]:
    return [_days(t) for t, _ in line.series.samples]


def _axis(axes: Axes, unit: str, regions: Sequence[Region]) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: quantity.text(v, unit)))
    axes.xaxis.set_major_locator(mdates.AutoDateLocator(minticks=2, maxticks=7))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=7, colors=FAINT, length=2)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for region in regions:
        colour = "#0072B2" if region.name == "measure" else "#999999"
        axes.axvspan(_days(region.start), _days(region.end), color=colour, alpha=0.08, lw=0)


def timeseries(axes: Axes, panel: dict[str, Any], lines: Sequence[Line], regions: Sequence[Region]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not lines:
        axes.axis("off")
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color=FAINT, transform=axes.transAxes)
        return
    _axis(axes, unit, regions)
    stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
    floor: list[float] = []
    for line, colour in zip(lines, colours(panel, lines), strict=True):
        values = [v for _, v in line.series.samples]
        mean, last = sum(values) / len(values), values[-1]
        label = f"{line.name}   mean {quantity.text(mean, unit)}   last {quantity.text(last, unit)}"
        times = _times(line)
        if stacked and not line.dashed:
            below = floor if len(floor) == len(values) else [0.0] * len(values)
            floor = [a + b for a, b in zip(below, values, strict=True)]
            axes.fill_between(times, below, floor, color=colour, alpha=0.65, lw=0, label=label)
        else:
            axes.plot(times, values, "--" if line.dashed else "-", color=colour, lw=1.2, label=label)
    axes.set_ylim(bottom=0)
    if maximum := panel["fieldConfig"]["defaults"].get("max"):
        axes.set_ylim(top=maximum)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), fontsize=6.5, frameon=False, ncols=1,
                handlelength=1.4, labelspacing=0.25)  # fmt: skip


def stat(axes: Axes, panel: dict[str, Any], lines: Sequence[Line], regions: Sequence[Region]) -> None:
    axes.axis("off")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not lines:
        shown = "no data"
    elif panel["options"].get("textMode") == "name":
        shown = ", ".join(line.name for line in lines)
    else:
        shown = quantity.text(lines[0].series.samples[-1][1], unit)
        values = [v for _, v in lines[0].series.samples]
        if len(values) > 1 and max(values) > 0:
            spark = axes.inset_axes((0, 0, 1, 0.35))
            spark.fill_between(range(len(values)), values, color=COLOURS[0], alpha=0.18, lw=0)
            spark.set_ylim(0, 1.05 * max(values))
            spark.axis("off")
    axes.text(0.5, 0.55, shown, ha="center", va="center", fontsize=15, color=INK, transform=axes.transAxes)


def bargauge(axes: Axes, panel: dict[str, Any], lines: Sequence[Line], regions: Sequence[Region]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = [line.series.samples[-1][1] for line in lines]
    bars = axes.barh([line.name for line in lines], values, color=colours(panel, lines), height=0.6)
    axes.bar_label(bars, [quantity.text(v, unit) for v in values], fontsize=8, padding=4, color=INK)
    axes.set_xlim(0, 1.2 * max(values, default=1))
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def state_timeline(
    axes: Axes, panel: dict[str, Any], lines: Sequence[Line], regions: Sequence[Region]
) -> None:
    _axis(axes, "short", ())
    for row, line in enumerate(lines):
        on = [(t, v) for t, v in line.series.samples if v]
        step = line.series.samples[1][0] - line.series.samples[0][0] if len(line.series.samples) > 1 else 1.0
        spans = [(_days(t), _days(step)) for t, _ in on]
        axes.broken_barh(spans, (row - 0.35, 0.7), color=COLOURS[row % len(COLOURS)], lw=0)
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.xaxis_date()


def table(axes: Axes, panel: dict[str, Any], lines: Sequence[Line], regions: Sequence[Region]) -> None:
    axes.axis("off")
    key = panel["transformations"][0]["options"]["byField"]
    columns = list(dict.fromkeys(line.column for line in lines))
    cells: dict[str, dict[str, str]] = {}
    for line in lines:
        row = cells.setdefault(line.series.labels.get(key, ""), {})
        row[line.column] = quantity.text(line.series.samples[-1][1], line.unit)
    text = [[name, *(row.get(c, "") for c in columns)] for name, row in sorted(cells.items())]
    drawn = axes.table(
        text, colLabels=[key, *columns], loc="upper center", cellLoc="right", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.scale(1, 1.5)


DRAW = {
    "timeseries": timeseries,
    "stat": stat,
    "bargauge": bargauge,
    "state-timeline": state_timeline,
    "table": table,
}
