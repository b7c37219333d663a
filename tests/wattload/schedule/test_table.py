# ruff: noqa: E501 - tables of cases
"""The schedule: fixed by the seed, the same for any number of workers, kept by a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import shared_file
from wattload import traces
from wattload.errors import BadInput
from wattload.schedule import tenants
from wattload.schedule.build import build_schedule
from wattload.schedule.parquet import load as load_schedule
from wattload.schedule.parquet import save as save_schedule
from wattload.schedule.table import ARRAYS, Schedule
from wattload.traces.spec import TraceSpec, parse_spec
from wattload.traces.trace import PrefixBlocks, Trace


def trace_of(
    seconds: list[float], session: list[int] | None = None, think: float = 1.0, prompt: list[int] | None = None,
    prefix: PrefixBlocks | None = None,
) -> Trace:  # fmt: skip
    n = len(seconds)
    ids = np.array(session if session is not None else [-1] * n, np.int64)
    return Trace(
        name="t", format="plain", seconds=np.array(seconds, np.float64),
        prompt_tokens=np.array(prompt or [10] * n, np.int32), output_tokens=np.full(n, 5, np.int32),
        session=ids, turn=np.zeros(n, np.int32), think_seconds=np.full(n, think), tag=np.zeros(n, np.int16), prefix=prefix,
    )  # fmt: skip


def same(a: Schedule, b: Schedule) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    assert (a.tags, a.notes, a.horizon_seconds, a.content_base) == (
        b.tags,
        b.notes,
        b.horizon_seconds,
        b.content_base,
    )
    assert (a.prefix_hashes is None) == (b.prefix_hashes is None)
    if a.prefix_hashes is not None and b.prefix_hashes is not None:
        assert [a.prefix_hashes[i] for i in range(len(a))] == [b.prefix_hashes[i] for i in range(len(b))]


def test_the_seed_decides_everything() -> None:
    conv = traces.load("conv")
    one, two, other = (build_schedule(conv, "poisson", rate=20, duration=20, seed=s) for s in (7, 7, 8))
    same(one, two)
    assert not np.array_equal(one.content_seed[:50], other.content_seed[:50])
    assert not np.array_equal(one.due_seconds[:50], other.due_seconds[:50])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 50))
def test_shards_are_an_exact_partition_and_keep_sessions_together(
    sessions: list[int], workers: int, slots: int
) -> None:
    arrivals = f"closed:concurrency={slots}" if slots else "trace"
    whole = build_schedule(trace_of([float(i) for i in range(len(sessions))], sessions), arrivals)
    parts = [whole.shard(w, workers) for w in range(workers)]
    index = np.concatenate([p.index for p in parts])
    assert sorted(index.tolist()) == list(range(len(whole)))
    assert sum(p.closed_concurrency for p in parts) == slots
    owners: dict[int, set[int]] = {}
    for w, part in enumerate(parts):
        assert (np.diff(part.index) > 0).all()
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[part.index])
        for session in part.session[part.session >= 0].tolist():
            owners.setdefault(session, set()).add(w)
    assert all(len(found) == 1 for found in owners.values())


def test_shards_are_even_and_of_real_workers() -> None:
    whole = build_schedule(traces.load("conv"), rate=50, duration=20)
    assert {len(whole.shard(w, 4)) for w in range(4)} == {250}
    for worker, workers in ((4, 4), (-1, 4)):
        with pytest.raises(ValueError, match="worker"):
            whole.shard(worker, workers)


def test_later_turns_wait_for_the_answer_unless_told_otherwise() -> None:
    trace = trace_of([0, 1, 2, 3, 4], [0, 1, 0, -1, 0], think=2.5)
    waits = build_schedule(trace)
    assert waits.turn.tolist() == [0, 0, 1, 0, 2]
    assert np.isnan(waits.due_seconds).tolist() == [False, False, True, False, True]
    assert waits.think_seconds[[2, 4]].tolist() == [2.5, 2.5]
    assert waits.nominal_seconds.tolist() == [0, 1, 2, 3, 4]
    assert len(set(waits.content_seed[[0, 2, 4]].tolist())) == 1
    assert len(set(waits.content_seed.tolist())) == 3
    own = build_schedule(trace, sessions="trace-times")
    assert own.due_seconds.tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(own.think_seconds).all()


def test_too_long_is_an_error_or_is_left_out_and_said() -> None:
    trace = trace_of([0, 1, 2], prompt=[10, 5000, 10])
    with pytest.raises(BadInput, match=r"request 2: 5000 prompt .* limit of 4096; `max_length` drop"):
        build_schedule(trace, max_model_len=4096)
    kept = build_schedule(trace, max_model_len=4096, max_length="drop")
    assert kept.due_seconds.tolist() == [0, 2]
    assert any("1 of 3 requests" in note for note in kept.notes)
    assert len(build_schedule(trace, max_model_len=5005)) == 3
    with pytest.raises(BadInput, match="every request"):
        build_schedule(trace, max_model_len=3, max_length="drop")


def test_too_long_names_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("seconds,prompt_tokens,output_tokens\n0,1,1\n\n1,9000,1\n")
    with pytest.raises(BadInput, match=r"t\.csv, line 4: 9000 prompt"):
        build_schedule(traces.load(path), max_model_len=4096)


def test_a_session_whose_first_turn_was_too_long_starts_with_its_next() -> None:
    trace = trace_of([0, 1, 2], [3, 3, 3], prompt=[5000, 10, 20])
    kept = build_schedule(trace, max_model_len=4096, max_length="drop")
    assert kept.turn.tolist() == [0, 1]
    assert kept.due_seconds[0] == 1


@pytest.mark.parametrize("kind", ["conv", "sessions", "blocks", "texts", "shared", "closed"])
def test_a_file_keeps_it(tmp_path: Path, kind: str) -> None:
    if kind == "sessions":
        planned = build_schedule(trace_of([0, 1, 2], [4, 4, -1]))
    elif kind == "blocks":
        blocks = PrefixBlocks(np.array([1, 2, 9], np.int64), np.array([0, 2, 2, 3], np.int64), 16)
        planned = build_schedule(trace_of([0, 1, 2], prefix=blocks)).take(np.array([1, 2]))
    elif kind == "texts":
        path = tmp_path / "s.json"
        path.write_text('[{"conversations":[{"from":"human","value":"hä"},{"from":"gpt","value":"ho"}]}]')
        planned = build_schedule(traces.load(path), "offline")
    elif kind == "closed":
        planned = build_schedule(traces.load("code"), "closed:concurrency=3", requests=9)
    else:
        share = 0.25 if kind == "shared" else 0.0
        planned = build_schedule(traces.load("conv"), rate=9, duration=9, prefix_share=share, tag="a")
    save_schedule(planned, tmp_path / "schedule.parquet")
    back = load_schedule(tmp_path / "schedule.parquet")
    same(planned, back)
    assert back.closed_concurrency == planned.closed_concurrency
    assert back.texts == planned.texts
    assert (back.shared_tokens is None) == (planned.shared_tokens is None)
    if back.shared_tokens is not None and planned.shared_tokens is not None:
        np.testing.assert_array_equal(back.shared_tokens, planned.shared_tokens)


def test_a_file_that_is_no_schedule(tmp_path: Path) -> None:
    (tmp_path / "schedule.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="is no schedule"):
        load_schedule(tmp_path / "schedule.parquet")


def test_tenants_are_laid_over_each_other() -> None:
    chat = build_schedule(trace_of([0, 2, 4], [0, 0, -1]), tag="chat")
    blocks = PrefixBlocks(np.array([0, 1], np.int64), np.array([0, 1, 2], np.int64), 16)
    code = build_schedule(trace_of([1, 3], [0, -1], prefix=blocks), tag="code", seed=5)
    both = tenants.superposed([chat, code])
    assert both.nominal_seconds.tolist() == [0, 1, 2, 3, 4]
    assert [both.tags[i] for i in both.tag] == ["chat", "code", "chat", "code", "chat"]
    assert both.index.tolist() == [0, 1, 2, 3, 4]
    assert both.session.tolist() == [0, 1, 0, -1, -1]
    assert both.prefix_hashes is not None
    assert [both.prefix_hashes[i] for i in range(5)] == [(), (0,), (), (1,), ()]
    with pytest.raises(BadInput, match="not distinct"):
        tenants.superposed([chat, chat])
    with pytest.raises(BadInput, match="closed"):
        tenants.superposed([chat, build_schedule(trace_of([0]), "closed:concurrency=1", tag="b")])


def test_tenant_specifications(tmp_path: Path) -> None:
    assert parse_spec("conv") == TraceSpec("conv")
    assert parse_spec("conv@5#chat") == TraceSpec("conv", "5", "chat")
    assert parse_spec("a/b.csv@3x") == TraceSpec("a/b.csv", "3x")
    assert parse_spec("code#ide") == TraceSpec("code", None, "ide")
    odd = tmp_path / "odd@1#x"
    odd.write_text("")
    assert parse_spec(str(odd)) == TraceSpec(str(odd))
    for text in ("", "conv#", "conv@fast", "conv@0", "conv@nan"):
        with pytest.raises(BadInput, match="trace"):
            parse_spec(text)


@pytest.mark.parametrize(
    ("said", "options"),
    [("prefix_share", {"prefix_share": 1.5}), ("prefix_share", {"prefix_share": float("nan")}),
     ("sessions", {"sessions": "never"}), ("max_length", {"max_length": "cut"}), ("rate", {"rate": 0})],
)  # fmt: skip
def test_nonsense_options(said: str, options: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=said):
        build_schedule(trace_of([0, 1]), **options)  # type: ignore[arg-type]


def test_prefix_share_is_refused_where_the_trace_says_what_is_shared() -> None:
    blocks = PrefixBlocks(np.array([1], np.int64), np.array([0, 1], np.int64), 16)
    with pytest.raises(BadInput, match="says itself"):
        build_schedule(trace_of([0], prefix=blocks), prefix_share=0.5)


def test_the_real_trace_at_its_own_times_and_at_three_times_its_rate() -> None:
    trace = traces.load(shared_file("traces", "AzureLLMInferenceTrace_conv.csv"))
    own = build_schedule(trace, duration=600)
    fast = build_schedule(trace, rate="3x", duration=600)
    assert len(own) == int((trace.seconds < 600).sum())
    assert len(fast) == int((trace.seconds < 1800).sum())
    np.testing.assert_allclose(fast.due_seconds[: len(own)] * 3, own.due_seconds)
    np.testing.assert_array_equal(own.prompt_tokens, trace.prompt_tokens[: len(own)])


def test_the_horizon_is_the_duration_unless_requests_end_before() -> None:
    conv = traces.load("conv")
    assert build_schedule(conv, "constant", rate=10, duration=30).horizon_seconds == 30
    assert build_schedule(
        conv, "constant", rate=10, duration=30, requests=50
    ).horizon_seconds == pytest.approx(5)
    assert build_schedule(conv, "constant", rate=10, requests=50).horizon_seconds == pytest.approx(5)
    assert build_schedule(trace_of([0, 1, 2]), duration=30).horizon_seconds == pytest.approx(3)
    assert build_schedule(conv, "poisson", rate=10, duration=3, requests=500).horizon_seconds == 3
