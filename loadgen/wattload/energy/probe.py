"""What an endpoint says before any load: what it serves, and where its energy comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from wattload.client.control import TlsMaker
from wattload.client.models import served
from wattload.client.proxy import through
from wattload.client.unreachable import why_unreachable
from wattload.energy.client import EnergyClient, EnergySource, base_url
from wattload.energy.devices import Counted, MeteredDevice, Selection, choose
from wattload.energy.discovery import Found, found_sources
from wattload.energy.several import (
    Host,
    SeveralCounters,
    SeveralMeters,
    host_names,
    refuse_missing_hosts,
)
from wattload.energy.sources import ForeignSource, is_foreign, open_source
from wattload.errors import InputError
from wattload.rundir.result import ClockInfo, TargetInfo

_HOSTS_SHOWN = 8


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
    counted: Counted | None = None
    source_headers: Mapping[str, str] = field(default_factory=dict)
    tls: TlsMaker = None
    several: SeveralMeters | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences for the user before the load: which devices are counted, and what stands in between."""
        found = []
        proxied = through(self.target.url)
        if proxied:
            found.append(f"requests go to {self.target.url}{proxied}: its time is part of every latency")
        if self.counted is not None:
            found.append(f"energy is counted for {self.counted}")
            found += [
                f"{device.id} has no energy counter ({device.fault.clause}): the total will be missing"
                for device in self.counted.devices
                if device.fault is not None
            ]
        if self.several is not None:
            found += [
                f"the clock of {host.name} is {host.offset * 1e3:+.1f} ms from this host's, known to"
                f" {host.clock.uncertainty_seconds * 1e3:.1f} ms"
                for host in self.several.hosts[:_HOSTS_SHOWN]
            ]
            more = len(self.several.hosts) - _HOSTS_SHOWN
            found += [f"and those of {more} more hosts: see `clock` in run.json"] if more > 0 else []
        return found

    def open_source(self) -> EnergySource | None:
        """The source of energy that was asked, of the same devices; None where there is no energy."""
        if self.energy_url is None:
            return None
        if self.several is not None:
            return self.several
        source = open_source(self.energy_url, self.source_headers, self.tls)
        if isinstance(source, ForeignSource):
            source.counted = self.counted
        return source


