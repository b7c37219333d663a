"""How the clock of another host's meter compares with ours: a stand-in for a meter answers with its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from meter_node import until
from wattserve.protocol import messages
from wattserve.protocol.clock import ClockWatch, Comparison, compared
from wattserve.protocol.messages import Answer, MeterQuestion

AHEAD_NS = 5 * 10**15


class OtherHost:
    """Answers each question for the meter with a clock that is `ahead_ns` ahead of ours."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.ahead_ns, self.boot_id, self.late_seconds = AHEAD_NS, "first", 0.0
        self.answers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.address)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(50):
                continue
            sender, *frames = self._socket.recv_multipart()
            question = messages.decode(frames)
            assert isinstance(question, MeterQuestion)
            time.sleep(self.late_seconds)
            content = {"monotonic_ns": time.monotonic_ns() + self.ahead_ns, "boot_id": self.boot_id}
            self._socket.send_multipart([sender, *messages.encode(Answer(question.number, content))])
            self.answers += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def other() -> Iterator[OtherHost]:
    made = OtherHost()
    yield made
    made.stop()


@pytest.fixture
def watch(other: OtherHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClockWatch]:
    monkeypatch.setattr("wattserve.protocol.clock.ROUND_SECONDS", 0.05)
    made = ClockWatch(other.address)
    made.start()
    yield made
    made.stop()


def test_the_offset_lies_within_what_is_said_of_it(other: OtherHost, watch: ClockWatch) -> None:
    until(watch.as_json, "nothing was measured")
    told = watch.as_json()
    assert told["boot_id"] == "first"
    assert abs(told["offset_ns"] - AHEAD_NS) <= told["error_ns"]


def test_a_meter_that_answers_slowly_is_known_less_well(other: OtherHost, watch: ClockWatch) -> None:
    other.late_seconds = 0.03
    until(watch.as_json, "nothing was measured")
    until(lambda: other.answers > 6, "no more answers")
    told = watch.as_json()
    # An answer from before the delay was set may be among them.
    assert abs(told["offset_ns"] - AHEAD_NS) <= told["error_ns"]


def test_after_a_restart_of_its_host_the_clock_is_another(other: OtherHost, watch: ClockWatch) -> None:
    until(watch.as_json, "nothing was measured")
    other.ahead_ns, other.boot_id = 17, "second"
    until(lambda: watch.as_json()["boot_id"] == "second", "the restart was not seen")
    told = watch.as_json()
    # What was asked before and answered after holds the clock of both.
    until(lambda: abs(watch.as_json()["offset_ns"] - 17) <= watch.as_json()["error_ns"], str(told))


def test_without_a_meter_nothing_is_known_and_nothing_waits() -> None:
    watch = ClockWatch("tcp://127.0.0.1:1")
    watch.start()
    assert watch.as_json() == {}
    watch.stop()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"monotonic_ns": 1},
        {"monotonic_ns": 1.5, "boot_id": "b"},
        {"monotonic_ns": True, "boot_id": "b"},
        {"monotonic_ns": 1, "boot_id": ""},
        {"monotonic_ns": 1, "boot_id": 7},
    ],
)
def test_answers_that_say_nothing_of_a_clock(content: dict[str, Any]) -> None:
    assert compared(10, 20, content) is None


def test_half_the_round_trip_is_the_error_and_it_grows_with_age() -> None:
    found = compared(100, 300, {"monotonic_ns": 1_000, "boot_id": "b"})
    assert found == Comparison("b", 300, 800, 100)
    # The meter read 1,000 at some time from 100 to 300: the offset was from 700 to 900.
    assert found.error_at(300) == 100
    assert found.error_at(300 + 10**9) == 100 + 100_000
