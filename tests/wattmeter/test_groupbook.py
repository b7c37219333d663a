"""The books of several groups: a second waits for what follows it, not longer, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from meter_fakes import SECOND
from step_records import MODEL as ENGINE
from step_records import jobs, run
from wattmeter import groupbook
from wattmeter.attribution import busy_starts
from wattmeter.faults import Fault
from wattmeter.idle import IdleTracker
from wattmeter.knots import Knot
from wattmeter.ledger import DeviceLedger
from wattmeter.replay import EngineLimits, Jobs
from wattmeter.requests import RequestBook
from wattmeter.settlement import Piece, Settlement
from wattmeter.shapley import group_joules
from wattmeter.stepmodel import step_work
from wattmeter.stepqueue import StepQueue, take_steps
from wattmeter.steps import StepBatch
from world import MODEL, World

IDLE_WATTS = 100.0
LIMITS = EngineLimits()
HOLD_SECONDS = groupbook.BLOCK_SECONDS + groupbook.AHEAD_SECONDS


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


class Books:
    """Settlement over the record of an engine that serves `rows`; the device uses what the model says."""

    def __init__(self, rows: list[tuple[float, int, int, str]]) -> None:
        self.work: Jobs = jobs([row[:3] for row in rows])
        self.group_of = {name: row[3] for name, row in zip(self.work.names, rows, strict=True)}
        self.steps: StepBatch = run(self.work, ENGINE, LIMITS)
        self.now_ns = 0
        self.queue = StepQueue()
        self.requests = RequestBook("modelled", now_ns=lambda: self.now_ns)
        self.ledger = DeviceLedger(history_seconds=1e6)
        self.settlement = Settlement(
            {"gpu": self.ledger},
            self.requests,
            self.queue,
            IdleTracker(IDLE_WATTS),
            history_seconds=1e6,
        )
        self.waits: list[float] = []
        self.most_entries = 0
        ends = np.cumsum(ENGINE.step_joules(step_work(self.steps)))
        starts = np.concatenate([[0.0], ends[:-1]])
        self._times = np.stack([busy_starts(self.steps), self.steps.end_ns], axis=1).ravel()
        self._joules = np.stack([starts, ends], axis=1).ravel()

    def settled(self, seconds: float) -> Iterator[list[Piece]]:
        """Let time pass in ticks of 250 ms; the pieces that each settled."""
        done = arrived = 0
        for now_ns in range(SECOND // 4, round(seconds * SECOND), SECOND // 4):
            while arrived < len(self.work) and self.work.arrival_seconds[arrived] * 1e9 <= now_ns:
                name = self.work.names[arrived]
                self.now_ns = round(self.work.arrival_seconds[arrived] * 1e9)
                self.requests.start(name, None, self.group_of[name])
                arrived += 1
            self.now_ns = now_ns
            joules = float(np.interp(now_ns, self._times, self._joules)) + IDLE_WATTS * now_ns * 1e-9
            self.ledger.add_knot(Knot(now_ns, now_ns, joules))
            ended = int(np.searchsorted(self.steps.end_ns, now_ns, side="right"))
            self.queue.add(take_steps(self.steps, done, ended))
            done = ended
            new = []
            while True:
                new += self.settlement.settle(now_ns, ENGINE, 1e9 + now_ns * 1e-9)
                if (block := self.settlement.due) is None:
                    break
                self.settlement.divide(block, block.factors(ENGINE))
            self.waits += [(now_ns - piece.start_ns) * 1e-9 for piece in new]
            self.most_entries = max(self.most_entries, self.queue.entries)
            yield new

    def by_group(self, seconds: float, start: float = 0.0, end: float = 1e9) -> dict[str, float]:
        """Joules by group of the pieces of [start, end), after `seconds`."""
        sums: dict[str, float] = {}
        for new in self.settled(seconds):
            for piece in new:
                if start <= piece.start_ns * 1e-9 < end:
                    for name, joules in piece.groups.items():
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
    books = Books(rows)
    value = books.shapley(30.0)
    assert books.by_group(80.0, 30.0) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize("seed", range(2))
def test_groups_of_a_stream_without_a_pause_are_near_their_shapley_value(seed: int) -> None:
    rows = stream(seed, 1.0, 25.0, {"code": CODE, "long": LONG})
    rows += stream(seed + 10, 25.0, 50.0, {"chat": CHAT, "code": CODE})
    rows += stream(seed + 20, 50.0, 75.0, {"chat": CHAT, "long": LONG})
    books = Books(sorted(rows))
    assert books.by_group(100.0) == pytest.approx(books.shapley(), rel=0.05)
    assert HOLD_SECONDS - 1.0 < max(books.waits) < HOLD_SECONDS + 0.6


def test_twice_as_far_ahead_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stream(4, 1.0, 25.0, {"code": CODE, "long": LONG})
    rows += stream(14, 25.0, 50.0, {"chat": CHAT, "code": CODE})
    rows.sort()
    found = Books(rows).by_group(90.0)
    monkeypatch.setattr(groupbook, "AHEAD_SECONDS", 2 * groupbook.AHEAD_SECONDS)
    assert Books(rows).by_group(90.0) == pytest.approx(found, rel=0.005)


def test_what_ran_before_an_idle_gap_has_no_part_in_the_factors() -> None:
    """The same stretch alone and after another one of other groups: the same joules, to the last."""
    alone = stream(1, 40.0, 52.0, {"chat": CHAT, "long": LONG})
    before = stream(2, 20.0, 32.0, {"code": CODE, "long": LONG})
    assert Books(before).steps.end_ns[-1] < 39 * SECOND
    found = Books(before + alone).by_group(80.0, 39.0)
    assert found == pytest.approx(Books(alone).by_group(80.0, 39.0), rel=1e-9)


def test_a_gap_of_the_device_settles_all_before_it() -> None:
    books = Books(stream(3, 2.0, 10.0, {"chat": CHAT, "code": CODE}))
    last = float(books.steps.end_ns[-1]) * 1e-9
    for _ in books.settled(last + 1.6):
        pass
    frontier = books.settlement.frontier_ns
    assert frontier is not None
    assert frontier * 1e-9 >= last


@pytest.mark.parametrize("groups", [1, groupbook.MAX_GROUPS + 1])
def test_one_group_or_too_many_wait_for_nothing(groups: int) -> None:
    kinds = {f"g{number}": (24.0 / groups, 300, 100) for number in range(groups)}
    books = Books(stream(5, 2.0, 30.0, kinds))
    late = []
    for new in books.settled(40.0):
        # The first seconds of six groups hold five or fewer, and what follows waits for them.
        if groups == 1 or books.now_ns > 20 * SECOND:
            late += [(books.now_ns - piece.start_ns) * 1e-9 for piece in new]
    assert max(late) <= 1.3


def test_groups_that_take_turns_wait_for_nothing() -> None:
    rows = [(2.0 + number, 500, 40, "ab"[number % 2]) for number in range(12)]
    books = Books(rows)
    for _ in books.settled(20.0):
        pass
    assert max(books.waits) <= 1.3


def test_everything_is_conserved_and_totals_never_fall() -> None:
    rows = stream(6, 1.0, 30.0, {"chat": CHAT, "code": CODE, "long": LONG})
    books = Books(rows)
    before = books.settlement.totals.as_buckets()
    sums = 0.0
    for new in books.settled(60.0):
        after = books.settlement.totals.as_buckets()
        assert all(after[name] >= before[name] - 1e-9 for name in ("prefill", "decode", "idle"))
        before = after
        for piece in new:
            assert piece.joules is not None
            assert piece.idle_joules is not None
            parts = piece.idle_joules + sum(piece.groups.values()) + piece.unattributed_joules
            assert parts == pytest.approx(piece.joules, rel=1e-9)
            sums += piece.joules
    assert books.settlement.totals.counter_joules == pytest.approx(sums)
    assert books.settlement.conservation_error_ratio() < 1e-9


def test_at_high_concurrency_less_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groupbook, "MAX_ENTRIES", groupbook.KEEP_ENTRIES + 4_000)
    books = Books(stream(7, 1.0, 20.0, {"chat": CHAT, "long": (3.0, 50, 600)}))
    for _ in books.settled(40.0):
        pass
    a_second = np.bincount(books.steps.end_ns[books.steps.step] // SECOND).max()
    assert len(books.steps.step) > 10_000
    assert books.most_entries <= 4_000 + 1.5 * a_second
    assert max(books.waits) < HOLD_SECONDS - 2.0


def serve_two_groups(world: World, tokens: int) -> None:
    world.serve({"a": (500, tokens), "b": (50, tokens)}, groups={"a": "one", "b": "two"})


def test_a_request_is_provisional_while_its_seconds_wait() -> None:
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    serve_two_groups(world, 200)
    world.pass_time(0.5)
    energy = world.account.request_energy("a")
    assert energy is not None
    assert energy.status == "provisional"
    assert energy.joules is not None
    estimate = energy.joules
    world.pass_time(2.0)  # the end of a run settles soon
    energy = world.account.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    assert energy.joules == pytest.approx(estimate, rel=0.15)
    assert world.account.snapshot().conservation_error_ratio < 1e-9


def test_a_server_that_stops_books_what_waits() -> None:
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    serve_two_groups(world, 200)
    world.pass_time(0.7)
    before = world.account.snapshot().settled_joules
    world.account.settle()
    assert world.account.snapshot().settled_joules == before
    world.account.settle(patient=False)
    assert world.account.snapshot().settled_joules > before + 0.9 * world.above_idle


def test_factors_that_cannot_be_found_flag_the_seconds_and_hold_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise ArithmeticError("replay")

    monkeypatch.setattr(groupbook, "group_factors", fails)
    world = World(step_model=MODEL, fit_online=False)
    world.pass_time(5.0)
    begin = world.unix
    serve_two_groups(world, 20)
    with pytest.raises(ArithmeticError):
        world.pass_time(3.0)
    world.pass_time(2.0)
    energy = world.account.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    assert Fault.UNKNOWN_ERROR in energy.flags
    assert Fault.UNKNOWN_ERROR in world.account.window_energy(begin, begin + 0.4).flags
