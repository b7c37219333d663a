"""The routes that answer for energy: /energy and what is below it, added to any FastAPI or Starlette app."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from wattmeter.answers import flag_names
from wattmeter.faults import Fault

if TYPE_CHECKING:
    from wattmeter.account import Account

MAX_IDS = 10_000
MAX_BODY_BYTES = 8 << 20
# Beyond the year 5000 a time is not meant as UNIX seconds (and has no whole nanoseconds); below a microsecond
# both ends of a window are one moment, as fine as a double holds today's UNIX time.
MAX_UNIX_SECONDS = 1e11
MIN_WINDOW_SECONDS = 1e-6


class _App(Protocol):
    """What FastAPI and Starlette have in common here."""

    @property
    def routes(self) -> list[BaseRoute]: ...


class EnergyRoutes:
    """The answers, given an account.

    `engine` and `max_model_len` describe the server; `selftest` is the sensors' self-test or None.
    `extra(start_unix, end_unix)` gives what only the server knows about a window: flags, and more fields of
    the answer. With no window it is asked about all there is (start -inf, end +inf).
    """

    def __init__(
        self,
        account: Account,
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
        """GET /energy: the state of the books; with start and end, the energy of a window."""
        query = request.query_params
        if "start" not in query and "end" not in query:
            return JSONResponse(self.state())
        window = _window(request)
        if isinstance(window, Response):
            return window
        group_by = query.get("group_by")
        if group_by not in (None, "tag"):
            return _refuse(f"group_by must be tag, not {group_by!r}", "group_by")
        return JSONResponse(_finite(self.window(*window, groups=group_by is not None)))

    def window(self, start_unix: float, end_unix: float, *, groups: bool = False) -> dict[str, Any]:
        """The answer about a window."""
        answer = self.account.window_energy(start_unix, end_unix)
        content = answer.as_json(groups=groups)
        flags, fields = self._extra(start_unix, end_unix)
        content.update(fields)
        content["flags"] = flag_names(answer.flags | frozenset(flags))
        return content

    def state(self) -> dict[str, Any]:
        snapshot = self.account.snapshot()
        flags, fields = self._extra(-math.inf, math.inf)
        answer: dict[str, Any] = _finite({
            "now": snapshot.now_unix,
            "devices": [device.as_json() for device in snapshot.devices],
            "idle": snapshot.idle.as_json(),
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
        return answer

    def series(self, request: Request) -> Response:
        """GET /energy/series: each device's counter over a window."""
        window = _window(request)
        if isinstance(window, Response):
            return window
        devices = self.account.series(*window)
        return JSONResponse(_finite({"devices": [device.as_json() for device in devices]}))

    async def clock(self, _request: Request) -> Response:
        """GET /energy/clock: on the event loop, so that the answer is as fresh as it can be."""
        return JSONResponse({"unix_seconds": time.time()})

    def one_request(self, request: Request) -> Response:
        """GET /energy/requests/{id}."""
        request_id = request.path_params["request_id"]
        content = self._request(request_id)
        if content["status"] == "unknown":
            return _refuse(f"no request {request_id!r} is known here", "id", status=404)
        return JSONResponse(_finite(content))

    async def many_requests(self, request: Request) -> Response:
        """POST /energy/requests with {"ids": [...]}."""
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return _refuse(f"the body is longer than {MAX_BODY_BYTES} bytes", "ids", status=413)
        try:
            ids = (await request.json())["ids"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return _refuse('the body must be a JSON object {"ids": [...]}', "ids")
        if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
            return _refuse("ids must be a list of strings", "ids")
        if not all(map(_is_unicode, ids)):
            return _refuse("ids must be Unicode text: one holds half of a surrogate pair", "ids")
        if len(ids) > MAX_IDS:
            return _refuse(f"{len(ids)} ids are more than the {MAX_IDS} of one call", "ids")
        found = await run_in_threadpool(lambda: [self._request(item) for item in ids])
        return JSONResponse(_finite({"requests": found}))

    def _request(self, request_id: str) -> dict[str, Any]:
        energy = self.account.request_energy(request_id)
        return {"id": request_id, "status": "unknown"} if energy is None else energy.as_json()


def add_energy_routes(app: _App, energy: EnergyRoutes) -> None:
    """Put the routes before the app's own, also while it starts up (a lifespan handler may call this)."""
    app.routes[:0] = [
        Route("/energy", energy.energy, methods=["GET"]),
        Route("/energy/series", energy.series, methods=["GET"]),
        Route("/energy/clock", energy.clock, methods=["GET"]),
        Route("/energy/requests", energy.many_requests, methods=["POST"]),
        Route("/energy/requests/{request_id:path}", energy.one_request, methods=["GET"]),
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
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON: what is not a number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
