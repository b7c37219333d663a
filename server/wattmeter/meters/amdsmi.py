"""AMD GPUs by AMD SMI: the socket's energy accumulator, and its power for the shape.

Through AMD's own binding, the package `amdsmi`, which needs the library of the installed ROCm (6.0 or later).
Names, status codes and units: AMD SMI Python API reference. The accumulator counts steps of
`counter_resolution` microjoules (15.3 on Instinct boards), power is in watts. It has not been run on AMD
hardware: its tests use a stand-in for the binding.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.meters.management_library import (
    ListedGpu,
    ManagementLibrary,
    ManagementLibraryMeter,
    listed_names,
    text_of,
)
from wattmeter.meters.wrapping import WrappingCounter

# AMD SMI, amdsmi_status_t.
FAULTS = {
    2: Fault.NOT_SUPPORTED,
    3: Fault.NOT_SUPPORTED,
    4: Fault.DRIVER_MISMATCH,
    5: Fault.DRIVER_MISMATCH,
    8: Fault.TIMEOUT,
    9: Fault.TIMEOUT,
    10: Fault.NO_PERMISSION,
    18: Fault.DRIVER_NOT_LOADED,
    30: Fault.TIMEOUT,
    31: Fault.GPU_LOST,
    32: Fault.DRIVER_NOT_LOADED,
    34: Fault.DRIVER_NOT_LOADED,
    # The library does not know this table of the driver's: the board is newer than it.
    42: Fault.NOT_SUPPORTED,
    43: Fault.NOT_SUPPORTED,
    49: Fault.NOT_SUPPORTED,
    51: Fault.DRIVER_NOT_LOADED,
    52: Fault.NOT_SUPPORTED,
    54: Fault.RESET_REQUIRED,
}
MICRO = 1e-6
# What the driver writes where it has no value, in the widths of its fields.
NO_COUNT = (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
NO_VALUE = (0xFFFF, *NO_COUNT)
# MI100 and Radeon boards count in 32 bits, which wrap every 66 kJ; later Instinct boards in 64.
NARROW_COUNTS = 1 << 32
MOST_WATTS = 3000.0
# A board has one or more of these: the moment's power (MI300 and later), either, and the average.
POWERS = ("current_socket_power", "socket_power", "average_socket_power")
# Two dies, two GPUs to software, one power sensor: the first die shows both, the second 0 W or nothing.
TWO_DIES_NAME = "MI250"
# Versions of AMD SMI give a power cap in microwatts or in watts: no cap is above this in watts, or below it
# in microwatts. And temperatures in degrees or thousandths of them.
MOST_CAP_WATTS = 10_000.0
MOST_CELSIUS = 1_000.0
WHOLE_GPU = ("SPX", "N/A", "")


def visible_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs that a process of ROCm sees, as indices or UUIDs; None where no variable limits them.

    ROCR_VISIBLE_DEVICES selects among the host's GPUs. HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES where it
    is not set, selects among those. A list ends at its first entry that is not valid; an empty one hides all.
    """
    lower = listed_names(environment.get("ROCR_VISIBLE_DEVICES"), ("GPU-",))
    of_hip = environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))
    upper = listed_names(of_hip, ("GPU-",))
    if lower is None or upper is None:
        return upper if lower is None else lower
    names: list[str] = []
    for part in upper:
        if part.isdigit() and int(part) >= len(lower):
            break
        names.append(lower[int(part)] if part.isdigit() else part)
    return names


AMD_SMI = ManagementLibrary(
    name="AMD SMI",
    module="amdsmi",
    remedy="install the amdsmi of ROCm 6.0 or later",
    essential=(
        "AmdSmiException",
        "amdsmi_init",
        "amdsmi_shut_down",
        "amdsmi_get_processor_handles",
        "amdsmi_get_gpu_device_bdf",
        "amdsmi_get_energy_count",
        "amdsmi_get_power_info",
    ),
    exception="AmdSmiException",
    status="err_code",
    start="amdsmi_init",
    stop="amdsmi_shut_down",
    read_energy="amdsmi_get_energy_count",
    faults=FAULTS,
    session_ended=frozenset({18, 32, 34, 51}),
    reasons={
        Fault.NOT_SUPPORTED: "this GPU, driver or ROCm does not support it",
        Fault.NO_PERMISSION: "the driver refuses this user (is it in the groups video and render?)",
        Fault.DRIVER_NOT_LOADED: "no amdgpu driver is loaded here",
        Fault.TIMEOUT: "the driver did not answer in time",
        Fault.GPU_LOST: "the GPU does not answer any more",
        Fault.RESET_REQUIRED: "the GPU must be reset",
        Fault.DRIVER_MISMATCH: "the binding and the library have different versions",
        Fault.UNKNOWN_ERROR: "AMD SMI reports an error",
    },
    visibility="ROCR_, HIP_ or CUDA_VISIBLE_DEVICES",
    visible_gpus=visible_gpus,
)


