"""What a person can set about metering vLLM: as `--energy-*` flags of our launcher, or in the environment.

The launcher turns its flags into the variables, so that the processes vLLM starts, and a plain `vllm serve`
with our middleware, read the same settings from the same place.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from wattserve.http.keys import TenantFrom
from wattserve.protocol import address as addresses

PREFIX = "--energy-"
ALSO_AT_VARIABLE = "WATTSERVE_ALSO_AT"
_ALSO_AT = f"{PREFIX}also-at ({ALSO_AT_VARIABLE})"
# One name for all processes of a server, and the moment it began to start (CLOCK_MONOTONIC, ns): the first
# process of a server sets them.
SERVER_VARIABLE = "WATTSERVE_SERVER"
STARTED_VARIABLE = "WATTSERVE_STARTED_NS"
# Why a server has no energy, where that is known before it serves.
REASON_VARIABLE = "WATTSERVE_NO_ENERGY"
DEFAULT_GROUP_HEADER = "x-energy-group"


class SettingError(ValueError):
    """A setting that cannot be used: one sentence that names the flag and the variable."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting: its flag without `--energy-`, its environment variable, and what it means."""

    name: str
    variable: str
    value: str
    help: str
    # May be given several times; the variable has the values with spaces between them.
    several: bool = False


FLAGS = (
    Flag(
        "meter",
        "WATTSERVE_METER",
        "SPEC",
        "where joules come from: nvml (the default), amdsmi, recorded:FILE, or modelled:PROFILE (labelled"
        " modelled)",
    ),
    Flag(
        "devices",
        "WATTSERVE_DEVICES",
        "0,1|UUID,..",
        "the devices to meter (default: the first tensor x pipeline parallel size of CUDA_VISIBLE_DEVICES)",
    ),
    Flag("record", "WATTSERVE_RECORD", "DIR", "write step records and meter readings into this new folder"),
    Flag(
        "group-header",
        "WATTSERVE_GROUP_HEADER",
        "NAME",
        "the request header that names a tenant in GET /energy?group_by=tag (default: x-energy-group)",
    ),
    Flag(
        "tenant-from",
        "WATTSERVE_TENANT_FROM",
        "key|header",
        "who says whose a request is: key, the --api-key that it came with (the default with several), or"
        " header, the group header, which only a trusted proxy should be able to set",
    ),
    Flag(
        "idle-watts",
        "WATTSERVE_IDLE_WATTS",
        "W",
        "power of all metered devices with the model loaded and no request, instead of measuring it",
    ),
    Flag(
        "step-model",
        "WATTSERVE_STEP_MODEL",
        "FILE",
        "a step-energy model saved earlier, as the first guess until this machine's own fit is trusted",
    ),
    Flag(
        "selftest-seconds",
        "WATTSERVE_SELFTEST_SECONDS",
        "S",
        "length of the sensors' self-test while the model loads (default: 20; 0: none; at most 60)",
    ),
    Flag(
        "socket",
        "WATTSERVE_STEP_SOCKET",
        "PATH",
        "the ipc socket of the meter that is started (default: a new one in the temporary folder)",
    ),
    Flag(
        "meter-at",
        "WATTSERVE_METER_AT",
        "SOCKET|URL",
        "attach to a meter that runs already: the path of its socket or tcp://HOST:PORT (`wattserve meter"
        " --socket`), instead of starting one",
    ),
    Flag(
        "also-at",
        ALSO_AT_VARIABLE,
        "tcp://HOST:PORT?devices=0,1",
        "the meter of a further host whose GPUs the engine uses (`wattserve meter --socket`), and which of"
        " its devices those are (devices=all: all that it meters); once for each further host",
        several=True,
    ),
)
# Settings of the meter itself, which one that runs already has from its own command line.
OF_THE_METER = ("meter", "record", "idle-watts", "step-model", "selftest-seconds", "socket")


