"""What a run is asked to do: the options of every stage, put together from flags, a TOML file or Python.

Each stage defines its own options (`client.endpoint`, `schedule.options`, ...), and gets these alone. Here
stands which there are and how one flat list of settings is distributed to them.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from wattload import redaction
from wattload.analysis.options import AnalysisOptions, FootprintOptions
from wattload.client.endpoint import EndpointOptions, RequestOptions
from wattload.energy.options import EnergyOptions
from wattload.errors import InputError
from wattload.export.options import ExportOptions
from wattload.load.options import LoadOptions, MetricsOptions
from wattload.options import Options, Setting
from wattload.schedule.options import PromptOptions, ScheduleOptions, WorkloadOptions
from wattload.server_metrics.options import ServerMetricsOptions
from wattload.traces.options import ReadOptions


class OutputOptions(Options):
    """Where the run directory is written."""

    title: ClassVar[str] = "Output"

    out: Path | None = Field(
        default=None,
        description="Write the run to this directory, which must be new or empty. Default:"
        " runs/<time>-<workload>.",
        json_schema_extra={"flags": ["-o"]},
    )
    name: str | None = Field(
        default=None,
        description="Name of the run. Default: its directory's.",
        json_schema_extra={"metavar": "NAME"},
    )
    report: bool = Field(default=True, description="Write report.html.")


STAGES: dict[str, type[Options]] = {
    "endpoint": EndpointOptions,
    "workload": WorkloadOptions,
    "schedule": ScheduleOptions,
    "analysis": AnalysisOptions,
    "energy": EnergyOptions,
    "output": OutputOptions,
    "requests": RequestOptions,
    "reading": ReadOptions,
    "prompts": PromptOptions,
    "load": LoadOptions,
    "metrics": MetricsOptions,
    "server_metrics": ServerMetricsOptions,
    "footprint": FootprintOptions,
    "export": ExportOptions,
}
# Every setting of a run by its name, in the order of the help.
SETTINGS: dict[str, Setting] = {
    setting.name: setting for stage in STAGES.values() for setting in stage.settings()
}


# Settings that name where a secret is; what they hold is none.
_NAMES_OF_SECRETS = frozenset({"api_key_env", "key_file", "header"})


@dataclass(frozen=True)
class RunConfig:
    """The options of one run, a group for each stage that uses them.

    `given` holds the settings that it was made from; `RunConfig.of` makes one.
    """

    endpoint: EndpointOptions
    workload: WorkloadOptions
    schedule: ScheduleOptions
    analysis: AnalysisOptions
    energy: EnergyOptions
    output: OutputOptions
    requests: RequestOptions
    reading: ReadOptions
    prompts: PromptOptions
    load: LoadOptions
    metrics: MetricsOptions
    server_metrics: ServerMetricsOptions
    footprint: FootprintOptions
    export: ExportOptions
    given: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The configuration of `settings`, by name; None is not given. Raises InputError."""
        for name in settings:
            if name not in SETTINGS:
                raise InputError(name, "is not a setting")
        given = {name: value for name, value in settings.items() if value is not None}
        stages: dict[str, Any] = {field: stage.of(given) for field, stage in STAGES.items()}
        return cls(**stages, given=given)

    def changed(self, **settings: Any) -> RunConfig:
        """The same with other `settings`. Raises InputError."""
        return RunConfig.of({**self.given, **settings})

    def saved(self) -> dict[str, Any]:
        """Every setting in effect by its name, for the run directory; without secrets."""
        values: dict[str, Any] = {}
        for field in STAGES:
            values |= getattr(self, field).saved()
        values |= self.endpoint.without_secrets()
        values["body"] = _body_without_secrets(self.requests.body, values["body"])
        values = {
            name: value if name in _NAMES_OF_SECRETS else redaction.plain(value)
            for name, value in values.items()
        }
        if self.footprint.given():
            values["footprint"] = self.footprint.given()
        return values


def _body_without_secrets(body: Mapping[str, Any] | None, written: Any) -> Any:
    """The JSON that is merged into every request, as it was written where nothing in it is secret."""
    if body is None:
        return written
    safe = redaction.plain(body)
    return written if safe == body else json.dumps(safe)


def command_of(config: RunConfig) -> str:
    """The command that makes this run again, without secrets and without its own --out."""
    shown, words = config.saved(), ["wattload", "run", config.endpoint.url]
    for name, setting in SETTINGS.items():
        if name in ("url", "out", "name") or name not in config.given:
            continue
        value = shown[name]
        if setting.kind == "switch":
            words.append(setting.flag if value else f"--no-{setting.flag[2:]}")
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [setting.flag, f"{each:g}" if isinstance(each, float) else str(each)]
    return shlex.join(words)


def variable_of(field: str) -> str:
    """The environment variable of a setting, for containers."""
    return f"WATTLOAD_{field.upper()}"


def load(given: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """The configuration of `given` (flags; None: not given) over the TOML `file`. Raises InputError."""
    values: dict[str, Any] = {} if file is None else _read_file(file)
    from_file = set(values)
    for name, value in given.items():
        if value is not None and value != []:
            values[name] = value
            from_file.discard(name)
    try:
        return RunConfig.of(values)
    except InputError as error:
        if error.field not in from_file:
            raise
        raise InputError(f"{file}: {error}") from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("config", f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError("config", f"{file}: is not TOML ({error})") from error
    values = {("assertions" if name == "assert" else name.replace("-", "_")): v for name, v in values.items()}
    unknown = sorted(set(values) - set(SETTINGS))
    if unknown:
        raise InputError("config", f"{file}: unknown setting {unknown[0]!r}")
    return values
