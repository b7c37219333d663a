"""The proxy of `wattserve meter --upstream` against upstreams that do what servers do: bytes on a socket."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from sim_server import serving
from wattserve.http.middleware import EnergyMiddleware, Receive, Scope, Send
from wattserve.meter.proxy import StreamingProxy
from wattserve.meter.upstream import Address, UpstreamAddressError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Talk = Callable[[socket.socket, bytes], None]


class Heard:
    """What an upstream was sent: the heads of requests with their bodies, and the number of connections."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0


@contextlib.contextmanager
def upstream(talk: Talk) -> Iterator[tuple[str, Heard]]:
    """A server that has `talk` answer each request."""
    heard = Heard()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.connections += 1
            with contextlib.suppress(OSError):
                while request := _request(self.request):
                    heard.requests.append(request)
                    talk(self.request, request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", heard
        finally:
            server.shutdown()
            thread.join()


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        None,
    )
    ending = b"0\r\n\r\n" if b"transfer-encoding: chunked" in head.lower() else b""
    while (length is not None and len(body) < length) or not body.endswith(ending):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def proxied(talk: Talk, base: str = "") -> Iterator[tuple[str, Heard]]:
    with upstream(talk) as (url, heard):
        proxy = StreamingProxy(url + base, CollectorRegistry())

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await proxy.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await EnergyMiddleware(proxy, None)(scope, receive, send)

        with serving(app) as through:
            yield through, heard


def ok(connection: socket.socket, request: bytes) -> None:
    connection.sendall(OK)


