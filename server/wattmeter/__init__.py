"""Where joules come from and whom they belong to: meters, energy counters, timelines and attribution.

    from wattmeter import EnergyMonitor, open_meter

    with EnergyMonitor(open_meter("nvml")) as monitor:
        ...
        monitor.window_energy(start_unix, end_unix).total_joules

No HTTP server, no inference engine and no load generator in here: those import this package, never the
reverse. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattmeter.attribution.split import attribute
    from wattmeter.energy_model.step_model import StepModel
    from wattmeter.faults import Fault
    from wattmeter.meters import open_meter
    from wattmeter.monitor.energy_monitor import EnergyMonitor
    from wattmeter.schema import RequestEnergy, WindowEnergy
    from wattmeter.steps.batch import StepBatch

__version__ = "0.1.0"

__all__ = [
    "EnergyMonitor",
    "Fault",
    "RequestEnergy",
    "StepBatch",
    "StepModel",
    "WindowEnergy",
    "attribute",
    "open_meter",
]

_PLACES = {
    "EnergyMonitor": "wattmeter.monitor.energy_monitor",
    "Fault": "wattmeter.faults",
    "RequestEnergy": "wattmeter.schema",
    "StepBatch": "wattmeter.steps.batch",
    "StepModel": "wattmeter.energy_model.step_model",
    "WindowEnergy": "wattmeter.schema",
    "attribute": "wattmeter.attribution.split",
    "open_meter": "wattmeter.meters",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
