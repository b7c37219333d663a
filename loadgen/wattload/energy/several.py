"""Several sources of energy as one: the hosts of a model that runs on more than one, or of a whole cluster.

Each host's clock is measured for itself, and each is asked about the window on its own clock; what comes out
is on this host's. Joules add up over hosts only where every host has answered: one that is missing leaves no
total, since the others' sum would be too small, and is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import httpx

from wattload.client.unreachable import why_unreachable
from wattload.energy.client import EnergySource
from wattload.errors import InputError
from wattload.rundir.result import ClockInfo
from wattmeter.faults import Fault
from wattmeter.schema import (
    PROVISIONAL,
    UNKNOWN,
    DeviceEnergy,
    DeviceSeries,
    RequestEnergy,
    WindowEnergy,
)

T = TypeVar("T")
Failure = httpx.HTTPError | ValueError | KeyError | TypeError

# So many hosts are asked at once.
AT_ONCE = 32
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Host:
    """One source, what its devices are told apart by, and its clock minus ours."""

    name: str
    source: EnergySource
    clock: ClockInfo = field(default_factory=lambda: ClockInfo(offset_seconds=0.0, uncertainty_seconds=0.0))

    @property
    def offset(self) -> float:
        return self.clock.offset_seconds


class SeveralMeters:
    """Meters that divide energy among requests, as one source whose clock is this host's."""

    has_split: ClassVar[bool] = True
    lookback_seconds: ClassVar[float] = 2.0

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = list(hosts)
        self.url = " ".join(host.source.url for host in hosts)

    def info(self) -> dict[str, Any]:
        """GET /energy of each: all devices under their hosts' names. Raises where a host does not answer."""
        answers = self._all(lambda host: host.source.info())
        devices = [
            {**device, "id": f"{host.name}/{device['id']}"}
            for host, answer in zip(self.hosts, answers, strict=True)
            for device in answer.get("devices", [])
        ]
        refuse_repeated(devices)
        hosts = [
            {"name": host.name, "url": host.source.url, "devices": len(answer.get("devices", []))}
            for host, answer in zip(self.hosts, answers, strict=True)
        ]
        gains = {
            f"{host.name}/{device}": gain
            for host, answer in zip(self.hosts, answers, strict=True)
            for device, gain in (answer.get("gains") or {}).items()
        }
        engine = next((answer["engine"] for answer in answers if answer.get("engine")), None)
        refuse_missing_hosts(answers, [host.source.url for host in self.hosts])
        found = {"devices": devices, "hosts": hosts, "engine": engine}
        return found | ({"gains": gains} if gains else {})

    def clock(self) -> ClockInfo:
        """Measures every host's clock anew. The sources' times are given out on ours, so the offset is 0; the
        uncertainty is that of the host which is least certain.
        """
        clocks = self._all(lambda host: host.source.clock())
        self.hosts = [replace(host, clock=clock) for host, clock in zip(self.hosts, clocks, strict=True)]
        return ClockInfo(
            offset_seconds=0.0,
            uncertainty_seconds=max(clock.uncertainty_seconds for clock in clocks),
            hosts={host.name: host.clock for host in self.hosts},
        )

    def window(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """The sum of all hosts' windows; without a total where one is missing. Raises where none answers."""
        answers = self._each(
            lambda host: host.source.window(start_unix + host.offset, end_unix + host.offset)
        )
        return summed(start_unix, end_unix, self.hosts, answers)

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """Every device's counter on our clock, of the hosts that answer. Raises where none does."""
        answers = self._each(
            lambda host: host.source.series(start_unix + host.offset, end_unix + host.offset)
        )
        return [
            replace(device, id=f"{host.name}/{device.id}", unix_seconds=device.unix_seconds - host.offset)
            for host, answer in zip(self.hosts, answers, strict=True)
            if not isinstance(answer, Exception)
            for device in answer
        ]

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestEnergy]:
        """Asks every host until no id is provisional; a request that ran on several has the sum."""
        deadline = time.monotonic() + timeout_seconds
        found: dict[str, RequestEnergy] = {}
        open_ids = list(ids)
        while open_ids:
            asked = open_ids
            answers = self._all(lambda host, asked=asked: host.source.settle(asked, timeout_seconds=0.0))  # type: ignore[misc]
            for key in open_ids:
                parts = [answer[key] for answer in answers if key in answer]
                if parts:
                    found[key] = joined(parts)
            open_ids = [key for key in open_ids if key in found and found[key].status == PROVISIONAL]
            if time.monotonic() >= deadline:
                break
            if open_ids:
                time.sleep(0.5)
        return found

    def close(self) -> None:
        for host in self.hosts:
            host.source.close()

    # --- asking ---------------------------------------------------------------------------------------------

    def _each(self, ask: Callable[[Host], T]) -> list[T | Failure]:
        """What each host answers, or why it does not. Raises the first failure where all fail."""

        def one(host: Host) -> T | Failure:
            try:
                return ask(host)
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                return error

        with ThreadPoolExecutor(min(AT_ONCE, len(self.hosts))) as pool:
            answers = list(pool.map(one, self.hosts))
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if len(failures) == len(answers):
            raise failures[0]
        return answers

    def _all(self, ask: Callable[[Host], T]) -> list[T]:
        """What each host answers. Raises ValueError, naming the host, where one does not."""
        answers = self._each(ask)
        kept: list[T] = []
        for host, answer in zip(self.hosts, answers, strict=True):
            if isinstance(answer, InputError):
                raise answer
            if isinstance(answer, Exception):
                raise ValueError(f"{host.source.url}: {why_unreachable(answer)}")
            kept.append(answer)
        return kept


