# ruff: noqa: E501 - tables of cases
"""Prompts: to the token as long as planned, shared exactly where asked, the same wherever they are made."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload import traces
from wattload.schedule import content as prompts
from wattload.schedule.build import build_schedule
from wattload.schedule.table import Schedule
from wattload.traces.trace import PrefixBlocks, Trace


def planned(
    prompt: list[int],
    session: list[int] | None = None,
    blocks: list[list[int]] | None = None,
    size: int = 16,
    **options: float,
) -> Schedule:
    n = len(prompt)
    prefix = None
    if blocks is not None:
        offsets = np.concatenate([[0], np.cumsum([len(b) for b in blocks])]).astype(np.int64)
        prefix = PrefixBlocks(np.array([i for b in blocks for i in b], np.int64), offsets, size)
    trace = Trace(
        name="t", format="plain", seconds=np.arange(n, dtype=np.float64), prompt_tokens=np.array(prompt, np.int32),
        output_tokens=np.full(n, 5, np.int32), session=np.array(session or [-1] * n), turn=np.zeros(n, np.int32),
        think_seconds=np.zeros(n), tag=np.zeros(n, np.int16), prefix=prefix,
    )  # fmt: skip
    return build_schedule(trace, **options)  # type: ignore[arg-type]


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5000),
    st.sampled_from([16, 500, 32_000, 50_257, 128_256, 151_936, 262_144]),
    st.integers(0, 2**31),
)
def test_exact_length_and_only_safe_ids_as_array_and_as_json(count: int, vocab: int, seed: int) -> None:
    one = planned([count], seed=seed)
    ids = prompts.prompt_token_ids(one, 0, vocab)
    low, high = prompts.safe_ids(vocab)
    assert len(ids) == count
    assert low <= ids.min()
    assert ids.max() < high <= vocab
    assert json.loads(prompts.prompt_json_bytes(one, 0, vocab)) == ids.tolist()


def test_unique_prompts_share_no_block_a_cache_could_hit() -> None:
    many = planned([64] * 500)
    blocks = {tuple(prompts.prompt_token_ids(many, i)[:16].tolist()) for i in range(500)}
    assert len(blocks) == 500


def test_ids_are_spread_evenly() -> None:
    from scipy import stats

    ids = prompts.prompt_token_ids(planned([200_000]), 0, 32_000)
    low, high = prompts.safe_ids(32_000)
    counts, _ = np.histogram(ids, bins=np.linspace(low, high, 101))
    assert stats.chisquare(counts).pvalue > 0.001


def test_turns_of_a_session_begin_with_the_turn_before() -> None:
    talk = planned([100, 70, 260, 400], [5, -1, 5, 5])
    made = [prompts.prompt_token_ids(talk, i) for i in range(4)]
    assert common(made[0], made[2]) == 100
    assert common(made[2], made[3]) == 260
    assert common(made[0], made[1]) < 3


def test_blocks_of_one_id_are_equal_and_others_differ() -> None:
    made = planned([40, 48, 40, 20], blocks=[[1, 2, 3], [1, 2, 9], [8, 2, 3], []])
    a, b, c, d = (prompts.prompt_token_ids(made, i) for i in range(4))
    assert common(a, b) == 32
    assert common(a, c) == 0
    np.testing.assert_array_equal(a[16:32], c[16:32])
    np.testing.assert_array_equal(a[32:40], c[32:40])
    assert common(a, d) < 3
    more = planned([100, 100], blocks=[[1, 2], [1, 2]])
    assert common(*(prompts.prompt_token_ids(more, i) for i in range(2))) == 32


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.lists(st.integers(1, 600), min_size=2, max_size=6))
def test_prefix_share_is_the_share_asked_for(share: float, lengths: list[int]) -> None:
    made = planned(lengths, prefix_share=share)
    ids = [prompts.prompt_token_ids(made, i) for i in range(len(lengths))]
    for i in range(1, len(ids)):
        asked = min(int(lengths[0] * share), int(lengths[i] * share))
        assert asked <= common(ids[0], ids[i]) <= asked + 3


def test_prefix_share_in_a_session_keeps_the_history_a_prefix() -> None:
    made = planned([100, 300, 900, 50], [1, 1, 1, -1], prefix_share=0.5)
    ids = [prompts.prompt_token_ids(made, i) for i in range(4)]
    assert common(ids[0], ids[1]) == 100
    assert common(ids[1], ids[2]) == 300
    assert 25 <= common(ids[0], ids[3]) <= 27


def test_a_shard_in_another_process_makes_the_same_prompts() -> None:
    code = (
        "from wattload import traces; from wattload.schedule import content as prompts; from wattload.schedule.build import build_schedule; "
        "s = build_schedule(traces.load('conv'), rate=5, duration=20, seed=3).shard(1, 3); "
        "print(hash(b''.join(prompts.prompt_json_bytes(s, i) for i in range(len(s)))), s.index.tolist())"
    )
    whole = build_schedule(traces.load("conv"), rate=5, duration=20, seed=3)
    mine = [prompts.prompt_json_bytes(whole, int(i)) for i in whole.shard(1, 3).index]
    code = code.replace("hash(", "__import__('hashlib').sha256(").replace(
        ")), s.index", ")).hexdigest(), s.index"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    import hashlib

    assert out.split()[0] == hashlib.sha256(b"".join(mine)).hexdigest()


def test_a_salt_changes_every_prompt_and_nothing_that_is_shared() -> None:
    for made in (
        planned([100, 300], [1, 1]),
        planned([40, 48], blocks=[[1, 2, 3], [1, 2, 9]]),
        planned([60, 60], prefix_share=0.5),
    ):
        plain, salted = ([prompts.prompt_token_ids(made, i, salt=salt) for i in (0, 1)] for salt in (0, 77))
        assert common(*plain) == common(*salted) > 0
        assert [common(a, b) < 3 for a, b in zip(plain, salted, strict=True)] == [True, True]
    assert prompts.salt_of("a") != prompts.salt_of("b")
    assert 0 <= prompts.salt_of("a") < 2**63


def test_a_vocabulary_that_is_none() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        prompts.safe_ids(8)