class AmdsmiMeter(ManagementLibraryMeter):
    """The energy counters of some AMD GPUs of this host.

    `gpus` are indices as HIP counts them (those of `amd-smi list` where AMD SMI does not tell HIP's), or
    unambiguous beginnings of UUIDs or bus addresses; without it ROCR_, HIP_ and CUDA_VISIBLE_DEVICES decide,
    and without those all GPUs. A GPU in a partition mode other than SPX is metered once, as a whole, and
    flagged `mig`: its energy may be others'. The two dies of an MI250 have one sensor, which is the first
    die's: it is flagged `module_scope`, and the second die cannot be metered alone. A GPU of a virtual
    machine's (SR-IOV) is refused.
    """

    library = AMD_SMI
    source = "amdsmi"

    def __init__(
        self,
        gpus: Sequence[str | int] | None = None,
        *,
        is_own: Callable[[int], bool | None] | None = None,
        environment: Mapping[str, str] | None = None,
        amdsmi: Any = None,
    ) -> None:
        self._narrow: dict[str, WrappingCounter] = {}
        self._wide: set[str] = set()
        super().__init__(gpus, is_own, environment, amdsmi if amdsmi is not None else _binding())

    def read_power(self, device_id: str) -> Reading:
        """Power of the socket now (MI300 and later), or its average where that is all that there is."""
        return self._power_reading(device_id, lambda: self._told_watts(self._handles[device_id], POWERS))

    def read_average_power(self, device_id: str) -> Reading:
        """Power averaged by the driver, for the self-test."""
        names = ("average_socket_power",)
        return self._power_reading(device_id, lambda: self._told_watts(self._handles[device_id], names))

    def read_state(self, device_id: str) -> DeviceState:
        """What AMD SMI tells beside energy and power; None where the driver or the binding does not."""
        handle, smi = self._handles[device_id], self._binding
        return DeviceState(
            self._ask(lambda: _celsius(handle, smi)),
            self._ask(lambda: _megahertz(handle, smi) * 1e6),
            self._power_cap(handle),
            utilization_ratio=self._ask(
                lambda: _known(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"]) * 1e-2
            ),
            other_processes=self._ask(lambda: self._other_processes(handle)),
            mig=self._divided(handle),
        )

    # --- opening --------------------------------------------------------------------------------------------

    def _places(self) -> Sequence[Any]:
        handles: Sequence[Any] = self._binding.amdsmi_get_processor_handles()
        return handles

    def _listed_gpu(self, index: int, place: Any) -> ListedGpu:
        """The GPU with HIP's index, and as its board the address on the bus without the function."""
        smi = self._binding
        address = text_of(smi.amdsmi_get_gpu_device_bdf(place))
        uuid = text_of(self._ask(lambda: smi.amdsmi_get_gpu_device_uuid(place)) or "")
        told = self._ask(lambda: dict(smi.amdsmi_get_gpu_enumeration_info(place))) or {}
        index_of_hip = _number(told.get("hip_id"))
        names = (uuid, text_of(told.get("hip_uuid") or ""), address)
        return ListedGpu(
            place,
            uuid or f"AMD-{address}",
            address.rpartition(".")[0] or address,
            tuple(name for name in names if name),
            index if index_of_hip is None else int(index_of_hip),
        )

    def _find(self) -> list[ListedGpu | Exception]:
        listed = super()._find()
        # A board's own number is missing on some, and the same on others.
        firsts = {gpu.board: gpu for gpu in reversed(listed) if isinstance(gpu, ListedGpu)}
        count = Counter(gpu.id for gpu in firsts.values())
        return [
            replace(gpu, id=f"{gpu.id}@{gpu.board}")
            if isinstance(gpu, ListedGpu) and count[firsts[gpu.board].id] > 1
            else gpu
            for gpu in listed
        ]

    def _with_own_sensors(self, chosen: list[ListedGpu], present: list[ListedGpu]) -> list[ListedGpu]:
        """The GPUs `chosen` but for second dies whose first die is among them."""
        with_own = []
        for gpu in chosen:
            first = self._first_die(gpu, present)
            if first is None:
                with_own.append(gpu)
            elif first not in chosen:
                raise MeterUnavailableError(
                    f"GPU {gpu.index} is the second die of its module, whose energy is read with the first"
                    f" die's: name GPU {first.index} too",
                    Fault.MODULE_SCOPE,
                )
        return with_own

    def _first_die(self, gpu: ListedGpu, present: list[ListedGpu]) -> ListedGpu | None:
        """The die that shows the energy of `gpu`, where that is a second die; None for any other GPU."""
        place = present.index(gpu)
        if place == 0 or TWO_DIES_NAME not in self._name(gpu.handle) or self._watts(gpu.handle):
            return None
        return present[place - 1] if self._watts(present[place - 1].handle) else None

    def _device(self, gpu: ListedGpu) -> Device:
        smi, handle = self._binding, gpu.handle
        mode = self._ask(lambda: smi.amdsmi_get_gpu_virtualization_mode(handle)["mode"])
        if getattr(mode, "name", str(mode)).endswith("GUEST"):
            raise MeterUnavailableError(
                f"{gpu.id} is a part of a GPU that virtual machines share: it has no energy of its own",
                Fault.VGPU,
            )
        name = self._name(handle)
        flags: set[Fault] = set()
        if self._divided(handle):
            flags.add(Fault.MIG)
        if TWO_DIES_NAME in name:
            flags.add(Fault.MODULE_SCOPE)
        return self._with_sensors(gpu, name, flags, self._power_cap(handle))

    # --- questions ------------------------------------------------------------------------------------------

    def _joules(self, device_id: str, now_ns: int, answer: Any) -> tuple[float | None, Fault | None]:
        # Before ROCm 6.2 the accumulator went by the name of power.
        raw = answer.get("energy_accumulator", answer.get("power"))
        count, resolution = _number(raw, NO_COUNT), _number(answer.get("counter_resolution"))
        if count is None:
            return None, Fault.NOT_SUPPORTED
        if resolution is None or resolution <= 0.0:
            return None, Fault.UNKNOWN_ERROR
        return self._continued(device_id, now_ns, count, resolution * MICRO)

    def _continued(
        self, device_id: str, now_ns: int, count: float, joules_per_count: float
    ) -> tuple[float, Fault | None]:
        """The joules of a count, with the wraps before it while it may be one of 32 bits."""
        joules = count * joules_per_count
        if count >= NARROW_COUNTS:
            self._wide.add(device_id)
        if device_id in self._wide:
            return joules, None
        if device_id not in self._narrow:
            self._narrow[device_id] = WrappingCounter(NARROW_COUNTS * joules_per_count, MOST_WATTS)
        return self._narrow[device_id].unwrapped(now_ns, joules)

    def _told_watts(self, handle: Any, names: Sequence[str]) -> float | None:
        """The first power of these names that is told. Raises AmdSmiException."""
        answer = self._binding.amdsmi_get_power_info(handle)
        return next((watts for name in names if (watts := _number(answer.get(name))) is not None), None)

    def _watts(self, handle: Any) -> float | None:
        """Its power as far as it is told."""
        watts: float | None = self._ask(lambda: self._told_watts(handle, POWERS))
        return watts

    def _name(self, handle: Any) -> str:
        """The name of the board's product, or of its chip. AMD SMI writes a hexadecimal id for neither."""
        for ask in (
            lambda: self._binding.amdsmi_get_gpu_board_info(handle)["product_name"],
            lambda: self._binding.amdsmi_get_gpu_asic_info(handle)["market_name"],
        ):
            name = text_of(self._ask(ask) or "").strip()
            if name not in ("", "N/A") and not name.startswith("0x"):
                return name
        return "AMD GPU"

    def _power_cap(self, handle: Any) -> float | None:
        cap = self._ask(lambda: _known(self._binding.amdsmi_get_power_cap_info(handle)["power_cap"]))
        if not cap:
            return None
        return float(cap) * MICRO if cap > MOST_CAP_WATTS else float(cap)

    def _divided(self, handle: Any) -> bool:
        mode = self._ask(lambda: self._binding.amdsmi_get_gpu_compute_partition(handle))
        return mode is not None and text_of(mode) not in WHOLE_GPU

    def _process_ids(self, handle: Any) -> list[int]:
        return [int(process["pid"]) for process in self._binding.amdsmi_get_gpu_process_list(handle)]


def _celsius(handle: Any, smi: Any) -> float:
    value = _known(
        smi.amdsmi_get_temp_metric(
            handle, smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
        )
    )
    return value * 1e-3 if value > MOST_CELSIUS else value


def _megahertz(handle: Any, smi: Any) -> float:
    told = smi.amdsmi_get_clock_info(handle, smi.AmdSmiClkType.GFX)
    return _known(told["clk"] if "clk" in told else told["cur_clk"])


def _known(value: Any) -> float:
    """A number. Raises ValueError where there is none."""
    number = _number(value)
    if number is None:
        raise ValueError(f"no value: {value!r}")
    return number


def _number(value: Any, none: Sequence[int] = NO_VALUE) -> float | None:
    """A number; None for `N/A`, and for what the driver writes where it has no value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return None if value in none or value < 0 else float(value)


def _binding() -> Any:
    # It prints on standard output that it does not find its library, and then fails in one of several ways.
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            import amdsmi
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "amdsmi":
            raise MeterUnavailableError(f"amdsmi cannot be imported: {error}") from None
        raise MeterUnavailableError(
            "AMD SMI's binding is not installed: pip install amdsmi, in the version of the installed ROCm",
            Fault.DRIVER_NOT_LOADED,
        ) from None
    except AttributeError as error:
        raise MeterUnavailableError(
            f"amdsmi does not fit the installed ROCm, whose version it must have: {error}",
            Fault.DRIVER_MISMATCH,
        ) from None
    except (OSError, KeyError):
        raise MeterUnavailableError(
            "amdsmi does not find libamd_smi.so: install ROCm's package amd-smi-lib", Fault.DRIVER_NOT_LOADED
        ) from None
    return amdsmi
