"""What a client may take before its request is whole: bytes, time; and requests that are none of HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sim_server import serving
from wattserve.http.bounds import MAX_HEAD_BYTES, BoundedProtocol
from wattserve.http.middleware import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body and answers its length."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = str(length).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving(app) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield host, int(port)


def talk(address: tuple[str, int], *parts: bytes) -> bytes:
    """All that the server says to what is sent, until it closes or says no more for a while."""
    said = b""
    with socket.create_connection(address, timeout=20) as line:
        try:
            for part in parts:
                line.sendall(part)
            while not said.partition(b"\r\n\r\n")[2]:
                got = line.recv(65536)
                if not got:
                    break
                said += got
        except OSError:  # closed while more was on its way
            pass
    return said


def test_a_head_without_an_end_is_refused(address: tuple[str, int]) -> None:
    endless = [b"GET / HTTP/1.1\r\nHost: h\r\nX: "] + [b"a" * 16384] * 64
    said = talk(address, *endless)
    # The refusal may be overtaken by the reset of what was sent after it.
    assert said == b"" or said.startswith(b"HTTP/1.1 431 ")


def test_many_headers_are_too_long_together(address: tuple[str, int]) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"v" * 100) for i in range(800))
    said = talk(address, b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
    assert said.startswith(b"HTTP/1.1 431 ")
    assert f"longer than {MAX_HEAD_BYTES} bytes" in said.decode()


def test_a_head_within_the_bounds_and_a_long_body_pass(address: tuple[str, int]) -> None:
    body = b"x" * 3_000_000
    head = b"POST / HTTP/1.1\r\nHost: h\r\nX: %s\r\nContent-Length: %d\r\n\r\n" % (b"v" * 60_000, len(body))
    assert talk(address, head + body).endswith(b"3000000")
    # And on one connection, one after the other.
    twice = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" * 2
    assert talk(address, twice).count(b"HTTP/1.1 200") >= 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 501),
        (b"GET /\r\n\r\n", 0),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
)
def test_what_is_no_request_of_http_1_is_refused(
    address: tuple[str, int], request_: bytes, status: int
) -> None:
    said = talk(address, request_)
    if status == 0:  # HTTP/0.9 has no status: whatever is said, it is no 200
        assert b" 200 " not in said.partition(b"\r\n")[0]
        return
    assert int(said.split(b" ")[1]) == status
    if b"application/json" in said:
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == status


def test_http_1_0_needs_no_host(address: tuple[str, int]) -> None:
    assert talk(address, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


class Wire(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.said += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.mark.parametrize(
    "sent", [b"", b"POST / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhal"]
)
def test_a_request_that_is_never_whole_is_ended(sent: bytes) -> None:
    async def wait() -> Wire:
        import uvicorn
        from uvicorn.server import ServerState

        class Hasty(BoundedProtocol):
            request_seconds = 0.05

        protocol = Hasty(uvicorn.Config(app), ServerState(), {})
        wire = Wire()
        protocol.connection_made(wire)
        if sent:
            protocol.data_received(sent)
        while not wire.closed:
            await asyncio.sleep(0.01)
        protocol.connection_lost(None)
        return wire

    wire = asyncio.run(asyncio.wait_for(wait(), 20))
    assert wire.said == b"" or wire.said.startswith(b"HTTP/1.1 408 ")


def test_a_response_takes_as_long_as_it_takes() -> None:
    """The time is the request's: once it is whole, nothing ends its connection."""

    async def wait() -> Wire:
        import uvicorn
        from uvicorn.server import ServerState

        class Hasty(BoundedProtocol):
            request_seconds = 0.01

        done = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(0.2)
            await app(scope, receive, send)
            done.set()

        protocol = Hasty(uvicorn.Config(slow), ServerState(), {})
        wire = Wire()
        protocol.connection_made(wire)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab")
        await done.wait()
        return wire

    wire = asyncio.run(asyncio.wait_for(wait(), 20))
    assert not wire.closed
    assert wire.said.startswith(b"HTTP/1.1 200 ")
