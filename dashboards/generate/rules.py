"""The recording rules: joules per request and per token, tokens and good requests per joule, over ranges.

A rule is named level:metric:operation. `rate5m` means: both sides of the ratio as rates over five minutes.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

RANGES: Final = ("1m", "5m", "1h", "1d")

_HEADER: Final = (
    "# Written by `python -m dashboards.generate` from dashboards/generate/rules.py; edit there.\n"
)


def _by_model(metric: str, over: str) -> str:
    return f"sum by (model) (rate({metric}[{over}]))"


def _engine_by_model(metric: str, over: str) -> str:
    """vLLM calls the label `model_name`; ours is `model`."""
    renamed = f'label_replace(rate({metric}[{over}]), "model", "$1", "model_name", "(.+)")'
    return f"sum by (model) ({renamed})"


def _rules(over: str) -> list[dict[str, Any]]:
    def name(metric: str) -> str:
        return f"model:{metric}:rate{over}"

    def ratio(above: str, below: str) -> str:
        # Absent, not infinite and not zero, while nothing is served.
        return f"{name(above)} / ({name(below)} > 0)"

    lag = f"sum by (run, le) (rate(wattload_send_lag_seconds_bucket[{over}]))"
    rules = {
        name("energy_watts"): _by_model("wattserve_energy_joules_total", over),
        name("requests_per_second"): _by_model("wattserve_request_energy_joules_count", over),
        name("output_tokens_per_second"): _engine_by_model("vllm:generation_tokens_total", over),
        name("prompt_tokens_per_second"): _engine_by_model("vllm:prompt_tokens_total", over),
        name("good_requests_per_second"): _by_model("wattload_good_requests_total", over),
        name("ended_requests_per_second"): _by_model("wattload_requests_total", over),
        name("tokens_per_second"): f"{name('prompt_tokens_per_second')} + {name('output_tokens_per_second')}",
        name("joules_per_request"): ratio("energy_watts", "requests_per_second"),
        name("joules_per_output_token"): ratio("energy_watts", "output_tokens_per_second"),
        name("joules_per_token"): ratio("energy_watts", "tokens_per_second"),
        name("tokens_per_joule"): ratio("tokens_per_second", "energy_watts"),
        name("good_requests_per_joule"): ratio("good_requests_per_second", "energy_watts"),
        name("slo_miss_ratio"): f"1 - {ratio('good_requests_per_second', 'ended_requests_per_second')}",
    }
    if over == "1m":
        rules["run:send_lag_p99_seconds:rate1m"] = f"histogram_quantile(0.99, {lag})"
    return [{"record": record, "expr": expr} for record, expr in rules.items()]


def build() -> str:
    """The rule file, as YAML text. Short ranges are evaluated at every scrape, long ones once a minute."""
    groups = [
        {
            "name": f"wattload_energy_{over}",
            "interval": "5s" if over in {"1m", "5m"} else "1m",
            "rules": _rules(over),
        }
        for over in RANGES
    ]
    return _HEADER + str(yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000))
