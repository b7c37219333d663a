"""run.json: the numbers of one run, as pydantic models, all public (docs/reference/run-directory.md).

A number that was not measured is None, and `absent` says why under its dotted path; never 0. Every number
is declared here once, with its title, unit, definition and why it may be null: `rundir/numbers.py` makes the
list of numbers from it that reports, tables, comparisons and the documentation go through.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wattmeter.faults import Fault

RUN_SCHEMA = "wattload.run/1"
NOT_GIVEN = "not given"
_TOO_FEW = "too few requests for an interval"
_NO_COUNTS = "the endpoint gave no token counts"


def number(
    title: str,
    unit: str = "",
    definition: str | None = None,
    *,
    when_null: str = NOT_GIVEN,
    interval: str | None = None,
    group: str | None = None,
    default: Any = None,
) -> Any:
    """A field that holds a number.

    Args:
        title: what it is called in tables. Inside a distribution it follows the distribution's title.
        unit: SI units as shown; `fraction` for a share that is shown in percent.
        definition: one sentence; None inside a distribution, which has one for all its numbers.
        when_null: why it may be null where no better reason was found.
        interval: the field, relative to the same section, that has its 95 % interval.
        group: the heading it stands under, where that is not its section's.
    """
    facts = {"title": title, "unit": unit, "when_null": when_null, "interval": interval, "group": group}
    return Field(default, description=definition, json_schema_extra={**facts, "number": True})


def part(
    title: str,
    unit: str = "",
    definition: str | None = None,
    *,
    group: str | None = None,
    when_null: str = NOT_GIVEN,
    default: Any = None,
) -> Any:
    """A field that holds a section of numbers; title, unit and definition are for those that state none."""
    facts: dict[str, Any] = {"title": title, "unit": unit, "when_null": when_null, "group": group}
    return Field(default, description=definition, json_schema_extra=facts)


def other(definition: str, *, when_null: str = NOT_GIVEN, default: Any = None) -> Any:
    """A field that holds no number of the list: its meaning, and why it may be null."""
    return Field(default, description=definition, json_schema_extra={"when_null": when_null})


def interval(of: str) -> Any:
    """A field that holds the 95 % interval of another one."""
    return other(f"95 % interval of {of}, as [lower, upper].", when_null=_TOO_FEW)


def intervals(of: str) -> Any:
    """A field that holds the 95 % intervals of quantiles, by their names."""
    return other(f"95 % intervals of the quantiles of {of}, by name.", when_null=_TOO_FEW)


def some(definition: str, make: Any) -> Any:
    """A list or a mapping that may be empty."""
    return Field(default_factory=make, description=definition)


class Section(BaseModel):
    """A part of run.json. Unknown fields are kept: a newer wattload may have written them."""

    model_config = ConfigDict(populate_by_name=True, extra="allow")


class TargetInfo(Section):
    url: str = other("Address of the endpoint.", default=...)
    engine: str | None = other("The server's own name and version.")
    model: str | None = other("The model that was requested.")
    max_model_len: int | None = other("The model's limit of prompt and output tokens together.")
    energy_source: str | None = other("Kind of sensor: `nvml`, `dcgm`, ...; `modelled` means simulated.")
    devices: list[dict[str, Any]] = some(
        "The devices that were metered, as their meter described them.", list
    )


class ArrivalsInfo(Section):
    process: str = other("The arrival process, with its parameters.", default=...)
    rate_rps: float | None = other("Requests of the whole schedule over its length, in requests/s.")
    target_rps: float | None = other("The target rate, in requests/s.", when_null="no rate was given")


class SystemPromptInfo(Section):
    """What every prompt began with."""

    tokens: int = other("Its tokens, which are among the input tokens.", default=...)
    sha256: str | None = other(
        "Checksum of its text.", when_null="it was made of words or token ids, as the prompts are"
    )


class WorkloadInfo(Section):
    """What was replayed."""

    trace: str = other("The workload, or the trace's file.", default=...)
    sha256: str | None = other("Checksum of the trace.")
    revision: str | None = other("Commit of the data set.")
    rows: int | None = other("Requests in the trace.")
    arrivals: ArrivalsInfo = other("When requests were scheduled.", default=...)
    seed: int | None = other("Seed of the schedule.")
    schedule_sha256: str | None = other(
        "Checksum of the schedule: where two runs have the same one, the same requests were scheduled at the "
        "same times."
    )
    citation: str | None = other("How to cite the trace.")
    system_prompt: SystemPromptInfo | None = other(
        "The system prompt of every request.", when_null="no system prompt was asked for"
    )
    image: str | None = other("Size of the images in requests, in pixels.", when_null="no images were sent")
    images: int | None = other(
        "Images in all requests of the schedule: as many as the trace tells of, else one a request.",
        when_null="no images were planned",
    )
    history: str | None = other(
        "How later turns of sessions repeated the server's own responses: `token_ids`, exactly those that it"
        " generated, or `text`, whose tokens it may count otherwise.",
        when_null="invented text of the planned length stood for them, or there were no such turns",
    )
    inputs: int | None = other(
        "Into how many texts or documents a prompt was shared out at most.",
        when_null="the endpoint generates",
    )


class ClockInfo(Section):
    """The meter's clock minus the client's; the truth lies within +-`uncertainty_seconds` of the offset.

    Of several hosts the offset is 0, since each host's times were put on the client's clock by its own, which
    is in `hosts`; the uncertainty is the largest of them.
    """

    offset_seconds: float = other("The meter's clock minus the client's.", default=...)
    uncertainty_seconds: float = other("The offset is known to within this much.", default=...)
    hosts: dict[str, ClockInfo] | None = other(
        "The same for each meter, by its address.", when_null="one meter was asked"
    )


class WindowInfo(Section):
    """The measurement window [start, end) on the client's clock."""

    start_unix: float = other("Start of the window.", default=...)
    end_unix: float = other("End of the window.", default=...)
    warmup_seconds: float = other("Time before the window that is left out.", default=...)
    method: str = other("How the end of the warm-up was found: given, or detected.", default=...)
    steady: dict[str, Any] | None = other(
        "Result of the trend test on the requests in flight: `steady` is true or false.",
        when_null="too few values for the trend test",
    )


