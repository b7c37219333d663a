"""Beside an engine that sends no step records: what each response cost, estimated from its stream.

The proxy says what passes; `StepsFromStreams` makes steps of it; and the node divides joules by them as it
divides them by an engine's own records, flagged `estimated`. The proxy's event loop only notes times and
counts: what takes longer is done in a thread of its own, in the order in which it was noted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from wattmeter.endpoints import METERED_PATHS, POOLED_PATHS
from wattmeter.schema import no_energy
from wattmeter.steps.from_streams import StepsFromStreams
from wattserve.http.middleware import usage_fields
from wattserve.meter.engines import Node, RefusedError
from wattserve.protocol.host import boot_id
from wattserve.protocol.messages import EngineHello, RequestFinished, RequestStarted, StepRecords

logger = logging.getLogger("wattserve.meter")

SOFTWARE = "engine without step records"
TICK_SECONDS = 0.05
NODE_TICK_SECONDS = 0.25
# Bytes of text a token, before a response has said how many tokens its prompt had.
FIRST_BYTES_PER_TOKEN = 4.0
# What one response teaches of bytes a token and tokens an event.
LEARNING_RATE = 0.1
_NAMED_TOKENS = re.compile(rb"^event: ?(?:content_block_delta|response\.\w+\.delta)\s*$", re.M)
# Where the bodies of the endpoints have their text.
_TEXTS = (
    "prompt", "input", "instructions", "system", "query", "queries", "documents", "items",
    "text_1", "text_2", "data_1", "data_2",
)  # fmt: skip


@dataclass(slots=True)
class _Request:
    """What was noted of a request under way."""

    streamed: bool = False
    text_bytes: int = 0
    events: int = 0


class StreamEstimates:
    """Source of energy for the middleware and observer of the proxy, both on the proxy's event loop.

    `paths` are those of requests that are metered.
    """

    paths = METERED_PATHS

    def __init__(self, node: Node) -> None:
        self._node = node
        self._engine = f"proxy-{uuid.uuid4().hex}"
        self._server = self._engine
        self._steps = StepsFromStreams()
        self._requests: dict[str, _Request] = {}
        self._bytes_per_token = FIRST_BYTES_PER_TOKEN
        self._tokens_per_event = 1.0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wattserve-estimates", daemon=True)
        self._flusher: asyncio.Task[None] | None = None
        self._refused: str | None = None

    # --- life -----------------------------------------------------------------------------------------------

    def start(self, model: str = "") -> None:
        """Takes the node's devices as the engine's; needs a running event loop. `model` is what it serves."""
        now = time.monotonic_ns()
        # It runs already: what it used to start is not known.
        hello = EngineHello(
            self._engine, self._server, model, boot_id(), now, now, next_step=1, software=SOFTWARE
        )
        try:
            self._node.hello(hello, estimated=True)
        except RefusedError as error:
            self._refused = str(error)
            logger.warning("responses get no estimate of their energy: %s", error)
        self._thread.start()
        self._flusher = asyncio.create_task(self._flush_again())

    async def stop(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            self._work.put(None)
            await asyncio.to_thread(self._thread.join, 5.0)

    # --- what the middleware says ---------------------------------------------------------------------------

    def request_started(self, request_id: str, *, group: str = "") -> None:
        self._requests[request_id] = _Request()
        self._steps.started(request_id, time.monotonic_ns())
        message = RequestStarted(self._server, request_id, group)
        self._work.put(lambda: self._node.request_started(message))

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
        noted = self._requests.pop(request_id, None)
        if noted is not None:
            self._learn(noted, prompt_tokens, output_tokens)
        self._steps.finished(request_id, time.monotonic_ns())
        self._flush()
        message = RequestFinished(
            self._server, request_id, prompt_tokens, output_tokens, aborted, refused, group
        )
        self._work.put(lambda: self._node.request_finished(message))

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        if self._refused is not None:
            return no_energy(f"the meter refuses this engine: {self._refused}")
        self._flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()

        def ask() -> None:
            try:
                found = usage_fields(self._node.request_energy(request_id, self._server))
            except Exception as error:
                logger.exception("request %s: its energy could not be told", request_id)
                found = no_energy(f"the meter failed: {error}")
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(found))

        self._work.put(ask)
        return await answer

    # --- what the proxy says --------------------------------------------------------------------------------

    def body(self, request_id: str, path: str, body: bytes) -> None:
        noted = self._requests.get(request_id)
        if noted is None:
            return
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return
        if not isinstance(asked, dict):
            return
        known, noted.text_bytes = prompt_size(asked)
        noted.streamed = asked.get("stream") is True
        limits = (asked.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
        limit = next((found for found in limits if found is not None), None)
        self._steps.described(
            request_id,
            prompt_tokens=known + round(noted.text_bytes / self._bytes_per_token),
            streamed=noted.streamed,
            # What generates nothing, as an embedding, is computed in one pass over its input.
            most_tokens=1 if path in POOLED_PATHS else limit if _is_count(limit) else None,
        )

    def part(self, request_id: str, part: bytes, read_ns: int) -> None:
        noted = self._requests.get(request_id)
        if noted is None or not noted.streamed:
            return
        if part.startswith(b"event:") or b"\nevent:" in part:
            # Events with names: those of /v1/responses and /v1/messages that carry a piece of the output.
            events = len(_NAMED_TOKENS.findall(part))
        else:
            events = part.count(b"data: {") or part.count(b"data:{")
            if b'"choices":[]' in part:
                events -= 1  # the usage alone
        if events > 0:
            noted.events += events
            self._steps.tokens(request_id, read_ns, max(1, round(events * self._tokens_per_event)))

    def _learn(self, noted: _Request, prompt_tokens: int | None, output_tokens: int | None) -> None:
        if prompt_tokens and noted.text_bytes:
            seen = noted.text_bytes / prompt_tokens
            self._bytes_per_token += LEARNING_RATE * (min(max(seen, 1.0), 16.0) - self._bytes_per_token)
        if output_tokens and noted.events > 1:
            seen = output_tokens / noted.events
            self._tokens_per_event += LEARNING_RATE * (min(max(seen, 1.0), 64.0) - self._tokens_per_event)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _flush_again(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._flush()

    def _flush(self) -> None:
        """Hands on the steps that have ended."""
        if self._refused is not None:
            return
        now = time.monotonic_ns()
        batch = self._steps.take(now)
        records = StepRecords(
            self._engine, self._steps.steps, batch, complete_ns=self._steps.complete_ns(now)
        )
        self._work.put(lambda: self._take(records))

    def _take(self, records: StepRecords) -> None:
        self._node.steps(records)

    def _run(self) -> None:
        next_tick = 0.0
        while True:
            work = self._work.get()
            if work is None:
                return
            try:
                work()
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + NODE_TICK_SECONDS
                    self._node.tick()
            except Exception:
                logger.exception("the proxy's notes could not be taken; it goes on")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def prompt_size(asked: dict[str, Any]) -> tuple[int, int]:
    """(tokens that are given as numbers, bytes of text) of the prompts of a request."""
    parts: list[Any] = [asked.get(name) for name in _TEXTS]
    messages = asked.get("messages")
    if isinstance(messages, list):
        parts += [message.get("content") for message in messages if isinstance(message, dict)]
    tokens = size = 0
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            size += len(part.encode("utf-8", "replace"))
        elif isinstance(part, list) and part and isinstance(part[0], int):
            tokens += len(part)
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += [part.get("text"), part.get("content")]
    return tokens, size
