"""The comparison as one HTML page, and as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from wattload.analysis.compare import Against, Change, Comparison, NotCompared
from wattload.colours import BLUE, GREY, SERIES
from wattload.report.chart import Axis, Chart, Mark, Series
from wattload.report.drawing import Drawing, draw
from wattload.report.formatting import digits, interval, quantity
from wattload.report.page import environment
from wattmeter.whole_file import write_atomically

# What stands in the place of a figure that there is none of.
_NONE = "–"


def write_page(comparison: Comparison, path: Path, met: list[str]) -> None:
    """Writes the self-contained page to `path`."""
    modelled = comparison.baseline.result.energy.simulated
    text = (
        environment()
        .get_template("compare.html")
        .render(
            comparison=comparison,
            runs=[comparison.baseline, *comparison.others],
            met=met,
            forests=[(run, forest(run, number)) for number, run in enumerate(comparison.against)],
            tables=[
                (
                    run,
                    [
                        *(_row(change, modelled) for change in run.changes),
                        *(_lone_row(each, modelled) for each in run.not_compared),
                    ],
                )
                for run in comparison.against
            ],
            lone_notes=lone_notes,
            energy=energy_bars(comparison),
            ecdf=latency_curves(comparison),
        )
    )
    write_atomically(path, text)


def print_table(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a table per run against the baseline: before, after, change with interval."""
    out = console or Console()
    modelled = comparison.baseline.result.energy.simulated
    for run in comparison.against:
        word = " (joules and watts simulated)" if modelled else ""
        title = f"{run.name} against {comparison.baseline.name}{word}"
        table = Table(title=title, title_justify="left", pad_edge=False)
        table.add_column("")
        for name in ("before", "after", "change", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("significant")
        for change in run.changes:
            table.add_row(*_row(change, False)[:-1])
        for each in run.not_compared:
            table.add_row(*_lone_row(each, False)[:-1])
        out.print(table)
        first = next((c for c in run.changes if c.ratio is not None), None)
        if first is not None:
            out.print(f"  {first.title}: minimum detectable change {_row(first, False)[-1]}", style="dim")
        for note in [*run.notes, *lone_notes(run)]:
            out.print(f"  {note}", highlight=False, style="dim")


def _row(change: Change, modelled: bool) -> tuple[str, str, str, str, str, str, str]:
    relative = f"{change.fraction:+.2%}" if change.fraction is not None else _NONE
    spread, least = "", ""
    if change.relative_ci95 is not None:
        low, high = change.relative_ci95
        spread, least = f"[{low:+.2%}, {high:+.2%}]", f"{change.minimum_detectable_fraction:.2%}"
    verdict = {None: "", True: "yes", False: "no"}[change.significant]
    values = (quantity(value, change.unit, modelled=modelled) for value in (change.before, change.after))
    before, after = values
    return change.title, before, after, relative, spread, verdict, least


def _lone_row(each: NotCompared, modelled: bool) -> tuple[str, str, str, str, str, str, str]:
    """The row of a number that one run has: a dash for the other, and no change."""
    values = (
        _NONE if value is None else quantity(value, each.unit, modelled=modelled)
        for value in (each.before, each.after)
    )
    before, after = values
    return each.title, before, after, _NONE, "", "", ""


def lone_notes(run: Against) -> list[str]:
    """Why some numbers are not compared, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for each in run.not_compared:
        reasons.setdefault(each.reason, []).append(each.title)
    return [f"not compared ({_NONE}): {', '.join(titles)}: {why}" for why, titles in reasons.items()]


def forest(run: Against, number: int) -> Drawing | None:
    """Relative changes with their intervals, a line per number; zero is no change."""
    known = [c for c in reversed(run.changes) if c.relative_ci95 is not None and c.fraction is not None]
    if not known:
        return None
    changes = np.array([(c.fraction, *(c.relative_ci95 or ())) for c in known], np.float64).T * 100
    places = np.arange(len(known), dtype=np.float64)
    significant = np.array([bool(c.significant) for c in known])
    series = tuple(
        Series(
            name,
            changes[0][mine],
            places[mine],
            colour,
            "points",
            low=changes[1][mine],
            high=changes[2][mine],
            hollow=~significant[mine],
        )
        for name, mine, colour in (
            ("significant (95 %)", significant, BLUE),
            ("not significant", ~significant, GREY),
        )
        if mine.any()
    )
    chart = Chart(
        f"{run.name} against the baseline",
        Axis("change", "%"),
        Axis("", names=tuple(c.title for c in known)),
        series,
        marks=(Mark("x", 0.0, dashed=False),),
        nearest=True,
        across=True,
    )
    return draw(f"forest{number}", chart, height=0.9 + 0.24 * len(known))


def energy_bars(comparison: Comparison) -> Drawing | None:
    """Energy per request of every run with its interval."""
    runs = [comparison.baseline, *comparison.others]
    known = [run for run in reversed(runs) if run.result.energy.per_request_joules is not None]
    if not known:
        return None
    series, ends = [], []
    for place, run in enumerate(known):
        per = run.result.energy.per_request_joules
        assert per is not None
        mean = per.mean or 0.0
        low, high = per.ci95 or (mean, mean)
        ends.append(high)
        series.append(
            Series(
                run.name,
                np.array([mean]),
                np.array([float(place)]),
                SERIES[runs.index(run) % len(SERIES)],
                "bars",
                low=np.array([low]),
                high=np.array([high]),
                texts=(f"{digits(mean)} {interval(per.ci95, '', mean)}",),
                labelled=True,
            )
        )
    simulated = any(run.result.energy.simulated for run in known)
    chart = Chart(
        "Energy per request",
        Axis(
            "energy per request, idle included",
            "J",
            low=0.0,
            high=max([*ends, 1e-9]) * 1.4,
            simulated=simulated,
        ),
        Axis("", names=tuple(run.name for run in known)),
        tuple(series),
        nearest=True,
        across=True,
    )
    return draw("energybars", chart, height=0.8 + 0.32 * len(known))


def latency_curves(comparison: Comparison) -> Drawing:
    """Cumulative distributions of TTFT and TPOT of every run, of its completed requests."""
    share = np.linspace(0, 1, 400)
    charts = []
    for what, title in (("ttft", "TTFT"), ("tpot", "TPOT")):
        series = []
        for number, run in enumerate([comparison.baseline, *comparison.others]):
            values = getattr(run.data.requests, what)[run.data.done]
            known = values[~np.isnan(values)]
            if len(known):
                x = np.maximum(np.quantile(known, share), 1e-6)
                series.append(Series(run.name, x, share, SERIES[number % len(SERIES)], dashed=number > 0))
        y = Axis("cumulative share", low=0.0, high=1.02)
        charts.append(Chart(title, Axis(title, "s", log=True), y, tuple(series)))
    return draw("curves", *charts, height=2.8)
