"""The short cut over repeated events gives what reading every byte gives, whatever comes, however split."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload.client import client as client_module
from wattload.client.api import APIS
from wattload.client.client import Call
from wattload.client.endpoint import RequestOptions
from wattload.client.events import (
    RepeatedEvent,
    RepeatedIds,
    is_plain_token,
    json_ids,
    plain_ids,
    without_prompt_ids,
)
from wattload.client.record import RequestRecord

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def payload(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    body = {"id": "cmpl-1", "choices": [choice], **more}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def told(text: str, ids: list[int], prompt: list[int] | None = None) -> bytes:
    """An event with token ids, in vLLM's order of fields."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
    choice |= {"prompt_token_ids": prompt, "token_ids": ids}
    return json.dumps({"id": "cmpl-1", "choices": [choice]}, separators=(",", ":")).encode()


def chat(text: str) -> bytes:
    body = {"id": "c", "choices": [{"delta": {"content": text}, "finish_reason": None}]}
    return json.dumps(body, separators=(",", ":")).encode()


def chunk(data: bytes, size: bytes | None = None) -> bytes:
    return (b"%x" % len(data) if size is None else size) + b"\r\n" + data + b"\r\n"


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class Counting:
    """Stands for the client of a call, which ends in a list."""

    unix_offset = 0.0
    options = RequestOptions()
    api = APIS["completions"]
    forced = True
    redact = staticmethod(str)
    sequences = 1

    def __init__(self, *, ids: bool) -> None:
        self.calls: set[Call] = set()
        self.returns_ids = ids


def record_of(pieces: list[bytes], *, ids: bool = False) -> dict[str, Any]:
    """The record after `pieces` came at 1, 2, 3 ... s, with what the call knows of the stream's state, and
    what the answer said: its text, or its token ids.
    """
    holder: Any = Counting(ids=ids)
    record = RequestRecord(0, "r", -1, "", 0.0, 1, 3)
    said: list[bytes] = []
    call = Call(holder, record, lambda _record: None, said)
    holder.calls.add(call)
    for at, piece in enumerate(pieces):
        if call in holder.calls:
            call.received(piece, float(at + 1))
    if call in holder.calls:
        call.closed(float(len(pieces) + 1))
    return {**asdict(record), "said": b"".join(said)}


