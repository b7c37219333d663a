"""Runs the load of a schedule inside Locust, in this process or in several, and streams its rows to the run
directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pyarrow as pa
from gevent.event import Event
from locust.env import Environment
from locust.event import Events

from wattload.client import Client, ClientOptions
from wattload.config import RunConfig
from wattload.dispatch import Dispatcher
from wattload.load_user import replay_user, report_to_locust
from wattload.metrics import LoadMetrics
from wattload.progress import Progress, Snapshot
from wattload.prompts import prompt_maker, salt_of
from wattload.record import RequestRecord
from wattload.rundir import RequestWriter, RunDir, request_batch
from wattload.schedule import Schedule
from wattload.stop_rule import parse_until
from wattload.tally import LogHistogram, Tally
from wattload.transport.arrival import keeps_stamps

# A request that leaves later than this waits for the client and not for the server.
SATURATION_SECONDS = 0.02
_LATE_REQUESTS = 5
_LEAD_SECONDS = 0.3
_BATCH_ROWS = 64
_ENDED = object()


@dataclass(slots=True)
class LoadPlan:
    """What is to be sent, and where what is heard goes. `watts` is asked for the progress display."""

    config: RunConfig
    schedule: Schedule
    options: ClientOptions
    run: RunDir
    run_id: str
    progress: Progress
    metrics: LoadMetrics
    watts: Callable[[], float | None] = lambda: None
    energy_source: str | None = None
    on_start: Callable[[float], None] = lambda started_unix: None


@dataclass(slots=True)
class LoadResult:
    """What became of the load. `reasons`: why its figures must not be trusted, if they must not."""

    started_unix: float
    finished_unix: float
    planned: int
    tally: Tally
    lag: LogHistogram = field(default_factory=LogHistogram)
    interrupted: str | None = None
    reasons: list[str] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    ended_early_seconds: float | None = None


def run_load(plan: LoadPlan) -> LoadResult:
    """Sends the whole schedule and returns when every planned request has its row in requests.parquet."""
    if plan.config.processes > 1 or plan.config.master:
        from wattload.worker_master import run_distributed

        return run_distributed(plan)
    return _run_here(plan)


class Recorder:
    """Takes each request's record once: the row, the totals, the metrics, Locust's statistics."""

    def __init__(self, plan: LoadPlan, environment: Environment | None) -> None:
        """`environment` None: nothing is told to Locust here, as where its workers have."""
        # The writer's own limit is a backstop: batches are written in steps, between two sendings.
        self._writer = RequestWriter(plan.run, batch_rows=_BATCH_ROWS * 40)
        self._writing: Iterator[None] | None = None
        # Arrow's first conversion takes 10 ms (it looks for pandas): not while requests are due.
        request_batch([RequestRecord(0, "", -1, "", 0.0, 0, 0)])
        self._metrics, self._environment = plan.metrics, environment
        self.tally = Tally(keep_joules=plan.config.until is not None)
        self.rows = 0

    def __call__(self, record: RequestRecord) -> None:
        self.rows += 1
        self.tally.add(record)
        self._writer.append((record,))
        self._metrics.observe(record)
        if self._environment is not None:
            report_to_locust(self._environment, record)

    def write_step(self) -> bool:
        """Writes a few columns of a batch that is full; False where there is nothing to write."""
        if self._writing is None:
            if self._writer.pending < _BATCH_ROWS:
                return False
            self._writing = self._writer.flush_steps()
        if next(self._writing, _ENDED) is _ENDED:
            self._writing = None
        return True

    def close(self) -> None:
        while self._writing is not None:
            self.write_step()
        self._writer.close()


class LocalLoad:
    """The load of a run from this process alone, by a Locust user whose task is `replay`. `told`: where
    Locust's own statistics are to be kept; nobody sees them outside its web UI, and they cost as much as
    sending does.
    """

    def __init__(self, plan: LoadPlan, told: Environment | None) -> None:
        self._plan = plan
        self._recorder = Recorder(plan, told)
        self._client = Client(plan.options)
        self._dispatcher = make_dispatcher(
            plan.config,
            plan.schedule,
            self._client,
            plan.run_id,
            self._recorder,
            background=self._recorder.write_step,
        )
        self.result = LoadResult(0.0, 0.0, len(plan.schedule), self._recorder.tally, self._dispatcher.lag)
        self.over = Event()
        self._failure: BaseException | None = None

    def replay(self, _environment: Environment) -> None:
        """Sends everything, from a moment from now on."""
        give_back_memory()
        usage = Usage()
        try:
            self._dispatcher.build_ahead()
            start_perf = time.perf_counter() + _LEAD_SECONDS
            self.result.started_unix = start_perf + self._client.unix_offset
            self.result.tally.joules_from_unix = self.result.started_unix + (self._plan.config.warmup or 0.0)
            self._plan.on_start(self.result.started_unix)
            self._dispatcher.run(start_perf)
        except Exception as error:
            self._failure = error
        finally:
            self.result.finished_unix = time.perf_counter() + self._client.unix_offset
            self.result.workers = [{"worker": 0, "requests": self._recorder.rows, **usage.since()}]
            self._client.close()
            self._recorder.close()
            self.over.set()

    def stop(self, why: str) -> None:
        self.result.interrupted = why
        self._dispatcher.stop(why)

    def end_now(self) -> float:
        """No more is sent; the end, in seconds from the start."""
        return self._dispatcher.end_now()

    def counts(self) -> tuple[int, int]:
        """Requests due so far, and in flight."""
        return self._dispatcher.due_count, self._dispatcher.in_flight

    def close(self) -> LoadResult:
        """The result, when `over` is set. Raises what went wrong in the user."""
        if self._failure is not None:
            raise self._failure
        self.result.planned = self._recorder.rows
        judge_client(self.result, 1)
        return self.result


def _run_here(plan: LoadPlan) -> LoadResult:
    environment = Environment(events=Events(), host=plan.options.url)
    load = LocalLoad(plan, None)
    environment.user_classes = [replay_user(load.replay)]
    runner = environment.create_local_runner()
    try:
        with Interrupt(load.stop):
            runner.start(1, spawn_rate=1)
            watch(plan, load.result, load.over, load.counts, load.end_now)
    finally:
        runner.quit()
    return load.close()


def make_dispatcher(
    config: RunConfig,
    schedule: Schedule,
    client: Client,
    run_id: str,
    on_record: Callable[[RequestRecord], None],
    *,
    worker: int = 0,
    background: Callable[[], bool] | None = None,
) -> Dispatcher:
    """The dispatcher of a share of a run."""
    salt = salt_of(run_id) if config.content_salt is None else config.content_salt
    waiting = bool((schedule.turn > 0).any()) or schedule.closed_concurrency > 0
    return Dispatcher(
        schedule,
        client,
        run_id=run_id,
        on_record=on_record,
        worker=worker,
        background=background,
        end_seconds=schedule.horizon_seconds if waiting and schedule.horizon_seconds > 0 else None,
        drain_seconds=config.drain,
        prompt=prompt_maker(schedule, api=config.api, vocab_size=config.vocab_size, salt=salt),
    )


class Usage:
    """What this process used since the object was made."""

    def __init__(self) -> None:
        self._cpu = time.process_time()

    def since(self) -> dict[str, Any]:
        """CPU seconds, the most memory the process ever had, in MB (None where /proc does not say), and who
        notes when tokens arrive: `kernel`, or `process`, which adds how late the process reads.
        """
        peak = None
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            peak = int(found[1]) / 1024 if found is not None else None
        return {
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_memory_megabytes": peak,
            "arrival_times": "kernel" if keeps_stamps() else "process",
        }


def give_back_memory() -> None:
    """Hands what reading and planning have freed back to the system, before a load that is to stay small."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Interrupt:
    """While it is entered, Ctrl-C (and SIGTERM) ends the load; a second one ends the program."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self._handlers: list[Any] = []
        self.reason: str | None = None

    def _first(self) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.reason = "interrupted"
        self._stop(self.reason)

    def __enter__(self) -> Interrupt:
        self._handlers = [
            gevent.signal_handler(number, self._first) for number in (signal.SIGINT, signal.SIGTERM)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._handlers:
            handler.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def watch(
    plan: LoadPlan,
    result: LoadResult,
    over: Event,
    counts: Callable[[], tuple[int, int]],
    end_now: Callable[[], float],
) -> None:
    """Shows the progress and sets the gauges until the load is `over`; ends it when its stop rule is met.

    `counts`: requests due so far, in flight.
    """
    rule = parse_until(plan.config.until) if plan.config.until is not None else None
    horizon = plan.schedule.horizon_seconds
    warmup = plan.config.warmup or 0.0
    due_before, sent_before, shown = 0, 0, time.perf_counter()
    last_due = 0
    due, in_flight, elapsed, phase = 0, 0, 0.0, "warmup"

    def look() -> None:
        nonlocal due, in_flight, elapsed, phase, last_due
        due, in_flight = counts()
        plan.metrics.due(due - last_due)
        last_due = due
        plan.metrics.in_flight(in_flight)
        elapsed = max(0.0, time.time() - result.started_unix)
        phase = (
            "warmup" if elapsed < warmup else "measure" if elapsed < horizon or not horizon else "cooldown"
        )
        plan.metrics.phase(phase)

    # A scrape sees the moment it is made in, not the last look.
    plan.metrics.refresh = look
    while not over.wait(timeout=min(1.0, plan.progress.seconds)):
        look()
        if rule is not None and phase == "measure" and rule.met(result.tally.joules, elapsed - warmup):
            result.ended_early_seconds = end_now()
            plan.progress.say(f"{plan.config.until} is reached: no more is sent")
            rule = None
        now = time.perf_counter()
        if now - shown < plan.progress.seconds * 0.9:
            continue
        tally = result.tally
        sent = tally.sent + in_flight
        plan.progress.show(
            Snapshot(
                phase=phase,
                elapsed_seconds=elapsed,
                planned_seconds=horizon,
                due=due,
                total=len(plan.schedule),
                sent=sent,
                completed=tally.completed,
                failed=tally.failed,
                in_flight=in_flight,
                asked_rps=(due - due_before) / (now - shown),
                achieved_rps=max(0.0, (sent - sent_before) / (now - shown)),
                ttft_p50_seconds=tally.recent_ttft_seconds,
                lag_p99_seconds=result.lag.quantile(0.99),
                watts=plan.watts(),
                joules_per_request=tally.recent_joules,
                energy_source=plan.energy_source,
            )
        )
        due_before, sent_before, shown = due, sent, now
    if rule is not None and result.interrupted is None:
        known = len(result.tally.joules)
        plan.progress.say(f"note: {plan.config.until} was not reached ({known} requests told their joules)")
    due, _ = counts()
    plan.metrics.refresh = None
    plan.metrics.due(due - last_due)
    plan.metrics.in_flight(0)
    plan.metrics.phase(None)


def judge_client(result: LoadResult, processes: int) -> None:
    """A client that is late measures itself, and one that cannot open connections sheds load: the run is
    invalid then, and says what to do.
    """
    more = f"--processes {max(2, processes * 2)}"
    if result.tally.out_of_descriptors:
        result.reasons.append(
            f"client out of file descriptors: {result.tally.out_of_descriptors} requests could not be sent;"
            f" raise `ulimit -n` or use {more}"
        )
    lag = result.lag.quantile(0.99)
    # A few late ones among few requests are the system's hiccup, not a client at its end.
    if (
        lag is not None
        and lag > SATURATION_SECONDS
        and result.lag.above(SATURATION_SECONDS) >= _LATE_REQUESTS
    ):
        result.reasons.append(f"client saturated: lag p99 {lag * 1e3:.0f} ms; use {more}")
