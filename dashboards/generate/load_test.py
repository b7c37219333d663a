"""The dashboard of a load test: asked, sent and done, the client's lag, latency, and two runs compared."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, grid, number, series, states

_I = "$__rate_interval"
_RUN = 'run=~"$run"'


def _rate(metric: str, labels: str = _RUN) -> str:
    return f"sum by (run) (rate({metric}{{{labels}}}[{_I}]))"


def _percentiles(metric: str, *levels: float) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({level}, sum by (run, le) (rate({metric}_bucket{{{_RUN}}}[{_I}])))",
            f"{{{{run}}}} p{round(level * 100)}",
        )
        for level in levels
    )


def _counts() -> list[object]:
    return [
        number(
            "Asked",
            units.COUNT,
            "Requests that the schedule made due so far.",
            Query(f"sum(wattload_planned_requests_total{{{_RUN}}})"),
        ),
        number(
            "Sent",
            units.COUNT,
            "Requests sent so far. Below Asked: the client lost requests or is late.",
            Query(f"sum(wattload_sent_requests_total{{{_RUN}}})"),
        ),
        number(
            "Done",
            units.COUNT,
            "Requests completed so far.",
            Query(f'sum(wattload_requests_total{{{_RUN},outcome="completed"}})'),
        ),
        number(
            "Not completed",
            units.COUNT,
            "Requests that failed, were aborted or were never sent. Never dropped silently.",
            Query(
                f'sum(wattload_requests_total{{{_RUN},outcome!="completed"}}) '
                f"or 0 * sum(wattload_requests_total{{{_RUN}}})"
            ),
            limits=((1, "red"),),
        ),
        number(
            "In flight",
            units.COUNT,
            "Requests under way now.",
            Query(f"sum(wattload_inflight_requests{{{_RUN}}})"),
        ),
        number(
            "Attributed energy per request",
            units.JOULES_PER_REQUEST,
            "Joules that the server attributed to the requests (idle not included), mean over the "
            "tests shown. "
            "`usage.energy` is provisional: run.json has the settled figure.",
            Query(
                f"sum(wattload_request_energy_joules_sum{{{_RUN}}}) "
                f"/ (sum(wattload_request_energy_joules_count{{{_RUN}}}) > 0)"
            ),
        ),
    ]


def _course() -> list[object]:
    return [
        states(
            "Phases",
            units.YES_NO,
            "Warm-up, measurement and cool-down of each run. Only what is due in `measure` counts in "
            "run.json.",
            Query(f"max by (run, phase) (wattload_phase{{{_RUN}}})", "{{run}} {{phase}}"),
        ),
        series(
            "Asked, sent, done",
            units.REQUESTS_PER_SECOND,
            "Open loop: what is asked never waits for the server. Sent follows asked, or the client is "
            "saturated; done "
            "follows sent, or the server is.",
            Query(_rate("wattload_planned_requests_total"), "{{run}} asked", dashed=True),
            Query(_rate("wattload_sent_requests_total"), "{{run}} sent"),
            Query(_rate("wattload_requests_total", f'{_RUN},outcome="completed"'), "{{run}} done"),
        ),
        series(
            "Outcomes",
            units.REQUESTS_PER_SECOND,
            "Every request that ended, by how it ended.",
            Query(
                f"sum by (run, outcome) (rate(wattload_requests_total{{{_RUN}}}[{_I}])) > 0",
                "{{run}} {{outcome}}",
            ),
            stacked=True,
        ),
        series(
            "Send lag",
            units.SECONDS,
            "How long after its due time a request was sent: the client's own lateness. Over 20 ms at "
            "p99 the run is "
            "invalid, whatever the server did.",
            *_percentiles("wattload_send_lag_seconds", 0.5, 0.99),
        ),
        series(
            "In flight",
            units.COUNT,
            "Requests under way. Growth without end: the rate is above what the server holds.",
            Query(f"sum by (run) (wattload_inflight_requests{{{_RUN}}})", "{{run}}"),
        ),
        series(
            "Time to first token",
            units.SECONDS,
            "From the due time to the first token, so a late client or a queue cannot hide.",
            *_percentiles("wattload_time_to_first_token_seconds", 0.5, 0.9, 0.99),
            span=8,
        ),
        series(
            "Time per output token",
            units.SECONDS,
            "Mean time between a request's tokens, after the first.",
            *_percentiles("wattload_time_per_output_token_seconds", 0.5, 0.9, 0.99),
            span=8,
        ),
        series(
            "Request duration",
            units.SECONDS,
            "From the due time to the last token.",
            *_percentiles("wattload_request_duration_seconds", 0.5, 0.9, 0.99),
            span=8,
        ),
        series(
            "Energy of a request",
            units.JOULES,
            "Percentiles of the joules that the server's answers carried (attributed, without idle).",
            *_percentiles("wattload_request_energy_joules", 0.5, 0.9, 0.99),
        ),
        series(
            "Tokens",
            units.TOKENS_PER_SECOND,
            "Prompt tokens sent and output tokens received a second.",
            Query(_rate("wattload_prompt_tokens_total"), "{{run}} prompt"),
            Query(_rate("wattload_output_tokens_total"), "{{run}} output"),
        ),
    ]


def _final(metric: str) -> str:
    """The last value of each run's counter in the window shown; a run that ended earlier keeps its own."""
    return f'sum by (run) (max_over_time({metric}{{run=~"$run|$compare"}}[$__range]))'


def _final_percentile(metric: str, level: float) -> str:
    return (
        f"histogram_quantile({level}, sum by (run, le) "
        f'(max_over_time({metric}_bucket{{run=~"$run|$compare"}}[$__range])))'
    )


def _comparison() -> list[object]:
    joules = "wattload_request_energy_joules"
    ttft, tpot = "wattload_time_to_first_token_seconds", "wattload_time_per_output_token_seconds"
    return [
        grid(
            "Runs compared",
            units.COUNT,
            "The chosen runs and the one to compare with, each over its whole length, warm-up "
            "included. Intervals and "
            "the pairing of equal schedules: `wattload compare`.",
            "run",
            Query(_final("wattload_planned_requests_total"), column="asked", unit=units.COUNT),
            Query(_final("wattload_good_requests_total"), column="within limits", unit=units.COUNT),
            Query(
                f"{_final(joules + '_sum')} / {_final(joules + '_count')}",
                column="attributed energy",
                unit=units.JOULES_PER_REQUEST,
            ),
            Query(
                f"{_final(joules + '_sum')} / {_final('wattload_output_tokens_total')}",
                column="attributed, per output token",
                unit=units.JOULES_PER_TOKEN,
            ),
            Query(_final_percentile(ttft, 0.5), column="TTFT p50", unit=units.SECONDS),
            Query(_final_percentile(ttft, 0.99), column="TTFT p99", unit=units.SECONDS),
            Query(_final_percentile(tpot, 0.5), column="TPOT p50", unit=units.SECONDS),
            Query(_final_percentile(tpot, 0.99), column="TPOT p99", unit=units.SECONDS),
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.LOAD_TEST,
        "A load test as it runs: asked, sent and done, the client's own lag, latency, errors, phases, "
        "and two runs side "
        "by side.",
        [variables.datasource(), variables.run(), variables.compared_run()],
        [
            ("So far", _counts()),
            ("The test", _course()),
            ("Two runs compared", _comparison()),
        ],
    )
