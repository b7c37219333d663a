"""What a run is judged by, as options."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from wattload.analysis.assertions import Assertion, parse_assertion
from wattload.errors import InputError
from wattload.options import Options, Seconds, share
from wattload.rundir.directory import MAX_FAILURES
from wattload.rundir.result import SloLimits
from wattload.units import parse_duration

_LIMIT = re.compile(r"\s*(ttft|tpot|e2e)\s*[=:](.*)", re.IGNORECASE | re.DOTALL)
_PERCENTILE = re.compile(r"\bp\d", re.IGNORECASE)


def parse_slo(text: str) -> SloLimits:
    """`ttft=500ms,tpot=50ms,e2e=10s`, any of the three. Raises InputError naming the term that is wrong."""
    limits: dict[str, float] = {}
    for term in text.split(","):
        limit = _LIMIT.fullmatch(term)
        try:
            seconds = parse_duration(limit[2], needs_unit=True) if limit is not None else None
        except ValueError:
            seconds = None
        if limit is None or seconds is None:
            example = "ttft=500ms, tpot=50ms or e2e=10s"
            if _PERCENTILE.search(term):
                example += "; limits are of each request, and percentiles are for `assertions`"
            raise InputError("slo", f"{text!r}: {term.strip()!r} is not like {example}")
        name = limit[1].lower() + "_seconds"
        if name in limits:
            raise InputError("slo", f"{text!r}: {limit[1]} is given twice")
        if not seconds:
            raise InputError("slo", f"{text!r}: {limit[1]} must be above 0")
        limits[name] = seconds
    return SloLimits(**limits)


def _limits(value: Any) -> Any:
    return parse_slo(value) if isinstance(value, str) else value


def _assertions(values: Any) -> Any:
    return tuple(parse_assertion(value) if isinstance(value, str) else value for value in values)


class AnalysisOptions(Options):
    """What is left out of the figures, and what they must meet."""

    title: ClassVar[str] = "SLO and assertions"

    warmup_seconds: Seconds | None = Field(
        default=None,
        alias="warmup",
        description="Leave this time out of the figures. Default: detected.",
        json_schema_extra={"panel": "Load shape"},
    )
    slo: Annotated[SloLimits | None, BeforeValidator(_limits)] = Field(
        default=None,
        description="Latency limits of a request, as ttft=500ms,tpot=50ms,e2e=10s.",
        json_schema_extra={"flags": ["--goodput"], "metavar": "LIMITS"},
    )
    max_failures: Annotated[float, BeforeValidator(share)] = Field(
        default=MAX_FAILURES,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Invalidate a run of which a larger share of the requests fails, as 5% or 0.05.",
        json_schema_extra={"metavar": "SHARE"},
    )
    assertions: Annotated[tuple[Assertion, ...], BeforeValidator(_assertions)] = Field(
        default=(),
        description="Exit 1 unless it holds, as 'energy.per_request_joules.mean < 120'. May be repeated.",
        json_schema_extra={"metavar": "CONDITION"},
    )


class FootprintOptions(Options):
    """What turns joules into kilowatt-hours, cost and carbon; nothing of it is assumed."""

    title: ClassVar[str] = "Cost and carbon"

    pue: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Facility energy over that of the GPUs (PUE), as 1.2.",
    )
    price_per_kwh: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Price of a kilowatt-hour, as 0.25."
    )
    currency: str | None = Field(default=None, description="Currency of --price-per-kwh, as EUR.")
    carbon_grams_per_kwh: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Grams of CO2e per kilowatt-hour, as 380."
    )

    def given(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {name: value for name, value in self.saved().items() if value is not None}
