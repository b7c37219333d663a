"""Receives the engine core's step records in the API process and counts what was lost on the way."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import zmq
from wattmeter.steps import StepBatch

from wattserve.vllm import wire
from wattserve.vllm.ids import prompt_of, request_id_of
from wattserve.vllm.socket_path import Ownership

logger = logging.getLogger("wattserve.vllm")


class StepTally:
    """Follows the numbering of one engine's steps. An engine numbers from 0, so that steps taken before the
    first message arrived count as lost too."""

    def __init__(self) -> None:
        self.expected_index = 0

    def lost(self, message: wire.Message) -> int:
        """How many steps the engine had ended when it sent `message` and that never arrived."""
        arrived = len(message.batch)
        missing = message.steps_so_far - self.expected_index - arrived
        self.expected_index = max(self.expected_index, message.steps_so_far)
        return max(0, missing)


class StepReceiver:
    """A thread that gives every arriving `StepBatch`, with HTTP request ids and `lost_steps` set, to `take`.

    `take_prompts` gets, before that, the prompts that began to run in it: (HTTP request id, engine id of the
    prompt, tokens). Raises SocketInUseError where another server receives at the address.
    """

    def __init__(
        self,
        address: str,
        take: Callable[[StepBatch], None],
        take_prompts: Callable[[list[tuple[str, str, int]]], None] | None = None,
    ) -> None:
        self._take = take
        self._take_prompts = take_prompts
        self._ownership = Ownership(address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self._socket.setsockopt(zmq.RCVTIMEO, 200)
        self._socket.bind(address)
        self._tallies: dict[int, StepTally] = {}
        self._randomised = os.environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0") in ("", "0")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattserve-step-receiver", daemon=True)
        self.messages = 0
        self.steps = 0
        self.lost_steps = 0
        self.faults = 0

    @property
    def engines(self) -> int:
        """How many engine processes have been heard."""
        return len(self._tallies)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        self._socket.close(linger=0)
        self._context.term()
        self._ownership.release()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._socket.recv()
            except zmq.Again:
                continue
            try:
                self.receive(data)
            except Exception:
                self.faults += 1
                if self.faults == 1:
                    logger.exception("a step record could not be used; its joules become unattributed")

    def receive(self, data: bytes) -> None:
        """Takes in one message. Raises wire.WireError where it is not one."""
        message = wire.decode(data)
        tally = self._tallies.setdefault(message.engine, StepTally())
        lost = tally.lost(message)
        self.messages += 1
        self.steps += len(message.batch)
        self.lost_steps += lost
        if self._take_prompts is not None and (prompts := self._prompts(message)):
            self._take_prompts(prompts)
        if lost or len(message.batch):
            self._take(self._with_request_ids(message.batch, lost))

    def _prompts(self, message: wire.Message) -> list[tuple[str, str, int]]:
        found = []
        for row in np.flatnonzero(message.prompt_tokens != wire.NOT_NEW):
            engine_id = message.batch.request_ids[row]
            request_id = request_id_of(engine_id, randomised=self._randomised)
            found.append((request_id, prompt_of(engine_id), int(message.prompt_tokens[row])))
        return found

    def _with_request_ids(self, batch: StepBatch, lost: int) -> StepBatch:
        """The batch under HTTP request ids. The engine requests of one HTTP request (n > 1, several prompts)
        keep their own entries and share the id."""
        ids = [request_id_of(i, randomised=self._randomised) for i in batch.request_ids]
        number: dict[str, int] = {}
        new = np.fromiter((number.setdefault(i, len(number)) for i in ids), np.int32, len(ids))
        request = new[batch.request] if ids else batch.request
        return replace(batch, request=request, request_ids=tuple(number), lost_steps=lost)