def compare(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], *, ids: bool = False) -> None:
    short = record_of(pieces, ids=ids)

    class Never:
        @classmethod
        def of(cls, _payload: bytes, _name: bytes = b"") -> None:
            return None

    with monkeypatch.context() as patch:
        patch.setattr(client_module, "RepeatedEvent", Never)
        patch.setattr(client_module, "RepeatedIds", Never)
        whole = record_of(pieces, ids=ids)
    assert short == whole


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " a", '"', "\\", '","finish_reason":"stop', "\n", "é", "字", "\x7f", '"error"', "}", "{", "\r"]
    ),
)
IDS = st.lists(st.integers(-1, 200_000), max_size=4)
TOLD = st.one_of(
    st.builds(told, TEXTS, IDS),
    st.builds(told, TEXTS, IDS, st.lists(st.integers(0, 9), max_size=4)),
    # Bytes that are no list of ids, and a field behind the ids.
    st.binary(max_size=8).map(lambda raw: told("a", [777]).replace(b"777", raw)),
    st.sampled_from([b"7, 8", b"07", b"7,", b'7],"token_ids":[8', b"7.5", b"12345678901"]).map(
        lambda raw: told("a", [777]).replace(b"777", raw)
    ),
    IDS.map(lambda ids: told(" a", ids)[:-3] + b',"more":1}]}'),
)
PAYLOADS = st.one_of(
    TOLD,
    TEXTS.map(payload),
    TEXTS.map(chat),
    TEXTS.map(lambda text: payload(text, "length")),
    st.just(b"[DONE]"),
    st.just(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3}}'),
    st.just(b'{"error":{"message":"no"}}'),
    # The frame of an event around bytes that are no text.
    st.binary(max_size=12).map(lambda raw: payload("@").replace(b"@", raw)),
    st.binary(max_size=4).map(lambda raw: payload("a") + raw),
)
WIRE = st.one_of(
    PAYLOADS.map(lambda data: chunk(event(data))),
    PAYLOADS.map(lambda data: chunk(event(data), b"%X" % len(event(data)))),
    PAYLOADS.map(lambda data: chunk(event(data), b"0%x;a=b" % len(event(data)))),
    PAYLOADS.map(lambda data: chunk(event(data), b"%x" % (len(event(data)) + 1))),
    PAYLOADS.map(lambda data: chunk(b"data: " + data + b"\r\n\r\n")),
    PAYLOADS.map(lambda data: chunk(b": comment\n" + event(data))),
    PAYLOADS.map(lambda data: chunk(b"data: " + data[:9]) + chunk(data[9:] + b"\n\n")),
    st.tuples(PAYLOADS, PAYLOADS).map(lambda two: chunk(event(two[0]) + event(two[1]))),
    st.just(b"0\r\n\r\n"),
    st.binary(max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(
    wire=st.lists(WIRE, max_size=8),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    whole=st.booleans(),
    ids=st.booleans(),
)
def test_any_stream_any_split(wire: list[bytes], cuts: list[int], whole: bool, ids: bool) -> None:
    """`whole`: one piece an element, as almost always; else cut anywhere. `ids`: were asked for."""
    if whole:
        pieces = [HEAD, *wire]
    else:
        data = HEAD + b"".join(wire)
        places = sorted({cut for cut in cuts if 0 < cut < len(data)})
        pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare(monkeypatch, pieces, ids=ids)


@settings(max_examples=200, deadline=None)
@given(answer=st.lists(TOLD, min_size=1, max_size=8))
def test_ids_of_a_stream_of_ids(answer: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare(monkeypatch, [HEAD, *(chunk(event(data)) for data in answer)], ids=True)


def test_the_short_cut_is_taken_for_ids_and_tells_them() -> None:
    first = without_prompt_ids(told(" one", [5], [1, 2, 3]))
    learnt = RepeatedIds.of(first)
    assert learnt is not None
    for ids in ([6], [7, 123_456], [0]):
        data = chunk(event(told(" two", ids)))
        assert learnt.is_all_of(data)
        assert learnt.said_in(data) == json_ids(ids) == plain_ids(told(" two", ids))
    for other in (told("", [6]), told(" two", []), told('"', [6]), told(" two", [6], [1]), payload(" two")):
        assert not learnt.is_all_of(chunk(event(other)))
    assert not learnt.is_all_of(chunk(event(told(" two", [6])))[:-1])
    assert RepeatedIds.of(payload(" one")) is None


def test_a_long_prompt_that_is_repeated_costs_no_reading_of_it() -> None:
    """The ids of a prompt are cut out before anything is looked at, whatever a text says of them."""
    ids = list(range(100_000))
    assert without_prompt_ids(told(" a", [5], ids)) == told(" a", [5])
    quoting = told('"prompt_token_ids":[1]', [5])
    assert without_prompt_ids(quoting) == quoting
    assert without_prompt_ids(b'{"prompt_token_ids":[1,2') == b'{"prompt_token_ids":[1,2'
    got = record_of(
        [HEAD, chunk(event(told("", [5], ids))), chunk(event(told(" a", [6]))), b"0\r\n\r\n"], ids=True
    )
    assert got["said"] == b",5,6"


@pytest.mark.parametrize("ids", [None, 5, "5", ["5"], [1.0], [True], [-1], [5, None], {}])
def test_what_is_no_list_of_ids_tells_none(ids: Any) -> None:
    assert json_ids(ids) == b""


@pytest.mark.parametrize(
    ("counted", "said"), [(3, None), (2, "token_ids: 3 ids, where usage counts 2 tokens")]
)
def test_ids_that_are_not_those_of_all_tokens_are_told_in_the_row(counted: int, said: str | None) -> None:
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": counted}}).encode()
    pieces = [told(" a", [5]), told("", [6]), told(" b", [7])]
    wire = [HEAD, *map(chunk, map(event, [*pieces, usage, b"[DONE]"])), b"0\r\n\r\n"]
    got = record_of(wire, ids=True)
    assert got["said"] == b",5,6,7"
    assert got["unread"] == said
    assert record_of(wire)["unread"] is None


@settings(max_examples=300, deadline=None)
@given(first=TEXTS, other=st.one_of(TEXTS.map(payload), st.binary(max_size=200)), flip=st.integers(0, 400))
def test_what_it_takes_is_a_plain_token(first: str, other: bytes, flip: int) -> None:
    learnt = RepeatedEvent.of(payload(first)) if is_plain_token(payload(first)) else None
    if learnt is None:
        return
    data = bytearray(chunk(event(other)))
    if flip < len(data):
        data[flip] ^= 1
    if learnt.is_all_of(bytes(data)):
        size, _, rest = bytes(data).partition(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        assert rest.startswith(b"data: ")
        assert rest.endswith(b"\n\n\r\n")
        taken = rest[6:-4]
        assert is_plain_token(taken)
        assert isinstance(json.loads(taken)["choices"][0]["text"], str)


def test_it_is_taken_for_what_vllm_sends() -> None:
    for made in (payload, chat):
        learnt = RepeatedEvent.of(made(" first"))
        assert learnt is not None
        assert learnt.is_all_of(chunk(event(made(" another"))))
        assert not learnt.is_all_of(chunk(event(made("")))), "no text: the counts decide what it is"
        assert not learnt.is_all_of(chunk(event(made('a "quote"'))))
        assert not learnt.is_all_of(chunk(event(made("x") + b" ")))
        assert not learnt.is_all_of(chunk(event(made("x")))[:-1])
        assert not learnt.is_all_of(chunk(event(made("x"))) + b"5")
    assert RepeatedEvent.of(payload('"')) is None


def test_a_body_that_is_not_chunked_is_never_taken_for_one() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    sent = chunk(event(payload("a")))
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare(monkeypatch, [head, event(payload("a")), sent, sent, event(b"[DONE]")])
