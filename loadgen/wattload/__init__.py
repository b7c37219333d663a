"""The load tester: replays traces against an LLM endpoint and measures what the traffic costs in energy.

    import wattload

    run = wattload.load_run("runs/20261126-120000-conv")
    run.energy.per_request_joules.mean, run.energy.per_request_joules.ci95

Names are imported when they are first used, so that `import wattload` loads no heavy library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wattmeter import __version__ as __version__

if TYPE_CHECKING:
    from wattload.analysis.compare import compare
    from wattload.analysis.compute import load_run
    from wattload.config import RunConfig
    from wattload.errors import InputError, RunInvalid
    from wattload.launch import run
    from wattload.rundir.run import Run
    from wattload.schedule.build import build_schedule
    from wattload.traces.loading import load as load_trace

__all__ = [
    "InputError",
    "Run",
    "RunConfig",
    "RunInvalid",
    "build_schedule",
    "compare",
    "load_run",
    "load_trace",
    "run",
]

_PLACES = {
    "InputError": ("wattload.errors", "InputError"),
    "Run": ("wattload.rundir.run", "Run"),
    "RunConfig": ("wattload.config", "RunConfig"),
    "RunInvalid": ("wattload.errors", "RunInvalid"),
    "build_schedule": ("wattload.schedule.build", "build_schedule"),
    "compare": ("wattload.analysis.compare", "compare"),
    "load_run": ("wattload.analysis.compute", "load_run"),
    "load_trace": ("wattload.traces.loading", "load"),
    "run": ("wattload.launch", "run"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _PLACES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
