"""The Prometheus metrics of the load: names of the contract, each labelled with run and model."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable, Mapping
from typing import Any

from gevent.event import Event
from gevent.pywsgi import WSGIServer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, push_to_gateway

from wattload.client.record import Outcome, RequestRecord
from wattload.errors import InputError
from wattload.load.units import EndedUnit, OpenUnits
from wattload.redaction import shown
from wattload.rundir.result import SessionsInfo, SloLimits
from wattload.schedule.table import Schedule

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_JOULES = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
_UNIT_JOULES = (*_JOULES, 100_000, 300_000, 1_000_000, 3_000_000)
_UNIT_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400)
PHASES = ("warmup", "measure", "cooldown")


class LoadMetrics:
    """One run's metrics in a registry of their own.

    `refresh`: called before they are given out, to bring up to date what is only looked at now and then.
    """

    refresh: Callable[[], None] | None = None
    scraped: Event

    def __init__(
        self, run: str, model: str, slo: SloLimits | None = None, registry: CollectorRegistry | None = None
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self._slo = slo
        self.scraped = Event()
        names, values = ("run", "model"), (run, model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, names, buckets=buckets, registry=self.registry).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=self.registry).labels(*values)

        family = Counter(
            "wattload_requests",
            "Requests that ended, by outcome.",
            (*names, "outcome"),
            registry=self.registry,
        )
        self._outcomes = {outcome: family.labels(*values, outcome.value) for outcome in Outcome}
        self._planned = counter("wattload_planned_requests", "Requests whose scheduled time has come.")
        self._sent = counter("wattload_sent_requests", "Requests sent so far.")
        self._sent_seen = self._sent_ended = 0
        self._good = counter("wattload_good_requests", "Requests completed within the latency limits.")
        self._prompt = counter("wattload_prompt_tokens", "Prompt tokens of completed requests.")
        self._output = counter("wattload_output_tokens", "Output tokens of completed requests.")
        self._inflight = Gauge(
            "wattload_inflight_requests", "Requests sent and not ended.", names, registry=self.registry
        ).labels(*values)
        phase = Gauge(
            "wattload_phase", "1 for the present phase of the run.", (*names, "phase"), registry=self.registry
        )
        self._phases = {name: phase.labels(*values, name) for name in PHASES}
        self._lag = histogram(
            "wattload_send_lag_seconds",
            "Dispatch delay: time from a request's scheduled time to its sending.",
            _LAG,
        )
        self._ttft = histogram(
            "wattload_time_to_first_token_seconds",
            "Time from a request's scheduled time to its first token.",
            _LATENCY,
        )
        self._tpot = histogram(
            "wattload_time_per_output_token_seconds", "Time per output token after the first.", _TOKEN
        )
        self._duration = histogram(
            "wattload_request_duration_seconds",
            "Time from a request's scheduled time to its last token.",
            _LATENCY,
        )
        self._joules = histogram(
            "wattload_request_energy_joules",
            "Attributed energy of a request, as the endpoint reports it.",
            _JOULES,
        )
        self._units: dict[str, _UnitMetrics] = {}
        self._unit_families = {
            # Between a session's tasks its user reads and writes, which is no waiting of the session.
            "session": _UnitFamilies(
                "Sessions",
                names,
                self.registry,
                ended="wattload_sessions",
                joules="wattload_session_energy_joules",
                duration="wattload_session_duration_seconds",
            ),
            "task": _UnitFamilies(
                "Tasks of agents",
                names,
                self.registry,
                ended="wattload_tasks",
                joules="wattload_task_energy_joules",
                duration="wattload_task_duration_seconds",
                waiting="wattload_task_waiting_seconds",
            ),
        }
        self._final = Gauge(
            "wattload_final_energy_joules",
            "Mean energy of the complete sessions or tasks of the measurement window by component, as in"
            " run.json: there once the run is over, for what is known.",
            (*names, "unit", "component"),
            registry=self.registry,
        )
        self._values = values

    def due(self, count: int) -> None:
        self._planned.inc(count)

    def in_flight(self, count: int) -> None:
        """Of the requests sent, how many have not ended; the others were counted as they ended."""
        self._inflight.set(count)
        sent = self._sent_ended + count
        if sent > self._sent_seen:
            self._sent.inc(sent - self._sent_seen)
            self._sent_seen = sent

    def plan(self, schedule: Schedule) -> None:
        """Counts the sessions of `schedule` as they end, and the tasks where any has several turns."""
        turns = int((schedule.session >= 0).sum())
        for unit, numbers, least in (("session", schedule.session, 0), ("task", schedule.task, 1)):
            units = OpenUnits(numbers)
            if turns and len(units) <= turns - least:
                self._units[unit] = _UnitMetrics(self._unit_families[unit], units, self._values)

    def final(self, sessions: SessionsInfo | None) -> None:
        """Shows the figures of a run that is over; what is not known stays absent."""
        for unit in ("session", "task"):
            info = getattr(sessions, f"per_{unit}", None)
            for component in ("attributed", "idle", "waiting_idle"):
                joules = getattr(info, f"{component}_joules", None)
                if joules is not None:
                    self._final.labels(*self._values, unit, component).set(joules)

    def phase(self, present: str | None) -> None:
        for name, gauge in self._phases.items():
            gauge.set(1 if name == present else 0)

    def observe(self, record: RequestRecord) -> None:
        """Counts one request that ended."""
        self._outcomes[record.outcome].inc()
        for unit, metrics in self._units.items():
            metrics.add(getattr(record, unit), record)
        if record.sent_unix is not None:
            self._lag.observe(record.sent_unix - record.due_unix)
            self._sent_ended += 1
        last = record.last_token_unix or record.first_token_unix
        if record.outcome is not Outcome.COMPLETED or last is None:
            return
        ttft = None
        if record.first_token_unix is not None:
            ttft = record.first_token_unix - record.due_unix
            self._ttft.observe(ttft)
        self._duration.observe(last - record.due_unix)
        tpot = record.tpot_seconds
        if tpot is not None:
            self._tpot.observe(tpot)
        self._prompt.inc(record.prompt_tokens or 0)
        self._output.inc(record.output_tokens or 0)
        if record.energy_joules is not None:
            self._joules.observe(record.energy_joules)
        if self._within(ttft, tpot, last - record.due_unix, one_token=record.output_tokens == 1):
            self._good.inc()

    def _within(self, ttft: float | None, tpot: float | None, e2e: float, *, one_token: bool) -> bool:
        limits = self._slo
        if limits is None:
            return True
        in_time = tpot is not None and limits.tpot_seconds is not None and tpot <= limits.tpot_seconds
        return (
            (limits.ttft_seconds is None or (ttft is not None and ttft <= limits.ttft_seconds))
            and (limits.tpot_seconds is None or one_token or in_time)
            and (limits.e2e_seconds is None or e2e <= limits.e2e_seconds)
        )


class _UnitFamilies:
    """The metrics of sessions, or of tasks, before they have labels.

    `ended`, `joules`, `duration` and `waiting` are the metrics' names; `waiting` None: there is none.
    """

    def __init__(
        self,
        plural: str,
        names: tuple[str, ...],
        registry: CollectorRegistry,
        *,
        ended: str,
        joules: str,
        duration: str,
        waiting: str | None = None,
    ) -> None:
        self.ended = Counter(
            ended,
            f"{plural} all of whose turns have ended, by whether each of them completed.",
            (*names, "outcome"),
            registry=registry,
        )
        self.joules = Histogram(
            joules,
            f"{plural} that completed: attributed energy of all turns, as the responses reported it.",
            names,
            buckets=_UNIT_JOULES,
            registry=registry,
        )
        self.duration = Histogram(
            duration,
            f"{plural} that completed: time from the scheduled time of the first turn to the last token.",
            names,
            buckets=_UNIT_SECONDS,
            registry=registry,
        )
        self.waiting: Counter | None = None
        if waiting is not None:
            text = f"{plural} that completed: time without a turn in flight, as while tools ran."
            self.waiting = Counter(waiting, text, names, registry=registry)


class _UnitMetrics:
    """The metrics of a run's sessions, or of its tasks."""

    def __init__(self, families: _UnitFamilies, units: OpenUnits, values: tuple[str, ...]) -> None:
        self._open = units
        self._completed = families.ended.labels(*values, "completed")
        self._incomplete = families.ended.labels(*values, "incomplete")
        self._joules = families.joules.labels(*values)
        self._duration = families.duration.labels(*values)
        self._waiting = None if families.waiting is None else families.waiting.labels(*values)

    def add(self, number: int, record: RequestRecord) -> None:
        """Takes a turn that ended."""
        ended: EndedUnit | None = self._open.add(number, record)
        if ended is None:
            return
        if not ended.completed:
            self._incomplete.inc()
            return
        self._completed.inc()
        self._duration.observe(ended.seconds)
        if self._waiting is not None:
            self._waiting.inc(ended.waiting_seconds)
        if ended.joules is not None:
            self._joules.observe(ended.joules)


