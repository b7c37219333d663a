"""Where joules are read: one file a sensor, one line each in REGISTRY.

A meter opened by name is `open_meter("nvml")`, `open_meter("amdsmi")`, `open_meter("recorded", path=...)`,
`open_meter("rapl")`. The modelled meter is made by whoever has the model
(`wattmeter.meters.modelled.ModelledMeter`), as it needs the model's energy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters.base import Meter

# name: (module, class)
REGISTRY = {
    "amdsmi": ("wattmeter.meters.amdsmi", "AmdsmiMeter"),
    "nvml": ("wattmeter.meters.nvml", "NvmlMeter"),
    "rapl": ("wattmeter.meters.rapl", "RaplMeter"),
    "recorded": ("wattmeter.meters.recorded", "RecordedMeter"),
}


class MeterUnavailableError(RuntimeError):
    """A meter cannot be opened here; the message is one sentence that says why, `fault` its name."""

    def __init__(self, message: str, fault: Fault = Fault.UNKNOWN_ERROR) -> None:
        super().__init__(message)
        self.fault = fault


def open_meter(name: str, **options: Any) -> Meter:
    """The meter called `name`; `options` are its class's. Raises MeterUnavailableError."""
    if name not in REGISTRY:
        raise MeterUnavailableError(f"{name!r} is not a meter (available: {', '.join(sorted(REGISTRY))})")
    module, cls = REGISTRY[name]
    meter: Meter = getattr(import_module(module), cls)(**options)
    return meter
