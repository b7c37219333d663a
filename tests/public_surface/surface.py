"""Prints the public surface as JSON, {kept file: its text}; a process of its own, for Locust's sake.

Everything of the product is imported in this one section.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry

sys.path.append(str(Path(__file__).parents[1] / "support"))

from meter_node import modelled_node
from wattload.cli.app import make_app
from wattload.load.metrics import LoadMetrics
from wattload.rundir.result import RunJson
from wattmeter.sensor_gain import SensorGain
from wattserve.cli import app as wattserve_app
from wattserve.http.metrics import MonitorCollector
from wattserve.meter.app import MeterApp
from wattserve.meter.components.components import Components
from wattserve.sim.app import Simulator
from wattserve.sim.profile import load_profile
from wattserve.vllm.settings import FLAGS, PREFIX
from world import World

# Typer's own, which depend on its version.
NOT_OURS = {"install_completion", "show_completion"}


def command_lines(path: str, command: Any) -> Iterator[str]:
    """What --help says of a command and of those below it, without how Typer and Rich lay it out."""
    yield f"{path}: {' '.join((command.help or '').split())}"
    for parameter in command.params:
        if parameter.name in NOT_OURS:
            continue
        flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
        kind = "argument" if parameter.param_type_name == "argument" else "option"
        facts = [
            name for name in ("required", "multiple", "is_flag", "hidden") if getattr(parameter, name, False)
        ]
        if parameter.default is not False and isinstance(parameter.default, (str, int, float, Path)):
            facts.append(f"default {parameter.default}")
        if parameter.envvar:
            facts.append(f"environment {parameter.envvar}")
        text = " ".join((getattr(parameter, "help", "") or "").split())
        yield f"  {kind} {flags}{''.join(f' [{fact}]' for fact in facts)}: {text}"
    names = sorted(getattr(command, "commands", ()))
    context = command.make_context(path, [], resilient_parsing=True) if names else None
    for name in names:
        _, below, _ = command.resolve_command(context, [name])  # imports it, where that waited for its use
        yield ""
        yield from command_lines(f"{path} {name}", below)


def vllm_lines() -> Iterator[str]:
    """The flags that `wattserve vllm` takes beside vLLM's own, and their environment variables."""
    for flag in FLAGS:
        yield f"  option {PREFIX}{flag.name} {flag.value} [environment {flag.variable}]: {flag.help}"


def metric_lines(registries: Iterable[CollectorRegistry]) -> list[str]:
    """NAME TYPE LABELS of every family, sorted; `le` is the histogram's own."""
    found: dict[tuple[str, str], set[str]] = {}
    for registry in registries:
        # What has no sample so far knows its labels all the same.
        named = {
            name: getattr(collector, "_labelnames", ())
            for collector, names in registry._collector_to_names.items()
            for name in names
        }
        for family in registry.collect():
            labels = {name for sample in family.samples for name in sample.labels if name != "le"}
            labels.update(getattr(family, "_labelnames", ()), named.get(family.name, ()))
            found.setdefault((family.name, family.type), set()).update(labels)
    return [f"{name} {kind} {{{', '.join(sorted(found[name, kind]))}}}" for name, kind in sorted(found)]


def wattserve_registries() -> Iterator[CollectorRegistry]:
    yield Simulator(load_profile("h200-llama-3.1-8b")).registry
    components = Components(["command:echo 350 W"])
    gains = {"gpu-0": SensorGain(1.0, 0.01)}
    node = modelled_node()
    yield MeterApp(node, upstream="http://127.0.0.1:1", components=components, gains=gains).registry
    world = World()
    world.pass_time(3.0)
    world.serve({"a": (100, 5)})
    world.pass_time(7.0)
    registry = CollectorRegistry()
    tested = {"devices": [{"id": "gpu-0", "disagreement_ratio": 0.01}]}
    MonitorCollector(world.monitor, info={"engine": "", "model": ""}, registry=registry, selftest=tested)
    yield registry


def surface() -> dict[str, str]:
    schema = json.dumps(RunJson.model_json_schema(by_alias=True), indent=1, sort_keys=True)
    texts = {
        "wattload.help.txt": command_lines("wattload", typer.main.get_command(make_app())),
        "wattserve.help.txt": [
            *command_lines("wattserve", typer.main.get_command(wattserve_app)),
            *vllm_lines(),
        ],
        "run.schema.json": [schema],
        "wattload.metrics.txt": metric_lines([LoadMetrics("run", "model").registry]),
        "wattserve.metrics.txt": metric_lines(wattserve_registries()),
    }
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}


if __name__ == "__main__":
    json.dump(surface(), sys.stdout)
