"""The engines of one node and its devices: one EnergyMonitor an engine, and one for what no engine uses.

Devices are watched from the meter's start. An engine that says hello gets a monitor of its own on its GPUs,
which takes over from the watch at the `seam`: what those GPUs used since the engine began to start, up to the
seam, is its start-up. Requests are found by id over all engines; a request's joules are the sum.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wattmeter.energy_model.step_model import NO_PADDING, PRIOR_MODEL, Experts, Padding, StepModel
from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Meter
from wattmeter.meters.processes import descends_from
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattmeter.monitor.windows import COMPONENTS
from wattmeter.schema import MonitorSnapshot, RequestEnergy
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.recording import RecordingWriter
from wattserve.meter.engine_clock import EngineClock, UnknownClockError, is_here
from wattserve.meter.tap import DeviceCounters, TappedMeter
from wattserve.meter_spec import MeterSpec
from wattserve.protocol.host import boot_id, pid_namespace
from wattserve.protocol.messages import EngineHello, RequestFinished, RequestStarted, StepRecords

logger = logging.getLogger("wattserve.meter")

# An engine says something once a second; after so long a silence it counts as gone, and after the longer one
# its requests count as ended.
SILENT_SECONDS = 5.0
GONE_SECONDS = 60.0
# How long the monitor before goes on beside an engine's own, until both cover the seam; and how long after
# its first reading a monitor divides joules at the latest (it waits for an exact edge of the counter).
OVERLAP_SECONDS = 4.0
SEAM_SECONDS = 2.5
# Step records that are on their way when a request ends arrive within this.
LATE_RECORDS_SECONDS = 2.0
# With several engines nothing says which of them runs a request until its records do. Samples of one request
# may run on several, which start them at about the same time.
OTHER_ENGINES_SECONDS = 1.0
HISTORY_SECONDS = 3600.0
# Engines that ended and whose devices others use are kept for as long as the history, and this many of them.
MAX_ENDED = 32
MAX_OPEN = 100_000
FLUSH_SECONDS = 10.0
SAVE_SECONDS = 1.0
# The clock of a sender on this host cannot be ahead of ours by more than the precision of both.
CLOCK_AHEAD_NS = 50_000_000
# No engine captures a graph, or works in tiles, of more tokens.
MOST_PADDED_TOKENS = 1 << 20


class RefusedError(ValueError):
    """An engine that would be metered wrongly: one sentence why."""


class StepTally:
    """Follows the numbering of one engine's steps, so that lost ones are counted."""

    def __init__(self, next_index: int = 0) -> None:
        self.next_index = next_index

    def lost(self, records: StepRecords) -> int:
        """How many steps the engine had ended when it sent `records` and that never arrived."""
        missing = records.next_step - self.next_index - len(records.batch)
        self.next_index = max(self.next_index, records.next_step)
        return max(0, missing)


@dataclass(slots=True)
class Segment:
    """A monitor and the time for which it answers: [begin, until) in UNIX seconds, None: no bound."""

    monitor: EnergyMonitor
    meter: Meter
    device_ids: tuple[str, ...]
    begin_unix: float | None = None
    # Until when it answers for each device that another has taken over since.
    until_unix: dict[str, float] = field(default_factory=dict)
    stop_at: float | None = None
    stopped: bool = False
    # What its monitor settled before it answered; None until that is known.
    _before: dict[str, float] | None = None

    def buckets(self, snapshot: MonitorSnapshot) -> dict[str, float]:
        """The settled joules of its own time, by bucket: those of adjoining segments add up to the counters.

        `snapshot` is its monitor's, which reads on beside the monitor that takes over, and before it did.
        """
        settled = snapshot.settled_unix
        if settled is None or (self.begin_unix is not None and settled < self.begin_unix):
            return dict.fromkeys(snapshot.bucket_joules, 0.0)
        if self._before is None:
            begin = 0.0 if self.begin_unix is None else self.begin_unix
            self._before = self.monitor.settled_joules(0.0, begin)
        after = self._after(settled)
        return {
            name: joules - self._before[name] - after[name] for name, joules in snapshot.bucket_joules.items()
        }

    def _after(self, settled_unix: float) -> dict[str, float]:
        """What was settled of devices that others had taken over by then."""
        first = min(self.until_unix.values(), default=math.inf)
        if settled_unix <= first:
            return dict.fromkeys(COMPONENTS, 0.0)
        parts = self.monitor.settled_joules(first, settled_unix)
        ends = {device_id: self.until_unix.get(device_id, settled_unix) for device_id in self.device_ids}
        if set(ends.values()) == {first}:
            return parts
        whole = self._device_joules(first, settled_unix)
        theirs = sum(
            self._device_joules(end, settled_unix)[device_id]
            for device_id, end in ends.items()
            if end < settled_unix
        )
        total = sum(whole.values())
        return {name: joules * theirs / total if total else 0.0 for name, joules in parts.items()}

    def _device_joules(self, start_unix: float, end_unix: float) -> dict[str, float]:
        answer = self.monitor.window_energy(start_unix, end_unix)
        return {device.id: device.joules or 0.0 for device in answer.devices}

    def stop(self, *, close: bool) -> None:
        if not self.stopped:
            self.stopped = True
            self.monitor.stop()
            if close:
                self.meter.close()


