"""What a client may take of the server before a request of its is whole: bytes of headers, and time.

uvicorn on httptools bounds neither: one header without an end takes memory until its client goes.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wattserve.http.errors import error_object

# Start line and headers together, as most servers have it.
MAX_HEAD_BYTES = 64 << 10
# From the first byte of a request (or the connection) to its last.
REQUEST_SECONDS = 60.0


class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc, unused-ignore]
    """Ends connections whose request is not whole in time, or whose head is too long or is not HTTP/1.

    A client that hangs up ends all of its requests: uvicorn tells the last one of a connection alone, and one
    before it, whose successor was sent ahead, waited for ever.
    """

    max_head_bytes = MAX_HEAD_BYTES
    request_seconds = REQUEST_SECONDS

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
        super().on_headers_complete()
        self._open = [cycle for cycle in self._open if not cycle.response_complete]
        self._open.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._end_wait()
        if not self.transport.is_closing():
            super().on_message_complete()

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
        upgrade = next((value for name, value in self.headers if name == b"upgrade"), None)
        if upgrade is not None and upgrade.lower() == b"websocket":
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
