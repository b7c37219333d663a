"""One run from its options to its run directory: check, plan, send, settle, compute, report."""

from __future__ import annotations

import os
import resource
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattload.analysis.assertions import check_assertions
from wattload.client.endpoint import Endpoint
from wattload.client.output_limit import output_limit_of
from wattload.client.told_ids import why_no_ids
from wattload.clock import unix_now
from wattload.config import RunConfig, command_of
from wattload.energy.client import EnergySource
from wattload.energy.poller import SeriesPoller
from wattload.energy.probe import Probe, probe
from wattload.energy.settled import SettledProcess
from wattload.energy.sources import is_foreign
from wattload.errors import InputError, RunInvalid
from wattload.export.after_run import export_after
from wattload.export.destinations import check as check_export
from wattload.load.metrics import LoadMetrics, await_last_scrape, push, serve
from wattload.load.progress import Progress, make_progress
from wattload.redaction import shown
from wattload.rundir.directory import CAPTURE_SCHEMA, Capture, RunDir, default_directory
from wattload.rundir.host import host, versions
from wattload.rundir.result import ArrivalsInfo, RunJson, SystemPromptInfo, WorkloadInfo
from wattload.schedule.build import Streams, load_streams, plan, process_of, target_rate
from wattload.schedule.content import DEFAULT_VOCAB_SIZE, safe_ids
from wattload.schedule.frame import DEFAULT_INPUTS, Frame, parse_image, system_of
from wattload.schedule.images import check_images, noting_images, planned_images
from wattload.schedule.mapped import mapped
from wattload.schedule.models import with_models
from wattload.schedule.parquet import save as save_schedule
from wattload.schedule.table import Schedule
from wattload.schedule.text import needs_text, with_text
from wattload.server_metrics.scraper import ServerMetrics, targets_of
from wattload.traces.reading.files import sha256_of
from wattmeter.sensor_gain import gain_of, load_gains
from wattmeter.whole_file import NO_ROOM

if TYPE_CHECKING:
    from wattload.load.plan import LoadPlan, LoadResult

_SETTLE_SECONDS = 15.0
# Somebody who pressed Ctrl-C waits.
_SETTLE_SECONDS_INTERRUPTED = 5.0


@dataclass(frozen=True, slots=True)
class Execution:
    """A run that was made. `failures`: why the command must fail, empty where it must not."""

    run: RunDir
    result: RunJson
    failures: list[str]


# Measured with two cores: 1,000 MiB are enough, 800 are not.
LEAST_ADDRESS_SPACE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before the first request: nothing after this fails for what the user asked."""

    config: RunConfig
    workload: WorkloadInfo
    schedule: Schedule
    probe: Probe
    endpoint: Endpoint
    directory: RunDir
    name: str
    gains: dict[str, Any] = field(default_factory=dict)


def execute(config: RunConfig, *, quiet: bool = False) -> Execution:
    """Makes the whole run. Raises InputError for what can be known before the first request is sent."""
    prepared = prepare(config)
    progress = make_progress(config.load.progress)
    lengths = prepared.endpoint.shape.lengths_note
    ours = [*prepared.config.requests.notes] if lengths is None else [lengths]
    for note in [*prepared.schedule.notes, *ours, *prepared.probe.notes]:
        progress.say(f"note: {note}")
    result = send(prepared, progress)
    failures = check_assertions(config.analysis.assertions, result.model_dump(mode="json", by_alias=True))
    if not quiet:
        from wattload.report.table import print_summary

        print_summary(result, directory=prepared.directory.path)
    export_after(prepared.directory.path, config.export, progress.say)
    if not result.valid:
        failures = [*result.reasons, *failures]
    return Execution(prepared.directory, result, failures)


def check_address_space() -> None:
    """Raises InputError where the libraries of the analysis could not be loaded after the load: one of them
    waits for memory for ever.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE_BYTES:
        raise InputError(
            f"the address space of this process is limited to {limit >> 20:,} MiB (`ulimit -v`), and the"
            f" analysis needs {LEAST_ADDRESS_SPACE_BYTES >> 20:,} MiB: raise the limit"
        )


