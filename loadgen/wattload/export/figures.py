"""What of a run is exported whatever the tool: its numbers by their paths in run.json, and what it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wattload.redaction import plain
from wattload.rundir.numbers import NUMBERS
from wattload.rundir.result import RunJson

# Settings that say how a load was made. Others hold addresses, files and secrets, or say nothing of the load.
_SETTINGS = (
    "trace", "rate", "concurrency", "arrivals", "duration", "requests", "seed", "api", "warmup", "slo",
    "prefix_share", "sessions", "history", "natural_lengths", "exact_output",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of run.json. The bounds of an interval have the path with `.ci95_low` or `.ci95_high`."""

    path: str
    value: float
    unit: str
    definition: str


def figures(result: RunJson) -> Iterator[Figure]:
    """The numbers that the run has, in the order of run.json; what was not measured is left out."""
    for number in NUMBERS:
        value = number.of(result)
        if value is None:
            continue
        yield Figure(number.path, value, number.unit, number.definition)
        bounds = zip(("low", "high"), number.interval_of(result) or (), strict=False)
        for side, bound in bounds:
            definition = f"The {side} end of the 95 % interval of {number.path}."
            yield Figure(f"{number.path}.ci95_{side}", bound, number.unit, definition)


def description(result: RunJson) -> dict[str, Any]:
    """What the run was, by name: the settings of the load, the endpoint's engine and model, the source of
    energy. Holds no address, header or body.
    """
    energy = result.energy
    found: dict[str, Any] = {
        "workload": result.workload.trace,
        "arrivals": result.workload.arrivals.process,
        "schedule_sha256": result.workload.schedule_sha256,
        "model": result.target.model,
        "engine": result.target.engine,
        "gpus": ", ".join(str(device.get("name")) for device in result.target.devices) or None,
        "energy_source": energy.source,
        "simulated": simulated(result),
        "energy_flags": ", ".join(energy.flags) or None,
        "wattload_version": result.versions.get("wattload"),
        **{f"setting.{name}": result.config.get(name) for name in _SETTINGS},
    }
    safe: dict[str, Any] = plain(found)
    return {name: value for name, value in safe.items() if value not in (None, "", [])}


def simulated(result: RunJson) -> bool | None:
    """Whether no sensor read the joules; None where the run has none."""
    return result.energy.simulated if result.energy.source is not None else None
