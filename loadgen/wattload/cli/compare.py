"""`wattload compare A B [C...]`: what changed between runs, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wattload.analysis.assertions import parse_assertion
from wattload.analysis.compare import compare
from wattload.analysis.verdict import judge
from wattload.errors import InputError, NoVerdict, RunInvalid
from wattload.report.compare_page import print_table, write_page
from wattmeter.standard_streams import say


def register(app: typer.Typer) -> None:
    app.command("compare")(compare_runs)


def compare_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Directories of runs or of repeats; the first is the baseline."),
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit 1 where it holds, 3 where there is no verdict: 'energy.per_request_joules.mean > +5%'."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although workloads, windows or energy sources differ.")
    ] = False,
) -> None:
    """Compare runs, with confidence intervals; paired where they share a schedule."""
    conditions = [parse_assertion(text, field="fail_if", relative=True) for text in fail_if or []]
    if len({path.resolve() for path in runs}) < len(runs):
        raise InputError("compare was given the same run directory twice")
    comparison = compare(runs, force=force)
    for text in comparison.objections:
        say(f"WARNING: {text}", error=True)
    verdicts = judge(conditions, comparison)
    said = [*verdicts.met, *verdicts.open]
    if html is not None:
        if not html.parent.is_dir():
            raise InputError(f"--html {html}: {html.parent} is not a directory")
        write_page(comparison, html, said)
    if json_output:
        typer.echo(
            json.dumps(
                {**comparison.as_dict(), "failed": verdicts.met, "no_verdict": verdicts.open}, indent=1
            )
        )
    else:
        print_table(comparison)
        if html is not None:
            typer.echo(f"page: {html}")
    if verdicts.met:
        raise RunInvalid("; ".join(said))
    if verdicts.open:
        raise NoVerdict("; ".join(verdicts.open))
