"""Sends each request of a schedule when it is due, whatever the server does: the open loop.

The dispatcher runs in the greenlet of one Locust user. Between two due times it does what can wait
(building the requests that come next, handling the records of those that ended), in slices short enough to
be on time again.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import gevent
import numpy as np

from wattload.client.client import Client
from wattload.client.record import RequestRecord
from wattload.client.transport.timer import PreciseTimer, Ticker
from wattload.load.plan import planned_record
from wattload.load.totals import LogHistogram
from wattload.load.waits import Waits
from wattload.schedule.content import prompt_json_bytes
from wattload.schedule.conversation import Conversations
from wattload.schedule.table import Schedule

# Work that can wait is not begun within this time before a request is due.
_GUARD_SECONDS = 0.0006
# After so long the sockets are looked after before more of it is done.
_SLICE_SECONDS = 0.0003
_AHEAD_SECONDS = 3.0
_AHEAD_BYTES = 32 * 1024 * 1024
_BACKLOG_LIMIT = 2_000
_TICK_SECONDS = 0.1
_TICKS_A_RELEASE = 10
_TICKS_A_WAKE = 5

PromptMaker = Callable[[Schedule, int], bytes]


class Dispatcher:
    """One worker's share of a schedule, to be sent by `client`.

    `start_perf`: the `time.perf_counter()` of `due_seconds` 0. `on_record` gets the record of every request
    of the share exactly once, unsent ones too. `end_seconds`: what would be due later stays unsent.
    `drain_seconds`: how long after the last sending answers are waited for.
    """

    def __init__(
        self,
        schedule: Schedule,
        client: Client,
        *,
        run_id: str,
        on_record: Callable[[RequestRecord], None],
        worker: int = 0,
        end_seconds: float | None = None,
        drain_seconds: float = 300.0,
        prompt: PromptMaker | None = None,
        background: Callable[[], bool] | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        self._schedule, self._client = schedule, client
        self._run_id, self._worker = run_id, worker
        self._on_record = on_record
        self._end = float("inf") if end_seconds is None else end_seconds
        self._drain_seconds = drain_seconds
        self._prompt = prompt or prompt_json_bytes
        self._background = background
        self._conversations = conversations
        # What is being answered, of turns that others go on from.
        self._said: dict[int, list[bytes]] = {}
        # Where all due times are known, the schedule's own columns do: a copy would be 16 bytes a request.
        known = ~np.isnan(schedule.due_seconds)
        self._rows = range(len(schedule)) if known.all() else np.flatnonzero(known)
        self._due = schedule.due_seconds if known.all() else schedule.due_seconds[known]
        self._place = self._taken = 0
        self._later: list[tuple[float, int]] = []
        self._waits = Waits(schedule)
        # The sessions, each by its first row, or else the rows that slots of a closed loop take.
        self._closed: Sequence[int] | None = None
        if schedule.closed_concurrency:
            sessions = schedule.parents is not None
            self._closed = np.flatnonzero(schedule.turn == 0).tolist() if sessions else range(len(schedule))
        # Filled, not only asked for: the system would hand its pages out during the load.
        self._finished_rows = np.full(len(schedule), False)
        self._row_of: dict[int, int] = {}
        self._ready: dict[int, tuple[RequestRecord, bytes]] = {}
        self._ready_bytes = 0
        self._ahead = 0
        self._records: deque[RequestRecord] = deque()
        self._timer: PreciseTimer | None = None
        self._start = 0.0
        self._ticks = 0
        self._stopped: str | None = None
        # How late requests were handed to the client; what connecting then takes is not the dispatcher's
        # doing.
        self.lag = LogHistogram()
        self.due_count = 0
        self.sent_count = 0

    @property
    def _slots_wait(self) -> bool:
        """Whether a closed loop has requests that no slot has taken yet."""
        return self._closed is not None and self._taken < len(self._closed)

    @property
    def in_flight(self) -> int:
        return len(self._client.calls)

    @property
    def total(self) -> int:
        return len(self._schedule)

    def stop(self, why: str) -> None:
        """Ends the run: what is in flight is aborted, what is not sent stays unsent."""
        self._stopped = self._stopped or why
        if self._timer is not None:
            self._timer.wake()

    def end_now(self) -> float:
        """Sends no more, but waits for the answers that are still to come. The end, in seconds from the
        start.
        """
        self._end = min(self._end, max(0.0, time.perf_counter() - self._start))
        if self._timer is not None:
            self._timer.wake()
        return self._end

    def build_ahead(self, seconds: float = 0.5) -> None:
        """Makes the first requests, to be called before the start; gives up after `seconds`."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline and self._build_next(0.0):
            pass

    def run(self, start_perf: float) -> None:
        """Returns when every request has its record."""
        self._start = start_perf
        self._timer = PreciseTimer()
        ticker = Ticker(_TICK_SECONDS, self._tick)
        if self._closed is not None:
            self._take_closed(self._schedule.closed_concurrency, 0.0)
        try:
            with quiet_gc():
                self._send_all()
                self._drain()
        finally:
            self._client.abort_all(self._stopped or "the run was over")
            ticker.close()
            self._timer.close()
            self._timer = None
            self._handle_all()
            self._leave_unsent()

    def _tick(self) -> None:
        self._client.tick()
        self._ticks += 1
        # Also where no record waits: rows that were handled before may be old enough to be written.
        if self._timer is not None and (self._records or self._ticks % _TICKS_A_WAKE == 0):
            self._timer.wake()
        if self._ticks % _TICKS_A_RELEASE == 1 and self._schedule.pages is not None:
            self._schedule.pages.release()

    def _take_closed(self, count: int, due: float) -> None:
        """Has `count` free slots take what is next: requests, or sessions with all that begins them."""
        taken = () if self._closed is None else self._closed[self._taken : self._taken + count]
        self._taken += len(taken)
        for first in taken:
            for row in self._waits.beginnings(first):
                heapq.heappush(self._later, (due, row))

    def _send_all(self) -> None:
        assert self._timer is not None
        turned = time.perf_counter()
        while self._stopped is None:
            due = self._next_due()
            if due is None:
                over = time.perf_counter() - self._start >= self._end
                if over or not self._client.calls or not (self._waits.open or self._slots_wait):
                    return
                due = time.perf_counter() - self._start + _TICK_SECONDS
                self._work(self._start + due)
                self._timer.wait_until(self._start + due)
                continue
            when = self._start + due
            if when <= time.perf_counter():
                self._send_next()
                if len(self._records) > _BACKLOG_LIMIT:
                    self._handle_one()
                if time.perf_counter() - turned > _SLICE_SECONDS:
                    # However far behind: answers are read, connections made and signals heard.
                    gevent.sleep(0)
                    turned = time.perf_counter()
            else:
                self._work(when)
                self._timer.wait_until(when)
                turned = time.perf_counter()

    def _next_due(self) -> float | None:
        """Seconds after the start; None where nothing is known to be due."""
        static = float(self._due[self._place]) if self._place < len(self._due) else None
        later = self._later[0][0] if self._later else None
        due = min((x for x in (static, later) if x is not None), default=None)
        if due is not None and due >= self._end:
            return None
        return due

    def _send_next(self) -> None:
        if self._later and (self._place >= len(self._due) or self._later[0][0] < self._due[self._place]):
            due, row = heapq.heappop(self._later)
        else:
            due, row = float(self._due[self._place]), int(self._rows[self._place])
            self._place += 1
        made = self._ready.pop(row, None)
        if made is None:
            made = self._make(row)
        else:
            self._ready_bytes -= len(made[1])
        record, request = made
        record.due_unix = self._start + due + self._client.unix_offset
        self.due_count += 1
        self.sent_count += 1
        self._row_of[record.index] = row
        if self._closed is None:
            # In a closed loop a request is due when a slot is free: there is nothing to be late for.
            self.lag.add(time.perf_counter() - self._start - due)
        said: list[bytes] | None = None
        if self._conversations is not None:
            record.history_tokens = self._conversations.history_tokens(row)
            if self._conversations.wanted(row):
                said = self._said[row] = []
        self._client.send(record, request, self._done, said)

    def _done(self, record: RequestRecord) -> None:
        row = self._row_of.pop(record.index)
        self._finished_rows[row] = True
        if record.sent_unix is not None:
            record.images = self._schedule.images_sent(row)
        self._records.append(record)
        now = time.perf_counter() - self._start
        if self._conversations is not None:
            answer = b"".join(self._said.pop(row, ()))
            self._conversations.answered(row, answer, tokens=_counted(record))
        for following in self._waits.answered(row):
            # From the answer's end, not its last token: what comes after that is the server's time too.
            wait = float(self._schedule.think_seconds[following])
            heapq.heappush(self._later, (now + wait if wait > 0 else now, following))
        if self._closed is not None and self._waits.ended(row):
            self._take_closed(1, now)
        # Records can wait for the next turn; what is due by this answer, and the end of the load, cannot.
        if self._timer is not None and (self._later or not self._client.calls):
            self._timer.wake()

    def _work(self, until: float) -> None:
        """What can wait, as long as nothing is due."""
        limit = until - _GUARD_SECONDS
        began = time.perf_counter()
        while began < limit and self._stopped is None:
            if self._records:
                self._handle_one()
            elif not (
                (self._background is not None and self._background()) or self._build_next(began - self._start)
            ):
                return
            if time.perf_counter() - began > _SLICE_SECONDS:
                gevent.sleep(0)
                began = time.perf_counter()

    def _handle_one(self) -> None:
        self._on_record(self._records.popleft())

    def _handle_all(self) -> None:
        while self._records:
            self._handle_one()

    def _build_next(self, now: float) -> bool:
        """Makes the next request that is not made yet; False where there is none to make now."""
        if self._ready_bytes > _AHEAD_BYTES:
            return False
        self._ahead = max(self._ahead, self._place)
        if self._ahead < len(self._due) and self._due[self._ahead] < now + _AHEAD_SECONDS:
            self._keep(int(self._rows[self._ahead]))
            self._ahead += 1
            return True
        if self._later and self._later[0][0] < now + _AHEAD_SECONDS and self._later[0][1] not in self._ready:
            self._keep(self._later[0][1])
            return True
        return False

    def _keep(self, row: int) -> None:
        made = self._make(row)
        self._ready[row] = made
        self._ready_bytes += len(made[1])

    def _make(self, row: int) -> tuple[RequestRecord, bytes]:
        record = self._record(row)
        if self._conversations is not None:
            return record, self._client.prepare(record, self._conversations.prompt(row))
        return record, self._client.prepare(record, self._prompt(self._schedule, row))

    def _record(self, row: int) -> RequestRecord:
        return planned_record(self._schedule, row, self._run_id, worker=self._worker)

    def _drain(self) -> None:
        """Waits for the answers that are still to come."""
        assert self._timer is not None
        deadline = time.perf_counter() + self._drain_seconds
        while self._client.calls and self._stopped is None:
            now = time.perf_counter()
            if now >= deadline:
                self._client.abort_all(f"not completed {self._drain_seconds:g} s after the last sending")
                return
            self._work(now + _TICK_SECONDS)
            self._timer.wait_until(min(now + _TICK_SECONDS, deadline))

    def _leave_unsent(self) -> None:
        """Records for what was never sent. Of a closed loop what a slot was free for was planned, and all
        turns of a session that had begun.
        """
        unsent = ~self._finished_rows
        if self._closed is not None and self._stopped is None:
            session = self._schedule.session
            unsent &= (session >= 0) & np.isin(session, np.unique(session[self._finished_rows]))
        why = self._stopped or "scheduled after the end of the run"
        for count, row in enumerate(np.flatnonzero(unsent).tolist()):
            record = self._record(row)
            due = float(self._schedule.nominal_seconds[row])
            if self._stopped is None and np.isnan(self._schedule.due_seconds[row]) and np.isfinite(self._end):
                # The answer before it would have made it due after the end, whatever was planned.
                due = max(due, self._end)
            record.due_unix = self._start + due + self._client.unix_offset
            record.error = why
            self._on_record(record)
            if count % 100 == 99:
                gevent.sleep(0)


def _counted(record: RequestRecord) -> int | None:
    """Tokens of a turn, prompt and answer, as the server counted them."""
    if record.prompt_tokens is None or record.output_tokens is None:
        return None
    return record.prompt_tokens + record.output_tokens


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Keeps the garbage collector from stopping the loop for longer than a due time may be late.

    What exists now is never looked at again (gc.freeze), and only the youngest objects are collected on
    their own; a full collection of what a run leaves behind takes well under a millisecond then.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_500, 1_000_000, 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
