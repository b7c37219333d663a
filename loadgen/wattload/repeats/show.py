"""Repeats as a table for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from wattload.analysis.repeats import Repeats, as_dict
from wattload.report.formatting import interval, quantity
from wattload.rundir.numbers import headline

_SHOWN = (
    "energy.per_request_joules.mean",
    "energy.per_request_joules.attributed_mean",
    "energy.per_output_token_joules",
    "energy.mean_watts",
    "latency.ttft_seconds.p50",
    "latency.ttft_seconds.p99",
    "latency.tpot_seconds.p50",
    "latency.tpot_seconds.p99",
    "latency.e2e_seconds.mean",
    "slo.met_fraction",
)


def print_repeats(repeats: Repeats, console: Console | None = None) -> None:
    """A line per number: its mean over the repeats, the interval over them, and that within a run."""
    out = console or Console()
    modelled = repeats.result.energy.simulated
    word = " (joules and watts simulated)" if modelled else ""
    title = f"{repeats.name}: {len(repeats.valid_repeats)} valid repeats of {len(repeats.repeats)}{word}"
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("mean", "95 % interval over repeats", "within a run"):
        table.add_column(name, justify="right")
    numbers = as_dict(repeats)["numbers"]
    for path in dict.fromkeys((headline(repeats.result).path, *_SHOWN)):
        if path in numbers:
            each = numbers[path]
            spreads = [
                interval(tuple(each[name]), each["unit"], each["mean"]) if each[name] else "–"
                for name in ("ci95", "within_run_ci95")
            ]
            table.add_row(each["title"], quantity(each["mean"], each["unit"], modelled=False), *spreads)
    out.print(table)
    for text in (*repeats.notes, *(f"not valid: {reason}" for reason in repeats.reasons)):
        out.print(f"  {text}", highlight=False, style="dim")
