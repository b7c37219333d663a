"""Server-sent events: any split of the bytes gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload.client.transport import sse
from wattload.client.transport.sse import SseError, SseParser


def all_events(pieces: list[bytes]) -> list[bytes]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def all_events_or_refusal(pieces: list[bytes]) -> list[bytes] | str:
    try:
        return all_events(pieces)
    except SseError as error:
        return str(error)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'data: {"a":1}\n\n', [b'{"a":1}']),
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data:no blank\n\n", [b"no blank"]),
        (b"data:  two blanks\n\n", [b" two blanks"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b": comment\n\ndata: x\n\n", [b"x"]),
        (b": ping\ndata: x\n\n", [b"x"]),
        (b"event: chunk\nid: 7\nretry: 10\ndata: x\n\n", [b"x"]),
        (b"data: x\r\n\r\ndata: y\r\n\r\n", [b"x", b"y"]),
        (b"data: x\r\rdata: y\r\r", [b"x", b"y"]),
        (b"\xef\xbb\xbfdata: bom\n\n", [b"bom"]),
        (b"\n\n\ndata: x\n\n", [b"x"]),
        (b"data: never ended", []),
        (b"data: never ended\n", []),
        (b"datax: other field\n\n", []),
        ("data: d\u00e9j\u00e0\n\n".encode(), ["d\u00e9j\u00e0".encode()]),
    ],
)
def test_events(stream: bytes, expected: list[bytes]) -> None:
    assert all_events([stream]) == expected
    assert all_events([stream[i : i + 1] for i in range(len(stream))]) == expected


def test_an_unfinished_event_is_known() -> None:
    parser = SseParser()
    parser.feed(b"data: x")
    assert parser.pending
    parser.feed(b"\n\n")
    assert not parser.pending


@pytest.mark.parametrize(
    ("stream", "last"),
    [
        (b"data: a\n\ndata: [DONE]", [b"[DONE]"]),
        (b"data: [DONE]\n", [b"[DONE]"]),
        (b"data: [DONE]\r", [b"[DONE]"]),
        (b"data: {\ndata: }", [b"{\n}"]),
        (b"data: a\n\n", []),
        (b"data: a\n\n: ping", []),
        (b"", []),
    ],
)
def test_an_event_without_its_blank_line_is_given_at_the_end(stream: bytes, last: list[bytes]) -> None:
    parser = SseParser()
    for place in range(len(stream)):
        parser.feed(stream[place : place + 1])
    assert parser.end() == last
    assert not parser.pending


def test_a_line_that_is_cut_off_is_no_event() -> None:
    parser = SseParser()
    parser.feed(b"data: a\n\nda")
    with pytest.raises(SseError, match="middle of a line"):
        parser.end()


@pytest.mark.parametrize("cut", range(1, 30))
def test_events_named_error_and_lines_of_other_fields_are_kept_apart(cut: int) -> None:
    stream = b"event: error\ndata: x\n\ndata: y\n\nerror: {}\n\n<html>\n: c\nid: 1\n"
    parser = SseParser()
    events = [event for part in (stream[:cut], stream[cut:]) for event in parser.feed(part)]
    assert (events, parser.failures, parser.strays) == ([b"y"], [b"x"], [b"error: {}", b"<html>"])


def test_lines_of_other_fields_do_not_fill_the_memory() -> None:
    parser = SseParser()
    parser.feed(b"noise\n" * 10_000)
    assert len(parser.strays) < 100


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    for piece in (b"data: " + b"x" * 100, b"data: " + b"x" * 100 + b"\n"):
        with pytest.raises(SseError, match="longer than"):
            all_events([piece] * 100)


EVENT = b'data: {"choices":[{"text":"a"}]}'


@pytest.mark.parametrize(
    "stream",
    [
        EVENT + b"\n" + EVENT + b"\n",
        EVENT + b"\r" + EVENT + b"\r",
        EVENT + b"\r\n" + EVENT + b"\r\n",
        b"\xef\xbb\xbf" + EVENT + b"\n" + EVENT + b"\n",
        EVENT.replace(b": ", b":", 1) + b"\n" + EVENT.replace(b": ", b":  ", 1) + b"\n",
        EVENT + b"\n: ping\n" + EVENT + b"\n",
        b"event: message\n" + EVENT + b"\nevent: message\nid: 2\n" + EVENT + b"\n",
        EVENT + b"\n\n" + EVENT + b"\ndata: [DONE]\n\n",
        EVENT + b" \n" + EVENT + b"\n",
    ],
)
def test_events_without_blank_lines_between_them_are_told_as_the_second_begins(stream: bytes) -> None:
    """They were one event without an end: the request was said to have had no token in time."""
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        with pytest.raises(SseError, match=r"no blank line between two events: .*choices") as refused:
            all_events(pieces)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "document",
    [
        b'{"a": [\n{"b": 1},\n{"b": 2}\n],\n"c": {}\n}', b'{\n"a":\n[1,\n2]\n}', b"[\n[1],\n[2]\n]",
        b'{"a": 1\n}', b"plain [words]\n{of a gateway}", b"[DONE]\n", b"\n{}",
    ],
)  # fmt: skip
def test_a_document_of_several_lines_is_one_event(document: bytes) -> None:
    stream = b"".join(b"data: " + line + b"\n" for line in document.split(b"\n")) + b"\n"
    assert all_events([stream]) == [document]
    assert all_events([stream[i : i + 1] for i in range(len(stream))]) == [document]


LINE = st.sampled_from(
    [b"data: x", b"data: {}", b"data:", b"data", b": c", b"event: e", b"", b"", b"id: 1", b"data: \xc3\xa9"]
)
END = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LINE, END), max_size=12), st.data())
def test_any_split_gives_the_same_events(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    assert all_events_or_refusal(pieces) == all_events_or_refusal([stream])
    assert all_events_or_refusal(pieces) == all_events_or_refusal(
        [stream[i : i + 1] for i in range(len(stream))]
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=10))
def test_garbage_does_no_harm_and_splits_alike(pieces: list[bytes]) -> None:
    assert all_events_or_refusal(pieces) == all_events_or_refusal([b"".join(pieces)])


@pytest.mark.parametrize("line", [b"data\n", b"data:\n", b"data: \n"])
def test_empty_lines_without_end_are_an_event_without_end(
    monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    parser = SseParser()
    for _ in range(100):
        parser.feed(line)
    with pytest.raises(SseError, match="longer than"):
        parser.feed(line * 1000)
