"""run.json: the numbers of one run, as pydantic models. The field names are public (docs/run-directory.md).

A number that was not measured is None, and `absent` says why under its dotted path; never 0.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

RUN_SCHEMA = "wattload.run/1"


class Section(BaseModel):
    """A part of run.json. Unknown fields are kept: a newer wattload may have written them."""

    model_config = ConfigDict(populate_by_name=True, extra="allow")


class TargetInfo(Section):
    url: str
    engine: str | None = None
    model: str | None = None
    max_model_len: int | None = None
    energy_source: str | None = None
    devices: list[dict[str, Any]] = Field(default_factory=list)


class ArrivalsInfo(Section):
    process: str
    rate_rps: float | None = None


class WorkloadInfo(Section):
    """`sha256` is the trace's; `schedule_sha256` the schedule's (equal:

    the same requests at the same times).
    """

    trace: str
    sha256: str | None = None
    rows: int | None = None
    arrivals: ArrivalsInfo
    seed: int | None = None
    schedule_sha256: str | None = None
    citation: str | None = None


class ClockInfo(Section):
    """`offset_seconds` is the meter's clock minus the client's; the truth lies within
    +-`uncertainty_seconds`.
    """

    offset_seconds: float
    uncertainty_seconds: float


class WindowInfo(Section):
    """The measurement window [start, end) on the client's clock. `method`: "warmup given" or "detected"."""

    start_unix: float
    end_unix: float
    warmup_seconds: float
    method: str
    steady: dict[str, Any] | None = None


class RequestsInfo(Section):
    planned: int
    sent: int
    completed: int
    failed: dict[str, int]
    in_window: int
    completed_in_window: int | None = None


class Lag(Section):
    p50: float
    p99: float
    max: float


class LoadInfo(Section):
    planned_rps: float | None = None
    achieved_rps: float | None = None
    send_lag_seconds: Lag | None = None


class Distribution(Section):
    """`ci95`: the 95 % interval of the mean; `quantile_ci95`: those of the quantiles, by name."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    n: int | None = None
    ci95: tuple[float, float] | None = None
    quantile_ci95: dict[str, tuple[float, float]] | None = None


class LatencyInfo(Section):
    ttft_seconds: Distribution | None = None
    tpot_seconds: Distribution | None = None
    itl_seconds: Distribution | None = None
    e2e_seconds: Distribution | None = None


class TokensInfo(Section):
    prompt: int | None = None
    output: int | None = None
    prompt_per_second: float | None = None
    output_per_second: float | None = None
    mismatches: int | None = None
    cached: int | None = None


class PerRequest(Section):
    """`mean` is the window's whole energy, idle and unattributed included, over the requests completed of
    those due in the window; the quantiles are of the requests' own attributed joules, which exclude idle.
    """

    mean: float | None = None
    ci95: tuple[float, float] | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    quantile_ci95: dict[str, tuple[float, float]] | None = None
    attributed_mean: float | None = None
    attributed_ci95: tuple[float, float] | None = None
    attributed_requests: int | None = None


class EnergyInfo(Section):
    source: str | None = None
    total_joules: float | None = None
    idle_joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    unattributed_joules: float | None = None
    mean_watts: float | None = None
    uncertainty_joules: float | None = None
    gain_fraction: float | None = None
    complete: bool | None = None
    per_request_joules: PerRequest | None = None
    per_output_token_joules: float | None = None
    per_output_token_ci95: tuple[float, float] | None = None
    per_token_joules: float | None = None
    per_token_ci95: tuple[float, float] | None = None
    accounting: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    by_tag: dict[str, Any] | None = None
    flags: list[str] = Field(default_factory=list)


class SloLimits(Section):
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None


class SloInfo(SloLimits):
    met_fraction: float | None = None
    met_ci95: tuple[float, float] | None = None
    goodput_rps: float | None = None
    joules_per_good_request: float | None = None


class RunJson(Section):
    """One run. `absent` maps the dotted path of a number that is null to the reason.

    `reasons` are why the run is not valid; `notes` qualify figures that stand.
    """

    schema_: str = Field(RUN_SCHEMA, alias="schema")
    name: str
    started_unix: float
    finished_unix: float | None
    valid: bool
    reasons: list[str]
    notes: list[str] = Field(default_factory=list)
    versions: dict[str, str | None]
    host: dict[str, Any]
    target: TargetInfo
    clock: ClockInfo | None = None
    workload: WorkloadInfo
    window: WindowInfo | None
    requests: RequestsInfo
    load: LoadInfo
    latency: LatencyInfo
    tokens: TokensInfo
    energy: EnergyInfo
    estimates: dict[str, Any] | None = None
    slo: SloInfo | None = None
    footprint: dict[str, Any] | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)

    def as_text(self) -> str:
        """The file's content."""
        return self.model_dump_json(by_alias=True, indent=1)
