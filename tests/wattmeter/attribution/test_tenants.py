"""The seconds of several tenants: one waits for what follows it, not longer, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from meter_fakes import SECOND
from step_records import MODEL as ENGINE
from step_records import jobs, run
from wattmeter.attribution import tenants
from wattmeter.attribution.shapley import group_joules
from wattmeter.attribution.tenants import Arrival
from wattmeter.energy_model.batching import EngineLimits, Jobs
from wattmeter.energy_model.step_model import step_work
from wattmeter.faults import Fault
from wattmeter.metering.counter import CounterUpdate
from wattmeter.metering.idle_power import IdleTracker
from wattmeter.metering.timeline import EnergyTimeline
from wattmeter.monitor.settler import RECORD_DELAY_SECONDS, Collected, Progress, SettledSecond, Settler
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import busy_starts
from wattmeter.steps.queue import KEEP_ENTRIES
from world import MODEL, World

IDLE_WATTS = 100.0
LIMITS = EngineLimits()
HOLD_SECONDS = tenants.BLOCK_SECONDS + tenants.AHEAD_SECONDS


def stream(
    seed: int, start: float, end: float, kinds: Mapping[str, tuple[float, int, int]]
) -> list[tuple[float, int, int, str]]:
    """(arrival, prompt, output, group) of Poisson arrivals; `kinds` has (rate, prompt, output) by group."""
    generator = np.random.default_rng(seed)
    rows = []
    for group, (rate, prompt, output) in kinds.items():
        when = start
        while (when := when + generator.exponential(1 / rate)) < end:
            rows.append((when, prompt, output, group))
    return sorted(rows)


class Settling:
    """A settler over the record of an engine that serves `rows`; the device uses what the model says."""

    def __init__(self, rows: list[tuple[float, int, int, str]]) -> None:
        self.work: Jobs = jobs([row[:3] for row in rows])
        self.group_of = {name: row[3] for name, row in zip(self.work.names, rows, strict=True)}
        self.steps: StepBatch = run(self.work, ENGINE, LIMITS)
        self.now_ns = 0
        self.timeline = EnergyTimeline(history_seconds=1e6)
        self.settler = Settler(IdleTracker(IDLE_WATTS))
        self.waits: list[float] = []
        self.most_entries = 0
        ends = np.cumsum(ENGINE.step_joules(step_work(self.steps)))
        starts = np.concatenate([[0.0], ends[:-1]])
        self._times = np.stack([busy_starts(self.steps), self.steps.end_ns], axis=1).ravel()
        self._joules = np.stack([starts, ends], axis=1).ravel()
        last = np.zeros(len(self.steps.request_ids), dtype=np.int64)
        np.maximum.at(last, self.steps.request, self.steps.end_ns[self.steps.step])
        self._last_ends = np.sort(last)

    def settled(self, seconds: float) -> Iterator[list[SettledSecond]]:
        """Let time pass in ticks of 250 ms; the seconds that each settled."""
        done = arrived = 0
        for now_ns in range(SECOND // 4, round(seconds * SECOND), SECOND // 4):
            arrivals = {}
            while arrived < len(self.work) and self.work.arrival_seconds[arrived] * 1e9 <= now_ns:
                name = self.work.names[arrived]
                started_ns = round(self.work.arrival_seconds[arrived] * 1e9)
                arrivals[name] = Arrival(self.group_of[name], started_ns)
                arrived += 1
            self.now_ns = now_ns
            joules = float(np.interp(now_ns, self._times, self._joules)) + IDLE_WATTS * now_ns * 1e-9
            self.timeline.add_update(CounterUpdate(now_ns, now_ns, joules))
            ended = int(np.searchsorted(self.steps.end_ns, now_ns, side="right"))
            progress = Progress()
            new = Collected(
                now_ns=now_ns + round(RECORD_DELAY_SECONDS * SECOND),
                unix_seconds=1e9 + now_ns * 1e-9,
                model=ENGINE,
                timelines={"gpu": self.timeline.view()},
                batches=[self.steps.slice(done, ended).renumber()],
                arrivals=arrivals,
                active=arrived - int(np.searchsorted(self._last_ends, now_ns, side="right")),
            )
            self.settler.advance(new, progress)
            done = ended
            self.waits += [(now_ns - second.start_ns) * 1e-9 for second in progress.seconds]
            self.most_entries = max(self.most_entries, self.settler.waiting_entries)
            yield progress.seconds

    def by_group(self, seconds: float, start: float = 0.0, end: float = 1e9) -> dict[str, float]:
        """Joules by group of the seconds of [start, end), after `seconds`."""
        sums: dict[str, float] = {}
        for new in self.settled(seconds):
            for second in new:
                if start <= second.start_ns * 1e-9 < end:
                    for name, joules in second.groups.items():
                        sums[name] = sums.get(name, 0.0) + joules
        return sums

    def shapley(self, start: float = 0.0, end: float = 1e9) -> dict[str, float]:
        """The Shapley value of the groups of the requests that arrive in [start, end)."""
        inside = (self.work.arrival_seconds >= start) & (self.work.arrival_seconds < end)
        work = self.work.only(inside)
        names = sorted({self.group_of[name] for name in work.names})
        numbers = [names.index(self.group_of[name]) for name in work.names]
        return dict(zip(names, group_joules(work, numbers, ENGINE, LIMITS).tolist(), strict=True))


CHAT = (6.0, 300, 200)
CODE = (4.0, 4000, 10)
LONG = (0.8, 50, 900)


@pytest.mark.parametrize("seed", range(3))
def test_after_a_change_of_mix_every_group_has_its_shapley_value_at_once(seed: int) -> None:
    rows = stream(seed, 1.0, 16.0, {"code": CODE, "long": LONG})
    rows += stream(seed + 10, 30.0, 45.0, {"chat": CHAT, "code": CODE, "long": LONG})
    settling = Settling(rows)
    value = settling.shapley(30.0)
    assert settling.by_group(80.0, 30.0) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize("seed", range(2))
def test_groups_of_a_stream_without_a_pause_are_near_their_shapley_value(seed: int) -> None:
    rows = stream(seed, 1.0, 25.0, {"code": CODE, "long": LONG})
    rows += stream(seed + 10, 25.0, 50.0, {"chat": CHAT, "code": CODE})
    rows += stream(seed + 20, 50.0, 75.0, {"chat": CHAT, "long": LONG})
    settling = Settling(sorted(rows))
    assert settling.by_group(100.0) == pytest.approx(settling.shapley(), rel=0.05)
    assert HOLD_SECONDS - 1.0 < max(settling.waits) < HOLD_SECONDS + 0.6


def test_twice_as_far_ahead_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stream(4, 1.0, 25.0, {"code": CODE, "long": LONG})
    rows += stream(14, 25.0, 50.0, {"chat": CHAT, "code": CODE})
    rows.sort()
    found = Settling(rows).by_group(90.0)
    monkeypatch.setattr(tenants, "AHEAD_SECONDS", 2 * tenants.AHEAD_SECONDS)
    assert Settling(rows).by_group(90.0) == pytest.approx(found, rel=0.006)


def test_what_ran_before_an_idle_gap_has_no_part_in_the_factors() -> None:
    """The same stretch alone and after another one of other groups: the same joules, to the last."""
    alone = stream(1, 40.0, 52.0, {"chat": CHAT, "long": LONG})
    before = stream(2, 20.0, 32.0, {"code": CODE, "long": LONG})
    assert Settling(before).steps.end_ns[-1] < 39 * SECOND
    found = Settling(before + alone).by_group(80.0, 39.0)
    assert found == pytest.approx(Settling(alone).by_group(80.0, 39.0), rel=1e-9)


def test_a_gap_of_the_device_settles_all_before_it() -> None:
    settling = Settling(stream(3, 2.0, 10.0, {"chat": CHAT, "code": CODE}))
    last = float(settling.steps.end_ns[-1]) * 1e-9
    for _ in settling.settled(last + 1.6):
        pass
    frontier = settling.settler.state.frontier_ns
    assert frontier is not None
    assert frontier * 1e-9 >= last


@pytest.mark.parametrize("groups", [1, tenants.MAX_GROUPS + 1])
def test_one_group_or_too_many_wait_for_nothing(groups: int) -> None:
    kinds = {f"g{number}": (24.0 / groups, 300, 100) for number in range(groups)}
    settling = Settling(stream(5, 2.0, 30.0, kinds))
    late = []
    for new in settling.settled(40.0):
        # The first seconds of six groups hold five or fewer, and what follows waits for them.
        if groups == 1 or settling.now_ns > 20 * SECOND:
            late += [(settling.now_ns - second.start_ns) * 1e-9 for second in new]
    assert max(late) <= 1.3


def test_groups_that_take_turns_wait_for_nothing() -> None:
    rows = [(2.0 + number, 500, 40, "ab"[number % 2]) for number in range(12)]
    settling = Settling(rows)
    for _ in settling.settled(20.0):
        pass
    assert max(settling.waits) <= 1.3


def test_everything_is_conserved_and_totals_never_fall() -> None:
    rows = stream(6, 1.0, 30.0, {"chat": CHAT, "code": CODE, "long": LONG})
    settling = Settling(rows)
    before = settling.settler.state.totals.as_buckets()
    sums = 0.0
    for new in settling.settled(60.0):
        after = settling.settler.state.totals.as_buckets()
        assert all(after[name] >= before[name] - 1e-9 for name in ("prefill", "decode", "idle"))
        before = after
        for second in new:
            assert second.joules is not None
            assert second.idle_joules is not None
            parts = second.idle_joules + sum(second.groups.values()) + second.unattributed_joules
            assert parts == pytest.approx(second.joules, rel=1e-9)
            sums += second.joules
    assert settling.settler.state.totals.counter_joules == pytest.approx(sums)
    assert settling.settler.state.totals.conservation_error_ratio() < 1e-9


def test_at_high_concurrency_less_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "MAX_ENTRIES", KEEP_ENTRIES + 4_000)
    settling = Settling(stream(7, 1.0, 20.0, {"chat": CHAT, "long": (3.0, 50, 600)}))
    for _ in settling.settled(40.0):
        pass
    a_second = np.bincount(settling.steps.end_ns[settling.steps.step] // SECOND).max()
    assert len(settling.steps.step) > 10_000
    assert settling.most_entries <= 4_000 + 1.5 * a_second
    assert max(settling.waits) < HOLD_SECONDS - 2.0


def serve_two_groups(world: World, tokens: int) -> None:
    world.serve({"a": (500, tokens), "b": (50, tokens)}, groups={"a": "one", "b": "two"})


def test_a_request_is_provisional_while_its_seconds_wait() -> None:
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    serve_two_groups(world, 200)
    world.pass_time(0.5)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "provisional"
    assert energy.joules is not None
    estimate = energy.joules
    world.pass_time(2.0)  # the end of a run settles soon
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    assert energy.joules == pytest.approx(estimate, rel=0.15)
    assert world.monitor.snapshot().conservation_error_ratio < 1e-9


def test_a_server_that_stops_settles_what_waits() -> None:
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    serve_two_groups(world, 200)
    world.pass_time(0.7)
    before = world.monitor.snapshot().settled_joules
    world.monitor.settle()
    assert world.monitor.snapshot().settled_joules == before
    world.monitor.settle(patient=False)
    assert world.monitor.snapshot().settled_joules > before + 0.9 * world.above_idle


def test_factors_that_cannot_be_found_flag_the_seconds_and_hold_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise ArithmeticError("replay")

    monkeypatch.setattr(tenants, "group_factors", fails)
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    begin = world.unix
    serve_two_groups(world, 20)
    with pytest.raises(ArithmeticError):
        world.pass_time(3.0)
    world.pass_time(2.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    assert Fault.UNKNOWN_ERROR in energy.flags
    assert Fault.UNKNOWN_ERROR in world.monitor.window_energy(begin, begin + 0.4).flags