def prepare(config: RunConfig) -> Prepared:
    """Checks the options and the endpoint, and plans what is sent. Raises InputError."""
    check_address_space()
    _check_expressions(config)
    check_export(config.export)
    endpoint = config.endpoint.endpoint()
    if endpoint.replicas and config.energy.energy is None:
        raise InputError(
            "replica",
            f": an endpoint's own meter does not count the other {len(endpoint.replicas)}; name one that"
            " counts the GPUs of all with `energy` URL, or measure latency alone with `energy` none",
        )
    _check_endpoint(config, endpoint)
    streams = load_streams(config.workload, config.reading)
    check_images(
        config.prompts.image,
        endpoint.shape,
        streams.traces,
        server_history=config.schedule.history == "server",
    )
    answer = probe(
        endpoint.url,
        energy_url=config.energy.energy,
        model=endpoint.model or None,
        headers=dict(endpoint.headers),
        source_headers=config.endpoint.typed_headers(),
        all_devices=config.energy.energy_all_devices,
        tls=endpoint.tls,
    )
    gains = calibrated(config.energy.energy_calibration, answer)
    endpoint = replace(endpoint, model=answer.target.model or "")
    asked = {name for tenant in streams.tenants for name, _ in tenant.models} | dict(endpoint.models).keys()
    limits = [
        answer.target.max_model_len,
        *(_limit("replica", one, endpoint.model) for one in endpoint.targets[1:]),
        *(_limit("model", endpoint, name) for name in sorted(asked - {endpoint.model})),
    ]
    config = config.changed(output_limit=output_limit_of(endpoint, config.requests))
    shortest = min((limit for limit in limits if limit is not None), default=None)
    schedule = plan_schedule(config, streams, endpoint, shortest)
    _check_warmup(config, schedule)
    directory = RunDir.create(config.output.out or default_directory(streams.first.name))
    name = config.output.name or directory.path.resolve().name
    try:
        save_schedule(schedule, directory.schedule_path)
        workload = _workload(config, streams, schedule, directory)
        # The traces end here: what is sent is in the schedule.
        kept = mapped(schedule, directory.path)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{directory.schedule_path}: the schedule cannot be written: {why}") from error
    return Prepared(config, workload, kept, answer, endpoint, directory, name, gains)


def calibrated(path: str | None, answer: Probe) -> dict[str, Any]:
    """The gains of the devices that are counted, from a calibration file. Raises InputError."""
    if path is None:
        return {}
    try:
        known = load_gains(Path(path))
    except ValueError as error:
        raise InputError("energy_calibration", f"{error}") from error
    devices = [str(device.get("id")) for device in answer.target.devices]
    found = {name: gain.as_json() for name in devices if (gain := gain_of(name, known)) is not None}
    if not found:
        counted = ", ".join(devices) or "no device"
        raise InputError("energy_calibration", f"{path}: has none of the devices that are counted: {counted}")
    return found


def _limit(setting: str, endpoint: Endpoint, model: str) -> int | None:
    """The longest context of `model` there. Raises InputError naming the setting where it is not served."""
    try:
        found = probe(
            endpoint.url, energy_url="none", model=model, headers=dict(endpoint.headers), tls=endpoint.tls
        )
    except InputError as error:
        if setting == "model":
            raise
        raise InputError(setting, f"{endpoint.url}: {error}") from error
    return found.target.max_model_len


def _check_endpoint(config: RunConfig, endpoint: Endpoint) -> None:
    """Refuses settings that the endpoint's API has no place for."""
    api, prompts, slo = endpoint.shape, config.prompts, config.analysis.slo
    name = f"`api` {endpoint.api}"
    if not api.streams:
        if slo is not None and (slo.ttft_seconds is not None or slo.tpot_seconds is not None):
            raise InputError("slo", f": {name} generates no tokens, so only e2e can be limited")
        if prompts.system_prompt is not None:
            raise InputError("system_prompt", f"{prompts.system_prompt}: {name} takes none")
        if config.schedule.history == "server":
            raise InputError("history", f"server: {name} says nothing that a next turn could go on from")
    elif prompts.inputs is not None:
        raise InputError("inputs", f"{prompts.inputs}: is for `api` embeddings, rerank and score, not {name}")
    choices = (config.requests.body or {}).get("n")
    if config.schedule.history == "server" and isinstance(choices, int) and choices > 1:
        raise InputError(
            "body", f": asks for {choices} responses (n), and with `history` server a turn goes on from one"
        )
    several = bool(endpoint.models) or any(tenant.models for tenant in config.workload.tenant)
    if several and "model" in (config.requests.body or {}):
        raise InputError("body", ": names a model, and several are to be asked for")


