"""Step records in the engine core: two notes a step on the engine's thread, everything else on another.

The engine's thread only stores the time and a reference to the `SchedulerOutput` of the step. vLLM makes a
new SchedulerOutput each step and does not change it after `update_from_output` (seen in 0.24 and 0.32), so a
second thread may turn it into columns later. That thread wakes by itself, and is woken by the engine's only
where a request began and ended since (its response waits for its first record). It shares the interpreter
lock with the engine's thread, so it works while the device does: a while after the last launch, on all steps
that have ended. Each time that it lets go of the lock it has to take it from the engine's thread again, which
costs that thread more than the work does: so everything is done in calls that keep the lock (numpy lets it go
on more than 500 elements), and sent as one frame. What a step's tokens are is left to the meter to find out.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from wattserve.protocol import messages
from wattserve.protocol.messages import Frames
from wattserve.vllm.request_ids import prompt_of, request_id_of

logger = logging.getLogger("wattserve.vllm")

# One finished step: index (-1: nothing was scheduled), launch_ns, end_ns, SchedulerOutput, sampled token ids
# and the row of each request in them (both None unless tokens were drafted).
_Finished = tuple[int, int, int, Any, Any, Any]

MOST_WAITING_STEPS = 20_000
HEARTBEAT_SECONDS = 1.0
# Between two messages, however many requests finish: at full load most steps finish one.
SHORTEST_FLUSH_SECONDS = 0.02
# The longest that a message waits for a moment in which the engine waits for the device.
LONGEST_PAUSE_SECONDS = 0.01


class StepRecorder:
    """Collects the steps of one engine core and hands messages to `send`.

    `send(frames) -> bool` must not block; False means that the message was lost, which the meter sees from
    the numbering of the steps. `engine` is the engine's name. `hello(next_step)` says who the engine is, on
    the recorder's thread: first of all, and then with each heartbeat. `randomised` is False where vLLM adds
    no random suffix to its request ids.
    """

    def __init__(
        self,
        send: Callable[[Frames], bool],
        *,
        engine: str = "",
        hello: Callable[[int], object] | None = None,
        randomised: bool = True,
        flush_seconds: float = 0.05,
    ) -> None:
        self._send = send
        self._engine = engine
        self._hello = hello
        self._randomised = randomised
        self._flush_seconds = flush_seconds
        self._launches: dict[int, int] = {}
        self._finished: deque[_Finished] = deque()
        self._next_index = 0
        self._steps_sent = 0
        self._running = _Running(self._name)
        # Requests whose first steps are not sent yet, and whether any request ended since the last message.
        self._unsent: set[str] = set()
        self._ended = False
        # When the device was given its last step, and how long the last step took.
        self._launched_ns = 0
        self._step_ns = 0
        # Every step that had ended by then is in `_finished`, or was sent.
        self._noted_until_ns = time.monotonic_ns()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._broken = False
        self.lost_messages = 0

    # -- on the engine's thread

    def launched(self, output: Any) -> None:
        """A step was scheduled and is about to be launched. Costs a clock read and a dict entry."""
        self._launches[id(output)] = self._launched_ns = time.monotonic_ns()

    def ended(self, output: Any, end_ns: int, model_output: Any, *, finished: Collection[str] = ()) -> None:
        """The step's result was seen at `end_ns`. Called after the scheduler took it in; `finished` are the
        requests that ended with it."""
        launch_ns = self._launches.get(id(output), end_ns)
        self._step_ns = end_ns - launch_ns
        if output.scheduled_new_reqs:
            self._unsent.update([request.req_id for request in output.scheduled_new_reqs])
        index = -1
        if output.total_num_scheduled_tokens:
            index = self._next_index
            self._next_index += 1
        if len(self._finished) < MOST_WAITING_STEPS:  # otherwise the receiver counts this step as lost
            sampled = rows = None
            if output.scheduled_spec_decode_tokens:
                sampled, rows = model_output.sampled_token_ids, model_output.req_id_to_index
            self._finished.append((index, launch_ns, end_ns, output, sampled, rows))
        # In this order: a message that is made meanwhile is complete up to here at the most.
        self._noted_until_ns = end_ns
        self._launches.pop(id(output), None)
        if finished:
            self._ended = True
            if not self._unsent.isdisjoint(finished):
                self._wake.set()

    # -- on the recorder's thread

    def start(self) -> None:
        """Starts the recorder's thread."""
        self._thread = threading.Thread(target=self._run, name="wattserve-steps", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sends what is waiting and ends the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self) -> None:
        next_heartbeat = next_hello = next_flush = 0.0
        shortest = min(self._flush_seconds, SHORTEST_FLUSH_SECONDS)
        while not self._stopping:
            woken = self._wake.wait(shortest if self._finished else self._flush_seconds)
            self._wake.clear()
            now = time.monotonic()
            if self._hello is not None and now >= next_hello:
                self._hello(self._steps_sent)
                next_hello = now + HEARTBEAT_SECONDS
            due = woken or self._ended or now >= next_flush
            if (self._finished and due) or now >= next_heartbeat:
                self._let_the_engine_launch()
                self.flush()
                next_heartbeat, next_flush = now + HEARTBEAT_SECONDS, now + self._flush_seconds
        self.flush()

    def _let_the_engine_launch(self) -> None:
        """Wait until the engine's thread has prepared a step and waits for the device, as far as can be told:
        half a step after the last launch or end."""
        busy_ns = self._launched_ns + self._step_ns // 2 - time.monotonic_ns()
        if busy_ns > 0 and not self._stopping:
            time.sleep(min(busy_ns * 1e-9, LONGEST_PAUSE_SECONDS))

    def flush(self) -> None:
        """Sends one message with every step that has ended; without any, the message is a heartbeat."""
        # A step that was launched and is not noted yet may have ended by now; of no other one that is so.
        complete_ns = self._noted_until_ns if self._launches else time.monotonic_ns()
        self._ended = False
        self._unsent.clear()
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        # Read off the steps themselves: the engine's thread counts on meanwhile.
        next_step = max((step[0] + 1 for step in finished), default=0) or self._steps_sent
        try:
            told = self._told(finished)
        except Exception:
            # A vLLM whose objects look different: these steps are lost, which the meter counts.
            if not self._broken:
                logger.exception("wattserve cannot read this vLLM's scheduler output; step records are lost")
            self._broken = True
            told = self._told([])
        self._steps_sent = next_step
        frame = messages.encode_scheduled(
            told, engine=self._engine, next_step=next_step, complete_ns=complete_ns
        )
        if not self._send([frame]):
            self.lost_messages += 1

    def _told(self, finished: list[_Finished]) -> messages.Scheduled:
        """What the meter is told of these steps."""
        told = messages.Scheduled()
        running = self._running
        running.told = None
        for index, launch_ns, end_ns, output, sampled, rows in finished:
            # These ended before the step; one of the same name may begin in it.
            for engine_id in output.finished_req_ids:
                running.known.pop(engine_id, None)
            new = output.scheduled_new_reqs
            for request in new:
                running.known[request.req_id] = (self._name(request.req_id), _prompt_length(request))
            if index >= 0:
                cached = output.scheduled_cached_reqs
                ids, contexts = cached.req_ids, cached.num_computed_tokens
                first = len(told.request)
                if cached.resumed_req_ids:  # preempted before: it starts with what the cache still held
                    told.from_cache += [first + ids.index(name) for name in cached.resumed_req_ids]
                if new:
                    told.from_cache += range(first + len(ids), first + len(ids) + len(new))
                    contexts = contexts + [request.num_computed_tokens for request in new]
                    ids = ids + [request.req_id for request in new]
                running.follow(ids, output.finished_req_ids)
                if running.told is None:
                    running.begin(told)
                told.prompts += [
                    (running.rows[row], prompt_of(name), running.known[name][1])
                    for row, name in enumerate(ids[len(ids) - len(new) :], len(ids) - len(new))
                ]
                told.index.append(index)
                told.launch_ns.append(launch_ns)
                told.end_ns.append(end_ns)
                told.entries.append(len(ids))
                told.request.extend(running.rows)
                told.context_tokens.extend(array("i", contexts))
                told.scheduled_tokens.extend(_scheduled(output, ids))
                drafted = output.scheduled_spec_decode_tokens
                if drafted:
                    told.drafts += [
                        (first + at, *_speculation(output, name, sampled, rows))
                        for at, name in enumerate(ids)
                        if name in drafted
                    ]
        return told

    def _name(self, engine_id: str) -> str:
        return request_id_of(engine_id, randomised=self._randomised)


