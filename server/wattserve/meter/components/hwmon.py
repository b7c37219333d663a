"""Node power from ACPI's power meter (the driver acpi_power_meter), through Linux's hwmon tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wattmeter.faults import Fault
from wattserve.meter.components.gauge import SensorError, Value

ROOT = Path("/sys/class/hwmon")
DRIVER = "power_meter"
# power1_average is the mean over the meter's interval, power1_input the moment's power; both in microwatts.
FILES = ("power1_average", "power1_input")


def reader(detail: str = "", *, root: Path = ROOT) -> Callable[[], Value]:
    """Reads the power meter of ACPI. Raises SensorError where there is none, or more than one."""
    if detail:
        raise SensorError(f"acpi takes nothing after it, not {detail}")
    found = [
        folder / name
        for folder in sorted(root.glob("hwmon*"))
        if _text(folder / "name") == DRIVER
        for name in FILES
        if (folder / name).exists()
    ]
    folders = {path.parent for path in found}
    if not found:
        raise SensorError(f"no ACPI power meter under {root}", Fault.NOT_SUPPORTED)
    if len(folders) > 1:
        raise SensorError(f"there are {len(folders)} ACPI power meters, which may measure the same power")
    path = found[0]

    def read() -> Value:
        try:
            return Value(watts=float(path.read_text()) * 1e-6)
        except PermissionError:
            raise SensorError(f"{path} may not be read", Fault.NO_PERMISSION) from None
        except (OSError, ValueError) as error:
            raise SensorError(f"{path}: {error}") from None

    return read


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
