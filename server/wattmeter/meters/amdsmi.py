"""AMD GPUs by AMD SMI: the socket's energy accumulator, and its power for the shape.

Through AMD's own binding, the package `amdsmi`, which needs the library of the installed ROCm (6.0 or later).
Names, status codes and units: AMD SMI Python API reference. The accumulator counts steps of
`counter_resolution` microjoules (15.3 on Instinct boards), power is in watts. It has not been run on AMD
hardware: its tests use a stand-in for the binding.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.meters.wrapping import WrappingCounter

logger = logging.getLogger("wattmeter")

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
# After these the session with the library is over: it and all handles must be made anew.
SESSION_ENDED = {18, 32, 34, 51}
RENEW_SECONDS = 1.0
REASONS = {
    Fault.NOT_SUPPORTED: "this GPU, driver or ROCm does not support it",
    Fault.NO_PERMISSION: "the driver refuses this user (is it in the groups video and render?)",
    Fault.DRIVER_NOT_LOADED: "no amdgpu driver is loaded here",
    Fault.TIMEOUT: "the driver did not answer in time",
    Fault.GPU_LOST: "the GPU does not answer any more",
    Fault.RESET_REQUIRED: "the GPU must be reset",
    Fault.DRIVER_MISMATCH: "the binding and the library have different versions",
    Fault.UNKNOWN_ERROR: "AMD SMI reports an error",
}
ESSENTIAL = (
    "AmdSmiException",
    "amdsmi_init",
    "amdsmi_shut_down",
    "amdsmi_get_processor_handles",
    "amdsmi_get_gpu_device_bdf",
    "amdsmi_get_energy_count",
    "amdsmi_get_power_info",
)
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


def fault_of(error: BaseException) -> Fault:
    """The named fault of an AmdSmiLibraryException (by its `err_code`); UNKNOWN_ERROR for any other."""
    return FAULTS.get(_code_of(error), Fault.UNKNOWN_ERROR)


def visible_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs that a process of ROCm sees, as indices or UUIDs; None where no variable limits them.

    ROCR_VISIBLE_DEVICES selects among the host's GPUs. HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES where it
    is not set, selects among those. A list ends at its first entry that is not valid; an empty one hides all.
    """
    lower = _listed(environment.get("ROCR_VISIBLE_DEVICES"))
    upper = _listed(environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES")))
    if lower is None or upper is None:
        return upper if lower is None else lower
    names: list[str] = []
    for part in upper:
        if part.isdigit() and int(part) >= len(lower):
            break
        names.append(lower[int(part)] if part.isdigit() else part)
    return names


def _listed(value: str | None) -> list[str] | None:
    if value is None:
        return None
    names: list[str] = []
    for part in (piece.strip() for piece in value.split(",")):
        if not (part.isdigit() or part.startswith("GPU-")):
            break
        names.append(part)
    return names


@dataclass(frozen=True, slots=True)
class _Found:
    """One GPU as AMD SMI lists it. `index` is HIP's, `board` its address on the bus without the function,
    which the partitions of one GPU have in common.
    """

    handle: Any
    id: str
    board: str
    names: tuple[str, ...]
    index: int
    divided: bool


class AmdsmiMeter:
    """The energy counters of some AMD GPUs of this host.

    `gpus` are indices as HIP counts them (those of `amd-smi list` where AMD SMI does not tell HIP's), or
    unambiguous beginnings of UUIDs or bus addresses; without it ROCR_, HIP_ and CUDA_VISIBLE_DEVICES decide,
    and without those all GPUs. A GPU in a partition mode other than SPX is metered once, as a whole, and
    flagged `mig`: its energy may be others'. The two dies of an MI250 have one sensor, which is the first
    die's: it is flagged `module_scope`, and the second die cannot be metered alone. A GPU of a virtual
    machine's (SR-IOV) is refused. `is_own` says whether a process id is the engine's; None from it, or no
    such function: that is not known.

    Raises MeterUnavailableError where AMD SMI, a GPU, or its sensors are missing. A read never raises for
    what AMD SMI reports: it gives a reading with the fault. After a driver was loaded anew the GPUs are found
    again by their ids.
    """

    source = "amdsmi"
    update_period_seconds: float | None = None
    min_energy_interval_seconds = 0.1

    def __init__(
        self,
        gpus: Sequence[str | int] | None = None,
        *,
        is_own: Callable[[int], bool | None] | None = None,
        environment: Mapping[str, str] | None = None,
        amdsmi: Any = None,
    ) -> None:
        self._amdsmi = amdsmi if amdsmi is not None else _binding()
        missing = [name for name in ESSENTIAL if not hasattr(self._amdsmi, name)]
        if missing:
            raise MeterUnavailableError(
                f"the installed module amdsmi has no {missing[0]}: install the amdsmi of ROCm 6.0 or later",
                Fault.NOT_SUPPORTED,
            )
        self._is_own = is_own
        self._renewed_seconds = time.monotonic()
        self._handles: dict[str, Any] = {}
        self._narrow: dict[str, WrappingCounter] = {}
        self._wide: set[str] = set()
        self.device_flags: dict[str, frozenset[Fault]] = {}
        try:
            self._amdsmi.amdsmi_init()
        except self._amdsmi.AmdSmiException as error:
            raise _unavailable("AMD SMI does not start", error) from None
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
        """The socket's accumulator, in joules."""
        before = time.monotonic_ns()
        try:
            answer = self._amdsmi.amdsmi_get_energy_count(self._handles[device_id])
        except self._amdsmi.AmdSmiException as error:
            self._renew(error)
            return _failed(device_id, fault_of(error))
        # The value was taken somewhere within the call.
        after = time.monotonic_ns()
        # Before ROCm 6.2 the accumulator went by the name of power.
        raw = answer.get("energy_accumulator", answer.get("power"))
        count, resolution = _number(raw, NO_COUNT), _number(answer.get("counter_resolution"))
        if count is None:
            return _failed(device_id, Fault.NOT_SUPPORTED)
        if resolution is None or resolution <= 0.0:
            return _failed(device_id, Fault.UNKNOWN_ERROR)
        middle = (before + after) // 2
        half_seconds = 0.5e-9 * (after - before)
        joules, fault = self._continued(device_id, middle, count, resolution * MICRO)
        return Reading(
            device_id,
            middle,
            time.time() - half_seconds,
            energy_joules=joules,
            fault=fault,
            within_seconds=half_seconds,
        )

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

    def read_power(self, device_id: str) -> Reading:
        """Power of the socket now (MI300 and later), or its average where that is all that there is."""
        return self._power(device_id, POWERS)

    def read_average_power(self, device_id: str) -> Reading:
        """Power averaged by the driver, for the self-test."""
        return self._power(device_id, ("average_socket_power",))

    def read_state(self, device_id: str) -> DeviceState:
        """What AMD SMI tells beside energy and power; None where the driver or the binding does not."""
        handle, smi = self._handles[device_id], self._amdsmi
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

    def close(self) -> None:
        self._ask(self._amdsmi.amdsmi_shut_down)

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self, wanted: list[str] | None) -> list[Device]:
        try:
            listed = self._find()
        except self._amdsmi.AmdSmiException as error:
            raise _unavailable("AMD SMI does not list the GPUs", error) from None
        found = [part for part in listed if isinstance(part, _Found)]
        if wanted is None:
            lost = next((n for n, part in enumerate(listed) if not isinstance(part, _Found)), None)
            if lost is not None:
                raise _lost(lost, listed)
            chosen = found
        else:
            chosen = [_selected(name, listed) for name in wanted]
        if not chosen:
            raise MeterUnavailableError(
                "no GPU to meter: AMD SMI lists none, or ROCR_, HIP_ or CUDA_VISIBLE_DEVICES hides them all"
            )
        if len({id(part) for part in chosen}) != len(chosen):
            raise MeterUnavailableError(f"a GPU is named twice in {', '.join(wanted or [])}")
        # The first partition that is listed of a GPU has its sensors.
        boards = dict.fromkeys(part.board for part in chosen)
        wholes = [next(part for part in found if part.board == board) for board in boards]
        for whole in wholes:
            self._handles[whole.id] = whole.handle
        return self._without_second_dies(wholes, found)

    def _without_second_dies(self, chosen: list[_Found], found: list[_Found]) -> list[Device]:
        """The devices of the GPUs `chosen` but for second dies whose first die is among them."""
        devices = []
        for part in chosen:
            first = self._first_die(part, found)
            if first is None:
                devices.append(self._device(part))
            elif first in chosen:
                del self._handles[part.id]
            else:
                raise MeterUnavailableError(
                    f"GPU {part.index} is the second die of its module, whose energy is read with the first"
                    f" die's: name GPU {first.index} too",
                    Fault.MODULE_SCOPE,
                )
        return devices

    def _first_die(self, part: _Found, found: list[_Found]) -> _Found | None:
        """The die that shows the energy of `part`, where that is a second die; None for any other GPU."""
        place = found.index(part)
        if place == 0 or TWO_DIES_NAME not in self._name(part.handle) or self._watts(part.handle):
            return None
        return found[place - 1] if self._watts(found[place - 1].handle) else None

    def _find(self) -> list[_Found | BaseException]:
        """Every GPU, or partition of one, of the host, or why it cannot be had, in AMD SMI's order.

        Raises AmdSmiException where not even their number is told.
        """
        listed: list[_Found | BaseException] = []
        for place, handle in enumerate(self._amdsmi.amdsmi_get_processor_handles()):
            try:
                listed.append(self._identified(place, handle))
            except self._amdsmi.AmdSmiException as error:
                listed.append(error)
        # A board's own number is missing on some, and the same on others.
        firsts = {part.board: part for part in reversed(listed) if isinstance(part, _Found)}
        count = Counter(part.id for part in firsts.values())
        return [
            replace(part, id=f"{part.id}@{part.board}")
            if isinstance(part, _Found) and count[firsts[part.board].id] > 1
            else part
            for part in listed
        ]

    def _identified(self, place: int, handle: Any) -> _Found:
        smi = self._amdsmi
        address = _text(smi.amdsmi_get_gpu_device_bdf(handle))
        uuid = _text(self._ask(lambda: smi.amdsmi_get_gpu_device_uuid(handle)) or "")
        told = self._ask(lambda: dict(smi.amdsmi_get_gpu_enumeration_info(handle))) or {}
        index = _number(told.get("hip_id"))
        names = (uuid, _text(told.get("hip_uuid") or ""), address)
        return _Found(
            handle,
            uuid or f"AMD-{address}",
            address.rpartition(".")[0] or address,
            tuple(name for name in names if name),
            place if index is None else int(index),
            self._divided(handle),
        )

    def _device(self, part: _Found) -> Device:
        smi, handle = self._amdsmi, part.handle
        mode = self._ask(lambda: smi.amdsmi_get_gpu_virtualization_mode(handle)["mode"])
        if getattr(mode, "name", str(mode)).endswith("GUEST"):
            raise MeterUnavailableError(
                f"{part.id} is a part of a GPU that virtual machines share: it has no energy of its own",
                Fault.VGPU,
            )
        name = self._name(handle)
        flags: set[Fault] = set()
        if part.divided:
            flags.add(Fault.MIG)
        if TWO_DIES_NAME in name:
            flags.add(Fault.MODULE_SCOPE)
        self.device_flags[part.id] = frozenset(flags)
        first, power = self.read_energy(part.id), self.read_power(part.id)
        if first.energy_joules is None and power.power_watts is None:
            fault = first.fault or Fault.UNKNOWN_ERROR
            raise MeterUnavailableError(
                f"{part.id} ({name}) gives neither energy nor power: {REASONS[fault]}", fault
            )
        return Device(part.id, name, self.source, self._power_cap(handle))

    def _renew(self, error: BaseException) -> None:
        """Begin a new session with the library where the old one is over, at most every RENEW_SECONDS."""
        now = time.monotonic()
        if _code_of(error) not in SESSION_ENDED or now - self._renewed_seconds < RENEW_SECONDS:
            return
        self._renewed_seconds = now
        self._ask(self._amdsmi.amdsmi_shut_down)
        try:
            self._amdsmi.amdsmi_init()
            listed = self._find()
        except self._amdsmi.AmdSmiException:
            return
        # Of a divided GPU the first partition: the last one that is put here.
        for part in reversed(listed):
            if isinstance(part, _Found) and part.id in self._handles:
                self._handles[part.id] = part.handle
        logger.warning("AMD SMI was initialised again after: %s", _sentence(error))

    # --- questions ------------------------------------------------------------------------------------------

    def _power(self, device_id: str, names: Sequence[str]) -> Reading:
        try:
            answer = self._amdsmi.amdsmi_get_power_info(self._handles[device_id])
        except self._amdsmi.AmdSmiException as error:
            return _failed(device_id, fault_of(error))
        watts = next((value for name in names if (value := _number(answer.get(name))) is not None), None)
        fault = Fault.NOT_SUPPORTED if watts is None else None
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=watts, fault=fault)

    def _watts(self, handle: Any) -> float | None:
        """Its power as far as it is told."""
        answer = self._ask(lambda: dict(self._amdsmi.amdsmi_get_power_info(handle))) or {}
        return next((watts for name in POWERS if (watts := _number(answer.get(name))) is not None), None)

    def _name(self, handle: Any) -> str:
        """The name of the board's product, or of its chip. AMD SMI writes a hexadecimal id for neither."""
        for ask in (
            lambda: self._amdsmi.amdsmi_get_gpu_board_info(handle)["product_name"],
            lambda: self._amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"],
        ):
            name = _text(self._ask(ask) or "").strip()
            if name not in ("", "N/A") and not name.startswith("0x"):
                return name
        return "AMD GPU"

    def _power_cap(self, handle: Any) -> float | None:
        cap = self._ask(lambda: _known(self._amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"]))
        if not cap:
            return None
        return float(cap) * MICRO if cap > MOST_CAP_WATTS else float(cap)

    def _divided(self, handle: Any) -> bool:
        mode = self._ask(lambda: self._amdsmi.amdsmi_get_gpu_compute_partition(handle))
        return mode is not None and _text(mode) not in WHOLE_GPU

    def _other_processes(self, handle: Any) -> int | None:
        """How many processes on the GPU are not the engine's; None where that is not known."""
        if self._is_own is None:
            return None
        own = [
            self._is_own(int(process["pid"])) for process in self._amdsmi.amdsmi_get_gpu_process_list(handle)
        ]
        return None if None in own else own.count(False)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """What a question gives; None where there is no answer, or none in a form that is known."""
        try:
            return question()
        except (AttributeError, LookupError, TypeError, ValueError, self._amdsmi.AmdSmiException):
            return None


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


def _failed(device_id: str, fault: Fault) -> Reading:
    return Reading(device_id, time.monotonic_ns(), time.time(), fault=fault)


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


def _unavailable(what: str, error: BaseException) -> MeterUnavailableError:
    fault = fault_of(error)
    return MeterUnavailableError(f"{what}: {REASONS[fault]} ({_sentence(error)})", fault)


def _lost(place: int, listed: Sequence[_Found | BaseException]) -> MeterUnavailableError:
    error = listed[place]
    assert isinstance(error, BaseException)
    others = ", ".join(str(part.index) for part in listed if isinstance(part, _Found)) or "none"
    return _unavailable(f"GPU {place} does not respond (select those that do: {others})", error)


def _selected(name: str, listed: Sequence[_Found | BaseException]) -> _Found:
    found = [part for part in listed if isinstance(part, _Found)]
    if name.isdigit():
        number = int(name)
        named = next((part for part in found if part.index == number), None)
        if named is not None:
            return named
        if number < len(listed) and not isinstance(listed[number], _Found):
            raise _lost(number, listed)
        raise MeterUnavailableError(f"there is no GPU {name}: AMD SMI lists {len(listed)}")
    wanted = name.lower()
    ones = [part for part in found if any(known.lower().startswith(wanted) for known in part.names)]
    boards = {part.board for part in ones}
    if len(boards) == 1:
        return ones[0]
    raise MeterUnavailableError(
        f"{len(boards)} GPUs of this host have a UUID or address beginning with {name}"
    )


def _code_of(error: BaseException) -> int:
    code = getattr(error, "err_code", None)
    return code if isinstance(code, int) else -1


def _sentence(error: BaseException) -> str:
    """AMD SMI's message, which is of several lines, as one."""
    return " ".join(str(error).split())


def _text(value: Any) -> str:
    """A name as text: what is not UTF-8 in it is replaced."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return data.decode("utf-8", "replace")