@dataclass(slots=True)
class Startup:
    """What starting an engine cost: its devices from `start_unix` to `end_unix`."""

    start_unix: float
    end_unix: float | None = None
    joules: float | None = None
    uncertainty_joules: float | None = None
    reason: str | None = "the engine has only just started"

    def as_json(self) -> dict[str, Any]:
        return {
            "start": self.start_unix,
            "end": self.end_unix,
            "joules": self.joules,
            "uncertainty_joules": self.uncertainty_joules,
            **({"reason": self.reason} if self.reason is not None else {}),
        }


@dataclass(slots=True)
class Engine:
    """One engine that has said hello."""

    hello: EngineHello
    segment: Segment
    tally: StepTally
    startup: Startup
    heard: float
    attached_unix: float
    take: Callable[[StepBatch], None]
    clock: EngineClock
    writer: RecordingWriter | None = None
    ended: bool = False
    silent: bool = False
    gone: bool = False
    seam_found: bool = False
    first_launch_ns: int | None = None
    last_end_ns: int = 0
    steps: int = 0
    lost_steps: int = 0

    @property
    def monitor(self) -> EnergyMonitor:
        return self.segment.monitor

    @property
    def alive(self) -> bool:
        return not self.ended and not self.silent

    def ran_in(self, start_unix: float, end_unix: float) -> bool:
        """Whether it was there in some part of a window."""
        heard_unix = time.time() - (time.monotonic() - self.heard)
        return self.attached_unix < end_unix and (self.alive or heard_unix > start_unix)

    def was_heard(self) -> None:
        self.heard = time.monotonic()
        self.silent = self.gone = False

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.hello.engine,
            "model": self.hello.model,
            "software": self.hello.software,
            "rank": self.hello.rank,
            "devices": list(self.segment.device_ids),
            "alive": self.alive,
            "steps": self.steps,
            "lost_step_records": self.lost_steps,
            "startup": self.startup.as_json(),
            "hosts": self.hello.hosts,
        }


@dataclass(slots=True)
class _Open:
    """A request that has not ended: the engines that may run it, and since when one is known to."""

    groups: list[str]
    engines: list[Engine]
    running: int = 1
    seen: float | None = None

    @property
    def group(self) -> str:
        """The tenant: that of the first of this id, of those that were not refused."""
        return self.groups[0] if self.groups else ""