def plan_schedule(
    config: RunConfig, streams: Streams, endpoint: Endpoint, max_model_len: int | None
) -> Schedule:
    """The schedule that the options ask for, its prompts of text where the endpoint's API needs that.

    Raises InputError naming the setting, or the trace's file and line.
    """
    api, prompts = endpoint.shape, config.prompts
    system = (0, "") if prompts.system_prompt is None else system_of(prompts.system_prompt)
    room = max_model_len
    if room is not None and system[0]:
        room = max(1, room - system[0])
    schedule = plan(streams, config.schedule, max_model_len=room, outputs=api.streams)
    inputs = 0 if api.streams else prompts.inputs or DEFAULT_INPUTS[endpoint.api]
    image = None if prompts.image is None else parse_image(prompts.image)
    schedule = noting_images(replace(schedule, frame=Frame(inputs=inputs, image=image)))
    by_tag = {tenant.tag: tenant.models for tenant in streams.tenants if tenant.models}
    mix = endpoint.models or ((endpoint.model, 1.0),)
    schedule = with_models(schedule, mix, by_tag, seed=config.schedule.seed)
    no_ids = _why_no_ids(schedule, config, endpoint, system=system[1])
    if not needs_text(schedule, endpoint.api, system=system[1], told_ids=no_ids == ""):
        return replace(schedule, frame=replace(schedule.frame, system_tokens=system[0]))
    tokenizer = prompts.tokenizer or "server"
    try:
        made = with_text(schedule, endpoint, tokenizer=tokenizer, max_model_len=max_model_len, system=system)
    except InputError as error:
        if not no_ids:
            raise
        raise _no_history(error, no_ids) from error
    return _noting_text(made, no_ids) if no_ids else made


def _why_no_ids(schedule: Schedule, config: RunConfig, endpoint: Endpoint, *, system: str) -> str | None:
    """A clause on why later turns cannot repeat responses by their token ids; empty where they can, None
    where that is not asked for: responses are not repeated, a tokenizer is named, or prompts are text anyway.
    """
    prompts = config.prompts
    if not schedule.own_answers or prompts.tokenizer is not None:
        return None
    if needs_text(schedule, endpoint.api, system=system, told_ids=True):
        return None
    return why_no_ids(
        endpoint, config.requests, prompt=[safe_ids(prompts.vocab_size or DEFAULT_VOCAB_SIZE)[0]]
    )


def _no_history(error: InputError, no_ids: str) -> InputError:
    """`error`, for which text cannot be made, where token ids cannot be had either."""
    return InputError(
        "history",
        f"server: {no_ids} (vLLM tells them from 0.10.2 on), and text cannot take their place"
        f" ({error.message.lstrip(': ')}); use such a server, or `history` planned",
    )


def _noting_text(schedule: Schedule, no_ids: str) -> Schedule:
    """`schedule` with a note that its history is text, and why."""
    note = (
        "later turns repeat the server's responses as text, which it may count as other tokens than it"
        f" generated: {no_ids}"
    )
    return replace(schedule, notes=(*schedule.notes, note))


def send(prepared: Prepared, progress: Progress) -> RunJson:
    """Sends what is prepared, and computes what came of it."""
    # Locust patches the standard library when it is imported, so only what sends load imports it.
    from wattload.load.run import run_load

    session = Session(prepared, progress)
    load = None
    try:
        load = run_load(session.plan())
    finally:
        session.load_over(load)
    if load.interrupted:
        progress.say(f"{load.interrupted}: the run directory is completed with what there is")
    try:
        return session.finish(load)
    except OSError as error:
        if error.errno in NO_ROOM:
            path = prepared.directory.path
            raise RunInvalid(
                f"{path}: {os.strerror(error.errno)}: the rows so far are kept; make room, then"
                f" `wattload report {path}` computes the figures"
            ) from error
        raise


