"""`wattload run URL --trace T ...`: one test of one endpoint, from the trace to the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.cli.options import ConfigFile, UrlArgument, UrlOption, settings_of, with_settings
from wattload.config import RunConfig
from wattload.errors import RunInvalid
from wattload.session import execute
from wattmeter.standard_streams import say


def register(app: typer.Typer) -> None:
    app.command("run")(with_settings(run, skip=("url",)))


def run(
    url: UrlArgument = None,
    target: UrlOption = None,
    config: ConfigFile = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Make this many runs, each with requests of its own (seed, seed + 1, ...); also --repeat N."
        ),
    ] = None,
    repeat_until: Annotated[
        str | None,
        typer.Option(help="Repeat until the interval over the repeats is narrow enough, as ci95<2%."),
    ] = None,
    **settings: Any,
) -> None:
    """Replay a workload against an endpoint and write a run directory with its energy and latency.

    Example: wattload run http://localhost:8000 --rate 5 --duration 10m

    With --repeats, --out holds a run directory for each; the same command continues an interrupted series.
    """
    base = settings_of("run", url, target, settings, config)
    if repeats is not None or repeat_until is not None:
        _repeat(base, repeats, repeat_until)
        return
    done = execute(base)
    if done.failures:
        raise RunInvalid("; ".join(done.failures))


def _repeat(base: RunConfig, repeats: int | None, until: str | None) -> None:
    from wattload.analysis.assertions import check_assertions
    from wattload.repeats.conduct import Plan, conduct
    from wattload.repeats.show import print_repeats

    plan = Plan.of(repeats, until)
    assert plan is not None  # one of the two is given
    folder = base.output.out or Path("runs") / f"repeats-{time.strftime('%Y%m%d-%H%M%S')}"
    found = conduct(
        base,
        folder,
        plan,
        execute=lambda config: execute(config, quiet=True).result,
        say=lambda text: say(text, error=True),
    )
    print_repeats(found)
    typer.echo(f"figures: {folder / 'repeats.json'}")
    failures = check_assertions(base.analysis.assertions, found.as_dict())
    if not found.valid:
        failures = ["no repeat is valid", *failures]
    if failures:
        raise RunInvalid("; ".join(failures))
