"""Arrival processes: when requests are due. One file each, one line each in the registry below."""

from __future__ import annotations

from wattload.arrivals import closed, constant, offline, renewal, shapes
from wattload.arrivals import trace_times as trace
from wattload.arrivals.process import Arrivals, Demand, Parameters, Parser, Rows
from wattload.errors import InputError

__all__ = ["PROCESSES", "Arrivals", "Demand", "Rows", "parse"]

PROCESSES: dict[str, Parser] = {
    "trace": trace.parse,
    "constant": constant.parse,
    "poisson": renewal.parse_poisson,
    "gamma": renewal.parse_gamma,
    "ramp": shapes.parse_ramp,
    "steps": shapes.parse_steps,
    "diurnal": shapes.parse_diurnal,
    "onoff": shapes.parse_onoff,
    "closed": closed.parse,
    "offline": offline.parse,
}


# The parameter that a value alone is meant for.
_ONLY = {"closed": "concurrency", "gamma": "cv"}


def parse(text: str) -> Arrivals:
    """The process of a specification `name` or `name:key=value,key=value`. Raises InputError naming what is
    wrong.
    """
    name, _, rest = text.strip().partition(":")
    if name not in PROCESSES:
        raise InputError("arrivals", f"{text!r}: known processes are {', '.join(PROCESSES)}")
    values: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals and name in _ONLY:
            key, equals, value = _ONLY[name], "=", key  # closed:8
        if not equals or not key.strip() or not value.strip():
            raise InputError("arrivals", f"{text!r}: {part!r} is not key=value")
        if key.strip() in values:
            raise InputError("arrivals", f"{text!r}: {key.strip()} is given twice")
        values[key.strip()] = value.strip()
    parameters = Parameters(name, values)
    process = PROCESSES[name](parameters)
    parameters.finish()
    return process