class Node:
    """Everything that one meter meters. Thread-safe; `tick` is to be called a few times a second.

    `step_model` is where the split starts from, `record` the folder that gets the recording of the first
    engine, and folders inside it those of others. `state` is a file that outlives this process: what a meter
    that takes this one's place must know. Raises MeterUnavailableError.
    """

    def __init__(
        self,
        spec: MeterSpec,
        *,
        meter: Meter | None = None,
        idle_watts: float | None = None,
        step_model: StepModel | None = None,
        record: Path | None = None,
        state: Path | None = None,
    ) -> None:
        self.spec = spec
        self.idle_watts = idle_watts
        self.refusals: dict[str, str] = {}
        self._step_model = step_model
        self._record = record
        self._state = state
        self._lock = threading.RLock()
        saved = _load(state)
        self._saved_engines: dict[str, Any] = saved.get("engines", {})
        self.counters = DeviceCounters(saved.get("devices"))
        # Meters that several monitors read share a lock; those of modelled devices outlive their engines.
        self._meter_lock = threading.Lock()
        self.meter = meter if meter is not None else spec.open()
        self.source = self.meter.source
        self._modelled: dict[int, Meter] = {0: self.meter}
        self._flags: set[Fault] = set()
        self._engines: dict[str, Engine] = {}
        self._watch: Segment | None = self._watching(
            self.meter, tuple(device.id for device in self.meter.devices)
        )
        self._retired: list[Segment] = []
        # Settled joules of devices while no engine used them, of monitors that have stopped.
        self._unused: dict[str, float] = {}
        # Called for an engine that is about to be forgotten, without the lock; has to call `forget`.
        self.departing: Callable[[Engine], None] = self.forget
        self.forgotten = 0
        self._forgotten_joules: dict[str, float] = {}
        self.lost_messages: dict[str, int] = {}
        self._open: OrderedDict[tuple[str, str], _Open] = OrderedDict()
        self._ending: list[tuple[float, RequestFinished, list[Engine]]] = []
        self._saved = time.monotonic()
        self._stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="wattserve-recording", daemon=True)

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self._watch is not None:
            self._watch.monitor.start()
        if self._record is not None:
            self._flusher.start()

    def stop(self) -> None:
        """Ends all monitors and writes what is left of the recordings."""
        self._stop.set()
        with self._lock:
            segments = self.segments()
            engines = list(self._engines.values())
        for segment in segments:
            segment.stop(close=False)
        for engine in engines:
            if engine.writer is not None:
                engine.writer.close()
            engine.segment.meter.close()
        self.meter.close()

    def tick(self) -> None:
        """Finds seams, ends what was taken over, sees who is silent, saves what must not be lost."""
        now = time.monotonic()
        with self._lock:
            for engine in list(self._engines.values()):
                self._follow(engine, now)
            self._narrow(now)
            self._end_late(now)
            self._retire(now)
            if now - self._saved >= SAVE_SECONDS:
                self._saved = now
                self._save()
            expired = self._expired()
        for engine in expired:
            self.departing(engine)

    def _flush(self) -> None:
        # A recording can be read while the meter runs, and survives its being killed. Compressing takes long:
        # nothing else waits for this thread.
        while not self._stop.wait(FLUSH_SECONDS):
            for engine in self.engines():
                if engine.writer is not None:
                    engine.writer.flush()

    # --- engines --------------------------------------------------------------------------------------------

    def hello(self, hello: EngineHello, *, estimated: bool = False) -> None:
        """An engine says who it is, for the first time or again. Raises RefusedError.

        `estimated`: its steps are reconstructed from its responses.
        """
        with self._lock:
            engine = self._engines.get(hello.engine)
            if engine is not None:
                engine.was_heard()
                certain = not engine.clock.uncertain
                engine.clock.note(hello)
                if certain and engine.clock.uncertain:
                    logger.warning("engine %s: %s", engine.hello.engine[:8], Fault.CLOCK_UNCERTAIN.meaning)
                    engine.monitor.add_flag(Fault.CLOCK_UNCERTAIN)
                return
            try:
                self._engines[hello.engine] = self._attach(hello, estimated)
            except RefusedError as error:
                self.refusals[hello.server] = str(error)
                raise
            self.refusals.pop(hello.server, None)

    def goodbye(self, engine_id: str) -> None:
        with self._lock:
            engine = self._engines.get(engine_id)
            if engine is not None:
                engine.ended = True

    def engines(self, server: str | None = None) -> list[Engine]:
        """The engines of a server, or all of them, in the order they came."""
        with self._lock:
            return [e for e in self._engines.values() if server is None or e.hello.server == server]

    def forget(self, engine: Engine) -> None:
        """Drop an engine that ended: windows and requests of its time are not known any more."""
        with self._lock:
            if self._engines.pop(engine.hello.engine, None) is None:
                return
            self.forgotten += 1
            _add(self._forgotten_joules, engine.segment.buckets(engine.monitor.snapshot()))
            self._saved_engines.pop(engine.hello.engine, None)
        if engine.writer is not None:
            engine.writer.close()
        if self.spec.divisible and self.spec.kind != "modelled":  # it was opened for this engine alone
            engine.segment.meter.close()

    def _expired(self) -> list[Engine]:
        """Engines whose devices others use, longer ago than the history, or the oldest of too many."""
        ended = [engine for engine in self._engines.values() if engine.segment.stopped and not engine.alive]
        horizon = time.time() - HISTORY_SECONDS
        old = [e for e in ended if max(e.segment.until_unix.values(), default=0.0) <= horizon]
        return [*old, *[e for e in ended if e not in old][: max(0, len(ended) - len(old) - MAX_ENDED)]]

    def segments(self) -> list[Segment]:
        """Every monitor there is, those that only answer for the past too."""
        with self._lock:
            watch = [] if self._watch is None else [self._watch]
            return [*self._retired, *watch, *(engine.segment for engine in self._engines.values())]

    def watched(self) -> Segment | None:
        """The monitor of the devices that no engine uses."""
        return self._watch

    def all_joules(self) -> dict[str, float]:
        """Settled joules of everything since this meter began, by bucket: those of all its counters."""
        total = self.unused_joules()
        for engine in self.engines():
            _add(total, self.snapshot(engine).bucket_joules)
        with self._lock:
            _add(total, self._forgotten_joules)
        return total

    def unused_joules(self) -> dict[str, float]:
        """Settled joules of devices while no engine used them, by bucket."""
        with self._lock:
            total = dict(self._unused)
            watch = [] if self._watch is None else [self._watch]
            going_on = [segment for segment in (*self._retired, *watch) if not segment.stopped]
        for segment in going_on:
            _add(total, segment.buckets(segment.monitor.snapshot()))
        return total

    def add_flag(self, fault: Fault) -> None:
        """Flag everything from now on (the self-test's disagreement)."""
        with self._lock:
            self._flags.add(fault)
            for segment in self.segments():
                segment.monitor.add_flag(fault)

    def _attach(self, hello: EngineHello, estimated: bool) -> Engine:
        try:
            clock = EngineClock(hello)
        except UnknownClockError as error:
            raise RefusedError(str(error)) from None
        hello = clock.hello(hello)
        if hello.sent_ns > time.monotonic_ns() + CLOCK_AHEAD_NS:
            raise RefusedError(
                "the engine's monotonic clock is not the meter's: their times cannot be joined"
            )
        meter = self._claim(hello)
        ids = tuple(device.id for device in meter.devices)
        writer = self._recording(hello, meter)
        model = self._step_model or replace(
            PRIOR_MODEL, padding=_padding(hello), experts=Experts.of_shape(hello.shape)
        )
        tapped = TappedMeter(meter, counters=self.counters, writer=writer, lock=self._lock_of(meter))
        monitor = EnergyMonitor(
            tapped, model=hello.model, step_model=model, idle_watts=self.idle_watts, estimated=estimated
        )
        for fault in self._flags:
            monitor.add_flag(fault)
        monitor.take_past(self.counters.recent(ids))
        takers = [getattr(meter, "add_steps", None), monitor.add_steps]
        takers += [writer.add_steps] if writer is not None else []

        def take(batch: StepBatch) -> None:
            # The modelled meter first: the monitor may ask it at once for the joules of these steps.
            for taker in takers:
                if taker is not None:
                    taker(batch)

        monitor.start()
        began = time.time() - (time.monotonic_ns() - hello.started_ns) * 1e-9
        saved = self._saved_engines.get(hello.engine, {})
        startup = Startup(began)
        if hello.next_step:
            startup = Startup(
                began, None, saved.get("startup"), None, "the meter was started after the engine"
            )
            if startup.joules is not None:
                startup.reason = None
        # Steps that a meter before this one took are not lost; without one all before now are.
        tally = StepTally(int(saved.get("next_step", 0)))
        segment = Segment(monitor, tapped, ids)
        engine = Engine(hello, segment, tally, startup, time.monotonic(), time.time(), take, clock, writer)
        for (server, request_id), open_request in self._open.items():
            if server == hello.server:
                monitor.request_started(request_id, group=open_request.group)
                open_request.engines.append(engine)
        logger.info("engine %s of %s on %s", hello.engine[:8], hello.model, ", ".join(ids))
        return engine

    def _claim(self, hello: EngineHello) -> Meter:
        """The meter of the engine's devices. Raises RefusedError where another engine uses one of them."""
        taken = {
            device_id: engine
            for engine in self._engines.values()
            if engine.alive
            for device_id in engine.segment.device_ids
        }
        if self.spec.kind == "modelled":
            number = next(n for n in range(len(self._engines) + 1) if f"modelled-{n}" not in taken)
            if number not in self._modelled:
                self._modelled[number] = self.spec.open(number=number)
            return self._modelled[number]
        if not self.spec.divisible:
            meter = self.meter
        else:
            try:
                meter = self.spec.open(hello.gpus or None, is_own=_own_processes(hello))
            except MeterUnavailableError as error:
                raise RefusedError(str(error)) from None
        for device in meter.devices:
            other = taken.get(device.id)
            if other is not None:
                if meter is not self.meter:
                    meter.close()
                raise RefusedError(
                    f"{device.name} ({device.id}) is used by another engine, of {other.hello.model}: whose"
                    " joules are whose cannot be told"
                )
        return meter

    def _recording(self, hello: EngineHello, meter: Meter) -> RecordingWriter | None:
        if self._record is None:
            return None
        for number in range(10_000):
            folder = self._record if number == 0 else self._record / f"engine-{number}"
            if not (folder / "meta.json").exists():
                return RecordingWriter(folder, _recording_meta(hello, meter))
        return None

    def _lock_of(self, meter: Meter) -> threading.Lock | None:
        shared = meter is self.meter or meter in self._modelled.values()
        return self._meter_lock if shared else None

    def _watching(self, meter: Meter, device_ids: tuple[str, ...]) -> Segment:
        tapped = TappedMeter(meter, counters=self.counters, lock=self._meter_lock)
        monitor = EnergyMonitor(tapped, model="", idle_watts=self.idle_watts, attribution=False)
        return Segment(monitor, tapped, device_ids)

    # --- what tick does -------------------------------------------------------------------------------------

    def _follow(self, engine: Engine, now: float) -> None:
        if not engine.ended:
            silent = now - engine.heard > SILENT_SECONDS
            if silent and not engine.silent:
                logger.warning(
                    "engine %s of %s is silent; what is known of it stays",
                    engine.hello.engine[:8],
                    engine.hello.model,
                )
            engine.silent = silent
        if not engine.seam_found:
            self._find_seam(engine)
        elif engine.startup.reason is not None and not engine.hello.next_step:
            self._measure_startup(engine)
        if (engine.ended or now - engine.heard > GONE_SECONDS) and not engine.gone:
            engine.gone = True
            for key, open_request in list(self._open.items()):
                if engine in open_request.engines:
                    open_request.engines.remove(engine)
                    engine.monitor.request_finished(key[1], aborted=True)

    def _find_seam(self, engine: Engine) -> None:
        """From when on the engine's monitor answers: from its hello where the devices were read before that,
        else once it has read every device, and in any case before the engine's first step."""
        now = time.time()
        series = engine.monitor.series(now - 60.0, now)
        if not all(len(device.unix_seconds) for device in series):
            return
        covered = max(float(device.unix_seconds[0]) for device in series)
        seam = engine.attached_unix if covered <= engine.attached_unix else covered + SEAM_SECONDS
        if engine.first_launch_ns is not None:
            launched = now - (time.monotonic_ns() - engine.first_launch_ns) * 1e-9
            seam = max(covered, min(seam, launched))
        if seam > now:
            return
        engine.seam_found = True
        engine.segment.begin_unix = seam
        if not engine.hello.next_step:
            engine.startup.end_unix = seam
        before = [s for s in self.segments() if s is not engine.segment]
        predecessors = False
        for segment in before:
            for device_id in engine.segment.device_ids:
                if device_id in segment.device_ids and device_id not in segment.until_unix:
                    segment.until_unix[device_id] = seam
                    predecessors = True
            if set(segment.until_unix) >= set(segment.device_ids) and segment.stop_at is None:
                segment.stop_at = time.monotonic() + OVERLAP_SECONDS
        if not predecessors:
            engine.segment.begin_unix = None
            if not engine.hello.next_step:
                engine.startup.reason = "its devices were not metered while it started"

    def _measure_startup(self, engine: Engine) -> None:
        startup = engine.startup
        if startup.end_unix is None or startup.reason != "the engine has only just started":
            return
        joules, variance, missing = 0.0, 0.0, 0.0
        seconds = startup.end_unix - startup.start_unix
        if seconds <= 0.0:
            startup.reason = "the engine took its first step before the meter had read its devices"
            return
        for device_id in engine.segment.device_ids:
            metered = 0.0
            # One after the other: who takes some of the devices leaves the rest to a watch that begins anew.
            for segment in self.segments():
                until = segment.until_unix.get(device_id)
                if segment is engine.segment or until is None:
                    continue
                began = max(startup.start_unix, segment.begin_unix or startup.start_unix)
                ended = min(startup.end_unix, until)
                if ended <= began:
                    continue
                answer = segment.monitor.window_energy(began, ended)
                device = next(device for device in answer.devices if device.id == device_id)
                if device.joules is None:
                    return
                joules += device.joules
                variance += (device.uncertainty_joules or 0.0) ** 2
                metered += device.covered_seconds
            missing = max(missing, seconds - metered)
        if missing > 1.0:
            if time.time() > startup.end_unix + OVERLAP_SECONDS - 0.5:
                startup.reason = f"the meter did not cover {missing:.0f} s of it"
            return
        if missing > 1e-3 and time.time() < startup.end_unix + OVERLAP_SECONDS - 1.0:
            return
        startup.joules, startup.uncertainty_joules, startup.reason = joules, variance**0.5, None

    def _retire(self, now: float) -> None:
        """Stops monitors that another has taken over from, and watches again what no engine uses."""
        watch = self._watch
        # Of these an engine took some of the devices: of the watch, or of an engine that ended.
        partly = [s for s in self.segments() if s.until_unix and s.stop_at is None and not s.stopped]
        if partly:
            # A new watch on the rest; what was there before answers for before.
            if watch is not None and watch not in partly and watch.stop_at is None:
                partly.append(watch)
            rest = tuple(i for s in partly for i in s.device_ids if i not in s.until_unix)
            again = self._watching(_Subset(self.meter, rest), rest)
            again.monitor.start()
            again.begin_unix = time.time() + 0.5
            for segment in partly:
                for device_id in segment.device_ids:
                    segment.until_unix.setdefault(device_id, again.begin_unix)
                segment.stop_at = now + OVERLAP_SECONDS
            self._watch = again
            if watch is not None:
                self._retired.append(watch)
        elif watch is not None and watch.stop_at is not None:
            self._watch = None
            self._retired.append(watch)
        for segment in self.segments():
            if segment.stop_at is not None and now >= segment.stop_at and not segment.stopped:
                segment.stop(close=False)
                if segment in self._retired:
                    _add(self._unused, segment.buckets(segment.monitor.snapshot()))
        horizon = time.time() - HISTORY_SECONDS
        self._retired = [
            s for s in self._retired if not s.stopped or max(s.until_unix.values(), default=horizon) > horizon
        ]

    def _save(self) -> None:
        if self._state is None:
            return
        engines = {
            e.hello.engine: {"next_step": e.tally.next_index, "startup": e.startup.joules}
            for e in self._engines.values()
        }
        content = {"boot_id": boot_id(), "devices": self.counters.as_json(), "engines": engines}
        partial = self._state.with_suffix(".state.partial")
        try:
            partial.write_text(json.dumps(content))
            partial.rename(self._state)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._state, error.strerror)
            self._state = None

    # --- steps and requests ---------------------------------------------------------------------------------

    def steps(self, records: StepRecords) -> bool:
        """Step records of an engine; False where it has not said hello, so that they cannot be used.

        Raises RefusedError for steps of a time to come, or from before those that it told of already: they
        count as lost.
        """
        with self._lock:
            engine = self._engines.get(records.engine)
            if engine is None:
                return False
            engine.was_heard()
            records = engine.clock.records(records)
            _check_order(engine, records)
            lost = engine.tally.lost(records)
            engine.steps += len(records.batch)
            engine.lost_steps += lost
            batch = _merged_ids(records.batch, lost)
            if engine.first_launch_ns is None and len(batch):
                engine.first_launch_ns = int(batch.launch_ns.min())
            self._note_home(engine, batch.request_ids)
            if records.prompts:
                ids = records.batch.request_ids
                engine.monitor.add_prompts([(ids[row], part, n) for row, part, n in records.prompts])
            if lost or len(batch):
                engine.take(batch)
            if len(batch):
                engine.last_end_ns = int(batch.end_ns[-1])
            if records.complete_ns is not None:
                engine.monitor.steps_complete(records.complete_ns)
            return True

    def messages_lost(self, server: str, number: int) -> None:
        """An API process of a server could not tell of so many requests."""
        with self._lock:
            self.lost_messages[server] = self.lost_messages.get(server, 0) + number

    def request_started(self, message: RequestStarted) -> None:
        with self._lock:
            key = (message.server, message.id)
            engines = [e for e in self.engines(message.server) if not e.gone and not e.ended]
            known = self._open.get(key)
            if known is not None:
                known.running += 1
                known.groups.append(message.group)
                engines = known.engines
            else:
                self._open[key] = _Open([message.group], engines)
                while len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            for engine in engines:
                engine.monitor.request_started(message.id, group=message.group)

    def request_finished(self, message: RequestFinished) -> None:
        with self._lock:
            key = (message.server, message.id)
            known = self._open.get(key)
            if known is None:
                # It began while no meter ran, or was forgotten: who knows steps of it hears of its end.
                engines = [e for e in self.engines(message.server) if e.monitor.has_steps(message.id)]
            else:
                engines = known.engines
                known.running -= 1
                if message.refused and message.group in known.groups[: known.running + 1]:
                    known.groups.remove(message.group)
                if known.running <= 0:
                    del self._open[key]
            self._end(message, engines, patient=True)

    def _end(self, message: RequestFinished, engines: list[Engine], *, patient: bool) -> None:
        if len(engines) == 1:
            _finish(engines[0], message)
            return
        having = [e for e in engines if e.monitor.has_steps(message.id)]
        if not having and engines and not message.aborted:
            if patient:
                self._ending.append((time.monotonic() + LATE_RECORDS_SECONDS, message, engines))
                return
            having = engines[:1]
        for engine in engines:
            if engine in having:
                _finish(engine, message)
            else:
                # Where another engine ran it, it never was here.
                nowhere = bool(having) or message.refused
                engine.monitor.request_finished(
                    message.id, aborted=True, refused=nowhere, group=message.group
                )

    def _end_late(self, now: float) -> None:
        waiting, self._ending = self._ending, []
        for until, message, engines in waiting:
            if now >= until or any(e.monitor.has_steps(message.id) for e in engines):
                self._end(message, engines, patient=False)
            else:
                self._ending.append((until, message, engines))

    def _note_home(self, engine: Engine, request_ids: Iterable[str]) -> None:
        """With several engines: these requests run here."""
        server = engine.hello.server
        if len([e for e in self._engines.values() if e.hello.server == server]) < 2:
            return
        now = time.monotonic()
        for request_id in request_ids:
            known = self._open.get((server, request_id))
            if known is None:
                continue
            if known.seen is None:
                known.seen = now
            if engine not in known.engines:
                known.engines.append(engine)
                engine.monitor.request_started(request_id, group=known.group)

    def _narrow(self, now: float) -> None:
        """Requests that are known to run on some engines do not keep the others waiting."""
        for (_, request_id), known in self._open.items():
            if known.seen is None or len(known.engines) < 2 or now - known.seen < OTHER_ENGINES_SECONDS:
                continue
            having = [e for e in known.engines if e.monitor.has_steps(request_id)]
            if not having:
                continue
            for engine in known.engines:
                if engine not in having:
                    engine.monitor.request_finished(request_id, aborted=True, refused=True)
            known.engines = having
            known.seen = now

    # --- what is asked --------------------------------------------------------------------------------------

    def has_steps(self, request_id: str, server: str | None = None) -> bool:
        """Whether a step of the request has been recorded, or will not be because nothing is metered."""
        engines = self.engines(server)
        return not engines or any(e.monitor.has_steps(request_id) for e in engines)

    def request_energy(
        self, request_id: str, server: str | None = None, *, newest: bool = False
    ) -> RequestEnergy | None:
        """The energy of a request over all engines; None for an unknown or long forgotten one.

        `newest`: see `EnergyMonitor.request_energy`.
        """
        found = []
        for engine in self.engines(server):
            energy = engine.monitor.request_energy(request_id, newest=newest)
            if energy is not None:
                found.append((engine, energy))
        if len(found) > 1:
            having = [pair for pair in found if pair[0].monitor.has_steps(request_id)]
            found = having or found[:1]
        if found:
            energy = RequestEnergy.sum([energy for _, energy in found])
            hosts = max(engine.hello.hosts for engine, _ in found)
            return energy if hosts == 1 else _part_of(energy, hosts)
        with self._lock:
            known = next(
                (
                    item
                    for (name, key), item in self._open.items()
                    if key == request_id and server in (None, name)
                ),
                None,
            )
            if known is None or server is None:
                return None
        reason = self.no_engine_reason(server)
        none = None
        return RequestEnergy(
            request_id, "provisional", none, none, none, none, none, none, self.source,
            group=known.group, reason=reason,
        )  # fmt: skip

    def no_engine_reason(self, server: str) -> str:
        """Why requests of a server have no joules where none of its engines is metered."""
        refusal = self.refusals.get(server)
        if refusal is not None:
            return f"the meter refuses this engine: {refusal}"
        return "no engine of this server sends step records to the meter"

    def snapshot(self, engine: Engine, *, take_settled: bool = False) -> MonitorSnapshot:
        """An engine's state; its devices' joules are those since the node's first meter began."""
        snapshot = engine.monitor.snapshot(take_settled=take_settled)
        buckets = dict.fromkeys(snapshot.bucket_joules, 0.0)
        if engine.seam_found:
            buckets = engine.segment.buckets(snapshot)
        return replace(snapshot, devices=self._with_counters(snapshot), bucket_joules=buckets)

    def watch_snapshot(self) -> MonitorSnapshot | None:
        """The state of the devices that no engine uses; None where engines use all."""
        watch = self._watch
        if watch is None:
            return None
        snapshot = watch.monitor.snapshot()
        return replace(snapshot, devices=self._with_counters(snapshot))

    def _with_counters(self, snapshot: MonitorSnapshot) -> Any:
        devices = []
        for device in snapshot.devices:
            faults = dict(device.faults)
            for name, count in self.counters.faults(device.id).items():
                # A monitor that began since has not seen them.
                faults[name] = max(count, faults.get(name, 0))
            joules = None if device.energy_joules is None else self.counters.joules(device.id)
            devices.append(replace(device, energy_joules=joules, faults=faults))
        return tuple(devices)