class Session:
    """What goes on around the load of one run: metrics, the meter's series, and the figures afterwards."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        self._prepared, self._progress = prepared, progress
        options, answer = prepared.config.metrics, prepared.probe
        self.metrics = LoadMetrics(prepared.name, prepared.endpoint.model, prepared.config.analysis.slo)
        self.metrics.plan(prepared.schedule)
        self._server: Any = None
        if options.metrics_port is not None:
            self._server = serve(self.metrics, options.metrics_host, options.metrics_port)
        self._capture = _capture(prepared)
        self.energy: EnergySource | None = answer.open_source()
        self._poller: SeriesPoller | None = None
        if self.energy is not None and answer.clock is not None:
            self._poller = SeriesPoller(self.energy, prepared.directory, clock=answer.clock)
        self._server_metrics = _server_metrics(prepared)
        self._settled = _settled(prepared, self.energy)

    def plan(self) -> LoadPlan:
        """What the load needs to know."""
        from wattload.load.plan import LoadPlan

        prepared, config = self._prepared, self._prepared.config
        if self._poller is not None:
            self._poller.begin_early()
        if self._settled is not None:
            self._settled.begin()
        if self._server_metrics is not None:
            self._server_metrics.begin_early()
            for note in self._server_metrics.notes:
                self._progress.say(f"note: {note}")
        return LoadPlan(
            schedule=prepared.schedule,
            endpoint=prepared.endpoint,
            endpoint_options=config.endpoint,
            requests=config.requests,
            prompts=config.prompts,
            load=config.load,
            warmup_seconds=config.analysis.warmup_seconds or 0.0,
            run=prepared.directory,
            run_id=uuid.uuid4().hex[:12],
            progress=self._progress,
            metrics=self.metrics,
            watts=self.watts,
            energy_source=prepared.probe.target.energy_source,
            energy_in_responses=prepared.probe.energy_url == prepared.probe.target.url,
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
        if self._server_metrics is not None:
            self._server_metrics.start()

    def load_over(self, load: LoadResult | None = None) -> None:
        """No more requests: the meter's series is fetched to its end, or to the end of the window of a load
        that was not cut short.
        """
        self._progress.close()
        until = None
        if load is not None and load.interrupted is None:
            self._end_early(load)
            until = load.started_unix + self._capture.duration_seconds
        if self._settled is not None:
            self._settled.stop()
        if self._poller is not None:
            self._poller.stop(until)
            if self._poller.errors:
                self._capture.host["energy_poll_errors"] = self._poller.errors[:5]
        if self._server_metrics is not None:
            self._server_metrics.stop()
            self._capture.server_metrics = self._server_metrics.as_json()

    def _end_early(self, load: LoadResult) -> None:
        """Cuts the planned time where nothing more was to be sent: by a stop rule, or in a closed loop whose
        requests ran out before. Idle time after that is not the requests' doing.
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
        from wattload.analysis.compute import collect, finish

        prepared, capture, directory = self._prepared, self._capture, self._prepared.directory
        capture.finished_unix, capture.interrupted = load.finished_unix, load.interrupted
        capture.reasons += [shown(reason) for reason in load.reasons]
        capture.planned_requests = load.planned
        capture.host |= {"workers": load.workers, "outcome_examples": load.totals.examples}
        directory.save_capture(capture)
        if self.energy is not None:
            settle_seconds = _SETTLE_SECONDS_INTERRUPTED if load.interrupted else _SETTLE_SECONDS
            for problem in collect(directory, self.energy, settle_seconds=settle_seconds):
                self._progress.say(f"note: {problem}")
            self.energy.close()
        result = finish(directory)
        if prepared.config.output.report:
            from wattload.report import build

            build(directory)
        self.metrics.final(result.sessions)
        self._end_metrics()
        return result

    def _end_metrics(self) -> None:
        gateway = self._prepared.config.metrics.push_gateway
        if gateway:
            trouble = push(self.metrics, gateway, self._prepared.name)
            if trouble:
                self._progress.say(f"note: {trouble}")
        if self._server is not None:
            await_last_scrape(self.metrics)
            self._server.stop()


def _settled(prepared: Prepared, source: EnergySource | None) -> SettledProcess | None:
    """What asks for settled joules during the load; None where asking afterwards is soon enough."""
    schedule = prepared.schedule
    if source is None or not source.has_split:
        return None
    if not SettledProcess.is_needed(len(schedule), schedule.horizon_seconds):
        return None
    return SettledProcess(prepared.directory, source, prepared.config.endpoint.tls_files())


def _server_metrics(prepared: Prepared) -> ServerMetrics | None:
    """What reads the servers' metrics during the run; None where that is off."""
    config, answer = prepared.config, prepared.probe
    if not config.server_metrics.server_metrics:
        return None
    meters = [url for url in (answer.energy_url or "").split("\n") if url and not is_foreign(url)]
    targets = targets_of(
        [one.url for one in prepared.endpoint.targets],
        meters,
        headers=prepared.endpoint.headers,
        meter_headers=config.endpoint.typed_headers(),
        tls=prepared.endpoint.tls,
        named=config.server_metrics.server_metrics_url,
    )
    return ServerMetrics(targets, prepared.directory)


