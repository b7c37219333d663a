"""A stand-in for AMD's binding `amdsmi`, with the units and forms of AMD SMI's Python API reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, TIMEOUT, NO_PERM, NOT_FOUND, NOT_INIT, DRIVER_NOT_LOADED = 2, 8, 10, 31, 32, 34
# A count of 2^-16 J, as the library gives it.
RESOLUTION_MICROJOULES = 15.3
FUNCTIONS = (
    "amdsmi_get_gpu_device_uuid",
    "amdsmi_get_gpu_enumeration_info",
    "amdsmi_get_gpu_virtualization_mode",
    "amdsmi_get_gpu_compute_partition",
    "amdsmi_get_gpu_board_info",
    "amdsmi_get_gpu_asic_info",
    "amdsmi_get_power_cap_info",
    "amdsmi_get_temp_metric",
    "amdsmi_get_clock_info",
    "amdsmi_get_gpu_activity",
    "amdsmi_get_gpu_process_list",
)


class AmdSmiException(Exception):  # noqa: N818 -- AMD's name
    """The base of the binding's errors."""


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS - what it means"


class Mode(IntEnum):
    """AmdSmiVirtualizationMode."""

    UNKNOWN = 0
    BAREMETAL = 1
    HOST = 2
    GUEST = 3
    PASSTHROUGH = 4


@dataclass
class Board:
    """One handle's answers; an exception among them is raised."""

    bdf: str
    uuid: Any = ""
    hip_id: Any = None
    hip_uuid: str = ""
    count: Any = 1_000_000_000
    resolution: Any = RESOLUTION_MICROJOULES
    power: Any = field(
        default_factory=lambda: {
            "current_socket_power": 140,
            "average_socket_power": "N/A",
            "gfx_voltage": 700,
            "power_limit": 750,
        }
    )
    partition: Any = "SPX"
    mode: Mode = Mode.BAREMETAL
    product: str = "AMD Instinct MI300X OAM"
    market: str = "MI300X"
    cap: Any = 750_000_000
    celsius: Any = 41
    clock: Any = 2100
    activity: Any = 37
    pids: Any = ()
    energy_key: str = "energy_accumulator"
    lost: bool = False


class FakeAmdsmi:
    """The module. `boards` are its handles; `missing` are functions that it does not have.

    After `reload` the handles of before are worth nothing until the next init.
    """

    AmdSmiException = AmdSmiException
    AmdSmiLibraryException = AmdSmiLibraryException
    AmdSmiTemperatureType = SimpleNamespace(HOTSPOT=1)
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    AmdSmiClkType = SimpleNamespace(GFX=1)

    def __init__(self, *boards: Board, missing: tuple[str, ...] = ()) -> None:
        self.boards = list(boards)
        self.init_error: Exception | None = None
        self.inits = self.shut_downs = 0
        self._session = self._valid = 0
        self._missing = frozenset(missing)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("amdsmi_", "AmdSmi")) and name in object.__getattribute__(self, "_missing"):
            raise AttributeError(f"module 'amdsmi' has no attribute {name!r}")
        return object.__getattribute__(self, name)

    def reload(self) -> None:
        self._session += 1

    def _board(self, handle: tuple[int, int]) -> Board:
        number, session = handle
        if session != self._session or self._valid != self._session:
            raise AmdSmiLibraryException(NOT_INIT)
        board = self.boards[number]
        if board.lost:
            raise AmdSmiLibraryException(NOT_FOUND)
        return board

    def _give(self, handle: tuple[int, int], name: str) -> Any:
        value = getattr(self._board(handle), name)
        if isinstance(value, Exception):
            raise value
        return value

    def amdsmi_init(self) -> None:
        self.inits += 1
        if self.init_error is not None:
            raise self.init_error
        self._valid = self._session

    def amdsmi_shut_down(self) -> None:
        self.shut_downs += 1

    def amdsmi_get_processor_handles(self) -> list[tuple[int, int]]:
        return [(number, self._session) for number in range(len(self.boards))]

    def amdsmi_get_gpu_device_bdf(self, handle: Any) -> str:
        return str(self._give(handle, "bdf"))

    def amdsmi_get_gpu_device_uuid(self, handle: Any) -> Any:
        return self._give(handle, "uuid")

    def amdsmi_get_gpu_enumeration_info(self, handle: Any) -> dict[str, Any]:
        hip_id = self._give(handle, "hip_id")
        if hip_id is None:
            raise AmdSmiLibraryException(NOT_SUPPORTED)
        return {
            "drm_render": 128,
            "drm_card": 0,
            "hsa_id": 1,
            "hip_id": hip_id,
            "hip_uuid": self._board(handle).hip_uuid,
        }

    def amdsmi_get_energy_count(self, handle: Any) -> dict[str, Any]:
        board = self._board(handle)
        return {
            board.energy_key: self._give(handle, "count"),
            "counter_resolution": board.resolution,
            "timestamp": 1,
        }

    def amdsmi_get_power_info(self, handle: Any) -> dict[str, Any]:
        return dict(self._give(handle, "power"))

    def amdsmi_get_gpu_virtualization_mode(self, handle: Any) -> dict[str, Mode]:
        return {"mode": self._give(handle, "mode")}

    def amdsmi_get_gpu_compute_partition(self, handle: Any) -> Any:
        return self._give(handle, "partition")

    def amdsmi_get_gpu_board_info(self, handle: Any) -> dict[str, Any]:
        return {"product_name": self._give(handle, "product")}

    def amdsmi_get_gpu_asic_info(self, handle: Any) -> dict[str, Any]:
        return {"market_name": self._give(handle, "market"), "vendor_name": "AMD"}

    def amdsmi_get_power_cap_info(self, handle: Any) -> dict[str, Any]:
        return {"power_cap": self._give(handle, "cap"), "dpm_cap": 0}

    def amdsmi_get_temp_metric(self, handle: Any, sensor: int, metric: int) -> Any:
        return self._give(handle, "celsius")

    def amdsmi_get_clock_info(self, handle: Any, kind: int) -> dict[str, Any]:
        return {"clk": self._give(handle, "clock"), "min_clk": 132, "max_clk": 2100}

    def amdsmi_get_gpu_activity(self, handle: Any) -> dict[str, Any]:
        return {"gfx_activity": self._give(handle, "activity"), "umc_activity": 0, "mm_activity": "N/A"}

    def amdsmi_get_gpu_process_list(self, handle: Any) -> list[dict[str, Any]]:
        return [{"name": "N/A", "pid": pid, "mem": 0} for pid in self._give(handle, "pids")]


def boards(number: int = 2, **answers: Any) -> list[Board]:
    """Boards of a host, each with an address and a UUID of its own."""
    return [
        Board(f"0000:{5 + i:02x}:00.0", uuid=f"{i:x}eff74a1-0000-1000-807a-18b1f9e5c3d2", **answers)
        for i in range(number)
    ]
