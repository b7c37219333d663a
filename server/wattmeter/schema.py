"""What `/energy` answers: the energy of a request, of a window and of a device, and the meter's state.

The server writes these classes with `to_json`, a client reads them with `from_json`. Reading tolerates keys
that are not known here (a newer server) and names the field that is missing or of a wrong type.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np

from wattmeter.arrays import F64
from wattmeter.faults import Fault

T = TypeVar("T")

# The version of what is written here; energy.schema.json beside this file describes it.
ENERGY_SCHEMA = "wattmeter.energy/1"

PROVISIONAL = "provisional"
SETTLED = "settled"
UNKNOWN = "unknown"


# A megawatt for a quarter of an hour: what no request costs, and what an answer that says it is mistaken for.
MOST_REQUEST_JOULES = 1e9
# Below 0 by no more than what sums of doubles leave.
LEAST_REQUEST_JOULES = -1e-6
# Beyond the year 5000 a time is not meant as UNIX seconds (and has no whole nanoseconds).
MAX_UNIX_SECONDS = 1e11


def possible_request_joules(value: object) -> float | None:
    """The joules of one request as an answer gives them; None where no request can have them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if LEAST_REQUEST_JOULES <= value <= MOST_REQUEST_JOULES else None


class SchemaError(ValueError):
    """An answer of `/energy` lacks a field or holds something else in it; the message is one sentence."""