class SeveralCounters(SeveralMeters):
    """The same where a source knows its devices' counters alone: the window comes from the series."""

    has_split: ClassVar[bool] = False

    def window(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """Raises ValueError: the window's energy comes from the series."""
        raise ValueError("these sources of energy have series only")


def host_names(urls: Sequence[str]) -> list[str]:
    """A name for each address: its host, with its port where a host occurs twice; numbered if need be."""
    places = [urlsplit(url.partition("+")[2] if "+" in url.partition("://")[0] else url) for url in urls]
    names = [place.hostname or place.netloc for place in places]
    if len(set(names)) < len(names):
        names = [place.netloc.rpartition("@")[2] for place in places]
    if len(set(names)) < len(names):
        names = [f"{name}#{number}" for number, name in enumerate(names, 1)]
    return names


def refuse_repeated(devices: Sequence[dict[str, Any]]) -> None:
    """Raises InputError where two sources count one GPU: its joules would count twice."""
    seen: dict[str, str] = {}
    for device in devices:
        host, _, name = str(device["id"]).rpartition("/")
        if not name.startswith("GPU-"):
            continue
        if name in seen:
            raise InputError("energy", f": {name} is counted by both {seen[name]} and {host}")
        seen[name] = host


def refuse_missing_hosts(answers: Sequence[dict[str, Any]], urls: Sequence[str]) -> None:
    """Raises InputError where an engine uses GPUs of more hosts than those whose meters answered: each meter
    knows its own host's joules alone. `answers` are those of GET /energy.
    """
    for name, wanted in hosts_of_engines(answer.get("hosts_of_engines") for answer in answers).items():
        known = sum(name in (answer.get("hosts_of_engines") or {}) for answer in answers)
        if known < wanted:
            given = " ".join(f"--energy {url}" for url in urls)
            raise InputError(
                "energy",
                f": the engine uses GPUs of {wanted} hosts, and meters of {known} of them are named: give"
                f" that of each host, {given} --energy http://OTHER-HOST:8790",
            )


def hosts_of_engines(told: Iterable[Any]) -> dict[str, int]:
    """How many hosts have GPUs of each engine that several meters know, out of what they tell."""
    found: dict[str, int] = {}
    for engines in told:
        for name, number in engines.items() if isinstance(engines, dict) else ():
            if isinstance(number, int):
                found[name] = max(number, found.get(name, 1))
    return found


def summed(
    start: float, end: float, hosts: Sequence[Host], answers: Sequence[WindowEnergy | Failure]
) -> WindowEnergy:
    """One window of several hosts' answers."""
    devices: list[DeviceEnergy] = []
    windows: list[WindowEnergy] = []
    missing: list[str] = []
    flags: set[str] = set()
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, Exception):
            missing.append(f"{host.name} ({why_unreachable(answer)})")
            lost = DeviceEnergy(
                host.name, host.name, "", None, None, 0.0, frozenset({Fault.PARTIAL_COVERAGE})
            )
            devices.append(lost)
            continue
        windows.append(answer)
        flags |= answer.flags
        devices += [replace(device, id=f"{host.name}/{device.id}") for device in answer.devices]
    told = [window.more.get("hosts_of_engines") or {} for window in windows]
    engines = hosts_of_engines(told)
    if engines and all(sum(name in each for each in told) >= n for name, n in engines.items()):
        flags -= {Fault.OTHER_HOSTS}
    reason = next((window.reason for window in windows if window.reason), None)
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        reason = f"the total lacks {len(missing)} of {len(hosts)} hosts: {', '.join(missing[:_NAMED])}{more}"

    def total(name: str) -> float | None:
        values = [getattr(window, name) for window in windows]
        return None if missing or None in values else float(sum(values))

    deviations = [window.uncertainty_joules for window in windows]
    known = not missing and None not in deviations
    return WindowEnergy(
        start_unix=start,
        end_unix=end,
        complete=not missing and all(window.complete for window in windows),
        total_joules=total("total_joules"),
        uncertainty_joules=sum((value or 0.0) ** 2 for value in deviations) ** 0.5 if known else None,
        idle_joules=total("idle_joules"),
        prefill_joules=total("prefill_joules"),
        decode_joules=total("decode_joules"),
        unattributed_joules=total("unattributed_joules"),
        devices=tuple(devices),
        flags=frozenset(flags | ({Fault.PARTIAL_COVERAGE} if missing else set())),
        more={"components": found} if (found := _components(windows, len(hosts))) else {},
        reason=reason,
    )


def _components(windows: Sequence[WindowEnergy], hosts: int) -> dict[str, Any]:
    """The hosts' components, added up where every host knows them."""
    each = [window.more.get("components") or {} for window in windows]
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for components in each for name in components):
        parts = [components[name] for components in each if name in components]
        joules = [part.get("joules") for part in parts]
        entry: dict[str, Any] = {"source": "+".join(sorted({str(part.get("source")) for part in parts}))}
        lacking = hosts - sum(value is not None for value in joules)
        entry["joules"] = None if lacking else sum(joules)
        if lacking:
            why = next((part["reason"] for part in parts if part.get("reason")), "no such component there")
            entry["reason"] = f"{lacking} of {hosts} hosts do not know it: {why}"
        found[name] = entry
    return found


def joined(parts: Sequence[RequestEnergy]) -> RequestEnergy:
    """One request as the hosts that know it have it; unknown where none does."""
    known = [part for part in parts if part.status != UNKNOWN]
    return RequestEnergy.over_hosts(known) if known else parts[0]
