"""A simulated fleet over a day: what routing takes when servers that are not needed may sleep.

Simulated, from one server's measured power: no fleet was measured. Traffic goes up and down once a day as
mean (1 + swing sin), a Poisson number of requests a step. *Round robin* keeps every server awake with an
equal share. *Pack, then sleep* keeps as many awake as the traffic of now and of the time that waking takes
needs, with a reserve, each with an equal share; the others sleep. A server that wakes draws its idle power
and answers nothing until it is up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64
from wattload.planning.curve import Curve

_DAY_SECONDS = 86_400.0
STEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`rate_per_server_rps` is what a server may be given; `sleep_watts` what a sleeping server draws."""

    servers: int
    mean_rps: float
    rate_per_server_rps: float
    sleep_watts: float
    swing: float = 0.6
    wake_seconds: float = 120.0
    reserve: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FleetDay:
    """A day under one way of routing. `short_fraction`: the share of steps with more traffic than the awake
    servers may be given."""

    name: str
    kwh: float
    awake_mean: float
    short_fraction: float


def simulate(curve: Curve, options: FleetOptions) -> tuple[FleetDay, FleetDay]:
    """Round robin, and packing; both on the same traffic."""
    traffic = _traffic(options)
    steps = len(traffic)
    everyone = np.full(steps, float(options.servers))
    needed = np.ceil(
        np.maximum(traffic, _ahead(traffic, options)) * (1 + options.reserve) / options.rate_per_server_rps
    )
    wanted = np.clip(needed, 1, options.servers)
    # Waking is decided so long before it is needed that a server is up in time; until then it only draws.
    lead = math.ceil(options.wake_seconds / STEP_SECONDS)
    drawing = np.array([wanted[i : i + lead + 1].max() for i in range(steps)])
    return (
        _day("round robin", curve, options, traffic, everyone, everyone),
        _day("pack, then sleep", curve, options, traffic, wanted, drawing),
    )


def _traffic(options: FleetOptions) -> F64:
    """Requests per second of each step of a day."""
    rng = np.random.default_rng(options.seed)
    at = (np.arange(int(_DAY_SECONDS / STEP_SECONDS)) + 0.5) * STEP_SECONDS
    mean = options.mean_rps * (1 + options.swing * np.sin(2 * np.pi * at / _DAY_SECONDS))
    drawn: F64 = rng.poisson(mean * STEP_SECONDS) / STEP_SECONDS
    return drawn


def _ahead(traffic: F64, options: FleetOptions) -> F64:
    """The traffic when a server that is woken now is up, by the trend of the last ten minutes."""
    back = max(1, int(600 / STEP_SECONDS))
    before = np.concatenate((np.full(back, traffic[0]), traffic[:-back]))
    slope = (traffic - before) / (back * STEP_SECONDS)
    expected: F64 = np.maximum(0.0, traffic + slope * (options.wake_seconds + STEP_SECONDS))
    return expected


def _day(  # noqa: PLR0917
    name: str, curve: Curve, options: FleetOptions, traffic: F64, serving: F64, drawing: F64
) -> FleetDay:
    each = traffic / serving
    watts = serving * np.interp(
        each,
        [0.0, *(point.rate_rps for point in curve.points)],
        [curve.idle_watts, *(point.watts for point in curve.points)],
    )
    watts = watts + (drawing - serving) * curve.idle_watts
    watts = watts + (options.servers - drawing) * options.sleep_watts
    return FleetDay(
        name=name,
        kwh=float(watts.sum()) * STEP_SECONDS / 3.6e6,
        awake_mean=float(np.mean(drawing)),
        short_fraction=float(np.mean(each > options.rate_per_server_rps * (1 + 1e-9))),
    )
