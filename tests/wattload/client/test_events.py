"""Which events carry tokens; and that the short cut never says other than a full reading."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload.client.events import (
    EventError,
    StreamEvent,
    body_error,
    error_text,
    is_plain_token,
    merged_usage,
    quoted,
    read_event,
    read_line,
    token_count,
)


def text(value: str | None, finish: str | None = None, **more: object) -> bytes:
    return json.dumps(
        {"choices": [{"text": value, "finish_reason": finish}], **more}, separators=(",", ":")
    ).encode()


def delta(value: dict[str, object], finish: str | None = None) -> bytes:
    return json.dumps(
        {"choices": [{"delta": value, "finish_reason": finish}]}, separators=(",", ":")
    ).encode()


TOKEN, BLANK, NOTHING = "token", "blank", "nothing"


def kind_of(event: StreamEvent) -> str:
    return TOKEN if event.token else BLANK if event.blank else NOTHING


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (text("a"), TOKEN),
        (text(" "), TOKEN),
        (text(""), BLANK),  # half a character, a special token, or a sign of life
        (text("", "length"), NOTHING),
        (text("a", "length"), TOKEN),
        (text(None), NOTHING),
        (delta({"role": "assistant", "content": ""}), NOTHING),
        (delta({"role": "assistant", "content": "a"}), TOKEN),
        (delta({"role": "", "content": "a"}), TOKEN),
        (delta({"role": "", "content": ""}), BLANK),
        (delta({"content": "a"}), TOKEN),
        (delta({"content": ""}), BLANK),
        (delta({"content": ""}, "stop"), NOTHING),
        (delta({"content": ""}, ""), BLANK),  # a reason that is still to come, as some gateways write it
        (delta({}, "stop"), NOTHING),
        (delta({"reasoning_content": "hm"}), TOKEN),
        (delta({"content": "", "reasoning_content": "hm"}), TOKEN),
        (delta({"content": None, "reasoning": "hm"}), TOKEN),
        (delta({"reasoning_content": ""}), BLANK),
        (delta({"tool_calls": [{"index": 0}]}), TOKEN),
        (delta({"tool_calls": [], "content": None}), NOTHING),
        (delta({"refusal": "no"}), TOKEN),
        (delta({"content": None}), NOTHING),
        (b'{"choices":[{"delta":null,"finish_reason":null}]}', NOTHING),
        (b'{"choices":[{"message":{"role":"assistant","content":"all of it"}}]}', TOKEN),
        (b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}', NOTHING),
    ],
)
def test_what_an_event_carries(payload: bytes, kind: str) -> None:
    assert kind_of(read_event(payload)) == kind
    assert not is_plain_token(payload) or kind == TOKEN


def test_reasoning_is_told_from_the_answer() -> None:
    assert read_event(delta({"reasoning_content": "hm"})).reasoning
    assert read_event(delta({"content": "", "reasoning": "hm"})).reasoning
    assert not read_event(delta({"content": "a", "reasoning": "hm"})).reasoning
    assert not read_event(delta({"content": "a"})).reasoning


def test_the_short_cut_is_taken_for_what_vllm_sends() -> None:
    assert is_plain_token(text("a"))
    assert is_plain_token(delta({"content": "a"}))


@pytest.mark.parametrize("whole", ["é", "字", "🙂"])
def test_half_a_character_is_no_token_and_a_whole_one_is(whole: str) -> None:
    raw = whole.encode()
    assert is_plain_token(text("@").replace(b"@", raw))
    for cut in (raw[:-1], raw[1:]):
        payload = text("@").replace(b"@", cut)
        assert not is_plain_token(payload)
        with pytest.raises(EventError, match="not JSON"):
            read_event(payload)


def test_usage_and_finish() -> None:
    event = read_event(text("x", "length", usage={"completion_tokens": 3}))
    assert (event.finish, event.usage) == ("length", {"completion_tokens": 3})
    assert not is_plain_token(text("x", None, usage={"completion_tokens": 3}))


COUNTS = {"prompt_tokens": 3, "completion_tokens": 2}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [], "usage": COUNTS},
        {"choices": None, "usage": COUNTS},
        {"choices": {}, "usage": COUNTS},
        {"usage": COUNTS},
        {"object": "text_completion", "choices": [{"text": "", "finish_reason": "stop"}], "usage": COUNTS},
        {"choices": [{"delta": {}, "finish_reason": "stop", "usage": COUNTS}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None, "x_groq": {"usage": COUNTS}},
    ],
)
def test_usage_is_found_wherever_it_stands(body: dict[str, object]) -> None:
    event = read_event(json.dumps(body).encode())
    assert event.usage == COUNTS
    assert not event.unread


@pytest.mark.parametrize(
    "payload", [b"{", b'{"choices":3}', b'{"choices":[1]}', b'{"choices":[', b"[1", b"\xff\xfe"]
)
def test_what_may_be_a_damaged_completion_is_refused(payload: bytes) -> None:
    assert not is_plain_token(payload)
    with pytest.raises(EventError):
        read_event(payload)


@pytest.mark.parametrize(
    "payload", [b"", b" ", b"\r", b'{"choices":[]}', b'{"choices":[],"prompt_filter_results":[]}']
)
def test_what_says_nothing_is_passed_over(payload: bytes) -> None:
    assert read_event(payload) == StreamEvent()


@pytest.mark.parametrize(
    "payload",
    [
        b"null",
        b'"x"',
        b"{}",
        b"[1]",
        b"7",
        b"ping",
        b"keep-alive",
        b'{"type":"ping"}',
        b'{"status":"queued"}',
    ],
)
def test_what_is_not_understood_is_passed_over_and_named_so(payload: bytes) -> None:
    assert not is_plain_token(payload)
    assert read_event(payload) == StreamEvent(unread=True)


@pytest.mark.parametrize("payload", [b"[DONE]", b" [DONE]", b"[DONE]\r", b'"[DONE]"'])
def test_the_end_of_the_stream(payload: bytes) -> None:
    assert read_event(payload) == StreamEvent(done=True)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":{"message":"out of memory","code":500}}',
        b'{"error":"out of memory"}',
        b'{"object":"error","message":"out of memory","code":500}',
        b'{"object":"error","choices":[],"message":"out of memory"}',
        b'{"type":"error","error":{"type":"overloaded","message":"out of memory"}}',
        b'{"type":"error","msg":"out of memory"}',
        b'{"error":{"detail":"out of memory"}}',
        b'{"choices":[{"delta":{},"error":{"message":"out of memory"},"finish_reason":"error"}]}',
    ],
)
def test_errors_in_mid_stream(payload: bytes) -> None:
    assert read_event(payload).error == "out of memory"
    assert not is_plain_token(payload)


@pytest.mark.parametrize("none", ["null", "false", '""', "{}"])
def test_an_error_that_is_none_is_none(none: str) -> None:
    payload = b'{"choices":[{"text":"a","finish_reason":null}],"error":%s}' % none.encode()
    assert read_event(payload) == StreamEvent(token=True)


def test_errors_in_other_words() -> None:
    assert read_event(b"Internal Server Error").error == "Internal Server Error"
    assert read_event(b'{"choices":[{"text":"","finish_reason":"abort"}]}').error == "finish reason abort"
    assert read_line(b'error: {"code":400,"message":"too long"}').error == "too long"
    assert read_line(b"error:").error == "error"
    assert read_line(b'{"error":"too long"}').error == "too long"
    assert read_line(b"upstream error").error == "upstream error"
    assert read_line(b"<html>") == StreamEvent(unread=True)
    assert read_line(text("a")) == StreamEvent(unread=True), "no field of the stream, so no token"


def test_what_is_quoted_is_short_and_printable() -> None:
    assert quoted(b"ping") == "ping"
    assert quoted(b"a\n\tb\x00\x1b[31m\xff") == "a b\ufffd\ufffd[31m\ufffd"
    assert len(quoted(b"x" * 10_000)) == 120


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([COUNTS, {"total_tokens": 0, "total_characters": 0}], (3, 2)),
        ([COUNTS, {"prompt_tokens": 0, "completion_tokens": 0}], (3, 2)),
        ([COUNTS, {"prompt_tokens": None, "completion_tokens": None}], (3, 2)),
        ([{"completion_tokens": 1}, {"completion_tokens": 2, "prompt_tokens": 3}], (3, 2)),
        ([{"prompt_tokens": 0, "completion_tokens": 0}], (0, 0)),
        ([{"completion_tokens": "2"}, {"prompt_tokens": 3.0}], (3, 2)),
        ([{"completion_tokens": "many", "prompt_tokens": -1}], (None, None)),
    ],
)
def test_counts_are_not_lost_to_a_later_report(
    reports: list[dict[str, Any]], expected: tuple[Any, Any]
) -> None:
    usage = None
    for report in reports:
        usage = merged_usage(usage, report)
    assert usage is not None
    assert (token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))) == expected


def test_details_of_counts_are_kept_and_energy_is_the_latest() -> None:
    first = {
        "prompt_tokens_details": {"cached_tokens": 2},
        "energy": {"joules": 3.0, "status": "provisional"},
    }
    later = {"prompt_tokens_details": {}, "energy": {"joules": 2.5, "status": "settled"}}
    merged = merged_usage(first, later)
    assert merged["prompt_tokens_details"] == {"cached_tokens": 2}
    assert merged["energy"] == {"joules": 2.5, "status": "settled"}


def test_error_bodies() -> None:
    assert body_error(b'{"detail":"no such model"}') == "no such model"
    assert body_error(b"<html>\n <b>502</b></html>") == "<html> <b>502</b></html>"
    assert len(body_error(b"x" * 100_000)) == 16_384
    assert body_error(b'{"error":' * 100_000) != ""
    assert error_text({"message": {"detail": {"error": "deep"}}}) == "deep"


# Text that tries to look like the structure around it.
TEXT = st.text(max_size=12) | st.sampled_from(
    ['","role":"', '"finish_reason":null', '"text":"', '"usage":{', '{"error"', "\\", '\\"role":']
)
FINISH = st.none() | st.sampled_from(["stop", "length"])
USAGE = st.none() | st.just({"completion_tokens": 1})
COMPLETION = st.fixed_dictionaries({"text": TEXT | st.none(), "finish_reason": FINISH})
CHAT = st.fixed_dictionaries(
    {
        "delta": st.fixed_dictionaries(
            {},
            optional={"role": st.just("assistant"), "content": TEXT | st.none(), "reasoning_content": TEXT},
        ),
        "finish_reason": FINISH,
    }
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(COMPLETION, max_size=1) | st.lists(CHAT, max_size=1), USAGE, TEXT, st.booleans(), st.booleans()
)
def test_the_short_cut_agrees_with_a_full_reading(
    choices: list[dict[str, object]], usage: dict[str, int] | None, name: str, compact: bool, escaped: bool
) -> None:
    body = {"id": name, "choices": choices, "usage": usage}
    separators = (",", ":") if compact else None
    payload = json.dumps(body, separators=separators, ensure_ascii=escaped).encode("utf-8", "replace")
    event = read_event(payload)
    if is_plain_token(payload):
        assert event == StreamEvent(token=True)
