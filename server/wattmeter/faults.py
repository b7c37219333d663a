"""Named reasons for which an energy figure is invalid or partial. A fault is never a zero."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Self


class Fault(StrEnum):
    """Why a reading, a counter interval or an energy figure cannot be taken at face value.

    The value of each member is the name in `flags` of `/energy`, in run.json and in the `reason` label of
    `wattserve_meter_faults_total`. `meaning` is one sentence for a reader of a report. `invalidates` is True
    where the joules themselves are wrong or missing; the other faults qualify a figure that stands.
    """

    _value_: str
    meaning: str
    invalidates: bool

    def __new__(cls, name: str, meaning: str = "", invalidates: bool = False) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        member.invalidates = invalidates
        return member

    @property
    def clause(self) -> str:
        """`meaning` as part of a longer sentence: no capital letter and no full stop."""
        return self.meaning[0].lower() + self.meaning[1:].rstrip(".")

    COUNTER_RESET = "counter_reset", "An energy counter was reset inside the window.", True
    COUNTER_JUMP = (
        "counter_jump",
        "An energy counter rose by more than its device can draw.",
        True,
    )
    COUNTER_WRAPPED = (
        "counter_wrapped",
        "An energy counter may have wrapped more than once between two readings.",
        True,
    )
    GPU_LOST = "gpu_lost", "A GPU stopped responding inside the window.", True
    RESET_REQUIRED = "reset_required", "A GPU reports that it needs a reset.", True
    STALE_SENSOR = (
        "stale_sensor",
        "A sensor repeated the same value for too long, or a power gauge was not read.",
        True,
    )
    NO_NEW_READING = (
        "no_new_reading",
        "The source of energy gave no new counter value in the window.",
        True,
    )
    LATE_COUNTER = (
        "late_counter",
        "An energy counter began to rise long after the load began: it is late, or others used its devices.",
        True,
    )
    NO_PERMISSION = "no_permission", "The meter is not allowed to read a device.", True
    NOT_SUPPORTED = "not_supported", "A device does not report its energy.", True
    DRIVER_NOT_LOADED = "driver_not_loaded", "The driver of a device is not loaded.", True
    DRIVER_MISMATCH = (
        "driver_mismatch",
        "The driver of a device and its library are of different versions.",
        True,
    )
    TIMEOUT = "timeout", "A device did not respond to the meter in time.", True
    UNKNOWN_ERROR = "unknown_error", "The meter met an error without a name.", True
    CLOCK_STEP = "clock_step", "The meter's clock was stepped inside the window.", True
    MIG = "mig", "The GPU is divided, by MIG or a partition mode; the joules are the whole GPU's."
    VGPU = "vgpu", "The GPU is shared between virtual machines; the joules are the whole GPU's."
    MODULE_SCOPE = (
        "module_scope",
        "The joules are the module's (GPU and CPU, or two GPU dies), not one GPU's alone.",
    )
    SHARED_DEVICE = (
        "shared_device",
        "Other processes computed on the GPU; the joules include theirs.",
        True,
    )
    INTEGRATED_POWER = (
        "integrated_power",
        "A device has no energy counter; its joules are the integral of its power readings.",
    )
    OTHER_HOSTS = (
        "other_hosts",
        "The engine also uses GPUs of other hosts, whose joules are missing here: name every host's meter"
        " (`--energy` of `wattload run`, once for each).",
        True,
    )
    PARTIAL_COVERAGE = "partial_coverage", "The meter did not cover the whole window.", True
    UNCERTAIN = (
        "uncertain",
        "The uncertainty of the total exceeds a tenth of it.",
        True,
    )
    SENSOR_DISAGREEMENT = (
        "sensor_disagreement",
        "The counter and the integral of the power differ by more than they should.",
    )
    IMPLAUSIBLE_POWER = (
        "implausible_power",
        "The joules mean a power that no device draws; their unit is probably not the joule.",
        True,
    )
    MIXED_SOURCES = (
        "mixed_sources",
        "Devices were read by different kinds of sensor, whose joules cannot be added.",
        True,
    )
    CONSERVATION_ERROR = (
        "conservation_error",
        "Requests, idle and unattributed energy do not add up to the change of the counter.",
        True,
    )
    LATE_SIMULATION = (
        "late_simulation",
        "The simulator ran late: latencies are wrong, and so is the load if it was a closed loop.",
        True,
    )
    LOST_STEP_RECORDS = (
        "lost_step_records",
        "Records of engine steps were lost; the split between requests is less certain.",
    )
    CLOCK_UNCERTAIN = (
        "clock_uncertain",
        "The clock of the engine's host was not known well enough against the meter's; the split between"
        " requests is less certain.",
    )
    METER_RESTARTED = (
        "meter_restarted",
        "The meter was not running for part of the window; joules of that part are no request's.",
        True,
    )
    REQUEST_ID_REUSED = (
        "request_id_reused",
        "Several requests had one id at once; their joules are one sum, without tokens.",
    )
    IDLE_NOT_MEASURED = (
        "idle_not_measured",
        "Idle power was not measured; the idle part is unknown or a default.",
    )
    MODEL_NOT_TRUSTED = (
        "model_not_trusted",
        "The step model is not yet confirmed on held-out time; the split between requests is less certain.",
    )
    ESTIMATED = (
        "estimated",
        "Joules of requests are estimated from the times and token counts of their responses; no engine steps"
        " were recorded.",
    )
    MODELLED = "modelled", "The joules are simulated by a model of a device; no sensor read them."


def known_faults(names: Iterable[str]) -> list[Fault]:
    """The faults among `names`, in the order in which they are declared.

    A newer server may name others; those stay names without a meaning.
    """
    given = set(names)
    return [fault for fault in Fault if fault.value in given]


def meaning_of(name: str) -> str:
    """The sentence of the fault called `name`, empty for a name that is not declared here."""
    return next((fault.meaning for fault in known_faults([name])), "")


def invalidating(names: Iterable[str]) -> list[Fault]:
    """The faults among `names` with which an energy figure is wrong or missing, in declared order."""
    return [fault for fault in known_faults(names) if fault.invalidates]


_FLAG_SETS: dict[frozenset[Fault], frozenset[Fault]] = {}


def flag_set(flags: frozenset[Fault]) -> frozenset[Fault]:
    """The set of these flags, one object for all that are equal.

    A server keeps 100,000 requests and an hour of seconds, which have a handful of different sets: each of
    their own would take 216 bytes.
    """
    return _FLAG_SETS.setdefault(flags, flags)
