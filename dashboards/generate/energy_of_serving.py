"""The dashboard that an operator keeps open: energy per request, token and tenant, its parts, its cost."""

from __future__ import annotations

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, bars, number, series
from dashboards.generate.queries import DEVICE, WHERE, faults, percentiles, source
from grafana_foundation_sdk.builders.dashboard import Dashboard

from wattload.colours import COMPONENTS, QUANTILES

# What GPUs use while no engine has them is no served model's.
_MODEL = f'{WHERE},model=~"$model",model!="no-engine"'
_ENGINE = f'{WHERE},model_name=~"$model"'
_ENERGY = f"wattserve_energy_joules_total{{{_MODEL}}}"
_DEVICES = f"wattserve_device_energy_joules_total{{{DEVICE}}}"
_REQUESTS = f"wattserve_request_energy_joules_count{{{_MODEL}}}"
_ATTRIBUTED = f"wattserve_request_energy_joules_sum{{{_MODEL}}}"
_PROMPT = f"vllm:prompt_tokens_total{{{_ENGINE}}}"
_OUTPUT = f"vllm:generation_tokens_total{{{_ENGINE}}}"
# The load generator runs elsewhere: its job and instance are its own.
_GOODPUT = 'wattload_good_requests_total{model=~"$model",run=~"$run"}'
_TENANT = f'{_MODEL},tenant=~"$tenant"'
_TENANT_ENERGY = f"wattserve_tenant_energy_joules_total{{{_TENANT}}}"
_TENANT_REQUESTS = f"wattserve_tenant_requests_total{{{_TENANT}}}"
_I, _R = "$__rate_interval", "$__range"
_KWH = units.JOULES_PER_KWH
_RANGE = "Over the selected time range: select a test's measurement window to read the test's figure."


def _rate(selector: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({selector}[{_I}]))"


