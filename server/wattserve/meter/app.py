"""`wattserve meter`: the node's meter, put together: sensors, engines, routes, metrics and self-test.

Engines send it their steps, and API processes their requests (`ingest`). In front of a server that sends
neither it is a proxy, and what each response cost is estimated from its stream (`estimates`). Beside a server
without being in front of it, it answers for devices and windows alone, and without steps it cannot tell an
idle device from a busy one: idle power is what was given, or null and flagged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from wattmeter.endpoints import METERED_PATHS
from wattmeter.faults import Fault
from wattmeter.monitor.energy_monitor import NO_STEPS_REASON
from wattmeter.selftest.sensor_test import run_selftest
from wattmeter.sensor_gain import SensorGain
from wattserve import __version__
from wattserve.http.errors import error_object
from wattserve.http.keys import KeyGuard, Keys
from wattserve.http.middleware import (
    TENANT_KEY,
    ASGIApp,
    EnergyMiddleware,
    Message,
    Receive,
    Scope,
    Send,
)
from wattserve.http.routes import add_energy_routes
from wattserve.meter import selftest_process
from wattserve.meter.answers import NodeCollector, NodeRoutes, View
from wattserve.meter.components.collector import ComponentCollector
from wattserve.meter.components.components import Components
from wattserve.meter.engines import Node
from wattserve.meter.estimates import StreamEstimates
from wattserve.meter.ingest import Ingest
from wattserve.meter.proxy import StreamingProxy
from wattserve.meter_spec import GPU_KINDS
from wattserve.protocol.address import socket_path
from wattserve.protocol.messages import HttpQuestion

# Names the server whose engines a passed-on request is about.
SERVER_KEY = "wattserve.server"


class MeterApp:
    """Everything of one `wattserve meter`. `app` is the ASGI application.

    `address` is where engines send their steps (None: nowhere). `selftest_seconds`: how long to test the
    sensors, before serving or, with `selftest_beside`, while serving (None: not at all); see /energy. `keys`
    open the routes over HTTP; an API process that asks on behalf of a client has looked at its key itself.
    `components` is what is metered of the node besides. `gains`: of its devices' sensors, where measured.
    """

    def __init__(
        self,
        node: Node,
        *,
        address: str | None = None,
        upstream: str | None = None,
        selftest_seconds: float | None = None,
        selftest_beside: bool = False,
        keys: Keys | None = None,
        components: Components | None = None,
        gains: Mapping[str, SensorGain] = MappingProxyType({}),
    ) -> None:
        self.node = node
        self.components = components
        self.gains = gains
        self.registry = CollectorRegistry()
        # With a socket engines say themselves what they did.
        self.estimates = StreamEstimates(node) if upstream is not None and address is None else None
        self.proxy = (
            None
            if upstream is None
            else StreamingProxy(upstream, self.registry, observer=self.estimates, observed=METERED_PATHS)
        )
        self._selftest_seconds = selftest_seconds
        self._selftest_beside = selftest_beside
        self._selftest: dict[str, Any] | None = None
        self._started = time.monotonic()
        self._software = f"wattserve-meter {__version__}"
        info = {"engine": "wattserve-meter", "version": __version__, "source": node.source}
        self.collector = NodeCollector(node, info=info, registry=self.registry)
        if components is not None:
            ComponentCollector(components, registry=self.registry)
        if gains:
            shown = Gauge(
                "wattserve_device_gain_ratio",
                "Joules of a reference meter for each joule of the device's sensor, as calibrated.",
                ["device"],
                registry=self.registry,
            )
            for device, gain in gains.items():
                shown.labels(device).set(gain.gain)
        self._routes: dict[str | None, NodeRoutes] = {}
        self.routes = self.routes_of(None)
        self.ingest = (
            None
            if address is None
            else Ingest(address, node, serve_http=self._serve_http, version=__version__)
        )
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.api = self._api()
        # The first part of the paths that are the meter's own: everything else is the upstream's, past the
        # framework, which would cost more than the rest of the way.
        self._own = {route.path.split("/")[1] for route in self.api.routes if isinstance(route, Route)}
        served = self.api if self.proxy is None else self._dispatch
        metered: ASGIApp = EnergyMiddleware(served, self.estimates, no_energy_reason=NO_STEPS_REASON)
        self.app: ASGIApp = KeyGuard(metered, keys) if keys else metered

    def routes_of(self, server: str | None) -> NodeRoutes:
        """The energy routes for the engines of one server; for all where None."""
        routes = self._routes.get(server)
        if routes is None:
            view = View(self.node, server)
            routes = NodeRoutes(view, software=self._software, components=self.components, gains=self.gains)
            routes.selftest = self._selftest
            self._routes[server] = routes
        return routes

    # --- life -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        if self._selftest_seconds is not None and not self._selftest_beside:
            result = await asyncio.to_thread(run_selftest, self.node.meter, self._selftest_seconds)
            self._note_selftest(result.as_json())
        self.node.start()
        if self.components is not None:
            self.components.start()
        if self.ingest is not None:
            self.ingest.start()
        if self.estimates is not None and self.proxy is not None:
            self.estimates.start(await self.proxy.model())
        if self._selftest_seconds is not None and self._selftest_beside and self.node.spec.kind in GPU_KINDS:
            path = selftest_process.start(
                self._selftest_seconds, self.node.spec.devices, kind=self.node.spec.kind
            )
            follow = functools.partial(
                selftest_process.follow, path, self._note_selftest, wait=self._stopped.wait
            )
            threading.Thread(target=follow, name="wattserve-selftest", daemon=True).start()
        yield
        self._stopped.set()
        if self.proxy is not None:
            await self.proxy.stop()
        if self.estimates is not None:
            await self.estimates.stop()
        if self.components is not None:
            await asyncio.to_thread(self.components.stop)
        if self.ingest is not None:
            await asyncio.to_thread(self.ingest.stop)
        await asyncio.to_thread(self.node.stop)

    def _note_selftest(self, found: dict[str, Any]) -> None:
        self._selftest = self.collector.selftest = found
        for routes in list(self._routes.values()):
            routes.selftest = found
        for name in found.get("flags", ()):
            self.node.add_flag(Fault(name))

    # --- routes ---------------------------------------------------------------------------------------------

    def _api(self) -> FastAPI:
        api = FastAPI(title="wattserve meter", version=__version__, lifespan=self._lifespan)
        add_energy_routes(api, self._chosen)

        @api.get("/health")
        async def health() -> Response:
            """503 once no device gives readings; the upstream has its own."""
            failed = await asyncio.to_thread(self._failure)
            return Response() if failed is None else PlainTextResponse(failed, status_code=503)

        @api.get("/metrics")
        def metrics(request: Request) -> Response:
            server = request.scope.get(SERVER_KEY)
            registry = self.registry
            if server is not None:
                registry = CollectorRegistry()
                registry.register(_OfServer(self.collector, server))
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        @api.get("/version")
        async def version() -> dict[str, str]:
            return {"version": __version__}

        if self.proxy is None:

            @api.api_route("/v1/{path:path}", methods=["GET", "POST"])
            async def no_model(path: str) -> Response:
                message = f"/v1/{path}: this is a meter without --upstream; it serves no model."
                return JSONResponse(error_object(404, "NotFoundError", message), status_code=404)

        return api

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.proxy is not None
        first = scope.get("path", "").split("/", 2)[1:2]
        own = scope["type"] == "lifespan" or (scope["type"] == "http" and first and first[0] in self._own)
        await (self.api if own else self.proxy)(scope, receive, send)

    def _chosen(self, request: Request) -> NodeRoutes:
        return self.routes_of(request.scope.get(SERVER_KEY))

    def _failure(self) -> str | None:
        devices = self.routes.view.devices()
        if any(
            device.sample_age_seconds is not None and device.sample_age_seconds < 30.0 for device in devices
        ):
            return None
        started = time.monotonic() - self._started < 30.0
        return None if started else "no device has given a reading for 30 s"

    # --- requests that come by way of an API process --------------------------------------------------------

    def _serve_http(self, question: HttpQuestion, reply: Callable[[dict[str, Any], bytes], None]) -> None:
        loop = self._loop
        if loop is None:
            reply({"status": 503, "content_type": "text/plain"}, b"the meter is starting")
            return

        def begin() -> None:
            task = loop.create_task(self._answer(question, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        loop.call_soon_threadsafe(begin)

    async def _answer(self, question: HttpQuestion, reply: Callable[[dict[str, Any], bytes], None]) -> None:
        """Has our own application answer, as if it had been asked over HTTP."""
        content: dict[str, Any] = {"status": 500, "content_type": "text/plain"}
        body = bytearray()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": question.method,
            "scheme": "http",
            "path": question.path,
            "raw_path": question.path.encode(),
            "query_string": question.query.encode(),
            "root_path": "",
            "headers": [(b"host", b"meter"), (b"content-type", b"application/json")],
            "client": None,
            "server": None,
            SERVER_KEY: question.server,
            **({TENANT_KEY: question.tenant} if question.tenant else {}),
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": question.body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {key.lower(): value for key, value in message.get("headers", ())}
                content["status"] = message["status"]
                content["content_type"] = headers.get(b"content-type", b"text/plain").decode("latin-1")
            else:
                body.extend(message.get("body", b""))

        try:
            await self.api(scope, receive, send)
        finally:
            reply(content, bytes(body))


class _OfServer(Collector):
    """The metrics of one server's engines."""

    def __init__(self, collector: NodeCollector, server: str) -> None:
        self._collector = collector
        self._server = server

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Any:
        return self._collector.of(self._server)


def state_file(address: str | None) -> Path | None:
    """Where a meter at an ipc address keeps what the next one there must know."""
    path = None if address is None else socket_path(address)
    return None if path is None else path.with_suffix(".state")
