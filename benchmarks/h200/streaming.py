"""A client for windows of many streamed completions whose only cost is reading: standard library, one thread.

Every connection is open and every body built before the first request is due, and a stream's events are not
decoded while it runs: of each piece of data only the time matters, and the last one holds the usage.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import traffic
from traffic import Planned

TIMEOUT_SECONDS = 120.0
CONNECT_TOGETHER = 64
# In every event with a token, also where an event is cut in two or several come at once; the last event, with
# the usage, has no choices. Within text the quotes would be escaped.
TOKEN_MARK = b'"index":'
DONE_MARK = b"data: [DONE]"
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Answered:
    """One completed stream: client's UNIX seconds and the tokens that its usage counts."""

    due_unix: float
    sent_unix: float
    first_token_unix: float
    last_token_unix: float
    end_unix: float
    prompt_tokens: int
    output_tokens: int


class StreamError(RuntimeError):
    """A request that was not answered as planned; the message names what came instead."""


class Stream(asyncio.Protocol):
    """One request on its own connection. `done` has no result; it is set when the server closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.sent_unix = self.first_unix = self.last_unix = self.end_unix = 0.0
        self.head = b""
        self.tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        self.sent_unix = time.time()
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if len(self.head) < TAIL_BYTES:
            self.head += data[:TAIL_BYTES]
        # The mark may lie across two pieces.
        joined = self.tail[1 - len(TOKEN_MARK) :] + data
        if TOKEN_MARK in joined:
            self.first_unix = self.first_unix or now
            self.last_unix = now
        self.end_unix = now
        self.tail = (self.tail + data)[-TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        self._transport.abort()

    def answered(self, planned: Planned, due_unix: float) -> Answered:
        """What came. Raises StreamError where that is not the whole of what was planned."""
        if not self.head.startswith(b"HTTP/1.1 200") or DONE_MARK not in self.tail:
            raise StreamError(f"not a whole stream: {self.head[:300]!r} ... {self.tail[-200:]!r}")
        usage = None
        for line in self.tail.split(b"\n"):
            if line.startswith(b"data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
        if usage is None or not self.first_unix:
            raise StreamError(f"a stream without usage or tokens: {self.tail[-300:]!r}")
        found = (usage["prompt_tokens"], usage["completion_tokens"])
        if found != (planned.prompt_tokens, planned.output_tokens):
            raise StreamError(f"{found[0]} tokens in, {found[1]} out: not as planned")
        return Answered(
            due_unix, self.sent_unix, self.first_unix, self.last_unix, self.end_unix, found[0], found[1]
        )


def request_bytes(endpoint: traffic.Endpoint, planned: Planned, seed: str) -> bytes:
    """The whole HTTP request, with a prompt of random token ids that `seed` decides."""
    dice = random.Random(seed)
    body = json.dumps(
        {
            "model": endpoint.model,
            "prompt": [dice.randrange(*traffic.VOCABULARY) for _ in range(planned.prompt_tokens)],
            "max_tokens": planned.output_tokens,
            "min_tokens": planned.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {endpoint.host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def play(endpoint: traffic.Endpoint, plan: list[Planned], seed: str) -> list[Answered]:
    """Sends a plan, whose first request is due 0.2 s after everything is prepared, and waits for all answers.

    The same `seed` gives the same prompts. Raises StreamError where a request fails.
    """
    loop = asyncio.get_running_loop()
    streams = [Stream(request_bytes(endpoint, planned, f"{seed}-{row}")) for row, planned in enumerate(plan)]
    for first in range(0, len(streams), CONNECT_TOGETHER):
        await asyncio.gather(
            *(
                loop.create_connection(lambda stream=stream: stream, endpoint.host, endpoint.port)  # type: ignore[misc]
                for stream in streams[first : first + CONNECT_TOGETHER]
            )
        )
    # A collection of this process's garbage must not be a pause of the server's.
    gc.collect()
    gc.disable()
    try:
        zero_unix, zero = time.time() + 0.2, loop.time() + 0.2
        for planned, stream in zip(plan, streams, strict=True):
            loop.call_at(zero + planned.at_seconds, stream.send)
        limit = plan[-1].at_seconds + TIMEOUT_SECONDS
        _, unanswered = await asyncio.wait([stream.done for stream in streams], timeout=limit)
    finally:
        gc.enable()
        for stream in streams:
            stream.close()
    if unanswered:
        raise StreamError(f"{len(unanswered)} of {len(plan)} requests had no answer in {limit:.0f} s")
    return [s.answered(p, zero_unix + p.at_seconds) for p, s in zip(plan, streams, strict=True)]


def constant(shape: tuple[int, int], *, rate: float, seconds: float) -> list[Planned]:
    """Requests of one shape (tokens in, out) at equal distances."""
    return [Planned(row / rate, *shape, "observer") for row in range(max(1, round(rate * seconds)))]


def at_once(shape: tuple[int, int], *, requests: int) -> list[Planned]:
    return [Planned(0.0, *shape, "observer") for _ in range(requests)]


def figures(answers: list[Answered]) -> dict[str, Any]:
    """Of one window: its times and throughput, and TTFT and TPOT of every request to the microsecond."""
    start = min(answer.sent_unix for answer in answers)
    end = max(answer.last_token_unix for answer in answers)
    tokens = sum(answer.output_tokens for answer in answers)
    tpot = [
        round(1e6 * (a.last_token_unix - a.first_token_unix) / (a.output_tokens - 1))
        for a in answers
        if a.output_tokens > 1
    ]
    return {
        "start_unix": start,
        "end_unix": end,
        "requests": len(answers),
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / (end - start),
        "latest_send_seconds": max(answer.sent_unix - answer.due_unix for answer in answers),
        "ttft_microseconds": [round(1e6 * (a.first_token_unix - a.sent_unix)) for a in answers],
        "tpot_microseconds": tpot,
        "end_to_end_mean_seconds": sum(a.end_unix - a.sent_unix for a in answers) / len(answers),
    }
