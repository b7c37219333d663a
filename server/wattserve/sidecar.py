"""`wattserve meter`: the meter alone, beside any other server; with an upstream also a proxy in front of it.

It sees joules and, as a proxy, requests, but not the engine's steps: it answers for devices and windows. What
a request cost it cannot know, so those fields are null, with the reason. Without steps it cannot tell an idle
device from a busy one either: idle power is what was given, or null and flagged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse
from wattmeter.account import Account
from wattmeter.answers import AccountSnapshot
from wattmeter.faults import Fault
from wattmeter.meter import Meter
from wattmeter.selftest import run_selftest

from wattserve.energy_routes import EnergyRoutes, add_energy_routes
from wattserve.metrics import AccountCollector
from wattserve.middleware import ASGIApp, EnergyMiddleware
from wattserve.proxy import StreamingProxy
from wattserve.sim import package_version

REASON = (
    "the meter stands beside the server and sees no engine steps: joules cannot be divided among requests"
)


class LedgerRoutes(EnergyRoutes):
    """The energy routes without attribution. `idle_given`: idle power was given, so there is an idle part."""

    idle_given = False

    def window(self, start_unix: float, end_unix: float, *, groups: bool = False) -> dict[str, Any]:
        content = super().window(start_unix, end_unix, groups=groups)
        content["attributed_joules"] = {"prefill": None, "decode": None}
        content["reason"] = REASON
        if groups:
            content["groups"] = None
        total, idle = content["total_joules"], content["idle_joules"]
        if not self.idle_given or idle is None:
            content["idle_joules"] = idle = None
            content["flags"] = sorted({*content["flags"], Fault.IDLE_NOT_MEASURED.value})
        content["unattributed_joules"] = None if total is None else total - (idle or 0.0)
        return content

    def state(self) -> dict[str, Any]:
        content = super().state()
        content["model"] = None
        content["reason"] = REASON
        content.pop("bucket_joules")
        content["flags"] = sorted({*content["flags"]} - {Fault.MODEL_NOT_TRUSTED.value})
        if not self.idle_given:
            content["idle"] = {"watts": None, "how": None, "measured_unix": None}
            content["flags"] = sorted({*content["flags"], Fault.IDLE_NOT_MEASURED.value})
        return content


class LedgerCollector(AccountCollector):
    """The metrics without attribution: idle, where it was given, and the rest."""

    idle_given = False

    def buckets(self, snapshot: AccountSnapshot) -> dict[str, float]:
        if not self.idle_given:
            return {"unattributed": snapshot.settled_joules}
        idle = snapshot.bucket_joules["idle"]
        return {"idle": idle, "unattributed": snapshot.settled_joules - idle}


class Sidecar:
    """Everything of one `wattserve meter`. `app` is the ASGI application.

    `selftest_seconds`: how long to test the sensors before serving (None: not at all); see /energy.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        upstream: str | None = None,
        idle_watts: float | None = None,
        selftest_seconds: float | None = None,
    ) -> None:
        self.meter = meter
        self.account = Account(meter, model="", idle_watts=idle_watts, fit_online=False)
        self.registry = CollectorRegistry()
        self.proxy = None if upstream is None else StreamingProxy(upstream, self.registry)
        self._selftest_seconds = selftest_seconds
        self._started = time.monotonic()
        self.routes = LedgerRoutes(self.account, engine=f"wattserve-meter {package_version()}", model_name="")
        self.routes.idle_given = idle_watts is not None
        info = {"engine": "wattserve-meter", "version": package_version(), "source": meter.source}
        self.collector = LedgerCollector(self.account, registry=self.registry, info=info)
        self.collector.idle_given = idle_watts is not None
        self.api = self._api()
        self.app: ASGIApp = EnergyMiddleware(self.api, None, no_energy_reason=REASON)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        if self._selftest_seconds is not None:
            result = await asyncio.to_thread(run_selftest, self.meter, self._selftest_seconds)
            self.routes.selftest = result.as_json()
            self.collector.selftest = result.as_json()
            for fault in result.flags:
                self.account.add_flag(fault)
        self.account.start()
        if self.proxy is not None:
            await self.proxy.start()
        yield
        if self.proxy is not None:
            await self.proxy.stop()
        self.account.stop()
        self.meter.close()

    def _api(self) -> FastAPI:
        api = FastAPI(title="wattserve meter", version=package_version(), lifespan=self._lifespan)
        add_energy_routes(api, self.routes)

        @api.get("/health")
        async def health() -> Response:
            """503 once no device gives readings; the upstream has its own."""
            failed = await asyncio.to_thread(self._failure)
            return Response() if failed is None else PlainTextResponse(failed, status_code=503)

        @api.get("/metrics")
        def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        @api.get("/version")
        async def version() -> dict[str, str]:
            return {"version": package_version()}

        if self.proxy is not None:
            # Everything that is not the meter's own is the upstream's.
            api.router.default = self.proxy
        else:

            @api.api_route("/v1/{path:path}", methods=["GET", "POST"])
            async def no_model(path: str) -> Response:
                message = f"/v1/{path}: this is a meter without --upstream; it serves no model."
                error = {"message": message, "type": "NotFoundError", "param": None, "code": 404}
                return JSONResponse({"error": error}, status_code=404)

        return api

    def _failure(self) -> str | None:
        devices = self.account.devices()
        if any(
            device.sample_age_seconds is not None and device.sample_age_seconds < 30.0 for device in devices
        ):
            return None
        started = time.monotonic() - self._started < 30.0
        return None if started else "no device has given a reading for 30 s"
