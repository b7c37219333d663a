"""A meter process whose modelled sensor fails for as long as the file $FAILING_METER exists.

What the file says is what happens: `raise` is an exception out of every read, and the name of a fault is a
reading with that fault. The argument is that of `wattserve.meter.process`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wattmeter.faults import Fault
from wattmeter.meters.base import Reading
from wattserve.meter.process import main
from wattserve.sim.step_meter import StepModelMeter


def failing(
    read: Callable[[StepModelMeter, str], Reading], switch: Path
) -> Callable[[StepModelMeter, str], Reading]:
    def may_fail(self: StepModelMeter, device_id: str) -> Reading:
        try:
            how = switch.read_text()
        except FileNotFoundError:
            return read(self, device_id)
        if how == "raise":
            raise OSError("the sensor's bus does not answer")
        return Reading(device_id, time.monotonic_ns(), time.time(), fault=Fault(how))

    return may_fail


if __name__ == "__main__":
    file = Path(os.environ["FAILING_METER"])
    for name in ("read_energy", "read_power"):
        setattr(StepModelMeter, name, failing(getattr(StepModelMeter, name), file))
    sys.exit(main(sys.argv[1:]))
