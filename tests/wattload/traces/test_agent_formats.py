"""Readers of agents' traces: which turn waits for which, for how long, and what is no such file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattload import traces
from wattload.errors import InputError
from wattload.traces.catalog import CATALOG
from wattload.traces.describe import ImageStatistics, statistics_of
from wattload.traces.parents import Parents
from wattload.traces.reading.turns import Turn, waited_for
from wattload.traces.trace import Trace


def written(folder: Path, content: object, name: str = "t.json") -> Path:
    path = folder / name
    lines = content if isinstance(content, list) else [content]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def waits(trace: Trace) -> list[tuple[int, ...]]:
    parents = trace.parents
    assert isinstance(parents, Parents)
    return [parents[i] for i in range(len(parents))]


def close(trace: Trace, seconds: list[float | None]) -> bool:
    expected = np.array([np.nan if each is None else each for each in seconds])
    return bool(np.allclose(trace.think_seconds, expected, atol=1e-6, equal_nan=True))


def turn(start: float, end: float, agent: tuple[str, ...] = ()) -> Turn:
    return Turn("s", agent, start, end, 10, 5, False, 1)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        pytest.param([turn(0, 1), turn(2, 3), turn(3, 4)], [[], [0], [1]], id="one after the other"),
        pytest.param(
            [turn(0, 1), turn(2, 5), turn(3, 4), turn(6, 7)], [[], [0], [0], [1, 2]], id="branch and join"
        ),
        pytest.param([turn(0, 2), turn(1, 3), turn(4, 5)], [[], [], [1, 0]], id="two beginnings"),
        pytest.param(
            [turn(0, 1), turn(1, 2, ("a",)), turn(3, 4, ("a",)), turn(5, 6)],
            [[], [0], [1], [0, 2]],
            id="a sub-agent is waited for to its end",
        ),
        pytest.param(
            [turn(0, 1), turn(1, 2, ("a",)), turn(2.5, 3), turn(4, 5, ("a",)), turn(6, 7), turn(8, 9)],
            [[], [0], [0], [1], [2, 3], [4]],
            id="an agent that goes on beside its sub-agent waits once for it",
        ),
        pytest.param(
            [
                turn(0, 1),
                turn(1, 3, ("a",)),
                turn(1, 4, ("b",)),
                turn(5, 6, ("b", "c")),
                turn(7, 8, ("b",)),
                turn(9, 10),
            ],
            [[], [0], [0], [2], [2, 3], [0, 4, 1]],
            id="sub-agents of sub-agents",
        ),
    ],
)
def test_what_a_turn_waited_for(turns: list[Turn], expected: list[list[int]]) -> None:
    assert waited_for(turns) == expected


def plainly_waited_for(turns: list[Turn]) -> list[list[int]]:
    """The same rule, each turn held against every other."""
    last = {turn.agent: at for at, turn in enumerate(turns)}
    found: list[list[int]] = []

    def gone_on(i: int, when: float) -> bool:
        own = turns[i].agent
        followers = (turns[c] for c, waits in enumerate(found) if i in waits)
        return any(c.end <= when and own[: len(c.agent)] == c.agent for c in followers)

    for at, turn in enumerate(turns):
        ended = [i for i in range(at) if turns[i].end <= turn.start and not gone_on(i, turn.start)]
        waits: list[int] = []
        for length in range(len(turn.agent), -1, -1):
            scope = turn.agent[:length]
            for i in ended:
                own = turns[i].agent
                if own == scope or (own[:length] == scope and i == last[own]):
                    waits.append(i)
            if waits:
                break
        found.append(sorted(waits, key=lambda i: (turns[i].agent != turn.agent, -turns[i].end)))
    return found


MOMENT = st.integers(0, 8).map(float)
AGENTS = st.sampled_from([(), ("a",), ("b",), ("a", "x"), ("a", "y")])


@given(st.lists(st.tuples(MOMENT, st.integers(0, 4), AGENTS), min_size=1, max_size=14))
def test_the_rule_holds_however_turns_overlap(drawn: list[tuple[float, int, tuple[str, ...]]]) -> None:
    turns = [turn(start, start + length, agent) for start, length, agent in drawn]
    turns.sort(key=lambda each: (each.start, each.end))
    assert waited_for(turns) == plainly_waited_for(turns)


class Counted(float):
    """A moment that counts how often it is held against another."""

    asked = 0

    def _less(self, other: float, *, equal: bool) -> bool:
        type(self).asked += 1
        return float(self) < float(other) or (equal and float(self) == float(other))

    def __lt__(self, other: float) -> bool:
        return self._less(other, equal=False)

    def __le__(self, other: float) -> bool:
        return self._less(other, equal=True)

    def __gt__(self, other: float) -> bool:
        return not self._less(other, equal=True)

    def __ge__(self, other: float) -> bool:
        return not self._less(other, equal=False)


@pytest.mark.parametrize("kind", ["sub-agents", "branches", "open requests"])
def test_turns_are_not_held_against_all_others(kind: str) -> None:
    """Twice as many turns are looked at twice as often, and a little more: not four times."""
    looked = []
    for count in (200, 400):
        turns = [turn(Counted(0.0), Counted(1.0))]
        for number in range(count):
            if kind == "sub-agents":
                turns += [turn(Counted(1.0 + k), Counted(1.5 + k), (f"{number}",)) for k in (0.0, 1.0, 2.0)]
            elif kind == "branches":
                turns.append(turn(Counted(2.0), Counted(3.0)))
            else:
                turns.append(turn(Counted(number + 2.0), Counted(1e6)))
        turns.sort(key=lambda each: (float(each.start), float(each.end)))
        Counted.asked = 0
        waited_for(turns)
        looked.append(Counted.asked)
    assert looked[1] < 3 * looked[0], looked


def request(t: float, *, took: float | None = 1.0, asked: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"t": t, "type": "n", "model": "m", "in": 100, "out": 10, "hash_ids": [1, 2]}
    found |= {} if took is None else {"api_time": took}
    return found | ({} if asked is None else {"input_types": [asked]}) | more


def test_a_folder_of_sessions_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    loads = json.loads

    def counting(text: str | bytes, **more: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **more)

    folder = tmp_path / "sessions"
    folder.mkdir()
    for number in range(5):
        written(folder, session(request(0.0), request(3.0)), f"{number}.json")
    monkeypatch.setattr(json, "loads", counting)
    assert len(traces.load(folder)) == 10
    assert len(parsed) == 5


@pytest.mark.parametrize("before", ["", "\n\n", "\ufeff"], ids=["plain", "blank lines", "byte order mark"])
@pytest.mark.parametrize("packed", [False, True])
def test_one_session_is_the_same_however_its_file_is_written(
    tmp_path: Path, before: str, packed: bool
) -> None:
    talk = session(request(0.0, asked="text"), request(3.0, asked="tool_result"))
    bad = session(request(0.0), request(3.0) | {"in": "many"})
    whole = traces.load(written(tmp_path, [talk, talk], "two.json"))
    for name, content, after in (("t.json", talk, ""), ("t2.json", talk, "\n \n\n"), ("bad.json", bad, "\n")):
        raw = (before + json.dumps(content) + after).encode()
        path = tmp_path / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)
        if content is bad:
            with pytest.raises(InputError, match=rf"line {before.count(chr(10)) + 1}: in 'many'"):
                traces.load(path)
            continue
        trace = traces.load(path)
        assert waits(trace) == waits(whole)[:2]
        assert trace.prompt_tokens.tolist() == whole.prompt_tokens.tolist()[:2]


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (5, "requests is not a list"),
        ({"t": 0}, "requests is not a list"),
        ("x", "requests is not a list"),
        ([5], "request 1 is not an object"),
        ([{"t": "a"}, {"t": 1.0}], "t 'a' is not a number of seconds"),
        ([{"t": None}], "t None is not a number of seconds"),
        ([{"t": [1]}], r"t \[1\] is not a number of seconds"),
        ([{"type": "n"}], "t None is not a number of seconds"),
    ],
)
def test_requests_of_a_sub_agent_that_are_none(tmp_path: Path, inner: object, said: str) -> None:
    path = written(tmp_path, session(request(0.0), SUBAGENT | {"requests": inner}, request(9.0)))
    with pytest.raises(InputError, match=f"line 1: {said}"):
        traces.load(path)


@pytest.mark.parametrize("asked", [5, 1.5, True, "tool_result", {"tool_result": 1}])
def test_kinds_of_input_that_are_no_list(tmp_path: Path, asked: object) -> None:
    path = written(tmp_path, session(request(0.0), request(3.0) | {"input_types": asked}))
    with pytest.raises(InputError, match="line 1: input_types of request 2 is not a list"):
        traces.load(path)


@pytest.mark.parametrize("asked", [None, []])
def test_kinds_of_input_that_are_not_told(tmp_path: Path, asked: object) -> None:
    talk = session(request(0.0, stop="tool_use"), request(3.0) | {"input_types": asked})
    assert traces.load(written(tmp_path, talk)).tool.tolist() == [False, True]


@pytest.mark.parametrize("blocks", [[1, True], [1, -1], [1.0], ["1"], "12", [1 << 40], [None], 5, [[1]]])
def test_ids_of_blocks_that_are_none(tmp_path: Path, blocks: object) -> None:
    path = written(tmp_path, session(request(0.0), request(3.0) | {"hash_ids": blocks}))
    with pytest.raises(InputError, match="hash_ids of request 2 is not a list of whole numbers"):
        traces.load(path)


def session(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "x", "models": ["m"], "block_size": 64, "requests": list(requests)} | more


SUBAGENT = {"type": "subagent", "t": 2.0, "agent_id": "a"}


@pytest.mark.parametrize("parquet", [False, True], ids=["json", "parquet"])
@pytest.mark.parametrize("inner", [[0.5, 3.0], [2.5, 5.0]], ids=["its own clock", "the session's clock"])
def test_a_weka_session_waits_for_its_subagents(tmp_path: Path, inner: list[float], parquet: bool) -> None:
    talk = session(
        request(0.0, asked="text"),
        SUBAGENT | {"requests": [request(t, asked="text") for t in inner]},
        request(8.0, asked="tool_result"),
        request(12.0, asked="text"),
    )
    path = tmp_path / "t.parquet"
    if parquet:
        pq.write_table(pa.Table.from_pylist([talk]), path)
    else:
        path = written(tmp_path, talk)
    trace = traces.load(path)
    assert trace.format == "weka"
    assert waits(trace) == [(), (0,), (1,), (0, 2), (3,)]
    assert close(trace, [None, 1.5, 1.5, 2.0, 3.0])
    assert trace.agent.tolist() == [0, 1, 1, 0, 0]
    assert trace.tool.tolist() == [False, True, True, True, False]
    assert not trace.timed
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 64
    assert trace.licence == "Apache-2.0"


def test_what_weka_sessions_leave_out(tmp_path: Path) -> None:
    lines = [
        session(request(0, took=None, stop="tool_use"), request(4, took=None), request(9, took=None, out=0)),
        session(request(0), request(3)),
    ]
    trace = traces.load(written(tmp_path, lines, "t.jsonl"))
    assert waits(trace) == [(), (0,), (), (2,)]
    assert trace.tool.tolist() == [False, True, False, False]
    assert trace.think_seconds[1] == 4.0
    assert any("api_time" in note for note in trace.notes)
    assert any("left out" in note for note in trace.notes)
    assert trace.prefix is not None
    assert trace.prefix[0] != trace.prefix[2], "the same id of another session is another block"


def test_a_folder_of_weka_sessions_is_one_trace(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path, session(request(0), request(2 + number, asked="tool_result")), f"{number}.json")
    trace = traces.load(tmp_path)
    assert waits(trace) == [(), (0,), (), (2,), (), (4,)]
    assert len(set(trace.session.tolist())) == 3
    assert close(trace, [None, 1, None, 2, None, 3])
    assert trace.prefix is not None
    assert len({trace.prefix[i] for i in range(6)}) == 3


ANY = "gen_ai.operation.name"


def span(
    name: str, start: float, end: float, parent: str = "", *, trace: str = "t1", **attributes: Any
) -> dict[str, Any]:
    """A span called `name`; `op`, `tokens` (prompt, output) and others become its attributes."""
    found: dict[str, Any] = {}
    if "op" in attributes:
        found[ANY] = {"stringValue": attributes.pop("op")}
    if "tokens" in attributes:
        prompt, output = attributes.pop("tokens")
        found["gen_ai.usage.input_tokens"] = {"intValue": str(prompt)}
        found["gen_ai.usage.output_tokens"] = {"intValue": output}
    found |= {
        f"gen_ai.{key.replace('_', '.', 1)}": {"stringValue": value} for key, value in attributes.items()
    }
    return {
        "traceId": trace, "spanId": name, "parentSpanId": parent, "name": name,
        "startTimeUnixNano": str(int(1.7e18) + round(start * 1e9)),
        "endTimeUnixNano": str(int(1.7e18) + round(end * 1e9)),
        "attributes": [{"key": key, "value": value} for key, value in found.items()],
    }  # fmt: skip


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def asks(name: str, start: float, end: float, parent: str = "", **more: Any) -> dict[str, Any]:
    return span(name, start, end, parent, op="chat", tokens=(100, 10), **more)


RESEARCH = [
    span("root", 0, 30, op="invoke_agent", agent_name="lead", conversation_id="c1"),
    asks("plan", 0, 2, "root"),
    span("search", 2, 4, "root", op="execute_tool"),
    span("left", 4, 9, "root", op="invoke_agent", agent_name="reader"),
    asks("l1", 4.5, 6, "left"),
    asks("l2", 7, 9, "left"),
    span("right", 4, 12, "root", op="invoke_agent", agent_name="reader"),
    asks("r1", 5, 12, "right"),
    asks("sum", 13, 15, "root"),
    span("again", 60, 70, trace="t2", op="invoke_agent", agent_name="lead", conversation_id="c1"),
    asks("more", 61, 65, "again", trace="t2"),
]


@pytest.mark.parametrize("shape", ["one line", "several lines", "an export a line", "gz"])
def test_spans_of_agents_become_a_graph(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "spans.json"
    if shape == "several lines":
        path.write_text(json.dumps(export(*RESEARCH), indent=2))
    elif shape == "gz":
        path = tmp_path / "spans.json.gz"
        path.write_bytes(gzip.compress(json.dumps(export(*RESEARCH)).encode()))
    else:
        written(
            tmp_path,
            [export(s) for s in RESEARCH] if shape != "one line" else export(*RESEARCH),
            "spans.json",
        )
    trace = traces.load(path)
    assert trace.format == "otel"
    assert trace.seconds.tolist() == [0, 4.5, 5, 7, 13, 61]
    assert waits(trace) == [(), (0,), (0,), (1,), (0, 2, 3), (4,)]
    assert close(trace, [None, 2.5, 3, 1, 1, 46])
    assert trace.agent.tolist() == [0, 1, 2, 1, 0, 0]
    assert trace.tool.tolist() == [False, True, True, True, True, False]
    agents = statistics_of(trace).agents
    assert agents is not None
    assert (agents.agents_per_session, agents.branches, agents.joins, agents.tool_turns) == (3, 1, 1, 4)
    assert agents.tool_seconds_p50 == pytest.approx(1.75)
    assert len(set(trace.session.tolist())) == 1


def test_agents_of_two_tasks_are_apart_though_their_spans_are_called_alike(tmp_path: Path) -> None:
    spans = []
    for task, begin in (("t1", 0), ("t2", 100)):
        talk = {"agent_name": "lead", "conversation_id": "c"}
        spans += [
            span("root", begin, begin + 20, trace=task, op="invoke_agent", **talk),
            asks("plan", begin, begin + 2, "root", trace=task),
            span("reader", begin + 3, begin + 9, "root", trace=task, op="invoke_agent"),
            asks("read", begin + 4, begin + 9, "reader", trace=task),
            asks("sum", begin + 10, begin + 12, "root", trace=task),
        ]
    trace = traces.load(written(tmp_path, export(*spans)))
    assert waits(trace) == [(), (0,), (0, 1), (2,), (3,), (3, 4)]
    assert trace.agent.tolist() == [0, 1, 0, 0, 2, 0]
    assert trace.tool.tolist() == [False, True, True, False, True, True]


def test_requests_in_requests_and_without_counts_are_passed_over_with_a_note(tmp_path: Path) -> None:
    spans = [
        asks("outer", 0, 4),
        asks("inner", 1, 3, "outer"),
        span("legacy", 5, 6, trace="t2"),
        span("failed", 7, 8, op="chat"),
        span("embedded", 8, 9, op="embeddings"),
    ]
    spans[2]["attributes"] = [
        {"key": f"gen_ai.usage.{name}_tokens", "value": {"intValue": "7"}}
        for name in ("prompt", "completion")
    ]
    trace = traces.load(written(tmp_path, export(*spans)))
    assert trace.seconds.tolist() == [0, 4]
    assert trace.prompt_tokens.tolist() == [100, 7]
    assert sorted(trace.notes) == [
        "requests that hold others, passed over: 1",
        "requests without token counts, passed over: 1",
    ]


def event(kind: str, second: float) -> dict[str, Any]:
    return {"event_type": kind, "timestamp": f"2026-06-01T05:40:{second:06.3f}Z"}


def call(number: int, *events: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "session_id": name, "round_index": number, "input_tokens_total": 100 + number, "output_tokens": 9,
        "timing_events": list(events),
    } | more  # fmt: skip


def test_tracelab_calls_follow_their_tools_and_users(tmp_path: Path) -> None:
    lines = [
        call(0, event("user_message", 10), event("text", 12), event("tool_call", 13)),
        call(1, event("tool_result", 14), event("tool_result", 15.5), event("reasoning", 16)),
        call(2, event("user_message", 20), event("usage_report", 21), event("text", 22)),
        call(0, event("user_message", 11), event("text", 12), name="b"),
        call(1, event("user_message", 40), name="b"),
    ]
    trace = traces.load(written(tmp_path, lines, "t.jsonl"))
    assert trace.format == "tracelab"
    assert trace.seconds.tolist() == [0, 1, 5.5, 10]
    assert waits(trace) == [(), (), (0,), (2,)]
    assert close(trace, [None, None, 2.5, 4])
    assert trace.tool.tolist() == [False, False, True, False]
    assert trace.notes == ("calls without times of both question and answer, passed over: 1",)
    assert trace.licence == "CC-BY 4.0"


def test_bailian_questions_asked_again_are_branches(tmp_path: Path) -> None:
    keys = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "type", "turn")
    rows = [(1, -1, 0.0), (2, 1, 1.0), (3, 1, 2.0), (4, 3, 3.0), (5, 99, 4.0)]
    lines = [dict(zip(keys, (*row, 30, 5, "text", 1), strict=True)) | {"hash_ids": [1, 2]} for row in rows]
    trace = traces.load(written(tmp_path, lines, "b.jsonl"))
    assert waits(trace) == [(), (0,), (0,), (2,), ()]
    assert not trace.tool.any()


def test_the_multimodal_trace_has_its_numbers_of_images(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:01.5,2,900,20\n"
        "2024-10-15 00:00:02.5,0,100,10\n"
    )
    trace = traces.load(path)
    assert trace.format == "azure"
    assert trace.prompt_tokens.tolist() == [900, 100]
    assert trace.images is not None
    assert trace.images.tolist() == [2, 0]
    assert trace.notes == ()
    assert "ModServe" in trace.citation
    assert statistics_of(trace).images == ImageStatistics(requests=1, images=2, most=2)


def test_the_tool_and_agent_trace_of_mooncake_is_read_as_its_others(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [1, 3]},
    ]
    assert traces.load(written(tmp_path, lines, "toolagent.jsonl")).format == "mooncake"
    names = {public.name: public for public in CATALOG}
    added = "mooncake-toolagent azure-2025-multimodal tracelab weka-subagents bailian-chat bailian-api"
    for name in added.split():
        assert names[name].licence
        assert names[name].citation


WRONG: list[tuple[str, object, str]] = [
    ("no requests", session(), "line 1: holds no request|holds no request of type"),
    ("requests no list", session() | {"requests": 3}, "line 1: requests is not a list"),
    ("a request that is none", session() | {"requests": [3]}, "line 1: request 1 is not an object"),
    ("another type", session(request(0) | {"type": "z"}), "line 1: request 1 is of type 'z'"),
    ("no time", session(request(0) | {"t": None}), "line 1: t None is not a number"),
    ("a count that is none", session(request(0) | {"in": "9"}), "line 1: in '9' is not a whole number"),
    ("blocks that are none", session(request(0) | {"hash_ids": ["a"]}), "line 1: hash_ids of request 1"),
    ("two sizes", [session(request(0)), session(request(0), block_size=16)], "block_size 16 and 64"),
    ("a block of nothing", session(request(0), block_size=0), "line 1: block_size 0"),
    ("too many tokens", session(request(0) | {"in": 10**30}), "line 1: in .* longer than any model"),
    ("too many of a span", export(span("a", 0, 1, op="chat", tokens=(10**30, 5))), "longer than any model"),
    ("too many of a call", call(0, event("text", 1), input_tokens_total=10**30), "longer than any model"),
    ("no spans", export(), "holds no span of a request"),
    ("spans of no requests", export(span("a", 0, 1, op="chat")), "requests without token counts: 1"),
    ("a span without a time", export({"traceId": "1", "spanId": "2"}), "'startTimeUnixNano' is missing"),
    (
        "a time without end",
        export(span("a", 0, 1, op="chat") | {"startTimeUnixNano": float("inf")}),
        "line 1: no spans of OTLP JSON",
    ),
    ("spans that are no list", {"resourceSpans": 3}, "line 1: no spans of OTLP JSON"),
    ("no answer", call(0, event("user_message", 1)), "no line has timing_events"),
    ("a time that is none", call(0, {"event_type": "text", "timestamp": "x"}), "line 1: timestamp 'x'"),
    ("events that are none", call(0) | {"timing_events": 3}, "line 1: timing_events is not a list"),
    ("another document", {"spans": []}, "no known trace begins with spans"),
]


@pytest.mark.parametrize(("content", "said"), [pytest.param(c, s, id=n) for n, c, s in WRONG])
def test_a_file_that_is_wrong_is_one_sentence(tmp_path: Path, content: object, said: str) -> None:
    path = written(tmp_path, content, "wrong.jsonl")
    with pytest.raises(InputError, match=said) as refused:
        traces.load(path)
    assert "\n" not in str(refused.value)
    assert "wrong.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"), [('{\n "a": 1,\n', "line"), ('{\n "a": 1\n}\n', "one object a line is needed")]
)
def test_one_object_over_several_lines_is_told_apart(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        traces.load(path)


def test_a_folder_without_sessions_and_one_of_timed_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory without files"):
        traces.load(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        written(tmp_path, call(0, event("user_message", 1), event("text", 2)), name)
    with pytest.raises(InputError, match="name one"):
        traces.load(tmp_path)
