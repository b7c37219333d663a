"""The requests of the account: who they are, what was settled for each, what is still an estimate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wattmeter.answers import RequestEnergy
from wattmeter.faults import Fault

F64 = npt.NDArray[np.float64]

MAX_REQUESTS = 100_000


@dataclass(slots=True)
class RequestState:
    """What is known of one request; joules are above idle.

    `prompt_tokens` is what the server told. `prompt_parts` are the prompts that its step records named: those
    of the parts (several prompts are one request) that have run.

    `running` counts starts without an end. More than one request is `shared` here where an id was used again
    before its joules were settled: step records name the id alone, so their joules are one sum, and flagged;
    tokens of one of them beside it would mislead, so there are none. `answered`: one of them was not aborted.
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
    running: int = 0
    shared: bool = False
    answered: bool = False
    flags: set[Fault] = field(default_factory=set)
    prompt_parts: dict[str, int] | None = None
    generation: int = 0
    fresh_prefill_joules: float = 0.0
    fresh_decode_joules: float = 0.0

    def estimate(self, prefill_joules: float, decode_joules: float, generation: int) -> None:
        """Replace the estimate of the steps from before `generation` began; what was added since stays."""
        self.pending_prefill_joules, self.pending_decode_joules = prefill_joules, decode_joules
        if self.generation == generation:
            self.pending_prefill_joules += self.fresh_prefill_joules
            self.pending_decode_joules += self.fresh_decode_joules

    @property
    def all_prompt_tokens(self) -> int | None:
        """As told, or else as recorded; None where records were lost, for a part may be among them."""
        if self.shared:
            return None
        if self.prompt_tokens is not None or self.prompt_parts is None:
            return self.prompt_tokens
        return None if Fault.LOST_STEP_RECORDS in self.flags else sum(self.prompt_parts.values())

    @property
    def unknown(self) -> str | None:
        """Why the joules of the request are not known yet or never will be; None where they are."""
        if self.missing:
            return "the meter did not cover all of this request's steps"
        if self.last_step_ns is None and not self.settled:
            return "no step of this request has been recorded yet"
        if self.lost:
            return "no step of this request was recorded"
        return None

    @property
    def lost(self) -> bool:
        """It answered, so it ran, but no record says so: 0 J would be wrong.

        A stream may end well without telling its tokens; only what was aborted may not have run.
        """
        return self.last_step_ns is None and (bool(self.output_tokens) or not self.aborted)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Modelled joules of steps that are not settled, (R,) each, in the order of `request_ids`."""

    request_ids: tuple[str, ...]
    prefill_joules: F64
    decode_joules: F64


class RequestBook:
    """All requests, at most MAX_REQUESTS: those settled first are forgotten first, open ones last of all.

    Of an open one that was forgotten (so many were open) the id is kept: heard of again, it has no number.
    """

    def __init__(
        self, source: str, *, max_requests: int = MAX_REQUESTS, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._now_ns = now_ns
        self._source = source
        self._max = max_requests
        self._states: OrderedDict[str, RequestState] = OrderedDict()
        self._open: OrderedDict[str, RequestState] = OrderedDict()
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._dropped: OrderedDict[str, int] = OrderedDict()  # how often it counts as active
        self.active = 0
        self.flags: frozenset[Fault] = frozenset()

    def get(self, request_id: str) -> RequestState | None:
        return self._states.get(request_id)

    def ensure(self, request_id: str) -> RequestState:
        """The state of a request, made when first heard of (a step may come before `request_started`)."""
        state = self._states.get(request_id)
        if state is None:
            state = RequestState(request_id, started_ns=self._now_ns())
            if request_id in self._dropped:
                state.running = self._dropped.pop(request_id)
                # The joules of its steps so far are gone.
                state.missing = True
                state.flags.add(Fault.LOST_STEP_RECORDS)
            self._states[request_id] = self._open[request_id] = state
            self._forget()
        return state

    def start(self, request_id: str, prompt_tokens: int | None, group: str) -> None:
        known = request_id in self._states
        state = self.ensure(request_id)
        if known and state.finished_ns is not None and state.settled:
            # The client used an id again: the new request takes its place.
            del self._states[request_id], self._settled[request_id]
            state = self.ensure(request_id)
        if state.running or state.finished_ns is not None:
            state.shared = True
            state.flags.add(Fault.REQUEST_ID_REUSED)
            state.prompt_tokens = state.output_tokens = state.finished_ns = None
        elif prompt_tokens is not None:
            state.prompt_tokens = prompt_tokens
        state.group = group
        state.running += 1
        self.active += 1

    def add_prompt(self, request_id: str, part: str, tokens: int) -> None:
        """Note the prompt of a part of a request; the samples (n) of one prompt are one part."""
        state = self.ensure(request_id)
        if state.prompt_parts is None:
            state.prompt_parts = {}
        state.prompt_parts[part] = tokens

    def groups(self, names: Iterable[str]) -> list[str]:
        """The group of each request; "" for one that is not known (any more)."""
        states = self._states
        return [states[name].group if name in states else "" for name in names]

    def add_steps(self, steps: Iterable[tuple[str, int, float, float]], generation: int) -> None:
        """Note of each request in new steps (id, end of its last one, estimated prefill and decode joules).

        `generation` as in `RequestState.estimate`. Answers wait for this, so it calls as little as it can.
        """
        states = self._states
        for name, end_ns, prefill, decode in steps:
            state = states.get(name) or self.ensure(name)
            if end_ns > (state.last_step_ns or 0):
                state.last_step_ns = end_ns
            if state.settled:
                continue
            if state.generation == generation:
                state.fresh_prefill_joules += prefill
                state.fresh_decode_joules += decode
            else:
                state.generation = generation
                state.fresh_prefill_joules, state.fresh_decode_joules = prefill, decode
            state.pending_prefill_joules += prefill
            state.pending_decode_joules += decode

    def finish(
        self, request_id: str, output_tokens: int | None, prompt_tokens: int | None, aborted: bool
    ) -> None:
        state = self.ensure(request_id)
        if state.finished_ns is not None:
            return
        if state.running:
            state.running -= 1
            self.active -= 1
        state.answered = state.answered or not aborted
        state.aborted = not state.answered
        if not state.shared:
            if output_tokens is not None:
                state.output_tokens = output_tokens
            if prompt_tokens is not None:
                state.prompt_tokens = prompt_tokens
        if not state.running:
            state.finished_ns = self._now_ns()

    def settle_until(self, frontier_ns: int) -> list[RequestState]:
        """Mark settled every finished request whose last step lies before the frontier; returns those."""
        done = [
            state
            for state in self._open.values()
            if state.finished_ns is not None
            and state.finished_ns <= frontier_ns
            and (state.last_step_ns is None or state.last_step_ns <= frontier_ns)
        ]
        for state in done:
            state.settled = True
            if state.lost:
                state.flags.add(Fault.LOST_STEP_RECORDS)
            state.pending_prefill_joules = state.pending_decode_joules = 0.0
            self._open.pop(state.id, None)
            self._settled[state.id] = None
        return done

    def open_states(self) -> list[RequestState]:
        return list(self._open.values())

    def energy(self, state: RequestState, reason: str | None = None) -> RequestEnergy:
        """The answer for one request; `reason` says why the meter gives no joules, where it does not.

        Before the first step record there are no joules, with the reason: 0 J would be a figure. A request
        that was aborted without a step and without an answer (refused, or left while it waited) used none:
        it settles at 0 J.
        """
        prefill = state.prefill_joules + state.pending_prefill_joules
        decode = state.decode_joules + state.pending_decode_joules
        pending = state.pending_prefill_joules + state.pending_decode_joules
        reason = state.unknown if state.missing else reason or state.unknown
        known = reason is None
        # An estimate's error is taken as a quarter of it: it rests on the model and on recent power alone.
        deviation = (state.variance + (0.25 * pending) ** 2) ** 0.5
        return RequestEnergy(
            id=state.id,
            status="settled" if state.settled else "provisional",
            joules=prefill + decode if known else None,
            prefill_joules=prefill if known else None,
            decode_joules=decode if known else None,
            uncertainty_joules=deviation if known else None,
            prompt_tokens=state.all_prompt_tokens,
            output_tokens=state.output_tokens,
            source=self._source,
            flags=frozenset(state.flags | self.flags),
            group=state.group,
            aborted=state.aborted,
            reason=reason,
        )

    def _forget(self) -> None:
        while len(self._states) > self._max:
            if self._settled:
                del self._states[self._settled.popitem(last=False)[0]]
                continue
            request_id, state = self._open.popitem(last=False)
            del self._states[request_id]
            self._dropped[request_id] = state.running
        while len(self._dropped) > self._max:
            self.active -= self._dropped.popitem(last=False)[1]
