"""The engine of the simulated GPU: runs steps in real time on the event loop and hands out the tokens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from wattmeter.steps.batch import StepBatch
from wattserve.sim.profile import Profile
from wattserve.sim.scheduler import Limits, Scheduler, Sequence, Step
from wattserve.sim.step_delay import StepDelayLog
from wattserve.sim.step_log import StepLog
from wattserve.sim.timer import Timer

log = logging.getLogger(__name__)

FLUSH_NS = 100_000_000
# A plan that lies further behind than this is given up: a host too slow for it would otherwise fall behind
# without end, and after the load had gone, new requests would wait for work that nobody wants any more.
FARTHEST_BEHIND_NS = 1_000_000_000


class Load(Protocol):
    """What a virtual meter is told: joules above idle, spent evenly over [start_ns, end_ns), even ahead."""

    def add_load(self, start_ns: int, end_ns: int, joules: float) -> None: ...


class Engine:
    """One simulated GPU. All methods belong to the event loop's thread.

    The plan is absolute: a step begins when the one before was planned to end, not when the event loop got
    round to noticing: a late wake-up delays tokens but never shifts the steps after it. How late tokens were
    handed out is in `step_delays`; a plan more than a second behind is given up, and continues from now. An
    engine that has been idle begins its next step the moment a sequence arrives. Where the profile launches
    ahead, what a step computes is decided when the one before begins, and counts as computed for the decision
    after it, as with vLLM's asynchronous scheduling.
    """

    def __init__(
        self,
        profile: Profile,
        limits: Limits,
        *,
        load: Load,
        on_steps: Callable[[StepBatch], None],
        step_delays: StepDelayLog | None = None,
        on_late: Callable[[float], None] | None = None,
    ) -> None:
        self.profile = profile
        self.scheduler = Scheduler(limits)
        self.step_delays = step_delays or StepDelayLog()
        self.steps_run = 0
        self.tokens_delivered = 0
        self._load = load
        self._on_steps = on_steps
        self._on_late = on_late
        self._records = StepLog()
        self._device = profile.device()
        self._step: Step | None = None  # under way
        self._sampled: list[Sequence] = []  # what it will have sampled
        self._next: Step | None = None  # decided on already
        self._start_ns = 0
        self._end_ns = 0
        self._decided_ns = 0
        self._flushed_ns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._timer = Timer(self._loop, self._ring)

    def stop(self) -> None:
        """Stop at once; sequences under way stay where they are."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        self.flush()

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self.scheduler.waiting)

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences that arrived together. Raises ValueError where one can never fit."""
        for seq in sequences:
            self.scheduler.add(seq)
        if self._step is None:
            now_ns = time.monotonic_ns()
            self._next = self.scheduler.schedule(None)
            self._begin(now_ns)
            self._look_ahead()
        elif self._next is None and self.profile.launches_ahead:
            self._next = self.scheduler.schedule(None)

    def abort(self, seq: Sequence) -> None:
        """Nobody waits for `seq` any more. What the step under way spends on it is spent."""
        seq.aborted = True
        self.scheduler.abort(seq)

    def flush(self) -> None:
        """Hand the step records collected so far to the account."""
        self._flushed_ns = time.monotonic_ns()
        if len(self._records):
            self._on_steps(self._records.take())

    def _begin(self, start_ns: int) -> None:
        """Run what was decided on, from `start_ns`; without work the device falls idle."""
        step = self._next
        self._next = None
        if step is None:
            step = self._decide(start_ns)
        if step is None:
            self._step = None
            self.flush()
            return
        start_ns = max(start_ns, self._decided_ns)
        self._device.idle((start_ns - self._end_ns) * 1e-9 if self._end_ns else 1.0)
        seconds, joules = self._device.step(
            step.prefill_tokens,
            step.decode_tokens,
            step.decode_context_tokens,
            step.attention_pairs,
            len(step.entries),
        )
        self._step = step
        self._start_ns = start_ns
        self._end_ns = start_ns + round(seconds * 1e9)
        self._load.add_load(start_ns, self._end_ns, joules)
        if self._timer is not None:
            self._timer.set(self._end_ns)

    def _decide(self, now_ns: int) -> Step | None:
        """What to compute next of what had arrived by `now_ns`; None where there is nothing."""
        scheduler = self.scheduler
        self._decided_ns = now_ns
        step = scheduler.schedule(now_ns)
        if not step.entries and scheduler.waiting:
            # Everything that waits came after the last step was planned to end: a late wake-up found it.
            self._decided_ns = max(now_ns, scheduler.waiting[0].arrival_ns)
            step = scheduler.schedule(self._decided_ns)
        return step if step.entries else None

    def _look_ahead(self) -> None:
        """Book the step under way, and decide on the one after it where the profile does so early."""
        step = self._step
        if step is None:
            return
        self._sampled = self.scheduler.finish_step(step)
        if self.profile.launches_ahead and self.scheduler.running:
            step = self.scheduler.schedule(self._start_ns)
            self._next = step if step.entries else None

    def _ring(self) -> None:
        """The step under way has ended: begin the next one, then hand out what this one sampled."""
        step = self._step
        if step is None:
            return
        planned_ns = self._end_ns
        sampled = self._sampled
        self._records.add(self.steps_run, self._start_ns, planned_ns, step)
        self.steps_run += 1
        self.tokens_delivered += sum(seq.output_tokens > 0 for seq in sampled)
        now_ns = time.monotonic_ns()
        self._begin(planned_ns if now_ns - planned_ns < FARTHEST_BEHIND_NS else now_ns)
        if planned_ns - self._flushed_ns > FLUSH_NS or any(seq.finished for seq in sampled):
            self.flush()
        for seq in sampled:
            if seq.aborted:
                continue
            try:
                seq.deliver(seq)
            except Exception:
                log.exception("request %s: its token could not be handed out", seq.request_id)
                self.abort(seq)
        self._look_ahead()
        if self._loop is not None:
            # uvloop writes what was handed to its transports before it runs the next callbacks.
            self._loop.call_soon(self._handed_out, planned_ns)

    def _handed_out(self, planned_ns: int) -> None:
        now_ns = time.monotonic_ns()
        self.step_delays.note(planned_ns, now_ns)
        if self._on_late is not None:
            self._on_late((now_ns - planned_ns) * 1e-9)
