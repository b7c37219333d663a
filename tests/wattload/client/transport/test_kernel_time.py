"""When bytes came: the kernel's note of it, whatever the process was doing, and never an impossible time."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from wattload.client.transport import kernel_time as arrival

SECONDS = struct.Struct("@ll")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader = socket.create_connection(listener.getsockname())
        writer, _ = listener.accept()
    with reader, writer:
        yield reader, writer


def stamp(unix: float) -> list[tuple[int, int, bytes]]:
    whole = int(unix)
    return [(socket.SOL_SOCKET, 35, SECONDS.pack(whole, int((unix - whole) * 1e9)))]


def test_a_late_reader_gets_the_time_of_arrival(pair: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = pair
    if not arrival.stamp_arrivals(reader):
        pytest.skip("this kernel keeps no times of arrival")
    # The kernel begins some milliseconds after it is asked.
    for _ in range(20):
        before = time.perf_counter()
        writer.send(b"x")
        time.sleep(0.1)
        data, ancillary, _, _ = reader.recvmsg(10, arrival.ANCILLARY_BYTES)
        now = time.perf_counter()
        came = arrival.arrived(ancillary, before, now)
        assert data == b"x"
        assert before <= came <= now
        if came < now - 0.08:
            return
    pytest.fail("no time of arrival was ever told")


def test_a_socket_that_cannot_be_asked() -> None:
    closed = socket.socket()
    closed.close()
    assert not arrival.stamp_arrivals(closed)


def test_without_a_stamp_it_is_now() -> None:
    assert arrival.arrived([], 1.0, 2.0) == 2.0
    assert arrival.arrived([(1, 2, b"other")], 1.0, 2.0) == 2.0
    assert arrival.arrived([(socket.SOL_SOCKET, 35, b"short")], 1.0, 2.0) == 2.0


@pytest.mark.parametrize("step", [-100.0, -0.02, 0.02, 100.0])
def test_across_a_step_of_the_wall_clock_it_is_now(step: float) -> None:
    """Arrived 5 ms ago, on a connection last heard of 10 ms ago; the clock was put by `step` in between."""
    now = time.perf_counter()
    came = arrival.arrived(stamp(time.time() - 0.005 - step), now - 0.01, now)
    assert came == now


def test_within_what_is_possible_it_is_believed() -> None:
    now = time.perf_counter()
    came = arrival.arrived(stamp(time.time() - 0.005), now - 0.01, now)
    assert came == pytest.approx(now - 0.005, abs=0.003)
    assert came < now
