"""The comparison as one HTML page, and as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from wattload.compare import Against, Change, Comparison
from wattload.report.page import environment
from wattload.report.plots import short_seconds
from wattload.report.quantities import digits, interval, quantity
from wattload.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    legend_above,
    log_ticks,
    plotting,
    svg,
)
from wattload.rundir import write_atomically

_COLOURS = (GREY, BLUE, RED, GREEN, PURPLE, ORANGE, SKY)


def write_page(comparison: Comparison, path: Path, met: list[str]) -> None:
    """Writes the self-contained page to `path`."""
    modelled = "modelled" in comparison.baseline.json.energy.flags
    text = (
        environment()
        .get_template("compare.html")
        .render(
            comparison=comparison,
            runs=[comparison.baseline, *comparison.others],
            met=met,
            forests=[(run, forest(run, number)) for number, run in enumerate(comparison.against)],
            tables=[(run, [_row(change, modelled) for change in run.changes]) for run in comparison.against],
            energy=energy_bars(comparison),
            ecdf=latency_curves(comparison),
        )
    )
    write_atomically(path, text)


def print_table(comparison: Comparison, console: Console | None = None) -> None:
    """One table a run against the baseline: before, after, change with interval."""
    out = console or Console()
    modelled = "modelled" in comparison.baseline.json.energy.flags
    for run in comparison.against:
        word = " (joules and watts modelled)" if modelled else ""
        title = f"{run.name} against {comparison.baseline.name}{word}"
        table = Table(title=title, title_justify="left", pad_edge=False)
        table.add_column("number", no_wrap=True)
        for name in ("before", "after", "change", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("sure")
        for change in run.changes:
            table.add_row(*_row(change, False)[:-1])
        out.print(table)
        first = next((c for c in run.changes if c.interval is not None), None)
        if first is not None:
            out.print(
                f"  {first.title}: a change from {_row(first, False)[-1]} on would be seen", style="dim"
            )
        for note in run.notes:
            out.print(f"  {note}", highlight=False, style="dim")


def _row(change: Change, modelled: bool) -> tuple[str, str, str, str, str, str, str]:
    relative = f"{change.fraction:+.2%}" if change.fraction is not None else "–"
    spread, least = "", ""
    if change.interval is not None and change.before:
        seen = change.interval.minimum_detectable_difference(paired=True) / abs(change.before)
        least = f"{seen:.2%}"
        low, high = (edge / abs(change.before) for edge in change.interval.pair)
        spread = f"[{low:+.2%}, {high:+.2%}]"
    verdict = {None: "", True: "yes", False: "no"}[change.sure]
    values = (quantity(value, change.unit, modelled=modelled) for value in (change.before, change.after))
    before, after = values
    return change.title, before, after, relative, spread, verdict, least


def forest(run: Against, number: int) -> str | None:
    """Relative changes with their intervals, one line a number; zero is no change."""
    known = [c for c in run.changes if c.interval is not None and c.before]
    if not known:
        return None
    with plotting(height=0.7 + 0.24 * len(known)) as figure:
        axes = figure.add_subplot()
        for place, change in enumerate(reversed(known)):
            assert change.interval is not None
            low, middle, high = (
                v / abs(change.before) * 100
                for v in (change.interval.low, change.interval.estimate, change.interval.high)
            )
            colour = BLUE if change.sure else GREY
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([middle], [place], "o" if change.sure else "D", color=colour, markersize=5)
        axes.axvline(0, color="#222222", linewidth=1)
        axes.set_yticks(range(len(known)), [c.title for c in reversed(known)], fontsize=8)
        axes.set_ylim(-0.7, len(known) - 0.3)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("change in percent; a filled circle: the interval excludes no change")
        return svg(figure, f"forest{number}")


def energy_bars(comparison: Comparison) -> str | None:
    """Joules per request of every run with its interval."""
    runs = [comparison.baseline, *comparison.others]
    known = [run for run in runs if run.json.energy.per_request_joules is not None]
    if not known:
        return None
    word = " (modelled)" if any("modelled" in run.json.energy.flags for run in known) else ""
    with plotting(height=0.8 + 0.32 * len(known)) as figure:
        axes = figure.add_subplot()
        for place, run in enumerate(reversed(known)):
            per = run.json.energy.per_request_joules
            assert per is not None
            mean = per.mean or 0.0
            low, high = per.ci95 or (mean, mean)
            colour = _COLOURS[runs.index(run) % len(_COLOURS)]
            axes.barh([place], [mean], color=colour, alpha=0.55, height=0.6)
            axes.errorbar([mean], [place], xerr=[[mean - low], [high - mean]], color="#222222", capsize=3)
            label = f"{digits(mean)} {interval(per.ci95, '', mean)}"
            axes.annotate(
                label, (high, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(known)), [run.name for run in reversed(known)])
        axes.set_xlim(0, axes.get_xlim()[1] * 1.22)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"joules per request{word}, idle included")
        return svg(figure, "energybars")


def latency_curves(comparison: Comparison) -> str:
    """TTFT and TPOT of every run: share of completed requests that took at most so long."""
    with plotting(height=2.8) as figure:
        panels = figure.subplots(1, 2)
        for axes, what, title in (
            (panels[0], "ttft", "time to first token"),
            (panels[1], "tpot", "time per output token"),
        ):
            for number, run in enumerate([comparison.baseline, *comparison.others]):
                values = getattr(run.data.requests, what)[run.data.done]
                known = values[~np.isnan(values)]
                if not len(known):
                    continue
                share = np.linspace(0, 1, 400)
                axes.plot(
                    np.maximum(np.quantile(known, share), 1e-6),
                    share,
                    color=_COLOURS[number % len(_COLOURS)],
                    linestyle="-" if number == 0 else (0, (5, 1 + number % 3)),
                    label=run.name,
                )
            axes.set_xscale("log")
            log_ticks(axes.xaxis, short_seconds)
            axes.tick_params(axis="x", labelsize=7.5)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel(title)
        panels[0].set_ylabel("share at most so long")
        legend_above(panels[0], columns=4)
        return svg(figure, "curves")
