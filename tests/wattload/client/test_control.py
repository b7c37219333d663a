"""Questions are answered whole and within their time, or refused: whatever a server sends, however slowly."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from wattload.client.control import MAX_ANSWER_BYTES, WholeAnswers, control_client

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@contextmanager
def answering(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that reads a request's head, and then does what `answer` does."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(sock: socket.socket) -> None:
            with sock, suppress(OSError):
                while b"\r\n\r\n" not in sock.recv(65536):
                    continue
                answer(sock, over)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        listener.shutdown(socket.SHUT_RDWR)


def dripped(head: bytes, piece: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def answer(sock: socket.socket, over: threading.Event) -> None:
        sock.sendall(head)
        while not over.wait(0.05):
            sock.sendall(piece)

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (HEAD + b"\r\n", b"#"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD, b"X"),
        (b"", b""),
    ],
    ids=["body", "chunks", "headers", "nothing"],
)
def test_an_answer_that_drips_ends_with_its_time(head: bytes, piece: bytes) -> None:
    """Each read is quick, so that no time limit of a single read would ever pass."""
    began = time.monotonic()
    with answering(dripped(head, piece)) as url, control_client(url, timeout_seconds=0.4) as client:
        with pytest.raises(httpx.TimeoutException):
            client.get(url)
        with pytest.raises(httpx.TimeoutException):
            client.get(url)
    assert time.monotonic() - began < 30


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    sent = 0

    def flood(sock: socket.socket, over: threading.Event) -> None:
        nonlocal sent
        sock.sendall(HEAD + b"\r\n")
        while not over.is_set():
            sent += sock.send(b"x" * 1_000_000)

    refused = pytest.raises(httpx.DecodingError, match="longer than")
    with answering(flood) as url, control_client(url) as client, refused:
        client.get(url)
    assert sent < 2 * MAX_ANSWER_BYTES


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused() -> None:
    bomb = gzip.compress(bytes(20_000_000), 1)

    def answer(sock: socket.socket, _over: threading.Event) -> None:
        sock.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)

    transport = WholeAnswers(httpx.HTTPTransport(), 20.0, most_bytes=1_000_000)
    refused = pytest.raises(httpx.DecodingError, match="longer than 1000000 bytes")
    with answering(answer) as url, httpx.Client(transport=transport) as client, refused:
        client.get(url)


def test_a_whole_answer_is_as_it_was() -> None:
    def answer(sock: socket.socket, _over: threading.Event) -> None:
        body = gzip.compress(b'{"a": 1}')
        head = b"Content-Encoding: gzip\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: %d\r\n\r\n" % len(body)
        sock.sendall(HEAD + head + body)

    with answering(answer) as url, control_client(url) as client:
        found = client.get(url)
    assert (found.status_code, found.json()) == (200, {"a": 1})
    assert found.headers.get_list("x-a") == ["1", "2"]