def probe(
    url: str,
    *,
    energy_url: str | None = None,
    model: str | None = None,
    headers: dict[str, str] | None = None,
    source_headers: dict[str, str] | None = None,
    all_devices: bool = False,
    timeout_seconds: float = 10.0,
    tls: TlsMaker = None,
) -> Probe:
    """Asks an endpoint what it serves and who meters it, before any load.

    `energy_url`: where the energy routes are (None: the target itself; "none": do not ask). `source_headers`
    are sent to a source of energy elsewhere, `headers` to the target. `all_devices`: count every device of
    that source, whether or not the target is known to use it. Raises InputError
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
    written = (energy_url or "").split("\n")
    found = [each for one in written for each in found_sources(one, source_headers or {}, tls)]
    urls = [each.url for each in found]
    energy_url = "\n".join(urls) or None
    if len(urls) > 1:
        sent_to = {True: headers or {}, False: source_headers or {}}
        return _probe_several(info, names, found, sent_to=sent_to, all_devices=all_devices, tls=tls)
    foreign = energy_url is not None and is_foreign(energy_url)
    where = str(energy_url) if foreign else base_url(energy_url or target, "energy")
    elsewhere = where != target
    sent = (source_headers if elsewhere else headers) or {}
    shown: frozenset[str] = frozenset()
    if elsewhere and not all_devices:
        endpoint = EnergyClient(target, headers or {}, timeout_seconds, tls)
        shown = endpoint.named_gpus()
        endpoint.close()
    energy, clock, counted = _probe_energy(
        where, sent, tls, Wanted(shown, all_devices) if elsewhere else None
    )
    sources = sorted({str(d.get("source")) for d in energy.get("devices", [])})
    info.engine = energy.get("engine")
    info.energy_source = "+".join(sources) or None
    info.devices = list(energy.get("devices", []))
    if not sources:
        return Probe(info, names, clock, energy, None, f"{where}/energy lists no device")
    return Probe(info, names, clock, energy, where, None, counted, sent, tls)


def _probe_several(
    info: TargetInfo,
    names: list[str],
    found: list[Found],
    *,
    sent_to: Mapping[bool, dict[str, str]],
    all_devices: bool,
    tls: TlsMaker,
) -> Probe:
    """The same of several hosts, whose joules add up. `sent_to`: the headers for the target itself (True)
    and for others.
    """
    target = info.url
    places = [each.url if is_foreign(each.url) else base_url(each.url, "energy") for each in found]
    again = next((place for number, place in enumerate(places) if place in places[:number]), None)
    if again is not None:
        raise InputError("energy", f": {again} is found twice: its joules would count twice")
    known = [each.name for each in found if each.name]
    named = known if len(set(known)) == len(places) else host_names(places)
    sources = [open_source(place, sent_to[place == target], tls) for place in places]
    hosts = [Host(name, source) for name, source in zip(named, sources, strict=True)]
    divided = all(source.has_split for source in sources)
    meters = SeveralMeters(hosts) if divided else SeveralCounters(hosts)
    shown: frozenset[str] = frozenset()
    if not all_devices:
        endpoint = EnergyClient(target, sent_to[True], tls=tls)
        shown = endpoint.named_gpus()
        endpoint.close()
    try:
        for host in hosts:
            if isinstance(host.source, ForeignSource):
                host.source.settle_devices(shown, all_devices=all_devices)
        energy = meters.info()
        counted = _counted_of_several(hosts, energy, Wanted(shown, all_devices), target)
        clock = meters.clock()
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read energy from {why_unreachable(error)}: every host of `energy` must answer before"
            " the load"
        ) from error
    finally:
        meters.close()
    kinds = sorted({str(d.get("source")) for d in energy["devices"]})
    if len(kinds) > 1:
        raise InputError(
            "energy",
            f": the sources are {' and '.join(kinds)}, whose joules are not to be added; for CPUs and the"
            " node beside GPUs start `wattserve meter --component`",
        )
    info.engine = energy.get("engine")
    info.energy_source = kinds[0] if kinds else None
    info.devices = list(energy["devices"])
    without = next((host["url"] for host in energy["hosts"] if not host["devices"]), None)
    if without is not None:
        raise InputError("energy", f": {without} lists no device")
    place = "\n".join(places)
    return Probe(info, names, clock, energy, place, None, counted, sent_to[False], tls, meters)


def _counted_of_several(hosts: list[Host], energy: dict[str, Any], wanted: Wanted, target: str) -> Counted:
    """The devices of all hosts, each of which was named; a host's several devices must be the target's."""
    counted: list[MeteredDevice] = []
    for host in hosts:
        mine = {
            **energy,
            "devices": [d for d in energy["devices"] if str(d["id"]).startswith(f"{host.name}/")],
        }
        sure = isinstance(host.source, ForeignSource) or host.source.url == target
        if sure or wanted.all_devices or len(mine["devices"]) < 2:
            counted += [
                MeteredDevice(str(d["id"]), str(d["name"]), str(d["source"]), {}) for d in mine["devices"]
            ]
            continue
        shown = frozenset(f"{host.name}/{name}" for name in wanted.shown)
        shown &= {str(d["id"]) for d in mine["devices"]}
        part = _all_of_meter(host.source.url, mine, Wanted(shown, False))
        counted += part.devices if part is not None else ()
    return Counted(tuple(counted), f"of {len(hosts)} hosts, as named")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which devices of a source elsewhere belong to the target: those it names, or all of them."""

    shown: frozenset[str]
    all_devices: bool


def _probe_energy(
    where: str, headers: dict[str, str], tls: TlsMaker, wanted: Wanted | None
) -> tuple[dict[str, Any], ClockInfo, Counted | None]:
    client = open_source(where, headers, tls)
    shown = where if is_foreign(where) else f"{where}/energy"
    hint = (
        "name the meter with `energy` URL (dcgm+URL for a DCGM exporter), or measure latency alone with"
        " `energy` none"
    )
    try:
        counted = None
        if isinstance(client, ForeignSource):
            chosen = wanted or Wanted(frozenset(), False)
            counted = client.settle_devices(chosen.shown, all_devices=chosen.all_devices)
        energy = client.info()
        refuse_missing_hosts([energy], [where])
        if wanted is not None and counted is None:
            counted = _all_of_meter(where, energy, wanted)
        return energy, client.clock(), counted
    except InputError:
        raise
    except httpx.HTTPStatusError as error:
        raise InputError(f"{shown} answered {error.response.status_code}{_through(where)}: {hint}") from error
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read energy from {shown}{_through(where)} ({why_unreachable(error)}): {hint}"
        ) from error
    finally:
        client.close()


def _all_of_meter(where: str, energy: dict[str, Any], wanted: Wanted) -> Counted | None:
    """A wattserve elsewhere answers with the sum of its devices, so all of them must be the target's."""
    devices = [
        MeteredDevice(str(d["id"]), str(d.get("name", d["id"])), str(d.get("source")), {})
        for d in energy.get("devices", [])
    ]
    if not devices:
        return None
    counted = choose(devices, Selection(), shown=wanted.shown, all_devices=wanted.all_devices, where=where)
    if len(counted.devices) < len(devices):
        raise InputError(
            "energy",
            f": {where} sums {len(devices)} devices, of which the endpoint names"
            f" {len(counted.devices)} as its own; restrict the meter (wattserve meter --devices), or count"
            " all of them with `energy_all_devices`",
        )
    return counted


def _through(where: str) -> str:
    return through(where.removeprefix("dcgm+").removeprefix("prometheus+"))
