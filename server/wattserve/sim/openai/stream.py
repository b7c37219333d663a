"""One request's answer on its way out: tokens from the engine to events of a stream, or to one JSON body."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from wattserve.http.middleware import Message, Send
from wattserve.sim.openai.protocol import Job
from wattserve.sim.openai.shapes import Finished, Shape, Usage, shape_of
from wattserve.sim.openai.vocabulary import Answers
from wattserve.sim.scheduler import Sequence

_MASK = Answers.LENGTH - 1
assert Answers.LENGTH & _MASK == 0, "the length is a power of two"
_SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], waiting: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that was run by hand until it had to wait for `waiting`."""
    while True:
        yield waiting
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            return


def _undelivered(_seq: Sequence) -> None:
    """Takes tokens that nobody waits for."""


class Writer:
    """Sends a response from the engine's callback, without waking a task for each part.

    An ASGI `send` finishes at once unless the client reads too slowly; then a task takes over and what comes
    meanwhile is joined and sent as one part, as vLLM merges tokens for a slow reader.
    """

    __slots__ = ("_backlog", "_send", "_task")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._backlog: list[Message] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a part is held up by a client that reads too slowly."""
        return self._task is not None

    def write(self, body: bytes, more: bool = True) -> None:
        """A part of the body."""
        self.put({"type": "http.response.body", "body": body, "more_body": more})

    def put(self, message: Message) -> None:
        """Any ASGI message of a response."""
        if self._task is not None:
            self._backlog.append(message)
            return
        coroutine: Any = self._send(message)
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            return
        self._task = asyncio.get_running_loop().create_task(self._finish(coroutine, waiting))

    async def _finish(self, coroutine: Coroutine[Any, Any, None], waiting: Any) -> None:
        # A connection that closed meanwhile refuses what is written; its request is ended by who receives.
        with contextlib.suppress(OSError, RuntimeError):
            await _resume(coroutine, waiting)
            while self._backlog:
                messages, self._backlog = self._backlog, []
                if messages[0]["type"] == "http.response.start":
                    await self._send(messages.pop(0))
                if messages:
                    body = b"".join(message["body"] for message in messages)
                    await self._send({**messages[-1], "body": body})
        self._task = None


class Choice:
    """One of a request's answers: a sequence in the engine, and where its tokens are found."""

    __slots__ = (
        "answer",
        "finish_reason",
        "head",
        "index",
        "output_tokens",
        "sequence",
        "start",
        "text_tokens",
    )

    def __init__(self, answer: Answer, index: int, start: int, output_tokens: int, reason: str) -> None:
        self.answer = answer
        self.index = index
        self.start = start
        self.output_tokens = output_tokens
        self.text_tokens = output_tokens  # fewer where a stop string cuts the last ones off
        self.finish_reason = reason
        self.sequence: Sequence
        self.head = b""

    def output_id(self, position: int) -> int:
        return self.answer.words.ids[(self.start + position) & _MASK]

    def deliver_fast(self, seq: Sequence) -> None:
        """A token of a plain stream: three pieces of bytes, nothing computed."""
        count = seq.generated
        if 1 < count < self.output_tokens:
            answer = self.answer
            piece = answer.words.piece_bytes[(self.start + count - 1) & _MASK]
            answer.writer.put(
                {
                    "type": "http.response.body",
                    "body": b"%b%b%b" % (self.head, piece, answer.foot),
                    "more_body": True,
                }
            )
        else:
            self.deliver(seq)

    def deliver(self, seq: Sequence) -> None:
        """A token of any answer."""
        if seq.generated == 1:
            self.answer.first_token(seq)
        self.answer.token(self, seq)


class Answer:
    """A whole answer: its choices, and what is sent when. `on_end(answer)` is called after the last token."""

    def __init__(
        self,
        job: Job,
        request_id: str,
        words: Answers,
        send: Send,
        *,
        on_first_token: Callable[[Sequence], None],
        on_end: Callable[[Answer], None],
    ) -> None:
        self.job = job
        self.words = words
        self.writer = Writer(send)
        self.choices: list[Choice] = []
        self.ended = False
        self.arrival_ns = time.monotonic_ns()
        self.first_token = on_first_token
        self._on_end = on_end
        self._stream = job.parameters.stream
        self._open = 0
        self._shape: Shape = shape_of(job, request_id)
        self.foot = self._shape.foot

    @property
    def is_plain(self) -> bool:
        """True where every chunk but the last is the same but for its text."""
        return (
            self._stream
            and self._shape.repeats
            and not (self.job.continuous_usage or self.job.parameters.return_token_ids)
        )

    def add(self, choice: Choice) -> None:
        """One more choice, before the answer begins."""
        self.choices.append(choice)
        self._open += 1
        if self.is_plain:
            choice.head = self._shape.head(choice.index)

    def begin(self) -> None:
        """The start of a stream; a JSON answer starts when it is complete."""
        if not self._stream:
            return
        self.writer.put({"type": "http.response.start", "status": 200, "headers": list(_SSE_HEADERS)})
        opening = self._shape.opening([choice.index for choice in self.choices], self.usage)
        if opening:
            self.writer.write(opening)

    def token(self, choice: Choice, seq: Sequence) -> None:
        """A token was sampled for `choice`."""
        last = seq.generated == choice.output_tokens
        if last:
            self._open -= 1
        if self._stream:
            position = choice.start + seq.generated - 1
            text = self.words.pieces[position & _MASK] if seq.generated <= choice.text_tokens else ""
            event = self._shape.token(
                choice.index,
                text,
                choice.finish_reason if last else None,
                (self.words.ids[position & _MASK],),
                prompt_ids=choice.sequence.prompt_ids if seq.generated == 1 else None,
                usage=self.usage() if self.job.continuous_usage else None,
            )
            if self._open:
                self.writer.write(event)
            else:
                self._end(event + self._shape.closing(self._finished, self.usage))
        elif not self._open:
            self._end_json()

    def close(self) -> None:
        """Nothing more is delivered. Answer, choices and sequences hold one another: what is not let go of
        here would live until the garbage collector looks for it.
        """
        for choice in self.choices:
            choice.sequence.deliver = _undelivered
            choice.sequence.output_id = None
        self.choices = []

    def usage(self) -> Usage:
        job = self.job
        first_of_prompt = self.choices[:: job.parameters.n]
        return Usage(
            prompt=sum(choice.sequence.prompt_tokens for choice in first_of_prompt),
            output=sum(choice.sequence.generated for choice in self.choices),
            cached=sum(choice.sequence.cached_tokens for choice in first_of_prompt),
            image=job.image_tokens,
        )

    def _finished(self) -> list[Finished]:
        return [
            Finished(
                choice.index,
                self.words.text(choice.start, choice.text_tokens),
                choice.finish_reason,
                self.words.token_ids(choice.start, choice.output_tokens)
                if self.job.parameters.return_token_ids
                else [],
                choice.sequence.prompt_ids,
            )
            for choice in self.choices
        ]

    def _end_json(self) -> None:
        body = json.dumps(self._shape.whole(self._finished(), self.usage()), separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self.writer.put({"type": "http.response.start", "status": 200, "headers": headers})
        self._end(body)

    def _end(self, body: bytes) -> None:
        self.ended = True
        self._on_end(self)
        self.writer.write(body, more=False)