def serve(metrics: LoadMetrics, host: str, port: int) -> WSGIServer:
    """Serves /metrics from a greenlet; `stop()` ends it. Raises InputError where the port cannot be had.

    prometheus_client's own server runs in a thread, whose blocking poll stops gevent's loop and the load.
    """
    answer = make_wsgi_app(metrics.registry)

    def app(environ: Any, start_response: Any) -> Any:
        if metrics.refresh is not None:
            metrics.refresh()
        metrics.scraped.set()
        return answer(environ, start_response)

    server = WSGIServer((host, port), app, log=None, error_log=None)
    try:
        server.start()
    except OSError as error:
        raise InputError("metrics_port", f"{port}: cannot listen on {host} ({error.strerror})") from error
    return server


def await_last_scrape(metrics: LoadMetrics, seconds: float = 6.0) -> None:
    """Lets a Prometheus that has been scraping see the final counts; waits for none that has not."""
    if metrics.scraped.is_set():
        metrics.scraped.clear()
        metrics.scraped.wait(seconds)


def push(
    metrics: LoadMetrics, gateway: str, run: str, grouping: Mapping[str, str] | None = None
) -> str | None:
    """Pushes to a Pushgateway; what went wrong, as a sentence, else None."""
    try:
        push_to_gateway(gateway, "wattload", metrics.registry, {"run": run, **(grouping or {})}, timeout=10)
    except (OSError, urllib.error.URLError, ValueError) as error:
        return shown(f"--push-gateway {gateway}: the metrics could not be pushed ({error})")
    return None
