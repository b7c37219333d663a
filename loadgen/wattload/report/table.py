"""A run's summary for the terminal: verdict, figures in three groups, notes, failures, files, what next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from wattload.analysis.failures import told
from wattload.report.formatting import digits, percent, quantity, show
from wattload.report.models import done, energy_cells, latency_cells, partial_energy
from wattload.report.summary import certainty
from wattload.report.verdict import verdict
from wattload.rundir.numbers import headline, number_of
from wattload.rundir.result import Distribution, RunJson

_COLOURS = {"valid": "bold green", "notes": "bold yellow", "invalid": "bold red"}
_LATENCIES = (
    ("TTFT", "ttft_seconds"),
    ("TPOT", "tpot_seconds"),
    ("ITL", "itl_seconds"),
    ("End-to-end latency", "e2e_seconds"),
)
_EACH = "energy.per_request_joules"
_UNIT = (
    "completed",
    "energy_joules.mean",
    "attributed_joules",
    "idle_joules",
    "waiting_idle_joules",
    "cache_saved_joules",
    "waiting_seconds",
)


def print_summary(run: RunJson, console: Console | None = None, *, directory: Path | None = None) -> None:
    """Prints the summary; `directory` is the run directory, whose files are named at the end."""
    out = console or Console()
    if run.energy.simulated:
        banner = "SIMULATED: no sensor read these joules and watts"
        out.print(Panel(banner, style="bold yellow", expand=False, padding=(0, 1)))
    found = verdict(run)
    out.print(found.title, style=_COLOURS[found.kind], highlight=False)
    if found.kind == "invalid":
        _list(out, found.lines)
    out.print(_conditions(run), style="dim", highlight=False)
    out.print(_figures(run))
    if split := _split(run):
        out.print(f"Split: {split}\n", highlight=False)
    if any(getattr(run.latency, name) is not None for _, name in _LATENCIES):
        out.print(_latency(run))
    if run.by_model:
        for table in _models(run):
            out.print()
            out.print(table)
        _list(out, partial_energy(run))
    sure = certainty(run)
    if sure:
        out.print(sure, style="dim", highlight=False)
    if run.notes:
        out.print("\nNotes", style="bold")
        _list(out, run.notes)
    if run.requests.failures:
        out.print("\nFailed requests, over the whole run", style="bold")
        _list(out, [told(failure) for failure in run.requests.failures])
    if directory is not None:
        report = directory / "report.html"
        files = f"report: {report}" if report.exists() else f"figures: {directory / 'run.json'}"
        out.print(f"\n{files}", highlight=False, soft_wrap=True)
        out.print(f"next: {_next(run, directory)}", highlight=False, soft_wrap=True)


def _list(out: Console, lines: tuple[str, ...] | list[str]) -> None:
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row(" -", line)
    out.print(table, highlight=False)


def _conditions(run: RunJson) -> str:
    """What was run, where, and over which time."""
    arrivals, window = run.workload.arrivals, run.window
    rate = f" at {arrivals.target_rps:g} requests/s" if arrivals.target_rps is not None else ""
    parts = [
        f"{run.workload.trace}, {arrivals.process} arrivals{rate}",
        f"{', '.join(run.by_model or {}) or run.target.model} at {run.target.url}",
    ]
    if window is not None:
        length, warmup = window.end_unix - window.start_unix, window.warmup_seconds
        parts.append(f"measured for {digits(length)} s after {digits(warmup)} s of warm-up")
    return "; ".join(parts)


def _figures(run: RunJson) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    # What has no room for its figures is folded, and no figure is cut.
    table.add_column("Load", header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for path in ("load.target_rps", "load.planned_rps", "load.achieved_rps"):
        _number(table, run, path)
    counts = run.requests
    completed = counts.completed_in_window or 0
    table.add_row("Completed in the window", f"{completed:,} of {counts.in_window:,}", "")
    _number(table, run, "tokens.prompt_per_second")
    _number(table, run, "tokens.output_per_second")
    if run.slo is not None:
        for path in ("slo.met_fraction", "slo.goodput_rps"):
            _number(table, run, path)
    table.add_row("", "", "")
    word = " (simulated)" if run.energy.simulated else ""
    source = f" ({run.energy.source})" if run.energy.source and not word else word
    table.add_row(f"[bold]Energy{source}[/]", "", "")
    paths = [headline(run).path, f"{_EACH}.mean", f"{_EACH}.attributed_mean", f"{_EACH}.p50", f"{_EACH}.p99"]
    paths += ["energy.per_output_token_joules", "energy.per_input_token_joules"]
    paths += ["energy.per_token_joules", "slo.joules_per_good_request"]
    paths += [
        "footprint.energy_kwh_per_1000_requests",
        "footprint.cost.per_1000_requests",
        "footprint.carbon_grams",
    ]
    measured = [
        _number(table, run, path)
        for path in dict.fromkeys((*paths, "energy.total_joules", "energy.mean_watts"))
    ]
    if run.sessions is not None:
        table.add_row("", "", "")
        table.add_row(f"[bold]Sessions and tasks of agents{word}[/]", "", "")
        for unit in ("per_session", "per_task"):
            for name in _UNIT:
                _number(table, run, f"sessions.{unit}.{name}")
    if not any(measured):
        table.add_row("not measured", run.absent.get("energy", ""), "")
    return table


def _number(table: Table, run: RunJson, path: str) -> bool:
    """Adds a row for a number that the run has; whether it has it. The heading says that joules are
    simulated.
    """
    shown = show(number_of(path), run, tag=False)
    if shown is not None:
        table.add_row(shown.title, shown.value, shown.interval)
    return shown is not None


def _split(run: RunJson) -> str:
    """Prefill, decode, idle and unattributed as shares of the total energy."""
    energy = run.energy
    if not energy.total_joules:
        return ""
    parts = {
        name: getattr(energy, f"{name}_joules") for name in ("prefill", "decode", "idle", "unattributed")
    }
    known = [
        f"{name} {percent(value / energy.total_joules)}" for name, value in parts.items() if value is not None
    ]
    return ", ".join(known)


def _latency(run: RunJson) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Latency", header_style="bold", no_wrap=True)
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for title, name in _LATENCIES:
        values: Distribution | None = getattr(run.latency, name)
        if values is not None:
            cells = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
            table.add_row(title, *(quantity(value, "s") for value in cells))
    lag = run.load.send_lag_seconds
    if lag is not None:
        table.add_row(
            "Dispatch delay",
            "",
            quantity(lag.p50, "s"),
            "",
            "",
            quantity(lag.p99, "s"),
            quantity(lag.max, "s"),
        )
    return table


def _models(run: RunJson) -> list[Table]:
    """What the requests for each of several models got, and what they cost."""
    word = " (simulated)" if run.energy.simulated else ""
    costs, times = (
        Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0)) for _ in range(2)
    )
    costs.add_column(f"Attributed energy by model{word}", header_style="bold", overflow="fold")
    for name in ("", "95 % interval"):
        costs.add_column(name, justify="right", no_wrap=True)
    times.add_column("Median latency by model", header_style="bold", overflow="fold")
    for name in ("completed", "TTFT", "TPOT", "End-to-end"):
        times.add_column(name, justify="right", no_wrap=True)
    for name, part in (run.by_model or {}).items():
        each, each_interval, token, token_interval = energy_cells(part, tag=False)
        costs.add_row(f"{name}, per request", each, each_interval)
        costs.add_row(f"{name}, per output token", token, token_interval)
        times.add_row(name, done(part), *latency_cells(part))
    return [costs, times]


def _next(run: RunJson, directory: Path) -> str:
    """The most useful command after this run."""
    fix = next((failure.hint for failure in run.requests.failures if failure.hint), None)
    if not run.valid and fix is not None:
        return fix
    per = run.energy.per_request_joules
    if run.valid and (per is None or per.ci95 is None):
        return "a longer run has intervals: --duration 10m"
    if run.slo is None:
        limits = "ttft=500ms,tpot=50ms" if run.latency.ttft_seconds is not None else "e2e=1s"
        return f"wattload report {directory} --slo {limits}, or wattload compare {directory} RUN"
    return f"wattload compare {directory} RUN"