class _Subset:
    """Some devices of a meter."""

    def __init__(self, meter: Meter, device_ids: tuple[str, ...]) -> None:
        self._meter = meter
        self.source = meter.source
        self.min_energy_interval_seconds = meter.min_energy_interval_seconds
        self.devices = tuple(device for device in meter.devices if device.id in device_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)

    def read_energy(self, device_id: str) -> Any:
        return self._meter.read_energy(device_id)

    def read_power(self, device_id: str) -> Any:
        return self._meter.read_power(device_id)

    def close(self) -> None:
        """The whole meter's owner closes it."""


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, joules in more.items():
        total[name] = total.get(name, 0.0) + joules


def _part_of(energy: RequestEnergy, hosts: int) -> RequestEnergy:
    """The energy of a request on one of several hosts."""
    return replace(energy, hosts=hosts, flags=energy.flags | {Fault.OTHER_HOSTS})


def _finish(engine: Engine, message: RequestFinished) -> None:
    engine.monitor.request_finished(
        message.id,
        output_tokens=message.output_tokens,
        prompt_tokens=message.prompt_tokens,
        aborted=message.aborted,
        refused=message.refused,
        group=message.group,
    )


def _check_order(engine: Engine, records: StepRecords) -> None:
    newest = time.monotonic_ns() + CLOCK_AHEAD_NS
    ends = records.batch.end_ns
    last = int(ends[-1]) if len(ends) else 0
    if max(last, records.complete_ns or 0) > newest:
        raise RefusedError("step records of a time to come: the engine's clock is not the meter's")
    if len(ends) and int(ends[0]) < engine.last_end_ns:
        raise RefusedError("step records from before those that were taken already")


