"""The tools that a run can be exported to, and whether their clients are installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wattload.errors import InputError
from wattload.export.failure import ExportFailed
from wattload.export.options import FROM_ENVIRONMENT, ExportOptions
from wattload.rundir.run import Run


@dataclass(frozen=True, slots=True)
class Destination:
    """A tool: the setting that asks for it, the module of its client, and the distributions that have it."""

    setting: str
    module: str
    distributions: str
    export: Callable[[Run, ExportOptions, float], str]

    def chosen(self, options: ExportOptions) -> bool:
        """Whether the options ask for it."""
        return bool(getattr(options, self.setting))

    def installed(self) -> bool:
        """Whether its client can be imported; imports nothing of it but the packages above."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False


def _otel(run: Run, options: ExportOptions, seconds: float) -> str:
    from wattload.export.otlp import export

    return export(run, options, seconds)


def _mlflow(run: Run, options: ExportOptions, seconds: float) -> str:
    from wattload.export.mlflow_run import export

    return export(run)


def _wandb(run: Run, options: ExportOptions, seconds: float) -> str:
    from wattload.export.wandb_run import export

    return export(run)


DESTINATIONS = (
    Destination(
        "otel",
        "opentelemetry.exporter.otlp.proto.http",
        "opentelemetry-exporter-otlp-proto-http",
        _otel,
    ),
    Destination("mlflow", "mlflow", "mlflow-skinny", _mlflow),
    Destination("wandb", "wandb", "wandb", _wandb),
)


def check(options: ExportOptions) -> None:
    """Refuses what cannot be exported to, before any load. Raises InputError."""
    for destination in DESTINATIONS:
        if destination.chosen(options) and not destination.installed():
            raise InputError(
                destination.setting,
                f"needs {destination.distributions}, which is not installed (wattload's extra"
                f" '{destination.setting}'): pip install {destination.distributions}",
            )
    if options.otel == FROM_ENVIRONMENT:
        _check_protocol()


def _check_protocol() -> None:
    for name in ("", "_METRICS", "_TRACES"):
        variable = f"OTEL_EXPORTER_OTLP{name}_PROTOCOL"
        protocol = os.environ.get(variable, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise InputError(
                "otel",
                f": {variable} is {protocol}, and wattload exports by http/protobuf; give the address of the"
                " collector's HTTP receiver (port 4318) after the flag",
            )


def export_run(path: Path, options: ExportOptions, seconds: float) -> Iterator[tuple[bool, str]]:
    """Exports the run in the directory `path` to each tool that is asked for, for about `seconds` each.

    Yields for each whether it took the run, and a sentence. Raises InputError where there is no run.
    """
    # The analysis brings SciPy, which `check` does without: it is asked before every load.
    from wattload.analysis.compute import load_run

    run = load_run(path)
    for destination in DESTINATIONS:
        if not destination.chosen(options):
            continue
        try:
            yield True, destination.export(run, options, seconds)
        except ExportFailed as failure:
            yield False, str(failure)
