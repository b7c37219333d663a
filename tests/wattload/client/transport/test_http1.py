"""HTTP/1.1 responses: bodies of every framing, any split of the bytes, and what must be refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload.client.transport.http1 import MAX_HEAD_BYTES, HttpError, ResponseParser


def parse(
    stream: bytes, cuts: list[int] | None = None, *, close: bool = False
) -> tuple[ResponseParser, bytes]:
    edges = [0, *sorted(cuts or []), len(stream)]
    parser = ResponseParser()
    body = b"".join(parser.feed(stream[a:b]) for a, b in pairwise(edges))
    if close:
        parser.end()
    return parser, body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_by_length() -> None:
    parser, body = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello")
    assert (parser.status, parser.complete, parser.reusable, body) == (200, True, True, b"hello")
    assert parser.headers == {"content-length": "5", "x-a": "b"}


def test_by_chunks_with_extension_and_trailers() -> None:
    parser, body = parse(CHUNKED + b"5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n")
    assert (parser.complete, parser.reusable, body) == (True, True, b"hello!")


def test_up_to_the_end_of_the_connection() -> None:
    parser, body = parse(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True)
    assert (parser.complete, parser.reusable, body) == (True, False, b"all of it")


def test_interim_responses_are_passed_over() -> None:
    parser, body = parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (parser.status, body) == (200, b"ok")


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_reuse(head: bytes, reusable: bool) -> None:
    assert parse(head + b"Content-Length: 0\r\n\r\n")[0].reusable is reusable


def test_bytes_after_the_response_forbid_reuse() -> None:
    assert parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")[0].reusable is False


def test_no_body_for_204() -> None:
    parser, body = parse(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (parser.complete, body) == (True, b"")


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"<html>", "not HTTP/1"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a number"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "contradict"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "not asked for"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "another protocol"),
        (CHUNKED + b"xyz\r\n", "no size"),
        (CHUNKED + b"-1\r\n", "no size"),
        (CHUNKED + b"\r\n", "no size"),
        (CHUNKED + b"fffffffffffffffff\r\n", "no size"),
        (CHUNKED + b"2\r\nabcd", "does not end"),
        (CHUNKED + b"1" * 10000, "longer than"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", "headers are longer"),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 20000, "trailers are longer"),
    ],
)
def test_refused(stream: bytes, said: str) -> None:
    with pytest.raises(HttpError, match=said):
        parse(stream)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"", "before it had responded"),
        (b"HTTP/1.1 200", "middle of the headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "middle of the body"),
        (CHUNKED + b"5\r\nhello\r\n", "middle of the body"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", "middle of the body"),
    ],
)
def test_cut_short(stream: bytes, said: str) -> None:
    with pytest.raises(HttpError, match=said):
        parse(stream, close=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.booleans(), st.data())
def test_any_split_gives_the_same_body(parts: list[bytes], chunked: bool, data: st.DataObject) -> None:
    whole = b"".join(parts)
    if chunked:
        stream = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    else:
        stream = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(whole), whole)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    parser, body = parse(stream, cuts)
    assert (body, parser.complete, parser.reusable) == (whole, True, True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_garbage_ends_in_a_named_error_or_waits(tail: bytes, cuts: list[int]) -> None:
    for head in (b"", b"HTTP/1.1 ", CHUNKED):
        stream = head + tail
        try:
            parser, body = parse(stream, [min(c, len(stream)) for c in cuts])
        except HttpError:
            continue
        assert len(body) <= len(stream)
        assert parser.status == 0 or 200 <= parser.status <= 999
