"""Server-sent events: any split of the bytes gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattload.transport import sse
from wattload.transport.sse import SseError, SseParser


def all_events(pieces: list[bytes]) -> list[bytes]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


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
        (b"event: error\nid: 7\nretry: 10\ndata: x\n\n", [b"x"]),
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


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    for piece in (b"data: " + b"x" * 100, b"data: " + b"x" * 100 + b"\n"):
        with pytest.raises(SseError, match="longer than"):
            all_events([piece] * 100)


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
    assert all_events(pieces) == all_events([stream])
    assert all_events(pieces) == all_events([stream[i : i + 1] for i in range(len(stream))])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=10))
def test_garbage_does_no_harm_and_splits_alike(pieces: list[bytes]) -> None:
    assert all_events(pieces) == all_events([b"".join(pieces)])