class FailureInfo(Section):
    """One kind of failure: what was said, how often over the whole run, and the likely fix."""

    outcome: str = other("How the requests ended, as in requests.parquet.", default=...)
    status_code: int | None = other("HTTP status.", when_null="there was no HTTP response")
    message: str = other("What the server or the client said.", default=...)
    count: int = other("Number of such requests.", default=...)
    hint: str | None = other("The likely fix.", when_null="no fix is known")


class RequestsInfo(Section):
    planned: int = number("Planned requests", "", "Rows of the schedule.", default=...)
    sent: int = number("Sent requests", "", "Requests that were sent, over the whole run.", default=...)
    completed: int = number(
        "Completed requests",
        "",
        "Requests that ended with a whole response, over the whole run.",
        default=...,
    )
    failed: dict[str, int] = other("Requests that failed over the whole run, by outcome.", default=...)
    images_sent: int | None = number(
        "Images sent",
        "",
        "Images in the requests that were sent, over the whole run.",
        when_null="no images were planned",
    )
    in_window: int = number(
        "Requests in the window",
        "",
        "Requests whose scheduled time lies in the measurement window.",
        default=...,
    )
    completed_in_window: int | None = number(
        "Completed requests in the window",
        "",
        "The completed ones of the requests scheduled in the window.",
    )
    failed_fraction: float | None = number(
        "Failed share of the requests",
        "fraction",
        "Requests scheduled in the window that failed or were not sent, over all that were scheduled in"
        " it; those "
        "that the end of the run aborted are not among them.",
        when_null="no request was scheduled in the window",
    )
    failures: list[FailureInfo] = some(
        "Kinds of failure over the whole run, with the server's own words and the likely fix.", list
    )


