"""The self-test of the sensors on a recording, at once."""

from __future__ import annotations

import numpy as np

from wattmeter.meters.recorded import RecordedMeter
from wattmeter.selftest.sensor_test import Samples, SelfTest, judge


def recorded_selftest(meter: RecordedMeter) -> SelfTest:
    """The self-test of what a recording holds; its load column, where it has one, is the known load."""
    data = meter.readings
    samples = Samples()
    seconds = data.unix_seconds - data.unix_seconds[0]
    samples.energy = list(zip(seconds.tolist(), data.energy_joules.tolist(), strict=True))
    samples.instant = list(zip(seconds.tolist(), data.instant_watts.tolist(), strict=True))
    if data.average_watts is not None:
        samples.average = list(zip(seconds.tolist(), data.average_watts.tolist(), strict=True))
    switches = None if data.load is None else np.column_stack((seconds, data.load))
    test = judge(meter.devices[0], samples, switches)
    return SelfTest(float(data.unix_seconds[0]), float(seconds[-1]), switches is not None, (test,))
