"""Node power from the host's own BMC by IPMI: DCMI's power reading, by ipmitool, FreeIPMI or ipmiutil."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

from wattmeter.faults import Fault
from wattserve.meter.components.command import output_of
from wattserve.meter.components.gauge import SensorError, Value

TOOLS = {
    "ipmitool": ["ipmitool", "dcmi", "power", "reading"],
    "ipmi-dcmi": ["ipmi-dcmi", "--get-system-power-statistics"],
    "ipmiutil": ["ipmiutil", "dcmi", "power"],
}
_WATTS = re.compile(r"^\s*(?:Instantaneous power reading|Current Power)\s*:\s*([0-9]+)\s*Watts", re.M | re.I)
_STATE = re.compile(r"^\s*Power (?:reading state is|Measurement)\s*:\s*(\S+)", re.M | re.I)


def watts_of(text: str) -> Value:
    """The watts in what one of the tools printed. Raises SensorError."""
    state = _STATE.search(text)
    if state is not None and state[1].lower() in ("deactivated", "inactive", "not"):
        raise SensorError("the BMC's power reading is not active", Fault.NOT_SUPPORTED)
    found = _WATTS.search(text)
    if found is None:
        raise SensorError(
            f"the BMC gave no power reading: {' '.join(text.split())[:80]!r}", Fault.NOT_SUPPORTED
        )
    return Value(watts=float(found[1]))


def reader(detail: str) -> Callable[[], Value]:
    """Asks the BMC by the tool named by `detail`, or by the first one that is installed."""
    if detail and detail not in TOOLS:
        raise SensorError(f"{detail}: not one of {', '.join(TOOLS)}")
    names = [detail] if detail else [name for name in TOOLS if shutil.which(name)]
    if not names:
        raise SensorError(f"none of {', '.join(TOOLS)} is installed", Fault.NOT_SUPPORTED)
    return lambda: watts_of(output_of(TOOLS[names[0]]))