class _Running:
    """Who was in the last step, in the scheduler's order: the engine's ids, and of each the id that clients
    know, the length of its prompt and its row in the message that is being made.

    It is followed from step to step: hundreds of requests stay where they were while one comes or goes.
    `known` are name and prompt length by the engine's id, of requests that were seen starting.
    """

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self.known: dict[str, tuple[str, int]] = {}
        self.told: messages.Scheduled | None = None
        self.rows: array[int] = array("i")
        self._name_of = name_of
        self._ids: list[str] = []
        self._names: list[str] = []
        self._prompts: array[int] = array("i")
        # The engine's ids of the message's rows.
        self._in_message: list[str] = []

    def follow(self, ids: list[str], finished: Collection[str]) -> None:
        """Take in who is in the next step; those that the message does not know yet get its next rows."""
        if ids == self._ids:
            return
        for engine_id in finished:
            if engine_id in self._ids:
                at = self._ids.index(engine_id)
                for column in (self._ids, self._names, self._prompts, self.rows):
                    del column[at]
        self._add(ids[len(self._ids) :])
        if ids != self._ids:  # preempted, resumed, in another order
            known_rows = dict(zip(self._in_message, range(len(self._in_message)), strict=True))
            self._ids, self._names = [], []
            self._prompts, self.rows = array("i"), array("i")
            self._add(ids, known_rows)

    def begin(self, told: messages.Scheduled) -> None:
        """A message begins, with those who are in its first step."""
        self.told = told
        self._in_message = self._ids.copy()
        self.rows = array("i", range(len(self._ids)))
        told.request_ids = self._names.copy()
        told.prompt_tokens = self._prompts[:]

    def _add(self, ids: list[str], known_rows: Mapping[str, int] = MappingProxyType({})) -> None:
        for engine_id in ids:
            # A request that this thread never saw starting counts as past its prompt.
            name, prompt = self.known.get(engine_id) or (self._name_of(engine_id), 0)
            row = known_rows.get(engine_id)
            if row is None:
                row = len(self._in_message)
                self._in_message.append(engine_id)
                if self.told is not None:
                    self.told.request_ids.append(name)
                    self.told.prompt_tokens.append(prompt)
            self._ids.append(engine_id)
            self._names.append(name)
            self._prompts.append(prompt)
            self.rows.append(row)


def _scheduled(output: Any, ids: list[str]) -> array[int]:
    """How many tokens the step computes for each of `ids`."""
    tokens = output.num_scheduled_tokens
    if output.total_num_scheduled_tokens == len(ids):
        return array("i", (1,)) * len(ids)
    new = [tokens[request.req_id] for request in output.scheduled_new_reqs]
    old = len(ids) - len(new)
    if output.total_num_scheduled_tokens - sum(new) == old:
        return array("i", (1,)) * old + array("i", new)
    return array("i", list(map(tokens.__getitem__, ids)))


def _prompt_length(request: Any) -> int:
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return int(request.prompt_embeds.shape[0])


def _speculation(output: Any, request_id: str, sampled: Any, rows: Any) -> tuple[int, int]:
    """How many tokens were proposed for the request in this step, and how many of them it kept."""
    draft = output.scheduled_spec_decode_tokens.get(request_id)
    if not draft:
        return 0, 0
    row = rows.get(request_id) if rows else None
    return len(draft), max(0, len(sampled[row]) - 1) if row is not None and sampled else 0
