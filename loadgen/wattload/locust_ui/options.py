"""wattload's settings as options of Locust's command and as fields of its start page."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path
from typing import Any

from wattload.config import SETTINGS, RunConfig, load, variable_of
from wattload.export.options import ExportOptions

# What Locust has under names of its own (--otel is one), or what makes no sense under it.
_LOCUSTS = frozenset(
    {"url", "processes", "master", "expect_workers", "master_bind_host", "master_port", "progress"}
    | {setting.name for setting in ExportOptions.settings()}
)
_ON_START_PAGE = ("trace", "rate", "arrivals", "duration", "energy", "seed", "warmup", "slo")
_DEFAULTS = {"trace": "conv"}
# An embedded workload has no end.
_EMBEDDED_DEFAULTS = {"rate": "2", "duration": "60s"}


def add_options(parser: Any) -> None:
    """Adds an option for each setting, with the names of `wattload run`."""
    group = parser.add_argument_group("wattload: energy and trace replay")
    for name, setting in SETTINGS.items():
        if name in _LOCUSTS:
            continue
        common: dict[str, Any] = {
            "dest": f"wattload_{name}",
            "help": setting.help.replace("%", "%%"),
            "env_var": variable_of(name),
        }
        if setting.kind == "list":
            group.add_argument(setting.flag, action="append", **common)
        elif setting.kind == "switch":
            group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=None, **common)
        else:
            group.add_argument(setting.flag, default=_DEFAULTS.get(name), **common)
    for action in parser._actions:
        if action.dest.startswith("wattload_"):
            action.include_in_web_ui = action.dest.removeprefix("wattload_") in _ON_START_PAGE
            action.is_secret = action.is_required = action.is_multiple = False


def settings(options: Any, host: str) -> RunConfig:
    """The settings of a run from what Locust has parsed. Raises InputError."""
    given = {
        name: value
        for name in SETTINGS
        if name not in _LOCUSTS and (value := getattr(options, f"wattload_{name}", None)) not in (None, "")
    }
    if not Path(given["trace"]).exists() and "requests" not in given:
        given = {**_EMBEDDED_DEFAULTS, **given}
    if given.get("out") and typing.cast(Any, options).__dict__.get("wattload_run_number", 1) > 1:
        given["out"] = f"{given['out']}-{options.wattload_run_number}"
    return load({"url": host, **given, "progress": "plain" if options.headless else "none"})
