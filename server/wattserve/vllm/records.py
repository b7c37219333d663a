"""Step records in the engine core: two notes a step on the engine's thread, everything else on another.

The engine's thread only stores the time and a reference to the `SchedulerOutput` of the step. vLLM makes a
new SchedulerOutput each step and does not change it after `update_from_output` (seen in 0.24 and 0.32), so a
second thread may turn it into columns later. That thread wakes every `flush_seconds`, or soon after a request
finished (its response wants its joules), works on whole steps with C-speed operations, and sends one message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattserve.vllm import wire

logger = logging.getLogger("wattserve.vllm")

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
# One finished step: index (-1: nothing was scheduled), launch_ns, end_ns, SchedulerOutput, sampled token ids
# and the row of each request in them (both None unless tokens were drafted).
_Finished = tuple[int, int, int, Any, Any, Any]

MOST_WAITING_STEPS = 20_000
HEARTBEAT_SECONDS = 1.0
# Between two messages, however many requests finish: at full load most steps finish one.
SHORTEST_FLUSH_SECONDS = 0.01


class StepRecorder:
    """Collects the steps of one engine core and hands messages to `send`.

    `send(bytes) -> bool` must not block; False means that the message was lost, which the receiver sees from
    the numbering of the steps. `engine` tells apart the engine processes of one server.
    """

    def __init__(
        self, send: Callable[[bytes], bool], *, engine: int = 0, flush_seconds: float = 0.05
    ) -> None:
        self._send = send
        self._engine = engine
        self._flush_seconds = flush_seconds
        self._launches: dict[int, int] = {}
        self._finished: deque[_Finished] = deque()
        self._next_index = 0
        self._steps_sent = 0
        self._prompt_tokens: dict[str, int] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._broken = False
        self.lost_messages = 0

    # -- on the engine's thread

    def launched(self, output: Any) -> None:
        """A step was scheduled and is about to be launched. Costs a clock read and a dict entry."""
        self._launches[id(output)] = time.monotonic_ns()

    def ended(self, output: Any, end_ns: int, model_output: Any, *, finished: bool = False) -> None:
        """The step's result was seen at `end_ns`. Called after the scheduler took it in; `finished` where a
        request ended with it."""
        launch_ns = self._launches.pop(id(output), end_ns)
        index = -1
        if output.total_num_scheduled_tokens:
            index = self._next_index
            self._next_index += 1
        if len(self._finished) >= MOST_WAITING_STEPS:
            return  # the index is used up, so the receiver counts this step as lost
        sampled = rows = None
        if output.scheduled_spec_decode_tokens:
            sampled, rows = model_output.sampled_token_ids, model_output.req_id_to_index
        self._finished.append((index, launch_ns, end_ns, output, sampled, rows))
        if finished:
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
        next_heartbeat = 0.0
        while not self._stopping:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            now = time.monotonic()
            if self._finished or now >= next_heartbeat:
                self.flush()
                next_heartbeat = now + HEARTBEAT_SECONDS
                if not self._stopping:
                    time.sleep(SHORTEST_FLUSH_SECONDS)
        self.flush()

    def flush(self) -> None:
        """Sends one message with every step that has ended; without any, the message is a heartbeat."""
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        # Read off the steps themselves: the engine's thread counts on meanwhile.
        steps_so_far = max((step[0] + 1 for step in finished), default=0) or self._steps_sent
        try:
            steps, entries, request_ids, prompts = self._columns(finished)
        except Exception:
            # A vLLM whose objects look different: these steps are lost, which the receiver counts.
            if not self._broken:
                logger.exception("wattserve cannot read this vLLM's scheduler output; step records are lost")
            self._broken = True
            steps, entries, request_ids, prompts = self._columns([])
        self._steps_sent = steps_so_far
        message = wire.encode(
            engine=self._engine,
            steps_so_far=steps_so_far,
            steps=steps,
            entries=entries,
            request_ids=request_ids,
            prompt_tokens=prompts,
        )
        if not self._send(message):
            self.lost_messages += 1

    def _columns(self, finished: list[_Finished]) -> tuple[I64, I32, list[str], I32]:
        """(steps, entries, request ids, prompt lengths of the requests that are new here)."""
        request_of: dict[str, int] = {}
        new: dict[str, int] = {}
        times: list[tuple[int, int, int]] = []
        blocks: list[I32] = []
        batch: _Batch | None = None
        for index, launch_ns, end_ns, output, sampled, rows in finished:
            if index >= 0:
                for request in output.scheduled_new_reqs:
                    new[request.req_id] = self._prompt_tokens[request.req_id] = _prompt_length(request)
                batch = self._batch(output, request_of, batch)
                blocks.append(_entries(len(times), output, batch, sampled, rows))
                times.append((index, launch_ns, end_ns))
            for request_id in output.finished_req_ids:
                self._prompt_tokens.pop(request_id, None)
        steps = np.array(times, np.int64).reshape(-1, 3).T
        nothing = np.empty((len(wire.ENTRY_COLUMNS), 0), np.int32)
        prompts = np.full(len(request_of), wire.NOT_NEW, np.int32)
        for request_id, tokens in new.items():
            prompts[request_of[request_id]] = tokens
        return steps, np.concatenate([nothing, *blocks], axis=1), list(request_of), prompts

    def _batch(self, output: Any, request_of: dict[str, int], previous: _Batch | None) -> _Batch:
        """Who is in the step; the arrays of the previous step again where the requests are the same ones."""
        ids = output.scheduled_cached_reqs.req_ids
        new = output.scheduled_new_reqs
        if previous is not None and not new and ids == previous.ids:
            return previous
        if new:
            ids = ids + [request.req_id for request in new]
        count = len(ids)
        rows = np.fromiter((request_of.setdefault(i, len(request_of)) for i in ids), np.int32, count)
        # A request this thread never saw starting counts as past its prompt.
        prompt = np.fromiter((self._prompt_tokens.get(i, 0) for i in ids), np.int32, count)
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


def _entries(step: int, output: Any, batch: _Batch, sampled: Any, rows: Any) -> I32:
    """The entries of one step, int32 (8, n) in the order of `wire.ENTRY_COLUMNS`."""
    ids = batch.ids
    count = len(ids)
    cached = output.scheduled_cached_reqs
    tokens = np.fromiter(map(output.num_scheduled_tokens.__getitem__, ids), np.int32, count)
    context = np.empty(count, np.int32)
    old = len(cached.req_ids)
    context[:old] = cached.num_computed_tokens
    from_cache = np.zeros(count, np.int32)
    if count > old:
        context[old:] = [request.num_computed_tokens for request in output.scheduled_new_reqs]
        from_cache[old:] = context[old:]
    if cached.resumed_req_ids:  # preempted before: what it starts with again is what the cache still held
        for at, request_id in enumerate(cached.req_ids):
            if request_id in cached.resumed_req_ids:
                from_cache[at] = context[at]
    drafts = np.zeros(count, np.int32)
    accepted = np.zeros(count, np.int32)
    if output.scheduled_spec_decode_tokens:
        for at, request_id in enumerate(ids):
            drafts[at], accepted[at] = _speculation(output, request_id, sampled, rows)
    # One token at a time past the prompt is decoding; everything else fills the KV cache, also the tokens a
    # preempted request computes again.
    prefill = (context < batch.prompt) | (tokens - drafts > 1)
    block = np.empty((len(wire.ENTRY_COLUMNS), count), np.int32)
    block[0] = step
    block[1] = batch.request
    block[2] = np.where(prefill, tokens, 0)
    block[3] = np.where(prefill, 0, tokens)
    block[4] = context
    block[5] = from_cache
    block[6] = drafts
    block[7] = accepted
    return block


def _speculation(output: Any, request_id: str, sampled: Any, rows: Any) -> tuple[int, int]:
    """How many tokens were proposed for the request in this step, and how many of them it kept."""
    draft = output.scheduled_spec_decode_tokens.get(request_id)
    if not draft:
        return 0, 0
    row = rows.get(request_id) if rows else None
    return len(draft), max(0, len(sampled[row]) - 1) if row is not None and sampled else 0
