"""What a client may take before its request is whole: bytes, time; and requests that are none of HTTP/1.1, or
offer another protocol."""

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
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, WebSocket/13\r\n\r\n", 501),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
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


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    b"connection: keep-alive\r\nconnection: upgrade\r\nupgrade: TLS/1.2\r\n",
    b"Upgrade: h2c, whatever/7\r\nConnection: Upgrade\r\n",
]
LONG = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3  # a body that looks like requests is none of them
BODIES = [
    (b"Content-Length: %d\r\n\r\n%s" % (len(LONG), LONG), len(LONG)),
    (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", 6),
    (b"\r\n", 0),
]


def everything_said(address: tuple[str, int], *parts: bytes) -> bytes:
    with socket.create_connection(address, timeout=20) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            line.sendall(part)
        return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(("rest", "length"), BODIES)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_offer_of_another_protocol_is_passed_over(
    address: tuple[str, int], offer: bytes, rest: bytes, length: int, at_once: bool
) -> None:
    """Its body was lost, and where it came in a segment of its own it was read as further requests."""
    first = b"POST / HTTP/1.1\r\nHost: h\r\n" + offer + rest
    last = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    stream = first * 2 + last
    parts = [stream] if at_once else [stream[i : i + 7] for i in range(0, len(stream), 7)]
    said = everything_said(address, *parts)
    heads_and_bodies = said.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [int(found.partition(b"\r\n\r\n")[2]) for found in heads_and_bodies] == [length, length, 3]


def test_an_offer_of_another_protocol_keeps_what_else_the_request_says_of_its_connection(
    address: tuple[str, int],
) -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    assert everything_said(address, head).endswith(b"\r\n\r\n0")  # and it closed the connection
    old = b"POST / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
    assert everything_said(address, old).endswith(b"\r\n\r\n2")
    long = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: %s\r\n\r\n" % (
        b"v" * 70_000
    )
    assert b" 431 " in talk(address, long).partition(b"\r\n")[0]


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
