"""A recorded counter read as the server reads it: at the moments of its updates, not of the reads."""

from __future__ import annotations

import numpy as np

from wattmeter.counter import JouleCounter
from wattmeter.edges import EdgeClock
from wattmeter.meter import Reading
from wattmeter.recording import CounterSeries
from wattmeter.stepmodel import F64
from wattmeter.steps import I64

# On the recorded H200 (docs/measurement.md): how often the counter moves, and what a read of it takes.
PERIOD_SECONDS = 0.1
READ_SECONDS = 0.0032


def updates(
    series: CounterSeries, *, period_seconds: float = PERIOD_SECONDS, read_seconds: float = READ_SECONDS
) -> tuple[I64, F64]:
    """(monotonic ns, joules since the first) of the counter's updates, (N,) each, by the edge clock.

    A read finds a value some ms old, by no means always as many; the time between two reads is therefore
    wrong by up to 20 %. The updates keep their period.
    """
    edges = EdgeClock(period_seconds)
    counter = JouleCounter("", edges=edges)
    times: list[int] = []
    joules: list[float] = []
    read = np.flatnonzero(np.isfinite(series.energy_joules))
    for at, energy in zip(
        series.monotonic_ns[read].tolist(), series.energy_joules[read].tolist(), strict=True
    ):
        reading = Reading("", at, 0.0, energy_joules=energy, within_seconds=read_seconds / 2)
        for knot in counter.add(reading):
            # As in the ledger: one whose bracket overlaps the last one's is placed after it.
            times.append(max(knot.time_ns, times[-1] + 1 if times else knot.time_ns))
            joules.append(knot.joules)
        edges.next_read_ns(at)
    return np.array(times, dtype=np.int64), np.array(joules, dtype=np.float64)
