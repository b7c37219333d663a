"""A node's components in one window: what CPUs, memory and the whole node used beside its accelerators.

They are separate figures: `node` holds all of the others, `platform` (RAPL's psys) the packages, `module` a
Grace CPU and its GPU, so none are summed here. A component that was asked for and is not known is null, with
the reason, and never 0.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, Meter
from wattmeter.meters.rapl import RaplMeter
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattmeter.schema import DeviceStatus, WindowEnergy, flag_names
from wattserve.meter.components import command, grace, hwmon, ipmi, redfish
from wattserve.meter.components.gauge import GaugeMeter, GaugesMeter, SensorError, Value

FLAG = "--component"
# What stands before the host of an address, a password among it.
_USER_INFORMATION = re.compile(r"(?<=://)[^/\s]*@")
NODE = "node"
_READERS: dict[str, Callable[[str], Callable[[], Value]]] = {
    "acpi": hwmon.reader,
    "ipmi": ipmi.reader,
    "redfish": redfish.reader,
    "command": command.reader,
}
# Kinds of several devices, by component and name.
_SEVERAL: dict[str, Callable[[str], dict[tuple[str, str], Callable[[], Value]]]] = {
    "grace": grace.acpi_readers,
    "nvml-module": grace.nvml_readers,
}
KINDS = ("rapl", "rapl-psys", *_SEVERAL, *_READERS)
# A window whose end is nearer than this may not be covered yet.
LATE_SECONDS = 5.0
# The part of a window that may be missing from its edges.
UNCOVERED_FRACTION = 0.02


def component_of(device: Device, meter: Meter) -> str:
    """What a device of a meter is a part of."""
    if isinstance(meter, GaugesMeter):
        return meter.components[device.id]
    if device.source != "rapl":
        return NODE
    if device.name == "psys":
        return "platform"
    return "dram" if device.name == "dram" else "cpu_package"


@dataclass(frozen=True, slots=True)
class _Source:
    kind: str
    meter: Meter
    monitor: EnergyMonitor


class Components:
    """The sensors of `specs`, each `KIND[:DETAIL]`. Raises MeterUnavailableError, naming the flag."""

    def __init__(self, specs: Sequence[str], *, meters: Sequence[tuple[str, Meter]] | None = None) -> None:
        opened = [(spec.partition(":")[0], _open(spec)) for spec in specs] if meters is None else meters
        names = [
            name
            for _, meter in opened
            for name in dict.fromkeys(component_of(device, meter) for device in meter.devices)
        ]
        kinds = [kind for kind, _ in opened]
        if len(set(kinds)) < len(kinds):
            raise MeterUnavailableError(f"{FLAG}: {max(kinds, key=kinds.count)} is given twice")
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                whose = "the node" if name == NODE else name
                raise MeterUnavailableError(f"{FLAG}: {whose}'s power is given twice: {', '.join(kinds)}")
        self._sources = [
            _Source(kind, meter, EnergyMonitor(meter, attribution=False)) for kind, meter in opened
        ]

    def __bool__(self) -> bool:
        return bool(self._sources)

    def start(self) -> None:
        for source in self._sources:
            source.monitor.start()

    def stop(self) -> None:
        for source in self._sources:
            source.monitor.stop()
            source.meter.close()

    def window(self, start_unix: float, end_unix: float) -> tuple[dict[str, Any], bool]:
        """The components of [start, end), and whether asking again in a moment would tell more."""
        found: dict[str, Any] = {}
        for source in self._sources:
            answer = source.monitor.window_energy(start_unix, end_unix)
            for name in dict.fromkeys(component_of(device, source.meter) for device in source.meter.devices):
                found[name] = _component(name, source, answer)
        unknown = any(entry["joules"] is None for entry in found.values())
        return found, unknown and time.time() - end_unix < LATE_SECONDS

    def status(self) -> list[tuple[str, DeviceStatus]]:
        """Each sensor's state now, with what it is a part of."""
        return [
            (component_of(device, source.meter), status)
            for source in self._sources
            for device, status in zip(source.meter.devices, source.monitor.devices(), strict=True)
        ]

    def state(self) -> list[dict[str, Any]]:
        """What is metered, for `GET /energy`."""
        return [
            {
                "component": component_of(device, source.meter),
                "id": device.id,
                "name": device.name,
                "source": device.source,
            }
            for source in self._sources
            for device in source.meter.devices
        ]


def _component(name: str, source: _Source, answer: WindowEnergy) -> dict[str, Any]:
    own = {device.id for device in source.meter.devices if component_of(device, source.meter) == name}
    devices = [device for device in answer.devices if device.id in own]
    seconds = answer.end_unix - answer.start_unix
    flags = frozenset[str]().union(*(device.flags for device in devices))
    entry: dict[str, Any] = {"source": source.kind, "joules": None, "uncertainty_joules": None}
    lacking = [
        device
        for device in devices
        if device.joules is None or device.covered_seconds < (1.0 - UNCOVERED_FRACTION) * seconds
    ]
    if lacking:
        first = lacking[0]
        entry["reason"] = (
            f"{source.kind}: {first.name} was read for {first.covered_seconds:.1f} of {seconds:.1f} s"
        )
    else:
        entry["joules"] = sum(device.joules or 0.0 for device in devices)
        entry["uncertainty_joules"] = (
            sum((device.uncertainty_joules or 0.0) ** 2 for device in devices) ** 0.5
        )
    return entry | {"devices": [device.name for device in devices], "flags": flag_names(flags)}


def _open(spec: str) -> Meter:
    kind, _, detail = spec.partition(":")
    try:
        if kind in ("rapl", "rapl-psys"):
            if detail:
                raise SensorError(f"{kind} takes nothing after it")
            return RaplMeter(psys=kind == "rapl-psys")
        if kind in _SEVERAL:
            return GaugesMeter(kind, _SEVERAL[kind](detail))
        if kind not in _READERS:
            raise SensorError(f"not a component; there are {', '.join(KINDS)}")
        return GaugeMeter(kind, "node", kind, _READERS[kind](detail))
    except (SensorError, MeterUnavailableError) as error:
        shown = _USER_INFORMATION.sub("", spec)
        raise MeterUnavailableError(f"{FLAG} {shown}: {error}", error.fault) from None
