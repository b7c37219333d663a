"""A streaming reverse proxy: passes requests on and responses back as they come, and counts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from wattserve.http.bounds import asks_for_websocket, connection_options
from wattserve.http.errors import send_error
from wattserve.http.middleware import Receive, Scope, Send
from wattserve.meter.upstream import Address, Headers, Response, Upstream, UpstreamError

logger = logging.getLogger("wattserve.meter")

# Belong to one connection, not to the message (RFC 9110, 7.6.1); the server adds its own date and server.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection",
}  # fmt: skip
_NOT_PASSED_ON = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}
_NOT_PASSED_BACK = _HOP_BY_HOP | {b"date", b"server"}
# A request's joules are found by it: it goes on whatever the client's `Connection` says of it.
_ALWAYS_PASSED_ON = {b"x-request-id"}
MODEL_SECONDS = 2.0
# A longer body is passed on as it comes, and nothing of it is looked at: joining and reading 100 MB took half
# a second, in which nobody else was served, and all of it was held in memory several times.
MOST_WHOLE_BYTES = 8 << 20
NO_WEBSOCKETS = "this proxy passes on requests and responses, no websockets: connect to the server itself"


class Observer(Protocol):
    """Who is told what of a request was seen on its way, and when. Nothing here may block or fail."""

    def body(self, request_id: str, path: str, body: bytes) -> None:
        """The whole body of a request to `path` that is being sent."""

    def part(self, request_id: str, part: bytes, read_ns: int) -> None:
        """A piece of its response's stream, read at time.monotonic_ns `read_ns`."""


class StreamingProxy:
    """An ASGI app in front of `upstream`. Responses are not held back, and asked for uncompressed.

    `observer` is told of requests to the `observed` paths. Raises UpstreamAddressError.
    """

    def __init__(
        self,
        upstream: str,
        registry: CollectorRegistry,
        *,
        observer: Observer | None = None,
        observed: tuple[str, ...] = (),
    ) -> None:
        self.address = Address.parse(upstream)
        self._server = Upstream(self.address)
        self._observer = observer
        self._observed = observed
        self._requests = Counter(
            "wattserve_proxy_requests",
            "Requests passed on, by status or failure.",
            ["outcome"],
            registry=registry,
        )
        self._inflight = Gauge("wattserve_proxy_inflight_requests", "Requests under way.", registry=registry)
        self._seconds = Histogram(
            "wattserve_proxy_request_seconds",
            "From a request's arrival to the end of its response.",
            registry=registry,
        )

    async def model(self) -> str:
        """The name of the first model that the upstream serves; empty where it does not say so at once."""
        try:
            async with asyncio.timeout(MODEL_SECONDS):
                target = self.address.prefix + b"/v1/models"
                headers = [(b"host", self.address.authority), (b"user-agent", b"wattserve-meter")]
                response = await self._server.request(b"GET", target, headers, b"")
                body = b"".join([part async for part, _ in response.parts()])
                response.close()
            return str(json.loads(body)["data"][0]["id"])
        except (UpstreamError, TimeoutError, ValueError, LookupError, TypeError):
            return ""

    async def stop(self) -> None:
        await self._server.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        began = time.monotonic()
        outcome = "client_gone"
        self._inflight.inc()
        try:
            outcome = await self._pass_on(scope, receive, send)
        finally:
            self._inflight.dec()
            self._requests.labels(outcome).inc()
            self._seconds.observe(time.monotonic() - began)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> str:
        given: Headers = scope["headers"]
        names = {name.lower(): value for name, value in given}
        if asks_for_websocket(given):
            await _error(send, 501, "NotImplementedError", NO_WEBSOCKETS)
            return "501"
        headers = _end_to_end(given, _NOT_PASSED_ON)
        headers.append((b"host", self.address.authority))
        headers.append((b"accept-encoding", b"identity"))
        body_read = asyncio.Event()
        body: bytes | AsyncIterator[bytes]
        length = names.get(b"content-length")
        if b"transfer-encoding" in names:
            body = _body(receive, body_read)
        elif length is not None and length.isdigit() and int(length) > MOST_WHOLE_BYTES:
            body = _body(receive, body_read)
            headers.append((b"content-length", length))
        else:
            whole = await _whole_body(receive)
            if whole is None:
                return "client_gone"
            body_read.set()
            body = whole
            if whole or length is not None:
                headers.append((b"content-length", str(len(whole)).encode()))
        answer = asyncio.create_task(self._answer(scope, headers, body, names, send))
        gone = asyncio.create_task(_client_gone(receive, body_read))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            # Nobody reads on: the upstream must not go on working for nobody.
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await answer
            return "client_gone"
        finally:
            answer.cancel()
            gone.cancel()

    async def _answer(
        self,
        scope: Scope,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        names: dict[bytes, bytes],
        send: Send,
    ) -> str:
        started = False
        response: Response | None = None
        observer = self._observer if scope["path"] in self._observed else None
        request_id = names.get(b"x-request-id", b"").decode("latin-1")
        if observer is not None and isinstance(body, bytes):
            # Read once the request is on its way: it shall not wait for that.
            asyncio.get_running_loop().call_soon(observer.body, request_id, scope["path"], body)
        try:
            response = await self._server.request(
                scope["method"].encode("latin-1"), self._target(scope), headers, body
            )
            back = _end_to_end(response.headers, _NOT_PASSED_BACK)
            await send({"type": "http.response.start", "status": response.status, "headers": back})
            started = True
            async for part, read_ns in response.parts():
                if observer is not None and response.status == 200:
                    observer.part(request_id, part, read_ns)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return str(response.status)
        except UpstreamError as error:
            if started:
                # Half a response cannot be taken back. Without its end the server breaks the connection, as
                # the upstream's was.
                logger.warning("%s: %s", self.address.url, error)
            else:
                await _error(send, 502, "BadGatewayError", f"{self.address.url}: {error}")
            return "upstream_error"
        finally:
            if response is not None:
                response.close()

    def _target(self, scope: Scope) -> bytes:
        """The request's target as it came, behind the upstream's prefix."""
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        if path == b"*":
            return path  # OPTIONS: about the server as a whole
        query: bytes = scope.get("query_string", b"")
        return self.address.prefix + path + (b"?" + query if query else b"")


def _end_to_end(headers: Headers, excluded: set[bytes]) -> list[tuple[bytes, bytes]]:
    """`headers` without those `excluded`, and without those that their `Connection` names."""
    excluded = excluded.union(connection_options(headers)) - _ALWAYS_PASSED_ON
    return [pair for pair in headers if pair[0].lower() not in excluded]


async def _client_gone(receive: Receive, body_read: asyncio.Event) -> None:
    await body_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole_body(receive: Receive) -> bytes | None:
    """The body of a request that says its length; None where the client went away in it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _body(receive: Receive, read: asyncio.Event) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise UpstreamError("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            read.set()
            return


async def _error(send: Send, status: int, kind: str, message: str) -> None:
    with contextlib.suppress(RuntimeError):
        await send_error(send, status, kind, message)


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "websocket.http.response.start", "status": 501, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": NO_WEBSOCKETS.encode()})
    else:
        await send({"type": "websocket.close", "code": 1011, "reason": NO_WEBSOCKETS})