def flag_names(flags: Iterable[str]) -> list[str]:
    """Names of the flags in a fixed order, for JSON."""
    return sorted(str(flag) for flag in flags)


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """Joules of one request above idle.

    `status` is settled once the meter has covered the request's last step, provisional before (joules are
    then the step model's estimate for what is not final yet), and unknown where the server knows no request
    of this id. `uncertainty_joules` is one standard deviation of `joules`. `reason` says why `joules` is
    None, where it is: a failed meter gives no number instead of a wrong one. `hosts` is how many hosts have
    GPUs of the request's engine; with the flag OTHER_HOSTS the joules are those of one of them.
    """

    id: str
    status: str
    joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    uncertainty_joules: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    source: str = ""
    flags: frozenset[str] = frozenset()
    group: str = ""
    aborted: bool = False
    reason: str | None = None
    hosts: int = 1

    def to_json(self) -> dict[str, Any]:
        """The answer of `GET /energy/requests/{id}`."""
        if self.status == UNKNOWN:
            return {"id": self.id, "status": self.status}
        return {
            "id": self.id,
            "status": self.status,
            "joules": self.joules,
            "prefill_joules": self.prefill_joules,
            "decode_joules": self.decode_joules,
            "uncertainty_joules": self.uncertainty_joules,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "source": self.source,
            "group": self.group,
            "aborted": self.aborted,
            "flags": flag_names(self.flags),
            **({"reason": self.reason} if self.reason is not None else {}),
            **({"hosts": self.hosts} if self.hosts > 1 else {}),
        }

    def to_usage(self) -> dict[str, Any]:
        """The part of a response's `usage`: `energy`, and `energy_reason` where that is null."""
        if self.joules is None:
            return no_energy(self.reason or "the meter gave no energy")
        return {
            "energy": {
                "joules": self.joules,
                "prefill_joules": self.prefill_joules,
                "decode_joules": self.decode_joules,
                "uncertainty_joules": self.uncertainty_joules,
                "status": self.status,
                "source": self.source,
                **({"estimated": True} if Fault.ESTIMATED in self.flags else {}),
                **({"hosts": self.hosts} if self.hosts > 1 else {}),
            }
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Reads one entry of `/energy/requests`. Raises SchemaError naming a field that cannot be used."""
        read = _Reader(data, "the energy of a request")
        prompt, output = read.number("prompt_tokens"), read.number("output_tokens")
        hosts = read.number("hosts")
        return cls(
            id=read.text("id"),
            status=read.text("status"),
            joules=possible_request_joules(read.number("joules")),
            prefill_joules=possible_request_joules(read.number("prefill_joules")),
            decode_joules=possible_request_joules(read.number("decode_joules")),
            uncertainty_joules=possible_request_joules(read.number("uncertainty_joules")),
            prompt_tokens=None if prompt is None else int(prompt),
            output_tokens=None if output is None else int(output),
            source=read.text("source", ""),
            flags=read.flags(),
            group=read.text("group", ""),
            aborted=read.get("aborted") is True,
            reason=read.text("reason", "") or None,
            hosts=1 if hosts is None else max(1, int(hosts)),
        )

    @classmethod
    def from_usage(cls, request_id: str, usage: object) -> Self:
        """Reads what `to_usage` wrote. Raises SchemaError naming a field that cannot be used."""
        read = _Reader(usage, "the usage of a response")
        energy = read.get("energy")
        if energy is None:
            return cls(request_id, PROVISIONAL, reason=read.text("energy_reason", "the meter gave no energy"))
        estimated = [Fault.ESTIMATED] if _Reader(energy, "usage.energy").get("estimated") is True else []
        return cls.from_json({**energy, "id": request_id, "flags": estimated})

    @classmethod
    def over_hosts(cls, parts: Sequence[RequestEnergy]) -> RequestEnergy:
        """One request as the meters of several hosts know it; `parts`: at least one.

        A host's meter marks its part of a request with OTHER_HOSTS and says how many `hosts` there are. The
        mark goes where all parts are there; where one is missing the joules are not known. An answer that is
        a sum over all hosts already holds the parts of each.
        """
        lone = [part for part in parts if Fault.OTHER_HOSTS in part.flags]
        if not lone:
            return cls.sum(parts)
        whole = [part for part in parts if Fault.OTHER_HOSTS not in part.flags]
        if any(part.hosts > 1 for part in whole):
            return cls.sum(whole)
        found = cls.sum(parts)
        hosts = max(part.hosts for part in lone)
        if len(lone) == hosts:
            return replace(found, flags=found.flags - {Fault.OTHER_HOSTS})
        return found.without_joules(
            f"the request's engine uses GPUs of {hosts} hosts, and the meters of {len(lone)} of them know it"
        )

    def without_joules(self, reason: str) -> RequestEnergy:
        """The same request with its joules not known, and why."""
        none = None
        return replace(
            self, joules=none, prefill_joules=none, decode_joules=none, uncertainty_joules=none, reason=reason
        )

    @classmethod
    def sum(cls, parts: Sequence[RequestEnergy]) -> RequestEnergy:
        """One request that ran on several engines or hosts: joules add up, settled once all parts are.

        Of a part whose joules are not known the sum is not known. `parts`: at least one.
        """
        first = parts[0]
        if len(parts) == 1:
            return first

        def total(name: str) -> float | None:
            values = [getattr(part, name) for part in parts]
            return None if None in values else float(sum(values))

        deviations = [part.uncertainty_joules for part in parts]
        told = next((part.output_tokens for part in parts if part.output_tokens is not None), None)
        prompts = [part.prompt_tokens for part in parts if part.prompt_tokens is not None]
        return replace(
            first,
            status=SETTLED if all(part.status == SETTLED for part in parts) else PROVISIONAL,
            joules=total("joules"),
            prefill_joules=total("prefill_joules"),
            decode_joules=total("decode_joules"),
            uncertainty_joules=None
            if None in deviations
            else sum(value**2 for value in deviations if value is not None) ** 0.5,
            prompt_tokens=max(prompts, default=None),
            output_tokens=told,
            flags=frozenset().union(*(part.flags for part in parts)),
            aborted=all(part.aborted for part in parts),
            hosts=max(part.hosts for part in parts),
            reason=next((part.reason for part in parts if part.reason is not None), None),
        )


def no_energy(reason: str) -> dict[str, Any]:
    """The part of a response's `usage` where there is no energy, and why."""
    return {"energy": None, "energy_reason": reason}


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """Joules of one device over a window; `uncertainty_joules`: one standard deviation, from the edges.

    `covered_seconds` is the part of the window of which the counter's change is known. A sensor's gain error
    (about 5 % a board, always of the same sign) is not in the uncertainty:
    see docs/explanation/measurement.md.
    """

    id: str
    name: str
    source: str
    joules: float | None
    uncertainty_joules: float | None
    covered_seconds: float
    flags: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """An entry of `devices` in the answer about a window."""
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "joules": self.joules,
            "uncertainty_joules": self.uncertainty_joules,
            "covered_seconds": self.covered_seconds,
            "flags": flag_names(self.flags),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Reads an entry of `devices`. Raises SchemaError naming a field that cannot be used."""
        read = _Reader(data, "the energy of a device")
        name = read.text("id")
        return cls(
            id=name,
            name=read.text("name", name),
            source=read.text("source", ""),
            joules=read.number("joules"),
            uncertainty_joules=read.number("uncertainty_joules"),
            covered_seconds=read.number("covered_seconds") or 0.0,
            flags=read.flags(),
        )


@dataclass(frozen=True, slots=True)
class WindowEnergy:
    """Joules of [start_unix, end_unix) over all devices, and how they divide.

    total = idle + prefill + decode + unattributed. `complete` is False while part of the window is not
    settled or was never covered; what is missing is then neither guessed nor in the total. `idle_joules` is
    None where idle power was never measured: what idling cost is then inside the attributed joules, and
    flagged. `reason` says why nothing is attributed, where the meter sees no engine steps: then all that is
    not idle is unattributed. `more` holds the fields that only some servers have.
    """

    start_unix: float
    end_unix: float
    complete: bool
    total_joules: float | None = None
    uncertainty_joules: float | None = None
    idle_joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    unattributed_joules: float | None = None
    devices: tuple[DeviceEnergy, ...] = ()
    groups: dict[str, float] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    more: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @property
    def all_flags(self) -> frozenset[str]:
        """The flags of the window and of its devices."""
        return self.flags.union(*(device.flags for device in self.devices))

    def to_json(self, *, groups: bool = False) -> dict[str, Any]:
        """The answer of `GET /energy?start=&end=`; with `groups`, that of `group_by=tag`."""
        answer: dict[str, Any] = {
            "start": self.start_unix,
            "end": self.end_unix,
            "complete": self.complete,
            "total_joules": self.total_joules,
            "uncertainty_joules": self.uncertainty_joules,
            "idle_joules": self.idle_joules,
            "attributed_joules": {"prefill": self.prefill_joules, "decode": self.decode_joules},
            "unattributed_joules": self.unattributed_joules,
            "devices": [device.to_json() for device in self.devices],
            "flags": flag_names(self.flags),
        }
        if groups:
            answer["groups"] = self.groups if self.reason is None else None
        if self.reason is not None:
            answer["reason"] = self.reason
        return answer | dict(self.more)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Reads the answer about a window. Raises SchemaError naming a field that cannot be used."""
        read = _Reader(data, "the energy of a window")
        shared = _Reader(read.get("attributed_joules") or {}, "attributed_joules of a window")
        groups = _Reader(read.get("groups") or {}, "groups of a window")
        return cls(
            start_unix=read.known_number("start"),
            end_unix=read.known_number("end"),
            complete=read.truth("complete"),
            total_joules=read.number("total_joules", required=True),
            uncertainty_joules=read.number("uncertainty_joules"),
            idle_joules=read.number("idle_joules"),
            prefill_joules=shared.number("prefill"),
            decode_joules=shared.number("decode"),
            unattributed_joules=read.number("unattributed_joules"),
            devices=read.items("devices", DeviceEnergy.from_json),
            groups={name: groups.known_number(name) for name in groups.data},
            flags=read.flags(),
            reason=read.text("reason", "") or None,
            more=read.rest(
                "start end complete total_joules uncertainty_joules idle_joules attributed_joules"
                " unattributed_joules devices flags groups reason"
            ),
        )


@dataclass(frozen=True, slots=True)
class DeviceSeries:
    """The counter of one device over time: at `unix_seconds`, shape (N,), `joules` (N,) since its beginning.

    `watts` (N,) is the mean power over the update that ended there. A value that is not known is nan.
    """

    id: str
    name: str
    source: str
    unix_seconds: F64
    joules: F64
    watts: F64

    def to_json(self) -> dict[str, Any]:
        """An entry of `devices` in the answer of `GET /energy/series`."""
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "unix_seconds": self.unix_seconds.tolist(),
            "joules": _or_null(self.joules),
            "watts": _or_null(self.watts),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Reads an entry of `devices`. Raises SchemaError naming a field that cannot be used."""
        read = _Reader(data, "the series of a device")
        name = read.text("id")
        seconds, joules = read.column("unix_seconds"), read.column("joules")
        watts = read.column("watts") if read.get("watts") is not None else np.full(len(seconds), np.nan)
        if not len(seconds) == len(joules) == len(watts):
            raise SchemaError(f"the series of device {name} has columns of different lengths")
        return cls(name, read.text("name", name), read.text("source", ""), seconds, joules, watts)


def series_from_json(data: object) -> list[DeviceSeries]:
    """Reads the answer of `GET /energy/series`. Raises SchemaError naming a field that cannot be used."""
    return list(_Reader(data, "the series").items("devices", DeviceSeries.from_json))


def requests_from_json(data: object) -> list[RequestEnergy]:
    """Reads the answer of `POST /energy/requests`. Raises SchemaError naming a field that cannot be used."""
    return list(_Reader(data, "the energy of requests").items("requests", RequestEnergy.from_json))


@dataclass(frozen=True, slots=True)
class IdleState:
    """Watts of all devices together with no request running; `how` is measured, given or None (not known)."""

    watts: float | None
    how: str | None
    measured_unix: float | None
    uncertainty_watts: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "watts": self.watts,
            "how": self.how,
            "measured_unix": self.measured_unix,
            "uncertainty_watts": self.uncertainty_watts,
        }


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device for a dashboard. A field that the meter does not give is None, never 0."""

    id: str
    name: str
    source: str
    power_watts: float | None
    energy_joules: float | None
    power_limit_watts: float | None
    sample_age_seconds: float | None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    faults: dict[str, int] = field(default_factory=dict)
    flags: frozenset[Fault] = frozenset()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "power_watts": self.power_watts,
            "energy_joules": self.energy_joules,
            "power_limit_watts": self.power_limit_watts,
            "sample_age_seconds": self.sample_age_seconds,
            "temperature_celsius": self.temperature_celsius,
            "sm_clock_hertz": self.sm_clock_hertz,
            "faults": dict(self.faults),
            "flags": flag_names(self.flags),
        }


