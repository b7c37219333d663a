"""Requests to the server behind the proxy: kept connections, responses as they come.

Written on asyncio and httptools (the parser that uvicorn itself runs on): a general client costs more than
what the proxy may add to the time of a first token (benchmarks/proxy_overhead.py). Nothing is changed on the
way: request targets are written as they came, bodies are not decoded.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 10.0
# uvicorn, under most engines, ends a connection that rests for 5 s: ours are given up before.
IDLE_SECONDS = 2.0
MOST_IDLE = 1024
# What may be asked a second time, since it changes nothing (RFC 9110, 9.2.2).
ASKED_AGAIN = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# Beyond this much that nobody has taken, nothing more is read.
HIGH_WATER_BYTES = 1 << 20

Headers = Sequence[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """No whole response came; the message is one sentence without the address."""


class UpstreamAddressError(ValueError):
    """An address that no server can have; the message names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the upstream listens. `prefix` goes before each request's path.

    A base as clients of OpenAI's API are given it (`http://host:8000/v1`) names the same server as without
    `/v1`: requests bring the `/v1` themselves.
    """

    url: str
    host: str
    port: int
    tls: bool
    prefix: bytes

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises UpstreamAddressError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UpstreamAddressError(str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UpstreamAddressError("needs http:// or https:// and a host")
        if parts.username is not None or parts.query or parts.fragment:
            raise UpstreamAddressError("may have no user name, no ? and no #")
        path = parts.path.rstrip("/")
        prefix = path.removesuffix("/v1") if path == "/v1" or path.endswith("/v1") else path
        tls = parts.scheme == "https"
        root = f"{parts.scheme}://{parts.netloc}{prefix}"
        return cls(root, parts.hostname, port or (443 if tls else 80), tls, prefix.encode("latin-1"))

    @property
    def authority(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


class Response:
    """What has come of one response. `parts` gives the body as it arrives."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection = connection

    def parts(self) -> AsyncIterator[tuple[bytes, int]]:
        """Pieces of the body, and the time.monotonic_ns at which each was read.

        Raises UpstreamError where it breaks off.
        """
        return self._connection.body()

    def close(self) -> None:
        """Gives the connection back where the response is whole, and ends it otherwise."""
        self._connection.release()


