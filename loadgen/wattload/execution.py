"""One run from its settings to its run directory: check, plan, send, settle, compute, report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import ssl
import sys
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattload import planning
from wattload.assertions import check_assertions, parse_assertion
from wattload.config import RunConfig
from wattload.energy_client import EnergySource
from wattload.energy_probe import Probe, probe
from wattload.energy_series import SeriesPoller
from wattload.energy_sources import open_source
from wattload.errors import BadInput
from wattload.metrics import LoadMetrics, await_last_scrape, push, serve
from wattload.progress import Progress, make_progress
from wattload.rundir import CAPTURE_SCHEMA, Capture, RunDir
from wattload.runjson import ArrivalsInfo, RunJson, SloLimits, TargetInfo, WorkloadInfo
from wattload.schedule import Schedule
from wattload.schedule_mapped import mapped
from wattload.slo import parse_slo
from wattload.stop_rule import parse_until
from wattload.traces import ReadOptions, Trace, parse_column_map
from wattload.transport.tls import tls_context

if TYPE_CHECKING:
    from wattload.client import ClientOptions
    from wattload.runner import LoadPlan, LoadResult


@dataclass(frozen=True, slots=True)
class Execution:
    """A run that was made. `failures`: why the command must fail, empty where it must not."""

    run: RunDir
    result: RunJson
    failures: list[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before the first request: nothing after this fails for what the user asked."""

    config: RunConfig
    workload: WorkloadInfo
    schedule: Schedule
    probe: Probe
    limits: SloLimits | None
    headers: dict[str, str]
    directory: RunDir
    name: str

    @property
    def model(self) -> str:
        return self.probe.target.model or ""


def prepare(config: RunConfig) -> Prepared:
    """Checks the settings and the endpoint. Raises BadInput."""
    limits = parse_slo(config.slo) if config.slo is not None else None
    if config.until is not None:
        parse_until(config.until)
    if config.master and config.processes > 1:
        raise BadInput(
            "--processes: are of this host; with --master, workers are started with wattload worker"
        )
    if config.expect_workers is not None and not config.master:
        raise BadInput("--expect-workers: needs --master")
    headers = config.headers()
    streams = load_streams(config)
    tls = control_tls(config)
    said = probe(config.url, energy_url=config.energy, model=config.model, headers=headers, tls=tls)
    schedule = plan_schedule(config, streams, said.target)
    horizon = schedule.horizon_seconds
    if config.warmup is not None and horizon and config.warmup >= horizon:
        raise BadInput(f"--warmup {config.warmup:g}: must be shorter than the arrivals ({horizon:.4g} s)")
    if config.warmup and config.arrivals == "offline":
        raise BadInput(f"--warmup {config.warmup:g}: --arrivals offline sends everything at once")
    directory = RunDir.create(config.out or default_directory(streams.first))
    name = config.name or directory.path.resolve().name
    schedule.save(directory.schedule_path)
    workload = _workload(config, streams, schedule, directory)
    # The traces end here: what is sent is in the schedule.
    kept = mapped(schedule, directory.path)
    return Prepared(config, workload, kept, said, limits, headers, directory, name)


def execute(config: RunConfig, *, quiet: bool = False) -> Execution:
    """Makes the whole run. Raises BadInput for what can be known before the first request is sent."""
    checks = [parse_assertion(text) for text in config.assertions]
    prepared = prepare(config)
    progress = make_progress(config.progress)
    for note in prepared.schedule.notes:
        progress.say(f"note: {note}")
    result = _measured_run(prepared, progress)
    failures = check_assertions(checks, result.model_dump(mode="json", by_alias=True))
    if not quiet:
        from wattload.report.table import print_summary

        print_summary(result)
        if config.report:
            print(f"report: {prepared.directory.report_path}")
    if not result.valid:
        failures = [*result.reasons, *failures]
    return Execution(prepared.directory, result, failures)


def _measured_run(prepared: Prepared, progress: Progress) -> RunJson:
    # Locust patches the standard library when it is imported, so only what sends load imports it.
    from wattload.runner import run_load

    session = Session(prepared, progress)
    load = None
    try:
        load = run_load(session.plan())
    finally:
        session.load_over(load)
    if load.interrupted:
        progress.say("interrupted: writing what there is")
    return session.finish(load)