@dataclass(frozen=True, slots=True)
class MonitorSnapshot:
    """The state of a monitor at one moment, for Prometheus and `GET /energy`.

    `bucket_joules` has the keys prefill, decode, idle and unattributed: running totals of what is settled;
    their sum is `settled_joules`, what the counters gained up to `settled_unix`. Where nothing is attributed
    (`reason` says why) there is no prefill and decode, idle only where idle power was given, and no
    `step_model`. `faults` counts, over the monitor's life, how often each reason began, for a device (in
    `devices`) or for the monitor itself (here). `settled_requests` are those settled since the last snapshot
    that took them (`take_settled=True`).
    """

    now_unix: float
    model_name: str
    source: str
    devices: tuple[DeviceStatus, ...]
    bucket_joules: dict[str, float]
    settled_joules: float
    settled_unix: float | None
    idle: IdleState
    settled_requests: tuple[RequestEnergy, ...]
    active_requests: int
    conservation_error_ratio: float
    step_model: dict[str, Any] | None
    faults: dict[str, int] = field(default_factory=dict)
    flags: frozenset[Fault] = frozenset()
    sample_cost_seconds: float | None = None
    reason: str | None = None


def _or_null(values: F64) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


class _Reader:
    """One JSON object whose fields are read by name; `what` is its name in a message."""

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, dict):
            raise SchemaError(f"{what} is not a JSON object")
        self.data: dict[str, Any] = data
        self.what = what

    def get(self, name: str) -> Any:
        return self.data.get(name)

    def wrong(self, name: str) -> SchemaError:
        if name not in self.data:
            return SchemaError(f"{self.what} has no field {name!r}")
        return SchemaError(f"{self.what} has {str(self.data[name])[:80]!r} in field {name!r}")

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default` where the field is missing or null, an error where there is no default."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name)
        return value

    def truth(self, name: str) -> bool:
        value = self.data.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name)
        return value

    def number(self, name: str, *, required: bool = False) -> float | None:
        """A finite number; None for null, and for a missing field unless it is `required`."""
        value = self.data.get(name)
        if value is None and (name in self.data or not required):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name)
        # An integer may have more digits than a float can hold.
        return float(value) if abs(value) <= sys.float_info.max else None

    def known_number(self, name: str) -> float:
        value = self.number(name, required=True)
        if value is None:
            raise self.wrong(name)
        return value

    def flags(self) -> frozenset[str]:
        """The names in `flags`, those of faults as Fault, others as they are; none where it is missing."""
        value = self.data.get("flags")
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong("flags")
        known: dict[str, Fault] = {fault.value: fault for fault in Fault}
        return frozenset(known[name] if name in known else str(name) for name in value)

    def items(self, name: str, read: Callable[[object], T]) -> tuple[T, ...]:
        """A list of objects, each read by `read`."""
        value = self.data.get(name)
        if not isinstance(value, list):
            raise self.wrong(name)
        return tuple(read(item) for item in value)

    def column(self, name: str) -> F64:
        """A list of numbers, shape (N,), nan for null."""
        value = self.data.get(name)
        if not isinstance(value, list):
            raise self.wrong(name)
        try:
            return np.array([math.nan if item is None else item for item in value], np.float64)
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(name) from None

    def rest(self, known: str) -> dict[str, Any]:
        names = set(known.split())
        return {name: value for name, value in self.data.items() if name not in names}
