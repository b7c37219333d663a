"""`wattload export RUN --otel/--mlflow/--wandb`: finished runs handed to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.cli.options import with_settings
from wattload.errors import InputError, RunInvalid
from wattload.export.destinations import check, export_run
from wattload.export.options import ExportOptions
from wattload.rundir.directory import RunDir

# Nobody's load waits for it.
_TOOL_SECONDS = 600.0


def register(app: typer.Typer) -> None:
    app.command("export")(with_settings(export, stages=(ExportOptions,)))


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
    **settings: Any,
) -> None:
    """Export finished runs to OpenTelemetry, MLflow or Weights & Biases.

    Example: wattload export runs/a runs/b --otel http://localhost:4318

    A run that is exported again is the same run there, not a second one.
    """
    options = ExportOptions.of(settings)
    if not options.wanted:
        raise InputError("say where to: --otel [URL], --mlflow or --wandb")
    check(options)
    for path in runs:
        RunDir.open(path)
    failures = []
    for path in runs:
        for taken, sentence in export_run(path, options, _TOOL_SECONDS):
            if taken:
                typer.echo(f"{path}: {sentence}")
            else:
                failures.append(f"{path}: {sentence}")
    if failures:
        raise RunInvalid("; ".join(failures))
