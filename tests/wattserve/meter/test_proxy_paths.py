"""What the proxy passes on is what came: paths byte for byte, bodies, headers that are not about one
connection alone, and reasons where there is no answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sim_server import serving
from wattmeter.meters.modelled import ModelledMeter
from wattserve.meter.app import MeterApp
from wattserve.meter.engines import Node
from wattserve.meter.proxy import MOST_WHOLE_BYTES
from wattserve.meter_spec import MeterSpec

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """Keeps the first lines, headers and bodies that it was sent; `answers` are bytes for each request of a
    connection, None closes it without a word.
    """

    def __init__(self, answers: list[bytes | None]) -> None:
        self.lines: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.on_part: Callable[[int], object] = lambda count: None
        self.at_once: bytes | None = None
        self._answers = answers
        self.over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(line,), daemon=True).start()

    def _connection(self, line: socket.socket) -> None:
        with line, line.makefile("rb") as reader:
            while first := reader.readline():
                headers: dict[bytes, bytes] = {}
                while (header := reader.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    headers[name.lower()] = value.strip()
                if self.at_once is not None and b"content-length" in headers:
                    line.sendall(self.at_once)
                    self.over.wait(60)
                    return
                body, left = b"", int(headers.get(b"content-length", 0))
                while left and (part := reader.read(min(left, 1 << 20))):
                    body, left = body + part, left - len(part)
                    self.on_part(len(body))
                if headers.get(b"user-agent") == b"wattserve-meter":
                    line.sendall(OK)  # the proxy's own question for the model's name
                    continue
                self.lines.append(first.strip())
                self.headers.append(headers)
                self.bodies.append(body)
                answer = self._answers.pop(0) if self._answers else OK
                if answer is None:
                    return
                line.sendall(answer)

    def close(self) -> None:
        self.over.set()
        self._socket.close()


@contextmanager
def between(answers: list[bytes | None], prefix: str = "") -> Iterator[tuple[Upstream, tuple[str, int]]]:
    upstream = Upstream(answers)
    meter = ModelledMeter(lambda ns: ns * 1e-9)
    node = Node(MeterSpec("modelled", "none"), meter=meter)
    with serving(MeterApp(node, upstream=upstream.url + prefix).app) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield upstream, (host, int(port))
    upstream.close()


def ask(address: tuple[str, int], first: bytes, body: bytes = b"") -> bytes:
    head = b"%s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (first, len(body))
    with socket.create_connection(address, timeout=20) as line:
        line.sendall(head + body)
        return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.mark.parametrize(
    "path",
    [b"/v1/models/../../etc/passwd", b"/x/../v1/models", b"/a/./b", b"/a%2e%2e/b?x=%20", b"//double",
     b"/a%00b", b"/caf%C3%A9?q=a&b;c"],
)  # fmt: skip
def test_a_path_goes_as_it_came(path: bytes) -> None:
    """Two dots that are resolved on the way would go past a filter in front of the proxy."""
    with between([]) as (upstream, address):
        assert ask(address, b"GET " + path).endswith(b"ok")
        assert upstream.lines == [b"GET %s HTTP/1.1" % path]


def test_a_path_of_the_upstream_comes_first_and_a_star_stays_alone() -> None:
    with between([], prefix="/base/") as (upstream, address):
        ask(address, b"GET /v1/models")
        assert ask(address, b"OPTIONS *").startswith(b"HTTP/1.1 200 ")
        assert upstream.lines == [b"GET /base/v1/models HTTP/1.1", b"OPTIONS * HTTP/1.1"]


def test_a_connection_that_the_upstream_closed_costs_a_question_nothing() -> None:
    with between([b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", None]) as (upstream, address):
        assert ask(address, b"GET /one").startswith(b"HTTP/1.1 500 ")
        assert ask(address, b"GET /two").startswith(b"HTTP/1.1 200 ")
        assert upstream.lines[0] == b"GET /one HTTP/1.1"
        assert set(upstream.lines[1:]) == {b"GET /two HTTP/1.1"}


def test_what_may_have_been_done_is_not_done_again_and_has_a_reason() -> None:
    with between([None, None]) as (upstream, address):
        said = ask(address, b"POST /v1/completions", b"{}")
        assert said.startswith(b"HTTP/1.1 502 ")
        reason = said.partition(b'"message": "')[2].partition(b'"')[0]
        assert len(reason) > len(upstream.url) + 10, reason
        assert len(upstream.lines) == 1


@pytest.mark.parametrize("offered", [b"websocket", b"WebSocket", b"h2c, websocket/13"])
def test_a_websocket_is_refused_with_a_status(offered: bytes) -> None:
    upgrade = b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n" % offered
    with between([]) as (upstream, address), socket.create_connection(address, timeout=20) as line:
        line.sendall(upgrade)
        assert line.recv(4096).startswith(b"HTTP/1.1 501 ")
        assert upstream.lines == []


def test_an_offer_of_http_2_is_passed_over_and_goes_no_further() -> None:
    """Java's client makes it with each request in clear text. The body was lost on the way."""
    body = b'{"prompt": "a", "max_tokens": 2}'
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX-Request-Id: mine\r\nContent-Length: %d\r\n\r\n"
    )
    with between([]) as (upstream, address), socket.create_connection(address, timeout=20) as line:
        line.sendall(head % len(body))
        line.sendall(body)
        said = b"".join(iter(lambda: line.recv(65536), b""))
        assert said.startswith(b"HTTP/1.1 200 ")
        assert said.endswith(b"ok")
        assert upstream.bodies == [body]
        assert not upstream.headers[0].keys() & {b"connection", b"upgrade", b"http2-settings"}
        assert upstream.headers[0][b"x-request-id"] == b"mine"


