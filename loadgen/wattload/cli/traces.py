"""`wattload traces`: what there is to replay, fetched, shown and checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from wattload import traces
from wattload.cli.options import with_settings
from wattload.errors import InputError
from wattload.traces import ReadOptions, Trace
from wattload.traces import embedded as workloads
from wattload.traces.catalog import CATALOG
from wattload.traces.describe import AgentStatistics, ImageStatistics, TraceStatistics, statistics_of
from wattload.traces.fetch import fetch as fetch_trace
from wattload.traces.formats.registry import FORMATS

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameOrFile = Annotated[str, typer.Argument(metavar="NAME|FILE", help="An embedded workload or a file.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, fetch, show and check workloads and traces.", no_args_is_help=False)
    group.callback(invoke_without_command=True)(list_by_default)
    group.command("list")(list_traces)
    group.command("fetch")(fetch)
    group.command("show")(with_settings(show, stages=(ReadOptions,)))
    group.command("check")(with_settings(check, stages=(ReadOptions,)))
    app.add_typer(group, name="traces")


def list_by_default(context: typer.Context) -> None:
    """List, fetch, show and check workloads and traces."""
    if context.invoked_subcommand is None:
        list_traces(json_output=False)


def list_traces(json_output: Json = False) -> None:
    """Embedded workloads, traces that can be fetched, and the formats files may have."""
    embedded = [workloads.load(name) for name in workloads.NAMES]
    if json_output:
        typer.echo(
            json.dumps(
                {
                    "embedded": [
                        {
                            "name": w.name,
                            "title": w.title,
                            "rows": w.rows,
                            "licence": w.licence,
                            "citation": w.citation,
                        }
                        for w in embedded
                    ],
                    "fetchable": [dataclasses.asdict(public) for public in CATALOG],
                    "formats": [{"name": reader.name, "header": reader.header} for reader in FORMATS],
                },
                indent=1,
            )
        )
        return
    console = Console()
    table = Table(title="Embedded: statistical descriptions, drawn from by seed", title_justify="left")
    for column in ("name", "what", "rate", "licence", "derived from"):
        table.add_column(column)
    for w in embedded:
        table.add_row(w.name, w.title, f"{w.rate_rps:.2f}/s", w.licence, w.citation)
    console.print(table)
    table = Table(title="To fetch: wattload traces fetch NAME", title_justify="left")
    for column in ("name", "rows", "licence", "citation"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for public in CATALOG:
        table.add_row(
            public.name, f"{public.rows:,}" if public.rows else "?", public.licence, public.citation
        )
    console.print(table)
    table = Table(title="Formats of files, known by how they begin", title_justify="left")
    table.add_column("format")
    table.add_column("begins with")
    for reader in FORMATS:
        table.add_row(reader.name, reader.header)
    console.print(table)


def fetch(
    name: Annotated[str, typer.Argument(help="A name of `wattload traces`.")],
    out: Annotated[Path, typer.Option(help="The directory to put it into.")] = Path("traces"),
    json_output: Json = False,
) -> None:
    """Download a public trace, and print its checksum, licence and citation."""
    found = next((public for public in CATALOG if public.name == name), None)
    if found is None:
        raise InputError(
            f"{name}: no trace to fetch; there are {', '.join(public.name for public in CATALOG)}"
        )
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        got = fetch_trace(
            found, out, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if json_output:
        typer.echo(
            json.dumps(
                {**dataclasses.asdict(found), **dataclasses.asdict(got), "path": str(got.path)}, indent=1
            )
        )
        return
    if got.verified is None:
        checked = "none was published: written down, later fetches are held against it"
    else:
        checked = f"as expected ({got.verified})"
    typer.echo(f"{got.path} ({got.size_bytes:,} bytes{'' if got.downloaded else ', was there already'})")
    typer.echo(f"sha256   {got.sha256}, {checked}")
    typer.echo(f"licence  {found.licence}")
    typer.echo(f"cite     {found.citation}")


def show(
    name: NameOrFile,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the trace into this .svg, .png or .pdf file.")
    ] = None,
    json_output: Json = False,
    **settings: Any,
) -> None:
    """Statistics of a trace, as a table and, with --plot, as a picture."""
    trace = traces.load(name, ReadOptions.of(settings))
    statistics = statistics_of(trace)
    if plot is not None:
        from wattload.traces.plot import plot as draw

        draw(trace, plot)
    if json_output:
        typer.echo(json.dumps({**_identity(trace), **statistics.as_dict()}, indent=1))
        return
    print_statistics(Console(), trace, statistics)
    if plot is not None:
        typer.echo(f"drawn: {plot}")


def check(
    file: NameOrFile,
    max_model_len: Annotated[int | None, typer.Option(help="Refuse requests over this many tokens.")] = None,
    json_output: Json = False,
    **settings: Any,
) -> None:
    """Read a file as a run would. Exit status 2, with file and line, if a run would refuse it."""
    from wattload.schedule.build import build_schedule

    trace = traces.load(file, ReadOptions.of(settings))
    if max_model_len is not None:
        arrivals = "trace" if trace.timed else "offline"
        build_schedule(trace, arrivals, requests=len(trace), max_model_len=max_model_len)
    if json_output:
        typer.echo(json.dumps({**_identity(trace), "rows": len(trace), "valid": True}, indent=1))
        return
    typer.echo(
        f"{file}: {len(trace):,} requests of format {trace.format} over {trace.span_seconds:,.1f} s: valid"
    )
    for note in trace.notes:
        typer.echo(f"note: {note}")


def print_statistics(console: Console, trace: Trace, statistics: TraceStatistics) -> None:
    """The table of `show`."""
    console.print(f"[bold]{trace.name}[/bold] ({trace.format}, sha256 {trace.sha256[:12]})", highlight=False)
    table = Table()
    for column in ("tokens", "mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="left" if column == "tokens" else "right")
    for label, lengths in (("prompt", statistics.prompt_tokens), ("output", statistics.output_tokens)):
        values = (lengths.mean, lengths.p50, lengths.p90, lengths.p99, lengths.max)
        table.add_row(label, *(f"{v:,.0f}" for v in values))
    console.print(table)
    lines = {
        "requests": f"{statistics.rows:,} in {statistics.span_seconds:,.1f} s",
        "rate": f"{statistics.rate_rps:.3g}/s mean, {_said(statistics.peak_rps, '.0f')} in the peak second",
        "gaps": f"coefficient of variation {_said(statistics.gap_cv, '.2f')} (1: Poisson)",
        "dispersion": ", ".join(f"{_said(v, '.2f')} at {w} s" for w, v in statistics.dispersion.items()),
        "rank correlation": f"{_said(statistics.rank_correlation, '.3f')} between prompt and output tokens",
        "sessions": _sessions(statistics),
        "agents": _agents(statistics.agents),
        "shared prefixes": _shared(statistics.shared_fraction),
        "images": _images(statistics.images, statistics.rows),
        "tags": ", ".join(f"{tag}: {n:,}" for tag, n in statistics.tags.items()) or "none",
        "licence": trace.licence or "unknown",
        "cite": trace.citation or "unknown",
    }
    grid = Table.grid(padding=(0, 2))
    for key, value in lines.items():
        grid.add_row(key, value)
    for note in trace.notes:
        grid.add_row("note", note)
    console.print(grid)


def _sessions(statistics: TraceStatistics) -> str:
    if statistics.turns_per_session is None:
        return "none"
    return f"{statistics.sessions:,} of {statistics.turns_per_session:.2f} turns on average"


def _agents(agents: AgentStatistics | None) -> str:
    if agents is None:
        return "none"
    return (
        f"{agents.agents_per_session:.2f} per session, {agents.branches:,} branches, {agents.joins:,} joins;"
        f" {agents.tool_turns:,} turns after tools of {agents.tool_seconds_p50:,.3g} s (p50),"
        f" {agents.tool_seconds_p90:,.3g} s (p90)"
    )


def _shared(fraction: float | None) -> str:
    return "none" if fraction is None else f"{fraction:.1%} of prompt tokens stood in an earlier prompt"


def _images(images: ImageStatistics | None, rows: int) -> str:
    if images is None:
        return "none"
    return (
        f"{images.images:,} in {images.requests:,} of {rows:,} requests, at most {images.most:,} in one;"
        " --image WIDTHxHEIGHT sends as many of that size"
    )


def _identity(trace: Trace) -> dict[str, Any]:
    return {
        "name": trace.name,
        "format": trace.format,
        "sha256": trace.sha256,
        "licence": trace.licence,
        "citation": trace.citation,
        "notes": list(trace.notes),
    }


def _said(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)
