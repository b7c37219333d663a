"""The source of a run's energy, by the address that --energy gives.

    nvml?gpu=0,1                                           this host's own sensors (or amdsmi, rapl)
    http://host:8001                                       a wattserve, with its split between requests
    dcgm+http://host:9400/metrics?gpu=0,1                  GPUs of a DCGM exporter
    prometheus+http://host:9090?query=METRIC&pod=vllm-0    an energy counter that a Prometheus has scraped

The latter two know joules and watts of devices, not of requests: the run then has energy per request of the
window, and no split. `gpu`, `uuid`, `pod`, `namespace` and `instance` select among their devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import httpx

from wattload.client.control import TlsMaker
from wattload.energy.client import EnergyClient, EnergySource
from wattload.energy.dcgm import DcgmSource
from wattload.energy.devices import parse_selection
from wattload.energy.foreign import ForeignSource
from wattload.energy.local import address_of
from wattload.energy.prometheus import PrometheusSource
from wattload.errors import InputError

__all__ = ["DcgmSource", "ForeignSource", "PrometheusSource", "is_foreign", "open_source"]

_SCHEMES = ("dcgm+", "prometheus+")


def is_foreign(url: str) -> bool:
    """Whether an --energy address names something else than a wattserve."""
    return url.startswith(_SCHEMES)


def open_source(url: str, headers: Mapping[str, str] | None = None, tls: TlsMaker = None) -> EnergySource:
    """The source at an --energy address, which is asked with `headers` and `tls`.

    Raises InputError where it is not an address.
    """
    url = address_of(url)
    scheme = next((scheme for scheme in _SCHEMES if url.startswith(scheme)), None)
    if scheme is None:
        return EnergyClient(url, dict(headers or {}), tls=tls)
    address = _http_address(url, scheme)
    selection, rest = parse_selection(address.params.multi_items())
    if scheme == "dcgm+":
        return DcgmSource(str(_with(address, rest)), selection, headers or {}, tls)
    query = _query(url, rest)
    base = str(address.copy_with(query=None)).rstrip("/")
    return PrometheusSource(base, selection, headers or {}, tls, query=query)


def _query(url: str, parameters: list[tuple[str, str]]) -> str:
    query = next((value for name, value in parameters if name == "query"), "")
    if not re.match(r"^\s*[A-Za-z_:(]", query):
        raise InputError("energy", f"{url}: needs ?query= with an energy counter")
    others = [name for name, _ in parameters if name != "query"]
    if others:
        raise InputError("energy", f"{url}: {others[0]}= is neither the query nor a selection of devices")
    return query


def _with(address: httpx.URL, parameters: list[tuple[str, str]]) -> httpx.URL:
    return address.copy_with(params=parameters) if parameters else address.copy_with(query=None)


def _http_address(url: str, scheme: str) -> httpx.URL:
    text = url.removeprefix(scheme)
    hint = f"needs http:// or https:// and a host after {scheme}"
    try:
        address = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InputError("energy", f"{url!r}: {error}; {hint}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise InputError("energy", f"{url!r}: {hint}")
    if address.userinfo:
        raise InputError("energy", ": a user name or password in an address is not sent; use `header`")
    return address
