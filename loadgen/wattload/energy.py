"""The endpoint's energy, asked over HTTP:

what it is, its clock, its series during a run, its joules afterwards.

Control plane only, so httpx; the load itself never passes through here. Works in a thread or a greenlet.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import numpy as np
import pyarrow as pa

from wattload.crash_safe_table import TableWriter
from wattload.errors import BadInput
from wattload.rundir import ENERGY_SCHEMA, SPLIT_SCHEMA, RunDir
from wattload.runjson import ClockInfo, TargetInfo
from wattload.served_models import served

if TYPE_CHECKING:
    from wattload.energy_sources import EnergySource

_CLOCK_ROUNDS = 9
_SETTLE_BATCH = 5_000
_SPLIT_DELAY_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class RequestJoules:
    """What the endpoint says one request took. None: it cannot say, and `status` tells why."""

    request_id: str
    status: str
    joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What an endpoint said before any load: its model, and where its energy comes from.

    `no_energy_reason` is set, and the energy fields are None, where there is no energy to be had.
    """

    target: TargetInfo
    models: list[str]
    clock: ClockInfo | None
    energy: dict[str, Any] | None
    energy_url: str | None
    no_energy_reason: str | None


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
                    joules=_number(entry.get("joules")),
                    prefill_joules=_number(entry.get("prefill_joules")),
                    decode_joules=_number(entry.get("decode_joules")),
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
    return text.removesuffix("/v1")


def probe(
    url: str,
    *,
    energy_url: str | None = None,
    model: str | None = None,
    headers: dict[str, str] | None = None,
    timeout_seconds: float = 10.0,
    tls: ssl.SSLContext | None = None,
) -> Probe:
    """Asks an endpoint what it serves and who meters it, before any load.

    `energy_url`: where the energy routes are (None: the target itself; "none": do not ask). Raises BadInput
    where the target cannot be reached or serves no such `model`, and where an energy server that was named,
    or a target that should have one, does not answer as one.
    """
    target = base_url(url)
    client = EnergyClient(target, headers or {}, timeout_seconds, tls)
    try:
        names, entry = served(target, client.models, model)
    finally:
        client.close()
    limit = entry.get("max_model_len")
    known = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    info = TargetInfo(url=target, model=str(entry["id"]), max_model_len=limit if known else None)
    if energy_url == "none":
        return Probe(info, names, None, None, None, "not asked for (--energy none)")
    foreign = energy_url is not None and energy_url.startswith(("dcgm+", "prometheus+"))
    where = str(energy_url) if foreign else base_url(energy_url or target, "--energy")
    said, clock = _probe_energy(where, headers or {} if where == target else {}, tls)
    sources = sorted({str(d.get("source")) for d in said.get("devices", [])})
    info.engine = said.get("engine")
    info.energy_source = "+".join(sources) or None
    info.devices = list(said.get("devices", []))
    if not sources:
        return Probe(info, names, clock, said, None, f"{where}/energy lists no device")
    return Probe(info, names, clock, said, where, None)


def _probe_energy(
    where: str, headers: dict[str, str], tls: ssl.SSLContext | None
) -> tuple[dict[str, Any], ClockInfo]:
    from wattload.energy_sources import open_source

    client = open_source(where, headers, tls)
    hint = "name the meter with --energy URL, or measure latency alone with --energy none"
    try:
        said = client.info()
        return said, client.clock()
    except httpx.HTTPStatusError as error:
        raise BadInput(f"{where}/energy answered {error.response.status_code}: {hint}") from error
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where}/energy cannot be asked ({error}): {hint}") from error
    finally:
        client.close()


