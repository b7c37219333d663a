"""Which events carry tokens; and that the short cut never says other than a full reading."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattload.client_events import EventError, StreamEvent, body_error, is_plain_token, read_event


def text(value: str | None, finish: str | None = None, **more: object) -> bytes:
    return json.dumps(
        {"choices": [{"text": value, "finish_reason": finish}], **more}, separators=(",", ":")
    ).encode()


def delta(value: dict[str, object], finish: str | None = None) -> bytes:
    return json.dumps(
        {"choices": [{"delta": value, "finish_reason": finish}]}, separators=(",", ":")
    ).encode()


@pytest.mark.parametrize(
    ("payload", "token"),
    [
        (text("a"), True),
        (text(""), True),  # half a character: a token all the same
        (text("", "length"), False),
        (text("a", "length"), True),
        (delta({"role": "assistant", "content": ""}), False),
        (delta({"role": "assistant", "content": "a"}), True),
        (delta({"content": "a"}), True),
        (delta({"content": ""}), True),
        (delta({"content": ""}, "stop"), False),
        (delta({}, "stop"), False),
        (delta({"reasoning_content": "hm"}), True),
        (delta({"tool_calls": [{"index": 0}]}), True),
        (delta({"content": None}), False),
        (b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}', False),
    ],
)
def test_token(payload: bytes, token: bool) -> None:
    assert read_event(payload).token is token
    assert not is_plain_token(payload) or token


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


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[1]", b"null", b'"x"', b"{}", b'{"choices":3}', b'{"choices":[1]}', b"\xff\xfe"]
)
def test_what_is_no_event(payload: bytes) -> None:
    assert not is_plain_token(payload)
    with pytest.raises(EventError):
        read_event(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":{"message":"out of memory","code":500}}',
        b'{"error":"out of memory"}',
        b'{"object":"error","message":"out of memory","code":500}',
        b'{"error":{"detail":"out of memory"}}',
    ],
)
def test_errors_in_mid_stream(payload: bytes) -> None:
    assert read_event(payload).error == "out of memory"
    assert not is_plain_token(payload)


def test_error_bodies() -> None:
    assert body_error(b'{"detail":"no such model"}') == "no such model"
    assert body_error(b"<html>\n <b>502</b></html>") == "<html> <b>502</b></html>"
    assert len(body_error(b"x" * 5000)) == 300


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