class Session:
    """What goes on around the load of one run: metrics, the meter's series, and the figures afterwards."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        self._prepared, self._progress = prepared, progress
        config, said = prepared.config, prepared.probe
        self.metrics = LoadMetrics(prepared.name, prepared.model, prepared.limits)
        self._server: Any = None
        if config.metrics_port is not None:
            self._server = serve(self.metrics, config.metrics_host, config.metrics_port)
        self._capture = _capture(prepared)
        self.energy: EnergySource | None = None
        self._poller: SeriesPoller | None = None
        if said.energy_url is not None:
            same = said.energy_url == said.target.url
            headers = prepared.headers if same else {}
            self.energy = open_source(said.energy_url, headers, control_tls(config))
            if said.clock is not None:
                self._poller = SeriesPoller(self.energy, prepared.directory, clock=said.clock)

    def plan(self) -> LoadPlan:
        """What the load needs to know."""
        from wattload.runner import LoadPlan

        prepared = self._prepared
        return LoadPlan(
            config=prepared.config,
            schedule=prepared.schedule,
            options=client_options(prepared.config, prepared.model, prepared.headers),
            run=prepared.directory,
            run_id=uuid.uuid4().hex[:12],
            progress=self._progress,
            metrics=self.metrics,
            watts=self.watts,
            energy_source=prepared.probe.target.energy_source,
            on_start=self._started,
        )

    def watts(self) -> float | None:
        """The devices' power as last seen."""
        return self._poller.latest_watts if self._poller is not None else None

    def _started(self, unix: float) -> None:
        self._capture.started_unix = unix
        self._prepared.directory.save_capture(self._capture)
        if self._poller is not None:
            self._poller.start()

    def load_over(self, load: LoadResult | None = None) -> None:
        """No more requests: the meter's series is fetched to its end, or to the end of the window of a load
        that was not cut short.
        """
        self._progress.close()
        until = None
        if load is not None and load.interrupted is None:
            self._end_early(load)
            until = load.started_unix + self._capture.duration_seconds
        if self._poller is not None:
            self._poller.stop(until)
            if self._poller.errors:
                self._capture.host["energy_poll_errors"] = self._poller.errors[:5]

    def _end_early(self, load: LoadResult) -> None:
        """The planned time is cut where nothing more was to be sent: by a stop rule, or in a closed loop
        whose requests ran out before. What is idle after that is none of the requests' doing.
        """
        capture = self._capture
        ended = load.ended_early_seconds
        if ended is None and self._prepared.schedule.closed_concurrency:
            ended = load.finished_unix - load.started_unix
            if ended < 0.99 * capture.duration_seconds:
                self._progress.say(
                    f"note: the closed loop ran out of requests after {ended:.1f} s of"
                    f" {capture.duration_seconds:g} s; --repeat plays the trace again"
                )
        if ended is not None:
            capture.duration_seconds = min(capture.duration_seconds, ended)

    def finish(self, load: LoadResult) -> RunJson:
        """Settles the energy, computes run.json, writes the report."""
        # Imported when the load is over: SciPy and Matplotlib would double the memory of what sends it.
        from wattload.measure import collect, finish

        prepared, capture, directory = self._prepared, self._capture, self._prepared.directory
        capture.finished_unix, capture.interrupted = load.finished_unix, load.interrupted
        capture.reasons += load.reasons
        capture.planned_requests = load.planned
        capture.host |= {"workers": load.workers, "outcome_examples": load.tally.examples}
        directory.save_capture(capture)
        if self.energy is not None:
            settle_seconds = 5.0 if load.interrupted else 15.0
            for problem in collect(directory, self.energy, settle_seconds=settle_seconds):
                self._progress.say(f"note: {problem}")
            self.energy.close()
        result = finish(directory)
        if prepared.config.report:
            from wattload.report import build

            build(directory)
        if prepared.config.push_gateway:
            trouble = push(self.metrics, prepared.config.push_gateway, prepared.name)
            if trouble:
                self._progress.say(f"note: {trouble}")
        if self._server is not None:
            await_last_scrape(self.metrics)
            self._server.stop()
        return result


def client_options(config: RunConfig, model: str, headers: dict[str, str]) -> ClientOptions:
    """How the requests of a run are made."""
    from wattload.client import ClientOptions, Timeouts

    return ClientOptions(
        url=config.url,
        model=model,
        api=config.api,
        headers=headers,
        body=dict(json.loads(config.body)) if config.body else {},
        exact_output=config.exact_output,
        timeouts=Timeouts(
            config.connect_timeout,
            config.first_token_timeout,
            config.between_tokens_timeout,
            config.total_timeout,
        ),
        verify_tls=not config.insecure,
        ca_file=config.ca_file,
        cert_file=config.cert_file,
        key_file=config.key_file,
    )


