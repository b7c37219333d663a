"""`wattserve vllm` whose modelled meter fails for as long as the file $FAILING_METER exists.

What the file says is what happens: `raise` is an exception out of every read, and the name of a fault is a
reading with that fault.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from wattmeter.faults import Fault
from wattmeter.meter import Reading
from wattserve.vllm.launcher import main
from wattserve.vllm.modelled import StepModelMeter


def break_meter(switch: Path) -> None:
    read = StepModelMeter._read

    def may_fail(self: StepModelMeter, device_id: str, *, power: bool) -> Reading:
        try:
            how = switch.read_text()
        except FileNotFoundError:
            return read(self, device_id, power=power)
        if how == "raise":
            raise OSError("the sensor's bus does not answer")
        return Reading(device_id, time.monotonic_ns(), time.time(), fault=Fault(how))

    StepModelMeter._read = may_fail  # type: ignore[method-assign]


if __name__ == "__main__":
    break_meter(Path(os.environ["FAILING_METER"]))
    sys.exit(main(sys.argv[1:]))
