"""NVIDIA GPUs by NVML: the board's energy counter, and its instant power for the shape.

Through the official binding, nvidia-ml-py (module `pynvml`). Names, codes and field numbers: NVML API
reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.meters.management_library import (
    ListedGpu,
    ManagementLibrary,
    ManagementLibraryMeter,
    SensorFaultError,
    listed_names,
    text_of,
)

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
FIELD_POWER_AVERAGE = 185
FIELD_POWER_INSTANT = 186
UPDATE_SECONDS = 0.1
# A field value carries the time of its sample. Where that stands for so long the sensor does not answer.
STALE_FIELD_SECONDS = 2.0
# Earlier timestamps (microseconds since 1970) are no time at all.
LEAST_TIMESTAMP = 1_500_000_000_000_000
VIRTUALIZATION_VGPU = 2
MODULE_SCOPE_NAMES = ("GH200", "GB200", "GB300")


def visible_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, as indices or UUIDs; None where it is not set."""
    return listed_names(environment.get("CUDA_VISIBLE_DEVICES"), ("GPU-", "MIG-"))


NVML = ManagementLibrary(
    name="NVML",
    module="pynvml",
    remedy="pip install --upgrade nvidia-ml-py, and uninstall other packages that provide pynvml",
    # What every binding of the last years has. The rest is done without where it is missing.
    essential=(
        "NVMLError",
        "nvmlInit",
        "nvmlShutdown",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
    ),
    exception="NVMLError",
    status="value",
    start="nvmlInit",
    stop="nvmlShutdown",
    # Its counter steps every 100 ms and a call costs about 4 ms: at most 10 a second.
    read_energy="nvmlDeviceGetTotalEnergyConsumption",
    faults=FAULTS,
    session_ended=frozenset({1, 9, 12, 18}),
    reasons={
        Fault.NOT_SUPPORTED: "this GPU or driver does not support it",
        Fault.NO_PERMISSION: "the driver refuses this user",
        Fault.DRIVER_NOT_LOADED: "no NVIDIA driver is loaded here",
        Fault.TIMEOUT: "the driver did not answer in time",
        Fault.GPU_LOST: "the GPU has fallen off the bus",
        Fault.RESET_REQUIRED: "the GPU must be reset",
        Fault.DRIVER_MISMATCH: "the NVML library and the driver have different versions",
        Fault.UNKNOWN_ERROR: "NVML reports an internal error",
        Fault.STALE_SENSOR: "its readings are old",
    },
    visibility="CUDA_VISIBLE_DEVICES",
    visible_gpus=visible_gpus,
)