class Upstream:
    """The server at `address`, with the connections to it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: deque[_Connection] = deque()

    async def request(
        self, method: bytes, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> Response:
        """Sends a request and waits for the head of its response. A `body` that is an iterator is sent as it
        comes, in chunks where the headers do not say its length. Where a kept connection ends before a byte
        has come, a request that changes nothing is sent once more on a new one. Raises UpstreamError.
        """
        whole = isinstance(body, bytes)
        while True:
            connection = self._take() if whole else None
            reused = connection is not None
            if connection is None:
                connection = await self._connect()
            try:
                return await connection.exchange(method, target, headers, body)
            except UpstreamError:
                connection.abort()
                if not (reused and connection.untouched and method in ASKED_AGAIN):
                    raise
            except BaseException:
                connection.abort()
                raise

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    def give_back(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        while len(self._idle) > MOST_IDLE or self._idle[0].idle_since < connection.idle_since - IDLE_SECONDS:
            self._idle.popleft().abort()

    def _take(self) -> _Connection | None:
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        address = self.address
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(
                    lambda: _Connection(self, loop),
                    address.host,
                    address.port,
                    ssl=self._tls,
                    server_hostname=address.host if address.tls else None,
                ),
                CONNECT_SECONDS,
            )
        except TimeoutError:
            raise UpstreamError(f"no connection within {CONNECT_SECONDS:g} s") from None
        except OSError as error:
            raise UpstreamError(f"no connection: {error.strerror or error}") from None
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, owner: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parts: deque[tuple[bytes, int]] = deque()
        self._held_bytes = 0
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiter: asyncio.Future[None] | None = None
        self._response: Response | None = None
        self._headless = False  # HEAD: headers speak of a body that does not come
        self._head_done = False
        self._done = False
        self._until_end = False
        self._keep = False
        self._cut_short = False
        self._read_ns = 0
        self._ended: str | None = None
        self.untouched = True
        self.idle_since = 0.0

    # --- asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._read_ns = time.monotonic_ns()
        self.untouched = False
        if self._response is None or self._done:
            self.abort()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("it switched protocols, which was not asked for")
        except httptools.HttpParserError as error:
            self._fail(f"its response is not HTTP: {error}")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None and self._head_done and self._until_end and exc is None:
            self._done = True
        self._fail("it closed the connection before its response was whole")
        self._writable.set()
        self._wake()

    # --- the parser -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        assert self._response is not None
        if self._done:
            # A second response to one request is nobody's: raising ends the parser, and the connection.
            raise UpstreamError("it answered one request twice")
        self._response.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._response is not None
        self._response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._response is not None
        status = self._parser.get_status_code()
        if status < 200:
            return  # the response proper follows
        self._response.status = status
        lengths = {name.lower() for name, _ in self._response.headers}
        bodiless = self._headless or status in (204, 304)
        self._until_end = not bodiless and not lengths & {b"content-length", b"transfer-encoding"}
        self._keep = self._parser.should_keep_alive() and not self._until_end
        self._head_done = True
        self._writable.set()  # a body that it no longer reads is not waited for
        if self._headless:
            self._done, self._keep = True, False

    def on_body(self, body: bytes) -> None:
        self._parts.append((body, self._read_ns))
        self._held_bytes += len(body)
        if self._held_bytes > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_done:
            self._done = True

    # --- an exchange ----------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        transport = self._transport
        if self._ended is not None or transport is None or transport.is_closing():
            return False
        # Whatever comes while nothing is asked ends the connection; it may be there and not read yet.
        resting = select.poll()
        resting.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not resting.poll(0)

    async def exchange(
        self, method: bytes, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> Response:
        transport = self._transport
        assert transport is not None
        response = self._response = Response(self)
        self._parser = httptools.HttpResponseParser(self)
        self._headless = method == b"HEAD"
        self._head_done = self._done = self._until_end = self._keep = self._cut_short = False
        self.untouched = True
        lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
        lines += [b"%s: %s\r\n" % pair for pair in headers]
        if isinstance(body, bytes):
            transport.write(b"".join([*lines, b"\r\n", body]))
        else:
            chunked = all(name.lower() != b"content-length" for name, _ in headers)
            lines += [b"transfer-encoding: chunked\r\n"] if chunked else []
            transport.write(b"".join([*lines, b"\r\n"]))
            async for part in body:
                if self._head_done or self._ended is not None:
                    break
                if part:
                    transport.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
                    await self._writable.wait()
            if self._head_done:
                self._cut_short = True  # it answered before it had all: what was not sent cannot follow
            elif chunked and self._ended is None:
                transport.write(b"0\r\n\r\n")
        while not self._head_done:
            await self._news()
        return response

    async def body(self) -> AsyncIterator[tuple[bytes, int]]:
        while True:
            while self._parts:
                part, read_ns = self._parts.popleft()
                self._held_bytes -= len(part)
                if self._paused and self._held_bytes < HIGH_WATER_BYTES // 2 and self._transport is not None:
                    self._paused = False
                    self._transport.resume_reading()
                yield part, read_ns
            if self._done:
                return
            await self._news()

    def release(self) -> None:
        self._response = None
        if self._done and self._keep and not self._cut_short and not self._parts and self.usable:
            self._owner.give_back(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._fail("it was given up")
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        """Returns once something more has come. Raises UpstreamError where nothing will."""
        if self._ended is not None:
            raise UpstreamError(self._ended)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._ended is not None and not self._parts and not self._done:
            raise UpstreamError(self._ended)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