def control_tls(config: RunConfig) -> ssl.SSLContext | None:
    """The TLS settings as the control plane needs them; None: the usual ones. Raises BadInput."""
    if not (config.insecure or config.ca_file or config.cert_file):
        return None
    return tls_context(
        verify=not config.insecure,
        ca_file=config.ca_file,
        cert_file=config.cert_file,
        key_file=config.key_file,
    )


def load_streams(config: RunConfig) -> planning.Streams:
    """What the settings ask to be replayed, read from its files. Raises BadInput."""
    mapping = parse_column_map(config.column_map) if config.column_map else {}
    options = ReadOptions(mapping, config.sort, config.duplicate_times, config.empty_requests)
    return planning.load_streams(config.trace, tag=config.tag, tenants=config.tenant, options=options)


def plan_schedule(config: RunConfig, streams: planning.Streams, target: TargetInfo) -> Schedule:
    """The schedule that the settings ask for, its prompts of text where the endpoint's API needs that.

    Raises BadInput naming the flag, or the trace's file and line.
    """
    schedule = planning.plan(
        streams,
        arrivals=config.arrivals,
        rate=config.rate,
        duration=config.duration,
        requests=config.requests,
        seed=config.seed,
        max_model_len=target.max_model_len,
        max_length=config.max_length,
        repeat=config.repeat,
        prefix_share=config.prefix_share,
        sessions=config.sessions,
    )
    if not planning.needs_text(schedule, config.api):
        return schedule
    return planning.with_text(
        schedule,
        api=config.api,
        tokenizer=config.tokenizer,
        url=config.url,
        model=target.model or "",
        headers=config.headers(),
        max_model_len=target.max_model_len,
        tls=control_tls(config),
    )


def _workload(
    config: RunConfig, streams: planning.Streams, schedule: Schedule, directory: RunDir
) -> WorkloadInfo:
    """What is replayed, and the checksum of the schedule as it was saved."""
    traces = streams.traces
    return WorkloadInfo(
        trace=" + ".join(trace.name for trace in traces),
        sha256=(traces[0].sha256 or None) if len(traces) == 1 else None,
        rows=sum(len(trace) for trace in traces),
        arrivals=ArrivalsInfo(process=config.arrivals, rate_rps=schedule.rate_rps),
        seed=config.seed,
        schedule_sha256=_sha256(directory.schedule_path),
        citation="; ".join(dict.fromkeys(t.citation for t in traces if t.citation)) or None,
    )


def _capture(prepared: Prepared) -> Capture:
    config, schedule, said = prepared.config, prepared.schedule, prepared.probe
    return Capture(
        schema=CAPTURE_SCHEMA,
        name=prepared.name,
        started_unix=time.time(),
        duration_seconds=schedule.horizon_seconds,
        warmup_seconds=config.warmup,
        target=said.target,
        workload=prepared.workload,
        slo=prepared.limits,
        versions=versions(said),
        host=host(),
        config=config.saved(),
        clock=said.clock,
        energy_url=said.energy_url,
        no_energy_reason=said.no_energy_reason,
        energy_probe=said.energy,
        planned_requests=len(schedule),
    )


def default_directory(trace: Trace) -> Path:
    """runs/<date>-<time>-<trace>, with a number where that exists."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(trace.name).stem)[:40]
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    path, count = base, 2
    while path.exists():
        path, count = base.with_name(f"{base.name}-{count}"), count + 1
    return path


def versions(said: Probe | None = None) -> dict[str, str | None]:
    """Of what shaped the numbers."""

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    engine = (said.energy or {}).get("engine_version") if said is not None else None
    return {
        "wattload": of("wattload"),
        "python": platform.python_version(),
        "locust": of("locust"),
        "gevent": of("gevent"),
        "engine": engine or (said.target.engine if said is not None else None),
    }


def host() -> dict[str, Any]:
    """The machine that sends the load."""
    return {
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if not _has_secret(sys.argv) else None,
    }


def _has_secret(arguments: list[str]) -> bool:
    return any("header" in argument for argument in arguments)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
