"""`wattload run URL --trace T ...`: one test of one endpoint, from the trace to the report."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wattload import config as configuration
from wattload.commands.flags import ConfigFile, with_settings
from wattload.errors import RunInvalid
from wattload.execution import execute


def register(app: typer.Typer) -> None:
    app.command("run")(with_settings(run, skip=("url",)))


def run(
    url: Annotated[str | None, typer.Argument(help="The endpoint, as http://host:port.")] = None,
    config: ConfigFile = None,
    **settings: Any,
) -> None:
    """Replays a trace against an endpoint and writes a run directory with what it cost."""
    done = execute(configuration.load({"url": url, **settings}, config))
    if done.failures:
        raise RunInvalid("; ".join(done.failures))
