"""The ASGI middleware that vLLM loads with `--middleware wattserve.vllm.EnergyMiddleware`.

It is thin: it tells the meter of each request's start and end, asks it once for the joules of a response, and
passes questions to `/energy` on. Nothing is measured in this process, and it has no thread. Whatever fails
here leaves vLLM serving: responses then carry `"energy": null` and the reason.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wattmeter.standard_streams import say
from wattserve.http import middleware as shared
from wattserve.http.errors import error_object
from wattserve.http.keys import Keys, unauthorized
from wattserve.http.middleware import TENANT_KEY, ASGIApp, Message, Receive, Scope, Send
from wattserve.meter.client import MeterClient, MeterGoneError
from wattserve.meter.several import SeveralMeters
from wattserve.protocol import address
from wattserve.vllm import outcome
from wattserve.vllm.engine_facts import why_not_metered
from wattserve.vllm.named_responses import NamedResponses
from wattserve.vllm.settings import (
    DEFAULT_GROUP_HEADER,
    REASON_VARIABLE,
    SERVER_VARIABLE,
    further_meters,
    named_devices,
    tenant_from,
)

logger = logging.getLogger("wattserve.vllm")

MAX_BODY_BYTES = 8 << 20
SECRET_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_GROUP_HEADER = DEFAULT_GROUP_HEADER.encode()


class EnergyMiddleware:
    """Wraps vLLM's application; takes its settings from the environment (`settings.FLAGS`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._client: MeterClient | SeveralMeters | None = None
        self._shared = shared.EnergyMiddleware(NamedResponses(app), None)
        self._group_header = _GROUP_HEADER
        # Until the application has said what its keys are, nobody has one.
        self._keys = Keys.closed()
        self._shutdown_asked = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Not a coroutine: each one around the app is walked through whenever the app has waited."""
        if scope["type"] == "lifespan":
            return self._lifespan(scope, receive, send)
        if scope["type"] == "http":
            if self._client is not None and _is_metrics(scope):
                return self._metrics(self._client, scope, receive, send)
            if self._group_header != _GROUP_HEADER:
                scope = self._with_group(scope)
            if self._keys:
                admitted = self._keys.admit(scope)
                if admitted is None and _is_energy(scope):
                    return unauthorized(send)
                if admitted is None:
                    # vLLM's own to answer, with 401 where it asks for a key; nothing is accounted for it.
                    return self._app(scope, receive, send)
                scope = admitted
        return self._shared.respond(scope, receive, send)

    def _with_group(self, scope: Scope) -> Scope:
        headers = [pair for pair in scope["headers"] if pair[0] != _GROUP_HEADER]
        for name, value in scope["headers"]:
            if name == self._group_header:
                # A key names its tenant without being kept or shown.
                secret = name in SECRET_HEADERS
                tag = hashlib.sha256(value).hexdigest()[:12].encode() if secret else value
                headers.append((_GROUP_HEADER, tag))
                break
        return {**scope, "headers": headers}

    # -- start and end of the application

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._start(scope["app"])
            elif message["type"] == "lifespan.shutdown":
                self._note_engine_death(scope["app"])
                if self._client is not None:
                    self._client.close()
            return message

        await self._app(scope, watched, send)

    def _start(self, app: Any) -> None:
        try:
            self._keys = Keys(keys_of(app, os.environ), tenant_from(os.environ))
            self._attach(app)
        except Exception as error:
            sentence = str(error) or type(error).__name__
            logger.warning("wattserve: serving without energy: %s", sentence)
            self._shared.no_energy_reason = f"not metered: {sentence}"
            self._shared.source = None
        self._watch_shutdown(app)

    def _attach(self, app: Any) -> None:
        header = os.environ.get("WATTSERVE_GROUP_HEADER", "").strip()
        self._group_header = (header or DEFAULT_GROUP_HEADER).lower().encode()
        at = os.environ.get(address.VARIABLE)
        reason = os.environ.get(REASON_VARIABLE, "").removeprefix("not metered: ")
        if reason:
            raise RuntimeError(reason)
        if not at or not os.environ.get(SERVER_VARIABLE):
            raise RuntimeError(
                "vLLM did not load the plugin `wattserve`: is wattload installed for the same Python, and"
                " `wattserve` among VLLM_PLUGINS?"
            )
        further = further_meters(os.environ)
        why = why_not_metered(
            app.state.vllm_config.parallel_config,
            named_devices(os.environ),
            [meter.devices for meter in further],
        )
        if why is not None:
            raise RuntimeError(why)
        server = os.environ[SERVER_VARIABLE]
        own = MeterClient(address.address_of(at), server)
        others = {meter.address: MeterClient(meter.address, server) for meter in further}
        client = SeveralMeters(own, others) if others else own
        client.start()
        self._client = self._shared.source = client
        app.routes[:0] = [
            Route("/energy", self._pass_on, methods=["GET"]),
            Route("/energy/{path:path}", self._pass_on, methods=["GET", "POST"]),
        ]

    # -- what the meter answers

    async def _pass_on(self, request: Request) -> Response:
        """A request to the energy routes of this server's port: the meter answers it."""
        assert self._client is not None
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return _error(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        try:
            status, kind, content = await self._client.http(
                request.method,
                path,
                request.scope["query_string"].decode("latin-1"),
                body,
                tenant=request.scope.get(TENANT_KEY, ""),
            )
        except MeterGoneError as error:
            return _error(503, str(error))
        return Response(content, status, media_type=kind)

    async def _metrics(
        self, client: MeterClient | SeveralMeters, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """vLLM's metrics, whichever of its processes they are of, and behind them the meter's."""
        # As plain text: two expositions of that kind may follow one another.
        dropped = (b"accept", b"accept-encoding")
        headers = [pair for pair in scope["headers"] if pair[0] not in dropped]
        start: Message = {}
        body = bytearray()

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self._app({**scope, "headers": headers}, receive, take)
        if start.get("status") == 200:
            try:
                status, _, ours = await client.http("GET", "/metrics", "")
                if status == 200:
                    body += (b"" if body.endswith(b"\n") else b"\n") + ours
            except MeterGoneError as error:
                body += f"# wattserve: {error}\n".encode()
        kept = [pair for pair in start.get("headers", ()) if pair[0].lower() != b"content-length"]
        await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": bytes(body), "more_body": False})

    # -- the engine's death: vLLM ends its server with status 0 and no last word

    def _watch_shutdown(self, app: Any) -> None:
        client = app.state.engine_client
        shutdown = client.shutdown

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._shutdown_asked = True
            return shutdown(*args, **kwargs)

        client.shutdown = noted

    def _note_engine_death(self, app: Any) -> None:
        if self._shutdown_asked or not app.state.engine_client.errored:
            return
        sentence = "vLLM's engine died while serving; the reason is further up in the log"
        outcome.engine_died(sentence)
        say(f"wattserve: {sentence}", error=True)


def keys_of(app: Any, environment: Mapping[str, str]) -> list[str]:
    """The keys that vLLM asks for below /v1: those of `--api-key`, or of its variable.

    vLLM looks at the paths below /v1 alone, and a middleware given to it stands outside of that check. A key
    check whose keys cannot be read here gives one key that nobody has.
    """
    args = getattr(app.state, "args", None)
    given = getattr(args, "api_key", None) or environment.get("VLLM_API_KEY", "")
    keys = [given] if isinstance(given, str) else list(given)
    checked = False
    for entry in getattr(app, "user_middleware", ()):
        if getattr(getattr(entry, "cls", None), "__name__", "") != "AuthenticationMiddleware":
            continue
        checked = True
        values = [*getattr(entry, "args", ()), *getattr(entry, "kwargs", {}).values()]
        keys += [key for value in values if isinstance(value, list | tuple) for key in value]
    keys = [key for key in keys if isinstance(key, str) and key]
    return keys or ([secrets.token_hex(32)] if checked else [])


def _is_energy(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path == "/energy" or path.startswith("/energy/")


def _is_metrics(scope: Scope) -> bool:
    if scope["method"] != "GET":
        return False
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in ("/metrics", "/metrics/")


def _error(status: int, message: str) -> Response:
    return JSONResponse(error_object(status, "internal_error", message), status_code=status)
