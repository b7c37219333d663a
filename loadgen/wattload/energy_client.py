"""The energy routes of a wattserve, asked over HTTP, and what a run asks of any source of energy.

Control plane only, so httpx; the load itself never passes through here. Works in a thread or a greenlet.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import httpx

from wattload.errors import BadInput
from wattload.runjson import ClockInfo

_CLOCK_ROUNDS = 9
_SETTLE_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class RequestJoules:
    """What the endpoint says one request took. None: it cannot say, and `status` tells why."""

    request_id: str
    status: str
    joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None


class EnergySource(Protocol):
    """What a run asks of its meter."""

    url: str
    has_split: ClassVar[bool]

    def info(self) -> dict[str, Any]: ...

    def window(self, start_unix: float, end_unix: float) -> dict[str, Any]: ...

    def series(self, start_unix: float, end_unix: float) -> list[dict[str, Any]]: ...

    def clock(self) -> ClockInfo: ...

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestJoules]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class EnergyClient:
    """The energy routes of one server.

    Raises httpx.HTTPError where the server cannot be reached or refuses.
    """

    has_split: ClassVar[bool] = True
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    timeout_seconds: float = 10.0
    tls: ssl.SSLContext | None = None
    _http: httpx.Client | None = None

    def __post_init__(self) -> None:
        self.url = base_url(self.url)

    def _get(self, path: str, **params: str | float) -> dict[str, Any]:
        answer = self._client().get(self.url + path, params=params)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def _client(self) -> httpx.Client:
        if self._http is None:
            verify = True if self.tls is None else self.tls
            self._http = httpx.Client(timeout=self.timeout_seconds, headers=self.headers, verify=verify)
        return self._http

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def models(self) -> list[dict[str, Any]]:
        """The entries of GET /v1/models."""
        return list(self._get("/v1/models").get("data", []))

    def info(self) -> dict[str, Any]:
        """GET /energy without a window: devices, idle power, self-test, step model."""
        return self._get("/energy")

    def window(self, start_unix: float, end_unix: float) -> dict[str, Any]:
        """GET /energy for [start, end) on the meter's clock."""
        return self._get("/energy", start=repr(start_unix), end=repr(end_unix))

    def series(self, start_unix: float, end_unix: float) -> list[dict[str, Any]]:
        """GET /energy/series for [start, end) on the meter's clock: one object a device."""
        answer = self._get("/energy/series", start=repr(start_unix), end=repr(end_unix))
        return list(answer.get("devices", []))

    def clock(self, rounds: int = _CLOCK_ROUNDS) -> ClockInfo:
        """The meter's clock minus ours, from the round trip that took least (Cristian's algorithm).

        The true offset lies within half that round trip of the figure, whatever the asymmetry of the way.
        """
        best: ClockInfo | None = None
        for _ in range(rounds):
            before, tick = time.time(), time.perf_counter()
            theirs = float(self._get("/energy/clock")["unix_seconds"])
            taken = time.perf_counter() - tick
            if best is None or taken / 2 < best.uncertainty_seconds:
                best = ClockInfo(offset_seconds=theirs - (before + taken / 2), uncertainty_seconds=taken / 2)
        assert best is not None
        return best

    def requests(self, ids: Sequence[str]) -> dict[str, RequestJoules]:
        """POST /energy/requests for any number of ids; one that the server does not know is "unknown"."""
        found: dict[str, RequestJoules] = {}
        for start in range(0, len(ids), _SETTLE_BATCH):
            part = list(ids[start : start + _SETTLE_BATCH])
            answer = self._client().post(self.url + "/energy/requests", json={"ids": part})
            answer.raise_for_status()
            for entry in answer.json()["requests"]:
                found[entry["id"]] = RequestJoules(
                    request_id=entry["id"],
                    status=str(entry.get("status", "unknown")),
                    joules=number_or_none(entry.get("joules")),
                    prefill_joules=number_or_none(entry.get("prefill_joules")),
                    decode_joules=number_or_none(entry.get("decode_joules")),
                )
        return found

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestJoules]:
        """Asks until no id is provisional any more, or until `timeout_seconds` have passed."""
        deadline = time.monotonic() + timeout_seconds
        found = self.requests(ids)
        while True:
            open_ids = [key for key, value in found.items() if value.status == "provisional"]
            if not open_ids or time.monotonic() >= deadline:
                return found
            time.sleep(0.5)
            found.update(self.requests(open_ids))


def base_url(url: str, flag: str = "") -> str:
    """`url` without a trailing slash or `/v1`. Raises BadInput, naming `flag`, where it is no address."""
    text = url.strip().rstrip("/")
    if not text.startswith(("http://", "https://")) or not httpx.URL(text).host:
        named = f"{flag} " if flag else ""
        raise BadInput(f"{named}{url!r} is no address of a server: it needs http:// or https:// and a host")
    if httpx.URL(text).userinfo or httpx.URL(text).query:
        named = flag or "the address"
        raise BadInput(
            f"{named}: a user name, password or query in an address is not sent; credentials go into --header"
            " or --api-key-env"
        )
    return text.removesuffix("/v1")


def number_or_none(value: object) -> float | None:
    """A finite number as a float; None for everything else that JSON can hold."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
