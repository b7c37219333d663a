"""Takes messages from engines and API processes, in one thread, and answers their questions."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from wattserve.http.middleware import usage_fields
from wattserve.meter.engines import Node, RefusedError
from wattserve.protocol import messages
from wattserve.protocol.address import Ownership
from wattserve.protocol.host import boot_id
from wattserve.protocol.messages import (
    Answer,
    EnergyQuestion,
    EngineGoodbye,
    EngineHello,
    HttpQuestion,
    Message,
    MeterQuestion,
    Refused,
    RequestFinished,
    RequestStarted,
    StepRecords,
)

logger = logging.getLogger("wattserve.meter")

# Messages of one sender that wait here at most; what comes beyond waits in the sender's own queue.
HIGH_WATER_MESSAGES = 10_000
TICK_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    sender: bytes
    question: EnergyQuestion
    until: float


class Ingest:
    """Receives at `address` until stopped, and ticks the node.

    `serve_http(question, reply)` has an HTTP question answered elsewhere; `reply(content, body)` may be
    called from any thread. Raises SocketInUseError where another meter receives there, OSError or
    zmq.ZMQError where the address cannot be bound.
    """

    def __init__(
        self,
        address: str,
        node: Node,
        *,
        serve_http: Callable[[HttpQuestion, Callable[[dict[str, Any], bytes], None]], None] | None = None,
        version: str = "",
    ) -> None:
        self._version = version
        self.address = address
        self._node = node
        self._serve_http = serve_http
        self._ownership = Ownership(address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MESSAGES)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 100)
        try:
            self._socket.bind(address)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            self._context.term()
            self._ownership.release()
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outbox: deque[tuple[bytes, Answer]] = deque()
        self._waiting: list[_Waiting] = []
        self._told: set[str] = set()
        self._lost: dict[bytes, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattserve-ingest", daemon=True)
        self.messages = 0
        self.faults = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(timeout=3)
        self._socket.close(linger=100)
        self._context.term()
        os.close(self._wake)
        self._ownership.release()

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        next_tick = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            until = min([next_tick, *(waiting.until for waiting in self._waiting)])
            ready = dict(poller.poll(max(0, round((until - now) * 1000))))
            try:
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                self._take_all()
                self._answer_waiting()
                self._send_outbox()
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_SECONDS
                    self._node.tick()
            except Exception:
                self.faults += 1
                if self.faults == 1:
                    logger.exception("the meter could not take what it was sent; it continues")

    def _take_all(self) -> None:
        # Not without end: questions must be answered while engines go on sending.
        for _ in range(500):
            try:
                sender, *frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.messages += 1
            try:
                message = messages.decode(frames)
            except messages.ProtocolError as error:
                self._refuse(sender, str(error))
                continue
            self.take(sender, message)

    def take(self, sender: bytes, message: Message) -> None:
        """Does what one message asks for."""
        node = self._node
        match message:
            case StepRecords() | EngineHello():
                try:
                    self._from_engine(sender, message)
                except RefusedError as error:
                    self._refuse(sender, str(error), message.engine)
            case EngineGoodbye():
                node.goodbye(message.engine)
            case RequestStarted():
                node.request_started(message)
            case RequestFinished():
                node.request_finished(message)
            case EnergyQuestion():
                self._note_lost(sender, message)
                if message.ended:
                    node.request_finished(
                        RequestFinished(
                            message.server, message.id, message.prompt_tokens, message.output_tokens
                        )
                    )
                wait = min(max(message.wait_seconds, 0.0), LONGEST_WAIT_SECONDS)
                self._waiting.append(_Waiting(sender, message, time.monotonic() + wait))
            case MeterQuestion():
                content = {
                    "meter": self._version,
                    "protocol": messages.VERSION,
                    "pid": os.getpid(),
                    "boot_id": boot_id(),
                    "monotonic_ns": time.monotonic_ns(),
                }
                self._reply(sender, Answer(message.number, content))
            case HttpQuestion():
                self._ask_http(sender, message)
            case _:
                self._refuse(sender, f"a meter takes no message of the type {message.TYPE}")

    def _from_engine(self, sender: bytes, message: StepRecords | EngineHello) -> None:
        if isinstance(message, EngineHello):
            self._node.hello(message)
        elif not self._node.steps(message) and message.engine not in self._told:
            self._refuse(sender, "step records before a hello", message.engine)

    def _note_lost(self, sender: bytes, message: EnergyQuestion) -> None:
        """A sender says how many messages it lost in all; what is new of that is added up."""
        before = self._lost.get(sender, 0)
        if message.lost > before:
            self._lost[sender] = message.lost
            self._node.messages_lost(message.server, message.lost - before)

    def _refuse(self, sender: bytes, reason: str, engine: str = "") -> None:
        if reason not in self._told and len(self._told) < 100:
            self._told.add(reason)
            logger.warning("refused: %s", reason)
        self._reply(sender, Refused(reason, engine))

    def _answer_waiting(self) -> None:
        if not self._waiting:
            return
        now = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            question = item.question
            if now < item.until and not self._node.has_steps(question.id, question.server):
                self._waiting.append(item)
                continue
            try:
                content = usage_fields(self._node.request_energy(question.id, question.server, newest=True))
            except Exception as error:
                logger.exception("request %s: its energy could not be told", question.id)
                content = {"energy": None, "energy_reason": f"the meter failed: {error}"}
            if question.ended:
                content = {**content, "ended": True}
            self._reply(item.sender, Answer(question.number, content))

    def _ask_http(self, sender: bytes, question: HttpQuestion) -> None:
        def reply(content: dict[str, Any], body: bytes) -> None:
            self._outbox.append((sender, Answer(question.number, content, body)))
            os.eventfd_write(self._wake, 1)

        if self._serve_http is None:
            reply({"status": 503, "content_type": "text/plain"}, b"this meter answers no HTTP")
        else:
            self._serve_http(question, reply)

    def _send_outbox(self) -> None:
        while self._outbox:
            self._reply(*self._outbox.popleft())

    def _reply(self, sender: bytes, message: Message) -> None:
        try:
            self._socket.send_multipart([sender, *messages.encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError:
            logger.debug("an answer was not sent: its receiver has gone")
