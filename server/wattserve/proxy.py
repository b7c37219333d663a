"""A streaming reverse proxy: passes requests on and answers back as they come, and counts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from wattserve.middleware import Receive, Scope, Send

# Belong to one connection, not to the message (RFC 9110, 7.6.1); the server adds its own date and server.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection",
}  # fmt: skip
_NOT_PASSED_ON = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding"}
_NOT_PASSED_BACK = _HOP_BY_HOP | {b"date", b"server"}
CONNECT_SECONDS = 10.0


class StreamingProxy:
    """An ASGI app in front of `upstream`. Answers are not held back, and asked for uncompressed."""

    def __init__(self, upstream: str, registry: CollectorRegistry) -> None:
        self.upstream = upstream.rstrip("/")
        self._client: httpx.AsyncClient | None = None
        self._requests = Counter(
            "wattserve_proxy_requests",
            "Requests passed on, by status or failure.",
            ["outcome"],
            registry=registry,
        )
        self._inflight = Gauge("wattserve_proxy_inflight_requests", "Requests under way.", registry=registry)
        self._seconds = Histogram(
            "wattserve_proxy_request_seconds",
            "From a request's arrival to its answer's end.",
            registry=registry,
        )

    async def start(self) -> None:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024)
        self._client = httpx.AsyncClient(
            timeout=timeout, limits=limits, follow_redirects=False, trust_env=False
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._client is None:
            return
        began = time.monotonic()
        outcome = "client_gone"
        with self._inflight.track_inprogress():
            try:
                outcome = await self._pass_on(self._client, scope, receive, send)
            finally:
                self._requests.labels(outcome).inc()
                self._seconds.observe(time.monotonic() - began)

    async def _pass_on(self, client: httpx.AsyncClient, scope: Scope, receive: Receive, send: Send) -> str:
        target = self.upstream + scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if scope.get("query_string"):
            target += "?" + scope["query_string"].decode("latin-1")
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in _NOT_PASSED_ON]
        headers.append((b"accept-encoding", b"identity"))
        length = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), None)
        chunked = any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])
        if length is not None:
            headers.append((b"content-length", length))
        has_body = length not in (None, b"0") or chunked
        body_read = asyncio.Event()
        content = _body(receive, body_read) if has_body else None
        if not has_body:
            await receive()  # the empty body; after it comes only the end
            body_read.set()
        request = client.build_request(scope["method"], target, headers=headers, content=content)
        answer = asyncio.create_task(self._answer(client, request, send))
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

    async def _answer(self, client: httpx.AsyncClient, request: httpx.Request, send: Send) -> str:
        started = False
        try:
            response = await client.send(request, stream=True)
            try:
                back = [pair for pair in response.headers.raw if pair[0].lower() not in _NOT_PASSED_BACK]
                await send({"type": "http.response.start", "status": response.status_code, "headers": back})
                started = True
                async for part in response.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                await response.aclose()
            return str(response.status_code)
        except httpx.HTTPError as error:
            if started:
                # Half an answer cannot be taken back: let the connection break, as the upstream's did.
                raise
            await _bad_gateway(send, f"{self.upstream}: {error or type(error).__name__}")
            return "upstream_error"


async def _client_gone(receive: Receive, body_read: asyncio.Event) -> None:
    await body_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive, read: asyncio.Event) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise httpx.RequestError("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            read.set()
            return


async def _bad_gateway(send: Send, message: str) -> None:
    error = {"message": message, "type": "BadGatewayError", "param": None, "code": 502}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    with contextlib.suppress(RuntimeError):
        await send({"type": "http.response.start", "status": 502, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