class Lag(Section):
    p50: float = number("p50", "s", "Half of the requests were sent at most this late.", default=...)
    p99: float = number("p99", "s", "99 % of requests were sent at most this late.", default=...)
    max: float = number("max", "s", "The largest delay of any request.", default=...)


class LoadInfo(Section):
    target_rps: float | None = number(
        "Target rate",
        "requests/s",
        "The rate that was given; the schedule draws its arrivals with it.",
        when_null="no rate was given",
    )
    planned_rps: float | None = number(
        "Scheduled rate", "requests/s", "Requests scheduled in the window over its length."
    )
    achieved_rps: float | None = number(
        "Achieved rate", "requests/s", "Requests sent inside the window over its length."
    )
    send_lag_seconds: Lag | None = part(
        "Dispatch delay", "s", "From a request's scheduled time to its sending: the client's own delay."
    )


class Distribution(Section):
    """Mean, quantiles and maximum of N values with the intervals of the mean and, by name, of quantiles."""

    mean: float = number("mean", default=..., interval="ci95")
    p50: float = number("p50", default=..., interval="quantile_ci95.p50")
    p90: float = number("p90", default=..., interval="quantile_ci95.p90")
    p95: float = number("p95", default=..., interval="quantile_ci95.p95")
    p99: float = number("p99", default=..., interval="quantile_ci95.p99")
    max: float = number("max", default=...)
    n: int | None = other("Number of values.")
    ci95: tuple[float, float] | None = interval("`mean`")
    quantile_ci95: dict[str, tuple[float, float]] | None = intervals("the values")


class LatencyInfo(Section):
    ttft_seconds: Distribution | None = part(
        "TTFT",
        "s",
        "Time from a request's scheduled time to its first token, so waiting counts; of the completed "
        "requests scheduled in the window.",
    )
    tpot_seconds: Distribution | None = part(
        "TPOT", "s", "Time from the first to the last token over the number of tokens after the first."
    )
    itl_seconds: Distribution | None = part(
        "ITL", "s", "Time between successive chunks that carried tokens (a chunk may carry several)."
    )
    ttfa_seconds: Distribution | None = part(
        "Time to first answer token",
        "s",
        "Time from a request's scheduled time to the first token of its answer (text, or a tool call), of "
        "the responses that reasoned before it; TTFT is that of their first reasoning token.",
        when_null="no response reasoned before its answer",
    )
    e2e_seconds: Distribution | None = part(
        "End-to-end latency",
        "s",
        "Time from a request's scheduled time to its last token, or to the end of its response where nothing"
        " is generated.",
    )


class TokensInfo(Section):
    prompt: int | None = number(
        "Prompt tokens",
        "",
        "Prompt tokens of the completed requests scheduled in the window, by the endpoint's usage.",
    )
    output: int | None = number(
        "Output tokens",
        "",
        "Output tokens of the completed requests scheduled in the window, by the endpoint's usage.",
    )
    prompt_received: float | None = number(
        "Prompt tokens prefilled in the window",
        "",
        "Prompt tokens of the requests whose first output token was received in the window (where nothing is "
        "generated: whose response was); the planned ones where the endpoint gave no count.",
        when_null=_NO_COUNTS,
    )
    output_received: float | None = number(
        "Output tokens received in the window",
        "",
        "Output tokens that were received in the window, of every request: also of aborted and unfinished "
        "ones, and of those scheduled before it. A request's tokens are spread evenly over its chunks; where "
        "the times between its chunks are not known, they are taken to be equal.",
        when_null=_NO_COUNTS,
    )
    output_estimated: float | None = number(
        "Output tokens counted by chunks",
        "",
        "Those of the output tokens received whose request the endpoint gave no count for, as an aborted "
        "one: its chunks times the tokens per chunk of the requests that have a count.",
        when_null=_NO_COUNTS,
    )
    prompt_per_second: float | None = number(
        "Prompt token rate",
        "tokens/s",
        "Prompt tokens prefilled in the window over its length.",
        when_null=_NO_COUNTS,
    )
    output_per_second: float | None = number(
        "Output token rate",
        "tokens/s",
        "Output tokens received in the window over its length.",
        when_null=_NO_COUNTS,
    )
    mismatches: int | None = number(
        "Token count mismatches", "", "Completed requests whose token counts were not the planned ones."
    )
    reasoning: float | None = number(
        "Reasoning tokens",
        "",
        "Those of the output tokens that were reasoning: as the endpoint's usage counts them, and where it "
        "does not, the response's output tokens times the share of its chunks that carried reasoning.",
        when_null="no response reasoned",
    )
    tool_calls: int | None = number(
        "Tool calls",
        "",
        "Calls of tools in the completed responses; their tokens are among the output tokens.",
        when_null="no response called a tool",
    )
    image: int | None = number(
        "Image tokens",
        "",
        "Those of the prompt tokens that are of images, as the endpoint's usage counts them.",
        when_null="no images were sent, or the endpoint does not say",
    )
    cached: int | None = number(
        "Cached prompt tokens",
        "",
        "Prompt tokens that the endpoint took from its prefix cache.",
        when_null="the endpoint does not say",
    )


