"""The dashboard that an operator keeps open: what serving takes, per request and per token, and on what."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, bars, number, series
from dashboards.generate.queries import faults

_ENERGY = 'wattserve_energy_joules_total{model=~"$model"}'
_REQUESTS = 'wattserve_request_energy_joules_count{model=~"$model"}'
_PROMPT = 'vllm:prompt_tokens_total{model_name=~"$model"}'
_OUTPUT = 'vllm:generation_tokens_total{model_name=~"$model"}'
_GOOD = 'wattload_good_requests_total{model=~"$model"}'
_WINDOW = "Over the window shown: choose a test's measurement window to read the test's figure."


def _sum(selector: str, over: str, function: str = "rate") -> str:
    return f"sum({function}({selector}[{over}]))"


def _ratio(above: str, below: str) -> str:
    """A ratio that is absent, not infinite, where nothing was served."""
    return f"{above} / ({below} > 0)"


def _tokens(over: str, function: str = "rate") -> str:
    return f"({_sum(_PROMPT, over, function)} + {_sum(_OUTPUT, over, function)})"


def _percentiles(metric: str, *levels: float) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({level}, sum by (le) (rate({metric}[$__rate_interval])))",
            f"p{round(level * 100)}",
        )
        for level in levels
    )


def _now() -> list[object]:
    r = "$__range"
    return [
        number(
            "Energy source",
            units.COUNT,
            "Where the joules come from. `modelled` joules are of a virtual GPU and were measured by "
            "no sensor.",
            Query('count by (source) (wattserve_device_power_watts{device=~"$device"})', "{{source}}"),
            text=True,
        ),
        number(
            "Power",
            units.WATTS,
            "Sum of the devices' power now.",
            Query('sum(wattserve_device_power_watts{device=~"$device"})'),
        ),
        number(
            "Energy per request",
            units.JOULES_PER_REQUEST,
            f"All joules (idle and unattributed included) over requests served. {_WINDOW}",
            Query(_ratio(_sum(_ENERGY, r, "increase"), _sum(_REQUESTS, r, "increase"))),
            instant=True,
        ),
        number(
            "Energy per output token",
            units.JOULES_PER_TOKEN,
            f"All joules over generated tokens. {_WINDOW}",
            Query(_ratio(_sum(_ENERGY, r, "increase"), _sum(_OUTPUT, r, "increase"))),
            instant=True,
        ),
        number(
            "Tokens per joule",
            units.TOKENS_PER_JOULE,
            f"Prompt and generated tokens over all joules. {_WINDOW}",
            Query(_ratio(_tokens(r, "increase"), _sum(_ENERGY, r, "increase"))),
            instant=True,
        ),
        number(
            "Good requests per joule",
            units.REQUESTS_PER_JOULE,
            f"Requests that met the latency limits of the load test over all joules. {_WINDOW}",
            Query(_ratio(_sum(_GOOD, r, "increase"), _sum(_ENERGY, r, "increase"))),
            instant=True,
        ),
    ]


def _energy() -> list[object]:
    i = "$__rate_interval"
    devices = 'device=~"$device"'
    return [
        series(
            "Power by device",
            units.WATTS,
            "Mean power from each device's joule counter, its limit, and the idle floor of the server: "
            "what is spent "
            "with no request running.",
            Query(
                f"rate(wattserve_device_energy_joules_total{{{devices}}}[{i}])",
                "{{name}} {{device}} ({{source}})",
            ),
            Query(f"wattserve_device_power_limit_watts{{{devices}}}", "limit {{device}}", dashed=True),
            Query(
                f'sum(rate(wattserve_energy_joules_total{{model=~"$model",bucket="idle"}}[{i}]))',
                "idle floor",
                dashed=True,
            ),
        ),
        series(
            "Power by bucket",
            units.WATTS,
            "Where the power goes: computing prompts (prefill), generating tokens (decode), idle, and "
            "what no request "
            "can be charged with. The four add up to the counter.",
            Query(f"sum by (bucket) (rate({_ENERGY}[{i}]))", "{{bucket}}"),
            stacked=True,
        ),
        series(
            "Energy per request",
            units.JOULES_PER_REQUEST,
            "Mean with everything included, over one minute and one hour; and the requests' own "
            "attributed joules "
            "(without idle).",
            Query('model:joules_per_request:rate1m{model=~"$model"}', "all joules, 1 min, {{model}}"),
            Query(
                'model:joules_per_request:rate1h{model=~"$model"}', "all joules, 1 h, {{model}}", dashed=True
            ),
            Query(
                _ratio(_sum('wattserve_request_energy_joules_sum{model=~"$model"}', i), _sum(_REQUESTS, i)),
                "attributed, mean",
            ),
        ),
        series(
            "Attributed energy of a request",
            units.JOULES,
            "Percentiles of the joules attributed to single requests, from the server's histogram.",
            *_percentiles('wattserve_request_energy_joules_bucket{model=~"$model"}', 0.5, 0.9, 0.99),
        ),
        series(
            "Energy per token",
            units.JOULES_PER_TOKEN,
            "All joules over generated tokens, and over prompt and generated tokens, one-minute means.",
            Query('model:joules_per_output_token:rate1m{model=~"$model"}', "per output token, {{model}}"),
            Query('model:joules_per_token:rate1m{model=~"$model"}', "per token, {{model}}"),
        ),
        series(
            "Good requests per joule",
            units.REQUESTS_PER_JOULE,
            "Requests within the load test's latency limits over all joules: the figure to raise.",
            Query('model:good_requests_per_joule:rate1m{model=~"$model"}', "1 min, {{model}}"),
            Query('model:good_requests_per_joule:rate1h{model=~"$model"}', "1 h, {{model}}", dashed=True),
        ),
        bars(
            "Energy used",
            units.JOULES,
            "Joules of the window shown, by bucket.",
            Query(f"sum by (bucket) (increase({_ENERGY}[$__range]))", "{{bucket}}"),
            span=12,
        ),
        series(
            "Tokens per joule",
            units.TOKENS_PER_JOULE,
            "Prompt and generated tokens over all joules, one-minute mean.",
            Query('model:tokens_per_joule:rate1m{model=~"$model"}', "{{model}}"),
        ),
    ]


def _traffic() -> list[object]:
    i = "$__rate_interval"
    return [
        series(
            "Requests served",
            units.REQUESTS_PER_SECOND,
            "Requests whose energy was settled, a second.",
            Query(_sum(_REQUESTS, i), "served"),
            span=8,
        ),
        series(
            "Tokens",
            units.TOKENS_PER_SECOND,
            "Prompt and generated tokens a second.",
            Query(_sum(_PROMPT, i), "prompt"),
            Query(_sum(_OUTPUT, i), "generated"),
            span=8,
        ),
        series(
            "Running and waiting",
            units.COUNT,
            "Requests in the engine's batch, and in its queue.",
            Query('sum(vllm:num_requests_running{model_name=~"$model"})', "running"),
            Query('sum(vllm:num_requests_waiting{model_name=~"$model"})', "waiting"),
            span=8,
        ),
        series(
            "KV cache in use",
            units.RATIO,
            "Fraction of the KV cache's blocks in use. At 100 % the engine preempts requests and "
            "computes them again.",
            Query('max by (model_name) (vllm:kv_cache_usage_perc{model_name=~"$model"})', "{{model_name}}"),
            span=8,
            maximum=1,
        ),
        series(
            "Time to first token",
            units.SECONDS,
            "From the request's arrival at the server to its first token, as the engine measured it.",
            *_percentiles('vllm:time_to_first_token_seconds_bucket{model_name=~"$model"}', 0.5, 0.9, 0.99),
            span=8,
        ),
        series(
            "Time per output token",
            units.SECONDS,
            "Mean time between the tokens of one answer, as the engine measured it.",
            *_percentiles(
                'vllm:request_time_per_output_token_seconds_bucket{model_name=~"$model"}', 0.5, 0.9, 0.99
            ),
            span=8,
        ),
    ]


def _trust() -> list[object]:
    return [
        series(
            "Age of the last meter sample",
            units.SECONDS,
            "Seconds since each device was last read. Joules of a silent sensor are flagged, never guessed.",
            Query('wattserve_meter_sample_age_seconds{device=~"$device"}', "{{device}}"),
        ),
        series(
            "Meter faults",
            units.FAULTS_PER_SECOND,
            "Named faults of the meters a second: any is a reason to look at the GPU and meter dashboard. "
            "`none`: a device answers without one.",
            faults(),
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.ENERGY,
        "What serving takes in energy, per request and per token, what it is spent on, and how fast "
        "the answers come.",
        [variables.datasource(), variables.model(), variables.device(), variables.run()],
        [
            ("In the window shown", _now()),
            ("Energy", _energy()),
            ("Traffic and latency", _traffic()),
            ("Can the meter be trusted?", _trust()),
        ],
    )
