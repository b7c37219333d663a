"""The books of one server process: what was metered, what ran, and whose the joules are.

The account owns the threads and the lock; the arithmetic is elsewhere: counters and ledgers (counter.py,
ledger.py), idle power (idle.py), the requests (requests.py) and the division (settlement.py, attribution.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wattmeter import windows
from wattmeter.answers import (
    AccountSnapshot,
    DeviceSeries,
    DeviceStatus,
    RequestEnergy,
    WindowEnergy,
)
from wattmeter.clock import Clocks, WallClock
from wattmeter.devicebook import DeviceBook
from wattmeter.estimates import estimate, estimated_ends
from wattmeter.faults import Fault
from wattmeter.idle import IdleTracker
from wattmeter.meter import DeviceState, Meter, Reading
from wattmeter.onlinefit import OnlineFit
from wattmeter.priormodel import PRIOR_MODEL
from wattmeter.publication import publish
from wattmeter.requests import MAX_REQUESTS, RequestBook
from wattmeter.sampler import Sampler
from wattmeter.settlement import Lesson, Settlement
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.stepqueue import StepQueue
from wattmeter.steps import StepBatch

SETTLE_PERIOD_SECONDS = 0.25
RECORD_DELAY_SECONDS = 0.3
RECORD_PATIENCE_SECONDS = 5.0


class Account:
    """Meter, ledgers, step records and requests of one server, joined.

    `meter` is read from the account's own thread after `start`. `model` is the name of the served model.
    Energy of requests is above idle; idle power is measured whenever no request runs, unless `idle_watts` is
    given; with `measure_idle` off (a server whose requests are not reported here) it is not. `step_model` is
    where the split starts from; with `fit_online` it is fitted to this machine as it runs. All methods may be
    called from any thread; none waits for the meter. Raises ValueError for a meter without devices.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        model: str,
        step_model: StepEnergyModel | None = None,
        idle_watts: float | None = None,
        measure_idle: bool = True,
        history_seconds: float = 3600,
        max_requests: int = MAX_REQUESTS,
        fit_online: bool = True,
        clocks: Clocks | None = None,
    ) -> None:
        self._clocks = clocks or Clocks()
        if not meter.devices:
            raise ValueError("account: the meter has no device")
        self.model_name = model
        self.meter = meter
        self.source = meter.source
        # Who holds both took `_settling` first. Settling lets go of `_lock` wherever it takes long.
        self._settling = threading.Lock()
        self._lock = threading.RLock()
        self._generation = 0
        self._given_model = step_model or PRIOR_MODEL
        self._model = self._given_model
        self._fit = OnlineFit(self._given_model) if fit_online else None
        self._lessons: list[Lesson] = []
        self._clock = WallClock(history_seconds)
        self._clock.observe(self._clocks.monotonic_ns(), self._clocks.unix_seconds())
        period = getattr(meter, "update_period_seconds", None)
        flags: dict[str, frozenset[Fault]] = getattr(meter, "device_flags", {})
        self._books = {
            device.id: DeviceBook(
                device,
                history_seconds=history_seconds,
                update_period_seconds=period,
                flags=flags.get(device.id, frozenset()),
            )
            for device in meter.devices
        }
        self._ledgers = {device_id: book.ledger for device_id, book in self._books.items()}
        self._requests = RequestBook(self.source, max_requests=max_requests, now_ns=self._clocks.monotonic_ns)
        self._queue = StepQueue(self._paused)
        self._idle = IdleTracker(idle_watts, measure=measure_idle)
        self._settlement = Settlement(
            self._ledgers,
            self._requests,
            self._queue,
            self._idle,
            history_seconds=history_seconds,
            learn=self._lessons.append,
            pause=self._paused,
        )
        self._sampler = Sampler(
            meter,
            on_energy=self._on_energy,
            on_power=self._on_power,
            on_state=self._on_state,
            clocks=self._clocks,
            edges={key: book.edges for key, book in self._books.items() if book.edges is not None},
        )
        self._flags: set[Fault] = {Fault.MODELLED} if self.source == "modelled" else set()
        self._flags |= frozenset().union(*flags.values())
        self._requests.flags = frozenset(self._flags)
        self._fault_counts: dict[str, int] = {}
        self._settled: list[RequestEnergy] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the sampler and the settling thread."""
        if self._thread is not None:
            raise RuntimeError("account: already started")
        self._stop.clear()
        self._sampler.start()
        self._thread = threading.Thread(target=self._run, name="wattmeter-settlement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop both threads, then settle once more. The meter stays open: its owner closes it."""
        self._sampler.stop()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
            self.settle(patient=False)

    # --- what the server brings -----------------------------------------------------------------------------

    def add_steps(self, batch: StepBatch) -> None:
        """Take the next steps of the engine, in order. Lost or late records are counted and flagged."""
        steps = list(estimated_ends(batch, self._model, self._settlement.scale))
        with self._lock:
            before_ns = self._queue.last_end_ns
            lost = self._queue.add(batch)
            if lost:
                self._count(Fault.LOST_STEP_RECORDS, lost)
                first_ns = int(batch.launch_ns[0]) if len(batch) else self._clocks.monotonic_ns()
                start_ns = first_ns - 1_000_000_000 if before_ns is None else before_ns
                self._settlement.notice(Fault.LOST_STEP_RECORDS, start_ns, max(first_ns, start_ns) + 1)
                for name in batch.request_ids:
                    self._requests.ensure(name).flags.add(Fault.LOST_STEP_RECORDS)
            self._requests.add_steps(steps, self._generation)
            self._lose(self._settlement.late(batch, before_ns), before_ns)

    def request_started(self, request_id: str, *, prompt_tokens: int | None = None, group: str = "") -> None:
        """Note a request, before its first step if possible; `group` is its tenant."""
        with self._lock:
            self._requests.start(request_id, prompt_tokens, group)

    def add_prompts(self, prompts: Iterable[tuple[str, str, int]]) -> None:
        """Note (request, part, tokens) of prompts that began to run; see `RequestBook.add_prompt`."""
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
    ) -> None:
        """Note that a request will run no more steps. An aborted request keeps its joules."""
        with self._lock:
            self._requests.finish(request_id, output_tokens, prompt_tokens, aborted)

    # --- what is asked --------------------------------------------------------------------------------------

    def request_energy(self, request_id: str) -> RequestEnergy | None:
        """The energy of one request, provisional or settled; None for an unknown or long forgotten one.

        Joules are None, with the reason, before the first step record and while the meter fails.
        """
        with self._lock:
            state = self._requests.get(request_id)
            if state is None:
                return None
            return self._requests.energy(state, None if state.settled else self._meter_failure())

    def has_steps(self, request_id: str) -> bool:
        """Whether a step of the request has been recorded."""
        with self._lock:
            state = self._requests.get(request_id)
            return state is not None and state.last_step_ns is not None

    def window_energy(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """Energy of [start_unix, end_unix) and its division; ValueError for an empty or reversed window."""
        if not end_unix > start_unix:
            raise ValueError("energy: the window must end after it starts")
        with self._lock:
            start_ns, end_ns = self._clock.monotonic_ns(start_unix), self._clock.monotonic_ns(end_unix)
            return windows.window_energy(
                start_unix,
                end_unix,
                start_ns=start_ns,
                end_ns=end_ns,
                books=self._books,
                settlement=self._settlement,
                idle=self._idle,
                account_flags=self._settlement.noticed(start_ns, end_ns) | self._flags,
            )

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """Each device's counter over [start_unix, end_unix], one point an update."""
        with self._lock:
            low, high = self._clock.monotonic_ns(start_unix), self._clock.monotonic_ns(end_unix)
            unix = self._clock.converter()
            found = [(book.device, *book.ledger.series(low, high)) for book in self._books.values()]
        return [  # without the lock: an hour has 36,000 points a device
            DeviceSeries(device.id, device.name, device.source, unix(times), joules, watts)
            for device, times, joules, watts in found
        ]

    def snapshot(self, *, take_settled: bool = False) -> AccountSnapshot:
        """The state of everything now. With `take_settled` the newly settled requests are handed out once."""
        with self._lock:
            now_ns, now_unix = self._clocks.monotonic_ns(), self._clocks.unix_seconds()
            totals = self._settlement.totals
            frontier = self._settlement.frontier_ns
            settled = tuple(self._settled)
            if take_settled:
                self._settled.clear()
            flags = set(self._flags)
            if self._idle.watts is None:
                flags.add(Fault.IDLE_NOT_MEASURED)
            if not self._model.trusted:
                flags.add(Fault.MODEL_NOT_TRUSTED)
            devices = tuple(book.status(now_ns) for book in self._books.values())
            for device in devices:
                flags |= device.flags
            return AccountSnapshot(
                now_unix=now_unix,
                model_name=self.model_name,
                source=self.source,
                devices=devices,
                bucket_joules=totals.as_buckets(),
                settled_joules=totals.counter_joules,
                settled_unix=None if frontier is None else self._clock.unix(frontier),
                idle=self._idle.state,
                settled_requests=settled,
                active_requests=self._requests.active,
                conservation_error_ratio=self._settlement.conservation_error_ratio(),
                step_model=self._model.as_json(),
                faults=dict(self._fault_counts),
                flags=frozenset(flags),
                sample_cost_seconds=self._sampler.read_cost_seconds,
            )

    def add_flag(self, fault: Fault) -> None:
        """Flag everything from now on (the self-test's disagreement, a simulation that runs late)."""
        with self._lock:
            self._flags.add(fault)
            self._requests.flags = frozenset(self._flags)
            self._count(fault)

    def devices(self) -> tuple[DeviceStatus, ...]:
        return self.snapshot().devices

    def settle(self, *, patient: bool = True) -> None:
        """Settle what meter and step records cover by now; the account's thread does this by itself.

        With `patient` off, seconds that wait for what follows them (see `Settlement.settle`) do not.
        """
        with self._settling:
            while True:
                with self._lock:
                    self._settle_covered(patient)
                    block, model = self._settlement.due, self._model
                if block is None:
                    break
                factors = None
                try:
                    factors = block.factors(model)
                finally:
                    with self._lock:  # not for ever: the same error would come again at the next settling
                        self._settlement.divide(block, factors)
            self._learn()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Without `_lock`, which the caller holds once, so that answers and step records do not wait."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def _settle_covered(self, patient: bool) -> None:
        now_ns = self._clocks.monotonic_ns()
        covered = [ledger.covered_to_ns for ledger in self._ledgers.values()]
        if any(value is None for value in covered):
            return
        until = min(value for value in covered if value is not None)
        until = min(until, now_ns - round(RECORD_DELAY_SECONDS * 1e9))
        last_end = self._queue.last_end_ns
        if self._requests.active:
            # Records of running requests may be on their way: wait for them, but not for ever.
            patience = now_ns - round(RECORD_PATIENCE_SECONDS * 1e9)
            until = min(until, patience if last_end is None else max(last_end, patience))
        if not self._settlement.settle(until, self._model, self._clocks.unix_seconds(), patient=patient):
            return
        frontier = self._settlement.frontier_ns
        assert frontier is not None
        self._publish(frontier)
        for state in self._requests.settle_until(frontier):
            state.flags |= self._flags
            self._settled.append(self._requests.energy(state))
        del self._settled[:-10_000]

    def _publish(self, frontier_ns: int) -> None:
        """Enter what was settled, and what is estimated of the steps since, into the requests."""
        rest, previous_end_ns = self._queue.rest()
        divisions = self._settlement.take_divisions()
        # From here on `add_steps` estimates steps that are not in `rest`.
        self._generation += 1
        with self._paused():
            left = None
            try:
                if len(rest):
                    left = estimate(
                        rest,
                        self._model,
                        self._settlement.scale,
                        from_ns=frontier_ns,
                        previous_end_ns=previous_end_ns,
                    )
            finally:
                publish(self._requests, self._lock, divisions, left, self._generation)

    def _learn(self) -> None:
        """Fit the model to the pieces settled since; answers do not wait for it."""
        with self._lock:
            lessons, self._lessons[:] = list(self._lessons), []
        if not lessons or self._fit is None:
            return
        self._fit.power_limit_watts = self._power_limit_watts()
        for lesson in lessons:
            self._fit.add(
                lesson.steps,
                lesson.start_ns,
                lesson.end_ns,
                lesson.joules_above_idle,
                previous_end_ns=lesson.previous_end_ns,
            )
        fitted = self._fit.model
        if fitted is None or (self._given_model.trusted and not fitted.trusted):
            # Only the given one is known to be good.
            fitted = self._given_model
        with self._lock:
            self._model = fitted

    def _power_limit_watts(self) -> float | None:
        """What all the devices together may draw above idle; None where one does not tell its limit."""
        with self._lock:
            limits = [book.state.power_limit_watts for book in self._books.values()]
            idle = self._idle.watts
        if idle is None or any(limit is None for limit in limits):
            return None
        above = sum(limit for limit in limits if limit is not None) - idle
        return above if above > 0.0 else None

    def _run(self) -> None:
        while not self._stop.wait(SETTLE_PERIOD_SECONDS):
            try:
                self.settle()
            except Exception:
                with self._lock:
                    self._count(Fault.UNKNOWN_ERROR)

    # --- readings -------------------------------------------------------------------------------------------

    def _on_energy(self, reading: Reading) -> None:
        with self._lock:
            step = self._clock.observe(reading.monotonic_ns, reading.unix_seconds)
            if step is not None:
                for book in self._books.values():
                    book.clock_stepped(reading.monotonic_ns, step)
            self._books[reading.device_id].add_energy(reading)

    def _on_power(self, reading: Reading) -> None:
        with self._lock:
            self._books[reading.device_id].add_power(reading)

    def _on_state(self, device_id: str, state: DeviceState) -> None:
        with self._lock:
            self._books[device_id].state = state

    def _meter_failure(self) -> str | None:
        """Why the meter gives nothing at present, if it does not."""
        now_ns = self._clocks.monotonic_ns()
        failures = (book.failure(now_ns) for book in self._books.values())
        return next((failure for failure in failures if failure is not None), None)

    def _lose(self, steps: StepBatch, previous_end_ns: int | None) -> None:
        """Note that the joules of these steps, or the earlier part of them, will not reach their requests."""
        if len(steps):
            self._count(Fault.LOST_STEP_RECORDS, len(steps))
        self._settlement.lose(steps, previous_end_ns)
        for name in steps.request_ids:
            state = self._requests.get(name)
            if state is not None:
                state.flags.add(Fault.LOST_STEP_RECORDS)

    def _count(self, fault: Fault, number: int = 1) -> None:
        self._fault_counts[fault.value] = self._fault_counts.get(fault.value, 0) + number
