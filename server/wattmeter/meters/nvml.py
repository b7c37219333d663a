"""NVIDIA GPUs by NVML: the board's energy counter, and its instant power for the shape.

Through the official binding, nvidia-ml-py (module `pynvml`). Names, codes and field numbers: NVML API
reference.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, DeviceState, Reading

logger = logging.getLogger("wattmeter")

# NVML API reference, nvmlReturn_t.
FAULTS = {
    1: Fault.DRIVER_NOT_LOADED,
    3: Fault.NOT_SUPPORTED,
    4: Fault.NO_PERMISSION,
    9: Fault.DRIVER_NOT_LOADED,
    10: Fault.TIMEOUT,
    12: Fault.DRIVER_NOT_LOADED,
    13: Fault.NOT_SUPPORTED,
    15: Fault.GPU_LOST,
    16: Fault.RESET_REQUIRED,
    18: Fault.DRIVER_MISMATCH,
    999: Fault.UNKNOWN_ERROR,
}
# After these the session with the driver is over: it and all handles must be made anew.
SESSION_ENDED = {1, 9, 12, 18}
RENEW_SECONDS = 1.0
REASONS = {
    Fault.NOT_SUPPORTED: "this GPU or driver does not support it",
    Fault.NO_PERMISSION: "the driver refuses this user",
    Fault.DRIVER_NOT_LOADED: "no NVIDIA driver is loaded here",
    Fault.TIMEOUT: "the driver did not answer in time",
    Fault.GPU_LOST: "the GPU has fallen off the bus",
    Fault.RESET_REQUIRED: "the GPU must be reset",
    Fault.DRIVER_MISMATCH: "the NVML library and the driver have different versions",
    Fault.UNKNOWN_ERROR: "NVML reports an internal error",
    Fault.STALE_SENSOR: "its readings are old",
}
# What every binding of the last years has. The rest is done without where it is missing.
ESSENTIAL = (
    "NVMLError",
    "nvmlInit",
    "nvmlShutdown",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
)
FIELD_POWER_AVERAGE = 185
FIELD_POWER_INSTANT = 186
UPDATE_SECONDS = 0.1
# A field value carries the time of its sample. Where that stands for so long the sensor does not answer.
STALE_FIELD_SECONDS = 2.0
# Earlier timestamps (microseconds since 1970) are no time at all.
LEAST_TIMESTAMP = 1_500_000_000_000_000
VIRTUALIZATION_VGPU = 2
MODULE_SCOPE_NAMES = ("GH200", "GB200", "GB300")


def fault_of(error: BaseException) -> Fault:
    """The named fault of an NVMLError (by its `value`); UNKNOWN_ERROR for any other."""
    if isinstance(error, _StaleFieldError):
        return Fault.STALE_SENSOR
    return FAULTS.get(getattr(error, "value", -1), Fault.UNKNOWN_ERROR)


def visible_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, as indices or UUIDs; None where it is not set.

    As CUDA does, the list ends at the first entry that is not valid (-1, for one); an empty list hides all
    GPUs.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names: list[str] = []
    for part in (piece.strip() for piece in value.split(",")):
        if not (part.isdigit() or part.startswith(("GPU-", "MIG-"))):
            break
        names.append(part)
    return names


class NvmlMeter:
    """The energy counters of some GPUs of this host.

    `gpus` are indices or UUIDs (or unambiguous beginnings of UUIDs); without it CUDA_VISIBLE_DEVICES decides,
    and without that all GPUs that can be opened. Indices count in PCI bus order, as
    CUDA_DEVICE_ORDER=PCI_BUS_ID. A GPU divided by MIG (or the GPU of a MIG instance that is named) is metered
    once, as a whole, and flagged `mig`: its energy may be others'. A vGPU, whose readings are those of the
    whole physical GPU, is refused. `is_own` says whether a process id is the engine's; None from it, or no
    such function: that is not known.

    Raises MeterUnavailableError where NVML, a GPU, or its sensors are missing. A read never raises for what
    NVML reports: it gives a reading with the fault. After a driver was loaded anew the GPUs are found again
    by their UUIDs.
    """

    source = "nvml"
    update_period_seconds: float | None = UPDATE_SECONDS
    min_energy_interval_seconds = UPDATE_SECONDS

    def __init__(
        self,
        gpus: Sequence[str | int] | None = None,
        *,
        is_own: Callable[[int], bool | None] | None = None,
        environment: Mapping[str, str] | None = None,
        nvml: Any = None,
    ) -> None:
        self._nvml = nvml if nvml is not None else _binding()
        missing = [name for name in ESSENTIAL if not hasattr(self._nvml, name)]
        if missing:
            raise MeterUnavailableError(
                f"the installed module pynvml has no {missing[0]}: pip install --upgrade nvidia-ml-py, and"
                " uninstall other packages that provide pynvml",
                Fault.NOT_SUPPORTED,
            )
        self._is_own = is_own
        self._renewed_seconds = time.monotonic()
        self._stamps: dict[tuple[str, int], tuple[int, float]] = {}
        self._handles: dict[str, Any] = {}
        self.device_flags: dict[str, frozenset[Fault]] = {}
        try:
            self._nvml.nvmlInit()
        except Exception as error:
            raise _unavailable("NVML does not start", error) from None
        try:
            wanted = None if gpus is None else [str(gpu) for gpu in gpus]
            if wanted is None:
                wanted = visible_gpus(os.environ if environment is None else environment)
            self._devices = tuple(self._open(wanted))
        except BaseException:
            self.close()
            raise

    @property
    def devices(self) -> Sequence[Device]:
        return self._devices

    def read_energy(self, device_id: str) -> Reading:
        """The board's counter (steps every 100 ms; a call costs about 4 ms: at most 10 a second)."""
        before = time.monotonic_ns()
        try:
            millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handles[device_id])
        except self._nvml.NVMLError as error:
            self._renew(error)
            return _failed(device_id, fault_of(error))
        # The value was taken somewhere within the call.
        after = time.monotonic_ns()
        half_seconds = 0.5e-9 * (after - before)
        return Reading(
            device_id,
            (before + after) // 2,
            time.time() - half_seconds,
            energy_joules=millijoules * 1e-3,
            within_seconds=half_seconds,
        )

    def read_power(self, device_id: str) -> Reading:
        """Instant power (field 186), or what the driver calls power usage where that field is missing."""
        try:
            watts = self._field(device_id, FIELD_POWER_INSTANT)
            if watts is None:
                watts = self._nvml.nvmlDeviceGetPowerUsage(self._handles[device_id]) * 1e-3
        except (self._nvml.NVMLError, _StaleFieldError) as error:
            return _failed(device_id, fault_of(error))
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=watts)

    def read_average_power(self, device_id: str) -> Reading:
        """Power averaged by the driver (field 185: over about 1 s on Hopper), for the self-test."""
        try:
            watts = self._field(device_id, FIELD_POWER_AVERAGE)
        except (self._nvml.NVMLError, _StaleFieldError) as error:
            return _failed(device_id, fault_of(error))
        fault = Fault.NOT_SUPPORTED if watts is None else None
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=watts, fault=fault)

    def read_state(self, device_id: str) -> DeviceState:
        """What NVML tells beside energy and power; None where the driver or the binding does not tell it."""
        handle, nvml = self._handles[device_id], self._nvml
        return DeviceState(
            self._ask(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
            self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3),
            self._ask(lambda: int(self._clock_event_reasons(handle))),
            self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu * 1e-2),
            self._ask(lambda: self._other_processes(handle)),
            self._in_mig_mode(handle),
        )

    def close(self) -> None:
        self._ask(self._nvml.nvmlShutdown)

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self, wanted: list[str] | None) -> list[Device]:
        nvml = self._nvml
        try:
            found = self._find()
        except nvml.NVMLError as error:
            raise _unavailable("NVML does not list the GPUs", error) from None
        uuids = [part[1] if isinstance(part, tuple) else "" for part in found]
        if wanted is None:
            chosen = list(range(len(found)))
        else:
            chosen = [_position(self._whole_gpu(name), uuids) for name in wanted]
        if not chosen:
            raise MeterUnavailableError(
                "no GPU to meter: none is here, or CUDA_VISIBLE_DEVICES hides them all"
            )
        if len(set(chosen)) != len(chosen):
            raise MeterUnavailableError(f"a GPU is named twice in {', '.join(wanted or [])}")
        devices = []
        for number in chosen:
            part = found[number]
            if not isinstance(part, tuple):
                others = ", ".join(str(other) for other, uuid in enumerate(uuids) if uuid) or "none"
                raise _unavailable(f"GPU {number} does not respond (select those that do: {others})", part)
            devices.append(self._device(*part))
        return devices

    def _find(self) -> list[tuple[Any, str] | BaseException]:
        """(handle, UUID) of every GPU of the host, or why it cannot be had, in PCI bus order.

        Raises NVMLError where not even their number is told.
        """
        nvml = self._nvml
        found: list[tuple[Any, str] | BaseException] = []
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                found.append((handle, _text(nvml.nvmlDeviceGetUUID(handle))))
            except nvml.NVMLError as error:
                found.append(error)
        return found

    def _renew(self, error: BaseException) -> None:
        """Begin a new session with the driver where the old one is over, at most every RENEW_SECONDS."""
        now = time.monotonic()
        if getattr(error, "value", 0) not in SESSION_ENDED or now - self._renewed_seconds < RENEW_SECONDS:
            return
        self._renewed_seconds = now
        self._ask(self._nvml.nvmlShutdown)
        try:
            self._nvml.nvmlInit()
            found = self._find()
        except self._nvml.NVMLError:
            return
        for part in found:
            if isinstance(part, tuple) and part[1] in self._handles:
                self._handles[part[1]] = part[0]
        logger.warning("NVML was initialised again after: %s", error)

    def _whole_gpu(self, name: str) -> str:
        """The UUID of the GPU that a MIG instance is part of; other names as they are."""
        if not name.startswith("MIG-"):
            return name
        nvml = self._nvml
        uuid = self._ask(
            lambda: nvml.nvmlDeviceGetUUID(
                nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(name))
            )
        )
        if uuid is None:
            raise MeterUnavailableError(
                f"{name} is a MIG instance, and NVML does not tell of which GPU: name the GPU instead",
                Fault.MIG,
            )
        return _text(uuid)

    def _device(self, handle: Any, uuid: str) -> Device:
        nvml = self._nvml
        name = _text(self._ask(lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU")
        flags: set[Fault] = set()
        mode = self._ask(lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
        if mode == VIRTUALIZATION_VGPU:
            raise MeterUnavailableError(
                f"{uuid} is a vGPU: its readings are the whole GPU's, other guests' included", Fault.VGPU
            )
        if self._in_mig_mode(handle):
            flags.add(Fault.MIG)
        if any(part in name for part in MODULE_SCOPE_NAMES):
            # Power there has two scopes, GPU and module (with the CPU); the counter's must not pass for both.
            flags.add(Fault.MODULE_SCOPE)
        self._handles[uuid] = handle
        self.device_flags[uuid] = frozenset(flags)
        first, power = self.read_energy(uuid), self.read_power(uuid)
        if first.energy_joules is None and power.power_watts is None:
            fault = first.fault or Fault.UNKNOWN_ERROR
            raise MeterUnavailableError(
                f"{uuid} ({name}) gives neither energy nor power: {REASONS[fault]}", fault
            )
        limit = self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3)
        return Device(uuid, name, self.source, limit)

    def _in_mig_mode(self, handle: Any) -> bool:
        mode = self._ask(lambda: self._nvml.nvmlDeviceGetMigMode(handle))
        return mode is not None and mode[0] == 1

    def _other_processes(self, handle: Any) -> int | None:
        """How many processes with a compute context are not the engine's; None where that is not known."""
        if self._is_own is None:
            return None
        own = [
            self._is_own(process.pid) for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ]
        return None if None in own else own.count(False)

    def _field(self, device_id: str, field: int) -> float | None:
        """Watts of a field value in milliwatts; None where driver or binding do not know it.

        Raises NVMLError, and _StaleFieldError where the value's own time stands.
        """
        if not hasattr(self._nvml, "nvmlDeviceGetFieldValues"):
            return None
        value = self._nvml.nvmlDeviceGetFieldValues(self._handles[device_id], [field])[0]
        if value.nvmlReturn != 0:
            if FAULTS.get(value.nvmlReturn) in {Fault.NOT_SUPPORTED, None}:
                return None
            raise self._nvml.NVMLError(value.nvmlReturn)
        stamp, now = int(getattr(value, "timestamp", 0)), time.monotonic()
        if stamp >= LEAST_TIMESTAMP:
            last = self._stamps.get((device_id, field))
            if last is None or last[0] != stamp:
                self._stamps[device_id, field] = (stamp, now)
            elif now - last[1] > STALE_FIELD_SECONDS:
                raise _StaleFieldError
        return float(value.value.uiVal) * 1e-3

    def _clock_event_reasons(self, handle: Any) -> int:
        """Bits of nvmlClocksEventReasons. Raises NVMLError."""
        try:
            reasons: int = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except (AttributeError, self._nvml.NVMLError):
            # Drivers before 535, and bindings of their time, have it under its former name only.
            reasons = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return reasons

    def _ask(self, question: Any) -> Any:
        """What a question gives; None where the driver has no answer, or the binding no such function."""
        try:
            return question()
        except (AttributeError, UnicodeDecodeError, self._nvml.NVMLError):
            return None


class _StaleFieldError(Exception):
    """A field value whose own time stands."""


def _failed(device_id: str, fault: Fault) -> Reading:
    return Reading(device_id, time.monotonic_ns(), time.time(), fault=fault)


def _binding() -> Any:
    try:
        import pynvml
    except ImportError:
        raise MeterUnavailableError(
            "the NVML binding is not installed: pip install nvidia-ml-py", Fault.DRIVER_NOT_LOADED
        ) from None
    return pynvml


def _unavailable(what: str, error: BaseException) -> MeterUnavailableError:
    fault = fault_of(error)
    return MeterUnavailableError(f"{what}: {REASONS[fault]} ({error})", fault)


def _text(value: Any) -> str:
    """A name as text: what is not UTF-8 in it is replaced."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return data.decode("utf-8", "replace")


def _position(name: str, uuids: list[str]) -> int:
    if name.isdigit():
        if int(name) < len(uuids):
            return int(name)
        raise MeterUnavailableError(f"there is no GPU {name}: this host has {len(uuids)}")
    found = [i for i, uuid in enumerate(uuids) if uuid.startswith(name)]
    if len(found) == 1:
        return found[0]
    raise MeterUnavailableError(f"{len(found)} GPUs of this host have a UUID beginning with {name}")
