"""How the edge clock reads some counters, read by read, as it was found to be good: any change shows.

Where one is meant, `python tests/wattmeter/metering/test_phase_lock_kept.py` writes the file anew; look at
what became of the widths and of the number of reads in its difference.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from wattmeter.metering.counter import EnergyCounter
from wattmeter.metering.phase_lock import PhaseLock
from wattmeter.metering.sampler import ReadLimit
from wattmeter.meters.base import Reading

KEPT = Path(__file__).with_name("phase_lock_kept.json")
MS = 1_000_000


@dataclass(frozen=True)
class Case:
    """A counter that moves every `period_ms` and how it is read: for `seconds`, by calls of `call_ms`."""

    period_ms: float = 100.0
    believed_ms: float = 100.0
    phase_ms: float = 37.0
    drift: float = 0.0
    jitter_ms: float = 0.0
    seconds: float = 8.0
    call_ms: float = 0.0
    late_ms: float = 0.0
    limited: bool = True
    exact: bool = False
    # Seconds from which on the updates come so many ms later; when the counter begins anew; what is told.
    shift_at: float = 0.0
    shift_ms: float = 0.0
    restart_at: float = 0.0
    told_from: float = 0.0


CASES = {
    "seeks and follows": Case(),
    "an update at once": Case(phase_ms=99.9, seconds=4.0),
    "just before an update": Case(phase_ms=0.3, seconds=4.0),
    "a period that is known": Case(exact=True, drift=2e-5, seconds=60.0, told_from=55.0),
    "a period that is off": Case(drift=4e-4, seconds=400.0, told_from=397.0),
    "a period that is far off": Case(drift=-4e-3, seconds=120.0, told_from=115.0),
    "reads that take 4 ms": Case(call_ms=4.0, late_ms=0.3, phase_ms=71.0),
    "reads that take 12 ms": Case(call_ms=12.0, phase_ms=5.0),
    "reads that take 55 ms": Case(call_ms=55.0),
    "a busy machine": Case(call_ms=4.0, late_ms=30.0, seconds=20.0, told_from=12.0),
    "updates that scatter": Case(jitter_ms=1.5, late_ms=0.3, seconds=20.0, told_from=12.0),
    "updates that scatter a lot": Case(jitter_ms=6.0, late_ms=0.3, seconds=30.0, told_from=20.0),
    "a phase that moves by 9 ms": Case(shift_at=4.0, shift_ms=9.0),
    "a phase that moves by 3 ms": Case(shift_at=4.0, shift_ms=3.0),
    "a phase that moves by half": Case(shift_at=4.0, shift_ms=50.0),
    "a counter that begins anew": Case(restart_at=4.0),
    "another period": Case(period_ms=20.0, seconds=75.0, told_from=60.0),
    "a period of a second": Case(period_ms=1000.0, believed_ms=1000.0, phase_ms=300.0, seconds=30.0),
    "a period of 20 ms": Case(period_ms=20.0, believed_ms=20.0, phase_ms=3.0, limited=False, seconds=3.0),
    "no limit of reads": Case(limited=False, seconds=4.0),
}


def follow(case: Case) -> dict[str, Any]:
    """The reads and the width of each bracket in µs, how many brackets were wrong, and the clock's state."""
    chance = random.Random(5)
    period, phase = case.period_ms * MS * (1.0 + case.drift), case.phase_ms * MS
    jitters: dict[int, float] = {}

    def update(number: int) -> float:
        jitter = jitters.setdefault(number, (chance.random() - 0.5) * 2.0 * case.jitter_ms * MS)
        late = case.shift_ms * MS if case.shift_at and number * period > case.shift_at * 1e9 else 0.0
        return phase + number * period + jitter + late

    def shown(now: float) -> int:
        number = int((now - phase) / period) - 2
        while update(number + 1) <= now:
            number += 1
        return number

    clock = PhaseLock(case.believed_ms * 1e-3, exact=case.exact)
    counter, limit = EnergyCounter("gpu", phase_lock=clock), ReadLimit(100 * MS)
    start, call = 1000 * MS, round(case.call_ms * MS)
    reads, widths, wrong, restarted, states = list[int](), list[int](), 0, False, list[str]()
    while start < (1.0 + case.seconds) * 1e9:
        number = shown(start + chance.random() * call)
        middle = start + call // 2
        value = float(number)
        if case.restart_at and start > (1.0 + case.restart_at) * 1e9:
            value, restarted = number - 1000.0 + 960.0, True
        reading = Reading("gpu", middle, 0.0, energy_joules=max(value, 0.0), within_seconds=0.5e-9 * call)
        told = start >= (1.0 + case.told_from) * 1e9
        for seen in counter.add(reading):
            truth = update(number)
            wrong += not seen.after_ns - MS <= truth <= seen.by_ns + MS
            if told:
                widths.append((seen.by_ns - seen.after_ns) // 1000)
        if told:
            reads.append(start // 1000)
            states.append("x" if clock.given_up else "L" if clock.locked else ".")
        least = limit.read_at(start) if case.limited else 0
        target = clock.next_read_ns(middle, least, call_ns=call)
        assert target > middle
        start = max(target, start + call) + int(chance.random() * case.late_ms * MS)
    assert restarted == bool(case.restart_at)
    return {"reads_us": reads, "widths_us": widths, "wrong": wrong, "state": "".join(states)}


@pytest.mark.parametrize("name", CASES)
def test_the_clock_reads_as_it_was_found_to_be_good(name: str) -> None:
    kept = json.loads(KEPT.read_text("utf-8"))[name]
    assert kept.pop("case") == asdict(CASES[name])
    assert follow(CASES[name]) == kept


def test_what_is_kept_is_good() -> None:
    """No bracket of a counter that keeps its period is wrong, and most are as narrow as a read allows."""
    kept = json.loads(KEPT.read_text("utf-8"))
    assert sorted(kept) == sorted(CASES)
    for name, one in kept.items():
        case = Case(**one["case"])
        steady = not (case.shift_at or case.jitter_ms) and abs(case.drift) < 1e-3
        if steady and case.period_ms == case.believed_ms and case.call_ms <= 4.0 and case.late_ms < 1.0:
            assert one["wrong"] == 0, name
            late = sorted(one["widths_us"][-20:])
            assert late[len(late) // 2] < 10_000, name


def main() -> None:
    kept = {name: {"case": asdict(case), **follow(case)} for name, case in CASES.items()}
    KEPT.write_text(json.dumps(kept).replace("}, ", "},\n") + "\n", "utf-8")


if __name__ == "__main__":
    main()
