"""The routes that answer for energy: /energy and what is below it, added to any FastAPI or Starlette app."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wattmeter.faults import Fault
from wattmeter.monitor.requests import KEEP_SECONDS, MAX_REQUESTS
from wattmeter.schema import MAX_UNIX_SECONDS, UNKNOWN, RequestEnergy, flag_names
from wattserve.http.errors import error_object
from wattserve.http.middleware import TENANT_KEY

if TYPE_CHECKING:
    from wattmeter.schema import DeviceSeries, MonitorSnapshot, RequestEnergy, WindowEnergy


class Answering(Protocol):
    """What the routes ask: an EnergyMonitor, or several that answer as one."""

    def window_energy(self, start_unix: float, end_unix: float) -> WindowEnergy: ...

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]: ...

    def snapshot(self) -> MonitorSnapshot: ...

    def request_energy(self, request_id: str) -> RequestEnergy | None: ...


MAX_IDS = 10_000
MAX_BODY_BYTES = 8 << 20
# Below a microsecond both ends of a window are one moment, as fine as a double holds today's UNIX time.
MIN_WINDOW_SECONDS = 1e-6


class _App(Protocol):
    """What FastAPI and Starlette have in common here."""

    @property
    def routes(self) -> list[BaseRoute]: ...


class EnergyRoutes:
    """The answers, given a monitor.

    `engine` and `max_model_len` describe the server; `selftest` is the sensors' self-test or None.
    `extra(start_unix, end_unix)` gives what only the server knows about a window: flags, and more fields of
    the answer. With no window it is asked about all there is (start -inf, end +inf).
    """

    def __init__(
        self,
        account: Answering,
        *,
        engine: str,
        model_name: str,
        max_model_len: int | None = None,
        selftest: dict[str, Any] | None = None,
        extra: Callable[[float, float], tuple[Iterable[Fault], dict[str, Any]]] | None = None,
    ) -> None:
        self.account = account
        self.engine = engine
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.selftest = selftest
        self._extra = extra or (lambda _start, _end: ((), {}))

    def energy(self, request: Request) -> Response:
        """GET /energy: the state of the energy accounting; with start and end, the energy of a window."""
        query = request.query_params
        if "start" not in query and "end" not in query:
            return JSONResponse(self.state())
        window = _window(request)
        if isinstance(window, Response):
            return window
        group_by = query.get("group_by")
        if group_by not in (None, "tag"):
            return _refuse(f"group_by must be tag, not {group_by!r}", "group_by")
        tenant = request.scope.get(TENANT_KEY)
        return JSONResponse(_finite(self.window(*window, groups=group_by is not None, tenant=tenant)))

    def window(
        self, start_unix: float, end_unix: float, *, groups: bool = False, tenant: str | None = None
    ) -> dict[str, Any]:
        """The answer about a window; of the groups a `tenant` sees its own."""
        answer = self.account.window_energy(start_unix, end_unix)
        if tenant is not None:
            own = {name: joules for name, joules in answer.groups.items() if name == tenant}
            answer = replace(answer, groups=own)
        flags, fields = self._extra(start_unix, end_unix)
        return replace(answer, flags=answer.flags | frozenset(flags), more=fields).to_json(groups=groups)

    def state(self) -> dict[str, Any]:
        snapshot = self.account.snapshot()
        flags, fields = self._extra(-math.inf, math.inf)
        answer: dict[str, Any] = _finite({
            "now": snapshot.now_unix,
            "devices": [device.to_json() for device in snapshot.devices],
            "idle": snapshot.idle.to_json(),
            "selftest": self.selftest,
            "model": snapshot.step_model,
            "engine": self.engine,
            "model_name": self.model_name,
            "max_model_len": self.max_model_len,
            "source": snapshot.source,
            "bucket_joules": snapshot.bucket_joules,
            "conservation_error_ratio": snapshot.conservation_error_ratio,
            "flags": flag_names(snapshot.flags | frozenset(flags)),
            **fields,
        })  # fmt: skip
        if snapshot.reason is not None:
            answer["reason"] = snapshot.reason
            del answer["bucket_joules"]
        return answer

    def series(self, request: Request) -> Response:
        """GET /energy/series: each device's counter over a window."""
        window = _window(request)
        if isinstance(window, Response):
            return window
        devices = self.account.series(*window)
        return JSONResponse(_finite({"devices": [device.to_json() for device in devices]}))

    async def clock(self, _request: Request) -> Response:
        """GET /energy/clock: on the event loop, so that the answer is as fresh as it can be."""
        return JSONResponse({"unix_seconds": time.time()})

    def one_request(self, request: Request) -> Response:
        """GET /energy/requests/{id}."""
        request_id = request.path_params["request_id"]
        energy = self._request(request_id, request.scope.get(TENANT_KEY))
        if energy.status == UNKNOWN:
            return _refuse(self.unknown(request_id), "id", status=404)
        return JSONResponse(_finite(energy.to_json()))

    def unknown(self, request_id: str) -> str:
        """What is said of a request that is not known."""
        return (
            f"no request {request_id!r} is known here: it never ran here or is forgotten, as the newest"
            f" {MAX_REQUESTS:,} of the last {KEEP_SECONDS / 60:.0f} minutes are kept"
        )

    async def many_requests(self, request: Request) -> Response:
        """POST /energy/requests with {"ids": [...]}."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return _refuse(f"the body is longer than {MAX_BODY_BYTES} bytes", "ids", status=413)
        try:
            ids = json.loads(body)["ids"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return _refuse('the body must be a JSON object {"ids": [...]}', "ids")
        if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
            return _refuse("ids must be a list of strings", "ids")
        if not all(map(_is_unicode, ids)):
            return _refuse("ids must be Unicode text: one holds half of a surrogate pair", "ids")
        if len(ids) > MAX_IDS:
            return _refuse(f"{len(ids)} ids are more than the {MAX_IDS} of one call", "ids")
        tenant = request.scope.get(TENANT_KEY)
        found = await run_in_threadpool(lambda: [self._request(item, tenant).to_json() for item in ids])
        return JSONResponse(_finite({"requests": found}))

    def _request(self, request_id: str, tenant: str | None) -> RequestEnergy:
        """The energy of a request; unknown where it is not that of the `tenant` who asks."""
        found = self.account.request_energy(request_id)
        if found is None or tenant not in (None, found.group):
            return RequestEnergy(request_id, UNKNOWN)
        return found


def add_energy_routes(app: _App, energy: EnergyRoutes | Callable[[Request], EnergyRoutes]) -> None:
    """Put the routes before the app's own. `energy` may choose the answers for each request."""

    def chosen(request: Request) -> EnergyRoutes:
        return energy if isinstance(energy, EnergyRoutes) else energy(request)

    def state_or_window(request: Request) -> Response:
        return chosen(request).energy(request)

    def series(request: Request) -> Response:
        return chosen(request).series(request)

    async def clock(request: Request) -> Response:
        return await chosen(request).clock(request)

    async def many_requests(request: Request) -> Response:
        return await chosen(request).many_requests(request)

    def one_request(request: Request) -> Response:
        return chosen(request).one_request(request)

    app.routes[:0] = [
        Route("/energy", state_or_window, methods=["GET"]),
        Route("/energy/series", series, methods=["GET"]),
        Route("/energy/clock", clock, methods=["GET"]),
        Route("/energy/requests", many_requests, methods=["POST"]),
        Route("/energy/requests/{request_id:path}", one_request, methods=["GET"]),
    ]


def _window(request: Request) -> tuple[float, float] | Response:
    found = []
    for name in ("start", "end"):
        text = request.query_params.get(name)
        if text is None:
            return _refuse(f"a window needs start and end; {name} is missing", name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            return _refuse(f"{name} must be UNIX seconds, not {text!r}", name)
        if abs(value) > MAX_UNIX_SECONDS:
            return _refuse(f"{name} must be UNIX seconds of at most {MAX_UNIX_SECONDS:g}, not {text!r}", name)
        found.append(value)
    if found[1] <= found[0]:
        return _refuse(f"end {found[1]!r} must be later than start {found[0]!r}", "end")
    if found[1] - found[0] < MIN_WINDOW_SECONDS:
        return _refuse(f"end {found[1]!r} must be at least 1 microsecond after start {found[0]!r}", "end")
    return found[0], found[1]


def _is_unicode(text: str) -> bool:
    """Whether `text` can be sent: JSON may name half a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(message: str, param: str, *, status: int = 400) -> Response:
    error = error_object(status, "invalid_request_error", message, param=param)
    return JSONResponse(error, status_code=status)


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON: what is not a number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
