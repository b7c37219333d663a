"""What an endpoint says before any load: what it serves, and where its energy comes from."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from wattload.energy_client import EnergyClient, base_url
from wattload.energy_sources import is_foreign, open_source
from wattload.errors import BadInput
from wattload.runjson import ClockInfo, TargetInfo
from wattload.served_models import served


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
    foreign = energy_url is not None and is_foreign(energy_url)
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