def _quantile(name: str) -> Any:
    share = "Half" if name == "p50" else f"{name[1:]} %"
    return number(
        f"Attributed energy per request, {name}",
        "J",
        f"{share} of the completed requests were attributed at most this much energy.",
        interval=f"quantile_ci95.{name}",
    )


class PerRequest(Section):
    """Two views of one request: `mean` has idle and unattributed energy in it, the others do not."""

    headline: Literal["mean", "attributed_mean"] = other(
        "Which of the two to quote: `mean`, or `attributed_mean` where the window was not steady.",
        default="mean",
    )

    mean: float | None = number(
        "Total energy per request",
        "J",
        "Total energy of the window, idle and unattributed included, over the completed ones of the requests "
        "scheduled in it.",
        interval="ci95",
    )
    ci95: tuple[float, float] | None = interval("`mean`")
    absolute_mean: float | None = number(
        "Absolute energy per request",
        "J",
        "Total energy per request times the gain of the sensor, where that was calibrated; its interval also "
        "has the error of the gain.",
        interval="absolute_ci95",
        when_null="the gain error of the source is not known",
    )
    absolute_ci95: tuple[float, float] | None = interval("`absolute_mean`, the gain's error in it")
    p50: float | None = _quantile("p50")
    p90: float | None = _quantile("p90")
    p95: float | None = _quantile("p95")
    p99: float | None = _quantile("p99")
    quantile_ci95: dict[str, tuple[float, float]] | None = intervals("attributed energy per request")
    attributed_mean: float | None = number(
        "Attributed energy per request",
        "J",
        "Mean of the energy attributed to each completed request scheduled in the window, whenever it was "
        "spent; idle energy is not in it.",
        interval="attributed_ci95",
    )
    attributed_ci95: tuple[float, float] | None = interval("`attributed_mean`")
    attributed_requests: int | None = other("Number of requests that these figures are of.")


_EACH = "Energy per request and per token"


class HostInfo(Section):
    """The energy of CPU packages and memory in the window, and its division by share of busy time.

    At each moment the power of the host belongs in equal parts to the requests that are in flight, and while
    there is none, to nobody. That is a rule and no measurement: a request that keeps the CPU busier is not
    told from others. `by_tag` has each tenant's part.
    """

    joules: float | None = number(
        "Host energy",
        "J",
        "Energy of the CPU packages, and of the memory where it is metered, over the measurement window; it"
        " is in no other figure.",
    )
    parts: list[str] = some("The components that are added up.", list)
    busy_fraction: float | None = number(
        "Time with a request in flight", "fraction", "Part of the window in which a request was in flight."
    )
    divided_joules: float | None = number(
        "Host energy of requests",
        "J",
        "Host energy times the part of the window with a request in flight: divided among the requests in"
        " equal parts at each moment, which is a rule and no measurement.",
    )
    undivided_joules: float | None = number(
        "Host energy of no request", "J", "Host energy of the time in which no request was in flight."
    )
    per_request_joules: float | None = number(
        "Host energy per request",
        "J",
        "Mean share of the completed requests scheduled in the window, of their time in flight in it.",
        when_null="no request scheduled in the window completed",
    )
    by_tag: dict[str, float] | None = other(
        "Divided host energy by tenant, in joules.", when_null="the workload has no tenants"
    )


