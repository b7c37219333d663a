"""The dashboard of a load test: scheduled, sent and completed, dispatch delay, latency, and two runs "
"compared."""

from __future__ import annotations

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, grid, number, series, states
from dashboards.generate.queries import percentiles
from grafana_foundation_sdk.builders.dashboard import Dashboard

from wattload.colours import QUANTILES

_I = "$__rate_interval"
_RUN = 'run=~"$run",model=~"$model"'
_LEGEND = "{{run}} "


def _rate(metric: str, labels: str = _RUN) -> str:
    return f"sum by (run) (rate({metric}{{{labels}}}[{_I}]))"


def _counts() -> list[object]:
    return [
        number(
            "Scheduled requests",
            units.COUNT,
            "Requests whose scheduled time has come.",
            Query(f"sum(wattload_planned_requests_total{{{_RUN}}})"),
        ),
        number(
            "Sent requests",
            units.COUNT,
            "Below Scheduled: the load generator is late or lost requests. Give it more processes.",
            Query(f"sum(wattload_sent_requests_total{{{_RUN}}})"),
        ),
        number(
            "Completed requests",
            units.COUNT,
            "Requests with a whole response.",
            Query(f'sum(wattload_requests_total{{{_RUN},outcome="completed"}})'),
        ),
        number(
            "Not completed",
            units.COUNT,
            "Requests that failed, were aborted or were never sent. The report has the server's words for "
            "each kind.",
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
            "Mean of what the responses carried, idle excluded; provisional. run.json has the final "
            "figure. Simulated "
            "where the endpoint is a simulator.",
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
            "Warm-up, measurement and cool-down of each run. Only requests scheduled in `measure` count in "
            "run.json.",
            Query(f"max by (run, phase) (wattload_phase{{{_RUN}}})", "{{run}} {{phase}}"),
        ),
        series(
            "Scheduled, sent and completed rate",
            units.REQUESTS_PER_SECOND,
            "Open loop: the schedule never waits for the server. Sent below scheduled: the load generator "
            "is saturated. "
            "Completed below sent: the server is.",
            Query(_rate("wattload_planned_requests_total"), "{{run}} scheduled", dashed=True),
            Query(_rate("wattload_sent_requests_total"), "{{run}} sent"),
            Query(_rate("wattload_requests_total", f'{_RUN},outcome="completed"'), "{{run}} completed"),
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
            "Dispatch delay",
            units.SECONDS,
            "How long after its scheduled time a request was sent. Above 20 ms at p99 the run is not "
            "valid, whatever "
            "the server did: use more processes.",
            *percentiles("wattload_send_lag_seconds", _RUN, by="run", prefix=_LEGEND),
            colours=QUANTILES,
        ),
        series(
            "In flight over time",
            units.COUNT,
            "Requests under way. Growth without end: the rate is beyond the server's capacity.",
            Query(f"sum by (run) (wattload_inflight_requests{{{_RUN}}})", "{{run}}"),
        ),
        series(
            "Time to first token (TTFT)",
            units.SECONDS,
            "From the scheduled time to the first token, so that neither a late client nor a queue can hide.",
            *percentiles("wattload_time_to_first_token_seconds", _RUN, by="run", prefix=_LEGEND),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "Time per output token (TPOT)",
            units.SECONDS,
            "Mean time between a request's tokens, after the first.",
            *percentiles("wattload_time_per_output_token_seconds", _RUN, by="run", prefix=_LEGEND),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "End-to-end latency",
            units.SECONDS,
            "From the scheduled time to the last token.",
            *percentiles("wattload_request_duration_seconds", _RUN, by="run", prefix=_LEGEND),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "Attributed energy per request, percentiles",
            units.JOULES,
            "What single requests took by their responses, idle excluded.",
            *percentiles("wattload_request_energy_joules", _RUN, by="run", prefix=_LEGEND),
            colours=QUANTILES,
        ),
        series(
            "Token rate",
            units.TOKENS_PER_SECOND,
            "Prompt tokens sent and output tokens received.",
            Query(_rate("wattload_prompt_tokens_total"), "{{run}} prompt"),
            Query(_rate("wattload_output_tokens_total"), "{{run}} output"),
        ),
    ]