def _check_expressions(config: RunConfig) -> None:
    """Refuses what can never hold: an assertion on a number that this run will not have."""
    without = config.energy.energy == "none"
    if without and config.load.until is not None:
        raise InputError("until", f"{config.load.until.text}: needs energy, and `energy` is none")
    missing = {
        "slo.": None if config.analysis.slo is not None else "needs `slo`",
        "slo.joules": "needs energy, and `energy` is none" if without else None,
        "energy.": "needs energy, and `energy` is none" if without else None,
        "footprint.": "needs energy, and `energy` is none" if without else None,
        "footprint.cost": None if config.footprint.price_per_kwh is not None else "needs `price_per_kwh`",
        "footprint.carbon": None
        if config.footprint.carbon_grams_per_kwh is not None
        else "needs `carbon_grams_per_kwh`",
        "footprint.facility": None if config.footprint.pue is not None else "needs `pue`",
    }
    for assertion in config.analysis.assertions:
        for prefix, why in missing.items():
            if why is not None and assertion.path.startswith(prefix):
                raise InputError("assertions", f"{assertion.text!r}: {assertion.path} {why}")


def _check_warmup(config: RunConfig, schedule: Schedule) -> None:
    warmup, horizon = config.analysis.warmup_seconds, schedule.horizon_seconds
    if warmup is not None and horizon and warmup >= horizon:
        raise InputError("warmup", f"{warmup:g}: must be shorter than the arrivals ({horizon:.4g} s)")
    if warmup and config.schedule.process().text == "offline":
        raise InputError("warmup", f"{warmup:g}: `arrivals` offline sends everything at once")


def _workload(config: RunConfig, streams: Streams, schedule: Schedule, directory: RunDir) -> WorkloadInfo:
    """What is replayed, and the checksum of the schedule as it was saved."""
    traces = streams.traces
    return WorkloadInfo(
        trace=" + ".join(trace.name for trace in traces),
        sha256=(traces[0].sha256 or None) if len(traces) == 1 else None,
        revision="; ".join(dict.fromkeys(t.revision for t in traces if t.revision)) or None,
        rows=sum(len(trace) for trace in traces),
        arrivals=ArrivalsInfo(
            process=process_of(streams, config.schedule),
            rate_rps=schedule.rate_rps,
            target_rps=target_rate(streams, config.schedule),
        ),
        seed=config.schedule.seed,
        schedule_sha256=sha256_of(directory.schedule_path),
        citation="; ".join(dict.fromkeys(t.citation for t in traces if t.citation)) or None,
        system_prompt=_system_prompt(schedule.frame),
        image=config.prompts.image if schedule.frame.image is not None else None,
        images=planned_images(schedule),
        history=("text" if schedule.has_text else "token_ids") if schedule.own_answers else None,
        inputs=schedule.frame.inputs or None,
    )


def _system_prompt(frame: Frame) -> SystemPromptInfo | None:
    if not frame.system_tokens:
        return None
    return SystemPromptInfo(tokens=frame.system_tokens, sha256=frame.system_sha256)


def _capture(prepared: Prepared) -> Capture:
    config, schedule, answer = prepared.config, prepared.schedule, prepared.probe
    engine = (answer.energy or {}).get("engine_version") or answer.target.engine
    gains = {**((answer.energy or {}).get("gains") or {}), **prepared.gains}
    return Capture(
        schema=CAPTURE_SCHEMA,
        name=prepared.name,
        started_unix=unix_now(),
        duration_seconds=schedule.horizon_seconds,
        warmup_seconds=config.analysis.warmup_seconds,
        target=answer.target,
        workload=prepared.workload,
        slo=config.analysis.slo,
        max_failures=config.analysis.max_failures,
        versions=versions(engine),
        host={**host(), "command": command_of(config)},
        config=config.saved(),
        clock=answer.clock,
        energy_url=None if answer.energy_url is None else shown(answer.energy_url),
        no_energy_reason=answer.no_energy_reason,
        energy_probe=answer.energy,
        planned_requests=len(schedule),
        gains=gains or None,
    )