class EnergyInfo(Section):
    source: str | None = other("Kind of sensor: `nvml`, `dcgm`, ...; `modelled` means simulated.")
    total_joules: float | None = number(
        "Total energy", "J", "Change of the metered devices' energy counters over the measurement window."
    )
    idle_joules: float | None = number(
        "Idle energy",
        "J",
        "Idle power, with the model loaded and nothing to do, times the window's length.",
    )
    prefill_joules: float | None = number(
        "Prefill energy", "J", "Energy above idle attributed to computing prompts."
    )
    decode_joules: float | None = number(
        "Decode energy", "J", "Energy above idle attributed to generating tokens."
    )
    unattributed_joules: float | None = number(
        "Unattributed energy", "J", "Energy above idle that belongs to no request."
    )
    mean_watts: float | None = number("Mean power", "W", "Total energy over the window's length.")
    uncertainty_joules: float | None = number(
        "Uncertainty of the total energy",
        "J",
        "How far the total may be off because the counter steps and the window's edges fall between its "
        "steps; the sensor's gain error is not in it.",
    )
    gain: float | None = number(
        "Gain of the sensor",
        "",
        "Joules of a reference meter for each joule of the sensor, over the metered devices by their energy;"
        " only the absolute figures are multiplied by it.",
        when_null="the sensors were not calibrated (`wattserve meter calibrate`)",
    )
    gain_fraction: float | None = number(
        "Gain error of the sensor",
        "fraction",
        "How far the sensors' gain may be off (95 %): of calibrated ones by the calibration, else how far "
        "one GPU's sensor may be off from another's. It is the same in every run on a GPU, so only "
        "`absolute_ci95` contains it.",
        when_null="no published gain error for this source",
    )
    complete: bool | None = other("Whether the whole window was covered and its energy is final.")
    per_request_joules: PerRequest | None = part(
        "Energy per request", "J", "Total and attributed energy per request.", group=_EACH
    )
    per_output_token_joules: float | None = number(
        "Energy per output token",
        "J",
        "Total energy of the window over the output tokens received in it (`tokens.output_received`).",
        interval="per_output_token_ci95",
        group=_EACH,
    )
    per_output_token_ci95: tuple[float, float] | None = interval("`per_output_token_joules`")
    per_token_joules: float | None = number(
        "Energy per token",
        "J",
        "Total energy of the window over the prompt tokens prefilled and the output tokens received in it.",
        interval="per_token_ci95",
        group=_EACH,
    )
    per_token_ci95: tuple[float, float] | None = interval("`per_token_joules`")
    per_input_token_joules: float | None = number(
        "Energy per input token",
        "J",
        "Total energy of the window over the input tokens of the requests whose response arrived in it; of"
        " endpoints that generate nothing (embeddings, rerank, score).",
        when_null="the endpoint generates: its energy is that of output tokens too",
        interval="per_input_token_ci95",
        group=_EACH,
    )
    per_input_token_ci95: tuple[float, float] | None = interval("`per_input_token_joules`")
    components: dict[str, Any] | None = other(
        "Energy of the host beside the accelerators, by component; in no other figure.",
        when_null="the source of energy meters accelerators alone",
    )
    node_over_accelerators: float | None = number(
        "Node energy over accelerators' energy",
        "",
        "Energy of the whole node (its power supply, by IPMI, Redfish, ACPI or a command) over that of the"
        " accelerators, both of the window; 1.5 to 1.8 is usual.",
        when_null="the source of energy does not meter the whole node",
    )
    host: HostInfo | None = part(
        "",
        "",
        "Energy of the host's CPU packages and memory, divided by a rule.",
        group="Host",
        when_null="the source of energy does not meter CPU packages",
    )
    accounting: dict[str, Any] | None = other(
        "How the window's energy and its requests fit together: requests at the edges, the mean over the "
        "requests finished in it, the conservation error."
    )
    statistics: dict[str, Any] | None = other(
        "How the intervals were computed: method, bins, degrees of freedom, minimum detectable change."
    )
    by_tag: dict[str, Any] | None = other(
        "Requests and attributed energy by tenant.",
        when_null="the workload has no tenants, or no request has attributed energy",
    )
    flags: list[str] = some("Named reasons that qualify or break the figures.", list)

    @property
    def simulated(self) -> bool:
        """Whether no sensor read these joules."""
        return Fault.MODELLED in self.flags


