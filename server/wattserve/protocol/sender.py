"""Sending to the meter without ever waiting for it, and asking it one question."""

from __future__ import annotations

import contextlib
from typing import Any

import zmq

from wattserve.protocol import messages
from wattserve.protocol.messages import Frames, Message

# At a message each 50 ms these are 100 s of a meter that does not read.
HIGH_WATER_MESSAGES = 2_000


def connected(address: str, *, high_water: int = HIGH_WATER_MESSAGES) -> Any:
    """A DEALER socket at the meter's address. It holds at most `high_water` messages, and none for a meter
    that is not there: sending fails at once instead."""
    socket: Any = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    # A meter that was started again is found soon, and one that stays away is not called too often.
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.connect(address)
    return socket


class Sender:
    """One connection to the meter, for one thread. `refused` is why the meter does not take what is sent."""

    def __init__(self, address: str) -> None:
        self._socket = connected(address)
        self.refused: str | None = None
        self.lost = 0

    def send(self, frames: Frames) -> bool:
        """Sends one message without blocking; False, and counted in `lost`, where it was not taken."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError:
            self.lost += 1
            return False
        return True

    def take_replies(self) -> list[Message]:
        """What the meter has answered since; also keeps `refused`."""
        found: list[Message] = []
        while True:
            try:
                message = messages.decode(self._socket.recv_multipart(zmq.DONTWAIT))
            except zmq.ZMQError:
                return found
            except messages.ProtocolError as error:
                self.refused = f"the meter's answer cannot be understood: {error}"
                continue
            if isinstance(message, messages.Refused):
                self.refused = message.reason
            found.append(message)

    def close(self) -> None:
        self._socket.close(linger=200)


def ask(address: str, question: Message, *, seconds: float) -> Message | None:
    """The meter's answer to one question; None where none came in time. Raises ProtocolError for one that
    cannot be understood."""
    socket: Any = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, round(seconds * 1000))
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    with contextlib.closing(socket):
        socket.connect(address)
        socket.send_multipart(messages.encode(question))
        try:
            return messages.decode(socket.recv_multipart())
        except zmq.Again:
            return None
