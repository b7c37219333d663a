"""The table of requests: who they are, what was settled for each, what is still an estimate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from wattmeter.attribution.tenants import Arrival
from wattmeter.faults import Fault, flag_set
from wattmeter.monitor.inbox import Preview
from wattmeter.monitor.tenant_names import TenantNames
from wattmeter.schema import RequestEnergy

MAX_REQUESTS = 100_000
KEEP_SECONDS = 3600.0
_REUSED = {False: frozenset[Fault](), True: frozenset({Fault.REQUEST_ID_REUSED})}
LATE_REASON = "the records of this request's steps were lost or came too late"
NOTHING_REASON = "no energy above idle power was measured while this request ran"
# Relative standard deviation of a request's joules that steps reconstructed from its stream add, against the
# engine's own step records (benchmarks/stream_estimates.py).
ESTIMATED_FRACTION = 0.2


class RequestShare(NamedTuple):
    """What one settling found for one request: what to add to its settled figures, and its new estimate.

    `missing`: the meter did not cover all of its steps, so its energy is not known.
    """

    request_id: str
    flags: frozenset[Fault]
    missing: bool
    prefill_joules: float
    decode_joules: float
    variance: float
    pending_prefill_joules: float
    pending_decode_joules: float


@dataclass(slots=True)
class RequestState:
    """What is known of one request; joules are above idle, `pending` those estimated of steps not settled.

    `prompt_tokens` is what the server reported. `prompt_parts` are the prompts named in its step records:
    those of the parts (several prompts are one request) that have run.

    `starts` counts the requests of this id, `running` those without an end. More than one is `shared` here
    where an id was used again before its joules were settled: step records name the id alone, so their joules
    are one sum, and flagged; tokens of one of them beside it would mislead, so there are none. Its tenant is
    that of the first; `groups` are the tenants of all of them in order, None while there is one. `answered`:
    one of them was not aborted.
    """

    id: str
    group: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    started_ns: int = 0
    finished_ns: int | None = None
    aborted: bool = False
    last_step_ns: int | None = None
    prefill_joules: float = 0.0
    decode_joules: float = 0.0
    variance: float = 0.0
    pending_prefill_joules: float = 0.0
    pending_decode_joules: float = 0.0
    missing: bool = False
    settled: bool = False
    starts: int = 0
    running: int = 0
    answered: bool = False
    groups: list[str] | None = None
    flags: frozenset[Fault] = frozenset()
    prompt_parts: dict[str, int] | None = None

    @property
    def shared(self) -> bool:
        """Whether its joules are those of several requests."""
        return self.starts > 1

    @property
    def all_prompt_tokens(self) -> int | None:
        """As reported, or else as recorded; None where records were lost, since a part may be among them."""
        if self.shared:
            return None
        if self.prompt_tokens is not None or self.prompt_parts is None:
            return self.prompt_tokens
        return None if Fault.LOST_STEP_RECORDS in self.flags else sum(self.prompt_parts.values())

    def unknown(self, preview: Preview | None) -> str | None:
        """Why the joules of the request are not known yet or never will be; None where they are."""
        if self.missing:
            return "the meter did not cover all of this request's steps"
        if preview is not None:
            return None
        if self.last_step_ns is None and not self.settled:
            return "no step of this request has been recorded yet"
        if self.lost:
            return "no step of this request was recorded"
        if self.settled and self.last_step_ns is not None and self.prefill_joules + self.decode_joules <= 0.0:
            late = Fault.LOST_STEP_RECORDS in self.flags
            return LATE_REASON if late else NOTHING_REASON
        return None

    @property
    def lost(self) -> bool:
        """It answered, so it ran, but no record says so: 0 J would be wrong.

        A stream may end well without reporting its tokens; only an aborted request may not have run.
        """
        return self.last_step_ns is None and (bool(self.output_tokens) or not self.aborted)


class RequestTable:
    """All requests, at most MAX_REQUESTS: those settled first are forgotten first, open ones last of all.
    What was settled KEEP_SECONDS ago is forgotten too, so that a server's memory does not grow for days.

    A request that was only announced (`start`) is beside them and displaces none: it enters with its first
    step, or with an end that is no refusal. One that is refused leaves no trace. What is settled stays as it
    is: a later request of the same id is not entered (`again`), and its joules are nobody's.

    Of an open one that was forgotten (so many were open) the id is kept: heard of again, it has no number.
    `arrivals` is what changed since it was last taken: whose a request is, None where it was forgotten.
    Its owner locks; all that goes over many requests takes them in parts.
    """

    def __init__(
        self, source: str, *, max_requests: int = MAX_REQUESTS, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._now_ns = now_ns
        self._source = source
        self._max = max_requests
        self._states: OrderedDict[str, RequestState] = OrderedDict()
        self._announced: OrderedDict[str, RequestState] = OrderedDict()
        self._open: OrderedDict[str, RequestState] = OrderedDict()
        self._finished: OrderedDict[str, RequestState] = OrderedDict()  # but not settled
        self._settled: OrderedDict[str, int] = OrderedDict()  # and when
        self._dropped: OrderedDict[str, int] = OrderedDict()  # how often it counts as active
        self._again: dict[str, int] = {}  # how many of a settled id run
        self._tenants = TenantNames()
        self.arrivals: dict[str, Arrival | None] = {}
        self.active = 0
        self.flags: frozenset[Fault] = frozenset()
        # Why the energy of no request is known, whatever the meter gives; None where it is.
        self.refusal: str | None = None

    def __len__(self) -> int:
        return len(self._states)

    def get(self, request_id: str) -> RequestState | None:
        return self._states.get(request_id)

    def again(self, request_id: str) -> bool:
        """Whether a request runs whose id is that of a settled one."""
        return request_id in self._again

    def ensure(self, request_id: str, received_ns: int | None = None) -> RequestState:
        """The state of a request that has run a step or has ended, made when it is first heard of (a step may
        come before `start`).
        """
        state = self._announced.pop(request_id, None)
        if state is not None:
            self._open[request_id] = state
            self._forget()
            return state
        state = self._states.get(request_id)
        if state is None:
            state = self._new(request_id, received_ns)
            self._open[request_id] = state
            self._forget()
        return state

    def start(self, request_id: str, prompt_tokens: int | None, group: str) -> None:
        """Announce a request of a tenant."""
        group = self._tenants.of(group)
        self.active += 1
        state = self._states.get(request_id)
        if state is not None and state.settled:
            self._again[request_id] = self._again.get(request_id, 0) + 1
            # Steps of this id are the new one's from now on, and so is their tenant.
            self.arrivals[request_id] = Arrival(group, self._now_ns())
            return
        if state is None:
            state = self._announced[request_id] = self._new(request_id, None)
            if len(self._announced) > self._max:
                self._drop_open(*self._announced.popitem(last=False))
        if not state.starts:
            state.group, state.prompt_tokens = group, prompt_tokens
            self.arrivals[request_id] = Arrival(group, state.started_ns)
        else:
            state.groups = [*(state.groups or [state.group]), group]
            if state.finished_ns is not None:
                state.finished_ns = None
                self._finished.pop(request_id, None)
        state.starts += 1
        state.running += 1

    def _new(self, request_id: str, received_ns: int | None) -> RequestState:
        started_ns = self._now_ns() if received_ns is None else received_ns
        state = self._states[request_id] = RequestState(request_id, started_ns=started_ns)
        if request_id in self._dropped:
            state.starts = state.running = self._dropped.pop(request_id)
            # The joules of its steps so far are gone.
            state.missing = True
            state.flags = flag_set(state.flags | {Fault.LOST_STEP_RECORDS})
        self.arrivals[request_id] = Arrival(state.group, state.started_ns)
        return state

    def add_prompt(self, request_id: str, part: str, tokens: int) -> None:
        """Note the prompt of a part of a request; the samples (n) of one prompt are one part."""
        state = self.ensure(request_id)
        if state.settled:
            return
        if state.prompt_parts is None:
            state.prompt_parts = {}
        state.prompt_parts[part] = tokens

    def add_preview(self, request_id: str, preview: Preview) -> None:
        """Enter the estimate of new steps of a request."""
        state = self.ensure(request_id, preview.received_ns)
        if state.settled:
            return
        state.last_step_ns = max(state.last_step_ns or 0, preview.last_step_ns)
        state.pending_prefill_joules += preview.prefill_joules
        state.pending_decode_joules += preview.decode_joules

    def add_shares(self, shares: Iterable[RequestShare]) -> None:
        """Enter what was settled, and put the new estimates in the place of the old."""
        for share in shares:
            state = self._states.get(share.request_id)
            if state is None or state.settled:
                continue  # forgotten meanwhile, or of another request of this id
            state.prefill_joules += share.prefill_joules
            state.decode_joules += share.decode_joules
            state.variance += share.variance
            state.pending_prefill_joules = share.pending_prefill_joules
            state.pending_decode_joules = share.pending_decode_joules
            state.missing = state.missing or share.missing
            if share.flags:
                state.flags = flag_set(state.flags | share.flags)

    def flag(self, request_ids: Iterable[str], fault: Fault) -> None:
        """Flag those of the requests that are known."""
        for name in request_ids:
            state = self._states.get(name)
            if state is not None:
                state.flags = flag_set(state.flags | {fault})

    def finish(
        self,
        request_id: str,
        output_tokens: int | None,
        prompt_tokens: int | None,
        aborted: bool,
        *,
        refused: bool = False,
        group: str | None = None,
    ) -> None:
        """Note that a request will run no more steps; `refused`: the server did not take that of `group`."""
        if request_id in self._again:
            self._end_again(request_id)
            return
        if refused and self._refuse(request_id, group):
            return
        state = self.ensure(request_id)
        if state.finished_ns is not None:
            return
        if state.running:
            state.running -= 1
            self.active -= 1
        state.answered = state.answered or not aborted
        state.aborted = not state.answered
        if output_tokens is not None:
            state.output_tokens = output_tokens
        if prompt_tokens is not None:
            state.prompt_tokens = prompt_tokens
        self._end_if_none_runs(state)

    def _end_if_none_runs(self, state: RequestState) -> None:
        if not state.running:
            state.finished_ns = self._now_ns()
            self._finished[state.id] = state

    def _end_again(self, request_id: str) -> None:
        self.active -= 1
        self._again[request_id] -= 1
        if not self._again[request_id]:
            del self._again[request_id]

    def _refuse(self, request_id: str, group: str | None) -> bool:
        """Takes back a start; False where the request has run all the same."""
        state = self._states.get(request_id)
        if state is None:
            # Forgotten while it was announced, or never heard of.
            if request_id in self._dropped:
                self.active -= 1
                self._dropped[request_id] -= 1
                if not self._dropped[request_id]:
                    del self._dropped[request_id]
            return True
        if not state.running or (state.starts == 1 and request_id not in self._announced):
            return False
        self.active -= 1
        state.running -= 1
        state.starts -= 1
        self._forget_group(state, group)
        if not state.starts:
            del self._announced[request_id]
            self._drop(request_id)
        elif request_id not in self._announced:
            self._end_if_none_runs(state)
        return True

    def _forget_group(self, state: RequestState, group: str | None) -> None:
        """Of several requests of one id that of a tenant was refused: what runs is not its."""
        groups = state.groups
        if groups is None or group is None:
            return
        name = self._tenants.of(group)
        if name in groups:
            groups.remove(name)
        if groups and groups[0] != state.group:
            state.group = groups[0]
            self.arrivals[state.id] = Arrival(state.group, state.started_ns)

    def settle_until(
        self,
        frontier_ns: int,
        limit: int = MAX_REQUESTS,
        *,
        waits: Callable[[str], bool] = lambda request_id: False,
    ) -> list[RequestState]:
        """Mark settled the finished requests whose last step lies before the frontier; returns those.

        At most `limit` of them, and none of which `waits` holds (steps of it are known but not entered yet).
        """
        ready = (
            state
            for state in self._finished.values()
            if state.finished_ns is not None
            and state.finished_ns <= frontier_ns
            and (state.last_step_ns is None or state.last_step_ns <= frontier_ns)
            and not waits(state.id)
        )
        done = list(islice(ready, limit))
        now_ns = self._now_ns()
        old_ns = now_ns - round(KEEP_SECONDS * 1e9)
        while self._settled and next(iter(self._settled.values())) < old_ns:
            self._drop(self._settled.popitem(last=False)[0])
        for state in done:
            state.settled = True
            if state.lost:
                state.flags = flag_set(state.flags | {Fault.LOST_STEP_RECORDS})
            state.pending_prefill_joules = state.pending_decode_joules = 0.0
            if state.prompt_tokens is not None:
                state.prompt_parts = None  # it says nothing more, and takes more room than all the rest
            self._open.pop(state.id, None)
            self._finished.pop(state.id, None)
            self._settled[state.id] = now_ns
        return done

    def energy(
        self, state: RequestState, reason: str | None = None, preview: Preview | None = None
    ) -> RequestEnergy:
        """The answer for one request; `reason` says why the meter gives no joules, where it does not.

        `preview` is the estimate of its steps that are not entered in `state` yet. Before the first step
        record there are no joules, with the reason: 0 J would be a figure. A request that was aborted without
        a step and without an answer (refused, or left while it waited) used none: it settles at 0 J.
        """
        pending_prefill, pending_decode = state.pending_prefill_joules, state.pending_decode_joules
        if preview is not None and not state.settled:
            pending_prefill += preview.prefill_joules
            pending_decode += preview.decode_joules
        prefill = state.prefill_joules + pending_prefill
        decode = state.decode_joules + pending_decode
        unknown = state.unknown(preview)
        reason = self.refusal or (unknown if state.missing else reason or unknown)
        known = reason is None
        # An estimate's error is taken as a quarter of it: it rests on the model and on recent power alone.
        variance = state.variance + (0.25 * (pending_prefill + pending_decode)) ** 2
        if Fault.ESTIMATED in self.flags:
            variance += (ESTIMATED_FRACTION * (prefill + decode)) ** 2
        deviation = variance**0.5
        return RequestEnergy(
            id=state.id,
            status="settled" if state.settled else "provisional",
            joules=prefill + decode if known else None,
            prefill_joules=prefill if known else None,
            decode_joules=decode if known else None,
            uncertainty_joules=deviation if known else None,
            prompt_tokens=state.all_prompt_tokens,
            output_tokens=None if state.shared else state.output_tokens,
            source=self._source,
            flags=state.flags | self.flags | _REUSED[state.shared],
            group=state.group,
            aborted=state.aborted,
            reason=reason,
        )

    def _forget(self) -> None:
        while len(self._states) - len(self._announced) > self._max:
            if self._settled:
                self._drop(self._settled.popitem(last=False)[0])
            else:
                self._drop_open(*self._open.popitem(last=False))

    def _drop_open(self, request_id: str, state: RequestState) -> None:
        self._finished.pop(request_id, None)
        self._drop(request_id)
        self._dropped[request_id] = state.running
        while len(self._dropped) > self._max:
            self.active -= self._dropped.popitem(last=False)[1]

    def _drop(self, request_id: str) -> None:
        del self._states[request_id]
        self.arrivals[request_id] = None
