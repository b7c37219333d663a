"""The one loop that drives every load: progress, gauges, the stop rule, and interrupts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent

from wattload.clock import unix_now
from wattload.load.plan import Load, LoadPlan, LoadResult
from wattload.load.progress import Snapshot

_INTERRUPTED = "interrupted"


def follow(load: Load, plan: LoadPlan, interrupt: Interrupt | None = None) -> LoadResult:
    """Starts `load` and returns its result when it is over.

    Until then it shows the progress, sets the gauges, and ends the load when its stop rule is met or
    `interrupt` (None: somebody else looks after signals) tells to. Raises RunInvalid where the load cannot
    begin, and what went wrong while it was sent.
    """
    if interrupt is not None:
        interrupt.stops(load.stop)
    load.start()
    watch = _Watch(load, plan)
    # A scrape sees the moment it is made in, not the last look.
    plan.metrics.refresh = watch.look
    try:
        while not load.over.wait(timeout=min(1.0, plan.progress.seconds)):
            watch.look()
            watch.apply_stop_rule()
            watch.show()
    finally:
        plan.metrics.refresh = None
    watch.end()
    result = load.close()
    if interrupt is not None and interrupt.reason is not None:
        result.interrupted = interrupt.reason
    return result


class _Watch:
    """What is known of a load at the last look."""

    def __init__(self, load: Load, plan: LoadPlan) -> None:
        self._load, self._plan = load, plan
        # A copy: the rule remembers when it was last looked at.
        self._rule = replace(plan.load.until) if plan.load.until is not None else None
        self._warmup_seconds = plan.warmup_seconds
        self._due = self._in_flight = 0
        self._elapsed_seconds, self._phase = 0.0, "warmup"
        self._shown_perf, self._due_shown, self._sent_shown = time.perf_counter(), 0, 0

    def look(self) -> None:
        """Reads the counts and sets the gauges."""
        due, self._in_flight = self._load.counts()
        metrics = self._plan.metrics
        metrics.due(due - self._due)
        self._due = due
        metrics.in_flight(self._in_flight)
        self._elapsed_seconds = max(0.0, unix_now() - self._load.result.started_unix)
        horizon_seconds = self._plan.schedule.horizon_seconds
        if self._elapsed_seconds < self._warmup_seconds:
            self._phase = "warmup"
        elif self._elapsed_seconds < horizon_seconds or not horizon_seconds:
            self._phase = "measure"
        else:
            self._phase = "cooldown"
        metrics.phase(self._phase)

    def apply_stop_rule(self) -> None:
        """Sends no more once the stop rule is met."""
        if self._rule is None or self._phase != "measure":
            return
        result = self._load.result
        if self._rule.met(result.totals.joules, self._elapsed_seconds - self._warmup_seconds):
            result.ended_early_seconds = self._load.end_now()
            self._plan.progress.say(f"{self._rule.text} is reached: no further request is sent")
            self._rule = None

    def show(self) -> None:
        """Shows the progress, where it is time to."""
        now, progress = time.perf_counter(), self._plan.progress
        seconds = now - self._shown_perf
        if seconds < progress.seconds * 0.9:
            return
        result = self._load.result
        totals = result.totals
        sent = totals.sent + self._in_flight
        progress.show(
            Snapshot(
                phase=self._phase,
                elapsed_seconds=self._elapsed_seconds,
                planned_seconds=self._plan.schedule.horizon_seconds,
                due=self._due,
                total=len(self._plan.schedule),
                sent=sent,
                completed=totals.completed,
                failed=totals.failed,
                in_flight=self._in_flight,
                scheduled_rps=(self._due - self._due_shown) / seconds,
                achieved_rps=max(0.0, (sent - self._sent_shown) / seconds),
                ttft_p50_seconds=totals.recent_ttft_seconds,
                e2e_p50_seconds=totals.recent_e2e_seconds,
                lag_p99_seconds=result.lag.quantile(0.99),
                watts=self._plan.watts(),
                joules_per_request=totals.recent_joules if self._plan.energy_in_responses else None,
                energy_source=self._plan.energy_source,
            )
        )
        self._due_shown, self._sent_shown, self._shown_perf = self._due, sent, now

    def end(self) -> None:
        """The gauges of a load that is over, and a note where its stop rule was not met."""
        result, metrics = self._load.result, self._plan.metrics
        if self._rule is not None and result.interrupted is None:
            self._plan.progress.say(
                f"note: {self._rule.text} was not reached"
                f" (energy is known of {len(result.totals.joules)} requests)"
            )
        due, _ = self._load.counts()
        metrics.due(due - self._due)
        metrics.in_flight(0)
        metrics.phase(None)


def show_no_interrupts() -> None:
    """Has gevent print no traceback of an interrupt: the command says in a sentence that one came."""
    hub = gevent.get_hub()
    if KeyboardInterrupt not in hub.NOT_ERROR:
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)


class Interrupt:
    """While it is entered, Ctrl-C, SIGTERM and SIGHUP end the load; a second one raises KeyboardInterrupt.

    A signal that the process was told to ignore (SIGHUP under nohup) stays ignored. `reason`: why the load
    was ended, None where no signal came.
    """

    def __init__(self) -> None:
        self._stop: Callable[[str], None] = lambda why: None
        self._before: dict[int, Any] = {}
        self._watchers: list[Any] = []
        self.reason: str | None = None

    def stops(self, stop: Callable[[str], None]) -> None:
        """`stop` is called with the reason when the first signal comes, at once where it has come already."""
        self._stop = stop
        if self.reason is not None:
            stop(self.reason)

    def _signalled(self) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.reason = _INTERRUPTED
        self._stop(self.reason)

    def __enter__(self) -> Interrupt:
        show_no_interrupts()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                self._watchers.append(gevent.signal_handler(number, self._signalled))
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