def _merged_ids(batch: StepBatch, lost: int) -> StepBatch:
    """The batch with each request id once. The engine's requests of one HTTP request (samples, several
    prompts) keep their own entries and share the id."""
    if len(set(batch.request_ids)) == len(batch.request_ids):
        return replace(batch, lost_steps=lost)
    number: dict[str, int] = {}
    new = np.fromiter(
        (number.setdefault(i, len(number)) for i in batch.request_ids), np.int32, len(batch.request_ids)
    )
    return replace(batch, request=new[batch.request], request_ids=tuple(number), lost_steps=lost)


def _own_processes(hello: EngineHello) -> Callable[[int], bool | None] | None:
    """Whether a process is the engine's; None where that cannot be told from here."""
    if hello.pid is None or not hello.pid_namespace or hello.pid_namespace != pid_namespace():
        return None
    if not is_here(hello):  # another host's numbers, and the first namespace has the same name on each
        return None
    return descends_from(hello.pid)


def _padding(hello: EngineHello) -> Padding:
    """What the engine says it computes beyond the tokens asked for; none where it says nothing usable."""
    sizes, tile = hello.padding.get("graph_sizes", []), hello.padding.get("tile_tokens", 1)
    try:
        padding = Padding(tuple(int(size) for size in sizes), int(tile))
    except (TypeError, ValueError, OverflowError):
        return NO_PADDING
    return padding if max((*padding.graph_sizes, padding.tile_tokens)) <= MOST_PADDED_TOKENS else NO_PADDING


def _recording_meta(hello: EngineHello, meter: Meter) -> dict[str, Any]:
    return {
        "engine": hello.software,
        "model": hello.model,
        "source": meter.source,
        "padding": asdict(_padding(hello)),
        "shape": hello.shape,
        "devices": [{"id": device.id, "name": device.name} for device in meter.devices],
        "started_unix": time.time(),
        "unix_minus_monotonic_seconds": time.time() - time.monotonic(),
    }


def _load(state: Path | None) -> dict[str, Any]:
    """What the meter before this one saved, since this host was started; nothing where it cannot be used."""
    if state is None:
        return {}
    try:
        saved = json.loads(state.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(saved, dict) or saved.get("boot_id") != boot_id():
        return {}
    return saved