@dataclass(frozen=True, slots=True)
class FurtherMeter:
    """The meter of another host with GPUs of the engine. `devices` are the engine's there; none: all that
    this meter meters."""

    address: str
    devices: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> FurtherMeter:
        """`tcp://HOST:PORT?devices=0,1`. Raises SettingError."""
        address, _, query = text.partition("?")
        name, _, value = query.partition("=")
        devices = _listed(value)
        if name != "devices" or not devices or "&" in value:
            raise SettingError(
                f"{_ALSO_AT}: {text} names no devices: tcp://HOST:PORT?devices=0,1,"
                " or ?devices=all where the engine uses all that this meter meters"
            )
        if not address.startswith("tcp://"):
            raise SettingError(f"{_ALSO_AT}: {address} is not the tcp://HOST:PORT of another host's meter")
        try:
            address = addresses.address_of(address)
        except ValueError as error:
            raise SettingError(f"{_ALSO_AT}: {error}") from None
        return cls(address, () if devices == ("all",) else devices)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force. `devices` is None for the engine's own; `idle_watts` None for measured."""

    meter: str = "nvml"
    devices: tuple[str, ...] | None = None
    record: Path | None = None
    group_header: str = DEFAULT_GROUP_HEADER
    tenant_from: TenantFrom | None = None
    idle_watts: float | None = None
    step_model: Path | None = None
    selftest_seconds: float = 20.0
    socket: str | None = None
    meter_at: str | None = None
    also_at: tuple[FurtherMeter, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the WATTSERVE_* variables; an empty one counts as not set. Raises SettingError."""
        given = {flag.name: environment.get(flag.variable, "").strip() for flag in FLAGS}
        return cls(
            meter=given["meter"] or "nvml",
            devices=named_devices(environment),
            record=_new_folder(given["record"]) if given["record"] else None,
            group_header=(given["group-header"] or DEFAULT_GROUP_HEADER).lower(),
            tenant_from=tenant_from(environment),
            idle_watts=_watts(given["idle-watts"]) if given["idle-watts"] else None,
            step_model=_file(given["step-model"]) if given["step-model"] else None,
            selftest_seconds=_selftest_seconds(given["selftest-seconds"] or "20"),
            socket=given["socket"] or None,
            meter_at=given["meter-at"] or None,
            also_at=further_meters(environment),
        )


def named_devices(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The devices that a person named, or None."""
    text = environment.get("WATTSERVE_DEVICES", "")
    return _listed(text) or None


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def further_meters(environment: Mapping[str, str]) -> tuple[FurtherMeter, ...]:
    """The meters of further hosts that a person named. Raises SettingError."""
    meters = tuple(FurtherMeter.parse(text) for text in environment.get(ALSO_AT_VARIABLE, "").split())
    named = [*(meter.address for meter in meters), environment.get("WATTSERVE_METER_AT", "").strip()]
    again = next((meter.address for meter in meters if named.count(meter.address) > 1), None)
    if again is not None:
        raise SettingError(f"{_ALSO_AT}: {again} is named twice: its joules would count twice")
    return meters


def tenant_from(environment: Mapping[str, str]) -> TenantFrom | None:
    """Who says whose a request is; None where nobody has decided. Raises SettingError."""
    match environment.get("WATTSERVE_TENANT_FROM", "").strip():
        case "":
            return None
        case "key" | "header" as given:
            return given
        case other:
            raise SettingError(
                f"--energy-tenant-from (WATTSERVE_TENANT_FROM) is key or header, not {other!r}"
            )


def flags_and_rest(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our settings as environment variables, and vLLM's arguments untouched and in their order.

    Raises SettingError for an `--energy-` flag that does not exist, has no value or comes twice.
    """
    known = {flag.name: flag for flag in FLAGS}
    variables: dict[str, str] = {}
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            rest += [argument, *queue]
            break
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if not name.startswith(PREFIX):
            rest.append(argument)
            continue
        flag = known.get(name.removeprefix(PREFIX))
        if flag is None:
            near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise SettingError(f"unknown flag {name}{hint} (ours: {', '.join(PREFIX + n for n in known)})")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise SettingError(f"{name} needs a value ({flag.value})")
            value = queue.pop(0)
        if flag.variable in variables and not flag.several:
            raise SettingError(f"{name} is given twice")
        if not value:
            raise SettingError(f"{name} needs a value ({flag.value})")
        variables[flag.variable] = f"{variables.get(flag.variable, '')} {value}".strip()
    return variables, rest


def help_text() -> str:
    """The flags as `--help` shows them."""
    lines = [f"  {PREFIX}{flag.name + ' ' + flag.value:26}  {flag.help}" for flag in FLAGS]
    return "metering flags of wattserve:\n" + "\n".join(lines)


def _watts(text: str) -> float:
    try:
        watts = float(text)
    except ValueError:
        watts = -1.0
    if not 0 <= watts < 1e6:
        raise SettingError(f"--energy-idle-watts (WATTSERVE_IDLE_WATTS) is a power in watts, not {text!r}")
    return watts


def _selftest_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise SettingError(
            f"--energy-selftest-seconds (WATTSERVE_SELFTEST_SECONDS) is a time from 0 to 60 s, not {text!r}"
        )
    return seconds


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise SettingError(f"--energy-step-model (WATTSERVE_STEP_MODEL): there is no file {text}")
    return path


def _new_folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingError(
            f"--energy-record (WATTSERVE_RECORD): {text} exists already and is not an empty folder"
        )
    return path


assert len(FLAGS) == len(fields(Settings))