def raw(url: str, request: bytes) -> bytes:
    """The first bytes of the response to a request that no client library would write."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(65536)


@pytest.mark.parametrize(
    ("base", "asked", "sent"),
    [
        ("", "/v1/models", b"/v1/models"),
        ("/v1", "/v1/models", b"/v1/models"),
        ("/v1/", "/v1/models", b"/v1/models"),
        ("/qwen", "/v1/models", b"/qwen/v1/models"),
        ("/qwen/v1", "/v1/models?a=%20b", b"/qwen/v1/models?a=%20b"),
        ("", "/a/../b/./c", b"/a/../b/./c"),
        ("", "/a%2Fb//c?x=1&x=/../", b"/a%2Fb//c?x=1&x=/../"),
    ],
)
def test_targets_reach_the_upstream_as_they_came(base: str, asked: str, sent: bytes) -> None:
    with proxied(ok, base) as (url, heard):
        answer = raw(url, f"GET {asked} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        assert heard.requests[0].split(b" ")[1] == sent


def test_options_about_the_server_as_a_whole() -> None:
    with proxied(ok, "/qwen") as (url, heard):
        assert raw(url, b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert heard.requests[0].startswith(b"OPTIONS * HTTP/1.1\r\n")


@pytest.mark.parametrize("case", ["websocket", "WebSocket"])
def test_websockets_are_refused_with_a_status(case: str) -> None:
    with proxied(ok) as (url, heard):
        request = (
            f"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: {case}\r\n"
            "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = raw(url, request.encode())
        assert answer.split(b" ")[1] in (b"501", b"403")
        assert heard.requests == []


def test_one_connection_serves_many_requests() -> None:
    with proxied(ok) as (url, heard), httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(5):
            assert client.post("/v1/completions", json={}).text == "ok"
        assert heard.connections == 1


def test_a_kept_connection_that_the_upstream_has_closed_costs_no_request() -> None:
    """It is closed without a word after the first response, as servers close what rests."""
    ended = threading.Event()

    def once(connection: socket.socket, request: bytes) -> None:
        connection.sendall(OK)
        if not ended.is_set():
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            ended.set()

    with proxied(once) as (url, heard), httpx.Client(base_url=url, timeout=20) as client:
        assert client.post("/v1/completions", json={}).status_code == 200
        assert ended.wait(20)
        for _ in range(3):
            assert client.post("/v1/completions", json={}).status_code == 200
        assert len(heard.requests) == 4


def test_a_kept_connection_that_closes_at_the_next_request_is_replaced() -> None:
    """The race: the upstream ends the connection as the request is on its way, without having read it."""
    connections: list[socket.socket] = []

    def talk(connection: socket.socket, request: bytes) -> None:
        connections.append(connection)
        if len(connections) == 2:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            return
        connection.sendall(OK)

    with proxied(talk) as (url, heard), httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert heard.connections == 2
        assert len(heard.requests) == 3
        connections.clear()
        assert client.post("/v1/completions", json={"a": 1}).status_code == 200
        answer = client.post("/v1/completions", json={"a": 2})
        assert answer.status_code == 502, "it may have begun to compute: that is the client's to decide"
        assert len(heard.requests) == 5


def test_a_new_connection_that_closes_at_once_is_502_and_not_asked_again() -> None:
    def close(connection: socket.socket, request: bytes) -> None:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    with proxied(close) as (url, heard), httpx.Client(base_url=url, timeout=20) as client:
        answer = client.post("/v1/completions", json={})
        assert answer.status_code == 502
        assert "closed the connection" in answer.json()["error"]["message"]
        assert len(heard.requests) == 1


def test_a_response_that_breaks_off_breaks_off_for_the_client_too() -> None:
    def half(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        time.sleep(0.05)
        connection.close()

    with (
        proxied(half) as (url, _),
        httpx.Client(base_url=url, timeout=20) as client,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        client.get("/v1/models")


@pytest.mark.parametrize(
    ("method", "response", "status", "body"),
    [
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", 304, b""),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK, 200, b"ok"),
        ("GET", b"HTTP/1.1 503 Busy\r\nretry-after: 3\r\ncontent-length: 4\r\n\r\nbusy", 503, b"busy"),
    ],
)
def test_responses_of_every_shape(method: str, response: bytes, status: int, body: bytes) -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(response)
        if b"HTTP/1.0" in response:
            connection.close()

    with proxied(talk) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(2):
            answer = client.request(method, "/v1/models")
            assert (answer.status_code, answer.content) == (status, body)


@pytest.mark.parametrize(
    "response", [b"not http at all\r\n\r\n", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"]
)
def test_what_is_no_response_is_502(response: bytes) -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(response)
        time.sleep(0.05)
        connection.close()

    with proxied(talk) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/v1/models").status_code == 502


def test_a_body_without_a_length_is_passed_on_in_chunks() -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"prompt":'
        yield b"[1]}"

    with proxied(ok) as (url, heard), httpx.Client(base_url=url, timeout=20) as client:
        assert client.post("/v1/completions", content=parts()).status_code == 200
        head, _, body = heard.requests[0].partition(b"\r\n\r\n")
        assert b"content-length" not in head.lower()
        assert b'{"prompt":' in body
        assert body.endswith(b"0\r\n\r\n")


def test_large_bodies_pass_both_ways() -> None:
    size = 5_000_000

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        connection.sendall(b"x" * size)

    with proxied(talk) as (url, heard), httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/v1/files", content=b"y" * size)
        assert len(answer.content) == size
        assert heard.requests[0].endswith(b"y" * 100)


def test_a_client_that_leaves_ends_the_upstreams_connection() -> None:
    left = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        connection.settimeout(20)
        if connection.recv(1) == b"":
            left.set()

    with proxied(talk) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
        with client.stream("GET", "/v1/models") as response:
            next(response.iter_raw())
        assert left.wait(20)


@pytest.mark.parametrize(
    "url",
    ["localhost:80", "ftp://host", "http://", "http://host:port", "http://u:p@host", "http://host/?a=b"],
)
def test_an_address_that_no_server_has_is_refused(url: str) -> None:
    with pytest.raises(UpstreamAddressError):
        Address.parse(url)


def test_the_error_names_the_address_without_the_clients_v1() -> None:
    assert Address.parse("https://host/v1").url == "https://host"
    assert json.dumps(Address.parse("http://[::1]:9/v1").authority.decode()) == '"[::1]:9"'
