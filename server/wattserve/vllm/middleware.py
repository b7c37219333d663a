"""The ASGI middleware that vLLM loads with `--middleware wattserve.vllm.EnergyMiddleware`.

When the application starts it starts metering, adds the energy routes to vLLM's application and lets every
response through the middleware that all modes of wattserve share. Whatever fails here leaves vLLM serving:
responses then carry `"energy": null` and the reason.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from wattmeter.faults import Fault

from wattserve import middleware as shared
from wattserve.middleware import ASGIApp, Message, Receive, Scope, Send
from wattserve.vllm import outcome, selftest, socket_path
from wattserve.vllm.settings import Settings

if TYPE_CHECKING:
    from wattserve.vllm.metering import Metering

logger = logging.getLogger("wattserve.vllm")

# How long a response may wait for the first step record of its request: a flush and the way through two
# threads. Only a request of a few steps ever waits.
RECORD_WAIT_SECONDS = 0.15
SECRET_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class EnergyMiddleware:
    """Wraps vLLM's application; takes its settings from the environment (`settings.FLAGS`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._metering: Metering | None = None
        self._shared = shared.EnergyMiddleware(_AwaitRecords(app, self), None)
        self._group_header = b"x-energy-group"
        self._shutdown_asked = False
        self._stopped = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if self._group_header != b"x-energy-group" and scope["type"] == "http":
            scope = self._with_group(scope)
        await self._shared(scope, receive, send)

    def knows_steps_of(self, request_id: str) -> bool:
        """Whether a step record of the request has arrived, or will not arrive because nothing is metered."""
        if self._metering is None:
            return True
        return self._metering.account.has_steps(request_id)

    def _with_group(self, scope: Scope) -> Scope:
        headers = [pair for pair in scope["headers"] if pair[0] != b"x-energy-group"]
        for name, value in scope["headers"]:
            if name == self._group_header:
                # A key names its tenant without being kept or shown.
                secret = name in SECRET_HEADERS
                tag = hashlib.sha256(value).hexdigest()[:12].encode() if secret else value
                headers.append((b"x-energy-group", tag))
                break
        return {**scope, "headers": headers}

    # -- start and end of the application

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._start(scope["app"])
            elif message["type"] == "lifespan.shutdown":
                self._stopped.set()
                self._note_engine_death(scope["app"])
                if self._metering is not None:
                    await asyncio.to_thread(self._metering.stop)
            return message

        await self._app(scope, watched, send)

    def _start(self, app: Any) -> None:
        try:
            self._start_metering(app)
        except Exception as error:
            sentence = str(error) or type(error).__name__
            logger.exception("wattserve: serving without energy: %s", sentence)
            self._shared.no_energy_reason = f"not metered: {sentence}"
            self._shared.account = None
            if self._metering is not None:
                self._metering.stop()
                self._metering = None
        self._watch_shutdown(app)

    def _start_metering(self, app: Any) -> None:
        import prometheus_client

        from wattserve.energy_routes import EnergyRoutes, add_energy_routes
        from wattserve.metrics import AccountCollector
        from wattserve.vllm.metering import Metering, engine_gpus, engine_padding, engine_version

        settings = Settings.from_environment(os.environ)
        self._group_header = settings.group_header.encode()
        config = app.state.vllm_config
        parallel = config.parallel_config
        _check_one_engine(parallel, app.state.args, settings)
        model_name = _model_name(config)
        metering = Metering(
            settings,
            model_name=model_name,
            gpus=engine_gpus(
                parallel.world_size, os.environ, getattr(parallel, "assigned_physical_gpu_ids", None)
            ),
            step_socket=_step_socket(),
            padding=engine_padding(config),
        )
        metering.start()
        self._metering = metering
        self._shared.account = metering.account
        routes = EnergyRoutes(
            metering.account,
            engine=engine_version(),
            model_name=model_name,
            max_model_len=config.model_config.max_model_len,
        )
        add_energy_routes(app, routes)
        collector = AccountCollector(
            metering.account,
            info={"mode": "vllm", "engine": engine_version(), "model": model_name},
            registry=prometheus_client.REGISTRY,
        )

        def tested(found: dict[str, Any]) -> None:
            routes.selftest = collector.selftest = found
            for name in found.get("flags", ()):
                metering.account.add_flag(Fault(name))

        # The test may outlast the loading of the model.
        follow = functools.partial(selftest.follow, tested, wait=self._stopped.wait)
        threading.Thread(target=follow, name="wattserve-selftest", daemon=True).start()

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
        print(f"wattserve: {sentence}", file=sys.stderr, flush=True)


class _AwaitRecords:
    """Holds the part of a response that carries `usage` until the request's first step record is here.

    A response of a few steps would otherwise overtake its records and come without energy.
    """

    def __init__(self, app: ASGIApp, owner: EnergyMiddleware) -> None:
        self._app = app
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in shared.METERED_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1").strip()
        known = False

        async def held(message: Message) -> None:
            nonlocal known
            if not known and b'"usage"' in message.get("body", b""):
                await self._wait(request_id)
                known = True
            await send(message)

        await self._app(scope, receive, held)

    async def _wait(self, request_id: str) -> None:
        deadline = asyncio.get_running_loop().time() + RECORD_WAIT_SECONDS
        while not self._owner.knows_steps_of(request_id):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.004)


def _model_name(config: Any) -> str:
    name = config.model_config.served_model_name
    if isinstance(name, list):
        name = name[0] if name else None
    return str(name or config.model_config.model)


def _step_socket() -> str:
    address = os.environ.get(socket_path.VARIABLE)
    if not address:
        raise RuntimeError(
            "vLLM did not load the plugin `wattserve`: is wattload installed for the same Python, and"
            " `wattserve` among VLLM_PLUGINS?"
        )
    return address


def _check_one_engine(parallel: Any, args: Any, settings: Settings) -> None:
    """Raises RuntimeError where a step's joules would not be those of one engine's GPUs on this host."""
    if parallel.data_parallel_size != 1:
        raise RuntimeError("several data-parallel engines are not metered per request: one server a replica")
    if (getattr(args, "api_server_count", None) or 1) != 1:
        raise RuntimeError("several API processes are not metered per request: --api-server-count 1")
    if getattr(parallel, "nnodes", 1) != 1:
        raise RuntimeError("an engine on several hosts is not metered: only the GPUs of this host are read")
    backend = getattr(parallel, "distributed_executor_backend", None)
    if "ray" in str(getattr(backend, "__name__", backend)).lower() and settings.devices is None:
        raise RuntimeError(
            "Ray places the engine's workers itself: name their GPUs on this host with --energy-devices"
        )
