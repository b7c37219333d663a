"""Step records in the engine core: two notes a step on the engine's thread, everything else on another.

The engine's thread only stores the time and a reference to the `SchedulerOutput` of the step. vLLM makes a
new SchedulerOutput each step and does not change it after `update_from_output` (seen in 0.24 and 0.32), so a
second thread may turn it into columns later. That thread wakes by itself, and is woken by the engine's only
where a request began and ended since (its response waits for its first record). It shares the interpreter
lock with the engine's thread, so it works while the device does: a while after the last launch, on all steps
that have ended, those that decode one token for the same requests in one operation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from wattmeter.arrays import I32, I64
from wattmeter.steps.batch import ENTRY_COLUMNS, STEP_COLUMNS
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
# Columns that are all zeros in most messages need not be sent.
OPTIONAL_COLUMNS = ("cached_tokens", "draft_tokens", "accepted_tokens")


class StepRecorder:
    """Collects the steps of one engine core and hands messages to `send`.

    `send(frames) -> bool` must not block; False means that the message was lost, which the meter sees from
    the numbering of the steps. `engine` is the engine's name. `hello(next_step)` gives the frames that say
    who the engine is; they go out first and then with each heartbeat. `randomised` is False where vLLM adds
    no random suffix to its request ids.
    """

    def __init__(
        self,
        send: Callable[[Frames], bool],
        *,
        engine: str = "",
        hello: Callable[[int], Frames] | None = None,
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
        self._prompt_tokens: dict[str, int] = {}
        # The id that clients know of each engine request that runs.
        self._names: dict[str, str] = {}
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
                self._send(self._hello(self._steps_sent))
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
            steps, entries, request_ids, prompts = self._columns(finished)
        except Exception:
            # A vLLM whose objects look different: these steps are lost, which the meter counts.
            if not self._broken:
                logger.exception("wattserve cannot read this vLLM's scheduler output; step records are lost")
            self._broken = True
            steps, entries, request_ids, prompts = self._columns([])
        self._steps_sent = next_step
        columns = dict(zip(STEP_COLUMNS, steps, strict=True))
        columns |= dict(zip(ENTRY_COLUMNS, entries, strict=True))
        for name in OPTIONAL_COLUMNS:
            if not columns[name].any():
                del columns[name]
        frames = messages.encode_steps(
            engine=self._engine,
            next_step=next_step,
            columns=columns,
            request_ids=request_ids,
            prompts=prompts,
            complete_ns=complete_ns,
        )
        if not self._send(frames):
            self.lost_messages += 1

    def _columns(self, finished: list[_Finished]) -> tuple[I64, I32, list[str], list[tuple[int, str, int]]]:
        """(steps, entries, request ids, prompts of the requests that are new here), as the protocol has
        them."""
        request_of: dict[str, int] = {}
        new: dict[str, int] = {}
        times: list[tuple[int, int, int]] = []
        blocks: list[I32] = []
        ended: list[str] = []
        batch: _Batch | None = None
        alike: list[Sequence[int]] = []  # contexts of the last steps, where they decode for the same requests
        for index, launch_ns, end_ns, output, sampled, rows in finished:
            if index >= 0:
                for request in output.scheduled_new_reqs:
                    new[request.req_id] = self._prompt_tokens[request.req_id] = _prompt_length(request)
                before, batch = batch, self._batch(output, request_of, batch)
                if alike and (batch is not before or not _is_plain(output, batch)):
                    blocks.append(_plain_entries(len(times) - len(alike), before, alike))
                    alike = []
                if _is_plain(output, batch):
                    alike.append(output.scheduled_cached_reqs.num_computed_tokens)
                else:
                    blocks.append(_entries(len(times), output, batch, sampled, rows))
                times.append((index, launch_ns, end_ns))
            for request_id in output.finished_req_ids:
                self._prompt_tokens.pop(request_id, None)
                ended.append(request_id)
        if alike:
            blocks.append(_plain_entries(len(times) - len(alike), batch, alike))
        steps = np.array(times, np.int64).reshape(-1, len(STEP_COLUMNS)).T
        nothing = np.empty((len(ENTRY_COLUMNS), 0), np.int32)
        prompts = [(request_of[name], prompt_of(name), tokens) for name, tokens in new.items()]
        ids = [self._name(engine_id) for engine_id in request_of]
        for engine_id in ended:
            self._names.pop(engine_id, None)
        return steps, np.concatenate([nothing, *blocks], axis=1), ids, prompts

    def _name(self, engine_id: str) -> str:
        name = self._names.get(engine_id)
        if name is None:
            name = self._names[engine_id] = request_id_of(engine_id, randomised=self._randomised)
        return name

    def _batch(self, output: Any, request_of: dict[str, int], previous: _Batch | None) -> _Batch:
        """Who is in the step; the arrays of the previous step again where the requests are the same ones."""
        ids = output.scheduled_cached_reqs.req_ids
        new = output.scheduled_new_reqs
        if previous is not None and not new and ids == previous.ids:
            return previous
        if new:
            ids = ids + [request.req_id for request in new]
        count = len(ids)
        for request_id in ids:
            if request_id not in request_of:
                request_of[request_id] = len(request_of)
        rows = np.fromiter(map(request_of.__getitem__, ids), np.int32, count)
        # A request this thread never saw starting counts as past its prompt.
        prompt = np.fromiter(map(self._prompt_tokens.get, ids, repeat(0)), np.int32, count)
        return _Batch(ids, rows, prompt)


@dataclass(slots=True)
class _Batch:
    """The requests of a step: ids, their index in the message, their prompt lengths; arrays of shape (n,)."""

    ids: list[str]
    request: I32
    prompt: I32


def _prompt_length(request: Any) -> int:
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return int(request.prompt_embeds.shape[0])


def _is_plain(output: Any, batch: _Batch) -> bool:
    """Whether the step computes one token for each of its requests, all of which ran before."""
    return (
        output.total_num_scheduled_tokens == len(batch.ids)
        and not output.scheduled_new_reqs
        and not output.scheduled_spec_decode_tokens
        and not output.scheduled_cached_reqs.resumed_req_ids
    )


def _plain_entries(first: int, batch: _Batch | None, contexts: list[Sequence[int]]) -> I32:
    """The entries of such steps from number `first` on, int32 (8, steps x n) in the order of `ENTRY_COLUMNS`;
    `contexts` are those of each step's requests."""
    assert batch is not None
    shape = (len(contexts), len(batch.ids))
    block = np.zeros((len(ENTRY_COLUMNS), *shape), np.int32)
    columns = dict(zip(ENTRY_COLUMNS, block, strict=True))
    columns["step"][:] = np.arange(first, first + len(contexts))[:, None]
    columns["request"][:] = batch.request
    columns["context_tokens"][:] = contexts
    prefill = columns["context_tokens"] < batch.prompt
    columns["prefill_tokens"][:] = prefill
    columns["decode_tokens"][:] = ~prefill
    return block.reshape(len(ENTRY_COLUMNS), -1)


