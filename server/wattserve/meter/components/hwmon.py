"""Power meters of ACPI (the driver acpi_power_meter), through Linux's hwmon tree.

A server has one for the whole node. A Grace host has several, told apart by their labels, which overlap: see
`grace`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattmeter.faults import Fault
from wattserve.meter.components.gauge import SensorError, Value

ROOT = Path("/sys/class/hwmon")
DRIVER = "power_meter"
# power1_average is the mean over the meter's interval, power1_input the moment's power; both in microwatts.
FILES = ("power{}_average", "power{}_input")
_NUMBER = re.compile(r"power(\d+)_(?:average|input)")
# What the meters of Grace are called, and of which socket: "CPU Power Socket 0".
GRACE_LABEL = re.compile(r"(Module|Grace|CPU|SysIO) Power Socket (\d+)")


@dataclass(frozen=True, slots=True)
class PowerMeter:
    """One power meter: the file of its watts, and the label that its firmware gives it (may be empty)."""

    path: Path
    label: str

    def read(self) -> Value:
        """Its power now. Raises SensorError."""
        try:
            return Value(watts=float(self.path.read_text()) * 1e-6)
        except PermissionError:
            raise SensorError(f"{self.path} may not be read", Fault.NO_PERMISSION) from None
        except (OSError, ValueError) as error:
            raise SensorError(f"{self.path}: {error}") from None


def power_meters(root: Path = ROOT) -> list[PowerMeter]:
    """Every power meter of ACPI. Before Linux 6.15 a meter's files are in `device` below its folder."""
    found = []
    for folder in sorted(root.glob("hwmon*")):
        for place in (folder, folder / "device"):
            if _text(place / "name") != DRIVER:
                continue
            names = (_NUMBER.fullmatch(path.name) for path in place.glob("power*"))
            meters = [_meter(place, number) for number in sorted({name[1] for name in names if name})]
            if meters:
                found += meters
                break
    return found


def reader(detail: str = "", *, root: Path = ROOT) -> Callable[[], Value]:
    """Reads the power meter of ACPI. Raises SensorError where there is none, or more than one."""
    if detail:
        raise SensorError(f"acpi takes nothing after it, not {detail}")
    found = power_meters(root)
    if not found:
        raise SensorError(f"no ACPI power meter under {root}", Fault.NOT_SUPPORTED)
    if any(GRACE_LABEL.fullmatch(meter.label) for meter in found):
        raise SensorError("these are the power meters of Grace, of parts of the node: give grace instead")
    if len(found) > 1:
        raise SensorError(f"there are {len(found)} ACPI power meters, which may measure the same power")
    return found[0].read


def _meter(place: Path, number: str) -> PowerMeter:
    paths = [place / file.format(number) for file in FILES]
    label = _text(place / f"power{number}_oem_info") or _text(place / f"power{number}_label")
    return PowerMeter(next(path for path in paths if path.exists()), label)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
