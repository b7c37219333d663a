"""What the meters by a vendor's management library have in common: a session, a choice of GPUs, readings.

NVML is NVIDIA's such library and AMD SMI is AMD's. Both have a binding whose functions raise one exception
with a status code. How a library names its calls and codes is a `ManagementLibrary`; what it tells, and in
which units, is in the subclass of `ManagementLibraryMeter`.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, Reading

logger = logging.getLogger("wattmeter")

RENEW_SECONDS = 1.0


class SensorFaultError(Exception):
    """A fault that a meter finds in what its library answers, where the library reports none."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class ManagementLibrary:
    """A vendor's library, by the names in its binding.

    A binding must have the names `essential`; `remedy` is what to do where one is missing. `start`, `stop`
    and `read_energy` are functions, and `status` is the attribute of `exception` with the status code. After
    a code of `session_ended` the session is over: it and all handles must be made anew. `visible_gpus` gives
    the GPUs that the environment variables `visibility` choose, as indices or names; None where none is set.
    """

    name: str
    module: str
    remedy: str
    essential: tuple[str, ...]
    exception: str
    status: str
    start: str
    stop: str
    read_energy: str
    faults: Mapping[int, Fault]
    session_ended: frozenset[int]
    reasons: Mapping[Fault, str]
    visibility: str
    visible_gpus: Callable[[Mapping[str, str]], list[str] | None]

    def code_of(self, error: BaseException) -> int:
        """The status code of the library's exception; -1 for any other."""
        code = getattr(error, self.status, None)
        return code if isinstance(code, int) else -1

    def fault_of(self, error: BaseException) -> Fault:
        """The named fault of an exception; UNKNOWN_ERROR where it is not the library's."""
        if isinstance(error, SensorFaultError):
            return error.fault
        return self.faults.get(self.code_of(error), Fault.UNKNOWN_ERROR)

    def unavailable(self, what: str, error: BaseException) -> MeterUnavailableError:
        fault = self.fault_of(error)
        return MeterUnavailableError(f"{what}: {self.reasons[fault]} ({one_line(error)})", fault)


@dataclass(frozen=True, slots=True)
class ListedGpu:
    """One GPU, or a partition of one, as the library lists it.

    A user names it by `index` or by the beginning of one of `names`. The partitions of one GPU have its
    `board` in common.
    """

    handle: Any
    id: str
    board: str
    names: tuple[str, ...]
    index: int


