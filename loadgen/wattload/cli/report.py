"""`wattload report RUN`: computes a run's numbers again from its directory, and shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.analysis.assertions import check_assertions
from wattload.analysis.compute import compute
from wattload.analysis.options import AnalysisOptions, FootprintOptions
from wattload.cli.options import with_settings
from wattload.errors import InputError, RunInvalid
from wattload.estimates.section import EstimateOptions
from wattload.report import build
from wattload.report.table import print_summary
from wattload.rundir.directory import Capture, RunDir
from wattload.rundir.share import check, share

STAGES = (AnalysisOptions, FootprintOptions, EstimateOptions)


def register(app: typer.Typer) -> None:
    app.command("report")(with_settings(report, stages=STAGES))


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print run.json instead of the table.")] = False,
    share_to: Annotated[
        Path | None,
        typer.Option(
            "--share",
            help="Write a copy for publication to this new directory: without hosts, tenants and errors.",
        ),
    ] = None,
    detect_warmup: Annotated[
        bool, typer.Option("--detect-warmup", help="Detect the end of the warm-up, although one was given.")
    ] = False,
    **settings: Any,
) -> None:
    """Rebuild run.json and report.html from a run directory, and print the summary.

    Options given here take the place of what the run was made with, and are kept in its directory.
    """
    analysis = AnalysisOptions.of(settings)
    where = RunDir.open(run)
    capture = where.load_capture()
    changed = _apply(capture, analysis, detect_warmup, settings.get("max_failures") is not None)
    for section, stage in (("footprint", FootprintOptions), ("estimates", EstimateOptions)):
        given = {name: value for name, value in stage.of(settings).saved().items() if value is not None}
        if given:
            capture.config[section], changed = {**(capture.config.get(section) or {}), **given}, True
    run_now, gaps = compute(where, capture)
    result = run_now.result
    if changed:
        where.save_capture(capture)
    path = build(run_now, gaps)
    if share_to is not None:
        copy = share(where, share_to)
        build(*compute(copy))
        check(where, copy)
        typer.echo(f"to publish: {copy.path}", err=json_output)
    if json_output:
        typer.echo(result.as_text())
    else:
        print_summary(result, directory=path.parent)
    failures = check_assertions(analysis.assertions, result.model_dump(mode="json", by_alias=True))
    if failures or not result.valid:
        raise RunInvalid("; ".join([*result.reasons, *failures]))


def _apply(capture: Capture, analysis: AnalysisOptions, detect_warmup: bool, given_failures: bool) -> bool:
    """Puts the warm-up and the limits given in `analysis` into `capture`; whether that changed it."""
    warmup = analysis.warmup_seconds
    if warmup is not None and detect_warmup:
        raise InputError("--warmup and --detect-warmup exclude each other")
    if warmup is not None and warmup >= max(capture.duration_seconds, 1e-9):
        raise InputError("warmup", f"{warmup:g}: must be at least 0 and shorter than the run's arrivals")
    if warmup is not None or detect_warmup:
        capture.warmup_seconds = warmup
    if analysis.slo is not None:
        capture.slo = analysis.slo
    if given_failures:
        capture.max_failures = analysis.max_failures
    given = (warmup is not None, detect_warmup, analysis.slo is not None, given_failures)
    return any(given)
