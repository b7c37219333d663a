"""A recorded counter read as the server reads it: at the moments of its updates, not of the reads."""

from __future__ import annotations

import numpy as np

from wattmeter.arrays import F64, I64
from wattmeter.metering.counter import EnergyCounter
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.meters.base import Reading
from wattmeter.steps.recording import CounterSeries

# On the recorded H200 (docs/explanation/measurement.md): how often the counter moves, what a read takes.
PERIOD_SECONDS = 0.1
READ_SECONDS = 0.0032


def updates(
    series: CounterSeries, *, period_seconds: float = PERIOD_SECONDS, read_seconds: float = READ_SECONDS
) -> tuple[I64, F64]:
    """(monotonic ns, joules since the first) of the counter's updates, (N,) each, by the phase lock.

    A read finds a value some ms old, by no means always as many; the time between two reads is therefore
    wrong by up to 20 %. The updates keep their period.
    """
    phase_lock = PhaseLock(period_seconds, exact=True)
    counter = EnergyCounter("", phase_lock=phase_lock)
    times: list[int] = []
    joules: list[float] = []
    read = np.flatnonzero(np.isfinite(series.energy_joules))
    for at, energy in zip(
        series.monotonic_ns[read].tolist(), series.energy_joules[read].tolist(), strict=True
    ):
        reading = Reading("", at, 0.0, energy_joules=energy, within_seconds=read_seconds / 2)
        for update in counter.add(reading):
            # As in the timeline: one whose bracket overlaps the last one's is placed after it.
            times.append(max(update.time_ns, times[-1] + 1 if times else update.time_ns))
            joules.append(update.joules)
        phase_lock.next_read_ns(at)
    return np.array(times, dtype=np.int64), np.array(joules, dtype=np.float64)
