"""What the account answers: the energy of a request, of a window and of a device, and the state of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wattmeter.faults import Fault

F64 = npt.NDArray[np.float64]
Status = Literal["provisional", "settled"]


def flag_names(flags: frozenset[Fault]) -> list[str]:
    """Names of the flags in a fixed order, for JSON."""
    return sorted(flag.value for flag in flags)


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """One request's joules above idle. `provisional` is the model's estimate for what is not settled yet.

    `uncertainty_joules` is one standard deviation of `joules`. `reason` says why `joules` is None, where it
    is: a failed meter gives no number instead of a wrong one. `status` is settled once the meter has covered
    the request's last step.
    """

    id: str
    status: Status
    joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    uncertainty_joules: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    source: str
    flags: frozenset[Fault] = frozenset()
    group: str = ""
    aborted: bool = False
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer of `GET /energy/requests/{id}`."""
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
        }


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """One device's joules over a window; `uncertainty_joules`: one standard deviation, from the edges.

    `covered_seconds` is the part of the window of which the counter's change is known. A sensor's gain error
    (about 5 % a board, the same sign always) is apart: see docs/measurement.md.
    """

    id: str
    name: str
    source: str
    joules: float | None
    uncertainty_joules: float | None
    covered_seconds: float
    flags: frozenset[Fault] = frozenset()

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "joules": self.joules,
            "uncertainty_joules": self.uncertainty_joules,
            "covered_seconds": self.covered_seconds,
            "flags": flag_names(self.flags),
        }


@dataclass(frozen=True, slots=True)
class WindowEnergy:
    """Joules of [start_unix, end_unix) over all devices and how they divide.

    total = idle + prefill + decode + unattributed. `complete` is False while part of the window is not
    settled or was never covered; what is missing is then neither guessed nor in the total. `idle_joules` is
    None where idle power was never measured: what idling cost is then inside the attributed joules, and
    flagged.
    """

    start_unix: float
    end_unix: float
    complete: bool
    total_joules: float | None
    uncertainty_joules: float | None
    idle_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    unattributed_joules: float | None
    devices: tuple[DeviceEnergy, ...]
    groups: dict[str, float] = field(default_factory=dict)
    flags: frozenset[Fault] = frozenset()

    def as_json(self, *, groups: bool = False) -> dict[str, Any]:
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
            "devices": [device.as_json() for device in self.devices],
            "flags": flag_names(self.flags),
        }
        if groups:
            answer["groups"] = self.groups
        return answer


@dataclass(frozen=True, slots=True)
class DeviceSeries:
    """One device's counter over time: at `unix_seconds`, shape (N,), `joules` (N,) since the account began.

    `watts` (N,) is the counter's mean power over the update that ended there (nan at the first).
    """

    id: str
    name: str
    source: str
    unix_seconds: F64
    joules: F64
    watts: F64

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "unix_seconds": self.unix_seconds.tolist(),
            "joules": self.joules.tolist(),
            "watts": [None if np.isnan(value) else float(value) for value in self.watts],
        }


@dataclass(frozen=True, slots=True)
class IdleState:
    """Watts of all devices together with no request running; `how` is measured, given or None (not known)."""

    watts: float | None
    how: str | None
    measured_unix: float | None
    uncertainty_watts: float | None = None

    def as_json(self) -> dict[str, Any]:
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

    def as_json(self) -> dict[str, Any]:
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
class AccountSnapshot:
    """The state of the books at one moment, for Prometheus and `GET /energy`.

    `bucket_joules` has the keys prefill, decode, idle and unattributed: running totals of what is settled;
    their sum is `settled_joules`, what the counters gained up to `settled_unix`. `faults` counts, over the
    account's life, how often each reason began, for a device (in `devices`) or for the books themselves
    (here). `settled_requests` are those settled since the last snapshot that took them (`take_settled=True`).
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
