"""What a client may take of the server before a request of its is whole: bytes of headers, and time.

uvicorn on httptools bounds neither: one header without an end takes memory until its client goes. Nor does it
read the body of a request that offers another protocol (`Upgrade: h2c`, as Java's client does).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wattserve.http.errors import error_object

# Start line and headers together, as most servers have it.
MAX_HEAD_BYTES = 64 << 10
# From the first byte of a request (or the connection) to its last.
REQUEST_SECONDS = 60.0

# Of an offer to change the protocol (RFC 9110, 7.8; RFC 7540, 3.2.1): for this connection alone.
_UPGRADE_OPTIONS = frozenset((b"upgrade", b"http2-settings"))


def connection_options(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The names in all `Connection` headers, in lower case: options, and headers of this connection."""
    return _listed(headers, b"connection")


def asks_for_websocket(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a websocket is among the protocols that `Upgrade` offers, with a version or without."""
    return any(name.partition(b"/")[0] == b"websocket" for name in _listed(headers, b"upgrade"))


def _listed(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    values = (value for name, value in headers if name.lower() == wanted)
    return [item for value in values for part in value.split(b",") if (item := part.strip().lower())]


class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc, unused-ignore]
    """Ends connections whose request is not whole in time, or whose head is too long or is not HTTP/1.

    A client that hangs up ends all of its requests: uvicorn tells the last one of a connection alone, and one
    before it, whose successor was sent ahead, waited for ever.

    A request that offers another protocol is answered in this one, which RFC 9110 (7.8) leaves to the server.
    """

    max_head_bytes = MAX_HEAD_BYTES
    request_seconds = REQUEST_SECONDS

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.parser: Any = _OneProtocol(self.parser, self)
        self._plain_head = b""
        self._head_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        self._open: list[Any] = []
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        for cycle in self._open:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._open.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            # What arrives with the end of a head may belong to the body.
            if self._head_bytes > self.max_head_bytes + len(data):
                self._refuse(431, f"the headers are longer than {self.max_head_bytes} bytes")
                return
        super().data_received(data)

    # --- what the parser calls

    def on_message_begin(self) -> None:
        self._in_head = True
        self._await_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        refusal = self._why_not()
        if refusal is not None:
            self._refuse(*refusal)
            return
        if self.parser.should_upgrade():
            self._plain_head = self._head_without_upgrade()
            return
        super().on_headers_complete()
        self._open = [cycle for cycle in self._open if not cycle.response_complete]
        self._open.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return  # the parser took the body for another protocol's bytes: the request is read again
        self._in_head = True
        self._end_wait()
        if not self.transport.is_closing():
            super().on_message_complete()

    # --- another protocol

    def take_plain_head(self) -> bytes:
        """The head of a request that offered another protocol, without that; empty where it was refused."""
        head, self._plain_head = self._plain_head, b""
        return b"" if self.transport.is_closing() else head

    def _head_without_upgrade(self) -> bytes:
        kept = [name for name in connection_options(self.headers) if name not in _UPGRADE_OPTIONS]
        dropped = _UPGRADE_OPTIONS | {b"connection"}
        headers = [pair for pair in self.headers if pair[0] not in dropped]
        headers += [(b"connection", b", ".join(kept))] if kept else []
        version = self.parser.get_http_version().encode()
        start = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        return start + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n"

    # --- the bounds

    def _why_not(self) -> tuple[int, str] | None:
        """(status, sentence) where the request is refused before anybody sees it."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return 505, f"HTTP/{version} is not spoken here"
        length = sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
        if length > self.max_head_bytes:
            return 431, f"the headers are longer than {self.max_head_bytes} bytes"
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (version == "1.1" and not hosts):
            return 400, "a request needs one Host header"
        if self.parser.get_method() == b"CONNECT":
            return 501, "tunnels (CONNECT) are not served here"
        if asks_for_websocket(self.headers):
            return 501, "websockets are not served here"
        return None

    def _await_request(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.request_seconds, self._too_slow)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(408, f"the request was not whole within {self.request_seconds:g} s")
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        if self.transport.is_closing():
            return
        reason = HTTPStatus(status).phrase
        kind = reason.title().replace(" ", "") + "Error"
        body = json.dumps(error_object(status, kind, sentence)).encode()
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


class _OneProtocol:
    """A parser for which HTTP/1.1 goes on after a request that offers another protocol.

    httptools reads nothing behind such a head: the body was lost, and what of it came later was taken for the
    next request.
    """

    def __init__(self, parser: Any, protocol: BoundedProtocol) -> None:
        self._parser = parser
        self._protocol = protocol

    def get_http_version(self) -> str:
        version: str = self._parser.get_http_version()
        return version

    def get_method(self) -> bytes:
        method: bytes = self._parser.get_method()
        return method

    def should_keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        return bool(self._parser.should_upgrade())

    def feed_data(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Its argument is where in `data` the other protocol would begin.
                head = self._protocol.take_plain_head()
                data = head + data[upgrade.args[0] :] if head else b""
                # The old one reads nothing more after `Connection: close`.
                self._parser = httptools.HttpRequestParser(self._protocol)
                self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
