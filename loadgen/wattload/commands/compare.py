"""`wattload compare A B [C...]`: what changed between runs, with intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from wattload.assertions import parse_assertion
from wattload.compare import check_fail_if, compare, load
from wattload.errors import BadInput, RunInvalid
from wattload.report.compare_page import print_table, write_page
from wattload.rundir import RunDir


def register(app: typer.Typer) -> None:
    app.command("compare")(compare_runs)


def compare_runs(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; the first is the baseline.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit 1 where it holds: 'energy.per_request_joules.mean > +5%'."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although workloads, windows or energy sources differ.")
    ] = False,
) -> None:
    """Differences between runs with confidence intervals, paired where they share a schedule."""
    conditions = [parse_assertion(text, flag="--fail-if", relative=True) for text in fail_if or []]
    if len({path.resolve() for path in runs}) < len(runs):
        raise BadInput("compare was given the same run directory twice")
    comparison = compare([load(RunDir.open(path)) for path in runs])
    if comparison.objections and not force:
        raise BadInput(f"not comparable (--force compares all the same): {'; '.join(comparison.objections)}")
    for text in comparison.objections:
        typer.echo(f"WARNING: {text}", file=sys.stderr)
    met = check_fail_if(conditions, comparison)
    if html is not None:
        if not html.parent.is_dir():
            raise BadInput(f"--html {html}: {html.parent} is no directory")
        write_page(comparison, html, met)
    if json_output:
        typer.echo(json.dumps({**comparison.as_dict(), "failed": met}, indent=1))
    else:
        print_table(comparison)
        if html is not None:
            typer.echo(f"page: {html}")
    if met:
        raise RunInvalid("; ".join(met))