_NO_SERVER_METRIC = "the server's metrics do not show it"


class ServerInfo(Section):
    """What the server's own metrics said of the window, over all addresses that were read."""

    requests_running: float | None = number(
        "Mean batch size",
        "requests",
        "Requests that were being computed, mean over the window.",
        when_null=_NO_SERVER_METRIC,
    )
    requests_waiting: float | None = number(
        "Mean queue",
        "requests",
        "Requests that waited to be admitted, mean over the window.",
        when_null=_NO_SERVER_METRIC,
    )
    kv_cache_used_fraction: float | None = number(
        "Mean KV cache use",
        "fraction",
        "Part of the KV cache that requests occupied, mean over the window.",
        when_null=_NO_SERVER_METRIC,
    )
    prefix_cache_hit_fraction: float | None = number(
        "Prefix cache hit rate",
        "fraction",
        "Prompt tokens that were found in the prefix cache over those that were looked up, in the window.",
        when_null=_NO_SERVER_METRIC,
    )
    preemptions: float | None = number(
        "Preemptions",
        "requests",
        "Times a running request lost its place in the KV cache in the window.",
        when_null=_NO_SERVER_METRIC,
    )
    draft_acceptance_fraction: float | None = number(
        "Draft acceptance",
        "fraction",
        "Draft tokens that were accepted over those that were proposed, in the window.",
        when_null=_NO_SERVER_METRIC,
    )
    sm_clock_hertz: float | None = number(
        "Mean SM clock",
        "Hz",
        "Clock of the GPUs' multiprocessors, mean over the GPUs and the window.",
        when_null=_NO_SERVER_METRIC,
    )


class UnitInfo(Section):
    """Sessions, or tasks of agents, that began in the window: figures are means over the complete ones."""

    begun: int = number(
        "count (begun in the window)", "", "Those whose first turn was scheduled in the window.", default=0
    )
    completed: int = number(
        "count (complete)", "", "Those of them whose every planned turn completed.", default=0
    )
    turns: float | None = number("turns", "", "Mean number of requests.")
    agents: float | None = number("agents", "", "Mean number of agents that had turns, sub-agents included.")
    energy_joules: Distribution | None = part(
        "energy",
        "J",
        "Energy attributed to its turns, its share of idle energy while they were in flight, and its share of"
        " idle energy while it waited for its tools.",
    )
    attributed_joules: float | None = number(
        "attributed energy",
        "J",
        "Mean of the energy attributed to its turns, idle excluded.",
        interval="attributed_ci95",
    )
    attributed_ci95: tuple[float, float] | None = interval("`attributed_joules`")
    idle_joules: float | None = number(
        "idle energy in flight",
        "J",
        "Mean share of idle energy while its requests were in flight: at each moment idle power is shared"
        " evenly by the sessions' tasks, and other requests, that are open.",
        interval="idle_ci95",
    )
    idle_ci95: tuple[float, float] | None = interval("`idle_joules`")
    waiting_idle_joules: float | None = number(
        "idle energy while waiting",
        "J",
        "Mean share of idle energy while none of its requests was in flight within a task: what it held while"
        " it waited for its tools. The time of its user is not in it.",
        interval="waiting_idle_ci95",
    )
    waiting_idle_ci95: tuple[float, float] | None = interval("`waiting_idle_joules`")
    cache_saved_joules: float | None = number(
        "energy saved by cache hits (estimated)",
        "J",
        "Mean estimate: its cached prompt tokens times the run's prefill energy per computed prompt token.",
        when_null="the endpoint gives no cached tokens, or no prefill energy",
        interval="cache_saved_ci95",
    )
    cache_saved_ci95: tuple[float, float] | None = interval("`cache_saved_joules`")
    duration_seconds: Distribution | None = part(
        "duration", "s", "From the scheduled time of its first turn to the last token of its last."
    )
    waiting_seconds: float | None = number(
        "waiting time", "s", "Mean time within its tasks with none of its requests in flight."
    )


