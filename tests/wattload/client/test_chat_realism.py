"""Chats as they are: tools, reasoning before the answer, responses that end by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients import ask, client_of, one
from scripted_server import DONE, END, HEAD, Script, chunk, event, scripted, token, usage
from wattload.client.endpoint import RequestOptions
from wattload.client.record import Outcome, RequestRecord
from wattload.errors import InputError


def delta(body: dict[str, Any], finish: str | None = None) -> bytes:
    return chunk(event({"choices": [{"index": 0, "delta": body, "finish_reason": finish}]}))


def ended(*parts: bytes | float, finish: str = "stop", **counts: Any) -> Script:
    return [HEAD, *parts, delta({}, finish), chunk(usage(3, 3, **counts)), chunk(DONE) + END]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_counted_and_timed_apart(name: str) -> None:
    record = ask(
        ended(
            delta({"role": "assistant", "content": ""}),
            delta({name: "let"}),
            delta({"content": None, name: " me"}),
            0.05,
            delta({"content": "42"}),
            delta({"content": "."}),
            completion_tokens_details={"reasoning_tokens": 2},
        ),
        natural_lengths=10,
    )
    assert record.outcome is Outcome.COMPLETED
    assert (record.chunks, record.reasoning_chunks, record.reasoning_tokens) == (4, 2, 2)
    assert record.first_token_unix is not None
    assert record.first_answer_unix is not None
    assert record.first_answer_unix - record.first_token_unix > 0.04
    assert record.last_token_unix is not None
    assert record.first_answer_unix <= record.last_token_unix


def test_an_answer_without_reasoning_has_no_time_of_its_own() -> None:
    record = ask(ended(delta({"content": "42"}), delta({"content": "."})), natural_lengths=10)
    assert (record.reasoning_chunks, record.reasoning_tokens, record.first_answer_unix) == (0, None, None)


def test_reasoning_that_comes_to_no_answer() -> None:
    record = ask(ended(delta({"reasoning": "hm"}), finish="length"), natural_lengths=10)
    assert record.outcome is Outcome.COMPLETED
    assert (record.reasoning_chunks, record.first_answer_unix) == (1, None)


def test_reasoning_between_answers_counts_and_the_first_answer_stays_the_first() -> None:
    parts = [{"reasoning": "a"}, {"content": "b"}, {"reasoning": "c"}, {"content": "d"}]
    record = ask(ended(*(step for part in parts for step in (delta(part), 0.02))), natural_lengths=10)
    assert record.reasoning_chunks == 2
    assert record.first_answer_unix is not None
    assert record.last_token_unix is not None
    assert record.last_token_unix - record.first_answer_unix > 0.03


def call(index: int, **function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": function}]}


def test_tool_calls_are_streamed_as_tokens_and_counted() -> None:
    record = ask(
        ended(
            delta({"role": "assistant", "content": None}),
            delta(call(0, name="look", arguments="")),
            0.03,
            delta(call(0, arguments='{"a"')),
            delta(call(0, arguments=": 1}")),
            delta(call(1, name="look", arguments="{}")),
            finish="tool_calls",
        ),
        natural_lengths=10,
    )
    assert record.outcome is Outcome.COMPLETED
    assert (record.tool_calls, record.chunks, record.output_tokens) == (2, 4, 3)
    assert record.itl_seconds[0] > 0.02


def test_a_tool_call_after_reasoning_is_the_answer() -> None:
    record = ask(
        ended(delta({"reasoning": "a"}), 0.03, delta(call(0, name="look")), finish="tool_calls"),
        natural_lengths=10,
    )
    assert record.first_answer_unix is not None
    assert record.tool_calls == 1


@pytest.mark.parametrize(
    ("part", "calls"),
    [
        ({"function_call": {"name": "look"}}, 1),
        ({"tool_calls": [{"function": {"name": "a"}}, {"function": {"name": "b"}}]}, 2),
        ({"tool_calls": [{"index": 3}]}, 4),
        ({"tool_calls": [{"index": -1}]}, 1),
        ({"tool_calls": "odd", "content": "x"}, None),
    ],
)
def test_tool_calls_in_other_shapes(part: dict[str, Any], calls: int | None) -> None:
    assert ask(ended(delta(part), finish="tool_calls"), natural_lengths=10).tool_calls == calls


def test_responses_that_end_by_themselves_are_no_short_ones() -> None:
    script: Script = [HEAD, chunk(token("a", "stop")), chunk(usage(3, 1)), chunk(DONE) + END]
    assert ask(script, natural_lengths=50).outcome is Outcome.COMPLETED
    assert ask(script).outcome is Outcome.SHORT_OUTPUT


def sent(**options: Any) -> dict[str, Any]:
    client = client_of("http://127.0.0.1:9", **options)
    raw = client.prepare(RequestRecord(0, "r", -1, "", 0.0, 3, 17), b"[1,2,3]")
    client.close()
    body: dict[str, Any] = json.loads(raw.partition(b"\r\n\r\n")[2])
    return body


def test_what_is_sent_for_natural_lengths() -> None:
    body = sent(natural_lengths=400)
    assert body["max_tokens"] == 400
    assert not {"min_tokens", "ignore_eos"} & body.keys()
    both = sent(natural_lengths=400, output_limit="max_completion_tokens")
    assert both["max_completion_tokens"] == 400
    assert "max_tokens" not in both


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def test_tools_and_formats_come_from_the_body_or_its_file(tmp_path: Path) -> None:
    given = {"tools": TOOLS, "stop": ["\n"], "response_format": {"type": "json_object"}, "top_k": 5}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(given))
    for body in (json.dumps(given), f"@{path}"):
        options = RequestOptions.of({"body": body, "natural_lengths": "10"})
        assert options.body == given
        assert options.notes == []
    assert {name: sent(body=given)[name] for name in given} == given
    with scripted(lambda request: ended(delta({"content": str(len(request["tools"]))}))) as (url, seen):
        client = client_of(url, api="chat", body=given, natural_lengths=10)
        assert one(client, prompt=b'[{"role":"user","content":"hi"}]').outcome is Outcome.COMPLETED
        client.close()
    assert seen.requests[0]["response_format"] == {"type": "json_object"}


def test_forced_lengths_and_what_would_end_a_response_are_noted() -> None:
    (note,) = RequestOptions.of({"body": {"stop": ["x"], "tools": TOOLS}}).notes
    assert "stop, tools" in note
    assert "--natural-lengths" in note
    assert RequestOptions.of({"body": {"temperature": 1}}).notes == []
    assert RequestOptions.of({"body": {"stop": ["x"]}, "exact_output": False}).notes == []


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    for content in ("[1]", "{", '{"prompt": 1}'):
        path.write_text(content)
        with pytest.raises(InputError, match="body"):
            RequestOptions.of({"body": f"@{path}"})
