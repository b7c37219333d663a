"""Where a run's energy may come from besides wattserve:

a DCGM exporter, or a Prometheus server that has scraped one.

    --energy http://host:8001                              a wattserve, with its split between requests
    --energy dcgm+http://host:9400/metrics                 a DCGM exporter
    --energy prometheus+http://host:9090?query=METRIC      an energy counter (joules) by device

The latter two know joules and watts of devices, not of requests: the run then has energy per request of the
window, and no split. Both are answered in the form of the energy routes, so that whoever asks need not know
which it is.
"""

from __future__ import annotations

import math
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from wattload.energy_client import EnergyClient, EnergySource, RequestJoules
from wattload.errors import BadInput
from wattload.runjson import ClockInfo

_DCGM_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
_DCGM_POWER = "DCGM_FI_DEV_POWER_USAGE"
_DEVICE_LABELS = ("device", "UUID", "gpu", "instance")
_SCHEMES = ("dcgm+", "prometheus+")


def is_foreign(url: str) -> bool:
    """Whether an --energy address names something else than a wattserve."""
    return url.startswith(_SCHEMES)


def open_source(
    url: str, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> EnergySource:
    """The source at an --energy address; `headers` and `tls` are for a wattserve.

    Raises BadInput where the address is none.
    """
    if url.startswith("dcgm+"):
        return DcgmSource(_http_address(url, "dcgm+"))
    if url.startswith("prometheus+"):
        return PrometheusSource(_http_address(url, "prometheus+"))
    return EnergyClient(url, headers or {}, tls=tls)


def _http_address(url: str, scheme: str) -> str:
    text = url.removeprefix(scheme)
    if not text.startswith(("http://", "https://")) or not httpx.URL(text).host:
        raise BadInput(f"--energy {url!r}: needs http:// or https:// and a host after {scheme}")
    return text


@dataclass(slots=True)
class _Foreign:
    """What both have in common: no split, no requests, no settling."""

    has_split: ClassVar[bool] = False
    url: str
    _http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10.0))

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestJoules]:
        """No request is known to a device's counter."""
        return {}

    def window(self, start_unix: float, end_unix: float) -> dict[str, Any]:
        """Raises ValueError: the window's energy comes from the series."""
        raise ValueError("this source of energy has a series only")

    def close(self) -> None:
        self._http.close()

    def _text(self, address: str) -> str:
        answer = self._http.get(address)
        answer.raise_for_status()
        return answer.text


