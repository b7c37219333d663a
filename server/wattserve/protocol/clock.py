"""How the monotonic clock of a meter on another host compares with this host's, measured again and again.

A question and its answer bound the difference: the meter read its clock somewhere between the two (Cristian's
algorithm). The shortest of the last round trips bounds it best.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import zmq

from wattserve.protocol import messages
from wattserve.protocol.sender import connected

ROUND_SECONDS = 1.0
QUESTIONS_A_ROUND = 3
# An answer that takes longer tells too little.
LONGEST_ANSWER_MS = 100
# Older comparisons say nothing of now: what two clocks drift apart in a second is at most this.
MOST_AGE_NS = 30_000_000_000
DRIFT_RATIO = 100e-6


@dataclass(frozen=True, slots=True)
class Comparison:
    """The meter's clock minus ours lies within `error_ns` of `offset_ns` at `at_ns` of our clock."""

    boot_id: str
    at_ns: int
    offset_ns: int
    error_ns: int

    def error_at(self, now_ns: int) -> int:
        return self.error_ns + round(max(0, now_ns - self.at_ns) * DRIFT_RATIO)


def compared(sent_ns: int, received_ns: int, content: dict[str, Any]) -> Comparison | None:
    """What a meter's answer says of its clock; None for one that says nothing of it."""
    theirs, boot = content.get("monotonic_ns"), content.get("boot_id")
    if isinstance(theirs, bool) or not isinstance(theirs, int) or not isinstance(boot, str) or not boot:
        return None
    half = (received_ns - sent_ns + 1) // 2
    return Comparison(boot, received_ns, theirs - (sent_ns + half), half)


class ClockWatch:
    """Compares the clock of the meter at `address` with ours once a second, in a thread of its own that a
    meter which is away does not hold up."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._known: deque[Comparison] = deque(maxlen=64)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattserve-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def as_json(self) -> dict[str, Any]:
        """The field `clock` of a hello; empty where nothing is known."""
        now = time.monotonic_ns()
        known = [each for each in tuple(self._known) if now - each.at_ns <= MOST_AGE_NS]
        if not known:
            return {}
        # After a restart of its host a meter's clock is another one.
        known = [each for each in known if each.boot_id == known[-1].boot_id]
        best = min(known, key=lambda each: each.error_at(now))
        return {"boot_id": best.boot_id, "offset_ns": best.offset_ns, "error_ns": best.error_at(now)}

    def _run(self) -> None:
        with contextlib.closing(connected(self._address, high_water=QUESTIONS_A_ROUND)) as socket:
            number = 0
            while True:
                for _ in range(QUESTIONS_A_ROUND):
                    number += 1
                    self._ask(socket, number)
                if self._stop.wait(ROUND_SECONDS):
                    return

    def _ask(self, socket: Any, number: int) -> None:
        if not socket.poll(LONGEST_ANSWER_MS, zmq.POLLOUT):
            return  # nobody is there
        sent_ns = time.monotonic_ns()
        with contextlib.suppress(zmq.ZMQError, messages.ProtocolError):
            socket.send_multipart(messages.encode(messages.MeterQuestion(number)), zmq.DONTWAIT)
            while socket.poll(LONGEST_ANSWER_MS):
                answer = messages.decode(socket.recv_multipart(zmq.DONTWAIT))
                if not isinstance(answer, messages.Answer) or answer.number != number:
                    continue  # of an earlier question, which took too long
                found = compared(sent_ns, time.monotonic_ns(), answer.content)
                if found is not None:
                    self._known.append(found)
                return
