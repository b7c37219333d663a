"""A sweep as a table, as CSV and as a page: energy per request and latency over the rate."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from wattload.colours import BLUE, GREEN, PURPLE, RED, SKY
from wattload.report.chart import Axis, Chart, Mark, Series
from wattload.report.drawing import Drawing, draw
from wattload.report.formatting import digits, quantity
from wattload.report.page import environment
from wattload.rundir.numbers import number_of
from wattload.sweep.search import POINT_NUMBERS, Point
from wattmeter.whole_file import write_atomically

# The columns of the table with their headings, short enough for 80 characters.
_COLUMNS = {
    "completed": "n",
    "joules_per_request": "J/req",
    "joules_per_good_request": "J/SLO",
    "mean_watts": "W",
    "ttft_p99_seconds": "TTFT p99",
    "tpot_p99_seconds": "TPOT p99",
    "met_fraction": "SLO %",
}
_WITH_INTERVAL = "joules_per_request"


def print_points(points: Sequence[Point], best: Point | None, console: Console | None = None) -> None:
    """One line a rate; the best is marked."""
    out = console or Console()
    title = "sweep (energy is simulated)" if any(point.modelled for point in points) else "sweep"
    table = Table(
        title=title, title_justify="left", header_style="bold", pad_edge=False, box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("target /s", justify="right", no_wrap=True)
    for heading in _headings():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for point in points:
        table.add_row(f"{point.rate_rps:.4g}", *_cells(point), _note(point, best))
    out.print(table)
    for point in points:
        for reason in point.reasons:
            out.print(f"{point.rate_rps:.4g}/s not valid: {reason}", style="red", highlight=False)


def _headings() -> list[str]:
    """Of the columns after the rate."""
    found = []
    for name, heading in _COLUMNS.items():
        found += [heading, "95 % interval"] if name == _WITH_INTERVAL else [heading]
    return found


def _cells(point: Point) -> list[str]:
    cells = []
    for name in _COLUMNS:
        cells.append(_text(getattr(point, name), number_of(POINT_NUMBERS[name]).unit))
        if name == _WITH_INTERVAL:
            pair = point.joules_per_request_ci95
            cells.append("none" if pair is None else f"[{pair[0]:.3g}, {pair[1]:.3g}]")
    return cells


def _note(point: Point, best: Point | None) -> str:
    if point is best:
        return "best"
    return "not valid" if not point.valid else "" if point.steady else "not steady"


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Every field of every point."""
    path.write_text(_csv(points), encoding="utf-8", newline="")


def _csv(points: Sequence[Point]) -> str:
    names = [field.name for field in dataclasses.fields(Point)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    for point in points:
        writer.writerow([getattr(point, name) for name in names])
    return text.getvalue()


def write_page(points: Sequence[Point], best: Point | None, path: Path) -> None:
    """Writes the self-contained page to `path`, and its plot alone as an SVG beside it."""
    drawing = _drawing(points, best)
    rows = [
        ([f"{point.rate_rps:.4g}", *_cells(point)], point.directory.name, _note(point, best))
        for point in points
    ]
    text = (
        environment()
        .get_template("sweep.html")
        .render(
            drawing=drawing,
            columns=["target /s", *_headings()],
            rows=rows,
            best=best,
            simulated=any(point.modelled for point in points),
            invalid=[point for point in points if not point.valid],
            csv=base64.b64encode(_csv(points).encode()).decode(),
        )
    )
    write_atomically(path, text)
    head = '<?xml version="1.0" encoding="utf-8" standalone="no"?>\n'
    write_atomically(path.with_suffix(".svg"), head + str(drawing.still))


def _drawing(points: Sequence[Point], best: Point | None) -> Drawing:
    """Energy with its interval, and latency, over the rate; then the trade-off between them.

    Runs that are not valid are hollow. What no run has is not drawn: an axis without values says so.
    """
    simulated = any(point.modelled for point in points)
    rate = Axis("target rate", "requests/s", log=True)
    joules = Axis("energy", "J", low=0.0, simulated=simulated)
    marks = () if best is None else (Mark("x", best.rate_rps, "best"),)
    energy = [
        _curve(points, "joules_per_request", BLUE, "per request"),
        _curve(points, "joules_per_good_request", GREEN, "per SLO-compliant request"),
    ]
    latency = [
        _curve(points, "ttft_p50_seconds", SKY, "TTFT p50"),
        _curve(points, "ttft_p99_seconds", RED, "TTFT p99"),
        _curve(points, "tpot_p99_seconds", PURPLE, "TPOT p99"),
    ]
    both = [p for p in points if p.joules_per_request is not None and (p.ttft_p99_seconds or 0) > 0]
    trade = Series(
        "a rate",
        np.array([p.ttft_p99_seconds for p in both], np.float64),
        np.array([p.joules_per_request for p in both], np.float64),
        BLUE,
        "points",
        hollow=np.array([not p.valid for p in both], bool),
        texts=tuple(f"{p.rate_rps:g}/s" for p in both),
        labelled=True,
    )

    def chart(title: str, x: Axis, y: Axis, series: list[Series], marks: tuple[Mark, ...] = ()) -> Chart:
        drawn = tuple(each for each in series if len(each.x))
        return Chart(title, x, y, drawn, marks=marks if drawn else (), nearest=True)

    return draw(
        "sweep",
        chart("Energy", rate, joules, energy, marks),
        chart("Latency", rate, Axis("latency", "s", log=True), latency, marks),
        chart("Trade-off", Axis("TTFT p99", "s", log=True), joules, [trade]),
        width=11.4,
        height=3.4,
    )


def _curve(points: Sequence[Point], name: str, colour: str, label: str) -> Series:
    """One number over the rate, where a run has one that a logarithmic axis can show."""
    having = [p for p in points if (getattr(p, name) or 0.0) > 0]
    spread = [p.joules_per_request_ci95 for p in having]
    ends = np.array([pair or (np.nan, np.nan) for pair in spread], np.float64).reshape(-1, 2).T
    with_interval = name == _WITH_INTERVAL
    return Series(
        label,
        np.array([p.rate_rps for p in having], np.float64),
        np.array([getattr(p, name) for p in having], np.float64),
        colour,
        "points",
        low=ends[0] if with_interval else None,
        high=ends[1] if with_interval else None,
        hollow=np.array([not p.valid for p in having], bool),
    )


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{value * 100:.1f}"
    return (
        quantity(value, unit) if unit == "s" else digits(value) if isinstance(value, float) else f"{value:,}"
    )