class ManagementLibraryMeter(ABC):
    """The energy counters of some GPUs of this host, by a vendor's library.

    `gpus` are indices, or unambiguous beginnings of names; without it the vendor's environment variables
    decide, and without those all GPUs. Of a GPU in partitions the whole is metered, once. `is_own` says
    whether a process id is the engine's; None from it, or no such function: that is not known.

    Raises MeterUnavailableError where the library, a GPU, or its sensors are missing. A read never raises for
    what the library reports: it gives a reading with the fault. After a driver was loaded anew the GPUs are
    found again by their ids.
    """

    library: ManagementLibrary
    source: str
    update_period_seconds: float | None = None
    min_energy_interval_seconds = 0.1

    def __init__(
        self,
        gpus: Sequence[str | int] | None,
        is_own: Callable[[int], bool | None] | None,
        environment: Mapping[str, str] | None,
        binding: Any,
    ) -> None:
        library = self.library
        missing = [name for name in library.essential if not hasattr(binding, name)]
        if missing:
            raise MeterUnavailableError(
                f"the installed module {library.module} has no {missing[0]}: {library.remedy}",
                Fault.NOT_SUPPORTED,
            )
        self._binding = binding
        self._error: type[Exception] = getattr(binding, library.exception)
        self._is_own = is_own
        self._renewed_seconds = time.monotonic()
        self._handles: dict[str, Any] = {}
        self.device_flags: dict[str, frozenset[Fault]] = {}
        try:
            getattr(binding, library.start)()
        except Exception as error:
            raise library.unavailable(f"{library.name} does not start", error) from None
        try:
            wanted = None if gpus is None else [str(gpu) for gpu in gpus]
            if wanted is None:
                wanted = library.visible_gpus(os.environ if environment is None else environment)
            self.devices: Sequence[Device] = tuple(self._open(wanted))
        except BaseException:
            self.close()
            raise

    def read_energy(self, device_id: str) -> Reading:
        """The GPU's energy counter, in joules."""
        before = time.monotonic_ns()
        try:
            answer = getattr(self._binding, self.library.read_energy)(self._handles[device_id])
        except self._error as error:
            self._renew(error)
            return self._failed(device_id, error)
        # The value was taken somewhere within the call.
        after = time.monotonic_ns()
        middle, half_seconds = (before + after) // 2, 0.5e-9 * (after - before)
        joules, fault = self._joules(device_id, middle, answer)
        return Reading(
            device_id,
            middle,
            time.time() - half_seconds,
            energy_joules=joules,
            fault=fault,
            within_seconds=half_seconds,
        )

    @abstractmethod
    def read_power(self, device_id: str) -> Reading: ...

    def close(self) -> None:
        self._ask(getattr(self._binding, self.library.stop))

    # --- what each library has its own way of ---------------------------------------------------------------

    @abstractmethod
    def _places(self) -> Sequence[Any]:
        """What `_listed_gpu` takes, for every GPU of the host. Raises the library's exception."""

    @abstractmethod
    def _listed_gpu(self, index: int, place: Any) -> ListedGpu:
        """The GPU at a place. Raises the library's exception where it does not respond."""

    @abstractmethod
    def _device(self, gpu: ListedGpu) -> Device:
        """The GPU as a device, by `_with_sensors`. Raises MeterUnavailableError where it has no energy."""

    @abstractmethod
    def _joules(self, device_id: str, now_ns: int, answer: Any) -> tuple[float | None, Fault | None]:
        """The joules of the library's answer, and the fault that it shows."""

    @abstractmethod
    def _process_ids(self, handle: Any) -> list[int]:
        """The processes with a compute context. Raises the library's exception."""

    def _with_own_sensors(self, chosen: list[ListedGpu], present: list[ListedGpu]) -> list[ListedGpu]:
        """Those of the chosen GPUs whose energy is read at them, and not at another of the host's."""
        return chosen

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self, wanted: list[str] | None) -> list[Device]:
        library = self.library
        try:
            listed = self._find()
        except self._error as error:
            raise library.unavailable(f"{library.name} does not list the GPUs", error) from None
        if wanted is None:
            wanted_gpus = [self._responding(place, listed) for place in range(len(listed))]
        else:
            wanted_gpus = [self._selected(name, listed) for name in wanted]
        if not wanted_gpus:
            raise MeterUnavailableError(
                f"no GPU to meter: {library.name} lists none, or {library.visibility} hides them all"
            )
        if len({id(gpu) for gpu in wanted_gpus}) != len(wanted_gpus):
            raise MeterUnavailableError(f"a GPU is named twice in {', '.join(wanted or [])}")
        present = _present(listed)
        # The first partition that is listed of a GPU has its sensors.
        boards = dict.fromkeys(gpu.board for gpu in wanted_gpus)
        chosen = [next(gpu for gpu in present if gpu.board == board) for board in boards]
        chosen = self._with_own_sensors(chosen, present)
        self._handles = {gpu.id: gpu.handle for gpu in chosen}
        return [self._device(gpu) for gpu in chosen]

    def _find(self) -> list[ListedGpu | Exception]:
        """Every GPU of the host, or why it cannot be had, in the library's order.

        Raises the library's exception where not even their number is told.
        """
        listed: list[ListedGpu | Exception] = []
        for index, place in enumerate(self._places()):
            try:
                listed.append(self._listed_gpu(index, place))
            except self._error as error:
                listed.append(error)
        return listed

    def _responding(self, place: int, listed: Sequence[ListedGpu | Exception]) -> ListedGpu:
        gpu = listed[place]
        if isinstance(gpu, ListedGpu):
            return gpu
        others = ", ".join(str(other.index) for other in _present(listed)) or "none"
        raise self.library.unavailable(f"GPU {place} does not respond (select those that do: {others})", gpu)

    def _selected(self, name: str, listed: Sequence[ListedGpu | Exception]) -> ListedGpu:
        present = _present(listed)
        if name.isdigit():
            number = int(name)
            named = next((gpu for gpu in present if gpu.index == number), None)
            if named is not None:
                return named
            if number < len(listed) and not isinstance(listed[number], ListedGpu):
                return self._responding(number, listed)
            raise MeterUnavailableError(f"there is no GPU {name}: {self.library.name} lists {len(listed)}")
        found = [gpu for gpu in present if any(own.lower().startswith(name.lower()) for own in gpu.names)]
        boards = {gpu.board for gpu in found}
        if len(boards) == 1:
            return found[0]
        raise MeterUnavailableError(
            f"{len(boards)} GPUs of this host have a UUID or bus address beginning with {name}"
        )

    def _with_sensors(
        self, gpu: ListedGpu, name: str, flags: set[Fault], power_limit_watts: float | None
    ) -> Device:
        """The device, once one of its sensors has answered. Raises MeterUnavailableError where none does."""
        self.device_flags[gpu.id] = frozenset(flags)
        first, power = self.read_energy(gpu.id), self.read_power(gpu.id)
        if first.energy_joules is None and power.power_watts is None:
            fault = first.fault or Fault.UNKNOWN_ERROR
            raise MeterUnavailableError(
                f"{gpu.id} ({name}) gives neither energy nor power: {self.library.reasons[fault]}", fault
            )
        return Device(gpu.id, name, self.source, power_limit_watts)

    def _renew(self, error: Exception) -> None:
        """Begin a new session with the library where the old one is over, at most every RENEW_SECONDS."""
        now, library = time.monotonic(), self.library
        if library.code_of(error) not in library.session_ended or now - self._renewed_seconds < RENEW_SECONDS:
            return
        self._renewed_seconds = now
        self.close()
        try:
            getattr(self._binding, library.start)()
            present = _present(self._find())
        except self._error:
            return
        # Of a GPU in partitions the first has the sensors: the last one that is put here.
        for gpu in reversed(present):
            if gpu.id in self._handles:
                self._handles[gpu.id] = gpu.handle
        logger.warning("%s was initialised again after: %s", library.name, one_line(error))

    # --- questions ------------------------------------------------------------------------------------------

    def _power_reading(self, device_id: str, watts: Callable[[], float | None]) -> Reading:
        """A reading of what `watts` gives; it returns None where there is no such value."""
        try:
            told = watts()
        except (self._error, SensorFaultError) as error:
            return self._failed(device_id, error)
        fault = Fault.NOT_SUPPORTED if told is None else None
        return Reading(device_id, time.monotonic_ns(), time.time(), power_watts=told, fault=fault)

    def _failed(self, device_id: str, error: Exception) -> Reading:
        return Reading(device_id, time.monotonic_ns(), time.time(), fault=self.library.fault_of(error))

    def _other_processes(self, handle: Any) -> int | None:
        """How many processes with a compute context are not the engine's; None where that is not known."""
        if self._is_own is None:
            return None
        own = [self._is_own(process_id) for process_id in self._process_ids(handle)]
        return None if None in own else own.count(False)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """What a question gives; None where there is no answer, or none in a form that is known."""
        try:
            return question()
        except (AttributeError, LookupError, TypeError, ValueError, self._error):
            return None


def listed_names(value: str | None, beginnings: tuple[str, ...]) -> list[str] | None:
    """The GPUs of a variable like CUDA_VISIBLE_DEVICES, as indices or names; None where it is not set.

    As the vendors' runtimes do, the list ends at the first entry that is neither an index nor a name with one
    of these beginnings (-1, for one); an empty list hides all GPUs.
    """
    if value is None:
        return None
    names: list[str] = []
    for part in (piece.strip() for piece in value.split(",")):
        if not (part.isdigit() or part.startswith(beginnings)):
            break
        names.append(part)
    return names


def one_line(error: BaseException) -> str:
    """A library's message, which may be of several lines, as one."""
    return " ".join(str(error).split())


def text_of(value: Any) -> str:
    """A name as text: what is not UTF-8 in it is replaced."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return data.decode("utf-8", "replace")


def _present(listed: Sequence[ListedGpu | Exception]) -> list[ListedGpu]:
    return [gpu for gpu in listed if isinstance(gpu, ListedGpu)]
