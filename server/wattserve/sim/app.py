"""`wattserve sim`: OpenAI's API, the simulated GPU, its modelled meter and the energy monitor, together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from wattmeter import endpoints
from wattmeter.faults import Fault
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattserve import __version__
from wattserve.http.keys import KeyGuard, Keys
from wattserve.http.metrics import MonitorCollector
from wattserve.http.middleware import ASGIApp, EnergyMiddleware, MonitorSource, Receive, Scope, Send
from wattserve.http.routes import EnergyRoutes, add_energy_routes
from wattserve.sim.engine import Engine
from wattserve.sim.metrics import EngineMetrics
from wattserve.sim.modelled_energy import ModelledEnergy
from wattserve.sim.openai.endpoints import GenerateEndpoint, Model, PooledEndpoint, read_body
from wattserve.sim.openai.errors import ApiError
from wattserve.sim.openai.pooled import PooledKind
from wattserve.sim.openai.protocol import Kind, chat_text, check_text, parse_json
from wattserve.sim.openai.vocabulary import Tokenizer
from wattserve.sim.profile import Profile
from wattserve.sim.scheduler import Limits
from wattserve.sim.step_delay import DEFAULT_TOLERANCE_SECONDS, StepDelayLog

_GENERATE: tuple[tuple[endpoints.Route, Kind], ...] = (
    (endpoints.COMPLETIONS, "completion"),
    (endpoints.CHAT, "chat"),
    (endpoints.RESPONSES, "responses"),
    (endpoints.MESSAGES, "messages"),
)
_COMPUTE: tuple[tuple[endpoints.Route, PooledKind], ...] = (
    (endpoints.EMBEDDINGS, "embeddings"),
    (endpoints.RERANK, "rerank"),
    (endpoints.SCORE, "score"),
)
# Cohere's own form of embeddings, which is another one than OpenAI's.
_NOT_SERVED = "/v2/embed"


class Simulator:
    """Everything of one `wattserve sim`. `app` is the ASGI application to serve; it starts the rest.

    `late_tolerance_seconds`: a step whose tokens leave later than this after its planned end counts as late.
    `adapters`: names of LoRA adapters that are served beside the model.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        limits: Limits | None = None,
        model_name: str | None = None,
        seed: int = 0,
        late_tolerance_seconds: float = DEFAULT_TOLERANCE_SECONDS,
        keys: Keys | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.profile = profile
        self.limits = limits or profile.limits
        name = model_name or profile.model
        self.model = Model(
            name,
            Tokenizer(profile.vocab_size),
            max_model_len=self.limits.max_model_len,
            seed=seed,
            adapters=adapters,
        )
        self.energy = ModelledEnergy(profile.idle_watts, time.monotonic_ns())
        self.meter = ModelledMeter(
            self.energy.joules_at,
            device_id="virtual-0",
            name=f"{profile.device_name} (modelled)",
            power_limit_watts=profile.power_limit_watts,
        )
        self.account = EnergyMonitor(
            self.meter, model=name, step_model=profile.step_model, idle_watts=profile.idle_watts
        )
        self.registry = CollectorRegistry()
        self.engine_name = f"wattserve-sim {__version__}"
        self.engine_metrics = EngineMetrics(name, self.registry)
        self.step_delays = StepDelayLog(tolerance_seconds=late_tolerance_seconds)
        self.engine = Engine(
            profile,
            self.limits,
            load=self.energy,
            on_steps=self.account.add_steps,
            step_delays=self.step_delays,
            on_late=self.engine_metrics.late,
        )
        self.engine_metrics.watch(self.engine)
        MonitorCollector(
            self.account,
            registry=self.registry,
            info={
                "engine": "wattserve-sim",
                "version": __version__,
                "model": name,
                "profile": profile.name,
                "source": self.meter.source,
            },
        )
        metrics = self.engine_metrics
        self._served: dict[str, ASGIApp] = {
            path: GenerateEndpoint(
                kind,
                self.engine,
                self.model,
                on_first_token=metrics.first_token,
                on_end=metrics.ended,
                on_abort=metrics.aborted,
            )
            for route, kind in _GENERATE
            for path in route.paths
        }
        self._served |= {
            path: PooledEndpoint(
                pooled, self.engine, self.model, on_end=metrics.computed, on_abort=metrics.given_up
            )
            for route, pooled in _COMPUTE
            for path in route.paths
            if path != _NOT_SERVED
        }
        self.api = self._api()
        metered: ASGIApp = EnergyMiddleware(self._dispatch, MonitorSource(self.account))
        self.app: ASGIApp = KeyGuard(metered, keys) if keys else metered

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The endpoints that are asked hundreds of times a second skip the framework's stack."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._served:
            await self._served[scope["path"]](scope, receive, send)
        else:
            await self.api(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.engine.start()
        self.account.start()
        yield
        self.engine.stop()
        self.account.stop()
        self.meter.close()

    def _window_extra(self, start_unix: float, end_unix: float) -> tuple[Iterable[Fault], dict[str, Any]]:
        """Flags and figures of how well the simulation kept its plan in a window."""
        offset = time.time() - time.monotonic()
        low, high = (round(max(-1e18, min(1e18, (unix - offset) * 1e9))) for unix in (start_unix, end_unix))
        step_delays = self.step_delays.window(low, high)
        flags = (Fault.LATE_SIMULATION,) if step_delays.too_late else ()
        return flags, {"simulation": {"profile": self.profile.name, **step_delays.as_json()}}

    def _api(self) -> FastAPI:
        api = FastAPI(
            title="wattserve sim",
            summary="OpenAI-compatible server on a simulated GPU, whose energy is simulated too",
            version=__version__,
            lifespan=self._lifespan,
        )
        for path, endpoint in self._served.items():
            api.router.routes.append(Route(path, endpoint, methods=["POST"]))
        add_energy_routes(
            api,
            EnergyRoutes(
                self.account,
                engine=self.engine_name,
                model_name=self.model.name,
                max_model_len=self.limits.max_model_len,
                extra=self._window_extra,
            ),
        )
        _add_plain_routes(api, self)
        _add_error_handlers(api)
        return api


def _add_plain_routes(api: FastAPI, simulator: Simulator) -> None:
    model = simulator.model
    # An adapter names the model that it belongs to, as vLLM lists it.
    entries: dict[str, dict[str, Any]] = {
        name: {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "wattserve",
            "root": name,
            "parent": None if name == model.name else model.name,
            "max_model_len": model.max_model_len,
            "vocab_size": model.tokenizer.vocab_size,
        }
        for name in model.names
    }

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(entries.values())}

    @api.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in entries:
            raise ApiError(f"The model `{name}` does not exist.", status=404, param="model")
        return entries[name]

    @api.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @api.get("/ping")
    async def ping() -> Response:
        return Response(status_code=200)

    @api.get("/version")
    async def version_() -> dict[str, str]:
        return {"version": __version__, "engine": simulator.engine_name}

    @api.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(simulator.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/profile")
    async def profile() -> dict[str, Any]:
        """What the simulated GPU is: its profile, with the errors of the fit."""
        return simulator.profile.as_json()

    @api.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await _json_object(request)
        text = chat_text(body["messages"]) if "messages" in body else body.get("prompt")
        if not isinstance(text, str):
            raise ApiError("prompt must be a text.", param="prompt")
        ids = model.tokenizer.encode(check_text(text, model.max_model_len, "prompt"))
        return {"count": len(ids), "max_model_len": model.max_model_len, "tokens": ids}

    @api.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, str]:
        tokens = (await _json_object(request)).get("tokens")
        if not isinstance(tokens, list) or not all(
            isinstance(t, int) and 0 <= t < model.tokenizer.vocab_size for t in tokens[: model.max_model_len]
        ):
            raise ApiError("tokens must be a list of token ids.", param="tokens")
        if len(tokens) > model.max_model_len:
            raise ApiError(
                f"{len(tokens)} tokens are more than the model's {model.max_model_len}.", param="tokens"
            )
        return {"prompt": model.tokenizer.decode(tokens)}


async def _json_object(request: Request) -> dict[str, Any]:
    body = await read_body(request.receive)
    if body is None:
        raise ClientDisconnect
    return parse_json(body)


def _add_error_handlers(api: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    @api.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @api.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        response = answer(ApiError(message, status=error.status_code))
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(ApiError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))
