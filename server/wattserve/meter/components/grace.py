"""Power of NVIDIA's Grace CPUs and of their modules: from ACPI's power meters, or of the module from NVML.

Grace's power meters overlap (NVIDIA, Grace Performance Tuning Guide): `Module Power` is the whole superchip
with its GPU, `Grace Power` the CPU with its memory and regulators, which hold `CPU Power` and `SysIO Power`,
two of its rails. So the CPUs are read from `Grace Power` alone, and the module is a component of its own,
which no sum takes up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wattmeter.faults import Fault
from wattserve.meter.components.gauge import SensorError, Value
from wattserve.meter.components.hwmon import GRACE_LABEL, ROOT, power_meters

# What is read under a label of ACPI's, and its component.
PARTS = {"Module": "module", "Grace": "cpu_package"}
# NVML API reference: the instant power's field, and its scopes. Without a scope a field is of the GPU alone.
FIELD_POWER_INSTANT = 186
SCOPE_MODULE = 1
# Each has a module of its own. On GB200 and GB300 two GPUs share one, and each would show all of it.
ONE_GPU_A_MODULE = "GH200"


def acpi_readers(detail: str = "", *, root: Path = ROOT) -> dict[tuple[str, str], Callable[[], Value]]:
    """(component, name) -> what reads it, for every socket. Raises SensorError where there is no Grace."""
    if detail:
        raise SensorError(f"grace takes nothing after it, not {detail}")
    found: dict[tuple[str, str], Callable[[], Value]] = {}
    labels = []
    for meter in power_meters(root):
        labels.append(meter.label)
        part = GRACE_LABEL.fullmatch(meter.label)
        if part is None or part[1] not in PARTS:
            continue
        place = (PARTS[part[1]], meter.label)
        if place in found:
            raise SensorError(f"two power meters are called {meter.label}")
        found[place] = meter.read
    if not any(component == "cpu_package" for component, _ in found):
        there = ", ".join(label or "one without a label" for label in labels) or "none"
        raise SensorError(
            f"no ACPI power meter is called Grace Power Socket (there are: {there})", Fault.NOT_SUPPORTED
        )
    return found


def nvml_readers(detail: str = "", *, nvml: Any = None) -> dict[tuple[str, str], Callable[[], Value]]:
    """(component, name) -> what reads it, for the module of every GPU. Raises SensorError where NVML does not
    know them.
    """
    if detail:
        raise SensorError(f"nvml-module takes nothing after it, not {detail}")
    nvml = nvml if nvml is not None else _binding()
    found: dict[tuple[str, str], Callable[[], Value]] = {}
    try:
        nvml.nvmlInit()
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            name = nvml.nvmlDeviceGetName(handle)
            name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            if ONE_GPU_A_MODULE not in name:
                raise SensorError(
                    f"GPU {number} is {name}, not a GH200: NVML does not tell which GPUs share a module",
                    Fault.NOT_SUPPORTED,
                )
            found["module", f"module of GPU {number}"] = _nvml_reader(nvml, handle)
    except nvml.NVMLError as error:
        raise SensorError(f"NVML: {error}", Fault.DRIVER_NOT_LOADED) from None
    if not found:
        raise SensorError("NVML lists no GPU", Fault.NOT_SUPPORTED)
    return found


def _binding() -> Any:
    try:
        import pynvml
    except ImportError:
        raise SensorError("the NVML binding is not installed: pip install nvidia-ml-py") from None
    return pynvml


def _nvml_reader(nvml: Any, handle: Any) -> Callable[[], Value]:
    def read() -> Value:
        try:
            value = nvml.nvmlDeviceGetFieldValues(handle, [(FIELD_POWER_INSTANT, SCOPE_MODULE)])[0]
        except (AttributeError, nvml.NVMLError) as error:
            raise SensorError(f"NVML: {error}") from None
        if value.nvmlReturn != 0:
            raise SensorError(
                f"NVML does not know the module's power (code {value.nvmlReturn})", Fault.NOT_SUPPORTED
            )
        return Value(watts=value.value.uiVal * 1e-3)

    return read
