"""How an API process speaks with the meter: tells it of requests, and asks it, without ever blocking.

Everything happens on the event loop; there is no thread. What the meter does not answer in time, or cannot
because it is gone, comes back as null with the reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import Any

import zmq

from wattserve.protocol import messages
from wattserve.protocol.messages import (
    Answer,
    EnergyQuestion,
    Frames,
    HttpQuestion,
    Refused,
    RequestFinished,
    RequestStarted,
)
from wattserve.protocol.sender import connected

logger = logging.getLogger("wattserve.vllm")

# As plain numbers: an arithmetic operation on members of zmq's enumerations takes microseconds.
_DONTWAIT = int(zmq.DONTWAIT)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

# How long the meter may wait for the first step record of a request (only one of a few steps ever waits), and
# how long a response waits for the meter.
RECORD_WAIT_SECONDS = 0.15
DEADLINE_SECONDS = 1.0
HTTP_DEADLINE_SECONDS = 10.0

# Ends of requests that wait for a meter that is away.
MOST_UNTOLD = 10_000

GONE = "the meter is not running; it is started again by whoever started it"


class MeterGoneError(RuntimeError):
    """The meter did not answer; the message says why."""


class MeterClient:
    """One API process's connection to the meter at `address`, for the server named `server`.

    `start` is to be called on the event loop that everything else is called on.
    """

    def __init__(self, address: str, server: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._server = server
        self._deadline_seconds = deadline_seconds
        self._socket = connected(address)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._ended: set[str] = set()
        # Ends of requests that the meter did not take: a request without an end would run there for ever.
        self._untold: deque[Frames] = deque()
        # A meter that let one question wait in vain is asked on, but not waited for until it speaks again.
        self._silent = False
        self.refused: str | None = None
        self.lost_messages = 0
        # What each message of this server begins with is written once.
        self._started = messages.template(RequestStarted.TYPE, server=server)
        self._question = messages.template(
            EnergyQuestion.TYPE, server=server, wait_seconds=RECORD_WAIT_SECONDS, ended=True
        )

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.getsockopt(zmq.FD), self._readable)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.getsockopt(zmq.FD))
            self._loop = None
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()
        self._socket.close(linger=100)

    # --- what is told ---------------------------------------------------------------------------------------

    def request_started(self, request_id: str, *, group: str = "") -> None:
        text = self._started % (json.dumps(request_id), json.dumps(group))
        if not self._send([text.encode()]):
            self.lost_messages += 1

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
        if request_id in self._ended:
            self._ended.discard(request_id)
            return
        message = RequestFinished(
            self._server, request_id, prompt_tokens, output_tokens, aborted, refused, group
        )
        frames = messages.encode(message)
        if self._send(frames):
            return
        if len(self._untold) < MOST_UNTOLD:
            self._untold.append(frames)
        else:
            self.lost_messages += 1

    # --- what is asked --------------------------------------------------------------------------------------

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        """`energy` of a request that has ended, and `energy_reason` where that is null."""
        self._number += 1
        text = self._question % (
            self._number,
            json.dumps(request_id),
            "null" if prompt_tokens is None else prompt_tokens,
            "null" if output_tokens is None else output_tokens,
            self.lost_messages,
        )
        try:
            answer = await self._ask(self._number, [text.encode()], self._deadline_seconds)
        except MeterGoneError as error:
            return {"energy": None, "energy_reason": str(error)}
        content = dict(answer.content)
        if content.pop("ended", False):
            # The end went with the question; a meter that does not know of that is told by itself.
            self._ended.add(request_id)
        if "energy" not in content:
            return {"energy": None, "energy_reason": "the meter's answer has no energy"}
        return content

    async def http(
        self, method: str, path: str, query: str, body: bytes = b"", *, tenant: str = ""
    ) -> tuple[int, str, bytes]:
        """(status, content type, body) of a request to the meter's own routes. Raises MeterGoneError."""
        self._number += 1
        question = HttpQuestion(self._server, self._number, method, path, query, body, tenant)
        answer = await self._ask(self._number, messages.encode(question), HTTP_DEADLINE_SECONDS, patient=True)
        status, kind = answer.content.get("status"), answer.content.get("content_type")
        if not isinstance(status, int) or not isinstance(kind, str):
            raise MeterGoneError("the meter's answer cannot be understood")
        return status, kind, answer.body

    async def _ask(self, number: int, frames: Frames, seconds: float, *, patient: bool = False) -> Answer:
        if self._loop is None:
            raise MeterGoneError("the meter has not started")
        if not self._send(frames, asking=True):
            raise MeterGoneError(GONE)
        if self._silent and not patient:
            raise MeterGoneError(self.refused or "the meter does not answer")
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[number] = future
        handle = self._loop.call_later(seconds, self._expire, number)
        try:
            return await future
        finally:
            handle.cancel()
            self._asked.pop(number, None)

    def _expire(self, number: int) -> None:
        # A loop that was held up may find the answer and the end of the wait at once.
        self._readable()
        future = self._asked.get(number)
        if future is None or future.done():
            return
        if not self._silent:
            logger.warning("wattserve: the meter does not respond; responses go out without energy")
        self._silent = True
        future.set_exception(MeterGoneError(self.refused or "the meter did not answer in time"))

    # --- the connection -------------------------------------------------------------------------------------

    def _send(self, frames: Frames, *, asking: bool = False) -> bool:
        try:
            if len(frames) == 1:
                self._socket.send(frames[0], _DONTWAIT)
            else:
                self._socket.send_multipart(frames, _DONTWAIT)
        except zmq.ZMQError:
            return False
        if self._untold and self._loop is not None:
            self._loop.call_soon(self._tell_ends)
        # The descriptor tells an arrival once, and sending may have taken note of it. Where nobody waits, the
        # next question's look is early enough, here and in `_readable`.
        if (self._asked or asking) and self._loop is not None and self._arrived():
            self._loop.call_soon(self._readable)
        return True

    def _arrived(self) -> bool:
        """Whether there is a message to take. Where there is none, the descriptor tells the next one."""
        return bool(self._socket.getsockopt(_EVENTS) & _POLLIN)

    def _tell_ends(self) -> None:
        """Tell what could not be told before, as far as the meter takes it."""
        while self._untold:
            try:
                self._socket.send_multipart(self._untold[0], _DONTWAIT)
            except zmq.ZMQError:
                return
            self._untold.popleft()

    def _readable(self) -> None:
        while self._loop is not None:
            try:
                first = self._socket.recv(_DONTWAIT, copy=False)
            except zmq.ZMQError:
                return
            frames = [first.bytes]
            if first.more:
                frames += self._socket.recv_multipart(_DONTWAIT)
            self._take(frames)
            if not self._asked or not self._arrived():
                return

    def _take(self, frames: Frames) -> None:
        try:
            message = messages.decode(frames)
        except messages.ProtocolError as error:
            self.refused = f"the meter's answer cannot be understood: {error}"
            return
        if isinstance(message, Refused):
            self.refused = f"the meter refuses what this server sends: {message.reason}"
            return
        if not isinstance(message, Answer):
            return
        if self._silent:
            logger.warning("wattserve: the meter responds again")
        self._silent = False
        self.refused = None
        future = self._asked.pop(message.number, None)
        if future is not None and not future.done():
            future.set_result(message)