class SeriesPoller:
    """Collects the meter's series and the energy split of every `split_seconds` while a run goes on.

    Writes energy.parquet and energy_split.parquet, on the meter's clock. A poll that fails is tried again
    with the next one, from where the last good one ended, so a hiccup loses nothing; what stays missing is
    in `errors`. `latest_watts` is for the progress display: the sum over devices of the last power seen,
    None before that.
    """

    def __init__(
        self,
        client: EnergySource,
        run: RunDir,
        *,
        clock: ClockInfo,
        interval_seconds: float = 1.0,
        split_seconds: float = 1.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._clock, self._now = client, clock, now
        self._interval, self._split = interval_seconds, split_seconds
        self._energy = TableWriter(run.energy_partial_path, run.energy_path, ENERGY_SCHEMA)
        self._splits = TableWriter(run.split_partial_path, run.split_path, SPLIT_SCHEMA)
        self._next: dict[str, float] = {}
        self._base: dict[str, float] = {}
        self._last_watts: dict[str, float] = {}
        self._begin = math.floor(now() + clock.offset_seconds)
        self._split_next = float(self._begin)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.latest_watts: float | None = None
        self.errors: list[str] = []

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="energy-poller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fetches what is left, waiting a few seconds for the meter to settle, and closes the files."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        end = self._meter_now()
        deadline = time.monotonic() + 2 * _SPLIT_DELAY_SECONDS
        behind = self._client.has_split
        while behind and self._split_next + self._split <= end and time.monotonic() < deadline:
            self._guarded(self._poll_split, end, False)
            if self._split_next + self._split <= end:
                time.sleep(0.25)
        self._guarded(self._poll_series)
        self._guarded(self._poll_split, end, True)
        self._energy.close()
        self._splits.close()

    def _meter_now(self) -> float:
        return self._now() + self._clock.offset_seconds

    def _loop(self) -> None:
        while not self._stop.wait(self._interval):
            self._guarded(self._poll_series)
            self._guarded(self._poll_split, self._meter_now() - _SPLIT_DELAY_SECONDS, False)

    def _guarded(self, poll: Callable[..., None], *args: object) -> None:
        try:
            poll(*args)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if len(self.errors) < 100:
                self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def _poll_series(self) -> None:
        begin = min(self._next.values(), default=self._begin - 2.0)
        for device in self._client.series(begin, self._meter_now()):
            self._write_device(device)
        watts = [v for v in self._last_watts.values() if not math.isnan(v)]
        self.latest_watts = sum(watts) if watts else None

    def _write_device(self, device: dict[str, Any]) -> None:
        name = str(device["id"])
        seconds = np.asarray(device["unix_seconds"], np.float64)
        joules, watts = _floats(device["joules"]), _floats(device["watts"])
        fresh = seconds > self._next.get(name, -math.inf)
        seconds, joules, watts = seconds[fresh], joules[fresh], watts[fresh]
        if not len(seconds):
            return
        known = joules[~np.isnan(joules)]
        if name not in self._base and len(known):
            self._base[name] = float(known[0])
        self._next[name] = float(seconds[-1])
        self._last_watts[name] = float(watts[-1])
        columns = [
            pa.array([name] * len(seconds), pa.string()),
            pa.array(seconds),
            pa.array(joules - self._base.get(name, 0.0), from_pandas=True),
            pa.array(watts, from_pandas=True),
            pa.array([str(device.get("source"))] * len(seconds), pa.string()),
        ]
        self._energy.write(pa.RecordBatch.from_arrays(columns, schema=ENERGY_SCHEMA))

    def _poll_split(self, until: float, last: bool) -> None:
        """Writes the blocks that end by `until`, up to the first that is not settled; `last`:

        that one too.
        """
        while self._client.has_split and self._split_next + self._split <= until:
            end = self._split_next + self._split
            answer = self._client.window(self._split_next, end)
            if not answer.get("complete") and not last:
                return
            self._splits.write(split_batch(answer, self._split_next, end))
            self._split_next = end


def split_batch(answer: dict[str, Any], start: float, end: float) -> pa.RecordBatch:
    """One answer of GET /energy for a window as one row of energy_split.parquet."""
    shared = answer.get("attributed_joules") or {}
    row = {
        "start_unix": start,
        "end_unix": end,
        "complete": bool(answer.get("complete")),
        "total_joules": _number(answer.get("total_joules")),
        "idle_joules": _number(answer.get("idle_joules")),
        "prefill_joules": _number(shared.get("prefill")),
        "decode_joules": _number(shared.get("decode")),
        "unattributed_joules": _number(answer.get("unattributed_joules")),
        "flags": [str(flag) for flag in answer.get("flags") or []],
    }
    return pa.RecordBatch.from_pylist([row], schema=SPLIT_SCHEMA)


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _floats(values: Sequence[float | None]) -> Any:
    return np.array([math.nan if v is None else v for v in values], np.float64)
