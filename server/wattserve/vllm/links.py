"""An engine core's connections: to the meter of its host, and to those of further hosts with its GPUs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from wattserve.protocol import messages
from wattserve.protocol.clock import ClockWatch
from wattserve.protocol.messages import EngineHello, Frames
from wattserve.protocol.sender import Sender
from wattserve.vllm.settings import FurtherMeter

# A first hello that does not say how the clocks compare would be refused: it waits so long for that.
CLOCK_SECONDS = 2.0

logger = logging.getLogger("wattserve.vllm")


class _Further:
    """The connection to the meter of one further host, on whose devices workers of the engine compute."""

    def __init__(self, meter: FurtherMeter) -> None:
        self.meter = meter
        self.sender = Sender(meter.address)
        self.clock = ClockWatch(meter.address)
        self.clock.start()
        self._greeted = False
        self._clock_due = time.monotonic() + CLOCK_SECONDS

    @property
    def is_new(self) -> bool:
        """Whether the first hello is still to be sent as soon as the clocks have been compared."""
        return not self._greeted and time.monotonic() < self._clock_due

    def hello(self, hello: EngineHello) -> None:
        clock = self.clock.as_json()
        if not clock and time.monotonic() < self._clock_due:
            return
        # The workers there descend from no process of this host.
        own = replace(hello, gpus=self.meter.devices, pid=None, pid_namespace="", clock=clock)
        self._greeted = self.sender.send(messages.encode(own)) or self._greeted


class Links:
    """Sends the steps of one engine to all of its meters; belongs to the recorder's thread.

    Each meter gets the same records and counts for itself those that it did not get: one that is away holds
    up neither the engine nor the others. `hello` is what the engine says to the meter at `address`.
    """

    def __init__(self, address: str, hello: EngineHello, further: Sequence[FurtherMeter] = ()) -> None:
        self._hello = hello
        self._own = Sender(address)
        self._further = [_Further(meter) for meter in further]
        self._told: set[str] = set()

    def send(self, frames: Frames) -> bool:
        """Sends one message to every meter without blocking; False where this host's did not take it."""
        for link in self._further:
            if link.is_new:
                link.hello(replace(self._hello, sent_ns=time.monotonic_ns()))
            link.sender.send(frames)
        return self._own.send(frames)

    def hello(self, next_step: int) -> bool:
        """Says to every meter who the engine is; the same result."""
        self._note_refusal("", self._own)
        hello = self._hello = replace(self._hello, next_step=next_step, sent_ns=time.monotonic_ns())
        sent = self._own.send(messages.encode(hello))
        for link in self._further:
            self._note_refusal(f" at {link.meter.address}", link.sender)
            link.hello(hello)
        return sent

    def close(self) -> None:
        for link in self._further:
            link.clock.stop()
            link.sender.close()
        self._own.close()

    def _note_refusal(self, where: str, sender: Sender) -> None:
        sender.take_replies()
        told = f"{where}: {sender.refused}"
        if sender.refused is not None and told not in self._told:
            self._told.add(told)
            logger.warning("wattserve: the meter%s refuses this engine: %s", where, sender.refused)