def _increase(selector: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (increase({selector}[{_R}]))"


def _ratio(above: str, below: str) -> str:
    """A ratio that is absent, not infinite, where nothing was served."""
    return f"{above} / ({below} > 0)"


def _summary() -> list[object]:
    return [
        number(
            "Energy source",
            units.COUNT,
            "Where the joules come from. Orange: `modelled`, a simulated GPU, which no sensor measured.",
            source(),
            limits=((1, "orange"),),
            text=True,
        ),
        number(
            "Power",
            units.WATTS,
            "Power of the selected devices now, idle included.",
            Query(f"sum(wattserve_device_power_watts{{{DEVICE}}})"),
        ),
        number(
            "Energy per request",
            units.JOULES_PER_REQUEST,
            f"Total energy (idle and unattributed included) over requests served. {_RANGE}",
            Query(_ratio(_increase(_ENERGY), _increase(_REQUESTS))),
            instant=True,
        ),
        number(
            "Energy per output token",
            units.JOULES_PER_TOKEN,
            f"Total energy over generated tokens. {_RANGE}",
            Query(_ratio(_increase(_ENERGY), _increase(_OUTPUT))),
            instant=True,
        ),
        number(
            "Requests per kWh",
            units.REQUESTS_PER_KWH,
            f"Requests served for a kilowatt-hour, idle included: higher is better. {_RANGE}",
            Query(_ratio(_increase(_REQUESTS), f"{_increase(_ENERGY)} / {_KWH}")),
            instant=True,
        ),
        number(
            "SLO-compliant requests per kWh",
            units.REQUESTS_PER_KWH,
            "Requests of load tests within their latency limits (`--slo`) for a kilowatt-hour: the figure "
            "to raise. "
            f"{_RANGE}",
            Query(_ratio(_increase(_GOODPUT), f"{_increase(_ENERGY)} / {_KWH}")),
            instant=True,
        ),
    ]


def _energy() -> list[object]:
    return [
        series(
            "Power by device",
            units.WATTS,
            "Mean power from each device's energy counter, with its limit, and the idle power of the "
            "server. At the "
            "limit clocks drop: lower the rate or raise the limit.",
            Query(f"rate({_DEVICES}[{_I}])", "{{name}} {{device}} ({{source}})"),
            Query(f"wattserve_device_power_limit_watts{{{DEVICE}}}", "limit {{device}}", dashed=True),
            Query(
                f'sum(rate(wattserve_energy_joules_total{{{_MODEL},component="idle"}}[{_I}]))',
                "idle",
                dashed=True,
            ),
        ),
        series(
            "Power by component",
            units.WATTS,
            "Prefill computes prompts, decode generates tokens, idle is spent with nothing to do, and "
            "unattributed "
            "belongs to no request. The four add up to the counters of GPUs that engines use. Much idle: "
            "batch more, or use fewer GPUs.",
            Query(_rate(_ENERGY, "component"), "{{component}}"),
            stacked=True,
            colours=COMPONENTS,
        ),
        series(
            "Energy per request over time",
            units.JOULES_PER_REQUEST,
            "Total: all energy over requests served. Attributed: without idle. The gap between them is "
            "idle power.",
            Query(_ratio(_rate(_ENERGY), _rate(_REQUESTS)), "total"),
            Query(_ratio(_rate(_ATTRIBUTED), _rate(_REQUESTS)), "attributed"),
            Query('model:joules_per_request:rate1h{model=~"$model"}', "total, 1 h, {{model}}", dashed=True),
        ),
        series(
            "Attributed energy per request, percentiles",
            units.JOULES,
            "What single requests took, idle excluded. A p99 far above p50 is long outputs or long prompts.",
            *percentiles("wattserve_request_energy_joules", _MODEL),
            colours=QUANTILES,
        ),
        series(
            "Energy per token",
            units.JOULES_PER_TOKEN,
            "Total energy over generated tokens, and over prompt and generated tokens.",
            Query(_ratio(_rate(_ENERGY), _rate(_OUTPUT)), "per output token"),
            Query(_ratio(_rate(_ENERGY), f"({_rate(_PROMPT)} + {_rate(_OUTPUT)})"), "per token"),
        ),
        series(
            "SLO-compliant requests per kWh over time",
            units.REQUESTS_PER_KWH,
            "Requests of load tests within their latency limits for a kilowatt-hour, over one minute and "
            "one hour.",
            Query(f'{_KWH} * model:good_requests_per_joule:rate1m{{model=~"$model"}}', "1 min, {{model}}"),
            Query(
                f'{_KWH} * model:good_requests_per_joule:rate1h{{model=~"$model"}}',
                "1 h, {{model}}",
                dashed=True,
            ),
        ),
        bars(
            "Energy by component",
            units.KILOWATT_HOURS,
            "Energy of the selected time range.",
            Query(f"{_increase(_ENERGY, 'component')} / {_KWH}", "{{component}}"),
        ),
        series(
            "Tokens per kWh",
            units.TOKENS_PER_KWH,
            "Prompt and generated tokens for a kilowatt-hour, one-minute mean.",
            Query(f'{_KWH} * model:tokens_per_joule:rate1m{{model=~"$model"}}', "{{model}}"),
        ),
    ]


def _tenants() -> list[object]:
    return [
        series(
            "Attributed power by tenant",
            units.WATTS,
            "Attributed energy of each tenant's requests over time, idle excluded. A tenant is the header "
            "x-energy-group; `none` is without it, `other` are tenants beyond the first hundred.",
            Query(_rate(_TENANT_ENERGY, "tenant"), "{{tenant}}"),
            stacked=True,
            span=8,
        ),
        series(
            "Attributed energy per request by tenant",
            units.JOULES_PER_REQUEST,
            "Who sends expensive requests. Different tenants differ by lengths of prompts and outputs first.",
            Query(_ratio(_rate(_TENANT_ENERGY, "tenant"), _rate(_TENANT_REQUESTS, "tenant")), "{{tenant}}"),
            span=8,
        ),
        bars(
            "Attributed energy by tenant",
            units.KILOWATT_HOURS,
            "What to charge for, of the selected time range. Idle and unattributed energy are nobody's: "
            "share them by "
            "a rule of your own.",
            Query(f"{_increase(_TENANT_ENERGY, 'tenant')} / {_KWH}", "{{tenant}}"),
            span=8,
        ),
    ]


def _cost() -> list[object]:
    facility = f"{_increase(_DEVICES)} / {_KWH} * $pue"
    return [
        number(
            "GPU energy",
            units.KILOWATT_HOURS,
            "Energy of the selected devices in the selected time range, as counted by their sensors.",
            Query(f"{_increase(_DEVICES)} / {_KWH}"),
            span=6,
            instant=True,
        ),
        number(
            "Facility energy at PUE $pue",
            units.KILOWATT_HOURS,
            "GPU energy times the PUE above. Host CPU, network and fans are not in it: no sensor here sees "
            "them.",
            Query(facility),
            span=6,
            instant=True,
        ),
        number(
            "Cost at $price per kWh",
            units.COUNT,
            "Facility energy times the price above, in your currency.",
            Query(f"{facility} * $price"),
            span=6,
            instant=True,
        ),
        number(
            "CO2e at $carbon g/kWh",
            units.GRAMS,
            "Facility energy times the carbon intensity above.",
            Query(f"{facility} * $carbon"),
            span=6,
            instant=True,
        ),
    ]


def _traffic() -> list[object]:
    return [
        series(
            "Request rate",
            units.REQUESTS_PER_SECOND,
            "Requests whose energy became final.",
            Query(_rate(_REQUESTS), "served"),
            span=8,
        ),
        series(
            "Token rate",
            units.TOKENS_PER_SECOND,
            "Prompt and generated tokens.",
            Query(_rate(_PROMPT), "prompt"),
            Query(_rate(_OUTPUT), "generated"),
            span=8,
        ),
        series(
            "Running and waiting requests",
            units.COUNT,
            "Requests in the engine's batch, and in its queue. A queue that grows: the rate is beyond "
            "capacity.",
            Query(f"sum(vllm:num_requests_running{{{_ENGINE}}})", "running"),
            Query(f"sum(vllm:num_requests_waiting{{{_ENGINE}}})", "waiting"),
            span=8,
        ),
        series(
            "KV cache usage",
            units.RATIO,
            "Share of the KV cache's blocks in use. At 100 % the engine preempts requests and computes "
            "them again, "
            "which costs energy: allow fewer sequences or shorter contexts.",
            Query(f"max by (model_name) (vllm:kv_cache_usage_perc{{{_ENGINE}}})", "{{model_name}}"),
            span=8,
            maximum=1,
        ),
        series(
            "Time to first token (TTFT)",
            units.SECONDS,
            "From a request's arrival at the server to its first token, as the engine measured it.",
            *percentiles("vllm:time_to_first_token_seconds", _ENGINE),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "Time per output token (TPOT)",
            units.SECONDS,
            "Mean time between the tokens of one response, as the engine measured it.",
            *percentiles("vllm:request_time_per_output_token_seconds", _ENGINE),
            span=8,
            colours=QUANTILES,
        ),
    ]


def _health() -> list[object]:
    return [
        series(
            "Meter sample age",
            units.SECONDS,
            "Time since each device gave a new value. Above 5 s an alert fires: energy since then is "
            "unknown.",
            Query(f"wattserve_meter_sample_age_seconds{{{DEVICE}}}", "{{device}}"),
        ),
        series(
            "Meter faults (5 min)",
            units.COUNT,
            "Named faults that began within five minutes. `none`: the device responds without one. Any "
            "other is a "
            "reason to look at the dashboard of GPUs and meter health.",
            faults(),
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.ENERGY,
        "Energy of LLM serving: per request, token and tenant, by component, with cost and CO2e, traffic "
        "and latency.",
        [
            variables.datasource(),
            *variables.servers(),
            variables.model(),
            variables.device(),
            variables.tenant(),
            variables.run(),
            *variables.factors(),
        ],
        [
            ("Selected time range", _summary()),
            ("Energy", _energy()),
            ("Tenants", _tenants()),
            ("Cost and carbon", _cost()),
            ("Traffic and latency", _traffic()),
            ("Meter health", _health()),
        ],
    )
