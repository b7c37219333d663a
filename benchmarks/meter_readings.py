"""How sure the energy of a window is: a recorded counter read ten times a second, against all its rows.

    python benchmarks/meter_readings.py RECORDING.csv[.gz]

Reads the recording as a server would (at the counter's updates, and every 100 ms), and compares the energies
of windows with those out of every recorded row. Prints the self-test of the sensors first.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

from wattmeter.metering.counter import CounterUpdate, EnergyCounter
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.metering.sampler import ReadLimit
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.meters.base import Reading
from wattmeter.meters.recorded import RecordedMeter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from recorded_selftest import recorded_selftest

SECOND = 1_000_000_000
START_NS = 100 * SECOND
PERIOD_SECONDS = 0.1
CALL_NS = 4_000_000
WINDOWS_SECONDS = (0.5, 1.0, 10.0, 28.0)
WINDOWS = 500


class Counter:
    """The recorded counter between its rows: its updates lie on a grid of 100 ms, which the rows show.

    `residual_seconds`: within how much of each other 90 % of the rows lie behind the updates they show.
    """

    def __init__(self, meter: RecordedMeter) -> None:
        data = meter.readings
        moved = np.flatnonzero(np.diff(data.energy_joules)) + 1
        seen = data.unix_seconds[moved] - data.unix_seconds[0]
        angle = np.angle(np.mean(np.exp(2j * np.pi * seen / PERIOD_SECONDS))) / (2 * np.pi) * PERIOD_SECONDS
        late = (seen - angle + PERIOD_SECONDS / 2) % PERIOD_SECONDS - PERIOD_SECONDS / 2
        self.residual_seconds = float(np.percentile(late, 95) - np.percentile(late, 5))
        phase = angle + float(np.percentile(late, 5))
        number, first = np.unique(
            np.floor((seen - phase) / PERIOD_SECONDS + 0.2).astype(np.int64), return_index=True
        )
        self.times_ns = np.round((number * PERIOD_SECONDS + phase) * 1e9).astype(np.int64) + START_NS
        self.joules = data.energy_joules[moved][first]

    def at(self, time_ns: int) -> float:
        row = int(np.searchsorted(self.times_ns, time_ns, side="right")) - 1
        return float(self.joules[max(row, 0)])

    def timeline(self) -> EnergyTimeline:
        """All updates, at their times."""
        timeline = EnergyTimeline()
        for time_ns, joules in zip(self.times_ns.tolist(), self.joules.tolist(), strict=True):
            timeline.add_update(CounterUpdate(time_ns, time_ns, joules))
        return timeline


def ten_a_second(source: Counter, *, follow: bool, seed: int = 1) -> tuple[EnergyTimeline, float]:
    """(the timeline of ten reads a second, reads a second): at the counter's updates, or every 100 ms.

    A read takes CALL_NS, as on the H200; the value is taken at any moment of it.
    """
    chance = random.Random(seed)
    clock = PhaseLock(PERIOD_SECONDS) if follow else None
    limit = ReadLimit(round(PERIOD_SECONDS * 1e9))
    timeline, counter = EnergyTimeline(), EnergyCounter("ten", phase_lock=clock)
    now, reads = START_NS + chance.randrange(SECOND), []
    while now < source.times_ns[-1]:
        joules = source.at(now + chance.randrange(CALL_NS))
        middle = now + CALL_NS // 2
        reading = Reading("ten", middle, middle * 1e-9, energy_joules=joules, within_seconds=0.5e-9 * CALL_NS)
        for update in counter.add(reading):
            timeline.add_update(update)
        reads.append(now)
        least = limit.read_at(now)
        if clock is None:
            target = max(now + SECOND // 10, least)
        else:
            target = clock.next_read_ns(middle, least, call_ns=CALL_NS)
        now = max(target, now + CALL_NS) + round(chance.expovariate(1 / 200_000))
    return timeline, len(reads) / ((reads[-1] - reads[0]) * 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording")
    meter = RecordedMeter(parser.parse_args().recording)
    print(json.dumps(recorded_selftest(meter).devices[0].as_json(), indent=1))
    source = Counter(meter)
    late = 1e3 * source.residual_seconds
    print(f"\n{len(source.joules)} updates on a grid of 100 ms, rows up to {late:.1f} ms late")
    truth, chance = source.timeline(), random.Random(7)
    begin, end = int(source.times_ns[0]) + 3 * SECOND, int(source.times_ns[-1]) - 2 * SECOND
    for follow in (True, False):
        timeline, rate = ten_a_second(source, follow=follow)
        print(f"\n{'at its updates' if follow else 'every 100 ms'}, {rate:.2f} reads/s")
        print("window   mean J   rms difference J   %      stated J (rms)   within 2 stated")
        for seconds in WINDOWS_SECONDS:
            length = round(seconds * SECOND)
            if begin + length >= end:
                continue
            rows = []
            for _ in range(WINDOWS):
                start = chance.randrange(begin, end - length)
                seen, full = timeline.energy(start, start + length), truth.energy(start, start + length)
                assert seen.joules is not None
                assert full.joules is not None
                assert seen.uncertainty_joules is not None
                assert full.uncertainty_joules is not None
                stated = float(np.hypot(seen.uncertainty_joules, full.uncertainty_joules))
                rows.append((full.joules, seen.joules - full.joules, stated))
            joules, difference, stated_all = np.array(rows).T
            rms = float(np.sqrt(np.mean(difference**2)))
            stated_rms = float(np.sqrt(np.mean(stated_all**2)))
            within = 100 * np.mean(np.abs(difference) <= 2 * stated_all)
            mean = joules.mean()
            shown = f"{seconds:5.1f} s {mean:8.0f} {rms:14.2f} {100 * rms / mean:9.2f}"
            print(f"{shown} {stated_rms:12.2f} {within:14.0f} %")


if __name__ == "__main__":
    main()
