"""How many servers of a kind a traffic needs within its limits, and what they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wattload.planning.curve import Curve
from wattload.rundir.result import SloLimits

_HOURS_A_DAY = 24


@dataclass(frozen=True, slots=True)
class Factors:
    """What turns joules into money and carbon; None: not given, and nothing is assumed."""

    pue: float | None = None
    price_per_kwh: float | None = None
    currency: str | None = None
    carbon_grams_per_kwh: float | None = None
    carbon_source: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer for one kind of server. `servers` is None where no measured rate is within the limits."""

    curve: Curve
    rate_rps: float
    highest_rps: float | None
    servers: int | None
    watts: float | None
    worst_error: float | None
    rms_error: float | None
    factors: Factors

    @property
    def gpus(self) -> int | None:
        return None if self.servers is None else self.servers * self.curve.gpus

    @property
    def joules_per_request(self) -> float | None:
        return None if self.watts is None else self.watts / self.rate_rps

    @property
    def kwh_per_day(self) -> float | None:
        """Of the facility where a PUE was given, else of the devices."""
        return None if self.watts is None else self.watts * (self.factors.pue or 1.0) * _HOURS_A_DAY / 1000

    @property
    def cost_per_day(self) -> float | None:
        kwh, price = self.kwh_per_day, self.factors.price_per_kwh
        return None if kwh is None or price is None else kwh * price

    @property
    def carbon_kg_per_day(self) -> float | None:
        kwh, grams = self.kwh_per_day, self.factors.carbon_grams_per_kwh
        return None if kwh is None or grams is None else kwh * grams / 1000

    def as_dict(self) -> dict[str, Any]:
        return {
            "server": self.curve.name,
            "workload": self.curve.workload,
            "device": self.curve.device,
            "modelled": self.curve.modelled,
            "highest_rps_per_server": self.highest_rps,
            "servers": self.servers,
            "gpus": self.gpus,
            "watts": self.watts,
            "joules_per_request": self.joules_per_request,
            "kwh_per_day": self.kwh_per_day,
            "cost_per_day": self.cost_per_day,
            "carbon_kg_per_day": self.carbon_kg_per_day,
            "power_error_rms": self.rms_error,
            "power_error_worst": self.worst_error,
        }


def plan_for(
    curve: Curve, rate_rps: float, slo: SloLimits, *, quantile: str, headroom: float, factors: Factors
) -> Plan:
    """The fewest servers that keep each at or below the highest rate within the limits, less the headroom.

    Traffic is divided equally; power is interpolated between the measured rates, never beyond them. The error
    is that of predicting each measured rate from the others.
    """
    errors = curve.interpolation_errors()
    worst = max(errors, key=abs, default=None)
    rms = math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else None
    highest = curve.highest_rate(slo, quantile)
    if highest is None:
        return Plan(curve, rate_rps, None, None, None, worst, rms, factors)
    servers = math.ceil(rate_rps / (highest * (1 - headroom)) - 1e-9)
    watts = servers * curve.watts(rate_rps / servers)
    return Plan(curve, rate_rps, highest, servers, watts, worst, rms, factors)