def test_what_connection_names_is_for_one_connection_in_both_directions() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Back\r\nX-Back: 1\r\nX-Stays: 2\r\nContent-Length: 2\r\n\r\nok"
    )
    head = (
        b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close, X-One\r\n"
        b"Connection: x-two, X-Request-Id\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\nX-Request-Id: mine\r\n\r\n"
    )
    with between([answer]) as (upstream, address), socket.create_connection(address, timeout=20) as line:
        line.sendall(head)
        said = b"".join(iter(lambda: line.recv(65536), b"")).lower()
        sent = upstream.headers[0]
        assert not sent.keys() & {b"x-one", b"x-two", b"connection"}
        # By this one a request's joules are found.
        assert (sent[b"x-three"], sent[b"x-request-id"]) == (b"3", b"mine")
        assert b"x-stays: 2" in said
        assert b"x-back" not in said


def test_a_second_response_to_one_request_reaches_nobody() -> None:
    """It was put behind the first one's body."""
    with between([OK + OK.replace(b"ok", b"no")]) as (upstream, address):
        assert ask(address, b"GET /one").endswith(b"\r\n\r\nok")
        assert ask(address, b"GET /two").endswith(b"\r\n\r\nok")
        assert upstream.lines == [b"GET /one HTTP/1.1", b"GET /two HTTP/1.1"]


@pytest.mark.parametrize("length", [MOST_WHOLE_BYTES - 1, MOST_WHOLE_BYTES + 1, 3 * MOST_WHOLE_BYTES])
def test_a_body_of_any_length_goes_as_it_came(length: int) -> None:
    body = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    with between([]) as (upstream, address):
        assert ask(address, b"POST /v1/completions", body).endswith(b"ok")
        assert ask(address, b"POST /v1/completions", body).endswith(b"ok")
        assert upstream.bodies == [body] * 2
        assert "transfer-encoding" not in str(upstream.headers)


def test_a_long_body_is_passed_on_while_it_comes() -> None:
    """100 MB were held and joined before the first byte went on, and nobody else was served meanwhile."""
    seen = threading.Event()
    with between([]) as (upstream, address), socket.create_connection(address, timeout=60) as line:
        upstream.on_part = lambda count: seen.set() if count > MOST_WHOLE_BYTES else None
        line.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 40000000\r\n\r\n")
        line.sendall(b"x" * 20_000_000)
        assert seen.wait(60)
        line.sendall(b"x" * 20_000_000)
        assert b"".join(iter(lambda: line.recv(65536), b"")).endswith(b"ok")


def test_an_answer_before_the_bodys_end_reaches_the_client() -> None:
    """An upstream that refuses a long body may read none of it: the proxy waited to send the rest."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    with between([]) as (upstream, address), socket.create_connection(address, timeout=60) as line:
        upstream.at_once = refusal
        line.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 90000000\r\n\r\n" + b"x" * 100_000)
        said = b""
        sending = threading.Thread(target=_send_on, args=(line,), daemon=True)
        sending.start()
        while not said.endswith(b"no"):
            said += line.recv(65536)
        assert said.startswith(b"HTTP/1.1 413 ")


def _send_on(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(800):
            line.sendall(b"x" * 100_000)
