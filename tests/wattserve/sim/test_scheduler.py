"""The scheduler of the simulated GPU: nothing lost, no limit passed, everything ends, whatever arrives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wattserve.sim.kv_cache import BLOCK_TOKENS, Holding, KVCache, block_hashes
from wattserve.sim.scheduler import Limits, Scheduler, Sequence, State, Step


def sequence(name: str, prompt: list[int], output: int, arrival_ns: int = 0) -> Sequence:
    return Sequence(
        name, prompt, output, arrival_ns=arrival_ns, deliver=lambda _: None, output_id=lambda i: 5000 + i
    )


@dataclass
class Counts:
    prefill: int = 0
    decode: int = 0
    sampled: int = 0
    cached: int = 0


def run(
    scheduler: Scheduler, sequences: list[Sequence], abort_at: dict[int, int] | None = None
) -> dict[str, Counts]:
    """Steps until nothing is left, each checked; `abort_at`: step -> which sequence to abort before it."""
    limits, cache = scheduler.limits, scheduler.cache
    counts = {seq.request_id: Counts() for seq in sequences}
    for seq in sequences:
        scheduler.add(seq)
    for number in range(100_000):
        if abort_at and number in abort_at:
            scheduler.abort(sequences[abort_at[number] % len(sequences)])
        if not scheduler.has_work:
            break
        step = scheduler.schedule()
        assert step.entries, "work is waiting and nothing was scheduled: a deadlock"
        assert 0 < step.tokens <= limits.max_num_batched_tokens
        assert len(step.entries) <= limits.max_num_seqs
        assert len({id(seq) for seq, *_ in step.entries}) == len(step.entries)
        held = sum(len(seq.holding) for seq in scheduler.running)
        assert cache.free + cache.blocks_held() == cache.blocks
        assert cache.blocks_held() <= held  # shared blocks are held by several
        for place, tokens in step.cached.items():
            counts[step.entries[place][0].request_id].cached += tokens
        for seq, tokens, context, decode in step.entries:
            assert tokens > 0
            assert context == seq.computed
            assert len(seq.holding) * BLOCK_TOKENS >= context + tokens
            if decode:
                assert tokens == 1
                counts[seq.request_id].decode += 1
            else:
                counts[seq.request_id].prefill += tokens
        for seq in scheduler.finish_step(step):
            counts[seq.request_id].sampled += 1
    else:
        pytest.fail("it does not end")
    assert cache.free == cache.blocks
    assert all(not len(seq.holding) for seq in sequences)
    return counts


shapes = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@example([(1, 1), (1, 6), (26, 4), (28, 2), (1, 1), (1, 1), (29, 1)], 6, 23, 11, {}, True)
@given(
    shapes,
    st.integers(1, 6),
    st.integers(1, 64),
    st.integers(9, 30),
    st.dictionaries(st.integers(0, 40), st.integers(0, 11), max_size=3),
    st.booleans(),
)
def test_tokens_are_conserved_and_limits_kept(
    wanted: list[tuple[int, int]],
    max_num_seqs: int,
    budget: int,
    blocks: int,
    aborts: dict[int, int],
    prefix_caching: bool,
) -> None:
    limits = Limits(max_num_seqs, budget, blocks * BLOCK_TOKENS, 130, prefix_caching)
    # Prompts share beginnings on purpose: every third is the same text.
    sequences = [sequence(str(i), [i % 3] * 20 + list(range(p)), o) for i, (p, o) in enumerate(wanted)]
    sequences = [seq for seq in sequences if seq.prompt_tokens + seq.output_tokens <= 130]
    if not sequences:
        return
    counts = run(Scheduler(limits), sequences, aborts)
    for seq in sequences:
        got = counts[seq.request_id]
        assert seq.state is State.FINISHED
        if seq.aborted or got.sampled < seq.output_tokens:
            continue  # aborted on the way: the checks above held for it too
        assert got.sampled == seq.output_tokens
        if seq.preemptions == 0:
            assert got.prefill == seq.prompt_tokens - seq.cached_tokens
            assert got.decode == seq.output_tokens - 1
        else:
            # What was lost is computed again, as prefill, or found in the cache, where another may have put
            # it meanwhile; each token is still sampled once.
            assert got.prefill + got.decode + got.cached >= seq.prompt_tokens + seq.output_tokens - 1


def test_without_pressure_prefill_and_decode_are_exact() -> None:
    limits = Limits(8, 64, 16 * 100, 400)
    sequences = [sequence(str(i), list(range(i, i + 70 + i)), 5) for i in range(6)]
    counts = run(Scheduler(limits), sequences)
    assert [(c.prefill, c.decode, c.sampled) for c in counts.values()] == [(70 + i, 4, 5) for i in range(6)]


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    scheduler = Scheduler(Limits(4, 32, 16 * 100, 400))
    short, long = sequence("short", [1] * 4, 10), sequence("long", list(range(100)), 2)
    scheduler.add(short)
    scheduler.finish_step(scheduler.schedule())
    scheduler.add(long)
    chunks = []
    for _ in range(4):
        step = scheduler.schedule()
        chunks.append([(seq.request_id, tokens, decode) for seq, tokens, _, decode in step.entries])
        scheduler.finish_step(step)
    assert chunks == [[("short", 1, True), ("long", n, False)] for n in (31, 31, 31, 7)]


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    # Ten blocks: two sequences of 64 + 33 tokens need seven each in the end.
    scheduler = Scheduler(Limits(4, 512, 160, 120, prefix_caching=False))
    old, young, queued = (sequence(name, list(range(64)), 33) for name in ("old", "young", "queued"))
    for seq in (old, young, queued):
        scheduler.add(seq)
    order = []
    while scheduler.has_work:
        step = scheduler.schedule()
        order += [seq.request_id for seq in scheduler.finish_step(step) if seq.finished]
    assert scheduler.preemptions >= 1
    assert old.preemptions == 0
    assert order[:2] == ["old", "young"]


def test_equal_prefixes_are_computed_once_and_cached_tokens_counted() -> None:
    scheduler = Scheduler(Limits(4, 512, 1600, 400))
    first, second = sequence("1", list(range(100)), 3), sequence("2", list(range(100)), 3)
    run(scheduler, [first])
    counts = run(scheduler, [second])
    assert first.cached_tokens == 0
    assert second.cached_tokens == 96  # six full blocks of the 100
    assert counts["2"].prefill == 4


def test_an_answer_is_the_next_turns_prefix() -> None:
    scheduler = Scheduler(Limits(4, 512, 1600, 400))
    first = sequence("1", list(range(40)), 41)
    run(scheduler, [first])
    second = sequence("2", list(range(40)) + [5000 + i for i in range(41)] + [7] * 10, 2)
    run(scheduler, [second])
    # 40 + 40 computed tokens are five blocks; the answer's last token was sampled but never computed.
    assert second.cached_tokens == 80


def test_a_whole_cached_prompt_still_computes_its_last_token() -> None:
    scheduler = Scheduler(Limits(4, 512, 1600, 400))
    run(scheduler, [sequence("1", list(range(64)), 2)])
    again = sequence("2", list(range(64)), 2)
    assert run(scheduler, [again])["2"].prefill == 16


def test_later_arrivals_are_left_waiting() -> None:
    scheduler = Scheduler(Limits(4, 512, 1600, 400))
    scheduler.add(sequence("later", [1, 2, 3], 2, arrival_ns=100))
    assert not scheduler.schedule(99).entries
    assert scheduler.schedule(100).entries


def test_a_sequence_that_never_fits_is_refused() -> None:
    scheduler = Scheduler(Limits(4, 512, 1600, 100))
    with pytest.raises(ValueError, match="101 tokens"):
        scheduler.add(sequence("x", [1] * 51, 50))
    with pytest.raises(ValueError, match="--kv-cache-tokens 96 cannot hold"):
        Limits(4, 512, 96, 100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=40), st.integers(1, 12))
def test_blocks_are_conserved(actions: list[tuple[int, int]], blocks: int) -> None:
    cache = KVCache(blocks)
    holdings: list[Holding] = []
    for kind, length in actions:
        hashes = block_hashes([kind] * length)
        if kind == 0 and holdings:
            cache.release(holdings.pop(0))
            continue
        holding = Holding()
        hit = hashes[: cache.find(hashes)]
        if cache.admit(holding, hit, -(-length // BLOCK_TOKENS) - len(hit)):
            cache.publish(holding, hashes)
            holdings.append(holding)
        else:
            assert not len(holding)
        assert cache.free + cache.blocks_held() == cache.blocks
        assert cache.blank >= 0
    for holding in holdings:
        cache.release(holding)
    assert cache.free == cache.blocks


class Ahead(RuleBasedStateMachine):
    """The scheduler as an engine that launches ahead uses it: the next step is decided while one is under
    way, and clients hang up in between, at any moment.
    """

    @initialize(
        seqs=st.integers(1, 5), budget=st.integers(1, 64), blocks=st.integers(9, 20), caching=st.booleans()
    )
    def begin(self, seqs: int, budget: int, blocks: int, caching: bool) -> None:
        self.scheduler = Scheduler(Limits(seqs, budget, blocks * BLOCK_TOKENS, 130, caching))
        self.next: Step | None = None
        self.all: list[Sequence] = []
        self.sampled: dict[str, int] = {}

    @rule(prompt=st.integers(1, 90), output=st.integers(1, 40), kind=st.integers(0, 2))
    def arrive(self, prompt: int, output: int, kind: int) -> None:
        seq = sequence(
            str(len(self.all)), [kind] * min(prompt, 32) + list(range(max(0, prompt - 32))), output
        )
        self.all.append(seq)
        self.sampled[seq.request_id] = 0
        self.scheduler.add(seq)

    @rule(which=st.integers(0, 50))
    def hang_up(self, which: int) -> None:
        if self.all:
            self.scheduler.abort(self.all[which % len(self.all)])

    @rule()
    def ring(self) -> None:
        """A step ends: the one decided on begins and is counted, and the one after it is decided on."""
        step = self.next if self.next is not None else self.scheduler.schedule()
        for seq in self.scheduler.finish_step(step):
            self.sampled[seq.request_id] += 1
        self.next = self.scheduler.schedule() if self.scheduler.running else None

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        cache = scheduler.cache
        assert cache.free + cache.blocks_held() == cache.blocks
        alive = {id(seq) for seq in (*scheduler.running, *scheduler.waiting)}
        assert len(alive) == len(scheduler.running) + len(scheduler.waiting)
        for seq in self.all:
            assert (seq.state is State.FINISHED) == (id(seq) not in alive)
            assert id(seq) in alive or not len(seq.holding)
            assert self.sampled[seq.request_id] <= seq.output_tokens

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            if not self.scheduler.has_work:
                break
            self.ring()
        assert not self.scheduler.has_work, "it does not end"
        assert self.scheduler.cache.free == self.scheduler.cache.blocks


TestAhead = Ahead.TestCase
TestAhead.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