def _unit_counts(unit: str) -> list[object]:
    """How many sessions or tasks ended, and what one took."""
    ended = f"wattload_{unit}s_total{{{_RUN}"
    joules = f"wattload_{unit}_energy_joules"
    per = {"session": units.JOULES_PER_SESSION, "task": units.JOULES_PER_TASK}[unit]
    return [
        number(
            f"Completed {unit}s",
            units.COUNT,
            f"{unit.capitalize()}s every turn of which has a whole response.",
            Query(f'sum({ended},outcome="completed"}})'),
        ),
        number(
            f"Incomplete {unit}s",
            units.COUNT,
            f"{unit.capitalize()}s that ended with a turn that failed or was never sent. No energy has them.",
            Query(f'sum({ended},outcome="incomplete"}})'),
            limits=((1, "orange"),),
        ),
        number(
            f"Attributed energy per {unit}",
            per,
            f"Mean over the completed {unit}s of what the responses of all turns carried, idle excluded;"
            " provisional.",
            Query(f"sum({joules}_sum{{{_RUN}}}) / (sum({joules}_count{{{_RUN}}}) > 0)"),
        ),
    ]


def _sessions() -> list[object]:
    waiting, busy = "wattload_task_waiting_seconds_total", "wattload_task_duration_seconds_sum"
    return [
        *_unit_counts("session"),
        *_unit_counts("task"),
        series(
            "Attributed energy per session, percentiles",
            units.JOULES,
            "What whole sessions took by the responses of their turns, idle excluded.",
            *percentiles("wattload_session_energy_joules", _RUN, by="run", prefix=_LEGEND),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "Attributed energy per task, percentiles",
            units.JOULES,
            "What tasks of agents took, each from one turn of its user up to the next, idle excluded.",
            *percentiles("wattload_task_energy_joules", _RUN, by="run", prefix=_LEGEND),
            span=8,
            colours=QUANTILES,
        ),
        series(
            "Share of task time without a request in flight",
            units.RATIO,
            "Of the time of completed tasks: while tools ran, the server had nothing to do for them.",
            Query(f"{_rate(waiting)} / ({_rate(busy)} > 0)", "{{run}}"),
            span=8,
            maximum=1,
        ),
        grid(
            "Energy per session and task in the measurement window",
            units.JOULES,
            "Means of run.json over the complete sessions and tasks: attributed to their turns, and their"
            " shares of idle energy in flight and while waiting for tools. Known when a run is over.",
            "run",
            *(
                Query(_final_energy(unit, component), column=f"{shown} per {unit}")
                for unit in ("session", "task")
                for component, shown in (
                    ("attributed", "attributed"),
                    ("idle", "idle in flight"),
                    ("waiting_idle", "idle while waiting"),
                )
            ),
            height=6,
        ),
    ]


def _final_energy(unit: str, component: str) -> str:
    """The figure of each run in the selected time range, whichever of them is over."""
    labels = f'{_RUN},unit="{unit}",component="{component}"'
    return f"max by (run) (max_over_time(wattload_final_energy_joules{{{labels}}}[$__range]))"


def _final(metric: str) -> str:
    """The last value of each run's counter in the selected time range; a run that ended earlier keeps its "
    "own."""
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
            "The chosen runs and the one to compare with, each over its whole length, warm-up included. "
            "`wattload compare` has intervals, and pairs equal schedules.",
            "run",
            Query(_final("wattload_planned_requests_total"), column="scheduled", unit=units.COUNT),
            Query(_final("wattload_good_requests_total"), column="SLO-compliant", unit=units.COUNT),
            Query(
                f"{_final(joules + '_sum')} / {_final(joules + '_count')}",
                column="attributed energy per request",
                unit=units.JOULES_PER_REQUEST,
            ),
            Query(
                f"{_final(joules + '_sum')} / {_final('wattload_output_tokens_total')}",
                column="attributed energy per output token",
                unit=units.JOULES_PER_TOKEN,
            ),
            Query(_final_percentile(ttft, 0.5), column="TTFT p50", unit=units.SECONDS),
            Query(_final_percentile(ttft, 0.95), column="TTFT p95", unit=units.SECONDS),
            Query(_final_percentile(ttft, 0.99), column="TTFT p99", unit=units.SECONDS),
            Query(_final_percentile(tpot, 0.5), column="TPOT p50", unit=units.SECONDS),
            Query(_final_percentile(tpot, 0.95), column="TPOT p95", unit=units.SECONDS),
            Query(_final_percentile(tpot, 0.99), column="TPOT p99", unit=units.SECONDS),
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.LOAD_TEST,
        "A load test as it runs: rates, dispatch delay, latency, failures, energy, phases, and two runs "
        "compared.",
        [variables.datasource(), variables.tested_model(), variables.run(), variables.compared_run()],
        [
            ("Summary", _counts()),
            ("Load and latency", _course()),
            ("Sessions and agent tasks", _sessions()),
            ("Two runs compared", _comparison()),
        ],
    )
