"""NVIDIA GPUs by NVML: the board's energy counter, and its instant power for the shape.

Through the official binding, nvidia-ml-py (module `pynvml`). Names, codes and field numbers: NVML API
reference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meter import Device, DeviceState, Reading
from wattmeter.meters import MeterUnavailableError

# NVML API reference, nvmlReturn_t.
FAULTS = {
    3: Fault.NOT_SUPPORTED,
    4: Fault.NO_PERMISSION,
    9: Fault.DRIVER_NOT_LOADED,
    10: Fault.TIMEOUT,
    12: Fault.DRIVER_NOT_LOADED,
    15: Fault.GPU_LOST,
    16: Fault.RESET_REQUIRED,
    18: Fault.DRIVER_MISMATCH,
    999: Fault.UNKNOWN_ERROR,
}
REASONS = {
    Fault.NOT_SUPPORTED: "this GPU or driver does not support it",
    Fault.NO_PERMISSION: "the driver refuses this user",
    Fault.DRIVER_NOT_LOADED: "no NVIDIA driver is loaded here",
    Fault.TIMEOUT: "the driver did not answer in time",
    Fault.GPU_LOST: "the GPU has fallen off the bus",
    Fault.RESET_REQUIRED: "the GPU must be reset",
    Fault.DRIVER_MISMATCH: "the NVML library and the driver have different versions",
    Fault.UNKNOWN_ERROR: "NVML reports an internal error",
}
FIELD_POWER_AVERAGE = 185
FIELD_POWER_INSTANT = 186
UPDATE_SECONDS = 0.1
VIRTUALIZATION_VGPU = 2
MODULE_SCOPE_NAMES = ("GH200", "GB200", "GB300")


def fault_of(error: BaseException) -> Fault:
    """The named fault of an NVMLError (by its `value`); UNKNOWN_ERROR for any other."""
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
    and without that all GPUs. `refuse_shared` refuses GPUs in MIG mode: their energy is the whole board's and
    may be others'. With False they are metered once, as whole boards, and flagged `mig`. A vGPU, whose
    readings are those of the whole physical board, is always refused. Indices count in PCI bus order, as
    CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Raises MeterUnavailableError where NVML, a GPU, or its sensors are missing. A read never raises for what
    NVML reports: it gives a reading with the fault.
    """

    source = "nvml"
    update_period_seconds: float | None = UPDATE_SECONDS
    min_energy_interval_seconds = UPDATE_SECONDS

    def __init__(
        self,
        gpus: Sequence[str | int] | None = None,
        *,
        refuse_shared: bool = True,
        environment: Mapping[str, str] | None = None,
        nvml: Any = None,
    ) -> None:
        self._nvml = nvml if nvml is not None else _binding()
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
            self._devices = tuple(self._open(wanted, refuse_shared))
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
            return Reading(device_id, time.monotonic_ns(), time.time(), fault=fault_of(error))
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
        handle = self._handles[device_id]
        try:
            watts = self._field(handle, FIELD_POWER_INSTANT)
            if watts is None:
                watts = self._nvml.nvmlDeviceGetPowerUsage(handle) * 1e-3
        except self._nvml.NVMLError as error:
            return Reading(device_id, time.monotonic_ns(), time.time(), fault=fault_of(error))
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=watts)

    def read_average_power(self, device_id: str) -> Reading:
        """Power averaged by the driver (field 185: over about 1 s on Hopper), for the self-test."""
        try:
            watts = self._field(self._handles[device_id], FIELD_POWER_AVERAGE)
        except self._nvml.NVMLError as error:
            return Reading(device_id, time.monotonic_ns(), time.time(), fault=fault_of(error))
        fault = Fault.NOT_SUPPORTED if watts is None else None
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=watts, fault=fault)

    def read_state(self, device_id: str) -> DeviceState:
        """Temperature, SM clock, power limit and clock event reasons, None where the driver does not say."""
        handle, nvml = self._handles[device_id], self._nvml
        return DeviceState(
            self._ask(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
            self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3),
            self._ask(lambda: int(self._clock_event_reasons(handle))),
        )

    def close(self) -> None:
        self._ask(self._nvml.nvmlShutdown)

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self, wanted: list[str] | None, refuse_shared: bool) -> list[Device]:
        nvml = self._nvml
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except nvml.NVMLError as error:
            raise _unavailable("NVML does not list the GPUs", error) from None
        everything = range(len(handles))
        chosen = list(everything) if wanted is None else [_position(name, uuids) for name in wanted]
        if not chosen:
            raise MeterUnavailableError(
                "no GPU to meter: none is here, or CUDA_VISIBLE_DEVICES hides them all"
            )
        if len(set(chosen)) != len(chosen):
            raise MeterUnavailableError(f"a GPU is named twice in {', '.join(wanted or [])}")
        return [self._device(handles[i], uuids[i], refuse_shared) for i in chosen]

    def _device(self, handle: Any, uuid: str, refuse_shared: bool) -> Device:
        nvml = self._nvml
        name = _text(self._ask(lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU")
        flags: set[Fault] = set()
        mode = self._ask(lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
        if mode == VIRTUALIZATION_VGPU:
            raise MeterUnavailableError(
                f"{uuid} is a vGPU: its readings are the whole board's, other guests' included",
                Fault.VGPU,
            )
        mig = self._ask(lambda: nvml.nvmlDeviceGetMigMode(handle))
        if mig is not None and mig[0] == 1:
            if refuse_shared:
                raise MeterUnavailableError(
                    f"{uuid} is in MIG mode: its energy is the whole board's, not an instance's", Fault.MIG
                )
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

    def _field(self, handle: Any, field: int) -> float | None:
        """Watts of a field value in milliwatts; None where this driver does not know it. Raises NVMLError."""
        value = self._nvml.nvmlDeviceGetFieldValues(handle, [field])[0]
        if value.nvmlReturn != 0:
            if FAULTS.get(value.nvmlReturn) in {Fault.NOT_SUPPORTED, None}:
                return None
            raise self._nvml.NVMLError(value.nvmlReturn)
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
        try:
            return question()
        except self._nvml.NVMLError:
            return None


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
    return value.decode() if isinstance(value, bytes) else str(value)


def _position(name: str, uuids: list[str]) -> int:
    if name.startswith("MIG-"):
        raise MeterUnavailableError(
            f"{name} is a MIG instance: energy is known for whole boards only", Fault.MIG
        )
    if name.isdigit():
        if int(name) < len(uuids):
            return int(name)
        raise MeterUnavailableError(f"there is no GPU {name}: this host has {len(uuids)}")
    found = [i for i, uuid in enumerate(uuids) if uuid.startswith(name)]
    if len(found) == 1:
        return found[0]
    raise MeterUnavailableError(f"{len(found)} GPUs of this host have a UUID beginning with {name}")
