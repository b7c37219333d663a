"""The load goes through the proxy that the questions go through: plain HTTP, and TLS by a tunnel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event
from gevent.server import StreamServer

from clients import client_of
from scripted_server import good, scripted
from wattload.client.record import Outcome, RequestRecord


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def one(url: str, **options: Any) -> RequestRecord:
    client = client_of(url, **options)
    record = RequestRecord(0, "run-0", -1, "", 0.0, 3, 3)
    over = Event()
    client.send(record, client.prepare(record, b"[1,2,3]"), lambda _record: over.set())
    assert over.wait(5), "the request never ended"
    client.close()
    return record


@contextmanager
def tunnel(port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Iterator[Any]:
    """A proxy that answers CONNECT with `answer`, and where that is 200, joins the client to `port`."""
    heads: list[bytes] = []

    def pipe(source: Any, sink: Any) -> None:
        while data := source.recv(65536):
            sink.sendall(data)

    def handle(sock: Any, _address: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        heads.append(head)
        sock.sendall(answer)
        if b" 200 " not in answer:
            return
        with gevent.socket.create_connection(("127.0.0.1", port)) as server:
            gevent.joinall([gevent.spawn(pipe, sock, server), gevent.spawn(pipe, server, sock)], count=1)

    proxy = StreamServer(("127.0.0.1", 0), handle)
    proxy.start()
    try:
        yield f"http://me:pw@127.0.0.1:{proxy.server_port}", heads
    finally:
        proxy.stop(timeout=0)


def test_plain_http_names_the_whole_address_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(good) as (address, seen):
        monkeypatch.setenv("http_proxy", address.replace("//", "//me:pw@"))
        record = one("http://gpu.invalid:8000/v1")
        assert record.outcome is Outcome.COMPLETED
        assert seen.headers[0]["host"] == "gpu.invalid:8000"
        assert seen.headers[0]["proxy-authorization"] == "Basic bWU6cHc="
        assert seen.paths == ["http://gpu.invalid:8000/v1/completions"]


def test_tls_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {cert}"
    named = "-subj /CN=gpu.invalid -addext subjectAltName=DNS:gpu.invalid"
    subprocess.run(["openssl", *made.split(), *named.split()], check=True, capture_output=True)
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with (
        scripted(good, ssl_context=context) as (address, seen),
        tunnel(int(address.rpartition(":")[2])) as (proxy, heads),
    ):
        monkeypatch.setenv("https_proxy", proxy)
        record = one("https://gpu.invalid", ca_file=str(cert))
        assert record.outcome is Outcome.COMPLETED
        assert seen.paths == ["/v1/completions"]
        assert "proxy-authorization" not in seen.headers[0]
        assert heads[0].startswith(b"CONNECT gpu.invalid:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6cHc=" in heads[0]


def test_a_tunnel_that_is_refused_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with tunnel(1, b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as (proxy, _):
        monkeypatch.setenv("https_proxy", proxy)
        record = one("https://gpu.invalid")
    assert record.outcome is Outcome.CONNECT_ERROR
    assert record.error is not None
    assert "407 Proxy Authentication Required" in record.error
    assert "of https_proxy" in record.error
    assert "pw" not in record.error


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    record = one("http://gpu.invalid")
    assert record.error is not None
    assert "by the proxy http://127.0.0.1:9 of http_proxy" in record.error
