"""`wattload report RUN`: computes a run's numbers again from its directory, and shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wattload.assertions import check_assertions, parse_assertion
from wattload.errors import BadInput, RunInvalid
from wattload.measure import compute
from wattload.report import build
from wattload.report.table import print_summary
from wattload.rundir import RunDir
from wattload.slo import parse_slo


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(  # noqa: PLR0917 - options of a command
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print run.json instead of the table.")] = False,
    warmup: Annotated[
        float | None, typer.Option(help="Seconds to leave out instead of what the run left out.")
    ] = None,
    detect_warmup: Annotated[
        bool, typer.Option("--detect-warmup", help="Find the end of the warm-up again, whatever was given.")
    ] = False,
    slo: Annotated[str | None, typer.Option(help="Latency limits, as ttft=500ms,tpot=50ms.")] = None,
    assertions: Annotated[
        list[str] | None,
        typer.Option("--assert", help="Fails unless it holds: 'energy.per_request_joules.mean < 120'."),
    ] = None,
    pue: Annotated[float | None, typer.Option(help="Facility energy over the devices' energy.")] = None,
    price_per_kwh: Annotated[float | None, typer.Option(help="Price of a kilowatt-hour.")] = None,
    currency: Annotated[str | None, typer.Option(help="Of that price.")] = None,
    carbon_grams_per_kwh: Annotated[float | None, typer.Option(help="Grams of CO2e a kilowatt-hour.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU for the estimates, by name; default: the meter's.")
    ] = None,
    gpu_table: Annotated[Path | None, typer.Option(help="TOML file with further GPUs.")] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="Hugging Face config.json of the model, for the estimates.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile from `wattload profile`, for the binned estimate.")
    ] = None,
) -> None:
    """(Re)builds run.json and report.html from the run directory, and prints the summary."""
    checks = [parse_assertion(text) for text in assertions or []]
    where = RunDir.open(run)
    capture = where.load_capture()
    changed = False
    if warmup is not None and detect_warmup:
        raise BadInput("--warmup and --detect-warmup exclude each other")
    if warmup is not None or detect_warmup:
        if warmup is not None and not 0 <= warmup < max(capture.duration_seconds, 1e-9):
            raise BadInput(f"--warmup {warmup:g}: must be at least 0 and shorter than the run's arrivals")
        capture.warmup_seconds, changed = warmup, True
    if slo is not None:
        capture.slo, changed = parse_slo(slo), True
    given = {
        name: value
        for name, value in (
            ("pue", pue),
            ("price_per_kwh", price_per_kwh),
            ("currency", currency),
            ("carbon_grams_per_kwh", carbon_grams_per_kwh),
        )
        if value is not None
    }
    if given:
        capture.config["footprint"], changed = {**(capture.config.get("footprint") or {}), **given}, True
    for_estimates = {
        name: str(value)
        for name, value in (
            ("gpu", gpu),
            ("gpu_table", gpu_table),
            ("model_config", model_config),
            ("profile", profile),
        )
        if value is not None
    }
    if for_estimates:
        capture.config["estimates"] = {**(capture.config.get("estimates") or {}), **for_estimates}
        changed = True
    result, gaps = compute(where, capture)
    if changed:
        where.save_capture(capture)
    path = build(where, gaps)
    if json_output:
        typer.echo(result.as_text())
    else:
        print_summary(result)
        typer.echo(f"report: {path}")
    failures = check_assertions(checks, result.model_dump(mode="json", by_alias=True))
    if failures or not result.valid:
        raise RunInvalid("; ".join([*result.reasons, *failures]))
