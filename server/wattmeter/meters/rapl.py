"""CPU packages by RAPL, through Linux's powercap tree.

Zones overlap (psys holds the packages, a package holds core and uncore), so only the packages are metered, or
psys alone where asked: never sums of both. DRAM lies outside the packages and is metered beside them.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from pathlib import Path

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, Reading
from wattmeter.meters.wrapping import WrappingCounter

MICRO = 1e-6
DEFAULT_ROOT = Path("/sys/class/powercap")
# No zone draws more: a fall that a wrap could explain only by more is a reset.
MAX_WATTS = 2000.0


class RaplMeter:
    """RAPL zones as devices: each package (and its DRAM where it is a zone of its own), or `psys=True` alone.

    `energy_uj` wraps at `max_energy_range_uj` (about 262 kJ; at 400 W a wrap takes 11 minutes), which
    WrappingCounter follows: a reading after too long a time has the fault `counter_wrapped`. A failed read is
    a fault and no wrap. The files are readable by root only since CVE-2020-8694. Raises MeterUnavailableError
    where there are no zones or they may not be read.
    """

    source = "rapl"
    min_energy_interval_seconds = 0.1
    update_period_seconds: float | None = None

    def __init__(self, *, psys: bool = False, root: str | Path = DEFAULT_ROOT) -> None:
        root = Path(root)
        self._files: dict[str, Path] = {}
        self._counters: dict[str, WrappingCounter] = {}
        self._devices: list[Device] = []
        for zone in sorted(root.glob("*-rapl*:*")):
            # intel-rapl-mmio repeats the package zones of intel-rapl.
            if zone.name.startswith("intel-rapl-mmio"):
                continue
            name = _read(zone / "name")
            if name is None:
                continue
            wanted = name == "psys" if psys else name.startswith("package") or name == "dram"
            if wanted:
                self._add(zone, name)
        if not self._devices:
            what = "psys zone" if psys else "package zone"
            raise MeterUnavailableError(f"RAPL: no {what} under {root}", Fault.NOT_SUPPORTED)

    @property
    def devices(self) -> Sequence[Device]:
        return tuple(self._devices)

    def read_energy(self, device_id: str) -> Reading:
        try:
            value = int(self._files[device_id].read_text()) * MICRO
        except (OSError, ValueError) as error:
            return Reading(device_id, time.monotonic_ns(), time.time(), fault=_fault(error))
        now = time.monotonic_ns()
        if value < 0.0:
            return Reading(device_id, now, time.time(), fault=Fault.UNKNOWN_ERROR)
        joules, fault = self._counters[device_id].unwrapped(now, value)
        return Reading(device_id, now, time.time(), energy_joules=joules, fault=fault)

    def read_power(self, device_id: str) -> Reading:
        """RAPL has no power reading."""
        return Reading(device_id, time.monotonic_ns(), time.time(), fault=Fault.NOT_SUPPORTED)

    def close(self) -> None:
        return None

    def _add(self, zone: Path, name: str) -> None:
        device_id = zone.name
        energy = zone / "energy_uj"
        try:
            int(energy.read_text())
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise MeterUnavailableError(
                    f"RAPL: {energy} may be read by root only", Fault.NO_PERMISSION
                ) from None
            raise MeterUnavailableError(f"RAPL: {energy}: {error.strerror}", _fault(error)) from None
        except ValueError:
            raise MeterUnavailableError(f"RAPL: {energy} holds no number") from None
        span = _read(zone / "max_energy_range_uj")
        if span is None or not span.isdigit() or int(span) == 0:
            raise MeterUnavailableError(f"RAPL: {zone / 'max_energy_range_uj'} holds no number")
        self._files[device_id] = energy
        self._counters[device_id] = WrappingCounter(int(span) * MICRO, MAX_WATTS)
        self._devices.append(Device(device_id, name, self.source))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _fault(error: Exception) -> Fault:
    if isinstance(error, PermissionError):
        return Fault.NO_PERMISSION
    if isinstance(error, FileNotFoundError):
        return Fault.NOT_SUPPORTED
    if isinstance(error, TimeoutError):
        return Fault.TIMEOUT
    return Fault.UNKNOWN_ERROR
