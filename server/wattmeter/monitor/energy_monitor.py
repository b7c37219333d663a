"""The energy monitor of one server: what was metered, what ran, and whose the joules are.

The monitor owns the threads and the lock; the arithmetic is elsewhere: counters and timelines (metering/),
the table of requests (requests.py), the division (settler.py, attribution/), and windows (windows.py).

Settling collects what came since the last time (under the lock), computes (without it) and commits what it
found (under it, a few requests at a time). What it computes with belongs to the thread that settles.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Self, TypeVar

from wattmeter.clock import Clocks, WallClock
from wattmeter.energy_model.online_fit import OnlineFit
from wattmeter.energy_model.step_model import PRIOR_MODEL, StepModel
from wattmeter.faults import Fault, flag_set
from wattmeter.metering.device import MeteredDevice, combined_limit_watts, in_use
from wattmeter.metering.idle_power import SETTLE_SECONDS, IdleTracker
from wattmeter.metering.sampler import Sampler
from wattmeter.meters.base import DeviceState, Meter, Reading
from wattmeter.monitor.inbox import Inbox, Previews
from wattmeter.monitor.requests import MAX_REQUESTS, RequestTable
from wattmeter.monitor.settler import Collected, FitSample, Notice, Progress, SettledState, Settler
from wattmeter.monitor.windows import DeviceView, History, WindowView, settled_joules, window_energy
from wattmeter.schema import (
    PROVISIONAL,
    DeviceSeries,
    DeviceStatus,
    MonitorSnapshot,
    RequestEnergy,
    WindowEnergy,
)
from wattmeter.steps.batch import StepBatch

T = TypeVar("T")

NO_STEPS_REASON = (
    "the meter stands beside the server and sees no engine steps: joules cannot be divided among requests"
)
SETTLE_PERIOD_SECONDS = 0.25
# So many requests are entered while the lock is held: about 0.1 ms.
REQUESTS_AT_ONCE = 64
MAX_SETTLED_REQUESTS = 10_000
ID_USED_BEFORE = "another request had this id before, so the joules of this one are not told"
MIG_REFUSAL = (
    "the GPU is divided (by MIG or a partition mode), and its energy is known for the whole GPU only"
)


class EnergyMonitor:
    """Meter, timelines, step records and requests of one server, joined.

    `meter` is read from the monitor's own thread after `start`. `model` is the name of the served model.
    Energy of requests is above idle; idle power is measured whenever no request runs, unless `idle_watts` is
    given; with `measure_idle` off (a server whose requests are not reported here) it is not. `step_model` is
    where the split starts from; with `fit_online` it is fitted to this machine as it runs. All methods may be
    called from any thread; none but `settle` and `tick` waits for the meter or for a division.

    With `attribution` off (a meter that gets no step records) it answers for devices and windows: what would
    be attributed is None, with the reason, and idle power is what was given, since without steps steady work
    cannot be told from rest.

    With `estimated` the steps are reconstructed from what was seen of responses (steps/from_streams.py):
    everything is flagged, and requests are less certain.

    Raises ValueError for a meter without devices.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        model: str = "",
        step_model: StepModel | None = None,
        idle_watts: float | None = None,
        measure_idle: bool = True,
        history_seconds: float = 3600,
        max_requests: int = MAX_REQUESTS,
        fit_online: bool = True,
        attribution: bool = True,
        estimated: bool = False,
        clocks: Clocks | None = None,
    ) -> None:
        self._clocks = clocks or Clocks()
        if not meter.devices:
            raise ValueError("monitor: the meter has no device")
        self.model_name = model
        self.meter = meter
        self.source = meter.source
        # Held while settling, by whichever thread does; who holds both locks took this one first.
        self._settling = threading.Lock()
        self._lock = threading.Lock()
        self._given_model = step_model or PRIOR_MODEL
        self._model = self._given_model
        self._fit = OnlineFit(self._given_model) if fit_online and attribution else None
        self._clock = WallClock(history_seconds)
        self._clock.observe(self._clocks.monotonic_ns(), self._clocks.unix_seconds())
        period = getattr(meter, "update_period_seconds", None)
        flags: dict[str, frozenset[Fault]] = getattr(meter, "device_flags", {})
        self._devices = {
            device.id: MeteredDevice(
                device,
                history_seconds=history_seconds,
                update_period_seconds=period,
                flags=flags.get(device.id, frozenset()),
            )
            for device in meter.devices
        }
        self._requests = RequestTable(
            self.source, max_requests=max_requests, now_ns=self._clocks.monotonic_ns
        )
        self._inbox = Inbox()
        self._no_attribution = None if attribution else NO_STEPS_REASON
        measure_idle = measure_idle and attribution
        idle = IdleTracker(idle_watts, measure=measure_idle)
        begin_ns = self._clocks.monotonic_ns()
        self._settler = Settler(idle, begin_ns=begin_ns, wait_for_idle=measure_idle)
        self._settled: SettledState = self._settler.state
        self._history = History(history_seconds)
        self._sampler = Sampler(
            meter,
            self._devices,
            self._lock,
            on_energy=self._observe_clocks,
            take_state=self._take_state,
            clocks=self._clocks,
        )
        self._flags: set[Fault] = {Fault.MODELLED} if self.source == "modelled" else set()
        self._flags |= {Fault.ESTIMATED} if estimated else set()
        self._flags |= frozenset().union(*flags.values())
        self._requests.flags = frozenset(self._flags)
        self._requests.refusal = MIG_REFUSAL if Fault.MIG in self._flags else None
        self._fault_counts: dict[str, int] = {}
        self._settled_requests: list[RequestEnergy] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- start ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the sampler and the settling thread."""
        if self._thread is not None:
            raise RuntimeError("monitor: already started")
        self._stop.clear()
        self._sampler.start()
        self._thread = threading.Thread(target=self._run, name="wattmeter-settling", daemon=True)
        self._thread.start()

    def take_past(self, readings: Iterable[Reading]) -> None:
        """Take what somebody else read of its devices before `start`, in order of time.

        What is known of the counters reaches back that far then, and no joule is missed between the moment at
        which the monitor was made and its own first readings.
        """
        with self._lock:
            for reading in readings:
                device = self._devices[reading.device_id]
                if reading.power_watts is not None:
                    device.take_power(reading)
                else:
                    device.take_energy(reading)

    def stop(self) -> None:
        """Stop both threads, then settle once more. The meter stays open: its owner closes it."""
        self._sampler.stop()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
            self.settle(patient=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- steps and requests ---------------------------------------------------------------------------------

    def add_steps(self, batch: StepBatch) -> None:
        """Take the next steps of the engine, in order. Lost or late records are counted and flagged."""
        now_ns = self._clocks.monotonic_ns()
        previews = Previews.of(batch, self._model, self._settled.scale, now_ns)
        with self._lock:
            before_ns = self._inbox.last_end_ns
            lost = self._inbox.add(batch, previews)
            if lost:
                self._count(Fault.LOST_STEP_RECORDS, lost)
                first_ns = int(batch.launch_ns[0]) if len(batch) else now_ns
                start_ns = first_ns - 1_000_000_000 if before_ns is None else before_ns
                end_ns = max(first_ns, start_ns) + 1
                self._history.notice(Notice(Fault.LOST_STEP_RECORDS, start_ns, end_ns))
                for name in batch.request_ids:
                    state = self._requests.ensure(name)
                    if not state.settled:
                        state.flags = flag_set(state.flags | {Fault.LOST_STEP_RECORDS})

    def steps_complete(self, until_ns: int) -> None:
        """Every step that ended by `until_ns` has been added: nothing before it need be waited for.

        An engine whose records come from another process says so again and again, also while it rests. Where
        nobody ever said it, records are taken to come within a third of a second.
        """
        with self._lock:
            self._inbox.complete_ns = max(self._inbox.complete_ns or 0, until_ns)

    def request_started(self, request_id: str, *, prompt_tokens: int | None = None, group: str = "") -> None:
        """Announce a request, before its first step if possible; `group` is its tenant.

        It enters the accounting with its first step, or with an end that is no refusal. Where the id is that
        of a request that is settled, that one stays as it is.
        """
        with self._lock:
            self._requests.start(request_id, prompt_tokens, group)

    def add_prompts(self, prompts: Iterable[tuple[str, str, int]]) -> None:
        """Note (request, part, tokens) of prompts that began to run; see `RequestTable.add_prompt`."""
        with self._lock:
            for request_id, part, tokens in prompts:
                self._requests.add_prompt(request_id, part, tokens)

    def request_finished(
        self,
        request_id: str,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        aborted: bool = False,
        refused: bool = False,
        group: str | None = None,
    ) -> None:
        """Note that a request will run no more steps. An aborted request keeps its joules.

        `refused`: the server did not take it (400, 401); unless it has run, there was no such request.
        `group` is then the tenant that its start named, which tells it from another of this id.
        """
        with self._lock:
            self._requests.finish(
                request_id, output_tokens, prompt_tokens, aborted, refused=refused, group=group
            )

    # --- questions ------------------------------------------------------------------------------------------

    def request_energy(self, request_id: str, *, newest: bool = False) -> RequestEnergy | None:
        """The energy of one request, provisional or settled; None for an unknown or long forgotten one.

        Joules are None, with the reason, before the first step record and while the meter fails. Where a
        request runs whose id is that of a settled one, the answer is the settled one's; with `newest`, that
        of the one that runs, whose joules are not told apart.
        """
        with self._lock:
            if newest and self._requests.again(request_id):
                return RequestEnergy(request_id, PROVISIONAL, source=self.source, reason=ID_USED_BEFORE)
            preview = self._inbox.preview(request_id)
            state = self._requests.get(request_id)
            if state is None:
                if preview is None:
                    return None
                state = self._requests.ensure(request_id, preview.received_ns)
            reason = self._no_attribution
            if reason is None and not state.settled:
                reason = self._meter_failure()
            return self._requests.energy(state, reason, preview)

    def has_steps(self, request_id: str) -> bool:
        """Whether a step of the request has been recorded."""
        with self._lock:
            state = self._requests.get(request_id)
            entered = state is not None and state.last_step_ns is not None
            return entered or self._inbox.has(request_id)

    def window_energy(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """Energy of [start_unix, end_unix) and its division; ValueError for an empty or reversed window."""
        if not end_unix > start_unix:
            raise ValueError("energy: the window must end after it starts")
        return window_energy(start_unix, end_unix, self._window(start_unix, end_unix))

    def settled_joules(self, start_unix: float, end_unix: float) -> dict[str, float]:
        """What is settled of [start_unix, end_unix) by component, as far as the history goes back."""
        return settled_joules(self._window(start_unix, end_unix))

    def _window(self, start_unix: float, end_unix: float) -> WindowView:
        with self._lock:
            start_ns, end_ns = self._clock.monotonic_ns(start_unix), self._clock.monotonic_ns(end_unix)
            notices = self._history.notices(start_ns, end_ns)
            return WindowView(
                start_ns,
                end_ns,
                devices=self._views(start_ns),
                seconds=self._history.seconds(start_ns, end_ns),
                idle_watts=self._settled.idle.watts,
                flags=frozenset(self._flags.union(notice.fault for notice in notices)),
                reason=self._no_attribution,
            )

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """Each device's counter over [start_unix, end_unix], one point an update."""
        with self._lock:
            low, high = self._clock.monotonic_ns(start_unix), self._clock.monotonic_ns(end_unix)
            unix = self._clock.converter()
            views = self._views(high)
        series = []
        for view in views:  # without the lock: an hour has 36,000 points a device
            device = view.device
            times, joules, watts = view.timeline.series(low, high)
            series.append(DeviceSeries(device.id, device.name, device.source, unix(times), joules, watts))
        return series

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot:
        """The state of everything now. With `take_settled` the newly settled requests are handed out once."""
        with self._lock:
            now_ns, now_unix = self._clocks.monotonic_ns(), self._clocks.unix_seconds()
            settled, model = self._settled, self._model
            settled_unix = None if settled.frontier_ns is None else self._clock.unix(settled.frontier_ns)
            settled_requests = tuple(self._settled_requests)
            if take_settled:
                self._settled_requests.clear()
            flags = set(self._flags)
            devices = tuple(device.status(now_ns) for device in self._devices.values())
            active, faults = self._requests.active, dict(self._fault_counts)
        if settled.idle.watts is None:
            flags.add(Fault.IDLE_NOT_MEASURED)
        buckets = settled.totals.as_buckets()
        if self._no_attribution is not None:
            unattributed = buckets["unattributed"]
            given = settled.idle.watts is not None
            buckets = {"idle": buckets["idle"]} if given else {}
            buckets["unattributed"] = unattributed
        elif not model.trusted:
            flags.add(Fault.MODEL_NOT_TRUSTED)
        return MonitorSnapshot(
            now_unix=now_unix,
            model_name=self.model_name,
            source=self.source,
            devices=devices,
            bucket_joules=buckets,
            settled_joules=settled.totals.counter_joules,
            settled_unix=settled_unix,
            idle=settled.idle,
            settled_requests=settled_requests,
            active_requests=active,
            conservation_error_ratio=settled.totals.conservation_error_ratio(),
            step_model=model.as_json() if self._no_attribution is None else None,
            faults=faults,
            flags=frozenset(flags).union(*(device.flags for device in devices)),
            sample_cost_seconds=self._sampler.read_cost_seconds,
            reason=self._no_attribution,
        )

    def add_flag(self, fault: Fault) -> None:
        """Flag everything from now on (the self-test's disagreement, a simulation that runs late)."""
        with self._lock:
            self._flags.add(fault)
            self._requests.flags = frozenset(self._flags)
            self._count(fault)

    def devices(self) -> tuple[DeviceStatus, ...]:
        return self.snapshot().devices

    # --- settling -------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> int:
        """Do every read of the meter that is due at now_ns; returns when to come again, monotonic ns.

        The sampler's thread does this by itself after `start`.
        """
        return self._sampler.tick(now_ns)

    def settle(self, *, patient: bool = True) -> None:
        """Settle what meter and step records cover by now; the monitor's thread does this by itself.

        With `patient` off, seconds that wait for what follows them (see `TenantFactors`) do not. Raises what
        a division raised, after all that was divided is committed.
        """
        with self._settling:
            new = self._collect(patient)
            progress = Progress()
            try:
                self._settler.advance(new, progress)
            finally:
                self._commit(progress)
            self._learn(progress.samples)
            if progress.error is not None:
                raise progress.error

    def _collect(self, patient: bool) -> Collected:
        """What came since the last settling, and what the meter has covered by now."""
        with self._lock:
            # Read with the batches: what is complete must be among them.
            complete_ns = self._inbox.complete_ns
            batches, leaving = self._inbox.take(), self._inbox.leaving
        previews = Previews.sum(leaving)
        with self._lock:
            self._inbox.leaving = [previews]
        for part in _parts(previews.items()):
            with self._lock:
                for name, preview in part:
                    self._requests.add_preview(name, preview)
                    del previews.rows[name]
            _let_others_in()
        with self._lock:
            frontier_ns = self._settled.frontier_ns
            arrivals, self._requests.arrivals = self._requests.arrivals, {}
            return Collected(
                now_ns=self._clocks.monotonic_ns(),
                unix_seconds=self._clocks.unix_seconds(),
                model=self._model,
                timelines={view.device.id: view.timeline for view in self._views(frontier_ns)},
                batches=batches,
                complete_ns=complete_ns,
                arrivals=arrivals,
                active=self._requests.active,
                in_use=in_use(device.state for device in self._devices.values()),
                power_limit_watts=combined_limit_watts(device.state for device in self._devices.values()),
                notices=() if frontier_ns is None else self._history.notices(frontier_ns),
                patient=patient,
            )

    def _commit(self, progress: Progress) -> None:
        """Enter what one settling found: its requests, then its seconds, then which requests are settled."""
        for late in progress.late:
            with self._lock:
                self._count(Fault.LOST_STEP_RECORDS, len(late))
                self._requests.flag(late.request_ids, Fault.LOST_STEP_RECORDS)
        if progress.seconds or progress.shares:
            for shares in _parts(iter(progress.by_request())):
                with self._lock:
                    self._requests.add_shares(shares)
                _let_others_in()
        state = self._settler.state
        with self._lock:
            for notice in progress.notices:
                self._history.notice(notice)
            self._history.add(progress.seconds)
            self._settled = state
        while progress.seconds and state.frontier_ns is not None:
            with self._lock:
                ready = self._requests.settle_until(
                    state.frontier_ns, REQUESTS_AT_ONCE, waits=self._inbox.has
                )
                for request in ready:
                    request.flags = flag_set(request.flags | self._flags)
                    self._settled_requests.append(self._requests.energy(request))
                del self._settled_requests[:-MAX_SETTLED_REQUESTS]
            if len(ready) < REQUESTS_AT_ONCE:
                break
            _let_others_in()

    def _learn(self, samples: list[FitSample]) -> None:
        """Fit the model to the seconds settled since; answers do not wait for it."""
        if not samples or self._fit is None:
            return
        self._fit.power_limit_watts = self._power_limit_watts()
        for sample in samples:
            self._fit.add(sample.work, sample.start_ns, sample.end_ns, sample.joules_above_idle)
        fitted = self._fit.model
        if fitted is None or (self._given_model.trusted and not fitted.trusted):
            # Only the given one is known to be good.
            fitted = self._given_model
        with self._lock:
            self._model = fitted

    def _power_limit_watts(self) -> float | None:
        """What all the devices together may draw above idle; None where one does not tell its limit."""
        with self._lock:
            limit = combined_limit_watts(device.state for device in self._devices.values())
            idle = self._settled.idle.watts
        if idle is None or limit is None:
            return None
        return limit - idle if limit > idle else None

    def _run(self) -> None:
        while not self._stop.wait(SETTLE_PERIOD_SECONDS):
            try:
                self.settle()
            except Exception:
                with self._lock:
                    self._count(Fault.UNKNOWN_ERROR)

    # --- readings -------------------------------------------------------------------------------------------

    def _observe_clocks(self, reading: Reading) -> None:
        """Note both clocks at an energy reading; the sampler holds the lock."""
        step = self._clock.observe(reading.monotonic_ns, reading.unix_seconds)
        if step is not None:
            for device in self._devices.values():
                device.clock_stepped(reading.monotonic_ns, step)

    def _take_state(self, device_id: str, state: DeviceState) -> None:
        """Take a device's state; the sampler holds the lock."""
        now_ns, last_ns = self._clocks.monotonic_ns(), self._inbox.last_end_ns
        rests = last_ns is not None and now_ns - last_ns > SETTLE_SECONDS * 1e9
        self._devices[device_id].take_state(state, now_ns, quiet=rests and self._requests.active == 0)
        if Fault.MIG in self._devices[device_id].flags and Fault.MIG not in self._flags:
            self._flags.add(Fault.MIG)
            self._requests.flags = frozenset(self._flags)
            self._requests.refusal = MIG_REFUSAL

    def _meter_failure(self) -> str | None:
        """Why the meter gives nothing at present, if it does not."""
        now_ns = self._clocks.monotonic_ns()
        failures = (device.failure(now_ns) for device in self._devices.values())
        return next((failure for failure in failures if failure is not None), None)

    def _views(self, since_ns: int | None) -> list[DeviceView]:
        """Every device's timeline as it is now, with the faults that had not ended by since_ns."""
        return [
            DeviceView(device.device, device.timeline.view(since_ns), device.flags)
            for device in self._devices.values()
        ]

    def _count(self, fault: Fault, number: int = 1) -> None:
        self._fault_counts[fault.value] = self._fault_counts.get(fault.value, 0) + number


def _parts(items: Iterator[T]) -> Iterator[list[T]]:
    """The items in lists of REQUESTS_AT_ONCE."""
    while part := list(islice(items, REQUESTS_AT_ONCE)):
        yield part


def _let_others_in() -> None:
    """Whoever waits for the lock or the interpreter gets it now: a lock taken again at once is not fair."""
    time.sleep(0)