class NvmlMeter(ManagementLibraryMeter):
    """The energy counters of some GPUs of this host.

    `gpus` are indices or UUIDs (or unambiguous beginnings of UUIDs); without it CUDA_VISIBLE_DEVICES decides,
    and without that all GPUs. Indices count in PCI bus order, as CUDA_DEVICE_ORDER=PCI_BUS_ID. A GPU divided
    by MIG (or the GPU of a MIG instance that is named) is metered once, as a whole, and flagged `mig`: its
    energy may be others'. A vGPU, whose readings are those of the whole physical GPU, is refused.
    """

    library = NVML
    source = "nvml"
    update_period_seconds = UPDATE_SECONDS
    min_energy_interval_seconds = UPDATE_SECONDS

    def __init__(
        self,
        gpus: Sequence[str | int] | None = None,
        *,
        is_own: Callable[[int], bool | None] | None = None,
        environment: Mapping[str, str] | None = None,
        nvml: Any = None,
    ) -> None:
        self._stamps: dict[tuple[str, int], tuple[int, float]] = {}
        super().__init__(gpus, is_own, environment, nvml if nvml is not None else _binding())

    def read_power(self, device_id: str) -> Reading:
        """Instant power (field 186), or what the driver calls power usage where that field is missing."""
        return self._power_reading(device_id, lambda: self._instant_watts(device_id))

    def read_average_power(self, device_id: str) -> Reading:
        """Power averaged by the driver (field 185: over about 1 s on Hopper), for the self-test."""
        return self._power_reading(device_id, lambda: self._field(device_id, FIELD_POWER_AVERAGE))

    def read_state(self, device_id: str) -> DeviceState:
        """What NVML tells beside energy and power; None where the driver or the binding does not tell it."""
        handle, nvml = self._handles[device_id], self._binding
        return DeviceState(
            self._ask(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
            self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3),
            self._ask(lambda: int(self._clock_event_reasons(handle))),
            self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu * 1e-2),
            self._ask(lambda: self._other_processes(handle)),
            self._in_mig_mode(handle),
        )

    # --- opening --------------------------------------------------------------------------------------------

    def _places(self) -> Sequence[Any]:
        return range(self._binding.nvmlDeviceGetCount())

    def _listed_gpu(self, index: int, place: Any) -> ListedGpu:
        handle = self._binding.nvmlDeviceGetHandleByIndex(place)
        uuid = text_of(self._binding.nvmlDeviceGetUUID(handle))
        return ListedGpu(handle, uuid, board=uuid, names=(uuid,), index=index)

    def _selected(self, name: str, listed: Sequence[ListedGpu | Exception]) -> ListedGpu:
        return super()._selected(self._whole_gpu(name), listed)

    def _whole_gpu(self, name: str) -> str:
        """The UUID of the GPU that a MIG instance is part of; other names as they are."""
        if not name.startswith("MIG-"):
            return name
        nvml = self._binding
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
        return text_of(uuid)

    def _device(self, gpu: ListedGpu) -> Device:
        nvml, handle = self._binding, gpu.handle
        name = text_of(self._ask(lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU")
        flags: set[Fault] = set()
        mode = self._ask(lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
        if mode == VIRTUALIZATION_VGPU:
            raise MeterUnavailableError(
                f"{gpu.id} is a vGPU: its readings are the whole GPU's, other guests' included", Fault.VGPU
            )
        if self._in_mig_mode(handle):
            flags.add(Fault.MIG)
        if any(part in name for part in MODULE_SCOPE_NAMES):
            # Power there has two scopes, GPU and module (with the CPU); the counter's must not pass for both.
            flags.add(Fault.MODULE_SCOPE)
        limit = self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3)
        return self._with_sensors(gpu, name, flags, limit)

    # --- questions ------------------------------------------------------------------------------------------

    def _joules(self, device_id: str, now_ns: int, answer: Any) -> tuple[float | None, Fault | None]:
        return answer * 1e-3, None

    def _instant_watts(self, device_id: str) -> float:
        watts = self._field(device_id, FIELD_POWER_INSTANT)
        if watts is None:
            watts = self._binding.nvmlDeviceGetPowerUsage(self._handles[device_id]) * 1e-3
        return watts

    def _process_ids(self, handle: Any) -> list[int]:
        return [process.pid for process in self._binding.nvmlDeviceGetComputeRunningProcesses(handle)]

    def _in_mig_mode(self, handle: Any) -> bool:
        mode = self._ask(lambda: self._binding.nvmlDeviceGetMigMode(handle))
        return mode is not None and mode[0] == 1

    def _field(self, device_id: str, field: int) -> float | None:
        """Watts of a field value in milliwatts; None where driver or binding do not know it.

        Raises NVMLError, and SensorFaultError where the value's own time stands.
        """
        if not hasattr(self._binding, "nvmlDeviceGetFieldValues"):
            return None
        value = self._binding.nvmlDeviceGetFieldValues(self._handles[device_id], [field])[0]
        if value.nvmlReturn != 0:
            if FAULTS.get(value.nvmlReturn) in {Fault.NOT_SUPPORTED, None}:
                return None
            raise self._binding.NVMLError(value.nvmlReturn)
        stamp, now = int(getattr(value, "timestamp", 0)), time.monotonic()
        if stamp >= LEAST_TIMESTAMP:
            last = self._stamps.get((device_id, field))
            if last is None or last[0] != stamp:
                self._stamps[device_id, field] = (stamp, now)
            elif now - last[1] > STALE_FIELD_SECONDS:
                raise SensorFaultError(Fault.STALE_SENSOR)
        return float(value.value.uiVal) * 1e-3

    def _clock_event_reasons(self, handle: Any) -> int:
        """Bits of nvmlClocksEventReasons. Raises NVMLError."""
        try:
            reasons: int = self._binding.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except (AttributeError, self._binding.NVMLError):
            # Drivers before 535, and bindings of their time, have it under its former name only.
            reasons = self._binding.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return reasons


def _binding() -> Any:
    try:
        import pynvml
    except ImportError:
        raise MeterUnavailableError(
            "the NVML binding is not installed: pip install nvidia-ml-py", Fault.DRIVER_NOT_LOADED
        ) from None
    return pynvml
