"""The edge clock finds a periodic counter's updates, within what was read, at ten reads a second."""

from __future__ import annotations

import random

import pytest

from wattmeter.metering.counter import EnergyCounter
from wattmeter.metering.phase_lock import CONTRADICTIONS, PhaseLock
from wattmeter.metering.sampler import ReadLimit
from wattmeter.meters.base import Reading

MS = 1_000_000


def follow(
    *,
    period_ns: int = 100 * MS,
    drift: float = 0.0,
    jitter_ns: int = 300_000,
    seed: int = 1,
    seconds: int = 60,
    call_ns: int = 0,
    stall_every: int = 0,
) -> tuple[PhaseLock, list[int], list[tuple[int, int, float]]]:
    """Read a counter with this period as the clock asks: (clock, read times, (after, by, true update)).

    A call takes `call_ns`, every `stall_every`-th 35 ms; the value is taken at any moment of it.
    """
    chance = random.Random(seed)
    phase = chance.randrange(period_ns)
    jitters: dict[int, int] = {}

    def update(number: int) -> float:
        jitter = jitters.setdefault(number, round(chance.gauss(0, jitter_ns)))
        return phase + number * period_ns * (1.0 + drift) + jitter

    def last_update(now: int) -> int:
        number = int((now - phase) / (period_ns * (1.0 + drift))) - 1
        while update(number + 1) <= now:
            number += 1
        return number

    clock, limit = PhaseLock(0.1), ReadLimit(100 * MS)
    counter = EnergyCounter("gpu", phase_lock=clock)
    start = 1_000 * MS
    reads: list[int] = []
    brackets: list[tuple[int, int, float]] = []
    while start < (seconds + 1) * 1000 * MS:
        took = 35 * MS if stall_every and len(reads) % stall_every == stall_every - 1 else call_ns
        number = last_update(start + round(chance.random() * took))
        middle = start + took // 2
        reading = Reading(
            "gpu", middle, middle * 1e-9, energy_joules=float(number), within_seconds=0.5e-9 * took
        )
        brackets += [(seen.after_ns, seen.by_ns, update(number)) for seen in counter.add(reading)]
        reads.append(start)
        target = clock.next_read_ns(middle, limit.read_at(start), call_ns=took)
        assert target > middle
        start = max(target, start + took) + int(chance.expovariate(1 / 500_000))
    return clock, reads, brackets


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drift", [0.0, 2e-5, -2e-5])
@pytest.mark.parametrize("call_ms", [0, 4])
def test_updates_are_known_to_a_few_milliseconds(seed: int, drift: float, call_ms: int) -> None:
    clock, reads, brackets = follow(drift=drift, seed=seed, call_ns=call_ms * MS)
    assert clock.locked
    late = brackets[50:]
    widths = sorted(by - after for after, by, _ in late)
    assert widths[len(widths) // 2] < 8 * MS
    assert widths[int(0.95 * len(widths))] < 12 * MS
    wrong = sum(not after - MS <= true <= by + MS for after, by, true in late)
    assert wrong <= 0.01 * len(late)
    assert len(reads) / ((reads[-1] - reads[0]) * 1e-9) < 10.05


def test_calls_that_stall_widen_a_bracket_and_do_not_break_the_clock() -> None:
    clock, _, brackets = follow(call_ns=4 * MS, stall_every=9)
    late = brackets[50:]
    widths = sorted(by - after for after, by, _ in late)
    assert widths[len(widths) // 2] < 10 * MS
    assert sum(not after - MS <= true <= by + MS for after, by, true in late) <= 0.01 * len(late)
    assert not clock.given_up


def test_it_locks_within_two_seconds() -> None:
    for seed in range(10):
        clock, _, _ = follow(seed=seed, seconds=3)
        assert clock.locked, seed


def test_a_counter_with_another_period_is_not_believed() -> None:
    """A counter that moves every 20 ms: every bracket is that of the reads, and true."""
    clock, _, brackets = follow(period_ns=20 * MS, jitter_ns=0)
    assert clock.given_up
    assert not clock.locked
    assert all(after - 2 * MS <= true <= by for after, by, true in brackets[CONTRADICTIONS * 6 :])


def test_a_reset_forgets_the_phase() -> None:
    clock, _, _ = follow()
    clock.restart()
    assert clock.width_seconds is None
    assert not clock.locked


def test_a_period_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        PhaseLock(0.0)
