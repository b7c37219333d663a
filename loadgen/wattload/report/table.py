"""A run's summary for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from wattload.report.answer import certainty, sentences
from wattload.report.quantities import interval, quantity
from wattload.runjson import RunJson


def print_summary(run: RunJson, console: Console | None = None) -> None:
    """The answer, a table of the headline numbers, the flags, and last whether the run is valid."""
    out = console or Console()
    for sentence in sentences(run):
        out.print(sentence, highlight=False)
    sure = certainty(run)
    if sure:
        out.print(sure, style="dim", highlight=False)
    table = Table(title=run.name, title_justify="left", header_style="bold", pad_edge=False)
    for name, justify in (("", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(name, justify="left" if justify == "left" else "right")
    for row in _rows(run):
        table.add_row(*row)
    out.print(table)
    for note in run.notes:
        out.print(f"note: {note}", highlight=False)
    if run.energy.flags:
        out.print(f"flags: {', '.join(run.energy.flags)}", highlight=False)
    if run.valid:
        out.print("valid run", style="green")
    else:
        for reason in run.reasons:
            out.print(f"not valid: {reason}", style="red", highlight=False)


def _rows(run: RunJson) -> list[tuple[str, str, str]]:
    energy, per = run.energy, run.energy.per_request_joules
    modelled = "modelled" in energy.flags
    rows: list[tuple[str, str, str]] = []

    def add(name: str, value: float | None, unit: str, spread: tuple[float, float] | None = None) -> None:
        if value is not None:
            rows.append((name, quantity(value, unit, modelled=modelled), interval(spread, unit, value)))

    add("asked", run.load.planned_rps, "requests/s")
    add("sent", run.load.achieved_rps, "requests/s")
    counts = run.requests
    rows.append(("completed in the window", f"{counts.completed_in_window} of {counts.in_window}", ""))
    for name, count in counts.failed.items():
        rows.append((f"not completed: {name}", f"{count}", ""))
    if per is not None:
        add("energy a request", per.mean, "J", per.ci95)
        add("  its own (attributed)", per.attributed_mean, "J", per.attributed_ci95)
        spread = per.quantile_ci95 or {}
        for q in ("p50", "p99"):
            add(f"  its own, {q}", getattr(per, q), "J", spread.get(q))
    add("energy an output token", energy.per_output_token_joules, "J", energy.per_output_token_ci95)
    add("energy a token", energy.per_token_joules, "J", energy.per_token_ci95)
    add("mean power", energy.mean_watts, "W")
    for part in ("idle", "prefill", "decode", "unattributed"):
        add(f"  {part}", getattr(energy, f"{part}_joules"), "J")
    for field, name in (("ttft_seconds", "TTFT"), ("tpot_seconds", "TPOT"), ("e2e_seconds", "whole request")):
        latency = getattr(run.latency, field)
        if latency is not None:
            spread = latency.quantile_ci95 or {}
            for q in ("p50", "p99"):
                add(f"{name} {q}", getattr(latency, q), "s", spread.get(q))
    if run.load.send_lag_seconds is not None:
        add("send lag p99", run.load.send_lag_seconds.p99, "s")
    if run.slo is not None and run.slo.met_fraction is not None:
        add("within the limits", run.slo.met_fraction * 100, "%")
        add("energy a good request", run.slo.joules_per_good_request, "J")
    return rows