def _entries(step: int, output: Any, batch: _Batch, sampled: Any, rows: Any) -> I32:
    """The entries of one step, int32 (8, n) in the order of `ENTRY_COLUMNS`."""
    ids = batch.ids
    count = len(ids)
    cached = output.scheduled_cached_reqs
    tokens = np.fromiter(map(output.num_scheduled_tokens.__getitem__, ids), np.int32, count)
    block = np.zeros((len(ENTRY_COLUMNS), count), np.int32)
    columns = dict(zip(ENTRY_COLUMNS, block, strict=True))
    context, from_cache = columns["context_tokens"], columns["cached_tokens"]
    old = len(cached.req_ids)
    context[:old] = cached.num_computed_tokens
    if count > old:
        context[old:] = [request.num_computed_tokens for request in output.scheduled_new_reqs]
        from_cache[old:] = context[old:]
    if cached.resumed_req_ids:  # preempted before: what it starts with again is what the cache still held
        for at, request_id in enumerate(cached.req_ids):
            if request_id in cached.resumed_req_ids:
                from_cache[at] = context[at]
    drafts, accepted = columns["draft_tokens"], columns["accepted_tokens"]
    if output.scheduled_spec_decode_tokens:
        for at, request_id in enumerate(ids):
            drafts[at], accepted[at] = _speculation(output, request_id, sampled, rows)
    # One token at a time past the prompt is decoding; everything else fills the KV cache, also the tokens a
    # preempted request computes again.
    prefill = (context < batch.prompt) | (tokens - drafts > 1)
    columns["step"][:] = step
    columns["request"][:] = batch.request
    np.multiply(tokens, prefill, out=columns["prefill_tokens"])
    np.multiply(tokens, ~prefill, out=columns["decode_tokens"])
    return block


def _speculation(output: Any, request_id: str, sampled: Any, rows: Any) -> tuple[int, int]:
    """How many tokens were proposed for the request in this step, and how many of them it kept."""
    draft = output.scheduled_spec_decode_tokens.get(request_id)
    if not draft:
        return 0, 0
    row = rows.get(request_id) if rows else None
    return len(draft), max(0, len(sampled[row]) - 1) if row is not None and sampled else 0