@dataclass(slots=True)
class DcgmSource(_Foreign):
    """A DCGM exporter, scraped whenever the series is asked for.

    Its counter is in millijoules and the exporter reads it every 30 s by default: set its collection
    interval to a second or less.
    """

    now: Callable[[], float] = time.time

    def info(self) -> dict[str, Any]:
        devices = [
            {"id": name, "name": labels.get("modelName", name), "source": "dcgm"}
            for name, labels, _ in self._samples(_DCGM_ENERGY)
        ]
        if not devices:
            raise ValueError(f"it exports no {_DCGM_ENERGY}")
        return {"devices": devices, "engine": None}

    def clock(self) -> ClockInfo:
        """Scrapes carry the time at which we made them, so the clock is ours, to half a round trip."""
        before = time.perf_counter()
        self._text(self.url)
        return ClockInfo(offset_seconds=0.0, uncertainty_seconds=(time.perf_counter() - before) / 2)

    def series(self, start_unix: float, end_unix: float) -> list[dict[str, Any]]:
        """One reading a device, of now, whatever is asked: an exporter has no past."""
        before = self.now()
        families = self._families()
        moment = (before + self.now()) / 2
        watts = {name: value for name, _, value in _named(families, _DCGM_POWER)}
        return [
            {
                "id": name,
                "name": labels.get("modelName", name),
                "source": "dcgm",
                "unix_seconds": [moment],
                "joules": [value / 1000],
                "watts": [watts.get(name)],
            }
            for name, labels, value in _named(families, _DCGM_ENERGY)
        ]

    def _families(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        return _parsed(self._text(self.url))

    def _samples(self, metric: str) -> list[tuple[str, dict[str, str], float]]:
        return _named(self._families(), metric)


def _parsed(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return found


def _named(
    families: dict[str, list[tuple[dict[str, str], float]]], metric: str
) -> list[tuple[str, dict[str, str], float]]:
    """(device, labels, value) of a metric.

    Raises ValueError for MIG instances, each of which has the whole GPU's.
    """
    samples = families.get(metric, []) or families.get(f"{metric}_total", [])
    if any(labels.get("GPU_I_ID") for labels, _ in samples):
        raise ValueError("it exports MIG instances, each with the energy of the whole GPU")
    return [(_device(labels), labels, value) for labels, value in samples if math.isfinite(value)]


def _device(labels: dict[str, str]) -> str:
    return next((labels[name] for name in _DEVICE_LABELS if labels.get(name)), "device")


def _distinct(found: list[dict[str, Any]]) -> list[str]:
    """A name for each series: its device, and its instance too where several hosts' devices are called alike.

    Raises ValueError where that does not tell them apart: one of two counters would be left out.
    """
    names = [_device(series["metric"]) for series in found]
    if len(set(names)) < len(names):
        hosts = [series["metric"].get("instance", "") for series in found]
        names = [f"{host}/{name}" for host, name in zip(hosts, names, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the query has several series for {twice}: sum them by (instance, device)")
    return names


@dataclass(slots=True)
class PrometheusSource(_Foreign):
    """An energy counter in joules that a Prometheus server has, one series a device; `?query=` says which."""

    query: str = ""

    def __post_init__(self) -> None:
        address = httpx.URL(self.url)
        self.query = address.params.get("query") or ""
        if not re.match(r"^[A-Za-z_:]", self.query):
            raise BadInput(f"--energy prometheus+{self.url}: needs ?query= with an energy counter in joules")
        self.url = str(address.copy_with(query=None)).rstrip("/")

    def _ask(self, path: str, **params: str | float) -> list[dict[str, Any]]:
        answer = self._http.get(f"{self.url}{path}", params=params)
        body = answer.json()
        if body.get("status") != "success":
            raise ValueError(f"Prometheus says: {body.get('error', answer.status_code)}")
        return list(body["data"]["result"])

    def info(self) -> dict[str, Any]:
        found = self._ask("/api/v1/query", query=self.query)
        if not found:
            raise ValueError(f"the query {self.query!r} has no result")
        devices = []
        for name, series in zip(_distinct(found), found, strict=True):
            labels = series["metric"]
            source = labels.get("source", "prometheus")
            devices.append({"id": name, "name": labels.get("name", name), "source": source})
        return {"devices": devices, "engine": None}

    def clock(self) -> ClockInfo:
        """Prometheus's own clock, by the time of an instant query."""
        before, tick = time.time(), time.perf_counter()
        found = self._http.get(f"{self.url}/api/v1/query", params={"query": "time()"}).json()
        taken = time.perf_counter() - tick
        theirs = float(found["data"]["result"][0])
        return ClockInfo(offset_seconds=theirs - (before + taken / 2), uncertainty_seconds=taken / 2)

    def series(self, start_unix: float, end_unix: float) -> list[dict[str, Any]]:
        """The samples as they were scraped (a range selector gives them without interpolation)."""
        seconds = max(1, math.ceil(end_unix - start_unix))
        found = self._ask("/api/v1/query", query=f"{self.query}[{seconds}s]", time=end_unix)
        answer = []
        for name, series in zip(_distinct(found), found, strict=True):
            labels, values = series["metric"], series["values"]
            answer.append(
                {
                    "id": name,
                    "name": labels.get("name", name),
                    "source": labels.get("source", "prometheus"),
                    "unix_seconds": [float(t) for t, _ in values],
                    "joules": [float(v) for _, v in values],
                    "watts": [None] * len(values),
                }
            )
        return answer
