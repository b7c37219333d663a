"""Rates that change over time: ramp, steps, diurnal, on-off bursts.

A shape says how many requests L(t) are expected by the time t. Times u of a process of rate 1 (Poisson unless
`spacing=constant` or `cv=` is given) become t = L^-1(u): the time-rescaling theorem read backwards (Brown et
al., Neural Computation 14(2), 2002), so the rate at t is L'(t) and the burstiness is that of the unit
process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.arrivals.process import F64, Demand, Parameters, Rows, limited, number
from wattload.arrivals.renewal import Gamma, burstiness, unit_times
from wattload.errors import InputError

# Points at which a smooth shape is tabulated over a run: linear in between, so off by under 1e-6 of the run.
_POINTS = 2001


@dataclass(frozen=True, slots=True)
class Spacing:
    """The unit process: gaps of coefficient of variation `cv`; 0: equal gaps."""

    cv: float = 1.0

    @classmethod
    def of(cls, parameters: Parameters) -> Spacing:
        return cls(burstiness(parameters.number("cv", 1.0, above=False), parameters.process))

    def until(self, end: float, rng: np.random.Generator) -> F64:
        """Times in [0, end)."""
        return np.arange(0.0, end) if self.cv == 0 else unit_times(end, self.cv, rng)

    def first(self, count: int, rng: np.random.Generator) -> F64:
        """The first `count` times."""
        return (
            np.arange(count, dtype=np.float64) if self.cv == 0 else np.cumsum(Gamma(self.cv).gaps(count, rng))
        )


def through(curve: tuple[F64, F64], demand: Demand, spacing: Spacing, rng: np.random.Generator) -> F64:
    """Due times from `curve`: (times, requests expected by then), both never decreasing, from (0, 0)."""
    at, expected = curve
    limited(float(expected[-1]), "arrivals")
    units = spacing.until(float(expected[-1]), rng)
    if demand.requests is not None:
        units = units[: demand.requests]
    # Where the rate is 0 the curve is flat and has no inverse: np.interp would pick any point of it.
    rising = np.concatenate([[True], np.diff(expected) > 0])
    keep = rising | np.append(rising[1:], True)
    due: F64 = np.interp(units, expected[keep], at[keep])
    return due


def _duration(demand: Demand, process: str) -> float:
    if demand.duration_seconds is None:
        raise InputError("arrivals", f"{process} needs `duration`")
    return demand.duration_seconds


def _no_rate(demand: Demand, process: str) -> None:
    if demand.rate_rps is not None or demand.speed != 1.0:
        raise InputError("rate", f"does not go with `arrivals` {process}, which says its own rates")


@dataclass(frozen=True, slots=True)
class Ramp:
    """rate(t) = from + (to - from) t / D over the duration D: L(t) = from t + (to - from) t^2 / (2 D)."""

    start_rps: float
    end_rps: float
    spacing: Spacing
    text: str
    concurrency: int = 0

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        _no_rate(demand, "ramp")
        end = _duration(demand, "ramp")
        t = np.linspace(0, end, _POINTS)
        return through(
            (t, self.start_rps * t + (self.end_rps - self.start_rps) * t**2 / (2 * end)),
            demand,
            self.spacing,
            rng,
        )


@dataclass(frozen=True, slots=True)
class Steps:
    """rate(t) = rates[floor(t / each)]; without `each` the duration is divided evenly; the last rate
    stays.
    """

    rates_rps: tuple[float, ...]
    each_seconds: float | None
    spacing: Spacing
    text: str
    concurrency: int = 0

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        _no_rate(demand, "steps")
        each, count = self.each_seconds, len(self.rates_rps)
        end = demand.duration_seconds
        if each is None:
            each = _duration(demand, "steps without each=") / count
        edges: F64 = np.arange(count + 1, dtype=np.float64) * each
        edges[-1] = edges[-1] if end is None else max(edges[-1], end)
        expected: F64 = np.concatenate([[0.0], np.cumsum(np.diff(edges) * np.array(self.rates_rps))])
        if end is not None and end < edges[-1]:
            cut = np.append(edges[edges < end], end)
            edges, expected = cut, np.interp(cut, edges, expected)
        return through((edges, expected), demand, self.spacing, rng)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """rate(t) = R (1 - a cos(2 pi t / P)): mean R over whole periods P, from the trough R (1 - a) at t = 0.

    L(t) = R (t - a P / (2 pi) sin(2 pi t / P)). Without `period` the duration is one period.
    """

    amplitude: float
    period_seconds: float | None
    spacing: Spacing
    text: str
    concurrency: int = 0

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        rate, end = demand.rate("diurnal"), _duration(demand, "diurnal")
        period = self.period_seconds or end
        points = limited(200 * end / period, "arrivals", "diurnal: points of its curve")
        t = np.asarray(np.linspace(0, end, max(_POINTS, points)), np.float64)
        swing: F64 = self.amplitude * period / (2 * np.pi) * np.sin(2 * np.pi * t / period)
        return through((t, rate * (t - swing)), demand, self.spacing, rng)


@dataclass(frozen=True, slots=True)
class OnOff:
    """`on` seconds at one rate, `off` seconds at `low` times it, over and over, so that the mean is R.

    rate while on = R (on + off) / (on + low off).
    """

    on_seconds: float
    off_seconds: float
    low: float
    spacing: Spacing
    text: str
    concurrency: int = 0

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        rate = demand.rate("onoff")
        end = demand.duration_seconds
        period = self.on_seconds + self.off_seconds
        if end is None:
            end = (demand.count("onoff") / rate / period + 2) * period
        cycles = limited(np.ceil(end / period), "arrivals", "onoff: bursts")
        edges = (np.arange(cycles)[:, None] * period + [0.0, self.on_seconds]).ravel()
        edges = np.append(edges, cycles * period)
        high = rate * period / (self.on_seconds + self.low * self.off_seconds)
        rates = np.tile([high, self.low * high], cycles)
        expected = np.concatenate([[0.0], np.cumsum(np.diff(edges) * rates)])
        cut = np.append(edges[edges < end], end)
        return through((cut, np.interp(cut, edges, expected)), demand, self.spacing, rng)


def parse_ramp(parameters: Parameters) -> Ramp:
    start = parameters.number("from", above=False)
    end = parameters.number("to", above=False)
    if start == end == 0:
        raise InputError("arrivals", "ramp: from and to are both 0")
    spacing = Spacing.of(parameters)
    return Ramp(start, end, spacing, _text("ramp", {"from": start, "to": end}, spacing))


def parse_steps(parameters: Parameters) -> Steps:
    given = parameters.values.pop("rates", "")
    if not given:
        raise InputError("arrivals", "steps needs rates=R1/R2/...")
    rates = tuple(number(part, "arrivals", "steps: rates ", above=False) for part in given.split("/"))
    if not any(rates):
        raise InputError("arrivals", "steps: every rate is 0")
    each = parameters.number("each") if "each" in parameters.values else None
    spacing = Spacing.of(parameters)
    text = "steps:rates=" + "/".join(f"{r:g}" for r in rates) + (f",each={each:g}" if each else "")
    return Steps(rates, each, spacing, text + _suffix(spacing))


def parse_diurnal(parameters: Parameters) -> Diurnal:
    amplitude = parameters.number("amplitude", 0.8, above=False)
    if amplitude > 1:
        raise InputError(
            "arrivals", f"diurnal: amplitude {amplitude:g} must be at most 1, or the rate would be negative"
        )
    period = parameters.number("period") if "period" in parameters.values else None
    spacing = Spacing.of(parameters)
    values = {"amplitude": amplitude} | ({"period": period} if period else {})
    return Diurnal(amplitude, period, spacing, _text("diurnal", values, spacing))


def parse_onoff(parameters: Parameters) -> OnOff:
    on, off = parameters.number("on"), parameters.number("off")
    low = parameters.number("low", 0.0, above=False)
    spacing = Spacing.of(parameters)
    return OnOff(on, off, low, spacing, _text("onoff", {"on": on, "off": off, "low": low}, spacing))


def _text(name: str, values: dict[str, float], spacing: Spacing) -> str:
    return f"{name}:" + ",".join(f"{key}={value:g}" for key, value in values.items()) + _suffix(spacing)


def _suffix(spacing: Spacing) -> str:
    return "" if spacing.cv == 1 else f",cv={spacing.cv:g}"
