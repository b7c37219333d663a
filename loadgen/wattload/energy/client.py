"""The energy routes of a wattserve, asked over HTTP, and what a run asks of any source of energy.

Control plane only, so httpx; the load itself never passes through here. Works in a thread or a greenlet.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import httpx

from wattload.client.control import TlsMaker, control_client, json_of
from wattload.clock import unix_now
from wattload.errors import InputError
from wattload.redaction import shown
from wattload.rundir.result import ClockInfo
from wattmeter.schema import (
    PROVISIONAL,
    DeviceSeries,
    RequestEnergy,
    WindowEnergy,
    requests_from_json,
    series_from_json,
)

_CLOCK_ROUNDS = 9
_SETTLE_BATCH = 5_000
_GPU_LABEL = re.compile(r'(?i:gpu_uuid|uuid|device)="(GPU-[0-9A-Za-z-]+)"')


class EnergySource(Protocol):
    """What a run asks of its meter."""

    url: str
    has_split: ClassVar[bool]
    lookback_seconds: ClassVar[float]
    """How long before the start a sample may lie that the start is read off."""

    def info(self) -> dict[str, Any]: ...

    def window(self, start_unix: float, end_unix: float) -> WindowEnergy: ...

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]: ...

    def clock(self) -> ClockInfo: ...

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestEnergy]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class EnergyClient:
    """The energy routes of one server.

    Raises httpx.HTTPError where the server cannot be reached or refuses, and wattmeter's SchemaError (a
    ValueError) where its answer is not one of the energy routes.
    """

    has_split: ClassVar[bool] = True
    lookback_seconds: ClassVar[float] = 2.0
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    timeout_seconds: float = 10.0
    tls: TlsMaker = None
    _http: httpx.Client | None = None

    def __post_init__(self) -> None:
        self.url = base_url(self.url)

    def _get(self, path: str, **params: str | float) -> dict[str, Any]:
        answer = self._client().get(self.url + path, params=params)
        answer.raise_for_status()
        body: dict[str, Any] = json_of(answer)
        return body

    def _client(self) -> httpx.Client:
        if self._http is None:
            self._http = control_client(
                self.url, headers=self.headers, tls=self.tls, timeout_seconds=self.timeout_seconds
            )
        return self._http

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def named_gpus(self) -> frozenset[str]:
        """The UUIDs of the GPUs that the server names as its own, in /energy or else in /metrics.

        Empty where it names none, or cannot be asked: not every server has these routes.
        """
        try:
            devices = self._get("/energy").get("devices", [])
            named = {str(device["id"]) for device in devices}
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            named = set()
        if not named:
            try:
                answer = self._client().get(self.url + "/metrics")
                answer.raise_for_status()
                named = set(_GPU_LABEL.findall(answer.text))
            except httpx.HTTPError:
                pass
        return frozenset(named)

    def models(self) -> Any:
        """The body of GET /v1/models, whatever its shape (`probe.served` reads it)."""
        return self._get("/v1/models")

    def info(self) -> dict[str, Any]:
        """GET /energy without a window: devices, idle power, self-test, step model."""
        return self._get("/energy")

    def window(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """GET /energy for [start, end) on the meter's clock."""
        return WindowEnergy.from_json(self._get("/energy", start=repr(start_unix), end=repr(end_unix)))

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """GET /energy/series for [start, end) on the meter's clock: one object a device."""
        return series_from_json(self._get("/energy/series", start=repr(start_unix), end=repr(end_unix)))

    def clock(self, rounds: int = _CLOCK_ROUNDS) -> ClockInfo:
        """The meter's clock minus ours, from the round trip that took least (Cristian's algorithm).

        The true offset lies within half that round trip of the figure, whatever the asymmetry of the way.
        """
        best: ClockInfo | None = None
        for _ in range(rounds):
            before, tick = unix_now(), time.perf_counter()
            theirs = float(self._get("/energy/clock")["unix_seconds"])
            taken = time.perf_counter() - tick
            if best is None or taken / 2 < best.uncertainty_seconds:
                best = ClockInfo(offset_seconds=theirs - (before + taken / 2), uncertainty_seconds=taken / 2)
        assert best is not None
        return best

    def requests(self, ids: Sequence[str]) -> dict[str, RequestEnergy]:
        """POST /energy/requests for any number of ids; one that the server does not know is "unknown"."""
        found: dict[str, RequestEnergy] = {}
        for start in range(0, len(ids), _SETTLE_BATCH):
            part = list(ids[start : start + _SETTLE_BATCH])
            answer = self._client().post(self.url + "/energy/requests", json={"ids": part})
            answer.raise_for_status()
            found.update((entry.id, entry) for entry in requests_from_json(json_of(answer)))
        return found

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestEnergy]:
        """Asks until no id is provisional any more, or until `timeout_seconds` have passed."""
        deadline = time.monotonic() + timeout_seconds
        found = self.requests(ids)
        while True:
            open_ids = [key for key, value in found.items() if value.status == PROVISIONAL]
            if not open_ids or time.monotonic() >= deadline:
                return found
            time.sleep(0.5)
            found.update(self.requests(open_ids))


def base_url(url: str, field: str | None = None) -> str:
    """`url` without a trailing slash or `/v1`. Raises InputError, naming `field`, where it is no address."""
    text = url.strip().rstrip("/")
    try:
        address = httpx.URL(text)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        told = shown(repr(url))
        raise InputError(field, f"{told}: not the address of a server (example: http://localhost:8000)")
    if address.userinfo or address.query:
        raise InputError(
            field,
            f"{'' if field else 'the address'}: a user name, password or query in an address is not sent;"
            " credentials go into `header` or `api_key_env`",
        )
    return text.removesuffix("/v1")