class SessionsInfo(Section):
    """Energy of whole sessions, and of tasks: from one turn of an agent's user up to the next."""

    per_session: UnitInfo | None = part(
        "Session", "", "Figures per session.", group="Sessions and tasks of agents"
    )
    per_task: UnitInfo | None = part(
        "Task",
        "",
        "Figures per task: from one turn of an agent's user up to the next.",
        group="Sessions and tasks of agents",
        when_null="every turn is its user's: a task is a request",
    )


class SloLimits(Section):
    ttft_seconds: float | None = other("Limit on TTFT.")
    tpot_seconds: float | None = other("Limit on TPOT.")
    e2e_seconds: float | None = other("Limit on end-to-end latency.")


class SloInfo(SloLimits):
    met_fraction: float | None = number(
        "SLO attainment",
        "fraction",
        "Requests scheduled in the window that met every limit, over all that were scheduled in it; a failed "
        "one missed its limits.",
        interval="met_ci95",
    )
    met_ci95: tuple[float, float] | None = interval("`met_fraction`")
    goodput_rps: float | None = number(
        "Goodput", "requests/s", "Requests scheduled in the window that met every limit, over its length."
    )
    joules_per_good_request: float | None = number(
        "Energy per SLO-compliant request",
        "J",
        "Total energy of the window over the requests that met every limit.",
        when_null="no request met the limits, or there is no energy",
    )


class CostInfo(Section):
    per_1000_requests: float = number(
        "Cost per 1,000 requests", "", "The energy per 1,000 requests times the price given.", default=...
    )
    currency: str | None = other("Currency of the price.")
    price_per_kwh: float = other("The price given, per kilowatt-hour.", default=...)


class FootprintInfo(Section):
    """Energy as kilowatt-hours, cost and carbon, within the boundary named; nothing is assumed for them."""

    boundary: str = other("What the joules are of, and what they leave out.", default=...)
    modelled: bool = other("Whether the joules are simulated.", default=...)
    pue: float | None = other("The PUE given.")
    energy_kwh_per_1000_requests: float = number(
        "Energy per 1,000 requests",
        "kWh",
        "`energy.per_request_joules.mean` times 1,000, in kilowatt-hours, within the boundary named.",
        default=...,
    )
    facility_kwh_per_1000_requests: float | None = number(
        "Facility energy per 1,000 requests", "kWh", "The same times the PUE given."
    )
    cost: CostInfo | None = part("Cost", "", "Cost of the energy.")
    carbon_grams: float | None = number(
        "Carbon per 1,000 requests",
        "g CO2e",
        "The energy per 1,000 requests times the carbon intensity given.",
    )
    carbon_grams_per_kwh: float | None = other("The carbon intensity given, in g CO2e.")
    not_given: list[str] = some("Factors that were not given.", list)


_NO_JOULES = "no request has final attributed energy"
_NONE_HAS = "no completed request has one"


