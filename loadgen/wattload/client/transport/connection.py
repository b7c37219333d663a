"""A connection driven by the event loop, and the pool of those that can be used again.

Callbacks run in gevent's hub, so nothing here may wait. One callback a readable socket and no greenlet
switch: that is what makes a chunk cost a third of what it costs through a client library
(docs/explanation/load-generator.md).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Protocol

import gevent

from wattload.client.proxy import Proxy
from wattload.client.transport.descriptors import reserve_descriptors
from wattload.client.transport.kernel_time import ANCILLARY_BYTES, arrived, stamp_arrivals
from wattload.client.transport.tls import TlsLayer
from wattload.errors import InputError

_READ, _WRITE = 1, 2
_RECV_BYTES = 64 * 1024
# Servers close what idles (uvicorn after 5 s); a request sent on a connection just then would fail for no
# fault of the server's, so ours are given up before.
_IDLE_SECONDS = 3.0


class Exchange(Protocol):
    """Who uses a connection: one request and its answer. All times are of `time.perf_counter()`."""

    def sending(self, now: float) -> None:
        """The first byte is about to be handed to the kernel."""

    def received(self, data: bytes, now: float) -> None:
        """Bytes of the answer, that came at `now` (to this host, where the kernel says)."""

    def closed(self, now: float) -> None:
        """The server closed its side."""

    def lost(self, error: OSError, *, connecting: bool, now: float) -> None:
        """The connection could not be made (`connecting`), or broke."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, resolved once: looking a name up must not delay a request.

    `candidates` are addresses of the server, or those of `proxy` where there is one. `tunnel` is what asks
    that proxy for a connection to the server, before TLS begins; empty where no tunnel is needed.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    candidates: tuple[tuple[int, Any], ...]
    proxy: Proxy | None = None
    tunnel: bytes = b""

    @classmethod
    def resolve(cls, host: str, port: int, tls: ssl.SSLContext | None, proxy: Proxy | None = None) -> Address:
        """Raises InputError where the name, or that of the proxy, has no address."""
        next_host, next_port = (host, port) if proxy is None else (proxy.host, proxy.port)
        try:
            found = socket.getaddrinfo(next_host, next_port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            named = "" if proxy is None else f" ({proxy})"
            raise InputError(f"{next_host}{named}: no address is known for this name ({error})") from error
        candidates = tuple((int(family), where) for family, _, _, _, where in found)
        tunnel = b"" if proxy is None or tls is None else proxy.connect_request(host, port)
        return cls(host, port, tls, candidates, proxy, tunnel)


class Connection:
    """One TCP connection. Made by `Pool`."""

    __slots__ = (
        "_address", "_after", "_attempt", "_greeting", "_loop", "_outgoing", "_pool", "_reader", "_sock",
        "_tls", "_writer", "connecting", "exchange", "idle_since",
    )  # fmt: skip

    def __init__(self, pool: Pool, address: Address) -> None:
        self._pool, self._address = pool, address
        self._loop = gevent.get_hub().loop
        self._attempt = 0
        self._sock: Any = None
        self._reader: Any = None
        self._writer: Any = None
        self._tls: TlsLayer | None = None
        self._outgoing = b""
        self._greeting = b""
        # When the connection was last known to have nothing to read.
        self._after = 0.0
        self.exchange: Exchange | None = None
        self.connecting = True
        self.idle_since = 0.0

    def start(self, exchange: Exchange, request: bytes) -> None:
        """Sends `request` and hands what comes back to `exchange`, now or as soon as the connection is
        made.
        """
        self.exchange = exchange
        self._outgoing = request
        if self._sock is None:
            self._connect()
        else:
            self._begin(exchange)

    def _begin(self, exchange: Exchange) -> None:
        self._after = time.perf_counter()
        exchange.sending(self._after)
        if self._tls is not None:
            self._outgoing = self._tls.encrypt(self._outgoing)
        self._send()

    def _connect(self) -> None:
        family, where = self._address.candidates[self._attempt]
        self._sock = _socket.socket(
            family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        )
        self._sock.settimeout(0.0)
        self._sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        stamp_arrivals(self._sock)
        code = self._sock.connect_ex(where)
        if code not in (0, errno.EINPROGRESS):
            self._refused(code)
            return
        fd = self._sock.fileno()
        self._reader = self._loop.io(fd, _READ)
        self._writer = self._loop.io(fd, _WRITE)
        self._writer.start(self._connected)

    def _refused(self, code: int) -> None:
        self._release()
        self._attempt += 1
        if self._attempt < len(self._address.candidates):
            self._connect()
        else:
            proxy = self._address.proxy
            self._lost(OSError(code, os.strerror(code) + (f" by {proxy}" if proxy is not None else "")))

    def _connected(self) -> None:
        code = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            self._refused(code)
            return
        self._writer.stop()
        if self._address.tunnel:
            self._reader.start(self._tunnelled)
            try:
                # A few hundred bytes fit any send buffer.
                self._sock.send(self._address.tunnel)
            except OSError as error:
                self._lost(error)
            return
        self._secure()

    def _tunnelled(self) -> None:
        """Reads the proxy's response to CONNECT; TLS with the server begins after it."""
        data = self._received()
        if data is None:
            return
        self._greeting += data
        head, end, rest = self._greeting.partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0].split(b" ", 1)[-1]
        if end and status.startswith(b"200") and not rest:
            self._greeting = b""
            self._reader.stop()
            self._secure()
        elif end or not data or len(self._greeting) > _RECV_BYTES:
            answer = status.decode("latin-1", "replace")[:80] or "nothing"
            self._lost(OSError(errno.ECONNREFUSED, f"{self._address.proxy} answered {answer}"))

    def _secure(self) -> None:
        if self._address.tls is not None:
            self._tls = TlsLayer(self._address.tls, self._address.host)
            self._reader.start(self._handshake)
            self._handshake_step(b"")
        else:
            self._opened()

    def _received(self) -> bytes | None:
        """What has arrived, empty at the end; None where nothing has, or where the connection is lost."""
        try:
            data: bytes = self._sock.recv(_RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lost(error)
            return None
        return data

    def _handshake(self) -> None:
        data = self._received()
        if data is None:
            return
        if not data:
            self._lost(OSError(errno.ECONNRESET, "closed during the TLS handshake"))
            return
        self._handshake_step(data)

    def _handshake_step(self, data: bytes) -> None:
        assert self._tls is not None
        try:
            reply = self._tls.handshake(data)
            if reply:
                # A handshake's few kilobytes fit any send buffer.
                self._sock.send(reply)
        except OSError as error:
            self._lost(error)
            return
        if self._tls.open:
            self._opened()

    def _opened(self) -> None:
        self.connecting = False
        self._reader.stop()
        self._reader.start(self._readable)
        if self.exchange is None:
            self._pool.give_back(self)
            return
        self._begin(self.exchange)

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(error)
            return
        if sent == len(self._outgoing):
            self._outgoing = b""
            self._writer.stop()
        else:
            self._outgoing = self._outgoing[sent:]
            if not self._writer.active:
                self._writer.start(self._send)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_RECV_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        now = time.perf_counter()
        if ancillary:
            now = arrived(ancillary, self._after, now)
        self._after = now
        exchange = self.exchange
        over = not data
        if self._tls is not None and data:
            try:
                data, over = self._tls.decrypt(data)
            except ssl.SSLError as error:
                self._lost(error)
                return
        if exchange is None:
            # An idle connection has nothing to say but that it ends.
            self._pool.drop(self)
            return
        if data:
            exchange.received(data, now)
        if over and self.exchange is exchange:
            self.exchange = None
            self.close()
            exchange.closed(now)

    def _lost(self, error: OSError) -> None:
        exchange, self.exchange = self.exchange, None
        connecting = self.connecting
        self._pool.drop(self)
        if exchange is not None:
            exchange.lost(error, connecting=connecting, now=time.perf_counter())

    def finished(self, *, reusable: bool) -> None:
        """The exchange is over; the connection goes back to the pool where it can carry another."""
        self.exchange = None
        if reusable and not self._outgoing and not self.connecting:
            self._pool.give_back(self)
        else:
            self._pool.drop(self)

    def _release(self) -> None:
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._reader = self._writer = None
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = None

    def close(self) -> None:
        self.exchange = None
        self._release()


class Pool:
    """Connections to one address: as many as there are requests in flight, kept while they idle for 3 s.

    There is no upper limit: a limit would make requests wait in the client, which an open loop must not.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        reserve_descriptors()
        # The kernel begins to note times some milliseconds after the first socket asks it to, and stops with
        # the last: this one asks as long as the pool lives.
        self._stamping = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        stamp_arrivals(self._stamping)
        self._idle: list[Connection] = []
        self.opened = 0

    def start(self, exchange: Exchange, request: bytes) -> Connection:
        """Sends `request` on an idle connection, the last used first, or on a new one."""
        now = time.perf_counter()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < _IDLE_SECONDS:
                connection.start(exchange, request)
                return connection
            connection.close()
        connection = Connection(self, self._address)
        self.opened += 1
        connection.start(exchange, request)
        return connection

    def give_back(self, connection: Connection) -> None:
        connection.idle_since = time.perf_counter()
        self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()

    def prune(self) -> None:
        """Closes what has idled too long. The list is in order of the last use."""
        limit = time.perf_counter() - _IDLE_SECONDS
        keep = next((i for i, c in enumerate(self._idle) if c.idle_since >= limit), len(self._idle))
        for connection in self._idle[:keep]:
            connection.close()
        del self._idle[:keep]

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._stamping.close()
