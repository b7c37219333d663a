"""A sweep as a table, as CSV and as a plot: what a request costs, and how long it takes, over the rate."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wattload.sweep import Point


def print_points(points: Sequence[Point], best: Point | None, console: Console | None = None) -> None:
    """One line a rate; the best is marked."""
    out = console or Console()
    title = "sweep (energy is modelled)" if any(point.modelled for point in points) else "sweep"
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    for name in (
        "rate /s",
        "sent /s",
        "J/request",
        "J/good",
        "W",
        "TTFT p99",
        "TPOT p99",
    ):
        table.add_column(name, justify="right")
    table.add_column("in limits", justify="right")
    table.add_column("")
    for point in points:
        note = "best" if point is best else "" if point.valid else "not valid"
        share = None if point.met_fraction is None else point.met_fraction * 100
        table.add_row(
            f"{point.rate_rps:.4g}",
            _text(point.achieved_rps),
            _text(point.joules_per_request),
            _text(point.joules_per_good_request),
            _text(point.mean_watts),
            _time(point.ttft_p99_seconds),
            _time(point.tpot_p99_seconds),
            "-" if share is None else f"{share:.1f} %",
            note,
        )
    out.print(table)
    for point in points:
        for reason in point.reasons:
            out.print(f"{point.rate_rps:.4g}/s not valid: {reason}", style="red", highlight=False)


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Every field of every point."""
    names = [field.name for field in dataclasses.fields(Point)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for point in points:
            writer.writerow([getattr(point, name) for name in names])


def write_plot(points: Sequence[Point], best: Point | None, path: Path) -> None:
    """An SVG: energy a request (with its interval) and latency over the rate; runs that are not valid are
    hollow.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    modelled = " (modelled)" if any(point.modelled for point in points) else ""
    known = [p for p in points if p.joules_per_request is not None]
    left.plot(
        [p.rate_rps for p in known], [p.joules_per_request for p in known], color="#2563eb", label="a request"
    )
    for point in known:
        if point.joules_per_request_ci95 is not None:
            left.vlines(point.rate_rps, *point.joules_per_request_ci95, color="#2563eb", alpha=0.5)
        face = "#2563eb" if point.valid else "white"
        left.plot(point.rate_rps, point.joules_per_request, "o", color="#2563eb", markerfacecolor=face)
    good = [p for p in points if p.joules_per_good_request is not None]
    left.plot(
        [p.rate_rps for p in good],
        [p.joules_per_good_request for p in good],
        "--",
        color="#059669",
        label="a request within the limits",
    )
    left.set_ylabel(f"joules{modelled}")
    left.set_ylim(bottom=0)
    for name, colour, label in (
        ("ttft_p50_seconds", "#d97706", "TTFT p50"),
        ("ttft_p99_seconds", "#b45309", "TTFT p99"),
        ("tpot_p99_seconds", "#7c3aed", "TPOT p99"),
    ):
        having = [p for p in points if getattr(p, name) is not None]
        values = [getattr(p, name) for p in having]
        right.plot([p.rate_rps for p in having], values, "o-", color=colour, label=label, markersize=3)
    right.set_yscale("log")
    right.set_ylabel("seconds")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("requests a second")
        axes.grid(alpha=0.25)
        if best is not None:
            axes.axvline(best.rate_rps, color="#dc2626", linewidth=0.8, linestyle=":", label="best")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