class ModelInfo(Section):
    """What the requests for one of several models got, of those scheduled in the window."""

    requests: int = other("Requests scheduled in the window.", default=...)
    completed: int = other("Those of them that completed; what follows is of these.", default=...)
    prompt_tokens: int | None = other("Prompt tokens.", when_null=_NO_COUNTS)
    output_tokens: int | None = other("Output tokens.", when_null=_NO_COUNTS)
    attributed_requests: int = other(
        "Completed requests whose attributed energy is known and final; the joules are of these.", default=0
    )
    attributed_joules: float | None = other("Attributed energy, in joules.", when_null=_NO_JOULES)
    attributed_mean_joules: float | None = other(
        "Attributed energy per request, in joules.", when_null=_NO_JOULES
    )
    attributed_ci95: tuple[float, float] | None = interval("`attributed_mean_joules`")
    attributed_per_output_token_joules: float | None = other(
        "Attributed energy over the output tokens, in joules per token, of the requests for which both are"
        " known.",
        when_null="no request has final energy and output tokens",
    )
    attributed_per_output_token_ci95: tuple[float, float] | None = interval(
        "`attributed_per_output_token_joules`"
    )
    ttft_p50_seconds: float | None = other("Median TTFT.", when_null=_NONE_HAS)
    tpot_p50_seconds: float | None = other("Median TPOT.", when_null=_NONE_HAS)
    e2e_p50_seconds: float | None = other("Median end-to-end latency.", when_null=_NONE_HAS)


class RunJson(Section):
    """One run."""

    schema_: str = Field(RUN_SCHEMA, alias="schema", description="Name and version of this format.")
    name: str = other("Name of the run.", default=...)
    started_unix: float = other("When the load began.", default=...)
    finished_unix: float | None = other("When the load ended.", when_null="the run was cut short")
    valid: bool = other("Whether the figures may be used.", default=...)
    reasons: list[str] = other("Why the run is not valid; empty where it is.", default=...)
    notes: list[str] = some("Sentences that qualify figures of a valid run.", list)
    versions: dict[str, str | None] = other(
        "Versions of wattload, Python, libraries and server.", default=...
    )
    host: dict[str, Any] = other("The load generator's host, command and processes.", default=...)
    target: TargetInfo = other("What was measured.", default=...)
    clock: ClockInfo | None = other("The meter's clock against the client's.", when_null="no meter was used")
    workload: WorkloadInfo = other("What was replayed.", default=...)
    window: WindowInfo | None = other("The measurement window.", default=...)
    requests: RequestsInfo = part("", "", "Requests by outcome.", group="Requests", default=...)
    load: LoadInfo = part("", "", "Rates of requests, and the dispatch delay.", group="Load", default=...)
    latency: LatencyInfo = part("", "", "Distributions of latencies.", group="Latency", default=...)
    tokens: TokensInfo = part("", "", "Counts and rates of tokens.", group="Tokens", default=...)
    energy: EnergyInfo = part("", "", "Energy of the window.", group="Energy of the window", default=...)
    sessions: SessionsInfo | None = part(
        "", "", "Sessions, and tasks of agents.", when_null="no request belongs to a session"
    )
    estimates: dict[str, Any] | None = other(
        "What models of energy say of the same traffic.", when_null="no model and GPU are known for them"
    )
    slo: SloInfo | None = part(
        "",
        "",
        "Requests against the latency limits.",
        group="Latency limits (SLO)",
        when_null="no latency limits were given",
    )
    by_model: dict[str, ModelInfo] | None = other(
        "What each of several models was asked for, took and used.", when_null="one model was asked for"
    )
    footprint: FootprintInfo | None = part(
        "",
        "",
        "Energy converted to kilowatt-hours, cost and carbon.",
        group="Footprint",
        when_null="there is no energy to convert",
    )
    server: ServerInfo | None = part(
        "",
        "",
        "What the server's own metrics showed in the window.",
        group="Server",
        when_null="no server's metrics were read",
    )
    absent: dict[str, str] = some("Why a field is null, by its dotted path.", dict)
    config: dict[str, Any] = some("Every setting of the run, secrets hidden.", dict)

    def as_text(self) -> str:
        """The file's content."""
        return self.model_dump_json(by_alias=True, indent=1)
